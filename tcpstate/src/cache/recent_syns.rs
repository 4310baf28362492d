//! Which SYNs were answered recently. A segment that acknowledges something between two endpoints whose SYN was never answered holds no
//! cookie of ours; it is dropped before any signature is computed. `cookie` opens cookies.
//!
//! A Bloom filter in time slices. All slices of an entry lie in one cache line. Each word names its slice, so whatever is out of date is recognised when
//! it is read, and goes when the word is next written: the whole is never cleared at once.
//!
//! A program of the kernel that answers SYNs by itself writes the same memory (`pktio/bpf/syns.h`). So a slice is entered in its word by one atomic
//! operation, and no note is ever lost. What is kept of SYN-ACKs may lose one when both write at the same moment.
//!
//! Beside each line of the filter lie the last sixteen SYN-ACKs of its connections, each as a tag for the 4-tuple and the client's ISN and a check on our
//! number. A client that acknowledges one of them is tested whatever others have guessed in its network's name: for a guess one number of 2^32 is right, as with
//! a server that keeps its half-open connections. Who knows 4-tuple and ISN, and acknowledges another number, has it forgotten: each guess costs a SYN.
//! At 250 000 SYNs a second a SYN-ACK is remembered for four seconds, at a million for one.
//!
//! Layout 3: 65 536 pairs of lines of eight words each. Bits 28 to 43 of the keyed hash of a connection's 4-tuple name its pair. Words 0 to 6 of the first
//! line are the slices, slice `n` (time in µs, shifted right by 24) in word `n % 7`: the low eight bits of `n` above 56 bits of the filter. The bits of an entry
//! are in `bits`. The low three bits of word 7 name the word of the second line to be written next.
//! A word of the second line holds two SYN-ACKs, the later in the low half; what they are is in `tag` and `check`.

use core::sync::atomic::{AtomicU64, Ordering};
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
/// Bits of a word below the number of its slice.
const FILTER_BITS: u32 = 56;
/// The word of a line whose low bits name the word of the second line that is written next.
const TURN: usize = 7;
const NEXT: u64 = 7;
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
const _: () = assert!(SLICES == TURN && TURN + 1 == LINE, "a lookup touches one cache line");
const _: () = assert!(NEXT as usize + 1 == LINE, "every word of the second line is written in turn");

type Line = [AtomicU64; LINE];

/// Enters these bits in the word of a slice that holds those of an older one, unless somebody else has begun it meanwhile.
#[cold]
#[inline(never)]
fn begin(word: &AtomicU64, slice: u64, bits: u64) {
    let number = slice << FILTER_BITS;
    let mut held = word.get();
    while held >> FILTER_BITS != number >> FILTER_BITS {
        match word.compare_exchange(held, number | bits, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => held = now,
        }
    }
    word.fetch_or(bits, Ordering::Relaxed);
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
    pub const LAYOUT: u64 = 3;

    /// The words of this configuration's filter.
    pub fn words_needed(config: &Config) -> usize {
        PAIR * LINE * config.recent_syns.next_power_of_two()
    }

    /// A filter in these words. For two epochs it answers "perhaps" to everything, because cookies of a former process must open.
    ///
    /// # Panics
    /// If there are too few words.
    pub fn new(config: &Config, words: Words, now: Instant) -> Self {
        assert!(words.len() >= Self::words_needed(config), "the recent-SYN filter needs more words");
        Self { words, mask: config.recent_syns.next_power_of_two() as u32 - 1, blind_until: now + FOREIGN }
    }

    /// From now on the filter lies in these words, which get what it knows, and which a program of the kernel may read and write.
    ///
    /// # Panics
    /// If there are too few words, or the filter is not of the size that the program knows.
    pub fn move_to(&mut self, words: Words) {
        assert_eq!(self.mask, (1 << LINES_BITS) - 1, "the program knows recent-SYN filters of one size");
        assert!(words.len() >= (PAIR * LINE) << LINES_BITS, "the recent-SYN filter needs more words");
        words.copy(&self.words, (PAIR * LINE) << LINES_BITS);
        self.words = words;
    }

    /// Until when there may be cookies whose SYNs this filter has not seen.
    pub fn blind_until(&self) -> Instant {
        self.blind_until
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
        let (slice, bits) = (slice_of(now), bits(hash));
        let word = &line[word(slice)];
        if (word.get() ^ slice << FILTER_BITS) >> FILTER_BITS == 0 {
            word.fetch_or(bits, Ordering::Relaxed);
        } else {
            begin(word, slice, bits);
        }
        let turn = line[TURN].get();
        line[TURN].set(turn.wrapping_add(1));
        let pair = &answers[(turn & NEXT) as usize];
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
        let next = (line[TURN].get() & NEXT) as usize;
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
        let (line, slice, bits) = (self.line(hash), slice_of(now), bits(hash));
        let place = slice % SLICES as u64;
        line[..SLICES].iter().zip(0u64..).any(|(word, n)| {
            let held = word.get();
            let age = if place >= n { place - n } else { place + SLICES as u64 - n };
            let number = slice.wrapping_sub(age) << FILTER_BITS;
            // The program's clock may be ahead of the beginning of an iteration: its next slice stands where the oldest would.
            let is_next = age + 1 == SLICES as u64 && (held ^ (slice + 1) << FILTER_BITS) >> FILTER_BITS == 0;
            held & bits == bits && ((held ^ number) >> FILTER_BITS == 0 || is_next)
        })
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
    (0..4).fold(0, |bits, n| bits | 1 << (((mixed >> (32 + 8 * n) & 0xff) * u64::from(FILTER_BITS)) >> 8))
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
        let config = Config::default();
        RecentSyns::new(&config, Words::zeroed(RecentSyns::words_needed(&config)), now)
    }

    #[test]
    fn whatever_another_process_left_nothing_panics_and_what_is_noted_is_seen() {
        let mut random = memory::tests::random(1);
        let words = memory::tests::shared(RecentSyns::words_needed(&Config::default()), &mut random);
        // Some lines are of times near the present ones.
        (0..30_000).for_each(|pair| {
            words.line(PAIR * pair)[random() as usize % SLICES].set(random() >> 8 | (random() % 200) << 56)
        });
        let mut filter = RecentSyns {
            blind_until: Instant::default(),
            ..RecentSyns::new(&Config::default(), words, Instant::default())
        };
        let mut left = 0;
        for n in 0..50_000 {
            let now = Instant::from_micros(n * SLICE / 300);
            let (hash, other) = (random(), random());
            filter.has_noted(other, now);
            let [client_isn, outer_isn] = [random(), random()].map(|number| SeqNum::new(number as u32));
            assert!(!filter.has_answered(hash, [client_isn], outer_isn));
            filter.note(hash, client_isn, outer_isn, now);
            assert!(filter.has_answered(hash, [client_isn + 1, client_isn], outer_isn));
            assert!(filter.has_noted(hash, now + Duration::from_secs(60)));
            left += u32::from(filter.has_noted(hash, now + Duration::from_secs(120)));
        }
        assert!(left < 1000, "of random words one in 256 is of the slice it should be of: {left}");
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
        let all_clear = |n: f64| (-mean * (1.0 - (1.0 - n / 56.0).powi(4))).exp();
        let all_set =
            |binomials: &[f64]| (0..).zip(binomials).map(|(n, times)| times * all_clear(f64::from(n))).sum::<f64>();
        // Four draws of 56 give one, two, three or four different bits: so many ways of 56^3, the first draw being
        // free.
        let ways = [1.0, 7.0 * 55.0, 6.0 * 55.0 * 54.0, 55.0 * 54.0 * 53.0];
        let rows: [&[f64]; 4] =
            [&[1.0, -1.0], &[1.0, -2.0, 1.0], &[1.0, -3.0, 3.0, -1.0], &[1.0, -4.0, 6.0, -4.0, 1.0]];
        ways.iter().zip(rows).map(|(ways, row)| ways / 56f64.powi(3) * all_set(row)).sum()
    }

    #[test]
    fn at_ten_thousand_syns_a_second_two_unknown_segments_in_a_hundred_pass() {
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
        // Of 256 values some stand for a bit more often than others.
        assert!((0.99..1.04).contains(&(measured / expected)), "{measured} where {expected} was to be expected");
        assert!((0.017..0.020).contains(&measured), "{measured}");
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
                let has_bits = |slice| words.get(&(filter.place(hash), slice)).is_some_and(|word| word & bits == bits);
                let slice = slice_of(now);
                prop_assert!(found || !(slice.saturating_sub(6)..=slice).any(has_bits));
                // Hours later a word that was never written again may pass for a present one.
                let may_be = |age: u64| (slice + 256).checked_sub(age).is_some_and(has_bits);
                prop_assert!(!found || (0..slice + 257).filter(|age| age % 256 < 7 || age % 256 == 255).any(may_be));
            }
        }
    }
}
