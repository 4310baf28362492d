//! Frames in, frames out: the ports of the box, and the frames that pass between them.
//!
//! [`open()`] prepares two interfaces and returns one [`Pair`] of ports per worker. A worker receives a batch from one
//! port, works on the frames where they lie and transmits them on the other; no byte is copied on the way where the
//! backend can help it. [`open_alone`] does it with one interface, for load generators. This crate knows nothing of TCP.
//!
//! | backend | what it is |
//! |---|---|
//! | `xdp` | AF_XDP, in driver mode with or without zero copy, or in generic mode |
//! | `netmap` | netmap: NICs, VALE switches and pipes |
//! | `packet` | AF_PACKET: works everywhere, several times slower |
//! | `pcap` | a capture file in, a capture file out |
//! | [`memory`] | both ends in memory, for tests |
//!
//! [`impair`] wraps any port; [`capture`] copies frames aside into a file. This is the only crate with `unsafe`: every block says why it holds.

pub mod capture;
pub mod frame;
pub mod impair;
mod mapped;
pub mod memory;
pub mod netdev;
mod netmap;
pub mod open;
pub mod packet;
pub mod pcap;
pub mod port;
mod roomy;
pub mod rss;
pub mod sieve;
mod xdp;

pub use frame::{Batch, Frame, Pool};
pub use netdev::Guard;
pub use open::{Alone, Mode, OpenError, Opened, Options, Queue, open, open_alone};
pub use port::{Capabilities, Pair, Port, PortStatistics, wait, wait_or_bell};
pub use roomy::Roomy;
pub use sieve::Level;
pub use xdp::Fallback;
