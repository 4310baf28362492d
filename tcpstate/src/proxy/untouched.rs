//! Connections of destinations whose [mode](crate::config::Mode) passes them: followed, so that they go on when the mode changes, and not touched. Whatever
//! comes of them goes on as it came; the ends judge it. What the record believes of it matters only for the record.

use super::Proxy;
use super::adoption::{agrees, note};
use super::context::{Context, are_possible, is_damaged, is_from_group};
use super::passthrough::{Passing, fill_syn_sent, note_syn};
use crate::cache::refused::Met;
use crate::config::{Mode, Proved};
use crate::flow::table::Id;
use crate::flow::table::wheel::tick;
use crate::flow::{Flow, FlowFlags, State};
use crate::policy::Rule;
use crate::policy::limit::Admission;
use crate::policy::mode::{Directive, Target, TargetCounts};
use crate::seq::SeqNum;
use crate::wire::{Flags, FlowKey, Kind, Options};
use crate::{DropReason, Egress, Event, Instant, Side, Verdict};
use std::sync::Arc;

/// Which way a segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As if there were no modes.
    Usual,
    /// Its connection is not touched.
    Untouched(Id),
    /// It is of no flow, and passes.
    Unknown,
}

impl Proxy {
    /// What has a mode of its own, in the present policy: everybody first, then each block that settles one. Its place is its number below.
    pub fn targets(&self) -> &Arc<[Target]> {
        self.settings.policy.targets()
    }

    /// What the mode of a target depends on, as far as this worker has counted it; nothing of a number that no target has.
    pub fn target_counts(&self, target: u32) -> TargetCounts {
        TargetCounts::new(self.counters.of_target(target), self.table.half_open(target))
    }

    /// What becomes of a target's SYNs now: never [`Mode::Auto`].
    pub fn present_mode(&self, target: u32) -> Mode {
        self.settings.modes.present(target)
    }

    /// Has a target in [`Mode::Auto`] pass SYNs or answer them from now on; connections that are open go on. To be called between two batches. Of any other
    /// target this changes nothing.
    pub fn direct(&mut self, target: u32, directive: &Directive, now: Instant) {
        let adopt = self.settings.adopt_grace;
        self.settings.modes.direct(target, directive, adopt, now);
    }

    /// The next target that has stopped to pass SYNs here because too many connections were half-open, until none is left: to be told to the other
    /// workers at once.
    #[inline]
    pub fn next_alarm(&mut self) -> Option<u32> {
        self.settings.modes.next_alarm()
    }

    /// Whether SYNs to the server of this connection pass.
    pub(super) fn passes(&self, key: &FlowKey) -> bool {
        self.settings.modes.any_passes() && self.settings.modes.present(self.settings.policy.rule(key).target).passes()
    }

    /// Whether the mode of this server's destination changes by itself.
    fn is_auto(&self, key: &FlowKey) -> bool {
        self.settings.modes.is_auto(self.settings.policy.rule(key).target)
    }

    /// Whether unknown connections of this server are adopted.
    pub(super) fn adopts(&self, key: &FlowKey, now: Instant) -> bool {
        let modes = &self.settings.modes;
        now < self.settings.adopt_until
            || modes.may_have_passed() && modes.adopts(|| self.settings.policy.rule(key).target, now)
    }

    /// What the mode of its destination says of a client's SYN, over the remains of `former` if there are any. A destination in [`Mode::Auto`] of which
    /// as many connections are half-open as may be stops to pass them here.
    #[inline(never)]
    pub(super) fn passing(&mut self, ctx: &mut Context<impl Egress>, former: Option<Id>) -> Passing {
        let target = self.settings.policy.rule(ctx.key()).target;
        if !self.settings.modes.present(target).passes() {
            return Passing::No;
        }
        let is_fit = are_possible(ctx.key()) && !is_from_group(ctx.head.bytes()) && ctx.is_sound();
        let is_auto = self.settings.modes.is_auto(target);
        match former {
            // The box has answered this client, or speaks for its server.
            Some(id) if self.table[id].is(FlowFlags::PROXIED) && !self.gives_way(id) => return Passing::No,
            // The ends decide whether the one that lives gives way.
            Some(id) if !self.table[id].is_over() && !self.table[id].is_in(State::Unconfirmed) => {
                return Passing::Unfollowed;
            }
            _ => {}
        }
        // A client that may be about to acknowledge our SYN-ACK must not get the server's beside it.
        if self.settings.modes.accepts_cookies(target, ctx.now) && self.caches.recent_syns.has_noted(ctx.hash, ctx.now)
        {
            return Passing::No;
        }
        if !is_auto {
            return if is_fit { Passing::Followed } else { Passing::Unfollowed };
        }
        // What is not followed is not counted: it is treated as if it were to be answered.
        if !is_fit || ctx.segment.indirect {
            return Passing::No;
        }
        let half_open = self.table.half_open(target);
        if self.settings.modes.is_exceeded(target, half_open) || self.is_pressed() {
            ctx.egress
                .note(|| format!("{half_open} connections of its destination are half-open: it stops to pass SYNs"));
            self.settings.modes.engage(target, self.settings.adopt_grace, ctx.now);
            return Passing::No;
        }
        Passing::Followed
    }

    /// Whether one more half-open connection may put out another, which could not be counted any more: a sixteenth of the table is half-open, or three
    /// quarters are in use.
    fn is_pressed(&self) -> bool {
        self.table.is_nearly_full()
            || self.unproved.next_out().is_some_and(|(id, generation)| self.is_unproved(id, generation))
    }

    /// Passes a SYN as it is. If it is to be followed a connection of its own begins, over the remains of `former` if there are any.
    #[inline(never)]
    pub(super) fn pass_untouched(
        &mut self,
        ctx: Context<impl Egress>,
        former: Option<Id>,
        passing: Passing,
    ) -> Verdict {
        let rule = *self.settings.policy.rule(ctx.key());
        ctx.egress.note(|| {
            let mode = self.settings.modes.present(rule.target).label();
            format!("its destination is in mode `{mode}`: it passes untouched")
        });
        if ctx.side == Side::Wan {
            self.counters.count(Event::PassedByMode);
            if self.settings.modes.present(rule.target) == Mode::Observe && former.is_none_or(|id| self.gives_way(id)) {
                self.observe(&ctx, &rule);
            }
        }
        if passing == Passing::Followed {
            self.follow_untouched(&ctx, former, &rule);
        }
        Verdict::Forward
    }

    /// Begins a connection that is not touched, if the table has a place for it.
    fn follow_untouched(&mut self, ctx: &Context<impl Egress>, former: Option<Id>, rule: &Rule) {
        if let Some(former) = former {
            self.forget(former);
        }
        let (key, hash, now) = (*ctx.key(), ctx.hash, ctx.now);
        if ctx.side == Side::Wan {
            self.bound_unproved();
        }
        // Nothing that has a place gives way to what passes without one.
        if self.table.is_nearly_full() {
            return;
        }
        let profile = self.settings.profiles.present(rule.untouched);
        let Some(id) = self.admit(&key, hash, ctx.side, State::SynSent, now, |flow| {
            flow.profile = profile;
            fill_syn_sent(flow, ctx);
        }) else {
            return;
        };
        self.remember_candidate(id);
        self.remember_unproved(id);
        self.caches.vlan_pairs.note(key.vlan);
        self.bound_half_open(id, now);
        if ctx.side == Side::Lan {
            self.note_station(ctx.side, ctx.head.bytes(), now);
            self.counters.count(Event::Direct);
            self.caches.refused_ports.opened(&key, now);
        }
    }

    /// A client's connection counts as half-open for as long as its server remembers it, about, which is as long as an entry of the SYN cache.
    pub(super) fn bound_half_open(&mut self, id: Id, now: Instant) {
        let flow = &self.table[id];
        if flow.client() == Side::Wan && matches!(flow.state(), State::SynSent | State::SynReceived) {
            let lifetimes = self.settings.profiles.of(flow.profile);
            let most = lifetimes.of(State::SynCached).min(lifetimes.of(flow.state()));
            self.table.schedule(id, tick(now).wrapping_add(most));
        }
    }

    /// Counts what would have become of a SYN that passes, were its destination in [`Mode::Cache`].
    fn observe(&mut self, ctx: &Context<impl Egress>, rule: &Rule) {
        let admission = self.caches.limiter.admit(ctx.tokens, ctx.hash, ctx.segment.seq, ctx.now);
        let entries = self.table.population().syn_cached + u64::from(self.table.half_open(rule.target));
        let event = if admission == Admission::Refused {
            Event::WouldBeLimited
        } else if self.caches.refused_ports.is_remembered(ctx.key(), ctx.now) {
            Event::WouldBeRefused
        } else if entries < self.candidates.syn_cached_most() as u64 {
            Event::WouldBeCached
        } else {
            Event::WouldGetCookie
        };
        self.counters.count(event);
    }

    /// Whether a flow passes as it is, whatever it does.
    pub(super) fn is_untouched(&self, id: Id) -> bool {
        let flow = &self.table[id];
        !flow.is(FlowFlags::PROXIED) && self.settings.profiles.get(flow.profile).is_untouched
    }

    /// Passes a segment of a connection that is not touched, and follows it.
    #[inline(never)]
    pub(super) fn on_untouched(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        match ctx.kind {
            Kind::Syn => return self.on_untouched_syn(ctx, id),
            Kind::SynAck => self.follow_syn_ack(&ctx, id),
            Kind::Rst => self.follow_reset(&ctx, id),
            Kind::Ack => {
                // The SYN of the same ends may have been answered before this connection began, or over its remains.
                let flow = &self.table[id];
                let may_prove = ctx.side == Side::Wan
                    && match flow.state() {
                        State::SynSent if flow.client() == Side::Wan => {
                            self.caches.recent_syns.has_noted(ctx.hash, ctx.now)
                        }
                        _ => flow.is(FlowFlags::REOPENING) && ctx.segment.ack != flow.outer_isn + 1,
                    };
                if may_prove && let Ok(proof) = self.open_cookie(&mut ctx) {
                    return self.accept_cookie(ctx, &proof, Some(id));
                }
                self.follow_acknowledgement(&ctx, id);
            }
            Kind::Bad => {}
        }
        Verdict::Forward
    }

    fn on_untouched_syn(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        let flow = &self.table[id];
        let (opens, is_opening) =
            (ctx.side == flow.client(), matches!(flow.state(), State::SynSent | State::SynReceived));
        if opens && is_opening {
            if ctx.side == Side::Wan && !self.passes(ctx.key()) && !self.is_allowed(ctx.key()) {
                // Within its source's budget it passes; beyond, it is answered, and the client goes on with whichever answer it gets.
                let is_of_proved =
                    self.caches.proved_sources.is_on() && self.settings.policy.rule(ctx.key()).proved == Proved::Pass;
                if is_of_proved && !self.caches.proved_sources.admit_repeated(ctx.key(), ctx.now) {
                    self.counters.count(Event::ProvedSpent);
                    return self.answer_syn(ctx, Some(id));
                }
                // Where SYNs are answered by now the server gets no more for one that passed than a host repeats.
                if !is_of_proved && self.repeats_too_soon(&ctx, id) {
                    return Verdict::Drop(DropReason::NotPassed);
                }
            }
            if self.table[id].endpoint(ctx.side).next != ctx.segment.seq + ctx.segment.seq_len() && ctx.is_sound() {
                self.begin_again(&ctx, id);
                self.bound_half_open(id, ctx.now);
            } else {
                self.note_other_offer(&ctx, id);
            }
            return Verdict::Forward;
        }
        match ctx.side {
            Side::Wan if flow.is_over() || flow.is_in(State::Unconfirmed) => return self.answer_syn(ctx, Some(id)),
            // Its number is the newest thing known of this end.
            Side::Wan if flow.is_in(State::SynSent) && ctx.is_sound() => {
                let options = Options::read(ctx.options());
                self.table.update(id, |flow| note_syn(flow, &ctx, &options));
            }
            Side::Wan => {}
            Side::Lan if flow.is_in(State::SynSent) && ctx.is_sound() => {
                let options = Options::read(ctx.options());
                self.table.update(id, |flow| note_syn(flow, &ctx, &options));
            }
            Side::Lan if flow.opened_by(ctx.segment) && !flow.is_over() => {}
            // A server of which a client's connection is half-open answers it, and does not open one.
            Side::Lan if is_opening => {}
            Side::Lan => return self.open_passthrough(ctx, Some(id)),
        }
        Verdict::Forward
    }

    fn follow_syn_ack(&mut self, ctx: &Context<impl Egress>, id: Id) {
        let flow = &self.table[id];
        if !matches!(flow.state(), State::SynSent | State::SynReceived) {
            return self.begin_by_answer(ctx, id);
        }
        let answers = ctx.side != flow.client() && flow.is_in(State::SynSent) && flow.answers_syn(ctx.segment);
        if answers && ctx.is_sound() {
            self.settle_opening(ctx, id, Options::read(ctx.options()));
            self.bound_half_open(id, ctx.now);
        }
    }

    fn follow_reset(&mut self, ctx: &Context<impl Egress>, id: Id) {
        if !ctx.is_sound() {
            return;
        }
        // Where half-open connections are counted it must not be forged ones that are not.
        let is_counted = ctx.side == Side::Wan && self.is_auto(ctx.key());
        let (flow, side, seq) = (&self.table[id], ctx.side, ctx.segment.seq);
        let (opens, state) = (side == flow.client(), flow.state());
        let is_acceptable = match state {
            // Its server remembers it for as long as the box counts it, unless it heeds the reset. Before it has answered nobody knows.
            State::SynSent if opens && is_counted => false,
            State::SynReceived if opens && is_counted => is_surely_heeded(flow, ctx),
            State::SynSent | State::SynReceived if opens => seq.within(flow.outer_isn + 1, flow.endpoint(side).next),
            State::SynSent => flow.answers_syn(ctx.segment),
            State::SynReceived => seq == flow.endpoint(side).next,
            State::Unconfirmed | State::Reset => false,
            _ => seq.within(flow.endpoint(side.other()).acked, flow.endpoint(side).next),
        };
        if !is_acceptable {
            return;
        }
        let is_half_open = matches!(state, State::SynSent | State::SynReceived) && flow.client() == Side::Wan;
        if is_half_open {
            if state == State::SynSent && side == Side::Lan && !flow.is(FlowFlags::EXCEPTIONAL) {
                self.remember(ctx.key(), Met::Reset, false, ctx.now);
            }
            return self.forget(id);
        }
        self.follow_state(id, ctx.now, |flow| {
            flow.note_reset(side, seq);
            State::Reset
        });
    }

    fn follow_acknowledgement(&mut self, ctx: &Context<impl Egress>, id: Id) {
        let (flow, side) = (&self.table[id], ctx.side);
        let opens = side == flow.client();
        match flow.state() {
            // Where half-open connections are counted, what anybody may have sent keeps none of them beyond the time of its SYN.
            State::SynSent if opens && !(side == Side::Wan && self.is_auto(ctx.key())) => self.on_opener_alone(ctx, id),
            State::SynSent => {}
            State::SynReceived if opens => {
                let acknowledges = ctx.segment.ack.within(flow.endpoint(side).acked, flow.endpoint(side.other()).next);
                if !acknowledges || is_damaged(ctx) {
                    return;
                }
                self.set_state(id, State::Established, ctx.now, |_| ());
                self.remember_candidate(id);
                if side == Side::Wan {
                    self.note_passed_proof(ctx.key(), ctx.hash, ctx.now);
                }
                self.track_untouched(ctx, id);
            }
            State::Unconfirmed if side == Side::Lan => {
                self.table.update(id, |flow| note(flow, ctx));
                self.restart_timer(id, ctx.now);
            }
            State::Unconfirmed => {
                if agrees(flow, ctx.segment) {
                    self.set_state(id, State::Established, ctx.now, |flow| note(flow, ctx));
                    self.counters.count(Event::Adopted);
                }
            }
            _ => self.track_untouched(ctx, id),
        }
    }

    fn track_untouched(&mut self, ctx: &Context<impl Egress>, id: Id) {
        if self.is_in_sequence(ctx, id) {
            self.follow_path(ctx, id);
            self.track(ctx, id);
        }
    }

    /// A client acknowledges a number that its server chose.
    fn note_passed_proof(&mut self, key: &FlowKey, hash: u64, now: Instant) {
        self.note_completed(key, hash, now);
        if self.settings.modes.present(self.settings.policy.rule(key).target) == Mode::Observe {
            self.caches.limiter.refund(key, now);
        }
    }

    /// A segment other than a SYN of no flow, to or from a destination whose SYNs pass: it passes. What the LAN sends shows that it has a connection, which
    /// is followed from now on.
    pub(super) fn pass_unknown(&mut self, ctx: Context<impl Egress>) -> Verdict {
        ctx.egress.note(|| "no flow has this 4-tuple, and the mode of its destination passes it".into());
        if ctx.side == Side::Lan && ctx.kind == Kind::Ack && !self.table.is_nearly_full() {
            let untouched = self.settings.policy.rule(ctx.key()).untouched;
            return self.adopt_as(ctx, self.settings.profiles.present(untouched));
        }
        Verdict::Forward
    }

    /// Which way a segment goes by the mode of its destination, now or when its connection began.
    #[inline(never)]
    pub(super) fn way_by_mode<E>(&self, ctx: &Context<E>, found: Option<Id>) -> Way {
        match found {
            Some(id) if self.is_untouched(id) => Way::Untouched(id),
            None if self.passes_unknown(ctx.side, ctx.kind, ctx.key(), ctx.now)
                && !self.caches.stations.are_on(ctx.side, ctx.head.bytes(), ctx.now) =>
            {
                Way::Unknown
            }
            _ => Way::Usual,
        }
    }

    /// Whether a segment other than a SYN of no flow passes by the mode of its destination, before anything else is asked of it.
    fn passes_unknown(&self, side: Side, kind: Kind, key: &FlowKey, now: Instant) -> bool {
        if kind == Kind::Syn || !self.settings.modes.any_passes() {
            return false;
        }
        let target = self.settings.policy.rule(key).target;
        // What may acknowledge a cookie is examined first.
        let may_prove = side == Side::Wan && matches!(kind, Kind::Ack | Kind::Rst);
        self.settings.modes.present(target).passes() && !(may_prove && self.settings.modes.accepts_cookies(target, now))
    }
}

/// Whether a client's reset, sound and of a connection that its server has answered, certainly ends it there. Anybody may have sent it, and the SYN too: one
/// that passes here and that the server never gets, or that it ignores, would leave the connection half-open there, and no trace of it here. So it has the
/// very number that the server expects (RFC 5961 section 3), acknowledges nothing but the SYN-ACK (Linux heeds no other), has no option but timestamps that
/// pass RFC 7323 section 5.3, nothing in its IP header that somebody may object to, and as many hops left as the SYN had.
fn is_surely_heeded<E>(flow: &Flow, ctx: &Context<E>) -> bool {
    let (segment, [server, client]) = (ctx.segment, [Side::Lan, Side::Wan].map(|side| flow.endpoint(side)));
    let is_in_order = segment.seq == server.acked && segment.payload_len() == 0;
    let acknowledges = !segment.flags.has(Flags::ACK) || segment.ack == server.next;
    let options = ctx.options();
    let has_right_options = options.is_empty()
        || options.len() == TIMESTAMPS_ALONE
            && Options::timestamps(options).is_some_and(|stamps| {
                !SeqNum::new(stamps.value).before(SeqNum::new(client.ts_value)) && stamps.echo == server.ts_value
            });
    let is_plain = !segment.fragmented && !segment.indirect && segment.has_plain_header();
    is_in_order && acknowledges && has_right_options && is_plain && segment.ttl >= client.ttl
}

/// Bytes of timestamps and their padding, as options.
const TIMESTAMPS_ALONE: usize = 12;
