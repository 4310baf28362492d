//! An established segment, rewritten where it lies: numbers, echoes, blocks and windows of the one side into the other's.
//!
//! Everything is patched by difference, so that the payload need not be in sight and a segment that came damaged stays so.

use crate::config::SackConflict;
use crate::flow::table::wheel::Ticks;
use crate::flow::{Flow, FlowFlags};
use crate::seq::SeqNum;
use crate::wire::checksum::{self, Patch};
use crate::wire::{Flags, Segment, TCP_LEN, TIMESTAMPS_ROOM, Timestamps, Walk, be16, be32, kind, put16, put32};
use crate::{Head, Side};

/// Bytes of options a header holds at the most.
const MAX_OPTIONS: usize = 40;

/// Rewrites a segment of a proxied flow that came from `side` for the other side.
pub fn translate(flow: &Flow, side: Side, segment: &Segment, head: &mut Head, conflict: SackConflict, tick: Ticks) {
    let acknowledges = segment.flags.has(Flags::ACK) && !segment.flags.has(Flags::SYN.and(Flags::RST));
    let agreed = flow.is(FlowFlags::TIMESTAMPS);
    match segment.common_options(head.bytes()) {
        Some(timestamps) if acknowledges && agreed == flow.is(FlowFlags::TIMESTAMPS_LAN) => {
            translate_common(flow, side, segment, head.bytes_mut(), timestamps.filter(|_| agreed));
        }
        _ => translate_any(flow, side, segment, head, conflict, tick),
    }
}

/// The same, whatever the segment.
pub(crate) fn translate_any(
    flow: &Flow,
    side: Side,
    segment: &Segment,
    head: &mut Head,
    conflict: SackConflict,
    tick: Ticks,
) {
    let tcp = usize::from(segment.tcp);
    let options = tcp + TCP_LEN..usize::from(segment.payload);
    let frame = head.bytes_mut();
    let mut patch = Patch::default();
    match side {
        Side::Lan => replace32(frame, tcp, 4, (segment.seq + flow.seq_delta).get(), &mut patch),
        Side::Wan if segment.flags.has(Flags::ACK) => {
            replace32(frame, tcp, 8, (segment.ack - flow.seq_delta).get(), &mut patch);
        }
        Side::Wan => {}
    }
    let field = flow.endpoint(side).rescale(segment.window);
    if field != segment.window && !segment.flags.has(Flags::RST) {
        patch.replace16(segment.window.0, field.0);
        put16(frame, tcp + 14, field.0);
    }
    if !options.is_empty() {
        rewrite_options(flow, side, frame, tcp, options, conflict, &mut patch);
    }
    let sum = patch.apply(be16(frame, tcp + 16));
    put16(frame, tcp + 16, sum);
    if side == Side::Lan
        && flow.is(FlowFlags::TIMESTAMPS)
        && !flow.is(FlowFlags::TIMESTAMPS_LAN)
        && !segment.flags.has(Flags::RST)
    {
        insert_timestamps(flow, segment, head, tick);
    }
}

/// The same for an acknowledgement, neither SYN nor RST, whose options are `timestamps` alone, in the usual layout, or none, of a flow both of
/// whose ends use timestamps or neither.
#[inline(always)]
pub fn translate_common(flow: &Flow, side: Side, segment: &Segment, frame: &mut [u8], timestamps: Option<Timestamps>) {
    let segment_bytes = &mut frame[usize::from(segment.tcp)..];
    let (header, options) = segment_bytes.split_first_chunk_mut::<TCP_LEN>().expect("a parsed segment has a header");
    let mut patch = Patch::default();
    let (at, old, new) = match side {
        Side::Lan => (4, segment.seq, segment.seq + flow.seq_delta),
        Side::Wan => (8, segment.ack, segment.ack - flow.seq_delta),
    };
    patch.replace32(0, old.get(), new.get());
    put32(header, at, new.get());
    let field = flow.endpoint(side).rescale(segment.window);
    if field != segment.window {
        patch.replace16(segment.window.0, field.0);
        put16(header, 14, field.0);
    }
    if let Some(Timestamps { value, echo }) = timestamps
        && let Some(options) = options.first_chunk_mut::<TIMESTAMPS_ROOM>()
        && (side == Side::Lan || echo != 0)
    {
        let (at, old, new) = match side {
            Side::Lan => (4, value, flow.ts_delta.shift(value)),
            Side::Wan => (8, echo, echo_of_server(flow, echo)),
        };
        patch.replace32(0, old, new);
        put32(options, at, new);
    }
    let sum = patch.apply(be16(header, 16));
    put16(header, 16, sum);
}

/// What the client echoes, which is not zero, in the server's own time.
#[inline(always)]
fn echo_of_server(flow: &Flow, mut echo: u32) -> u32 {
    // Until the client has heard of the server it echoes our SYN-ACK, which the server never sent. (Once the server's
    // clock has gone halfway round since, before and after mean nothing any more.)
    let gone = flow.endpoint(Side::Lan).ts_value.wrapping_sub(flow.ts_base);
    if gone < 1 << 30 && SeqNum::new(echo).before(SeqNum::new(flow.ts_base)) {
        echo = flow.ts_base;
    }
    (-flow.ts_delta).shift(echo)
}

/// Replaces the 32-bit field `offset` bytes into the segment at `tcp`.
pub(crate) fn replace32(frame: &mut [u8], tcp: usize, offset: usize, new: u32, patch: &mut Patch) {
    patch.replace32(offset, be32(frame, tcp + offset), new);
    put32(frame, tcp + offset, new);
}

/// Rewrites the options of a segment from `side`, which lie at `options` in the frame.
#[inline(always)]
pub(crate) fn rewrite_options(
    flow: &Flow,
    side: Side,
    frame: &mut [u8],
    tcp: usize,
    options: core::ops::Range<usize>,
    conflict: SackConflict,
    patch: &mut Patch,
) {
    // The layout every stack uses (RFC 7323 appendix A) needs no walk.
    if options.len() == TIMESTAMPS_ROOM && frame[options.start..][..4] == [kind::NOP, kind::NOP, kind::TIMESTAMPS, 10] {
        return rewrite_timestamps(flow, side, frame, tcp, TCP_LEN + 2, patch);
    }
    // The walk borrows the frame; options are few, so their places are noted first. At two bytes the least, 20 fit.
    let mut places = [(0, 0, 0); 20];
    let mut count = 0;
    for (kind, at, len) in Walk::new(&frame[options]) {
        places[count] = (kind, TCP_LEN + at, len);
        count += 1;
    }
    for &(kind, at, len) in &places[..count] {
        match (kind, side) {
            (kind::TIMESTAMPS, _) if len == 10 => rewrite_timestamps(flow, side, frame, tcp, at, patch),
            // The LAN's blocks are in the client's numbers, which are the same on both sides.
            (kind::SACK, Side::Wan) => {
                if !flow.is(FlowFlags::SACK_LAN) && conflict == SackConflict::Remove {
                    blank(frame, tcp, at, len, patch);
                    continue;
                }
                for edge in (at + 2..at + len).step_by(4).take_while(|edge| edge + 4 <= at + len) {
                    let number = SeqNum::new(be32(frame, tcp + edge)) - flow.seq_delta;
                    replace32(frame, tcp, edge, number.get(), patch);
                }
            }
            _ => {}
        }
    }
}

/// Rewrites the timestamps option `at` bytes into the segment.
fn rewrite_timestamps(flow: &Flow, side: Side, frame: &mut [u8], tcp: usize, at: usize, patch: &mut Patch) {
    if !flow.is(FlowFlags::TIMESTAMPS) {
        return;
    }
    if !flow.is(FlowFlags::TIMESTAMPS_LAN) {
        // The server has not agreed to timestamps (RFC 7323 section 3.2).
        if side == Side::Wan {
            blank(frame, tcp, at, 10, patch);
        }
        return;
    }
    match side {
        Side::Lan => {
            let value = be32(frame, tcp + at + 2);
            replace32(frame, tcp, at + 2, flow.ts_delta.shift(value), patch);
        }
        Side::Wan => {
            let echo = be32(frame, tcp + at + 6);
            // A TSecr of zero means "no echo", so there is nothing to translate.
            if echo != 0 {
                replace32(frame, tcp, at + 6, echo_of_server(flow, echo), patch);
            }
        }
    }
}

/// Overwrites an option with no-operations.
fn blank(frame: &mut [u8], tcp: usize, at: usize, len: usize, patch: &mut Patch) {
    for offset in at..at + len {
        patch.replace8(offset, frame[tcp + offset], kind::NOP);
        frame[tcp + offset] = kind::NOP;
    }
}

/// Adds the timestamps a client was promised (RFC 7323 section 3.2: once negotiated they are on every segment)
/// and the server does not send. The segment goes as it is where it would outgrow the client's MSS, or the buffer has no headroom.
fn insert_timestamps(flow: &Flow, segment: &Segment, head: &mut Head, tick: Ticks) {
    // In a fragment they would push the payload into the next one's place.
    if segment.fragmented {
        return;
    }
    let (ip, tcp) = (usize::from(segment.ip), usize::from(segment.tcp));
    let options = usize::from(segment.payload) - tcp - TCP_LEN;
    let Some((surplus, shortened)) = surplus(&head.bytes()[tcp + TCP_LEN..][..options]) else { return };
    let grown = TIMESTAMPS_ROOM - surplus;
    if segment.payload_len() as usize + options + grown > usize::from(flow.mss) {
        return;
    }
    let before = checksum::sum(&head.bytes()[tcp + TCP_LEN..][..options]);
    if !head.open_gap(tcp + TCP_LEN, grown) {
        return;
    }
    let frame = head.bytes_mut();
    let list = &mut frame[tcp + TCP_LEN..][..options + grown];
    // What was first among the options moves behind the new one; the last SACK blocks make way if the header would be too long.
    list.copy_within(grown..grown + options - surplus, TIMESTAMPS_ROOM);
    list[..4].copy_from_slice(&[kind::NOP, kind::NOP, kind::TIMESTAMPS, 10]);
    put32(list, 4, flow.ts_delta.shift(tick));
    put32(list, 8, flow.endpoint(Side::Wan).ts_value);
    if let Some((at, len)) = shortened {
        list[TIMESTAMPS_ROOM + at + 1] = len;
        list[TIMESTAMPS_ROOM + at + usize::from(len)..].fill(kind::END);
    }
    let mut patch = Patch::default();
    patch.replace16(before, checksum::sum(list));
    // The segment's length is part of the pseudo header.
    patch.replace16(0, grown as u16);
    let offset = be16(frame, tcp + 12);
    let longer = offset + ((grown as u16 / 4) << 12);
    patch.replace16(offset, longer);
    put16(frame, tcp + 12, longer);
    let sum = patch.apply(be16(frame, tcp + 16));
    put16(frame, tcp + 16, sum);

    let length_at = ip + if segment.key.v6 { 4 } else { 2 };
    let length = be16(frame, length_at);
    put16(frame, length_at, length + grown as u16);
    if !segment.key.v6 {
        let mut patch = Patch::default();
        patch.replace16(length, length + grown as u16);
        let sum = patch.apply(be16(frame, ip + 10));
        put16(frame, ip + 10, sum);
    }
}

/// How many bytes of SACK blocks must go so that timestamps fit beside these options: none, or whole blocks off the end of a last SACK
/// option that keeps at least one, with that option's place and new length. `None` if they cannot be made to fit.
fn surplus(options: &[u8]) -> Option<(usize, Option<(usize, u8)>)> {
    const BLOCK: usize = 8;
    let surplus = (options.len() + TIMESTAMPS_ROOM).saturating_sub(MAX_OPTIONS).next_multiple_of(BLOCK);
    if surplus == 0 {
        return Some((0, None));
    }
    let (kind, at, len) = Walk::new(options).last()?;
    let spares =
        surplus <= TIMESTAMPS_ROOM && kind == kind::SACK && at + len + 4 > options.len() && len >= surplus + 2 + BLOCK;
    spares.then(|| (surplus, Some((at, (len - surplus) as u8))))
}

/// Lowers the MSS option of a SYN or SYN-ACK that is passed through to at most `clamp`.
pub fn clamp_mss(segment: &Segment, head: &mut Head, clamp: u16) {
    let tcp = usize::from(segment.tcp);
    let frame = head.bytes_mut();
    let options = tcp + TCP_LEN..usize::from(segment.payload);
    let found = Walk::new(&frame[options]).find(|&(kind, _, len)| kind == kind::MSS && len == 4);
    let Some((_, at, _)) = found else { return };
    let at = TCP_LEN + at + 2;
    let mss = be16(frame, tcp + at);
    if mss <= clamp {
        return;
    }
    let mut patch = Patch::default();
    for (offset, new) in (at..).zip(clamp.to_be_bytes()) {
        patch.replace8(offset, frame[tcp + offset], new);
        frame[tcp + offset] = new;
    }
    let sum = patch.apply(be16(frame, tcp + 16));
    put16(frame, tcp + 16, sum);
}
