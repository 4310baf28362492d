//! The appliance: stands between a LAN and a WAN interface, and lets a server see only clients that have proved themselves.
//!
//! `main` reads as a table of contents. What becomes of a frame is decided in `tcpstate`; how frames get in and out is
//! `pktio`'s matter; here they are brought together: [`worker`] is the loop, [`crew`] the threads around it.

mod cli;
mod clock;
mod crew;
mod engine;
mod failure;
mod identity;
mod log;
mod pace;
mod pen;
mod pressure;
mod relief;
mod report;
mod settings;
mod signals;
mod stats;
mod watch;
mod worker;

use clap::Parser;
use cli::{Arguments, Task};
use confparse::Poll;
use crew::{Crew, Manner};
use crossbeam::channel;
use engine::Bypass;
use failure::Failure;
use identity::Identity;
use pktio::{Capabilities, Opened, Options, Port};
use rand::TryRng;
use rand::rngs::SysRng;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tcpstate::{Proxy, Secrets};
use tracing::{info, warn};
use watch::Watch;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log::init(arguments.log_level.into());
    let end = match arguments.task() {
        Task::CheckConfig(file) => settings::check(file),
        Task::Protect { lan, wan } => protect(lan, wan, &arguments),
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
fn protect(lan: &str, wan: &str, arguments: &Arguments) -> Result<(), Failure> {
    let config = settings::load(arguments.config.as_deref())?;
    let identity = Identity::of(&config)?;
    let workers = arguments.workers.map_or(config.workers, usize::from);
    let poll = arguments.poll.map_or(config.poll, Into::into);
    let secrets = secrets()?;

    let (boss, inbox) = channel::unbounded();
    let stop = Arc::new(AtomicBool::new(false));
    signals::listen(stop.clone(), boss.clone())?;

    // The ports go before the guard, which gives the interfaces their settings back: bindings are dropped last to first.
    let options = Options {
        workers,
        batch: worker::BATCH,
        mode: arguments.xdp_mode.into(),
        busy_poll: poll == Poll::Busy,
        shed: config.shed && !arguments.bypass,
        ..Options::default()
    };
    let Opened { guard, pairs, .. } = pktio::open(lan, wan, &options)?;
    if arguments.config.is_none() {
        info!("no --config, so every key has its default");
    }
    if workers > 1 {
        warn!(
            "{workers} workers: unless both interfaces steer the two directions of a connection to the same queue, \
             connections that cross queues will not work; one worker is always right"
        );
    }
    crew::prioritise(arguments.nice);
    identity.take()?;
    if stop.load(Ordering::Relaxed) {
        info!("ended by a signal before the first frame");
        return Ok(());
    }

    let cores = if arguments.no_pin { Vec::new() } else { crew::cores(workers) };
    let ready = ready_line(lan, wan, &pairs, arguments.bypass);
    let channel = (boss, inbox);
    let crew = if arguments.bypass {
        Crew::start(pairs, Bypass::default, &cores, Manner { poll, shed: false }, stop, channel)
    } else {
        let share = config.engine.share(workers);
        Crew::start(
            pairs,
            move || Proxy::new(&share, &secrets, clock::now()),
            &cores,
            Manner { poll, shed: config.shed },
            stop,
            channel,
        )
    }?;
    let end = crew.supervise(Watch::new([lan, wan]), || eprintln!("{ready}"));
    if guard.strays() > 0 {
        warn!("{} frames arrived on a queue that no worker serves, and were dropped", guard.strays());
    }
    end
}

/// 48 bytes from the operating system, the same for every worker, so that a cookie minted by one opens at another.
fn secrets() -> Result<Secrets, Failure> {
    let mut random = [0; 48];
    SysRng.try_fill_bytes(&mut random)?;
    Ok(Secrets::new(random))
}

/// What is said when frames flow.
fn ready_line(lan: &str, wan: &str, pairs: &[pktio::Pair], bypass: bool) -> String {
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
