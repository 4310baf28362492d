//! The operator's client, capture replay, load generators, and the writer of man pages.
//!
//! | module | what it is |
//! |---|---|
//! | [`programs`] | the programs: command lines and what they do |
//! | [`man_pages`] | man pages and shell completions of all programs |
//! | [`show`], [`views`] | the box's answers as text, for `synctl` |
//! | [`top`], [`watch`] | `synctl top`: what the screen shows, and the terminal it is drawn on |
//! | [`mod@replay`] | the frames of a capture through the engine |
//! | [`load_runner`] | runs a load on ports of any I/O backend |
//! | [`pattern`], [`clients`], [`transfer_check`] | loads |
//! | [`tcp`], [`segment`], [`neighbours`] | simulated hosts: their connections, segments, and ARP and neighbour discovery |
//! | [`flood_template`], [`xdp_generator`], [`raw`] | floods: their frames, an XDP program that generates them, a packet socket that sends them |
//! | [`pace`], [`latency`] | schedules, and latency histograms |
//! | [`interface`], [`network`] | what the kernel knows of an interface; networks on command lines |
//!
//! All loads are bounded in time. They are for test networks.

#![deny(unsafe_code)]

pub mod clients;
mod configure;
pub mod flood_template;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod interface;
pub mod latency;
pub mod load_runner;
pub mod man_pages;
pub mod neighbours;
pub mod network;
pub mod pace;
pub mod pattern;
pub mod programs;
pub mod raw;
pub mod replay;
pub mod segment;
pub mod show;
pub mod tcp;
pub mod top;
pub mod transfer_check;
pub mod views;
pub mod watch;
pub mod xdp_generator;

use std::fmt::Display;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

/// Runs `work`, which has to stop soon after a signal sets its flag, and prints its report as text or JSON. Returns the exit
/// status: 0 for a good report, 1 for another, 2 if there is none.
pub(crate) fn run_and_report<R: Display + Serialize>(
    name: &str,
    json: bool,
    work: impl FnOnce(&AtomicBool) -> Result<R, String>,
    is_good: impl FnOnce(&R) -> bool,
) -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    let handled = ctrlc::set_handler(move || on_signal.store(true, Ordering::Relaxed));
    let report = handled.map_err(|error| error.to_string()).and_then(|()| work(&stop));
    match report {
        Ok(report) => {
            if json {
                println!("{}", serde_json::to_string(&report).expect("plain values"));
            } else {
                print!("{report}");
            }
            if is_good(&report) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::from(2)
        }
    }
}
