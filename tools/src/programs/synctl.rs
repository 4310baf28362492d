//! `synctl`: queries and controls a running synproxy over its control socket. Prints replies as text, or as JSON for programs.

use crate::watch::{self, WatchError};
use crate::{configure, show, views};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand};
use control::{
    CaptureKind, CaptureLimits, Client, ClientError, ClientList, Cursor, Entry, FlowFilter, Key, LogLevel, Reply,
    Request, Side,
};
use pktio::pcap::{PcapFileError, PcapReader, Record};
use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use synproxy::process::settings;

/// Shown below the options in `--help`.
const AFTER_HELP: &str = "\
Exit status:
  0  success
  1  synproxy refused the request or sent an unexpected reply, or --wait timed out; with `config diff`: the file is wrong
  2  the command line is wrong
  4  no synproxy can be reached, it does not answer, or several run and --socket names none
  5  permission denied: run as root, as the user synproxy runs as, or as a member of a group that has the role
     (`control_read`, `control_operate`, `control_admin`, `control_group`)";

/// Shown below the options of `top`.
const TOP_HELP: &str = "\
Keys:
  q  quit         s  sort talkers by frames, SYNs or bytes
  p  freeze       t  switch between rates and totals since the start";

/// Shown below the options of `explain`.
const EXPLAIN_HELP: &str = "\
The running proxy decides on a copy of the frame and of all state the decision depends on. Nothing is changed or sent.";

/// Shown below the options of `reload`.
const RELOAD_HELP: &str = "\
What can change does, without a dropped frame; what cannot is named with the reason; a file that is wrong changes nothing.
Without FILE synproxy reads its own file again, as at SIGHUP. With FILE synctl reads that one and sends it; it holds until the
next reload, and takes the role admin. `synctl config diff FILE` tells beforehand what would change.";
/// Shown below the options of `lists`.
const LISTS_HELP: &str = "\
Lists:
  block   new connections of these clients are dropped
  allow   their connections pass to the servers unanswered and unchanged
  always  their connections are proxied, whatever else would let them pass

Of several lists that a client is in, the first counts. A change lasts until synproxy ends or reads its configuration again; then the
lists are what the configuration and its files say.";

/// Shown below the options of `capture start`.
const CAPTURE_HELP: &str = "\
Frames:
  received  every frame received on either port, before it is edited
  sent      every frame sent by either port, after it was edited
  lan       frames the LAN port receives and sends
  wan       frames the WAN port receives and sends
  drops     samples of dropped frames, each with its drop reason as a comment

One capture of each kind can run at a time. It ends with `synctl capture stop`, or when synproxy ends.";

/// Queries and controls a running synproxy
#[derive(Debug, Parser)]
#[command(name = "synctl", version, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The control socket of synproxy; not needed if only one runs on this machine
    #[arg(long, value_name = "PATH", global = true, display_order = 100)]
    socket: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
enum Command {
    /// Shows version, interfaces, modes, and whether all workers answer
    Status {
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows all counters since the start
    Stats {
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
    /// Lists and changes the TCP options announced to the clients of servers, for modes set to `commanded`
    #[command(alias = "backends")]
    Servers {
        #[command(subcommand)]
        operation: Servers,
    },
    /// Shows and changes the lists of clients: block, allow and always
    #[command(after_help = LISTS_HELP)]
    Lists {
        #[command(subcommand)]
        operation: Lists,
    },
    /// Adds networks to the list `block`
    Block {
        /// Addresses, or networks such as 192.0.2.0/24; none with --existing resets the connections of all clients in the list
        #[arg(required_unless_present = "existing", value_parser = network)]
        networks: Vec<String>,
        /// Resets the connections of blocked clients that run, too
        #[arg(long)]
        existing: bool,
    },
    /// Lets new connections pass unproxied, so that synproxy can be stopped once the connections it translates have ended
    Drain {
        /// Ends draining: proxies new connections again
        #[arg(long, conflicts_with = "wait")]
        off: bool,
        /// Waits until no connection depends on synproxy; after SECONDS, gives up with status 1
        #[arg(long, value_name = "SECONDS")]
        wait: Option<u64>,
    },
    /// Signs SYN cookies with a new secret from the next epoch on; cookies already sent stay valid for their normal lifetime
    RotateSecrets,
    /// Ends synproxy and removes the state that the next process would take over, its secrets too; what it translates is lost. (After SIGTERM the state stays.)
    Stop,
    /// Shows the mode of each destination that has one of its own, since when, and what was counted of it
    Policy {
        #[command(subcommand)]
        operation: Option<PolicyOperation>,
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows services: what became of their clients, and the state of their servers
    Services {
        #[command(subcommand)]
        operation: Option<ServiceOperation>,
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
    /// Lists connections
    Flows(Flows),
    /// Shows live rates, connections, top talkers and drops
    #[command(after_help = TOP_HELP)]
    Top {
        /// Prints one screen after one second, and ends; the default if standard output is not a terminal
        #[arg(long)]
        once: bool,
        /// Prints the reply as JSON, and ends
        #[arg(long)]
        json: bool,
    },
    /// Shows the last events: attacks, modes, links and workers
    Events {
        /// Goes on with what happens, until it is interrupted
        #[arg(long)]
        follow: bool,
        /// Prints each event as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows step by step what synproxy would do with a frame, without changing anything
    #[command(after_help = EXPLAIN_HELP)]
    Explain {
        /// The frame from its Ethernet header on, in hexadecimal digits; or pcap:FILE:N for the Nth frame of a capture, from 1
        frame: String,
        /// The port the frame would arrive at: lan or wan
        #[arg(long, default_value = "wan")]
        side: Side,
        /// The worker to ask, instead of the one that owns the frame's flow
        #[arg(long, value_name = "N")]
        worker: Option<usize>,
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
    /// Starts, stops and lists captures of frames into pcapng files
    Capture {
        #[command(subcommand)]
        operation: Captures,
    },
    /// Has synproxy read its configuration again, and shows what has changed
    #[command(after_help = RELOAD_HELP)]
    Reload {
        /// Another file to take
        file: Option<PathBuf>,
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows the configuration in force, and what another file would change
    Config {
        #[command(subcommand)]
        operation: Configurations,
    },
    /// Shows who synproxy takes the caller for, and the caller's role
    Whoami {
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
    /// Changes a setting until synproxy ends
    Set {
        #[command(subcommand)]
        setting: Setting,
    },
}

/// Operations on server entries.
#[derive(Debug, Subcommand)]
enum Servers {
    /// Lists all entries
    List {
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
    /// Adds an entry; fails if there is one for this address, port and protocol
    Add(ServerOptions),
    /// Adds an entry, or replaces the one for this address, port and protocol
    Mod(ServerOptions),
    /// Deletes the entry for exactly this address, port and protocol
    Del(Server),
    /// Deletes all entries, or those of ADDRESS
    Flush {
        /// An IPv4 or IPv6 address
        address: Option<IpAddr>,
    },
}

/// What to show of the configuration.
#[derive(Debug, Subcommand)]
enum Configurations {
    /// Shows every key with the value in force
    Show {
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows key by key what FILE would change, and when each change would take effect; changes nothing
    Diff {
        /// The file; synproxy's own if omitted
        file: Option<PathBuf>,
        /// Prints the changes as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Operations on lists of clients.
#[derive(Debug, Subcommand)]
enum Lists {
    /// Shows how many networks each list has, or all networks of LIST
    Show {
        /// block, allow or always
        #[arg(value_parser = client_lists())]
        list: Option<ClientList>,
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
    /// Adds networks to a list
    Add {
        /// block, allow or always
        #[arg(value_parser = client_lists())]
        list: ClientList,
        /// Addresses, or networks such as 192.0.2.0/24
        #[arg(required = true, value_parser = network)]
        networks: Vec<String>,
    },
    /// Removes networks from a list; fails if one of them is not in it exactly so
    Remove {
        /// block, allow or always
        #[arg(value_parser = client_lists())]
        list: ClientList,
        /// Addresses, or networks such as 192.0.2.0/24
        #[arg(required = true, value_parser = network)]
        networks: Vec<String>,
    },
    /// Puts the networks of FILE in the place of those that a list has, all at once
    Replace {
        /// block, allow or always
        #[arg(value_parser = client_lists())]
        list: ClientList,
        /// A file with one network a line; - is the standard input
        file: PathBuf,
    },
}

/// Parses a list by its name.
fn client_lists() -> impl TypedValueParser<Value = ClientList> {
    let known = |name: String| name.parse().expect("it is one of the names");
    PossibleValuesParser::new(ClientList::ALL.map(ClientList::name)).map(known)
}

/// Checks a network.
fn network(text: &str) -> Result<String, String> {
    confparse::network(text).map(|_| text.to_owned())
}

/// Operations on modes of destinations.
#[derive(Clone, Copy, Debug, Subcommand)]
enum PolicyOperation {
    /// Shows what was usual of each destination while it was not attacked, and proposes thresholds for mode `auto`
    Suggest {
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Operations on servers of services.
#[derive(Clone, Copy, Debug, Subcommand)]
enum ServiceOperation {
    /// Gives a server no new connections until the box ends; those that it has go on
    Drain {
        /// Its address and port, as 192.0.2.10:443 or [2001:db8::10]:443
        server: SocketAddr,
    },
    /// Gives a drained server new connections again
    Undrain {
        /// Its address and port
        server: SocketAddr,
    },
}

/// Operations on captures.
#[derive(Debug, Subcommand)]
enum Captures {
    /// Lists the running captures and their counts
    List {
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
    /// Starts a capture; synproxy writes the file, with its own rights
    #[command(after_help = CAPTURE_HELP)]
    Start(Capture),
    /// Stops the capture of one kind, or all captures, and prints their counts
    Stop {
        /// received, sent, lan, wan or drops; all if omitted
        #[arg(value_parser = kinds())]
        frames: Option<CaptureKind>,
        /// Prints the reply as JSON
        #[arg(long)]
        json: bool,
    },
}

/// A capture to start.
#[derive(Args, Clone, Debug)]
struct Capture {
    /// Which frames to capture
    #[arg(value_parser = kinds())]
    frames: CaptureKind,
    /// The file, which must not exist yet
    file: PathBuf,
    /// The largest size of the file; with suffix k, M or G
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = control::file_bytes)]
    limit: u64,
    /// Bytes captured of each frame
    #[arg(long, value_name = "BYTES", default_value_t = 65535, value_parser = clap::value_parser!(u16).range(14..))]
    snap: u16,
    /// For `drops`: frames captured per drop reason and second
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

/// Parses a kind of frames by its name.
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
    /// The IP protocol number; 0 is every protocol
    #[arg(long, default_value_t = 6)]
    protocol: u8,
}

/// A server and the options announced to its clients.
#[derive(Args, Clone, Copy, Debug)]
struct ServerOptions {
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

impl ServerOptions {
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

/// Which connections to list.
#[derive(Debug, clap::Args)]
struct Flows {
    /// Only connections with this LAN address, or a LAN address in this network (192.0.2.0/24)
    #[arg(long, value_name = "NETWORK")]
    lan: Option<String>,
    /// Only connections with this WAN address, or a WAN address in this network
    #[arg(long, value_name = "NETWORK")]
    wan: Option<String>,
    /// Only connections with this TCP port on the LAN side
    #[arg(long, value_name = "PORT")]
    lan_port: Option<u16>,
    /// Only connections with this TCP port on the WAN side
    #[arg(long, value_name = "PORT")]
    wan_port: Option<u16>,
    /// Only connections in this state: syn-cached, server-syn-sent, server-tried, syn-sent, syn-received, unconfirmed, ack-withheld,
    /// window-pending, established, handed-down, fin-wait, last-ack, time-wait or reset
    #[arg(long)]
    state: Option<String>,
    /// At most N connections
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Prints each connection as a line of JSON
    #[arg(long)]
    json: bool,
}

/// The settings.
#[derive(Debug, Subcommand)]
enum Setting {
    /// The least severe level that is logged
    LogLevel {
        /// error, warn, info, debug or trace
        level: LogLevel,
    },
}

/// Why the program fails.
#[derive(Debug)]
enum Failure {
    Client(ClientError),
    /// What `--wait` waits for did not happen.
    Incomplete(&'static str),
    Output(io::Error),
    Input(String),
    /// A configuration is wrong; the text begins with its place in the file.
    Configuration(String),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Failure::Client(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

/// Parses the command line and runs the program.
pub fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe has closed it: `synctl flows | head`.
        Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Output(error)) => {
            eprintln!("synctl: {error}");
            ExitCode::FAILURE
        }
        Err(Failure::Incomplete(why)) => {
            eprintln!("synctl: {why}");
            ExitCode::FAILURE
        }
        Err(Failure::Input(message)) => {
            eprintln!("synctl: {message}");
            ExitCode::from(2)
        }
        Err(Failure::Configuration(text)) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
        Err(Failure::Client(error)) => {
            eprintln!("synctl: {error}");
            status(&error)
        }
    }
}

/// The exit status for each error, as `--help` lists them.
fn status(error: &ClientError) -> ExitCode {
    ExitCode::from(match error {
        ClientError::Unreachable { forbidden: true, .. } => 5,
        ClientError::Refused(refusal) if refusal.why == control::Why::Forbidden => 5,
        ClientError::Unreachable { .. }
        | ClientError::Ambiguous(_)
        | ClientError::Silent(_)
        | ClientError::Closed(_)
        | ClientError::Io { .. } => 4,
        ClientError::Unexpected(_) | ClientError::Refused(_) => 1,
    })
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut client = match &arguments.socket {
        Some(path) => Client::connect(path)?,
        None => Client::connect_to_only()?,
    };
    match &arguments.command {
        Command::Flows(flows) => return list(&mut client, flows),
        Command::Top { once, json: false } => return top(client, *once),
        Command::Config { operation: Configurations::Diff { file, json } } => {
            return difference(&mut client, file.as_deref(), *json);
        }
        Command::Events { follow, json } => return events(&mut client, *follow, *json),
        Command::Lists { operation: Lists::Show { list: Some(list), json } } => {
            return show_list(&mut client, *list, *json);
        }
        Command::Lists { operation: Lists::Replace { list, file } } => return replace_list(&mut client, *list, file),
        Command::Block { networks, existing: true } if !networks.is_empty() => {
            let block = Request::AddToList { list: ClientList::Block, networks: networks.clone() };
            write!(io::stdout(), "{}", text(&client.ask(&block)?))?;
            write!(io::stdout(), "{}", text(&client.ask(&Request::ResetBlocked)?))?;
            return Ok(());
        }
        _ => {}
    }
    let (request, json) = request(&arguments.command)?;
    let reply = client.ask(&request)?;
    let mut out = io::stdout().lock();
    if let Command::Drain { wait: Some(seconds), .. } = arguments.command {
        return wait_until_drained(&mut client, &mut out, Duration::from_secs(seconds));
    }
    if json {
        control::write_line(&mut out, &reply)?;
    } else {
        write!(out, "{}", text(&reply))?;
    }
    Ok(())
}

/// Shows what a file would change.
fn difference(client: &mut Client, file: Option<&Path>, json: bool) -> Result<(), Failure> {
    let reply = client.ask(&Request::Config)?;
    let Reply::Config(running) = reply else { return Err(ClientError::Unexpected(format!("{reply:?}")).into()) };
    let own = running.file.as_ref().map(PathBuf::from);
    let Some(file) = file.or(own.as_deref()) else {
        return Err(Failure::Input("synproxy was started without a file, so say which".to_owned()));
    };
    let parsed = settings::parse(file).map_err(|failure| Failure::Configuration(failure.to_string()))?;
    for warning in &parsed.warnings {
        eprintln!("{warning}");
    }
    settings::examine(&parsed).map_err(|wrong| Failure::Configuration(wrong.join("\n")))?;
    let changes = configure::difference(&running, &parsed.config);
    let mut out = io::stdout().lock();
    if json {
        control::write_line(&mut out, &changes)?;
    } else {
        write!(out, "{}", configure::changes(&changes))?;
    }
    Ok(())
}

/// Waits until no connection depends on the box.
fn wait_until_drained(client: &mut Client, out: &mut impl Write, patience: Duration) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut shown = None;
    loop {
        let Reply::Status(status) = client.ask(&Request::Status)? else { continue };
        let Some(drain) = status.drain else { return Err(Failure::Incomplete("draining was ended by another client")) };
        if drain.left == 0 {
            writeln!(out, "drained")?;
            return Ok(());
        }
        if shown != Some(drain.left) {
            writeln!(out, "{} connections left", drain.left)?;
            shown = Some(drain.left);
        }
        if begin.elapsed() >= patience {
            return Err(Failure::Incomplete("connections are left after the time given by --wait"));
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// The request of a subcommand, and whether to print the reply as JSON.
fn request(command: &Command) -> Result<(Request, bool), Failure> {
    Ok(match command {
        Command::Status { json } => (Request::Status, *json),
        Command::Stats { json } => (Request::Stats, *json),
        Command::Servers { operation } => match operation {
            Servers::List { json } => (Request::Servers, *json),
            Servers::Add(server) => (Request::AddServer(server.entry()), false),
            Servers::Mod(server) => (Request::ModifyServer(server.entry()), false),
            Servers::Del(Server { address, port, protocol }) => {
                (Request::DeleteServer(Key { address: *address, port: *port, protocol: *protocol }), false)
            }
            Servers::Flush { address } => (Request::FlushServers { address: *address }, false),
        },
        Command::Lists { operation } => match operation {
            Lists::Show { list: None, json } => (Request::Lists, *json),
            Lists::Show { list: Some(list), json } => (Request::List { list: *list, from: 0 }, *json),
            Lists::Add { list, networks } => (Request::AddToList { list: *list, networks: networks.clone() }, false),
            Lists::Remove { list, networks } => {
                (Request::RemoveFromList { list: *list, networks: networks.clone() }, false)
            }
            Lists::Replace { list, .. } => {
                (Request::ReplaceList { list: *list, networks: Vec::new(), upload: 0, last: false }, false)
            }
        },
        Command::Block { networks, .. } if networks.is_empty() => (Request::ResetBlocked, false),
        Command::Block { networks, .. } => {
            (Request::AddToList { list: ClientList::Block, networks: networks.clone() }, false)
        }
        Command::Drain { off, .. } => (Request::Drain { on: !off }, false),
        Command::RotateSecrets => (Request::RotateSecrets, false),
        Command::Stop => (Request::Stop, false),
        Command::Set { setting: Setting::LogLevel { level } } => (Request::SetLogLevel { level: *level }, false),
        Command::Capture { operation } => match operation {
            Captures::List { json } => (Request::Captures, *json),
            Captures::Start(Capture { frames, file, limit, snap, rate }) => {
                let limits = CaptureLimits { file_bytes: *limit, frame_bytes: *snap, drops_a_second: *rate };
                // The working directory of synproxy is another one.
                let path = std::path::absolute(file)
                    .map_err(|error| Failure::Input(format!("{}: {error}", file.display())))?;
                (Request::StartCapture { kind: *frames, path, limits }, false)
            }
            Captures::Stop { frames, json } => (Request::StopCapture { kind: *frames }, *json),
        },
        Command::Whoami { json } => (Request::Whoami, *json),
        Command::Reload { file: None, json } => (Request::Reload, *json),
        Command::Reload { file: Some(file), json } => {
            let name = std::path::absolute(file).unwrap_or_else(|_| file.clone()).display().to_string();
            let text = std::fs::read(file).map_err(|error| Failure::Input(format!("{}: {error}", file.display())))?;
            (Request::LoadConfig { name, text: String::from_utf8_lossy(&text).into_owned() }, *json)
        }
        // Its difference to another file is not asked for: it is found here.
        Command::Config { operation: Configurations::Show { json } | Configurations::Diff { json, .. } } => {
            (Request::Config, *json)
        }
        Command::Policy { operation: None, json } => (Request::Policy, *json),
        Command::Policy { operation: Some(PolicyOperation::Suggest { json }), json: also } => {
            (Request::SuggestPolicy, *json || *also)
        }
        Command::Services { operation: None, json } => (Request::Services, *json),
        Command::Services { operation: Some(operation), json } => {
            let (server, on) = match operation {
                ServiceOperation::Drain { server } => (server, true),
                ServiceOperation::Undrain { server } => (server, false),
            };
            (Request::DrainServer { address: server.ip(), port: server.port(), on }, *json)
        }
        Command::Flows(flows) => (page(flows, None, flows.limit), flows.json),
        Command::Top { json, .. } => (Request::Top, *json),
        Command::Events { json, .. } => (Request::Events { after: 0 }, *json),
        Command::Explain { frame, side, worker, json } => {
            (Request::Explain { side: *side, frame: frame_digits(frame)?, worker: *worker }, *json)
        }
    })
}

/// The request for a page of connections.
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

/// Lists connections, page by page.
fn list(client: &mut Client, flows: &Flows) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut from, mut columns, mut left) = (None, None, flows.limit.unwrap_or(usize::MAX));
    loop {
        let reply = client.ask(&page(flows, from, Some(left)))?;
        let Reply::Flows(page) = reply else { return Err(ClientError::Unexpected(format!("{reply:?}")).into()) };
        let shown = &page.flows[..page.flows.len().min(left)];
        left -= shown.len();
        if flows.json {
            for flow in shown {
                control::write_line(&mut out, flow)?;
            }
        } else if !shown.is_empty() {
            let is_first = columns.is_none();
            let columns = columns.get_or_insert_with(|| views::Columns::of(shown));
            if is_first {
                write!(out, "{}", columns.head())?;
            }
            for flow in shown {
                write!(out, "{}", columns.row(flow))?;
            }
        }
        from = page.next;
        if from.is_none() || left == 0 {
            return Ok(out.flush()?);
        }
    }
}

/// How often `events --follow` asks for what is new.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// Shows the last events, and what follows if it is to.
fn events(client: &mut Client, follow: bool, json: bool) -> Result<(), Failure> {
    let (mut out, mut after) = (io::stdout().lock(), 0);
    loop {
        let reply = client.ask(&Request::Events { after })?;
        let Reply::Events(records) = reply else { return Err(ClientError::Unexpected(format!("{reply:?}")).into()) };
        for record in &records {
            after = record.number;
            if json {
                control::write_line(&mut out, record)?;
            } else {
                write!(out, "{}", show::event(record))?;
            }
        }
        out.flush()?;
        if !follow {
            return Ok(());
        }
        thread::sleep(FOLLOW_EVERY);
    }
}

/// Shows all networks of a list, page by page: as lines, or as lines of JSON.
fn show_list(client: &mut Client, list: ClientList, json: bool) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut from = Some(0);
    while let Some(begin) = from {
        let reply = client.ask(&Request::List { list, from: begin })?;
        let Reply::List(page) = reply else { return Err(ClientError::Unexpected(format!("{reply:?}")).into()) };
        for network in &page.networks {
            if json {
                control::write_line(&mut out, network)?;
            } else {
                writeln!(out, "{network}")?;
            }
        }
        from = page.next;
    }
    Ok(out.flush()?)
}

/// Bytes of networks in one request, about.
const PART: usize = control::MAX_REQUEST / 2;

/// Replaces a list by the networks of a file, in as many requests as it takes.
fn replace_list(client: &mut Client, list: ClientList, file: &Path) -> Result<(), Failure> {
    let name = file.display().to_string();
    let wrong = |error: io::Error| Failure::Input(format!("{name}: {error}"));
    let content = if file == Path::new("-") {
        let mut content = Vec::new();
        io::stdin().lock().read_to_end(&mut content).map(|_| content)
    } else {
        fs::read(file)
    };
    let content = String::from_utf8_lossy(&content.map_err(wrong)?).into_owned();
    let networks = confparse::networks(&content, &name).map_err(Failure::Input)?;
    // Two uploads at once must not mix.
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let upload =
        u64::from(since_epoch.subsec_nanos()) ^ since_epoch.as_secs() << 30 ^ u64::from(std::process::id()) << 40;
    let (mut part, mut bytes) = (Vec::new(), 0);
    for network in &networks {
        let text = confparse::written(network);
        bytes += text.len() + 3;
        part.push(text);
        if bytes >= PART {
            bytes = 0;
            client.ask(&Request::ReplaceList { list, networks: std::mem::take(&mut part), upload, last: false })?;
        }
    }
    let reply = client.ask(&Request::ReplaceList { list, networks: part, upload, last: true })?;
    write!(io::stdout(), "{}", text(&reply))?;
    Ok(())
}

/// Runs `top`: on a terminal until the user quits, otherwise once.
fn top(mut client: Client, once: bool) -> Result<(), Failure> {
    if once || !io::stdout().is_terminal() {
        write!(io::stdout(), "{}", watch::once(&mut client)?)?;
        return Ok(());
    }
    watch::watch(client).map_err(|trouble| match trouble {
        WatchError::Client(error) => Failure::Client(error),
        WatchError::Terminal(error) => Failure::Output(error),
        WatchError::Signals(error) => Failure::Output(io::Error::other(error)),
    })
}

/// The hexadecimal digits of a frame argument: the argument itself, or a frame of a capture, counted from 1.
fn frame_digits(frame: &str) -> Result<String, Failure> {
    let Some(place) = frame.strip_prefix("pcap:") else { return Ok(frame.to_owned()) };
    let parsed = place.rsplit_once(':').and_then(|(file, number)| Some((file, number.parse::<u64>().ok()?)));
    let Some((file, number @ 1..)) = parsed else {
        return Err(Failure::Input(format!("expected pcap:FILE:N with N at least 1, found {frame:?}")));
    };
    let read_error = |error: PcapFileError| Failure::Input(error.to_string());
    let mut reader = PcapReader::open(file).map_err(read_error)?;
    let mut record = Record::default();
    for _ in 0..number {
        if !reader.read(&mut record).map_err(read_error)? {
            return Err(Failure::Input(format!("{file} has fewer than {number} frames")));
        }
    }
    Ok(record.bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A reply as text.
pub(crate) fn text(reply: &Reply) -> String {
    match reply {
        Reply::Status(status) => show::status(status),
        Reply::Stats(stats) => show::stats(stats),
        Reply::Servers(entries) | Reply::Backends(entries) => show::servers(entries),
        Reply::Captures(captures) => show::captures(captures),
        Reply::Lists(lists) => format!(
            "block   {}\nallow   {}\nalways  {}\nmemory  {} kB\n",
            lists.block,
            lists.allow,
            lists.always,
            lists.bytes.div_ceil(1000)
        ),
        Reply::List(page) => page.networks.iter().map(|network| format!("{network}\n")).collect(),
        Reply::Policy(destinations) => show::destinations(destinations),
        Reply::Services(services) => show::services(services),
        Reply::Suggested(suggested) => show::suggested(suggested),
        Reply::Explained(explained) => views::explained(explained),
        Reply::Whoami(whoami) => format!("user {}, role {}\n", whoami.user, whoami.role),
        Reply::Config(configuration) => configure::shown(configuration),
        Reply::Reloaded(reloaded) => configure::reloaded(reloaded),
        Reply::Events(records) => records.iter().map(show::event).collect(),
        Reply::Flows(_) | Reply::Top(_) => format!("{reply:?}\n"),
        Reply::Done(message) => format!("{message}\n"),
        Reply::Error(refusal) => format!("{}\n", refusal.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_command_line_becomes_its_request() {
        let parse = |line: &str| {
            let arguments = Arguments::try_parse_from(line.split_whitespace()).map_err(|error| error.exit_code());
            arguments.map(|arguments| request(&arguments.command).expect("no file is named"))
        };
        assert_eq!(parse("synctl status"), Ok((Request::Status, false)));
        assert_eq!(parse("synctl policy --json"), Ok((Request::Policy, true)));
        assert_eq!(parse("synctl services --json"), Ok((Request::Services, true)));
        let drained = |on| Request::DrainServer { address: "2001:db8::10".parse().unwrap(), port: 443, on };
        assert_eq!(parse("synctl services drain [2001:db8::10]:443"), Ok((drained(true), false)));
        assert_eq!(parse("synctl services undrain [2001:db8::10]:443"), Ok((drained(false), false)));
        assert_eq!(parse("synctl policy suggest"), Ok((Request::SuggestPolicy, false)));
        assert_eq!(parse("synctl policy suggest --json"), Ok((Request::SuggestPolicy, true)));
        assert_eq!(parse("synctl stats --json --socket x"), Ok((Request::Stats, true)));
        assert_eq!(parse("synctl set log-level debug"), Ok((Request::SetLogLevel { level: LogLevel::Debug }, false)));
        let entry =
            Entry { address: "10.0.0.1".parse().unwrap(), port: 80, protocol: 6, mss: 1460, sack: false, wscale: 7 };
        let server = "10.0.0.1 --port 80 --mss 1460 --sack off --wscale 7";
        assert_eq!(parse(&format!("synctl servers add {server}")), Ok((Request::AddServer(entry), false)));
        assert_eq!(parse(&format!("synctl servers mod {server}")), Ok((Request::ModifyServer(entry), false)));
        assert_eq!(parse("synctl servers del 10.0.0.1 --port 80"), Ok((Request::DeleteServer(entry.key()), false)));
        let flush = |address| Ok((Request::FlushServers { address }, false));
        assert_eq!(parse("synctl servers flush"), flush(None));
        assert_eq!(parse("synctl servers flush 10.0.0.1"), flush(Some(entry.address)));
        assert_eq!(parse("synctl backends flush"), flush(None), "the former name");
        assert_eq!(parse("synctl servers list --json"), Ok((Request::Servers, true)));
        let networks = |networks: &[&str]| networks.iter().map(|&network| network.to_owned()).collect::<Vec<_>>();
        let add = |list, added: &[&str]| Ok((Request::AddToList { list, networks: networks(added) }, false));
        assert_eq!(parse("synctl lists show --json"), Ok((Request::Lists, true)));
        assert_eq!(parse("synctl lists add allow 10.0.0.1 ::/0"), add(ClientList::Allow, &["10.0.0.1", "::/0"]));
        assert_eq!(parse("synctl block 10.0.0.0/8"), add(ClientList::Block, &["10.0.0.0/8"]));
        assert_eq!(parse("synctl block --existing"), Ok((Request::ResetBlocked, false)));
        let remove = Request::RemoveFromList { list: ClientList::Always, networks: networks(&["10.0.0.1"]) };
        assert_eq!(parse("synctl lists remove always 10.0.0.1"), Ok((remove, false)));
        assert_eq!(parse("synctl drain --wait 5"), Ok((Request::Drain { on: true }, false)));
        assert_eq!(parse("synctl drain --off"), Ok((Request::Drain { on: false }, false)));
        assert_eq!(parse("synctl events --json --follow"), Ok((Request::Events { after: 0 }, true)));
        let explain = Request::Explain { side: Side::Lan, frame: "00ff".into(), worker: None };
        assert_eq!(parse("synctl explain --side lan 00ff"), Ok((explain, false)));
        let filter = FlowFilter { wan: Some("198.51.100.0/24".into()), lan_port: Some(80), ..FlowFilter::default() };
        let flows = Request::Flows { filter, from: None, limit: Some(5) };
        assert_eq!(parse("synctl flows --wan 198.51.100.0/24 --lan-port 80 --limit 5 --json"), Ok((flows, true)));
        let start = |path: &str, limits| Request::StartCapture { kind: CaptureKind::Drops, path: path.into(), limits };
        let limits = CaptureLimits::default();
        assert_eq!(parse("synctl capture start drops /a/b"), Ok((start("/a/b", limits), false)));
        let limits = CaptureLimits { file_bytes: 65_536, frame_bytes: 96, drops_a_second: 3 };
        let line = "synctl capture start drops /a --limit 64k --snap 96 --rate 3";
        assert_eq!(parse(line), Ok((start("/a", limits), false)));
        let here = std::env::current_dir().expect("a directory").join("b");
        assert_eq!(
            parse("synctl capture start drops b"),
            Ok((start(here.to_str().unwrap(), CaptureLimits::default()), false))
        );
        assert_eq!(parse("synctl whoami"), Ok((Request::Whoami, false)));
        assert_eq!(parse("synctl reload --json"), Ok((Request::Reload, true)));
        assert_eq!(parse("synctl config show --json"), Ok((Request::Config, true)));
        assert_eq!(parse("synctl config diff a.conf"), Ok((Request::Config, false)));
        assert_eq!(parse("synctl capture stop"), Ok((Request::StopCapture { kind: None }, false)));
        let wan = Request::StopCapture { kind: Some(CaptureKind::Wan) };
        assert_eq!(parse("synctl capture stop wan --json"), Ok((wan, true)));
        for wrong in [
            "synctl capture start nothing /a",
            "synctl capture start drops",
            "synctl capture start drops /a --limit 1",
            "synctl servers add 10.0.0.1 --mss 0 --wscale 7",
            "synctl servers add 10.0.0.1 --mss 1460 --wscale 15",
            "synctl drain --off --wait 1",
            "synctl servers flush somewhere",
            "synctl lists add block",
            "synctl lists add deny 10.0.0.1",
            "synctl lists add block 10.0.0.1:80",
            "synctl block",
            "synctl",
            "synctl set log-level loud",
            "synctl stat",
            "synctl config",
            "synctl reload a b",
        ] {
            assert_eq!(parse(wrong), Err(2), "{wrong}");
        }
    }
}
