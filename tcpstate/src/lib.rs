//! The SYN proxy as a pure library: wire formats, cookies, SYN cache, flow table, timers, translation and the state machine.
//!
//! It sees no clock, no randomness of its own, no thread and no I/O. A worker hands [`Proxy`] the frames of a batch and the
//! time, and does with each frame what the [`Verdict`] says. A whole run is then a function of its inputs.

#![deny(unsafe_code)]

mod cache;
pub mod config;
mod cookie;
mod counters;
mod flow;
mod head;
pub mod histogram;
mod inspect;
mod keyed;
pub mod memory;
mod metadata;
mod metric;
pub mod owner;
mod policy;
mod prefetch;
mod proxy;
pub mod seq;
pub mod service;
mod side;
mod time;
mod verdict;
pub mod wire;

pub use cache::backends::ServiceCounts;
pub use cache::gathered::GatheredSlab;
pub use cache::servers::ServerSlab;
pub use cache::updates::ServerUpdate;
pub use cache::vlan_pairs::VlanPair;
pub use config::Config;
pub use cookie::{CookieClock, Rotation};
pub use counters::{Counters, Counts};
pub use flow::map::{FlowMap, Found};
pub use flow::table::{Adopted, Population, Redirect, Remains, Slab};
pub use flow::{LAYOUT as RECORD_LAYOUT, State};
pub use head::Head;
pub use histogram::Histogram;
pub use inspect::{
    Connection, ConnectionStatus, End, Excerpt, Explanation, Field, Filter, ServerStatus, ServiceStatus, fields,
};
pub use keyed::Secrets;
pub use memory::Words;
pub use metadata::{ConnectAttempt, Metadata, Source};
pub use metric::{Description, MetricKind, Unit};
pub use owner::Owners;
pub use policy::Policy;
pub use policy::lists::{List, Lists};
pub use policy::mode::{Directive, Target, TargetCounts, TargetKey};
pub use policy::servers::{ServerEntry, ServerTable};
pub use proxy::{Egress, Footprint, Forwarded, Memory, NameAnswer, NameQuestion, Proxy, SharedSyns};
pub use side::{PerSide, Side};
pub use time::Instant;
pub use verdict::{DropReason, Event, Ticket, Timing, Verdict};
