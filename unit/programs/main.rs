//! Programs of others, as they are, between real kernels in network namespaces: with the kernel's bridge in the middle, and with the proxy. Needs root.
//! Run by `make test-programs`, which installs them, and never by `cargo test` alone.

mod everyday;
mod haproxy;
mod nmap;
mod rig;

fn main() -> std::process::ExitCode {
    // A compiler at work between two steps of a test would be a pause of seconds in it.
    unit::netns::programs();
    harness::main()
}
