//! Eviction: which flow goes when the table is full. [`idle`](super::idle) chooses among connections.

use core::ops::{Index, IndexMut};
use std::collections::VecDeque;

use super::Proxy;
use super::idle::{Inspection, Opener};
use super::reply::{HALF_SECOND, bare_reset};
use crate::flow::table::wheel::{TICK_SHIFT, Ticks, tick};
use crate::flow::table::{Id, Table};
use crate::flow::{Flow, FlowFlags, State};
use crate::seq::SeqDelta;
use crate::wire::{FlowKey, OptionList};
use crate::{Egress, Event, Instant, Side};

/// How many flows of each kind that may be evicted are remembered as candidates: closing ones, those whose server has not answered, and so on.
const CANDIDATES_REMEMBERED: usize = 65_536;

/// An entry of the SYN cache younger than this is not given up for another: its client may be about to answer. What finds
/// no place is answered all the same, with a cookie alone. In ticks: three seconds.
pub(super) const HALF_OPEN_GRACE: Ticks = 3 * 1_000_000 / 1024;

/// Flows in the order in which they came to a state; they may have left it since.
pub(crate) struct Queue {
    entries: VecDeque<(Id, u16)>,
    capacity: usize,
    /// Entries behind the last that an excerpt leaves out: they stand for flows that are gone.
    left_out: usize,
}

impl Queue {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { entries: VecDeque::with_capacity(capacity), capacity, left_out: 0 }
    }

    /// Whether nothing is ever kept.
    pub(crate) fn is_shut(&self) -> bool {
        self.capacity == 0
    }

    #[inline(always)]
    fn is_full(&self) -> bool {
        self.entries.len() + self.left_out == self.capacity
    }

    /// The oldest entries are cold: prefetches the lines of those that will soon be evicted.
    fn prefetch_next_victims(&self, table: &Table) {
        if let Some(&(id, _)) = self.entries.get(16) {
            table.prefetch(id);
        }
        if let Some(&(id, _)) = self.entries.get(8) {
            table.prefetch_neighbours(id);
        }
    }

    pub(crate) fn push(&mut self, id: Id, generation: u16) {
        if self.is_full() {
            self.entries.pop_front();
        }
        if self.capacity > 0 {
            self.entries.push_back((id, generation));
        }
    }

    /// A queue of `known` alone, which is so many entries from the front; if the queue is full, with as many others, all of a flow that is
    /// `gone`, of which those are there that a frame may put out.
    fn excerpt(&self, known: Option<(usize, (Id, u16))>, gone: (Id, u16)) -> Self {
        if !self.is_full() {
            let entries = known.into_iter().map(|(_, entry)| entry).collect();
            return Self { entries, capacity: self.capacity, left_out: 0 };
        }
        let there = self.capacity.min(known.map_or(0, |(at, _)| at + 1) + PUT_OUT);
        let mut entries: VecDeque<_> = core::iter::repeat_n(gone, there).collect();
        if let Some((at, entry)) = known {
            entries[at] = entry;
        }
        Self { entries, capacity: self.capacity, left_out: self.capacity - there }
    }
}

/// Flows that may be evicted, in the order in which one is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Over, and waiting for its last timer; or seen in one direction alone.
    Closing,
    /// The handshakes are complete, and the client has never sent nor acknowledged data.
    Silent,
    /// An entry of the SYN cache.
    SynCached,
    /// The server has not answered yet.
    ServerSynSent,
    /// Passed through, and not established yet; or a server is asked whether it is there.
    Opening,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Closing, Kind::Silent, Kind::SynCached, Kind::ServerSynSent, Kind::Opening];

    /// The kind of a flow, if it may be evicted for what it is; one that still carries anything, be it an unacknowledged FIN, may only be
    /// [idle](super::idle).
    pub(super) fn of(flow: &Flow) -> Option<Kind> {
        match flow.state() {
            State::TimeWait => Some(Kind::Closing),
            // A blind RST must not have a connection evicted.
            State::Reset => (!flow.is_reset_in_doubt()).then_some(Kind::Closing),
            State::AckWithheld | State::WindowPending | State::Established => {
                (!flow.is(FlowFlags::CARRIED)).then_some(Kind::Silent)
            }
            State::SynCached => Some(Kind::SynCached),
            State::ServerSynSent | State::Gathering => Some(Kind::ServerSynSent),
            State::SynSent | State::SynReceived if flow.is(FlowFlags::UNJUDGED) => Some(Kind::Closing),
            State::SynSent | State::SynReceived | State::Unconfirmed | State::ServerTried => Some(Kind::Opening),
            State::Free | State::Repeating | State::HandedDown | State::FinWait | State::LastAck => None,
        }
    }

    /// The event that counts its eviction.
    fn event(self) -> Event {
        match self {
            Kind::Closing => Event::EvictedClosing,
            Kind::Silent => Event::EvictedSilent,
            Kind::SynCached | Kind::ServerSynSent | Kind::Opening => Event::EvictedHalfOpen,
        }
    }
}

/// The flows that may be evicted, a queue for each [`Kind`].
pub(crate) struct Candidates([Queue; 5]);

impl Candidates {
    /// Empty queues: for so many entries of the SYN cache, and as many of every other kind as are remembered of a table of `flows`.
    pub(crate) fn new(syn_cached: usize, flows: usize) -> Self {
        Self(Kind::ALL.map(|kind| Queue::new(Self::capacity(kind, syn_cached, flows))))
    }

    fn capacity(kind: Kind, syn_cached: usize, flows: usize) -> usize {
        if kind == Kind::SynCached { syn_cached.min(flows) } else { flows.min(CANDIDATES_REMEMBERED) }
    }

    /// The bytes these queues take.
    pub(crate) fn bytes_needed(syn_cached: usize, flows: usize) -> usize {
        let entries: usize = Kind::ALL.into_iter().map(|kind| Self::capacity(kind, syn_cached, flows)).sum();
        entries * size_of::<(Id, u16)>()
    }
}

impl Candidates {
    /// How many entries of the SYN cache there can be.
    pub(crate) fn syn_cached_most(&self) -> usize {
        self[Kind::SynCached].capacity
    }
}

impl Index<Kind> for Candidates {
    type Output = Queue;

    #[inline(always)]
    fn index(&self, kind: Kind) -> &Queue {
        &self.0[kind as usize]
    }
}

impl IndexMut<Kind> for Candidates {
    #[inline(always)]
    fn index_mut(&mut self, kind: Kind) -> &mut Queue {
        &mut self.0[kind as usize]
    }
}

/// How many entries of a queue an excerpt looks at for one that may go: each is a flow somewhere in the table.
const SEARCHED: usize = 256;

/// Entries one frame may put out of a queue, at most.
const PUT_OUT: usize = 16;

impl Proxy {
    /// A record for a new key, in `state`, on its timer and counted; `client` is the side of who sent the first SYN. `None` when the table is full.
    pub(crate) fn admit(
        &mut self,
        key: &FlowKey,
        hash: u64,
        client: Side,
        state: State,
        now: Instant,
        fill: impl FnOnce(&mut Flow),
    ) -> Option<Id> {
        let profile = self.settings.profiles.present(self.settings.policy.rule(key).profile);
        let id = self.table.insert(key, hash, client, state, |flow| {
            flow.born = tick(now);
            flow.profile = profile;
            // No half-second equals its successor, so that the first challenge is never withheld.
            flow.challenged = ((tick(now) >> HALF_SECOND) as u8).wrapping_sub(1);
            fill(flow);
        })?;
        self.table.enter(id, tick(now).wrapping_add(self.settings.profiles.of(profile).of(state)));
        self.recount(id, now);
        Some(id)
    }

    /// A record in the SYN cache; `None` when it has no place.
    #[inline(always)]
    pub(crate) fn admit_syn_cached(
        &mut self,
        key: &FlowKey,
        hash: u64,
        now: Instant,
        fill: impl FnOnce(&mut Flow),
    ) -> Option<Id> {
        if self.has_no_syn_cache() { None } else { self.admit_syn_cached_if_room(key, hash, now, fill) }
    }

    #[inline(never)]
    fn admit_syn_cached_if_room(
        &mut self,
        key: &FlowKey,
        hash: u64,
        now: Instant,
        fill: impl FnOnce(&mut Flow),
    ) -> Option<Id> {
        let has_room = self.syn_cache_has_room(now);
        let id = has_room.then(|| self.admit(key, hash, Side::Wan, State::SynCached, now, fill)).flatten();
        let Some(id) = id else {
            self.counters.count(Event::CacheFull);
            return None;
        };
        self.remember_candidate(id);
        self.counters.count(Event::CacheStored);
        Some(id)
    }

    /// Whether the SYN cache is off.
    #[inline(always)]
    pub(crate) fn has_no_syn_cache(&self) -> bool {
        self.candidates[Kind::SynCached].is_shut()
    }

    /// Whether the SYN cache is more than half full, so that an entry may have to make way before its client answers.
    pub(crate) fn is_cache_pressed(&self) -> bool {
        2 * self.table.population().syn_cached > self.candidates[Kind::SynCached].capacity as u64
    }

    /// Whether the SYN cache certainly has no place: its oldest entry may not give way yet.
    #[inline(always)]
    pub(crate) fn is_cache_full(&self, now: Instant) -> bool {
        let queue = &self.candidates[Kind::SynCached];
        let may_not_go = |&(id, generation)| self.may_go(Kind::SynCached, id, generation) && self.is_young(id, now);
        queue.is_full() && queue.entries.front().is_some_and(may_not_go)
    }

    /// Until when the SYN cache has no place, unless an entry goes before its time: in the past if it may have one now.
    pub(super) fn cache_full_until(&self, now: Instant) -> Instant {
        let queue = &self.candidates[Kind::SynCached];
        let Some(&(oldest, _)) = queue.entries.front().filter(|_| self.is_cache_full(now)) else {
            return Instant::default();
        };
        let age = tick(now).wrapping_sub(self.table[oldest].born);
        // It is young until so many ticks have passed.
        Instant::from_micros(((now.as_micros() >> TICK_SHIFT) + u64::from(HALF_OPEN_GRACE - age)) << TICK_SHIFT)
    }

    /// Whether the SYN cache has a place, if need be that of its oldest entry.
    fn syn_cache_has_room(&mut self, now: Instant) -> bool {
        while self.candidates[Kind::SynCached].is_full() {
            let Some(&(id, generation)) = self.candidates[Kind::SynCached].entries.front() else { return false };
            if self.may_go(Kind::SynCached, id, generation) {
                if self.is_young(id, now) {
                    return false;
                }
                self.count_of_flow(id, Kind::SynCached.event());
                self.forget(id);
            }
            self.pop_candidate(Kind::SynCached);
        }
        true
    }

    /// Sees to it that there is a place for a flow, if its opener may have one: whether it may. In a full table it is that of a flow that is over;
    /// else of the oldest entry of the SYN cache, if its client has had time to answer; else of the connection that can
    /// [best be spared](Proxy::find_idle) of those that are inspected; else of the oldest entry of the SYN cache all the same; else of the oldest connection
    /// that has never carried data, of the client whose server has been silent longest, or of the oldest that is passed through and not established.
    #[inline]
    pub(crate) fn make_room(&mut self, opener: Opener, now: Instant, egress: &mut impl Egress) -> bool {
        !self.table.is_nearly_full() || self.make_room_under_pressure(opener, now, egress)
    }

    #[inline(never)]
    fn make_room_under_pressure(&mut self, opener: Opener, now: Instant, egress: &mut impl Egress) -> bool {
        // The places of what is over, and of what is in the SYN cache, are for others too.
        let gets_last = self.inspect_some(opener, now);
        if gets_last && !self.table.is_full() {
            return true;
        }
        if gets_last
            && (self.evict_first(Kind::Closing, false, now, egress)
                || self.evict_first(Kind::SynCached, true, now, egress))
        {
            return true;
        }
        if let Some(candidate) = self.find_idle(opener, now) {
            egress.note(|| {
                let key = self.table.key(candidate.id);
                let (wan, lan, event) = (key.socket(Side::Wan), key.socket(Side::Lan), candidate.event.label());
                format!("the table is full: the connection between {wan} and {lan} gives way ({event})")
            });
            return self.evict(candidate.id, candidate.event, egress);
        }
        let kinds: &[Kind] = match opener {
            _ if !gets_last => &[],
            _ if self.claim(opener).is_limited() => &[Kind::SynCached],
            Opener::Unproved(_) => &[Kind::SynCached, Kind::Opening],
            _ => &[Kind::SynCached, Kind::Silent, Kind::ServerSynSent, Kind::Opening],
        };
        kinds.iter().any(|&kind| self.evict_first(kind, kind != Kind::SynCached, now, egress))
    }

    /// Evicts the first flow of a kind, if it is old enough where that counts.
    fn evict_first(&mut self, kind: Kind, spares_the_young: bool, now: Instant, egress: &mut impl Egress) -> bool {
        while let Some(&(id, generation)) = self.candidates[kind].entries.front() {
            let may_go = self.may_go(kind, id, generation);
            if may_go && spares_the_young && self.is_young(id, now) {
                break;
            }
            self.pop_candidate(kind);
            if may_go {
                return self.evict(id, kind.event(), egress);
            }
        }
        false
    }

    /// Ends a flow before its time: whether it has ended. Those who take it for a connection get a reset; while no frame is spare for that it stays.
    pub(super) fn evict(&mut self, id: Id, event: Event, egress: &mut impl Egress) -> bool {
        self.refresh(id);
        let target = self.target_if_counted(id);
        match Kind::of(&self.table[id]) {
            Some(Kind::Closing | Kind::SynCached | Kind::Opening) => self.forget(id),
            Some(Kind::ServerSynSent) => self.abort(id, egress),
            // It goes on without a record.
            Some(Kind::Silent) | None if self.is_untouched(id) => self.forget(id),
            Some(Kind::Silent) | None if self.reset_both(id, egress) => self.forget(id),
            Some(Kind::Silent) | None => return false,
        }
        self.counters.add(event, 1, target);
        true
    }

    fn pop_candidate(&mut self, kind: Kind) {
        let queue = &mut self.candidates[kind];
        queue.entries.pop_front();
        if matches!(kind, Kind::Closing | Kind::SynCached) {
            queue.prefetch_next_victims(&self.table);
        }
    }

    /// Whether a flow began so recently that what it waits for may be on its way.
    pub(crate) fn is_young(&self, id: Id, now: Instant) -> bool {
        tick(now).wrapping_sub(self.table[id].born) < HALF_OPEN_GRACE
    }

    /// Resets a connection in the name of each end to the other: whether one of them is told. RFC 5961 section 3: a reset must have the number that its
    /// receiver expects next, which is what it has acknowledged; beyond that, data may be on its way, or outside a window that is shut.
    pub(super) fn reset_both(&mut self, id: Id, egress: &mut impl Egress) -> bool {
        let told = Side::BOTH.map(|to| {
            let added = if to == Side::Lan { self.table.client_deltas(id).0 } else { SeqDelta::default() };
            let seq = match (to, self.gathered(id)) {
                (Side::Lan, number) if number != 0 => self.caches.gathered.unacked(number),
                (Side::Wan, number) if number != 0 && self.caches.gathered.get(number).unheard() > 0 => {
                    self.caches.gathered.get(number).unheard_bytes().0
                }
                _ => self.table[id].endpoint(to).acked + added,
            };
            let envelope = self.envelope(id, to.other());
            self.emit(to, &bare_reset(&envelope, seq, &OptionList::none()), egress)
        });
        told != [false; 2]
    }

    /// Remembers a flow that may be evicted in the queue of its kind.
    pub(crate) fn remember_candidate(&mut self, id: Id) {
        let flow = &self.table[id];
        if let Some(kind) = Kind::of(flow) {
            self.candidates[kind].push(id, flow.generation());
        }
    }

    /// Whether an entry of the queue of this kind still stands for such a flow.
    fn may_go(&self, kind: Kind, id: Id, generation: u16) -> bool {
        let flow = &self.table[id];
        flow.generation() == generation && Kind::of(flow) == Some(kind)
    }

    /// The table with the flows `ids` alone, which come first there, those that would have to be evicted, and those that would be
    /// inspected for it; and what names the latter two.
    pub(crate) fn excerpt_of_flows(&self, mut ids: Vec<Id>) -> (Table, Candidates, Inspection) {
        let known = Kind::ALL.map(|kind| {
            let queue = &self.candidates[kind];
            let must_go = self.table.is_almost_full() || kind == Kind::SynCached && queue.is_full();
            let mut entries = queue.entries.iter().take(if must_go { SEARCHED } else { 0 }).enumerate();
            let (at, &(id, generation)) = entries.find(|(_, entry)| self.may_go(kind, entry.0, entry.1))?;
            if !ids.contains(&id) {
                ids.push(id);
            }
            Some((at, id, generation))
        });
        let is_pressed = self.table.is_nearly_full();
        for inspected in if is_pressed { self.inspection.next_in(&self.table) } else { Vec::new() } {
            if !ids.contains(&inspected) && !self.table[inspected].is_in(State::Free) {
                ids.push(inspected);
            }
        }
        let place = |id: Id| Table::place_in_excerpt(ids.iter().position(|own| *own == id).unwrap_or_default());
        let candidates = Candidates(Kind::ALL.map(|kind| {
            let entry = known[kind as usize].map(|(at, id, generation)| (at, (place(id), generation)));
            self.candidates[kind].excerpt(entry, Table::GONE)
        }));
        let inspected = |id: Id| if self.table[id].is_in(State::Free) { Table::GONE.0 } else { place(id) };
        let inspection = if is_pressed { self.inspection.excerpt(&self.table, inspected) } else { Inspection::none() };
        let mut table = self.table.excerpt(&ids);
        for &id in ids.iter().filter(|&&id| self.table[id].is_in(State::HandedDown)) {
            table.update(place(id), |flow| self.handed_down.merge(flow));
        }
        (table, candidates, inspection)
    }

    /// Removes a flow; neither end gets a segment.
    pub(crate) fn forget(&mut self, id: Id) {
        if self.table[id].held != 0 {
            self.table.update(id, |flow| self.caches.hold_queue.forget(flow));
        }
        if self.quotas.is_counted(id.0) {
            self.discount(id);
        }
        if self.table[id].is_in(State::HandedDown) {
            self.handed_down.give_up(self.table[id].hash(), self.table.key(id));
        }
        self.release_gathered(id);
        if self.table[id].is(FlowFlags::REDIRECTED) {
            self.release_server(id);
        }
        self.table.remove(id);
    }
}
