//! The handshake with the server: the box sends its SYN in the client's name, and handles the answer.

use super::Proxy;
use super::context::{Context, is_damaged};
use super::crossing::ServerSyn;
use super::idle::Opener;
use super::join::{join, syn_window, time_withheld};
use super::proof::{Proof, WITHHELD_MOST, keep_terms};
use super::reply::bare_reset;
use crate::cache::refused::Met;
use crate::cache::servers::{Observation, default_mss};
use crate::config::{EarlyEcho, Handshake};
use crate::cookie;
use crate::flow::table::Id;
use crate::flow::table::wheel::{SECOND, Ticks, average, tick};
use crate::flow::{Flow, FlowFlags, State};
use crate::policy::{Rule, ServiceMark};
use crate::seq::{SeqDelta, SeqNum};
use crate::wire::{
    Envelope, Flags, FlowKey, Kind, OptionList, Options, Outgoing, Segment, TIMESTAMPS_ROOM, Timestamps,
};
use crate::{DropReason, Egress, Event, Instant, Side, Timing, Verdict};

/// How often a window update is repeated to a client that shows no sign of it, at intervals of 1, 2, 4 and 8 s.
const UPDATES_REPEATED: u8 = 4;
/// A server that has not answered two SYNs in this time is silent: a second and a half, in ticks.
const SILENT: Ticks = 3 * SECOND / 2;
/// The time from the RST that makes a server forget an older connection to the next SYN: 20 ms, in ticks.
const AFTER_RESET: Ticks = 20;
/// For how long the box waits for an early server's second SYN-ACK, which its second SYN asks for: two milliseconds, in ticks.
const SECOND_ANSWER: u16 = 2;

impl Proxy {
    /// The client has proved its address: sends a SYN to the server in its name, written over the segment with the proof.
    pub(super) fn connect_server(
        &mut self,
        mut ctx: Context<impl Egress>,
        proof: &Proof,
        former: Option<Id>,
    ) -> Verdict {
        if self.is_blocked(&mut ctx) {
            return Verdict::Drop(DropReason::Blocked);
        }
        let now = ctx.now;
        let (key, hash) = (*ctx.key(), ctx.hash);
        let crossed = former.and_then(|id| ServerSyn::remembered(&self.table[id], now));
        let shown = former.map(|id| &self.table[id]).filter(|flow| flow.is(FlowFlags::PROXIED) || crossed.is_none());
        let shown = shown.and_then(Flow::shown_ts_value);
        if let Some(former) = former {
            self.replace_former(former, ctx.egress);
        }
        if crossed.is_none() && self.refuses_proved(&key, now) {
            ctx.egress.note(|| "the port refused this client within the last second: the box resets it at once".into());
            // The same proof may come again and again; the server need not get a SYN for each.
            return self.refuse_in_place(&mut ctx, None, proof.outer_isn + 1, None);
        }
        self.caches.limiter.refund(&key, now);
        if self.is_over_limit(&mut ctx) {
            return self.refuse_in_place(&mut ctx, None, proof.outer_isn + 1, None);
        }
        if !self.make_room(Opener::Proved(&key), now, ctx.egress) {
            return self.turn_away(ctx, proof);
        }
        let rule = self.settings.policy.rule(&key);
        match rule.service {
            ServiceMark::None => {}
            ServiceMark::Service(number) => return self.open_service(ctx, proof, number, shown),
            ServiceMark::Closed => return self.refuse_in_place(&mut ctx, None, proof.outer_isn + 1, None),
        }
        let offer = self.caches.server_options.offer_cached(&key, rule, now);
        let presumed = proof.terms.timestamps && !offer.timestamps_known;
        let early = rule.handshake == Handshake::Early;
        let asks =
            early && rule.early_echo == EarlyEcho::Auto && !self.caches.server_options.needs_exact_echo(&key, now);
        ctx.egress.note(|| {
            let handshake = if early { "early" } else { "honest" };
            let distance = u32::from(proof.distance) * 1024 / 1000;
            format!(
                "proved; the box sends its SYN to the server: {}; handshake {handshake}, client {distance} ms away (0: not known)",
                proof.terms
            )
        });
        let filled = self.admit(&key, hash, Side::Wan, State::ServerSynSent, now, |flow| {
            fill_server_syn_sent(flow, &ctx, proof, shown);
            flow.endpoint_mut(Side::Lan).ttl = offer.ttl;
            flow.set_class(Side::Lan, offer.class_for(flow.class(Side::Wan)));
            flow.set(FlowFlags::TIMESTAMPS_PRESUMED, presumed);
            flow.set(FlowFlags::EARLY, early);
            flow.set(FlowFlags::NO_ECHO, asks);
        });
        let Some(id) = filled else {
            return self.turn_away(ctx, proof);
        };
        self.remember_candidate(id);
        self.caches.vlan_pairs.note(key.vlan);
        if let Some(syn) = crossed {
            return self.cross(ctx, id, &syn);
        }
        if !early {
            return self.connect_in_place(&mut ctx, id);
        }
        // A server that has had to repeat its SYN-ACK takes no round-trip sample from the handshake (RFC 6298 section 3, Karn's
        // algorithm), which here would be that of the LAN alone. So the box sends two SYNs. Where the second bears a later TSval, a server that
        // echoes that has not kept the first.
        let sent = self.emit_server_syn(id, asks.into(), ctx.egress);
        if sent && ctx.segment.payload_len() > 0 && self.emit_server_syn(id, 0, ctx.egress) {
            return self.hold(&ctx, id);
        }
        self.connect_in_place(&mut ctx, id)
    }

    /// Resets a client that has proved itself and finds no place: it takes itself for connected, and silence would keep it waiting.
    #[inline(never)]
    pub(super) fn turn_away(&mut self, mut ctx: Context<impl Egress>, proof: &Proof) -> Verdict {
        ctx.egress.note(|| "the table is full, and no flow of it may give way: the box resets the client".into());
        self.counters.count(Event::TurnedAway);
        self.refuse_in_place(&mut ctx, None, proof.outer_isn + 1, None)
    }

    /// Keeps a client's segment until its server answers.
    pub(super) fn hold(&mut self, ctx: &Context<impl Egress>, id: Id) -> Verdict {
        let flow = &self.table[id];
        let early_window = self.settings.profiles.get(flow.profile).early_window;
        let (first, end) = (flow.endpoint(Side::Wan).next, ctx.segment.seq + ctx.segment.seq_len());
        // A server that is slow, or not there, must not fill the hold queue. The client repeats its data about as often as the box repeats the SYN.
        let fits = flow.attempts == 0
            && ctx.segment.seq.beyond(first) <= end.beyond(first)
            && end.beyond(first) <= early_window.into();
        match fits.then(|| self.table.update(id, |flow| self.caches.hold_queue.hold(flow, end))).flatten() {
            Some(ticket) => {
                self.counters.count(Event::Held);
                Verdict::Hold(ticket)
            }
            None => Verdict::Drop(DropReason::NotHeld),
        }
    }

    /// Removes a flow whose 4-tuple a new connection takes. A server that has a SYN of the old one gets a RST.
    fn replace_former(&mut self, id: Id, egress: &mut impl Egress) {
        if matches!(self.table[id].state(), State::ServerSynSent | State::ServerTried) {
            self.abort_server(id, egress);
        }
        self.forget(id);
    }

    /// Sends a RST to a server that has got the box's SYN.
    pub(super) fn abort_server(&mut self, id: Id, egress: &mut impl Egress) {
        if self.table[id].is_in(State::Gathering) {
            return;
        }
        let seq = self.next_number(id, Side::Lan);
        let envelope = self.envelope(id, Side::Wan);
        self.emit(Side::Lan, &bare_reset(&envelope, seq, &OptionList::none()), egress);
    }

    /// Gives up the connection to a server: sends RSTs to both ends and removes the flow.
    pub(super) fn abort(&mut self, id: Id, egress: &mut impl Egress) {
        self.abort_server(id, egress);
        self.reset_client(id, egress);
        self.forget(id);
    }

    /// Resets a client whose server cannot be reached.
    pub(super) fn reset_client(&mut self, id: Id, egress: &mut impl Egress) {
        // Behind what the box has said to a client that talks to it.
        let flow = &self.table[id];
        let seq = if self.talks(id) { flow.endpoint(Side::Lan).next } else { flow.outer_isn + 1 };
        let envelope = self.envelope(id, Side::Lan);
        self.emit(Side::Wan, &bare_reset(&envelope, seq, &OptionList::none()), egress);
    }

    pub(super) fn connect_in_place(&mut self, ctx: &mut Context<impl Egress>, id: Id) -> Verdict {
        let flow = &self.table[id];
        let (ttl, class) = (flow.endpoint(Side::Wan).ttl, flow.class(Side::Wan));
        let envelope = Envelope { ttl, class, ..ctx.envelope() };
        let deltas = self.table.client_deltas(id);
        let options = server_syn_options(&self.table[id], deltas.1, 0);
        if !ctx.overwrite_inline(&server_syn(&self.table[id], deltas.0, &envelope, &options)) {
            return Verdict::Drop(DropReason::NoRoom);
        }
        self.counters.count(Event::Dialled);
        Verdict::Forward
    }

    /// Sends a SYN whose TSval is by `older` less than the client's.
    pub(super) fn emit_server_syn(&mut self, id: Id, older: u32, egress: &mut impl Egress) -> bool {
        let envelope = self.envelope(id, Side::Wan);
        let (flow, deltas) = (self.table[id], self.table.client_deltas(id));
        let options = server_syn_options(&flow, deltas.1, older);
        let sent = self.emit(Side::Lan, &server_syn(&flow, deltas.0, &envelope, &options), egress);
        if sent {
            self.counters.count(Event::Dialled);
        }
        sent
    }

    /// Segments of the client while the server has not answered.
    pub(super) fn on_client_while_server_syn_sent(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        if self.table[id].is(FlowFlags::REDIRECTED) {
            return self.on_client_while_gathering(ctx, id);
        }
        let Segment { seq, ack, window, .. } = *ctx.segment;
        let flow = &self.table[id];
        let next = flow.endpoint(Side::Wan).next;
        if ctx.kind == Kind::SynAck {
            return Verdict::Drop(DropReason::WrongState);
        }
        if ctx.kind == Kind::Syn {
            return self.answer_syn(ctx, Some(id));
        }
        if ctx.kind == Kind::Rst {
            // RFC 5961 section 3: the exact number, which is behind the early data if that has come.
            if seq != next && seq != self.caches.hold_queue.reach(flow, next) {
                return Verdict::Drop(DropReason::BadReset);
            }
            if !ctx.is_sound() {
                return Verdict::Drop(DropReason::BadChecksum);
            }
            if flow.attempts == 0 && !flow.is(FlowFlags::RESET_WAN) {
                // Its acknowledgement has come before, and a server that accepts the connection sees it reset. So it is told when it has answered.
                self.table.update(id, |flow| {
                    self.caches.hold_queue.forget(flow);
                    flow.set(FlowFlags::RESET_WAN, true);
                });
                return Verdict::Drop(DropReason::Consumed);
            }
            if tick(ctx.now).wrapping_sub(flow.born) >= SILENT {
                self.remember(ctx.key(), Met::Silence, true, ctx.now);
            }
            // The client aborts, so the server, which may have got the SYN already, gets the RST too.
            let (envelope, next) = (ctx.envelope(), self.next_number(id, Side::Lan));
            let overwritten = ctx.overwrite(&bare_reset(&envelope, next, &OptionList::none()));
            self.forget(id);
            return if overwritten { Verdict::Forward } else { Verdict::Drop(DropReason::NoRoom) };
        }
        let proves_again = seq == next || seq == next - 1;
        ctx.egress.note(|| {
            let expected = flow.outer_isn + 1;
            format!(
                "SYN sent to the server; the client's next is seq {} (or one less), ack {}",
                next.get(),
                expected.get()
            )
        });
        let brings = flow.is(FlowFlags::EARLY) && ctx.segment.seq_len() > 0;
        if ack == flow.outer_isn + 1 && (proves_again || brings) && !flow.is(FlowFlags::RESET_WAN) {
            if is_damaged(&ctx) {
                return Verdict::Drop(DropReason::BadChecksum);
            }
            self.on_proof_repeated(&ctx, id);
            let envelope = ctx.envelope();
            self.table.update(id, |flow| {
                flow.endpoint_mut(Side::Wan).window = window;
                // The SYN to the server goes on to have the class of the first.
                let class = flow.class(Side::Wan);
                flow.keep_path(Side::Wan, &envelope);
                flow.set_class(Side::Wan, class);
            });
            // The client repeats its proof, so the box repeats its SYN. The client will repeat any data it sent into the zero window.
            return if brings { self.hold(&ctx, id) } else { self.connect_in_place(&mut ctx, id) };
        }
        if flow.is(FlowFlags::REOPENING) {
            return self.on_cookie_ack(ctx, Some(id));
        }
        Verdict::Drop(DropReason::WrongState)
    }

    /// Segments of the server while it has not answered.
    pub(super) fn on_server_while_server_syn_sent(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        if self.table[id].is(FlowFlags::REDIRECTED) {
            return self.on_server_of_service(ctx, id);
        }
        let Segment { ack, flags, .. } = *ctx.segment;
        let next = self.next_number(id, Side::Lan);
        let answers = flags.has(Flags::ACK) && ack == next;
        ctx.egress.note(|| {
            let answers = if answers { "this does" } else { "this does not" };
            format!("SYN sent to the server; an answer acknowledges {}: {answers}", next.get())
        });
        if ctx.kind == Kind::Rst && !answers {
            return Verdict::Drop(DropReason::BadReset);
        }
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        self.note_station(ctx.side, ctx.head.bytes(), ctx.now);
        if ctx.kind == Kind::Rst {
            return self.forward_refusal(ctx, id);
        }
        if ctx.kind == Kind::SynAck && answers {
            return self.splice(ctx, id);
        }
        if ctx.kind == Kind::Syn && !Options::read(ctx.options()).signed {
            let syn = ServerSyn::of(&ctx);
            return self.cross(ctx, id, &syn);
        }
        if flags.has(Flags::ACK) && !answers {
            // The client itself would drop what acknowledges its SYN without bearing another.
            return self.answer_challenge(ctx, id, AFTER_RESET);
        }
        Verdict::Drop(DropReason::WrongState)
    }

    /// The server remembers an older connection of these ends. The client itself would reset that (RFC 9293 section 3.10.7.3), and repeat its SYN soon; but
    /// once: a server that keeps its TIME-WAIT is asked no oftener than one that is silent.
    pub(super) fn answer_challenge(&mut self, mut ctx: Context<impl Egress>, id: Id, soon: Ticks) -> Verdict {
        if !self.table[id].is(FlowFlags::SYN_CHALLENGED) {
            self.table.update(id, |flow| flow.set(FlowFlags::SYN_CHALLENGED, true));
            self.table.schedule(id, tick(ctx.now).wrapping_add(soon));
        }
        self.reset_in_place(&mut ctx, Some(id))
    }

    /// The server refuses: the client, which takes itself for connected, gets a reset it must accept.
    fn forward_refusal(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        let envelope = ctx.envelope();
        let seq = self.table[id].outer_isn + 1;
        let overwritten = ctx.overwrite(&bare_reset(&envelope, seq, &OptionList::none()));
        self.counters.count(Event::Refused);
        self.caches.direct_returns.answered(ctx.key());
        self.remember(ctx.key(), Met::Reset, true, ctx.now);
        // Should the reset be lost, the client's next segment opens its cookie again and asks again.
        self.forget(id);
        if overwritten { Verdict::Forward } else { Verdict::Drop(DropReason::NoRoom) }
    }

    /// A SYN-ACK from the LAN for which no flow waits. If it answers a SYN of ours, that was given up since: the server gets a RST. Else the SYN came
    /// another way, and only its client can tell.
    pub(super) fn on_unasked_answer(&mut self, mut ctx: Context<impl Egress>) -> Verdict {
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        if ctx.segment.indirect {
            return Verdict::Forward;
        }
        self.note_station(ctx.side, ctx.head.bytes(), ctx.now);
        if self.caches.recent_syns.has_noted(ctx.hash, ctx.now) {
            return self.reset_in_place(&mut ctx, None);
        }
        ctx.egress.note(|| {
            "the box has answered no SYN between these ends lately: this answers one that came another way".into()
        });
        self.counters.count(Event::ForeignAnswer);
        if self.caches.recent_syns.may_have(ctx.hash, ctx.now) {
            // Or one that a former process has sent, whose client may prove itself again.
            return Verdict::Forward;
        }
        self.adopt(ctx)
    }

    /// The server has answered: from here on segments are only translated.
    ///
    /// Its SYN-ACK becomes, for the client, the update that opens the window. What the server gets depends on the handshake: held data,
    /// which acknowledges on its way; an acknowledgement at once; or none before the client's round-trip time has passed, or the client itself
    /// has sent something.
    fn splice(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        let now = ctx.now;
        let answered = Options::read(ctx.options());
        let frame = ctx.head.bytes();
        let seen = (ctx.segment.ttl, ctx.segment.class(frame), ctx.segment.ecn(frame));
        let rule = *self.settings.policy.rule(ctx.key());
        let told_mss = self.caches.server_options.most_told(ctx.key(), &rule, now);
        // What this client was told, unless that has changed meanwhile.
        let offered_mss = self.caches.server_options.offer_cached(ctx.key(), &rule, now).mss;
        self.note_answer_in_own_vlan(id, ctx.key().vlan);
        let envelope = ctx.envelope();
        let flow = &self.table[id];
        let observation = Observation::of(ctx.segment, ctx.head.bytes(), answered, flow);
        let is_early = flow.is(FlowFlags::EARLY);
        let echo = if is_early { self.early_echo(id, ctx.key(), &answered, &rule, now) } else { EarlyEcho::Exact };
        let waits = echo == EarlyEcho::Auto;
        let withheld = if waits { SECOND_ANSWER } else { time_withheld(flow) };
        let state = if withheld > 0 { State::AckWithheld } else { State::WindowPending };
        self.set_state(id, state, now, |flow| {
            join(flow, ctx.segment, &answered, seen, now);
            flow.follow_path(Side::Lan, &envelope);
            flow.mss_lan = answered.mss.unwrap_or(default_mss(ctx.key()));
            flow.set(FlowFlags::MSS_BROKEN, flow.mss_lan < told_mss);
            flow.set(FlowFlags::NO_ECHO, echo == EarlyEcho::None);
        });
        ctx.egress.note(|| {
            let delta = self.table[id].seq_delta.shift(0);
            format!(
                "the server has answered: the box adds {delta:#010x} to its numbers from now on and learns its options"
            )
        });
        self.learn(ctx.key(), &observation, now);
        self.remember_candidate(id);
        self.counters.count(Event::Spliced);
        let taken = tick(now).wrapping_sub(self.table[id].born);
        self.counters.time(Timing::ServerConnect, average(taken));
        if self.table[id].is(FlowFlags::RESET_WAN) {
            ctx.egress
                .note(|| "the client has reset the connection meanwhile: the server sees it open and reset".into());
            self.send_acknowledgement(id, now, ctx.egress);
            self.abort_server(id, ctx.egress);
            self.set_state(id, State::Reset, now, |flow| flow.note_reset(Side::Wan, flow.endpoint(Side::Wan).next));
            return Verdict::Drop(DropReason::Consumed);
        }
        ctx.egress.note(|| match u32::from(withheld) * 1024 / 1000 {
            _ if waits => {
                "the server's acknowledgement waits for its second SYN-ACK, which shows whether it kept the first SYN"
                    .into()
            }
            0 => "the server gets its acknowledgement at once".into(),
            withheld => {
                format!("the server's acknowledgement is withheld for {withheld} ms at most, the client's distance")
            }
        });
        let wait = if withheld > 0 { withheld.into() } else { SECOND };
        self.table.schedule(id, tick(now).wrapping_add(wait));
        if self.table[id].is(FlowFlags::MSS_BROKEN) {
            self.tell_too_big_ahead(id, offered_mss, now, ctx.egress);
        }
        if waits {
            return self.update_in_place(&mut ctx, id);
        }
        if withheld > 0 {
            self.counters.count(Event::AckWithheld);
            if withheld == WITHHELD_MOST {
                self.probe_client(id, now, ctx.egress);
            }
            return self.update_in_place(&mut ctx, id);
        }
        if is_early {
            // RFC 7323 section 2.2: the window of a SYN-ACK is not scaled. What reaches beyond it stays held.
            self.release_held(id);
            // The acknowledgement goes before the data, which bears echoes the server would measure the LAN by.
            self.send_acknowledgement(id, now, ctx.egress);
            return self.update_in_place(&mut ctx, id);
        }
        self.send_update(id, now, ctx.egress);
        self.acknowledge_in_place(&mut ctx, id)
    }

    /// Whether the server of an early client gets an exact echo of the TSval in its SYN-ACK, which has these options. One that keeps its terms there must,
    /// and one of which nothing is known might; [`EarlyEcho::Auto`] if only its second SYN-ACK will tell.
    fn early_echo(&self, id: Id, key: &FlowKey, answered: &Options, rule: &Rule, now: Instant) -> EarlyEcho {
        if rule.early_echo != EarlyEcho::Auto {
            return rule.early_echo;
        }
        let flow = &self.table[id];
        let scale = flow.endpoint(Side::Wan).scale().filter(|_| answered.scale.is_some());
        let sack = flow.is(FlowFlags::SACK) && answered.sack_permitted;
        let servers = &self.caches.server_options;
        match answered.timestamps {
            None => EarlyEcho::None,
            Some(timestamps)
                if cookie::keeps_terms(timestamps.value, scale, sack)
                    || servers.needs_exact_echo(key, now)
                    || !flow.is(FlowFlags::NO_ECHO)
                    // It answers the second SYN: its answer to the first is lost, or comes later by another queue.
                    || timestamps.echo == self.latest_ts_value(id) =>
            {
                EarlyEcho::Exact
            }
            // Linux adds a secret to the TSval it keeps its terms in.
            Some(_) => EarlyEcho::Auto,
        }
    }

    /// The TSval of the last SYN to the server of an early client.
    fn latest_ts_value(&self, id: Id) -> u32 {
        self.table.client_deltas(id).1.shift(self.table[id].endpoint(Side::Wan).ts_value)
    }

    /// Releases what is held of a flow's client as far as the server's window reaches.
    pub(super) fn release_held(&mut self, id: Id) {
        self.table.update(id, |flow| {
            let edge = flow.endpoint(Side::Lan).acked + flow.granted(Side::Lan).0;
            self.caches.hold_queue.release(flow, edge);
        });
    }

    /// Sends the server its handshake's last acknowledgement. Should no frame be spare, it repeats its SYN-ACK.
    pub(super) fn send_acknowledgement(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        let envelope = self.envelope(id, Side::Wan);
        let acknowledgement = self.last_acknowledgement(id, now);
        self.emit(Side::Lan, &acknowledgement.outgoing(&envelope), egress);
    }

    /// The client's round-trip time has passed and nothing came from it: the server gets its handshake's last acknowledgement from the box. That of
    /// an early client has not repeated its SYN-ACK, and gets what any server takes, an exact echo.
    pub(super) fn send_withheld_ack(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        if self.table[id].held != 0 {
            self.release_held(id);
        }
        if self.table[id].is_crossed() {
            self.answer_server_syn(id, now, egress);
        } else {
            self.send_acknowledgement(id, now, egress);
        }
        let wait = self.acknowledged(id);
        self.table.enter(id, tick(now).wrapping_add(wait));
    }

    /// A server has repeated its SYN-ACK. One whose acknowledgement is withheld gets it; that of an early client with an echo only if it has not
    /// kept the SYN it answered first: then its terms may be in the TSval it sent.
    pub(super) fn answer_repeated_syn_ack(&mut self, ctx: &mut Context<impl Egress>, id: Id) -> Verdict {
        self.counters.count(Event::AnswerRepeated);
        let flow = &self.table[id];
        let is_early = flow.is(FlowFlags::EARLY);
        let latest = self.latest_ts_value(id);
        let forgets = Options::timestamps(ctx.options()).is_none_or(|timestamps| timestamps.echo == latest);
        let is_withheld = flow.is_in(State::AckWithheld);
        self.end_wait(id);
        if is_withheld && is_early {
            self.table.update(id, |flow| flow.set(FlowFlags::NO_ECHO, !forgets));
            if forgets {
                self.caches.server_options.note_exact_echo(ctx.key(), ctx.now);
            }
            // The acknowledgement goes before the data, as in `splice`.
            self.release_held(id);
            self.send_acknowledgement(id, ctx.now, ctx.egress);
        }
        self.acknowledge_in_place(ctx, id)
    }

    /// A server whose acknowledgement is withheld gets it before its time.
    pub(super) fn end_wait(&mut self, id: Id) {
        if self.table[id].is_in(State::AckWithheld) {
            let due = self.table[id].deadline();
            let wait = self.acknowledged(id);
            self.table.schedule(id, due.wrapping_add(wait));
        }
    }

    /// Notes that the server has its acknowledgement; how long it is until the client's window update is due to be repeated.
    fn acknowledged(&mut self, id: Id) -> Ticks {
        self.table.set_state(id, State::WindowPending, |flow| {
            let waited = if flow.distance() == 0 { WITHHELD_MOST } else { flow.distance() };
            SECOND.saturating_sub(waited.into()).max(1)
        })
    }

    /// Makes the client send an acknowledgement: a segment just below what it expects must be answered with an acknowledgement
    /// (RFC 9293 section 3.10.7.4), and how long that takes is the client's distance.
    pub(super) fn probe_client(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        let envelope = self.envelope(id, Side::Lan);
        let mut probe = self.acknowledgement(id, Side::Wan, now);
        probe.seq = probe.seq - 1;
        self.emit(Side::Wan, &probe.outgoing(&envelope), egress);
    }

    /// Sends the client the server's window.
    pub(super) fn send_update(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        let envelope = self.envelope(id, Side::Lan);
        let acknowledgement = self.acknowledgement(id, Side::Wan, now);
        self.emit(Side::Wan, &acknowledgement.outgoing(&envelope), egress);
    }

    /// Sends the client the server's window, in the frame of the server's SYN-ACK.
    fn update_in_place(&mut self, ctx: &mut Context<impl Egress>, id: Id) -> Verdict {
        let envelope = ctx.envelope();
        let acknowledgement = self.acknowledgement(id, Side::Wan, ctx.now);
        if ctx.overwrite(&acknowledgement.outgoing(&envelope)) {
            Verdict::Forward
        } else {
            Verdict::Drop(DropReason::NoRoom)
        }
    }

    /// The client has shown no sign of the window update, which may be lost: its persist timer must not be what saves it.
    pub(super) fn repeat_update(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        let attempts = self.table.update(id, |flow| {
            flow.attempts = flow.attempts.saturating_add(1);
            flow.attempts
        });
        let wait = if attempts > UPDATES_REPEATED {
            self.table.set_state(id, State::Established, |_| ());
            let flow = &self.table[id];
            let passed = tick(now).wrapping_sub(flow.born);
            self.settings.profiles.connected(flow.profile).saturating_sub(passed)
        } else {
            self.counters.count(Event::UpdateRepeated);
            self.send_update(id, now, egress);
            SECOND << attempts
        };
        self.table.enter(id, tick(now).wrapping_add(wait));
    }

    /// The server has not answered yet: repeats the SYN, at doubling intervals, or gives up and resets the client.
    pub(super) fn retransmit_syn(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        if self.table[id].is(FlowFlags::REDIRECTED) {
            return self.redial(id, now, egress);
        }
        let key = self.table.key(id);
        if self.table[id].is(FlowFlags::RESET_WAN) {
            // A client that proves itself and resets at once, as a check does that connects: the next of its network gets what it did not wait for.
            if self.table[id].attempts == 0 && !self.settings.policy.rule(&key).closed_memory.is_zero() {
                return self.continue_try(id, now, egress);
            }
            self.remember(&key, Met::Silence, true, now);
            self.abort_server(id, egress);
            return self.forget(id);
        }
        if self.table[id].attempts > 0 && !self.table[id].is(FlowFlags::SYN_CHALLENGED) {
            // Two SYNs of the box have got no answer.
            self.remember(&key, Met::Silence, true, now);
        }
        let passed = tick(now).wrapping_sub(self.table[id].born);
        let lifetimes = *self.settings.profiles.of(self.table[id].profile);
        if passed >= lifetimes.server_syn_sent {
            self.counters.count(Event::DialTimeout);
            return self.abort(id, egress);
        }
        let attempts = self.table.update(id, |flow| {
            self.caches.hold_queue.forget(flow);
            flow.attempts = flow.attempts.saturating_add(1);
            flow.attempts
        });
        let doubled = lifetimes.retransmit_syn.saturating_mul(1u32.checked_shl(attempts.into()).unwrap_or(u32::MAX));
        let wait = doubled.min(lifetimes.retransmit_max).min(lifetimes.server_syn_sent - passed);
        if self.emit_server_syn(id, 0, egress) {
            self.counters.count(Event::DialRepeated);
        }
        self.table.enter(id, tick(now).wrapping_add(wait));
    }
}

/// Fills the record of a client that has proved itself. `shown` is the latest TSval these ends have been shown on an earlier connection.
pub(super) fn fill_server_syn_sent<E>(flow: &mut Flow, ctx: &Context<E>, proof: &Proof, shown: Option<u32>) {
    let envelope = ctx.envelope();
    let timestamps = Options::timestamps(ctx.options()).unwrap_or_default();
    keep_terms(flow, &proof.terms);
    flow.outer_isn = proof.outer_isn;
    flow.set_distance(proof.distance);
    // The acknowledgement of a SYN-ACK tells the ECN field that came with it (RFC 9768 section 3.2.2.1).
    flow.set_ace(Side::Wan, ctx.segment.flags.ace());
    flow.keep_path(Side::Wan, &envelope);
    let client = flow.endpoint_mut(Side::Wan);
    client.next = proof.client_isn + 1;
    client.acked = proof.outer_isn + 1;
    client.window = ctx.segment.window;
    client.ttl = envelope.ttl;
    client.ts_value = timestamps.value;
    if let Some((ttl, class)) = proof.opened {
        client.ttl = ttl;
        flow.set_class(Side::Wan, class);
    }
    let server = flow.endpoint_mut(Side::Lan);
    server.next = proof.outer_isn + 1;
    server.ts_value = shown.map_or(timestamps.echo, |shown| SeqNum::later(shown, timestamps.echo));
}

/// The options of our SYN to the server: what the client offered and was not denied. The TSval is by `older` less than the client's.
pub(super) fn server_syn_options(flow: &Flow, ts_delta: SeqDelta, older: u32) -> OptionList {
    let client = flow.endpoint(Side::Wan);
    // A SYN acknowledges nothing, so it echoes nothing (RFC 7323 section 3.2).
    let value = ts_delta.shift(client.ts_value).wrapping_sub(older);
    let timestamps = flow.is(FlowFlags::TIMESTAMPS).then_some(Timestamps { value, echo: 0 });
    // Should the server turn out not to take the timestamps the client was promised, they are added to its segments: this keeps the room.
    let reserve = if flow.is(FlowFlags::TIMESTAMPS_PRESUMED) { TIMESTAMPS_ROOM as u16 } else { 0 };
    OptionList::syn(Some(flow.mss.saturating_sub(reserve).max(1)), flow.is(FlowFlags::SACK), timestamps, client.scale())
}

/// Our SYN to the server, in the client's name and with its own number, to which `delta` is added.
fn server_syn<'a>(flow: &Flow, delta: SeqDelta, envelope: &'a Envelope, options: &'a OptionList) -> Outgoing<'a> {
    let client = flow.endpoint(Side::Wan);
    let (seq, ack) = (client.next - 1 + delta, SeqNum::default());
    let flags = Flags::SYN.asking_for(flow.syn_ecn());
    Outgoing { envelope, seq, ack, flags, window: syn_window(flow), options }
}
