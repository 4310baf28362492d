//! What an operator looks at: connections, who talks most, and what would become of a frame.

use crate::Stats;
use serde::{Deserialize, Serialize};

/// One of the two ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Toward the servers.
    Lan,
    /// Toward everybody else.
    Wan,
}

impl std::str::FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lan" => Ok(Side::Lan),
            "wan" => Ok(Side::Wan),
            _ => Err("expected `lan` or `wan`".to_owned()),
        }
    }
}

/// Which connections are meant: those that fit in every point that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct FlowFilter {
    /// The end on the LAN has this address, or one of this network: `192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lan: Option<String>,
    /// The end on the WAN, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wan: Option<String>,
    /// The port on the LAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lan_port: Option<u16>,
    /// The port on the WAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wan_port: Option<u16>,
    /// The state, by the name [`Flow::state`] has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// Where a listing goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// At this worker.
    pub worker: usize,
    /// From this place of its table on.
    pub place: u32,
}

/// A part of a listing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FlowList {
    /// Connections.
    pub flows: Vec<Flow>,
    /// What to ask for next; none at the end.
    pub next: Option<Cursor>,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Flow {
    /// Its end on the WAN: address and port.
    pub wan: String,
    /// Its end on the LAN.
    pub lan: String,
    /// The identifiers of its frames' VLAN tags, the outer first.
    pub vlan: Vec<u16>,
    /// `half-open`, `dialling`, `opening-sent`, `opening-answered`, `established`, `closing`, `time-wait` or `reset`.
    pub state: String,
    /// How it stands, in words.
    pub status: String,
    /// Whether numbers are translated; else it is passed through.
    pub proxied: bool,
    /// Who opened it; not known of one that ran when it was adopted.
    pub opened_by: Option<Side>,
    /// Since how many seconds it is known.
    pub age: f64,
    /// Since how many seconds nothing of it has come, where that is known.
    pub idle: Option<f64>,
    /// In how many seconds its timer is due.
    pub due: f64,
    /// The end on the WAN.
    pub wan_end: FlowEnd,
    /// The end on the LAN.
    pub lan_end: FlowEnd,
    /// The MSS the client announced; 0 where nobody needed to know.
    pub mss: u16,
    /// Whether the client was told that SACK may be used.
    pub sack: bool,
    /// Whether the client was told that timestamps are used.
    pub timestamps: bool,
    /// What is added to the server's sequence numbers on their way out.
    pub sequence_shift: u32,
    /// What is added to the server's timestamps.
    pub timestamp_shift: u32,
    /// Frames held until its server answers.
    pub held: usize,
    /// The worker it belongs to.
    pub worker: usize,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FlowEnd {
    /// The scale of its window field; none if it does not scale.
    pub scale: Option<u8>,
    /// The scale the other end was told for it.
    pub told: Option<u8>,
    /// The window it grants, in bytes.
    pub window: u32,
    /// The hop limit its frames arrive with; 0 if not known.
    pub hop_limit: u8,
}

/// What would become of a frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explained {
    /// The worker that was asked.
    pub worker: usize,
    /// What it saw and found, in its order, in words.
    pub steps: Vec<String>,
    /// `forward`, `reflect`, `hold` or `drop`.
    pub verdict: String,
    /// Why it would be dropped: the reason's name.
    pub reason: Option<String>,
    /// The verdict in words.
    pub meaning: String,
    /// What would be counted besides a drop.
    pub counted: Vec<Counted>,
    /// The fields of the frame, as it came and as it would leave (the same where it is dropped).
    pub fields: Vec<Changed>,
    /// The segments the box would send of its own accord.
    pub sent: Vec<Sent>,
    /// The connection before, if there is one.
    pub before: Option<Flow>,
    /// The connection after.
    pub after: Option<Flow>,
    /// Held frames that would be decided on next.
    pub released: usize,
}

/// Something that would be counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Its name.
    pub name: String,
    /// How often.
    pub count: u64,
    /// What it means.
    pub meaning: String,
}

/// A field of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Its name.
    pub name: String,
    /// As the frame came; none if it had no such field.
    pub before: Option<String>,
    /// As it would leave.
    pub after: Option<String>,
}

/// A segment of the box's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The port it leaves by.
    pub to: Side,
    /// The frame, in hexadecimal digits.
    pub frame: String,
}

/// Who talks most, and everything counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Top {
    /// Everything counted since the start.
    pub stats: Stats,
    /// The seconds over which talkers were counted; 0 as long as there is no such count yet.
    pub period: f64,
    /// Hosts on the WAN, those with most frames first.
    pub sources: Vec<Talker>,
    /// Services on the LAN, likewise.
    pub targets: Vec<Talker>,
}

/// What somebody is reckoned, from samples, to have sent and been sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Talker {
    /// An address, or an address and a port.
    pub name: String,
    /// Frames, too many by at most `surplus`.
    pub frames: u64,
    /// See `frames`.
    pub surplus: u64,
    /// Of these, SYNs that call.
    pub calls: u64,
    /// Bytes of the frames.
    pub bytes: u64,
}
