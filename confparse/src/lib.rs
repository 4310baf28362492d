//! Text to [`Config`]: the grammar, every key with its range, and complaints that say where and how to mend it.
//!
//! A file is `synproxyconf = { key = value; … };`. A value is a number (decimal, no sign, no unit), a string in quotes, a word,
//! a list `{ 1, 2 }`, a section `{ key = 1; }` or a list of blocks `{ { key = 1; }, { key = 2; } }`. `#` and `//` comment to the end of the line, `/* */` across lines; lines end
//! in LF or CRLF. Keys come in any order. Of a key given twice the last one counts, lists and sections' keys included, and the
//! repeat is warned of. A key that is absent keeps the default of [`Config::default`].
//!
//! [`Config::KEYS`] is the whole vocabulary; the reader, [`Config::describe`] and the documentation all work from it.
//!
//! ```
//! let parsed = confparse::parse("synproxyconf = { own_mss = 1400; };", "conf.txt")?;
//! assert_eq!(parsed.config.engine.own_mss, 1400);
//!
//! let errors = confparse::parse("synproxyconf = { own_ms = 1400; };", "conf.txt").unwrap_err();
//! assert_eq!(errors.complaints[0].expected, "did you mean `own_mss`?");
//! # Ok::<(), confparse::Errors>(())
//! ```
//!
//! Files, users and interfaces are the caller's: nothing here looks beyond the text.

#![forbid(unsafe_code)]

mod complaint;
mod effects;
mod keys;
mod networks;
mod print;
mod read;
mod rules;
mod servers;
mod services;

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::num::NonZeroU32;
use core::time::Duration;
use std::path::PathBuf;

pub use complaint::{Complaint, Errors, Level};
pub use effects::Effect;
pub use keys::{Key, Takes, Value};
pub use networks::{MAX_NETWORKS, network, networks, written};
pub use servers::Servers;

/// The longest text that is read, in bytes. What is longer is no configuration.
pub const MAX_TEXT: usize = 1 << 20;

/// Frames a worker's two ports have together, which a warning goes by: holding too many of them leaves too few for those that arrive.
pub const FRAMES_OF_A_WORKER: usize = 16_384;

/// A text that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What it says, with defaults for what it leaves out.
    pub config: Config,
    /// What is allowed but probably not meant, in the order of the text. At most [`Complaint::MOST`].
    pub warnings: Vec<Complaint>,
    /// Where its keys stand.
    pub places: Places,
}

/// Where the keys stand that a text gives, for complaints about what the text alone does not tell: users, paths, the size of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    file: String,
    /// Section, name, line and column.
    given: Vec<(Option<&'static str>, &'static str, usize, usize)>,
}

impl Places {
    /// `message` about a key, behind `file:line:column: ` of where it was last given; behind the file alone where it has its default.
    pub fn complain(&self, section: Option<&str>, name: &str, message: &str) -> String {
        let file = complaint::tame(&self.file);
        match self.given.iter().find(|(own, key, ..)| *own == section && *key == name) {
            Some((_, _, line, column)) => format!("{file}:{line}:{column}: {message}"),
            None if file.is_empty() => message.to_owned(),
            None => format!("{file}: {message}"),
        }
    }
}

/// Reads a configuration. `name` is the file's name for the messages.
///
/// Text from a file that may hold stray bytes of an old encoding in its comments is best read with
/// [`String::from_utf8_lossy`].
///
/// # Errors
/// The first mistake against the grammar, or else every other mistake there is (at most [`Complaint::MOST`]), together with the
/// warnings. Nothing is accepted in part.
pub fn parse(text: &str, name: &str) -> Result<Parsed, Errors> {
    read::read(text, name)
}

/// Everything the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The engine's configuration.
    pub engine: tcpstate::Config,
    /// Worker threads, one a queue pair, 1 to 64 (`threadcount`).
    pub workers: usize,
    /// How a worker waits for frames (`poll`).
    pub poll: Poll,
    /// Where the kernel forwards established connections by itself (`fast_path`).
    pub fast_path: FastPath,
    /// Connections that can be handed down to the kernel at once (`fast_path_flows`).
    pub fast_path_flows: usize,
    /// When an XDP program answers SYNs in front of `fast_path = tc` (`fast_path_flood`, `fast_path_calm`).
    pub front: Front,
    /// Whether SYNs of unproved sources are left out while a worker cannot keep up (`shed`).
    pub shed: bool,
    /// Whether the kernel answers SYNs by itself where the workers would answer by a cookie (`syns_in_kernel`).
    pub syns_in_kernel: bool,
    /// What becomes of a port when the other one has lost its link (`link_loss`).
    pub link_loss: LinkLoss,
    /// What becomes of frames, and who is told, when the box fails (`on_failure`, `port_loss`, `watchdog_device`, `bypass_hook`).
    pub failures: Failures,
    /// Whom to become after start-up, if root; `None` stays (`user`; 0 in the file).
    pub user: Option<Account>,
    /// Which group to take after start-up, if root; `None` stays (`group`; 0 in the file).
    pub group: Option<Account>,
    /// TCP port of the control plane (`port`).
    pub port: u16,
    /// The address it is opened at (`listen`).
    pub listen: IpAddr,
    /// Where the operator's socket is (`control`).
    pub control: Control,
    /// Whose members may use it besides root and the box's user; `None` is no group (`control_group`; 0 in the file).
    pub control_group: Option<Account>,
    /// Whose members may look (`control_read`; 0 in the file).
    pub control_read: Option<Account>,
    /// Whose members may operate the box too, as those of `control_group` (`control_operate`; 0 in the file).
    pub control_operate: Option<Account>,
    /// Whose members may do what root may (`control_admin`; 0 in the file).
    pub control_admin: Option<Account>,
    /// Where the state lies that outlives the process (`state_dir`).
    pub state_dir: StateDir,
    /// How old such state may be (`state_keep`).
    pub state_keep: Duration,
    /// Where the statistics are served over HTTP, if anywhere (`metrics`).
    pub metrics: Option<SocketAddr>,
    /// The least severe level that is logged (`log_level`).
    pub log_level: LogLevel,
    /// Clients that are treated in a way of their own (`lists`).
    pub lists: ClientLists,
    /// Sizes of some drivers' rings (`ldp`): netmap's are asked for, on the others nothing depends.
    pub ldp: Ldp,
    /// What is reported of attacks, links and workers, and to whom (`events`).
    pub events: Events,
    /// The window scales of a timestamp cookie (`tswscale`). Nothing depends on them: the scale is carried exactly.
    pub ts_wscale_table: Vec<u8>,
    /// Bits of coarse time in a timestamp cookie (`ts_bits`). Nothing depends on them: time has 20 bits of its own.
    pub ts_bits: u8,
}

impl Config {
    /// Every key there is: those of the top level first, then section by section.
    pub const KEYS: &'static [Key] = keys::KEYS;

    /// The sections, each with a line on what it is for.
    pub const SECTIONS: &'static [(&'static str, &'static str)] = keys::SECTIONS;

    /// Whether any attribute of our SYN-ACKs is commanded, so that the control plane has to listen.
    pub fn commanded(&self) -> bool {
        let commanded = Some(tcpstate::config::Source::Commanded);
        let engine = &self.engine;
        [Some(engine.sack), Some(engine.mss), Some(engine.wscale)].contains(&commanded)
            || engine
                .rules
                .iter()
                .any(|rule| [rule.settings.sack, rule.settings.mss, rule.settings.wscale].contains(&commanded))
    }

    /// The effective configuration as a text that [`parse`] reads back to the same value.
    ///
    /// True of every value that `parse` can yield; a value made by hand can hold what no text can say (half a second, a scale
    /// of 15).
    pub fn describe(&self) -> String {
        print::describe(self)
    }

    /// Every key whose value in `new` is another, in the order of [`Config::KEYS`].
    pub fn changes(&self, new: &Config) -> Vec<Change> {
        let both = Self::KEYS.iter().map(|key| Change { key, old: key.text(self), new: key.text(new) });
        both.filter(|change| change.old != change.new).collect()
    }

    /// What a process that runs with this configuration runs with once it has read `new`: that, but for what takes a [restart](Effect::Restart).
    #[must_use]
    pub fn after_reload(&self, new: &Config) -> Config {
        let mut running = new.clone();
        for key in Self::KEYS.iter().filter(|key| matches!(key.effect(), Effect::Restart(_))) {
            if let Some(value) = key.value(self) {
                (key.set)(&mut running, value);
            }
        }
        running
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            engine: tcpstate::Config::default(),
            workers: 1,
            poll: Poll::default(),
            fast_path: FastPath::default(),
            fast_path_flows: 16_384,
            front: Front::default(),
            shed: true,
            syns_in_kernel: false,
            link_loss: LinkLoss::default(),
            failures: Failures::default(),
            user: None,
            group: None,
            port: 12345,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            control: Control::default(),
            control_group: None,
            control_read: None,
            control_operate: None,
            control_admin: None,
            state_dir: StateDir::default(),
            state_keep: Duration::from_secs(300),
            metrics: None,
            log_level: LogLevel::default(),
            lists: ClientLists::default(),
            ldp: Ldp::default(),
            events: Events::default(),
            ts_wscale_table: vec![0, 1, 3, 5, 6, 8, 9, 10],
            ts_bits: 5,
        }
    }
}

/// A key whose values in two configurations differ, as they stand in a file; `None` where it is off.
#[derive(Clone, Debug)]
pub struct Change {
    /// The key.
    pub key: &'static Key,
    /// Its value so far.
    pub old: Option<String>,
    /// Its value from now on.
    pub new: Option<String>,
}

/// How a worker waits for frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Poll {
    /// It sleeps until a frame comes, and under load looks again and again.
    #[default]
    Adaptive,
    /// It never sleeps.
    Busy,
    /// It sleeps whenever there is nothing to do.
    Interrupt,
}

/// When an XDP program answers SYNs in front of the programs at tc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Front {
    /// Above so many SYNs answered and acknowledgements dropped per second; 0: never (`fast_path_flood`).
    pub rate: u32,
    /// Until less than half of that has come for so long (`fast_path_calm`).
    pub calm: Duration,
}

impl Default for Front {
    fn default() -> Self {
        Front { rate: 100_000, calm: Duration::from_secs(10) }
    }
}

/// Where the kernel forwards established connections by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FastPath {
    /// The workers forward everything.
    #[default]
    Off,
    /// Where that is faster for the ports.
    Auto,
    /// In the XDP program of AF_XDP ports, frame by frame.
    Xdp,
    /// At the tc hook of packet ports, super-frames whole.
    Tc,
}

/// What becomes of a port when the other one has lost its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LinkLoss {
    /// Nothing.
    #[default]
    Ignore,
    /// It is taken down until the link is back, so that its neighbours notice as they would with a cable.
    Forward,
}

/// What becomes of frames, and who is told, when the box fails.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Failures {
    /// What passes while no worker takes frames (`on_failure`).
    pub on_failure: OnFailure,
    /// What becomes of the box when an interface is gone (`port_loss`).
    pub port_loss: PortLoss,
    /// The kernel's watchdog device that is written to as long as no worker is stuck, if any (`watchdog_device`).
    pub watchdog_device: Option<PathBuf>,
    /// What is told to open and to close a bypass around the box, if anything: a program with its arguments, or a file below `/sys` (`bypass_hook`).
    pub bypass_hook: Option<String>,
}

/// What passes while no worker takes frames: the process was killed or is stopped, or a worker is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// Nothing.
    #[default]
    Closed,
    /// What is not TCP, and connections that the box passes through unchanged.
    Untranslated,
    /// Everything but connections that the box translates.
    Open,
}

/// What becomes of the box when an interface is gone, or is missing at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PortLoss {
    /// It ends.
    #[default]
    Exit,
    /// It waits until the interface is there, and goes on.
    Wait,
}

/// A level of the log. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// Errors only.
    Error,
    /// Also warnings.
    Warn,
    /// Also normal operation.
    #[default]
    Info,
    /// Also details for debugging.
    Debug,
    /// Everything.
    Trace,
}

/// Where the operator's socket is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Control {
    /// In the default place, by the names of the interfaces.
    #[default]
    Auto,
    /// Nowhere.
    None,
    /// Here.
    At(PathBuf),
}

impl From<&str> for Control {
    /// As it is written: `auto`, `none`, or a path.
    fn from(text: &str) -> Self {
        match text {
            "auto" => Control::Auto,
            "none" => Control::None,
            path => Control::At(path.into()),
        }
    }
}

/// Where the state lies that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum StateDir {
    /// In a directory below the default one, by the names of the interfaces.
    #[default]
    Auto,
    /// Nowhere: a restart loses every connection that was answered.
    None,
    /// In descriptors that the service manager keeps.
    Descriptors,
    /// In a directory below this one, by the names of the interfaces.
    Below(PathBuf),
}

impl From<&str> for StateDir {
    /// As it is written: `auto`, `none`, `descriptors`, or a path.
    fn from(text: &str) -> Self {
        match text {
            "auto" => StateDir::Auto,
            "none" => StateDir::None,
            "descriptors" => StateDir::Descriptors,
            path => StateDir::Below(path.into()),
        }
    }
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// By number. Zero, root, is no change and therefore no account.
    Id(NonZeroU32),
    /// By name, which is still to be looked up; it may turn out to be root's.
    Name(String),
}

/// The `lists` section.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ClientLists {
    /// Those whose new connections are dropped.
    pub block: ClientList,
    /// Those whose connections pass unanswered.
    pub allow: ClientList,
    /// Those whose connections are always proxied.
    pub always: ClientList,
}

impl ClientLists {
    /// What is listed in a list.
    pub fn of(&self, list: tcpstate::List) -> &ClientList {
        match list {
            tcpstate::List::Block => &self.block,
            tcpstate::List::Allow => &self.allow,
            tcpstate::List::Always => &self.always,
        }
    }
}

/// A list of clients: networks, and files of networks.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ClientList {
    /// Networks that the configuration names.
    pub networks: Vec<tcpstate::config::Network>,
    /// Files of networks; see [`networks`].
    pub files: Vec<PathBuf>,
}

/// The `ldp` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ldp {
    /// Receive slots of a netmap ring.
    pub netmap_nr_rx_slots: u32,
    /// Transmit slots of a netmap ring.
    pub netmap_nr_tx_slots: u32,
    /// Buffers of a socket port.
    pub socket_num_bufs: u32,
    /// Receive buffer of a socket in bytes; 0 leaves it.
    pub socket_rcvbuf: u32,
    /// Send buffer of a socket in bytes; 0 leaves it.
    pub socket_sndbuf: u32,
}

impl Default for Ldp {
    fn default() -> Self {
        Self {
            netmap_nr_rx_slots: 256,
            netmap_nr_tx_slots: 64,
            socket_num_bufs: 1024,
            socket_rcvbuf: 0,
            socket_sndbuf: 0,
        }
    }
}

/// The `events` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Events {
    /// The file that gets them.
    pub file: Option<PathBuf>,
    /// The syslog server that gets them.
    pub syslog: Option<Syslog>,
    /// The program that is run for each, with its arguments behind blanks.
    pub command: Option<String>,
    /// How many of these run at once.
    pub commands: usize,
    /// When one is killed.
    pub command_timeout: Duration,
    /// SYNs a second for one destination whose handshakes are not completed, from which on an attack begins.
    pub attack_begin: u64,
    /// Below which it is over.
    pub attack_end: u64,
    /// After how long.
    pub attack_end_after: Duration,
    /// How often it is reported meanwhile.
    pub update_every: Duration,
    /// SYNs a second for one destination from which on an attack exceeds what the box can take; 0 is none.
    pub capacity: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            file: None,
            syslog: None,
            command: None,
            commands: 4,
            command_timeout: Duration::from_secs(10),
            attack_begin: 1000,
            attack_end: 250,
            attack_end_after: Duration::from_secs(60),
            update_every: Duration::from_secs(60),
            capacity: 0,
        }
    }
}

/// Where a syslog server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Syslog {
    /// At a datagram socket of this machine.
    Socket(PathBuf),
    /// At a UDP port.
    Udp(SocketAddr),
}

impl core::fmt::Display for Syslog {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Syslog::Socket(path) => path.display().fmt(f),
            Syslog::Udp(address) => address.fmt(f),
        }
    }
}

/// A string as it stands in a file.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
