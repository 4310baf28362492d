//! The translation of segments between the two sides of a proxied connection.
//!
//! [`Projection`] is the one definition of what happens to a segment. The fast path, every other path, the segments that ICMP errors
//! quote and the tests all apply it.

use crate::config::SackConflict;
use crate::flow::table::Redirect;
use crate::flow::{Flow, FlowFlags};
use crate::seq::{RawWindow, SeqDelta, SeqNum, WindowScale};
use crate::wire::checksum::{self, Patch};
use crate::wire::{Flags, Segment, TCP_LEN, TIMESTAMPS_ROOM, Timestamps, Walk, be16, be32, kind, put16, put32};
use crate::{Head, PerSide, Side};

/// Bytes of options a header holds at the most.
const MAX_OPTIONS: usize = 40;

/// Offsets in the TCP header (RFC 9293 section 3.1).
const SEQ: usize = 4;
const ACK: usize = 8;
const DATA_OFFSET: usize = 12;
const WINDOW: usize = 14;
const CHECKSUM: usize = 16;

/// How a segment of one proxied connection is rewritten for the other side: plain integers, taken from the flow, and the one definition
/// of what happens to a segment.
///
/// A segment from side S on its way to side R is changed as follows, and in no other way. All arithmetic is modulo 2^32.
///
/// 1. The sequence number grows by `seq[S]`.
/// 2. The acknowledgement number, if the ACK flag is set, shrinks by `seq[R]`.
/// 3. The window field, unless SYN or RST is set, is converted from the first scale of `scales[S]` to the second: rounded down, at most
///    65535, and at least 1 if it was not zero.
/// 4. Each edge in each SACK option shrinks by `seq[R]`. From the WAN, with `removes_sack`, the option is overwritten with no-operations instead.
/// 5. Timestamps options of ten bytes, if `timestamps[WAN]`: with `timestamps[LAN]` too, TSval grows by `ts[S]`, and TSecr, unless
///    it is zero (no echo), shrinks by `ts[R]`. From the WAN, a TSecr before `ts_base` is first raised to `ts_base`, if `ts_elapsed` is less
///    than 2^30. Without `timestamps[LAN]`, an option from the WAN is overwritten with no-operations.
/// 6. From the LAN, if `timestamps[WAN]` and not `timestamps[LAN]`, a timestamps option is inserted in front of the other options, between two
///    no-operations and them: TSval is the engine's clock in milliseconds plus `ts[LAN]`, TSecr is `client_ts_value`. Not so in a RST or a fragment,
///    where payload and options would then exceed `mss`, or where neither the header nor the frame's buffer has room; no-operations behind
///    the last option, or else the last SACK blocks, make room, the blocks down to one.
///
/// Options are those that [`Walk`] finds. Checksums are patched by the difference (RFC 1624), so that the payload need not be visible and a
/// segment that came damaged stays so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    /// From the sequence numbers of the end on each side to those the other end knows it by.
    seq: PerSide<SeqDelta>,
    /// The same of their timestamp clocks. From the LAN: if the server uses no timestamps, from the engine's clock in milliseconds.
    ts: PerSide<SeqDelta>,
    /// The first TSval, as the client knows it, that the server itself can have sent. An earlier one was ours.
    ts_base: u32,
    /// How far the server's clock has gone since. From halfway round on, before and after mean nothing any more.
    ts_elapsed: u32,
    /// The scale by which the end on each side means its window field (low four bits), and the one by which the other end reads it (high
    /// four). 15 stands for no scaling, which is a shift of zero.
    scales: PerSide<u8>,
    /// LAN: whether the server uses timestamps. WAN: whether the client's SYN-ACK has them.
    timestamps: PerSide<bool>,
    /// Whether the client may send SACK blocks that its server has not agreed to and must not get.
    removes_sack: bool,
    /// The MSS the client announced: the most bytes of payload and options that it is sent (RFC 6691).
    mss: u16,
    /// The client's last TSval.
    client_ts_value: u32,
}

impl Projection {
    /// The projection of a proxied flow as it stands.
    // Inlined, as all that the fast path applies, so that only what is used is computed.
    #[inline(always)]
    pub fn of(flow: &Flow, conflict: SackConflict) -> Self {
        let (server, client) = (flow.endpoint(Side::Lan), flow.endpoint(Side::Wan));
        // The server gets the client's own numbers: the sequence number of our SYN was the client's.
        let same = SeqDelta::default();
        Self {
            seq: PerSide::new(flow.seq_delta, same),
            ts: PerSide::new(flow.ts_delta, same),
            ts_base: flow.ts_base,
            ts_elapsed: server.ts_value.wrapping_sub(flow.ts_base),
            scales: PerSide::new(server.scales(), client.scales()),
            timestamps: PerSide::new(flow.is(FlowFlags::TIMESTAMPS_LAN), flow.is(FlowFlags::TIMESTAMPS)),
            removes_sack: !flow.is(FlowFlags::SACK_LAN) && conflict == SackConflict::Remove,
            mss: flow.mss,
            client_ts_value: client.ts_value,
        }
    }

    /// The same for a flow whose server has a key of its own: with what is added to the client's numbers on their way to it.
    #[must_use]
    pub fn redirected(mut self, redirect: &Redirect) -> Self {
        self.seq[Side::Wan] = redirect.seq_delta;
        self.ts[Side::Wan] = redirect.ts_delta;
        self
    }

    /// The numbers that a projection of a flow whose server has no key of its own goes by: the sequence delta, the timestamp delta, the first TSval of
    /// the server itself, and how far its clock has gone since.
    pub(crate) fn numbers(&self) -> (u32, u32, u32, u32) {
        (self.seq[Side::Lan].shift(0), self.ts[Side::Lan].shift(0), self.ts_base, self.ts_elapsed)
    }

    /// What leads back: applied to a segment from the same side that was translated, it restores what its sender wrote, but for what the
    /// translation lost (low bits of a window, blanked options, echoes from before `ts_base`) or inserted.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let negated = |deltas: &PerSide<SeqDelta>| PerSide::new(-deltas[Side::Lan], -deltas[Side::Wan]);
        Self {
            seq: negated(&self.seq),
            ts: negated(&self.ts),
            // An echo that is led back is of the server's clock already: none is from before its time.
            ts_elapsed: u32::MAX,
            scales: PerSide::new(self.scales[Side::Lan].rotate_left(4), self.scales[Side::Wan].rotate_left(4)),
            ..*self
        }
    }

    /// Whether segments from the server get timestamps that it did not send.
    #[inline(always)]
    pub fn inserts_timestamps(&self) -> bool {
        self.timestamps[Side::Wan] && !self.timestamps[Side::Lan]
    }

    /// Rewrites a segment from `side` for the other side; `clock` is the time in milliseconds.
    #[inline(always)]
    pub fn apply(&self, side: Side, segment: &Segment, head: &mut Head, clock: u32) {
        let acknowledges = segment.flags.has(Flags::ACK) && !segment.flags.has(Flags::SYN.and(Flags::RST));
        let agreed = self.timestamps[Side::Wan];
        match segment.common_options(head.bytes()) {
            Some(timestamps) if acknowledges && agreed == self.timestamps[Side::Lan] => {
                self.apply_common(side, segment, head.bytes_mut(), timestamps.filter(|_| agreed));
            }
            _ => self.apply_any(side, segment, head, clock),
        }
    }

    /// The same on the slow path, which takes any segment.
    // By value and not inlined, so that the fast path computes only the fields it uses.
    #[inline(never)]
    pub(crate) fn apply_any(self, side: Side, segment: &Segment, head: &mut Head, clock: u32) {
        let header = &mut head.bytes_mut()[segment.tcp.into()..segment.payload.into()];
        let patch = self.apply_to_header(side, header);
        let sum = patch.apply(be16(header, CHECKSUM));
        put16(header, CHECKSUM, sum);
        // In a fragment they would push the payload into the next one's place.
        if side == Side::Lan && self.inserts_timestamps() && !segment.flags.has(Flags::RST) && !segment.fragmented {
            self.insert_timestamps(segment, head, clock);
        }
    }

    /// The same on the fast path, for an acknowledgement that is neither SYN nor RST, of a connection both of whose ends use timestamps or
    /// neither. Its options are `timestamps` alone, in the [common layout](Segment::common_options), or none; or, if `timestamps` is
    /// `None`, timestamps that are to be left alone.
    ///
    /// # Panics
    /// If the segment is not in the frame.
    #[inline(always)]
    pub fn apply_common(&self, side: Side, segment: &Segment, frame: &mut [u8], timestamps: Option<Timestamps>) {
        let tcp = &mut frame[usize::from(segment.tcp)..];
        let (header, options) = tcp.split_first_chunk_mut::<TCP_LEN>().expect("a parsed segment has a header");
        let mut patch = Patch::default();
        self.renumber_all(side, header, segment.seq, Some(segment.ack), &mut patch);
        self.rescale_window(side, header, segment.window, &mut patch);
        if let Some(timestamps) = timestamps
            && let Some(options) = options.first_chunk_mut::<TIMESTAMPS_ROOM>()
        {
            self.move_clocks(side, timestamps, options, 2, &mut patch);
        }
        let sum = patch.apply(be16(header, CHECKSUM));
        put16(header, CHECKSUM, sum);
    }

    /// Rewrites the TCP header at the beginning of `header`, sent by the end on `side`, or as much of it as is visible: eight bytes at
    /// least, as in an ICMP error. Returns what has changed; the header's checksum is left to the caller.
    ///
    /// Flags that are not visible are taken for an acknowledgement's.
    ///
    /// # Panics
    /// If fewer than eight bytes are visible.
    #[inline(always)]
    pub fn apply_to_header(&self, side: Side, header: &mut [u8]) -> Patch {
        let mut patch = Patch::default();
        let flags = (header.len() >= DATA_OFFSET + 2).then(|| Flags::of(be16(header, DATA_OFFSET)));
        let acknowledges = header.len() >= ACK + 4 && flags.is_none_or(|flags| flags.has(Flags::ACK));
        let number = |at| SeqNum::new(be32(header, at));
        let (seq, ack) = (number(SEQ), acknowledges.then(|| number(ACK)));
        self.renumber_all(side, header, seq, ack, &mut patch);
        if header.len() >= WINDOW + 2 && flags.is_some_and(|flags| !flags.has(Flags::SYN.and(Flags::RST))) {
            self.rescale_window(side, header, RawWindow(be16(header, WINDOW)), &mut patch);
        }
        if header.len() > TCP_LEN {
            let len = usize::from(header[DATA_OFFSET] >> 4) * 4;
            let len = len.min(header.len());
            if len > TCP_LEN {
                self.rewrite_options(side, &mut header[..len], &mut patch);
            }
        }
        patch
    }

    /// Rewrites the numbers of a header from `side`, which are these; `ack` is `None` if it acknowledges nothing.
    #[inline(always)]
    fn renumber_all(&self, side: Side, header: &mut [u8], seq: SeqNum, ack: Option<SeqNum>, patch: &mut Patch) {
        self.renumber(Side::Lan, side, header, seq, ack, patch);
        // The client's numbers nearly always are the server's too.
        if self.seq[Side::Wan] != SeqDelta::default() {
            self.renumber(Side::Wan, side, header, seq, ack, patch);
        }
    }

    /// Rewrites the one of the numbers of a header from `side` that counts the bytes of the end on the `counted` side.
    #[inline(always)]
    fn renumber(
        &self,
        counted: Side,
        side: Side,
        header: &mut [u8],
        seq: SeqNum,
        ack: Option<SeqNum>,
        patch: &mut Patch,
    ) {
        let delta = self.seq[counted];
        let (at, old, new) = if side == counted {
            (SEQ, seq, seq + delta)
        } else if let Some(ack) = ack {
            (ACK, ack, ack - delta)
        } else {
            return;
        };
        patch.replace32(at, old.get(), new.get());
        put32(header, at, new.get());
    }

    /// Rewrites the window field of a header from `side`, which is `field`.
    #[inline(always)]
    fn rescale_window(&self, side: Side, header: &mut [u8], field: RawWindow, patch: &mut Patch) {
        let scales = match side {
            Side::Lan => self.scales[Side::Lan],
            Side::Wan => self.scales[Side::Wan],
        };
        let rescaled = rescale(scales, field);
        if rescaled != field {
            patch.replace16(field.0, rescaled.0);
            put16(header, WINDOW, rescaled.0);
        }
    }

    /// Rewrites the options of a header from `side`, all visible bytes of which are in `header`.
    #[inline(always)]
    fn rewrite_options(&self, side: Side, header: &mut [u8], patch: &mut Patch) {
        // The layout every stack uses (RFC 7323 appendix A) needs no walk.
        if header.len() == TCP_LEN + TIMESTAMPS_ROOM
            && header[TCP_LEN..][..4] == [kind::NOP, kind::NOP, kind::TIMESTAMPS, 10]
        {
            return self.rewrite_timestamps(side, header, TCP_LEN + 2, patch);
        }
        // The walk borrows the header; options are few, so their places are noted first. At two bytes the least, 20 fit.
        let mut places = [(0, 0, 0); MAX_OPTIONS / 2];
        let mut count = 0;
        for (kind, at, len) in Walk::new(&header[TCP_LEN..]) {
            places[count] = (kind, TCP_LEN + at, len);
            count += 1;
        }
        for &(kind, at, len) in &places[..count] {
            match kind {
                kind::TIMESTAMPS if len == 10 => self.rewrite_timestamps(side, header, at, patch),
                kind::SACK if side == Side::Wan && self.removes_sack => blank(header, at, len, patch),
                kind::SACK => self.renumber_blocks(side, header, at, len, patch),
                _ => {}
            }
        }
    }

    /// Rewrites the SACK option of `len` bytes at `at`: its blocks are in the numbers of the receiver's bytes.
    fn renumber_blocks(&self, side: Side, header: &mut [u8], at: usize, len: usize, patch: &mut Patch) {
        let delta = -self.seq[side.other()];
        if delta == SeqDelta::default() {
            return;
        }
        for edge in (at + 2..at + len).step_by(4).take_while(|edge| edge + 4 <= at + len) {
            replace32(header, edge, delta.shift(be32(header, edge)), patch);
        }
    }

    /// Rewrites the timestamps option at `at`.
    fn rewrite_timestamps(&self, side: Side, header: &mut [u8], at: usize, patch: &mut Patch) {
        let [server, client] = [self.timestamps[Side::Lan], self.timestamps[Side::Wan]];
        if client && server {
            let timestamps = Timestamps { value: be32(header, at + 2), echo: be32(header, at + 6) };
            self.move_clocks(side, timestamps, header, at, patch);
        } else if client && side == Side::Wan {
            // The server has not agreed to timestamps (RFC 7323 section 3.2).
            blank(header, at, 10, patch);
        }
    }

    /// Rewrites the timestamps option at `at` of `bytes`, which begin at an even offset of the header; it says `timestamps`.
    #[inline(always)]
    fn move_clocks(&self, side: Side, timestamps: Timestamps, bytes: &mut [u8], at: usize, patch: &mut Patch) {
        self.move_clock(Side::Lan, side, timestamps, bytes, at, patch);
        // The client's clock nearly always is read by the server as it is.
        if self.ts[Side::Wan] != SeqDelta::default() {
            self.move_clock(Side::Wan, side, timestamps, bytes, at, patch);
        }
    }

    /// Rewrites the field of a timestamps option from `side` that is read from the clock of the end on the `owner` side.
    #[inline(always)]
    fn move_clock(
        &self,
        owner: Side,
        side: Side,
        Timestamps { value, echo }: Timestamps,
        bytes: &mut [u8],
        at: usize,
        patch: &mut Patch,
    ) {
        let (at, old, new) = if side == owner {
            (at + 2, value, self.ts[owner].shift(value))
        } else if echo != 0 {
            (at + 6, echo, (-self.ts[owner]).shift(self.floor(owner, echo)))
        } else {
            // A TSecr of zero means "no echo", so there is nothing to translate.
            return;
        };
        patch.replace32(at, old, new);
        put32(bytes, at, new);
    }

    /// An echo of the clock of `owner`, or the earliest that clock can have said.
    #[inline(always)]
    fn floor(&self, owner: Side, echo: u32) -> u32 {
        // Until the client has a segment of the server it echoes our SYN-ACK, which the server never sent.
        let is_ours =
            owner == Side::Lan && self.ts_elapsed < 1 << 30 && SeqNum::new(echo).before(SeqNum::new(self.ts_base));
        if is_ours { self.ts_base } else { echo }
    }

    /// Adds the timestamps that the client was promised and the server does not send: once negotiated they are on every segment (RFC 7323
    /// section 3.2). The segment goes without where there is no room for them.
    fn insert_timestamps(&self, segment: &Segment, head: &mut Head, clock: u32) {
        let (ip, tcp) = (usize::from(segment.ip), usize::from(segment.tcp));
        let options = usize::from(segment.payload) - tcp - TCP_LEN;
        let Some((surplus, shortened)) = surplus(&head.bytes()[tcp + TCP_LEN..][..options]) else { return };
        let grown = TIMESTAMPS_ROOM - surplus;
        if segment.payload_len() as usize + options + grown > usize::from(self.mss) {
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
        put32(list, 4, self.ts[Side::Lan].shift(clock));
        put32(list, 8, self.client_ts_value);
        if let Some((at, len)) = shortened {
            list[TIMESTAMPS_ROOM + at + 1] = len;
            list[TIMESTAMPS_ROOM + at + usize::from(len)..].fill(kind::END);
        }
        let mut patch = Patch::default();
        patch.replace16(before, checksum::sum(list));
        // The segment's length is part of the pseudo header.
        patch.replace16(0, grown as u16);
        let offset = be16(frame, tcp + DATA_OFFSET);
        let longer = offset + ((grown as u16 / 4) << 12);
        patch.replace16(offset, longer);
        put16(frame, tcp + DATA_OFFSET, longer);
        let sum = patch.apply(be16(frame, tcp + CHECKSUM));
        put16(frame, tcp + CHECKSUM, sum);

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
}

/// A window field converted between the two scales of [`Projection::scales`].
#[inline(always)]
fn rescale(scales: u8, field: RawWindow) -> RawWindow {
    let (own, told) = (scales & 15, scales >> 4);
    if own == told {
        return field;
    }
    (field << shift(own)).field(shift(told))
}

/// The shift that a scale's code stands for.
fn shift(code: u8) -> WindowScale {
    WindowScale::clamped(if code == 15 { 0 } else { code })
}

/// Replaces the 32-bit field at `offset` of a header.
pub(crate) fn replace32(header: &mut [u8], offset: usize, new: u32, patch: &mut Patch) {
    patch.replace32(offset, be32(header, offset), new);
    put32(header, offset, new);
}

/// Overwrites an option with no-operations.
pub(crate) fn blank(header: &mut [u8], at: usize, len: usize, patch: &mut Patch) {
    for (offset, byte) in (at..).zip(&mut header[at..at + len]) {
        patch.replace8(offset, *byte, kind::NOP);
        *byte = kind::NOP;
    }
}

/// How many bytes must go off the end of these options so that timestamps fit beside them: none, or no-operations, or whole blocks of a last SACK
/// option that keeps at least one, with that option's place and new length. `None` if they cannot be made to fit.
fn surplus(options: &[u8]) -> Option<(usize, Option<(usize, u8)>)> {
    const BLOCK: usize = 8;
    let shortage = (options.len() + TIMESTAMPS_ROOM).saturating_sub(MAX_OPTIONS);
    if shortage == 0 {
        return Some((0, None));
    }
    let last = Walk::new(options).last();
    // Where blocks were taken out there is room.
    if options.len() - last.map_or(0, |(_, at, len)| at + len) >= shortage {
        return Some((shortage, None));
    }
    let (surplus, (kind, at, len)) = (shortage.next_multiple_of(BLOCK), last?);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::test_segments::TestSegment;
    use crate::wire::{Options, Parsed};
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    use std::collections::BTreeMap;

    const NOW: u32 = 77_777;

    fn delta() -> impl Strategy<Value = SeqDelta> {
        prop_oneof![1 => Just(0), 3 => any::<u32>()].prop_map(|delta| SeqDelta::between(0, delta))
    }

    fn pair<T: Copy + core::fmt::Debug>(one: impl Strategy<Value = [T; 2]>) -> impl Strategy<Value = PerSide<T>> {
        one.prop_map(|[lan, wan]| PerSide::new(lan, wan))
    }

    /// Any projection, with a small MSS.
    fn projection() -> impl Strategy<Value = Projection> {
        let elapsed = prop_oneof![0u32..1 << 30, any::<u32>()];
        let deltas = (pair([delta(), delta()]), pair([delta(), delta()]));
        let agreed = (pair(any::<[u8; 2]>()), pair(any::<[bool; 2]>()), any::<bool>());
        (deltas, (any::<u32>(), elapsed), agreed, 12u16..400, any::<u32>()).prop_map(
            |((seq, ts), (ts_base, ts_elapsed), (scales, timestamps, removes_sack), mss, client_ts_value)| Projection {
                seq,
                ts,
                ts_base,
                ts_elapsed,
                scales,
                timestamps,
                removes_sack,
                mss,
                client_ts_value,
            },
        )
    }

    /// Options in whole words: timestamps or none, aligned or not, and SACK blocks or none, in either order.
    fn options() -> impl Strategy<Value = Vec<u8>> {
        let timestamps = prop_oneof![1 => Just(vec![]), 3 => any::<[u32; 2]>().prop_map(|[value, echo]| {
            let echo = if echo.is_multiple_of(8) { 0 } else { echo };
            [&[kind::TIMESTAMPS, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
        })];
        let sack = prop_oneof![
            Just(vec![]),
            prop::collection::vec(any::<[u8; 8]>(), 1..=2)
                .prop_map(|blocks| { [&[kind::SACK, 2 + 8 * blocks.len() as u8], blocks.as_flattened()].concat() })
        ];
        (timestamps, sack, 0usize..3, any::<bool>()).prop_map(|(timestamps, sack, before, swapped)| {
            let (one, other) = if swapped { (sack, timestamps) } else { (timestamps, sack) };
            let mut options = [&vec![kind::NOP; before], &one[..], &other].concat();
            options.resize(options.len().next_multiple_of(4), kind::NOP);
            options
        })
    }

    fn segment() -> impl Strategy<Value = TestSegment> {
        let flags = prop_oneof![4 => Just(0x10u16), 1 => 0u16..0x200];
        let window = prop_oneof![0u16..200, any::<u16>()];
        let side = prop_oneof![Just(Side::Lan), Just(Side::Wan)];
        let shape = (options(), prop_oneof![Just(0usize), 1usize..300]);
        (side, any::<bool>(), any::<[u32; 2]>(), flags, window, shape).prop_map(
            |(side, v6, [seq, ack], flags, window, (options, payload))| TestSegment {
                side,
                v6,
                seq,
                ack,
                flags,
                reserved: seq as u8 & 7,
                window,
                options,
                payload,
                ..TestSegment::default()
            },
        )
    }

    /// What becomes of a frame that holds a segment from `side`, with room in front and behind.
    fn applied(projection: &Projection, side: Side, frame: &[u8]) -> Vec<u8> {
        let mut buffer = [&[0; 64], frame, &[0; 64]].concat();
        let mut head = Head::new(&mut buffer, 64, frame.len(), frame.len());
        let Parsed::Tcp(segment) = Parsed::parse(side, &head) else { panic!("it is a segment") };
        projection.apply(side, &segment, &mut head, NOW);
        head.bytes().to_vec()
    }

    /// The segment's TCP header.
    fn header(said: &TestSegment, frame: &[u8]) -> Vec<u8> {
        frame[if said.v6 { 54 } else { 34 }..][..TCP_LEN + said.options.len()].to_vec()
    }

    /// The projection, with nothing in it by which this segment would lose or gain something.
    fn without_loss(mut projection: Projection, said: &TestSegment) -> Projection {
        projection.removes_sack = false;
        if projection.inserts_timestamps() {
            projection.timestamps[Side::Lan] = true;
        }
        let (scales, window) = (projection.scales[said.side], RawWindow(said.window));
        if rescale(scales.rotate_left(4), rescale(scales, window)) != window {
            projection.scales[said.side] = scales & 15 | scales << 4;
        }
        let echo = Options::timestamps(&said.options).map_or(0, |timestamps| timestamps.echo);
        if projection.floor(said.side.other(), echo) != echo {
            projection.ts_elapsed = u32::MAX;
        }
        projection
    }

    /// The projection with one of its fields taken from another, for each field.
    fn with_each_field(projection: Projection, other: Projection) -> Vec<(&'static str, Projection)> {
        // Named in full, so that the compiler finds a new one.
        let Projection { seq, ts, ts_base, ts_elapsed, scales, timestamps, removes_sack, mss, client_ts_value } = other;
        let own = projection;
        vec![
            ("seq, LAN", Projection { seq: PerSide::new(seq[Side::Lan], own.seq[Side::Wan]), ..own }),
            ("seq, WAN", Projection { seq: PerSide::new(own.seq[Side::Lan], seq[Side::Wan]), ..own }),
            ("ts, LAN", Projection { ts: PerSide::new(ts[Side::Lan], own.ts[Side::Wan]), ..own }),
            ("ts, WAN", Projection { ts: PerSide::new(own.ts[Side::Lan], ts[Side::Wan]), ..own }),
            ("ts_base", Projection { ts_base, ..own }),
            ("ts_elapsed", Projection { ts_elapsed, ..own }),
            ("scales, LAN", Projection { scales: PerSide::new(scales[Side::Lan], own.scales[Side::Wan]), ..own }),
            ("scales, WAN", Projection { scales: PerSide::new(own.scales[Side::Lan], scales[Side::Wan]), ..own }),
            (
                "timestamps, LAN",
                Projection { timestamps: PerSide::new(timestamps[Side::Lan], own.timestamps[Side::Wan]), ..own },
            ),
            (
                "timestamps, WAN",
                Projection { timestamps: PerSide::new(own.timestamps[Side::Lan], timestamps[Side::Wan]), ..own },
            ),
            ("removes_sack", Projection { removes_sack, ..own }),
            ("mss", Projection { mss, ..own }),
            ("client_ts_value", Projection { client_ts_value, ..own }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn the_inverse_leads_back(projection in projection(), said in segment()) {
            let (projection, frame) = (without_loss(projection, &said), said.frame());
            let there = applied(&projection, said.side, &frame);
            let back = applied(&projection.inverse(), said.side, &there);
            prop_assert_eq!(back, &frame[..]);
        }

        /// A quote shows the beginning of a header: what it shows is rewritten as in the whole.
        #[test]
        fn what_is_in_sight_of_a_header_is_rewritten_as_in_the_whole(projection in projection(), said in segment()) {
            let mut whole = header(&said, &said.frame());
            let seen = whole.clone();
            projection.apply_to_header(said.side, &mut whole);
            // The shortest shows the flags.
            for len in [WINDOW, WINDOW + 2, CHECKSUM + 2, TCP_LEN, seen.len()] {
                let mut part = seen[..len].to_vec();
                let patch = projection.apply_to_header(said.side, &mut part);
                prop_assert_eq!(&part[..], &whole[..len]);
                let sums = [&seen[..len], &part].map(|bytes| !checksum::sum(bytes));
                prop_assert_eq!(patch.apply(sums[0]), sums[1]);
            }
        }
    }

    #[test]
    fn no_operations_behind_the_last_option_make_room_for_timestamps() {
        let sack = [[5, 10].as_slice(), &[9; 8]].concat();
        for (options, kept) in
            [(vec![1; 36], 28), ([&sack[..], &[1; 26]].concat(), 28), ([&[1, 1][..], &sack, &[1; 28]].concat(), 28)]
        {
            assert_eq!(surplus(&options), Some((options.len() - kept, None)));
        }
        // Nothing of an option is taken for one, whatever is in it.
        assert_eq!(surplus(&[[254, 36].as_slice(), &[1; 34]].concat()), None);
    }

    #[test]
    fn every_field_matters() {
        let differences = std::cell::RefCell::new(BTreeMap::<&str, u32>::new());
        let strategy = (projection(), projection(), segment());
        let run = TestRunner::new(ProptestConfig::with_cases(2000)).run(&strategy, |(projection, other, said)| {
            let frame = said.frame();
            let before = applied(&projection, said.side, &frame);
            for (field, changed) in with_each_field(projection, other) {
                let differs = applied(&changed, said.side, &frame) != before;
                *differences.borrow_mut().entry(field).or_default() += u32::from(differs);
            }
            Ok(())
        });
        run.unwrap_or_else(|failure| panic!("{failure}"));
        let differences = differences.into_inner();
        assert!(differences.values().all(|&count| count > 10), "{differences:?}");
    }
}
