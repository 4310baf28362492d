//! Several workers on queues of the same ports: whatever queue a frame arrives on, one worker owns its connection.

use super::*;
use crate::dataplane::commands::CommandSender;
use crate::dataplane::steering::{HandoffCounters, Strategy};
use HandoffMetric::*;
use pktio::PortStatistics;
use pktio::memory::MemoryPort;
use pktio::rss::Twin;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time;
use tcpstate::config::{Handshake, Timeouts};
use tcpstate::owner::Naming;
use tcpstate::{Config, Event, Memory, Metadata, Owners, Policy, Proxy, Secrets, owner};

const FRAMES: usize = 1024;

fn secrets() -> Secrets {
    Secrets::new([7; 48])
}

fn config() -> Config {
    Config { table_buckets: 64, learn_capacity: 64, syn_cache_max: 64, ..Config::default() }
}

/// Workers with one queue of both ports each.
struct Workers {
    workers: Vec<Worker<Proxy>>,
    wires: Vec<PerSide<MemoryWire>>,
    /// What all of them began with.
    policy: Arc<Policy>,
    random: u64,
}

impl Workers {
    fn new(workers: usize, strategy: Strategy, config: &Config) -> Self {
        let steerings = Steering::open(workers, 1600, strategy, &secrets()).unwrap();
        let policy = Arc::new(Policy::new(config, now()));
        let worker = |steering| {
            let ((lan, lan_wire), (wan, wan_wire)) = (memory::pair(FRAMES), memory::pair(FRAMES));
            let pair = Pair { lan: Box::new(lan), wan: Box::new(wan), pool: Pool::heap(FRAMES, 512, 128) };
            let memory = Memory::anonymous(config);
            let proxy = Proxy::with_policy(config, Arc::clone(&policy), &secrets(), now(), memory);
            let worker = Worker::new(pair, proxy, Some(steering));
            (worker, PerSide::new(lan_wire, wan_wire))
        };
        let (workers, wires) = steerings.into_iter().map(worker).unzip();
        Self { workers, wires, policy, random: 0x9e37_79b9_7f4a_7c15 }
    }

    fn draw(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % below as u64) as usize
    }

    /// Lets a frame arrive on some queue, and all workers run until nothing is left to do.
    fn arrives(&mut self, side: Side, frame: &[u8]) {
        let queue = self.draw(self.workers.len());
        assert!(self.wires[queue][side].push(frame));
        self.settle();
    }

    fn settle(&mut self) {
        while self.workers.iter_mut().map(|worker| worker.poll(now()).received).sum::<usize>() > 0 {
            self.assert_conserved();
        }
    }

    fn assert_conserved(&self) {
        self.workers.iter().for_each(Worker::assert_conserved);
    }

    /// What has left by a port, on whatever queue.
    fn all_left(&mut self, side: Side) -> Vec<Vec<u8>> {
        self.wires.iter_mut().flat_map(|wires| drain(&mut wires[side])).collect()
    }

    /// The only frame that has.
    fn left(&mut self, side: Side) -> Vec<u8> {
        let mut left = self.all_left(side);
        assert_eq!(left.len(), 1);
        left.remove(0)
    }

    fn counters(&self) -> Vec<HandoffCounters> {
        self.workers.iter().map(|worker| *worker.steering.as_ref().expect("there are several").counters()).collect()
    }
}

/// What the parse pass finds out about a frame.
fn parse(side: Side, frame: &[u8]) -> Metadata {
    let mut bytes = frame.to_vec();
    let len = bytes.len();
    let mut meta = Metadata::default();
    Proxy::new(&config(), &secrets(), now()).parse(side, &Head::whole(&mut bytes, len), &mut meta);
    meta
}

/// The owner of a frame.
fn owner_of(side: Side, frame: &[u8], workers: usize) -> usize {
    let by_hash = |_: &_, hash| owner::share(hash, workers);
    Owners::new(&secrets(), Naming::Connection)
        .owner(side, &parse(side, frame), frame, now(), by_hash)
        .expect("a segment has an owner")
}

#[test]
fn connections_are_established_whatever_queues_their_frames_arrive_on() {
    for (workers, everything) in [(2, false), (2, true), (3, true), (4, false), (4, true)] {
        for syn_cache_max in [0, 64] {
            let strategy = if everything {
                Strategy::Everything(Naming::Connection)
            } else {
                Strategy::HandOff(Naming::Connection)
            };
            let mut group = Workers::new(workers, strategy, &Config { syn_cache_max, ..config() });
            for port in 40_000..40_064 {
                let segment = |side, seq, ack, flags| segment_of(port, side, seq, ack, flags);
                group.arrives(Side::Wan, &segment(Side::Wan, 1000, 0, SYN));
                let (isn, ack, flags) = numbers(&group.left(Side::Wan));
                assert_eq!((ack, flags), (1001, SYN | ACK));
                group.arrives(Side::Wan, &segment(Side::Wan, 1001, isn.wrapping_add(1), ACK));
                let (seq, _, flags) = numbers(&group.left(Side::Lan));
                assert_eq!((seq, flags), (1000, SYN));
                group.arrives(Side::Lan, &segment(Side::Lan, 5000, 1001, SYN | ACK));
                let outer = isn.wrapping_add(1);
                let of = |frames: &[Vec<u8>]| frames.iter().map(|frame| numbers(frame)).collect::<Vec<_>>();
                assert!(of(&group.all_left(Side::Wan)).contains(&(outer, 1001, ACK)), "the client's window opens");
                group.all_left(Side::Lan);
                group.arrives(Side::Wan, &segment(Side::Wan, 1001, outer, ACK));
                assert!(of(&group.all_left(Side::Lan)).contains(&(1001, 5001, ACK)), "numbers are translated");
                group.arrives(Side::Lan, &segment(Side::Lan, 5001, 1001, ACK));
                assert_eq!(numbers(&group.left(Side::Wan)), (outer, 1001, ACK));
            }
            let counters = group.counters();
            let sum = |metric| counters.iter().map(|own| own[metric]).sum::<u64>();
            assert_eq!(sum(HandedOver), sum(TakenOver));
            assert_eq!((sum(QueueFull), sum(NoBuffer)), (0, 0));
            if everything {
                assert_eq!(sum(HandedOver), 64 * 5, "every frame crosses");
            }
            let populations = group.workers.iter().map(|worker| worker.snapshot().get(FlowGauge::Proxied));
            assert!(populations.clone().all(|proxied| proxied > 0), "every worker has a share");
            assert_eq!(populations.sum::<u64>(), 64, "and nothing is there twice");
        }
    }
}

#[test]
fn what_one_worker_learns_of_a_server_all_know_when_the_next_client_connects() {
    let mut group = Workers::new(4, Strategy::HandOff(Naming::Connection), &config());
    // A port that refuses: only the first client gets a SYN-ACK.
    for (at, port) in (40_000..40_032).enumerate() {
        group.arrives(Side::Wan, &segment_of(port, Side::Wan, 1000, 0, SYN));
        let (isn, ack, flags) = numbers(&group.left(Side::Wan));
        if at > 0 {
            assert_eq!((isn, ack, flags), (0, 1001, RST | ACK), "client {at}");
            continue;
        }
        group.arrives(Side::Wan, &segment_of(port, Side::Wan, 1001, isn.wrapping_add(1), ACK));
        group.left(Side::Lan);
        group.arrives(Side::Lan, &segment_of(port, Side::Lan, 0, 1001, RST | ACK));
        assert_eq!(numbers(&group.left(Side::Wan)).2, RST);
    }
    let refused: Vec<u64> = group.workers.iter().map(|worker| worker.snapshot().get(Event::ClosedPort)).collect();
    assert!(refused.iter().all(|&refused| refused > 0), "each has refused a client: {refused:?}");
    let counters = group.counters();
    // That the port refuses, and on which side the server's station is, to three others each.
    assert_eq!(counters.iter().map(|own| own[UpdatesSent]).sum::<u64>(), 6, "no worker passes it on");
    assert_eq!(counters.iter().map(|own| own[UpdatesReceived]).sum::<u64>(), 6);
}

/// The window field of a segment without tags.
fn window(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[48], frame[49]])
}

/// Opens a connection, whose SYN-ACK it returns.
fn opens(group: &mut Workers, port: u16) -> Vec<u8> {
    group.arrives(Side::Wan, &segment_of(port, Side::Wan, 1000, 0, SYN));
    let answer = group.left(Side::Wan);
    proves(group, port, numbers(&answer).0);
    answer
}

/// The rest of it, from the client's proof that it has this SYN-ACK on.
fn proves(group: &mut Workers, port: u16, isn: u32) {
    let outer = isn.wrapping_add(1);
    group.arrives(Side::Wan, &segment_of(port, Side::Wan, 1001, outer, ACK));
    assert!(group.all_left(Side::Lan).iter().all(|syn| numbers(syn).2 == SYN));
    group.arrives(Side::Lan, &segment_of(port, Side::Lan, 5000, 1001, SYN | ACK));
    group.arrives(Side::Wan, &segment_of(port, Side::Wan, 1001, outer, ACK));
    Side::BOTH.into_iter().for_each(|side| drop(group.all_left(side)));
    group.arrives(Side::Lan, &segment_of(port, Side::Lan, 5001, 1001, ACK));
    assert_eq!(numbers(&group.left(Side::Wan)), (outer, 1001, ACK), "numbers are translated");
}

#[test]
fn a_policy_is_exchanged_on_every_worker_and_open_connections_keep_their_terms() {
    const WORKERS: usize = 3;
    for syn_cache_max in [0, 64] {
        let config = Config { syn_cache_max, handshake: Handshake::Honest, ..config() };
        let mut group = Workers::new(WORKERS, Strategy::HandOff(Naming::Connection), &config);
        let sender = CommandSender::open(WORKERS).unwrap();
        let workers = group.workers.drain(..).enumerate();
        group.workers = workers.map(|(number, worker)| worker.with_commands(sender.queue(number))).collect();
        // The first SYN-ACK of the server shows what it grants; every other client is answered under the policy.
        let isns: Vec<u32> = (40_000..40_016).map(|port| numbers(&opens(&mut group, port)).0).collect();
        group.arrives(Side::Wan, &segment_of(50_000, Side::Wan, 1000, 0, SYN));
        let answer = group.left(Side::Wan);
        assert_eq!(window(&answer), 0, "an honest handshake grants nothing");

        let timeouts = Timeouts { connected: Duration::from_secs(5), ..config.timeouts.clone() };
        let new = Config { handshake: Handshake::Early, early_window: 3000, timeouts, own_wscale: 3, ..config };
        let new = Arc::new(Policy::new(&new, now()));
        assert!(new.tables_begin() > now());
        let board = Board::new(WORKERS);
        let answers = thread::scope(|scope| {
            let sending = scope.spawn(|| sender.send(&Command::SetPolicy(Arc::clone(&new))));
            while !sending.is_finished() {
                for (number, worker) in group.workers.iter_mut().enumerate() {
                    worker.execute_command(now(), board.slot(number));
                }
                thread::yield_now();
            }
            sending.join().unwrap()
        });
        assert_eq!((Arc::strong_count(&new), answers.len()), (1 + WORKERS, WORKERS), "every worker has it");
        for answer in &answers {
            let Some(Answer::FormerPolicy(former)) = answer else { panic!("{answer:?}") };
            assert!(Arc::ptr_eq(former, &group.policy));
        }
        assert_eq!(Arc::strong_count(&group.policy), 1 + WORKERS, "the workers have freed nothing");
        drop(answers);
        assert_eq!(Arc::strong_count(&group.policy), 1);

        // Who was answered under the former policy gets in; new clients are answered under the new one, whichever worker answers.
        proves(&mut group, 50_000, numbers(&answer).0);
        for port in 41_000..41_016 {
            assert_eq!(window(&opens(&mut group, port)), 3000, "an early handshake grants the early window");
        }
        // Connections that were open have the lifetime they began with, and still their numbers.
        let proxied = |group: &Workers| -> u64 {
            group.workers.iter().map(|worker| worker.snapshot().get(FlowGauge::Proxied)).sum()
        };
        assert_eq!(proxied(&group), 16 + 1 + 16);
        for second in 0..10 {
            group.workers.iter_mut().for_each(|worker| {
                worker.poll(now() + Duration::from_secs(second));
            });
        }
        assert_eq!(proxied(&group), 16);
        for (port, isn) in (40_000..).zip(isns) {
            group.arrives(Side::Lan, &segment_of(port, Side::Lan, 5001, 1001, ACK));
            assert_eq!(numbers(&group.left(Side::Wan)), (isn.wrapping_add(1), 1001, ACK));
        }
    }
}

#[test]
fn a_worker_that_does_not_run_misses_updates_which_are_counted() {
    let mut group = Workers::new(2, Strategy::HandOff(Naming::Connection), &Config { table_buckets: 1024, ..config() });
    // What a server offers changes with every connection; the other worker never runs.
    let own = |port: &u16| owner_of(Side::Wan, &segment_of(*port, Side::Wan, 0, 0, SYN), 2) == 0;
    let mut ports = (1000..).filter(own);
    let mut connections = 0;
    while group.counters()[0][UpdatesLost] == 0 {
        let port = ports.next().expect("half of the ports");
        let (wires, worker) = (&mut group.wires[0], &mut group.workers[0]);
        let mut sends = |side, seq, ack, flags, window: u16| {
            let mut frame = segment_of(port, side, seq, ack, flags);
            let sum = u16::from_be_bytes([frame[50], frame[51]]);
            // The window was 0xffff, which is zero to the sum.
            let (sum, over) = sum.overflowing_sub(window);
            frame[48..50].copy_from_slice(&window.to_be_bytes());
            frame[50..52].copy_from_slice(&sum.wrapping_sub(u16::from(over)).to_be_bytes());
            assert!(wires[side].push(&frame));
            worker.poll(now());
            let [lan, wan] = Side::BOTH.map(|side| drain(&mut wires[side]));
            [lan, wan].concat().first().map_or(0, |frame| numbers(frame).0)
        };
        let isn = sends(Side::Wan, 1000, 0, SYN, 1000);
        sends(Side::Wan, 1001, isn.wrapping_add(1), ACK, 1000);
        sends(Side::Lan, 5000, 1001, SYN | ACK, 1000 + connections);
        connections += 1;
        assert!(connections < 5000, "no queue is so long");
    }
    let counters = group.counters()[0];
    assert_eq!(counters[UpdatesSent] + counters[UpdatesLost], u64::from(connections));
    // A limited number of updates in an iteration, and no more.
    let iterations = counters[UpdatesSent].div_ceil(2 * UPDATES_A_BATCH as u64);
    for iteration in 0..iterations {
        assert_eq!(group.counters()[1][UpdatesReceived], iteration * 2 * UPDATES_A_BATCH as u64);
        group.workers[1].poll(now());
    }
    assert_eq!(group.counters()[1][UpdatesReceived], counters[UpdatesSent]);
}

#[test]
fn a_source_that_proved_itself_to_one_worker_is_known_to_all() {
    for (workers, strategy) in [
        (2, Strategy::HandOff(Naming::Connection)),
        (4, Strategy::HandOff(Naming::Connection)),
        (4, Strategy::Everything(Naming::Connection)),
    ] {
        let mut group = Workers::new(workers, strategy, &config());
        group.workers = group.workers.drain(..).map(Worker::with_shedding).collect();
        let owned = |owner| {
            (1000..)
                .find(|&port| owner_of(Side::Wan, &segment_of(port, Side::Wan, 0, 0, SYN), workers) == owner)
                .unwrap()
        };
        let first = owned(0);
        group.arrives(Side::Wan, &segment_of(first, Side::Wan, 1000, 0, SYN));
        let (isn, ..) = numbers(&group.left(Side::Wan));
        group.arrives(Side::Wan, &segment_of(first, Side::Wan, 1001, isn.wrapping_add(1), ACK));
        group.left(Side::Lan);
        group.workers[0].adjust_shedding(Iteration::default(), now());
        group.settle();
        for worker in &mut group.workers {
            worker.shedder.set(&mut worker.ports[Side::Wan], pktio::ShedLevel::Fresh(0));
        }
        for owner in 1..workers {
            group.arrives(Side::Wan, &segment_of(owned(owner), Side::Wan, 1000, 0, SYN));
            assert_eq!(numbers(&group.left(Side::Wan)).2, SYN | ACK, "worker {owner} does not shed it");
        }
        assert!(group.workers.iter().all(|worker| worker.shedder.shed() == (0, 0)));
        // Once is enough for a while.
        let sent = group.counters()[0][UpdatesSent];
        group.workers[0].adjust_shedding(Iteration::default(), now());
        assert_eq!(group.counters()[0][UpdatesSent], sent);
    }
}

#[test]
fn a_flood_overloads_its_receiver_and_its_owner_and_is_shed_before_it_is_handed_over() {
    for (workers, strategy) in [
        (2, Strategy::HandOff(Naming::Connection)),
        (4, Strategy::HandOff(Naming::Connection)),
        (4, Strategy::Everything(Naming::Connection)),
    ] {
        let what = format!("{workers} workers, {strategy:?}");
        let mut group = Workers::new(workers, strategy, &config());
        group.workers = group.workers.drain(..).map(Worker::with_shedding).collect();
        // Everything arrives at the first, and belongs to the last.
        let owned = |port: &u16| owner_of(Side::Wan, &segment_of(*port, Side::Wan, 0, 0, SYN), workers) == workers - 1;
        let ports: Vec<u16> = (1..u16::MAX).filter(owned).take(4 * BATCH).collect();
        let flood_for = |group: &mut Workers, milliseconds: std::ops::Range<u64>| {
            for millisecond in milliseconds {
                let later = now() + Duration::from_millis(millisecond);
                for &port in &ports {
                    // Never the same SYN twice: the filter has a clock of its own, and a retransmitted SYN passes.
                    group.wires[0][Side::Wan].push(&segment_of(port, Side::Wan, 1000 + millisecond as u32, 0, SYN));
                }
                // The worker that hands over runs several times while the other, perhaps on the same core, runs once.
                for who in [0, 0, 0, 0, workers - 1] {
                    let iteration = group.workers[who].poll(later);
                    group.workers[who].adjust_shedding(iteration, later);
                }
                group.all_left(Side::Wan);
            }
        };
        flood_for(&mut group, 0..60);
        let [first, last] = [0, workers - 1].map(|who| &group.workers[who]);
        assert!(first.shedder.is_filtering() && last.shedder.is_filtering(), "{what}: both are overloaded");
        let (shed, full) = (first.shedder.shed().0, group.counters()[0][QueueFull]);
        assert!(shed > 0 && full > 0, "{what}: {shed} shed, {full} lost until then");
        // From now on the queue has space for the SYNs that pass.
        flood_for(&mut group, 60..80);
        assert_eq!(
            (group.counters()[0][QueueFull], group.workers[workers - 1].shedder.shed()),
            (full, (0, 0)),
            "{what}"
        );
        assert!(group.workers[0].shedder.shed().0 > shed, "{what}");
    }
}

#[test]
fn a_cookie_of_one_worker_is_valid_at_another() {
    // The client's SYN is answered here, its repetition there, and it acknowledges the first answer.
    let cookies = Config { syn_cache_max: 0, ..config() };
    let mut workers: Vec<_> = (0..2).map(|_| world(Proxy::new(&cookies, &secrets(), now()), 16, 16)).collect();
    let isns: Vec<u32> = workers
        .iter_mut()
        .map(|(worker, wires)| {
            wires[Side::Wan].push(&segment(Side::Wan, 1000, 0, SYN));
            worker.poll(now());
            numbers(&wires[Side::Wan].pop().unwrap()).0
        })
        .collect();
    let (worker, wires) = &mut workers[1];
    wires[Side::Wan].push(&segment(Side::Wan, 1001, isns[0].wrapping_add(1), ACK));
    worker.poll(now());
    assert_eq!(numbers(&wires[Side::Lan].pop().unwrap()).0, 1000, "the server gets a SYN");
    assert_eq!(worker.snapshot().get(Event::CookieGood), 1);
}

/// A client's SYN and its server's answer, and the queue of both.
fn opening(port: u16, twin: &Twin) -> ([(Side, Vec<u8>); 2], usize) {
    let [lan, wan] = [[10, 0, 0, 1], [192, 0, 2, 9]].map(|address| [u32::from_be_bytes(address)]);
    let frames = [(Side::Wan, SYN, 0), (Side::Lan, SYN | ACK, 1001)];
    let frames = frames.map(|(side, flags, ack)| (side, segment_of(port, side, 1000, ack, flags)));
    (frames, twin.queue(&lan, &wan, Some([80, port])))
}

#[test]
fn where_the_interfaces_choose_the_owner_only_what_they_cannot_parse_is_handed_over() {
    for joined in [false, true] {
        // Joined words under a key that repeats itself would cancel each other.
        let key: Vec<u8> = if joined {
            (1..=40).map(|i: u8| i.wrapping_mul(i).wrapping_mul(157)).collect()
        } else {
            [0x6d, 0x5a].repeat(20)
        };
        let twin = Twin::with_key(&key, (0..128).map(|i| i % 3).collect(), joined);
        let mut group = Workers::new(3, Strategy::Rss(twin.clone()), &config());
        for port in 40_000..40_200 {
            let (frames, queue) = opening(port, &twin);
            for (side, frame) in frames {
                assert!(group.wires[queue][side].push(&frame));
                group.settle();
                group.all_left(Side::Wan);
                group.all_left(Side::Lan);
            }
        }
        let counters = group.counters();
        assert!(counters.iter().all(|own| own[HandedOver] == 0 && own[WrongQueue] == 0), "{counters:?}");
        assert!(counters.iter().all(|own| own[Sampled] >= 64), "{counters:?}");
        // A SYN behind two tags arrives anywhere.
        let (frames, queue) = opening(50_000, &twin);
        let mut syn = frames[0].1.clone();
        syn.splice(12..12, [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]);
        for arrival in 0..3 {
            group.wires[arrival][Side::Wan].push(&syn);
            group.settle();
            assert_eq!(drain(&mut group.wires[queue][Side::Wan]).len(), 1, "its owner answers it");
        }
        assert_eq!(group.counters().iter().map(|own| own[HandedOver]).sum::<u64>(), 2);
    }
}

#[test]
fn interfaces_that_do_not_hash_as_configured_are_no_longer_trusted() {
    let twin = Twin::with_key(&[0x6d, 0x5a].repeat(20), (0..128).map(|i| i % 2).collect(), false);
    let mut group = Workers::new(2, Strategy::Rss(twin.clone()), &config());
    for port in 40_000..40_100 {
        let (frames, queue) = opening(port, &twin);
        group.arrives(Side::Wan, &frames[0].1);
        assert_eq!(drain(&mut group.wires[queue][Side::Wan]).len(), 1, "also before it is noticed");
    }
    let before = group.counters();
    assert!(before.iter().any(|own| own[WrongQueue] > 8), "{before:?}");
    assert!(before.iter().map(|own| own[Sampled]).sum::<u64>() < 64, "it is soon noticed: {before:?}");
    group.all_left(Side::Wan);
    for port in 50_000..50_050 {
        let (frames, queue) = opening(port, &twin);
        group.arrives(Side::Wan, &frames[0].1);
        assert_eq!(drain(&mut group.wires[queue][Side::Wan]).len(), 1, "whatever queue it arrived on");
    }
}

/// A packet of 160 bytes with the headers of a segment, in fragments: one with the TCP header, one with the rest.
fn fragments(segment: &[u8], identification: u16) -> [Vec<u8>; 2] {
    let piece = |field: u16, payload: &[u8]| {
        let mut frame = segment[..34].to_vec();
        frame[16..18].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        frame[18..20].copy_from_slice(&identification.to_be_bytes());
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        frame[24..26].fill(0);
        let sum = checksum(&[&frame[14..34]]);
        frame[24..26].copy_from_slice(&sum);
        frame.extend(payload);
        frame
    };
    [piece(0x2000, &[&segment[34..54], &[1; 60]].concat()), piece(10, &[2; 100])]
}

#[test]
fn fragments_follow_their_first_one_whichever_worker_owns_its_connection() {
    use tcpstate::config::Action;
    for strategy in [Strategy::HandOff(Naming::Connection), Strategy::Everything(Naming::Connection)] {
        // A fragment without its first one is dropped.
        let config = Config { stray_fragments: Action::Drop, adopt_grace: Duration::ZERO, ..config() };
        let mut group = Workers::new(4, strategy, &config);
        for port in 40_000..40_040 {
            // A connection from the LAN.
            let opening = [(Side::Lan, 5000, 0, SYN), (Side::Wan, 1000, 5001, SYN | ACK), (Side::Lan, 5001, 1001, ACK)];
            for (side, seq, ack, flags) in opening {
                group.arrives(side, &segment_of(port, side, seq, ack, flags));
                group.left(side.other());
            }
            let segment = segment_of(port, Side::Wan, 1001, 5001, ACK);
            let [first, rest] = fragments(&segment, port);
            // They come by the same queue, close together.
            let queue = group.draw(4);
            assert!(group.wires[queue][Side::Wan].push(&first) && group.wires[queue][Side::Wan].push(&rest));
            group.settle();
            assert_eq!(group.all_left(Side::Lan), [first, rest], "both, in order");
            let [_, stray] = fragments(&segment, port - 20_000);
            group.arrives(Side::Wan, &stray);
            assert!(group.all_left(Side::Lan).is_empty());
        }
    }
}

#[test]
fn what_is_no_tcp_stays_where_it_arrived() {
    let mut group = Workers::new(2, Strategy::HandOff(Naming::Connection), &config());
    let mut arp = vec![0xff; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    for side in Side::BOTH {
        assert!(group.wires[1][side].push(&arp));
        group.settle();
        assert_eq!(drain(&mut group.wires[1][side.other()]), [arp.clone()]);
    }
    assert_eq!(group.counters(), [HandoffCounters::default(); 2]);
}

#[test]
fn a_full_queue_drops_and_counts_and_the_buffers_return() {
    let mut group = Workers::new(2, Strategy::HandOff(Naming::Connection), &config());
    let mut pushed = 0;
    for port in 10_000.. {
        let syn = segment_of(port, Side::Wan, 1000, 0, SYN);
        if owner_of(Side::Wan, &syn, 2) == 1 {
            group.wires[0][Side::Wan].push(&syn);
            group.workers[0].poll(now());
            group.assert_conserved();
            pushed += 1;
        }
        if pushed == 1000 {
            break;
        }
    }
    let counters = group.counters()[0];
    assert_eq!(counters[HandedOver] + counters[QueueFull], 1000);
    assert!(counters[QueueFull] > 0, "the owner has not run once");
    assert_eq!(group.workers[0].pool.idle(), FRAMES, "the buffer of a frame that is handed over is free at once");
    group.settle();
    assert_eq!(group.counters()[1][TakenOver], counters[HandedOver]);
    assert_eq!(drain(&mut group.wires[1][Side::Wan]).len() as u64, counters[HandedOver]);
}

#[test]
fn no_frame_is_lost_between_workers_without_a_counter() {
    let mut group = Workers::new(3, Strategy::HandOff(Naming::Connection), &config());
    // Too few buffers at one of them, and iterations at random.
    group.workers[2].pool = Pool::heap(8, 512, 128);
    let mut pushed = 0;
    for round in 0..3000 {
        for _ in 0..group.draw(40) {
            let (port, side) = (group.draw(5000) as u16 + 1000, Side::BOTH[group.draw(2)]);
            let flags = [SYN, ACK, SYN | ACK, 4][group.draw(4)];
            let mut frame = segment_of(port, side, 1000, 2000, flags);
            if group.draw(8) == 0 {
                frame[12..14].copy_from_slice(&[8, 6]);
            }
            let queue = group.draw(3);
            pushed += u64::from(group.wires[queue][side].push(&frame));
        }
        let iterations = group.draw(3);
        for _ in 0..iterations {
            let who = group.draw(3);
            // One of them does not run for a third of the time.
            if who != 1 || round / 1000 % 2 == 0 {
                group.workers[who].poll(now());
            }
        }
        group.assert_conserved();
        for wires in &mut group.wires {
            Side::BOTH.into_iter().for_each(|side| drop(drain(&mut wires[side])));
        }
    }
    group.settle();
    let counters = group.counters();
    let sum = |metric| counters.iter().map(|own| own[metric]).sum::<u64>();
    assert_eq!(sum(HandedOver), sum(TakenOver) + sum(NoBuffer));
    assert!(sum(NoBuffer) > 0 && sum(QueueFull) > 0, "the test takes every way: {counters:?}");
    let of = |metric| -> u64 {
        let snapshots = group.workers.iter().map(Worker::snapshot);
        snapshots.map(|seen| seen.get(Metric::Lan(metric)) + seen.get(Metric::Wan(metric))).sum()
    };
    assert_eq!(pushed, of(PortMetric::Received) + of(PortMetric::NoBuffer));
}

/// A port in memory beside which a worker can sleep; its wire is woken by a byte on a socket.
struct Sleepable {
    port: MemoryPort,
    woken: UnixDatagram,
}

impl Port for Sleepable {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        while self.woken.recv(&mut [0; 8]).is_ok() {}
        self.port.receive(batch, max, pool)
    }
    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        self.port.transmit(batch, pool)
    }
    fn flush(&mut self, pool: &mut Pool) {
        self.port.flush(pool);
    }
    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.woken.as_raw_fd())
    }
    fn capabilities(&self) -> pktio::Capabilities {
        self.port.capabilities()
    }
    fn statistics(&self) -> PortStatistics {
        self.port.statistics()
    }
}

#[test]
fn a_sleeping_owner_is_woken() {
    const ROUNDS: u16 = 50;
    let mut ends = Vec::new();
    let mut workers = Vec::new();
    for steering in Steering::open(2, 1600, Strategy::HandOff(Naming::Connection), &secrets()).unwrap() {
        let mut port = || {
            let ((port, wire), (woken, waker)) = (memory::pair(64), UnixDatagram::pair().unwrap());
            woken.set_nonblocking(true).unwrap();
            ends.push((wire, waker));
            Box::new(Sleepable { port, woken })
        };
        let pair = Pair { lan: port(), wan: port(), pool: Pool::heap(64, 512, 128) };
        workers.push(Worker::new(pair, Proxy::new(&config(), &secrets(), now()), Some(steering)));
    }
    let (stop, board) = (AtomicBool::new(false), Board::new(2));
    let took = thread::scope(|scope| {
        for (number, worker) in workers.iter_mut().enumerate() {
            let (stop, board) = (&stop, &board);
            scope.spawn(move || worker.run(stop, board.slot(number)).unwrap());
        }
        let begin = time::Instant::now();
        let syns = (10_000..).map(|port| segment_of(port, Side::Wan, 1000, 0, SYN));
        for syn in syns.filter(|syn| owner_of(Side::Wan, syn, 2) == 1).take(ROUNDS.into()) {
            // Both have found nothing to do for a while.
            thread::sleep(Duration::from_millis(2));
            ends[1].0.push(&syn);
            ends[1].1.send(b"!").unwrap();
            while ends[3].0.pop().is_none() && begin.elapsed() < Duration::from_secs(60) {
                thread::sleep(Duration::from_micros(100));
            }
        }
        stop.store(true, Ordering::Relaxed);
        begin.elapsed()
    });
    // Without the wake-up each would wait for the end of the longest sleep.
    assert!(took < LONGEST_SLEEP * u32::from(ROUNDS) / 2, "{took:?}");
    workers.iter().for_each(Worker::assert_conserved);
}
