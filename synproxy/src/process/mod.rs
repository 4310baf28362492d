//! The process and its surroundings: command line, configuration file, privileges, signals, service manager, log, clocks, cores, listening
//! sockets and links.
//!
//! Nothing here knows of the rest of the crate, which may use all of it.

pub mod cli;
pub mod clock;
pub mod cpu;
pub mod exit;
pub mod footprint;
pub mod link_monitor;
pub mod listening;
pub mod log;
pub mod privileges;
pub mod restore;
pub mod service_manager;
pub mod settings;
pub mod signals;
