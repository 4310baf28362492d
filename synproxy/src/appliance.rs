//! The assembly: reads the configuration, opens the ports, starts the workers and what serves the operator, and waits for the end.

use crate::control::api::{ControlApi, Facts};
use crate::control::control_port::ControlPort;
use crate::control::servers::ServerRegistry;
use crate::control::site::StatisticsSite;
use crate::control::socket::{self, Socket, SocketPermissions};
use crate::dataplane::engine::Bypass;
use crate::dataplane::pool::{Message, WorkerOptions, WorkerPool};
use crate::dataplane::steering::{Steering, Strategy};
use crate::dataplane::{memory, worker};
use crate::doctor;
use crate::metrics::capture::Captures;
use crate::metrics::http::Server;
use crate::metrics::prometheus::Identity;
use crate::process::cli::{self, Arguments, CaptureFiles, Steer, Task};
use crate::process::cpu::{self, Cores};
use crate::process::exit::Failure;
use crate::process::link_monitor::LinkMonitor;
use crate::process::log::{self, LogControl};
use crate::process::privileges::{self, Credentials};
use crate::process::{clock, restore, settings, signals};
use clap::FromArgMatches;
use confparse::{Config, Control, Poll};
use crossbeam::channel;
use pktio::capture::ExistingFile;
use pktio::rss::Twin;
use pktio::{Capabilities, Opened, Options, Pair, Port};
use rand::TryRng;
use rand::rngs::SysRng;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};
use tcpstate::{Policy, Proxy, Secrets};
use tracing::{debug, info, warn};

/// Runs the program with the arguments of the process, and returns its exit status.
pub fn run() -> ExitCode {
    let arguments = Arguments::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit());
    let log = log::init(arguments.log_level);
    let end = match arguments.task() {
        Task::CheckConfig(file) => settings::check(file),
        Task::Restore(interfaces) => restore::restore(interfaces),
        Task::Doctor(arguments) => return status(doctor::doctor(arguments)),
        Task::Run { lan, wan } => bridge(lan, wan, &arguments, log),
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
    let settings = settings::load(arguments.config.as_deref())?;
    let config = &settings.config;
    let credentials = Credentials::of(config)?;
    let workers = arguments.workers.map_or(config.workers, usize::from);
    let poll = arguments.poll.map_or(config.poll, Into::into);
    let needed = settings.reserve_memory(workers, arguments.bypass)?;
    debug!("memory needed: {needed}");
    let secrets = random().map(Secrets::new)?;

    let (supervisor, messages) = channel::unbounded();
    let stop = Arc::new(AtomicBool::new(false));
    let signalled = supervisor.clone();
    signals::listen(stop.clone(), move |again| {
        // At the very end of the process nobody receives it any more, or needs to.
        let _ = signalled.send(Message::Signal { again });
    })?;

    // Bindings are dropped last to first: the ports before the guard, which restores the settings of the interfaces.
    let spread = (workers > 1 && arguments.steer == Steer::Auto).then(random).transpose()?;
    let options = Options {
        workers,
        batch: worker::BATCH,
        mode: arguments.xdp_mode.into(),
        busy_poll: poll == Poll::Busy,
        shed: config.shed && !arguments.bypass,
        netmap_slots: [config.ldp.netmap_nr_rx_slots, config.ldp.netmap_nr_tx_slots],
        spread,
        force: arguments.force,
        stop: stop.clone(),
        ..Options::default()
    };
    let Opened { mut guard, pairs, spread, .. } = pktio::open(lan, wan, &options)?;
    if arguments.config.is_none() {
        info!("no --config, so every key has its default");
    }
    let captures = Captures::new(workers, lan, wan);
    start_captures(&captures, &arguments.captures)?;
    cpu::prioritise(arguments.nice);
    let place = arguments.control.as_ref().unwrap_or(&config.control);
    let permissions = SocketPermissions { owner: credentials.ids(), group: privileges::control_group(config)? };
    let socket = control_socket([lan, wan], place, permissions)?;
    let control_port = control_port(config)?;
    let metrics = config.metrics.map(Server::listen).transpose()?;
    credentials.assume()?;
    if stop.load(Ordering::Relaxed) {
        info!("ended by a signal before the first frame");
        return Ok(());
    }

    let steerings = if arguments.bypass { Vec::new() } else { steerings(&pairs, arguments.steer, spread, &secrets)? };
    let cores = if arguments.no_pin { Cores::default() } else { Cores::for_each(workers) };
    let ready = ready_line(lan, wan, &pairs, arguments.bypass);
    let identity = identity(arguments.config.as_deref(), config, [lan, wan], &pairs);
    let facts = Facts { commanded: config.commanded(), ..facts(begin, [lan, wan], &pairs, arguments.bypass) };
    let links = LinkMonitor::new([lan, wan], &mut guard, config.link_loss);
    let changed = supervisor.clone();
    links.watch(move || changed.send(Message::Links).is_ok());
    let channel = (supervisor, messages);
    let pool = if arguments.bypass {
        let options = WorkerOptions { poll, shed: false, captures: captures.clone() };
        WorkerPool::start(pairs, steerings, Bypass::default, &cores, options, stop, channel)
    } else {
        let share = config.engine.share(workers);
        let policy = Arc::new(Policy::new(&share, clock::now()));
        let memories = (0..workers).map(|_| memory::anonymous(&share)).collect::<Result<Vec<_>, _>>()?;
        let memories = Arc::new(Mutex::new(memories));
        let engine = move || {
            let memory = memories.lock().unwrap_or_else(PoisonError::into_inner).pop().expect("one for each worker");
            Proxy::with_policy(&share, policy.clone(), &secrets, clock::now(), memory)
        };
        let options = WorkerOptions { poll, shed: config.shed, captures: captures.clone() };
        WorkerPool::start(pairs, steerings, engine, &cores, options, stop, channel)
    }?;
    let hash_key = [random().map(u64::from_ne_bytes)?, random().map(u64::from_ne_bytes)?];
    let servers = Arc::new(ServerRegistry::new(pool.commands(), hash_key));
    if let Some(control_port) = control_port {
        control_port.serve(servers.clone())?;
    }
    let api = Arc::new(ControlApi::new(facts, pool.board(), pool.commands(), servers, captures.clone(), log));
    if let Some(metrics) = metrics {
        metrics.serve(StatisticsSite::new(pool.board(), api.clone(), identity))?;
    }
    let serving = socket.map(|socket| socket.serve(api)).transpose()?;
    let end = pool.supervise(links, || eprintln!("{ready}"));
    drop(serving);
    captures.finish();
    if guard.unclaimed() > 0 {
        warn!("{} frames arrived on a queue that no worker serves, and were dropped", guard.unclaimed());
    }
    if guard.early_or_late() > 0 {
        debug!("{} frames arrived while the box was starting or ending, and were dropped", guard.early_or_late());
    }
    end
}

/// The control socket, unless it is off. The process does not start without a socket at the configured path, but it does without the
/// one at the default path.
fn control_socket(
    [lan, wan]: [&str; 2],
    place: &Control,
    permissions: SocketPermissions,
) -> Result<Option<Socket>, Failure> {
    match place {
        Control::None => Ok(None),
        Control::At(path) => match Socket::bind(path, permissions) {
            Ok(socket) => Ok(Some(socket)),
            Err(error) => Err(Failure::Socket { path: path.clone(), error }),
        },
        Control::Auto => {
            let path = ::control::default_path(lan, wan, socket::namespace());
            let bound = Socket::bind(&path, permissions);
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
fn facts(begin: Instant, [lan, wan]: [&str; 2], pairs: &[Pair], bypass: bool) -> Facts {
    let interface = |name: &str, port: Option<&dyn Port>| ::control::Interface {
        name: name.to_owned(),
        backend: port.map(|port| describe(&port.capabilities())).unwrap_or_default(),
        link: None,
    };
    let (lan_port, wan_port) = pairs.first().map(|pair| (&*pair.lan, &*pair.wan)).unzip();
    Facts { begin, lan: interface(lan, lan_port), wan: interface(wan, wan_port), bypass, commanded: false }
}

/// What the metrics say of the box.
fn identity(file: Option<&Path>, config: &Config, [lan, wan]: [&str; 2], pairs: &[Pair]) -> Identity {
    // FNV-1a: whether two boxes are configured alike, no more.
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = config.describe().bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let port = |name: &str, port: Option<&dyn Port>| {
        (name.to_owned(), port.map(|port| describe(&port.capabilities())).unwrap_or_default())
    };
    let (lan_port, wan_port) = pairs.first().map(|pair| (&*pair.lan, &*pair.wan)).unzip();
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let config = (file.map(|file| file.display().to_string()), hash);
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

/// How the workers steer frames to each other; a single worker has no steering.
fn steerings(
    pairs: &[Pair],
    steer: Steer,
    spread: Result<Twin, String>,
    secrets: &Secrets,
) -> Result<Vec<Steering>, Failure> {
    if pairs.len() < 2 {
        return Ok(Vec::new());
    }
    let longest = |pair: &Pair| pair.lan.capabilities().max_frame.max(pair.wan.capabilities().max_frame);
    let longest = pairs.iter().map(longest).max().unwrap_or_default();
    let strategy = match (spread, steer) {
        (Ok(twin), _) => {
            let hash = if twin.is_symmetric_xor() { "symmetric-xor with a secret key" } else { "a symmetric key" };
            info!("steering: both interfaces distribute connections over {} queues by {hash}", pairs.len());
            Strategy::Rss(twin)
        }
        (Err(reason), Steer::Auto | Steer::Handoff) => {
            info!(
                "steering: workers hand over misdirected frames; the interfaces have no symmetric distribution: {reason}"
            );
            Strategy::HandOff
        }
        (Err(_), Steer::Everything) => {
            info!("steering: workers hand over every frame, for tests");
            Strategy::Everything
        }
    };
    Steering::open(pairs.len(), longest, strategy, secrets).map_err(Failure::Spawn)
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
