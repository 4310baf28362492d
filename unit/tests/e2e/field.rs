//! Cases from the field, between real kernels: hubs and switches that flood, connection trackers, urgent data. The rows of `docs/field.md`
//! name them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::{io, thread};

use harness::{note, test};
use nix::sys::socket::{self, MsgFlags};
use unit::netns::{self, Namespace, Rig, traffic};

/// Both families: the client's address and the server's.
pub const ENDS: [(IpAddr, IpAddr); 2] = [(netns::CLIENT_V4, netns::SERVER_V4), (netns::CLIENT_V6, netns::SERVER_V6)];

/// The address of the neighbour in each family.
pub const NEIGHBOUR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 77, 0, 8)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 8))];

/// Puts a hub between the box and the host on this side, and a neighbour on the hub, who is returned with it: a bridge that remembers no
/// station sends every frame everywhere, as switches do with frames to stations they have forgotten, and promiscuous port groups with all.
pub fn hub(rig: &Rig, port: &str) -> [Namespace; 2] {
    let [hub, neighbour] = ["hub", "neighbour"].map(Namespace::new);
    hub.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
    rig.middle.sh(&format!("ip link set {port} netns {} name near0", hub.name()));
    let several = format!("numtxqueues {0} numrxqueues {0}", rig.queues());
    rig.middle.sh(&format!(
        "ip link add {port} {several} type veth peer name far0 {several} netns {}
         ip link set {port} up; ethtool -K {port} tx off >/dev/null",
        hub.name()
    ));
    neighbour.sh(&format!(
        "ip link add n0 address 02:00:00:00:00:d8 type veth peer name side0 netns {}
         ethtool -K n0 tx off txvlan off >/dev/null; ip link set n0 up
         ip addr add {}/24 dev n0; ip addr add {}/64 dev n0 nodad",
        hub.name(),
        NEIGHBOUR[0],
        NEIGHBOUR[1]
    ));
    hub.sh("ip link add name hub0 type bridge forward_delay 0 ageing_time 0 mcast_snooping 0
         for i in near0 far0 side0; do ip link set $i master hub0; ip link set $i up; ethtool -K $i tx off >/dev/null; done
         ip link set hub0 up");
    [hub, neighbour]
}

#[test]
fn neighbours_on_a_hub_connect_as_over_the_bridge() {
    for port in [Rig::WAN, Rig::LAN] {
        for middle in netns::MIDDLES {
            let rig = Rig::new();
            let [_hub, neighbour] = hub(&rig, port);
            let _proxy = netns::stand(&rig, middle);
            let (host, own) = if port == Rig::WAN { (&rig.client, 0) } else { (&rig.server, 1) };
            for (family, ends) in ENDS.iter().enumerate() {
                let addresses = [[ends.0, ends.1][own], NEIGHBOUR[family]];
                let pairs = [(host, &neighbour, addresses[1]), (&neighbour, host, addresses[0])];
                for (caller, called, address) in pairs {
                    // What one worker hears of a station the others hear a moment later, and neighbours are quicker than that.
                    if rig.queues() > 1 {
                        caller.sh(&format!("ping -n -q -c 3 -i 0.1 {address}"));
                    }
                    // Nothing that the box says reaches either of them.
                    netns::judge([caller, called], [0, 0], || {
                        let server = called.serve(address, 0, traffic::exchanged);
                        for _ in 0..5 {
                            let stream = caller.connect(server.address).expect("neighbours connect");
                            let outcome = traffic::exchange(&stream, 10_000, 10_000);
                            outcome.unwrap_or_else(|e| panic!("{port}, {middle:?}, {address}: {e}"));
                        }
                    });
                }
                // And through the box all is as ever.
                let server = rig.server.serve(ends.1, 0, traffic::exchanged);
                let stream = rig.client.connect(server.address).expect("the client connects");
                traffic::exchange(&stream, 10_000, 10_000).unwrap_or_else(|e| panic!("{port}, {middle:?}: {e}"));
            }
        }
    }
}

/// Follows the connections of a host, counts and drops what does not belong to any.
const TRACKER: &str = "table inet tracker {
     counter invalid { }
     chain in { type filter hook input priority 0
       ct state invalid meta l4proto tcp counter name invalid drop
     }
     chain out { type filter hook output priority 0
       ct state invalid meta l4proto tcp counter name invalid drop
     }
   }";

/// How many segments the host's tracker has found invalid.
fn invalid(host: &Namespace) -> u64 {
    let said = host.sh("nft list counter inet tracker invalid");
    let mut words = said.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count in {said:?}"))
}

#[test(long)]
fn connection_trackers_on_both_sides_find_nothing_invalid() {
    let configs = [netns::CACHE_ON, netns::CACHE_OFF, "handshake = early;"].map(Some);
    for middle in std::iter::once(None).chain(configs) {
        let rig = Rig::new();
        let _proxy = netns::stand(&rig, middle);
        for host in [&rig.client, &rig.server] {
            let tracks = host.command("sh").args(["-c", &format!("nft '{TRACKER}'")]).status();
            if !tracks.is_ok_and(|status| status.success()) {
                harness::ignore("no nftables here");
            }
        }
        for (client, server) in ENDS {
            for (caller, called, address) in [(&rig.client, &rig.server, server), (&rig.server, &rig.client, client)] {
                let server = called.serve(address, 0, traffic::exchanged);
                for n in 0..8 {
                    let stream = caller.connect(server.address).expect("they connect");
                    if n % 4 == 0 {
                        thread::sleep(Duration::from_millis(300));
                    }
                    let bytes = if n % 2 == 0 { 100 } else { 1 << 20 };
                    let outcome = traffic::exchange(&stream, bytes, bytes);
                    outcome.unwrap_or_else(|e| panic!("{middle:?}, {address}: {e}"));
                }
            }
        }
        thread::sleep(Duration::from_millis(100));
        let found = [&rig.client, &rig.server].map(invalid);
        note!("{middle:?}: invalid at client and server {found:?}");
        assert_eq!(found, [0, 0], "{middle:?}: segments the trackers of client and server found invalid");
    }
}

/// Sends three bytes, one urgent and three more.
fn interrupts(stream: &TcpStream) -> io::Result<()> {
    for (bytes, flags) in [(b"abc", MsgFlags::empty()), (b"de!", MsgFlags::MSG_OOB), (b"fgh", MsgFlags::empty())] {
        socket::send(stream.as_raw_fd(), bytes, flags)?;
    }
    Ok(())
}

/// What has come: the urgent byte, and what lies before it and behind.
fn interrupted(stream: &TcpStream) -> io::Result<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    // All of it is there by then.
    thread::sleep(Duration::from_millis(500));
    let read = |flags| {
        let mut buffer = [0; 16];
        socket::recv(stream.as_raw_fd(), &mut buffer, flags).map(|len| buffer[..len].to_vec())
    };
    Ok((read(MsgFlags::MSG_OOB)?, read(MsgFlags::empty())?, read(MsgFlags::empty())?))
}

#[test(long)]
fn urgent_data_arrives_where_it_was_sent() {
    let configs = [netns::CACHE_ON, netns::CACHE_OFF, "handshake = early;"].map(Some);
    for middle in std::iter::once(None).chain(configs) {
        let rig = Rig::new();
        let _proxy = netns::stand(&rig, middle);
        for (_, server) in ENDS {
            for pause in [0, 300] {
                let (told, heard) = std::sync::mpsc::channel();
                let served = rig.server.serve(server, 0, move |stream| {
                    let _ = told.send(interrupted(&stream)?);
                    interrupts(&stream)?;
                    thread::sleep(Duration::from_secs(1));
                    Ok(())
                });
                let address: SocketAddr = served.address;
                let stream = rig.client.connect(address).expect("the client connects");
                thread::sleep(Duration::from_millis(pause));
                let wanted = (b"!".to_vec(), b"abcde".to_vec(), b"fgh".to_vec());
                interrupts(&stream).expect("sending");
                let upwards = heard.recv_timeout(Duration::from_secs(10)).expect("the server reads");
                assert_eq!(upwards, wanted, "{middle:?}, {server}: at the server");
                assert_eq!(interrupted(&stream).expect("reading"), wanted, "{middle:?}, {server}: at the client");
            }
        }
    }
}
