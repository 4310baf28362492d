//! Modes by destination between real kernels: a server's own queue for half-open connections is never filled in mode `auto`, switches lose no connection, and
//! in mode `pass` the box is a cable.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use control::{Client, DestinationMode, Reply, Request, Suggested};
use harness::{leftovers, note, test};
use nix::sys::signal::{self, Signal};
use nix::sys::socket::{self, Backlog};
use nix::unistd::Pid;
use tools::flood_template::{Kind, Sources, Target};
use tools::raw::Sender;
use tools::xdp_generator::XdpGenerator;
use unit::netns::traffic::{self, Server};
use unit::netns::{self, Appliance, Backend, Counters, Rig, TimedTap, program, within};
use unit::script::{FlowKey, build, syn};

/// What many programs ask for: room for so many half-open connections.
const BACKLOG: i32 = 128;

/// SYNs a second that a program reaches which sends them through a socket, on two cores beside the box and the hosts.
const MOST_BY_SOCKETS: u64 = 100_000;

/// How long it may take until cookies answer a flood, on a machine with many other things to do.
const SLOWEST: Duration = Duration::from_millis(500);

/// How long what is to come may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The Ethernet address of those in whose names a flood comes: nobody here has it.
const NOBODY: &str = "02:00:00:00:00:66";

/// A proxy with a control socket.
struct Box {
    proxy: Appliance,
    socket: PathBuf,
}

impl Box {
    fn start(rig: &Rig, config: &str) -> Box {
        let socket = leftovers::file("control.sock");
        let argument = format!("--control={}", socket.display());
        Box { proxy: Appliance::start_with(rig, Backend::Driver, config, &[&argument]), socket }
    }

    fn modes(&self) -> Vec<DestinationMode> {
        match Client::connect(&self.socket).expect("a box listens").ask(&Request::Policy) {
            Ok(Reply::Policy(destinations)) => destinations,
            other => panic!("{other:?}"),
        }
    }

    fn suggested(&self) -> Vec<Suggested> {
        match Client::connect(&self.socket).expect("a box listens").ask(&Request::SuggestPolicy) {
            Ok(Reply::Suggested(suggested)) => suggested,
            other => panic!("{other:?}"),
        }
    }
}

fn synctl(socket: &Path, line: &str) -> String {
    let mut command = Command::new(netns::program("synctl"));
    let output = command.arg("--socket").arg(socket).args(line.split_whitespace()).output().expect("running synctl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A server that anybody can reach, with a queue as many programs have it.
fn serve(rig: &Rig) -> Server {
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    socket::listen(server.listener(), Backlog::new(BACKLOG).expect("small")).expect("listening again");
    // Its answers go to the asker: the client's kernel has no such address, and says nothing.
    rig.server.sh(&format!("ip route add default via {} dev s0", netns::CLIENT_V4));
    rig.client.sh(&format!("ping -n -q -c 2 -i 0.05 {}", netns::SERVER_V4));
    server
}

/// A flood of SYNs from everywhere, of so many a second, which it keeps on a crowded machine too.
fn flood(rig: &Rig, rate: u64, seconds: u64) -> Child {
    let mut flood = rig.client.command("chrt");
    flood.args(["-f", "1"]).arg(program("synflood"));
    flood.args(["--interface", "c0", "--to", &netns::SERVER_V4.to_string(), "--to-mac", netns::SERVER_MAC]);
    flood.args(["--from-mac", NOBODY, "--seconds", &seconds.to_string(), "--rate", &rate.to_string()]);
    flood.stdout(Stdio::piped()).spawn().expect("starting the flood")
}

/// The same at rates that no program reaches through sockets: the kernel makes its frames. Returns how many there were.
fn flood_by_kernel(rig: &Rig, rate: u64, seconds: u64) -> thread::JoinHandle<u64> {
    let mac = tools::interface::parse_mac(netns::SERVER_MAC).expect("an Ethernet address");
    let from_mac = tools::interface::parse_mac(NOBODY).expect("an Ethernet address");
    let target = Target { address: netns::SERVER_V4, port: 80, mac, from_mac, vlan: None };
    let mut generator = XdpGenerator::flood(Kind::Syn, target, Sources::ANY_V4, Some(rate as f64), 0x5eed)
        .expect("the generator, as root, on Linux 5.18 or later");
    let index = || nix::net::if_::if_nametoindex("c0").expect("an interface of the rig");
    rig.client.run(|| generator.port(0, index())).expect("an interface of the rig");
    thread::spawn(move || {
        let end = Instant::now() + Duration::from_secs(seconds);
        generator.run_until(end, rate * seconds, &AtomicBool::new(false)).expect("the generator");
        generator.count().expect("reading a counter")
    })
}

fn ask(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = traffic::connect(address)?;
    stream.write_all(b"question")?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"question");
    Ok(())
}

/// What the server's kernel says when a queue of half-open connections is full.
fn overflows(risen: &Counters) -> Vec<(&'static str, i64)> {
    ["TcpExtListenOverflows", "TcpExtListenDrops", "TcpExtTCPReqQFullDoCookies", "TcpExtTCPReqQFullDrop"]
        .into_iter()
        .map(|name| (name, risen.get(name)))
        .filter(|(_, count)| *count != 0)
        .collect()
}

/// What a flood does to a server behind a box with this configuration: how many of its SYNs reached it, how long after the first one, which passes at once, the
/// last did, what its kernel complained of, and how the honest fared meanwhile.
struct Suffered {
    reached: usize,
    took: Duration,
    overflows: Vec<(&'static str, i64)>,
    honest: Vec<String>,
    modes: Vec<DestinationMode>,
    log: Vec<String>,
}

fn suffer(rig: &Rig, config: &str, rate: u64) -> Suffered {
    let own = Box::start(rig, config);
    let server = serve(rig);
    rig.client.run(|| ask(server.address)).expect("connecting in peace");
    let before = rig.server.counters();
    let at_server = TimedTap::open(&rig.server);
    let by_kernel = rate > MOST_BY_SOCKETS;
    let flood = (!by_kernel).then(|| flood(rig, rate, 2));
    let generator = by_kernel.then(|| flood_by_kernel(rig, rate, 2));
    thread::sleep(Duration::from_millis(500));
    let honest = rig.client.run(|| {
        let visits = (0..20).map(|_| {
            thread::sleep(Duration::from_millis(50));
            ask(server.address)
        });
        visits.filter_map(|visit| Some(visit.err()?.to_string())).collect()
    });
    let modes = own.modes();
    let mut said = String::new();
    if let Some(mut flood) = flood {
        flood.stdout.take().expect("piped").read_to_string(&mut said).expect("reading what the flood achieved");
        flood.wait().expect("waiting for the flood");
    }
    if let Some(generator) = generator {
        said = format!("{} frames", generator.join().expect("the generator ends"));
    }
    let is_flood = |source: SocketAddr, to: SocketAddr| source.ip() != netns::CLIENT_V4 && to == server.address;
    let reached = at_server.times(|source, to, tcp| is_flood(source, to) && tcp.syn() && !tcp.ack());
    let overflows = overflows(&rig.server.counters().since(&before));
    let took = reached.last().copied().unwrap_or_default().saturating_sub(reached.first().copied().unwrap_or_default());
    let log = own.proxy.stop().log;
    note!(
        "{config} {rate}: {}; {} SYNs reached the server, the last after {took:?}; {overflows:?}",
        said.trim(),
        reached.len()
    );
    Suffered { reached: reached.len(), took, overflows, honest, modes, log }
}

/// Floods by which no server may be filled, and how many SYNs of one reach the server at most.
fn answered_by_cookies(rig: fn() -> Rig, rates: &[u64], most: usize) {
    for &rate in rates {
        // A crowded machine may let the box's process wait; the flood waits with it, or not.
        for again in [true, true, false] {
            let suffered = suffer(&rig(), "mode = auto;", rate);
            let Suffered { reached, took, overflows, honest, modes, log } = &suffered;
            assert!((32..=most).contains(reached), "{rate}: {reached} SYNs of the flood reached the server");
            assert!(*took > Duration::ZERO, "the kernel notes no times");
            assert_eq!(*overflows, [], "{rate}");
            assert_eq!((modes[0].mode.as_str(), modes[0].now.as_str(), modes[0].switches), ("auto", "cookie", 1));
            let line = log.iter().filter(|line| line.contains("mode of everybody: cookie instead of pass")).count();
            assert_eq!(line, 1, "{log:#?}");
            // So many are more than the link delivers without loss, to the honest as to others.
            // 50 ms are promised where there is a core for the box. How many SYNs reach the server does not depend on it.
            if *took <= SLOWEST && (honest.is_empty() || rate > MOST_BY_SOCKETS) {
                break;
            }
            assert!(again, "{rate}: cookies after {took:?}; {honest:?}");
            note!("{rate}: cookies after {took:?}, {honest:?}: once more");
        }
    }
}

#[test(alone)]
fn a_flood_is_answered_by_cookies_before_its_server_is_full_at_any_rate() {
    // At 64 it stops.
    answered_by_cookies(Rig::alone, &[10_000, 100_000, 1_000_000], 80);
}

#[test(alone)]
fn several_workers_stop_a_flood_together() {
    // Each has its share of 64, and stops a little later.
    answered_by_cookies(|| Rig::queued(2), &[100_000], 96);
}

#[test(alone)]
fn the_same_server_is_full_without_protection() {
    // So that the test above can fail.
    for config in ["mode = pass;", "mode = observe;"] {
        let suffered = suffer(&Rig::alone(), config, 10_000);
        assert!(suffered.reached > 1000, "{config}: {}", suffered.reached);
        assert!(!suffered.overflows.is_empty(), "{config}: its queue was never full");
        assert_eq!(suffered.modes[0].switches, 0);
        let named = |name: &str| suffered.log.iter().any(|line| line.trim_start().starts_with(name));
        assert!(named("passed-by-mode"), "{:#?}", suffered.log);
        assert_eq!(named("would-get-cookie") || named("would-be-cached"), config.contains("observe"));
    }
}

/// Sends so many SYNs at once in the client's own name, which its kernel resets as soon as they are answered.
fn burst(sender: &Sender, round: u32, syns: u32) {
    let mac = |text: &str| tools::interface::parse_mac(text).expect("an Ethernet address");
    for n in 0..syns {
        let ends = FlowKey {
            src: netns::CLIENT_V4,
            dst: netns::SERVER_V4,
            // Below those of the client's own sockets.
            sport: 1024 + ((round * syns + n) % 8000) as u16,
            dport: 80,
            src_mac: mac(netns::CLIENT_MAC),
            dst_mac: mac(netns::SERVER_MAC),
            ttl: 64,
        };
        let mut frame = build(&ends, 0, &syn(round * 1000 + n).mss(1460));
        frame.resize(frame.len().max(60), 0);
        // What finds the queue full is lost, as on the way.
        let _ = sender.send(&frame, frame.len());
    }
}

#[test(alone)]
fn a_hundred_switches_under_load_lose_no_connection() {
    lose_no_connection(&Rig::alone(), 100);
}

#[test(alone)]
fn switches_of_several_workers_under_load_lose_no_connection() {
    lose_no_connection(&Rig::queued(2), 25);
}

/// Has the box switch so often under load.
fn lose_no_connection(rig: &Rig, times: u64) {
    let config = "mode = auto; shed = off; timeouts = { dl_half_open = 1; };
        auto = { enter_half_open = 24; leave_half_open = 16; stay = 100; grace = 134000; in_flight = 100; };";
    let events = leftovers::file("switches.json");
    let config = format!("{config} events = {{ file = \"{}\"; }};", events.display());
    let own = Box::start(rig, &config);
    let server = serve(rig);
    socket::listen(server.listener(), Backlog::new(4096).expect("the kernel's limit")).expect("listening again");
    let address = server.address;
    let (over, short) = (AtomicBool::new(false), AtomicU32::new(0));
    let before = rig.counters();
    let switches = thread::scope(|scope| {
        // Some that last, each of which exchanges bytes all the time.
        let lasting: Vec<_> = (0..4)
            .map(|_| {
                let mut stream = rig.client.connect(address).expect("connecting in peace");
                let over = &over;
                scope.spawn(move || {
                    let (question, mut answer, mut rounds) = ([7; 2000], [0; 2000], 0);
                    while !over.load(Ordering::Relaxed) {
                        stream.write_all(&question).expect("a lasting connection, sending");
                        stream.read_exact(&mut answer).expect("a lasting connection, receiving");
                        assert_eq!(question, answer);
                        rounds += 1;
                        thread::sleep(Duration::from_millis(2));
                    }
                    stream.shutdown(Shutdown::Write).expect("finishing");
                    traffic::expect_end(&stream).expect("a lasting connection ends in good order");
                    rounds
                })
            })
            .collect();
        // And some that come and go.
        for _ in 0..2 {
            let (over, short) = (&over, &short);
            scope.spawn(move || {
                rig.client.run(|| {
                    while !over.load(Ordering::Relaxed) {
                        ask(address).expect("a short connection");
                        short.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(5));
                    }
                });
            });
        }
        let begin = Instant::now();
        let switches = rig.client.run(|| {
            let sender = Sender::open("c0").expect("a packet socket");
            let mut round = 0;
            loop {
                let modes = own.modes();
                if modes[0].switches >= times || begin.elapsed() > Duration::from_secs(240) {
                    return modes[0].switches;
                }
                if modes[0].now == "pass" {
                    round += 1;
                    burst(&sender, round, 64);
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        over.store(true, Ordering::Relaxed);
        for connection in lasting {
            assert!(connection.join().expect("a lasting connection") > times);
        }
        note!("{switches} switches in {:?}", begin.elapsed());
        switches
    });
    assert!(switches >= times, "{switches} switches");
    let (short, after) = (short.into_inner(), rig.counters());
    let Ok(Reply::Stats(stats)) = Client::connect(&own.socket).expect("a box listens").ask(&Request::Stats) else {
        panic!("statistics")
    };
    let said = own.proxy.stop().log;
    let written = fs::read_to_string(&events).expect("the file of events");
    let written: Vec<serde_json::Value> =
        written.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let to = |mode| move |event: &&serde_json::Value| event["event"] == "mode-switched" && event["to"] == mode;
    for (to, from) in [(to("cookie"), "pass"), (to("pass"), "cookie")] {
        let event = written.iter().find(to).expect("switches are written down");
        assert!(event["destination"] == "everybody" && event["from"] == from, "{event}");
        assert!(event["why"].as_str().is_some_and(|why| !why.is_empty()), "{event}");
    }
    let lines = said.iter().filter(|line| line.contains("mode of everybody: ")).count() as u64;
    let reported = stats.total.reported_events["mode-switched"];
    assert!(lines >= switches && reported >= switches, "{switches} switches, {lines} lines and {reported} events");
    let figure = |name: &str| said.iter().find(|line| line.trim_start().starts_with(name)).cloned().unwrap_or_default();
    note!("{short} short connections; {} {}", figure("passed-by-mode"), figure("cookie-good"));
    // Both kinds took part.
    assert!(
        u64::from(short) > times && !figure("passed-by-mode").is_empty() && !figure("cookie-good").is_empty(),
        "{said:#?}"
    );
    for (after, before) in after.iter().zip(&before) {
        let risen = after.since(before);
        assert_eq!(risen.get("TcpExtTCPAbortOnTimeout"), 0);
        assert_eq!(overflows(&risen), []);
    }
}

#[test]
fn in_mode_pass_the_ends_see_each_other_and_nothing_of_the_box() {
    let rig = Rig::new();
    // All that would be changed or answered otherwise.
    let own = Box::start(
        &rig,
        "mode = pass; mss_clamp = 500; passed_rate = 0; mptcp = strip; fastopen = strip; closed_memory = 10;
         ratehash = { timer_add = 1; initial_tokens = 1; };",
    );
    rig.sysctl("net.ipv4.tcp_ecn", "1");
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::exchanged);
    let closed = SocketAddr::new(netns::SERVER_V4, 81);
    rig.judge([0, 3], || {
        for _ in 0..20 {
            let stream = rig.client.connect(server.address).expect("connecting");
            let info = unit::netns::sockets::tcp_info(&stream);
            assert_eq!(info.tcpi_snd_mss, 1448, "not that of mss_clamp");
            traffic::exchange(&stream, 1 << 18, 1 << 18).expect("exchanging");
        }
        for _ in 0..3 {
            let refused = rig.client.connect(closed).expect_err("nobody listens");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        }
    });
    within(PATIENCE, "all of them are counted as passed", || {
        let modes = own.modes();
        (modes[0].now.as_str(), modes[0].passed, modes[0].answered) == ("pass", 23, 0)
    });
    let log = own.proxy.stop().log;
    assert!(
        !log.iter()
            .any(|line| line.starts_with("  syn-answered   ") && !line.contains("   0  ")
                || line.contains("closed-port")),
        "{log:#?}"
    );
}

#[test]
fn the_operator_sees_the_mode_of_each_destination_and_what_would_suit_it() {
    let rig = Rig::new();
    let own = Box::start(
        &rig,
        "mode = pass; destinations = {
           { network = \"10.77.0.0/24\"; port = 80; mode = auto; auto = { enter_half_open = 4; }; },
           { network = \"fd77::/64\"; vlan = 7; mode = cookie; } };",
    );
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    for _ in 0..10 {
        rig.client.run(|| ask(server.address)).expect("connecting");
    }
    // A second of it is learned.
    thread::sleep(Duration::from_millis(2500));
    let modes = own.modes();
    let named: Vec<_> =
        modes.iter().map(|own| (own.destination.as_str(), own.mode.as_str(), own.now.as_str())).collect();
    let expected =
        [("everybody", "pass", "pass"), ("10.77.0.0/24:80", "auto", "pass"), ("fd77::/64 vlan 7", "cookie", "cookie")];
    assert!(expected.iter().all(|one| named.contains(one)) && named.len() == 3, "{named:?}");
    let http = modes.iter().find(|own| own.destination == "10.77.0.0/24:80").expect("it is there");
    assert_eq!((http.passed, http.half_open, http.switches), (10, 0, 0));
    // Everything that is counted is counted of the destination that it happened to.
    let happened = |to: &str, event: &str| {
        let modes = own.modes();
        let destination = modes.iter().find(|own| own.destination == to).expect("it is there");
        destination.events.get(event).copied().unwrap_or(0)
    };
    assert_eq!(["passed-by-mode", "syn-answered"].map(|event| happened("10.77.0.0/24:80", event)), [10, 0]);
    assert!(happened("10.77.0.0/24:80", "lan-segment") >= 30, "SYN-ACK, answer and FIN of each");
    assert_eq!(["passed-by-mode", "lan-segment"].map(|event| happened("everybody", event)), [0, 0]);
    let said = synctl(&own.socket, "policy");
    assert!(said.contains("10.77.0.0/24:80") && said.contains("half-open"), "{said}");
    let suggested = own.suggested();
    let http = suggested.iter().find(|own| own.destination == "10.77.0.0/24:80").expect("it is there");
    assert!(http.seconds >= 1 && http.syn_rate[3] > 0 && http.enter_half_open >= 32, "{http:?}");
    let said = synctl(&own.socket, "policy suggest");
    assert!(said.contains("auto = { enter_half_open = 32; leave_half_open = 16;"), "{said}");
    // A flood to one destination is none of the others' affair.
    rig.server.sh(&format!("ip route add default via {} dev s0", netns::CLIENT_V4));
    let mut flood = flood(&rig, 2000, 30);
    let now = |name: &str| own.modes().into_iter().find(|own| own.destination == name).expect("it is there").now;
    within(PATIENCE, "cookies answer it", || now("10.77.0.0/24:80") == "cookie");
    assert_eq!(now("everybody"), "pass");
    within(PATIENCE, "the answers are counted", || happened("10.77.0.0/24:80", "syn-answered") > 0);
    assert_eq!(["everybody", "fd77::/64 vlan 7"].map(|other| happened(other, "syn-answered")), [0, 0]);
    signal::kill(Pid::from_raw(flood.id() as i32), Signal::SIGTERM).expect("the flood lasts");
    flood.wait().expect("waiting for the flood");
}
