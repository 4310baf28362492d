//! What is counted and recorded.
//!
//! [`descriptors`] is the one table of all metrics. Workers publish their values as a [`snapshot`], of which [`report`] makes the log's
//! lines and tables, and [`prometheus`] what [`http`] serves. [`events`] reports attacks and trouble,
//! [`top_talkers`] estimates who sends most, [`swap_check`] notices ports that are
//! swapped, [`targets`] is what is known of each target, and [`capture`] copies frames into files.

pub mod capture;
pub mod descriptors;
pub mod events;
pub mod http;
pub mod prometheus;
pub mod report;
pub mod snapshot;
pub mod swap_check;
pub mod targets;
pub mod top_talkers;
