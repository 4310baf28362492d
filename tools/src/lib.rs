//! What the load generators share: segments to stamp out by the million, and a socket that sends them.

pub mod raw;
pub mod spray;
