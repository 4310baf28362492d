//! The appliance: stands between a LAN and a WAN interface, and lets a server see only clients that have proved themselves.
//!
//! `main` reads as a table of contents. What becomes of a frame is decided in `tcpstate`; how frames get in and out is
//! `pktio`'s matter; here they are brought together: `dataplane` is the loop and the threads around it.

use crate::control::api::{Facts, Operator};
use crate::control::control_port::Commander;
use crate::control::servers::Registry;
use crate::control::socket;
use crate::control::socket::{Doors, Socket};
use crate::dataplane::engine::Bypass;
use crate::dataplane::pool::{Crew, Manner};
use crate::dataplane::steering::{Crossing, Strategy};
use crate::dataplane::worker;
use crate::metrics::capture::Recorder;
use crate::process::cli::{Arguments, Captures, Steer, Task};
use crate::process::cpu::Cores;
use crate::process::exit::Failure;
use crate::process::link_monitor::Watch;
use crate::process::log::{self, Dial};
use crate::process::privileges as identity;
use crate::process::privileges::Identity;
use crate::process::{clock, cpu, settings, signals};
use clap::Parser;
use confparse::{Config, Control, Poll};
use crossbeam::channel;
use pktio::capture::Former;
use pktio::rss::Twin;
use pktio::{Capabilities, Opened, Options, Pair, Port};
use rand::TryRng;
use rand::rngs::SysRng;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tcpstate::{Proxy, Secrets};
use tracing::{info, warn};

/// Runs the program with the arguments of the process, and returns its exit status.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let dial = log::init(arguments.log_level);
    let end = match arguments.task() {
        Task::CheckConfig(file) => settings::check(file),
        Task::Protect { lan, wan } => protect(lan, wan, &arguments, dial),
    };
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // A complaint about a file opens with its own place, where editors look for it.
            let who = if matches!(failure, Failure::Configuration(_)) { "" } else { "synproxy: " };
            eprintln!("{who}{failure}");
            failure.exit_code()
        }
    }
}

/// Stands between the two interfaces until a signal, the end of the frames, or a failure.
fn protect(lan: &str, wan: &str, arguments: &Arguments, dial: Dial) -> Result<(), Failure> {
    let begin = Instant::now();
    let config = settings::load(arguments.config.as_deref())?;
    let identity = Identity::of(&config)?;
    let workers = arguments.workers.map_or(config.workers, usize::from);
    let poll = arguments.poll.map_or(config.poll, Into::into);
    let secrets = secrets()?;

    let (boss, inbox) = channel::unbounded();
    let stop = Arc::new(AtomicBool::new(false));
    signals::listen(stop.clone(), boss.clone())?;

    // The ports go before the guard, which gives the interfaces their settings back: bindings are dropped last to first.
    let spread = (workers > 1 && arguments.steer == Steer::Auto).then(random).transpose()?;
    let options = Options {
        workers,
        batch: worker::BATCH,
        mode: arguments.xdp_mode.into(),
        busy_poll: poll == Poll::Busy,
        shed: config.shed && !arguments.bypass,
        netmap_slots: [config.ldp.netmap_nr_rx_slots, config.ldp.netmap_nr_tx_slots],
        spread,
        ..Options::default()
    };
    let Opened { guard, pairs, spread, .. } = pktio::open(lan, wan, &options)?;
    if arguments.config.is_none() {
        info!("no --config, so every key has its default");
    }
    let recorder = Recorder::new(workers, lan, wan);
    captures(&recorder, &arguments.captures)?;
    cpu::prioritise(arguments.nice);
    let place = arguments.control.as_ref().unwrap_or(&config.control);
    let socket = socket([lan, wan], place, Doors { owner: identity.numbers(), group: identity::operators(&config)? })?;
    let commander = commander(&config)?;
    identity.take()?;
    if stop.load(Ordering::Relaxed) {
        info!("ended by a signal before the first frame");
        return Ok(());
    }

    let crossings = if arguments.bypass { Vec::new() } else { crossings(&pairs, arguments.steer, spread, &secrets)? };
    let cores = if arguments.no_pin { Cores::default() } else { Cores::for_each(workers) };
    let ready = ready_line(lan, wan, &pairs, arguments.bypass);
    let facts = Facts { commanded: config.commanded(), ..facts(begin, [lan, wan], &pairs, arguments.bypass) };
    let channel = (boss, inbox);
    let crew = if arguments.bypass {
        Crew::start(
            pairs,
            crossings,
            Bypass::default,
            &cores,
            Manner { poll, shed: false, recorder: recorder.clone() },
            stop,
            channel,
        )
    } else {
        let share = config.engine.share(workers);
        Crew::start(
            pairs,
            crossings,
            move || Proxy::new(&share, &secrets, clock::now()),
            &cores,
            Manner { poll, shed: config.shed, recorder: recorder.clone() },
            stop,
            channel,
        )
    }?;
    let registry = Arc::new(Registry::new(crew.post(), [word()?, word()?]));
    if let Some(commander) = commander {
        commander.serve(registry.clone())?;
    }
    let operator = Arc::new(Operator::new(facts, crew.board(), crew.post(), registry, recorder.clone(), dial));
    let serving = socket.map(|socket| socket.serve(operator)).transpose()?;
    let end = crew.supervise(Watch::new([lan, wan]), || eprintln!("{ready}"));
    drop(serving);
    recorder.finish();
    if guard.strays() > 0 {
        warn!("{} frames arrived on a queue that no worker serves, and were dropped", guard.strays());
    }
    end
}

/// The operator's socket, if there is to be one. Without the one he has named, the box does not start; without the usual one, it does.
fn socket([lan, wan]: [&str; 2], place: &Control, doors: Doors) -> Result<Option<Socket>, Failure> {
    match place {
        Control::None => Ok(None),
        Control::At(path) => match Socket::bind(path, doors) {
            Ok(socket) => Ok(Some(socket)),
            Err(error) => Err(Failure::Socket { path: path.clone(), error }),
        },
        Control::Auto => {
            let path = control::default_path(lan, wan, socket::namespace());
            let bound = Socket::bind(&path, doors);
            Ok(bound.map_err(|error| warn!("no control socket, {}: {error}", path.display())).ok())
        }
    }
}

/// The control port, if any mode is `commanded`.
fn commander(config: &Config) -> Result<Option<Commander>, Failure> {
    let address = SocketAddr::new(config.listen, config.port);
    let listen = || Commander::listen(address).map_err(|error| Failure::Listen { address, error });
    config.commanded().then(listen).transpose()
}

/// What the operator is told of the box.
fn facts(begin: Instant, [lan, wan]: [&str; 2], pairs: &[Pair], bypass: bool) -> Facts {
    let interface = |name: &str, port: Option<&dyn Port>| control::Interface {
        name: name.to_owned(),
        backend: port.map(|port| describe(&port.capabilities())).unwrap_or_default(),
    };
    let (lan_port, wan_port) = pairs.first().map(|pair| (&*pair.lan, &*pair.wan)).unzip();
    Facts { begin, lan: interface(lan, lan_port), wan: interface(wan, wan_port), bypass, commanded: false }
}

/// Begins the captures the command line asks for.
fn captures(recorder: &Recorder, wanted: &Captures) -> Result<(), Failure> {
    let limits = wanted.limits();
    for (kind, path) in wanted.files() {
        recorder
            .start(kind, path, limits, Former::Emptied)
            .map_err(|error| Failure::Capture { path: path.display().to_string(), error })?;
    }
    Ok(())
}

/// How the workers reach each other; one alone has nobody to reach.
fn crossings(
    pairs: &[Pair],
    steer: Steer,
    spread: Result<Twin, String>,
    secrets: &Secrets,
) -> Result<Vec<Crossing>, Failure> {
    if pairs.len() < 2 {
        return Ok(Vec::new());
    }
    let longest = |pair: &Pair| pair.lan.capabilities().max_frame.max(pair.wan.capabilities().max_frame);
    let longest = pairs.iter().map(longest).max().unwrap_or_default();
    let strategy = match (spread, steer) {
        (Ok(twin), _) => {
            let way = if twin.is_joined() { "symmetric-xor with a secret key" } else { "a symmetric key" };
            info!("steering: both interfaces spread connections over {} queues by {way}", pairs.len());
            Strategy::Rss(twin)
        }
        (Err(reason), Steer::Auto | Steer::Handoff) => {
            info!("steering: workers hand over what is not theirs; no symmetric spreading by the interfaces: {reason}");
            Strategy::HandOff
        }
        (Err(_), Steer::Everything) => {
            info!("steering: workers hand over everything, for tests");
            Strategy::Everything
        }
    };
    Crossing::open(pairs.len(), longest, strategy, secrets).map_err(Failure::Spawn)
}

/// 48 bytes from the operating system, the same for every worker, so that a cookie minted by one opens at another.
fn secrets() -> Result<Secrets, Failure> {
    random().map(Secrets::new)
}

/// A number from the operating system.
fn word() -> Result<u64, Failure> {
    random().map(u64::from_ne_bytes)
}

/// Bytes from the operating system.
fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes)?;
    Ok(bytes)
}

/// What is said when frames flow.
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

/// A backend and how well it works here.
fn describe(capabilities: &Capabilities) -> String {
    let mut words = vec![capabilities.backend];
    if capabilities.backend == "xdp" {
        words.push(if capabilities.driver_mode { "driver mode" } else { "generic mode" });
        words.push(if capabilities.zero_copy { "zero copy" } else { "copy" });
    }
    words.join(", ")
}
