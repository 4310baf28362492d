//! The hosts at both ends, with their kernels' TCP: questions and answers, connections, bulk.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};
use nix::sys::time::TimeVal;
use tools::flood_template::Kind;
use tools::latency::Latencies;
use tools::xdp_generator::Sink;
use unit::netns::{self, Rig};

use crate::load::{PORT, Running, attack, sink};
use crate::middle::{Middle, OwnWords, Stood};

/// The port that takes everything, and the one that gives without end.
const TAKER: u16 = 81;
const GIVER: u16 = 82;

/// Clients that connect at the same time.
const CLIENTS: usize = 4;

/// How long a client waits: for its third SYN to be answered and a little more.
const PATIENCE: Duration = Duration::from_secs(8);

/// Listens on all three ports for as long as the process lives; the namespace goes with the rig.
pub struct Server {
    listeners: Vec<TcpListener>,
}

impl Server {
    pub fn start(rig: &Rig) -> Server {
        type Serve = fn(TcpStream) -> io::Result<()>;
        let echo: Serve = |mut stream| {
            let mut buffer = [0; 1 << 10];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    got => stream.write_all(&buffer[..got])?,
                }
            }
        };
        let take: Serve = |mut stream| {
            let mut buffer = vec![0; 1 << 18];
            while stream.read(&mut buffer)? > 0 {}
            Ok(())
        };
        let give: Serve = |mut stream| {
            let buffer = vec![0; 1 << 16];
            loop {
                stream.write_all(&buffer)?;
            }
        };
        let mut listeners = Vec::new();
        for (port, serve) in [(PORT, echo), (TAKER, take), (GIVER, give)] {
            let listener = rig.server.run(|| TcpListener::bind((netns::SERVER_V4, port))).expect("listening");
            socket::listen(&listener, socket::Backlog::new(4096).expect("below the kernel's limit"))
                .expect("listening");
            let accepting = listener.try_clone().expect("one more descriptor");
            // Connections break off when a rig goes: that is theirs.
            thread::spawn(move || {
                while let Ok((stream, _)) = accepting.accept() {
                    let _ = stream.set_nodelay(true);
                    thread::spawn(move || serve(stream));
                }
            });
            listeners.push(listener);
        }
        Server { listeners }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // Ends the thread that accepts.
            let _ = socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both);
        }
    }
}

/// Says `word` and waits for as many bytes.
pub fn ask(mut stream: &TcpStream, heard: &mut [u8], word: &[u8]) -> io::Result<()> {
    stream.write_all(word)?;
    stream.read_exact(heard)
}

/// What is true of the hosts with one candidate between them, in peace or under a flood.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// Gbit/s of one connection to the server, and from it.
    pub bulk: [f64; 2],
    /// Our own time a frame while nothing but bulk was on the wire, in nanoseconds.
    pub stage: Option<f64>,
    /// CPU time of the candidate while there was nothing to do, milliseconds a second.
    pub idle: Option<f64>,
    /// Microseconds a question of one connection waits for its answer: half of them, 99 of 100, 999 of 1000.
    pub answer: [f64; 3],
    /// Connections of clients whose address has connected before.
    pub proved: Connections,
    /// Connections of clients whose address was never seen.
    pub strangers: Connections,
    /// Millions a second of the flood meanwhile.
    pub flood: f64,
}

/// What became of connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connections {
    /// Those made, used for a word, and closed, a second.
    pub rate: f64,
    /// Percent of all that were tried whose first SYN was answered; whose second; whose third.
    pub retries: [f64; 3],
}

/// The hosts' service in peace: bulk, answers, connections. Each part lasts for `span`.
pub fn in_peace(middle: Middle, span: Duration) -> Service {
    let rig = Rig::alone();
    let stood = Stood::stand(&rig, middle, false);
    let server = Server::start(&rig);
    let bulk = [TAKER, GIVER].map(|port| transfer(&rig, port, span));
    // The worker's own clock tells of bulk alone when nothing else has been.
    let stage = stood.leave().map(|OwnWords { stage, .. }| stage);
    drop((server, rig));

    let rig = Rig::alone();
    let stood = Stood::stand(&rig, middle, false);
    let server = Server::start(&rig);
    let idle = idle(&stood, span);
    let service = serve(&rig, span);
    drop((stood.leave(), server));
    Service { bulk, stage, idle, ..service }
}

/// Bulk between hosts that leave checksums and segmentation to their interfaces, as they do by default: Gbit/s to the server and from it, of one connection
/// and of eight together.
pub fn with_offloads(middle: Middle, span: Duration) -> [[f64; 2]; 2] {
    let rig = Rig::alone().with_default_offloads(false);
    let stood = Stood::stand(&rig, middle, false);
    let server = Server::start(&rig);
    let together = |port: u16, connections: usize| -> f64 {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..connections).map(|_| scope.spawn(|| transfer(&rig, port, span))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a client does not panic")).sum()
        })
    };
    let bulk = [1, 8].map(|connections| [TAKER, GIVER].map(|port| together(port, connections)));
    drop((stood.leave(), server));
    bulk
}

/// The same under a flood of SYNs from strangers, `rate` a second or as many as the generator can make beside the hosts. What it brings
/// about at the ends is swallowed before their kernels see it: with every candidate the hosts have the same to do.
pub fn under_flood(middle: Middle, rate: f64, offloads: bool, span: Duration) -> Service {
    let rig = if offloads { Rig::alone().with_default_offloads(false) } else { Rig::alone() };
    let stood = Stood::stand(&rig, middle, false);
    let server = Server::start(&rig);
    let _sinks: [Sink; 2] = [sink(&rig.client, "c0"), sink(&rig.server, "s0")];
    // Proved before the flood begins.
    visits(&rig, Duration::from_millis(100), false);
    let open = rig.client.connect((netns::SERVER_V4, PORT).into()).expect("connecting in peace");
    let streams = [TAKER, GIVER].map(|port| rig.client.connect((netns::SERVER_V4, port).into()).expect("likewise"));
    for stream in streams.iter().chain([&open]) {
        stream.set_read_timeout(Some(span)).expect("a timeout that is not zero");
        stream.set_write_timeout(Some(span)).expect("likewise");
    }
    let flood = Running::start(attack(&rig, stood.server_mac(), Kind::Syn, netns::SERVER_V4, Some(rate)), true);
    thread::sleep(Duration::from_millis(300));
    let (begin, made) = (Instant::now(), flood.made());
    let answer = answers(&open, span);
    let bulk = [carry(&streams[0], TAKER, span), carry(&streams[1], GIVER, span)];
    let [proved, strangers] = [false, true].map(|strangers| visits(&rig, span, strangers));
    let mpps = (flood.made() - made) as f64 / begin.elapsed().as_secs_f64() / 1e6;
    flood.stop();
    drop((open, streams));
    drop((stood.leave(), server));
    Service { bulk, stage: None, idle: None, answer, proved, strangers, flood: mpps }
}

/// What the candidate costs while nothing is on the wire; not known of those that have no threads of their own.
fn idle(stood: &Stood, span: Duration) -> Option<f64> {
    let (begin, before) = (Instant::now(), stood.time());
    thread::sleep(span);
    let (spent, passed) = (stood.time() - before, begin.elapsed());
    stood.middle.is_ours().then(|| spent.as_secs_f64() * 1e3 / passed.as_secs_f64())
}

fn serve(rig: &Rig, span: Duration) -> Service {
    let open = rig.client.connect((netns::SERVER_V4, PORT).into()).expect("connecting in peace");
    let answer = answers(&open, span);
    let [proved, strangers] = [false, true].map(|strangers| visits(rig, span, strangers));
    Service { answer, proved, strangers, ..Service::default() }
}

/// Questions and answers of 64 bytes on one connection, one after the other: p50, p99 and p99.9 in microseconds. A question whose
/// answer does not come in time is the last one, and counts with the time it was waited for.
fn answers(stream: &TcpStream, span: Duration) -> [f64; 3] {
    let mut times = Latencies::default();
    let begin = Instant::now();
    while begin.elapsed() < span {
        let asked = Instant::now();
        let answered = ask(stream, &mut [0; 64], &[7; 64]);
        times.record(asked.elapsed());
        if answered.is_err() {
            break;
        }
    }
    [0.5, 0.99, 0.999].map(|share| times.at(share).as_secs_f64() * 1e6)
}

fn transfer(rig: &Rig, port: u16, span: Duration) -> f64 {
    let stream = rig.client.connect((netns::SERVER_V4, port).into()).expect("connecting in peace");
    carry(&stream, port, span)
}

/// Bulk in one direction of an open connection: Gbit/s after a first tenth of the time.
fn carry(mut stream: &TcpStream, port: u16, span: Duration) -> f64 {
    let mut buffer = vec![0; 1 << 17];
    let (begin, mut from, mut bytes) = (Instant::now(), None, 0);
    loop {
        let moved = if port == TAKER { stream.write(&buffer) } else { stream.read(&mut buffer) };
        // Nothing may have moved until it was too late.
        bytes += moved.unwrap_or(0);
        let passed = begin.elapsed();
        match from {
            None if passed > span / 10 => (from, bytes) = (Some(passed), 0),
            Some(from) if passed > span => return bytes as f64 * 8e-9 / (passed - from).as_secs_f64(),
            _ => {}
        }
    }
}

/// Clients that connect, say a word, hear it and go, again and again.
fn visits(rig: &Rig, span: Duration, strangers: bool) -> Connections {
    // No stranger comes twice.
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let over = AtomicBool::new(false);
    let begin = Instant::now();
    let client = || {
        let mut waits = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let source = if strangers {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                Ipv4Addr::from_bits(u32::from_be_bytes([10, 78, 0, 0]) + (number % 65_000 + 1) as u32)
            } else {
                Ipv4Addr::UNSPECIFIED
            };
            waits.push(visit(source).ok());
        }
        waits
    };
    let waits: Vec<Option<Duration>> = rig.client.run(|| {
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
            thread::sleep(span);
            over.store(true, Ordering::Relaxed);
            clients.into_iter().flat_map(|client| client.join().expect("a client does not panic")).collect()
        })
    });
    let connected = waits.iter().flatten().count();
    // Linux repeats a SYN after one second, and then after two.
    let within = |from: f64, to: f64| {
        let count = waits.iter().flatten().filter(|wait| (from..to).contains(&wait.as_secs_f64())).count();
        count as f64 / waits.len().max(1) as f64 * 100.0
    };
    Connections {
        rate: connected as f64 / begin.elapsed().as_secs_f64(),
        retries: [within(0.0, 0.95), within(0.95, 2.95), within(2.95, 6.95)],
    }
}

/// One client, inside the namespace: how long it took to be connected and to hear its word.
fn visit(source: Ipv4Addr) -> io::Result<Duration> {
    let begin = Instant::now();
    let socket = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let patience = TimeVal::new(PATIENCE.as_secs() as i64, 0);
    socket::setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    socket::setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    if !source.is_unspecified() {
        // The port is chosen when it connects, or there would soon be none.
        socket::setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket::bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
    }
    let std::net::IpAddr::V4(server) = netns::SERVER_V4 else { unreachable!("it is one of the fourth version") };
    socket::connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(server, PORT)))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    ask(&stream, &mut [0; 8], &[1; 8])?;
    Ok(begin.elapsed())
}
