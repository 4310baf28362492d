//! How the connection a frame belongs to stands, for tools that explain what the engine does. Nothing is decided by it.

use core::fmt;

use crate::flow::{Flow, FlowFlags, State};
use crate::metadata::Metadata;
use crate::proxy::Proxy;
use crate::wire::Parsed;
use crate::{PerSide, Side};

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// Its state.
    pub state: State,
    /// Whether the box connected its server, so that numbers differ between the sides; else it is passed through.
    pub proxied: bool,
    /// Whether segments are held for it.
    pub holds: bool,
    /// Whether a new SYN was answered over it, which may be proved.
    pub reopening: bool,
    /// Which ends have sent FIN.
    pub finished: PerSide<bool>,
}

impl Proxy {
    /// How the connection stands that a frame belongs to (or the segment it quotes); `None` if there is none.
    pub fn status(&self, meta: &Metadata) -> Option<ConnectionStatus> {
        let key = match &meta.parsed {
            Parsed::Tcp(segment) => &segment.key,
            Parsed::Error(quote) => &quote.key,
            _ => return None,
        };
        Some(ConnectionStatus::of(&self.table[self.table.find(key, meta.hash)?]))
    }
}

impl ConnectionStatus {
    /// How the connection of this record stands.
    pub(crate) fn of(flow: &Flow) -> Self {
        Self {
            state: flow.state(),
            proxied: flow.is(FlowFlags::PROXIED),
            holds: flow.held != 0,
            reopening: flow.is(FlowFlags::REOPENING),
            finished: PerSide::new(flow.has_finished(Side::Lan), flow.has_finished(Side::Wan)),
        }
    }
}

/// The state, and in brackets whatever distinguishes it.
impl fmt::Display for ConnectionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let begun =
            matches!(self.state, State::SynCached | State::ServerSynSent | State::ServerTried | State::Gathering);
        let notes = [
            (!self.proxied && self.state != State::Unconfirmed, "passed through"),
            (self.proxied && !begun, "proxied"),
            (self.holds, "data held"),
            (self.finished[Side::Wan], "WAN finished"),
            (self.finished[Side::Lan], "LAN finished"),
            (self.reopening, "new SYN answered"),
        ];
        write!(f, "{:?}", self.state)?;
        let mut separator = " (";
        for (_, note) in notes.iter().filter(|(is_so, _)| *is_so) {
            write!(f, "{separator}{note}")?;
            separator = ", ";
        }
        f.write_str(if separator == " (" { "" } else { ")" })
    }
}
