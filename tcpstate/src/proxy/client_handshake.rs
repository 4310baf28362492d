//! The handshake with the client: the box answers its SYN with a cookie and checks the proof. `server_handshake` then connects the server.

use super::Proxy;
use super::context::{Context, are_possible, is_damaged, is_from_group};
use super::passthrough::Passing;
use super::proof::{Proof, Unproved, distance, keep_terms, opened_by, terms_of};
use super::reply::label;
use crate::cache::refused::Fate;
use crate::cache::servers::default_mss;
use crate::config::{Action, Extension, Mode, Proved};
use crate::cookie::terms::{Ecn, KnownEcn, Offer, Terms};
use crate::cookie::{SynAckNumbers, ts_again, ts_not_before};
use crate::flow::table::Id;
use crate::flow::table::wheel::{average, tick};
use crate::flow::{Flow, FlowFlags, State};
use crate::metadata::Metadata;
use crate::policy::exceptions::Exception;
use crate::policy::limit::{Admission, Left};
use crate::policy::lists::List;
use crate::policy::{Rule, ServiceMark};
use crate::seq::{RawWindow, SeqNum, WindowScale};
use crate::wire::{
    Ace, CommonSyn, CommonSynAck, ETHERNET_MIN, Envelope, Flags, FlowKey, Kind, OptionList, Options, Outgoing, Segment,
    Timestamps,
};
use crate::{DropReason, Egress, Event, Head, Instant, Side, Timing, Verdict};

impl Proxy {
    /// Fast path of a client's SYN: answers it with a cookie. Takes the common case only: no flow with this 4-tuple, common options, a server
    /// known to take them all, no place in the SYN cache and no refused port. Does what [`Proxy::answer_syn`] would do, at the least cost. Returns
    /// false for any other segment, and changes nothing then.
    #[inline(always)]
    pub(super) fn answer_syn_fast(
        &mut self,
        side: Side,
        segment: &Segment,
        meta: &Metadata,
        head: &mut Head,
        now: Instant,
    ) -> bool {
        let mode = match self.settings.modes.is_plain() {
            true => Mode::Cache,
            false => self.settings.modes.present(self.settings.policy.rule(&segment.key).target),
        };
        let is_cached = mode != Mode::Cookie && !self.has_no_syn_cache();
        if side != Side::Wan
            || mode.passes()
            || self.settings.draining
            || !self.caches.exceptions.is_shut(Exception::Introduction)
            || self.caches.direct_returns.any_bypassed()
            || self.caches.proved_sources.is_on() && self.is_proved_and_may_pass(&segment.key, now)
            || self.caches.refused_ports.is_remembered(&segment.key, now)
            || self.settings.is_guarded && self.is_held_up(segment, now)
            || is_cached && !self.is_cache_full(now)
        {
            return false;
        }
        let Some(syn) = CommonSyn::read(segment, head) else { return false };
        let is_answered_elsewhere = self.caches.vlan_pairs.answer(segment.key.vlan).is_some();
        if is_answered_elsewhere
            || !are_possible(&segment.key)
            || is_from_group(head.bytes())
            || self.caches.stations.are_on(side, head.bytes(), now)
        {
            return false;
        }
        let offered = Options {
            mss: Some(syn.mss),
            scale: Some(syn.scale),
            sack_permitted: true,
            timestamps: Some(syn.timestamps),
            ..Options::default()
        };
        let rule = self.settings.policy.rule(&segment.key);
        let offer = self.caches.server_options.offer_cached(&segment.key, rule, now);
        let terms = self.agree(segment, &offered, &offer, rule.mss_clamp);
        let window = rule.early_window(&offer, terms.promised);
        let Some(scale) = terms.promised.filter(|_| terms.sack && terms.timestamps) else { return false };
        if segment.ttl <= offer.hops {
            return false;
        }
        // Nothing returns behind the limiter, whose token would be lost.
        if rule.service == ServiceMark::Closed
            || terms.mss < self.caches.cookies.smallest_mss(true)
            || !self.caches.limiter.spend(meta.tokens, now)
        {
            return false;
        }
        if is_cached {
            self.counters.count(Event::CacheFull);
        }
        if self.settings.is_guarded && self.quotas.limits_answers() {
            self.quotas.note_answer(&segment.key, now);
        }
        self.caches.cookies.advance(now);
        let SynAckNumbers { isn, ts_value } = self.caches.cookies.mint(meta.hash, segment.seq, &terms, now);
        self.caches.recent_syns.note(meta.hash, segment.seq, isn, now);
        if self.kernel_syns.is_some() {
            self.let_kernel_answer(&segment.key, head.bytes(), now);
        }
        let answer = CommonSynAck {
            seq: isn,
            ack: segment.seq + 1,
            flags: syn_ack_flags(&terms, segment, head.bytes()),
            window,
            mss: offer.mss,
            timestamps: Timestamps { value: ts_value.unwrap_or_default(), echo: syn.timestamps.value },
            scale,
            label: label(meta.hash),
            ttl: offer.ttl,
            class: offer.class_for(segment.class(head.bytes())),
        };
        answer.write_over(segment, head.bytes_mut());
        self.counters.count(Event::WanSyn);
        self.counters.count(Event::SynAnswered);
        true
    }

    /// Answers a SYN from the WAN, over the remains of `former` if there are any.
    pub(super) fn answer_syn(&mut self, mut ctx: Context<impl Egress>, mut former: Option<Id>) -> Verdict {
        let mark = self.mark(ctx.key());
        if mark == ServiceMark::Closed {
            return self.on_unknown_connection_of_box(ctx);
        }
        let is_service = mark != ServiceMark::None;
        // What is the box's cannot pass.
        let listed = self.listed(ctx.key()).filter(|&listed| !is_service || listed == List::Block);
        if listed.is_none() && self.settings.modes.any_passes() {
            match self.passing(&mut ctx, former) {
                Passing::No => {}
                passing => return self.pass_untouched(ctx, former, passing),
            }
        }
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        if !are_possible(ctx.key()) || is_from_group(ctx.head.bytes()) {
            return Verdict::Drop(DropReason::BadAddress);
        }
        if let Some(listed) = listed {
            ctx = match self.decide_by_list(ctx, listed, former) {
                Ok(verdict) => return verdict,
                Err(ctx) => ctx,
            };
        } else if self.caches.proved_sources.is_on() && self.admits_proved(&mut ctx, former) {
            if former.is_some_and(|id| !self.gives_way(id)) {
                // Anybody may have sent it, and the connection may live: its record is the new one's when the server has answered.
                self.counters.count(Event::ProvedPassed);
                return Verdict::Forward;
            }
            if let Some(verdict) = self.pass_unanswered(&mut ctx, former.take(), Event::ProvedPassed) {
                return verdict;
            }
        }
        let (now, isn) = (ctx.now, ctx.segment.seq);
        let admission = self.caches.limiter.admit(ctx.tokens, ctx.hash, isn, now);
        ctx.egress.note(|| {
            let Left { fresh, repeated, .. } = self.caches.limiter.left(ctx.tokens);
            let granted = match admission {
                Admission::Granted => "granted",
                Admission::SecondChance => "granted as a repeated SYN",
                Admission::Refused => "refused",
            };
            format!("limit of the source's network: {granted}; left are {fresh} SYNs and {repeated} repeated ones")
        });
        if admission == Admission::Refused {
            self.counters.count(Event::SynLimited);
            return Verdict::Drop(DropReason::RateLimited);
        }
        if let Some(event) = admission.event() {
            self.counters.count(event);
        }
        self.caches.cookies.advance(now);
        let (key, hash) = (*ctx.key(), ctx.hash);
        if ctx.segment.indirect {
            if is_service {
                return Verdict::Drop(DropReason::NotPassed);
            }
            return self.pass_syn_unanswered(ctx, former, Event::Rerouted);
        }
        match self.fate_of_syn(&mut ctx, former) {
            Some(Fate::Waits) if !self.caches.limiter.seen_before(hash, isn, now) => {
                return Verdict::Drop(DropReason::SilentPort);
            }
            None | Some(Fate::Waits) => {}
            Some(Fate::Passes) => return self.pass_syn_unanswered(ctx, former, Event::Retried),
            Some(Fate::Gets(met)) => return self.give(ctx, met),
        }
        let offered = Options::read(ctx.options());
        let rule = *self.settings.policy.rule(&key);
        let offer = match offered.timestamps {
            Some(_) => self.caches.server_options.offer_cached(&key, &rule, now),
            None => self.caches.server_options.offer(&key, &rule, false, now),
        };
        ctx.egress.note(|| {
            let known = if offer.known { "is known to offer" } else { "is presumed to offer" };
            format!("the server {known} {offer}")
        });
        if self.is_bypassed(&key, former) {
            return self.pass_syn_unanswered(ctx, former, Event::Bypassed);
        }
        let must_be_proxied = listed == Some(List::Always) || is_service;
        if former.is_none()
            && !must_be_proxied
            && ctx.segment.ttl <= offer.hops
            && self.is_excepted(Exception::Expiring, ctx.segment, hash, now)
        {
            ctx.egress.note(|| format!("its hop limit ends before the server, {} routers away: it passes", offer.hops));
            return self.pass_syn_unanswered(ctx, former, Event::Expiring);
        }
        // Of what must be proxied only that passes which cannot be, and what comes while the box drains.
        let may_pass = !must_be_proxied || offered.signed || self.settings.draining && !is_service;
        if may_pass && let Some(event) = self.passes_unanswered(&rule, ctx.segment, &offered, &offer, former, hash, now)
        {
            if event == Event::Passed && offered.signed && rule.signed == Action::Drop {
                return Verdict::Drop(DropReason::NotPassed);
            }
            return self.pass_syn_unanswered(ctx, former, event);
        }
        if !self.may_answer(&mut ctx) {
            return Verdict::Drop(DropReason::OverLimit);
        }
        if let Some(id) = former
            && self.is_same_syn(&ctx, id, &offered)
        {
            return self.answer_repeated_syn(ctx, id, &offered, &offer, &rule);
        }
        let mut terms = self.agree(ctx.segment, &offered, &offer, rule.mss_clamp);
        let mut numbers = self.caches.cookies.mint(hash, isn, &terms, now);
        let smallest = self.caches.cookies.smallest_mss(terms.timestamps);
        match former {
            Some(id) if self.may_rewrite(id, isn, now) => {
                ctx.egress.note(|| "the entry of the SYN cache is written anew".into());
                numbers = self.rewrite_syn_cached(&ctx, id, &offered, &terms, numbers);
            }
            Some(_) if terms.mss < smallest => return Verdict::Drop(DropReason::MssTooSmall),
            Some(id) => {
                if !terms.timestamps {
                    terms.ecn = Ecn::Silent;
                }
                numbers = self.not_before_shown(id, numbers);
                let flow = &self.table[id];
                if flow.is_in(State::Reset) && !flow.is_reset_in_doubt() && numbers.isn == flow.outer_isn {
                    // A client that begins with the number it began with before, as a small device does after a restart, gets the same cookie:
                    // what acknowledges it would be taken for the old connection's. After a reset nothing is owed to that any more.
                    ctx.egress.note(|| "the old connection began with the same number and is forgotten".into());
                    self.forget(id);
                } else {
                    ctx.egress.note(|| "what there is stays until the client proves the new terms".into());
                    self.table.update(id, |flow| {
                        flow.set(FlowFlags::REOPENING, true);
                        // Without timestamps a number is the same whatever was said of ECN: from now on it says nothing of it.
                        if flow.is_in(State::SynCached) && flow.outer_isn == numbers.isn {
                            flow.clear(&[FlowFlags::ECN_ASKED, FlowFlags::ECN, FlowFlags::ACCURATE]);
                        }
                    });
                }
            }
            None => {
                let mut kept = terms;
                // What only the cache can remember is promised while that has room to spare.
                if !terms.timestamps && terms.promised.is_some() && !self.is_cache_pressed() {
                    kept.promised = offer.scale;
                }
                // And then the number must be no cookie: it would open as something else when the entry is gone.
                let expressed = kept.promised == terms.promised && terms.mss >= smallest;
                let number = if expressed { numbers } else { numbers.disguised() };
                let has_cache =
                    self.settings.modes.is_plain() || self.settings.modes.present(rule.target) != Mode::Cookie;
                let stored = if !has_cache {
                    None
                } else {
                    self.admit_syn_cached(&key, hash, now, |flow| fill_syn_cached(flow, &ctx, &offered, &kept, number))
                };
                ctx.egress.note(|| match stored {
                    Some(_) => "the SYN cache keeps the terms".into(),
                    None => {
                        "the SYN cache is full or off, or the mode leaves it aside: the cookie alone carries the terms"
                            .into()
                    }
                });
                match stored {
                    Some(_) => (terms, numbers) = (kept, number),
                    None if terms.mss < smallest => return Verdict::Drop(DropReason::MssTooSmall),
                    // Such a cookie has no place for it.
                    None if !terms.timestamps => terms.ecn = Ecn::Silent,
                    None => {}
                }
                if stored.is_none() && listed.is_none() && self.kernel_syns.is_some() {
                    self.let_kernel_answer(&key, ctx.head.bytes(), now);
                }
            }
        }
        self.caches.recent_syns.note(hash, isn, numbers.isn, now);
        let window = rule.early_window(&offer, terms.promised);
        self.write_syn_ack(&mut ctx, &offered, &offer, window, &terms, numbers)
    }

    /// Whether SYNs of this source pass to this server, because it has proved itself lately and while budgets last.
    // Not inlined: where no server has that, the fast path need not carry this code.
    #[cold]
    #[inline(never)]
    fn is_proved_and_may_pass(&self, key: &FlowKey, now: Instant) -> bool {
        self.settings.policy.rule(key).proved == Proved::Pass && self.caches.proved_sources.is_proved(key, now)
    }

    /// Whether a SYN passes because its source has proved itself lately, and is charged to what may pass so.
    #[inline(never)]
    fn admits_proved(&mut self, ctx: &mut Context<impl Egress>, former: Option<Id>) -> bool {
        let (key, now) = (&ctx.segment.key, ctx.now);
        if ctx.segment.indirect || !self.is_proved_and_may_pass(key, now) {
            return false;
        }
        // Who may be about to acknowledge our SYN-ACK does not get the server's beside it. Without the server's answers nobody completes anything.
        let is_answered = self.caches.recent_syns.was_answered(ctx.hash, ctx.segment.seq)
            || former.is_some_and(|id| !self.gives_way(id) && !self.is_for_its_ends(id))
            || self.caches.direct_returns.is_found(key);
        let is_forbidden = self.settings.policy.rule(key).signed == Action::Drop && Options::read(ctx.options()).signed;
        if is_answered || is_forbidden {
            return false;
        }
        let is_admitted = self.caches.proved_sources.admit(key, ctx.hash, now);
        ctx.egress.note(|| {
            let then = if is_admitted { "it passes untouched" } else { "but a budget for that is spent" };
            format!("its source has proved itself lately: {then}")
        });
        if !is_admitted {
            self.counters.count(Event::ProvedSpent);
        }
        is_admitted
    }

    /// The event under which a SYN passes to its server unanswered, if it does; the limit on such SYNs may still stop it.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "what has been read of the SYN, in registers")]
    fn passes_unanswered(
        &mut self,
        rule: &Rule,
        syn: &Segment,
        offered: &Options,
        offer: &Offer,
        former: Option<Id>,
        hash: u64,
        now: Instant,
    ) -> Option<Event> {
        let extends = offered.multipath && rule.multipath == Extension::Pass
            || offered.fast_open && rule.fast_open == Extension::Pass;
        if offered.signed || extends {
            return Some(Event::Passed);
        }
        if self.settings.draining && self.is_new(former, hash, now) {
            return Some(Event::Drained);
        }
        let may_be_introduced =
            !offer.known && former.is_none() && !self.caches.exceptions.is_shut(Exception::Introduction);
        (may_be_introduced && self.is_excepted(Exception::Introduction, syn, hash, now)).then_some(Event::Introduced)
    }

    /// Whether a SYN that proves nothing may take the 4-tuple of a connection: nothing is in flight of it any more, and nobody but its ends has said that
    /// it is over.
    pub(super) fn gives_way(&self, id: Id) -> bool {
        let flow = &self.table[id];
        match flow.state() {
            State::TimeWait => true,
            State::Reset => !flow.is_reset_in_doubt(),
            // Data may have to be sent again, which the box translates. What passes unchanged passes on.
            State::LastAck => !flow.is(FlowFlags::PROXIED),
            _ => false,
        }
    }

    /// Whether a SYN of a proved source may pass beside what there is of a connection of which nothing was touched, as it would over a cable: its ends alone
    /// know whether it is over.
    fn is_for_its_ends(&self, id: Id) -> bool {
        let flow = &self.table[id];
        flow.is_in(State::Unconfirmed) || flow.is_over() && self.is_untouched(id)
    }

    /// Whether a SYN belongs neither to a SYN-ACK of ours that its client may be about to acknowledge, nor to a live connection.
    pub(super) fn is_new(&self, former: Option<Id>, hash: u64, now: Instant) -> bool {
        former.is_none_or(|id| self.gives_way(id)) && !self.caches.recent_syns.has_noted(hash, now)
    }

    /// Whether a SYN passes because its server is found to answer another way, and policy says so. It never ends a connection.
    #[inline(always)]
    fn is_bypassed(&self, key: &FlowKey, former: Option<Id>) -> bool {
        self.caches.direct_returns.is_bypassed(key) && former.is_none_or(|id| self.gives_way(id))
    }

    /// Passes a client's SYN to its server as it is, for what follows to pass as well.
    #[inline(never)]
    pub(super) fn pass_syn_unanswered(
        &mut self,
        mut ctx: Context<impl Egress>,
        former: Option<Id>,
        event: Event,
    ) -> Verdict {
        if matches!(event, Event::Passed | Event::Rerouted) {
            // An unproved SYN never ends a connection.
            let lives = former.is_some_and(|id| !self.table[id].is_in(State::SynCached) && !self.gives_way(id));
            if lives || !self.is_excepted(Exception::Syn, ctx.segment, ctx.hash, ctx.now) {
                return Verdict::Drop(DropReason::NotPassed);
            }
        }
        if event != Event::Allowed && self.is_over_limit(&mut ctx) {
            return Verdict::Drop(DropReason::OverLimit);
        }
        self.counters.count(event);
        let (key, hash, now) = (*ctx.key(), ctx.hash, ctx.now);
        let verdict = self.open_passthrough(ctx, former);
        if event == Event::Retried
            && let Some(id) = self.table.find(&key, hash)
        {
            self.follow_retry(id, now);
        }
        verdict
    }

    /// The terms between a client with these options and a server with that offer.
    #[inline(always)]
    fn agree(&self, syn: &Segment, offered: &Options, offer: &Offer, mss_clamp: u16) -> Terms {
        let key = &syn.key;
        let timestamps = offered.timestamps.is_some() && offer.timestamps;
        let promised =
            if offered.scale.is_some() { self.caches.cookies.promise(offer.scale, timestamps) } else { None };
        Terms {
            mss: offered.mss.unwrap_or(default_mss(key)).min(mss_clamp),
            scale: offered.scale.filter(|_| promised.is_some()),
            promised,
            sack: offered.sack_permitted && offer.sack,
            timestamps,
            ecn: agree_on_ecn(syn.flags.ace(), offer.ecn),
        }
    }

    /// Whether a SYN is the one that the entry `id` of the SYN cache was made for, with the same options, so that the same answer is due. With other
    /// options it is another offer, and either answer may be what the client acknowledges.
    fn is_same_syn(&self, ctx: &Context<impl Egress>, id: Id, offered: &Options) -> bool {
        let flow = &self.table[id];
        flow.is_in(State::SynCached)
            && flow.endpoint(Side::Wan).next == ctx.segment.seq + 1
            && flow.offered() == summary(offered, ctx.segment.flags)
    }

    /// Whether a SYN with this number may write its terms over those of `id`: over an entry of the SYN cache for another SYN, unless the client of
    /// that may be about to answer.
    fn may_rewrite(&self, id: Id, isn: SeqNum, now: Instant) -> bool {
        let flow = &self.table[id];
        flow.is_in(State::SynCached) && flow.endpoint(Side::Wan).next != isn + 1 && !self.is_young(id, now)
    }

    /// Answers a SYN as it was answered before: with the number of the first answer, the terms in the TSval of a later time, and the echo of the first
    /// SYN's TSval, as hosts do that keep their half-open connections (Linux). The client's last acknowledgement brings its clock up to date.
    #[inline(never)]
    fn answer_repeated_syn(
        &mut self,
        mut ctx: Context<impl Egress>,
        id: Id,
        offered: &Options,
        offer: &Offer,
        rule: &Rule,
    ) -> Verdict {
        ctx.egress.note(|| "the SYN is repeated: it gets the same number and terms".into());
        self.counters.count(Event::SynRepeated);
        let flow = &self.table[id];
        let terms = terms_of(flow);
        let ts_value = flow.shown_ts_value().map(|shown| ts_again(shown, ctx.now));
        let numbers = SynAckNumbers { isn: flow.outer_isn, ts_value };
        let first = Options {
            timestamps: offered
                .timestamps
                .map(|latest| Timestamps { value: flow.endpoint(Side::Wan).ts_value, ..latest }),
            ..*offered
        };
        let envelope = ctx.envelope();
        self.table.update(id, |flow| {
            flow.keep_path(Side::Wan, &envelope);
            flow.endpoint_mut(Side::Wan).ttl = envelope.ttl;
            flow.endpoint_mut(Side::Lan).ts_value = ts_value.unwrap_or_default();
            flow.attempts = 1;
        });
        self.restart_timer(id, ctx.now);
        self.caches.recent_syns.note(ctx.hash, ctx.segment.seq, numbers.isn, ctx.now);
        let window = rule.early_window(offer, terms.promised);
        self.write_syn_ack(&mut ctx, &first, offer, window, &terms, numbers)
    }

    /// The entry of the SYN cache begins anew with another SYN.
    #[inline(never)]
    fn rewrite_syn_cached(
        &mut self,
        ctx: &Context<impl Egress>,
        id: Id,
        offered: &Options,
        terms: &Terms,
        numbers: SynAckNumbers,
    ) -> SynAckNumbers {
        let numbers = self.not_before_shown(id, numbers);
        self.table.update(id, |flow| {
            fill_syn_cached(flow, ctx, offered, terms, numbers);
            flow.attempts = 1;
        });
        self.restart_timer(id, ctx.now);
        numbers
    }

    /// The numbers with a TSval that a client which was shown those of `id` does not take for older.
    fn not_before_shown(&self, id: Id, numbers: SynAckNumbers) -> SynAckNumbers {
        let ts_value = match (numbers.ts_value, self.table[id].shown_ts_value()) {
            (Some(value), Some(shown)) => Some(ts_not_before(value, shown)),
            (value, _) => value,
        };
        SynAckNumbers { ts_value, ..numbers }
    }

    #[inline(always)]
    fn write_syn_ack(
        &mut self,
        ctx: &mut Context<impl Egress>,
        offered: &Options,
        offer: &Offer,
        window: RawWindow,
        terms: &Terms,
        numbers: SynAckNumbers,
    ) -> Verdict {
        ctx.egress.note(|| format!("agreed: {terms}"));
        ctx.egress.note(|| {
            let clock = numbers.ts_value.map_or(String::new(), |value| format!(", TSval {value}"));
            format!("answered with sequence number {:#010x}{clock}", numbers.isn.get())
        });
        let envelope = self.answer_envelope(ctx.envelope(), offer.ttl);
        let envelope = Envelope { label: label(ctx.hash), class: offer.class_for(envelope.class), ..envelope };
        let echo = offered.timestamps.map_or(0, |timestamps| timestamps.value);
        let timestamps = numbers.ts_value.map(|value| Timestamps { value, echo });
        let mut options = OptionList::syn(Some(offer.mss), terms.sack, timestamps, terms.promised);
        // An answer longer than the question would make us an amplifier: then it goes without MSS, or not at all.
        let room = ctx.head.total().max(ETHERNET_MIN);
        if envelope.frame_len(&options) > room {
            options = OptionList::syn(None, terms.sack, timestamps, terms.promised);
        }
        let answer = Outgoing {
            envelope: &envelope,
            seq: numbers.isn,
            ack: ctx.segment.seq + 1,
            flags: syn_ack_flags(terms, ctx.segment, ctx.head.bytes()),
            window,
            options: &options,
        };
        if answer.frame_len() > room || !ctx.overwrite_inline(&answer) {
            return Verdict::Drop(DropReason::NoRoom);
        }
        self.counters.count(Event::SynAnswered);
        Verdict::Reflect
    }

    /// An acknowledgement from the WAN that may prove its sender by a cookie: then its server is connected. A `former` flow of the same key gives way
    /// to it.
    pub(super) fn on_cookie_ack(&mut self, mut ctx: Context<impl Egress>, former: Option<Id>) -> Verdict {
        match self.open_cookie(&mut ctx) {
            Ok(proof) => self.accept_cookie(ctx, &proof, former),
            // It may be as good as any, so it must not be taken for something else.
            Err(Unproved::Untested) => Verdict::Drop(DropReason::RateLimited),
            Err(_) if former.is_none() => self.on_unknown_connection(ctx),
            Err(_) => Verdict::Drop(DropReason::BadCookie),
        }
    }

    /// What a segment from the WAN proves, if it acknowledges a cookie.
    #[inline(always)]
    pub(super) fn open_cookie(&mut self, ctx: &mut Context<impl Egress>) -> Result<Proof, Unproved> {
        let now = ctx.now;
        // Without a recent SYN there is no cookie to check.
        if !self.caches.recent_syns.may_have(ctx.hash, now) {
            self.counters.count(Event::Unasked);
            ctx.egress.note(|| {
                "no SYN between these ends was answered in the last 100 seconds: what it acknowledges can be no cookie".into()
            });
            return Err(Unproved::Unasked);
        }
        let Segment { seq, ack, .. } = *ctx.segment;
        let outer_isn = ack - 1;
        // A keepalive or a zero-window probe counts one below the next number, which is the SYN's own.
        let client_isns = [seq - 1, seq];
        let guesser = self.caches.limiter.guesser(ctx.key());
        let may_test = self.caches.limiter.may_test(guesser, now);
        let remembered = (!may_test).then(|| self.caches.recent_syns.answers(ctx.hash, client_isns));
        if let Some(answers) = &remembered
            && !answers.include(outer_isn)
        {
            ctx.egress.note(|| {
                "its address, its network, or all together, have spent their wrong guesses, and it acknowledges no SYN-ACK that the box remembers: no cookie is looked for"
                    .into()
            });
            self.caches.recent_syns.forget(ctx.hash, answers);
            return Err(Unproved::Untested);
        }
        self.caches.cookies.advance(now);
        let echo = Options::timestamps(ctx.options()).map(|timestamps| timestamps.echo);
        let opened = self.caches.cookies.open(ctx.hash, client_isns, outer_isn, echo);
        ctx.egress.note(|| self.caches.cookies.describe(ctx.hash, client_isns, outer_isn, echo, now));
        let Some((terms, client_isn)) = opened else {
            // While connections that run already are adopted, their segments come here too.
            if !self.adopts(ctx.key(), now) {
                self.caches.limiter.failed(guesser, now);
            }
            if let Some(answers) = &remembered {
                self.caches.recent_syns.forget(ctx.hash, answers);
            }
            return Err(Unproved::Wrong);
        };
        if remembered.is_some() {
            ctx.egress.note(|| "its network has spent its wrong guesses, but the box remembers this SYN-ACK".into());
            self.counters.count(Event::CookieRemembered);
        }
        // A cookie's clock is too coarse to tell how far its client is.
        Ok(Proof { terms, client_isn, outer_isn, distance: 0, opened: None })
    }

    /// A reset from the WAN that belongs to no flow. If it acknowledges a cookie its sender has proved itself; if it follows a SYN that was answered, that
    /// says that somebody wants to know whether the port is open.
    pub(super) fn on_unknown_reset(&mut self, mut ctx: Context<impl Egress>) -> Verdict {
        if !self.caches.recent_syns.may_have(ctx.hash, ctx.now) {
            return self.on_unknown_connection(ctx);
        }
        if ctx.segment.flags.has(Flags::ACK) {
            return match self.open_cookie(&mut ctx) {
                Ok(proof) => self.try_server(ctx, &proof, None),
                Err(_) => self.on_unknown_connection(ctx),
            };
        }
        if self.caches.recent_syns.has_noted(ctx.hash, ctx.now) && ctx.is_sound() {
            self.note_unproved_reset(ctx.key(), ctx.now);
        }
        self.on_unknown_connection(ctx)
    }

    pub(super) fn accept_cookie(&mut self, ctx: Context<impl Egress>, proof: &Proof, former: Option<Id>) -> Verdict {
        if is_damaged(&ctx) {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        self.note_proof(Event::CookieGood, ctx.key(), ctx.now);
        self.connect_server(ctx, proof, former)
    }

    /// Segments for an entry of the SYN cache.
    pub(super) fn on_syn_cached(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        if ctx.side == Side::Wan && self.answers_remembered_syn(&ctx, id) {
            return self.open_by_lan(ctx, id);
        }
        let Segment { seq, ack, flags, .. } = *ctx.segment;
        let flow = &self.table[id];
        let next = flow.endpoint(Side::Wan).next;
        match (ctx.side, ctx.kind) {
            (Side::Wan, Kind::SynAck | Kind::Bad) => Verdict::Drop(DropReason::WrongState),
            (Side::Wan, Kind::Syn) => self.answer_syn(ctx, Some(id)),
            (Side::Wan, Kind::Rst) => {
                // The owner of a forged source sent no SYN and resets; a client may also abort.
                if seq != next {
                    return Verdict::Drop(DropReason::BadReset);
                }
                if !ctx.is_sound() {
                    return Verdict::Drop(DropReason::BadChecksum);
                }
                if flags.has(Flags::ACK) && ack == flow.outer_isn + 1 {
                    let (terms, outer_isn, opened) = (terms_of(flow), flow.outer_isn, opened_by(flow));
                    let proof = Proof { terms, client_isn: next - 1, outer_isn, distance: 0, opened };
                    return self.try_server(ctx, &proof, Some(id));
                }
                self.note_unproved_reset(ctx.key(), ctx.now);
                self.forget(id);
                Verdict::Drop(DropReason::Consumed)
            }
            (Side::Wan, Kind::Ack) => {
                let ours = ack == flow.outer_isn + 1 && (seq == next || seq == next - 1);
                ctx.egress.note(|| {
                    let (isn, next) = (flow.outer_isn + 1, next.get());
                    let fits = if ours { "it is that" } else { "it is not that" };
                    format!("the SYN cache expects seq {next} (or one less) and ack {}: {fits}", isn.get())
                });
                if !ours {
                    let is_guess = seq == next || seq == next - 1;
                    if !is_guess && self.adopts(ctx.key(), ctx.now) {
                        return self.on_ack_while_adopting(ctx, id);
                    }
                    let verdict = self.on_cookie_ack(ctx, Some(id));
                    if is_guess && matches!(verdict, Verdict::Drop(DropReason::BadCookie | DropReason::RateLimited)) {
                        // Who knows the client's number has sent its SYN, and so each guess costs one. No client acknowledges what it was not sent.
                        self.forget(id);
                    }
                    return verdict;
                }
                if is_damaged(&ctx) {
                    return Verdict::Drop(DropReason::BadChecksum);
                }
                // Which of several SYN-ACKs it acknowledges is not known (RFC 6298 section 3).
                let waited = tick(ctx.now).wrapping_sub(flow.born);
                let distance = if flow.attempts > 0 { 0 } else { distance(waited) };
                if flow.attempts == 0 {
                    self.counters.time(Timing::ClientHandshake, average(waited));
                }
                let flow = &self.table[id];
                let (terms, outer_isn, opened) = (terms_of(flow), flow.outer_isn, opened_by(flow));
                let proof = Proof { terms, client_isn: next - 1, outer_isn, distance, opened };
                self.note_proof(Event::CacheHit, ctx.key(), ctx.now);
                self.connect_server(ctx, &proof, Some(id))
            }
            // The LAN host has sent a SYN on the same 4-tuple at the same time.
            (Side::Lan, Kind::Syn) => self.remember_server_syn(ctx, id),
            // The SYN proves nothing, and the LAN shows that it has another connection with that end.
            (Side::Lan, Kind::Ack) if self.adopts(ctx.key(), ctx.now) => {
                self.forget(id);
                self.on_unknown_connection(ctx)
            }
            (Side::Lan, _) => Verdict::Drop(DropReason::WrongState),
        }
    }

    /// An acknowledgement that is not of the SYN in the SYN cache, while connections that run already are adopted: it proves itself by a cookie, or may be
    /// of one whose 4-tuple somebody has sent a SYN with.
    fn on_ack_while_adopting(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        match self.open_cookie(&mut ctx) {
            Ok(proof) => self.accept_cookie(ctx, &proof, Some(id)),
            Err(Unproved::Untested) => Verdict::Drop(DropReason::RateLimited),
            Err(_) => self.on_unknown_connection(ctx),
        }
    }
}

/// What a client whose SYN has these flags is answered about ECN, for a server that is known to negotiate that kind (RFC 9768 section 3.1.2, table 2).
#[inline(always)]
fn agree_on_ecn(asked: Ace, server: KnownEcn) -> Ecn {
    match (asked, server) {
        (Ace(0), _) => Ecn::Silent,
        (Ace::CLASSIC_SYN, KnownEcn::Nothing) => Ecn::Asked,
        (Ace::CLASSIC_SYN, _) | (Ace::ACCURATE_SYN, KnownEcn::Classic) => Ecn::Agreed,
        // A client that was told the classic kind would keep the server from ever being asked for this one.
        (Ace::ACCURATE_SYN, KnownEcn::Nothing | KnownEcn::ClassicAtLeast) => Ecn::AccurateAsked,
        // RFC 9768 section 3.1.3: the reserved combinations count as asking for accurate ECN, where the server knows it.
        (_, KnownEcn::Accurate) => Ecn::AccurateAgreed,
        _ => Ecn::Silent,
    }
}

/// The flags of our SYN-ACK (RFC 3168 section 6.1.1). If it agrees to accurate ECN, it tells the ECN field of the SYN (RFC 9768 section 3.1.1).
#[inline(always)]
fn syn_ack_flags(terms: &Terms, syn: &Segment, frame: &[u8]) -> Flags {
    let flags = Flags::SYN.and(Flags::ACK);
    match terms.ecn {
        Ecn::Silent | Ecn::Asked | Ecn::AccurateAsked => flags,
        Ecn::Agreed => flags.with_ace(Ace::CLASSIC_SYN_ACK),
        Ecn::AccurateAgreed => flags.with_ace(Ace::tells(syn.ecn(frame))),
    }
}

/// What a SYN offers, in one number.
fn summary(offered: &Options, flags: Flags) -> u32 {
    let scale = u32::from(offered.scale.map_or(15, WindowScale::get));
    let (sack, timestamps) = (u32::from(offered.sack_permitted), u32::from(offered.timestamps.is_some()));
    let ecn = u32::from(flags.0 >> 6);
    ecn << 22 | timestamps << 21 | sack << 20 | scale << 16 | u32::from(offered.mss.unwrap_or_default())
}

/// Writes a SYN's options into its entry of the SYN cache.
fn fill_syn_cached<E>(flow: &mut Flow, ctx: &Context<E>, offered: &Options, terms: &Terms, numbers: SynAckNumbers) {
    let envelope = ctx.envelope();
    flow.outer_isn = numbers.isn;
    let remembered = if flow.is_crossed() { flow.endpoint(Side::Lan).scale() } else { None };
    keep_terms(flow, terms);
    flow.endpoint_mut(Side::Lan).set_scales(remembered, terms.promised);
    flow.keep_path(Side::Wan, &envelope);
    flow.endpoint_mut(Side::Lan).ts_value = numbers.ts_value.unwrap_or_default();
    flow.set_offered(summary(offered, ctx.segment.flags));
    let client = flow.endpoint_mut(Side::Wan);
    client.next = ctx.segment.seq + 1;
    client.ttl = envelope.ttl;
    client.ts_value = offered.timestamps.map_or(0, |timestamps| timestamps.value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::Secrets;
    use crate::cache::refused::Met;
    use crate::cache::servers::Observation;
    use crate::config::{Auto, Limits, Network, RateLimit};
    use crate::policy::lists::Lists;
    use crate::proxy::test_segments::{TestSegment, key};
    use crate::proxy::tests::NoEgress;
    use crate::wire::{EcnSetup, Parsed, put32};
    use core::cell::Cell;
    use core::time::Duration;
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    use std::sync::Arc;

    const START: Instant = Instant::from_secs(1000);

    /// Engines in which nearly every SYN takes the fast path, and some in which none does.
    fn config() -> impl Strategy<Value = Config> {
        let rare = || prop::bool::weighted(0.1);
        let clamp = prop_oneof![2 => Just(None), 1 => (400u16..1500).prop_map(Some)];
        let handshake = prop_oneof![Just(crate::config::Handshake::Honest), Just(crate::config::Handshake::Early)];
        let answers = prop_oneof![4 => Just(0u32), 1 => 1u32..6];
        let mode = prop_oneof![
            4 => Just(Mode::Cache), 4 => Just(Mode::Cookie), 1 => Just(Mode::Observe), 1 => Just(Mode::Pass),
            2 => Just(Mode::Auto)
        ];
        (any::<bool>(), rare(), rare(), any::<bool>(), clamp, (handshake, mode), [answers.clone(), answers]).prop_map(
            |(cache, introductions, no_sack, few_tokens, mss_clamp, (handshake, mode), answers)| Config {
                mode,
                auto: Auto { enter_half_open: 2, ..Auto::default() },
                table_buckets: 4,
                learn_capacity: 64,
                syn_cache_max: if cache { 2 } else { 0 },
                introductions: u32::from(introductions),
                own_sack: !no_sack,
                rate: RateLimit { size: 64, burst: if few_tokens { 3 } else { 1000 }, ..RateLimit::default() },
                limits: Limits { syn_acks: answers[0], destination_syn_acks: answers[1], ..Limits::default() },
                mss_clamp,
                handshake,
                ..Config::default()
            },
        )
    }

    /// The server's learned options, if any.
    fn observation() -> impl Strategy<Value = Option<Observation>> {
        let takes = || prop::bool::weighted(0.9);
        let ecn = prop_oneof![1 => Just(EcnSetup::None), 5 => Just(EcnSetup::Classic), 5 => Just(EcnSetup::Accurate)];
        let answer = (500u16..9000, prop::option::of(0u8..15), takes(), takes(), ecn, any::<u16>());
        prop::option::of(answer.prop_map(|(mss, scale, sack, timestamps, ecn, window)| Observation {
            answered: Options {
                mss: Some(mss),
                scale: scale.map(WindowScale::clamped),
                sack_permitted: sack,
                timestamps: timestamps.then(Timestamps::default),
                ..Options::default()
            },
            offered_scale: true,
            offered_sack: true,
            offered_timestamps: true,
            offered_ecn: EcnSetup::Accurate,
            answered_ecn: ecn,
            window: RawWindow(window),
            ttl: window as u8,
            offered_class: 0,
            answered_class: (window >> 8) as u8 & 0xfc,
        }))
    }

    /// A SYN, how long after the last it comes, and whether its frame has a tag.
    fn syn() -> impl Strategy<Value = (TestSegment, u32, bool)> {
        let mss = prop_oneof![4 => Just(1460u16), 1 => 0u16..3000];
        let options = (mss, 0u8..18, any::<[u32; 2]>(), prop_oneof![12 => Just(0), 1 => 1..5usize]).prop_map(
            |(mss, scale, [value, echo], twist)| {
                let mut options = vec![2, 4, 0, 0, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, scale];
                options[2..4].copy_from_slice(&mss.to_be_bytes());
                put32(&mut options, 8, value);
                put32(&mut options, 12, echo);
                match twist {
                    0 => {}
                    1 => options[4..6].copy_from_slice(&[1, 1]),
                    2 => options.rotate_left(4),
                    3 => options.truncate(16),
                    _ => options.extend([34, 2, 1, 1]),
                }
                options
            },
        );
        let flags = prop_oneof![6 => Just(0x02u16), 3 => Just(0xc2u16), 3 => Just(0x1c2u16), 1 => 0u16..0x200];
        let client = prop_oneof![8 => 0x0b00_0000u32..0x0b00_0008, 1 => any::<u32>()];
        let shape = (prop_oneof![9 => Just(0usize), 1 => 1usize..20], prop::bool::weighted(0.1));
        let side = prop_oneof![9 => Just(Side::Wan), 1 => Just(Side::Lan)];
        (side, any::<bool>(), client, any::<[u32; 2]>(), flags, options, shape, (0u32..3000, any::<bool>())).prop_map(
            |(side, v6, client, [seq, ack], flags, options, (payload, damaged), (later, tagged))| {
                let said = TestSegment {
                    side,
                    v6,
                    client,
                    lan_port: key(v6).lan_port,
                    seq,
                    ack,
                    flags,
                    reserved: ack as u8 & 7,
                    window: 64_240,
                    ecn: (ack >> 3) as u8 & 3,
                    options,
                    payload,
                    damaged,
                };
                (said, later, tagged)
            },
        )
    }

    fn frame((said, _, tagged): &(TestSegment, u32, bool)) -> Vec<u8> {
        let mut frame = said.frame();
        if *tagged {
            frame.splice(12..12, [0x81, 0x00, 0xa1, 0x23]);
        }
        // From the last eighth of all stations a frame claims to come from a group.
        frame[6] = u8::from(said.seq >> 29 == 7);
        frame[11] = 7;
        frame
    }

    /// Takes a segment through an engine, by the fast path if that accepts it; the verdict, and the hash of its 4-tuple.
    fn receive_update(
        proxy: &mut Proxy,
        side: Side,
        head: &mut Head,
        now: Instant,
        common: impl FnOnce(&mut Proxy, &Segment, &Metadata, &mut Head) -> bool,
    ) -> (Verdict, u64) {
        let mut meta = Metadata::default();
        proxy.parse(side, head, &mut meta);
        let Parsed::Tcp(segment) = meta.parsed else { panic!("it is a segment") };
        let found = proxy.table.find(&segment.key, meta.hash);
        let is_syn = segment.flags.open();
        let verdict = if found.is_none() && is_syn && common(proxy, &segment, &meta, head) {
            Verdict::Reflect
        } else {
            proxy.on_segment(side, &segment, &meta, found, head, now, &mut NoEgress)
        };
        (proxy.conclude(side, &segment.key, None, verdict), meta.hash)
    }

    #[test]
    fn the_fast_path_of_a_syn_leads_where_the_slow_path_does() {
        let taken = Cell::new(0u32);
        let strategy = (
            config(),
            observation(),
            [prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.5)],
            prop::collection::vec(syn(), 1..8),
            any::<u16>(),
        );
        let run = TestRunner::new(ProptestConfig::with_cases(2000)).run(
            &strategy,
            |(config, observation, [is_refused, draining, listed], syns, taught)| {
                let mut engines = [(); 2].map(|()| Proxy::new(&config, &Secrets::new([7; 48]), START));
                if listed {
                    // Of the eight clients from whom most SYNs come one in each list.
                    let networks = List::ALL.map(|list| {
                        let address = [0, 0, 0xffff, 0x0b00_0002 + list as u32];
                        (list, Network { address, prefix: 128 })
                    });
                    let lists = Arc::new(Lists::new(networks));
                    engines.iter_mut().for_each(|engine| drop(engine.set_lists(lists.clone())));
                }
                // By then the filter of recent SYNs is full enough to be trusted.
                let mut now = START + Duration::from_secs(200);
                for (n, syn) in syns.iter().enumerate() {
                    now = now + Duration::from_millis(syn.1.into());
                    for engine in &mut engines {
                        engine.drain(draining && n == 3);
                        for v6 in [false, true] {
                            if let Some(observation) = observation.filter(|_| taught >> n & 1 == 1) {
                                engine.caches.server_options.learn(&key(v6), &observation, now);
                            }
                            if is_refused && n == 2 {
                                engine.remember(&key(v6), Met::Reset, true, now);
                            }
                        }
                    }
                    let (side, frame) = (syn.0.side, frame(syn));
                    let mut buffers = [(); 2].map(|()| [&[0; 64], &frame[..], &[0; 192]].concat());
                    let [mut one, mut other] =
                        buffers.each_mut().map(|buffer| Head::new(buffer, 64, frame.len(), frame.len()));
                    let answered = engines[0].counters.happened(Event::SynAnswered);
                    let (common, hash) =
                        receive_update(&mut engines[0], side, &mut one, now, |engine, segment, meta, head| {
                            let common = engine.answer_syn_fast(side, segment, meta, head, now);
                            taken.set(taken.get() + u32::from(common));
                            assert!(common || head.bytes() == frame, "what is refused has not changed");
                            common
                        });
                    let (general, _) = receive_update(&mut engines[1], side, &mut other, now, |_, _, _, _| false);
                    prop_assert_eq!(common, general, "{:?}", syn);
                    prop_assert_eq!(one.bytes(), other.bytes(), "{:?}", syn);
                    prop_assert_eq!(&engines[0].counters, &engines[1].counters);
                    prop_assert_eq!(engines[0].population(), engines[1].population());
                    let noted = engines.each_ref().map(|engine| engine.caches.recent_syns.may_have(hash, now));
                    prop_assert_eq!(noted[0], noted[1]);
                    prop_assert!(noted[0] || engines[0].counters.happened(Event::SynAnswered) == answered);
                }
                Ok(())
            },
        );
        run.unwrap_or_else(|failure| panic!("{failure}"));
        assert!(taken.get() > 1000, "hardly any SYN takes the fast path: {}", taken.get());
    }
}
