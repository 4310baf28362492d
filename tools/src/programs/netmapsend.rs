//! `netmapsend`: one interface as a traffic source or sink. Command line, set-up and report; the loads are in `pattern` and `clients`.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use pktio::{Alone, OpenError, Options, Queue};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::Serialize;
use tcpstate::Head;
use tcpstate::wire::Vlan;

use crate::clients::{ClientProfile, Clients, Outcome};
use crate::flood_template::{self, FloodTemplate, Kind, Mac, Sources, Target};
use crate::interface;
use crate::load_runner::{Load, LoadRunner, Outbox};
use crate::neighbours::{self, Message};
use crate::pace::Pace;
use crate::pattern::{Counted, Flood, Pattern, SHORTEST, Sink, TEST_CONNECTIONS};
use crate::segment;
use crate::tcp::Terms;
use crate::xdp_generator::XdpGenerator;

/// The Ethernet destination of the pattern: that of nmsynproxy's generator.
const PEER_MAC: Mac = [0x3c, 0xfd, 0xfe, 0xa5, 0x41, 0x49];

/// How long replies to a flood are received after its end.
const LINGER: Duration = Duration::from_millis(200);

/// Frames sent to test whether an interface accepts redirected frames, and how long that may take.
const PROBE: u32 = 64;
const PROBE_WAIT: Duration = Duration::from_millis(20);

/// How long address resolution is tried.
const RESOLVE_TIME: Duration = Duration::from_millis(1_500);

/// Sends test traffic by one interface, or receives it
///
/// Without --flood, --connect or --sink, sends acknowledgements of 180 flows, of 1514, 1514 and 64 bytes in turn, from 10.0.0.x:12345 to
/// 11.0.0.y:54321, for a synproxy configured with `test_connections`. Ends after --seconds. For test networks only: replies to a
/// flood go to other hosts, and the interface is taken away from its other users.
#[derive(Parser, Debug, Clone)]
#[command(name = "netmapsend", version)]
pub struct Arguments {
    /// The interface: [xdp:|netmap:|packet:]NAME, valeX:Y, netmap:NAME{N or pcap:out=FILE; a bare name selects the best I/O backend
    /// that works
    pub interface: String,

    /// Sends a flood of this kind from random source addresses
    #[arg(long, value_enum, requires = "to", conflicts_with_all = ["connect", "sink"])]
    pub flood: Option<Kind>,
    /// Simulates honest clients: each connects, exchanges a message and closes, without the kernel's TCP
    #[arg(long, requires = "to", conflicts_with = "sink")]
    pub connect: bool,
    /// Counts received frames and answers none
    #[arg(long)]
    pub sink: bool,

    /// Duration, in seconds
    #[arg(long, default_value_t = 10.0, value_parser = super::seconds)]
    pub seconds: f64,
    /// Total number of frames, or of connections with --connect; without it, limited only by --seconds
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Frames per second of all threads, or connections per second (default 1000) with --connect; without it, as fast as possible
    #[arg(long, value_parser = rate)]
    pub rate: Option<f64>,
    /// Number of threads, each with a queue of the interface; the default is 1, for the pattern 2 if there are two queues
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub threads: Option<u64>,

    /// Number of flows of the pattern, or of concurrent connections with --connect
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub flows: Option<u64>,
    /// Frame lengths of the pattern, used in turn, in bytes without FCS
    #[arg(long, value_delimiter = ',', default_values_t = [1514, 1514, 64], value_parser = clap::value_parser!(u64).range(SHORTEST as u64..=9216))]
    pub sizes: Vec<u64>,

    /// The target address
    #[arg(long)]
    pub to: Option<IpAddr>,
    /// The target port
    #[arg(long, default_value_t = 80)]
    pub port: u16,
    /// The network of the source addresses, such as 192.0.2.0/24; without it, a flood uses all public addresses. Replies to honest clients
    /// must be routed to this interface; ARP and neighbour discovery for the addresses are answered
    #[arg(long, required_if_eq("connect", "true"))]
    pub from: Option<Sources>,
    /// The Ethernet destination; without it, it is taken from the ARP table or resolved by ARP or neighbour discovery
    #[arg(long, value_parser = interface::parse_mac)]
    pub to_mac: Option<Mac>,
    /// The Ethernet source; without it, the interface's own address, and where there is none (a switch, a pipe, a capture) a random
    /// one, locally administered
    #[arg(long, value_parser = interface::parse_mac)]
    pub from_mac: Option<Mac>,
    /// The 802.1Q VLAN identifier of all frames
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..=4094))]
    pub vlan: Option<u16>,

    /// Flood SYNs without options, or clients that offer only an MSS
    #[arg(long)]
    pub bare: bool,
    /// The MSS that clients offer; the default is 1460, for IPv6 1440
    #[arg(long, value_parser = clap::value_parser!(u16).range(88..=1460))]
    pub mss: Option<u16>,
    /// Bytes each client sends and expects back from an echo server; with 0 it only connects and closes
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    pub word: u64,
    /// Clients close with an RST instead of a FIN
    #[arg(long)]
    pub abrupt: bool,
    /// Seconds each client waits before it counts as lost
    #[arg(long, default_value_t = 5.0, value_parser = super::seconds)]
    pub patience: f64,

    /// The seed of all random choices: the same seed makes the same load
    #[arg(long)]
    pub seed: Option<u64>,
    /// Prints the report as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Parses the command line and runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    crate::run_and_report("netmapsend", arguments.json, |stop| run(&arguments, stop), |report| report.is_good())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (0.001..=1e9).contains(rate));
    rate.ok_or_else(|| "expected between 0.001 and 1000000000 per second".into())
}

/// The report of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `pattern`, `flood`, `connect` or `sink`.
    pub load: &'static str,
    /// Notes on the I/O backend in use.
    pub way: Vec<String>,
    /// The duration, in seconds.
    pub seconds: f64,
    /// Frames sent.
    pub sent: u64,
    /// Their bytes, without FCS; 0 if the kernel generated the frames.
    pub sent_bytes: u64,
    /// Frames the interface refused to send.
    pub unsent: u64,
    /// Frames received.
    pub received: u64,
    /// Frames lost on reception.
    pub missed: u64,
    /// Connections whose SYN was answered, or replies to a flood.
    pub answered: u64,
    /// Connections that timed out.
    pub lost: u64,
    /// Received frames, by kind.
    pub kinds: Option<Counted>,
    /// Results of the clients.
    pub clients: Option<Outcome>,
}

impl Report {
    /// Whether no client was lost, refused, or received wrong data.
    pub fn is_good(&self) -> bool {
        self.clients.as_ref().is_none_or(|clients| clients.lost + clients.refused + clients.wrong == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for way in &self.way {
            writeln!(f, "# {way}")?;
        }
        let a_second = |count: u64| count as f64 / self.seconds / 1e3;
        writeln!(f, "load={} seconds={:.3}", self.load, self.seconds)?;
        write!(f, "sent={} sent-kpps={:.1}", self.sent, a_second(self.sent))?;
        if self.sent_bytes > 0 {
            write!(f, " sent-gbps={:.3}", self.sent_bytes as f64 * 8e-9 / self.seconds)?;
        }
        writeln!(f, " unsent={}", self.unsent)?;
        writeln!(f, "received={} received-kpps={:.1} missed={}", self.received, a_second(self.received), self.missed)?;
        writeln!(f, "answered={} lost={}", self.answered, self.lost)?;
        if let Some(Counted { bytes, syn, syn_ack, rst, fin, ack, other, wrong, .. }) = self.kinds {
            writeln!(
                f,
                "received: bytes={bytes} syn={syn} syn-ack={syn_ack} rst={rst} fin={fin} ack={ack} other={other} wrong={wrong}"
            )?;
        }
        if let Some(clients) = &self.clients {
            writeln!(
                f,
                "clients: attempted={} answered={} served={} refused={} lost={} sent-again={} wrong={} per-second={:.1}",
                clients.attempted,
                clients.answered,
                clients.served,
                clients.refused,
                clients.lost,
                clients.sent_again,
                clients.wrong,
                clients.served as f64 / self.seconds
            )?;
            writeln!(f, "handshake: {}", clients.handshake)?;
            writeln!(f, "service: {}", clients.service)?;
        }
        Ok(())
    }
}

/// Runs the load until it ends, its time is over, or `stop` is set.
///
/// # Errors
/// A line that says what is wrong and what to do.
pub fn run(arguments: &Arguments, stop: &AtomicBool) -> Result<Report, String> {
    let duration = Duration::from_secs_f64(arguments.seconds);
    if arguments.sink {
        return receive(arguments, duration, stop);
    }
    let Some(to) = arguments.to else { return send_pattern(arguments, duration, stop) };
    let sources = arguments.from.unwrap_or(if to.is_ipv4() { Sources::ANY_V4 } else { Sources::ANY_V6 });
    if sources.is_ipv4() != to.is_ipv4() {
        return Err("--from and --to are of different address families".into());
    }
    let kernel = interface::behind(&arguments.interface);
    let own = arguments.own_mac();
    let known = arguments.to_mac.or_else(|| interface::neighbour(to, kernel?));
    let target = |mac| Target { address: to, port: arguments.port, mac, from_mac: own, vlan: arguments.vlan };
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let job = |mac| Job { arguments, target: target(mac), sources, seed, duration, stop };
    let mut way = Vec::new();
    if let (Some(kind), Some(mac)) = (arguments.flood, known) {
        match job(mac).flood_from_kernel(kind) {
            Ok(report) => return Ok(report),
            Err(reason) => way.extend(reason),
        }
    }
    let threads = if arguments.connect { one_thread(arguments)? } else { arguments.threads.unwrap_or(1) as usize };
    let (mut runners, guard, notes) = open(&arguments.interface, threads)?;
    way.extend(notes);
    let mac = match known {
        Some(mac) => mac,
        None => resolve(&mut runners[0], arguments, (to, own), stop)?,
    };
    let report = match arguments.flood {
        Some(kind) => job(mac).flood(kind, &mut runners),
        None => job(mac).connect(&mut runners),
    };
    drop(runners);
    drop(guard);
    report.map(|report| Report { way, ..report })
}

fn one_thread(arguments: &Arguments) -> Result<usize, String> {
    match arguments.threads {
        None | Some(1) => Ok(1),
        Some(_) => Err("--connect supports one thread only: a client's replies may arrive on any queue".into()),
    }
}

type Opened = (Vec<LoadRunner>, pktio::Guard, Vec<String>);

fn open(name: &str, threads: usize) -> Result<Opened, String> {
    let options = Options { workers: threads, frames_per_port: 4096, ..Options::default() };
    let opened = pktio::open_alone(name, &options).map_err(|error: OpenError| error.to_string())?;
    let Alone { queues, guard, notes } = opened;
    let runners = queues.into_iter().map(|Queue { port, pool }| LoadRunner { ports: vec![port], pool });
    Ok((runners.collect(), guard, notes))
}

/// Runs a load on each runner. Returns the loads and the duration in seconds when all have ended.
fn run_all<L: Load + Send>(
    runners: &mut [LoadRunner],
    loads: Vec<L>,
    end: Duration,
    stop: &AtomicBool,
) -> Result<(Vec<L>, f64), String> {
    let begin = Instant::now();
    let loads = thread::scope(|scope| {
        let threads: Vec<_> = runners
            .iter_mut()
            .zip(loads)
            .map(|(runner, mut load)| scope.spawn(move || runner.run(&mut load, begin, end, stop).map(|()| load)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, io::Result<L>>| thread.join().expect("a load does not panic");
        threads.into_iter().map(join).collect::<io::Result<Vec<_>>>()
    });
    Ok((loads.map_err(|error| format!("waiting for frames: {error}"))?, begin.elapsed().as_secs_f64()))
}

/// A report with the counters of the ports.
fn report(load: &'static str, runners: &[LoadRunner], seconds: f64, kinds: Option<Counted>) -> Report {
    let mut report = Report {
        load,
        way: Vec::new(),
        seconds,
        sent: 0,
        sent_bytes: 0,
        unsent: 0,
        received: 0,
        missed: 0,
        answered: 0,
        lost: 0,
        kinds,
        clients: None,
    };
    for passed in runners.iter().map(LoadRunner::passed) {
        report.sent += passed.sent;
        report.sent_bytes += passed.sent_bytes;
        report.unsent += passed.unsent;
        report.received += passed.received;
        report.missed += passed.missed;
    }
    report
}

fn sum<'a>(counts: impl Iterator<Item = &'a Counted>) -> Counted {
    counts.fold(Counted::default(), |mut sum, count| {
        sum.add(count);
        sum
    })
}

/// The share of `all` of thread `index` of `threads`.
fn share(all: u64, index: usize, threads: usize) -> u64 {
    let (index, threads) = (index as u64, threads as u64);
    all / threads + u64::from(index < all % threads)
}

impl Arguments {
    fn own_mac(&self) -> Mac {
        self.from_mac.unwrap_or_else(|| interface::source_mac(&self.interface, self.seed))
    }

    fn pace(&self, duration: Duration, index: usize, threads: usize) -> Pace {
        let rate = self.rate.map(|rate| rate / threads as f64);
        Pace::new(rate, self.count.map(|count| share(count, index, threads)), duration)
    }
}

fn receive(arguments: &Arguments, duration: Duration, stop: &AtomicBool) -> Result<Report, String> {
    let threads = arguments.threads.unwrap_or(1) as usize;
    let (mut runners, guard, way) = open(&arguments.interface, threads)?;
    let sinks =
        (0..threads).map(|index| Sink::new(duration, arguments.count.map(|count| share(count, index, threads))));
    // Frames sent before this line are missed.
    eprintln!("netmapsend: ready");
    let (sinks, seconds) = run_all(&mut runners, sinks.collect(), duration, stop)?;
    let report = report("sink", &runners, seconds, Some(sum(sinks.iter().map(Sink::received))));
    drop(runners);
    drop(guard);
    Ok(Report { way, ..report })
}

fn send_pattern(arguments: &Arguments, duration: Duration, stop: &AtomicBool) -> Result<Report, String> {
    let name = &arguments.interface;
    let queues = || match interface::behind(name) {
        Some(interface) => interface::queues(interface).unwrap_or(1).clamp(1, 2),
        None if name.starts_with("vale") => 2,
        None => 1,
    };
    let threads = arguments.threads.map_or_else(queues, |threads| threads as usize);
    let flows = arguments.flows.unwrap_or(180);
    if flows > TEST_CONNECTIONS.into() {
        return Err(format!("--flows is at most {TEST_CONNECTIONS}, the number of test connections, found {flows}"));
    }
    let (mut runners, guard, way) = open(name, threads)?;
    let macs = [arguments.own_mac(), arguments.to_mac.unwrap_or(PEER_MAC)];
    let sizes: Vec<usize> = arguments.sizes.iter().map(|&size| size as usize).collect();
    let vlan = arguments.vlan.map_or(Vlan::default(), segment::tag);
    let mut first = 0;
    let loads = (0..threads).map(|index| {
        let last = first + share(flows, index, threads) as u32;
        let own = first..last;
        first = last;
        Pattern::new(own, &sizes, macs, vlan, arguments.pace(duration, index, threads))
    });
    let (loads, seconds) = run_all(&mut runners, loads.collect(), duration, stop)?;
    let report = report("pattern", &runners, seconds, Some(sum(loads.iter().map(Pattern::received))));
    drop(runners);
    drop(guard);
    Ok(Report { way, ..report })
}

/// A flood or clients: target, sources and duration.
#[derive(Clone, Copy)]
struct Job<'a> {
    arguments: &'a Arguments,
    target: Target,
    sources: Sources,
    seed: u64,
    duration: Duration,
    stop: &'a AtomicBool,
}

impl Job<'_> {
    /// A flood from an XDP program in the kernel's test loop, several times faster than a port. `Err` says why that is not
    /// possible, if there is anything to say.
    fn flood_from_kernel(&self, kind: Kind) -> Result<Report, Option<String>> {
        let Job { arguments, target, sources, seed, duration, stop } = *self;
        let name = &arguments.interface;
        // A named backend is used as asked; and here the test loop supports neither a rate nor threads nor bare SYNs.
        if name.contains(':') || arguments.rate.is_some() || arguments.threads.is_some() || arguments.bare {
            return Err(None);
        }
        let unusable = |error: io::Error| Some(format!("{name}: not using the kernel's test loop: {error}"));
        let index = pktio::netdev::Interface::find(name).map_err(|error| unusable(io::Error::other(error)))?.index();
        let mut generator = XdpGenerator::flood(kind, target, sources, None, seed).map_err(unusable)?;
        generator.port(0, index).map_err(unusable)?;
        let before =
            interface::packets(name).ok_or_else(|| Some(format!("{name}: cannot read the interface counters")))?;
        let begin = Instant::now();
        generator.run(PROBE).map_err(unusable)?;
        // One or two more may be the host's own.
        let taken = || interface::packets(name).is_some_and(|now| now[0] - before[0] >= u64::from(PROBE / 2));
        while !taken() {
            if begin.elapsed() > PROBE_WAIT * 2 {
                return Err(Some(format!(
                    "{name}: not using the kernel's test loop: the interface accepts no redirected frames"
                )));
            }
            thread::sleep(Duration::from_millis(1));
        }
        let count = arguments.count.unwrap_or(u64::MAX).saturating_sub(PROBE.into());
        generator.run_until(begin + duration, count, stop).map_err(unusable)?;
        let seconds = begin.elapsed().as_secs_f64();
        thread::sleep(LINGER);
        let made = generator.count().map_err(unusable)?;
        let after = interface::packets(name).unwrap_or(before);
        let [sent, received] = [after[0] - before[0], after[1] - before[1]];
        Ok(Report {
            load: "flood",
            way: vec![format!("{name}: an XDP program in the kernel's test loop; counted by the interface")],
            seconds,
            sent: sent.min(made),
            sent_bytes: 0,
            unsent: made.saturating_sub(sent),
            received,
            missed: 0,
            answered: received,
            lost: 0,
            kinds: None,
            clients: None,
        })
    }

    fn flood(&self, kind: Kind, runners: &mut [LoadRunner]) -> Result<Report, String> {
        let Job { arguments, target, sources, seed, duration, stop } = *self;
        let threads = runners.len();
        let load = |index: usize| {
            let rng = flood_template::thread_rng(seed, index as u64);
            let template = FloodTemplate::new(kind, target, sources, arguments.bare, rng);
            Flood::new(template, arguments.pace(duration, index, threads), LINGER)
        };
        let (loads, _) = run_all(runners, (0..threads).map(load).collect(), duration + 2 * LINGER, stop)?;
        let seconds = loads.iter().filter_map(Flood::ended).max().unwrap_or(duration).as_secs_f64();
        let kinds = sum(loads.iter().map(Flood::received));
        // A SYN is answered with a SYN-ACK; any other kind with an RST, if at all.
        let answered = if kind == Kind::Syn { kinds.syn_ack } else { kinds.rst };
        Ok(Report { answered, ..report("flood", runners, seconds.max(1e-6), Some(kinds)) })
    }

    fn connect(&self, runners: &mut [LoadRunner]) -> Result<Report, String> {
        let Job { arguments, target, sources, seed, duration, stop } = *self;
        let patience = Duration::from_secs_f64(arguments.patience);
        let terms = Terms::linux(arguments.mss.unwrap_or(if target.address.is_ipv4() { 1460 } else { 1440 }));
        let bare = Terms { sack: false, timestamps: false, scale: None, ..terms };
        let profile = ClientProfile {
            target,
            sources,
            terms: if arguments.bare { bare } else { terms },
            message: arguments.word,
            abrupt: arguments.abrupt,
            most: arguments.flows.unwrap_or(100_000) as usize,
            patience,
        };
        let pace = Pace::new(Some(arguments.rate.unwrap_or(1_000.0)), arguments.count, duration);
        let clients = Clients::new(profile, pace, SmallRng::seed_from_u64(seed));
        let (mut clients, seconds) = run_all(runners, vec![clients], duration + patience, stop)?;
        let outcome = clients.remove(0).outcome();
        let (answered, lost) = (outcome.answered, outcome.lost);
        Ok(Report { answered, lost, clients: Some(outcome), ..report("connect", runners, seconds, None) })
    }
}

/// Resolves the Ethernet address of `to` by ARP or neighbour discovery.
fn resolve(
    runner: &mut LoadRunner,
    arguments: &Arguments,
    (to, own): (IpAddr, Mac),
    stop: &AtomicBool,
) -> Result<Mac, String> {
    let unspecified = match to {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let sender = arguments.from.map_or(unspecified, |sources| sources.nth(0));
    let mut query =
        AddressQuery { sender: (sender, own), target: to, vlan: arguments.vlan, again: Duration::ZERO, found: None };
    let asked = runner.run(&mut query, Instant::now(), RESOLVE_TIME, stop);
    asked.map_err(|error| format!("waiting for frames: {error}"))?;
    query.found.ok_or_else(|| {
        let at = if stop.load(Ordering::Relaxed) { "interrupted" } else { "its Ethernet address cannot be resolved" };
        format!("{to}: {at}; give the Ethernet address, or the router's, with --to-mac")
    })
}

/// Address resolution, as a load.
struct AddressQuery {
    sender: (IpAddr, Mac),
    target: IpAddr,
    vlan: Option<u16>,
    again: Duration,
    found: Option<Mac>,
}

impl Load for AddressQuery {
    fn receive(&mut self, _: usize, head: &mut Head<'_>, _: Duration, _: &mut Outbox<'_>) {
        if let Some(Message::Reply { address, mac }) = neighbours::parse(head.bytes())
            && address == self.target
        {
            self.found = Some(mac);
        }
    }

    fn send(&mut self, now: Duration, out: &mut Outbox<'_>) {
        if now >= self.again {
            let mut frame = [0; 96];
            let len = neighbours::write_request(&mut frame, self.vlan, self.sender, self.target);
            out.copy(0, &frame[..len]);
            self.again = now + RESOLVE_TIME / 5;
        }
    }

    fn next(&self) -> Option<Duration> {
        Some(self.again)
    }

    fn is_over(&self, _: Duration) -> bool {
        self.found.is_some()
    }
}
