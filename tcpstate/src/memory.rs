//! Memory that may outlive the process or be shared with the kernel: slices of atomic words, made here or handed in.
//!
//! Each region has one writer, so relaxed loads and stores are enough, and on the packet path there are no read-modify-write
//! instructions. The structures that lie in a region describe their words, name the version of that layout and say how many words they
//! need. What a region held before is parsed like any other input: whatever the words are, no structure panics or loops without end.

use core::ops::Deref;
use core::sync::atomic::{AtomicU64, Ordering};

use zerocopy::FromZeros;

use crate::Config;
use crate::cache::recent_syns::RecentSyns;
use crate::cache::refused::RefusedPorts;
use crate::flow::table::Slab;
use crate::policy::limit::{Limiter, Sightings};

/// Words of a cache line.
pub(crate) const LINE: usize = 8;

/// A region of words. Zero is what every structure begins with.
pub struct Words {
    store: Store,
    /// The first word that begins a cache line.
    first: u32,
    len: usize,
}

enum Store {
    Owned(Box<[AtomicU64]>),
    Shared(&'static [AtomicU64]),
}

impl Words {
    /// So many words of this process's own memory, all zero. Their pages are not touched before they are used.
    pub fn zeroed(len: usize) -> Self {
        let store = <[AtomicU64]>::new_box_zeroed_with_elems(len + LINE - 1).expect("memory for the tables");
        let first = store.as_ptr().align_offset(align_of::<u64>() * LINE).min(LINE - 1);
        Self { store: Store::Owned(store), first: first as u32, len }
    }

    /// Whether the words were handed in, so that they may hold what another process wrote.
    pub fn is_shared(&self) -> bool {
        matches!(self.store, Store::Shared(_))
    }

    /// Words of these values, for a copy of a part of another region.
    pub(crate) fn of(values: impl ExactSizeIterator<Item = u64>) -> Self {
        let words = Self::zeroed(values.len());
        words.iter().zip(values).for_each(|(word, value)| word.set(value));
        words
    }

    /// The `n`th piece of `N` words.
    // Numbers of 32 bits cannot overflow the sum, so that one comparison is enough.
    #[inline(always)]
    pub(crate) fn piece<const N: usize>(&self, n: u32) -> &[AtomicU64; N] {
        let words = match &self.store {
            Store::Owned(words) => words,
            Store::Shared(words) => *words,
        };
        let at = self.first as usize + n as usize * N;
        words[at..at + N].first_chunk().expect("it is as long as that")
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        let words = match &self.store {
            Store::Owned(words) => words,
            Store::Shared(words) => *words,
        };
        let first = self.first as usize;
        &words[first..first + self.len]
    }
}

/// A region that was handed in. It should begin at a cache line.
impl From<&'static [AtomicU64]> for Words {
    fn from(words: &'static [AtomicU64]) -> Self {
        Self { store: Store::Shared(words), first: 0, len: words.len() }
    }
}

/// A word with one writer.
pub(crate) trait Word {
    /// Its value.
    fn get(&self) -> u64;
    /// Gives it a value.
    fn set(&self, value: u64);
}

impl Word for AtomicU64 {
    #[inline(always)]
    fn get(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn set(&self, value: u64) {
        self.store(value, Ordering::Relaxed);
    }
}

/// The regions of one worker's [`Proxy`](crate::Proxy).
pub struct Memory {
    /// The flow table's records.
    pub slab: Slab,
    /// The recent-SYN filter.
    pub recent_syns: Words,
    /// The token buckets of source prefixes.
    pub limits: Words,
    /// SYNs that were refused a token lately.
    pub refused_syns: Words,
    /// Ports of the LAN that refused connections lately.
    pub refused_ports: Words,
}

impl Memory {
    /// The version of the layouts of all regions together: it changes when that of one does. Memory of another version must not be
    /// handed in.
    pub const LAYOUT: u64 = (crate::RECORD_LAYOUT as u64) << 32
        | RecentSyns::LAYOUT
        | Limiter::LAYOUT << 8
        | Sightings::LAYOUT << 16
        | RefusedPorts::LAYOUT << 24;

    /// Memory of this process alone, all zero, of the sizes this configuration needs.
    pub fn anonymous(config: &Config) -> Self {
        let [recent_syns, limits, refused_syns, refused_ports] = Self::words_needed(config).map(Words::zeroed);
        let slab = Slab::anonymous(config.flow_capacity(), false);
        Self { slab, recent_syns, limits, refused_syns, refused_ports }
    }

    /// How many words each region of atomic words has at least, in the order of the fields; for the slab see [`Slab::words`].
    pub fn words_needed(config: &Config) -> [usize; 4] {
        [
            RecentSyns::words_needed(config),
            Limiter::words_needed(config),
            Sightings::words_needed(config),
            RefusedPorts::words_needed(config),
        ]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A region full of these words, as if another process had left it.
    pub(crate) fn shared(len: usize, mut word: impl FnMut() -> u64) -> Words {
        let words: Vec<AtomicU64> = (0..len).map(|_| AtomicU64::new(word())).collect();
        Words::from(&*words.leak())
    }

    /// Numbers that look random (SplitMix64).
    pub(crate) fn random(mut seed: u64) -> impl FnMut() -> u64 {
        move || {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let n = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            n ^ n >> 31
        }
    }

    #[test]
    fn words_begin_at_a_cache_line_and_are_as_many_as_were_asked_for() {
        for len in [0, 1, 8, 1000, 1 << 20] {
            let words = Words::zeroed(len);
            assert_eq!((words.len(), words.iter().any(|word| word.get() != 0)), (len, false));
            assert!(len == 0 || words.as_ptr().addr().is_multiple_of(64));
            if len >= 8 {
                words[len - 1].set(7);
                let last: &[AtomicU64; 8] = words.piece((len / 8 - 1) as u32);
                assert_eq!(last[7].get(), 7);
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_that_were_never_used_are_not_resident() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/statm").unwrap();
            status.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
        };
        let before = resident();
        let words = Words::zeroed(1 << 27);
        words[1 << 20].set(1);
        // Other tests run beside this one and take some memory; the region has a gibibyte.
        assert!(resident().saturating_sub(before) < 1 << 17, "pages of 4 KiB");
    }

    #[test]
    fn what_is_handed_in_is_kept_as_it_was() {
        let words = shared(16, || 9);
        assert!(words.is_shared() && !Words::zeroed(1).is_shared());
        assert!(words.iter().all(|word| word.get() == 9));
    }
}
