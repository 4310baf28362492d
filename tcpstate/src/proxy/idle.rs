//! Which connection gives way when the table is full and nothing in it is over.
//!
//! The engine inspects a few connections a decision, in an order that leads through the whole table and that no client can choose, and gives up the one of
//! them that can best be spared. None that is young or moving data is given up. Of the others those go first that have carried little, and among those
//! the ones of the network and the destination that hold most of the table with such connections ([`Shares`]); then those that were idle longest.
//!
//! A network that holds more than its part of the table gets none of its last eighth, whatever is in that: entries of the SYN cache and flows that are over
//! keep it for the others. It gets places of its own and of networks that hold as much, while a third of what is inspected could be spared, and places of
//! no others. So who comes with many connections cannot drive out those who come with few, nor take every place that becomes free before they do; and for
//! those who come with few it may lose connections that only rest. What comes without a proof gets no place of who proved itself, but of networks that hold
//! more than their part; as only a sixteenth of the table can be held so, it leaves half of the last eighth.

use std::collections::VecDeque;

use super::Proxy;
use super::candidates::{HALF_OPEN_GRACE, Kind};
use crate::cache::shares::{Holder, Sample, Share, Shares};
use crate::flow::table::wheel::{SECOND, Ticks, tick};
use crate::flow::table::{Id, Table};
use crate::flow::{Flow, FlowFlags, Snapshot, State};
use crate::keyed::Keys;
use crate::wire::FlowKey;
use crate::{Event, Instant, Side};

/// Connections inspected at once, and of those that are inspected again.
const INSPECTED: usize = 12;
const INSPECTED_AGAIN: usize = 4;
/// How often so many are inspected for one decision, until one is found that is over, or of a network that holds more than its part.
const ROUNDS: usize = 3;
/// The part of those inspected that must be such, for a network that holds more than its part to get a place of one.
const SPARED: u32 = 3;
/// Connections inspected with each new one while the table is nearly full, so that it is known who holds it when it is full.
const INSPECTED_BEFORE: usize = 2;
/// Connections to inspect again that are remembered.
const REMEMBERED: usize = 1024;

/// For so long without a segment a connection rests.
const REST: Ticks = SECOND;
/// For so long without data a connection that has carried little is idle.
const IDLE: Ticks = 4 * SECOND;
/// For so long one that has carried more.
const LONG_IDLE: Ticks = 30 * SECOND;
/// A connection that has carried fewer bytes has carried little,
const LITTLE: u32 = 4096;
/// and so has one that has carried fewer bytes a second since it began.
const LITTLE_RATE: u32 = 1024;
/// Bytes a second by which a connection moves data.
const TRICKLE: u32 = 2;
/// So few that a connection cannot have moved data in the last seconds, however long ago it was inspected last.
const FEW: u32 = TRICKLE * (IDLE / SECOND);
/// Seconds after which what happened since the last inspection says nothing of the last seconds.
const OUTDATED: u32 = 12;

/// Whom the engine inspects next, and what it knows of who holds the table.
pub(crate) struct Inspection {
    shares: Shares,
    /// Seven eighths of the table.
    almost_all: u64,
    order: Order,
    /// How many are inspected at once: each flow once at most.
    at_once: usize,
    /// Connections that had moved some data since their last inspection, which was long ago: to be inspected again after [`IDLE`], and since when.
    again: VecDeque<(Id, u16, Ticks)>,
}

/// An order of places.
enum Order {
    /// Every place of a table, again and again: each is `stride` behind the former one, on a circle.
    Walk { at: u32, stride: u32 },
    /// These places once: those of an excerpt.
    Listed(VecDeque<Id>),
}

impl Inspection {
    /// Of a table of `flows`, which is empty.
    pub(crate) fn new(keys: Keys, flows: usize) -> Self {
        let stride = stride(flows);
        let again = VecDeque::with_capacity(REMEMBERED.min(flows));
        let order = Order::Walk { at: 0, stride };
        let almost_all = (flows - flows / 8) as u64;
        Self { shares: Shares::new(keys, flows), almost_all, order, at_once: INSPECTED.min(flows), again }
    }

    /// The next to be inspected.
    fn next(&mut self, table: &Table) -> Option<Id> {
        match &mut self.order {
            Order::Walk { at, stride } => {
                let place = *at;
                *at = ((u64::from(place) + u64::from(*stride)) % table.capacity() as u64) as u32;
                Some(table.at(place))
            }
            Order::Listed(places) => places.pop_front(),
        }
    }

    fn inspect_again(&mut self, id: Id, generation: u16, now: Ticks) {
        if self.again.len() == self.again.capacity() {
            self.again.pop_front();
        }
        self.again.push_back((id, generation, now));
    }

    /// Those that the next decision would inspect.
    pub(crate) fn next_in(&self, table: &Table) -> Vec<Id> {
        let Order::Walk { at, stride } = self.order else { return Vec::new() };
        let place = |n: usize| (u64::from(at) + n as u64 * u64::from(stride)) % table.capacity() as u64;
        let walk = (0..INSPECTED_BEFORE + ROUNDS * self.at_once).map(|n| table.at(place(n) as u32));
        self.again.iter().take(INSPECTED_AGAIN).map(|entry| entry.0).chain(walk).collect()
    }

    /// The same for an excerpt of the table, in which each flow is elsewhere.
    pub(crate) fn excerpt(&self, table: &Table, place: impl Fn(Id) -> Id) -> Self {
        let next = self.next_in(table);
        let again = self.again.iter().take(INSPECTED_AGAIN);
        let again: VecDeque<_> = again.map(|&(id, generation, since)| (place(id), generation, since)).collect();
        let listed = next[again.len()..].iter().map(|&id| place(id)).collect();
        let (shares, order) = (self.shares.clone(), Order::Listed(listed));
        Self { shares, almost_all: self.almost_all, order, at_once: self.at_once, again }
    }

    /// That of an excerpt of a table that is not nearly full: nothing is inspected.
    pub(crate) fn none() -> Self {
        Self {
            shares: Shares::new((0, 0), 1),
            almost_all: u64::MAX,
            order: Order::Listed(VecDeque::new()),
            at_once: 0,
            again: VecDeque::new(),
        }
    }
}

/// A stride that leads to each of `places` once before any comes again, and from one to the next far away, so that flows that were entered together are
/// not inspected together.
fn stride(places: usize) -> u32 {
    let divides = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a > 1
    };
    let golden = (places as u64 * 618 / 1000).max(1) as usize;
    (golden..).find(|&stride| !divides(stride, places)).expect("a number that is one above a multiple") as u32
}

/// Who opens a connection.
#[derive(Clone, Copy)]
pub(crate) enum Opener<'a> {
    /// A host of the LAN.
    Lan,
    /// A client of the WAN, of the connection with this key, that has proved itself.
    Proved(&'a FlowKey),
    /// One that has not.
    Unproved(&'a FlowKey),
}

/// What who opens a connection may claim.
#[derive(Clone, Copy)]
pub(crate) struct Claim {
    share: Share,
    is_proved: bool,
}

impl Claim {
    /// That of any newcomer to the place of a flow that is over.
    pub(crate) const ANY: Claim = Claim { share: Share { rank: 0, is_exceeded: false }, is_proved: true };

    /// Whether it gets places of its own only, and of those who hold as much, and none of the last eighth of the table.
    pub(crate) fn is_limited(self) -> bool {
        self.share.is_exceeded
    }

    /// Whether a connection must give way to it.
    fn displaces(self, one: &Candidate) -> bool {
        match (self, one.class) {
            (Claim { share: own, .. }, Class::Over) => !own.is_exceeded || one.share.rank >= own.rank,
            (Claim { share: own, .. }, Class::Resting) if own.is_exceeded => false,
            (Claim { is_proved: false, .. }, _) => one.share.is_exceeded,
            (Claim { share: own, .. }, _) => !own.is_exceeded || one.share.rank >= own.rank,
        }
    }
}

/// In which order connections give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// It is over.
    Over,
    /// It has carried little.
    Little,
    /// The same, not idle yet, of a network that holds more than its part.
    Resting,
    /// It has carried more, or the LAN has opened it.
    Much,
}

/// A connection that may give way.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) id: Id,
    class: Class,
    share: Share,
    is_silent: bool,
    idle: Ticks,
    /// What is counted if it does.
    pub(crate) event: Event,
}

impl Candidate {
    fn goes_before(&self, other: &Candidate) -> bool {
        // What is false sorts before what is true.
        let order = |it: &Self| (it.class, core::cmp::Reverse((it.share.rank, it.is_silent, it.idle)));
        order(self) < order(other)
    }
}

/// Whether a connection can be spared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Idle {
    /// No data, or no segment, for so long.
    For(Ticks),
    /// Hardly any data.
    Slow,
    /// It cannot, or not yet.
    No,
}

impl Proxy {
    /// Inspects a few connections of a table that is nearly full, or more of them for who may get none of its last places, so that nobody takes those before
    /// it is known who holds the others: whether the opener gets one of them.
    #[inline(never)]
    pub(crate) fn inspect_some(&mut self, opener: Opener, now: Instant) -> bool {
        // While most flows are over, who comes is let in without further questions.
        let may_be_crowded = self.table.is_almost_full() && 2 * self.living() >= self.inspection.almost_all;
        let is_limited = may_be_crowded && self.claim(opener).is_limited();
        for _ in 0..if is_limited { self.inspection.at_once } else { INSPECTED_BEFORE } {
            let Some(id) = self.inspection.next(&self.table) else { continue };
            if Kind::of(&self.table[id]) == Some(Kind::Closing) {
                self.inspection.shares.note(Sample::Over);
            } else {
                self.sample(id, now);
                self.inspect(id, now);
            }
        }
        !is_limited || self.living() < self.inspection.almost_all
    }

    /// What who opens a connection may claim.
    pub(crate) fn claim(&self, opener: Opener) -> Claim {
        match opener {
            Opener::Lan => Claim::ANY,
            Opener::Proved(key) => Claim { share: self.share(key), is_proved: true },
            Opener::Unproved(key) => Claim { share: self.share(key), is_proved: false },
        }
    }

    /// How many connections are not over, as an estimate.
    fn living(&self) -> u64 {
        let population = self.table.population();
        self.inspection.shares.living(population.proxied + population.passthrough)
    }

    /// What the networks of a connection's client, and its server, hold.
    fn share(&self, key: &FlowKey) -> Share {
        self.inspection.shares.share(&self.inspection.shares.holder(&key.wan, &key.lan, key.v6))
    }

    /// The connection that can best be spared for the opener's, of those that are inspected now.
    #[inline(never)]
    pub(crate) fn find_idle(&mut self, opener: Opener, now: Instant) -> Option<Candidate> {
        let mut again = [(); INSPECTED_AGAIN].map(|()| self.next_again(now));
        let mut best: Option<Candidate> = None;
        for _ in 0..ROUNDS {
            let mut inspected = [None; INSPECTED + INSPECTED_AGAIN];
            inspected[..INSPECTED_AGAIN].copy_from_slice(&core::mem::take(&mut again));
            for place in inspected[INSPECTED_AGAIN..].iter_mut().take(self.inspection.at_once) {
                *place = self.inspection.next(&self.table);
            }
            if let Some(candidate) = self.find_idle_among(&inspected, opener, now)
                && best.is_none_or(|best| candidate.goes_before(&best))
            {
                best = Some(candidate);
            }
            let is_good = best.is_some_and(|best| best.class == Class::Over || best.share.is_exceeded);
            if is_good || self.claim(opener).is_limited() {
                break;
            }
        }
        best
    }

    /// The same among these.
    fn find_idle_among(&mut self, inspected: &[Option<Id>], opener: Opener, now: Instant) -> Option<Candidate> {
        // One after the other they would cost a cache miss each.
        inspected.iter().flatten().for_each(|&id| self.table.prefetch(id));
        inspected.iter().flatten().for_each(|&id| self.sample(id, now));
        let claim = self.claim(opener);
        let (mut best, mut spared, mut all) = (None::<Candidate>, 0, 0);
        for &id in inspected.iter().flatten() {
            all += u32::from(!self.table[id].is_in(State::Free));
            let Some(candidate) = self.inspect(id, now).filter(|one| claim.displaces(one)) else { continue };
            spared += 1;
            if best.is_none_or(|best| candidate.goes_before(&best)) {
                best = Some(candidate);
            }
        }
        best.filter(|best| best.class == Class::Over || !claim.is_limited() || SPARED * spared >= all)
    }

    /// The next that is to be inspected again, if it is time.
    fn next_again(&mut self, now: Instant) -> Option<Id> {
        let &(id, generation, since) = self.inspection.again.front()?;
        if tick(now).wrapping_sub(since) < IDLE {
            return None;
        }
        self.inspection.again.pop_front();
        (self.table[id].generation() == generation).then_some(id)
    }

    /// By whom a flow is held, if it counts for that: it has carried little so far; or it is so new that a moment's data says nothing; or its client
    /// keeps its server from sending. Of a connection whose beginning was not seen nobody knows what it has carried, and the LAN's are not for a client
    /// to fill the table with.
    fn holder(&self, id: Id, now: Instant) -> Option<Holder> {
        let flow = &self.table[id];
        if flow.client() == Side::Lan || flow.is(FlowFlags::UNJUDGED) {
            return None;
        }
        let (age, carried) = (tick(now).wrapping_sub(flow.born), flow.carried());
        let carries_little = carried < LITTLE || carried < LITTLE_RATE.saturating_mul(age / SECOND) || age < IDLE;
        let has_stopped = || {
            let now = tick(now);
            let moved = flow.snapshot().map_or(u32::MAX, |last| Snapshot::of(flow, now).since(last).1);
            is_held_up(flow) && (moved < FEW || self.idle(flow, now) != Idle::No)
        };
        if !carries_little && !has_stopped() {
            return None;
        }
        let key = self.table.key(id);
        Some(self.inspection.shares.holder(&key.wan, &key.lan, key.v6))
    }

    /// Whether a flow may be given up for being idle at all.
    fn is_inspected(&self, id: Id) -> bool {
        let flow = &self.table[id];
        Kind::of(flow) != Some(Kind::Closing)
            && !matches!(flow.state(), State::Free | State::SynCached | State::Unconfirmed)
    }

    /// Notes who holds a flow. In whose name it passed without a proof says nothing: anybody can have sent its SYN.
    fn sample(&mut self, id: Id, now: Instant) {
        let flow = &self.table[id];
        let sample = if Kind::of(flow) == Some(Kind::Closing) {
            Sample::Over
        } else if !self.is_inspected(id) {
            return;
        } else if flow.is_unproved() {
            Sample::Uncounted
        } else {
            self.holder(id, now).map_or(Sample::Uncounted, Sample::Little)
        };
        self.inspection.shares.note(sample);
    }

    /// Inspects a flow: what it is as a candidate, if it may give way; and notes how far it has got.
    fn inspect(&mut self, id: Id, now: Instant) -> Option<Candidate> {
        self.refresh(id);
        let flow = &self.table[id];
        if Kind::of(flow) == Some(Kind::Closing) {
            let (share, event) = (self.share(&self.table.key(id)), Event::EvictedClosing);
            return Some(Candidate { id, class: Class::Over, share, is_silent: true, idle: 0, event });
        }
        if !self.is_inspected(id) {
            return None;
        }
        let age = tick(now).wrapping_sub(flow.born);
        let holder = self.holder(id, now);
        let counts = holder.is_some();
        let share = holder.map_or_else(Share::default, |holder| self.inspection.shares.share(&holder));
        let (class, needed) = if counts { (Class::Little, IDLE) } else { (Class::Much, LONG_IDLE) };
        let flow = &self.table[id];
        let is_silent = !flow.is(FlowFlags::CARRIED);
        let event = match flow.state() {
            State::ServerSynSent | State::Gathering | State::SynSent | State::SynReceived => Event::EvictedHalfOpen,
            _ if is_silent => Event::EvictedSilent,
            _ if is_held_up(flow) => Event::EvictedStalled,
            _ => Event::EvictedIdle,
        };
        let candidate = Candidate { id, class, share, is_silent, idle: 0, event };
        let rests = || counts && share.is_exceeded && self.quiet(flow, tick(now)) >= REST;
        let resting = rests().then_some(Candidate { class: Class::Resting, ..candidate });
        if age < HALF_OPEN_GRACE {
            // What it waits for may be on its way.
            return resting;
        }
        let idle = self.idle(flow, tick(now));
        self.renew_snapshot(id, idle, tick(now));
        match idle {
            Idle::For(idle) if idle >= needed => Some(Candidate { idle, ..candidate }),
            Idle::Slow if counts && matches!(event, Event::EvictedIdle | Event::EvictedStalled) => {
                Some(Candidate { event: Event::EvictedSlow, ..candidate })
            }
            Idle::Slow if counts => Some(candidate),
            _ => resting,
        }
    }

    /// For how long a flow has carried no data, by its timer and by the snapshot of its last inspection.
    fn idle(&self, flow: &Flow, now: Ticks) -> Idle {
        let quiet = self.quiet(flow, now);
        if quiet >= IDLE {
            return Idle::For(quiet);
        }
        let Some(last) = flow.snapshot() else { return Idle::No };
        match Snapshot::of(flow, now).since(last) {
            (seconds, 0) if seconds >= IDLE / SECOND => Idle::For(seconds * SECOND),
            (seconds, bytes) if seconds < IDLE / SECOND && !(last.is_slow() && bytes < FEW) => Idle::No,
            (seconds, bytes) if bytes < FEW || seconds <= OUTDATED && bytes < TRICKLE * seconds => Idle::Slow,
            _ => Idle::No,
        }
    }

    /// Renews the snapshot of a flow that is so `idle`: where it says nothing of the last seconds, or soon will not.
    fn renew_snapshot(&mut self, id: Id, idle: Idle, now: Ticks) {
        let flow = &self.table[id];
        let (snapshot, last, generation) = (Snapshot::of(flow, now), flow.snapshot(), flow.generation());
        let (seconds, bytes) = last.map_or((0, 0), |last| snapshot.since(last));
        let renewed = match idle {
            Idle::For(_) => return,
            Idle::Slow if seconds >= OUTDATED / 2 => snapshot.slow(),
            Idle::No if last.is_none() || seconds > 0 && bytes >= FEW => snapshot,
            _ => return,
        };
        self.table.update(id, |flow| flow.keep_snapshot(renewed));
        if idle == Idle::No && seconds > OUTDATED {
            self.inspection.inspect_again(id, generation, now);
        }
    }

    /// For how long no segment of a flow has restarted its timer.
    fn quiet(&self, flow: &Flow, now: Ticks) -> Ticks {
        match flow.state() {
            State::Established | State::HandedDown | State::FinWait | State::LastAck | State::Reset => {
                let lifetime = self.settings.profiles.of(flow.profile).of(flow.state());
                let left = flow.deadline().wrapping_sub(now) as i32;
                lifetime.saturating_sub(left.max(0) as Ticks)
            }
            // Their timers are for what the box repeats.
            _ => now.wrapping_sub(flow.born),
        }
    }
}

/// Whether the client keeps its server from sending: its window is shut, or it has not acknowledged what was sent.
fn is_held_up(flow: &Flow) -> bool {
    let (client, server) = (flow.endpoint(flow.client()), flow.endpoint(flow.client().other()));
    client.window.0 == 0 || server.next.after(client.acked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_comes_to_every_place_and_not_to_neighbours_one_after_the_other() {
        for places in [1, 2, 8, 16, 24, 100, 1000, 8192, 12_345] {
            let step = stride(places) as usize;
            let mut seen = vec![false; places];
            let mut at = 0;
            for _ in 0..places {
                assert!(!core::mem::replace(&mut seen[at], true), "{places}");
                at = (at + step) % places;
            }
            assert!(places < 100 || step > places / 2 && step < places - places / 4, "{places}: {step}");
        }
    }
}
