//! netmap, against the kernel module: veth cables between real kernels, switches with hosts behind them, pipes. Runs where
//! there is a `/dev/netmap`; `make test-netmap` takes it to a guest that has one.
//!
//! How the module opens a veth end (by itself, or through the network stack) is a parameter of the module, common to all
//! namespaces: the tests take turns.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use harness::{note, test};
use netmap_sys::netmap::{IFNAMSIZ, NETMAP_BDG_ATTACH, NETMAP_BDG_DETACH, NIOCREGIF, nmreq};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use unit::netns::{self, Appliance, Namespace, Rig, program, traffic};

const MB: u64 = 1 << 20;

/// How the module is to open an interface (`NETMAP_ADMODE_*`).
#[derive(Clone, Copy, Debug)]
enum Adapter {
    /// By the driver's own support, where it has any.
    Native = 0,
    /// Through the network stack.
    Generic = 2,
}

const PARAMETERS: &str = "/sys/module/netmap/parameters";

static TURNS: Mutex<()> = Mutex::new(());

/// The module, set to open interfaces so, until this is dropped. The test is ignored where there is no module.
fn module(adapter: Adapter) -> MutexGuard<'static, ()> {
    if !Path::new("/dev/netmap").exists() {
        harness::ignore("there is no /dev/netmap here; `make test-netmap` has one");
    }
    let turn = TURNS.lock().unwrap_or_else(|poison| poison.into_inner());
    // A veth end without NAPI queues a frame where its sender runs: what one sends from two processors may overtake itself
    // before the module sees it. Threads and programs started from here stay where this is.
    let mut first = CpuSet::new();
    first.set(0).expect("there is a processor");
    sched_setaffinity(Pid::from_raw(0), &first).expect("staying on one processor");
    fs::write(format!("{PARAMETERS}/admode"), format!("{}", adapter as u8)).expect("setting a parameter of the module");
    turn
}

/// An interface as one more port of a switch, until it is dropped.
struct Plugged {
    device: File,
    name: String,
}

impl Plugged {
    /// `interface` of `namespace` becomes a port of `switch` there.
    fn new(namespace: &Namespace, switch: &str, interface: &str) -> Plugged {
        let name = format!("{switch}:{interface}");
        let device =
            namespace.run(|| OpenOptions::new().read(true).write(true).open("/dev/netmap").expect("/dev/netmap"));
        // The module looks names up in the namespace of the thread that asks.
        namespace.run(|| command(&device, &name, NETMAP_BDG_ATTACH)).unwrap_or_else(|error| panic!("{name}: {error}"));
        Plugged { device, name }
    }

    fn unplug(self, namespace: &Namespace) {
        namespace
            .run(|| command(&self.device, &self.name, NETMAP_BDG_DETACH))
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }
}

fn command(device: &File, name: &str, command: i32) -> std::io::Result<()> {
    // SAFETY: plain numbers, for all of which zero is a value.
    let mut request: nmreq = unsafe { std::mem::zeroed() };
    assert!(name.len() < IFNAMSIZ, "{name} is too long");
    for (to, from) in request.nr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.nr_version = 14;
    request.nr_cmd = command as u16;
    // SAFETY: the request is a whole structure of ours, which lives as long as the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), NIOCREGIF as _, &raw mut request) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The proxy on these two ports; what it says of them is shown.
fn start(rig: &Rig, lan: &str, wan: &str, config: &str, arguments: &[&str]) -> Appliance {
    let proxy = Appliance::start_on(rig, &[lan.to_owned(), wan.to_owned()], config, arguments);
    let tells = |line: &&String| [": netmap, ", " slots, ", " memories, "].iter().any(|word| line.contains(word));
    for line in proxy.log().iter().filter(tells) {
        note!("  the log says: {}", line.split_once("INFO").map_or(line.as_str(), |(_, told)| told.trim()));
    }
    proxy
}

fn ping(from: &Namespace, to: IpAddr) {
    let said = from.sh(&format!("ping -n -q -c 20 -i 0.05 -W 2 {to}"));
    assert!(said.contains(" 0% packet loss"), "{said}");
}

/// Pings, then a connection every way with every byte looked at, both kernels asked.
fn exchange_every_way(rig: &Rig, what: &str, bytes: u64) {
    ping(&rig.client, netns::SERVER_V4);
    ping(&rig.server, netns::CLIENT_V6);
    for (way, opener, acceptor, ip) in [
        ("from the WAN, IPv4", &rig.client, &rig.server, netns::SERVER_V4),
        ("from the WAN, IPv6", &rig.client, &rig.server, netns::SERVER_V6),
        ("from the LAN, IPv4", &rig.server, &rig.client, netns::CLIENT_V4),
        ("from the LAN, IPv6", &rig.server, &rig.client, netns::CLIENT_V6),
    ] {
        let server = acceptor.serve(ip, 0, traffic::exchanged);
        rig.judge([0, 0], || {
            let stream = opener.connect(server.address).unwrap_or_else(|e| panic!("{what}, {way}: connect: {e}"));
            traffic::exchange(&stream, bytes, bytes).unwrap_or_else(|e| panic!("{what}, {way}: {e}"));
        });
        note!("  {what}, {way}: {} KiB up and as many down, every byte as sent", bytes >> 10);
    }
}

/// Ends it, and expects that it lost nothing on the way that it says it lost.
fn stop(proxy: Appliance) -> Vec<String> {
    let report = proxy.stop();
    assert!(report.status.success(), "{}", report.log.join("\n"));
    report.log
}

/// What an interface has of queues and offloads.
fn settings(rig: &Rig, interface: &str) -> String {
    rig.middle.sh(&format!("ethtool -l {interface}; ethtool -k {interface}"))
}

#[test(alone)]
fn veth_cables_between_two_kernels_through_their_network_stacks() {
    let _module = module(Adapter::Generic);
    for cache in [netns::CACHE_ON, netns::CACHE_OFF] {
        let rig = Rig::alone();
        let before = [Rig::LAN, Rig::WAN].map(|interface| settings(&rig, interface));
        let proxy = start(&rig, "netmap:lan0", "netmap:wan0", cache, &[]);
        let ready = proxy.log().join("\n");
        assert_eq!(ready.matches("frames change places").count(), 2, "one memory:\n{ready}");
        exchange_every_way(&rig, &format!("veth, {cache}"), MB);
        stop(proxy);
        assert_eq!(before, [Rig::LAN, Rig::WAN].map(|interface| settings(&rig, interface)), "put back");
        // The kernel has its interfaces again.
        rig.middle.sh("ip addr add 10.77.0.77/24 dev wan0");
        ping(&rig.client, "10.77.0.77".parse().expect("an address"));
    }
}

#[test(alone)]
fn killed_it_leaves_its_ports_to_the_kernel_and_to_the_next_one() {
    let _module = module(Adapter::Generic);
    let rig = Rig::alone();
    let killed = start(&rig, "netmap:lan0", "netmap:wan0", netns::CACHE_ON, &[]).end(Signal::SIGKILL);
    assert!(!killed.status.success(), "{:?}", killed.status);
    rig.middle.sh("ip addr add 10.77.0.77/24 dev wan0");
    ping(&rig.client, "10.77.0.77".parse().expect("an address"));
    rig.middle.sh("ip addr flush dev wan0");
    let proxy = start(&rig, "netmap:lan0", "netmap:wan0", netns::CACHE_ON, &[]);
    ping(&rig.client, netns::SERVER_V4);
    stop(proxy);
}

/// Why the proxy does not start on these ports.
fn refused(rig: &Rig, ports: [&str; 2]) -> String {
    refused_with(rig, ports, &[])
}

/// Why the proxy does not start on these ports with these arguments.
fn refused_with(rig: &Rig, ports: [&str; 2], arguments: &[&str]) -> String {
    let mut proxy = rig.middle.command(program("synproxy"));
    let said = proxy
        .args(["--no-pin", "--control=none", "--state-dir=none"])
        .args(arguments)
        .args(ports)
        .output()
        .expect("running it");
    let complaint = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success(), "{ports:?}: {complaint}");
    complaint.lines().last().unwrap_or_default().to_owned()
}

#[test(alone)]
fn a_port_that_somebody_has_is_nobody_elses() {
    let _module = module(Adapter::Generic);
    let rig = Rig::alone();
    for Way { lan, wan, .. } in WAYS {
        let proxy = start(&rig, lan, wan, "", &[]);
        for ports in [[lan, "vale7:1"], ["vale7:1", wan]] {
            let complaint = refused(&rig, ports);
            assert!(complaint.contains("in use by another netmap program"), "{ports:?}: {complaint}");
            note!("  {complaint}");
        }
        stop(proxy);
    }
}

#[test(alone)]
fn ports_that_would_forward_their_own_frames_for_ever_are_refused() {
    let _module = module(Adapter::Generic);
    let rig = Rig::alone();
    for (ports, why) in [
        (["vale0:1", "vale0:2"], "ports of one switch"),
        (["netmap:l{1", "netmap:l}1"], "the two ends of one pipe"),
        (["netmap:l}1", "netmap:l{1"], "the two ends of one pipe"),
    ] {
        let complaint = refused(&rig, ports);
        note!("  {complaint}");
        assert!(complaint.contains(why), "{ports:?}: {complaint}");
    }
}

#[test(alone)]
fn with_few_buffers_it_says_how_many_and_with_too_few_what_to_raise() {
    let _module = module(Adapter::Generic);
    let rig = Rig::alone();
    {
        let _few = Parameters::set(&[("buf_num", 9_000)]);
        let proxy = start(&rig, "netmap:lan0", "netmap:wan0", netns::CACHE_ON, &[]);
        let told = proxy.log().into_iter().find(|line| line.contains("spare buffers instead of 8192"));
        let told = told.unwrap_or_else(|| panic!("{}", proxy.log().join("\n")));
        note!("  the log says: {}", told.split_once("INFO").map_or(told.as_str(), |(_, told)| told.trim()));
        exchange_every_way(&rig, "few buffers", MB / 4);
        stop(proxy);
    }
    let _too_few = Parameters::set(&[("buf_num", 4_200)]);
    let complaint = refused(&rig, ["netmap:lan0", "netmap:wan0"]);
    note!("  {complaint}");
    assert!(complaint.contains("buf_num"), "{complaint}");
}

/// Parameters of the module that are put back when this is dropped. Its memory has them from the next time that nobody uses it.
struct Parameters(Vec<(&'static str, String)>);

impl Parameters {
    fn set(values: &[(&'static str, u32)]) -> Parameters {
        let mut before = Parameters(Vec::new());
        for &(name, value) in values {
            let path = format!("{PARAMETERS}/{name}");
            before.0.push((name, fs::read_to_string(&path).expect("a parameter of the module")));
            fs::write(&path, value.to_string()).expect("setting a parameter of the module");
        }
        before
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        for (name, before) in &self.0 {
            let _ = fs::write(format!("{PARAMETERS}/{name}"), before);
        }
    }
}

#[test]
fn frames_of_9000_bytes_cross_a_veth_in_buffers_that_hold_them_and_else_the_module_refuses() {
    for adapter in [Adapter::Native, Adapter::Generic] {
        let _module = module(adapter);
        let rig = Rig::with_mtu(9000);
        let complaint = refused(&rig, ["netmap:lan0", "netmap:wan0"]);
        assert!(complaint.contains("buffers shorter than its MTU"), "{adapter:?}: {complaint}");
        note!("  {adapter:?}, MTU 9000, buffers of 2048 bytes: {complaint}");
    }
    let _module = module(Adapter::Generic);
    // As much memory as there was with buffers of 2048 bytes would be too much for a small machine.
    let _buffers = Parameters::set(&[("buf_size", 10_240), ("buf_num", 24_000)]);
    let rig = Rig::with_mtu(9000);
    let proxy = start(&rig, "netmap:lan0", "netmap:wan0", netns::CACHE_ON, &[]);
    exchange_every_way(&rig, "MTU 9000, buffers of 10240 bytes", MB);
    let log = stop(proxy);
    let [frames, bytes] = ["received, frames", "received, bytes"].map(|label| row(&log, label));
    // Acknowledgements are short.
    assert!((0..2).any(|side| bytes[side] > 2048 * frames[side].max(1)), "{}", log.join("\n"));
}

#[test(alone)]
fn several_ring_pairs_with_a_worker_each() {
    let _module = module(Adapter::Generic);
    let rig = Rig::queued(4);
    let before = settings(&rig, Rig::WAN);
    let proxy = start(&rig, "netmap:lan0", "netmap:wan0", netns::CACHE_ON, &["--workers=2"]);
    assert_ne!(before, settings(&rig, Rig::WAN), "two queues instead of four");
    exchange_every_way(&rig, "two ring pairs", MB);
    stop(proxy);
    assert_eq!(before, settings(&rig, Rig::WAN), "put back");
}

#[test(alone)]
fn switches_with_hosts_behind_them() {
    let _module = module(Adapter::Generic);
    for (slots, cache) in
        [("", netns::CACHE_ON), ("ldp = { netmap_nr_rx_slots = 1024; netmap_nr_tx_slots = 1024; };", netns::CACHE_OFF)]
    {
        let rig = Rig::alone();
        let plugged = [("vale0", Rig::LAN), ("vale1", Rig::WAN)]
            .map(|(switch, interface)| Plugged::new(&rig.middle, switch, interface));
        let proxy = start(&rig, "vale0:1", "vale1:1", &format!("{slots} {cache}"), &[]);
        let rings = if slots.is_empty() { "rings of 256 and 64 slots" } else { "rings of 1024 and 1024 slots" };
        assert!(proxy.log().join("\n").contains(rings), "{}", proxy.log().join("\n"));
        exchange_every_way(&rig, &format!("VALE, {cache}"), MB);
        stop(proxy);
        plugged.into_iter().for_each(|plugged| plugged.unplug(&rig.middle));
    }
}

/// Up to five workers have their rings in one memory, since it is made for ten registrations; more have two.
#[test(alone)]
fn several_workers_between_switches() {
    let _module = module(Adapter::Generic);
    for (workers, way) in [(3, "frames change places"), (7, "copying")] {
        let rig = Rig::alone();
        let plugged = [("vale0", Rig::LAN), ("vale1", Rig::WAN)]
            .map(|(switch, interface)| Plugged::new(&rig.middle, switch, interface));
        let proxy = start(&rig, "vale0:1", "vale1:1", netns::CACHE_ON, &[&format!("--workers={workers}")]);
        let ready = proxy.log().join("\n");
        assert_eq!(ready.matches(&format!("netmap, {way}, {workers} ring pair(s)")).count(), 2, "{ready}");
        assert!(!ready.contains("spare buffers instead of"), "{ready}");
        exchange_every_way(&rig, &format!("VALE, {workers} workers"), MB);
        stop(proxy);
        plugged.into_iter().for_each(|plugged| plugged.unplug(&rig.middle));
    }
    // The module would not return from the eleventh.
    let complaint = refused_with(&Rig::alone(), ["vale0:1", "vale1:1"], &["--bypass", "--workers=11"]);
    note!("  {complaint}");
    assert!(complaint.contains("room for 10 workers") && complaint.contains("priv_if_num"), "{complaint}");
}

#[test(alone)]
fn a_pipe_is_for_one_worker() {
    let _module = module(Adapter::Generic);
    let rig = Rig::alone();
    let complaint = refused_with(&rig, ["netmap:l{1", "netmap:w{1"], &["--workers=2"]);
    note!("  {complaint}");
    assert!(complaint.contains("is a pipe, which has one ring pair"), "{complaint}");
}

/// Two ways to stand between load generators, none of which is a kernel.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// The proxy's ports.
    lan: &'static str,
    wan: &'static str,
    /// Where the generators are.
    beyond_lan: &'static str,
    beyond_wan: &'static str,
    /// Frames that the proxy sends out of each port at the start, so that a switch may learn what is behind it.
    introductions: u64,
}

const WAYS: [Way; 2] = [
    Way { lan: "vale0:1", wan: "vale1:1", beyond_lan: "vale0:0", beyond_wan: "vale1:0", introductions: 1 },
    Way { lan: "netmap:l{1", wan: "netmap:w{1", beyond_lan: "netmap:l}1", beyond_wan: "netmap:w}1", introductions: 0 },
];

/// What waits while an emulated processor is elsewhere has to lie somewhere.
const LONG_RINGS: &str = "ldp = { netmap_nr_rx_slots = 1024; netmap_nr_tx_slots = 1024; };";

/// Frames of a load, and how many a second: a generator's rings hold those of a quarter of a second.
const FRAMES: u64 = 1080;
const RATE: &str = "1000";

/// Starts a load generator beside the proxy.
fn generate(rig: &Rig, generator: &str, arguments: &[&str]) -> Child {
    let mut command = rig.middle.command(program(generator));
    command.args(arguments).arg("--json").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("starting a generator")
}

/// What a generator says when it is done, or has to be because it is told so.
fn told(child: Child) -> Value {
    let output = child.wait_with_output().expect("waiting for a generator");
    let [said, complained] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{said}{complained}");
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{complained}"))
}

fn number(told: &Value, name: &str) -> u64 {
    told.pointer(name).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {name} in {told}"))
}

/// A sink that swallows from now on until it is told to stop.
struct Sink(Child);

impl Sink {
    fn start(rig: &Rig, port: &str) -> Sink {
        let mut child = generate(rig, "netmapsend", &[port, "--sink", "--seconds", "60"]);
        let (mut ready, mut complaints) = (String::new(), BufReader::new(child.stderr.take().expect("piped")));
        complaints.read_line(&mut ready).expect("what the sink says");
        assert_eq!(ready, "netmapsend: ready\n", "{port}");
        Sink(child)
    }

    /// Lets what is on its way arrive, and says what came.
    fn stop(self) -> Value {
        thread::sleep(Duration::from_millis(500));
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).expect("a child of one's own");
        told(self.0)
    }
}

/// A row of the table at the end: LAN, WAN.
fn row(log: &[String], label: &str) -> [u64; 2] {
    let line = log.iter().rev().find_map(|line| line.strip_prefix(label)).unwrap_or_default();
    let mut numbers = line.split_whitespace().map(|number| number.parse().expect("a number of the table"));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

/// A number of the table at the end.
fn of(log: &[String], label: &str) -> u64 {
    let number = |line: &String| line.trim().strip_prefix(label)?.split_whitespace().next()?.parse().ok();
    log.iter().rev().find_map(number).unwrap_or_else(|| panic!("no {label} in\n{}", log.join("\n")))
}

#[test(alone)]
fn the_pattern_passes_over_test_connections() {
    let _module = module(Adapter::Generic);
    for way in WAYS {
        let rig = Rig::alone();
        // Who opens a pipe first says how long its rings are; but the sink must be at a switch before what the switch is to learn.
        let at_switch = (way.introductions > 0).then(|| Sink::start(&rig, way.beyond_wan));
        let proxy = start(&rig, way.lan, way.wan, &format!("{LONG_RINGS} test_connections;"), &[]);
        let sink = at_switch.unwrap_or_else(|| Sink::start(&rig, way.beyond_wan));
        let count = FRAMES.to_string();
        let sent = told(generate(&rig, "netmapsend", &[way.beyond_lan, "--count", &count, "--rate", RATE]));
        let sunk = sink.stop();
        let log = stop(proxy);
        note!(
            "  {}: {} frames of the pattern sent, {} arrived, {} bytes; the box took {:?} and gave {:?}",
            way.lan,
            number(&sent, "/sent"),
            number(&sunk, "/kinds/ack"),
            number(&sunk, "/kinds/bytes"),
            row(&log, "received, frames"),
            row(&log, "sent, frames")
        );
        let name = format!("{way:?}: {sent}\n{sunk}\n{}", log.join("\n"));
        assert_eq!(["/sent", "/unsent"].map(|count| number(&sent, count)), [FRAMES, 0], "{name}");
        // What a switch is to learn goes everywhere, and is the first thing that comes.
        let came = ["/received", "/kinds/ack", "/kinds/other", "/kinds/wrong"].map(|count| number(&sunk, count));
        assert_eq!(came, [FRAMES + way.introductions, FRAMES, way.introductions, 0], "{name}");
        assert_eq!(number(&sunk, "/kinds/bytes"), FRAMES / 3 * (1514 + 1514 + 64) + 60 * way.introductions, "{name}");
        assert_eq!(row(&log, "received, frames"), [FRAMES, 0], "{name}");
        assert_eq!(row(&log, "sent, frames"), [way.introductions, FRAMES + way.introductions], "{name}");
    }
}

#[test(alone)]
fn a_flood_is_answered_and_nobody_behind_sees_it() {
    let _module = module(Adapter::Generic);
    for way in WAYS {
        let rig = Rig::alone();
        let sink = Sink::start(&rig, way.beyond_lan);
        let proxy = start(&rig, way.lan, way.wan, &format!("{LONG_RINGS} {}", netns::CACHE_OFF), &[]);
        let count = FRAMES.to_string();
        let arguments = [way.beyond_wan, "--flood", "syn", "--to", "10.77.0.2", "--to-mac", "02:00:00:00:00:aa"];
        let how = ["--from", "198.18.0.0/15", "--count", &count, "--rate", RATE];
        let flood = told(generate(&rig, "netmapsend", &[arguments.as_slice(), &how].concat()));
        let sunk = sink.stop();
        let log = stop(proxy);
        note!(
            "  {}: {} SYNs sent, {} answered; behind the box {} frames",
            way.lan,
            number(&flood, "/sent"),
            number(&flood, "/answered"),
            number(&sunk, "/received")
        );
        let name = format!("{way:?}: {flood}\n{sunk}\n{}", log.join("\n"));
        let counts = ["/sent", "/answered", "/kinds/syn_ack", "/kinds/wrong"].map(|count| number(&flood, count));
        assert_eq!(counts, [FRAMES, FRAMES, FRAMES, 0], "{name}");
        assert_eq!(number(&sunk, "/received"), way.introductions, "{name}");
        assert_eq!(row(&log, "received, frames"), [0, FRAMES], "{name}");
        assert_eq!(row(&log, "sent, frames"), [way.introductions, FRAMES + way.introductions], "{name}");
        assert_eq!(of(&log, "syn-answered"), FRAMES, "{name}");
    }
}

#[test(alone)]
fn connections_between_generators_are_translated_byte_by_byte() {
    let _module = module(Adapter::Generic);
    const FLOWS: u64 = 24;
    const BYTES: u64 = 20_000;
    for way in WAYS {
        let rig = Rig::alone();
        let proxy = start(&rig, way.lan, way.wan, &format!("{LONG_RINGS} {}", netns::CACHE_OFF), &[]);
        let (flows, bytes) = (FLOWS.to_string(), BYTES.to_string());
        let load = ["--flows", &flows, "--bytes", &bytes, "--in-flight", "8192", "--rate", "50", "--seconds", "20"];
        let ends = [way.beyond_lan, way.beyond_wan];
        let said = told(generate(&rig, "tcpsendrecv", &[ends.as_slice(), &load].concat()));
        let log = stop(proxy);
        note!(
            "  {}: {} connections, {} bytes to the LAN and {} to the WAN, none of them wrong",
            way.lan,
            number(&said, "/finished"),
            number(&said, "/bytes_to_lan"),
            number(&said, "/bytes_to_wan")
        );
        let name = format!("{way:?}: {said}\n{}", log.join("\n"));
        let counts = ["/opened", "/finished", "/failed", "/wrong"].map(|count| number(&said, count));
        assert_eq!(counts, [FLOWS, FLOWS, 0, 0], "{name}");
        let heard = ["/bytes_to_lan", "/bytes_to_wan"].map(|count| number(&said, count));
        assert_eq!(heard, [FLOWS * BYTES; 2], "{name}");
        assert_eq!(of(&log, "cookie-good"), FLOWS, "{name}");
    }
}

#[test(alone)]
fn honest_clients_on_a_switch_are_served_by_a_kernel_on_the_other() {
    let _module = module(Adapter::Generic);
    const CLIENTS: u64 = 100;
    let rig = Rig::alone();
    let plugged = Plugged::new(&rig.middle, "vale0", Rig::LAN);
    let proxy = start(&rig, "vale0:1", "vale1:1", &format!("{LONG_RINGS} {}", netns::CACHE_OFF), &[]);
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    let before = rig.server.counters();
    let (to, count) = (netns::SERVER_V4.to_string(), CLIENTS.to_string());
    let clients = ["vale1:0", "--connect", "--to", &to, "--from", "10.77.0.128/25", "--count", &count];
    let said = told(generate(&rig, "netmapsend", &[clients.as_slice(), &["--rate", "50", "--word", "1000"]].concat()));
    let risen = rig.server.counters().since(&before);
    let log = stop(proxy);
    note!("  {} of {CLIENTS} clients served", number(&said, "/clients/served"));
    let name = format!("{said}\n{}", log.join("\n"));
    let counts = ["attempted", "answered", "served", "refused", "lost", "wrong"];
    let counts = counts.map(|count| number(&said, &format!("/clients/{count}")));
    assert_eq!(counts, [CLIENTS, CLIENTS, CLIENTS, 0, 0, 0], "{name}");
    assert_eq!(["TcpPassiveOpens", "TcpInErrs"].map(|count| risen.get(count)), [CLIENTS as i64, 0], "{name}");
    assert_eq!(of(&log, "cookie-good"), CLIENTS, "{name}");
    drop(server);
    plugged.unplug(&rig.middle);
}

#[test(alone)]
fn two_generators_at_one_switch_have_their_answers_to_themselves() {
    let _module = module(Adapter::Generic);
    const CLIENTS: u64 = 100;
    let rig = Rig::alone();
    let plugged = Plugged::new(&rig.middle, "vale0", Rig::LAN);
    let proxy = start(&rig, "vale0:1", "vale1:1", &format!("{LONG_RINGS} {}", netns::CACHE_OFF), &[]);
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    let (to, count) = (netns::SERVER_V4.to_string(), CLIENTS.to_string());
    let running = [("vale1:0", "10.77.0.128/26"), ("vale1:2", "10.77.0.192/26")].map(|(port, from)| {
        let load =
            [port, "--connect", "--to", &to, "--from", from, "--count", &count, "--rate", "25", "--word", "1000"];
        generate(&rig, "netmapsend", &load)
    });
    let said = running.map(told);
    let log = stop(proxy);
    for said in &said {
        note!("  {} of {CLIENTS} clients served", number(said, "/clients/served"));
        assert_eq!(number(said, "/clients/served"), CLIENTS, "{said:?}\n{}", log.join("\n"));
    }
    drop(server);
    plugged.unplug(&rig.middle);
}

#[test(alone)]
fn pipes() {
    let _module = module(Adapter::Generic);
    let rig = Rig::alone();
    let proxy = start(&rig, "netmap:l{1", "netmap:w{1", netns::CACHE_ON, &[]);
    // Two that only forward lead from the other ends to the cables.
    let lan = start(&rig, "netmap:lan0", "netmap:l}1", "", &["--bypass"]);
    let wan = start(&rig, "netmap:wan0", "netmap:w}1", "", &["--bypass"]);
    exchange_every_way(&rig, "pipes", MB);
    [lan, wan, proxy].into_iter().for_each(|one| drop(stop(one)));
}

#[test(alone)]
fn a_pipe_in_the_memory_of_a_card_takes_its_frames_as_they_lie() {
    let _module = module(Adapter::Generic);
    let rig = Rig::alone();
    let proxy = start(&rig, "netmap:lan0", "netmap:lan0{1", netns::CACHE_ON, &[]);
    let wan = start(&rig, "netmap:lan0}1", "netmap:wan0", "", &["--bypass"]);
    let ready = [proxy.log(), wan.log()].concat().join("\n");
    assert_eq!(ready.matches("frames change places").count(), 4, "one memory:\n{ready}");
    exchange_every_way(&rig, "a card and a pipe in its memory", MB);
    [wan, proxy].into_iter().for_each(|one| drop(stop(one)));
}

/// netmap's own program that joins an interface's rings with those that lead to the network stack.
struct HostBridge(Child);

impl HostBridge {
    fn start(program: &Path, namespace: &Namespace, interface: &str) -> HostBridge {
        let mut command = namespace.command(program);
        command.args(["-i", &format!("netmap:{interface}")]).stdout(Stdio::null()).stderr(Stdio::null());
        HostBridge(command.spawn().expect("starting netmap's bridge"))
    }
}

impl Drop for HostBridge {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test(alone)]
fn veth_cables_whose_driver_knows_netmap() {
    let _module = module(Adapter::Native);
    let Some(program) = std::env::var_os("NETMAP_BRIDGE") else {
        harness::ignore("NETMAP_BRIDGE does not name netmap's program `bridge`, without which its kernel is no host");
    };
    let rig = Rig::alone();
    // Such a cable joins rings with rings: its outer ends have to be netmap's as well.
    let hosts =
        [(&rig.client, "c0"), (&rig.server, "s0")].map(|(host, end)| HostBridge::start(Path::new(&program), host, end));
    thread::sleep(Duration::from_secs(3));
    let proxy = start(&rig, "netmap:lan0", "netmap:wan0", netns::CACHE_ON, &[]);
    exchange_every_way(&rig, "veth that knows netmap", MB);
    stop(proxy);
    drop(hosts);
}
