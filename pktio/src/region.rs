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
use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
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
    file: Option<File>,
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
        Ok(Region { mapping, file: None, is_new: true })
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
            Ok((mapping, is_new)) => Ok(Region { mapping, file: Some(file), is_new }),
            Err(error) => {
                if is_created && !matches!(error, RegionError::Held { .. }) {
                    // It holds nothing. The lock is held until the file is closed.
                    let _ = std::fs::remove_file(path);
                }
                Err(error)
            }
        }
    }

    /// The file at `path`, which must not exist: zeroed words, as in [`file`](Region::file).
    ///
    /// # Errors
    ///
    /// As [`file`](Region::file), and if the file exists.
    pub fn create(path: impl AsRef<Path>, words: usize) -> Result<Region, RegionError> {
        let path = path.as_ref();
        let bytes = bytes_of(words)?;
        let file =
            options().create_new(true).open(path).map_err(|source| RegionError::Io { path: path.into(), source })?;
        let region = lock(&file, path).and_then(|()| Region::over(file, path, bytes));
        region.inspect_err(|_| {
            // It holds nothing.
            let _ = std::fs::remove_file(path);
        })
    }

    /// All whole words of the file at `path`, as they are: locked and allocated as in [`file`](Region::file).
    ///
    /// # Errors
    ///
    /// As [`file`](Region::file), and if there is no such file.
    pub fn existing(path: impl AsRef<Path>) -> Result<Region, RegionError> {
        let path = path.as_ref();
        let io = |source| RegionError::Io { path: path.into(), source };
        let file = options().open(path).map_err(io)?;
        lock(&file, path)?;
        let bytes = file.metadata().map_err(io)?.len();
        let words = usize::try_from(bytes / WORD as u64).map_err(|_| RegionError::TooLarge { words: usize::MAX })?;
        Region::over(file, path, bytes_of(words)?)
    }

    /// All whole words of the file at `path`, which another process has locked: for words by which the two tell each other something.
    ///
    /// # Errors
    ///
    /// If there is no such file, or it is not this user's alone.
    pub fn of_another(path: impl AsRef<Path>) -> Result<Region, RegionError> {
        let path = path.as_ref();
        let io = |source| RegionError::Io { path: path.into(), source };
        let file = options().open(path).map_err(io)?;
        is_private(&file, path)?;
        let bytes = file.metadata().map_err(io)?.len();
        let words = usize::try_from(bytes / WORD as u64).map_err(|_| RegionError::TooLarge { words: usize::MAX })?;
        Region::over(file, path, bytes_of(words)?)
    }

    /// The `bytes` bytes of a file that is locked, which holds as many or none.
    fn over(file: File, path: &Path, bytes: usize) -> Result<Region, RegionError> {
        // A part of a word at the end is nobody's.
        let found = file.metadata().map_err(|source| RegionError::Io { path: path.into(), source })?.len();
        let whole = if found == 0 { bytes as u64 } else { found };
        let is_new = allocate(&file, path, whole)?;
        let mapping =
            Mapping::shared(file.as_fd(), bytes).map_err(|source| RegionError::Io { path: path.into(), source })?;
        mapping.advise_huge_pages();
        Ok(Region { mapping, file: Some(file), is_new })
    }

    /// `words` zeroed words in a memory file without a path (`memfd_create(2)`), sealed against a change of its size, so that nobody who is handed
    /// its [descriptor](Region::descriptor) can take pages away. `name` is what `/proc` shows of it.
    ///
    /// # Errors
    ///
    /// All of [`RegionError`] but [`Held`](RegionError::Held) and [`NotPrivate`](RegionError::NotPrivate).
    pub fn sealed(name: &str, words: usize) -> Result<Region, RegionError> {
        let path = PathBuf::from(format!("memfd:{name}"));
        let bytes = bytes_of(words)?;
        let file = memory_file(name, &path, bytes)?;
        Region::over(file, &path, bytes)
    }

    /// All whole words of a memory file that [`sealed`](Region::sealed) has made, as they are, by its descriptor.
    ///
    /// # Errors
    ///
    /// If it is another file, or is not sealed.
    pub fn of_descriptor(descriptor: OwnedFd, name: &str) -> Result<Region, RegionError> {
        let path = PathBuf::from(format!("memfd:{name}"));
        let io = |source| RegionError::Io { path: path.clone(), source };
        if !is_sealed(descriptor.as_fd()) {
            return Err(io(io::Error::other("it is no memory file that is sealed against a change of its size")));
        }
        let file = File::from(descriptor);
        let bytes = file.metadata().map_err(io)?.len();
        let words = usize::try_from(bytes / WORD as u64).map_err(|_| RegionError::TooLarge { words: usize::MAX })?;
        Region::over(file, &path, bytes_of(words)?)
    }

    /// The file it lies in, if it lies in one: to be kept by somebody else.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Its words, to be read while nobody writes them: what another process has left, and this one has not begun to use.
    pub fn words(&mut self) -> &[u64] {
        // SAFETY: the mapping holds so many words, is aligned to a page, and lives as long as `self`, which nothing else in this process refers to. Other
        // processes are kept out as the module's documentation says.
        unsafe { slice::from_raw_parts(self.mapping.base().as_ptr().cast(), self.len()) }
    }

    /// Writes these words from a place on, before the memory is used; false, changing nothing, if it has not so many.
    pub fn fill(&mut self, from: usize, words: &[u64]) -> bool {
        if from.checked_add(words.len()).is_none_or(|end| end > self.len()) {
            return false;
        }
        // SAFETY: the mapping has so many words from there on, and nothing else in this process refers to it; the other slice is elsewhere.
        unsafe {
            let to = self.mapping.base().as_ptr().cast::<u64>().add(from);
            std::ptr::copy_nonoverlapping(words.as_ptr(), to, words.len());
        }
        true
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
        let (words, lock) = self.into_locked_words();
        mem::forget(lock);
        words
    }

    /// The memory for one owner, mapped until the process ends, and what keeps others out of its file.
    pub fn into_locked_words(self) -> (&'static mut [u64], RegionLock) {
        let (base, len, lock) = self.leak();
        // SAFETY: the mapping holds so many words, is aligned to a page, is never unmapped, and nothing else in this process refers to it:
        // it was private to the region. Other processes are kept out as the module's documentation says.
        (unsafe { slice::from_raw_parts_mut(base.as_ptr().cast(), len) }, lock)
    }

    /// The memory for several owners, mapped (and its file locked) until the process ends.
    pub fn into_atomics(self) -> &'static [AtomicU64] {
        let (words, lock) = self.into_locked_atomics();
        mem::forget(lock);
        words
    }

    /// The memory for several owners, mapped until the process ends, and what keeps others out of its file.
    pub fn into_locked_atomics(self) -> (&'static [AtomicU64], RegionLock) {
        let (base, len, lock) = self.leak();
        // SAFETY: as in `into_locked_words`; atomic words may be shared.
        (unsafe { slice::from_raw_parts(base.as_ptr().cast(), len) }, lock)
    }

    /// Where the memory is, how many words, and what keeps others out; it stays mapped.
    fn leak(self) -> (std::ptr::NonNull<u8>, usize, RegionLock) {
        let (base, len) = (self.mapping.base(), self.len());
        mem::forget(self.mapping);
        (base, len, RegionLock(self.file))
    }
}

/// Keeps other processes out of a region's file. It is dropped before the process ends only where nothing in this process uses the memory any more: the
/// next process then does.
#[derive(Debug)]
pub struct RegionLock(Option<File>);

impl Drop for RegionLock {
    fn drop(&mut self) {
        // The mapping refers to the file as well, so that closing this descriptor unlocks nothing. Unlocking fails for no file that is open.
        if let Some(file) = &self.0 {
            let _ = file.unlock();
        }
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

/// The seals that keep a memory file its size for every holder of its descriptor.
const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Gives the pages of a file that hold nothing but zeros back to the file system, as long as no region is over it: its size stays, and the next region
/// allocates them again. Returns how many bytes the file takes now.
///
/// # Errors
///
/// As [`Region::existing`], and where the file system has no holes.
pub fn trim(path: impl AsRef<Path>) -> Result<u64, RegionError> {
    let path = path.as_ref();
    let io = |source| RegionError::Io { path: path.into(), source };
    let mut file = options().open(path).map_err(io)?;
    lock(&file, path)?;
    let mut part = vec![0; TRIMMED_AT_ONCE];
    let mut at = 0;
    loop {
        let length = file.read(&mut part).map_err(io)?;
        if length == 0 {
            return Ok(512 * file.metadata().map_err(io)?.blocks());
        }
        if part[..length].iter().all(|byte| *byte == 0) {
            punch(&file, at, length).map_err(io)?;
        }
        at += length as u64;
    }
}

/// Bytes that [`trim`] looks at, and gives back, at once: a page.
const TRIMMED_AT_ONCE: usize = 4096;

/// Makes a hole in a file.
fn punch(file: &File, at: u64, length: usize) -> io::Result<()> {
    let (Ok(at), Ok(length)) = (libc::off_t::try_from(at), libc::off_t::try_from(length)) else {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open, and no pointer is passed.
    if unsafe { libc::fallocate(file.as_raw_fd(), mode, at, length) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// How files are opened.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// A descriptor that this process was started with, by its number, if it is one of a memory file; it closes at the next `exec`.
pub fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: neither call has a pointer, and a number that is not open is an error.
    let is_one = number > 2
        && unsafe { libc::fcntl(number, libc::F_GET_SEALS) } >= 0
        && unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // SAFETY: the number is that of an open memory file, which this process has not opened itself: it was handed over at the start.
    is_one.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Words that nobody else has, for several owners from now on.
pub fn atomics(words: &'static mut [u64]) -> &'static [AtomicU64] {
    // SAFETY: atomic words are as large and as aligned as plain ones, and the only reference to these is given up.
    unsafe { slice::from_raw_parts(words.as_mut_ptr().cast(), words.len()) }
}

/// Opens the file, or creates it; returns whether it was created.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut options = options();
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            options.create_new(true).open(path).map(|file| (file, true))
        }
        result => result.map(|file| (file, false)),
    }
}

/// Checks that the file is this user's alone, and locks it.
fn lock(file: &File, path: &Path) -> Result<(), RegionError> {
    is_private(file, path)?;
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(RegionError::Held { path: path.into() }),
        Err(std::fs::TryLockError::Error(source)) => Err(RegionError::Io { path: path.into(), source }),
    }
}

/// Checks that the file is this user's alone.
fn is_private(file: &File, path: &Path) -> Result<(), RegionError> {
    let io = |source| RegionError::Io { path: path.into(), source };
    let metadata = file.metadata().map_err(io)?;
    // SAFETY: the call has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    if !metadata.is_file() || metadata.uid() != user || metadata.mode() & 0o077 != 0 {
        return Err(RegionError::NotPrivate { path: path.into() });
    }
    Ok(())
}

/// A memory file of so many zeroed bytes, without a path, sealed against a change of its size.
///
/// # Errors
///
/// Those of `memfd_create(2)`, and when there is no room for it.
pub(crate) fn sealed_file(name: &str, bytes: usize) -> io::Result<File> {
    memory_file(name, Path::new(name), bytes).map_err(|error| match error {
        RegionError::Io { source, .. } => source,
        RegionError::NoSpace { .. } => io::Error::from_raw_os_error(libc::ENOMEM),
        error => io::Error::other(error),
    })
}

fn memory_file(name: &str, path: &Path, bytes: usize) -> Result<File, RegionError> {
    let io = |source| RegionError::Io { path: path.into(), source };
    let c_name = std::ffi::CString::new(name).map_err(|error| io(error.into()))?;
    // SAFETY: the name is a C string, and the call has no other pointer.
    let create =
        |flags| unsafe { libc::memfd_create(c_name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | flags) };
    // Some machines make no file that could be executed (`vm.memfd_noexec`); kernels before 6.3 do not know the flag.
    let fd = match create(libc::MFD_NOEXEC_SEAL) {
        fd if fd < 0 => create(0),
        fd => fd,
    };
    if fd < 0 {
        return Err(io(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor was just opened, and nothing else has it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    allocate(&file, path, bytes as u64)?;
    // SAFETY: the descriptor is open, and no pointer is passed.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) } != 0 {
        return Err(io(io::Error::last_os_error()));
    }
    Ok(file)
}

/// Whether it is a memory file that is sealed against a change of its size.
pub(crate) fn is_sealed(file: BorrowedFd<'_>) -> bool {
    // SAFETY: the descriptor is open, and no pointer is passed.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & SEALS == SEALS
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
    // Nothing is to be done for a file that another process has left, which takes the kernel as long as if there were.
    if file.metadata().is_ok_and(|it| it.blocks() >= expected.div_ceil(512)) {
        return Ok(found == 0);
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
        let path = Temporary::new("unlocked");
        let (words, lock) = Region::file(&path.0, 64).unwrap().into_locked_words();
        words[63] = 5;
        assert!(matches!(Region::file(&path.0, 64), Err(RegionError::Held { .. })));
        drop(lock);
        assert_eq!(Region::file(&path.0, 64).unwrap().words()[63], 5, "what was written stays mapped for both");
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
    fn a_file_is_created_once_and_taken_as_it_is_afterwards() {
        let path = Temporary::new("once");
        assert!(matches!(Region::existing(&path.0), Err(RegionError::Io { .. })), "there is none");
        let mut region = Region::create(&path.0, 100).unwrap();
        assert!(region.is_new() && region.words() == [0; 100]);
        assert!(matches!(Region::create(&path.0, 100), Err(RegionError::Io { .. })), "there is one");
        assert!(matches!(Region::existing(&path.0), Err(RegionError::Held { .. })));
        drop(region);
        fs::write(&path.0, [7; 8 * 50 + 3]).unwrap();
        let mut region = Region::existing(&path.0).unwrap();
        assert!(!region.is_new() && region.words() == [0x0707_0707_0707_0707; 50], "whole words only");
        drop(region);
        fs::write(&path.0, b"").unwrap();
        assert!(matches!(Region::existing(&path.0), Err(RegionError::Empty)));
    }

    #[test]
    fn a_sealed_memory_file_keeps_its_words_and_its_size() {
        let region = Region::sealed("synproxy-test", 1000).unwrap();
        let descriptor = region.descriptor().unwrap().try_clone_to_owned().unwrap();
        region.into_words()[999] = 5;
        let file = File::from(descriptor.try_clone().unwrap());
        assert_eq!(file.set_len(8).unwrap_err().raw_os_error(), Some(libc::EPERM), "it cannot be truncated");
        let mut region = Region::of_descriptor(descriptor, "synproxy-test").unwrap();
        assert_eq!((region.len(), region.words()[999]), (1000, 5));
        let path = Temporary::new("unsealed");
        let other = File::create(&path.0).unwrap();
        assert!(matches!(Region::of_descriptor(other.into(), "other"), Err(RegionError::Io { .. })));
    }

    #[test]
    fn a_file_that_is_trimmed_keeps_its_words_and_gives_back_the_rest() {
        let path = Temporary::new("trim");
        let mut region = Region::create(&path.0, 1 << 20).unwrap();
        assert!(region.fill(512 * 700 + 3, &[7; 600]) && region.fill((1 << 20) - 1, &[9]));
        assert!(matches!(trim(&path.0), Err(RegionError::Held { .. })));
        drop(region);
        let blocks = |path: &Path| 512 * fs::metadata(path).unwrap().blocks();
        assert!(blocks(&path.0) >= 8 << 20);
        let taken = trim(&path.0).unwrap();
        assert_eq!(taken, 3 * 4096, "two pages, and the last one");
        let mut region = Region::existing(&path.0).unwrap();
        assert!(blocks(&path.0) >= 8 << 20, "all of it is there again");
        let words = region.words();
        assert_eq!(
            (words.len(), words[512 * 700 + 3], words[512 * 700 + 602], words[(1 << 20) - 1]),
            (1 << 20, 7, 7, 9)
        );
        assert_eq!(words.iter().filter(|word| **word != 0).count(), 601);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        assert!(matches!(Region::anonymous(0), Err(RegionError::Empty)));
        assert!(matches!(Region::anonymous(usize::MAX / 8 + 1), Err(RegionError::TooLarge { .. })));
        assert!(matches!(Region::anonymous(1 << 59), Err(RegionError::Memory { .. })));
    }
}
