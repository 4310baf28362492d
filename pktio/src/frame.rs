//! A frame: the owner of one buffer of a pool, or of a chain of them.
//!
//! A [`Frame`] is not cloned and has no destructor: it is always in exactly one place (a ring, a batch, the pool),
//! and its last user puts it back with [`Pool::put`](crate::Pool::put). A test that counts
//! [`Pool::idle`](crate::Pool::idle) proves that none is lost.
//!
//! A jumbo frame on AF_XDP lies in several buffers. The first holds all headers; the others are chained to it, each
//! described by a `Frame` in the headroom of its own buffer, so that a chain needs no allocation.

use std::fmt;
use std::ptr::NonNull;

/// A batch of frames; receive appends to it, transmit takes from its front.
pub type Batch = Vec<Frame>;

/// Room in front of a frame in its buffer, in bytes. AF_XDP leaves as much (`XDP_PACKET_HEADROOM`), so that a frame
/// taken from a pool and a frame received begin at the same place.
pub const HEADROOM: usize = 256;

/// The largest buffer a pool is cut into, in bytes.
pub const MAX_BUFFER: usize = 1 << 20;

/// The longest frame that a port without an interface (in memory, over a capture file) passes, in bytes: a jumbo frame of 9000 bytes of
/// payload with its header and two tags.
pub const MAX_FRAME: usize = 9022;

/// Buffers begin at a multiple of this, in bytes: a cache line, and enough for the header of a further buffer.
pub(crate) const ALIGNMENT: usize = 64;

/// One buffer of a pool, owned, and the extent of the frame in it; the head of a chain when the frame needs more than one buffer.
///
/// It owns its bytes as a `Box` does, but not their memory: that belongs to the [`Pool`](crate::Pool), which frees it only when
/// every frame has been put back.
pub struct Frame {
    base: NonNull<u8>,
    /// The next buffer of the chain, by the base of its buffer; its `Frame` is written there.
    next: Option<NonNull<u8>>,
    capacity: u32,
    start: u32,
    len: u32,
    /// Bytes in the further buffers.
    beyond: u32,
}

const _: () = assert!(size_of::<Frame>() <= 32, "two frames of a batch share a cache line");
const _: () = assert!(size_of::<Frame>() <= HEADROOM, "the header of a further buffer fits its headroom");
const _: () = assert!(align_of::<Frame>() <= ALIGNMENT, "the header of a further buffer is aligned");

// SAFETY: a frame is the only handle to its buffer (it is neither Clone nor Copy, and the pool and the ports hand out
// each buffer once), so moving it to another thread moves the buffer; the memory itself is plain.
unsafe impl Send for Frame {}
// SAFETY: through `&Frame` bytes can only be read, and only the holder of `&mut Frame` can write them.
unsafe impl Sync for Frame {}

/// The most members of a port that is an aggregation.
pub const MOST_MEMBERS: usize = 8;

/// The number of a frame that came in by no member of an aggregation.
pub const NO_MEMBER: u8 = u8::MAX;

impl Frame {
    /// The frame of `len` bytes at `start` of the buffer of `capacity` bytes at `base`.
    ///
    /// # Safety
    ///
    /// The buffer is aligned to [`ALIGNMENT`], stays readable and writable as long as the frame exists, and nothing else uses it.
    #[inline]
    pub(crate) unsafe fn over(base: NonNull<u8>, capacity: u32, start: u32, len: u32) -> Frame {
        debug_assert!(start + len <= capacity);
        Frame { base, next: None, capacity, start, len, beyond: 0 }
    }

    /// The member of an aggregation by which it came in, and will leave; of no meaning where its port has none.
    #[inline]
    pub fn member(&self) -> u8 {
        // SAFETY: a buffer has at least a headroom, and the buffer at `base` belongs to this frame alone.
        unsafe { self.base.as_ptr().read() }
    }

    /// Has it leave by this member, or by any of them ([`NO_MEMBER`]). The number is in the first byte of the buffer, below the frame.
    #[inline]
    pub fn set_member(&mut self, member: u8) {
        // SAFETY: as in `member`; `&mut self` excludes every other access.
        unsafe { self.base.as_ptr().write(member) }
    }

    /// The address of the first buffer.
    #[inline]
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Makes the frame empty, beginning at `headroom`.
    #[inline]
    pub(crate) fn reset(&mut self, headroom: usize) {
        self.start = headroom as u32;
        self.len = 0;
    }

    /// The visible bytes: those of the first buffer, which holds all headers.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: start + len <= capacity is kept by `set` and the constructors; the buffer belongs to this frame alone.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(self.start as usize), self.len as usize) }
    }

    /// The visible bytes, to be changed in place.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(self.start as usize), self.len as usize) }
    }

    /// The whole first buffer, headroom and tailroom included.
    #[inline]
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        // SAFETY: the buffer of `capacity` bytes at `base` belongs to this frame alone.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.capacity as usize) }
    }

    /// Where the frame begins in its first buffer, in bytes.
    #[inline]
    pub fn start(&self) -> usize {
        self.start as usize
    }

    /// Bytes in the first buffer.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True when the first buffer holds nothing.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the whole frame, further buffers included.
    #[inline]
    pub fn total(&self) -> usize {
        self.len as usize + self.beyond as usize
    }

    /// The size of the first buffer, in bytes.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// True when the frame needs more than its first buffer.
    #[inline]
    pub fn is_chained(&self) -> bool {
        self.next.is_some()
    }

    /// A new extent of the first buffer. The further ones stay as they are; see [`Pool::shrink`](crate::Pool::shrink).
    ///
    /// # Panics
    ///
    /// When the extent does not lie inside the buffer.
    #[inline]
    pub fn set(&mut self, start: usize, len: usize) {
        assert!(
            start.checked_add(len).is_some_and(|end| end <= self.capacity as usize),
            "an extent of {len} bytes at {start} does not lie in a buffer of {}",
            self.capacity
        );
        // No truncation: both are at most `capacity`.
        self.start = start as u32;
        self.len = len as u32;
    }

    /// Replaces the visible bytes of the first buffer by `bytes`, at the current start.
    ///
    /// # Panics
    ///
    /// When they do not fit behind the start.
    #[inline]
    pub fn fill(&mut self, bytes: &[u8]) {
        self.set(self.start(), bytes.len());
        self.bytes_mut().copy_from_slice(bytes);
    }

    /// The bytes of every buffer of the frame, first to last.
    pub fn segments(&self) -> Segments<'_> {
        Segments { frame: Some(self) }
    }

    /// Copies the whole frame to the front of `target` and returns how many bytes were copied: all of them, or as many
    /// as `target` holds.
    pub fn copy_to(&self, target: &mut [u8]) -> usize {
        let mut copied = 0;
        for segment in self.segments() {
            let room = segment.len().min(target.len() - copied);
            target[copied..copied + room].copy_from_slice(&segment[..room]);
            copied += room;
        }
        copied
    }

    /// How many buffers the frame has, its first included.
    pub fn buffers(&self) -> usize {
        self.segments().count()
    }

    /// Chains `further` (one buffer, or a chain) to the last buffer of this frame.
    ///
    /// # Panics
    ///
    /// When a further buffer has less headroom than its header needs (`size_of::<Frame>()` bytes).
    pub fn append(&mut self, further: Frame) {
        assert!(further.start as usize >= size_of::<Frame>(), "a further buffer keeps its header in its headroom");
        let bytes = further.len + further.beyond;
        let base = further.base;
        // SAFETY: `base` is the aligned start of a buffer that `further` owns and whose bytes before `start` are unused;
        // with the write the buffer passes to this chain.
        unsafe { base.cast::<Frame>().write(further) };
        self.beyond += bytes;
        let mut last = &mut self.next;
        while let Some(next) = last {
            // SAFETY: the header was written by an earlier `append` and is reachable only through this chain.
            let next = unsafe { next.cast::<Frame>().as_mut() };
            next.beyond += bytes;
            last = &mut next.next;
        }
        *last = Some(base);
    }

    /// Takes the further buffers off, as a chain of their own.
    pub fn split(&mut self) -> Option<Frame> {
        let base = self.next.take()?;
        self.beyond = 0;
        // SAFETY: the header was written by `append`; taking the link away makes the read its only owner.
        Some(unsafe { base.cast::<Frame>().read() })
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("start", &self.start)
            .field("len", &self.len)
            .field("total", &self.total())
            .field("capacity", &self.capacity)
            .finish()
    }
}

/// The bytes of a frame, buffer by buffer; see [`Frame::segments`].
#[derive(Debug)]
pub struct Segments<'a> {
    frame: Option<&'a Frame>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let frame = self.frame?;
        // SAFETY: the header was written by `append` and lives as long as the chain, which `'a` borrows.
        self.frame = frame.next.map(|next| unsafe { next.cast::<Frame>().as_ref() });
        Some(frame.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;

    fn filled(pool: &mut Pool, bytes: &[u8]) -> Frame {
        let mut frame = pool.take().unwrap();
        frame.fill(bytes);
        frame
    }

    #[test]
    #[should_panic(expected = "does not lie in a buffer")]
    fn an_extent_beyond_the_buffer_is_refused() {
        let mut pool = Pool::heap(1, 256, 0);
        pool.take().unwrap().set(200, 57);
    }

    #[test]
    #[should_panic(expected = "does not lie in a buffer")]
    fn an_extent_that_overflows_is_refused() {
        let mut pool = Pool::heap(1, 256, 0);
        pool.take().unwrap().set(usize::MAX, 2);
    }

    #[test]
    fn a_chain_shows_its_segments_in_order_and_comes_back_whole() {
        let mut pool = Pool::heap(4, 256, 64);
        let mut frame = filled(&mut pool, b"head ");
        for part in [b"one ".as_slice(), b"two ", b"three"] {
            let further = filled(&mut pool, part);
            frame.append(further);
        }
        assert_eq!((frame.len(), frame.total(), frame.buffers()), (5, 18, 4));
        let mut out = [0; 32];
        let copied = frame.copy_to(&mut out);
        assert_eq!(&out[..copied], b"head one two three");
        assert_eq!(frame.copy_to(&mut [0; 7]), 7);
        assert_eq!(pool.idle(), 0);
        pool.put(frame);
        assert_eq!(pool.idle(), 4);
    }

    #[test]
    fn a_chain_appended_to_a_chain_stays_whole() {
        let mut pool = Pool::heap(4, 256, 64);
        let mut frame = filled(&mut pool, b"a");
        let mut tail = filled(&mut pool, b"c");
        tail.append(filled(&mut pool, b"d"));
        frame.append(filled(&mut pool, b"b"));
        frame.append(tail);
        assert_eq!(frame.segments().collect::<Vec<_>>().concat(), b"abcd");
        let rest = frame.split().unwrap();
        assert_eq!((frame.total(), rest.total()), (1, 3));
        pool.put(rest);
        pool.put(frame);
        assert_eq!(pool.idle(), 4);
    }
}
