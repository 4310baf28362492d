//! Connections that are routed by name: each sends a recorded ClientHello, reads what the server's name answers with, and ends. So the ends cost as
//! little as they can, and what is in the middle has its whole work.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tools::latency::Latencies;
use unit::netns::Rig;

use crate::client::Entry;
use crate::cost::{Cost, Stretch};
use crate::pattern::{self, Name};
use crate::poll::{Poll, Readiness, put};
use crate::relay;
use crate::server::{PAGE, PAGE_SEED};

/// Connections at a time.
const AT_ONCE: usize = 64;

/// What passes before anything is counted.
const WARM: Duration = Duration::from_millis(300);

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Routed {
    /// From a connection's SYN to its end.
    pub latencies: Latencies,
    pub connections: u64,
    pub cost: Cost,
    /// Connections that broke off, or took too long.
    pub lost: usize,
    pub wrong: Vec<String>,
}

impl Routed {
    pub fn add(&mut self, other: Routed) {
        self.latencies.add(&other.latencies);
        self.connections += other.connections;
        self.cost.add(other.cost);
        self.lost += other.lost;
        self.wrong.extend(other.wrong);
    }
}

struct Visit {
    socket: OwnedFd,
    begin: Instant,
    readiness: Readiness,
    /// Whether the ClientHello has been sent.
    is_asked: bool,
    received: u64,
}

/// Clients come and go for so long; every other one sends a ClientHello of two segments.
pub fn apply(rig: &Rig, entry: Entry, window: Duration) -> io::Result<Routed> {
    rig.client.run(|| {
        crate::pin_to_first();
        let hellos = [Name::Page.hello(false), Name::Page.hello(true)];
        let mut routed = Routed::default();
        let mut poll = Poll::new()?;
        let mut visits: Vec<Visit> = Vec::new();
        for at in 0..AT_ONCE {
            visits.push(begin(&poll, entry, at)?);
        }
        let (start, mut stretch, mut from) = (Instant::now(), Stretch::begin(), None);
        let mut events = Vec::new();
        let mut buffer = vec![0; 2 * PAGE as usize];
        loop {
            let now = Instant::now();
            if from.is_none() && now - start > WARM {
                (from, stretch) = (Some(now), Stretch::begin());
            }
            if from.is_some_and(|from| now - from > window) {
                routed.cost = stretch.end();
                break;
            }
            events.clear();
            events.extend(poll.wait(Some(Duration::from_millis(20)))?);
            for &event in &events {
                let at = event.token as usize;
                let visit = &mut visits[at];
                visit.readiness.note(event);
                let done = visit.go_on(&hellos[at % 2], &mut buffer);
                if let Ok(None) = done {
                    continue;
                }
                if from.is_some() {
                    match done {
                        Ok(_) => {
                            routed.connections += 1;
                            routed.latencies.record(visit.begin.elapsed());
                        }
                        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                            routed.wrong.push(error.to_string())
                        }
                        Err(_) => routed.lost += 1,
                    }
                }
                visits[at] = begin(&poll, entry, at)?;
            }
            if events.is_empty() {
                for (at, visit) in visits.iter_mut().enumerate().filter(|(_, visit)| visit.begin.elapsed() > PATIENCE) {
                    routed.lost += 1;
                    *visit = begin(&poll, entry, at)?;
                }
            }
        }
        Ok(routed)
    })
}

fn begin(poll: &Poll, entry: Entry, at: usize) -> io::Result<Visit> {
    let begin = Instant::now();
    let socket = relay::connect(entry.address)?;
    poll.add(&socket, at as u64)?;
    Ok(Visit { socket, begin, readiness: Readiness::default(), is_asked: false, received: 0 })
}

impl Visit {
    /// Does what can be done now; something if that was all.
    fn go_on(&mut self, hello: &[u8], buffer: &mut [u8]) -> io::Result<Option<()>> {
        if !self.is_asked {
            match put(&self.socket, hello) {
                Ok(sent) if sent == hello.len() => self.is_asked = true,
                Ok(_) => return Ok(None),
                // Not connected yet: an event of a socket that was just made.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        while let Some(got) = self.readiness.read(&self.socket, buffer)? {
            if got.is_empty() {
                return match self.received == PAGE {
                    true => Ok(Some(())),
                    false => Err(io::Error::other("an answer broke off")),
                };
            }
            if let Some(wrong) = pattern::wrong(PAGE_SEED, self.received, got) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("byte {wrong} of an answer")));
            }
            self.received += got.len() as u64;
        }
        Ok(None)
    }
}
