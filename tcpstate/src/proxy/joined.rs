//! Both ends talk: their segments are followed, translated and passed.
//!
//! The ends judge for themselves what they accept; the proxy only refuses to be fooled in its own bookkeeping,
//! and answers for an end where a forged segment could otherwise end a connection (RFC 5961).

use super::{Proxy, Turn};
use crate::flow::{Marks, State};
use crate::seq::SeqNum;
use crate::table::Id;
use crate::translate::translate;
use crate::wheel::tick;
use crate::wire::{Flags, Options};
use crate::{DropReason, Egress, Event, Side, Verdict};

/// How far beyond a window a segment may reach and still be believed: fragments hide a segment's true length.
const SLACK: u32 = 65_535;

impl Proxy {
    /// Segments of a flow whose ends have met.
    pub(super) fn on_joined(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        let flags = turn.segment.flags;
        if flags.has(Flags::SYN) {
            return self.on_syn_while_joined(turn, id);
        }
        if flags.has(Flags::RST) {
            return self.on_reset(turn, id);
        }
        if turn.side == Side::Wan
            && self.table[id].is(Marks::REOPENING)
            && let Some(proof) = self.open_cookie(&turn)
        {
            return self.accept_cookie(turn, &proof, Some(id));
        }
        self.track_and_pass(turn, id)
    }

    fn on_syn_while_joined(&mut self, mut turn: Turn<impl Egress>, id: Id) -> Verdict {
        let flow = &self.table[id];
        let proxied = flow.is(Marks::PROXIED);
        match (turn.side, turn.segment.flags.has(Flags::ACK)) {
            (Side::Wan, false) if flow.is_over() => self.answer_syn(turn, Some(id)),
            // RFC 5961 section 4: a client that has forgotten the connection will reset it when it sees this.
            (Side::Wan, false) if proxied => self.challenge(turn, id),
            (Side::Wan, true) if proxied => Verdict::Drop(DropReason::WrongState),
            (Side::Lan, false) if flow.is_over() || !proxied => self.open_direct(turn, Some(id)),
            (Side::Lan, false) => Verdict::Drop(DropReason::WrongState),
            // The server has not seen the handshake's last acknowledgement.
            (Side::Lan, true) if proxied => self.acknowledge_in_place(&mut turn, id, Event::LanSegment),
            _ => Verdict::Forward,
        }
    }

    /// RFC 5961 section 3: a reset that hits the next expected number ends the connection, one that only falls into the window is
    /// answered with a challenge, any other is nothing.
    fn on_reset(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        if !turn.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let flow = &self.table[id];
        let seq = turn.segment.seq + flow.outward(turn.side);
        let (sender, receiver) = (flow.half(turn.side), flow.half(turn.side.other()));
        // What the receiver expects next lies between what it has acknowledged and what was sent to it.
        if seq.within(receiver.acked, sender.next) {
            if flow.state != State::Reset {
                self.set_state(id, State::Reset, turn.now);
            }
            return self.pass(turn, id);
        }
        if !flow.is(Marks::PROXIED) {
            // Its receiver will challenge it itself.
            return Verdict::Forward;
        }
        if seq.beyond(receiver.acked) < receiver.granted().0 {
            return self.challenge(turn, id);
        }
        Verdict::Drop(DropReason::BadReset)
    }

    /// Whether both numbers of a segment can belong to the connection as it stands.
    fn is_in_sequence(&self, turn: &Turn<impl Egress>, id: Id) -> bool {
        let flow = &self.table[id];
        let receiver = flow.half(turn.side.other());
        let end = turn.segment.seq + flow.outward(turn.side) + turn.segment.seq_len();
        let reach = receiver.granted().0 + SLACK;
        let near = |number: SeqNum, origin: SeqNum, ahead: u32, behind: u32| {
            number.beyond(origin) <= ahead || origin.beyond(number) <= behind
        };
        // Acknowledgements need no translation here: the client's are outer numbers, the server's are the client's own.
        near(end, receiver.acked, reach, reach) && near(turn.segment.ack, receiver.next, 0, 1 << 30)
    }

    /// Follows a segment and passes it.
    pub(super) fn track_and_pass(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        if !turn.segment.flags.has(Flags::ACK) {
            return Verdict::Drop(DropReason::BadFlags);
        }
        if self.is_in_sequence(&turn, id) {
            self.track(&turn, id);
        }
        self.pass(turn, id)
    }

    /// Notes what a believable segment says.
    fn track(&mut self, turn: &Turn<impl Egress>, id: Id) {
        let (side, segment) = (turn.side, turn.segment);
        let flow = &mut self.table[id];
        let end = segment.seq + flow.outward(side) + segment.seq_len();
        let timestamps =
            if flow.is(Marks::TIMESTAMPS) { Options::timestamps(segment.options(turn.head.bytes())) } else { None };
        let ts_delta = flow.ts_delta;
        let half = flow.half_mut(side);
        if end.after(half.next) {
            half.next = end;
        }
        let is_latest = end == half.next;
        if !segment.ack.before(half.acked) {
            half.acked = segment.ack;
            half.window = segment.window;
        }
        if let Some(timestamps) = timestamps {
            let value = if side == Side::Lan { ts_delta.shift(timestamps.value) } else { timestamps.value };
            if !SeqNum::new(value).before(SeqNum::new(half.ts_value)) {
                half.ts_value = value;
            }
        }
        if segment.flags.has(Flags::FIN) && is_latest && !flow.has_finished(side) {
            flow.finish(side, end);
        }
        flow.note_fin_acked(side);
        if side == Side::Wan {
            flow.mark(Marks::UPDATE_PENDING, false);
        }
        let was_over = flow.is_over();
        let state = if flow.state == State::Reset { State::Reset } else { flow.state_by_fins() };
        if state != flow.state || flow.is_over() != was_over {
            self.set_state(id, state, turn.now);
        } else if state != State::TimeWait || segment.flags.has(Flags::FIN) {
            self.rest(id, turn.now);
        }
    }

    /// Translates a segment, if its flow is one of ours, and passes it.
    fn pass(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        let flow = &mut self.table[id];
        if flow.is(Marks::PROXIED) {
            translate(flow, turn.side, turn.segment, turn.head, self.sack_conflict, tick(turn.now));
        }
        Verdict::Forward
    }
}
