//! A schedule: how many units of a load are due, given a rate, a count and an end.

use std::time::Duration;

/// The most units due at once: after a stall a load catches up, but not in one burst.
const BURST: u64 = 256;

/// A schedule. Times count from the start of the load.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Units per second; no limit if absent.
    rate: Option<f64>,
    /// Units in total.
    count: u64,
    /// When it ends.
    until: Duration,
    made: u64,
}

impl Pace {
    /// `rate` units per second (no limit if absent or zero) until `until`, or until `count` have been made.
    pub fn new(rate: Option<f64>, count: Option<u64>, until: Duration) -> Pace {
        Pace { rate: rate.filter(|rate| *rate > 0.0), count: count.unwrap_or(u64::MAX), until, made: 0 }
    }

    /// The number of units due at `now`.
    pub fn due(&self, now: Duration) -> u64 {
        if now >= self.until {
            return 0;
        }
        let scheduled = self.rate.map_or(u64::MAX, |rate| (now.as_secs_f64() * rate) as u64 + 1);
        scheduled.min(self.count).saturating_sub(self.made).min(BURST)
    }

    /// Records that `units` were made.
    pub fn made(&mut self, units: u64) {
        self.made += units;
    }

    /// The number of units made so far.
    pub fn total(&self) -> u64 {
        self.made
    }

    /// When the next unit is due; `None` if there are no more.
    pub fn next(&self) -> Option<Duration> {
        if self.made >= self.count {
            return None;
        }
        let next = self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(self.made as f64 / rate));
        (next < self.until).then_some(next)
    }

    /// Whether the schedule has ended.
    pub fn is_over(&self, now: Duration) -> bool {
        now >= self.until || self.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However irregularly it is polled, a schedule is never ahead of time, and is on time at its end.
        #[test]
        fn a_rate_is_kept_and_a_count_is_never_exceeded(
            rate in 1.0f64..1e6,
            count in prop::option::of(0u64..100_000),
            steps in prop::collection::vec(1u64..20_000, 1..200),
        ) {
            let until = Duration::from_secs(2);
            let mut pace = Pace::new(Some(rate), count, until);
            let mut now = Duration::ZERO;
            for step in steps {
                while pace.due(now) > 0 {
                    let due = pace.due(now);
                    prop_assert!(due <= BURST);
                    pace.made(due);
                }
                let ideal = (now.as_secs_f64() * rate) as u64 + 1;
                if now < until {
                    prop_assert_eq!(pace.total(), ideal.min(count.unwrap_or(u64::MAX)));
                }
                if let Some(next) = pace.next() {
                    // The next unit is due at that time, up to rounding.
                    prop_assert!(next + Duration::from_nanos(2) > now || now >= until);
                    let then = next + Duration::from_nanos(2);
                    prop_assert!(pace.due(then) > 0 || then >= until);
                }
                now += Duration::from_micros(step);
            }
        }

        #[test]
        fn without_a_rate_the_count_and_the_time_are_the_bounds(count in 0u64..10_000) {
            let mut pace = Pace::new(None, Some(count), Duration::from_secs(1));
            while !pace.is_over(Duration::ZERO) {
                pace.made(pace.due(Duration::ZERO));
            }
            prop_assert_eq!(pace.total(), count);
            prop_assert_eq!(Pace::new(None, None, Duration::from_secs(1)).due(Duration::from_secs(1)), 0);
        }
    }
}
