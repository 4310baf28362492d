//! A language in which a test reads like a packet trace.
//!
//! A [`World`] holds the very engine that ships, a clock that moves only when a test moves it, and two hosts: the client on the WAN,
//! the server on the LAN. A host [`sends`](Host::sends) a segment, and each side [`gets`](Host::gets) what came out there.
//! Every frame that comes out is read in full and judged: MAC and IP addresses, tags, ports, flags, numbers, window, options,
//! payload, checksums. An unexpected frame fails the test, as does one that is missing; the failure shows the trace.
//!
//! What the engine thinks of its state is left to its own tests; here only the wire and the counters count.

mod icmp;
mod wire;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::Duration;

use tcpstate::{
    Config, ConnectionStatus, Counters, DropReason, Egress, Event, Explanation, Head, Instant, Metadata, PerSide,
    Population, Proxy, Secrets, ServerUpdate, Side, Ticket, Verdict,
};

pub use icmp::{Complaint, GotError, an_error, fragment, icmp_error, icmp_error_raw, packet_of, seal_error, tcp_at};
pub use wire::{
    ACK, AE, ANY, CWR, ECE, Extension, FIN, FlowKey, Got, Num, Opt, PSH, RST, SYN, Seg, URG, WINDOW, ack, build, data,
    fin, read, rst, rst_ack, seal, segment, syn, syn_ack, vlan_tags,
};

/// The port of the server, unless a test names another.
pub const SERVER_PORT: u16 = 12345;
/// The port of the client, unless a test names another.
pub const CLIENT_PORT: u16 = 54321;

/// TTL of what the client sends; no default of any system, so that a copy is recognised as one.
pub const CLIENT_TTL: u8 = 57;
/// TTL of what the server sends.
pub const SERVER_TTL: u8 = 61;

/// The time after which the cookies' secret changes: the epoch is the clock's microseconds shifted right by 26.
pub const EPOCH: Duration = Duration::from_micros(1 << 26);

const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const SERVER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x04];

/// Bytes of a frame's buffer, and of the room before the frame in it.
const BUFFER: usize = 10_240;
const HEADROOM: usize = 128;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The circumstances of a run, which change nothing about what the test promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// The address family of every connection.
    pub family: Family,
    /// How many VLAN tags every frame carries.
    pub tags: usize,
    /// Whether the SYN cache is on.
    pub cache: bool,
}

impl Mode {
    /// IPv4 without tags, cookies only.
    pub const V4: Mode = Mode { family: Family::V4, tags: 0, cache: false };
    /// IPv6 without tags, cookies only.
    pub const V6: Mode = Mode { family: Family::V6, tags: 0, cache: false };
    /// The modes worth running: both families, cache off and on, with and without tags.
    pub const ALL: [Mode; 6] = [
        Mode::V4,
        Mode { cache: true, ..Mode::V4 },
        Mode::V6,
        Mode { cache: true, ..Mode::V6 },
        Mode { tags: 1, ..Mode::V4 },
        Mode { tags: 2, cache: true, ..Mode::V6 },
    ];

    /// With the SYN cache on.
    #[must_use]
    pub const fn cached(self) -> Mode {
        Mode { cache: true, ..self }
    }

    /// The configuration of this mode: defaults but for small tables, so that a test costs no memory, and for what would have one
    /// connection of a test change the next: nothing is adopted, and no refusal is remembered.
    pub fn config(self) -> Config {
        let rate = tcpstate::config::RateLimit { size: 1024, ..Default::default() };
        Config {
            table_buckets: 64,
            learn_capacity: 64,
            recent_syns: 1024,
            refused_syns: 1024,
            proved_sources: 1024,
            syn_cache_max: if self.cache { 64 } else { 0 },
            adopt_grace: Duration::ZERO,
            closed_memory: Duration::ZERO,
            rate,
            ..Config::default()
        }
    }

    /// A world in this mode: the world, its client and its server.
    pub fn world(self) -> (World, Host, Host) {
        self.world_with(|_| ())
    }

    /// A world in this mode with a changed configuration.
    pub fn world_with(self, change: impl FnOnce(&mut Config)) -> (World, Host, Host) {
        let mut config = self.config();
        change(&mut config);
        let world = World::new(self, &config);
        let (client, server) = world.pair(0, 1, CLIENT_PORT);
        (world, client, server)
    }

    /// The greatest MSS a host of this family announces on Ethernet.
    pub fn mss(self) -> u16 {
        match self.family {
            Family::V4 => 1460,
            Family::V6 => 1440,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = if self.cache { "SYN cache on" } else { "SYN cache off" };
        write!(f, "{:?}, {} VLAN tags, {cache}", self.family, self.tags)
    }
}

/// Declares tests that run in every [`Mode`]; each becomes a module of that name with a test a mode.
///
/// ```ignore
/// in_every_mode! {
///     fn a_syn_is_answered(world, client, server) { ... }
/// }
/// ```
#[macro_export]
macro_rules! in_every_mode {
    ($($(#[$meta:meta])* fn $name:ident($world:ident, $client:ident, $server:ident) $body:block)+) => { $(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn script($world: $crate::script::World, $client: $crate::script::Host, $server: $crate::script::Host) $body

            fn run(mode: usize) {
                let mode = $crate::script::Mode::ALL[mode];
                println!("{}: {mode}", stringify!($name));
                let (world, client, server) = mode.world();
                script(world, client, server);
            }

            #[test]
            fn ipv4() { run(0); }
            #[test]
            fn ipv4_syn_cache() { run(1); }
            #[test]
            fn ipv6() { run(2); }
            #[test]
            fn ipv6_syn_cache() { run(3); }
            #[test]
            fn ipv4_vlan() { run(4); }
            #[test]
            fn ipv6_qinq_syn_cache() { run(5); }
        }
    )+ };
}

/// What the trace remembers of one frame.
struct Line {
    at: Instant,
    side: Side,
    into_box: bool,
    frame: Vec<u8>,
    note: String,
}

struct Core {
    mode: Mode,
    proxy: Proxy,
    now: Instant,
    /// Frames the engine may still take for segments of its own.
    spare: usize,
    /// Bytes of a frame that lie in its first buffer; the rest is out of the engine's sight.
    first_buffer: usize,
    /// Whether a frame's buffer ends where the frame does, at both ends.
    tight: bool,
    outbox: PerSide<VecDeque<(Instant, Vec<u8>)>>,
    last_sent: PerSide<Vec<u8>>,
    last_verdict: Verdict,
    /// Frames the engine has us hold.
    held: HashMap<Ticket, Buffered>,
    /// Frames handed in, and what became of them in the end: forwarded, reflected, dropped.
    frames: u64,
    fates: [u64; 3],
    emitted: u64,
    trace: VecDeque<Line>,
}

/// The engine, its clock and the wires on both sides. A handle: clones mean the same world.
#[derive(Clone)]
pub struct World(Rc<RefCell<Core>>);

/// One end of one connection: the client on the WAN or the server on the LAN. A handle like [`World`].
#[derive(Clone)]
pub struct Host {
    core: Rc<RefCell<Core>>,
    side: Side,
    ends: FlowKey,
}

/// Gives the engine spare frames and remembers what it fills them with.
struct Spare<'a> {
    frames: &'a mut usize,
    emitted: Vec<(Side, Vec<u8>)>,
}

impl Egress for Spare<'_> {
    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if *self.frames == 0 {
            return false;
        }
        *self.frames -= 1;
        let mut buffer = vec![0xA5; 2048];
        let len = write(&mut buffer);
        buffer.truncate(len);
        self.emitted.push((to, buffer));
        true
    }
}

/// A frame as it lies in a worker's hands: the first buffer, and the bytes out of the engine's sight.
struct Buffered {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
    beyond: Vec<u8>,
}

impl Buffered {
    /// The bytes of the frame, one after the other.
    fn bytes(&self) -> Vec<u8> {
        [&self.buffer[self.start..self.start + self.len], &self.beyond].concat()
    }
}

/// A frame's beginning in its buffer, its bytes in sight, and its length.
type Edited = (usize, Vec<u8>, usize);

/// What the engine explained of a frame before it decided on it.
struct Foretold {
    explanation: Explanation,
    edited: Edited,
    /// What had been counted by then.
    counters: Counters,
}

impl Core {
    fn deliver(&mut self, side: Side, frame: &[u8]) -> Verdict {
        self.frames += 1;
        self.last_sent[side] = frame.to_vec();
        let visible = frame.len().min(self.first_buffer);
        let (start, size) = if self.tight { (0, visible) } else { (HEADROOM, BUFFER.max(HEADROOM + visible)) };
        let mut buffer = vec![0xA5; size];
        buffer[start..start + visible].copy_from_slice(&frame[..visible]);
        let verdict =
            self.decide(side, Buffered { buffer, start, len: visible, beyond: frame[visible..].to_vec() }, None);
        self.last_verdict = verdict;
        let opens = read(frame, self.now).is_ok_and(|s| s.flags & (SYN | ACK) == SYN);
        if opens && side == Side::Wan {
            // A challenge is another matter: only an existing connection provokes it, and seldom.
            for (at, answer) in &self.outbox[Side::Wan] {
                let grows = answer.len() > frame.len().max(60);
                if grows && read(answer, *at).is_ok_and(|s| s.flags & SYN != 0) {
                    self.fail(&format!("a SYN of {} bytes is answered by {}", frame.len(), answer.len()));
                }
            }
        }
        self.bring_back();
        verdict
    }

    /// Lets the engine decide on a frame, which has just come in or was held for a ticket, and carries out the verdict.
    fn decide(&mut self, side: Side, mut frame: Buffered, ticket: Option<Ticket>) -> Verdict {
        let asked = frame.bytes();
        // Of a flood, some.
        let asks = ticket.is_none() && (self.frames < 4096 || self.frames.is_multiple_of(64));
        let foretold = asks.then(|| self.foretell(side, &frame));
        let mut head = Head::new(&mut frame.buffer, frame.start, frame.len, frame.len + frame.beyond.len());
        let dropped_before = self.dropped();
        let segments_before = self.segments();
        let syns_before = self.proxy.counters().happened(Event::WanSyn);
        let mut spare = Spare { frames: &mut self.spare, emitted: Vec::new() };
        let verdict = match ticket {
            None => self.proxy.on_single(side, &mut head, self.now, &mut spare),
            Some(ticket) => self.proxy.on_release(ticket, &mut head, self.now, &mut spare),
        };
        let emitted = spare.emitted;
        if let Some(foretold) = foretold {
            let edited = (head.start(), head.bytes().to_vec(), head.total());
            self.compare(&foretold, verdict, edited, &emitted);
        }
        if head.is_whole() {
            frame.beyond.clear();
        }
        assert_eq!(head.total() - head.len(), frame.beyond.len(), "only the first buffer may change its length");
        (frame.start, frame.len) = (head.start(), head.len());
        let when = if ticket.is_some() { "released: " } else { "" };
        self.note(side, true, &asked, format!("{when}{verdict:?}"));
        let (fate, to) = match verdict {
            Verdict::Forward => (Some(0), Some(side.other())),
            Verdict::Reflect => (Some(1), Some(side)),
            Verdict::Drop(_) => (Some(2), None),
            Verdict::Hold(_) => (None, None),
        };
        if let Some(fate) = fate {
            self.fates[fate] += 1;
        }
        let drops = u64::from(matches!(verdict, Verdict::Drop(_)));
        assert_eq!(self.dropped(), dropped_before + drops, "a drop is counted once, and nothing else is: {verdict:?}");
        // What the engine does not read as TCP, or finds damaged, is another matter.
        let is_damage = |reason| {
            use DropReason::{BadChecksum, BadFragment, Malformed, StrayFragment};
            matches!(reason, Malformed | BadChecksum | BadFragment | StrayFragment)
        };
        let is_tcp =
            self.segments() > segments_before || matches!(verdict, Verdict::Drop(reason) if !is_damage(reason));
        if is_tcp && let Ok(segment) = read(&asked, self.now) {
            let opens = side == Side::Wan && ticket.is_none() && segment.flags & (SYN | ACK | FIN | RST) == SYN;
            let counted = self.proxy.counters().happened(Event::WanSyn) - syns_before;
            assert_eq!(
                counted,
                u64::from(opens),
                "a SYN of the WAN is counted once, whatever becomes of it: {verdict:?}"
            );
        }
        if let Verdict::Hold(ticket) = verdict {
            assert!(side == Side::Wan && frame.bytes() == asked, "what is held came from the WAN and has not changed");
            assert!(self.held.insert(ticket, frame).is_none(), "a ticket is minted once: {ticket:?}");
        } else if let Some(to) = to {
            // A segment of the engine's own may overtake the frame that caused it only on the other side.
            self.come_out(to, frame.bytes());
        }
        for (to, bytes) in emitted {
            self.emitted += 1;
            self.come_out(to, bytes);
        }
        verdict
    }

    /// How many segments were not dropped.
    fn segments(&self) -> u64 {
        let counters = self.proxy.counters();
        counters.happened(Event::LanSegment) + counters.happened(Event::WanSegment)
    }

    /// What the engine says it would do with a frame, and the frame as it would leave.
    fn foretell(&self, side: Side, frame: &Buffered) -> Foretold {
        let mut buffer = frame.buffer.clone();
        let mut head = Head::new(&mut buffer, frame.start, frame.len, frame.len + frame.beyond.len());
        let explanation = self.proxy.excerpt(side, &head).explain(&mut head, self.now);
        let edited = (head.start(), head.bytes().to_vec(), head.total());
        Foretold { explanation, edited, counters: self.proxy.counters().clone() }
    }

    /// What is explained and what is done are the same, whatever the frame; when no frame is spare the engine cannot do all that it explains.
    fn compare(&self, foretold: &Foretold, verdict: Verdict, edited: Edited, emitted: &[(Side, Vec<u8>)]) {
        if self.spare < 8 {
            return;
        }
        let Explanation { steps, verdict: told, events, sent, .. } = &foretold.explanation;
        let happened =
            |event: &Event| (*event, self.proxy.counters().happened(*event) - foretold.counters.happened(*event));
        let happened: Vec<_> = Event::ALL.iter().map(happened).filter(|(_, count)| *count > 0).collect();
        let is_so = *told == verdict && *sent == emitted && *events == happened;
        if verdict == Verdict::Drop(DropReason::BadCookie)
            && steps.iter().any(|step| step.contains("no cookie is looked for"))
        {
            self.fail(&format!("no cookie is looked for, and yet one is found bad: {steps:#?}"));
        }
        // Of a frame that goes nowhere the bytes do not matter.
        if !is_so || !matches!(verdict, Verdict::Drop(_)) && foretold.edited != edited {
            self.fail(&format!(
                "explained as {told:?} with {events:?} and {} segments sent, but {verdict:?} with {happened:?} and {}; {steps:#?}",
                sent.len(),
                emitted.len()
            ));
        }
    }

    /// Brings back the held frames the engine asks for.
    fn bring_back(&mut self) {
        while let Some(ticket) = self.proxy.next_release() {
            let frame = self.held.remove(&ticket).expect("a ticket is released once, and only if a frame is held");
            let verdict = self.decide(Side::Wan, frame, Some(ticket));
            assert!(!matches!(verdict, Verdict::Hold(_)), "a frame is held once");
        }
    }

    fn come_out(&mut self, side: Side, frame: Vec<u8>) {
        self.note(side, false, &frame, String::new());
        self.outbox[side].push_back((self.now, frame));
    }

    fn note(&mut self, side: Side, into_box: bool, frame: &[u8], note: String) {
        if self.trace.len() == 40 {
            self.trace.pop_front();
        }
        self.trace.push_back(Line { at: self.now, side, into_box, frame: frame.to_vec(), note });
    }

    fn dropped(&self) -> u64 {
        DropReason::ALL.iter().map(|r| self.proxy.counters().dropped(*r)).sum()
    }

    /// Lets everything happen that is due up to now; returns after a bounded number of turns.
    fn expire(&mut self) {
        for turn in 0.. {
            let mut spare = Spare { frames: &mut self.spare, emitted: Vec::new() };
            let more = self.proxy.on_timeout(self.now, &mut spare);
            for (to, frame) in spare.emitted {
                self.emitted += 1;
                self.come_out(to, frame);
            }
            self.bring_back();
            if !more {
                return;
            }
            assert!(turn < 1_000_000, "the engine always has more to do");
        }
    }

    #[track_caller]
    fn fail(&self, why: &str) -> ! {
        let mut text = format!("{why}\n  mode: {}\n  trace, newest last:\n", self.mode);
        for line in &self.trace {
            let what = match read(&line.frame, line.at) {
                Ok(got) => got.to_string(),
                Err(error) => format!("{} bytes ({error})", line.frame.len()),
            };
            let arrow = match (line.side, line.into_box) {
                (Side::Wan, true) => "client -> box",
                (Side::Wan, false) => "client <- box",
                (Side::Lan, true) => "          box <- server",
                (Side::Lan, false) => "          box -> server",
            };
            let at = line.at.as_micros();
            text += &format!("  {:>6}.{:06} {arrow:<24} {what} {}\n", at / 1_000_000, at % 1_000_000, line.note);
        }
        panic!("{text}");
    }

    #[track_caller]
    fn expect_silence(&self, when: &str) {
        for side in Side::BOTH {
            if let Some((at, frame)) = self.outbox[side].front() {
                let what = read(frame, *at).map_or_else(|e| e, |got| got.to_string());
                self.fail(&format!("{when}, but an unexpected frame came out on the {side:?}: {what}"));
            }
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.expect_silence("the test ends");
            let held = self.held.len() as u64;
            assert_eq!(self.frames, self.fates.iter().sum::<u64>() + held, "every frame has one fate");
        }
    }
}

/// The secrets of every world.
pub fn secrets() -> Secrets {
    Secrets::new(std::array::from_fn(|i| i as u8 * 5 + 1))
}

impl World {
    /// A world whose engine has this configuration.
    pub fn new(mode: Mode, config: &Config) -> World {
        // A second after an epoch began: no test meets a new secret unless it waits for one.
        let now = Instant::from_micros(5000 << 26) + Duration::from_secs(1);
        let secrets = secrets();
        World(Rc::new(RefCell::new(Core {
            mode,
            proxy: Proxy::new(config, &secrets, now),
            now,
            spare: usize::MAX,
            first_buffer: usize::MAX,
            tight: false,
            outbox: PerSide::default(),
            last_sent: PerSide::default(),
            last_verdict: Verdict::Forward,
            held: HashMap::new(),
            frames: 0,
            fates: [0; 3],
            emitted: 0,
            trace: VecDeque::new(),
        })))
    }

    /// The mode of this run.
    pub fn mode(&self) -> Mode {
        self.0.borrow().mode
    }

    /// The greatest MSS a host of this run's family announces on Ethernet.
    pub fn mss(&self) -> u16 {
        self.mode().mss()
    }

    /// Both ends of the connection between port `port` of host `host` in client network `net`, and the server.
    /// Networks are a /24 or a /64 each.
    pub fn pair(&self, net: u16, host: u8, port: u16) -> (Host, Host) {
        self.pair_to(net, host, port, 10)
    }

    /// Like [`World::pair`], to another server of the same network.
    pub fn pair_to(&self, net: u16, host: u8, port: u16, server: u8) -> (Host, Host) {
        let (client, server): (IpAddr, IpAddr) = match self.mode().family {
            Family::V4 => {
                let [high, low] = net.to_be_bytes();
                (Ipv4Addr::new(20, high, low, host).into(), Ipv4Addr::new(192, 0, 2, server).into())
            }
            Family::V6 => (
                Ipv6Addr::new(0x2600, 0xDB8, 1, net, 0, 0, 0, u16::from(host)).into(),
                Ipv6Addr::new(0x2600, 0xDB8, 0xFFFF, 1, 0, 0, 0, u16::from(server)).into(),
            ),
        };
        let there = FlowKey {
            src: client,
            dst: server,
            sport: port,
            dport: SERVER_PORT,
            src_mac: CLIENT_MAC,
            dst_mac: SERVER_MAC,
            ttl: CLIENT_TTL,
        };
        let back = reverse(&there, SERVER_TTL);
        let core = &self.0;
        (
            Host { core: core.clone(), side: Side::Wan, ends: there },
            Host { core: core.clone(), side: Side::Lan, ends: back },
        )
    }

    /// One end of any connection: the host on `side` that has these ends.
    pub fn host(&self, side: Side, ends: FlowKey) -> Host {
        Host { core: self.0.clone(), side, ends }
    }

    /// Both ends of another connection between the same two hosts, from another port of the client.
    pub fn on_port(&self, port: u16) -> (Host, Host) {
        self.pair(0, 1, port)
    }

    /// Passes to another engine what this one has learned since the last time, as workers of one box do. Returns the number of updates that
    /// concern servers.
    pub fn publishes_to(&self, other: &World) -> usize {
        let (mut core, mut other) = (self.0.borrow_mut(), other.0.borrow_mut());
        let now = other.now;
        let news: Vec<_> = core.proxy.updates().collect();
        news.iter().for_each(|news| other.proxy.receive_update(news, now));
        news.iter().filter(|news| !matches!(news, ServerUpdate::Heard(..))).count()
    }

    /// Lets time pass, and everything happen that falls due meanwhile, when it falls due.
    pub fn after(&self, time: Duration) {
        let mut core = self.0.borrow_mut();
        core.expect_silence("time passes");
        let end = core.now + time;
        for turn in 0.. {
            assert!(turn < 1_000_000, "the engine's next deadline never comes nearer than it is");
            match core.proxy.next_deadline() {
                Some(due) if due <= end => {
                    // A deadline may be a coarse lower bound: then a worker looks again a little later.
                    let soon = core.now + Duration::from_millis(1);
                    core.now = if due > core.now { due } else { soon.min(end) };
                    core.expire();
                    if core.now == end {
                        return;
                    }
                }
                _ => break,
            }
        }
        core.now = end;
        core.expire();
    }

    /// Lets so many milliseconds pass.
    pub fn after_ms(&self, millis: u64) {
        self.after(Duration::from_millis(millis));
    }

    /// Lets so many seconds pass.
    pub fn after_secs(&self, secs: u64) {
        self.after(Duration::from_secs(secs));
    }

    /// Waits until `lead` before the cookies' secret changes.
    pub fn wait_for_new_secret(&self, lead: Duration) {
        let now = self.now().as_micros();
        let change = ((now >> 26) + 1) << 26;
        let wait = Duration::from_micros(change - now);
        self.after(wait.checked_sub(lead).expect("the change is further away"));
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.0.borrow().now
    }

    /// From now on the engine may take only so many frames for segments of its own.
    pub fn spare_frames(&self, frames: usize) {
        self.0.borrow_mut().spare = frames;
    }

    /// From now on only the first `bytes` of a frame are in the engine's sight, as with a jumbo frame in several buffers.
    pub fn first_buffer_holds(&self, bytes: usize) {
        self.0.borrow_mut().first_buffer = bytes;
    }

    /// From now on frames lie in buffers without room to grow.
    pub fn buffers_are_tight(&self) {
        self.0.borrow_mut().tight = true;
    }

    /// The operator does something to the engine.
    pub fn operate<T>(&self, what: impl FnOnce(&mut Proxy, Instant) -> T) -> T {
        let mut core = self.0.borrow_mut();
        let now = core.now;
        what(&mut core.proxy, now)
    }

    /// How often this was counted.
    pub fn happened(&self, event: Event) -> u64 {
        self.0.borrow().proxy.counters().happened(event)
    }

    /// How many frames were dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.0.borrow().proxy.counters().dropped(reason)
    }

    /// How many frames were dropped.
    pub fn all_dropped(&self) -> u64 {
        self.0.borrow().dropped()
    }

    /// How many segments the engine sent of its own accord, in frames of its own.
    pub fn emitted(&self) -> u64 {
        self.0.borrow().emitted
    }

    /// How many flows there are.
    pub fn population(&self) -> Population {
        self.0.borrow().proxy.population()
    }

    /// How the connection stands that a frame from `side` belongs to.
    pub fn status(&self, side: Side, frame: &[u8]) -> Option<ConnectionStatus> {
        let mut bytes = frame.to_vec();
        let head = Head::new(&mut bytes, 0, frame.len(), frame.len());
        let core = self.0.borrow();
        let mut meta = Metadata::default();
        core.proxy.parse(side, &head, &mut meta);
        core.proxy.status(&meta)
    }

    /// Fails unless there are so many flows: proxied, passed through.
    #[track_caller]
    pub fn has_flows(&self, proxied: u64, direct: u64) {
        let there = self.population();
        if (there.proxied, there.passthrough) != (proxied, direct) {
            self.0.borrow().fail(&format!("{proxied} proxied and {direct} direct flows expected, there are {there:?}"));
        }
    }

    /// Hands a frame to the engine as it is, expecting nothing; what comes out is thrown away by [`World::discard`].
    pub fn inject(&self, side: Side, frame: &[u8]) -> Verdict {
        self.0.borrow_mut().deliver(side, frame)
    }

    /// Throws away what came out, and returns it: side and frame.
    pub fn discard(&self) -> Vec<(Side, Vec<u8>)> {
        let mut core = self.0.borrow_mut();
        let mut all = Vec::new();
        for side in Side::BOTH {
            all.extend(core.outbox[side].drain(..).map(|(_, frame)| (side, frame)));
        }
        all
    }

    /// Like [`World::after`], but what came out before and comes out meanwhile stays to be thrown away.
    pub fn tick(&self, time: Duration) {
        let mut core = self.0.borrow_mut();
        core.now = core.now + time;
        core.expire();
    }

    /// Fails with the trace.
    #[track_caller]
    pub fn fail(&self, why: &str) -> ! {
        self.0.borrow().fail(why)
    }
}

fn reverse(ends: &FlowKey, ttl: u8) -> FlowKey {
    FlowKey {
        src: ends.dst,
        dst: ends.src,
        sport: ends.dport,
        dport: ends.sport,
        src_mac: ends.dst_mac,
        dst_mac: ends.src_mac,
        ttl,
    }
}

/// Something a host may expect to get.
pub trait Expect {
    /// What the test learns from it.
    type Learned;

    /// Takes it from what came out, or says what is wrong.
    fn take(self, host: &Host) -> Result<Self::Learned, String>;
}

/// The expectation that nothing came out.
pub struct Nothing;

/// Nothing came out on this side.
pub fn nothing() -> Nothing {
    Nothing
}

impl Expect for Nothing {
    type Learned = ();

    fn take(self, host: &Host) -> Result<(), String> {
        match host.core.borrow().outbox[host.side].front() {
            None => Ok(()),
            Some((at, frame)) => {
                Err(format!("nothing, but got {}", read(frame, *at).map_or_else(|e| e, |got| got.to_string())))
            }
        }
    }
}

/// The expectation that what the peer sent came out, bit by bit.
pub struct Unchanged;

/// What the peer sent, bit by bit.
pub fn unchanged() -> Unchanged {
    Unchanged
}

impl Expect for Unchanged {
    type Learned = ();

    fn take(self, host: &Host) -> Result<(), String> {
        let mut core = host.core.borrow_mut();
        let sent = core.last_sent[host.side.other()].clone();
        let Some((at, frame)) = core.outbox[host.side].pop_front() else {
            return Err("the peer's frame unchanged, but got nothing".to_owned());
        };
        if frame == sent {
            return Ok(());
        }
        let at_byte = frame.iter().zip(&sent).position(|(a, b)| a != b);
        Err(format!(
            "the peer's frame of {} bytes unchanged, but got {} bytes that first differ at {at_byte:?}: {}",
            sent.len(),
            frame.len(),
            read(&frame, at).map_or_else(|e| e, |got| got.to_string())
        ))
    }
}

/// The expectation of any one segment, whatever surrounds it.
pub struct AnyFrame;

/// Any one segment, whose surroundings (stations, tags, addresses, checksums) are for the test to judge.
pub fn any_frame() -> AnyFrame {
    AnyFrame
}

impl Expect for AnyFrame {
    type Learned = Got;

    fn take(self, host: &Host) -> Result<Got, String> {
        let next = host.core.borrow_mut().outbox[host.side].pop_front();
        let (at, frame) = next.ok_or("any frame, but got nothing")?;
        read(&frame, at)
    }
}

/// The expectation of any one frame.
pub struct Anything;

/// Any one segment between these ends, to be looked at by the test.
pub fn anything() -> Anything {
    Anything
}

impl Expect for Anything {
    type Learned = Got;

    fn take(self, host: &Host) -> Result<Got, String> {
        let mut core = host.core.borrow_mut();
        let (at, frame) = core.outbox[host.side].pop_front().ok_or("any segment, but got nothing")?;
        let got = read(&frame, at)?;
        let mut wrong = Vec::new();
        let to_me = reverse(&host.ends, 0);
        if (got.macs.0, got.macs.1) != (to_me.dst_mac, to_me.src_mac) {
            wrong.push(format!("MAC addresses {:02x?}", got.macs));
        }
        // The priority of a segment of the engine's own is its own affair; the network it belongs to is not.
        let vlans =
            |tags: &[(u16, u16)]| tags.iter().map(|(protocol, tag)| (*protocol, tag & 0xFFF)).collect::<Vec<_>>();
        if vlans(&got.tags) != vlans(vlan_tags(core.mode.tags)) {
            wrong.push(format!("tags {:04x?}", got.tags));
        }
        if (got.src, got.dst) != (to_me.src, to_me.dst) {
            wrong.push(format!("addresses {} to {}", got.src, got.dst));
        }
        if got.ports != (to_me.sport, to_me.dport) {
            wrong.push(format!("ports {:?}", got.ports));
        }
        if got.checksums != (true, true) {
            wrong.push(format!("checksums right: {:?}", got.checksums));
        }
        if got.ttl < 32 {
            wrong.push(format!("TTL {}", got.ttl));
        }
        if wrong.is_empty() { Ok(got) } else { Err(format!("a sound frame, but got {got} with {}", wrong.join(", "))) }
    }
}

impl Expect for Seg {
    type Learned = Got;

    fn take(self, host: &Host) -> Result<Got, String> {
        let got = Anything.take(host).map_err(|error| format!("{self}; {error}"))?;
        let wrong = got.differs(&self);
        if wrong.is_empty() { Ok(got) } else { Err(format!("{self}, but got {got}; wrong: {}", wrong.join(", "))) }
    }
}

/// Something a host can send: a segment, or a frame's bytes as they are.
pub trait Sendable {
    /// The frame, as this host sends it.
    fn frame(&self, host: &Host) -> Vec<u8>;
}

impl Sendable for Seg {
    fn frame(&self, host: &Host) -> Vec<u8> {
        host.frame(self)
    }
}

impl Sendable for Vec<u8> {
    fn frame(&self, _host: &Host) -> Vec<u8> {
        self.clone()
    }
}

impl Sendable for &[u8] {
    fn frame(&self, _host: &Host) -> Vec<u8> {
        self.to_vec()
    }
}

impl Host {
    /// The circumstances of the run.
    pub fn mode(&self) -> Mode {
        self.core.borrow().mode
    }

    /// Sends to the peer. Nothing may be waiting unread on either side.
    #[track_caller]
    pub fn sends(&self, what: impl Sendable) {
        let frame = what.frame(self);
        let mut core = self.core.borrow_mut();
        core.expect_silence("a host sends");
        let _ = core.deliver(self.side, &frame);
    }

    /// The frame that carries this segment, to be damaged before it is sent.
    pub fn frame(&self, seg: &Seg) -> Vec<u8> {
        build(&self.ends, self.core.borrow().mode.tags, seg)
    }

    /// Expects the next frame that came out on this side.
    #[track_caller]
    pub fn gets<E: Expect>(&self, expected: E) -> E::Learned {
        let result = expected.take(self);
        match result {
            Ok(learned) => learned,
            Err(why) => {
                let who = if self.side == Side::Wan { "client" } else { "server" };
                let at = std::panic::Location::caller();
                self.core.borrow().fail(&format!("{at}: the {who} expected {why}"))
            }
        }
    }

    /// Sends what must be dropped for this reason, with nothing coming out anywhere.
    #[track_caller]
    pub fn sends_in_vain(&self, what: impl Sendable, reason: DropReason) {
        self.sends(what);
        let core = self.core.borrow();
        core.expect_silence("the frame was to be dropped");
        if core.last_verdict != Verdict::Drop(reason) {
            let at = std::panic::Location::caller();
            core.fail(&format!("{at}: expected Drop({reason:?}), got {:?}", core.last_verdict));
        }
    }

    /// Sends what must be dropped, for whatever reason, with nothing coming out anywhere.
    #[track_caller]
    pub fn sends_in_vain_for_any_reason(&self, what: impl Sendable) {
        self.sends(what);
        let core = self.core.borrow();
        core.expect_silence("the frame was to be dropped");
        if !matches!(core.last_verdict, Verdict::Drop(_)) {
            core.fail(&format!("{}: expected a drop, got {:?}", std::panic::Location::caller(), core.last_verdict));
        }
    }

    /// Sends what must come out unchanged on the other side, with nothing coming back.
    #[track_caller]
    pub fn passes(&self, what: impl Sendable) {
        self.sends(what);
        let peer = Host { core: self.core.clone(), side: self.side.other(), ends: reverse(&self.ends, 0) };
        peer.gets(unchanged());
        self.gets(nothing());
    }

    /// Whether more came out here than was expected so far.
    pub fn has_more(&self) -> bool {
        !self.core.borrow().outbox[self.side].is_empty()
    }

    /// Whether what came out here next is a TCP segment.
    pub fn next_is_tcp(&self) -> bool {
        let core = self.core.borrow();
        core.outbox[self.side].front().is_some_and(|(at, frame)| wire::read(frame, *at).is_ok())
    }

    /// The ends as this host sees them.
    pub fn ends(&self) -> FlowKey {
        self.ends
    }

    /// The side this host is on.
    pub fn side(&self) -> Side {
        self.side
    }
}

/// The options of a system's SYN or SYN-ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Maximum segment size; absent if none.
    pub mss: Option<u16>,
    /// Window scale; absent if none.
    pub wscale: Option<u8>,
    /// Whether SACK is permitted.
    pub sack: bool,
    /// Whether timestamps are used.
    pub ts: bool,
    /// Window field of the SYN, in bytes.
    pub window: u16,
}

impl Terms {
    /// What a Linux host offers.
    pub const fn linux(mss: u16) -> Terms {
        Terms { mss: Some(mss), wscale: Some(7), sack: true, ts: true, window: 64_240 }
    }

    /// What a Windows host offers: no timestamps.
    pub const fn windows(mss: u16) -> Terms {
        Terms { mss: Some(mss), wscale: Some(8), sack: true, ts: false, window: 65_535 }
    }

    /// What an old or small host offers: its segment size alone.
    pub const fn bare(mss: u16) -> Terms {
        Terms { mss: Some(mss), wscale: None, sack: false, ts: false, window: 8192 }
    }

    /// `seg` with these options in the order Linux writes them, and this window.
    pub fn on(&self, seg: Seg, stamps: (u32, u32)) -> Seg {
        self.options(seg.window(self.window), stamps.0.into(), stamps.1.into())
    }

    fn options(&self, mut seg: Seg, value: Num, echo: Num) -> Seg {
        if let Some(mss) = self.mss {
            seg = seg.mss(mss);
        }
        if self.sack {
            seg = seg.sack_ok();
        }
        if self.ts {
            seg = seg.ts(value, echo);
        }
        match self.wscale {
            Some(shift) => seg.nop().wscale(shift),
            None => seg,
        }
    }
}

/// A proxied connection that is established at both ends, and the numbers between its two halves.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The client's initial sequence number.
    pub client_isn: u32,
    /// The server's initial sequence number, as the server chose it.
    pub server_isn: u32,
    /// The server's initial sequence number as the client knows it: our cookie.
    pub cookie: u32,
    /// What is added to the server's timestamps on the way out, if the client uses timestamps.
    pub ts_shift: u32,
    /// The last timestamp of the client and of the server, as each wrote it.
    pub stamps: (u32, u32),
    /// What the client was offered.
    pub offered: Got,
    /// The SYN the server got.
    pub server_syn: Got,
    /// The window update the client got.
    pub update: Got,
}

/// Numbers of a handshake, far from anything the engine could guess, the server's near the wrap.
pub const CLIENT_ISN: u32 = 0x8765_4321;
/// The server's initial sequence number.
pub const SERVER_ISN: u32 = 0xFFFF_F234;
/// The client's timestamp in its SYN.
pub const CLIENT_TS: u32 = 0x1000_0000;
/// The server's timestamp in its SYN-ACK.
pub const SERVER_TS: u32 = 0x7777_0000;

/// Opens a proxied connection on these terms, checking every step of the way but the window update's details.
#[track_caller]
pub fn open(client: &Host, server: &Host, theirs: Terms, ours: Terms) -> Joined {
    open_from(client, server, theirs, ours, CLIENT_ISN, SERVER_ISN)
}

/// Like [`open`], from these initial sequence numbers.
#[track_caller]
pub fn open_from(client: &Host, server: &Host, theirs: Terms, ours: Terms, isn: u32, server_isn: u32) -> Joined {
    client.sends(theirs.on(syn(isn), (CLIENT_TS, 0)));
    let offered = client.gets(syn_ack(ANY, isn + 1).window(0).any_options());
    server.gets(nothing());
    let echo = offered.ts().map(|(value, _)| value);
    client.sends(ack(isn + 1, offered.seq + 1).maybe_ts(echo.map(|e| (CLIENT_TS + 1, e))));
    client.gets(nothing());
    let server_syn = server.gets(segment(SYN, isn, 0).any_window().any_options());
    answer(client, server, ours, isn, server_isn, offered, server_syn)
}

/// The rest of [`open`]: the server answers the SYN it got.
#[track_caller]
pub fn answer(
    client: &Host,
    server: &Host,
    ours: Terms,
    isn: u32,
    server_isn: u32,
    offered: Got,
    server_syn: Got,
) -> Joined {
    answer_with(client, server, ours, isn, server_isn, offered, server_syn, 0)
}

/// The update that opens the client's window. Beside it a client that was told a greater MSS than the server has `announced` may get an ICMP error.
#[track_caller]
pub fn gets_update(client: &Host, offered: &Got, isn: u32, announced: Option<u16>) -> Got {
    let (headers, least, default) = if client.ends().src.is_ipv4() { (40, 68, 536) } else { (60, 1280, 1220) };
    let mtu = (announced.unwrap_or(default) + headers).max(least);
    let is_owed = offered.mss().unwrap_or(default) + headers > mtu;
    let may_get_error = || {
        if is_owed && client.has_more() && !client.next_is_tcp() {
            client.gets(an_error(Complaint::TooBig(mtu)));
        }
    };
    may_get_error();
    let update = client.gets(ack(offered.seq + 1, isn + 1).any_window().any_options());
    may_get_error();
    update
}

/// Like [`answer`], with these flags on the server's SYN-ACK besides.
#[track_caller]
#[allow(clippy::too_many_arguments)]
pub fn answer_with(
    client: &Host,
    server: &Host,
    ours: Terms,
    isn: u32,
    server_isn: u32,
    offered: Got,
    server_syn: Got,
    flags: u16,
) -> Joined {
    // A server answers an option only if the SYN carries it.
    let agreed = Terms {
        mss: ours.mss,
        wscale: ours.wscale.filter(|_| server_syn.wscale().is_some()),
        sack: ours.sack && server_syn.sack_ok(),
        ts: ours.ts && server_syn.ts().is_some(),
        window: ours.window,
    };
    let value = server_syn.ts().map_or(0, |(value, _)| value);
    server.sends(agreed.on(syn_ack(server_isn, isn + 1).flags(flags), (SERVER_TS, value)));
    let update = gets_update(client, &offered, isn, ours.mss);
    if client.has_more() {
        // The client's distance is not known: the box probes it, and its answer is the server's acknowledgement as well.
        server.gets(nothing());
        client.gets(ack(offered.seq, isn + 1).any_window().any_options());
        client.sends(ack(isn + 1, offered.seq + 1));
    }
    // A client known to be far away gets the time it would need.
    for _ in 0..100 {
        if !server.has_more() {
            World(client.core.clone()).after_ms(10);
        }
    }
    server.gets(ack(isn + 1, server_isn + 1).any_window().any_options());
    let ts_shift = match update.ts() {
        Some((value, _)) if agreed.ts => value.wrapping_sub(SERVER_TS),
        _ => 0,
    };
    Joined {
        client_isn: isn,
        server_isn,
        cookie: offered.seq,
        ts_shift,
        stamps: (CLIENT_TS + 1, SERVER_TS),
        offered,
        server_syn,
        update,
    }
}

impl Joined {
    /// The client's sequence number `offset` bytes into its stream (the first byte is 0).
    pub fn c(&self, offset: u32) -> u32 {
        self.client_isn.wrapping_add(1).wrapping_add(offset)
    }

    /// The server's sequence number `offset` bytes into its stream, as the server counts.
    pub fn s(&self, offset: u32) -> u32 {
        self.server_isn.wrapping_add(1).wrapping_add(offset)
    }

    /// The server's sequence number `offset` bytes into its stream, as the client counts.
    pub fn o(&self, offset: u32) -> u32 {
        self.cookie.wrapping_add(1).wrapping_add(offset)
    }

    /// A timestamp of the server as the client sees it.
    pub fn ts_out(&self, value: u32) -> u32 {
        value.wrapping_add(self.ts_shift)
    }
}

/// Opens a proxied connection whose client asks for ECN and whose server agrees to it.
///
/// `promised` says whether the client's SYN-ACK agrees too: it does once the server is known to.
#[track_caller]
pub fn open_ecn(client: &Host, server: &Host, theirs: Terms, ours: Terms, promised: bool) -> Joined {
    client.sends(theirs.on(syn(CLIENT_ISN).flags(ECE | CWR), (CLIENT_TS, 0)));
    let said = if promised { ECE } else { 0 };
    let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).flags(said).any_window().any_options());
    let echo = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
    client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echo));
    let server_syn = server.gets(segment(SYN | ECE | CWR, CLIENT_ISN, 0).any_window().any_options());
    answer_with(client, server, ours, CLIENT_ISN, SERVER_ISN, offered, server_syn, ECE)
}

/// A proxied connection whose ends send data in turn, every segment's translation checked to the last field.
///
/// Both ends scale their windows alike here, so that window fields pass as they are.
pub struct Transfer {
    client: Host,
    server: Host,
    /// The numbers between the halves.
    pub joined: Joined,
    /// Bytes the client has sent, its FIN included.
    pub client_sent: u32,
    /// Bytes the server has sent, its FIN included.
    pub server_sent: u32,
    stamps: Option<(u32, u32)>,
}

impl Transfer {
    /// The transfer that begins where `open` ended.
    pub fn new(client: &Host, server: &Host, joined: Joined) -> Transfer {
        let stamps = joined.server_syn.ts().map(|_| (joined.stamps.0 + 1, joined.stamps.1 + 1));
        Transfer { client: client.clone(), server: server.clone(), joined, client_sent: 0, server_sent: 0, stamps }
    }

    /// The client sends so many bytes (none: an acknowledgement) with these flags besides ACK.
    #[track_caller]
    pub fn client(&mut self, flags: u16, len: usize) {
        let j = &self.joined;
        let seq = j.c(self.client_sent);
        let inner = segment(ACK | flags, seq, j.s(self.server_sent)).maybe_ts(self.stamps).payload(len);
        let outer = segment(ACK | flags, seq, j.o(self.server_sent))
            .maybe_ts(self.stamps.map(|(client, server)| (client, j.ts_out(server))))
            .payload(len);
        self.client_sent = self.client_sent.wrapping_add(inner.seq_len());
        self.client.sends(outer);
        let got = self.server.gets(inner.ttl(CLIENT_TTL));
        assert_eq!(got.tags, vlan_tags(self.client.core.borrow().mode.tags), "a forwarded frame keeps its tags whole");
        self.client.gets(nothing());
        self.stamps = self.stamps.map(|(client, server)| (client.wrapping_add(1), server));
    }

    /// The server sends so many bytes (none: an acknowledgement) with these flags besides ACK.
    #[track_caller]
    pub fn server(&mut self, flags: u16, len: usize) {
        let j = &self.joined;
        let acked = j.c(self.client_sent);
        let inner = segment(ACK | flags, j.s(self.server_sent), acked)
            .maybe_ts(self.stamps.map(|(client, server)| (server, client)))
            .payload(len);
        let outer = segment(ACK | flags, j.o(self.server_sent), acked)
            .maybe_ts(self.stamps.map(|(client, server)| (j.ts_out(server), client)))
            .payload(len);
        self.server_sent = self.server_sent.wrapping_add(inner.seq_len());
        self.server.sends(inner);
        let got = self.client.gets(outer.ttl(SERVER_TTL));
        assert_eq!(got.tags, vlan_tags(self.client.core.borrow().mode.tags), "a forwarded frame keeps its tags whole");
        self.server.gets(nothing());
        self.stamps = self.stamps.map(|(client, server)| (client, server.wrapping_add(1)));
    }

    /// Both ends close, the server first.
    #[track_caller]
    pub fn closes_from_the_server(&mut self) {
        self.server(FIN, 0);
        self.client(0, 0);
        self.client(FIN, 0);
        self.server(0, 0);
    }

    /// Both ends close, the client first.
    #[track_caller]
    pub fn closes_from_the_client(&mut self) {
        self.client(FIN, 0);
        self.server(0, 0);
        self.server(FIN, 0);
        self.client(0, 0);
    }

    /// Both ends close, the client first, with a pause before the last acknowledgement.
    #[track_caller]
    pub fn closes_from_the_client_after(&mut self, pause: impl FnOnce()) {
        self.client(FIN, 0);
        self.server(0, 0);
        self.server(FIN, 0);
        pause();
        self.client(0, 0);
    }
}
