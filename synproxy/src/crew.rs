//! The workers' threads: started, pinned, watched, and ended together.
//!
//! A box in which one worker is dead would pass some flows and swallow others, so the first worker to end badly ends all.

use crate::cpu::Cores;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::identity;
use crate::mail::{Mailbox, Post};
use crate::pace::Pace;
use crate::recorder::Recorder;
use crate::report::{Line, Table};
use crate::stats::{Board, Snapshot};
use crate::steer::Crossing;
use crate::watch::Watch;
use crate::worker::Worker;
use confparse::Poll;
use core_affinity::CoreId;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use pktio::Pair;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tracing::{Level, debug, enabled, info, warn};

/// How often a line of statistics is logged.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// What the main thread is told.
pub enum Message {
    /// This worker is at work.
    Running,
    /// A worker has ended: because it was told to, because its ports are exhausted, or badly.
    Ended(Result<(), Failure>),
    /// The operator wants an end, once or `again`.
    Signal {
        /// Whether it is not the first signal.
        again: bool,
    },
}

/// How workers go about their work.
#[derive(Clone, Default)]
pub struct Manner {
    /// How they wait for frames.
    pub poll: Poll,
    /// Whether they leave calls out under pressure.
    pub shed: bool,
    /// What captures their frames.
    pub recorder: Recorder,
}

/// The workers' threads.
pub struct Crew {
    threads: Vec<JoinHandle<()>>,
    board: Arc<Board>,
    post: Post,
    stop: Arc<AtomicBool>,
    inbox: Receiver<Message>,
    /// Workers that have not ended.
    at_work: usize,
    /// Workers that have not started.
    to_come: usize,
    /// The first bad end.
    failure: Option<Failure>,
}

impl Crew {
    /// Starts one worker for each pair, with the crossing of its number if there are any. Each makes its engine itself, on its own
    /// core, so that the tables lie near it.
    ///
    /// # Errors
    /// When a thread or a mailbox cannot be made; threads already made have ended then.
    pub fn start<E: Engine>(
        pairs: Vec<Pair>,
        crossings: Vec<Crossing>,
        engine: impl Fn() -> E + Send + Clone + 'static,
        cores: &Cores,
        manner: Manner,
        stop: Arc<AtomicBool>,
        (boss, inbox): (Sender<Message>, Receiver<Message>),
    ) -> Result<Self, Failure> {
        let board = Arc::new(Board::new(pairs.len()));
        let workers = pairs.len();
        let post = Post::open(workers).map_err(Failure::Spawn)?;
        let mut crew =
            Self { threads: Vec::new(), board, post, stop, inbox, at_work: workers, to_come: workers, failure: None };
        let mut crossings = crossings.into_iter();
        for (number, pair) in pairs.into_iter().enumerate() {
            let crossing = crossings.next();
            let (boss, stop, board, engine) = (boss.clone(), crew.stop.clone(), crew.board.clone(), engine.clone());
            let (core, is_alone) = cores.of(number);
            let mailbox: Arc<Mailbox> = crew.post.mailbox(number);
            let (poll, shed, witness) = (manner.poll, manner.shed, manner.recorder.witness(number));
            let work = move || {
                let work = AssertUnwindSafe(|| {
                    settle(number, core);
                    let mut worker = Worker::new(pair, engine(), crossing)
                        .paced(Pace::new(poll, is_alone))
                        .reading(mailbox)
                        .witnessed(witness);
                    if shed {
                        worker = worker.relieved();
                    }
                    // Whoever does not listen any more does not need to know.
                    let _ = boss.send(Message::Running);
                    worker.run(&stop, board.slot(number))
                });
                let end = match catch_unwind(work) {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => Err(Failure::Port { worker: number, error }),
                    Err(_) => Err(Failure::Panic { worker: number }),
                };
                let _ = boss.send(Message::Ended(end));
            };
            let thread = thread::Builder::new().name(format!("worker {number}")).spawn(work).map_err(Failure::Spawn)?;
            crew.threads.push(thread);
        }
        Ok(crew)
    }

    /// Where the workers show their counters.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// The way to the workers.
    pub fn post(&self) -> Post {
        self.post.clone()
    }

    /// Waits until all workers have ended, calls `ready` once all have begun, reports, and looks after the interfaces.
    ///
    /// # Errors
    /// The first bad end, or the operator's impatience.
    pub fn supervise(mut self, mut watch: Watch, ready: impl FnOnce()) -> Result<(), Failure> {
        let begin = Instant::now();
        let mut ready = Some(ready);
        let mut reported = (begin, Snapshot::default());
        while self.at_work > 0 {
            match self.inbox.recv_deadline(reported.0 + REPORT_EVERY) {
                Ok(message) => self.receive_update(message)?,
                Err(RecvTimeoutError::Timeout) => {
                    reported = self.report(&reported);
                    watch.parse().unwrap_or_else(|failure| self.give_up(failure));
                }
                Err(RecvTimeoutError::Disconnected) => unreachable!("the signal handler keeps a sender"),
            }
            if self.to_come == 0
                && let Some(ready) = ready.take()
            {
                ready();
            }
        }
        let total = self.board.total();
        if enabled!(Level::INFO) {
            let workers: Vec<Snapshot> = self.board.workers().collect();
            eprint!("{}", Table { total: &total, workers: &workers, period: begin.elapsed() });
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    fn receive_update(&mut self, message: Message) -> Result<(), Failure> {
        match message {
            Message::Running => self.to_come -= 1,
            Message::Ended(end) => {
                self.at_work -= 1;
                end.unwrap_or_else(|failure| self.give_up(failure));
            }
            Message::Signal { again: false } => info!("ending; a second signal ends at once"),
            Message::Signal { again: true } => {
                // Threads that are not waited for end with the process.
                drop(mem::take(&mut self.threads));
                return Err(Failure::Impatience);
            }
        }
        Ok(())
    }

    /// Tells all workers to end, and remembers why.
    fn give_up(&mut self, failure: Failure) {
        self.stop.store(true, Ordering::Relaxed);
        self.failure.get_or_insert(failure);
    }

    fn report(&self, (then, before): &(Instant, Snapshot)) -> (Instant, Snapshot) {
        let (now, total) = (Instant::now(), self.board.total());
        info!("{}", Line { total: &total, change: &total.since(before), period: now - *then });
        (now, total)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A worker's panic was caught and reported inside.
            let _ = thread.join();
        }
    }
}

/// Makes the calling thread a worker's: on its core, without capabilities.
fn settle(number: usize, core: Option<CoreId>) {
    if let Some(core) = core {
        if core_affinity::set_for_current(core) {
            debug!("worker {number} stays on core {}", core.id);
        } else {
            warn!("worker {number} cannot be pinned to core {}", core.id);
        }
    }
    identity::renounce();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Bypass;
    use crossbeam::channel;
    use pktio::Pool;
    use pktio::memory::{self, MemoryWire};
    use std::cell::Cell;
    use tcpstate::{Counters, Egress, Head, Metadata, Population, Side, Verdict};

    fn pair() -> (Pair, [MemoryWire; 2]) {
        let ((lan, lan_wire), (wan, wan_wire)) = (memory::pair(8), memory::pair(8));
        (Pair { lan: Box::new(lan), wan: Box::new(wan), pool: Pool::heap(16, 512, 128) }, [lan_wire, wan_wire])
    }

    /// An engine that a single frame brings down.
    #[derive(Default)]
    struct Fragile(Bypass);

    impl Engine for Fragile {
        fn parse(&self, _: Side, _: &Head<'_>, _: &mut Metadata) {
            panic!("a bug, for the test's sake");
        }
        fn prefetch(&self, _: &mut Metadata) {}
        fn on_frame(
            &mut self,
            _: Side,
            _: &Metadata,
            _: &mut Head<'_>,
            _: tcpstate::Instant,
            _: &mut impl Egress,
        ) -> Verdict {
            Verdict::Forward
        }
        fn on_timeout(&mut self, _: tcpstate::Instant, _: &mut impl Egress) -> bool {
            false
        }
        fn next_deadline(&self) -> Option<tcpstate::Instant> {
            None
        }
        fn counters(&self) -> &Counters {
            self.0.counters()
        }
        fn population(&self) -> Population {
            self.0.population()
        }
    }

    /// Workers that share nothing and run where the scheduler puts them.
    fn start<E: Engine + Default + 'static>(
        pairs: Vec<Pair>,
        stop: Arc<AtomicBool>,
        channel: (Sender<Message>, Receiver<Message>),
    ) -> Crew {
        Crew::start(pairs, Vec::new(), E::default, &Cores::default(), Manner::default(), stop, channel).unwrap()
    }

    #[test]
    fn a_worker_that_panics_ends_all_of_them() {
        let ((one, mut wires), (two, _keep)) = (pair(), pair());
        let (boss, inbox) = channel::unbounded();
        wires[0].push(b"the fatal frame");
        let stop = Arc::new(AtomicBool::new(false));
        let crew = start::<Fragile>(vec![two, one], stop, (boss, inbox));
        assert!(matches!(crew.supervise(Watch::default(), || ()), Err(Failure::Panic { worker: 1 })));
    }

    #[test]
    fn the_first_signal_ends_cleanly_once_all_are_ready() {
        let (pair, _wires) = pair();
        let (boss, inbox) = channel::unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let operator = boss.clone();
        let crew = start::<Bypass>(vec![pair], stop.clone(), (boss, inbox));
        let ready = Cell::new(false);
        crew.supervise(Watch::default(), || {
            ready.set(true);
            stop.store(true, Ordering::Relaxed);
            operator.send(Message::Signal { again: false }).unwrap();
        })
        .unwrap();
        assert!(ready.get());
    }

    #[test]
    fn the_second_signal_does_not_wait() {
        let (pair, _wires) = pair();
        let (boss, inbox) = channel::unbounded();
        boss.send(Message::Signal { again: true }).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let crew = start::<Bypass>(vec![pair], stop, (boss, inbox));
        assert!(matches!(crew.supervise(Watch::default(), || ()), Err(Failure::Impatience)));
    }
}
