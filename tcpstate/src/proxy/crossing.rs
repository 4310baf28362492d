//! Simultaneous open of a connection whose client the box has answered (RFC 9293 section 3.5, figure 7): both ends send a SYN, as peers do that open a
//! path through each other's firewall or address translator.
//!
//! The client keeps the number that our SYN-ACK gave it. The LAN host is in SYN-SENT, and its firewall may let nothing in but an answer to its own SYN.
//! So it gets a SYN-ACK in the client's name, and its SYN serves as the SYN-ACK that `server_handshake` waits for: the flow is translated like any
//! other. Until the client has proved itself the LAN's SYN is remembered, and passed on: a client that has our SYN-ACK answers it with a challenge ACK,
//! which is its proof once more, and one that has lost it opens the connection with the LAN itself, which then passes through unchanged.

use super::Proxy;
use super::context::Context;
use super::join::{join, syn_window, time_withheld};
use super::proof::WITHHELD_MOST;
use super::reply::{hop_limit, label};
use crate::flow::table::Id;
use crate::flow::table::wheel::{SECOND, Ticks, tick};
use crate::flow::{Flow, FlowFlags, State};
use crate::seq::{RawWindow, SeqDelta, SeqNum, Window, WindowScale};
use crate::wire::{Envelope, Flags, Kind, OptionList, Options, Outgoing, Segment, TIMESTAMPS_ROOM, Timestamps};
use crate::{DropReason, Egress, Event, Instant, Side, Verdict};

/// A SYN of the LAN on a 4-tuple whose client the box has answered.
#[derive(Clone, Copy)]
pub(super) struct ServerSyn {
    /// Its number.
    isn: SeqNum,
    /// Its window field, which is not scaled (RFC 7323 section 2.2).
    window: RawWindow,
    /// The hop limit and the class it came with.
    seen: (u8, u8),
    options: Options,
    /// How long ago it came.
    waited: Ticks,
}

impl ServerSyn {
    /// The SYN at hand.
    pub(super) fn of<E>(ctx: &Context<E>) -> Self {
        let Segment { seq, window, .. } = *ctx.segment;
        let seen = (ctx.segment.ttl, ctx.segment.class(ctx.head.bytes()));
        Self { isn: seq, window, seen, options: Options::read(ctx.options()), waited: 0 }
    }

    /// The SYN that a record remembers: an entry of the SYN cache beside the client's terms, the record of a connection from the LAN as its own.
    pub(super) fn remembered(flow: &Flow, now: Instant) -> Option<Self> {
        let lan = flow.endpoint(Side::Lan);
        let (isn, sack, timestamps, waited) = match flow.state() {
            State::SynCached if flow.is_crossed() => {
                let timestamps = flow.is(FlowFlags::TIMESTAMPS_LAN).then_some(flow.ts_base);
                (lan.next - 1, flow.is(FlowFlags::SACK_LAN), timestamps, flow.ts_delta.shift(tick(now)))
            }
            State::SynSent if flow.client() == Side::Lan => {
                let timestamps = flow.is(FlowFlags::TIMESTAMPS).then_some(lan.ts_value);
                (flow.outer_isn, flow.is(FlowFlags::SACK), timestamps, tick(now).wrapping_sub(flow.born))
            }
            _ => return None,
        };
        let options = Options {
            mss: Some(flow.mss_lan).filter(|&mss| mss > 0),
            scale: lan.scale(),
            sack_permitted: sack,
            timestamps: timestamps.map(|value| Timestamps { value, echo: 0 }),
            ..Options::default()
        };
        let window = flow.granted(Side::Lan).field(WindowScale::default());
        Some(Self { isn, window, seen: (hop_limit(lan.ttl), flow.class(Side::Lan)), options, waited })
    }

    /// Writes it into an entry of the SYN cache, in fields that such an entry does not need otherwise.
    fn keep(&self, flow: &mut Flow, now: Instant) {
        flow.set_crossed(true);
        flow.set(FlowFlags::SACK_LAN, self.options.sack_permitted);
        flow.set(FlowFlags::TIMESTAMPS_LAN, self.options.timestamps.is_some());
        flow.ts_base = self.options.timestamps.map_or(0, |timestamps| timestamps.value);
        flow.mss_lan = self.options.mss.unwrap_or_default();
        flow.ts_delta = SeqDelta::between(tick(now), 0);
        let lan = flow.endpoint_mut(Side::Lan);
        let promised = lan.told();
        lan.set_scales(self.options.scale, promised);
        lan.window = Window(self.window.0.into()).field(self.options.scale.unwrap_or_default());
        lan.next = self.isn + 1;
        lan.ttl = self.seen.0;
        flow.set_class(Side::Lan, self.seen.1);
    }
}

impl Proxy {
    /// A SYN of the LAN for an entry of the SYN cache, whose client has yet to prove itself.
    pub(super) fn remember_server_syn(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let syn = ServerSyn::of(&ctx);
        if syn.options.signed {
            // No SYN-ACK of ours could be signed.
            return self.open_passthrough(ctx, Some(id));
        }
        ctx.egress
            .note(|| "both ends open at once: the LAN's SYN is remembered until the client has proved itself".into());
        self.table.update(id, |flow| syn.keep(flow, ctx.now));
        self.forward_syn(ctx)
    }

    /// Whether a segment of the WAN answers the LAN's SYN which an entry of the SYN cache remembers, and not our SYN-ACK: the client never had that.
    pub(super) fn answers_remembered_syn(&self, ctx: &Context<impl Egress>, id: Id) -> bool {
        let flow = &self.table[id];
        flow.is_crossed()
            && matches!(ctx.kind, Kind::SynAck | Kind::Rst)
            && ctx.segment.flags.has(Flags::ACK)
            && ctx.segment.ack == flow.endpoint(Side::Lan).next
    }

    /// The client has answered the SYN which an entry of the SYN cache remembers: the connection is the LAN's from now on.
    pub(super) fn open_by_lan(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let former = self.table[id];
        let Some(syn) = ServerSyn::remembered(&former, ctx.now) else {
            return Verdict::Drop(DropReason::WrongState);
        };
        let (key, hash) = (*ctx.key(), ctx.hash);
        self.forget(id);
        let admitted = self.admit(&key, hash, Side::Lan, State::SynSent, ctx.now, |flow| {
            flow.set(FlowFlags::SACK, syn.options.sack_permitted);
            flow.set(FlowFlags::TIMESTAMPS, syn.options.timestamps.is_some());
            flow.outer_isn = syn.isn;
            flow.mss_lan = former.mss_lan;
            flow.keep_path(Side::Wan, &ctx.envelope());
            let lan = flow.endpoint_mut(Side::Lan);
            *lan = *former.endpoint(Side::Lan);
            lan.set_scales(syn.options.scale, syn.options.scale);
            lan.ts_value = former.ts_base;
        });
        let Some(id) = admitted else {
            return Verdict::Drop(DropReason::TableFull);
        };
        self.remember_candidate(id);
        self.on_opening(ctx, id)
    }

    /// The server's own SYN serves as its answer. `id` is the flow of a client that has proved itself; the segment at hand is that SYN, or the proof.
    pub(super) fn cross(&mut self, mut ctx: Context<impl Egress>, id: Id, syn: &ServerSyn) -> Verdict {
        let now = ctx.now;
        if self.table[id].is(FlowFlags::RESET_WAN) {
            self.forget(id);
            return self.reset_in_place(&mut ctx, None);
        }
        let told_mss = self.caches.server_options.most_told(ctx.key(), self.settings.policy.rule(ctx.key()), now);
        let flow = &self.table[id];
        let is_early = flow.is(FlowFlags::EARLY);
        // What a client that opens at the same time would answer comes after its whole round trip.
        let withheld = match time_withheld(flow) {
            WITHHELD_MOST => WITHHELD_MOST,
            distance => u32::from(distance).saturating_sub(syn.waited) as u16,
        };
        let ack = flow.endpoint(Side::Wan).next;
        let answer =
            Segment { seq: syn.isn, ack, flags: Flags::SYN.and(Flags::ACK), window: syn.window, ..*ctx.segment };
        let state = if withheld > 0 { State::AckWithheld } else { State::WindowPending };
        self.set_state(id, state, now, |flow| {
            join(flow, &answer, &syn.options, (syn.seen.0, syn.seen.1, 0), now);
            flow.mss_lan = syn.options.mss.unwrap_or(crate::cache::servers::default_mss(&answer.key));
            flow.set(FlowFlags::MSS_BROKEN, flow.mss_lan < told_mss);
            flow.set_crossed(withheld > 0);
            flow.set(FlowFlags::NO_ECHO, false);
        });
        ctx.egress.note(|| match u32::from(withheld) * 1024 / 1000 {
            0 => "both ends open at once: the LAN's SYN is answered in the client's name".into(),
            wait => format!("both ends open at once: the LAN's SYN is answered in the client's name, in {wait} ms"),
        });
        self.remember_candidate(id);
        self.counters.count(Event::Spliced);
        self.counters.count(Event::SimultaneousOpen);
        let wait = if withheld > 0 { withheld.into() } else { SECOND };
        self.table.schedule(id, tick(now).wrapping_add(wait));
        if withheld > 0 {
            self.counters.count(Event::AckWithheld);
            if withheld == WITHHELD_MOST {
                self.probe_client(id, now, ctx.egress);
            }
            return Verdict::Drop(DropReason::Consumed);
        }
        if is_early && ctx.side == Side::Wan && ctx.segment.payload_len() > 0 {
            // The SYN-ACK goes before the data.
            self.answer_server_syn(id, now, ctx.egress);
            let verdict = self.hold(&ctx, id);
            self.release_held(id);
            return verdict;
        }
        if is_early {
            self.release_held(id);
        }
        self.send_update(id, now, ctx.egress);
        self.answer_server_syn_in_place(&mut ctx, id)
    }

    /// A segment of a connection whose server waits for its SYN-ACK, until the client's round trip has passed. What it has to say to the server ends
    /// the wait. `None` if it is to be treated like any other.
    pub(super) fn on_crossed(&mut self, ctx: &mut Context<impl Egress>, id: Id) -> Option<Verdict> {
        let Segment { seq, flags, .. } = *ctx.segment;
        let flow = &self.table[id];
        let is_known = seq + flow.seq_delta == flow.outer_isn;
        match (ctx.side, ctx.kind) {
            (Side::Lan, Kind::Syn | Kind::SynAck) if is_known && ctx.is_sound() => {
                self.end_crossing(id);
                self.send_update(id, ctx.now, ctx.egress);
                // A SYN-ACK says that our own SYN has come, and is acknowledged as ever.
                (ctx.kind == Kind::Syn).then(|| self.answer_server_syn_in_place(ctx, id))
            }
            (Side::Wan, Kind::Ack) if self.is_in_sequence(ctx, id) && !super::context::is_damaged(ctx) => {
                self.end_crossing(id);
                self.send_update(id, ctx.now, ctx.egress);
                if ctx.segment.payload_len() == 0 && !flags.has(Flags::FIN) {
                    return Some(self.answer_server_syn_in_place(ctx, id));
                }
                self.emit_server_syn_ack(id, ctx.egress);
                None
            }
            (Side::Wan, Kind::Rst) if seq == flow.endpoint(Side::Wan).next && ctx.is_sound() => {
                // RFC 9293 section 3.10.7.3: in SYN-SENT a reset counts only if it acknowledges the SYN.
                let (envelope, ack) = (ctx.envelope(), flow.outer_isn + 1 - flow.seq_delta);
                let reset = Outgoing {
                    envelope: &envelope,
                    seq: seq + self.table.client_deltas(id).0,
                    ack,
                    flags: Flags::RST.and(Flags::ACK),
                    window: RawWindow(0),
                    options: &OptionList::none(),
                };
                let overwritten = ctx.overwrite(&reset);
                self.set_state(id, State::Reset, ctx.now, |flow| {
                    flow.set_crossed(false);
                    flow.note_reset(Side::Wan, seq);
                });
                Some(if overwritten { Verdict::Forward } else { Verdict::Drop(DropReason::NoRoom) })
            }
            _ => None,
        }
    }

    /// The client's round trip has passed: the server gets its SYN-ACK, and the client the server's window.
    pub(super) fn answer_server_syn(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        self.table.update(id, |flow| flow.set_crossed(false));
        self.emit_server_syn_ack(id, egress);
        self.send_update(id, now, egress);
    }

    /// Whether a SYN of the LAN is the one that was answered in the client's name, of a server that has not acknowledged the answer.
    pub(super) fn repeats_crossed_syn(&self, ctx: &Context<impl Egress>, id: Id) -> bool {
        let flow = &self.table[id];
        flow.is(FlowFlags::WINDOW_UNSCALED) && ctx.segment.seq + flow.seq_delta == flow.outer_isn
    }

    /// The server has waited long enough, or says that it need not wait.
    fn end_crossing(&mut self, id: Id) {
        self.table.update(id, |flow| flow.set_crossed(false));
        self.end_wait(id);
    }

    fn emit_server_syn_ack(&mut self, id: Id, egress: &mut impl Egress) {
        let envelope = self.envelope(id, Side::Wan);
        let (flow, deltas) = (self.table[id], self.table.client_deltas(id));
        let options = server_syn_ack_options(&flow, deltas.1);
        self.emit(Side::Lan, &server_syn_ack(&flow, deltas.0, &envelope, &options), egress);
    }

    /// Writes the SYN-ACK over the segment at hand: the server's own, or one of the client.
    pub(super) fn answer_server_syn_in_place(&self, ctx: &mut Context<impl Egress>, id: Id) -> Verdict {
        let (flow, deltas) = (&self.table[id], self.table.client_deltas(id));
        let options = server_syn_ack_options(flow, deltas.1);
        let mut envelope = ctx.envelope();
        if ctx.side == Side::Lan {
            let (label, class) = (label(ctx.hash), flow.class(Side::Wan));
            envelope = Envelope { label, class, ..envelope.reversed(hop_limit(flow.endpoint(Side::Wan).ttl)) };
        }
        match (ctx.overwrite(&server_syn_ack(flow, deltas.0, &envelope, &options)), ctx.side) {
            (true, Side::Lan) => Verdict::Reflect,
            (true, Side::Wan) => Verdict::Forward,
            (false, _) => Verdict::Drop(DropReason::NoRoom),
        }
    }
}

/// The options of our SYN-ACK to a server: of the client's offer what the server's own SYN offers too.
fn server_syn_ack_options(flow: &Flow, ts_delta: SeqDelta) -> OptionList {
    let (client, server) = (flow.endpoint(Side::Wan), flow.endpoint(Side::Lan));
    let stamped = flow.is_all(&[FlowFlags::TIMESTAMPS, FlowFlags::TIMESTAMPS_LAN]);
    let timestamps = stamped
        .then(|| Timestamps { value: ts_delta.shift(client.ts_value), echo: (-flow.ts_delta).shift(server.ts_value) });
    // Into the segments of a server without timestamps those that the client was promised are inserted: this keeps the room.
    let reserve = if flow.is(FlowFlags::TIMESTAMPS) && !stamped { TIMESTAMPS_ROOM as u16 } else { 0 };
    let mss = flow.mss.saturating_sub(reserve).max(1);
    OptionList::syn(Some(mss), flow.is(FlowFlags::SACK_LAN), timestamps, client.told())
}

/// Our SYN-ACK to a server that has sent a SYN, in the client's name and with the client's own number, to which `delta` is added.
fn server_syn_ack<'a>(flow: &Flow, delta: SeqDelta, envelope: &'a Envelope, options: &'a OptionList) -> Outgoing<'a> {
    // Of the client's numbers the server has acknowledged none.
    let seq = flow.endpoint(Side::Lan).acked - 1 + delta;
    let ack = flow.outer_isn + 1 - flow.seq_delta;
    Outgoing { envelope, seq, ack, flags: Flags::SYN.and(Flags::ACK), window: syn_window(flow), options }
}
