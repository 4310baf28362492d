//! An allocator that puts large tables on huge pages, and does not touch what is not used.
//!
//! A look-up in a table of a gigabyte misses the caches, and on pages of 4 KiB it misses the TLB as well. Where the kernel
//! leaves the choice to the program (`transparent_hugepage/enabled` is `madvise`), the program has to ask for huge pages.
//! And where zeroed memory has to begin at a cache line, the system's allocator writes the zeros: all of a table would be resident at once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

use crate::mapping::HUGE_PAGE;

/// Bytes of a page, to which memory of its own is aligned.
const PAGE: usize = 4096;

/// The system's allocator for small memory. Memory of two mebibytes or more is mapped for itself, zeroed, with the advice to use huge pages
/// (`madvise(2)`, `MADV_HUGEPAGE`); pages that are never touched take none.
///
/// Nothing depends on whether the kernel has huge pages.
#[derive(Debug, Clone, Copy, Default)]
pub struct HugePageAllocator;

/// Whether memory of this layout is mapped for itself.
fn is_mapped(layout: Layout) -> bool {
    layout.size() >= HUGE_PAGE && layout.align() <= PAGE
}

/// Maps zeroed memory of so many bytes; null if there is none.
fn map(size: usize) -> *mut u8 {
    let (read_write, private) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: a new mapping touches no memory there is.
    let memory = unsafe { libc::mmap(ptr::null_mut(), size, read_write, private, -1, 0) };
    if memory == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    // SAFETY: the mapping was just made, and advice does not change what it holds.
    unsafe { libc::madvise(memory, size, libc::MADV_HUGEPAGE) };
    memory.cast()
}

// SAFETY: small memory is the system allocator's in every method; large memory is a mapping of its own from `map`, page-aligned and of at least the
// size asked for, which only `dealloc` and `realloc` with the same layout unmap.
unsafe impl GlobalAlloc for HugePageAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller guarantees what the system allocator requires.
        if is_mapped(layout) { map(layout.size()) } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        if is_mapped(layout) { map(layout.size()) } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if is_mapped(layout) {
            // SAFETY: memory of this layout is a mapping of this size, and nobody uses it any more.
            unsafe { libc::munmap(memory.cast(), layout.size()) };
        } else {
            // SAFETY: as in `alloc`.
            unsafe { System.dealloc(memory, layout) }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that `size`, rounded up to the alignment, does not overflow.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if !is_mapped(layout) && !is_mapped(wanted) {
            // SAFETY: as in `alloc`.
            return unsafe { System.realloc(memory, layout, size) };
        }
        // SAFETY: both pieces hold what is copied and do not overlap; the old one is of the old layout.
        unsafe {
            let grown = self.alloc(wanted);
            if !grown.is_null() {
                ptr::copy_nonoverlapping(memory, grown, size.min(layout.size()));
                self.dealloc(memory, layout);
            }
            grown
        }
    }
}
