//! Worlds in which somebody keeps honest clients out: attackers of every kind beside clients that do what a host does, a server that answers, and the engine
//! between them. No honest client may wait longer than for its second retry.
//!
//! The engine and the attacks are made smaller by the same factor, fifty: tables, budgets and rates are a fiftieth of what is the default and of what a
//! hostile tester has tried, so that a world is a matter of milliseconds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tcpstate::config::{Handshake, RateLimit};
use tcpstate::{Config, DropReason, Egress, Event as Counted, Head, Instant, Proxy, Secrets, Side, Ticket, Verdict};

use super::chance::Chance;
use crate::script::{
    ACK, FIN, FlowKey, Got, Opt, PSH, RST, SYN, Seg, Terms, ack, build, fin, read, rst_ack, segment, syn, syn_ack,
};

const SECOND: u64 = 1_000_000;

/// How long a world lasts, and when its honest clients begin: attackers have been at work for a while then.
const LASTS: u64 = 14 * SECOND;
const BEGINS: (u64, u64) = (2 * SECOND, 9 * SECOND);

/// When a client repeats its SYN (RFC 6298 section 2, doubled each time), and how much longer than its second retry it may wait: for the round trips of
/// handshake and first answer.
const SYNS: [u64; 4] = [0, SECOND, 3 * SECOND, 7 * SECOND];
const ROUND_TRIPS: u64 = 6;

/// Honest clients of a world.
const CLIENTS: usize = 12;

/// An attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attack {
    /// SYNs from random addresses fill the SYN cache.
    Flood,
    /// Acknowledgements of random numbers, in the name of the clients' network and of the clients themselves.
    Guesses,
    /// SYNs in the same names, each once.
    SpoofedSyns,
    /// The same, each repeated a second later.
    RepeatedSyns,
    /// Signed SYNs from random addresses, and in the name of the honest signer and its network.
    SignedSyns,
    /// The same, each repeated a second later.
    RepeatedSignedSyns,
    /// SYN-ACKs in the name of everybody, to hosts of the LAN.
    Answers,
    /// Signed SYNs from a network that the server bars with resets.
    BarredSigned,
    /// Clients of that network that prove themselves, and are refused.
    BarredClients,
    /// Connections that carry one byte and stay.
    OneByte,
    /// Connections that ask for an answer and hold their window shut.
    ZeroWindows,
    /// Connections that read a byte a second.
    SlowReaders,
}

impl Attack {
    /// All of them.
    pub const ALL: [Attack; 12] = [
        Attack::Flood,
        Attack::Guesses,
        Attack::SpoofedSyns,
        Attack::RepeatedSyns,
        Attack::SignedSyns,
        Attack::RepeatedSignedSyns,
        Attack::Answers,
        Attack::BarredSigned,
        Attack::BarredClients,
        Attack::OneByte,
        Attack::ZeroWindows,
        Attack::SlowReaders,
    ];

    /// Frames a second, the repetitions left out; or handshakes.
    fn rate(self) -> u64 {
        match self {
            Attack::Flood => 500,
            // 20 000 a second, ten times what locked a /24 out.
            Attack::Guesses | Attack::SpoofedSyns => 400,
            // The same with the repetitions.
            Attack::RepeatedSyns => 200,
            // 12 500 a second, ten times what reached a server.
            Attack::SignedSyns | Attack::Answers => 250,
            Attack::RepeatedSignedSyns => 20,
            Attack::BarredSigned => 10,
            Attack::BarredClients => 6,
            // The table is full after six seconds: of a table of the default size that takes 150 000 handshakes a second.
            Attack::OneByte | Attack::ZeroWindows | Attack::SlowReaders => 150,
        }
    }
}

/// A world that went well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The longest that an honest client waited for its answer, in microseconds.
    pub longest: u64,
    /// Honest clients that had to repeat their SYN.
    pub repeated: u64,
    /// SYNs that reached the server signed, forged and otherwise.
    pub signed: u64,
    /// What the engine counted, in the order of [`Event::ALL`](tcpstate::Event::ALL).
    pub events: Vec<u64>,
}

/// Runs the world of this seed with these attacks.
///
/// # Errors
/// The first honest client that was kept out, or what reached the server that should not, with what the engine counted.
pub fn run(seed: u64, attacks: &[Attack]) -> Result<Report, String> {
    World::new(seed, attacks).live()
}

/// Attacks that this seed draws from these: one at least.
pub fn draw(seed: u64, attacks: &[Attack]) -> Vec<Attack> {
    let mut chance = Chance::new(seed ^ 0x0ab5);
    let first = *chance.pick(attacks);
    attacks.iter().copied().filter(|&attack| attack == first || chance.one_in(1, 3)).collect()
}

/// What somebody sends or waits for.
enum Event {
    ToBox(Side, Vec<u8>),
    ToHost(Side, Vec<u8>),
    /// A client's timer: which of its settings it was.
    Client(usize, u64),
    Attacker(Attack),
    /// A slow reader acknowledges.
    Reads(Vec<u8>),
    Box,
}

struct Pending(u64, u64, Event);

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Pending {}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// An honest client.
struct Client {
    ends: FlowKey,
    terms: Terms,
    signed: bool,
    starts: u64,
    isn: u32,
    /// The next number it expects, and the peer's last TSval: once it has its SYN-ACK.
    got: Option<(u32, Option<u32>)>,
    /// The server's window is open.
    open: bool,
    sent: usize,
    /// Which setting of its timer counts, and how often it has fired since the last step forward.
    timer: u64,
    fired: u32,
    ended: Option<u64>,
}

/// A connection as the server knows it.
struct Served {
    syn: u32,
    isn: u32,
    next: u32,
    sent: u32,
    owed: usize,
    signed: bool,
    stamps: Option<(u32, u32)>,
}

/// The engine, and the frames it holds.
struct Engine {
    proxy: Proxy,
    held: BTreeMap<u16, (Ticket, Vec<u8>)>,
}

#[derive(Default)]
struct Sent(Vec<(Side, Vec<u8>)>);

impl Egress for Sent {
    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut buffer = vec![0; 256];
        let len = write(&mut buffer);
        buffer.truncate(len);
        self.0.push((to, buffer));
        true
    }
}

impl Engine {
    fn take(&mut self, side: Side, frame: &[u8], now: Instant) -> Vec<(Side, Vec<u8>)> {
        let mut sent = Sent::default();
        let (verdict, bytes) = Self::decide(frame, |head| self.proxy.on_single(side, head, now, &mut sent));
        match verdict {
            Verdict::Forward => sent.0.push((side.other(), bytes)),
            Verdict::Reflect => sent.0.push((side, bytes)),
            Verdict::Hold(ticket) => drop(self.held.insert(ticket.index, (ticket, frame.to_vec()))),
            Verdict::Drop(_) => {}
        }
        self.bring_back(now, &mut sent);
        sent.0
    }

    fn decide(frame: &[u8], decide: impl FnOnce(&mut Head) -> Verdict) -> (Verdict, Vec<u8>) {
        let mut buffer = [&[0; 64], frame, &[0; 192]].concat();
        let mut head = Head::new(&mut buffer, 64, frame.len(), frame.len());
        let verdict = decide(&mut head);
        (verdict, head.bytes().to_vec())
    }

    fn bring_back(&mut self, now: Instant, sent: &mut Sent) {
        while let Some(ticket) = self.proxy.next_release() {
            let Some((_, frame)) = self.held.remove(&ticket.index) else {
                self.proxy.void(ticket);
                continue;
            };
            let (verdict, bytes) = Self::decide(&frame, |head| self.proxy.on_release(ticket, head, now, sent));
            match verdict {
                Verdict::Forward => sent.0.push((Side::Lan, bytes)),
                Verdict::Reflect => sent.0.push((Side::Wan, bytes)),
                Verdict::Hold(_) | Verdict::Drop(_) => {}
            }
        }
    }

    fn timeout(&mut self, now: Instant) -> Vec<(Side, Vec<u8>)> {
        let mut sent = Sent::default();
        while self.proxy.on_timeout(now, &mut sent) {}
        self.bring_back(now, &mut sent);
        sent.0
    }
}

struct World {
    seed: u64,
    now: u64,
    start: u64,
    end: u64,
    order: u64,
    events: BinaryHeap<Reverse<Pending>>,
    engine: Engine,
    box_at: u64,
    chance: Chance,
    v6: bool,
    attacks: Vec<Attack>,
    clients: Vec<Client>,
    /// By the client's address and port.
    served: BTreeMap<(IpAddr, u16), Served>,
    /// From the clients to the box.
    delay: u64,
    /// Signed SYNs that have reached the server.
    signed: u64,
    /// Frames that attackers have sent.
    counter: u64,
}

/// A TCP-MD5 option (RFC 2385).
const SIGNATURE: [u8; 18] = [19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
const REQUEST: usize = 100;
const PORT: u16 = 80;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 4];

/// Networks of one owner each, a /16 or a /32, with networks of 2^8 addresses or of /64 below it: random ones are further away.
const OF_CLIENTS: u16 = 1;
const ELSEWHERE: u16 = 2;
const OF_SIGNERS: u16 = 3;
const BARRED: u16 = 99;
const ONE_BYTE: u16 = 100;
const ZERO_WINDOWS: u16 = 101;
const SLOW_READERS: u16 = 102;
const RANDOM: u16 = 200;

fn config(chance: &mut Chance) -> Config {
    Config {
        table_buckets: 128,
        learn_capacity: 256,
        syn_cache_max: *chance.pick(&[0, 256]),
        rate: RateLimit { size: 4096, burst: 40, add: 8, failures: 1, guesses: 160, ..RateLimit::default() },
        handshake: *chance.pick(&[Handshake::Honest, Handshake::Early]),
        held_frames: 64,
        passed_rate: 100,
        adopt_grace: Duration::ZERO,
        ..Config::default()
    }
}

impl World {
    fn new(seed: u64, attacks: &[Attack]) -> Self {
        let mut chance = Chance::new(seed);
        let start = chance.within(3..1000) << 26;
        let mut secrets = [0; 48];
        secrets.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&chance.word().to_le_bytes()));
        let proxy = Proxy::new(&config(&mut chance), &Secrets::new(secrets), Instant::from_micros(start));
        let v6 = chance.one_in(1, 4);
        let mut world = Self {
            seed,
            now: start,
            start,
            end: start + LASTS,
            order: 0,
            events: BinaryHeap::new(),
            engine: Engine { proxy, held: BTreeMap::new() },
            box_at: u64::MAX,
            delay: chance.within(2_000..80_000),
            v6,
            attacks: attacks.to_vec(),
            clients: Vec::new(),
            served: BTreeMap::new(),
            signed: 0,
            counter: 0,
            chance,
        };
        for index in 0..CLIENTS {
            let client = world.draw_client(index);
            world.push(client.starts, Event::Client(index, 0));
            world.clients.push(client);
        }
        for &attack in attacks {
            world.push(start, Event::Attacker(attack));
        }
        world
    }

    fn draw_client(&mut self, index: usize) -> Client {
        // Two sign; half of the others are in the network that is attacked.
        let signed = index < 2;
        let network = match index {
            0 | 1 => OF_SIGNERS,
            _ if index.is_multiple_of(2) => OF_CLIENTS,
            _ => ELSEWHERE,
        };
        let source = self.address(network, 0, index as u8 + 1);
        let port = self.chance.within(32_768..61_000) as u16;
        let mss = if self.v6 { 1440 } else { 1460 };
        let terms = [Terms::linux(mss), Terms::windows(mss), Terms::bare(mss)];
        let terms = if signed { Terms::bare(mss) } else { *self.chance.pick(&terms) };
        Client {
            ends: self.ends(source, port),
            terms,
            signed,
            starts: self.start + self.chance.within(BEGINS.0..BEGINS.1),
            isn: self.chance.word() as u32,
            got: None,
            open: false,
            sent: 0,
            timer: 0,
            fired: 0,
            ended: None,
        }
    }

    fn address(&self, network: u16, subnet: u8, host: u8) -> IpAddr {
        if self.v6 {
            Ipv6Addr::new(0x2600, network, 0, u16::from(subnet), 0, 0, 0, u16::from(host)).into()
        } else {
            let [_, network] = network.to_be_bytes();
            Ipv4Addr::new(20, network, subnet, host).into()
        }
    }

    /// The network of an address, as [`World::address`] has made it.
    fn network(address: IpAddr) -> u16 {
        match address {
            IpAddr::V4(v4) => u16::from(v4.octets()[1]),
            IpAddr::V6(v6) => v6.segments()[1],
        }
    }

    fn server(&self) -> IpAddr {
        if self.v6 {
            Ipv6Addr::new(0x2600, 0xdb8, 0xffff, 1, 0, 0, 0, 10).into()
        } else {
            Ipv4Addr::new(192, 0, 2, 10).into()
        }
    }

    fn ends(&self, source: IpAddr, port: u16) -> FlowKey {
        FlowKey {
            src: source,
            dst: self.server(),
            sport: port,
            dport: PORT,
            src_mac: CLIENT_MAC,
            dst_mac: SERVER_MAC,
            ttl: 57,
        }
    }

    fn push(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse(Pending(at, self.order, event)));
    }

    fn live(mut self) -> Result<Report, String> {
        while let Some(Reverse(Pending(at, _, event))) = self.events.pop() {
            if at >= self.end {
                break;
            }
            self.now = at;
            self.step(event).map_err(|what| self.failure(&what))?;
            self.wake_box();
        }
        let mut report = Report { signed: self.signed, ..Report::default() };
        let longest = SYNS[2] + ROUND_TRIPS * 2 * self.delay + SECOND / 2;
        for client in &self.clients {
            let waited = client.ended.map(|at| at - client.starts);
            if waited.is_none_or(|waited| waited > longest) {
                let seconds = waited.map(|waited| waited as f64 / SECOND as f64);
                let (ends, signed) = (client.ends, if client.signed { " (signed)" } else { "" });
                return Err(self.failure(&format!(
                    "{}:{}{signed} waited {seconds:?} s; it had its SYN-ACK: {}, an open window: {}",
                    ends.src,
                    ends.sport,
                    client.got.is_some(),
                    client.open
                )));
            }
            report.longest = report.longest.max(waited.unwrap_or_default());
            report.repeated += u64::from(waited.is_some_and(|waited| waited > SECOND));
        }
        let rate = 100 * LASTS / SECOND;
        if self.signed > rate * 3 / 2 {
            return Err(self.failure(&format!("{} signed SYNs reached the server", self.signed)));
        }
        let counters = self.engine.proxy.counters();
        report.events = Counted::ALL.iter().map(|&event| counters.happened(event)).collect();
        Ok(report)
    }

    fn failure(&self, what: &str) -> String {
        let counters = self.engine.proxy.counters();
        let attacks = format!("{:?}", self.attacks);
        let attacks = attacks.trim_matches(['[', ']']);
        let mut text = format!(
            "seed {}, IPv{}: {what}\nABUSE_SEED={} ABUSE_ATTACKS=\"{attacks}\" cargo test -p unit --test engine abuse::no_attack -- --nocapture\n",
            self.seed,
            if self.v6 { 6 } else { 4 },
            self.seed,
        );
        for (label, count) in Counted::ALL
            .iter()
            .map(|&event| (event.label(), counters.happened(event)))
            .chain(DropReason::ALL.iter().map(|&reason| (reason.label(), counters.dropped(reason))))
            .filter(|(_, count)| *count > 0)
        {
            let _ = write!(text, "{label} {count}, ");
        }
        let _ = write!(text, "{:?}", self.engine.proxy.population());
        text
    }

    fn wake_box(&mut self) {
        let Some(at) = self.engine.proxy.next_deadline() else { return };
        let at = at.as_micros().max(self.now + 1);
        if at < self.box_at {
            self.box_at = at;
            self.push(at, Event::Box);
        }
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        let now = Instant::from_micros(self.now);
        match event {
            Event::ToBox(side, frame) => {
                let sent = self.engine.take(side, &frame, now);
                self.carry(sent);
            }
            Event::Box => {
                self.box_at = u64::MAX;
                let sent = self.engine.timeout(now);
                self.carry(sent);
            }
            Event::ToHost(Side::Lan, frame) => self.serve(&frame)?,
            Event::ToHost(Side::Wan, frame) => self.arrive(&frame)?,
            Event::Client(index, timer) if self.clients[index].timer == timer => self.wake_client(index),
            Event::Client(..) => {}
            Event::Attacker(attack) => self.attack(attack),
            Event::Reads(frame) => self.send(Side::Wan, frame),
        }
        Ok(())
    }

    fn carry(&mut self, sent: Vec<(Side, Vec<u8>)>) {
        for (to, frame) in sent {
            let delay = if to == Side::Wan { self.delay } else { 100 };
            self.push(self.now + delay, Event::ToHost(to, frame));
        }
    }

    fn send(&mut self, side: Side, frame: Vec<u8>) {
        let delay = if side == Side::Wan { self.delay } else { 100 };
        self.push(self.now + delay, Event::ToBox(side, frame));
    }

    /// A segment; nothing if the frame holds another packet, as an ICMP error is.
    fn read(&self, frame: &[u8]) -> Result<Option<Got>, String> {
        let protocol = if self.v6 { frame[20] } else { frame[23] };
        if protocol == 6 { read(frame, Instant::from_micros(self.now)).map(Some) } else { Ok(None) }
    }

    // ---- the server ----

    fn serve(&mut self, frame: &[u8]) -> Result<(), String> {
        let Some(got) = self.read(frame)? else { return Ok(()) };
        let Got { src, seq, flags, .. } = got;
        let back = FlowKey {
            src: got.dst,
            dst: src,
            sport: got.ports.1,
            dport: got.ports.0,
            src_mac: SERVER_MAC,
            dst_mac: CLIENT_MAC,
            ttl: 61,
        };
        let signed = got.options.contains(&Opt::Raw(SIGNATURE.to_vec()));
        let key = (src, got.ports.0);
        let reply = |world: &mut Self, seg: Seg| world.send(Side::Lan, build(&back, 0, &seg));
        if flags & RST != 0 {
            self.served.remove(&key);
            return Ok(());
        }
        if flags & (SYN | ACK) == SYN {
            self.signed += u64::from(signed);
            if Self::network(src) == BARRED {
                reply(self, rst_ack(0, seq.wrapping_add(1)));
                return Ok(());
            }
            let honest = self.clients.iter().any(|client| (client.ends.src, client.ends.sport) == key);
            if signed && !honest {
                // The signature is wrong: the host drops it (RFC 2385 section 2.0).
                return Ok(());
            }
            if !honest && !matches!(Self::network(src), ONE_BYTE | ZERO_WINDOWS | SLOW_READERS) {
                return Err(format!("{src}:{} was forged and reached the server", key.1));
            }
            let isn = self.chance.word() as u32;
            let served = self.served.entry(key).or_insert(Served {
                syn: seq,
                isn,
                next: seq.wrapping_add(1),
                sent: isn.wrapping_add(1),
                owed: 0,
                signed,
                stamps: None,
            });
            if served.syn != seq {
                return Ok(());
            }
            served.stamps = got.ts().map(|(value, _)| (7000, value));
            let isn = served.isn;
            let mut answer = syn_ack(isn, seq.wrapping_add(1)).window(64_240).mss(1400);
            if got.sack_ok() {
                answer = answer.sack_ok();
            }
            answer = answer.maybe_ts(got.ts().map(|(value, _)| (7000, value)));
            if got.wscale().is_some() {
                answer = answer.wscale(7);
            }
            if signed {
                answer = answer.raw(&SIGNATURE);
            }
            reply(self, answer);
            return Ok(());
        }
        let Some(served) = self.served.get_mut(&key) else { return Ok(()) };
        if let Some((value, _)) = got.ts() {
            served.stamps = Some((7001, value));
        }
        let dress = |seg: Seg, served: &Served| {
            let seg = seg.maybe_ts(served.stamps).window(502);
            if served.signed { seg.raw(&SIGNATURE) } else { seg }
        };
        let new = served.next.wrapping_sub(seq) as usize;
        if !got.payload.is_empty() && new < got.payload.len() {
            served.next = seq.wrapping_add(got.payload.len() as u32);
            served.owed += got.payload.len() - new;
        } else if seq == served.next.wrapping_sub(1) || !got.payload.is_empty() {
            // A probe of the window, or a repetition.
            let seg = dress(ack(served.sent, served.next), served);
            reply(self, seg);
            return Ok(());
        }
        if flags & FIN != 0 {
            let (sent, next) = (served.sent, seq.wrapping_add(got.payload.len() as u32 + 1));
            let seg = dress(fin(sent, next), served);
            self.served.remove(&key);
            reply(self, seg);
            return Ok(());
        }
        let unacknowledged = served.sent.wrapping_sub(got.ack) as usize;
        let most = usize::from(got.window).saturating_sub(unacknowledged).min(served.owed);
        if most > 0 {
            let seg = segment(ACK | PSH, served.sent, served.next).payload(most);
            let seg = dress(seg, served);
            served.sent = served.sent.wrapping_add(most as u32);
            served.owed -= most;
            reply(self, seg);
        } else if !got.payload.is_empty() {
            let seg = dress(ack(served.sent, served.next), served);
            reply(self, seg);
        }
        Ok(())
    }

    // ---- clients ----

    fn wake_client(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.ended.is_some() {
            return;
        }
        client.fired += 1;
        match client.got {
            None => {
                let nth = client.fired as usize;
                let stamps = (1000 + (self.now - client.starts) as u32 / 1000, 0);
                let mut seg = client.terms.on(syn(client.isn), stamps);
                if client.signed {
                    seg = seg.raw(&SIGNATURE);
                }
                let frame = build(&client.ends, 0, &seg);
                if let Some(&next) = SYNS.get(nth) {
                    let at = client.starts + next;
                    self.push(at, Event::Client(index, 0));
                }
                self.send(Side::Wan, frame);
            }
            Some(_) => self.talk(index),
        }
    }

    /// Sends the request, or probes a shut window, and sets the timer anew.
    fn talk(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some((next, stamp)) = client.got else { return };
        let first = client.isn.wrapping_add(1);
        let seg = if client.open {
            client.sent = REQUEST;
            segment(ACK | PSH, first, next).payload(REQUEST)
        } else {
            ack(first.wrapping_sub(u32::from(client.fired > 0)), next)
        };
        let clock = 1000 + (self.now - client.starts) as u32 / 1000;
        let seg = seg.maybe_ts(stamp.map(|echo| (clock, echo))).window(502);
        let seg = if client.signed { seg.raw(&SIGNATURE) } else { seg };
        let frame = build(&client.ends, 0, &seg);
        client.timer += 1;
        let (timer, wait) = (client.timer, (SECOND / 5 + 4 * self.delay) << client.fired.min(6));
        self.send(Side::Wan, frame);
        self.push(self.now + wait, Event::Client(index, timer));
    }

    /// A frame reaches somebody beyond the WAN.
    fn arrive(&mut self, frame: &[u8]) -> Result<(), String> {
        let Some(got) = self.read(frame)? else { return Ok(()) };
        let index =
            self.clients.iter().position(|client| (client.ends.src, client.ends.sport) == (got.dst, got.ports.1));
        let Some(index) = index else {
            self.react(&got);
            return Ok(());
        };
        let client = &mut self.clients[index];
        if client.ended.is_some() {
            return Ok(());
        }
        let stamp = got.ts().map(|(value, _)| value);
        match (got.flags & (SYN | ACK | RST), client.got) {
            (flags, None) if flags == SYN | ACK && got.ack == client.isn.wrapping_add(1) => {
                client.got = Some((got.seq.wrapping_add(1), stamp));
                client.open = got.window > 0;
                client.fired = 0;
                self.talk(index);
            }
            (flags, None) if flags & RST != 0 && got.ack == client.isn.wrapping_add(1) => {
                return Err(format!("{}:{} was refused", got.dst, got.ports.1));
            }
            (flags, Some((next, _))) if flags & RST != 0 && got.seq == next => {
                return Err(format!("{}:{} was reset", got.dst, got.ports.1));
            }
            (ACK, Some((next, _))) if got.seq == next => {
                client.got = Some((next.wrapping_add(got.payload.len() as u32), stamp));
                if !got.payload.is_empty() {
                    client.ended = Some(self.now);
                    let (seq, next) = (client.isn.wrapping_add(1 + REQUEST as u32), next + got.payload.len() as u32);
                    let seg = fin(seq, next).maybe_ts(stamp.map(|echo| (9000, echo)));
                    let seg = if client.signed { seg.raw(&SIGNATURE) } else { seg };
                    let frame = build(&client.ends, 0, &seg);
                    self.send(Side::Wan, frame);
                } else if got.window > 0 && !client.open {
                    client.open = true;
                    client.fired = 0;
                    self.talk(index);
                }
            }
            _ => {}
        }
        Ok(())
    }

    // ---- attackers ----

    /// What an attacker's real host does with what comes.
    fn react(&mut self, got: &Got) {
        let network = Self::network(got.dst);
        let window = match network {
            BARRED | ONE_BYTE => 502,
            ZERO_WINDOWS => 0,
            SLOW_READERS => 1,
            _ => return,
        };
        let ends = self.ends(got.dst, got.ports.1);
        let (next, first) = (got.seq.wrapping_add(1), got.ack);
        if got.flags & (SYN | ACK) == SYN | ACK {
            self.send(Side::Wan, build(&ends, 0, &ack(first, next).window(window)));
            if got.window > 0 {
                self.send(Side::Wan, build(&ends, 0, &segment(ACK | PSH, first, next).window(window).payload(1)));
            }
        } else if got.flags & RST == 0 && network != BARRED {
            let next = got.seq.wrapping_add(got.payload.len() as u32);
            if got.payload.is_empty() {
                let asked = if network == ONE_BYTE { 1 } else { 50 };
                self.send(Side::Wan, build(&ends, 0, &segment(ACK | PSH, first, next).window(window).payload(asked)));
            } else if network == SLOW_READERS {
                let frame = build(&ends, 0, &ack(first, next).window(window));
                self.push(self.now + SECOND, Event::Reads(frame));
            }
        }
    }

    fn attack(&mut self, attack: Attack) {
        let gap = SECOND / attack.rate();
        let pause = self.chance.within(1..2 * gap);
        self.push(self.now + pause, Event::Attacker(attack));
        self.counter += 1;
        let n = self.counter;
        let [seq, number] = [self.chance.word(), self.chance.word()].map(|word| word as u32);
        let port = self.chance.within(1024..65_000) as u16;
        // In whose name: somebody's of the network, or a client's own.
        let host = self.chance.within(1..255) as u8;
        let victim = self.chance.within(0..CLIENTS as u64) as u8 + 1;
        let host = if self.chance.one_in(1, 2) { host } else { victim };
        let (network, subnet) = (RANDOM + self.chance.within(0..50) as u16, self.chance.word() as u8);
        let random = self.address(network, subnet, host);
        let of_clients = self.address(OF_CLIENTS, 0, host);
        let of_signers = self.address(OF_SIGNERS, 0, host);
        let subnet = (n / 250 % 250) as u8;
        let in_order = (n % 250) as u8 + 1;
        let bare = Terms::bare(1400).on(syn(seq), (0, 0));
        let signed = syn(seq).mss(1400).raw(&SIGNATURE);
        let (source, seg, repeats) = match attack {
            Attack::Flood => (random, bare, false),
            Attack::Guesses => (of_clients, ack(seq, number), false),
            Attack::SpoofedSyns => (of_clients, bare, false),
            Attack::RepeatedSyns => (of_clients, bare, true),
            Attack::SignedSyns | Attack::RepeatedSignedSyns => {
                let source = if self.chance.one_in(1, 2) { random } else { of_signers };
                (source, signed, attack == Attack::RepeatedSignedSyns)
            }
            Attack::Answers => (random, syn_ack(seq, number).mss(1400), false),
            Attack::BarredSigned => (self.address(BARRED, in_order, 9), signed, false),
            Attack::BarredClients => (self.address(BARRED, in_order, 9), bare, false),
            Attack::OneByte => (self.address(ONE_BYTE, subnet, in_order), bare, false),
            Attack::ZeroWindows => (self.address(ZERO_WINDOWS, subnet, in_order), bare, false),
            Attack::SlowReaders => (self.address(SLOW_READERS, subnet, in_order), bare, false),
        };
        let mut ends = self.ends(source, port);
        if attack == Attack::Answers {
            (ends.sport, ends.dport) = (443, port);
        }
        let frame = build(&ends, 0, &seg);
        if repeats {
            let at = self.now + SECOND + SECOND / 10;
            self.push(at + self.delay, Event::ToBox(Side::Wan, frame.clone()));
        }
        self.send(Side::Wan, frame);
    }
}
