//! The simulated world: hosts on two cables, the box between them, one clock, one seed.
//!
//! Two hosts on each side run smoltcp, an independent TCP stack, each in a manner of speaking of its own; the box runs
//! the very engine that ships, in the worker's loop. The cables lose, repeat, reorder, delay and corrupt frames until
//! they heal; after that every connection must come to its end. The [oracle](crate::oracle) stands at every host.

pub mod abuse;
mod appliance;
mod chance;
mod dialect;
mod envelope;
mod host;
mod link;
mod scenario;
mod served;
mod view;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tcpstate::Side;
use tcpstate::config::{Handshake, SackConflict};

use crate::oracle::icmp::{Error, Trouble};
use crate::oracle::layers::{Layers, Tags, is_priority_tag, networks};
use crate::oracle::{Ancestor, Between, Layout, Oracle, Segment};
use appliance::{Appliance, Sent};
use envelope::{Reassembly, Whole, cut};
use host::{Behaviour, Departure, Ending, Host, Service};
use link::{Arrival, Link};

pub use chance::Chance;
pub use dialect::{Announced, Dialect, Ecn, Keeps};
pub use scenario::{Cell, End, Listener, Plan, Scenario};
pub use view::View;

use scenario::{FIRST_PORT, HOSTS, SECOND};

/// How long after the cables have healed every connection must have ended.
const BOUND: u64 = 600 * SECOND;

/// When an application gives up, counted from the same moment.
const PATIENCE: u64 = 500 * SECOND;

/// Lines of the trace a failure shows.
const TRACE: usize = 120;

/// A run that ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// A hash of every byte on every cable and when it was there.
    pub hash: u64,
    /// Segments judged by the oracle.
    pub judged: u64,
    /// Connections that finished in good order.
    pub finished: u64,
    /// Connections reset, refused or given up where that is as it should be.
    pub others: u64,
    /// Connections that stand still although their hosts get all they need ([`Oracle::deadlocked`]).
    pub stalled: u64,
    /// Whether the world ended early because an attacker guessed a cookie: what follows is no fault of the engine.
    pub guessed: u64,
    /// What the engine counted, in the order of [`Event::ALL`](tcpstate::Event::ALL).
    pub events: [u64; tcpstate::Event::COUNT],
    /// What the engine dropped, in the order of [`DropReason::ALL`](tcpstate::DropReason::ALL).
    pub drops: [u64; tcpstate::DropReason::COUNT],
}

impl Default for Report {
    fn default() -> Self {
        Self {
            hash: 0,
            judged: 0,
            finished: 0,
            others: 0,
            stalled: 0,
            guessed: 0,
            events: [0; tcpstate::Event::COUNT],
            drops: [0; tcpstate::DropReason::COUNT],
        }
    }
}

impl Report {
    /// Adds another run's numbers to these.
    pub fn add(&mut self, other: &Report) {
        self.judged += other.judged;
        self.finished += other.finished;
        self.others += other.others;
        self.stalled += other.stalled;
        self.guessed += other.guessed;
        for (sum, &count) in self.events.iter_mut().zip(&other.events) {
            *sum += count;
        }
        for (sum, &count) in self.drops.iter_mut().zip(&other.drops) {
            *sum += count;
        }
    }
}

/// How a connection ended.
enum Outcome {
    Finished,
    Other,
    Stalled,
}

/// A run that did not.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed that repeats it.
    pub seed: u64,
    /// What is wrong.
    pub what: String,
    /// The last frames on the cables.
    pub trace: String,
}

/// How to run a world.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// The box is a plain bridge: what the oracle says then is about the world and not about the engine.
    pub bridge: bool,
    /// No off-path attacker interferes.
    pub quiet: bool,
    /// Every source has proved itself, and the box passes its connections: it must do what a cable does. No off-path attacker interferes, in whose
    /// frames a cable sees no difference.
    pub proved: bool,
    /// The box has services, by which most clients of the WAN reach their servers.
    pub services: bool,
    /// Every frame is printed as it passes.
    pub verbose: bool,
}

/// Runs the world of this seed.
///
/// # Errors
/// The first complaint, panic, lost frame or connection without an end.
pub fn run(seed: u64, mode: Mode) -> Result<Report, Box<Failure>> {
    let mut scenario = match mode.services {
        true => Scenario::serving(seed),
        false => Scenario::draw(seed, mode.bridge && !mode.proved),
    };
    if mode.proved {
        scenario.prove();
        // The very world, to tell what a cable would have done.
        scenario.build.bridge = mode.bridge;
    }
    run_scenario(scenario, mode)
}

/// Runs the world of this scenario.
///
/// # Errors
/// As [`run`].
pub fn run_scenario(scenario: Scenario, mode: Mode) -> Result<Report, Box<Failure>> {
    let seed = scenario.seed;
    let mut world = World::new(scenario, mode);
    let result = catch_unwind(AssertUnwindSafe(|| world.live()));
    let what = match result {
        Ok(Ok(report)) => return Ok(report),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            format!("panic: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?"))
        }
    };
    Err(Box::new(Failure { seed, what, trace: world.trace() }))
}

/// Runs the world of this scenario and returns what every host has seen of each connection, by (host's end, peer's end).
///
/// # Errors
/// As [`run`].
pub fn observe(scenario: Scenario, mode: Mode) -> Result<BTreeMap<(SocketAddr, SocketAddr), View>, Box<Failure>> {
    let seed = scenario.seed;
    let mut world = World::new(scenario, mode);
    match world.live() {
        Ok(_) => Ok(world.views()),
        Err(what) => Err(Box::new(Failure { seed, what, trace: world.trace() })),
    }
}

/// Something that happens at a time.
enum Event {
    /// A frame reaches the box.
    ToBox { side: Side, bytes: Vec<u8>, corrupt: bool, forged: bool },
    /// A frame reaches a host.
    ToHost { side: Side, host: usize, bytes: Vec<u8>, corrupt: bool, ancestor: Option<Ancestor> },
    /// An application opens a connection.
    Open(usize),
    /// The same ports are used once more, if the first connection is over at both ends.
    Again(usize),
    /// A server starts again, with other options.
    Restart { side: Side, host: usize, port: u16, dialect: dialect::Dialect },
    /// An off-path attacker sends something.
    Attacker,
}

struct Pending {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
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
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Where a frame of the trace was seen.
#[derive(Clone, Copy, Debug)]
enum Place {
    HostSends,
    BoxGets,
    BoxSends,
    HostGets,
}

/// What a router does with a packet.
enum Routed {
    Passes,
    InPieces(Vec<Vec<u8>>),
    Refused(Vec<u8>),
}

struct Seen {
    at: u64,
    place: Place,
    side: Side,
    corrupt: bool,
    bytes: Vec<u8>,
}

struct World {
    scenario: Scenario,
    mode: Mode,
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<Pending>>,
    hosts: [Vec<Host>; 2],
    host_turns: [[Option<u64>; HOSTS]; 2],
    appliance: Appliance,
    box_turn: Option<u64>,
    /// `[side][0]` from the hosts to the box, `[side][1]` from the box to the hosts.
    links: [[Link; 2]; 2],
    oracle: Oracle,
    chance: Chance,
    /// The network of every connection, by both orders of its ends.
    networks: BTreeMap<(SocketAddr, SocketAddr), Tags>,
    /// Ends a router says cannot be reached, with the code.
    unreachable: BTreeMap<SocketAddr, u8>,
    /// Connections met since the engine has taken over, and those of them that were not open then, by both orders of their ends.
    met: BTreeSet<(SocketAddr, SocketAddr)>,
    straddling: BTreeSet<(SocketAddr, SocketAddr)>,
    /// What every host has seen, by its end and the peer's.
    views: BTreeMap<(SocketAddr, SocketAddr), View>,
    /// Plans whose ports have yet to be used a second time.
    due_again: BTreeSet<usize>,
    /// Puts together what leaves the box in fragments.
    leaving: Reassembly,
    hash: u64,
    seen: VecDeque<Seen>,
}

impl World {
    fn new(mut scenario: Scenario, mode: Mode) -> Self {
        if scenario.seed % 4 == 3 {
            scenario.count_v4_apart();
        }
        let mut chance = Chance::new(scenario.seed ^ 0x5eed);
        let now = scenario.start;
        host::set_clock(now);
        let mut hosts = [Side::Lan, Side::Wan].map(|side| {
            (0..HOSTS)
                .map(|number| Host::new(side, number as u8 + 1, scenario.mtus[side as usize][number], chance.fork()))
                .collect::<Vec<_>>()
        });
        let between = if mode.bridge || mode.proved { Between::Bridge } else { Between::Proxy };
        let protected: Vec<_> =
            hosts[Side::Lan as usize].iter().flat_map(|host| [host.address(false), host.address(true)]).collect();
        let mut oracle = Oracle::new(between, protected);
        if scenario.cramped {
            oracle.license_all_resets();
        }
        if scenario.build.bridge_until > 0 {
            oracle.let_adopt();
        }
        if !scenario.build.switches.is_empty() {
            oracle.let_pass();
        }
        if !scenario.build.config.closed_memory.is_zero() && scenario.build.config.retries > 0 {
            oracle.let_retry(scenario.noise.interval > 0 && !mode.quiet);
        }
        let is_replaced = scenario.build.bridge_until > 0 || !scenario.build.restarts.is_empty();
        if scenario.build.config.learn_capacity >= 1024 && !is_replaced {
            oracle.remember_servers();
        }
        if scenario.build.config.handshake == Handshake::Early {
            oracle.promise_early(scenario.build.config.early_window);
        }
        if scenario.build.config.sack_conflict == SackConflict::Retain {
            oracle.retain_sack();
        }
        if scenario.build.served.is_some() {
            oracle.keep_first(scenario.build.config.first_bytes);
        }
        let mut events = Vec::new();
        let mut due_again = BTreeSet::new();
        let mut networks = BTreeMap::new();
        let mut unreachable = BTreeMap::new();
        for (index, plan) in scenario.plans.iter().enumerate() {
            events.push((plan.at, Event::Open(index)));
            if plan.again {
                due_again.insert(index);
                events.push((plan.at + 20 * SECOND, Event::Again(index)));
            }
            let (local, remote) = ends(&hosts, plan);
            for (side, ends) in [(plan.opener, (local, remote)), (plan.opener.other(), (remote, local))] {
                networks.insert(ends, plan.tags);
                hosts[side as usize][plan.hosts[side as usize]].networks.insert(ends, plan.tags);
            }
            if let Listener::Unreachable(code) = scenario.listener(plan) {
                unreachable.insert(remote, code);
            }
            let behaviour = behaviour(&scenario, plan, 1);
            let side = plan.opener.other();
            hosts[side as usize][plan.hosts[side as usize]].expected.insert((remote, local), behaviour);
            if matches!(scenario.listener(plan), Listener::Open(_, Some(_))) {
                oracle.changes_mind(remote);
            }
            if scenario.listener(plan).forgets() {
                oracle.needs_echo(remote);
            }
            // A port that has refused is remembered: the box then refuses in its name.
            let refuses = scenario.listener(plan) == Listener::Closed && !scenario.build.config.closed_memory.is_zero();
            if refuses
                || matches!(scenario.listener(plan), Listener::Silent | Listener::Late(..) | Listener::Unreachable(_))
            {
                oracle.license_reset(local, remote);
            }
        }
        for side in Side::BOTH {
            if let Some(hop) = scenario.hops[side as usize] {
                for host in &hosts[side as usize] {
                    oracle.narrow_way(host.v4.into(), hop.mtu);
                    oracle.narrow_way(host.v6.into(), hop.mtu.max(1280));
                }
            }
            for (host, here) in hosts[side as usize].iter_mut().enumerate() {
                for (port, listener) in (FIRST_PORT..).zip(&scenario.listeners[side as usize][host]) {
                    let service = match *listener {
                        Listener::Open(dialect, restart) => {
                            if let Some((at, dialect)) = restart {
                                events.push((at, Event::Restart { side, host, port, dialect }));
                            }
                            Service::Open(dialect)
                        }
                        Listener::Late(until, dialect) => Service::Silent(until, dialect),
                        Listener::Silent => Service::Silent(u64::MAX, dialect::Dialect::draw(&mut Chance::new(0))),
                        Listener::Closed | Listener::Unreachable(_) => Service::Closed,
                    };
                    here.services.insert(port, service);
                }
            }
        }
        if scenario.noise.interval > 0 && !mode.bridge && !mode.quiet && !mode.proved {
            events.push((now, Event::Attacker));
        }
        let links = [0, 1].map(|side| {
            [0, 1].map(|way| {
                let gap = chance.within(2..60);
                Link::new(scenario.delays[side], gap, scenario.faults[side][way], chance.fork())
            })
        });
        let appliance = Appliance::new(scenario.build.clone(), now);
        let mut world = Self {
            mode,
            now,
            order: 0,
            events: BinaryHeap::new(),
            hosts,
            host_turns: [[None; HOSTS]; 2],
            appliance,
            box_turn: None,
            links,
            oracle,
            chance,
            networks,
            unreachable,
            views: BTreeMap::new(),
            met: BTreeSet::new(),
            straddling: BTreeSet::new(),
            due_again,
            leaving: Reassembly::default(),
            hash: 0xcbf2_9ce4_8422_2325,
            seen: VecDeque::new(),
            scenario,
        };
        for (at, event) in events {
            world.push(at, event);
        }
        world
    }

    fn push(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse(Pending { at, order: self.order, event }));
    }

    fn live(&mut self) -> Result<Report, String> {
        let end = self.scenario.heal + BOUND;
        let mut steps = 0u64;
        while !self.settled() {
            let Some(at) = self.next() else { break };
            if at > end {
                break;
            }
            let calm = self.scenario.heal + 60 * SECOND;
            if (self.now..at).contains(&calm) {
                self.oracle.calm();
            }
            self.now = at;
            host::set_clock(at);
            match self.step() {
                Err(_) if self.appliance.guessed => return Ok(Report { guessed: 1, ..Report::default() }),
                result => result?,
            }
            steps += 1;
            if steps > 5_000_000 {
                return Err("the world does not come to rest".into());
            }
            // A host that answered every answer would fill the cables.
            if self.events.len() > 50_000 {
                return Err("more and more frames are on the cables".into());
            }
        }
        self.appliance.conserved()?;
        let mut report = Report::default();
        for plan in self.scenario.plans.clone() {
            match self.judge_ending(&plan)? {
                Outcome::Finished => report.finished += 1,
                Outcome::Other => report.others += 1,
                Outcome::Stalled => report.stalled += 1,
            }
        }
        if !self.mode.bridge {
            self.drain()?;
        }
        self.appliance.conserved()?;
        let appliance = &self.appliance;
        appliance.ascribed()?;
        report.events =
            std::array::from_fn(|event| appliance.total(|counters| counters.happened(tcpstate::Event::ALL[event])));
        report.drops = std::array::from_fn(|reason| {
            appliance.total(|counters| counters.dropped(tcpstate::DropReason::ALL[reason]))
        });
        report.hash = self.hash;
        report.judged = self.oracle.judged();
        Ok(report)
    }

    /// What the hosts have seen, with how their connections ended.
    fn views(&mut self) -> BTreeMap<(SocketAddr, SocketAddr), View> {
        for connection in self.hosts.iter().flatten().flat_map(|host| &host.connections) {
            if let Some(view) = self.views.get_mut(&(connection.local, connection.remote)) {
                (view.read, view.ending) = (connection.read, connection.ending.map(|ending| format!("{ending:?}")));
            }
        }
        std::mem::take(&mut self.views)
    }

    /// Whether every connection has come to its end at both ends.
    fn settled(&self) -> bool {
        let opened = self.scenario.plans.iter().all(|plan| {
            let (local, remote) = ends(&self.hosts, plan);
            self.ending(plan.opener, plan, local, remote).is_some()
        });
        opened
            && self.due_again.is_empty()
            && self
                .hosts
                .iter()
                .flatten()
                .flat_map(|host| &host.connections)
                .all(|connection| connection.ending.is_some())
    }

    fn next(&self) -> Option<u64> {
        let event = self.events.peek().map(|Reverse(pending)| pending.at);
        self.host_turns.iter().flatten().copied().chain([self.box_turn, event]).flatten().min()
    }

    fn step(&mut self) -> Result<(), String> {
        let now = self.now;
        if self.events.peek().is_some_and(|Reverse(pending)| pending.at <= now) {
            let Reverse(Pending { event, .. }) = self.events.pop().expect("a first event");
            return self.happen(event);
        }
        for side in Side::BOTH {
            for host in 0..HOSTS {
                if self.host_turns[side as usize][host].is_some_and(|at| at <= now) {
                    return self.host_turn(side, host);
                }
            }
        }
        self.box_turn()
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::ToBox { side, bytes, corrupt, forged } => {
                self.note(Place::BoxGets, side, corrupt, &bytes);
                self.watch_bridge(&bytes);
                self.appliance.receive(side, &bytes, corrupt, forged);
                let lag = self.chance.within(0..60);
                let at = self.now + lag;
                self.box_turn = Some(self.box_turn.map_or(at, |turn| turn.min(at)));
                Ok(())
            }
            Event::ToHost { side, host, bytes, corrupt, ancestor } => {
                self.note(Place::HostGets, side, corrupt, &bytes);
                let addressed = Segment::read(&bytes).is_none_or(|segment| {
                    let here = &self.hosts[side as usize][host];
                    corrupt || here.address(segment.destination.is_ipv6()) == segment.destination.ip()
                });
                if !addressed {
                    return Err("a TCP segment for another host was delivered".into());
                }
                let here = &mut self.hosts[side as usize][host];
                let Some(whole) = here.assemble(bytes, corrupt, ancestor, self.now) else { return Ok(()) };
                let Whole { bytes, corrupt, ancestor } = whole;
                if let Some(error) = Error::read(&bytes) {
                    self.oracle.complained(&error).map_err(|complaint| complaint.to_string())?;
                    self.hosts[side as usize][host].complain(&error);
                    return self.host_turn(side, host);
                }
                self.judge_network(&bytes, corrupt, ancestor)?;
                self.oracle.set_time(self.now);
                self.oracle.delivered(&bytes, corrupt, ancestor).map_err(|complaint| complaint.to_string())?;
                if let Some(segment) = Segment::read(&bytes) {
                    self.views.entry((segment.destination, segment.source)).or_default().note(&segment);
                }
                self.hosts[side as usize][host].receive(bytes, self.now);
                self.host_turn(side, host)
            }
            Event::Open(index) => {
                let plan = self.scenario.plans[index];
                let (local, remote) = ends(&self.hosts, &plan);
                let behaviour = behaviour(&self.scenario, &plan, 0);
                let host = plan.hosts[plan.opener as usize];
                self.hosts[plan.opener as usize][host].connect(local, remote, plan.dialect, behaviour);
                self.host_turn(plan.opener, host)
            }
            Event::Again(index) => {
                let plan = self.scenario.plans[index];
                let (local, remote) = ends(&self.hosts, &plan);
                let at = |side: Side| &self.hosts[side as usize][plan.hosts[side as usize]];
                let over = at(plan.opener).is_over(local, remote) && at(plan.opener.other()).is_over(remote, local);
                if over {
                    self.due_again.remove(&index);
                    // RFC 6528: initial sequence numbers of one pair of ends rise.
                    let step = self.chance.within(1 << 20..1 << 24) as u32;
                    let isn = &mut self.scenario.plans[index].dialect.isn;
                    *isn = isn.map(|isn| isn.wrapping_add(step));
                    return self.happen(Event::Open(index));
                }
                if self.now < self.scenario.heal + BOUND / 2 {
                    self.push(self.now + 3 * SECOND, Event::Again(index));
                } else {
                    self.due_again.remove(&index);
                }
                Ok(())
            }
            Event::Restart { side, host, port, dialect } => {
                self.hosts[side as usize][host].services.insert(port, Service::Open(dialect));
                Ok(())
            }
            Event::Attacker => {
                self.attack();
                Ok(())
            }
        }
    }

    fn host_turn(&mut self, side: Side, host: usize) -> Result<(), String> {
        let now = self.now;
        let here = &mut self.hosts[side as usize][host];
        let departures = here.turn(now);
        self.host_turns[side as usize][host] = here.next_turn(now);
        if let Some(wrong) = here.wrong.take() {
            return Err(wrong);
        }
        for Departure { whole, frames } in departures {
            let judged = if let [frame] = &frames[..] { frame } else { &whole };
            self.oracle.sent(judged);
            for bytes in frames {
                match self.route(side, false, &bytes) {
                    Routed::Passes => self.leave(side, &bytes),
                    Routed::InPieces(pieces) => pieces.iter().for_each(|bytes| self.leave(side, bytes)),
                    Routed::Refused(error) => {
                        let at = now + self.chance.within(1..500);
                        self.push(at, Event::ToHost { side, host, bytes: error, corrupt: false, ancestor: None });
                    }
                }
            }
        }
        Ok(())
    }

    /// Notes which connections begin, and which are not open yet, before the engine takes over.
    fn watch_bridge(&mut self, bytes: &[u8]) {
        let Some(segment) = Segment::read(bytes).filter(|_| self.scenario.build.bridge_until > 0) else { return };
        if self.now < self.scenario.build.bridge_until + SECOND / 10 && segment.syn {
            let (opener, opened) = match segment.ack {
                None => (segment.source, segment.destination),
                Some(_) => (segment.destination, segment.source),
            };
            self.oracle.bridge(opener, opened);
            // A connection of whose handshake the box saw only a part may fail.
            self.oracle.license_reset(opener, opened);
        }
        if self.now < self.scenario.build.bridge_until {
            return;
        }
        let ends = (segment.source, segment.destination);
        if !self.met.contains(&ends) {
            self.met.extend([ends, (ends.1, ends.0)]);
            if !self.oracle.is_open(ends.0, ends.1) {
                self.straddling.extend([ends, (ends.1, ends.0)]);
            }
        }
    }

    /// What the router of this side, if there is one, does with a packet to a host, or from one.
    fn route(&self, side: Side, to_host: bool, bytes: &[u8]) -> Routed {
        let Some(layers) = Layers::read(bytes) else { return Routed::Passes };
        let address = |number: u16| -> IpAddr {
            if layers.v6 {
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, side as u16, number).into()
            } else {
                Ipv4Addr::new(10, 0, side as u8, number as u8).into()
            }
        };
        if let Some(hop) = self.scenario.hops[side as usize] {
            let mtu = if layers.v6 { hop.mtu.max(1280) } else { hop.mtu };
            if layers.end - layers.ip > mtu {
                return match cut(bytes, mtu) {
                    Some(pieces) => Routed::InPieces(pieces),
                    None => {
                        let trouble = Trouble::TooBig(mtu as u32);
                        Routed::Refused(Error::write(trouble, address(0xfe), bytes, hop.quote))
                    }
                };
            }
        }
        match Segment::read(bytes) {
            Some(segment) if to_host && segment.syn && segment.ack.is_none() && segment.sums_right() => {
                match self.unreachable.get(&segment.destination) {
                    Some(&code) => {
                        Routed::Refused(Error::write(Trouble::Unreachable(code), address(0xfd), bytes, 1500))
                    }
                    None => Routed::Passes,
                }
            }
            _ => Routed::Passes,
        }
    }

    /// A host's frame goes onto its cable.
    fn leave(&mut self, side: Side, bytes: &[u8]) {
        self.note(Place::HostSends, side, false, bytes);
        let healed = self.now >= self.scenario.heal;
        for arrival in self.links[side as usize][0].carry(bytes, self.now, healed).into_iter().flatten() {
            let (bytes, corrupt) = arrival.of(bytes);
            self.push(arrival.at, Event::ToBox { side, bytes, corrupt, forged: false });
        }
    }

    /// A frame of the box goes onto the cable to the hosts of this side.
    fn approach(&mut self, side: Side, bytes: &[u8], corrupt: bool, ancestor: Option<Ancestor>) {
        let healed = self.now >= self.scenario.heal;
        for host in 0..HOSTS {
            if bytes[0] & 1 == 0 && bytes[..6] != self.hosts[side as usize][host].mac {
                continue;
            }
            for arrival in self.links[side as usize][1].carry(bytes, self.now, healed).into_iter().flatten() {
                // Two flips can undo each other.
                let arrival = Arrival { flip: arrival.flip.filter(|_| !corrupt), ..arrival };
                let (bytes, flipped) = arrival.of(bytes);
                let corrupt = corrupt || flipped;
                self.push(arrival.at, Event::ToHost { side, host, bytes, corrupt, ancestor });
            }
        }
    }

    /// Judges what lies around a segment: it must come from its sender's station, in its connection's network.
    fn judge_network(&self, bytes: &[u8], corrupt: bool, ancestor: Option<Ancestor>) -> Result<(), String> {
        let Some(segment) = Segment::read(bytes) else { return Ok(()) };
        let forged = ancestor.is_some_and(|ancestor| ancestor.forged);
        let Some(&tags) = self.networks.get(&(segment.destination, segment.source)) else { return Ok(()) };
        // A server answers a forged SYN that tried its port where that came from.
        if corrupt || forged || self.oracle.is_retried(segment.destination, segment.source) {
            return Ok(());
        }
        let has_priority_tag = |tags: Tags| tags.iter().flatten().any(is_priority_tag);
        if networks(segment.tags) != networks(tags) || has_priority_tag(segment.tags) && !has_priority_tag(tags) {
            return Err(format!("arrives in another network than {tags:04x?}\n  {segment}"));
        }
        let sender =
            self.hosts.iter().flatten().find(|host| host.address(segment.source.is_ipv6()) == segment.source.ip());
        if sender.is_some_and(|sender| bytes[6..12] != sender.mac) {
            return Err(format!("comes from the station {:02x?}\n  {segment}", &bytes[6..12]));
        }
        Ok(())
    }

    fn box_turn(&mut self) -> Result<(), String> {
        let now = self.now;
        let restarts = self.appliance.restarts();
        let sent = self.appliance.turn(now);
        self.oracle.set_time(now);
        if self.appliance.restarts() > restarts {
            self.oracle.begin_anew();
        }
        self.box_turn = self.appliance.next_turn(now);
        for Sent { to, bytes, corrupt, ancestor, taken } in sent {
            taken.iter().for_each(|taken| self.oracle.took(taken));
            self.note(Place::BoxSends, to, corrupt, &bytes);
            self.oracle.passed(&bytes, corrupt, ancestor).map_err(|complaint| complaint.to_string())?;
            if let Some(whole) = self.leaving.take(bytes.clone(), corrupt, ancestor, now) {
                self.oracle.left(&whole.bytes);
            }
            match self.route(to, true, &bytes) {
                Routed::Passes => self.approach(to, &bytes, corrupt, ancestor),
                Routed::InPieces(pieces) => {
                    // Which piece is corrupt is not known; the whole is lost, as a piece would be.
                    for bytes in pieces.iter().filter(|_| !corrupt) {
                        self.approach(to, bytes, false, ancestor);
                    }
                }
                // A damaged segment would be quoted as it is.
                Routed::Refused(_) if corrupt => {}
                Routed::Refused(error) => self.leave(to, &error),
            }
        }
        self.appliance.conserved()
    }

    /// An off-path attacker sends a segment: to a server, or into a connection, with random numbers.
    fn attack(&mut self) {
        let interval = self.scenario.noise.interval;
        let pause = self.chance.within(1..interval * 2);
        if self.now < self.scenario.heal {
            self.push(self.now + pause, Event::Attacker);
        }
        let plan = *self.chance.pick(&self.scenario.plans);
        let (local, remote) = ends(&self.hosts, &plan);
        let (wan, lan) = if plan.opener == Side::Wan { (local, remote) } else { (remote, local) };
        let mut source = wan;
        if self.chance.one_in(1, 2) {
            source.set_port(self.chance.within(1024..60_000) as u16);
            if let SocketAddr::V4(v4) = &mut source {
                v4.set_ip(Ipv4Addr::from(self.chance.word() as u32 >> 8 | 0x0b00_0000));
            }
        }
        let data = [0x5a; 64];
        let kind = self.chance.within(0..6);
        // What lies outside their windows the ends of a living connection judge for themselves, and smoltcp not always
        // well: it takes a reset anywhere in its window, and a SYN against its own for a simultaneous open.
        if source == wan && (kind >= 4 || plan.opener == Side::Lan) {
            source.set_port(self.chance.within(1024..19_000) as u16);
        }
        let mut segment = Segment::new(source, lan, self.chance.word() as u32, None);
        segment.window = self.chance.word() as u16;
        match kind {
            0 | 1 => {
                segment.syn = true;
                segment.options.mss = Some(1460);
                if self.chance.one_in(1, 2) {
                    segment.options.scale = Some(7);
                    segment.options.sack_permitted = true;
                    segment.options.stamps = Some((self.chance.word() as u32, 0));
                }
            }
            2 => segment.rst = true,
            3 => {
                segment.syn = true;
                segment.ack = Some(self.chance.word() as u32);
            }
            4 => {
                segment.fin = true;
                segment.ack = Some(self.chance.word() as u32);
            }
            _ => {
                segment.ack = Some(self.chance.word() as u32);
                segment.payload = &data[..self.chance.within(0..64) as usize];
            }
        }
        let mac = self.hosts[Side::Lan as usize][plan.hosts[Side::Lan as usize]].mac;
        let bytes = segment.write([2, 0, 0, 9, 9, 9], mac, Layout::default());
        self.push(self.now, Event::ToBox { side: Side::Wan, bytes, corrupt: false, forged: true });
    }

    fn ending(&self, side: Side, plan: &Plan, local: SocketAddr, remote: SocketAddr) -> Option<Ending> {
        let connections = &self.hosts[side as usize][plan.hosts[side as usize]].connections;
        let mut connections =
            connections.iter().filter(|connection| connection.local == local && connection.remote == remote);
        if side == plan.opener {
            return connections.next_back().and_then(|connection| connection.ending);
        }
        // A connection that finished stays finished, whatever a late SYN began at its end.
        let finished = |connection: &&host::Connection| connection.ending == Some(Ending::Finished);
        connections.clone().find(finished).or_else(|| connections.next_back()).and_then(|connection| connection.ending)
    }

    /// How the connection ended; an error if it must not end so.
    fn judge_ending(&self, plan: &Plan) -> Result<Outcome, String> {
        let (local, remote) = ends(&self.hosts, plan);
        let opener = self.ending(plan.opener, plan, local, remote);
        let opened = self.ending(plan.opener.other(), plan, remote, local);
        let listener = self.scenario.listener(plan);
        let wrong =
            |why: &str| Err(format!("{local} to {remote}: {why}: {opener:?}, {opened:?} ({plan:?}, {listener:?})"));
        if opener == Some(Ending::Finished) && opened == Some(Ending::Finished) {
            return Ok(Outcome::Finished);
        }
        if opener.is_none() {
            return wrong("no end within the bound");
        }
        if self.scenario.cramped {
            return Ok(Outcome::Other);
        }
        match listener {
            _ if self.straddling.contains(&(local, remote)) && plan.at <= self.scenario.build.bridge_until => {
                Ok(Outcome::Other)
            }
            _ if plan.is_tiny() && opener == Some(Ending::GaveUp) => Ok(Outcome::Other),
            Listener::Closed if opener == Some(Ending::Reset) => Ok(Outcome::Other),
            Listener::Closed => wrong("a closed port must refuse"),
            Listener::Unreachable(_) if matches!(opener, Some(Ending::Reset | Ending::GaveUp)) => Ok(Outcome::Other),
            Listener::Unreachable(_) => wrong("no host can have been reached"),
            Listener::Silent if matches!(opener, Some(Ending::Reset | Ending::GaveUp)) => Ok(Outcome::Other),
            Listener::Silent => wrong("no host can have answered"),
            Listener::Open(..) | Listener::Late(..) if plan.aborts() => Ok(Outcome::Other),
            Listener::Late(..) if opener == Some(Ending::Reset) => Ok(Outcome::Other),
            Listener::Open(..) | Listener::Late(..) if self.oracle.deadlocked(local, remote) => Ok(Outcome::Stalled),
            Listener::Open(..) => wrong("the connection must finish"),
            Listener::Late(..) => wrong("the connection must finish or be refused"),
        }
    }

    /// Lets the box alone until all its timers have run out: nothing may stay behind.
    fn drain(&mut self) -> Result<(), String> {
        let end = self.now + 3 * 86_400 * SECOND;
        let mut turns = 0u64;
        self.box_turn = self.appliance.next_turn(self.now);
        while let Some(at) = self.box_turn {
            if at > end {
                break;
            }
            self.now = at.max(self.now + 1);
            let _ = self.appliance.turn(self.now);
            self.box_turn = self.appliance.next_turn(self.now);
            turns += 1;
            if turns > 1_000_000 {
                return Err("the box's timers never come to rest".into());
            }
            let population = self.appliance.proxy().population();
            if population == tcpstate::Population::default() {
                let left = self.appliance.proxy().published_flows();
                return if left == 0 { Ok(()) } else { Err(format!("{left} flows that have ended are in the map")) };
            }
        }
        let population = self.appliance.proxy().population();
        if population != tcpstate::Population::default() {
            return Err(format!("after all timeouts the box still holds {population:?}"));
        }
        Ok(())
    }

    fn note(&mut self, place: Place, side: Side, corrupt: bool, bytes: &[u8]) {
        for byte in self.now.to_le_bytes().iter().chain(&[place as u8, side as u8]).chain(bytes) {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
        let seen = Seen { at: self.now, place, side, corrupt, bytes: bytes.to_vec() };
        if self.mode.verbose {
            eprintln!("{}", self.line(&seen));
        }
        if self.seen.len() == TRACE {
            self.seen.pop_front();
        }
        self.seen.push_back(seen);
    }

    fn line(&self, seen: &Seen) -> String {
        let at = seen.at - self.scenario.start;
        let mut line = format!("{:4}.{:06} ", at / SECOND, at % SECOND);
        let (side, place) = (seen.side, seen.place);
        let _ = write!(line, "{:<5}{:<10}", format!("{side:?}"), format!("{place:?}"));
        match (Segment::read(&seen.bytes), Error::read(&seen.bytes)) {
            (Some(segment), _) => {
                let _ = write!(line, "{segment}");
            }
            (None, Some(error)) => {
                let (source, destination, seq) = (error.source, error.destination, error.seq());
                let _ = write!(line, "{:?}: {source} > {destination} seq {seq} ack {:?}", error.trouble, error.ack());
            }
            (None, None) => {
                let _ = write!(line, "{} bytes, type {:02x?}", seen.bytes.len(), &seen.bytes[12..14]);
            }
        }
        if seen.corrupt {
            line.push_str(" (corrupt)");
        }
        line
    }

    fn trace(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "{:#?}", self.scenario.build.config);
        for seen in &self.seen {
            let _ = writeln!(text, "{}", self.line(seen));
        }
        text
    }
}

/// The two ends of a plan's connection, the opener's first.
fn ends(hosts: &[Vec<Host>; 2], plan: &Plan) -> (SocketAddr, SocketAddr) {
    let address = |side: Side| hosts[side as usize][plan.hosts[side as usize]].address(plan.v6);
    (SocketAddr::new(address(plan.opener), plan.from_port), SocketAddr::new(address(plan.opener.other()), plan.to_port))
}

/// What the application at an end does: the opener's (0) or the opened (1).
fn behaviour(scenario: &Scenario, plan: &Plan, end: usize) -> Behaviour {
    let bytes = [plan.up, plan.down];
    Behaviour {
        writes: bytes[end],
        expects: bytes[1 - end],
        speaks_after: plan.speaks_after[end],
        pause: plan.pause[end],
        close: plan.close[end],
        patience: scenario.heal + PATIENCE,
        buffers: plan.buffers[end],
        keepalive: plan.keepalive,
        nagle: plan.nagle[end],
    }
}
