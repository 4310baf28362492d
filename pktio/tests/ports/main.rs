//! Ports between real kernels, in network namespaces, and between capture files; and what opening them does to interfaces. `harness` runs
//! it: without root, all that needs it is reported as ignored.

mod guard;
mod huge_pages;
mod left;
mod offload;
mod open;
mod packet;
mod pcap;
// A part of it is for the crate's own tests.
#[allow(dead_code)]
#[path = "../../src/offload/testing.rs"]
mod testing;
mod world;
mod xdp;

fn main() -> std::process::ExitCode {
    harness::main()
}
