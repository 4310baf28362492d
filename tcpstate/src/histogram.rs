//! How often something took how long, in buckets of powers of two.

use core::time::Duration;

/// Buckets with a bound: 1 µs, 2 µs, 4 µs, and so on up to 67 s. What takes longer is in one more.
pub const BOUNDED: usize = 27;

/// How often something took how long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Observations by bucket: those that the bound of the bucket before excludes, and its own does not.
    pub counts: [u64; BOUNDED + 1],
    /// All of them together, in nanoseconds.
    pub sum: u64,
}

/// The longest time that belongs into this bucket.
pub const fn bound(bucket: usize) -> Duration {
    Duration::from_micros(1 << bucket)
}

impl Histogram {
    /// Adds an observation.
    pub fn observe(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let micros = nanos.div_ceil(1000).max(1);
        // The exponent of the next power of two.
        let bucket = (u64::BITS - (micros - 1).leading_zeros()) as usize;
        self.counts[bucket.min(BOUNDED)] += 1;
        self.sum = self.sum.saturating_add(nanos);
    }

    /// How many observations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let mut random = crate::memory::tests::random(7);
        for n in 0..10_000 {
            let nanos = random() >> (n % 60);
            let mut histogram = Histogram::default();
            histogram.observe(Duration::from_nanos(nanos));
            let bucket = histogram.counts.iter().position(|&count| count == 1).expect("one is counted");
            assert!(bucket == BOUNDED || Duration::from_nanos(nanos) <= bound(bucket), "{nanos} ns");
            assert!(bucket == 0 || Duration::from_nanos(nanos) > bound(bucket - 1), "{nanos} ns");
            assert_eq!((histogram.count(), histogram.sum), (1, nanos));
        }
    }

    #[test]
    fn bounds_and_extremes() {
        assert_eq!(
            (bound(0), bound(10), bound(BOUNDED - 1).as_secs()),
            (Duration::from_micros(1), Duration::from_micros(1024), 67)
        );
        let mut histogram = Histogram::default();
        [Duration::ZERO, Duration::from_micros(1), Duration::MAX].iter().for_each(|&time| histogram.observe(time));
        assert_eq!((histogram.counts[0], histogram.counts[BOUNDED], histogram.sum), (2, 1, u64::MAX));
    }
}
