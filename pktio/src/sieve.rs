//! What is left out while a worker cannot keep up: the rule, and the two memories it needs.
//!
//! A call of a source that has never proved itself is dropped when it is seen for the first time, but for a share that the worker has time
//! for, and at the second level also when it is repeated. Nothing else ever is. An AF_XDP port follows this rule in its program, before a frame takes a
//! buffer (`bpf/shed.h`, which has the constants of this file); for ports without a program the worker does, with a [`Sieve`].
//! What a call is, and who has proved itself, others know.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

/// How much of what opens connections is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Nothing.
    #[default]
    Nothing,
    /// Calls of unproved sources, when they are seen for the first time; so many 256ths of them pass all the same.
    Fresh(u8),
    /// All of these, and those that are repeated, too.
    Repeated,
}

impl Level {
    /// The word by which a program is told.
    pub(crate) fn word(self) -> u64 {
        match self {
            Level::Nothing => 0,
            Level::Fresh(share) => 1 | u64::from(share) << 8,
            Level::Repeated => 2,
        }
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sifted {
    /// It passes.
    Passed,
    /// It is dropped: nobody has seen it before.
    Fresh,
    /// It is dropped although it is repeated.
    Repeated,
}

/// Lines of [`Favoured`], 4 MiB: with a million sources one stranger in a hundred is taken for one of them.
pub(crate) const FAVOURED_LINES: usize = 1 << 18;
/// A generation lasts 2^39 ns, nine minutes; a source is favoured in its own and in the next.
const GENERATION_BITS: u32 = 39;
/// Bits of a word of [`Favoured`] that are filter; above them stands the generation.
const GENERATION_SHIFT: u32 = 56;

/// Lines of [`Recent`], 32 MiB: with five million calls a second one in thirty is taken for a repeated one.
const RECENT_LINES: usize = 1 << 19;
const RECENT_SLICES: usize = 7;
/// A slice lasts 2^29 ns, half a second. A call is repeated if it was seen in one of the four before the present one: a client
/// repeats its SYN after one second, and after two more (RFC 6298 section 5).
const SLICE_BITS: u32 = 29;
const SLICES_BACK: usize = 4;

/// Three bits of a word of `width` bits, the same as in the program.
fn bits(hash: u64, width: u64) -> u64 {
    [32, 40, 48].iter().fold(0, |bits, at| bits | 1 << (((hash >> at & 0xff) * width) >> 8))
}

/// Sources that have proved themselves: a Bloom filter of two generations, in memory that a program may read meanwhile.
///
/// Every word bears the generation it was written in, so that none has to be cleared.
#[derive(Debug)]
pub(crate) struct Favoured<W>(W);

impl<W: Deref<Target = [AtomicU64]>> Favoured<W> {
    /// A filter in these words, two a line.
    ///
    /// # Panics
    ///
    /// When they are not as many as there are places.
    pub(crate) fn over(words: W) -> Self {
        assert_eq!(words.len(), 2 * FAVOURED_LINES);
        Favoured(words)
    }

    fn word(&self, hash: u64, generation: u64) -> &AtomicU64 {
        &self.0[2 * (hash as usize & (FAVOURED_LINES - 1)) + (generation & 1) as usize]
    }

    /// Remembers the source of this hash; returns whether this generation had not. Two that write the same word at once may lose one
    /// of them, until it next proves itself.
    pub(crate) fn note(&self, hash: u64, nanos: u64) -> bool {
        let generation = nanos >> GENERATION_BITS;
        let word = self.word(hash, generation);
        let (was, stamp) = (word.load(Ordering::Relaxed), (generation & 0xff) << GENERATION_SHIFT);
        let kept = if was >> GENERATION_SHIFT == generation & 0xff { was } else { stamp };
        let is = kept | bits(hash, GENERATION_SHIFT.into());
        if is != was {
            word.store(is, Ordering::Relaxed);
        }
        is != was
    }

    /// Whether the source of this hash may have proved itself in this generation or the one before.
    fn has(&self, hash: u64, nanos: u64) -> bool {
        let wanted = bits(hash, GENERATION_SHIFT.into());
        let present = nanos >> GENERATION_BITS;
        [present, present.wrapping_sub(1)].into_iter().any(|generation| {
            let word = self.word(hash, generation).load(Ordering::Relaxed);
            word >> GENERATION_SHIFT == generation & 0xff && word & wanted == wanted
        })
    }
}

/// Calls of the last seconds: a Bloom filter in time slices.
struct Recent {
    /// In each the slices, slice `n` at `n % 7`, and at the end the number of the one that was last written.
    lines: Vec<[u64; RECENT_SLICES + 1]>,
}

impl Recent {
    /// Whether the call of this hash was seen before, though not just now. Takes note of it.
    fn again(&mut self, hash: u64, nanos: u64) -> bool {
        let line = &mut self.lines[hash as usize & (RECENT_LINES - 1)];
        let last = line[RECENT_SLICES];
        let slice = (nanos >> SLICE_BITS).max(last);
        for stale in 1..=(slice - last).min(RECENT_SLICES as u64) {
            line[((last + stale) % RECENT_SLICES as u64) as usize] = 0;
        }
        line[RECENT_SLICES] = slice;
        let wanted = bits(hash, 64);
        let place = (slice % RECENT_SLICES as u64) as usize;
        line[place] |= wanted;
        (1..=SLICES_BACK).any(|back| line[(place + RECENT_SLICES - back) % RECENT_SLICES] & wanted == wanted)
    }
}

/// The rule, for a port without a program. Its memory, 36 MiB, is taken at the start; most of it is touched when it is first needed.
pub struct Sieve {
    favoured: Favoured<Vec<AtomicU64>>,
    recent: Recent,
}

impl Default for Sieve {
    fn default() -> Self {
        let words = std::iter::repeat_with(AtomicU64::default).take(2 * FAVOURED_LINES).collect();
        Sieve { favoured: Favoured::over(words), recent: Recent { lines: vec![[0; RECENT_SLICES + 1]; RECENT_LINES] } }
    }
}

impl Sieve {
    /// Remembers that a source has proved itself; returns whether it did so for the first time in a while. `source` is a keyed hash
    /// of its address, `nanos` a time that never goes back.
    pub fn favour(&mut self, source: u64, nanos: u64) -> bool {
        self.favoured.note(source, nanos)
    }

    /// What becomes of a call of this source; `call` is a keyed hash of everything that tells it from others and is the same
    /// when it is repeated.
    pub fn sift(&mut self, level: Level, source: u64, call: u64, nanos: u64) -> Sifted {
        if level == Level::Nothing || self.favoured.has(source, nanos) {
            return Sifted::Passed;
        }
        match (self.recent.again(call, nanos), level) {
            // The top bits of the hash, which are used for nothing else.
            (false, Level::Fresh(share)) if call >> 56 < u64::from(share) => Sifted::Passed,
            (false, _) => Sifted::Fresh,
            (true, Level::Repeated) => Sifted::Repeated,
            (true, _) => Sifted::Passed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    /// Some day of uptime.
    const START: u64 = 86_400 * SECOND;

    /// A good hash of a number (the finaliser of SplitMix64).
    fn hash(n: u64) -> u64 {
        let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ n >> 31
    }

    #[test]
    fn nothing_is_left_out_where_there_is_no_pressure() {
        let mut sieve = Sieve::default();
        assert!((0..1000).all(|n| sieve.sift(Level::Nothing, hash(n), hash(n), START) == Sifted::Passed));
    }

    #[test]
    fn a_stranger_passes_when_it_repeats_itself_after_a_second_and_not_at_once() {
        let mut sieve = Sieve::default();
        let mut sift = |level, after| sieve.sift(level, hash(1), hash(2), START + after);
        assert_eq!(sift(Level::Fresh(0), 0), Sifted::Fresh);
        assert_eq!(sift(Level::Fresh(0), 1_000_000), Sifted::Fresh, "a copy sent at once is no sign of life");
        assert_eq!(sift(Level::Fresh(0), SECOND), Sifted::Passed);
        assert_eq!(sift(Level::Fresh(0), 3 * SECOND), Sifted::Passed, "and two seconds later");
        assert_eq!(sift(Level::Repeated, 5 * SECOND), Sifted::Repeated);
        assert_eq!(sift(Level::Fresh(0), 60 * SECOND), Sifted::Fresh, "that is another call");
    }

    #[test]
    fn a_source_that_has_proved_itself_passes_at_every_level_for_two_generations() {
        let mut sieve = Sieve::default();
        sieve.favour(hash(1), START);
        for level in [Level::Fresh(0), Level::Repeated] {
            assert_eq!(sieve.sift(level, hash(1), hash(2), START + 500 * SECOND), Sifted::Passed);
            assert_eq!(sieve.sift(level, hash(3), hash(4), START), Sifted::Fresh);
        }
        assert_eq!(sieve.sift(Level::Fresh(0), hash(1), hash(2), START + 1200 * SECOND), Sifted::Fresh);
        let later = START + 1200 * SECOND;
        sieve.favour(hash(1), later);
        assert_eq!(sieve.sift(Level::Fresh(0), hash(1), hash(5), later), Sifted::Passed);
    }

    #[test]
    fn a_flood_of_fresh_calls_hardly_ever_looks_repeated_or_favoured() {
        let mut sieve = Sieve::default();
        for n in 0..100_000 {
            sieve.favour(hash(n), START);
        }
        // A million a second for three seconds.
        let mut passed = 0;
        for n in 0..3_000_000u64 {
            let n = n + (1 << 40);
            let now = START + (n & 0xff_ffff) * 1000;
            passed += u64::from(sieve.sift(Level::Fresh(0), hash(n), hash(!n), now) == Sifted::Passed);
        }
        assert!(passed < 30_000, "{passed} of three million");
    }

    #[test]
    fn so_large_a_share_of_fresh_calls_passes() {
        for share in [1, 64, 255] {
            let mut sieve = Sieve::default();
            let sift = |n| sieve.sift(Level::Fresh(share), hash(n), hash(!n), START);
            let passed = (0..64_000).map(sift).filter(|sifted| *sifted == Sifted::Passed).count();
            let due = 250 * usize::from(share);
            assert!(passed.abs_diff(due) < 40 + due / 20, "{passed} of 64000, where {due} were due");
        }
    }

    #[test]
    fn honest_clients_are_told_from_a_flood_they_call_in() {
        let mut sieve = Sieve::default();
        let mut now = START;
        for client in 0..200 {
            assert_eq!(sieve.sift(Level::Fresh(0), hash(client), hash(client), now + client), Sifted::Fresh);
        }
        for n in 0..1_000_000u64 {
            let n = n + (1 << 40);
            sieve.sift(Level::Fresh(0), hash(n), hash(!n), now);
            now += 1000;
        }
        assert!((0..200).all(|client| sieve.sift(Level::Fresh(0), hash(client), hash(client), now) == Sifted::Passed));
    }
}
