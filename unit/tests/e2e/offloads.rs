//! Hosts as `ip link add` makes them: they leave checksums and segmentation to a network card, and on a veth there is none. They see no
//! difference from a bridge, in no backend, also with tags, jumbo frames and tunnels.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use harness::{ignore, note, test};
use nix::sys::signal::Signal;
use unit::netns::tags::{CUSTOMER, PROVIDER, Tag};
use unit::netns::{self, Appliance, Backend, Namespace, Report, Rig, Tap, traffic};

const MB: u64 = 1 << 20;

/// Both ends, in either version of IP.
const PAIRS: [(IpAddr, IpAddr); 2] = [(netns::CLIENT_V4, netns::SERVER_V4), (netns::CLIENT_V6, netns::SERVER_V6)];

/// A question of `size` bytes, and the answer. A question may be lost while the neighbour is looked up.
fn ask(from: &Namespace, to: &Namespace, address: IpAddr, size: usize) {
    let server = to.run(|| UdpSocket::bind((address, 0))).expect("a server");
    let any: SocketAddr = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
    let client = from.run(|| UdpSocket::bind(any)).expect("a client");
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a time-out");
    }
    let question: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
    let mut buffer = vec![0; 65_536];
    for attempt in 0.. {
        client.send_to(&question, server.local_addr().expect("it is bound")).expect("asking");
        let answer = server.recv_from(&mut buffer).and_then(|(length, from)| {
            assert!(buffer[..length] == question, "{address}: the question has changed");
            server.send_to(&question, from)?;
            client.recv_from(&mut buffer)
        });
        match answer {
            Ok((length, _)) => {
                assert!(buffer[..length] == question, "{address}: the answer has changed");
                return;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && attempt < 3 => {}
            Err(error) => panic!("{address}: {size} bytes are not answered: {error}"),
        }
    }
}

/// TCP opened from either side and datagrams of all sizes, judged by both kernels.
fn everything_passes(rig: &Rig, mtu: usize, bytes: u64) {
    let before = rig.counters();
    for (client, server) in PAIRS {
        for (from, to, address) in [(&rig.client, &rig.server, server), (&rig.server, &rig.client, client)] {
            let service = to.serve(address, 0, traffic::exchanged);
            rig.judge([0, 0], || {
                let stream = from.connect(service.address).expect("connecting");
                let speeds = traffic::exchange(&stream, bytes, bytes).expect("bulk");
                note!("{address}: {:.0} and {:.0} Mbit/s", speeds[0], speeds[1]);
            });
            // Whole ones, the longest, and fragments.
            for size in [0, 1, 700, mtu - 48, mtu + 200] {
                ask(from, to, address, size);
            }
        }
    }
    for (end, before) in rig.counters().iter().zip(&before) {
        let risen = end.since(before);
        let wrong = ["UdpInCsumErrors", "Udp6InCsumErrors", "TcpInCsumErrors"].map(|name| risen.get(name));
        assert_eq!(wrong, [0; 3], "a checksum was wrong");
        // One kind of frame that never arrives is what a transfer survives, and nobody wants.
        let (sent, again) = (risen.get("TcpOutSegs"), risen.get("TcpRetransSegs"));
        note!("{again} of {sent} segments were sent again");
        assert!(again <= 50 + sent / 50, "{again} of {sent} segments were sent again");
    }
}

fn hosts_with_default_offloads_are_served(rig: Rig, mtu: usize, backend: Backend, bytes: u64) {
    // In generic mode nothing tells of tags beside the frame.
    let rig = rig.with_default_offloads(backend == Backend::Generic);
    let proxy = Appliance::start(&rig, backend, netns::CACHE_ON);
    everything_passes(&rig, mtu, bytes);
    let report = proxy.stop();
    assert!(report.status.success());
    if backend != Backend::Packet {
        let said = report.log.iter().filter(|line| line.contains("leave TCP, UDP or SCTP checksums")).count();
        assert_eq!(said, 2, "one line for each port:\n{}", report.log.join("\n"));
    }
}

#[test]
fn hosts_with_default_offloads_are_served_in_driver_mode() {
    hosts_with_default_offloads_are_served(Rig::new(), 1500, Backend::Driver, 4 * MB);
}

#[test]
fn hosts_with_default_offloads_are_served_in_generic_mode() {
    hosts_with_default_offloads_are_served(Rig::new(), 1500, Backend::Generic, 4 * MB);
}

#[test]
fn hosts_with_default_offloads_are_served_on_af_packet() {
    hosts_with_default_offloads_are_served(Rig::new(), 1500, Backend::Packet, 4 * MB);
}

#[test]
fn hosts_with_default_offloads_are_served_with_jumbo_frames() {
    for backend in Backend::ALL {
        hosts_with_default_offloads_are_served(Rig::with_mtu(9000), 9000, backend, 4 * MB);
    }
}

fn hosts_with_default_offloads_are_served_behind(tags: &[Tag], mtu: u32) {
    for backend in Backend::ALL {
        hosts_with_default_offloads_are_served(Rig::tagged(mtu, tags), mtu as usize, backend, MB);
    }
}

#[test]
fn hosts_with_default_offloads_are_served_behind_a_tag() {
    hosts_with_default_offloads_are_served_behind(&[CUSTOMER], 1500);
}

#[test]
fn hosts_with_default_offloads_are_served_behind_two_tags() {
    hosts_with_default_offloads_are_served_behind(&[PROVIDER, CUSTOMER], 1500);
}

#[test]
fn hosts_with_default_offloads_are_served_with_jumbo_frames_behind_tags() {
    for tags in [&[CUSTOMER][..], &[PROVIDER, CUSTOMER]] {
        hosts_with_default_offloads_are_served_behind(tags, 9000);
    }
}

#[test]
fn tcp_in_a_tunnel_between_hosts_with_default_offloads_keeps_its_bytes() {
    for backend in Backend::ALL {
        let rig = Rig::new().with_default_offloads(false);
        // In IPv6 the outer checksum is there, in IPv4 it is not.
        for (number, (client, server)) in PAIRS.into_iter().enumerate() {
            for (host, own, other, last) in [(&rig.client, client, server, 1), (&rig.server, server, client, 2)] {
                let device = if last == 1 { "c0" } else { "s0" };
                host.sh(&format!(
                    "ip link add vx{number} type vxlan id 4{number} local {own} remote {other} dstport 4789 dev {device}
                     ip addr add 10.88.{number}.{last}/24 dev vx{number}
                     ip link set vx{number} up"
                ));
            }
        }
        let proxy = Appliance::start(&rig, backend, netns::CACHE_ON);
        for number in 0..2 {
            let address: IpAddr = format!("10.88.{number}.2").parse().expect("an address");
            let service = rig.server.serve(address, 0, traffic::exchanged);
            rig.judge([0, 0], || {
                let stream = rig.client.connect(service.address).expect("connecting through the tunnel");
                let speeds = traffic::exchange(&stream, 4 * MB, 4 * MB).expect("bulk through the tunnel");
                note!("{backend:?}, tunnel {number}: {:.0} and {:.0} Mbit/s", speeds[0], speeds[1]);
            });
            ask(&rig.client, &rig.server, address, 1000);
        }
        assert!(proxy.stop().status.success());
    }
}

/// Super-frames of BIG TCP are as long at most, of those here.
const BIG: u32 = 185_000;

/// What is longer has no length in the 16 bits of an IP header.
const ABOVE: usize = 14 + 65_535;

/// What a box has counted of both ports under the names that begin so.
fn counted(report: &Report, beginning: &str) -> u64 {
    let numbers = |line: &String| line.split_whitespace().flat_map(str::parse::<u64>).sum::<u64>();
    report.log.iter().filter(|line| line.starts_with(beginning)).map(numbers).sum()
}

/// Frames that the interfaces of a rig have counted as dropped: a veth whose peer takes no more is one that does.
fn dropped(rig: &Rig) -> u64 {
    let ends = [(&rig.client, "c0"), (&rig.server, "s0"), (&rig.middle, Rig::LAN), (&rig.middle, Rig::WAN)];
    let of = |(host, interface): (&Namespace, &str)| -> u64 {
        let counts = host.sh(&format!("cat /sys/class/net/{interface}/statistics/[rt]x_dropped"));
        counts.split_whitespace().map(|count| count.parse::<u64>().expect("a number")).sum()
    };
    ends.map(of).iter().sum()
}

/// A rig whose hosts send super-frames above 64 KiB, and windows for some at a time.
fn rig_of_big_tcp(window: u32) -> Rig {
    let rig = Rig::new().with_big_tcp(BIG);
    rig.sysctl("net.ipv4.tcp_wmem", &format!("4096 262144 {window}"));
    rig.sysctl("net.ipv4.tcp_rmem", &format!("4096 1048576 {}", 4 * window));
    rig
}

/// So much each way, over connections of both families opened from either side. Returns the longest frame that sender or receiver saw of each.
fn exchange_watched(rig: &Rig, bytes: u64, what: &str) -> Vec<usize> {
    let mut longest = vec![];
    for (client, server) in PAIRS {
        for (from, to, address) in [(&rig.client, &rig.server, server), (&rig.server, &rig.client, client)] {
            let service = to.serve(address, 0, traffic::exchanged);
            let taps = [from, to].map(Tap::open);
            let stream = from.connect(service.address).expect("connecting");
            let speeds = traffic::exchange(&stream, bytes, bytes);
            let speeds = speeds.unwrap_or_else(|e| panic!("{what}, {address}: {e}"));
            let lengths = taps.map(Tap::longest);
            note!("{what}, {address}: {:.0} and {:.0} Mbit/s, frames up to {lengths:?}", speeds[0], speeds[1]);
            longest.extend(lengths);
        }
    }
    longest
}

#[test]
fn super_frames_above_64_kib_arrive_whole_or_cut() {
    const BYTES: u64 = 16 * MB;
    let by_name = || [Rig::LAN, Rig::WAN].map(String::from).to_vec();
    let middles = [
        ("the bridge", vec![], ""),
        ("driver mode", Backend::Driver.arguments(), netns::CACHE_ON),
        ("generic mode", Backend::Generic.arguments(), netns::CACHE_ON),
        ("packet", Backend::Packet.arguments(), netns::CACHE_ON),
        ("what the box chooses", by_name(), netns::CACHE_ON),
        ("what the box chooses with a fast path", by_name(), "fast_path = auto;"),
    ];
    for (middle, ports, config) in middles {
        let rig = rig_of_big_tcp(512 << 10);
        let proxy = if ports.is_empty() {
            rig.bridge();
            None
        } else {
            Some(Appliance::start_on(&rig, &ports, config, &[]))
        };
        let before = rig.counters();
        let longest = rig.judge([0, 0], || exchange_watched(&rig, BYTES, middle));
        let after = rig.counters();
        let again: i64 = after.iter().zip(&before).map(|(end, before)| end.since(before).get("TcpRetransSegs")).sum();
        let (again, dropped) = (again as u64, dropped(&rig));
        let report = proxy.map(Appliance::stop);
        let of_box = |name| report.as_ref().map_or(0, |report| counted(report, name));
        let (cut, lost) = (of_box("super-frames cut"), of_box("lost, "));
        let refused = of_box("lost, uncut") + of_box("lost, too long");
        note!(
            "{middle}: {again} segments sent again, the box cut {cut} frames and lost {lost}, veths dropped {dropped}"
        );
        // What is lost is counted: a host asks again without need (TLP) some times a connection. Of a super-frame each segment is sent again.
        let most = 50 + dropped + lost * u64::from(BIG) / 1448;
        assert!(
            again <= most,
            "{middle}: {again} segments sent again, {dropped} dropped by veths, {lost} lost in the box"
        );
        assert_eq!(refused, 0, "{middle}: super-frames that were not taken or not cut");
        // In both families, from both sides.
        let are_above = longest.iter().all(|length| *length > ABOVE);
        let are_short = longest.iter().all(|length| *length <= 1514);
        match &report {
            None if !are_above => ignore("this kernel sends no super-frames above 64 KiB in both families"),
            None => {}
            // In front of a veth's program the sender's kernel cuts them itself.
            Some(report) if report.log.iter().any(|line| line.contains("driver mode")) => {
                assert!(are_short && cut == 0, "{middle}: frames of {longest:?} bytes, {cut} cut");
            }
            Some(_) => {
                let mut families = longest.chunks(longest.len() / 2);
                let are_above = families.all(|family| family.iter().max() > Some(&ABOVE));
                assert!(are_above && cut > 0, "{middle}: frames of {longest:?} bytes, {cut} cut");
            }
        }
    }
}

#[test]
fn super_frames_beyond_what_a_socket_holds_are_counted_and_their_connections_end() {
    const CONNECTIONS: usize = 16;
    let rig = rig_of_big_tcp(8 << 20);
    let proxy = Appliance::start(&rig, Backend::Packet, netns::CACHE_ON);
    let servers = PAIRS.map(|(_, server)| rig.server.serve(server, 0, traffic::exchanged));
    thread::scope(|scope| {
        let transfers: Vec<_> = (0..CONNECTIONS)
            .map(|n| {
                let stream = rig.client.connect(servers[n % 2].address).expect("connecting");
                scope.spawn(move || traffic::exchange(&stream, 16 * MB, MB))
            })
            .collect();
        // Nobody takes frames off the sockets for a while.
        for _ in 0..6 {
            thread::sleep(Duration::from_millis(50));
            proxy.signal(Signal::SIGSTOP);
            thread::sleep(Duration::from_millis(100));
            proxy.signal(Signal::SIGCONT);
        }
        for transfer in transfers {
            transfer.join().expect("a client does not panic").expect("every byte arrives");
        }
    });
    let report = proxy.stop();
    let (cut, lost) = (counted(&report, "super-frames cut"), counted(&report, "lost, too long"));
    note!("{cut} super-frames cut, {lost} lost\n{}", report.log.join("\n"));
    assert!(lost > 0, "more than a socket holds came at once, and nothing is counted:\n{}", report.log.join("\n"));
    let wrong = rig.counters().map(|end| end.get("TcpInCsumErrors"));
    assert_eq!(wrong, [0; 2], "a checksum was wrong");
}

#[test]
fn frames_that_come_while_the_box_starts_and_ends_raise_no_alarm() {
    let rig = Rig::new();
    let mut flood = rig.client.command("ping");
    // Answered or not: the frames come before the sockets are bound, and after they are closed.
    flood.args(["-f", "-q", "-w", "20", &netns::NOBODY_V4.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut flood = flood.spawn().expect("starting ping");
    thread::sleep(Duration::from_millis(200));
    for backend in [Backend::Driver, Backend::Generic] {
        let proxy = Appliance::start_with(&rig, backend, netns::CACHE_ON, &["--log-level", "debug"]);
        thread::sleep(Duration::from_millis(200));
        let report = proxy.stop();
        let alarms: Vec<&String> = report.log.iter().filter(|line| line.contains("WARN")).collect();
        assert!(alarms.is_empty(), "{backend:?}: {alarms:?}");
        let counted = report.log.iter().filter(|line| line.contains("while the box was starting or ending")).count();
        note!("{backend:?}: {counted} line(s) of frames at the edges");
    }
    flood.kill().expect("ending ping");
    flood.wait().expect("ending ping");
}
