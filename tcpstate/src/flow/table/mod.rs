//! The flow table: a fixed number of records, found through buckets of one cache line.
//!
//! A bucket holds ten tags of 16 bits and the places they stand for. A flow lives in the bucket its hash names or, if that
//! is full, in a second one that follows from bucket and tag; a bucket knows how many of its own live elsewhere, so
//! that looking for what is not there touches one line. Records are taken one after the other: memory that no flow has needed yet is
//! never touched.

pub mod wheel;

use core::ops::{Index, IndexMut};

use crate::flow::{Flow, State};
use crate::prefetch::prefetch;
use crate::wire::FlowKey;

/// The place of a flow in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Id(pub(crate) u32);

impl Id {
    /// No flow's place: it is not known.
    pub(crate) const NOWHERE: Id = Id(NIL);
    /// No flow's place: there is none.
    pub(crate) const ABSENT: Id = Id(NIL - 1);
}

/// No place: the end of a list.
pub(crate) const NIL: u32 = u32::MAX;

const WAYS: usize = 10;

#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Bucket {
    /// Zero marks a free place.
    tags: [u16; WAYS],
    /// How many flows whose first choice is this bucket live in their second.
    overflowed: u16,
    _pad: u16,
    places: [u32; WAYS],
}

const _: () = assert!(size_of::<Bucket>() == 64, "a probe touches one cache line");

impl Bucket {
    fn free_way(&self) -> Option<usize> {
        self.tags.iter().position(|&tag| tag == 0)
    }

    /// One bit for each way that has this tag.
    #[inline(always)]
    fn matches(&self, tag: u16) -> u32 {
        // Eight at once, as processors have it.
        let (wide, rest) = self.tags.split_at(8);
        let wide: u16 = wide.iter().enumerate().map(|(way, &t)| if t == tag { 1 << way } else { 0 }).sum();
        rest.iter().enumerate().fold(wide.into(), |bits, (way, &t)| bits | u32::from(t == tag) << (8 + way))
    }
}

/// What a bucket says about where a flow may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// A flow of the same tag is here.
    Perhaps(Id),
    /// If anywhere, it is in its second bucket.
    Elsewhere,
    /// There is none.
    Nowhere,
}

/// The flow table.
pub struct Table {
    /// Those that are or were in use, at most `capacity`.
    flows: Vec<Flow>,
    capacity: usize,
    /// The upper words of IPv6 addresses, beside the flows; untouched, and so not resident, where flows are IPv4.
    upper: Vec<[[u32; 3]; 2]>,
    buckets: Vec<Bucket>,
    /// The first of the records that were used and are free again.
    free: u32,
    len: usize,
    /// How many flows were ever entered, on a circle: what was found absent is so while this stands still.
    entered: u32,
}

impl Table {
    /// An empty table for `capacity` flows, all memory taken.
    ///
    /// # Panics
    /// If there are no buckets, or those or the capacity reach 2^31.
    pub fn new(buckets: usize, capacity: usize) -> Self {
        assert!(buckets > 0 && buckets < 1 << 31 && capacity < 1 << 31);
        Self {
            flows: Vec::with_capacity(capacity),
            capacity,
            upper: vec![[[0; 3]; 2]; capacity],
            buckets: vec![Bucket::default(); buckets],
            free: NIL,
            len: 0,
            entered: 0,
        }
    }

    /// How many flows there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.len
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

    /// All records, for the wheel that is threaded through them.
    pub(crate) fn flows_mut(&mut self) -> &mut [Flow] {
        &mut self.flows
    }

    /// The bucket that is as far among the buckets as `fraction` is among the numbers of 32 bits.
    #[inline(always)]
    fn bucket_at(&self, fraction: u32) -> usize {
        ((u64::from(fraction) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn first_choice(&self, hash: u64) -> usize {
        // The bits that matter most are the 28 that name nothing else.
        self.bucket_at((hash as u32).rotate_left(4))
    }

    /// The other bucket a tag may live in: both together make up a number that follows from the tag alone, so that either leads to the other.
    fn other_choice(&self, bucket: usize, tag: u16) -> usize {
        let both = self.bucket_at(u32::from(tag).wrapping_mul(0x5bd1_e995));
        if both >= bucket { both - bucket } else { both + self.buckets.len() - bucket }
    }

    #[inline(always)]
    fn tag(hash: u64) -> u16 {
        ((hash >> 48) as u16).max(1)
    }

    /// Asks for the line a lookup of this hash touches first.
    #[inline(always)]
    pub fn prefetch_bucket(&self, hash: u64) {
        prefetch(&self.buckets[self.first_choice(hash)]);
    }

    /// Asks for the lines of the flow this hash probably names; which that is, if that can be told yet, or that there is certainly none.
    #[inline(always)]
    pub fn prefetch_flow(&self, hash: u64, v6: bool) -> Guess {
        let (first, tag) = (self.first_choice(hash), Self::tag(hash));
        let bucket = &self.buckets[first];
        let matches = bucket.matches(tag);
        if matches != 0 {
            let place = bucket.places[matches.trailing_zeros() as usize];
            self.prefetch(Id(place));
            if v6 {
                prefetch(&self.upper[place as usize]);
            }
            Guess::Perhaps(Id(place))
        } else if bucket.overflowed > 0 {
            prefetch(&self.buckets[self.other_choice(first, tag)]);
            Guess::Elsewhere
        } else {
            Guess::Nowhere
        }
    }

    /// Whether the flow between these ends is at this place.
    #[inline(always)]
    pub fn is_at(&self, id: Id, key: &FlowKey) -> bool {
        let Some(flow) = self.flows.get(id.0 as usize) else { return false };
        flow.state != State::Free && self.is_between(id.0, flow, key)
    }

    #[inline(always)]
    fn is_between(&self, place: u32, flow: &Flow, key: &FlowKey) -> bool {
        flow.fits(key) && (!key.v6 || self.upper[place as usize] == upper(key))
    }

    /// Asks for the lines of a record.
    pub fn prefetch(&self, id: Id) {
        let flow = &self.flows[id.0 as usize];
        prefetch(flow);
        prefetch(flow.endpoint(crate::Side::Wan));
    }

    /// Asks for what the removal of a record, whose own lines are here, will touch.
    pub fn prefetch_neighbours(&self, id: Id) {
        let flow = &self.flows[id.0 as usize];
        for link in [flow.link_next, flow.link_prev] {
            if let Some(neighbour) = self.flows.get(link as usize) {
                prefetch(neighbour);
            }
        }
        self.prefetch_bucket(flow.hash);
    }

    /// Asks for the bucket of the flow that follows this one on its list, whose own lines are here.
    pub fn prefetch_next_bucket(&self, id: Id) {
        if let Some(next) = self.flows.get(self.flows[id.0 as usize].link_next as usize) {
            self.prefetch_bucket(next.hash);
        }
    }

    /// The flow between these ends.
    pub fn find(&self, key: &FlowKey, hash: u64) -> Option<Id> {
        let first = self.first_choice(hash);
        let tag = Self::tag(hash);
        self.find_in(first, tag, key).or_else(|| {
            (self.buckets[first].overflowed > 0)
                .then(|| self.find_in(self.other_choice(first, tag), tag, key))
                .flatten()
        })
    }

    fn find_in(&self, bucket: usize, tag: u16, key: &FlowKey) -> Option<Id> {
        let bucket = &self.buckets[bucket];
        let mut matches = bucket.matches(tag);
        while matches != 0 {
            let place = bucket.places[matches.trailing_zeros() as usize];
            if self.is_between(place, &self.flows[place as usize], key) {
                return Some(Id(place));
            }
            matches &= matches - 1;
        }
        None
    }

    /// A new record for these ends, which must not be in the table; `None` when it is full.
    pub fn insert(&mut self, key: &FlowKey, hash: u64) -> Option<Id> {
        let place = if self.free == NIL { self.flows.len() as u32 } else { self.free };
        if place as usize >= self.capacity || !self.link(hash, place) {
            return None;
        }
        if self.free == NIL {
            self.flows.push(Flow::new(key, hash, 0));
        } else {
            let flow = &mut self.flows[place as usize];
            self.free = flow.link_next;
            *flow = Flow::new(key, hash, flow.generation);
        }
        if key.v6 {
            self.upper[place as usize] = upper(key);
        }
        self.len += 1;
        self.entered = self.entered.wrapping_add(1);
        Some(Id(place))
    }

    /// Enters a place under a hash.
    fn link(&mut self, hash: u64, place: u32) -> bool {
        let tag = Self::tag(hash);
        let first = self.first_choice(hash);
        if let Some(way) = self.buckets[first].free_way().or_else(|| self.displace(first)) {
            self.put(first, way, tag, place);
            return true;
        }
        let second = self.other_choice(first, tag);
        if let Some(way) = self.buckets[second].free_way().or_else(|| self.displace(second)) {
            self.put(second, way, tag, place);
            self.buckets[first].overflowed += u16::from(second != first);
            return true;
        }
        false
    }

    fn put(&mut self, bucket: usize, way: usize, tag: u16, place: u32) {
        self.buckets[bucket].tags[way] = tag;
        self.buckets[bucket].places[way] = place;
    }

    /// Moves one of a full bucket's flows to its other bucket; the way that became free.
    fn displace(&mut self, bucket: usize) -> Option<usize> {
        for way in 0..WAYS {
            let (tag, place) = (self.buckets[bucket].tags[way], self.buckets[bucket].places[way]);
            let other = self.other_choice(bucket, tag);
            if other == bucket {
                continue;
            }
            if let Some(free) = self.buckets[other].free_way() {
                self.put(other, free, tag, place);
                self.buckets[bucket].tags[way] = 0;
                let first = self.first_choice(self.flows[place as usize].hash);
                if first == bucket {
                    self.buckets[first].overflowed += 1;
                } else {
                    self.buckets[first].overflowed -= 1;
                }
                return Some(way);
            }
        }
        None
    }

    /// Removes a flow. The caller has taken it off the wheel.
    pub fn remove(&mut self, id: Id) {
        let hash = self.flows[id.0 as usize].hash;
        let first = self.first_choice(hash);
        let second = self.other_choice(first, Self::tag(hash));
        for bucket in [first, second] {
            let cell = &mut self.buckets[bucket];
            let Some(way) = (0..WAYS).find(|&way| cell.tags[way] != 0 && cell.places[way] == id.0) else { continue };
            cell.tags[way] = 0;
            if bucket != first {
                self.buckets[first].overflowed -= 1;
            }
            break;
        }
        let free = self.free;
        let flow = &mut self.flows[id.0 as usize];
        flow.state = State::Free;
        flow.generation = flow.generation.wrapping_add(1);
        flow.link_next = free;
        self.free = id.0;
        self.len -= 1;
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
        let mut table = Table::new(2 + ids.len(), ids.len() + 1 + room);
        table.flows.push(Flow::default());
        table.len = 1;
        for &id in ids {
            let (key, flow) = (self.key(id), self[id]);
            let taken = table.insert(&key, flow.hash);
            debug_assert!(taken.is_some(), "a bucket has ways for all of them");
            if let Some(copy) = taken {
                table[copy] = flow;
            }
        }
        table
    }

    /// The flows among the `count` records from the place `from` on, and the place to go on from; none when these were the last.
    pub fn slice(&self, from: u32, count: u32) -> (impl Iterator<Item = (Id, &Flow)>, Option<u32>) {
        let len = self.flows.len() as u32;
        let (begin, end) = (from.min(len), from.saturating_add(count).min(len));
        let records = (begin..end).zip(&self.flows[begin as usize..end as usize]);
        let flows = records.filter(|(_, flow)| flow.state != State::Free).map(|(place, flow)| (Id(place), flow));
        (flows, Some(end).filter(|&end| end < len))
    }

    /// The ends of a flow.
    pub fn key(&self, id: Id) -> FlowKey {
        self.flows[id.0 as usize].key(&self.upper[id.0 as usize])
    }
}

#[inline(always)]
fn upper(key: &FlowKey) -> [[u32; 3]; 2] {
    [key.lan, key.wan].map(|address| [address[0], address[1], address[2]])
}

impl Index<Id> for Table {
    type Output = Flow;

    fn index(&self, id: Id) -> &Flow {
        &self.flows[id.0 as usize]
    }
}

impl IndexMut<Id> for Table {
    fn index_mut(&mut self, id: Id) -> &mut Flow {
        &mut self.flows[id.0 as usize]
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

    fn hash(n: u32) -> u64 {
        key(n).hash((1, 2))
    }

    #[test]
    fn a_table_takes_as_many_as_it_says_and_no_more() {
        let mut table = Table::new(1024, 8192);
        for n in 0..8192 {
            assert!(table.insert(&key(n), hash(n)).is_some(), "{n} of 8192");
        }
        assert!(table.insert(&key(9000), hash(9000)).is_none());
        for n in 0..8192 {
            let id = table.find(&key(n), hash(n)).unwrap();
            assert_eq!(table.key(id), key(n));
        }
    }

    #[test]
    fn any_number_of_buckets_will_do_and_no_record_is_touched_before_its_time() {
        for buckets in [1, 3, 100, 1001] {
            let capacity = buckets * 8;
            let mut table = Table::new(buckets, capacity);
            assert_eq!(table.flows.len(), 0);
            for n in 0..capacity as u32 {
                let id = table.insert(&key(n), hash(n)).unwrap_or_else(|| panic!("{n} of {capacity}"));
                assert_eq!((id.0, table.flows.len()), (n, n as usize + 1));
            }
            assert!(table.is_full());
            for n in 0..capacity as u32 {
                assert_eq!(table.find(&key(n), hash(n)), Some(Id(n)));
                table.remove(Id(n));
            }
            assert!(table.insert(&key(1), hash(1)).is_some());
            assert_eq!(table.flows.len(), capacity, "a record is used again");
        }
        let table = Table::new(1001, 8008);
        for (bucket, tag) in (0..1001).flat_map(|bucket| [1, 77, u16::MAX].map(|tag| (bucket, tag))) {
            assert_eq!(table.other_choice(table.other_choice(bucket, tag), tag), bucket);
        }
    }

    #[test]
    fn equal_hashes_of_different_ends_are_kept_apart() {
        let mut table = Table::new(4, 32);
        let ids: Vec<_> = (0..10).map(|n| table.insert(&key(n), 42).unwrap()).collect();
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(table.find(&key(n as u32), 42), Some(*id));
        }
        table.remove(ids[3]);
        assert_eq!(table.find(&key(3), 42), None);
    }

    proptest! {
        #[test]
        fn a_table_is_a_map(steps in prop::collection::vec((any::<bool>(), 0u32..200), 0..2000)) {
            let mut table = Table::new(16, 128);
            let mut model = HashMap::new();
            for (insert, n) in steps {
                prop_assert_eq!(table.find(&key(n), hash(n)), model.get(&n).copied());
                match (insert, model.contains_key(&n)) {
                    (true, false) => {
                        if let Some(id) = table.insert(&key(n), hash(n)) {
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
            prop_assert!(table.buckets.iter().all(|bucket| bucket.overflowed == 0 && bucket.tags == [0; WAYS]));
        }
    }
}
