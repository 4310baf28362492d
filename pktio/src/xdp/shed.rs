//! The XDP program's filter for load shedding, as this process sees it: maps in memory shared with the program.
//!
//! They are read and written by plain loads and stores, which works also after the process has dropped its privileges.

use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::Map;
use siphasher::sip::SipHasher13;

use crate::mapping::Mapping;
use crate::shed::{PROVED_LINES, ProvedSources, ShedFilter, ShedLevel};

/// Words of the program's `struct control` for each queue: the level, the SYNs dropped by it, and one in how many of them is sampled.
const CONTROL_WORDS: usize = 8;

/// The values of an array map made with `BPF_F_MMAPABLE`, whose values are multiples of 8 bytes.
#[derive(Debug)]
pub(super) struct MappedArray(Mapping);

impl MappedArray {
    /// The values in this mapping, which nothing else in this process uses.
    pub(super) fn over(mapping: Mapping) -> MappedArray {
        MappedArray(mapping)
    }
}

impl Deref for MappedArray {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: this process uses the mapping through this slice alone, and the kernel's program accesses it by whole words.
        unsafe { self.0.words() }
    }
}

/// The maps through which a worker tells the program which SYNs to drop.
pub(super) struct ShedMaps {
    control: MappedArray,
    proved: ProvedSources<MappedArray>,
    hasher: SipHasher13,
}

impl ShedMaps {
    /// Maps the arrays of a loaded program. `key` is the key of its hashes.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`: before Linux 5.5 such maps cannot be mapped.
    pub(super) fn of(ebpf: &Ebpf, workers: usize, key: [u64; 2]) -> io::Result<ShedMaps> {
        let map = |name, words| match ebpf.map(name) {
            Some(Map::Array(data)) => Mapping::shared(data.fd().as_fd(), words * 8).map(MappedArray::over),
            _ => Err(io::Error::other("the program lacks its map")),
        };
        Ok(ShedMaps {
            control: map("control", workers.max(1) * CONTROL_WORDS)?,
            proved: ProvedSources::over(map("proved", 2 * PROVED_LINES)?),
            hasher: SipHasher13::new_with_keys(key[0], key[1]),
        })
    }

    fn control(&self, queue: u32, word: usize) -> &AtomicU64 {
        &self.control[queue as usize * CONTROL_WORDS + word]
    }

    /// Sets which SYNs the program drops on this queue.
    pub(super) fn set_level(&self, queue: u32, level: ShedLevel) {
        self.control(queue, 0).store(level.word(), Ordering::Relaxed);
    }

    /// The fresh and the repeated SYNs that the program dropped on this queue.
    pub(super) fn dropped(&self, queue: u32) -> [u64; 2] {
        [1, 2].map(|word| self.control(queue, word).load(Ordering::Relaxed))
    }

    /// The SYNs that the program answered on this queue.
    pub(super) fn answered(&self, queue: u32) -> u64 {
        self.control(queue, 4).load(Ordering::Relaxed)
    }

    /// How many queues the program sheds on.
    pub(super) fn queues(&self) -> u32 {
        (self.control.len() / CONTROL_WORDS) as u32
    }

    /// Has the program sample one in `every` of the SYNs that it drops, on every queue.
    pub(super) fn set_every(&self, every: u32) {
        (0..self.queues()).for_each(|queue| self.control(queue, 3).store(every.into(), Ordering::Relaxed));
    }

    /// Exempts a source, on every queue.
    pub(super) fn add_proved_source(&self, source: [u8; 16]) {
        self.proved.add(self.hasher.hash(&source), boot_nanos());
    }
}

/// The filter of one queue.
pub(super) struct XdpShedFilter {
    pub(super) maps: Arc<ShedMaps>,
    pub(super) queue: u32,
}

impl XdpShedFilter {
    /// The fresh and the repeated SYNs that were dropped.
    pub(super) fn dropped(&self) -> [u64; 2] {
        self.maps.dropped(self.queue)
    }
}

impl ShedFilter for XdpShedFilter {
    fn set_level(&mut self, level: ShedLevel) {
        self.maps.set_level(self.queue, level);
    }

    fn add_proved_source(&mut self, source: [u8; 16]) {
        self.maps.add_proved_source(source);
    }
}

/// An unpredictable key, so that an attacker cannot choose sources that collide with proved ones.
pub(super) fn random_key() -> io::Result<[u64; 2]> {
    let mut key = [0u64; 2];
    let size = size_of_val(&key);
    // SAFETY: the buffer is of the length given, and every value of its integers is valid.
    let got = unsafe { libc::getrandom(key.as_mut_ptr().cast(), size, 0) };
    if usize::try_from(got) == Ok(size) { Ok(key) } else { Err(io::Error::last_os_error()) }
}

/// The program's clock, `CLOCK_BOOTTIME`, in nanoseconds.
fn boot_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock is written to a local structure.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
