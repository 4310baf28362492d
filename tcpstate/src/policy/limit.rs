//! Limits on what comes from those who have proved nothing: a token bucket for each source prefix, and a second chance
//! for whoever comes back.
//!
//! A flood with forged sources spends a prefix's tokens, but it does not come back a second later with the same
//! SYN as an honest client does. SYNs that were refused are therefore remembered for a few seconds in a filter,
//! and one that is seen again after its second of penance draws on tokens of its own.
//!
//! Failed cookie tests have a budget of their own: whoever guesses gets no more guesses a second from one prefix than
//! it has tokens, whatever the rate at which he sends.

use crate::config::RateLimit;
use crate::keyed::Keys;
use crate::prefetch::prefetch;
use crate::seq::SeqNum;
use crate::wire::FlowKey;
use crate::{Event, Instant};

/// Tokens for repeated SYNs, as a multiple of those for fresh ones.
const REPEATED_SHARE: u32 = 4;

#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Bucket {
    fresh: u32,
    repeated: u32,
    /// Cookie tests that may yet fail.
    failures: u32,
    /// The refill period in which the bucket was last used.
    period: u32,
}

impl Bucket {
    /// Adds `add` tokens for each period that has passed until `period`.
    #[inline(never)]
    fn refill(&mut self, period: u32, add: u32, burst: u32) {
        let tokens = add.saturating_mul(period.wrapping_sub(self.period));
        let most = burst.saturating_mul(REPEATED_SHARE);
        self.period = period;
        self.fresh = self.fresh.saturating_add(tokens).min(burst);
        self.repeated = self.repeated.saturating_add(tokens.saturating_mul(REPEATED_SHARE)).min(most);
        self.failures = self.failures.saturating_add(tokens).min(burst);
    }
}

const _: () = assert!(size_of::<Bucket>() == 16, "no bucket straddles two cache lines");

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

/// The token buckets of all prefixes.
pub struct Limiter {
    buckets: Vec<Bucket>,
    keys: Keys,
    period_micros: u64,
    /// The current refill period, and when the next begins.
    period: u32,
    next_period: Instant,
    add: u32,
    burst: u32,
    mask4: u32,
    mask6: [u32; 4],
    refused: Sightings,
}

impl Limiter {
    /// Full buckets.
    pub fn new(limit: &RateLimit, keys: Keys) -> Self {
        let repeated = limit.burst.saturating_mul(REPEATED_SHARE);
        let full = Bucket { fresh: limit.burst, repeated, failures: limit.burst, period: 0 };
        let mask = |bits: u32| u32::MAX.checked_shl(32 - bits.min(32)).unwrap_or(0);
        Self {
            buckets: vec![full; limit.size.next_power_of_two()],
            keys,
            period_micros: (limit.period.as_micros() as u64).max(1),
            period: 0,
            next_period: Instant::default(),
            add: limit.add,
            burst: limit.burst,
            mask4: mask(limit.prefix4.into()),
            mask6: core::array::from_fn(|i| mask(u32::from(limit.prefix6).saturating_sub(32 * i as u32))),
            refused: Sightings::new(),
        }
    }

    /// The place of a source prefix's bucket.
    // Whoever wants to spend another prefix's tokens may forge its very addresses, so the hash need not be a strong one.
    #[inline]
    pub fn place(&self, key: &FlowKey) -> u32 {
        let [a, b, c, d] = key.wan;
        let hash = if key.v6 {
            let m = &self.mask6;
            let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
            self.mix(self.mix(pair(a & m[0], b & m[1])) ^ pair(c & m[2], d & m[3]))
        } else {
            self.mix(u64::from(d & self.mask4))
        };
        hash as u32 & (self.buckets.len() - 1) as u32
    }

    /// Both halves of the product with a secret.
    #[inline(always)]
    fn mix(&self, word: u64) -> u64 {
        let product = u128::from(word ^ self.keys.0) * u128::from(self.keys.1 | 1);
        product as u64 ^ (product >> 64) as u64
    }

    /// What it knows of the prefix at `place`, which is 0 there, and of the SYN with this keyed hash and number.
    pub fn excerpt(&self, place: u32, hash: u64, isn: SeqNum) -> Self {
        let refused = self.refused.excerpt(syn(hash, isn));
        Self { buckets: vec![self.buckets[place as usize]], refused, ..*self }
    }

    /// What the prefix at `place` had left when it was last asked for.
    pub fn left(&self, place: u32) -> Left {
        let Bucket { fresh, repeated, failures, .. } = self.buckets[place as usize];
        Left { fresh, repeated, failures }
    }

    /// Asks for a bucket's line.
    pub fn prefetch(&self, place: u32) {
        prefetch(&self.buckets[place as usize]);
    }

    /// Charges a SYN to the bucket at `place`. `hash` is the keyed hash of its ends.
    #[inline]
    pub fn admit(&mut self, place: u32, hash: u64, isn: SeqNum, now: Instant) -> Admission {
        if self.spend(place, now) { Admission::Granted } else { self.admit_repeated(place, hash, isn, now) }
    }

    /// Takes a token for a SYN of the prefix at `place`, if there is one.
    #[inline(always)]
    pub fn spend(&mut self, place: u32, now: Instant) -> bool {
        let bucket = self.bucket(place, now);
        let granted = bucket.fresh > 0;
        bucket.fresh -= u32::from(granted);
        granted
    }

    /// The same, when only a SYN that has been refused before may be answered.
    #[inline(never)]
    fn admit_repeated(&mut self, place: u32, hash: u64, isn: SeqNum, now: Instant) -> Admission {
        let may_repeat = self.bucket(place, now).repeated > 0;
        if self.refused.seen_before(syn(hash, isn), now) && may_repeat {
            self.bucket(place, now).repeated -= 1;
            return Admission::SecondChance;
        }
        Admission::Refused
    }

    /// Gives a token back: the client has proved itself.
    pub fn refund(&mut self, key: &FlowKey, now: Instant) {
        let burst = self.burst;
        let bucket = self.bucket(self.place(key), now);
        bucket.fresh = (bucket.fresh + 1).min(burst);
    }

    /// Whether the prefix at `place` has failed in few enough cookie tests to be granted another. Charges nothing.
    pub fn may_test(&mut self, place: u32, now: Instant) -> bool {
        self.bucket(place, now).failures > 0
    }

    /// Charges a failed cookie test to the prefix at `place`.
    pub fn failed(&mut self, place: u32, now: Instant) {
        let bucket = self.bucket(place, now);
        bucket.failures = bucket.failures.saturating_sub(1);
    }

    /// The bucket at `place`, refilled for the periods that have passed.
    #[inline]
    fn bucket(&mut self, place: u32, now: Instant) -> &mut Bucket {
        if now >= self.next_period {
            self.begin_period(now);
        }
        let bucket = &mut self.buckets[place as usize];
        if bucket.period != self.period {
            bucket.refill(self.period, self.add, self.burst);
        }
        bucket
    }

    #[cold]
    fn begin_period(&mut self, now: Instant) {
        let period = now.as_micros() / self.period_micros;
        self.period = period as u32;
        self.next_period = Instant::from_micros((period + 1) * self.period_micros);
    }
}

/// What names a SYN, by the keyed hash of its ends and its number.
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
        // A second fills it, so that a longer time need not be told from one.
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

/// Bits of one slice, as a power of two: with a million refused SYNs a second one stranger in fifty is mistaken for a
/// repeated one.
const SLICE_BITS: u32 = 23;
const SLICES: usize = 4;

/// Which SYNs were refused lately: a filter in slices of a second (2^20 µs), of which the last three tell and the
/// current one is written.
struct Sightings {
    slices: Vec<u64>,
    /// The second the current slice stands for.
    second: u64,
}

impl Sightings {
    const WORDS: usize = 1 << (SLICE_BITS - 6);

    fn new() -> Self {
        Self { slices: vec![0; Self::WORDS * SLICES], second: 0 }
    }

    /// Whether this hash was noted in an earlier second; notes it in the current one.
    fn seen_before(&mut self, hash: u64, now: Instant) -> bool {
        self.advance(now.as_micros() >> 20);
        let mut found = [true; SLICES];
        let current = self.second as usize % SLICES;
        let words = self.slices.len() / SLICES;
        for (bit, word) in Self::probes(hash) {
            let (word, mask) = (word & (words - 1), 1u64 << bit);
            for (slice, found) in found.iter_mut().enumerate() {
                let cell = &mut self.slices[slice * words + word];
                *found &= *cell & mask != 0;
                if slice == current {
                    *cell |= mask;
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
        let is_set = |slice: usize, (bit, word): (u32, usize)| self.slices[slice * Self::WORDS + word] >> bit & 1 == 1;
        let word = |slice: usize| {
            probes.iter().fold(0, |all, &(bit, _)| {
                let set = probes.iter().filter(|other| other.0 == bit).all(|&probe| is_set(slice, probe));
                all | u64::from(set) << bit
            })
        };
        Self { slices: (0..SLICES).map(word).collect(), second: self.second }
    }

    fn advance(&mut self, second: u64) {
        let passed = second.saturating_sub(self.second).min(SLICES as u64);
        self.second = second.max(self.second);
        for back in 0..passed {
            let slice = (self.second - back) as usize % SLICES;
            let words = self.slices.len() / SLICES;
            self.slices[slice * words..][..words].fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let limit = RateLimit { burst: 10, add: 5, period: Duration::from_secs(1), ..RateLimit::default() };
        Limiter::new(&limit, (1, 2))
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
    fn a_syn_that_comes_back_a_second_later_gets_in_where_strangers_do_not() {
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
        assert!(admitted <= 10, "{admitted} strangers of ten thousand got in");
        let back =
            limiter.admit_from(99_999 & 0xff, hash(99_999), SeqNum::new(99_999), Instant::from_micros(11_060_000));
        assert_eq!(back, Admission::SecondChance);
    }

    #[test]
    fn prefix_zero_is_one_bucket_for_all() {
        let limit = RateLimit { burst: 3, prefix4: 0, prefix6: 0, ..RateLimit::default() };
        let mut limiter = Limiter::new(&limit, (1, 2));
        let now = Instant::from_secs(1);
        let granted = (0..100u32)
            .filter(|&n| limiter.admit_from(n << 24, u64::from(n) << 40, SeqNum::new(n), now) == Admission::Granted);
        assert_eq!(granted.count(), 3);
    }
    #[test]
    fn guesses_have_a_budget_of_their_own_that_refills_by_the_second() {
        let mut limiter = limiter();
        let (guesser, other) = (limiter.place(&from(0x0a00_0000)), limiter.place(&from(0x0a00_0100)));
        let mut granted = |now| {
            let granted = (0..100).filter(|_| {
                let may = limiter.may_test(guesser, now);
                if may {
                    limiter.failed(guesser, now);
                }
                may
            });
            granted.count()
        };
        assert_eq!(granted(Instant::from_secs(10)), 10);
        assert_eq!(granted(Instant::from_secs(11)), 5);
        assert_eq!(granted(Instant::from_secs(3600)), 10);
        assert!(limiter.may_test(other, Instant::from_secs(3600)), "another prefix does not pay");
        let fresh = limiter.admit_from(0x0a00_0000, 7, SeqNum::new(1), Instant::from_secs(3600));
        assert_eq!(fresh, Admission::Granted, "nor do SYNs");
    }

    #[test]
    fn a_test_that_succeeds_costs_nothing_and_a_failure_too_many_is_no_debt() {
        let mut limiter = limiter();
        let place = limiter.place(&from(1));
        let now = Instant::from_secs(10);
        assert!((0..1000).all(|_| limiter.may_test(place, now)));
        (0..1000).for_each(|_| limiter.failed(place, now));
        assert!(!limiter.may_test(place, now));
        assert!(limiter.may_test(place, Instant::from_secs(11)));
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
