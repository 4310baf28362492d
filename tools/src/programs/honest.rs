//! `honest`: clients who mean it. Connects again and again, says a word, waits for it to come back, and tells how many
//! got through and how long the slowest took; `honest serve` is the other end.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

/// What a client says.
const WORD: &[u8] = b"honest\n";

/// Honest clients, and the server they talk to.
#[derive(Parser, Debug)]
#[command(name = "honest", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand, Debug)]
enum Role {
    /// Answers everything with itself, until it is stopped.
    Serve {
        /// Where to listen, as 10.0.0.1:80 or [fd00::1]:80.
        address: SocketAddr,
    },
    /// Connects, one client after the other; fails if one of them does.
    Connect {
        /// Where to.
        address: SocketAddr,
        /// How many.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
        /// The seconds over which their beginnings are spread; 0 is one right after the other.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=600))]
        over: u64,
        /// The seconds a client waits before it gives up.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
        patience: u64,
    },
}

/// Parses the command line and runs the program.
pub fn main() -> ExitCode {
    let done = match Arguments::parse().role {
        Role::Serve { address } => serve(address).map(|()| true),
        Role::Connect { address, count, over, patience } => {
            Ok(connect_all(address, count, Duration::from_secs(over) / count, Duration::from_secs(patience)))
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("honest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    loop {
        let (stream, _) = listener.accept()?;
        // A client that goes away is its own business.
        thread::spawn(move || io::copy(&mut &stream, &mut &stream));
    }
}

/// Connects `count` times and prints what came of it; true if all got through.
fn connect_all(address: SocketAddr, count: u32, pause: Duration, patience: Duration) -> bool {
    let mut times = Vec::new();
    for number in 1..=count {
        let start = Instant::now();
        match visit(address, patience) {
            Ok(connected) => times.push(connected),
            Err(error) => println!("client {number}: {error} after {:.3} s", start.elapsed().as_secs_f64()),
        }
        thread::sleep(pause.saturating_sub(start.elapsed()));
    }
    times.sort();
    let milliseconds =
        |time: Option<&Duration>| time.map_or("none".into(), |t| format!("{:.1}ms", t.as_secs_f64() * 1e3));
    println!(
        "attempted={count} connected={} median={} slowest={}",
        times.len(),
        milliseconds(times.get(times.len() / 2)),
        milliseconds(times.last())
    );
    times.len() == count as usize
}

/// One client: connects, says its word, hears it again, goes. Returns the time until it was heard.
fn visit(address: SocketAddr, patience: Duration) -> io::Result<Duration> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(WORD)?;
    let mut heard = [0; WORD.len()];
    stream.read_exact(&mut heard)?;
    if heard != WORD {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "heard another word than was said"));
    }
    Ok(start.elapsed())
}
