//! What the programs of this room are made of: [`show`] for the operator's client; [`replay`] of captures, for whoever wants to know
//! what the box would do; and load generators, of which [`netmapsend`] and [`tcpsendrecv`] are programs, and the rest is shared with each other
//! and with the benchmarks:
//!
//! | module | what it is |
//! |---|---|
//! | [`station`] | a load at work on ports of any backend |
//! | [`pattern`], [`clients`], [`exchange`] | loads |
//! | [`tcp`], [`segment`], [`neighbours`] | hosts that exist only in a load: their connections, segments and Ethernet addresses |
//! | [`spray`], [`live`], [`raw`] | floods: their segments, the kernel's test loop that makes them, a socket that sends them beside a kernel's TCP |
//! | [`pace`], [`latency`] | how fast, and how long it took |
//!
//! All loads are bounded in time. They are for test networks.

#![deny(unsafe_code)]

pub mod clients;
pub mod exchange;
pub mod interface;
pub mod latency;
pub mod live;
pub mod neighbours;
pub mod netmapsend;
pub mod pace;
pub mod pattern;
pub mod raw;
pub mod replay;
pub mod segment;
pub mod show;
pub mod spray;
pub mod station;
pub mod tcp;
pub mod tcpsendrecv;
pub mod top;
pub mod views;
pub mod watch;

use std::fmt::Display;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

/// Runs `work`, which a signal asks to stop, and prints its report. The program's exit status: 0 if it is good, 1 if not, 2 if there is none.
pub fn finish<R: Display + Serialize>(
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
        Err(complaint) => {
            eprintln!("{name}: {complaint}");
            ExitCode::from(2)
        }
    }
}
