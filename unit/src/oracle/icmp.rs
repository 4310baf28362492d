//! ICMP errors about TCP segments, as routers write them and hosts read them (RFC 792, RFC 4443).

use std::net::{IpAddr, SocketAddr};

use super::layers::Layers;
use super::wire::{fold, sum};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The packet is longer than the next hop takes, which is so many bytes.
    TooBig(u32),
    /// The destination cannot be reached, for the reason of this code.
    Unreachable(u8),
}

/// An error, with what it quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error<'a> {
    /// What is wrong.
    pub trouble: Trouble,
    /// Whether its own checksums are right.
    pub sums_right: bool,
    /// To whom it is sent.
    pub receiver: IpAddr,
    /// The sender of the quoted segment.
    pub source: SocketAddr,
    /// Its receiver.
    pub destination: SocketAddr,
    /// What is quoted of the segment: eight bytes at least.
    pub tcp: &'a [u8],
    /// Whether the quoted segment's checksum is right, if the segment is quoted in full.
    pub tcp_sum_right: Option<bool>,
}

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

impl<'a> Error<'a> {
    /// Reads a frame; `None` if it is no such error or quotes no TCP.
    pub fn read(frame: &'a [u8]) -> Option<Self> {
        let layers = Layers::read(frame).filter(|layers| layers.fragment.is_none())?;
        let message = &frame[layers.payload..layers.end];
        let (kind, code) = (*message.first()?, *message.get(1)?);
        let number = |at: usize| message.get(at..at + 4).map(|b| u32::from_be_bytes(b.try_into().expect("four")));
        let trouble = match (layers.protocol, kind, code) {
            (ICMP, 3, 4) => Trouble::TooBig(number(4)? & 0xffff),
            (ICMP, 3, code) | (ICMPV6, 1, code) => Trouble::Unreachable(code),
            (ICMPV6, 2, _) => Trouble::TooBig(number(4)?),
            _ => return None,
        };
        let header = &frame[layers.ip..layers.payload];
        let sums_right = if layers.v6 {
            fold(sum(message, pseudo(&header[8..40], ICMPV6, message.len()))) == 0
        } else {
            fold(sum(header, 0)) == 0 && fold(sum(message, 0)) == 0
        };
        // The quoted packet lies in a frame of its own, cut short.
        let quoted = message.get(8..)?;
        let (source, destination, tcp, length, pseudo) = if layers.v6 {
            let total = usize::from(u16::from_be_bytes([*quoted.get(4)?, *quoted.get(5)?]));
            let at = behind_extensions(quoted)?;
            let (tcp, length) = (quoted.get(at..)?, (40 + total).checked_sub(at)?);
            let ends: ([u8; 16], [u8; 16]) = (quoted[8..24].try_into().ok()?, quoted[24..40].try_into().ok()?);
            (IpAddr::from(ends.0), IpAddr::from(ends.1), tcp, length, pseudo(&quoted[8..40], 6, length))
        } else {
            let header = usize::from(quoted.first()? & 15) * 4;
            let total = usize::from(u16::from_be_bytes([*quoted.get(2)?, *quoted.get(3)?]));
            let tcp = quoted.get(header..).filter(|_| quoted[9] == 6)?;
            let ends: ([u8; 4], [u8; 4]) = (quoted[12..16].try_into().ok()?, quoted[16..20].try_into().ok()?);
            let length = total.checked_sub(header)?;
            (IpAddr::from(ends.0), IpAddr::from(ends.1), tcp, length, pseudo(&quoted[12..20], 6, length))
        };
        if tcp.len() < 8 {
            return None;
        }
        let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        Some(Self {
            trouble,
            sums_right,
            receiver: layers.addresses(frame).1,
            source: SocketAddr::new(source, port(0)),
            destination: SocketAddr::new(destination, port(2)),
            tcp_sum_right: tcp.get(..length).map(|whole| fold(sum(whole, pseudo)) == 0),
            tcp,
        })
    }

    /// The quoted sequence number.
    pub fn seq(&self) -> u32 {
        u32::from_be_bytes(self.tcp[4..8].try_into().expect("four bytes"))
    }

    /// The quoted acknowledgement number, if it and its flag are in sight and the flag is set.
    pub fn ack(&self) -> Option<u32> {
        let number = u32::from_be_bytes(self.tcp.get(8..12)?.try_into().expect("four bytes"));
        (self.tcp.get(13)? & 0x10 != 0).then_some(number)
    }

    /// What a router at this address says of a frame, quoting at most so many bytes of the packet's payload.
    ///
    /// # Panics
    /// If the frame holds no IP packet.
    pub fn write(trouble: Trouble, router: IpAddr, frame: &[u8], most: usize) -> Vec<u8> {
        let layers = Layers::read(frame).expect("an IP packet");
        // RFC 4443 section 2.4 and RFC 1812 section 4.3.2.3: the error itself must pass any link.
        let room = if layers.v6 { 1280 - 48 } else { 576 - 28 };
        let quoted = (layers.payload - layers.ip + most.max(8)).min(layers.end - layers.ip).min(room);
        let (kind, code, rest) = match (trouble, layers.v6) {
            (Trouble::TooBig(mtu), false) => (3, 4, mtu & 0xffff),
            (Trouble::TooBig(mtu), true) => (2, 0, mtu),
            (Trouble::Unreachable(code), v6) => (if v6 { 1 } else { 3 }, code, 0),
        };
        let mut message = vec![kind, code, 0, 0];
        message.extend_from_slice(&rest.to_be_bytes());
        message.extend_from_slice(&frame[layers.ip..layers.ip + quoted]);
        let mut out = [&frame[6..12], &frame[..6], &frame[12..layers.ip]].concat();
        let (sender, _) = layers.addresses(frame);
        match (router, sender) {
            (IpAddr::V4(router), IpAddr::V4(sender)) => {
                let ip = out.len();
                out.extend_from_slice(&[0x45, 0xc0]);
                out.extend_from_slice(&(20 + message.len() as u16).to_be_bytes());
                out.extend_from_slice(&[0, 0, 0, 0, 64, ICMP, 0, 0]);
                out.extend_from_slice(&router.octets());
                out.extend_from_slice(&sender.octets());
                let check = fold(sum(&out[ip..], 0));
                out[ip + 10..ip + 12].copy_from_slice(&check.to_be_bytes());
                let check = fold(sum(&message, 0));
                message[2..4].copy_from_slice(&check.to_be_bytes());
            }
            (IpAddr::V6(router), IpAddr::V6(sender)) => {
                out.extend_from_slice(&[0x60, 0, 0, 0]);
                out.extend_from_slice(&(message.len() as u16).to_be_bytes());
                out.extend_from_slice(&[ICMPV6, 64]);
                let addresses = [router.octets(), sender.octets()].concat();
                out.extend_from_slice(&addresses);
                let check = fold(sum(&message, pseudo(&addresses, ICMPV6, message.len())));
                message[2..4].copy_from_slice(&check.to_be_bytes());
            }
            _ => panic!("a router of another address family"),
        }
        out.extend_from_slice(&message);
        out.resize(out.len().max(60), 0);
        out
    }
}

/// Where the TCP header of a quoted IPv6 packet begins; `None` if what is quoted shows none.
fn behind_extensions(quoted: &[u8]) -> Option<usize> {
    let (mut next, mut at) = (*quoted.get(6)?, 40);
    while next != 6 {
        let length = match next {
            // Of a packet's later fragments the header says nothing.
            44 if u16::from_be_bytes([*quoted.get(at + 2)?, *quoted.get(at + 3)?]) & 0xfff8 != 0 => return None,
            44 => 8,
            0 | 43 | 60 => (usize::from(*quoted.get(at + 1)?) + 1) * 8,
            _ => return None,
        };
        next = *quoted.get(at)?;
        at += length;
    }
    Some(at)
}

fn pseudo(addresses: &[u8], protocol: u8, length: usize) -> u32 {
    sum(addresses, u32::from(protocol) + length as u32)
}
