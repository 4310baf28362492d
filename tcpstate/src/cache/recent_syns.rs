//! Which SYNs were answered recently. A segment that acknowledges something between two endpoints whose SYN was never answered holds no
//! cookie of ours; it is dropped before any signature is computed. `cookie` opens cookies.
//!
//! A Bloom filter in time slices. All slices of an entry lie in one cache line beside the number of the slice that was
//! last written there. Whatever is out of date is recognised when it is read, and cleared when the line is next written, so that the
//! whole is never cleared at once.
//!
//! Beside each line of the filter lie the last sixteen SYN-ACKs of its connections, each as a tag for the 4-tuple and the client's ISN and a check on our
//! number. A client that acknowledges one of them is tested whatever others have guessed in its network's name: for a guess one number of 2^32 is right, as with
//! a server that keeps its half-open connections. Who knows 4-tuple and ISN, and acknowledges another number, has it forgotten: each guess costs a SYN.
//! At 250 000 SYNs a second a SYN-ACK is remembered for four seconds, at a million for one.
//!
//! Layout 2: 65 536 pairs of lines of eight words each. Bits 28 to 43 of the keyed hash of a connection's 4-tuple name its pair. Word 7 of the first line is
//! the number of the slice (time in µs, shifted right by 24) that was last written, above three bits that name the word of the second line to be written next;
//! words 0 to 6 are the slices, slice `n` in word `n % 7`. A line whose last slice lies in the future holds nothing. The bits of an entry are in `bits`.
//! A word of the second line holds two SYN-ACKs, the later in the low half; what they are is in `tag` and `check`.

use core::sync::atomic::AtomicU64;
use core::time::Duration;

use crate::cookie::EPOCH_BITS;
use crate::memory::{LINE, Word, Words};
use crate::prefetch::prefetch;
use crate::seq::SeqNum;
use crate::{Config, Instant};

/// A slice lasts 2^24 µs, 16.8 s.
const SLICE_BITS: u32 = 24;
/// An entry is seen in its own slice and the six that follow, for 100 s at least: longer than the 67 s a cookie is sure
/// to live.
const SLICES: usize = 7;
/// The word of a line that says which slice was last written.
const LAST: usize = 7;
/// Low bits of that word, which name the word of the second line that is written next.
const NEXT_BITS: u32 = 3;
const NEXT: u64 = (1 << NEXT_BITS) - 1;
/// Bits of the check on our number in what stands for a SYN-ACK, below the tag.
const CHECK_BITS: u32 = 12;
const TAG: u32 = u32::MAX << CHECK_BITS;
/// 65 536 pairs of lines, 8 MiB.
const LINES_BITS: u32 = 16;
/// Lines of a pair.
const PAIR: usize = 2;
/// How long a cookie may open whose SYN another process has answered.
const FOREIGN: Duration = Duration::from_micros(2 << EPOCH_BITS);

const _: () =
    assert!((SLICES as u64 - 1) << SLICE_BITS > 1 << EPOCH_BITS, "no cookie is forgotten while it is sure to live");
const _: () = assert!(SLICES == LAST && LAST + 1 == LINE, "a lookup touches one cache line");
const _: () = assert!(NEXT as usize + 1 == LINE, "every word of the second line is written in turn");

type Line = [AtomicU64; LINE];

/// Makes this slice the last of a line, and clears those whose words it and its predecessors take.
#[cold]
#[inline(never)]
fn begin(line: &Line, slice: u64) {
    let (last, next) = (last_slice(line), line[LAST].get() & NEXT);
    match slice.checked_sub(last) {
        Some(passed) if passed < SLICES as u64 => (last + 1..=slice).for_each(|stale| line[word(stale)].set(0)),
        // All of it is old, or of no time that has been.
        _ => line[..SLICES].iter().for_each(|word| word.set(0)),
    }
    line[LAST].set(slice << NEXT_BITS | next);
}

/// The slice of a line that was last written.
#[inline(always)]
fn last_slice(line: &Line) -> u64 {
    line[LAST].get() >> NEXT_BITS
}

/// Whether a line has an entry that was last written before the present slice began.
#[inline(never)]
fn was_noted(line: &Line, slice: u64, hash: u64) -> bool {
    let (last, bits) = (last_slice(line), bits(hash));
    // Slices that have begun since took the place of its oldest. None is read of a line from the future.
    last < slice && (slice.saturating_sub(SLICES as u64 - 1)..=last).any(|slice| line[word(slice)].get() & bits == bits)
}

/// The high bits of what stands for a SYN-ACK: whom it answers. Made of bits of the hash that name no line.
#[inline(always)]
fn tag(hash: u64, client_isn: SeqNum) -> u32 {
    ((hash >> 32) as u32 ^ client_isn.get().wrapping_mul(0x9e37_79b1)) & TAG
}

/// The low bits: our number. Of others that share it one in 2^23 and fewer is a cookie with a right MAC.
#[inline(always)]
fn check(outer_isn: SeqNum) -> u32 {
    outer_isn.get() & !TAG
}

/// What stands for SYN-ACKs of one connection, each with its place: the word, and by how many bits it is shifted there.
pub struct Answers<const N: usize>([Option<(usize, u32, u32)>; N]);

impl<const N: usize> Answers<N> {
    /// Whether one of them has this number, or another that agrees in the check.
    pub fn include(&self, outer_isn: SeqNum) -> bool {
        self.0.iter().flatten().any(|&(_, _, answer)| answer & !TAG == check(outer_isn))
    }
}

/// See the module.
pub struct RecentSyns {
    words: Words,
    /// The number of lines, a power of two, less one.
    mask: u32,
    /// Until then there may be cookies whose SYNs this filter has not seen.
    blind_until: Instant,
}

impl RecentSyns {
    /// The version of the layout.
    pub const LAYOUT: u64 = 2;

    /// The words of the filter, whatever the configuration.
    pub fn words_needed(_: &Config) -> usize {
        (PAIR * LINE) << LINES_BITS
    }

    /// A filter in these words. For two epochs it answers "perhaps" to everything, because cookies of a former process must open.
    ///
    /// # Panics
    /// If there are too few words.
    pub fn new(words: Words, now: Instant) -> Self {
        assert!(words.len() >= (PAIR * LINE) << LINES_BITS, "the recent-SYN filter needs more words");
        Self { words, mask: (1 << LINES_BITS) - 1, blind_until: now + FOREIGN }
    }

    /// What it knows of one connection alone, in a filter of one pair of lines.
    pub fn excerpt(&self, hash: u64) -> Self {
        let lines = self.lines(hash);
        let word = |n: usize| lines[n / LINE][n % LINE].get();
        Self { words: Words::of((0..PAIR * LINE).map(word)), mask: 0, blind_until: self.blind_until }
    }

    /// The line of a hash: named by bits of which the flow table makes neither bucket nor tag.
    #[inline(always)]
    fn place(&self, hash: u64) -> u32 {
        (hash >> 28) as u32 & self.mask
    }

    /// Its line of the filter, and that of the SYN-ACKs beside it.
    #[inline(always)]
    fn lines(&self, hash: u64) -> [&Line; PAIR] {
        self.words.pair(self.place(hash) as usize)
    }

    #[inline(always)]
    fn line(&self, hash: u64) -> &Line {
        self.lines(hash)[0]
    }

    /// Notes that a SYN with the number `client_isn` was answered with `outer_isn`; `hash` is the flow table's keyed hash of its 4-tuple.
    #[inline(always)]
    pub fn note(&mut self, hash: u64, client_isn: SeqNum, outer_isn: SeqNum, now: Instant) {
        let [line, answers] = self.lines(hash);
        let slice = slice_of(now);
        let mut state = line[LAST].get();
        if state >> NEXT_BITS != slice {
            begin(line, slice);
            state = line[LAST].get();
        }
        let word = &line[word(slice)];
        word.set(word.get() | bits(hash));
        line[LAST].set(state & !NEXT | state.wrapping_add(1) & NEXT);
        let pair = &answers[(state & NEXT) as usize];
        pair.set(pair.get() << 32 | u64::from(tag(hash, client_isn) | check(outer_isn)));
    }

    /// The last SYN-ACKs to SYNs of this connection with these numbers, as far as they are among the last sixteen of its line.
    #[inline(never)]
    pub fn answers<const N: usize>(&self, hash: u64, client_isns: [SeqNum; N]) -> Answers<N> {
        let [line, answers] = self.lines(hash);
        let tags = client_isns.map(|client_isn| tag(hash, client_isn));
        // Guesses find nothing, so that is found out first, whatever the order.
        let is_one = |word: &AtomicU64| {
            let both = word.get();
            tags.iter().any(|tag| (both as u32 ^ tag) & TAG == 0 || ((both >> 32) as u32 ^ tag) & TAG == 0)
        };
        if !answers.iter().any(is_one) {
            return Answers([None; N]);
        }
        let next = (line[LAST].get() & NEXT) as usize;
        Answers(tags.map(|tag| {
            // Words are written in turn, so the later halves of all are younger than any other half.
            let places =
                [0, 32].into_iter().flat_map(|shift| (1..=LINE).map(move |back| ((next + LINE - back) % LINE, shift)));
            let mut there = places.map(|(word, shift)| (word, shift, (answers[word].get() >> shift) as u32));
            there.find(|&(_, _, answer)| answer & TAG == tag)
        }))
    }

    /// Whether a SYN of this connection with this number was answered, and its SYN-ACK is one of the last sixteen of its line.
    pub fn was_answered(&self, hash: u64, client_isn: SeqNum) -> bool {
        let Answers([answer]) = self.answers(hash, [client_isn]);
        answer.is_some()
    }

    /// Forgets these SYN-ACKs of this connection: somebody guesses.
    pub fn forget<const N: usize>(&mut self, hash: u64, answers: &Answers<N>) {
        for &(word, shift, _) in answers.0.iter().flatten() {
            let pair = &self.lines(hash)[1][word];
            pair.set(pair.get() & !(u64::from(u32::MAX) << shift));
        }
    }

    /// Whether a SYN of this connection may have been answered in the last 100 s. Never false if one was.
    #[inline(always)]
    pub fn may_have(&self, hash: u64, now: Instant) -> bool {
        now < self.blind_until || self.has_noted(hash, now)
    }

    /// The same, of SYNs that this filter has seen.
    #[inline(always)]
    pub fn has_noted(&self, hash: u64, now: Instant) -> bool {
        let line = self.line(hash);
        let slice = slice_of(now);
        if slice != last_slice(line) {
            return was_noted(line, slice, hash);
        }
        let bits = bits(hash);
        line[..SLICES].iter().any(|word| word.get() & bits == bits)
    }

    /// Asks for the lines of this connection.
    pub fn prefetch(&self, hash: u64) {
        self.lines(hash).into_iter().for_each(prefetch);
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
    use crate::memory;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const SLICE: u64 = 1 << SLICE_BITS;
    const YEAR: u64 = 365 * 86_400 * 1_000_000;

    impl RecentSyns {
        fn has_answered<const N: usize>(&self, hash: u64, client_isns: [SeqNum; N], outer_isn: SeqNum) -> bool {
            self.answers(hash, client_isns).include(outer_isn)
        }

        fn forget_answers<const N: usize>(&mut self, hash: u64, client_isns: [SeqNum; N]) {
            let answers = self.answers(hash, client_isns);
            self.forget(hash, &answers);
        }
    }

    fn filter(now: Instant) -> RecentSyns {
        RecentSyns::new(Words::zeroed(RecentSyns::words_needed(&Config::default())), now)
    }

    #[test]
    fn whatever_another_process_left_nothing_panics_and_what_is_noted_is_seen() {
        let mut random = memory::tests::random(1);
        let words = memory::tests::shared(RecentSyns::words_needed(&Config::default()), &mut random);
        // Some lines are of times near the present ones.
        (0..30_000).for_each(|pair| words.line(PAIR * pair)[LAST].set(random() % 1600));
        let mut filter = RecentSyns { blind_until: Instant::default(), ..RecentSyns::new(words, Instant::default()) };
        for n in 0..50_000 {
            let now = Instant::from_micros(n * SLICE / 300);
            let (hash, other) = (random(), random());
            filter.has_noted(other, now);
            let [client_isn, outer_isn] = [random(), random()].map(|number| SeqNum::new(number as u32));
            assert!(!filter.has_answered(hash, [client_isn], outer_isn));
            filter.note(hash, client_isn, outer_isn, now);
            assert!(filter.has_answered(hash, [client_isn + 1, client_isn], outer_isn));
            assert!(filter.has_noted(hash, now + Duration::from_secs(60)));
            assert!(!filter.has_noted(hash, now + Duration::from_secs(120)));
        }
    }

    /// A filter that has seen enough of its own life to trust itself.
    fn seasoned() -> RecentSyns {
        RecentSyns { blind_until: Instant::default(), ..filter(Instant::default()) }
    }

    /// Notes a SYN whose numbers do not matter.
    fn note(filter: &mut RecentSyns, hash: u64, now: Instant) {
        filter.note(hash, SeqNum::new(1), SeqNum::new(2), now);
    }

    /// The SYN-ACK that answered the `n`th SYN: its 4-tuple, and both numbers.
    fn answer(n: u64) -> (u64, SeqNum, SeqNum) {
        (hash(n), SeqNum::new(hash(n ^ 1 << 40) as u32), SeqNum::new(hash(n ^ 1 << 41) as u32))
    }

    #[test]
    fn at_a_million_syns_a_second_a_syn_ack_is_remembered_for_a_third_of_a_second() {
        let mut filter = seasoned();
        let (syns, since) = (3_000_000u64, 333_333);
        for n in 0..syns {
            let (hash, client_isn, outer_isn) = answer(n);
            filter.note(hash, client_isn, outer_isn, Instant::from_micros(n));
        }
        // With five a line on average, Poisson's, one line in 15 000 has had sixteen others since.
        let forgotten = (syns - since..syns)
            .filter(|&n| {
                let (hash, client_isn, outer_isn) = answer(n);
                !filter.has_answered(hash, [client_isn], outer_isn)
            })
            .count();
        assert!(forgotten < 40, "{forgotten} of {since}");
    }

    #[test]
    fn a_syn_ack_that_somebody_guesses_at_is_forgotten_and_no_other() {
        let mut filter = seasoned();
        let now = Instant::from_secs(1);
        let (hash, client_isn, outer_isn) = answer(7);
        for n in 1..1000 {
            filter.note(hash, client_isn, outer_isn, now);
            assert!(filter.has_answered(hash, [client_isn - 1, client_isn], outer_isn));
            assert!(!filter.has_answered(hash, [client_isn], outer_isn + n));
            // Who knows neither the number of its SYN nor its ends.
            filter.forget_answers(hash, [client_isn + 2 * n]);
            let other = hash ^ u64::from(n) << 46;
            assert!(filter.place(other) == filter.place(hash) && !filter.has_answered(other, [client_isn], outer_isn));
            filter.forget_answers(other, [client_isn]);
            assert!(filter.has_answered(hash, [client_isn, client_isn + 1], outer_isn));
            filter.forget_answers(hash, [client_isn - 1, client_isn]);
            assert!(!filter.has_answered(hash, [client_isn], outer_isn));
        }
    }

    #[test]
    fn of_several_offers_the_last_is_remembered() {
        let mut filter = seasoned();
        let now = Instant::from_secs(1);
        let (hash, client_isn, outer_isn) = answer(7);
        for n in 0..40 {
            // Others come between, of the same line.
            (0..n % 5).for_each(|m| filter.note(hash ^ u64::from(m + 1) << 50, client_isn, outer_isn, now));
            filter.note(hash, client_isn, outer_isn + n, now);
            assert!(filter.has_answered(hash, [client_isn], outer_isn + n));
        }
        assert!(!filter.has_answered(hash, [client_isn], outer_isn + 38));
    }

    #[test]
    fn the_last_sixteen_of_a_line_are_remembered_and_no_more() {
        let mut filter = seasoned();
        let now = Instant::from_secs(1);
        let of_line = |n: u32| {
            let (hash, client_isn, outer_isn) = answer(n.into());
            (hash & !(0xffff << 28), client_isn, outer_isn)
        };
        for n in 0..100 {
            let (hash, client_isn, outer_isn) = of_line(n);
            filter.note(hash, client_isn, outer_isn, now);
        }
        let remembered: Vec<_> = (0..100)
            .filter(|&n| {
                let (hash, client_isn, outer_isn) = of_line(n);
                filter.has_answered(hash, [client_isn], outer_isn)
            })
            .collect();
        assert_eq!(remembered, Vec::from_iter(84..100));
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
        let filter = filter(start);
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
            note(&mut filter, hash, Instant::from_micros(at));
            assert!(filter.may_have(hash, Instant::from_micros(at + 100_000_000)));
            assert!(!filter.may_have(hash, Instant::from_micros(at + 7 * SLICE)), "noted at {at} µs");
        }
    }

    /// The share of unknown segments that find their four bits set in a word with `mean` entries on average, whose number is
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
    fn at_ten_thousand_syns_a_second_one_unknown_segment_in_a_hundred_passes() {
        let mut filter = seasoned();
        // Seven whole slices at 10 000 a second: the most there is to see.
        let notes = 7 * SLICE / 100;
        for n in 0..notes {
            note(&mut filter, hash(n), Instant::from_micros(n * 100));
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
            let mut words = HashMap::<(u32, u64), u64>::new();
            let mut micros = 0;
            for (step, adds, hash) in events {
                micros += step;
                let now = Instant::from_micros(micros);
                if adds {
                    note(&mut filter, hash, now);
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
