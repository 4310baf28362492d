//! The flows, as a program of the kernel may ask for them while no worker decides: which are translated, and which are passed through.
//!
//! The map is memory that the program reads at any time and one worker writes, a word at once. It is written when a flow begins and when it ends, never
//! for a segment. `pktio/bpf/fail.h` reads it by the same layout; a property test holds them equal.
//!
//! A bucket is a cache line. Its first word counts flows for which it had no room: who asks for a flow there and does not find it cannot know. Each
//! other word is a flow, or zero: the upper 31 bits of its hash, one bit that says whether it is translated, and its place in the flow table plus one.
//! A flow is named by the keyed hash of its 4-tuple without VLAN tags, since the two directions of a connection may bear different ones.

use crate::keyed::Keys;
use crate::memory::{LINE, Word, Words};
use crate::owner::named_by;
use crate::wire::FlowKey;

/// Flows for each bucket of seven: of the buckets of a table that is full, one in twenty has no room for all of its own.
const FLOWS_A_BUCKET: usize = 4;

const TRANSLATED: u64 = 1 << 32;
const HASH: u32 = 33;

/// One worker's part of the map.
pub struct FlowMap {
    words: Words,
    keys: Keys,
    /// Flows for which there was no room.
    left_out: u64,
}

impl FlowMap {
    /// Words that a map of so many flows needs.
    pub const fn words_needed(flows: usize) -> usize {
        flows.div_ceil(FLOWS_A_BUCKET) * LINE
    }

    /// A map in these words, which are zero. The keys are those of the hash that names flows.
    ///
    /// # Panics
    /// If there is not even one bucket.
    pub fn new(words: Words, keys: Keys) -> Self {
        assert!(words.len() >= LINE, "a bucket");
        Self { words, keys, left_out: 0 }
    }

    /// How many flows are not in the map because it has no room for them.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// How many flows were entered and not removed, counted in the whole map.
    pub fn count(&self) -> u64 {
        let count = |bucket| {
            let [left_out, flows @ ..] = self.words.line(bucket);
            left_out.get() + flows.iter().filter(|flow| flow.get() != 0).count() as u64
        };
        (0..self.words.len() / LINE).map(count).sum()
    }

    #[inline]
    fn bucket(&self, hash: u64) -> usize {
        (((hash & 0xffff_ffff) * (self.words.len() / LINE) as u64) >> 32) as usize
    }

    /// Enters the flow at this place, of which `hash` is the keyed hash of `key`.
    pub fn enter(&mut self, key: &FlowKey, hash: u64, place: u32, is_translated: bool) {
        let hash = named_by(key, hash, self.keys);
        let [left_out, flows @ ..] = self.words.line(self.bucket(hash));
        match flows.iter().find(|flow| flow.get() == 0) {
            Some(free) => {
                let translated = if is_translated { TRANSLATED } else { 0 };
                free.set(hash >> HASH << HASH | translated | u64::from(place + 1));
            }
            None => {
                left_out.set(left_out.get() + 1);
                self.left_out += 1;
            }
        }
    }

    /// Removes the flow at this place, with this key and hash.
    pub fn remove(&mut self, key: &FlowKey, hash: u64, place: u32) {
        let hash = named_by(key, hash, self.keys);
        let [left_out, flows @ ..] = self.words.line(self.bucket(hash));
        let is_it = |flow: u64| flow >> HASH == hash >> HASH && flow as u32 == place + 1;
        match flows.iter().find(|flow| is_it(flow.get())) {
            Some(own) => own.set(0),
            None => {
                left_out.set(left_out.get().saturating_sub(1));
                self.left_out = self.left_out.saturating_sub(1);
            }
        }
    }

    /// What the map says of a flow with this key: whether it is translated, or `None` where it says nothing, or cannot. The program decides by the
    /// same rule; this is for tests.
    pub fn find(maps: &[Words], keys: Keys, key: &FlowKey) -> Found {
        let hash = FlowKey { vlan: Default::default(), ..*key }.hash(keys);
        let mut found = Found::default();
        for words in maps {
            let bucket = (((hash & 0xffff_ffff) * (words.len() / LINE) as u64) >> 32) as usize;
            let [left_out, flows @ ..] = words.line(bucket);
            found.is_unknown |= left_out.get() != 0;
            for flow in flows.iter().map(Word::get).filter(|flow| flow >> HASH == hash >> HASH && *flow as u32 != 0) {
                *(if flow & TRANSLATED != 0 { &mut found.is_translated } else { &mut found.is_passed }) = true;
            }
        }
        found
    }
}

/// What a map says of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// There is a translated flow of this name.
    pub is_translated: bool,
    /// There is one that is passed through.
    pub is_passed: bool,
    /// There may be one that had no room.
    pub is_unknown: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::shared;
    use crate::wire::Vlan;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const KEYS: Keys = (5, 6);

    fn key(n: u16) -> FlowKey {
        FlowKey { lan: [0, 0, 0xffff, 1], wan: [0, 0, 0xffff, 2], lan_port: 80, wan_port: n, ..FlowKey::default() }
    }

    fn map(buckets: usize) -> (FlowMap, Words) {
        let words = shared(buckets * LINE, || 0);
        let same = words.share().expect("it was handed in");
        (FlowMap::new(words, KEYS), same)
    }

    proptest! {
        #[test]
        fn the_map_says_of_each_flow_what_it_is_or_that_it_does_not_know(
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0u16..60), 0..400),
        ) {
            let (mut map, words) = map(4);
            let words = [words];
            let mut model = HashMap::new();
            for (enters, is_translated, n) in steps {
                let (key, place) = (key(n), u32::from(n));
                match (enters, model.contains_key(&n)) {
                    (true, false) => {
                        map.enter(&key, key.hash(KEYS), place, is_translated);
                        model.insert(n, is_translated);
                    }
                    (false, true) => {
                        map.remove(&key, key.hash(KEYS), place);
                        model.remove(&n);
                    }
                    _ => {}
                }
                for n in 0..60 {
                    let found = FlowMap::find(&words, KEYS, &self::key(n));
                    match model.get(&n) {
                        Some(true) => prop_assert!(found.is_translated || found.is_unknown),
                        Some(false) => prop_assert!(found.is_passed || found.is_unknown),
                        None => prop_assert!(!found.is_translated && !found.is_passed),
                    }
                }
            }
            let kept = model.len() as u64 - map.left_out();
            prop_assert!(kept <= 28);
            for (n, _) in model {
                map.remove(&key(n), key(n).hash(KEYS), u32::from(n));
            }
            prop_assert_eq!(map.left_out(), 0);
            prop_assert!((0..words[0].len()).all(|n| words[0][n].get() == 0), "what ends leaves nothing");
        }
    }

    #[test]
    fn a_full_bucket_says_that_it_does_not_know_and_only_as_long_as_it_must() {
        let (mut map, words) = map(1);
        let words = [words];
        for n in 0..8 {
            map.enter(&key(n), key(n).hash(KEYS), n.into(), true);
        }
        assert_eq!(map.left_out(), 1);
        assert!(FlowMap::find(&words, KEYS, &key(7)).is_unknown);
        map.remove(&key(7), key(7).hash(KEYS), 7);
        assert_eq!(FlowMap::find(&words, KEYS, &key(7)), Found::default());
        assert!(FlowMap::find(&words, KEYS, &key(3)).is_translated);
    }

    #[test]
    fn tags_do_not_matter() {
        let (mut map, words) = map(8);
        let tagged = FlowKey { vlan: Vlan(1 << 24 | 7), ..key(1) };
        map.enter(&tagged, tagged.hash(KEYS), 1, true);
        assert!(FlowMap::find(&[words], KEYS, &key(1)).is_translated);
        map.remove(&tagged, tagged.hash(KEYS), 1);
        assert_eq!(map.left_out(), 0);
    }
}
