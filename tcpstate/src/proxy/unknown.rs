//! Segments of connections nobody knows. For a while after the start they may belong to some that run already, which are adopted: the LAN's
//! word makes a record, the WAN's agreement makes it last. Later they are strays.

use super::{Proxy, Turn};
use crate::config::Stray;
use crate::flow::{Flow, Marks, State};
use crate::table::Id;
use crate::wire::{Flags, Segment};
use crate::{DropReason, Egress, Event, Side, Verdict};

/// How far a segment's numbers may lie from what the other direction last said of them.
const TOLERANCE: u32 = 1 << 26;

impl Proxy {
    /// A segment without SYN that belongs to no flow and proves nothing.
    pub(super) fn on_unknown(&mut self, mut turn: Turn<impl Egress>) -> Verdict {
        let resets = turn.segment.flags.has(Flags::RST);
        turn.egress.note(|| {
            let left = self.adopt_until.since(turn.now).as_secs();
            let adopted =
                if left > 0 { format!("are adopted for {left} s yet") } else { "are not adopted any more".into() };
            format!("nobody knows this connection; such as run already {adopted}")
        });
        if turn.now < self.adopt_until {
            return match turn.side {
                // It answers a segment that was passed without a trace; one that acknowledges answers a SYN, and that was ours.
                Side::Lan if resets && !turn.segment.flags.has(Flags::ACK) => Verdict::Forward,
                Side::Lan if resets => Verdict::Drop(DropReason::NoFlow),
                Side::Lan => self.adopt(turn),
                // Passed without a trace, and not many: what the server answers will tell whether it knows the connection.
                Side::Wan if self.passed.take(turn.now) => Verdict::Forward,
                Side::Wan => Verdict::Drop(DropReason::NoFlow),
            };
        }
        if self.stray == Stray::Reset && !resets && turn.is_sound() && self.passed.take(turn.now) {
            self.counters.count(Event::StrayReset);
            return Self::reset_in_place(&mut turn);
        }
        Verdict::Drop(if turn.side == Side::Lan || resets { DropReason::NoFlow } else { DropReason::BadCookie })
    }

    /// The LAN speaks of a connection: it is one of its own, but whether the other end sees the same numbers is open.
    fn adopt(&mut self, turn: Turn<impl Egress>) -> Verdict {
        if !turn.segment.flags.has(Flags::ACK) {
            return Verdict::Drop(DropReason::BadFlags);
        }
        self.make_room(turn.now, turn.egress);
        let (ends, hash) = (*turn.ends(), turn.hash);
        let envelope = turn.envelope();
        let admitted = self.admit(&ends, hash, turn.now, |flow| {
            flow.state = State::Established;
            flow.mark(Marks::UNJUDGED, true);
            flow.mark(Marks::TENTATIVE, true);
            flow.keep_way(Side::Lan, &envelope);
            flow.half_mut(Side::Lan).ttl = envelope.ttl;
            note(flow, Side::Lan, turn.segment);
            let client = flow.half_mut(Side::Wan);
            (client.next, client.acked) = (turn.segment.ack, turn.segment.seq);
        });
        match admitted {
            Some(id) => {
                self.openings.push(id, self.table[id].generation);
                Verdict::Forward
            }
            None => Verdict::Drop(DropReason::TableFull),
        }
    }

    /// Segments of a connection of which one direction has been seen.
    pub(super) fn on_tentative(&mut self, mut turn: Turn<impl Egress>, id: Id) -> Verdict {
        let Segment { seq, ack, flags, .. } = *turn.segment;
        if flags.has(Flags::SYN) {
            return match (turn.side, flags.has(Flags::ACK)) {
                (Side::Wan, false) => self.answer_syn(turn, Some(id)),
                (Side::Lan, false) => self.open_direct(turn, Some(id)),
                (_, true) => Verdict::Drop(DropReason::WrongState),
            };
        }
        if turn.side == Side::Wan
            && self.table[id].is(Marks::REOPENING)
            && let Ok(proof) = self.open_cookie(&mut turn)
        {
            return self.accept_cookie(turn, &proof, Some(id));
        }
        let flow = &mut self.table[id];
        if turn.side == Side::Lan {
            note(flow, Side::Lan, turn.segment);
            return Verdict::Forward;
        }
        let lan = flow.half(Side::Lan);
        let agrees = lan.next.beyond(ack).wrapping_add(TOLERANCE) <= 2 * TOLERANCE
            && lan.acked.beyond(seq).wrapping_add(TOLERANCE) <= 2 * TOLERANCE;
        turn.egress.note(|| {
            let (seq, ack) = (lan.acked.get(), lan.next.get());
            let agrees = if agrees { "agrees" } else { "does not agree" };
            format!("the LAN said seq {seq} and ack {ack} of this connection, give or take 64 MiB: this {agrees}")
        });
        if !agrees {
            return Verdict::Drop(DropReason::NoFlow);
        }
        note(flow, Side::Wan, turn.segment);
        if !flags.has(Flags::RST) {
            flow.mark(Marks::TENTATIVE, false);
            self.counters.count(Event::Adopted);
            self.rest(id, turn.now);
        }
        Verdict::Forward
    }
}

/// Notes where a direction stands.
fn note(flow: &mut Flow, side: Side, segment: &Segment) {
    let half = flow.half_mut(side);
    (half.next, half.acked, half.window) = (segment.seq + segment.seq_len(), segment.ack, segment.window);
}
