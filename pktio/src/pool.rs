//! The pool: the idle frames of one worker.

mod memory;

use std::fmt;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::frame::{ALIGNMENT, Frame, MAX_BUFFER};
use memory::HeapMemory;
pub(crate) use memory::{BufferMemory, MemoryOwner};

/// The idle frames of one worker, last in, first out: the buffer used last is still in the cache and goes out next.
///
/// One pool serves both ports of a worker. All memory is allocated when the pool is made.
pub struct Pool {
    idle: Vec<Frame>,
    /// Buffers that are in the rings of the ports.
    lent: usize,
    /// All buffers of the pool, wherever they are.
    total: usize,
    headroom: usize,
    reserve: usize,
    memory: BufferMemory,
}

/// Why [`Pool::gather`] made no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The pool has too few idle buffers.
    NoBuffer,
    /// The frame is longer than the port's maximum, or needs several buffers and this pool's cannot be chained.
    TooLong,
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
        let heap = HeapMemory::new(frames * buffer);
        let (base, heap) = (heap.base(), Arc::new(heap));
        // SAFETY: the memory holds `frames * buffer` bytes, is aligned as required, and lives as long as its owner.
        let memory = unsafe { BufferMemory::new(base, frames, buffer, heap) };
        // SAFETY: the memory is new; no frame over it exists.
        unsafe { Pool::over(memory, headroom) }
    }

    /// A pool of all buffers of `memory`.
    ///
    /// # Safety
    ///
    /// No frame over this memory exists yet.
    pub(crate) unsafe fn over(memory: BufferMemory, headroom: usize) -> Pool {
        assert!(headroom <= memory.buffer(), "the headroom of {headroom} bytes exceeds the buffer");
        // From the last to the first, so that the first buffer is on top.
        let idle = (0..memory.count())
            .rev()
            // SAFETY: one frame is made of each buffer.
            .map(|i| unsafe { memory.frame(i * memory.buffer(), headroom, 0) })
            .collect();
        Pool { idle, lent: 0, total: memory.count(), headroom, reserve: 0, memory }
    }

    /// A pool of those buffers of `memory` that lie at the offsets `idle`, while `lent` others are in the rings of the ports it serves.
    ///
    /// # Safety
    ///
    /// The offsets are multiples of the buffer size inside the memory, each is given once, and nothing else uses those buffers.
    pub(crate) unsafe fn partly(
        memory: BufferMemory,
        headroom: usize,
        idle: impl IntoIterator<Item = usize>,
        lent: usize,
    ) -> Pool {
        assert!(headroom <= memory.buffer(), "the headroom of {headroom} bytes exceeds the buffer");
        // SAFETY: guaranteed by the caller.
        let idle: Vec<_> = idle.into_iter().map(|offset| unsafe { memory.frame(offset, headroom, 0) }).collect();
        Pool { total: idle.len() + lent, idle, lent, headroom, reserve: 0, memory }
    }

    /// An empty frame that begins at the headroom, or `None` when only the reserve of the ports is left.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        if self.idle.len() <= self.reserve {
            return None;
        }
        self.idle.pop()
    }

    /// Like [`take`](Pool::take), but may use the reserve as well: for the ports, which fill their receive rings from it.
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
        // Only for its check that the frame belongs to this pool.
        self.memory.offset(frame.base());
        frame.reset(self.headroom);
        self.idle.push(frame);
    }

    /// Takes the further buffers of `frame` back and leaves it the first, as when a jumbo frame was rewritten into a small one.
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

    /// A frame with these bytes, in as many buffers as they need, or `None` when the pool has too few. It may use the reserve of the
    /// ports: a frame from another worker is received as much as one from a link.
    pub fn adopt(&mut self, bytes: &[u8]) -> Option<Frame> {
        self.gather(&[bytes], usize::MAX).ok()
    }

    /// A frame with the bytes of `parts`, one after the other, in as many buffers as they need.
    ///
    /// Every I/O backend that copies received frames does it here, so it may use the reserve.
    pub(crate) fn gather(&mut self, parts: &[&[u8]], max_frame: usize) -> Result<Frame, Refused> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        // A further buffer keeps its link in its headroom.
        let chainable = self.headroom() >= size_of::<Frame>() && self.buffer() > self.headroom();
        if total > max_frame || (total > self.buffer() - self.headroom() && !chainable) {
            return Err(Refused::TooLong);
        }
        let mut frame = self.take_reserved().ok_or(Refused::NoBuffer)?;
        let mut further: Option<Frame> = None;
        for mut part in parts.iter().copied() {
            while !part.is_empty() {
                let last = further.as_mut().unwrap_or(&mut frame);
                let (start, len) = (last.start(), last.len());
                let room = (last.capacity() - start - len).min(part.len());
                if room == 0 {
                    let next = self.take_reserved();
                    if let Some(full) = further.take() {
                        frame.append(full);
                    }
                    further = next;
                    if further.is_none() {
                        self.put(frame);
                        return Err(Refused::NoBuffer);
                    }
                    continue;
                }
                last.set(start, len + room);
                last.bytes_mut()[len..].copy_from_slice(&part[..room]);
                part = &part[room..];
            }
        }
        if let Some(full) = further {
            frame.append(full);
        }
        Ok(frame)
    }

    /// Idle frames in the pool.
    #[inline]
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Buffers the pool was made with, wherever they are now.
    #[inline]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Buffers that are in the rings of a port. Those that are neither idle nor lent belong to frames that are in use.
    #[inline]
    pub fn lent(&self) -> usize {
        self.lent
    }

    /// Idle frames that are kept for the ports' receive rings.
    #[inline]
    pub fn reserve(&self) -> usize {
        self.reserve
    }

    /// Keeps `frames` idle frames for the ports' receive rings; [`take`](Pool::take) does not hand them out.
    pub fn set_reserve(&mut self, frames: usize) {
        self.reserve = frames;
    }

    /// True when only the reserve is left: a caller that holds received frames back should then drop them instead.
    #[inline]
    pub fn is_low(&self) -> bool {
        self.idle.len() <= self.reserve
    }

    /// Bytes of a buffer.
    #[inline]
    pub fn buffer(&self) -> usize {
        self.memory.buffer()
    }

    /// Where an empty frame begins in its buffer, in bytes.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.headroom
    }

    /// The file of the memory, for another process that takes over the rings with what is in them; and how many buffers of how many bytes lie there. The pool is
    /// not to be used any more. `None`: it cannot be taken over, or somebody holds frames of it.
    pub(crate) fn leave(&self) -> Option<(OwnedFd, usize, usize)> {
        if self.idle.len() + self.lent != self.total {
            // Those that somebody holds would be nobody's.
            return None;
        }
        let memory = &self.memory;
        let file = memory.owner().leave(&mut self.idle.iter().map(|frame| memory.offset(frame.base())))?;
        Some((file, memory.count(), memory.buffer()))
    }

    /// Gives `frame` (one buffer, not a chain) to a ring and returns the offset of its buffer in the memory.
    #[inline]
    pub(crate) fn lend(&mut self, frame: Frame) -> usize {
        debug_assert!(!frame.is_chained());
        let offset = self.memory.offset(frame.base());
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
        // SAFETY: guaranteed by the caller: the ring was the buffer's only holder.
        unsafe { self.memory.frame(offset, start, len) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // A frame that still exists would point into freed memory; the memory then stays.
        if self.idle.len() + self.lent != self.total {
            mem::forget(Arc::clone(self.memory.owner()));
            return;
        }
        let memory = &self.memory;
        memory.owner().regain(&mut self.idle.iter().map(|frame| memory.offset(frame.base())));
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("idle", &self.idle())
            .field("lent", &self.lent)
            .field("total", &self.total())
            .field("buffer", &self.buffer())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::HEADROOM;
    use crate::frame::MAX_FRAME;

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
    #[should_panic(expected = "a frame of another pool")]
    fn a_frame_of_another_pool_is_refused() {
        let mut one = Pool::heap(1, 256, 0);
        let mut other = Pool::heap(1, 256, 0);
        one.put(other.take().unwrap());
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

    #[test]
    fn a_long_frame_is_refused_where_buffers_cannot_be_chained() {
        let mut pool = Pool::heap(4, 256, 0);
        assert!(matches!(pool.gather(&[&[0; 257]], MAX_FRAME), Err(Refused::TooLong)));
        let frame = pool.gather(&[&[0; 256]], MAX_FRAME).unwrap();
        pool.put(frame);
        assert_eq!(pool.idle(), 4);
    }

    proptest! {
        #[test]
        fn gathered_bytes_are_the_parts_joined(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..500), 0..5),
            buffer in 128usize..600,
            frames in 1usize..16,
        ) {
            let mut pool = Pool::heap(frames, buffer, 64);
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let need = parts.concat().len().div_ceil(pool.buffer() - 64).max(1);
            match pool.gather(&slices, MAX_FRAME) {
                Ok(frame) => {
                    prop_assert_eq!(frame.segments().collect::<Vec<_>>().concat(), parts.concat());
                    prop_assert_eq!(frame.total(), parts.concat().len());
                    prop_assert_eq!(frame.buffers(), need);
                    pool.put(frame);
                }
                Err(refused) => prop_assert!(refused == Refused::NoBuffer && need > frames),
            }
            prop_assert_eq!(pool.idle(), frames);
        }
    }
}
