//! The worker: receives a batch from each port, lets the engine decide, transmits, and sleeps when nothing is left to do.
//!
//! One worker owns one queue of both ports, the frames they share and one engine. It decides nothing itself, and it
//! loses no frame: what it receives ends up in a transmit ring or back in the pool.

use super::commands::{Answer, Command, CommandQueue};
use super::egress::{Extent, Outlet, head};
use super::engine::Engine;
use super::handoff::Update;
use super::hold_buffer::HoldBuffer;
use super::load::{LoadMonitor, LoadSample};
use super::modes::ModeLink;
use super::polling::PollPolicy;
use super::pulse::Pulse;
use super::resolver::Questions;
use super::shedding::Shedder;
use super::steering::Steering;
use super::waiting::WaitingFrames;
use crate::metrics::capture::{CaptureTap, DropObserver, NoObserver};
use crate::metrics::descriptors::{CommandKind, UnsentMetric, WorkerMetric, WorkerTiming};
use crate::metrics::snapshot::{FrameCost, Slot, Snapshot};
use crate::metrics::top_talkers::TopTalkers;
use crate::process::clock;
use crossbeam::utils::CachePadded;
use pktio::{Batch, LeftSockets, NO_MEMBER, Pair, Pool, Port, ShedLevel};
use std::hint;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tcpstate::wire::FlowKey;
use tcpstate::{Histogram, Instant, Metadata, PerSide, ServerUpdate, Side, Verdict};

/// Frames received from a port at once: enough to overlap the memory latency of many lookups, few enough that the heads of a batch stay
/// in the first-level cache.
pub const BATCH: usize = 64;

/// Updates of other workers applied between two batches at most: as many as frames.
const UPDATES_A_BATCH: usize = BATCH;

/// The longest sleep, and so how late a worker notices that it is to stop.
const LONGEST_SLEEP: Duration = Duration::from_millis(200);

/// How often the statistics are published.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

/// How often some connections are asked what the kernel has forwarded of them, and how many times at once at most, by a worker that has slept.
const ASK_EVERY: Duration = Duration::from_millis(5);
const ASKED_AT_ONCE: u32 = 40;

/// One queue of both ports and the engine between them.
pub struct Worker<E> {
    ports: PerSide<Box<dyn Port>>,
    /// The ports consist of members, so that frames have to leave by the one they came in by.
    has_members: bool,
    pool: Pool,
    engine: E,
    /// The frames being processed. Empty between the two sides of an iteration.
    incoming: Batch,
    /// What the parse pass found out about each of them.
    metas: Vec<Metadata>,
    /// The frames that the engine holds.
    hold_buffer: HoldBuffer,
    /// The frames that wait for what the kernel has forwarded before them.
    waiting: WaitingFrames,
    /// What is to leave by each port. Empty between iterations.
    outgoing: PerSide<Batch>,
    /// Frames that found the transmit ring of their port full.
    unsent: PerSide<u64>,
    /// Whether the port of a side watches when frames have left that the engine wants to know of.
    watches_leaving: PerSide<bool>,
    /// The time from reception to transmission.
    cost: FrameCost,
    /// The same of each iteration that received frames.
    iteration_times: Histogram,
    /// How overloaded it is; `None` where load shedding is off.
    load: Option<LoadMonitor>,
    /// What is shed for that.
    shedder: Shedder,
    /// Whether it may sleep.
    poll_policy: PollPolicy,
    /// How often it has served its ports.
    iterations: u64,
    /// How often it has slept.
    sleeps: u64,
    /// The way to and from the other workers; `None` for a single worker.
    steering: Option<Steering>,
    /// The operator's commands.
    commands: Option<Arc<CommandQueue>>,
    /// Where names are looked up.
    questions: Option<Questions>,
    /// Where modes of destinations are decided; `None` where nothing decides them.
    modes: Option<ModeLink>,
    /// What is captured of its frames.
    captures: CaptureTap,
    /// It captures frames; what the kernel could forward by itself comes to it.
    captures_frames: bool,
    /// Samples of its traffic.
    top_talkers: TopTalkers,
    /// Where it goes on to ask what the kernel has forwarded, and when.
    asked: (u32, Instant),
    /// The longest time that a command of each kind has taken, or publishing the statistics.
    longest_command: [Duration; CommandKind::COUNT],
    /// How others see that it is alive.
    pulse: Arc<CachePadded<Pulse>>,
    /// How often frames have passed without this worker, or were dropped, because it did not take them.
    failures: u64,
    /// Servers found to answer another way, which have yet to be published with the statistics.
    found: Vec<FlowKey>,
}

/// What a worker has at its end.
pub struct Closed {
    /// Ports that are still open, as no other process needs to wait for them. They are dropped before their frames.
    pub open: Vec<Box<dyn Port>>,
    /// The memory of the frames, unless a port [owns](pktio::Capabilities::owns_frames) it.
    pub frames: Option<Pool>,
    /// The sockets that it leaves.
    pub sockets: Option<LeftSockets>,
}

/// What one poll iteration did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Iteration {
    /// Frames received from either port, or taken over from other workers.
    pub received: usize,
    /// Frames taken by the transmit rings of either port.
    pub sent: usize,
    /// Whether the WAN, or other workers for it, had a full batch, and so perhaps more.
    pub is_full: bool,
    /// Whether the engine has more to do at once.
    pub more: bool,
}

impl Iteration {
    /// Whether the next iteration may find nothing to do.
    ///
    /// An iteration that only sent is followed by another one, which takes the completed frames back and repeats a kick that
    /// the kernel answered only in part.
    fn is_idle(self) -> bool {
        self.received == 0 && self.sent == 0 && !self.more
    }
}

impl<E: Engine> Worker<E> {
    /// A worker for this pair of ports, and its way to the other workers, if there are any.
    pub fn new(mut pair: Pair, engine: E, steering: Option<Steering>) -> Self {
        // A batch from either port and as many answers or segments of the engine's own, and both once more from other
        // workers; beyond that the batch grows once.
        let batches = if steering.is_some() { 2 } else { 1 };
        let outgoing = || Batch::with_capacity(4 * batches * BATCH);
        let within = |port: &mut Box<dyn Port>| port.kernel_forwarding().and_then(|port| port.leaves_within());
        let leaves_within = PerSide::new(within(&mut pair.lan), within(&mut pair.wan));
        Self {
            waiting: WaitingFrames::new(leaves_within),
            has_members: !pair.wan.members().is_empty(),
            ports: PerSide::new(pair.lan, pair.wan),
            pool: pair.pool,
            hold_buffer: HoldBuffer::new(engine.held_frames()),
            engine,
            incoming: Batch::with_capacity(batches * BATCH),
            metas: Vec::with_capacity(batches * BATCH),
            outgoing: PerSide::new(outgoing(), outgoing()),
            unsent: PerSide::default(),
            watches_leaving: PerSide::default(),
            cost: FrameCost::default(),
            iteration_times: Histogram::default(),
            load: None,
            shedder: Shedder::default(),
            poll_policy: PollPolicy::new(confparse::Poll::default(), false),
            iterations: 0,
            sleeps: 0,
            steering,
            commands: None,
            questions: None,
            modes: None,
            captures: CaptureTap::default(),
            captures_frames: false,
            top_talkers: TopTalkers::new(clock::now()),
            asked: (0, Instant::default()),
            longest_command: Default::default(),
            pulse: Arc::default(),
            failures: 0,
            found: Vec::new(),
        }
    }

    /// The same worker, which sheds SYNs from the WAN while it is overloaded.
    pub fn with_shedding(mut self) -> Self {
        self.set_shedding(true);
        self
    }

    /// Sheds under overload from now on, or does not.
    fn set_shedding(&mut self, sheds: bool) {
        if sheds == self.load.is_some() {
            return;
        }
        self.load = sheds.then(LoadMonitor::default);
        if sheds {
            self.shedder.prepare(&mut self.ports[Side::Wan]);
        } else {
            self.shedder.set(&mut self.ports[Side::Wan], ShedLevel::Off);
        }
    }

    /// The same worker, with this policy for sleep.
    pub fn with_poll_policy(self, poll_policy: PollPolicy) -> Self {
        Self { poll_policy, ..self }
    }

    /// The same worker, which has names looked up.
    pub fn with_questions(self, questions: Questions) -> Self {
        Self { questions: Some(questions), ..self }
    }

    /// The same worker, which executes the commands of this queue.
    pub fn with_commands(self, commands: Arc<CommandQueue>) -> Self {
        Self { commands: Some(commands), ..self }
    }

    /// The same worker, which takes part in deciding the modes of destinations.
    pub fn with_modes(self, modes: ModeLink) -> Self {
        Self { modes: Some(modes), ..self }
    }

    /// The same worker, whose frames this tap captures.
    pub fn with_captures(self, captures: CaptureTap) -> Self {
        Self { captures, ..self }
    }

    /// The same worker, which says here that it is alive.
    pub fn with_pulse(self, pulse: Arc<CachePadded<Pulse>>) -> Self {
        Self { pulse, ..self }
    }

    /// Runs until `stop` is set, or until neither port will ever deliver a frame again.
    ///
    /// # Errors
    /// When waiting for frames fails, which does not happen to a sound port.
    pub fn run(&mut self, stop: &AtomicBool, slot: &Slot) -> io::Result<()> {
        let mut publish_at = Instant::default();
        for side in Side::BOTH {
            // The engine has entered what it knows of when it was made.
            if let Some(switch) = self.ports[side].failure_switch() {
                switch.set_flows_entered();
            }
        }
        self.failures = self.count_failures();
        let ended = loop {
            let now = clock::now();
            let iteration = self.poll(now);
            self.poll_policy.record(iteration.received, now);
            self.adjust_shedding(iteration, now);
            self.execute_command(now, slot);
            self.note_failures(now);
            self.ask_forwarded(now);
            self.beat(iteration);
            if now >= publish_at {
                self.publish(now, slot);
                publish_at = now + PUBLISH_EVERY;
            }
            if stop.load(Ordering::Relaxed) || (iteration.is_idle() && self.is_exhausted()) {
                break Ok(());
            }
            if iteration.is_idle()
                && let Err(error) = self.rest(now)
            {
                break Err(error);
            }
        };
        self.pulse.sleep();
        slot.publish(&self.snapshot());
        // What is held or waits is dropped; its senders retransmit it.
        self.hold_buffer.clear(&mut self.pool);
        self.waiting.clear(&mut self.pool);
        ended
    }

    /// Gives the ports up. If it `leaves` them to a process that follows, what that can take over or need not wait for stays open. Everything else is closed, at
    /// once: a socket of AF_XDP takes 5 to 15 ms, in which the kernel waits for all processors.
    pub fn close(self, leaves: bool) -> Closed {
        let Self { ports, pool: mut frames, .. } = self;
        let [mut lan, mut wan] = ports.into_array();
        let sockets = leaves.then(|| pktio::leave_sockets(&mut *lan, &mut *wan, &mut frames)).flatten();
        if leaves && !lan.capabilities().exclusive && !wan.capabilities().exclusive {
            return Closed { open: vec![lan, wan], frames: Some(frames), sockets };
        }
        let owned = lan.capabilities().owns_frames || wan.capabilities().owns_frames;
        thread::scope(|scope| {
            // Without a thread they close one after the other.
            let _ = thread::Builder::new().spawn_scoped(scope, || drop(lan));
            drop(wan);
        });
        Closed { open: Vec::new(), frames: (!owned).then_some(frames), sockets }
    }

    /// How often somebody else has bridged or dropped frames because this worker did not take them.
    fn count_failures(&mut self) -> u64 {
        // Either port knows of both.
        self.ports[Side::Wan].failure_switch().map_or(0, |switch| switch.failures())
    }

    /// Tells the engine if frames have passed without it since the last iteration.
    #[inline]
    fn note_failures(&mut self, now: Instant) {
        let failures = self.count_failures();
        if failures != self.failures {
            self.failures = failures;
            self.engine.was_bypassed(now);
        }
    }

    /// Asks some connections what the kernel has forwarded of them, for the top talkers.
    #[inline]
    fn ask_forwarded(&mut self, now: Instant) {
        if self.engine.hands_down() && now >= self.asked.1 {
            self.ask_forwarded_now(now);
        }
    }

    #[cold]
    fn ask_forwarded_now(&mut self, now: Instant) {
        let late = now.since(self.asked.1).as_micros() / ASK_EVERY.as_micros();
        for _ in 0..=late.min(u128::from(ASKED_AT_ONCE) - 1) {
            let top_talkers = &mut self.top_talkers;
            let next = self.engine.tell_forwarded(self.asked.0, |forwarded| top_talkers.forwarded(&forwarded));
            self.asked.0 = next.unwrap_or_default();
            if next.is_none() {
                self.top_talkers.end_round(now);
                break;
            }
        }
        self.asked.1 = now + ASK_EVERY;
    }

    /// Says that an iteration has ended, and how far the transmit rings are.
    fn beat(&self, iteration: Iteration) {
        for side in Side::BOTH {
            let port = &self.ports[side];
            self.pulse.sending(side, port.is_backlogged(), port.completed());
        }
        self.pulse.turn(iteration.received + iteration.sent);
    }

    /// Shows the statistics to their readers, who then ask nothing of the worker. What this costs does not depend on how many flows there are.
    fn publish(&mut self, now: Instant, slot: &Slot) {
        let begin = clock::thread_time();
        if self.steering.as_ref().is_some_and(Steering::has_lost_trust) {
            // The kernel would take the wrong worker's part in answering SYNs.
            self.engine.unshare_syns();
        }
        slot.publish(&self.snapshot());
        self.found.drain(..).for_each(|key| slot.found(key));
        if let Some(syns) = self.top_talkers.advance(now) {
            slot.publish_syns(syns);
        }
        self.took(CommandKind::Publish, begin);
    }

    /// Notes how long the worker was kept from its frames by this, which began at `begin` of the worker's own time.
    fn took(&mut self, kind: CommandKind, begin: Duration) {
        let longest = &mut self.longest_command[kind as usize];
        *longest = clock::thread_time().saturating_sub(begin).max(*longest);
    }

    /// Executes a command, if there is one.
    #[inline]
    fn execute_command(&mut self, now: Instant, slot: &Slot) {
        let Some(commands) = self.commands.as_ref().filter(|commands| commands.has_commands()).cloned() else { return };
        // The statistics are published first, so that they are as new as the answer.
        let begin = clock::thread_time();
        slot.publish(&self.snapshot());
        let mut kind = None;
        commands.execute_next(|command| {
            kind = Some(command.kind());
            match command {
                Command::Top => Answer::Top(self.top_talkers.last()),
                Command::SetOptions { poll, shed } => {
                    self.poll_policy.set(poll);
                    self.set_shedding(shed);
                    Answer::Done
                }
                command => self.engine.execute(command, now),
            }
        });
        if let Some(kind) = kind {
            self.took(kind, begin);
        }
    }

    /// Serves both ports once.
    pub fn poll(&mut self, now: Instant) -> Iteration {
        let begin = std::time::Instant::now();
        self.iterations += 1;
        let mut iteration = Iteration::default();
        if let Some(modes) = &mut self.modes {
            modes.follow(&mut self.engine, now);
        }
        self.captures.update();
        if self.captures.frames().is_some() != self.captures_frames {
            self.captures_frames = !self.captures_frames;
            // A capture shows every frame.
            for side in Side::BOTH {
                if let Some(port) = self.ports[side].kernel_forwarding() {
                    port.allow(!self.captures_frames);
                }
            }
        }
        while let Some((side, frame)) = self.waiting.take(now) {
            self.outgoing[side.other()].push(frame);
        }
        for side in Side::BOTH {
            let received = self.ports[side].receive(&mut self.incoming, BATCH, &mut self.pool);
            if let Some(taps) = self.captures.frames() {
                taps.received(side, &self.incoming);
            }
            let taken_over = self.parse_batch(side, now);
            iteration.received += received + taken_over;
            iteration.is_full |= side == Side::Wan && (received == BATCH || taken_over == BATCH);
            if self.engine.awaits_arrival()
                && self.ports[side].kernel_forwarding().is_some_and(|port| port.is_drained())
                && self.steering.as_ref().is_none_or(Steering::is_left_alone)
            {
                self.engine.has_arrived(side);
            }
            self.process_batch(side, now);
        }
        iteration.more = self.expire(now);
        if let Some(modes) = &mut self.modes {
            modes.report(&mut self.engine, iteration.received > 0 || iteration.more, now);
        }
        self.publish_updates();
        self.ask_names();
        let taken = begin.elapsed();
        self.cost.add(iteration.received, taken);
        if iteration.received > 0 {
            self.iteration_times.observe(taken);
        }
        for side in Side::BOTH {
            iteration.sent += self.transmit(side);
        }
        self.captures.hand_over();
        iteration
    }

    /// Sets the level of load shedding, and tells the filter and the other workers of sources that have proved themselves.
    fn adjust_shedding(&mut self, iteration: Iteration, now: Instant) {
        let Some(load) = &mut self.load else { return };
        let port = &mut self.ports[Side::Wan];
        while let Some(source) = self.engine.next_proved() {
            // Ports with a program have one record for all workers.
            if self.shedder.record_proved(port, source)
                && let Some(steering) = &mut self.steering
            {
                steering.publish(Update::Proved(source));
            }
        }
        if load.record(iteration.received, iteration.is_full, now) {
            let statistics = port.statistics();
            let (fresh, repeated) = self.shedder.shed();
            let steering = self.steering.as_ref();
            let lost_between = steering.map_or(0, Steering::lost);
            let sample = LoadSample {
                syns: self.engine.syns() + steering.map_or(0, Steering::syns),
                lost: statistics.receive_full + statistics.fill_empty + statistics.kernel_drops + lost_between,
                shed: [statistics.shed_fresh + fresh, statistics.shed_repeated + repeated],
            };
            if let Some(level) = load.evaluate(sample, now) {
                self.shedder.set(port, level);
            }
        }
    }

    /// The statistics so far.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::of_engine(self.engine.counters(), &self.engine.population());
        for side in Side::BOTH {
            let mut statistics = self.ports[side].statistics();
            if side == Side::Wan {
                let (fresh, repeated) = self.shedder.shed();
                statistics.shed_fresh += fresh;
                statistics.shed_repeated += repeated;
            }
            snapshot.set_port(side, &statistics);
            snapshot.set(UnsentMetric::of(side), self.unsent[side]);
        }
        snapshot.set(WorkerMetric::Held, self.hold_buffer.held());
        snapshot.set(WorkerMetric::TooFewToHold, self.hold_buffer.not_held());
        snapshot.set(WorkerMetric::PollIterations, self.iterations);
        snapshot.set(WorkerMetric::Sleeps, self.sleeps);
        snapshot.set(WorkerMetric::Wakes, self.poll_policy.wakes());
        snapshot.set_frame_cost(self.cost);
        snapshot.set_times(WorkerTiming::Iteration, &self.iteration_times);
        snapshot.set_times(WorkerTiming::HoldTime, self.hold_buffer.times());
        snapshot.set(WorkerMetric::PoolFrames, self.pool.total() as u64);
        snapshot.set(WorkerMetric::PoolIdle, self.pool.idle() as u64);
        let (flows, syn_cached) = self.engine.capacity();
        snapshot.set(WorkerMetric::FlowsMost, flows);
        snapshot.set(WorkerMetric::FlowsUnpublished, self.engine.unpublished_flows());
        snapshot.set(WorkerMetric::SynCachedMost, syn_cached);
        let adopted = self.engine.adopted();
        snapshot.set(WorkerMetric::FlowsAdopted, adopted.flows);
        snapshot.set(WorkerMetric::RecordsRefused, adopted.refused);
        if let Some(steering) = &self.steering {
            steering.counters().write(&mut snapshot);
        }
        for (&kind, longest) in CommandKind::ALL.iter().zip(self.longest_command) {
            snapshot.set(kind, u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX));
        }
        snapshot
    }

    /// Parses and hashes the whole batch and prefetches the memory it will touch, so that the latencies overlap. Frames of other owners
    /// leave the batch, and frames that others have handed over join it; returns how many joined.
    ///
    /// SYNs are filtered where they arrive, whichever worker owns them: a flood of them would fill the hand-off queues, where it displaces the
    /// SYNs of proved sources. A retransmitted SYN arrives on the queue of the first, as ports without a program distribute by flow.
    fn parse_batch(&mut self, side: Side, now: Instant) -> usize {
        self.parse(side, 0);
        if side == Side::Wan && self.shedder.is_filtering() {
            self.receive_updates(now);
            let (frames, metas, pool) = (&mut self.incoming, &mut self.metas, &mut self.pool);
            self.shedder.filter(frames, metas, &mut self.top_talkers, pool);
        }
        let mut taken_over = 0;
        if let Some(steering) = &mut self.steering {
            steering.hand_over(side, now, &mut self.incoming, &mut self.metas, &mut self.pool);
            taken_over = steering.take_over(side, &mut self.incoming, BATCH, &mut self.pool);
            self.parse(side, self.incoming.len() - taken_over);
            self.receive_updates(now);
        }
        for meta in &mut self.metas[..self.incoming.len()] {
            self.engine.prefetch(meta);
        }
        taken_over
    }

    /// Applies the updates of other workers: after a batch was received and before it is processed, so that a client which reacts to what
    /// another worker sent finds this worker informed.
    fn receive_updates(&mut self, now: Instant) {
        let Some(steering) = &mut self.steering else { return };
        for _ in 0..UPDATES_A_BATCH {
            match steering.receive_update() {
                None => break,
                Some(Update::Server(update)) => self.engine.receive_update(&update, now),
                Some(Update::Proved(source)) => {
                    self.shedder.record_proved(&mut self.ports[Side::Wan], source);
                }
            }
        }
    }

    /// Publishes to the other workers what the engine learned in this iteration, before any frame of it leaves.
    fn publish_updates(&mut self) {
        for update in self.engine.updates() {
            if let ServerUpdate::DirectReturn(key) = update {
                self.found.push(key);
            }
            if let Some(steering) = &mut self.steering {
                steering.publish(Update::Server(update));
            }
        }
    }

    /// Has names looked up that connections wait for.
    fn ask_names(&mut self) {
        for question in self.engine.questions() {
            if let Some(questions) = &self.questions {
                questions.ask(question);
            }
        }
    }

    /// Parses and hashes the batch from this frame on.
    fn parse(&mut self, side: Side, from: usize) {
        // The metadata are written in place: a copy of what was just written in smaller pieces would stall.
        if self.metas.len() < self.incoming.len() {
            self.metas.resize(self.incoming.len(), Metadata::default());
        }
        for (frame, meta) in self.incoming.iter_mut().zip(&mut self.metas).skip(from) {
            self.engine.parse(side, &head(frame), meta);
        }
    }

    /// Lets the engine decide on the whole batch.
    fn process_batch(&mut self, side: Side, now: Instant) {
        let batch = self.incoming.len();
        if let Some(at) = self.top_talkers.choose(batch)
            && let Some(frame) = self.incoming.get_mut(at)
        {
            self.top_talkers.sample(side, &self.metas[at], frame.total(), batch);
        }
        match self.captures.take_drops() {
            None => self.process_observed(side, now, &mut NoObserver),
            Some(mut drops) => {
                drops.set_now(now);
                self.process_observed(side, now, &mut *drops);
                self.captures.return_drops(drops);
            }
        }
    }

    /// As [`Worker::process_batch`]; compiled once more for captures of drops, so that they cost nothing when there are none.
    fn process_observed(&mut self, side: Side, now: Instant, observer: &mut impl DropObserver) {
        let mut outlet = Outlet { pool: &mut self.pool, outgoing: &mut self.outgoing, member: None, observer };
        for (mut frame, meta) in self.incoming.drain(..).zip(&self.metas) {
            if self.has_members {
                outlet.member = Some(frame.member());
            }
            let mut head = head(&mut frame);
            let verdict = self.engine.on_frame(side, meta, &mut head, now, &mut outlet);
            let extent = Extent::of(&head);
            let forwarded = self.engine.forwarded_before();
            let waits = self.waiting.until(side, meta.hash(), forwarded, now);
            match (verdict, waits) {
                (Verdict::Hold(ticket), _) => self.hold_buffer.hold(ticket, frame, outlet.pool, now),
                (Verdict::Forward, Some(due)) => {
                    outlet.trim(&mut frame, &extent);
                    if let Some(frame) = self.waiting.put(due, side, meta.hash(), frame, outlet.pool) {
                        outlet.outgoing[side.other()].push(frame);
                    }
                }
                (verdict, _) => outlet.dispose(side, frame, extent, verdict),
            }
            // The held frames that this frame releases leave behind it.
            release(&mut self.engine, &mut self.hold_buffer, now, &mut outlet);
        }
    }

    /// Lets the engine do what is due; true when more is.
    fn expire(&mut self, now: Instant) -> bool {
        match self.captures.take_drops() {
            None => self.expire_observed(now, &mut NoObserver),
            Some(mut drops) => {
                let more = self.expire_observed(now, &mut *drops);
                self.captures.return_drops(drops);
                more
            }
        }
    }

    /// As [`Worker::expire`]; compiled twice like [`Worker::process_observed`].
    fn expire_observed(&mut self, now: Instant, observer: &mut impl DropObserver) -> bool {
        let member = self.has_members.then_some(NO_MEMBER);
        let mut outlet = Outlet { pool: &mut self.pool, outgoing: &mut self.outgoing, member, observer };
        let more = self.engine.on_timeout(now, &mut outlet);
        release(&mut self.engine, &mut self.hold_buffer, now, &mut outlet);
        more
    }

    /// Transmits the frames for a port, and kicks it once. Frames that the ring has no room for are dropped, as on any full link.
    fn transmit(&mut self, side: Side) -> usize {
        let (port, outgoing) = (&mut self.ports[side], &mut self.outgoing[side]);
        if let Some(taps) = self.captures.frames() {
            taps.about_to_send(side, outgoing);
        }
        let sent = port.transmit(outgoing, &mut self.pool);
        if let Some(taps) = self.captures.frames() {
            taps.sent(side, sent);
        }
        self.unsent[side] += outgoing.len() as u64;
        for frame in outgoing.drain(..) {
            self.pool.put(frame);
        }
        port.flush(&mut self.pool);
        if self.engine.awaits_leaving() {
            self.watch_leaving(side);
        }
        sent
    }

    /// Tells the engine what has left by this port of what it wants to know of.
    fn watch_leaving(&mut self, side: Side) {
        let Some(port) = self.ports[side].kernel_forwarding() else { return };
        if !self.watches_leaving[side] && port.watch_leaving() {
            self.engine.watch_leaving(side);
            self.watches_leaving[side] = true;
        }
        if self.watches_leaving[side] && port.has_left() {
            self.engine.has_left(side);
            self.watches_leaving[side] = false;
        }
    }

    /// Whether neither port will ever deliver a frame again.
    fn is_exhausted(&self) -> bool {
        Side::BOTH.into_iter().all(|side| self.ports[side].is_exhausted())
    }

    /// Sleeps, yields or spins after an iteration that found nothing to do.
    fn rest(&mut self, now: Instant) -> io::Result<()> {
        if self.poll_policy.may_sleep() {
            self.sleeps += 1;
            self.pulse.sleep();
            return self.sleep(now);
        }
        if self.poll_policy.yields() {
            // The thread that fills or empties our rings may be waiting for this core.
            thread::yield_now();
        } else {
            hint::spin_loop();
        }
        Ok(())
    }

    /// Sleeps until a frame arrives, another worker hands one over, a command comes, or the engine has something to do.
    fn sleep(&self, now: Instant) -> io::Result<()> {
        let due = self.engine.next_deadline().map_or(LONGEST_SLEEP, |deadline| deadline.since(now)).min(LONGEST_SLEEP);
        let due = self.modes.as_ref().and_then(|modes| modes.patience(now)).map_or(due, |patience| due.min(patience));
        let due = self.waiting.due().map_or(due, |at| due.min(at.since(now)));
        // The event is readable from the moment a command is queued, so one that comes from now on ends the sleep at once.
        let command = self.commands.as_ref().map(|commands| commands.event().as_raw_fd());
        let ports: [&dyn Port; 2] = [&self.ports[Side::Lan], &self.ports[Side::Wan]];
        let sleep = |handoff| pktio::wait_or_wake(ports, [handoff, command], Some(due));
        match &self.steering {
            None => sleep(None),
            Some(steering) => steering.sleep_with(sleep),
        }
    }
}

/// Releases the held frames that the engine asks for, of which there are never more than slots in the hold buffer.
#[inline]
fn release<E: Engine, O: DropObserver>(engine: &mut E, held: &mut HoldBuffer, now: Instant, outlet: &mut Outlet<O>) {
    while let Some(ticket) = engine.next_release() {
        let Some(mut frame) = held.take(ticket, now) else {
            engine.void(ticket);
            continue;
        };
        let mut head = head(&mut frame);
        let verdict = engine.on_release(ticket, &mut head, now, outlet);
        let extent = Extent::of(&head);
        outlet.dispose(Side::Wan, frame, extent, verdict);
    }
}

#[cfg(test)]
mod tests;
