//! The memory that the frames of a pool lie in, cut into equal buffers, and its owner.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::frame::{ALIGNMENT, Frame, MAX_BUFFER};

/// Keeps the memory of a pool mapped.
pub(crate) trait MemoryOwner: Send + Sync {
    /// The pool is dropped, and all frames with it: the buffers at these offsets are idle now. Those in the rings are not among them.
    fn regain(&self, _idle: &mut dyn Iterator<Item = usize>) {}

    /// Marks the buffers at these offsets as idle, and returns the file of the memory, for another process that takes over the rings with those that are in
    /// them. `None`: it cannot be taken over.
    fn leave(&self, _idle: &mut dyn Iterator<Item = usize>) -> Option<OwnedFd> {
        None
    }
}

/// Memory cut into equal buffers.
#[derive(Clone)]
pub(crate) struct BufferMemory {
    base: NonNull<u8>,
    /// Number of buffers.
    count: usize,
    /// Bytes of a buffer; a multiple of [`ALIGNMENT`].
    buffer: usize,
    owner: Arc<dyn MemoryOwner>,
}

// SAFETY: plain memory, which `owner` (Send and Sync) keeps mapped; the ownership of frames settles who may touch which buffer.
unsafe impl Send for BufferMemory {}

impl BufferMemory {
    /// `count` buffers of `buffer` bytes each from `base` on.
    ///
    /// # Safety
    ///
    /// `base` points to `count * buffer` bytes, aligned to [`ALIGNMENT`], readable and writable as long as `owner` lives, and
    /// used only by the frames made of this memory (and by the kernel, for buffers lent to it).
    pub(crate) unsafe fn new(
        base: NonNull<u8>,
        count: usize,
        buffer: usize,
        owner: Arc<dyn MemoryOwner>,
    ) -> BufferMemory {
        assert!((base.as_ptr() as usize).is_multiple_of(ALIGNMENT) && buffer.is_multiple_of(ALIGNMENT));
        assert!(buffer <= MAX_BUFFER);
        BufferMemory { base, count, buffer, owner }
    }

    /// Number of buffers.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of a buffer.
    #[inline]
    pub(crate) fn buffer(&self) -> usize {
        self.buffer
    }

    /// What keeps the memory mapped.
    pub(crate) fn owner(&self) -> &Arc<dyn MemoryOwner> {
        &self.owner
    }

    /// The offset of a buffer from the beginning of the memory, in bytes.
    ///
    /// # Panics
    ///
    /// When the buffer belongs to another pool, whose memory might be unmapped at any time.
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
        // SAFETY: the buffer lies inside the memory, as just asserted, and is free, as the caller guarantees; a pool whose frames are not
        // all back when it is dropped leaves the memory mapped.
        unsafe { Frame::over(self.base.add(offset), self.buffer as u32, start as u32, len as u32) }
    }
}

/// Zeroed memory from the allocator. It is held by a raw pointer, since frames write to it while this owner is shared.
pub(super) struct HeapMemory {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the pointer is only used to free the memory, once, on drop.
unsafe impl Send for HeapMemory {}
// SAFETY: as above; nothing can be reached through a shared reference.
unsafe impl Sync for HeapMemory {}

impl HeapMemory {
    pub(super) fn new(bytes: usize) -> HeapMemory {
        let layout = Layout::from_size_align(bytes.max(ALIGNMENT), ALIGNMENT).expect("a pool fits the address space");
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        match NonNull::new(base) {
            Some(base) => HeapMemory { base, layout },
            None => handle_alloc_error(layout),
        }
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl MemoryOwner for HeapMemory {}

impl Drop for HeapMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}
