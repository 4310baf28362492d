//! A host's manner of speaking TCP: the options it has, where its numbers begin, how it lays out a header.
//!
//! smoltcp has one manner. This layer, between the stack and the cable, gives every host its own: initial sequence
//! numbers near the wrap, clocks that start anywhere, options missing or at odd offsets, D-SACK, several SACK blocks.
//! Seen from the cable, stack and layer together are the host; the oracle stands outside.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::chance::Chance;
use crate::oracle::{Layout, Segment, pattern};

/// A manner of speaking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Window scaling is offered and answered.
    pub scale: bool,
    /// SACK is offered and answered.
    pub sack: bool,
    /// Timestamps are offered and answered.
    pub stamps: bool,
    /// How options are laid out.
    pub layout: Layout,
    /// Segments below the acknowledgement are reported as D-SACK (RFC 2883).
    pub duplicates: bool,
    /// Added to the timestamp clock.
    pub clock: u32,
    /// The initial sequence number; the stack's own if none.
    pub isn: Option<u32>,
}

impl Dialect {
    /// Draws a manner of speaking.
    pub fn draw(chance: &mut Chance) -> Self {
        Self {
            scale: chance.one_in(3, 4),
            sack: chance.one_in(3, 4),
            stamps: chance.one_in(2, 3),
            layout: Layout(chance.within(0..u64::from(Layout::COUNT)) as u8),
            duplicates: chance.one_in(1, 2),
            clock: if chance.one_in(1, 3) {
                // The clock wraps during the run.
                (chance.within(0..30_000) as u32).wrapping_neg()
            } else {
                chance.word() as u32
            },
            isn: None,
        }
    }

    /// Draws an initial sequence number: in half of all cases one that wraps within the transfer.
    pub fn draw_isn(&mut self, chance: &mut Chance) {
        self.isn = Some(if chance.one_in(1, 2) {
            (chance.within(0..100_000) as u32).wrapping_neg()
        } else {
            chance.word() as u32
        });
    }
}

/// One connection, as the layer remembers it.
#[derive(Clone, Debug)]
struct Call {
    dialect: Dialect,
    /// The stack's own initial sequence number and its distance to the one on the cable.
    isn: Option<u32>,
    shift: u32,
    /// Whether each side permitted SACK: blocks may be sent if both did.
    sack_here: bool,
    sack_there: bool,
    /// The window scale each side announced.
    scale_here: Option<u8>,
    scale_there: Option<u8>,
    /// The right edge of the window promised.
    edge: Option<u32>,
    /// The highest acknowledgement received.
    heard: Option<u32>,
    /// The highest acknowledgement sent.
    acked: Option<u32>,
    /// A duplicate segment received and not yet reported.
    duplicate: Option<(u32, u32)>,
    /// Blocks reported lately.
    reported: Vec<(u32, u32)>,
}

/// The manners of one host, by connection (local end first).
#[derive(Debug, Default)]
pub struct Tongue {
    calls: BTreeMap<(SocketAddr, SocketAddr), Call>,
}

impl Tongue {
    /// Settles how the host speaks in this connection.
    pub fn settle(&mut self, local: SocketAddr, remote: SocketAddr, dialect: Dialect) {
        self.calls.insert(
            (local, remote),
            Call {
                dialect,
                isn: None,
                shift: 0,
                sack_here: false,
                sack_there: false,
                scale_here: None,
                scale_there: None,
                edge: None,
                heard: None,
                acked: None,
                duplicate: None,
                reported: Vec::new(),
            },
        );
    }

    /// What the cable gets for this frame of the stack.
    pub fn outward(&mut self, frame: Vec<u8>) -> Vec<u8> {
        let Some(mut segment) = Segment::read(&frame) else { return frame };
        let Some(call) = self.calls.get_mut(&(segment.source, segment.destination)) else { return frame };
        if segment.syn && call.isn != Some(segment.seq) {
            call.isn = Some(segment.seq);
            call.shift = call.dialect.isn.map_or(0, |isn| isn.wrapping_sub(segment.seq));
        }
        segment.seq = segment.seq.wrapping_add(call.shift);
        if let (&[byte], Some(isn), Some(heard)) = (segment.payload, call.isn, call.heard) {
            // The byte of smoltcp's keepalives is none of the stream's. While the true one has not arrived, its own
            // receiver takes it for that.
            let offset = segment.seq.wrapping_sub(isn.wrapping_add(call.shift)).wrapping_sub(1);
            let missing = (segment.seq.wrapping_sub(heard) as i32) >= 0;
            if missing && byte != pattern(segment.source, segment.destination, u64::from(offset)) {
                segment.payload = &[];
            }
        }
        if segment.syn {
            if !call.dialect.scale {
                segment.options.scale = None;
            }
            segment.options.sack_permitted &= call.dialect.sack;
            call.sack_here = segment.options.sack_permitted;
            call.scale_here = segment.options.scale;
        }
        if let Some((value, echo)) = segment.options.stamps {
            segment.options.stamps = Some((value.wrapping_add(call.dialect.clock), echo));
        }
        if let Some(ack) = segment.ack
            && !segment.rst
        {
            if call.acked.is_none_or(|acked| (ack.wrapping_sub(acked) as i32) > 0) {
                call.acked = Some(ack);
            }
            let shift = match call.scale_there {
                Some(_) if !segment.syn => call.scale_here.unwrap_or(0),
                _ => 0,
            };
            let edge = ack.wrapping_add(u32::from(segment.window) << shift);
            if call.edge.is_none_or(|old| (edge.wrapping_sub(old) as i32) > 0) {
                call.edge = Some(edge);
            }
            if !segment.syn && segment.payload.is_empty() && call.sack_here && call.sack_there {
                call.add_blocks(&mut segment, ack);
            }
        }
        rewrite(&frame, &segment, call.dialect.layout)
    }

    /// What the stack gets for this frame of the cable.
    pub fn inward(&mut self, frame: Vec<u8>) -> Vec<u8> {
        let Some(mut segment) = Segment::read(&frame) else { return frame };
        let Some(call) = self.calls.get_mut(&(segment.destination, segment.source)) else { return frame };
        if !segment.sums_right() {
            return frame;
        }
        if let Some(ack) = &mut segment.ack {
            if call.heard.is_none_or(|heard| (ack.wrapping_sub(heard) as i32) > 0) {
                call.heard = Some(*ack);
            }
            *ack = ack.wrapping_sub(call.shift);
        }
        for (left, right) in segment.options.sack.iter_mut().flatten() {
            *left = left.wrapping_sub(call.shift);
            *right = right.wrapping_sub(call.shift);
        }
        if let Some((_, echo)) = &mut segment.options.stamps
            && *echo != 0
        {
            *echo = echo.wrapping_sub(call.dialect.clock);
        }
        if segment.syn {
            if !call.dialect.scale {
                segment.options.scale = None;
            }
            segment.options.sack_permitted &= call.dialect.sack;
            call.sack_there = segment.options.sack_permitted;
            call.scale_there = segment.options.scale;
            if !call.dialect.stamps {
                segment.options.stamps = None;
            }
        } else if call.dialect.duplicates && !segment.payload.is_empty() {
            let end = segment.seq.wrapping_add(segment.payload.len() as u32);
            // The byte of a keepalive lies below the acknowledgement too; it is reported like any duplicate.
            if call.acked.is_some_and(|acked| (end.wrapping_sub(acked) as i32) <= 0) {
                call.duplicate = Some((segment.seq, end));
            }
        }
        // smoltcp takes the FIN of a segment whose data it had to cut at its window's edge.
        if let (Some(edge), true) = (call.edge, segment.fin) {
            let end = segment.seq.wrapping_add(segment.payload.len() as u32);
            segment.fin = (end.wrapping_sub(edge) as i32) <= 0;
        }
        // The stack reads four blocks and writes three; a fourth means nothing to it.
        segment.options.sack[3] = None;
        rewrite(&frame, &segment, Layout::default())
    }
}

impl Call {
    /// Completes the one block the stack reports: a D-SACK before it, blocks reported earlier behind it.
    fn add_blocks(&mut self, segment: &mut Segment, ack: u32) {
        let fresh: Vec<_> = segment.options.blocks().collect();
        self.reported.retain(|&(left, right)| {
            (left.wrapping_sub(ack) as i32) > 0
                && !fresh
                    .iter()
                    .any(|&(from, to)| (to.wrapping_sub(left) as i32) >= 0 && (right.wrapping_sub(from) as i32) >= 0)
        });
        let room = if segment.options.stamps.is_some() { 3 } else { 4 };
        let duplicate = self.duplicate.take();
        let blocks: Vec<_> = duplicate
            .into_iter()
            .chain(fresh.iter().copied())
            .chain(self.reported.iter().copied())
            .take(room)
            .collect();
        segment.options.sack = [0, 1, 2, 3].map(|place| blocks.get(place).copied());
        for block in fresh {
            self.reported.insert(0, block);
        }
        self.reported.truncate(4);
    }
}

/// The frame with this segment in place of its own.
fn rewrite(frame: &[u8], segment: &Segment, layout: Layout) -> Vec<u8> {
    let mac = |at: usize| -> [u8; 6] { frame[at..at + 6].try_into().expect("six bytes") };
    segment.write(mac(6), mac(0), layout)
}
