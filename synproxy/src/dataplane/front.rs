//! When SYNs are answered by an XDP program in front of the programs at tc: above a rate, until it has been calm for a while.

use confparse::Front;
use std::time::{Duration, Instant};

/// How often the rate is looked at.
const EVERY: Duration = Duration::from_millis(100);

/// How long to wait after the program could not be attached: somebody else's may have been there.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Looks in succession that must see more than the rate: one may have seen what had been waiting.
const LOOKS: u32 = 2;

/// Decides when the program is in front.
#[derive(Debug)]
pub struct FrontSwitch {
    config: Front,
    /// When was looked last, and what had been answered then.
    last: (Instant, u64),
    /// Looks in succession above the rate.
    above: u32,
    /// When more than half of the rate came last.
    busy: Instant,
    is_in_front: bool,
    /// Not before, since it could not be attached; that was told.
    not_before: Option<Instant>,
}

impl FrontSwitch {
    /// The program is not in front.
    pub fn new(config: Front, now: Instant) -> Self {
        Self { config, last: (now, 0), above: 0, busy: now, is_in_front: false, not_before: None }
    }

    /// When to look next.
    pub fn due(&self) -> Instant {
        self.last.0 + EVERY
    }

    /// Whether the program is in front.
    pub fn is_in_front(&self) -> bool {
        self.is_in_front
    }

    /// It could not be attached. Returns whether that is news: it is tried again after a while, as often as it takes.
    pub fn fail(&mut self, now: Instant) -> bool {
        self.is_in_front = false;
        self.not_before.replace(now + AGAIN_AFTER).is_none()
    }

    /// Takes in how much was `answered` until `now`. Returns whether the program is to be in front, if that changes.
    pub fn look(&mut self, answered: u64, now: Instant) -> Option<bool> {
        let (then, before) = self.last;
        let passed = now.saturating_duration_since(then);
        if passed < EVERY {
            return None;
        }
        self.last = (now, answered);
        let rate = answered.saturating_sub(before) as f64 / passed.as_secs_f64();
        let limit = f64::from(self.config.rate);
        self.above = if rate > limit { self.above + 1 } else { 0 };
        if rate > limit / 2.0 {
            self.busy = now;
        }
        let in_front = match self.is_in_front {
            false => self.above >= LOOKS && self.not_before.is_none_or(|then| now >= then),
            true => now.saturating_duration_since(self.busy) < self.config.calm,
        };
        (in_front != self.is_in_front).then(|| {
            self.is_in_front = in_front;
            if !in_front {
                self.not_before = None;
            }
            in_front
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks so many times, each a tenth of a second after the one before, in which so many a second are answered; what is decided, with the number of the look.
    fn looks(switch: &mut FrontSwitch, at: &mut (Instant, u64), times: u32, rate: u64) -> Vec<(u32, bool)> {
        let decide = |n| {
            at.0 += EVERY;
            at.1 += rate / 10;
            switch.look(at.1, at.0).map(|in_front| (n, in_front))
        };
        (1..=times).filter_map(decide).collect()
    }

    #[test]
    fn it_comes_above_the_rate_and_goes_when_it_was_calm_below_half_of_it() {
        let begin = Instant::now();
        let mut switch = FrontSwitch::new(Front { rate: 1000, calm: Duration::from_secs(2) }, begin);
        let mut at = (begin, 0);
        assert_eq!(looks(&mut switch, &mut at, 100, 990), []);
        assert_eq!(looks(&mut switch, &mut at, 1, 5000), [], "one look alone");
        assert_eq!(looks(&mut switch, &mut at, 3, 900), []);
        assert_eq!(looks(&mut switch, &mut at, 10, 1010), [(2, true)]);
        // Between half of it and all it stays.
        assert_eq!(looks(&mut switch, &mut at, 100, 510), []);
        assert_eq!(looks(&mut switch, &mut at, 19, 100), []);
        assert_eq!(looks(&mut switch, &mut at, 1, 510), []);
        assert_eq!(looks(&mut switch, &mut at, 100, 490), [(20, false)]);
        assert!(!switch.is_in_front());
        assert_eq!(switch.look(u64::MAX, at.0), None, "too soon");
        // One that cannot be attached is tried again, and told of once.
        assert_eq!(looks(&mut switch, &mut at, 2, 2000), [(2, true)]);
        assert!(switch.fail(at.0));
        assert_eq!(looks(&mut switch, &mut at, 299, 2000), []);
        assert_eq!(looks(&mut switch, &mut at, 1, 2000), [(1, true)]);
        assert!(!switch.fail(at.0) && !switch.is_in_front());
        assert_eq!(looks(&mut switch, &mut at, 300, 2000), [(300, true)]);
        assert_eq!(looks(&mut switch, &mut at, 20, 0), [(20, false)]);
        assert_eq!(looks(&mut switch, &mut at, 2, 2000), [(2, true)]);
        assert!(switch.fail(at.0), "it was there meanwhile");
    }
}
