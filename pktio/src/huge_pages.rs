//! An allocator that puts large tables on huge pages.
//!
//! A look-up in a table of a gigabyte misses the caches, and on pages of 4 KiB it misses the TLB as well. Where the kernel
//! leaves the choice to the program (`transparent_hugepage/enabled` is `madvise`), the program has to ask for huge pages.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::mapping::HUGE_PAGE;

/// The system's allocator, which asks for huge pages where they help (`madvise(2)`, `MADV_HUGEPAGE`).
///
/// Nothing depends on whether the kernel has any.
#[derive(Debug, Clone, Copy, Default)]
pub struct HugePageAllocator;

// SAFETY: all methods are the system allocator's; the advice changes nothing but how memory is backed.
unsafe impl GlobalAlloc for HugePageAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller guarantees what the system allocator requires.
        advised(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        advised(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`.
        advised(unsafe { System.realloc(memory, layout, size) }, size)
    }
}

/// The same memory, with the advice given if it is large.
fn advised(memory: *mut u8, size: usize) -> *mut u8 {
    if size >= HUGE_PAGE && !memory.is_null() {
        // The advice is for whole pages, of which the first begins at or behind the memory's beginning.
        let skipped = memory.align_offset(4096);
        // SAFETY: the pages lie inside the memory just allocated, and advice does not change what it holds.
        unsafe { libc::madvise(memory.add(skipped).cast(), (size - skipped) & !4095, libc::MADV_HUGEPAGE) };
    }
    memory
}
