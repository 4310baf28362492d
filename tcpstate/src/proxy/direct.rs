//! Connections that are passed through unchanged, and followed so that what belongs to them may pass: those the LAN opens, and those from
//! the WAN that nobody but the server can answer.

use super::handshake::are_possible;
use super::{Proxy, Turn};
use crate::flow::{Flow, Half, Marks, State};
use crate::learn::Lesson;
use crate::seq::{Window, WindowScale};
use crate::table::Id;
use crate::translate::clamp_mss;
use crate::wire::{Flags, Options, Segment};
use crate::{DropReason, Egress, Event, Side, Verdict};

impl Proxy {
    /// A SYN from the LAN: a connection of its own begins, over the remains of `former` if there are any.
    pub(super) fn open_direct(&mut self, turn: Turn<impl Egress>, former: Option<Id>) -> Verdict {
        if !turn.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        if !are_possible(turn.ends()) {
            return Verdict::Drop(DropReason::BadAddress);
        }
        if let Some(former) = former {
            self.forget(former);
        }
        self.make_room(turn.now, turn.egress);
        let (ends, hash) = (*turn.ends(), turn.hash);
        let Some(id) = self.admit(&ends, hash, turn.now, |flow| begin_opening(flow, &turn)) else {
            return Verdict::Drop(DropReason::TableFull);
        };
        self.openings.push(id, self.table[id].generation);
        if turn.side == Side::Lan {
            self.counters.count(Event::Direct);
        }
        self.pass_syn(turn)
    }

    /// Passes a SYN or SYN-ACK of a connection that is not ours, its MSS limited, unless it is signed.
    fn pass_syn(&self, turn: Turn<impl Egress>) -> Verdict {
        if self.mss_clamp < u16::MAX && !Options::read(turn.options()).signed {
            clamp_mss(turn.segment, turn.head, self.mss_clamp);
        }
        Verdict::Forward
    }

    /// Segments of a connection passed through that is not established yet.
    pub(super) fn on_opening(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        let flags = turn.segment.flags;
        if flags.has(Flags::RST) {
            return self.reset_opening(turn, id);
        }
        if !flags.has(Flags::SYN) {
            return self.on_opening_acknowledged(turn, id);
        }
        if !turn.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let flow = &mut self.table[id];
        let calls = turn.side == flow.caller();
        match (calls, flags.has(Flags::ACK)) {
            (true, false) if flow.half(turn.side).next != turn.segment.seq + turn.segment.seq_len() => {
                // The caller has given up its first number, or the data it brought with it, and begun again.
                begin_opening(flow, &turn);
                self.rest(id, turn.now);
            }
            (false, _) if flow.state == State::OpeningSent => {
                // Its answer, or, without ACK, its own call at the same time (RFC 9293 section 3.5, figure 7).
                let answers = flags.has(Flags::ACK) && flow.answers_call(turn.segment);
                if !flags.has(Flags::ACK) || answers {
                    let options = Options::read(turn.options());
                    note_syn(flow.half_mut(turn.side), turn.segment, &options);
                    if answers {
                        self.settle_opening(&turn, id, options);
                    }
                }
            }
            // A repetition, or a stranger's: the ends know which.
            _ => {}
        }
        self.pass_syn(turn)
    }

    /// The caller has its answer: what both offered holds from now on; what a server offers is learned.
    fn settle_opening(&mut self, turn: &Turn<impl Egress>, id: Id, answered: Options) {
        let flow = &mut self.table[id];
        let lesson = Lesson::of(turn.segment, answered, flow);
        settle_scales(flow);
        // What we may have to say to either end must bear timestamps if its segments do.
        let agreed = flow.is(Marks::TIMESTAMPS) && answered.timestamps.is_some();
        flow.mark(Marks::TIMESTAMPS, agreed);
        flow.mark(Marks::TIMESTAMPS_LAN, agreed);
        flow.half_mut(turn.side).acked = turn.segment.ack;
        // What it will acknowledge at the least, which only one that has seen the answer knows.
        let synchronised = flow.half(turn.side).next;
        flow.half_mut(turn.side.other()).acked = synchronised;
        self.set_state(id, State::OpeningAnswered, turn.now);
        if turn.side == Side::Lan {
            self.learn(turn.ends(), &lesson, turn.now);
        }
    }

    /// An acknowledgement without SYN: from the caller it ends the handshake; from the called it is early data or an
    /// older connection's protest, which the caller must see either way.
    fn on_opening_acknowledged(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        let flow = &mut self.table[id];
        let caller = flow.caller();
        let acknowledges = turn.segment.ack.within(flow.half(caller).acked, flow.half(caller.other()).next);
        if flow.state != State::OpeningAnswered || !acknowledges && turn.side == caller {
            return Verdict::Forward;
        }
        if turn.side == caller {
            self.set_state(id, State::Established, turn.now);
            self.silent.push(id, self.table[id].generation);
        }
        self.track_and_pass(turn, id)
    }

    fn reset_opening(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        if !turn.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let flow = &self.table[id];
        let Segment { seq, flags, .. } = *turn.segment;
        turn.egress.note(|| format!("a reset while the connection is being opened by the {:?}", flow.caller()));
        let acceptable = match (turn.side == flow.caller(), flow.state) {
            (true, _) => true,
            // RFC 9293 section 3.10.7.3: before it is synchronised the caller believes a reset that acknowledges its SYN.
            (false, State::OpeningSent) => flags.has(Flags::ACK) && flow.answers_call(turn.segment),
            (false, _) => seq == flow.half(turn.side).next,
        };
        if !acceptable {
            return Verdict::Drop(DropReason::BadReset);
        }
        if turn.side == Side::Lan && flow.state == State::OpeningSent && flow.caller() == Side::Wan {
            self.remember_refusal(turn.ends(), turn.now);
        }
        self.set_state(id, State::Reset, turn.now);
        Verdict::Forward
    }
}

impl Flow {
    /// The side that opened a connection which is passed through.
    fn caller(&self) -> Side {
        if self.is(Marks::OPENED_BY_WAN) { Side::Wan } else { Side::Lan }
    }

    /// Whether a segment of the called acknowledges the caller's SYN: with the data it brought, or without (RFC 7413 section 3).
    fn answers_call(&self, answer: &Segment) -> bool {
        answer.ack.within(self.outer_isn + 1, self.half(self.caller()).next)
    }
}

/// Fills the record of a connection that is passed through by its SYN.
fn begin_opening<E>(flow: &mut Flow, turn: &Turn<E>) {
    let options = Options::read(turn.options());
    flow.state = State::OpeningSent;
    flow.outer_isn = turn.segment.seq;
    flow.keep_way(turn.side, &turn.envelope());
    flow.mark(Marks::OPENED_BY_WAN, turn.side == Side::Wan);
    *flow.half_mut(turn.side.other()) = Half::default();
    // Offered, for now.
    flow.mark(Marks::SACK, options.sack_permitted);
    flow.mark(Marks::TIMESTAMPS, options.timestamps.is_some());
    flow.mark(Marks::ECN_ASKED, turn.segment.flags.ask_for_ecn());
    note_syn(flow.half_mut(turn.side), turn.segment, &options);
}

/// Notes an end's SYN.
fn note_syn(half: &mut Half, segment: &Segment, options: &Options) {
    half.next = segment.seq + segment.seq_len();
    half.ts_value = options.timestamps.map_or(0, |timestamps| timestamps.value);
    half.set_scales(options.scale, options.scale);
    // RFC 7323 section 2.2: the window of a SYN is not scaled.
    half.window = Window(segment.window.0.into()).field(options.scale.unwrap_or_default());
}

/// Scaling is on only if both SYNs had the option.
fn settle_scales(flow: &mut Flow) {
    if flow.half(Side::Lan).scale().is_some() && flow.half(Side::Wan).scale().is_some() {
        return;
    }
    for side in Side::BOTH {
        let window = flow.granted(side).field(WindowScale::default());
        let half = flow.half_mut(side);
        half.window = window;
        half.set_scales(None, None);
    }
}
