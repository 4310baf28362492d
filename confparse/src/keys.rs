//! The vocabulary: every key with its section, its range, its help, and the field it stands for.
//!
//! The reader, `describe` and the sample file's test all go by this table, so a key cannot be read but not printed, or be there
//! but not explained.

use crate::servers::Servers;
use crate::{Account, Config, Control, FastPath, LinkLoss, LogLevel, OnFailure, Poll, PortLoss, StateDir, Syslog};
use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroU32;
use core::time::Duration;
use std::path::PathBuf;
use tcpstate::config::{
    Action, Asymmetric, DestinationRule, EarlyEcho, Extension, Handshake, Mode, Proved, SackConflict, ServiceConfig,
    Source, Stray,
};

/// The largest number the language has.
const INT_MAX: u64 = 2_147_483_647;

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing: the bare key is the statement.
    Flag,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A number in this range, bounds included.
    Number {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A power of two from 1 up to this.
    PowerOfTwo {
        /// The most.
        max: u64,
    },
    /// A list of numbers that rise.
    List {
        /// The largest entry.
        max: u64,
        /// Whether the first entry must be 0.
        from_zero: bool,
        /// The greatest length.
        most: usize,
    },
    /// A name in quotes, or a number; 0 for no change.
    Account,
    /// An address in quotes.
    Address,
    /// The place of a socket in quotes: `auto`, `none`, or a path from `/` on.
    Socket,
    /// The place of the state in quotes: `auto`, `none`, `descriptors`, or the path of a directory from `/` on.
    State,
    /// An address with a port, or `off`, in quotes.
    Listener,
    /// The path of a file from `/` on, or `off`, in quotes.
    File,
    /// The path of a program from `/` on, with arguments behind it or without, or `off`, in quotes.
    Command,
    /// Where a syslog server listens, or `off`, in quotes: the path of a datagram socket from `/` on, or an address with a UDP port.
    Syslog,
    /// A list of addresses and networks in quotes, each with a port or without.
    Servers {
        /// The greatest length.
        most: usize,
    },
    /// An address or a network in quotes, without a port.
    Network,
    /// A list of such, of any length.
    Networks,
    /// A list of paths in quotes, each from `/` on.
    Files,
    /// A list of blocks, each for the servers of one network: `{ network = "192.0.2.0/24"; … }`.
    Destinations,
    /// A list of blocks, each of one service: `{ address = "192.0.2.1"; port = 443; … }`.
    Services,
    /// A list of texts in quotes, each as this says.
    Texts(&'static str),
}

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A flag is set or not.
    Flag(bool),
    /// A word of [`Takes::Word`].
    Word(&'static str),
    /// A number.
    Number(u64),
    /// A list.
    List(Vec<u64>),
    /// A user or group, if any.
    Account(Option<Account>),
    /// An address.
    Address(IpAddr),
    /// The place of a socket.
    Socket(Control),
    /// The place of the state.
    State(StateDir),
    /// Where to listen, if anywhere.
    Listener(Option<SocketAddr>),
    /// A file or a command, if any.
    Text(Option<String>),
    /// A syslog server, if any.
    Syslog(Option<Syslog>),
    /// Servers.
    Servers(Vec<Servers>),
    /// What is settled for the servers of some networks.
    Destinations(Vec<DestinationRule>),
    /// Files.
    Files(Vec<PathBuf>),
    /// Services.
    Services(Vec<ServiceConfig>),
    /// Texts; where each stands is the reader's to say.
    Texts(Vec<String>),
}

/// A key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// The section it belongs in, or `None` for the top level.
    pub section: Option<&'static str>,
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub takes: Takes,
    /// The unit of its numbers: `seconds`, `microseconds`, `bytes`, or what is counted; empty where there is none.
    pub unit: &'static str,
    /// One line on what it does.
    pub help: &'static str,
    /// Why it is read and checked, yet changes nothing; `None` for a key that does something.
    pub idle: Option<&'static str>,
    pub(crate) set: fn(&mut Config, Value),
    pub(crate) get: fn(&Config) -> Option<Value>,
}

impl Key {
    /// Its value in `config`; `None` if it is not set there and has no value then.
    pub fn value(&self, config: &Config) -> Option<Value> {
        (self.get)(config)
    }

    /// What it takes, in words.
    pub fn range(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!(" ({})", self.unit) };
        match self.takes {
            Takes::Flag => "no value".to_owned(),
            Takes::Word(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
                match words.split_last() {
                    Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
                    _ => words.concat(),
                }
            }
            Takes::Number { min, max } => format!("a number from {min} to {max}{unit}"),
            Takes::PowerOfTwo { max } => format!("a power of two from 1 to {max}{unit}"),
            Takes::List { max, from_zero, most } => {
                let first = if from_zero { ", the first 0" } else { "" };
                let most = if most < usize::MAX { format!(", {most} of them at most") } else { String::new() };
                format!("a list of rising numbers up to {max}{unit}{first}{most}")
            }
            Takes::Address => "an address in quotes".to_owned(),
            Takes::Socket => {
                format!("`\"auto\"`, `\"none\"`, or a path from / on in quotes, {LONGEST_SOCKET} bytes at most")
            }
            Takes::State => {
                "`\"auto\"`, `\"none\"`, `\"descriptors\"`, or the path of a directory from / on, in quotes".to_owned()
            }
            Takes::Listener => "an address with a port, or `off`, in quotes".to_owned(),
            Takes::File => "a path from / on, or `off`, in quotes".to_owned(),
            Takes::Command => {
                "a program's path from / on, with arguments behind it or without, or `off`, in quotes".to_owned()
            }
            Takes::Syslog => "a path from / on, an address with a port, or `off`, in quotes".to_owned(),
            Takes::Account => "a name in quotes, or a number; 0 is no change".to_owned(),
            Takes::Network => "an address or a network in quotes, without a port".to_owned(),
            Takes::Networks => "a list of addresses and networks in quotes, without ports".to_owned(),
            Takes::Files => "a list of paths from / on in quotes".to_owned(),
            Takes::Services => "a list of blocks `{ address = \"192.0.2.1\"; port = 443; … }`".to_owned(),
            Takes::Texts(each) => format!("a list in quotes, each {each}"),
            Takes::Destinations => "a list of blocks `{ network = \"192.0.2.0/24\"; … }`".to_owned(),
            Takes::Servers { most } => {
                format!(
                    "a list of addresses or networks in quotes, each with a port or without, {most} of them at most"
                )
            }
        }
    }
}

pub(crate) const SECTIONS: &[(&str, &str)] = &[
    ("ratehash", "token buckets that limit unanswered SYNs per source prefix"),
    ("limits", "limits on connections and SYN-ACKs, of all workers together; 0 is no limit"),
    ("lists", "clients that are blocked, passed unanswered, or always proxied"),
    ("timeouts", "lifetimes of a flow in each state"),
    ("auto", "when a destination in mode `auto` stops and begins to pass SYNs"),
    ("ldp", "sizes of some drivers' rings and sockets"),
    ("events", "what is reported of attacks, links and workers, and to whom"),
];

/// A key whose value is a number in a field of an integer type.
macro_rules! number {
    ($section:expr, $name:expr, $takes:expr, $unit:literal, $($field:ident).+ : $type:ty, $idle:expr, $help:literal) => {
        Key {
            section: $section,
            name: $name,
            takes: $takes,
            unit: $unit,
            help: $help,
            idle: $idle,
            set: |config, value| {
                if let Value::Number(n) = value {
                    config.$($field).+ = <$type>::try_from(n).unwrap_or(<$type>::MAX);
                }
            },
            get: |config| Some(Value::Number(config.$($field).+ as u64)),
        }
    };
}

/// A key whose value is a list of numbers.
macro_rules! list {
    ($name:literal, $takes:expr, $unit:literal, $($field:ident).+ : $type:ty, $idle:expr, $help:literal) => {
        Key {
            section: None,
            name: $name,
            takes: $takes,
            unit: $unit,
            help: $help,
            idle: $idle,
            set: |config, value| {
                if let Value::List(list) = value {
                    config.$($field).+ = list.into_iter().map(|n| <$type>::try_from(n).unwrap_or(<$type>::MAX)).collect();
                }
            },
            get: |config| Some(Value::List(config.$($field).+.iter().map(|&n| n.into()).collect())),
        }
    };
}

/// A key whose value is a word that names a value of a field.
macro_rules! word {
    ($name:literal, $field:ident: { $($word:literal => $meaning:expr),+ $(,)? }, $help:literal) => {
        Key {
            section: None,
            name: $name,
            takes: Takes::Word(&[$($word),+]),
            unit: "",
            help: $help,
            idle: None,
            set: |config, value| match value {
                $(Value::Word($word) => config.engine.$field = $meaning,)+
                _ => {}
            },
            get: |config| {
                let named = [$(($meaning, $word)),+].into_iter().find(|(meaning, _)| *meaning == config.engine.$field);
                named.map(|(_, word)| Value::Word(word))
            },
        }
    };
}

/// A key that says where an attribute of our SYN-ACKs comes from.
macro_rules! mode {
    ($name:literal, $field:ident, $help:literal) => {
        word!($name, $field: {
            "default" => Source::Default,
            "haship" => Source::HashIp,
            "hashipport" => Source::HashIpPort,
            "commanded" => Source::Commanded,
        }, $help)
    };
}

/// A key whose value is a time in seconds.
macro_rules! seconds {
    ($section:expr, $name:expr, $min:literal, $($field:ident).+, $help:literal) => {
        Key {
            section: $section,
            name: $name,
            takes: Takes::Number { min: $min, max: INT_MAX },
            unit: "seconds",
            help: $help,
            idle: None,
            set: |config, value| {
                if let Value::Number(n) = value {
                    config.$($field).+ = Duration::from_secs(n);
                }
            },
            get: |config| Some(Value::Number(config.$($field).+.as_secs())),
        }
    };
}

/// A key of `auto` whose value is a time in milliseconds.
macro_rules! millis {
    ($name:ident, $min:literal, $help:literal) => {
        Key {
            section: AUTO,
            name: stringify!($name),
            takes: Takes::Number { min: $min, max: INT_MAX },
            unit: "milliseconds",
            help: $help,
            idle: None,
            set: |config, value| {
                if let Value::Number(n) = value {
                    config.engine.auto.$name = Duration::from_millis(n);
                }
            },
            get: |config| Some(Value::Number(u64::try_from(config.engine.auto.$name.as_millis()).unwrap_or(u64::MAX))),
        }
    };
}

/// A key for servers whose clients' handshakes end in a way of their own.
macro_rules! servers {
    ($name:literal, $handshake:expr, $help:literal) => {
        Key {
            section: None,
            name: $name,
            takes: Takes::Servers { most: MOST_SERVERS },
            unit: "",
            help: $help,
            idle: None,
            set: |config, value| {
                if let Value::Servers(servers) = value {
                    let destinations = &mut config.engine.destinations;
                    destinations.retain(|destination| destination.handshake != $handshake);
                    let own = servers.into_iter().map(|server| server.destination($handshake));
                    destinations.extend(own);
                    destinations.sort_by_key(|destination| destination.handshake != Handshake::Early);
                }
            },
            get: |config| {
                let own = config.engine.destinations.iter().filter(|destination| destination.handshake == $handshake);
                Some(Value::Servers(own.map(Servers::of).collect()))
            },
        }
    };
}

/// A key for a user or a group.
macro_rules! account {
    ($name:ident, $help:literal) => {
        Key {
            section: None,
            name: stringify!($name),
            takes: Takes::Account,
            unit: "",
            help: $help,
            idle: None,
            set: |config, value| {
                if let Value::Account(account) = value {
                    config.$name = account;
                }
            },
            get: |config| Some(Value::Account(config.$name.clone())),
        }
    };
}

/// A list of clients, by their networks.
macro_rules! listed {
    ($list:ident, $help:literal) => {
        Key {
            section: LISTS,
            name: stringify!($list),
            takes: Takes::Networks,
            unit: "",
            help: $help,
            idle: None,
            set: |config, value| {
                if let Value::Servers(networks) = value {
                    config.lists.$list.networks = networks.into_iter().map(Servers::as_network).collect();
                }
            },
            get: |config| Some(Value::Servers(config.lists.$list.networks.iter().map(Servers::of_network).collect())),
        }
    };
}

/// The files of a list of clients.
macro_rules! listed_files {
    ($name:literal, $list:ident, $help:literal) => {
        Key {
            section: LISTS,
            name: $name,
            takes: Takes::Files,
            unit: "",
            help: $help,
            idle: None,
            set: |config, value| {
                if let Value::Files(files) = value {
                    config.lists.$list.files = files;
                }
            },
            get: |config| Some(Value::Files(config.lists.$list.files.clone())),
        }
    };
}

/// A limit.
macro_rules! limit {
    ($name:ident, $unit:literal, $help:literal) => {
        number!(
            LIMITS,
            stringify!($name),
            Takes::Number { min: 0, max: 10_000_000 },
            $unit,
            engine.limits.$name: u32,
            None,
            $help
        )
    };
}

/// A lifetime in seconds.
macro_rules! timeout {
    ($name:ident, $help:literal) => {
        seconds!(Some("timeouts"), stringify!($name), 1, engine.timeouts.$name, $help)
    };
}

/// The longest path of a socket, in bytes: what the kernel's address of one holds, with a zero behind it.
pub(crate) const LONGEST_SOCKET: usize = 107;

/// The most servers such a list takes; `destinations` has no such bound.
const MOST_SERVERS: usize = 128;

/// Twelve for each of 64 workers.
const MOST_HALF_OPEN: u64 = 12 * 64;

const POWER: Takes = Takes::PowerOfTwo { max: 1 << 30 };
/// The flow table's places are numbers of 31 bits.
const BUCKETS: Takes = Takes::Number { min: 1, max: (1 << 31) / tcpstate::Config::FLOWS_PER_BUCKET as u64 - 1 };
const POSITIVE: Takes = Takes::Number { min: 1, max: INT_MAX };
const MSS_LIST: Takes = Takes::List { max: 65535, from_zero: false, most: usize::MAX };
const SCALE_LIST: Takes = Takes::List { max: 14, from_zero: true, most: usize::MAX };
const RATE: Option<&str> = Some("ratehash");
const LIMITS: Option<&str> = Some("limits");
const LISTS: Option<&str> = Some("lists");
const AUTO: Option<&str> = Some("auto");
const LDP: Option<&str> = Some("ldp");
const EVENTS: Option<&str> = Some("events");
const RATE_OF_SYNS: Takes = Takes::Number { min: 1, max: INT_MAX };
const OWN_RINGS: Option<&str> = Some("our ports size their own rings and sockets");

pub(crate) const KEYS: &[Key] = &[
    mode!("sackmode", sack, "where the SACK-permitted option of our SYN-ACKs comes from"),
    mode!("mssmode", mss, "where the MSS of our SYN-ACKs comes from"),
    mode!("wscalemode", wscale, "where the window scale of our SYN-ACKs comes from"),
    word!("sackconflict", sack_conflict: { "remove" => SackConflict::Remove, "retain" => SackConflict::Retain },
        "what becomes of a client's SACK blocks when it was promised SACK and the server takes none"),
    number!(None, "own_mss", Takes::Number { min: 1, max: 65535 }, "bytes", engine.own_mss: u16, None,
        "MSS announced for an unknown server; 20 less for IPv6 clients"),
    number!(None, "own_wscale", Takes::Number { min: 0, max: 14 }, "", engine.own_wscale: u8, None,
        "window scale announced for a server nothing is known of, and in a cookie without timestamps"),
    word!("own_sack", own_sack: { "enable" => true, "disable" => false },
        "whether SACK is announced for a server nothing is known of"),
    number!(None, "own_ttl", Takes::Number { min: 0, max: 255 }, "", engine.own_ttl: u8, None,
        "hop limit of segments in a server's name before it has answered; 0 is that of its last SYN-ACK, or 255"),
    Key {
        section: None,
        name: "mss_clamp",
        takes: Takes::Number { min: 1, max: 65535 },
        unit: "bytes",
        help: "upper limit of every MSS option that passes; no limit unless given",
        idle: None,
        set: |config, value| {
            if let Value::Number(n) = value {
                config.engine.mss_clamp = Some(u16::try_from(n).unwrap_or(u16::MAX));
            }
        },
        get: |config| config.engine.mss_clamp.map(|clamp| Value::Number(clamp.into())),
    },
    list!("mss", MSS_LIST, "bytes", engine.mss_table: u16, None,
        "MSS values a cookie can express for a client without timestamps; others round down"),
    list!("wscale", SCALE_LIST, "", engine.wscale_table: u8, None,
        "window scales a cookie can express for a client without timestamps; others round down"),
    list!("tsmss", Takes::List { max: 65535, from_zero: false, most: 32 }, "bytes", engine.ts_mss_table: u16, None,
        "MSS values a cookie can express for a client with timestamps; others round down"),
    list!("tswscale", SCALE_LIST, "", ts_wscale_table: u8, Some("with timestamps every scale is carried exactly"),
        "window scales of a timestamp cookie"),
    number!(None, "ts_bits", Takes::Number { min: 0, max: 12 }, "bits", ts_bits: u8,
        Some("the time in a timestamp cookie has 20 bits of its own"), "coarse time in a timestamp cookie"),
    word!("mode", mode: {
        "observe" => Mode::Observe, "pass" => Mode::Pass, "cache" => Mode::Cache, "cookie" => Mode::Cookie, "auto" => Mode::Auto,
    }, "what becomes of SYNs from the WAN: they pass, are answered, or the one or the other as the load is"),
    word!("handshake", handshake: { "honest" => Handshake::Honest, "early" => Handshake::Early },
        "when a client may send and when its server gets the handshake's last acknowledgement; for servers in neither list below"),
    servers!("early", Handshake::Early, "servers whose clients may send at once"),
    servers!("honest", Handshake::Honest, "servers that get the last acknowledgement as late as the client is far"),
    Key {
        section: None,
        name: "destinations",
        takes: Takes::Destinations,
        unit: "",
        help: "servers for which some of these keys are settled apart, by network, port and VLAN",
        idle: None,
        set: |config, value| {
            if let Value::Destinations(rules) = value {
                config.engine.rules = rules;
            }
        },
        get: |config| Some(Value::Destinations(config.engine.rules.clone())),
    },
    Key {
        section: None,
        name: "services",
        takes: Takes::Services,
        unit: "",
        help: "addresses and ports that the box owns, and the servers that clients go to by the name they ask for",
        idle: None,
        set: |config, value| {
            if let Value::Services(services) = value {
                config.engine.services = services;
            }
        },
        get: |config| Some(Value::Services(config.engine.services.clone())),
    },
    number!(None, "service_buffers", Takes::Number { min: 0, max: 65535 }, "connections", engine.service_buffers: usize, None,
        "connections to services whose first bytes can be kept at once until their servers have them; 0: there are no services"),
    number!(None, "first_bytes", Takes::Number { min: 1, max: 65535 }, "bytes", engine.first_bytes: u16, None,
        "bytes that are kept of each, and in which its client must name what it asks for"),
    number!(None, "early_window", Takes::Number { min: 1, max: 65535 }, "bytes", engine.early_window: u16, None,
        "what a client may send at most before its server has answered, where the handshake is early"),
    word!("early_echo", early_echo: { "auto" => EarlyEcho::Auto, "exact" => EarlyEcho::Exact, "none" => EarlyEcho::None },
        "whether the server of an early client gets an echo of its SYN-ACK's timestamp"),
    number!(None, "held_frames", Takes::Number { min: 0, max: 65535 }, "frames", engine.held_frames: usize, None,
        "frames held at most until their servers have answered; beyond it they are dropped, to be sent again"),
    word!("mptcp", multipath: { "strip" => Extension::Strip, "pass" => Extension::Pass },
        "what becomes of a SYN that offers Multipath TCP"),
    word!("fastopen", fast_open: { "strip" => Extension::Strip, "pass" => Extension::Pass },
        "what becomes of a SYN that offers TCP Fast Open"),
    word!("signed", signed: { "pass" => Action::Pass, "drop" => Action::Drop },
        "what becomes of a SYN with a TCP-MD5 or TCP-AO signature"),
    number!(None, "passed_rate", Takes::Number { min: 0, max: INT_MAX }, "SYNs a second", engine.passed_rate: u32, None,
        "SYNs from the WAN that are passed to their servers unanswered"),
    number!(None, "introductions", Takes::Number { min: 0, max: INT_MAX }, "SYNs a second", engine.introductions: u32, None,
        "SYNs passed to ports nothing is known of, so that the server's own answer is the first; 0 is none"),
    number!(None, "retries", Takes::Number { min: 0, max: INT_MAX }, "SYNs a second", engine.retries: u32, None,
        "SYNs passed to ports that lately refused or were silent, to learn whether they still do; 0 is none"),
    word!("proved", proved: { "translate" => Proved::Translate, "pass" => Proved::Pass },
        "what becomes of connections of a source that has proved its address lately"),
    seconds!(
        None,
        "proved_memory",
        0,
        engine.proved_memory,
        "how long a source counts as proved after it has proved itself; 0 is not at all"
    ),
    number!(None, "proved_sources", Takes::Number { min: 1, max: 1 << 24 }, "sources", engine.proved_sources: usize, None,
        "sources that each worker can remember to have proved themselves"),
    number!(None, "proved_syns", Takes::Number { min: 0, max: INT_MAX }, "SYNs a second", engine.proved_syns: u32, None,
        "SYNs of one proved source that are passed; 0 is none"),
    number!(None, "proved_half_open", Takes::Number { min: 0, max: MOST_HALF_OPEN }, "connections", engine.proved_half_open: usize, None,
        "passed connections of one proved source that may be half-open at once, 12 for each worker; 0 is none"),
    number!(None, "proved_half_open_all", Takes::Number { min: 0, max: INT_MAX }, "connections", engine.proved_half_open_all: u32, None,
        "passed connections of all proved sources to one destination that may be half-open at once; 0 is none"),
    seconds!(
        None,
        "closed_memory",
        0,
        engine.closed_memory,
        "how long a port that refused is remembered; 0 is not at all"
    ),
    seconds!(
        None,
        "adopt_grace",
        0,
        engine.adopt_grace,
        "how long after the start connections that run already are adopted; 0 is not at all"
    ),
    word!("asymmetric", asymmetric: {
        "pass" => Asymmetric::Pass, "drop" => Asymmetric::Drop, "bypass" => Asymmetric::Bypass
    }, "what becomes of connections of which one direction does not cross the box"),
    word!("stray", stray: { "drop" => Stray::Drop, "reset" => Stray::Reset },
        "what becomes of a segment of an unknown connection"),
    word!("icmp_errors", icmp_errors: { "pass" => Action::Pass, "drop" => Action::Drop },
        "what becomes of an ICMP error that quotes an unknown TCP connection"),
    word!("stray_fragments", stray_fragments: { "pass" => Action::Pass, "drop" => Action::Drop },
        "what becomes of a later fragment from the WAN whose first one was not seen"),
    number!(None, "conntablesize", BUCKETS, "buckets", engine.table_buckets: usize, None,
        "size of the flow table, which holds 8 flows a bucket"),
    number!(None, "halfopen_cache_max", Takes::Number { min: 0, max: INT_MAX }, "entries", engine.syn_cache_max: usize, None,
        "most entries of the SYN cache; beyond it cookies alone answer, and 0 turns it off"),
    number!(None, "learnhashsize", POWER, "entries", engine.learn_capacity: usize, None,
        "servers whose MSS, SACK and window scale are remembered"),
    number!(None, "threadcount", Takes::Number { min: 1, max: 64 }, "threads", workers: usize, None,
        "workers, each with a queue of either port"),
    Key {
        section: None,
        name: "poll",
        takes: Takes::Word(&["adaptive", "busy", "interrupt"]),
        unit: "",
        help: "how a worker waits for frames: asleep, never asleep, or the one or the other as the load is",
        idle: None,
        set: |config, value| match value {
            Value::Word("adaptive") => config.poll = Poll::Adaptive,
            Value::Word("busy") => config.poll = Poll::Busy,
            Value::Word("interrupt") => config.poll = Poll::Interrupt,
            _ => {}
        },
        get: |config| {
            Some(Value::Word(match config.poll {
                Poll::Adaptive => "adaptive",
                Poll::Busy => "busy",
                Poll::Interrupt => "interrupt",
            }))
        },
    },
    Key {
        section: None,
        name: "shed",
        takes: Takes::Word(&["on", "off"]),
        unit: "",
        help: "whether SYNs of sources that have proved nothing are left out while a worker cannot keep up",
        idle: None,
        set: |config, value| config.shed = value == Value::Word("on"),
        get: |config| Some(Value::Word(if config.shed { "on" } else { "off" })),
    },
    Key {
        section: None,
        name: "fast_path",
        takes: Takes::Word(&["off", "auto", "xdp", "tc"]),
        unit: "",
        help: "where the kernel forwards established connections by itself",
        idle: None,
        set: |config, value| {
            config.fast_path = match value {
                Value::Word("auto") => FastPath::Auto,
                Value::Word("xdp") => FastPath::Xdp,
                Value::Word("tc") => FastPath::Tc,
                _ => FastPath::Off,
            };
        },
        get: |config| {
            Some(Value::Word(match config.fast_path {
                FastPath::Off => "off",
                FastPath::Auto => "auto",
                FastPath::Xdp => "xdp",
                FastPath::Tc => "tc",
            }))
        },
    },
    number!(None, "fast_path_flows", Takes::Number { min: 1, max: 1 << 20 }, "connections", fast_path_flows: usize, None,
        "connections that the kernel can forward by itself at once"),
    number!(None, "fast_path_flood", Takes::Number { min: 0, max: 1_000_000_000 }, "per second", front.rate: u32, None,
        "SYNs above which, with `tc`, an XDP program answers them in front of it; 0 is never"),
    seconds!(
        None,
        "fast_path_calm",
        1,
        front.calm,
        "how long fewer than half of `fast_path_flood` come until that program is taken away"
    ),
    Key {
        section: None,
        name: "syns_in_kernel",
        takes: Takes::Word(&["on", "off"]),
        unit: "",
        help: "whether the XDP program answers SYNs by itself where the workers would answer by a cookie",
        idle: None,
        set: |config, value| config.syns_in_kernel = value == Value::Word("on"),
        get: |config| Some(Value::Word(if config.syns_in_kernel { "on" } else { "off" })),
    },
    Key {
        section: None,
        name: "link_loss",
        takes: Takes::Word(&["ignore", "forward"]),
        unit: "",
        help: "what becomes of a port when the other one has lost its link: nothing, or it is taken down until the link is back",
        idle: None,
        set: |config, value| {
            config.link_loss = if value == Value::Word("forward") { LinkLoss::Forward } else { LinkLoss::Ignore };
        },
        get: |config| {
            Some(Value::Word(match config.link_loss {
                LinkLoss::Ignore => "ignore",
                LinkLoss::Forward => "forward",
            }))
        },
    },
    Key {
        section: None,
        name: "on_failure",
        takes: Takes::Word(&["closed", "untranslated", "open"]),
        unit: "",
        help: "what passes while no worker takes frames: nothing, what the box does not translate for sure, or all but what it translates",
        idle: None,
        set: |config, value| {
            config.failures.on_failure = match value {
                Value::Word("open") => OnFailure::Open,
                Value::Word("untranslated") => OnFailure::Untranslated,
                _ => OnFailure::Closed,
            };
        },
        get: |config| {
            Some(Value::Word(match config.failures.on_failure {
                OnFailure::Closed => "closed",
                OnFailure::Untranslated => "untranslated",
                OnFailure::Open => "open",
            }))
        },
    },
    Key {
        section: None,
        name: "port_loss",
        takes: Takes::Word(&["exit", "wait"]),
        unit: "",
        help: "what becomes of the box when an interface is gone or missing: it ends, or it waits for the interface",
        idle: None,
        set: |config, value| {
            config.failures.port_loss = if value == Value::Word("wait") { PortLoss::Wait } else { PortLoss::Exit };
        },
        get: |config| {
            Some(Value::Word(match config.failures.port_loss {
                PortLoss::Exit => "exit",
                PortLoss::Wait => "wait",
            }))
        },
    },
    Key {
        section: None,
        name: "watchdog_device",
        takes: Takes::File,
        unit: "",
        help: "watchdog device of the kernel that is written to as long as no worker is stuck",
        idle: None,
        set: |config, value| {
            if let Value::Text(device) = value {
                config.failures.watchdog_device = device.map(Into::into);
            }
        },
        get: |config| {
            let device = config.failures.watchdog_device.as_ref();
            Some(Value::Text(device.map(|device| device.to_string_lossy().into_owned())))
        },
    },
    Key {
        section: None,
        name: "bypass_hook",
        takes: Takes::Command,
        unit: "",
        help: "what is told `open` to let frames around the box, and `close` when it takes them: a program, or a file below /sys",
        idle: None,
        set: |config, value| {
            if let Value::Text(hook) = value {
                config.failures.bypass_hook = hook;
            }
        },
        get: |config| Some(Value::Text(config.failures.bypass_hook.clone())),
    },
    account!(user, "whom to become after start-up, if started as root"),
    account!(group, "which group to take after start-up, if started as root"),
    number!(None, "port", Takes::Number { min: 1, max: 65535 }, "", port: u16, None,
        "TCP port of the control plane, open only if a mode is `commanded`"),
    Key {
        section: None,
        name: "listen",
        takes: Takes::Address,
        unit: "",
        help: "address at which the control port is open: anyone who reaches it may command",
        idle: None,
        set: |config, value| {
            if let Value::Address(address) = value {
                config.listen = address;
            }
        },
        get: |config| Some(Value::Address(config.listen)),
    },
    Key {
        section: None,
        name: "control",
        takes: Takes::Socket,
        unit: "",
        help: "the operator's socket; `auto` is /run/synproxy/LAN-WAN.sock",
        idle: None,
        set: |config, value| {
            if let Value::Socket(control) = value {
                config.control = control;
            }
        },
        get: |config| Some(Value::Socket(config.control.clone())),
    },
    account!(control_group, "whose members may operate the box over that socket, as those of control_operate"),
    account!(
        control_read,
        "whose members may look at everything over that socket but the numbers of cookies and connections"
    ),
    account!(
        control_operate,
        "whose members may also drain the box, change servers, secrets and the log level, and have the file read again"
    ),
    account!(control_admin, "whose members may do everything over that socket that root may"),
    Key {
        section: None,
        name: "state_dir",
        takes: Takes::State,
        unit: "",
        help: "where the state lies that a restart takes over; `auto` is a directory below /run/synproxy or /dev/shm/synproxy",
        idle: None,
        set: |config, value| {
            if let Value::State(place) = value {
                config.state_dir = place;
            }
        },
        get: |config| Some(Value::State(config.state_dir.clone())),
    },
    seconds!(None, "state_keep", 1, state_keep, "how long after the end of a process its state is taken over"),
    Key {
        section: None,
        name: "metrics",
        takes: Takes::Listener,
        unit: "",
        help: "where the statistics are served over HTTP, for Prometheus: anyone who reaches it may read them",
        idle: None,
        set: |config, value| {
            if let Value::Listener(address) = value {
                config.metrics = address;
            }
        },
        get: |config| Some(Value::Listener(config.metrics)),
    },
    Key {
        section: None,
        name: "log_level",
        takes: Takes::Word(&["error", "warn", "info", "debug", "trace"]),
        unit: "",
        help: "least severe level that is logged",
        idle: None,
        set: |config, value| match value {
            Value::Word("error") => config.log_level = LogLevel::Error,
            Value::Word("warn") => config.log_level = LogLevel::Warn,
            Value::Word("info") => config.log_level = LogLevel::Info,
            Value::Word("debug") => config.log_level = LogLevel::Debug,
            Value::Word("trace") => config.log_level = LogLevel::Trace,
            _ => {}
        },
        get: |config| {
            Some(Value::Word(match config.log_level {
                LogLevel::Error => "error",
                LogLevel::Warn => "warn",
                LogLevel::Info => "info",
                LogLevel::Debug => "debug",
                LogLevel::Trace => "trace",
            }))
        },
    },
    Key {
        section: None,
        name: "test_connections",
        takes: Takes::Flag,
        unit: "",
        help: "makes 540 established flows at the start, for load generators",
        idle: None,
        set: |config, value| config.engine.test_connections = value == Value::Flag(true),
        get: |config| Some(Value::Flag(config.engine.test_connections)),
    },
    number!(RATE, "size", POWER, "buckets", engine.rate.size: usize, None, "token buckets"),
    Key {
        section: RATE,
        name: "timer_period_usec",
        takes: POSITIVE,
        unit: "microseconds",
        help: "refill period",
        idle: None,
        set: |config, value| {
            if let Value::Number(n) = value {
                config.engine.rate.period = Duration::from_micros(n);
            }
        },
        get: |config| Some(Value::Number(u64::try_from(config.engine.rate.period.as_micros()).unwrap_or(u64::MAX))),
    },
    number!(RATE, "timer_add", POSITIVE, "SYNs", engine.rate.add: u32, None, "tokens a bucket gets each period"),
    number!(RATE, "initial_tokens", POSITIVE, "SYNs", engine.rate.burst: u32, None,
        "tokens a bucket starts with, and the most it holds"),
    number!(RATE, "network_prefix", Takes::Number { min: 0, max: 32 }, "bits", engine.rate.prefix4: u8, None,
        "IPv4 sources alike in this many leading bits share a bucket"),
    number!(RATE, "network_prefix6", Takes::Number { min: 0, max: 128 }, "bits", engine.rate.prefix6: u8, None,
        "IPv6 sources alike in this many leading bits share a bucket"),
    limit!(
        source_rate,
        "connections a second",
        "new connections of one address, of an IPv6 /64; a part of it has a quarter"
    ),
    limit!(source_flows, "connections", "connections of it that run"),
    number!(LIMITS, "network_factor", Takes::Number { min: 1, max: 256 }, "", engine.limits.network_factor: u32, None,
        "how many times as much each larger network may: /24 and /16, of IPv6 /56, /48 and /32"),
    limit!(destination_rate, "connections a second", "new connections to one server port"),
    limit!(destination_flows, "connections", "connections to it that run"),
    limit!(syn_acks, "SYN-ACKs a second", "SYNs that are answered; a quarter is for those that are repeated"),
    limit!(destination_syn_acks, "SYN-ACKs a second", "SYNs to one server port that are answered, likewise"),
    listed!(block, "clients whose new connections are dropped"),
    listed_files!("block_files", block, "files of such networks, one a line"),
    listed!(allow, "clients whose connections pass to the servers unanswered"),
    listed_files!("allow_files", allow, "files of such networks, one a line"),
    listed!(always, "clients whose connections are proxied whatever else would let them pass"),
    listed_files!("always_files", always, "files of such networks, one a line"),
    timeout!(connected, "established, no FIN"),
    timeout!(one_fin, "one direction has sent FIN"),
    timeout!(both_fin, "both have sent FIN, not both are acknowledged"),
    timeout!(time_wait, "both FINs are acknowledged"),
    timeout!(reseted, "a valid RST was seen"),
    timeout!(ul_syn_sent, "a SYN from the LAN has passed, no SYN-ACK yet"),
    timeout!(ul_syn_rcvd, "a SYN-ACK from the WAN has passed, no ACK yet"),
    timeout!(dl_half_open, "an entry of the SYN cache"),
    timeout!(dl_syn_sent, "our SYN went to the server, no SYN-ACK yet"),
    timeout!(syn_retx, "first interval after which our SYN to the server is repeated; it doubles each time"),
    timeout!(syn_retx_max, "the longest such interval"),
    number!(AUTO, "enter_half_open", POSITIVE, "connections", engine.auto.enter_half_open: u32, None,
        "half-open connections of one destination at which its SYNs pass no more; below the backlog of its servers"),
    number!(AUTO, "enter_syn_rate", Takes::Number { min: 0, max: INT_MAX }, "SYNs a second", engine.auto.enter_syn_rate: u32, None,
        "SYNs a second to one destination at which they pass no more; 0 is no such limit"),
    number!(AUTO, "leave_half_open", POSITIVE, "connections", engine.auto.leave_half_open: u32, None,
        "half-open connections and cookies in flight, together, below which its SYNs pass again"),
    millis!(stay, 0, "how long its SYNs are answered by cookies at least"),
    millis!(grace, 0, "how long cookies open connections after SYNs pass again"),
    millis!(in_flight, 1, "how long a cookie that nobody has acknowledged counts as in flight"),
    number!(LDP, "netmap_nr_rx_slots", Takes::Number { min: 1, max: 65536 }, "slots", ldp.netmap_nr_rx_slots: u32, None,
        "receive slots asked of netmap for each ring of a switch's port or a pipe; a card has what it has"),
    number!(LDP, "netmap_nr_tx_slots", Takes::Number { min: 1, max: 65536 }, "slots", ldp.netmap_nr_tx_slots: u32, None,
        "transmit slots asked of netmap, likewise"),
    number!(LDP, "socket_num_bufs", Takes::Number { min: 1, max: 1 << 20 }, "buffers", ldp.socket_num_bufs: u32, OWN_RINGS,
        "buffers of a socket port"),
    number!(LDP, "socket_rcvbuf", Takes::Number { min: 0, max: INT_MAX }, "bytes", ldp.socket_rcvbuf: u32, OWN_RINGS,
        "receive buffer of a socket; 0 leaves it"),
    number!(LDP, "socket_sndbuf", Takes::Number { min: 0, max: INT_MAX }, "bytes", ldp.socket_sndbuf: u32, OWN_RINGS,
        "send buffer of a socket; 0 leaves it"),
    Key {
        section: EVENTS,
        name: "file",
        takes: Takes::File,
        unit: "",
        help: "where events are written, a line of JSON each; reopened when it is renamed",
        idle: None,
        set: |config, value| {
            if let Value::Text(file) = value {
                config.events.file = file.map(Into::into);
            }
        },
        get: |config| Some(Value::Text(config.events.file.as_ref().map(|file| file.to_string_lossy().into_owned()))),
    },
    Key {
        section: EVENTS,
        name: "syslog",
        takes: Takes::Syslog,
        unit: "",
        help: "to which syslog server events are sent (RFC 5424): its socket, or its address and UDP port",
        idle: None,
        set: |config, value| {
            if let Value::Syslog(syslog) = value {
                config.events.syslog = syslog;
            }
        },
        get: |config| Some(Value::Syslog(config.events.syslog.clone())),
    },
    Key {
        section: EVENTS,
        name: "on_event",
        takes: Takes::Command,
        unit: "",
        help: "what is run for each event, which it gets on its standard input",
        idle: None,
        set: |config, value| {
            if let Value::Text(command) = value {
                config.events.command = command;
            }
        },
        get: |config| Some(Value::Text(config.events.command.clone())),
    },
    number!(EVENTS, "commands", Takes::Number { min: 1, max: 64 }, "processes", events.commands: usize, None,
        "how many of these run at once, at most"),
    seconds!(
        EVENTS,
        "command_timeout",
        1,
        events.command_timeout,
        "after which a command that has not ended is killed"
    ),
    number!(EVENTS, "attack_begin", RATE_OF_SYNS, "SYNs a second", events.attack_begin: u64, None,
        "SYNs for one destination whose handshakes are not completed that are an attack"),
    number!(EVENTS, "attack_end", RATE_OF_SYNS, "SYNs a second", events.attack_end: u64, None,
        "below which an attack is over"),
    seconds!(EVENTS, "attack_end_after", 1, events.attack_end_after, "how long an attack must have been below it"),
    seconds!(EVENTS, "update_every", 1, events.update_every, "how often an attack that lasts is reported"),
    number!(EVENTS, "capacity", Takes::Number { min: 0, max: INT_MAX }, "SYNs a second", events.capacity: u64, None,
        "SYNs for one destination that exceed what the box or its link can take; 0 is until frames are lost"),
];

/// Former names of keys, which are read as their present ones.
const FORMER_NAMES: &[(&str, &str)] = &[("pen_frames", "held_frames"), ("command", "on_event")];

/// The present name of a key.
pub(crate) fn present_name(name: &str) -> &str {
    FORMER_NAMES.iter().find(|(former, _)| *former == name).map_or(name, |(_, present)| present)
}

/// The account of a number in the file.
pub(crate) fn account(id: u64) -> Value {
    Value::Account(NonZeroU32::new(u32::try_from(id).unwrap_or(u32::MAX)).map(Account::Id))
}

/// The numbers an account may have.
pub(crate) const ACCOUNTS: (u64, u64) = (0, INT_MAX);
