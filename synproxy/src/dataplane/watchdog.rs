//! Tells the service manager that no worker is stuck (`WatchdogSec=` in systemd), as long as that is true; silence makes it restart the box.
//!
//! A worker is stuck when an iteration does not end, or when frames wait at one of its ports and it takes and sends none. A worker that has nothing
//! to do is alive, and so is one that only answers and drops. That a main loop turns says nothing: it turns as well while frames lie.

use super::pulse::{Pulse, Reading};
use crate::process::exit::Failure;
use crate::process::service_manager;
use crossbeam::utils::CachePadded;
use pktio::{Pair, PortWatch};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tracing::{error, warn};

/// How long a worker may do nothing about what there is to do.
const STUCK_AFTER: Duration = Duration::from_millis(50);

/// How often the workers are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Beats in the time after which the service manager loses patience.
const BEATS: u32 = 4;

/// What a stuck worker does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stuck {
    /// An iteration does not end.
    Turning,
    /// Frames wait, and none is taken or sent.
    Waiting,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stuck::Turning => "has not ended an iteration",
            Stuck::Waiting => "has left frames waiting",
        })
    }
}

/// What was seen of a worker.
#[derive(Clone, Copy, Debug)]
struct Seen {
    reading: Reading,
    /// When its turns were seen to grow, or it slept.
    turned: Instant,
    /// When it was seen to move a frame, or nothing waited.
    moved: Instant,
}

impl Seen {
    fn new(now: Instant) -> Self {
        Self { reading: Reading::default(), turned: now, moved: now }
    }

    /// Looks again: at what the worker says, and at whether frames wait for it.
    fn look(&mut self, reading: Reading, waits: bool, now: Instant) -> Option<Stuck> {
        if reading.turns != self.reading.turns || reading.is_asleep() {
            self.turned = now;
        }
        if reading.moved != self.reading.moved || !waits {
            self.moved = now;
        }
        self.reading = reading;
        let since = |then: Instant| now.saturating_duration_since(then) >= STUCK_AFTER;
        if since(self.turned) {
            Some(Stuck::Turning)
        } else if since(self.moved) {
            Some(Stuck::Waiting)
        } else {
            None
        }
    }
}

/// A worker that is watched.
struct Watched {
    pulse: Arc<CachePadded<Pulse>>,
    /// Its ports that can be asked by somebody else whether frames wait.
    ports: Vec<PortWatch>,
    seen: Seen,
    stuck: Option<(Stuck, Instant)>,
}

impl Watched {
    fn look(&mut self, number: usize, now: Instant) {
        let waits = self.ports.iter().any(PortWatch::is_readable);
        let stuck = self.seen.look(self.pulse.read(), waits, now);
        match (self.stuck, stuck) {
            (None, Some(why)) => {
                error!("worker {number} is stuck: it {why} for {} ms", STUCK_AFTER.as_millis());
                self.stuck = Some((why, now));
            }
            (Some((_, since)), None) => {
                warn!("worker {number} goes on after {:.1} s", (now - since + STUCK_AFTER).as_secs_f64());
                self.stuck = None;
            }
            _ => {}
        }
    }
}

/// The workers of a box, before they are watched.
#[derive(Default)]
pub struct Watchdog {
    watched: Vec<Watched>,
}

impl Watchdog {
    /// Watches one more worker, which serves these ports; what it has to say of itself.
    pub fn add(&mut self, pair: &Pair) -> Arc<CachePadded<Pulse>> {
        let pulse = Arc::new(CachePadded::new(Pulse::default()));
        let ports = [&pair.lan, &pair.wan].into_iter().filter_map(|port| PortWatch::new(&**port)).collect();
        self.watched.push(Watched { pulse: pulse.clone(), ports, seen: Seen::new(Instant::now()), stuck: None });
        pulse
    }

    /// Beats from now on, in a thread of its own, until `stop` is set; no thread if the service manager wants no beats.
    ///
    /// # Errors
    /// If there can be no such thread.
    pub fn start(self, stop: Arc<AtomicBool>) -> Result<Option<JoinHandle<()>>, Failure> {
        let Some(patience) = service_manager::watchdog() else { return Ok(None) };
        let watch = move || self.watch(patience / BEATS, &stop);
        thread::Builder::new().name("watchdog".to_owned()).spawn(watch).map(Some).map_err(Failure::Spawn)
    }

    fn watch(mut self, beat_every: Duration, stop: &AtomicBool) {
        let mut beat: Option<Instant> = None;
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            for (number, worker) in self.watched.iter_mut().enumerate() {
                worker.look(number, now);
            }
            let is_sound = self.watched.iter().all(|worker| worker.stuck.is_none());
            if is_sound && beat.is_none_or(|beat| now - beat >= beat_every) {
                service_manager::beat();
                beat = Some(now);
            }
            thread::sleep(LOOK_EVERY.min(beat_every));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a worker that says each of these, a look every 10 ms: its turns, what it moved, and whether frames wait.
    fn looks(said: impl IntoIterator<Item = (u64, u64, bool)>) -> Vec<Option<Stuck>> {
        let begin = Instant::now();
        let mut seen = Seen::new(begin);
        let at = |n: usize| begin + Duration::from_millis(10) * n as u32;
        said.into_iter()
            .enumerate()
            .map(|(n, (turns, moved, waits))| seen.look(Reading { turns, moved }, waits, at(n)))
            .collect()
    }

    fn is_never_stuck(said: impl IntoIterator<Item = (u64, u64, bool)>) -> bool {
        looks(said).iter().all(Option::is_none)
    }

    #[test]
    fn idle_asleep_polling_and_dropping_workers_are_alive() {
        assert!(is_never_stuck((0..100).map(|_| (7, 3, false))), "it sleeps");
        assert!(is_never_stuck((0..100).map(|n| (2 * n, 3, false))), "it polls");
        assert!(is_never_stuck((0..100).map(|n| (2 * n, n, true))), "it takes frames, and sends none");
        assert!(is_never_stuck((0..100).map(|n| (7, 3, n % 4 == 0))), "it was woken in between");
    }

    #[test]
    fn an_iteration_that_does_not_end_is_stuck_and_is_over_with_the_next() {
        let said = (0..10).map(|n| (if n < 8 { 2 } else { 4 }, 0, false));
        let looks = looks(said);
        assert_eq!(looks[5], Some(Stuck::Turning));
        assert_eq!((looks[4], looks[8]), (None, None));
    }

    #[test]
    fn frames_that_lie_are_a_stuck_worker_even_if_it_turns_or_sleeps() {
        for turns in [|n: u64| 2 * n, |_| 7] {
            let looks = looks((0..20).map(|n| (turns(n), u64::from(n >= 15), n >= 5)));
            assert_eq!(looks[10], Some(Stuck::Waiting));
            assert_eq!((looks[8], looks[15]), (None, None));
        }
    }
}
