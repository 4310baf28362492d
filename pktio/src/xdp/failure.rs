//! The maps by which the XDP program watches a worker and knows the flows (`bpf/fail.h`), as this process sees them: plain memory.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::Map;

use super::shed::MappedArray;
use crate::failure::{FailurePlan, FailureSwitch, OnFailure};
use crate::mapping::Mapping;

/// How long a worker may leave frames.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

/// Words of the program's `struct service`, and places in it.
pub(crate) const SERVICE_WORDS: usize = 24;
const GIVEN: usize = 0;
const SERVED: usize = 8;
pub(crate) const ENTERED: usize = 9;
const FAILURES: usize = 16;
const BRIDGED: usize = 18;
const DROPPED: usize = 19;

/// Bytes of a line of the map of flows.
pub(crate) const LINE: usize = 64;

/// What the programs of both ports and the workers tell each other.
pub(super) struct ServiceMap(MappedArray);

/// A port of a worker: the number of its queue, and whether it is the WAN.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub queue: u32,
    pub is_wan: bool,
}

impl ServiceMap {
    /// Maps the array of a loaded object for so many workers.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub(super) fn of(ebpf: &Ebpf, workers: usize) -> io::Result<ServiceMap> {
        match ebpf.map("service") {
            Some(Map::Array(data)) => Mapping::shared(data.fd().as_fd(), 2 * 8 * SERVICE_WORDS * workers.max(1))
                .map(|mapping| ServiceMap(MappedArray::over(mapping))),
            _ => Err(io::Error::other("the program lacks its map")),
        }
    }

    pub(super) fn word(&self, Place { queue, is_wan }: Place, word: usize) -> &AtomicU64 {
        &self.0[(2 * queue as usize + usize::from(is_wan)) * SERVICE_WORDS + word]
    }

    /// How often the worker has failed at this port, and the frames that were bridged and dropped in its place.
    pub(super) fn failures(&self, place: Place) -> [u64; 3] {
        [FAILURES, BRIDGED, DROPPED].map(|word| self.word(place, word).load(Ordering::Relaxed))
    }
}

/// One worker's part of it. The members of an aggregation have a switch each, over the same words.
pub(super) struct XdpFailureSwitch {
    map: Arc<ServiceMap>,
    place: Place,
    /// Whether it tells of what happened at this place: one of several members does.
    tells: bool,
    /// Failures at this port before the worker began.
    before: u64,
    /// Failures at either port that the port has noticed.
    noticed: u64,
    /// Whether the program acts when the worker leaves frames.
    is_watched: bool,
}

impl XdpFailureSwitch {
    pub(super) fn new(map: Arc<ServiceMap>, place: Place, tells: bool, is_watched: bool) -> Self {
        XdpFailureSwitch { map, place, tells, before: 0, noticed: 0, is_watched }
    }

    /// Whether the program acts when the worker leaves frames: otherwise its ring keeps them.
    pub(super) fn is_watched(&self) -> bool {
        self.is_watched
    }

    /// Whether the worker has failed since the last time: what is in its ring was given to it before that.
    #[inline]
    pub(super) fn has_failed(&mut self) -> bool {
        let failures = self.failures();
        std::mem::replace(&mut self.noticed, failures) != failures
    }

    /// The worker has taken frames out of its receive ring, or found none there.
    #[inline]
    pub(super) fn looked(&mut self) {
        // The worker alone writes it, whichever member it has looked at.
        let word = self.map.word(self.place, SERVED);
        word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// The frames that have gone up, and those of which the program does not know yet whether they do.
    #[inline]
    pub(super) fn given(&self) -> u64 {
        self.map.word(self.place, GIVEN).load(Ordering::Acquire)
    }

    /// The frames that have gone up, to sockets that were there before: none goes up now. The program is at work on one frame of a queue at most, and on none
    /// between two.
    pub(super) fn given_before(&self) -> u64 {
        let readings = (0..64).map(|_| {
            std::hint::spin_loop();
            self.given()
        });
        readings.min().unwrap_or_default()
    }

    /// As [`ServiceMap::failures`]; nothing where another member tells.
    pub(super) fn counts(&self) -> [u64; 3] {
        if !self.tells {
            return [0; 3];
        }
        let [failures, bridged, dropped] = self.map.failures(self.place);
        [failures - self.before, bridged, dropped]
    }
}

impl FailureSwitch for XdpFailureSwitch {
    fn set_flows_entered(&mut self) {
        // That nobody took frames before the start is no failure.
        self.before = self.map.word(self.place, FAILURES).load(Ordering::Relaxed);
        self.noticed = self.failures();
        self.map.word(self.place, ENTERED).store(1, Ordering::Release);
    }

    #[inline]
    fn failures(&self) -> u64 {
        let at = |is_wan| self.map.word(Place { is_wan, ..self.place }, FAILURES).load(Ordering::Relaxed);
        at(false) + at(true)
    }
}

/// The patience of the program, in ticks of the kernel's; 0 where nothing is to be done about a stuck worker: its ring keeps the frames.
pub(super) fn patience(plan: Option<&FailurePlan>) -> u32 {
    match plan.map(|plan| plan.on_failure) {
        None | Some(OnFailure::Closed) => 0,
        Some(_) => u32::try_from(PATIENCE.as_nanos().div_ceil(tick().as_nanos())).unwrap_or(u32::MAX),
    }
}

/// How `bpf/fail.h` calls what passes.
pub(super) fn number(on_failure: OnFailure) -> u32 {
    match on_failure {
        OnFailure::Closed => 0,
        OnFailure::Untranslated => 1,
        OnFailure::Open => 2,
    }
}

/// The kernel's tick: the coarse clock goes by it.
fn tick() -> Duration {
    let mut tick = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the resolution is written to a local structure.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    Duration::new(tick.tv_sec as u64, tick.tv_nsec as u32).max(Duration::from_millis(1))
}

/// Each worker's part of the map of flows, as plain memory, mapped as long as the process lives.
///
/// # Errors
///
/// Those of `mmap(2)`.
pub(crate) fn map_flows(ebpf: &Ebpf, workers: usize, words: usize) -> io::Result<Vec<&'static [AtomicU64]>> {
    if words == 0 {
        return Ok(Vec::new());
    }
    let Some(Map::Array(data)) = ebpf.map("flows") else {
        return Err(io::Error::other("the program lacks its map"));
    };
    let mapping = Mapping::shared(data.fd().as_fd(), 8 * words * workers)?;
    let all: &'static MappedArray = Box::leak(Box::new(MappedArray::over(mapping)));
    Ok(all.chunks_exact(words).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_members_of_a_port_one_tells_and_each_says_that_the_worker_looks() {
        let mapping = Mapping::anonymous(2 * 8 * SERVICE_WORDS).unwrap();
        let map = Arc::new(ServiceMap(MappedArray::over(mapping)));
        let place = Place { queue: 0, is_wan: true };
        let mut members = [true, false].map(|tells| XdpFailureSwitch::new(Arc::clone(&map), place, tells, true));
        members.iter_mut().for_each(FailureSwitch::set_flows_entered);
        for _ in 0..3 {
            members.iter_mut().for_each(XdpFailureSwitch::looked);
        }
        assert_eq!(map.word(place, SERVED).load(Ordering::Relaxed), 6, "each look is another number");
        for (word, value) in [(FAILURES, 2), (BRIDGED, 5), (DROPPED, 7)] {
            map.word(place, word).store(value, Ordering::Relaxed);
        }
        assert_eq!(members.each_ref().map(XdpFailureSwitch::counts), [[2, 5, 7], [0; 3]]);
        assert_eq!(members.each_mut().map(XdpFailureSwitch::has_failed), [true; 2], "each has a ring with old frames");
        assert_eq!(members.each_mut().map(XdpFailureSwitch::has_failed), [false; 2]);
    }
}
