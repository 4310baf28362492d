//! What is counted and recorded: statistics, the reports made of them, top talkers and captures.

pub mod capture;
pub mod descriptors;
pub mod report;
pub mod snapshot;
pub mod top_talkers;
