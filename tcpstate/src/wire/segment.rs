//! A TCP segment in a frame and the connection it belongs to, and where the parts of an IP packet are.

use core::net::{IpAddr, SocketAddr};

use super::options::{Options, TIMESTAMPS_ROOM, Timestamps};
use super::tags::{IDENTIFIER, TAG_PROTOCOLS, Tags, Vlan};
use super::{ETHERNET_LEN, Error, Flags, IPV4_LEN, IPV6_LEN, Kind, TCP, TCP_LEN, be16, be32, checksum, chunk};
use crate::keyed::{self, Keys};
use crate::seq::{RawWindow, SeqNum};
use crate::{Head, Side};

/// An IP address as four 32-bit words, the most significant first; an IPv4 address is held in its IPv6-mapped form (RFC 4291 section 2.5.5.2).
pub type Addr = [u32; 4];

const MAPPED: u32 = 0xffff;

/// Bytes of a TCP header that holds timestamps in the common layout and no other option.
const LEN_WITH_TIMESTAMPS: usize = TCP_LEN + TIMESTAMPS_ROOM;

/// The 4-tuple of a connection, sorted by the side of the box, and its VLAN tags: the identity of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlowKey {
    /// Address on the LAN.
    pub lan: Addr,
    /// Address on the WAN.
    pub wan: Addr,
    /// Port on the LAN.
    pub lan_port: u16,
    /// Port on the WAN.
    pub wan_port: u16,
    /// The VLAN tags of its frames.
    pub vlan: Vlan,
    /// Whether the addresses are IPv6.
    pub v6: bool,
}

impl FlowKey {
    /// The address and port on this side.
    pub fn socket(&self, side: Side) -> SocketAddr {
        let (address, port) = match side {
            Side::Lan => (&self.lan, self.lan_port),
            Side::Wan => (&self.wan, self.wan_port),
        };
        let bits = address.iter().fold(0, |bits, &word| bits << 32 | u128::from(word));
        let ip = if self.v6 { IpAddr::V6(bits.into()) } else { IpAddr::V4((bits as u32).into()) };
        SocketAddr::new(ip, port)
    }

    /// The keyed hash of the key. The flow table finds flows by it, and a cookie's MAC covers it instead of the key: a cookie cannot be used by
    /// another connection because an attacker without the secret cannot find two keys of one hash.
    // By value, so that a parsed key can be hashed in registers.
    #[inline(always)]
    pub fn hash(self, keys: Keys) -> u64 {
        let both = |i: usize| u64::from(self.lan[i]) << 32 | u64::from(self.wan[i]);
        let ports = u64::from(self.lan_port) << 48 | u64::from(self.wan_port) << 32 | u64::from(self.vlan.0);
        if self.v6 {
            keyed::place(keys, [both(0), both(1), both(2), both(3), ports])
        } else {
            keyed::place(keys, [both(3), ports])
        }
    }
}

/// A TCP segment in a frame: where its parts are and what its fixed header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The connection it belongs to.
    pub key: FlowKey,
    /// Sequence number.
    pub seq: SeqNum,
    /// Acknowledgement number; meaningful with [`Flags::ACK`].
    pub ack: SeqNum,
    /// Flags.
    pub flags: Flags,
    /// Window field.
    pub window: RawWindow,
    /// Offset of the IP header in the frame.
    pub ip: u16,
    /// Offset of the TCP header in the frame.
    pub tcp: u16,
    /// Offset of the payload in the frame.
    pub payload: u16,
    /// Offset of the IP packet's end in the frame, which may lie beyond the head's visible bytes; padding follows it.
    pub end: u32,
    /// Whether this is the first of several fragments.
    pub fragmented: bool,
    /// The hop limit the packet came with (in IPv4: time to live).
    pub ttl: u8,
    /// Whether an IPv6 routing header, a home address option or an IPv4 source route names an end that the IP header does not: the key and the
    /// checksum are of that end, and an answer of the box, which bears no such header, would not be the end's.
    pub indirect: bool,
}

impl Segment {
    /// The segment in an IPv4 frame that came in on `side`, if it is in the common place: not fragmented, and directly behind an IP header without
    /// options. `None` says nothing about the frame; [`Parsed::parse`](super::Parsed::parse) parses any.
    #[inline(always)]
    pub fn common_ipv4(side: Side, head: &Head) -> Option<Segment> {
        match untag(head.bytes())? {
            (ip, vlan, ETHER_IPV4) => match Layout::ipv4(head, ip, vlan)? {
                (layout, TCP, false) if layout.payload == ip + IPV4_LEN => Self::at(side, head, &layout).ok(),
                _ => None,
            },
            _ => None,
        }
    }

    /// The same for IPv6. A function of its own keeps what it finds in registers.
    #[inline(always)]
    pub fn common_ipv6(side: Side, head: &Head) -> Option<Segment> {
        match untag(head.bytes())? {
            (ip, vlan, ETHER_IPV6) => match Layout::ipv6(head, ip, vlan)? {
                (layout, TCP) => Self::at(side, head, &layout).ok(),
                _ => None,
            },
            _ => None,
        }
    }

    /// The segment that is the payload of `layout`.
    ///
    /// # Errors
    /// If its header is not whole in sight, or says what cannot be.
    #[inline(always)]
    pub(super) fn at(side: Side, head: &Head, layout: &Layout) -> Result<Segment, Error> {
        let frame = head.bytes();
        let Layout { ip, payload: tcp, end, more, ttl, indirect, .. } = *layout;
        let short = if more { Error::BadFragment } else { Error::Malformed };
        let fixed = chunk::<TCP_LEN>(frame, tcp).filter(|_| tcp + TCP_LEN <= end).ok_or(short)?;
        let word = be16(fixed, 12);
        let header = usize::from(word >> 12) * 4;
        if header < TCP_LEN {
            return Err(Error::Malformed);
        }
        if tcp + header > end || tcp + header > frame.len().min(usize::from(u16::MAX)) {
            return Err(short);
        }
        Ok(Segment {
            key: layout.key(side, be16(fixed, 0), be16(fixed, 2)),
            seq: SeqNum::new(be32(fixed, 4)),
            ack: SeqNum::new(be32(fixed, 8)),
            flags: Flags::of(word),
            window: RawWindow(be16(fixed, 14)),
            // No cast truncates: the headers end below 64 KiB, as checked above.
            ip: ip as u16,
            tcp: tcp as u16,
            payload: (tcp + header) as u16,
            end: end as u32,
            fragmented: more,
            ttl,
            indirect,
        })
    }

    /// What the segment does, by its flags.
    #[inline(always)]
    pub fn kind(&self) -> Kind {
        self.flags.kind()
    }

    /// Bytes of payload.
    #[inline(always)]
    pub fn payload_len(&self) -> u32 {
        self.end - u32::from(self.payload)
    }

    /// SEG.LEN (RFC 9293 section 3.3.1): the bytes of payload, and one each for SYN and FIN.
    pub fn seq_len(&self) -> u32 {
        self.payload_len() + u32::from(self.flags.has(Flags::SYN)) + u32::from(self.flags.has(Flags::FIN))
    }

    /// The bytes of the options.
    pub fn options<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        &frame[usize::from(self.tcp) + TCP_LEN..usize::from(self.payload)]
    }

    /// The timestamps if they are the only option, in the layout every stack uses (RFC 7323 appendix A); `Some(None)` if there is no option;
    /// `None` if there is any other.
    #[inline(always)]
    pub fn common_options(&self, frame: &[u8]) -> Option<Option<Timestamps>> {
        match usize::from(self.payload - self.tcp) {
            TCP_LEN => Some(None),
            LEN_WITH_TIMESTAMPS => {
                let options = chunk::<TIMESTAMPS_ROOM>(frame, usize::from(self.tcp) + TCP_LEN)?;
                Options::common_timestamps(options).map(Some)
            }
            _ => None,
        }
    }

    /// The segment in a copy of its frame whose IP header is at `ip`.
    pub(crate) fn moved(&self, ip: usize) -> Segment {
        let by = (ip as u16).wrapping_sub(self.ip);
        let [ip, tcp, payload] = [self.ip, self.tcp, self.payload].map(|at| at.wrapping_add(by));
        let end = self.end - u32::from(self.ip) + u32::from(ip);
        Segment { ip, tcp, payload, end, ..*self }
    }

    /// Whether any VLAN tag of its frame is a priority tag.
    #[inline(always)]
    pub fn has_priority_tag(&self) -> bool {
        let ip = usize::from(self.ip);
        ip != ETHERNET_LEN && ip != ETHERNET_LEN + 4 * self.key.vlan.count()
    }

    /// Whether there are neither IPv4 options nor IPv6 extension headers.
    pub fn has_plain_header(&self) -> bool {
        self.tcp - self.ip == if self.key.v6 { 40 } else { 20 }
    }

    /// The class of the packet (RFC 2474): the upper six bits of its traffic class, in IPv4 of its type of service; the lower two are zero.
    #[inline(always)]
    pub fn class(&self, frame: &[u8]) -> u8 {
        let ip = usize::from(self.ip);
        if self.key.v6 { (frame[ip] << 4 | frame[ip + 1] >> 4) & 0xfc } else { frame[ip + 1] & 0xfc }
    }

    /// The ECN field of the packet (RFC 3168 section 5): the lower two bits of its traffic class, in IPv4 of its type of service.
    #[inline(always)]
    pub fn ecn(&self, frame: &[u8]) -> u8 {
        let byte = frame[usize::from(self.ip) + 1];
        (if self.key.v6 { byte >> 4 } else { byte }) & 3
    }

    /// Whether the IPv4 header's and the segment's checksums are right. False if not all of the segment is visible: it cannot be checked.
    #[inline(never)]
    pub fn checksums_hold(&self, head: &Head) -> bool {
        self.checksums_hold_inline(head)
    }

    /// The same, inlined: for the path that answers a flood.
    #[inline(always)]
    pub(super) fn checksums_hold_inline(&self, head: &Head) -> bool {
        let frame = head.bytes();
        let (ip, tcp, end) = (usize::from(self.ip), usize::from(self.tcp), self.end as usize);
        if self.fragmented || end > frame.len() {
            return false;
        }
        if !self.key.v6 {
            let header = usize::from(frame[ip] & 15) * 4;
            let sum = match frame[ip..].first_chunk::<IPV4_LEN>() {
                Some(common) if header == IPV4_LEN => checksum::sum(common),
                _ => checksum::sum(&frame[ip..ip + header]),
            };
            if sum != u16::MAX {
                return false;
            }
        }
        let segment = &frame[tcp..end];
        // Two lengths of most segments without payload, written out so that the compiler unrolls the sum.
        let sum = if let Ok(with_timestamps) = <&[u8; LEN_WITH_TIMESTAMPS]>::try_from(segment) {
            checksum::sum(with_timestamps)
        } else if let Ok(common_syn) = <&[u8; TCP_LEN + 20]>::try_from(segment) {
            checksum::sum(common_syn)
        } else {
            checksum::sum(segment)
        };
        checksum::fold(pseudo_header_sum(&self.key, segment.len()) + u64::from(sum)) == u16::MAX
    }
}

/// The sum, not folded, of the pseudo header in front of a TCP segment of `len` bytes (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline(always)]
pub(super) fn pseudo_header_sum(key: &FlowKey, len: usize) -> u64 {
    let both = |i: usize| u64::from(key.lan[i]) + u64::from(key.wan[i]);
    let upper = if key.v6 { both(0) + both(1) + both(2) } else { 0 };
    u64::from(TCP) + len as u64 + upper + both(3)
}

/// What the fragments of one packet have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The sender's address.
    pub source: Addr,
    /// The receiver's address.
    pub destination: Addr,
    /// The identification field of the packet; 16 bits in IPv4.
    pub identification: u32,
    /// The VLAN tags of the frame.
    pub vlan: Vlan,
    /// Whether the addresses are IPv6.
    pub v6: bool,
    /// Whether it is the first, so that the others hold no TCP header either.
    pub first: bool,
}

impl Fragment {
    /// The packet of which `segment` in `frame`, from `side`, is the first fragment; `None` if it is not fragmented, or no longer.
    pub fn first_of(frame: &[u8], segment: &Segment, side: Side) -> Option<Fragment> {
        let ip = usize::from(segment.ip);
        let FlowKey { lan, wan, v6, .. } = segment.key;
        let identification = if v6 {
            extension_headers(frame, ip, frame.len()).ok()?.piece?.identification
        } else if be16(frame, ip + 6) & MORE_FRAGMENTS != 0 {
            u32::from(be16(frame, ip + 4))
        } else {
            return None;
        };
        let (source, destination) = match side {
            // Those of the IP header: an end that another header names may be named in the first fragment alone.
            _ if segment.indirect && v6 => (ipv6_address(frame, ip + 8), ipv6_address(frame, ip + 24)),
            _ if segment.indirect => (ipv4_address(frame, ip + 12), ipv4_address(frame, ip + 16)),
            Side::Lan => (lan, wan),
            Side::Wan => (wan, lan),
        };
        // Those of the frame: a connection may be known by those of the other direction.
        let vlan = Tags::of(frame, ip).vlan();
        Some(Fragment { source, destination, identification, vlan, v6, first: true })
    }

    /// A keyed hash of the packet: the same for each of its fragments.
    pub fn hash(&self, keys: Keys) -> u64 {
        let both = |i: usize| u64::from(self.source[i]) << 32 | u64::from(self.destination[i]);
        let packet = u64::from(self.identification) << 32 | u64::from(self.vlan.0);
        if self.v6 {
            keyed::place(keys, [both(0), both(1), both(2), both(3), packet])
        } else {
            keyed::place(keys, [both(3), packet])
        }
    }
}

/// The bits of an IPv4 fragment's offset, in units of eight bytes.
pub(super) const FRAGMENT_OFFSET: u16 = 0x1fff;
/// The flag beside an IPv4 fragment's offset that says that more fragments follow.
const MORE_FRAGMENTS: u16 = 0x2000;

pub(super) const ETHER_IPV4: u16 = 0x0800;
pub(super) const ETHER_IPV6: u16 = 0x86dd;

/// The offset of the payload behind Ethernet header and VLAN tags, the tags, and its EtherType; `None` if the frame is too short.
#[inline(always)]
pub(super) fn untag(frame: &[u8]) -> Option<(usize, Vlan, u16)> {
    let ether_type = be16(frame.first_chunk::<ETHERNET_LEN>()?, 12);
    match ether_type {
        ETHER_IPV4 | ETHER_IPV6 => Some((ETHERNET_LEN, Vlan::default(), ether_type)),
        _ => untag_slowly(frame, ether_type),
    }
}

#[inline(never)]
fn untag_slowly(frame: &[u8], mut ether_type: u16) -> Option<(usize, Vlan, u16)> {
    let (mut at, mut vlan) = (ETHERNET_LEN, Vlan::default());
    while at < ETHERNET_LEN + 8
        && let Some(protocol) = TAG_PROTOCOLS.iter().position(|&tpid| tpid == ether_type)
    {
        let tag = chunk::<4>(frame, at)?;
        vlan.push(protocol, be16(tag, 0) & IDENTIFIER);
        ether_type = be16(tag, 2);
        at += 4;
    }
    Some((at, vlan, ether_type))
}

/// Where the parts of an IP packet are, as offsets in the frame.
pub(super) struct Layout {
    pub ip: usize,
    /// Of the payload of IP.
    pub payload: usize,
    pub end: usize,
    /// Whether this is the first of several fragments.
    pub more: bool,
    pub vlan: Vlan,
    /// Source and destination.
    pub addresses: (Addr, Addr),
    pub v6: bool,
    /// As in [`Segment`].
    pub ttl: u8,
    /// As in [`Segment`].
    pub indirect: bool,
}

impl Layout {
    /// The layout with the ends that extension headers name.
    pub fn between(self, chain: &Chain) -> Self {
        let (source, destination) = self.addresses;
        let addresses = (chain.home.unwrap_or(source), chain.last.unwrap_or(destination));
        Layout { addresses, indirect: chain.is_indirect(), ..self }
    }

    /// The layout of the IPv4 packet at `ip`, its protocol and whether it is a fragment; `None` if it is malformed.
    #[inline(always)]
    pub fn ipv4(head: &Head, ip: usize, vlan: Vlan) -> Option<(Layout, u8, bool)> {
        let frame = head.bytes();
        let fixed = chunk::<IPV4_LEN>(frame, ip)?;
        let header = usize::from(fixed[0] & 15) * 4;
        let total = usize::from(be16(fixed, 2));
        let (payload, end) = (ip + header, ip + total);
        if fixed[0] >> 4 != 4 || header < IPV4_LEN || total < header || payload > frame.len() || end > head.total() {
            return None;
        }
        let is_fragment = be16(fixed, 6) & (FRAGMENT_OFFSET | MORE_FRAGMENTS) != 0;
        let addresses = (ipv4_address(fixed, 12), ipv4_address(fixed, 16));
        Some((
            Layout { ip, payload, end, more: false, vlan, addresses, v6: false, ttl: fixed[8], indirect: false },
            fixed[9],
            is_fragment,
        ))
    }

    /// The layout of the IPv6 packet at `ip` as if it had no extension header, and its next-header field; `None` if it is malformed.
    #[inline(always)]
    pub fn ipv6(head: &Head, ip: usize, vlan: Vlan) -> Option<(Layout, u8)> {
        let fixed = chunk::<IPV6_LEN>(head.bytes(), ip)?;
        let payload = ip + IPV6_LEN;
        let end = payload + usize::from(be16(fixed, 4));
        if fixed[0] >> 4 != 6 || end > head.total() {
            return None;
        }
        let addresses = (ipv6_address(fixed, 8), ipv6_address(fixed, 24));
        Some((
            Layout { ip, payload, end, more: false, vlan, addresses, v6: true, ttl: fixed[7], indirect: false },
            fixed[6],
        ))
    }

    /// The key of a segment that came in on `side`, with these source and destination ports.
    #[inline(always)]
    pub fn key(&self, side: Side, from: u16, to: u16) -> FlowKey {
        let Layout { vlan, addresses: (source, destination), v6, .. } = *self;
        match side {
            Side::Lan => FlowKey { lan: source, wan: destination, lan_port: from, wan_port: to, vlan, v6 },
            Side::Wan => FlowKey { lan: destination, wan: source, lan_port: to, wan_port: from, vlan, v6 },
        }
    }

    /// The fragment this is of the packet with this identification.
    pub fn fragment(&self, identification: u32, first: bool) -> Fragment {
        let Layout { vlan, addresses: (source, destination), v6, .. } = *self;
        Fragment { source, destination, identification, vlan, v6, first }
    }
}

/// The IPv4 address at this offset.
#[inline(always)]
pub(super) fn ipv4_address(frame: &[u8], at: usize) -> Addr {
    [0, 0, MAPPED, be32(frame, at)]
}

/// The IPv6 address at this offset.
#[inline(always)]
pub(super) fn ipv6_address(frame: &[u8], at: usize) -> Addr {
    [be32(frame, at), be32(frame, at + 4), be32(frame, at + 8), be32(frame, at + 12)]
}

/// The last address of a source route among these IPv4 options, if the packet has not reached the last but one yet (RFC 791 section 3.1).
pub(super) fn source_route(options: &[u8]) -> Option<Addr> {
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        match kind {
            END_OF_OPTIONS => break,
            NO_OPERATION => at += 1,
            _ => {
                let len = usize::from(*options.get(at + 1)?);
                let option = options.get(at..at + len).filter(|_| len >= 2)?;
                if matches!(kind, LOOSE_ROUTE | STRICT_ROUTE) && len >= 7 && usize::from(option[2]) + 3 <= len {
                    return Some(ipv4_address(option, len - 4));
                }
                at += len;
            }
        }
    }
    None
}

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_ROUTE: u8 = 131;
const STRICT_ROUTE: u8 = 137;

/// What follows the extension headers of an IPv6 packet.
pub(super) struct Chain {
    /// The next-header field of the last of them; in a later fragment, of its fragment header.
    pub next: u8,
    /// The offset behind them.
    pub at: usize,
    /// What the fragment header says, if the packet is a fragment.
    pub piece: Option<Piece>,
    /// The source, if a home address option names it (RFC 6275 section 6.3).
    pub home: Option<Addr>,
    /// The destination, if a routing header with segments left names it.
    pub last: Option<Addr>,
    /// Whether one of them is not understood: whatever follows is between the ends, and not the proxy's.
    pub foreign: bool,
}

impl Chain {
    /// Whether they name an end that the IPv6 header does not.
    pub fn is_indirect(&self) -> bool {
        self.home.is_some() || self.last.is_some()
    }
}

/// What an IPv6 fragment header says.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    /// The offset of the fragmented part in the frame.
    pub from: usize,
    /// Its offset in the original packet, in bytes.
    pub offset: usize,
    /// Which packet it is of.
    pub identification: u32,
}

/// Walks the extension headers of the IPv6 packet at `ip`, which ends at `end`, in whatever order they come: RFC 8200 section 4.1
/// recommends one and demands that any be accepted.
///
/// It walks all headers of the common format (RFC 6564), and the older ones of their own format, to find the fragment header wherever it stands.
/// It understands in full: options that may be skipped and the home address, routing of known types, and the fragment header. Others make the packet
/// [foreign](Chain::foreign): authentication (RFC 4302), which covers what the proxy would change, mobility, HIP and Shim6, whose peers use other
/// addresses in the checksum, options that must not be skipped, and routing of unknown types. Encapsulation (RFC 4303), experiments (253, 254) and
/// unknown numbers are protocols other than TCP to it.
pub(super) fn extension_headers(frame: &[u8], ip: usize, end: usize) -> Result<Chain, Error> {
    let mut chain =
        Chain { next: frame[ip + 6], at: ip + IPV6_LEN, piece: None, home: None, last: None, foreign: false };
    loop {
        let header = chain.at;
        // RFC 7112: the first fragment must hold the whole chain.
        let cut = if chain.piece.is_some() { Error::BadFragment } else { Error::Malformed };
        if header > end || header > frame.len() {
            return Err(cut);
        }
        let kind = chain.next;
        if !matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HIP | SHIM6) {
            return Ok(chain);
        }
        if header + 8 > end || header + 8 > frame.len() {
            return Err(cut);
        }
        if kind == FRAGMENT {
            if chain.piece.is_some() {
                return Err(Error::BadFragment);
            }
            let field = be16(frame, header + 2);
            let offset = usize::from(field & 0xfff8);
            chain.at = header + 8;
            // RFC 6946: an atomic fragment, offset zero and no more fragments, is a whole packet.
            if field & 0xfff9 != 0 {
                chain.piece = Some(Piece { from: chain.at, offset, identification: be32(frame, header + 4) });
            }
            chain.next = frame[header];
            if offset > 0 {
                return Ok(chain);
            }
            continue;
        }
        let len = usize::from(frame[header + 1]);
        let behind = header + if kind == AUTHENTICATION { (len + 2) * 4 } else { (len + 1) * 8 };
        let Some(bytes) = frame.get(header..behind).filter(|_| behind <= end) else { return Err(cut) };
        chain.foreign |= !match kind {
            ROUTING => chain.note_route(bytes, ipv6_address(frame, ip + 24)),
            HOP_BY_HOP | DESTINATION => chain.note_options(&bytes[2..], kind),
            _ => false,
        };
        (chain.next, chain.at) = (frame[header], behind);
    }
}

impl Chain {
    /// Reads a routing header of a packet sent to `destination`; returns whether it is understood.
    fn note_route(&mut self, header: &[u8], destination: Addr) -> bool {
        let (kind, left) = (header[2], usize::from(header[3]));
        // RFC 8200 section 4.4: with no segment left, a header of any type is ignored.
        if left == 0 {
            return true;
        }
        let last = match kind {
            // RFC 2460 section 4.4, RFC 6275 section 6.4: whole addresses, the last at the end. Type 2 has one.
            0 | 2 if header.len() % 16 == 8 && left <= header.len() / 16 && (kind == 0 || header.len() == 24) => {
                Some(ipv6_address(header, header.len() - 16))
            }
            3 => last_compressed(header, destination),
            // RFC 8754 section 2: the list is in reverse order, and may lack the first segment, which is in the IPv6 header.
            4 if 24 + 16 * usize::from(header[4]) <= header.len() && left <= usize::from(header[4]) + 1 => {
                Some(ipv6_address(header, 8))
            }
            _ => None,
        };
        let is_first = self.last.is_none();
        self.last = self.last.or(last);
        is_first && last.is_some()
    }

    /// Reads the options of a hop-by-hop or destination options header; returns whether they are understood or may be skipped by hosts that do not
    /// understand them (RFC 8200 section 4.2: the two highest bits are zero).
    fn note_options(&mut self, options: &[u8], header: u8) -> bool {
        let mut at = 0;
        while let Some(&kind) = options.get(at) {
            if kind == PAD_1 {
                at += 1;
                continue;
            }
            let Some(len) = options.get(at + 1).map(|&len| usize::from(len)) else { return false };
            let Some(value) = options.get(at + 2..at + 2 + len) else { return false };
            match kind {
                HOME_ADDRESS if header == DESTINATION && len == 16 && self.home.is_none() => {
                    self.home = Some(ipv6_address(value, 0));
                }
                skipped if skipped >> 6 == 0 => {}
                _ => return false,
            }
            at += 2 + len;
        }
        true
    }
}

/// The last address of a source route of RPL (RFC 6554 section 3), which leaves out what it has in common with the packet's destination.
fn last_compressed(header: &[u8], destination: Addr) -> Option<Addr> {
    let (own, own_of_last) = (16 - usize::from(header[4] >> 4), 16 - usize::from(header[4] & 15));
    let addresses = (header.len() - 8).checked_sub(usize::from(header[5] >> 4))?;
    let before = addresses.checked_sub(own_of_last)?;
    if before % own != 0 || usize::from(header[3]) > before / own + 1 {
        return None;
    }
    let mut last = [0; 16];
    for (bytes, word) in last.as_chunks_mut().0.iter_mut().zip(destination) {
        *bytes = word.to_be_bytes();
    }
    last[16 - own_of_last..].copy_from_slice(&header[8 + before..8 + addresses]);
    Some(ipv6_address(&last, 0))
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

const PAD_1: u8 = 0;
const HOME_ADDRESS: u8 = 0xc9;
