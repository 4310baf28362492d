//! The impair part; see the crate's documentation.
