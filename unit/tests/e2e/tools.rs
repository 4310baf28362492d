//! The load generators at work, through the proxy and between real kernels: their patterns pass, their clients are served, and what they count
//! is what the kernels count.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use harness::{leftovers, test};
use unit::netns::{self, Appliance, Backend, CACHE_OFF, CACHE_ON, Namespace, Rig, program, traffic};

/// What a generator said: each `name=value`, and its exit status.
#[derive(Debug)]
struct Said {
    words: HashMap<String, String>,
    text: String,
    good: bool,
}

impl Said {
    fn of(child: Child) -> Said {
        let output = child.wait_with_output().expect("waiting for a generator");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let pair = |word: &str| word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        // What is said first of a name counts.
        let words = text.split_whitespace().rev().filter_map(pair).collect();
        Said { words, good: output.status.success(), text }
    }

    fn number(&self, name: &str) -> u64 {
        let value = self.words.get(name).unwrap_or_else(|| panic!("no {name} in what it said: {}", self.text));
        value.parse().unwrap_or_else(|_| panic!("{name} is no number: {}", self.text))
    }
}

fn start(mut command: Command, arguments: &[&str]) -> Child {
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("starting a generator")
}

fn send(namespace: &Namespace, arguments: &[&str]) -> Child {
    start(namespace.command(program("netmapsend")), arguments)
}

/// How a generator names an interface for the same way of sending.
fn named(backend: Backend, interface: &str) -> String {
    format!("{}:{interface}", if backend == Backend::Packet { "packet" } else { "xdp" })
}

/// Has the kernel say nothing of its own accord.
fn quiet(namespace: &Namespace, interface: &str) {
    namespace.sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6"), "1");
}

/// Three of each of the 540 test connections: no more than fit the rings of a sink that does not get its core for a while.
const FRAMES: u64 = 3 * 540;

#[test]
fn the_pattern_passes_over_test_connections() {
    let count = FRAMES.to_string();
    for backend in [Backend::Driver, Backend::Packet] {
        let rig = Rig::new();
        quiet(&rig.client, "c0");
        quiet(&rig.server, "s0");
        let _proxy = Appliance::start(&rig, backend, "test_connections;");
        let mut sink = send(&rig.client, &[&named(backend, "c0"), "--sink", "--count", &count, "--seconds", "10"]);
        let mut ready = String::new();
        BufReader::new(sink.stderr.take().expect("piped")).read_line(&mut ready).expect("what the sink says");
        assert_eq!(ready, "netmapsend: ready\n");
        let sent = [&named(backend, "s0"), "--flows", "540", "--count", &count, "--rate", "8000"];
        let sent = Said::of(send(&rig.server, &sent));
        assert!(sent.good, "{backend:?}: {}", sent.text);
        assert_eq!(sent.number("sent"), FRAMES, "{}", sent.text);
        let sunk = Said::of(sink);
        let words = ["received", "ack", "wrong"].map(|name| sunk.number(name));
        assert_eq!(words, [FRAMES, FRAMES, 0], "{backend:?}: of {} came {}", sent.text, sunk.text);
        assert_eq!(sunk.number("bytes"), FRAMES / 3 * (1514 + 1514 + 64), "{}", sunk.text);
    }
}

#[test]
fn the_pattern_passes_from_file_to_file() {
    let own = leftovers::file("tools");
    fs::create_dir_all(&own).expect("a directory for captures");
    let path = |name: &str| own.join(name).display().to_string();
    let tool = |arguments: &[&str]| Said::of(start(Command::new(program("netmapsend")), arguments));
    let made = tool(&[&format!("pcap:out={}", path("made")), "--count", "540"]);
    assert!(made.good && made.number("sent") == 540, "{}", made.text);
    fs::write(path("conf"), "synproxyconf = { test_connections; };").expect("writing a configuration");
    let ports = [format!("pcap:in={}", path("made")), format!("pcap:out={}", path("passed"))];
    let mut proxy = Command::new(program("synproxy"));
    proxy.args(["--no-pin", "--config", &path("conf")]).args(&ports);
    let passed = proxy.stdin(Stdio::null()).output().expect("running the proxy over files");
    assert!(passed.status.success(), "{}", String::from_utf8_lossy(&passed.stderr));
    let read = tool(&[&format!("pcap:{}", path("passed")), "--sink", "--seconds", "60"]);
    assert_eq!(["received", "ack", "wrong"].map(|name| read.number(name)), [540, 540, 0], "{}", read.text);
    fs::remove_dir_all(&own).expect("removing captures");
}

/// Clients from addresses that only the generator knows, to a server of the kernel's.
fn clients_are_served(backend: Backend, config: &str, to: std::net::IpAddr, from: &str, further: &[&str]) {
    let rig = Rig::new();
    let _proxy = Appliance::start(&rig, backend, config);
    let server = rig.server.serve(to, 80, traffic::echo);
    let before = rig.server.counters();
    let (interface, to) = (named(backend, "c0"), to.to_string());
    let mut arguments = vec![interface.as_str(), "--connect", "--to", to.as_str(), "--from", from];
    arguments.extend(["--count", "200", "--rate", "400", "--seconds", "5"]);
    arguments.extend(further);
    let said = Said::of(send(&rig.client, &arguments));
    let name = format!("{backend:?} {config} {arguments:?}: {}", said.text);
    assert!(said.good, "{name}");
    let counts = ["attempted", "answered", "served", "refused", "lost", "wrong"].map(|word| said.number(word));
    assert_eq!(counts, [200, 200, 200, 0, 0, 0], "{name}");
    assert!(said.text.contains("handshake: p50="), "{name}");
    thread::sleep(Duration::from_millis(100));
    let risen = rig.server.counters().since(&before);
    assert_eq!(risen.get("TcpPassiveOpens"), 200, "{name}");
    assert_eq!(risen.get("TcpInErrs"), 0, "{name}");
    drop(server);
}

#[test]
fn honest_clients_of_the_generator_are_served_by_a_kernel() {
    let v4 = "10.77.0.128/25";
    clients_are_served(Backend::Packet, CACHE_ON, netns::SERVER_V4, v4, &["--bare", "--word", "4000"]);
    clients_are_served(Backend::Driver, CACHE_ON, netns::SERVER_V6, "fd77::100/120", &["--word", "4000"]);
    clients_are_served(Backend::Driver, CACHE_OFF, netns::SERVER_V4, v4, &["--abrupt", "--word", "10"]);
}

#[test]
fn nobody_there_is_lost_and_nobody_asked_for_is_an_error() {
    let rig = Rig::new();
    let _proxy = Appliance::start(&rig, Backend::Packet, CACHE_ON);
    let closed =
        ["packet:c0", "--connect", "--to", "10.77.0.2", "--port", "9", "--from", "10.77.0.130", "--count", "1"];
    let said = Said::of(send(&rig.client, &[closed.as_slice(), &["--word", "1", "--patience", "2"]].concat()));
    assert!(!said.good, "a closed port: {}", said.text);
    assert_eq!([said.number("served"), said.number("refused") + said.number("lost")], [0, 1], "{}", said.text);
    let nowhere = Said::of(send(&rig.client, &["packet:c0", "--flood", "rst", "--to", "10.77.0.77", "--count", "1"]));
    assert!(!nowhere.good && nowhere.text.contains("--to-mac"), "{}", nowhere.text);
}

/// Both ends of a rig in one namespace, each behind its own port of the box.
fn ends_together(rig: &Rig) {
    rig.client.sh(&format!("ip link set c0 netns {}", rig.server.name()));
    rig.server.sh("ip addr flush dev s0; ip link set c0 up; ethtool -K c0 tx off txvlan off >/dev/null");
    quiet(&rig.server, "c0");
    quiet(&rig.server, "s0");
}

#[test]
fn both_ends_of_an_exchange_hear_what_was_said() {
    for (backend, config, further) in [
        (Backend::Driver, CACHE_ON, vec!["--bytes", "100000"]),
        (
            Backend::Packet,
            CACHE_OFF,
            vec!["--like", "tcpsendrecv1", "--seconds", "0.5", "--vlan", "7", "--mss", "1400"],
        ),
        (Backend::Driver, CACHE_OFF, vec!["--bytes", "50000", "--bare", "--open", "lan", "--vlan", "5", "--ipv6"]),
    ] {
        let rig = Rig::new();
        ends_together(&rig);
        let proxy = Appliance::start(&rig, backend, config);
        let (lan, wan) = (named(backend, "s0"), named(backend, "c0"));
        let arguments = [vec![lan.as_str(), wan.as_str()], further.clone()].concat();
        let said = Said::of(start(rig.server.command(program("tcpsendrecv")), &arguments));
        let name = format!("{backend:?} {config} {further:?}: {}", said.text);
        assert!(said.good, "{name}\n{}", proxy.log().join("\n"));
        assert_eq!([said.number("failed"), said.number("wrong")], [0, 0], "{name}");
        assert_eq!(said.number("finished"), said.number("opened"), "{name}");
        assert!(said.number("bytes-to-wan") > 50_000, "{name}");
        if let ["--bytes", bytes, ..] = further[..] {
            let all = said.number("opened") * bytes.parse::<u64>().expect("a number");
            assert_eq!([said.number("bytes-to-lan"), said.number("bytes-to-wan")], [all, all], "{name}");
        }
    }
}

#[test(alone)]
fn a_flood_takes_the_fastest_way_there_is_and_says_which() {
    let attack = ["c0", "--flood", "ack", "--to", "10.77.0.2", "--to-mac", netns::SERVER_MAC, "--seconds", "0.3"];
    for (backend, by_the_kernel) in [(Backend::Driver, true), (Backend::Packet, false)] {
        let rig = Rig::alone();
        // Without an XDP program and without receive merging, a veth takes no frames that are redirected to it.
        rig.middle.sh("ethtool -K wan0 gro off >/dev/null");
        let proxy = Appliance::start(&rig, backend, CACHE_OFF);
        let said = Said::of(send(&rig.client, &[attack.as_slice(), &["--from", "198.51.100.0/24"]].concat()));
        assert!(said.good, "{}", said.text);
        assert_eq!(said.text.contains("an XDP program in the kernel's test loop"), by_the_kernel, "{}", said.text);
        assert!(said.number("sent") > 1_000, "{}", said.text);
        let report = proxy.stop();
        assert!(report.status.success());
    }
}
