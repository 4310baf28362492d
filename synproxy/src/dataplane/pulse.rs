//! What a worker says of itself while it works, so that somebody else can tell whether it is stuck.

use std::sync::atomic::{AtomicU64, Ordering};
use tcpstate::{PerSide, Side};

/// Written by one worker, twice an iteration at most, and read by the watchdog.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Twice the iterations, and one more while it sleeps.
    turns: AtomicU64,
    /// Frames taken from a port or sent.
    moved: AtomicU64,
    /// Of each port: 1 while frames wait in its transmit ring that the kernel did not take, and the frames that have left it.
    waits: PerSide<AtomicU64>,
    completed: PerSide<AtomicU64>,
}

/// A [`Pulse`] at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Grows with every iteration and every sleep.
    pub turns: u64,
    /// Frames taken or sent so far.
    pub moved: u64,
    /// Of each port, how many frames have left the transmit ring, if some wait there that the kernel did not take.
    pub sending: PerSide<Option<u64>>,
}

impl Pulse {
    /// Frames wait in the transmit ring of the port on this side that the kernel did not take, or none do; so many have left it.
    #[inline]
    pub fn sending(&self, side: Side, waits: bool, completed: u64) {
        self.completed[side].store(completed, Ordering::Relaxed);
        self.waits[side].store(waits.into(), Ordering::Relaxed);
    }

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
        let sending = |side: Side| {
            let waits = self.waits[side].load(Ordering::Relaxed) != 0;
            waits.then(|| self.completed[side].load(Ordering::Relaxed))
        };
        Reading {
            turns: self.turns.load(Ordering::Relaxed),
            moved: self.moved.load(Ordering::Relaxed),
            sending: PerSide::new(sending(Side::Lan), sending(Side::Wan)),
        }
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
