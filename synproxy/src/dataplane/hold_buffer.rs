//! The hold buffer: stores the frames that wait for their server. The engine decides which are held, and for how long.

use pktio::{Frame, Pool};
use tcpstate::{Histogram, Instant, Ticket};

/// The held frames, each in the slot that its ticket names.
pub struct HoldBuffer {
    slots: Box<[Option<(Frame, Instant)>]>,
    held: u64,
    not_held: u64,
    /// For how long frames were held that have been taken out.
    times: Histogram,
}

impl HoldBuffer {
    /// An empty buffer for this many frames. All memory is taken here.
    pub fn new(frames: usize) -> Self {
        Self { slots: (0..frames).map(|_| None).collect(), held: 0, not_held: 0, times: Histogram::default() }
    }

    /// Holds a frame. When only the ports' reserve is left in the pool the frame goes back there instead: held frames must not starve
    /// reception.
    ///
    /// # Panics
    /// If another frame is held in this slot.
    pub fn hold(&mut self, ticket: Ticket, frame: Frame, pool: &mut Pool, now: Instant) {
        let slot = &mut self.slots[usize::from(ticket.index)];
        assert!(slot.is_none(), "two frames are held in slot {}", ticket.index);
        if pool.is_low() {
            self.not_held += 1;
            return pool.put(frame);
        }
        *slot = Some((frame, now));
        self.held += 1;
    }

    /// Takes a frame out; `None` when it was not held.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn take(&mut self, ticket: Ticket, now: Instant) -> Option<Frame> {
        let (frame, since) = self.slots[usize::from(ticket.index)].take()?;
        self.held -= 1;
        self.times.observe(now.since(since));
        Some(frame)
    }

    /// Returns every frame to the pool.
    pub fn clear(&mut self, pool: &mut Pool) {
        for (frame, _) in self.slots.iter_mut().filter_map(Option::take) {
            pool.put(frame);
        }
        self.held = 0;
    }

    /// Frames that are held now.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// The pool's buffers that the held frames occupy.
    #[cfg(test)]
    pub fn buffers(&self) -> usize {
        self.slots.iter().flatten().map(|(frame, _)| frame.buffers()).sum()
    }

    /// For how long frames were held.
    pub fn times(&self) -> &Histogram {
        &self.times
    }

    /// Frames that were to be held and went back to the pool instead.
    pub fn not_held(&self) -> u64 {
        self.not_held
    }
}
