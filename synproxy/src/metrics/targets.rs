//! What is known of each target: its mode, what was counted, and what is usual of it.

use tcpstate::config::Mode;
use tcpstate::{Counts, Instant, TargetCounts, TargetKey};

/// What is known of a target now.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetStatus {
    /// Which target.
    pub target: TargetKey,
    /// The mode of the configuration.
    pub wanted: Mode,
    /// The mode it is in.
    pub present: Mode,
    /// Since when.
    pub since: Instant,
    /// How often it has come to another mode.
    pub switches: u64,
    /// What all workers have counted.
    pub counts: TargetCounts,
    /// Everything that all workers have counted.
    pub all: Counts,
    /// Cookies that may still be acknowledged.
    pub in_flight: u64,
    /// SYNs a second, lately.
    pub syn_rate: u64,
    /// What was usual while it was not attacked.
    pub baseline: Baseline,
}

/// How often a value was how large, second by second, in steps of a quarter: what is usual of it. After two days of seconds the older ones count half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    counts: [u32; Levels::STEPS],
    seconds: u32,
    peak: u64,
}

impl Default for Levels {
    fn default() -> Self {
        Self { counts: [0; Self::STEPS], seconds: 0, peak: 0 }
    }
}

impl Levels {
    /// Four for each power of two up to 2^40.
    const STEPS: usize = 4 * 40;
    /// Seconds after which the older ones count half.
    const LONG: u32 = 2 * 86_400;

    fn step(value: u64) -> usize {
        if value < 4 {
            return value as usize;
        }
        let power = value.ilog2();
        let quarter = (value >> (power - 2) & 3) as usize;
        (4 * (power as usize - 1) + quarter).min(Self::STEPS - 1)
    }

    /// The largest value of a step.
    fn most(step: usize) -> u64 {
        if step < 4 {
            return step as u64;
        }
        let (power, quarter) = (step as u32 / 4 + 1, step as u64 % 4);
        ((5 + quarter) << (power - 2)) - 1
    }

    /// Adds a second's value.
    pub fn add(&mut self, value: u64) {
        if self.seconds >= Self::LONG {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.seconds = self.counts.iter().sum();
            self.peak = self.percentile(1000);
        }
        self.counts[Self::step(value)] += 1;
        self.seconds += 1;
        self.peak = self.peak.max(value);
    }

    /// A value that so many thousandths of all seconds did not exceed, at most a quarter too large; zero if there was none.
    pub fn percentile(&self, thousandths: u32) -> u64 {
        let wanted = (u64::from(self.seconds) * u64::from(thousandths)).div_ceil(1000);
        let mut below = 0;
        let found = self.counts.iter().position(|&count| {
            below += u64::from(count);
            below >= wanted && below > 0
        });
        found.map_or(0, |step| Self::most(step).min(self.peak))
    }

    /// The largest value of all.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// How many seconds there were.
    pub fn seconds(&self) -> u32 {
        self.seconds
    }
}

/// What was usual of a target while it was not attacked: the greatest value of each second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baseline {
    /// Half-open connections; where SYNs are answered, those that a client had yet to prove itself for.
    pub half_open: Levels,
    /// SYNs a second.
    pub syn_rate: Levels,
}

/// Thresholds that a baseline suggests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suggestion {
    /// For [`enter_half_open`](tcpstate::config::Auto::enter_half_open).
    pub enter_half_open: u64,
    /// For [`leave_half_open`](tcpstate::config::Auto::leave_half_open).
    pub leave_half_open: u64,
    /// For [`enter_syn_rate`](tcpstate::config::Auto::enter_syn_rate).
    pub enter_syn_rate: u64,
}

impl Baseline {
    /// The thresholds: twice what all but one second in a thousand had half-open to enter, a quarter more than that to leave, and four times the rate that all
    /// but one second in a thousand had. None below what any server can bear.
    pub fn suggest(&self) -> Suggestion {
        let (usual, rate) = (self.half_open.percentile(999), self.syn_rate.percentile(999));
        Suggestion {
            enter_half_open: (2 * usual).max(32),
            leave_half_open: (usual + usual.div_ceil(4)).max(16),
            enter_syn_rate: (4 * rate).max(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_tell_what_is_usual_to_a_quarter() {
        for value in (0..5000).chain([1 << 20, 1 << 39]) {
            let most = Levels::most(Levels::step(value));
            assert!((value..=value + value / 4).contains(&most), "{value}: {most}");
        }
        let mut levels = Levels::default();
        assert_eq!((levels.percentile(999), levels.peak()), (0, 0));
        (0..1000).for_each(|n| levels.add(if n < 990 { 10 } else { 1000 }));
        assert_eq!([500, 990, 999, 1000].map(|part| levels.percentile(part)), [11, 11, 1000, 1000]);
        for _ in 0..3 * Levels::LONG {
            levels.add(3);
        }
        assert!(levels.seconds() <= Levels::LONG && levels.percentile(999) == 3, "what was is forgotten by and by");
        assert_eq!(Baseline { half_open: levels.clone(), syn_rate: levels }.suggest().enter_half_open, 32);
    }
}
