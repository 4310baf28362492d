//! How much of a load is due by now: so many a second, so many in all, for so long.

use std::time::Duration;

/// The most that falls due at once after a pause, in units of the load: a stall is caught up with, but not in one burst.
const BURST: u64 = 256;

/// A schedule. Time is counted from the load's beginning.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Units a second; without, as many as will go.
    rate: Option<f64>,
    /// Units in all.
    count: u64,
    /// When it ends.
    until: Duration,
    made: u64,
}

impl Pace {
    /// `rate` units a second (without, as many as will go) until `until`, or until there have been `count` of them.
    pub fn new(rate: Option<f64>, count: Option<u64>, until: Duration) -> Pace {
        Pace { rate: rate.filter(|rate| *rate > 0.0), count: count.unwrap_or(u64::MAX), until, made: 0 }
    }

    /// How many units may be made at `now`.
    pub fn due(&self, now: Duration) -> u64 {
        if now >= self.until {
            return 0;
        }
        let scheduled = self.rate.map_or(u64::MAX, |rate| (now.as_secs_f64() * rate) as u64 + 1);
        scheduled.min(self.count).saturating_sub(self.made).min(BURST)
    }

    /// So many were made.
    pub fn made(&mut self, units: u64) {
        self.made += units;
    }

    /// How many were made so far.
    pub fn total(&self) -> u64 {
        self.made
    }

    /// When the next unit falls due; `None` once there are no more.
    pub fn next(&self) -> Option<Duration> {
        if self.made >= self.count {
            return None;
        }
        let next = self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(self.made as f64 / rate));
        (next < self.until).then_some(next)
    }

    /// Whether there is nothing more to make.
    pub fn is_over(&self, now: Duration) -> bool {
        now >= self.until || self.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However irregularly it is asked, a schedule is kept: never ahead of time, and on time at its end.
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
                    // Not due yet, but then it is, give or take what a fraction is rounded by.
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
