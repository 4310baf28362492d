//! `synctl`: the operator's hand at a running box. Asks over the control socket, and prints the answer for people, or as JSON for programs.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand};
use control::{
    CaptureKind, CaptureLimits, Client, Complaint, Cursor, Entry, FlowFilter, Key, LogLevel, Reply, Request, Side,
};
use pktio::pcap::{PcapFileError, PcapReader, Record};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use tools::watch::{self, Trouble};
use tools::{show, views};

/// Shown below the options in `--help`.
const AFTER_HELP: &str = "\
Exit status:
  0  done
  1  the box refuses, or answers something else; or what was waited for has not come
  2  the command line is wrong
  4  there is no box to be reached, or several and none was named
  5  not permitted: run as root, as the user the box runs as, or as one of its `control_group`";

/// Shown below the options of `top`.
const TOP_HELP: &str = "\
Keys:
  q  end          s  sort talkers by frames, SYNs or bytes
  p  freeze       t  what happens in a second, or since the start";

/// Shown below the options of `explain`.
const EXPLAIN_HELP: &str = "\
The box's own engine decides on a copy of the frame, with copies of whatever its fate depends on.";

/// Shown below the options of `capture start`.
const CAPTURE_HELP: &str = "\
Frames:
  received  every frame received, on either port, before it is edited
  sent      every frame sent, by either port, after it was edited
  lan       what the LAN port receives and sends
  wan       what the WAN port receives and sends
  drops     samples of the frames dropped, each with the reason as its comment

Of each kind one capture goes on at a time. It ends by `synctl capture stop`, or with the box.";

/// Asks a running synproxy how it is, and tells it what to do
#[derive(Debug, Parser)]
#[command(name = "synctl", version, after_help = AFTER_HELP)]
struct Arguments {
    /// The box's control socket; not needed where only one box runs
    #[arg(long, value_name = "PATH", global = true, display_order = 100)]
    socket: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

/// What is asked.
#[derive(Debug, Subcommand)]
enum Command {
    /// What the box is, and whether its workers answer
    Status {
        /// Prints the reply as it came
        #[arg(long)]
        json: bool,
    },
    /// Everything counted since the start
    Stats {
        /// Prints the reply as it came
        #[arg(long)]
        json: bool,
    },
    /// What clients are told of servers, where a mode is `commanded`
    Backends {
        #[command(subcommand)]
        operation: Backends,
    },
    /// Lets connections from now on pass unanswered, so that the box can be taken out when those it translates have ended
    Drain {
        /// Answers new connections again
        #[arg(long, conflicts_with = "wait")]
        off: bool,
        /// Returns when no connection depends on the box any more, or after SECONDS, with status 1
        #[arg(long, value_name = "SECONDS")]
        wait: Option<u64>,
    },
    /// Signs cookies with another secret from the next epoch on; those already given stay good for as long as they would
    RotateSecrets,
    /// The connections there are, in columns
    Flows(Flows),
    /// What the box does right now: rates, connections, who talks most, what is dropped
    #[command(after_help = TOP_HELP)]
    Top {
        /// Prints two seconds' worth once, and ends; so it is where there is no terminal
        #[arg(long)]
        once: bool,
        /// Prints the reply as it came, and ends
        #[arg(long)]
        json: bool,
    },
    /// What would become of a frame, step by step; nothing is changed by asking
    #[command(after_help = EXPLAIN_HELP)]
    Explain {
        /// The frame from its Ethernet header on, in hexadecimal digits; or pcap:FILE:N, the Nth frame of a capture
        frame: String,
        /// The port it would come in by: lan or wan
        #[arg(long, default_value = "wan")]
        side: Side,
        /// The worker to ask, instead of the one the frame belongs to
        #[arg(long, value_name = "N")]
        worker: Option<usize>,
        /// Prints the reply as it came
        #[arg(long)]
        json: bool,
    },
    /// Frames of the running box, into pcapng files
    Capture {
        #[command(subcommand)]
        operation: Captures,
    },
    /// Changes a setting until the box ends
    Set {
        #[command(subcommand)]
        setting: Setting,
    },
}

/// What is said of servers.
#[derive(Debug, Subcommand)]
enum Backends {
    /// Everything that is said
    List {
        /// Prints the reply as it came
        #[arg(long)]
        json: bool,
    },
    /// Says something of a server nothing is said of
    Add(Said),
    /// Says something else of a server, or something at all
    Mod(Said),
    /// Says nothing of this server any more
    Del(Server),
    /// Says nothing any more of any server, or of those at ADDRESS
    Flush {
        /// An IPv4 or IPv6 address
        address: Option<IpAddr>,
    },
}

/// What is captured.
#[derive(Debug, Subcommand)]
enum Captures {
    /// The captures that are going on, with what they hold so far
    List {
        /// Prints the reply as it came
        #[arg(long)]
        json: bool,
    },
    /// Begins to capture frames of a kind; the box writes the file, with its own rights
    #[command(after_help = CAPTURE_HELP)]
    Start(Capture),
    /// Ends the capture of frames of a kind, or every capture, and says what came of it
    Stop {
        /// received, sent, lan, wan or drops; all, if it is left out
        #[arg(value_parser = kinds())]
        frames: Option<CaptureKind>,
        /// Prints the reply as it came
        #[arg(long)]
        json: bool,
    },
}

/// A capture that is to begin.
#[derive(Args, Clone, Debug)]
struct Capture {
    /// Which frames
    #[arg(value_parser = kinds())]
    frames: CaptureKind,
    /// The file, which must not be there yet
    file: PathBuf,
    /// How large the file may grow; k, M or G may follow
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = control::file_bytes)]
    limit: u64,
    /// Bytes kept of each frame
    #[arg(long, value_name = "BYTES", default_value_t = 65535, value_parser = clap::value_parser!(u16).range(14..))]
    snap: u16,
    /// Of `drops`: frames captured of each reason in a second
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

/// The kinds of frames, by name.
fn kinds() -> impl TypedValueParser<Value = CaptureKind> {
    let known = |name: String| name.parse().expect("it is one of the names");
    PossibleValuesParser::new(CaptureKind::ALL.map(CaptureKind::name)).map(known)
}

/// A server.
#[derive(Args, Clone, Copy, Debug)]
struct Server {
    /// Its IPv4 or IPv6 address
    address: IpAddr,
    /// Its port; 0 is every port
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The protocol's number; 0 is every protocol
    #[arg(long, default_value_t = 6)]
    protocol: u8,
}

/// A server and what its clients are offered.
#[derive(Args, Clone, Copy, Debug)]
struct Said {
    #[command(flatten)]
    server: Server,
    /// The MSS announced to its clients, in bytes
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    mss: u16,
    /// Whether SACK is announced
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = switch, action = ArgAction::Set)]
    sack: bool,
    /// The window scale announced
    #[arg(long, value_parser = clap::value_parser!(u8).range(..=14))]
    wscale: u8,
}

impl Said {
    fn entry(self) -> Entry {
        let Server { address, port, protocol } = self.server;
        Entry { address, port, protocol, mss: self.mss, sack: self.sack, wscale: self.wscale }
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "1" => Ok(true),
        "off" | "0" => Ok(false),
        _ => Err("expected on or off".to_owned()),
    }
}

/// Which connections, and how many.
#[derive(Debug, clap::Args)]
struct Flows {
    /// Only those whose end on the LAN is this address, or in this network (192.0.2.0/24)
    #[arg(long, value_name = "NETWORK")]
    lan: Option<String>,
    /// Only those whose end on the WAN is this address, or in this network
    #[arg(long, value_name = "NETWORK")]
    wan: Option<String>,
    /// Only those of this port on the LAN
    #[arg(long, value_name = "PORT")]
    lan_port: Option<u16>,
    /// Only those of this port on the WAN
    #[arg(long, value_name = "PORT")]
    wan_port: Option<u16>,
    /// Only those in this state: half-open, dialling, opening-sent, opening-answered, established, closing, time-wait or reset
    #[arg(long)]
    state: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Prints each as a line of JSON
    #[arg(long)]
    json: bool,
}

/// What can be set.
#[derive(Debug, Subcommand)]
enum Setting {
    /// The least severe messages that are logged
    LogLevel {
        /// error, warn, info, debug or trace
        level: LogLevel,
    },
}

/// Why nothing came of it.
#[derive(Debug)]
enum Failure {
    Box(Complaint),
    /// What was waited for has not come.
    Undone(&'static str),
    Output(io::Error),
    Input(String),
}

impl From<Complaint> for Failure {
    fn from(complaint: Complaint) -> Self {
        Failure::Box(complaint)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

fn main() -> ExitCode {
    if let Some(status) = papers::serve::<Arguments>() {
        return status;
    }
    match run(&Arguments::parse()) {
        // Whoever reads has heard enough.
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Output(error)) => {
            eprintln!("synctl: {error}");
            ExitCode::FAILURE
        }
        Err(Failure::Undone(why)) => {
            eprintln!("synctl: {why}");
            ExitCode::FAILURE
        }
        Err(Failure::Input(wrong)) => {
            eprintln!("synctl: {wrong}");
            ExitCode::from(2)
        }
        Err(Failure::Box(complaint)) => {
            eprintln!("synctl: {complaint}");
            status(&complaint)
        }
    }
}

/// The status for each complaint, as `--help` lists them.
fn status(complaint: &Complaint) -> ExitCode {
    ExitCode::from(match complaint {
        Complaint::Unreachable { forbidden: true, .. } => 5,
        Complaint::Refused(refusal) if refusal.why == control::Why::Forbidden => 5,
        Complaint::Unreachable { .. } | Complaint::Ambiguous(_) | Complaint::Broken(_) => 4,
        Complaint::Strange(_) | Complaint::Refused(_) => 1,
    })
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut client = match &arguments.socket {
        Some(path) => Client::connect(path)?,
        None => Client::connect_to_the_only_one()?,
    };
    match &arguments.command {
        Command::Flows(flows) => return list(&mut client, flows),
        Command::Top { once, json: false } => return top(client, *once),
        _ => {}
    }
    let (request, json) = request(&arguments.command)?;
    let reply = client.ask(&request)?;
    let mut out = io::stdout().lock();
    if let Command::Drain { wait: Some(seconds), .. } = arguments.command {
        return wait_for_the_last(&mut client, &mut out, Duration::from_secs(seconds));
    }
    if json {
        control::write_line(&mut out, &reply)?;
    } else {
        write!(out, "{}", text(&reply))?;
    }
    Ok(())
}

/// Waits until no connection depends on the box.
fn wait_for_the_last(client: &mut Client, out: &mut impl Write, patience: Duration) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut told = None;
    loop {
        let Reply::Status(status) = client.ask(&Request::Status)? else { continue };
        let Some(drain) = status.drain else { return Err(Failure::Undone("draining was ended by somebody else")) };
        if drain.left == 0 {
            writeln!(out, "drained")?;
            return Ok(());
        }
        if told != Some(drain.left) {
            writeln!(out, "{} connections left", drain.left)?;
            told = Some(drain.left);
        }
        if begin.elapsed() >= patience {
            return Err(Failure::Undone("not drained yet"));
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// The request, and whether its answer is to be printed as it came.
fn request(command: &Command) -> Result<(Request, bool), Failure> {
    Ok(match command {
        Command::Status { json } => (Request::Status, *json),
        Command::Stats { json } => (Request::Stats, *json),
        Command::Backends { operation } => match operation {
            Backends::List { json } => (Request::Backends, *json),
            Backends::Add(said) => (Request::AddBackend(said.entry()), false),
            Backends::Mod(said) => (Request::ModifyBackend(said.entry()), false),
            Backends::Del(Server { address, port, protocol }) => {
                (Request::DeleteBackend(Key { address: *address, port: *port, protocol: *protocol }), false)
            }
            Backends::Flush { address } => (Request::FlushBackends { address: *address }, false),
        },
        Command::Drain { off, .. } => (Request::Drain { on: !off }, false),
        Command::RotateSecrets => (Request::RotateSecrets, false),
        Command::Set { setting: Setting::LogLevel { level } } => (Request::SetLogLevel { level: *level }, false),
        Command::Capture { operation } => match operation {
            Captures::List { json } => (Request::Captures, *json),
            Captures::Start(Capture { frames, file, limit, snap, rate }) => {
                let limits = CaptureLimits { file_bytes: *limit, frame_bytes: *snap, drops_a_second: *rate };
                // The box stands in another directory.
                let path = std::path::absolute(file)
                    .map_err(|error| Failure::Input(format!("{}: {error}", file.display())))?;
                (Request::StartCapture { kind: *frames, path, limits }, false)
            }
            Captures::Stop { frames, json } => (Request::StopCapture { kind: *frames }, *json),
        },
        Command::Flows(flows) => (page(flows, None, flows.limit), flows.json),
        Command::Top { json, .. } => (Request::Top, *json),
        Command::Explain { frame, side, worker, json } => {
            (Request::Explain { side: *side, frame: digits(frame)?, worker: *worker }, *json)
        }
    })
}

/// The request for some of the connections, from here on.
fn page(flows: &Flows, from: Option<Cursor>, limit: Option<usize>) -> Request {
    let filter = FlowFilter {
        lan: flows.lan.clone(),
        wan: flows.wan.clone(),
        lan_port: flows.lan_port,
        wan_port: flows.wan_port,
        state: flows.state.clone(),
    };
    Request::Flows { filter, from, limit }
}

/// Prints connections as they are told, page by page.
fn list(client: &mut Client, flows: &Flows) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut from, mut columns, mut left) = (None, None, flows.limit.unwrap_or(usize::MAX));
    loop {
        let reply = client.ask(&page(flows, from, Some(left)))?;
        let Reply::Flows(page) = reply else { return Err(Complaint::Strange(format!("{reply:?}")).into()) };
        let told = &page.flows[..page.flows.len().min(left)];
        left -= told.len();
        if flows.json {
            for flow in told {
                control::write_line(&mut out, flow)?;
            }
        } else if !told.is_empty() {
            let is_first = columns.is_none();
            let columns = columns.get_or_insert_with(|| views::Columns::of(told));
            if is_first {
                write!(out, "{}", columns.head())?;
            }
            for flow in told {
                write!(out, "{}", columns.row(flow))?;
            }
        }
        from = page.next;
        if from.is_none() || left == 0 {
            return Ok(out.flush()?);
        }
    }
}

/// Shows what happens, until a key is pressed where there is a terminal.
fn top(mut client: Client, once: bool) -> Result<(), Failure> {
    if once || !io::stdout().is_terminal() {
        write!(io::stdout(), "{}", watch::once(&mut client)?)?;
        return Ok(());
    }
    watch::watch(client).map_err(|trouble| match trouble {
        Trouble::Box(complaint) => Failure::Box(complaint),
        Trouble::Terminal(error) => Failure::Output(error),
        Trouble::Signals(error) => Failure::Output(io::Error::other(error)),
    })
}

/// The digits of a frame that is named: written out, or by its number in a capture, which counts from 1 as others do.
fn digits(frame: &str) -> Result<String, Failure> {
    let Some(place) = frame.strip_prefix("pcap:") else { return Ok(frame.to_owned()) };
    let parsed = place.rsplit_once(':').and_then(|(file, number)| Some((file, number.parse::<u64>().ok()?)));
    let Some((file, number @ 1..)) = parsed else {
        return Err(Failure::Input(format!("expected pcap:FILE:N, with N from 1 on, but this is {frame:?}")));
    };
    let unread = |error: PcapFileError| Failure::Input(error.to_string());
    let mut reader = PcapReader::open(file).map_err(unread)?;
    let mut record = Record::default();
    for _ in 0..number {
        if !reader.read(&mut record).map_err(unread)? {
            return Err(Failure::Input(format!("{file} has fewer than {number} frames")));
        }
    }
    Ok(record.bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// An answer for people.
fn text(reply: &Reply) -> String {
    match reply {
        Reply::Status(status) => show::status(status),
        Reply::Stats(stats) => show::stats(stats),
        Reply::Backends(entries) => show::backends(entries),
        Reply::Captures(captures) => show::captures(captures),
        Reply::Explained(explained) => views::explained(explained),
        Reply::Flows(_) | Reply::Top(_) => format!("{reply:?}\n"),
        Reply::Done(message) => format!("{message}\n"),
        Reply::Error(refusal) => format!("{}\n", refusal.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_said_is_what_is_asked() {
        let asked = |line: &str| {
            let arguments = Arguments::try_parse_from(line.split_whitespace()).map_err(|error| error.exit_code());
            arguments.map(|arguments| request(&arguments.command).expect("no file is named"))
        };
        assert_eq!(asked("synctl status"), Ok((Request::Status, false)));
        assert_eq!(asked("synctl stats --json --socket x"), Ok((Request::Stats, true)));
        assert_eq!(asked("synctl set log-level debug"), Ok((Request::SetLogLevel { level: LogLevel::Debug }, false)));
        let entry =
            Entry { address: "10.0.0.1".parse().unwrap(), port: 80, protocol: 6, mss: 1460, sack: false, wscale: 7 };
        let said = "10.0.0.1 --port 80 --mss 1460 --sack off --wscale 7";
        assert_eq!(asked(&format!("synctl backends add {said}")), Ok((Request::AddBackend(entry), false)));
        assert_eq!(asked(&format!("synctl backends mod {said}")), Ok((Request::ModifyBackend(entry), false)));
        assert_eq!(asked("synctl backends del 10.0.0.1 --port 80"), Ok((Request::DeleteBackend(entry.key()), false)));
        let flush = |address| Ok((Request::FlushBackends { address }, false));
        assert_eq!(asked("synctl backends flush"), flush(None));
        assert_eq!(asked("synctl backends flush 10.0.0.1"), flush(Some(entry.address)));
        assert_eq!(asked("synctl drain --wait 5"), Ok((Request::Drain { on: true }, false)));
        assert_eq!(asked("synctl drain --off"), Ok((Request::Drain { on: false }, false)));
        let explain = Request::Explain { side: Side::Lan, frame: "00ff".into(), worker: None };
        assert_eq!(asked("synctl explain --side lan 00ff"), Ok((explain, false)));
        let filter = FlowFilter { wan: Some("198.51.100.0/24".into()), lan_port: Some(80), ..FlowFilter::default() };
        let flows = Request::Flows { filter, from: None, limit: Some(5) };
        assert_eq!(asked("synctl flows --wan 198.51.100.0/24 --lan-port 80 --limit 5 --json"), Ok((flows, true)));
        let start = |path: &str, limits| Request::StartCapture { kind: CaptureKind::Drops, path: path.into(), limits };
        let limits = CaptureLimits::default();
        assert_eq!(asked("synctl capture start drops /a/b"), Ok((start("/a/b", limits), false)));
        let limits = CaptureLimits { file_bytes: 65_536, frame_bytes: 96, drops_a_second: 3 };
        let said = "synctl capture start drops /a --limit 64k --snap 96 --rate 3";
        assert_eq!(asked(said), Ok((start("/a", limits), false)));
        let here = std::env::current_dir().expect("a directory").join("b");
        assert_eq!(
            asked("synctl capture start drops b"),
            Ok((start(here.to_str().unwrap(), CaptureLimits::default()), false))
        );
        assert_eq!(asked("synctl capture stop"), Ok((Request::StopCapture { kind: None }, false)));
        let wan = Request::StopCapture { kind: Some(CaptureKind::Wan) };
        assert_eq!(asked("synctl capture stop wan --json"), Ok((wan, true)));
        for wrong in [
            "synctl capture start nothing /a",
            "synctl capture start drops",
            "synctl capture start drops /a --limit 1",
            "synctl backends add 10.0.0.1 --mss 0 --wscale 7",
            "synctl backends add 10.0.0.1 --mss 1460 --wscale 15",
            "synctl drain --off --wait 1",
            "synctl backends flush somewhere",
            "synctl",
            "synctl set log-level loud",
            "synctl stat",
        ] {
            assert_eq!(asked(wrong), Err(2), "{wrong}");
        }
    }
}
