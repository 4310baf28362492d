//! A link on the way that is narrower than both ends' own: routers say so by ICMP, and the error has to reach whoever sent
//! too much, with numbers in it that it knows. The plain bridge is the truth.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use harness::{note, test};
use pktio::impair::Impairment;
use unit::netns::{self, Appliance, Backend, Rig, routers, sockets, traffic};

/// What one transfer each way over a narrow link came to.
#[derive(Debug)]
struct Narrow {
    what: String,
    /// Up and down.
    speeds: [f64; 2],
    /// What the client and the server believe the path carries in one piece.
    pmtu: [u32; 2],
    /// ICMP errors that either end did not believe. A few are normal: each segment of a burst provokes one, and once the
    /// first is believed the others quote what has been cut anew and acknowledged.
    disbelieved: [i64; 2],
}

/// Sends some MB each way between hosts of which one is behind a link of 1280 bytes; IPv4 first, then IPv6.
fn over_a_narrow_link(port: &str, middle: Option<&str>) -> [Narrow; 2] {
    const BYTES: u64 = 2 << 20;
    let rig = Rig::new();
    let _routers = rig.route(port, 1280);
    // Far enough that windows bound the speed, not the machine.
    let _network = rig.impair(Impairment { delay: Duration::from_millis(5), limit: 4096, ..Impairment::default() }, 3);
    let _proxy = middle.map(|config| Appliance::start(&rig, Backend::Driver, config));
    if middle.is_none() {
        rig.bridge();
    }
    let ends = match port {
        Rig::WAN => [[routers::FAR_V4, netns::SERVER_V4], [routers::FAR_V6, netns::SERVER_V6]],
        _ => [[netns::CLIENT_V4, routers::FAR_V4], [netns::CLIENT_V6, routers::FAR_V6]],
    };
    ends.map(|[client, server]| {
        let what = format!("{port}, {client} to {server}, {middle:?}");
        let (tell, told) = mpsc::channel();
        let served = rig.server.serve(server, 0, move |stream| {
            let outcome = traffic::exchanged(stream.try_clone()?);
            let _ = tell.send(sockets::tcp_info(&stream).tcpi_pmtu);
            outcome
        });
        let before = rig.counters();
        let stream = rig.client.connect(served.address).unwrap_or_else(|e| panic!("{what}: connect: {e}"));
        let speeds = traffic::exchange(&stream, BYTES, BYTES).unwrap_or_else(|e| {
            let risen = [0, 1].map(|end| rig.counters()[end].since(&before[end]).tell());
            panic!("{what}: {e}; the client counted {}; the server {}", risen[0], risen[1])
        });
        let pmtu =
            [sockets::tcp_info(&stream).tcpi_pmtu, told.recv_timeout(traffic::PATIENCE).expect("the server's end")];
        let after = rig.counters();
        let disbelieved = [0, 1].map(|end| after[end].since(&before[end]).get("TcpExtOutOfWindowIcmps"));
        for (namespace, peer) in [(&rig.client, server), (&rig.server, client)] {
            let route = namespace.sh(&format!("ip route get {peer}"));
            assert!(route.contains("mtu 1280"), "{what}: the way to {peer} is {route}");
        }
        let narrow = Narrow { what, speeds, pmtu, disbelieved };
        note!("{narrow:.1?}");
        narrow
    })
}

fn finds_the_narrow_link(port: &'static str) {
    let [bridged, cache, cookies] = thread::scope(|scope| {
        let middles = [None, Some(netns::CACHE_ON), Some(netns::CACHE_OFF)];
        middles
            .map(|middle| scope.spawn(move || over_a_narrow_link(port, middle)))
            .map(|run| run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    for proxied in [cache, cookies] {
        for (proxied, bridged) in proxied.iter().zip(&bridged) {
            assert_eq!((proxied.pmtu, bridged.pmtu), ([1280; 2], [1280; 2]), "{}", proxied.what);
            for end in [0, 1] {
                let limit = 2 * bridged.disbelieved[end] + 10;
                assert!(proxied.disbelieved[end] <= limit, "{proxied:?}, bridged {bridged:?}");
                // Whoever has to find out by timers needs hundreds of times as long.
                assert!(proxied.speeds[end] * 4.0 > bridged.speeds[end], "{proxied:?}, bridged {bridged:?}");
            }
        }
    }
}

#[test]
fn a_server_learns_of_a_narrow_link_before_its_client() {
    finds_the_narrow_link(Rig::WAN);
}

#[test]
fn a_client_learns_of_a_narrow_link_before_its_server() {
    finds_the_narrow_link(Rig::LAN);
}
