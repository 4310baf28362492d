//! Everything that was done to interfaces, to be undone at exit.

use std::fmt;

use crate::netdev::Settings;
use crate::xdp::AttachedProgram;

/// Restores the interfaces when it is dropped: detaches the XDP programs, then restores the settings, last changed first.
///
/// Drop it after the ports, so that the sockets are closed before the queues change.
pub struct Guard {
    // Dropped in this order.
    pub(crate) programs: Vec<AttachedProgram>,
    pub(crate) settings: Settings,
}

impl Guard {
    /// A guard with nothing to restore, for ports without an interface.
    pub(crate) fn empty() -> Guard {
        Guard::of(Settings::none())
    }

    /// A guard of these settings, with no program attached yet.
    pub(crate) fn of(settings: Settings) -> Guard {
        Guard { programs: Vec::new(), settings }
    }

    /// Frames for which the XDP programs found no socket because they arrived on a queue that no worker owns.
    pub fn unclaimed(&self) -> u64 {
        self.programs.iter().map(|program| program.unclaimed()[0]).sum()
    }

    /// Frames for which the XDP programs found no socket because they arrived while the box was starting or ending.
    pub fn early_or_late(&self) -> u64 {
        self.programs.iter().map(|program| program.unclaimed()[1]).sum()
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("programs", &self.programs).field("settings", &self.settings).finish()
    }
}
