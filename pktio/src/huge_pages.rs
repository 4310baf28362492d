//! An allocator that puts large tables on huge pages, and does not touch what is not used.
//!
//! A look-up in a table of a gigabyte misses the caches, and on pages of 4 KiB it misses the TLB as well. Where the kernel
//! leaves the choice to the program (`transparent_hugepage/enabled` is `madvise`), the program has to ask for huge pages.
//! And where zeroed memory has to begin at a cache line, the system's allocator writes the zeros: all of a table would be resident at once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::ptr;

use crate::mapping::HUGE_PAGE;

/// Bytes of a page, to which memory of its own is aligned.
const PAGE: usize = 4096;

/// The system's allocator for small memory. Memory of two mebibytes or more is mapped for itself, zeroed, with the advice to use huge pages
/// (`madvise(2)`, `MADV_HUGEPAGE`); pages that are never touched take none.
///
/// Nothing depends on whether the kernel has huge pages.
///
/// Where there is no memory, it ends the process with one line ([`out_of_memory`]) and not with an abort, a core dump and two lines of the
/// runtime's, unless the caller of [`may_fail`] can do without.
#[derive(Debug, Clone, Copy, Default)]
pub struct HugePageAllocator;

thread_local! {
    /// Whether this thread can do without the memory that it asks for.
    static MAY_FAIL: Cell<bool> = const { Cell::new(false) };
}

/// Calls a function in which memory may be refused, by methods such as `Vec::try_reserve`, without an end of the process.
pub fn may_fail<T>(allocate: impl FnOnce() -> T) -> T {
    let before = MAY_FAIL.replace(true);
    let result = allocate();
    MAY_FAIL.set(before);
    result
}

/// Ends the process with exit status 1 after one line on the standard error, which allocates nothing.
pub fn out_of_memory(bytes: usize) -> ! {
    // Nothing is left to be done if the line cannot be written.
    let _ = writeln!(
        std::io::stderr(),
        "synproxy: no memory: the system refuses {bytes} bytes; raise `ulimit -v` and `ulimit -d`, or make tables smaller"
    );
    // SAFETY: the process ends at once; nothing of it runs any more, and the kernel takes back what it had open.
    unsafe { libc::_exit(1) }
}

/// The memory of a request of so many bytes; ends the process if it was refused.
fn given(memory: *mut u8, bytes: usize) -> *mut u8 {
    if memory.is_null() && !MAY_FAIL.get() {
        out_of_memory(bytes);
    }
    memory
}

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
        let memory = if is_mapped(layout) { map(layout.size()) } else { unsafe { System.alloc(layout) } };
        given(memory, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        let memory = if is_mapped(layout) { map(layout.size()) } else { unsafe { System.alloc_zeroed(layout) } };
        given(memory, layout.size())
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
            return given(unsafe { System.realloc(memory, layout, size) }, size);
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
