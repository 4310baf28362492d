//! The maps by which the XDP program forwards connections by itself (`bpf/forward.h`), as this process sees them: plain memory, mapped as long as the
//! process lives.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{DevMap, Map};

use super::failure::Place;
use super::program::{OwnMaps, SHARED, instructions, loader};
use crate::bpf::{self, How};
use crate::failure::{FailurePlan, OnFailure};
use crate::mapping::Mapping;
use crate::pins::MAP;

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

/// The XDP programs of both ports on no interface: says what they make of frames of connections that are handed down. For tests.
///
/// Loading a program takes root.
pub struct XdpFastPath {
    programs: [OwnedFd; 2],
    words: &'static [AtomicU64],
    // The programs use their maps.
    _ebpf: [Ebpf; 2],
}

impl fmt::Debug for XdpFastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XdpFastPath").field("words", &self.words.len()).finish_non_exhaustive()
    }
}

impl XdpFastPath {
    /// Loads the programs. Their entries have so many words, a power of two of buckets; the keys are those of the hash that names flows.
    ///
    /// # Errors
    ///
    /// Those of the kernel or of the library.
    pub fn load(words: usize, flow_keys: (u64, u64)) -> Result<XdpFastPath, Box<dyn Error>> {
        let plan = FailurePlan { on_failure: OnFailure::Closed, flow_keys, flow_words: 0, forward_words: words };
        let load = |is_wan| -> Result<Ebpf, Box<dyn Error>> {
            let mut ebpf = loader(1, Some(&plan), is_wan, [0; 2], false, OwnMaps::New, None)?;
            let mut other = DevMap::try_from(ebpf.map_mut("other_port").ok_or("the program lacks its map")?)?;
            // A frame goes nowhere in a test run, so any interface will do: the loopback.
            other.set(0, 1, None, 0)?;
            Ok(ebpf)
        };
        let (lan, wan) = (load(false)?, load(true)?);
        let program = |ebpf, first: Option<&Ebpf>| -> Result<OwnedFd, Box<dyn Error>> {
            Ok(bpf::load_xdp(
                &instructions(ebpf, "redirect_frags", first.map(|first| (first, &SHARED[..])))?,
                "redirect",
                How { has_frags: true, bound_to: None },
            )?)
        };
        let programs = [program(&lan, None)?, program(&wan, Some(&lan))?];
        let forwarded = Forwarded::of(&lan, 1)?;
        [false, true].into_iter().for_each(|is_wan| forwarded.set_longest(is_wan, [1 << 16; 2]));
        Ok(XdpFastPath { programs, words: entries(&lan)?, _ebpf: [lan, wan] })
    }

    /// The words of the entries, zero at first. They stay mapped until the process ends.
    pub fn words(&self) -> &'static [AtomicU64] {
        self.words
    }

    /// What the program of a side (0: LAN, 1: WAN) makes of a frame from there: the frame that leaves by the other port, or `None` if it goes up.
    ///
    /// # Panics
    ///
    /// When the kernel cannot run it.
    pub fn run(&self, side: usize, frame: &[u8]) -> Option<Vec<u8>> {
        const XDP_REDIRECT: u32 = 4;
        let (result, out) = bpf::test_run(self.programs[side].as_fd(), frame).expect("it can be run");
        (result == XDP_REDIRECT).then_some(out)
    }
}
