//! A frame that came by no port: an operator asks what would become of it.

use tcpstate::Head;

/// Bytes before a frame that is explained, as many as a frame of a pool has at least.
const HEADROOM: usize = 256;

/// The buffer around it, likewise.
const BUFFER: usize = 2048;

/// A frame in a buffer with headroom and tailroom, as a worker has it.
pub struct FrameBuffer {
    buffer: Vec<u8>,
    len: usize,
}

impl FrameBuffer {
    /// A copy of this frame.
    pub fn new(frame: &[u8]) -> Self {
        let mut buffer = vec![0; (HEADROOM + frame.len()).max(BUFFER)];
        buffer[HEADROOM..HEADROOM + frame.len()].copy_from_slice(frame);
        Self { buffer, len: frame.len() }
    }

    /// The engine's view of it.
    pub fn head(&mut self) -> Head<'_> {
        Head::new(&mut self.buffer, HEADROOM, self.len, self.len)
    }
}
