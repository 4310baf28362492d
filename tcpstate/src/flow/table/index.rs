//! From a key's hash to a record's place: buckets of one cache line.
//!
//! A bucket holds ten tags of 16 bits and the places they stand for. A flow lies in the bucket its hash names or, if that
//! is full, in a second one that follows from bucket and tag; a bucket knows how many of its own lie elsewhere, so
//! that looking for what is not there touches one line. A flow with two keys lies in it twice, and both hashes may have the same tag: a bit for each
//! way tells which of the two was entered there.

use crate::prefetch::prefetch;

const WAYS: usize = 10;

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
struct Bucket {
    /// Zero is a free slot.
    tags: [u16; WAYS],
    /// How many flows whose first choice is this bucket lie in their second.
    overflowed: u16,
    /// One bit for each way whose flow was entered there under its second key. Says nothing of a free way.
    seconds: u16,
    places: [u32; WAYS],
}

const _: () = assert!(size_of::<Bucket>() == 64, "a probe touches one cache line");

impl Bucket {
    fn free_way(&self) -> Option<usize> {
        self.tags.iter().position(|&tag| tag == 0)
    }

    /// Whether what is entered at this way is a second key.
    fn is_second(&self, way: usize) -> bool {
        self.seconds >> way & 1 == 1
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
    /// A flow of the same tag is at this place.
    Perhaps(u32),
    /// If anywhere, it is in its second bucket.
    Elsewhere,
    /// There is none.
    Nowhere,
}

/// The index of a flow table.
pub struct Index {
    buckets: Vec<Bucket>,
}

impl Index {
    /// The bytes an index of so many buckets takes.
    pub const fn bytes_needed(buckets: usize) -> usize {
        buckets * size_of::<Bucket>()
    }

    /// An empty index of so many buckets.
    ///
    /// # Panics
    /// If there are none, or 2^31.
    pub fn new(buckets: usize) -> Self {
        assert!(buckets > 0 && buckets < 1 << 31);
        Self { buckets: vec![Bucket::default(); buckets] }
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

    /// The other bucket a tag may lie in: both together make up a number that follows from the tag alone, so that either leads to the other.
    fn other_choice(&self, bucket: usize, tag: u16) -> usize {
        let both = self.bucket_at(u32::from(tag).wrapping_mul(0x5bd1_e995));
        if both >= bucket { both - bucket } else { both + self.buckets.len() - bucket }
    }

    /// The tag of a hash: only their keys distinguish two hashes with the same tag.
    #[inline(always)]
    pub fn tag(hash: u64) -> u16 {
        ((hash >> 48) as u16).max(1)
    }

    /// Prefetches the line that a lookup of this hash touches first.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.buckets[self.first_choice(hash)]);
    }

    /// Where the flow with this hash probably is, if the first bucket shows it.
    #[inline(always)]
    pub fn guess(&self, hash: u64) -> Guess {
        let (first, tag) = (self.first_choice(hash), Self::tag(hash));
        let bucket = &self.buckets[first];
        let matches = bucket.matches(tag);
        if matches != 0 {
            Guess::Perhaps(bucket.places[matches.trailing_zeros() as usize])
        } else if bucket.overflowed > 0 {
            prefetch(&self.buckets[self.other_choice(first, tag)]);
            Guess::Elsewhere
        } else {
            Guess::Nowhere
        }
    }

    /// The place entered under this hash that `is_it`.
    #[inline(always)]
    pub fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let (first, tag) = (self.first_choice(hash), Self::tag(hash));
        self.find_in(first, tag, &is_it).or_else(|| {
            let elsewhere = self.buckets[first].overflowed > 0;
            elsewhere.then(|| self.find_in(self.other_choice(first, tag), tag, &is_it)).flatten()
        })
    }

    #[inline(always)]
    fn find_in(&self, bucket: usize, tag: u16, is_it: &impl Fn(u32) -> bool) -> Option<u32> {
        let bucket = &self.buckets[bucket];
        let mut matches = bucket.matches(tag);
        while matches != 0 {
            let place = bucket.places[matches.trailing_zeros() as usize];
            if is_it(place) {
                return Some(place);
            }
            matches &= matches - 1;
        }
        None
    }

    /// Enters a place under a hash, of its first or its second key; `hash_of` returns the hash of this or the other key of another place. False if both
    /// buckets are full.
    pub fn enter(&mut self, hash: u64, place: u32, is_second: bool, hash_of: impl Fn(u32, bool) -> u64) -> bool {
        let tag = Self::tag(hash);
        let first = self.first_choice(hash);
        if let Some(way) = self.buckets[first].free_way().or_else(|| self.displace(first, &hash_of)) {
            self.put(first, way, tag, place, is_second);
            return true;
        }
        let second = self.other_choice(first, tag);
        if let Some(way) = self.buckets[second].free_way().or_else(|| self.displace(second, &hash_of)) {
            self.put(second, way, tag, place, is_second);
            self.buckets[first].overflowed += u16::from(second != first);
            return true;
        }
        false
    }

    fn put(&mut self, bucket: usize, way: usize, tag: u16, place: u32, is_second: bool) {
        let bucket = &mut self.buckets[bucket];
        bucket.tags[way] = tag;
        bucket.places[way] = place;
        bucket.seconds = bucket.seconds & !(1 << way) | u16::from(is_second) << way;
    }

    /// Moves one of a full bucket's flows to its other bucket; the way that became free.
    fn displace(&mut self, bucket: usize, hash_of: &impl Fn(u32, bool) -> u64) -> Option<usize> {
        for way in 0..WAYS {
            let (tag, place) = (self.buckets[bucket].tags[way], self.buckets[bucket].places[way]);
            let other = self.other_choice(bucket, tag);
            if other == bucket {
                continue;
            }
            if let Some(free) = self.buckets[other].free_way() {
                let is_second = self.buckets[bucket].is_second(way);
                let first = self.first_choice(hash_of(place, is_second));
                self.put(other, free, tag, place, is_second);
                self.buckets[bucket].tags[way] = 0;
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

    /// Removes what was entered for this place under this hash, of its first or its second key.
    pub fn remove(&mut self, hash: u64, place: u32, is_second: bool) {
        let first = self.first_choice(hash);
        let tag = Self::tag(hash);
        let second = self.other_choice(first, tag);
        for bucket in [first, second] {
            let cell = &mut self.buckets[bucket];
            let is_it =
                |way: &usize| cell.tags[*way] == tag && cell.places[*way] == place && cell.is_second(*way) == is_second;
            let Some(way) = (0..WAYS).find(is_it) else { continue };
            cell.tags[way] = 0;
            if bucket != first {
                self.buckets[first].overflowed -= 1;
            }
            return;
        }
    }

    /// Whether nothing is entered.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.buckets.iter().all(|bucket| bucket.overflowed == 0 && bucket.tags == [0; WAYS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_bucket_of_a_tag_leads_to_the_other() {
        let index = Index::new(1001);
        for (bucket, tag) in (0..1001).flat_map(|bucket| [1, 77, u16::MAX].map(|tag| (bucket, tag))) {
            assert_eq!(index.other_choice(index.other_choice(bucket, tag), tag), bucket);
        }
    }
}
