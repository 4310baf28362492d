//! A plain bridge over AF_XDP between two hosts, each in a namespace of its own.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use crate::world::{LAN, Links, Running, World, assert_conserved};
use harness::test;
use pktio::packet::{PacketOptions, PacketPort};
use pktio::{Batch, FailurePlan, Frame, Mode, OnFailure, Opened, Options, Pool, Port, open};

/// Opens the ports of the box.
fn open_box(world: &World, options: Options) -> Opened {
    world.within("box", move || open("lan", "wan", &options)).join().unwrap().unwrap()
}

fn carries_ping_and_tcp(links: Links, options: Options) {
    let world = World::new(links);
    let queues = options.workers;
    let driver = options.mode == Mode::Driver;
    let opened = open_box(&world, options);
    assert_eq!(opened.pairs.len(), queues);
    for pair in &opened.pairs {
        let taken = pair.wan.capabilities();
        assert_eq!((taken.backend, taken.driver_mode, taken.zero_copy), ("xdp", driver, false));
        assert_eq!(taken.multi_buffer, links.mtu > 3000);
    }
    let guard = opened.guard;
    let bridge = Running::start(opened.pairs);
    assert_eq!(world.ping(20), 20);
    world.transfer(4_000_000);
    let moved = bridge.stop();
    let received: u64 = moved.iter().map(|m| m.wan.received).sum();
    let least = 4_000_000 / u64::from(links.mtu);
    assert!(received > least, "{received} frames carried what needs at least {least}");
    for m in moved {
        assert_eq!((m.lan.transmit_errors, m.lan.truncated, m.lan.no_buffer), (0, 0, 0), "{m:?}");
        assert_eq!((m.wan.transmit_errors, m.wan.truncated, m.wan.no_buffer), (0, 0, 0), "{m:?}");
        assert_eq!((m.lan.sent, m.wan.sent), (m.wan.received, m.lan.received), "{m:?}");
    }
    drop(guard);
}

#[test]
fn driver_mode_carries_ping_and_tcp() {
    carries_ping_and_tcp(Links::default(), Options { mode: Mode::Driver, ..Options::default() });
}

#[test]
fn what_is_sent_to_an_interface_that_is_down_is_not_kept_for_later() {
    for mode in [Mode::Driver, Mode::Generic] {
        let world = World::new(Links::default());
        let opened = open_box(&world, Options { mode, ..Options::default() });
        let guard = opened.guard;
        let bridge = Running::start(opened.pairs);
        assert_eq!(world.ping(3), 3);
        world.run("box", "ip link set lan down");
        assert_eq!(world.strays("wan", LAN, 50), 0);
        world.run("box", "ip link set lan up");
        // The host's kernel has to learn the address again.
        let deadline = Instant::now() + Duration::from_secs(10);
        while world.ping(1) == 0 {
            assert!(Instant::now() < deadline, "{mode:?}: it does not carry any more");
        }
        let moved = bridge.stop().remove(0);
        assert!(moved.lan.transmit_errors >= 40, "{mode:?}: {moved:?}");
        drop(guard);
    }
}

#[test]
fn generic_mode_carries_ping_and_tcp() {
    carries_ping_and_tcp(Links::default(), Options { mode: Mode::Generic, ..Options::default() });
}

#[test]
fn driver_mode_carries_jumbo_frames_in_several_buffers() {
    carries_ping_and_tcp(Links { mtu: 9000, ..Links::default() }, Options { mode: Mode::Driver, ..Options::default() });
}

#[test]
fn generic_mode_carries_jumbo_frames_in_several_buffers() {
    carries_ping_and_tcp(
        Links { mtu: 9000, ..Links::default() },
        Options { mode: Mode::Generic, ..Options::default() },
    );
}

#[test]
fn a_frame_between_one_small_and_one_large_buffer_passes() {
    carries_ping_and_tcp(Links { mtu: 2900, ..Links::default() }, Options { mode: Mode::Driver, ..Options::default() });
}

#[test]
fn every_queue_has_its_worker() {
    for queues in [2, 4] {
        carries_ping_and_tcp(
            Links { queues, ..Links::default() },
            Options { mode: Mode::Driver, workers: queues as usize, ..Options::default() },
        );
    }
}

#[test]
fn a_bare_name_takes_the_best_and_says_why_nothing_better() {
    let world = World::new(Links::default());
    let opened = open_box(&world, Options::default());
    let notes = opened.notes.join("\n");
    assert!(notes.contains("no zero copy: the driver of lan has none"), "{notes}");
    assert!(notes.contains("wan: AF_XDP, driver mode, copying, 1 queue(s)"), "{notes}");
}

#[test]
fn zero_copy_alone_is_refused_where_there_is_none() {
    let world = World::new(Links::default());
    let options = Options { mode: Mode::ZeroCopy, ..Options::default() };
    let error = world.within("box", move || open("lan", "wan", &options)).join().unwrap().unwrap_err();
    assert!(error.to_string().contains("no zero copy"), "{error}");
}

#[test]
fn a_queue_can_be_opened_again_right_after_it_was_closed() {
    let world = World::new(Links::default());
    for mode in [Mode::Driver, Mode::Driver, Mode::Generic, Mode::Driver, Mode::Auto] {
        let opened = open_box(&world, Options { mode, ..Options::default() });
        let guard = opened.guard;
        let bridge = Running::start(opened.pairs);
        assert_eq!(world.ping(3), 3, "{mode:?}");
        bridge.stop();
        drop(guard);
    }
}

#[test]
fn a_queue_that_is_just_being_left_is_waited_for() {
    let world = World::new(Links::default());
    let Opened { pairs, guard, .. } = open_box(&world, Options::default());
    drop(guard);
    let begin = Instant::now();
    let leaving = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(2500));
        drop(pairs);
    });
    let second = open_box(&world, Options::default());
    assert!(begin.elapsed() >= Duration::from_millis(2500), "the queue was not in use");
    assert_eq!(second.pairs[0].lan.capabilities().backend, "xdp");
    leaving.join().unwrap();
}

#[test]
fn a_child_process_does_not_keep_the_queue() {
    let world = World::new(Links::default());
    let first = open_box(&world, Options::default());
    let mut child = std::process::Command::new("sleep").arg("20").spawn().unwrap();
    drop(first);
    let mut second = world.within("box", || open("xdp:lan", "xdp:wan", &Options::default())).join().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(second.as_mut().unwrap().pairs[0].lan.capabilities().backend, "xdp");
}

#[test]
fn the_host_of_the_box_sees_nothing_of_what_is_bridged() {
    let world = World::new(Links::default());
    world.run("box", "ip addr add 10.9.0.9/24 dev lan");
    let inner = Ipv4Addr::new(10, 9, 0, 9);
    assert_eq!(world.ping_from("lan", inner, 2), 2);
    let opened = open_box(&world, Options::default());
    let (guard, bridge) = (opened.guard, Running::start(opened.pairs));
    assert_eq!(world.strays("lan", inner, 2), 0, "a frame was passed to the host");
    // With the sockets gone the program still stands: closed means closed.
    bridge.stop();
    let before = guard.early_or_late();
    assert_eq!(world.strays("lan", inner, 2), 0);
    assert!(guard.early_or_late() > before);
    assert_eq!(guard.unclaimed(), 0, "the queue has a worker");
    drop(guard);
    assert_eq!(world.ping_from("lan", inner, 2), 2, "the program is still attached");
}

#[test]
fn a_tagged_frame_of_full_length_keeps_its_tag() {
    let world = World::new(Links::default());
    let mut frame: Vec<u8> = (0..1518).map(|i| (i % 253) as u8).collect();
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 8]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
    frame[12..18].copy_from_slice(&[0x81, 0x00, 0x60, 0x2a, 0x88, 0xb5]);
    for mode in [Mode::Driver, Mode::Generic] {
        let opened = open_box(&world, Options { mode, ..Options::default() });
        let (guard, bridge) = (opened.guard, Running::start(opened.pairs));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let expected = frame.clone();
        let receiver = world.within("wan", move || {
            let mut port = PacketPort::open("e0", &PacketOptions::default()).unwrap();
            let mut pool = Pool::heap(64, 4096, 256);
            let mut batch = Batch::new();
            ready.send(()).unwrap();
            let end = Instant::now() + Duration::from_secs(3);
            while Instant::now() < end {
                port.receive(&mut batch, 16, &mut pool);
                if batch.iter().any(|frame| frame.bytes() == expected) {
                    return true;
                }
                batch.drain(..).for_each(|frame| pool.put(frame));
                std::thread::sleep(Duration::from_millis(1));
            }
            false
        });
        is_ready.recv_timeout(Duration::from_secs(5)).unwrap();
        let bytes = frame.clone();
        let sender = world.within("lan", move || {
            let mut port = PacketPort::open("e0", &PacketOptions::default()).unwrap();
            let mut pool = Pool::heap(64, 4096, 256);
            let mut frame = pool.take().unwrap();
            frame.fill(&bytes);
            let mut batch = vec![frame];
            port.transmit(&mut batch, &mut pool);
            port.flush(&mut pool);
        });
        sender.join().unwrap();
        assert!(receiver.join().unwrap(), "{mode:?}: the frame did not arrive as it was");
        bridge.stop();
        drop(guard);
    }
}

#[test]
fn without_a_socket_the_plan_decides() {
    let world = World::new(Links::default());
    let plans = [(Some(OnFailure::Open), 3), (Some(OnFailure::Closed), 0), (None, 0)];
    for (on_failure, answered) in plans {
        let failure =
            on_failure.map(|on_failure| FailurePlan { on_failure, flow_keys: (1, 2), flow_words: 0, forward_words: 0 });
        let opened = open_box(&world, Options { mode: Mode::Generic, failure, ..Options::default() });
        let (guard, bridge) = (opened.guard, Running::start(opened.pairs));
        assert_eq!(world.ping(3), 3);
        bridge.stop();
        // A frame that was on its way into a socket is lost with it, and neighbours may be asked again.
        let answers: Vec<_> = (0..3).map(|_| world.strays("wan", LAN, 3)).collect();
        assert!(answers.contains(&answered), "{on_failure:?}: {answers:?}");
        assert!(answered > 0 || answers == [0; 3], "{on_failure:?}: {answers:?}");
        drop(guard);
    }
}

#[test]
fn a_full_transmit_ring_leaves_the_frames_in_the_batch() {
    let world = World::new(Links::default());
    let options = Options { frames_per_port: 1024, ..Options::default() };
    let mut pair = open_box(&world, options).pairs.remove(0);
    let mut batch = Batch::new();
    for i in 0..600_u16 {
        let mut frame = pair.pool.take().unwrap();
        let mut bytes = [0_u8; 60];
        bytes[..6].fill(0xff);
        (bytes[12], bytes[13]) = (0x88, 0xb5);
        bytes[14..16].copy_from_slice(&i.to_be_bytes());
        frame.fill(&bytes);
        batch.push(frame);
    }
    let sent = pair.lan.transmit(&mut batch, &mut pair.pool);
    assert_eq!((sent, batch.len()), (512, 88), "the ring holds half of the frames of a port");
    // What is left is in order, and untouched.
    assert_eq!(batch[0].bytes()[14..16], 512_u16.to_be_bytes());
    assert_eq!(pair.lan.transmit(&mut batch, &mut pair.pool), 0);
    assert_eq!(pair.lan.statistics().transmit_full, 2);
    // Room comes back with the kick.
    let end = Instant::now() + Duration::from_secs(2);
    while !batch.is_empty() && Instant::now() < end {
        pair.lan.flush(&mut pair.pool);
        pair.lan.transmit(&mut batch, &mut pair.pool);
    }
    let settled = |pair: &pktio::Pair| pair.pool.lent() == 2 * 512;
    while !settled(&pair) && Instant::now() < end {
        pair.lan.flush(&mut pair.pool);
    }
    assert!(batch.is_empty() && settled(&pair), "{:?}", pair.pool);
    assert_eq!(pair.lan.statistics().sent, 600);
    assert_conserved(&pair);
    let received = world.run("lan", "cat /proc/net/dev");
    let received = received.lines().find_map(|l| l.trim().strip_prefix("e0:")).unwrap();
    let received: u64 = received.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(received >= 600, "{received} frames arrived");
}

#[test]
fn what_cannot_be_sent_is_counted_and_comes_home() {
    let world = World::new(Links::default());
    let mut pair = open_box(&world, Options::default()).pairs.remove(0);
    let idle = pair.pool.idle();
    let mut batch = Batch::new();
    for len in [0, 13, 1523, 1700] {
        let mut frame = pair.pool.take().unwrap();
        frame.set(frame.start(), len);
        batch.push(frame);
    }
    assert_eq!(pair.lan.transmit(&mut batch, &mut pair.pool), 4);
    assert_eq!((pair.lan.statistics().transmit_errors, pair.lan.statistics().sent), (4, 0));
    assert_eq!((batch.len(), pair.pool.idle()), (0, idle));
}

#[test]
fn a_frame_that_begins_elsewhere_in_its_buffer_is_sent_all_the_same() {
    let world = World::new(Links::default());
    let opened = open_box(&world, Options::default());
    let mut pair = opened.pairs.into_iter().next().unwrap();
    let mut batch = Batch::new();
    for start in [0, 100, 255, 257, 400, 1900] {
        // An ARP request for the LAN host: it answers whatever is whole.
        let mut frame = pair.pool.take().unwrap();
        frame.set(start, 60);
        let bytes = frame.bytes_mut();
        bytes.fill(0);
        bytes[..6].fill(0xff);
        bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
        bytes[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        bytes[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
        bytes[28..32].copy_from_slice(&[10, 9, 0, 77]);
        bytes[38..42].copy_from_slice(&LAN.octets());
        batch.push(frame);
    }
    pair.lan.transmit(&mut batch, &mut pair.pool);
    pair.lan.flush(&mut pair.pool);
    let end = Instant::now() + Duration::from_secs(2);
    let mut answers = 0;
    while answers < 6 && Instant::now() < end {
        pair.lan.receive(&mut batch, 64, &mut pair.pool);
        for frame in batch.drain(..) {
            let is_reply = frame.bytes().get(12..14) == Some(&[8, 6]) && frame.bytes()[21] == 2;
            answers += i32::from(is_reply);
            pair.pool.put(frame);
        }
    }
    assert_eq!(answers, 6);
    assert_conserved(&pair);
}

/// A frame of `bytes` that begins at `start` of its first buffer and fills it; what does not fit lies in further ones.
fn chain_at(pool: &mut Pool, start: usize, bytes: &[u8]) -> Frame {
    let mut first = pool.take().unwrap();
    let (now, mut rest) = bytes.split_at(bytes.len().min(first.capacity() - start));
    first.set(start, now.len());
    first.bytes_mut().copy_from_slice(now);
    while !rest.is_empty() {
        let mut further = pool.take().unwrap();
        let now = rest.len().min(further.capacity() - further.start());
        further.fill(&rest[..now]);
        rest = &rest[now..];
        first.append(further);
    }
    first
}

/// Counts the frames of this test's type that reach the LAN host, and those of them that are as they were sent.
fn listen(world: &World, expected: Vec<Vec<u8>>, frames: usize) -> std::thread::JoinHandle<(usize, usize)> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let listener = world.within("lan", move || {
        let options = PacketOptions { ring_frames: 256, ..PacketOptions::default() };
        let mut port = PacketPort::open("e0", &options).unwrap();
        let mut pool = Pool::heap(64, 16_384, 256);
        let mut batch = Batch::new();
        ready.send(()).unwrap();
        let (mut seen, mut whole) = (0, 0);
        let end = Instant::now() + Duration::from_secs(10);
        while seen < frames && Instant::now() < end {
            port.receive(&mut batch, 16, &mut pool);
            for frame in batch.drain(..) {
                if frame.bytes()[12..14] == [0x88, 0xb5] {
                    seen += 1;
                    whole += usize::from(expected.iter().any(|bytes| bytes == frame.bytes()));
                }
                pool.put(frame);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        (seen, whole)
    });
    is_ready.recv_timeout(Duration::from_secs(5)).unwrap();
    listener
}

#[test]
fn a_full_buffer_whose_header_grew_into_the_headroom_is_sent_from_where_it_begins() {
    // Twelve bytes of timestamps grown into the headroom, all of the headroom, odd places, and behind it.
    const STARTS: [usize; 6] = [244, 0, 1, 255, 256, 301];
    const ROUNDS: usize = 20;
    for mtu in [1500, 9000] {
        for mode in [Mode::Driver, Mode::Generic] {
            let world = World::new(Links { mtu, ..Links::default() });
            let options = Options { mode, frames_per_port: 512, batch: 32, ..Options::default() };
            let Opened { mut pairs, guard, .. } = open_box(&world, options);
            let mut pair = pairs.remove(0);
            let made: Vec<Vec<u8>> = (0..STARTS.len())
                .map(|i| {
                    let mut bytes: Vec<u8> = (0..mtu as usize + 14).map(|at| ((at * 7 + i * 31) % 251) as u8).collect();
                    bytes[..6].fill(0xff);
                    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
                    bytes
                })
                .collect();
            let listener = listen(&world, made.clone(), STARTS.len() * ROUNDS);
            let settled = pair.pool.lent();
            let mut batch = Batch::new();
            for _ in 0..ROUNDS {
                batch.extend(STARTS.iter().zip(&made).map(|(&start, bytes)| chain_at(&mut pair.pool, start, bytes)));
                assert_eq!(pair.lan.transmit(&mut batch, &mut pair.pool), STARTS.len());
                let end = Instant::now() + Duration::from_secs(2);
                while pair.pool.lent() > settled && Instant::now() < end {
                    pair.lan.flush(&mut pair.pool);
                }
                assert_eq!(pair.pool.lent(), settled, "{mtu} {mode:?}: a buffer did not come home");
            }
            let statistics = pair.lan.statistics();
            assert_eq!((statistics.sent, statistics.transmit_errors), (120, 0), "{mtu} {mode:?}: {statistics:?}");
            assert_eq!(listener.join().unwrap(), (120, 120), "{mtu} {mode:?}: frames arrived, and whole ones");
            assert_conserved(&pair);
            // Every buffer came back by its base, so each receives again as if nothing had been.
            let all: Vec<Frame> = std::iter::from_fn(|| pair.pool.take()).collect();
            assert!(all.iter().all(|frame| frame.start() == 256));
            all.into_iter().for_each(|frame| pair.pool.put(frame));
            let bridge = Running::start(vec![pair]);
            assert_eq!(world.ping(3), 3);
            world.transfer(2_000_000);
            let moved = bridge.stop();
            assert_eq!((moved[0].lan.truncated, moved[0].wan.truncated), (0, 0), "{moved:?}");
            drop(guard);
        }
    }
}

#[test]
fn held_frames_never_starve_the_receive_ring() {
    let world = World::new(Links::default());
    let options = Options { frames_per_port: 512, batch: 32, ..Options::default() };
    let opened = open_box(&world, options);
    let guard = opened.guard;
    let mut pair = opened.pairs.into_iter().next().unwrap();
    // A neighbour that does not exist needs no answer: the frames go out at once.
    world.run("wan", "ip neigh add 10.9.0.50 lladdr 02:00:00:00:00:50 dev e0");
    let sender = world.within("wan", || {
        let socket = UdpSocket::bind("10.9.0.2:0").unwrap();
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            let _ = socket.send_to(&[0; 100], "10.9.0.50:9");
        }
    });
    let mut kept = Batch::new();
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        pair.wan.receive(&mut kept, 32, &mut pair.pool);
        // Half of a port's frames belong to its receive ring, and never fewer than a quarter of that are there.
        assert!(pair.pool.lent() >= 256 + 64, "{:?}", pair.pool);
    }
    sender.join().unwrap();
    let starved = pair.wan.statistics();
    assert!(pair.pool.is_low() && starved.no_buffer > 0, "the pool never ran out: {starved:?}");
    assert_eq!(kept.len() + pair.pool.idle() + pair.pool.lent(), pair.pool.total());
    kept.drain(..).for_each(|frame| pair.pool.put(frame));
    assert_conserved(&pair);
    let bridge = Running::start(vec![pair]);
    assert_eq!(world.ping(5), 5);
    bridge.stop();
    drop(guard);
}
