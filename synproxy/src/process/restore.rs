//! `--restore`: puts back the settings of interfaces that a process has left changed, without a start.

use super::exit::Failure;
use crate::state;
use nix::sys::prctl;
use pktio::netdev::{self, FAST_PATH, Outcome, PROGRAM, Restored};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Waits so many seconds, puts back the settings of these interfaces, or of all, where no box has them by then, and gives back memory of the state in this
/// directory, or of all in the default ones, that nobody uses.
///
/// # Errors
/// As [`restore`].
pub fn restore_after(seconds: u64, interfaces: &[String], state: Option<&Path>) -> Result<(), Failure> {
    // Who looks for a running box is not to find this.
    let _ = prctl::set_name(c"synproxy-waits");
    let age = Duration::from_secs(seconds);
    thread::sleep(age);
    let result = match put_back(interfaces, Some(age)) {
        Err(Failure::Held { .. }) => Ok(()),
        result => result,
    };
    state.map_or_else(state::trim_all, state::trim);
    result
}

/// Puts back the settings of these interfaces, or of all of this network namespace, and prints what was done.
///
/// # Errors
/// When there is no such interface, a running box has it, or something could not be put back.
pub fn restore(interfaces: &[String]) -> Result<(), Failure> {
    put_back(interfaces, None)
}

fn put_back(interfaces: &[String], age: Option<Duration>) -> Result<(), Failure> {
    let restored = netdev::restore(interfaces, age)?;
    let mut failed = Vec::new();
    let mut held = None;
    let mut is_quiet = true;
    for Restored { interface, outcome } in restored {
        match outcome {
            Outcome::Done(what) if what.is_empty() => {}
            Outcome::Done(what) => {
                let (detached, put_back): (Vec<_>, Vec<_>) =
                    what.into_iter().partition(|what| [PROGRAM, FAST_PATH].contains(what));
                for (what, is) in [(put_back, "put back"), (detached, "detached")] {
                    if !what.is_empty() {
                        println!("{interface}: {} {is}", what.join(", "));
                    }
                }
                is_quiet = false;
            }
            Outcome::Failed => failed.push(interface),
            // Without names only those are meant that nobody has.
            Outcome::Held(holder) if interfaces.is_empty() => {
                println!("{interface} belongs to {holder}, which puts its settings back when it ends");
                is_quiet = false;
            }
            Outcome::Held(holder) => held = held.or(Some((interface, holder))),
        }
    }
    if !failed.is_empty() {
        return Err(Failure::NotRestored(failed.join(" and ")));
    }
    if let Some((interface, holder)) = held {
        return Err(Failure::Held { interface, holder });
    }
    if is_quiet {
        println!("nothing is to be put back");
    }
    Ok(())
}
