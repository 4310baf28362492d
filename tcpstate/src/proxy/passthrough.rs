//! Connections that are passed through unchanged, and followed so that what belongs to them may pass: those the LAN opens, and those from
//! the WAN that only the server can answer.

use std::collections::VecDeque;

use super::Proxy;
use super::context::{Context, are_possible};
use super::idle::Opener;
use super::reply::half_second;
use crate::cache::refused::{Fate, Met};
use crate::cache::servers::Observation;
use crate::flow::table::Id;
use crate::flow::translate::clamp_mss;
use crate::flow::{Endpoint, Flow, FlowFlags, State};
use crate::policy::exceptions::Exception;
use crate::seq::{SeqNum, Window, WindowScale};
use crate::wire::{EcnSetup, Flags, Kind, Options, Segment};
use crate::{DropReason, Egress, Event, Side, Verdict};

/// Of all flows one in so many may be a connection of the WAN that passed unproved and is not established.
const UNPROVED_SHARE: usize = 16;
/// And so many at the least.
const UNPROVED_LEAST: usize = 16;
/// SYNs of one client that pass behind the first within half a second.
const SYNS_PASSED: u8 = 2;

/// What the mode of its destination says of a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passing {
    /// It is answered.
    No,
    /// It passes, and its connection is followed.
    Followed,
    /// It passes.
    Unfollowed,
}

impl Proxy {
    /// A SYN from the LAN: a connection of its own begins, over the remains of `former` if there are any.
    pub(super) fn open_passthrough(&mut self, mut ctx: Context<impl Egress>, former: Option<Id>) -> Verdict {
        let is_fit = are_possible(ctx.key());
        if ctx.side == Side::Lan && self.passes(ctx.key()) {
            let passing = if is_fit && ctx.is_sound() { Passing::Followed } else { Passing::Unfollowed };
            return self.pass_untouched(ctx, former, passing);
        }
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        if !is_fit {
            return Verdict::Drop(DropReason::BadAddress);
        }
        if self.follow_syn(&mut ctx, former).is_none() {
            return Verdict::Drop(DropReason::TableFull);
        }
        let key = *ctx.key();
        if ctx.side == Side::Lan {
            self.note_station(ctx.side, ctx.head.bytes(), ctx.now);
            self.counters.count(Event::Direct);
            // Who calls from a port is there to be called: a peer that opens at the same time must not be refused.
            self.caches.refused_ports.opened(&key, ctx.now);
        }
        self.forward_syn(ctx)
    }

    /// Makes a record for a connection that is passed through by its SYN, over the remains of `former`, which are gone then; `None` if the table has no
    /// place for it.
    fn follow_syn(&mut self, ctx: &mut Context<impl Egress>, former: Option<Id>) -> Option<Id> {
        if let Some(former) = former {
            self.forget(former);
        }
        if ctx.side == Side::Wan {
            self.bound_unproved();
        }
        let (key, hash) = (*ctx.key(), ctx.hash);
        let opener = if ctx.side == Side::Lan { Opener::Lan } else { Opener::Unproved(&key) };
        if !self.make_room(opener, ctx.now, ctx.egress) {
            return None;
        }
        let id = self.admit(&key, hash, ctx.side, State::SynSent, ctx.now, |flow| fill_syn_sent(flow, ctx))?;
        self.remember_candidate(id);
        self.remember_unproved(id);
        self.caches.vlan_pairs.note(key.vlan);
        Some(id)
    }

    /// Passes a client's SYN to its server as it is, and follows the connection, of which nothing is touched: its ends judge all that belongs to it. What was
    /// there of `former` is gone. `None` if the table has no place for it.
    pub(super) fn pass_unanswered(
        &mut self,
        ctx: &mut Context<impl Egress>,
        former: Option<Id>,
        why: Event,
    ) -> Option<Verdict> {
        let id = self.follow_syn(ctx, former)?;
        let profile = self.settings.profiles.present(self.settings.policy.rule(ctx.key()).untouched);
        self.table.update(id, |flow| flow.profile = profile);
        self.bound_half_open(id, ctx.now);
        self.settings.modes.expect_untouched();
        self.counters.count(why);
        Some(Verdict::Forward)
    }

    /// Passes a SYN or SYN-ACK of a connection that is not ours, its MSS limited, unless it is signed or its end is named by another header than that of
    /// IP.
    pub(super) fn forward_syn(&self, ctx: Context<impl Egress>) -> Verdict {
        let mss_clamp = self.settings.policy.rule(ctx.key()).mss_clamp;
        if mss_clamp < u16::MAX && !ctx.segment.indirect && !Options::read(ctx.options()).signed {
            clamp_mss(ctx.segment, ctx.head, mss_clamp);
        }
        Verdict::Forward
    }

    /// Segments of a connection passed through that is not established yet.
    pub(super) fn on_opening(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        match ctx.kind {
            Kind::Rst => return self.reset_opening(ctx, id),
            Kind::Ack | Kind::Bad => return self.on_opening_acknowledged(ctx, id),
            Kind::Syn | Kind::SynAck => {}
        }
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        if ctx.kind == Kind::Syn && (self.repeats_too_soon(&ctx, id) || self.is_try_too_soon(&mut ctx, id)) {
            return Verdict::Drop(DropReason::NotPassed);
        }
        let flow = &self.table[id];
        let opens = ctx.side == flow.client();
        let is_answer = ctx.kind == Kind::SynAck;
        if opens && !self.may_go_on(&ctx) {
            return Verdict::Drop(DropReason::NotPassed);
        }
        let flow = &self.table[id];
        match (opens, is_answer) {
            (true, false) if flow.endpoint(ctx.side).next != ctx.segment.seq + ctx.segment.seq_len() => {
                // The client has given up its first number, or the data it brought with it, and begun again.
                self.begin_again(&ctx, id);
            }
            (true, false) => self.note_other_offer(&ctx, id),
            (false, _) if flow.is_in(State::SynSent) => {
                // Its answer, or, without ACK, its own SYN at the same time (RFC 9293 section 3.5, figure 7).
                let answers = is_answer && flow.answers_syn(ctx.segment);
                let options = Options::read(ctx.options());
                if answers {
                    self.settle_opening(&ctx, id, options);
                } else if is_answer && ctx.side == Side::Lan {
                    self.note_syn_answered(id, ctx.segment.ack, &options);
                    self.settle_opening(&ctx, id, options);
                } else if !is_answer {
                    self.table.update(id, |flow| note_syn(flow, &ctx, &options));
                }
            }
            // Nobody has proved that the connection is there, so the SYN is a client's like any other.
            (false, false) if flow.is(FlowFlags::UNJUDGED) && ctx.side == Side::Wan => {
                return self.answer_syn(ctx, Some(id));
            }
            // A retransmission, or a forgery: the ends can tell.
            _ => {}
        }
        self.forward_syn(ctx)
    }

    /// Whether a client of the WAN, which has proved nothing, has had two more SYNs passed within this half second: no host repeats one so often.
    pub(super) fn repeats_too_soon(&mut self, ctx: &Context<impl Egress>, id: Id) -> bool {
        let (flow, present) = (&self.table[id], half_second(ctx.now));
        if ctx.side == Side::Lan || flow.client() == Side::Lan {
            return false;
        }
        let passed = if flow.challenged == present { flow.attempts } else { 0 };
        let is_too_soon = passed >= SYNS_PASSED;
        self.table.update(id, |flow| {
            flow.challenged = present;
            flow.attempts = passed + u8::from(!is_too_soon);
        });
        is_too_soon
    }

    /// Whether a client's repeated SYN goes to a port that is silent or refuses, and that has been tried within the last second.
    fn is_try_too_soon(&mut self, ctx: &mut Context<impl Egress>, id: Id) -> bool {
        let flow = &self.table[id];
        ctx.side == Side::Wan
            && self.caches.refused_ports.any_refused(ctx.now)
            && flow.is_in(State::SynSent)
            && flow.client() == Side::Wan
            && !is_exceptional(&Options::read(ctx.options()))
            && matches!(self.fate_at_remembered_port(ctx, true), Some(Fate::Gets(_) | Fate::Waits))
    }

    /// The client begins anew with another SYN: so does the record, which holds the first one alone, or its answer too.
    pub(super) fn begin_again(&mut self, ctx: &Context<impl Egress>, id: Id) {
        if self.table[id].is_in(State::SynSent) {
            self.table.update(id, |flow| fill_syn_sent(flow, ctx));
        } else {
            self.table.set_state(id, State::SynSent, |flow| fill_syn_sent(flow, ctx));
        }
        self.restart_timer(id, ctx.now);
    }

    /// The client repeats its SYN with other options, as hosts do that take them for the reason why nobody answers. Its server may answer either: what it
    /// agrees to was offered, and what it does not agree to may not have been, so that the answer teaches nothing.
    pub(super) fn note_other_offer(&mut self, ctx: &Context<impl Egress>, id: Id) {
        let flow = &self.table[id];
        let options = Options::read(ctx.options());
        let (scale, asked) = (flow.endpoint(ctx.side).scale(), ctx.segment.flags.asked_ecn());
        let is_other = options.scale != scale
            || options.sack_permitted != flow.is(FlowFlags::SACK)
            || options.timestamps.is_some() != flow.is(FlowFlags::TIMESTAMPS)
            || (asked != EcnSetup::None) != flow.is(FlowFlags::ECN_ASKED)
            || (asked == EcnSetup::Accurate) != flow.is(FlowFlags::ACCURATE);
        if !is_other || !flow.is_in(State::SynSent) || !ctx.is_sound() {
            return;
        }
        self.table.update(id, |flow| {
            flow.set(FlowFlags::EXCEPTIONAL, true);
            flow.set_if(FlowFlags::SACK, options.sack_permitted);
            flow.set_if(FlowFlags::TIMESTAMPS, options.timestamps.is_some());
            let scale = scale.or(options.scale);
            flow.endpoint_mut(ctx.side).set_scales(scale, scale);
        });
    }

    /// Of the SYNs in its client's name the server has taken another than the last, which anybody may have sent: its answer says what that bore. What else it
    /// offered nobody knows, so the answer teaches nothing.
    fn note_syn_answered(&mut self, id: Id, acknowledged: SeqNum, answered: &Options) {
        self.table.update(id, |flow| {
            flow.outer_isn = acknowledged - 1;
            flow.set(FlowFlags::EXCEPTIONAL, true);
            flow.set(FlowFlags::SACK, answered.sack_permitted);
            flow.set(FlowFlags::TIMESTAMPS, answered.timestamps.is_some());
            let client = flow.endpoint_mut(Side::Wan);
            client.next = acknowledged;
            client.set_scales(answered.scale, answered.scale);
        });
    }

    /// The client has its answer: what both offered holds from now on; what a server offers is learned.
    pub(super) fn settle_opening(&mut self, ctx: &Context<impl Egress>, id: Id, answered: Options) {
        let observation = Observation::of(ctx.segment, ctx.head.bytes(), answered, &self.table[id]);
        if ctx.side == Side::Lan {
            self.note_answer_in_own_vlan(id, ctx.key().vlan);
        }
        let envelope = ctx.envelope();
        self.set_state(id, State::SynReceived, ctx.now, |flow| {
            flow.follow_path(ctx.side, &envelope);
            note_syn(flow, ctx, &answered);
            settle_scales(flow);
            flow.attempts = 0;
            flow.set(FlowFlags::UNJUDGED, false);
            // The box's own segments to either end must bear timestamps if its segments do.
            let agreed = flow.is(FlowFlags::TIMESTAMPS) && answered.timestamps.is_some();
            flow.set(FlowFlags::TIMESTAMPS, agreed);
            flow.set(FlowFlags::TIMESTAMPS_LAN, agreed);
            flow.endpoint_mut(ctx.side).acked = ctx.segment.ack;
            // What it will acknowledge at the least, which only one that has seen the answer knows.
            let synchronised = flow.endpoint(ctx.side).next;
            flow.endpoint_mut(ctx.side.other()).acked = synchronised;
        });
        if ctx.side == Side::Lan {
            self.learn_unproved(ctx.key(), &observation, self.table[id].is(FlowFlags::EXCEPTIONAL), ctx.now);
        }
    }

    /// An acknowledgement without SYN. From the client it ends the handshake. From the server it is early data, or an older connection's
    /// challenge; the client must get either.
    fn on_opening_acknowledged(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        let flow = &self.table[id];
        let opener = flow.client();
        let acknowledges = ctx.segment.ack.within(flow.endpoint(opener).acked, flow.endpoint(opener.other()).next);
        // The client's own SYN may have been answered by cookie alone before the LAN sent this one, or before one passed that somebody else sent in its
        // name.
        let may_prove = match (opener, flow.state()) {
            (Side::Wan, _) if self.caches.direct_returns.is_found(ctx.key()) => false,
            (_, State::SynSent) => self.caches.recent_syns.may_have(ctx.hash, ctx.now),
            // The server's answer to the one that passed is not what the client acknowledges.
            (Side::Wan, _) => !acknowledges && self.caches.recent_syns.has_noted(ctx.hash, ctx.now),
            (Side::Lan, _) => flow.is(FlowFlags::UNJUDGED) && self.caches.recent_syns.has_noted(ctx.hash, ctx.now),
        };
        if ctx.side == Side::Wan
            && may_prove
            && let Ok(proof) = self.open_cookie(&mut ctx)
        {
            return self.accept_cookie(ctx, &proof, Some(id));
        }
        let flow = &self.table[id];
        if !flow.is_in(State::SynReceived) || !acknowledges && ctx.side == opener {
            if ctx.side == opener && !self.may_go_on(&ctx) {
                return Verdict::Drop(DropReason::NotPassed);
            }
            self.on_opener_alone(&ctx, id);
            return Verdict::Forward;
        }
        if ctx.side == opener {
            self.set_state(id, State::Established, ctx.now, |_| ());
            self.remember_candidate(id);
            if opener == Side::Wan {
                self.note_completed(ctx.key(), ctx.hash, ctx.now);
            }
        }
        let (side, now) = (ctx.side, ctx.now);
        let verdict = self.track_and_pass(ctx, id);
        self.keep_half_seen(id, side, now);
        verdict
    }

    /// Whether a segment of the opener of a connection that is not established may pass. That of a client of the WAN passed unproved, and so does what follows
    /// it: nobody may send a server more in its wake. Where the server's answers are known to take another way, nothing else can be seen of its connections.
    fn may_go_on(&mut self, ctx: &Context<impl Egress>) -> bool {
        let is_passed_by_policy = self.settings.draining || self.caches.direct_returns.is_found(ctx.key());
        if ctx.side == Side::Lan || is_passed_by_policy {
            return true;
        }
        let kind = match ctx.kind {
            Kind::Syn if is_exceptional(&Options::read(ctx.options())) || ctx.segment.indirect => Exception::Syn,
            // It asks a port anew that let nobody in.
            Kind::Syn if self.caches.exceptions.is_shut(Exception::Introduction) => Exception::Syn,
            Kind::Syn => Exception::Introduction,
            _ => Exception::Segment,
        };
        self.is_excepted(kind, ctx.segment, ctx.hash, ctx.now)
    }

    fn reset_opening(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let flow = &self.table[id];
        let Segment { seq, flags, .. } = *ctx.segment;
        ctx.egress.note(|| format!("a reset while the connection is being opened by the {:?}", flow.client()));
        let acceptable = match (ctx.side == flow.client(), flow.state()) {
            // Of a connection of which one end alone is seen only the ends can tell.
            _ if flow.is(FlowFlags::UNJUDGED) => true,
            (true, _) if seq.within(flow.outer_isn + 1, flow.endpoint(ctx.side).next) => true,
            // The answer to a server that has an older connection of these ends bears the number of that (RFC 9293 section 3.5.1), and the client
            // goes on to open its own; so does a client in whose name somebody else sends a reset.
            (true, _) => {
                let goes_on = self.may_go_on(&ctx);
                return if goes_on { Verdict::Forward } else { Verdict::Drop(DropReason::NotPassed) };
            }
            // RFC 9293 section 3.10.7.3: in SYN-SENT the client accepts a reset that acknowledges its SYN.
            (false, State::SynSent) => flags.has(Flags::ACK) && flow.answers_syn(ctx.segment),
            (false, _) => seq == flow.endpoint(ctx.side).next,
        };
        if !acceptable {
            return Verdict::Drop(DropReason::BadReset);
        }
        let exceptional = flow.is(FlowFlags::EXCEPTIONAL);
        if ctx.side == Side::Lan && flow.is_in(State::SynSent) && flow.client() == Side::Wan && !exceptional {
            self.remember(ctx.key(), Met::Reset, false, ctx.now);
        }
        let flow = &self.table[id];
        if flow.is(FlowFlags::UNJUDGED) && ctx.side == Side::Lan || flow.client() == Side::Wan {
            // The host knows nothing of it: what follows an unproved SYN-ACK, or an unproved SYN, must not pass any more.
            self.forget(id);
        } else {
            self.set_state(id, State::Reset, ctx.now, |_| ());
        }
        Verdict::Forward
    }
}

/// Connections of the WAN that passed unproved, the oldest first. Some of them are established meanwhile, or gone.
pub(crate) struct UnprovedFlows {
    entries: VecDeque<(Id, u16)>,
    most: usize,
}

impl UnprovedFlows {
    /// None, in a table of so many flows.
    pub(crate) fn new(flows: usize) -> Self {
        let most = Self::most(flows);
        Self { entries: VecDeque::with_capacity(most), most }
    }

    /// The bytes of one for a table of so many flows.
    pub(crate) fn bytes_needed(flows: usize) -> usize {
        size_of::<(Id, u16)>() * Self::most(flows)
    }

    fn most(flows: usize) -> usize {
        (flows / UNPROVED_SHARE).max(UNPROVED_LEAST)
    }

    /// The connection that ends when another is added, if there is one.
    pub(crate) fn next_out(&self) -> Option<(Id, u16)> {
        self.entries.front().copied().filter(|_| self.entries.len() >= self.most)
    }

    /// The same for one frame: of this connection alone, if it is the next out.
    pub(crate) fn excerpt(next_out: Option<(Id, u16)>) -> Self {
        Self { entries: next_out.into_iter().collect(), most: 1 }
    }
}

impl Proxy {
    /// Makes a place among the connections that passed unproved: the oldest goes if it is not established.
    pub(super) fn bound_unproved(&mut self) {
        let Some((id, generation)) = self.unproved.next_out() else { return };
        self.unproved.entries.pop_front();
        if self.is_unproved(id, generation) {
            self.count_of_flow(id, Event::EvictedHalfOpen);
            self.forget(id);
        }
    }

    /// Whether this is still a connection of the WAN that passed unproved and that waits for its server or its client. One of which only one direction is
    /// seen goes on so, and is the first to go when the table is full.
    pub(crate) fn is_unproved(&self, id: Id, generation: u16) -> bool {
        let flow = &self.table[id];
        flow.generation() == generation && flow.is_unproved()
    }

    /// Remembers a connection that has passed unproved.
    pub(super) fn remember_unproved(&mut self, id: Id) {
        let flow = &self.table[id];
        if flow.is_unproved() {
            let generation = flow.generation();
            if self.unproved.entries.len() >= self.unproved.most {
                self.unproved.entries.pop_front();
            }
            self.unproved.entries.push_back((id, generation));
        }
    }
}

impl Flow {
    /// See [`Proxy::is_unproved`].
    pub(super) fn is_unproved(&self) -> bool {
        matches!(self.state(), State::SynSent | State::SynReceived)
            && self.client() == Side::Wan
            && !self.is(FlowFlags::UNJUDGED)
    }

    /// Whether this is the SYN from the LAN by which a connection that is passed through was opened.
    pub(super) fn opened_by(&self, syn: &Segment) -> bool {
        self.client() == Side::Lan && self.outer_isn == syn.seq
    }

    /// Whether a segment of the server acknowledges the client's SYN: with the data in it, or without (RFC 7413 section 3).
    pub(super) fn answers_syn(&self, answer: &Segment) -> bool {
        answer.ack.within(self.outer_isn + 1, self.endpoint(self.client()).next)
    }
}

/// Whether a SYN is signed or has an extension: servers answer such a one as they answer no other.
fn is_exceptional(options: &Options) -> bool {
    options.signed || options.multipath || options.fast_open
}

/// Fills the record of a connection that is passed through by its SYN.
pub(super) fn fill_syn_sent<E>(flow: &mut Flow, ctx: &Context<E>) {
    let options = Options::read(ctx.options());
    flow.outer_isn = ctx.segment.seq;
    flow.keep_path(ctx.side, &ctx.envelope());
    flow.set_client(ctx.side);
    *flow.endpoint_mut(ctx.side.other()) = Endpoint::default();
    flow.mss_lan = options.mss.filter(|_| ctx.side == Side::Lan).unwrap_or_default();
    flow.set(FlowFlags::UNJUDGED, false);
    // Offered, for now.
    flow.set(FlowFlags::SACK, options.sack_permitted);
    flow.set(FlowFlags::TIMESTAMPS, options.timestamps.is_some());
    let asked = ctx.segment.flags.asked_ecn();
    flow.set(FlowFlags::ECN_ASKED, asked != EcnSetup::None);
    flow.set(FlowFlags::ACCURATE, asked == EcnSetup::Accurate);
    flow.set(FlowFlags::EXCEPTIONAL, is_exceptional(&options));
    note_syn(flow, ctx, &options);
}

/// Notes an end's SYN or SYN-ACK.
pub(super) fn note_syn<E>(flow: &mut Flow, ctx: &Context<E>, options: &Options) {
    flow.set_class(ctx.side, ctx.segment.class(ctx.head.bytes()));
    let (segment, endpoint) = (ctx.segment, flow.endpoint_mut(ctx.side));
    endpoint.ttl = segment.ttl;
    endpoint.next = segment.seq + segment.seq_len();
    endpoint.ts_value = options.timestamps.map_or(0, |timestamps| timestamps.value);
    endpoint.set_scales(options.scale, options.scale);
    // RFC 7323 section 2.2: the window of a SYN is not scaled.
    endpoint.window = Window(segment.window.0.into()).field(options.scale.unwrap_or_default());
}

/// Scaling is on only if both SYNs had the option.
fn settle_scales(flow: &mut Flow) {
    if flow.endpoint(Side::Lan).scale().is_some() && flow.endpoint(Side::Wan).scale().is_some() {
        return;
    }
    for side in Side::BOTH {
        let window = flow.granted(side).field(WindowScale::default());
        let endpoint = flow.endpoint_mut(side);
        endpoint.window = window;
        endpoint.set_scales(None, None);
    }
}
