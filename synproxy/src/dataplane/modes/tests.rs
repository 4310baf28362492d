//! The very engines, without ports: what each worker would do with its SYNs, and what all of them are told.

use super::*;
use etherparse::PacketBuilder;
use std::sync::Arc;
use tcpstate::config::Auto;
use tcpstate::{Config, Egress, Head, Policy, Proxy, Secrets, Side, Verdict};

const START: Instant = Instant::from_secs(1000);
const THRESHOLD: u32 = 64;

struct Nobody;

impl Egress for Nobody {
    fn emit(&mut self, _: Side, _: impl FnOnce(&mut [u8]) -> usize) -> bool {
        false
    }
}

/// Workers of one box, and their coordinator.
struct WorkerGroup {
    board: Arc<ModeBoard>,
    workers: Vec<(Proxy, ModeLink)>,
    coordinator: Coordinator,
    now: Instant,
    clients: u32,
}

fn config(auto: Auto) -> Config {
    Config { mode: Mode::Auto, auto, table_buckets: 2048, learn_capacity: 64, ..Config::default() }
}

fn thresholds() -> Auto {
    Auto { enter_half_open: THRESHOLD, leave_half_open: 32, stay: Duration::from_secs(1), ..Auto::default() }
}

impl WorkerGroup {
    fn new(workers: usize, auto: Auto) -> Self {
        let config = config(auto);
        let policy = Arc::new(Policy::new(&config, START));
        let board = Arc::new(ModeBoard::new(policy.targets().clone(), workers));
        let proxy = || {
            let memory = tcpstate::Memory::anonymous(&config);
            Proxy::with_policy(&config, policy.clone(), &Secrets::new([1; 48]), START, memory)
        };
        let workers = (0..workers).map(|worker| (proxy(), board.link(worker))).collect();
        let coordinator = Coordinator::new(Arc::clone(&board), START);
        Self { board, workers, coordinator, now: START, clients: 0 }
    }

    /// One iteration of a worker, in which so many first SYNs come, each of another client: how many passed.
    fn iterates(&mut self, worker: usize, syns: u32) -> u64 {
        let (proxy, link) = &mut self.workers[worker];
        link.follow(proxy, self.now);
        let mut passed = 0;
        for _ in 0..syns {
            self.clients += 1;
            let [_, high, middle, low] = self.clients.to_be_bytes();
            let mut frame = Vec::new();
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
                .ipv4([11, high, middle, low], [192, 0, 2, 1], 64)
                .tcp(1000, 80, self.clients, 64_240)
                .syn()
                .write(&mut frame, &[])
                .unwrap();
            let len = frame.len();
            frame.resize(len + 64, 0);
            let mut head = Head::new(&mut frame, 0, len, len);
            let verdict = proxy.on_single(Side::Wan, &mut head, self.now, &mut Nobody);
            passed += u64::from(verdict == Verdict::Forward);
        }
        while proxy.on_timeout(self.now, &mut Nobody) {}
        link.report(proxy, syns > 0, self.now);
        passed
    }

    /// A pause of 10 ms, then an iteration of each without frames, and counts are summed up.
    fn rests(&mut self) {
        self.now = self.now + PERIOD;
        (0..self.workers.len()).for_each(|worker| assert_eq!(self.iterates(worker, 0), 0));
        self.coordinator.tick(self.now);
    }

    fn modes(&self) -> Vec<Mode> {
        self.workers.iter().map(|(proxy, _)| proxy.present_mode(0)).collect()
    }

    fn half_open(&self) -> u64 {
        self.workers.iter().map(|(proxy, _)| proxy.target_counts(0).half_open).sum()
    }
}

#[test]
fn a_worker_that_has_used_up_its_share_stops_all_of_them_at_their_next_iteration() {
    let mut group = WorkerGroup::new(4, thresholds());
    let switches = group.board.subscribe(8);
    assert_eq!(group.iterates(2, 100), u64::from(THRESHOLD / 4), "at that very SYN, before anybody was asked");
    assert_eq!(group.modes(), [Mode::Pass, Mode::Pass, Mode::Cookie, Mode::Pass]);
    assert_eq!([0, 1, 3].map(|worker| group.iterates(worker, 5)), [0; 3]);
    assert_eq!(group.modes(), [Mode::Cookie; 4]);
    group.rests();
    let switch = switches.try_recv().unwrap();
    assert_eq!((switch.from, switch.to), (Mode::Pass, Mode::Cookie));
    assert_eq!(switch.why, Reason::HalfOpen { connections: 16 });
    assert_eq!(switch.to_string(), "mode of everybody: cookie instead of pass: 16 connections are half-open");
    assert!(switches.is_empty(), "one switch, however many noticed it");
    assert_eq!((group.board.status()[0].switches, group.board.status()[0].present), (1, Mode::Cookie));
}

#[test]
fn what_is_slowly_half_open_at_one_worker_may_be_all_of_the_threshold() {
    let mut group = WorkerGroup::new(4, thresholds());
    let mut passed = 0;
    while group.modes()[0] == Mode::Pass {
        passed += group.iterates(0, 1);
        group.rests();
        assert!(passed < 1000);
    }
    // What is left is divided, and the rest of the division is nobody's.
    assert!((u64::from(THRESHOLD) - 3..=u64::from(THRESHOLD)).contains(&passed), "{passed}");
}

#[test]
fn workers_together_pass_hardly_more_than_the_threshold_however_syns_are_spread() {
    for workers in [1, 2, 3, 8, 24] {
        for seed in 1..30_u64 {
            let mut group = WorkerGroup::new(workers, thresholds());
            let mut random = seed;
            for _ in 0..3000 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let worker = (random >> 33) as usize % workers;
                group.iterates(worker, (random >> 50) as u32 % 4);
                if random >> 40 & 63 == 0 {
                    group.rests();
                }
            }
            assert_eq!(group.modes()[0], Mode::Cookie);
            let most = u64::from(THRESHOLD) * 5 / 4 + workers as u64;
            assert!(group.half_open() <= most, "{} of {workers} workers, seed {seed}", group.half_open());
        }
    }
}

#[test]
fn it_leaves_when_half_open_connections_and_cookies_in_flight_are_few_and_not_before_its_time() {
    let auto = Auto { in_flight: Duration::from_millis(500), stay: Duration::from_secs(100), ..thresholds() };
    let mut group = WorkerGroup::new(2, auto);
    let switches = group.board.subscribe(8);
    group.iterates(0, 100);
    group.rests();
    assert_eq!(group.board.status()[0].in_flight, 0, "what came before the first sum is not known");
    // The flood goes on.
    for _ in 0..100 {
        assert_eq!(group.iterates(1, 2), 0);
        group.rests();
    }
    let status = &group.board.status()[0];
    assert!((95..=105).contains(&status.in_flight) && (190..=210).contains(&status.syn_rate), "{status:?}");
    // The half-open connections are forgotten after 64 s.
    for _ in 0..9900 {
        group.rests();
        assert_eq!(group.modes(), [Mode::Cookie; 2]);
    }
    assert_eq!((group.half_open(), group.board.status()[0].in_flight), (0, 0));
    for _ in 0..3 {
        group.rests();
    }
    assert_eq!(group.modes(), [Mode::Pass; 2]);
    let all: Vec<_> = switches.try_iter().map(|switch| (switch.to, switch.why)).collect();
    assert_eq!(all[1..], [(Mode::Pass, Reason::Calm { half_open: 0, in_flight: 0 })]);
}

#[test]
fn cookies_in_flight_alone_keep_it_from_leaving() {
    let auto = Auto { stay: Duration::ZERO, in_flight: Duration::from_millis(500), ..thresholds() };
    let mut group = WorkerGroup::new(1, auto);
    group.iterates(0, 100);
    for _ in 0..7000 {
        group.iterates(0, 1);
        group.rests();
    }
    assert_eq!((group.half_open(), group.modes()[0]), (0, Mode::Cookie), "after 70 s: 50 cookies are in flight");
    for _ in 0..60 {
        group.rests();
    }
    assert_eq!(group.modes(), [Mode::Pass]);
}

#[test]
fn a_rate_of_syns_is_enough_where_one_is_configured() {
    // Their half-open connections would not be.
    let auto = Auto { enter_half_open: 1000, enter_syn_rate: 1000, stay: Duration::ZERO, ..thresholds() };
    let mut group = WorkerGroup::new(2, auto);
    let switches = group.board.subscribe(8);
    for _ in 0..10 {
        group.iterates(0, 4);
        group.iterates(1, 5);
        group.rests();
    }
    assert_eq!(group.modes(), [Mode::Pass; 2], "900 a second");
    for _ in 0..10 {
        group.iterates(0, 10);
        group.rests();
    }
    assert!(matches!(switches.try_recv().unwrap().why, Reason::SynRate { syns: 900..=1100 }));
    group.iterates(0, 0);
    group.iterates(1, 0);
    assert_eq!(group.modes(), [Mode::Cookie; 2]);
}

#[test]
fn another_policy_is_followed_when_a_worker_has_it_and_what_is_engaged_stays_so() {
    let mut group = WorkerGroup::new(2, thresholds());
    let switches = group.board.subscribe(8);
    group.iterates(0, 100);
    group.rests();
    let next = Arc::new(Policy::new(&config(Auto { grace: Duration::from_secs(9), ..thresholds() }), START));
    group.board.adopt(next.targets().clone());
    group.rests();
    assert_eq!(group.iterates(1, 3), 0, "engaged under the former policy");
    for (proxy, _) in &mut group.workers {
        drop(proxy.set_policy(next.clone(), START));
    }
    (0..12).for_each(|_| group.rests());
    assert_eq!(group.modes(), [Mode::Cookie; 2]);
    assert_eq!(group.board.status()[0].counts.half_open, group.half_open());
    let cache = Arc::new(Policy::new(&Config { mode: Mode::Observe, ..config(thresholds()) }, START));
    group.board.adopt(cache.targets().clone());
    group.rests();
    let all: Vec<_> = switches.try_iter().map(|switch| (switch.from, switch.to)).collect();
    assert_eq!(all, [(Mode::Pass, Mode::Cookie), (Mode::Cookie, Mode::Observe)]);
}

#[test]
fn a_subscriber_that_does_not_listen_costs_nothing() {
    let group = WorkerGroup::new(1, thresholds());
    let (full, gone) = (group.board.subscribe(1), group.board.subscribe(1));
    drop(gone);
    let switch = Switch {
        target: TargetKey::EVERYBODY,
        from: Mode::Pass,
        to: Mode::Cookie,
        why: Reason::Policy,
        at: SystemTime::now(),
    };
    for _ in 0..3 {
        group.board.publish(&switch);
    }
    assert_eq!((full.len(), group.board.unheard()), (1, 2));
    assert_eq!(lock(&group.board.subscribers).len(), 1);
}
