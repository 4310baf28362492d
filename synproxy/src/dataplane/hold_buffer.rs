//! The hold buffer: stores the frames that wait for their server. The engine decides which are held, and for how long.

use pktio::{Frame, Pool};
use tcpstate::Ticket;

/// The held frames, each in the slot that its ticket names.
pub struct HoldBuffer {
    slots: Box<[Option<Frame>]>,
    held: u64,
    not_held: u64,
}

impl HoldBuffer {
    /// An empty buffer for this many frames. All memory is taken here.
    pub fn new(frames: usize) -> Self {
        Self { slots: (0..frames).map(|_| None).collect(), held: 0, not_held: 0 }
    }

    /// Holds a frame. When only the ports' reserve is left in the pool the frame goes back there instead: held frames must not starve
    /// reception.
    ///
    /// # Panics
    /// If another frame is held in this slot.
    pub fn hold(&mut self, ticket: Ticket, frame: Frame, pool: &mut Pool) {
        let slot = &mut self.slots[usize::from(ticket.index)];
        assert!(slot.is_none(), "two frames are held in slot {}", ticket.index);
        if pool.is_low() {
            self.not_held += 1;
            return pool.put(frame);
        }
        *slot = Some(frame);
        self.held += 1;
    }

    /// Takes a frame out; `None` when it was not held.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn take(&mut self, ticket: Ticket) -> Option<Frame> {
        let frame = self.slots[usize::from(ticket.index)].take();
        self.held -= u64::from(frame.is_some());
        frame
    }

    /// Returns every frame to the pool.
    pub fn clear(&mut self, pool: &mut Pool) {
        for frame in self.slots.iter_mut().filter_map(Option::take) {
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
        self.slots.iter().flatten().map(Frame::buffers).sum()
    }

    /// Frames that were to be held and went back to the pool instead.
    pub fn not_held(&self) -> u64 {
        self.not_held
    }
}
