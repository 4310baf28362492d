//! The header of the PROXY protocol, versions 1 and 2: who the client is and whom it connected to, in front of a connection's first byte. It is written
//! for a server that expects it, and read from a proxy that is trusted.

use crate::config::ProxyHeader;
use crate::wire::{Addr, FlowKey, be16, be32};
use crate::{PerSide, Side};
use core::fmt::Write;
use core::net::IpAddr;

/// The most bytes of a header.
pub const LONGEST: usize = 107;

/// The most bytes of a line of version 1, its end included.
const LONGEST_LINE: usize = 107;
/// Bytes of version 2 before the addresses.
const FIXED: usize = 16;

/// What version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Header {
    /// The header for a connection whose client, on the WAN, knows it by this key.
    pub fn new(kind: ProxyHeader, key: &FlowKey) -> Self {
        let mut header = Self { bytes: [0; LONGEST], len: 0 };
        match kind {
            ProxyHeader::None => {}
            ProxyHeader::V1 => header.fill_v1(key),
            ProxyHeader::V2 => header.fill_v2(key),
        }
        header
    }

    fn fill_v1(&mut self, key: &FlowKey) {
        let ends = PerSide::new(key.socket(Side::Lan), key.socket(Side::Wan));
        let (client, service) = (ends[Side::Wan], ends[Side::Lan]);
        let family = if key.v6 { "TCP6" } else { "TCP4" };
        // Two addresses of 39 and two ports of 5 characters are 107 bytes with the rest.
        let written =
            write!(self, "PROXY {family} {} {} {} {}\r\n", client.ip(), service.ip(), client.port(), service.port());
        debug_assert!(written.is_ok(), "the longest header has room");
    }

    fn fill_v2(&mut self, key: &FlowKey) {
        // Version 2, command PROXY; the family, over TCP; the length of what follows.
        let (family, len) = if key.v6 { (0x21, 36) } else { (0x11, 12) };
        self.push(&SIGNATURE);
        self.push(&[0x21, family, 0, len]);
        let skipped = if key.v6 { 0 } else { 3 };
        for address in [&key.wan, &key.lan] {
            for word in &address[skipped..] {
                self.push(&word.to_be_bytes());
            }
        }
        self.push(&key.wan_port.to_be_bytes());
        self.push(&key.lan_port.to_be_bytes());
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Header {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(core::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// What the first bytes of a proxy's connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Too little to tell.
    More,
    /// They are no header, or one that is longer than what can be read.
    Other,
    /// A header of this many bytes, and the ends of the connection that it tells of: the client as the WAN's, whom it connected to as the LAN's. `None` if
    /// it tells of none, as where the proxy speaks for itself.
    Ends(usize, Option<FlowKey>),
}

/// What the first bytes of a proxy's connection say, of which there can be `most`.
pub fn read(bytes: &[u8], most: usize) -> Told {
    let told = if begins_alike(bytes, &SIGNATURE) {
        read_v2(bytes, most)
    } else if begins_alike(bytes, b"PROXY ") {
        read_v1(bytes)
    } else {
        Told::Other
    };
    // What would be needed never comes.
    if told == Told::More && bytes.len() >= most { Told::Other } else { told }
}

/// Whether these bytes begin with those, as far as there are any.
fn begins_alike(bytes: &[u8], begin: &[u8]) -> bool {
    bytes.iter().zip(begin).all(|(own, other)| own == other)
}

fn read_v1(bytes: &[u8]) -> Told {
    let seen = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = seen.windows(2).position(|pair| pair == b"\r\n") else {
        return if seen.len() == LONGEST_LINE { Told::Other } else { Told::More };
    };
    match core::str::from_utf8(&seen[..end]).ok().and_then(ends_of_line) {
        Some(ends) => Told::Ends(end + 2, ends),
        None => Told::Other,
    }
}

/// The ends in a line of version 1, if it has any; `None` if it is none.
fn ends_of_line(line: &str) -> Option<Option<FlowKey>> {
    let mut words = line.split(' ').skip(1);
    let v6 = match words.next()? {
        "UNKNOWN" => return Some(None),
        "TCP4" => false,
        "TCP6" => true,
        _ => return None,
    };
    let mut address = || -> Option<Addr> {
        match words.next()?.parse().ok()? {
            IpAddr::V4(address) if !v6 => Some([0, 0, 0xffff, address.to_bits()]),
            IpAddr::V6(address) if v6 => Some(words_of(&address.octets())),
            _ => None,
        }
    };
    let (wan, lan) = (address()?, address()?);
    let mut port = || words.next()?.parse::<u16>().ok();
    let (wan_port, lan_port) = (port()?, port()?);
    let key = FlowKey { wan, lan, wan_port, lan_port, v6, ..FlowKey::default() };
    words.next().is_none().then_some(Some(key))
}

fn words_of(octets: &[u8]) -> Addr {
    core::array::from_fn(|n| be32(octets, 4 * n))
}

fn read_v2(bytes: &[u8], most: usize) -> Told {
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else { return Told::More };
    let (len, command, family) = (usize::from(be16(fixed, 14)), fixed[12], fixed[13]);
    if !matches!(command, 0x20 | 0x21) || FIXED + len > most {
        return Told::Other;
    }
    let Some(rest) = rest.get(..len) else { return Told::More };
    // What stands behind the addresses is skipped.
    let ends = match (command, family) {
        // The proxy speaks for itself, as when it asks whether anybody is there.
        (0x20, _) => None,
        // It does not say, or names no address of the Internet.
        (_, 0x00 | 0x31) => None,
        (_, 0x11) if len >= 12 => Some(FlowKey {
            wan: [0, 0, 0xffff, be32(rest, 0)],
            lan: [0, 0, 0xffff, be32(rest, 4)],
            wan_port: be16(rest, 8),
            lan_port: be16(rest, 10),
            ..FlowKey::default()
        }),
        (_, 0x21) if len >= 36 => Some(FlowKey {
            wan: words_of(&rest[..16]),
            lan: words_of(&rest[16..32]),
            wan_port: be16(rest, 32),
            lan_port: be16(rest, 34),
            v6: true,
            ..FlowKey::default()
        }),
        _ => return Told::Other,
    };
    Told::Ends(FIXED + len, ends)
}
