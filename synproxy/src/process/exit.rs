//! Why the process ends badly, and the status it ends with.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Why the process ends badly. Displayed, it is what the operator reads last.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration is wrong; says all there is to say.
    #[error("{0}")]
    Configuration(String),

    /// The interfaces could not be opened.
    #[error(transparent)]
    Open(#[from] pktio::OpenError),

    /// The user and group of the configuration could not be taken.
    #[error("cannot become the user and group of the configuration: {0}")]
    Identity(#[source] io::Error),

    /// A capture could not begin.
    #[error("cannot capture into {path}: {error}")]
    Capture {
        /// The file.
        path: String,
        /// What the system said.
        error: io::Error,
    },

    /// No signal can be received.
    #[error("cannot listen for signals: {0}")]
    Signals(#[from] ctrlc::Error),

    /// The operating system has no random numbers for the secrets.
    #[error("the operating system gives no random numbers: {0}")]
    Random(#[from] rand::rngs::SysError),

    /// A worker's thread could not be made.
    #[error("cannot start a worker: {0}")]
    Spawn(#[source] io::Error),

    /// The operator's socket could not be made where he wants it.
    #[error("no control socket, {path}: {error}", path = .path.display())]
    Socket {
        /// Where it was to be.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },

    /// The control port could not be opened.
    #[error("no control port at {address}: {error}")]
    Listen {
        /// Where it was to be.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },

    /// A port failed while frames flowed.
    #[error("worker {worker} cannot wait for frames: {error}")]
    Port {
        /// Which worker, from 0.
        worker: usize,
        /// What the system said.
        error: io::Error,
    },

    /// An interface was removed, or renamed, while frames flowed.
    #[error("{interface} is gone, so the box stops")]
    Gone {
        /// Its name.
        interface: String,
    },

    /// A worker panicked; the log says where.
    #[error("worker {worker} panicked, so the box stops; this is a bug, and the line above says where")]
    Panic {
        /// Which worker, from 0.
        worker: usize,
    },

    /// A second signal came before the workers had ended.
    #[error("ended by a second signal, without waiting for the workers")]
    Impatience,
}

impl Failure {
    /// The status the process ends with; `--help` lists them.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status())
    }

    fn status(&self) -> u8 {
        use pktio::OpenError;
        match self {
            Failure::Open(OpenError::Syntax { .. }) => 2,
            Failure::Configuration(_) => 3,
            Failure::Open(OpenError::Permission { .. }) | Failure::Identity(_) => 5,
            Failure::Open(_) | Failure::Port { .. } | Failure::Gone { .. } => 4,
            _ => 1,
        }
    }
}
