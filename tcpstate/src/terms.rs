//! What a client and a server agree on in their SYNs.

use crate::seq::WindowScale;

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
}
