//! A changed setting of an interface, and how it is restored.

use std::os::fd::OwnedFd;

use tracing::{debug, warn};

use super::ethtool::Ethtool;

/// A setting that was changed, with the request that restores it.
#[derive(Debug)]
pub(super) enum Undo {
    /// The offloads.
    Features {
        /// The interface.
        name: String,
        /// The ethtool command.
        request: Vec<u32>,
    },
    /// The number of queues.
    Channels {
        /// The interface.
        name: String,
        /// The ethtool command.
        request: [u32; 9],
    },
    /// Pause frames.
    Pause {
        /// The interface.
        name: String,
        /// The ethtool command.
        request: [u32; 4],
    },
    /// RSS: how the interface spreads frames over its queues.
    Rss {
        /// The interface.
        name: String,
        /// The ethtool command.
        request: Vec<u32>,
    },
    /// Promiscuous mode. The membership ends when its socket is closed, also when the process is killed.
    Promiscuous {
        /// The interface.
        name: String,
        /// The socket.
        membership: OwnedFd,
    },
}

impl Undo {
    /// Restores the setting. A failure is logged: nothing more can be done about it.
    pub(super) fn apply(self, ethtool: &Ethtool) {
        let (name, what, result) = match self {
            Undo::Features { name, mut request } => {
                let result = ethtool.command(&name, &mut request);
                (name, "offloads", result)
            }
            Undo::Channels { name, mut request } => {
                let result = ethtool.command(&name, &mut request);
                (name, "queue count", result)
            }
            Undo::Pause { name, mut request } => {
                let result = ethtool.command(&name, &mut request);
                (name, "pause frames", result)
            }
            Undo::Rss { name, mut request } => {
                let result = ethtool.command(&name, &mut request);
                (name, "spreading over the queues", result)
            }
            Undo::Promiscuous { name, membership } => {
                drop(membership);
                (name, "promiscuous mode", Ok(()))
            }
        };
        match result {
            Ok(()) => debug!("{name}: {what} put back"),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => debug!("{name} is gone"),
            Err(error) => warn!("{name}: could not put its {what} back: {error}"),
        }
    }
}
