//! The sizes of buffers and rings, chosen by the MTU, and how long to wait for a busy queue.

use super::refusal::Refusal;
use crate::frame::HEADROOM;

/// The largest MTU whose frames fit 2048 bytes behind the headroom, header and tags included.
const SMALL_MTU: usize = 2048 - HEADROOM - 22;

/// The largest MTU for which a frame is kept in one buffer. Drivers keep the end of a page for themselves and draw this line
/// between 3000 and 3520 bytes.
const SINGLE_MTU: usize = 3000;

/// The largest MTU that fits the buffers a frame may have, well above any in use.
const LARGEST_MTU: usize = 16_000;

/// How the sockets are opened.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Queues to open, one for each worker.
    pub workers: usize,
    /// Buffers of a port, in the memory of one worker.
    pub frames_per_port: usize,
    /// Frames the worker moves at once.
    pub batch: usize,
    /// Room for received frames in a buffer, headroom included: 2048 or 4096.
    pub chunk: usize,
    /// Whether a frame may lie in several buffers.
    pub multi_buffer: bool,
    /// Bytes of the longest frame, header and tags included.
    pub longest: usize,
    /// Whether the worker drives the device's receive path itself.
    pub busy_poll: bool,
    /// Whether frames longer than a link carries may reach a socket, to be cut.
    pub super_frames: bool,
}

impl Layout {
    /// Whether sockets are bound for frames in several buffers.
    pub(crate) fn is_in_pieces(&self) -> bool {
        self.multi_buffer || self.super_frames
    }

    /// The layout for an MTU: small buffers where they suffice (more of them fit the cache), and several for a frame
    /// where even a large one does not.
    ///
    /// # Errors
    ///
    /// When frames would need more buffers than the kernel chains.
    pub(crate) fn for_mtu(mtu: usize, workers: usize, frames_per_port: usize, batch: usize) -> Result<Layout, Refusal> {
        let chunk = if mtu <= SMALL_MTU { 2048 } else { 4096 };
        if mtu > LARGEST_MTU {
            return Err(Refusal::Unsupported(format!("an MTU of {mtu} does not fit; set it to {LARGEST_MTU} or less")));
        }
        let multi_buffer = mtu > SINGLE_MTU;
        Ok(Layout {
            workers,
            frames_per_port,
            batch,
            chunk,
            multi_buffer,
            longest: mtu + 22,
            busy_poll: false,
            super_frames: false,
        })
    }
}
