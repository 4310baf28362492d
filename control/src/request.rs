//! Requests: what a client can ask of a running box.

use crate::entry::{Entry, Key};
use crate::{CaptureKind, CaptureLimits, Cursor, FlowFilter, LogLevel, Side};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;

/// A request: a JSON object whose member `command` names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Who the box takes the client for, and its role: [`Whoami`](crate::Whoami).
    Whoami,
    /// Version, interfaces, workers and modes: [`Status`](crate::Status).
    Status,
    /// All counters since the start: [`Stats`](crate::Stats).
    Stats,
    /// The server entries: [`Reply::Servers`](crate::Reply::Servers).
    Servers,
    /// The former name of [`Request::Servers`], answered under its own former name: [`Reply::Backends`](crate::Reply::Backends).
    Backends,
    /// Adds a server entry; refused if there is one with the same key.
    #[serde(alias = "add-backend")]
    AddServer(Entry),
    /// Adds a server entry, or replaces the one with the same key.
    #[serde(alias = "modify-backend")]
    ModifyServer(Entry),
    /// Deletes the server entry with exactly this key; refused if there is none.
    #[serde(alias = "delete-backend")]
    DeleteServer(Key),
    /// Deletes all server entries, or those of one address.
    #[serde(alias = "flush-backends")]
    FlushServers {
        /// The address; every address if absent.
        #[serde(default)]
        address: Option<IpAddr>,
    },
    /// How many networks the lists of clients have: [`Reply::Lists`](crate::Reply::Lists).
    Lists,
    /// The networks of a list, one page per request: [`ListPage`](crate::ListPage).
    List {
        /// Which list.
        list: ClientList,
        /// Where to continue: [`ListPage::next`](crate::ListPage::next) of the page before; at the beginning if absent.
        #[serde(default)]
        from: usize,
    },
    /// Adds networks to a list; those that are in it stay.
    AddToList {
        /// Which list.
        list: ClientList,
        /// The networks: addresses with a prefix, or alone.
        networks: Vec<String>,
    },
    /// Removes networks from a list, exactly these: refused if one of them is not in it.
    RemoveFromList {
        /// Which list.
        list: ClientList,
        /// The networks.
        networks: Vec<String>,
    },
    /// Puts networks in the place of those that a list has. As many requests may bring them as are needed; the list changes with the last.
    ReplaceList {
        /// Which list.
        list: ClientList,
        /// The networks, or some of them.
        networks: Vec<String>,
        /// A number that the client chooses: the same in all requests that bring one list, and another for the next.
        upload: u64,
        /// Whether these are the last.
        last: bool,
    },
    /// Resets the connections that run of clients in the list `block`.
    ResetBlocked,
    /// Starts or ends draining: while the box drains, new connections pass unproxied.
    Drain {
        /// True to start, false to end.
        on: bool,
    },
    /// Replaces the secret that signs cookies, from the next epoch on.
    RotateSecrets,
    /// Ends the box, and removes the state that another process would take over.
    Stop,
    /// Lists connections, one page per request: [`FlowList`](crate::FlowList).
    Flows {
        /// Which connections; all if absent.
        #[serde(default)]
        filter: FlowFilter,
        /// Where to continue: [`FlowList::next`](crate::FlowList::next) of the page before; at the beginning if absent.
        #[serde(default)]
        from: Option<Cursor>,
        /// The most connections to return. The box may return fewer.
        #[serde(default)]
        limit: Option<usize>,
    },
    /// The mode of each destination that has one of its own: [`Reply::Policy`](crate::Reply::Policy).
    Policy,
    /// What was usual of each while it was not attacked, and thresholds that follow from it: [`Reply::Suggested`](crate::Reply::Suggested).
    SuggestPolicy,
    /// Services and their servers: [`Reply::Services`](crate::Reply::Services).
    Services,
    /// Gives a server of services no connections anew, or some again; refused if no service names it. It holds until the box ends.
    DrainServer {
        /// Its address.
        address: IpAddr,
        /// Its port.
        port: u16,
        /// True to drain it, false to end that.
        on: bool,
    },
    /// Top talkers and all counters: [`Top`](crate::Top).
    Top,
    /// What the box would do with a frame: [`Explained`](crate::Explained). Changes nothing.
    Explain {
        /// The port the frame would arrive at.
        side: Side,
        /// The frame from its Ethernet header on, in hexadecimal digits.
        frame: String,
        /// The worker to ask; the one the frame's flow belongs to if absent.
        #[serde(default)]
        worker: Option<usize>,
    },
    /// The last events that the box keeps: [`Reply::Events`](crate::Reply::Events).
    Events {
        /// Only those with a larger number.
        #[serde(default)]
        after: u64,
    },
    /// The running captures: [`Reply::Captures`](crate::Reply::Captures).
    Captures,
    /// Starts a capture; refused if one of this kind is running or the file exists.
    StartCapture {
        /// Which frames.
        kind: CaptureKind,
        /// The file's absolute path. The box creates the file with its own rights, readable by its own user alone.
        path: PathBuf,
        /// Size limits and sampling rate.
        #[serde(default)]
        limits: CaptureLimits,
    },
    /// Stops the capture of one kind, or all of them: [`Reply::Captures`](crate::Reply::Captures) with their final counts.
    StopCapture {
        /// Which kind; all if absent.
        #[serde(default)]
        kind: Option<CaptureKind>,
    },
    /// The configuration in force: [`Configuration`](crate::Configuration).
    Config,
    /// Reads the box's own configuration file again, as SIGHUP does: [`Reloaded`](crate::Reloaded). Refused, with nothing changed, if the file is
    /// wrong.
    Reload,
    /// Likewise takes this text for the configuration until the next reload.
    LoadConfig {
        /// The name of the file, for complaints.
        name: String,
        /// What is in it.
        text: String,
    },
    /// Sets the log level until the box ends, or a reload changes it.
    SetLogLevel {
        /// The least severe level that is logged.
        level: LogLevel,
    },
}

/// A list of clients. Of several that a client is in the first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientList {
    /// Their new connections are dropped.
    Block,
    /// Their connections pass to the servers unanswered and unchanged.
    Allow,
    /// Their connections are proxied, whatever else would let them pass.
    Always,
}

impl ClientList {
    /// Every list, the one that counts first before the others.
    pub const ALL: [ClientList; 3] = [ClientList::Block, ClientList::Allow, ClientList::Always];

    /// The list's name, as in a request.
    pub const fn name(self) -> &'static str {
        match self {
            ClientList::Block => "block",
            ClientList::Allow => "allow",
            ClientList::Always => "always",
        }
    }
}

impl std::str::FromStr for ClientList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = ClientList::ALL.into_iter().find(|list| list.name() == text);
        named.ok_or_else(|| format!("expected one of {}", ClientList::ALL.map(ClientList::name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_former_versions_are_understood() {
        let parse = |line: &str| serde_json::from_str::<Request>(line).map_err(|error| error.to_string());
        let entry = r#""address":"10.0.0.1","port":80,"mss":1460,"sack":true,"wscale":7"#;
        for (former, current) in [
            (format!(r#"{{"command":"add-backend",{entry}}}"#), format!(r#"{{"command":"add-server",{entry}}}"#)),
            (format!(r#"{{"command":"modify-backend",{entry}}}"#), format!(r#"{{"command":"modify-server",{entry}}}"#)),
            (
                r#"{"command":"delete-backend","address":"10.0.0.1"}"#.to_owned(),
                r#"{"command":"delete-server","address":"10.0.0.1"}"#.to_owned(),
            ),
            (r#"{"command":"flush-backends"}"#.to_owned(), r#"{"command":"flush-servers"}"#.to_owned()),
        ] {
            let parsed = parse(&current);
            assert_eq!(parse(&former), parsed);
            assert_eq!(serde_json::to_value(parsed.unwrap()).unwrap()["command"], current.split('"').nth(3).unwrap());
        }
        assert_eq!(parse(r#"{"command":"backends"}"#), Ok(Request::Backends));
        assert_eq!(parse(r#"{"command":"servers"}"#), Ok(Request::Servers));
    }
}
