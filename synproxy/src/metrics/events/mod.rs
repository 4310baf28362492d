//! Events: what the box reports by itself of attacks, modes, links and workers, as records that go to the log, to a file, to a syslog server
//! and to a command, and that `synctl events` shows.
//!
//! Nothing of it is on the packet path. Who has something to report gives it to a [`Sender`], which never waits: a bounded queue, and a
//! counter of what did not fit it. One thread, the reporter, takes the queue, looks once a second at what the workers have published
//! ([`attack`] detects attacks in it), and keeps the last records. Each output has a thread and a bounded queue of its own ([`output`]), so that a disk
//! that is full, a syslog server that is gone, or a command that hangs delays no other, and nobody else.

pub mod attack;
mod command;
mod file;
mod output;
mod sink;
mod syslog;

use self::attack::{Detector, Load};
use self::output::Outputs;
use self::sink::Delivery;
use super::descriptors::{DeliveryMetric, EventKind, HandoffMetric, Metric, Notice, PortMetric, WorkerMetric};
use super::snapshot::{Board, Snapshot};
use super::top_talkers::{SynReport, TalkerReport, Tally};
use crate::process::clock;
use crate::process::exit::Failure;
use crate::process::link_monitor::{Condition, LinkReport};
use crate::process::privileges;
pub use ::control::{Event, Record};
use crossbeam::channel::{self, Receiver, RecvTimeoutError, TrySendError};
use pktio::ShedSamples;
use std::collections::VecDeque;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tcpstate::Event as Counted;
use tracing::{error, info, warn};

/// Events that may wait for the reporter.
const WAITING: usize = 1024;

/// Records kept for `synctl events`.
const KEPT: usize = 256;

/// How often the reporter looks at what the workers have published.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A worker whose window of SYNs is older than this has published none lately.
const WINDOW_STANDS: Duration = Duration::from_secs(5);

/// Looks after which a worker that has served no port is stalled: it does so several times a second even without frames.
const LOOKS_TO_STALL: u64 = 5;

/// Looks in a row with losses, of one frame in this many, after which the box is said to lose frames: what the rings lose at the beginning of a flood is
/// no lack of capacity.
const LOSSY_LOOKS: u32 = 3;
const LOSSY_PART: u64 = 100;

/// How long others wait for the reporter at most: the end of the process, until the outputs have delivered, and a change of its settings.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the reporter receives.
enum Message {
    Event(Event),
    Settings(Box<confparse::Events>),
    End,
}

/// Reports events, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Sender {
    queue: channel::Sender<Message>,
    delivery: Arc<Delivery>,
}

impl Sender {
    /// Reports an event. Never waits: with too many events on their way it is counted as dropped.
    pub fn send(&self, event: Event) {
        // Without a reporter nobody wants it: the process ends.
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Message::Event(event)) {
            self.delivery.count(DeliveryMetric::Dropped);
        }
    }

    /// Has the reporter follow other settings. Waits while its queue is full, for two seconds at most; false if it was full all the time.
    pub fn follow(&self, settings: &confparse::Events) -> bool {
        self.queue.send_timeout(Message::Settings(Box::new(settings.clone())), PATIENCE).is_ok()
    }
}

/// What the thread that supervises workers and links reports.
pub struct Supervision {
    sender: Sender,
    /// The interfaces of LAN and WAN.
    names: [String; 2],
    links: [Option<LinkReport>; 2],
}

impl Supervision {
    /// Reports for the box between these ports.
    pub fn new(sender: Sender, [lan, wan]: [&str; 2]) -> Self {
        Self { sender, names: [plain(lan).to_owned(), plain(wan).to_owned()], links: [None; 2] }
    }

    /// Reports what has changed of the links, LAN first.
    pub fn links(&mut self, links: [Option<LinkReport>; 2]) {
        for (side, (link, before)) in links.into_iter().zip(self.links).enumerate() {
            let Some(link) = link else { continue };
            let port = [::control::Side::Lan, ::control::Side::Wan][side];
            let interface = self.names[side].clone();
            let (condition, lost, changed) =
                before.map_or((Condition::Up, 0, 0), |before| (before.condition, before.lost, before.settings_changed));
            if link.condition != condition || link.lost != lost {
                let (condition, interface) = (link.condition.into(), interface.clone());
                self.sender.send(Event::LinkChanged { port, interface, condition, lost: link.lost });
            }
            if link.settings_changed != changed {
                self.sender.send(Event::SettingsChanged { port, interface, times: link.settings_changed });
            }
        }
        self.links = links;
    }

    /// Reports why the box ends.
    pub fn failed(&self, failure: &Failure) {
        self.sender.send(Event::BoxFailed { why: failure.to_string() });
    }
}

/// The other end of a [`Sender`].
pub struct Inbox {
    queue: Receiver<Message>,
    sender: Sender,
}

/// A bounded queue for events, which [`Events::start`] takes up.
pub fn channel() -> (Sender, Inbox) {
    let (send, queue) = channel::bounded(WAITING);
    let sender = Sender { queue: send, delivery: Arc::default() };
    (sender.clone(), Inbox { queue, sender })
}

/// What the operator can ask for.
#[derive(Default)]
pub struct Journal {
    records: Mutex<VecDeque<Record>>,
    shed: Mutex<TalkerReport>,
}

impl Journal {
    /// The last events with a larger number than `after`, the oldest first.
    pub fn after(&self, after: u64) -> Vec<Record> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.iter().filter(|record| record.number > after).cloned().collect()
    }

    /// The top talkers among the SYNs that the XDP program has shed in the last window, which no worker sees.
    pub fn shed_talkers(&self) -> TalkerReport {
        self.shed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, record: Record) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() == KEPT {
            records.pop_front();
        }
        records.push_back(record);
    }
}

/// The running reporter.
pub struct Events {
    sender: Sender,
    journal: Arc<Journal>,
    /// Disconnected when the reporter and the outputs have ended.
    over: Receiver<()>,
}

impl Events {
    /// Starts the reporter of the box between these ports, whose workers publish on `board`, and the outputs of the configuration. `samples` are those of
    /// the XDP program that sheds.
    ///
    /// # Errors
    /// When no thread can be created.
    pub fn start(
        inbox: Inbox,
        settings: &confparse::Events,
        [lan, wan]: [&str; 2],
        board: Arc<Board>,
        samples: Option<ShedSamples>,
    ) -> Result<Self, Failure> {
        let Inbox { queue, sender } = inbox;
        let (alive, over) = channel::bounded(0);
        let outputs = Outputs::start(settings, &sender.delivery, alive)?;
        let journal = Arc::<Journal>::default();
        let mut reporter = Reporter {
            queue,
            outputs,
            journal: Arc::clone(&journal),
            delivery: Arc::clone(&sender.delivery),
            detector: Detector::new(settings.clone()),
            watch: Watch::new(board),
            samples: samples.map(|samples| (samples, Tally::new(clock::now()))),
            host: host(),
            appliance: format!("{}-{}", plain(lan), plain(wan)),
            number: 0,
            reported: [0; EventKind::COUNT],
        };
        let work = move || {
            privileges::enter_control_thread();
            reporter.run();
        };
        thread::Builder::new().name("events".to_owned()).spawn(work).map_err(Failure::Spawn)?;
        Ok(Self { sender, journal, over })
    }

    /// Where events are given to it.
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// What it keeps.
    pub fn journal(&self) -> Arc<Journal> {
        Arc::clone(&self.journal)
    }

    /// Delivers what waits, for two seconds at most.
    pub fn finish(self) {
        // Its queue may be full of events, and then it takes one after the other.
        let _ = self.sender.queue.send_timeout(Message::End, PATIENCE);
        // Nothing is ever sent: the wait ends when all have ended, or the time is over.
        let _ = self.over.recv_timeout(PATIENCE);
    }
}

/// The name of the machine; empty where there is none.
fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}

/// The name of an interface without its I/O backend.
fn plain(port: &str) -> &str {
    ["xdp:", "packet:", "netmap:"].iter().find_map(|prefix| port.strip_prefix(prefix)).unwrap_or(port)
}

/// The thread that reports.
struct Reporter {
    queue: Receiver<Message>,
    outputs: Outputs,
    journal: Arc<Journal>,
    delivery: Arc<Delivery>,
    detector: Detector,
    watch: Watch,
    samples: Option<(ShedSamples, Tally)>,
    host: String,
    appliance: String,
    /// The number of the last event.
    number: u64,
    reported: [u64; EventKind::COUNT],
}

impl Reporter {
    fn run(&mut self) {
        let mut due = Instant::now() + LOOK_EVERY;
        loop {
            match self.queue.recv_deadline(due) {
                Ok(Message::Event(event)) => self.report(event),
                Ok(Message::Settings(settings)) => self.follow(*settings),
                Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            if now >= due {
                due = now + LOOK_EVERY;
                self.look(now);
            }
            self.publish();
        }
        self.publish();
    }

    /// Follows other settings. Attacks that last go on.
    fn follow(&mut self, settings: confparse::Events) {
        if let Err(failure) = self.outputs.follow(&settings) {
            error!("an output of events is not started: {failure}");
        }
        self.detector.set(settings);
    }

    /// Looks at what the workers have published, and reports what it says.
    fn look(&mut self, now: Instant) {
        let mut shed = None;
        if let Some((samples, tally)) = &mut self.samples {
            samples.read(|sample| tally.shed(&sample));
            if let Some((talkers, syns)) = tally.advance(clock::now()) {
                *self.journal.shed.lock().unwrap_or_else(PoisonError::into_inner) = talkers;
                shed = Some(syns);
            }
        }
        let (load, events) = self.watch.look(now, shed);
        let attacks = load.map(|load| self.detector.step(now, unix_seconds(SystemTime::now()), &load));
        events.into_iter().chain(attacks.into_iter().flatten()).for_each(|event| self.report(event));
    }

    /// Gives an event a number and a time, and passes it on.
    fn report(&mut self, event: Event) {
        self.number += 1;
        self.reported[kind(&event) as usize] += 1;
        log(&event);
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let record =
            Record { number: self.number, time, host: self.host.clone(), appliance: self.appliance.clone(), event };
        self.outputs.send(&record);
        self.journal.keep(record);
    }

    fn publish(&self) {
        let mut snapshot = Snapshot::default();
        for (&kind, count) in EventKind::ALL.iter().zip(self.reported) {
            snapshot.set(kind, count);
        }
        for &metric in DeliveryMetric::ALL {
            snapshot.set(metric, self.delivery.get(metric));
        }
        snapshot.set(Notice::Attacks, self.detector.attacks() as u64);
        self.watch.board.publish_events(&snapshot);
    }
}

/// The counter of an event.
fn kind(event: &Event) -> EventKind {
    match event {
        Event::AttackBegin(_) => EventKind::AttackBegin,
        Event::AttackUpdate(_) => EventKind::AttackUpdate,
        Event::AttackPeak(_) => EventKind::AttackPeak,
        Event::AttackEnd(_) => EventKind::AttackEnd,
        Event::ModeSwitched { .. } => EventKind::ModeSwitched,
        Event::ServerUp { .. } => EventKind::ServerUp,
        Event::ServerDown { .. } => EventKind::ServerDown,
        Event::LinkChanged { .. } => EventKind::LinkChanged,
        Event::SettingsChanged { .. } => EventKind::SettingsChanged,
        Event::WorkerStalled { .. } => EventKind::WorkerStalled,
        Event::WorkerResumed { .. } => EventKind::WorkerResumed,
        Event::BoxFailed { .. } => EventKind::BoxFailed,
    }
}

/// A line of the log. What others log already is not repeated.
fn log(event: &Event) {
    match event {
        Event::ModeSwitched { .. }
        | Event::LinkChanged { .. }
        | Event::SettingsChanged { .. }
        | Event::BoxFailed { .. } => {}
        Event::AttackBegin(_) | Event::WorkerStalled { .. } | Event::ServerDown { .. } => {
            warn!("{}: {event}", event.name())
        }
        _ => info!("{}: {event}", event.name()),
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What the workers have published, from one look to the next.
struct Watch {
    board: Arc<Board>,
    /// The last window of SYNs of each worker, and behind them that of what the XDP program has shed, with the time it was seen.
    windows: Vec<Option<(Instant, SynReport)>>,
    /// The total at the last look.
    before: Option<(Instant, Snapshot)>,
    /// Poll iterations of each worker, and for how many looks they have been the same.
    iterations: Vec<(u64, u64)>,
    /// Looks in a row with losses.
    lossy: u32,
}

impl Watch {
    fn new(board: Arc<Board>) -> Self {
        let workers = board.workers().count();
        let (windows, iterations) = (vec![None; workers + 1], vec![(0, 0); workers]);
        Self { board, windows, before: None, iterations, lossy: 0 }
    }

    /// The load since the last look, if any window of SYNs is new, and what has happened to workers.
    fn look(&mut self, now: Instant, shed: Option<SynReport>) -> (Option<Load>, Vec<Event>) {
        let workers: Vec<Snapshot> = self.board.workers().collect();
        let events = self.stalls(&workers);
        let mut is_new = false;
        for (place, window) in self.windows.iter_mut().zip(self.board.take_syns().into_iter().chain([shed])) {
            if let Some(window) = window {
                is_new = true;
                *place = Some((now, window));
            } else if place.as_ref().is_some_and(|(then, _)| now - *then > WINDOW_STANDS) {
                *place = None;
            }
        }
        let total: Snapshot = workers.into_iter().sum();
        let Some((then, before)) = self.before.replace((now, total.clone())) else { return (None, events) };
        let change = total.since(&before);
        self.lossy = if loses(&change) { self.lossy + 1 } else { 0 };
        if !is_new {
            return (None, events);
        }
        let millis = u64::try_from((now - then).as_millis()).unwrap_or(u64::MAX).max(1);
        let proved = (change.get(Counted::CookieGood) + change.get(Counted::CacheHit)) * 1000 / millis;
        let mut load = Load::new(proved, self.lossy >= LOSSY_LOOKS);
        self.windows.iter().flatten().for_each(|(_, window)| load.add(window));
        (Some(load), events)
    }

    /// Workers that have stalled since the last look, or go on.
    fn stalls(&mut self, workers: &[Snapshot]) -> Vec<Event> {
        let mut events = Vec::new();
        for (worker, (snapshot, (iterations, looks))) in workers.iter().zip(&mut self.iterations).enumerate() {
            let now = snapshot.get(WorkerMetric::PollIterations);
            if now != *iterations {
                if *looks >= LOOKS_TO_STALL {
                    events.push(Event::WorkerResumed { worker });
                }
                (*iterations, *looks) = (now, 0);
            } else if now > 0 {
                *looks += 1;
                if *looks == LOOKS_TO_STALL {
                    events.push(Event::WorkerStalled { worker, seconds: LOOKS_TO_STALL * LOOK_EVERY.as_secs() });
                }
            }
        }
        events
    }
}

/// Whether frames from the WAN were lost because the box could not take them, as many as matter.
fn loses(change: &Snapshot) -> bool {
    let of_wan = [PortMetric::ReceiveFull, PortMetric::KernelDrops, PortMetric::NoBuffer];
    let lost = of_wan.iter().map(|&metric| change.get(Metric::Wan(metric))).sum::<u64>()
        + change.get(HandoffMetric::QueueFull);
    lost > 0 && lost * LOSSY_PART >= change.get(Metric::Wan(PortMetric::Received))
}

#[cfg(test)]
mod tests;
