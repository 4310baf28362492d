//! Reports from the field that depend on how a kernel at either end is set: SYN cookies, hop limits that neighbours demand, deferred accepting, TIME-WAIT, classes
//! that are reflected. Over the bridge first, which is the truth, then through boxes of each kind. The rows of `docs/field.md` name these tests; what needs no kernel
//! is in `unit/tests/engine/reports.rs`.

use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;

use harness::{ignore, note, test};
use unit::netns::sockets::{self, Making};
use unit::netns::{self, Namespace, Rig, Tap, TcpInfo, traffic};

use super::field::{ENDS, NEIGHBOUR, hub};

/// What a test puts in the middle: the bridge, and boxes of each kind.
fn middles() -> impl Iterator<Item = Option<&'static str>> {
    netns::MIDDLES.into_iter().chain([Some("handshake = early;")])
}

/// Does what a test does with each of [`middles`] at the same time: it waits more than it computes. `prepare` changes the rig first.
fn with_each<T>(prepare: impl Fn(&Rig) -> T, check: impl Fn(&Rig, Option<&str>) + Sync) {
    let stand = |middle: Option<&'static str>| {
        let rig = Rig::new();
        let kept = prepare(&rig);
        let proxy = netns::stand(&rig, middle);
        (proxy, kept, rig, middle)
    };
    let rigs: Vec<_> = middles().map(stand).collect();
    thread::scope(|scope| {
        let check = &check;
        let running: Vec<_> = rigs.iter().map(|(_, _, rig, middle)| scope.spawn(move || check(rig, *middle))).collect();
        for one in running {
            one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// Listens at `ip` of the server, after `prepare` has seen the socket.
fn listen(rig: &Rig, ip: IpAddr, prepare: impl FnOnce(&OwnedFd) -> io::Result<()> + Send) -> TcpListener {
    rig.server.run(|| Making { port: 80, ..Making::default() }.listen(ip, prepare)).expect("listening")
}

/// Connects from `own` to a listener, after `prepare` has seen the socket, and returns both ends, the client's first.
fn connect(
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
fn talk([client, server]: [&TcpStream; 2], bytes: u64) -> io::Result<()> {
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
