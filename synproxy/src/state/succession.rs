//! The word by which a process that runs is asked to leave its state to another one. Both have it mapped; who of them has the state, the lock of the header
//! says.
//!
//! A word is lost when two processes ask at once, or when the one that was asked has been killed before it looked: so who waits asks again and again, and
//! who gets the state takes back what was asked of the former owner, its own word too.
//!
//! `unit/loom` runs this file through every order of memory operations; the atomics come from its parent.

use super::{AtomicU64, Ordering};

/// The word: the process that asks, or zero.
pub struct Succession<'a>(&'a AtomicU64);

impl<'a> Succession<'a> {
    /// The one in this word.
    pub fn of(word: &'a AtomicU64) -> Self {
        Self(word)
    }

    /// Asks the process that has the state to leave it to this one, whose number is not zero.
    pub fn ask(&self, process: u32) {
        self.0.store(process.into(), Ordering::Relaxed);
    }

    /// The process that asks for the state, if one does; it has not asked any more afterwards.
    pub fn asked(&self) -> Option<u64> {
        // Without the load this word would be written with every beat.
        if self.0.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(self.0.swap(0, Ordering::Relaxed)).filter(|process| *process != 0)
    }

    /// This process has got the state: what was asked was asked of the former owner.
    pub fn begin(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}
