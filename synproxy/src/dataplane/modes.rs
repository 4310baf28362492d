//! Modes of destinations, decided once for the box.
//!
//! Each worker counts for each [target](tcpstate::Target) and publishes the counts every 10 ms in cells of its own. A coordinator, which is one thread, sums
//! them up. It decides when a target in mode `auto` passes SYNs again, and also when it stops to. That it stops mostly is decided earlier: a worker that has
//! reached its share of the threshold stops at that very SYN, and says so at once, which the other workers see at the beginning of their next iteration.
//!
//! A worker's share is what it has half-open already and an equal part of what is left to the threshold; the coordinator publishes it anew every 10 ms. So all
//! workers together pass no more SYNs than the threshold, but for those of one iteration in which a share is a little out of date: twice the threshold is
//! never reached.
//!
//! Who wants to hear of switches [subscribes](ModeBoard::subscribe).

use super::engine::Engine;
use crate::metrics::targets::{Baseline, TargetStatus};
use crate::process::{clock, privileges};
use crossbeam::channel::{self, Receiver, Sender};
use crossbeam::utils::CachePadded;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};
use tcpstate::config::Mode;
use tcpstate::{Counts, Directive, DropReason, Event, Instant, Target, TargetCounts, TargetKey};

/// How often a worker publishes its counts, and how often they are summed up while any target is in mode `auto`.
pub const PERIOD: Duration = Duration::from_millis(10);

/// How often they are summed up while none is: for `synctl policy` and the page.
const IDLE_PERIOD: Duration = Duration::from_millis(100);

/// Targets of which a worker publishes everything at once, every 10 ms; of more it goes on with the next ones in turn, so that it never takes long.
const WHOLE_AT_ONCE: usize = 16;

/// The time over which a rate of SYNs is measured: short, so that it is noticed early.
const RATE_WINDOW: Duration = Duration::from_millis(50);

/// Samples kept of the time for which a cookie counts as in flight.
const SAMPLES: u32 = 64;

/// Why a target has come to another mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// So many connections were half-open at one worker or at all together, or as many as its table may hold of them.
    HalfOpen {
        /// How many, where it was noticed.
        connections: u64,
    },
    /// So many SYNs came in a second.
    SynRate {
        /// How many.
        syns: u64,
    },
    /// Half-open connections and cookies in flight have become few.
    Calm {
        /// The former.
        half_open: u64,
        /// The latter.
        in_flight: u64,
    },
    /// The configuration has changed.
    Policy,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::HalfOpen { connections: 1 } => f.write_str("1 connection is half-open"),
            Reason::HalfOpen { connections } => write!(f, "{connections} connections are half-open"),
            Reason::SynRate { syns } => write!(f, "{syns} SYNs a second"),
            Reason::Calm { half_open, in_flight } => {
                write!(f, "{half_open} half-open connections and {in_flight} cookies in flight are left")
            }
            Reason::Policy => f.write_str("the configuration has changed"),
        }
    }
}

/// A target has come to another mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Which target.
    pub target: TargetKey,
    /// The mode it was in: never [`Mode::Auto`], which is one of the others at any time.
    pub from: Mode,
    /// The mode it is in, likewise.
    pub to: Mode,
    /// Why.
    pub why: Reason,
    /// When that was noticed, at most 10 ms later.
    pub at: SystemTime,
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, from, to, why, .. } = self;
        write!(f, "mode of {target}: {} instead of {}: {why}", to.label(), from.label())
    }
}

/// What one worker has published of one target.
struct Cell {
    half_open: AtomicU64,
    passed: AtomicU64,
    answered: AtomicU64,
    proved: AtomicU64,
    limited: AtomicU64,
    /// Everything, by event and by reason: [less often](WHOLE_AT_ONCE), as nothing is decided by it.
    events: [AtomicU64; Event::COUNT],
    drops: [AtomicU64; DropReason::COUNT],
}

impl Default for Cell {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            half_open: zero(),
            passed: zero(),
            answered: zero(),
            proved: zero(),
            limited: zero(),
            events: std::array::from_fn(|_| zero()),
            drops: std::array::from_fn(|_| zero()),
        }
    }
}

impl Cell {
    fn publish(&self, counts: &TargetCounts) {
        let TargetCounts { half_open, passed, answered, proved, limited } = *counts;
        self.half_open.store(half_open, Ordering::Relaxed);
        self.passed.store(passed, Ordering::Relaxed);
        self.answered.store(answered, Ordering::Relaxed);
        self.proved.store(proved, Ordering::Relaxed);
        self.limited.store(limited, Ordering::Relaxed);
    }

    fn publish_all(&self, all: &Counts) {
        self.events.iter().zip(&all.events).for_each(|(cell, &count)| cell.store(count, Ordering::Relaxed));
        self.drops.iter().zip(&all.drops).for_each(|(cell, &count)| cell.store(count, Ordering::Relaxed));
    }

    fn read(&self) -> TargetCounts {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        TargetCounts {
            half_open: load(&self.half_open),
            passed: load(&self.passed),
            answered: load(&self.answered),
            proved: load(&self.proved),
            limited: load(&self.limited),
        }
    }

    fn read_all(&self) -> Counts {
        Counts {
            events: self.events.each_ref().map(|cell| cell.load(Ordering::Relaxed)),
            drops: self.drops.each_ref().map(|cell| cell.load(Ordering::Relaxed)),
        }
    }
}

/// The cells of one worker, which is their only writer.
struct Row {
    cells: Box<[Cell]>,
    /// Whether they were ever written: then their worker has this policy.
    is_written: AtomicBool,
}

/// What all workers are told of one target.
#[derive(Default)]
struct Orders {
    /// Whether it is to answer SYNs by cookies.
    engaged: AtomicBool,
    /// How many connections were half-open where that was noticed.
    noticed: AtomicU64,
    /// For each worker, how many may be half-open there. The coordinator is their only writer.
    limits: Box<[AtomicU32]>,
}

/// The cells of one policy's targets. Another policy has other ones.
struct Sheet {
    targets: Arc<[Target]>,
    rows: Box<[CachePadded<Row>]>,
    orders: Box<[Orders]>,
}

impl Sheet {
    fn new(targets: Arc<[Target]>, workers: usize) -> Self {
        let row = |_| {
            let cells = targets.iter().map(|_| Cell::default()).collect();
            CachePadded::new(Row { cells, is_written: AtomicBool::default() })
        };
        let orders = |target: &Target| {
            let share = share(target.auto.enter_half_open, 0, workers, 0);
            Orders { limits: (0..workers).map(|_| AtomicU32::new(share)).collect(), ..Orders::default() }
        };
        Self { rows: (0..workers).map(row).collect(), orders: targets.iter().map(orders).collect(), targets }
    }

    fn sum(&self, target: usize) -> TargetCounts {
        self.rows.iter().map(|row| row.cells[target].read()).fold(TargetCounts::default(), |sum, own| TargetCounts {
            half_open: sum.half_open + own.half_open,
            passed: sum.passed + own.passed,
            answered: sum.answered + own.answered,
            proved: sum.proved + own.proved,
            limited: sum.limited + own.limited,
        })
    }

    fn sum_of_all(&self, target: usize) -> Counts {
        let mut sum = Counts::NONE;
        self.rows.iter().for_each(|row| sum += &row.cells[target].read_all());
        sum
    }
}

/// How many connections may be half-open at one of `workers` that has `own` already, while there are `sum` at all together.
fn share(threshold: u32, own: u64, workers: usize, sum: u64) -> u32 {
    let left = u64::from(threshold).saturating_sub(sum) / workers.max(1) as u64;
    u32::try_from(own + left).unwrap_or(u32::MAX).max(1)
}

/// Where workers and coordinator meet.
pub struct ModeBoard {
    workers: usize,
    /// Grows with every change of what workers are told.
    generation: CachePadded<AtomicU64>,
    sheet: Mutex<Arc<Sheet>>,
    subscribers: Mutex<Vec<Sender<Switch>>>,
    /// What is known, but for all that is counted, and where that stands.
    status: Mutex<(Arc<Sheet>, Vec<TargetStatus>)>,
    /// Switches that a subscriber had no room for.
    unheard: AtomicU64,
}

impl ModeBoard {
    /// A board for the targets of this policy and so many workers.
    ///
    /// # Panics
    /// Without workers.
    pub fn new(targets: Arc<[Target]>, workers: usize) -> Self {
        assert!(workers > 0, "a board for nobody");
        let sheet = Arc::new(Sheet::new(targets, workers));
        Self {
            workers,
            generation: CachePadded::new(AtomicU64::new(1)),
            sheet: Mutex::new(Arc::clone(&sheet)),
            subscribers: Mutex::default(),
            status: Mutex::new((sheet, Vec::new())),
            unheard: AtomicU64::new(0),
        }
    }

    /// From now on these are the targets, as of a policy that is about to be sent to the workers. A target that was there before goes on as it is.
    pub fn adopt(&self, targets: Arc<[Target]>) {
        let next = Sheet::new(targets, self.workers);
        let mut sheet = lock(&self.sheet);
        let before: HashMap<TargetKey, usize> = sheet.targets.iter().map(|target| target.key).zip(0..).collect();
        for (target, orders) in next.targets.iter().zip(&next.orders) {
            let Some(&former) = before.get(&target.key) else { continue };
            let was_auto = sheet.targets[former].mode == Mode::Auto;
            let engaged = target.mode == Mode::Auto && was_auto && sheet.orders[former].engaged.load(Ordering::Relaxed);
            orders.engaged.store(engaged, Ordering::Relaxed);
        }
        *sheet = Arc::new(next);
        drop(sheet);
        self.tell();
    }

    /// Switches from now on, in a queue of so many: those that find it full are lost, as the coordinator waits for nobody.
    pub fn subscribe(&self, capacity: usize) -> Receiver<Switch> {
        let (sender, receiver) = channel::bounded(capacity);
        lock(&self.subscribers).push(sender);
        receiver
    }

    /// Switches that a subscriber had no room for.
    pub fn unheard(&self) -> u64 {
        self.unheard.load(Ordering::Relaxed)
    }

    /// How every target is: everybody first. Empty until the coordinator has run once.
    pub fn status(&self) -> Vec<TargetStatus> {
        let (sheet, mut status) = lock(&self.status).clone();
        for (number, status) in status.iter_mut().enumerate() {
            status.all = sheet.sum_of_all(number);
        }
        status
    }

    /// The end of this worker.
    pub fn link(self: &Arc<Self>, worker: usize) -> ModeLink {
        let sheet = Arc::clone(&lock(&self.sheet));
        let board = Arc::clone(self);
        ModeLink {
            board,
            worker,
            sheet,
            seen: 0,
            publish_at: Instant::default(),
            last_whole: 0,
            left_whole: 0,
            is_behind: false,
        }
    }

    fn tell(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// A target stops to pass SYNs. Whether it did so far.
    fn engage(&self, orders: &Orders, half_open: u64) -> bool {
        let is_news = !orders.engaged.swap(true, Ordering::Relaxed);
        if is_news {
            orders.noticed.store(half_open, Ordering::Relaxed);
            self.tell();
        }
        is_news
    }

    fn publish(&self, switch: &Switch) {
        tracing::info!("{switch}");
        lock(&self.subscribers).retain(|subscriber| match subscriber.try_send(switch.clone()) {
            Err(channel::TrySendError::Disconnected(_)) => false,
            Err(channel::TrySendError::Full(_)) => {
                self.unheard.fetch_add(1, Ordering::Relaxed);
                true
            }
            Ok(()) => true,
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One worker's end of the board.
pub struct ModeLink {
    board: Arc<ModeBoard>,
    worker: usize,
    sheet: Arc<Sheet>,
    /// The generation that was read last.
    seen: u64,
    /// When counts are published next.
    publish_at: Instant,
    /// The target of which everything was published last, and of how many it has yet to be since frames came.
    last_whole: usize,
    left_whole: usize,
    /// Whether frames have come since the last publication.
    is_behind: bool,
}

impl ModeLink {
    /// Tells the engine what has changed. To be called at the beginning of every iteration; mostly it costs one load.
    #[inline]
    pub fn follow(&mut self, engine: &mut impl Engine, now: Instant) {
        if self.board.generation.load(Ordering::Relaxed) != self.seen {
            self.obey(engine, now);
        }
    }

    #[cold]
    #[inline(never)]
    fn obey(&mut self, engine: &mut impl Engine, now: Instant) {
        // Read before the cells: what changes meanwhile is read once more.
        let generation = self.board.generation.load(Ordering::Acquire);
        self.sheet = Arc::clone(&lock(&self.board.sheet));
        if !self.is_of(engine) {
            // The policy they are of is still on its way to this worker.
            return;
        }
        for (target, orders) in (0..).zip(&self.sheet.orders) {
            let limit = orders.limits[self.worker].load(Ordering::Relaxed);
            engine.direct(target, &Directive { engaged: orders.engaged.load(Ordering::Relaxed), limit }, now);
        }
        self.seen = generation;
    }

    fn is_of(&self, engine: &impl Engine) -> bool {
        engine.targets().is_some_and(|targets| Arc::ptr_eq(targets, &self.sheet.targets))
    }

    /// Passes on what the engine has noticed, at once, and every 10 ms what it has counted. To be called at the end of every iteration; `is_busy` says whether it
    /// had anything to do.
    #[inline]
    pub fn report(&mut self, engine: &mut impl Engine, is_busy: bool, now: Instant) {
        while let Some(target) = engine.next_alarm() {
            self.raise(engine, target);
        }
        if is_busy {
            (self.is_behind, self.left_whole) = (true, self.sheet.targets.len());
        }
        // Not only then: timers change counts as well.
        if now >= self.publish_at {
            self.publish(engine, now);
        }
    }

    /// How long the worker may sleep at most, so that what it has counted is published in time.
    pub fn patience(&self, now: Instant) -> Option<Duration> {
        self.is_behind.then(|| self.publish_at.since(now))
    }

    #[cold]
    fn raise(&mut self, engine: &impl Engine, target: u32) {
        if self.is_of(engine)
            && let Some(orders) = self.sheet.orders.get(target as usize)
        {
            self.board.engage(orders, engine.target_counts(target).half_open);
        }
    }

    #[inline(never)]
    fn publish(&mut self, engine: &impl Engine, now: Instant) {
        (self.publish_at, self.is_behind) = (now + PERIOD, false);
        if !self.is_of(engine) {
            return;
        }
        let is_first = !self.sheet.rows[self.worker].is_written.load(Ordering::Relaxed);
        let row = &self.sheet.rows[self.worker];
        for (target, cell) in (0..).zip(&row.cells) {
            cell.publish(&engine.target_counts(target));
        }
        // All at first, or those that are yet to come would seem to begin anew.
        let now_whole = if is_first { row.cells.len() } else { row.cells.len().min(WHOLE_AT_ONCE) };
        for _ in 0..now_whole {
            self.last_whole = (self.last_whole + 1) % row.cells.len();
            row.cells[self.last_whole].publish_all(engine.counters().of_target(self.last_whole as u32));
        }
        self.left_whole = self.left_whole.saturating_sub(now_whole);
        self.is_behind = self.left_whole > 0;
        row.is_written.store(true, Ordering::Release);
    }
}

/// What the coordinator remembers of a target.
struct History {
    present: Mode,
    since: Instant,
    switches: u64,
    /// Samples of (SYNs answered, clients proved), the oldest as old as a cookie in flight may be.
    flights: VecDeque<(Instant, u64, u64)>,
    /// Samples of SYNs.
    syns: VecDeque<(Instant, u64)>,
    in_flight: u64,
    syn_rate: u64,
    baseline: Baseline,
    /// The greatest values of this second: half-open, rate.
    second: (u64, u64),
}

impl History {
    fn new(present: Mode, now: Instant) -> Self {
        Self {
            present,
            since: now,
            switches: 0,
            flights: VecDeque::new(),
            syns: VecDeque::new(),
            in_flight: 0,
            syn_rate: 0,
            baseline: Baseline::default(),
            second: (0, 0),
        }
    }

    /// Takes note of what has been counted.
    fn note(&mut self, counts: &TargetCounts, in_flight: Duration, now: Instant) {
        let gap = in_flight / SAMPLES;
        if self.flights.back().is_none_or(|(at, ..)| now.since(*at) >= gap) {
            self.flights.push_back((now, counts.answered, counts.proved));
        }
        while self.flights.get(1).is_some_and(|(at, ..)| now.since(*at) >= in_flight) {
            self.flights.pop_front();
        }
        let &(_, answered, proved) = self.flights.front().expect("one has just been added");
        self.in_flight = counts.answered.saturating_sub(answered).saturating_sub(counts.proved.saturating_sub(proved));
        let syns = counts.passed + counts.answered + counts.limited;
        self.syns.push_back((now, syns));
        while self.syns.get(1).is_some_and(|(at, _)| now.since(*at) >= RATE_WINDOW) {
            self.syns.pop_front();
        }
        let &(at, before) = self.syns.front().expect("one has just been added");
        let time = now.since(at);
        if time >= RATE_WINDOW {
            self.syn_rate = (syns.saturating_sub(before) as f64 / time.as_secs_f64()) as u64;
        }
        let pending = if self.present.passes() { counts.half_open } else { self.in_flight };
        self.second = (self.second.0.max(pending), self.second.1.max(self.syn_rate));
    }
}

/// Sums up what the workers publish, and decides.
pub struct Coordinator {
    board: Arc<ModeBoard>,
    sheet: Arc<Sheet>,
    histories: Vec<History>,
    /// When this second of the baselines ends.
    second_ends: Instant,
    /// When what is known was last shown.
    shown_at: Instant,
}

/// What a target in this mode does where nothing is decided yet.
fn first_mode(wanted: Mode, engaged: bool) -> Mode {
    match (wanted, engaged) {
        (Mode::Auto, true) => Mode::Cookie,
        (Mode::Auto, false) => Mode::Pass,
        (mode, _) => mode,
    }
}

impl Coordinator {
    /// That of a board.
    pub fn new(board: Arc<ModeBoard>, now: Instant) -> Self {
        let sheet = Arc::clone(&lock(&board.sheet));
        let histories = sheet.targets.iter().map(|target| History::new(first_mode(target.mode, false), now)).collect();
        Self { board, sheet, histories, second_ends: now + Duration::from_secs(1), shown_at: Instant::default() }
    }

    /// Starts it in a thread of its own, which ends when what is returned is dropped.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub fn start(board: Arc<ModeBoard>) -> io::Result<Coordination> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            privileges::drop_capabilities();
            let mut coordinator = Coordinator::new(board, clock::now());
            while !stopped.load(Ordering::Relaxed) {
                let period = coordinator.tick(clock::now());
                thread::park_timeout(period);
            }
        };
        let thread = thread::Builder::new().name("modes".to_owned()).spawn(run)?;
        Ok(Coordination { stop, thread: Some(thread) })
    }

    /// Sums up and decides once. Returns when the next time is.
    pub fn tick(&mut self, now: Instant) -> Duration {
        let switches = self.switches();
        self.follow_policy(now);
        let ends_second = now >= self.second_ends;
        if ends_second {
            self.second_ends = now + Duration::from_secs(1);
        }
        let Self { board, sheet, histories, .. } = self;
        let all_written = sheet.rows.iter().all(|row| row.is_written.load(Ordering::Acquire));
        let (mut any_auto, mut has_news) = (false, false);
        for (number, (target, history)) in sheet.targets.iter().zip(&mut *histories).enumerate() {
            let counts = sheet.sum(number);
            if all_written {
                history.note(&counts, target.auto.in_flight, now);
            } else {
                // What some count from the beginning of the process on, as others have yet to say, is no change.
                (history.flights, history.syns) = Default::default();
            }
            if target.mode == Mode::Auto {
                any_auto = true;
                has_news |= decide(board, sheet, number, history, &counts, all_written, now);
            }
            if ends_second {
                // What is usual is not learned under attack.
                let (half_open, syn_rate) = std::mem::take(&mut history.second);
                if target.mode != Mode::Auto || history.present.passes() {
                    history.baseline.half_open.add(half_open);
                    history.baseline.syn_rate.add(syn_rate);
                }
            }
        }
        if has_news {
            board.tell();
        }
        if self.switches() != switches || now.since(self.shown_at) >= IDLE_PERIOD {
            self.shown_at = now;
            self.show();
        }
        if any_auto { PERIOD } else { IDLE_PERIOD }
    }

    /// Takes over the targets of another policy.
    fn follow_policy(&mut self, now: Instant) {
        let sheet = Arc::clone(&lock(&self.board.sheet));
        if Arc::ptr_eq(&sheet, &self.sheet) {
            return;
        }
        let former = std::mem::replace(&mut self.sheet, sheet);
        let mut before: HashMap<TargetKey, History> =
            former.targets.iter().map(|target| target.key).zip(self.histories.drain(..)).collect();
        for (target, orders) in self.sheet.targets.iter().zip(&self.sheet.orders) {
            let present = first_mode(target.mode, orders.engaged.load(Ordering::Relaxed));
            let mut history = before.remove(&target.key).unwrap_or_else(|| History::new(present, now));
            // What a worker counts of everybody when there are others is not what it counted when there were none.
            (history.flights, history.syns) = Default::default();
            // What another worker has noticed meanwhile is a switch of its own.
            if history.present != present && target.mode != Mode::Auto {
                switch(&self.board, target, &mut history, present, Reason::Policy, now);
            } else if target.mode == Mode::Auto && !matches!(history.present, Mode::Pass | Mode::Cookie) {
                switch(&self.board, target, &mut history, Mode::Pass, Reason::Policy, now);
            }
            self.histories.push(history);
        }
    }

    /// How often any target has come to another mode.
    fn switches(&self) -> u64 {
        self.histories.iter().map(|history| history.switches).sum()
    }

    /// Shows what is known; of another policy once all workers have said what they have counted, as counters do not fall.
    fn show(&self) {
        let is_known = self.sheet.rows.iter().all(|row| row.is_written.load(Ordering::Acquire));
        let mut shown = lock(&self.board.status);
        let (of, shown) = &mut *shown;
        if !is_known && !Arc::ptr_eq(of, &self.sheet) {
            return;
        }
        *of = Arc::clone(&self.sheet);
        let status = self.sheet.targets.iter().zip(&self.histories).enumerate();
        shown.clear();
        shown.extend(status.map(|(number, (target, history))| TargetStatus {
            target: target.key,
            wanted: target.mode,
            present: history.present,
            since: history.since,
            switches: history.switches,
            counts: self.sheet.sum(number),
            all: Counts::NONE,
            in_flight: history.in_flight,
            syn_rate: history.syn_rate,
            baseline: history.baseline.clone(),
        }));
    }
}

/// Decides on a target in mode `auto`. Whether workers are to be told.
fn decide(
    board: &ModeBoard,
    sheet: &Sheet,
    number: usize,
    history: &mut History,
    counts: &TargetCounts,
    all_written: bool,
    now: Instant,
) -> bool {
    let (target, orders) = (&sheet.targets[number], &sheet.orders[number]);
    let auto = &target.auto;
    let syns = history.syn_rate;
    let is_fast = |limit: u32| auto.enter_syn_rate > 0 && syns >= u64::from(limit);
    let mut has_news = false;
    if !orders.engaged.load(Ordering::Relaxed) {
        // What a worker has noticed comes here as what is engaged.
        if counts.half_open >= u64::from(auto.enter_half_open) {
            board.engage(orders, counts.half_open);
        } else if is_fast(auto.enter_syn_rate) {
            board.engage(orders, counts.half_open);
            switch(board, target, history, Mode::Cookie, Reason::SynRate { syns }, now);
        }
    }
    if orders.engaged.load(Ordering::Relaxed) {
        if history.present != Mode::Cookie {
            let connections = orders.noticed.load(Ordering::Relaxed);
            switch(board, target, history, Mode::Cookie, Reason::HalfOpen { connections }, now);
        }
        let leave = u64::from(auto.leave_half_open.min(auto.enter_half_open));
        let (half_open, in_flight) = (counts.half_open, history.in_flight);
        let is_calm = half_open + in_flight < leave && !is_fast(auto.enter_syn_rate.div_ceil(2));
        if is_calm && all_written && now.since(history.since) >= auto.stay {
            orders.engaged.store(false, Ordering::Relaxed);
            switch(board, target, history, Mode::Pass, Reason::Calm { half_open, in_flight }, now);
            has_news = true;
        }
    }
    for (row, limit) in sheet.rows.iter().zip(&orders.limits) {
        let own = row.cells[number].half_open.load(Ordering::Relaxed);
        let next = share(auto.enter_half_open, own, sheet.rows.len(), counts.half_open);
        if limit.load(Ordering::Relaxed) != next {
            limit.store(next, Ordering::Relaxed);
            has_news = true;
        }
    }
    has_news
}

/// A target has come to another mode.
fn switch(board: &ModeBoard, target: &Target, history: &mut History, to: Mode, why: Reason, now: Instant) {
    let from = std::mem::replace(&mut history.present, to);
    history.since = now;
    history.switches += 1;
    history.second = (0, 0);
    board.publish(&Switch { target: target.key, from, to, why, at: SystemTime::now() });
}

/// The running coordinator; it ends when this is dropped.
pub struct Coordination {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Coordination {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It holds nothing that a panic could spoil.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
