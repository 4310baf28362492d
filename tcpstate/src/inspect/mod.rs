//! Reads the engine for its operator: explains what would become of a frame, lists connections, reports the status of one, and of services. Decides nothing.

mod explain;
mod listing;
mod services;
mod status;

pub use explain::{Excerpt, Explanation, Field, fields};
pub use listing::{Connection, End, Filter};
pub use services::{ServerStatus, ServiceStatus};
pub use status::ConnectionStatus;
