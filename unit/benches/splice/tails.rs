//! How connections end, and what a slow reader costs: whether every byte in front of an end arrives, how long the end takes, whether a reset stays one,
//! and how much memory a relay takes for those who send faster than others read.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use tools::latency::Latencies;
use unit::machine;
use unit::netns::Rig;

use crate::client::{Entry, Line};
use crate::pattern::{self, CHUNK};
use crate::poll::put;
use crate::server::{End, Server, What};

/// Connections that end in each way.
const TIMES: usize = 200;

/// Bytes in front of a client's end, and those with which the server answers it.
const BEFORE: u64 = 1 << 20;
const BEHIND: u64 = 64 << 10;

/// How many may fail in succession until nobody waits for more.
const FAILURES: usize = 3;

/// What became of the ends of connections.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// From the client's FIN to the server's, with all that is between them.
    pub fins: Latencies,
    /// Connections of which every byte came both ways, of how many.
    pub whole: usize,
    pub tried: usize,
    /// From the client's reset until the server hears of it.
    pub resets: Latencies,
    /// Those that the server heard as what they were, of how many.
    pub as_resets: usize,
    pub reset: usize,
    pub wrong: Vec<String>,
    /// Why the others were not whole.
    pub failures: Vec<String>,
}

impl Ends {
    pub fn add(&mut self, other: Ends) {
        self.fins.add(&other.fins);
        self.whole += other.whole;
        self.tried += other.tried;
        self.resets.add(&other.resets);
        self.as_resets += other.as_resets;
        self.reset += other.reset;
        self.wrong.extend(other.wrong);
        self.failures.extend(other.failures);
    }
}

/// Connections that end, one after the other.
pub fn ends(rig: &Rig, entry: Entry, server: &Server) -> Ends {
    rig.client.run(|| {
        crate::pin_to_first();
        let (mut ends, mut failures) = (Ends::default(), 0);
        while ends.tried < TIMES && failures < FAILURES {
            ends.tried += 1;
            match finish(entry, server) {
                Ok(took) => {
                    ends.whole += 1;
                    ends.fins.record(took);
                    failures = 0;
                }
                Err(error) => {
                    failures += 1;
                    ends.failures.push(error.to_string());
                    if error.kind() == io::ErrorKind::InvalidData {
                        ends.wrong.push(error.to_string());
                    }
                }
            }
        }
        failures = 0;
        while ends.reset < TIMES && failures < FAILURES {
            ends.reset += 1;
            match reset(entry, server) {
                Ok((took, is_reset)) => {
                    ends.as_resets += usize::from(is_reset);
                    ends.resets.record(took);
                    failures = 0;
                }
                Err(_) => failures += 1,
            }
        }
        ends
    })
}

/// The client sends and ends its half; the server has all of it, answers, and ends its own.
fn finish(entry: Entry, server: &Server) -> io::Result<Duration> {
    let mut line = Line::open(entry)?;
    line.order(What::Take, BEHIND)?;
    let mut sent = 0;
    while sent < BEFORE {
        let part = pattern::bytes(line.seed, sent, BEFORE - sent);
        line.stream.write_all(part)?;
        sent += part.len() as u64;
    }
    let begin = Instant::now();
    line.stream.shutdown(Shutdown::Write)?;
    let (mut received, mut buffer) = (0, vec![0; CHUNK]);
    loop {
        let got = line.stream.read(&mut buffer)?;
        if let Some(wrong) = pattern::wrong(line.seed, received, &buffer[..got]) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("byte {wrong} of an answer")));
        }
        received += got as u64;
        if got == 0 {
            break;
        }
    }
    let took = begin.elapsed();
    let end = heard(server, line.seed, Duration::from_secs(1))?;
    if let Some(wrong) = end.wrong {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("byte {wrong} in front of an end")));
    }
    if end.is_reset || end.received != BEFORE || received != BEHIND {
        return Err(io::Error::other(format!("{} bytes came, and {received} back", end.received)));
    }
    Ok(took)
}

/// The client resets a connection on which all is quiet. How long the server took to hear of it, and whether it heard a reset.
fn reset(entry: Entry, server: &Server) -> io::Result<(Duration, bool)> {
    let mut line = Line::open(entry)?;
    line.order(What::Take, 0)?;
    line.stream.write_all(pattern::bytes(line.seed, 0, 1 << 10))?;
    std::thread::sleep(Duration::from_millis(2));
    sockopt::set_socket_linger(&line.stream, Some(Duration::ZERO))?;
    let begin = Instant::now();
    drop(line.stream);
    let end = heard(server, line.seed, Duration::from_secs(2))?;
    Ok((end.when.saturating_duration_since(begin), end.is_reset))
}

fn heard(server: &Server, seed: u64, patience: Duration) -> io::Result<End> {
    let begin = Instant::now();
    loop {
        match server.end_of(seed) {
            Some(end) => return Ok(end),
            None if begin.elapsed() > patience => return Err(io::Error::other("the server has heard of no end")),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Clients that send while nobody reads, and what each sends at most.
const SENDERS: usize = 64;
const MOST: u64 = 16 << 20;

/// When nothing has been taken for so long, everything is full; and how long that may take.
const FULL: Duration = Duration::from_millis(400);
const LONGEST: Duration = Duration::from_secs(5);

/// How long all of it may take to arrive when the server reads again.
const ARRIVAL: Duration = Duration::from_secs(20);

/// What a slow reader brings about.
#[derive(Clone, Debug, Default)]
pub struct Slow {
    /// Bytes that were taken from the clients while nobody read.
    pub taken: u64,
    /// Memory of the machine that was gone meanwhile.
    pub memory: u64,
    /// Connections of which every byte came in the end, of how many.
    pub whole: usize,
    pub tried: usize,
    pub wrong: Vec<String>,
}

impl Slow {
    /// Of two, the one that took more.
    pub fn add(&mut self, other: Slow) {
        self.taken = self.taken.max(other.taken);
        self.memory = self.memory.max(other.memory);
        self.whole += other.whole;
        self.tried += other.tried;
        self.wrong.extend(other.wrong);
    }
}

/// Everybody sends, the server reads nothing until all is full or each has sent [`MOST`]; then it reads. Its [`Server`] has released nothing before.
pub fn slow_reader(rig: &Rig, entry: Entry, server: &Server) -> io::Result<Slow> {
    rig.client.run(|| {
        crate::pin_to_first();
        let mut lines: Vec<(Line, u64)> = Vec::new();
        for _ in 0..SENDERS {
            let mut line = Line::open(entry)?;
            line.order(What::Hold, 0)?;
            line.stream.set_nonblocking(true)?;
            lines.push((line, 0));
        }
        std::thread::sleep(Duration::from_millis(100));
        let (before, begin, mut moved) = (machine::available(), Instant::now(), Instant::now());
        while moved.elapsed() < FULL && begin.elapsed() < LONGEST {
            for (line, sent) in &mut lines {
                let put = put(&line.stream, pattern::bytes(line.seed, *sent, MOST - *sent))? as u64;
                *sent += put;
                if put > 0 {
                    moved = Instant::now();
                }
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let mut slow = Slow {
            taken: lines.iter().map(|(_, sent)| *sent).sum(),
            memory: before.saturating_sub(machine::available()),
            tried: lines.len(),
            ..Slow::default()
        };
        server.release();
        lines.iter().try_for_each(|(line, _)| end(&line.stream))?;
        let begin = Instant::now();
        for (line, sent) in &lines {
            let Ok(end) = heard(server, line.seed, ARRIVAL.saturating_sub(begin.elapsed())) else { continue };
            slow.wrong.extend(end.wrong.map(|wrong| format!("byte {wrong} behind a slow reader")));
            slow.whole += usize::from(!end.is_reset && end.wrong.is_none() && end.received == *sent);
        }
        Ok(slow)
    })
}

fn end(stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)
}
