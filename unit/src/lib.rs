//! What only tests.

pub mod netns;
