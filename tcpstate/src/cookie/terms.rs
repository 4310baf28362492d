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
    /// Whether the server negotiates ECN; never presumed.
    pub ecn: bool,
    /// The window field of the server's last SYN-ACK.
    pub window: Option<RawWindow>,
    /// Whether anything is known of the server's port.
    pub known: bool,
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
        write!(f, "{}, {timestamps}{}", sack(self.sack), if self.ecn { ", ECN" } else { "" })?;
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
            Ecn::Agreed => ", ECN",
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

/// Whether a client asked for ECN, and the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Ecn {
    /// It did not ask.
    #[default]
    Silent = 0,
    /// It asked and the answer was no: the server is not known to negotiate ECN, but will be asked.
    Asked = 1,
    /// It asked and the answer was yes.
    Agreed = 3,
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
