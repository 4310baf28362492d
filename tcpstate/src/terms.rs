//! What a client and a server agree on in their SYNs.

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
    /// Whether the server speaks ECN; never presumed.
    pub ecn: bool,
    /// The window field of the server's last SYN-ACK.
    pub window: Option<RawWindow>,
    /// Whether anything is known of the server's port.
    pub known: bool,
}

/// What a client asked of ECN and was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Ecn {
    /// It did not ask.
    #[default]
    Silent = 0,
    /// It asked and was told no: the server is not known to speak it, but will be asked.
    Asked = 1,
    /// It asked and was told yes.
    Agreed = 3,
}

/// What holds for one connection: what the client offered, less what it was not offered in return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Maximum segment size the client announced, perhaps rounded down by the cookie.
    pub mss: u16,
    /// The client's window scale, perhaps rounded down; `None` if either side was without.
    pub scale: Option<WindowScale>,
    /// The scale the client was told in the server's name; `Some` exactly if `scale` is.
    pub promised: Option<WindowScale>,
    /// Whether both were told that SACK may be used.
    pub sack: bool,
    /// Whether both were told that timestamps are used.
    pub timestamps: bool,
    /// What was said of ECN.
    pub ecn: Ecn,
}
