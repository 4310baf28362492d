//! Servers by their address: one, or a network of them, with a port or every port; as text and as the engine has them.

use core::fmt;
use core::net::{IpAddr, Ipv6Addr};
use tcpstate::config::{Destination, Handshake, Network};

/// Bits of an IPv4 address's mapped form before the address itself.
const MAPPED: u8 = 96;

/// Servers of one network, at one port or at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Servers {
    /// The network's address; the bits beyond the prefix are zero.
    pub network: IpAddr,
    /// Leading bits that count, up to 32 or 128.
    pub prefix: u8,
    /// Their port, or every port.
    pub port: Option<u16>,
}

/// Why a text names no servers.
pub(crate) struct Mistake {
    /// What is wrong, to be said of the text.
    pub message: String,
    /// What would be right; may be empty, and may repeat the text as it stands.
    pub expected: String,
}

impl Servers {
    /// The servers named by a text, and whether bits beyond its prefix were set, which do not count.
    ///
    /// # Errors
    /// Says why it names none.
    pub(crate) fn read(text: &str) -> Result<(Self, bool), Mistake> {
        let wrong = |message: &str, expected: String| Err(Mistake { message: message.to_owned(), expected });
        let (host, port) = split(text)?;
        let (address, prefix) = host.split_once('/').map_or((host, None), |(address, prefix)| (address, Some(prefix)));
        let Ok(address) = address.parse::<IpAddr>() else {
            let expected = if address.contains(|c: char| c.is_alphabetic()) && !address.contains(':') {
                "expected an address; names are not looked up".to_owned()
            } else {
                "expected an IPv4 or IPv6 address, for example 192.0.2.1 or 2001:db8::1".to_owned()
            };
            return wrong("is no address", expected);
        };
        if text.starts_with('[') && address.is_ipv4() {
            return wrong(
                "has brackets around an IPv4 address",
                format!("expected `{}`", text.replace(['[', ']'], "")),
            );
        }
        if let Some((host, port)) = may_have_port(text) {
            let whole = in_full(address);
            return wrong(
                "may be an address, or an address and a port",
                format!("expected `[{host}]:{port}` for port {port}, or `{whole}` for the address alone"),
            );
        }
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix.map(number) {
            None => most,
            Some(Some(prefix)) if prefix <= u32::from(most) => prefix as u8,
            Some(Some(prefix)) => {
                return wrong(
                    &format!("has a prefix of {prefix} bits"),
                    format!("expected 0 to {most} for an {} network", if most == 32 { "IPv4" } else { "IPv6" }),
                );
            }
            Some(None) => return wrong("has no number after its `/`", format!("expected 0 to {most}")),
        };
        let port = match port.map(number) {
            None => None,
            Some(Some(port @ 1..=65535)) => Some(port as u16),
            Some(Some(port)) => return wrong(&format!("has port {port}"), "expected 1 to 65535".to_owned()),
            Some(None) => return wrong("has no number after its last `:`", "expected a port, 1 to 65535".to_owned()),
        };
        let servers = Self { network: address, prefix, port }.canonical();
        Ok((servers, servers.network != address.to_canonical() && servers.network != address))
    }

    /// As one that is equal whenever the same servers are meant: bits beyond the prefix are zero, and what lies in the IPv6 network of
    /// mapped IPv4 addresses is IPv4.
    fn canonical(self) -> Self {
        Self::of(&self.destination(Handshake::default()))
    }

    /// Servers as the engine has them.
    pub(crate) fn of(destination: &Destination) -> Self {
        let bits = destination.address.iter().fold(0, |bits, &word| bits << 32 | u128::from(word));
        let mask = |prefix: u8| u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        let address = Ipv6Addr::from_bits(bits & mask(destination.prefix));
        let (network, prefix) = match address.to_ipv4_mapped() {
            Some(address) if destination.prefix >= MAPPED => (address.into(), destination.prefix - MAPPED),
            _ => (address.into(), destination.prefix),
        };
        Self { network, prefix, port: destination.port }
    }

    /// A network's servers, or clients, at every port.
    pub(crate) fn of_network(network: &Network) -> Self {
        let Network { address, prefix } = *network;
        Self::of(&Destination { address, prefix, port: None, handshake: Handshake::default() })
    }

    /// Their network.
    pub(crate) fn as_network(self) -> Network {
        let Destination { address, prefix, .. } = self.destination(Handshake::default());
        Network { address, prefix }
    }

    /// The engine's word for them.
    pub(crate) fn destination(self, handshake: Handshake) -> Destination {
        let (address, prefix) = match self.network {
            IpAddr::V4(address) => (address.to_ipv6_mapped(), self.prefix + MAPPED),
            IpAddr::V6(address) => (address, self.prefix),
        };
        let bits = address.to_bits();
        let address = [96, 64, 32, 0].map(|shift| (bits >> shift) as u32);
        Destination { address, prefix, port: self.port, handshake }
    }
}

/// As in a file, without the quotes.
impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.network.is_ipv6() && self.port.is_some() { ("[", "]") } else { ("", "") };
        let most = if self.network.is_ipv4() { 32 } else { 128 };
        if self.prefix < most || self.port.is_some() {
            write!(f, "{open}{}", self.network)?;
        } else {
            write!(f, "{}", unambiguous(self.network))?;
        }
        if self.prefix < most {
            write!(f, "/{}", self.prefix)?;
        }
        write!(f, "{close}")?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// The address and the port that an IPv6 address without brackets may have been meant for: `2001:db8::1:443` is an address, and few who write it
/// mean it. One digit is no port that anybody means; an address in eight groups, or with a prefix, leaves no doubt.
pub(crate) fn may_have_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    let is_port = port.len() > 1 && !port.starts_with('0') && port.bytes().all(|b| b.is_ascii_digit());
    (is_port && host.contains("::") && host.parse::<Ipv6Addr>().is_ok()).then_some((host, port))
}

/// An address as it stands in a file, where it can be taken for nothing else.
pub(crate) fn unambiguous(address: IpAddr) -> String {
    let text = address.to_string();
    if may_have_port(&text).is_some() { in_full(address) } else { text }
}

/// An address with all its groups.
pub(crate) fn in_full(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => address.segments().map(|group| format!("{group:x}")).join(":"),
    }
}

/// A text's address or network, and its port. Only an IPv6 address has more than one colon, and with a port it stands in brackets.
fn split(text: &str) -> Result<(&str, Option<&str>), Mistake> {
    if let Some(rest) = text.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((host, "")) => Ok((host, None)),
            Some((host, port)) if port.starts_with(':') => Ok((host, Some(&port[1..]))),
            Some((host, tail)) => {
                let expected = match tail.split_once(':') {
                    _ if !tail.starts_with('/') => "expected `:` and a port after the `]`".to_owned(),
                    Some((prefix, port)) => format!("expected `[{host}{prefix}]:{port}`"),
                    None => format!("expected `{host}{tail}`"),
                };
                Err(Mistake { message: "goes on after its `]`".to_owned(), expected })
            }
            None => Err(Mistake { message: "has a `[` and no `]`".to_owned(), expected: String::new() }),
        };
    }
    match text.split_once('/') {
        Some((network, prefix)) if network.matches(':').count() > 1 => match prefix.split_once(':') {
            Some((prefix, port)) => Err(Mistake {
                message: "has a port, but no brackets around the network".to_owned(),
                expected: format!("expected `[{network}/{prefix}]:{port}`"),
            }),
            None => Ok((text, None)),
        },
        _ if text.matches(':').count() == 1 => {
            let (host, port) = text.split_once(':').unwrap_or((text, ""));
            Ok((host, Some(port)))
        }
        _ => Ok((text, None)),
    }
}

/// A decimal number without sign; what is too large for any range is so here too.
fn number(text: &str) -> Option<u32> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u32::MAX))
}
