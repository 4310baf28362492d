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

#[test]
fn large_zeroed_memory_is_not_resident_before_it_is_used() {
    let resident = || {
        let status = fs::read_to_string("/proc/self/statm").expect("a process can read its own sizes");
        status.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("the second number")
    };
    let layout = Layout::from_size_align(1 << 30, 64).expect("a layout");
    let before = resident();
    // SAFETY: the layout is not empty, what is written lies inside, and what was allocated is freed with it.
    unsafe {
        let memory = HugePageAllocator.alloc_zeroed(layout);
        assert!(memory.addr().is_multiple_of(64) && *std::hint::black_box(memory.add(12_345)) == 0);
        memory.add(1 << 29).write(1);
        // Other tests run beside this one and take some memory.
        assert!(resident().saturating_sub(before) < 1 << 17, "pages of 4 KiB, of a gibibyte");
        HugePageAllocator.dealloc(memory, layout);
    }
}
