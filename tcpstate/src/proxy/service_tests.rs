//! Services between two simple TCPs, over links that lose, repeat and reorder: whatever happens on the way, each end gets every byte of the other, the
//! server is the one of the name that was asked for, and no number, echo or checksum is one that its receiver cannot have.

use super::{Memory, Metadata, Proxy, Secrets};
use crate::config::{
    Allowance, AllowedHost, AllowedPlace, Balance, HealthCheck, Network, Protocol, ProxyHeader, Reach, ServiceConfig,
    ServiceRoute, ServiceServer,
};
use crate::owner::{Naming, Owners, Worker, share};
use crate::policy::Policy;
use crate::seq::{RawWindow, SeqNum, WindowScale};
use crate::service::default_mac;
use crate::service::negotiation::{Failure, Language};
use crate::service::proxy_header::Header;
use crate::wire::neighbour::{Neighbour, Statement, tags};
use crate::wire::{Addr, Envelope, Flags, FlowKey, Mac, OptionList, Options, Outgoing, Parsed, Tags, Timestamps};
use crate::{Config, DropReason, Egress, Event, Head, Instant, NameAnswer, Side, State, Verdict};
use core::time::Duration;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const CLIENT_MAC: Mac = [2, 0, 0, 0, 0, 0xc1];
const SERVER_MAC: Mac = [2, 0, 0, 0, 0, 0x51];
const PORT: u16 = 80;

fn address(v6: bool, last: u32) -> Addr {
    if v6 { [0xfd77_0000, 0, 0, last] } else { [0, 0, 0xffff, 0x0a4d_0000 | last] }
}

/// A small source of chance.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn below(&mut self, n: u32) -> u32 {
        self.next() % n.max(1)
    }

    fn happens(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }
}

/// One end: a TCP that sends what it has in segments of any size, goes back to what is not acknowledged when time has passed, and keeps what comes.
struct End {
    key: FlowKey,
    side: Side,
    own_mac: Mac,
    peer_mac: Mac,
    isn: SeqNum,
    /// What it sends.
    out: Vec<u8>,
    /// How much of that is acknowledged (the SYN counts one, the FIN too), and sent.
    acked: u32,
    sent: u32,
    peer: Option<SeqNum>,
    /// How much of the peer's numbers has come in order, the SYN included.
    received: u32,
    bytes: Vec<u8>,
    early: BTreeMap<u32, Vec<u8>>,
    peer_fin: Option<u32>,
    window: u32,
    scale: Option<WindowScale>,
    peer_scale: Option<WindowScale>,
    offers_scale: Option<WindowScale>,
    timestamps: bool,
    clock: u32,
    first_clock: u32,
    recent: u32,
    /// Whether it may send its data and FIN, and how much of it.
    may_send: bool,
    limit: usize,
    owes: bool,
    quiet: u32,
    is_reset: bool,
}

impl End {
    fn new(side: Side, key: FlowKey, isn: u32, clock: u32, timestamps: bool, scale: Option<u8>) -> Self {
        Self {
            key,
            side,
            own_mac: if side == Side::Wan { CLIENT_MAC } else { SERVER_MAC },
            peer_mac: if side == Side::Wan { default_mac(&key.lan) } else { CLIENT_MAC },
            isn: SeqNum::new(isn),
            out: Vec::new(),
            acked: 0,
            sent: 0,
            peer: None,
            received: 0,
            bytes: Vec::new(),
            early: BTreeMap::new(),
            peer_fin: None,
            window: 0,
            scale: None,
            peer_scale: None,
            offers_scale: scale.map(WindowScale::clamped),
            timestamps,
            clock,
            first_clock: clock,
            recent: 0,
            may_send: side == Side::Wan,
            limit: usize::MAX,
            owes: false,
            quiet: 0,
            is_reset: false,
        }
    }

    fn fin_at(&self) -> u32 {
        1 + self.out.len() as u32
    }

    fn is_done(&self) -> bool {
        self.acked == self.fin_at() + 1 && self.peer_fin == Some(self.received)
    }

    fn frame(&mut self, at: u32, data: &[u8], flags: Flags) -> Vec<u8> {
        self.clock = self.clock.wrapping_add(1);
        let envelope = Envelope {
            from: self.own_mac,
            to: self.peer_mac,
            key: self.key,
            sender: self.side,
            port: self.side.other(),
            ttl: 64,
            class: 0,
            id: 0,
            label: 0,
            tags: Tags::default(),
        };
        let opens = flags.has(Flags::SYN);
        let echo = if flags.has(Flags::ACK) { self.recent } else { 0 };
        let timestamps = self.timestamps.then_some(Timestamps { value: self.clock, echo });
        let options = match opens {
            true => OptionList::syn(Some(1460), true, timestamps, self.offers_scale),
            false => OptionList::plain(timestamps),
        };
        let free = 30_000;
        let window = if opens { RawWindow(free) } else { RawWindow(free >> self.scale.map_or(0, WindowScale::get)) };
        let ack = self.peer.map_or(SeqNum::new(0), |peer| peer + self.received);
        let flags = if self.peer.is_some() { flags.and(Flags::ACK) } else { flags };
        let outgoing = Outgoing { envelope: &envelope, seq: self.isn + at, ack, flags, window, options: &options };
        let mut buffer = vec![0; 2048];
        let header = envelope.frame_len(&options);
        buffer[header..header + data.len()].copy_from_slice(data);
        let len = outgoing.write_around(&mut buffer, data.len());
        buffer.truncate(len);
        self.owes = false;
        buffer
    }

    /// What it has to say.
    fn speak(&mut self, chance: &mut Chance) -> Vec<Vec<u8>> {
        let mut said = Vec::new();
        if self.is_reset || self.side == Side::Lan && self.peer.is_none() {
            return said;
        }
        self.quiet += 1;
        if self.quiet > 30 && self.acked <= self.fin_at() {
            (self.sent, self.quiet) = (self.acked, 0);
        }
        if self.acked == 0 {
            if self.sent == 0 {
                self.sent = 1;
                said.push(self.frame(0, &[], Flags::SYN));
            }
            return said;
        }
        let end = if self.may_send { 1 + self.out.len().min(self.limit) as u32 } else { 1 };
        for _ in 0..1 + chance.below(4) {
            let room = (self.acked + self.window).saturating_sub(self.sent);
            let from = self.sent.max(1);
            let len = (end - from.min(end)).min(room).min(1 + chance.below(1400)).min(1448);
            if len == 0 {
                break;
            }
            let data = self.out[from as usize - 1..(from + len) as usize - 1].to_vec();
            said.push(self.frame(from, &data, Flags::ACK));
            self.sent = from + len;
        }
        if self.may_send && self.sent == self.fin_at() {
            said.push(self.frame(self.sent, &[], Flags::FIN.and(Flags::ACK)));
            self.sent += 1;
        }
        if self.owes {
            let at = self.sent.max(1);
            said.push(self.frame(at, &[], Flags::ACK));
        }
        said
    }

    fn hear(&mut self, frame: &mut [u8]) -> Result<(), TestCaseError> {
        let len = frame.len();
        let from = self.side.other();
        let head = Head::whole(frame, len);
        // The engine sorts addresses by side: what comes to the WAN's end comes from the LAN.
        let Parsed::Tcp(segment) = Parsed::parse(from, &head) else {
            return Err(TestCaseError::fail("no segment"));
        };
        prop_assert!(segment.checksums_hold(&head), "checksum");
        if self.key.wan_port == 0 {
            let (wan, wan_port) = (segment.key.wan, segment.key.wan_port);
            prop_assert!(segment.flags.has(Flags::SYN) && wan_port >= 1024 && wan[3] & 0xff >= 100);
            self.key = FlowKey { wan, wan_port, ..self.key };
            self.peer_mac = default_mac(&wan);
        }
        prop_assert_eq!(segment.key, self.key);
        prop_assert_eq!(&head.bytes()[..6], &self.own_mac[..]);
        if self.side == Side::Wan || self.peer_mac != CLIENT_MAC {
            prop_assert_eq!(&head.bytes()[6..12], &self.peer_mac[..], "the box's address");
        }
        let flags = segment.flags;
        if flags.has(Flags::RST) {
            self.is_reset = true;
            return Ok(());
        }
        let options = Options::read(segment.options(head.bytes()));
        if let Some(Timestamps { value, echo }) = options.timestamps {
            prop_assert!(self.timestamps || flags.has(Flags::SYN), "timestamps that were not offered");
            let ahead = echo.wrapping_sub(self.first_clock);
            let may_echo = echo == 0 || ahead <= self.clock.wrapping_sub(self.first_clock);
            prop_assert!(may_echo || flags.has(Flags::SYN), "an echo of what was never sent");
            self.recent = SeqNum::later(self.recent, value);
        }
        if flags.has(Flags::SYN) {
            if self.peer.is_none() {
                self.peer = Some(segment.seq);
                self.received = 1;
                if let Some(timestamps) = options.timestamps {
                    self.recent = timestamps.value;
                } else {
                    self.timestamps = false;
                }
                self.peer_scale = options.scale.filter(|_| self.offers_scale.is_some());
                self.scale = self.offers_scale.filter(|_| options.scale.is_some());
                self.window = segment.window.0.into();
            }
            prop_assert_eq!(self.peer, Some(segment.seq), "a second SYN has the same number");
            if self.side == Side::Lan {
                self.sent = 0;
            } else {
                prop_assert_eq!(segment.ack, self.isn + 1);
                self.acked = self.acked.max(1);
            }
            self.owes = true;
            return Ok(());
        }
        let Some(peer) = self.peer else { return Ok(()) };
        let acked = segment.ack.beyond(self.isn);
        prop_assert!(acked <= self.fin_at() + 1, "acknowledges what was not sent: {} of {}", acked, self.fin_at());
        if acked > self.acked {
            (self.acked, self.quiet) = (acked, 0);
            self.sent = self.sent.max(acked);
        }
        if acked == self.acked {
            self.window = u32::from(segment.window.0) << self.peer_scale.map_or(0, WindowScale::get);
        }
        let at = segment.seq.beyond(peer);
        let data = &head.bytes()[segment.payload.into()..][..segment.payload_len() as usize];
        if !data.is_empty() && at < 1 << 30 {
            prop_assert!(at + data.len() as u32 <= self.received + 30_000 + 1460, "beyond the window");
            self.early.insert(at, data.to_vec());
        }
        if flags.has(Flags::FIN) {
            let fin = at + data.len() as u32 + 1;
            prop_assert!(self.peer_fin.is_none_or(|before| before == fin), "one FIN");
            self.peer_fin = Some(fin);
        }
        self.owes = segment.seq_len() > 0;
        let mut again = true;
        while core::mem::take(&mut again) {
            for (at, data) in self.early.range(..=self.received) {
                let skip = (self.received - at) as usize;
                if let Some(fresh) = data.get(skip..).filter(|fresh| !fresh.is_empty()) {
                    self.bytes.extend_from_slice(fresh);
                    self.received += fresh.len() as u32;
                    again = true;
                    break;
                }
            }
        }
        if self.peer_fin == Some(self.received + 1) {
            self.received += 1;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Sent(Vec<(Side, Vec<u8>)>);

impl Egress for Sent {
    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut buffer = vec![0xee; 1600];
        let len = write(&mut buffer);
        buffer.truncate(len);
        self.0.push((to, buffer));
        true
    }
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    v6: bool,
    isns: (u32, u32),
    timestamps: (bool, bool),
    scales: (Option<u8>, Option<u8>),
    header: ProxyHeader,
    /// The header that a proxy in front of the box sends, if there is one.
    told: Option<ProxyHeader>,
    /// Percent of frames that are lost, repeated, late.
    trouble: (u32, u32, u32),
    /// How long the client's head, and the rest of what it sends.
    sizes: (usize, usize),
    /// Which of three names; the last has no server.
    name: usize,
    cookies: bool,
    /// Among how many workers frames arrive.
    workers: usize,
    /// How the server is reached.
    reach: Reach,
    /// On which sides the client and the server are.
    sides: (Side, Side),
    /// In which language the client says where it wants to go, if it does; whether it names its server, or gives its address; and whether it waits for each answer.
    talk: Option<(Language, bool, bool)>,
    /// At which step another process takes the first worker's place, if it is the only one.
    restart: Option<u32>,
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Lan), Just(Side::Wan)]
}

fn plan() -> impl Strategy<Value = Plan> {
    let near_wrap = || prop_oneof![2 => any::<u32>(), 1 => (0u32..20_000).prop_map(|n| n.wrapping_neg())];
    let header = prop_oneof![Just(ProxyHeader::None), Just(ProxyHeader::V1), Just(ProxyHeader::V2)];
    let trouble = prop_oneof![1 => Just((0, 0, 0)), 3 => (0u32..20, 0u32..10, 0u32..30)];
    let scale = || prop::option::of(0u8..10);
    let language = prop_oneof![Just(Language::Socks), Just(Language::Connect)];
    let talk = prop::option::weighted(0.4, (language, any::<bool>(), any::<bool>()));
    (
        (any::<u64>(), any::<bool>(), (near_wrap(), near_wrap()), any::<(bool, bool)>(), (scale(), scale())),
        (
            (header.clone(), prop::option::of(header)),
            trouble,
            (0usize..3000, 0usize..9000),
            0usize..3,
            (any::<bool>(), talk),
            prop::option::of(1u32..1500),
        ),
        // Others than the usual sides are for one worker, and servers that see the box.
        prop_oneof![
            (Just(Reach::Nat), Just((Side::Wan, Side::Lan)), 1usize..4),
            (Just(Reach::Mac), Just((Side::Wan, Side::Lan)), 1usize..4),
            (Just(Reach::Full), Just((Side::Wan, Side::Lan)), 1usize..4),
            (Just(Reach::Full), (side(), side()), Just(1)),
        ],
    )
        .prop_map(
            |(
                (seed, v6, isns, timestamps, scales),
                ((header, told), trouble, sizes, name, (cookies, talk), restart),
                (reach, sides, workers),
            )| {
                Plan {
                    seed,
                    v6,
                    isns,
                    timestamps,
                    scales,
                    header,
                    told,
                    trouble,
                    sizes,
                    name,
                    cookies,
                    workers,
                    reach,
                    sides,
                    // What is looked up dies with the process.
                    talk: talk.map(|(language, by_name, waits)| (language, by_name && restart.is_none(), waits)),
                    restart,
                }
                .sound()
            },
        )
}

impl Plan {
    /// Servers that clients name have no address of the service, and are told of no client.
    fn sound(self) -> Self {
        match self.talk {
            Some(_) if self.reach == Reach::Mac => Self { reach: Reach::Nat, header: ProxyHeader::None, ..self },
            Some(_) => Self { header: ProxyHeader::None, ..self },
            None => self,
        }
    }
}

struct World {
    plan: Plan,
    config: Config,
    chance: Chance,
    /// The first worker's engine.
    proxy: Proxy,
    /// Those of the other workers, each with what it finds owners by; and the first's.
    others: Vec<Proxy>,
    owners: Vec<Owners>,
    now: Instant,
    /// What is on its way, by when it comes: to the box from a side, or from the box to one.
    wire: BTreeMap<(u64, u32), (Side, bool, Vec<u8>)>,
    count: u32,
}

impl World {
    fn new(plan: Plan) -> Self {
        Self::with(plan, |_| ())
    }

    /// The same, with a service that is changed.
    fn with(plan: Plan, change: impl FnOnce(&mut ServiceConfig)) -> Self {
        let server = |last| ServiceServer { address: address(plan.v6, last), port: 8080, weight: 1 };
        let route = |name: &str, last| ServiceRoute {
            names: vec![name.into()],
            servers: vec![server(last)],
            ..ServiceRoute::default()
        };
        let mut config = Config {
            table_buckets: 8,
            learn_capacity: 64,
            syn_cache_max: if plan.cookies { 0 } else { 4 },
            service_buffers: 16,
            services: vec![ServiceConfig {
                protocol: Protocol::Http,
                header: plan.header,
                proxies: plan.told.map(|_| Network { address: address(plan.v6, 1), prefix: 128 }).into_iter().collect(),
                routes: vec![route("zero.example", 10), route("*.one.example", 11)],
                patience: Duration::from_secs(60),
                reach: plan.reach,
                of_lan: plan.sides.0 == Side::Lan,
                side: plan.sides.1,
                pool: if plan.seed.is_multiple_of(2) { Vec::new() } else { vec![address(plan.v6, 200)] },
                ..ServiceConfig::at(address(plan.v6, 100), PORT)
            }],
            ..Config::default()
        };
        if let Some((language, ..)) = plan.talk {
            let service = &mut config.services[0];
            service.protocol = if language == Language::Socks { Protocol::Socks } else { Protocol::Connect };
            service.routes = Vec::new();
            service.next_hop = Some(address(plan.v6, 9));
            let to = vec![
                AllowedPlace { host: AllowedHost::Names("zero.example".into()), port: Some(8080) },
                AllowedPlace {
                    host: AllowedHost::Network(Network { address: address(plan.v6, 10), prefix: 127 }),
                    port: Some(8080),
                },
            ];
            service.allow = vec![Allowance { clients: Network { address: [0; 4], prefix: 0 }, to }];
        }
        change(&mut config.services[0]);
        let now = Instant::from_secs(1000);
        let secrets = Secrets::new([7; 48]);
        let policy = Arc::new(Policy::new(&config, now));
        let worker = |number| {
            let mut proxy = Proxy::with_policy(&config, policy.clone(), &secrets, now, Memory::anonymous(&config));
            proxy.set_worker(Worker { number, of: plan.workers }, now);
            proxy
        };
        let owners = (0..plan.workers).map(|_| Owners::new(&secrets, Naming::of(&config))).collect();
        let others = (1..plan.workers).map(&worker).collect();
        let proxy = worker(0);
        Self { plan, config, chance: Chance(plan.seed), proxy, others, owners, now, wire: BTreeMap::new(), count: 0 }
    }

    /// Another process takes the place of this one, with what outlives it.
    fn restart(&mut self) {
        let config = &self.config;
        let secrets = Secrets::new([7; 48]);
        let empty = Proxy::with_memory(config, &secrets, self.now, Memory::anonymous(config));
        let (slab, gathered) = core::mem::replace(&mut self.proxy, empty).into_kept();
        let memory = Memory { slab, gathered, ..Memory::anonymous(config) };
        self.proxy = Proxy::with_memory(config, &secrets, self.now, memory);
    }

    /// The engine of a worker.
    fn worker(&mut self, number: usize) -> &mut Proxy {
        if number == 0 { &mut self.proxy } else { &mut self.others[number - 1] }
    }

    /// Lets each worker know what the others have learned.
    fn exchange_updates(&mut self) {
        for from in 0..self.plan.workers {
            let updates: Vec<_> = self.worker(from).updates().collect();
            let now = self.now;
            for to in (0..self.plan.workers).filter(|&to| to != from) {
                updates.iter().for_each(|update| self.worker(to).receive_update(update, now));
            }
        }
    }

    /// Lets time pass for every worker.
    fn on_timeouts(&mut self) {
        for number in 0..self.plan.workers {
            let (mut sent, now) = (Sent::default(), self.now);
            while self.worker(number).on_timeout(now, &mut sent) {}
            for (to, frame) in sent.0 {
                self.send(to, false, frame);
            }
        }
        self.exchange_updates();
    }

    /// Puts a frame on the way.
    fn send(&mut self, side: Side, to_box: bool, frame: Vec<u8>) {
        let (lost, repeated, late) = self.plan.trouble;
        if self.chance.happens(lost) {
            return;
        }
        for _ in 0..1 + u32::from(self.chance.happens(repeated)) {
            let later = if self.chance.happens(late) { self.chance.below(60) } else { 1 };
            self.count += 1;
            let due = self.now.as_micros() / 1000 + u64::from(later);
            self.wire.insert((due, self.count), (side, to_box, frame.clone()));
        }
    }

    /// A frame reaches the box.
    fn process(&mut self, side: Side, frame: &[u8]) {
        let mut buffer = [&[0; 64], frame, &[0; 192]].concat();
        let mut head = Head::new(&mut buffer, 64, frame.len(), frame.len());
        let arrived = if self.plan.workers > 1 { self.chance.below(self.plan.workers as u32) as usize } else { 0 };
        let (mut meta, workers) = (Metadata::default(), self.plan.workers);
        self.proxy.parse(side, &head, &mut meta);
        let owner = self.owners[arrived].owner(side, &meta, head.bytes(), self.now, |_, hash| share(hash, workers));
        let worker = owner.unwrap_or(arrived);
        let (mut sent, now) = (Sent::default(), self.now);
        let verdict = self.worker(worker).on_single(side, &mut head, now, &mut sent);
        let frame = head.bytes().to_vec();
        let to = match verdict {
            Verdict::Forward => Some(side.other()),
            Verdict::Reflect => Some(side),
            Verdict::Drop(_) => None,
            Verdict::Hold(_) => panic!("nothing of a service is held"),
        };
        for (to, frame) in sent.0 {
            self.send(to, false, frame);
        }
        if let Some(to) = to {
            self.send(to, false, frame);
        }
    }

    fn request(&self) -> Vec<u8> {
        let host = ["Zero.example", "a.one.example:80", "two.example"][self.plan.name];
        let filler = "f".repeat(self.plan.sizes.0);
        let head = format!("POST /{filler} HTTP/1.1\r\nX: {filler}\r\nHost: {host}\r\n\r\n");
        let body = (0..self.plan.sizes.1).map(|n| (n * 13 % 251) as u8);
        head.into_bytes().into_iter().chain(body).collect()
    }

    /// What the client says to the box: up to where it may wait for an answer, and the rest.
    fn talk(&self, language: Language, by_name: bool) -> (Vec<u8>, Vec<u8>) {
        let name = ["Zero.example", "a.one.example", "two.example"][self.plan.name];
        let key = FlowKey {
            lan: address(self.plan.v6, 10 + self.plan.name as u32),
            lan_port: 8080,
            v6: self.plan.v6,
            ..FlowKey::default()
        };
        let server = key.socket(Side::Lan);
        match language {
            Language::Connect if by_name => {
                (format!("CONNECT {name}:8080 HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes(), Vec::new())
            }
            Language::Connect => (format!("CONNECT {server} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes(), Vec::new()),
            Language::Socks => {
                let host = match server.ip() {
                    _ if by_name => [&[3, name.len() as u8], name.as_bytes()].concat(),
                    core::net::IpAddr::V4(address) => [&[1][..], &address.octets()].concat(),
                    core::net::IpAddr::V6(address) => [&[4][..], &address.octets()].concat(),
                };
                (vec![5, 2, 1, 0], [&[5, 1, 0], &host[..], &8080u16.to_be_bytes()].concat())
            }
        }
    }

    /// Answers what workers ask of names, as name servers would, or not at once.
    fn look_up(&mut self, waiting: &mut Vec<(usize, NameAnswer)>) {
        for number in 0..self.plan.workers {
            let questions: Vec<_> = self.worker(number).questions().collect();
            for question in questions {
                let last = ["zero.example", "a.one.example", "two.example"]
                    .iter()
                    .position(|name| name.as_bytes() == question.name.bytes());
                let last = 10 + last.expect("a name that was asked for") as u32;
                assert_eq!(question.v6, self.plan.v6);
                // Of the other version, the box's own, and what is allowed to some alone.
                let addresses = vec![address(!question.v6, 10), address(question.v6, 100), address(question.v6, last)];
                waiting.push((number, NameAnswer { question, addresses }));
            }
        }
        if self.chance.happens(20)
            && let Some((number, answer)) = waiting.pop()
        {
            let now = self.now;
            self.worker(number).resolved(&answer, now);
        }
    }

    fn run(mut self) -> Result<(), TestCaseError> {
        let plan = self.plan;
        let key = FlowKey {
            lan: address(plan.v6, 100),
            wan: address(plan.v6, 1),
            lan_port: PORT,
            wan_port: 40_000,
            v6: plan.v6,
            ..FlowKey::default()
        };
        let last = 10 + plan.name as u32;
        let server_key = match plan.reach {
            Reach::Mac => key,
            // Who its client is it learns from the first SYN.
            Reach::Full => FlowKey { lan: address(plan.v6, last), lan_port: 8080, wan_port: 0, ..key },
            Reach::Nat => FlowKey { lan: address(plan.v6, last), lan_port: 8080, ..key },
        };
        let mut client = End::new(Side::Wan, key, plan.isns.0, 77, plan.timestamps.0, plan.scales.0);
        let mut server = End::new(Side::Lan, server_key, plan.isns.1, 9_000_000, plan.timestamps.1, plan.scales.1);
        // Who the client of the proxy in front of the box is, of another version than the box's own connections.
        let told = FlowKey {
            lan: address(!plan.v6, 77),
            wan: address(!plan.v6, 66),
            lan_port: 443,
            wan_port: 4711,
            v6: !plan.v6,
            ..FlowKey::default()
        };
        let in_front = match plan.told {
            None => Vec::new(),
            // It speaks for itself.
            Some(ProxyHeader::None) => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x05extra".to_vec(),
            Some(kind) => Header::new(kind, &told).bytes().to_vec(),
        };
        let request = self.request();
        let talk = plan.talk.map(|(language, by_name, _)| self.talk(language, by_name));
        let (first, second) = talk.unwrap_or_default();
        client.out = [&in_front[..], &first, &second, &request].concat();
        let mut waiting = Vec::new();
        server.out = (0..7000).map(|n: u32| (n * 17 % 239) as u8).collect();
        let is_told = matches!(plan.told, Some(ProxyHeader::V1 | ProxyHeader::V2));
        let header = Header::new(plan.header, if is_told { &told } else { &key });
        let expected = [header.bytes(), &request].concat();
        let turned_away = plan.name == 2;
        let mut restart = plan.restart.filter(|_| plan.workers == 1 && plan.reach != Reach::Mac);
        for step in 0..60_000u32 {
            self.now = self.now + Duration::from_millis(1);
            // Of a client that has not proved itself nothing is kept here, as the filter of recent SYNs is elsewhere.
            if restart.is_some_and(|at| step >= at) && self.proxy.population().proxied > 0 {
                restart = None;
                self.restart();
            }
            let due = self.now.as_micros() / 1000;
            self.on_timeouts();
            self.look_up(&mut waiting);
            while let Some((&(at, n), _)) = self.wire.first_key_value()
                && at <= due
            {
                let (side, to_box, mut frame) = self.wire.remove(&(at, n)).expect("it is there");
                if to_box {
                    self.process(side, &frame);
                    continue;
                }
                if let Some(said) = Neighbour::parse(&frame) {
                    if side == plan.sides.1 && said.asks && said.target != said.sender {
                        let mut answer = vec![0; 100];
                        let own = (said.target, SERVER_MAC);
                        let len = Statement::Answers(said.sender, said.mac.expect("the box says where it is")).write(
                            own,
                            plan.v6,
                            &tags(0),
                            &mut answer,
                        );
                        answer.truncate(len);
                        self.send(side, true, answer);
                    }
                    continue;
                }
                if frame[..6] == CLIENT_MAC {
                    prop_assert_eq!(side, plan.sides.0);
                    client.hear(&mut frame)?;
                } else {
                    prop_assert_eq!((side, &frame[..6]), (plan.sides.1, &SERVER_MAC[..]));
                    prop_assert!(!turned_away, "nobody has that name");
                    server.hear(&mut frame)?;
                }
            }
            // What the box says itself, and where the client may wait for it.
            let mut said: Vec<u8> = Vec::new();
            if let Some((language, by_name, waits)) = plan.talk {
                if language == Language::Socks {
                    said.extend([5, 0]);
                }
                let greeted = said.len();
                let outcome = match turned_away {
                    true if by_name => language.failure(Failure::HostUnreachable),
                    true => language.failure(Failure::Forbidden),
                    false => language.success(&server.key),
                };
                said.extend(outcome.bytes());
                let request = in_front.len() + first.len();
                client.limit = match client.bytes.len() {
                    _ if !waits => usize::MAX,
                    got if got < greeted => request,
                    got if got < said.len() => request + second.len(),
                    _ => usize::MAX,
                };
            }
            let said_len = said.len();
            let all = [said, if turned_away { Vec::new() } else { server.out.clone() }].concat();
            prop_assert!(client.bytes.len() <= all.len() && client.bytes == all[..client.bytes.len()]);
            // The box waits for the acknowledgement of its FIN.
            let all = self.others.iter().chain([&self.proxy]);
            let is_forgotten = all.map(|proxy| proxy.caches.gathered.taken().0).sum::<usize>() == 0;
            if turned_away && client.is_done() && is_forgotten {
                prop_assert_eq!(client.bytes.len(), said_len);
                break;
            }
            prop_assert!(server.bytes.len() <= expected.len() && server.bytes == expected[..server.bytes.len()]);
            server.may_send = server.bytes.len() == expected.len();
            if step % 5 == 0 {
                for (side, end) in [(plan.sides.0, &mut client), (plan.sides.1, &mut server)] {
                    for frame in end.speak(&mut self.chance) {
                        self.send(side, true, frame);
                    }
                }
            }
            if client.is_reset {
                prop_assert!(turned_away, "reset at step {}", step);
                break;
            }
            prop_assert!(!server.is_reset, "the server is reset at step {}", step);
            if client.is_done() && server.is_done() {
                break;
            }
        }
        if turned_away {
            prop_assert!(client.is_reset || plan.talk.is_some() && client.is_done());
            let refused = |proxy: &Proxy| proxy.counters().happened(Event::ServiceRefused);
            let all = self.others.iter().chain([&self.proxy]).map(refused).sum::<u64>();
            prop_assert!(all > 0 || plan.restart.is_some());
        } else {
            prop_assert!(
                client.is_done(),
                "the client has {} of {}, {} acked",
                client.bytes.len(),
                server.out.len(),
                client.acked
            );
            prop_assert!(server.is_done(), "the server has {} of {}", server.bytes.len(), expected.len());
        }
        for proxy in self.others.iter().chain([&self.proxy]) {
            prop_assert_eq!(proxy.caches.gathered.taken().0, 0, "no place is lost");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 300 } else { 10_000 }))]

    #[test]
    fn each_end_of_a_service_gets_every_byte_of_the_other(plan in plan()) {
        World::new(plan).run()?;
    }
}

/// A client's frame in a world without trouble.
fn calm(v6: bool) -> (World, End) {
    let plan = Plan {
        seed: 1,
        v6,
        isns: (1000, 2000),
        timestamps: (true, true),
        scales: (Some(7), Some(7)),
        header: ProxyHeader::None,
        told: None,
        trouble: (0, 0, 0),
        sizes: (0, 0),
        name: 0,
        cookies: false,
        workers: 1,
        reach: Reach::Nat,
        sides: (Side::Wan, Side::Lan),
        talk: None,
        restart: None,
    };
    let world = World::new(plan);
    let (lan, wan) = (address(v6, 100), address(v6, 1));
    let key = FlowKey { lan, wan, lan_port: PORT, wan_port: 40_000, v6, ..FlowKey::default() };
    (world, End::new(Side::Wan, key, 1000, 77, true, Some(7)))
}

/// What the box has sent to a side since the last time.
fn heard(world: &mut World, side: Side) -> Vec<Vec<u8>> {
    let all = core::mem::take(&mut world.wire);
    let is_segment = |frame: &Vec<u8>| Neighbour::parse(frame).is_none();
    all.into_values()
        .filter(|(to, to_box, frame)| *to == side && !to_box && is_segment(frame))
        .map(|(.., frame)| frame)
        .collect()
}

fn later(world: &mut World, by: Duration) {
    world.now = world.now + by;
    world.on_timeouts();
}

#[test]
fn a_flood_of_syns_to_a_service_leaves_nothing_and_a_closed_port_refuses() {
    let (mut world, mut client) = calm(false);
    for port in 0..100 {
        client.key.wan_port = 1000 + port;
        let syn = client.frame(0, &[], Flags::SYN);
        world.process(Side::Wan, &syn);
    }
    assert_eq!(heard(&mut world, Side::Wan).len(), 100);
    assert_eq!(world.proxy.population().proxied, 0);
    assert_eq!(world.proxy.caches.gathered.taken().0, 0);
    client.key.lan_port = 81;
    let syn = client.frame(0, &[], Flags::SYN);
    world.process(Side::Wan, &syn);
    let mut answers = heard(&mut world, Side::Wan);
    client.hear(&mut answers[0]).unwrap();
    assert!(client.is_reset);
}

#[test]
fn a_syn_to_a_closed_port_of_a_service_costs_its_network_nothing() {
    let (calm, mut client) = calm(false);
    let mut world = World::new(Plan { cookies: true, ..calm.plan });
    let place = world.proxy.caches.limiter.place(&client.key);
    let left = |world: &World| world.proxy.caches.limiter.left(place).fresh;
    let full = left(&world);
    let syn = client.frame(0, &[], Flags::SYN);
    world.process(Side::Wan, &syn);
    assert_eq!(left(&world), full - 1, "one that is answered by a cookie takes a token");
    client.key.lan_port = 81;
    let syn = client.frame(0, &[], Flags::SYN);
    world.process(Side::Wan, &syn);
    assert_eq!(left(&world), full - 1);
    assert_eq!(heard(&mut world, Side::Wan).len(), 2, "it is refused");
}

#[test]
fn a_client_that_says_nothing_in_time_is_reset() {
    let (mut world, mut client) = calm(true);
    let syn = client.frame(0, &[], Flags::SYN);
    world.process(Side::Wan, &syn);
    client.hear(&mut heard(&mut world, Side::Wan)[0]).unwrap();
    assert!(client.window >= 16_000, "the window is open: {}", client.window);
    let ack = client.frame(1, &[], Flags::ACK);
    world.process(Side::Wan, &ack);
    // And one that says little, again and again, gains nothing by it.
    let little = client.frame(1, b"G", Flags::ACK);
    world.process(Side::Wan, &little);
    assert_eq!(world.proxy.population().proxied, 1);
    later(&mut world, Duration::from_secs(59));
    let more = client.frame(2, b"E", Flags::ACK);
    world.process(Side::Wan, &more);
    assert!(!client.is_reset);
    heard(&mut world, Side::Wan);
    later(&mut world, Duration::from_secs(3));
    for mut frame in heard(&mut world, Side::Wan) {
        client.hear(&mut frame).unwrap();
    }
    assert!(client.is_reset);
    // One that has not heard that is told again, for a moment.
    client.is_reset = false;
    let again = client.frame(3, b"T", Flags::ACK);
    world.process(Side::Wan, &again);
    client.hear(&mut heard(&mut world, Side::Wan)[0]).unwrap();
    assert!(client.is_reset);
    later(&mut world, Duration::from_secs(5));
    assert_eq!((world.proxy.population().proxied, world.proxy.caches.gathered.taken().0), (0, 0));
    assert_eq!(world.proxy.counters().happened(Event::ServiceTimeout), 1);
}

/// The Ethernet address of the server whose address ends so.
fn mac_of_server(last: u32) -> Mac {
    [2, 0, 0, 0, 1, last as u8]
}

/// What servers say to the box for a while: the Ethernet address of each, and whether those in `accept` accept connections. The connections that clients were
/// given meanwhile, by their server's address.
fn servers_answer(world: &mut World, accept: &[u32], seconds: u64) -> Vec<FlowKey> {
    let mut dialled = Vec::new();
    for _ in 0..10 * seconds {
        later(world, Duration::from_millis(100));
        let all = core::mem::take(&mut world.wire);
        for (side, _, mut frame) in all.into_values().filter(|(side, to_box, _)| *side == Side::Lan && !to_box) {
            if let Some(said) = Neighbour::parse(&frame) {
                if said.asks && said.target != said.sender {
                    let own = (said.target, mac_of_server(said.target[3] & 0xff));
                    let mut answer = vec![0; 100];
                    let asker = (said.sender, said.mac.expect("the box says where it is"));
                    let len = Statement::Answers(asker.0, asker.1).write(own, false, &tags(0), &mut answer);
                    world.process(side, &answer[..len]);
                }
                continue;
            }
            let len = frame.len();
            let Parsed::Tcp(segment) = Parsed::parse(Side::Wan, &Head::whole(&mut frame, len)) else { continue };
            if segment.key.wan_port >= 1024 || segment.flags != Flags::SYN {
                if segment.flags == Flags::SYN {
                    dialled.push(segment.key);
                }
                continue;
            }
            let mut server = End::new(Side::Lan, segment.key, 5000, 1, false, None);
            (server.peer, server.received) = (Some(segment.seq), 1);
            (server.own_mac, server.peer_mac) = (*frame.first_chunk().expect("a frame"), default_mac(&segment.key.wan));
            // A server with the service's own address has no other that clients are sent to.
            let asked = world.proxy.settings.policy.services.get(0).expect("a service");
            let is_at_service = world.plan.reach == Reach::Mac;
            let is_right = ((segment.key.lan, segment.key.lan_port) == (asked.address, asked.port)) == is_at_service;
            let accepts = is_right && accept.iter().any(|&last| server.own_mac == mac_of_server(last));
            let answer = server.frame(0, &[], if accepts { Flags::SYN } else { Flags::RST });
            world.process(side, &answer);
            if accepts {
                let reset = heard(world, side);
                let reset = Parsed::parse(Side::Wan, &Head::whole(&mut reset[0].clone(), reset[0].len()));
                let Parsed::Tcp(reset) = reset else { panic!("no segment") };
                assert!(reset.flags.has(Flags::RST) && reset.seq == segment.seq + 1, "the server is left");
            }
        }
    }
    dialled
}

/// Connects a client and asks.
fn request(world: &mut World, client: &mut End, port: u16) {
    request_of(world, client, port, b"GET / HTTP/1.1\r\nHost: any.example\r\n\r\n");
}

fn request_of(world: &mut World, client: &mut End, port: u16, words: &[u8]) {
    *client = End::new(Side::Wan, FlowKey { wan_port: port, ..client.key }, 1000, 77, true, Some(7));
    heard(world, Side::Wan);
    let syn = client.frame(0, &[], Flags::SYN);
    world.process(Side::Wan, &syn);
    let mut answers: Vec<_> =
        core::mem::take(&mut world.wire).into_values().filter(|(side, ..)| *side == Side::Wan).collect();
    client.hear(&mut answers.pop().expect("a SYN-ACK").2).unwrap();
    let ask = client.frame(1, words, Flags::ACK);
    world.process(Side::Wan, &ask);
}

/// The server that the box dials, once it has accepted the connection.
fn accepting_server(world: &mut World) -> End {
    for _ in 0..20 {
        later(world, Duration::from_millis(100));
        for mut frame in core::mem::take(&mut world.wire).into_values().filter(|it| it.0 == Side::Lan).map(|it| it.2) {
            if let Some(said) = Neighbour::parse(&frame) {
                if said.asks && said.target != said.sender {
                    let mut answer = vec![0; 100];
                    let mac = said.mac.expect("the box says where it is");
                    let len = Statement::Answers(said.sender, mac).write(
                        (said.target, SERVER_MAC),
                        false,
                        &tags(0),
                        &mut answer,
                    );
                    world.process(Side::Lan, &answer[..len]);
                }
                continue;
            }
            let len = frame.len();
            let Parsed::Tcp(syn) = Parsed::parse(Side::Wan, &Head::whole(&mut frame, len)) else { continue };
            if syn.flags == Flags::SYN && syn.key.wan_port >= 1024 {
                let mut server = End::new(Side::Lan, syn.key, 5000, 1, true, Some(7));
                server.hear(&mut frame).unwrap();
                let accepts = server.frame(0, &[], Flags::SYN);
                world.process(Side::Lan, &accepts);
                return server;
            }
        }
    }
    panic!("the box dials no server");
}

#[test]
fn what_the_box_repeats_acknowledges_nothing_that_a_damaged_segment_did() {
    let (mut world, mut client) = calm(false);
    let words = b"GET / HTTP/1.1\r\nHost: zero.example\r\n\r\n";
    request_of(&mut world, &mut client, 40_001, words);
    let mut server = accepting_server(&mut world);
    // It says something, but has got nothing.
    for at in [1, 101] {
        let says = server.frame(at, &[9; 100], Flags::ACK);
        world.process(Side::Lan, &says);
    }
    let before = client.received;
    client.received += 200;
    let mut damaged = client.frame(1 + words.len() as u32, &[], Flags::ACK);
    client.received = before;
    *damaged.last_mut().expect("it has bytes") ^= 4;
    world.process(Side::Wan, &damaged);
    heard(&mut world, Side::Lan);
    let mut repeated = 0;
    for _ in 0..20 {
        later(&mut world, Duration::from_millis(100));
        for mut frame in heard(&mut world, Side::Lan) {
            let len = frame.len();
            let Parsed::Tcp(segment) = Parsed::parse(Side::Wan, &Head::whole(&mut frame, len)) else { continue };
            if segment.key == server.key && segment.payload_len() > 0 {
                assert_eq!(segment.ack, SeqNum::new(5001), "the client has acknowledged nothing");
                repeated += 1;
            }
        }
    }
    assert!(repeated > 0, "the server has not acknowledged the request");
}

/// To which servers ten clients go, by the last byte of their addresses.
fn ten_clients(world: &mut World, client: &mut End, port: u16, accept: &[u32]) -> Vec<u32> {
    let mut chosen = Vec::new();
    for n in 0..10 {
        request(world, client, port + n);
        let dialled: Vec<_> = core::mem::take(&mut world.wire)
            .into_values()
            .filter_map(|(side, _, mut frame)| {
                let len = frame.len();
                match Parsed::parse(Side::Wan, &Head::whole(&mut frame, len)) {
                    Parsed::Tcp(syn) if side == Side::Lan && syn.key.wan_port >= 1024 => Some(syn.key),
                    _ => None,
                }
            })
            .collect();
        chosen.extend(dialled.iter().map(|key| key.lan[3] & 0xff));
    }
    // The connections come to nothing, so that there is room for the next.
    servers_answer(world, accept, 1);
    for n in 0..10 {
        client.key.wan_port = port + n;
        let reset = client.frame(1 + 37, &[], Flags::RST);
        world.process(Side::Wan, &reset);
    }
    chosen
}

#[test]
fn a_server_that_does_not_accept_gets_no_clients_until_it_does() {
    let (calm_world, mut client) = calm(false);
    let server = |last, weight| ServiceServer { address: address(false, last), port: 8080, weight };
    let mut world = World::with(calm_world.plan, |service| {
        service.routes = Vec::new();
        // The third is drained.
        service.default = vec![server(10, 1), server(11, 1), server(12, 0)];
        service.check = Some(HealthCheck { every: Duration::from_secs(5), rise: 2, fall: 3 });
    });
    let count = |world: &World, event| world.proxy.counters().happened(event);
    servers_answer(&mut world, &[11, 12], 9);
    assert_eq!(count(&world, Event::ServerDown), 0, "two failures are too few");
    let mut chosen = ten_clients(&mut world, &mut client, 40_000, &[11, 12]);
    chosen.sort_unstable();
    chosen.dedup();
    assert_eq!(chosen, [10, 11]);
    servers_answer(&mut world, &[11, 12], 5);
    assert_eq!(count(&world, Event::ServerDown), 1);
    assert!(ten_clients(&mut world, &mut client, 41_000, &[11, 12]).iter().all(|&last| last == 11));
    servers_answer(&mut world, &[10, 11], 10);
    assert_eq!((count(&world, Event::ServerUp), count(&world, Event::ServerDown)), (1, 1));
    let mut chosen = ten_clients(&mut world, &mut client, 42_000, &[10, 11]);
    chosen.sort_unstable();
    chosen.dedup();
    assert_eq!(chosen, [10, 11]);
    // The operator drains it.
    let drained = [10, 9].map(|last| world.proxy.drain_server(&address(false, last), 8080, true));
    assert_eq!(drained, [true, false], "nobody names the other");
    assert!(ten_clients(&mut world, &mut client, 43_000, &[10, 11]).iter().all(|&last| last == 11));
    let [service] = &world.proxy.service_status()[..] else { panic!("there is one service") };
    assert_eq!((service.counts.opened, service.counts.routed, service.counts.refused), (40, 40, 0));
    assert_eq!(service.servers.iter().map(|server| server.given).sum::<u64>(), 40);
    let known =
        |server: &crate::ServerStatus| (server.address[3] & 0xff, server.weight, server.is_drained, server.is_known);
    let known: Vec<_> = service.servers.iter().map(known).collect();
    assert_eq!(known, [(10, 1, true, true), (11, 1, false, true), (12, 0, false, true)]);
}

#[test]
fn servers_with_the_service_s_own_address_are_asked_there() {
    let (calm_world, _) = calm(false);
    let server = |last| ServiceServer { address: address(false, last), port: PORT, weight: 1 };
    let mut world = World::with(Plan { reach: Reach::Mac, ..calm_world.plan }, |service| {
        service.routes = Vec::new();
        service.default = vec![server(10), server(11), server(12)];
        service.pool = vec![address(false, 200)];
        service.check = Some(HealthCheck { every: Duration::from_secs(1), rise: 2, fall: 3 });
    });
    servers_answer(&mut world, &[10, 12], 5);
    let [service] = &world.proxy.service_status()[..] else { panic!("there is one service") };
    let up: Vec<_> = service.servers.iter().map(|server| server.is_up).collect();
    assert_eq!(up, [true, false, true]);
}

#[test]
fn what_is_for_a_service_is_explained_as_that() {
    let (calm_world, mut client) = calm(false);
    let mut world = World::with(calm_world.plan, |service| {
        service.routes = Vec::new();
        service.default = vec![ServiceServer { address: address(false, 10), port: 8080, weight: 1 }];
    });
    let mut explain = |world: &World, flags| {
        let mut frame = client.frame(0, &[], flags);
        let len = frame.len();
        let mut head = Head::whole(&mut frame, len);
        world.proxy.excerpt(Side::Wan, &head).explain(&mut head, world.now).steps.join("; ")
    };
    let steps = explain(&world, Flags::SYN);
    assert!(steps.contains("10.77.0.100:80 is a service of the box (http, nat)"), "{steps}");
    servers_answer(&mut world, &[], 1);
    request(&mut world, &mut client, 40_000);
    let mut frame = client.frame(1 + 37, b"x", Flags::ACK);
    let len = frame.len();
    let mut head = Head::whole(&mut frame, len);
    let steps = world.proxy.excerpt(Side::Wan, &head).explain(&mut head, world.now).steps.join("; ");
    assert!(steps.contains("; its server is 10.77.0.10:8080, for which it is 10.77.0.1:40000"), "{steps}");
}

#[test]
fn the_server_with_fewest_connections_gets_the_next() {
    let (calm_world, mut client) = calm(false);
    let server = |last, weight| ServiceServer { address: address(false, last), port: 8080, weight };
    let mut world = World::with(calm_world.plan, |service| {
        service.routes = Vec::new();
        service.default = vec![server(10, 1), server(11, 1)];
        service.balance = Balance::Least;
    });
    servers_answer(&mut world, &[], 1);
    for round in 0..5 {
        let mut dialled = Vec::new();
        for n in 0..4 {
            request(&mut world, &mut client, 40_000 + 10 * round + n);
            dialled.extend(servers_answer(&mut world, &[], 1).into_iter().map(|key| key.lan[3] & 0xff));
        }
        let slots =
            [0, 1].map(|server| world.proxy.caches.backends.connections(world.proxy.caches.backends.slot(server)));
        assert_eq!(slots, [2, 2], "round {round}: {dialled:?}");
        for n in 0..4 {
            client.key.wan_port = 40_000 + 10 * round + n;
            let reset = client.frame(1 + 37, &[], Flags::RST);
            world.process(Side::Wan, &reset);
        }
        heard(&mut world, Side::Lan);
        assert_eq!(world.proxy.population().proxied, 0);
        let slots =
            [0, 1].map(|server| world.proxy.caches.backends.connections(world.proxy.caches.backends.slot(server)));
        assert_eq!(slots, [0, 0]);
    }
}

#[test]
fn what_is_for_the_box_and_no_service_does_not_pass() {
    let (mut world, client) = calm(false);
    let mut udp = vec![0; 60];
    udp[..6].copy_from_slice(&default_mac(&client.key.lan));
    udp[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17]);
    let mut head = Head::whole(&mut udp, 60);
    let verdict = world.proxy.on_single(Side::Wan, &mut head, world.now, &mut Sent::default());
    assert_eq!(verdict, Verdict::Drop(DropReason::NotServed));
    // A SYN of the LAN for it is refused, whose services are for the WAN.
    let key =
        FlowKey { lan: address(false, 10), wan: address(false, 100), lan_port: 5000, wan_port: PORT, ..client.key };
    let mut local = End::new(Side::Lan, key, 1, 1, false, None);
    local.peer_mac = default_mac(&address(false, 100));
    let syn = local.frame(0, &[], Flags::SYN);
    world.process(Side::Lan, &syn);
    let answers = heard(&mut world, Side::Lan);
    assert_eq!(answers.len(), 1);
    assert_eq!(world.proxy.population().passthrough, 0);
}

#[test]
fn a_connection_whose_first_bytes_died_with_the_process_is_reset() {
    let (mut world, mut client) = calm(false);
    let syn = client.frame(0, &[], Flags::SYN);
    world.process(Side::Wan, &syn);
    client.hear(&mut heard(&mut world, Side::Wan)[0]).unwrap();
    let some = client.frame(1, b"GET / HT", Flags::ACK);
    world.process(Side::Wan, &some);
    let id = world.proxy.table.find(&client.key, client.key.hash(world.proxy.settings.hash_keys)).unwrap();
    assert_eq!(world.proxy.table[id].state(), State::Gathering);
    heard(&mut world, Side::Wan);
    let World { plan, now, .. } = world;
    let mut next = World::new(plan);
    let config =
        Config { table_buckets: 8, learn_capacity: 64, syn_cache_max: 4, service_buffers: 4, ..Config::default() };
    let memory = Memory { slab: world.proxy.into_slab(), ..Memory::anonymous(&config) };
    next.proxy = Proxy::with_memory(&config, &Secrets::new([7; 48]), now, memory);
    later(&mut next, Duration::from_millis(10));
    for mut frame in heard(&mut next, Side::Wan) {
        client.hear(&mut frame).unwrap();
    }
    assert!(client.is_reset);
    later(&mut next, Duration::from_secs(5));
    assert_eq!(next.proxy.population().proxied, 0);
}

proptest! {
    /// Segments with any flags and numbers near the right ones, of clients and servers that hold to nothing: each is survived, and all is forgotten in the end.
    #[test]
    fn any_segments_of_a_service_are_survived_and_forgotten(
        steps in prop::collection::vec((0u16..6, any::<bool>(), 0u16..64, 0u32..4, -3i64..4000, 0usize..1400, 0u64..3000), 1..120),
        header in prop_oneof![Just(ProxyHeader::None), Just(ProxyHeader::V2)],
    ) {
        let (calm_world, _) = calm(false);
        let mut world = World::new(Plan { header, cookies: false, ..calm_world.plan });
        later(&mut world, Duration::from_millis(1));
        let mut answer = vec![0; 100];
        let own = (address(false, 10), SERVER_MAC);
        let len = Statement::Answers(address(false, 100), default_mac(&address(false, 100))).write(own, false, &tags(0), &mut answer);
        world.process(Side::Lan, &answer[..len]);
        let request = b"GET / HTTP/1.1\r\nHost: zero.example\r\n\r\n";
        let service = FlowKey { lan: address(false, 100), wan: address(false, 1), lan_port: PORT, ..FlowKey::default() };
        // What each connection's SYN-ACKs to either side said, so that some of it fits.
        let mut known: BTreeMap<(u16, u8), SeqNum> = BTreeMap::new();
        for (port, from_server, flags, kind, at, len, wait) in steps {
            let wan_port = 40_000 + port;
            let (side, key) = match from_server {
                true => (Side::Lan, FlowKey { lan: address(false, 10), lan_port: 8080, wan_port, ..service }),
                false => (Side::Wan, FlowKey { wan_port, ..service }),
            };
            let mut end = End::new(side, key, 1000, 77, true, Some(3));
            end.peer = known.get(&(wan_port, side as u8)).copied();
            end.received = 1;
            let (flags, at, data) = match kind {
                0 => (Flags::SYN, 0, Vec::new()),
                1 if !from_server => (Flags::ACK, 1, request.to_vec()),
                _ => (Flags(flags), at as u32, vec![b'x'; len]),
            };
            let frame = end.frame(at, &data, flags);
            world.process(side, &frame);
            for (to, to_box, mut frame) in core::mem::take(&mut world.wire).into_values() {
                let whole = frame.len();
                if let Parsed::Tcp(segment) = Parsed::parse(to.other(), &Head::whole(&mut frame, whole)) {
                    prop_assert!(!to_box && segment.checksums_hold(&Head::whole(&mut frame, whole)));
                    if segment.flags.has(Flags::SYN) {
                        known.insert((segment.key.wan_port, to as u8), segment.seq);
                    }
                }
            }
            later(&mut world, Duration::from_millis(wait));
        }
        // A timer may have another behind it.
        for _ in 0..20 {
            later(&mut world, Duration::from_secs(100_000));
        }
        prop_assert_eq!(world.proxy.caches.gathered.taken().0, 0);
        let left = world.proxy.population();
        prop_assert_eq!(left.proxied + left.syn_cached, 0, "{:?}", left);
    }
}
