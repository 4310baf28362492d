//! The assembly: reads the configuration, opens the ports, starts the workers and what serves the operator, and waits for the end.

use crate::control::api::{ControlApi, Facts, Services};
use crate::control::control_port::ControlPort;
use crate::control::lists::{ListRegistry, Listed};
use crate::control::reload::{Origin, Reloader, Surroundings};
use crate::control::servers::ServerRegistry;
use crate::control::service_watch::ServiceWatch;
use crate::control::site::StatisticsSite;
use crate::control::socket::{self, Serving, Socket, SocketPermissions};
use crate::dataplane::engine::Bypass;
use crate::dataplane::modes::{Coordinator, ModeBoard, Switch};
use crate::dataplane::pool::{Message, WorkerOptions, WorkerPool};
use crate::dataplane::steering::{Steering, Strategy};
use crate::dataplane::watchdog::Outputs;
use crate::dataplane::{memory, worker};
use crate::doctor;
use crate::metrics::capture::Captures;
use crate::metrics::descriptors::StateMetric;
use crate::metrics::events::{self, Events, Supervision};
use crate::metrics::http::Server;
use crate::metrics::prometheus::Identity;
use crate::process::bypass_hook::BypassHook;
use crate::process::cli::{self, Arguments, CaptureFiles, Steer, Task};
use crate::process::cpu::{self, Cores};
use crate::process::exit::Failure;
use crate::process::leave::{can_be_left, leave};
use crate::process::link_monitor::LinkMonitor;
use crate::process::listening::Listening;
use crate::process::log::{self, LogControl};
use crate::process::privileges::{self, Credentials};
use crate::process::signals::{self, Signalled};
use crate::process::watchdog_device::WatchdogDevice;
use crate::process::{clock, restore, service_manager, settings, supervise};
use crate::state::{self, Keeper, State, StateWatch, Takeover};
use ::control::{Event, LogLevel, Role};
use clap::FromArgMatches;
use confparse::{Config, Control, FastPath, LinkLoss, Poll, PortLoss, StateDir};
use crossbeam::channel::{self, Receiver, Sender};
use nix::sys::prctl;
use pktio::capture::ExistingFile;
use pktio::rss::Twin;
use pktio::{
    Capabilities, FailurePlan, FastPathPlan, FastPathWay, Guard, OnFailure, OpenError, Opened, Options, Pair, Port,
    Preparation, SynPlan,
};
use rand::TryRng;
use rand::rngs::SysRng;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tcpstate::owner::{self, Naming};
use tcpstate::{FlowMap, Memory, Policy, Proxy, Secrets, SharedSyns, Target, Words};
use tracing::{debug, info, warn};

/// Runs the program with the arguments of the process, and returns its exit status.
pub fn run() -> ExitCode {
    // A process that was started by the file of another (`/proc/self/exe`) would be known as `exe`.
    let _ = prctl::set_name(c"synproxy");
    let arguments = Arguments::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit());
    let log = log::init(arguments.log_level.unwrap_or(LogLevel::Info));
    let end = match arguments.task() {
        Task::CheckConfig(file) => settings::check(file),
        Task::Restore { interfaces, after: Some(seconds), state } => restore::restore_after(seconds, interfaces, state),
        Task::Restore { interfaces, .. } => restore::restore(interfaces),
        Task::Doctor(arguments) => return status(doctor::doctor(arguments)),
        Task::Run { .. } if arguments.supervise => return status(supervise::supervise()),
        Task::Run { lan, wan } => bridge(lan, wan, &arguments, log).or_else(wait_for_port),
    };
    status(end.map(|()| ExitCode::SUCCESS))
}

/// The command line as clap knows it, with the doctor's table of checks: for `--help`, man pages and shell completions.
pub fn command() -> clap::Command {
    cli::command().mut_subcommand("doctor", |command| command.after_help(doctor::help()))
}

/// The exit status of an end; says why it is a failure.
fn status(end: Result<ExitCode, Failure>) -> ExitCode {
    match end {
        Ok(status) => status,
        Err(failure) => {
            // An error in a file begins with its position, where editors look for it.
            let program = if matches!(failure, Failure::Configuration(_)) { "" } else { "synproxy: " };
            eprintln!("{program}{failure}");
            failure.exit_code()
        }
    }
}

/// Runs between the two interfaces until a signal, the end of the frames, or a failure.
fn bridge(lan: &str, wan: &str, arguments: &Arguments, log: LogControl) -> Result<(), Failure> {
    let begin = Instant::now();
    let file = arguments.config.as_deref().map(absolute).transpose()?;
    let overrides = arguments.overrides();
    let mut settings = settings::load(arguments.config.as_deref())?;
    let said = settings.config.clone();
    overrides.apply(&mut settings.config);
    let config = &settings.config;
    log.set(log::level_from_config(config.log_level));
    let credentials = Credentials::of(config)?;
    let (workers, poll) = (config.workers, config.poll);
    let needed = settings.reserve_memory(workers, arguments.bypass)?;
    debug!("memory needed: {needed}");
    privileges::forbid_dumps();
    let listed = settings.lists()?;
    let compiled = Arc::new(listed.compile());
    if !listed.is_empty() {
        info!("lists of clients: {} networks, {} kB for all workers", listed.len(), compiled.bytes() / 1000);
    }

    let (supervisor, messages) = channel::unbounded();
    let stop = Arc::new(AtomicBool::new(false));
    // Whether another process may follow when this one ends.
    let is_followed = Arc::new(AtomicBool::new(false));
    // Whether it has asked this one to end.
    let is_asked = Arc::new(AtomicBool::new(false));
    let (signalled, followed) = (supervisor.clone(), is_followed.clone());
    let (ask_reload, reloads) = signals::reloads();
    signals::listen(stop.clone(), move |signalled_by| match signalled_by {
        Signalled::End { again, may_be_followed } => {
            followed.store(may_be_followed, Ordering::Relaxed);
            // At the very end of the process nobody receives it any more, or needs to.
            drop(signalled.send(Message::Signal { again }));
        }
        Signalled::Reload => ask_reload(),
    })?;

    // What can fail without the ports has not: from here on a process that is asked to end may do so.
    let start = state::Start {
        ports: [lan, wan],
        namespace: socket::namespace(),
        fresh: arguments.fresh,
        takeover: arguments.takeover,
        owner: credentials.ids(),
        secrets: random().map(Secrets::new)?,
        spread: random()?,
    };
    let (new_secrets, new_spread) = (start.secrets.clone(), start.spread);
    let options = |secrets: &Secrets, spread| Options {
        workers,
        batch: worker::BATCH,
        mode: arguments.xdp_mode.into(),
        busy_poll: poll == Poll::Busy,
        // What samples the SYNs that the kernel drops samples those that it answers, too.
        shed: (config.shed || config.syns_in_kernel) && !arguments.bypass,
        syns: syn_plan(config, arguments.bypass),
        netmap_slots: [config.ldp.netmap_nr_rx_slots, config.ldp.netmap_nr_tx_slots],
        spread: (workers > 1 && arguments.steer == Steer::Auto).then_some(spread),
        force: arguments.force,
        failure: Some(failure_plan(config, secrets, arguments.bypass)),
        fast_path: fast_path(config, secrets, arguments.bypass),
        stop: stop.clone(),
        ..Options::default()
    };
    // What takes time and nothing of the former process is made while that one works.
    let peeked = if arguments.takeover && !arguments.bypass { State::peek(config, &start) } else { None };
    let prepared = peeked.map(|kept| pktio::prepare(lan, wan, &options(&kept.secrets, kept.spread)));
    // Frames wait from here on, where another process is followed.
    cpu::prioritise(arguments.nice);
    let mut state = if arguments.bypass { None } else { State::open(config, start)? };
    let (secrets, spread) = match &state {
        Some(state) => (state.kept().secrets.clone(), state.kept().spread),
        None => (new_secrets, new_spread),
    };
    let options = options(&secrets, spread);
    let mut preparation = prepared.unwrap_or_else(|| pktio::prepare(lan, wan, &options));
    preparation.left = state.as_mut().map(State::take_left).unwrap_or_default();
    // Bindings are dropped last to first: the ports before the guard, which restores the settings of the interfaces.
    let opened = match open(lan, wan, &options, &mut preparation, config.failures.port_loss) {
        Ok(Some(opened)) => opened,
        not_opened => {
            if let Some(state) = state {
                state.abandon_if_new();
            }
            return not_opened.map(|_| info!("ended by a signal before the interfaces were there"));
        }
    };
    let Opened { mut guard, pairs, spread, .. } = opened;
    let flow_maps = match &options.failure {
        Some(plan) => guard.flow_maps(workers, plan).map_err(Failure::Spawn)?,
        None => Vec::new(),
    };
    let mut syn_memories = guard.syn_memories(workers).map_err(Failure::Spawn)?;
    say_what_cannot_fail_open(&pairs, config);
    let has_program = pairs.first().is_some_and(|pair| pair.wan.capabilities().backend == "xdp");
    if options.syns.is_some() && !has_program && syn_memories.is_empty() {
        warn!(
            "the workers answer all SYNs, whatever `syns_in_kernel` says: only AF_XDP and `fast_path = tc` have a program that could"
        );
    }
    let strategy =
        if arguments.bypass { None } else { strategy(&pairs, arguments.steer, Naming::of(&config.engine), spread) };
    // Its files belong to the user who starts the process, so that the next one may read them.
    let share = config.engine.share(workers);
    let (memories, takeover) = if arguments.bypass {
        Default::default()
    } else {
        memories(&mut state, config, &share, workers, strategy.as_ref())?
    };
    if arguments.config.is_none() {
        info!("no --config, so every key has its default");
    }
    let captures = Captures::new(workers, lan, wan);
    start_captures(&captures, &arguments.captures)?;
    let permissions = Arc::new(SocketPermissions::new(credentials.ids(), privileges::role_groups(config)?));
    let socket = control_socket([lan, wan], &config.control, &permissions)?;
    // A process that was just followed may still have them for a moment.
    let patience = if takeover.age > 0 { FORMER_PATIENCE } else { Duration::ZERO };
    let control_port = patiently(patience, || control_port(config))?;
    let metrics = patiently(patience, || config.metrics.map(Server::listen).transpose())?;
    let outputs = Outputs {
        device: config.failures.watchdog_device.as_deref().map(WatchdogDevice::open).transpose()?,
        bypass: config.failures.bypass_hook.as_deref().map(BypassHook::new).transpose()?,
    };
    credentials.assume()?;
    supervise::end_with_supervisor();
    if stop.load(Ordering::Relaxed) {
        info!("ended by a signal before the first frame");
        return Ok(());
    }

    let by_hash = matches!(strategy, Some(Strategy::HandOff(_) | Strategy::Everything(_)));
    if by_hash && Naming::of(&config.engine) == Naming::WanEnd && !syn_memories.is_empty() {
        warn!(
            "the workers answer all SYNs: where there are services, the kernel's program does not know which worker a hash names"
        );
        syn_memories.clear();
    }
    let steerings = strategy.map(|strategy| steerings(&pairs, strategy, &secrets)).transpose()?.unwrap_or_default();
    let cores = if arguments.no_pin { Cores::default() } else { Cores::for_each(workers) };
    let ready = ready_line(lan, wan, &pairs, arguments.bypass);
    let identity = identity(file.as_deref(), config, [lan, wan], &pairs);
    let has_services = !arguments.bypass && config.engine.service_buffers > 0;
    let facts = facts(begin, [lan, wan], &pairs, arguments.bypass, has_services);
    let (samples, has_front) = (guard.take_shed_samples(), guard.has_front());
    let fast_path = guard.hand_down_words().map_err(Failure::Spawn)?;
    let former_flows = guard.former_hand_down_words();
    // What a former process has handed down goes on; when the last worker has adopted its connections, the entries without one end.
    let going_on = fast_path.filter(|_| guard.goes_on()).inspect(|words| Proxy::prepare_to_go_on(&Words::from(*words)));
    let to_adopt = Arc::new(AtomicUsize::new(workers));
    if options.fast_path.is_some() && fast_path.is_none() {
        warn!("fast_path: the workers forward everything");
    }
    let (sender, inbox) = events::channel();
    let links = LinkMonitor::new([lan, wan], &mut guard, config.link_loss, config.failures.port_loss);
    let changed = supervisor.clone();
    links.watch(move || changed.send(Message::Links).is_ok());
    let link_loss = supervisor.clone();
    let end: Arc<dyn Fn() + Send + Sync> = {
        let (stop, supervisor) = (stop.clone(), supervisor.clone());
        Arc::new(move || {
            if !stop.swap(true, Ordering::Relaxed) {
                // At the very end of the process nobody receives it any more.
                let _ = supervisor.send(Message::Signal { again: false });
            }
        })
    };
    let channel = (supervisor, messages);
    let cookie_clock = clock::cookie_clock();
    let policy = Arc::new(Policy::with_clock(&share, cookie_clock, clock::now()));
    let modes = (!arguments.bypass).then(|| Arc::new(ModeBoard::new(policy.targets().clone(), workers)));
    let mut pool = if arguments.bypass {
        let options = WorkerOptions { poll, captures: captures.clone(), ..WorkerOptions::default() };
        WorkerPool::start(pairs, steerings, |_| Bypass::default(), &cores, options, stop, channel)
    } else {
        let memories: Vec<_> = memory::with_others(memories).into_iter().map(Some).collect();
        let memories = Arc::new(Mutex::new(memories));
        let lists = compiled.clone();
        let rotations: Vec<_> = state.iter().flat_map(|state| state.kept().rotations(cookie_clock)).collect();
        let engine = move |number: usize| {
            let mut memories = memories.lock().unwrap_or_else(PoisonError::into_inner);
            let (memory, others) = memories[number].take().expect("one for each worker");
            drop(memories);
            let now = clock::now();
            let mut proxy = Proxy::with_policy(&share, policy.clone(), &secrets, now, memory);
            rotations.iter().for_each(|rotation| proxy.rotate(rotation, now));
            proxy.set_worker(owner::Worker { number, of: workers }, now);
            proxy.share_limits(others);
            drop(proxy.set_lists(lists.clone()));
            if let Some(&words) = flow_maps.get(number) {
                proxy.publish_flows(Words::from(words));
            }
            if let Some(words) = fast_path {
                proxy.hand_down_in(Words::from(words));
            }
            if let Some(words) = former_flows {
                proxy.adopt_handed_down(Words::from(words));
            }
            if let Some(&memory) = syn_memories.get(number) {
                let [answers, recent_syns, limits] = memory.map(Words::from);
                proxy.share_syns(SharedSyns { answers, recent_syns, limits, by_hash });
            }
            if let Some(words) = going_on {
                proxy.go_on_handed_down();
                if to_adopt.fetch_sub(1, Ordering::AcqRel) == 1 {
                    Proxy::end_without_flow(&Words::from(words), now);
                }
            }
            proxy
        };
        let options = WorkerOptions {
            poll,
            shed: config.shed,
            captures: captures.clone(),
            modes: modes.clone(),
            looks_up: config.engine.service_buffers > 0,
            leave: is_asked.clone(),
        };
        WorkerPool::start(pairs, steerings, engine, &cores, options, stop, channel)
    }?;
    pool.tell(outputs);
    if has_front {
        pool.answer_in_front(config.front);
    }
    let hash_key = [random().map(u64::from_ne_bytes)?, random().map(u64::from_ne_bytes)?];
    let servers = Arc::new(ServerRegistry::new(pool.commands(), hash_key));
    let said = (said, file);
    let (board, commands) = (pool.board(), pool.commands());
    let keeper = state.map(Keeper::new);
    for (metric, value) in [
        (StateMetric::Age, takeover.age),
        (StateMetric::NoRoom, takeover.no_room),
        (StateMetric::Refused, takeover.refused),
    ] {
        board.add_state(metric, value);
    }
    let take_leave: Arc<dyn Fn() + Send + Sync> = {
        let (is_followed, is_asked, end) = (is_followed.clone(), is_asked.clone(), end.clone());
        Arc::new(move || {
            is_followed.store(true, Ordering::Relaxed);
            is_asked.store(true, Ordering::Relaxed);
            end();
        })
    };
    let watch = (!arguments.bypass)
        .then(|| StateWatch::start(keeper.clone(), commands.clone(), board.clone(), cookie_clock, take_leave))
        .transpose()?;
    let lists = Arc::new(ListRegistry::new(listed, &compiled, commands.clone()));
    drop(compiled);
    let reloader =
        Reloader::new(said, overrides, arguments.bypass, commands.clone(), servers.clone(), board.clone(), log.clone());
    let reloader = Arc::new(reloader);
    if let Some(modes) = &modes {
        report_switches(modes.subscribe(SWITCHES), sender.clone())?;
    }
    let coordination = modes.clone().map(Coordinator::start).transpose().map_err(Failure::Spawn)?;
    let events = Events::start(inbox, &config.events, [lan, wan], board.clone(), samples)?;
    let service_watch = has_services
        .then(|| ServiceWatch::start(commands.clone(), board.clone(), events.sender().clone()))
        .transpose()?;
    let services = Services {
        lists: lists.clone(),
        captures: captures.clone(),
        journal: events.journal(),
        modes: modes.clone(),
        log,
        reloader: reloader.clone(),
        state: keeper.clone(),
        stop: end,
    };
    let api = Arc::new(ControlApi::new(facts, board.clone(), commands, servers, services));
    let surroundings = Operated {
        site: Arc::new(StatisticsSite::new(board, api.clone(), identity)),
        socket: socket.as_ref().map(|socket| Arc::downgrade(socket.file())).unwrap_or_default(),
        permissions,
        lists,
        modes,
        supervisor: link_loss,
        events: events.sender().clone(),
    };
    reloader.begin(Box::new(surroundings), metrics, control_port)?;
    let serving = socket.map(|socket| socket.serve(api)).transpose()?;
    reload_when_asked(reloads, reloader)?;
    let end = pool.supervise(links, Supervision::new(sender, [lan, wan]), |links| {
        // Now that they take frames. What a former process has left has decided until now what passes.
        links.guard().map_or(Ok(()), Guard::take_over).map_err(Failure::TakeOver)?;
        // Who reads the line may rely on it that the manager knows.
        service_manager::ready(&ready);
        eprintln!("{ready}");
        if let Some(keeper) = &keeper {
            keeper.ready();
        }
        Ok(())
    });
    cpu::hurry();
    guard.release_host();
    service_manager::stopping();
    // What the next process waits for comes first.
    drop((serving, coordination, watch, service_watch));
    if matches!(end, Err(Failure::Interrupted)) {
        // Workers may go on until the process ends.
        return end;
    }
    pool.end();
    let (unclaimed, early_or_late) = (guard.unclaimed(), guard.early_or_late());
    let lasts = keeper.as_ref().filter(|keeper| !keeper.is_over());
    let is_left =
        end.is_ok() && is_followed.load(Ordering::Relaxed) && lasts.is_some() && can_be_left() && guard.keep();
    let left = pool.take_left();
    match keeper.as_ref().and_then(|keeper| keeper.directory()).filter(|_| is_left) {
        Some(directory) => state::give(directory, left),
        // Closed, for who waits for the queues.
        None => drop(left),
    }
    drop(guard);
    if let Some(keeper) = &keeper {
        keeper.finish();
    }
    if is_left {
        leave([lan, wan], keeper.as_ref().and_then(|keeper| keeper.directory()));
    }
    pool.print_table();
    events.finish();
    captures.finish();
    if unclaimed > 0 {
        warn!("{unclaimed} frames arrived on a queue that no worker serves, and were dropped");
    }
    if early_or_late > 0 {
        debug!("{early_or_late} frames arrived while the box was starting or ending, and were dropped");
    }
    end
}

/// How long a process that has left its state to this one may go on, for what it has to write.
const FORMER_PATIENCE: Duration = Duration::from_secs(2);

/// Tries again for so long while an address is in use.
fn patiently<T>(patience: Duration, mut listen: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let begin = Instant::now();
    loop {
        match listen() {
            Err(Failure::Listen { error, .. })
                if error.kind() == ErrorKind::AddrInUse && begin.elapsed() < patience =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// What the XDP program needs for the time when no worker takes frames.
fn failure_plan(config: &Config, secrets: &Secrets, bypass: bool) -> FailurePlan {
    let on_failure = match config.failures.on_failure {
        confparse::OnFailure::Closed => OnFailure::Closed,
        confparse::OnFailure::Untranslated => OnFailure::Untranslated,
        confparse::OnFailure::Open => OnFailure::Open,
    };
    let flows = config.engine.share(config.workers).flow_capacity();
    // What answers SYNs has to know which flows there are.
    let knows_flows = on_failure != OnFailure::Closed || config.syns_in_kernel;
    let flow_words = if bypass || !knows_flows { 0 } else { FlowMap::words_needed(flows) };
    FailurePlan { on_failure, flow_keys: secrets.hash_keys(), flow_words, forward_words: 0 }
}

/// What the XDP program needs to answer SYNs, if it is to.
fn syn_plan(config: &Config, bypass: bool) -> Option<SynPlan> {
    let words = SharedSyns::words_needed(&config.engine.share(config.workers));
    (config.syns_in_kernel && !bypass).then_some(SynPlan { words })
}

/// Opens the ports; waits for interfaces that are missing, if it is to. `None` if it is to end meanwhile.
fn open(
    lan: &str,
    wan: &str,
    options: &Options,
    preparation: &mut Preparation,
    port_loss: PortLoss,
) -> Result<Option<Opened>, Failure> {
    let mut has_said = false;
    loop {
        match pktio::open_prepared(lan, wan, options, preparation) {
            Err(OpenError::NotFound { interface }) if port_loss == PortLoss::Wait => {
                if options.stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                if !has_said {
                    warn!("there is no interface {interface}: waiting for it (`port_loss = wait`)");
                    has_said = true;
                }
                thread::sleep(PORT_STEP);
            }
            // It is there again, and not up yet.
            Err(OpenError::Down { .. }) if has_said && !options.stop.load(Ordering::Relaxed) => {
                thread::sleep(PORT_STEP)
            }
            result => return result.map(Some).map_err(Failure::from),
        }
    }
}

/// Begins anew after an interface was lost, if it is to wait for it: as the same process, without what belonged to the interface that is gone.
fn wait_for_port(failure: Failure) -> Result<(), Failure> {
    let Failure::Gone { waits: true, .. } = &failure else { return Err(failure) };
    // A process that has given up its privileges cannot open the interface again; who supervises it starts another.
    if privileges::are_given_up() {
        return Err(failure);
    }
    warn!("{failure}");
    let error = Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).exec();
    Err(Failure::Spawn(error))
}

/// How often to look for a missing interface.
const PORT_STEP: Duration = Duration::from_millis(200);

/// Says so where `on_failure` cannot be done.
fn say_what_cannot_fail_open(pairs: &[Pair], config: &Config) {
    let Some(pair) = pairs.first().filter(|_| config.failures.on_failure != confparse::OnFailure::Closed) else {
        return;
    };
    let backend = pair.lan.capabilities().backend;
    if backend != "xdp" {
        warn!("{backend} passes nothing while no worker takes frames, whatever `on_failure` says: only AF_XDP can");
    }
}

/// How the kernel shall forward connections by itself.
fn fast_path(config: &Config, secrets: &Secrets, bypass: bool) -> Option<FastPathPlan> {
    let way = match config.fast_path {
        _ if bypass => return None,
        FastPath::Off => return None,
        FastPath::Auto => FastPathWay::Auto,
        FastPath::Xdp => FastPathWay::Xdp,
        FastPath::Tc => FastPathWay::Tc,
    };
    let words = Proxy::words_to_hand_down(config.fast_path_flows);
    Some(FastPathPlan { way, words, flow_keys: secrets.hash_keys(), has_front: config.front.rate > 0 })
}

/// What a reload changes besides the workers.
struct Operated {
    site: Arc<StatisticsSite>,
    /// The file of the control socket, which is removed at the end although this lives longer.
    socket: Weak<Serving>,
    permissions: Arc<SocketPermissions>,
    lists: Arc<ListRegistry>,
    modes: Option<Arc<ModeBoard>>,
    supervisor: Sender<Message>,
    events: events::Sender,
}

impl Surroundings for Operated {
    fn serve_statistics(&self, server: Server) -> Result<Listening, Failure> {
        server.serve(self.site.clone())
    }

    fn set_config(&self, config: (Option<String>, u64)) {
        self.site.set_config(config);
    }

    fn set_groups(&self, groups: Vec<(u32, Role)>) {
        if let Some(socket) = self.socket.upgrade() {
            socket.set_groups(&self.permissions, groups);
        }
    }

    fn set_targets(&self, targets: Arc<[Target]>) {
        if let Some(modes) = &self.modes {
            modes.adopt(targets);
        }
    }

    fn set_lists(&self, listed: Listed) {
        self.lists.reload(listed);
    }

    fn set_link_loss(&self, link_loss: LinkLoss, port_loss: PortLoss) {
        // At the very end of the process nobody receives it any more.
        let _ = self.supervisor.send(Message::LinkLoss(link_loss, port_loss));
    }

    fn set_events(&self, events: &confparse::Events) -> bool {
        self.events.follow(events)
    }
}

/// Switches of modes that wait to be reported at most.
const SWITCHES: usize = 256;

/// Starts the thread that reports switches of modes as events, as long as modes are decided.
fn report_switches(switches: Receiver<Switch>, events: events::Sender) -> Result<(), Failure> {
    let report = move || {
        privileges::enter_control_thread();
        for Switch { target, from, to, why, .. } in switches {
            events.send(Event::ModeSwitched {
                destination: target.to_string(),
                from: from.label().to_owned(),
                to: to.label().to_owned(),
                why: why.to_string(),
            });
        }
    };
    thread::Builder::new().name("switches".to_owned()).spawn(report).map(drop).map_err(Failure::Spawn)
}

/// Starts the thread that reloads at SIGHUP.
fn reload_when_asked(asked: Receiver<()>, reloader: Arc<Reloader>) -> Result<(), Failure> {
    let reload = move || {
        privileges::enter_control_thread();
        for () in asked {
            // The log has the answer.
            let _ = reloader.reload(&Origin::File);
        }
    };
    thread::Builder::new().name("reload".to_owned()).spawn(reload).map(drop).map_err(Failure::Spawn)
}

/// A path that stays true whatever the working directory is.
fn absolute(file: &Path) -> Result<PathBuf, Failure> {
    let failed = |error| Failure::Configuration(format!("{}: {error}", file.display()));
    std::path::absolute(file).map_err(failed)
}

/// The control socket, unless it is off. The process does not start without a socket at the configured path, but it does without the
/// one at the default path.
fn control_socket(
    [lan, wan]: [&str; 2],
    place: &Control,
    permissions: &Arc<SocketPermissions>,
) -> Result<Option<Socket>, Failure> {
    match place {
        Control::None => Ok(None),
        Control::At(path) => match Socket::bind(path, permissions.clone()) {
            Ok(socket) => Ok(Some(socket)),
            Err(error) => Err(Failure::Socket { path: path.clone(), error }),
        },
        Control::Auto => {
            let path = ::control::default_path(lan, wan, socket::namespace());
            let bound = Socket::bind(&path, permissions.clone());
            Ok(bound
                .map_err(|error| warn!("no control socket, {}: {error}{}", path.display(), pktio::advice(&error)))
                .ok())
        }
    }
}

/// The control port, if any mode is `commanded`.
fn control_port(config: &Config) -> Result<Option<ControlPort>, Failure> {
    let address = SocketAddr::new(config.listen, config.port);
    let what = "control port";
    let listen = || ControlPort::listen(address).map_err(|error| Failure::Listen { what, address, error });
    config.commanded().then(listen).transpose()
}

/// What the control API says of the box.
fn facts(begin: Instant, [lan, wan]: [&str; 2], pairs: &[Pair], bypass: bool, has_services: bool) -> Facts {
    let interface = |name: &str, port: Option<&dyn Port>| ::control::Interface {
        name: name.to_owned(),
        backend: port.map(|port| describe(&port.capabilities())).unwrap_or_default(),
        link: None,
    };
    let (lan_port, wan_port) = pairs.first().map(|pair| (&*pair.lan, &*pair.wan)).unzip();
    Facts { begin, lan: interface(lan, lan_port), wan: interface(wan, wan_port), bypass, has_services }
}

/// What the metrics say of the box.
fn identity(file: Option<&Path>, config: &Config, [lan, wan]: [&str; 2], pairs: &[Pair]) -> Identity {
    let port = |name: &str, port: Option<&dyn Port>| {
        (name.to_owned(), port.map(|port| describe(&port.capabilities())).unwrap_or_default())
    };
    let (lan_port, wan_port) = pairs.first().map(|pair| (&*pair.lan, &*pair.wan)).unzip();
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let config = (file.map(|file| file.display().to_string()), settings::hash(config));
    Identity { ports: [port(lan, lan_port), port(wan, wan_port)], config, started }
}

/// Starts the captures of the command line.
fn start_captures(captures: &Captures, wanted: &CaptureFiles) -> Result<(), Failure> {
    let limits = wanted.limits();
    for (kind, path) in wanted.files() {
        captures
            .start(kind, path, limits, ExistingFile::Truncate)
            .map_err(|error| Failure::Capture { path: path.display().to_string(), error })?;
    }
    Ok(())
}

/// The memory of the workers' engines: of a former process, or new.
fn memories(
    state: &mut Option<State>,
    config: &Config,
    share: &tcpstate::Config,
    workers: usize,
    strategy: Option<&Strategy>,
) -> Result<(Vec<Memory>, Takeover), Failure> {
    let Some(found) = state else { return Ok((memory::of_workers(share, workers)?, Takeover::default())) };
    match found.memories(share, workers, strategy) {
        Ok(memories) => Ok(memories),
        Err(error) if config.state_dir != StateDir::Auto => Err(Failure::State(format!("no state: {error}"))),
        Err(error) => {
            warn!("a restart will lose connections: {error}; see `state_dir`");
            state.take().into_iter().for_each(State::abandon);
            Ok((memory::of_workers(share, workers)?, Takeover::default()))
        }
    }
}

/// How connections find their workers, if there are several.
fn strategy(pairs: &[Pair], steer: Steer, naming: Naming, spread: Result<Twin, String>) -> Option<Strategy> {
    if pairs.len() < 2 {
        return None;
    }
    let spread = match naming {
        Naming::Connection => spread,
        Naming::WanEnd => Err("no interface has one for connections to services (`service_buffers`)".to_owned()),
    };
    Some(match (spread, steer) {
        (Ok(twin), _) => {
            let hash = if twin.is_symmetric_xor() { "symmetric-xor with a secret key" } else { "a symmetric key" };
            info!("steering: both interfaces distribute connections over {} queues by {hash}", pairs.len());
            Strategy::Rss(twin)
        }
        (Err(reason), Steer::Auto | Steer::Handoff) => {
            info!(
                "steering: workers hand over misdirected frames; the interfaces have no symmetric distribution: {reason}"
            );
            Strategy::HandOff(naming)
        }
        (Err(_), Steer::Everything) => {
            info!("steering: workers hand over every frame, for tests");
            Strategy::Everything(naming)
        }
    })
}

/// How the workers steer frames to each other.
fn steerings(pairs: &[Pair], strategy: Strategy, secrets: &Secrets) -> Result<Vec<Steering>, Failure> {
    let longest = |pair: &Pair| pair.lan.capabilities().max_frame.max(pair.wan.capabilities().max_frame);
    let longest = pairs.iter().map(longest).max().unwrap_or_default();
    let has_members = pairs.iter().any(|pair| !pair.wan.members().is_empty());
    let steerings = Steering::open(pairs.len(), longest, strategy, secrets).map_err(Failure::Spawn)?;
    Ok(steerings.into_iter().map(|steering| steering.with_members(has_members)).collect())
}

/// Bytes from the operating system.
fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes)?;
    Ok(bytes)
}

/// The line that is printed when frames flow.
fn ready_line(lan: &str, wan: &str, pairs: &[Pair], bypass: bool) -> String {
    let port = |name: &str, port: &dyn Port| format!("{name} ({})", describe(&port.capabilities()));
    let ports = pairs
        .first()
        .map_or(String::new(), |pair| format!(" lan {}, wan {}", port(lan, &*pair.lan), port(wan, &*pair.wan)));
    let workers = match pairs.len() {
        1 => "1 worker".to_owned(),
        several => format!("{several} workers"),
    };
    let bypass = if bypass { ", bypass: nothing is protected" } else { "" };
    format!("ready{ports}, {workers}{bypass}")
}

/// An I/O backend and the mode it works in.
fn describe(capabilities: &Capabilities) -> String {
    let mut words = vec![capabilities.backend];
    if capabilities.backend == "xdp" {
        words.push(if capabilities.driver_mode { "driver mode" } else { "generic mode" });
        words.push(if capabilities.zero_copy { "zero copy" } else { "copy" });
    }
    words.join(", ")
}
