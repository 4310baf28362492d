//! What is said of a server: the options its clients are offered in its name.

use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

/// Whom an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The server's address.
    pub address: IpAddr,
    /// Its port, or 0 for every port.
    #[serde(default)]
    pub port: u16,
    /// The protocol's number, or 0 for every protocol. Only TCP is ever looked up, so an entry of another protocol than 0 and 6 is
    /// kept and told, and has no effect.
    #[serde(default)]
    pub protocol: u8,
}

/// An entry: a server, and what its clients are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The server's address.
    pub address: IpAddr,
    /// As in [`Key`].
    #[serde(default)]
    pub port: u16,
    /// As in [`Key`].
    #[serde(default)]
    pub protocol: u8,
    /// The MSS announced in its name, in bytes, from 1.
    pub mss: u16,
    /// Whether SACK is announced.
    pub sack: bool,
    /// The window scale announced, 0 to 14.
    pub wscale: u8,
}

impl Entry {
    /// Whom it is about.
    pub fn key(&self) -> Key {
        Key { address: self.address, port: self.port, protocol: self.protocol }
    }

    /// Why it cannot be, if so.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn check(&self) -> Result<(), &'static str> {
        let is_mapped = matches!(self.address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
        match self {
            Entry { mss: 0, .. } => Err("an MSS of 0 leaves no room for data"),
            Entry { wscale: 15.., .. } => Err("a window scale is 14 at most (RFC 7323 section 2.3)"),
            _ if is_mapped => Err("an IPv4 address mapped into IPv6 is nobody's; say the IPv4 address"),
            _ => Ok(()),
        }
    }
}

/// As `10.0.0.1:80`, `[2001:db8::1]:*`, with `/17` behind for a protocol other than TCP.
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
