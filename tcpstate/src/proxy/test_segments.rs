//! Segments for tests: from what they say to their frames.

use crate::Side;
use crate::wire::{FlowKey, TCP_LEN, checksum, put16, put32};

/// The ends of the segments of tests.
pub fn key(v6: bool) -> FlowKey {
    let upper = if v6 { [0x2001_0db8, 0, 0] } else { [0, 0, 0xffff] };
    let address = |low| [upper[0], upper[1], upper[2], low];
    FlowKey {
        lan: address(0x0a00_0001),
        wan: address(0x0b00_0001),
        lan_port: 80,
        wan_port: 4321,
        v6,
        ..FlowKey::default()
    }
}

/// What a segment of the test says.
#[derive(Clone, Debug)]
pub struct TestSegment {
    pub side: Side,
    pub v6: bool,
    /// The last word of the client's address.
    pub client: u32,
    /// The server's port.
    pub lan_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u16,
    /// The reserved bits of the header, three.
    pub reserved: u8,
    pub window: u16,
    pub ecn: u8,
    pub options: Vec<u8>,
    pub payload: usize,
    pub damaged: bool,
}

impl TestSegment {
    /// The frame, untagged, its checksums right unless it is to be damaged.
    pub fn frame(&self) -> Vec<u8> {
        let mut key = key(self.v6);
        (key.wan[3], key.lan_port) = (self.client, self.lan_port);
        let (from, to) = if self.side == Side::Lan { (key.lan, key.wan) } else { (key.wan, key.lan) };
        let (from_port, to_port) =
            if self.side == Side::Lan { (key.lan_port, key.wan_port) } else { (key.wan_port, key.lan_port) };
        let mut tcp = vec![0; TCP_LEN];
        put16(&mut tcp, 0, from_port);
        put16(&mut tcp, 2, to_port);
        put32(&mut tcp, 4, self.seq);
        put32(&mut tcp, 8, self.ack);
        tcp.extend(&self.options);
        let offset = (tcp.len() as u16) << 10;
        put16(&mut tcp, 12, offset | u16::from(self.reserved) << 9 | self.flags);
        put16(&mut tcp, 14, self.window);
        tcp.resize(tcp.len() + self.payload, 0x5a);
        let mut ip = if self.v6 { vec![0x60; 40] } else { vec![0x45; 20] };
        let addresses = if self.v6 {
            ip[..8].copy_from_slice(&[0x60, self.ecn << 4, 0, 0, 0, 0, 6, 64]);
            put16(&mut ip, 4, tcp.len() as u16);
            for (n, word) in from.into_iter().chain(to).enumerate() {
                put32(&mut ip, 8 + 4 * n, word);
            }
            8..40
        } else {
            ip[..12].copy_from_slice(&[0x45, self.ecn, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            put16(&mut ip, 2, (20 + tcp.len()) as u16);
            put32(&mut ip, 12, from[3]);
            put32(&mut ip, 16, to[3]);
            let sum = !checksum::sum(&ip);
            put16(&mut ip, 10, sum);
            12..20
        };
        let pseudo = u64::from(checksum::sum(&ip[addresses])) + 6 + tcp.len() as u64;
        let sum = !checksum::fold(pseudo + u64::from(checksum::sum(&tcp)));
        put16(&mut tcp, 16, if self.damaged { sum ^ 0x0400 } else { sum });
        let mut frame = vec![0; 12];
        frame.extend(if self.v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        frame.extend(ip);
        frame.extend(tcp);
        frame.resize(frame.len().max(60), 0);
        frame
    }
}

/// A bare segment of no flags.
impl Default for TestSegment {
    fn default() -> Self {
        Self {
            side: Side::Lan,
            v6: false,
            client: key(false).wan[3],
            lan_port: key(false).lan_port,
            seq: 1,
            ack: 0,
            flags: 0,
            reserved: 0,
            window: 64_240,
            ecn: 0,
            options: Vec::new(),
            payload: 0,
            damaged: false,
        }
    }
}
