//! ICMP errors about TCP segments: parses what they quote, and writes the one error that the proxy itself sends.
//!
//! As far as errors go, ICMPv4 (RFC 792) and ICMPv6 (RFC 4443) differ only in the numbers of their types and in what the checksum covers.

use core::ops::Range;

use super::checksum::Patch;
use super::segment::{Layout, extension_headers, ipv4_address, ipv6_address, source_route};
use super::{
    Addr, ETHERNET_LEN, FlowKey, GROUP, ICMP, ICMPV6, IPV4_LEN, IPV6_LEN, Outgoing, Segment, TCP, TCP_LEN, be16, be32,
    checksum, put16, put32,
};
use crate::seq::SeqNum;
use crate::{Head, Side};

/// Bytes of an ICMP error in front of what it quotes.
pub const ICMP_LEN: usize = 8;
/// The least bytes of a quoted segment: its ports and its sequence number. RFC 792 requires no more.
const QUOTED_LEN: usize = 8;

/// What an ICMP error reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpKind {
    /// The packet cannot be delivered: destination unreachable, time exceeded, or parameter problem.
    Unreachable,
    /// The packet is larger than the MTU of the next link.
    TooBig,
    /// Source quench, which hosts ignore (RFC 6633).
    SourceQuench,
}

/// An ICMP error about a TCP segment: whose segment it was, and where the parts are.
#[derive(Clone, Copy, Debug)]
pub struct Quote {
    /// The quoted segment's connection. Its sender is on the side the error travels to.
    pub key: FlowKey,
    /// The quoted sequence number.
    pub seq: SeqNum,
    /// Offset of the IP header in the frame.
    pub ip: u16,
    /// Offset of the ICMP header.
    pub icmp: u16,
    /// Offset of the quoted TCP header, of which at least eight bytes are there.
    pub tcp: u16,
    /// Offset of the end of the visible part of the quote.
    pub seen: u16,
    /// Offset of the IP packet's end, which may lie beyond the head's visible bytes.
    pub end: u32,
}

/// An ICMP error which says that a port, its host or its network cannot be reached: what it takes to send another like it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unreachable {
    /// Its type: 3, or 1 of ICMPv6.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// The hop limit it came with.
    pub ttl: u8,
    /// Its class: the type of service, or the traffic class.
    pub class: u8,
    /// Who sent it.
    pub from: Addr,
}

impl Quote {
    /// The error, if it says that its segment's destination cannot be reached; not one that depends on what the segment was, as its hop limit or its
    /// length.
    pub fn unreachable(&self, frame: &[u8]) -> Option<Unreachable> {
        let (ip, icmp) = (usize::from(self.ip), usize::from(self.icmp));
        let (kind, code) = (frame[icmp], frame[icmp + 1]);
        let v6 = self.key.v6;
        let is_unreachable = kind == if v6 { 1 } else { 3 } && self.kind(frame) == IcmpKind::Unreachable;
        let (ttl, class, from) = if v6 {
            (frame[ip + 7], (be16(frame, ip) >> 4) as u8, ipv6_address(frame, ip + 8))
        } else {
            (frame[ip + 8], frame[ip + 1], ipv4_address(frame, ip + 12))
        };
        is_unreachable.then_some(Unreachable { kind, code, ttl, class, from })
    }

    /// What the error reports.
    pub fn kind(&self, frame: &[u8]) -> IcmpKind {
        let icmp = usize::from(self.icmp);
        match (self.key.v6, frame[icmp], frame[icmp + 1]) {
            (true, 2, _) | (false, 3, 4) => IcmpKind::TooBig,
            (false, 4, _) => IcmpKind::SourceQuench,
            _ => IcmpKind::Unreachable,
        }
    }

    /// Whether the IPv4 header's and the error's checksums are right. False if not all of the error is visible: it cannot be checked.
    pub fn checksums_hold(&self, head: &Head) -> bool {
        let frame = head.bytes();
        let (ip, icmp, end) = (usize::from(self.ip), usize::from(self.icmp), self.end as usize);
        if end > frame.len() {
            return false;
        }
        let pseudo = if self.key.v6 {
            pseudo_header_sum(&frame[ip + 8..ip + IPV6_LEN], end - icmp)
        } else {
            let header = usize::from(frame[ip] & 15) * 4;
            if checksum::sum(&frame[ip..ip + header]) != u16::MAX {
                return false;
            }
            0
        };
        checksum::fold(u64::from(pseudo) + u64::from(checksum::sum(&frame[icmp..end]))) == u16::MAX
    }
}

/// The sum of the pseudo header in front of an ICMPv6 message of `len` bytes between these 32 bytes of addresses (RFC 8200 section 8.1).
fn pseudo_header_sum(addresses: &[u8], len: usize) -> u16 {
    checksum::fold(u64::from(checksum::sum(addresses)) + u64::from(ICMPV6) + len as u64)
}

/// The MTU of a path that carries segments of at most `mss` bytes, options included (RFC 6691).
fn mtu(v6: bool, mss: u16) -> usize {
    (usize::from(mss) + headers(v6)).max(if v6 { IPV6_MTU } else { IPV4_MTU })
}

/// Bytes of the headers in front of a segment's options.
fn headers(v6: bool) -> usize {
    TCP_LEN + if v6 { IPV6_LEN } else { IPV4_LEN }
}

/// Whether segments that are as long as this MSS allows are longer than a path for `mss` carries.
pub fn may_be_too_big(v6: bool, told: u16, mss: u16) -> bool {
    usize::from(told) + headers(v6) > mtu(v6, mss)
}

/// Whether a segment is longer than one of `mss` bytes, options included, and must not be fragmented on its way.
pub fn is_too_big(segment: &Segment, head: &Head, mss: u16) -> bool {
    let ip = usize::from(segment.ip);
    let must_not_be_fragmented = segment.key.v6 || be16(head.bytes(), ip + 6) & DONT_FRAGMENT != 0;
    segment.end as usize - ip > mtu(segment.key.v6, mss) && !segment.fragmented && must_not_be_fragmented
}

/// Turns a segment that [is too big](is_too_big) into the error by which a router in front of the server would report it (RFC 1191, RFC 8201).
/// The frame need not hold all of the payload. `ttl` is the error's hop limit. The error is never longer than the frame and quotes what fits.
pub fn become_too_big(segment: &Segment, head: &mut Head, mss: u16, ttl: u8) {
    let (v6, ip) = (segment.key.v6, usize::from(segment.ip));
    let error = too_big(v6, ip, head.bytes(), ttl);
    become_error(v6, ip..segment.end as usize, head, &error, mtu(v6, mss) as u32);
}

/// The error, without its MTU, by which the receiver of the packet that lies there in the frame reports it as too big.
fn too_big(v6: bool, ip: usize, frame: &[u8], ttl: u8) -> Unreachable {
    if v6 {
        return Unreachable { kind: 2, code: 0, ttl, class: 0, from: ipv6_address(frame, ip + 24) };
    }
    // RFC 1812 section 4.3.2.5: precedence of errors is internetwork control.
    Unreachable { kind: 3, code: 4, ttl, class: 0xc0, from: ipv4_address(frame, ip + 16) }
}

/// Turns a client's segment into an error about it like this one. What lies in the frame behind the segment is room for the error's headers.
pub fn become_unreachable(segment: &Segment, head: &mut Head, error: &Unreachable) {
    become_error(segment.key.v6, usize::from(segment.ip)..segment.end as usize, head, error, 0);
}

/// How much longer an error is than the packet that it quotes as a whole.
pub fn error_overhead(v6: bool) -> usize {
    ICMP_LEN + if v6 { IPV6_LEN } else { IPV4_LEN }
}

/// Turns a packet that lies there in the frame, or would, if all of it were there, into this error about it, which says `says` in the last 32 bits of its
/// own header. It fills the frame at most.
fn become_error(v6: bool, packet: Range<usize>, head: &mut Head, error: &Unreachable, says: u32) {
    let Range { start: ip, end } = packet;
    let (header, longest) = if v6 { (IPV6_LEN, IPV6_MTU) } else { (IPV4_LEN, IPV4_ERROR) };
    let frame = head.bytes_mut();
    let overhead = header + ICMP_LEN;
    let quoted = end.min(frame.len() - overhead).saturating_sub(ip).min(longest - overhead);
    let len = overhead + quoted;
    frame.copy_within(ip..ip + quoted, ip + overhead);
    let (to, from) = frame[..12].split_at_mut(6);
    to.swap_with_slice(from);
    from[0] &= !GROUP;
    let packet = &mut frame[ip..ip + len];
    let pseudo = if v6 { write_ipv6_header(packet, error) } else { write_ipv4_header(packet, error) };
    let message = &mut packet[header..];
    message[..4].copy_from_slice(&[error.kind, error.code, 0, 0]);
    put32(message, 4, says);
    let sum = !checksum::fold(u64::from(pseudo) + u64::from(checksum::sum(message)));
    put16(message, 2, sum);
    let _ = head.resize(ip + len);
}

/// Writes the error that a segment with the headers of `empty`, and as much behind them as the MSS `told` allows, is answered with where it is
/// [too big](may_be_too_big); returns its length. It quotes what fits the buffer.
///
/// # Panics
/// If the buffer is shorter than [`Outgoing::frame_len`].
pub fn write_too_big(empty: &Outgoing, told: u16, mss: u16, ttl: u8, buffer: &mut [u8]) -> usize {
    let v6 = empty.envelope.key.v6;
    let len = empty.envelope.frame_len(empty.options);
    empty.write(buffer);
    let ip = ETHERNET_LEN + empty.envelope.tags.len();
    let total = usize::from(told) + headers(v6);
    if v6 {
        put16(buffer, ip + 4, (total - IPV6_LEN) as u16);
    } else {
        let mut patch = Patch::default();
        patch.replace16(be16(buffer, ip + 2), total as u16);
        put16(buffer, ip + 2, total as u16);
        let sum = patch.apply(be16(buffer, ip + 10));
        put16(buffer, ip + 10, sum);
    }
    // The error is longer by its own headers than what it quotes.
    let own = headers(v6) - TCP_LEN + ICMP_LEN;
    let len = buffer.len().min(len + own);
    let mut head = Head::whole(buffer, len);
    let error = too_big(v6, ip, head.bytes(), ttl);
    become_error(v6, ip..ip + total, &mut head, &error, mtu(v6, mss) as u32);
    head.len()
}

/// Writes the header of an error that quotes an IPv4 packet, back to that packet's sender; returns the sum of its pseudo header: none.
fn write_ipv4_header(packet: &mut [u8], error: &Unreachable) -> u16 {
    const QUOTE: usize = IPV4_LEN + ICMP_LEN;
    put32(packet, 12, error.from[3]);
    packet.copy_within(QUOTE + 12..QUOTE + 16, 16);
    put32(packet, 0, 0x4500_0000 | u32::from(error.class) << 16 | packet.len() as u32);
    // A packet that is never fragmented needs no identification (RFC 6864 section 4.1).
    put32(packet, 4, DONT_FRAGMENT.into());
    packet[8..12].copy_from_slice(&[error.ttl, ICMP, 0, 0]);
    let sum = !checksum::sum(&packet[..IPV4_LEN]);
    put16(packet, 10, sum);
    0
}

/// Writes the header of an error that quotes an IPv6 packet, back to that packet's sender; returns the sum of its pseudo header.
fn write_ipv6_header(packet: &mut [u8], error: &Unreachable) -> u16 {
    const QUOTE: usize = IPV6_LEN + ICMP_LEN;
    let len = packet.len() - IPV6_LEN;
    packet[8..24].as_chunks_mut().0.iter_mut().zip(error.from).for_each(|(place, word)| *place = word.to_be_bytes());
    packet.copy_within(QUOTE + 8..QUOTE + 24, 24);
    put32(packet, 0, 6 << 28 | u32::from(error.class) << 20);
    put16(packet, 4, len as u16);
    packet[6..8].copy_from_slice(&[ICMPV6, error.ttl]);
    pseudo_header_sum(&packet[8..IPV6_LEN], len)
}

/// The least MTU of IPv4 (RFC 791 section 3.2).
pub const IPV4_MTU: usize = 68;
/// The least MTU of IPv6 (RFC 8200 section 5), and the greatest length of an ICMPv6 error (RFC 4443 section 3).
pub const IPV6_MTU: usize = 1280;
/// The greatest length of an ICMPv4 error (RFC 1812 section 4.3.2.3).
const IPV4_ERROR: usize = 576;
/// The flag beside an IPv4 fragment's offset that forbids fragmentation.
const DONT_FRAGMENT: u16 = 0x4000;

/// What an ICMP message is.
pub(super) enum Message {
    /// An error about a TCP segment.
    Error(Quote),
    /// An error about a TCP segment whose connection the quote does not show, or that does not go to the segment's sender.
    StrayError,
    /// No error about TCP.
    Other,
}

/// Parses the ICMP message that is the payload of `layout`.
#[inline(never)]
pub(super) fn parse(side: Side, head: &Head, layout: &Layout) -> Message {
    let frame = head.bytes();
    let Layout { ip, payload: icmp, end, vlan, v6, addresses: (_, receiver), .. } = *layout;
    let seen = end.min(frame.len()).min(usize::from(u16::MAX));
    let quoted = icmp + ICMP_LEN;
    if quoted > seen {
        return Message::Other;
    }
    let is_error = if v6 { matches!(frame[icmp], 1..=4) } else { matches!(frame[icmp], 3 | 4 | 11 | 12) };
    if !is_error {
        return Message::Other;
    }
    let seen = seen.min(quoted + original_len(&frame[icmp..quoted], v6).unwrap_or(usize::MAX - quoted));
    let Some(packet) = (if v6 { quoted_ipv6(frame, quoted, seen) } else { quoted_ipv4(frame, quoted, seen) }) else {
        return Message::Other;
    };
    let Quoted { tcp, end: quoted_end, sender, addresses } = packet;
    let seen = seen.min(quoted_end);
    if tcp + QUOTED_LEN > seen || sender != receiver {
        return Message::StrayError;
    }
    let inner =
        Layout { ip: quoted, payload: tcp, end: seen, more: false, vlan, addresses, v6, ttl: 0, indirect: false };
    Message::Error(Quote {
        key: inner.key(side.other(), be16(frame, tcp), be16(frame, tcp + 2)),
        seq: SeqNum::new(be32(frame, tcp + 4)),
        // No cast truncates: `seen` is below 64 KiB.
        ip: ip as u16,
        icmp: icmp as u16,
        tcp: tcp as u16,
        seen: seen as u16,
        end: end as u32,
    })
}

/// The bytes of the quoted packet behind the ICMP header, if extensions follow it (RFC 4884 section 4).
fn original_len(header: &[u8], v6: bool) -> Option<usize> {
    let len = match (v6, header[0]) {
        (false, 3 | 11 | 12) => usize::from(header[5]) * 4,
        (true, 1 | 3) => usize::from(header[4]) * 8,
        _ => 0,
    };
    (len != 0).then_some(len)
}

/// A packet found in an error.
struct Quoted {
    /// The offset of its TCP header; [`ELSEWHERE`], past any frame, if that is in another fragment.
    tcp: usize,
    end: usize,
    /// Where it came from.
    sender: Addr,
    /// Its ends.
    addresses: (Addr, Addr),
}

const ELSEWHERE: usize = u32::MAX as usize;

/// The IPv4 packet quoted at `ip`, if it is one and carries TCP.
fn quoted_ipv4(frame: &[u8], ip: usize, seen: usize) -> Option<Quoted> {
    if ip + IPV4_LEN > seen || frame[ip] >> 4 != 4 || frame[ip + 9] != TCP {
        return None;
    }
    let header = usize::from(frame[ip] & 15) * 4;
    let total = usize::from(be16(frame, ip + 2));
    let is_later = be16(frame, ip + 6) & 0x1fff != 0;
    let tcp = if is_later || header < IPV4_LEN { ELSEWHERE } else { ip + header };
    let options = frame[..seen].get(ip + IPV4_LEN..ip + header).unwrap_or_default();
    let sender = ipv4_address(frame, ip + 12);
    let addresses = (sender, source_route(options).unwrap_or(ipv4_address(frame, ip + 16)));
    // Some routers change the length field of what they quote.
    let end = if total < header + QUOTED_LEN { usize::MAX } else { ip + total };
    Some(Quoted { tcp, end, sender, addresses })
}

/// The IPv6 packet quoted at `ip`, if it is one and carries TCP.
fn quoted_ipv6(frame: &[u8], ip: usize, seen: usize) -> Option<Quoted> {
    if ip + IPV6_LEN > seen || frame[ip] >> 4 != 6 {
        return None;
    }
    let end = ip + IPV6_LEN + usize::from(be16(frame, ip + 4));
    let chain = extension_headers(frame, ip, end.min(seen)).ok()?;
    if chain.next != TCP || chain.foreign {
        return None;
    }
    let is_later = chain.piece.is_some_and(|piece| piece.offset > 0);
    let tcp = if is_later { ELSEWHERE } else { chain.at };
    let sender = ipv6_address(frame, ip + 8);
    let addresses = (chain.home.unwrap_or(sender), chain.last.unwrap_or(ipv6_address(frame, ip + 24)));
    Some(Quoted { tcp, end, sender, addresses })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Parsed;
    use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, icmpv4};
    use proptest::prelude::*;

    const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const SERVER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const TTL: u8 = 61;

    /// A client's segment with `len` bytes of payload, tagged, with twelve bytes of options.
    fn segment(v6: bool, len: usize) -> Vec<u8> {
        let stamps = [etherparse::TcpOptionElement::Timestamp(1, 2)];
        let link = PacketBuilder::ethernet2(CLIENT, SERVER).single_vlan(77.try_into().unwrap());
        let ip = if v6 { link.ipv6([0x26; 16], [0x27; 16], 57) } else { link.ipv4([20, 0, 0, 1], [192, 0, 2, 10], 57) };
        let tcp = ip.tcp(54321, 443, 1000, 500).ack(2000).options(&stamps).unwrap();
        let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let mut frame = Vec::new();
        tcp.write(&mut frame, &payload).unwrap();
        if !v6 {
            set_fragment_field(&mut frame, DONT_FRAGMENT);
        }
        frame
    }

    fn set_fragment_field(frame: &mut [u8], field: u16) {
        put16(frame, 18 + 6, field);
        put16(frame, 18 + 10, 0);
        let sum = !checksum::sum(&frame[18..38]);
        put16(frame, 18 + 10, sum);
    }

    /// What becomes of a frame of which `seen` bytes are visible, if anything.
    fn refused(frame: &[u8], seen: usize, mss: u16) -> Option<Vec<u8>> {
        let mut buffer = frame[..seen].to_vec();
        let mut head = Head::new(&mut buffer, 0, seen, frame.len());
        let Parsed::Tcp(segment) = Parsed::parse(Side::Wan, &head) else { panic!("no segment") };
        is_too_big(&segment, &head, mss).then(|| {
            become_too_big(&segment, &mut head, mss, TTL);
            assert!(head.is_whole());
            head.bytes().to_vec()
        })
    }

    /// What the error says, after everything else about it was checked: the MTU and the length of the quote.
    fn read(error: &[u8], question: &[u8]) -> (u16, usize) {
        assert!(error.len() <= question.len(), "the answer is longer than the question");
        let sliced = SlicedPacket::from_ethernet(error).unwrap();
        let etherparse::LinkSlice::Ethernet2(link) = sliced.link.unwrap() else { panic!("no Ethernet") };
        assert_eq!((link.source(), link.destination()), (SERVER, CLIENT));
        assert_eq!(error[12..16], question[12..16], "the tag");
        let (mtu, quote) = match (sliced.net.unwrap(), sliced.transport.unwrap()) {
            (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
                let header = ip.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum);
                assert_eq!((header.source, header.destination), ([192, 0, 2, 10], [20, 0, 0, 1]));
                assert_eq!((header.time_to_live, header.dont_fragment), (TTL, true));
                assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum());
                assert!(header.total_len <= 576);
                let Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu,
                }) = icmp.icmp_type()
                else {
                    panic!("{:?}", icmp.icmp_type())
                };
                (next_hop_mtu, icmp.payload())
            }
            (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
                let header = ip.header();
                assert_eq!((header.source(), header.destination(), header.hop_limit()), ([0x27; 16], [0x26; 16], TTL));
                assert!(icmp.is_checksum_valid(header.source(), header.destination()));
                assert!(usize::from(header.payload_length()) + IPV6_LEN <= IPV6_MTU);
                let Icmpv6Type::PacketTooBig { mtu } = icmp.icmp_type() else { panic!("{:?}", icmp.icmp_type()) };
                (mtu.try_into().unwrap(), icmp.payload())
            }
            other => panic!("no ICMP: {other:?}"),
        };
        assert_eq!(quote, &question[18..][..quote.len()], "what was too big, as it came");
        (mtu, quote.len())
    }

    #[test]
    fn a_segment_that_does_not_fit_becomes_an_error_and_one_that_fits_stays() {
        for (v6, header) in [(false, 20), (true, 40)] {
            // The options count: RFC 6691.
            let fits = segment(v6, 1300 - 12);
            assert_eq!(refused(&fits, fits.len(), 1300), None);
            let too_big = segment(v6, 1300 - 11);
            let error = refused(&too_big, too_big.len(), 1300).unwrap();
            let most = if v6 { 1280 - 48 } else { 576 - 28 };
            assert_eq!(read(&error, &too_big), (1300 + header + 20, most));
        }
    }

    #[test]
    fn the_mtu_told_is_one_a_link_can_have() {
        let v4 = segment(false, 1000);
        assert_eq!(read(&refused(&v4, v4.len(), 10).unwrap(), &v4).0, 68);
        let v6 = segment(true, 1400);
        assert_eq!(read(&refused(&v6, v6.len(), 536).unwrap(), &v6).0, 1280);
        // What a client sends after such an error passes, or it would never end.
        for (frame, mss) in [(segment(false, 68 - 52), 10), (segment(true, 1280 - 72), 536)] {
            assert_eq!(refused(&frame, frame.len(), mss), None);
        }
    }

    #[test]
    fn a_segment_that_may_be_fragmented_or_is_one_stays() {
        let mut frame = segment(false, 1400);
        set_fragment_field(&mut frame, 0);
        assert_eq!(refused(&frame, frame.len(), 1300), None);
        set_fragment_field(&mut frame, DONT_FRAGMENT | 0x2000);
        assert_eq!(refused(&frame, frame.len(), 1300), None);
    }

    #[test]
    fn of_a_long_segment_the_head_suffices() {
        for v6 in [false, true] {
            let frame = segment(v6, 8900);
            let error = refused(&frame, 700, 1300).unwrap();
            read(&error, &frame);
            // As much as every spare frame has room for.
            let (_, quoted) = read(&refused(&frame, 128, 1300).unwrap(), &frame);
            assert!(quoted >= 8 + if v6 { 40 } else { 20 }, "the quote names the segment");
        }
    }

    proptest! {
    #[test]
    fn any_segment_too_big_becomes_a_sound_error(v6 in any::<bool>(), len in 0usize..1500, mss in 0u16..1500, seen in 128usize..1600) {
        let frame = segment(v6, len);
        if let Some(error) = refused(&frame, seen.min(frame.len()), mss) {
            let (mtu, quoted) = read(&error, &frame);
            prop_assert!(usize::from(mtu) < frame.len() - 18 && quoted >= 28);
        }
    }

    /// The parser reads any bytes behind an ICMP header without harm.
    #[test]
    fn any_quote_is_read_without_harm(
        v6 in any::<bool>(), side in any::<bool>(), kind in 0u8..14, bytes in prop::collection::vec(any::<u8>(), 0..120),
        version in any::<bool>(), seen in 0usize..200,
    ) {
        let mut quote = bytes;
        if let (Some(first), true) = (quote.first_mut(), version) {
            *first = if v6 { 0x60 } else { 0x45 };
            if let Some(protocol) = quote.get_mut(if v6 { 6 } else { 9 }) {
                *protocol = if *protocol < 128 { TCP } else { *protocol };
            }
            // For whom it is about.
            for n in 0..if v6 { 16 } else { 4 } {
                if let Some(byte) = quote.get_mut(if v6 { 8 } else { 12 } + n) {
                    *byte = 7;
                }
            }
        }
        let link = PacketBuilder::ethernet2(CLIENT, SERVER);
        let ip = if v6 { link.ipv6([9; 16], [7; 16], 57) } else { link.ipv4([9; 4], [7; 4], 57) };
        let mut frame = Vec::new();
        if v6 {
            ip.icmpv6_raw(kind, 0, [0; 4]).write(&mut frame, &quote).unwrap();
        } else {
            ip.icmpv4_raw(kind, 0, [0; 4]).write(&mut frame, &quote).unwrap();
        }
        let total = frame.len();
        let seen = seen.min(total);
        let head = Head::new(&mut frame, 0, seen, total);
        let side = if side { Side::Lan } else { Side::Wan };
        if let Parsed::Error(quote) = Parsed::parse(side, &head) {
            prop_assert!(quote.tcp + 8 <= quote.seen && usize::from(quote.seen) <= seen);
            prop_assert!(quote.end as usize == total && (seen < total || quote.checksums_hold(&head)));
            let sender = if side == Side::Lan { quote.key.wan } else { quote.key.lan };
            prop_assert_eq!(sender[3], 0x0707_0707);
        }
    }
    }
}
