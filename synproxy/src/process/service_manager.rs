//! What the service manager is told (`sd_notify(3)`): that the box is ready, reads its configuration again, or ends. Without `NOTIFY_SOCKET` in
//! the environment, and without a supervisor of our own, nobody is told anything.

use super::supervise;
use sd_notify::NotifyState;
use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;
use tracing::debug;

/// Frames flow, or a reload is over.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins. With `Type=notify-reload` systemd sends SIGHUP and waits for this, and then for [`ready`].
pub fn reloading() {
    // It fails only without CLOCK_MONOTONIC, which every kernel has.
    let Ok(now) = NotifyState::monotonic_usec_now() else { return };
    tell(&[NotifyState::Reloading, now]);
}

/// The process ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How long it waits for a [`beat`] before it ends the process, if it does.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// No worker is stuck.
pub fn beat() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(state: &[NotifyState<'_>]) {
    let lines = state.iter().map(NotifyState::to_string).collect::<Vec<_>>().join("\n");
    if supervise::tell(&lines) {
        return;
    }
    if let Err(error) = sd_notify::notify(state) {
        debug!("the service manager is not told: {error}");
    }
}

/// Whether there is one; the supervisor of ours is none.
pub fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The descriptors that it has kept for this box (`LISTEN_FDS`), by name; `None` if there is no service manager that keeps any. The first call takes them.
pub fn kept_descriptors() -> Option<HashMap<String, OwnedFd>> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let named = match sd_notify::listen_fds_with_names() {
        Ok(named) => named,
        Err(error) => {
            debug!("the service manager has handed over no descriptors: {error}");
            return Some(HashMap::new());
        }
    };
    let kept = named.filter_map(|(number, name)| {
        let name = name.strip_prefix(KEPT)?.to_owned();
        pktio::region::inherited(number).map(|descriptor| (name, descriptor))
    });
    Some(kept.collect())
}

/// What the names of descriptors that it keeps begin with.
const KEPT: &str = "synproxy-";

/// Has it keep a descriptor, until the service ends or the descriptor is forgotten.
///
/// # Errors
/// When it cannot be told. Whether it has room for the descriptor (`FileDescriptorStoreMax=`), it does not say.
pub fn keep_descriptor(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let name = format!("{KEPT}{name}");
    sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(&name)], &[descriptor])
}

/// Has it close a descriptor that it has kept.
pub fn forget_descriptor(name: &str) {
    let name = format!("{KEPT}{name}");
    tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)]);
}
