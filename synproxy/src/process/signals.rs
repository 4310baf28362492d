//! SIGINT, SIGTERM and SIGHUP: the first ends the process cleanly, the second without waiting for the workers.

use super::exit::Failure;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How long the main thread has to react to a second signal: enough to restore the settings of two interfaces.
const GRACE: Duration = Duration::from_secs(2);

/// Installs the handler: the first signal sets `stop`, and `notify` is called for each, with whether it is not the first.
///
/// # Errors
/// When the handler cannot be installed.
pub fn listen(stop: Arc<AtomicBool>, notify: impl Fn(bool) + Send + 'static) -> Result<(), Failure> {
    ctrlc::set_handler(move || {
        let again = stop.swap(true, Ordering::Relaxed);
        notify(again);
        if again {
            thread::sleep(GRACE);
            process::exit(1);
        }
    })?;
    Ok(())
}
