//! Connections that the kernel forwards by itself: its programs beside the engine, segment by segment; and real kernels around them.

use std::env;
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::restart::StateDir;
use harness::{note, test};
use nix::sys::signal::Signal;
use pktio::{FastPath, XdpFastPath};
use tcpstate::{Event, Proxy, Side, Verdict, Words};
use unit::netns::{self, Appliance, Backend, Report, Rig, sockets, traffic};
use unit::random::Random;
use unit::script::{CWR, ECE, FIN, Host, Joined, Mode, PSH, RST, Seg, Terms, URG, World, ack, open_from, secrets};

/// Connections that the programs and the engine are compared on, unless the environment says how many segments there are to be.
const CONNECTIONS: u64 = 60;
/// Segments of each.
const SEGMENTS: u64 = 200;

/// What both ends have said so far, each in its own numbers.
struct Talk {
    joined: Joined,
    timestamps: bool,
    sent: [u32; 2],
    clock: [u32; 2],
}

impl Talk {
    /// A segment of the end on `side`: mostly what comes next, sometimes what never should.
    fn segment(&mut self, side: Side, random: &mut Random) -> Seg {
        let (own, other) = match side {
            Side::Lan => (0, 1),
            Side::Wan => (1, 0),
        };
        let stray = |random: &mut Random| match random.below(400) {
            0 => random.next() as u32,
            1 => 70_000 + random.below(1 << 27) as u32,
            2 => (random.below(1 << 28) as u32).wrapping_neg(),
            // About where a window ends, and what is believed beyond it.
            3 => 60_000 + random.below(250_000) as u32,
            4..8 => (random.below(20_000) as u32).wrapping_neg(),
            8..12 => random.below(30_000) as u32,
            _ => 0,
        };
        let len = if random.one_in(3) { 0 } else { random.pick(&[1, 2, 100, 1400, 1, 536]) };
        let seq_off = stray(random);
        let ack_off = match random.below(150) {
            // A little more than the other end has sent.
            0 => random.below(20_000) as u32,
            1 => stray(random),
            _ => 0,
        };
        let joined = &self.joined;
        let (seq, number) = match side {
            Side::Lan => (joined.s(self.sent[0]), joined.c(self.sent[1])),
            Side::Wan => (joined.c(self.sent[1]), joined.o(self.sent[0])),
        };
        // Mostly within what was sent.
        let behind = if random.one_in(4) { random.below(3000) as u32 } else { 0 };
        let mut seg =
            ack(seq.wrapping_add(seq_off), number.wrapping_sub(behind.min(self.sent[other])).wrapping_add(ack_off));
        if seq_off == 0 {
            self.sent[own] = self.sent[own].wrapping_add(len as u32);
        }
        seg = seg.payload(len).window(match random.below(24) {
            0..8 => random.next() as u16,
            8 => random.below(8) as u16,
            _ => 500,
        });
        self.clock[own] = self.clock[own].wrapping_add(match random.below(200) {
            0 => {
                // So much time must have passed for the program to believe it.
                thread::sleep(Duration::from_millis(6));
                5000
            }
            1..8 => 0u32.wrapping_sub(7),
            n => (n / 48) as u32,
        });
        if self.timestamps && !random.one_in(200) || random.one_in(200) {
            let mine = self.clock[own];
            let echo = match (side, random.below(12)) {
                (_, 0) => 0,
                // What the box said before the server did.
                (Side::Wan, 1) => self.joined.offered.ts().map_or(9, |(value, _)| value),
                (Side::Wan, _) => self.joined.ts_out(self.clock[0]),
                (Side::Lan, _) => self.clock[1],
            };
            seg = seg.nop().nop().ts(mine, echo);
            if random.one_in(100) {
                seg = seg.nop().nop().sack(&[(number.wrapping_add(5), number.wrapping_add(900))]);
            }
        } else if random.one_in(40) {
            seg = seg.nop().nop().nop().nop();
        }
        if random.one_in(4) {
            seg = seg.flags(PSH);
        }
        if random.one_in(100) {
            seg = seg.flags(random.pick(&[URG, ECE, CWR, ECE | CWR]));
        }
        if random.one_in(150) {
            seg = seg.tos(random.pick(&[1, 2, 3, 0x20]));
        }
        if random.one_in(400) {
            seg = seg.flags(random.pick(&[RST, FIN]));
        }
        seg
    }
}

/// What became of a frame: the verdict, and what came out.
type Fate = (Verdict, Vec<(Side, Vec<u8>)>);

/// The programs of one way down.
#[derive(Debug)]
enum Programs {
    Tc(FastPath),
    Xdp(XdpFastPath),
}

impl Programs {
    fn words(&self) -> &'static [AtomicU64] {
        match self {
            Programs::Tc(programs) => programs.words(),
            Programs::Xdp(programs) => programs.words(),
        }
    }

    fn run(&self, side: usize, frame: &[u8]) -> Option<Vec<u8>> {
        match self {
            Programs::Tc(programs) => programs.run(side, frame),
            Programs::Xdp(programs) => programs.run(side, frame),
        }
    }
}

/// The box whose connections are handed down: what goes up is the engine's.
fn with_kernel(world: &World, fast_path: &Programs, side: Side, frame: &[u8], down: &mut u64) -> Fate {
    let fate = match fast_path.run(side as usize, frame) {
        Some(out) => {
            *down += 1;
            (Verdict::Forward, vec![(side.other(), out)])
        }
        None => (world.inject(side, frame), world.discard()),
    };
    world.operate(|proxy, _| {
        for side in Side::BOTH {
            proxy.watch_leaving(side);
            proxy.has_left(side);
        }
    });
    fate
}

fn terms(random: &mut Random) -> Terms {
    Terms {
        mss: Some(1460),
        wscale: random.pick(&[None, Some(0), Some(7), Some(14), Some(2)]),
        sack: !random.one_in(3),
        ts: !random.one_in(3),
        window: random.pick(&[64_240, 8192, 65_535]),
    }
}

/// Connections of one pair of worlds, which differ in that one hands down.
struct Pair {
    worlds: [World; 2],
    hosts: [(Host, Host); 2],
}

impl Pair {
    fn new(mode: Mode, fast_path: &Programs) -> Pair {
        let [(one, ..), (other, ..)] = [(); 2].map(|()| mode.world_with(|config| config.adopt_grace = Duration::ZERO));
        one.operate(|proxy, _| {
            proxy.hand_down_in(Words::from(fast_path.words()));
        });
        let hosts = [&one, &other].map(|world| world.pair(0, 1, 40_000));
        Pair { worlds: [one, other], hosts }
    }
}

#[test]
fn the_programs_at_tc_do_to_a_segment_what_the_engine_does_or_hand_it_up() {
    let programs = FastPath::load(Proxy::words_to_hand_down(64), secrets().hash_keys());
    compare(&Programs::Tc(programs.expect("the verifier accepts the programs")));
}

#[test]
fn the_xdp_programs_do_to_a_segment_what_the_engine_does_or_hand_it_up() {
    let programs = XdpFastPath::load(Proxy::words_to_hand_down(64), secrets().hash_keys());
    compare(&Programs::Xdp(programs.expect("the verifier accepts the programs")));
}

/// Runs the programs beside the engine.
fn compare(fast_path: &Programs) {
    let segments = env::var("HANDED_DOWN_SEGMENTS").ok().and_then(|text| text.parse().ok());
    let connections = segments.map_or(CONNECTIONS, |segments: u64| segments / SEGMENTS);
    let (mut down, mut total, mut handed_down, mut handed_up) = ([0; 2], 0, 0, 0);
    for n in 0..connections {
        let mut random = Random(n);
        let mode = if n % 2 == 0 { Mode::V4 } else { Mode::V6 };
        fast_path.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let pair = Pair::new(mode, fast_path);
        let (theirs, ours) = (terms(&mut random), terms(&mut random));
        let isns = (random.next() as u32, random.next() as u32);
        let [joined, _] =
            pair.hosts.each_ref().map(|(client, server)| open_from(client, server, theirs, ours, isns.0, isns.1));
        let timestamps = joined.update.ts().is_some();
        let clock = [joined.stamps.1, joined.stamps.0];
        let mut talk = Talk { joined, timestamps, sent: [0; 2], clock };
        for step in 0..SEGMENTS {
            let side = random.pick(&[Side::Lan, Side::Wan]);
            let clock = talk.clock;
            let seg = talk.segment(side, &mut random);
            let host = if side == Side::Lan { &pair.hosts[0].1 } else { &pair.hosts[0].0 };
            let mut frame = host.frame(&seg);
            if talk.clock[side as usize].wrapping_sub(clock[side as usize]) < 10 && random.one_in(60) {
                // Damaged on the way.
                let at = frame.len() - 1;
                frame[at] ^= 1 << random.below(8);
            }
            let [one, other] = &pair.worlds;
            let kernel = with_kernel(one, fast_path, side, &frame, &mut down[side as usize]);
            let engine = (other.inject(side, &frame), other.discard());
            total += 1;
            assert_eq!(kernel, engine, "connection {n}, segment {step}: {side:?} {seg}, {theirs:?} {ours:?}");
            if random.one_in(8) {
                let pause = Duration::from_millis(random.pick(&[1, 30, 200, 200]));
                pair.worlds.iter().for_each(|world| world.tick(pause));
                let [one, other] = pair.worlds.each_ref().map(World::discard);
                assert_eq!(one, other, "connection {n}, behind segment {step}");
            }
        }
        handed_down += pair.worlds[0].happened(Event::HandedDown);
        handed_up += pair.worlds[0].happened(Event::HandedUp);
    }
    note!("of {total} segments the kernel forwarded {down:?}; handed down {handed_down} times, up {handed_up} times");
    assert!(down.iter().all(|&down| down * 10 > total), "hardly anything is forwarded: {down:?} of {total}");
    assert!(handed_up > connections / 2, "{handed_up}");
}

/// The configuration of a box that hands connections down.
fn handing_down() -> String {
    format!("fast_path = {}; {}", env::var("FP").unwrap_or("tc".into()), netns::CACHE_ON)
}

/// What a box between these hosts counted under a name, once it has ended.
fn counted(report: &Report, name: &str) -> u64 {
    report.figure(name).unwrap_or_else(|| panic!("{name} is not in the log:\n{}", report.log.join("\n")))
}

/// So many bytes go to and fro over a connection of each family, opened from each side: no host has cause to complain, and the kernel forwards them.
fn forwards_every_way(rig: &Rig, proxy: Appliance, bytes: u64) {
    rig.exchange_every_way(bytes);
    let report = proxy.stop();
    assert!(report.status.success());
    let handed_down = counted(&report, "handed-down");
    assert!(handed_down >= 4, "{handed_down} times:\n{}", report.log.join("\n"));
    // On a loaded machine segments are lost, and what comes up then stays for a while.
    let forwarded = counted(&report, "forwarded by the kernel, bytes");
    assert!(forwarded > 4 << 20, "{forwarded} bytes:\n{}", report.log.join("\n"));
}

#[test]
fn established_connections_go_on_in_the_kernel_and_no_host_sees_a_difference() {
    for default_offloads in [true, false] {
        let rig = Rig::new();
        let rig = if default_offloads { rig.with_default_offloads(false) } else { rig };
        let proxy = Appliance::start_on(&rig, &[Rig::LAN, Rig::WAN].map(String::from), &handing_down(), &[]);
        forwards_every_way(&rig, proxy, 32 << 20);
    }
}

#[test]
fn every_byte_arrives_however_often_connections_go_down_and_up() {
    let rounds: u32 = env::var("HANDED_DOWN_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    const CONNECTIONS: u64 = 12;
    let rig = Rig::new().with_default_offloads(false);
    let proxy = Appliance::start(&rig, Backend::Packet, &handing_down());
    let over = &AtomicBool::new(false);
    // Windows so small that no ring overflows, in buffers that hold them however small the segments are: what is missing has been overtaken.
    let bound = |stream: &TcpStream| {
        sockets::bound_window(stream, 32 << 10)?;
        sockets::set_receive_buffer(stream, 8 << 20)
    };
    let service =
        rig.server.serve(netns::SERVER_V4, 0, move |stream| bound(&stream).and_then(|()| traffic::echo(stream)));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|seed| {
                let stream = rig.client.connect(service.address).expect("connecting");
                bound(&stream).expect("a window");
                let writer = stream.try_clone().expect("another handle");
                let numbers = scope.spawn(move || {
                    let mut sent = 0;
                    while !over.load(Ordering::Relaxed) {
                        traffic::send(&writer, seed, 1 << 16).expect("sending");
                        sent += 1;
                    }
                    writer.shutdown(Shutdown::Write).expect("finishing");
                    sent
                });
                let reader = stream.try_clone().expect("another handle");
                let got = scope.spawn(move || {
                    let mut got = 0;
                    while traffic::receive(&reader, seed, Some(1 << 16)).is_ok() {
                        got += 1;
                    }
                    got
                });
                (stream, numbers, got)
            })
            .collect();
        for round in 0..2 * rounds {
            // With options in their headers the segments go up; without, they go down again after a while.
            clients.iter().for_each(|(stream, ..)| sockets::set_ip_options(stream, round % 2 == 0).expect("options"));
            thread::sleep(Duration::from_millis(if round % 2 == 0 { 20 } else { 160 }));
        }
        over.store(true, Ordering::Relaxed);
        for (_, numbers, got) in clients {
            let (sent, got) = (numbers.join().expect("a writer"), got.join().expect("a reader"));
            assert_eq!(sent, got, "every byte has come back");
        }
    });
    let report = proxy.stop();
    let (downs, ups) = (counted(&report, "handed-down"), counted(&report, "handed-up"));
    note!("handed down {downs} times, up {ups} times");
    assert!(ups >= u64::from(rounds) * CONNECTIONS / 2, "{ups} times");
    assert!(downs >= u64::from(rounds) * CONNECTIONS / 2, "{downs} times");
}

/// A rig whose hosts take what an XDP program redirects to their veth.
fn rig_for_xdp() -> Rig {
    let rig = Rig::of_one_queue();
    rig.client.sh("ethtool -K c0 gro on");
    rig.server.sh("ethtool -K s0 gro on");
    rig
}

#[test]
fn the_xdp_program_forwards_established_connections_and_no_host_sees_a_difference() {
    let rig = rig_for_xdp();
    let proxy = Appliance::start(&rig, Backend::Driver, &format!("fast_path = xdp; {}", netns::CACHE_ON));
    forwards_every_way(&rig, proxy, 8 << 20);
}

/// The file system of BPF, mounted where the processes of a test find it.
struct BpfFileSystem(PathBuf);

impl BpfFileSystem {
    fn new() -> BpfFileSystem {
        let place = harness::leftovers::file("bpf");
        std::fs::create_dir_all(&place).expect("a directory");
        let status = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&place).status().expect("mount runs");
        assert!(status.success(), "the file system of BPF cannot be mounted");
        BpfFileSystem(place)
    }
}

impl Drop for BpfFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn connections_that_are_handed_down_go_on_while_the_process_is_killed_and_started_again() {
    const SECOND: Duration = Duration::from_secs(1);
    let _file_system = BpfFileSystem::new();
    for (way, backend) in [("tc", Backend::Packet), ("xdp", Backend::Driver)] {
        let (rig, state) = (rig_for_xdp(), StateDir::new());
        let arguments = state.arguments();
        let config = format!("fast_path = {way}; conntablesize = 4096; learnhashsize = 256;");
        let start = || Appliance::start_with(&rig, backend, &config, &[&arguments[0], &arguments[1]]);
        let proxy = start();
        let service = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
        let stream = rig.client.connect(service.address).expect("connecting");
        stream.set_nodelay(true).expect("a live socket");
        let (over, answers, longest) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            let pinging = scope.spawn(|| {
                let mut seed = 0;
                while !over.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    traffic::send(&stream, seed, 100).expect("sending");
                    traffic::receive(&stream, seed, Some(100)).expect("the same bytes come back");
                    longest.fetch_max(begin.elapsed().as_millis() as u64, Ordering::Relaxed);
                    answers.fetch_add(1, Ordering::Relaxed);
                    seed += 1;
                    thread::sleep(Duration::from_millis(2));
                }
            });
            thread::sleep(SECOND / 2);
            longest.store(0, Ordering::Relaxed);
            drop(proxy.end(Signal::SIGKILL));
            let before = answers.load(Ordering::Relaxed);
            thread::sleep(SECOND);
            let without = answers.load(Ordering::Relaxed) - before;
            let pause = longest.swap(0, Ordering::Relaxed);
            note!("{way}: {without} answers in a second without a process, the slowest after {pause} ms");
            // What came before it was killed, or a loaded machine, may have kept one waiting.
            assert!(without > 20, "{way}: {without} answers without a process");
            let proxy = start();
            thread::sleep(SECOND / 2);
            note!("{way}: the slowest answer over the next start came after {} ms", longest.load(Ordering::Relaxed));
            over.store(true, Ordering::Relaxed);
            pinging.join().expect("the connection goes on");
            stream.shutdown(Shutdown::Write).expect("a live socket");
            traffic::expect_end(&stream).expect("both ends finish");
            let report = proxy.stop();
            let handed_down = counted(&report, "handed-down");
            assert!(handed_down >= 1, "{way}: it is not handed down again:\n{}", report.log.join("\n"));
        });
        drop(stream);
    }
}
