//! What requests, replies and events name alike: a port, how a link is, how much is logged.

use serde::{Deserialize, Serialize};

/// One of the two ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The port toward the servers.
    Lan,
    /// The port toward the clients.
    Wan,
}

impl std::str::FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lan" => Ok(Side::Lan),
            "wan" => Ok(Side::Wan),
            _ => Err("expected `lan` or `wan`".to_owned()),
        }
    }
}

/// How the link of an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkCondition {
    /// There is somebody at the other end.
    Up,
    /// The interface is up, and there is nobody at the other end.
    NoCarrier,
    /// Somebody has taken the interface down.
    Down,
    /// The box has taken it down, because the other port has lost its link.
    TakenDown,
}

impl LinkCondition {
    /// Its name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            LinkCondition::Up => "up",
            LinkCondition::NoCarrier => "no-carrier",
            LinkCondition::Down => "down",
            LinkCondition::TakenDown => "taken-down",
        }
    }
}

/// A log level. Each one includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Errors only.
    Error,
    /// Also warnings.
    Warn,
    /// Also normal operation.
    Info,
    /// Also details for debugging.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// Every level, the most severe first.
    pub const ALL: [LogLevel; 5] = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];

    /// The level's name, as in a request.
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
