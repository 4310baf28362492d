//! Eviction: which flow goes when the table is full. [`idle`](super::idle) chooses among connections.

use super::Proxy;
use super::candidates::{Candidates, HALF_OPEN_GRACE, Kind};
use super::idle::{Inspection, Opener};
use super::reply::{HALF_SECOND, bare_reset};
use crate::flow::table::wheel::{TICK_SHIFT, tick};
use crate::flow::table::{Id, Table};
use crate::flow::{Flow, FlowFlags, State};
use crate::seq::SeqDelta;
use crate::wire::{FlowKey, OptionList};
use crate::{Egress, Event, Instant, Side};

/// How many entries of a queue an excerpt looks at for one that may go: each is a flow somewhere in the table.
const SEARCHED: usize = 256;

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
        2 * self.table.population().syn_cached > self.candidates.syn_cached_most() as u64
    }

    /// Whether the SYN cache certainly has no place: its oldest entry may not give way yet.
    #[inline(always)]
    pub(crate) fn is_cache_full(&self, now: Instant) -> bool {
        let queue = &self.candidates[Kind::SynCached];
        let may_not_go = |(id, generation)| self.may_go(Kind::SynCached, id, generation) && self.is_young(id, now);
        queue.is_full() && queue.oldest().is_some_and(may_not_go)
    }

    /// Until when the SYN cache has no place, unless an entry goes before its time: in the past if it may have one now.
    pub(super) fn cache_full_until(&self, now: Instant) -> Instant {
        let queue = &self.candidates[Kind::SynCached];
        let Some((oldest, _)) = queue.oldest().filter(|_| self.is_cache_full(now)) else {
            return Instant::default();
        };
        let age = tick(now).wrapping_sub(self.table[oldest].born);
        // It is young until so many ticks have passed.
        Instant::from_micros(((now.as_micros() >> TICK_SHIFT) + u64::from(HALF_OPEN_GRACE - age)) << TICK_SHIFT)
    }

    /// Whether the SYN cache has a place, if need be that of its oldest entry.
    fn syn_cache_has_room(&mut self, now: Instant) -> bool {
        while self.candidates[Kind::SynCached].is_full() {
            let Some((id, generation)) = self.candidates[Kind::SynCached].oldest() else { return false };
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
        while let Some((id, generation)) = self.candidates[kind].oldest() {
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
        queue.pop_oldest();
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
            let mut entries = queue.iter().take(if must_go { SEARCHED } else { 0 }).enumerate();
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
