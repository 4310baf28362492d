//! How a worker announces that it sleeps, and how others claim to wake it. No wake-up is lost: either the sleeper finds the new item
//! when it checks its queues once more, or the sender sees that it sleeps.
//!
//! `unit/loom` runs this file through every order of memory operations; the atomics come from its parent.

use super::{AtomicBool, Ordering, fence};
use std::cell::Cell;

/// Whether a worker sleeps.
pub struct Waker {
    /// The owner has found nothing to do, and checks its queues once more before it sleeps.
    asleep: AtomicBool,
}

impl Waker {
    /// One whose owner is awake.
    pub fn new() -> Self {
        Self { asleep: AtomicBool::new(false) }
    }

    /// The owner is about to sleep and checks with `is_pending` once more whether something waits for it. True when it may sleep. To be
    /// followed by [`Waker::end_sleep`] in any case.
    pub fn begin_sleep(&self, is_pending: impl FnOnce() -> bool) -> bool {
        // A swap is ordered behind every earlier claim, also for the threads that look at the flag.
        self.asleep.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !is_pending()
    }

    /// The owner is awake. If wake-ups were claimed it removes their signals with `take`, which returns how many there were, so that they
    /// do not end the next sleep. `due` is the owner's count of claimed signals that have not arrived yet.
    pub fn end_sleep(&self, due: &Cell<u64>, take: impl FnOnce() -> u64) {
        let was_claimed = !self.asleep.swap(false, Ordering::Relaxed);
        let claimed = due.get() + u64::from(was_claimed);
        due.set(if claimed > 0 { claimed - take() } else { 0 });
    }

    /// Whether the owner sleeps and the caller has to send the signal; of several callers one is told so. The item for the owner
    /// must be queued before, and [`published`] called in between.
    pub fn claim(&self) -> bool {
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }
}

/// The barrier between queueing items for other workers and [`Waker::claim`]; one serves many items.
pub fn published() {
    fence(Ordering::SeqCst);
}
