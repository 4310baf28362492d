//! Which SYNs were answered lately. An acknowledgement between ends to which no SYN was answered acknowledges no cookie
//! of ours, and is dropped before any signature is computed: where nothing was answered, nothing can be forged. Opening
//! cookies is `cookie`'s story.
//!
//! A Bloom filter in time slices. All slices of an entry lie in one cache line beside the number of the slice that was
//! last written there, so what is out of date is told by looking, and cleared when the line is next written: no moment
//! clears the whole.

use core::time::Duration;

use crate::Instant;
use crate::cookie::EPOCH_BITS;
use crate::prefetch::prefetch;

/// A slice lasts 2^24 µs, 16.8 s.
const SLICE_BITS: u32 = 24;
/// An entry is seen in its own slice and the six that follow, for 100 s at least: longer than the 67 s a cookie is sure
/// to live.
const SLICES: usize = 7;
/// 65 536 lines, 4 MiB.
const LINES_BITS: u32 = 16;
/// How long a cookie may open whose SYN another process has answered.
const FOREIGN: Duration = Duration::from_micros(2 << EPOCH_BITS);

const _: () =
    assert!((SLICES as u64 - 1) << SLICE_BITS > 1 << EPOCH_BITS, "no cookie is forgotten while it is sure to live");

/// The slices `last - 6` to `last` of 1/65536 of all entries; slice `n` in word `n % 7`.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line {
    slices: [u64; SLICES],
    last: u64,
}

const _: () = assert!(size_of::<Line>() == 64, "a look touches one cache line");

impl Line {
    /// Makes this slice the last, and forgets those whose words it and its predecessors take.
    #[cold]
    fn begin(&mut self, slice: u64) {
        if slice - self.last < SLICES as u64 {
            (self.last + 1..=slice).for_each(|stale| self.slices[word(stale)] = 0);
        } else {
            self.slices = [0; SLICES];
        }
        self.last = slice;
    }
}

/// See the module.
pub struct RecentSyns {
    lines: Vec<Line>,
    /// Until then there may be cookies whose SYNs this filter has not seen.
    blind_until: Instant,
}

impl RecentSyns {
    /// A filter that knows nothing, and says so for two epochs: cookies of a former process must open.
    pub fn new(now: Instant) -> Self {
        Self { lines: vec![Line::default(); 1 << LINES_BITS], blind_until: now + FOREIGN }
    }

    /// What it knows of these ends alone, in a filter of one line.
    pub fn excerpt(&self, hash: u64) -> Self {
        Self { lines: vec![self.lines[self.place(hash)]], ..*self }
    }

    /// The line of a hash: named by bits of which the flow table makes neither bucket nor tag.
    #[inline(always)]
    fn place(&self, hash: u64) -> usize {
        (hash >> 28) as usize & (self.lines.len() - 1)
    }

    /// Takes note that a SYN was answered; `hash` is the flow table's keyed hash of its ends.
    #[inline]
    pub fn note(&mut self, hash: u64, now: Instant) {
        let place = self.place(hash);
        let line = &mut self.lines[place];
        let slice = slice_of(now);
        if slice > line.last {
            line.begin(slice);
        }
        line.slices[word(line.last)] |= bits(hash);
    }

    /// Whether a SYN of these ends may have been answered in the last 100 s. Never false if one was.
    #[inline]
    pub fn may_have(&self, hash: u64, now: Instant) -> bool {
        now < self.blind_until || self.has_noted(hash, now)
    }

    /// The same, of SYNs that this filter has seen.
    #[inline]
    pub fn has_noted(&self, hash: u64, now: Instant) -> bool {
        let line = &self.lines[self.place(hash)];
        let bits = bits(hash);
        // Slices that have begun since the line was written took the place of its oldest.
        let begun = slice_of(now).saturating_sub(line.last);
        if begun == 0 {
            return line.slices.iter().fold(false, |any, slice| any | (slice & bits == bits));
        }
        let oldest = (line.last + begun).saturating_sub(SLICES as u64 - 1);
        (oldest..=line.last).any(|slice| line.slices[word(slice)] & bits == bits)
    }

    /// Asks for the line of these ends.
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.lines[self.place(hash)]);
    }
}

fn slice_of(now: Instant) -> u64 {
    now.as_micros() >> SLICE_BITS
}

fn word(slice: u64) -> usize {
    (slice % SLICES as u64) as usize
}

/// Four bits of a word, which may coincide. The top bits of a product depend on all bits of the hash.
fn bits(hash: u64) -> u64 {
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..4).fold(0, |bits, n| bits | 1 << (mixed >> (40 + 6 * n) & 63))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const SLICE: u64 = 1 << SLICE_BITS;
    const YEAR: u64 = 365 * 86_400 * 1_000_000;

    /// A filter that has seen enough of its own life to trust itself.
    fn seasoned() -> RecentSyns {
        RecentSyns { blind_until: Instant::default(), ..RecentSyns::new(Instant::default()) }
    }

    /// A good hash of a number (the finaliser of SplitMix64).
    fn hash(n: u64) -> u64 {
        let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ n >> 31
    }

    #[test]
    fn a_cookie_of_a_former_process_is_never_turned_away() {
        let start = Instant::from_secs(1000);
        let filter = RecentSyns::new(start);
        let epochs = |n: u64| start + Duration::from_micros(n << EPOCH_BITS);
        assert!((0..10_000).all(|n| filter.may_have(hash(n), start)));
        assert!((0..10_000).all(|n| filter.may_have(hash(n), Instant::from_micros(epochs(2).as_micros() - 1))));
        assert!(!(0..10_000).any(|n| filter.may_have(hash(n), epochs(2))));
    }

    #[test]
    fn nothing_passes_where_no_syn_was_answered() {
        let filter = seasoned();
        for now in [0, 1, SLICE, 7 * SLICE, YEAR].map(Instant::from_micros) {
            assert!(!(0..100_000).any(|n| filter.may_have(hash(n), now)));
        }
    }

    #[test]
    fn an_entry_is_seen_for_a_hundred_seconds_and_not_for_two() {
        let mut filter = seasoned();
        for (n, at) in [0, SLICE - 1, SLICE, YEAR + SLICE / 2].into_iter().enumerate() {
            let hash = hash(n as u64);
            filter.note(hash, Instant::from_micros(at));
            assert!(filter.may_have(hash, Instant::from_micros(at + 100_000_000)));
            assert!(!filter.may_have(hash, Instant::from_micros(at + 7 * SLICE)), "noted at {at} µs");
        }
    }

    /// The share of strangers who find their four bits set in a word with `mean` entries on average, whose number is
    /// Poisson's.
    fn expected_in_a_word(mean: f64) -> f64 {
        // That no entry has set any of `n` given bits; and, by inclusion and exclusion, that all of them are set.
        let all_clear = |n: f64| (-mean * (1.0 - (1.0 - n / 64.0).powi(4))).exp();
        let all_set =
            |binomials: &[f64]| (0..).zip(binomials).map(|(n, times)| times * all_clear(f64::from(n))).sum::<f64>();
        // Four draws of 64 give one, two, three or four different bits: so many ways of 64^3, the first draw being
        // free.
        let ways = [1.0, 7.0 * 63.0, 6.0 * 63.0 * 62.0, 63.0 * 62.0 * 61.0];
        let rows: [&[f64]; 4] =
            [&[1.0, -1.0], &[1.0, -2.0, 1.0], &[1.0, -3.0, 3.0, -1.0], &[1.0, -4.0, 6.0, -4.0, 1.0]];
        ways.iter().zip(rows).map(|(ways, row)| ways / 64f64.powi(3) * all_set(row)).sum()
    }

    #[test]
    fn at_ten_thousand_syns_a_second_one_stranger_in_a_hundred_passes() {
        let mut filter = seasoned();
        // Seven whole slices at 10 000 a second: the most there is to see.
        let notes = 7 * SLICE / 100;
        for n in 0..notes {
            filter.note(hash(n), Instant::from_micros(n * 100));
        }
        let now = Instant::from_micros(7 * SLICE - 1);
        let tries = 2_000_000;
        let passed = (notes..notes + tries).filter(|&n| filter.may_have(hash(n), now)).count();
        let measured = passed as f64 / tries as f64;
        let expected = 1.0 - (1.0 - expected_in_a_word((SLICE / 100) as f64 / 65_536.0)).powi(7);
        assert!((0.98..1.02).contains(&(measured / expected)), "{measured} where {expected} was to be expected");
        assert!((0.011..0.012).contains(&measured), "{measured}");
    }

    /// Hashes of few lines, which meet often, and of few bits, which overlap.
    fn close_hashes() -> impl Strategy<Value = u64> {
        (0u64..3, 0u64..40).prop_map(|(line, entry)| line << 28 | entry)
    }

    fn steps() -> impl Strategy<Value = u64> {
        prop_oneof![
            4 => 0u64..SLICE / 4,
            4 => 0u64..2 * SLICE,
            1 => (5u64..9).prop_map(|slices| slices * SLICE),
            1 => 0u64..YEAR,
        ]
    }

    proptest! {
        #[test]
        fn nothing_answered_is_forgotten_and_nothing_old_remembered(
            events in prop::collection::vec((steps(), any::<bool>(), close_hashes()), 1..200),
        ) {
            let mut filter = seasoned();
            let mut noted = HashMap::new();
            // Word by word, for ever: what the filter would be with memory without end.
            let mut words = HashMap::<(usize, u64), u64>::new();
            let mut micros = 0;
            for (step, note, hash) in events {
                micros += step;
                let now = Instant::from_micros(micros);
                if note {
                    filter.note(hash, now);
                    noted.insert(hash, now);
                    *words.entry((filter.place(hash), slice_of(now))).or_default() |= bits(hash);
                }
                let found = filter.may_have(hash, now);
                if let Some(&at) = noted.get(&hash) {
                    prop_assert!(found || now.since(at) > Duration::from_secs(100));
                }
                let bits = bits(hash);
                let in_slice = |slice| words.get(&(filter.place(hash), slice)).is_some_and(|word| word & bits == bits);
                prop_assert_eq!(found, (slice_of(now).saturating_sub(6)..=slice_of(now)).any(in_slice));
            }
        }
    }
}
