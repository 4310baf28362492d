//! What the service manager is told (`sd_notify(3)`): that the box is ready, reads its configuration again, or ends. Without `NOTIFY_SOCKET` in
//! the environment nobody is told anything.

use sd_notify::NotifyState;
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

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!("the service manager is not told: {error}");
    }
}
