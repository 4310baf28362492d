//! What the box and a client say to each other before the client has its server: SOCKS version 5 (RFC 1928, with user and password by RFC 1929) and the
//! CONNECT request of HTTP/1 (RFC 9110 section 9.3.6).
//!
//! What has been said so far is a function of all bytes that have come from the client: [`Language::read`] gets these, and returns everything the box has to
//! say to them, from the beginning, and what follows. Nothing else is kept of a negotiation.

use super::access::Access;
use super::names::Name;
use super::{NoRequest, http};
use crate::Side;
use crate::wire::{Addr, FlowKey, be16, be32};
use core::fmt::Write;
use core::net::{IpAddr, Ipv6Addr};

/// The most bytes that the box says to a client in its own name.
pub const LONGEST: usize = 160;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// SOCKS version 5.
    Socks,
    /// CONNECT requests of HTTP/1.
    Connect,
}

/// What the box says.
#[derive(Clone, Copy)]
pub struct Said {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Default for Said {
    fn default() -> Self {
        Self { bytes: [0; LONGEST], len: 0 }
    }
}

impl Said {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = &mut self.bytes[self.len..];
        let count = bytes.len().min(room.len());
        debug_assert!(count == bytes.len(), "the longest answer has room");
        room[..count].copy_from_slice(&bytes[..count]);
        self.len += count;
    }
}

impl Write for Said {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

impl core::fmt::Debug for Said {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "\"{}\"", self.bytes().escape_ascii())
    }
}

/// A host to which a client wants to be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "it lives for one call, and a box would be an allocation")]
pub enum Host {
    /// Its address; an IPv4 address in its IPv6-mapped form.
    Address(Addr),
    /// Its name.
    Name(Name),
}

impl Host {
    /// The host that a text names: an address, an IPv6 one with brackets or without, or a name.
    fn new(text: &[u8]) -> Option<Self> {
        let bare = text.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
        if let Some(bare) = bare {
            return Some(Self::Address(words(str::from_utf8(bare).ok()?.parse().ok()?)));
        }
        match str::from_utf8(text).ok()?.parse() {
            Ok(IpAddr::V4(address)) => Some(Self::Address(words(address.to_ipv6_mapped()))),
            Ok(IpAddr::V6(address)) => Some(Self::Address(words(address))),
            Err(_) => Name::new(text).map(Self::Name),
        }
    }
}

fn words(address: Ipv6Addr) -> Addr {
    let bits = address.to_bits();
    [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
}

/// Why a client is not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The box cannot: no port is left of its own, or the like.
    General,
    /// It may not go there.
    Forbidden,
    /// An ICMP error: no way leads to its network.
    NetworkUnreachable,
    /// An ICMP error: no way leads to the server; or the server's name has no address.
    HostUnreachable,
    /// The server has refused.
    Refused,
    /// It has not answered in time.
    TimedOut,
    /// Something else than a connection is asked for.
    Command,
    /// The server's address is of another version than the client's.
    AddressType,
    /// The request names no server.
    Malformed,
    /// It has not said who it is.
    Stranger,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "it lives for one call, and a box would be an allocation")]
pub enum Next {
    /// The client has more to say.
    More,
    /// It does not speak the language.
    Other,
    /// With what was said the connection ends.
    End,
    /// The client is told why it is not connected, and the connection ends.
    Fails(Failure),
    /// The client wants to be connected. What it has sent behind the first `len` bytes is for the server.
    Asks {
        /// To whom.
        host: Host,
        /// To which port there.
        port: u16,
        /// Bytes of the negotiation.
        len: usize,
    },
}

impl Language {
    /// What the box has to say to these first bytes of a client, of which there can be `most`, and what follows. `fresh` of them have come since the last time.
    pub fn read(self, bytes: &[u8], fresh: usize, most: usize, access: &Access) -> (Said, Next) {
        let mut said = Said::default();
        let next = match self {
            Language::Socks => socks(bytes, access, &mut said).unwrap_or(Next::More),
            Language::Connect => connect(bytes, fresh, access),
        };
        // What would be needed never comes.
        (said, if next == Next::More && bytes.len() >= most { Next::Other } else { next })
    }

    /// What a client is told that is connected. Its server sees it as the end on the WAN of this key.
    pub fn success(self, key: &FlowKey) -> Said {
        let mut said = Said::default();
        match self {
            Language::Socks => {
                said.push(&[5, 0, 0, if key.v6 { 4 } else { 1 }]);
                match key.socket(Side::Wan).ip() {
                    IpAddr::V4(address) => said.push(&address.octets()),
                    IpAddr::V6(address) => said.push(&address.octets()),
                }
                said.push(&key.wan_port.to_be_bytes());
            }
            Language::Connect => said.push(b"HTTP/1.1 200 Connection established\r\n\r\n"),
        }
        said
    }

    /// What a client is told that is not.
    pub fn failure(self, failure: Failure) -> Said {
        let mut said = Said::default();
        match self {
            Language::Socks => {
                // RFC 1928 section 6. There is no code for a server that does not answer.
                let code = match failure {
                    Failure::General | Failure::Malformed | Failure::Stranger => 1,
                    Failure::Forbidden => 2,
                    Failure::NetworkUnreachable => 3,
                    Failure::HostUnreachable | Failure::TimedOut => 4,
                    Failure::Refused => 5,
                    Failure::Command => 7,
                    Failure::AddressType => 8,
                };
                said.push(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0]);
            }
            Language::Connect => {
                let (status, more) = match failure {
                    Failure::Forbidden => ("403 Forbidden", ""),
                    Failure::General | Failure::AddressType => ("502 Bad Gateway", ""),
                    Failure::NetworkUnreachable | Failure::HostUnreachable | Failure::Refused => {
                        ("502 Bad Gateway", "")
                    }
                    Failure::TimedOut => ("504 Gateway Timeout", ""),
                    Failure::Command => ("405 Method Not Allowed", "Allow: CONNECT\r\n"),
                    Failure::Malformed => ("400 Bad Request", ""),
                    Failure::Stranger => {
                        ("407 Proxy Authentication Required", "Proxy-Authenticate: Basic realm=\"proxy\"\r\n")
                    }
                };
                let written = write!(said, "HTTP/1.1 {status}\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n");
                debug_assert!(written.is_ok());
            }
        }
        said
    }
}

/// Takes so many bytes off the front, if there are as many.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

/// Takes a byte that says how long, and so many bytes.
fn take_counted<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let count = take(rest, 1)?[0];
    take(rest, count.into())
}

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;

/// A negotiation of SOCKS. `None` if the client has more to say.
fn socks(bytes: &[u8], access: &Access, said: &mut Said) -> Option<Next> {
    let mut rest = bytes;
    if take(&mut rest, 1)?[0] != VERSION {
        return Some(Next::Other);
    }
    let methods = take_counted(&mut rest)?;
    let wanted = if access.asks_who() { USER_AND_PASSWORD } else { NO_AUTHENTICATION };
    if !methods.contains(&wanted) {
        said.push(&[VERSION, NO_ACCEPTABLE_METHOD]);
        return Some(Next::End);
    }
    said.push(&[VERSION, wanted]);
    if wanted == USER_AND_PASSWORD {
        if take(&mut rest, 1)?[0] != 1 {
            return Some(Next::End);
        }
        let (user, password) = (take_counted(&mut rest)?, take_counted(&mut rest)?);
        let is_known = access.knows(user, password);
        said.push(&[1, u8::from(!is_known)]);
        if !is_known {
            return Some(Next::End);
        }
    }
    let head = take(&mut rest, 4)?;
    if head[0] != VERSION {
        return Some(Next::Fails(Failure::Malformed));
    }
    if head[1] != 1 {
        return Some(Next::Fails(Failure::Command));
    }
    let host = match head[3] {
        1 => Some(Host::Address([0, 0, 0xffff, be32(take(&mut rest, 4)?, 0)])),
        3 => Host::new(take_counted(&mut rest)?),
        4 => {
            let address = take(&mut rest, 16)?;
            Some(Host::Address([0, 4, 8, 12].map(|at| be32(address, at))))
        }
        _ => return Some(Next::Fails(Failure::AddressType)),
    };
    let port = be16(take(&mut rest, 2)?, 0);
    Some(match host {
        Some(host) if port != 0 => Next::Asks { host, port, len: bytes.len() - rest.len() },
        _ => Next::Fails(Failure::Malformed),
    })
}

/// A CONNECT request.
fn connect(bytes: &[u8], fresh: usize, access: &Access) -> Next {
    let read = http::with_request(bytes, fresh, |request, len| {
        if request.method != Some("CONNECT") {
            return Next::Fails(Failure::Command);
        }
        let mut credentials =
            request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("proxy-authorization"));
        if access.asks_who() && !credentials.any(|field| access.knows_basic(field.value)) {
            return Next::Fails(Failure::Stranger);
        }
        // RFC 9110 section 9.3.6: host and port, and nothing else.
        let target = request.path.and_then(|target| target.rsplit_once(':'));
        let port = target.and_then(|(_, port)| port.parse().ok()).filter(|&port: &u16| port != 0);
        // Without brackets a colon in front of the port's is part of no host.
        let host = target.map(|(host, _)| host).filter(|host| host.starts_with('[') || !host.contains(':'));
        match (host.and_then(|host| Host::new(host.as_bytes())), port) {
            (Some(host), Some(port)) => Next::Asks { host, port, len },
            _ => Next::Fails(Failure::Malformed),
        }
    });
    match read {
        Ok(next) => next,
        Err(NoRequest::More) => Next::More,
        Err(NoRequest::Other) => Next::Other,
    }
}
