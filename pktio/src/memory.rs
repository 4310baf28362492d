//! The memory part; see the crate's documentation.
