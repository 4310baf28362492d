//! Loads on ports in memory, without a box in between.

use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use pktio::memory::{self, MemoryWire};
use pktio::{Batch, Pool, Port, PortStatistics};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tcpstate::wire::Vlan;
use tcpstate::{Head, PerSide, Side};
use tools::flood_template::{FloodTemplate, Kind, Sources, Target};
use tools::load_runner::{Load, LoadRunner, Outbox};
use tools::pace::Pace;
use tools::pattern::{Flood, Pattern, Sink, test_connection};
use tools::tcp::Terms;
use tools::transfer_check::{Plan, TransferCheck};

static NEVER: AtomicBool = AtomicBool::new(false);

/// A runner with one port; the test reads the wire after the load has ended.
fn runner() -> (LoadRunner, MemoryWire) {
    let (port, wire) = memory::pair(4096);
    (LoadRunner { ports: vec![Box::new(port)], pool: Pool::heap(8192, 2048, 256) }, wire)
}

fn run(runner: &mut LoadRunner, load: &mut impl Load, seconds: u64) {
    runner.run(load, Instant::now(), Duration::from_secs(seconds), &NEVER).expect("nothing to wait for can fail");
    assert_eq!(runner.pool.idle(), runner.pool.total(), "no frame is lost");
}

/// Runs a sink on `frames`, and returns what it counted.
fn count(frames: Vec<Vec<u8>>) -> tools::pattern::Counted {
    let (mut runner, mut wire) = runner();
    let count = frames.len() as u64;
    assert!(frames.iter().all(|frame| wire.push(frame)));
    let mut sink = Sink::new(Duration::from_secs(5), Some(count));
    run(&mut runner, &mut sink, 5);
    assert_eq!(runner.passed().received, count);
    sink.received().clone()
}

#[test]
fn the_pattern_is_that_of_the_reference() {
    let (mut runner, mut wire) = runner();
    let macs = [[2, 0, 0, 0, 0, 4], [2, 0, 0, 0, 0, 1]];
    let pace = Pace::new(None, Some(6 * 90), Duration::from_secs(5));
    let mut pattern = Pattern::new(90..180, &[1514, 1514, 64], macs, Vlan::default(), pace);
    run(&mut runner, &mut pattern, 5);
    let frames: Vec<Vec<u8>> = std::iter::from_fn(|| wire.pop()).collect();
    assert_eq!(frames.len(), 540);
    for (n, frame) in frames.iter().enumerate() {
        let [lan, wan] = test_connection(90 + (n as u32 / 3) % 90);
        assert_eq!(frame.len(), [1514, 1514, 64][n % 3]);
        assert_eq!((frame[..6] == macs[1], frame[6..12] == macs[0]), (true, true));
        let ip = |at: usize| IpAddr::from([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        assert_eq!((ip(26), ip(30)), (lan.0, wan.0));
        assert_eq!(frame[34..38], [12345u16.to_be_bytes(), 54321u16.to_be_bytes()].concat());
    }
    let counted = count(frames);
    assert_eq!((counted.ack, counted.wrong, counted.bytes), (540, 0, 180 * (1514 + 1514 + 64)));
}

#[test]
fn a_flood_has_its_kind_and_network_and_depends_on_its_seed() {
    for (kind, to, from) in [(Kind::Syn, "10.0.0.1", "192.0.2.0/24"), (Kind::Udp, "fd00::1", "2001:db8::/64")] {
        let flood = || {
            let (mut runner, mut wire) = runner();
            let target =
                Target { address: to.parse().unwrap(), port: 80, mac: [2; 6], from_mac: [4; 6], vlan: Some(5) };
            let template = FloodTemplate::new(kind, target, from.parse().unwrap(), false, SmallRng::seed_from_u64(9));
            let mut flood = Flood::new(template, Pace::new(None, Some(500), Duration::from_secs(5)), Duration::ZERO);
            run(&mut runner, &mut flood, 5);
            std::iter::from_fn(|| wire.pop()).collect::<Vec<_>>()
        };
        let frames = flood();
        assert_eq!(frames.len(), 500);
        assert_eq!(frames, flood());
        let sources: Sources = from.parse().unwrap();
        for frame in &frames {
            assert_eq!(frame[12..16], [0x81, 0, 0, 5]);
            let source = match sources.network() {
                IpAddr::V4(_) => IpAddr::from(<[u8; 4]>::try_from(&frame[30..34]).unwrap()),
                IpAddr::V6(_) => IpAddr::from(<[u8; 16]>::try_from(&frame[26..42]).unwrap()),
            };
            assert!(sources.contains(source), "{source}");
        }
        let counted = count(frames);
        assert_eq!((counted.syn, counted.other), if kind == Kind::Syn { (500, 0) } else { (0, 500) });
        assert_eq!(counted.wrong, 0);
    }
}

/// Connects two ports. Every `spoil`th frame has its payload changed.
struct Crossed {
    near: MemoryWire,
    far: MemoryWire,
    spoil: u64,
    passed: u64,
}

impl Crossed {
    fn carry(&mut self) {
        let Crossed { near, far, spoil, passed } = self;
        let mut carry = |from: &mut MemoryWire, to: &mut MemoryWire| {
            while let Some(mut frame) = from.pop() {
                *passed += 1;
                if *spoil > 0 && *passed % *spoil == 0 {
                    // The checksum still holds, so only a comparison of the content can find this.
                    spoil_stream(&mut frame);
                }
                to.push(&frame);
            }
        };
        carry(near, far);
        carry(far, near);
    }
}

/// Swaps two bytes of the payload, which leaves the checksums correct.
fn spoil_stream(frame: &mut [u8]) {
    if frame.len() > 200 {
        frame.swap(100, 102);
    }
}

/// A transfer check that moves the frames between its ports after each iteration.
struct Carried {
    load: TransferCheck,
    wire: Crossed,
}

impl Load for Carried {
    fn receive(&mut self, port: usize, head: &mut Head<'_>, now: Duration, out: &mut Outbox<'_>) {
        self.load.receive(port, head, now, out);
    }
    fn send(&mut self, now: Duration, out: &mut Outbox<'_>) {
        self.load.send(now, out);
        self.wire.carry();
    }
    fn next(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
    fn is_over(&self, now: Duration) -> bool {
        self.load.is_over(now)
    }
}

fn transfer(plan: Plan, spoil: u64) -> tools::transfer_check::TransferReport {
    let ((lan, near), (wan, far)) = (memory::pair(1024), memory::pair(1024));
    let mut runner = LoadRunner { ports: vec![Box::new(lan), Box::new(wan)], pool: Pool::heap(8192, 2048, 256) };
    let load = TransferCheck::new(plan, 10_000.0, SmallRng::seed_from_u64(1));
    let mut carried = Carried { load, wire: Crossed { near, far, spoil, passed: 0 } };
    run(&mut runner, &mut carried, 20);
    carried.load.outcome()
}

#[test]
fn both_endpoints_receive_all_that_is_sent() {
    for (v6, opener, sends) in [(false, Side::Wan, [true, true]), (true, Side::Lan, [true, false])] {
        let plan = Plan {
            flows: 50,
            opener,
            sends: PerSide::new(sends[0], sends[1]),
            bytes: Some(100_000),
            until: Duration::from_secs(10),
            terms: Terms::linux(1460),
            macs: PerSide::new([2; 6], [4; 6]),
            v6,
            vlan: Vlan::default(),
        };
        let outcome = transfer(plan, 0);
        assert_eq!((outcome.opened, outcome.finished, outcome.failed, outcome.wrong), (50, 50, 0, 0));
        assert_eq!((outcome.bytes_to_wan, outcome.bytes_to_lan), (5_000_000, if sends[1] { 5_000_000 } else { 0 }));
        assert_eq!((outcome.handshake.count(), outcome.opening.count()), (50, 50));
        // A byte in the wrong place is found, although the checksums hold.
        assert!(transfer(plan, 97).wrong > 0);
    }
}

/// A port that refuses frames at first.
struct Refusing {
    refusals: u32,
    port: memory::MemoryPort,
}

impl Port for Refusing {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        self.port.receive(batch, max, pool)
    }
    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        if self.refusals > 0 {
            self.refusals -= 1;
            return 0;
        }
        self.port.transmit(batch, pool)
    }
    fn flush(&mut self, pool: &mut Pool) {
        self.port.flush(pool);
    }
    fn poll_fd(&self) -> Option<std::os::fd::RawFd> {
        None
    }
    fn capabilities(&self) -> pktio::Capabilities {
        self.port.capabilities()
    }
    fn statistics(&self) -> PortStatistics {
        self.port.statistics()
    }
}

#[test]
fn frames_refused_by_a_full_device_are_sent_later() {
    let (port, mut wire) = memory::pair(4096);
    let port = Box::new(Refusing { refusals: 20, port });
    let mut runner = LoadRunner { ports: vec![port], pool: Pool::heap(256, 2048, 256) };
    let pace = Pace::new(None, Some(1000), Duration::from_secs(5));
    let mut pattern = Pattern::new(0..10, &[64], [[2; 6], [4; 6]], Vlan::default(), pace);
    run(&mut runner, &mut pattern, 5);
    assert_eq!(std::iter::from_fn(|| wire.pop()).count(), 1000);
}
