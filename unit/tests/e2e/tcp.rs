//! The kernel's TCP at both ends and the proxy between them: whatever two hosts do with a connection, they do it as if
//! nobody stood between. `Rig::judge` asks both kernels afterwards.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use harness::{note, test};
use unit::netns::{self, Appliance, Backend, Namespace, Rig, sockets, traffic};

const MB: u64 = 1 << 20;

/// Slower than this on a cable between two namespaces (Mbit/s), and something is wrong with the numbers.
const COLLAPSED: f64 = 40.0;

/// What one transfer may spend beside that, in seconds, on waiting for a core: two megabytes take many turns of everybody. Where the
/// numbers are wrong, timers expire one after the other.
const WAITING: f64 = 1.0;

/// Whether `bytes` at this speed took longer than anything sound explains.
fn collapsed(bytes: u64, speed: f64) -> bool {
    let time = |speed: f64| bytes as f64 * 8e-6 / speed;
    time(speed) > time(COLLAPSED) + WAITING
}

/// With the SYN cache, and with nothing but cookies.
const CACHES: [&str; 2] = [netns::CACHE_ON, netns::CACHE_OFF];

/// The four ways a connection can run: who connects to whom, over what.
fn ways(rig: &Rig) -> [(&'static str, &Namespace, &Namespace, IpAddr); 4] {
    [
        ("from the WAN, IPv4", &rig.client, &rig.server, netns::SERVER_V4),
        ("from the WAN, IPv6", &rig.client, &rig.server, netns::SERVER_V6),
        ("from the LAN, IPv4", &rig.server, &rig.client, netns::CLIENT_V4),
        ("from the LAN, IPv6", &rig.server, &rig.client, netns::CLIENT_V6),
    ]
}

/// One connection every way, `bytes` up and down, judged.
fn exchange_every_way(rig: &Rig, what: &str, bytes: u64) {
    for (way, opener, acceptor, ip) in ways(rig) {
        let server = acceptor.serve(ip, 0, traffic::exchanged);
        let speeds = rig.judge([0, 0], || {
            let stream = opener.connect(server.address).unwrap_or_else(|e| panic!("{what}, {way}: connect: {e}"));
            traffic::exchange(&stream, bytes, bytes).unwrap_or_else(|e| panic!("{what}, {way}: {e}"))
        });
        note!("{what}, {way}: up {:.0} Mbit/s, down {:.0} Mbit/s", speeds[0], speeds[1]);
        assert!(
            !speeds.iter().any(|&speed| collapsed(bytes, speed)),
            "{what}, {way}: collapsed to {speeds:.0?} Mbit/s"
        );
    }
}

#[test(alone)]
fn bulk_flows_both_ways_with_the_cache_and_without() {
    for cache in CACHES {
        let rig = Rig::alone();
        let proxy = Appliance::start(&rig, Backend::Driver, cache);
        exchange_every_way(&rig, &format!("xdp driver {cache}"), 32 * MB);
        assert!(proxy.stop().status.success());
    }
}

#[test(alone)]
fn bulk_flows_both_ways_in_generic_mode() {
    let rig = Rig::alone();
    let _proxy = Appliance::start(&rig, Backend::Generic, netns::CACHE_ON);
    exchange_every_way(&rig, "xdp generic", 16 * MB);
}

#[test(alone)]
fn bulk_flows_both_ways_on_af_packet() {
    let rig = Rig::alone();
    let _proxy = Appliance::start(&rig, Backend::Packet, netns::CACHE_ON);
    exchange_every_way(&rig, "af_packet", 16 * MB);
}

#[test(alone)]
fn bulk_flows_both_ways_with_bbr() {
    let available = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap_or_default();
    let default = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    // A namespace may choose BBR only where it is the machine's default.
    if !available.contains("bbr") || default.trim() != "bbr" {
        harness::ignore("BBR is not this machine's default");
    }
    let rig = Rig::alone();
    rig.sysctl("net.ipv4.tcp_congestion_control", "bbr");
    let _proxy = Appliance::start(&rig, Backend::Driver, netns::CACHE_ON);
    exchange_every_way(&rig, "bbr", 8 * MB);
}

/// Each option off at either end, on a backend, with the cache and without. Three connections a way, because the proxy
/// learns from the first what the server can.
fn options_off(key: &str, value: &str, backend: Backend) {
    for cache in CACHES {
        for client in [true, false] {
            let rig = Rig::new();
            // Both ask for ECN, so that refusing it is a difference.
            rig.sysctl("net.ipv4.tcp_ecn", "1");
            let (name, end) = if client { ("client", &rig.client) } else { ("server", &rig.server) };
            end.sysctl(key, value);
            let _proxy = Appliance::start(&rig, backend, cache);
            for attempt in 1..=3 {
                exchange_every_way(&rig, &format!("{key} = {value} at the {name} {cache} #{attempt}"), 2 * MB);
            }
        }
    }
}

#[test(light)]
fn timestamps_may_be_off_at_either_end() {
    options_off("net.ipv4.tcp_timestamps", "0", Backend::Driver);
}

#[test(light)]
fn sack_may_be_off_at_either_end() {
    options_off("net.ipv4.tcp_sack", "0", Backend::Driver);
}

#[test(light)]
fn window_scaling_may_be_off_at_either_end() {
    options_off("net.ipv4.tcp_window_scaling", "0", Backend::Driver);
}

#[test(light)]
fn ecn_may_be_off_at_either_end() {
    options_off("net.ipv4.tcp_ecn", "0", Backend::Driver);
}

#[test(light)]
fn every_option_may_be_off_at_both_ends() {
    let rig = Rig::new();
    for key in ["timestamps", "sack", "window_scaling", "ecn"] {
        rig.sysctl(&format!("net.ipv4.tcp_{key}"), "0");
    }
    let _proxy = Appliance::start(&rig, Backend::Driver, netns::CACHE_ON);
    for attempt in 1..=3 {
        exchange_every_way(&rig, &format!("bare TCP #{attempt}"), 2 * MB);
    }
}

fn short_connections(backend: Backend, config: &str) {
    let rig = Rig::alone();
    let proxy = Appliance::start(&rig, backend, config);
    for (way, opener, acceptor, ip) in ways(&rig) {
        let server = acceptor.serve(ip, 0, traffic::echo);
        let mut times = rig.judge([0, 0], || {
            opener.run(|| {
                (0..1000u32)
                    .map(|number| {
                        let start = Instant::now();
                        let mut stream = traffic::connect(server.address)
                            .unwrap_or_else(|e| panic!("{backend:?}, {way}: connection {number}: {e}"));
                        let question = number.to_be_bytes();
                        stream.write_all(&question).expect("asking");
                        stream.shutdown(Shutdown::Write).expect("finishing");
                        let mut answer = Vec::new();
                        stream.read_to_end(&mut answer).unwrap_or_else(|e| panic!("{way}: connection {number}: {e}"));
                        assert_eq!(answer, question, "{backend:?}, {way}: connection {number}");
                        start.elapsed()
                    })
                    .collect::<Vec<_>>()
            })
        });
        times.sort();
        let (median, slowest) = (times[500], times[999]);
        note!("{backend:?} {config}, {way}: median {median:?}, slowest {slowest:?}");
        assert!(median < Duration::from_millis(50), "{way}: median {median:?}");
    }
    assert!(proxy.stop().status.success());
}

#[test(alone)]
fn a_thousand_short_connections_every_way_with_the_cache() {
    short_connections(Backend::Driver, CACHES[0]);
}

#[test(alone)]
fn a_thousand_short_connections_every_way_without_the_cache() {
    short_connections(Backend::Driver, CACHES[1]);
}

#[test(alone)]
fn a_thousand_short_connections_every_way_on_af_packet() {
    short_connections(Backend::Packet, CACHES[0]);
}

/// Runs a conversation every way, in driver mode, with the cache and without: what the end that opens does, what the other does.
fn converse(
    resets: [i64; 2],
    opens: impl Fn(&TcpStream) -> io::Result<()>,
    answer: impl Fn(&TcpStream) -> io::Result<()> + Clone + Send + Sync + 'static,
) {
    for cache in CACHES {
        let rig = Rig::new();
        let _proxy = Appliance::start(&rig, Backend::Driver, cache);
        for (way, opener, acceptor, ip) in ways(&rig) {
            let (outcome, answered) = mpsc::channel();
            let answer = answer.clone();
            let server = acceptor.serve(ip, 0, move |stream| {
                let _ = outcome.send(answer(&stream).map_err(|error| error.to_string()));
                Ok(())
            });
            // Resets are named by role; the LAN's connections swap the ends.
            let by_end = if acceptor.name() == rig.server.name() { resets } else { [resets[1], resets[0]] };
            rig.judge(by_end, || {
                let stream = opener.connect(server.address).unwrap_or_else(|e| panic!("{way}: connect: {e}"));
                opens(&stream).unwrap_or_else(|e| panic!("{way} {cache}: the opener: {e}"));
                drop(stream);
                answered
                    .recv_timeout(traffic::PATIENCE)
                    .unwrap_or_else(|e| panic!("{way} {cache}: the acceptor never ended: {e}"))
                    .unwrap_or_else(|e| panic!("{way} {cache}: the acceptor: {e}"));
            });
        }
    }
}

#[test(light)]
fn the_opener_may_finish_first_and_listen_on() {
    converse(
        [0, 0],
        |stream| {
            traffic::send(stream, 1, MB)?;
            stream.shutdown(Shutdown::Write)?;
            assert_eq!(traffic::receive(stream, 2, None)?, 8 * MB);
            Ok(())
        },
        |stream| {
            assert_eq!(traffic::receive(stream, 1, None)?, MB);
            // Half closed for a while.
            thread::sleep(Duration::from_millis(500));
            traffic::send(stream, 2, 8 * MB)
        },
    );
}

#[test(light)]
fn the_acceptor_may_finish_first_and_listen_on() {
    converse(
        [0, 0],
        |stream| {
            traffic::expect_end(stream)?;
            thread::sleep(Duration::from_millis(500));
            traffic::send(stream, 1, 8 * MB)
        },
        |stream| {
            stream.shutdown(Shutdown::Write)?;
            assert_eq!(traffic::receive(stream, 1, None)?, 8 * MB);
            Ok(())
        },
    );
}

#[test(light)]
fn the_acceptor_may_speak_first() {
    converse(
        [0, 0],
        |stream| {
            traffic::receive(stream, 3, Some(4))?;
            traffic::send(stream, 4, 4)?;
            traffic::expect_end(stream)
        },
        |stream| {
            traffic::send(stream, 3, 4)?;
            traffic::receive(stream, 4, Some(4))?;
            Ok(())
        },
    );
}

#[test(light)]
fn the_opener_may_abort() {
    converse(
        // One, and one for every segment that an impatient peer had sent again meanwhile.
        [4, 0],
        |stream| {
            traffic::send(stream, 1, MB)?;
            traffic::receive(stream, 2, Some(8))?;
            traffic::abort_at_close(stream)
        },
        |stream| {
            traffic::receive(stream, 1, Some(MB))?;
            traffic::send(stream, 2, 8)?;
            expect_reset(stream)
        },
    );
}

#[test(light)]
fn the_acceptor_may_abort() {
    converse(
        [0, 4],
        |stream| {
            traffic::send(stream, 1, MB)?;
            expect_reset(stream)
        },
        |stream| {
            traffic::receive(stream, 1, Some(MB))?;
            traffic::abort_at_close(stream)
        },
    );
}

#[test(light, long)]
fn a_reader_may_take_its_time() {
    converse(
        [0, 0],
        |stream| traffic::send(stream, 1, 16 * MB),
        |stream| {
            // Long enough for the window to close and be probed.
            thread::sleep(Duration::from_secs(2));
            assert_eq!(traffic::receive(stream, 1, None)?, 16 * MB);
            Ok(())
        },
    );
}

#[test(light)]
fn both_may_speak_at_once() {
    let both = |stream: &TcpStream, mine: u64, theirs: u64| -> io::Result<()> {
        thread::scope(|scope| {
            let sending = scope.spawn(|| traffic::send(stream, mine, 8 * MB));
            traffic::receive(stream, theirs, Some(8 * MB))?;
            sending.join().expect("a sender does not panic")
        })?;
        stream.shutdown(Shutdown::Write)?;
        traffic::expect_end(stream)
    };
    converse([0, 0], move |stream| both(stream, 1, 2), move |stream| both(stream, 2, 1));
}

fn expect_reset(mut stream: &TcpStream) -> io::Result<()> {
    match stream.read(&mut [0; 1]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => Err(io::Error::other(format!("a reset was expected, not {other:?}"))),
    }
}

/// What becomes of an attempt to connect to nobody: the error, wherever it surfaces, and when.
fn fate(opener: &Namespace, address: SocketAddr) -> (ErrorKind, Duration) {
    let start = Instant::now();
    let error = match opener.connect(address) {
        Err(error) => error,
        Ok(mut stream) => match stream.read(&mut [0; 1]) {
            Err(error) => error,
            Ok(_) => panic!("{address}: nobody is there, and yet the connection ended in good order"),
        },
    };
    (error.kind(), start.elapsed())
}

#[test(light)]
fn a_closed_port_resets_the_opener() {
    for cache in CACHES {
        let rig = Rig::new();
        let _proxy = Appliance::start(&rig, Backend::Driver, cache);
        for (way, opener, acceptor, ip) in ways(&rig) {
            let resets = if acceptor.name() == rig.server.name() { [0, 1] } else { [1, 0] };
            let (kind, took) = rig.judge(resets, || fate(opener, SocketAddr::new(ip, 9)));
            note!("closed port, {way} {cache}: {kind:?} after {took:?}");
            assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused), "{way}: {kind:?}");
            assert!(took < Duration::from_secs(1), "{way}: only after {took:?}");
        }
    }
}

#[test(light)]
fn a_server_that_is_down_resets_the_opener_in_the_end() {
    for cache in CACHES {
        let rig = Rig::new();
        let _proxy = Appliance::start(&rig, Backend::Driver, &format!("{cache} timeouts = {{ dl_syn_sent = 2; }};"));
        for nobody in [netns::NOBODY_V4, netns::NOBODY_V6] {
            let (kind, took) = rig.judge([0, 0], || fate(&rig.client, SocketAddr::new(nobody, 80)));
            note!("server down, {nobody} {cache}: {kind:?} after {took:?}");
            assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused), "{nobody}: {kind:?}");
            assert!((1.0..8.0).contains(&took.as_secs_f64()), "{nobody}: after {took:?} instead of two seconds");
        }
    }
}

#[test(light)]
fn many_connections_share_the_way() {
    let rig = Rig::new();
    let proxy = Appliance::start(&rig, Backend::Driver, netns::CACHE_ON);
    for (way, opener, acceptor, ip) in ways(&rig) {
        let server = acceptor.serve(ip, 0, traffic::exchanged);
        rig.judge([0, 0], || {
            let streams: Vec<TcpStream> =
                opener.run(|| (0..64).map(|_| traffic::connect(server.address).expect("connecting")).collect());
            thread::scope(|scope| {
                for stream in &streams {
                    scope.spawn(|| {
                        traffic::exchange(stream, MB / 4, MB / 4).unwrap_or_else(|e| panic!("64 at once, {way}: {e}"))
                    });
                }
            });
        });
    }
    assert!(proxy.stop().status.success());
}

#[test]
fn an_early_server_that_answers_everybody_with_cookies_keeps_its_options() {
    for middle in [None, Some(netns::CACHE_ON), Some(netns::CACHE_OFF)] {
        let config = middle.map(|cache| format!("{cache} handshake = early;"));
        let rig = Rig::new();
        rig.server.sysctl("net.ipv4.tcp_syncookies", "2");
        let _middle = netns::stand(&rig, config.as_deref());
        let server = rig.server.serve(netns::SERVER_V4, 0, |stream| {
            let options = sockets::tcp_info(&stream).tcpi_options;
            // Timestamps, SACK, window scale.
            assert_eq!(options & 7, 7, "the server's socket has the options {options:#x}");
            traffic::exchanged(stream)
        });
        // The first meets a server that is not known.
        rig.judge([0, 0], || {
            for connection in 1..=4 {
                let stream = rig.client.connect(server.address).expect("connecting");
                traffic::exchange(&stream, 100_000, 1_000_000).unwrap_or_else(|error| panic!("{connection}: {error}"));
            }
        });
    }
}
