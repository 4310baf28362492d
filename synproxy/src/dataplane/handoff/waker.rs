//! The word by which a worker says that it sleeps, and others that they have rung for it. No wake-up is lost: either the sleeper, when
//! it looks once more, sees what was put there for it, or whoever put it there sees that it sleeps.
//!
//! `unit/loom` takes this very file through every order in which memory may let it happen; the atomics come from its parent.

use super::{AtomicBool, Ordering, fence};
use std::cell::Cell;

/// Whether a worker sleeps.
pub struct Bell {
    /// Its owner has found nothing to do, and will look once more and sleep.
    asleep: AtomicBool,
}

impl Bell {
    /// One whose owner is awake.
    pub fn new() -> Self {
        Self { asleep: AtomicBool::new(false) }
    }

    /// The owner is about to sleep, and asks once more whether something `waits` for it. True when it may sleep. To be followed by
    /// [`Bell::wake`] in any case.
    pub fn doze(&self, waits: impl FnOnce() -> bool) -> bool {
        // A swap comes behind every claim on the sleep before, for whoever looks.
        self.asleep.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !waits()
    }

    /// The owner is awake. If somebody has rung it takes the rings away with `take`, which returns how many there were, lest they end the
    /// next sleep; `due` is the owner's account of those that were announced, as one may be heard only later.
    pub fn wake(&self, due: &Cell<u64>, take: impl FnOnce() -> u64) {
        let was_claimed = !self.asleep.swap(false, Ordering::Relaxed);
        let announced = due.get() + u64::from(was_claimed);
        due.set(if announced > 0 { announced - take() } else { 0 });
    }

    /// Whether the owner sleeps and is to be woken; of several who ask, one is told so, and has to ring. What the owner is to find has
    /// been put there before [`published`].
    pub fn is_to_be_rung(&self) -> bool {
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }
}

/// Between what is put there for sleepers and the look at their bells, once for many.
pub fn published() {
    fence(Ordering::SeqCst);
}
