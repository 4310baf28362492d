//! The engine between the ports: the proxy, or a bypass.

use super::commands::{Answer, Command};
use super::frame_buffer::FrameBuffer;
use std::iter;
use std::sync::Arc;
use tcpstate::{
    Adopted, Counters, Directive, Egress, Event, Forwarded, Head, Instant, Metadata, NameQuestion, Population, Proxy,
    ServerUpdate, Side, Source, Target, TargetCounts, Ticket, Verdict,
};

/// What a worker calls for its frames; see [`Proxy`], whose methods these are.
///
/// For each batch the worker calls [`parse`](Engine::parse) for every frame, then [`prefetch`](Engine::prefetch) for every frame, then
/// [`on_frame`](Engine::on_frame) for every frame, and after each of these [`next_release`](Engine::next_release) until it returns `None`.
/// Once an iteration it calls [`on_timeout`](Engine::on_timeout), [`updates`](Engine::updates) and [`next_proved`](Engine::next_proved).
///
/// A worker is compiled for its engine, so the choice costs nothing per frame.
pub trait Engine {
    /// First pass over a batch: parses and hashes a frame, and prefetches the line of the index.
    fn parse(&self, side: Side, head: &Head<'_>, meta: &mut Metadata);

    /// Between the passes: prefetches the lines of the flow.
    fn prefetch(&self, meta: &mut Metadata);

    /// Second pass: decides what happens to the frame.
    fn on_frame(
        &mut self,
        side: Side,
        meta: &Metadata,
        head: &mut Head<'_>,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict;

    /// Frames held at most; the index of every ticket is smaller. The three methods below serve an engine that holds frames.
    fn held_frames(&self) -> usize {
        0
    }

    /// The next held frame to release; to be called after every frame and every time-out, until none is left.
    #[inline]
    fn next_release(&mut self) -> Option<Ticket> {
        None
    }

    /// Ends a ticket: decides what happens to the frame that was held, which came from the WAN. Never [`Verdict::Hold`].
    fn on_release(&mut self, _: Ticket, _: &mut Head<'_>, _: Instant, _: &mut impl Egress) -> Verdict {
        Verdict::Forward
    }

    /// Ends a ticket whose frame was not held.
    fn void(&mut self, _: Ticket) {}

    /// Does a bounded part of the work that is due; true when more is.
    fn on_timeout(&mut self, now: Instant, egress: &mut impl Egress) -> bool;

    /// When [`Engine::on_timeout`] may next have work to do.
    fn next_deadline(&self) -> Option<Instant>;

    /// A source that has proved itself, each time it does; to be called once an iteration, until none is left.
    #[inline]
    fn next_proved(&mut self) -> Option<Source> {
        None
    }

    /// What it has learned that other engines need; to be called once an iteration.
    #[inline]
    fn updates(&mut self) -> impl Iterator<Item = ServerUpdate> {
        iter::empty()
    }

    /// Names that are to be looked up; to be called once an iteration. The answers come as commands.
    #[inline]
    fn questions(&mut self) -> impl Iterator<Item = NameQuestion> {
        iter::empty()
    }

    /// Applies what another engine has learned.
    fn receive_update(&mut self, _: &ServerUpdate, _: Instant) {}

    /// What has a mode of its own; see [`Proxy::targets`].
    fn targets(&self) -> Option<&Arc<[Target]>> {
        None
    }

    /// What the mode of a target depends on, as far as it has counted that.
    fn target_counts(&self, _: u32) -> TargetCounts {
        TargetCounts::default()
    }

    /// Has a target in mode `auto` pass SYNs, or answer them.
    fn direct(&mut self, _: u32, _: &Directive, _: Instant) {}

    /// The next target that has stopped to pass SYNs by itself; to be called once an iteration, until none is left.
    #[inline]
    fn next_alarm(&mut self) -> Option<u32> {
        None
    }

    /// Frames have passed without this worker for a while.
    fn was_bypassed(&mut self, _: Instant) {}

    /// How many flows the map does not hold that a program of the kernel asks while no worker decides.
    fn unpublished_flows(&self) -> u64 {
        0
    }

    /// Whether the worker is to watch what leaves, with [`Engine::watch_leaving`].
    #[inline]
    fn awaits_leaving(&self) -> bool {
        false
    }

    /// The worker watches whether what was to leave by this side's port so far has left it.
    fn watch_leaving(&mut self, _: Side) {}

    /// What was watched at this side's port has left it, or is lost.
    fn has_left(&mut self, _: Side) {}

    /// Whether the worker is to look for an instant at which nothing is on its way to it, for [`Engine::has_arrived`].
    #[inline]
    fn awaits_arrival(&self) -> bool {
        false
    }

    /// Whatever has come to this side's port until now the worker has received, and is going to process in this iteration.
    fn has_arrived(&mut self, _: Side) {}

    /// When the kernel forwarded the segment before the last frame, if it has handed this one up. To be asked after every frame.
    #[inline]
    fn forwarded_before(&mut self) -> Option<Instant> {
        None
    }

    /// Whether a program of the kernel forwards connections by itself.
    #[inline]
    fn hands_down(&self) -> bool {
        false
    }

    /// Tells what that program has forwarded since it was told last; see [`Proxy::tell_forwarded`].
    fn tell_forwarded(&mut self, _: u32, _: impl FnMut(Forwarded)) -> Option<u32> {
        None
    }

    /// From now on no program of the kernel answers SYNs for it.
    fn unshare_syns(&mut self) {}

    /// SYNs from the WAN that it has processed, whatever the verdict.
    fn syns(&self) -> u64 {
        self.counters().happened(Event::WanSyn)
    }

    /// Executes a command, in the time of an iteration.
    fn execute(&mut self, _: Command, _: Instant) -> Answer {
        Answer::Done
    }

    /// What has been counted.
    fn counters(&self) -> &Counters;

    /// How many flows there are.
    fn population(&self) -> Population;

    /// What became of the flows that a former process has left.
    fn adopted(&self) -> Adopted {
        Adopted::default()
    }

    /// How many flows there can be, and how many of these in the SYN cache.
    fn capacity(&self) -> (u64, u64) {
        (0, 0)
    }
}

impl Engine for Proxy {
    #[inline]
    fn awaits_leaving(&self) -> bool {
        Proxy::awaits_leaving(self)
    }

    fn watch_leaving(&mut self, by: Side) {
        Proxy::watch_leaving(self, by);
    }

    fn has_left(&mut self, by: Side) {
        Proxy::has_left(self, by);
    }

    #[inline]
    fn awaits_arrival(&self) -> bool {
        Proxy::awaits_arrival(self)
    }

    fn has_arrived(&mut self, side: Side) {
        Proxy::has_arrived(self, side);
    }

    #[inline]
    fn forwarded_before(&mut self) -> Option<Instant> {
        Proxy::forwarded_before(self)
    }

    #[inline]
    fn hands_down(&self) -> bool {
        Proxy::hands_down(self)
    }

    fn tell_forwarded(&mut self, cursor: u32, tell: impl FnMut(Forwarded)) -> Option<u32> {
        Proxy::tell_forwarded(self, cursor, tell)
    }

    #[inline]
    fn parse(&self, side: Side, head: &Head<'_>, meta: &mut Metadata) {
        Proxy::parse(self, side, head, meta);
    }

    #[inline]
    fn prefetch(&self, meta: &mut Metadata) {
        Proxy::prefetch(self, meta);
    }

    #[inline]
    fn on_frame(
        &mut self,
        side: Side,
        meta: &Metadata,
        head: &mut Head<'_>,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict {
        Proxy::on_frame(self, side, meta, head, now, egress)
    }

    fn held_frames(&self) -> usize {
        Proxy::held_frames(self)
    }

    #[inline]
    fn next_release(&mut self) -> Option<Ticket> {
        Proxy::next_release(self)
    }

    fn on_release(&mut self, ticket: Ticket, head: &mut Head<'_>, now: Instant, egress: &mut impl Egress) -> Verdict {
        Proxy::on_release(self, ticket, head, now, egress)
    }

    fn void(&mut self, ticket: Ticket) {
        Proxy::void(self, ticket);
    }

    #[inline]
    fn next_proved(&mut self) -> Option<Source> {
        Proxy::next_proved(self)
    }

    #[inline]
    fn updates(&mut self) -> impl Iterator<Item = ServerUpdate> {
        Proxy::updates(self)
    }

    #[inline]
    fn questions(&mut self) -> impl Iterator<Item = NameQuestion> {
        Proxy::questions(self)
    }

    fn receive_update(&mut self, update: &ServerUpdate, now: Instant) {
        Proxy::receive_update(self, update, now);
    }

    fn on_timeout(&mut self, now: Instant, egress: &mut impl Egress) -> bool {
        Proxy::on_timeout(self, now, egress)
    }

    fn next_deadline(&self) -> Option<Instant> {
        Proxy::next_deadline(self)
    }

    fn execute(&mut self, command: Command, now: Instant) -> Answer {
        match command {
            // The worker's own.
            Command::Resolved(answer) => self.resolved(&answer, now),
            Command::Ping | Command::Top | Command::SetOptions { .. } => {}
            Command::List { from, filter } => {
                let mut connections = Vec::with_capacity(Proxy::LISTED);
                let next = self.list(from, &filter, now, |connection| connections.push(connection));
                return Answer::Listed(connections, next);
            }
            Command::Explain { side, frame } => {
                return Answer::Excerpt(Box::new(self.excerpt(side, &FrameBuffer::new(&frame).head())));
            }
            Command::Services => return Answer::Services(self.service_status()),
            Command::DrainServer { address, port, drained } => {
                return if self.drain_server(&address, port, drained) { Answer::Done } else { Answer::NoServer };
            }
            Command::ServerTable(servers) => return Answer::Former(self.command(servers)),
            Command::SetPolicy(policy) => return Answer::FormerPolicy(self.set_policy(policy, now)),
            Command::SetLists(lists) => return Answer::FormerLists(self.set_lists(lists)),
            Command::ResetBlocked => self.reset_blocked(),
            Command::Drain(draining) => self.drain(draining),
            Command::Rotate(rotation) => self.rotate(&rotation, now),
            Command::SetCookieClock(clock) => self.set_cookie_clock(clock, now),
        }
        Answer::Done
    }

    fn adopted(&self) -> Adopted {
        Proxy::adopted(self)
    }

    fn targets(&self) -> Option<&Arc<[Target]>> {
        Some(Proxy::targets(self))
    }

    fn target_counts(&self, target: u32) -> TargetCounts {
        Proxy::target_counts(self, target)
    }

    fn direct(&mut self, target: u32, directive: &Directive, now: Instant) {
        Proxy::direct(self, target, directive, now);
    }

    #[inline]
    fn next_alarm(&mut self) -> Option<u32> {
        Proxy::next_alarm(self)
    }

    fn was_bypassed(&mut self, now: Instant) {
        Proxy::was_bypassed(self, now);
    }

    fn unpublished_flows(&self) -> u64 {
        Proxy::unpublished_flows(self)
    }

    fn unshare_syns(&mut self) {
        Proxy::unshare_syns(self);
    }

    fn syns(&self) -> u64 {
        // Those that the kernel answered cost a worker nothing.
        let counters = Proxy::counters(self);
        counters.happened(Event::WanSyn) - counters.happened(Event::KernelAnswered)
    }

    fn counters(&self) -> &Counters {
        Proxy::counters(self)
    }

    fn population(&self) -> Population {
        Proxy::population(self)
    }

    fn capacity(&self) -> (u64, u64) {
        Proxy::capacity(self)
    }
}

/// Forwards every frame without parsing it: a wire, and the measure of what ports and worker cost without the proxy.
#[derive(Default)]
pub struct Bypass {
    counters: Counters,
}

impl Engine for Bypass {
    #[inline]
    fn parse(&self, _: Side, _: &Head<'_>, _: &mut Metadata) {}

    #[inline]
    fn prefetch(&self, _: &mut Metadata) {}

    #[inline]
    fn on_frame(&mut self, _: Side, _: &Metadata, _: &mut Head<'_>, _: Instant, _: &mut impl Egress) -> Verdict {
        Verdict::Forward
    }

    fn on_timeout(&mut self, _: Instant, _: &mut impl Egress) -> bool {
        false
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn population(&self) -> Population {
        Population::default()
    }
}
