//! What a host wraps its segments in: VLAN tags, IPv4 options, IPv6 extension headers, fragments, padding; and how the
//! receiving host unwraps them.
//!
//! The stack knows nothing of it. Between stack and cable each segment is dressed, and what comes from the cable is put
//! together from its fragments and undressed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::chance::Chance;
use crate::oracle::layers::{Layers, Tags};
use crate::oracle::{Ancestor, wire};

/// How long a host keeps the first fragments of a packet whose others do not come.
const PATIENCE: u64 = 30_000_000;

/// A host's manner of wrapping segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// IPv4 packets may be fragmented on their way.
    pub fragile: bool,
    /// Some segments carry IPv4 options, or IPv6 extension headers: one of [`Envelope::EXTRAS`] kinds.
    pub extras: Option<u8>,
    /// Segments with data leave in fragments of at most so many bytes of IP payload: a multiple of eight.
    pub fragments: Option<usize>,
    /// The hop limit of its segments; zero leaves that of the stack.
    pub hops: u8,
    /// The class of its segments, in the upper six bits.
    pub class: u8,
    /// Padding is not zero, and short frames are not the only ones that have it.
    pub sloppy: bool,
}

impl Envelope {
    /// How many kinds of IPv4 options, and of chains of IPv6 extension headers, there are.
    pub const EXTRAS: u8 = 4;

    /// Draws a manner; the plain one in most cases.
    pub fn draw(chance: &mut Chance) -> Self {
        let rarely = |chance: &mut Chance| chance.one_in(1, 8);
        Self {
            fragile: chance.one_in(1, 4),
            extras: rarely(chance).then(|| chance.within(0..u64::from(Self::EXTRAS)) as u8),
            // RFC 3128 and RFC 8200 section 4.5: the first fragment holds the whole TCP header; 512 for IPv6.
            fragments: rarely(chance).then(|| chance.within(8..80) as usize * 8),
            sloppy: rarely(chance),
            // None of a few less than a system's own: a client with 2 would seem not to reach that server.
            hops: *chance.pick(&[0, 0, 255, 128, 44, 2]),
            class: *chance.pick(&[0, 0, 0, 0xb8, 0x28]),
        }
    }

    /// The frames in which a frame of the stack leaves a host of this MTU.
    pub fn dress(&self, tags: Tags, frame: Vec<u8>, mtu: usize, ids: &mut u16, chance: &mut Chance) -> Vec<Vec<u8>> {
        let Some(layers) = Layers::read(&frame).filter(|layers| layers.protocol == 6) else { return vec![frame] };
        let payload = &frame[layers.payload..layers.end];
        let mut header = frame[layers.ip..layers.payload].to_vec();
        let carries_data = payload.len() > usize::from(payload[12] >> 4) * 4;
        if let Some(kind) = self.extras
            && chance.one_in(1, 2)
        {
            let longer = if layers.v6 { extended(&header, kind) } else { with_options(&header, kind) };
            if longer.len() + payload.len() <= mtu {
                header = longer;
            }
        }
        if self.hops > 0 {
            header[if layers.v6 { 7 } else { 8 }] = self.hops;
        }
        if layers.v6 {
            header[0] |= self.class >> 4;
            header[1] |= self.class << 4;
        } else {
            header[1] |= self.class;
        }
        *ids = ids.wrapping_add(1);
        if self.fragile && !layers.v6 {
            header[4..6].copy_from_slice(&ids.to_be_bytes());
            header[6] = 0;
        }
        let size = self.fragments.map(|size| if layers.v6 { size.max(512) } else { size });
        let packets = match size {
            Some(size) if carries_data && payload.len() > size => {
                fragments(&header, payload, size, u32::from(*ids), layers.v6, Span::default())
            }
            _ => vec![packet(&header, payload)],
        };
        let wrap = |packet: Vec<u8>| {
            let mut out = tagged(&frame[..12], tags, layers.v6);
            out.extend_from_slice(&packet);
            // Ethernet's minimum, without the frame check sequence.
            let surplus = if self.sloppy && packet.len() + 20 < mtu { chance.within(0..20) as usize } else { 0 };
            let length = (out.len() + surplus).max(60);
            out.resize(length, if self.sloppy { 0x5a } else { 0 });
            out
        };
        packets.into_iter().map(wrap).collect()
    }
}

/// The Ethernet header behind these two addresses.
fn tagged(addresses: &[u8], tags: Tags, v6: bool) -> Vec<u8> {
    let mut out = addresses.to_vec();
    for (protocol, control) in tags.into_iter().flatten() {
        out.extend_from_slice(&protocol.to_be_bytes());
        out.extend_from_slice(&control.to_be_bytes());
    }
    out.extend_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
    out
}

/// An IP packet of this header and payload, its length and checksum set.
fn packet(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut packet = [header, payload].concat();
    if packet[0] >> 4 == 4 {
        let length = packet.len() as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[10..12].fill(0);
        let sum = wire::fold(wire::sum(&packet[..header.len()], 0));
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let length = (packet.len() - 40) as u16;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
    }
    packet
}

/// An IPv4 header with options.
fn with_options(header: &[u8], kind: u8) -> Vec<u8> {
    let options: &[u8] = match kind {
        // Router alert; no-operations; an empty record of a route; as many as there can be.
        0 => &[0x94, 4, 0, 0],
        1 => &[1, 1, 1, 0],
        2 => &[7, 7, 4, 0, 0, 0, 0, 0],
        _ => &[1; 40],
    };
    let mut header = [header, options].concat();
    header[0] = 0x40 | (header.len() / 4) as u8;
    header
}

/// An IPv6 header with extension headers.
fn extended(header: &[u8], kind: u8) -> Vec<u8> {
    let hop_by_hop = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let destination = |next: u8| [next, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let routing = |next: u8| [next, 0, 4, 0, 0, 0, 0, 0];
    // RFC 6946: a fragment header on a packet in one piece.
    let atomic = |next: u8| [next, 0, 0, 0, 9, 9, 9, 9];
    let (first, chain) = match kind {
        0 => (0, hop_by_hop(6).to_vec()),
        1 => (60, destination(6).to_vec()),
        2 => (44, atomic(6).to_vec()),
        _ => (0, [&hop_by_hop(60)[..], &destination(43), &routing(60), &destination(6)].concat()),
    };
    let mut header = [header, &chain].concat();
    header[6] = first;
    header
}

/// Where a payload lies in that of the whole packet: its offset in bytes, and whether more follow.
#[derive(Clone, Copy, Default)]
struct Span {
    offset: usize,
    more: bool,
}

/// The fragments of a packet, or of a part of one, in order.
fn fragments(header: &[u8], payload: &[u8], size: usize, id: u32, v6: bool, span: Span) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(size);
    let pieces = payload.chunks(size).enumerate();
    let piece = |(number, piece): (usize, &[u8])| {
        let (offset, more) = ((span.offset + number * size) as u16, number + 1 < count || span.more);
        if v6 {
            // RFC 8200 section 4.5: here all extension headers are taken for per-fragment ones.
            let mut header = header.to_vec();
            let last = last_next_header(&header);
            let next = std::mem::replace(&mut header[last], 44);
            header.extend_from_slice(&[next, 0]);
            header.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
            header.extend_from_slice(&id.to_be_bytes());
            return packet(&header, piece);
        }
        // RFC 791: only copied options go into later fragments; none of ours has the copy bit but the router alert.
        let mut header = if offset == 0 || header.get(20) == Some(&0x94) { header.to_vec() } else { bare(header) };
        header[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        header[6..8].copy_from_slice(&(offset >> 3 | u16::from(more) << 13).to_be_bytes());
        packet(&header, piece)
    };
    pieces.map(piece).collect()
}

/// An IPv4 header without its options.
fn bare(header: &[u8]) -> Vec<u8> {
    let mut header = header[..20].to_vec();
    header[0] = 0x45;
    header
}

/// Where an IPv6 header with extension headers names the protocol of its payload.
fn last_next_header(header: &[u8]) -> usize {
    let (mut place, mut at) = (6, 40);
    while at < header.len() {
        let kind = header[place];
        place = at;
        at += if kind == 44 { 8 } else { (usize::from(header[at + 1]) + 1) * 8 };
    }
    place
}

/// The fragments of an IPv4 packet, or of a fragment of one, for a hop that takes packets of at most `mtu` bytes, as a
/// router cuts them.
///
/// Returns nothing for a packet that must not be cut.
pub fn cut(frame: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
    let layers = Layers::read(frame)?;
    if layers.v6 || frame[layers.ip + 6] & 0x40 != 0 {
        return None;
    }
    let header = &frame[layers.ip..layers.payload];
    let size = (mtu - header.len()) & !7;
    let (offset, more, _) = layers.fragment.unwrap_or((0, false, 0));
    let id = u16::from_be_bytes([header[4], header[5]]);
    let span = Span { offset, more };
    let mut packets = fragments(header, &frame[layers.payload..layers.end], size, id.into(), false, span);
    for packet in &mut packets {
        *packet = [&tagged(&frame[..12], layers.tags, false), &packet[..]].concat();
        packet.resize(packet.len().max(60), 0);
    }
    Some(packets)
}

/// The frame as the stack knows it: without tags, options and extension headers. Any other frame stays as it is.
pub fn undress(frame: Vec<u8>) -> Vec<u8> {
    let Some(layers) = Layers::read(&frame) else { return frame };
    let plain = if layers.v6 { 40 } else { 20 };
    // A header that came damaged must not be made whole.
    if !layers.v6 && wire::fold(wire::sum(&frame[layers.ip..layers.payload], 0)) != 0 {
        return frame;
    }
    if layers.tags == [None; 2] && layers.payload - layers.ip == plain || layers.fragment.is_some() {
        return frame;
    }
    let mut header = frame[layers.ip..layers.ip + plain].to_vec();
    if layers.v6 {
        header[6] = layers.protocol;
    } else {
        header[0] = 0x45;
    }
    let mut out = tagged(&frame[..12], [None; 2], layers.v6);
    out.extend_from_slice(&packet(&header, &frame[layers.payload..layers.end]));
    out.resize(out.len().max(60), 0);
    out
}

/// A packet put together, with what is known of it.
#[derive(Clone, Debug)]
pub struct Whole {
    /// The frame that would have carried it in one piece.
    pub bytes: Vec<u8>,
    /// Whether a bit of any piece was turned over.
    pub corrupt: bool,
    /// What the first piece was when it entered the box.
    pub ancestor: Option<Ancestor>,
}

#[derive(Clone, Debug)]
struct Piece {
    bytes: Vec<u8>,
    corrupt: bool,
}

#[derive(Clone, Debug)]
struct Puzzle {
    since: u64,
    pieces: BTreeMap<usize, Piece>,
    /// Bytes of the whole payload, once the last piece is there.
    length: Option<usize>,
    /// Everything before the payload of the first piece, and its ancestor.
    first: Option<(Vec<u8>, Option<Ancestor>)>,
}

/// Puts fragments together, as the receiving host does.
#[derive(Clone, Debug, Default)]
pub struct Reassembly {
    puzzles: BTreeMap<(IpAddr, IpAddr, u32), Puzzle>,
}

impl Reassembly {
    /// A frame arrives: itself if it is no fragment, the whole packet if it completes one, nothing otherwise.
    pub fn take(&mut self, bytes: Vec<u8>, corrupt: bool, ancestor: Option<Ancestor>, now: u64) -> Option<Whole> {
        let Some((layers, (offset, more, id))) =
            Layers::read(&bytes).and_then(|layers| Some((layers, layers.fragment?)))
        else {
            return Some(Whole { bytes, corrupt, ancestor });
        };
        self.puzzles.retain(|_, puzzle| now - puzzle.since < PATIENCE);
        let (source, destination) = layers.addresses(&bytes);
        let key = (source, destination, id);
        let puzzle = self.puzzles.entry(key).or_insert_with(|| Puzzle {
            since: now,
            pieces: BTreeMap::new(),
            length: None,
            first: None,
        });
        let payload = bytes[layers.payload..layers.end].to_vec();
        if !more {
            puzzle.length = Some(offset + payload.len());
        }
        if offset == 0 {
            puzzle.first = Some((bytes[..layers.payload].to_vec(), ancestor));
        }
        puzzle.pieces.insert(offset, Piece { bytes: payload, corrupt });
        let mut whole = Vec::new();
        for (&offset, piece) in &puzzle.pieces {
            if offset != whole.len() {
                return None;
            }
            whole.extend_from_slice(&piece.bytes);
        }
        if puzzle.length != Some(whole.len()) {
            return None;
        }
        let puzzle = self.puzzles.remove(&key)?;
        let (before, ancestor) = puzzle.first?;
        let mut header = before[layers.ip..].to_vec();
        if layers.v6 {
            // The fragment header is the last one before the payload.
            let next = header[header.len() - 8];
            header.truncate(header.len() - 8);
            let last = last_next_header(&header);
            header[last] = next;
        } else {
            header[6..8].fill(0);
        }
        let mut bytes = before[..layers.ip].to_vec();
        bytes.extend_from_slice(&packet(&header, &whole));
        bytes.resize(bytes.len().max(60), 0);
        let corrupt = puzzle.pieces.values().filter(|piece| piece.corrupt).count();
        if corrupt > 1 {
            // Two flips can undo each other in the sum.
            return None;
        }
        let corrupt = corrupt == 1;
        Some(Whole { bytes, corrupt, ancestor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::icmp::{Error, Trouble};
    use crate::oracle::{Layout, Segment};

    fn segment_frame(v6: bool, payload: &[u8]) -> Vec<u8> {
        let (from, to) = if v6 { ("[fd00::1]:7", "[fd00::2]:9") } else { ("10.0.0.1:7", "10.0.0.2:9") };
        let mut segment = Segment::new(from.parse().unwrap(), to.parse().unwrap(), 7, Some(17));
        segment.payload = payload;
        segment.options.stamps = Some((1, 2));
        segment.write([2; 6], [4; 6], Layout::default())
    }

    #[test]
    fn what_is_dressed_undresses_to_the_same_segment() {
        let tags: Tags = [Some((0x88a8, 0x6007)), Some((0x8100, 0x2ffe))];
        let payload: Vec<u8> = (0..=255).cycle().take(1300).collect();
        for (v6, extras, size) in (0..2).flat_map(|v6| {
            let extras = [None, Some(0), Some(1), Some(2), Some(3)];
            extras.into_iter().flat_map(move |extras| [None, Some(64), Some(640)].map(|size| (v6 == 1, extras, size)))
        }) {
            let plain = segment_frame(v6, &payload);
            let envelope = Envelope { fragile: true, extras, fragments: size, sloppy: true, ..Envelope::default() };
            for seed in 0..8 {
                let frames = envelope.dress(tags, plain.clone(), 1500, &mut 7, &mut Chance::new(seed));
                assert_eq!(frames.len() > 1, size.is_some());
                let mut reassembly = Reassembly::default();
                let mut wholes = frames.into_iter().rev().filter_map(|frame| reassembly.take(frame, false, None, 0));
                let whole = wholes.next().expect("all pieces are there").bytes;
                assert!(wholes.next().is_none());
                let read =
                    Segment::read(&whole).unwrap_or_else(|| panic!("no segment: v6 {v6}, extras {extras:?}, {size:?}"));
                assert!(read.sums_right() && read.tags == tags, "{read}");
                let undressed = undress(whole);
                let (read, original) = (Segment::read(&undressed).unwrap(), Segment::read(&plain).unwrap());
                assert!(read.sums_right(), "{read}");
                assert_eq!((read.seq, read.payload, read.options), (original.seq, original.payload, original.options));
                assert_eq!(read.tags, [None; 2]);
            }
        }
    }

    #[test]
    fn an_error_about_a_dressed_segment_tells_whose_it_is() {
        for (v6, extras) in (0..2).flat_map(|v6| (0..Envelope::EXTRAS).map(move |extras| (v6 == 1, extras))) {
            let plain = segment_frame(v6, &[7; 1000]);
            let envelope = Envelope { extras: Some(extras), ..Envelope::default() };
            let original = Segment::read(&plain).unwrap();
            let mut dressed = 0;
            for seed in 0..8 {
                let frames = envelope.dress([None; 2], plain.clone(), 1500, &mut 7, &mut Chance::new(seed));
                dressed += usize::from(frames[0].len() > plain.len());
                let router = if v6 { "fd00::fe" } else { "10.0.1.254" }.parse().unwrap();
                let error = Error::write(Trouble::TooBig(1280), router, &frames[0], 20);
                let read = Error::read(&error).unwrap_or_else(|| panic!("no error: v6 {v6}, extras {extras}"));
                assert!(read.sums_right, "v6 {v6}, extras {extras}");
                let quoted = (read.source, read.destination, read.seq(), read.ack());
                assert_eq!(quoted, (original.source, original.destination, original.seq, original.ack));
            }
            assert!(dressed > 0, "v6 {v6}, extras {extras}");
        }
    }
}
