//! Memory that may outlive the process or be shared with the kernel: slices of atomic words, made here or handed in.
//!
//! Each region has one writer, so relaxed loads and stores are enough, and on the packet path there are no read-modify-write
//! instructions; but for the regions that a program of the kernel writes too (`cache::recent_syns`, `policy::limit`). The structures that lie in a region describe their words, name the version of that layout and say how many words they
//! need. What a region held before is parsed like any other input: whatever the words are, no structure panics or loops without end.

use core::ops::Index;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use zerocopy::FromZeros;

pub(crate) mod publish;

/// Words of a cache line.
pub(crate) const LINE: usize = 8;

/// A region of words in whole cache lines. Zero is what every structure begins with.
pub struct Words(Lines);

enum Lines {
    Owned(Box<[OwnedLine]>),
    Shared(&'static [[AtomicU64; LINE]]),
}

/// A cache line of this process's own memory.
#[derive(FromZeros)]
#[repr(C, align(64))]
struct OwnedLine([AtomicU64; LINE]);

impl Words {
    /// At least so many words of this process's own memory, all zero. Whether their pages are touched before they are used depends on the
    /// allocator.
    pub fn zeroed(len: usize) -> Self {
        let lines = <[OwnedLine]>::new_box_zeroed_with_elems(len.div_ceil(LINE));
        Self(Lines::Owned(lines.expect("memory for the tables")))
    }

    /// Whether the words were handed in, so that they may hold what another process wrote.
    pub fn is_shared(&self) -> bool {
        matches!(self.0, Lines::Shared(_))
    }

    /// Another handle of the same words, where they were handed in.
    pub fn share(&self) -> Option<Self> {
        match &self.0 {
            Lines::Owned(_) => None,
            Lines::Shared(lines) => Some(Self(Lines::Shared(lines))),
        }
    }

    /// How many words there are.
    pub fn len(&self) -> usize {
        let lines = match &self.0 {
            Lines::Owned(lines) => lines.len(),
            Lines::Shared(lines) => lines.len(),
        };
        lines * LINE
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Words of these values, for a copy of a part of another region.
    pub(crate) fn of(values: impl ExactSizeIterator<Item = u64>) -> Self {
        let words = Self::zeroed(values.len());
        values.enumerate().for_each(|(n, value)| words[n].set(value));
        words
    }

    /// Takes over the first `len` of these values.
    pub(crate) fn copy(&self, other: &Words, len: usize) {
        (0..len).for_each(|n| self[n].set(other[n].get()));
    }

    /// The `n`th cache line.
    #[inline(always)]
    pub(crate) fn line(&self, n: usize) -> &[AtomicU64; LINE] {
        match &self.0 {
            Lines::Owned(lines) => &lines[n].0,
            Lines::Shared(lines) => &lines[n],
        }
    }

    /// The `n`th pair of cache lines.
    #[inline(always)]
    pub(crate) fn pair(&self, n: usize) -> [&[AtomicU64; LINE]; 2] {
        match &self.0 {
            Lines::Owned(lines) => {
                let pair: &[OwnedLine; 2] = &lines.as_chunks().0[n];
                pair.each_ref().map(|line| &line.0)
            }
            Lines::Shared(lines) => {
                let pair: &[_; 2] = &lines.as_chunks().0[n];
                pair.each_ref()
            }
        }
    }

    /// The `n`th piece of `N` words, of which a cache line holds a whole number.
    #[inline(always)]
    pub(crate) fn piece<const N: usize>(&self, n: usize) -> &[AtomicU64; N] {
        const { assert!(LINE.is_multiple_of(N), "no piece straddles two cache lines") };
        let (pieces, _) = self.line(n / (LINE / N)).as_chunks();
        &pieces[n % (LINE / N)]
    }
}

impl Index<usize> for Words {
    type Output = AtomicU64;

    #[inline(always)]
    fn index(&self, n: usize) -> &AtomicU64 {
        &self.line(n / LINE)[n % LINE]
    }
}

/// A region that was handed in, as far as its words make up whole lines. It should begin at a cache line.
impl From<&'static [AtomicU64]> for Words {
    fn from(words: &'static [AtomicU64]) -> Self {
        Self(Lines::Shared(words.as_chunks().0))
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
            assert_eq!((words.len(), (0..len).any(|n| words[n].get() != 0)), (len.next_multiple_of(8), false));
            assert!(len == 0 || core::ptr::from_ref(words.line(0)).addr().is_multiple_of(64));
            if len >= 8 {
                words[len - 1].set(7);
                let last: &[AtomicU64; 8] = words.piece(len / 8 - 1);
                assert_eq!(last[7].get(), 7);
            }
        }
    }

    #[test]
    fn what_is_handed_in_is_kept_as_it_was() {
        let words = shared(16, || 9);
        assert!(words.is_shared() && !Words::zeroed(1).is_shared());
        assert!((0..16).all(|n| words[n].get() == 9));
    }
}
