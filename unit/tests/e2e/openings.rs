//! How connections open otherwise than by a SYN and its answer: from both ends at once, with one direction another way, and only to be reset. Over the
//! bridge first, which is the truth, then with the proxy in its place.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use harness::{note, test};
use unit::netns::sockets::{self, Making};
use unit::netns::{self, Namespace, Rig, traffic};

/// The port both ends use.
const PORT: u16 = 7000;

/// Opens a connection from a port to the same port of a peer, says hello, and returns what the peer says.
fn meet(host: &Namespace, own: IpAddr, peer: IpAddr, later: Duration) -> std::io::Result<Vec<u8>> {
    host.run(|| {
        thread::sleep(later);
        let making = Making { port: PORT, ..Making::default() };
        let mut stream = making.connect(own, SocketAddr::new(peer, PORT), |_| Ok(()))?;
        stream.write_all(b"hello")?;
        let mut heard = [0; 5];
        stream.read_exact(&mut heard)?;
        // The other end may still be reading.
        thread::sleep(Duration::from_millis(300));
        Ok(heard.to_vec())
    })
}

/// Lets no bare SYN in: no matter what has left, or unless it belongs to what has.
const FIREWALLS: [&str; 2] = [
    "nft add table inet f; nft 'add chain inet f i { type filter hook input priority 0; }'
     nft 'add rule inet f i tcp flags & (syn|ack) == syn drop'",
    "nft add table inet f; nft 'add chain inet f i { type filter hook input priority 0; }'
     nft 'add rule inet f i ct state new tcp flags syn drop'
     nft 'add chain inet f o { type filter hook output priority 0; }'; nft 'add rule inet f o ct state new accept'",
];

#[test]
fn peers_behind_firewalls_meet_when_both_open_at_once() {
    let ends = [(netns::CLIENT_V4, netns::SERVER_V4), (netns::CLIENT_V6, netns::SERVER_V6)];
    for (n, middle) in netns::MIDDLES.into_iter().chain([Some("handshake = early;")]).enumerate() {
        let rig = Rig::new();
        rig.server.sh(FIREWALLS[n % 2]);
        let proxy = netns::stand(&rig, middle);
        for (client, server) in ends {
            let (one, other) = thread::scope(|scope| {
                let one = scope.spawn(|| meet(&rig.client, client, server, Duration::ZERO));
                let other = scope.spawn(|| meet(&rig.server, server, client, Duration::from_millis(50)));
                (one.join().expect("a client"), other.join().expect("a server"))
            });
            note!("{middle:?}: {one:?}, {other:?}");
            assert_eq!(
                (one.expect("the WAN's end"), other.expect("the LAN's end")),
                (b"hello".into(), b"hello".into())
            );
        }
        if let Some(proxy) = proxy {
            let report = proxy.stop();
            assert_eq!(report.figure("simultaneous-open"), Some(2), "{report:?}");
        }
    }
}

/// A second cable between the hosts, by which the host on the LAN or the one on the WAN sends to the other.
fn lay_another_way(rig: &Rig) {
    let loose =
        "for i in all default lan0 wan0 s0 c0; do sysctl -qw net.ipv4.conf.$i.rp_filter=0 2>/dev/null || true; done";
    rig.server.sh(loose);
    rig.client.sh(loose);
    rig.server.sh(&format!("ip link add e1 type veth peer name y0 netns {}; ip link set e1 up", rig.client.name()));
    rig.client.sh("ip link set y0 up; ip addr add 10.78.0.1/24 dev y0; ethtool -K y0 tx off; sysctl -qw net.ipv4.conf.y0.rp_filter=0");
    rig.server.sh("ip addr add 10.78.0.2/24 dev e1; ethtool -K e1 tx off; sysctl -qw net.ipv4.conf.e1.rp_filter=0");
    rig.server.sh("ip route add 10.77.0.1/32 dev e1 src 10.77.0.2");
}

/// Whether a connection to a server that echoes carries five bytes there and back.
fn carries(stream: std::io::Result<TcpStream>) -> Result<(), ErrorKind> {
    let go = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])
    };
    stream.and_then(go).map_err(|error| error.kind())
}

#[test]
fn a_connection_whose_syn_left_another_way_passes() {
    for middle in netns::MIDDLES {
        let rig = Rig::new();
        lay_another_way(&rig);
        let _proxy = netns::stand(&rig, middle);
        let echo = rig.client.serve(netns::CLIENT_V4, 80, netns::traffic::echo);
        let fate = carries(rig.server.connect(echo.address));
        assert_eq!(fate, Ok(()), "{middle:?}");
    }
}

#[test(long)]
fn a_server_that_answers_another_way_is_named_and_bypassed_where_policy_says_so() {
    for middle in [None, Some("asymmetric = bypass;"), Some("asymmetric = bypass; handshake = early;"), Some("")] {
        let rig = Rig::new();
        lay_another_way(&rig);
        let proxy = netns::stand(&rig, middle);
        let echo = rig.server.serve(netns::SERVER_V4, 80, netns::traffic::echo);
        let fates: Vec<_> = thread::scope(|scope| {
            let (rig, address) = (&rig, echo.address);
            let calls: Vec<_> = (0..8).map(|_| scope.spawn(move || carries(rig.client.connect(address)))).collect();
            calls.into_iter().map(|call| call.join().expect("a client")).collect()
        });
        note!("{middle:?}: {fates:?}");
        let later = carries(rig.client.connect(echo.address));
        match middle {
            None => assert!(fates.iter().all(Result::is_ok) && later.is_ok(), "{fates:?}, {later:?}"),
            // It cannot be proxied. Once it is silent, a client's own SYN may be passed to it, and is answered.
            Some("") => assert!(fates.iter().any(Result::is_err), "{fates:?}, {later:?}"),
            Some(_) => assert_eq!(later, Ok(()), "once it is found out: {fates:?}"),
        }
        if let Some(proxy) = proxy {
            thread::sleep(Duration::from_secs(3));
            let lines =
                proxy.log().into_iter().filter(|line| line.contains("direct server return")).collect::<Vec<_>>();
            assert!(lines.len() == 1 && lines[0].contains("10.77.0.2:80"), "{lines:?}");
        }
    }
}

#[test]
fn a_client_that_connects_only_to_reset_is_seen_by_its_server() {
    for middle in netns::MIDDLES {
        let rig = Rig::new();
        let _proxy = netns::stand(&rig, middle);
        let listener = rig.server.run(|| Making { port: 80, ..Making::default() }.listen(netns::SERVER_V4, |_| Ok(())));
        let listener = listener.expect("listening");
        for n in 0..3 {
            let stream = rig.client.connect(SocketAddr::new(netns::SERVER_V4, 80)).expect("a connection");
            traffic::abort_at_close(&stream).expect("an option");
            drop(stream);
            let accepted = sockets::accept(&listener, Duration::from_secs(2));
            let seen = accepted.and_then(|mut stream| stream.read(&mut [0]));
            assert_eq!(seen.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset), "{middle:?}, {n}");
        }
    }
}
