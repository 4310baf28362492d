//! How many instructions the engine executes: `make bench-check`. Unlike times they repeat exactly, on a busy machine too, so that a
//! rise is the doing of whoever changed the code.
//!
//! Each row is run in a process of its own under callgrind, which collects only while [`counted_poll`] is on the stack: what sets a row up,
//! writes its frames and reads them is not counted. What is allowed stands in `instructions.txt`.

use crate::worker::Worker;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, ExitCode};
use tcpstate::{Proxy, Side};

/// The switch of a process that runs one row to be counted; the row's whole name follows.
pub const ONE_ROW: &str = "--one-row";
/// Batches that are counted, at least.
pub const BATCHES: usize = 60;

/// The rows that are counted, and how many batches come before: enough to fill the SYN cache where each SYN is to evict another.
const ROWS: [(&str, usize); 18] = [
    ("SYN -> SYN-ACK, cache off, random sources", 60),
    ("SYN -> SYN-ACK, cache on, hot (100 sources, repeated)", 60),
    ("SYN -> SYN-ACK, cache on and full, random sources", 1100),
    ("SYN -> SYN-ACK, cache on, each stored, random sources", 1100),
    ("SYN -> SYN-ACK, cache off, a million networks listed, random sources", 60),
    ("SYN -> SYN-ACK, cache off, SYN-ACKs limited, random sources", 60),
    ("bogus ACK, with timestamps, cache off, hot (100), SYNs answered", 60),
    ("bogus ACK, with timestamps, cache off, hot (100), SYNs answered, guesses spent", 60),
    ("bogus ACK, with timestamps, cache off, hot (100), no SYN", 60),
    ("bogus ACK, without timestamps, cache off, hot (100), SYNs answered", 60),
    ("bogus ACK, without timestamps, cache off, hot (100), no SYN", 60),
    ("established, 100 B, IPv4, cache off, hot (128 flows)", 60),
    ("established, 1448 B, IPv4, cache off, hot (128 flows)", 60),
    ("established, 100 B, IPv6, cache off, hot (128 flows)", 60),
    ("ICMP error about a segment in flight, IPv4, hot (128 flows)", 60),
    ("connection opened and closed, 6 frames, cache off, table of 1024", 60),
    ("connection opened and closed, 6 frames, cache on, table of 1024", 60),
    ("connection opened and closed, early data, cache off, table of 1024", 60),
];

/// What is allowed, a line a row: instructions, then the name.
const ALLOWED: &str = include_str!("../instructions.txt");
const ALLOWED_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

/// By how much a row may exceed what is allowed: what another compiler or C library makes of it.
const TOLERANCE: f64 = 0.02;

/// A batch that is counted.
#[inline(never)]
pub fn counted_poll(worker: &mut Worker, proxy: &mut Proxy, side: Side) {
    worker.poll(proxy, side);
}

/// Batches that come before those that are counted in the row of this name.
pub fn warm_up(name: &str) -> usize {
    ROWS.iter().find(|row| row.0 == name).map_or(0, |row| row.1)
}

/// Counts every row and compares it with what is allowed; `accept` writes the counts down instead.
pub fn check(accept: bool) -> ExitCode {
    let allowed = parse(ALLOWED);
    let mut counts = Vec::new();
    println!("{:<72} {:>8} {:>8} {:>8}", "Instructions per frame, or per connection", "now", "allowed", "change");
    let mut risen = 0;
    for (name, _) in ROWS {
        let count = match count(name) {
            Ok(count) => count,
            Err(complaint) => {
                eprintln!("bench-check: {name}: {complaint}");
                return ExitCode::FAILURE;
            }
        };
        counts.push((name, count));
        let Some(&before) = allowed.get(name) else {
            println!("{name:<72} {count:>8.1}      new");
            risen += 1;
            continue;
        };
        let change = count / before - 1.0;
        let rises = change > TOLERANCE;
        risen += usize::from(rises);
        println!("{name:<72} {count:>8.1} {before:>8.1} {:>+7.1}%{}", 100.0 * change, if rises { "  <--" } else { "" });
    }
    if accept {
        if let Err(error) = std::fs::write(ALLOWED_PATH, written(&counts)) {
            eprintln!("bench-check: {ALLOWED_PATH}: {error}");
            return ExitCode::FAILURE;
        }
        println!("written to {ALLOWED_PATH}: read the difference, and commit it with the change");
    } else if risen > 0 {
        eprintln!(
            "bench-check: {risen} of {} rows cost over {:.0} % more instructions than unit/benches/instructions.txt allows.\n\
             If that is what the change is worth, `INSTRUCTIONS=accept make bench-check` writes the new figures down.",
            ROWS.len(),
            100.0 * TOLERANCE,
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// What a frame, or a connection, of this row costs.
fn count(name: &str) -> Result<f64, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_poll*"])
        .arg(own)
        .args([ONE_ROW, name])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let (said, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let number = |text: &str, word: &str| {
        text.lines().find_map(|line| line.split_once(word)?.1.split_whitespace().next()?.parse::<f64>().ok())
    };
    match (number(&said, "counted:"), number(&complaints, "Collected :")) {
        (Some(units), Some(instructions)) if output.status.success() && units > 0.0 => Ok(instructions / units),
        _ => Err(format!("valgrind did not count it:\n{said}{complaints}")),
    }
}

/// The figures in a text like `instructions.txt`.
fn parse(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.trim().split_once("  "))
        .filter_map(|(n, name)| Some((name, n.parse().ok()?)))
        .collect()
}

fn written(counts: &[(&str, f64)]) -> String {
    let mut text = String::from(
        "# Instructions the engine executes per frame, or per connection: `make bench-check` compares with these and fails where\n\
         # a row has risen by more than 2 %. `INSTRUCTIONS=accept make bench-check` writes this file.\n",
    );
    for (name, count) in counts {
        writeln!(text, "{count:>8.1}  {name}").expect("a string takes everything");
    }
    text
}
