//! The worker pool: starts the worker threads, pins them, supervises them, and ends them together.
//!
//! A box in which one worker has failed would forward some flows and lose others, so the first failure ends all workers.

use super::commands::{CommandQueue, CommandSender};
use super::engine::Engine;
use super::front::FrontSwitch;
use super::modes::ModeBoard;
use super::polling::PollPolicy;
use super::resolver::Resolver;
use super::steering::Steering;
use super::watchdog::{Outputs, Watchdog};
use super::worker::{Closed, Worker};
use crate::metrics::capture::Captures;
use crate::metrics::descriptors::{Metric, PortMetric};
use crate::metrics::events::Supervision;
use crate::metrics::report::{Line, Table};
use crate::metrics::snapshot::{Board, Snapshot};
use crate::metrics::swap_check::SwapCheck;
use crate::process::cpu::Cores;
use crate::process::exit::Failure;
use crate::process::link_monitor::LinkMonitor;
use crate::process::privileges;
use confparse::{Front, LinkLoss, Poll, PortLoss};
use core_affinity::CoreId;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use pktio::{LeftSockets, Pair};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tcpstate::{Event, Side};
use tracing::{Level, debug, enabled, info, warn};

/// How often a line of statistics is logged, if there is news.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// What is counted when a limit is reached.
const LIMITED: [Event; 6] = [
    Event::OverSourceRate,
    Event::OverSourceFlows,
    Event::OverDestinationRate,
    Event::OverDestinationFlows,
    Event::OverSynAcks,
    Event::OverDestinationSynAcks,
];

/// What the supervising thread receives.
pub enum Message {
    /// A worker runs.
    Running,
    /// The kernel has reported a change of a link.
    Links,
    /// From now on this becomes of a port when the other one has lost its link, and of the box when an interface is gone.
    LinkLoss(LinkLoss, PortLoss),
    /// A worker has ended: because it was to stop, because its ports are exhausted, or by a failure.
    Ended(Result<(), Failure>),
    /// A signal asks the process to end.
    Signal {
        /// Whether it is not the first one.
        again: bool,
    },
}

/// What all workers have in common.
#[derive(Clone, Default)]
pub struct WorkerOptions {
    /// How they wait for frames.
    pub poll: Poll,
    /// Whether they shed SYNs under overload.
    pub shed: bool,
    /// What captures their frames.
    pub captures: Captures,
    /// Where modes of destinations are decided, if anything decides them.
    pub modes: Option<Arc<ModeBoard>>,
    /// Whether names are to be looked up for them.
    pub looks_up: bool,
    /// Whether they leave their sockets to a process that follows, when they end.
    pub leave: Arc<AtomicBool>,
}

/// The worker threads.
pub struct WorkerPool {
    /// Each returns what is left of it, unless it panicked.
    workers: Vec<JoinHandle<Option<Closed>>>,
    /// The thread that watches them.
    watch: Option<JoinHandle<()>>,
    /// What workers that have ended returned: to give it back takes milliseconds, for which a process that follows this one would wait.
    closed: Vec<Closed>,
    board: Arc<Board>,
    commands: CommandSender,
    stop: Arc<AtomicBool>,
    messages: Receiver<Message>,
    /// Workers that have not ended.
    running: usize,
    /// Workers that have not started.
    starting: usize,
    /// The first failure.
    failure: Option<Failure>,
    /// Whether there is one.
    failed: Arc<AtomicBool>,
    /// Who watches the workers, until it does.
    watchdog: Watchdog,
    /// Decides when SYNs are answered in front of tc, where they can be.
    front: Option<FrontSwitch>,
    /// When they were begun to be supervised.
    began: Instant,
}

impl WorkerPool {
    /// Starts one worker for each pair of ports, with the steering of its number if there are several. Each worker makes its engine, by
    /// its number, itself, on its own core, so that the tables lie in memory near it.
    ///
    /// # Errors
    /// When a thread or a command queue cannot be created; threads already started have ended then.
    pub fn start<E: Engine>(
        pairs: Vec<Pair>,
        steerings: Vec<Steering>,
        engine: impl Fn(usize) -> E + Send + Clone + 'static,
        cores: &Cores,
        options: WorkerOptions,
        stop: Arc<AtomicBool>,
        (supervisor, messages): (Sender<Message>, Receiver<Message>),
    ) -> Result<Self, Failure> {
        let workers = pairs.len();
        let board = Arc::new(Board::new(workers));
        let commands = CommandSender::open(workers).map_err(Failure::Spawn)?;
        let mut pool = Self {
            workers: Vec::new(),
            watch: None,
            closed: Vec::new(),
            board,
            commands,
            stop,
            messages,
            running: workers,
            starting: workers,
            failure: None,
            failed: Arc::default(),
            watchdog: Watchdog::default(),
            front: None,
            began: Instant::now(),
        };
        let resolver = options.looks_up.then(Resolver::default);
        let mut steerings = steerings.into_iter();
        for (number, pair) in pairs.into_iter().enumerate() {
            let steering = steerings.next();
            let (supervisor, stop, leave) = (supervisor.clone(), pool.stop.clone(), options.leave.clone());
            let (board, engine) = (pool.board.clone(), engine.clone());
            let (core, is_alone) = cores.of(number);
            let commands: Arc<CommandQueue> = pool.commands.queue(number);
            let pulse = pool.watchdog.add(&pair);
            let (poll, shed, captures) = (options.poll, options.shed, options.captures.tap(number));
            let modes = options.modes.as_ref().map(|modes| modes.link(number));
            let questions = resolver.as_ref().map(|resolver| resolver.questions(number));
            let work = move || {
                let work = AssertUnwindSafe(|| {
                    prepare_thread(number, core);
                    let mut worker = Worker::new(pair, engine(number), steering)
                        .with_poll_policy(PollPolicy::new(poll, is_alone))
                        .with_commands(commands)
                        .with_captures(captures)
                        .with_pulse(pulse);
                    if shed {
                        worker = worker.with_shedding();
                    }
                    if let Some(questions) = questions {
                        worker = worker.with_questions(questions);
                    }
                    if let Some(modes) = modes {
                        worker = worker.with_modes(modes);
                    }
                    // Sending fails only when the supervisor has ended, which then needs no message.
                    let _ = supervisor.send(Message::Running);
                    let end = worker.run(&stop, board.slot(number));
                    let leaves = end.is_ok() && leave.load(Ordering::Relaxed);
                    (end, worker.close(leaves))
                });
                let (end, closed) = match catch_unwind(work) {
                    Ok((end, closed)) => (end.map_err(|error| Failure::Port { worker: number, error }), Some(closed)),
                    Err(_) => (Err(Failure::Panic { worker: number }), None),
                };
                let _ = supervisor.send(Message::Ended(end));
                closed
            };
            let thread = thread::Builder::new().name(format!("worker {number}")).spawn(work).map_err(Failure::Spawn)?;
            pool.workers.push(thread);
        }
        if let Some(resolver) = resolver {
            resolver.start(&pool.commands)?;
        }
        Ok(pool)
    }

    /// Tells these whether a worker is stuck.
    pub fn tell(&mut self, outputs: Outputs) {
        self.watchdog.tell(outputs);
    }

    /// Has SYNs answered by the XDP program in front of tc when there are many of them.
    pub fn answer_in_front(&mut self, front: Front) {
        self.front = Some(FrontSwitch::new(front, Instant::now()));
    }

    /// Where the workers publish their statistics.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Sends commands to the workers.
    pub fn commands(&self) -> CommandSender {
        self.commands.clone()
    }

    /// Waits until all workers have ended, calls `ready` once all have started, logs the statistics, monitors the links, and reports what
    /// happens to them. When it returns without an error, no worker has a port or an engine any more.
    ///
    /// # Errors
    /// The first failure, that of `ready` too; or [`Failure::Interrupted`] at a second signal.
    ///
    /// # Panics
    /// If every sender of messages is gone, which the signal handler prevents.
    pub fn supervise(
        &mut self,
        mut links: LinkMonitor<'_>,
        mut events: Supervision,
        ready: impl FnOnce(&mut LinkMonitor<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let begin = Instant::now();
        self.began = begin;
        let mut ready = Some(ready);
        let mut reported = (begin, Snapshot::default());
        let mut swapped = SwapCheck::default();
        let mut links_due = begin;
        while self.running > 0 {
            let due = self.front.as_ref().map_or(links_due, |front| links_due.min(front.due()));
            match self.messages.recv_deadline((reported.0 + REPORT_EVERY).min(due)) {
                Ok(Message::Links) => links_due = Instant::now(),
                Ok(Message::LinkLoss(link_loss, port_loss)) => {
                    links.set_link_loss(link_loss, port_loss);
                    links_due = Instant::now();
                }
                Ok(message) => self.handle(message)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the signal handler keeps a sender"),
            }
            let now = Instant::now();
            self.look_in_front(&mut links, now);
            if now >= reported.0 + REPORT_EVERY {
                reported = self.report(&reported);
                swapped.check(&reported.1, now);
            }
            if now >= links_due {
                links.check(now).unwrap_or_else(|failure| self.fail(failure));
                links_due = links.due(now);
                let in_front = self.front.as_ref().is_some_and(FrontSwitch::is_in_front);
                self.board.publish_links(links.reports(), swapped.are_swapped(), in_front);
                events.links(links.reports());
            }
            if self.starting == 0
                && let Some(ready) = ready.take()
            {
                ready(&mut links).unwrap_or_else(|failure| self.fail(failure));
                let watchdog = mem::take(&mut self.watchdog);
                if let Some(watch) = watchdog.start(self.board.clone(), self.stop.clone(), self.failed.clone())? {
                    self.watch = Some(watch);
                }
            }
        }
        if let Some(failure) = &self.failure {
            events.failed(failure);
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Has SYNs answered in front of tc or not, as their number says.
    fn look_in_front(&mut self, links: &mut LinkMonitor<'_>, now: Instant) {
        let Some(front) = self.front.as_mut().filter(|front| now >= front.due()) else { return };
        let total = self.board.total();
        let Some(in_front) = front.look(total.get(Event::SynAnswered) + total.get(Event::Unasked), now) else { return };
        let result = links.guard().map_or(Ok(()), |guard| guard.answer_in_front(in_front));
        match result {
            Ok(()) if in_front => info!("SYNs come in masses: an XDP program answers them in front of tc"),
            Ok(()) => info!("SYNs are answered at tc again"),
            Err(error) => {
                if front.fail(now) {
                    warn!(
                        "SYNs are answered at tc alone, however many come: no XDP program can be attached in front of it: {error}"
                    );
                }
            }
        }
    }

    /// Prints the statistics of the workers, which have ended.
    pub fn print_table(&self) {
        if enabled!(Level::INFO) {
            let (total, workers): (_, Vec<Snapshot>) = (self.board.total(), self.board.workers().collect());
            eprint!("{}", Table { total: &total, workers: &workers, period: self.began.elapsed() });
        }
    }

    fn handle(&mut self, message: Message) -> Result<(), Failure> {
        match message {
            Message::Running => self.starting -= 1,
            // The caller's.
            Message::Links | Message::LinkLoss(..) => {}
            Message::Ended(end) => {
                self.running -= 1;
                end.unwrap_or_else(|failure| self.fail(failure));
            }
            Message::Signal { again: false } => {
                info!("ending; a second signal ends at once");
                // None of them goes on sleeping while the others have ended.
                self.commands.wake();
            }
            Message::Signal { again: true } => {
                // Threads that are not joined end with the process.
                drop((mem::take(&mut self.workers), self.watch.take()));
                return Err(Failure::Interrupted);
            }
        }
        Ok(())
    }

    /// Stops all workers, and keeps the first failure.
    fn fail(&mut self, failure: Failure) {
        self.failed.store(true, Ordering::Relaxed);
        self.stop.store(true, Ordering::Relaxed);
        self.failure.get_or_insert(failure);
    }

    fn report(&self, (then, before): &(Instant, Snapshot)) -> (Instant, Snapshot) {
        let (now, total) = (Instant::now(), self.board.total());
        for key in self.board.take_found() {
            warn!(
                "{}: its answers do not cross the box (direct server return), so that its connections cannot be proxied; see docs/asymmetric.md",
                key.socket(Side::Lan)
            );
        }
        let change = total.since(before);
        let line = Line { total: &total, change: &change, period: now - *then };
        if line.has_news(before) {
            info!("{line}");
        }
        let refused: Vec<String> = LIMITED
            .iter()
            .filter(|event| change.get(**event) > 0)
            .map(|&event| format!("{} {}", change.get(event), event.label()))
            .collect();
        if !refused.is_empty() {
            let seconds = (now - *then).as_secs_f64();
            warn!("limits were reached in the last {seconds:.1} s: {} (docs/limits.md)", refused.join(", "));
        }
        let failures: u64 = Side::BOTH.map(|side| change.get(Metric::port(side, PortMetric::Failures))).iter().sum();
        if failures > 0 {
            let sum = |metric| -> u64 { Side::BOTH.map(|side| change.get(Metric::port(side, metric))).iter().sum() };
            warn!(
                "a worker left frames for more than 50 ms, {failures} times: meanwhile the XDP program bridged {} frames and dropped {} \
                 (docs/failure.md)",
                sum(PortMetric::FailureBridged),
                sum(PortMetric::FailureDropped),
            );
        }
        let unserved = Side::BOTH.map(|side| change.get(Metric::port(side, PortMetric::Unserved)));
        if unserved != [0, 0] {
            warn!(
                "{} frames came on a receive queue that no worker serves, and were dropped: somebody has given an interface more queues",
                unserved.iter().sum::<u64>()
            );
        }
        if before.get(Event::OtherVlan) == 0 && total.get(Event::OtherVlan) > 0 {
            info!(
                "the two directions of a connection bear different VLAN tags: the box follows such connections (`{}` counts them)",
                Event::OtherVlan.label()
            );
        }
        (now, total)
    }
}

impl WorkerPool {
    /// Ends all threads, and returns when they have ended and no port is open any more that another process would wait for. The memory of the frames goes with
    /// the pool.
    pub fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.commands.wake();
        if let Some(watch) = self.watch.take() {
            watch.thread().unpark();
            // It has nothing to say that was not said.
            let _ = watch.join();
        }
        // A panic of a worker was caught and reported inside.
        self.closed.extend(self.workers.drain(..).filter_map(|worker| worker.join().ok().flatten()));
    }

    /// The sockets that workers have left at their end.
    pub fn take_left(&mut self) -> Vec<LeftSockets> {
        self.closed.iter_mut().filter_map(|closed| closed.sockets.take()).collect()
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.end();
    }
}

/// Prepares the calling thread for a worker: pins it to its core, and gives up all capabilities.
fn prepare_thread(number: usize, core: Option<CoreId>) {
    if let Some(core) = core {
        if core_affinity::set_for_current(core) {
            debug!("worker {number} stays on core {}", core.id);
        } else {
            warn!("worker {number} cannot be pinned to core {}", core.id);
        }
    }
    privileges::drop_capabilities();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::engine::Bypass;
    use crate::metrics::events;
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
            panic!("a bug, made for this test");
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

    /// Reports that nobody receives.
    fn nobody() -> Supervision {
        Supervision::new(events::channel().0, ["lan0", "wan0"])
    }

    /// Workers that share nothing and run where the scheduler puts them.
    fn start<E: Engine + Default + 'static>(
        pairs: Vec<Pair>,
        stop: Arc<AtomicBool>,
        channel: (Sender<Message>, Receiver<Message>),
    ) -> WorkerPool {
        WorkerPool::start(
            pairs,
            Vec::new(),
            |_| E::default(),
            &Cores::default(),
            WorkerOptions::default(),
            stop,
            channel,
        )
        .unwrap()
    }

    #[test]
    fn a_worker_that_panics_ends_all_of_them() {
        let ((one, mut wires), (two, _keep)) = (pair(), pair());
        let (supervisor, messages) = channel::unbounded();
        wires[0].push(b"the fatal frame");
        let stop = Arc::new(AtomicBool::new(false));
        let mut pool = start::<Fragile>(vec![two, one], stop, (supervisor, messages));
        assert!(matches!(
            pool.supervise(LinkMonitor::default(), nobody(), |_| Ok(())),
            Err(Failure::Panic { worker: 1 })
        ));
    }

    #[test]
    fn the_first_signal_ends_cleanly_once_all_are_ready() {
        let (pair, _wires) = pair();
        let (supervisor, messages) = channel::unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let operator = supervisor.clone();
        let mut pool = start::<Bypass>(vec![pair], stop.clone(), (supervisor, messages));
        let ready = Cell::new(false);
        pool.supervise(LinkMonitor::default(), nobody(), |_| {
            ready.set(true);
            stop.store(true, Ordering::Relaxed);
            operator.send(Message::Signal { again: false }).unwrap();
            Ok(())
        })
        .unwrap();
        assert!(ready.get());
    }

    #[test]
    fn the_second_signal_does_not_wait() {
        let (pair, _wires) = pair();
        let (supervisor, messages) = channel::unbounded();
        supervisor.send(Message::Signal { again: true }).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut pool = start::<Bypass>(vec![pair], stop, (supervisor, messages));
        assert!(matches!(pool.supervise(LinkMonitor::default(), nobody(), |_| Ok(())), Err(Failure::Interrupted)));
    }
}
