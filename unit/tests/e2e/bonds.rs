//! A box in an aggregation (bond, LAG): one process over all member pairs. The two directions of a connection cross it on different members;
//! a frame leaves by the member it came in by; a member that has lost its link takes its partner along, and connections go on.
//!
//! The hosts of the first tests do with `tc` what a bond does. Those of [`real`] have the kernel's bonds, where it has them.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use harness::{note, test};
use unit::netns::{self, Appliance, Backend, CACHE_OFF, CACHE_ON, Namespace, Rig, traffic};

mod real;

const MB: u64 = 1 << 20;

/// A second cable on either side of a rig, `c1` to `wan1` and `lan1` to `s1`.
fn with_second_cables(rig: Rig) -> Rig {
    let queues = rig.queues();
    for (host, far, near, mac) in
        [(&rig.client, "c1", "wan1", netns::CLIENT_MAC), (&rig.server, "s1", "lan1", netns::SERVER_MAC)]
    {
        let several = if queues > 1 { format!("numtxqueues {queues} numrxqueues {queues}") } else { String::new() };
        rig.middle.sh(&format!(
            "ip link add {near} {several} type veth peer name {far} {several} address {mac} netns {}; ip link set {near} up",
            host.name()
        ));
        host.sh(&format!("ethtool -K {far} tx off txvlan off >/dev/null"));
    }
    rig
}

/// A rig with a second cable on either side. Either host has its addresses at its first interface and takes what comes by the second one for
/// its own, as a bond does.
fn aggregated(rig: Rig) -> Rig {
    let rig = with_second_cables(rig);
    for (host, far) in [(&rig.client, "c"), (&rig.server, "s")] {
        host.sh(&format!(
            "ip link set {far}1 arp off up
             for port in {far}0 {far}1; do tc qdisc add dev $port clsact; done
             tc filter add dev {far}1 ingress u32 match u32 0 0 action mirred ingress redirect dev {far}0"
        ));
    }
    rig
}

/// Which frames a host sends by its second member.
const EVERY: &str = "protocol all u32 match u32 0 0";
/// Those to or from odd TCP ports of the client, in either version of IP.
fn odd(field: &str) -> [String; 2] {
    [format!("protocol ip pref 1 u32 match ip {field} 1 1"), format!("protocol ipv6 pref 2 u32 match ip6 {field} 1 1")]
}

/// Has a host send these frames by its second member.
fn send_by_second(host: &Namespace, interface: &str, frames: &str) {
    host.sh(&format!("tc filter add dev {interface}0 egress {frames} action mirred egress redirect dev {interface}1"));
}

/// The command of the page.
const COMMAND: &str = "synproxy lan0,lan1 wan0,wan1";

fn ports() -> Vec<String> {
    COMMAND.split(' ').skip(1).map(str::to_owned).collect()
}

/// Frames that an interface has received.
fn received(host: &Namespace, interface: &str) -> u64 {
    let text = host.sh(&format!("cat /sys/class/net/{interface}/statistics/rx_packets"));
    text.trim().parse().expect("a number")
}

/// Connections from both sides over both versions of IP, with bulk.
fn are_served(rig: &Rig, count: usize, bytes: u64) {
    for (client, server) in [(netns::CLIENT_V4, netns::SERVER_V4), (netns::CLIENT_V6, netns::SERVER_V6)] {
        for (from, to, address) in [(&rig.client, &rig.server, server), (&rig.server, &rig.client, client)] {
            let service = to.serve(address, 0, traffic::exchanged);
            rig.judge([0, 0], || {
                for _ in 0..count {
                    let stream = from.connect(service.address).expect("connecting");
                    let speeds = traffic::exchange(&stream, bytes, bytes).expect("bulk");
                    note!("{address}: {:.0} and {:.0} Mbit/s", speeds[0], speeds[1]);
                }
            });
        }
    }
}

/// The client sends all it has by the second member, and the server by the first.
fn directions_on_different_members_meet(rig: Rig, config: &str) {
    let rig = aggregated(rig);
    let proxy = Appliance::start_on(&rig, &ports(), config, &[]);
    // Neighbours find each other over the first member.
    rig.client.sh("ping -c1 -W5 10.77.0.2; ping -c1 -W5 fd77::2");
    send_by_second(&rig.client, "c", EVERY);
    let before = ["s0", "s1"].map(|port| received(&rig.server, port));
    let answered = ["c0", "c1"].map(|port| received(&rig.client, port));
    are_served(&rig, 2, MB / 2);
    let of_server = ["s0", "s1"].map(|port| received(&rig.server, port));
    let of_client = ["c0", "c1"].map(|port| received(&rig.client, port));
    let report = proxy.stop();
    assert!(report.status.success());
    assert_eq!(report.figure("syn-answered"), Some(4));
    let log = report.log.join("\n");
    // What the client sends comes by the second member only; a SYN-ACK of the box goes back where its SYN came from.
    assert!(of_server[1] - before[1] > 1000, "the client's frames leave by the member they came in by\n{log}");
    assert!(of_server[0] - before[0] < 100, "{} frames by the other one\n{log}", of_server[0] - before[0]);
    assert!(of_client[0] - answered[0] > 1000 && of_client[1] - answered[1] >= 4, "{of_client:?} {answered:?}\n{log}");
    assert!(of_client[1] - answered[1] < 200, "{of_client:?} {answered:?}\n{log}");
}

#[test]
fn the_directions_of_a_connection_on_different_members_meet_in_one_worker() {
    for config in [CACHE_ON, CACHE_OFF] {
        directions_on_different_members_meet(Rig::new(), config);
    }
}

#[test(alone)]
fn the_directions_of_a_connection_on_different_members_meet_among_several_workers() {
    directions_on_different_members_meet(Rig::queued(2), CACHE_ON);
}

#[test]
fn connections_that_are_spread_over_the_members_are_served() {
    let rig = aggregated(Rig::new());
    let proxy = Appliance::start_on(&rig, &ports(), CACHE_ON, &[]);
    rig.client.sh("ping -c1 -W5 10.77.0.2; ping -c1 -W5 fd77::2");
    // Symmetric hashing, by the parity of the client's port.
    odd("sport").iter().for_each(|frames| send_by_second(&rig.client, "c", frames));
    odd("dport").iter().for_each(|frames| send_by_second(&rig.server, "s", frames));
    are_served(&rig, 6, MB / 8);
    let report = proxy.stop();
    assert!(report.status.success());
    assert_eq!(report.figure("syn-answered"), Some(12));
}

#[test]
fn members_work_by_af_packet_too() {
    let rig = aggregated(Rig::new());
    let ports = ["packet:lan0,packet:lan1", "packet:wan0,packet:wan1"].map(str::to_owned);
    let proxy = Appliance::start_on(&rig, &ports, CACHE_ON, &[]);
    rig.client.sh("ping -c1 -W5 10.77.0.2; ping -c1 -W5 fd77::2");
    send_by_second(&rig.client, "c", EVERY);
    are_served(&rig, 2, MB / 8);
    let report = proxy.stop();
    assert!(report.status.success());
    assert_eq!(report.figure("syn-answered"), Some(4));
}

#[test]
fn a_lost_member_takes_its_partner_along_and_connections_go_on() {
    let rig = aggregated(Rig::new());
    let proxy = Appliance::start_on(&rig, &ports(), &format!("{CACHE_ON} link_loss = forward;"), &[]);
    rig.client.sh("ping -c1 -W5 10.77.0.2");
    send_by_second(&rig.client, "c", EVERY);
    let echo = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let mut stream = rig.client.connect(echo.address).expect("connecting");
    let mut type_on = |what: &str| {
        stream
            .write_all(b"x")
            .and_then(|()| stream.read_exact(&mut [0]))
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    };
    type_on("before");
    let carrier = || rig.client.sh("cat /sys/class/net/c1/carrier").trim() == "1";
    assert!(carrier());
    // The server's switch has lost its second link.
    rig.server.sh("ip link set s1 down");
    let begin = Instant::now();
    while carrier() {
        assert!(begin.elapsed() < Duration::from_secs(30), "the client's switch does not notice");
        std::thread::sleep(Duration::from_millis(10));
    }
    // A bond sends by what is left.
    rig.client.sh("tc filter del dev c0 egress");
    type_on("by the other member");
    // Their ends pass the box before it goes.
    drop((stream, echo));
    let report = proxy.stop();
    assert!(report.status.success());
    assert!(
        report.log.iter().any(|line| line.contains("wan1 is taken down, since lan1 has no link")),
        "{:?}",
        report.log
    );
}

#[test]
fn members_that_are_not_as_many_on_both_sides_are_refused() {
    let rig = aggregated(Rig::new());
    let output =
        rig.middle.command(unit::netns::program("synproxy")).args(["lan0,lan1", "wan0"]).output().expect("starting");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("2 member(s) on the LAN and 1 on the WAN"), "{said}");
    drop(Appliance::start(&rig, Backend::Driver, CACHE_ON));
}
