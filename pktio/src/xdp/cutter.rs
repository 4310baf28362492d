//! Cuts the super-frames that reach a socket where the kernel has not cut them: in generic mode those of a veth's or a tap's sender, and
//! at a tap in driver mode too.
//!
//! AF_XDP does not say into which segments a sender meant a super-frame to be cut. TCP leaves that open: any cut into frames that fit the
//! link carries the same bytes. Datagrams have their borders, so a UDP super-frame cannot be cut here.

use crate::frame::Frame;
use crate::netdev::FORWARDED_BEYOND_MTU;
use crate::offload::{MAX_HEADERS, Plan, SUPER_FRAME, strip_jumbo};
use crate::pool::{Pool, Refused};

/// The super-frame of one queue that is being cut.
pub(super) struct Cutter {
    /// Its bytes, from `start` on.
    bytes: Box<[u8]>,
    start: usize,
    /// How it is cut, and the next segment.
    cutting: Option<(Plan, usize)>,
    /// The longest packet of a segment, in bytes.
    mtu: usize,
    /// The longest frame.
    max_frame: usize,
}

impl Cutter {
    /// For an interface of this MTU, whose longest frame has `max_frame` bytes.
    pub(super) fn new(mtu: usize, max_frame: usize) -> Cutter {
        Cutter { bytes: vec![0; SUPER_FRAME].into(), start: 0, cutting: None, mtu, max_frame }
    }

    /// Whether there are segments left of the last super-frame.
    pub(super) fn is_cutting(&self) -> bool {
        self.cutting.is_some()
    }

    /// Copies a super-frame, to be cut. False when it cannot be.
    pub(super) fn begin(&mut self, frame: &Frame) -> bool {
        let length = frame.copy_to(&mut self.bytes);
        self.start = strip_jumbo(&mut self.bytes[..length]);
        self.cutting = Plan::by_mtu(&self.bytes[self.start..length], self.mtu, self.mtu + FORWARDED_BEYOND_MTU)
            .map(|plan| (plan, 0));
        self.is_cutting()
    }

    /// The next segment; none is left behind the last one.
    pub(super) fn next(&mut self, pool: &mut Pool) -> Option<Result<Frame, Refused>> {
        let (plan, next) = self.cutting.as_mut()?;
        let bytes = &self.bytes[self.start..];
        let mut headers = [0; MAX_HEADERS];
        let (length, payload) = plan.segment(bytes, *next, &mut headers);
        *next += 1;
        if *next == plan.count() {
            self.cutting = None;
        }
        Some(pool.gather(&[&headers[..length], &bytes[payload]], self.max_frame))
    }
}
