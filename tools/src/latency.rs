//! Latencies of many answers, and what is said of them.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer, ser::SerializeMap};

/// The longest latency that is told from longer ones: an hour, in nanoseconds.
const LONGEST: u64 = 3_600_000_000_000;

/// The shares of answers that latencies are told for.
const SHARES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// A histogram of latencies, from a nanosecond to an hour with three digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(Histogram::new_with_bounds(1, LONGEST, 3).expect("bounds that make sense"))
    }
}

impl Latencies {
    /// Takes note of one.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record((latency.as_nanos() as u64).max(1));
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share of all answers did not exceed; zero if there were none.
    pub fn at(&self, share: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(share))
    }

    /// The longest.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// Takes those of another histogram in.
    pub fn add(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// What is told, in microseconds.
    fn told(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let shares = SHARES.map(|(name, share)| (name, self.at(share)));
        shares.into_iter().chain([("max", self.longest())]).map(|(name, time)| (name, time.as_nanos() as f64 / 1e3))
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count() == 0 {
            return f.write_str("none");
        }
        for (name, micros) in self.told() {
            let space = if name == SHARES[0].0 { "" } else { " " };
            write!(f, "{space}{name}={micros:.1}us")?;
        }
        Ok(())
    }
}

impl Serialize for Latencies {
    /// As an object of microseconds, with their count.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("count", &self.count())?;
        for (name, micros) in self.told() {
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
        /// Within the three digits that are kept, a share is what sorting says.
        #[test]
        fn shares_are_those_of_the_sorted_latencies(mut nanos in prop::collection::vec(1u64..10_000_000_000, 1..300)) {
            let mut latencies = Latencies::default();
            nanos.iter().for_each(|&nanos| latencies.record(Duration::from_nanos(nanos)));
            nanos.sort_unstable();
            prop_assert_eq!(latencies.count(), nanos.len() as u64);
            for (_, share) in SHARES {
                let place = ((nanos.len() as f64 * share).ceil() as usize).clamp(1, nanos.len()) - 1;
                let (told, right) = (latencies.at(share).as_nanos() as f64, nanos[place] as f64);
                prop_assert!((told - right).abs() <= right / 500.0 + 1.0, "{share}: {told} for {right}");
            }
        }
    }

    #[test]
    fn what_never_ends_is_recorded_as_the_longest() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.to_string(), "none");
        latencies.record(Duration::from_secs(1 << 40));
        latencies.record(Duration::ZERO);
        assert_eq!(latencies.count(), 2);
        assert!(latencies.longest() >= Duration::from_secs(3600));
    }
}
