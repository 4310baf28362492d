//! Blocks that go to the server and come back: closed loop, where each connection sends its next block when the last one is back, and open loop, where
//! blocks are due at a rate of their own, and the time that one waits for its turn counts.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use tools::latency::Latencies;
use unit::netns::Rig;

use crate::client::{Entry, Line};
use crate::cost::{Cost, Stretch};
use crate::pattern::{self, CHUNK};
use crate::poll::{Poll, Readiness, put};
use crate::server::What;

/// What passes before anything is counted: windows open, a fast path takes over.
const WARM: Duration = Duration::from_millis(250);

/// How many times its length a window may last, if not so many blocks came back in it as there are connections.
const LONGEST: u32 = 5;

/// How long blocks that are on their way when the window ends may take.
const DRAIN: Duration = Duration::from_secs(20);

/// When a block is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// When the connection's last one is back.
    Closed,
    /// At random times, so many a second on all connections together, in turn.
    Open(f64),
}

#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub block: u64,
    pub connections: usize,
    pub pace: Pace,
    /// How long is counted.
    pub window: Duration,
}

/// What came of a load.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// From when a block was due to its last byte's return. Every block that was due in the window is in it, also those that never came back.
    pub latencies: Latencies,
    /// Bytes that were brought to the server or back within the window.
    pub bytes: u64,
    pub cost: Cost,
    /// Blocks that did not come back, and connections that could not be opened.
    pub lost: usize,
    /// Bytes that were others.
    pub wrong: Vec<String>,
}

impl Outcome {
    pub fn add(&mut self, other: Outcome) {
        self.latencies.add(&other.latencies);
        self.bytes += other.bytes;
        self.cost.add(other.cost);
        self.lost += other.lost;
        self.wrong.extend(other.wrong);
    }
}

/// Applies a load.
pub fn apply(rig: &Rig, entry: Entry, load: Load) -> io::Result<Outcome> {
    rig.client.run(|| {
        crate::pin_to_first();
        let mut outcome = Outcome::default();
        let mut exchanges = Vec::new();
        for _ in 0..load.connections {
            match Exchange::open(entry) {
                Ok(exchange) => exchanges.push(exchange),
                Err(_) => outcome.lost += 1,
            }
            // It is not going to be better.
            if outcome.lost > 3 {
                return Err(io::Error::other(format!("{} connections open, and no more", exchanges.len())));
            }
        }
        Run::new(load, exchanges, outcome)?.run()
    })
}

/// A connection.
struct Exchange {
    line: Line,
    readiness: Readiness,
    sent: u64,
    received: u64,
    /// How many bytes may be sent.
    granted: u64,
    /// Blocks on their way: when each was due, and where it ends.
    blocks: VecDeque<(Instant, u64)>,
    is_broken: bool,
}

impl Exchange {
    fn open(entry: Entry) -> io::Result<Exchange> {
        let mut line = Line::open(entry)?;
        line.order(What::Echo, 0)?;
        line.stream.set_nonblocking(true)?;
        let blocks = VecDeque::new();
        Ok(Exchange {
            line,
            readiness: Readiness::default(),
            sent: 0,
            received: 0,
            granted: 0,
            blocks,
            is_broken: false,
        })
    }

    fn grant(&mut self, due: Instant, block: u64) -> io::Result<()> {
        self.granted += block;
        self.blocks.push_back((due, self.granted));
        self.send()
    }

    fn send(&mut self) -> io::Result<()> {
        while self.sent < self.granted {
            match put(&self.line.stream, pattern::bytes(self.line.seed, self.sent, self.granted - self.sent))? {
                0 => break,
                put => self.sent += put as u64,
            }
        }
        Ok(())
    }
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Warms,
    Counts,
    Drains,
}

struct Run {
    load: Load,
    exchanges: Vec<Exchange>,
    outcome: Outcome,
    poll: Poll,
    phase: Phase,
    /// When the window began.
    from: Instant,
    done: usize,
}

impl Run {
    fn new(load: Load, exchanges: Vec<Exchange>, outcome: Outcome) -> io::Result<Run> {
        let poll = Poll::new()?;
        for (at, exchange) in exchanges.iter().enumerate() {
            poll.add(&exchange.line.stream, at as u64)?;
        }
        Ok(Run { load, exchanges, outcome, poll, phase: Phase::Warms, from: Instant::now(), done: 0 })
    }

    fn run(mut self) -> io::Result<Outcome> {
        let mut chance = SmallRng::seed_from_u64(0x5eed);
        let mut buffer = vec![0; CHUNK];
        let mut events = Vec::new();
        let begin = Instant::now();
        let (mut stretch, mut ended, mut moved) = (Stretch::begin(), begin, begin);
        let (mut due, mut turn) = (begin, 0);
        if self.load.pace == Pace::Closed {
            (0..self.exchanges.len()).for_each(|at| self.grant(at, begin));
        }
        loop {
            let now = Instant::now();
            match self.phase {
                Phase::Warms if now - begin >= WARM => {
                    (self.phase, self.from, stretch) = (Phase::Counts, now, Stretch::begin());
                }
                Phase::Counts if self.is_long_enough(now) => {
                    self.outcome.cost = stretch.end();
                    (self.phase, ended) = (Phase::Drains, now);
                }
                Phase::Drains => {
                    let is_idle =
                        self.exchanges.iter().all(|exchange| exchange.is_broken || exchange.blocks.is_empty());
                    // Nothing moves any more, or for too long.
                    if is_idle || now - ended > DRAIN || now - moved > DRAIN / 4 {
                        break;
                    }
                }
                _ => {}
            }
            let mut patience = Duration::from_millis(20);
            if let Pace::Open(rate) = self.load.pace
                && self.phase != Phase::Drains
            {
                while due <= now {
                    self.grant(turn, due);
                    turn = (turn + 1) % self.exchanges.len();
                    due += Duration::from_secs_f64(exponential(&mut chance) / rate);
                }
                patience = patience.min(due - now);
            }
            events.clear();
            events.extend(self.poll.wait(Some(patience))?);
            for &event in &events {
                let at = event.token as usize;
                self.exchanges[at].readiness.note(event);
                self.advance(at, &mut buffer);
            }
            if !events.is_empty() {
                moved = now;
            }
        }
        let now = Instant::now();
        for exchange in &self.exchanges {
            for (due, _) in exchange.blocks.iter().filter(|(due, _)| *due >= self.from) {
                self.outcome.lost += 1;
                self.outcome.latencies.record(now - *due);
            }
        }
        Ok(self.outcome)
    }

    fn is_long_enough(&self, now: Instant) -> bool {
        let passed = now - self.from;
        passed >= self.load.window && (self.done >= self.exchanges.len() || passed >= self.load.window * LONGEST)
    }

    fn grant(&mut self, at: usize, due: Instant) {
        let exchange = &mut self.exchanges[at];
        if exchange.is_broken {
            self.outcome.lost += usize::from(self.phase == Phase::Counts);
        } else {
            exchange.is_broken = exchange.grant(due, self.load.block).is_err();
        }
    }

    /// Sends and receives what can be on a connection.
    fn advance(&mut self, at: usize, buffer: &mut [u8]) {
        let exchange = &mut self.exchanges[at];
        if exchange.is_broken {
            return;
        }
        exchange.is_broken = exchange.send().is_err();
        while !exchange.is_broken {
            match exchange.readiness.read(&exchange.line.stream, buffer) {
                Ok(None) => return,
                Ok(Some(got)) if !got.is_empty() => {
                    if let Some(wrong) = pattern::wrong(exchange.line.seed, exchange.received, got) {
                        self.outcome.wrong.push(format!("byte {wrong} of connection {}", exchange.line.seed));
                        exchange.is_broken = true;
                    }
                    exchange.received += got.len() as u64;
                    if self.phase == Phase::Counts {
                        self.outcome.bytes += 2 * got.len() as u64;
                    }
                }
                Ok(Some(_)) | Err(_) => exchange.is_broken = true,
            }
            while exchange.blocks.front().is_some_and(|(_, end)| *end <= exchange.received) {
                let (due, _) = exchange.blocks.pop_front().expect("there is a first one");
                let now = Instant::now();
                if self.phase != Phase::Warms && due >= self.from {
                    self.outcome.latencies.record(now - due);
                    self.done += 1;
                }
                if self.load.pace == Pace::Closed && self.phase != Phase::Drains {
                    exchange.is_broken |= exchange.grant(now, self.load.block).is_err();
                }
            }
        }
    }
}

/// Drawn from the exponential distribution whose mean is one.
fn exponential(chance: &mut impl Rng) -> f64 {
    -(1.0 - chance.random::<f64>()).ln()
}
