//! The maps by which the XDP program watches a worker and knows the flows (`bpf/fail.h`), as this process sees them: plain memory.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{DevMap, Map};
use aya::programs::{TestRun, TestRunOptions, Xdp};

use super::program::{OwnMaps, loader};
use super::refusal::chain;
use super::shed::MappedArray;
use super::syns::SynMemory;
use crate::failure::{Decision, FailurePlan, FailureSwitch, OnFailure};
use crate::mapping::Mapping;
use crate::options::SynPlan;

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

    fn word(&self, Place { queue, is_wan }: Place, word: usize) -> &AtomicU64 {
        &self.0[(2 * queue as usize + usize::from(is_wan)) * SERVICE_WORDS + word]
    }

    /// How often the worker has failed at this port, and the frames that were bridged and dropped in its place.
    fn failures(&self, place: Place) -> [u64; 3] {
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

/// The program on no interface; see [`crate::failure::Rehearsal`].
pub(crate) struct Rehearsal {
    ebpf: Ebpf,
    service: ServiceMap,
    is_wan: bool,
    workers: usize,
    flow_words: usize,
    syns: Option<SynPlan>,
}

impl Rehearsal {
    pub(crate) fn new(
        plan: &FailurePlan,
        is_wan: bool,
        workers: usize,
        syns: Option<SynPlan>,
    ) -> Result<Rehearsal, String> {
        let mut ebpf = loader(workers, Some(plan), is_wan, [0; 2], false, OwnMaps::New, syns.map(|plan| (plan, false)))
            .map_err(|error| chain(&error))?;
        let service = ServiceMap::of(&ebpf, workers).map_err(|error| error.to_string())?;
        let map = ebpf.map_mut("other_port").ok_or("the program lacks its map")?;
        let mut other = DevMap::try_from(map).map_err(|error| chain(&error))?;
        // A frame goes nowhere in a test run, so any interface will do: the loopback.
        other.set(0, 1, None, 0).map_err(|error| chain(&error))?;
        let program = ebpf.program_mut("redirect").ok_or("the program is missing")?;
        let program: &mut Xdp = program.try_into().map_err(|error| chain(&error))?;
        program.load().map_err(|error| chain(&error))?;
        Ok(Rehearsal { ebpf, service, is_wan, workers, flow_words: plan.flow_words, syns })
    }

    pub(crate) fn take_flow_maps(&mut self) -> Vec<&'static [AtomicU64]> {
        map_flows(&self.ebpf, self.workers, std::mem::take(&mut self.flow_words)).expect("the map can be mapped")
    }

    pub(crate) fn syn_memories(&self) -> Vec<SynMemory> {
        let plan = self.syns.expect("it answers SYNs");
        super::syns::map(&self.ebpf, self.workers, plan).expect("the maps can be mapped")
    }

    pub(crate) fn verified_instructions(&self) -> u32 {
        let program: &Xdp = self.ebpf.program("redirect").expect("it is there").try_into().expect("it is XDP");
        let information = program.info().expect("the kernel has it");
        information.verified_instruction_count().expect("known since Linux 5.16")
    }

    pub(crate) fn decides(&mut self, frame: &[u8], answer: &mut [u8]) -> Decision {
        const XDP_DROP: u32 = 1;
        const XDP_TX: u32 = 3;
        let place = Place { queue: 0, is_wan: self.is_wan };
        let before = self.service.failures(place);
        let program: &Xdp = self.ebpf.program("redirect").expect("it is there").try_into().expect("it is XDP");
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(answer), repeat: 1, ..TestRunOptions::default() };
        let result = program.test_run(options).expect("it can be run");
        // What goes up finds no worker, and is dropped for it.
        match (result.return_value, self.service.failures(place)[2] - before[2]) {
            (XDP_TX, 0) => Decision::Answers(result.data_size_out as usize),
            (XDP_DROP, 0) => Decision::Drops,
            (XDP_DROP, 1) => Decision::Leaves,
            other => panic!("it returned {other:?}"),
        }
    }

    pub(crate) fn set_flows_entered(&mut self) {
        for queue in 0..self.workers as u32 {
            self.service.word(Place { queue, is_wan: self.is_wan }, ENTERED).store(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn bridges(&mut self, frame: &[u8]) -> bool {
        let place = Place { queue: 0, is_wan: self.is_wan };
        let before = self.service.failures(place);
        let program: &Xdp = self.ebpf.program("redirect").expect("it is there").try_into().expect("it is XDP");
        program
            .test_run(TestRunOptions { data_in: Some(frame), repeat: 1, ..TestRunOptions::default() })
            .expect("it can be run");
        let after = self.service.failures(place);
        assert_eq!(after[1] + after[2], before[1] + before[2] + 1, "one frame is bridged or dropped");
        after[1] > before[1]
    }
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
