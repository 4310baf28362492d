//! `ctrlperf`: how many requests a second the control port of a box takes. Sends requests in batches, reads every answer, and tells the rate.
//!
//! The box has to have a `commanded` mode. What is sent changes nothing that counts: one entry for the address 0.0.0.0, which is nobody's,
//! and which the first request brings and all the others are refused for.

use clap::Parser;
use control::Entry;
use control::wire::{self, DONE, Operation, REFUSED};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// Pushes requests through the control port as fast as it answers, and prints the rate
#[derive(Debug, Parser)]
#[command(name = "ctrlperf", version)]
pub(crate) struct Arguments {
    /// The control port
    #[arg(default_value = "127.0.0.1:12345")]
    address: SocketAddr,
    /// How many requests
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    requests: u32,
    /// How many are sent before their answers are read
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
        granted += push(&mut stream, &request.repeat(now as usize), now as usize)?;
        left -= now;
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{requests} requests in {seconds:.3} s, {:.0} a second; {granted} granted", f64::from(requests) / seconds);
    // The entry is not ours to leave behind, if it was ours.
    if granted > 0 {
        request.clear();
        wire::write(&Operation::Delete(nobody.key()), &mut request);
        push(&mut stream, &request, 1)?;
    }
    Ok(())
}

/// Sends these bytes, and reads the answers to `count` requests meanwhile: a box does not listen to who does not.
/// Returns how many were granted.
fn push(stream: &mut TcpStream, bytes: &[u8], count: usize) -> io::Result<usize> {
    let mut writer = stream.try_clone()?;
    thread::scope(|scope| {
        let sent = scope.spawn(move || writer.write_all(bytes));
        let mut answers = vec![0; 2 * count];
        let read = stream.read_exact(&mut answers);
        let sent = sent.join().map_err(|_| io::Error::other("the sender has panicked"))?;
        read.and(sent)?;
        let (answers, _) = answers.as_chunks();
        if answers.iter().any(|answer| *answer != DONE && *answer != REFUSED) {
            return Err(io::Error::new(ErrorKind::InvalidData, "these are no answers"));
        }
        Ok(answers.iter().filter(|answer| **answer == DONE).count())
    })
}
