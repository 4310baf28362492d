//! A frame's storage: a region cut into equal buffers, the pool that keeps the idle ones, and the frame that owns one.
//!
//! A [`Frame`] is not cloned and has no destructor: it is always in exactly one place (a ring, a batch, the pool),
//! and whoever is done with it puts it back with [`Pool::put`]. A test that counts [`Pool::idle`] proves that none is lost.

/// A batch of frames; receive appends to it, transmit takes from its front.
pub type Batch = Vec<Frame>;
