//! One connection: its record, the states it can be in, how a segment is translated for its other side, and the table of all of them.

pub mod ecn;
mod record;
pub mod table;
pub mod translate;

pub use record::{Endpoint, Flow, FlowFlags, State};
