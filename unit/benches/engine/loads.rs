//! What the engine is loaded with. A load writes the frames of a batch, and reads afterwards what it needs for the next.

use crate::frames::{Options, Pair, QUOTED, Tcp, be32, write_error};
use crate::worker::{BATCH, BEAT, Worker};
use std::time::Duration;
use tcpstate::config::{EarlyEcho, Handshake, RateLimit};
use tcpstate::wire::Flags;
use tcpstate::{Config, DropReason, Proxy, Secrets, Side, Verdict};

/// One kind of traffic.
pub trait Load {
    /// Writes the next batch; the side it comes from.
    fn fill(&mut self, worker: &mut Worker) -> Side;
    /// Reads what became of it, and whether each frame's verdict was as it must be; how many were not.
    fn read(&mut self, worker: &Worker) -> usize;
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

/// The default configuration, but no prefix is ever limited, and nothing is adopted.
pub fn config(cache: usize, table_buckets: usize) -> Config {
    let rate = RateLimit { burst: u32::MAX / 8, failures: u32::MAX / 8, guesses: u32::MAX, ..RateLimit::default() };
    Config { syn_cache_max: cache, table_buckets, rate, adopt_grace: Duration::ZERO, ..Config::default() }
}

/// The same, with handshakes that end early.
pub fn early(config: Config) -> Config {
    Config { handshake: Handshake::Early, early_echo: EarlyEcho::None, ..config }
}

/// The same in every process.
pub fn secrets() -> Secrets {
    Secrets::new(std::array::from_fn(|n| n as u8 * 5 + 1))
}

/// An engine with fixed secrets.
pub fn proxy(config: &Config, worker: &Worker) -> Proxy {
    Proxy::new(config, &secrets(), worker.now)
}

fn others(worker: &Worker, expected: Verdict) -> usize {
    worker.verdicts().iter().filter(|&&verdict| verdict != expected).count()
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
    pub pause: Duration,
}

impl Load for SynFlood {
    fn fill(&mut self, worker: &mut Worker) -> Side {
        worker.now = worker.now + self.pause;
        for n in 0..BATCH {
            let pair = self.sources.draw();
            let seq = if self.repeats { pair.client } else { self.sources.chance.word() };
            let options = Options::Syn { value: seq ^ 0x5555, echo: 0 };
            worker.write(n, Side::Wan, pair, &Tcp { seq, ack: 0, flags: Flags::SYN, options, payload: 0 });
        }
        Side::Wan
    }

    fn read(&mut self, worker: &Worker) -> usize {
        others(worker, Verdict::Reflect)
    }
}

/// Acknowledgements of random numbers.
pub struct AckFlood {
    pub sources: Sources,
    pub timestamps: bool,
    /// Whether there are guesses left that may be tested.
    pub is_tested: bool,
}

/// Has a SYN of each of the first `count` sources answered.
pub fn answer_all(proxy: &mut Proxy, worker: &mut Worker, count: u32) {
    let mut clients = (0..count).map(|n| Pair::numbered(n, false)).cycle();
    for _ in 0..count.div_ceil(BATCH as u32) {
        for (n, pair) in clients.by_ref().take(BATCH).enumerate() {
            let options = Options::Syn { value: 1, echo: 0 };
            worker.write(n, Side::Wan, pair, &Tcp { seq: 1, ack: 0, flags: Flags::SYN, options, payload: 0 });
        }
        worker.poll(proxy, Side::Wan);
        assert_eq!(others(worker, Verdict::Reflect), 0, "a SYN was not answered");
    }
}

impl Load for AckFlood {
    fn fill(&mut self, worker: &mut Worker) -> Side {
        for n in 0..BATCH {
            let pair = self.sources.draw();
            let mut word = || self.sources.chance.word();
            let (seq, ack) = (word(), word());
            let options =
                if self.timestamps { Options::Timestamps { value: word(), echo: word() } } else { Options::None };
            worker.write(n, Side::Wan, pair, &Tcp { seq, ack, flags: Flags::ACK, options, payload: 0 });
        }
        Side::Wan
    }

    fn read(&mut self, worker: &Worker) -> usize {
        let reason = if self.is_tested { DropReason::BadCookie } else { DropReason::RateLimited };
        others(worker, Verdict::Drop(reason))
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
    Syn,
    Prove,
    Answer,
    Acknowledge,
    ClientEnds,
    ServerEnds,
    LastAck,
    /// Proves and asks at once.
    Ask,
    /// Answers, for what was asked early to be delivered.
    AnswerEarly,
}

/// Bytes of a question.
const QUESTION: usize = 100;

impl Step {
    const SIDES: [(Step, Side); 9] = [
        (Step::Syn, Side::Wan),
        (Step::Prove, Side::Wan),
        (Step::Answer, Side::Lan),
        (Step::Acknowledge, Side::Wan),
        (Step::ClientEnds, Side::Wan),
        (Step::ServerEnds, Side::Lan),
        (Step::LastAck, Side::Wan),
        (Step::Ask, Side::Wan),
        (Step::AnswerEarly, Side::Lan),
    ];

    /// Writes the frames of this step.
    fn fill(self, connections: &mut [Connection], worker: &mut Worker) -> Side {
        let side = Self::SIDES[self as usize].1;
        let fin = Flags::FIN.and(Flags::ACK);
        for (n, connection) in connections.iter_mut().enumerate() {
            let tcp = match self {
                Step::Syn => {
                    let options = Options::Syn { value: CLIENT_CLOCK, echo: 0 };
                    Tcp { seq: connection.client, ack: 0, flags: Flags::SYN, options, payload: 0 }
                }
                Step::Answer | Step::AnswerEarly => {
                    let options = Options::Syn { value: SERVER_CLOCK, echo: CLIENT_CLOCK };
                    let (flags, asked) = (Flags::SYN.and(Flags::ACK), self == Step::AnswerEarly);
                    let ack = connection.client.wrapping_sub(if asked { QUESTION as u32 } else { 0 });
                    Tcp { seq: connection.server, ack, flags, options, payload: 0 }
                }
                Step::Ask => connection.segment(side, Flags::ACK, QUESTION),
                Step::ClientEnds | Step::ServerEnds => connection.segment(side, fin, 0),
                _ => connection.segment(side, Flags::ACK, 0),
            };
            if self == Step::Ask {
                worker.blank(n);
            }
            worker.write(n, side, connection.pair, &tcp);
            match self {
                Step::Syn | Step::ClientEnds => connection.client = connection.client.wrapping_add(1),
                Step::ServerEnds => {
                    connection.server = connection.server.wrapping_add(1);
                    connection.outer = connection.outer.wrapping_add(1);
                }
                Step::Answer | Step::AnswerEarly => connection.server = connection.server.wrapping_add(1),
                Step::Ask => connection.client = connection.client.wrapping_add(QUESTION as u32),
                _ => {}
            }
        }
        side
    }

    /// Notes what the ends learn in this step; how many frames went astray.
    fn read(self, connections: &mut [Connection], worker: &Worker) -> usize {
        for (n, connection) in connections.iter_mut().enumerate() {
            let tcp = connection.pair.tcp();
            match self {
                Step::Syn => {
                    let answer = worker.frame(n);
                    connection.outer = be32(answer, tcp + 4).wrapping_add(1);
                    connection.clock = be32(answer, tcp + 28);
                }
                // The client's update takes the frame where its distance is not known, and the server's acknowledgement where it is near.
                Step::Answer if worker.verdicts()[n] == Verdict::Forward => {
                    connection.clock = be32(worker.frame(n), tcp + 24);
                }
                Step::Answer => connection.clock = be32(worker.spares.sent(n), tcp + 24),
                Step::AnswerEarly => connection.clock = be32(worker.frame(n), tcp + 24),
                _ => {}
            }
        }
        match self {
            Step::Syn => others(worker, Verdict::Reflect),
            Step::Answer => {
                let answers = |verdict: &&Verdict| matches!(verdict, Verdict::Reflect | Verdict::Forward);
                BATCH - worker.verdicts().iter().filter(answers).count()
            }
            Step::Ask => worker.verdicts().iter().filter(|verdict| !matches!(verdict, Verdict::Hold(_))).count(),
            Step::AnswerEarly => {
                let delivered = worker.released().iter().filter(|&&verdict| verdict == Verdict::Forward).count();
                others(worker, Verdict::Forward) + BATCH.abs_diff(delivered)
            }
            _ => others(worker, Verdict::Forward),
        }
    }
}

/// Connections made and closed, a batch of them at a time.
pub struct Visits {
    steps: &'static [Step],
    chance: Chance,
    connections: Vec<Connection>,
    next: u32,
    at: usize,
}

impl Visits {
    pub fn new() -> Self {
        // A client's update needs no answer of its own when the client goes on to close.
        Self::of(&[Step::Syn, Step::Prove, Step::Answer, Step::ClientEnds, Step::ServerEnds, Step::LastAck])
    }

    /// Those whose clients ask with their proof, of servers for which that is held.
    pub fn early() -> Self {
        Self::of(&[Step::Syn, Step::Ask, Step::AnswerEarly, Step::ClientEnds, Step::ServerEnds, Step::LastAck])
    }

    /// Connections that are made and left behind.
    #[allow(dead_code, reason = "no benchmark leaves any")]
    pub fn abandoned() -> Self {
        Self { next: 1 << 30, ..Self::of(&[Step::Syn, Step::Prove, Step::Answer]) }
    }

    fn of(steps: &'static [Step]) -> Self {
        Self { steps, chance: Chance(4), connections: Vec::new(), next: 0, at: 0 }
    }
}

impl Load for Visits {
    fn fill(&mut self, worker: &mut Worker) -> Side {
        if self.at == 0 {
            self.connections.clear();
            for _ in 0..BATCH {
                // Spread, so that neighbours in time are not neighbours in number.
                let pair = Pair::numbered(self.next.wrapping_mul(0x9e37_79b1), false);
                self.connections.push(Connection::new(pair, &mut self.chance));
                self.next += 1;
            }
        }
        self.steps[self.at].fill(&mut self.connections, worker)
    }

    fn read(&mut self, worker: &Worker) -> usize {
        let astray = self.steps[self.at].read(&mut self.connections, worker);
        self.at = (self.at + 1) % self.steps.len();
        astray
    }

    fn batches_a_unit(&self) -> usize {
        self.steps.len()
    }
}

/// `count` connections that are still to be made, a multiple of a batch.
pub fn connections(count: usize, v6: bool) -> Vec<Connection> {
    let mut chance = Chance(9);
    (0..count as u32).map(|n| Connection::new(Pair::numbered(n, v6), &mut chance)).collect()
}

/// Makes `count` connections, a multiple of a batch, leaves them established and keeps nothing of them.
pub fn establish_unseen(proxy: &mut Proxy, worker: &mut Worker, count: usize, v6: bool) {
    let (mut chance, mut batch) = (Chance(9), Vec::with_capacity(BATCH));
    for begin in (0..count as u32).step_by(BATCH) {
        batch.clear();
        batch.extend((begin..begin + BATCH as u32).map(|n| Connection::new(Pair::numbered(n, v6), &mut chance)));
        establish(proxy, worker, &mut batch);
    }
}

/// Makes these connections and leaves them established.
pub fn establish(proxy: &mut Proxy, worker: &mut Worker, connections: &mut [Connection]) {
    for batch in connections.chunks_mut(BATCH) {
        // No client is so far that anybody waits for it: the clock stands still.
        worker.now = worker.now + BEAT;
        for step in [Step::Syn, Step::Prove, Step::Answer, Step::Acknowledge] {
            let side = step.fill(batch, worker);
            worker.poll(proxy, side);
            assert_eq!(step.read(batch, worker), 0, "a handshake went astray");
        }
    }
}

/// Has the ends of these connections on `side` send some data.
pub fn send(proxy: &mut Proxy, worker: &mut Worker, connections: &[Connection], side: Side) {
    for batch in connections.chunks(BATCH) {
        for (n, connection) in batch.iter().enumerate() {
            worker.blank(n);
            worker.write(n, side, connection.pair, &connection.segment(side, Flags::ACK, QUESTION));
        }
        worker.poll(proxy, side);
        assert_eq!(others(worker, Verdict::Forward), 0, "data went astray");
    }
}

/// Numbers below `count` in a random order.
fn shuffled(count: usize) -> Vec<u32> {
    let mut chance = Chance(17);
    let mut order: Vec<u32> = (0..count as u32).collect();
    for n in (1..order.len()).rev() {
        order.swap(n, chance.word() as usize % (n + 1));
    }
    order
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
        let order = shuffled(connections.len());
        // The LAN's turn comes half a round later than the WAN's, when the connection has left the caches.
        Self { at: [0, order.len() / 2], connections, order, side: Side::Wan, payload }
    }
}

impl Load for Data {
    fn fill(&mut self, worker: &mut Worker) -> Side {
        self.side = self.side.other();
        let side = self.side;
        for n in 0..BATCH {
            let at = &mut self.at[side as usize];
            let connection = &mut self.connections[self.order[*at] as usize];
            *at = (*at + 1) % self.order.len();
            worker.write(n, side, connection.pair, &connection.segment(side, Flags::ACK, self.payload));
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

    fn read(&mut self, worker: &Worker) -> usize {
        others(worker, Verdict::Forward)
    }
}

/// ICMP errors from the WAN about data the servers have in flight: a router finds it too big.
pub struct Errors {
    connections: Vec<Connection>,
    /// The order of visits.
    order: Vec<u32>,
    at: usize,
}

impl Errors {
    /// Errors about these connections, whose servers send some data for that.
    pub fn new(proxy: &mut Proxy, worker: &mut Worker, connections: Vec<Connection>) -> Self {
        send(proxy, worker, &connections, Side::Lan);
        Self { order: shuffled(connections.len()), connections, at: 0 }
    }

    /// The connections of the next batch, or of the last.
    fn batch(&self, at: usize) -> impl Iterator<Item = &Connection> {
        (at..at + BATCH).map(|n| &self.connections[self.order[n % self.order.len()] as usize])
    }
}

impl Load for Errors {
    fn fill(&mut self, worker: &mut Worker) -> Side {
        for (n, connection) in self.batch(self.at).enumerate() {
            // What is quoted is what the router had: the numbers the client knows.
            let options = Options::Timestamps { value: connection.clock, echo: CLIENT_CLOCK };
            let (seq, ack) = (connection.outer, connection.client);
            let tcp = Tcp { seq, ack, flags: Flags::ACK, options, payload: QUESTION };
            worker.fill(n, |buffer| write_error(buffer, Side::Wan, connection.pair, &tcp));
        }
        Side::Wan
    }

    fn read(&mut self, worker: &Worker) -> usize {
        let is_right = |n: usize, connection: &Connection| {
            worker.verdicts()[n] == Verdict::Forward && be32(worker.frame(n), QUOTED + 4) == connection.server
        };
        let astray = self.batch(self.at).enumerate().filter(|&(n, connection)| !is_right(n, connection)).count();
        self.at = (self.at + BATCH) % self.order.len();
        astray
    }
}
