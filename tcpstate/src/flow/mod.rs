//! One connection: its record, the states it can be in, how a segment is translated for its other side, and the table of all of them.

pub mod ecn;
pub(crate) mod map;
mod record;
mod state;
pub mod table;
pub mod translate;

pub use record::{Endpoint, Flow, FlowFlags, LAYOUT};
pub(crate) use record::{Snapshot, UNTOUCHED};
pub use state::State;
