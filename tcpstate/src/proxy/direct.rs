//! The LAN calls: its connections are passed through unchanged, and followed so that the answers may pass.

use super::handshake::are_possible;
use super::{Proxy, Turn};
use crate::flow::{Flow, Half, Marks, State};
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
        let opened = self.admit(&ends, hash, turn.now, |flow| begin_opening(flow, &turn));
        if opened.is_none() {
            return Verdict::Drop(DropReason::TableFull);
        }
        self.counters.count(Event::Direct);
        self.pass_syn(turn)
    }

    /// Passes a SYN or SYN-ACK of a connection that is not ours, its MSS limited.
    fn pass_syn(&self, turn: Turn<impl Egress>) -> Verdict {
        if self.mss_clamp < u16::MAX {
            clamp_mss(turn.segment, turn.head, self.mss_clamp);
        }
        Verdict::Forward
    }

    /// Segments of a connection from the LAN that is not established yet.
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
        match (turn.side, flags.has(Flags::ACK)) {
            (Side::Lan, false) if flow.half(Side::Lan).next != turn.segment.seq + 1 => {
                // The caller has given up its first number and begun again.
                begin_opening(flow, &turn);
                self.rest(id, turn.now);
            }
            (Side::Wan, _) if flow.state == State::OpeningSent => {
                // Its answer, or, without ACK, its own call at the same time (RFC 9293 section 3.5, figure 7).
                let answers = turn.segment.ack == flow.half(Side::Lan).next;
                if !flags.has(Flags::ACK) || answers {
                    let options = Options::read(turn.options());
                    note_syn(flow.half_mut(Side::Wan), turn.segment, &options);
                    if answers {
                        settle_scales(flow);
                        // What we may have to say to either end must bear timestamps if its segments do.
                        let agreed = flow.is(Marks::TIMESTAMPS_LAN) && options.timestamps.is_some();
                        flow.mark(Marks::TIMESTAMPS, agreed);
                        flow.mark(Marks::TIMESTAMPS_LAN, agreed);
                        flow.half_mut(Side::Wan).acked = turn.segment.ack;
                        self.set_state(id, State::OpeningAnswered, turn.now);
                    }
                }
            }
            // A repetition, or a stranger's: the ends know which.
            _ => {}
        }
        self.pass_syn(turn)
    }

    /// An acknowledgement without SYN: from the LAN it ends the handshake; from the WAN it is early data or an
    /// older connection's protest, which the caller must see either way.
    fn on_opening_acknowledged(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        let flow = &mut self.table[id];
        let synchronised = flow.half(Side::Wan).next;
        if flow.state != State::OpeningAnswered || turn.segment.ack.before(synchronised) && turn.side == Side::Lan {
            return Verdict::Forward;
        }
        if turn.side == Side::Lan {
            flow.half_mut(Side::Lan).acked = synchronised;
            self.set_state(id, State::Established, turn.now);
        }
        self.track_and_pass(turn, id)
    }

    fn reset_opening(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        if !turn.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let flow = &self.table[id];
        let Segment { seq, ack, flags, .. } = *turn.segment;
        let acceptable = match (turn.side, flow.state) {
            (Side::Lan, _) => true,
            // RFC 9293 section 3.10.7.3: before it is synchronised the caller believes a reset that acknowledges its SYN.
            (Side::Wan, State::OpeningSent) => flags.has(Flags::ACK) && ack == flow.half(Side::Lan).next,
            (Side::Wan, _) => seq == flow.half(Side::Wan).next,
        };
        if !acceptable {
            return Verdict::Drop(DropReason::BadReset);
        }
        self.set_state(id, State::Reset, turn.now);
        Verdict::Forward
    }
}

/// Fills the record of a connection from the LAN by its SYN.
fn begin_opening<E>(flow: &mut Flow, turn: &Turn<E>) {
    let envelope = turn.envelope();
    flow.state = State::OpeningSent;
    flow.set_macs(Side::Lan, envelope.from, envelope.to);
    *flow.half_mut(Side::Wan) = Half::default();
    let options = Options::read(turn.options());
    flow.mark(Marks::TIMESTAMPS_LAN, options.timestamps.is_some());
    note_syn(flow.half_mut(Side::Lan), turn.segment, &options);
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
