//! Completes a checksum where the kernel says that it is missing, and cuts super-frames into frames, through tunnels as well.
//!
//! The kernel describes in a virtio-net header what it left undone.

use std::ops::Range;

use super::checksum::{add, crc32c, finish, fold};
use super::headers::{GRE, GRE_CHECKSUM, GRE_SEQUENCE, Layer, MAX_HEADERS, MAX_LAYERS, SCTP, TCP, UDP, word};

/// Bytes of the virtio-net header that `PACKET_VNET_HDR` puts in front of a frame.
pub(crate) const VNET_HEADER: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// TCP with ECN as in RFC 3168: CWR belongs to the first segment. Without it CWR is a bit of a counter (AccECN) and on all of them.
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
    Tcp {
        /// Only the first segment keeps CWR.
        cwr_once: bool,
    },
    /// Independent datagrams of equal size.
    Udp,
    /// A kind that this version does not know.
    Unknown,
}

impl Kind {
    fn protocol(self) -> Option<u8> {
        match self {
            Kind::Tcp { .. } => Some(TCP),
            Kind::Udp => Some(UDP),
            Kind::Unknown => None,
        }
    }
}

impl Offload {
    /// Reads the header; its fields are in the machine's byte order.
    pub(crate) fn parse(header: &[u8; VNET_HEADER]) -> Offload {
        let field = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        let checksum = (header[0] & NEEDS_CSUM != 0).then(|| (field(6), field(8)));
        let kind = match header[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 | GSO_TCPV6 => Some(Kind::Tcp { cwr_once: header[1] & GSO_ECN != 0 }),
            GSO_UDP_L4 => Some(Kind::Udp),
            _ => Some(Kind::Unknown),
        };
        Offload { checksum, segmentation: kind.map(|kind| (kind, field(4))) }
    }
}

/// Completes the checksum that covers `bytes[start..]` and whose field is `offset` bytes behind `start`. False, and
/// nothing is changed, when the field is outside the frame.
fn complete_checksum(bytes: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(covered) = bytes.get_mut(start..) else { return false };
    if offset + 2 > covered.len() {
        return false;
    }
    // The field holds the pseudo-header's sum, so that summing over it adds that.
    let sum = finish(add(0, covered));
    covered[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Completes the checksum of a frame, of the kind that its protocol has. False when its place is outside the frame.
pub(crate) fn complete(bytes: &mut [u8], start: usize, offset: usize) -> bool {
    // The virtio-net header does not distinguish an SCTP checksum from an Internet checksum; the protocol number does.
    if offset == 8 && find(bytes, SCTP, Some(start)).is_some() {
        let Some(covered) = bytes.get_mut(start..).filter(|covered| covered.len() >= 12) else { return false };
        covered[8..12].fill(0);
        let crc = !crc32c(!0, covered);
        covered[8..12].copy_from_slice(&crc.to_le_bytes());
        return true;
    }
    complete_checksum(bytes, start, offset)
}

/// The layers of a frame, outermost first.
type Layers = ([Layer; MAX_LAYERS], usize);

/// The layers down to the one that carries `protocol`: at `start`, if that is known.
fn find(bytes: &[u8], protocol: u8, start: Option<usize>) -> Option<Layers> {
    let mut layers = [Layer::in_ethernet(bytes, 0)?; MAX_LAYERS];
    for depth in 1..=MAX_LAYERS {
        let layer = layers[depth - 1];
        if layer.protocol == protocol && start.is_none_or(|start| start == layer.transport) {
            return Some((layers, depth));
        }
        let Some(inner) = layer.inner(bytes).filter(|_| depth < MAX_LAYERS) else { break };
        layers[depth] = inner;
    }
    // A tunnel of a kind that is not known: the outer header is known, and where the inner transport header begins.
    layers[1] = Layer::before(bytes, start?, protocol).filter(|inner| inner.network > layers[0].transport)?;
    Some((layers, 2))
}

/// Takes the jumbo payload option (RFC 2675) off a super-frame beyond 64 KiB: Linux puts it there for its own use, and the segments have no
/// place for it. Returns by how much the frame now begins later.
pub(crate) fn strip_jumbo(bytes: &mut [u8]) -> usize {
    let Some(layer) = Layer::in_ethernet(bytes, 0) else { return 0 };
    let hop_by_hop = layer.network + 40;
    let is_jumbo = layer.version == 6
        && layer.end.is_none()
        && bytes[layer.network + 6] == 0
        && bytes.get(hop_by_hop + 1..hop_by_hop + 4) == Some(&[0, 0xc2, 4]);
    if !is_jumbo {
        return 0;
    }
    bytes[layer.network + 6] = bytes[hop_by_hop];
    bytes.copy_within(..hop_by_hop, 8);
    8
}

/// How a super-frame is cut into segments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    layers: [Layer; MAX_LAYERS],
    /// Layers there are; the innermost is the one that is cut.
    depth: usize,
    cwr_once: bool,
    /// Where the payload begins.
    payload: usize,
    /// Where it ends; the rest is padding.
    end: usize,
    /// Bytes of payload in each segment but the last.
    size: usize,
}

impl Plan {
    /// Reads the headers of the super-frame `bytes`. `None` when it cannot be cut: an unknown kind, a tunnel that numbers its packets, or
    /// headers that contradict the kernel's.
    pub(crate) fn new(bytes: &[u8], offload: &Offload) -> Option<Plan> {
        let (kind, size) = offload.segmentation?;
        let (layers, depth) = find(bytes, kind.protocol()?, offload.checksum.map(|(start, _)| start))?;
        let inner = layers[depth - 1];
        let payload = match kind {
            Kind::Udp => inner.transport + 8,
            _ => inner.transport + 4 * usize::from(bytes.get(inner.transport + 12)? >> 4),
        };
        // The IP length of a super-frame is right up to 64 KiB and 0 beyond (then the frame's own length has to do).
        let end = inner.end.filter(|end| *end >= payload).map_or(bytes.len(), |end| end.min(bytes.len()));
        let is_cuttable = |layer: &Layer| {
            let numbered = layer.protocol == GRE && word(bytes, layer.transport).is_none_or(|f| f & GRE_SEQUENCE != 0);
            // Sums over headers and payload can be joined when all headers have an even length.
            !layer.is_fragment && !numbered && (payload - layer.transport).is_multiple_of(2)
        };
        let shortest = if inner.protocol == TCP { 20 } else { 8 };
        let is_sound = size > 0
            && payload >= inner.transport + shortest
            && payload <= end
            && payload <= MAX_HEADERS
            // No segment may need more than the 16 bits of a length.
            && payload + size.min(end - payload) <= 0xffff
            && layers[..depth].iter().all(is_cuttable);
        let cwr_once = kind == (Kind::Tcp { cwr_once: true });
        is_sound.then_some(Plan { layers, depth, cwr_once, payload, end, size })
    }

    /// Cuts a TCP super-frame into packets of `mtu` bytes, where nothing says which segments the sender meant; into shorter ones where
    /// tags leave no room for that in a frame of `longest` bytes. `None` when it is another, or cannot be cut.
    pub(crate) fn by_mtu(bytes: &[u8], mtu: usize, longest: usize) -> Option<Plan> {
        // A bit of AccECN's counter must be on all segments; CWR of RFC 3168 may be.
        let kind = Kind::Tcp { cwr_once: false };
        let whole = Offload { checksum: None, segmentation: Some((kind, 1)) };
        let plan = Plan::new(bytes, &whole)?;
        let network = plan.layers[0].network;
        let packet = mtu.min(longest.checked_sub(network)?);
        let size = packet.checked_sub(plan.payload - network).filter(|size| *size > 0)?;
        Plan::new(bytes, &Offload { segmentation: Some((kind, size)), ..whole })
    }

    /// Segments there will be: at least one.
    pub(crate) fn count(&self) -> usize {
        (self.end - self.payload).div_ceil(self.size).max(1)
    }

    /// Writes the headers of segment `index` of the super-frame `bytes` to `headers` and returns their length and where in
    /// `bytes` the payload lies. The segment's checksums are whole, in every layer that has one.
    pub(crate) fn segment(&self, bytes: &[u8], index: usize, headers: &mut [u8; MAX_HEADERS]) -> (usize, Range<usize>) {
        let from = (self.payload + index * self.size).min(self.end);
        let to = (from + self.size).min(self.end);
        let (is_first, is_last) = (index == 0, to == self.end);
        let head = &mut headers[..self.payload];
        head.copy_from_slice(&bytes[..self.payload]);
        let payload = add(0, &bytes[from..to]);
        let inner = &self.layers[self.depth - 1];
        if inner.protocol == TCP {
            let sequence = inner.transport + 4;
            let number = u32::from_be_bytes(bytes[sequence..sequence + 4].try_into().expect("four bytes"));
            let number = number.wrapping_add((from - self.payload) as u32);
            head[sequence..sequence + 4].copy_from_slice(&number.to_be_bytes());
            // FIN and PSH belong to the last byte, CWR of RFC 3168 to the first.
            let flags = &mut head[inner.transport + 13];
            *flags &= if is_last { !0 } else { !0x09 };
            *flags &= if is_first || !self.cwr_once { !0 } else { !0x80 };
        }
        // From the inside out: an outer checksum covers the inner headers as they leave.
        for layer in self.layers[..self.depth].iter().rev() {
            let Layer { network, transport, .. } = *layer;
            // No truncation: `new` has compared the sum of both with 16 bits.
            let length = self.payload - transport + (to - from);
            let put = |head: &mut [u8], at: usize, word: u16| head[at..at + 2].copy_from_slice(&word.to_be_bytes());
            if layer.version == 4 {
                put(head, network + 2, (transport - network + length) as u16);
                let id = u16::from_be_bytes([head[network + 4], head[network + 5]]).wrapping_add(index as u16);
                put(head, network + 4, id);
                put(head, network + 10, 0);
                let sum = !fold(add(0, &head[network..transport]));
                put(head, network + 10, sum);
            } else {
                put(head, network + 4, (transport - network - 40 + length) as u16);
            }
            let (field, pseudo) = match layer.protocol {
                TCP => (transport + 16, layer.pseudo(head, length)),
                UDP => {
                    put(head, transport + 4, length as u16);
                    let is_outer = network != inner.network;
                    if is_outer && head[transport + 6..transport + 8] == [0; 2] {
                        // A tunnel without a checksum.
                        continue;
                    }
                    (transport + 6, layer.pseudo(head, length))
                }
                GRE if head[transport] & (GRE_CHECKSUM >> 8) as u8 != 0 => (transport + 4, 0),
                _ => continue,
            };
            put(head, field, 0);
            let sum = finish(add(pseudo, &head[transport..]) + payload);
            put(head, field, sum);
        }
        (self.payload, from..to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{
        self, Header, SEQUENCE, assert_sound, partial, payload_at, plain, transport, tunnels, whole,
    };
    use super::*;
    use Header::{Ethernet, Gre, HopByHop, Sctp, Shim, Tcp, Udp, V4, V6, Vxlan};

    const KEEP_CWR: Kind = Kind::Tcp { cwr_once: false };

    /// What the kernel says of a super-frame with these headers.
    fn offload(headers: &[Header], size: usize) -> Offload {
        let kind = if matches!(headers.last(), Some(Tcp(_))) { Kind::Tcp { cwr_once: true } } else { Kind::Udp };
        Offload { checksum: Some(transport(headers)), segmentation: Some((kind, size)) }
    }

    /// The segments of a super-frame.
    fn segments(bytes: &[u8], offload: &Offload) -> Option<Vec<Vec<u8>>> {
        let plan = Plan::new(bytes, offload)?;
        let segment = |index| {
            let mut head = [0; MAX_HEADERS];
            let (length, payload) = plan.segment(bytes, index, &mut head);
            [&head[..length], &bytes[payload]].concat()
        };
        Some((0..plan.count()).map(segment).collect())
    }

    /// Cuts a super-frame, checks every segment, and that they join to the payload.
    fn check(headers: &[Header], payload: &[u8], size: usize, offload: &Offload) {
        let segments =
            segments(&partial(headers, payload), offload).unwrap_or_else(|| panic!("{headers:?} is not cut"));
        assert_eq!(segments.len(), payload.len().div_ceil(size).max(1), "{headers:?}");
        let (start, at) = (transport(headers).0, payload_at(headers));
        let offsets = testing::offsets(headers);
        let (mut joined, mut next) = (Vec::<u8>::new(), SEQUENCE);
        for (index, segment) in segments.iter().enumerate() {
            assert_sound(segment, headers);
            for (header, at) in headers.iter().zip(&offsets) {
                if let V4(_) = header {
                    let id = 0xfffe_u16.wrapping_add(index as u16);
                    assert_eq!(segment[at + 4..at + 6], id.to_be_bytes(), "the identification in {headers:?}");
                }
            }
            if let Some(Tcp(_)) = headers.last() {
                assert_eq!(segment[start + 4..start + 8], next.to_be_bytes(), "the sequence number in {headers:?}");
                next = next.wrapping_add((segment.len() - at) as u32);
            }
            joined.extend(&segment[at..]);
        }
        assert!(joined == payload, "{headers:?}");
    }

    #[test]
    fn a_super_frame_is_cut_in_every_kind_of_frame_and_tunnel() {
        let payload: Vec<u8> = (0..20_000u32).map(|i| (i * 7) as u8).collect();
        for headers in plain().into_iter().chain(tunnels()) {
            for size in [1, 1000, 1399, 20_000, 30_000] {
                let payload = &payload[..payload.len().min(50 * size)];
                check(&headers, payload, size, &offload(&headers, size));
            }
        }
    }

    #[test]
    fn a_super_frame_with_whole_checksums_is_cut_too() {
        // Merged by a receiver, which has verified them: the kernel then says nothing of a place.
        for headers in [
            vec![Ethernet, V4(0), Tcp(3)],
            vec![Ethernet, V6, Udp(true)],
            vec![Ethernet, V4(0), Udp(true), Vxlan, Ethernet, V4(0), Tcp(3)],
        ] {
            let offload = Offload { checksum: None, ..offload(&headers, 1000) };
            check(&headers, &[9; 5000], 1000, &offload);
        }
    }

    #[test]
    fn without_a_word_of_the_sender_tcp_is_cut_to_the_mtu() {
        for headers in [
            vec![Ethernet, Header::Tag(0x8100), V4(0), Tcp(3)],
            vec![Ethernet, Header::Tag(0x88a8), Header::Tag(0x8100), V6, Tcp(3)],
            vec![Ethernet, V6, Udp(true), Vxlan, Ethernet, V4(0), Tcp(3)],
        ] {
            let payload: Vec<u8> = (0..20_000u32).map(|i| (i * 7) as u8).collect();
            let bytes = partial(&headers, &payload);
            let plan = Plan::by_mtu(&bytes, 1500, 1518).expect("it can be cut");
            let (mut longest, mut joined) = (0, Vec::<u8>::new());
            for index in 0..plan.count() {
                let mut head = [0; MAX_HEADERS];
                let (length, range) = plan.segment(&bytes, index, &mut head);
                let segment = [&head[..length], &bytes[range]].concat();
                assert_sound(&segment, &headers);
                longest = longest.max(segment.len());
                joined.extend(&segment[payload_at(&headers)..]);
            }
            let link =
                testing::offsets(&headers)[headers.iter().position(|header| matches!(header, V4(_) | V6)).unwrap()];
            // A tag has room beside the packet, a second one has not.
            assert_eq!(longest, (link + 1500).min(1518), "{headers:?}");
            assert!(joined == payload, "{headers:?}");
        }
        assert!(Plan::by_mtu(&partial(&[Ethernet, V4(0), Udp(true)], &[1; 5000]), 1500, 1518).is_none());
        assert!(Plan::by_mtu(&partial(&[Ethernet, V4(0), Tcp(0)], &[1; 5000]), 40, 58).is_none());
    }

    #[test]
    fn a_super_frame_in_an_unknown_tunnel_is_cut_where_the_kernel_says_the_transport_header_is() {
        for inner in [[V4(0), Tcp(3)], [V6, Tcp(0)], [V6, Udp(true)]] {
            for tunnel in [vec![Udp(false), Shim], vec![Udp(true), Shim], vec![Gre(0x8000), Shim], vec![Shim]] {
                let headers = [&[Ethernet, V4(0)][..], &tunnel, &inner].concat();
                check(&headers, &[9; 5000], 1000, &offload(&headers, 1000));
            }
        }
    }

    #[test]
    fn a_tunnel_that_numbers_its_packets_is_not_cut() {
        let headers = [Ethernet, V4(0), Gre(0x1000), V4(0), Tcp(3)];
        assert!(Plan::new(&partial(&headers, &[9; 5000]), &offload(&headers, 1000)).is_none());
    }

    #[test]
    fn what_contradicts_itself_is_not_cut() {
        let headers = [Ethernet, V4(0), Tcp(3)];
        let bytes = partial(&headers, &[9; 5000]);
        let good = offload(&headers, 1000);
        assert!(Plan::new(&bytes, &good).is_some());
        for bad in [
            Offload { segmentation: Some((KEEP_CWR, 0)), ..good },
            Offload { segmentation: Some((Kind::Udp, 1000)), ..good },
            Offload { segmentation: Some((Kind::Unknown, 1000)), ..good },
            Offload { segmentation: None, ..good },
            Offload { checksum: Some((38, 16)), ..good },
            Offload { checksum: Some((0, 16)), ..good },
            Offload { checksum: Some((9000, 16)), ..good },
        ] {
            assert!(Plan::new(&bytes, &bad).is_none(), "{bad:?}");
        }
        assert!(Plan::new(&bytes[..40], &good).is_none());
        let mut fragment = bytes;
        fragment[20] |= 0x20;
        assert!(Plan::new(&fragment, &good).is_none());
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
    fn a_checksum_is_completed_where_the_kernel_says() {
        for headers in plain()
            .into_iter()
            .chain(tunnels())
            .chain([vec![Ethernet, V4(0), Sctp], vec![Ethernet, V6, HopByHop, Sctp]])
        {
            let (mut bytes, (start, offset)) = (partial(&headers, &[5; 99]), transport(&headers));
            assert!(complete(&mut bytes, start, offset));
            assert!(bytes == whole(&headers, &[5; 99]), "{headers:?}");
        }
    }

    #[test]
    fn only_the_first_segment_keeps_cwr_and_only_the_last_fin_and_psh() {
        let headers = [Ethernet, V4(0), Tcp(0)];
        let bytes = partial(&headers, &[1; 250]);
        let flags = |kind| -> Vec<u8> {
            let offload = Offload { segmentation: Some((kind, 100)), ..offload(&headers, 100) };
            segments(&bytes, &offload).unwrap().iter().map(|segment| segment[34 + 13]).collect()
        };
        assert_eq!(flags(Kind::Tcp { cwr_once: true }), [0x90, 0x10, 0x19]);
        // A bit of AccECN's counter is on every segment.
        assert_eq!(flags(KEEP_CWR), [0x90, 0x90, 0x99]);
    }

    #[test]
    fn a_virtio_net_header_is_read_as_the_kernel_writes_it() {
        let header = |flags, kind| {
            let mut header = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0];
            for (at, value) in [(2, 66u16), (4, 1448), (6, 34), (8, 16)] {
                header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
            }
            Offload::parse(&header)
        };
        let checksum = Some((34, 16));
        assert_eq!(header(0, 0), Offload::default());
        assert_eq!(header(1, 0), Offload { checksum, segmentation: None });
        assert_eq!(header(1, 1), Offload { checksum, segmentation: Some((KEEP_CWR, 1448)) });
        assert_eq!(header(1, 0x84), Offload { checksum, segmentation: Some((Kind::Tcp { cwr_once: true }, 1448)) });
        assert_eq!(header(1, 5), Offload { checksum, segmentation: Some((Kind::Udp, 1448)) });
        assert_eq!(header(2, 3), Offload { checksum: None, segmentation: Some((Kind::Unknown, 1448)) });
    }

    #[test]
    fn a_jumbo_option_is_taken_off_a_super_frame_beyond_64_kib() {
        let headers = [Ethernet, Header::Tag(0x8100), V6, Tcp(3)];
        let payload: Vec<u8> = (0..150_000u32).map(|i| (i * 13) as u8).collect();
        let mut bytes = whole(&headers, &payload);
        let network = 18;
        assert_eq!(bytes[network + 4..network + 6], [0, 0], "too long for the field");
        // As the kernel inserts it: next header, length, option, its length, the length of the packet.
        let length = (bytes.len() - network - 40 + 8) as u32;
        bytes.splice(network + 40..network + 40, [&[6, 0, 0xc2, 4][..], &length.to_be_bytes()].concat());
        bytes[network + 6] = 0;
        let stripped = strip_jumbo(&mut bytes);
        assert_eq!(stripped, 8);
        let bytes = &bytes[stripped..];
        let offload = offload(&headers, 1428);
        let segments = segments(bytes, &offload).expect("it can be cut");
        segments.iter().for_each(|segment| assert_sound(segment, &headers));
        let at = payload_at(&headers);
        assert!(segments.iter().flat_map(|segment| &segment[at..]).eq(&payload));
        // Others stay as they are.
        for mut bytes in [
            whole(&headers, b"x"),
            whole(&[Ethernet, V6, HopByHop, Tcp(0)], b"x"),
            whole(&[Ethernet, V4(0), Tcp(0)], b"x"),
        ] {
            let before = bytes.clone();
            assert_eq!(strip_jumbo(&mut bytes), 0);
            assert_eq!(bytes, before);
        }
        (0..80).for_each(|length| assert_eq!(strip_jumbo(&mut vec![0; length]), 0));
    }

    proptest! {
        #[test]
        fn the_segments_join_to_the_payload_and_each_is_sound(
            kind in any::<prop::sample::Index>(), payload in prop::collection::vec(any::<u8>(), 0..20_000), size in 1usize..9000,
        ) {
            let all = [plain(), tunnels()].concat();
            let headers = kind.get::<Vec<Header>>(&all);
            let size = size.max(payload.len() / 60).max(1);
            check(headers, &payload, size, &offload(headers, size));
        }

        #[test]
        fn no_bytes_make_it_panic(
            kind in any::<prop::sample::Index>(), changes in prop::collection::vec((0usize..200, any::<u8>()), 0..6), length in 0usize..400,
            header in any::<[u8; VNET_HEADER]>(), at in any::<bool>(),
        ) {
            let all = [plain(), tunnels()].concat();
            let headers = kind.get::<Vec<Header>>(&all);
            let mut bytes = partial(headers, &[1; 200]);
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(length);
            let mut offload = Offload::parse(&header);
            if at {
                offload.checksum = Some(transport(headers));
            }
            if let Some((start, offset)) = offload.checksum {
                complete(&mut bytes, start, offset);
            }
            let stripped = strip_jumbo(&mut bytes);
            segments(&bytes[stripped..], &offload);
        }
    }
}
