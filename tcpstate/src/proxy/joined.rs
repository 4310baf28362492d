//! Both ends talk: their segments are followed, translated and passed.
//!
//! The ends judge for themselves what they accept; the proxy only refuses to be fooled in its own bookkeeping,
//! and answers for an end where a forged segment could otherwise end a connection (RFC 5961).

use super::handshake::is_damaged;
use super::{Proxy, Turn, half_second};
use crate::ecn;
use crate::flow::{Marks, State};
use crate::seq::SeqNum;
use crate::table::Id;
use crate::translate::translate;
use crate::wheel::tick;
use crate::wire::{Flags, Options};
use crate::{DropReason, Egress, Event, Side, Verdict};

/// How far beyond a window a segment may reach and still be believed: fragments hide a segment's true length.
const SLACK: u32 = 65_535;
/// Ticks by which a timestamp clock may advance from one segment to the next and be believed without a sum over the payload.
const SMALL_STEP: u32 = 16;
/// How far behind the latest number an old segment is believed: as far as a large window reaches.
const FAR_BEHIND: u32 = 1 << 26;

impl Proxy {
    /// Segments of a flow whose ends have met.
    pub(super) fn on_joined(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        let flags = turn.segment.flags;
        if self.table[id].is(Marks::TENTATIVE) {
            return self.on_tentative(turn, id);
        }
        if flags.has(Flags::SYN) {
            return self.on_syn_while_joined(turn, id);
        }
        if flags.has(Flags::RST) {
            return self.on_reset(turn, id);
        }
        if turn.side == Side::Wan
            && self.table[id].is(Marks::REOPENING)
            // The connection's own cookie still opens; it proves nothing new.
            && turn.segment.ack != self.table[id].outer_isn + 1
            && let Ok(proof) = self.open_cookie(&turn)
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
            (Side::Wan, false) if proxied => self.on_call_while_joined(turn, id),
            (Side::Wan, true) if proxied => Verdict::Drop(DropReason::WrongState),
            (Side::Lan, false) if flow.is_over() || !proxied => self.open_direct(turn, Some(id)),
            (Side::Lan, false) if turn.is_sound() => self.challenge(turn, id),
            (Side::Lan, false) => Verdict::Drop(DropReason::BadChecksum),
            (Side::Lan, true) if proxied => {
                if !turn.is_sound() {
                    return Verdict::Drop(DropReason::BadChecksum);
                }
                let repeated = turn.segment.seq + flow.seq_delta == flow.outer_isn && flow.state != State::Reset;
                // A server that has not seen the handshake's last acknowledgement is sent it again; one that was woken by a
                // stray copy of our SYN is told to forget it.
                if repeated {
                    self.counters.count(Event::AnswerRepeated);
                    self.settle_early(id);
                    self.acknowledge_in_place(&mut turn, id)
                } else {
                    Self::reset_in_place(&mut turn)
                }
            }
            _ => Verdict::Forward,
        }
    }

    /// A client calls although its ends have a connection. RFC 5961 section 4: it is told so, and if it has forgotten the connection will reset
    /// it. One that calls again, without a word on the old connection in between, cannot be told: then its call is answered, and
    /// the old connection lives until the new one is proved.
    fn on_call_while_joined(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        if !turn.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let flow = &mut self.table[id];
        if flow.is(Marks::SYN_CHALLENGED) && flow.challenged != half_second(turn.now) {
            return self.answer_syn(turn, Some(id));
        }
        flow.mark(Marks::SYN_CHALLENGED, true);
        self.challenge(turn, id)
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
        let granted = flow.granted(turn.side.other()).0;
        // What the receiver expects next lies between what it has acknowledged and what was sent to it; of which it may know more than we, if
        // fragments came.
        let sent = SeqNum::new(SeqNum::later(receiver.acked.get(), sender.next.get()));
        if seq.within(receiver.acked, sent) {
            if flow.state != State::Reset {
                self.set_state(id, State::Reset, turn.now);
            }
            return self.pass(turn, id);
        }
        if flow.is(Marks::UNJUDGED) {
            return self.pass(turn, id);
        }
        if seq.beyond(receiver.acked) < granted {
            return self.challenge(turn, id);
        }
        Verdict::Drop(DropReason::BadReset)
    }

    /// Whether both numbers of a segment can belong to the connection as it stands.
    fn is_in_sequence(&self, turn: &Turn<impl Egress>, id: Id) -> bool {
        let flow = &self.table[id];
        let receiver = flow.half(turn.side.other());
        let granted = flow.granted(turn.side.other()).0;
        let end = turn.segment.seq + flow.outward(turn.side) + turn.segment.seq_len();
        let near = |number: SeqNum, origin: SeqNum, ahead| {
            number.beyond(origin) <= ahead || origin.beyond(number) <= FAR_BEHIND
        };
        // Acknowledgements need no translation here: the client's are outer numbers, the server's are the client's own.
        let (slack, hidden) = match (flow.is(Marks::UNJUDGED), flow.is(Marks::FRAGMENTED)) {
            // Nobody has told us its scales.
            (true, _) => (FAR_BEHIND, FAR_BEHIND),
            (false, true) => (SLACK, SLACK),
            (false, false) => (SLACK, 0),
        };
        near(end, receiver.acked, granted + slack) && near(turn.segment.ack, receiver.next, hidden)
    }

    /// Follows a segment and passes it.
    pub(super) fn track_and_pass(&mut self, mut turn: Turn<impl Egress>, id: Id) -> Verdict {
        if !turn.segment.flags.has(Flags::ACK) {
            return Verdict::Drop(DropReason::BadFlags);
        }
        if self.is_in_sequence(&turn, id) {
            if turn.side == Side::Wan && self.table[id].is(Marks::MSS_BROKEN) {
                self.tell_too_big(&mut turn, id);
            }
            self.track(&turn, id);
        } else if turn.side == Side::Wan && self.table[id].is(Marks::PROXIED) && !self.table[id].is(Marks::UNJUDGED) {
            if is_damaged(&turn) {
                return Verdict::Drop(DropReason::BadChecksum);
            }
            // It may belong to the new connection that these ends are opening.
            if self.table[id].is(Marks::REOPENING) {
                return Verdict::Drop(DropReason::BadCookie);
            }
            // RFC 5961 section 5: blind data. What the server would answer, the client is answered.
            return self.challenge(turn, id);
        }
        self.pass(turn, id)
    }

    /// Notes what a believable segment says.
    fn track(&mut self, turn: &Turn<impl Egress>, id: Id) {
        let (side, segment) = (turn.side, turn.segment);
        let flow = &mut self.table[id];
        // While we are about to speak for an end, only what it certainly said counts.
        if (flow.is(Marks::UPDATE_PENDING) || flow.is(Marks::ACK_OWED)) && is_damaged(turn) {
            return;
        }
        let was_over = flow.is_over();
        let end = segment.seq + flow.outward(side) + segment.seq_len();
        flow.mark_if(Marks::FRAGMENTED, segment.fragmented);
        // Our own segments bear and echo these clocks, which therefore must neither lag nor come from a damaged segment: small steps
        // are believed, others examined, and all where each segment bears our echo.
        let lends = flow.is(Marks::TIMESTAMPS) && !flow.is(Marks::TIMESTAMPS_LAN);
        let timestamps = if flow.is(Marks::TIMESTAMPS) { Options::timestamps(turn.options()) } else { None };
        let ts_delta = flow.ts_delta;
        // Nothing comes after a FIN, whatever a damaged segment may claim.
        let (finished, other_finished) = (flow.has_finished(side), flow.has_finished(side.other()));
        // But where a FIN is, fragments hide.
        let settled = !flow.is(Marks::FRAGMENTED);
        let other = flow.half_mut(side.other());
        if segment.ack.after(other.next) && !(other_finished && settled) {
            // What fragments hid has been sent all the same.
            other.next = segment.ack;
        }
        let half = flow.half_mut(side);
        if end.after(half.next) && segment.seq_len() > 0 && !(finished && settled) {
            half.next = end;
        }
        if !segment.ack.before(half.acked) {
            half.acked = segment.ack;
            half.window = segment.window;
            flow.mark(Marks::WINDOW_UNSCALED, flow.is(Marks::WINDOW_UNSCALED) && side == Side::Wan);
        }
        let half = flow.half_mut(side);
        if let Some(timestamps) = timestamps {
            let value = if side == Side::Lan { ts_delta.shift(timestamps.value) } else { timestamps.value };
            let step = value.wrapping_sub(half.ts_value);
            if step != 0 && step < 1 << 31 && ((step <= SMALL_STEP && !lends) || turn.is_sound()) {
                half.ts_value = value;
            }
        }
        // A connection does not end by a flipped bit: FINs, and what acknowledges them, are examined.
        let ends = segment.flags.has(Flags::FIN) && !finished;
        if (ends || other_finished) && !is_damaged(turn) {
            if ends {
                flow.finish(side, end);
            }
            flow.note_fin_acked(side);
        }
        match side {
            Side::Wan => {
                let answers = flow.is(Marks::PROXIED) && segment.ack.after(flow.outer_isn + 1);
                flow.mark_if(Marks::CARRIED, answers || segment.payload_len() > 0);
                flow.unmark(&[Marks::UPDATE_PENDING, Marks::ACK_OWED, Marks::SYN_CHALLENGED]);
                if !was_over {
                    flow.mark(Marks::REOPENING, false);
                }
            }
            Side::Lan if flow.held != 0 => {
                let edge = flow.half(Side::Lan).acked + flow.granted(Side::Lan).0;
                self.pen.release(flow, edge);
            }
            Side::Lan => {}
        }
        let state = match flow.state {
            // It ends by itself; and a handshake by its caller's word.
            state @ (State::Reset | State::OpeningAnswered) => state,
            _ => flow.state_by_fins(),
        };
        if state != flow.state || flow.is_over() != was_over {
            // Whoever sends FIN repeats it, and with it the window.
            flow.mark(Marks::UPDATE_PENDING, false);
            self.set_state(id, state, turn.now);
        } else if flow.is(Marks::UPDATE_PENDING) {
            // Its timer is about to repeat the update.
        } else if state != State::TimeWait || segment.flags.has(Flags::FIN) {
            self.rest(id, turn.now);
        }
    }

    /// Translates a segment, if its flow is one of ours, and passes it.
    fn pass(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        let flow = &mut self.table[id];
        if flow.is(Marks::PROXIED) {
            if ecn::lend(flow, turn.side, turn.segment, turn.head) {
                self.counters.count(Event::EcnLent);
            }
            translate(flow, turn.side, turn.segment, turn.head, self.sack_conflict, tick(turn.now));
        }
        Verdict::Forward
    }
}
