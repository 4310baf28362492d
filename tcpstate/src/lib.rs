//! The SYN proxy as a pure library: wire formats, cookies, SYN cache, flow table, timers, translation and the state machine.
//!
//! It sees no clock, no randomness of its own, no thread and no I/O. A worker hands [`Proxy`] the frames of a batch and the
//! time, and does with each frame what the [`Verdict`] says. A whole run is then a function of its inputs.

#![deny(unsafe_code)]

mod answered;
mod backends;
pub mod config;
mod cookie;
mod doors;
mod ecn;
mod flow;
mod fragments;
mod head;
mod keyed;
mod learn;
mod limit;
mod news;
pub mod owner;
mod pen;
mod prefetch;
mod proxy;
pub mod seq;
mod side;
mod table;
mod terms;
mod time;
mod translate;
mod verdict;
mod wheel;
pub mod wire;

pub use backends::{Backend, Backends};
pub use config::Config;
pub use cookie::Rotation;
pub use flow::State;
pub use head::Head;
pub use news::News;
pub use owner::Owners;
pub use proxy::{
    Call, Connection, Egress, End, Excerpt, Explanation, Field, Filter, Look, Population, Proxy, Secrets, Source,
    Standing, fields,
};
pub use side::{PerSide, Side};
pub use time::Instant;
pub use verdict::{Counters, DropReason, Event, Ticket, Verdict};
