//! SIGINT, SIGTERM and SIGHUP: the first ends the process cleanly, the second without waiting for the workers.

use crate::dataplane::pool::Message;
use crate::process::exit::Failure;
use crossbeam::channel::Sender;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How long the main thread has to react to a second signal: long enough to give two interfaces their settings back.
const GRACE: Duration = Duration::from_secs(2);

/// From now on the first signal sets `stop`, and each is told to `boss`.
///
/// # Errors
/// When the handler cannot be installed.
pub fn listen(stop: Arc<AtomicBool>, boss: Sender<Message>) -> Result<(), Failure> {
    ctrlc::set_handler(move || {
        let again = stop.swap(true, Ordering::Relaxed);
        // The main thread may be gone already, at the very end; then nobody needs to be told.
        let _ = boss.send(Message::Signal { again });
        if again {
            thread::sleep(GRACE);
            process::exit(1);
        }
    })?;
    Ok(())
}
