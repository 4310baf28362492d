//! Whether a worker that finds nothing to do sleeps until a frame wakes it, or looks again at once.
//!
//! Sleeping costs nothing while it lasts, but a sleep and its end take some five microseconds of the core; where frames
//! come closer together than that, it saves nothing and delays them. So the rate decides, with a wide gap between the
//! two thresholds. There is no short spin before a sleep: at low rates it burns the core and is over when the frame comes.
//!
//! A worker that shares its core with others sleeps at any rate. Looking again at once it would take the core from those who bring its
//! frames; giving the core away instead, it would stand in line behind them for a scheduler's whole slice, as only one who is woken goes first.

use confparse::Poll;
use std::time::Duration;
use tcpstate::Instant;

/// The time over which a rate is measured, at the least: a few interrupts' worth, so that one batch is no load.
const WINDOW: Duration = Duration::from_millis(2);

/// Frames a second from which a worker does not sleep any more: one in five microseconds.
const BUSY: u64 = 200_000;

/// Frames a second below which it may sleep again.
const QUIET: u64 = BUSY / 2;

/// So many windows in a row must be quiet before it does: between bursts the box stays awake.
const PATIENCE: u32 = 25;

/// Decides between sleeping and polling, from the frames each turn brought.
#[derive(Debug)]
pub struct Pace {
    poll: Poll,
    /// Whether the worker has its core for itself.
    is_alone: bool,
    /// Whether an adaptive worker polls now.
    awake: bool,
    /// When the present window began; `None` before the first turn.
    begin: Option<Instant>,
    /// Frames since then.
    frames: u64,
    /// Quiet windows in a row.
    quiet: u32,
    /// How often it began to poll.
    wakes: u64,
}

impl Pace {
    /// A worker that has seen nothing yet, on a core it has for itself or shares with others.
    pub fn new(poll: Poll, is_alone: bool) -> Self {
        Self { poll, is_alone, awake: false, begin: None, frames: 0, quiet: 0, wakes: 0 }
    }

    /// Takes note of a turn that began at `now` and brought so many frames.
    #[inline]
    pub fn note(&mut self, frames: usize, now: Instant) {
        self.frames += frames as u64;
        let begin = *self.begin.get_or_insert(now);
        let passed = now.since(begin);
        if passed >= WINDOW {
            self.close(passed);
            self.begin = Some(now);
        }
    }

    /// Whether a turn that found nothing to do may be followed by a sleep.
    #[inline]
    pub fn may_sleep(&self) -> bool {
        match self.poll {
            Poll::Adaptive => !self.awake || !self.is_alone,
            Poll::Busy => false,
            Poll::Interrupt => true,
        }
    }

    /// Whether a worker that does not sleep is to give its core away for a moment.
    #[inline]
    pub fn yields(&self) -> bool {
        !self.is_alone
    }

    /// How often the load made the worker poll.
    pub fn wakes(&self) -> u64 {
        self.wakes
    }

    /// Draws the conclusions from a window that lasted so long.
    fn close(&mut self, passed: Duration) {
        let earned = |rate: u64| u128::from(rate) * passed.as_micros() / 1_000_000;
        let frames = u128::from(std::mem::take(&mut self.frames));
        if frames >= earned(BUSY) {
            self.wakes += u64::from(!self.awake && self.poll == Poll::Adaptive && self.is_alone);
            self.awake = true;
        }
        self.quiet = if frames < earned(QUIET) { self.quiet + 1 } else { 0 };
        if self.quiet >= PATIENCE {
            self.awake = false;
            self.quiet = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker between scripted ports: it sleeps when it may, and every sleep ends with the next frame.
    struct Bench {
        pace: Pace,
        now: u64,
        /// Turns that found nothing and were not followed by a sleep.
        burnt: u64,
        slept: u64,
    }

    impl Bench {
        fn new(poll: Poll) -> Self {
            Self { pace: Pace::new(poll, true), now: 1_000_000, burnt: 0, slept: 0 }
        }

        /// So many frames a second for so long, evenly; a turn takes a microsecond and as much again for every four frames.
        fn load(&mut self, rate: u64, time: Duration) {
            let (begin, end) = (self.now, self.now + time.as_micros() as u64);
            let due = |now: u64| (now - begin) * rate / 1_000_000;
            let mut seen = 0;
            while self.now < end {
                let frames = (due(self.now) - seen).min(128);
                seen += frames;
                self.pace.note(frames as usize, Instant::from_micros(self.now));
                self.now += 1 + frames / 4;
                if frames > 0 {
                    continue;
                }
                if self.pace.may_sleep() {
                    // Until the next frame, or as long as a sleep lasts.
                    let next = ((seen + 1) * 1_000_000).div_ceil(rate.max(1)) + begin;
                    self.now = if rate == 0 { self.now + 200_000 } else { next.max(self.now) }.min(end);
                    self.slept += 1;
                } else {
                    self.burnt += 1;
                }
            }
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_idle_worker_sleeps() {
        let mut bench = Bench::new(Poll::Adaptive);
        bench.load(0, 10 * SECOND);
        assert_eq!((bench.burnt, bench.pace.wakes()), (0, 0));
        assert!(bench.slept <= 51, "{}", bench.slept);
    }

    #[test]
    fn a_ping_pong_finds_a_worker_that_slept_until_the_frame_came() {
        let mut bench = Bench::new(Poll::Adaptive);
        bench.load(500, 2 * SECOND);
        assert_eq!((bench.burnt, bench.pace.wakes()), (0, 0), "no turn is spent waiting");
        assert!(bench.slept >= 990);
    }

    #[test]
    fn a_loaded_worker_never_sleeps_once_it_is_awake() {
        let mut bench = Bench::new(Poll::Adaptive);
        bench.load(500, SECOND);
        bench.load(1_000_000, 10 * WINDOW);
        assert_eq!(bench.pace.wakes(), 1, "a few windows are enough to tell");
        bench.slept = 0;
        bench.load(1_000_000, SECOND);
        assert_eq!((bench.slept, bench.pace.wakes()), (0, 1));
    }

    #[test]
    fn a_rate_that_swings_around_a_threshold_does_not_wake_and_put_to_sleep_by_turns() {
        for threshold in [BUSY, QUIET] {
            let mut bench = Bench::new(Poll::Adaptive);
            bench.load(2 * BUSY, SECOND);
            for swing in 0..1000 {
                let rate = if swing % 2 == 0 { threshold * 9 / 10 } else { threshold * 11 / 10 };
                bench.load(rate, Duration::from_millis(3 + swing % 17));
            }
            assert_eq!((bench.pace.wakes(), bench.pace.may_sleep()), (1, false), "around {threshold}");
        }
    }

    #[test]
    fn bursts_that_come_often_keep_it_awake() {
        let mut bench = Bench::new(Poll::Adaptive);
        for _ in 0..100 {
            bench.load(1_000_000, Duration::from_millis(10));
            bench.load(1000, Duration::from_millis(30));
        }
        assert_eq!(bench.pace.wakes(), 1);
    }

    #[test]
    fn a_worker_whose_load_is_gone_sleeps_within_a_tenth_of_a_second() {
        let mut bench = Bench::new(Poll::Adaptive);
        bench.load(1_000_000, SECOND);
        bench.load(0, Duration::from_millis(100));
        assert!(bench.pace.may_sleep());
        bench.burnt = 0;
        bench.load(500, SECOND);
        assert_eq!((bench.burnt, bench.pace.wakes()), (0, 1));
    }

    #[test]
    fn one_full_batch_is_no_load() {
        let mut bench = Bench::new(Poll::Adaptive);
        bench.load(0, SECOND);
        bench.pace.note(128, Instant::from_micros(bench.now));
        bench.load(0, SECOND);
        assert_eq!((bench.burnt, bench.pace.wakes()), (0, 0));
    }

    #[test]
    fn a_worker_that_shares_its_core_sleeps_under_any_load() {
        let mut bench = Bench::new(Poll::Adaptive);
        bench.pace = Pace::new(Poll::Adaptive, false);
        bench.load(1_000_000, SECOND);
        assert_eq!((bench.burnt, bench.pace.wakes()), (0, 0));
        assert!(bench.slept > 0 && bench.pace.yields());
    }

    #[test]
    fn who_is_told_what_to_do_does_it() {
        for rate in [0, 500, 1_000_000] {
            let mut busy = Bench::new(Poll::Busy);
            busy.load(rate, Duration::from_millis(100));
            assert_eq!(busy.slept, 0, "at {rate}");
            let mut interrupt = Bench::new(Poll::Interrupt);
            interrupt.load(rate, Duration::from_millis(100));
            assert_eq!(interrupt.burnt, 0, "at {rate}");
        }
    }
}
