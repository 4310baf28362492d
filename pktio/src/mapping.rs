//! One mapping of memory, unmapped when it is dropped.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

/// The size of a huge page, in bytes: less memory has no use for one.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// Readable and writable memory from `mmap(2)`, zeroed or of a file; it begins at a page.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping is memory of the process, not of a thread; how it is accessed is up to those who use its address.
unsafe impl Send for Mapping {}
// SAFETY: a shared reference gives the address and the length away, and the words as atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed private memory. Pages that were never touched take no memory, and none is reserved for them.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub(crate) fn anonymous(bytes: usize) -> io::Result<Mapping> {
        Mapping::new(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0)
    }

    /// The first `bytes` bytes of what `file` refers to (a file, a socket's ring, a BPF map), shared with everything else that maps it.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub(crate) fn shared(file: BorrowedFd<'_>, bytes: usize) -> io::Result<Mapping> {
        Mapping::new(bytes, libc::MAP_SHARED, file.as_raw_fd(), 0)
    }

    /// So many bytes from an offset on, with all their pages in place: of a socket's rings, which an offset names.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub(crate) fn shared_from(file: BorrowedFd<'_>, offset: libc::off_t, bytes: usize) -> io::Result<Mapping> {
        Mapping::new(bytes, libc::MAP_SHARED | libc::MAP_POPULATE, file.as_raw_fd(), offset)
    }

    fn new(bytes: usize, flags: libc::c_int, fd: libc::c_int, offset: libc::off_t) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { base: NonNull::new(base.cast()).expect("a successful mmap is not null"), bytes })
    }

    /// The address of the first byte.
    #[inline]
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The length, in bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Asks for huge pages (`MADV_HUGEPAGE`): a random look-up in gigabytes otherwise misses the TLB as well. Nothing depends on it.
    pub(crate) fn advise_huge_pages(&self) {
        if self.bytes >= HUGE_PAGE {
            // SAFETY: the advice does not change what the mapping holds.
            unsafe { libc::madvise(self.base.as_ptr().cast(), self.bytes, libc::MADV_HUGEPAGE) };
        }
    }

    /// The whole words of the mapping.
    ///
    /// # Safety
    ///
    /// Nothing accesses the mapping through [`base`](Mapping::base) but by whole, aligned words.
    #[inline]
    pub(crate) unsafe fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds this many words, is aligned to a page, and lives as long as `self`; every value is a valid word, and
        // the caller excludes other accesses than those atomics allow.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.bytes / 8) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; those who use its address keep the mapping alive.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
