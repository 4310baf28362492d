//! What a seed means: how the box is built, what the cables do, who connects to whom.

use std::sync::Arc;
use std::time::Duration;

use tcpstate::config::{Asymmetric, DestinationRule, Handshake, Mode, Network, Proved, Reach, Settings};
use tcpstate::{Config, Side};

use super::appliance::Build;
use super::chance::Chance;
use super::dialect::{Announced, Dialect, Ecn, Keeps};
use super::host::Close;
use super::link::Faults;
use super::served::{self, Served};
use crate::oracle::SERVED;
use crate::oracle::layers::Tags;

/// Microseconds of a second.
pub const SECOND: u64 = 1_000_000;

/// How many hosts there are on each side.
pub const HOSTS: usize = 2;

/// One connection to be.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Who opens it.
    pub opener: Side,
    /// The number of the host on the WAN and on the LAN.
    pub hosts: [usize; 2],
    /// Whether it is IPv6.
    pub v6: bool,
    /// Port of the opener; different in every plan.
    pub from_port: u16,
    /// Port it is opened to.
    pub to_port: u16,
    /// When.
    pub at: u64,
    /// The opener's manner of speaking.
    pub dialect: Dialect,
    /// Bytes to the opened host.
    pub up: u64,
    /// Bytes to the opener.
    pub down: u64,
    /// Bytes received before the opener, and before the opened, writes.
    pub speaks_after: [u64; 2],
    /// When the opener, and the opened, closes.
    pub close: [Close; 2],
    /// Whether and how the opener, and the opened, stops reading for a while.
    pub pause: [Option<(u64, u64)>; 2],
    /// Buffers of the opener and of the opened.
    pub buffers: [(usize, usize); 2],
    /// Intervals of keepalives.
    pub keepalive: u64,
    /// Nagle's algorithm at the opener and at the opened.
    pub nagle: [bool; 2],
    /// The network the connection runs in: the tags both hosts put on its frames.
    pub tags: Tags,
    /// Whether, when all is over, the same ports are used for a second connection.
    pub again: bool,
}

impl Plan {
    /// Whether the connection is meant to end in a reset.
    pub fn aborts(&self) -> bool {
        self.close.iter().any(|close| matches!(close, Close::Abort(_)))
    }

    /// Whether the opener announces a smaller MSS than a cookie can express: it may get no answer.
    pub fn is_tiny(&self) -> bool {
        self.opener == Side::Wan && self.dialect.mss == Announced::Below(64)
    }
}

/// What is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// A server with this dialect; after a restart, with that one.
    Open(Dialect, Option<(u64, Dialect)>),
    /// SYNs are dropped until this time.
    Late(u64, Dialect),
    /// SYNs are dropped for ever.
    Silent,
    /// No socket listens: the host answers with RST.
    Closed,
    /// A router answers in the host's place that it cannot be reached, with this code.
    Unreachable(u8),
}

/// A router beside the box, between it and the hosts of one side.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    /// The longest IPv4 packet its narrower link takes; IPv6 links take 1280 bytes at least.
    pub mtu: usize,
    /// Bytes of a packet's payload that its errors quote at the most.
    pub quote: usize,
}

impl Listener {
    /// Whether the server that answers has its terms in what it answers.
    pub fn forgets(&self) -> bool {
        match self {
            Listener::Open(dialect, _) | Listener::Late(_, dialect) => dialect.keeps != Keeps::Itself,
            Listener::Silent | Listener::Closed | Listener::Unreachable(_) => false,
        }
    }

    /// The dialects of the servers that answer.
    fn dialects(&mut self) -> impl Iterator<Item = &mut Dialect> {
        let (first, second) = match self {
            Listener::Open(first, second) => (Some(first), second.as_mut().map(|(_, dialect)| dialect)),
            Listener::Late(_, first) => (Some(first), None),
            Listener::Silent | Listener::Closed | Listener::Unreachable(_) => (None, None),
        };
        first.into_iter().chain(second)
    }
}

/// What off-path attackers send to the box.
#[derive(Clone, Copy, Debug, Default)]
pub struct Noise {
    /// Mean interval between their frames in microseconds; none if zero.
    pub interval: u64,
}

/// Everything about a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed it follows from.
    pub seed: u64,
    /// When the clock starts.
    pub start: u64,
    /// How the box is built.
    pub build: Build,
    /// The cables: host to box and box to host, for the LAN and the WAN.
    pub faults: [[Faults; 2]; 2],
    /// Delays of the LAN and the WAN.
    pub delays: [u64; 2],
    /// When the cables heal.
    pub heal: u64,
    /// Listeners of every host: `[side][host][port]`, ports from 80 on.
    pub listeners: [[Vec<Listener>; HOSTS]; 2],
    /// The routers of the LAN and the WAN.
    pub hops: [Option<Hop>; 2],
    /// MTU of every host.
    pub mtus: [[usize; HOSTS]; 2],
    /// The connections.
    pub plans: Vec<Plan>,
    /// Off-path attackers.
    pub noise: Noise,
    /// Whether the tables hold fewer connections than there are.
    pub cramped: bool,
}

/// The networks connections run in: most without a tag, some with one or two. A priority tag, of identifier 0, is on some frames of either host only.
const NETWORKS: [Tags; 8] = [
    [None; 2],
    [None; 2],
    [None; 2],
    [Some((0x8100, 0xa000)), None],
    [Some((0x8100, 0x6064)), None],
    [Some((0x8100, 0x0fff)), None],
    [Some((0x88a8, 0x0007)), Some((0x8100, 0x2ffe))],
    [Some((0x9100, 0x0065)), Some((0x8100, 0x0065))],
];

/// One end of a connection of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Timestamps.
    pub stamps: bool,
    /// SACK.
    pub sack: bool,
    /// Window scaling.
    pub scale: bool,
    /// ECN.
    pub ecn: bool,
}

/// One cell of the matrix: a connection from the WAN, and a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The client.
    pub client: End,
    /// The server.
    pub server: End,
    /// Whether it is IPv6.
    pub v6: bool,
    /// MTU of both hosts.
    pub mtu: usize,
    /// The tags on their frames.
    pub tags: Tags,
    /// Whether the box keeps a SYN cache.
    pub cache: bool,
}

/// The first port with a [`Listener`].
pub const FIRST_PORT: u16 = 80;

impl Scenario {
    /// What this seed means.
    pub fn draw(seed: u64, bridge: bool) -> Self {
        let mut chance = Chance::new(seed);
        let start = draw_start(&mut chance);
        let heal = start + chance.within(2 * SECOND..25 * SECOND);
        let cramped = chance.one_in(1, 10);
        let mut build = draw_build(&mut chance, bridge, cramped);
        if chance.one_in(1, 10) {
            let from = start + chance.within(0..5 * SECOND);
            build.drought = Some((from, from + chance.within(1..3 * SECOND)));
        }
        let taken_over = !bridge && chance.one_in(1, 10);
        if taken_over {
            build.bridge_until = start + chance.within(SECOND..6 * SECOND);
            build.config.adopt_grace = Duration::from_secs(60);
        }
        if !taken_over {
            build.restarts = draw_restarts(seed, start);
        }
        let calm = chance.one_in(1, 8);
        // Kinds of faults that are off altogether.
        let off = chance.word() & chance.word();
        let mut faults = || if calm { Faults::default() } else { Faults::draw(&mut chance).without(off) };
        let faults = [[faults(), faults()], [faults(), faults()]];
        let delays = [chance.within(20..2000), chance.within(200..60_000)];
        let mut listeners = [(); 2].map(|()| [(); HOSTS].map(|()| draw_listeners(&mut chance, start)));
        let mtus =
            [(); 2].map(|()| [(); HOSTS].map(|()| *chance.pick(&[1500, 1500, 1500, 1400, 1280, 1492, 9000, 9000])));
        let hops = [(); 2].map(|()| {
            let hop =
                Hop { mtu: *chance.pick(&[576, 1280, 1300, 1400, 1492]), quote: *chance.pick(&[8, 20, 64, 1500]) };
            (build.frames >= 64 && chance.one_in(1, 5)).then_some(hop)
        });
        let count = chance.within(4..9);
        // With a handful of buffers every burst is cut short, and smoltcp has no congestion window to learn from it.
        let most = if build.frames < 64 { build.frames as u64 * 400 } else { u64::MAX };
        let mut plans: Vec<_> =
            (0..count).map(|number| draw_plan(&mut chance, start, number as u16, &listeners, &build, most)).collect();
        if build.frames < 64 {
            // Nor do all pieces of a packet ever arrive, or all small segments of a burst.
            let coarse = |dialect: &mut Dialect| {
                dialect.envelope.fragments = None;
                dialect.mss = Announced::Own;
            };
            plans.iter_mut().for_each(|plan: &mut Plan| coarse(&mut plan.dialect));
            listeners.iter_mut().flatten().flatten().flat_map(Listener::dialects).for_each(coarse);
        }
        // What runs while the engine takes over may be any host's: the box accepts an attacker's segments then.
        let noise = Noise { interval: if !taken_over && chance.one_in(1, 4) { chance.within(200..20_000) } else { 0 } };
        if noise.interval > 0 {
            // Behind a SYN-ACK that is passed for a SYN that left another way an attacker's segments pass too, as over a cable.
            build.config.asymmetric = Asymmetric::Drop;
        }
        Self { seed, start, build, faults, delays, heal, listeners, hops, mtus, plans, noise, cramped }
    }

    /// The same as of [`draw`](Self::draw), with an engine that passes everything where that has a plain bridge, in its turns; and no damaged frame, as the
    /// engine drops what is no segment. What the hosts see is the same bit by bit.
    pub fn cable(seed: u64, bridge: bool) -> Self {
        let mut scenario = Self::draw(seed, true);
        scenario.faults.iter_mut().flatten().for_each(|faults| faults.corruption = 0);
        scenario.build.bridge = bridge;
        scenario.build.bridge_until = 0;
        (scenario.build.lazy, scenario.build.config.mode) = (true, Mode::Pass);
        scenario
    }

    /// The same with an engine in mode `auto`, which is told again and again to pass SYNs or to answer them. No attacker takes part, whose segments pass at
    /// times, and the process stays, as what it has answered is not in the memory it leaves.
    pub fn switching(seed: u64) -> Self {
        let mut scenario = Self::draw(seed, false);
        let mut chance = Chance::new(!seed ^ 0x5717c4);
        let build = &mut scenario.build;
        (build.bridge_until, build.restarts, build.config.adopt_grace) = (0, Vec::new(), Duration::ZERO);
        build.config.mode = Mode::Auto;
        build.config.auto.enter_half_open = u32::MAX;
        build.config.table_buckets = 64;
        let times = chance.within(1..12);
        build.switches = (0..times).map(|_| scenario.start + chance.within(0..10 * SECOND)).collect();
        build.switches.sort_unstable();
        (scenario.cramped, scenario.noise) = (false, Noise::default());
        scenario
    }

    /// The same with a box that has services, by which most clients of the WAN reach their servers. Routers send no errors, and what goes to a service is in one
    /// piece and without a tag: of those services take no part, or tests of their own.
    pub fn serving(seed: u64) -> Self {
        let mut scenario = Self::draw(seed, false);
        let mut chance = Chance::new(!seed ^ 0x5e71ce);
        let build = &mut scenario.build;
        (build.bridge_until, build.restarts, build.config.adopt_grace) = (0, Vec::new(), Duration::ZERO);
        let reach = *chance.pick(&[Reach::Nat, Reach::Mac, Reach::Full]);
        build.config.services = served::services(reach, HOSTS as u8);
        build.config.service_buffers = if scenario.cramped { 2 } else { 64 };
        // A client whose server is not connected in time is reset, and so it is not to be.
        build.config.timeouts.dl_syn_sent = Duration::from_secs(600);
        build.served = Some(Served::new(reach));
        scenario.hops = [None; 2];
        for host in &mut scenario.listeners[Side::Lan as usize] {
            for _ in SERVED {
                let mut dialect = Dialect::draw(&mut chance);
                dialect.envelope.fragments = None;
                host.push(Listener::Open(dialect, None));
            }
        }
        for plan in scenario.plans.iter_mut().filter(|plan| plan.opener == Side::Wan) {
            if chance.one_in(1, 4) {
                continue;
            }
            plan.to_port = *chance.pick(&SERVED);
            plan.up = plan.up.max(served::LEAST);
            // The client speaks first, or nobody knows its server.
            plan.speaks_after[0] = 0;
            plan.speaks_after[1] = plan.speaks_after[1].min(plan.up);
            plan.tags = [None; 2];
            plan.dialect.envelope.fragments = None;
        }
        scenario
    }

    /// Makes the servers with IPv4 addresses a target of their own, of which nothing differs.
    pub fn count_v4_apart(&mut self) {
        let config = &mut self.build.config;
        let settings = Arc::new(Settings { mode: Some(config.mode), ..Settings::default() });
        let network = Network { address: [0, 0, 0xffff, 0], prefix: 96 };
        config.rules.push(DestinationRule { vlan: None, network, port: None, settings });
    }

    /// A world without faults for one cell of the matrix: in a first connection the box learns the server's options, the
    /// second, from port [`Scenario::JUDGED`] on, is the one to look at.
    pub fn quiet(cell: &Cell, bridge: bool) -> Self {
        let mut chance = Chance::new(1);
        let start = 5 << 26;
        let dialect = |end: &End, shift| Dialect {
            stamps: end.stamps,
            sack: end.sack,
            scale: end.scale,
            ecn: if end.ecn { Ecn::Classic } else { Ecn::None },
            shift: Some(shift),
            ..Dialect::plain()
        };
        let server = Listener::Open(dialect(&cell.server, 9), None);
        let mut build = draw_build(&mut chance, bridge, false);
        build.config = Config {
            table_buckets: 64,
            learn_capacity: 64,
            recent_syns: 4096,
            refused_syns: 1024,
            proved_sources: 1024,
            syn_cache_max: if cell.cache { 64 } else { 0 },
            rate: tcpstate::config::RateLimit { size: 1024, ..Default::default() },
            ..Config::default()
        };
        (build.frames, build.ring, build.batch, build.transmission) = (128, 64, 64, 0);
        let plan = |from_port: u16, at: u64| Plan {
            opener: Side::Wan,
            hosts: [0, 0],
            v6: cell.v6,
            from_port,
            to_port: FIRST_PORT,
            at,
            dialect: dialect(&cell.client, 6),
            up: 12_000,
            down: 12_000,
            speaks_after: [0, 0],
            close: [Close::WhenSent; 2],
            pause: [None; 2],
            buffers: [(1 << 17, 1 << 14); 2],
            keepalive: 100 * SECOND,
            nagle: [false; 2],
            tags: cell.tags,
            again: false,
        };
        Self {
            seed: 1,
            start,
            build,
            faults: [[Faults::default(); 2]; 2],
            delays: [100, 5000],
            heal: start,
            listeners: [(); 2].map(|()| [(); HOSTS].map(|()| vec![server])),
            hops: [None; 2],
            mtus: [[cell.mtu; HOSTS]; 2],
            plans: vec![plan(Self::JUDGED - 1, start), plan(Self::JUDGED, start + 2 * SECOND)],
            noise: Noise::default(),
            cramped: false,
        }
    }

    /// The same world, in which the box passes every connection of the WAN, because all of its sources have proved themselves, and a restart leaves
    /// nothing. A full table is another matter.
    pub fn prove(&mut self) {
        let config = &mut self.build.config;
        config.proved = Proved::Pass;
        (config.proved_syns, config.proved_half_open, config.proved_half_open_all) = (10_000, 12, 10_000);
        config.table_buckets = config.table_buckets.max(64);
        // What runs at a restart is adopted whenever it goes on, at whatever rate.
        (config.adopt_grace, config.passed_rate) = (Duration::from_secs(3600), 1_000_000);
        self.cramped = false;
        (self.build.all_proved, self.build.forgets, self.build.bridge_until) = (true, true, 0);
    }

    /// The client's port of the connection to look at in a world of the matrix.
    pub const JUDGED: u16 = 20_001;

    /// What is behind the port of this plan.
    pub fn listener(&self, plan: &Plan) -> Listener {
        let side = plan.opener.other();
        self.listeners[side as usize][plan.hosts[side as usize]][usize::from(plan.to_port - FIRST_PORT)]
    }
}

/// When the engine's process is replaced: in a quarter of the worlds, up to three times. Drawn apart, so that the rest of a world is the same.
fn draw_restarts(seed: u64, start: u64) -> Vec<u64> {
    let mut chance = Chance::new(!seed);
    let times = if chance.one_in(1, 4) { chance.within(1..4) } else { 0 };
    let mut restarts: Vec<_> = (0..times).map(|_| start + chance.within(0..10 * SECOND)).collect();
    restarts.sort_unstable();
    restarts
}

/// A time whose key epoch (2^26 microseconds) ends during the handshakes in half of all worlds.
fn draw_start(chance: &mut Chance) -> u64 {
    let epoch = chance.within(3..1000) << 26;
    if chance.one_in(1, 2) { epoch - chance.within(0..3 * SECOND) } else { epoch + chance.within(0..60 * SECOND) }
}

fn draw_build(chance: &mut Chance, bridge: bool, cramped: bool) -> Build {
    let mut secrets = [0; 48];
    for chunk in secrets.chunks_mut(8) {
        chunk.copy_from_slice(&chance.word().to_le_bytes());
    }
    let mut config = Config {
        table_buckets: if cramped { 1 } else { 64 },
        learn_capacity: *chance.pick(&[1, 64, 1024]),
        recent_syns: 4096,
        refused_syns: 1024,
        proved_sources: 1024,
        syn_cache_max: *chance.pick(&[0, 0, 1, 4, 256]),
        // Nothing is running when a world begins, so whatever is passed to be adopted would be an attacker's.
        adopt_grace: Duration::ZERO,
        closed_memory: Duration::from_secs(*chance.pick(&[0, 1, 10])),
        handshake: if chance.one_in(1, 2) { Handshake::Early } else { Handshake::Honest },
        early_window: *chance.pick(&[1, 600, 16_384, u16::MAX]),
        held_frames: *chance.pick(&[0, 1, 4, 256]),
        ..Config::default()
    };
    config.rate.size = 1024;
    if chance.one_in(1, 8) {
        config.rate.burst = chance.within(1..4) as u32;
        config.rate.add = 1;
    }
    if chance.one_in(1, 4) {
        config.timeouts.dl_syn_sent = Duration::from_secs(chance.within(5..60));
        config.timeouts.dl_half_open = Duration::from_secs(chance.within(2..60));
    }
    if chance.one_in(1, 4) {
        config.own_mss = *chance.pick(&[536, 1220, 1460]);
        config.own_wscale = *chance.pick(&[0, 3, 7, 9]);
        config.own_sack = chance.one_in(1, 2);
    }
    if chance.one_in(1, 6) {
        config.sack_conflict = tcpstate::config::SackConflict::Retain;
    }
    let tiny = chance.one_in(1, 8);
    Build {
        config,
        secrets,
        frames: if tiny { chance.within(3..16) as usize } else { 1024 },
        ring: *chance.pick(&[16, 64, 256]),
        batch: *chance.pick(&[1, 8, 64]),
        transmission: chance.within(0..if tiny { 1000 } else { 500 }),
        bridge,
        bridge_until: 0,
        drought: None,
        restarts: Vec::new(),
        forgets: false,
        all_proved: false,
        switches: Vec::new(),
        lazy: false,
        served: None,
    }
}

fn draw_listeners(chance: &mut Chance, start: u64) -> Vec<Listener> {
    (0..6)
        .map(|port| {
            let dialect = Dialect::draw(chance);
            match port {
                2 => Listener::Closed,
                3 => Listener::Silent,
                4 => Listener::Late(start + chance.within(SECOND / 10..12 * SECOND), dialect),
                // Host and port unreachable, and forbidden: codes that IPv4 and IPv6 share or have beside each other.
                5 => Listener::Unreachable(*chance.pick(&[0, 1, 3])),
                _ if chance.one_in(1, 3) => {
                    let restart = start + chance.within(SECOND..6 * SECOND);
                    let after = Dialect { keeps: dialect.keeps, ..Dialect::draw(chance) };
                    Listener::Open(dialect, Some((restart, after)))
                }
                _ => Listener::Open(dialect, None),
            }
        })
        .collect()
}

fn draw_plan(
    chance: &mut Chance,
    start: u64,
    number: u16,
    listeners: &[[Vec<Listener>; HOSTS]; 2],
    build: &Build,
    most: u64,
) -> Plan {
    let opener = if chance.one_in(3, 4) { Side::Wan } else { Side::Lan };
    let hosts = [0, 1].map(|_| chance.within(0..HOSTS as u64) as usize);
    let to_port = FIRST_PORT + if chance.one_in(4, 5) { chance.within(0..2) } else { chance.within(2..6) } as u16;
    let served = opener.other() as usize;
    let open = matches!(
        listeners[served][hosts[served]][usize::from(to_port - FIRST_PORT)],
        Listener::Open(..) | Listener::Late(..)
    );
    let size = |chance: &mut Chance| match chance.within(0..8) {
        0 => 0,
        1 => 1,
        2..=4 => chance.within(2..5000),
        5 | 6 => chance.within(5000..60_000),
        _ => chance.within(60_000..300_000),
    };
    let mut buffers = || {
        let sizes = [600, 4096, 16_384, 65_535, 65_536, 200_000, 1 << 20];
        (*chance.pick(&sizes), *chance.pick(&sizes[1..6]))
    };
    let buffers = [buffers(), buffers()];
    // smoltcp repeats a lost segment whatever the window, and then waits for its timer when half of it was taken.
    let fits = |receiver: usize| if buffers[receiver].0 < 4096 { 5000 } else { u64::MAX };
    let (up, down) = (size(chance).min(most).min(fits(1)), size(chance).min(most).min(fits(0)));
    // Who waits for whom: neither end, the server for the client's first byte or its last, the client for the server's.
    let speaks_after = match chance.within(0..5) {
        0 => [0, up.min(1)],
        1 => [0, up],
        2 => [down.min(1), 0],
        3 => [down, 0],
        _ => [0, 0],
    };
    let mut close = match chance.within(0..4) {
        0 => [Close::WhenSent, Close::WhenSent],
        1 => [Close::WhenSent, Close::AfterPeer],
        2 => [Close::AfterPeer, Close::WhenSent],
        _ => [Close::WhenSent, Close::WhenSent],
    };
    if open && chance.one_in(1, 12) {
        let who = chance.within(0..2) as usize;
        close[who] = Close::Abort(chance.within(0..[down, up][who] + 1));
    }
    let mut pause = |expects: u64| {
        (chance.one_in(1, 6) && expects > 1)
            .then(|| (chance.within(1..expects), chance.within(SECOND / 10..8 * SECOND)))
    };
    let pause = [pause(down), pause(up)];
    let mut dialect = Dialect::draw(chance);
    dialect.draw_isn(chance);
    if build.config.syn_cache_max == 0 && chance.one_in(1, 16) {
        // Smaller than every MSS a cookie can express, or the smallest.
        dialect.mss = Announced::Below(64);
    }
    Plan {
        opener,
        hosts,
        v6: chance.one_in(1, 2),
        from_port: 20_000 + number * 7,
        to_port,
        at: start + chance.within(0..5 * SECOND),
        dialect,
        up,
        down,
        speaks_after,
        close,
        pause,
        buffers,
        keepalive: chance.within(2 * SECOND..12 * SECOND),
        nagle: [chance.one_in(1, 2), chance.one_in(1, 2)],
        tags: *chance.pick(&NETWORKS),
        again: open && dialect.mss != Announced::Below(64) && chance.one_in(1, 5),
    }
}
