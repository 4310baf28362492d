//! Replies: what the box answers.

use crate::{Capture, Configuration, Explained, FlowList, LinkCondition, Reloaded, Role, Talker};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A reply: a JSON object with one member, whose name is the kind of reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Whoami`](crate::Request::Whoami).
    Whoami(Whoami),
    /// To [`Request::Status`](crate::Request::Status).
    Status(Box<Status>),
    /// To [`Request::Stats`](crate::Request::Stats).
    Stats(Box<Stats>),
    /// To [`Request::Servers`](crate::Request::Servers): the server entries, sorted by key.
    Servers(Vec<crate::Entry>),
    /// To [`Request::Backends`](crate::Request::Backends): the same under its former name.
    Backends(Vec<crate::Entry>),
    /// To [`Request::Lists`](crate::Request::Lists).
    Lists(Lists),
    /// To [`Request::List`](crate::Request::List).
    List(ListPage),
    /// To [`Request::Flows`](crate::Request::Flows).
    Flows(FlowList),
    /// To [`Request::Top`](crate::Request::Top).
    Top(Box<Top>),
    /// To [`Request::Policy`](crate::Request::Policy): everybody first, then each block of `destinations` that settles a mode. None where the box bypasses
    /// the engine.
    Policy(Vec<crate::DestinationMode>),
    /// To [`Request::SuggestPolicy`](crate::Request::SuggestPolicy), likewise.
    Suggested(Vec<crate::Suggested>),
    /// To [`Request::Services`](crate::Request::Services): in the order of the configuration.
    Services(Vec<crate::ServiceState>),
    /// To [`Request::Explain`](crate::Request::Explain).
    Explained(Box<Explained>),
    /// To [`Request::Captures`](crate::Request::Captures) and [`Request::StopCapture`](crate::Request::StopCapture).
    Captures(Vec<Capture>),
    /// To [`Request::Config`](crate::Request::Config).
    Config(Configuration),
    /// To [`Request::Reload`](crate::Request::Reload) and [`Request::LoadConfig`](crate::Request::LoadConfig).
    Reloaded(Reloaded),
    /// To [`Request::Events`](crate::Request::Events): events, the oldest first.
    Events(Vec<crate::Record>),
    /// The request was carried out; a message for people.
    Done(String),
    /// The request was refused.
    Error(Refusal),
}

impl Reply {
    /// A refusal.
    pub fn refuse(why: Why, message: impl Into<String>) -> Reply {
        Reply::Error(Refusal { why, message: message.into() })
    }
}

/// Who a client is to the box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whoami {
    /// Its user, by number.
    pub user: u32,
    /// What it may do.
    pub role: Role,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The cause, for programs.
    pub why: Why,
    /// The cause, for people.
    pub message: String,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The line is not a valid request. The box closes the connection only if the line was too long.
    Malformed,
    /// The client lacks permission; the message names the role it takes. The box closes the connection, unless only this request is forbidden.
    Forbidden,
    /// Too many clients are connected. The box closes the connection.
    Busy,
    /// A worker did not answer in time.
    Silent,
    /// The request cannot be carried out in the present state; the message says why.
    Refused,
}

/// The lists of clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lists {
    /// Networks in the list `block`.
    pub block: usize,
    /// Networks in the list `allow`.
    pub allow: usize,
    /// Networks in the list `always`.
    pub always: usize,
    /// Bytes that they take for the workers to look up, once for all workers.
    pub bytes: usize,
}

/// Some of the networks of a list, in the order of their addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListPage {
    /// The networks.
    pub networks: Vec<String>,
    /// Where the next page begins; none after the last.
    pub next: Option<usize>,
}

/// The state of the box.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// The version of synproxy.
    pub version: String,
    /// The process id.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime: f64,
    /// The interface toward the servers.
    pub lan: Interface,
    /// The interface toward the clients.
    pub wan: Interface,
    /// For each worker, whether it answered within a second.
    pub workers: Vec<bool>,
    /// The number of server entries; none if no mode is `commanded`.
    pub servers: Option<usize>,
    /// The same under its former name, for programs written for it.
    pub backends: Option<usize>,
    /// Whether all frames are forwarded without inspection (`--bypass`).
    pub bypass: bool,
    /// Whether LAN and WAN seem to be swapped: connections are opened from the LAN, and none from the WAN.
    #[serde(default)]
    pub ports_swapped: bool,
    /// The progress of draining; none if the box does not drain.
    pub drain: Option<Drain>,
    /// The least severe level that is logged.
    pub log_level: crate::LogLevel,
    /// The number of flows.
    pub flows: Flows,
}

/// The progress of draining.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drain {
    /// Seconds since draining began.
    pub since: f64,
    /// Connections that would be lost if the process ended: translated ones, and handshakes in the SYN cache.
    pub left: u64,
}

/// One of the two interfaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// The name, as given on the command line.
    pub name: String,
    /// The I/O backend and its mode, in words.
    pub backend: String,
    /// Its link; none where the port is no interface of the kernel's.
    #[serde(default)]
    pub link: Option<Link>,
}

/// The link of an interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Link {
    /// How it is.
    pub condition: LinkCondition,
    /// Seconds since it has its link, or has none.
    pub since: f64,
    /// How often it was lost since the start.
    pub lost: u64,
}

/// Numbers of flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Flows {
    /// Proxied connections: opened from the WAN, with translated numbers.
    pub proxied: u64,
    /// Connections passed through without translation.
    pub direct: u64,
    /// Entries of the SYN cache.
    pub half_open: u64,
}

/// All counters since the start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Seconds since the start.
    pub uptime: f64,
    /// The sum over all workers.
    pub total: Counts,
    /// The counters of each worker.
    pub workers: Vec<Counts>,
}

/// Top talkers and all counters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Top {
    /// All counters since the start.
    pub stats: Stats,
    /// The seconds over which talkers were counted; 0 if nothing has been counted yet.
    pub period: f64,
    /// WAN addresses, those with most frames first.
    pub sources: Vec<Talker>,
    /// LAN addresses and ports, those with most frames first.
    pub targets: Vec<Talker>,
}

/// Counters. The names are those of the report that synproxy prints at exit; zero counters are included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    /// Counters of the LAN port.
    pub lan: Port,
    /// Counters of the WAN port.
    pub wan: Port,
    /// What the kernel counts of the rings of the LAN port's AF_XDP sockets (`XDP_STATISTICS`); zero with other I/O backends.
    #[serde(default)]
    pub lan_rings: Port,
    /// Of those of the WAN port's, likewise.
    #[serde(default)]
    pub wan_rings: Port,
    /// Of the LAN port's interface: its link, and its settings. Zero in those of a worker, which has no part in them.
    #[serde(default)]
    pub lan_link: Port,
    /// Of the WAN port's interface, likewise.
    #[serde(default)]
    pub wan_link: Port,
    /// What was noticed of the box as a whole, likewise.
    #[serde(default)]
    pub notices: BTreeMap<String, u64>,
    /// Of the state that outlives the process, and of the clock, likewise.
    #[serde(default)]
    pub state: BTreeMap<String, u64>,
    /// Of the control socket, likewise.
    #[serde(default)]
    pub control: BTreeMap<String, u64>,
    /// Events that were reported, by kind, likewise.
    #[serde(default)]
    pub reported_events: BTreeMap<String, u64>,
    /// What became of events on their way to the operator, likewise.
    #[serde(default)]
    pub delivery: BTreeMap<String, u64>,
    /// The present number of flows.
    pub flows: Flows,
    /// Frames held now, until their server answers.
    pub held: u64,
    /// Events, by name.
    pub events: BTreeMap<String, u64>,
    /// Frames the proxy dropped, by drop reason.
    pub drops: BTreeMap<String, u64>,
    /// Frames lost because a queue or pool was full, by its name.
    pub losses: BTreeMap<String, u64>,
    /// Hand-off between workers, by name.
    pub crossed: BTreeMap<String, u64>,
    /// How often workers switched to polling because of load.
    pub wakes: u64,
    /// The longest time a command kept a worker from its frames, in nanoseconds of the worker's CPU time, by the command's name. In
    /// the total, the longest of all workers.
    pub orders: BTreeMap<String, u64>,
    /// Frames whose processing was timed.
    pub timed_frames: u64,
    /// Their processing time without I/O, in nanoseconds.
    pub timed_nanoseconds: u64,
}

/// Counters of a port, by name: frames, bytes and errors.
pub type Port = BTreeMap<String, u64>;
