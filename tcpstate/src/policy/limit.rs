//! Limits on what comes from sources that have proved nothing: a token bucket for each source prefix, and a second chance
//! for a SYN that is repeated.
//!
//! A flood with forged sources spends a prefix's tokens, but it does not come back a second later with the same
//! SYN as an honest client does. SYNs that were refused are therefore remembered for a few seconds in a filter,
//! and one that is seen again a second later draws on tokens of its own.
//!
//! Failed cookie tests have budgets of their own: of one address, of one prefix, and of all sources together, no more guesses a second are tested than these
//! allow, whatever the rate at which they come. An address has a quarter of its prefix's budget, so that guesses in the name of one leave the others theirs.
//! Anyone can spend them in the name of all. So what a client needs does not depend on them: an acknowledgement of
//! an entry of the SYN cache, or of a SYN-ACK that `recent_syns` remembers, costs nothing.
//!
//! Layout 1 of the buckets: two words each, which hold what is *spent*, so that zero is a full bucket. Word 0: fresh SYNs in the low half,
//! repeated ones in the high half. Word 1: failed cookie tests in the low half, in the high half the refill period (time over its length)
//! in which the bucket was last refilled. More than a bucket holds is as much as it holds.
//!
//! Layout 1 of the refused SYNs: a line of eight words, of which the first is the second (2^20 µs) that the current slice stands for; then four
//! slices of 2^17 words, slice `n % 4` of second `n`.

use core::sync::atomic::AtomicU64;

use crate::config::RateLimit;
use crate::keyed::Keys;
use crate::memory::{LINE, Word, Words};
use crate::prefetch::prefetch;
use crate::seq::SeqNum;
use crate::wire::FlowKey;
use crate::{Config, Event, Instant};

/// Tokens for repeated SYNs, as a multiple of those for fresh ones. Who forges a prefix's SYNs can repeat them too: so there are more of these
/// tokens than a forger of moderate means spends, since a client that gets none stays out. Each costs its sender two SYNs, so the box
/// reflects half of what it is sent at the most.
const REPEATED_SHARE: u32 = 32;
/// How many addresses spend the failures of their prefix. An address has a bucket among those of prefixes, in which each failure counts so often.
const ADDRESSES: u32 = 4;
/// What distinguishes an address from a prefix of the same bits.
const ADDRESS: u64 = 1 << 40;
/// The most cookie tests a prefix may fail at once, in periods of those it may fail.
const FAILURES_AT_ONCE: u32 = 5;

/// What a prefix has spent, and the refill period of that.
#[derive(Clone, Copy)]
struct Spent {
    fresh: u32,
    repeated: u32,
    failures: u32,
    period: u32,
}

type Bucket = [AtomicU64; 2];

impl Spent {
    fn of(bucket: &Bucket) -> Self {
        let [tokens, rest] = bucket.each_ref().map(Word::get);
        Self {
            fresh: tokens as u32,
            repeated: (tokens >> 32) as u32,
            failures: rest as u32,
            period: (rest >> 32) as u32,
        }
    }

    fn store(self, bucket: &Bucket) {
        bucket[0].set(u64::from(self.repeated) << 32 | u64::from(self.fresh));
        bucket[1].set(u64::from(self.period) << 32 | u64::from(self.failures));
    }
}

/// Whether a SYN may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Its prefix has tokens.
    Granted,
    /// Its prefix has none, but the SYN has been seen before.
    SecondChance,
    /// It may not.
    Refused,
}

impl Admission {
    /// The event to count, if any.
    pub fn event(self) -> Option<Event> {
        (self == Admission::SecondChance).then_some(Event::SecondChance)
    }
}

/// What a prefix has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// SYNs it may yet send.
    pub fresh: u32,
    /// Repeated SYNs it may yet send.
    pub repeated: u32,
    /// Cookie tests it may yet fail.
    pub failures: u32,
}

/// Where the failures of a source are counted: the places of its prefix's bucket, and of its address's.
#[derive(Clone, Copy)]
pub struct Guesser {
    prefix: u32,
    address: u32,
}

/// The token buckets of all prefixes.
pub struct Limiter {
    words: Words,
    /// The number of buckets, a power of two, less one.
    mask: u32,
    /// Added to the place of an address's bucket: zero, but in an excerpt.
    addresses: u32,
    keys: Keys,
    period_micros: u64,
    /// The current refill period, and when the next begins.
    period: u32,
    next_period: Instant,
    add: u32,
    burst: u32,
    /// Cookie tests a prefix, and all together, may fail a period.
    failures: u32,
    guesses: u32,
    /// Tests that all together may yet fail in the current period.
    guesses_left: u32,
    mask4: u32,
    mask6: [u32; 4],
    refused: Sightings,
}

impl Limiter {
    /// The version of the layout of the buckets.
    pub const LAYOUT: u64 = 1;

    /// The words of this configuration's buckets.
    pub fn words_needed(config: &Config) -> usize {
        2 * config.rate.size.next_power_of_two()
    }

    /// Buckets in these words, and the memory of refused SYNs in those of `refused`.
    ///
    /// # Panics
    /// If there are too few words.
    pub fn new(limit: &RateLimit, keys: Keys, words: Words, refused: Words) -> Self {
        let size = limit.size.next_power_of_two();
        assert!(words.len() >= 2 * size, "the token buckets need more words");
        let mut limiter = Self {
            words,
            mask: (size - 1) as u32,
            addresses: 0,
            keys,
            period_micros: 1,
            period: 0,
            next_period: Instant::default(),
            add: 0,
            burst: 0,
            failures: 0,
            guesses: 0,
            guesses_left: 0,
            mask4: 0,
            mask6: [0; 4],
            refused: Sightings::new(refused),
        };
        limiter.set_limits(limit);
        limiter
    }

    /// From now on these are the limits; the number of buckets stays. What a prefix has spent still counts, unless another period or another
    /// length of prefixes gives it another bucket, which may be full or not.
    pub fn set_limits(&mut self, limit: &RateLimit) {
        let mask = |bits: u32| u32::MAX.checked_shl(32 - bits.min(32)).unwrap_or(0);
        self.period_micros = (limit.period.as_micros() as u64).max(1);
        // The number of the current period is reckoned anew.
        self.next_period = Instant::default();
        (self.add, self.burst) = (limit.add, limit.burst);
        (self.failures, self.guesses, self.guesses_left) = (limit.failures, limit.guesses, limit.guesses);
        self.mask4 = mask(limit.prefix4.into());
        self.mask6 = core::array::from_fn(|i| mask(u32::from(limit.prefix6).saturating_sub(32 * i as u32)));
    }

    /// From now on the buckets lie in these words, which get what they hold.
    ///
    /// # Panics
    /// If there are too few words.
    pub fn move_to(&mut self, words: Words) {
        let size = 2 * (self.mask as usize + 1);
        assert!(words.len() >= size, "the token buckets need more words");
        words.copy(&self.words, size);
        self.words = words;
    }

    /// The limits on SYNs and the naming of buckets, for a program that charges SYNs as [`spend`](Self::spend) does: see `proxy::kernel_syns`.
    pub fn parameters(&self) -> [u64; 8] {
        let both = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        let [a, b, c, d] = self.mask6;
        [
            self.period_micros,
            both(self.add, self.burst),
            both(self.mask, self.mask4),
            both(a, b),
            both(c, d),
            self.keys.0,
            self.keys.1 | 1,
            both(self.most_failures(), self.failures),
        ]
    }

    /// The place of a source prefix's bucket.
    // An attacker who wants to spend another prefix's tokens can forge its addresses, so the hash need not be a strong one.
    #[inline(always)]
    pub fn place(&self, key: &FlowKey) -> u32 {
        self.hash(key) as u32 & self.mask
    }

    /// Where the failures of a source are counted.
    #[inline(always)]
    pub fn guesser(&self, key: &FlowKey) -> Guesser {
        Guesser { prefix: self.place(key), address: self.address_place(key) }
    }

    /// The place of a source address's own bucket, for its failures.
    #[inline(always)]
    fn address_place(&self, key: &FlowKey) -> u32 {
        let [a, b, c, d] = key.wan.map(u64::from);
        let low = c << 32 | d;
        let hash = if key.v6 { self.mix(self.mix((a << 32 | b) ^ ADDRESS) ^ low) } else { self.mix(d | ADDRESS) };
        (hash as u32 & self.mask) | self.addresses
    }

    /// What names a source prefix: a hash that two of them hardly share, however few buckets there are.
    pub fn network(&self, key: &FlowKey) -> u32 {
        (self.hash(key) >> 32) as u32
    }

    #[inline(always)]
    fn hash(&self, key: &FlowKey) -> u64 {
        let [a, b, c, d] = key.wan;
        if key.v6 {
            let m = &self.mask6;
            let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
            self.mix(self.mix(pair(a & m[0], b & m[1])) ^ pair(c & m[2], d & m[3]))
        } else {
            self.mix(u64::from(d & self.mask4))
        }
    }

    /// Both halves of the product with a secret.
    #[inline(always)]
    fn mix(&self, word: u64) -> u64 {
        let product = u128::from(word ^ self.keys.0) * u128::from(self.keys.1 | 1);
        product as u64 ^ (product >> 64) as u64
    }

    /// The bucket at `place`, as it was last written.
    #[inline(always)]
    fn bucket(&self, place: u32) -> &Bucket {
        self.words.piece(place as usize)
    }

    /// What it knows of the source of `key`, whose prefix is at `place` here and at 0 there, and of the SYN with this keyed hash and number.
    pub fn excerpt(&self, place: u32, key: &FlowKey, hash: u64, isn: SeqNum) -> Self {
        let buckets = [place, self.address_place(key)].map(|place| self.bucket(place).each_ref().map(Word::get));
        Self {
            words: Words::of(buckets.as_flattened().iter().copied()),
            mask: 0,
            addresses: 1,
            refused: self.refused.excerpt(syn(hash, isn)),
            ..*self
        }
    }

    /// What the prefix at `place` had left when it was last read.
    pub fn left(&self, place: u32) -> Left {
        let Spent { fresh, repeated, failures, .. } = Spent::of(self.bucket(place));
        Left {
            fresh: self.burst.saturating_sub(fresh),
            repeated: self.most_repeated().saturating_sub(repeated),
            failures: self.most_failures().saturating_sub(failures),
        }
    }

    fn most_failures(&self) -> u32 {
        self.failures.saturating_mul(FAILURES_AT_ONCE)
    }

    fn most_repeated(&self) -> u32 {
        self.burst.saturating_mul(REPEATED_SHARE)
    }

    /// Asks for a bucket's line.
    #[inline(always)]
    pub fn prefetch(&self, place: u32) {
        prefetch(self.bucket(place));
    }

    /// Charges a SYN to the bucket at `place`. `hash` is the keyed hash of its 4-tuple.
    #[inline]
    pub fn admit(&mut self, place: u32, hash: u64, isn: SeqNum, now: Instant) -> Admission {
        if self.spend(place, now) { Admission::Granted } else { self.admit_repeated(place, hash, isn, now) }
    }

    /// Takes a token for a SYN of the prefix at `place`, if there is one.
    #[inline(always)]
    pub fn spend(&mut self, place: u32, now: Instant) -> bool {
        let burst = self.burst;
        let bucket = &self.refilled(place, now)[0];
        let tokens = bucket.get();
        let granted = (tokens as u32) < burst;
        bucket.set(tokens + u64::from(granted));
        granted
    }

    /// The same, when only a SYN that has been refused before may be answered.
    #[inline(never)]
    fn admit_repeated(&mut self, place: u32, hash: u64, isn: SeqNum, now: Instant) -> Admission {
        let most = self.most_repeated();
        let mut spent = Spent::of(self.refilled(place, now));
        if self.refused.seen_before(syn(hash, isn), now) && spent.repeated < most {
            spent.repeated += 1;
            spent.store(self.bucket(place));
            return Admission::SecondChance;
        }
        Admission::Refused
    }

    /// Whether a SYN that is not answered has been seen before, in an earlier second; notes that it was. `hash` is the keyed hash of its 4-tuple.
    pub fn seen_before(&mut self, hash: u64, isn: SeqNum, now: Instant) -> bool {
        self.refused.seen_before(syn(hash, isn), now)
    }

    /// Gives a token back: the client has proved itself.
    pub fn refund(&mut self, key: &FlowKey, now: Instant) {
        let tokens = &self.refilled(self.place(key), now)[0];
        let spent = tokens.get();
        tokens.set(spent - u64::from(spent as u32 > 0));
    }

    /// Whether a SYN with this keyed hash and number was refused in an earlier second; if it is refused now, it will have been.
    pub fn is_repeated(&mut self, hash: u64, isn: SeqNum, now: Instant) -> bool {
        self.refused.seen_before(syn(hash, isn), now)
    }

    /// Whether a source's address, its prefix, and all together, have failed in few enough cookie tests to be granted another. Charges nothing.
    #[inline]
    pub fn may_test(&mut self, guesser: Guesser, now: Instant) -> bool {
        self.advance(now);
        // In a flood of guesses it is all together that have spent theirs, so that is asked first: it takes no bucket.
        let may = |place| (self.refilled_now(place)[1].get() as u32) < self.most_failures();
        self.guesses_left > 0 && may(guesser.prefix) && may(guesser.address)
    }

    /// Charges a failed cookie test to a source's address, to its prefix, and to all.
    #[inline]
    pub fn failed(&mut self, guesser: Guesser, now: Instant) {
        self.advance(now);
        let most = self.most_failures();
        for (place, cost) in [(guesser.prefix, 1), (guesser.address, ADDRESSES)] {
            let failures = &self.refilled_now(place)[1];
            let spent = failures.get();
            failures.set(spent + u64::from(most.saturating_sub(spent as u32).min(cost)));
        }
        self.guesses_left = self.guesses_left.saturating_sub(1);
    }

    /// The bucket at `place`, refilled for the periods that have passed.
    #[inline(always)]
    fn refilled(&mut self, place: u32, now: Instant) -> &Bucket {
        self.advance(now);
        self.refilled_now(place)
    }

    /// Begins the refill period that `now` is in.
    #[inline(always)]
    fn advance(&mut self, now: Instant) {
        if now >= self.next_period {
            self.begin_period(now);
        }
    }

    /// The bucket at `place`, refilled for the periods up to the present one.
    #[inline(always)]
    fn refilled_now(&self, place: u32) -> &Bucket {
        let bucket = self.bucket(place);
        if (bucket[1].get() >> 32) as u32 != self.period {
            self.refill(bucket);
        }
        bucket
    }

    /// Adds the tokens of each period that has passed since a bucket was last refilled.
    #[inline(never)]
    fn refill(&self, bucket: &Bucket) {
        let spent = Spent::of(bucket);
        let periods = self.period.wrapping_sub(spent.period);
        let tokens = self.add.saturating_mul(periods);
        Spent {
            fresh: spent.fresh.min(self.burst).saturating_sub(tokens),
            repeated: spent.repeated.min(self.most_repeated()).saturating_sub(tokens.saturating_mul(REPEATED_SHARE)),
            failures: spent.failures.min(self.most_failures()).saturating_sub(self.failures.saturating_mul(periods)),
            period: self.period,
        }
        .store(bucket);
    }

    #[cold]
    #[inline(never)]
    fn begin_period(&mut self, now: Instant) {
        let period = now.as_micros() / self.period_micros;
        self.period = period as u32;
        self.next_period = Instant::from_micros((period + 1) * self.period_micros);
        self.guesses_left = self.guesses;
    }
}

/// What names a SYN, by the keyed hash of its 4-tuple and its number.
fn syn(hash: u64, isn: SeqNum) -> u64 {
    hash ^ u64::from(isn.get()).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A [`Meter`]'s token in the unit of its credit: what a rate of one earns in a second.
const TOKEN: u64 = 1_000_000;

/// One token bucket, for what all sources share: so many a second, and after a second's rest so many at once.
#[derive(Clone)]
pub struct Meter {
    rate: u32,
    /// Millionths of tokens.
    credit: u64,
    /// When the credit was last reckoned.
    reckoned: Instant,
}

impl Meter {
    /// A full bucket of `rate` tokens, to which as many are added a second; with zero there never is one.
    pub fn new(rate: u32) -> Self {
        Self { rate, credit: u64::from(rate) * TOKEN, reckoned: Instant::default() }
    }

    /// From now on so many tokens are added a second. What it holds stays, as far as the bucket now holds as much.
    pub fn set_rate(&mut self, rate: u32) {
        self.rate = rate;
        self.credit = self.credit.min(u64::from(rate) * TOKEN);
    }

    /// Whether no token is ever granted.
    #[inline]
    pub fn is_shut(&self) -> bool {
        self.rate == 0
    }

    /// Takes a token, if there is one.
    #[inline]
    pub fn take(&mut self, now: Instant) -> bool {
        self.rate > 0 && self.take_of_some(now)
    }

    #[inline(never)]
    fn take_of_some(&mut self, now: Instant) -> bool {
        let rate = u64::from(self.rate);
        // A second fills it, so that a longer time has the same effect.
        let micros = now.as_micros().saturating_sub(self.reckoned.as_micros()).min(TOKEN);
        self.credit = (self.credit + rate * micros).min(rate * TOKEN);
        self.reckoned = self.reckoned.max(now);
        let granted = self.credit >= TOKEN;
        if granted {
            self.credit -= TOKEN;
        }
        granted
    }
}

/// Bits of one slice, as a power of two: with a million refused SYNs a second one new SYN in fifty is mistaken for a
/// repeated one.
const SLICE_BITS: u32 = 23;
const SLICES: usize = 4;

/// Which SYNs were refused recently: a filter in slices of a second (2^20 µs), of which the last three are read and the
/// current one is written.
pub struct Sightings {
    words: Words,
    /// Words of a slice, a power of two.
    slice_words: usize,
}

impl Sightings {
    /// The version of the layout.
    pub const LAYOUT: u64 = 1;

    /// Words of a slice, a power of two.
    fn slice_words(config: &Config) -> usize {
        config.refused_syns.next_power_of_two().min(1 << (SLICE_BITS - 6))
    }

    /// The words of this configuration's filter.
    pub fn words_needed(config: &Config) -> usize {
        LINE + SLICES * Self::slice_words(config)
    }

    /// A filter in these words, of the greatest size there is room for.
    fn new(words: Words) -> Self {
        assert!(words.len() >= LINE + SLICES, "the memory of refused SYNs needs more words");
        let slice_words = 1 << ((words.len() - LINE) / SLICES).ilog2().min(SLICE_BITS - 6);
        Self { words, slice_words }
    }

    /// The second the current slice stands for.
    fn second(&self) -> u64 {
        self.words[0].get()
    }

    /// A word of a slice.
    fn word(&self, slice: usize, word: usize) -> &AtomicU64 {
        &self.words[LINE + slice * self.slice_words + word]
    }

    /// Whether this hash was noted in an earlier second; notes it in the current one.
    fn seen_before(&mut self, hash: u64, now: Instant) -> bool {
        self.advance(now.as_micros() >> 20);
        let mut found = [true; SLICES];
        let current = self.second() as usize % SLICES;
        for (bit, word) in Self::probes(hash) {
            let (word, mask) = (word & (self.slice_words - 1), 1u64 << bit);
            for (slice, found) in found.iter_mut().enumerate() {
                let word = self.word(slice, word);
                let bits = word.get();
                *found &= bits & mask != 0;
                if slice == current {
                    word.set(bits | mask);
                }
            }
        }
        (0..SLICES).any(|slice| slice != current && found[slice])
    }

    /// The bits that stand for a hash in each slice: which one, and of which word.
    fn probes(hash: u64) -> [(u32, usize); 4] {
        [0, 16, 32, 48].map(|rotation| {
            let bit = hash.rotate_left(rotation) as u32 >> (32 - SLICE_BITS);
            (bit & 63, (bit >> 6) as usize)
        })
    }

    /// What it knows of one hash, in slices of one word: where two of its bits fall together there, both stand for one that is set if both are.
    fn excerpt(&self, hash: u64) -> Self {
        let probes = Self::probes(hash);
        let is_set = |slice: usize, (bit, word): (u32, usize)| {
            self.word(slice, word & (self.slice_words - 1)).get() >> bit & 1 == 1
        };
        let word = |slice: usize| {
            probes.iter().fold(0, |all, &(bit, _)| {
                let set = probes.iter().filter(|other| other.0 == bit).all(|&probe| is_set(slice, probe));
                all | u64::from(set) << bit
            })
        };
        let value = |at: usize| match at.checked_sub(LINE) {
            Some(slice) => word(slice),
            None => self.words[at].get(),
        };
        Self { words: Words::of((0..LINE + SLICES).map(value)), slice_words: 1 }
    }

    fn advance(&mut self, second: u64) {
        let passed = match second.checked_sub(self.second()) {
            Some(0) => return,
            Some(passed) => passed.min(SLICES as u64),
            // No process with this clock has written it.
            None => SLICES as u64,
        };
        for back in 0..passed {
            let slice = second.wrapping_sub(back) as usize % SLICES;
            (0..self.slice_words).for_each(|word| self.word(slice, word).set(0));
        }
        self.words[0].set(second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use core::time::Duration;
    use proptest::prelude::*;

    fn from(source: u32) -> FlowKey {
        FlowKey { wan: [0, 0, 0xffff, source], ..FlowKey::default() }
    }

    impl Limiter {
        fn admit_from(&mut self, source: u32, hash: u64, isn: SeqNum, now: Instant) -> Admission {
            self.admit(self.place(&from(source)), hash, isn, now)
        }
    }

    fn limiter() -> Limiter {
        let limit =
            RateLimit { burst: 10, add: 5, failures: 2, period: Duration::from_secs(1), ..RateLimit::default() };
        limiter_of(&limit)
    }

    fn limiter_of(limit: &RateLimit) -> Limiter {
        let config = Config { rate: limit.clone(), ..Config::default() };
        let [words, refused] = [Limiter::words_needed(&config), Sightings::words_needed(&config)].map(Words::zeroed);
        Limiter::new(limit, (0x0123_4567_89ab_cdef, 0xfeed_beef_dead_cafe), words, refused)
    }

    #[test]
    fn whatever_another_process_left_nothing_panics_and_buckets_fill_again() {
        let mut random = memory::tests::random(2);
        let limit = RateLimit { size: 64, burst: 10, add: 5, ..RateLimit::default() };
        let config = Config { rate: limit.clone(), ..Config::default() };
        let [words, refused] = [Limiter::words_needed(&config), Sightings::words_needed(&config)]
            .map(|len| memory::tests::shared(len, &mut random));
        let mut limiter = Limiter::new(&limit, (1, 2), words, refused);
        for n in 0..50_000u64 {
            let now = Instant::from_micros(n * 1000);
            let (key, isn) = (from(((random() % 64) << 8) as u32), SeqNum::new(random() as u32));
            let place = limiter.place(&key);
            let _ = limiter.admit(place, random(), isn, now);
            if limiter.may_test(limiter.guesser(&key), now) {
                limiter.failed(limiter.guesser(&key), now);
            }
            limiter.refund(&key, now);
            limiter.excerpt(place, &key, random(), isn);
        }
        let later = Instant::from_secs(60);
        for place in 0..64 {
            assert!((0..10).all(|_| limiter.spend(place, later)));
            assert!(!limiter.spend(place, later));
        }
        let (hash, isn) = (random(), SeqNum::new(1));
        assert_eq!(limiter.admit(0, hash, isn, later), Admission::Refused);
        assert_eq!(limiter.admit(0, hash, isn, later + Duration::from_millis(2048)), Admission::Granted, "refilled");
    }

    #[test]
    fn a_prefix_spends_its_burst_and_earns_it_back_by_the_second() {
        let mut limiter = limiter();
        let granted = |limiter: &mut Limiter, now, salt: u64| {
            (0..100u32)
                .filter(|&n| {
                    limiter.admit_from(0x0a00_0000 + n, salt + u64::from(n) * 0x1234_5678_9abc, SeqNum::new(n), now)
                        == Admission::Granted
                })
                .count()
        };
        assert_eq!(granted(&mut limiter, Instant::from_secs(10), 0), 10);
        assert_eq!(granted(&mut limiter, Instant::from_secs(11), 1 << 60), 5);
        assert_eq!(granted(&mut limiter, Instant::from_secs(3600), 2 << 60), 10);
    }

    #[test]
    fn limits_that_change_hold_at_once() {
        let limit = RateLimit { burst: 10, add: 5, period: Duration::from_secs(1), ..RateLimit::default() };
        let mut limiter = limiter_of(&limit);
        let spends = |limiter: &mut Limiter, now| {
            let place = limiter.place(&from(0x0a00_0001));
            (0..100).take_while(|_| limiter.spend(place, now)).count()
        };
        let second = Instant::from_secs;
        assert_eq!(spends(&mut limiter, second(10)), 10);
        limiter.set_limits(&RateLimit { burst: 12, add: 7, ..limit.clone() });
        assert_eq!(spends(&mut limiter, second(10)), 2, "what was spent counts");
        assert_eq!(spends(&mut limiter, second(11)), 7);
        limiter.set_limits(&RateLimit { burst: 3, ..limit.clone() });
        assert_eq!(spends(&mut limiter, second(3600)), 3);
        for period in [100, 3, 1_000_000] {
            limiter.set_limits(&RateLimit { period: Duration::from_micros(period), add: 1, ..limit.clone() });
            assert_eq!(spends(&mut limiter, second(7200)), 10, "periods of {period} µs");
            assert_eq!(spends(&mut limiter, second(7200) + Duration::from_micros(period)), 1, "periods of {period} µs");
        }
        limiter.set_limits(&RateLimit { prefix4: 32, ..limit });
        assert_ne!(limiter.place(&from(0x0a00_0001)), limiter.place(&from(0x0a00_0002)));
    }

    #[test]
    fn a_meter_whose_rate_changes_earns_by_the_new_one() {
        let mut meter = Meter::new(0);
        let takes = |meter: &mut Meter, now| (0..100).take_while(|_| meter.take(now)).count();
        let second = Instant::from_secs;
        assert_eq!(takes(&mut meter, second(10)), 0);
        meter.set_rate(5);
        assert_eq!((takes(&mut meter, second(11)), takes(&mut meter, second(12))), (5, 5));
        meter.set_rate(3);
        assert_eq!((takes(&mut meter, second(12)), takes(&mut meter, second(13))), (0, 3));
    }

    #[test]
    fn a_proof_returns_its_token() {
        let mut limiter = limiter();
        let now = Instant::from_secs(10);
        for _ in 0..1000 {
            assert_eq!(limiter.admit_from(1, 7, SeqNum::new(1), now), Admission::Granted);
            limiter.refund(&from(1), now);
        }
    }

    #[test]
    fn other_prefixes_do_not_pay() {
        let mut limiter = limiter();
        let now = Instant::from_secs(10);
        for n in 0..1000 {
            let _ = limiter.admit_from(0x0a00_0000, n, SeqNum::new(1), now);
        }
        assert_eq!(limiter.admit_from(0x0a00_0100, 7, SeqNum::new(1), now), Admission::Granted);
    }

    #[test]
    fn a_syn_that_comes_back_a_second_later_gets_in_where_new_ones_do_not() {
        let mut limiter = limiter();
        let hash = |n: u32| {
            u64::from(n).wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(29).wrapping_mul(0xd6e8_feb8_6659_fd93)
        };
        for n in 0..100_000 {
            let _ = limiter.admit_from(n & 0xff, hash(n), SeqNum::new(n), Instant::from_secs(10));
        }
        let mut admitted = 0;
        for n in 100_000..110_000 {
            let verdict = limiter.admit_from(n & 0xff, hash(n), SeqNum::new(n), Instant::from_micros(11_060_000));
            admitted += u32::from(verdict != Admission::Refused);
        }
        assert!(admitted <= 10, "{admitted} new SYNs of ten thousand got in");
        let back =
            limiter.admit_from(99_999 & 0xff, hash(99_999), SeqNum::new(99_999), Instant::from_micros(11_060_000));
        assert_eq!(back, Admission::SecondChance);
    }

    #[test]
    fn prefix_zero_is_one_bucket_for_all() {
        let limit = RateLimit { burst: 3, prefix4: 0, prefix6: 0, ..RateLimit::default() };
        let mut limiter = limiter_of(&limit);
        let now = Instant::from_secs(1);
        let granted = (0..100u32)
            .filter(|&n| limiter.admit_from(n << 24, u64::from(n) << 40, SeqNum::new(n), now) == Admission::Granted);
        assert_eq!(granted.count(), 3);
    }

    /// How many of a hundred guesses are tested, each in the name of the next of these addresses.
    fn tested(limiter: &mut Limiter, sources: &[u32], now: Instant) -> usize {
        let granted = sources.iter().cycle().take(100).filter(|&&source| {
            let may = limiter.may_test(limiter.guesser(&from(source)), now);
            if may {
                limiter.failed(limiter.guesser(&from(source)), now);
            }
            may
        });
        granted.count()
    }

    #[test]
    fn guesses_have_a_budget_of_their_own_that_refills_by_the_second() {
        let mut limiter = limiter();
        let network: Vec<u32> = (0x0a00_0000..0x0a00_0100).collect();
        let second = Instant::from_secs;
        assert_eq!(tested(&mut limiter, &network, second(10)), 10);
        assert_eq!(tested(&mut limiter, &network, second(11)), 2);
        assert_eq!(tested(&mut limiter, &network, second(3600)), 10);
        assert!(limiter.may_test(limiter.guesser(&from(0x0a00_0100)), second(3600)), "another prefix does not pay");
        let fresh = limiter.admit_from(0x0a00_0000, 7, SeqNum::new(1), second(3600));
        assert_eq!(fresh, Admission::Granted, "nor do SYNs");
    }

    #[test]
    fn guesses_in_the_name_of_one_address_leave_its_neighbours_most_of_their_budget() {
        let limit = RateLimit { failures: 8, ..RateLimit::default() };
        let mut limiter = limiter_of(&limit);
        let [forged, honest] = [0x0a00_0001, 0x0a00_0002];
        for second in 10..40 {
            let now = Instant::from_secs(second);
            assert!(tested(&mut limiter, &[forged], now) <= if second == 10 { 10 } else { 2 });
            assert!(!limiter.may_test(limiter.guesser(&from(forged)), now));
            assert!(limiter.may_test(limiter.guesser(&from(honest)), now));
        }
        // Four addresses spend what the prefix has.
        assert_eq!(tested(&mut limiter, &[3, 4, 5, 6].map(|n| 0x0b00_0000 + n), Instant::from_secs(50)), 40);
        assert!(!limiter.may_test(limiter.guesser(&from(0x0b00_0007)), Instant::from_secs(50)));
        let v6 = |last| FlowKey { wan: [0x2001_0db8, 0, 0, last], v6: true, ..FlowKey::default() };
        (0..100).for_each(|_| limiter.failed(limiter.guesser(&v6(1)), Instant::from_secs(50)));
        assert!(
            !limiter.may_test(limiter.guesser(&v6(2)), Instant::from_secs(50)),
            "what is charged untested counts all the same"
        );
    }

    #[test]
    fn guesses_from_everywhere_have_one_budget_together() {
        let limit = RateLimit { guesses: 100, ..RateLimit::default() };
        let mut limiter = limiter_of(&limit);
        let mut granted = |now| {
            let granted = (0..1000u32).filter(|&n| {
                let may = limiter.may_test(limiter.guesser(&from(n << 8)), now);
                if may {
                    limiter.failed(limiter.guesser(&from(n << 8)), now);
                }
                may
            });
            granted.count()
        };
        assert_eq!([10, 11, 3600].map(|second| granted(Instant::from_secs(second))), [100; 3]);
    }

    #[test]
    fn a_test_that_succeeds_costs_nothing_and_a_failure_too_many_is_no_debt() {
        let mut limiter = limiter();
        let (source, now) = (from(1), Instant::from_secs(10));
        assert!((0..1000).all(|_| limiter.may_test(limiter.guesser(&source), now)));
        (0..1000).for_each(|_| limiter.failed(limiter.guesser(&source), now));
        assert!(!limiter.may_test(limiter.guesser(&source), now));
        assert!(limiter.may_test(limiter.guesser(&source), Instant::from_secs(12)));
    }

    #[test]
    fn a_meter_of_nothing_grants_nothing() {
        let mut meter = Meter::new(0);
        assert!(![0, 1, 1 << 60].into_iter().any(|micros| meter.take(Instant::from_micros(micros))));
    }

    proptest! {
        /// From any moment to any other a meter grants a full bucket and what is added meanwhile at most; and when it
        /// refuses, there is a moment since when it has granted so much that one more would be too many.
        #[test]
        fn a_meter_grants_its_rate_and_no_less(
            rate in prop_oneof![4 => 1u32..20, 1 => Just(u32::MAX)],
            start in prop_oneof![Just(0), any::<u32>().prop_map(u64::from), Just(u64::MAX / 2)],
            steps in prop::collection::vec(prop_oneof![Just(0), 1u64..3, 1u64..200_000, 900_000u64..5_000_000], 1..200),
        ) {
            let (mut meter, mut now) = (Meter::new(rate), start);
            let mut asked = Vec::new();
            for step in steps {
                now += step;
                let taken = meter.take(Instant::from_micros(now));
                asked.push((now, taken));
                let mut wanted = 0;
                let mut too_many = asked.iter().rev().map(|&(since, granted)| {
                    wanted += u128::from(granted);
                    let one_more = u128::from(!taken);
                    (wanted + one_more) * u128::from(TOKEN) > u128::from(rate) * u128::from(TOKEN + now - since)
                });
                prop_assert_eq!(too_many.any(|too_many| too_many), !taken);
            }
        }
    }
}
