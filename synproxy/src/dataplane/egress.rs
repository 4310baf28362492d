//! Where frames go once the engine has decided, and the engine's own segments.

use crate::metrics::capture::DropObserver;
use pktio::{Batch, Frame, Pool};
use tcpstate::{Egress, Head, PerSide, Side, Verdict};

/// The engine's view of a frame.
pub fn head(frame: &mut Frame) -> Head<'_> {
    let (start, len, total) = (frame.start(), frame.len(), frame.total());
    Head::new(frame.buffer_mut(), start, len, total)
}

/// The extent that the engine gave a frame's head.
pub struct Extent {
    start: usize,
    len: usize,
    is_whole: bool,
}

impl Extent {
    /// That of this head.
    pub fn of(head: &Head<'_>) -> Self {
        Self { start: head.start(), len: head.len(), is_whole: head.is_whole() }
    }
}

/// Puts frames into the batches of the two ports, or back into the pool. The engine's own segments take free frames of the pool.
pub struct Outlet<'a, O> {
    /// The frames of the worker.
    pub pool: &'a mut Pool,
    /// What is to leave by each port.
    pub outgoing: &'a mut PerSide<Batch>,
    /// The member by which the engine's own segments leave, where the ports have members.
    pub member: Option<u8>,
    /// Sees the frames that are dropped.
    pub observer: &'a mut O,
}

impl<O: DropObserver> Outlet<'_, O> {
    /// Gives a frame the extent that the engine gave its head.
    #[inline]
    pub fn trim(&mut self, frame: &mut Frame, extent: &Extent) {
        frame.set(extent.start, extent.len);
        if extent.is_whole && frame.is_chained() {
            self.pool.shrink(frame);
        }
    }

    /// Carries out a verdict on a frame that came in by `side`.
    ///
    /// # Panics
    /// On [`Verdict::Hold`], which is the caller's to carry out.
    #[inline]
    pub fn dispose(&mut self, side: Side, mut frame: Frame, extent: Extent, verdict: Verdict) {
        self.trim(&mut frame, &extent);
        match verdict {
            Verdict::Forward => self.outgoing[side.other()].push(frame),
            Verdict::Reflect => self.outgoing[side].push(frame),
            Verdict::Hold(_) => unreachable!("a released frame is not held again"),
            Verdict::Drop(reason) => {
                self.observer.dropped(side, &frame, reason);
                self.pool.put(frame);
            }
        }
    }
}

impl<O> Egress for Outlet<'_, O> {
    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let Some(mut frame) = self.pool.take() else { return false };
        let start = frame.start();
        let len = write(&mut frame.buffer_mut()[start..]);
        frame.set(start, len);
        if let Some(member) = self.member {
            frame.set_member(member);
        }
        self.outgoing[to].push(frame);
        true
    }
}
