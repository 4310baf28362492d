//! The process and its surroundings: command line, configuration file, privileges, signals, service manager and supervision, watchdog device and bypass,
//! log, clocks, cores, listening sockets and links.
//!
//! Nothing here knows of the rest of the crate, which may use all of it.

pub mod bypass_hook;
pub mod cli;
pub mod clock;
pub mod cpu;
pub mod exit;
pub mod footprint;
pub mod leave;
pub mod link_monitor;
pub mod listening;
pub mod log;
pub mod privileges;
pub mod restore;
pub mod service_manager;
pub mod settings;
pub mod signals;
pub mod supervise;
pub mod watchdog_device;
