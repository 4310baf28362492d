//! What a client and a server agree on in their SYNs.

use core::fmt;

use crate::seq::{RawWindow, WindowScale};

/// What we answer a client on a server's behalf: what the server is known or presumed to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Maximum segment size the server announces.
    pub mss: u16,
    /// The server's window scale; `None` if it is known not to scale.
    pub scale: Option<WindowScale>,
    /// Whether the server takes SACK.
    pub sack: bool,
    /// Whether the server takes timestamps.
    pub timestamps: bool,
    /// Whether the server is known to take timestamps; presumed otherwise.
    pub timestamps_known: bool,
    /// What the server is known to negotiate of ECN; never presumed.
    pub ecn: KnownEcn,
    /// The smaller window field of the server's last two SYN-ACKs.
    pub window: Option<RawWindow>,
    /// The hop limit of our segments in its name.
    pub ttl: u8,
    /// How many routers lie between the box and the server, by the hop limit its own segments arrive with; zero where that is not known.
    pub hops: u8,
    /// The class of its segments, unless it reflects the client's.
    pub class: u8,
    /// Whether its SYN-ACK has the class of the SYN.
    pub reflects_class: bool,
    /// Whether it announces another MSS to some clients.
    pub mss_varies: bool,
    /// Whether anything is known of the server's port.
    pub known: bool,
}

impl Offer {
    /// The class of the answer to a SYN of this class.
    #[inline(always)]
    pub fn class_for(&self, syn: u8) -> u8 {
        if self.reflects_class { syn } else { self.class }
    }
}

/// In words, for an operator.
impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MSS {}, {}", self.mss, scale(self.scale))?;
        let timestamps = match (self.timestamps, self.timestamps_known) {
            (false, _) => "no timestamps",
            (true, true) => "timestamps",
            (true, false) => "timestamps (presumed)",
        };
        let ecn = match self.ecn {
            KnownEcn::Nothing => "",
            KnownEcn::Classic => ", ECN",
            KnownEcn::ClassicAtLeast => ", ECN (accurate not tried lately)",
            KnownEcn::Accurate => ", accurate ECN",
        };
        write!(f, "{}, {timestamps}{ecn}, hop limit {}", sack(self.sack), self.ttl)?;
        match self.window {
            Some(RawWindow(window)) => write!(f, ", window {window}"),
            None => Ok(()),
        }
    }
}

/// In words, for an operator.
impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MSS {}, {}", self.mss, scale(self.scale))?;
        if let Some(promised) = self.promised {
            write!(f, "promised {} in return, ", promised.get())?;
        }
        let ecn = match self.ecn {
            Ecn::Silent => "",
            Ecn::Asked => ", ECN asked for and not promised",
            Ecn::AccurateAsked => ", accurate ECN asked for and not promised",
            Ecn::Agreed => ", ECN",
            Ecn::AccurateAgreed => ", accurate ECN",
        };
        write!(f, "{}, {}{ecn}", sack(self.sack), if self.timestamps { "timestamps" } else { "no timestamps" })
    }
}

fn scale(scale: Option<WindowScale>) -> String {
    scale.map_or("no window scale, ".into(), |scale| format!("window scale {}, ", scale.get()))
}

fn sack(sack: bool) -> &'static str {
    if sack { "SACK" } else { "no SACK" }
}

/// What is known of the ECN that a server negotiates. The values are those of the kernel's program (`agree_on_ecn` in `pktio/bpf/syns.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum KnownEcn {
    /// Not that it negotiates any.
    #[default]
    Nothing = 0,
    /// The classic kind (RFC 3168), and not the accurate one (RFC 9768), which it was asked for lately.
    Classic = 1,
    /// The accurate kind, and so the classic one.
    Accurate = 2,
    /// The classic kind. Nobody has asked it for the other one, or not lately.
    ClassicAtLeast = 3,
}

/// Whether a client asked for ECN, of which kind, and the answer. The values are a cookie's; that of an answer which agrees is odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Ecn {
    /// It did not ask.
    #[default]
    Silent = 0,
    /// It asked for classic ECN (RFC 3168) and the answer was no: the server is not known to negotiate it, but will be asked.
    Asked = 2,
    /// It asked for accurate ECN (RFC 9768) and the answer was no; the server will be asked for that.
    AccurateAsked = 4,
    /// It asked for either kind and was answered with classic ECN.
    Agreed = 1,
    /// It asked for accurate ECN and was answered with it.
    AccurateAgreed = 3,
}

impl Ecn {
    /// The kind and answer with this value, if there is one.
    pub fn parse(value: u32) -> Option<Ecn> {
        [Ecn::Silent, Ecn::Agreed, Ecn::Asked, Ecn::AccurateAgreed, Ecn::AccurateAsked].get(value as usize).copied()
    }
}

/// What holds for one connection: what the client offered, less what it was not offered in return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Maximum segment size the client announced, perhaps rounded down by the cookie.
    pub mss: u16,
    /// The client's window scale, perhaps rounded down; `None` if either side was without.
    pub scale: Option<WindowScale>,
    /// The scale announced to the client in the server's name; `Some` exactly if `scale` is.
    pub promised: Option<WindowScale>,
    /// Whether SACK is permitted both ways.
    pub sack: bool,
    /// Whether timestamps are used both ways.
    pub timestamps: bool,
    /// What was said of ECN.
    pub ecn: Ecn,
}
