//! What a worker says of itself while it works, so that somebody else can tell whether it is stuck.

use std::sync::atomic::{AtomicU64, Ordering};

/// Written by one worker, twice an iteration at most, and read by the watchdog.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Twice the iterations, and one more while it sleeps.
    turns: AtomicU64,
    /// Frames taken from a port or sent.
    moved: AtomicU64,
}

/// A [`Pulse`] at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Grows with every iteration and every sleep.
    pub turns: u64,
    /// Frames taken or sent so far.
    pub moved: u64,
}

impl Pulse {
    /// An iteration has ended in which so many frames were taken or sent.
    #[inline]
    pub fn turn(&self, moved: usize) {
        let turns = self.turns.load(Ordering::Relaxed);
        self.turns.store((turns | 1) + 1, Ordering::Relaxed);
        if moved > 0 {
            let before = self.moved.load(Ordering::Relaxed);
            self.moved.store(before + moved as u64, Ordering::Relaxed);
        }
    }

    /// The worker goes to sleep.
    #[inline]
    pub fn sleep(&self) {
        let turns = self.turns.load(Ordering::Relaxed);
        self.turns.store(turns | 1, Ordering::Relaxed);
    }

    /// What the worker has said last.
    pub fn read(&self) -> Reading {
        Reading { turns: self.turns.load(Ordering::Relaxed), moved: self.moved.load(Ordering::Relaxed) }
    }
}

impl Reading {
    /// Whether the worker slept.
    pub fn is_asleep(self) -> bool {
        self.turns % 2 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_ends_a_sleep() {
        let pulse = Pulse::default();
        pulse.turn(3);
        let first = pulse.read();
        assert!(!first.is_asleep() && first.moved == 3);
        pulse.sleep();
        assert!(pulse.read().is_asleep());
        pulse.turn(0);
        let last = pulse.read();
        assert!(!last.is_asleep() && last.moved == 3 && last.turns > first.turns);
    }
}
