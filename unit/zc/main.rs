//! Zero copy, end to end: the proxy in a guest whose virtio cards read and write frames where they lie, between two
//! kernels in namespaces. Run by `make test-zero-copy`, which builds the guest; no part of a plain `cargo test`.
//!
//! ```text
//!   client namespace              guest                 server namespace
//!   c0 10.77.0.1 ──tap── wan0 [ synproxy ] lan0 ──tap── s0 10.77.0.2
//!      fd77::1                                             fd77::2
//! ```
//!
//! The guest's processor is emulated, so no time taken here says how fast anything is; ratios and counters do.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::sys::socket;
use nix::unistd::Pid;
use unit::guest::{self, Card, Image, Lab, row, rows, step};
use unit::netns::{self, Rig, program, traffic};

const MB: u64 = 1 << 20;

/// What the log has to say of either port.
const ZERO_COPY: &str = "AF_XDP, driver mode, zero copy";

/// The arguments that ask for zero copy and nothing less.
const STRICT: &str = "--xdp-mode zero-copy xdp:lan0 xdp:wan0";

/// Honest connections in a row, under the flood.
const HONEST: u32 = 100;

/// Segments a second of the flood that honest clients have to get through: less than an emulated processor can take, since
/// what it cannot is lost before the proxy sees it.
const FLOOD: u32 = 20_000;

/// How long a load is measured, whole seconds.
const LOADED: Duration = Duration::from_secs(3);

/// Frames a second that are offered then: more than the guest can take, and not so many that their making starves it.
const OFFERED: u32 = 200_000;

/// How often everything is measured.
const ROUNDS: u32 = 3;

/// Honest clients under a flood of `kind` from sources that do not exist, and a connection that was there before.
fn endure(lab: &Lab, kind: &str) {
    let server = lab.server.serve(netns::SERVER_V4, 80, traffic::echo);
    let address = server.address;
    lab.client.sh(&format!("ping -n -q -c 2 -i 0.05 {}", netns::SERVER_V4));
    let established = lab.client.connect(address).expect("connecting in peace");
    let before = lab.server.counters();
    let mut flood = lab.client.command(program("synflood"));
    flood.args(["--interface", "c0", "--to", &netns::SERVER_V4.to_string(), "--to-mac", netns::SERVER_MAC]);
    flood.args(["--from-mac", "02:00:00:00:00:66", "--kind", kind, "--seconds", "120", "--rate", &FLOOD.to_string()]);
    let mut flood = flood.stdout(Stdio::piped()).spawn().expect("starting the flood");
    thread::sleep(Duration::from_millis(300));

    let over = AtomicBool::new(false);
    let (mut times, moved) = thread::scope(|scope| {
        let going_on = scope.spawn(|| {
            let mut stream = &established;
            let (question, mut answer, mut moved) = ([7; 1000], [0; 1000], 0);
            while !over.load(Ordering::Relaxed) {
                stream.write_all(&question).expect("the established connection, sending");
                stream.read_exact(&mut answer).expect("the established connection, receiving");
                moved += answer.len();
            }
            moved
        });
        let times: Vec<Duration> = lab.client.run(|| {
            (0..HONEST)
                .map(|number| {
                    // Spread over more than a second of flood.
                    thread::sleep(Duration::from_millis(10));
                    let start = Instant::now();
                    let mut stream = traffic::connect(address).unwrap_or_else(|e| panic!("client {number}: {e}"));
                    stream.write_all(&number.to_be_bytes()).expect("asking");
                    let mut answer = [0; 4];
                    stream.read_exact(&mut answer).unwrap_or_else(|e| panic!("client {number}: {e}"));
                    assert_eq!(answer, number.to_be_bytes());
                    start.elapsed()
                })
                .collect()
        });
        over.store(true, Ordering::Relaxed);
        (times, going_on.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    signal::kill(Pid::from_raw(flood.id() as i32), Signal::SIGTERM).expect("the flood outlasts the honest");
    let mut said = String::new();
    flood.stdout.take().expect("piped").read_to_string(&mut said).expect("reading what the flood achieved");
    flood.wait().expect("waiting for the flood");
    times.sort();
    let again = times.iter().filter(|time| **time >= Duration::from_secs(1)).count();
    row(&format!("{kind} flood"), said.trim());
    row(
        &format!("{HONEST} honest clients meanwhile"),
        &format!("all connected, {again} had to ask twice, median {:.1?}", times[times.len() / 2]),
    );
    row("one established connection meanwhile", &format!("{moved} bytes there and back"));
    let opened = lab.server.counters().since(&before).get("TcpPassiveOpens");
    // The one that was there before may have reached it only since.
    assert!(opened <= i64::from(HONEST) + 1, "the flood reached the server: {opened} connections");
    assert!(moved > 20_000, "the established connection moved only {moved} bytes");
}

/// Asserts that both ports work as they should, and shows what was said of them.
fn expect_zero_copy(log: &str) {
    let ports: Vec<&str> = log.lines().filter(|line| line.contains(ZERO_COPY)).collect();
    assert_eq!(ports.len(), 2, "not zero copy on both ports:\n{log}");
    let steering = log.lines().filter(|line| line.contains("steering:"));
    for line in ports.into_iter().chain(steering) {
        let (_, told) = line.split_once("INFO").expect("a line of the log");
        row("the log says", told.trim_start_matches(|c: char| !c.is_alphanumeric()));
    }
}

/// One queue: all that must work.
fn one_queue(image: &Image) {
    let mut lab = Lab::new(image, 1, 1500);
    row("kernel", lab.guest.sh("uname -rm").trim());
    for cache in [netns::CACHE_ON, netns::CACHE_OFF] {
        step(&format!("One queue, {cache}"));
        let log = lab.guest.start(STRICT, cache);
        expect_zero_copy(&log);
        lab.ping();
        rows(lab.exchange(1, 8 * MB));
        rows(lab.exchange(32, MB / 8));
        for kind in ["syn", "ack"] {
            endure(&lab, kind);
        }
        let log = lab.guest.stop();
        print_losses(&log);
    }

    for poll in ["busy", "interrupt"] {
        step(&format!("One queue, poll = {poll}"));
        lab.guest.start(&format!("{STRICT} --poll {poll}"), netns::CACHE_ON);
        lab.ping();
        rows(lab.exchange(1, 4 * MB));
        endure(&lab, "syn");
        print_losses(&lab.guest.stop());
    }

    step("Ended and started again at once, its queues hardly free");
    for signal in ["TERM", "KILL", "TERM", "KILL"] {
        lab.guest.start(STRICT, netns::CACHE_ON);
        lab.exchange(1, MB / 8);
        // Its lock on the interfaces ends with the process, its sockets some time later.
        lab.guest.sh(&format!("kill -{signal} $pid; wait $pid; true"));
        let begin = Instant::now();
        let log = lab.guest.start(STRICT, netns::CACHE_ON);
        row(&format!("ready again after SIG{signal}"), &format!("{:.1?}", begin.elapsed()));
        assert_eq!(log.matches(ZERO_COPY).count(), 2, "not zero copy after SIG{signal}:\n{log}");
        lab.exchange(1, MB / 8);
        lab.guest.stop();
    }

    step("Ended: the card is the kernel's again");
    lab.guest.sh("ip addr add 10.77.0.77/24 dev wan0");
    lab.client.sh("ping -n -q -c 5 -i 0.1 -W 2 10.77.0.77");
    lab.guest.expect_calm();
}

/// Two queues and two workers, both directions of a connection meeting at one of them.
fn two_queues(image: &Image) {
    let mut lab = Lab::new(image, 2, 1500);
    step("Two queues, which the card chooses by a hash that is the same both ways");
    for port in [Rig::LAN, Rig::WAN] {
        lab.guest.sh(&format!("ethtool -L {port} combined 2"));
        lab.guest.sh(&format!("ethtool -X {port} hkey {} equal 2", ["6d:5a"; 20].join(":")));
    }
    let log = lab.guest.start(&format!("{STRICT} --workers 2"), netns::CACHE_ON);
    expect_zero_copy(&log);
    lab.ping();
    rows(lab.exchange(1, 4 * MB));
    rows(lab.exchange(32, MB / 8));
    endure(&lab, "syn");
    for port in [Rig::LAN, Rig::WAN] {
        let said = lab.guest.sh(&format!("ethtool -S {port}"));
        let frames = |queue: usize| {
            let key = format!("rx{queue}_xdp_packets:");
            let line = said.lines().find_map(|line| line.trim().strip_prefix(&key));
            line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or_else(|| panic!("no {key} in\n{said}"))
        };
        let [first, second] = [frames(0), frames(1)];
        row(&format!("frames received by {port}, a queue"), &format!("{first}, {second}"));
        assert!(first.min(second) > 1000, "{port}: a queue has nothing to do: {first}, {second}");
    }
    print_losses(&lab.guest.stop());
    lab.guest.expect_calm();
}

/// How the cards spread frames over their queues is as the operator had it, whatever ended the proxy.
fn spreading_is_put_back(image: &Image) {
    let mut lab = Lab::new(image, 2, 1500);
    step("Ended or killed: the cards spread frames as before");
    for port in [Rig::LAN, Rig::WAN] {
        lab.guest.sh(&format!("ethtool -L {port} combined 2"));
        // A key that is not symmetric, and a table that prefers a queue.
        let key: Vec<String> = (1..=40).map(|byte| format!("{byte:02x}")).collect();
        lab.guest.sh(&format!("ethtool -X {port} hkey {} weight 3 1", key.join(":")));
    }
    let asked = |lab: &mut Lab| {
        [Rig::LAN, Rig::WAN].map(|port| {
            lab.guest.sh(&format!(
                "ethtool -x {port}; ethtool -l {port}; for flow in tcp4 tcp6; do ethtool -n {port} rx-flow-hash $flow; done"
            ))
        })
    };
    let before = asked(&mut lab);
    let arguments = format!("{STRICT} --workers 2");
    for (how, then) in [("TERM", ""), ("KILL", "synproxy --restore"), ("KILL", "a start and an end")] {
        let log = lab.guest.start(&arguments, netns::CACHE_ON);
        assert!(log.contains("steering: both interfaces distribute connections"), "{log}");
        let meanwhile = asked(&mut lab);
        assert!((0..2).all(|port| meanwhile[port] != before[port]), "nothing was changed: {meanwhile:?}");
        lab.exchange(1, MB / 8);
        lab.guest.sh(&format!("kill -{how} $pid; wait $pid; true"));
        match then {
            "" => {}
            "synproxy --restore" => row("the restorer says", lab.guest.sh(then).trim()),
            _ => {
                assert_ne!(asked(&mut lab), before, "a killed process puts nothing back");
                lab.guest.start(&arguments, netns::CACHE_ON);
                lab.exchange(1, MB / 8);
                lab.guest.stop();
            }
        }
        let after = asked(&mut lab);
        assert_eq!(after, before, "SIG{how} {then}: {after:#?}\nbefore: {before:#?}");
        row(&format!("as before after SIG{how} {then}"), "keys, tables, fields, queues");
    }
    lab.guest.expect_calm();
}

/// Frames as long as the driver takes them in one buffer, and longer ones, which go another way.
fn large_frames(image: &Image) {
    let mut lab = Lab::new(image, 1, 3000);
    step("An MTU of 3000");
    expect_zero_copy(&lab.guest.start(STRICT, netns::CACHE_ON));
    rows(lab.exchange(1, 4 * MB));
    print_losses(&lab.guest.stop());
    lab.set_mtu(9000);
    step("An MTU of 9000: this driver has no zero copy for frames in several buffers, and the next best way is taken");
    let log = lab.guest.start("xdp:lan0 xdp:wan0", netns::CACHE_ON);
    let why = log.lines().filter(|line| line.contains("no zero copy") || line.contains("AF_XDP"));
    why.for_each(|line| row("the log says", line.split_once("INFO").map_or(line, |(_, told)| told.trim())));
    rows(lab.exchange(1, 4 * MB));
    print_losses(&lab.guest.stop());
    lab.guest.expect_calm();
}

/// What is measured beside the forwarder.
#[derive(Clone, Copy)]
enum Load {
    /// SYNs, from sources that do not exist.
    Syn,
    /// ACKs with random numbers.
    Ack,
    /// Running connections of small segments.
    Established,
}

/// What stands in the guest: its name, its arguments, its configuration.
const MIDDLES: [(&str, &str, &str); 3] = [
    ("forwarder", "--bypass", netns::CACHE_OFF),
    ("cookies", "", netns::CACHE_OFF),
    ("SYN cache", "", netns::CACHE_ON),
];

/// What a middle achieved under a load.
#[derive(Clone, Copy, Default)]
struct Figure {
    /// Frames a second that its cards received and it did with what it is there for: passed, answered, rejected.
    rate: f64,
    /// What it says a frame costs it.
    cost: f64,
}

/// One load on one middle. What the cards cannot take is lost before it is counted.
fn measure(lab: &mut Lab, load: Load, (name, arguments, config): (&str, &str, &str)) -> Figure {
    // What is left out under pressure is no answer.
    lab.guest.start(&format!("{STRICT} {arguments}"), &format!("shed = off;\n{config}"));
    match load {
        Load::Syn | Load::Ack => {
            let kind = if matches!(load, Load::Syn) { "syn" } else { "ack" };
            let mut flood = lab.client.command(program("synflood"));
            flood.args(["--interface", "c0", "--to", &netns::SERVER_V4.to_string(), "--kind", kind]);
            // Nobody is at either Ethernet address: what comes out of the box costs the hosts nothing.
            flood.args(["--to-mac", "02:00:00:00:00:dd", "--from-mac", "02:00:00:00:00:66"]);
            flood.args(["--seconds", &LOADED.as_secs().to_string(), "--rate", &OFFERED.to_string()]);
            let status = flood.stdout(Stdio::null()).status().expect("starting the flood");
            assert!(status.success(), "the flood: {status}");
        }
        Load::Established => {
            let server = lab.server.serve(netns::SERVER_V4, 0, |mut stream| {
                io::copy(&mut stream, &mut io::sink())?;
                Ok(())
            });
            let end = Instant::now() + LOADED;
            thread::scope(|scope| {
                for _ in 0..4 {
                    let stream = lab.client.run(|| small_segments(server.address)).expect("connecting");
                    scope.spawn(move || {
                        let (mut stream, bytes) = (stream, vec![1; 16 << 10]);
                        while Instant::now() < end {
                            stream.write_all(&bytes).expect("a running connection");
                        }
                    });
                }
            });
        }
    }
    let log = lab.guest.stop();
    let [lan, wan] = figures(&log, "received, frames");
    let [cost] = figures(&log, "ns a frame, without ports");
    let (what, done) = match (load, name) {
        (Load::Established, _) => ("sent, frames", figures::<2>(&log, "sent, frames").iter().sum()),
        (_, "forwarder") => ("sent, frames", figures::<2>(&log, "sent, frames")[0]),
        (Load::Syn, _) => ("syn-answered", figures::<1>(&log, "syn-answered")[0]),
        // All are rejected; those beyond the rate at which strangers are looked at go under other names.
        (Load::Ack, _) => ("received, frames", wan),
    };
    // The card's own rings are emulated too: what it received and could not send in time is no frame moved.
    assert!(done >= 0.7 * (lan + wan), "{name}: {what} only {done} of {lan} and {wan}:\n{log}");
    Figure { rate: done / LOADED.as_secs_f64(), cost }
}

/// The last numbers of the line of the table that begins so.
fn figures<const N: usize>(log: &str, label: &str) -> [f64; N] {
    let line = log.lines().rev().find_map(|line| line.trim_start().strip_prefix(label));
    let mut numbers = line.unwrap_or_default().split_whitespace().map(str::parse);
    std::array::from_fn(|_| numbers.next().and_then(Result::ok).unwrap_or_else(|| panic!("no {label:?} in\n{log}")))
}

/// A connection whose segments carry 256 bytes at the most.
fn small_segments(address: SocketAddr) -> io::Result<TcpStream> {
    let fd =
        socket::socket(socket::AddressFamily::Inet, socket::SockType::Stream, socket::SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&fd, socket::sockopt::TcpMaxSeg, &256)?;
    let SocketAddr::V4(to) = address else { unreachable!("the server is at an IPv4 address") };
    socket::connect(fd.as_raw_fd(), &socket::SockaddrIn::from(to))?;
    let stream = TcpStream::from(fd);
    stream.set_write_timeout(Some(traffic::PATIENCE))?;
    Ok(stream)
}

/// What the proxy costs beyond forwarding: both in turn in the same guest, and the best of each.
fn beside_the_forwarder(image: &Image) {
    let mut lab = Lab::new(image, 1, 1500);
    step("Beside the forwarder (--bypass) in the same guest, best of each; emulated: only the ratios mean something");
    let loads = [(Load::Syn, "SYN -> SYN-ACK"), (Load::Ack, "bogus ACK"), (Load::Established, "established, 256 B")];
    for (load, what) in loads {
        let mut best = [Figure::default(); MIDDLES.len()];
        for _ in 0..ROUNDS {
            for (best, middle) in best.iter_mut().zip(MIDDLES) {
                let now = measure(&mut lab, load, middle);
                best.rate = best.rate.max(now.rate);
                best.cost = if best.cost == 0.0 { now.cost } else { best.cost.min(now.cost) };
            }
        }
        for (figure, (name, ..)) in best.iter().zip(MIDDLES) {
            let ratio = figure.rate / best[0].rate;
            row(
                &format!("{what}, {name}"),
                &format!(
                    "{:6.1} thousand frames a second, ratio {ratio:.2}; {:6.0} ns a frame",
                    figure.rate / 1e3,
                    figure.cost
                ),
            );
        }
    }
    lab.guest.expect_calm();
}

/// What was lost on the way, by the table at the end, and how often the kernel had to be called.
fn print_losses(log: &str) {
    let told = ["lost", "fill ring found", "received, frames", "sent, frames", "kernel woken up"];
    for line in log.lines().filter(|line| told.iter().any(|label| line.starts_with(label))) {
        row("the table says (lan, wan)", &line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
}

fn main() -> ExitCode {
    guest::run(
        "test-zero-copy",
        Card::Virtio,
        &[
            ("one-queue", &one_queue),
            ("two-queues", &two_queues),
            ("put-back", &spreading_is_put_back),
            ("large-frames", &large_frames),
            ("forwarder", &beside_the_forwarder),
        ],
    )
}
