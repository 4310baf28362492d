//! What becomes of frames while no worker takes them: the process was killed, is stopped or not ready yet, or a worker is stuck.
//!
//! Only AF_XDP can do anything then, since its program in the kernel goes on. It watches each worker, and where one fails it does what the
//! [`FailurePlan`] says, with frames of that worker's queue, until the worker takes frames again. It is attached in a way that outlives a killed
//! process; the next start replaces it.
//!
//! The program has to know which flows it must not touch. They lie in a map that the workers write as plain memory; `tcpstate::FlowMap` says
//! what is in it, and `bpf/fail.h` reads it.

use crate::options::SynPlan;
use crate::xdp::{self, SynMemory};

/// What passes while no worker takes frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// Nothing.
    #[default]
    Closed,
    /// Frames that are not TCP, and segments of flows that are known to be passed through unchanged.
    Untranslated,
    /// Everything but segments of translated flows, and TCP segments of which it cannot be told whether they are.
    Open,
}

/// What the program in the kernel needs for the time when no worker takes frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailurePlan {
    /// What passes then.
    pub on_failure: OnFailure,
    /// The keys of the hash by which flows are entered in the map.
    pub flow_keys: (u64, u64),
    /// Words of the map for each worker, a multiple of eight; without any it knows no flow.
    pub flow_words: usize,
    /// Words of the entries of established flows that the program forwards by itself, whether workers take frames or not; 0: it forwards none.
    pub forward_words: usize,
}

/// A port whose frames somebody else bridges or drops while its worker does not take them.
pub trait FailureSwitch {
    /// From now on every flow of this worker is in the map. Before, no TCP segment passes without a worker, whatever flow it belongs to.
    fn set_flows_entered(&mut self);

    /// How often this worker has failed so far, at either port. Two loads: it may be asked in every iteration.
    fn failures(&self) -> u64;
}

/// What the XDP program decides on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It sends an answer of so many bytes back.
    Answers(usize),
    /// It drops the frame.
    Drops,
    /// It leaves the frame to the worker.
    Leaves,
}

/// The XDP program with this plan, on no interface: says what it does with a frame that no worker takes. For tests.
///
/// Loading a program takes root.
pub struct Rehearsal(xdp::Rehearsal);

impl Rehearsal {
    /// Loads the program as that of the WAN port, or of the LAN port, of a box with so many workers.
    ///
    /// # Errors
    ///
    /// The kernel's, in words.
    pub fn new(plan: &FailurePlan, is_wan: bool, workers: usize) -> Result<Rehearsal, String> {
        xdp::Rehearsal::new(plan, is_wan, workers, None).map(Rehearsal)
    }

    /// The same of the program of a WAN port that answers SYNs.
    ///
    /// # Errors
    ///
    /// The kernel's, in words.
    pub fn answering(plan: &FailurePlan, workers: usize, syns: SynPlan) -> Result<Rehearsal, String> {
        xdp::Rehearsal::new(plan, true, workers, Some(syns)).map(Rehearsal)
    }

    /// The memory of each worker by which it answers SYNs.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn syn_memories(&self) -> Vec<SynMemory> {
        self.0.syn_memories()
    }

    /// How many instructions the verifier has looked at.
    ///
    /// # Panics
    ///
    /// Before Linux 5.16, which does not say so.
    pub fn verified_instructions(&self) -> u32 {
        self.0.verified_instructions()
    }

    /// What the program decides on a frame of the first queue, while no worker takes frames and `on_failure` is closed; its answer is written to `answer`.
    ///
    /// # Panics
    ///
    /// When the kernel cannot run the program.
    pub fn decides(&mut self, frame: &[u8], answer: &mut [u8]) -> Decision {
        self.0.decides(frame, answer)
    }

    /// Each worker's part of the map of flows, the first time.
    pub fn take_flow_maps(&mut self) -> Vec<&'static [std::sync::atomic::AtomicU64]> {
        self.0.take_flow_maps()
    }

    /// All workers say that their flows are in the map.
    pub fn set_flows_entered(&mut self) {
        self.0.set_flows_entered();
    }

    /// Whether the program sends the frame out of the other port.
    ///
    /// # Panics
    ///
    /// When the kernel cannot run the program.
    pub fn bridges(&mut self, frame: &[u8]) -> bool {
        self.0.bridges(frame)
    }
}

impl std::fmt::Debug for Rehearsal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rehearsal").finish_non_exhaustive()
    }
}
