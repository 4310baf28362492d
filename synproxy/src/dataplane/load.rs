//! How hard a worker is pressed, and how much of what opens connections is left out for it.
//!
//! A worker that finds a full batch at the WAN turn after turn, or whose rings overflow, has no time for everything. If
//! calls are a good part of what it is given, they are what is left out (`pktio::sieve` says which), but for as many fresh
//! ones as leave it three quarters of its time. Whether all may come back is told by reckoning, not by trying: only when what is left out
//! now, together with what comes in, would be less than the worker could last do.

use pktio::Level;
use std::time::Duration;
use tcpstate::Instant;

/// The time over which pressure is judged, at the least.
const WINDOW: Duration = Duration::from_millis(5);

/// So many pressed windows in a row before fresh calls are left out: a burst the rings can hold is no pressure.
const ALARM: u32 = 4;

/// And so many more before repeated ones are.
const DESPAIR: u32 = 40;

/// So long must the reckoning have been favourable before a level is given up.
const CALM: Duration = Duration::from_millis(200);

/// Calls are a good part of the load from one frame in so many; below that leaving them out would not help.
const GOOD_PART: u64 = 8;

/// Fresh calls pass until this fraction (one in so many) of what a worker can do is taken, whatever by. The rest is for those who came before: with
/// half of it, connections next to the flood were a third slower.
const TAKEN: u64 = 4;

/// What has been counted by the end of a window, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Calls from the WAN that the engine dealt with.
    pub calls: u64,
    /// Frames that were lost for want of room in the rings before the WAN port, or on the way to other workers.
    pub lost: u64,
    /// Fresh and repeated calls that were left out.
    pub shed: [u64; 2],
}

impl Seen {
    fn since(self, earlier: Seen) -> Seen {
        let less = u64::saturating_sub;
        Seen {
            calls: less(self.calls, earlier.calls),
            lost: less(self.lost, earlier.lost),
            shed: [less(self.shed[0], earlier.shed[0]), less(self.shed[1], earlier.shed[1])],
        }
    }
}

/// Judges the pressure on one worker.
#[derive(Debug, Default)]
pub struct Pressure {
    level: Level,
    /// When the present window began; `None` before the first turn.
    begin: Option<Instant>,
    /// Of the present window: turns, those with a full batch from the WAN, and frames of both ports.
    turns: u64,
    full: u64,
    frames: u64,
    /// What had been counted when it began.
    before: Seen,
    /// Pressed windows in a row, since the level last changed.
    pressed: u32,
    /// Frames a second that the worker last did under pressure.
    capacity: u64,
    /// Since when the reckoning has been favourable.
    calm_since: Option<Instant>,
}

impl Pressure {
    /// Takes note of a turn that began at `now`: so many frames from both ports, and whether the WAN had a full batch. True when a
    /// window is over and [`Pressure::judge`] is to be called.
    #[inline]
    pub fn note(&mut self, frames: usize, full: bool, now: Instant) -> bool {
        self.turns += 1;
        self.full += u64::from(full);
        self.frames += frames as u64;
        now.since(*self.begin.get_or_insert(now)) >= WINDOW
    }

    /// Ends the window, with what has been counted by now. Returns the new level if it has changed.
    pub fn judge(&mut self, seen: Seen, now: Instant) -> Option<Level> {
        let passed = self.begin.map_or(WINDOW, |begin| now.since(begin)).as_micros().max(1) as u64;
        let change = seen.since(self.before);
        let (turns, full, frames) = (self.turns, self.full, self.frames);
        (self.begin, self.before) = (Some(now), seen);
        (self.turns, self.full, self.frames) = (0, 0, 0);

        let a_second = |count: u64| count.saturating_mul(1_000_000) / passed;
        let behind = turns > 1 && full * 10 >= turns * 9 || full > 0 && change.lost > 0;
        if behind {
            self.capacity = a_second(frames);
        }
        self.pressed = if behind && change.calls * GOOD_PART >= frames { self.pressed + 1 } else { 0 };
        let raised = match self.level {
            Level::Nothing if self.pressed >= ALARM => Level::Fresh(0),
            Level::Fresh(0) if self.pressed >= DESPAIR => Level::Repeated,
            level => level,
        };
        if raised != self.level {
            return self.change(raised);
        }

        let (left_out, lower) = match self.level {
            Level::Nothing => return None,
            Level::Fresh(_) => (change.shed[0], Level::Nothing),
            Level::Repeated => (change.shed[1], Level::Fresh(0)),
        };
        // A worker that was interrupted has underrated itself; a hundredth more a second lets it find out.
        self.capacity += self.capacity / 16_384;
        let few = left_out * GOOD_PART * 2 < frames || left_out == 0;
        let bearable = a_second(frames + left_out) < self.capacity / 4 * 3;
        if behind || !(few || bearable) {
            self.calm_since = None;
        } else if now.since(*self.calm_since.get_or_insert(now)) >= CALM {
            return self.change(lower);
        }
        let Level::Fresh(share) = self.level else { return None };
        let due = match behind {
            true => share / 2,
            false => share_due(share, left_out, frames, self.capacity * passed / 1_000_000 / TAKEN),
        };
        self.level = Level::Fresh(due);
        (due != share).then_some(self.level)
    }

    fn change(&mut self, level: Level) -> Option<Level> {
        self.level = level;
        self.pressed = 0;
        self.calm_since = None;
        Some(level)
    }
}

/// The share of fresh calls to let through next, in 256ths, if it was `share` in a window in which so many were left out and `frames` came in,
/// where `bearable` frames would have been right.
fn share_due(share: u8, left_out: u64, frames: u64, bearable: u64) -> u8 {
    let fresh = left_out * 256 / (256 - u64::from(share));
    let others = frames.saturating_sub(fresh - left_out);
    let due = bearable.saturating_sub(others) * 256 / fresh.max(1);
    // Less at once, more by and by.
    due.min(255).min(u64::from(share) + (due.saturating_sub(share.into())).div_ceil(8)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that can do so many frames a second, before a ring of 4096.
    struct Bench {
        pressure: Pressure,
        capacity: u64,
        now: u64,
        ring: u64,
        seen: Seen,
        /// Frames that come a second: fresh calls, repeated ones, others.
        load: [u64; 3],
        /// Every level there was, in order, whatever its share.
        levels: Vec<Level>,
    }

    impl Bench {
        fn new(capacity: u64) -> Self {
            let (pressure, seen) = (Pressure::default(), Seen::default());
            Self { pressure, capacity, now: 1_000_000, ring: 0, seen, load: [0; 3], levels: Vec::new() }
        }

        /// Turns of a hundred microseconds.
        fn run(&mut self, load: [u64; 3], time: Duration) {
            self.load = load;
            let end = self.now + time.as_micros() as u64;
            while self.now < end {
                let [mut fresh, mut repeated, others] = self.load.map(|rate| rate / 10_000);
                let (left_out, left_out_again) = match self.pressure.level {
                    Level::Nothing => (0, 0),
                    Level::Fresh(share) => (fresh - fresh * u64::from(share) / 256, 0),
                    Level::Repeated => (fresh, repeated),
                };
                (fresh, repeated) = (fresh - left_out, repeated - left_out_again);
                self.seen.shed = [self.seen.shed[0] + left_out, self.seen.shed[1] + left_out_again];
                let come = fresh + repeated + others;
                let waiting = self.ring + come;
                let done = waiting.min(self.capacity / 10_000);
                self.seen.calls += done * (fresh + repeated) / come.max(1);
                self.seen.lost += (waiting - done).saturating_sub(4096);
                self.ring = (waiting - done).min(4096);
                let now = Instant::from_micros(self.now);
                if self.pressure.note(done as usize, self.ring > 0, now)
                    && let Some(level) = self.pressure.judge(self.seen, now)
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
    fn nothing_is_left_out_while_the_worker_keeps_up() {
        let mut bench = Bench::new(1_000_000);
        for load in [[0, 0, 0], [100_000, 0, 100_000], [800_000, 0, 100_000], [0, 0, 900_000]] {
            bench.run(load, SECOND);
        }
        assert_eq!((bench.levels.as_slice(), bench.seen.shed), (&[][..], [0, 0]));
    }

    #[test]
    fn a_burst_that_the_rings_can_hold_is_no_pressure() {
        let mut bench = Bench::new(1_000_000);
        for _ in 0..100 {
            bench.run([2_000_000, 0, 0], Duration::from_millis(4));
            bench.run([100_000, 0, 100_000], Duration::from_millis(50));
        }
        assert_eq!(bench.levels, []);
    }

    #[test]
    fn too_much_of_what_is_no_call_leaves_no_call_out() {
        let mut bench = Bench::new(1_000_000);
        bench.run([10_000, 10_000, 2_000_000], SECOND);
        assert_eq!(bench.levels, []);
    }

    #[test]
    fn a_flood_is_left_out_within_a_few_windows_for_as_long_as_it_lasts_and_no_longer() {
        let mut bench = Bench::new(1_000_000);
        bench.run([3_000_000, 0, 300_000], Duration::from_millis(50));
        assert_eq!(bench.levels, [Level::Fresh(0)]);
        bench.run([3_000_000, 0, 300_000], 10 * SECOND);
        assert_eq!(bench.levels, [Level::Fresh(0)], "it does not flap");
        bench.run([0, 0, 300_000], Duration::from_millis(250));
        assert_eq!(bench.levels, [Level::Fresh(0), Level::Nothing]);
    }

    #[test]
    fn of_a_flood_so_much_passes_as_leaves_most_of_the_worker_free() {
        let mut bench = Bench::new(1_000_000);
        bench.run([3_000_000, 0, 100_000], 2 * SECOND);
        let before = bench.seen;
        bench.run([3_000_000, 0, 100_000], SECOND);
        let since = bench.seen.since(before);
        assert!((120_000..180_000).contains(&since.calls), "{since:?}");
        assert!(since.lost == 0 && bench.levels == [Level::Fresh(0)], "{:?}", bench.levels);
        // What is no call comes first.
        bench.run([3_000_000, 0, 300_000], SECOND);
        let before = bench.seen;
        bench.run([3_000_000, 0, 300_000], SECOND);
        assert_eq!(bench.seen.since(before).calls, 0);
    }

    #[test]
    fn a_flood_that_has_become_bearable_is_borne() {
        let mut bench = Bench::new(1_000_000);
        bench.run([3_000_000, 0, 100_000], SECOND);
        bench.run([400_000, 0, 100_000], SECOND);
        assert_eq!(bench.levels, [Level::Fresh(0), Level::Nothing]);
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
    fn a_flood_of_repeated_calls_is_left_out_when_nothing_else_helps() {
        let mut bench = Bench::new(1_000_000);
        bench.run([500_000, 3_000_000, 100_000], SECOND);
        assert_eq!(bench.levels, [Level::Fresh(0), Level::Repeated]);
        bench.run([3_000_000, 1000, 100_000], SECOND);
        assert_eq!(bench.levels[2..], [Level::Fresh(0)], "strangers get in again");
        bench.run([0, 0, 100_000], SECOND);
        assert_eq!(bench.levels[3..], [Level::Nothing]);
    }

    #[test]
    fn a_worker_that_underrated_itself_finds_out() {
        let mut bench = Bench::new(300_000);
        bench.run([500_000, 0, 0], SECOND);
        bench.capacity = 2_000_000;
        bench.run([500_000, 0, 0], 100 * SECOND);
        assert_eq!(bench.levels, [Level::Fresh(0), Level::Nothing]);
    }
}
