//! `honest`: clients and an echo server that use the kernel's TCP. Each client connects, sends a message and waits for the echo; the report
//! has the number of successes and the latencies.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

/// The message of a client.
const MESSAGE: &[u8] = b"honest\n";

/// Runs honest TCP clients, or the echo server they connect to
#[derive(Parser, Debug)]
#[command(name = "honest", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand, Debug)]
enum Role {
    /// Runs the echo server until it is stopped
    Serve {
        /// The address and port to listen on, such as 10.0.0.1:80 or [fd00::1]:80
        address: SocketAddr,
    },
    /// Opens connections, says so in a line, and sends a byte on each once its own input ends
    Hold {
        /// The address and port of the server
        address: SocketAddr,
        /// Number of connections; each takes a descriptor
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
    },
    /// Runs clients one after the other; the exit status is 1 if one of them fails
    Connect {
        /// The address and port of the server
        address: SocketAddr,
        /// Number of clients
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
        /// Seconds over which the clients are spread; with 0 each starts when the one before has ended
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=600))]
        over: u64,
        /// Seconds a client waits before it gives up
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
        patience: u64,
    },
}

/// Parses the command line and runs the program.
pub fn main() -> ExitCode {
    let done = match Arguments::parse().role {
        Role::Serve { address } => serve(address).map(|()| true),
        Role::Hold { address, count } => hold(address, count).map(|()| true),
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
    // A crowd that comes at once is not turned away; the kernel takes `net.core.somaxconn` where that is less.
    rustix::net::listen(&listener, i32::MAX)?;
    loop {
        let (stream, _) = listener.accept()?;
        // A connection that fails matters to its client only.
        thread::spawn(move || io::copy(&mut &stream, &mut &stream));
    }
}

fn hold(address: SocketAddr, count: u32) -> io::Result<()> {
    let streams: Vec<_> = (0..count).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
    println!("held={count}");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    streams.iter().try_for_each(|mut stream| stream.write_all(b"!"))
}

/// Runs `count` clients and prints the result; true if all succeeded.
fn connect_all(address: SocketAddr, count: u32, pause: Duration, patience: Duration) -> bool {
    let mut times = Vec::new();
    for number in 1..=count {
        let start = Instant::now();
        match run_client(address, patience) {
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

/// Runs one client: connects, sends the message, receives the echo. Returns the time until the echo.
fn run_client(address: SocketAddr, patience: Duration) -> io::Result<Duration> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(MESSAGE)?;
    let mut echo = [0; MESSAGE.len()];
    stream.read_exact(&mut echo)?;
    if echo != MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the echo differs from the message"));
    }
    Ok(start.elapsed())
}
