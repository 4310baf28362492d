//! The header of the PROXY protocol, versions 1 and 2: who the client is and whom it connected to, in front of a connection's first byte, for a server
//! that expects it.

use crate::config::ProxyHeader;
use crate::wire::FlowKey;
use crate::{PerSide, Side};
use core::fmt::Write;

/// The most bytes of a header.
pub const LONGEST: usize = 107;

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
