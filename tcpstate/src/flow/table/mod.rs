//! The flow table: a fixed number of records, the index that finds them and the timer wheel that is threaded through them.
//!
//! All code may read records; two methods write them. [`Table::update`] (or [`Table::edit`], where a closure costs) changes words that are each valid alone.
//! [`Table::follow_state`] changes what belongs together and ends with the state: it first copies the record to the undo slot, and a process that finds
//! the slot in use puts the copy back. A kill keeps program order, so compiler fences suffice between the steps. These two methods are also where a
//! journal or a mirror of the table has to hook in.
//!
//! Index, wheel and links follow from the records and are made anew for records that another process has left ([`Table::adopt`]).
//! Records are taken one after the other: memory that no flow has needed yet is never touched.

#[cfg(all(test, target_os = "linux"))]
mod crash_tests;
pub(crate) mod id;
mod index;
mod slab;
pub mod wheel;

use core::ops::{Deref, DerefMut, Index as Indexed};
use core::sync::atomic::{Ordering, compiler_fence};

use crate::flow::map::FlowMap;
use crate::flow::{Flow, FlowFlags, State, UNTOUCHED};
use crate::keyed::Keys;
use crate::owner::Naming;
use crate::prefetch::prefetch;
use crate::seq::SeqDelta;
use crate::wire::FlowKey;
use crate::{Config, Instant, Secrets, Side};
pub use id::Id;
pub(crate) use id::NIL;
use index::{Guess as Place, Index};
pub(crate) use slab::Region;
pub use slab::{Redirect, Remains, Slab};
use wheel::{Ticks, Wheel};

/// Flags the undo slot, in its `slot` word, as the copy of a record that is being changed. No record in use has this there.
const UNDO: u16 = u16::MAX - 1;
const _: () = assert!(UNDO != wheel::UNFILED && UNDO as usize >= wheel::SLOTS_IN_ALL);

/// What the first bucket says about where a flow may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// A flow of the same tag is here.
    Perhaps(Id),
    /// If anywhere, it is in its second bucket.
    Elsewhere,
    /// There is none.
    Nowhere,
}

/// How many flows there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Population {
    /// Entries of the SYN cache.
    pub syn_cached: u64,
    /// Connections from the WAN, from the SYN to the server to the last timer.
    pub proxied: u64,
    /// Connections passed through.
    pub passthrough: u64,
}

/// As what a flow is counted: a change of its state leaves it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    SynCached,
    Proxied,
    Passthrough,
}

impl Kind {
    #[inline(always)]
    fn of(flow: &Flow) -> Self {
        match flow.is_in(State::SynCached) {
            true => Kind::SynCached,
            false if flow.is(FlowFlags::PROXIED) => Kind::Proxied,
            false => Kind::Passthrough,
        }
    }
}

impl Population {
    /// The count a flow belongs to.
    #[inline(always)]
    fn of(&mut self, flow: &Flow) -> &mut u64 {
        match Kind::of(flow) {
            Kind::SynCached => &mut self.syn_cached,
            Kind::Proxied => &mut self.proxied,
            Kind::Passthrough => &mut self.passthrough,
        }
    }
}

/// Whether a flow is a connection of a client of the WAN that has passed unanswered and is not established. Its side and this state decide it, so that it
/// changes with the state alone.
#[inline(always)]
fn is_half_open(flow: &Flow) -> bool {
    (flow.is_in(State::SynSent) || flow.is_in(State::SynReceived)) && flow.client() == Side::Wan
}

/// How many connections of clients of the WAN have passed unanswered and are not established, by what counts their profiles.
#[derive(Clone, Default)]
struct HalfOpen {
    /// By the number of a profile: how many, and where they are counted together with those of others.
    of_profile: Vec<(u32, u32)>,
    together: Vec<u32>,
}

impl HalfOpen {
    fn change(&mut self, flow: &Flow, change: impl Fn(u32) -> u32) {
        let Some((count, at)) = self.of_profile.get_mut(usize::from(flow.profile & !UNTOUCHED)) else { return };
        *count = change(*count);
        if let Some(count) = self.together.get_mut(*at as usize) {
            *count = change(*count);
        }
    }

    fn add(&mut self, flow: &Flow) {
        self.change(flow, |count| count + 1);
    }

    fn remove(&mut self, flow: &Flow) {
        // Every one was added. A count that is wrong all the same must not become a large one.
        self.change(flow, |count| count.saturating_sub(1));
    }
}

/// A record that is being changed.
pub struct Edit<'a>(&'a mut Flow);

impl Deref for Edit<'_> {
    type Target = Flow;

    #[inline(always)]
    fn deref(&self) -> &Flow {
        self.0
    }
}

impl DerefMut for Edit<'_> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Flow {
        self.0
    }
}

/// The flow table.
pub struct Table {
    slab: Slab,
    capacity: usize,
    index: Index,
    wheel: Wheel,
    /// The first of the records that were used and are free again.
    free: u32,
    /// Records from this place on were never used.
    used: u32,
    len: usize,
    /// How many flows make it nearly full, and almost full.
    nearly_full: usize,
    almost_full: usize,
    /// How many flows were ever entered, on a circle: what was found absent is so while this stands still.
    entered: u32,
    population: Population,
    half_open: HalfOpen,
    /// What a program of the kernel may ask for flows, if there is one.
    map: Option<FlowMap>,
    adopted: Adopted,
}

/// What became of the records that other processes have left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Flows that go on.
    pub flows: u64,
    /// Records that were in use and are those of no flow.
    pub refused: u64,
    /// Flows that a smaller table has no room for.
    pub no_room: u64,
}

/// Takes a record off the lists of the process that left it.
fn detach(record: &mut Flow) {
    (record.slot, record.link_prev, record.held) = (wheel::UNFILED, NIL, 0);
}

/// How many records ahead of the one that is adopted a bucket is prefetched.
const AHEAD: usize = 8;

/// The change that an undo slot with this content has to take back, where places below `used` are in use: the place of the record, and the record as it was.
fn unfinished(copy: &Flow, used: usize) -> Option<(usize, Flow)> {
    let place = copy.link_next as usize;
    (copy.slot == UNDO && place < used).then_some((place, *copy))
}

impl Table {
    /// The bytes a table of so many buckets and flows takes, with its slab.
    pub const fn bytes_needed(buckets: usize, capacity: usize) -> usize {
        Index::bytes_needed(buckets) + 8 * Slab::words(capacity, false)
    }

    /// An empty table in memory that no process has used.
    ///
    /// # Panics
    /// If there are no buckets, or those or the capacity reach 2^31.
    pub fn new(buckets: usize, slab: Slab, now: Instant) -> Self {
        let capacity = slab.capacity();
        assert!(capacity < 1 << 31);
        Self {
            slab,
            capacity,
            index: Index::new(buckets),
            wheel: Wheel::new(now),
            free: NIL,
            used: 0,
            len: 0,
            nearly_full: capacity - capacity / 4,
            almost_full: capacity - capacity / 8,
            entered: 0,
            population: Population::default(),
            half_open: HalfOpen::default(),
            map: None,
            adopted: Adopted::default(),
        }
    }

    /// A table in this memory: of the flows that another process has left there, if one may have; else empty.
    pub fn of(buckets: usize, slab: Slab, keys: Keys, now: Instant) -> Self {
        if slab.is_used() { Self::adopt(buckets, slab, keys, now) } else { Self::new(buckets, slab, now) }
    }

    /// A table of the flows in memory that another process has used. A record is taken only if its state and sides parse, the keyed hash stored in it
    /// fits its key, and no other record has the same key; the same holds for its second key, if it has one. Every other record is free. No flow is on a
    /// timer yet: see [`Table::enter`].
    ///
    /// A record that is taken stays whole while it is, so that a process which is killed at this leaves it to the next.
    pub fn adopt(buckets: usize, slab: Slab, keys: Keys, now: Instant) -> Self {
        let mut table = Self::new(buckets, slab, now);
        let used = table.capacity.min(table.slab.head[0].used as usize);
        table.undo(used);
        for place in (0..used).rev() {
            // The buckets of those that follow are on their way meanwhile.
            if let Some(ahead) = place.checked_sub(AHEAD) {
                table.index.prefetch(table.slab.records[ahead].hash);
            }
            table.adopt_record(place, keys);
        }
        table.used = used as u32;
        table.slab.head[0].used = table.used;
        for (redirect, record) in table.slab.redirects.iter_mut().zip(&table.slab.records[..used]) {
            redirect.slot = 0;
            if !record.is(FlowFlags::REDIRECTED) && !record.is_in(State::Gathering) {
                redirect.gathered = 0;
            }
        }
        table
    }

    /// Takes back a change that was not finished.
    fn undo(&mut self, used: usize) {
        let copy = self.slab.records[self.capacity];
        if let Some((place, record)) = unfinished(&copy, used) {
            self.slab.records[place] = record;
            compiler_fence(Ordering::SeqCst);
        }
        // First that it is in use no more: a copy that is half erased must not be put back by the next process.
        self.slab.records[self.capacity].slot = 0;
        compiler_fence(Ordering::SeqCst);
        self.slab.records[self.capacity] = Flow::default();
    }

    fn adopt_record(&mut self, place: usize, keys: Keys) {
        let (mut record, upper) = (self.slab.records[place], self.slab.upper[place]);
        let was_free = record.is_in(State::Free);
        detach(&mut record);
        let hash = record.hash;
        let mut is_taken = record.make_plausible(&upper, keys)
            && self.find(&record.key(&upper), hash).is_none()
            && self.link(hash, place as u32, false);
        if is_taken && record.is(FlowFlags::REDIRECTED) && !self.adopt_redirect(Id(place as u32), keys) {
            self.index.remove(hash, place as u32, false);
            is_taken = false;
        }
        let own = &mut self.slab.records[place];
        if is_taken {
            *own = record;
            self.len += 1;
            self.adopted.flows += 1;
            *self.population.of(own) += 1;
        } else {
            self.adopted.refused += u64::from(!was_free);
            own.state = State::Free as u8;
            own.link_next = self.free;
            self.free = place as u32;
        }
    }

    /// Enters a record that another process has left under its second key too, if that can be one.
    fn adopt_redirect(&mut self, id: Id, keys: Keys) -> bool {
        let Some(redirect) = self.slab.redirects.get(id.0 as usize).copied() else { return false };
        redirect.is_plausible(keys)
            && self.find(&redirect.key(), redirect.hash()).is_none_or(|found| found == id)
            && self.redirect(id, redirect)
    }

    /// Takes the flows of another table that `is_mine` names by their keys and keyed hashes, as far as there is room: established ones if `established`, else
    /// all others. Each is judged as [`Table::adopt`] does. None is on a timer.
    fn import(
        &mut self,
        remains: &Remains<'_>,
        keys: Keys,
        is_mine: &impl Fn(&FlowKey, u64) -> bool,
        established: bool,
    ) {
        let unfinished = remains.unfinished();
        for place in 0..remains.used() {
            let Some((mut record, upper, redirect)) = remains.get(place) else { continue };
            if let Some((_, copy)) = unfinished.filter(|(unfinished, _)| *unfinished == place) {
                record = copy;
            }
            if record.is_in(State::Free) || record.is_in(State::Established) != established {
                continue;
            }
            if !record.make_plausible(&upper, keys) {
                self.adopted.refused += 1;
                continue;
            }
            let key = record.key(&upper);
            if is_mine(&key, record.hash) {
                self.import_record(record, &key, redirect, keys);
            }
        }
    }

    fn import_record(&mut self, record: Flow, key: &FlowKey, redirect: Option<Redirect>, keys: Keys) {
        if self.find(key, record.hash).is_some() {
            self.adopted.refused += 1;
            return;
        }
        let Some(id) = self.claim(key, record.hash, record.client()) else {
            self.adopted.no_room += 1;
            return;
        };
        let own = &mut self.slab.records[id.0 as usize];
        *own = record;
        detach(own);
        own.set(FlowFlags::REDIRECTED, false);
        *self.population.of(own) += 1;
        if record.is_in(State::Gathering)
            && let (Some(beside), Some(mut redirect)) = (self.beside_mut(id), redirect)
        {
            redirect.detach();
            *beside = redirect;
        }
        if record.is(FlowFlags::REDIRECTED) {
            let is_found = redirect.is_some_and(|redirect| {
                let mut redirect = redirect;
                redirect.detach();
                redirect.is_plausible(keys)
                    && self.find(&redirect.key(), redirect.hash()).is_none_or(|found| found == id)
                    && self.redirect(id, redirect)
            });
            if !is_found {
                self.remove(id);
                self.adopted.refused += 1;
                return;
            }
        }
        self.adopted.flows += 1;
    }

    /// What became of the records that other processes have left.
    pub fn adopted(&self) -> Adopted {
        self.adopted
    }

    /// Gives the memory back, as another process would find it.
    pub fn into_slab(self) -> Slab {
        Slab { is_used: true, ..self.slab }
    }

    /// From now on every flow is in this map from its beginning to its end; those that are there already are entered.
    pub fn enter_into(&mut self, map: FlowMap) {
        self.map = Some(map);
        for place in 0..self.used {
            let id = Id(place);
            if !self[id].is_in(State::Free) {
                self.enter_in_map(id);
            }
        }
    }

    /// How many flows are not in the map because it has no room for them.
    pub fn left_out_of_map(&self) -> u64 {
        self.map.as_ref().map_or(0, FlowMap::left_out)
    }

    /// How many flows the map counts; 0 if there is none.
    pub fn in_map(&self) -> u64 {
        self.map.as_ref().map_or(0, FlowMap::count)
    }

    /// Enters a flow in the map, if there is one.
    #[cold]
    fn enter_in_map(&mut self, id: Id) {
        let (key, flow) = (self.key(id), self[id]);
        let second = self.redirected(id).map(|redirect| (redirect.key(), redirect.hash()));
        let Some(map) = &mut self.map else { return };
        let is_translated = Kind::of(&flow) != Kind::Passthrough;
        map.enter(&key, flow.hash, id.0, is_translated);
        if let Some((key, hash)) = second {
            map.enter(&key, hash, id.0, is_translated);
        }
    }

    /// Removes a flow, which is still in its record, from the map.
    #[cold]
    fn remove_from_map(&mut self, id: Id) {
        let (key, hash) = (self.key(id), self[id].hash);
        let second = self.redirected(id).map(|redirect| (redirect.key(), redirect.hash()));
        let Some(map) = &mut self.map else { return };
        map.remove(&key, hash, id.0);
        if let Some((key, hash)) = second {
            map.remove(&key, hash, id.0);
        }
    }

    /// How many records there can be.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many flows there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// How many flows there are of each kind.
    pub fn population(&self) -> Population {
        self.population
    }

    /// From now on half-open connections of each profile, by its number, are counted at this place below `places`, or at none. There are at least as many
    /// profiles as before.
    pub fn count_half_open(&mut self, places_of_profiles: impl Iterator<Item = u32>, places: usize) {
        let HalfOpen { of_profile, together } = &mut self.half_open;
        together.clear();
        together.resize(places, 0);
        for (profile, place) in places_of_profiles.enumerate() {
            match of_profile.get_mut(profile) {
                Some((_, own)) => *own = place,
                None => of_profile.push((0, place)),
            }
        }
        for &(count, place) in &*of_profile {
            if let Some(sum) = together.get_mut(place as usize) {
                *sum += count;
            }
        }
    }

    /// Gives a flow that another process has left its profile, and counts it if it is half-open.
    pub fn count_adopted(&mut self, id: Id, profile: u16) {
        let record = &mut self.slab.records[id.0 as usize];
        record.profile = profile;
        if is_half_open(record) {
            self.half_open.add(record);
        }
    }

    /// How many connections that are counted at this place clients of the WAN have opened, which passed unanswered and are not established.
    pub fn half_open(&self, place: u32) -> u32 {
        self.half_open.together.get(place as usize).copied().unwrap_or(0)
    }

    /// Where half-open connections of a profile are counted, if at any place.
    #[inline(always)]
    pub fn place_of_profile(&self, number: u16) -> Option<u32> {
        let &(_, place) = self.half_open.of_profile.get(usize::from(number & !UNTOUCHED))?;
        ((place as usize) < self.half_open.together.len()).then_some(place)
    }

    /// A number that changes with each flow that is entered.
    #[inline(always)]
    pub fn entered(&self) -> u32 {
        self.entered
    }

    /// Whether every record is in use.
    pub fn is_full(&self) -> bool {
        self.len == self.capacity
    }

    /// Whether three quarters of the records or more are in use.
    pub fn is_nearly_full(&self) -> bool {
        self.len >= self.nearly_full
    }

    /// Whether seven eighths of the records or more are in use.
    pub fn is_almost_full(&self) -> bool {
        self.len >= self.almost_full
    }

    /// The record at this place below the capacity, in use or not.
    pub fn at(&self, place: u32) -> Id {
        debug_assert!((place as usize) < self.capacity);
        Id(place)
    }

    /// The flow at this place, if there is one.
    pub fn occupied(&self, place: u32) -> Option<Id> {
        let record = self.slab.records.get(place as usize).filter(|_| place < self.used)?;
        (!record.is_in(State::Free)).then_some(Id(place))
    }

    /// Prefetches the line that a lookup of this hash touches first.
    #[inline(always)]
    pub fn prefetch_bucket(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Prefetches the lines of the flow this hash probably names; returns that flow, if it is known yet, or that there is certainly none.
    #[inline(always)]
    pub fn prefetch_flow(&self, hash: u64, v6: bool) -> Guess {
        match self.index.guess(hash) {
            Place::Perhaps(place) => {
                self.prefetch(Id(place));
                if v6 {
                    prefetch(&self.slab.upper[place as usize]);
                }
                Guess::Perhaps(Id(place))
            }
            Place::Elsewhere => Guess::Elsewhere,
            Place::Nowhere => Guess::Nowhere,
        }
    }

    /// Whether the flow with this key is at this place.
    #[inline(always)]
    pub fn is_at(&self, id: Id, key: &FlowKey) -> bool {
        let Some(flow) = self.slab.records.get(id.0 as usize) else { return false };
        !flow.is_in(State::Free) && self.is_of(id.0, flow, key)
    }

    #[inline(always)]
    fn is_of(&self, place: u32, flow: &Flow, key: &FlowKey) -> bool {
        flow.fits(key) && (!key.v6 || self.slab.upper[place as usize] == upper(key))
            || flow.is(FlowFlags::REDIRECTED) && self.slab.redirects[place as usize].key() == *key
    }

    /// Asks for the lines of a record.
    pub fn prefetch(&self, id: Id) {
        let flow = &self.slab.records[id.0 as usize];
        prefetch(flow);
        prefetch(flow.endpoint(Side::Wan));
    }

    /// Asks for what the removal of a record, whose own lines are here, will touch.
    pub fn prefetch_neighbours(&self, id: Id) {
        let flow = &self.slab.records[id.0 as usize];
        for link in [flow.link_next, flow.link_prev] {
            if let Some(neighbour) = self.slab.records.get(link as usize) {
                prefetch(neighbour);
            }
        }
        self.prefetch_bucket(flow.hash);
    }

    /// Asks for the bucket of the flow that follows this one on its list, whose own lines are here.
    pub fn prefetch_next_bucket(&self, id: Id) {
        if let Some(next) = self.slab.records.get(self.slab.records[id.0 as usize].link_next as usize) {
            self.prefetch_bucket(next.hash);
        }
    }

    /// The flow with this key.
    pub fn find(&self, key: &FlowKey, hash: u64) -> Option<Id> {
        self.index.find(hash, |place| self.is_of(place, &self.slab.records[place as usize], key)).map(Id)
    }

    /// A new record for this key, which must not be in the table, of a client on the side `client`: filled, and then in `state`. `None` when the table
    /// is full. It is on no timer yet: see [`Table::enter`].
    #[inline]
    pub fn insert(
        &mut self,
        key: &FlowKey,
        hash: u64,
        client: Side,
        state: State,
        fill: impl FnOnce(&mut Flow),
    ) -> Option<Id> {
        let id = self.claim(key, hash, client)?;
        let record = &mut self.slab.records[id.0 as usize];
        fill(record);
        write_state(record, state);
        *self.population.of(record) += 1;
        if is_half_open(record) {
            self.half_open.add(record);
        }
        if self.map.is_some() {
            self.enter_in_map(id);
        }
        Some(id)
    }

    /// A free record with this key that can be found.
    #[inline]
    fn claim(&mut self, key: &FlowKey, hash: u64, client: Side) -> Option<Id> {
        let is_new = self.free == NIL;
        let place = if is_new { self.used } else { self.free };
        if place as usize >= self.capacity || !self.link(hash, place, false) {
            return None;
        }
        let record = &mut self.slab.records[place as usize];
        if is_new {
            self.used += 1;
            self.slab.head[0].used = self.used;
        } else {
            self.free = record.link_next;
        }
        *record = Flow::new(key, hash, record.generation, client);
        record.slot = wheel::UNFILED;
        if key.v6 {
            self.slab.upper[place as usize] = upper(key);
        }
        self.len += 1;
        self.entered = self.entered.wrapping_add(1);
        Some(Id(place))
    }

    /// Enters a place under the hash of its first or its second key.
    fn link(&mut self, hash: u64, place: u32, is_second: bool) -> bool {
        let slab = &self.slab;
        self.index.enter(hash, place, is_second, |place, is_second| match is_second {
            false => slab.records[place as usize].hash,
            true => slab.redirects[place as usize].hash(),
        })
    }

    /// Lets a flow be found under a second key too. False, changing nothing, if the table has no side array or the index has no room.
    pub fn redirect(&mut self, id: Id, redirect: Redirect) -> bool {
        let hash = redirect.hash();
        if self.slab.redirects.get(id.0 as usize).is_none() || !self.link(hash, id.0, true) {
            return false;
        }
        self.slab.redirects[id.0 as usize] = redirect;
        self.slab.records[id.0 as usize].set(FlowFlags::REDIRECTED, true);
        if let Some(map) = &mut self.map {
            map.enter(&redirect.key(), hash, id.0, true);
        }
        true
    }

    /// What lies beside the record of a flow of a service, whether it has a second key yet or not; `None` if the table has no side array.
    pub fn beside(&self, id: Id) -> Option<&Redirect> {
        self.slab.redirects.get(id.0 as usize)
    }

    /// The same, to change what is not the key.
    pub fn beside_mut(&mut self, id: Id) -> Option<&mut Redirect> {
        self.slab.redirects.get_mut(id.0 as usize)
    }

    /// The second key of a flow and what goes with it, if it has one.
    pub fn redirected(&self, id: Id) -> Option<&Redirect> {
        self[id].is(FlowFlags::REDIRECTED).then(|| &self.slab.redirects[id.0 as usize])
    }

    /// What is added to the sequence numbers and to the timestamps of a flow's client on their way to the server: nothing, unless the server has a
    /// key of its own.
    #[inline]
    pub fn client_deltas(&self, id: Id) -> (SeqDelta, SeqDelta) {
        self.redirected(id).map_or_else(Default::default, |redirect| (redirect.seq_delta, redirect.ts_delta))
    }

    /// A record to change in words that are each valid alone, whatever becomes of this process between two of them.
    #[inline(always)]
    pub fn edit(&mut self, id: Id) -> Edit<'_> {
        Edit(&mut self.slab.records[id.0 as usize])
    }

    /// The same, for a change of its own.
    #[inline(always)]
    pub fn update<R>(&mut self, id: Id, change: impl FnOnce(&mut Flow) -> R) -> R {
        change(&mut self.edit(id))
    }

    /// Changes a flow's state and, with it, what must not change without it.
    #[inline(always)]
    pub fn set_state<R>(&mut self, id: Id, state: State, change: impl FnOnce(&mut Flow) -> R) -> R {
        let mut result = None;
        self.follow_state(id, |flow| {
            result = Some(change(flow));
            state
        });
        result.expect("the change was made")
    }

    /// Changes a record in a way that may lead to another state, which `change` returns. The record goes to the undo slot first, and the state is
    /// written last.
    #[inline]
    pub fn follow_state(&mut self, id: Id, change: impl FnOnce(&mut Flow) -> State) -> State {
        let (records, undo) = self.slab.records.split_at_mut(self.capacity);
        let (record, undo) = (&mut records[id.0 as usize], &mut undo[0]);
        *undo = *record;
        undo.link_next = id.0;
        compiler_fence(Ordering::SeqCst);
        undo.slot = UNDO;
        compiler_fence(Ordering::SeqCst);
        let (kind, was_half_open) = (Kind::of(record), is_half_open(record));
        let state = change(record);
        write_state(record, state);
        debug_assert_eq!(Kind::of(record), kind, "a flow is counted where it began");
        match (was_half_open, is_half_open(record)) {
            (true, false) => self.half_open.remove(record),
            (false, true) => self.half_open.add(record),
            _ => {}
        }
        compiler_fence(Ordering::SeqCst);
        undo.slot = 0;
        state
    }

    /// Puts a flow into any state, for tests.
    #[cfg(test)]
    pub fn overwrite(&mut self, id: Id, state: State, change: impl FnOnce(&mut Flow)) {
        let record = &mut self.slab.records[id.0 as usize];
        *self.population.of(record) -= 1;
        if is_half_open(record) {
            self.half_open.remove(record);
        }
        change(record);
        record.state = state as u8;
        *self.population.of(record) += 1;
        if is_half_open(record) {
            self.half_open.add(record);
        }
    }

    /// Removes a flow.
    pub fn remove(&mut self, id: Id) {
        if self.map.is_some() {
            self.remove_from_map(id);
        }
        self.wheel.unfile(&mut self.slab.records, id);
        if let Some(redirect) = self.redirected(id) {
            let hash = redirect.hash();
            self.index.remove(hash, id.0, true);
        }
        let record = &mut self.slab.records[id.0 as usize];
        *self.population.of(record) -= 1;
        if is_half_open(record) {
            self.half_open.remove(record);
        }
        record.state = State::Free as u8;
        compiler_fence(Ordering::SeqCst);
        record.generation = record.generation.wrapping_add(1);
        record.link_next = self.free;
        self.index.remove(record.hash, id.0, false);
        self.free = id.0;
        self.len -= 1;
    }

    /// Puts a flow that is on no timer on one that is due at `deadline`.
    #[inline]
    pub fn enter(&mut self, id: Id, deadline: Ticks) {
        self.wheel.enter(&mut self.slab.records, id, deadline);
    }

    /// Makes a flow due at `deadline`, whatever it was due at.
    #[inline(always)]
    pub fn schedule(&mut self, id: Id, deadline: Ticks) {
        self.wheel.schedule(&mut self.slab.records, id, deadline);
    }

    /// One piece of the timers' work: see [`Wheel::step`].
    #[inline]
    pub fn step(&mut self, now: Instant) -> Option<Option<Id>> {
        self.wheel.step(&mut self.slab.records, now)
    }

    /// The earliest time at which a timer may be due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.wheel.next_deadline()
    }

    /// An entry, and a generation it does not have, of an excerpt: a record that stands for flows that are gone.
    pub const GONE: (Id, u16) = (Id(0), 1);

    /// Where the `n`th flow of an excerpt is.
    pub fn place_in_excerpt(n: usize) -> Id {
        Id(n as u32 + 1)
    }

    /// A small table of these flows, which differ, with as much room as this one has, or some; its first record stands for none.
    pub fn excerpt(&self, ids: &[Id]) -> Table {
        let room = (self.capacity - self.len).min(8);
        let redirects = !self.slab.redirects.is_empty();
        let mut table = Table::new(2 + ids.len(), Slab::anonymous(ids.len() + 1 + room, redirects), Instant::default());
        (table.used, table.len) = (1, 1);
        for &id in ids {
            let (key, flow) = (self.key(id), &self[id]);
            let taken = table.claim(&key, flow.hash, flow.client());
            debug_assert!(taken.is_some(), "a bucket has ways for all of them");
            let Some(copy) = taken else { continue };
            table.slab.records[copy.0 as usize] = *flow;
            if let Some(redirect) = self.redirected(id) {
                table.redirect(copy, *redirect);
            } else if let (Some(own), Some(beside)) = (table.beside_mut(copy), self.beside(id)) {
                own.gathered = beside.gathered;
            }
        }
        let so_full = |flows: usize| (table.len + flows).saturating_sub(self.len);
        (table.nearly_full, table.almost_full) = (so_full(self.nearly_full), so_full(self.almost_full));
        // Of flows that are not in it the excerpt knows how many there are.
        table.population = self.population;
        table.half_open = self.half_open.clone();
        table
    }

    /// Puts the flows of an excerpt on its own timers, as of `now`.
    pub fn file_excerpt(&mut self, now: Instant) {
        self.wheel = Wheel::new(now);
        for n in 1..self.used {
            let record = &mut self.slab.records[n as usize];
            record.slot = wheel::UNFILED;
            let deadline = record.deadline;
            self.enter(Id(n), deadline);
        }
    }

    /// The flows among the `count` records from the place `from` on, and the place to go on from; none when these were the last.
    pub fn slice(&self, from: u32, count: u32) -> (impl Iterator<Item = (Id, &Flow)>, Option<u32>) {
        let (begin, end) = (from.min(self.used), from.saturating_add(count).min(self.used));
        let records = (begin..end).zip(&self.slab.records[begin as usize..end as usize]);
        let flows = records.filter(|(_, flow)| !flow.is_in(State::Free)).map(|(place, flow)| (Id(place), flow));
        (flows, Some(end).filter(|&end| end < self.used))
    }

    /// The key of a flow, as its client knows it.
    pub fn key(&self, id: Id) -> FlowKey {
        self.slab.records[id.0 as usize].key(&self.slab.upper[id.0 as usize])
    }
}

impl Slab {
    /// This memory, which no process has used, with the flows of other tables that `is_mine` names by their keys and the hashes that name their
    /// [owners](crate::owner::share), as far as there is room; established ones first. They are ready to be adopted by an engine of this configuration and these
    /// secrets, which are also those of the processes that left the flows.
    pub fn import(
        self,
        config: &Config,
        secrets: &Secrets,
        remains: &[Remains<'_>],
        is_mine: impl Fn(&FlowKey, u64) -> bool,
    ) -> (Slab, Adopted) {
        let keys = secrets.hash_keys();
        let naming = Naming::of(config);
        let is_mine = |key: &FlowKey, hash| is_mine(key, naming.hash(key, hash, keys));
        let mut table = Table::new(config.table_buckets, self, Instant::default());
        for established in [true, false] {
            remains.iter().for_each(|remains| table.import(remains, keys, &is_mine, established));
        }
        let adopted = table.adopted;
        (table.into_slab(), adopted)
    }
}

/// Writes a state, last: the only place where one is written, but for a record that is freed.
#[inline(always)]
fn write_state(record: &mut Flow, state: State) {
    let former = record.state();
    debug_assert!(former == state || former.may_become(state), "{former:?} must not become {state:?}");
    compiler_fence(Ordering::SeqCst);
    record.state = state as u8;
}

#[inline(always)]
fn upper(key: &FlowKey) -> slab::UpperWords {
    [key.lan, key.wan].map(|address| [address[0], address[1], address[2]])
}

impl Indexed<Id> for Table {
    type Output = Flow;

    #[inline(always)]
    fn index(&self, id: Id) -> &Flow {
        &self.slab.records[id.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn key(n: u32) -> FlowKey {
        let v6 = n.is_multiple_of(3);
        let lan = if v6 { [n, 0, 0, 1] } else { [0, 0, 0xffff, 1] };
        FlowKey { lan, wan: [0, 0, 0xffff, n], lan_port: 80, wan_port: n as u16, v6, ..FlowKey::default() }
    }

    const KEYS: Keys = (1, 2);
    const NOW: Instant = Instant::from_secs(1000);

    fn table(buckets: usize, capacity: usize) -> Table {
        Table::new(buckets, Slab::anonymous(capacity, false), NOW)
    }

    fn insert(table: &mut Table, n: u32) -> Option<Id> {
        table.insert(&key(n), hash(n), Side::Wan, State::SynCached, |_| ())
    }

    fn hash(n: u32) -> u64 {
        key(n).hash(KEYS)
    }

    #[test]
    fn a_table_takes_as_many_as_it_says_and_no_more() {
        let mut table = table(1024, 8192);
        for n in 0..8192 {
            assert!(insert(&mut table, n).is_some(), "{n} of 8192");
        }
        assert!(insert(&mut table, 9000).is_none());
        for n in 0..8192 {
            let id = table.find(&key(n), hash(n)).unwrap();
            assert_eq!(table.key(id), key(n));
        }
    }

    #[test]
    fn any_number_of_buckets_will_do_and_no_record_is_touched_before_its_time() {
        for buckets in [1, 3, 100, 1001] {
            let capacity = buckets * 8;
            let mut table = table(buckets, capacity);
            assert_eq!(table.used as usize, 0);
            for n in 0..capacity as u32 {
                let id = insert(&mut table, n).unwrap_or_else(|| panic!("{n} of {capacity}"));
                assert_eq!((id.0, table.used as usize), (n, n as usize + 1));
            }
            assert!(table.is_full());
            for n in 0..capacity as u32 {
                assert_eq!(table.find(&key(n), hash(n)), Some(Id(n)));
                table.remove(Id(n));
            }
            assert!(insert(&mut table, 1).is_some());
            assert_eq!(table.used as usize, capacity, "a record is used again");
        }
    }

    #[test]
    fn equal_hashes_of_different_ends_are_kept_apart() {
        let mut table = table(4, 32);
        let ids: Vec<_> =
            (0..10).map(|n| table.insert(&key(n), 42, Side::Wan, State::SynCached, |_| ()).unwrap()).collect();
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(table.find(&key(n as u32), 42), Some(*id));
        }
        table.remove(ids[3]);
        assert_eq!(table.find(&key(3), 42), None);
    }

    proptest! {
        #[test]
        fn a_table_is_a_map(steps in prop::collection::vec((any::<bool>(), 0u32..200), 0..2000)) {
            let mut table = table(16, 128);
            let mut model = HashMap::new();
            for (enter, n) in steps {
                prop_assert_eq!(table.find(&key(n), hash(n)), model.get(&n).copied());
                match (enter, model.contains_key(&n)) {
                    (true, false) => {
                        if let Some(id) = insert(&mut table, n) {
                            model.insert(n, id);
                        }
                    }
                    (false, true) => table.remove(model.remove(&n).unwrap()),
                    _ => {}
                }
                prop_assert_eq!(table.len(), model.len());
            }
            for (n, id) in &model {
                prop_assert_eq!(table.find(&key(*n), hash(*n)), Some(*id));
            }
            for id in model.into_values() {
                table.remove(id);
            }
            prop_assert!(table.index.is_empty());
        }
    }

    #[test]
    fn a_flow_is_found_under_both_its_keys_and_goes_from_both() {
        let mut table = Table::new(16, Slab::anonymous(128, true), NOW);
        let redirect = |n: u32| Redirect::new(&key(n), hash(n), Side::Wan, Side::Lan);
        for n in 0..50 {
            let id = insert(&mut table, n).unwrap();
            assert!(table.redirect(id, redirect(1000 + n)), "{n}");
            assert_eq!(table.redirected(id), Some(&redirect(1000 + n)));
        }
        for n in 0..50 {
            let id = table.find(&key(n), hash(n)).unwrap();
            assert_eq!(table.find(&key(1000 + n), hash(1000 + n)), Some(id));
            assert!(table.is_at(id, &key(1000 + n)) && !table.is_at(id, &key(2000 + n)));
            table.remove(id);
            assert_eq!((table.find(&key(n), hash(n)), table.find(&key(1000 + n), hash(1000 + n))), (None, None));
        }
        assert!(table.index.is_empty());
        let mut without = self::table(16, 128);
        let id = insert(&mut without, 1).unwrap();
        assert!(!without.redirect(id, redirect(2)), "a table without the side array");
    }

    proptest! {
        /// Of both keys of a flow any bucket and any tag may be the same, and those of others; and both lie in either of their buckets.
        #[test]
        fn a_table_is_a_map_of_both_keys_whatever_their_hashes(
            steps in prop::collection::vec((0u32..24, prop::array::uniform2((0u32..3, 1u64..4))), 0..400),
        ) {
            let mut table = Table::new(3, Slab::anonymous(24, true), NOW);
            let mut model: HashMap<u32, (Id, u64, Option<u64>)> = HashMap::new();
            let hash = |(bucket, tag): (u32, u64)| tag << 48 | u64::from((bucket * 0x5555_5555 + 7).rotate_right(4));
            for (n, hashes) in steps {
                let [first, second] = hashes.map(hash);
                match model.remove(&n) {
                    Some((id, ..)) => table.remove(id),
                    None => {
                        if let Some(id) = table.insert(&key(n), first, Side::Wan, State::SynCached, |_| ()) {
                            let redirect = Redirect::new(&key(1000 + n), second, Side::Wan, Side::Lan);
                            let is_redirected = table.redirect(id, redirect);
                            model.insert(n, (id, first, is_redirected.then_some(second)));
                        }
                    }
                }
                for (&n, &(id, first, second)) in &model {
                    prop_assert_eq!(table.find(&key(n), first), Some(id));
                    if let Some(second) = second {
                        prop_assert_eq!(table.find(&key(1000 + n), second), Some(id));
                    }
                }
            }
            for (id, ..) in model.into_values() {
                table.remove(id);
            }
            prop_assert!(table.index.is_empty());
        }
    }

    /// One flow in 65 536 has two keys that the index's tags do not tell apart.
    #[test]
    fn a_flow_has_two_keys_even_if_their_tags_are_equal() {
        let mut table = Table::new(16, Slab::anonymous(128, true), NOW);
        let (first, second) = (hash(1), hash(1) ^ 0xffff_ffff);
        assert_eq!(Index::tag(first), Index::tag(second));
        let id = table.insert(&key(1), first, Side::Wan, State::SynCached, |_| ()).unwrap();
        assert!(table.redirect(id, Redirect::new(&key(2), second, Side::Wan, Side::Lan)));
        assert_eq!((table.find(&key(1), first), table.find(&key(2), second)), (Some(id), Some(id)));
        table.remove(id);
        assert!(table.index.is_empty());
    }

    /// What is in a table, by key.
    fn contents(table: &Table) -> HashMap<(u32, u16), (State, u32)> {
        let name = |id| (table.key(id).wan[3], table.key(id).wan_port);
        table.slice(0, u32::MAX).0.map(|(id, flow)| (name(id), (flow.state(), flow.born))).collect()
    }

    /// A table with flows in several states, as another process leaves it.
    fn lived() -> Table {
        let mut table = table(16, 128);
        for n in 0..100 {
            let state = if n % 2 == 0 { State::SynSent } else { State::Established };
            let id = table.insert(&key(n), hash(n), Side::Wan, state, |flow| flow.born = n).unwrap();
            table.enter(id, 5 * n);
        }
        (0..100).step_by(7).for_each(|n| table.remove(table.find(&key(n), hash(n)).unwrap()));
        table
    }

    #[test]
    fn what_another_process_left_is_found_again() {
        let before = lived();
        let (known, population) = (contents(&before), before.population());
        let mut after = Table::adopt(16, before.into_slab(), KEYS, NOW);
        assert_eq!((contents(&after), after.population()), (known.clone(), population));
        for n in 100..400 {
            insert(&mut after, n);
        }
        assert!(after.is_full());
        let ids: Vec<_> = after.slice(0, u32::MAX).0.map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| after.remove(id));
        assert!(after.index.is_empty() && after.population() == Population::default());
    }

    /// What lies in this memory, which is aligned as a mapping is.
    fn in_mapping(words: &[u64]) -> &'static [u64] {
        let memory = vec![0; words.len() + 8].leak();
        let skip = memory.as_ptr().align_offset(64);
        memory[skip..skip + words.len()].copy_from_slice(words);
        &memory[skip..skip + words.len()]
    }

    /// What three workers left goes to two or five, each flow to its new owner; a change that was not finished is taken back on the way.
    #[test]
    fn flows_move_to_the_tables_of_other_workers() {
        let secrets = Secrets::new([3; 48]);
        let keys = secrets.hash_keys();
        let config = Config { table_buckets: 16, ..Config::default() };
        let owner = |n: u32, workers| crate::owner::share(key(n).hash(keys), workers);
        let mut former: Vec<Table> = (0..3).map(|_| Table::new(16, Slab::anonymous(128, true), NOW)).collect();
        let mut known = HashMap::new();
        for n in 0..200 {
            let state = if n % 2 == 0 { State::SynSent } else { State::Established };
            let table = &mut former[owner(n, 3)];
            let id = table.insert(&key(n), key(n).hash(keys), Side::Wan, state, |flow| flow.born = n).unwrap();
            if n % 10 == 0 {
                let other = key(1000 + n);
                assert!(table.redirect(id, Redirect::new(&other, other.hash(keys), Side::Wan, Side::Lan)));
            }
            known.insert((n, n as u16), (state, n));
        }
        let table = &mut former[owner(7, 3)];
        let id = table.find(&key(7), key(7).hash(keys)).unwrap();
        table.set_state(id, State::FinWait, |flow| flow.set(FlowFlags::FIN_WAN, true));
        let mut slabs: Vec<Slab> = former.into_iter().map(Table::into_slab).collect();
        slabs[owner(7, 3)].records[128].slot = UNDO;
        let words: Vec<_> = slabs.iter().map(|slab| in_mapping(&slab.to_words())).collect();
        let remains: Vec<_> =
            words.iter().map(|words| Remains::of(words, crate::RECORD_LAYOUT, 128, true).unwrap()).collect();
        for workers in [2, 5] {
            let mut found = HashMap::new();
            for worker in 0..workers {
                let is_mine = |_: &FlowKey, hash| crate::owner::share(hash, workers) == worker;
                let slab = Slab::anonymous(128, true);
                let (slab, adopted) = slab.import(&config, &secrets, &remains, is_mine);
                let table = Table::adopt(16, slab, keys, NOW);
                assert_eq!((adopted.refused, adopted.no_room), (0, 0));
                assert_eq!(table.adopted(), adopted);
                let ids: Vec<_> = table.slice(0, u32::MAX).0.map(|(id, _)| id).collect();
                for id in ids {
                    let n = table.key(id).wan[3];
                    assert_eq!((owner(n, workers), table.redirected(id).is_some()), (worker, n.is_multiple_of(10)));
                }
                found.extend(contents(&table));
            }
            assert_eq!(found, known, "{workers} workers");
        }
        // Where there is no room for all, established ones come first.
        let (slab, adopted) = Slab::anonymous(64, true).import(&config, &secrets, &remains, |_, _| true);
        assert_eq!((adopted.flows, adopted.no_room), (64, 136));
        let table = Table::adopt(16, slab, keys, NOW);
        assert!(contents(&table).values().all(|(state, _)| *state == State::Established));
        let config = Config { table_buckets: 64, ..Config::default() };
        // Of a table without second keys those that have one are refused; with other secrets, all.
        let (_, adopted) = Slab::anonymous(512, false).import(&config, &secrets, &remains, |_, _| true);
        assert_eq!((adopted.flows, adopted.refused), (180, 20));
        let (_, adopted) = Slab::anonymous(512, true).import(&config, &Secrets::new([4; 48]), &remains, |_, _| true);
        assert_eq!((adopted.flows, adopted.refused), (0, 200));
    }

    #[test]
    fn a_change_that_was_not_finished_is_taken_back() {
        let mut table = lived();
        let id = table.find(&key(1), hash(1)).unwrap();
        let known = contents(&table);
        // Killed with the change half done: the copy still stands in the undo slot.
        table.set_state(id, State::FinWait, |flow| {
            flow.set(FlowFlags::FIN_WAN, true);
            flow.born = 77;
        });
        let mut slab = table.into_slab();
        slab.records[128].slot = UNDO;
        let after = Table::adopt(16, slab.clone(), KEYS, NOW);
        assert_eq!(contents(&after), known);
        // And one that was finished is not.
        slab.records[128].slot = 0;
        let after = Table::adopt(16, slab, KEYS, NOW);
        assert_eq!(contents(&after).get(&(1, 1)), Some(&(State::FinWait, 77)));
    }

    #[test]
    fn of_two_records_with_one_key_one_is_taken() {
        let table = lived();
        let (id, used) = (table.find(&key(1), hash(1)).unwrap(), table.used as usize);
        let count = contents(&table).len();
        let mut slab = table.into_slab();
        slab.records[used] = slab.records[id.0 as usize];
        slab.upper[used] = slab.upper[id.0 as usize];
        let after = Table::adopt(16, slab, KEYS, NOW);
        assert_eq!((after.len(), contents(&after).len()), (count, count));
    }

    /// Whatever lies in the memory, random bytes or records that were half written: what is taken is whole and can be removed, and what is free can
    /// be used.
    #[test]
    fn any_memory_makes_a_table() {
        let mut lived = table(2, 16);
        (0..12).for_each(|n| {
            let state = State::ALL[n as usize];
            let id = insert(&mut lived, n).unwrap();
            lived.overwrite(id, state, |flow| flow.set_client(if n % 2 == 0 { Side::Lan } else { Side::Wan }));
        });
        let lived = lived.into_slab();
        let mut random = crate::memory::tests::random(7);
        let mut taken = 0;
        for n in 0..100_000 {
            let mut slab = lived.clone();
            let bytes = slab.bytes_mut();
            if n % 4 == 0 {
                bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random().to_le_bytes()));
            } else {
                // A record of another moment, or another place, up to some byte; and a few random bytes.
                let (from, to, len) = (random() as usize % 17, random() as usize % 17, random() as usize % 129);
                bytes.copy_within(128 * from..128 * from + len, 128 * to);
                for _ in 0..random() % 8 {
                    let word = random();
                    bytes[word as usize % (17 * 128)] = (word >> 32) as u8;
                }
            }
            taken += whole_and_usable(slab);
        }
        assert!(taken > 300_000, "{taken} records were taken of a million that were little damaged");
    }

    /// How many records of this memory are taken; that each of them is found, comes up in time, and goes.
    fn whole_and_usable(slab: Slab) -> usize {
        let mut table = Table::adopt(2, slab, KEYS, NOW);
        let ids: Vec<_> = table.slice(0, u32::MAX).0.map(|(id, _)| id).collect();
        assert_eq!(ids.len(), table.len());
        for &id in &ids {
            let key = table.key(id);
            assert_eq!(table.find(&key, key.hash(KEYS)), Some(id));
            assert_eq!(table[id].held, 0);
            table.enter(id, table[id].deadline());
        }
        for _ in 0..1000 {
            if table.step(NOW + core::time::Duration::from_secs(10)).is_none() {
                break;
            }
        }
        assert!(table.step(NOW + core::time::Duration::from_secs(10)).is_none(), "the wheel comes to an end");
        ids.iter().for_each(|&id| table.remove(id));
        assert!(table.index.is_empty() && table.population() == Population::default());
        let again = (100..116).filter(|&n| insert(&mut table, n).is_some()).count();
        assert!(again > 12, "{again} of 16 places can be used again");
        ids.len()
    }
}
