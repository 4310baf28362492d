//! Tells the service manager that no worker is stuck (`WatchdogSec=` in systemd), as long as that is true; silence makes it restart the box. The same
//! beat goes to a watchdog device of the kernel, and switches a bypass around the box.
//!
//! A worker is stuck when an iteration does not end, when frames wait at one of its ports and it takes and sends none, or when frames wait in the
//! transmit ring of a port that has its link, and none leaves. A worker that has nothing to do is alive, and so is one that only answers and drops.
//! That a main loop turns says nothing: it turns as well while frames lie.

use super::pulse::{Pulse, Reading};
use crate::metrics::snapshot::Board;
use crate::process::bypass_hook::{Bypass, BypassHook};
use crate::process::exit::Failure;
use crate::process::link_monitor::{Condition, LinkReport};
use crate::process::service_manager;
use crate::process::watchdog_device::{BEAT_EVERY, WatchdogDevice};
use crossbeam::utils::CachePadded;
use pktio::{Pair, PortWatch};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tcpstate::{PerSide, Side};
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
    /// Frames wait in a transmit ring, and none leaves.
    Sending,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stuck::Turning => "has not ended an iteration",
            Stuck::Waiting => "has left frames waiting",
            Stuck::Sending => "has frames to send of which none leaves",
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
    /// Of each port, when a frame was seen to leave, or nothing waited, or it had no link.
    sent: PerSide<Instant>,
}

impl Seen {
    fn new(now: Instant) -> Self {
        Self { reading: Reading::default(), turned: now, moved: now, sent: PerSide::new(now, now) }
    }

    /// Looks again: at what the worker says, at whether frames wait for it, and at which ports have their link.
    fn look(&mut self, reading: Reading, waits: bool, has_link: PerSide<bool>, now: Instant) -> Option<Stuck> {
        if reading.turns != self.reading.turns || reading.is_asleep() {
            self.turned = now;
        }
        if reading.moved != self.reading.moved || !waits {
            self.moved = now;
        }
        for side in Side::BOTH {
            let (now_sending, before) = (reading.sending[side], self.reading.sending[side]);
            // Without a link nothing leaves, and nobody can help it.
            if now_sending.is_none() || now_sending != before || !has_link[side] {
                self.sent[side] = now;
            }
        }
        self.reading = reading;
        let since = |then: Instant| now.saturating_duration_since(then) >= STUCK_AFTER;
        if since(self.turned) {
            Some(Stuck::Turning)
        } else if since(self.moved) {
            Some(Stuck::Waiting)
        } else if Side::BOTH.into_iter().any(|side| since(self.sent[side])) {
            Some(Stuck::Sending)
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
    fn look(&mut self, number: usize, has_link: PerSide<bool>, now: Instant) {
        let waits = self.ports.iter().any(PortWatch::is_readable);
        let stuck = self.seen.look(self.pulse.read(), waits, has_link, now);
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
    outputs: Outputs,
}

/// Who else is told whether a worker is stuck.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Starts the machine again.
    pub device: Option<WatchdogDevice>,
    /// Lets frames around the box.
    pub bypass: Option<BypassHook>,
}

impl Watchdog {
    /// Watches one more worker, which serves these ports; what it has to say of itself.
    pub fn add(&mut self, pair: &Pair) -> Arc<CachePadded<Pulse>> {
        let pulse = Arc::new(CachePadded::new(Pulse::default()));
        let ports = [&pair.lan, &pair.wan].into_iter().filter_map(|port| PortWatch::new(&**port)).collect();
        self.watched.push(Watched { pulse: pulse.clone(), ports, seen: Seen::new(Instant::now()), stuck: None });
        pulse
    }

    /// Tells these as well.
    pub fn tell(&mut self, outputs: Outputs) {
        self.outputs = outputs;
    }

    /// Beats from now on, in a thread of its own, until `stop` is set; no thread if nobody wants beats. `board` tells of the links; `failed` says whether
    /// the end is a failure.
    ///
    /// # Errors
    /// If there can be no such thread.
    pub fn start(
        self,
        board: Arc<Board>,
        stop: Arc<AtomicBool>,
        failed: Arc<AtomicBool>,
    ) -> Result<Option<JoinHandle<()>>, Failure> {
        let manager = service_manager::watchdog().map(|patience| patience / BEATS);
        let device = self.outputs.device.is_some().then_some(BEAT_EVERY);
        let Some(beat_every) = manager.into_iter().chain(device).min().or_else(|| {
            // A bypass is told of changes alone.
            self.outputs.bypass.is_some().then_some(BEAT_EVERY)
        }) else {
            return Ok(None);
        };
        let watch = move || self.watch(beat_every, &board, &stop, &failed);
        thread::Builder::new().name("watchdog".to_owned()).spawn(watch).map(Some).map_err(Failure::Spawn)
    }

    fn watch(mut self, beat_every: Duration, board: &Board, stop: &AtomicBool, failed: &AtomicBool) {
        let mut beat: Option<Instant> = None;
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            let [lan, wan] =
                board.links().map(|link| link.is_none_or(|report: LinkReport| report.condition == Condition::Up));
            for (number, worker) in self.watched.iter_mut().enumerate() {
                worker.look(number, PerSide::new(lan, wan), now);
            }
            let is_sound = self.watched.iter().all(|worker| worker.stuck.is_none());
            if let Some(bypass) = &mut self.outputs.bypass {
                bypass.tell(if is_sound { Bypass::Close } else { Bypass::Open });
            }
            if is_sound && beat.is_none_or(|beat| now - beat >= beat_every) {
                service_manager::beat();
                if let Some(device) = &mut self.outputs.device {
                    device.beat();
                }
                beat = Some(now);
            }
            thread::park_timeout(LOOK_EVERY.min(beat_every));
        }
        if let Some(bypass) = &mut self.outputs.bypass {
            bypass.tell(Bypass::Open);
        }
        // After a failure the device stays armed: if nobody starts the box again, the machine does.
        if !failed.load(Ordering::Relaxed)
            && let Some(device) = self.outputs.device
        {
            device.disarm();
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
            .map(|(n, (turns, moved, waits))| {
                seen.look(Reading { turns, moved, ..Reading::default() }, waits, PerSide::new(true, true), at(n))
            })
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

    /// What is said of a worker that turns, a look every 10 ms, by what its WAN port has to send and whether it has its link.
    fn sends(said: impl IntoIterator<Item = (Option<u64>, bool)>) -> Vec<Option<Stuck>> {
        let begin = Instant::now();
        let mut seen = Seen::new(begin);
        let at = |n: usize| begin + Duration::from_millis(10) * n as u32;
        said.into_iter()
            .enumerate()
            .map(|(n, (sending, has_link))| {
                let sending = PerSide::new(None, sending);
                let reading = Reading { turns: 2 * n as u64, moved: n as u64, sending };
                seen.look(reading, true, PerSide::new(true, has_link), at(n))
            })
            .collect()
    }

    #[test]
    fn a_transmit_ring_that_never_empties_is_a_stuck_worker_unless_its_link_is_lost() {
        let looks = sends((0..20).map(|n| (if n < 5 { None } else { Some(7) }, true)));
        assert_eq!((looks[9], looks[11]), (None, Some(Stuck::Sending)));
        assert!(sends((0..20).map(|n| (Some(n), true))).iter().all(Option::is_none), "it is full, and frames leave");
        assert!(sends((0..20).map(|_| (Some(7), false))).iter().all(Option::is_none), "it has no link");
        let looks = sends((0..20).map(|n| (Some(7), n >= 10)));
        assert_eq!((looks[13], looks[16]), (None, Some(Stuck::Sending)), "the link is back, and still nothing leaves");
    }
}
