//! `ctrlperf`: measures how many requests per second the control port handles. Sends requests in batches, reads every reply, and prints the
//! rate.
//!
//! The box needs a mode set to `commanded`. The requests add one server entry for the address 0.0.0.0, which no packet has: the first is
//! granted, all others are refused. The entry is deleted at the end.

use clap::Parser;
use control::Entry;
use control::wire::{self, DONE, Operation, REFUSED};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// Measures how many requests per second the control port of synproxy handles
#[derive(Debug, Parser)]
#[command(name = "ctrlperf", version)]
pub(crate) struct Arguments {
    /// The address and port of the control port
    #[arg(default_value = "127.0.0.1:12345")]
    address: SocketAddr,
    /// Number of requests
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    requests: u32,
    /// Number of requests sent per batch
    #[arg(long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    batch: u32,
}

/// Parses the command line and runs the program.
pub fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ctrlperf: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let Arguments { address, requests, batch } = *arguments;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let nobody = Entry { address: [0, 0, 0, 0].into(), port: 0, protocol: 0, mss: 1460, sack: true, wscale: 7 };
    let mut request = Vec::new();
    wire::write(&Operation::Add(nobody), &mut request);
    let begin = Instant::now();
    let (mut left, mut granted) = (requests, 0);
    while left > 0 {
        let now = left.min(batch);
        granted += exchange(&mut stream, &request.repeat(now as usize), now as usize)?;
        left -= now;
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{requests} requests in {seconds:.3} s, {:.0} a second; {granted} granted", f64::from(requests) / seconds);
    // Delete the entry only if this run has added it.
    if granted > 0 {
        request.clear();
        wire::write(&Operation::Delete(nobody.key()), &mut request);
        exchange(&mut stream, &request, 1)?;
    }
    Ok(())
}

/// Sends `bytes`, which are `count` requests, and reads the replies at the same time, because the box stops reading from a client that does
/// not. Returns how many were granted.
fn exchange(stream: &mut TcpStream, bytes: &[u8], count: usize) -> io::Result<usize> {
    let mut writer = stream.try_clone()?;
    thread::scope(|scope| {
        let sent = scope.spawn(move || writer.write_all(bytes));
        let mut answers = vec![0; 2 * count];
        let read = stream.read_exact(&mut answers);
        let sent = sent.join().map_err(|_| io::Error::other("the sending thread has panicked"))?;
        read.and(sent)?;
        let (answers, _) = answers.as_chunks();
        if answers.iter().any(|answer| *answer != DONE && *answer != REFUSED) {
            return Err(io::Error::new(ErrorKind::InvalidData, "these are not replies of a control port"));
        }
        Ok(answers.iter().filter(|answer| **answer == DONE).count())
    })
}
