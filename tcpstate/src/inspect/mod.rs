//! Reads the engine for its operator: explains what would become of a frame, lists connections, reports the status of one. Decides nothing.

mod explain;
mod listing;
mod status;

pub use explain::{Excerpt, Explanation, Field, fields};
pub use listing::{Connection, End, Filter};
pub use status::ConnectionStatus;
