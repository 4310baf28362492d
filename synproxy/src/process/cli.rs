//! The command line of the program, and its `--help`.

use super::log;
use ::control::{CaptureKind as Kind, CaptureLimits as Limits, LogLevel};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use confparse::{Config, Control, StateDir};
use pktio::Mode;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

/// Shown above the arguments in `--help`, and below every complaint.
const USAGE: &str = "synproxy [OPTIONS] LAN WAN\n       synproxy [OPTIONS] host NIC\n       synproxy --check-config FILE\n       synproxy --restore [INTERFACE]...\n       \
     synproxy doctor LAN WAN";

/// Shown below the options in `--help`.
const AFTER_HELP: &str = "\
Interfaces:
  NAME           the best way that works: AF_XDP in driver mode with zero copy, driver mode,
                 generic mode, AF_PACKET; the log says which was taken and why not a better one
  NAME,NAME      the members of an aggregation (bond, LAG), each behind its partner's place: lan0,lan1 wan0,wan1
  xdp:NAME       AF_XDP
  packet:NAME    AF_PACKET, works on every interface
  host           as LAN: this machine's own services, behind the NIC that is the WAN port. The NIC keeps its addresses, routes and
                 connections; what the machine sends and receives by it passes the box
  netmap:NAME    netmap on a NIC; netmap:NAME{1 and netmap:NAME}1 are the ends of a pipe
  valeX:Y        netmap: port Y of the software switch valeX
  pcap:FILE      a capture file, read to its end; pcap:in=FILE:out=FILE also writes what leaves, as pcap, and
                 outng=FILE as pcapng; inifname=NAME takes one interface of a pcapng, outifname=NAME names the one written

Capture files:
  They are pcapng with two interfaces, lan and wan, each frame with its direction, its worker as its queue and a time in
  nanoseconds. Received frames are written as they arrived, sent frames as they left, forwarded ones included. At its size limit a
  file takes no further frames and is never cut; frames missed because of a slow disk or the limit are counted in the log and in the
  statistics at the end of the file. Traffic never waits for a capture.

Signals:
  SIGINT ends the process cleanly: it restores the settings of the interfaces. So does SIGTERM, but where the connections are kept for
  the next process, the interfaces are as well, for 10 s: a restart changes nothing at them. A second signal ends it, and restores them,
  without waiting for the workers.
  SIGHUP has the configuration file read again: what can change does, what cannot is named in the log, and a file that is wrong
  changes nothing. `synctl config diff FILE` tells beforehand.

  After SIGKILL the interfaces stay as they were. The next process goes on with them and restores them at its end; --restore does so at once.

Exit status:
  0  clean end: a signal, or capture files read to their end; with --check-config: no complaint; with --restore: all is as it was
  1  anything not listed below
  2  the command line is wrong
  3  the configuration is wrong, or its file cannot be read
  4  an interface does not exist, is down, is given twice, is in use or cannot be opened, or failed on the way
  5  not permitted: run as root, or with CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON, CAP_IPC_LOCK and CAP_SYS_NICE";

/// An inline TCP SYN proxy: bridges LAN and WAN, answers SYNs from the WAN with cookies,
/// and lets the servers behind the LAN port see only clients that have completed the handshake.
#[derive(Debug, Parser)]
#[command(name = "synproxy", version, override_usage = USAGE, after_help = AFTER_HELP, verbatim_doc_comment)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, disable_help_subcommand = true)]
pub struct Arguments {
    /// What to do instead of bridging
    #[command(subcommand)]
    pub instead: Option<Instead>,

    /// Reads the configuration from FILE; without it, every key has its default
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Checks FILE on this machine, prints what is wrong with it or how much memory it needs, and exits
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "workers", "poll", "bypass", "no_pin", "control", "state_dir", "fresh", "takeover"])]
    pub check_config: Option<PathBuf>,

    /// Puts back the settings that a process has left changed, at these interfaces or at all, and exits
    #[arg(long, value_name = "INTERFACE", num_args = 0.., conflicts_with_all = ["check_config", "config", "workers", "poll", "bypass", "no_pin", "control", "state_dir", "fresh", "takeover"])]
    pub restore: Option<Vec<String>>,

    /// With --restore: waits so many seconds, leaves alone what a box has by then, and gives back memory of states that nobody uses; for service managers
    #[arg(long, value_name = "SECONDS", requires = "restore")]
    pub after: Option<u64>,

    /// With --after: the directory of the state to give memory back from, where it is not in the default place
    #[arg(long, value_name = "DIRECTORY", requires = "after", hide = true)]
    pub left_state: Option<PathBuf>,

    /// Worker threads, one for each queue of both interfaces; overrides `threadcount`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,

    /// How a worker waits for frames; overrides `poll`
    #[arg(long, value_name = "HOW")]
    pub poll: Option<Poll>,

    /// Least severe level that is logged to stderr; the statistics are `info`; overrides `log_level`
    #[arg(long, value_name = "LEVEL", value_parser = levels())]
    pub log_level: Option<LogLevel>,

    /// Path of the control socket; or `auto`, which is /run/synproxy/LAN-WAN.sock, or `none`; overrides `control`
    #[arg(long, value_name = "PATH", value_parser = |text: &str| Ok::<_, Infallible>(Control::from(text)))]
    pub control: Option<Control>,

    /// Where the state lies that a restart takes over: a directory, `auto`, `none` or `descriptors`; overrides `state_dir`
    #[arg(long, value_name = "PLACE", value_parser = |text: &str| Ok::<_, Infallible>(StateDir::from(text)))]
    pub state_dir: Option<StateDir>,

    /// Starts without the state that a former process has left, which is removed: its connections are lost
    #[arg(long)]
    pub fresh: bool,

    /// Starts beside the process that has these ports, has it end, and takes over its state, ports and control socket
    #[arg(long, conflicts_with = "fresh")]
    pub takeover: bool,

    /// Forwards every frame without parsing it: no protection, and the rate that the ports alone reach
    #[arg(long)]
    pub bypass: bool,

    /// Takes interfaces by which this machine itself is reached: one with the default route, or with a connection that is open
    #[arg(long)]
    pub force: bool,

    /// Mode of AF_XDP, for drivers whose best mode has faults
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub xdp_mode: XdpMode,

    /// How connections are distributed over several workers
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub steer: Steer,

    /// Runs the box as a child process, and starts it again when it dies or a worker stays stuck; for machines without a service manager
    #[arg(long, conflicts_with_all = ["check_config", "restore"])]
    pub supervise: bool,

    /// Leaves the choice of cores to the scheduler; otherwise each worker stays on a core of its own
    #[arg(long)]
    pub no_pin: bool,

    /// Priority of the workers, from -20, before all others, to 19; a worker without frames sleeps and takes no time
    #[arg(long, value_name = "N", default_value_t = -20, allow_hyphen_values = true, value_parser = clap::value_parser!(i8).range(-20..=19))]
    pub nice: i8,

    /// The capture files
    #[command(flatten)]
    pub captures: CaptureFiles,

    /// The protected interface, toward the servers; `host` for this machine itself
    #[arg(value_name = "LAN", required_unless_present_any = ["check_config", "restore"])]
    pub lan: Option<String>,

    /// The other interface, toward the clients
    #[arg(value_name = "WAN", required_unless_present_any = ["check_config", "restore"])]
    pub wan: Option<String>,
}

impl Arguments {
    /// What the process is to do.
    ///
    /// # Panics
    /// If clap accepted a line without interfaces, which it does not.
    pub fn task(&self) -> Task<'_> {
        if let Some(Instead::Doctor(doctor)) = &self.instead {
            return Task::Doctor(doctor);
        }
        match (&self.check_config, &self.restore, &self.lan, &self.wan) {
            (Some(file), ..) => Task::CheckConfig(file),
            (_, Some(interfaces), ..) => {
                Task::Restore { interfaces, after: self.after, state: self.left_state.as_deref() }
            }
            (None, None, Some(lan), Some(wan)) => Task::Run { lan, wan },
            _ => unreachable!("clap asks for LAN and WAN unless --check-config or --restore is given"),
        }
    }
}

impl Arguments {
    /// What the command line overrides of the configuration.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            workers: self.workers.map(usize::from),
            poll: self.poll.map(Into::into),
            control: self.control.clone(),
            state_dir: self.state_dir.clone(),
            log_level: self.log_level.map(log::level_of_config),
        }
    }
}

/// Keys of the configuration that the command line overrides, whatever a file says.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    workers: Option<usize>,
    poll: Option<confparse::Poll>,
    control: Option<Control>,
    state_dir: Option<StateDir>,
    log_level: Option<confparse::LogLevel>,
}

impl Overrides {
    /// Sets them.
    pub fn apply(&self, config: &mut Config) {
        let Self { workers, poll, control, state_dir, log_level } = self.clone();
        config.workers = workers.unwrap_or(config.workers);
        config.poll = poll.unwrap_or(config.poll);
        config.log_level = log_level.unwrap_or(config.log_level);
        if let Some(control) = control {
            config.control = control;
        }
        if let Some(state_dir) = state_dir {
            config.state_dir = state_dir;
        }
    }

    /// The option that overrides this key, if one does.
    pub fn option(&self, key: &str) -> Option<&'static str> {
        let Self { workers, poll, control, state_dir, log_level } = self;
        let given = [
            ("threadcount", "--workers", workers.is_some()),
            ("poll", "--poll", poll.is_some()),
            ("control", "--control", control.is_some()),
            ("state_dir", "--state-dir", state_dir.is_some()),
            ("log_level", "--log-level", log_level.is_some()),
        ];
        given.into_iter().find(|(own, _, is_given)| *own == key && *is_given).map(|(_, option, _)| option)
    }
}

/// The command line as clap knows it: for `--help`, man pages and shell completions.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// What the program does instead of bridging.
#[derive(Debug, Subcommand)]
pub enum Instead {
    /// Looks at two interfaces and at the machine, changes nothing, and says what works, about how fast, and what to change, with the commands
    Doctor(DoctorArguments),
}

/// The arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// Prints one line of JSON
    #[arg(long)]
    pub json: bool,

    /// Configuration of the box that is to run: it decides on workers, polling and memory; without it, every key has its default
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Workers of the box that is to run; overrides `threadcount`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,

    /// The protected interface, toward the servers; `host` for this machine itself
    #[arg(value_name = "LAN")]
    pub lan: String,

    /// The other interface, toward the clients
    #[arg(value_name = "WAN")]
    pub wan: String,
}

/// The capture files of the command line.
#[derive(Debug, Args)]
#[command(next_help_heading = "Captures")]
pub struct CaptureFiles {
    /// Captures every frame received, on either port, before it is edited
    #[arg(short = 'i', long, value_name = "FILE")]
    capture_received: Option<PathBuf>,

    /// Captures every frame sent, by either port, after it was edited
    #[arg(short = 'o', long, value_name = "FILE")]
    capture_sent: Option<PathBuf>,

    /// Captures what the LAN port receives and sends
    #[arg(short = 'l', long, value_name = "FILE")]
    capture_lan: Option<PathBuf>,

    /// Captures what the WAN port receives and sends
    #[arg(short = 'w', long, value_name = "FILE")]
    capture_wan: Option<PathBuf>,

    /// Captures samples of the dropped frames, each with the drop reason as its comment
    #[arg(long, value_name = "FILE")]
    drops: Option<PathBuf>,

    /// Dropped frames captured of each reason in a second
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    drops_rate: u32,

    /// Size limit of each file; k, M or G may follow. Frames beyond it are counted and not written
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = control::file_bytes)]
    capture_limit: u64,

    /// Bytes written of each frame
    #[arg(long, value_name = "BYTES", default_value_t = 65535, value_parser = clap::value_parser!(u16).range(14..))]
    capture_snap: u16,
}

impl CaptureFiles {
    /// The files, by kind.
    pub fn files(&self) -> impl Iterator<Item = (Kind, &Path)> {
        let of = |kind| match kind {
            Kind::Received => &self.capture_received,
            Kind::Sent => &self.capture_sent,
            Kind::Lan => &self.capture_lan,
            Kind::Wan => &self.capture_wan,
            Kind::Drops => &self.drops,
        };
        Kind::ALL.into_iter().filter_map(move |kind| Some((kind, of(kind).as_deref()?)))
    }

    /// The limits of each file.
    pub fn limits(&self) -> Limits {
        Limits { file_bytes: self.capture_limit, frame_bytes: self.capture_snap, drops_a_second: self.drops_rate }
    }
}

/// What the process is to do.
pub enum Task<'a> {
    /// Check this file and exit.
    CheckConfig(&'a Path),
    /// Put back the settings of interfaces, and exit.
    Restore {
        /// These; all, if there are none.
        interfaces: &'a [String],
        /// After so many seconds.
        after: Option<u64>,
        /// The directory of a state that may be left.
        state: Option<&'a Path>,
    },
    /// Look at two interfaces and at the machine, and say what works.
    Doctor(&'a DoctorArguments),
    /// Run between these two interfaces.
    Run {
        /// The interface toward the servers.
        lan: &'a str,
        /// The interface toward everybody else.
        wan: &'a str,
    },
}

/// Parses a log level by its name.
fn levels() -> impl TypedValueParser<Value = LogLevel> {
    let known = |name: String| name.parse().expect("it is one of the names");
    PossibleValuesParser::new(LogLevel::ALL.map(LogLevel::name)).map(known)
}

/// How a worker waits for frames.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Poll {
    /// Sleeps between frames, and polls under load.
    Adaptive,
    /// Polls without sleeping.
    Busy,
    /// Sleeps whenever there is nothing to do.
    Interrupt,
}

impl From<Poll> for confparse::Poll {
    fn from(poll: Poll) -> Self {
        match poll {
            Poll::Adaptive => confparse::Poll::Adaptive,
            Poll::Busy => confparse::Poll::Busy,
            Poll::Interrupt => confparse::Poll::Interrupt,
        }
    }
}

/// Mode of AF_XDP.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum XdpMode {
    /// The best that works.
    Auto,
    /// In the driver with zero copy; fails otherwise.
    ZeroCopy,
    /// In the driver, copying.
    Driver,
    /// Before the network stack, on any interface.
    Generic,
}

impl From<XdpMode> for Mode {
    fn from(mode: XdpMode) -> Self {
        match mode {
            XdpMode::Auto => Mode::Auto,
            XdpMode::ZeroCopy => Mode::ZeroCopy,
            XdpMode::Driver => Mode::Driver,
            XdpMode::Generic => Mode::Generic,
        }
    }
}

/// How connections are distributed over several workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Steer {
    /// By the interfaces' receive-side scaling, if both can be set to a symmetric hash; otherwise as handoff.
    Auto,
    /// A keyed hash names the owner of a connection, and workers hand over the frames of other owners.
    Handoff,
    /// As handoff, and every frame is handed over, even to the worker itself: for tests.
    #[value(hide = true)]
    Everything,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn two_interfaces_are_all_it_needs() {
        let arguments = parse("synproxy eth0 xdp:eth1").unwrap();
        assert!(matches!(arguments.task(), Task::Run { lan: "eth0", wan: "xdp:eth1" }));
        assert!(!arguments.bypass && arguments.workers.is_none() && arguments.config.is_none());
    }

    #[test]
    fn a_check_needs_no_interfaces() {
        let arguments = parse("synproxy --check-config conf.txt").unwrap();
        assert!(matches!(arguments.task(), Task::CheckConfig(file) if file.ends_with("conf.txt")));
    }

    #[test]
    fn restoring_needs_no_interfaces_and_takes_any_number() {
        for (line, expected) in [
            ("synproxy --restore", &[][..]),
            ("synproxy --restore eth0", &["eth0"]),
            ("synproxy --log-level warn --restore eth0 eth1 eth2", &["eth0", "eth1", "eth2"]),
        ] {
            let arguments = parse(line).unwrap();
            assert!(matches!(arguments.task(), Task::Restore { interfaces, .. } if interfaces == expected), "{line}");
        }
    }

    #[test]
    fn the_doctor_takes_two_interfaces_and_no_option_of_the_box() {
        let arguments = parse("synproxy doctor --json --workers 2 eth0 xdp:eth1").unwrap();
        let Task::Doctor(doctor) = arguments.task() else { panic!("{arguments:?}") };
        assert_eq!(
            (doctor.lan.as_str(), doctor.wan.as_str(), doctor.json, doctor.workers),
            ("eth0", "xdp:eth1", true, Some(2))
        );
        let arguments = parse("synproxy doctor host eth0").unwrap();
        assert!(matches!(arguments.task(), Task::Doctor(doctor) if doctor.lan == "host" && doctor.wan == "eth0"));
        let arguments = parse("synproxy --workers 2 host eth0").unwrap();
        assert!(matches!(arguments.task(), Task::Run { lan: "host", wan: "eth0" }));
        let arguments = parse("synproxy eth0 doctor").unwrap();
        assert!(matches!(arguments.task(), Task::Run { lan: "eth0", wan: "doctor" }));
    }

    #[test]
    fn captures_have_the_letters_they_always_had() {
        let arguments = parse("synproxy -i a -o b -l c -w d --drops e --capture-limit 64k eth0 eth1").unwrap();
        let files: Vec<_> = arguments.captures.files().map(|(_, path)| path.to_str().unwrap()).collect();
        assert_eq!(files, ["a", "b", "c", "d", "e"]);
        assert_eq!(arguments.captures.limits(), Limits { file_bytes: 65_536, ..Limits::default() });
        assert_eq!(parse("synproxy eth0 eth1").unwrap().captures.limits(), Limits::default());
    }

    #[test]
    fn what_the_command_line_overrides_it_names() {
        let overrides = parse("synproxy --workers 3 --poll busy --control none --state-dir none --log-level warn a b")
            .unwrap()
            .overrides();
        let mut config = Config::default();
        overrides.apply(&mut config);
        assert_eq!((config.workers, config.poll, &config.control), (3, confparse::Poll::Busy, &Control::None));
        assert_eq!(config.log_level, confparse::LogLevel::Warn);
        assert_eq!(config.state_dir, StateDir::None);
        assert_eq!(config.changes(&Config::default()).len(), 5);
        for change in config.changes(&Config::default()) {
            assert!(overrides.option(change.key.name).is_some_and(|option| option.starts_with("--")), "{change:?}");
        }
        assert_eq!(parse("synproxy a b").unwrap().overrides().option("poll"), None);
    }

    #[test]
    fn a_wrong_line_is_a_usage_error() {
        for line in [
            "synproxy",
            "synproxy eth0",
            "synproxy eth0 eth1 eth2",
            "synproxy --workers 0 eth0 eth1",
            "synproxy --workers 65 eth0 eth1",
            "synproxy --log-level loud eth0 eth1",
            "synproxy --poll sometimes eth0 eth1",
            "synproxy --check-config a --config b",
            "synproxy --restore --check-config a",
            "synproxy --restore --workers 2 eth0",
            "synproxy doctor",
            "synproxy doctor eth0",
            "synproxy doctor eth0 eth1 eth2",
            "synproxy doctor --bypass eth0 eth1",
            "synproxy --bypass doctor eth0 eth1",
            "synproxy --capture-limit 17T eth0 eth1",
            "synproxy --capture-limit 99999999999G eth0 eth1",
            "synproxy --capture-snap 70000 eth0 eth1",
            "synproxy -i a -i b eth0 eth1",
            "synproxy --takeover --fresh eth0 eth1",
            "synproxy --takeover --restore eth0",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
