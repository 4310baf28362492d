//! netmap against its kernel module, in a guest: `tests/e2e/netmap.rs` runs inside it; then the proxy stands between two
//! kernels outside, on network cards whose driver netmap has patched. Run by `make test-netmap`, which builds the module and
//! the guest; no part of a plain `cargo test`.
//!
//! ```text
//!   client namespace              guest                 server namespace
//!   c0 10.77.0.1 ──tap── wan0 [ synproxy ] lan0 ──tap── s0 10.77.0.2
//!      fd77::1                                             fd77::2
//! ```
//!
//! The guest's processor is emulated, so no time taken here says how fast anything is.

use std::process::ExitCode;
use std::time::Duration;

use unit::guest::{self, Card, Image, Lab, row, rows, step};
use unit::netns;

const MB: u64 = 1 << 20;

/// How long the tests inside may take.
const INSIDE: Duration = Duration::from_secs(600);

/// What the log says of a port whose frames are not copied.
const SWAPPING: &str = "netmap, frames change places";

/// The cards, as ports of switches.
const SWITCHED: [&str; 2] = ["vale0:lan0", "vale1:wan0"];

/// What of the log tells how the ports were opened.
fn show_ports(log: &str) {
    for line in
        log.lines().filter(|line| [": netmap, ", " slots, ", " memories, "].iter().any(|word| line.contains(word)))
    {
        let told = line.split_once("INFO").map_or(line, |(_, told)| told);
        row("the log says", told.trim_start_matches(|c: char| !c.is_alphanumeric()));
    }
}

/// How the module opens interfaces from now on.
fn adapter(lab: &mut Lab, mode: u8) {
    lab.guest.sh(&format!("echo {mode} >/sys/module/netmap/parameters/admode"));
}

/// The tests that need nothing but the module: veth, switches, pipes.
fn inside(lab: &mut Lab) {
    step("In the guest, between namespaces of its own (unit/tests/e2e/netmap.rs)");
    let line = "SYNPROXY_BIN_DIR=/bin NETMAP_BRIDGE=/bin/netmap-bridge e2e netmap:: --nocapture --test-threads 1";
    let (status, said) = lab.guest.run_for(line, INSIDE);
    print!("{said}");
    assert_eq!(status, 0, "the tests inside failed");
    lab.guest.expect_calm();
}

/// Cards whose driver knows netmap: frames change places between their rings.
fn cards(lab: &mut Lab) {
    for (mode, what) in [(0, "whose driver netmap has patched"), (2, "through the network stack")] {
        adapter(lab, mode);
        for cache in [netns::CACHE_ON, netns::CACHE_OFF] {
            step(&format!("Cards (e1000) {what}, {cache}"));
            let log = lab.guest.start("netmap:lan0 netmap:wan0", cache);
            show_ports(&log);
            assert_eq!(log.matches(SWAPPING).count(), 2, "frames are copied:\n{log}");
            lab.ping();
            rows(lab.exchange(1, MB));
            rows(lab.exchange(8, MB / 16));
            lab.guest.stop();
        }
    }
    step("Ended: the card is the kernel's again");
    lab.guest.sh("ip addr add 10.77.0.77/24 dev wan0");
    let said = lab.client.sh("ping -n -q -c 5 -i 0.2 -W 2 10.77.0.77");
    row("ping the guest itself", said.lines().find(|line| line.contains("transmitted")).unwrap_or_default());
    lab.guest.sh("ip addr flush dev wan0");
    lab.guest.expect_calm();
}

/// A row of the table at the end: LAN, WAN.
fn figures(log: &str, label: &str) -> [u64; 2] {
    let line = log.lines().rev().find_map(|line| line.strip_prefix(label)).unwrap_or_default();
    let mut numbers = line.split_whitespace().map(|number| number.parse().expect("a number of the table"));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

/// Frames of 9000 bytes in buffers of 2048: those of a driver that spreads them over slots, and of switches and pipes.
fn jumbo(lab: &mut Lab) {
    lab.set_mtu(9000);
    step("MTU 9000, buffers of 2048 bytes, cards (e1000) through the network stack");
    adapter(lab, 2);
    let (status, said) = lab.guest.run("synproxy --control=none --state-dir=none netmap:lan0 netmap:wan0");
    let complaint = said.lines().last().unwrap_or_default();
    assert!(status != 0 && complaint.contains("buffers shorter than its MTU"), "{said}");
    row("refused", complaint);
    adapter(lab, 0);
    for (what, ports) in [
        ("cards whose driver netmap has patched", "netmap:lan0 netmap:wan0"),
        ("a card and a pipe in its memory, and another proxy (--bypass) from there", "netmap:lan0 netmap:lan0{1"),
        ("switches with the cards as further ports", "vale0:1 vale1:1"),
    ] {
        step(&format!("MTU 9000, buffers of 2048 bytes, {what}"));
        if ports.starts_with("vale") {
            plug(lab);
        }
        let log = lab.guest.start(ports, netns::CACHE_ON);
        show_ports(&log);
        if ports.contains('{') {
            lab.guest.sh(
                "synproxy --control=none --state-dir=none --bypass 'netmap:lan0}1' netmap:wan0 >/tmp/beyond 2>&1 & beyond=$!; n=0
                 until grep -q ^ready /tmp/beyond; do
                     n=$((n + 1)); [ $n -lt 300 ] && kill -0 $beyond || { cat /tmp/beyond; false; break; }; sleep 0.1
                 done",
            );
        }
        for (host, address) in [(&lab.client, netns::SERVER_V4), (&lab.server, netns::CLIENT_V6)] {
            let said = host.sh(&format!("ping -n -q -c 5 -i 0.2 -W 2 -M do -s 8900 {address}"));
            let told = said.lines().find(|line| line.contains("packets transmitted")).unwrap_or_default();
            assert!(told.contains(" 5 received"), "ping {address}: {said}");
            row(&format!("ping {address} with 8900 bytes"), told.rsplit_once(',').map_or(told, |(told, _)| told));
        }
        rows(lab.exchange(1, MB));
        rows(lab.exchange(8, MB / 16));
        if ports.contains('{') {
            lab.guest.sh("kill -TERM $beyond && wait $beyond");
        }
        let log = lab.guest.stop();
        let [frames, bytes] = ["received, frames", "received, bytes"].map(|label| figures(&log, label));
        let [lan, wan] = [0, 1].map(|side| bytes[side] / frames[side].max(1));
        row("received, bytes a frame", &format!("{lan} from the LAN, {wan} from the WAN"));
        // Acknowledgements are short.
        assert!(lan.max(wan) > 2048, "{log}");
        if ports.starts_with("vale") {
            unplug(lab);
        }
    }
    lab.guest.expect_calm();
}

/// The cards become ports of two switches.
fn plug(lab: &mut Lab) {
    for port in SWITCHED {
        lab.guest.sh(&format!("vale-ctl -a {port}; ip link set {} promisc on", &port[6..]));
    }
    // A card that changes to netmap loses its link for a while.
    lab.guest.sh("until grep -q 1 /sys/class/net/lan0/carrier && grep -q 1 /sys/class/net/wan0/carrier; do sleep 0.1; done; sleep 1");
}

/// The cards are cards again.
fn unplug(lab: &mut Lab) {
    for port in SWITCHED {
        lab.guest.sh(&format!("vale-ctl -d {port}; ip link set {} promisc off", &port[6..]));
    }
}

/// Cards as ports of two switches, put there by netmap's own program, and the proxy between the switches.
fn switches(lab: &mut Lab) {
    adapter(lab, 0);
    step(
        "Switches with the cards as further ports: `vale-ctl -a vale0:lan0`, `vale-ctl -a vale1:wan0`, `synproxy vale0:1 vale1:1`",
    );
    plug(lab);
    let log = lab.guest.start("vale0:1 vale1:1", netns::CACHE_ON);
    show_ports(&log);
    lab.ping();
    rows(lab.exchange(1, MB));
    rows(lab.exchange(8, MB / 16));
    lab.guest.stop();
    unplug(lab);
    lab.guest.expect_calm();
}

/// Frames counted by netmap's own generator and sink at both ends.
fn counted(lab: &mut Lab) {
    const SENT: u64 = 20_000;
    // What waits while an emulated processor is elsewhere has to lie somewhere.
    const LONG_RINGS: &str = "ldp = { netmap_nr_rx_slots = 1024; netmap_nr_tx_slots = 1024; };";
    step("netmap's own pkt-gen at both ends, the proxy forwarding (--bypass)");
    let ways = [
        ("two switches", "vale0:1 vale1:1", "vale0:2", "vale1:2", 1),
        ("two pipes", "netmap:p{1 netmap:q{1", "netmap:p}1", "netmap:q}1", 0),
    ];
    // What the proxy says of its own accord so that a switch may learn, is sent as well.
    for (what, ports, from, to, own) in ways {
        let log = lab.guest.start(&format!("--bypass {ports}"), LONG_RINGS);
        show_ports(&log);
        let said = lab.guest.sh(&format!(
            "pkt-gen -i '{to}' -f rx -w 1 >/tmp/rx 2>&1 & sink=$!; sleep 4
             pkt-gen -i '{from}' -f tx -n {SENT} -R 10000 -l 60 -w 2 >/tmp/tx 2>&1; status=$?
             sleep 2; kill -INT $sink; wait $sink; grep -h '^Received' /tmp/rx; grep -h '^Sent' /tmp/tx || cat /tmp/tx /tmp/rx"
        ));
        said.lines().for_each(|line| row(what, line));
        let arrived = said.lines().find_map(|line| line.strip_prefix("Received ")?.split(' ').next()?.parse().ok());
        let arrived: u64 = arrived.unwrap_or_else(|| panic!("nothing arrived:\n{said}"));
        let log = lab.guest.stop();
        let [[taken, _], [_, given], [_, lost]] =
            ["received, frames", "sent, frames", "lost, transmit ring full"].map(|label| figures(&log, label));
        row(what, &format!("the proxy received {taken}, passed {given} on, and found no room for {lost}"));
        // A switch drops what finds a ring full, and tells nobody; the proxy answers for what it was given.
        assert_eq!(taken + own, given + lost, "{log}");
        assert!(arrived <= given && 2 * arrived > SENT, "{arrived} of {SENT} arrived:\n{log}");
    }
    lab.guest.expect_calm();
}

/// What netmap's own generator says of itself and of its sink.
struct Run {
    /// Frames sent and received.
    sent: u64,
    received: u64,
    /// Frames received a second.
    rate: f64,
}

/// netmap's generator at `from`, as fast as it can, and its sink at `to`, for some seconds.
fn generate(lab: &mut Lab, from: &str, to: &str) -> Run {
    const SECONDS: u32 = 10;
    let said = lab.guest.sh(&format!(
        "pkt-gen -i '{to}' -f rx -w 1 >/tmp/rx 2>&1 & sink=$!; sleep 4
         pkt-gen -i '{from}' -f tx -l 60 -w 2 >/tmp/tx 2>&1 & source=$!; sleep {SECONDS}; kill -INT $source; wait $source
         sleep 2; kill -INT $sink; wait $sink
         grep -h '^Received' /tmp/rx; grep -h '^Sent' /tmp/tx || cat /tmp/tx /tmp/rx"
    ));
    let line =
        |word: &str| said.lines().find(|line| line.starts_with(word)).unwrap_or_else(|| panic!("{word}: {said}"));
    let number = |word: &str| line(word).split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    let [sent, received] = ["Sent", "Received"].map(number);
    Run { sent, received, rate: received as f64 / f64::from(SECONDS) }
}

/// As many frames as netmap's generator can make, through one switch and between two: over the proxy, over the proxy that only
/// forwards, with one worker and with several. Speeds of an emulated processor say nothing but how the ways compare.
fn flat_out(lab: &mut Lab) {
    const LONG_RINGS: &str = "ldp = { netmap_nr_rx_slots = 1024; netmap_nr_tx_slots = 1024; };";
    step("netmap's own pkt-gen flat out");
    let bare = generate(lab, "vale0:2", "vale0:3");
    assert!(bare.received > 0, "the bare switch");
    let tell = |what: &str, Run { sent, received, rate }: &Run| {
        let (rate, share) = (rate / 1e3, rate / bare.rate);
        row(what, &format!("{sent} sent, {received} received: {rate:.0} kpps, {share:.2} of the bare switch"));
    };
    tell("the bare switch", &bare);
    for (what, arguments, workers) in [
        ("--bypass", "--bypass", 1),
        ("the proxy", "", 1),
        ("the proxy, three workers", "--workers=3", 3),
        ("--bypass, three workers", "--bypass --workers=3", 3),
    ] {
        let log = lab.guest.start(&format!("{arguments} vale0:1 vale1:1"), LONG_RINGS);
        assert_eq!(log.matches(&format!("{SWAPPING}, {workers} ring pair(s)")).count(), 2, "{log}");
        let run = generate(lab, "vale1:2", "vale0:2");
        let log = lab.guest.stop();
        tell(what, &run);
        let [taken, given, lost] =
            ["received, frames", "sent, frames", "lost, transmit ring full"].map(|label| figures(&log, label));
        let [taken, given, lost] = [taken[1], given[0], lost[0]];
        row(what, &format!("received {taken} of them, passed {given} on, and found no room for {lost}"));
        // The one more is the frame from which the switch learns.
        assert_eq!(taken + 1, given + lost, "{log}");
        assert!(taken <= run.sent && run.received <= given, "{log}");
        assert!(run.rate > bare.rate / 20.0, "{} of {} a second:\n{log}", run.rate, bare.rate);
    }
    lab.guest.expect_calm();
}

/// Runs a part in a guest of its own: what one leaves behind is not the next one's trouble.
fn in_a_guest(image: &Image, part: fn(&mut Lab)) {
    let mut lab = Lab::new(image, 1, 1500);
    row("kernel", lab.guest.sh("uname -rm").trim());
    part(&mut lab);
}

fn main() -> ExitCode {
    guest::run(
        "test-netmap",
        Card::E1000,
        &[
            ("inside", &|image| in_a_guest(image, inside)),
            ("cards", &|image| in_a_guest(image, cards)),
            ("switches", &|image| in_a_guest(image, switches)),
            ("jumbo", &|image| in_a_guest(image, jumbo)),
            ("counted", &|image| in_a_guest(image, counted)),
            ("flat-out", &|image| in_a_guest(image, flat_out)),
        ],
    )
}
