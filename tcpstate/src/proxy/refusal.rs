//! Ports that do not let clients in: what is learned of them, what the next client gets there, and how the box learns that they are open again.
//!
//! A client that resets what our SYN-ACK opened has proved its address, if the reset acknowledges our number: so do load balancers' half-open health
//! checks. It will not see the server any more, so the box asks the server in its place ([`State::ServerTried`]), and the next client of its network
//! gets what it would have met. A reset without an acknowledgement, as a SYN scan sends it, proves nothing: after it the port may be tried by the
//! next client's own SYN, if nothing else is known of it.

use super::Proxy;
use super::context::{Context, is_damaged};
use super::idle::Opener;
use super::proof::Proof;
use super::server_handshake::fill_server_syn_sent;
use crate::cache::refused::{Fate, Met};
use crate::cache::servers::Observation;
use crate::cache::updates::ServerUpdate;
use crate::config::Asymmetric;
use crate::flow::table::Id;
use crate::flow::table::wheel::{Ticks, tick};
use crate::flow::{FlowFlags, State};
use crate::seq::WindowScale;
use crate::wire::{ETHERNET_LEN, Flags, FlowKey, IcmpKind, Kind, Options, Quote, Segment, Tags};
use crate::wire::{Unreachable, become_unreachable, error_overhead};
use crate::{DropReason, Egress, Event, Head, Instant, Side, Verdict};

/// For how many ticks, a second, the box waits for an answer to its second SYN to a server that it tries.
const TRY_ENDS: Ticks = 1_000_000 / 1024;
/// For how many ticks, sixteen seconds, the SYN is followed that tries a port: as long as its client repeats it, about.
const RETRY_FOLLOWED: Ticks = 16 * 1_000_000 / 1024;
/// For how many units of 2^20 µs a port counts as lively that has let somebody in: a minute.
const LIVELY: u16 = 57;
/// ICMP errors a second that the box repeats, as hosts and routers limit theirs (RFC 1812 section 4.3.2.8).
pub(super) const ERRORS_REPEATED: u32 = 1000;

impl Proxy {
    /// What becomes of a SYN of the WAN to a port of which something is remembered. `former` is the flow that has its 4-tuple.
    #[inline]
    pub(super) fn fate_of_syn(&mut self, ctx: &mut Context<impl Egress>, former: Option<Id>) -> Option<Fate> {
        if !self.caches.refused_ports.any_refused(ctx.now) {
            return None;
        }
        // A client that may be about to acknowledge our SYN-ACK must not get the server's beside it.
        let may_pass = self.is_new(former, ctx.hash, ctx.now);
        self.fate_at_remembered_port(ctx, may_pass)
    }

    /// The same of a SYN that may pass, or not.
    #[inline(never)]
    pub(super) fn fate_at_remembered_port(&mut self, ctx: &mut Context<impl Egress>, may_pass: bool) -> Option<Fate> {
        let (key, now) = (&ctx.segment.key, ctx.now);
        let memory = self.settings.policy.rule(key).closed_memory;
        let servers = &self.caches.server_options;
        let fate = self.caches.refused_ports.fate(
            key,
            self.caches.limiter.network(key),
            || servers.has_answered(key, LIVELY, now),
            may_pass,
            &mut self.settings.retries,
            memory,
            now,
        );
        match fate {
            Some(Fate::Passes) => {
                ctx.egress
                    .note(|| "clients did not get in at this port lately: this SYN passes, to try it again".into());
                self.publish(ServerUpdate::Tried(*key, false));
            }
            Some(Fate::Waits) => {
                ctx.egress
                    .note(|| "another SYN of its network tries the port: this one waits until it is repeated".into());
            }
            Some(Fate::Gets(_)) | None => {}
        }
        fate
    }

    /// Gives a client what others of its network met.
    #[inline(never)]
    pub(super) fn give(&mut self, mut ctx: Context<impl Egress>, met: Met) -> Verdict {
        ctx.egress
            .note(|| format!("clients of this network met this at the port lately, and so does this one: {met:?}"));
        match met {
            Met::Reset => {
                // What the server would answer (RFC 9293 section 3.10.7.1).
                self.counters.count(Event::ClosedPort);
                self.reset_in_place(&mut ctx, None)
            }
            Met::Error(error) if self.settings.errors_repeated.take(ctx.now) => {
                let tags = self.answer_envelope(ctx.envelope(), error.ttl).tags;
                let room = error_overhead(ctx.key().v6);
                let sent = emit_error(&mut ctx, Side::Wan, &tags, room, |segment, head| {
                    become_unreachable(segment, head, &error)
                });
                self.counters.count(if sent { Event::UnreachablePort } else { Event::NoSpareFrame });
                Verdict::Drop(DropReason::Consumed)
            }
            Met::Error(_) | Met::Silence => Verdict::Drop(DropReason::SilentPort),
        }
    }

    /// Lets the record of a SYN that tries a port go when its client has given up, about.
    pub(super) fn follow_retry(&mut self, id: Id, now: Instant) {
        self.table.schedule(id, tick(now).wrapping_add(RETRY_FOLLOWED));
    }

    /// A client did not get in at a port; `is_proved` says whether it had proved itself.
    pub(super) fn remember(&mut self, key: &FlowKey, met: Met, is_proved: bool, now: Instant) {
        let rule = self.settings.policy.rule(key);
        let memory = rule.closed_memory;
        // Where servers may answer another way than through the box their silence says nothing.
        if memory.is_zero() || met == Met::Silence && rule.asymmetric == Asymmetric::Bypass {
            return;
        }
        if met == Met::Silence {
            self.counters.count(Event::Silent);
        }
        let network = self.caches.limiter.network(key);
        self.caches.refused_ports.met(key, network, met, is_proved, memory, now);
        self.keep_from_kernel(key);
        self.publish(ServerUpdate::Met(*key, met, is_proved));
    }

    /// A client has reset without a proof.
    pub(super) fn note_unproved_reset(&mut self, key: &FlowKey, now: Instant) {
        if !self.caches.server_options.has_answered(key, LIVELY, now) {
            let memory = self.settings.policy.rule(key).closed_memory;
            let network = self.caches.limiter.network(key);
            self.caches.refused_ports.asked(key, network, memory, now);
            self.keep_from_kernel(key);
        }
    }

    /// Whether a client that has proved itself is reset at once: its network was refused within the last second.
    pub(super) fn refuses_proved(&mut self, key: &FlowKey, now: Instant) -> bool {
        let network = self.caches.limiter.network(key);
        self.caches.refused_ports.refuses_proved(key, network, &mut self.settings.retries, now)
    }

    /// A client has proved itself by a reset: asks its server in its place, unless that is known to be there, or has been asked a moment ago. The `former`
    /// flow of the same key is the client's entry in the SYN cache.
    pub(super) fn try_server(&mut self, mut ctx: Context<impl Egress>, proof: &Proof, former: Option<Id>) -> Verdict {
        if is_damaged(&ctx) {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let (key, hash, now) = (*ctx.key(), ctx.hash, ctx.now);
        if self.is_blocked(&mut ctx) {
            return Verdict::Drop(DropReason::Blocked);
        }
        self.note_proof(Event::ResetProved, &key, now);
        self.caches.limiter.refund(&key, now);
        if let Some(former) = former {
            self.forget(former);
        }
        let rule = self.settings.policy.rule(&key);
        let is_moot = rule.closed_memory.is_zero() || self.caches.server_options.has_answered(&key, 0, now);
        let offer = self.caches.server_options.offer_cached(&key, rule, now);
        let network = self.caches.limiter.network(&key);
        if is_moot || !self.caches.refused_ports.begin_try(&key, network, now) || !self.settings.retries.take(now) {
            ctx.egress.note(|| "the client has proved itself by its reset; its server need not be asked now".into());
            return Verdict::Drop(DropReason::Consumed);
        }
        self.publish(ServerUpdate::Tried(key, true));
        ctx.egress.note(|| "the client has proved itself by its reset: the box asks the server in its place".into());
        // No connection gives way to a question.
        if !self.make_room(Opener::Unproved(&key), now, ctx.egress) {
            return Verdict::Drop(DropReason::TableFull);
        }
        let admitted = self.admit(&key, hash, Side::Wan, State::ServerTried, now, |flow| {
            fill_server_syn_sent(flow, &ctx, proof, None);
            // A reset grants nothing: what its field says is no more than the client's SYN offered, which was not scaled.
            let client = flow.endpoint_mut(Side::Wan);
            client.window.0 >>= client.scale().map_or(0, WindowScale::get);
            flow.endpoint_mut(Side::Lan).ttl = offer.ttl;
            flow.set_class(Side::Lan, offer.class_for(flow.class(Side::Wan)));
        });
        let Some(id) = admitted else {
            return Verdict::Drop(DropReason::TableFull);
        };
        self.remember_candidate(id);
        self.caches.vlan_pairs.note(key.vlan);
        self.counters.count(Event::ServerTried);
        self.connect_in_place(&mut ctx, id)
    }

    /// Segments of a client whose server the box asks in its place.
    pub(super) fn on_client_while_server_tried(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        match ctx.kind {
            Kind::Syn => self.answer_syn(ctx, Some(id)),
            Kind::Ack => self.on_cookie_ack(ctx, Some(id)),
            Kind::Rst if ctx.segment.seq == self.table[id].endpoint(Side::Wan).next => {
                Verdict::Drop(DropReason::Consumed)
            }
            Kind::Rst => Verdict::Drop(DropReason::BadReset),
            Kind::SynAck | Kind::Bad => Verdict::Drop(DropReason::WrongState),
        }
    }

    /// Segments of a server that the box asks in a client's place.
    pub(super) fn on_server_while_server_tried(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        let Segment { ack, flags, .. } = *ctx.segment;
        let answers = flags.has(Flags::ACK) && ack == self.next_number(id, Side::Lan);
        if ctx.kind == Kind::Rst && !answers {
            return Verdict::Drop(DropReason::BadReset);
        }
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        self.note_station(ctx.side, ctx.head.bytes(), ctx.now);
        match ctx.kind {
            Kind::Rst => {
                self.counters.count(Event::Refused);
                self.caches.direct_returns.answered(ctx.key());
                self.remember(ctx.key(), Met::Reset, true, ctx.now);
                self.forget(id);
                Verdict::Drop(DropReason::Consumed)
            }
            Kind::SynAck if answers => {
                let answered = Options::read(ctx.options());
                self.note_answer_in_own_vlan(id, ctx.key().vlan);
                let observation = Observation::of(ctx.segment, ctx.head.bytes(), answered, &self.table[id]);
                self.learn(ctx.key(), &observation, ctx.now);
                ctx.egress.note(|| "the server is there; it is reset, as its client would have reset it".into());
                self.end_try(ctx, id)
            }
            Kind::Syn => self.open_passthrough(ctx, Some(id)),
            // The server remembers an older connection of these ends, which the client would reset (RFC 9293 section 3.10.7.3).
            Kind::SynAck | Kind::Ack if flags.has(Flags::ACK) => self.end_try(ctx, id),
            Kind::SynAck | Kind::Ack | Kind::Bad => Verdict::Drop(DropReason::WrongState),
        }
    }

    /// Ends a try with a reset to the server.
    fn end_try(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        let verdict = self.reset_in_place(&mut ctx, Some(id));
        self.forget(id);
        verdict
    }

    /// An ICMP error about the SYN of a try.
    pub(super) fn on_icmp_while_server_tried(
        &mut self,
        side: Side,
        quote: &Quote,
        id: Id,
        head: &Head,
        now: Instant,
    ) -> Verdict {
        if let Err(reason) = self.remember_error_of_syn(side, quote, id, &self.table.key(id), head, now) {
            return Verdict::Drop(reason);
        }
        self.forget(id);
        Verdict::Drop(DropReason::Consumed)
    }

    /// Remembers, for this port, that an ICMP error came about the SYN which the box has sent to a server, and returns what it says.
    ///
    /// # Errors
    /// Why an error is dropped that says anything else, or of another segment.
    pub(super) fn remember_error_of_syn(
        &mut self,
        side: Side,
        quote: &Quote,
        id: Id,
        key: &FlowKey,
        head: &Head,
        now: Instant,
    ) -> Result<Option<Unreachable>, DropReason> {
        if side == Side::Wan || quote.kind(head.bytes()) != IcmpKind::Unreachable {
            return Err(DropReason::IcmpUnmatched);
        }
        if quote.seq != self.next_number(id, Side::Lan) - 1 {
            return Err(DropReason::IcmpNotInFlight);
        }
        let unreachable = quote.unreachable(head.bytes());
        self.remember_error(key, unreachable, true, now);
        Ok(unreachable)
    }

    /// An ICMP error has come about a SYN to this port.
    pub(super) fn remember_error(&mut self, key: &FlowKey, error: Option<Unreachable>, is_proved: bool, now: Instant) {
        if let Some(error) = error {
            self.remember(key, Met::Error(error), is_proved, now);
        }
    }

    /// The ICMP error about the SYN of a client that is passed through.
    pub(super) fn note_error_while_syn_sent(&mut self, side: Side, id: Id, quote: &Quote, head: &Head, now: Instant) {
        let flow = &self.table[id];
        let is_opened_by_wan = side == Side::Lan && flow.is_in(State::SynSent) && flow.client() == Side::Wan;
        if is_opened_by_wan && !flow.is(FlowFlags::EXCEPTIONAL) && quote.seq == flow.outer_isn {
            let key = self.table.key(id);
            self.remember_error(&key, quote.unreachable(head.bytes()), false, now);
        }
    }

    /// A server that the box asks has not answered: repeats the SYN once, then takes it for silent.
    pub(super) fn continue_try(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        if self.table[id].attempts > 0 {
            let key = self.table.key(id);
            self.remember(&key, Met::Silence, true, now);
            return self.forget(id);
        }
        self.table.update(id, |flow| flow.attempts = 1);
        if self.emit_server_syn(id, 0, egress) {
            self.counters.count(Event::DialRepeated);
        }
        self.table.enter(id, tick(now).wrapping_add(TRY_ENDS));
    }
}

/// Sends the client of the segment at hand, which is on the side `client`, an error about it, which `write` makes of a copy in these tags, with `room` behind it.
pub(super) fn emit_error(
    ctx: &mut Context<impl Egress>,
    client: Side,
    tags: &Tags,
    room: usize,
    write: impl FnOnce(&Segment, &mut Head),
) -> bool {
    let question = ctx.head.bytes();
    ctx.egress.emit(client, |buffer| {
        let (from, to) = (usize::from(ctx.segment.ip), ETHERNET_LEN + tags.len());
        let copied = (question.len() - from).min(buffer.len() - to);
        buffer[..12].copy_from_slice(&question[..12]);
        for (place, tag) in buffer[12..].as_chunks_mut().0.iter_mut().zip(tags.words()) {
            *place = tag.to_be_bytes();
        }
        buffer[to - 2..to + copied].copy_from_slice(&question[from - 2..from + copied]);
        let len = (to + copied + room).min(buffer.len());
        let mut error = Head::whole(buffer, len);
        write(&ctx.segment.moved(to), &mut error);
        error.len()
    })
}
