//! Reports from the field that depend on how a kernel at either end is set: SYN cookies, hop limits that neighbours demand, deferred accepting, TIME-WAIT, classes
//! that are reflected. Over the bridge first, which is the truth, then through boxes of each kind. The rows of `docs/field.md` name these tests; what needs no kernel
//! is in `unit/tests/engine/reports.rs`.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::{TcpOptionElement, TcpSlice};
use harness::{ignore, note, test};
use pktio::impair::Impairment;
use unit::netns::sockets::{self, Making};
use unit::netns::{self, Namespace, Rig, Tap, TcpInfo, TimedTap, traffic, within};

use super::field::{ENDS, NEIGHBOUR, hub};

/// What a test puts in the middle: the bridge, and boxes of each kind.
pub fn middles() -> impl Iterator<Item = Option<&'static str>> {
    netns::MIDDLES.into_iter().chain([Some("handshake = early;")])
}

/// Does what a test does with each of [`middles`] at the same time: it waits more than it computes. `prepare` changes the rig first.
fn with_each<T>(prepare: impl Fn(&Rig) -> T, check: impl Fn(&Rig, Option<&str>) + Sync) {
    with_each_of(middles(), prepare, check);
}

/// The same with each of these.
pub fn with_each_of<T>(
    middles: impl Iterator<Item = Option<&'static str>>,
    prepare: impl Fn(&Rig) -> T,
    check: impl Fn(&Rig, Option<&str>) + Sync,
) {
    let stand = |middle: Option<&'static str>| {
        let rig = Rig::new();
        let kept = prepare(&rig);
        let proxy = netns::stand(&rig, middle);
        (proxy, kept, rig, middle)
    };
    let rigs: Vec<_> = middles.map(stand).collect();
    thread::scope(|scope| {
        let check = &check;
        let running: Vec<_> = rigs.iter().map(|(_, _, rig, middle)| scope.spawn(move || check(rig, *middle))).collect();
        for one in running {
            one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// Listens at `ip` of the server, after `prepare` has seen the socket.
pub fn listen(rig: &Rig, ip: IpAddr, prepare: impl FnOnce(&OwnedFd) -> io::Result<()> + Send) -> TcpListener {
    rig.server.run(|| Making { port: 80, ..Making::default() }.listen(ip, prepare)).expect("listening")
}

/// Connects from `own` to a listener, after `prepare` has seen the socket, and returns both ends, the client's first.
pub fn connect(
    client: &Namespace,
    own: IpAddr,
    listener: &TcpListener,
    prepare: impl FnOnce(&OwnedFd) -> io::Result<()> + Send,
) -> io::Result<[TcpStream; 2]> {
    let address = listener.local_addr()?;
    let stream = client.run(|| Making::default().connect(own, address, prepare))?;
    Ok([stream, sockets::accept(listener, traffic::PATIENCE)?])
}

/// So many bytes to the server, then to the client.
pub fn talk([client, server]: [&TcpStream; 2], bytes: u64) -> io::Result<()> {
    for (seed, from, to) in [(1, client, server), (2, server, client)] {
        thread::scope(|scope| {
            let sending = scope.spawn(|| traffic::send(from, seed, bytes));
            traffic::receive(to, seed, Some(bytes))?;
            sending.join().expect("a sender does not panic")
        })?;
    }
    Ok(())
}

#[test]
fn a_server_of_syn_cookies_that_met_a_client_without_timestamps_gives_the_next_one_all_options() {
    for middle in middles() {
        let rig = Rig::new();
        rig.server.sysctl("net.ipv4.tcp_syncookies", "2");
        let _proxy = netns::stand(&rig, middle);
        for (own, ip) in ENDS {
            let listener = listen(&rig, ip, |_| Ok(()));
            for (n, has_timestamps) in [true, false, true, true].into_iter().enumerate() {
                rig.client.sysctl("net.ipv4.tcp_timestamps", if has_timestamps { "1" } else { "0" });
                let [client, server] = connect(&rig.client, own, &listener, |_| Ok(())).expect("connecting");
                talk([&client, &server], 100_000).unwrap_or_else(|e| panic!("{middle:?}, {ip}, connection {n}: {e}"));
                let options = [&client, &server].map(|end| TcpInfo::of(end).options());
                note!("{middle:?}, {ip}, connection {n}: {options:?}");
                if has_timestamps {
                    assert_eq!(options, ["ts sack wscale"; 2], "{middle:?}, {ip}, connection {n}");
                } else if middle.is_none() {
                    assert_eq!(options, ["", ""], "{ip}: a cookie without timestamps keeps no options");
                }
            }
        }
    }
}

#[test]
fn only_the_client_whose_route_bears_a_smaller_mss_sends_smaller_segments() {
    /// What the server tells the neighbour, and what a segment with timestamps carries of it.
    const TOLD: u32 = 1300;
    const CARRIED: u32 = TOLD - 12;
    for middle in middles() {
        let rig = Rig::new();
        let [_hub, neighbour] = hub(&rig, Rig::WAN);
        for route in NEIGHBOUR.map(|neighbour| format!("ip route add {neighbour} dev s0 advmss {TOLD}")) {
            rig.server.sh(&route);
        }
        let _proxy = netns::stand(&rig, middle);
        for (family, (own, ip)) in ENDS.into_iter().enumerate() {
            let listener = listen(&rig, ip, |_| Ok(()));
            let whole = if ip.is_ipv4() { 1448 } else { 1428 };
            let (client, neighbour) = ((&rig.client, own, whole), (&neighbour, NEIGHBOUR[family], CARRIED));
            for (n, (host, own, wanted)) in [client, neighbour, neighbour, client].into_iter().enumerate() {
                let tap = Tap::open(&rig.server);
                let [client, server] = connect(host, own, &listener, |_| Ok(())).expect("connecting");
                talk([&client, &server], 100_000).unwrap_or_else(|e| panic!("{middle:?}, {own}: {e}"));
                let mss = TcpInfo::of(&client).get("snd_mss");
                let from = client.local_addr().expect("it is connected");
                let longest = tap.segments(|source, _| source == from).iter().map(|told| told.data).max();
                note!("{middle:?}, {own}, connection {n}: MSS {mss}, longest segment {longest:?}");
                assert_eq!(mss, wanted, "{middle:?}, {own}, connection {n}");
                assert_eq!(longest, Some(wanted as usize), "{middle:?}, {own}, connection {n}");
            }
        }
    }
}

/// The kernel's own proxy, in front of the server's port.
const SYNPROXY: &str = "table ip front {
     chain raw { type filter hook prerouting priority raw
       tcp dport 80 tcp flags syn notrack
     }
     chain in { type filter hook input priority filter
       tcp dport 80 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
       ct state invalid drop
     }
   }";

#[test]
fn clients_of_a_server_behind_the_kernels_synproxy_keep_their_options() {
    let (own, ip) = ENDS[0];
    let put_in_front = |rig: &Rig| {
        if !rig.server.command("nft").arg(SYNPROXY).status().is_ok_and(|status| status.success()) {
            ignore("no SYNPROXY of nftables here");
        }
        rig.server.sysctl("net.netfilter.nf_conntrack_tcp_loose", "0");
    };
    with_each(put_in_front, |rig, middle| {
        let listener = listen(rig, ip, |_| Ok(()));
        for n in 0..3 {
            let ends = connect(&rig.client, own, &listener, |_| Ok(()));
            let [client, server] = ends.unwrap_or_else(|e| panic!("{middle:?}, connection {n}: {e}"));
            talk([&client, &server], 200_000).unwrap_or_else(|e| panic!("{middle:?}, connection {n}: {e}"));
            let infos = [&client, &server].map(TcpInfo::of);
            note!("{middle:?}, connection {n}: {:?}", infos.map(|info| (info.options(), info.scales())));
            for info in infos {
                assert_eq!(info.options(), "ts sack wscale", "{middle:?}, connection {n}");
            }
            assert_eq!(infos[0].scales()[0], 7, "what the rule announces: {middle:?}, connection {n}");
        }
    });
}

/// Connects from a port that another connection had a moment ago, which the client's kernel may be about to forget; 0 is any port.
pub fn connect_from(
    client: &Namespace,
    own: SocketAddr,
    address: SocketAddr,
    prepare: impl Fn(&OwnedFd) -> io::Result<()> + Sync,
) -> io::Result<TcpStream> {
    let (making, begin) = (Making { port: own.port(), ..Making::default() }, Instant::now());
    loop {
        let is_taken = |error: &io::Error| matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse);
        match client.run(|| making.connect(own.ip(), address, &prepare)) {
            Err(error) if is_taken(&error) && begin.elapsed() < traffic::PATIENCE => {
                thread::sleep(Duration::from_millis(1));
            }
            outcome => return outcome,
        }
    }
}

/// As a daemon that peers with its neighbour alone (RFC 5082).
fn demand_neighbours(socket: &impl AsFd) -> io::Result<()> {
    sockets::set_hop_limit(socket, 255)?;
    sockets::require_hop_limit(socket, 255)
}

/// Whether a client that is further away than a neighbour hears anything of the server.
fn hears_nothing(rig: &Rig, address: SocketAddr) -> bool {
    let moment = Duration::from_millis(500);
    let heard = rig.client.run(|| TcpStream::connect_timeout(&address, moment)).and_then(|mut stream| {
        stream.set_read_timeout(Some(moment))?;
        stream.write_all(b"hello")?;
        stream.read(&mut [0])
    });
    heard.is_err_and(|error| matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock))
}

#[test]
fn neighbours_that_take_no_segment_from_afar_connect() {
    with_each(
        |_| (),
        |rig, middle| {
            for (own, ip) in ENDS {
                let refused = || [&rig.client, &rig.server].map(|host| host.counters().get("TcpExtTCPMinTTLDrop"));
                let before = refused();
                let listener = listen(rig, ip, demand_neighbours);
                for n in 0..3 {
                    let ends = connect(&rig.client, own, &listener, demand_neighbours);
                    let [client, server] = ends.unwrap_or_else(|e| panic!("{middle:?}, {ip}, connection {n}: {e}"));
                    talk([&client, &server], 10_000)
                        .unwrap_or_else(|e| panic!("{middle:?}, {ip}, connection {n}: {e}"));
                }
                assert_eq!(refused(), before, "{middle:?}, {ip}: client or server got lower hop limits");
                // They do demand it.
                assert!(hears_nothing(rig, SocketAddr::new(ip, 80)), "{middle:?}, {ip}");
            }
        },
    );
}

#[test]
fn neighbours_may_demand_the_hop_limit_once_they_are_connected() {
    with_each(
        |_| (),
        |rig, middle| {
            for (own, ip) in ENDS {
                let what = format!("{middle:?}, {ip}");
                let listener = listen(rig, ip, |_| Ok(()));
                let address = listener.local_addr().expect("it listens");
                let meet = |port| {
                    let own = SocketAddr::new(own, port);
                    let client = connect_from(&rig.client, own, address, |it| sockets::set_hop_limit(it, 255));
                    let client = client.unwrap_or_else(|e| panic!("{what}: {e}"));
                    sockets::require_hop_limit(&client, 255).expect("an option");
                    let server = sockets::accept(&listener, traffic::PATIENCE);
                    let server = server.unwrap_or_else(|e| panic!("{what}: {e}"));
                    // It demands nothing: a kernel's resets have the usual hop limit, and it is to take one.
                    sockets::set_hop_limit(&server, 255).expect("an option");
                    talk([&client, &server], 10_000).unwrap_or_else(|e| panic!("{what}: {e}"));
                    (client, server)
                };
                for _ in 0..2 {
                    meet(0);
                }
                let (client, _forgotten) = meet(0);
                let own = client.local_addr().expect("it is connected");
                sockets::vanish(client).expect("a socket under repair");
                let tap = Tap::open(&rig.client);
                meet(own.port());
                // It is challenged first, as by the server on that connection.
                let challenge = &tap.segments(|from, to| (from, to) == (address, own))[0];
                assert_eq!(challenge.flags, "ACK", "{what}: {challenge:?}");
                assert!(challenge.ip.starts_with("ttl 255,"), "{what}: {challenge:?}");
            }
        },
    );
}

#[test]
fn the_class_of_a_syn_is_that_of_a_connection_to_a_server_that_reflects_it() {
    const DSCP: u8 = 46;
    for middle in middles() {
        let rig = Rig::new();
        rig.server.sysctl("net.ipv4.tcp_reflect_tos", "1");
        let _proxy = netns::stand(&rig, middle);
        for (own, ip) in ENDS {
            let listener = listen(&rig, ip, |_| Ok(()));
            let address = listener.local_addr().expect("it listens");
            for n in 0..2 {
                let [at_client, at_server] = [&rig.client, &rig.server].map(Tap::open);
                let ends = connect(&rig.client, own, &listener, |socket| sockets::set_dscp(socket, DSCP));
                let [client, server] = ends.expect("connecting");
                talk([&client, &server], 10_000).unwrap_or_else(|e| panic!("{middle:?}, {ip}, connection {n}: {e}"));
                let own = client.local_addr().expect("it is connected");
                for (tap, from, to, first) in [(at_server, own, address, "SYN"), (at_client, address, own, "SYN+ACK")] {
                    let heard = tap.segments(|source, destination| (source, destination) == (from, to));
                    assert_eq!(heard[0].flags, first, "{middle:?}, {ip}, connection {n}");
                    let data = heard.iter().filter(|told| told.data > 0).count();
                    assert!(data > 0, "{middle:?}, {ip}, connection {n}: no data from {from}");
                    let others: Vec<_> =
                        heard.iter().filter(|told| !told.ip.contains(&format!("dscp {DSCP}"))).collect();
                    assert!(others.is_empty(), "{middle:?}, {ip}, connection {n}: from {from}: {others:?}");
                }
            }
        }
    }
}

/// Does it in both families at the same time.
fn in_both_families(check: impl Fn(IpAddr, IpAddr) + Sync) {
    thread::scope(|scope| {
        let check = &check;
        let running = ENDS.map(|(own, ip)| scope.spawn(move || check(own, ip)));
        for one in running {
            one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// That no connection comes within this time.
fn accepts_none(listener: &TcpListener, time: Duration, what: &str) {
    let accepted = sockets::accept(listener, time).map_err(|error| error.kind());
    assert!(matches!(accepted, Err(ErrorKind::WouldBlock)), "{what}: accepted too soon: {accepted:?}");
}

/// How many SYNs from `from` to `to`, or answers to them, there were.
fn syns(tap: Tap, from: SocketAddr, to: SocketAddr) -> usize {
    tap.segments(|source, target| (source, target) == (from, to))
        .iter()
        .filter(|told| told.flags.contains("SYN"))
        .count()
}

fn a_deferred_connection_opens(rig: &Rig, middle: Option<&str>, own: IpAddr, ip: IpAddr) {
    let listener = listen(rig, ip, |socket| sockets::defer_accept(socket, 3));
    let address = listener.local_addr().expect("it listens");
    // Less than the server waits for data, and more.
    for silence in [Duration::from_millis(500), Duration::from_millis(4500)] {
        let what = format!("{middle:?}, {ip}, silent for {silence:?}");
        let tap = Tap::open(&rig.server);
        let begin = Instant::now();
        let client = rig.client.run(|| Making::default().connect(own, address, |_| Ok(())));
        let mut client = client.unwrap_or_else(|e| panic!("{what}: {e}"));
        accepts_none(&listener, Duration::from_millis(500), &what);
        thread::sleep(silence.saturating_sub(begin.elapsed()));
        client.write_all(b"hello").unwrap_or_else(|e| panic!("{what}: {e}"));
        let mut server = sockets::accept(&listener, traffic::PATIENCE).unwrap_or_else(|e| panic!("{what}: {e}"));
        let mut heard = [0; 5];
        server.read_exact(&mut heard).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(&heard, b"hello", "{what}");
        talk([&client, &server], 1000).unwrap_or_else(|e| panic!("{what}: {e}"));
        let answers = syns(tap, address, client.local_addr().expect("it is connected"));
        note!("{what}: {answers} SYN-ACKs");
        assert!(silence.as_secs() == 0 || answers > 1, "{what}: the server has not repeated its SYN-ACK");
    }
}

#[test]
fn a_server_whose_answers_may_be_fragmented_is_connected() {
    with_each(
        // So none of its packets says that it may not be.
        |rig| rig.server.sysctl("net.ipv4.ip_no_pmtu_disc", "1"),
        |rig, middle| {
            in_both_families(|own, ip| {
                let listener = listen(rig, ip, |_| Ok(()));
                for _ in 0..2 {
                    let ends = connect(&rig.client, own, &listener, |_| Ok(()));
                    let [client, server] = ends.unwrap_or_else(|e| panic!("{middle:?}, {ip}: {e}"));
                    talk([&client, &server], 100_000).unwrap_or_else(|e| panic!("{middle:?}, {ip}: {e}"));
                }
            });
        },
    );
}

#[test]
fn a_server_that_defers_accepting_is_connected_to_clients_that_are_silent() {
    with_each(|_| (), |rig, middle| in_both_families(|own, ip| a_deferred_connection_opens(rig, middle, own, ip)));
}

/// The port that a client uses again.
const REUSED: u16 = 5000;

/// A connection from [`REUSED`] that begins with this number.
fn connect_again(rig: &Rig, own: IpAddr, address: SocketAddr, number: u32) -> io::Result<TcpStream> {
    let own = SocketAddr::new(own, REUSED);
    connect_from(&rig.client, own, address, |socket| sockets::begin_at(socket, number))
}

/// The server's connection from [`REUSED`] to this address of it, if it is in TIME-WAIT. `ss` does what else is said to it.
fn waiting(rig: &Rig, ip: IpAddr, also: &str) -> bool {
    !rig.server.sh(&format!("ss -tanH {also} state time-wait src {}", SocketAddr::new(ip, 80))).is_empty()
}

/// Opens a connection from [`REUSED`] and has the server end it first, which it remembers then.
fn leave_waiting(rig: &Rig, own: IpAddr, listener: &TcpListener) {
    let address = listener.local_addr().expect("it listens");
    let client = connect_again(rig, own, address, 2_000_000_000).expect("the first connection");
    let server = sockets::accept(listener, traffic::PATIENCE).expect("accepting");
    talk([&client, &server], 1000).expect("talking");
    drop(server);
    traffic::expect_end(&client).expect("the server's end");
    drop(client);
    within(traffic::PATIENCE, "the server is in TIME-WAIT", || waiting(rig, address.ip(), ""));
}

#[test]
fn a_port_is_used_again_while_its_server_is_in_time_wait() {
    with_each(
        |rig| rig.client.sysctl("net.ipv4.tcp_timestamps", "0"),
        |rig, middle| {
            in_both_families(|own, ip| {
                let listener = listen(rig, ip, |_| Ok(()));
                let address = listener.local_addr().expect("it listens");
                leave_waiting(rig, own, &listener);
                let (tap, begin) = (Tap::open(&rig.server), Instant::now());
                let client = connect_again(rig, own, address, 1000);
                let client = client.unwrap_or_else(|e| panic!("{middle:?}, {ip}: {e}"));
                let connected = begin.elapsed();
                let server = sockets::accept(&listener, traffic::PATIENCE);
                let server = server.unwrap_or_else(|e| panic!("{middle:?}, {ip}: {e}"));
                let accepted = begin.elapsed();
                talk([&client, &server], 1000).unwrap_or_else(|e| panic!("{middle:?}, {ip}: {e}"));
                let syns = syns(tap, SocketAddr::new(own, REUSED), address);
                note!("{middle:?}, {ip}: connected after {connected:?}, accepted after {accepted:?}, {syns} SYNs");
                assert!(syns > 1, "{middle:?}, {ip}: the first SYN is to meet the connection that was");
            });
        },
    );
}

#[test]
fn a_server_that_keeps_its_time_wait_takes_the_port_again_when_that_is_over() {
    with_each(
        |rig| {
            rig.client.sysctl("net.ipv4.tcp_timestamps", "0");
            rig.server.sysctl("net.ipv4.tcp_rfc1337", "1");
        },
        |rig, middle| {
            in_both_families(|own, ip| {
                let what = format!("{middle:?}, {ip}");
                let listener = listen(rig, ip, |_| Ok(()));
                let address = listener.local_addr().expect("it listens");
                leave_waiting(rig, own, &listener);
                let (tap, begin) = (Tap::open(&rig.server), Instant::now());
                let [client, server] = thread::scope(|scope| {
                    let client = scope.spawn(move || connect_again(rig, own, address, 1000));
                    accepts_none(&listener, Duration::from_millis(1500), &what);
                    assert!(waiting(rig, ip, ""), "{what}: no reset ends it");
                    // In place of a minute.
                    waiting(rig, ip, "-K");
                    assert!(!waiting(rig, ip, ""), "{what}");
                    let server = sockets::accept(&listener, traffic::PATIENCE);
                    let client = client.join().expect("a client does not panic");
                    [client, server].map(|end| end.unwrap_or_else(|e| panic!("{what}: {e}")))
                });
                let accepted = begin.elapsed();
                talk([&client, &server], 1000).unwrap_or_else(|e| panic!("{what}: {e}"));
                let syns = syns(tap, SocketAddr::new(own, REUSED), address);
                note!("{what}: accepted after {accepted:?}, {syns} SYNs");
            });
        },
    );
}

/// How many ticks a timestamp may run ahead in this time, as pf judges it with `scrub reassemble tcp`: thirty seconds and the time itself, by a clock of at most
/// 1.1 kHz.
fn allowed(time: Duration) -> u32 {
    ((time + Duration::from_secs(30)).as_secs_f64() * 1100.0) as u32
}

/// Judges the clock of `from` as `to` sees it: the longest step.
fn judge_clock(tap: TimedTap, (from, to): (SocketAddr, SocketAddr), what: &str) -> u32 {
    let values = RefCell::new(Vec::new());
    let clock = |tcp: &TcpSlice| {
        tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::Timestamp(value, _)) => Some(value),
            _ => None,
        })
    };
    let times = tap.times(|source, target, tcp| {
        let value = ((source, target) == (from, to)).then(|| clock(tcp)).flatten();
        values.borrow_mut().extend(value);
        value.is_some()
    });
    let values = values.into_inner();
    assert!(values.len() >= 5, "{what}: only {} segments with a timestamp", values.len());
    let mut longest = 0;
    for (n, (time, value)) in times.windows(2).zip(values.windows(2)).enumerate() {
        let (time, step) = (time[1].saturating_sub(time[0]), value[1].wrapping_sub(value[0]));
        assert!(step <= allowed(time), "{what}: segment {} after {time:?}: {step} ticks", n + 1);
        longest = longest.max(step);
    }
    longest
}

#[test]
fn no_clock_runs_ahead_so_far_that_pf_would_mind() {
    let far = Impairment { delay: Duration::from_millis(25), ..Impairment::default() };
    with_each(
        |rig| rig.impair(far, 7),
        |rig, middle| {
            for (own, ip) in ENDS {
                let listener = listen(rig, ip, |_| Ok(()));
                let address = listener.local_addr().expect("it listens");
                for n in 0..3 {
                    let taps = [&rig.client, &rig.server].map(TimedTap::open);
                    let ends = connect(&rig.client, own, &listener, |_| Ok(()));
                    let [client, server] = ends.unwrap_or_else(|e| panic!("{middle:?}, {ip}: {e}"));
                    for _ in 0..3 {
                        talk([&client, &server], 1000).unwrap_or_else(|e| panic!("{middle:?}, {ip}: {e}"));
                        thread::sleep(Duration::from_millis(100));
                    }
                    let own = client.local_addr().expect("it is connected");
                    let [at_client, at_server] = taps;
                    let what = format!("{middle:?}, {ip}, connection {n}");
                    let steps = [
                        judge_clock(at_client, (address, own), &format!("{what}, to the client")),
                        judge_clock(at_server, (own, address), &format!("{what}, to the server")),
                    ];
                    note!("{what}: longest steps {steps:?}");
                }
            }
        },
    );
}
