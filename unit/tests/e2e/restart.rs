//! A restart of the box costs no connection: real kernels go on over it, with numbered bytes both ways, while connections are opened, carry data, and are
//! closed; whether the process was asked to end, killed, or killed again while it took over what the one before had left.
//!
//! `CONNECTIONS` and `ROUNDS` of the environment say how many connections last, and how often the box is restarted in each way; `IDLE` how many others are there
//! that say nothing meanwhile (`make test-restart`).
//! Two pauses are printed for each way: how long the box passed nothing (datagrams every 2 ms), and how long an exchange on the connections took, which
//! includes the retransmissions of the ends.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use harness::{note, test};
use nix::sys::signal::Signal;
use unit::netns::{self, Appliance, Backend, Rig, program, traffic};

/// How a box is followed by the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It gets this signal.
    By(Signal),
    /// It is killed, and so is the next one while it starts and takes over.
    KilledTwice,
    /// The next one starts beside it, and has it end.
    Takeover,
}

/// Connections of one thread that last.
const EACH: usize = 40;

/// Connections that last, unless `CONNECTIONS` says otherwise.
const DEFAULT: usize = 160;

/// Threads that open connections, use them once, and close them.
const OPENERS: usize = 6;

/// A place for the state that is removed at the end.
pub(super) struct StateDir(pub(super) PathBuf);

impl StateDir {
    pub(super) fn new() -> StateDir {
        StateDir(PathBuf::from(format!("/dev/shm/{}", harness::leftovers::name("state"))))
    }

    pub(super) fn arguments(&self) -> [String; 2] {
        ["--state-dir".to_owned(), self.0.display().to_string()]
    }

    /// The files of the only box that has used it.
    fn files(&self) -> Vec<String> {
        let boxes = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let files = boxes.flat_map(|entry| std::fs::read_dir(entry.path()).into_iter().flatten().flatten());
        files.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn from_environment(name: &str, default: usize) -> usize {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The bytes of the `n`th message on the connection with this number.
fn message(connection: u64, n: u64) -> Vec<u8> {
    let words = 16 + (connection * 7 + n * 13) % 170;
    (0..words).flat_map(|word| (connection << 40 | n << 12 | word).to_be_bytes()).collect()
}

/// Sends a message.
fn say(mut stream: &TcpStream, connection: u64, n: u64) -> io::Result<()> {
    stream.write_all(&message(connection, n))
}

/// Reads it back.
fn hear(mut stream: &TcpStream, connection: u64, n: u64) -> io::Result<()> {
    let expected = message(connection, n);
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got)?;
    if got == expected { Ok(()) } else { Err(io::Error::other(format!("message {n} came back as other bytes"))) }
}

/// Ends a connection from this side, and waits for the other.
fn finish(stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    traffic::expect_end(stream)
}

/// What clients have met.
#[derive(Default)]
struct Met {
    over: AtomicBool,
    /// Connections that were opened and closed, and messages that came back.
    closed: AtomicU64,
    messages: AtomicU64,
    /// The longest that a message took, in milliseconds, since that was last asked.
    longest: AtomicU64,
    /// The longest time without a datagram, in microseconds, likewise.
    gap: AtomicU64,
}

impl Met {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// As many connections as one thread has, for as long as it takes: a message on each, and its echo, again and again.
    fn last(&self, address: SocketAddr, first: u64) -> io::Result<()> {
        let streams: Vec<TcpStream> = (0..EACH).map(|_| traffic::connect(address)).collect::<io::Result<_>>()?;
        // Of ten thousand, the segments of some meet seven pauses in a row, and are repeated at doubling intervals.
        streams.iter().try_for_each(|stream| stream.set_read_timeout(Some(4 * traffic::PATIENCE)))?;
        let mut n = 0;
        while !self.is_over() {
            let begin = Instant::now();
            for (connection, stream) in (first..).zip(&streams) {
                say(stream, connection, n)?;
            }
            for (connection, stream) in (first..).zip(&streams) {
                hear(stream, connection, n)
                    .map_err(|error| io::Error::other(format!("{error}, message {n}, on {:?}", stream.local_addr())))?;
            }
            self.longest.fetch_max(begin.elapsed().as_millis() as u64, Ordering::Relaxed);
            self.messages.fetch_add(EACH as u64, Ordering::Relaxed);
            n += 1;
            thread::sleep(Duration::from_millis(20));
        }
        streams.iter().try_for_each(finish)
    }

    /// Connections one after the other, with one message each.
    fn open(&self, address: SocketAddr, number: u64) -> io::Result<()> {
        for n in 0.. {
            if self.is_over() {
                break;
            }
            let stream = traffic::connect(address)?;
            say(&stream, number, n)?;
            hear(&stream, number, n)
                .map_err(|error| io::Error::other(format!("{error}, on {:?}", stream.local_addr())))?;
            finish(&stream)?;
            self.closed.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(3));
        }
        Ok(())
    }
}

/// Tells the clients that it is over when dropped: also where a box does not start, so that what it said is heard instead of waiting for them for ever.
struct Ending<'a>(&'a Met);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// How often a datagram is sent to see whether the box passes any.
const PROBE: Duration = Duration::from_millis(2);

impl Met {
    /// Sends datagrams to an echo until it is over, and measures for how long none comes back.
    fn probe(&self, echo: SocketAddr) -> io::Result<()> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(echo)?;
        socket.set_read_timeout(Some(PROBE))?;
        let (mut sent, mut heard, mut buffer) = (Instant::now(), Instant::now(), [0; 8]);
        while !self.is_over() {
            if sent.elapsed() >= PROBE {
                sent = Instant::now();
                let _ = socket.send(b"probe");
            }
            if socket.recv(&mut buffer).is_ok() {
                heard = Instant::now();
            }
            self.gap.fetch_max(heard.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Sends datagrams back until it is over.
    fn echo(&self, socket: &UdpSocket) -> io::Result<()> {
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut buffer = [0; 8];
        while !self.is_over() {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        }
        Ok(())
    }
}

/// The pauses of one way to restart.
#[derive(Default)]
struct Pauses {
    gaps: Vec<Duration>,
    messages: Vec<Duration>,
}

impl Pauses {
    /// Their median, 99th percentile and maximum, in words.
    fn of(times: &mut [Duration]) -> String {
        times.sort_unstable();
        let at =
            |part: usize| times.get((times.len() * part).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default();
        format!("p50 {:.1?}, p99 {:.1?}, max {:.1?}", at(50), at(99), at(100))
    }
}

/// A flood of SYNs from the WAN; ended when dropped.
pub(super) struct Flood(Child);

impl Flood {
    pub(super) fn start(rig: &Rig, server: SocketAddr) -> Flood {
        let mut command = rig.client.command(program("synflood"));
        command.args(["--interface", "c0", "--to", &server.ip().to_string(), "--to-mac", netns::SERVER_MAC]);
        // The answers go to an address that nobody has.
        command.args(["--from-mac", "02:00:00:00:00:66", "--kind", "syn", "--seconds", "600", "--rate", "20000"]);
        command.args(["--port", &server.port().to_string()]);
        Flood(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting a flood"))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server, a process of its own: one alone may not have descriptors for both ends of ten thousand connections.
struct EchoServer(Child);

impl EchoServer {
    fn start(rig: &Rig, address: SocketAddr) -> EchoServer {
        // All clients may connect at once: behind the box connecting does not wait for the server.
        rig.server.sh("sysctl -q -w net.core.somaxconn=65535 net.ipv4.tcp_max_syn_backlog=65536");
        let mut command = rig.server.command(program("honest"));
        command.args(["serve", &address.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        let server = EchoServer(command.spawn().expect("starting a server"));
        netns::within(traffic::PATIENCE, "it listens", || rig.server.connect(address).is_ok());
        server
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connections that say nothing until the end. At the server they wait to be accepted.
struct Idle(Vec<(TcpListener, Child, usize)>);

impl Idle {
    fn open(rig: &Rig, count: usize) -> Idle {
        /// How many one process has; each takes a descriptor.
        const EACH: usize = 15_000;
        let each = (0..count.div_ceil(EACH)).map(|n| {
            let here = EACH.min(count - n * EACH);
            let listener = rig.server.run(|| TcpListener::bind((netns::SERVER_V4, 0))).expect("a port");
            nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::MAXALLOWABLE).expect("it listens");
            let mut command = rig.client.command(program("honest"));
            let address = listener.local_addr().expect("its address").to_string();
            command.args(["hold", &address, "--count", &here.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
            (listener, command.spawn().expect("starting a client"), here)
        });
        let mut idle = Idle(each.collect());
        for (_, client, here) in &mut idle.0 {
            let mut line = String::new();
            BufReader::new(client.stdout.take().expect("it is read")).read_line(&mut line).expect("reading");
            assert_eq!(line.trim(), format!("held={here}"));
        }
        idle
    }

    /// Each carries a byte.
    fn speak(mut self) {
        for (listener, client, here) in &mut self.0 {
            drop(client.stdin.take());
            for n in 0..*here {
                let (mut server, _) = listener.accept().expect("a connection that lasts");
                server.set_read_timeout(Some(traffic::PATIENCE)).expect("a time");
                server.read_exact(&mut [0]).unwrap_or_else(|e| panic!("connection {n} of {here} is lost: {e}"));
            }
            assert!(client.wait().expect("a client of one's own").success());
        }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        for (_, client, _) in &mut self.0 {
            let _ = client.kill();
            let _ = client.wait();
        }
    }
}

/// Starts a box and kills it before it can be ready.
fn begin_and_kill(rig: &Rig, backend: Backend, [config, workers]: [&str; 2], state: &StateDir, after: Duration) {
    let path = harness::leftovers::file("conf");
    std::fs::write(&path, format!("synproxyconf = {{\n{config}\n}};\n")).expect("writing a configuration");
    let mut command: Command = rig.middle.command(program("synproxy"));
    command
        .args(["--no-pin", "--control=none", workers, "--config"])
        .arg(&path)
        .args(state.arguments())
        .args(backend.arguments());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting a box");
    thread::sleep(after);
    child.kill().expect("killing a child of one's own");
    child.wait().expect("waiting for a child of one's own");
    let _ = std::fs::remove_file(path);
}

/// Connections that last, and others that come and go, over restarts of every kind; `configs` are those of the processes in turn, each with its number of
/// workers. `steer` says how several share the connections, and `is_flooded` whether SYNs come in masses meanwhile.
fn outlives_restarts(
    rig: Rig,
    backend: Backend,
    configs: &[[&str; 2]],
    steer: &[&str],
    ways: &[Way],
    is_flooded: bool,
) {
    let state = StateDir::new();
    let start = |[config, workers]: [&str; 2], more: &[&str]| {
        let arguments = state.arguments();
        let arguments = [&[&arguments[0], &arguments[1], workers], steer, more].concat();
        Appliance::start_with(&rig, backend, config, &arguments)
    };
    let (lasting, rounds) = (from_environment("CONNECTIONS", DEFAULT), from_environment("ROUNDS", 1));
    let mut configs = configs.iter().copied().cycle();
    let mut config = configs.next().expect("a configuration");
    let mut running = Some(start(config, &[]));
    let address = SocketAddr::new(netns::SERVER_V4, 7);
    let _server = EchoServer::start(&rig, address);
    let idle = Idle::open(&rig, from_environment("IDLE", 0));
    let met = Met::default();
    let echo = rig.server.run(|| UdpSocket::bind((netns::SERVER_V4, 0))).expect("a socket for datagrams");
    let probed = echo.local_addr().expect("its address");
    let mut pauses: Vec<Pauses> = ways.iter().map(|_| Pauses::default()).collect();
    let flood = is_flooded.then(|| Flood::start(&rig, address));
    let lost = thread::scope(|scope| {
        let met = &met;
        let client = &rig.client;
        let begin = |work: Box<dyn FnOnce() -> io::Result<()> + Send>| scope.spawn(move || client.run(work));
        let mut threads: Vec<_> = (0..lasting.div_ceil(EACH) as u64)
            .map(|n| begin(Box::new(move || met.last(address, 1000 * (n + 1)))))
            .collect();
        threads.extend((0..OPENERS as u64).map(|n| begin(Box::new(move || met.open(address, n)))));
        threads.push(begin(Box::new(move || met.probe(probed))));
        threads.push(scope.spawn(move || met.echo(&echo)));
        let ending = Ending(met);
        let mut chance = 0x9e37_79b9u64 ^ u64::from(std::process::id());
        for round in 0..rounds {
            for (way, pauses) in ways.iter().zip(&mut pauses) {
                // At any moment of what goes on.
                chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                thread::sleep(Duration::from_millis(300 + (chance >> 40) % 50));
                met.longest.store(0, Ordering::Relaxed);
                met.gap.store(0, Ordering::Relaxed);
                let (begin, proxy) = (Instant::now(), running.take().expect("a box runs"));
                let former = config;
                config = configs.next().expect("it begins again");
                let next = match way {
                    Way::By(signal) => {
                        drop(proxy.end(*signal));
                        start(config, &[])
                    }
                    Way::KilledTwice => {
                        drop(proxy.end(Signal::SIGKILL));
                        let after = Duration::from_millis((chance >> 33) % 400);
                        begin_and_kill(&rig, backend, former, &state, after);
                        start(config, &[])
                    }
                    Way::Takeover => {
                        let next = start(config, &["--takeover"]);
                        // It closes at leisure what the next one does not wait for.
                        let end = Instant::now() + traffic::PATIENCE;
                        while proxy.runs() && Instant::now() < end {
                            thread::sleep(Duration::from_millis(10));
                        }
                        assert!(!proxy.runs(), "it goes on beside the next:\n{}", proxy.log().join("\n"));
                        next
                    }
                };
                let proxy = running.insert(next);
                let down = begin.elapsed();
                let taken = proxy.log().iter().any(|line| line.contains("taking over the state"));
                assert!(taken, "the state was not taken over:\n{}", proxy.log().join("\n"));
                if matches!(way, Way::Takeover) && backend == Backend::Driver {
                    let stayed = proxy.log().iter().any(|line| line.contains("were never closed"));
                    assert!(stayed, "the sockets were closed:\n{}", proxy.log().join("\n"));
                }
                // Until the last one has noticed.
                thread::sleep(Duration::from_millis(700).max(3 * down / 2));
                let gap = Duration::from_micros(met.gap.load(Ordering::Relaxed));
                let message = Duration::from_millis(met.longest.load(Ordering::Relaxed));
                note!(
                    "{round}: {way:?}: took {down:.2?}, nothing passed for {gap:.1?}, longest exchange {message:.0?}, {} messages, {} connections closed",
                    met.messages.load(Ordering::Relaxed),
                    met.closed.load(Ordering::Relaxed)
                );
                pauses.gaps.push(gap);
                pauses.messages.push(message);
            }
        }
        drop(ending);
        let lost = threads.into_iter().map(|thread| thread.join().expect("a client does not panic"));
        lost.filter_map(Result::err).map(|error| error.to_string()).collect::<Vec<_>>()
    });
    drop(flood);
    idle.speak();
    for (way, Pauses { gaps, messages }) in ways.iter().zip(&mut pauses) {
        note!("{way:?}: nothing passed for {}; longest exchange {}", Pauses::of(gaps), Pauses::of(messages));
    }
    let proxy = running.expect("a box runs");
    let log = proxy.log();
    let (closed, messages) = (met.closed.load(Ordering::Relaxed), met.messages.load(Ordering::Relaxed));
    assert!(lost.is_empty(), "lost: {lost:#?}\n{}", log.join("\n"));
    assert!(closed > 20 && messages > 1000, "{closed} connections closed, {messages} messages");
    drop(proxy.stop());
}

/// Tables with more room than the connections need, all of which are one client's, and twice as much.
fn tables() -> [String; 2] {
    // For those that are idle, twice as many records as they need: eight make a bucket.
    let wanted = (8 * from_environment("CONNECTIONS", DEFAULT)).max(from_environment("IDLE", 0) / 4);
    let least = wanted.next_power_of_two().max(4096);
    [least, 2 * least].map(|size| format!("conntablesize = {size}; learnhashsize = 256;"))
}

#[test]
fn connections_outlive_an_end_a_kill_a_takeover_and_a_kill_while_the_state_is_taken_over() {
    let ways = [Way::By(Signal::SIGTERM), Way::By(Signal::SIGKILL), Way::Takeover, Way::KilledTwice];
    let configs = [[&*tables()[0], "--workers=1"]];
    outlives_restarts(Rig::of_one_queue(), Backend::Driver, &configs, &[], &ways, false);
}

#[test]
fn connections_outlive_a_takeover_and_a_kill_under_a_flood_while_workers_hand_over_frames() {
    let ways = [Way::Takeover, Way::By(Signal::SIGKILL)];
    let configs = [[&*tables()[0], "--workers=2"]];
    outlives_restarts(Rig::of_one_queue(), Backend::Packet, &configs, &["--steer=everything"], &ways, true);
}

#[test]
fn connections_outlive_a_restart_and_a_takeover_with_other_tables_and_other_workers() {
    let [small, large] = tables();
    let configs = [[&*small, "--workers=2"], [&large, "--workers=1"]];
    let ways = [Way::By(Signal::SIGKILL), Way::Takeover];
    outlives_restarts(Rig::of_one_queue(), Backend::Packet, &configs, &[], &ways, false);
}

/// A connection, and whether it still carries data.
fn carries(stream: &TcpStream, n: u64) -> bool {
    say(stream, 1, n).and_then(|()| hear(stream, 1, n)).is_ok()
}

#[test(light)]
fn a_stop_leaves_nothing_and_a_fresh_start_takes_nothing_over() {
    let (rig, state) = (Rig::new(), StateDir::new());
    let socket = harness::leftovers::file("restart.sock");
    let config = format!("control = \"{}\"; {}", socket.display(), tables()[0]);
    let start = |more: &[&str]| {
        let arguments = state.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Appliance::start_with(&rig, Backend::Packet, &config, &arguments)
    };
    let took_over = |proxy: &Appliance| proxy.log().iter().any(|line| line.contains("taking over the state"));
    let open = Arc::new(Mutex::new(Vec::new()));
    let opened = Arc::clone(&open);
    let server = rig.server.serve(netns::SERVER_V4, 0, move |stream| {
        opened.lock().expect("no thread panics").push(stream.try_clone()?);
        traffic::echo(stream)
    });
    let proxy = start(&[]);
    // The header, and the tables of each worker.
    assert_eq!(state.files().len(), 1 + rig.queues() as usize, "{:?}", state.files());
    let stream = rig.client.connect(server.address).expect("a connection through the box");
    assert!(carries(&stream, 0));
    drop(proxy.stop());
    let proxy = start(&[]);
    assert!(took_over(&proxy) && carries(&stream, 1));
    drop(proxy.end(Signal::SIGKILL));
    let proxy = start(&["--fresh"]);
    assert!(!took_over(&proxy), "{:#?}", proxy.log());
    let again = rig.client.connect(server.address).expect("a connection through the new box");
    assert!(carries(&again, 2));
    let said =
        Command::new(program("synctl")).arg("--socket").arg(&socket).arg("stop").output().expect("running synctl");
    assert!(said.status.success(), "{said:?}");
    let begin = Instant::now();
    while proxy.runs() {
        assert!(begin.elapsed() < Duration::from_secs(10), "it goes on: {:#?}", proxy.log());
        thread::sleep(Duration::from_millis(5));
    }
    assert!(state.files().is_empty(), "{:?}", state.files());
    drop(proxy);
    let proxy = start(&[]);
    assert!(!took_over(&proxy), "{:#?}", proxy.log());
    drop(proxy.stop());
    // A damaged header is told of in one line, and begun anew.
    let files: Vec<_> =
        std::fs::read_dir(&state.0).expect("the state").flatten().map(|entry| entry.path().join("box")).collect();
    let mut header = std::fs::read(&files[0]).expect("the header");
    header[64 * 8 + 9] ^= 1;
    header[128 * 8 + 9] ^= 1;
    std::fs::write(&files[0], header).expect("the header");
    let proxy = start(&[]);
    let refused = proxy.log().iter().filter(|line| line.contains("is not taken over: its secrets are damaged")).count();
    assert!(refused == 1 && !took_over(&proxy), "{:#?}", proxy.log());
    drop(proxy.stop());
    // Nobody else ends the connections that were lost.
    for stream in open.lock().expect("no thread panics").drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
