//! Bonds of the kernel at both ends of the box, in the modes that switches and hosts use. `make test-guest` has a kernel with bonds where this
//! machine's has none.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use harness::{note, test};
use unit::netns::{self, Appliance, CACHE_ON, Namespace, Rig, traffic};

use super::{are_served, ports, received, with_second_cables};

/// How long an aggregation may take to form, or to notice that a link is lost: a partner is lost after three seconds (IEEE 802.1AX, short
/// time-out), and an emulated processor is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// A rig whose hosts have `bond0` over two cables, which is down.
///
/// # Panics
/// As [`Rig::new`]; ends the test as ignored if the kernel has no bonds.
fn bonded(mode: &str, hashes: [&str; 2]) -> Rig {
    let rig = with_second_cables(Rig::new());
    let ends = [(&rig.client, "c", netns::CLIENT_MAC), (&rig.server, "s", netns::SERVER_MAC)];
    for ((host, far, mac), hash) in ends.into_iter().zip(hashes) {
        let lacp = if mode == "802.3ad" { "lacp_rate fast" } else { "" };
        let add =
            format!("link add bond0 address {mac} type bond mode {mode} miimon 20 xmit_hash_policy {hash} {lacp}");
        let made = host.command("ip").args(add.split_whitespace()).output().expect("starting ip");
        if !made.status.success() {
            harness::ignore(format_args!(
                "this kernel has no bonds ({}); `make test-guest` has one with",
                String::from_utf8_lossy(&made.stderr).trim()
            ));
        }
        host.sh(&format!(
            "for port in {far}0 {far}1; do ip addr flush dev $port; ip link set $port down; ip link set $port master bond0; ip link set $port up; done"
        ));
    }
    rig
}

/// The hosts take their bonds up and get their addresses. Not before the box stands between them: a partner that answers nothing at first is tried
/// again after half a minute.
fn take_up(rig: &Rig) {
    let ends = [(&rig.client, netns::CLIENT_V4, netns::CLIENT_V6), (&rig.server, netns::SERVER_V4, netns::SERVER_V6)];
    for (host, v4, v6) in ends {
        host.sh(&format!("ip link set bond0 up; ip addr add {v4}/24 dev bond0; ip addr add {v6}/64 dev bond0 nodad"));
    }
}

/// Connections from the WAN whose segments overtake each other, because their sender takes turns with its links; the kernels count that as a fault.
fn overtaken_are_served(rig: &Rig) {
    let service = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    for _ in 0..6 {
        let stream = rig.client.connect(service.address).expect("connecting");
        traffic::exchange(&stream, 64 << 10, 64 << 10).expect("bulk");
    }
}

/// Waits until it holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
    note!("{what}: after {:.1?}", begin.elapsed());
}

/// What a host's bond says of itself.
fn told(host: &Namespace, file: &str) -> String {
    host.sh(&format!("cat /sys/class/net/bond0/bonding/{file}")).trim().to_owned()
}

/// Both ends have each other for partners, over so many links.
fn are_partners(rig: &Rig, links: &str) -> bool {
    [(&rig.client, netns::SERVER_MAC), (&rig.server, netns::CLIENT_MAC)]
        .into_iter()
        .all(|(host, partner)| told(host, "ad_partner_mac") == partner && told(host, "ad_num_ports") == links)
}

fn pings(rig: &Rig) -> bool {
    rig.client.command("ping").args(["-q", "-c1", "-W1", "10.77.0.2"]).output().is_ok_and(|done| done.status.success())
}

fn type_on(stream: &mut TcpStream, what: &str) {
    let answer = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]));
    answer.unwrap_or_else(|error| panic!("{what}: {error}"));
}

/// Connections both ways while all links are there, while one is lost, and when it is back.
fn connections_outlive_a_link(mode: &str, hashes: [&str; 2], link_loss: &str) {
    let rig = bonded(mode, hashes);
    let proxy = Appliance::start_on(&rig, &ports(), &format!("{CACHE_ON} link_loss = {link_loss};"), &[]);
    take_up(&rig);
    let is_lacp = mode == "802.3ad";
    let takes_turns = mode == "balance-rr";
    let serve = |count, bytes| if takes_turns { overtaken_are_served(&rig) } else { are_served(&rig, count, bytes) };
    if is_lacp {
        until("both ends are partners over two links", || are_partners(&rig, "2"));
    }
    until("frames pass", || pings(&rig));
    let before = ["c0", "c1"].map(|port| received(&rig.client, port));
    serve(6, 64 << 10);
    let came = ["c0", "c1"].map(|port| received(&rig.client, port));
    note!("{mode}: the client received {} and {} frames by its links", came[0] - before[0], came[1] - before[1]);
    if takes_turns {
        assert!((0..2).all(|link| came[link] - before[link] > 100), "both links are used: {before:?}, {came:?}");
    }

    let echo = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let mut streams: Vec<TcpStream> = (0..6).map(|_| rig.client.connect(echo.address).expect("connecting")).collect();
    streams.iter_mut().for_each(|stream| type_on(stream, "before"));
    // An active-backup bond uses its first link.
    rig.server.sh("ip link set s0 down");
    if is_lacp {
        until("one link is left to both ends", || {
            told(&rig.client, "ad_num_ports") == "1" && told(&rig.server, "ad_num_ports") == "1"
        });
    } else {
        until("the client's end is told", || rig.client.sh("cat /sys/class/net/c0/carrier || true").trim() != "1");
    }
    streams.iter_mut().for_each(|stream| type_on(stream, "by the other link"));
    serve(2, 16 << 10);
    rig.server.sh("ip link set s0 up");
    if is_lacp {
        until("both links are back", || are_partners(&rig, "2"));
    }
    until("the client's link is back", || rig.client.sh("cat /sys/class/net/c0/carrier || true").trim() == "1");
    streams.iter_mut().for_each(|stream| type_on(stream, "by both links again"));
    serve(2, 16 << 10);
    drop(streams);
    let report = proxy.stop();
    assert!(report.status.success(), "{:?}", report.log);
}

/// The two ends hash differently, so that the directions of most connections cross the box on different members.
#[test]
fn lacp_passes_and_connections_outlive_a_link() {
    connections_outlive_a_link("802.3ad", ["layer3+4", "layer2"], "forward");
}

/// The box says nothing of the lost link: the partners miss each other's frames.
#[test]
fn lacp_notices_a_lost_link_by_itself() {
    connections_outlive_a_link("802.3ad", ["layer3+4", "layer3+4"], "ignore");
}

#[test]
fn static_aggregations_and_backup_links_are_served() {
    for mode in ["balance-xor", "balance-rr", "active-backup"] {
        connections_outlive_a_link(mode, ["layer3+4", "layer2+3"], "forward");
    }
}
