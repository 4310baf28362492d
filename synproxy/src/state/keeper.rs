//! Watches over the state while the box runs: says that it is in use, keeps changes of the secrets, and follows the clock.

use super::header::{Header, Kept};
use super::{State, store};
use crate::dataplane::commands::{Command, CommandSender};
use crate::metrics::descriptors::StateMetric;
use crate::metrics::snapshot::Board;
use crate::process::exit::Failure;
use crate::process::{clock, privileges};
use pktio::region::RegionLock;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tcpstate::{CookieClock, Rotation};
use tracing::{debug, info, warn};

/// How often the header is told that the state is in use, and the clock is looked at.
const BEAT: Duration = Duration::from_millis(50);

/// By how many microseconds real time may drift from the worker's clock before the workers are told.
const DRIFT: u64 = 50_000;

/// By how many microseconds it has to differ from one look to the next to have been set, not slewed.
const STEP: u64 = 1_000_000;

/// The state while workers use it.
pub struct Keeper {
    header: Header,
    store: store::Store,
    kept: Mutex<Kept>,
    /// What keeps other processes out of it: of the tables, and then of the header.
    locks: Mutex<Vec<RegionLock>>,
    /// Whether nothing of it is to be left.
    is_over: AtomicBool,
}

impl Keeper {
    /// The keeper of a state whose tables the workers have.
    pub fn new(State { header, store, kept, locks, .. }: State) -> Arc<Self> {
        Arc::new(Self {
            header,
            store,
            kept: Mutex::new(kept),
            locks: Mutex::new(locks),
            is_over: AtomicBool::new(false),
        })
    }

    /// Keeps a change of the cookies' secret.
    pub fn rotate(&self, rotation: &Rotation) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.rotate(rotation);
        self.header.keep(&kept);
    }

    /// When the last change of the secret is complete.
    pub fn rotation(&self) -> tcpstate::Instant {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.rotations(clock::cookie_clock()).last().map_or_else(Default::default, |rotation| rotation.ends())
    }

    /// Frames flow.
    pub fn ready(&self) {
        self.header.ready();
    }

    /// Nothing is to be left at the end.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Whether nothing is to be left.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// The workers have ended, so that nothing in this process uses the state any more: leaves it to the next process, which may be waiting for it, or
    /// removes it.
    pub fn finish(&self) {
        if self.is_over() {
            self.remove();
        } else {
            self.header.beat(clock::now());
            let locks = std::mem::take(&mut *self.locks.lock().unwrap_or_else(PoisonError::into_inner));
            // The header's last: who has it looks for the tables.
            locks.into_iter().for_each(drop);
        }
    }

    /// Where the state lies, if in a directory.
    pub fn directory(&self) -> Option<&Path> {
        self.store.directory()
    }

    /// Removes all of it.
    pub(super) fn remove(&self) {
        self.header.wipe();
        self.store.sweep(|_| true);
        self.store.discard(store::HEADER);
        self.store.close();
    }
}

/// The thread that beats and follows the clock, until this is dropped.
pub struct StateWatch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StateWatch {
    /// Starts it; without a keeper it follows the clock alone. `clock` is what the workers have been told. `end` ends the process
    /// when another asks for the state.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(
        keeper: Option<Arc<Keeper>>,
        workers: CommandSender,
        board: Arc<Board>,
        clock: CookieClock,
        end: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let watch = move || {
            privileges::enter_control_thread();
            let (mut told, mut last) = (clock, clock);
            while !ended.load(Ordering::Relaxed) {
                if let Some(keeper) = &keeper {
                    keeper.header.beat(clock::now());
                    if let Some(process) = keeper.header.succession().asked() {
                        info!("process {process} takes over");
                        end();
                    }
                }
                let present = clock::cookie_clock();
                follow(present, &mut last, &mut told, &workers, &board);
                thread::park_timeout(BEAT);
            }
        };
        let thread = thread::Builder::new().name("state".to_owned()).spawn(watch).map_err(Failure::Spawn)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

/// Tells the workers what time it is, once it differs enough from what they know.
fn follow(
    present: CookieClock,
    last: &mut CookieClock,
    told: &mut CookieClock,
    workers: &CommandSender,
    board: &Board,
) {
    let step = present.ahead_of(*last);
    *last = present;
    if step.unsigned_abs() >= STEP {
        board.add_state(StateMetric::ClockSteps, 1);
        warn!(
            "the clock of this machine was set {} by {:.1} s; cookies made before stay valid",
            if step > 0 { "forward" } else { "back" },
            step.unsigned_abs() as f64 / 1e6
        );
    }
    if present.ahead_of(*told).unsigned_abs() >= DRIFT {
        let answers = workers.send(&Command::SetCookieClock(present));
        if answers.iter().all(Option::is_some) {
            *told = present;
        } else {
            debug!("a worker has not been told the time");
        }
    }
}

impl Drop for StateWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It does not panic; if it did, that was reported.
            let _ = thread.join();
        }
    }
}
