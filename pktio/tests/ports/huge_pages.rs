//! Whether the kernel was told to back large memory with huge pages.

use std::alloc::{GlobalAlloc, Layout};
use std::fs;

use harness::test;
use pktio::HugePageAllocator;

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
        harness::ignore("this kernel gives no huge pages");
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
