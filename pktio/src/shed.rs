//! Load shedding: which SYNs are dropped while a worker cannot keep up, and the two filters that decide it.
//!
//! A source has proved itself once it has completed a handshake. SYNs of other sources are dropped when they are seen for the first
//! time, but for a share that the worker has time for; at the highest level they are also dropped when they are repeated. Nothing else
//! is ever dropped. An AF_XDP port applies this rule in its XDP program, before a frame takes a buffer (`bpf/shed.h`, which repeats the
//! constants of this file), and offers it as a [`ShedFilter`]. For other ports the worker applies it, with a [`SoftwareShedFilter`].
//! The caller decides what a SYN is, which sources have proved themselves, and when to shed.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A port that drops SYNs by itself, before they take a buffer.
pub trait ShedFilter {
    /// Sets which SYNs are dropped from now on. What was dropped is counted in
    /// [`PortStatistics`](crate::PortStatistics).
    fn set_level(&mut self, level: ShedLevel);

    /// Exempts a source that has proved itself: 16 bytes in network order, an IPv4 address mapped into IPv6 (RFC 4291 section 2.5.5.2).
    /// The exemption ends between nine and eighteen minutes after the last call.
    fn add_proved_source(&mut self, source: [u8; 16]);
}

/// Which SYNs of unproved sources are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShedLevel {
    /// None.
    #[default]
    Off,
    /// Those seen for the first time, but for this share of them, in 256ths.
    Fresh(u8),
    /// All of these, and repeated ones as well.
    Repeated,
}

impl ShedLevel {
    /// The level as the word that the XDP program reads.
    pub(crate) fn word(self) -> u64 {
        match self {
            ShedLevel::Off => 0,
            ShedLevel::Fresh(share) => 1 | u64::from(share) << 8,
            ShedLevel::Repeated => 2,
        }
    }
}

/// What happens to a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShedVerdict {
    /// It passes.
    Pass,
    /// It is dropped: it was seen for the first time.
    Fresh,
    /// It is dropped although it is repeated.
    Repeated,
}

/// A SYN that a port has dropped, one of many: see [`Guard::take_shed_samples`](crate::Guard::take_shed_samples).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShedSample {
    /// Its source: 16 bytes in network order, an IPv4 address mapped into IPv6.
    pub source: [u8; 16],
    /// Its destination, likewise.
    pub destination: [u8; 16],
    /// Its source port.
    pub source_port: u16,
    /// Its destination port.
    pub destination_port: u16,
    /// How many dropped SYNs it stands for.
    pub stands_for: u32,
}

/// Samples wanted a second: enough to name a source of one SYN in a hundred, and a quarter of what the ring holds.
const SAMPLES_A_SECOND: u64 = 1000;

/// One in how many dropped SYNs is to be sampled next, if it was one in `every` and `dropped` were dropped in this time. It changes only if it is
/// wrong by half, so that it does not follow every change of the rate.
pub(crate) fn next_every(every: u32, dropped: u64, time: Duration) -> u32 {
    let a_second = u128::from(dropped) * 1000 / time.as_millis().max(1);
    let right = u32::try_from(a_second / u128::from(SAMPLES_A_SECOND)).unwrap_or(u32::MAX).max(1);
    // Without a flood there is nothing to learn from; the next one may be any size.
    if dropped == 0 || right.abs_diff(every) <= every / 2 { every } else { right }
}

/// Lines of [`ProvedSources`], 4 MiB in all: with a million proved sources one unproved source in a hundred is taken for proved.
pub(crate) const PROVED_LINES: usize = 1 << 18;
/// A generation lasts 2^39 ns, nine minutes; a source counts as proved in its own and in the next.
const GENERATION_BITS: u32 = 39;
/// Bits of a word of [`ProvedSources`] that are filter; the generation is in those above.
const GENERATION_SHIFT: u32 = 56;

/// Lines of [`RecentSyns`], 32 MiB in all: with five million SYNs a second one in thirty is taken for a repeated one.
const RECENT_LINES: usize = 1 << 19;
const RECENT_SLICES: usize = 7;
/// A slice lasts 2^29 ns, half a second. A SYN is repeated if it was seen in one of the four slices before the present one: a client
/// retransmits its SYN after one second, and after two more (RFC 6298 section 5).
const SLICE_BITS: u32 = 29;
const SLICES_BACK: usize = 4;

/// Three bits of a word of `width` bits, the same as in the XDP program.
fn bits(hash: u64, width: u64) -> u64 {
    [32, 40, 48].iter().fold(0, |bits, at| bits | 1 << (((hash >> at & 0xff) * width) >> 8))
}

/// Sources that have proved themselves: a Bloom filter of two generations, in memory that an XDP program may read at the same time.
///
/// Every word carries the generation it was written in, so that stale words need not be cleared.
#[derive(Debug)]
pub(crate) struct ProvedSources<W>(W);

impl<W: Deref<Target = [AtomicU64]>> ProvedSources<W> {
    /// A filter in these words, two a line.
    ///
    /// # Panics
    ///
    /// When their number is not that of [`PROVED_LINES`].
    pub(crate) fn over(words: W) -> Self {
        assert_eq!(words.len(), PROVED_WORDS);
        ProvedSources(words)
    }

    fn word(&self, hash: u64, generation: u64) -> &AtomicU64 {
        &self.0[2 * (hash as usize & (PROVED_LINES - 1)) + (generation & 1) as usize]
    }

    /// Adds the source of this hash; returns whether it is new in this generation. When two workers write the same word at the same
    /// time, one of the sources may be lost until it proves itself again.
    pub(crate) fn add(&self, hash: u64, nanos: u64) -> bool {
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

/// SYNs of the last seconds: a Bloom filter in time slices.
struct RecentSyns {
    /// In each line the slices, slice `n` at `n % 7`, and at the end the number of the slice that was written last.
    lines: Vec<[u64; RECENT_SLICES + 1]>,
}

impl RecentSyns {
    /// Whether the SYN of this hash was seen before, in an earlier slice. Remembers it.
    fn is_repeated(&mut self, hash: u64, nanos: u64) -> bool {
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

/// The rule for a port without a [`ShedFilter`]. The proved sources lie in words that are handed in, zeroed or as another filter left them; the 32 MiB of
/// the recent SYNs are allocated at once. Most pages are touched when they are first used.
pub struct SoftwareShedFilter<W> {
    proved: ProvedSources<W>,
    recent: RecentSyns,
}

/// Bytes of a [`SoftwareShedFilter`], proved sources included.
pub const BYTES: usize = PROVED_WORDS * size_of::<u64>() + RECENT_LINES * size_of::<[u64; RECENT_SLICES + 1]>();

/// Words that the proved sources of a [`SoftwareShedFilter`] need.
pub const PROVED_WORDS: usize = 2 * PROVED_LINES;

impl<W: Deref<Target = [AtomicU64]>> SoftwareShedFilter<W> {
    /// A filter whose proved sources lie in these words.
    ///
    /// # Panics
    ///
    /// When their number is not [`PROVED_WORDS`].
    pub fn over(proved: W) -> Self {
        SoftwareShedFilter {
            proved: ProvedSources::over(proved),
            recent: RecentSyns { lines: vec![[0; RECENT_SLICES + 1]; RECENT_LINES] },
        }
    }

    /// Exempts a source that has proved itself; returns whether it is new in this generation. `source` is a keyed hash of its address,
    /// `nanos` a time in nanoseconds that never goes back.
    pub fn add_proved_source(&mut self, source: u64, nanos: u64) -> bool {
        self.proved.add(source, nanos)
    }

    /// What happens to a SYN of this source. `syn` is a keyed hash over everything that distinguishes the SYN from others and is the same
    /// when it is retransmitted.
    pub fn check(&mut self, level: ShedLevel, source: u64, syn: u64, nanos: u64) -> ShedVerdict {
        if level == ShedLevel::Off || self.proved.has(source, nanos) {
            return ShedVerdict::Pass;
        }
        match (self.recent.is_repeated(syn, nanos), level) {
            // The top bits of the hash, which are used for nothing else.
            (false, ShedLevel::Fresh(share)) if syn >> 56 < u64::from(share) => ShedVerdict::Pass,
            (false, _) => ShedVerdict::Fresh,
            (true, ShedLevel::Repeated) => ShedVerdict::Repeated,
            (true, _) => ShedVerdict::Pass,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn filter() -> SoftwareShedFilter<Vec<AtomicU64>> {
        SoftwareShedFilter::over(std::iter::repeat_with(AtomicU64::default).take(PROVED_WORDS).collect())
    }
    /// A day of uptime.
    const START: u64 = 86_400 * SECOND;

    /// A good hash of a number (the finaliser of SplitMix64).
    fn hash(n: u64) -> u64 {
        let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ n >> 31
    }

    #[test]
    fn about_a_thousand_samples_a_second_are_taken_whatever_the_rate() {
        let mut every = 1024;
        for rate in [5_000_000_u64, 20_000, 999, 100_000_000, 3_000_000] {
            every = next_every(every, rate, Duration::from_secs(1));
            let samples = rate / u64::from(every);
            assert!((500..=2000).contains(&samples) || every == 1, "{samples} samples of {rate}");
        }
        assert_eq!(next_every(7, 0, Duration::from_secs(9)), 7, "between two floods it stays");
        assert_eq!(next_every(100, 110_000, Duration::from_secs(1)), 100, "a small change is none");
        assert_eq!(next_every(1, u64::MAX, Duration::ZERO), u32::MAX);
    }

    #[test]
    fn nothing_is_dropped_while_shedding_is_off() {
        let mut filter = filter();
        assert!((0..1000).all(|n| filter.check(ShedLevel::Off, hash(n), hash(n), START) == ShedVerdict::Pass));
    }

    #[test]
    fn a_syn_of_an_unproved_source_passes_when_it_is_repeated_after_a_second_and_not_at_once() {
        let mut filter = filter();
        let mut check = |level, after| filter.check(level, hash(1), hash(2), START + after);
        assert_eq!(check(ShedLevel::Fresh(0), 0), ShedVerdict::Fresh);
        assert_eq!(
            check(ShedLevel::Fresh(0), 1_000_000),
            ShedVerdict::Fresh,
            "a copy sent at once is no retransmission"
        );
        assert_eq!(check(ShedLevel::Fresh(0), SECOND), ShedVerdict::Pass);
        assert_eq!(check(ShedLevel::Fresh(0), 3 * SECOND), ShedVerdict::Pass, "and two seconds later");
        assert_eq!(check(ShedLevel::Repeated, 5 * SECOND), ShedVerdict::Repeated);
        assert_eq!(check(ShedLevel::Fresh(0), 60 * SECOND), ShedVerdict::Fresh, "that is another connection attempt");
    }

    #[test]
    fn a_proved_source_passes_at_every_level_for_two_generations() {
        let mut filter = filter();
        filter.add_proved_source(hash(1), START);
        for level in [ShedLevel::Fresh(0), ShedLevel::Repeated] {
            assert_eq!(filter.check(level, hash(1), hash(2), START + 500 * SECOND), ShedVerdict::Pass);
            assert_eq!(filter.check(level, hash(3), hash(4), START), ShedVerdict::Fresh);
        }
        assert_eq!(filter.check(ShedLevel::Fresh(0), hash(1), hash(2), START + 1200 * SECOND), ShedVerdict::Fresh);
        let later = START + 1200 * SECOND;
        filter.add_proved_source(hash(1), later);
        assert_eq!(filter.check(ShedLevel::Fresh(0), hash(1), hash(5), later), ShedVerdict::Pass);
    }

    #[test]
    fn a_flood_of_first_syns_hardly_ever_looks_repeated_or_proved() {
        let mut filter = filter();
        for n in 0..100_000 {
            filter.add_proved_source(hash(n), START);
        }
        // A million a second for three seconds.
        let mut passed = 0;
        for n in 0..3_000_000u64 {
            let n = n + (1 << 40);
            let now = START + (n & 0xff_ffff) * 1000;
            passed += u64::from(filter.check(ShedLevel::Fresh(0), hash(n), hash(!n), now) == ShedVerdict::Pass);
        }
        assert!(passed < 30_000, "{passed} of three million");
    }

    #[test]
    fn the_given_share_of_first_syns_passes() {
        for share in [1, 64, 255] {
            let mut filter = filter();
            let check = |n| filter.check(ShedLevel::Fresh(share), hash(n), hash(!n), START);
            let passed = (0..64_000).map(check).filter(|verdict| *verdict == ShedVerdict::Pass).count();
            let due = 250 * usize::from(share);
            assert!(passed.abs_diff(due) < 40 + due / 20, "{passed} of 64000, where {due} were due");
        }
    }

    #[test]
    fn honest_clients_that_connect_during_a_flood_are_told_from_it() {
        let mut filter = filter();
        let mut now = START;
        for client in 0..200 {
            assert_eq!(filter.check(ShedLevel::Fresh(0), hash(client), hash(client), now + client), ShedVerdict::Fresh);
        }
        for n in 0..1_000_000u64 {
            let n = n + (1 << 40);
            filter.check(ShedLevel::Fresh(0), hash(n), hash(!n), now);
            now += 1000;
        }
        assert!(
            (0..200)
                .all(|client| filter.check(ShedLevel::Fresh(0), hash(client), hash(client), now) == ShedVerdict::Pass)
        );
    }
}
