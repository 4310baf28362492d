//! What a client can ask.

use crate::entry::{Entry, Key};
use crate::{CaptureKind, CaptureLimits, Cursor, FlowFilter, Side};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;

/// A request: an object whose `command` says which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What the box is and how it is: [`Status`](crate::Status).
    Status,
    /// Everything counted since the start: [`Stats`](crate::Stats).
    Stats,
    /// What is said of servers: [`Reply::Backends`](crate::Reply::Backends).
    Backends,
    /// One more is spoken of; refused if it is already.
    AddBackend(Entry),
    /// Something else, or something at all, is said of one.
    ModifyBackend(Entry),
    /// Nothing is said of this one any more; refused if nothing was.
    DeleteBackend(Key),
    /// Nothing is said any more of any server, or of those at this address.
    FlushBackends {
        /// The address, if not all are meant.
        #[serde(default)]
        address: Option<IpAddr>,
    },
    /// Keep new connections from the proxy from now on, or no more.
    Drain {
        /// Whether to begin.
        on: bool,
    },
    /// Sign cookies with another secret from the next epoch on.
    RotateSecrets,
    /// Connections, some at a time: [`FlowList`](crate::FlowList).
    Flows {
        /// Which are meant; all, if it is left out.
        #[serde(default)]
        filter: FlowFilter,
        /// Where to go on; at the beginning, if it is left out.
        #[serde(default)]
        from: Option<Cursor>,
        /// How many to tell of at most; the box tells of fewer if it likes.
        #[serde(default)]
        limit: Option<usize>,
    },
    /// Who talks most, and everything counted: [`Top`](crate::Top).
    Top,
    /// What would become of a frame: [`Explained`](crate::Explained). Nothing is changed by it.
    Explain {
        /// The port it would come in by.
        side: Side,
        /// The frame, from its Ethernet header on, in hexadecimal digits.
        frame: String,
        /// The worker to ask; the one it belongs to, if it is left out.
        #[serde(default)]
        worker: Option<usize>,
    },
    /// The captures that are going on: [`Reply::Captures`](crate::Reply::Captures).
    Captures,
    /// Frames of a kind go into a file from now on; refused if they do already, and if there is such a file. Only root and the user the
    /// box runs as may ask for it.
    StartCapture {
        /// Which frames.
        kind: CaptureKind,
        /// The file, with its whole path. It is made by the box, with the rights of the box, and readable by its user alone.
        path: PathBuf,
        /// How much.
        #[serde(default)]
        limits: CaptureLimits,
    },
    /// The capture of frames of a kind ends, or every one: [`Reply::Captures`](crate::Reply::Captures), as they ended.
    StopCapture {
        /// Which frames, if not all are meant.
        #[serde(default)]
        kind: Option<CaptureKind>,
    },
    /// Log messages of at least this severity from now on.
    SetLogLevel {
        /// The least severe level that is logged.
        level: LogLevel,
    },
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Only what goes wrong.
    Error,
    /// And what may go wrong.
    Warn,
    /// And what happens.
    Info,
    /// And how it came to that.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// Every level, the most severe first.
    pub const ALL: [LogLevel; 5] = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];

    /// Its name, as it is written in a request.
    pub const fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

impl std::str::FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = LogLevel::ALL.into_iter().find(|level| level.name() == text);
        named.ok_or_else(|| format!("expected one of {}", LogLevel::ALL.map(LogLevel::name).join(", ")))
    }
}
