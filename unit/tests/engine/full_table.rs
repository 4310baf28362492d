//! A full flow table: one who fills it with connections that carry little keeps nobody out, and loses those connections before anybody else does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tcpstate::config::RateLimit;
use tcpstate::{Config, DropReason, Event, Side};
use unit::script::*;

/// Buckets of the table; eight times as many flows.
const BUCKETS: usize = 32;
const FLOWS: usize = 8 * BUCKETS;

/// A table of [`FLOWS`], and no limit on SYNs.
fn small(mode: Mode) -> World {
    sized(mode, BUCKETS)
}

/// A table of so many buckets, and no limit on SYNs.
fn sized(mode: Mode, table_buckets: usize) -> World {
    let rate = RateLimit { burst: 1 << 20, add: 1 << 20, size: 1024, ..RateLimit::default() };
    World::new(mode, &Config { table_buckets, rate, ..mode.config() })
}

/// The clients of one owner, by how large the network is that it owns.
#[derive(Clone, Copy, Debug)]
enum Owner {
    /// One address, or a /64.
    Address,
    /// A /24, or a /56.
    Site,
    /// A /16, or a /32.
    Provider,
    /// Somebody else, by number: each in a network of its own, of any size.
    Other(u16),
}

impl Owner {
    /// Its `n`th client.
    fn client(self, family: Family, n: u32) -> IpAddr {
        let [a, b] = (n as u16).wrapping_mul(253).to_be_bytes();
        match (family, self) {
            (Family::V4, Owner::Address) => Ipv4Addr::new(20, 1, 1, 1).into(),
            (Family::V4, Owner::Site) => Ipv4Addr::new(20, 1, 1, b).into(),
            (Family::V4, Owner::Provider) => Ipv4Addr::new(20, 1, b, a).into(),
            (Family::V4, Owner::Other(m)) => {
                let [high, low] = m.wrapping_mul(40_503).to_be_bytes();
                Ipv4Addr::new(30 + (high & 63), low, high, 7).into()
            }
            (Family::V6, Owner::Address) => Ipv6Addr::new(0x2600, 1, 1, 1, 0, 0, 0, n as u16).into(),
            (Family::V6, Owner::Site) => Ipv6Addr::new(0x2600, 1, 1, 0x100 | u16::from(b), 0, 0, 0, 1).into(),
            (Family::V6, Owner::Provider) => Ipv6Addr::new(0x2600, 1, n as u16, 1, 0, 0, 0, 1).into(),
            (Family::V6, Owner::Other(m)) => Ipv6Addr::new(0x2a00, m.wrapping_mul(40_503), 1, 1, 0, 0, 0, 1).into(),
        }
    }
}

/// A connection that is established at both ends, by what each has sent.
struct Connection {
    client: Host,
    server: Host,
    /// The next number of the client, and of the server as the client and as the server count.
    seq: u32,
    outer: u32,
    inner: u32,
}

/// What came out for one connection on one side.
fn told(world: &World, out: &[(Side, Vec<u8>)], to: &Host) -> Vec<Got> {
    let ends = to.ends();
    let all = out.iter().filter(|(side, _)| *side == to.side()).map(|(_, frame)| read(frame, world.now()).unwrap());
    all.filter(|got| (got.dst, got.ports) == (ends.src, (ends.dport, ends.sport))).collect()
}

/// Without timestamps the box's numbers are the only thing to translate.
const TERMS: Terms = Terms::windows(1400);

impl Connection {
    /// Opens a connection from `client`, by a proof without data: `None` if the client is reset at once.
    #[track_caller]
    fn open(world: &World, client: IpAddr, port: u16) -> Option<Self> {
        Self::open_to(world, client, port, 10)
    }

    #[track_caller]
    fn open_to(world: &World, client: IpAddr, port: u16, server: u8) -> Option<Self> {
        let (one, other) = world.pair_to(1, 1, port, server);
        let (mut there, mut back) = (one.ends(), other.ends());
        (there.src, back.dst) = (client, client);
        let (client, server) = (world.host(Side::Wan, there), world.host(Side::Lan, back));
        world.discard();
        client.sends(TERMS.on(syn(CLIENT_ISN), (0, 0)));
        let answers = told(world, &world.discard(), &client);
        let [offered] = &answers[..] else { panic!("one SYN-ACK, not {answers:?}") };
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1));
        let out = world.discard();
        if told(world, &out, &server).is_empty() {
            let answers = told(world, &out, &client);
            let [reset] = &answers[..] else { world.fail(&format!("a reset, not {answers:?}")) };
            assert_eq!((reset.flags, reset.seq), (RST, offered.seq + 1));
            return None;
        }
        server.sends(TERMS.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (0, 0)));
        world.discard();
        Some(Self { client, server, seq: CLIENT_ISN + 1, outer: offered.seq + 1, inner: SERVER_ISN + 1 })
    }

    /// The client sends so many bytes, and the server acknowledges them: whether both pass.
    fn asks(&mut self, world: &World, bytes: usize) -> bool {
        let asked = world.inject(Side::Wan, &self.client.frame(&data(self.seq, self.outer, bytes)));
        self.seq = self.seq.wrapping_add(bytes as u32);
        let acked = world.inject(Side::Lan, &self.server.frame(&ack(self.inner, self.seq)));
        world.discard();
        (asked, acked) == (tcpstate::Verdict::Forward, tcpstate::Verdict::Forward)
    }

    /// The server sends so many bytes, of which the client acknowledges `taken`, and grants this window: whether both pass.
    fn serves(&mut self, world: &World, bytes: usize, taken: u32, window: u16) -> bool {
        let sent = world.inject(Side::Lan, &self.server.frame(&data(self.inner, self.seq, bytes)));
        self.inner = self.inner.wrapping_add(taken);
        self.outer = self.outer.wrapping_add(taken);
        let acked = self.says(world, window);
        (sent, acked) == (tcpstate::Verdict::Forward, true)
    }

    /// The client acknowledges what it has taken so far: whether that passes.
    fn says(&self, world: &World, window: u16) -> bool {
        let acked = world.inject(Side::Wan, &self.client.frame(&ack(self.seq, self.outer).window(window)));
        world.discard();
        acked == tcpstate::Verdict::Forward
    }

    /// A request and its answer pass.
    fn works(&mut self, world: &World) -> bool {
        self.asks(world, 100) && self.serves(world, 300, 300, 8000)
    }
}

/// Attackers who fill the table, one after each pause, each of which does what `each` does with its connection.
fn fill(
    world: &World,
    owner: Owner,
    ports: core::ops::Range<u16>,
    pause: Duration,
    each: impl Fn(&World, &mut Connection),
) -> Vec<Connection> {
    let mut held = Vec::new();
    for (n, port) in ports.enumerate() {
        let client = owner.client(world.mode().family, n as u32);
        if let Some(mut connection) = Connection::open(world, client, port) {
            each(world, &mut connection);
            held.push(connection);
        }
        world.tick(pause);
    }
    world.discard();
    held
}

const OWNERS: [Owner; 3] = [Owner::Address, Owner::Site, Owner::Provider];
const MODES: [Mode; 4] = [Mode::V4, Mode::V6, Mode::V4.cached(), Mode::V6.cached()];

/// How many attack, and for how long honest clients come meanwhile.
struct Trial {
    buckets: usize,
    attackers: u16,
    pause: Duration,
    seconds: u16,
}

const FEW: Trial =
    Trial { buckets: BUCKETS, attackers: 2 * FLOWS as u16, pause: Duration::from_millis(5), seconds: 40 };

/// The table has 8192 places, and is full after four seconds.
const MANY: Trial = Trial { buckets: 1024, attackers: 10_000, pause: Duration::from_micros(500), seconds: 10 };

/// Whatever attackers do with connections that fill the table, for as long as they do it and open ever more of them: every honest client gets in at once,
/// is served, and stays.
fn honest_are_served(attackers: impl Fn(&World, &mut Connection), ended: &[Event]) {
    for mode in MODES {
        for owner in OWNERS {
            honest_are_served_in(&FEW, mode, owner, &attackers, ended);
        }
    }
}

fn honest_are_served_in(
    trial: &Trial,
    mode: Mode,
    owner: Owner,
    attackers: impl Fn(&World, &mut Connection),
    ended: &[Event],
) {
    let world = sized(mode, trial.buckets);
    let family = mode.family;
    // Some were there before: of these one works and the other rests.
    let mut before: Vec<_> = (0..20)
        .map(|n| Connection::open(&world, Owner::Other(n).client(family, 0), 900 + n).expect("there is room"))
        .collect();
    assert!(before.iter_mut().all(|one| one.works(&world)));
    world.tick(Duration::from_secs(6));
    let mut held = fill(&world, owner, 1000..1000 + trial.attackers, trial.pause, &attackers);
    let mut honest: Vec<Connection> = Vec::new();
    let mut next = 12_000;
    for second in 0..trial.seconds {
        // The attackers go on, with what they have and with new ones.
        held.iter_mut().for_each(|one| attackers(&world, one));
        for _ in 0..20 {
            next += 1;
            let client = owner.client(family, u32::from(next));
            held.extend(Connection::open(&world, client, next));
        }
        for n in 0..2 {
            let client = Owner::Other(100 + 2 * second + n).client(family, 0);
            let Some(connection) = Connection::open(&world, client, 20_000 + 2 * second + n) else {
                world.fail(&format!("{mode}, {owner:?}: a client has found no place in second {second}"));
            };
            honest.push(connection);
        }
        for (n, one) in honest.iter_mut().enumerate() {
            assert!(one.works(&world), "{mode}, {owner:?}, second {second}: client {n} is not served");
        }
        for one in before.iter_mut().step_by(2) {
            assert!(one.asks(&world, 20), "{mode}, {owner:?}: a connection that works is cut");
        }
        world.tick(Duration::from_secs(1));
        world.discard();
    }
    let cut: Vec<_> = (0..before.len()).filter(|&n| !before[n].works(&world)).collect();
    assert!(cut.is_empty(), "{mode}, {owner:?}: of those that rested {cut:?} are cut");
    for event in ended {
        assert!(world.happened(*event) > 0, "{mode}, {owner:?}: {event:?}");
    }
}

#[test]
fn who_fills_the_table_with_a_byte_each_keeps_nobody_out() {
    // They send it once, and are silent from then on.
    let attack = |world: &World, one: &mut Connection| {
        if one.seq == CLIENT_ISN + 1 {
            one.asks(world, 1);
        }
    };
    honest_are_served(attack, &[Event::EvictedIdle]);
}

#[test]
fn who_fills_the_table_with_silent_connections_keeps_nobody_out() {
    honest_are_served(|_, _| (), &[Event::EvictedSilent]);
}

/// Takes as much as a receive buffer holds, so that little is not all it has carried, and shuts its window.
fn hold_window_shut(world: &World, one: &mut Connection) {
    if one.seq == CLIENT_ISN + 1 {
        one.asks(world, 80);
        (0..40).for_each(|_| assert!(one.serves(world, 1400, 1400, 8000)));
        one.serves(world, 500, 500, 0);
    }
    // The server's probes, which count one below what it has sent, are answered.
    let _ = world.inject(Side::Lan, &one.server.frame(&ack(one.inner.wrapping_sub(1), one.seq)));
    one.says(world, 0);
}

#[test]
fn holders_of_a_shut_window_keep_nobody_out() {
    honest_are_served(hold_window_shut, &[Event::EvictedStalled]);
}

/// Asks for an answer, and takes a byte of it each time.
fn read_a_byte(world: &World, one: &mut Connection) {
    if one.seq == CLIENT_ISN + 1 {
        one.asks(world, 80);
    }
    one.serves(world, 600, 1, 500);
}

#[test]
fn readers_of_a_byte_a_second_keep_nobody_out() {
    honest_are_served(read_a_byte, &[Event::EvictedSlow]);
}

#[test]
fn ten_thousand_holders_of_a_shut_window_keep_nobody_out() {
    honest_are_served_in(&MANY, Mode::V4.cached(), Owner::Provider, hold_window_shut, &[Event::EvictedStalled]);
    honest_are_served_in(&MANY, Mode::V6, Owner::Address, hold_window_shut, &[Event::EvictedStalled]);
}

#[test]
fn ten_thousand_readers_of_a_byte_a_second_keep_nobody_out() {
    honest_are_served_in(&MANY, Mode::V4.cached(), Owner::Provider, read_a_byte, &[Event::EvictedSlow]);
    honest_are_served_in(&MANY, Mode::V6, Owner::Address, read_a_byte, &[Event::EvictedSlow]);
}

#[test]
fn who_sends_keepalives_keeps_nobody_out() {
    let attack = |world: &World, one: &mut Connection| {
        if one.seq == CLIENT_ISN + 1 {
            one.asks(world, 1);
        }
        let _ = world.inject(Side::Wan, &one.client.frame(&ack(one.seq - 1, one.outer)));
        world.discard();
    };
    honest_are_served(attack, &[Event::EvictedIdle]);
}

#[test]
fn who_finishes_and_never_closes_keeps_nobody_out() {
    // The server does not close: 7440 seconds by default.
    let attack = |world: &World, one: &mut Connection| {
        if one.seq == CLIENT_ISN + 1 {
            one.asks(world, 1);
            let _ = world.inject(Side::Wan, &one.client.frame(&fin(one.seq, one.outer)));
            let _ = world.inject(Side::Lan, &one.server.frame(&ack(one.inner, one.seq + 1)));
            one.seq += 1;
            world.discard();
        }
    };
    honest_are_served(attack, &[Event::EvictedIdle]);
}

#[test]
fn a_table_that_is_filled_within_a_second_keeps_nobody_out() {
    // All are younger than a client is given time to speak.
    for mode in MODES {
        for owner in OWNERS {
            let world = small(mode);
            for n in 0..4 * FLOWS as u16 {
                let _ = Connection::open(&world, owner.client(mode.family, n.into()), 1000 + n);
                world.tick(Duration::from_micros(500));
                if n % 64 == 63 {
                    let mut one = Connection::open(&world, Owner::Other(n).client(mode.family, 0), 20_000 + n)
                        .unwrap_or_else(|| panic!("{mode}, {owner:?}: no place behind {n} attackers"));
                    assert!(one.works(&world));
                }
            }
        }
    }
}

#[test]
fn dead_servers_keep_nobody_out_of_others() {
    for mode in MODES {
        let world = small(mode);
        let prove = |n: u16| {
            let (one, _) = world.pair_to(1, 1, 1000 + n, 99);
            let mut ends = one.ends();
            ends.src = Owner::Provider.client(mode.family, n.into());
            let client = world.host(Side::Wan, ends);
            world.discard();
            client.sends(TERMS.on(syn(CLIENT_ISN), (0, 0)));
            let answers = told(&world, &world.discard(), &client);
            client.sends(ack(CLIENT_ISN + 1, answers[0].seq + 1));
            world.discard();
        };
        (0..2 * FLOWS as u16).for_each(prove);
        for n in 0..50 {
            (0..20).for_each(|k| prove(2000 + 20 * n + k));
            let client = Owner::Other(n).client(mode.family, 0);
            let mut one = Connection::open(&world, client, 20_000 + n).expect("a place");
            assert!(one.works(&world));
            world.tick(Duration::from_millis(200));
            world.discard();
        }
    }
}

#[test]
fn a_table_full_of_connections_that_move_data_gives_up_none_and_resets_who_comes() {
    for mode in MODES {
        let world = small(mode);
        let mut all: Vec<_> = (0..FLOWS as u16)
            .map(|n| Connection::open(&world, Owner::Other(n).client(mode.family, 0), 1000 + n).expect("there is room"))
            .collect();
        for second in 0..20 {
            for one in &mut all {
                // Twelve bytes a second are as little as somebody types.
                assert!(one.asks(&world, 6) && one.serves(&world, 6, 6, 8000), "second {second}");
            }
            for n in 0..20 {
                let client = Owner::Other(2000 + n).client(mode.family, 0);
                assert!(Connection::open(&world, client, 20_000 + 20 * second + n).is_none(), "second {second}");
            }
            world.tick(Duration::from_secs(1));
            world.discard();
        }
        assert_eq!(world.happened(Event::TurnedAway), 400);
        assert_eq!(world.dropped(DropReason::TableFull), 0);
        // When they have stopped for a while, those that come get places.
        world.tick(Duration::from_secs(5));
        world.discard();
        let mut one = Connection::open(&world, Owner::Other(3000).client(mode.family, 0), 30_000).expect("a place");
        assert!(one.works(&world));
    }
}

#[test]
fn a_shared_address_of_busy_clients_is_not_the_first_to_lose() {
    for mode in MODES {
        let world = small(mode);
        let family = mode.family;
        // Half of the table is one carrier's: each connection has carried some, and rests for a while now and then.
        let mut busy: Vec<_> = (0..FLOWS as u16 / 2)
            .map(|n| Connection::open(&world, Owner::Other(7).client(family, 0), 1000 + n).expect("there is room"))
            .collect();
        for one in &mut busy {
            assert!((0..100).all(|_| one.serves(&world, 1000, 1000, 8000)));
        }
        let mut held = fill(&world, Owner::Site, 10_000..10_000 + FLOWS as u16, FEW.pause, |world, one| {
            one.asks(world, 1);
        });
        for n in 0..90 {
            world.tick(Duration::from_millis(300));
            world.discard();
            let client = Owner::Other(100 + n).client(family, 0);
            let mut one = Connection::open(&world, client, 20_000 + n).expect("a place");
            assert!(one.works(&world));
        }
        assert!(busy.iter_mut().all(|one| one.works(&world)), "{mode}");
        assert!(held.iter_mut().map(|one| one.asks(&world, 1)).filter(|passes| !passes).count() > 20);
    }
}

#[test]
fn what_proves_nothing_takes_no_place_of_who_proved_itself() {
    for mode in MODES {
        let rate = RateLimit { burst: 1 << 20, add: 1 << 20, size: 1024, ..RateLimit::default() };
        let config = Config { table_buckets: BUCKETS, rate, passed_rate: 1 << 20, ..mode.config() };
        let world = World::new(mode, &config);
        let mut all: Vec<_> = (0..FLOWS as u16)
            .map(|n| Connection::open(&world, Owner::Other(n).client(mode.family, 0), 1000 + n).expect("there is room"))
            .collect();
        assert!(all.iter_mut().all(|one| one.works(&world)));
        world.tick(Duration::from_secs(100));
        world.discard();
        // Signed SYNs, which pass unanswered.
        let signed = [19, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        for n in 0..1000 {
            let (client, _) = world.pair(1000 + n, 1, 20_000 + n);
            client.sends_in_vain(syn(CLIENT_ISN).raw(&signed), DropReason::TableFull);
        }
        // The LAN's hosts are no attackers.
        let (client, server) = world.pair(3, 3, 3000);
        server.sends(syn(100).mss(1400));
        let out = world.discard();
        assert_eq!(told(&world, &out, &client).len(), 1);
        assert_eq!(world.happened(Event::EvictedIdle), 1);
        let cut = all.iter_mut().map(|one| one.works(&world)).filter(|passes| !passes).count();
        assert_eq!(cut, 1);
        // But while everybody moves data it finds no place either.
        let (_, server) = world.pair(3, 3, 3001);
        server.sends_in_vain(syn(100).mss(1400), DropReason::TableFull);
    }
}

/// A signed SYN (RFC 2385), which passes unanswered.
fn signed_syn() -> Seg {
    syn(CLIENT_ISN).raw(&[19, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
}

/// Whether a SYN from `client` reaches the server.
fn passes(world: &World, client: IpAddr, port: u16, seg: &Seg) -> bool {
    let (one, other) = world.pair(1, 1, port);
    let (mut there, mut back) = (one.ends(), other.ends());
    (there.src, back.dst) = (client, client);
    let (client, server) = (world.host(Side::Wan, there), world.host(Side::Lan, back));
    world.discard();
    client.sends(seg.clone());
    !told(world, &world.discard(), &server).is_empty()
}

/// A table of so many buckets, without a limit on SYNs, answered or passed.
fn unlimited(mode: Mode, buckets: usize) -> World {
    let rate = RateLimit { burst: 1 << 20, add: 1 << 20, size: 1024, ..RateLimit::default() };
    let config = Config {
        table_buckets: buckets,
        syn_cache_max: if mode.cache { buckets } else { 0 },
        rate,
        passed_rate: 1 << 20,
        ..mode.config()
    };
    World::new(mode, &config)
}

/// Attackers who open connections for six seconds, and move data on each. `also` happens beside every one.
fn fill_with_data(world: &World, owner: Owner, also: impl Fn(u16)) -> Vec<Connection> {
    let mut held: Vec<Connection> = Vec::new();
    for n in 0..600 {
        also(n as u16);
        held.extend(Connection::open(world, owner.client(world.mode().family, n), 1000 + n as u16));
        if n % 50 == 49 {
            held.iter_mut().for_each(|one| assert!(one.asks(world, 20), "what moves data is cut"));
        }
        world.tick(Duration::from_millis(10));
        world.discard();
    }
    held
}

#[test]
fn what_the_syn_cache_held_is_not_for_who_holds_much() {
    for mode in [Mode::V4.cached(), Mode::V6.cached()] {
        for owner in OWNERS {
            let world = unlimited(mode, BUCKETS);
            // Forged SYNs fill the cache again and again.
            let forged = |n: u16| assert!(!passes(&world, Owner::Other(n).client(mode.family, 0), 50_000, &syn(1)));
            let mut held = fill_with_data(&world, owner, forged);
            for n in 0..20 {
                let client = Owner::Other(1000 + n).client(mode.family, 0);
                let Some(mut one) = Connection::open(&world, client, 20_000 + n) else {
                    world.fail(&format!("{mode}, {owner:?}: client {n} has found no place"));
                };
                assert!(one.works(&world));
            }
            assert!(held.iter_mut().all(|one| one.asks(&world, 20)), "what moves data is cut");
        }
    }
}

#[test]
fn what_proves_nothing_gets_a_sixteenth_of_a_table_that_somebody_holds() {
    for mode in MODES {
        for owner in OWNERS {
            let world = unlimited(mode, BUCKETS);
            let held = fill_with_data(&world, owner, |_| ());
            assert!(held.len() <= FLOWS - FLOWS / 8 && held.len() > FLOWS / 2, "{mode}, {owner:?}: {}", held.len());
            for n in 0..200 {
                let client = Owner::Other(n).client(mode.family, 0);
                assert!(passes(&world, client, 20_000 + n, &signed_syn()), "{mode}, {owner:?}: signed SYN {n}");
            }
            // Who holds the table gets none of that, and who proves itself gets what is left.
            let attacker = owner.client(mode.family, 1);
            assert!(!passes(&world, attacker, 30_000, &signed_syn()), "{mode}, {owner:?}");
            for n in 0..FLOWS as u16 / 16 {
                let client = Owner::Other(1000 + n).client(mode.family, 0);
                assert!(Connection::open(&world, client, 40_000 + n).is_some(), "{mode}, {owner:?}: client {n}");
            }
        }
    }
}

#[test]
fn forged_openings_do_not_count_against_the_network_in_whose_name_they_are() {
    for mode in MODES {
        let world = unlimited(mode, 4 * BUCKETS);
        let flows = 32 * BUCKETS as u16;
        let victim = Owner::Other(7).client(mode.family, 0);
        for n in 0..flows - flows / 8 {
            if n % 4 == 0 {
                passes(&world, victim, 1000 + n, &signed_syn());
            }
            let client = Owner::Other(100 + n).client(mode.family, 0);
            let mut one = Connection::open(&world, client, 10_000 + n).expect("there is room");
            assert!(one.asks(&world, 20));
            world.tick(Duration::from_millis(1));
        }
        for n in 0..flows / 20 {
            let opened = Connection::open(&world, victim, 40_000 + n);
            assert!(opened.is_some_and(|mut one| one.works(&world)), "{mode}: client {n} has found no place");
        }
    }
}

#[test]
fn who_comes_with_many_gets_the_places_of_what_is_over() {
    // One address that all clients share, of which a part is at work.
    for mode in MODES {
        let world = small(mode);
        let open = |owner: Owner, port| Connection::open(&world, owner.client(mode.family, 0), port);
        let mut busy: Vec<_> = (0..FLOWS as u16 / 4).map(|n| open(Owner::Address, 1000 + n).expect("room")).collect();
        for n in 0..FLOWS as u16 {
            let one = open(Owner::Other(n), 10_000 + n).expect("what is over gives way");
            let _ = world.inject(Side::Wan, &one.client.frame(&fin(one.seq, one.outer)));
            let _ = world.inject(Side::Lan, &one.server.frame(&fin(one.inner, one.seq + 1)));
            let _ = world.inject(Side::Wan, &one.client.frame(&ack(one.seq + 1, one.outer + 1)));
            world.discard();
        }
        for n in 0..FLOWS as u16 / 2 {
            let one = open(Owner::Address, 20_000 + n);
            busy.push(one.unwrap_or_else(|| panic!("{mode}: no place for client {n}, and most flows are over")));
        }
        assert!(busy.iter_mut().all(|one| one.works(&world)));
        assert_eq!(world.happened(Event::TurnedAway), 0);
        // Beyond seven eighths they are for others.
        let more = (0..FLOWS as u16).filter(|&n| open(Owner::Address, 30_000 + n).is_some()).count();
        assert!(more < FLOWS / 4, "{mode}: {more}");
        assert!(open(Owner::Other(2000), 50_000).is_some());
    }
}

#[test]
fn who_holds_much_loses_what_rests_before_anybody_is_turned_away() {
    for mode in MODES {
        for owner in OWNERS {
            let world = small(mode);
            let family = mode.family;
            let open = |owner: Owner, n: u16| Connection::open(&world, owner.client(family, n.into()), 10_000 + n);
            // The last eighth is in use, and the rest is held by connections that are no second old.
            let mut honest: Vec<_> = (0..FLOWS as u16 / 8).map(|n| open(Owner::Other(n), n).expect("room")).collect();
            let mut held: Vec<_> = (1000..1000 + 3 * FLOWS as u16).filter_map(|n| open(owner, n)).collect();
            while let Some(one) = open(Owner::Other(100 + honest.len() as u16), 100 + honest.len() as u16) {
                honest.push(one);
            }
            let moves = |all: &mut Vec<Connection>| assert!(all.iter_mut().all(|one| one.asks(&world, 20)), "cut");
            moves(&mut honest);
            moves(&mut held);
            for n in 0..4 {
                world.tick(Duration::from_millis(400));
                world.discard();
                moves(&mut honest);
                // Of those that move data none gives way.
                moves(&mut held);
                assert!(open(Owner::Other(500), 500 + n).is_none(), "{mode}, {owner:?}");
            }
            world.tick(Duration::from_millis(1100));
            world.discard();
            moves(&mut honest);
            for n in 0..40 {
                let Some(one) = open(Owner::Other(600 + n), 600 + n) else {
                    world.fail(&format!("{mode}, {owner:?}: client {n} has found no place"));
                };
                honest.push(one);
            }
            assert!(open(owner, 5000).is_none(), "it gets none of its own that only rest");
            moves(&mut honest);
        }
    }
}

#[test]
fn who_holds_most_of_one_server_loses_before_those_of_another() {
    for mode in MODES {
        let world = small(mode);
        let family = mode.family;
        // Everybody comes from a network of their own, and rests.
        let mut others: Vec<_> = (0..FLOWS as u16 / 4)
            .map(|n| {
                let client = Owner::Other(n).client(family, 0);
                Connection::open_to(&world, client, 1000 + n, 11 + n as u8).expect("there is room")
            })
            .collect();
        assert!(others.iter_mut().all(|one| one.works(&world)));
        for n in 0..4 * FLOWS as u16 {
            let client = Owner::Other(1000 + n).client(family, 0);
            if let Some(mut one) = Connection::open(&world, client, 10_000 + n) {
                one.asks(&world, 1);
            }
            world.tick(Duration::from_millis(40));
            world.discard();
        }
        let cut = others.iter_mut().map(|one| one.asks(&world, 20)).filter(|passes| !passes).count();
        assert!(cut <= 2, "{mode}: {cut} of {}", others.len());
    }
}

#[test]
fn both_ends_are_reset_with_the_number_they_expect() {
    for mode in MODES {
        let world = small(mode);
        let mut held = fill(&world, Owner::Site, 1000..1000 + FLOWS as u16, FEW.pause, |world, one| {
            one.asks(world, 80);
            one.serves(world, 500, 500, 0);
            // A probe with a byte, which the client does not take.
            let _ = world.inject(Side::Lan, &one.server.frame(&data(one.inner, one.seq, 1)));
            one.says(world, 0);
        });
        world.tick(Duration::from_secs(10));
        world.discard();
        // The last places are for others.
        let mut n = 0;
        let out = loop {
            n += 1;
            let (client, server) = world.pair(2 + n, 1, 30_000 + n);
            client.sends(TERMS.on(syn(CLIENT_ISN), (0, 0)));
            let offered = told(&world, &world.discard(), &client);
            client.sends(ack(CLIENT_ISN + 1, offered[0].seq + 1));
            let out = world.discard();
            assert_eq!(told(&world, &out, &server).len(), 1);
            if world.happened(Event::EvictedStalled) > 0 {
                break out;
            }
        };
        assert_eq!(usize::from(n), 1 + FLOWS / 8);
        let cut: Vec<_> = held.iter_mut().filter(|one| !told(&world, &out, &one.client).is_empty()).collect();
        let [cut] = &cut[..] else { panic!("{mode}: one gives way, not {}", cut.len()) };
        let resets = [&cut.client, &cut.server].map(|end| told(&world, &out, end));
        let numbers = resets.each_ref().map(|got| got.iter().map(|got| (got.flags, got.seq)).collect::<Vec<_>>());
        assert_eq!(numbers, [vec![(RST, cut.outer)], vec![(RST, cut.seq)]], "{mode}");
        assert_eq!(world.happened(Event::EvictedStalled), 1);
    }
}

#[test]
fn a_client_that_never_answers_gets_a_handful_of_window_updates() {
    for mode in Mode::ALL {
        let (world, client, server) = mode.world();
        let terms = Terms::linux(mode.mss());
        let _ = open(&client, &server, terms, terms);
        world.tick(Duration::from_secs(86_000));
        for _ in 0..2000 {
            world.tick(Duration::from_secs(1));
        }
        let updates = world.discard().into_iter().filter(|(side, _)| *side == Side::Wan).count();
        assert!(updates <= 5, "{mode}: {updates} updates");
    }
}

/// In each second of an attack by `owner`, or by somebody else every time, which opens so many connections with a byte each: how many of twenty clients got in.
fn first_seconds(mode: Mode, owner: Option<Owner>, speed: u32, seconds: u16) -> Vec<usize> {
    let world = sized(mode, PLACES as usize / 8);
    let mut honest: Vec<Connection> = Vec::new();
    let mut n = 0;
    let each = |second: u16| {
        let before = honest.len();
        for k in 0..speed {
            n += 1;
            let client = owner.unwrap_or(Owner::Other((n % 50_000) as u16)).client(mode.family, n);
            if let Some(mut one) = Connection::open(&world, client, 1000 + (n % 30_000) as u16) {
                one.asks(&world, 1);
            }
            if k * 20 / speed != (k + 1) * 20 / speed {
                let client = Owner::Other(60_000 + (n % 5000) as u16).client(mode.family, 0);
                honest.extend(Connection::open(&world, client, 40_000 + 20 * second));
            }
            world.tick(Duration::from_secs(1) / speed);
        }
        world.discard();
        for (k, one) in honest.iter_mut().enumerate() {
            assert!(one.works(&world), "{mode}, {owner:?}, {speed} a second: client {k} is cut in second {second}");
        }
        honest.len() - before
    };
    (0..seconds).map(each).collect()
}

/// Places of the table that [`first_seconds`] fills.
const PLACES: u32 = 1024;

#[test]
fn in_the_first_seconds_of_one_owner_s_attack_everybody_else_gets_in() {
    // The table is full after a quarter of a second, one, and four.
    for speed in [4 * PLACES, PLACES, PLACES / 4] {
        for owner in OWNERS {
            assert_eq!(first_seconds(Mode::V4.cached(), Some(owner), speed, 6), [20; 6], "{owner:?}, {speed} a second");
        }
    }
}

#[test]
fn of_an_attack_from_as_many_networks_as_there_are_places_the_table_takes_a_quarter_a_second() {
    // A connection that has carried little gives way when it has been idle for four seconds. Those of clients that are at work have places too.
    assert_eq!(first_seconds(Mode::V4, None, PLACES / 8, 12), [20; 12]);
    let admitted = first_seconds(Mode::V4, None, PLACES / 2, 12);
    assert_eq!(admitted[0], 20, "{admitted:?}");
    // Beyond that everybody has the same chance, in waves.
    let later: usize = admitted[2..].iter().sum();
    assert!((50..170).contains(&later), "{admitted:?}");
}
