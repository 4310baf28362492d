//! A histogram of latencies and its summary.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer, ser::SerializeMap};

/// The largest latency recorded as such: an hour, in nanoseconds.
const LONGEST: u64 = 3_600_000_000_000;

/// The percentiles of a summary.
const SHARES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// A histogram of latencies from a nanosecond to an hour, with three significant digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(Histogram::new_with_bounds(1, LONGEST, 3).expect("bounds that make sense"))
    }
}

impl Latencies {
    /// Records a latency; one above an hour counts as an hour.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record((latency.as_nanos() as u64).max(1));
    }

    /// The number of latencies recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency at quantile `share` (0 to 1); zero if there are none.
    pub fn at(&self, share: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(share))
    }

    /// The longest latency.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// Adds those of another histogram.
    pub fn add(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// The percentiles and the maximum, in microseconds.
    fn summary(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let shares = SHARES.map(|(name, share)| (name, self.at(share)));
        shares.into_iter().chain([("max", self.longest())]).map(|(name, time)| (name, time.as_nanos() as f64 / 1e3))
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count() == 0 {
            return f.write_str("none");
        }
        for (name, micros) in self.summary() {
            let space = if name == SHARES[0].0 { "" } else { " " };
            write!(f, "{space}{name}={micros:.1}us")?;
        }
        Ok(())
    }
}

impl Serialize for Latencies {
    /// Serializes as an object with the count and the percentiles in microseconds.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("count", &self.count())?;
        for (name, micros) in self.summary() {
            map.serialize_entry(&format!("{name}_us"), &micros)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Up to the three digits kept, a quantile equals that of the sorted latencies.
        #[test]
        fn quantiles_are_those_of_the_sorted_latencies(mut nanos in prop::collection::vec(1u64..10_000_000_000, 1..300)) {
            let mut latencies = Latencies::default();
            nanos.iter().for_each(|&nanos| latencies.record(Duration::from_nanos(nanos)));
            nanos.sort_unstable();
            prop_assert_eq!(latencies.count(), nanos.len() as u64);
            for (_, share) in SHARES {
                let place = ((nanos.len() as f64 * share).ceil() as usize).clamp(1, nanos.len()) - 1;
                let (found, right) = (latencies.at(share).as_nanos() as f64, nanos[place] as f64);
                prop_assert!((found - right).abs() <= right / 500.0 + 1.0, "{share}: {found} for {right}");
            }
        }
    }

    #[test]
    fn a_latency_out_of_range_is_recorded_as_the_longest() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.to_string(), "none");
        latencies.record(Duration::from_secs(1 << 40));
        latencies.record(Duration::ZERO);
        assert_eq!(latencies.count(), 2);
        assert!(latencies.longest() >= Duration::from_secs(3600));
    }
}
