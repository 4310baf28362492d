//! What a client is answered.

use crate::{Capture, Explained, FlowList, Top};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A reply: an object with one member, whose name says what it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Status`](crate::Request::Status).
    Status(Box<Status>),
    /// To [`Request::Stats`](crate::Request::Stats).
    Stats(Box<Stats>),
    /// To [`Request::Backends`](crate::Request::Backends): what is said of servers, in their order.
    Backends(Vec<crate::Entry>),
    /// To [`Request::Flows`](crate::Request::Flows).
    Flows(FlowList),
    /// To [`Request::Top`](crate::Request::Top).
    Top(Box<Top>),
    /// To [`Request::Explain`](crate::Request::Explain).
    Explained(Box<Explained>),
    /// To [`Request::Captures`](crate::Request::Captures) and [`Request::StopCapture`](crate::Request::StopCapture).
    Captures(Vec<Capture>),
    /// What was asked has been done, and this is to be said of it.
    Done(String),
    /// What was asked has not been done.
    Error(Refusal),
}

impl Reply {
    /// A refusal.
    pub fn refuse(why: Why, message: impl Into<String>) -> Reply {
        Reply::Error(Refusal { why, message: message.into() })
    }
}

/// Why a request was not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub why: Why,
    /// For people.
    pub message: String,
}

/// Why a request was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The line is no request. The connection is closed after this reply if the line was too long, and goes on otherwise.
    Malformed,
    /// Who asks may not. The connection is closed after this reply, unless only what was asked for is meant.
    Forbidden,
    /// Too many clients are connected. The connection is closed after this reply.
    Busy,
    /// A worker has not answered in time.
    Silent,
    /// It cannot be done in the present state; the message says why.
    Refused,
}

/// What the box is and how it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it began.
    pub uptime: f64,
    /// The interface toward the servers.
    pub lan: Interface,
    /// The interface toward everybody else.
    pub wan: Interface,
    /// For each worker, whether it has answered within a second.
    pub workers: Vec<bool>,
    /// How many servers the operator has spoken of; none where no mode is `commanded`.
    pub backends: Option<usize>,
    /// Whether everything is forwarded unseen.
    pub bypass: bool,
    /// Whether new connections are kept from the proxy, and how far that has led.
    pub drain: Option<Drain>,
    /// The least severe level that is logged.
    pub log_level: crate::LogLevel,
    /// The flows there are.
    pub flows: Flows,
}

/// How far draining has led.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drain {
    /// Since how many seconds.
    pub since: f64,
    /// Connections that would be lost with the process: those translated, and those about to be.
    pub left: u64,
}

/// One of the two interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name, as it was given.
    pub name: String,
    /// How frames get in and out.
    pub backend: String,
}

/// How many flows there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Flows {
    /// Connections from the WAN that are translated.
    pub proxied: u64,
    /// Connections that are passed through.
    pub direct: u64,
    /// Entries of the SYN cache.
    pub half_open: u64,
}

/// Everything counted since the start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Seconds since the start.
    pub uptime: f64,
    /// The sum over all workers.
    pub total: Counts,
    /// What each worker has counted.
    pub workers: Vec<Counts>,
}

/// What has been counted. Names are those of the program's own reports; what is zero is there too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    /// The port toward the servers.
    pub lan: Port,
    /// The port toward everybody else.
    pub wan: Port,
    /// The flows there are now.
    pub flows: Flows,
    /// Frames that are held now, until their servers answer.
    pub held: u64,
    /// What has happened, by its name.
    pub events: BTreeMap<String, u64>,
    /// Frames dropped by decision, by the reason's name.
    pub drops: BTreeMap<String, u64>,
    /// Frames lost on the way, for want of room, by the place's name.
    pub losses: BTreeMap<String, u64>,
    /// What workers have handed to each other.
    pub crossed: BTreeMap<String, u64>,
    /// How often the load made workers poll.
    pub wakes: u64,
    /// The longest a worker was kept from its frames by a command, in nanoseconds of its own time, by the command's name. In the total
    /// it is that of the worker it took longest.
    pub orders: BTreeMap<String, u64>,
    /// Frames whose way through the program was timed.
    pub timed_frames: u64,
    /// The time they took, without the kernel's share, in nanoseconds.
    pub timed_nanoseconds: u64,
}

/// What has passed a port: frames, bytes and what befell them, each by its name.
pub type Port = BTreeMap<String, u64>;
