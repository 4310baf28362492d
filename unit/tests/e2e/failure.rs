//! A box that is stopped, killed or stuck: what passes without it (`on_failure`), and that order returns with it.

use super::links::{settings, synproxy};
use super::restart::StateDir;
use control::{Client, Reply, Request};
use harness::{leftovers, test};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pktio::{FailurePlan, OnFailure, Rehearsal};
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tcpstate::wire::{FlowKey, Parsed};
use tcpstate::{Config, FlowMap, Head, Metadata, Proxy, Secrets, Side, Words};
use unit::netns::{self, Appliance, Backend, CACHE_ON, Rig, Tap, traffic};
use unit::random::Random;

/// How long a loaded machine may take for anything.
const LONG: Duration = Duration::from_secs(30);

/// A rig whose hosts take frames that the kernel sends to them without an skb, as every network card does; a veth takes them if its end has GRO.
fn rig() -> Rig {
    let rig = Rig::new();
    rig.client.sh("ethtool -K c0 gro on");
    rig.server.sh("ethtool -K s0 gro on");
    rig
}

/// Whether a word comes back from an echo within this time.
fn echoes(mut stream: &TcpStream, word: &[u8; 4], within: Duration) -> bool {
    stream.set_read_timeout(Some(within)).expect("a time-out");
    stream.write_all(word).expect("there is room in the socket");
    let mut back = [0; 4];
    stream.read_exact(&mut back).is_ok_and(|()| back == *word)
}

/// Whether a ping of the client to the server is answered.
fn pings(rig: &Rig) -> bool {
    let mut ping = rig.client.command("ping");
    ping.args(["-c1", "-W1", &netns::SERVER_V4.to_string()]).stdout(Stdio::null());
    ping.status().expect("ping runs").success()
}

/// Waits until frames pass, or pass no more.
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A connection that the box translates, and one that it passes through; each with an echo at its far end.
struct Connections {
    translated: TcpStream,
    passed: TcpStream,
    _servers: [traffic::Server; 2],
    over: Arc<AtomicBool>,
}

/// Nothing tells the far ends that a connection is over when there is no box.
impl Drop for Connections {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Answers every byte with itself until the client has finished or it is over.
fn echo_until(over: &Arc<AtomicBool>) -> impl Fn(TcpStream) -> io::Result<()> + Send + Sync + use<> {
    let over = Arc::clone(over);
    move |mut stream| {
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut buffer = [0; 256];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(got) => stream.write_all(&buffer[..got])?,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if over.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Connections {
    fn open(rig: &Rig) -> Self {
        let over = Arc::default();
        let server = rig.server.serve(netns::SERVER_V4, 0, echo_until(&over));
        let translated = rig.client.connect(server.address).expect("connecting from the WAN");
        let client = rig.client.serve(netns::CLIENT_V4, 0, echo_until(&over));
        let passed = rig.server.connect(client.address).expect("connecting from the LAN");
        let it = Self { translated, passed, _servers: [server, client], over };
        assert!(echoes(&it.translated, b"one.", LONG) && echoes(&it.passed, b"one.", LONG));
        it
    }
}

/// The XDP programs on the box's interfaces.
fn programs(rig: &Rig) -> usize {
    let links = rig.middle.sh("ip -d link show dev wan0; ip -d link show dev lan0");
    links.lines().filter(|line| line.contains("prog/xdp")).count()
}

#[test]
fn a_stopped_box_bridges_what_it_does_not_translate_and_takes_it_up_again() {
    for backend in [Backend::Driver, Backend::Generic] {
        let rig = rig();
        let proxy = Appliance::start(&rig, backend, &format!("{CACHE_ON} on_failure = open;"));
        let connections = Connections::open(&rig);
        proxy.signal(Signal::SIGSTOP);
        // Frames have to come for somebody to notice that nobody takes them.
        wait_for("what is not TCP passes", || pings(&rig));
        let begin = Instant::now();
        wait_for("what was passed through goes on", || echoes(&connections.passed, b"two.", Duration::from_secs(2)));
        println!("{backend:?}: the passed connection went on within {:?}", begin.elapsed());
        let tap = Tap::open(&rig.server);
        assert!(!echoes(&connections.translated, b"two.", Duration::from_millis(700)), "it must not be bridged");
        let client = connections.translated.local_addr().expect("an address");
        let seen = tap.segments(|source, _| source == client);
        assert!(seen.is_empty(), "{} segments with the client's own numbers at the server", seen.len());
        // A connection of the time without a box: nobody protects the server, and the box follows it afterwards.
        let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
        let meanwhile = rig.client.connect(server.address).expect("connecting past the box");
        assert!(echoes(&meanwhile, b"now.", LONG));
        let begin = Instant::now();
        proxy.signal(Signal::SIGCONT);
        let mut back = [0; 4];
        connections.translated.set_read_timeout(Some(LONG)).expect("a time-out");
        (&connections.translated).read_exact(&mut back).expect("the client repeats it, and the box translates it");
        assert_eq!(&back, b"two.");
        println!("{backend:?}: the translated connection went on after {:?}", begin.elapsed());
        for stream in [&connections.translated, &connections.passed, &meanwhile] {
            assert!(echoes(stream, b"more", LONG));
        }
        drop((meanwhile, server));
        let report = proxy.stop();
        assert!(report.status.success(), "{report:?}");
        assert!(report.figure("worker failed, times").is_some_and(|times| times > 0), "{:?}", report.log);
        assert!(report.figure("bridged without the worker").is_some_and(|frames| frames > 0), "{:?}", report.log);
    }
}

#[test]
fn less_passes_where_less_is_to_pass() {
    for on_failure in ["untranslated", "closed"] {
        let rig = rig();
        let proxy = Appliance::start(&rig, Backend::Driver, &format!("{CACHE_ON} on_failure = {on_failure};"));
        let connections = Connections::open(&rig);
        proxy.signal(Signal::SIGSTOP);
        if on_failure == "untranslated" {
            wait_for("what is not TCP passes", || pings(&rig));
            wait_for("what was passed through goes on", || {
                echoes(&connections.passed, b"two.", Duration::from_secs(2))
            });
        } else {
            thread::sleep(Duration::from_millis(100));
            assert!(!pings(&rig) && !echoes(&connections.passed, b"two.", Duration::from_millis(300)));
        }
        let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
        let tap = Tap::open(&rig.server);
        let address = server.address;
        assert!(rig.client.run(|| TcpStream::connect_timeout(&address, Duration::from_millis(700))).is_err());
        assert!(tap.segments(|_, destination| destination == address).is_empty(), "{on_failure}");
        proxy.signal(Signal::SIGCONT);
        assert!(echoes(&connections.translated, b"more", LONG));
        assert!(proxy.stop().status.success());
    }
}

#[test]
fn a_killed_box_leaves_its_program_which_the_next_start_replaces_and_a_clean_end_takes_away() {
    let rig = rig();
    let before = settings(&rig);
    let config = format!("{CACHE_ON} on_failure = open;");
    for next in [Backend::Driver, Backend::Generic, Backend::Packet] {
        let proxy = Appliance::start(&rig, Backend::Driver, &config);
        let connections = Connections::open(&rig);
        proxy.end(Signal::SIGKILL);
        assert_eq!(programs(&rig), 2);
        wait_for("what is not TCP passes", || pings(&rig));
        assert!(echoes(&connections.passed, b"two.", LONG), "what was passed through goes on");
        let tap = Tap::open(&rig.server);
        assert!(!echoes(&connections.translated, b"two.", Duration::from_millis(500)));
        let client = connections.translated.local_addr().expect("an address");
        assert!(tap.segments(|source, _| source == client).is_empty(), "it must not be bridged");
        let proxy = Appliance::start(&rig, next, &config);
        assert_eq!(programs(&rig), if next == Backend::Packet { 0 } else { 2 }, "{next:?}");
        let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
        let stream = rig.client.connect(server.address).expect("the next box is at work");
        assert!(echoes(&stream, b"new.", LONG));
        drop((stream, server));
        assert!(proxy.stop().status.success());
        assert_eq!(programs(&rig), 0, "{next:?}");
    }
    Appliance::start(&rig, Backend::Driver, &config).end(Signal::SIGKILL);
    let (said, status) = synproxy(&rig, &["--restore"]);
    assert!(status == 0 && said.contains("lan0: XDP program detached"), "{said}");
    assert_eq!(programs(&rig), 0);
    assert_eq!(settings(&rig), before);
}

/// The numbers of the XDP programs on the box's interfaces, LAN first; 0 for none.
fn program_numbers(rig: &Rig) -> [u32; 2] {
    [Rig::LAN, Rig::WAN].map(|interface| {
        let link = rig.middle.sh(&format!("ip -d link show dev {interface}"));
        let number = link.split("prog/xdp id ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.unwrap_or(0)
    })
}

/// Offloads and flags of the box's interfaces.
fn offloads(rig: &Rig) -> String {
    let flags = |text: String| text.lines().filter(|line| line.contains('<')).map(str::to_owned).collect::<String>();
    let interfaces = [Rig::LAN, Rig::WAN].map(|interface| {
        rig.middle.sh(&format!("ethtool -k {interface}")) + &flags(rig.middle.sh(&format!("ip link show {interface}")))
    });
    interfaces.concat()
}

#[test]
fn over_a_restart_and_a_takeover_programs_and_settings_stay_as_they_are() {
    let (rig, state) = (rig(), StateDir::new());
    let before = settings(&rig);
    let config = format!("{CACHE_ON} on_failure = untranslated; conntablesize = 4096; learnhashsize = 256;");
    let start = |more: &[&str]| {
        let arguments = state.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Appliance::start_with(&rig, Backend::Driver, &config, &arguments)
    };
    let mut proxy = start(&[]);
    let connections = Connections::open(&rig);
    let during = offloads(&rig);
    for takes_over in [false, true] {
        let numbers = program_numbers(&rig);
        let over = AtomicBool::new(false);
        let seen = thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut seen = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    seen.push(program_numbers(&rig));
                }
                seen
            });
            if takes_over {
                let next = start(&["--takeover"]);
                let former = std::mem::replace(&mut proxy, next);
                wait_for("the former process ends", || !former.runs());
            } else {
                proxy.signal(Signal::SIGTERM);
                wait_for("it ends", || !proxy.runs());
                assert_eq!((program_numbers(&rig), offloads(&rig)), (numbers, during.clone()));
                // What is passed through passes; a translated connection stands still.
                wait_for("what is not TCP passes", || pings(&rig));
                assert!(echoes(&connections.passed, b"two.", LONG));
                let tap = Tap::open(&rig.server);
                assert!(!echoes(&connections.translated, b"two.", Duration::from_millis(300)));
                let client = connections.translated.local_addr().expect("an address");
                assert!(tap.segments(|source, _| source == client).is_empty(), "it must not be bridged");
                proxy = start(&[]);
            }
            over.store(true, Ordering::Relaxed);
            watch.join().expect("it does not panic")
        });
        let next = program_numbers(&rig);
        assert!((0..2).all(|side| next[side] != 0 && next[side] != numbers[side]), "{numbers:?} {next:?}");
        let strange = |side: usize| seen.iter().find(|seen| seen[side] != numbers[side] && seen[side] != next[side]);
        assert_eq!((strange(0), strange(1)), (None, None), "{numbers:?}, {next:?}");
        assert_eq!(offloads(&rig), during, "{takes_over}");
        let mut back = [0; 4];
        if !takes_over {
            connections.translated.set_read_timeout(Some(LONG)).expect("a time-out");
            (&connections.translated).read_exact(&mut back).expect("the client repeats it, and the box translates it");
            assert_eq!(&back, b"two.");
        }
        assert!(echoes(&connections.translated, b"more", LONG), "{takes_over}");
    }

    // Nobody follows: another process puts the interfaces back, and gives back what the state does not need.
    drop(proxy.end(Signal::SIGTERM));
    let waits = fs::read_dir("/proc").expect("processes").flatten().any(|process| {
        let line = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        line.contains("--after=10") && line.contains(&state.0.display().to_string())
    });
    assert!(waits, "nobody waits to put the interfaces back");
    let boxes: Vec<_> = fs::read_dir(&state.0).expect("the state").flatten().map(|entry| entry.path()).collect();
    let taken = || -> u64 {
        let files = fs::read_dir(&boxes[0]).expect("the state").flatten();
        files.map(|file| 512 * std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("it is there"))).sum()
    };
    let all = taken();
    let left = boxes[0].display().to_string();
    let (said, status) = synproxy(&rig, &["--restore", "--after=0", "--left-state", &left]);
    assert!(status == 0 && said.contains("lan0: XDP program detached"), "{said}");
    assert_eq!((program_numbers(&rig), settings(&rig)), ([0; 2], before.clone()));
    assert!(taken() < all / 4, "{} of {all} bytes", taken());
    let proxy = start(&[]);
    assert!(echoes(&connections.translated, b"last", LONG), "it is still taken over");
    // A person who ends it has everything back at once.
    assert!(proxy.end(Signal::SIGINT).status.success());
    assert_eq!((program_numbers(&rig), settings(&rig)), ([0; 2], before));
}

/// The thread of the only worker.
pub(super) fn worker(pid: u32) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let mut tasks = tasks.map(|task| task.expect("a task").path());
    let worker = tasks.find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "worker 0"));
    let number = worker.expect("a worker").file_name().and_then(|name| name.to_str()?.parse().ok());
    Pid::from_raw(number.expect("a number"))
}

#[test]
fn a_worker_that_stands_still_is_bypassed_and_an_idle_one_is_not() {
    let rig = Rig::of_one_queue();
    rig.client.sh("ethtool -K c0 gro on");
    rig.server.sh("ethtool -K s0 gro on");
    let proxy = Appliance::start(&rig, Backend::Driver, &format!("{CACHE_ON} on_failure = open;"));
    // Far apart: each finds a worker that has been idle for much longer than it may leave a frame.
    for _ in 0..8 {
        assert!(pings(&rig));
        thread::sleep(Duration::from_millis(120));
    }
    assert!(!proxy.log().iter().any(|line| line.contains("left frames")), "{:?}", proxy.log());
    let worker = worker(proxy.pid());
    ptrace::seize(worker, ptrace::Options::empty()).expect("tracing a child of one's own");
    ptrace::interrupt(worker).expect("stopping a thread");
    nix::sys::wait::waitpid(worker, Some(nix::sys::wait::WaitPidFlag::__WALL)).expect("it stops");
    wait_for("frames pass without the worker", || pings(&rig));
    ptrace::detach(worker, None).expect("letting it go on");
    wait_for("it is said", || proxy.log().iter().any(|line| line.contains("left frames for more than 50 ms")));
    assert!(pings(&rig));
    assert!(proxy.stop().status.success());
}

/// A frame: TCP, UDP or ICMP between few addresses and ports, in any dress; sometimes with a byte changed, or cut off. And whether it is certainly TCP.
fn frame(random: &mut Random, from: Side) -> (Vec<u8>, bool) {
    let mut frame = vec![2; 12];
    for _ in 0..[0, 0, 0, 1, 2, 3][random.below(6) as usize] {
        frame.extend([[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]][random.below(3) as usize]);
        frame.extend([0, random.below(3) as u8]);
    }
    let protocol = [6, 6, 6, 6, 17, 1][random.below(6) as usize];
    let mut ends = [(1, random.below(4) as u8), (2, random.below(4) as u8)];
    if from == Side::Wan {
        ends.reverse();
    }
    if random.one_in(2) {
        let options = if random.one_in(6) { 4 * (1 + random.below(10) as usize) } else { 0 };
        let fragment = match random.below(12) {
            0 => [0x20, 0],
            1 => [0, 1 + random.below(200) as u8],
            _ => [0x40, 0],
        };
        frame.extend([8, 0, 0x45 + (options / 4) as u8, 0, 0, 40 + options as u8, 0, 1]);
        frame.extend([fragment[0], fragment[1], 64, protocol, 0, 0]);
        for (host, _) in ends {
            frame.extend([10, 77, 0, host]);
        }
        // Padding, or a route over the last four bytes.
        frame.extend((0..options).map(|n| if n == 0 && random.one_in(3) { 0x83 } else { 1 }));
    } else {
        let kinds = [0, 43, 44, 51, 60, 135];
        let count = if random.one_in(3) { random.below(6) as usize } else { 0 };
        let headers: Vec<u8> = (0..count).map(|_| kinds[random.below(6) as usize]).collect();
        let next = |at: usize| headers.get(at).copied().unwrap_or(protocol);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20 + 8 * count as u8, next(0), 64]);
        for (host, _) in ends {
            frame.extend([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
        }
        for (at, kind) in headers.iter().enumerate() {
            // A fragment that is the first, or a later one; the others are eight bytes long.
            let second = if *kind == 44 && random.one_in(2) { 1 } else { 0 };
            frame.extend([next(at + 1), 0, 0, 8 * second + u8::from(random.one_in(2)), 0, 0, 0, 7]);
        }
    }
    let [(_, source), (_, destination)] = ends;
    frame.extend([0x9c, source, 0x9c, destination]);
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.resize(frame.len().max(60), 0);
    let mut is_whole = true;
    if random.one_in(5) {
        is_whole = false;
        let at = random.below(frame.len() as u64) as usize;
        frame[at] ^= 1 << random.below(8);
    }
    if random.one_in(10) {
        is_whole = false;
        frame.truncate(14 + random.below(frame.len() as u64 - 14) as usize);
    }
    (frame, is_whole && protocol == 6)
}

#[test]
fn the_program_in_the_kernel_passes_what_the_engine_knows_not_to_be_translated() {
    harness::needs_root();
    let secrets = Secrets::new([7; 48]);
    let keys = secrets.hash_keys();
    let proxy = Proxy::new(&Config::default(), &secrets, tcpstate::Instant::default());
    let key = |v6: bool, lan: u16, wan: u16| {
        let address = |host: u32| if v6 { [0xfd77_0000, 0, 0, host] } else { [0, 0, 0xffff, 0x0a4d_0000 + host] };
        FlowKey {
            lan: address(1),
            wan: address(2),
            lan_port: 0x9c00 + lan,
            wan_port: 0x9c00 + wan,
            v6,
            ..FlowKey::default()
        }
    };
    let mut random = Random(std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1));
    let [mut passes, mut drops] = [0; 2];
    for (on_failure, is_wan) in [OnFailure::Open, OnFailure::Untranslated, OnFailure::Closed]
        .into_iter()
        .flat_map(|it| [(it, false), (it, true)])
    {
        let plan = FailurePlan { on_failure, flow_keys: keys, flow_words: FlowMap::words_needed(40), forward_words: 0 };
        let mut program = Rehearsal::new(&plan, is_wan, 2).expect("the verifier accepts it");
        let words = program.take_flow_maps();
        let side = if is_wan { Side::Wan } else { Side::Lan };
        let mut maps: Vec<FlowMap> = words.iter().map(|words| FlowMap::new(Words::from(*words), keys)).collect();
        let map = |n: usize| Words::from(words[n]);
        // Of the sixteen flows of either family a third is translated, a third passed through, a third unknown.
        for place in 0..32 {
            let key = key(place >= 16, place as u16 % 4, place as u16 / 4 % 4);
            if place % 3 != 2 {
                maps[place as usize % 2].enter(&key, key.hash(keys), place, place % 3 == 0);
            }
        }
        let mut frames = Vec::from_iter((0..3000).map(|_| frame(&mut random, side)));
        assert!(
            frames.iter().take(50).all(|(frame, _)| !program.bridges(frame) || is_other(&proxy, side, frame)),
            "no flow is entered yet"
        );
        program.set_flows_entered();
        for (frame, is_tcp) in &mut frames {
            let bridged = program.bridges(frame);
            *(if bridged { &mut passes } else { &mut drops }) += 1;
            let mut meta = Metadata::default();
            let length = frame.len();
            proxy.parse(side, &Head::whole(frame, length), &mut meta);
            let context = || format!("{on_failure:?} {side:?} {:?}: {frame:02x?}", meta.parsed());
            match meta.parsed() {
                _ if on_failure == OnFailure::Closed => assert!(!bridged, "{}", context()),
                Parsed::Tcp(segment) => {
                    let found = FlowMap::find(&[map(0), map(1)], keys, &segment.key);
                    let header = if segment.key.v6 { 40 } else { 20 };
                    let is_plain = usize::from(segment.tcp - segment.ip) == header && !segment.fragmented;
                    let passes = match on_failure {
                        OnFailure::Open => !found.is_translated && !found.is_unknown,
                        _ => found.is_passed && !found.is_translated,
                    };
                    assert_eq!(bridged, passes && is_plain, "{}", context());
                }
                Parsed::Fragment(_) => assert!(!(bridged && *is_tcp), "{}", context()),
                // Malformed, or an error about a segment: neither is a segment of a flow.
                Parsed::Bad(_) | Parsed::Error(_) | Parsed::StrayError => {}
                Parsed::Other => {
                    // What hides behind many headers may be anything.
                    let is_obscure = frame.len() > 60 || frame.len() < 34;
                    assert!(bridged || is_obscure, "{}", context());
                }
            }
        }
    }
    println!("{passes} frames passed, {drops} did not");
    assert!(passes > 1000 && drops > 5000);
}

/// Whether the engine takes a frame for no TCP segment.
fn is_other(proxy: &Proxy, side: Side, frame: &[u8]) -> bool {
    let mut frame = frame.to_vec();
    let mut meta = Metadata::default();
    let length = frame.len();
    proxy.parse(side, &Head::whole(&mut frame, length), &mut meta);
    !matches!(meta.parsed(), Parsed::Tcp(_))
}

/// What `/proc` says of the threads and descriptors of a process.
fn held(pid: u32) -> (usize, usize) {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("it runs").count();
    (count("task"), count("fd"))
}

#[test(long)]
fn clients_that_never_read_hold_nobody_up_and_take_no_more_than_their_places() {
    const CLIENTS: usize = 40;
    let rig = Rig::new();
    let socket = leftovers::file("unread.sock");
    let config = format!("{CACHE_ON} metrics = \"127.0.0.1:9464\";");
    let proxy = Appliance::start_with(&rig, Backend::Driver, &config, &[&format!("--control={}", socket.display())]);
    let before = held(proxy.pid());
    // Each asks until nothing more fits, and reads nothing.
    let ask = |stream: &mut dyn Write, request: &[u8]| while stream.write_all(request).is_ok() {};
    let mut unread: Vec<UnixStream> = Vec::new();
    for _ in 0..CLIENTS {
        let Ok(mut stream) = UnixStream::connect(&socket) else { continue };
        stream.set_nonblocking(true).expect("a flag");
        ask(&mut stream, b"{\"ask\":\"stats\"}\n");
        unread.push(stream);
    }
    let http = rig.middle.run(|| {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let Ok(mut stream) = TcpStream::connect("127.0.0.1:9464") else { continue };
            stream.set_nonblocking(true).expect("a flag");
            ask(&mut stream, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
            clients.push(stream);
        }
        clients
    });
    let during = held(proxy.pid());
    assert!(during.0 <= before.0 + 2 * CLIENTS && during.1 <= before.1 + 4 * CLIENTS, "{before:?}, {during:?}");
    // Frames pass, and somebody who reads is answered in the end.
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let stream = rig.client.connect(server.address).expect("the box is at work");
    assert!(echoes(&stream, b"one.", LONG));
    wait_for("an operator is answered", || {
        Client::connect(&socket).is_ok_and(|mut client| matches!(client.ask(&Request::Status), Ok(Reply::Status(_))))
    });
    drop((unread, http, stream, server));
    wait_for("their places are free", || held(proxy.pid()).0 <= before.0 + 2);
    assert!(proxy.stop().status.success());
}

/// The children of a process.
fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let lists = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().expect("a number")).collect::<Vec<_>>())
        .collect()
}

/// Whether a connection from the WAN is made and answered.
fn serves(rig: &Rig) -> bool {
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let address = server.address;
    let stream = rig.client.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(3)));
    stream.is_ok_and(|stream| echoes(&stream, b"one.", Duration::from_secs(5)))
}

#[test]
fn a_supervised_box_is_started_again_when_it_is_killed_and_when_it_is_silent_and_ends_with_its_supervisor() {
    let rig = rig();
    let proxy = Appliance::start_with(&rig, Backend::Driver, CACHE_ON, &["--supervise"]);
    let ready = |log: &[String]| log.iter().filter(|line| line.starts_with("ready ")).count();
    for (starts, signal) in [(2, Signal::SIGKILL), (3, Signal::SIGSTOP)] {
        let [child] = children(proxy.pid())[..] else { panic!("one box") };
        nix::sys::signal::kill(Pid::from_raw(child as i32), signal).expect("a child of the supervisor");
        wait_for("it is started again", || ready(&proxy.log()) == starts);
        assert!(serves(&rig), "{signal}");
    }
    assert!(proxy.log().iter().any(|line| line.contains("silent for 2 s")), "{:?}", proxy.log());
    let report = proxy.stop();
    assert!(report.status.success(), "{:?}", report.log);
    assert_eq!(programs(&rig), 0);
    // A supervisor that is killed takes the box along, which takes its program along.
    let proxy = Appliance::start_with(&rig, Backend::Driver, CACHE_ON, &["--supervise"]);
    let [child] = children(proxy.pid())[..] else { panic!("one box") };
    nix::sys::signal::kill(Pid::from_raw(proxy.pid() as i32), Signal::SIGKILL).expect("a child of one's own");
    wait_for("the box ends", || netns::has_ended(child));
    assert_eq!(programs(&rig), 0);
    // What another start would not mend ends at once.
    let (said, status) = synproxy(&rig, &["--supervise", "--control=none", "lan7", "wan0"]);
    assert!(status == 4 && said.contains("lan7"), "{said}");
    let (said, status) = synproxy(&rig, &["--supervise", "--config=/no/such/file", "lan0", "wan0"]);
    assert_eq!(status, 3, "{said}");
}

#[test]
fn a_watchdog_device_is_written_to_and_a_bypass_is_switched_as_long_as_no_worker_is_stuck() {
    let rig = Rig::of_one_queue();
    let [device, told, script] = ["watchdog", "told", "bypass.sh"].map(leftovers::file);
    fs::write(&device, b"").expect("a file");
    fs::write(&script, format!("echo \"$@\" >> {}\n", told.display())).expect("a file");
    let config = format!(
        "{CACHE_ON} watchdog_device = \"{}\"; bypass_hook = \"/bin/sh {} card0\";",
        device.display(),
        script.display()
    );
    let proxy = Appliance::start(&rig, Backend::Driver, &config);
    let beats = || fs::read(&device).expect("it is there").len();
    let words = || fs::read_to_string(&told).unwrap_or_default();
    wait_for("the device gets beats", || beats() > 2);
    wait_for("the bypass is closed", || words() == "card0 close\n");
    let worker = worker(proxy.pid());
    ptrace::seize(worker, ptrace::Options::empty()).expect("tracing a child of one's own");
    ptrace::interrupt(worker).expect("stopping a thread");
    nix::sys::wait::waitpid(worker, Some(nix::sys::wait::WaitPidFlag::__WALL)).expect("it stops");
    wait_for("the bypass is opened", || {
        pings(&rig);
        words() == "card0 close\ncard0 open\n"
    });
    let silent = beats();
    thread::sleep(Duration::from_millis(700));
    assert!(beats() <= silent + 1, "a stuck worker is said to be alive");
    ptrace::detach(worker, None).expect("letting it go on");
    wait_for("the device gets beats again", || beats() > silent + 2);
    wait_for("the bypass is closed again", || words().ends_with("card0 open\ncard0 close\n"));
    assert!(proxy.stop().status.success());
    assert!(words().ends_with("card0 close\ncard0 open\n"), "{}", words());
    assert_eq!(fs::read(&device).expect("it is there").last(), Some(&b'V'), "a clean end disarms it");
    for file in [device, told, script] {
        let _ = fs::remove_file(file);
    }
}

#[test]
fn an_interface_that_comes_back_is_waited_for_if_the_box_is_told_so() {
    let rig = rig();
    let several = rig.queue_counts();
    let plug = || {
        rig.middle.sh(&format!(
            "ip link add lan0 {several} type veth peer name s0 {several} address {} netns {}",
            netns::SERVER_MAC,
            rig.server.name()
        ));
        rig.middle.sh("ip link set lan0 up");
        rig.server.sh(&format!(
            "ethtool -K s0 tx off txvlan off gro on >/dev/null; ip link set s0 up; ip addr add {}/24 dev s0",
            netns::SERVER_V4
        ));
    };
    let proxy = Appliance::start(&rig, Backend::Driver, &format!("{CACHE_ON} port_loss = wait;"));
    let pid = proxy.pid();
    let ready = || proxy.log().iter().filter(|line| line.starts_with("ready ")).count();
    for starts in 2..4 {
        rig.middle.sh("ip link del lan0");
        wait_for("it waits", || {
            proxy.log().iter().filter(|line| line.contains("there is no interface lan0: waiting")).count() == starts - 1
        });
        plug();
        wait_for("it goes on", || ready() == starts);
        assert!(serves(&rig) && proxy.pid() == pid, "{:?}", proxy.log());
    }
    rig.middle.sh("ip link del lan0");
    wait_for("it waits", || proxy.log().last().is_some_and(|line| line.contains("waiting for it")));
    assert!(proxy.stop().status.success(), "a signal ends the wait");
    // Without it a box ends.
    plug();
    let proxy = Appliance::start(&rig, Backend::Driver, CACHE_ON);
    rig.middle.sh("ip link del lan0");
    wait_for("it ends", || !fs::exists(format!("/proc/{}/exe", proxy.pid())).expect("/proc is there"));
    wait_for("it says why", || proxy.log().iter().any(|line| line.contains("lan0 is gone, so the box stops")));
}
