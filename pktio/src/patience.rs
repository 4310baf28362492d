//! What the last owner of an interface has just left, and the kernel still holds for a moment.

use std::thread;
use std::time::{Duration, Instant};

use tracing::info;

/// How long a queue or an interface may stay busy after its last owner is gone. The kernel tears both down in the background and under the lock of all
/// network configuration: in 4 to 70 ms on an idle machine, in more than 2 s where interfaces and namespaces come and go beside it.
const LONGEST: Duration = Duration::from_secs(10);

/// After how long an operator is told what a start waits for.
const TOLD_AFTER: Duration = Duration::from_secs(1);

/// How long to sleep between two attempts.
const STEP: Duration = Duration::from_millis(1);

/// The result of `attempt`, which is repeated for as long as its error is a `busy` one: for ten seconds at most. `what` is busy, for the log.
pub(crate) fn patiently<T, E>(
    what: &str,
    mut attempt: impl FnMut() -> Result<T, E>,
    busy: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let begin = Instant::now();
    let mut told = false;
    loop {
        match attempt() {
            Err(e) if busy(&e) && begin.elapsed() < LONGEST => {
                if !told && begin.elapsed() >= TOLD_AFTER {
                    told = true;
                    info!("{what} is in use; waiting, {} s at most", LONGEST.as_secs());
                }
                thread::sleep(STEP);
            }
            result => return result,
        }
    }
}
