//! Signals. SIGINT and SIGTERM end the process: the first cleanly, the second without waiting for the workers. SIGHUP has the configuration
//! read again.

use super::exit::Failure;
use nix::sys::signal::{SigSet, Signal};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How long the main thread has to react to a second signal: enough to restore the settings of two interfaces.
const GRACE: Duration = Duration::from_secs(2);

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalled {
    /// The end of the process.
    End {
        /// Whether it is not the first that does.
        again: bool,
        /// Whether another process may be about to follow: SIGTERM comes from what manages processes, SIGINT from a person.
        may_be_followed: bool,
    },
    /// Another look at the configuration.
    Reload,
}

/// Receives signals in a thread of its own from now on, and calls `notify` for each; the first that ends the process also sets `stop`. To be
/// called before any other thread is started: these inherit that they receive none. (Programs that are started do not.)
///
/// # Errors
/// When the thread cannot be created.
pub fn listen(stop: Arc<AtomicBool>, notify: impl Fn(Signalled) + Send + 'static) -> Result<(), Failure> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().map_err(|errno| Failure::Signals(errno.into()))?;
    let receive = move || {
        loop {
            match signals.wait() {
                Ok(Signal::SIGHUP) => notify(Signalled::Reload),
                Ok(signal) => end(&stop, signal == Signal::SIGTERM, &notify),
                // It fails only for numbers that are no signals.
                Err(_) => return,
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(receive).map(drop).map_err(Failure::Spawn)
}

fn end(stop: &AtomicBool, may_be_followed: bool, notify: &impl Fn(Signalled)) {
    let again = stop.swap(true, Ordering::Relaxed);
    notify(Signalled::End { again, may_be_followed });
    if again {
        thread::sleep(GRACE);
        process::exit(1);
    }
}

/// A channel for [`Signalled::Reload`] that holds one: what was asked for while a reload waits to begin is answered by that reload.
pub fn reloads() -> (impl Fn() + Send + 'static, crossbeam::channel::Receiver<()>) {
    let (sender, receiver) = crossbeam::channel::bounded(1);
    // It is full, or nobody receives any more at the end of the process.
    let ask = move || {
        let _ = sender.try_send(());
    };
    (ask, receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reloads_that_are_asked_for_before_one_begins_are_one() {
        let (ask, asked) = reloads();
        (0..5).for_each(|_| ask());
        assert_eq!(asked.try_iter().count(), 1);
        ask();
        assert_eq!(asked.try_iter().count(), 1);
    }

    #[test]
    fn no_signal_is_an_error_of_the_system() {
        let failure = Failure::Signals(std::io::Error::other("why"));
        assert_eq!(failure.to_string(), "cannot listen for signals: why");
    }
}
