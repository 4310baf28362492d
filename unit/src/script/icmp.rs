//! ICMP errors and fragments for scripts, built and read by code that shares nothing with the engine's.

use std::fmt;
use std::net::IpAddr;
use std::ops::Range;

use super::wire::{be16, be32, sum, v4, v6};
use super::{Expect, Family, FlowKey, Host, reverse, vlan_tags};

/// What an ICMP error says, in whatever family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// Fragmentation needed, or packet too big: the MTU.
    TooBig(u16),
    /// No way to the host.
    HostUnreachable,
    /// No socket listens.
    PortUnreachable,
    /// The hop limit was used up.
    TooFar,
    /// The header makes no sense at this offset.
    Parameter(u8),
    /// Source quench; IPv4 only.
    Quench,
}

impl Complaint {
    /// Type, code, and the four bytes behind the checksum.
    pub fn header(self, family: Family) -> (u8, u8, u32) {
        match (self, family) {
            (Complaint::TooBig(mtu), Family::V4) => (3, 4, mtu.into()),
            (Complaint::TooBig(mtu), Family::V6) => (2, 0, mtu.into()),
            (Complaint::HostUnreachable, Family::V4) => (3, 1, 0),
            (Complaint::HostUnreachable, Family::V6) => (1, 3, 0),
            (Complaint::PortUnreachable, Family::V4) => (3, 3, 0),
            (Complaint::PortUnreachable, Family::V6) => (1, 4, 0),
            (Complaint::TooFar, Family::V4) => (11, 0, 0),
            (Complaint::TooFar, Family::V6) => (3, 0, 0),
            (Complaint::Parameter(at), Family::V4) => (12, 0, u32::from(at) << 24),
            (Complaint::Parameter(at), Family::V6) => (4, 0, at.into()),
            (Complaint::Quench, _) => (4, 0, 0),
        }
    }
}

/// The IP packet in a frame, without tags and padding.
pub fn packet_of(frame: &[u8]) -> &[u8] {
    let at = ip_at(frame);
    let len = if frame[at] >> 4 == 4 { be16(frame, at + 2) } else { 40 + be16(frame, at + 4) };
    &frame[at..at + usize::from(len)]
}

fn ip_at(frame: &[u8]) -> usize {
    let mut at = 12;
    while matches!(be16(frame, at), 0x8100 | 0x88A8 | 0x9100) {
        at += 4;
    }
    at + 2
}

/// Where the TCP header begins in a packet without extension headers.
pub fn tcp_at(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { usize::from(packet[0] & 15) * 4 } else { 40 }
}

/// An ICMP error from the router `ends` starts at to the host it leads to, quoting the first `quoted` bytes of the TCP segment in
/// `frame`, or as many as there are.
pub fn icmp_error(ends: &FlowKey, tags: usize, complaint: Complaint, frame: &[u8], quoted: usize) -> Vec<u8> {
    let packet = packet_of(frame);
    let quote = &packet[..(tcp_at(packet) + quoted).min(packet.len())];
    icmp_error_raw(ends, tags, complaint, quote, &[])
}

/// Like [`icmp_error`], quoting any bytes, behind these IPv4 options or this IPv6 destination options header, if there are any.
pub fn icmp_error_raw(ends: &FlowKey, tags: usize, complaint: Complaint, quote: &[u8], options: &[u8]) -> Vec<u8> {
    let family = if ends.src.is_ipv4() { Family::V4 } else { Family::V6 };
    let (kind, code, rest) = complaint.header(family);
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest.to_be_bytes());
    message.extend(quote);
    let mut frame = Vec::new();
    frame.extend(ends.dst_mac);
    frame.extend(ends.src_mac);
    for (protocol, control) in vlan_tags(tags) {
        frame.extend(protocol.to_be_bytes());
        frame.extend(control.to_be_bytes());
    }
    let len = options.len() + message.len();
    match (ends.src, ends.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame.extend([0x08, 0x00, 0x45 + (options.len() / 4) as u8, 0xC0]);
            frame.extend(((20 + len) as u16).to_be_bytes());
            frame.extend([0x77, 0x88, 0, 0, ends.ttl, 1, 0, 0]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            frame.extend([0x86, 0xDD, 0x60, 0, 0, 0]);
            frame.extend((len as u16).to_be_bytes());
            frame.extend([if options.is_empty() { 58 } else { 60 }, ends.ttl]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
        }
        _ => panic!("both ends are of one family"),
    }
    frame.extend(options);
    frame.extend(message);
    frame.resize(frame.len().max(60), 0);
    seal_error(&mut frame);
    frame
}

/// Where an error's ICMP header begins, and the packet's end.
fn message_at(frame: &[u8]) -> Result<Range<usize>, String> {
    let ip = ip_at(frame);
    let packet = packet_of(frame);
    let (at, protocol) = match packet[0] >> 4 {
        4 => (usize::from(packet[0] & 15) * 4, packet[9]),
        _ if packet[6] == 60 => (40 + 8 + 8 * usize::from(packet[41]), packet[40]),
        _ => (40, packet[6]),
    };
    if !matches!(protocol, 1 | 58) || at + 8 > packet.len() {
        return Err(format!("no ICMP, but protocol {protocol}"));
    }
    Ok(ip + at..ip + packet.len())
}

fn pseudo_sum(frame: &[u8], message: &Range<usize>) -> u32 {
    let ip = ip_at(frame);
    if frame[ip] >> 4 == 4 { 0 } else { sum(&frame[ip + 8..ip + 40], 58 + message.len() as u32) }
}

/// Computes the checksums of an ICMP message, and of an IPv4 header around it, afresh.
pub fn seal_error(frame: &mut [u8]) {
    let ip = ip_at(frame);
    if frame[ip] >> 4 == 4 {
        seal_ipv4(frame, ip);
    }
    let Ok(message) = message_at(frame) else { return };
    frame[message.start + 2..message.start + 4].fill(0);
    let check = !sum(&frame[message.clone()], pseudo_sum(frame, &message)) as u16;
    frame[message.start + 2..message.start + 4].copy_from_slice(&check.to_be_bytes());
}

fn seal_ipv4(frame: &mut [u8], ip: usize) {
    let header = ip..ip + usize::from(frame[ip] & 15) * 4;
    frame[ip + 10..ip + 12].fill(0);
    let check = !sum(&frame[header], 0) as u16;
    frame[ip + 10..ip + 12].copy_from_slice(&check.to_be_bytes());
}

/// An ICMP error that came out.
#[derive(Clone, Debug)]
pub struct GotError {
    /// Source and destination address.
    pub addresses: (IpAddr, IpAddr),
    /// Destination and source MAC address.
    pub macs: ([u8; 6], [u8; 6]),
    /// Type, code, and the four bytes behind the checksum.
    pub header: (u8, u8, u32),
    /// The quoted packet, as far as it is quoted.
    pub quote: Vec<u8>,
    /// The hop limit.
    pub ttl: u8,
    /// The frame as it came out.
    pub frame: Vec<u8>,
}

impl GotError {
    fn read(frame: &[u8]) -> Result<GotError, String> {
        let message = message_at(frame)?;
        let packet = packet_of(frame);
        let is_v4 = packet[0] >> 4 == 4;
        if is_v4 && sum(&packet[..usize::from(packet[0] & 15) * 4], 0) != 0xFFFF {
            return Err("an error with a wrong IPv4 checksum".to_owned());
        }
        if sum(&frame[message.clone()], pseudo_sum(frame, &message)) != 0xFFFF {
            return Err("an error with a wrong checksum".to_owned());
        }
        let icmp = &frame[message];
        let addresses =
            if is_v4 { (v4(&packet[12..16]), v4(&packet[16..20])) } else { (v6(&packet[8..24]), v6(&packet[24..40])) };
        Ok(GotError {
            addresses,
            macs: (frame[0..6].try_into().expect("six bytes"), frame[6..12].try_into().expect("six bytes")),
            header: (icmp[0], icmp[1], be32(icmp, 4)),
            quote: icmp[8..].to_vec(),
            ttl: packet[if is_v4 { 8 } else { 7 }],
            frame: frame.to_vec(),
        })
    }

    /// What is quoted of the TCP segment.
    pub fn tcp(&self) -> &[u8] {
        &self.quote[tcp_at(&self.quote)..]
    }

    /// The quoted sequence number.
    pub fn seq(&self) -> u32 {
        be32(self.tcp(), 4)
    }

    /// Whether the quoted segment is whole and its checksum right.
    pub fn quoted_checksum_holds(&self) -> bool {
        let tcp = self.tcp();
        let addresses = if self.quote[0] >> 4 == 4 { &self.quote[12..20] } else { &self.quote[8..40] };
        sum(tcp, sum(addresses, 6 + tcp.len() as u32)) == 0xFFFF
    }
}

impl fmt::Display for GotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, code, rest) = self.header;
        write!(f, "ICMP {kind}/{code} {rest} quoting {} bytes, number {}", self.quote.len(), self.seq())
    }
}

/// The expectation of an ICMP error.
pub struct AnError(Complaint);

/// An ICMP error that says this, with right checksums, for this host.
pub fn an_error(complaint: Complaint) -> AnError {
    AnError(complaint)
}

impl Expect for AnError {
    type Learned = GotError;

    fn take(self, host: &Host) -> Result<GotError, String> {
        let mut core = host.core.borrow_mut();
        let (_, frame) = core.outbox[host.side].pop_front().ok_or_else(|| format!("{:?}, but got nothing", self.0))?;
        let got = GotError::read(&frame)?;
        let to_me = reverse(&host.ends, 0);
        let mut wrong = Vec::new();
        if got.macs != (to_me.dst_mac, to_me.src_mac) {
            wrong.push(format!("MAC addresses {:02x?}", got.macs));
        }
        let tags: Vec<u8> =
            vlan_tags(core.mode.tags).iter().flat_map(|(p, t)| [p.to_be_bytes(), t.to_be_bytes()].concat()).collect();
        if frame[12..12 + tags.len()] != tags || ip_at(&frame) != 14 + tags.len() {
            wrong.push("tags".to_owned());
        }
        if got.addresses.1 != to_me.dst {
            wrong.push(format!("addresses {:?}", got.addresses));
        }
        if got.header != self.0.header(core.mode.family) {
            wrong.push(format!("not {:?}", self.0));
        }
        if wrong.is_empty() { Ok(got) } else { Err(format!("{:?}, but got {got} with {}", self.0, wrong.join(", "))) }
    }
}

/// The bytes `range` of what the IP packet in `frame` carries, as a fragment; whether more follow is said, not true.
/// In IPv6 the fragment header comes before any other.
pub fn fragment(frame: &[u8], identification: u16, range: Range<usize>, more: bool) -> Vec<u8> {
    let ip = ip_at(frame);
    let packet = packet_of(frame);
    let field = range.start as u16 & !7;
    let mut out = frame[..ip].to_vec();
    if packet[0] >> 4 == 4 {
        let header = usize::from(packet[0] & 15) * 4;
        let body = &packet[header..][range.start.min(packet.len() - header)..range.end.min(packet.len() - header)];
        out.extend(&packet[..header]);
        out[ip + 2..ip + 4].copy_from_slice(&((header + body.len()) as u16).to_be_bytes());
        out[ip + 4..ip + 6].copy_from_slice(&identification.to_be_bytes());
        out[ip + 6..ip + 8].copy_from_slice(&((field / 8) | (u16::from(more) << 13)).to_be_bytes());
        out.extend(body);
        seal_ipv4(&mut out, ip);
    } else {
        let body = &packet[40..][range.start.min(packet.len() - 40)..range.end.min(packet.len() - 40)];
        out.extend(&packet[..40]);
        out[ip + 4..ip + 6].copy_from_slice(&((8 + body.len()) as u16).to_be_bytes());
        out[ip + 6] = 44;
        out.extend([packet[6], 0]);
        out.extend((field | u16::from(more)).to_be_bytes());
        out.extend(u32::from(identification).to_be_bytes());
        out.extend(body);
    }
    out.resize(out.len().max(60), 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::{data, wire};
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    fn ends(v6: bool) -> FlowKey {
        let (src, dst) = if v6 { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "192.0.2.2") };
        FlowKey {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            sport: 1,
            dport: 2,
            src_mac: [2; 6],
            dst_mac: [4; 6],
            ttl: 64,
        }
    }

    #[test]
    fn an_error_is_what_etherparse_reads() {
        for v6 in [false, true] {
            let segment = wire::build(&ends(v6), 1, &data(7, 9, 101));
            let frame = icmp_error(&ends(v6), 1, Complaint::TooBig(1280), &segment, 33);
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            match (sliced.net.unwrap(), sliced.transport.unwrap()) {
                (NetSlice::Ipv4(_), TransportSlice::Icmpv4(icmp)) => {
                    assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum());
                }
                (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
                    assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
                }
                other => panic!("{other:?}"),
            }
            let got = GotError::read(&frame).unwrap();
            assert_eq!((got.seq(), got.tcp().len()), (7, 33));
        }
    }

    #[test]
    fn fragments_are_what_etherparse_reads() {
        for v6 in [false, true] {
            let frame = wire::build(&ends(v6), 2, &data(7, 9, 1001));
            for (range, more) in [(0..128, true), (128..1021, false)] {
                let fragment = fragment(&frame, 77, range.clone(), more);
                let sliced = SlicedPacket::from_ethernet(&fragment).unwrap();
                let (offset, payload) = match sliced.net.unwrap() {
                    NetSlice::Ipv4(ip) => {
                        assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
                        (ip.header().fragments_offset().byte_offset(), ip.payload().payload)
                    }
                    NetSlice::Ipv6(ip) => {
                        let header = ip.extensions().clone().into_iter().next().unwrap();
                        let etherparse::Ipv6ExtensionSlice::Fragment(header) = header else { panic!("{header:?}") };
                        assert_eq!((header.identification(), header.more_fragments()), (77, more));
                        (header.fragment_offset().byte_offset(), ip.payload().payload)
                    }
                    NetSlice::Arp(_) => panic!(),
                };
                let whole = &packet_of(&frame)[tcp_at(packet_of(&frame))..];
                assert_eq!((usize::from(offset), payload), (range.start, &whole[range]));
            }
        }
    }
}
