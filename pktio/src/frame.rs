//! A frame's storage: a region cut into equal buffers, the pool that keeps the idle ones, and the frame that owns one.
//!
//! A [`Frame`] is not cloned and has no destructor: it is always in exactly one place (a ring, a batch, the pool),
//! and whoever is done with it puts it back with [`Pool::put`]. A test that counts [`Pool::idle`] proves that none is lost.
//!
//! A jumbo frame on AF_XDP lies in several buffers. The first holds all headers; the others hang behind it, each
//! described by a header of ours in the headroom of its own buffer, so that a chain costs no allocation.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::mem;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::memory::gather;

/// A batch of frames; receive appends to it, transmit takes from its front.
pub type Batch = Vec<Frame>;

/// Room in front of a frame in its buffer, in bytes. AF_XDP leaves as much (`XDP_PACKET_HEADROOM`), so that a frame
/// taken from a pool and a frame received begin at the same place.
pub const HEADROOM: usize = 256;

/// The largest buffer a pool is cut into, in bytes.
pub const MAX_BUFFER: usize = 1 << 20;

/// Buffers begin at a multiple of this, in bytes: a cache line, and enough for the header of a further buffer.
const ALIGNMENT: usize = 64;

/// One buffer of a region, owned, with what lies in it; the head of a chain when the frame needs more than one.
///
/// It owns its bytes as a `Box` does, but not their memory: that belongs to the [`Pool`], which frees it only when
/// every frame has come home.
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
// each buffer once), so moving it to another thread moves the buffer; the region itself is plain memory.
unsafe impl Send for Frame {}
// SAFETY: through `&Frame` bytes can only be read, and only the holder of `&mut Frame` can write them.
unsafe impl Sync for Frame {}

impl Frame {
    /// The visible bytes: those of the first buffer, which holds all headers.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: start + len <= capacity is kept by `set` and the constructors; the buffer is ours alone.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(self.start as usize), self.len as usize) }
    }

    /// The visible bytes, to be changed where they lie.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(self.start as usize), self.len as usize) }
    }

    /// The whole first buffer, headroom and tailroom included.
    #[inline]
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        // SAFETY: the buffer of `capacity` bytes at `base` is ours alone.
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

    /// A new extent of the first buffer. The further ones stay as they are; see [`Pool::shrink`].
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

    /// Replaces the visible bytes of the first buffer by `bytes`, at the present start.
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

    /// How many buffers the frame lies in, its first included.
    pub fn buffers(&self) -> usize {
        self.segments().count()
    }

    /// Hangs `further` (one buffer, or a chain) behind the last buffer of this frame.
    ///
    /// # Panics
    ///
    /// When a further buffer has less headroom than its header needs (`size_of::<Frame>()` bytes).
    pub fn append(&mut self, further: Frame) {
        assert!(further.start as usize >= size_of::<Frame>(), "a further buffer keeps its header in its headroom");
        let bytes = further.len + further.beyond;
        let base = further.base;
        // SAFETY: `base` is the aligned start of a buffer that `further` owns and whose bytes before `start` nobody uses;
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

/// What keeps the memory of a region mapped.
pub(crate) trait Keeper: Send + Sync {
    /// The pool ends, and with it every frame: these buffers (their offsets in the region) are idle now. What is in the rings is not
    /// among them.
    fn regain(&self, _idle: &mut dyn Iterator<Item = usize>) {}
}

/// The memory that frames lie in, and what keeps it mapped.
#[derive(Clone)]
pub(crate) struct Region {
    base: NonNull<u8>,
    /// Buffers in the region.
    count: usize,
    /// Bytes of a buffer; a multiple of [`ALIGNMENT`].
    buffer: usize,
    owner: Arc<dyn Keeper>,
}

// SAFETY: the region is plain memory kept alive by `owner` (which is Send and Sync); who may touch which buffer is
// settled by the ownership of frames, not by holding the region.
unsafe impl Send for Region {}

impl Region {
    /// # Safety
    ///
    /// `base` points to `count * buffer` bytes, aligned to [`ALIGNMENT`], readable and writable as long as `owner` lives, and
    /// used by nobody but the frames made of this region (and the kernel, for those lent to it).
    pub(crate) unsafe fn new(base: NonNull<u8>, count: usize, buffer: usize, owner: Arc<dyn Keeper>) -> Region {
        assert!((base.as_ptr() as usize).is_multiple_of(ALIGNMENT) && buffer.is_multiple_of(ALIGNMENT));
        assert!(buffer <= MAX_BUFFER);
        Region { base, count, buffer, owner }
    }

    /// The offset of a frame's buffer from the region's base, in bytes.
    ///
    /// # Panics
    ///
    /// When the frame belongs to another region: its memory might be gone at any time.
    #[inline]
    pub(crate) fn offset(&self, base: NonNull<u8>) -> usize {
        let offset = (base.as_ptr() as usize).wrapping_sub(self.base.as_ptr() as usize);
        assert!(offset < self.count * self.buffer, "a frame of another pool");
        offset
    }

    /// The frame at `start` of the buffer at `offset`, `len` bytes long.
    ///
    /// # Safety
    ///
    /// No other frame, and no ring of the kernel, holds the buffer.
    #[inline]
    pub(crate) unsafe fn frame(&self, offset: usize, start: usize, len: usize) -> Frame {
        debug_assert!(offset.is_multiple_of(self.buffer));
        assert!(offset < self.count * self.buffer && start + len <= self.buffer);
        // SAFETY: the offset lies inside the region, as just asserted.
        let base = unsafe { self.base.add(offset) };
        Frame { base, next: None, capacity: self.buffer as u32, start: start as u32, len: len as u32, beyond: 0 }
    }
}

/// The idle frames of one worker, last in first out, so that the buffer just used (and still in the cache) goes out next.
///
/// One pool serves both ports of a worker. All memory is taken when it is made.
pub struct Pool {
    idle: Vec<Frame>,
    /// Frames that are lent to a port's rings.
    lent: usize,
    /// Frames there are, wherever they are.
    total: usize,
    headroom: usize,
    reserve: usize,
    region: Region,
}

impl Pool {
    /// A pool of `frames` buffers of `buffer` bytes each in ordinary memory; frames begin at `headroom`.
    ///
    /// The size of a buffer is rounded up to a multiple of 64 bytes.
    ///
    /// # Panics
    ///
    /// When `headroom` exceeds `buffer`, or `buffer` exceeds [`MAX_BUFFER`].
    pub fn heap(frames: usize, buffer: usize, headroom: usize) -> Pool {
        let buffer = buffer.next_multiple_of(ALIGNMENT);
        assert!(buffer <= MAX_BUFFER, "a buffer of {buffer} bytes; at most {MAX_BUFFER} are possible");
        let memory = HeapMemory::new(frames * buffer);
        let (base, memory) = (memory.base, Arc::new(memory));
        // SAFETY: the memory holds `frames * buffer` bytes, aligned as asked, and lives as long as its owner.
        let region = unsafe { Region::new(base, frames, buffer, memory) };
        // SAFETY: the region was just made; no frame of it exists.
        unsafe { Pool::over(region, headroom) }
    }

    /// A pool of all buffers of `region`.
    ///
    /// # Safety
    ///
    /// No frame of the region exists yet.
    pub(crate) unsafe fn over(region: Region, headroom: usize) -> Pool {
        assert!(headroom <= region.buffer, "the headroom of {headroom} bytes exceeds the buffer");
        // From the last to the first, so that the first buffer is on top.
        let idle = (0..region.count)
            .rev()
            // SAFETY: each buffer is made a frame once.
            .map(|i| unsafe { region.frame(i * region.buffer, headroom, 0) })
            .collect();
        Pool { idle, lent: 0, total: region.count, headroom, reserve: 0, region }
    }

    /// A pool of those buffers of `region` that lie at the offsets `idle`, while `lent` others are in the rings of the ports it serves.
    ///
    /// # Safety
    ///
    /// The offsets are multiples of the buffers' size inside the region, each is named once, and nobody else has those buffers.
    pub(crate) unsafe fn partly(
        region: Region,
        headroom: usize,
        idle: impl IntoIterator<Item = usize>,
        lent: usize,
    ) -> Pool {
        assert!(headroom <= region.buffer, "the headroom of {headroom} bytes exceeds the buffer");
        // SAFETY: the caller's promise.
        let idle: Vec<_> = idle.into_iter().map(|offset| unsafe { region.frame(offset, headroom, 0) }).collect();
        Pool { total: idle.len() + lent, idle, lent, headroom, reserve: 0, region }
    }

    /// An empty frame that begins at the headroom, or `None` when only the reserve of the ports is left.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        if self.idle.len() <= self.reserve {
            return None;
        }
        self.idle.pop()
    }

    /// Like [`take`](Pool::take), but the reserve too may be used: for the ports, which fill their receive rings from it.
    #[inline]
    pub fn take_reserved(&mut self) -> Option<Frame> {
        self.idle.pop()
    }

    /// Takes a frame back, with its further buffers.
    ///
    /// # Panics
    ///
    /// When the frame came from another pool.
    #[inline]
    pub fn put(&mut self, mut frame: Frame) {
        if frame.is_chained() {
            self.shrink(&mut frame);
        }
        // The offset is of no use here; what counts is that the frame is one of ours.
        self.region.offset(frame.base);
        frame.start = self.headroom as u32;
        frame.len = 0;
        self.idle.push(frame);
    }

    /// Takes the further buffers of `frame` back and leaves it the first: a jumbo frame was rewritten into a small one.
    pub fn shrink(&mut self, frame: &mut Frame) {
        let mut rest = frame.split();
        while let Some(mut further) = rest {
            rest = further.split();
            self.put(further);
        }
    }

    /// A frame with the bytes of `frame`, or `None` when the pool has too few buffers for it.
    pub fn copy(&mut self, frame: &Frame) -> Option<Frame> {
        let mut copy: Option<Frame> = None;
        for segment in frame.segments() {
            let mut rest = segment;
            // A buffer of this pool may be smaller than the one the segment lies in.
            loop {
                let Some(mut buffer) = self.take() else {
                    if let Some(copy) = copy {
                        self.put(copy);
                    }
                    return None;
                };
                let (now, later) = rest.split_at(rest.len().min(buffer.capacity() - buffer.start()));
                buffer.fill(now);
                match &mut copy {
                    None => copy = Some(buffer),
                    Some(copy) => copy.append(buffer),
                }
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
        }
        copy
    }

    /// A frame with these bytes, in as many buffers as they need, or `None` when the pool has too few. The reserve of the ports may be
    /// used: this is reception, from another worker instead of a wire.
    pub fn adopt(&mut self, bytes: &[u8]) -> Option<Frame> {
        gather(self, &[bytes], usize::MAX).ok()
    }

    /// Frames that lie in the pool.
    #[inline]
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Frames the pool was made with, wherever they are now.
    #[inline]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Frames that are in the rings of a port. What is neither idle nor lent is in somebody's hands.
    #[inline]
    pub fn lent(&self) -> usize {
        self.lent
    }

    /// How many idle frames are kept for the ports' receive rings.
    #[inline]
    pub fn reserve(&self) -> usize {
        self.reserve
    }

    /// Keeps `frames` idle frames for the ports' receive rings; [`take`](Pool::take) leaves them alone.
    pub fn set_reserve(&mut self, frames: usize) {
        self.reserve = frames;
    }

    /// True when only the reserve is left: who keeps received frames aside should now drop instead of keep.
    #[inline]
    pub fn is_low(&self) -> bool {
        self.idle.len() <= self.reserve
    }

    /// Bytes of a buffer.
    #[inline]
    pub fn buffer(&self) -> usize {
        self.region.buffer
    }

    /// Where an empty frame begins in its buffer, in bytes.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.headroom
    }

    /// Gives `frame` (one buffer, not a chain) to a ring and returns the offset of its buffer in the region.
    #[inline]
    pub(crate) fn lend(&mut self, frame: Frame) -> usize {
        debug_assert!(!frame.is_chained());
        let offset = self.region.offset(frame.base);
        self.lent += 1;
        offset
    }

    /// Takes the frame at `start` of the buffer at `offset` back from a ring.
    ///
    /// # Safety
    ///
    /// The buffer was lent and has not been taken back since.
    #[inline]
    pub(crate) unsafe fn reclaim(&mut self, offset: usize, start: usize, len: usize) -> Frame {
        self.lent -= 1;
        // SAFETY: the caller's promise: the ring was the buffer's only holder.
        unsafe { self.region.frame(offset, start, len) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // A frame that is still out would point into freed memory, so the memory stays if one is.
        if self.idle.len() + self.lent != self.total {
            mem::forget(Arc::clone(&self.region.owner));
            return;
        }
        let region = &self.region;
        region.owner.regain(&mut self.idle.iter().map(|frame| region.offset(frame.base)));
    }
}

/// Zeroed memory of the process. Frames write to it while this owner stands still, so it is held by a raw pointer.
struct HeapMemory {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the pointer is only used to free the memory, once, on drop.
unsafe impl Send for HeapMemory {}
// SAFETY: as above; nothing can be reached through a shared reference.
unsafe impl Sync for HeapMemory {}

impl HeapMemory {
    fn new(bytes: usize) -> HeapMemory {
        let layout = Layout::from_size_align(bytes.max(ALIGNMENT), ALIGNMENT).expect("a pool fits the address space");
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        match NonNull::new(base) {
            Some(base) => HeapMemory { base, layout },
            None => handle_alloc_error(layout),
        }
    }
}

impl Keeper for HeapMemory {}

impl Drop for HeapMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("idle", &self.idle())
            .field("lent", &self.lent)
            .field("total", &self.total())
            .field("buffer", &self.region.buffer)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(pool: &mut Pool, bytes: &[u8]) -> Frame {
        let mut frame = pool.take().unwrap();
        frame.fill(bytes);
        frame
    }

    #[test]
    fn a_frame_taken_is_empty_and_begins_at_the_headroom() {
        let mut pool = Pool::heap(2, 2048, HEADROOM);
        let frame = pool.take().unwrap();
        assert_eq!((frame.start(), frame.len(), frame.total(), frame.capacity()), (HEADROOM, 0, 0, 2048));
        pool.put(frame);
        assert_eq!((pool.idle(), pool.total()), (2, 2));
    }

    #[test]
    fn frames_do_not_share_bytes() {
        let mut pool = Pool::heap(3, 100, 0);
        let mut frames: Vec<Frame> = (0..3)
            .map(|i| {
                let mut frame = pool.take().unwrap();
                frame.set(0, frame.capacity());
                frame.bytes_mut().fill(i);
                frame
            })
            .collect();
        assert!(pool.take().is_none());
        for (i, frame) in frames.drain(..).enumerate() {
            assert!(frame.bytes().iter().all(|b| *b == i as u8));
            pool.put(frame);
        }
    }

    #[test]
    fn a_frame_put_back_forgets_its_extent() {
        let mut pool = Pool::heap(1, 256, 64);
        let mut frame = pool.take().unwrap();
        frame.set(0, 256);
        pool.put(frame);
        let frame = pool.take().unwrap();
        assert_eq!((frame.start(), frame.len()), (64, 0));
        pool.put(frame);
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
    #[should_panic(expected = "a frame of another pool")]
    fn a_frame_of_another_pool_is_refused() {
        let mut one = Pool::heap(1, 256, 0);
        let mut other = Pool::heap(1, 256, 0);
        one.put(other.take().unwrap());
    }

    #[test]
    fn a_chain_shows_its_segments_in_order_and_comes_home_whole() {
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

    #[test]
    fn a_shrunk_frame_keeps_its_first_buffer() {
        let mut pool = Pool::heap(3, 256, 64);
        let mut frame = filled(&mut pool, b"first");
        frame.append(filled(&mut pool, b"second"));
        frame.append(filled(&mut pool, b"third"));
        pool.shrink(&mut frame);
        assert_eq!((frame.bytes(), frame.total(), frame.is_chained()), (b"first".as_slice(), 5, false));
        assert_eq!(pool.idle(), 2);
        pool.put(frame);
    }

    #[test]
    fn a_copy_has_the_same_bytes_in_buffers_of_its_own() {
        let mut wide = Pool::heap(2, 1024, 64);
        let mut narrow = Pool::heap(8, 256, 64);
        let mut frame = filled(&mut wide, &[7; 900]);
        let mut copy = narrow.copy(&frame).unwrap();
        frame.bytes_mut().fill(0);
        assert_eq!(copy.total(), 900);
        assert!(copy.segments().all(|s| s.iter().all(|b| *b == 7)));
        copy.bytes_mut()[0] = 1;
        narrow.put(copy);
        wide.put(frame);
        assert_eq!((narrow.idle(), wide.idle()), (8, 2));
    }

    #[test]
    fn a_copy_that_does_not_fit_the_pool_leaves_it_as_it_was() {
        let mut wide = Pool::heap(1, 1024, 64);
        let mut narrow = Pool::heap(2, 256, 64);
        let frame = filled(&mut wide, &[7; 900]);
        assert!(narrow.copy(&frame).is_none());
        assert_eq!(narrow.idle(), 2);
        wide.put(frame);
    }

    #[test]
    fn bytes_from_elsewhere_become_a_frame_of_the_pools_own() {
        let mut pool = Pool::heap(3, 256, 64);
        pool.set_reserve(3);
        let jumbo: Vec<u8> = (0..400_u32).map(|i| i as u8).collect();
        let frame = pool.adopt(&jumbo).unwrap();
        assert_eq!((frame.total(), frame.buffers()), (400, 3));
        assert_eq!(frame.segments().collect::<Vec<_>>().concat(), jumbo);
        assert!(pool.adopt(b"x").is_none());
        pool.put(frame);
        assert!(pool.adopt(&[0; 577]).is_none());
        assert_eq!(pool.idle(), 3);
    }

    #[test]
    fn the_reserve_is_kept_for_the_ports() {
        let mut pool = Pool::heap(3, 256, 0);
        pool.set_reserve(2);
        let one = pool.take().unwrap();
        assert!(pool.is_low() && pool.take().is_none());
        let two = pool.take_reserved().unwrap();
        pool.put(one);
        pool.put(two);
        assert!(!pool.is_low());
    }

    #[test]
    fn a_frame_may_outlive_its_pool() {
        let mut pool = Pool::heap(2, 256, 0);
        let mut frame = filled(&mut pool, b"still here");
        drop(pool);
        frame.bytes_mut()[0] = b'S';
        assert_eq!(frame.bytes(), b"Still here");
    }

    #[test]
    fn frames_and_pools_travel_between_threads() {
        let mut pool = Pool::heap(2, 256, 0);
        let frame = filled(&mut pool, b"x");
        let (pool, frame) = std::thread::spawn(move || (pool, frame)).join().unwrap();
        let mut pool = pool;
        pool.put(frame);
        assert_eq!(pool.idle(), 2);
    }
}
