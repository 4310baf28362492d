//! What becomes of frames while no worker takes them: the process was killed, is stopped or not ready yet, or a worker is stuck.
//!
//! Only AF_XDP can do anything then, since its program in the kernel goes on. It watches each worker, and where one fails it does what the
//! [`FailurePlan`] says, with frames of that worker's queue, until the worker takes frames again. It is attached in a way that outlives a killed
//! process; the next start replaces it.
//!
//! The program has to know which flows it must not touch. They lie in a map that the workers write as plain memory; `tcpstate::FlowMap` says
//! what is in it, and `bpf/fail.h` reads it.

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
