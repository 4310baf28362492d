//! The control API: answers the requests of the control socket from the published statistics, or by commands to the workers.

use super::lists::ListRegistry;
use super::reload::{Origin, Reloader};
use super::servers::{MAX_ENTRIES, Refused, ServerRegistry};
use super::views::{self, Destination};
use crate::dataplane::commands::{Answer, Command, CommandSender};
use crate::dataplane::frame_buffer::FrameBuffer;
use crate::dataplane::modes::ModeBoard;
use crate::metrics::capture::Captures;
use crate::metrics::descriptors::{ControlMetric, FORMER_LOSSES, Family, FlowGauge, Notice, WorkerMetric};
use crate::metrics::events::Journal;
use crate::metrics::snapshot::{Board, Snapshot};
use crate::metrics::targets::TargetStatus;
use crate::metrics::top_talkers;
use crate::process::clock;
use crate::process::log::{AUDIT, LogControl};
use crate::state::Keeper;
use ::control::wire::Operation;
use ::control::{
    Access, CaptureKind, CaptureLimits, Counts, Cursor, Drain, FlowFilter, FlowList, Flows, Interface, Refusal, Reply,
    Request, Role, ServiceState, Stats, Status, Top, Whoami, Why,
};
use pktio::capture::ExistingFile;
use rand::TryRng;
use rand::rngs::SysRng;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tcpstate::{Connection, Filter, Rotation, owner};
use tracing::{debug, info, warn};

/// Connections in one reply, about: the part of one worker's answer is not cut.
const MAX_FLOWS: usize = 1024;

/// How long a reply takes to leave, if the process ends because of it.
const REPLY_LEAVES: Duration = Duration::from_millis(50);

/// How long connections are collected for one reply.
const LISTING_TIME: Duration = Duration::from_millis(200);

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// When it started.
    pub begin: Instant,
    /// The interface toward the servers.
    pub lan: Interface,
    /// The interface toward everybody else.
    pub wan: Interface,
    /// Whether frames are forwarded without the engine (`--bypass`).
    pub bypass: bool,
    /// Whether there can be services.
    pub has_services: bool,
}

/// A client that sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its user.
    pub user: u32,
    /// What it may do.
    pub role: Role,
}

/// Answers requests.
pub struct ControlApi {
    facts: Facts,
    board: Arc<Board>,
    workers: CommandSender,
    log: LogControl,
    servers: Arc<ServerRegistry>,
    lists: Arc<ListRegistry>,
    captures: Captures,
    journal: Arc<Journal>,
    reloader: Arc<Reloader>,
    modes: Option<Arc<ModeBoard>>,
    state: Option<Arc<Keeper>>,
    stop: Arc<dyn Fn() + Send + Sync>,
    progress: Mutex<Progress>,
}

/// Operations in progress. Locked while the workers get a command, so that they get all commands in order.
#[derive(Default)]
struct Progress {
    /// Since when the box drains.
    draining: Option<Instant>,
    /// When the last rotation of the secret is complete.
    rotation: tcpstate::Instant,
}

/// What an operator asks besides the workers.
pub struct Services {
    /// The lists of clients.
    pub lists: Arc<ListRegistry>,
    /// The captures that run.
    pub captures: Captures,
    /// The last events.
    pub journal: Arc<Journal>,
    /// The level of the log.
    pub log: LogControl,
    /// The configuration.
    pub reloader: Arc<Reloader>,
    /// Where modes of destinations are decided, unless the engine is bypassed.
    pub modes: Option<Arc<ModeBoard>>,
    /// The state that outlives the process, if any does.
    pub state: Option<Arc<Keeper>>,
    /// Ends the process as a signal does.
    pub stop: Arc<dyn Fn() + Send + Sync>,
}

impl ControlApi {
    /// The API of the box with these facts and workers.
    pub fn new(
        facts: Facts,
        board: Arc<Board>,
        workers: CommandSender,
        servers: Arc<ServerRegistry>,
        Services { lists, captures, journal, log, reloader, modes, state, stop }: Services,
    ) -> Self {
        Self {
            facts,
            board,
            workers,
            log,
            servers,
            lists,
            captures,
            journal,
            reloader,
            modes,
            progress: Mutex::new(Progress {
                draining: None,
                rotation: state.as_ref().map_or_else(Default::default, |state| state.rotation()),
            }),
            state,
            stop,
        }
    }

    /// How every destination that has a mode of its own is; nothing where nothing decides modes.
    pub fn target_status(&self) -> Vec<TargetStatus> {
        self.modes.as_ref().map_or_else(Vec::new, |modes| modes.status())
    }

    /// The answer to a request of this client, if its role permits the request. What changes something is logged and counted.
    pub fn serve(&self, request: Request, client: Client) -> Reply {
        let Client { user, role } = client;
        let (needed, access) = request.access();
        let asked = (access == Access::Changes).then(|| in_words(&request));
        if role < needed {
            self.board.count(ControlMetric::Forbidden);
            if let Some(asked) = asked {
                info!(target: AUDIT, "user {user} ({role}) is refused {asked}: it takes the role {needed}");
            }
            return Reply::refuse(Why::Forbidden, takes_role(&request, needed, role));
        }
        let reply = self.answer(request, client);
        match (asked, &reply) {
            (None, _) => {}
            (Some(asked), Reply::Error(refusal)) => {
                info!(target: AUDIT, "user {user} ({role}): {asked}: {}", first_line(refusal))
            }
            (Some(asked), _) => {
                self.board.count(ControlMetric::Changes);
                info!(target: AUDIT, "user {user} ({role}): {asked}");
            }
        }
        reply
    }

    /// The answer to a client that has no role.
    pub fn not_admitted(&self) -> Reply {
        self.board.count(ControlMetric::Forbidden);
        Reply::refuse(
            Why::Forbidden,
            "not permitted: run as root, as the box's own user, or as a member of a group that the configuration admits (control_read, \
             control_operate, control_admin)",
        )
    }

    /// The answer to a request that the client may send.
    fn answer(&self, request: Request, Client { user, role }: Client) -> Reply {
        match request {
            Request::Whoami => Reply::Whoami(Whoami { user, role }),
            Request::Config => Reply::Config(self.reloader.configuration()),
            Request::Reload => self.reloader.reload(&Origin::File),
            Request::LoadConfig { name, text } => self.reloader.reload(&Origin::Text { name, text }),
            Request::Captures => Reply::Captures(self.captures.running()),
            Request::StartCapture { kind, path, limits } => self.start_capture(kind, &path, limits),
            Request::StopCapture { kind } => self.stop_capture(kind),
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Stats => Reply::Stats(Box::new(self.stats())),
            Request::Servers => Reply::Servers(self.servers.list()),
            Request::Backends => Reply::Backends(self.servers.list()),
            Request::AddServer(entry) => self.change_servers(&Operation::Add(entry)),
            Request::ModifyServer(entry) => self.change_servers(&Operation::Modify(entry)),
            Request::DeleteServer(key) => self.change_servers(&Operation::Delete(key)),
            Request::FlushServers { address } => self.change_servers(&Operation::Flush(address)),
            Request::Lists => Reply::Lists(self.lists.counts()),
            Request::List { list, from } => Reply::List(self.lists.page(list, from)),
            Request::AddToList { .. }
            | Request::RemoveFromList { .. }
            | Request::ReplaceList { .. }
            | Request::ResetBlocked
                if self.facts.bypass =>
            {
                Reply::refuse(Why::Refused, "the box bypasses the engine: lists have no effect")
            }
            Request::AddToList { list, networks } => done(self.lists.add(list, &networks)),
            Request::RemoveFromList { list, networks } => done(self.lists.remove(list, &networks)),
            Request::ReplaceList { list, networks, upload, last } => {
                done(self.lists.replace(list, &networks, upload, last))
            }
            Request::ResetBlocked => self.reset_blocked(),
            Request::Drain { on } => self.drain(on),
            Request::Stop => self.end(),
            Request::RotateSecrets => self.rotate(),
            Request::Flows { filter, from, limit } => self.flows(&filter, from.unwrap_or_default(), limit, role),
            Request::Events { after } => Reply::Events(self.journal.after(after)),
            Request::Policy => Reply::Policy(self.target_status().iter().map(views::destination).collect()),
            Request::SuggestPolicy => Reply::Suggested(self.target_status().iter().map(views::suggested).collect()),
            Request::Services => Reply::Services(self.services()),
            Request::DrainServer { address, port, on } => self.drain_server(address, port, on),
            Request::Top => Reply::Top(Box::new(self.top())),
            Request::Explain { side, frame, worker } => self.explain(side, &frame, worker, role),
            Request::SetLogLevel { level } => {
                self.log.set(level);
                Reply::Done(format!("the log level is `{}`", level.name()))
            }
        }
    }

    /// Changes the server table.
    fn change_servers(&self, operation: &Operation) -> Reply {
        if !self.reloader.is_commanded() {
            return Reply::refuse(
                Why::Refused,
                "none of sackmode, mssmode and wscalemode is `commanded`, so this would have no effect",
            );
        }
        let refusal = match self.servers.apply(std::slice::from_ref(operation))[0] {
            Ok(()) => return Reply::Done("done".to_owned()),
            Err(Refused::Exists) => "there is such an entry already".to_owned(),
            Err(Refused::Absent) => "there is no such entry".to_owned(),
            Err(Refused::Full) => format!("there are {MAX_ENTRIES} entries already"),
            Err(Refused::Unknown) => "there is no such operation".to_owned(),
            Err(Refused::Invalid(why)) => why.to_owned(),
        };
        Reply::refuse(Why::Refused, refusal)
    }

    fn start_capture(&self, kind: CaptureKind, path: &Path, limits: CaptureLimits) -> Reply {
        if let Err(why) = limits.check() {
            return views::malformed(why.to_owned());
        }
        if !path.is_absolute() {
            return views::malformed(format!("{} is not an absolute path", path.display()));
        }
        match self.captures.start(kind, path, limits, ExistingFile::Refuse) {
            Ok(()) => Reply::Done(format!("{} frames are captured into {}", kind.name(), path.display())),
            Err(error) => {
                let advice = pktio::advice(&error);
                Reply::refuse(Why::Refused, format!("cannot capture into {}: {error}{advice}", path.display()))
            }
        }
    }

    /// Ends the capture of this kind, or all captures.
    fn stop_capture(&self, kind: Option<CaptureKind>) -> Reply {
        let ended = match kind {
            Some(kind) => self.captures.stop(kind).into_iter().collect(),
            None => self.captures.finish(),
        };
        match (ended.is_empty(), kind) {
            (false, _) => Reply::Captures(ended),
            (true, Some(kind)) => Reply::refuse(Why::Refused, format!("no {} frames are being captured", kind.name())),
            (true, None) => Reply::refuse(Why::Refused, "nothing is being captured"),
        }
    }

    /// Resets the connections of blocked clients.
    fn reset_blocked(&self) -> Reply {
        if let Some(refusal) = self.command_all(&Command::ResetBlocked) {
            return refusal;
        }
        Reply::Done(
            "the connections of clients in the list `block` are being reset; `blocked-reset` counts them".to_owned(),
        )
    }

    /// Starts or stops passing new connections through.
    fn drain(&self, on: bool) -> Reply {
        if self.facts.bypass {
            return Reply::refuse(Why::Refused, "the box bypasses the engine: there is nothing to drain");
        }
        let mut progress = self.progress();
        progress.draining = on.then(|| progress.draining.unwrap_or_else(Instant::now));
        if let Some(refusal) = self.command_all(&Command::Drain(on)) {
            return refusal;
        }
        let message = if on {
            "draining: new connections pass through to their servers, unprotected"
        } else {
            "new connections are answered again"
        };
        Reply::Done(message.to_owned())
    }

    /// Gives a server of services no connections anew, or some again.
    fn drain_server(&self, address: IpAddr, port: u16, on: bool) -> Reply {
        let command = Command::DrainServer { address: views::engine_address(address), port, drained: on };
        let answers = self.workers.send(&command);
        if let Some(silent) = answers.iter().position(Option::is_none) {
            return self::silent(silent);
        }
        let server = SocketAddr::new(address, port);
        if answers.iter().flatten().any(|answer| matches!(answer, Answer::NoServer)) {
            return Reply::refuse(Why::Refused, format!("no service names the server {server}"));
        }
        let message = if on {
            format!("{server} gets no new connections; `synctl services` shows how many it has left")
        } else {
            format!("{server} gets new connections again")
        };
        Reply::Done(message)
    }

    /// Services and their servers: what all workers have counted together.
    pub fn services(&self) -> Vec<ServiceState> {
        if !self.facts.has_services {
            return Vec::new();
        }
        let answers = self.workers.send(&Command::Services).into_iter().flatten();
        let of_workers = answers.filter_map(|answer| match answer {
            Answer::Services(services) => Some(services),
            _ => None,
        });
        views::services(of_workers)
    }

    /// Ends the box, and leaves nothing of its state.
    fn end(&self) -> Reply {
        if let Some(state) = &self.state {
            state.end();
        }
        // The reply leaves before the process does.
        let stop = Arc::clone(&self.stop);
        let end = move || {
            thread::sleep(REPLY_LEAVES);
            stop();
        };
        if let Err(error) = thread::Builder::new().name("stop".to_owned()).spawn(end) {
            debug!("the box ends before it has replied: {error}");
            (self.stop)();
        }
        Reply::Done("the box ends, and leaves nothing of its state: its connections are lost".to_owned())
    }

    /// Changes the secret of the cookies.
    fn rotate(&self) -> Reply {
        if self.facts.bypass {
            return Reply::refuse(Why::Refused, "the box bypasses the engine: there are no secrets");
        }
        let mut progress = self.progress();
        let now = clock::now();
        if now < progress.rotation {
            let wait = progress.rotation.since(now).as_secs() + 1;
            let message = format!("the last change is not complete; another is possible in {wait} s");
            return Reply::refuse(Why::Refused, message);
        }
        let mut random = [0; 16];
        if let Err(error) = SysRng.try_fill_bytes(&mut random) {
            return Reply::refuse(Why::Refused, format!("the operating system gives no random numbers: {error}"));
        }
        let rotation = Rotation::new(random, clock::cookie_clock(), now);
        progress.rotation = rotation.ends();
        if let Some(refusal) = self.command_all(&Command::Rotate(rotation.clone())) {
            return refusal;
        }
        if let Some(state) = &self.state {
            state.rotate(&rotation);
        }
        let [begins, ends] = [rotation.begins(), rotation.ends()].map(|then| then.since(now).as_secs() + 1);
        let message =
            format!("cookies use a new secret in {begins} s, and those of the old secret are accepted for {ends} s");
        Reply::Done(message)
    }

    /// Sends a command to every worker; returns the refusal if one of them does not answer.
    fn command_all(&self, command: &Command) -> Option<Reply> {
        let answers = self.workers.send(command);
        let silent: Vec<String> =
            answers.iter().enumerate().filter(|(_, answer)| answer.is_none()).map(|(n, _)| n.to_string()).collect();
        (!silent.is_empty()).then(|| {
            let message =
                format!("worker {} has not answered within a second, and may still execute it", silent.join(", "));
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
        // A worker publishes its statistics before it answers, so they are as new as the answer.
        let workers = self.workers.send(&Command::Ping).iter().map(Option::is_some).collect();
        let total = self.board.total();
        let flows = flows(&total);
        let now = Instant::now();
        let [lan, wan] = self.board.links().map(|link| link.map(|link| views::link(&link, now)));
        let left = flows.proxied + flows.half_open;
        let drain = self.progress().draining.map(|since| Drain { since: since.elapsed().as_secs_f64(), left });
        let servers = self.reloader.is_commanded().then(|| self.servers.count());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.uptime(),
            lan: Interface { link: lan, ..self.facts.lan.clone() },
            wan: Interface { link: wan, ..self.facts.wan.clone() },
            workers,
            bypass: self.facts.bypass,
            ports_swapped: total.get(Notice::PortsSwapped) > 0,
            servers,
            backends: servers,
            drain,
            log_level: self.log.level(),
            flows,
        }
    }

    /// A part of the listing of connections: as much as is collected in a short time and fits a reply.
    fn flows(&self, filter: &FlowFilter, from: Cursor, limit: Option<usize>, role: Role) -> Reply {
        let filter = match views::filter(filter) {
            Ok(filter) => filter,
            Err(wrong) => return views::malformed(wrong),
        };
        let most = limit.unwrap_or(MAX_FLOWS).min(MAX_FLOWS);
        let deadline = Instant::now() + LISTING_TIME;
        let (mut flows, mut next) = (Vec::new(), Some(from));
        while let Some(from) = next.filter(|_| flows.len() < most && Instant::now() < deadline) {
            let Some((connections, on)) = self.list_part(from, filter) else { return silent(from.worker) };
            flows.extend(connections.iter().map(|connection| views::flow(connection, from.worker, role)));
            next = on;
        }
        Reply::Flows(FlowList { flows, next })
    }

    /// One part of the listing of connections, for which one worker executes one command: the connections, and where the next part begins. `None`:
    /// the worker does not answer.
    pub(super) fn list_part(&self, from: Cursor, filter: Filter) -> Option<(Vec<Connection>, Option<Cursor>)> {
        let Cursor { worker, place } = from;
        if worker >= self.workers.workers() {
            return Some((Vec::new(), None));
        }
        let (connections, on) =
            match self.workers.send_to(worker..worker + 1, &Command::List { from: place, filter }).remove(0)? {
                Answer::Listed(connections, on) => (connections, on),
                // An engine without connections.
                _ => (Vec::new(), None),
            };
        let other = (worker + 1 < self.workers.workers()).then_some(Cursor { worker: worker + 1, place: 0 });
        Some((connections, on.map(|place| Cursor { worker, place }).or(other)))
    }

    /// What is done for new connections to each destination.
    pub(super) fn destinations(&self) -> Vec<Destination> {
        let draining = self.progress().draining;
        let targets = self.target_status();
        if !targets.is_empty() && draining.is_none() {
            return targets.iter().map(views::shown).collect();
        }
        let mode = match (self.facts.bypass || draining.is_some(), self.board.total().get(WorkerMetric::SynCachedMost))
        {
            (true, _) => "pass",
            (false, 0) => "cookie",
            (false, _) => "cache",
        };
        vec![Destination {
            destination: "all".to_owned(),
            mode: mode.to_owned(),
            since: draining.map(|since| since.elapsed().as_secs_f64()),
            half_open: None,
        }]
    }

    fn top(&self) -> Top {
        let answers = self.workers.send(&Command::Top).into_iter().flatten();
        let of_workers = answers.filter_map(|answer| match answer {
            Answer::Top(report) => Some(report),
            _ => None,
        });
        let report = top_talkers::merged(of_workers.chain([self.journal.shed_talkers()]));
        let [sources, targets] = views::talkers(&report);
        Top { stats: self.stats(), period: report.period.as_secs_f64(), sources, targets }
    }

    /// What would happen to a frame: the answer of the worker that has its connection, or else of the one that would own it.
    fn explain(&self, from: ::control::Side, text: &str, worker: Option<usize>, role: Role) -> Reply {
        let frame: Arc<[u8]> = match views::frame(text) {
            Ok(frame) => frame.into(),
            Err(wrong) => return views::malformed(wrong),
        };
        let workers = match worker {
            Some(worker) if worker >= self.workers.workers() => {
                let last = self.workers.workers().saturating_sub(1);
                return views::malformed(format!("there is no worker {worker}; the last is {last}"));
            }
            Some(worker) => worker..worker + 1,
            None => 0..self.workers.workers(),
        };
        let side = views::engine_side(from);
        let answers = self.workers.send_to(workers.clone(), &Command::Explain { side, frame: frame.clone() });
        let mut excerpts = Vec::new();
        for (answer, worker) in answers.into_iter().zip(workers) {
            match answer {
                Some(Answer::Excerpt(excerpt)) => excerpts.push((worker, *excerpt)),
                Some(_) => return Reply::refuse(Why::Refused, "the box bypasses the engine (--bypass)"),
                None => return silent(worker),
            }
        }
        let knows = excerpts.iter().position(|(_, excerpt)| excerpt.knows_connection());
        let owner = excerpts.first().map_or(0, |(_, excerpt)| owner::share(excerpt.hash(), excerpts.len()));
        let (worker, excerpt) = excerpts.swap_remove(knows.unwrap_or(owner));
        if role != Role::Admin && excerpt.is_judged_by_numbers() {
            self.board.count(ControlMetric::Forbidden);
            return Reply::refuse(
                Why::Forbidden,
                format!(
                    "what becomes of this frame tells whether it has the numbers of a cookie or of a connection, so that takes the role admin, which \
                     only root, the box's own user and members of `control_admin` have, and you have {role}; a SYN is explained to everybody"
                ),
            );
        }
        let mut buffer = FrameBuffer::new(&frame);
        let mut head = buffer.head();
        let explanation = excerpt.explain(&mut head, clock::now());
        Reply::Explained(Box::new(views::explained(worker, side, &frame, head.bytes(), explanation, role)))
    }

    fn stats(&self) -> Stats {
        let workers: Vec<Snapshot> = self.board.workers().collect();
        Stats {
            uptime: self.uptime(),
            workers: workers.iter().map(counts).collect(),
            total: counts(&self.board.total()),
        }
    }
}

/// Why a request is refused that takes another role.
fn takes_role(request: &Request, needed: Role, role: Role) -> String {
    let why = match request {
        Request::StartCapture { .. } | Request::StopCapture { .. } => {
            ", because captures are written with the rights of the box"
        }
        Request::LoadConfig { .. } => ", because another file may say who has which role",
        _ => "",
    };
    let groups = match needed {
        Role::Admin => "`control_admin`",
        Role::Operate => "`control_operate`",
        Role::Read => "`control_read`",
    };
    format!(
        "this takes the role {needed}{why}, and you have {role}: only root, the box's own user and members of {groups} have it"
    )
}

/// A request as the log has it.
fn in_words(request: &Request) -> String {
    match request {
        Request::LoadConfig { name, text } => format!("load-config {name:?}, {} bytes", text.len()),
        Request::AddToList { list, networks } => format!("add-to-list {}: {}", list.name(), few(networks)),
        Request::RemoveFromList { list, networks } => format!("remove-from-list {}: {}", list.name(), few(networks)),
        Request::ReplaceList { list, .. } => format!("replace-list {}", list.name()),
        // Control characters are escaped.
        request => serde_json::to_string(request).unwrap_or_default(),
    }
}

/// Networks for the log: the first of them.
fn few(networks: &[String]) -> String {
    match networks {
        [_, _, _, _, ..] => {
            let first = networks[..3].iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            format!("{first} and {} more networks", networks.len() - 3)
        }
        all => all.join(", "),
    }
}

/// Why a request was refused, in one line.
fn first_line(refusal: &Refusal) -> &str {
    refusal.message.lines().next().unwrap_or_default()
}

/// The reply to a request that changes a list.
fn done(outcome: Result<String, String>) -> Reply {
    outcome.map_or_else(|refusal| Reply::refuse(Why::Refused, refusal), Reply::Done)
}

fn silent(worker: usize) -> Reply {
    Reply::refuse(Why::Silent, format!("worker {worker} does not answer"))
}

fn flows(snapshot: &Snapshot) -> Flows {
    Flows {
        proxied: snapshot.get(FlowGauge::Proxied),
        direct: snapshot.get(FlowGauge::Direct),
        half_open: snapshot.get(FlowGauge::HalfOpen),
    }
}

/// The losses by name, former names included.
fn losses(snapshot: &Snapshot) -> BTreeMap<String, u64> {
    let losses = snapshot.losses();
    let count = |name| losses.iter().find(|(own, _)| *own == name).map_or(0, |(_, count)| *count);
    let former = FORMER_LOSSES.iter().map(|(former, name)| (*former, count(*name)));
    losses.iter().copied().chain(former).map(|(name, count)| (name.to_owned(), count)).collect()
}

/// A snapshot as the control protocol gives it: every value under its name in the table of descriptors.
fn counts(snapshot: &Snapshot) -> Counts {
    let named = |family| -> BTreeMap<String, u64> {
        snapshot.named(family).map(|(name, count)| (name.to_owned(), count)).collect()
    };
    Counts {
        lan: named(Family::Lan),
        wan: named(Family::Wan),
        lan_rings: named(Family::LanRing),
        wan_rings: named(Family::WanRing),
        lan_link: named(Family::LanLink),
        wan_link: named(Family::WanLink),
        notices: named(Family::Notice),
        state: named(Family::State),
        control: named(Family::Control),
        reported_events: named(Family::Reported),
        delivery: named(Family::Delivery),
        flows: flows(snapshot),
        held: snapshot.get(WorkerMetric::Held),
        events: named(Family::Event),
        drops: named(Family::Drop),
        losses: losses(snapshot),
        crossed: named(Family::Handoff),
        wakes: snapshot.get(WorkerMetric::Wakes),
        orders: named(Family::Command),
        timed_frames: snapshot.get(WorkerMetric::TimedFrames),
        timed_nanoseconds: snapshot.get(WorkerMetric::TimedNanoseconds),
    }
}
