//! How connections fail and end: what a client sees of a server that is closed, gone, silent or killed, and a port that is
//! used again. Over the bridge first, which is the truth, then with the proxy in its place.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use harness::{note, test};
use unit::netns::sockets::{self, Making, Syns};
use unit::netns::{self, Namespace, Rig, mangle, traffic};

/// What becomes of a connection attempt that fails.
#[derive(Debug)]
struct Fate {
    /// Whether the opener believed itself connected for a while.
    connected: bool,
    kind: ErrorKind,
    took: Duration,
}

fn fate(opener: &Namespace, address: SocketAddr) -> Fate {
    let start = Instant::now();
    let (connected, error) = match opener.connect(address) {
        Err(error) => (false, error),
        Ok(mut stream) => match stream.read(&mut [0]) {
            Err(error) => (true, error),
            Ok(_) => panic!("{address}: nobody is there, and yet the connection ended in good order"),
        },
    };
    Fate { connected, kind: error.kind(), took: start.elapsed() }
}

#[test]
fn a_host_behind_a_router_that_cannot_reach_it_is_an_error_soon() {
    for middle in netns::MIDDLES {
        let rig = Rig::new();
        let routers = rig.route(Rig::LAN, 1500);
        routers.inner.sh("ip route add unreachable 10.78.0.77; ip route add prohibit 10.78.0.78
             ip -6 route add unreachable fd78::77; ip -6 route add prohibit fd78::78");
        let _proxy = netns::stand(&rig, middle);
        for gone in ["10.78.0.77", "10.78.0.78", "fd78::77", "fd78::78"] {
            let fate = fate(&rig.client, SocketAddr::new(gone.parse().expect("an address"), 80));
            note!("{gone}, {middle:?}: {fate:?}");
            // Over the bridge an IPv6 opener hears of it when it asks again, a second later.
            assert!(fate.took < Duration::from_millis(2500), "{gone}, {middle:?}: {fate:?}");
            let told = [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied, ErrorKind::NetworkUnreachable];
            let reset = middle.is_some() && fate.kind == ErrorKind::ConnectionReset;
            assert!(told.contains(&fate.kind) || reset, "{gone}, {middle:?}: {fate:?}");
        }
    }
}

#[test]
fn a_silent_server_gets_syns_at_doubling_intervals_and_is_given_up() {
    let silent = [netns::NOBODY_V4, netns::NOBODY_V6];
    thread::scope(|scope| {
        for cache in [netns::CACHE_ON, netns::CACHE_OFF] {
            scope.spawn(move || {
                let rig = Rig::new();
                let _proxy = netns::stand(&rig, Some(&format!("{cache} timeouts = {{ dl_syn_sent = 8; }};")));
                let syns = Syns::watch(&rig.server);
                thread::scope(|scope| {
                    for ip in silent {
                        let rig = &rig;
                        scope.spawn(move || {
                            let fate = fate(&rig.client, SocketAddr::new(ip, 80));
                            note!("{ip}, {cache}: {fate:?}");
                            assert_eq!(
                                (fate.connected, fate.kind),
                                (true, ErrorKind::ConnectionReset),
                                "{ip}, {cache}"
                            );
                            assert!((7.5..10.0).contains(&fate.took.as_secs_f64()), "{ip}, {cache}: {fate:?}");
                        });
                    }
                });
                let seen = syns.stop();
                for ip in silent {
                    let syns: Vec<Instant> = seen.iter().filter(|syn| syn.to.ip() == ip).map(|syn| syn.at).collect();
                    let gaps: Vec<f64> = syns.windows(2).map(|two| (two[1] - two[0]).as_secs_f64()).collect();
                    note!("{ip}, {cache}: another SYN after {gaps:.2?} s");
                    assert!(gaps.len() >= 3, "{ip}, {cache}: another SYN only after {gaps:.2?} s");
                    for (gap, due) in gaps.iter().zip([1.0, 2.0, 4.0]) {
                        assert!((gap - due).abs() < 0.5, "{ip}, {cache}: another SYN after {gaps:.2?} s");
                    }
                }
            });
        }
    });
}

/// `nc` without a screen: what it reads piles up.
fn nc(namespace: &Namespace, arguments: &str) -> Child {
    let mut command = namespace.command("nc");
    command.args(arguments.split(' ')).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("starting nc")
}

/// Connects until somebody listens.
fn connect_until_answered(rig: &Rig, address: SocketAddr, syns: &str) -> TcpStream {
    let start = Instant::now();
    loop {
        let listening = rig.server.sh(&format!("ss -Hltn 'sport = :{}'", address.port()));
        if !listening.trim().is_empty() {
            return rig.client.connect(address).unwrap_or_else(|e| panic!("{syns}: {e}"));
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{syns}: nobody listens");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Reads on until the connection breaks, and says how.
fn end_of(mut stream: &TcpStream) -> Result<(), ErrorKind> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.kind()),
        }
    }
}

fn kill(mut child: Child) {
    child.kill().and_then(|()| child.wait()).expect("ending a child of one's own");
}

#[test]
fn a_killed_server_resets_its_client_and_a_killed_client_its_server() {
    // More than a pipe and a program hold: the rest lies unread in the kernel, which resets when it is thrown away.
    const UNREAD: u64 = 200_000;
    for middle in netns::MIDDLES {
        let rig = Rig::new();
        let _proxy = netns::stand(&rig, middle);
        for ip in [netns::SERVER_V4, netns::SERVER_V6] {
            let server = nc(&rig.server, &format!("-l {ip} 1234"));
            let stream = connect_until_answered(&rig, SocketAddr::new(ip, 1234), "nc -l");
            traffic::send(&stream, 1, UNREAD).expect("sending what nobody reads");
            thread::sleep(Duration::from_millis(200));
            kill(server);
            let start = Instant::now();
            assert_eq!(end_of(&stream), Err(ErrorKind::ConnectionReset), "{ip}, {middle:?}: the server was killed");
            assert!(
                start.elapsed() < Duration::from_secs(1),
                "{ip}, {middle:?}: the client waited for its server's end"
            );

            let (tell, told) = mpsc::channel();
            let serve = rig.server.serve(ip, 0, move |stream| {
                traffic::send(&stream, 1, UNREAD)?;
                let _ = tell.send(Ok(()));
                let _ = tell.send(end_of(&stream));
                Ok(())
            });
            let client = nc(&rig.client, &format!("{ip} {}", serve.address.port()));
            let sent = told.recv_timeout(traffic::PATIENCE);
            assert_eq!(sent, Ok(Ok(())), "{ip}, {middle:?}: the server sends");
            thread::sleep(Duration::from_millis(200));
            kill(client);
            let end = told.recv_timeout(Duration::from_secs(1));
            assert_eq!(end, Ok(Err(ErrorKind::ConnectionReset)), "{ip}, {middle:?}: the client was killed");
        }
    }
}

#[test]
fn half_closed_lasts_longer_than_what_is_closing() {
    const SHORT: &str = "timeouts = { both_fin = 1; time_wait = 1; reseted = 1; };";
    thread::scope(|scope| {
        for cache in [netns::CACHE_ON, netns::CACHE_OFF] {
            scope.spawn(move || {
                let rig = Rig::new();
                let _proxy = netns::stand(&rig, Some(&format!("{cache} {SHORT}")));
                thread::scope(|scope| {
                    for ip in [netns::SERVER_V4, netns::SERVER_V6] {
                        let rig = &rig;
                        scope.spawn(move || {
                            let server = rig.server.serve(ip, 0, |stream| {
                                traffic::receive(&stream, 1, None)?;
                                thread::sleep(Duration::from_secs(4));
                                traffic::send(&stream, 2, 1 << 20)
                            });
                            let stream = rig.client.connect(server.address).expect("calling");
                            traffic::send(&stream, 1, 1 << 20).expect("asking");
                            stream.shutdown(Shutdown::Write).expect("finishing");
                            let got = traffic::receive(&stream, 2, None);
                            assert_eq!(got.ok(), Some(1 << 20), "{ip}, {cache}: what came four seconds after our FIN");
                        });
                    }
                });
            });
        }
    });
}

#[test(long)]
fn forged_resets_among_the_bytes_in_flight_end_no_connection() {
    thread::scope(|scope| {
        for cache in [netns::CACHE_ON, netns::CACHE_OFF] {
            scope.spawn(move || {
                let rig = Rig::new();
                let _forgers = [Rig::LAN, Rig::WAN].map(|port| rig.mangle(port, mangle::with_forged_resets));
                let _proxy = netns::stand(&rig, Some(&format!("{cache} timeouts = {{ reseted = 1; }};")));
                for ip in [netns::SERVER_V4, netns::SERVER_V6] {
                    let server = rig.server.serve(ip, 0, traffic::echo);
                    let mut stream = rig.client.connect(server.address).expect("connecting");
                    for pause in [0, 3, 3] {
                        thread::sleep(Duration::from_secs(pause));
                        let (sent, mut got) = ([pause as u8; 1000], [1; 1000]);
                        stream.write_all(&sent).expect("sending");
                        stream.read_exact(&mut got).unwrap_or_else(|e| panic!("{ip}, {cache}: after {pause} s: {e}"));
                        assert_eq!(got, sent);
                    }
                }
            });
        }
    });
}

/// How long a FIN may take to be acknowledged on a machine that is busy.
const FIN_TIME: Duration = Duration::from_millis(500);

/// Connects `times` times from one port, each time as soon as the last connection has ended by `end`, and returns how long
/// the slowest connection took from its SYN to its last byte.
fn connects_again(
    rig: &Rig,
    ends: (IpAddr, SocketAddr),
    port: u16,
    times: u32,
    end: impl Fn(TcpStream) + Sync,
) -> io::Result<Duration> {
    rig.client.run(|| {
        let mut slowest = Duration::ZERO;
        for _ in 0..times {
            let stopped = Instant::now();
            let (start, stream) = loop {
                let start = Instant::now();
                match (Making { port, ..Making::default() }.connect(ends.0, ends.1, |_| Ok(()))) {
                    // The client's own FIN is not acknowledged yet.
                    Err(error) if error.kind() == ErrorKind::AddrNotAvailable && stopped.elapsed() < FIN_TIME => {
                        thread::sleep(Duration::from_millis(1));
                    }
                    other => break (start, other?),
                }
            };
            (&stream).write_all(b"?")?;
            (&stream).read_exact(&mut [0])?;
            traffic::send(&stream, 1, 50_000)?;
            traffic::receive(&stream, 1, Some(50_000))?;
            slowest = slowest.max(start.elapsed());
            end(stream);
        }
        Ok(slowest)
    })
}

/// Both families and timestamps on and off, over what stands in the middle.
fn port_is_used_again(what: &str, times: u32, limit: Duration, end: impl Fn(TcpStream) + Sync, finishes_first: bool) {
    for middle in netns::MIDDLES {
        let rig = Rig::new();
        // A client may leave TIME_WAIT early for a connection to the same server.
        rig.sysctl("net.ipv4.tcp_tw_reuse", "1");
        rig.sysctl("net.ipv4.tcp_tw_reuse_delay", "1");
        let _proxy = netns::stand(&rig, middle);
        let pairs = [(netns::CLIENT_V4, netns::SERVER_V4), (netns::CLIENT_V6, netns::SERVER_V6)];
        for (port, (client, server)) in (7000..).zip(pairs) {
            let server = rig.server.serve(server, 0, move |mut stream| {
                let mut buffer = vec![0; 4096];
                let mut left = 50_001;
                while left > 0 {
                    let got = stream.read(&mut buffer)?;
                    if got == 0 {
                        break;
                    }
                    stream.write_all(&buffer[..got])?;
                    left -= got;
                }
                if !finishes_first {
                    // A client that has vanished is not waited for.
                    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                    traffic::expect_end(&stream)?;
                }
                Ok(())
            });
            let slowest = connects_again(&rig, (client, server.address), port, times, &end)
                .unwrap_or_else(|e| panic!("{what}, {client}, {middle:?}: {e}"));
            note!("{what}, {client}, {middle:?}: {slowest:?}");
            assert!(slowest < limit, "{what}, {client}, {middle:?}: a connection took {slowest:?}");
        }
    }
}

#[test]
fn a_port_is_used_again_at_once_after_the_server_finished_first() {
    let end = |stream: TcpStream| traffic::expect_end(&stream).expect("the server's FIN");
    port_is_used_again("server first", 5, Duration::from_millis(900), end, true);
}

#[test]
fn a_port_is_used_again_at_once_after_the_client_finished_first() {
    let end = |stream: TcpStream| {
        stream.shutdown(Shutdown::Write).expect("finishing");
        traffic::expect_end(&stream).expect("the server's FIN");
        drop(stream);
        // The kernel's clock for this is in milliseconds.
        thread::sleep(Duration::from_millis(5));
    };
    port_is_used_again("client first", 5, Duration::from_millis(900), end, false);
}

#[test]
fn a_port_is_used_again_over_what_a_client_that_lost_its_power_left_behind() {
    // The server protests, the client's reset tells it the truth, and the repeated SYN is taken.
    let end = |stream: TcpStream| sockets::vanish(stream).expect("losing power");
    port_is_used_again("power lost", 3, Duration::from_millis(900), end, false);
}

#[test]
fn a_closed_port_refuses_at_once_while_it_is_remembered() {
    thread::scope(|scope| {
        for cache in [netns::CACHE_ON, netns::CACHE_OFF] {
            scope.spawn(move || {
                let rig = Rig::new();
                let _proxy = netns::stand(&rig, Some(&format!("{cache} closed_memory = 2;")));
                for ip in [netns::SERVER_V4, netns::SERVER_V6] {
                    let (closed, open) = (SocketAddr::new(ip, 5555), rig.server.serve(ip, 0, traffic::exchanged));
                    let first = fate(&rig.client, closed);
                    assert!(
                        matches!(first.kind, ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused),
                        "{first:?}"
                    );
                    for _ in 0..3 {
                        let next = fate(&rig.client, closed);
                        assert_eq!((next.connected, next.kind), (false, ErrorKind::ConnectionRefused), "{ip}, {cache}");
                        assert!(next.took < Duration::from_millis(500), "{ip}, {cache}: {next:?}");
                    }
                    // Its neighbour is none the worse for it.
                    let stream = rig.client.connect(open.address).expect("calling an open port");
                    traffic::exchange(&stream, 1000, 1000).expect("an open port of the same server");
                    // Somebody opens the port; it is forgotten in time.
                    let opened = rig.server.serve(ip, 5555, traffic::exchanged);
                    thread::sleep(Duration::from_millis(2500));
                    let stream = rig.client.connect(opened.address).expect("calling a port that was closed");
                    traffic::exchange(&stream, 1000, 1000).expect("a port that was closed");
                }
            });
        }
    });
}
