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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Whether the kernel gives huge pages to programs that ask.
    fn gives_huge_pages() -> bool {
        fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|text| !text.contains("[never]"))
    }

    /// The flags of the mapping that holds this address.
    fn flags(address: usize) -> String {
        let maps = fs::read_to_string("/proc/self/smaps").expect("a process can read its own mappings");
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            if let Some((Ok(from), Ok(to))) =
                range.map(|(from, to)| (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)))
            {
                inside = (from..to).contains(&address);
            }
            if inside && line.starts_with("VmFlags:") {
                return line.to_owned();
            }
        }
        panic!("no mapping holds {address:x}");
    }

    #[test]
    fn large_memory_is_advised_and_small_memory_is_not() {
        if !gives_huge_pages() {
            println!("skipped: this kernel gives no huge pages");
            return;
        }
        for (size, large) in [(64 << 20, true), (1 << 20, false)] {
            let layout = Layout::from_size_align(size, 64).unwrap();
            // SAFETY: the layout is not empty, and what was allocated is freed with it.
            unsafe {
                let memory = HugePageAllocator.alloc_zeroed(layout);
                let middle = memory as usize + size / 2;
                assert_eq!(flags(middle).split(' ').any(|flag| flag == "hg"), large, "{size} bytes: {}", flags(middle));
                let memory = HugePageAllocator.realloc(memory, layout, 2 * size);
                let layout = Layout::from_size_align(2 * size, 64).unwrap();
                let middle = memory as usize + size;
                assert!(flags(middle).split(' ').any(|flag| flag == "hg") || !large);
                HugePageAllocator.dealloc(memory, layout);
            }
        }
    }
}
