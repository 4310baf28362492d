//! Decides whether a worker without work sleeps until a frame wakes it, or polls again at once.
//!
//! A sleep costs nothing while it lasts, but its begin and end take about five microseconds of the core; where frames come closer
//! together than that it saves nothing and delays them. So the frame rate decides, with a wide gap between the two thresholds.
//! There is no short spin before a sleep: at low rates it wastes the core and is over when the frame comes.
//!
//! A worker that shares its core with others sleeps at any rate. Polling would take the core from the threads that bring its frames; yielding
//! instead, it would wait behind them for a whole scheduler slice, since only a woken thread preempts.

use confparse::Poll;
use std::time::Duration;
use tcpstate::Instant;

/// The shortest time over which the rate is measured: a few interrupts, so that one batch is not taken for load.
const WINDOW: Duration = Duration::from_millis(2);

/// Frames a second from which a worker polls: one in five microseconds.
const BUSY: u64 = 200_000;

/// Frames a second below which it may sleep again.
const QUIET: u64 = BUSY / 2;

/// Consecutive quiet windows before it sleeps: it polls through the gaps between bursts.
const QUIET_WINDOWS: u32 = 25;

/// Decides between sleeping and polling, from the frames of each iteration.
#[derive(Debug)]
pub struct PollPolicy {
    poll: Poll,
    /// Whether the worker has its core for itself.
    is_alone: bool,
    /// Whether an adaptive worker polls now.
    is_polling: bool,
    /// When the present window began; `None` before the first iteration.
    begin: Option<Instant>,
    /// Frames since then.
    frames: u64,
    /// Consecutive quiet windows.
    quiet: u32,
    /// How often it started to poll.
    wakes: u64,
}

impl PollPolicy {
    /// The policy of a new worker, on a core that it has for itself or shares.
    pub fn new(poll: Poll, is_alone: bool) -> Self {
        Self { poll, is_alone, is_polling: false, begin: None, frames: 0, quiet: 0, wakes: 0 }
    }

    /// From now on it waits like this.
    pub fn set(&mut self, poll: Poll) {
        self.poll = poll;
    }

    /// Records an iteration that began at `now` and brought this many frames.
    #[inline]
    pub fn record(&mut self, frames: usize, now: Instant) {
        self.frames += frames as u64;
        let begin = *self.begin.get_or_insert(now);
        let passed = now.since(begin);
        if passed >= WINDOW {
            self.end_window(passed);
            self.begin = Some(now);
        }
    }

    /// Whether the worker may sleep after an iteration that found nothing to do.
    #[inline]
    pub fn may_sleep(&self) -> bool {
        match self.poll {
            Poll::Adaptive => !self.is_polling || !self.is_alone,
            Poll::Busy => false,
            Poll::Interrupt => true,
        }
    }

    /// Whether a worker that does not sleep yields its core between iterations.
    #[inline]
    pub fn yields(&self) -> bool {
        !self.is_alone
    }

    /// How often the load made the worker poll.
    pub fn wakes(&self) -> u64 {
        self.wakes
    }

    /// Evaluates a window of this length.
    fn end_window(&mut self, passed: Duration) {
        let frames_at = |rate: u64| u128::from(rate) * passed.as_micros() / 1_000_000;
        let frames = u128::from(std::mem::take(&mut self.frames));
        if frames >= frames_at(BUSY) {
            self.wakes += u64::from(!self.is_polling && self.poll == Poll::Adaptive && self.is_alone);
            self.is_polling = true;
        }
        self.quiet = if frames < frames_at(QUIET) { self.quiet + 1 } else { 0 };
        if self.quiet >= QUIET_WINDOWS {
            self.is_polling = false;
            self.quiet = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker between scripted ports: it sleeps when it may, and every sleep ends with the next frame.
    struct Bench {
        policy: PollPolicy,
        now: u64,
        /// Iterations that found nothing and were not followed by a sleep.
        spun: u64,
        slept: u64,
    }

    impl Bench {
        fn new(poll: Poll) -> Self {
            Self { policy: PollPolicy::new(poll, true), now: 1_000_000, spun: 0, slept: 0 }
        }

        /// So many frames a second for so long, evenly; an iteration takes a microsecond and as much again for every four frames.
        fn load(&mut self, rate: u64, time: Duration) {
            let (begin, end) = (self.now, self.now + time.as_micros() as u64);
            let due = |now: u64| (now - begin) * rate / 1_000_000;
            let mut seen = 0;
            while self.now < end {
                let frames = (due(self.now) - seen).min(128);
                seen += frames;
                self.policy.record(frames as usize, Instant::from_micros(self.now));
                self.now += 1 + frames / 4;
                if frames > 0 {
                    continue;
                }
                if self.policy.may_sleep() {
                    // Until the next frame, or as long as a sleep lasts.
                    let next = ((seen + 1) * 1_000_000).div_ceil(rate.max(1)) + begin;
                    self.now = if rate == 0 { self.now + 200_000 } else { next.max(self.now) }.min(end);
                    self.slept += 1;
                } else {
                    self.spun += 1;
                }
            }
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_idle_worker_sleeps() {
        let mut bench = Bench::new(Poll::Adaptive);
        bench.load(0, 10 * SECOND);
        assert_eq!((bench.spun, bench.policy.wakes()), (0, 0));
        assert!(bench.slept <= 51, "{}", bench.slept);
    }

    #[test]
    fn a_ping_pong_finds_a_worker_that_slept_until_the_frame_came() {
        let mut bench = Bench::new(Poll::Adaptive);
        bench.load(500, 2 * SECOND);
        assert_eq!((bench.spun, bench.policy.wakes()), (0, 0), "no iteration is spent waiting");
        assert!(bench.slept >= 990);
    }

    #[test]
    fn a_loaded_worker_never_sleeps_once_it_polls() {
        let mut bench = Bench::new(Poll::Adaptive);
        bench.load(500, SECOND);
        bench.load(1_000_000, 10 * WINDOW);
        assert_eq!(bench.policy.wakes(), 1, "a few windows are enough to tell");
        bench.slept = 0;
        bench.load(1_000_000, SECOND);
        assert_eq!((bench.slept, bench.policy.wakes()), (0, 1));
    }

    #[test]
    fn a_rate_that_swings_around_a_threshold_does_not_switch_the_mode_each_time() {
        for threshold in [BUSY, QUIET] {
            let mut bench = Bench::new(Poll::Adaptive);
            bench.load(2 * BUSY, SECOND);
            for swing in 0..1000 {
                let rate = if swing % 2 == 0 { threshold * 9 / 10 } else { threshold * 11 / 10 };
                bench.load(rate, Duration::from_millis(3 + swing % 17));
            }
            assert_eq!((bench.policy.wakes(), bench.policy.may_sleep()), (1, false), "around {threshold}");
        }
    }

    #[test]
    fn frequent_bursts_keep_it_polling() {
        let mut bench = Bench::new(Poll::Adaptive);
        for _ in 0..100 {
            bench.load(1_000_000, Duration::from_millis(10));
            bench.load(1000, Duration::from_millis(30));
        }
        assert_eq!(bench.policy.wakes(), 1);
    }

    #[test]
    fn a_worker_without_load_sleeps_within_a_tenth_of_a_second() {
        let mut bench = Bench::new(Poll::Adaptive);
        bench.load(1_000_000, SECOND);
        bench.load(0, Duration::from_millis(100));
        assert!(bench.policy.may_sleep());
        bench.spun = 0;
        bench.load(500, SECOND);
        assert_eq!((bench.spun, bench.policy.wakes()), (0, 1));
    }

    #[test]
    fn one_full_batch_is_no_load() {
        let mut bench = Bench::new(Poll::Adaptive);
        bench.load(0, SECOND);
        bench.policy.record(128, Instant::from_micros(bench.now));
        bench.load(0, SECOND);
        assert_eq!((bench.spun, bench.policy.wakes()), (0, 0));
    }

    #[test]
    fn a_worker_that_shares_its_core_sleeps_under_any_load() {
        let mut bench = Bench::new(Poll::Adaptive);
        bench.policy = PollPolicy::new(Poll::Adaptive, false);
        bench.load(1_000_000, SECOND);
        assert_eq!((bench.spun, bench.policy.wakes()), (0, 0));
        assert!(bench.slept > 0 && bench.policy.yields());
    }

    #[test]
    fn a_configured_mode_is_kept_at_any_rate() {
        for rate in [0, 500, 1_000_000] {
            let mut busy = Bench::new(Poll::Busy);
            busy.load(rate, Duration::from_millis(100));
            assert_eq!(busy.slept, 0, "at {rate}");
            let mut interrupt = Bench::new(Poll::Interrupt);
            interrupt.load(rate, Duration::from_millis(100));
            assert_eq!(interrupt.spun, 0, "at {rate}");
        }
    }
}
