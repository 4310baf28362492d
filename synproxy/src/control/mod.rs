//! The control plane: how an operator's requests reach the workers, and how the answers are written.
//!
//! [`socket`] serves `synctl` through [`api`]; [`control_port`] serves the binary protocol of nmsynproxy through [`servers`]. Both
//! reach the workers over their [command channel](crate::dataplane::commands) and never touch a worker's memory. [`reload`] puts another configuration into
//! force. [`site`] is what is served over HTTP.

pub mod api;
pub mod control_port;
pub mod lists;
pub mod reload;
pub mod servers;
pub mod service_watch;
pub mod site;
pub mod socket;
pub mod views;
