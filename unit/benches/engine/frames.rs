//! The frames of the loads: TCP over IPv4 or IPv6 between a numbered client on the WAN and a server on the LAN, every
//! checksum right. Payloads are zeros, so a frame is written by its headers alone.

use tcpstate::Side;
use tcpstate::wire::{Flags, checksum};

/// Bytes in front of the IP header.
const ETHERNET: usize = 14;

/// Who talks: a client by its number, with the server that the number leads to.
#[derive(Clone, Copy)]
pub struct Pair {
    pub client: u32,
    pub port: u16,
    pub v6: bool,
}

impl Pair {
    /// The `n`th client: an address of its own in 11.0.0.0 and above.
    pub fn numbered(n: u32, v6: bool) -> Self {
        Self { client: 0x0b00_0000 + (n & 0x3fff_ffff), port: 1024 + (n % 60_000) as u16, v6 }
    }

    /// Offset of the TCP header in a frame between these ends.
    pub fn tcp(self) -> usize {
        ETHERNET + if self.v6 { 40 } else { 20 }
    }

    /// One of sixteen servers.
    fn server(self) -> u32 {
        0x0a00_0001 + (self.client & 15)
    }
}

/// The options of a segment.
#[derive(Clone, Copy)]
pub enum Options {
    None,
    /// MSS, SACK permitted, timestamps, window scale, as a common stack's SYN has them.
    Syn {
        value: u32,
        echo: u32,
    },
    Timestamps {
        value: u32,
        echo: u32,
    },
}

/// What a segment says.
#[derive(Clone, Copy)]
pub struct Tcp {
    pub seq: u32,
    pub ack: u32,
    pub flags: Flags,
    pub options: Options,
    pub payload: usize,
}

pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Writes the frame that comes in on `side` to the beginning of `buffer`, with a payload of zeros; its length.
pub fn write(buffer: &mut [u8], side: Side, pair: Pair, tcp: &Tcp) -> usize {
    let (server_mac, client_mac) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (from, to) = if side == Side::Lan { (server_mac, client_mac) } else { (client_mac, server_mac) };
    buffer[..6].copy_from_slice(&to);
    buffer[6..12].copy_from_slice(&from);
    put16(buffer, 12, if pair.v6 { 0x86dd } else { 0x0800 });

    let at = pair.tcp();
    let mut options = [0; 20];
    let options = match tcp.options {
        Options::None => &options[..0],
        Options::Syn { value, echo } => {
            options.copy_from_slice(&[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7]);
            put32(&mut options, 8, value);
            put32(&mut options, 12, echo);
            &options[..]
        }
        Options::Timestamps { value, echo } => {
            options[..4].copy_from_slice(&[1, 1, 8, 10]);
            put32(&mut options, 4, value);
            put32(&mut options, 8, echo);
            &options[..12]
        }
    };
    let segment = 20 + options.len() + tcp.payload;
    let (source, destination) =
        if side == Side::Lan { (pair.server(), pair.client) } else { (pair.client, pair.server()) };
    let pseudo = write_ip(&mut buffer[ETHERNET..at], source, destination, segment, pair.v6);

    // What was in the buffer before may have been longer than the headers.
    buffer[at + segment - tcp.payload..at + segment].fill(0);
    let header = &mut buffer[at..at + 20 + options.len()];
    let (from, to) = if side == Side::Lan { (443, pair.port) } else { (pair.port, 443) };
    put16(header, 0, from);
    put16(header, 2, to);
    put32(header, 4, tcp.seq);
    put32(header, 8, tcp.ack);
    put16(header, 12, (header.len() << 10) as u16 | tcp.flags.0);
    put16(header, 14, 0xffff);
    put32(header, 16, 0);
    header[20..].copy_from_slice(options);
    let sum = !checksum::fold(pseudo + u64::from(checksum::sum(header)));
    put16(header, 16, sum);
    (at + segment).max(60)
}

/// Bytes of an IPv4 header and an ICMP header in front of what an error quotes.
const ERROR: usize = 20 + 8;
/// Offset of the quoted TCP header in an ICMP error.
pub const QUOTED: usize = ETHERNET + ERROR + 20;

/// Writes the ICMP error by which a router on `side`, in IPv4, complains that this segment of the other side's was too big; its length.
pub fn write_error(buffer: &mut [u8], side: Side, pair: Pair, tcp: &Tcp) -> usize {
    // The Ethernet header of what is quoted gives way to the error's.
    let len = ERROR + write(&mut buffer[ERROR..], side.other(), pair, tcp);
    buffer.copy_within(ERROR..ERROR + 6, 6);
    buffer.copy_within(ERROR + 6..ERROR + 12, 0);
    put16(buffer, 12, 0x0800);
    let to = if side == Side::Lan { pair.client } else { pair.server() };
    let packet = &mut buffer[ETHERNET..len];
    let (ip, icmp) = packet.split_at_mut(20);
    write_ip(ip, 0xc633_6401, to, icmp.len(), false);
    ip[9] = 1;
    put16(ip, 10, 0);
    let sum = !checksum::sum(ip);
    put16(ip, 10, sum);
    icmp[..8].copy_from_slice(&[3, 4, 0, 0, 0, 0, 5, 0]);
    let sum = !checksum::sum(icmp);
    put16(icmp, 2, sum);
    len
}

/// Writes the IP header that fills `header`; the sum of the pseudo header.
fn write_ip(header: &mut [u8], source: u32, destination: u32, segment: usize, v6: bool) -> u64 {
    header.fill(0);
    let addresses = if v6 {
        header[0] = 0x60;
        put16(header, 4, segment as u16);
        header[6] = 6;
        header[7] = 60;
        // The address behind 2001::/16: each end is a site of its own, and they are of as many providers as those of IPv4.
        for (at, address) in [(8, source), (24, destination)] {
            put16(header, at, 0x2001);
            put32(header, at + 2, address);
        }
        8..40
    } else {
        header[0] = 0x45;
        put16(header, 2, (20 + segment) as u16);
        put16(header, 6, 0x4000);
        header[8] = 60;
        header[9] = 6;
        put32(header, 12, source);
        put32(header, 16, destination);
        let sum = !checksum::sum(header);
        put16(header, 10, sum);
        12..20
    };
    u64::from(checksum::sum(&header[addresses])) + 6 + segment as u64
}
