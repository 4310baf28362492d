//! Who may speak: priority tags, VLANs that differ by direction, Ethernet addresses that servers share, reserved IP addresses and routing headers, as
//! over the kernel's bridge.

use std::net::{IpAddr, SocketAddr};

use harness::{ignore, test};
use unit::netns::tags::{CUSTOMER, PRIORITY, PROVIDER, Tag};
use unit::netns::{self, Namespace, Rig, traffic};

/// Data in both directions of a connection from `client` to `ip` of `server`.
fn exchanges(client: &Namespace, server: &Namespace, ip: IpAddr) {
    let server = server.serve(ip, 0, traffic::exchanged);
    let stream = client.connect(server.address).unwrap_or_else(|error| panic!("connecting to {ip}: {error}"));
    traffic::exchange(&stream, 100_000, 100_000).unwrap_or_else(|error| panic!("talking to {ip}: {error}"));
}

#[test]
fn hosts_whose_frames_have_priority_tags_connect() {
    // Each host loses what comes without the tag: what the box sends in their names has it too.
    for middle in netns::MIDDLES {
        let rig = Rig::tagged(1500, &[PRIORITY]);
        let _proxy = netns::stand(&rig, middle);
        for ip in [netns::SERVER_V4, netns::SERVER_V6] {
            exchanges(&rig.client, &rig.server, ip);
        }
        for ip in [netns::CLIENT_V4, netns::CLIENT_V6] {
            exchanges(&rig.server, &rig.client, ip);
        }
    }
}

#[test]
fn the_two_directions_may_be_different_vlans() {
    let other = Tag { protocol: 0x8100, id: 20 };
    for (up, down) in [(&[CUSTOMER][..], &[other][..]), (&[], &[CUSTOMER]), (&[PROVIDER, CUSTOMER], &[other])] {
        for middle in netns::MIDDLES {
            let rig = Rig::tagged_apart(1500, up, down);
            let _proxy = netns::stand(&rig, middle);
            // Each host hears one of the VLANs alone: the first connection of the LAN shows which.
            for ip in [netns::CLIENT_V4, netns::CLIENT_V6] {
                exchanges(&rig.server, &rig.client, ip);
            }
            for ip in [netns::SERVER_V4, netns::SERVER_V6, netns::SERVER_V4] {
                exchanges(&rig.client, &rig.server, ip);
            }
        }
    }
}

#[test]
fn a_server_behind_a_group_address_is_reached() {
    for middle in netns::MIDDLES {
        let rig = Rig::new();
        // A kernel takes a segment only from frames to its own address.
        rig.server.sh("ip link set s0 promisc on
             nft add table ip group
             nft 'add chain ip group frames { type filter hook prerouting priority -300; }'
             nft add rule ip group frames meta pkttype set host");
        let _proxy = netns::stand(&rig, middle);
        for group in ["03:bf:0a:4d:00:02", "01:00:5e:4d:00:02"] {
            rig.client.sh(&format!("ip neigh replace {} lladdr {group} dev c0 nud permanent", netns::SERVER_V4));
            exchanges(&rig.client, &rig.server, netns::SERVER_V4);
        }
    }
}

#[test]
fn hosts_have_reserved_addresses() {
    for middle in netns::MIDDLES {
        let rig = Rig::new();
        for network in ["240.77.0", "0.77.0"] {
            rig.client.sh(&format!("ip addr add {network}.1/24 dev c0"));
            rig.server.sh(&format!("ip addr add {network}.2/24 dev s0"));
        }
        let _proxy = netns::stand(&rig, middle);
        for network in ["240.77.0", "0.77.0"] {
            let address = |host| format!("{network}.{host}").parse().expect("an address");
            exchanges(&rig.client, &rig.server, address(2));
            exchanges(&rig.server, &rig.client, address(1));
        }
    }
}

#[test]
fn a_connection_over_a_segment_of_an_ipv6_route_passes() {
    for middle in netns::MIDDLES {
        let rig = Rig::new();
        let SocketAddr::V6(server) = SocketAddr::new(netns::SERVER_V6, 0) else { panic!("an IPv6 address") };
        let server = server.ip();
        let segment = "fd77:5e9::1";
        rig.server.sh(&format!(
            "ip -6 addr add {segment}/128 dev s0 nodad
             sysctl -qw net.ipv6.conf.all.seg6_enabled=1 net.ipv6.conf.s0.seg6_enabled=1 net.ipv6.conf.all.forwarding=1"
        ));
        let routed = rig.client.run(|| {
            let added =
                |line: &str| std::process::Command::new("sh").args(["-c", line]).status().is_ok_and(|it| it.success());
            added(&format!("ip -6 route add {segment}/128 dev c0"))
                && added(&format!(
                    "ip -6 route add {server}/128 encap seg6 mode inline segs {segment} dev c0 2>/dev/null"
                ))
        });
        if !routed {
            ignore("this kernel has no segment routing");
        }
        let proxy = netns::stand(&rig, middle);
        exchanges(&rig.client, &rig.server, netns::SERVER_V6);
        if let Some(proxy) = proxy {
            assert_eq!(proxy.stop().figure("rerouted"), Some(1));
        }
    }
}
