//! `netmapsend`: one interface as a source of traffic, or as its end. What it says of itself on the command line, and how it goes about it;
//! the loads themselves are told in `pattern` and `clients`.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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

use crate::clients::{Clients, Manner, Outcome};
use crate::interface;
use crate::live::Live;
use crate::neighbours::{self, ServerUpdate};
use crate::pace::Pace;
use crate::pattern::{Counted, Flood, Pattern, SHORTEST, Sink, TEST_CONNECTIONS};
use crate::segment;
use crate::spray::{Kind, Mac, Sources, Spray, Target};
use crate::station::{Load, Outbox, Station};
use crate::tcp::Terms;

/// The Ethernet addresses of the pattern, and of whatever has none of its own: those that nmsynproxy's generator uses.
const OWN_MAC: Mac = [0x02, 0, 0, 0, 0, 0x04];
const PEER_MAC: Mac = [0x3c, 0xfd, 0xfe, 0xa5, 0x41, 0x49];

/// How long answers to a flood are listened for after its end.
const LINGER: Duration = Duration::from_millis(200);

/// Frames a load makes to see whether an interface takes them, and how long that may take.
const PROBE: u32 = 64;
const PROBE_WAIT: Duration = Duration::from_millis(20);

/// How long a question for a neighbour is repeated.
const ASKING: Duration = Duration::from_millis(1_500);

/// Sends traffic by one interface, or swallows it.
///
/// Without --flood, --connect or --sink: acknowledgements of 180 flows of 1514, 1514 and 64 bytes, from 10.0.0.x:12345 to 11.0.0.y:54321, for a
/// box whose configuration says `test_connections`. It ends by itself after --seconds. For test networks: floods are answered to strangers, and
/// the interface is taken from whoever uses it.
#[derive(Parser, Debug, Clone)]
#[command(name = "netmapsend", version)]
pub struct Arguments {
    /// The interface: [xdp:|netmap:|packet:]NAME, valeX:Y, netmap:NAME{N, pcap:out=FILE; a bare name takes the best that works.
    pub interface: String,

    /// Segments or datagrams of this kind from sources that do not exist.
    #[arg(long, value_enum, requires = "to", conflicts_with_all = ["connect", "sink"])]
    pub flood: Option<Kind>,
    /// Honest clients: handshakes at a rate, used for a word and closed, without help of the kernel's TCP.
    #[arg(long, requires = "to", conflicts_with = "sink")]
    pub connect: bool,
    /// Counts what comes in and answers nothing.
    #[arg(long)]
    pub sink: bool,

    /// How long, in seconds.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub seconds: f64,
    /// Frames in all, or connections; without, as many as there is time for.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Frames a second, all threads together, or connections; without, as many as will go (of connections 1000).
    #[arg(long, value_parser = rate)]
    pub rate: Option<f64>,
    /// Threads, each with a queue of the interface; for the pattern two if it has them, else one.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub threads: Option<u64>,

    /// Flows of the pattern, or connections there may be at the same time.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub flows: Option<u64>,
    /// Bytes of the pattern's frames, in turn, without check sequences.
    #[arg(long, value_delimiter = ',', default_values_t = [1514, 1514, 64], value_parser = clap::value_parser!(u64).range(SHORTEST as u64..=9216))]
    pub sizes: Vec<u64>,

    /// The address that is called or flooded.
    #[arg(long)]
    pub to: Option<IpAddr>,
    /// Its port.
    #[arg(long, default_value_t = 80)]
    pub port: u16,
    /// The network that the sources are in, as 192.0.2.0/24; a flood without one comes from the whole Internet. Honest clients need
    /// addresses to which answers find their way: they tell who asks where they are.
    #[arg(long, required_if_eq("connect", "true"))]
    pub from: Option<Sources>,
    /// The Ethernet destination; without, the kernel is asked, and then the wire.
    #[arg(long, value_parser = interface::parse_mac)]
    pub to_mac: Option<Mac>,
    /// The Ethernet source; without, the interface's own.
    #[arg(long, value_parser = interface::parse_mac)]
    pub from_mac: Option<Mac>,
    /// The 802.1Q tag of every frame.
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..=4094))]
    pub vlan: Option<u16>,

    /// SYNs of a flood without options, or clients that offer nothing but an MSS.
    #[arg(long)]
    pub bare: bool,
    /// The MSS that clients offer, 1460 at the most; 1460 without, in IPv6 1440.
    #[arg(long, value_parser = clap::value_parser!(u16).range(88..=1460))]
    pub mss: Option<u16>,
    /// Bytes a client says and wants to hear again from a server that echoes; 0 only opens and closes.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    pub word: u64,
    /// Clients go by a reset instead of a FIN.
    #[arg(long)]
    pub abrupt: bool,
    /// Seconds a client waits before it counts as lost.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub patience: f64,

    /// Where chance begins: the same seed makes the same load.
    #[arg(long)]
    pub seed: Option<u64>,
    /// One line of JSON instead of words.
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.001..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "between 0.001 and 3600 seconds".into())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (0.001..=1e9).contains(rate));
    rate.ok_or_else(|| "between 0.001 and 1000000000 a second".into())
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `pattern`, `flood`, `connect` or `sink`.
    pub load: &'static str,
    /// By which way frames left and came in.
    pub way: Vec<String>,
    /// How long it took.
    pub seconds: f64,
    /// Frames sent.
    pub sent: u64,
    /// Their bytes, without check sequences; not known where the kernel made them.
    pub sent_bytes: u64,
    /// Frames that the interface would not send.
    pub unsent: u64,
    /// Frames received.
    pub received: u64,
    /// Frames that came in and could not be taken.
    pub missed: u64,
    /// Connections that were answered; answers to a flood.
    pub answered: u64,
    /// Connections that were not.
    pub lost: u64,
    /// What was received, by kind.
    pub kinds: Option<Counted>,
    /// What became of clients.
    pub clients: Option<Outcome>,
}

impl Report {
    /// Whether nothing happened that should not have.
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

/// Does what the arguments say, until it is done, the time is over or `stop` is set.
///
/// # Errors
/// One line that says what is wrong and what to do.
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
    let own = arguments.from_mac.or_else(|| interface::mac(kernel?)).unwrap_or(OWN_MAC);
    let known = arguments.to_mac.or_else(|| interface::neighbour(to, kernel?));
    let target = |mac| Target { address: to, port: arguments.port, mac, from_mac: own, vlan: arguments.vlan };
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let job = |mac| Job { arguments, target: target(mac), sources, seed, duration, stop };
    let mut way = Vec::new();
    if let (Some(kind), Some(mac)) = (arguments.flood, known) {
        match job(mac).flood_by_the_kernel(kind) {
            Ok(report) => return Ok(report),
            Err(reason) => way.extend(reason),
        }
    }
    let threads = if arguments.connect { one_thread(arguments)? } else { arguments.threads.unwrap_or(1) as usize };
    let (mut stations, guard, notes) = open(&arguments.interface, threads)?;
    way.extend(notes);
    let mac = match known {
        Some(mac) => mac,
        None => ask(&mut stations[0], arguments, (to, own), stop)?,
    };
    let report = match arguments.flood {
        Some(kind) => job(mac).flood(kind, &mut stations),
        None => job(mac).connect(&mut stations),
    };
    drop(stations);
    drop(guard);
    report.map(|report| Report { way, ..report })
}

fn one_thread(arguments: &Arguments) -> Result<usize, String> {
    match arguments.threads {
        None | Some(1) => Ok(1),
        Some(_) => Err("a client's answers come in by one queue or another: --connect has one thread".into()),
    }
}

type Opened = (Vec<Station>, pktio::Guard, Vec<String>);

fn open(name: &str, threads: usize) -> Result<Opened, String> {
    let options = Options { workers: threads, frames_per_port: 4096, ..Options::default() };
    let opened = pktio::open_alone(name, &options).map_err(|error: OpenError| error.to_string())?;
    let Alone { queues, guard, notes } = opened;
    let stations = queues.into_iter().map(|Queue { port, pool }| Station { ports: vec![port], pool });
    Ok((stations.collect(), guard, notes))
}

/// Runs a load on each station, and returns them when all are over.
fn run_all<L: Load + Send>(
    stations: &mut [Station],
    loads: Vec<L>,
    end: Duration,
    stop: &AtomicBool,
) -> Result<(Vec<L>, f64), String> {
    let begin = Instant::now();
    let loads = thread::scope(|scope| {
        let threads: Vec<_> = stations
            .iter_mut()
            .zip(loads)
            .map(|(station, mut load)| scope.spawn(move || station.run(&mut load, begin, end, stop).map(|()| load)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, io::Result<L>>| thread.join().expect("a load does not panic");
        threads.into_iter().map(join).collect::<io::Result<Vec<_>>>()
    });
    Ok((loads.map_err(|error| format!("waiting for frames: {error}"))?, begin.elapsed().as_secs_f64()))
}

/// What the ports say of it.
fn report(load: &'static str, stations: &[Station], seconds: f64, kinds: Option<Counted>) -> Report {
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
    for passed in stations.iter().map(Station::passed) {
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

/// The share of `all` that falls to thread `index` of `threads`.
fn share(all: u64, index: usize, threads: usize) -> u64 {
    let (index, threads) = (index as u64, threads as u64);
    all / threads + u64::from(index < all % threads)
}

impl Arguments {
    fn pace(&self, duration: Duration, index: usize, threads: usize) -> Pace {
        let rate = self.rate.map(|rate| rate / threads as f64);
        Pace::new(rate, self.count.map(|count| share(count, index, threads)), duration)
    }
}

fn receive(arguments: &Arguments, duration: Duration, stop: &AtomicBool) -> Result<Report, String> {
    let threads = arguments.threads.unwrap_or(1) as usize;
    let (mut stations, guard, way) = open(&arguments.interface, threads)?;
    let sinks =
        (0..threads).map(|index| Sink::new(duration, arguments.count.map(|count| share(count, index, threads))));
    // What is sent before this is missed.
    eprintln!("netmapsend: ready");
    let (sinks, seconds) = run_all(&mut stations, sinks.collect(), duration, stop)?;
    let report = report("sink", &stations, seconds, Some(sum(sinks.iter().map(Sink::received))));
    drop(stations);
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
        return Err(format!("`test_connections` makes {TEST_CONNECTIONS} flows, and --flows asks for {flows}"));
    }
    let (mut stations, guard, way) = open(name, threads)?;
    let macs = [arguments.from_mac.unwrap_or(OWN_MAC), arguments.to_mac.unwrap_or(PEER_MAC)];
    let sizes: Vec<usize> = arguments.sizes.iter().map(|&size| size as usize).collect();
    let vlan = arguments.vlan.map_or(Vlan::default(), segment::tag);
    let mut first = 0;
    let loads = (0..threads).map(|index| {
        let last = first + share(flows, index, threads) as u32;
        let own = first..last;
        first = last;
        Pattern::new(own, &sizes, macs, vlan, arguments.pace(duration, index, threads))
    });
    let (loads, seconds) = run_all(&mut stations, loads.collect(), duration, stop)?;
    let report = report("pattern", &stations, seconds, Some(sum(loads.iter().map(Pattern::received))));
    drop(stations);
    drop(guard);
    Ok(Report { way, ..report })
}

/// What is to be sent to whom, in whose name, how long.
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
    /// A flood made by an XDP program in the kernel's own test loop: several times faster than any port. `Err` says why it is not so.
    fn flood_by_the_kernel(&self, kind: Kind) -> Result<Report, Option<String>> {
        let Job { arguments, target, sources, seed, duration, stop } = *self;
        let name = &arguments.interface;
        // One that is asked for by its backend is sent by that; and the loop knows no rate, no threads and no SYNs without options.
        if name.contains(':') || arguments.rate.is_some() || arguments.threads.is_some() || arguments.bare {
            return Err(None);
        }
        let not_so = |error: io::Error| Some(format!("{name}: not by the kernel's test loop: {error}"));
        let index = pktio::netdev::Interface::find(name).map_err(|error| not_so(io::Error::other(error)))?.index();
        let mut live = Live::flood(kind, target, sources, None, seed).map_err(not_so)?;
        live.port(0, index).map_err(not_so)?;
        let before = interface::packets(name).ok_or_else(|| Some(format!("{name}: its counters cannot be read")))?;
        let begin = Instant::now();
        live.run(PROBE).map_err(not_so)?;
        let taken = || interface::packets(name).is_some_and(|now| now[0] > before[0]);
        while !taken() {
            if begin.elapsed() > PROBE_WAIT * 2 {
                return Err(Some(format!(
                    "{name}: not by the kernel's test loop: the interface takes no redirected frames"
                )));
            }
            thread::sleep(Duration::from_millis(1));
        }
        let count = arguments.count.unwrap_or(u64::MAX).saturating_sub(PROBE.into());
        live.run_until(begin + duration, count, stop).map_err(not_so)?;
        let seconds = begin.elapsed().as_secs_f64();
        thread::sleep(LINGER);
        let made = live.count().map_err(not_so)?;
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

    fn flood(&self, kind: Kind, stations: &mut [Station]) -> Result<Report, String> {
        let Job { arguments, target, sources, seed, duration, stop } = *self;
        let threads = stations.len();
        let load = |index: usize| {
            let rng = SmallRng::seed_from_u64(seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let spray = Spray::new(kind, target, sources, arguments.bare, rng);
            Flood::new(spray, arguments.pace(duration, index, threads), LINGER)
        };
        let (loads, _) = run_all(stations, (0..threads).map(load).collect(), duration + 2 * LINGER, stop)?;
        let seconds = loads.iter().filter_map(Flood::ended).max().unwrap_or(duration).as_secs_f64();
        let kinds = sum(loads.iter().map(Flood::received));
        // What a SYN is answered with; everything else would be answered with a reset, if at all.
        let answered = if kind == Kind::Syn { kinds.syn_ack } else { kinds.rst };
        Ok(Report { answered, ..report("flood", stations, seconds.max(1e-6), Some(kinds)) })
    }

    fn connect(&self, stations: &mut [Station]) -> Result<Report, String> {
        let Job { arguments, target, sources, seed, duration, stop } = *self;
        let patience = Duration::from_secs_f64(arguments.patience);
        let terms = Terms::linux(arguments.mss.unwrap_or(if target.address.is_ipv4() { 1460 } else { 1440 }));
        let bare = Terms { sack: false, timestamps: false, scale: None, ..terms };
        let manner = Manner {
            target,
            sources,
            terms: if arguments.bare { bare } else { terms },
            word: arguments.word,
            abrupt: arguments.abrupt,
            most: arguments.flows.unwrap_or(100_000) as usize,
            patience,
        };
        let pace = Pace::new(Some(arguments.rate.unwrap_or(1_000.0)), arguments.count, duration);
        let clients = Clients::new(manner, pace, SmallRng::seed_from_u64(seed));
        let (mut clients, seconds) = run_all(stations, vec![clients], duration + patience, stop)?;
        let outcome = clients.remove(0).outcome();
        let (answered, lost) = (outcome.answered, outcome.lost);
        Ok(Report { answered, lost, clients: Some(outcome), ..report("connect", stations, seconds, None) })
    }
}

/// Asks the wire where `to` is.
fn ask(
    station: &mut Station,
    arguments: &Arguments,
    (to, own): (IpAddr, Mac),
    stop: &AtomicBool,
) -> Result<Mac, String> {
    let nobody = match to {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let asker = arguments.from.map_or(nobody, |sources| sources.nth(0));
    let mut question =
        Question { asker: (asker, own), target: to, vlan: arguments.vlan, again: Duration::ZERO, found: None };
    let asked = station.run(&mut question, Instant::now(), ASKING, stop);
    asked.map_err(|error| format!("waiting for frames: {error}"))?;
    question.found.ok_or_else(|| {
        let at = if stop.load(Ordering::Relaxed) { "interrupted" } else { "nobody says where it is" };
        format!("{to}: {at}; give its Ethernet address, or its router's, with --to-mac")
    })
}

/// Who has an address?
struct Question {
    asker: (IpAddr, Mac),
    target: IpAddr,
    vlan: Option<u16>,
    again: Duration,
    found: Option<Mac>,
}

impl Load for Question {
    fn receive(&mut self, _: usize, head: &mut Head<'_>, _: Duration, _: &mut Outbox<'_>) {
        if let Some(ServerUpdate::Tells { address, mac }) = neighbours::read(head.bytes())
            && address == self.target
        {
            self.found = Some(mac);
        }
    }

    fn send(&mut self, now: Duration, out: &mut Outbox<'_>) {
        if now >= self.again {
            let mut frame = [0; 96];
            let len = neighbours::ask(&mut frame, self.vlan, self.asker, self.target);
            out.copy(0, &frame[..len]);
            self.again = now + ASKING / 5;
        }
    }

    fn next(&self) -> Option<Duration> {
        Some(self.again)
    }

    fn is_over(&self, _: Duration) -> bool {
        self.found.is_some()
    }
}
