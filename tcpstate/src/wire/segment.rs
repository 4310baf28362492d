//! From a frame's bytes to a TCP segment between two ends, or to what else it is.

use super::{ETHERNET_LEN, IPV4_LEN, IPV6_LEN, TCP, TCP_LEN, be16, be32, checksum};
use crate::keyed::{self, Keys};
use crate::seq::{RawWindow, SeqNum};
use crate::{DropReason, Event, Head, Side};

/// An IP address as four words in the order of the wire; an IPv4 address is held in its IPv6-mapped form (RFC 4291 section 2.5.5.2).
pub type Addr = [u32; 4];

const MAPPED: u32 = 0xffff;

/// The VLAN tags of a frame: up to two identifiers and the tag protocols, packed; zero means untagged.
///
/// Bits 0-11 the outer identifier, 12-23 the inner, 24-25 the number of tags, 26-27 and 28-29 the outer and inner tag protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Vlan(pub u32);

const TAG_PROTOCOLS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

impl Vlan {
    /// How many tags there are, 0 to 2.
    pub fn count(self) -> usize {
        (self.0 >> 24 & 3) as usize
    }

    /// The tag protocol and the identifier of tag `n`.
    pub(super) fn tag(self, n: usize) -> (u16, u16) {
        (TAG_PROTOCOLS[(self.0 >> (26 + 2 * n) & 3) as usize], (self.0 >> (12 * n) & 0xfff) as u16)
    }

    fn push(&mut self, protocol: usize, identifier: u16) {
        let n = self.count();
        self.0 += 1 << 24;
        self.0 |= u32::from(identifier) << (12 * n) | (protocol as u32) << (26 + 2 * n);
    }
}

/// The two ends of a connection, by the side of the box they are on. The identity of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ends {
    /// Address on the LAN.
    pub lan: Addr,
    /// Address on the WAN.
    pub wan: Addr,
    /// Port on the LAN.
    pub lan_port: u16,
    /// Port on the WAN.
    pub wan_port: u16,
    /// The tags the frames carry.
    pub vlan: Vlan,
    /// Whether the addresses are IPv6.
    pub v6: bool,
}

impl Ends {
    /// The keyed hash that names the flow's place in the table.
    pub fn hash(&self, keys: Keys) -> u64 {
        let [a, b, c, low, ports] = self.words();
        if self.v6 { keyed::place(keys, [a, b, c, low, ports]) } else { keyed::place(keys, [low, ports]) }
    }

    /// A signature of the ends and one word more.
    pub(crate) fn sign(&self, keys: Keys, word: u64) -> u64 {
        let [a, b, c, low, ports] = self.words();
        if self.v6 {
            keyed::signature(keys, [a, b, c, low, ports, word])
        } else {
            keyed::signature(keys, [low, ports, word])
        }
    }

    /// Both addresses, word by word; and the ports with the tags. The first three are the same for all IPv4 ends.
    #[inline(always)]
    fn words(&self) -> [u64; 5] {
        let both = |i: usize| u64::from(self.lan[i]) << 32 | u64::from(self.wan[i]);
        let ports = u64::from(self.lan_port) << 48 | u64::from(self.wan_port) << 32 | u64::from(self.vlan.0);
        [both(0), both(1), both(2), both(3), ports]
    }
}

/// The flag bits of a TCP header, with the accurate-ECN bit left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: Flags = Flags(1);
    /// Synchronise sequence numbers.
    pub const SYN: Flags = Flags(2);
    /// Reset the connection.
    pub const RST: Flags = Flags(4);
    /// The acknowledgement field is significant.
    pub const ACK: Flags = Flags(16);

    /// Whether any of these flags is set.
    pub const fn has(self, flags: Flags) -> bool {
        self.0 & flags.0 != 0
    }

    /// Both sets.
    #[must_use]
    pub const fn and(self, flags: Flags) -> Flags {
        Flags(self.0 | flags.0)
    }
}

/// A TCP segment in a frame: where its parts lie and what its fixed header says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    /// The ends, by side.
    pub ends: Ends,
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
}

impl Segment {
    /// Bytes of payload.
    pub fn payload_len(&self) -> u32 {
        self.end - u32::from(self.payload)
    }

    /// What the segment takes in sequence space: payload, SYN and FIN.
    pub fn seq_len(&self) -> u32 {
        self.payload_len() + u32::from(self.flags.has(Flags::SYN)) + u32::from(self.flags.has(Flags::FIN))
    }

    /// The bytes of the options, in the frame's.
    pub fn options<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        &frame[usize::from(self.tcp) + TCP_LEN..usize::from(self.payload)]
    }

    /// Whether the IPv4 header's and the segment's checksums are right. A segment that is not whole in sight cannot be judged and is not.
    pub fn checksums_hold(&self, head: &Head) -> bool {
        let frame = head.bytes();
        let (ip, tcp, end) = (usize::from(self.ip), usize::from(self.tcp), self.end as usize);
        if self.fragmented || end > frame.len() {
            return false;
        }
        if !self.ends.v6 {
            let header = usize::from(frame[ip] & 15) * 4;
            if checksum::sum(&frame[ip..ip + header]) != u16::MAX {
                return false;
            }
        }
        let pseudo = pseudo_header_sum(&self.ends, end - tcp);
        checksum::fold(u64::from(pseudo) + u64::from(checksum::sum(&frame[tcp..end]))) == u16::MAX
    }
}

/// The sum of the pseudo header in front of a TCP segment of `len` bytes (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub(super) fn pseudo_header_sum(ends: &Ends, len: usize) -> u16 {
    let words = if ends.v6 { 0..4 } else { 3..4 };
    let mut total = u64::from(TCP) + len as u64;
    for i in words {
        for word in [ends.lan[i], ends.wan[i]] {
            total += u64::from(word >> 16) + u64::from(word & 0xffff);
        }
    }
    checksum::fold(total)
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug)]
pub enum Parsed {
    /// A TCP segment, or the first fragment of one with its whole header.
    Tcp(Segment),
    /// Something the proxy has no business with; passed on and counted.
    Pass(Event),
    /// Something no frame may be.
    Bad(DropReason),
}

/// A later IPv4 fragment that starts at least this many bytes into the packet cannot overlap the TCP header (RFC 3128).
const IPV4_FRAGMENT_FLOOR: usize = 60;
/// The same for IPv6, whose first fragment must hold the TCP header within as many bytes.
const IPV6_FRAGMENT_FLOOR: usize = 512;

const MALFORMED: Parsed = Parsed::Bad(DropReason::Malformed);

impl Parsed {
    /// Parses a frame that came in on `side`.
    pub fn parse(side: Side, head: &Head) -> Parsed {
        let frame = head.bytes();
        if frame.len() < ETHERNET_LEN {
            return MALFORMED;
        }
        let mut vlan = Vlan::default();
        let mut at = ETHERNET_LEN;
        let mut ether_type = be16(frame, 12);
        while let Some(protocol) = TAG_PROTOCOLS.iter().position(|&tpid| tpid == ether_type) {
            if vlan.count() == 2 {
                return Parsed::Pass(Event::Bridged);
            }
            if frame.len() < at + 4 {
                return MALFORMED;
            }
            vlan.push(protocol, be16(frame, at) & 0xfff);
            ether_type = be16(frame, at + 2);
            at += 4;
        }
        match ether_type {
            0x0800 => Self::ipv4(side, head, at, vlan),
            0x86dd => Self::ipv6(side, head, at, vlan),
            _ => Parsed::Pass(Event::Bridged),
        }
    }

    fn ipv4(side: Side, head: &Head, ip: usize, vlan: Vlan) -> Parsed {
        let frame = head.bytes();
        if frame.len() < ip + IPV4_LEN || frame[ip] >> 4 != 4 {
            return MALFORMED;
        }
        let header = usize::from(frame[ip] & 15) * 4;
        let total = usize::from(be16(frame, ip + 2));
        if header < IPV4_LEN || total < header || ip + header > frame.len() || ip + total > head.total() {
            return MALFORMED;
        }
        if frame[ip + 9] != TCP {
            return Parsed::Pass(Event::Bridged);
        }
        let fragment = be16(frame, ip + 6);
        let offset = usize::from(fragment & 0x1fff) * 8;
        let more = fragment & 0x2000 != 0;
        if offset >= IPV4_FRAGMENT_FLOOR {
            return Parsed::Pass(Event::Fragment);
        }
        if offset > 0 {
            return Parsed::Bad(DropReason::BadFragment);
        }
        let mapped = |at| [0, 0, MAPPED, be32(frame, at)];
        let addresses = (mapped(ip + 12), mapped(ip + 16));
        Self::tcp(side, head, Layout { ip, tcp: ip + header, end: ip + total, more, vlan, addresses, v6: false })
    }

    fn ipv6(side: Side, head: &Head, ip: usize, vlan: Vlan) -> Parsed {
        let frame = head.bytes();
        if frame.len() < ip + IPV6_LEN || frame[ip] >> 4 != 6 {
            return MALFORMED;
        }
        let end = ip + IPV6_LEN + usize::from(be16(frame, ip + 4));
        if end > head.total() {
            return MALFORMED;
        }
        let mut next = frame[ip + 6];
        let mut at = ip + IPV6_LEN;
        let mut fragment_payload = None;
        // RFC 8200 section 4.1 recommends an order, section 4 demands that any be accepted.
        loop {
            let len = match next {
                TCP => break,
                0 | 43 | 60 => 8,
                44 => 8,
                51 => 8,
                _ => return Parsed::Pass(Event::Bridged),
            };
            if at + len > end || at + len > frame.len() {
                return MALFORMED;
            }
            let size = match next {
                44 => {
                    let field = be16(frame, at + 2);
                    let offset = usize::from(field & 0xfff8);
                    if offset >= IPV6_FRAGMENT_FLOOR {
                        return Parsed::Pass(Event::Fragment);
                    }
                    if offset > 0 || fragment_payload.is_some() {
                        return Parsed::Bad(DropReason::BadFragment);
                    }
                    // RFC 6946: a fragment header on a packet in one piece is no fragment.
                    if field & 1 != 0 {
                        fragment_payload = Some(at + 8);
                    }
                    8
                }
                51 => (usize::from(frame[at + 1]) + 2) * 4,
                _ => (usize::from(frame[at + 1]) + 1) * 8,
            };
            next = frame[at];
            at += size;
            if at > end || at > frame.len() {
                // RFC 7112: the first fragment must hold the whole header chain.
                return if fragment_payload.is_some() { Parsed::Bad(DropReason::BadFragment) } else { MALFORMED };
            }
        }
        let address = |at| [be32(frame, at), be32(frame, at + 4), be32(frame, at + 8), be32(frame, at + 12)];
        let addresses = (address(ip + 8), address(ip + 24));
        let parsed = Self::tcp(
            side,
            head,
            Layout { ip, tcp: at, end, more: fragment_payload.is_some(), vlan, addresses, v6: true },
        );
        match (parsed, fragment_payload) {
            (Parsed::Tcp(segment), Some(from)) if usize::from(segment.payload) > from + IPV6_FRAGMENT_FLOOR => {
                Parsed::Bad(DropReason::BadFragment)
            }
            (parsed, _) => parsed,
        }
    }

    fn tcp(side: Side, head: &Head, layout: Layout) -> Parsed {
        let frame = head.bytes();
        let Layout { ip, tcp, end, more, vlan, addresses: (source, destination), v6 } = layout;
        let short = if more { Parsed::Bad(DropReason::BadFragment) } else { MALFORMED };
        if tcp + TCP_LEN > end || tcp + TCP_LEN > frame.len() {
            return short;
        }
        let header = usize::from(frame[tcp + 12] >> 4) * 4;
        if header < TCP_LEN {
            return MALFORMED;
        }
        if tcp + header > end || tcp + header > frame.len().min(usize::from(u16::MAX)) {
            return short;
        }
        let (from, to) = (be16(frame, tcp), be16(frame, tcp + 2));
        let ends = match side {
            Side::Lan => Ends { lan: source, wan: destination, lan_port: from, wan_port: to, vlan, v6 },
            Side::Wan => Ends { lan: destination, wan: source, lan_port: to, wan_port: from, vlan, v6 },
        };
        Parsed::Tcp(Segment {
            ends,
            seq: SeqNum::new(be32(frame, tcp + 4)),
            ack: SeqNum::new(be32(frame, tcp + 8)),
            flags: Flags(frame[tcp + 13]),
            window: RawWindow(be16(frame, tcp + 14)),
            // None is cut short: the headers end below 64 KiB, as just seen.
            ip: ip as u16,
            tcp: tcp as u16,
            payload: (tcp + header) as u16,
            end: end as u32,
            fragmented: more,
        })
    }
}

/// Where the IP layer found the parts.
struct Layout {
    ip: usize,
    tcp: usize,
    end: usize,
    more: bool,
    vlan: Vlan,
    addresses: (Addr, Addr),
    v6: bool,
}
