//! AF_XDP: frames by descriptor, in memory shared with the kernel.
//!
//! Both sockets of a worker (its queue of either interface) share one UMEM, and the worker's [`Pool`](crate::Pool) lies in it, so that
//! forwarding moves a descriptor and copies nothing. A small XDP program, compiled from `bpf/redirect.c`, redirects the
//! frames of each queue to its socket. Which mode is tried, and what happens when it does not work, is decided in `open`.
//!
//! `rings` has what the kernel shares with a socket; `port` adds ownership, chains of buffers, the fill level, and wake-ups of the driver.

mod cutter;
mod failure;
mod forward;
mod front;
mod layout;
mod port;
mod program;
mod refusal;
mod rehearsal;
mod rings;
mod samples;
mod shed;
mod socket;
mod syns;
mod tags;

pub(crate) use failure::{ENTERED, LINE, SERVICE_WORDS, map_flows};
pub(crate) use forward::{BUCKET, MAP, words};
pub(crate) use front::FrontProgram;
pub(crate) use layout::Layout;
pub(crate) use program::{AttachedProgram, LoadedMaps, LoadedProgram, Purpose};
pub(crate) use refusal::{Refusal, chain};
pub use rehearsal::{Rehearsal, XdpFastPath};
pub use samples::ShedSamples;
pub(crate) use socket::{UmemMemory, fits, open};
pub use syns::SynMemory;
pub(crate) use syns::{map as map_syns, sizes as syn_sizes};
