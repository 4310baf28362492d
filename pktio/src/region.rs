//! Memory that is handed to the engine: the slab of the flow table, filters, and other tables that outlive a call or the process.
//!
//! A [`Region`] is a zeroed anonymous mapping, or a file mapped shared, whose content outlives the process when the file is on a `tmpfs`
//! (and the machine when it is on a disk). It becomes a slice that lives as long as the process: of plain words for one owner
//! ([`Region::into_words`]), or of atomic words for several ([`Region::into_atomics`]).
//!
//! ```
//! use pktio::region::Region;
//!
//! let slab: &'static mut [u64] = Region::anonymous(1 << 20)?.into_words();
//! assert!(slab.len() == 1 << 20 && slab[4711] == 0);
//! # Ok::<(), pktio::region::RegionError>(())
//! ```
//!
//! What is in a file is input: another version, or a program of the same user, may have written it. It is parsed, never trusted.
//!
//! # Safety of file regions
//!
//! Truncating a mapped file makes every access beyond its new end fatal (SIGBUS), and a foreign write would change words behind a Rust
//! reference. Both take a program that may open the file and ignores its lock. So the file must belong to the effective user of this
//! process and must not be accessible to others (mode 0600): a program that can write it can as well write the memory of this process.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::atomic::AtomicU64;

use crate::mapping::Mapping;

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// Zeroed memory, or the memory of a file; in words of 64 bits.
///
/// Dropping it unmaps the memory and unlocks the file. The slices that are made of it stay mapped, and the file locked, until the
/// process ends.
#[derive(Debug)]
pub struct Region {
    mapping: Mapping,
    /// The file, which stays locked as long as it is open.
    _lock: Option<File>,
    is_new: bool,
}

/// Why there is no region.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// A region has at least one word.
    #[error("a region of no words")]
    Empty,
    /// The region does not fit the address space.
    #[error("a region of {words} words does not fit the address space")]
    TooLarge {
        /// Words that were asked for.
        words: usize,
    },
    /// The kernel refused an anonymous mapping.
    #[error("{bytes} bytes of memory: {source}")]
    Memory {
        /// Bytes that were asked for.
        bytes: usize,
        /// The kernel's error.
        source: io::Error,
    },
    /// The file exists and is shorter than the region.
    #[error("{}: {found} bytes, too few for a region of {expected}", path.display())]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Its size, in bytes.
        found: u64,
        /// The size of the region, in bytes.
        expected: u64,
    },
    /// The file exists and is longer than the region.
    #[error("{}: {found} bytes, which is not the {expected} bytes of the region", path.display())]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// Its size, in bytes.
        found: u64,
        /// The size of the region, in bytes.
        expected: u64,
    },
    /// The file system has no room for the whole region.
    #[error("{}: no space for {bytes} bytes", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// The size of the region, in bytes.
        bytes: u64,
    },
    /// Another process, or another region of this one, has locked the file.
    #[error("{}: another process is using it", path.display())]
    Held {
        /// The file.
        path: PathBuf,
    },
    /// The file is no regular file of this user alone.
    #[error("{}: not a regular file that only this user can access (`chmod 600`, `chown`)", path.display())]
    NotPrivate {
        /// The file.
        path: PathBuf,
    },
    /// Another error of the file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

impl Region {
    /// `words` zeroed words of anonymous memory, on huge pages where the kernel has them. Pages that are never touched take no memory.
    ///
    /// # Errors
    ///
    /// [`Empty`](RegionError::Empty), [`TooLarge`](RegionError::TooLarge) or [`Memory`](RegionError::Memory).
    pub fn anonymous(words: usize) -> Result<Region, RegionError> {
        let bytes = bytes_of(words)?;
        let mapping = Mapping::anonymous(bytes).map_err(|source| RegionError::Memory { bytes, source })?;
        mapping.advise_huge_pages();
        Ok(Region { mapping, _lock: None, is_new: true })
    }

    /// The `words` words of the file at `path`. A file that does not exist, or is empty, becomes a zeroed one with mode 0600; any other is
    /// taken as it is. Its blocks are allocated in full, so that no later access fails for lack of space, and it is locked (`flock(2)`)
    /// against other processes.
    ///
    /// # Errors
    ///
    /// All of [`RegionError`] but [`Memory`](RegionError::Memory). An existing file is left as it was; a new one is removed.
    pub fn file(path: impl AsRef<Path>, words: usize) -> Result<Region, RegionError> {
        let path = path.as_ref();
        let bytes = bytes_of(words)?;
        let io = |source| RegionError::Io { path: path.into(), source };
        let (file, is_created) = open(path).map_err(io)?;
        let region = lock(&file, path).and_then(|()| {
            let is_new = allocate(&file, path, bytes as u64)?;
            let mapping = Mapping::shared(file.as_fd(), bytes).map_err(io)?;
            mapping.advise_huge_pages();
            Ok((mapping, is_new))
        });
        match region {
            Ok((mapping, is_new)) => Ok(Region { mapping, _lock: Some(file), is_new }),
            Err(error) => {
                if is_created && !matches!(error, RegionError::Held { .. }) {
                    // It holds nothing. The lock is held until the file is closed.
                    let _ = std::fs::remove_file(path);
                }
                Err(error)
            }
        }
    }

    /// Whether the memory is zeroed because it was just made, as opposed to read from a file that existed.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Number of words.
    #[expect(clippy::len_without_is_empty, reason = "no region is empty")]
    pub fn len(&self) -> usize {
        self.mapping.bytes() / WORD
    }

    /// The memory for one owner, mapped (and its file locked) until the process ends.
    pub fn into_words(self) -> &'static mut [u64] {
        let (base, len) = (self.mapping.base(), self.len());
        mem::forget(self);
        // SAFETY: the mapping holds so many words, is aligned to a page, is never unmapped, and nothing else in this process refers to it:
        // it was private to `self`. Other processes are kept out as the module's documentation says.
        unsafe { slice::from_raw_parts_mut(base.as_ptr().cast(), len) }
    }

    /// The memory for several owners, mapped (and its file locked) until the process ends.
    pub fn into_atomics(self) -> &'static [AtomicU64] {
        let (base, len) = (self.mapping.base(), self.len());
        mem::forget(self);
        // SAFETY: as in `into_words`; atomic words may be shared.
        unsafe { slice::from_raw_parts(base.as_ptr().cast(), len) }
    }
}

/// The size of `words` words, in bytes.
fn bytes_of(words: usize) -> Result<usize, RegionError> {
    match words.checked_mul(WORD).filter(|&bytes| isize::try_from(bytes).is_ok()) {
        None => Err(RegionError::TooLarge { words }),
        Some(0) => Err(RegionError::Empty),
        Some(bytes) => Ok(bytes),
    }
}

/// Opens the file, or creates it; returns whether it was created.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            options.create_new(true).open(path).map(|file| (file, true))
        }
        result => result.map(|file| (file, false)),
    }
}

/// Checks that the file is this user's alone, and locks it.
fn lock(file: &File, path: &Path) -> Result<(), RegionError> {
    let io = |source| RegionError::Io { path: path.into(), source };
    let metadata = file.metadata().map_err(io)?;
    // SAFETY: the call has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    if !metadata.is_file() || metadata.uid() != user || metadata.mode() & 0o077 != 0 {
        return Err(RegionError::NotPrivate { path: path.into() });
    }
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(RegionError::Held { path: path.into() }),
        Err(std::fs::TryLockError::Error(source)) => Err(io(source)),
    }
}

/// Gives an empty file its size, or checks the size of another, and allocates all blocks. Returns whether the file was empty.
fn allocate(file: &File, path: &Path, expected: u64) -> Result<bool, RegionError> {
    let io = |source| RegionError::Io { path: path.into(), source };
    // Read after the file was locked: its former owner may have been about to set it.
    let found = file.metadata().map_err(io)?.len();
    let path = path.to_path_buf();
    match found {
        0 => {}
        _ if found < expected => return Err(RegionError::TooSmall { path, found, expected }),
        _ if found > expected => return Err(RegionError::WrongSize { path, found, expected }),
        _ => {}
    }
    let length =
        libc::off_t::try_from(expected).map_err(|_| RegionError::NoSpace { path: path.clone(), bytes: expected })?;
    loop {
        // SAFETY: the descriptor is open, and no pointer is passed.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } == 0 {
            return Ok(found == 0);
        }
        let source = io::Error::last_os_error();
        match source.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
                return Err(RegionError::NoSpace { path, bytes: expected });
            }
            _ => return Err(RegionError::Io { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::Ordering;

    use super::*;

    /// A file on a `tmpfs`, removed at the end.
    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str) -> Temporary {
            Temporary(PathBuf::from(format!("/dev/shm/pktio-region-{}-{name}", std::process::id())))
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    /// The words of a region that is not a slice yet.
    fn words(region: &Region) -> &[AtomicU64] {
        // SAFETY: the tests access a region in no other way.
        unsafe { region.mapping.words() }
    }

    /// How much of the mapping that holds this address takes memory, in KiB.
    fn resident(address: usize) -> u64 {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            let number = |text: &str| usize::from_str_radix(text, 16).ok();
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            if let Some((Some(from), Some(to))) = range.map(|(from, to)| (number(from), number(to))) {
                inside = (from..to).contains(&address);
            }
            if let Some(rest) = line.strip_prefix("Rss:").filter(|_| inside) {
                return rest.trim().trim_end_matches(" kB").parse().unwrap();
            }
        }
        panic!("no mapping holds {address:x}");
    }

    #[test]
    fn anonymous_memory_is_zeroed_and_only_touched_pages_take_any() {
        // 1 GiB.
        let region = Region::anonymous(1 << 27).unwrap();
        assert!(region.is_new() && region.len() == 1 << 27);
        let words = region.into_words();
        let middle = words.len() / 2;
        let address = &raw const words[middle] as usize;
        assert_eq!(resident(address), 0);
        assert_eq!(words[middle], 0);
        words[middle] = 7;
        // At most a huge page on either side of the middle.
        assert!((1..=4096).contains(&resident(address)), "{} KiB", resident(address));
        assert_eq!((words[0], words[middle], words[words.len() - 1]), (0, 7, 0));
    }

    #[test]
    fn a_new_file_is_zeroed_and_private_and_the_next_region_over_it_has_its_words() {
        let path = Temporary::new("kept");
        let region = Region::file(&path.0, 1000).unwrap();
        assert!(region.is_new() && region.len() == 1000);
        assert!(words(&region).iter().all(|word| word.load(Ordering::Relaxed) == 0));
        let metadata = fs::metadata(&path.0).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.len()), (0o600, 8000));
        assert!(metadata.blocks() * 512 >= 8000, "allocated in full");
        words(&region)[999].store(0x1234_5678, Ordering::Relaxed);
        drop(region);
        let region = Region::file(&path.0, 1000).unwrap();
        assert!(!region.is_new());
        let words = region.into_words();
        assert_eq!((words.len(), words[998], words[999]), (1000, 0, 0x1234_5678));
        words[0] = 1;
        assert_eq!(fs::read(&path.0).unwrap()[..8], 1_u64.to_ne_bytes(), "others see it at once");
    }

    #[test]
    fn a_file_that_was_created_and_never_sized_is_taken_as_new() {
        let path = Temporary::new("empty");
        fs::write(&path.0, b"").unwrap();
        fs::set_permissions(&path.0, Permissions::from_mode(0o600)).unwrap();
        assert!(Region::file(&path.0, 8).unwrap().is_new());
        assert!(!Region::file(&path.0, 8).unwrap().is_new());
    }

    #[test]
    fn a_file_of_another_size_is_refused_and_left_as_it_was() {
        let path = Temporary::new("size");
        drop(Region::file(&path.0, 1000).unwrap());
        let error = Region::file(&path.0, 1001).unwrap_err();
        assert!(matches!(error, RegionError::TooSmall { found: 8000, expected: 8008, .. }), "{error}");
        let error = Region::file(&path.0, 999).unwrap_err();
        assert!(matches!(error, RegionError::WrongSize { found: 8000, expected: 7992, .. }), "{error}");
        assert_eq!(fs::metadata(&path.0).unwrap().len(), 8000);
    }

    #[test]
    fn a_file_in_use_is_refused_until_the_region_is_dropped_and_a_slice_keeps_it_locked() {
        let path = Temporary::new("lock");
        let region = Region::file(&path.0, 64).unwrap();
        assert!(matches!(Region::file(&path.0, 64), Err(RegionError::Held { .. })));
        drop(region);
        let region = Region::file(&path.0, 64).unwrap();
        let words = region.into_atomics();
        words[63].fetch_add(5, Ordering::Relaxed);
        assert!(matches!(Region::file(&path.0, 64), Err(RegionError::Held { .. })));
        assert_eq!((words.len(), words[63].load(Ordering::Relaxed)), (64, 5));
    }

    #[test]
    fn a_file_system_without_room_for_it_is_an_error_and_leaves_no_file() {
        let path = Temporary::new("space");
        let directory = CString::new("/dev/shm").unwrap();
        // SAFETY: all zero is a valid structure, which the kernel fills; the path is a C string.
        let size = unsafe {
            let mut found: libc::statvfs = mem::zeroed();
            assert_eq!(libc::statvfs(directory.as_ptr(), &raw mut found), 0);
            found.f_blocks * found.f_frsize
        };
        assert!(size > 0, "a tmpfs with a size");
        let error = Region::file(&path.0, (size as usize + (1 << 20)) / WORD).unwrap_err();
        assert!(matches!(error, RegionError::NoSpace { .. }), "{error}");
        assert!(!path.0.exists());
    }

    #[test]
    fn a_file_that_others_may_access_is_refused_and_so_is_a_link() {
        let (path, link) = (Temporary::new("mode"), Temporary::new("link"));
        drop(Region::file(&path.0, 8).unwrap());
        symlink(&path.0, &link.0).unwrap();
        let error = Region::file(&link.0, 8).unwrap_err();
        assert!(
            matches!(&error, RegionError::Io { source, .. } if source.raw_os_error() == Some(libc::ELOOP)),
            "{error}"
        );
        fs::set_permissions(&path.0, Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Region::file(&path.0, 8), Err(RegionError::NotPrivate { .. })));
        assert!(matches!(Region::file("/dev/null", 8), Err(RegionError::NotPrivate { .. })));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        assert!(matches!(Region::anonymous(0), Err(RegionError::Empty)));
        assert!(matches!(Region::anonymous(usize::MAX / 8 + 1), Err(RegionError::TooLarge { .. })));
        assert!(matches!(Region::anonymous(1 << 59), Err(RegionError::Memory { .. })));
    }
}
