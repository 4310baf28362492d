//! The protocol of the control socket: a request is a line of JSON, and so is its reply. This crate has both as types, the
//! reading and writing of lines, and a client. [`wire`] is the binary protocol of the control port, which can only change server
//! entries. `synproxy` is the server; `synctl`, or anything that can write a line, is the client.
//!
//! Replies come in the order of the requests. `docs/control.md` has an example of each.
//!
//! ```
//! use control::Request;
//! let request: Request = serde_json::from_str(r#"{"command":"status"}"#).unwrap();
//! assert_eq!(request, Request::Status);
//! ```

#![forbid(unsafe_code)]

mod capture;
mod client;
mod common;
mod configuration;
mod entry;
mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod line;
mod reply;
mod request;
mod role;
mod view;
pub mod wire;

pub use capture::{Capture, CaptureKind, CaptureLimits, file_bytes};
pub use client::{Client, ClientError, connect};
pub use common::{LinkCondition, LogLevel, Side};
pub use configuration::{Change, Configuration, Effect, Overridden, Reloaded, Setting};
pub use entry::{Entry, Key};
pub use event::{Attack, AttackStatus, Event, PortRange, Record, TopSource, TopTarget};
pub use line::{Line, MAX_LOAD, MAX_REPLY, MAX_REQUEST, read_line, write_line};
pub use reply::{
    Counts, Drain, Flows, Interface, Link, ListPage, Lists, Port, Refusal, Reply, Stats, Status, Top, Whoami, Why,
};
pub use request::{ClientList, Request};
pub use role::{Access, Role};
pub use view::{
    Changed, Counted, Cursor, DestinationMode, Explained, Flow, FlowEnd, FlowFilter, FlowList, Sent, ServiceServer,
    ServiceState, Suggested, Talker,
};

/// The directory of the control sockets, one for each running box.
pub const DIRECTORY: &str = "/run/synproxy";

/// The default path of the control socket of the box between these two interfaces. `namespace` is the inode number of their network
/// namespace, if it is not the machine's own: interface names are unique only within one.
///
/// ```
/// use control::default_path;
/// assert_eq!(default_path("xdp:eth0", "eth1", None).to_str(), Some("/run/synproxy/eth0-eth1.sock"));
/// assert_eq!(default_path("eth0", "eth1", Some(4026532561)).to_str(), Some("/run/synproxy/eth0-eth1@4026532561.sock"));
/// ```
pub fn default_path(lan: &str, wan: &str, namespace: Option<u64>) -> std::path::PathBuf {
    let plain = |name: &str| -> String {
        let name = ["xdp:", "packet:", "netmap:"].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        name.chars().take(80).map(|c| if is_plain(c) { c } else { '_' }).collect()
    };
    let namespace = namespace.map_or(String::new(), |number| format!("@{number}"));
    std::path::Path::new(DIRECTORY).join(format!("{}-{}{namespace}.sock", plain(lan), plain(wan)))
}
