//! Recognises checksums that a sender left to a NIC where nothing but the frame tells of them, and completes them.
//!
//! A sender that leaves a TCP or UDP checksum to its NIC writes the folded sum of the pseudo-header into the field, not complemented
//! (`CHECKSUM_PARTIAL`), and zero into that of SCTP. One right checksum in 65 536 looks the same; completing it gives the same
//! checksum again:
//!
//! With P the pseudo-header's sum and S that of everything else but the field, the right checksum is ~(P + S). Completing sums S and
//! the field: ~(S + field), which for a field that holds P is ~(P + S), whether the field was meant as a sum or as the checksum.
//! So what is right stays as it is. A damaged frame whose field holds P by chance is made to look sound: on ports where such
//! frames occur, two damaged frames in 65 536 pass where the checksum alone lets one pass.
//!
//! Inside a tunnel the sender computes the outer checksum as if the inner one were complete (local checksum offload), so that
//! completing the inner one makes both right. An outer checksum that is right already covers the inner bytes as they are; they stay.

use std::sync::{Arc, Once};

use tracing::info;

use super::checksum::{add_frame, crc32c, finish, fold};
use super::headers::{GRE, GRE_CHECKSUM, Layer, MAX_LAYERS, SCTP, TCP, UDP, word};
use crate::frame::Frame;
use crate::port::PortStatistics;

/// Completes the checksums of the frames that a port receives.
#[derive(Debug, Clone)]
pub(crate) struct Completer {
    /// The interface, for the log.
    name: Arc<str>,
    /// Whether the log knows; one for all queues.
    said: Arc<Once>,
}

impl Completer {
    /// A completer for the queues of one interface, which share it by cloning.
    pub(crate) fn new(name: &str) -> Completer {
        Completer { name: name.into(), said: Arc::new(Once::new()) }
    }

    /// Completes the checksums that these received frames lack, and counts the frames.
    #[inline]
    pub(crate) fn complete(&self, frames: &mut [Frame], statistics: &mut PortStatistics) {
        for frame in frames {
            if !is_finished_tcp(frame.bytes()) && complete(frame) {
                self.count(statistics);
            }
        }
    }

    #[cold]
    fn count(&self, statistics: &mut PortStatistics) {
        statistics.checksums_completed += 1;
        self.said.call_once(|| {
            info!(
                "{}: senders leave TCP, UDP or SCTP checksums to a NIC that is not there; they are completed here \
                 (`ethtool -K DEVICE tx off` at the sender spares the work)",
                self.name
            );
        });
    }
}

/// Whether the frame is TCP without tags, options and tunnels around it, and its checksum was not left to a NIC. A flood of such frames costs
/// no more than this.
#[inline(always)]
fn is_finished_tcp(bytes: &[u8]) -> bool {
    // Words are summed in the machine's order, four bytes at a time: the sum of swapped words is the swapped sum (RFC 1071 section 2.B).
    fn sum<const N: usize>(addresses: &[u8; N], length: u16) -> u64 {
        let (words, _) = addresses.as_chunks::<4>();
        let addresses: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        addresses + u64::from(u16::from_ne_bytes([0, TCP])) + u64::from(length.to_be())
    }
    match bytes {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, 0x45, _, a, b, _, _, _, _, _, TCP, rest @ ..] => {
            let Some(rest) = rest.first_chunk::<30>() else { return false };
            let (addresses, tcp) = (rest[2..].first_chunk::<8>().expect("eight of 28"), &rest[10..]);
            let length = u16::from_be_bytes([*a, *b]).wrapping_sub(20);
            fold(sum(addresses, length)) != u16::from_ne_bytes([tcp[16], tcp[17]])
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, 0x60..0x70, _, _, _, a, b, TCP, _, rest @ ..] => {
            let Some(rest) = rest.first_chunk::<52>() else { return false };
            let (addresses, tcp) = (rest.first_chunk::<32>().expect("32 of 52"), &rest[32..]);
            fold(sum(addresses, u16::from_be_bytes([*a, *b]))) != u16::from_ne_bytes([tcp[16], tcp[17]])
        }
        _ => false,
    }
}

/// Completes the checksums that the frame lacks, in tunnels from the inside out. True when there was one.
#[inline]
fn complete(frame: &mut Frame) -> bool {
    let Some(outer) = Layer::in_ethernet(frame.bytes(), 0) else { return false };
    if outer.protocol == TCP || (outer.protocol == UDP && outer.inner(frame.bytes()).is_none()) {
        return is_partial(frame, &outer) && write(frame, &outer);
    }
    complete_tunnel(frame, outer)
}

#[cold]
fn complete_tunnel(frame: &mut Frame, outer: Layer) -> bool {
    let mut layers = [outer; MAX_LAYERS];
    let mut depth = 1;
    while depth < MAX_LAYERS
        && let Some(inner) = layers[depth - 1].inner(frame.bytes())
    {
        layers[depth] = inner;
        depth += 1;
    }
    let mut completed = false;
    for at in (0..depth).rev() {
        let layer = &layers[at];
        if is_partial(frame, layer) && !layers[..at].iter().any(|around| is_sealed(frame, around)) {
            completed |= write(frame, layer);
        }
    }
    completed
}

/// The bytes from the transport header to the packet's end; `None` unless the whole packet is there.
#[inline]
fn length(frame: &Frame, layer: &Layer) -> Option<usize> {
    let end = layer.end.filter(|end| *end <= frame.total() && !layer.is_fragment)?;
    end.checked_sub(layer.transport)
}

/// The place of the layer's Internet checksum, when the layer has one and its header is whole.
#[inline]
fn field(bytes: &[u8], layer: &Layer, length: usize) -> Option<usize> {
    match layer.protocol {
        TCP if length >= 20 => Some(layer.transport + 16),
        UDP if length >= 8 && usize::from(word(bytes, layer.transport + 4)?) == length => Some(layer.transport + 6),
        _ => None,
    }
}

/// Whether the field holds what a sender writes there that leaves the checksum to its NIC. Reads headers only.
#[inline]
fn is_partial(frame: &Frame, layer: &Layer) -> bool {
    let bytes = frame.bytes();
    let Some(length) = length(frame, layer) else { return false };
    if layer.protocol == SCTP {
        return length >= 12 && bytes.get(layer.transport + 8..layer.transport + 12) == Some(&[0; 4]);
    }
    let held = field(bytes, layer, length).and_then(|at| word(bytes, at));
    held.is_some_and(|held| held == fold(layer.pseudo(bytes, length)))
}

/// Whether a checksum of this layer covers what is in it, and is right.
fn is_sealed(frame: &Frame, layer: &Layer) -> bool {
    let bytes = frame.bytes();
    let Some(length) = length(frame, layer) else { return false };
    let pseudo = match layer.protocol {
        UDP if word(bytes, layer.transport + 6).is_some_and(|sum| sum != 0) => layer.pseudo(bytes, length),
        GRE if word(bytes, layer.transport).is_some_and(|flags| flags & GRE_CHECKSUM != 0) => 0,
        _ => return false,
    };
    fold(pseudo + add_frame(frame, layer.transport, layer.transport + length)) == 0xffff
}

/// Writes the checksum of a layer whose field [`is_partial`]. True unless it was right as it stood.
#[cold]
fn write(frame: &mut Frame, layer: &Layer) -> bool {
    let Some(length) = length(frame, layer) else { return false };
    let end = layer.transport + length;
    if layer.protocol == SCTP {
        let sum = crc_of(frame, layer.transport, end).to_le_bytes();
        frame.bytes_mut()[layer.transport + 8..layer.transport + 12].copy_from_slice(&sum);
        return sum != [0; 4];
    }
    let Some(field) = field(frame.bytes(), layer, length) else { return false };
    let sum = finish(add_frame(frame, layer.transport, end)).to_be_bytes();
    let held = &mut frame.bytes_mut()[field..field + 2];
    let is_new = held != sum;
    held.copy_from_slice(&sum);
    is_new
}

/// The CRC32c of the SCTP packet at `from..to`, whose field is zero.
fn crc_of(frame: &Frame, from: usize, to: usize) -> u32 {
    let (mut crc, mut at) = (!0, 0);
    for segment in frame.segments() {
        let (start, end) = (from.max(at), to.min(at + segment.len()));
        if start < end {
            crc = crc32c(crc, &segment[start - at..end - at]);
        }
        at += segment.len();
    }
    !crc
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{self, Header, assert_sound, plain, transport, tunnels, whole};
    use super::*;
    use crate::pool::Pool;
    use Header::{Ethernet, Gre, Sctp, Tcp, Udp, V4, V6, Vxlan};

    /// Completes a frame whose buffers hold `room` bytes, and returns its bytes and whether it was completed.
    fn completed(bytes: &[u8], room: usize) -> (Vec<u8>, bool) {
        let mut pool = Pool::heap(bytes.len() / room + 2, 64 + room, 64);
        let mut frame = pool.adopt(bytes).expect("enough buffers");
        let is_finished = is_finished_tcp(frame.bytes());
        let was = complete(&mut frame);
        assert!(!(was && is_finished), "the short way and the long one differ");
        let mut out = vec![0; frame.total()];
        frame.copy_to(&mut out);
        pool.put(frame);
        (out, was)
    }

    fn payload(length: usize, seed: u8) -> Vec<u8> {
        (0..length).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect()
    }

    #[test]
    fn a_checksum_left_to_a_nic_is_completed_in_every_kind_of_frame() {
        for headers in plain().into_iter().chain(tunnels()) {
            for length in [0, 1, 18, 1400, 8000] {
                let payload = payload(length, 5);
                let (partial, expected) = (testing::partial(&headers, &payload), whole(&headers, &payload));
                for room in [2048, 16_384] {
                    let (bytes, was) = completed(&partial, room);
                    assert!(bytes == expected && was, "{headers:?} with {length} bytes in buffers of {room}");
                }
                assert_sound(&expected, &headers);
            }
        }
    }

    #[test]
    fn a_checksum_that_is_there_is_left_alone() {
        for headers in plain().into_iter().chain(tunnels()) {
            for length in [0, 1, 18, 1400] {
                let payload = payload(length, 5);
                let right = whole(&headers, &payload);
                assert_eq!(completed(&right, 2048), (right.clone(), false), "{headers:?}");
                // A wrong one is not ours to mend: the receiver drops it.
                let mut wrong = right;
                let (start, offset) = transport(&headers);
                wrong[start + offset] ^= 0x40;
                assert_eq!(completed(&wrong, 2048), (wrong.clone(), false), "{headers:?}");
            }
        }
    }

    #[test]
    fn a_right_checksum_that_equals_the_sum_of_the_pseudo_header_stays_as_it_is() {
        for headers in [
            vec![Ethernet, V4(0), Tcp(3)],
            vec![Ethernet, V6, Udp(true)],
            vec![Ethernet, V4(0), Gre(0x8000), V4(0), Tcp(0)],
        ] {
            let (start, offset) = transport(&headers);
            // Two bytes of payload are chosen so that the right checksum is the sum of the pseudo-header.
            let found = (0..=0xffffu16).find_map(|value| {
                let right = whole(&headers, &value.to_be_bytes());
                let looks_partial = testing::partial(&headers, &value.to_be_bytes()) == right;
                looks_partial.then_some(right)
            });
            let right = found.expect("one of all the words makes it so");
            assert_eq!(completed(&right, 2048), (right.clone(), false), "{headers:?} at {}", start + offset);
        }
    }

    #[test]
    fn udp_without_a_checksum_and_fragments_stay_as_they_are() {
        let none = whole(&[Ethernet, V4(0), Udp(false)], &payload(100, 1));
        assert_eq!(completed(&none, 2048), (none.clone(), false));
        for bits in [0x20, 0x01] {
            let mut fragment = testing::partial(&[Ethernet, V4(0), Udp(true)], &payload(100, 1));
            fragment[14 + 6] |= bits;
            assert_eq!(completed(&fragment, 2048), (fragment.clone(), false));
        }
        let mut six = testing::partial(&[Ethernet, V6, Header::HopByHop, Tcp(0)], &payload(100, 1));
        six[14 + 6] = 44;
        assert_eq!(completed(&six, 2048), (six.clone(), false));
    }

    #[test]
    fn padding_is_not_summed_and_a_cut_off_packet_not_completed() {
        let headers = [Ethernet, V4(0), Tcp(0)];
        let (mut bytes, mut expected) = (testing::partial(&headers, b"x"), whole(&headers, b"x"));
        bytes.extend([0xaa; 5]);
        expected.extend([0xaa; 5]);
        assert_eq!(completed(&bytes, 2048), (expected, true));
        let cut = testing::partial(&headers, &payload(100, 1))[..80].to_vec();
        assert_eq!(completed(&cut, 2048), (cut.clone(), false));
    }

    #[test]
    fn sctp_gets_its_crc() {
        for headers in [
            vec![Ethernet, V4(0), Sctp],
            vec![Ethernet, V6, Sctp],
            vec![Ethernet, V4(0), Udp(false), Vxlan, Ethernet, V4(0), Sctp],
        ] {
            let partial = testing::partial(&headers, &payload(500, 3));
            assert_eq!(completed(&partial, 2048), (whole(&headers, &payload(500, 3)), true), "{headers:?}");
        }
    }

    #[test]
    fn a_copy_of_an_unfinished_frame_inside_a_finished_packet_stays_as_it_is() {
        // What a mirror sends: the frame as it was seen at a sender, under an outer checksum that covers it as it is.
        for tunnel in [&[Udp(true), Vxlan, Ethernet][..], &[Gre(0x8000), Ethernet]] {
            let inner = testing::partial(&[Ethernet, V4(0), Tcp(3)], &payload(100, 9));
            let outer = [&[Ethernet, V4(0)], &tunnel[..tunnel.len() - 1]].concat();
            // The builder names what follows by the next header, so the inner Ethernet header is written over.
            let mut mirrored = whole(&[&outer[..], &[Ethernet]].concat(), &inner[14..]);
            let at = testing::payload_at(&outer);
            mirrored[at + 12..at + 14].copy_from_slice(&[8, 0]);
            let start = testing::offsets(&outer)[2];
            let field = if tunnel[0] == Udp(true) { start + 6 } else { start + 4 };
            mirrored[field..field + 2].fill(0);
            let mut covered = mirrored[start..].to_vec();
            if tunnel[0] == Udp(true) {
                covered.extend([&mirrored[26..34], &[0, 17], &((covered.len()) as u16).to_be_bytes()].concat());
            }
            let check = !testing::sum(&covered);
            mirrored[field..field + 2].copy_from_slice(&check.to_be_bytes());
            assert_eq!(completed(&mirrored, 2048), (mirrored.clone(), false), "{tunnel:?}");
        }
    }

    #[test]
    fn the_short_way_knows_plain_tcp() {
        for headers in plain() {
            let is_plain = matches!(headers[..], [Ethernet, V4(0) | V6, Tcp(_)]);
            let (right, partial) = (whole(&headers, b"data"), testing::partial(&headers, b"data"));
            assert_eq!((is_finished_tcp(&right), is_finished_tcp(&partial)), (is_plain, false), "{headers:?}");
        }
    }

    #[test]
    fn completed_frames_are_counted() {
        let mut pool = Pool::heap(4, 2048, 64);
        let headers = [Ethernet, V4(0), Tcp(3)];
        let mut frames: Vec<Frame> =
            [testing::partial(&headers, b"one"), whole(&headers, b"two"), testing::partial(&headers, b"three")]
                .iter()
                .map(|bytes| pool.adopt(bytes).unwrap())
                .collect();
        let mut statistics = PortStatistics::default();
        Completer::new("lan").complete(&mut frames, &mut statistics);
        assert_eq!(statistics, PortStatistics { checksums_completed: 2, ..PortStatistics::default() });
        frames.into_iter().for_each(|frame| pool.put(frame));
    }

    proptest! {
        #[test]
        fn what_is_completed_is_sound(
            kind in any::<prop::sample::Index>(), payload in prop::collection::vec(any::<u8>(), 0..3000), room in 400usize..2000,
        ) {
            let all = [plain(), tunnels()].concat();
            let headers = kind.get::<Vec<Header>>(&all);
            let expected = whole(headers, &payload);
            prop_assert_eq!(completed(&testing::partial(headers, &payload), room).0, expected.clone());
            prop_assert_eq!(completed(&expected, room), (expected, false));
        }

        #[test]
        fn no_bytes_make_it_panic(
            kind in any::<prop::sample::Index>(), changes in prop::collection::vec((0usize..200, any::<u8>()), 0..6), length in 0usize..300,
            room in 16usize..200,
        ) {
            let all = [plain(), tunnels()].concat();
            let mut bytes = testing::partial(kind.get::<Vec<Header>>(&all), &payload(100, 1));
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(length);
            completed(&bytes, room);
        }
    }
}
