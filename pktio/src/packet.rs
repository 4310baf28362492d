//! The packet part; see the crate's documentation.
