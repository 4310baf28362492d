//! What the operator wants: limits, and what is said of servers.

pub mod limit;
pub mod servers;
