//! `tcpsendrecv`: plays both endpoints of many connections through a box, and checks every byte and every sequence number. Command line,
//! set-up and report; the load is in `transfer_check`.

use std::fmt;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use pktio::{Opened, Options, Pair};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::Serialize;
use tcpstate::wire::Vlan;
use tcpstate::{PerSide, Side};

use crate::interface;
use crate::load_runner::{LoadRunner, Passed};
use crate::segment;
use crate::tcp::Terms;
use crate::transfer_check::{Plan, TransferCheck, TransferReport};

/// How long connections may take to close after the end of the transfer.
const CLOSING: Duration = Duration::from_secs(5);

/// Plays both endpoints of TCP connections through synproxy and checks every byte
///
/// Plays the server behind the LAN port and the client behind the WAN port, on many connections at once, and checks every byte and every
/// sequence number. Ends after --seconds. For test networks only: the interfaces are taken away from their other users.
#[derive(Parser, Debug, Clone)]
#[command(name = "tcpsendrecv", version)]
pub struct Arguments {
    /// The interface connected to synproxy's LAN port: [xdp:|netmap:|packet:]NAME or valeX:Y; a bare name selects the best I/O
    /// backend that works
    pub lan: String,
    /// The interface connected to synproxy's WAN port
    pub wan: String,

    /// Number of connections; the default is 24
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub flows: Option<u32>,
    /// Bytes each sender sends on each connection; without it, limited only by --seconds
    #[arg(long)]
    pub bytes: Option<u64>,
    /// Duration, in seconds; then connections are closed, which may take five more seconds
    #[arg(long, default_value_t = 10.0, value_parser = super::seconds)]
    pub seconds: f64,
    /// The side that opens the connections; the default is wan
    #[arg(long, value_enum)]
    pub open: Option<Who>,
    /// The side that sends; the default is both
    #[arg(long, value_enum)]
    pub send: Option<Who>,
    /// The largest number of unacknowledged bytes in each direction of each connection; the default is 65536
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub in_flight: Option<u64>,
    /// Transfers like a program of nmsynproxy: the LAN opens the connections, and only the LAN sends. `tcpsendrecv`: 2 connections with 2
    /// segments in flight. `tcpsendrecv1`: 24 connections with 64 KiB in flight
    #[arg(long, value_enum)]
    pub like: Option<Like>,

    /// Connections opened per second
    #[arg(long, default_value_t = 1_000.0)]
    pub rate: f64,
    /// The MSS both endpoints offer; the default is 1460, for IPv6 1440
    #[arg(long, value_parser = clap::value_parser!(u16).range(88..=1460))]
    pub mss: Option<u16>,
    /// Offers no options but the MSS
    #[arg(long)]
    pub bare: bool,
    /// Uses IPv6 instead of IPv4
    #[arg(long)]
    pub ipv6: bool,
    /// The 802.1Q VLAN identifier of all frames
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..=4094))]
    pub vlan: Option<u16>,
    /// The seed of all random choices: the same seed makes the same sequence numbers
    #[arg(long)]
    pub seed: Option<u64>,
    /// Prints the report as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// One side, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Who {
    /// The LAN side
    Lan,
    /// The WAN side
    Wan,
    /// Both sides
    Both,
}

/// A program of nmsynproxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Like {
    /// 2 connections, 2 segments in flight
    Tcpsendrecv,
    /// 24 connections, 64 KiB in flight
    Tcpsendrecv1,
}

/// Parses the command line and runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    crate::run_and_report("tcpsendrecv", arguments.json, |stop| run(&arguments, stop), |report| report.is_good())
}

/// The report of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Notes on the I/O backend in use.
    pub way: Vec<String>,
    /// The duration, in seconds.
    pub seconds: f64,
    /// Frames sent.
    pub sent: u64,
    /// Frames received.
    pub received: u64,
    /// Frames the interfaces refused to send.
    pub unsent: u64,
    /// Frames lost on reception.
    pub missed: u64,
    /// Results of the connections.
    #[serde(flatten)]
    pub transfer: TransferReport,
}

impl Report {
    /// Whether every connection finished and nothing wrong was received.
    pub fn is_good(&self) -> bool {
        let TransferReport { opened, finished, failed, wrong, .. } = self.transfer;
        opened == finished && failed == 0 && wrong == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for way in &self.way {
            writeln!(f, "# {way}")?;
        }
        let TransferReport { opened, finished, failed, bytes_to_lan, bytes_to_wan, wrong, sent_again, .. } =
            self.transfer;
        let gbps = |bytes: u64| bytes as f64 * 8e-9 / self.seconds;
        writeln!(
            f,
            "seconds={:.3} sent={} received={} missed={}",
            self.seconds, self.sent, self.received, self.missed
        )?;
        writeln!(f, "opened={opened} finished={finished} failed={failed} wrong={wrong} sent-again={sent_again}")?;
        writeln!(f, "bytes-to-lan={bytes_to_lan} gbps={:.3}", gbps(bytes_to_lan))?;
        writeln!(f, "bytes-to-wan={bytes_to_wan} gbps={:.3}", gbps(bytes_to_wan))?;
        writeln!(f, "handshake: {}", self.transfer.handshake)?;
        writeln!(f, "opening: {}", self.transfer.opening)
    }
}

/// Runs the transfer until it ends, its time is over, or `stop` is set.
///
/// # Errors
/// A line that says what is wrong and what to do.
pub fn run(arguments: &Arguments, stop: &AtomicBool) -> Result<Report, String> {
    let until = Duration::from_secs_f64(arguments.seconds);
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let plan = arguments.plan(until, seed)?;
    // Two ports of one switch are a test of the switch.
    let options = Options { frames_per_port: 4096, forwards: false, ..Options::default() };
    let opened = pktio::open(&arguments.lan, &arguments.wan, &options).map_err(|error| error.to_string())?;
    let Opened { pairs, guard, notes: way, .. } = opened;
    let Some(Pair { lan, wan, pool }) = pairs.into_iter().next() else { return Err("no port was opened".into()) };
    let mut runner = LoadRunner { ports: vec![lan, wan], pool };
    let mut load = TransferCheck::new(plan, arguments.rate, SmallRng::seed_from_u64(seed));
    let begin = Instant::now();
    let ran = runner.run(&mut load, begin, until + CLOSING, stop);
    ran.map_err(|error| format!("waiting for frames: {error}"))?;
    let (seconds, passed) = (begin.elapsed().as_secs_f64(), runner.passed());
    drop(runner);
    drop(guard);
    let Passed { sent, received, unsent, missed, .. } = passed;
    Ok(Report { way, seconds, sent, received, unsent, missed, transfer: load.outcome() })
}

impl Arguments {
    fn plan(&self, until: Duration, seed: u64) -> Result<Plan, String> {
        let mss = self.mss.unwrap_or(if self.ipv6 { 1440 } else { 1460 });
        let (flows, open, send, in_flight) = match self.like {
            None => (24, Who::Wan, Who::Both, 64 << 10),
            Some(Like::Tcpsendrecv) => (2, Who::Lan, Who::Lan, 2 * u64::from(mss)),
            Some(Like::Tcpsendrecv1) => (24, Who::Lan, Who::Lan, 64 << 10),
        };
        let opener = match self.open.unwrap_or(open) {
            Who::Lan => Side::Lan,
            Who::Wan => Side::Wan,
            Who::Both => return Err("a connection is opened by one side: use --open lan or --open wan".into()),
        };
        let send = self.send.unwrap_or(send);
        let in_flight = self.in_flight.unwrap_or(in_flight);
        let linux = Terms::linux(mss);
        let window = u32::try_from(in_flight.max(64 << 10)).map_err(|_| "--in-flight is too large")?;
        let terms = Terms { in_flight, window, ..linux };
        let bare = Terms { sack: false, timestamps: false, scale: None, ..terms };
        Ok(Plan {
            flows: self.flows.unwrap_or(flows),
            opener,
            sends: PerSide::new(send != Who::Wan, send != Who::Lan),
            bytes: self.bytes,
            until,
            terms: if self.bare { bare } else { terms },
            macs: PerSide::new(interface::own_mac(Some(seed), 0), interface::own_mac(Some(seed), 1)),
            v6: self.ipv6,
            vlan: self.vlan.map_or(Vlan::default(), segment::tag),
        })
    }
}
