//! Connections of which one direction does not cross the box (asymmetric routing, direct server return). Where policy passes them, what is seen of
//! them keeps them: they stay in the state they open in, are the first to go when the table is full, and are judged by nobody but their ends.

use super::Proxy;
use super::context::{Context, are_possible, is_from_group};
use super::idle::Opener;
use super::passthrough::note_syn;
use crate::cache::updates::ServerUpdate;
use crate::config::Asymmetric;
use crate::flow::table::Id;
use crate::flow::table::wheel::{Ticks, tick};
use crate::flow::{Flow, FlowFlags, State};
use crate::policy::exceptions::Exception;
use crate::wire::{Flags, FlowKey, Options};
use crate::{DropReason, Egress, Event, Instant, Side, Verdict};

/// A server on the LAN that has not answered for so long, a second, answers another way or not at all. In ticks.
const SILENT: Ticks = 1_000_000 / 1024;

impl Proxy {
    /// A SYN-ACK from the WAN for a SYN that did not cross the box.
    pub(super) fn on_answer_alone(&mut self, ctx: Context<impl Egress>) -> Verdict {
        let rule = self.settings.policy.rule(ctx.key());
        if rule.asymmetric == Asymmetric::Drop {
            return Verdict::Drop(DropReason::NoFlow);
        }
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        if !are_possible(ctx.key()) || is_from_group(ctx.head.bytes()) {
            return Verdict::Drop(DropReason::BadAddress);
        }
        if !self.is_excepted(Exception::Answer, ctx.segment, ctx.hash, ctx.now) {
            return Verdict::Drop(DropReason::NotPassed);
        }
        ctx.egress.note(|| "the SYN it answers left another way: it passes, and what follows it".into());
        let (key, hash) = (*ctx.key(), ctx.hash);
        if !self.make_room(Opener::Unproved(&key), ctx.now, ctx.egress) {
            return Verdict::Drop(DropReason::TableFull);
        }
        let admitted =
            self.admit(&key, hash, Side::Lan, State::SynReceived, ctx.now, |flow| fill_syn_received(flow, &ctx));
        let Some(id) = admitted else {
            return Verdict::Drop(DropReason::TableFull);
        };
        self.remember_candidate(id);
        self.counters.count(Event::HalfSeen);
        self.forward_syn(ctx)
    }

    /// A SYN-ACK of the LAN that has no place in the connection its ends had, of which the box knows no end: the server has forgotten that, and answers the
    /// client's new SYN, which has passed without a trace, as anybody may have sent it. The new connection takes the record.
    pub(super) fn begin_by_answer(&mut self, ctx: &Context<impl Egress>, id: Id) {
        // A cookie of the box's that is about to come is for the record as it is.
        let is_awaited = self.table[id].is(FlowFlags::REOPENING);
        let is_of_another = !is_awaited && !self.is_in_sequence(ctx, id) && ctx.is_sound();
        if ctx.side == Side::Wan || !is_of_another || !are_possible(ctx.key()) {
            return;
        }
        let (key, hash, now, profile) = (*ctx.key(), ctx.hash, ctx.now, self.table[id].profile);
        self.forget(id);
        let begun = self.admit(&key, hash, Side::Wan, State::SynReceived, now, |flow| {
            flow.profile = profile;
            fill_syn_received(flow, ctx);
        });
        if let Some(id) = begun {
            self.remember_candidate(id);
            self.bound_half_open(id, now);
        }
    }

    /// The opener of a connection whose SYN-ACK has not crossed the box goes on: it has got that another way.
    pub(super) fn on_opener_alone(&mut self, ctx: &Context<impl Egress>, id: Id) {
        let flow = &self.table[id];
        let opener = flow.client();
        let goes_on = flow.is(FlowFlags::UNJUDGED) || ctx.segment.seq == flow.endpoint(opener).next;
        let rule = self.settings.policy.rule(ctx.key());
        if ctx.side != opener || !flow.is_in(State::SynSent) || !goes_on || rule.asymmetric == Asymmetric::Drop {
            return;
        }
        if !flow.is(FlowFlags::UNJUDGED) {
            self.table.update(id, |flow| flow.set(FlowFlags::UNJUDGED, true));
            self.remember_candidate(id);
            self.counters.count(Event::HalfSeen);
        }
        if ctx.segment.flags.has(Flags::FIN) {
            let end = ctx.segment.seq + ctx.segment.seq_len();
            self.table.update(id, |flow| flow.finish(opener, end));
        }
        self.keep_half_seen(id, opener, ctx.now);
    }

    /// Lets a connection of which only `side` is seen go on for as long as an established one, or as a closing one once that end has finished.
    pub(super) fn keep_half_seen(&mut self, id: Id, side: Side, now: Instant) {
        let flow = &self.table[id];
        let is_half_seen = flow.is(FlowFlags::UNJUDGED) && matches!(flow.state(), State::SynSent | State::SynReceived);
        if !is_half_seen {
            return;
        }
        let lifetimes = self.settings.profiles.of(flow.profile);
        let state = if flow.has_finished(side) { State::TimeWait } else { State::Established };
        self.table.schedule(id, tick(now).wrapping_add(lifetimes.of(state)));
    }

    /// A client has acknowledged again what our SYN-ACK said, with nothing to say for itself. If our SYN went out a while ago and its server is silent,
    /// the client has been sent another SYN-ACK, which contradicts ours (RFC 5961 section 4).
    pub(super) fn on_proof_repeated(&mut self, ctx: &Context<impl Egress>, id: Id) {
        let flow = &self.table[id];
        let is_bare = ctx.segment.seq == flow.endpoint(Side::Wan).next && ctx.segment.seq_len() == 0;
        if is_bare && tick(ctx.now).wrapping_sub(flow.born) >= SILENT {
            self.suspect_direct_return(ctx.key(), ctx.hash);
        }
    }

    fn suspect_direct_return(&mut self, key: &FlowKey, hash: u64) {
        if self.caches.direct_returns.note(key, hash) {
            self.counters.count(Event::DirectReturn);
            self.publish(ServerUpdate::DirectReturn(*key));
        }
        if self.caches.direct_returns.is_found(key) {
            self.on_direct_return(key);
        }
    }

    /// A server is found to answer another way than through the box.
    pub(super) fn on_direct_return(&mut self, key: &FlowKey) {
        let bypass = self.settings.policy.rule(key).asymmetric == Asymmetric::Bypass;
        self.caches.direct_returns.found(key, bypass);
    }
}

/// Fills the record of a connection by the SYN-ACK at hand, whose SYN was not seen.
fn fill_syn_received<E>(flow: &mut Flow, ctx: &Context<E>) {
    let (segment, options) = (ctx.segment, Options::read(ctx.options()));
    flow.set(FlowFlags::UNJUDGED, true);
    flow.set(FlowFlags::SACK, options.sack_permitted);
    // An answer has only what was offered.
    flow.set(FlowFlags::TIMESTAMPS, options.timestamps.is_some());
    flow.set(FlowFlags::TIMESTAMPS_LAN, options.timestamps.is_some());
    flow.outer_isn = segment.ack - 1;
    flow.keep_path(ctx.side, &ctx.envelope());
    note_syn(flow, ctx, &options);
    let answering = flow.endpoint_mut(ctx.side);
    answering.acked = segment.ack;
    let next = answering.next;
    let opener = flow.endpoint_mut(ctx.side.other());
    (opener.next, opener.acked) = (segment.ack, next);
    opener.set_scales(options.scale, options.scale);
}
