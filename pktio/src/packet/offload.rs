//! Does in software what the kernel left to a NIC: completes checksums and cuts super-frames into frames.
//!
//! On a veth pair, or behind GRO, a packet socket sees frames whose checksum holds only the pseudo-header's sum, and TCP
//! or UDP payloads of up to 64 KiB under one header. A link carries neither. The kernel describes in a virtio-net header what
//! is missing; this module completes it, on bytes alone.

use std::ops::Range;

/// Bytes of the virtio-net header that `PACKET_VNET_HDR` puts in front of a frame.
pub(crate) const VNET_HEADER: usize = 10;

/// The longest run of headers that [`Plan::new`] understands: Ethernet with two tags, IPv6 with extension headers, TCP.
pub(crate) const MAX_HEADERS: usize = 256;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// TCP with ECN: only the first segment keeps CWR, here for every TCP super-frame.
const GSO_ECN: u8 = 0x80;

/// The offloads that a virtio-net header requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Offload {
    /// Where the checksum's coverage begins and where in it the field is, when the checksum is partial.
    pub(crate) checksum: Option<(usize, usize)>,
    /// The kind of segments to cut the super-frame into, and their payload in bytes.
    pub(crate) segmentation: Option<(Kind, usize)>,
}

/// The protocol of a super-frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One sequence space; each segment continues it.
    Tcp,
    /// Independent datagrams of equal size.
    Udp,
    /// A kind that this version does not know.
    Unknown,
}

impl Offload {
    /// Reads the header; its fields are in the machine's byte order.
    pub(crate) fn parse(header: &[u8; VNET_HEADER]) -> Offload {
        let field = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        let checksum = (header[0] & NEEDS_CSUM != 0).then(|| (field(6), field(8)));
        let kind = match header[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 | GSO_TCPV6 => Some(Kind::Tcp),
            GSO_UDP_L4 => Some(Kind::Udp),
            _ => Some(Kind::Unknown),
        };
        Offload { checksum, segmentation: kind.map(|kind| (kind, field(4))) }
    }
}

/// The Internet checksum's running sum over `bytes`, added to `sum`. Several runs may be combined when all but the last have
/// an even length.
fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_be_bytes(*word));
    }
    let mut tail = [0; 4];
    tail[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(tail))
}

/// Folds a running sum and complements it.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Completes the checksum that covers `bytes[start..]` and whose field is `offset` bytes behind `start`. False, and
/// nothing is changed, when the field is outside the frame.
pub(crate) fn complete_checksum(bytes: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(covered) = bytes.get_mut(start..) else { return false };
    if offset + 2 > covered.len() {
        return false;
    }
    // The field holds the pseudo-header's sum, so that summing over it adds that. Zero means "no checksum" in UDP and is
    // sent as all ones, which for the other protocols is the same number.
    let sum = match fold(add(0, covered)) {
        0 => 0xffff,
        sum => sum,
    };
    covered[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// CRC32c of `bytes`, with the four bytes at `field` taken as zero, as SCTP has it (RFC 9260, appendix A).
fn crc32c(bytes: &[u8], field: Range<usize>) -> u32 {
    !bytes.iter().enumerate().fold(!0u32, |crc, (at, byte)| {
        let byte = if field.contains(&at) { 0 } else { *byte };
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// Completes the checksum of a frame, of the kind that its protocol has.
pub(crate) fn complete(bytes: &mut [u8], start: usize, offset: usize) -> bool {
    // The virtio-net header does not distinguish an SCTP checksum from an Internet checksum; the protocol number does.
    if offset == 8 && locate(bytes).is_some_and(|at| at.protocol == SCTP && at.transport == start) {
        let Some(covered) = bytes.get_mut(start..).filter(|covered| covered.len() >= 12) else { return false };
        let crc = crc32c(covered, 8..12);
        covered[8..12].copy_from_slice(&crc.to_le_bytes());
        return true;
    }
    complete_checksum(bytes, start, offset)
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// Where the headers of a frame begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Headers {
    network: usize,
    version: u8,
    protocol: u8,
    transport: usize,
}

/// Finds the network and the transport header behind Ethernet and any tags.
fn locate(bytes: &[u8]) -> Option<Headers> {
    let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let mut network = 14;
    let mut ethertype = word(12)?;
    while matches!(ethertype, 0x8100 | 0x88a8) && network < 14 + 4 * 4 {
        ethertype = word(network + 2)?;
        network += 4;
    }
    let first = *bytes.get(network)?;
    match (ethertype, first >> 4) {
        (0x0800, 4) if first & 15 >= 5 => {
            let transport = network + 4 * usize::from(first & 15);
            Some(Headers { network, version: 4, protocol: *bytes.get(network + 9)?, transport })
        }
        (0x86dd, 6) => {
            let mut protocol = *bytes.get(network + 6)?;
            let mut transport = network + 40;
            // Hop-by-hop options, routing, destination options: each says its length in units of eight bytes.
            while matches!(protocol, 0 | 43 | 60) && transport < network + MAX_HEADERS {
                protocol = *bytes.get(transport)?;
                transport += 8 + 8 * usize::from(*bytes.get(transport + 1)?);
            }
            Some(Headers { network, version: 6, protocol, transport })
        }
        _ => None,
    }
}

/// How a super-frame is cut into segments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    at: Headers,
    /// Where the payload begins.
    payload: usize,
    /// Where it ends; the rest is padding.
    end: usize,
    /// Bytes of payload in each segment but the last.
    size: usize,
}

impl Plan {
    /// Reads the headers of the super-frame `bytes`. `None` when it cannot be cut: an unknown kind, a tunnel whose inner
    /// headers would have to be rewritten too, or headers that contradict the kernel's.
    pub(crate) fn new(bytes: &[u8], offload: &Offload) -> Option<Plan> {
        let (kind, size) = offload.segmentation?;
        let at = locate(bytes)?;
        // In a tunnel the kernel's checksum covers the inner header, which is not the one found here.
        if size == 0 || offload.checksum.is_some_and(|(start, _)| start != at.transport) {
            return None;
        }
        let payload = match (kind, at.protocol) {
            (Kind::Tcp, TCP) => {
                let words = bytes.get(at.transport + 12)? >> 4;
                (words >= 5).then_some(at.transport + 4 * usize::from(words))?
            }
            (Kind::Udp, UDP) => at.transport + 8,
            _ => return None,
        };
        // The IP length of a super-frame is right up to 64 KiB and 0 beyond (then the frame's own length has to do).
        let stated = match at.version {
            4 => usize::from(u16::from_be_bytes([bytes[at.network + 2], bytes[at.network + 3]])),
            _ => 40 + usize::from(u16::from_be_bytes([bytes[at.network + 4], bytes[at.network + 5]])),
        };
        let end = if stated < payload - at.network { bytes.len() } else { (at.network + stated).min(bytes.len()) };
        (payload <= end && payload <= MAX_HEADERS).then_some(Plan { at, payload, end, size })
    }

    /// Segments there will be: at least one.
    pub(crate) fn count(&self) -> usize {
        (self.end - self.payload).div_ceil(self.size).max(1)
    }

    /// Writes the headers of segment `index` of the super-frame `bytes` to `headers` and returns their length and where in
    /// `bytes` the payload lies. The segment's checksums are whole.
    pub(crate) fn segment(&self, bytes: &[u8], index: usize, headers: &mut [u8; MAX_HEADERS]) -> (usize, Range<usize>) {
        let from = (self.payload + index * self.size).min(self.end);
        let to = (from + self.size).min(self.end);
        let last = to == self.end;
        let Headers { network, version, protocol, transport } = self.at;
        let head = &mut headers[..self.payload];
        head.copy_from_slice(&bytes[..self.payload]);
        // No truncation: a segment is shorter than the 16 bits of the kernel's segment size and its headers allow.
        let ip_length = self.payload - network + (to - from);
        let transport_length = self.payload - transport + (to - from);
        let pseudo = if version == 4 {
            head[network + 2..network + 4].copy_from_slice(&(ip_length as u16).to_be_bytes());
            let id = u16::from_be_bytes([head[network + 4], head[network + 5]]).wrapping_add(index as u16);
            head[network + 4..network + 6].copy_from_slice(&id.to_be_bytes());
            head[network + 10..network + 12].fill(0);
            let sum = fold(add(0, &head[network..transport]));
            head[network + 10..network + 12].copy_from_slice(&sum.to_be_bytes());
            add(0, &head[network + 12..network + 20])
        } else {
            head[network + 4..network + 6].copy_from_slice(&((ip_length - 40) as u16).to_be_bytes());
            add(0, &head[network + 8..network + 40])
        } + u64::from(protocol)
            + transport_length as u64;
        let field = if protocol == TCP {
            let sequence = u32::from_be_bytes(bytes[transport + 4..transport + 8].try_into().expect("four bytes"));
            let sequence = sequence.wrapping_add((from - self.payload) as u32);
            head[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
            // FIN and PSH belong to the last byte, CWR (RFC 3168) to the first.
            if !last {
                head[transport + 13] &= !0x09;
            }
            if index > 0 {
                head[transport + 13] &= !0x80;
            }
            transport + 16
        } else {
            head[transport + 4..transport + 6].copy_from_slice(&(transport_length as u16).to_be_bytes());
            transport + 6
        };
        head[field..field + 2].fill(0);
        // Both headers are a multiple of four bytes long, so that the sums can be joined.
        let sum = match fold(add(add(pseudo, &head[transport..]), &bytes[from..to])) {
            0 => 0xffff,
            sum => sum,
        };
        head[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        (self.payload, from..to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame with a TCP or UDP payload; its transport checksum holds the pseudo-header's sum only.
    fn frame(version: u8, tags: usize, protocol: u8, options: usize, payload: &[u8]) -> (Vec<u8>, usize) {
        let mut bytes = vec![2; 12];
        for _ in 0..tags {
            bytes.extend([0x81, 0x00, 0x00, 0x07]);
        }
        let header = if protocol == TCP { 20 + 4 * options } else { 8 };
        let length = header + payload.len();
        let pseudo = if version == 4 {
            let total = (20 + length).min(0xffff) as u16;
            bytes.extend([0x08, 0x00, 0x45, 0]);
            bytes.extend(total.to_be_bytes());
            bytes.extend([0xff, 0xff, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let network = bytes.len() - 20;
            let sum = fold(add(0, &bytes[network..]));
            bytes[network + 10..network + 12].copy_from_slice(&sum.to_be_bytes());
            add(0, &[10, 0, 0, 1, 10, 0, 0, 2])
        } else {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend((length as u16).to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend([0xfd; 32]);
            add(0, &[0xfd; 32])
        } + u64::from(protocol)
            + length as u64;
        let transport = bytes.len();
        bytes.extend([0x10, 0x00, 0x20, 0x00]);
        let field = if protocol == TCP {
            bytes.extend(0xffff_ff00_u32.to_be_bytes());
            bytes.extend([0, 0, 0, 9, 0x50 + ((options as u8) << 4), 0x99, 1, 0, 0, 0, 0, 0]);
            bytes.extend(vec![1; 4 * options]);
            transport + 16
        } else {
            bytes.extend((length as u16).to_be_bytes());
            bytes.extend([0, 0]);
            transport + 6
        };
        bytes.extend(payload);
        bytes[field..field + 2].copy_from_slice(&(!fold(pseudo)).to_be_bytes());
        (bytes, transport)
    }

    /// The transport checksum of a finished frame, over the pseudo-header: zero when right.
    fn residue(bytes: &[u8]) -> u16 {
        let at = locate(bytes).unwrap();
        let (end, addresses) = if at.version == 4 {
            assert_eq!(fold(add(0, &bytes[at.network..at.transport])), 0, "the IPv4 header's checksum");
            let total = u16::from_be_bytes([bytes[at.network + 2], bytes[at.network + 3]]);
            (at.network + usize::from(total), at.network + 12..at.network + 20)
        } else {
            let length = u16::from_be_bytes([bytes[at.network + 4], bytes[at.network + 5]]);
            (at.network + 40 + usize::from(length), at.network + 8..at.network + 40)
        };
        assert_eq!(end, bytes.len(), "the IP header's length");
        let pseudo = add(0, &bytes[addresses]) + u64::from(at.protocol) + (end - at.transport) as u64;
        fold(add(pseudo, &bytes[at.transport..end]))
    }

    #[test]
    fn the_checksum_of_a_known_header_comes_out_right() {
        // RFC 1071 §3: the sum of these is ddf2.
        assert_eq!(fold(add(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), !0xddf2);
        assert_eq!(fold(add(0, &[0xff, 0xff, 0x01])), !0x0100);
    }

    #[test]
    fn the_crc_of_the_standard_check_string_comes_out_right() {
        assert_eq!(crc32c(b"123456789", 0..0), 0xe306_9283);
    }

    #[test]
    fn a_checksum_field_outside_the_frame_changes_nothing() {
        let mut bytes = [7; 20];
        assert!(!complete_checksum(&mut bytes, 10, 9));
        assert!(!complete_checksum(&mut bytes, 21, 0));
        assert_eq!(bytes, [7; 20]);
        assert!(complete_checksum(&mut bytes, 10, 8));
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_all_ones() {
        let mut bytes = vec![0; 8];
        bytes[0..2].copy_from_slice(&[0xff, 0xff]);
        complete_checksum(&mut bytes, 0, 6);
        assert_eq!(&bytes[6..8], &[0xff, 0xff]);
    }

    #[test]
    fn an_sctp_frame_gets_its_crc() {
        let (mut bytes, transport) = frame(4, 0, SCTP, 0, &[5; 20]);
        assert!(complete(&mut bytes, transport, 8));
        let crc = u32::from_le_bytes(bytes[transport + 8..transport + 12].try_into().unwrap());
        assert_eq!(crc, crc32c(&bytes[transport..], 8..12));
    }

    #[test]
    fn only_the_first_segment_keeps_cwr_and_only_the_last_fin_and_psh() {
        let (bytes, transport) = frame(4, 0, TCP, 0, &[1; 250]);
        let offload = Offload { checksum: Some((transport, 16)), segmentation: Some((Kind::Tcp, 100)) };
        let plan = Plan::new(&bytes, &offload).unwrap();
        let flags: Vec<u8> = (0..plan.count())
            .map(|i| {
                let mut head = [0; MAX_HEADERS];
                plan.segment(&bytes, i, &mut head);
                head[transport + 13]
            })
            .collect();
        assert_eq!(flags, [0x90, 0x10, 0x19]);
    }

    #[test]
    fn a_tunnelled_super_frame_is_not_cut() {
        let (bytes, transport) = frame(4, 0, TCP, 0, &[1; 250]);
        let offload = Offload { checksum: Some((transport + 28, 16)), segmentation: Some((Kind::Tcp, 100)) };
        assert!(Plan::new(&bytes, &offload).is_none());
    }

    proptest! {
        #[test]
        fn a_completed_checksum_verifies(
            v6 in any::<bool>(), tags in 0usize..3, tcp in any::<bool>(), options in 0usize..11,
            payload in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let (mut bytes, transport) = frame(if v6 { 6 } else { 4 }, tags, if tcp { TCP } else { UDP }, options, &payload);
            let field = if tcp { 16 } else { 6 };
            prop_assert!(complete(&mut bytes, transport, field));
            prop_assert_eq!(residue(&bytes), 0);
        }

        #[test]
        fn the_segments_join_to_the_payload_and_each_verifies(
            v6 in any::<bool>(), tags in 0usize..3, tcp in any::<bool>(), options in 0usize..11,
            payload in prop::collection::vec(any::<u8>(), 0..20_000), size in 1usize..9000,
        ) {
            let size = size.max(payload.len() / 60);
            let kind = if tcp { Kind::Tcp } else { Kind::Udp };
            let (mut bytes, transport) = frame(if v6 { 6 } else { 4 }, tags, if tcp { TCP } else { UDP }, options, &payload);
            bytes.extend([0; 3]);
            let offload = Offload { checksum: Some((transport, if tcp { 16 } else { 6 })), segmentation: Some((kind, size.max(1))) };
            let plan = Plan::new(&bytes, &offload).unwrap();
            let mut joined: Vec<u8> = Vec::new();
            let mut next = 0xffff_ff00_u32;
            for index in 0..plan.count() {
                let mut head = [0; MAX_HEADERS];
                let (length, range) = plan.segment(&bytes, index, &mut head);
                let mut whole = head[..length].to_vec();
                whole.extend(&bytes[range.clone()]);
                prop_assert_eq!(residue(&whole), 0);
                if tcp {
                    prop_assert_eq!(&whole[transport + 4..transport + 8], next.to_be_bytes());
                    next = next.wrapping_add(range.len() as u32);
                }
                joined.extend(&bytes[range]);
            }
            prop_assert_eq!(joined, payload);
        }

        #[test]
        fn no_bytes_make_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..400),
            header in any::<[u8; VNET_HEADER]>(), version in 0u8..3, plausible in any::<bool>(),
        ) {
            if plausible && bytes.len() > 34 {
                bytes[12..15].copy_from_slice(match version { 0 => &[8, 0, 0x45], 1 => &[0x86, 0xdd, 0x60], _ => &[0x81, 0, 0] });
                bytes[23] = TCP;
            }
            let offload = Offload::parse(&header);
            if let Some((start, offset)) = offload.checksum {
                complete(&mut bytes, start, offset);
            }
            let offload = Offload { checksum: None, segmentation: offload.segmentation };
            if let Some(plan) = Plan::new(&bytes, &offload) {
                let mut head = [0; MAX_HEADERS];
                for index in 0..plan.count() {
                    plan.segment(&bytes, index, &mut head);
                }
            }
        }
    }
}
