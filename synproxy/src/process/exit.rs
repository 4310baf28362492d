//! Why the process ends with an error, and its exit status.

use pktio::{advice, thread_advice};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Why the process ends with an error. Its text is the last line the operator reads.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration is wrong; the text is complete.
    #[error("{0}")]
    Configuration(String),

    /// The interfaces could not be opened.
    #[error(transparent)]
    Open(#[from] pktio::OpenError),

    /// The process could not change to the user and group of the configuration.
    #[error("cannot become the user and group of the configuration: {0}")]
    Privileges(#[source] io::Error),

    /// A capture could not start.
    #[error("cannot capture into {path}: {error}{}", advice(error))]
    Capture {
        /// The file.
        path: String,
        /// The system's error.
        error: io::Error,
    },

    /// No signal can be received.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),

    /// The operating system has no random numbers for the secrets.
    #[error("the operating system gives no random numbers: {0}")]
    Random(#[from] rand::rngs::SysError),

    /// There is no memory for the tables.
    #[error("no memory for the tables: {0}")]
    Memory(#[from] pktio::region::RegionError),

    /// The process may not have as much address space as the configuration needs.
    #[error(
        "no memory: {error}; raise `ulimit -v` and `ulimit -d`, or make tables smaller: the configuration needs {needed}"
    )]
    AddressSpace {
        /// What the configuration needs.
        needed: String,
        /// The system's error.
        error: pktio::region::RegionError,
    },

    /// The place of the state that is configured will not do; the text is complete.
    #[error("{0}")]
    State(String),

    /// A thread, or what it needs, could not be created.
    #[error("cannot start a thread, or open what it needs: {0}{advice}", advice = thread_advice(.0))]
    Spawn(#[source] io::Error),

    /// The control socket could not be created at the configured path.
    #[error("no control socket, {path}: {error}{}", advice(error), path = .path.display())]
    Socket {
        /// The path.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },

    /// A TCP port of the box's own could not be opened.
    #[error("no {what} at {address}: {error}{}", listen_advice(error))]
    Listen {
        /// What it is for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },

    /// The XDP program of a former process could not be replaced.
    #[error("the XDP program of the former process cannot be replaced: {0}")]
    TakeOver(#[source] io::Error),

    /// A watchdog device, or the file of a bypass, could not be opened.
    #[error("cannot open {path}: {error}{}", device_advice(error), path = .path.display())]
    Device {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },

    /// A port failed while frames flowed.
    #[error("worker {worker} cannot wait for frames: {error}")]
    Port {
        /// Which worker, from 0.
        worker: usize,
        /// The system's error.
        error: io::Error,
    },

    /// Settings were to be put back of an interface that a running box has.
    #[error("{interface} belongs to {holder}, which puts its settings back when it ends")]
    Held {
        /// The interface.
        interface: String,
        /// Who has it, in words.
        holder: String,
    },

    /// Settings of interfaces could not be put back; the log says which and why.
    #[error("not all settings of {0} could be put back; the lines above say why")]
    NotRestored(String),

    /// An interface was removed while frames flowed.
    #[error("{interface} is gone, so the box {}", if *waits { "begins anew and waits for it" } else { "stops" })]
    Gone {
        /// Its name.
        interface: String,
        /// Whether the box is to wait for another of this name.
        waits: bool,
    },

    /// A worker panicked; the log says where.
    #[error("worker {worker} panicked, so the box stops; this is a bug, and the line above says where")]
    Panic {
        /// Which worker, from 0.
        worker: usize,
    },

    /// A second signal came before the workers had ended.
    #[error("ended by a second signal, without waiting for the workers")]
    Interrupted,
}

/// What to do about an address that cannot be listened at.
fn listen_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; end what listens there, or choose another port",
        io::ErrorKind::AddrNotAvailable => "; choose an address of this machine",
        io::ErrorKind::PermissionDenied => "; choose a port from 1024 on, or grant CAP_NET_BIND_SERVICE",
        _ => advice(error),
    }
}

/// What to do about a device that cannot be opened.
fn device_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(code) if code == nix::errno::Errno::EBUSY as i32 => {
            "; another program has it: the service manager (RuntimeWatchdogSec=), or a daemon"
        }
        _ => advice(error),
    }
}

impl Failure {
    /// The exit status of the process; `--help` lists them.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status())
    }

    fn status(&self) -> u8 {
        use pktio::OpenError;
        match self {
            Failure::Open(OpenError::Syntax { .. }) => 2,
            Failure::Configuration(_) => 3,
            Failure::Open(OpenError::Permission { .. }) | Failure::Privileges(_) => 5,
            Failure::Open(_)
            | Failure::TakeOver(_)
            | Failure::Port { .. }
            | Failure::Gone { .. }
            | Failure::Held { .. } => 4,
            _ => 1,
        }
    }
}
