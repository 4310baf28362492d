//! Segments without a flow. For a while after the start they may belong to connections that run already, which the box adopts: a segment of
//! the LAN makes a record, a matching one of the WAN confirms it. Later the box treats them as strays.

use super::Proxy;
use super::context::Context;
use super::idle::Opener;
use crate::config::Stray;
use crate::flow::table::Id;
use crate::flow::{Flow, FlowFlags, State};
use crate::policy::ServiceMark;
use crate::policy::exceptions::Exception;
use crate::wire::{Flags, Kind, Segment};
use crate::{DropReason, Egress, Event, Side, Verdict};

/// How far a segment's numbers may lie from what the other direction last said of them, besides what is in flight.
const TOLERANCE: u32 = 1 << 26;
/// What may be in flight at the most: the largest window (RFC 7323 section 2.3). That of a connection that runs already is not known.
const LARGEST_WINDOW: u32 = 1 << 30;

impl Proxy {
    /// A segment without SYN that belongs to no flow and proves nothing.
    pub(super) fn on_unknown_connection(&mut self, mut ctx: Context<impl Egress>) -> Verdict {
        if ctx.side == Side::Wan && self.mark(ctx.key()) != ServiceMark::None {
            return self.on_unknown_connection_of_box(ctx);
        }
        if self.passes(ctx.key()) {
            return self.pass_unknown(ctx);
        }
        let resets = ctx.kind == Kind::Rst;
        ctx.egress.note(|| {
            let left = self.settings.adopt_until.since(ctx.now).as_secs();
            let adopted =
                if left > 0 { format!("are adopted for {left} s yet") } else { "are not adopted any more".into() };
            format!("no flow has this 4-tuple; connections that run already {adopted}")
        });
        if self.adopts(ctx.key(), ctx.now) {
            return match ctx.side {
                // It answers a segment that was passed without a trace; one that acknowledges answers a SYN, and that was ours.
                Side::Lan if resets && !ctx.segment.flags.has(Flags::ACK) => Verdict::Forward,
                Side::Lan if resets => Verdict::Drop(DropReason::NoFlow),
                Side::Lan => self.adopt(ctx),
                // Passed without a record, at a limited rate: the server's answer shows whether it has the connection.
                Side::Wan if self.is_excepted(Exception::Segment, ctx.segment, ctx.hash, ctx.now) => Verdict::Forward,
                Side::Wan => Verdict::Drop(DropReason::NoFlow),
            };
        }
        if !resets
            && self.settings.policy.rule(ctx.key()).stray == Stray::Reset
            && !ctx.segment.indirect
            && ctx.is_sound()
            && !self.caches.stations.are_on(ctx.side, ctx.head.bytes(), ctx.now)
            && self.is_excepted(Exception::Reset, ctx.segment, ctx.hash, ctx.now)
        {
            self.counters.count(Event::StrayReset);
            return self.reset_in_place(&mut ctx, None);
        }
        Verdict::Drop(if ctx.side == Side::Lan || resets { DropReason::NoFlow } else { DropReason::BadCookie })
    }

    /// A segment from the LAN: the connection is the LAN's, but whether the other end sees the same numbers is open, and whether its segments come
    /// this way. The record lasts as long as the LAN goes on, and gives way to any other.
    pub(super) fn adopt(&mut self, ctx: Context<impl Egress>) -> Verdict {
        let profile = self.settings.policy.rule(ctx.key()).profile;
        self.adopt_as(ctx, self.settings.profiles.present(profile))
    }

    /// The same, of a flow with this profile.
    pub(super) fn adopt_as(&mut self, ctx: Context<impl Egress>, profile: u16) -> Verdict {
        if !self.make_room(Opener::Lan, ctx.now, ctx.egress) {
            return Verdict::Drop(DropReason::TableFull);
        }
        let (key, hash) = (*ctx.key(), ctx.hash);
        let envelope = ctx.envelope();
        let admitted = self.admit(&key, hash, Side::Lan, State::Unconfirmed, ctx.now, |flow| {
            flow.profile = profile;
            flow.set(FlowFlags::UNJUDGED, true);
            flow.keep_path(Side::Lan, &envelope);
            note(flow, &ctx);
            let client = flow.endpoint_mut(Side::Wan);
            (client.next, client.acked) = (ctx.segment.ack, ctx.segment.seq);
        });
        match admitted {
            Some(id) => {
                self.remember_candidate(id);
                self.caches.vlan_pairs.note(key.vlan);
                Verdict::Forward
            }
            None => Verdict::Drop(DropReason::TableFull),
        }
    }

    /// Segments of a connection of which one direction has been seen.
    pub(super) fn on_unconfirmed(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        match (ctx.kind, ctx.side) {
            (Kind::Syn, Side::Wan) => return self.answer_syn(ctx, Some(id)),
            (Kind::Syn, Side::Lan) => return self.open_passthrough(ctx, Some(id)),
            (Kind::SynAck, Side::Wan) => return Verdict::Drop(DropReason::WrongState),
            _ => {}
        }
        if ctx.side == Side::Wan
            && self.table[id].is(FlowFlags::REOPENING)
            && let Ok(proof) = self.open_cookie(&mut ctx)
        {
            return self.accept_cookie(ctx, &proof, Some(id));
        }
        if ctx.side == Side::Lan {
            self.table.update(id, |flow| note(flow, &ctx));
            self.restart_timer(id, ctx.now);
            return Verdict::Forward;
        }
        let lan = self.table[id].endpoint(Side::Lan);
        let agrees = agrees(&self.table[id], ctx.segment);
        ctx.egress.note(|| {
            let (seq, ack) = (lan.acked.get(), lan.next.get());
            let agrees = if agrees { "agrees" } else { "does not agree" };
            format!(
                "the LAN said seq {seq} and ack {ack} of this connection, give or take what is in flight: this {agrees}"
            )
        });
        if !agrees {
            return Verdict::Drop(DropReason::NoFlow);
        }
        if ctx.kind == Kind::Rst {
            self.table.update(id, |flow| note(flow, &ctx));
        } else {
            self.set_state(id, State::Established, ctx.now, |flow| note(flow, &ctx));
            self.counters.count(Event::Adopted);
        }
        Verdict::Forward
    }
}

/// Whether a segment of the WAN has about the numbers that the LAN's segments of this flow have named.
pub(super) fn agrees(flow: &Flow, segment: &Segment) -> bool {
    let lan = flow.endpoint(Side::Lan);
    segment.ack.within(lan.next - (LARGEST_WINDOW + TOLERANCE), lan.next + TOLERANCE)
        && segment.seq.within(lan.acked - TOLERANCE, lan.acked + (LARGEST_WINDOW + TOLERANCE))
}

/// Notes where a direction stands, and from how far it comes.
pub(super) fn note<E>(flow: &mut Flow, ctx: &Context<E>) {
    let (segment, endpoint) = (ctx.segment, flow.endpoint_mut(ctx.side));
    endpoint.ttl = segment.ttl;
    let class = segment.class(ctx.head.bytes());
    (endpoint.next, endpoint.acked, endpoint.window) = (segment.seq + segment.seq_len(), segment.ack, segment.window);
    flow.set_class(ctx.side, class);
}
