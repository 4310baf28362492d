//! What the engine says itself: acknowledgements, challenges and resets in the name of an end, written over the segment they answer where there is one.

use super::context::Context;
use super::{Egress, Proxy};
use crate::cookie::ts_clock;
use crate::flow::table::Id;
use crate::flow::table::wheel::tick;
use crate::flow::{FlowFlags, ecn};
use crate::seq::{RawWindow, SeqNum};
use crate::wire::{Envelope, Flags, Kind, OptionList, Outgoing, Segment, Timestamps, station};
use crate::{DropReason, Event, Instant, Side, Verdict};

/// Half a second as a power of two of ticks: the shortest time between two challenges sent on one flow. RFC 5961 section 7 wants a limit; one for each
/// flow cannot be observed by others, as a common one could.
pub(super) const HALF_SECOND: u32 = 9;

/// The flow label of the box's own segments, where that of the sender is not known: not zero, and the same for all of a flow (RFC 6437 section 3).
pub(super) fn label(hash: u64) -> u32 {
    ((hash >> 20) as u32 & 0xf_ffff) | 1
}

/// The hop limit of a segment in the name of an end whose segments arrive with this one; zero where none has. Then the segment gets the largest, which
/// no receiver takes for too low (RFC 5082).
pub(super) fn hop_limit(seen: u8) -> u8 {
    if seen == 0 { u8::MAX } else { seen }
}

/// The half-second a time falls in, on a circle of two minutes.
pub(super) fn half_second(now: Instant) -> u8 {
    (tick(now) >> HALF_SECOND) as u8
}

impl Proxy {
    /// The envelope of a segment that the box sends in the name of the end on `sender`.
    pub(super) fn envelope(&self, id: Id, sender: Side) -> Envelope {
        let flow = &self.table[id];
        let (from, to) = (station(flow.mac(sender)), flow.mac(sender.other()));
        let (key, from) = match (self.table.redirected(id), sender) {
            (None, _) => (self.table.key(id), from),
            (Some(redirect), Side::Wan) if redirect.own_mac == [0; 6] => (redirect.key(), from),
            (Some(redirect), Side::Wan) => (redirect.key(), redirect.own_mac),
            (Some(redirect), Side::Lan) => (self.table.key(id), redirect.mac),
        };
        Envelope {
            from,
            to,
            key,
            sender,
            port: self.port_of(id, sender.other()),
            ttl: hop_limit(flow.endpoint(sender).ttl),
            class: flow.class(sender),
            id: 0,
            label: label(flow.hash()),
            tags: self.tags(id, sender),
        }
    }

    /// Sends a segment of our own accord.
    pub(super) fn emit(&mut self, to: Side, outgoing: &Outgoing, egress: &mut impl Egress) -> bool {
        debug_assert_eq!(to, outgoing.envelope.sender.other(), "what one end sends is for the other");
        let sent = egress.emit(outgoing.envelope.port, |buffer| outgoing.write(buffer));
        if !sent {
            self.counters.count(Event::NoSpareFrame);
        }
        sent
    }

    /// The number after the highest that the end opposite to `to` has sent, as the end on `to` counts it, where that is not the server's own.
    pub(super) fn next_number(&self, id: Id, to: Side) -> SeqNum {
        let next = self.table[id].endpoint(to.other()).next;
        match to {
            // What the box has kept and the server not acknowledged comes before what the client sends next.
            Side::Lan if self.gathered(id) != 0 => self.caches.gathered.unacked(self.gathered(id)),
            Side::Lan => next + self.table.client_deltas(id).0,
            Side::Wan => next,
        }
    }

    /// The acknowledgement the end opposite to `to` would send now: it serves as the handshake's last one, as window
    /// update, and as challenge (RFC 5961).
    #[inline(always)]
    pub(super) fn acknowledgement(&self, id: Id, to: Side, now: Instant) -> Acknowledgement {
        let flow = &self.table[id];
        let (sender, receiver) = (flow.endpoint(to.other()), flow.endpoint(to));
        let timestamps = match to {
            Side::Wan => flow.is(FlowFlags::TIMESTAMPS).then(|| Timestamps {
                value: if flow.is(FlowFlags::TIMESTAMPS_LAN) {
                    sender.ts_value
                } else {
                    flow.ts_delta.shift(ts_clock(now))
                },
                echo: receiver.ts_value,
            }),
            Side::Lan => flow.is(FlowFlags::TIMESTAMPS_LAN).then(|| {
                let measures = !flow.is(FlowFlags::NO_ECHO) || flow.is(FlowFlags::CARRIED);
                let echo = if measures { (-flow.ts_delta).shift(receiver.ts_value) } else { 0 };
                Timestamps { value: self.table.client_deltas(id).1.shift(sender.ts_value), echo }
            }),
        };
        Acknowledgement {
            seq: self.next_number(id, to),
            ack: sender.acked - flow.outward(to),
            flags: ecn::acknowledging(flow, to),
            window: flow.told_window(to.other()),
            options: OptionList::plain(timestamps),
        }
    }

    /// The last acknowledgement of a handshake, for the server.
    pub(super) fn last_acknowledgement(&self, id: Id, now: Instant) -> Acknowledgement {
        let flags = ecn::acknowledging_syn_ack(&self.table[id]);
        Acknowledgement { flags, ..self.acknowledgement(id, Side::Lan, now) }
    }

    /// Answers a segment on the other end's behalf with an acknowledgement: its sender, if it is genuine, then knows where the connection stands.
    pub(super) fn challenge(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        if ctx.segment.indirect && !self.table[id].is(FlowFlags::PROXIED) {
            // An answer without its headers would not be its peer's.
            return Verdict::Forward;
        }
        if self.table[id].challenged == half_second(ctx.now) {
            ctx.egress.note(|| "a challenge went out within this half second already".into());
            return Verdict::Drop(DropReason::Challenged);
        }
        self.table.update(id, |flow| flow.challenged = half_second(ctx.now));
        self.counters.count(Event::Challenge);
        self.acknowledge_in_place(&mut ctx, id)
    }

    /// Writes the acknowledgement the receiver would send over the segment itself, and sends it back.
    pub(super) fn acknowledge_in_place(&self, ctx: &mut Context<impl Egress>, id: Id) -> Verdict {
        // The station that sent the segment gets the answer, in the tags that the other end's frames have.
        let envelope = Envelope { to: ctx.source(), ..self.envelope(id, ctx.side.other()) };
        let acknowledgement = match (ctx.side, ctx.kind) {
            (Side::Lan, Kind::SynAck) => self.last_acknowledgement(id, ctx.now),
            (side, _) => self.acknowledgement(id, side, ctx.now),
        };
        if ctx.overwrite_inline(&acknowledgement.outgoing(&envelope)) {
            Verdict::Reflect
        } else {
            Verdict::Drop(DropReason::NoRoom)
        }
    }

    /// Answers a segment with the reset that RFC 9293 section 3.10.7.1 prescribes where there is no connection, or not this one of `flow`.
    pub(super) fn reset_in_place(&self, ctx: &mut Context<impl Egress>, flow: Option<Id>) -> Verdict {
        let Segment { seq, ack, flags, .. } = *ctx.segment;
        if flags.has(Flags::ACK) {
            return self.refuse_in_place(ctx, flow, ack, None);
        }
        self.refuse_in_place(ctx, flow, SeqNum::default(), Some(seq + ctx.segment.seq_len()))
    }

    /// Answers a segment with a reset that bears this number, and acknowledges that one. Its hop limit is that of the end which the sender would
    /// have it from: as `flow` knows it, or as is known of the server.
    pub(super) fn refuse_in_place(
        &self,
        ctx: &mut Context<impl Egress>,
        flow: Option<Id>,
        seq: SeqNum,
        ack: Option<SeqNum>,
    ) -> Verdict {
        let known = flow.map_or(0, |id| self.table[id].endpoint(ctx.side.other()).ttl);
        let ttl = match (known, ctx.side) {
            (0, Side::Wan) => {
                let rule = self.settings.policy.rule(ctx.key());
                self.caches.server_options.offer(ctx.key(), rule, true, ctx.now).ttl
            }
            _ => hop_limit(known),
        };
        let envelope = self.answer_envelope(ctx.envelope(), ttl);
        let reset = Outgoing {
            envelope: &envelope,
            seq,
            ack: ack.unwrap_or_default(),
            flags: Flags::RST.and(Flags::ACK.when(ack.is_some())),
            window: RawWindow(0),
            options: &OptionList::none(),
        };
        if ctx.overwrite(&reset) { Verdict::Reflect } else { Verdict::Drop(DropReason::NoRoom) }
    }
}

/// An acknowledgement without data, but for its envelope.
pub(super) struct Acknowledgement {
    pub(super) seq: SeqNum,
    ack: SeqNum,
    flags: Flags,
    window: RawWindow,
    options: OptionList,
}

impl Acknowledgement {
    pub(super) fn outgoing<'a>(&'a self, envelope: &'a Envelope) -> Outgoing<'a> {
        let Self { seq, ack, flags, window, ref options } = *self;
        Outgoing { envelope, seq, ack, flags, window, options }
    }
}

pub(super) fn bare_reset<'a>(envelope: &'a Envelope, seq: SeqNum, options: &'a OptionList) -> Outgoing<'a> {
    Outgoing { envelope, seq, ack: SeqNum::default(), flags: Flags::RST, window: RawWindow(0), options }
}
