//! An array map of the XDP program, mapped into this process: read and written by plain loads and stores, also after the
//! process has given up the right to make system calls for it.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

/// The values of a map as one row of words.
#[derive(Debug)]
pub(crate) struct Mapped {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping is plain shared memory that lives as long as this value and is only touched through atomics.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first `words` words of an array map made with `BPF_F_MMAPABLE`, whose values are multiples of 8 bytes.
    ///
    /// # Errors
    ///
    /// What the kernel said: it knows no such maps (before Linux 5.5), or this one is shorter.
    pub(crate) fn new(map: BorrowedFd<'_>, words: usize) -> io::Result<Mapped> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at a place the kernel chooses; it refuses one that is longer than the map, rounded up to pages.
        let base = unsafe { libc::mmap(ptr::null_mut(), words * 8, protection, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapped { base: NonNull::new(base.cast()).expect("a successful mmap is not null"), words })
    }
}

impl Deref for Mapped {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds so many words, is aligned to a page, and lives as long as `self`; the kernel's program changes
        // it by whole words, as atomics allow.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing points into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.words * 8) };
    }
}
