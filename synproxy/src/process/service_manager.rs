//! What the service manager is told (`sd_notify(3)`): that the box is ready, reads its configuration again, or ends. Without `NOTIFY_SOCKET` in
//! the environment, and without a supervisor of our own, nobody is told anything.

use super::supervise;
use sd_notify::NotifyState;
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
