//! What the engine is loaded with. A load writes the frames of a batch, and reads afterwards what it needs for the next.

use crate::frames::{Options, Pair, Tcp, be32};
use crate::lane::{BATCH, BEAT, Lane};
use std::time::Duration;
use tcpstate::config::RateLimit;
use tcpstate::wire::Flags;
use tcpstate::{Config, DropReason, Proxy, Secrets, Side, Verdict};

/// One kind of traffic.
pub trait Load {
    /// Writes the next batch; the side it comes from.
    fn fill(&mut self, lane: &mut Lane) -> Side;
    /// Reads what became of it, and whether each frame's verdict was as it must be; how many were not.
    fn read(&mut self, lane: &Lane) -> usize;
    /// Batches that together make up one batch of what is counted.
    fn batches_a_unit(&self) -> usize {
        1
    }
}

/// Random numbers for addresses and the like (splitmix64): cheap, and the same in every run.
pub struct Chance(pub u64);

impl Chance {
    pub fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) as u32
    }
}

/// The default configuration, but no prefix is ever limited.
pub fn config(cache: usize, table_buckets: usize) -> Config {
    let rate = RateLimit { burst: u32::MAX / 8, ..RateLimit::default() };
    Config { half_open_max: cache, table_buckets, rate, adopt_grace: Duration::ZERO, ..Config::default() }
}

/// An engine with fixed secrets.
pub fn proxy(config: &Config, lane: &Lane) -> Proxy {
    Proxy::new(config, &Secrets::new(std::array::from_fn(|n| n as u8 * 5 + 1)), lane.now)
}

fn others(lane: &Lane, expected: Verdict) -> usize {
    lane.verdicts().iter().filter(|&&verdict| verdict != expected).count()
}

/// Whom a flood seems to come from.
pub struct Sources {
    pub chance: Chance,
    /// How many there are; `None` for any.
    pub count: Option<u32>,
}

impl Sources {
    fn draw(&mut self) -> Pair {
        let n = self.chance.word();
        Pair::numbered(self.count.map_or(n, |count| n % count), false)
    }
}

/// SYNs with MSS, SACK permitted, timestamps and window scale.
pub struct SynFlood {
    pub sources: Sources,
    /// The ISN of each source is always the same: its SYNs are repetitions.
    pub repeats: bool,
    /// How much further the clock moves between batches.
    pub pause: std::time::Duration,
}

impl Load for SynFlood {
    fn fill(&mut self, lane: &mut Lane) -> Side {
        lane.now = lane.now + self.pause;
        for n in 0..BATCH {
            let pair = self.sources.draw();
            let seq = if self.repeats { pair.client } else { self.sources.chance.word() };
            let options = Options::Syn { value: seq ^ 0x5555, echo: 0 };
            lane.write(n, Side::Wan, pair, &Tcp { seq, ack: 0, flags: Flags::SYN, options, payload: 0 });
        }
        Side::Wan
    }

    fn read(&mut self, lane: &Lane) -> usize {
        others(lane, Verdict::Reflect)
    }
}

/// Acknowledgements of random numbers.
pub struct AckFlood {
    pub sources: Sources,
    pub timestamps: bool,
}

impl Load for AckFlood {
    fn fill(&mut self, lane: &mut Lane) -> Side {
        for n in 0..BATCH {
            let pair = self.sources.draw();
            let mut word = || self.sources.chance.word();
            let (seq, ack) = (word(), word());
            let options =
                if self.timestamps { Options::Timestamps { value: word(), echo: word() } } else { Options::None };
            lane.write(n, Side::Wan, pair, &Tcp { seq, ack, flags: Flags::ACK, options, payload: 0 });
        }
        Side::Wan
    }

    fn read(&mut self, lane: &Lane) -> usize {
        others(lane, Verdict::Drop(DropReason::BadCookie))
    }
}

/// A proxied connection, as its two ends know it.
#[derive(Clone, Copy)]
pub struct Connection {
    pair: Pair,
    /// The client's next number.
    client: u32,
    /// The server's next number, as the server counts.
    server: u32,
    /// The same, as the client counts.
    outer: u32,
    /// The server's clock, as the client knows it.
    clock: u32,
}

/// The client's and the server's clocks stand still.
const CLIENT_CLOCK: u32 = 700_000;
const SERVER_CLOCK: u32 = 900_000;

impl Connection {
    fn new(pair: Pair, chance: &mut Chance) -> Self {
        Self { pair, client: chance.word(), server: chance.word(), outer: 0, clock: 0 }
    }

    fn segment(&self, side: Side, flags: Flags, payload: usize) -> Tcp {
        match side {
            Side::Wan => {
                let options = Options::Timestamps { value: CLIENT_CLOCK, echo: self.clock };
                Tcp { seq: self.client, ack: self.outer, flags, options, payload }
            }
            Side::Lan => {
                let options = Options::Timestamps { value: SERVER_CLOCK, echo: CLIENT_CLOCK };
                Tcp { seq: self.server, ack: self.client, flags, options, payload }
            }
        }
    }
}

/// One step of a connection's life, done for a whole batch of connections.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Call,
    Prove,
    Answer,
    Acknowledge,
    ClientEnds,
    ServerEnds,
    LastAck,
}

impl Step {
    const SIDES: [(Step, Side); 7] = [
        (Step::Call, Side::Wan),
        (Step::Prove, Side::Wan),
        (Step::Answer, Side::Lan),
        (Step::Acknowledge, Side::Wan),
        (Step::ClientEnds, Side::Wan),
        (Step::ServerEnds, Side::Lan),
        (Step::LastAck, Side::Wan),
    ];

    /// Writes the frames of this step.
    fn fill(self, connections: &mut [Connection], lane: &mut Lane) -> Side {
        let side = Self::SIDES[self as usize].1;
        let fin = Flags::FIN.and(Flags::ACK);
        for (n, connection) in connections.iter_mut().enumerate() {
            let tcp = match self {
                Step::Call => {
                    let options = Options::Syn { value: CLIENT_CLOCK, echo: 0 };
                    Tcp { seq: connection.client, ack: 0, flags: Flags::SYN, options, payload: 0 }
                }
                Step::Answer => {
                    let options = Options::Syn { value: SERVER_CLOCK, echo: CLIENT_CLOCK };
                    let flags = Flags::SYN.and(Flags::ACK);
                    Tcp { seq: connection.server, ack: connection.client, flags, options, payload: 0 }
                }
                Step::ClientEnds | Step::ServerEnds => connection.segment(side, fin, 0),
                _ => connection.segment(side, Flags::ACK, 0),
            };
            lane.write(n, side, connection.pair, &tcp);
            match self {
                Step::Call | Step::ClientEnds => connection.client = connection.client.wrapping_add(1),
                Step::ServerEnds => {
                    connection.server = connection.server.wrapping_add(1);
                    connection.outer = connection.outer.wrapping_add(1);
                }
                Step::Answer => connection.server = connection.server.wrapping_add(1),
                _ => {}
            }
        }
        side
    }

    /// Notes what the ends learn in this step; how many frames went astray.
    fn read(self, connections: &mut [Connection], lane: &Lane) -> usize {
        for (n, connection) in connections.iter_mut().enumerate() {
            let tcp = connection.pair.tcp();
            match self {
                Step::Call => {
                    let answer = lane.frame(n);
                    connection.outer = be32(answer, tcp + 4).wrapping_add(1);
                    connection.clock = be32(answer, tcp + 28);
                }
                Step::Answer => connection.clock = be32(lane.spares.sent(n), tcp + 24),
                _ => {}
            }
        }
        others(lane, if matches!(self, Step::Call | Step::Answer) { Verdict::Reflect } else { Verdict::Forward })
    }
}

/// Connections made and closed, a batch of them at a time.
pub struct Visits {
    chance: Chance,
    connections: Vec<Connection>,
    next: u32,
    at: usize,
}

impl Visits {
    /// A client's update needs no answer of its own when the client goes on to close.
    const STEPS: [Step; 6] = [Step::Call, Step::Prove, Step::Answer, Step::ClientEnds, Step::ServerEnds, Step::LastAck];

    pub fn new() -> Self {
        Self { chance: Chance(4), connections: Vec::new(), next: 0, at: 0 }
    }
}

impl Load for Visits {
    fn fill(&mut self, lane: &mut Lane) -> Side {
        if self.at == 0 {
            self.connections.clear();
            for _ in 0..BATCH {
                // Spread, so that neighbours in time are not neighbours in number.
                let pair = Pair::numbered(self.next.wrapping_mul(0x9e37_79b1), false);
                self.connections.push(Connection::new(pair, &mut self.chance));
                self.next += 1;
            }
        }
        Self::STEPS[self.at].fill(&mut self.connections, lane)
    }

    fn read(&mut self, lane: &Lane) -> usize {
        let astray = Self::STEPS[self.at].read(&mut self.connections, lane);
        self.at = (self.at + 1) % Self::STEPS.len();
        astray
    }

    fn batches_a_unit(&self) -> usize {
        Self::STEPS.len()
    }
}

/// `count` connections that are still to be made, a multiple of a batch.
pub fn connections(count: usize, v6: bool) -> Vec<Connection> {
    let mut chance = Chance(9);
    (0..count as u32).map(|n| Connection::new(Pair::numbered(n, v6), &mut chance)).collect()
}

/// Makes these connections and leaves them established.
pub fn establish(proxy: &mut Proxy, lane: &mut Lane, connections: &mut [Connection]) {
    for batch in connections.chunks_mut(BATCH) {
        for step in [Step::Call, Step::Prove, Step::Answer, Step::Acknowledge] {
            let side = step.fill(batch, lane);
            lane.now = lane.now + BEAT;
            lane.turn(proxy, side);
            assert_eq!(step.read(batch, lane), 0, "a handshake went astray");
        }
    }
}

/// Data in established connections: a batch from the WAN, a batch from the LAN, in turn, each over connections of its own
/// choice; numbers move on and every segment acknowledges all there is.
pub struct Data {
    connections: Vec<Connection>,
    /// The order of visits.
    order: Vec<u32>,
    at: [usize; 2],
    side: Side,
    payload: usize,
}

impl Data {
    /// Segments of `payload` bytes over these connections in a random order.
    pub fn new(connections: Vec<Connection>, payload: usize) -> Self {
        let mut chance = Chance(17);
        let mut order: Vec<u32> = (0..connections.len() as u32).collect();
        for n in (1..order.len()).rev() {
            order.swap(n, chance.word() as usize % (n + 1));
        }
        // The LAN's turn comes half a round later than the WAN's, when the connection has left the caches.
        Self { at: [0, order.len() / 2], connections, order, side: Side::Wan, payload }
    }
}

impl Load for Data {
    fn fill(&mut self, lane: &mut Lane) -> Side {
        self.side = self.side.other();
        let side = self.side;
        for n in 0..BATCH {
            let at = &mut self.at[side as usize];
            let connection = &mut self.connections[self.order[*at] as usize];
            *at = (*at + 1) % self.order.len();
            lane.write(n, side, connection.pair, &connection.segment(side, Flags::ACK, self.payload));
            let moved = self.payload as u32;
            match side {
                Side::Wan => connection.client = connection.client.wrapping_add(moved),
                Side::Lan => {
                    connection.server = connection.server.wrapping_add(moved);
                    connection.outer = connection.outer.wrapping_add(moved);
                }
            }
        }
        side
    }

    fn read(&mut self, lane: &Lane) -> usize {
        others(lane, Verdict::Forward)
    }
}
