//! Ports between real kernels, in network namespaces, and between capture files; and what opening them does to interfaces. `harness` runs
//! it: without root, all that needs it is reported as ignored.

mod guard;
mod huge_pages;
mod open;
mod packet;
mod pcap;
mod world;
mod xdp;

fn main() -> std::process::ExitCode {
    harness::main()
}
