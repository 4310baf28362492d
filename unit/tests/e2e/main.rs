//! The whole program between real kernels, in network namespaces. Needs root. `harness` runs it: what cannot be tested on this machine is
//! reported as ignored, with the reason.
//!
//! `cargo test -p unit --test e2e tcp::` runs one module of it. `QUEUES` and `STEER` of the environment say how many queues the interfaces
//! have, and how several workers share the connections.

mod accurate;
mod adopt;
mod bonds;
mod bridge;
mod capture;
mod control;
mod deployments;
mod doctor;
mod documents;
mod endurance;
mod errors;
mod events;
mod failure;
mod field;
mod flood;
mod full_table;
mod handed_down;
mod host;
mod interrupted;
mod kernel_syns;
mod kicks;
mod links;
mod listed;
mod locked_out;
mod loss;
mod matrix;
mod modes;
mod netmap;
mod offloads;
mod openings;
mod path;
mod pmtu;
mod process;
mod proved;
mod queues;
mod reload;
mod reports;
mod restart;
mod rig;
mod roles;
mod services;
mod shed;
mod signals;
mod stations;
mod tcp;
mod terminal;
mod tools;
mod top;
mod untouched;
mod watchdog;
mod who;

fn main() -> std::process::ExitCode {
    // A compiler at work between two steps of a test would be a pause of seconds in it.
    unit::netns::programs();
    harness::main()
}
