//! The capture part; see the crate's documentation.
