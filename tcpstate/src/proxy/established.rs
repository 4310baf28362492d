//! Established connections: the box tracks the ends' segments, translates them and passes them.
//!
//! The ends decide for themselves what they accept; the proxy only keeps forgeries out of its own records,
//! and answers for an end where a forged segment could otherwise end a connection (RFC 5961).

use super::Proxy;
use super::context::{Context, is_damaged};
use super::reply::{bare_reset, half_second};
use crate::config::SackConflict;
use crate::cookie::ts_clock;
use crate::flow::ecn;
use crate::flow::table::Id;
use crate::flow::table::wheel::tick;
use crate::flow::translate::Projection;
use crate::flow::{Flow, FlowFlags, State};
use crate::seq::SeqNum;
use crate::service::negotiation::LONGEST;
use crate::wire::{Envelope, Flags, Kind, OptionList, Options, Segment};
use crate::{DropReason, Egress, Event, Head, Instant, Side, Verdict};

/// How far beyond a window a segment may reach and still be believed: fragments hide a segment's true length.
const SLACK: u32 = 65_535;
/// Ticks by which a timestamp clock may advance from one segment to the next and be believed without a sum over the payload.
const SMALL_STEP: u32 = 16;
/// How far behind what its receiver, or its sender, has acknowledged an old segment is believed: as far as segments are reordered. What is in
/// flight does not count: that may be a whole window, 2^30 bytes (RFC 7323 section 2.3).
const FAR_BEHIND: u32 = 1 << 26;

/// Whether a number lies on the way from `first` to `last`, or not far behind.
#[inline(always)]
fn is_near(number: SeqNum, first: SeqNum, last: SeqNum) -> bool {
    number.within(first - FAR_BEHIND, last)
}

impl Proxy {
    /// Fast path of a segment: passes an acknowledgement, with data or without, that has only timestamps or no options and is in sequence, of an
    /// established flow with nothing owed, pending or in doubt. Does what [`Proxy::on_established`] would do, at the least cost. Returns false for
    /// any other segment, and changes nothing then.
    #[inline(always)]
    pub(super) fn forward_fast(
        &mut self,
        side: Side,
        segment: &Segment,
        id: Id,
        head: &mut Head,
        now: Instant,
    ) -> bool {
        let flow = &self.table[id];
        let agreed = flow.is(FlowFlags::TIMESTAMPS);
        if segment.fragmented
            || !flow.is_in(State::Established)
            || flow.is(FlowFlags::SLOW_PATH)
            || flow.held != 0
            || agreed && !flow.is(FlowFlags::TIMESTAMPS_LAN)
        {
            return false;
        }
        let frame = head.bytes();
        // Another station may send in its end's name by now, or in other tags.
        if segment.has_priority_tag() || !flow.comes_from(side, frame) {
            return false;
        }
        let Some(timestamps) = segment.common_options(frame) else { return false };
        let timestamps = timestamps.filter(|_| agreed);
        let proxied = flow.is(FlowFlags::PROXIED);
        if proxied && !ecn::needs_no_change(flow, side, segment, frame) {
            return false;
        }

        let (payload, other) = (segment.payload_len(), side.other());
        let end = segment.seq + flow.outward(side) + payload;
        let granted = flow.granted(other).0;
        let (slack, hidden) = if flow.is(FlowFlags::UNJUDGED) { (FAR_BEHIND, FAR_BEHIND) } else { (SLACK, 0) };
        let (sender, receiver) = (flow.endpoint(side), flow.endpoint(other));
        if !is_near(end, receiver.acked, receiver.acked + (granted + slack))
            || !is_near(segment.ack, sender.acked, receiver.next + hidden)
        {
            return false;
        }

        // Each of these words is valid alone.
        let mut flow = self.table.edit(id);
        let receiver = flow.endpoint_mut(other);
        if segment.ack.after(receiver.next) && segment.checksums_hold(head) {
            receiver.next = segment.ack;
        }
        let ts_delta = flow.ts_delta;
        let sender = flow.endpoint_mut(side);
        if end.after(sender.next) && payload > 0 {
            sender.next = end;
        }
        if !segment.ack.before(sender.acked) {
            sender.acked = segment.ack;
            sender.window = segment.window;
            sender.ttl = segment.ttl;
        }
        if let Some(timestamps) = timestamps {
            let value = if side == Side::Lan { ts_delta.shift(timestamps.value) } else { timestamps.value };
            let step = value.wrapping_sub(sender.ts_value);
            if step != 0 && step < 1 << 31 && (step <= SMALL_STEP || segment.checksums_hold(head)) {
                sender.ts_value = value;
            }
        }
        if side == Side::Wan {
            let answers = proxied && segment.ack.after(flow.outer_isn + 1);
            flow.set_if(FlowFlags::CARRIED, answers || payload > 0);
        }
        if proxied {
            // A common segment has no SACK blocks to be in conflict about.
            Projection::of(&flow, SackConflict::Remove).apply_common(side, segment, head.bytes_mut(), timestamps);
        }
        let lifetime = self.settings.profiles.connected(flow.profile);
        self.table.schedule(id, tick(now).wrapping_add(lifetime));
        if self.hands_down() {
            self.hand_down(id, now);
        }
        true
    }

    /// Segments of a flow after both handshakes.
    pub(super) fn on_established(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        if ctx.kind == Kind::Ack && self.table[id].is(FlowFlags::REDIRECTED) {
            let raised = match ctx.side {
                Side::Lan => self.raise(&mut ctx, id),
                Side::Wan => self.raise_client(&mut ctx, id),
            };
            let Context { side, kind, hash, tokens, now, head, egress, .. } = ctx;
            return self.on_connected(Context { side, segment: &raised, kind, hash, tokens, now, head, egress }, id);
        }
        self.on_connected(ctx, id)
    }

    fn on_connected(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        if self.table[id].is_crossed()
            && let Some(verdict) = self.on_crossed(&mut ctx, id)
        {
            return verdict;
        }
        match ctx.kind {
            Kind::Syn | Kind::SynAck => return self.on_syn_while_established(ctx, id),
            Kind::Rst => return self.on_reset(ctx, id),
            Kind::Ack | Kind::Bad => {}
        }
        if ctx.side == Side::Wan
            && self.table[id].is(FlowFlags::REOPENING)
            // The connection's own cookie still opens; it proves nothing new.
            && !self.is_own_cookie(id, ctx.segment.ack)
            && let Ok(proof) = self.open_cookie(&mut ctx)
        {
            return self.accept_cookie(ctx, &proof, Some(id));
        }
        self.track_and_pass(ctx, id)
    }

    /// Whether this acknowledges what the box answered the client's SYN of this connection with, or what it has said in its own name since.
    fn is_own_cookie(&self, id: Id, ack: SeqNum) -> bool {
        let next = self.table[id].outer_isn + 1;
        let said = if self.table[id].is(FlowFlags::REDIRECTED) { LONGEST as u32 } else { 0 };
        ack.within(next - said, next)
    }

    fn on_syn_while_established(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        let flow = &self.table[id];
        let proxied = flow.is(FlowFlags::PROXIED);
        match (ctx.side, ctx.kind == Kind::SynAck) {
            (Side::Wan, false) if flow.is_over() => self.answer_syn(ctx, Some(id)),
            (Side::Wan, false) if proxied => self.on_client_syn_while_established(ctx, id),
            (Side::Wan, true) if proxied => Verdict::Drop(DropReason::WrongState),
            // A copy of the SYN it began with: the other end challenges it, and goes on.
            (Side::Lan, false) if !proxied && !flow.is_over() && flow.opened_by(ctx.segment) => self.forward_syn(ctx),
            (Side::Lan, false) if flow.is_over() || !proxied => self.open_passthrough(ctx, Some(id)),
            (Side::Lan, false) if !ctx.is_sound() => Verdict::Drop(DropReason::BadChecksum),
            (Side::Lan, false) if self.repeats_crossed_syn(&ctx, id) => self.answer_server_syn_in_place(&mut ctx, id),
            (Side::Lan, false) => self.challenge(ctx, id),
            (Side::Lan, true) if proxied => {
                if !ctx.is_sound() {
                    return Verdict::Drop(DropReason::BadChecksum);
                }
                let repeated = ctx.segment.seq + flow.seq_delta == flow.outer_isn && !flow.is_in(State::Reset);
                // A server that has not seen the handshake's last acknowledgement is sent it again; one that was woken by a
                // stray copy of our SYN gets a RST.
                if repeated {
                    self.answer_repeated_syn_ack(&mut ctx, id)
                } else {
                    self.reset_in_place(&mut ctx, Some(id))
                }
            }
            (Side::Lan, true) => {
                self.begin_by_answer(&ctx, id);
                Verdict::Forward
            }
            _ => Verdict::Forward,
        }
    }

    /// A client's SYN for a 4-tuple with a connection. RFC 5961 section 4: the box challenges it, and a client that has forgotten the connection
    /// resets it. A client that repeats its SYN, with no other segment in between, does not react to challenges: the box answers the SYN,
    /// and the old connection stays until the client proves the new one.
    fn on_client_syn_while_established(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let flow = &self.table[id];
        if flow.is(FlowFlags::SYN_CHALLENGED) && flow.challenged != half_second(ctx.now) {
            return self.answer_syn(ctx, Some(id));
        }
        self.table.update(id, |flow| flow.set(FlowFlags::SYN_CHALLENGED, true));
        self.challenge(ctx, id)
    }

    /// RFC 5961 section 3: a reset that hits the next expected number ends the connection, one that only falls into the window is
    /// answered with a challenge, any other is nothing.
    ///
    /// While data is in flight only the receiver knows which number it expects next. The box passes every reset that the receiver may accept, and
    /// the record is in [`State::Reset`] until its timer frees it, or until the receiver [shows](Flow::disproves_reset) that it has not accepted.
    fn on_reset(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let flow = &self.table[id];
        let seq = ctx.segment.seq + flow.outward(ctx.side);
        let (sender, receiver) = (flow.endpoint(ctx.side), flow.endpoint(ctx.side.other()));
        let granted = flow.granted(ctx.side.other()).0;
        // What the receiver expects next lies between what it has acknowledged and what was sent to it; of which it may know more than we, if
        // fragments came.
        let sent = SeqNum::new(SeqNum::later(receiver.acked.get(), sender.next.get()));
        ctx.egress.note(|| {
            let (from, to) = (receiver.acked.get(), sent.get());
            format!("reset with number {}: the receiver expects {from} to {to}, its window is {granted}", seq.get())
        });
        if seq.within(receiver.acked, sent) {
            if ctx.side == Side::Lan && flow.is(FlowFlags::NO_ECHO) && sender.next == flow.outer_isn + 1 {
                // It has said nothing but its SYN-ACK: it may not know its own connection by what it was sent.
                self.caches.server_options.note_exact_echo(ctx.key(), ctx.now);
            }
            // While the box still speaks for an end, its timers ask both ends whether they are alive. It stops only for a number that a stack
            // resets with: behind all that it has sent, or where the receiver's last acknowledgement is.
            let speaks = matches!(flow.state(), State::AckWithheld | State::WindowPending);
            let is_exact = seq == receiver.acked || seq == sent;
            let owes = flow.is_in(State::AckWithheld) && ctx.side == Side::Wan;
            if is_exact && owes {
                // The client's acknowledgement came before its reset, and so it does to the server.
                self.send_acknowledgement(id, ctx.now, ctx.egress);
            }
            if is_exact || !speaks {
                self.follow_state(id, ctx.now, |flow| {
                    flow.note_reset(ctx.side, seq);
                    State::Reset
                });
            }
            if is_exact && owes {
                let envelope = Envelope { ttl: ctx.segment.ttl, ..self.envelope(id, Side::Wan) };
                let (number, none) = (seq + self.table.client_deltas(id).0, OptionList::none());
                if self.emit(Side::Lan, &bare_reset(&envelope, number, &none), ctx.egress) {
                    return Verdict::Drop(DropReason::Consumed);
                }
            }
            return self.pass(ctx, id);
        }
        if flow.is(FlowFlags::UNJUDGED) {
            return self.pass(ctx, id);
        }
        if seq.beyond(receiver.acked) < granted {
            return self.challenge(ctx, id);
        }
        Verdict::Drop(DropReason::BadReset)
    }

    /// Whether both numbers of a segment can belong to the connection as it stands.
    pub(super) fn is_in_sequence(&self, ctx: &Context<impl Egress>, id: Id) -> bool {
        let flow = &self.table[id];
        let (sender, receiver) = (flow.endpoint(ctx.side), flow.endpoint(ctx.side.other()));
        let granted = flow.granted(ctx.side.other()).0;
        let end = ctx.segment.seq + flow.outward(ctx.side) + ctx.segment.seq_len();
        let (slack, hidden) = match (flow.is(FlowFlags::UNJUDGED), flow.is(FlowFlags::FRAGMENTED)) {
            // The box has not seen its scales.
            (true, _) => (FAR_BEHIND, FAR_BEHIND),
            (false, true) => (SLACK, SLACK),
            (false, false) => (SLACK, 0),
        };
        let ack = self.outer_ack(ctx.side, ctx.segment, id);
        let mut sent = receiver.next + hidden;
        // The client's numbers are the same on both sides, so the server may have got what came while no box was there. A server knows best what it
        // has got, and that is no more than it has granted.
        let may_know_more = ctx.side == Side::Lan && ctx.kind == Kind::Ack && flow.is(FlowFlags::PROXIED);
        if may_know_more
            && ack.after(sent)
            && !flow.is(FlowFlags::REDIRECTED)
            && !flow.has_finished(Side::Wan)
            && ctx.is_sound()
        {
            sent = SeqNum::new(SeqNum::later(sent.get(), (sender.acked + flow.granted(Side::Lan).0).get()));
        }
        is_near(end, receiver.acked, receiver.acked + (granted + slack)) && is_near(ack, sender.acked, sent)
    }

    /// The acknowledgement number of a segment as the WAN counts: the client's is that already, and the server's is of the client's own numbers, to
    /// which nothing is added but where the server has a key of its own.
    fn outer_ack(&self, side: Side, segment: &Segment, id: Id) -> SeqNum {
        match side {
            Side::Lan => segment.ack - self.table.client_deltas(id).0,
            Side::Wan => segment.ack,
        }
    }

    /// Follows a segment and passes it.
    pub(super) fn track_and_pass(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        let in_sequence = self.is_in_sequence(&ctx, id);
        ctx.egress.note(|| {
            let flow = &self.table[id];
            let (seq, receiver) = (ctx.segment.seq + flow.outward(ctx.side), flow.endpoint(ctx.side.other()));
            let (acked, next, granted) = (receiver.acked.get(), receiver.next.get(), flow.granted(ctx.side.other()).0);
            let judged = if in_sequence { "in sequence" } else { "out of sequence" };
            format!(
                "{judged}: seq {} (as the WAN counts), of which {acked} is acknowledged and {granted} more granted; ack {}, where {next} is next",
                seq.get(),
                self.outer_ack(ctx.side, ctx.segment, id).get()
            )
        });
        if in_sequence {
            if ctx.side == Side::Wan && self.table[id].is(FlowFlags::MSS_BROKEN) {
                self.tell_too_big(&mut ctx, id);
            }
            self.follow_path(&ctx, id);
            self.track(&ctx, id);
        } else if ctx.side == Side::Wan
            && self.table[id].is(FlowFlags::PROXIED)
            && !self.table[id].is(FlowFlags::UNJUDGED)
        {
            if is_damaged(&ctx) {
                return Verdict::Drop(DropReason::BadChecksum);
            }
            // It may belong to the new connection that these ends are opening.
            if self.table[id].is(FlowFlags::REOPENING) {
                return Verdict::Drop(DropReason::BadCookie);
            }
            // RFC 5961 section 5: blind data. What the server would answer, the client is answered.
            return self.challenge(ctx, id);
        }
        self.pass(ctx, id)
    }

    /// Keeps where a believable segment came from, and its tags: what the box sends to its end goes there, and has what its end's frames have.
    pub(super) fn follow_path(&mut self, ctx: &Context<impl Egress>, id: Id) {
        let envelope = ctx.envelope();
        let flow = &self.table[id];
        let answers = ctx.side != flow.client();
        let is_of_other_vlan = answers && envelope.tags.vlan() != flow.vlan();
        if !flow.is_on_path(ctx.side, &envelope) || answers && is_of_other_vlan != flow.has_other_vlan() {
            self.table.update(id, |flow| {
                flow.follow_path(ctx.side, &envelope);
                if answers {
                    flow.set_other_vlan(is_of_other_vlan);
                }
            });
        }
    }

    /// Notes what a believable segment says.
    pub(super) fn track(&mut self, ctx: &Context<impl Egress>, id: Id) {
        let (side, segment) = (ctx.side, ctx.segment);
        let ack = self.outer_ack(side, segment, id);
        let flow = &self.table[id];
        let state = flow.state();
        // Nothing comes after a FIN, whatever a damaged segment may claim.
        let other_finished = flow.has_finished(side.other());
        // A connection does not end by a flipped bit: FINs, and what acknowledges them, are examined.
        let ends = segment.flags.has(Flags::FIN) && !flow.has_finished(side) && is_new_fin(flow, side, segment, ack);
        // And while the box is about to send in an end's name, only what that end certainly sent counts.
        let speaks = matches!(state, State::AckWithheld | State::WindowPending);
        let disproves = state == State::Reset && flow.disproves_reset(side, ack);
        // The box also acknowledges a repeated SYN-ACK for the client, until the server shows that it knows the acknowledgement.
        let may_speak = side == Side::Wan && flow.is_all(&[FlowFlags::PROXIED, FlowFlags::WINDOW_UNSCALED]);
        // And it repeats what it has acknowledged itself, in the client's name, until the server has it.
        let repeats = self.gathered(id) != 0;
        let damaged = (speaks || may_speak || repeats || ends || other_finished || disproves) && is_damaged(ctx);
        if (speaks || may_speak || repeats) && damaged {
            return;
        }
        let believed = (ends || other_finished) && !damaged;
        let outlives = disproves && !damaged;
        if ends || other_finished || outlives || speaks && side == Side::Wan {
            self.follow_state(id, ctx.now, |flow| {
                follow(flow, ctx, ack, ends, believed);
                if outlives {
                    flow.outlive_reset();
                    return if repeats { State::Repeating } else { flow.state_by_fins() };
                }
                match flow.state_by_fins() {
                    // It ends by itself; and a handshake by the client's acknowledgement.
                    _ if matches!(state, State::Reset | State::SynReceived | State::Repeating) => state,
                    State::Established if speaks && side == Side::Lan => state,
                    next => next,
                }
            });
        } else {
            self.table.update(id, |flow| follow(flow, ctx, ack, false, false));
        }
        if outlives {
            self.counters.count(Event::ResetOutlived);
        }
        // While the box sends in an end's name, the timer is the one for that; and only a FIN repeated keeps TIME-WAIT up (RFC 9293 section 3.10.7.4).
        if self.table[id].is_in(state)
            && !speaks
            && state != State::Repeating
            && (state != State::TimeWait || segment.flags.has(Flags::FIN))
        {
            self.restart_timer(id, ctx.now);
        }
        if (side == Side::Lan || speaks) && self.table[id].held != 0 {
            self.release_held(id);
        }
        self.hand_down(id, ctx.now);
    }

    /// Translates a segment, if its flow is one of ours, and passes it.
    fn pass(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        if self.table[id].is(FlowFlags::PROXIED) {
            if !ecn::needs_no_change(&self.table[id], ctx.side, ctx.segment, ctx.head.bytes()) {
                if self.table.update(id, |flow| ecn::adapt(flow, ctx.side, ctx.segment, ctx.head)) {
                    self.counters.count(Event::EcnLent);
                }
                self.take_back_unfit(id);
            }
            self.projection(id).apply(ctx.side, ctx.segment, ctx.head, ts_clock(ctx.now));
            if self.table[id].is(FlowFlags::REDIRECTED) {
                self.readdress(id, ctx.side, ctx.segment, ctx.head);
            }
        }
        Verdict::Forward
    }

    /// How segments of a proxied flow are rewritten, as it stands.
    #[inline(always)]
    pub(super) fn projection(&self, id: Id) -> Projection {
        let flow = &self.table[id];
        let projection = Projection::of(flow, self.settings.profiles.get(flow.profile).sack_conflict);
        match self.table.redirected(id) {
            Some(redirect) => projection.redirected(redirect),
            None => projection,
        }
    }
}

/// Whether a FIN in sequence can be its sender's: behind what the receiver has acknowledged, and acknowledging about what its sender last did. An old
/// segment may lie much further behind and is still passed, so a forged one need not hit much.
fn is_new_fin(flow: &Flow, side: Side, segment: &Segment, ack: SeqNum) -> bool {
    let (sender, receiver) = (flow.endpoint(side), flow.endpoint(side.other()));
    let end = segment.seq + flow.outward(side) + segment.seq_len();
    // What its sender acknowledged behind the FIN may have overtaken it: no more than its window.
    let overtaken = flow.granted(side).0.max(SLACK);
    flow.is(FlowFlags::UNJUDGED) || end.after(receiver.acked) && !ack.before(sender.acked - overtaken)
}

/// Writes what a segment says into its flow's record: how far its sender has got, what it has acknowledged, its window and its clock. `ack` is its
/// acknowledgement number as the WAN counts; `ends` says that it brings its sender's FIN, `fins` that FINs and their acknowledgements are to be believed.
#[inline(always)]
fn follow<E>(flow: &mut Flow, ctx: &Context<E>, ack: SeqNum, ends: bool, fins: bool) {
    let (side, segment) = (ctx.side, ctx.segment);
    let (finished, other_finished) = (flow.has_finished(side), flow.has_finished(side.other()));
    let was_over = flow.is_over();
    let end = segment.seq + flow.outward(side) + segment.seq_len();
    flow.set_if(FlowFlags::FRAGMENTED, segment.fragmented);
    // The box's own segments bear and echo these clocks, which therefore must neither lag nor come from a damaged segment: small steps
    // are believed, others examined, and all where each segment bears our echo.
    let lends = flow.is(FlowFlags::TIMESTAMPS) && !flow.is(FlowFlags::TIMESTAMPS_LAN);
    let timestamps = if flow.is(FlowFlags::TIMESTAMPS) { Options::timestamps(ctx.options()) } else { None };
    let ts_delta = flow.ts_delta;
    // Where a FIN is, fragments hide.
    let settled = !flow.is(FlowFlags::FRAGMENTED);
    let other = flow.endpoint_mut(side.other());
    if ack.after(other.next) && !(other_finished && settled) && !is_damaged(ctx) {
        // What fragments hid has been sent all the same.
        other.next = ack;
    }
    let endpoint = flow.endpoint_mut(side);
    if end.after(endpoint.next) && segment.seq_len() > 0 && !(finished && settled) {
        endpoint.next = end;
    }
    if !ack.before(endpoint.acked) {
        endpoint.acked = ack;
        endpoint.window = segment.window;
        endpoint.ttl = segment.ttl;
        ecn::follow(flow, side, segment.flags);
        flow.set(FlowFlags::WINDOW_UNSCALED, flow.is(FlowFlags::WINDOW_UNSCALED) && side == Side::Wan);
    }
    let endpoint = flow.endpoint_mut(side);
    if let Some(timestamps) = timestamps {
        let value = if side == Side::Lan { ts_delta.shift(timestamps.value) } else { timestamps.value };
        let step = value.wrapping_sub(endpoint.ts_value);
        if step != 0 && step < 1 << 31 && ((step <= SMALL_STEP && !lends) || ctx.is_sound()) {
            endpoint.ts_value = value;
        }
    }
    if fins {
        if ends {
            flow.finish(side, end);
        }
        flow.note_fin_acked(side);
    }
    if side == Side::Wan {
        let answers = flow.is(FlowFlags::PROXIED) && ack.after(flow.outer_isn + 1);
        flow.set_if(FlowFlags::CARRIED, answers || segment.payload_len() > 0);
        flow.set(FlowFlags::SYN_CHALLENGED, false);
        if !was_over {
            flow.set(FlowFlags::REOPENING, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Endpoint, Flow};
    use crate::memory::tests::shared;
    use crate::proxy::test_segments::{TestSegment, key};
    use crate::proxy::tests::NoEgress;
    use crate::seq::{RawWindow, SeqDelta, WindowScale};
    use crate::wire::{Ace, put32};
    use crate::{Config, Metadata, PerSide, Secrets};
    use core::cell::RefCell;
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    fn proxy(now: Instant) -> Proxy {
        let config = Config { table_buckets: 4, learn_capacity: 64, syn_cache_max: 4, ..Config::default() };
        Proxy::new(&config, &Secrets::new([7; 48]), now)
    }

    /// The flags that are drawn; half of the cases have none that asks for the slow path.
    const FLAGS_DRAWN: [FlowFlags; 20] = [
        FlowFlags::PROXIED,
        FlowFlags::TIMESTAMPS,
        FlowFlags::TIMESTAMPS_LAN,
        FlowFlags::SACK,
        FlowFlags::SACK_LAN,
        FlowFlags::ECN,
        FlowFlags::ECN_LAN,
        FlowFlags::CARRIED,
        FlowFlags::UNJUDGED,
        FlowFlags::EARLY,
        FlowFlags::TIMESTAMPS_PRESUMED,
        FlowFlags::ECN_ASKED,
        FlowFlags::ACCURATE,
        FlowFlags::ACCURATE_LAN,
        // Of the slow path.
        FlowFlags::REOPENING,
        FlowFlags::FRAGMENTED,
        FlowFlags::WINDOW_UNSCALED,
        FlowFlags::ECHO_OWED,
        FlowFlags::SYN_CHALLENGED,
        FlowFlags::MSS_BROKEN,
    ];
    fn scale() -> impl Strategy<Value = Option<WindowScale>> {
        prop::option::of((0u8..=14).prop_map(WindowScale::clamped))
    }

    fn side() -> impl Strategy<Value = Side> {
        prop_oneof![Just(Side::Lan), Just(Side::Wan)]
    }

    /// How far a number is from where it should be.
    fn offset() -> impl Strategy<Value = u32> {
        prop_oneof![4 => Just(0u32), 4 => (0u32..3000).prop_map(u32::wrapping_neg), 2 => 0u32..3000, 1 => any::<u32>()]
    }

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        let endpoint = (any::<u32>(), offset(), any::<u32>(), any::<u16>(), scale(), scale());
        endpoint.prop_map(|(next, behind, ts_value, window, own, told)| {
            let mut endpoint = Endpoint::default();
            (endpoint.ts_value, endpoint.window, endpoint.ttl) = (ts_value, RawWindow(window), 60);
            (endpoint.next, endpoint.acked) = (SeqNum::new(next), SeqNum::new(next) + behind);
            endpoint.set_scales(own, told);
            endpoint
        })
    }

    const FINS: [FlowFlags; 4] =
        [FlowFlags::FIN_LAN, FlowFlags::FIN_WAN, FlowFlags::FIN_LAN_ACKED, FlowFlags::FIN_WAN_ACKED];

    /// A flow and the state it is in.
    fn flow() -> impl Strategy<Value = (Flow, State)> {
        let common =
            (prop::array::uniform12(any::<bool>()), prop_oneof![3 => Just([false; 2]), 1 => any::<[bool; 2]>()]);
        let unusual = prop_oneof![Just([false; 6]), prop::array::uniform6(prop::bool::weighted(0.1))];
        let state = prop_oneof![
            12 => Just(State::Established), 1 => Just(State::AckWithheld), 1 => Just(State::WindowPending),
            1 => Just(State::FinWait), 1 => Just(State::LastAck), 2 => Just(State::TimeWait), 2 => Just(State::Reset)
        ];
        let rest = (any::<u32>(), prop_oneof![Just(0), any::<u32>()], any::<u32>(), offset(), state);
        ([endpoint(), endpoint()], common, unusual, rest).prop_map(
            |([lan, wan], common, unusual, rest): ([Endpoint; 2], _, _, _)| {
                let mut flow = Flow::default();
                for (flag, on) in FLAGS_DRAWN.into_iter().zip(common.0.into_iter().chain(common.1).chain(unusual)) {
                    flow.set(flag, on);
                }
                (*flow.endpoint_mut(Side::Lan), *flow.endpoint_mut(Side::Wan)) = (lan, wan);
                // Each end has acknowledged about what the other has sent.
                flow.endpoint_mut(Side::Lan).acked = wan.next;
                flow.endpoint_mut(Side::Wan).acked = lan.next;
                flow.seq_delta = SeqDelta::between(0, rest.0);
                flow.ts_delta = SeqDelta::between(0, rest.1);
                (flow.outer_isn, flow.mss) = (SeqNum::new(rest.2), 1460);
                flow.ts_base = lan.ts_value.wrapping_add(rest.3);
                for side in Side::BOTH {
                    flow.set_ace(side, if rest.2 & 8 == 0 { Ace::FIRST } else { Ace(rest.2 as u8 & 7) });
                }
                // The FINs are those of the state.
                let finished: &[FlowFlags] = match rest.4 {
                    State::FinWait if rest.0 & 1 == 0 => &[FlowFlags::FIN_LAN],
                    State::FinWait => &[FlowFlags::FIN_WAN],
                    State::LastAck => &[FlowFlags::FIN_LAN, FlowFlags::FIN_WAN],
                    State::TimeWait => &FINS,
                    State::AckWithheld | State::WindowPending => &[FlowFlags::PROXIED],
                    _ => &[],
                };
                finished.iter().for_each(|&flag| flow.set(flag, true));
                (flow, rest.4)
            },
        )
    }

    fn said(
        flow: &Flow,
        from: (u32, u32, u32),
        side: Side,
        v6: bool,
        kind: (u16, u16, u8, bool),
        shape: (u8, usize),
    ) -> TestSegment {
        let (sender, receiver) = (flow.endpoint(side), flow.endpoint(side.other()));
        let outward = if flow.is(FlowFlags::PROXIED) { flow.outward(side) } else { SeqDelta::default() };
        let clock = sender.ts_value.wrapping_add(from.2);
        let clock = if side == Side::Lan { (-flow.ts_delta).shift(clock) } else { clock };
        let mut timestamps = vec![1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0];
        put32(&mut timestamps, 4, clock);
        put32(&mut timestamps, 8, if from.2.is_multiple_of(3) { 0 } else { receiver.ts_value });
        let options = match shape.0 {
            0..=5 => timestamps,
            6 | 7 => vec![],
            8 => [vec![1; 12], timestamps].concat(),
            9 => [timestamps, vec![1, 1, 5, 10, 1, 2, 3, 4, 5, 6, 7, 8]].concat(),
            10 => [&timestamps[2..], &[1, 1]].concat(),
            _ => vec![1; 12],
        };
        let seq = (SeqNum::new(receiver.acked.get().wrapping_add(from.0)) - outward).get();
        let ack = receiver.next.get().wrapping_add(from.1);
        let (flags, window, ecn, damaged) = kind;
        TestSegment {
            side,
            v6,
            client: key(v6).wan[3],
            lan_port: key(v6).lan_port,
            seq,
            ack,
            flags,
            reserved: window as u8 & 7,
            window,
            ecn,
            options,
            payload: shape.1,
            damaged,
        }
    }

    /// The engine with this flow alone, and its place.
    fn enter(proxy: &mut Proxy, (flow, state): &(Flow, State), v6: bool, now: Instant) -> Id {
        let key = key(v6);
        let hash = key.hash(proxy.settings.hash_keys);
        let id = proxy.admit(&key, hash, Side::Wan, State::Established, now, |_| ()).expect("an empty table has room");
        proxy.table.overwrite(id, *state, |entered| {
            entered.mss = flow.mss;
            (entered.seq_delta, entered.ts_delta) = (flow.seq_delta, flow.ts_delta);
            (entered.outer_isn, entered.ts_base) = (flow.outer_isn, flow.ts_base);
            for flag in FLAGS_DRAWN.into_iter().chain(FINS) {
                entered.set(flag, flow.is(flag));
            }
            for side in Side::BOTH {
                *entered.endpoint_mut(side) = *flow.endpoint(side);
                entered.set_ace(side, flow.ace(side));
            }
        });
        id
    }

    #[test]
    fn the_fast_path_of_a_segment_leads_where_the_slow_path_does() {
        let now = Instant::from_secs(1000);
        let (one, other) = (RefCell::new(proxy(now)), RefCell::new(proxy(now)));
        for proxy in [&one, &other] {
            proxy.borrow_mut().hand_down_in(shared(Proxy::words_to_hand_down(8), || 0));
        }
        let handed_down = RefCell::new(0);
        let taken = RefCell::new(PerSide::<u32>::default());
        let flags = prop_oneof![6 => Just(0x10u16), 3 => Just(0x158u16), 1 => 0u16..0x200];
        let ecn = prop_oneof![4 => Just(0u8), 1 => 0u8..4];
        let strategy = (
            flow(),
            (offset(), offset(), prop_oneof![4 => 0u32..20, 1 => any::<u32>()]),
            side(),
            any::<bool>(),
            (flags, any::<u16>(), ecn, prop::bool::weighted(0.1)),
            (0u8..12, prop_oneof![Just(0usize), 1usize..300]),
            0u32..100_000,
        );
        let mut runner = TestRunner::new(ProptestConfig::with_cases(4000));
        let run = runner.run(&strategy, |(flow, from, side, v6, kind, shape, later)| {
            let (mut one, mut other) = (one.borrow_mut(), other.borrow_mut());
            let said = said(&flow.0, from, side, v6, kind, shape);
            let ids = (enter(&mut one, &flow, v6, now), enter(&mut other, &flow, v6, now));
            prop_assert_eq!(one.table[ids.0], other.table[ids.1]);
            let moment = now + core::time::Duration::from_millis(later.into());
            let (frame, mut metas) = (said.frame(), [Metadata::default(); 2]);
            // Room in front and behind, as a port leaves it.
            let roomy = || [&[0; 64], &frame[..], &[0; 192]].concat();
            let mut buffers = [roomy(), roomy()];
            let mut heads = buffers.each_mut().map(|buffer| Head::new(buffer, 64, frame.len(), frame.len()));
            one.parse(side, &heads[0], &mut metas[0]);
            one.prefetch(&mut metas[0]);
            let crate::wire::Parsed::Tcp(segment) = metas[0].parsed else { panic!("{said:?} is a segment") };
            metas[1] = metas[0];

            // The short way of a translation leads where the long one does too, whatever the flow's state.
            let sack_conflict = one.settings.policy.profiles()[0].sack_conflict;
            let mut copies = [roomy(), roomy()];
            let [mut short, mut long] = copies.each_mut().map(|copy| Head::new(copy, 64, frame.len(), frame.len()));
            let projection = Projection::of(&one.table[ids.0], sack_conflict);
            projection.apply(side, &segment, &mut short, ts_clock(moment));
            projection.apply_any(side, &segment, &mut long, ts_clock(moment));
            prop_assert_eq!(short.bytes(), long.bytes(), "{:?}", said);

            let common = one.on_frame(side, &metas[0], &mut heads[0], moment, &mut NoEgress);
            let found = other.table.find(&segment.key, metas[1].hash);
            let general = other.on_segment(side, &segment, &metas[1], found, &mut heads[1], moment, &mut NoEgress);
            let general = other.conclude(side, &segment.key, None, general);
            prop_assert_eq!(common, general, "{:?}", said);
            prop_assert_eq!(heads[0].bytes(), heads[1].bytes(), "{:?}", said);
            prop_assert_eq!(&one.counters, &other.counters);
            prop_assert_eq!(one.population(), other.population());
            prop_assert_eq!(one.next_deadline(), other.next_deadline());
            let remains = (one.table.find(&segment.key, metas[0].hash), other.table.find(&segment.key, metas[0].hash));
            prop_assert_eq!(remains.0.map(|id| one.table[id]), remains.1.map(|id| other.table[id]));
            let is_down = remains.0.is_some_and(|id| one.table[id].is_in(State::HandedDown));
            *handed_down.borrow_mut() += u32::from(is_down);
            if let (Some(a), Some(b)) = remains {
                one.forget(a);
                other.forget(b);
            }

            // How often a segment takes the fast path at all. Both engines have seen the same then.
            for proxy in [&mut one, &mut other] {
                let id = enter(proxy, &flow, v6, now);
                let mut buffer = frame.clone();
                let passed = segment.flags.go_on()
                    && proxy.forward_fast(side, &segment, id, &mut Head::whole(&mut buffer, frame.len()), moment);
                taken.borrow_mut()[side] += u32::from(passed);
                if !passed {
                    prop_assert_eq!(&buffer, &frame, "what is refused has not changed");
                }
                proxy.forget(id);
            }
            Ok(())
        });
        run.unwrap_or_else(|failure| panic!("{failure}"));
        assert!(*handed_down.borrow() > 40, "hardly any flow goes down: {handed_down:?}");
        for side in Side::BOTH {
            assert!(taken.borrow()[side] > 80, "hardly any segment takes the fast path: {:?}", taken.borrow());
        }
    }
}
