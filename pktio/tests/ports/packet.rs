//! The AF_PACKET port between two veth pairs, in namespaces of this test's own: what goes through must be what a wire
//! would have carried, whatever the end hosts leave undone.
//!
//! ```text
//!  lan:l0 ──── l1:bridge:w1 ──── w0:wan
//! ```
//!
//! Needs root.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use harness::{leftovers, note, test};
use pktio::impair::{Impair, Impairment};
use pktio::packet::{PacketOptions, PacketPort};
use pktio::{Batch, Pool, Port, PortStatistics, wait};

const LIMIT: Duration = Duration::from_secs(20);

/// Three namespaces and the two links between them; removed when dropped.
struct World {
    name: String,
}

fn run(line: &str) -> bool {
    let mut words = line.split_whitespace();
    Command::new(words.next().expect("a command"))
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status()
        .is_ok_and(|status| status.success())
}

fn must(line: &str) {
    assert!(run(line), "{line}");
}

impl World {
    fn new(mtu: u32) -> World {
        harness::needs_root();
        let world = World { name: leftovers::name("packet") };
        {
            let _making = leftovers::making();
            for role in ["lan", "bridge", "wan"] {
                must(&format!("ip netns add {}", world.namespace(role)));
            }
        }
        for (end, ours, side, host) in [("l0", "l1", "lan", 1), ("w0", "w1", "wan", 2)] {
            let (there, here) = (world.namespace(side), world.namespace("bridge"));
            let peer = format!("mtu {mtu} peer name {ours} mtu {mtu} netns {here}");
            must(&format!(
                "ip -n {there} link add {end} mtu {mtu} type veth {}",
                peer.trim_start_matches(&format!("mtu {mtu} "))
            ));
            must(&format!("ip -n {here} link set {ours} mtu {mtu} addrgenmode none"));
            must(&format!("ip -n {here} link set {ours} up"));
            must(&format!("ip -n {there} link set {end} addrgenmode none up"));
            must(&format!("ip -n {there} addr add 10.9.0.{host}/24 dev {end}"));
            must(&format!("ip -n {there} addr add fd09::{host}/64 dev {end} nodad"));
        }
        world
    }

    fn namespace(&self, role: &str) -> String {
        format!("{}-{role}", self.name)
    }

    /// Runs `work` in a thread that lives in the namespace.
    fn within<T: Send + 'static>(&self, role: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = File::open(format!("/run/netns/{}", self.namespace(role))).unwrap();
        thread::spawn(move || {
            // SAFETY: a call without pointers; it moves this thread alone.
            assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            work()
        })
    }

    /// Turns transmit offloads off on both end hosts.
    fn offloads_off(&self) {
        for (side, end) in [("lan", "l0"), ("wan", "w0")] {
            must(&format!("ip netns exec {} ethtool -K {end} tx off gso off tso off", self.namespace(side)));
        }
    }

    fn bridge(&self, options: PacketOptions, frames: usize, buffer: usize) -> Bridge {
        self.slow_bridge(options, frames, buffer, Duration::ZERO)
    }

    /// A bridge through which every frame takes `delay`.
    fn slow_bridge(&self, options: PacketOptions, frames: usize, buffer: usize, delay: Duration) -> Bridge {
        let stop = Arc::new(AtomicBool::new(false));
        let ready = Arc::new(AtomicBool::new(false));
        let (stopped, opened) = (stop.clone(), ready.clone());
        let thread = self.within("bridge", move || {
            let mut ports = ["l1", "w1"].map(|name| {
                let port = PacketPort::open(name, &options).unwrap();
                let late = Impairment { delay, ..Impairment::default() };
                Impair::new(port, 1).receiving(late).real_time().unwrap()
            });
            opened.store(true, Ordering::Release);
            let mut pool = Pool::heap(frames, buffer, 64);
            let mut batch = Batch::new();
            while !stopped.load(Ordering::Acquire) {
                for from in 0..2 {
                    ports[from].receive(&mut batch, 64, &mut pool);
                    ports[1 - from].transmit(&mut batch, &mut pool);
                    ports[1 - from].flush(&mut pool);
                    batch.drain(..).for_each(|frame| pool.put(frame));
                }
                wait([&ports[0], &ports[1]], Some(Duration::from_millis(5))).unwrap();
            }
            for _ in 0..200 {
                ports.iter_mut().for_each(|port| port.flush(&mut pool));
            }
            let ports = ports.map(|port| port.into_inner(&mut pool));
            assert_eq!(pool.idle(), pool.total(), "a frame was lost");
            ports.map(|port| port.statistics())
        });
        let begin = Instant::now();
        while !ready.load(Ordering::Acquire) && begin.elapsed() < LIMIT {
            thread::sleep(Duration::from_millis(1));
        }
        Bridge { stop, thread: Some(thread) }
    }

    fn ping(&self, to: &str) {
        let replies = run(&format!("ip netns exec {} ping -q -c 20 -i 0.02 -W 1 {to}", self.namespace("lan")));
        assert!(replies, "no ping got through to {to}");
    }

    /// Sends `megabytes` from the WAN to the LAN over TCP and the same back, and compares every byte.
    fn transfer(&self, address: &'static str, megabytes: usize) -> Duration {
        let begin = Instant::now();
        let listening = Arc::new(AtomicBool::new(false));
        let ready = listening.clone();
        let server = self.within("lan", move || {
            let listener = TcpListener::bind(address).unwrap();
            ready.store(true, Ordering::Release);
            // Bounded: the client connects or fails within its own limit.
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            stream.set_write_timeout(Some(LIMIT)).unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        });
        let client = self.within("wan", move || {
            while !listening.load(Ordering::Acquire) && begin.elapsed() < LIMIT {
                thread::sleep(Duration::from_millis(1));
            }
            let bytes: Vec<u8> =
                (0..megabytes << 20).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
            let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), LIMIT).expect("the connection");
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            stream.set_write_timeout(Some(LIMIT)).unwrap();
            stream.write_all(&bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            assert!(back == bytes, "what came back differs");
        });
        client.join().unwrap();
        server.join().unwrap();
        begin.elapsed()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for role in ["lan", "bridge", "wan"] {
            run(&format!("ip netns del {}", self.namespace(role)));
        }
    }
}

/// A plain bridge in a thread: everything from one port goes out of the other.
struct Bridge {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<[PortStatistics; 2]>>,
}

impl Bridge {
    fn stop(mut self) -> [PortStatistics; 2] {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Receives until `count` frames that `wanted` accepts have come, or a second is over; returns their bytes.
fn collect(port: &mut PacketPort, pool: &mut Pool, count: usize, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let (mut found, mut batch) = (Vec::new(), Batch::new());
    let begin = Instant::now();
    while found.len() < count && begin.elapsed() < Duration::from_secs(1) {
        port.receive(&mut batch, 64, pool);
        for frame in batch.drain(..) {
            let mut bytes = vec![0; frame.total()];
            frame.copy_to(&mut bytes);
            pool.put(frame);
            if wanted(&bytes) {
                found.push(bytes);
            }
        }
        wait([&*port, &*port], Some(Duration::from_millis(10))).unwrap();
    }
    found
}

fn send(port: &mut PacketPort, pool: &mut Pool, frames: &[Vec<u8>]) {
    for bytes in frames {
        let mut batch = Batch::new();
        let mut frame = pool.take().unwrap();
        let room = frame.capacity() - frame.start();
        let (first, mut rest) = bytes.split_at(bytes.len().min(room));
        frame.fill(first);
        while !rest.is_empty() {
            let mut further = pool.take().unwrap();
            let (part, more) = rest.split_at(rest.len().min(room));
            further.fill(part);
            frame.append(further);
            rest = more;
        }
        batch.push(frame);
        let begin = Instant::now();
        while port.transmit(&mut batch, pool) == 0 && begin.elapsed() < LIMIT {}
        port.flush(pool);
    }
    let begin = Instant::now();
    while pool.idle() < pool.total() && begin.elapsed() < LIMIT {
        port.flush(pool);
    }
}

/// A UDP or TCP frame over IPv4 of a flow given by addresses and ports, with no valid checksum.
fn flow(protocol: u8, from: (u8, u16), to: (u8, u16)) -> Vec<u8> {
    let mut bytes =
        vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, 0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    bytes.extend([10, 9, 1, from.0, 10, 9, 1, to.0]);
    bytes.extend(from.1.to_be_bytes());
    bytes.extend(to.1.to_be_bytes());
    bytes.resize(60, 0);
    bytes[46] = 0x50;
    bytes
}

const FAR: Duration = Duration::from_secs(12);

#[test]
fn tcp_passes_while_the_end_hosts_leave_checksums_and_segmentation_to_us() {
    let world = World::new(1500);
    let bridge = world.bridge(PacketOptions::default(), 4096, 2048);
    world.ping("10.9.0.2");
    world.ping("fd09::2");
    let v4 = world.transfer("10.9.0.1:7001", 16);
    let v6 = world.transfer("[fd09::1]:7002", 16);
    let [lan, wan] = bridge.stop();
    note!("32 MiB each: IPv4 {v4:?}, IPv6 {v6:?}\n{lan:?}\n{wan:?}");
    assert!(v4 < FAR && v6 < FAR, "so slow that super-frames must have been lost: {v4:?}, {v6:?}");
    assert_eq!((lan.truncated, wan.truncated), (0, 0));
    assert_eq!((lan.transmit_errors, wan.transmit_errors), (0, 0));
    assert!(lan.received > 20_000, "super-frames were not cut: {} frames", lan.received);
}

#[test]
fn tcp_passes_without_offloads() {
    let world = World::new(1500);
    world.offloads_off();
    let bridge = world.bridge(PacketOptions::default(), 4096, 2048);
    world.ping("10.9.0.2");
    let took = world.transfer("10.9.0.1:7003", 16);
    let [lan, wan] = bridge.stop();
    note!("32 MiB: {took:?}\n{lan:?}\n{wan:?}");
    assert!(took < FAR);
    assert_eq!((lan.truncated, wan.truncated), (0, 0));
}

#[test]
fn jumbo_frames_pass_in_chains_of_small_buffers() {
    let world = World::new(9000);
    let bridge = world.bridge(PacketOptions::default(), 4096, 2048);
    let took = world.transfer("10.9.0.1:7004", 16);
    let [lan, wan] = bridge.stop();
    note!("32 MiB at an MTU of 9000: {took:?}\n{lan:?}\n{wan:?}");
    assert!(took < FAR);
    assert_eq!((lan.truncated, wan.truncated), (0, 0));
    assert!(wan.received_bytes / wan.received > 2048, "no frame was longer than a buffer");
}

#[test]
fn a_delay_of_the_bridge_is_the_delay_of_the_ping() {
    let world = World::new(1500);
    let bridge = world.slow_bridge(PacketOptions::default(), 1024, 2048, Duration::from_millis(40));
    let output = Command::new("ip")
        .args(["netns", "exec", &world.namespace("lan"), "ping", "-q", "-c", "10", "-i", "0.1", "-W", "2", "10.9.0.2"])
        .output()
        .unwrap();
    bridge.stop();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // rtt min/avg/max/mdev = 80.1/80.3/…
    let shortest = text.split(" = ").nth(1).and_then(|rest| rest.split('/').next()?.parse::<f64>().ok());
    let shortest = shortest.unwrap_or_else(|| panic!("{text}"));
    assert!((80.0..120.0).contains(&shortest), "{text}");
}

#[test]
fn tags_survive_the_kernel_s_stripping() {
    let world = World::new(1500);
    let bridge = world.bridge(PacketOptions::default(), 256, 2048);
    let plain = flow(17, (1, 9), (2, 9));
    let tagged = |tags: &[[u8; 4]], mark: u8| {
        let mut bytes = plain[..12].to_vec();
        bytes.extend(tags.concat());
        bytes.extend(&plain[12..]);
        *bytes.last_mut().unwrap() = mark;
        bytes
    };
    let sent = vec![
        tagged(&[], 0xa0),
        tagged(&[[0x81, 0x00, 0x60, 0x07]], 0xa1),
        tagged(&[[0x88, 0xa8, 0x00, 0x07]], 0xa2),
        tagged(&[[0x88, 0xa8, 0x00, 0x07], [0x81, 0x00, 0x2f, 0xff]], 0xa3),
    ];
    let wan = world.within("wan", || PacketPort::open("w0", &PacketOptions::default()).unwrap()).join().unwrap();
    let lan = world.within("lan", || PacketPort::open("l0", &PacketOptions::default()).unwrap()).join().unwrap();
    let (mut lan, mut wan, mut pool) = (lan, wan, Pool::heap(64, 2048, 64));
    send(&mut lan, &mut pool, &sent);
    let got = collect(&mut wan, &mut pool, 4, |bytes| bytes.ends_with(&[0, 0xa0]) || bytes.last().unwrap() >> 4 == 0xa);
    assert_eq!(got, sent);
    bridge.stop();
}

#[test]
fn what_is_sent_is_not_heard_and_what_is_heard_is_counted() {
    let world = World::new(9000);
    let open = |role: &str, name: &'static str| {
        world.within(role, move || PacketPort::open(name, &PacketOptions::default()).unwrap()).join().unwrap()
    };
    let (mut near, mut far) = (open("bridge", "l1"), open("lan", "l0"));
    let mut pool = Pool::heap(256, 2048, 64);
    let mut frames: Vec<Vec<u8>> = (0..100).map(|i| flow(17, (1, i), (2, i))).collect();
    frames.push([flow(17, (1, 0), (2, 0)), vec![7; 9014 - 60]].concat());
    send(&mut near, &mut pool, &frames);
    let is_ours = |bytes: &[u8]| bytes.starts_with(&[2, 0, 0, 0, 0, 1]);
    assert_eq!(collect(&mut far, &mut pool, 102, is_ours), frames);
    assert!(collect(&mut near, &mut pool, 1, is_ours).is_empty());
    assert_eq!(near.statistics().sent, 101);
    assert_eq!(near.statistics().sent_bytes, frames.iter().map(|frame| frame.len() as u64).sum::<u64>());
    // One byte beyond what the interface takes is an error of that frame, and of no other.
    send(&mut near, &mut pool, &[[flow(17, (1, 0), (2, 0)), vec![7; 9015 - 60]].concat(), flow(17, (1, 7), (2, 7))]);
    assert_eq!((near.statistics().sent, near.statistics().transmit_errors), (102, 1));
    assert_eq!(pool.idle(), pool.total());
}

#[test]
fn two_tags_or_an_outer_802_1ad_tag_at_full_length_need_eight_bytes_more_mtu() {
    const TAGS: [&[u8]; 4] = [&[], &[0x81, 0, 0, 7], &[0x88, 0xa8, 0, 7], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 9]];
    for (mtu, payload, refused) in [(1500, 1500, 2), (1508, 1500, 0), (9008, 9000, 0)] {
        let world = World::new(mtu);
        let sender = world.within("bridge", move || {
            let (mut pool, mut port) =
                (Pool::heap(16, 2048, 64), PacketPort::open("l1", &PacketOptions::default()).unwrap());
            let addresses: &[u8] = &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
            let rest: Vec<u8> = [0x88, 0xb5].into_iter().chain((0..payload).map(|i| (i % 251) as u8)).collect();
            let frames: Vec<Vec<u8>> = TAGS.iter().map(|tags| [addresses, tags, &rest].concat()).collect();
            send(&mut port, &mut pool, &frames);
            assert_eq!(pool.idle(), pool.total(), "a frame was lost");
            port.statistics()
        });
        let statistics = sender.join().unwrap();
        assert_eq!((statistics.transmit_errors, statistics.sent), (refused, 4 - refused), "an MTU of {mtu}");
    }
}

#[test]
fn a_ring_that_overflows_counts_every_frame_it_lost() {
    let world = World::new(1500);
    let options = PacketOptions { ring_frames: 64, transmit_frames: 8, ..PacketOptions::default() };
    let open = |role: &str, name: &'static str| {
        let options = options.clone();
        world.within(role, move || PacketPort::open(name, &options).unwrap()).join().unwrap()
    };
    let (mut near, mut far) = (open("bridge", "l1"), open("lan", "l0"));
    let mut pool = Pool::heap(512, 2048, 64);
    // Long, so that the transmit queue of 8 is seen full: the batch keeps what does not fit.
    let frames: Vec<Vec<u8>> = (0..400).map(|i| flow(17, (1, i), (2, i))).collect();
    send(&mut near, &mut pool, &frames);
    let got = collect(&mut far, &mut pool, 400, |bytes| bytes.starts_with(&[2, 0, 0, 0, 0, 1]));
    let statistics = far.statistics();
    assert!(statistics.receive_full > 0);
    assert_eq!(near.statistics().sent, 400);
    // Other frames may have come (the end host speaks too), so this is a bound and not an equation.
    assert!(got.len() as u64 + statistics.receive_full >= 400, "{} and {statistics:?}", got.len());
    assert_eq!(got[..], frames[..got.len()], "the first ones are kept, in order");
    let mut batch: Batch = (0..40).map(|_| pool.take().unwrap()).collect();
    batch.iter_mut().for_each(|frame| frame.fill(&frames[0]));
    let queued = near.transmit(&mut batch, &mut pool);
    assert_eq!((queued, batch.len(), near.statistics().transmit_full), (8, 32, 1));
    near.flush(&mut pool);
    batch.drain(..).for_each(|frame| pool.put(frame));
    assert_eq!(pool.idle(), pool.total());
}

#[test(long)]
fn both_directions_of_a_flow_come_to_the_same_queue() {
    [2, 4].into_iter().for_each(both_directions_come_to_the_same_of);
}

/// As many queues.
fn both_directions_come_to_the_same_of(queues: usize) {
    let world = World::new(1500);
    let open = |role: &str, name: &'static str, queues| {
        let port = move || PacketPort::open_queues(name, queues, &PacketOptions::default()).unwrap();
        world.within(role, port).join().unwrap()
    };
    let (mut lan, mut wan) = (open("bridge", "l1", queues), open("bridge", "w1", queues));
    let (mut server, mut client) = (open("lan", "l0", 1), open("wan", "w0", 1));
    let mut pool = Pool::heap(1024, 2048, 64);
    let flows: Vec<_> =
        (0..96u16).map(|i| (if i % 2 == 0 { 6 } else { 17 }, (i as u8, 40_000 + 7 * i), (200, 80))).collect();
    let outward: Vec<_> = flows.iter().map(|(protocol, a, b)| flow(*protocol, *a, *b)).collect();
    let inward: Vec<_> = flows.iter().map(|(protocol, a, b)| flow(*protocol, *b, *a)).collect();
    send(&mut client[0], &mut pool, &outward);
    // In the other order, so that dealing them out in turn would not pass for a hash.
    let backwards: Vec<_> = inward.iter().rev().cloned().collect();
    send(&mut server[0], &mut pool, &backwards);
    let is_ours = |bytes: &[u8]| bytes.starts_with(&[2, 0, 0, 0, 0, 1]);
    let mut total = 0;
    for queue in 0..queues {
        let from_wan = collect(&mut wan[queue], &mut pool, 97, is_ours);
        let from_lan = collect(&mut lan[queue], &mut pool, 97, is_ours);
        let place = |all: &[Vec<u8>], bytes: &Vec<u8>| all.iter().position(|b| b == bytes).unwrap();
        let a: Vec<_> = from_wan.iter().map(|bytes| place(&outward, bytes)).collect();
        let b: Vec<_> = from_lan.iter().rev().map(|bytes| place(&inward, bytes)).collect();
        assert_eq!(a, b, "queue {queue} of {queues}");
        assert!(a.len() > 8, "queue {queue} of {queues} has {} of 96 flows", a.len());
        assert_eq!((wan[queue].capabilities().queue, lan[queue].capabilities().queue), (queue as u32, queue as u32));
        total += a.len();
    }
    assert_eq!(total, 96);
}

#[test]
fn what_cannot_be_opened_is_refused_with_a_reason() {
    harness::needs_root();
    let kind = |name: &str| PacketPort::open(name, &PacketOptions::default()).map(|_| ()).unwrap_err().kind();
    assert_eq!(kind("no-such-thing"), std::io::ErrorKind::NotFound);
    assert_eq!(kind("a-name-that-is-too-long"), std::io::ErrorKind::InvalidInput);
    assert_eq!(kind(""), std::io::ErrorKind::InvalidInput);
    let none = PacketPort::open_queues("lo", 0, &PacketOptions::default()).map(|_| ()).unwrap_err();
    assert_eq!(none.kind(), std::io::ErrorKind::InvalidInput);
}
