//! What lists and limits decide on a connection attempt, and the end of connections of clients that are blocked while they run.

use super::Proxy;
use super::candidates::Kind;
use super::context::Context;
use crate::flow::table::Id;
use crate::flow::{Flow, State};
use crate::policy::lists::{List, Lists};
use crate::policy::quotas::Quota;
use crate::wire::{FlowKey, Segment};
use crate::{DropReason, Egress, Event, Instant, Side, Verdict, Words};
use std::sync::Arc;

/// Records of the table that are looked at in one call for connections of blocked clients: as many cache misses as a batch of frames has.
const SWEPT_A_TURN: u32 = 64;

impl Proxy {
    /// From now on these are the lists; returns the former ones, so that the caller can free them elsewhere. Connections that run are not affected, see
    /// [`Proxy::reset_blocked`]. To be called between two batches.
    pub fn set_lists(&mut self, lists: Arc<Lists>) -> Arc<Lists> {
        let former = core::mem::replace(&mut self.settings.lists, lists);
        self.settings.is_guarded = self.is_guarded();
        former
    }

    /// Whether a SYN must be compared with lists or limits before it is answered.
    pub(super) fn is_guarded(&self) -> bool {
        !self.settings.lists.is_empty() || self.quotas.limits_answers()
    }

    /// The counters of the other workers' limits are these from now on; see [`Memory::quotas`](crate::Memory::quotas).
    pub fn share_limits(&mut self, others: Vec<Words>) {
        self.quotas.set_others(others);
    }

    /// Begins to reset the connections of blocked clients that run, opened by either end. Each [`Proxy::on_timeout`] does a bounded part of it.
    pub fn reset_blocked(&mut self) {
        self.sweep = Some(0);
    }

    /// Does a part of what [`Proxy::reset_blocked`] began: whether more can be done at once.
    #[cold]
    #[inline(never)]
    pub(super) fn continue_sweep(&mut self, egress: &mut impl Egress) -> bool {
        let Some(from) = self.sweep else { return false };
        let (flows, next) = self.table.slice(from, SWEPT_A_TURN);
        let mut found = [None; SWEPT_A_TURN as usize];
        found.iter_mut().zip(flows).for_each(|(found, (id, _))| *found = Some(id));
        for id in found.into_iter().flatten() {
            let is_over = Kind::of(&self.table[id]) == Some(Kind::Closing);
            let is_blocked = !is_over && self.listed(&self.table.key(id)) == Some(List::Block);
            if is_blocked && !self.evict(id, Event::BlockedReset, egress) {
                // No frame is spare for its resets: it is the first of the next part, which is due at once.
                self.sweep = Some(id.0);
                return false;
            }
        }
        self.sweep = next;
        next.is_some()
    }

    /// The list that counts for the client of a connection, if it is in any.
    #[inline]
    pub(super) fn listed(&self, key: &FlowKey) -> Option<List> {
        if self.settings.lists.is_empty() { None } else { self.settings.lists.find(key) }
    }

    /// Whether a client is in the list of those whose connections pass untouched.
    pub(super) fn is_allowed(&self, key: &FlowKey) -> bool {
        self.listed(key) == Some(List::Allow)
    }

    /// Whether a SYN takes the slow path because of a list or a limit, as most do not. Changes nothing.
    #[cold]
    #[inline(never)]
    pub(super) fn is_held_up(&self, segment: &Segment, now: Instant) -> bool {
        self.listed(&segment.key).is_some() || self.quotas.answers_exceeded(&segment.key, now, || false).is_some()
    }

    /// What becomes of a SYN of the WAN by the list that its client is in; `None`: it is treated as any other's.
    pub(super) fn decide_by_list<'a, 'b, E: Egress>(
        &mut self,
        mut ctx: Context<'a, 'b, E>,
        listed: List,
        former: Option<Id>,
    ) -> Result<Verdict, Context<'a, 'b, E>> {
        ctx.egress.note(|| format!("the client is in the list `{}`", listed.name()));
        match listed {
            List::Block => Ok(Verdict::Drop(DropReason::Blocked)),
            List::Allow if self.is_new(former, ctx.hash, ctx.now) => {
                let passed = self.pass_unanswered(&mut ctx, former, Event::Allowed);
                Ok(passed.unwrap_or(Verdict::Drop(DropReason::TableFull)))
            }
            List::Allow => {
                // It must not get the server's SYN-ACK beside ours.
                ctx.egress.note(|| "a SYN of this connection was answered before, and so is this".into());
                Err(ctx)
            }
            List::Always => {
                self.counters.count(Event::AlwaysProxied);
                Err(ctx)
            }
        }
    }

    /// Whether a client is blocked.
    pub(super) fn is_blocked(&self, ctx: &mut Context<impl Egress>) -> bool {
        let is_blocked = self.listed(ctx.key()) == Some(List::Block);
        if is_blocked {
            ctx.egress.note(|| "the client is in the list `block`".into());
        }
        is_blocked
    }

    /// Whether a limit keeps another connection of these ends from beginning; then it is counted.
    pub(super) fn is_over_limit(&mut self, ctx: &mut Context<impl Egress>) -> bool {
        let quota = self.quotas.exceeded(ctx.key(), ctx.now);
        if let Some(quota) = quota {
            self.note_limit(ctx, quota);
        }
        quota.is_some()
    }

    fn note_limit(&mut self, ctx: &mut Context<impl Egress>, quota: Quota) {
        ctx.egress.note(|| format!("a limit is reached ({})", quota.event().label()));
        self.counters.count(quota.event());
    }

    /// Whether a SYN may be answered as far as limits on SYN-ACKs go; if so, the answer is counted.
    pub(super) fn may_answer(&mut self, ctx: &mut Context<impl Egress>) -> bool {
        if !self.quotas.limits_answers() {
            return true;
        }
        let (limiter, isn, now) = (&mut self.caches.limiter, ctx.segment.seq, ctx.now);
        let mut seen = None;
        let repeated = || *seen.get_or_insert_with(|| limiter.seen_before(ctx.hash, isn, now));
        let Some(quota) = self.quotas.answers_exceeded(&ctx.segment.key, now, repeated) else {
            self.quotas.note_answer(&ctx.segment.key, now);
            return true;
        };
        self.note_limit(ctx, quota);
        false
    }

    /// Counts a flow, or no more, as its state is now.
    #[inline]
    pub(super) fn recount(&mut self, id: Id, now: Instant) {
        if self.quotas.limits_connections() || self.quotas.is_counted(id.0) {
            self.recount_limited(id, now);
        }
    }

    #[cold]
    #[inline(never)]
    fn recount_limited(&mut self, id: Id, now: Instant) {
        let flow = &self.table[id];
        let counts = counts(flow) && self.quotas.limits_connections();
        if counts != self.quotas.is_counted(id.0) {
            let key = self.table.key(id);
            if counts { self.quotas.begin(id.0, &key, now) } else { self.quotas.end(id.0, &key) }
        }
    }

    /// Counts a flow no more, which is about to be removed.
    #[cold]
    #[inline(never)]
    pub(super) fn discount(&mut self, id: Id) {
        let key = self.table.key(id);
        self.quotas.end(id.0, &key);
    }
}

/// Whether a flow counts for limits: its client, on the WAN, has proved that it is there, and it is not over.
fn counts(flow: &Flow) -> bool {
    flow.client() == Side::Wan
        && match flow.state() {
            State::ServerSynSent
            | State::Gathering
            | State::Repeating
            | State::AckWithheld
            | State::WindowPending
            | State::Established
            | State::HandedDown
            | State::FinWait
            | State::LastAck => true,
            State::Reset => flow.is_reset_in_doubt(),
            _ => false,
        }
}
