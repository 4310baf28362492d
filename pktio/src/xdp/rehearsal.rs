//! The XDP programs on no interface: what they do with a frame, for tests.

use std::error::Error;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::DevMap;
use aya::programs::{TestRun, TestRunOptions, Xdp};

use super::failure::{ENTERED, Place, ServiceMap, map_flows};
use super::forward::{Forwarded, entries};
use super::program::{OwnMaps, SHARED, instructions, loader};
use super::refusal::chain;
use super::syns::{self, SynMemory};
use crate::bpf::{self, How};
use crate::failure::{Decision, FailurePlan, OnFailure};
use crate::options::SynPlan;

/// The XDP program with this plan, on no interface: says what it does with a frame that no worker takes. For tests.
///
/// Loading a program takes root.
pub struct Rehearsal {
    ebpf: Ebpf,
    service: ServiceMap,
    is_wan: bool,
    workers: usize,
    flow_words: usize,
    syns: Option<SynPlan>,
}

impl fmt::Debug for Rehearsal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rehearsal").finish_non_exhaustive()
    }
}

impl Rehearsal {
    /// Loads the program as that of the WAN port, or of the LAN port, of a box with so many workers.
    ///
    /// # Errors
    ///
    /// The kernel's, in words.
    pub fn new(plan: &FailurePlan, is_wan: bool, workers: usize) -> Result<Rehearsal, String> {
        Rehearsal::load(plan, is_wan, workers, None)
    }

    /// The same of the program of a WAN port that answers SYNs.
    ///
    /// # Errors
    ///
    /// The kernel's, in words.
    pub fn answering(plan: &FailurePlan, workers: usize, syns: SynPlan) -> Result<Rehearsal, String> {
        Rehearsal::load(plan, true, workers, Some(syns))
    }

    fn load(plan: &FailurePlan, is_wan: bool, workers: usize, syns: Option<SynPlan>) -> Result<Rehearsal, String> {
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

    /// Each worker's part of the map of flows, the first time.
    pub fn take_flow_maps(&mut self) -> Vec<&'static [AtomicU64]> {
        map_flows(&self.ebpf, self.workers, std::mem::take(&mut self.flow_words)).expect("the map can be mapped")
    }

    /// The memory of each worker by which it answers SYNs.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn syn_memories(&self) -> Vec<SynMemory> {
        let plan = self.syns.expect("it answers SYNs");
        syns::map(&self.ebpf, self.workers, plan).expect("the maps can be mapped")
    }

    /// How many instructions the verifier has looked at.
    ///
    /// # Panics
    ///
    /// Before Linux 5.16, which does not say so.
    pub fn verified_instructions(&self) -> u32 {
        let program: &Xdp = self.ebpf.program("redirect").expect("it is there").try_into().expect("it is XDP");
        let information = program.info().expect("the kernel has it");
        information.verified_instruction_count().expect("known since Linux 5.16")
    }

    /// What the program decides on a frame of the first queue, while no worker takes frames and `on_failure` is closed; its answer is written to `answer`.
    ///
    /// # Panics
    ///
    /// When the kernel cannot run the program.
    pub fn decides(&mut self, frame: &[u8], answer: &mut [u8]) -> Decision {
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

    /// All workers say that their flows are in the map.
    pub fn set_flows_entered(&mut self) {
        for queue in 0..self.workers as u32 {
            self.service.word(Place { queue, is_wan: self.is_wan }, ENTERED).store(1, Ordering::Relaxed);
        }
    }

    /// Whether the program sends the frame out of the other port.
    ///
    /// # Panics
    ///
    /// When the kernel cannot run the program.
    pub fn bridges(&mut self, frame: &[u8]) -> bool {
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
