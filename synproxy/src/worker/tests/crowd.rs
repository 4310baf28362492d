//! Several workers on queues of the same ports: whatever queue a frame arrives on, its connection is in one pair of hands.

use super::*;
use crate::steer::{Crossed, Strategy};
use pktio::PortStatistics;
use pktio::memory::MemoryPort;
use pktio::rss::Twin;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time;
use tcpstate::{Config, Event, Metadata, Owners, Proxy, Secrets, owner};

const FRAMES: usize = 1024;

fn secrets() -> Secrets {
    Secrets::new([7; 48])
}

fn config() -> Config {
    Config { table_buckets: 64, learn_capacity: 64, syn_cache_max: 64, ..Config::default() }
}

/// Workers with one queue of both ports each.
struct Crowd {
    workers: Vec<Worker<Proxy>>,
    wires: Vec<PerSide<MemoryWire>>,
    chance: u64,
}

impl Crowd {
    fn new(workers: usize, strategy: Strategy, config: &Config) -> Self {
        let crossings = Crossing::open(workers, 1600, strategy, &secrets()).unwrap();
        let member = |crossing| {
            let ((lan, lan_wire), (wan, wan_wire)) = (memory::pair(FRAMES), memory::pair(FRAMES));
            let pair = Pair { lan: Box::new(lan), wan: Box::new(wan), pool: Pool::heap(FRAMES, 512, 128) };
            let worker = Worker::new(pair, Proxy::new(config, &secrets(), now()), Some(crossing));
            (worker, PerSide::new(lan_wire, wan_wire))
        };
        let (workers, wires) = crossings.into_iter().map(member).unzip();
        Self { workers, wires, chance: 0x9e37_79b9_7f4a_7c15 }
    }

    fn draw(&mut self, below: usize) -> usize {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        (self.chance % below as u64) as usize
    }

    /// Lets a frame arrive on some queue, and everybody work until nothing is left to do.
    fn arrives(&mut self, side: Side, frame: &[u8]) {
        let queue = self.draw(self.workers.len());
        assert!(self.wires[queue][side].push(frame));
        self.settle();
    }

    fn settle(&mut self) {
        while self.workers.iter_mut().map(|worker| worker.turn(now()).received).sum::<usize>() > 0 {
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

    fn crossed(&self) -> Vec<Crossed> {
        self.workers.iter().map(|worker| worker.snapshot().crossed()).collect()
    }
}

/// What the first pass finds out about a frame.
fn parse(side: Side, frame: &[u8]) -> Metadata {
    let mut bytes = frame.to_vec();
    let len = bytes.len();
    let mut meta = Metadata::default();
    Proxy::new(&config(), &secrets(), now()).parse(side, &Head::whole(&mut bytes, len), &mut meta);
    meta
}

/// Whose a frame is.
fn owner_of(side: Side, frame: &[u8], workers: usize) -> usize {
    let by_hash = |_: &_, hash| owner::share(hash, workers);
    Owners::new(&secrets()).owner(side, &parse(side, frame), frame, now(), by_hash).expect("a segment has an owner")
}

#[test]
fn connections_are_joined_whatever_queues_their_frames_arrive_on() {
    for (workers, everything) in [(2, false), (2, true), (3, true), (4, false), (4, true)] {
        for syn_cache_max in [0, 64] {
            let strategy = if everything { Strategy::Everything } else { Strategy::HandOff };
            let mut crowd = Crowd::new(workers, strategy, &Config { syn_cache_max, ..config() });
            for port in 40_000..40_064 {
                let segment = |side, seq, ack, flags| segment_of(port, side, seq, ack, flags);
                crowd.arrives(Side::Wan, &segment(Side::Wan, 1000, 0, SYN));
                let (isn, ack, flags) = numbers(&crowd.left(Side::Wan));
                assert_eq!((ack, flags), (1001, SYN | ACK));
                crowd.arrives(Side::Wan, &segment(Side::Wan, 1001, isn.wrapping_add(1), ACK));
                let (seq, _, flags) = numbers(&crowd.left(Side::Lan));
                assert_eq!((seq, flags), (1000, SYN));
                crowd.arrives(Side::Lan, &segment(Side::Lan, 5000, 1001, SYN | ACK));
                let outer = isn.wrapping_add(1);
                let of = |frames: &[Vec<u8>]| frames.iter().map(|frame| numbers(frame)).collect::<Vec<_>>();
                assert!(of(&crowd.all_left(Side::Wan)).contains(&(outer, 1001, ACK)), "the client's window opens");
                crowd.all_left(Side::Lan);
                crowd.arrives(Side::Wan, &segment(Side::Wan, 1001, outer, ACK));
                assert!(of(&crowd.all_left(Side::Lan)).contains(&(1001, 5001, ACK)), "numbers are translated");
                crowd.arrives(Side::Lan, &segment(Side::Lan, 5001, 1001, ACK));
                assert_eq!(numbers(&crowd.left(Side::Wan)), (outer, 1001, ACK));
            }
            let crossed = crowd.crossed();
            let sum = |of: fn(&Crossed) -> u64| crossed.iter().map(of).sum::<u64>();
            assert_eq!(sum(|crossed| crossed.handed_over), sum(|crossed| crossed.taken_over));
            assert_eq!((sum(|crossed| crossed.full), sum(|crossed| crossed.lost)), (0, 0));
            if everything {
                assert_eq!(sum(|crossed| crossed.handed_over), 64 * 5, "every frame crosses");
            }
            let populations = crowd.workers.iter().map(|worker| worker.snapshot().population().proxied);
            assert!(populations.clone().all(|proxied| proxied > 0), "everybody has a share");
            assert_eq!(populations.sum::<u64>(), 64, "and nothing is there twice");
        }
    }
}

#[test]
fn what_one_worker_learns_of_a_server_all_know_when_the_next_client_comes() {
    let mut crowd = Crowd::new(4, Strategy::HandOff, &config());
    // A port that refuses: only the first who knocks is answered in its name.
    for (at, port) in (40_000..40_032).enumerate() {
        crowd.arrives(Side::Wan, &segment_of(port, Side::Wan, 1000, 0, SYN));
        let (isn, ack, flags) = numbers(&crowd.left(Side::Wan));
        if at > 0 {
            assert_eq!((isn, ack, flags), (0, 1001, RST | ACK), "caller {at}");
            continue;
        }
        crowd.arrives(Side::Wan, &segment_of(port, Side::Wan, 1001, isn.wrapping_add(1), ACK));
        crowd.left(Side::Lan);
        crowd.arrives(Side::Lan, &segment_of(port, Side::Lan, 0, 1001, RST | ACK));
        assert_eq!(numbers(&crowd.left(Side::Wan)).2, RST);
    }
    let shut: Vec<u64> = crowd.workers.iter().map(|worker| worker.snapshot().happened(Event::ClosedPort)).collect();
    assert!(shut.iter().all(|&shut| shut > 0), "each has been asked: {shut:?}");
    let crossed = crowd.crossed();
    assert_eq!(crossed.iter().map(|crossed| crossed.told).sum::<u64>(), 3, "nobody passes it on");
    assert_eq!(crossed.iter().map(|crossed| crossed.heard).sum::<u64>(), 3);
}

#[test]
fn who_does_not_listen_misses_some_which_is_counted() {
    let mut crowd = Crowd::new(2, Strategy::HandOff, &Config { table_buckets: 1024, ..config() });
    // What a server offers changes with every connection; the other worker never has a turn.
    let own = |port: &u16| owner_of(Side::Wan, &segment_of(*port, Side::Wan, 0, 0, SYN), 2) == 0;
    let mut ports = (1000..).filter(own);
    let mut connections = 0;
    while crowd.crossed()[0].unheard == 0 {
        let port = ports.next().expect("half of the ports");
        let (wires, worker) = (&mut crowd.wires[0], &mut crowd.workers[0]);
        let mut says = |side, seq, ack, flags, window: u16| {
            let mut frame = segment_of(port, side, seq, ack, flags);
            let sum = u16::from_be_bytes([frame[50], frame[51]]);
            // The window was 0xffff, which is zero to the sum.
            let (sum, over) = sum.overflowing_sub(window);
            frame[48..50].copy_from_slice(&window.to_be_bytes());
            frame[50..52].copy_from_slice(&sum.wrapping_sub(u16::from(over)).to_be_bytes());
            assert!(wires[side].push(&frame));
            worker.turn(now());
            let [lan, wan] = Side::BOTH.map(|side| drain(&mut wires[side]));
            [lan, wan].concat().first().map_or(0, |frame| numbers(frame).0)
        };
        let isn = says(Side::Wan, 1000, 0, SYN, 1000);
        says(Side::Wan, 1001, isn.wrapping_add(1), ACK, 1000);
        says(Side::Lan, 5000, 1001, SYN | ACK, 1000 + connections);
        connections += 1;
        assert!(connections < 5000, "no lane is so long");
    }
    let crossed = crowd.crossed()[0];
    assert_eq!(crossed.told + crossed.unheard, u64::from(connections));
    // So many words in a turn, and no more.
    let turns = crossed.told.div_ceil(2 * WORDS_A_BATCH as u64);
    for turn in 0..turns {
        assert_eq!(crowd.crossed()[1].heard, turn * 2 * WORDS_A_BATCH as u64);
        crowd.workers[1].turn(now());
    }
    assert_eq!(crowd.crossed()[1].heard, crossed.told);
}

#[test]
fn a_source_that_proved_itself_to_one_worker_is_known_to_all() {
    for (workers, strategy) in [(2, Strategy::HandOff), (4, Strategy::HandOff), (4, Strategy::Everything)] {
        let mut crowd = Crowd::new(workers, strategy, &config());
        crowd.workers = crowd.workers.drain(..).map(Worker::relieved).collect();
        let owned = |owner| {
            (1000..)
                .find(|&port| owner_of(Side::Wan, &segment_of(port, Side::Wan, 0, 0, SYN), workers) == owner)
                .unwrap()
        };
        let first = owned(0);
        crowd.arrives(Side::Wan, &segment_of(first, Side::Wan, 1000, 0, SYN));
        let (isn, ..) = numbers(&crowd.left(Side::Wan));
        crowd.arrives(Side::Wan, &segment_of(first, Side::Wan, 1001, isn.wrapping_add(1), ACK));
        crowd.left(Side::Lan);
        crowd.workers[0].relieve(Turn::default(), now());
        crowd.settle();
        for worker in &mut crowd.workers {
            worker.relief.set(&mut worker.ports[Side::Wan], pktio::Level::Fresh(0));
        }
        for owner in 1..workers {
            crowd.arrives(Side::Wan, &segment_of(owned(owner), Side::Wan, 1000, 0, SYN));
            assert_eq!(numbers(&crowd.left(Side::Wan)).2, SYN | ACK, "worker {owner} lets it in");
        }
        assert!(crowd.workers.iter().all(|worker| worker.relief.shed() == (0, 0)));
        // Once is enough for a while.
        let told = crowd.crossed()[0].told;
        crowd.workers[0].relieve(Turn::default(), now());
        assert_eq!(crowd.crossed()[0].told, told);
    }
}

#[test]
fn a_flood_presses_who_receives_it_and_whom_it_is_for_and_is_left_out_before_it_is_handed_over() {
    for (workers, strategy) in [(2, Strategy::HandOff), (4, Strategy::HandOff), (4, Strategy::Everything)] {
        let what = format!("{workers} workers, {strategy:?}");
        let mut crowd = Crowd::new(workers, strategy, &config());
        crowd.workers = crowd.workers.drain(..).map(Worker::relieved).collect();
        // Everything arrives at the first, and belongs to the last.
        let owned = |port: &u16| owner_of(Side::Wan, &segment_of(*port, Side::Wan, 0, 0, SYN), workers) == workers - 1;
        let ports: Vec<u16> = (1..u16::MAX).filter(owned).take(4 * BATCH).collect();
        let flood_for = |crowd: &mut Crowd, milliseconds: std::ops::Range<u64>| {
            for millisecond in milliseconds {
                let later = now() + Duration::from_millis(millisecond);
                for &port in &ports {
                    // Never the same call twice: the sieve has a clock of its own, and a repeated one passes.
                    crowd.wires[0][Side::Wan].push(&segment_of(port, Side::Wan, 1000 + millisecond as u32, 0, SYN));
                }
                // The one who hands over has several turns while the other, perhaps on the same core, has none.
                for who in [0, 0, 0, 0, workers - 1] {
                    let turn = crowd.workers[who].turn(later);
                    crowd.workers[who].relieve(turn, later);
                }
                crowd.all_left(Side::Wan);
            }
        };
        flood_for(&mut crowd, 0..60);
        let [first, last] = [0, workers - 1].map(|who| &crowd.workers[who]);
        assert!(first.relief.sifts() && last.relief.sifts(), "{what}: both are pressed");
        let (shed, full) = (first.relief.shed().0, crowd.crossed()[0].full);
        assert!(shed > 0 && full > 0, "{what}: {shed} left out, {full} lost until then");
        // From now on the lane is there for those who get in.
        flood_for(&mut crowd, 60..80);
        assert_eq!((crowd.crossed()[0].full, crowd.workers[workers - 1].relief.shed()), (full, (0, 0)), "{what}");
        assert!(crowd.workers[0].relief.shed().0 > shed, "{what}");
    }
}

#[test]
fn a_cookie_minted_by_one_worker_opens_at_another() {
    // The client's SYN is answered here, its repetition there, and it acknowledges the first answer.
    let cookies = Config { syn_cache_max: 0, ..config() };
    let mut workers: Vec<_> = (0..2).map(|_| world(Proxy::new(&cookies, &secrets(), now()), 16, 16)).collect();
    let isns: Vec<u32> = workers
        .iter_mut()
        .map(|(worker, wires)| {
            wires[Side::Wan].push(&segment(Side::Wan, 1000, 0, SYN));
            worker.turn(now());
            numbers(&wires[Side::Wan].pop().unwrap()).0
        })
        .collect();
    let (worker, wires) = &mut workers[1];
    wires[Side::Wan].push(&segment(Side::Wan, 1001, isns[0].wrapping_add(1), ACK));
    worker.turn(now());
    assert_eq!(numbers(&wires[Side::Lan].pop().unwrap()).0, 1000, "the server is dialled");
    assert_eq!(worker.snapshot().happened(Event::CookieGood), 1);
}

/// A client's SYN and its server's answer, and the queue both belong on.
fn call(port: u16, twin: &Twin) -> ([(Side, Vec<u8>); 2], usize) {
    let [lan, wan] = [[10, 0, 0, 1], [192, 0, 2, 9]].map(|address| [u32::from_be_bytes(address)]);
    let frames = [(Side::Wan, SYN, 0), (Side::Lan, SYN | ACK, 1001)];
    let frames = frames.map(|(side, flags, ack)| (side, segment_of(port, side, 1000, ack, flags)));
    (frames, twin.queue(&lan, &wan, Some([80, port])))
}

#[test]
fn where_the_cards_choose_the_owner_nothing_is_handed_over_but_what_they_cannot_parse() {
    for joined in [false, true] {
        // Joined words under a key that repeats itself would cancel each other.
        let key: Vec<u8> = if joined {
            (1..=40).map(|i: u8| i.wrapping_mul(i).wrapping_mul(157)).collect()
        } else {
            [0x6d, 0x5a].repeat(20)
        };
        let twin = Twin::with_key(&key, (0..128).map(|i| i % 3).collect(), joined);
        let mut crowd = Crowd::new(3, Strategy::Rss(twin.clone()), &config());
        for port in 40_000..40_200 {
            let (frames, queue) = call(port, &twin);
            for (side, frame) in frames {
                assert!(crowd.wires[queue][side].push(&frame));
                crowd.settle();
                crowd.all_left(Side::Wan);
                crowd.all_left(Side::Lan);
            }
        }
        let crossed = crowd.crossed();
        assert!(crossed.iter().all(|crossed| crossed.handed_over == 0 && crossed.misfits == 0), "{crossed:?}");
        assert!(crossed.iter().all(|crossed| crossed.sampled >= 64), "{crossed:?}");
        // A SYN behind two tags arrives anywhere.
        let (frames, queue) = call(50_000, &twin);
        let mut syn = frames[0].1.clone();
        syn.splice(12..12, [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]);
        for arrival in 0..3 {
            crowd.wires[arrival][Side::Wan].push(&syn);
            crowd.settle();
            assert_eq!(drain(&mut crowd.wires[queue][Side::Wan]).len(), 1, "it is answered where it belongs");
        }
        assert_eq!(crowd.crossed().iter().map(|crossed| crossed.handed_over).sum::<u64>(), 2);
    }
}

#[test]
fn cards_that_do_not_do_as_they_were_told_are_trusted_no_more() {
    let twin = Twin::with_key(&[0x6d, 0x5a].repeat(20), (0..128).map(|i| i % 2).collect(), false);
    let mut crowd = Crowd::new(2, Strategy::Rss(twin.clone()), &config());
    for port in 40_000..40_100 {
        let (frames, queue) = call(port, &twin);
        crowd.arrives(Side::Wan, &frames[0].1);
        assert_eq!(drain(&mut crowd.wires[queue][Side::Wan]).len(), 1, "also before it is noticed");
    }
    let before = crowd.crossed();
    assert!(before.iter().any(|crossed| crossed.misfits > 8), "{before:?}");
    assert!(before.iter().map(|crossed| crossed.sampled).sum::<u64>() < 64, "it is soon noticed: {before:?}");
    crowd.all_left(Side::Wan);
    for port in 50_000..50_050 {
        let (frames, queue) = call(port, &twin);
        crowd.arrives(Side::Wan, &frames[0].1);
        assert_eq!(drain(&mut crowd.wires[queue][Side::Wan]).len(), 1, "whatever queue it arrived on");
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
fn fragments_follow_their_first_one_wherever_its_connection_is() {
    use tcpstate::config::Action;
    for strategy in [Strategy::HandOff, Strategy::Everything] {
        // What comes without its first one is dropped.
        let config = Config { stray_fragments: Action::Drop, adopt_grace: Duration::ZERO, ..config() };
        let mut crowd = Crowd::new(4, strategy, &config);
        for port in 40_000..40_040 {
            // A connection from the LAN.
            let opening = [(Side::Lan, 5000, 0, SYN), (Side::Wan, 1000, 5001, SYN | ACK), (Side::Lan, 5001, 1001, ACK)];
            for (side, seq, ack, flags) in opening {
                crowd.arrives(side, &segment_of(port, side, seq, ack, flags));
                crowd.left(side.other());
            }
            let segment = segment_of(port, Side::Wan, 1001, 5001, ACK);
            let [first, rest] = fragments(&segment, port);
            // They come by the same queue, close together.
            let queue = crowd.draw(4);
            assert!(crowd.wires[queue][Side::Wan].push(&first) && crowd.wires[queue][Side::Wan].push(&rest));
            crowd.settle();
            assert_eq!(crowd.all_left(Side::Lan), [first, rest], "both, in order");
            let [_, stray] = fragments(&segment, port - 20_000);
            crowd.arrives(Side::Wan, &stray);
            assert!(crowd.all_left(Side::Lan).is_empty());
        }
    }
}

#[test]
fn what_is_no_tcp_stays_where_it_arrived() {
    let mut crowd = Crowd::new(2, Strategy::HandOff, &config());
    let mut arp = vec![0xff; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    for side in Side::BOTH {
        assert!(crowd.wires[1][side].push(&arp));
        crowd.settle();
        assert_eq!(drain(&mut crowd.wires[1][side.other()]), [arp.clone()]);
    }
    assert_eq!(crowd.crossed(), [Crossed::default(); 2]);
}

#[test]
fn a_full_lane_drops_and_counts_and_the_buffers_come_back() {
    let mut crowd = Crowd::new(2, Strategy::HandOff, &config());
    let mut pushed = 0;
    for port in 10_000.. {
        let syn = segment_of(port, Side::Wan, 1000, 0, SYN);
        if owner_of(Side::Wan, &syn, 2) == 1 {
            crowd.wires[0][Side::Wan].push(&syn);
            crowd.workers[0].turn(now());
            crowd.assert_conserved();
            pushed += 1;
        }
        if pushed == 1000 {
            break;
        }
    }
    let crossed = crowd.crossed()[0];
    assert_eq!(crossed.handed_over + crossed.full, 1000);
    assert!(crossed.full > 0, "the owner has not looked once");
    assert_eq!(crowd.workers[0].pool.idle(), FRAMES, "a stray's buffer is free at once");
    crowd.settle();
    assert_eq!(crowd.crossed()[1].taken_over, crossed.handed_over);
    assert_eq!(drain(&mut crowd.wires[1][Side::Wan]).len() as u64, crossed.handed_over);
}

#[test]
fn no_frame_is_lost_between_workers_without_a_counter() {
    let mut crowd = Crowd::new(3, Strategy::HandOff, &config());
    // Too few buffers at one of them, and turns that come when they like.
    crowd.workers[2].pool = Pool::heap(8, 512, 128);
    let mut pushed = 0;
    for round in 0..3000 {
        for _ in 0..crowd.draw(40) {
            let (port, side) = (crowd.draw(5000) as u16 + 1000, Side::BOTH[crowd.draw(2)]);
            let flags = [SYN, ACK, SYN | ACK, 4][crowd.draw(4)];
            let mut frame = segment_of(port, side, 1000, 2000, flags);
            if crowd.draw(8) == 0 {
                frame[12..14].copy_from_slice(&[8, 6]);
            }
            let queue = crowd.draw(3);
            pushed += u64::from(crowd.wires[queue][side].push(&frame));
        }
        let turns = crowd.draw(3);
        for _ in 0..turns {
            let who = crowd.draw(3);
            // One of them is away for a third of the time.
            if who != 1 || round / 1000 % 2 == 0 {
                crowd.workers[who].turn(now());
            }
        }
        crowd.assert_conserved();
        for wires in &mut crowd.wires {
            Side::BOTH.into_iter().for_each(|side| drop(drain(&mut wires[side])));
        }
    }
    crowd.settle();
    let crossed = crowd.crossed();
    let sum = |of: fn(&Crossed) -> u64| crossed.iter().map(of).sum::<u64>();
    assert_eq!(sum(|crossed| crossed.handed_over), sum(|crossed| crossed.taken_over + crossed.lost));
    assert!(
        sum(|crossed| crossed.lost) > 0 && sum(|crossed| crossed.full) > 0,
        "the test takes every way: {crossed:?}"
    );
    let of = |port: fn(&PortStatistics) -> u64| -> u64 {
        let snapshots = crowd.workers.iter().map(Worker::snapshot);
        snapshots.map(|seen| port(&seen.port(Side::Lan)) + port(&seen.port(Side::Wan))).sum()
    };
    assert_eq!(pushed, of(|port| port.received) + of(|port| port.no_buffer));
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
    for crossing in Crossing::open(2, 1600, Strategy::HandOff, &secrets()).unwrap() {
        let mut port = || {
            let ((port, wire), (woken, waker)) = (memory::pair(64), UnixDatagram::pair().unwrap());
            woken.set_nonblocking(true).unwrap();
            ends.push((wire, waker));
            Box::new(Sleepable { port, woken })
        };
        let pair = Pair { lan: port(), wan: port(), pool: Pool::heap(64, 512, 128) };
        workers.push(Worker::new(pair, Proxy::new(&config(), &secrets(), now()), Some(crossing)));
    }
    let (stop, board) = (AtomicBool::new(false), Board::new(2));
    let took = thread::scope(|scope| {
        for (number, worker) in workers.iter_mut().enumerate() {
            let (stop, board) = (&stop, &board);
            scope.spawn(move || worker.run(stop, board.slot(number)).unwrap());
        }
        let begin = time::Instant::now();
        let strays = (10_000..).map(|port| segment_of(port, Side::Wan, 1000, 0, SYN));
        for syn in strays.filter(|syn| owner_of(Side::Wan, syn, 2) == 1).take(ROUNDS.into()) {
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
    // Without the bell each would wait for the end of the longest sleep.
    assert!(took < LONGEST_SLEEP * u32::from(ROUNDS) / 2, "{took:?}");
    workers.iter().for_each(Worker::assert_conserved);
}
