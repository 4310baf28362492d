//! What senders leave to a NIC that is not there: checksums and segmentation, of end hosts as `ip link add` makes them, and of crafted
//! frames at a tap, which says of a frame what a virtual machine's NIC would.

use std::fs::File;
use std::io::Write;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use harness::test;
use pktio::packet::{PacketOptions, PacketPort};
use pktio::{Alone, Batch, Mode, Options, Pool, Port, PortStatistics, open, open_alone};

use crate::testing::{Header, assert_sound, partial, payload_at, transport, tunnels, whole};
use crate::world::{LAN, Links, Running, World};
use Header::{Ethernet, Gre, Sctp, Tag, Tcp, Udp, V4, V6};

/// A TCP transfer and datagrams of all sizes pass a bridge between hosts with default offloads. Returns what its ports counted, LAN first.
fn passes(mtu: u32, mode: Mode, bytes: usize) -> [PortStatistics; 2] {
    let world = World::new(Links { mtu, offloads: true, ..Links::default() });
    let options = Options { mode, ..Options::default() };
    let opened = world.within("box", move || open("lan", "wan", &options)).join().unwrap().unwrap();
    let (guard, bridge) = (opened.guard, Running::start(opened.pairs));
    assert_eq!(world.ping(3), 3);
    world.transfer(bytes);
    let server = world.within("lan", || UdpSocket::bind((LAN, 5353)).unwrap()).join().unwrap();
    let client = world.within("wan", || UdpSocket::bind("0.0.0.0:0").unwrap()).join().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut buffer = vec![0; 9000];
    // The last one in fragments, of which each host makes whole checksums itself.
    for size in [0, 1, 17, 1000, mtu as usize - 28, mtu as usize + 100] {
        let question: Vec<u8> = (0..size.min(8900)).map(|i| (i % 251) as u8).collect();
        client.send_to(&question, (LAN, 5353)).unwrap();
        let (length, from) = server.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{mode:?}, {size} bytes: {e}"));
        assert!(buffer[..length] == question, "{mode:?}, {size} bytes");
        server.send_to(&question, from).unwrap();
        let (length, _) = client.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{mode:?}, {size} bytes back: {e}"));
        assert!(buffer[..length] == question, "{mode:?}, {size} bytes back");
    }
    let moved = bridge.stop();
    drop(guard);
    [moved[0].lan, moved[0].wan]
}

#[test]
fn hosts_with_default_offloads_are_served_in_driver_mode() {
    for mtu in [1500, 9000] {
        for port in passes(mtu, Mode::Driver, 4_000_000) {
            // All but ARP, ping and acknowledgements that the kernel finishes itself.
            assert!(port.checksums_completed > port.received / 2, "MTU {mtu}: {port:?}");
            assert_eq!((port.truncated, port.kernel_drops, port.uncut), (0, 0, 0), "MTU {mtu}: {port:?}");
        }
    }
}

#[test]
fn hosts_without_offloads_leave_nothing_to_complete() {
    let world = World::new(Links::default());
    let options = Options { mode: Mode::Driver, ..Options::default() };
    let opened = world.within("box", move || open("lan", "wan", &options)).join().unwrap().unwrap();
    let (guard, bridge) = (opened.guard, Running::start(opened.pairs));
    world.transfer(1_000_000);
    let moved = bridge.stop();
    drop(guard);
    for port in [moved[0].lan, moved[0].wan] {
        // One right checksum in 65 536 looks as if it were missing, and is found to be right.
        assert_eq!(port.checksums_completed, 0, "{port:?}");
    }
}

#[test]
fn the_log_says_where_tags_beside_the_frame_are_lost() {
    let world = World::new(Links::default());
    for (mode, lost) in [(Mode::Driver, false), (Mode::Generic, true)] {
        let options = Options { mode, ..Options::default() };
        let opened = world.within("box", move || open("lan", "wan", &options)).join().unwrap().unwrap();
        let said = opened.notes.iter().filter(|note| note.contains("VLAN tags")).count();
        assert_eq!(said, if lost { 2 } else { 0 }, "{mode:?}: {:?}", opened.notes);
    }
}

/// A tap of the namespace `box`, up; frames are written to it behind a virtio-net header.
struct Tap(File);

impl Tap {
    fn new(world: &World, name: &'static str) -> Tap {
        let tap = world.open_tap(name, libc::IFF_VNET_HDR);
        world.run("box", &format!("ip link set {name} up"));
        Tap(tap)
    }

    /// Sends a frame whose innermost checksum is left to the NIC, and with a `kind` also to cut it into segments of `size`.
    fn send(&mut self, frame: &[u8], headers: &[Header], (kind, size): (u8, u16)) {
        let (start, offset) = transport(headers);
        let words = [payload_at(headers) as u16, size, start as u16, offset as u16];
        let header: Vec<u8> = [1, kind].into_iter().chain(words.into_iter().flat_map(u16::to_ne_bytes)).collect();
        self.0.write_all(&[&header, frame].concat()).unwrap_or_else(|e| panic!("{headers:?}: {e}"));
    }
}

/// Receives until `count` frames of this test have come, or two seconds are over; a tenth of one where none is expected.
fn collect(port: &mut dyn Port, pool: &mut Pool, count: usize) -> Vec<Vec<u8>> {
    let (mut found, mut batch) = (Vec::new(), Batch::new());
    let end = Instant::now() + if count == 0 { Duration::from_millis(100) } else { Duration::from_secs(2) };
    while (found.len() < count || count == 0) && Instant::now() < end {
        port.receive(&mut batch, 64, pool);
        for frame in batch.drain(..) {
            let mut bytes = vec![0; frame.total()];
            frame.copy_to(&mut bytes);
            pool.put(frame);
            if bytes.starts_with(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]) {
                found.push(bytes);
            }
        }
    }
    found
}

/// The kind of a super-frame in a virtio-net header.
fn kind_of(headers: &[Header]) -> u8 {
    let version_6 = headers.iter().rev().find(|header| matches!(header, V4(_) | V6)) == Some(&V6);
    match headers.last() {
        Some(Tcp(_)) if version_6 => 4,
        Some(Tcp(_)) => 1,
        _ => 5,
    }
}

#[test]
fn super_frames_of_tunnels_are_cut_over_af_packet() {
    let world = World::new(Links::default());
    let mut tap = Tap::new(&world, "tap0");
    let mut port = world.within("box", || PacketPort::open("tap0", &PacketOptions::default()).unwrap()).join().unwrap();
    let mut pool = Pool::heap(256, 2048, 64);
    let payload: Vec<u8> = (0..20_000u32).map(|i| (i * 7) as u8).collect();
    let mut cut = 0;
    for headers in tunnels() {
        tap.send(&partial(&headers, &payload), &headers, (kind_of(&headers), 1300));
        let segments = collect(&mut port, &mut pool, 16);
        assert_eq!(segments.len(), 16, "{headers:?}: {:?}", port.statistics());
        segments.iter().for_each(|segment| assert_sound(segment, &headers));
        let joined: Vec<u8> = segments.iter().flat_map(|segment| &segment[payload_at(&headers)..]).copied().collect();
        assert!(joined == payload, "{headers:?}");
        cut += 1;
        // Small ones are finished in place.
        tap.send(&partial(&headers, b"small"), &headers, (0, 0));
        assert_eq!(collect(&mut port, &mut pool, 1), [whole(&headers, b"small")], "{headers:?}");
        let statistics = port.statistics();
        assert_eq!((statistics.super_frames, statistics.checksums_completed), (cut, cut), "{headers:?}");
        assert_eq!((statistics.uncut, statistics.truncated, statistics.receive_full), (0, 0, 0), "{headers:?}");
    }
    // A tunnel that numbers its packets has one number for all of them.
    let headers = [Ethernet, V4(0), Gre(0x1000), V4(0), Tcp(3)];
    tap.send(&partial(&headers, &payload), &headers, (1, 1300));
    assert!(collect(&mut port, &mut pool, 0).is_empty());
    assert_eq!(port.statistics().uncut, 1);
    assert_eq!(pool.idle(), pool.total());
}

#[test]
fn checksums_in_tunnels_and_behind_tags_are_completed_at_a_tap_in_every_mode() {
    for mode in [Mode::Driver, Mode::Generic] {
        let world = World::new(Links::default());
        let mut tap = Tap::new(&world, "tap0");
        let options = Options { mode, ..Options::default() };
        let opened = world.within("box", move || open_alone("xdp:tap0", &options)).join().unwrap().unwrap();
        let Alone { mut queues, guard, .. } = opened;
        let queue = &mut queues[0];
        let mut done = 0;
        let sctp = [vec![Ethernet, V4(0), Sctp], vec![Ethernet, V6, Sctp]];
        let links = [&[Ethernet][..], &[Ethernet, Tag(0x8100)], &[Ethernet, Tag(0x88a8), Tag(0x8100)]];
        let tagged =
            links.into_iter().flat_map(|link| [[link, &[V4(0), Tcp(3)]].concat(), [link, &[V6, Udp(true)]].concat()]);
        for headers in tunnels().into_iter().chain(sctp).chain(tagged) {
            let payload: Vec<u8> = (0..1200u32).map(|i| (i * 7) as u8).collect();
            tap.send(&partial(&headers, &payload), &headers, (0, 0));
            let found = collect(&mut *queue.port, &mut queue.pool, 1);
            assert_eq!(found.len(), 1, "{mode:?} {headers:?}: {:?}", queue.port.statistics());
            assert!(found[0] == whole(&headers, &payload), "{mode:?} {headers:?}");
            done += 1;
            assert_eq!(queue.port.statistics().checksums_completed, done, "{mode:?} {headers:?}");
        }
        drop(queues);
        drop(guard);
    }
}

#[test]
fn a_capture_taken_at_a_sender_has_its_checksums_completed() {
    let path = std::env::temp_dir().join(format!("offload-{}.pcap", std::process::id()));
    let headers = [Ethernet, V4(0), Tcp(3)];
    let mut file = File::create(&path).unwrap();
    let mut bytes = [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1].map(u32::to_le_bytes).concat();
    for frame in [partial(&headers, b"left to the NIC"), whole(&headers, b"whole")] {
        bytes.extend([1, 0, frame.len() as u32, frame.len() as u32].map(u32::to_le_bytes).concat());
        bytes.extend(frame);
    }
    file.write_all(&bytes).unwrap();
    let opened = open_alone(&format!("pcap:in={}", path.display()), &Options::default()).unwrap();
    std::fs::remove_file(&path).unwrap();
    let Alone { mut queues, .. } = opened;
    let queue = &mut queues[0];
    let found = collect(&mut *queue.port, &mut queue.pool, 2);
    assert_eq!(found, [whole(&headers, b"left to the NIC"), whole(&headers, b"whole")]);
    assert_eq!(queue.port.statistics().checksums_completed, 1);
}

#[test]
fn hosts_with_default_offloads_are_served_in_generic_mode() {
    for mtu in [1500, 9000] {
        for port in passes(mtu, Mode::Generic, 4_000_000) {
            assert!(port.checksums_completed > 0 && port.super_frames > 0, "MTU {mtu}: {port:?}");
            assert_eq!((port.truncated, port.kernel_drops, port.uncut), (0, 0, 0), "MTU {mtu}: {port:?}");
        }
    }
}

#[test(long)]
fn super_frames_at_a_tap_are_cut_in_every_mode_and_datagrams_counted() {
    for mode in [Mode::Driver, Mode::Generic] {
        let world = World::new(Links::default());
        let mut tap = Tap::new(&world, "tap0");
        let options = Options { mode, ..Options::default() };
        let opened = world.within("box", move || open_alone("xdp:tap0", &options)).join().unwrap().unwrap();
        let Alone { mut queues, guard, .. } = opened;
        let queue = &mut queues[0];
        let payload: Vec<u8> = (0..60_000u32).map(|i| (i * 7) as u8).collect();
        let (mut cut, mut uncut) = (0, 0);
        for headers in tunnels().into_iter().chain([vec![Ethernet, V4(0), Tcp(3)], vec![Ethernet, V6, Tcp(0)]]) {
            let room = 1500 - (payload_at(&headers) - 14);
            let expected = payload.len().div_ceil(room);
            let is_tcp = matches!(headers.last(), Some(Tcp(_)));
            tap.send(&partial(&headers, &payload), &headers, (kind_of(&headers), 1300));
            let found = collect(&mut *queue.port, &mut queue.pool, if is_tcp { expected } else { 0 });
            let statistics = queue.port.statistics();
            if is_tcp {
                cut += 1;
                assert_eq!(found.len(), expected, "{mode:?} {headers:?}: {statistics:?}");
                found.iter().for_each(|segment| assert_sound(segment, &headers));
                let joined: Vec<u8> =
                    found.iter().flat_map(|segment| &segment[payload_at(&headers)..]).copied().collect();
                assert!(joined == payload, "{mode:?} {headers:?}");
            } else {
                uncut += 1;
                assert!(found.is_empty(), "{mode:?} {headers:?}");
            }
            assert_eq!((statistics.super_frames, statistics.uncut), (cut, uncut), "{mode:?} {headers:?}");
            assert_eq!((statistics.truncated, statistics.kernel_drops), (0, 0), "{mode:?} {headers:?}");
        }
        assert_eq!(queue.pool.idle() + queue.pool.lent(), queue.pool.total());
        drop(queues);
        drop(guard);
    }
}
