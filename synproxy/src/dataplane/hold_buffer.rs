//! The pen: frames kept aside until the engine asks for them. Which are kept, and for how long, is the engine's matter.

use pktio::{Frame, Pool};
use tcpstate::Ticket;

/// The frames held, each at the place its ticket names.
pub struct Pen {
    places: Box<[Option<Frame>]>,
    held: u64,
    unkept: u64,
}

impl Pen {
    /// An empty pen for so many frames. All memory is taken here.
    pub fn new(frames: usize) -> Self {
        Self { places: (0..frames).map(|_| None).collect(), held: 0, unkept: 0 }
    }

    /// Keeps a frame. When only the ports' reserve is left in the pool it goes back there instead: frames that are held must not
    /// starve those that arrive.
    ///
    /// # Panics
    /// If another frame is held for this place.
    pub fn keep(&mut self, ticket: Ticket, frame: Frame, pool: &mut Pool) {
        let place = &mut self.places[usize::from(ticket.index)];
        assert!(place.is_none(), "two frames are held in place {}", ticket.index);
        if pool.is_low() {
            self.unkept += 1;
            return pool.put(frame);
        }
        *place = Some(frame);
        self.held += 1;
    }

    /// Gives a frame up; `None` when it was not kept.
    pub fn give_up(&mut self, ticket: Ticket) -> Option<Frame> {
        let frame = self.places[usize::from(ticket.index)].take();
        self.held -= u64::from(frame.is_some());
        frame
    }

    /// Gives every frame back to the pool.
    pub fn clear(&mut self, pool: &mut Pool) {
        for frame in self.places.iter_mut().filter_map(Option::take) {
            pool.put(frame);
        }
        self.held = 0;
    }

    /// Frames that are held now.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Buffers the held frames lie in.
    #[cfg(test)]
    pub fn buffers(&self) -> usize {
        self.places.iter().flatten().map(Frame::buffers).sum()
    }

    /// Frames that were to be held and went back to the pool instead.
    pub fn unkept(&self) -> u64 {
        self.unkept
    }
}
