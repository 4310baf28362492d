//! Measures how overloaded a worker is, and decides how many SYNs it drops for that.
//!
//! A worker whose WAN batches are full iteration after iteration, or whose rings overflow, cannot process everything. If SYNs are a large
//! part of its load it drops SYNs (`pktio::shed` selects them), except as many first-time ones as leave it three quarters of its
//! time. It ends shedding by calculation, not by trial: when what is shed now, together with what comes in, would be less
//! than the worker was last able to process.

use pktio::ShedLevel as Level;
use std::time::Duration;
use tcpstate::Instant;

/// The shortest time over which the load is evaluated.
const WINDOW: Duration = Duration::from_millis(5);

/// Consecutive overloaded windows before first-time SYNs are shed: a burst that the rings can hold is no overload.
const WINDOWS_TO_FRESH: u32 = 4;

/// Consecutive overloaded windows at that level before retransmitted SYNs are shed too.
const WINDOWS_TO_REPEATED: u32 = 40;

/// How long the calculation must have been favourable before a level ends.
const CALM: Duration = Duration::from_millis(200);

/// SYNs are a large part of the load from one frame in this many on; below that, shedding them would not help.
const LARGE_PART: u64 = 8;

/// First-time SYNs pass until this fraction (one in this many) of the worker's capacity is used, by whatever frames. The rest is for
/// established connections: with half of the capacity, connections beside the flood were a third slower.
const USABLE: u64 = 4;

/// What has been counted since the start, by the end of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadSample {
    /// SYNs from the WAN that the engine processed.
    pub syns: u64,
    /// Frames that were lost because the rings of the WAN port or the queues to other workers were full.
    pub lost: u64,
    /// First-time and retransmitted SYNs that were shed.
    pub shed: [u64; 2],
}

impl LoadSample {
    fn since(self, earlier: LoadSample) -> LoadSample {
        let less = u64::saturating_sub;
        LoadSample {
            syns: less(self.syns, earlier.syns),
            lost: less(self.lost, earlier.lost),
            shed: [less(self.shed[0], earlier.shed[0]), less(self.shed[1], earlier.shed[1])],
        }
    }
}

/// The load of one worker, and the level of shedding it calls for.
#[derive(Debug, Default)]
pub struct LoadMonitor {
    level: Level,
    /// When the present window began; `None` before the first iteration.
    begin: Option<Instant>,
    /// Iterations in the present window.
    iterations: u64,
    /// Those with a full batch from the WAN.
    full: u64,
    /// Frames of both ports in the present window.
    frames: u64,
    /// What had been counted when it began.
    before: LoadSample,
    /// Consecutive overloaded windows since the level last changed.
    overloaded: u32,
    /// Frames a second that the worker last processed under overload.
    capacity: u64,
    /// Since when the calculation has been favourable.
    calm_since: Option<Instant>,
}

impl LoadMonitor {
    /// Records an iteration that began at `now`: frames of both ports, and whether the WAN had a full batch. True when a window is over and
    /// [`LoadMonitor::evaluate`] is to be called.
    #[inline]
    pub fn record(&mut self, frames: usize, full: bool, now: Instant) -> bool {
        self.iterations += 1;
        self.full += u64::from(full);
        self.frames += frames as u64;
        now.since(*self.begin.get_or_insert(now)) >= WINDOW
    }

    /// Ends the window, with what has been counted by now. Returns the new level if it has changed.
    pub fn evaluate(&mut self, sample: LoadSample, now: Instant) -> Option<Level> {
        let passed = self.begin.map_or(WINDOW, |begin| now.since(begin)).as_micros().max(1) as u64;
        let change = sample.since(self.before);
        let (iterations, full, frames) = (self.iterations, self.full, self.frames);
        (self.begin, self.before) = (Some(now), sample);
        (self.iterations, self.full, self.frames) = (0, 0, 0);

        let a_second = |count: u64| count.saturating_mul(1_000_000) / passed;
        let behind = iterations > 1 && full * 10 >= iterations * 9 || full > 0 && change.lost > 0;
        if behind {
            self.capacity = a_second(frames);
        }
        self.overloaded = if behind && change.syns * LARGE_PART >= frames { self.overloaded + 1 } else { 0 };
        let raised = match self.level {
            Level::Off if self.overloaded >= WINDOWS_TO_FRESH => Level::Fresh(0),
            Level::Fresh(0) if self.overloaded >= WINDOWS_TO_REPEATED => Level::Repeated,
            level => level,
        };
        if raised != self.level {
            return self.change(raised);
        }

        let (shed, lower) = match self.level {
            Level::Off => return None,
            Level::Fresh(_) => (change.shed[0], Level::Off),
            Level::Repeated => (change.shed[1], Level::Fresh(0)),
        };
        // A worker that was interrupted has measured too little; a hundredth more a second lets it find out.
        self.capacity += self.capacity / 16_384;
        let few = shed * LARGE_PART * 2 < frames || shed == 0;
        let bearable = a_second(frames + shed) < self.capacity / 4 * 3;
        if behind || !(few || bearable) {
            self.calm_since = None;
        } else if now.since(*self.calm_since.get_or_insert(now)) >= CALM {
            return self.change(lower);
        }
        let Level::Fresh(share) = self.level else { return None };
        let next = match behind {
            true => share / 2,
            false => next_share(share, shed, frames, self.capacity * passed / 1_000_000 / USABLE),
        };
        self.level = Level::Fresh(next);
        (next != share).then_some(self.level)
    }

    fn change(&mut self, level: Level) -> Option<Level> {
        self.level = level;
        self.overloaded = 0;
        self.calm_since = None;
        Some(level)
    }
}

/// The share of first-time SYNs to let through next, in 256ths, if it was `share` in a window in which `shed` SYNs were dropped and
/// `frames` came in, where `bearable` frames would have been right.
fn next_share(share: u8, shed: u64, frames: u64, bearable: u64) -> u8 {
    let fresh = shed * 256 / (256 - u64::from(share));
    let others = frames.saturating_sub(fresh - shed);
    let right = bearable.saturating_sub(others) * 256 / fresh.max(1);
    // It falls at once and rises gradually.
    right.min(255).min(u64::from(share) + (right.saturating_sub(share.into())).div_ceil(8)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that can do so many frames a second, before a ring of 4096.
    struct Bench {
        monitor: LoadMonitor,
        capacity: u64,
        now: u64,
        ring: u64,
        sample: LoadSample,
        /// Frames that arriving a second: first-time SYNs, retransmitted ones, other frames.
        load: [u64; 3],
        /// Every level there was, in order, whatever its share.
        levels: Vec<Level>,
    }

    impl Bench {
        fn new(capacity: u64) -> Self {
            let (monitor, sample) = (LoadMonitor::default(), LoadSample::default());
            Self { monitor, capacity, now: 1_000_000, ring: 0, sample, load: [0; 3], levels: Vec::new() }
        }

        /// Iterations of a hundred microseconds.
        fn run(&mut self, load: [u64; 3], time: Duration) {
            self.load = load;
            let end = self.now + time.as_micros() as u64;
            while self.now < end {
                let [mut fresh, mut repeated, others] = self.load.map(|rate| rate / 10_000);
                let (shed_fresh, shed_repeated) = match self.monitor.level {
                    Level::Off => (0, 0),
                    Level::Fresh(share) => (fresh - fresh * u64::from(share) / 256, 0),
                    Level::Repeated => (fresh, repeated),
                };
                (fresh, repeated) = (fresh - shed_fresh, repeated - shed_repeated);
                self.sample.shed = [self.sample.shed[0] + shed_fresh, self.sample.shed[1] + shed_repeated];
                let arriving = fresh + repeated + others;
                let waiting = self.ring + arriving;
                let done = waiting.min(self.capacity / 10_000);
                self.sample.syns += done * (fresh + repeated) / arriving.max(1);
                self.sample.lost += (waiting - done).saturating_sub(4096);
                self.ring = (waiting - done).min(4096);
                let now = Instant::from_micros(self.now);
                if self.monitor.record(done as usize, self.ring > 0, now)
                    && let Some(level) = self.monitor.evaluate(self.sample, now)
                {
                    let level = if let Level::Fresh(_) = level { Level::Fresh(0) } else { level };
                    self.levels.push(level);
                    self.levels.dedup();
                }
                self.now += 100;
            }
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn nothing_is_shed_while_the_worker_keeps_up() {
        let mut bench = Bench::new(1_000_000);
        for load in [[0, 0, 0], [100_000, 0, 100_000], [800_000, 0, 100_000], [0, 0, 900_000]] {
            bench.run(load, SECOND);
        }
        assert_eq!((bench.levels.as_slice(), bench.sample.shed), (&[][..], [0, 0]));
    }

    #[test]
    fn a_burst_that_the_rings_can_hold_is_no_overload() {
        let mut bench = Bench::new(1_000_000);
        for _ in 0..100 {
            bench.run([2_000_000, 0, 0], Duration::from_millis(4));
            bench.run([100_000, 0, 100_000], Duration::from_millis(50));
        }
        assert_eq!(bench.levels, []);
    }

    #[test]
    fn too_many_frames_that_are_no_syns_shed_no_syns() {
        let mut bench = Bench::new(1_000_000);
        bench.run([10_000, 10_000, 2_000_000], SECOND);
        assert_eq!(bench.levels, []);
    }

    #[test]
    fn a_flood_is_shed_within_a_few_windows_for_as_long_as_it_lasts_and_no_longer() {
        let mut bench = Bench::new(1_000_000);
        bench.run([3_000_000, 0, 300_000], Duration::from_millis(50));
        assert_eq!(bench.levels, [Level::Fresh(0)]);
        bench.run([3_000_000, 0, 300_000], 10 * SECOND);
        assert_eq!(bench.levels, [Level::Fresh(0)], "it does not flap");
        bench.run([0, 0, 300_000], Duration::from_millis(250));
        assert_eq!(bench.levels, [Level::Fresh(0), Level::Off]);
    }

    #[test]
    fn as_much_of_a_flood_passes_as_leaves_most_of_the_worker_free() {
        let mut bench = Bench::new(1_000_000);
        bench.run([3_000_000, 0, 100_000], 2 * SECOND);
        let before = bench.sample;
        bench.run([3_000_000, 0, 100_000], SECOND);
        let since = bench.sample.since(before);
        assert!((120_000..180_000).contains(&since.syns), "{since:?}");
        assert!(since.lost == 0 && bench.levels == [Level::Fresh(0)], "{:?}", bench.levels);
        // Other frames arriving first.
        bench.run([3_000_000, 0, 300_000], SECOND);
        let before = bench.sample;
        bench.run([3_000_000, 0, 300_000], SECOND);
        assert_eq!(bench.sample.since(before).syns, 0);
    }

    #[test]
    fn a_flood_that_has_become_bearable_is_no_longer_shed() {
        let mut bench = Bench::new(1_000_000);
        bench.run([3_000_000, 0, 100_000], SECOND);
        bench.run([400_000, 0, 100_000], SECOND);
        assert_eq!(bench.levels, [Level::Fresh(0), Level::Off]);
    }

    #[test]
    fn a_flood_around_the_limit_does_not_flap() {
        let mut bench = Bench::new(1_000_000);
        for swing in 0..60 {
            let fresh = if swing % 2 == 0 { 850_000 } else { 1_000_000 };
            bench.run([fresh, 0, 100_000], Duration::from_millis(20 + swing % 7 * 50));
        }
        assert_eq!(bench.levels, [Level::Fresh(0)]);
    }

    #[test]
    fn a_flood_of_retransmitted_syns_is_shed_when_nothing_else_helps() {
        let mut bench = Bench::new(1_000_000);
        bench.run([500_000, 3_000_000, 100_000], SECOND);
        assert_eq!(bench.levels, [Level::Fresh(0), Level::Repeated]);
        bench.run([3_000_000, 1000, 100_000], SECOND);
        assert_eq!(bench.levels[2..], [Level::Fresh(0)], "first-time SYNs pass again");
        bench.run([0, 0, 100_000], SECOND);
        assert_eq!(bench.levels[3..], [Level::Off]);
    }

    #[test]
    fn a_worker_that_measured_too_little_capacity_finds_out() {
        let mut bench = Bench::new(300_000);
        bench.run([500_000, 0, 0], SECOND);
        bench.capacity = 2_000_000;
        bench.run([500_000, 0, 0], 100 * SECOND);
        assert_eq!(bench.levels, [Level::Fresh(0), Level::Off]);
    }
}
