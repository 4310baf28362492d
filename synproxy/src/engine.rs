//! What stands between the ports: the proxy, or nothing at all.

use crate::mail::{Answer, Order};
use crate::view::Held;
use std::iter;
use tcpstate::{
    Counters, DropReason, Egress, Event, Head, Instant, Metadata, Population, Proxy, ServerUpdate, Side, Source,
    Ticket, Verdict,
};

/// What a worker asks about its frames; see [`Proxy`], whose methods these are.
///
/// A worker is compiled for its engine, so the choice costs nothing per frame.
pub trait Engine {
    /// First pass over a batch: parse, hash, ask for the line of the table.
    fn parse(&self, side: Side, head: &Head<'_>, meta: &mut Metadata);

    /// Between the passes: ask for the flow's lines.
    fn prefetch(&self, meta: &mut Metadata);

    /// Second pass: what becomes of the frame.
    fn on_frame(
        &mut self,
        side: Side,
        meta: &Metadata,
        head: &mut Head<'_>,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict;

    /// Frames held at most; every ticket's index is below. The other three are for an engine that ever holds one.
    fn held_frames(&self) -> usize {
        0
    }

    /// The next held frame to bring back; to be asked for after every frame and every time-out, until none is left.
    #[inline]
    fn next_release(&mut self) -> Option<Ticket> {
        None
    }

    /// Ends a ticket: what becomes of the frame that was held, which came from the WAN. Never [`Verdict::Hold`].
    fn on_release(&mut self, _: Ticket, _: &mut Head<'_>, _: Instant, _: &mut impl Egress) -> Verdict {
        Verdict::Forward
    }

    /// Ends a ticket in whose name no frame was kept.
    fn void(&mut self, _: Ticket) {}

    /// Does a bounded share of what is due; true when more is.
    fn on_timeout(&mut self, now: Instant, egress: &mut impl Egress) -> bool;

    /// When [`Engine::on_timeout`] may next have something to do.
    fn next_deadline(&self) -> Option<Instant>;

    /// A source that has proved itself, each time it does; to be asked for once a turn, until none is left.
    #[inline]
    fn next_proved(&mut self) -> Option<Source> {
        None
    }

    /// What it has learned that others want to know; to be asked for once a turn.
    #[inline]
    fn updates(&mut self) -> impl Iterator<Item = ServerUpdate> {
        iter::empty()
    }

    /// Takes what another engine has learned for its own.
    fn receive_update(&mut self, _: &ServerUpdate, _: Instant) {}

    /// Calls from the WAN that it dealt with, however.
    fn calls(&self) -> u64 {
        let counters = self.counters();
        counters.happened(Event::SynAnswered)
            + counters.happened(Event::ClosedPort)
            + counters.dropped(DropReason::RateLimited)
            + counters.dropped(DropReason::BadAddress)
    }

    /// Does what the operator asks, in a turn's time.
    fn obey(&mut self, _: Order, _: Instant) -> Answer {
        Answer::Done
    }

    /// What has been counted.
    fn counters(&self) -> &Counters;

    /// How many flows there are.
    fn population(&self) -> Population;
}

impl Engine for Proxy {
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

    fn receive_update(&mut self, news: &ServerUpdate, now: Instant) {
        Proxy::receive_update(self, news, now);
    }

    fn on_timeout(&mut self, now: Instant, egress: &mut impl Egress) -> bool {
        Proxy::on_timeout(self, now, egress)
    }

    fn next_deadline(&self) -> Option<Instant> {
        Proxy::next_deadline(self)
    }

    fn obey(&mut self, order: Order, now: Instant) -> Answer {
        match order {
            Order::Hello | Order::Talk => {}
            Order::List { from, filter } => {
                let mut connections = Vec::with_capacity(Proxy::LISTED);
                let next = self.list(from, &filter, now, |connection| connections.push(connection));
                return Answer::Listed(connections, next);
            }
            Order::Explain { side, frame } => {
                return Answer::Excerpt(Box::new(self.excerpt(side, &Held::new(&frame).head())));
            }
            Order::ServerTable(backends) => return Answer::Former(self.command(backends)),
            Order::Drain(draining) => self.drain(draining),
            Order::Rotate(rotation) => self.rotate(&rotation, now),
        }
        Answer::Done
    }

    fn counters(&self) -> &Counters {
        Proxy::counters(self)
    }

    fn population(&self) -> Population {
        Proxy::population(self)
    }
}

/// Forwards everything unseen: a wire, and the measure of what ports and worker cost without the proxy.
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
