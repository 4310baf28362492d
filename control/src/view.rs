//! What an operator inspects: connections, top talkers, and what the box would do with a frame.

use crate::Side;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Selects connections: those that match every member present.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct FlowFilter {
    /// The LAN address, or a network that contains it: `192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lan: Option<String>,
    /// The WAN address, or a network that contains it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wan: Option<String>,
    /// The TCP port on the LAN side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lan_port: Option<u16>,
    /// The TCP port on the WAN side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wan_port: Option<u16>,
    /// The state, by its name in [`Flow::state`]; the box understands the names of former versions too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// A position in a listing of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The worker.
    pub worker: usize,
    /// The first slot of its flow table that has not been listed.
    pub place: u32,
}

/// A page of a listing of connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FlowList {
    /// The connections.
    pub flows: Vec<Flow>,
    /// Where the next page begins; none on the last page.
    pub next: Option<Cursor>,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Flow {
    /// Its WAN address and port.
    pub wan: String,
    /// Its LAN address and port.
    pub lan: String,
    /// VLAN identifiers of its frames, the outer tag first.
    pub vlan: Vec<u16>,
    /// The state: `syn-cached`, `server-syn-sent`, `server-tried`, `syn-sent`, `syn-received`, `unconfirmed`, `ack-withheld`, `window-pending`,
    /// `established`, `handed-down`, `fin-wait`, `last-ack`, `time-wait` or `reset`.
    pub state: String,
    /// The state in words.
    pub status: String,
    /// Whether the box translates its numbers; otherwise it is passed through.
    pub proxied: bool,
    /// The side that opened it; unknown for a connection that was adopted midway.
    pub opened_by: Option<Side>,
    /// Seconds since its record was created.
    pub age: f64,
    /// Seconds since its last frame, where known.
    pub idle: Option<f64>,
    /// Seconds until its timer expires.
    pub due: f64,
    /// The WAN endpoint.
    pub wan_end: FlowEnd,
    /// The LAN endpoint.
    pub lan_end: FlowEnd,
    /// The MSS the client announced, in bytes; 0 if it was not recorded.
    pub mss: u16,
    /// Whether SACK was negotiated with the client.
    pub sack: bool,
    /// Whether timestamps were negotiated with the client.
    pub timestamps: bool,
    /// The offset added to the server's sequence numbers toward the client (modulo 2^32). Absent for members of the `control_group`: with the
    /// server's numbers it gives the cookie.
    #[serde(default)]
    pub sequence_shift: Option<u32>,
    /// The offset added to the server's timestamps (modulo 2^32). Absent likewise.
    #[serde(default)]
    pub timestamp_shift: Option<u32>,
    /// Frames held until the server answers.
    pub held: usize,
    /// The worker that owns it.
    pub worker: usize,
    /// Of a connection to a service, the address and port of its server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Of a connection to a service, the address and port that the server sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Of a connection to a service that a proxy has opened, the address and port of its client, as the proxy tells by the PROXY protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// One endpoint of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FlowEnd {
    /// The scale of its window field; none if its windows are not scaled.
    pub scale: Option<u8>,
    /// The scale that was announced to its peer for it.
    pub told: Option<u8>,
    /// The window it announced last, in bytes.
    pub window: u32,
    /// The TTL or hop limit its frames arrive with; 0 if unknown.
    pub hop_limit: u8,
}

/// What the box would do with a frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explained {
    /// The worker that answered.
    pub worker: usize,
    /// The steps of the decision, in order, in words.
    pub steps: Vec<String>,
    /// `forward`, `reflect`, `hold` or `drop`.
    pub verdict: String,
    /// The drop reason's name, if it would be dropped.
    pub reason: Option<String>,
    /// The verdict in words.
    pub meaning: String,
    /// The events that would be counted.
    pub counted: Vec<Counted>,
    /// The fields of the frame as it arrives and as it would leave (the same if it is dropped).
    pub fields: Vec<Changed>,
    /// Further segments the box would send; none for members of the `control_group`, who get the numbers of no frame but their own.
    pub sent: Vec<Sent>,
    /// The connection before the frame, if there is one.
    pub before: Option<Flow>,
    /// The connection after the frame, if there is one.
    pub after: Option<Flow>,
    /// Held frames that would be released.
    pub released: usize,
}

/// An event that would be counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// The event's name.
    pub name: String,
    /// How often.
    pub count: u64,
    /// What it means.
    pub meaning: String,
}

/// A field of a frame, before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The field's name.
    pub name: String,
    /// The value on arrival; none if the frame has no such field.
    pub before: Option<String>,
    /// The value on departure; none if the frame would have no such field.
    pub after: Option<String>,
}

/// A segment the box would send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The port it would leave by.
    pub to: Side,
    /// The frame, in hexadecimal digits.
    pub frame: String,
}

/// The mode of a destination, and what was counted of it by all workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DestinationMode {
    /// Which servers: the network, with port and VLAN behind it where the block has them; `everybody` for those of no block that settles a mode.
    pub destination: String,
    /// The mode of the configuration: `observe`, `pass`, `cache`, `cookie` or `auto`.
    pub mode: String,
    /// The mode it is in: one of the first four.
    pub now: String,
    /// Seconds since it is.
    pub since: f64,
    /// How often it has come to another mode since the start.
    pub switches: u64,
    /// Connections whose SYN has passed and that are not established.
    pub half_open: u64,
    /// Cookies and entries of the SYN cache that may still be acknowledged.
    pub in_flight: u64,
    /// SYNs a second, lately.
    pub syn_rate: u64,
    /// SYNs that passed, since the start.
    pub passed: u64,
    /// SYNs that were answered, since the start.
    pub answered: u64,
    /// Clients that proved themselves, since the start.
    pub proved: u64,
    /// SYNs that were dropped for the rate of their source's network, since the start.
    pub limited: u64,
    /// Segments that were dropped since the start, by the reasons there were.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
    /// What has happened since the start, by the events there were.
    #[serde(default)]
    pub events: BTreeMap<String, u64>,
}

/// What was usual of a destination while it was not attacked, second by second, and the thresholds that follow from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Suggested {
    /// Which servers, as in [`DestinationMode`].
    pub destination: String,
    /// For how many seconds it was observed.
    pub seconds: u32,
    /// Connections half-open at once: the middle, the 99th percentile, the 99.9th, and the most there were. Percentiles are up to a quarter too large.
    pub half_open: [u64; 4],
    /// SYNs a second, likewise.
    pub syn_rate: [u64; 4],
    /// Proposed for `enter_half_open`.
    pub enter_half_open: u64,
    /// Proposed for `leave_half_open`.
    pub leave_half_open: u64,
    /// Proposed for `enter_syn_rate`.
    pub enter_syn_rate: u64,
}

/// A service, and what all workers have counted of it since the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServiceState {
    /// Its address and port, with the VLAN behind them if it has one.
    pub service: String,
    /// What its clients speak: `tls`, `http`, `socks` or `connect`.
    pub protocol: String,
    /// How its servers are reached: `nat`, `mac` or `full`.
    pub reach: String,
    /// Clients that have proved themselves.
    pub opened: u64,
    /// Clients whose server was chosen.
    pub routed: u64,
    /// Clients that were turned away.
    pub refused: u64,
    /// Clients that said nothing in time.
    pub timed_out: u64,
    /// Its servers; none where clients say themselves where they want to go.
    pub servers: Vec<ServiceServer>,
}

/// A server of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServiceServer {
    /// Its address and port.
    pub server: String,
    /// Whether it accepts connections, as far as it is asked.
    pub up: bool,
    /// Whether it is asked (`check`).
    pub checked: bool,
    /// Whether it gets no connections anew, by its weight or by command.
    pub drained: bool,
    /// Whether its Ethernet address is known, or that of the router to it.
    pub known: bool,
    /// How many connections it gets in comparison with others.
    pub weight: u16,
    /// Connections that it has, of all services.
    pub connections: u64,
    /// Connections that it was given since the start, of all services.
    pub given: u64,
}

/// The traffic of one host or service, estimated from samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Talker {
    /// An address, or an address and a port.
    pub name: String,
    /// Frames in both directions; an overestimate by at most `surplus`.
    pub frames: u64,
    /// The largest possible error of `frames`.
    pub surplus: u64,
    /// Of these, SYNs without ACK. The protocol calls the member `calls`.
    #[serde(rename = "calls", alias = "syns")]
    pub syns: u64,
    /// Bytes of these frames.
    pub bytes: u64,
}
