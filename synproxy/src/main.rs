//! The program: see [`synproxy::appliance::run`].

use std::process::ExitCode;

/// Flow tables of millions of entries are read at random addresses, so they lie on huge pages.
#[global_allocator]
static ALLOCATOR: pktio::HugePageAllocator = pktio::HugePageAllocator;

fn main() -> ExitCode {
    synproxy::appliance::run()
}
