//! Frames in, frames out: the ports of the box, and the frames that pass between them.
//!
//! [`open()`] prepares two interfaces and returns one [`Pair`] of ports for each worker. A worker receives a batch from one
//! port, works on the frames in place and transmits them on the other; no byte is copied where the I/O backend can avoid it.
//! [`open_alone`] opens one interface, for load generators. Of TCP this crate knows what a NIC does: checksums and segments.
//!
//! | I/O backend | what it is |
//! |---|---|
//! | `xdp` | AF_XDP, in driver mode with or without zero copy, or in generic mode |
//! | `netmap` | netmap: NICs, VALE switches and pipes |
//! | [`packet`] | AF_PACKET: works everywhere, several times slower |
//! | [`pcap`] | a capture file in, a capture file out |
//! | [`memory`] | both ends in memory, for tests |
//!
//! Every backend is a [`Port`]. What only some can do is a trait of its own, which a port may offer: [`ShedFilter`]. [`impair`] wraps
//! any port; [`capture`] copies frames into a file; [`region`] maps memory that is handed to the engine.
//!
//! # Unsafe code
//!
//! This is the crate for `unsafe` code: system calls, mappings, rings and buffers shared with the kernel. Every block says why it is
//! sound. CONTRIBUTING.md names the few other places of the tree that have any.

mod bpf;
pub mod capture;
mod error;
pub mod failure;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod guard;
pub mod huge_pages;
pub mod impair;
mod left;
mod mapping;
mod members;
pub mod memory;
mod names;
pub mod netdev;
mod netmap;
mod offload;
mod open;
mod options;
pub mod packet;
mod patience;
pub mod pcap;
mod peer;
mod pins;
mod plan;
mod pool;
mod port;
mod prepare;
pub mod privilege;
pub mod region;
pub mod rss;
pub mod shed;
mod wait;
mod xdp;

pub use error::{OpenError, advice, thread_advice};
pub use failure::{FailurePlan, FailureSwitch, OnFailure};
pub use frame::{Batch, Frame, MOST_MEMBERS, NO_MEMBER};
pub use guard::Guard;
pub use huge_pages::HugePageAllocator;
pub use left::{LeftSocket, LeftSockets};
pub use names::{Asked, HOST, interface_of, members_of};
pub use open::{Alone, Buffers, Opened, Queue, buffers_for, open, open_alone, open_prepared};
pub use options::{FastPathPlan, FastPathWay, Mode, Options, SynPlan};
pub use packet::{Answering, FastPath};
pub use peer::peer_groups;
pub use plan::fast_path_way;
pub use pool::Pool;
pub use port::{Capabilities, Handover, KernelForwarding, Pair, Port, PortStatistics, RingStatistics, leave_sockets};
pub use prepare::{Preparation, prepare};
pub use shed::{ShedFilter, ShedLevel, ShedSample};
pub use wait::{PortWatch, wait, wait_or_wake};
pub use xdp::{Rehearsal, ShedSamples, SynMemory, XdpFastPath};
