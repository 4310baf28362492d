//! What the operator asks, answered: from the counters that everybody may read, or by the workers themselves.

use crate::backends::{MOST, Refused, Registry};
use crate::clock;
use crate::log::Dial;
use crate::mail::{Answer, Order, Post};
use crate::recorder::Recorder;
use crate::report::lost_on_the_way;
use crate::stats::{self, Board, Snapshot};
use crate::view::Held;
use crate::{talkers, view};
use control::wire::Operation;
use control::{
    CaptureKind, CaptureLimits, Counts, Cursor, Drain, FlowFilter, FlowList, Flows, Interface, Port, Reply, Request,
    Stats, Status, Top, Why,
};
use pktio::PortStatistics;
use pktio::capture::Former;
use rand::TryRng;
use rand::rngs::SysRng;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tcpstate::{DropReason, Event, Rotation, Side, owner};
use tracing::{info, warn};

/// Connections in one reply, about: a slice is not cut in two.
const MOST_FLOWS: usize = 1024;

/// How long one reply's connections are looked for.
const LISTING: Duration = Duration::from_millis(200);

/// What does not change while the box runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// When it began.
    pub begin: Instant,
    /// The interface toward the servers.
    pub lan: Interface,
    /// The interface toward everybody else.
    pub wan: Interface,
    /// Whether everything is forwarded unseen.
    pub bypass: bool,
    /// Whether what the operator says of servers counts.
    pub commanded: bool,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Root, or the user this process runs as: whoever could do with files what it can.
    Own,
    /// Somebody else, who was let in.
    Guest,
}

/// Whoever answers the operator.
pub struct Operator {
    facts: Facts,
    board: Arc<Board>,
    post: Post,
    dial: Dial,
    registry: Arc<Registry>,
    recorder: Recorder,
    progress: Mutex<Progress>,
}

/// What has been begun. Locked while workers are told, so that they are told in order.
#[derive(Default)]
struct Progress {
    /// Since when new connections are kept from the proxy.
    draining: Option<Instant>,
    /// When the last change of the secret will have ended.
    rotation: tcpstate::Instant,
}

impl Operator {
    /// An operator of the box of which this is true, with these workers.
    pub fn new(
        facts: Facts,
        board: Arc<Board>,
        post: Post,
        registry: Arc<Registry>,
        recorder: Recorder,
        dial: Dial,
    ) -> Self {
        Self { facts, board, post, dial, registry, recorder, progress: Mutex::default() }
    }

    /// The answer to a request.
    pub fn answer(&self, request: Request, who: Who) -> Reply {
        match request {
            Request::Captures => Reply::Captures(self.recorder.running()),
            Request::StartCapture { .. } | Request::StopCapture { .. } if who != Who::Own => Reply::refuse(
                Why::Forbidden,
                "captures are written with the rights of the box, so only root and the box's own user start and stop them",
            ),
            Request::StartCapture { kind, path, limits } => self.capture(kind, &path, limits),
            Request::StopCapture { kind } => self.end_capture(kind),
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Stats => Reply::Stats(Box::new(self.stats())),
            Request::Backends => Reply::Backends(self.registry.list()),
            Request::AddBackend(entry) => self.command(&Operation::Add(entry)),
            Request::ModifyBackend(entry) => self.command(&Operation::Modify(entry)),
            Request::DeleteBackend(key) => self.command(&Operation::Delete(key)),
            Request::FlushBackends { address } => self.command(&Operation::Flush(address)),
            Request::Drain { on } => self.drain(on),
            Request::RotateSecrets => self.rotate(),
            Request::Flows { filter, from, limit } => self.flows(&filter, from.unwrap_or_default(), limit),
            Request::Top => Reply::Top(Box::new(self.top())),
            Request::Explain { side, frame, worker } => self.explain(side, &frame, worker),
            Request::SetLogLevel { level } => {
                info!("the operator has messages logged from `{}` on", level.name());
                self.dial.set(level);
                Reply::Done(format!("messages are logged from `{}` on", level.name()))
            }
        }
    }

    /// Changes what is said of servers.
    fn command(&self, operation: &Operation) -> Reply {
        if !self.facts.commanded {
            return Reply::refuse(
                Why::Refused,
                "none of sackmode, mssmode and wscalemode is `commanded`, so nothing would come of it",
            );
        }
        let refusal = match self.registry.apply(std::slice::from_ref(operation))[0] {
            Ok(()) => return Reply::Done("done".to_owned()),
            Err(Refused::Exists) => "there is such an entry already".to_owned(),
            Err(Refused::Absent) => "there is no such entry".to_owned(),
            Err(Refused::Full) => format!("there are {MOST} entries already"),
            Err(Refused::Unknown) => "there is no such operation".to_owned(),
            Err(Refused::Wrong(why)) => why.to_owned(),
        };
        Reply::refuse(Why::Refused, refusal)
    }

    /// Begins a capture.
    fn capture(&self, kind: CaptureKind, path: &Path, limits: CaptureLimits) -> Reply {
        if let Err(why) = limits.check() {
            return view::malformed(why.to_owned());
        }
        if !path.is_absolute() {
            return view::malformed(format!("{} is not a whole path, from / on", path.display()));
        }
        match self.recorder.start(kind, path, limits, Former::Kept) {
            Ok(()) => Reply::Done(format!("{} frames are captured into {}", kind.name(), path.display())),
            Err(error) => Reply::refuse(Why::Refused, format!("cannot capture into {}: {error}", path.display())),
        }
    }

    /// Ends the captures of this kind, or all.
    fn end_capture(&self, kind: Option<CaptureKind>) -> Reply {
        let ended = match kind {
            Some(kind) => self.recorder.stop(kind).into_iter().collect(),
            None => self.recorder.finish(),
        };
        match (ended.is_empty(), kind) {
            (false, _) => Reply::Captures(ended),
            (true, Some(kind)) => Reply::refuse(Why::Refused, format!("no {} frames are being captured", kind.name())),
            (true, None) => Reply::refuse(Why::Refused, "nothing is being captured"),
        }
    }

    /// Begins or ends to keep new connections from the proxy.
    fn drain(&self, on: bool) -> Reply {
        if self.facts.bypass {
            return Reply::refuse(Why::Refused, "everything is forwarded unseen: there is nothing to drain");
        }
        let mut progress = self.progress();
        progress.draining = on.then(|| progress.draining.unwrap_or_else(Instant::now));
        if let Some(refusal) = self.tell(&Order::Drain(on)) {
            return refusal;
        }
        let said = if on {
            "draining: connections from now on pass to their servers unanswered, and unprotected"
        } else {
            "new connections are answered again"
        };
        info!("{said}");
        Reply::Done(said.to_owned())
    }

    /// Changes the secret that cookies are signed with.
    fn rotate(&self) -> Reply {
        if self.facts.bypass {
            return Reply::refuse(Why::Refused, "everything is forwarded unseen: there are no secrets");
        }
        let mut progress = self.progress();
        let now = clock::now();
        if now < progress.rotation {
            let wait = progress.rotation.since(now).as_secs() + 1;
            let message = format!("the last change has not ended; another is possible in {wait} s");
            return Reply::refuse(Why::Refused, message);
        }
        let mut random = [0; 16];
        if let Err(error) = SysRng.try_fill_bytes(&mut random) {
            return Reply::refuse(Why::Refused, format!("the operating system gives no random numbers: {error}"));
        }
        let rotation = Rotation::new(random, now);
        progress.rotation = rotation.ends();
        if let Some(refusal) = self.tell(&Order::Rotate(rotation.clone())) {
            return refusal;
        }
        let [begins, ends] = [rotation.begins(), rotation.ends()].map(|then| then.since(now).as_secs() + 1);
        let said =
            format!("cookies are signed with a new secret in {begins} s, and those of the old one open for {ends} s");
        info!("{said}");
        Reply::Done(said)
    }

    /// Tells every worker; what is to be answered when one of them is silent.
    fn tell(&self, order: &Order) -> Option<Reply> {
        let answers = self.post.ask(order);
        let silent: Vec<String> =
            answers.iter().enumerate().filter(|(_, answer)| answer.is_none()).map(|(n, _)| n.to_string()).collect();
        (!silent.is_empty()).then(|| {
            let message = format!("worker {} has not answered within a second, and may still obey", silent.join(", "));
            warn!("{message}");
            Reply::refuse(Why::Silent, message)
        })
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uptime(&self) -> f64 {
        self.facts.begin.elapsed().as_secs_f64()
    }

    fn status(&self) -> Status {
        // Who has answered has shown what he has counted until then.
        let workers = self.post.ask(&Order::Hello).iter().map(Option::is_some).collect();
        let flows = flows(&self.board.total());
        let left = flows.proxied + flows.half_open;
        let drain = self.progress().draining.map(|since| Drain { since: since.elapsed().as_secs_f64(), left });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.uptime(),
            lan: self.facts.lan.clone(),
            wan: self.facts.wan.clone(),
            workers,
            bypass: self.facts.bypass,
            backends: self.facts.commanded.then(|| self.registry.len()),
            drain,
            log_level: self.dial.level(),
            flows,
        }
    }

    /// A part of the listing of connections: as much as comes in a short while, and fits a reply.
    fn flows(&self, asked: &FlowFilter, from: Cursor, limit: Option<usize>) -> Reply {
        let filter = match view::filter(asked) {
            Ok(filter) => filter,
            Err(wrong) => return view::malformed(wrong),
        };
        let most = limit.unwrap_or(MOST_FLOWS).min(MOST_FLOWS);
        let deadline = Instant::now() + LISTING;
        let (mut flows, mut next) = (Vec::new(), Some(from));
        while let Some(Cursor { worker, place }) = next {
            if worker >= self.post.workers() {
                next = None;
                break;
            }
            if flows.len() >= most || Instant::now() >= deadline {
                break;
            }
            let answer = self.post.ask_some(worker..worker + 1, &Order::List { from: place, filter }).remove(0);
            match answer {
                Some(Answer::Listed(connections, on)) => {
                    flows.extend(connections.iter().map(|connection| view::flow(connection, worker)));
                    next = Some(on.map_or(Cursor { worker: worker + 1, place: 0 }, |place| Cursor { worker, place }));
                }
                // One without connections to tell of.
                Some(_) => next = Some(Cursor { worker: worker + 1, place: 0 }),
                None => return silent(worker),
            }
        }
        Reply::Flows(FlowList { flows, next })
    }

    fn top(&self) -> Top {
        let answers = self.post.ask(&Order::Talk).into_iter().flatten();
        let talk = talkers::merged(answers.filter_map(|answer| match answer {
            Answer::Talk(talk) => Some(talk),
            _ => None,
        }));
        let [sources, targets] = view::talk(&talk);
        Top { stats: self.stats(), period: talk.period.as_secs_f64(), sources, targets }
    }

    /// What would become of a frame, as the worker tells that knows its connection, or else the one it would belong to.
    fn explain(&self, from: control::Side, text: &str, worker: Option<usize>) -> Reply {
        let frame: Arc<[u8]> = match view::frame(text) {
            Ok(frame) => frame.into(),
            Err(wrong) => return view::malformed(wrong),
        };
        let workers = match worker {
            Some(worker) if worker >= self.post.workers() => {
                let last = self.post.workers().saturating_sub(1);
                return view::malformed(format!("there is no worker {worker}; the last is {last}"));
            }
            Some(worker) => worker..worker + 1,
            None => 0..self.post.workers(),
        };
        let side = view::engine_side(from);
        let answers = self.post.ask_some(workers.clone(), &Order::Explain { side, frame: frame.clone() });
        let mut told = Vec::new();
        for (answer, worker) in answers.into_iter().zip(workers) {
            match answer {
                Some(Answer::Excerpt(excerpt)) => told.push((worker, *excerpt)),
                Some(_) => return Reply::refuse(Why::Refused, "everything is forwarded unseen here (--bypass)"),
                None => return silent(worker),
            }
        }
        let knows = told.iter().position(|(_, excerpt)| excerpt.knows_connection());
        let owner = told.first().map_or(0, |(_, excerpt)| owner::share(excerpt.hash(), told.len()));
        let (worker, excerpt) = told.swap_remove(knows.unwrap_or(owner));
        let mut held = Held::new(&frame);
        let mut head = held.head();
        let explanation = excerpt.explain(&mut head, clock::now());
        Reply::Explained(Box::new(view::explained(worker, side, &frame, head.bytes(), explanation)))
    }

    fn stats(&self) -> Stats {
        let workers: Vec<Snapshot> = self.board.workers().collect();
        Stats {
            uptime: self.uptime(),
            workers: workers.iter().map(counts).collect(),
            total: counts(&workers.into_iter().sum()),
        }
    }
}

fn silent(worker: usize) -> Reply {
    Reply::refuse(Why::Silent, format!("worker {worker} does not answer"))
}

fn flows(snapshot: &Snapshot) -> Flows {
    let population = snapshot.population();
    Flows { proxied: population.proxied, direct: population.passthrough, half_open: population.syn_cached }
}

/// A snapshot with a name for every number.
fn counts(snapshot: &Snapshot) -> Counts {
    let port = |statistics: &PortStatistics| -> Port {
        stats::named(statistics).into_iter().map(|(name, count)| (name.replace('_', "-"), count)).collect()
    };
    let stage = snapshot.stage();
    Counts {
        lan: port(&snapshot.port(Side::Lan)),
        wan: port(&snapshot.port(Side::Wan)),
        flows: flows(snapshot),
        held: snapshot.held(),
        events: Event::ALL.iter().map(|&event| (event.label().to_owned(), snapshot.happened(event))).collect(),
        drops: DropReason::ALL.iter().map(|&reason| (reason.label().to_owned(), snapshot.dropped(reason))).collect(),
        losses: lost_on_the_way(snapshot).map(|(count, place)| (place.to_owned(), count)).collect(),
        crossed: snapshot.crossed().named().into_iter().map(|(name, count)| (name.replace('_', "-"), count)).collect(),
        wakes: snapshot.wakes(),
        orders: (Order::COMMANDS.iter().zip(snapshot.orders()))
            .map(|(command, longest)| ((*command).to_owned(), longest.as_nanos() as u64))
            .collect(),
        timed_frames: stage.frames,
        timed_nanoseconds: u64::try_from(stage.time.as_nanos()).unwrap_or(u64::MAX),
    }
}
