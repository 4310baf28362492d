//! How entries of several words are written while a program of the kernel may read them. Nobody waits: a reader that meets an entry being written does without
//! it, and one that is overtaken while it reads sees that before it acts.
//!
//! `unit/loom` runs this file through every order of memory operations; the atomics come from its parent.

use super::{AtomicU64, Ordering, fence};

/// Writes an entry whose first word is its stamp. While `fill` writes the others the stamp is zero, which is no entry's; then it is `next`, which no entry here
/// has had. A reader that reads the stamp, the others, and the stamp again, and finds the same one twice, has read what was written with it.
///
/// One thread may write, and readers read in that order: by loads that the processor does not exchange.
#[inline]
pub(crate) fn replace(stamp: &AtomicU64, next: u64, fill: impl FnOnce()) {
    end(stamp, 0);
    fill();
    stamp.store(next, Ordering::Release);
}

/// Gives a word that others depend on another value: who sees anything written afterwards sees that it is not what it was.
#[inline]
pub(crate) fn end(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Relaxed);
    fence(Ordering::SeqCst);
}

/// Takes a slot whose name is `former`, for which several threads may try at once, by the name `claimed`, which no reader looks for. One of them gets it.
#[inline]
pub(crate) fn claim(name: &AtomicU64, former: u64, claimed: u64) -> bool {
    name.compare_exchange(former, claimed, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// Gives a claimed slot a name: a reader that finds the name finds what was written before.
#[inline]
pub(crate) fn show(name: &AtomicU64, value: u64) {
    name.store(value, Ordering::Release);
}
