//! Server entries: the TCP options the box announces to the clients of a server (modes `commanded`).

use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

/// The key of a server entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The server's address.
    pub address: IpAddr,
    /// Its port, or 0 for every port.
    #[serde(default)]
    pub port: u16,
    /// The IP protocol number, or 0 for every protocol. Only TCP is looked up, so an entry of a protocol other than 0 and 6 is
    /// kept and listed, but has no effect.
    #[serde(default)]
    pub protocol: u8,
}

/// A server entry: a server, and the options announced to its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The server's address.
    pub address: IpAddr,
    /// The port, as in [`Key`].
    #[serde(default)]
    pub port: u16,
    /// The protocol, as in [`Key`].
    #[serde(default)]
    pub protocol: u8,
    /// The MSS announced, in bytes; at least 1.
    pub mss: u16,
    /// Whether SACK permitted is announced (RFC 2018).
    pub sack: bool,
    /// The window scale announced, 0 to 14 (RFC 7323).
    pub wscale: u8,
}

impl Entry {
    /// The entry's key.
    pub fn key(&self) -> Key {
        Key { address: self.address, port: self.port, protocol: self.protocol }
    }

    /// Checks the values.
    ///
    /// # Errors
    /// The first value that is out of range, in words.
    pub fn check(&self) -> Result<(), &'static str> {
        let is_mapped = matches!(self.address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
        match self {
            Entry { mss: 0, .. } => Err("the MSS must be at least 1"),
            Entry { wscale: 15.., .. } => Err("the window scale must be at most 14 (RFC 7323 section 2.3)"),
            _ if is_mapped => Err("an IPv4-mapped IPv6 address does not occur in packets; use the IPv4 address"),
            _ => Ok(()),
        }
    }
}

/// As `10.0.0.1:80/tcp`, `[2001:db8::1]:*/any` or `10.0.0.1:53/17`.
impl Display for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:")?,
            IpAddr::V6(address) => write!(f, "[{address}]:")?,
        }
        match self.port {
            0 => f.write_str("*")?,
            port => write!(f, "{port}")?,
        }
        match self.protocol {
            0 => f.write_str("/any"),
            6 => f.write_str("/tcp"),
            other => write!(f, "/{other}"),
        }
    }
}
