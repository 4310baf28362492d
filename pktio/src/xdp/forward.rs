//! The maps by which the XDP program forwards connections by itself (`bpf/forward.h`), as this process sees them: plain memory, mapped as long as the
//! process lives.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::Map;

use super::failure::Place;
use crate::mapping::Mapping;

/// The name of the map of entries in the programs.
pub(crate) const MAP: &str = "handed_down";

/// Bytes of a bucket of entries: `struct down_bucket`.
pub(crate) const BUCKET: usize = 1600;

/// Words of `struct forwarded`; the first three are its counters, the next two say how long frames may be.
const FORWARDED: usize = 8;
const LONGEST: usize = 3;

/// What the programs of both ports have forwarded: frames, bytes, and frames that went up because their sender had left the checksum to a device. And how long
/// frames may be that they forward.
#[derive(Clone, Copy)]
pub(super) struct Forwarded(&'static [AtomicU64]);

impl Forwarded {
    /// Maps the array of a loaded object for so many workers.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub(super) fn of(ebpf: &Ebpf, workers: usize) -> io::Result<Forwarded> {
        words(ebpf, "forwarded", Some(2 * FORWARDED * workers.max(1))).map(Forwarded)
    }

    pub(super) fn of_place(self, Place { queue, is_wan }: Place) -> ForwardedThere {
        let at = (2 * queue as usize + usize::from(is_wan)) * FORWARDED;
        let word = |n| &self.0[at + n];
        let longest = [LONGEST, LONGEST + 1].map(word);
        ForwardedThere { counters: [0, 1, 2].map(word), longest, while_stopped: [0; 2] }
    }

    /// Says how long the frames may be, in bytes, that come to the port of this side and are forwarded: those in one buffer, and those in several. Nothing is
    /// forwarded before.
    pub(super) fn set_longest(self, is_wan: bool, longest: [u64; 2]) {
        for at in (usize::from(is_wan) * FORWARDED..self.0.len()).step_by(2 * FORWARDED) {
            longest
                .into_iter()
                .zip(&self.0[at + LONGEST..])
                .for_each(|(bytes, word)| word.store(bytes, Ordering::Relaxed));
        }
    }
}

/// The same of one port of one worker.
pub(super) struct ForwardedThere {
    pub(super) counters: [&'static AtomicU64; 3],
    longest: [&'static AtomicU64; 2],
    /// How long frames may be once some may be forwarded again.
    while_stopped: [u64; 2],
}

impl ForwardedThere {
    /// Lets the program forward frames again, or none. To be called with one and the other by turns.
    pub(super) fn allow(&mut self, may: bool) {
        for (word, kept) in self.longest.into_iter().zip(&mut self.while_stopped) {
            *kept = word.swap(if may { *kept } else { 0 }, Ordering::Relaxed);
        }
    }
}

/// The words of the entries.
///
/// # Errors
///
/// Those of `mmap(2)`.
pub(super) fn entries(ebpf: &Ebpf) -> io::Result<&'static [AtomicU64]> {
    words(ebpf, MAP, None)
}

/// The words of a map, so many or all.
pub(crate) fn words(ebpf: &Ebpf, name: &str, count: Option<usize>) -> io::Result<&'static [AtomicU64]> {
    let Some(Map::Array(data)) = ebpf.map(name) else { return Err(io::Error::other("the program lacks its map")) };
    let bytes = match count {
        Some(count) => 8 * count,
        None => {
            let information = data.info().map_err(io::Error::other)?;
            information.value_size() as usize * information.max_entries() as usize
        }
    };
    let mapping = Box::leak(Box::new(Mapping::shared(data.fd().as_fd(), bytes)?));
    // SAFETY: this process uses the mapping through this slice alone. The program writes 32-bit fields too, of which each has one writer at a time: a word
    // of which this process writes one half is not written by the program then.
    Ok(unsafe { mapping.words() })
}
