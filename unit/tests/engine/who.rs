//! Who may speak: priority tags, VLANs that differ by direction, shared and changing Ethernet addresses, reserved IP addresses, and IPv6 headers that
//! name other ends. What is expected is what a bridge does.

use std::sync::Arc;
use std::time::Duration;

use tcpstate::config::{Asymmetric, DestinationRule, Network, Settings};
use tcpstate::{DropReason, Event, Side};
use unit::script::*;

pub(crate) type Tag = (u16, u16);

/// The frame with these tags instead of its own.
pub(crate) fn tagged(frame: &[u8], tags: &[Tag]) -> Vec<u8> {
    let mut at = 12;
    while matches!(u16::from_be_bytes([frame[at], frame[at + 1]]), 0x8100 | 0x88a8 | 0x9100) {
        at += 4;
    }
    let tags = tags.iter().flat_map(|(protocol, control)| [protocol.to_be_bytes(), control.to_be_bytes()].concat());
    [&frame[..12], &tags.collect::<Vec<_>>(), &frame[at..]].concat()
}

/// A host whose frames bear these tags, in a world without.
struct Tagged<'a> {
    host: &'a Host,
    tags: &'a [Tag],
}

impl Tagged<'_> {
    #[track_caller]
    fn sends(&self, seg: &Seg) {
        self.host.sends(tagged(&self.host.frame(seg), self.tags));
    }

    /// The next frame, which must have these tags.
    #[track_caller]
    fn gets(&self, seg: Seg, tags: &[Tag]) -> Got {
        let got = self.host.gets(any_frame());
        assert_eq!(got.tags, tags, "{got}");
        let differs = got.differs(&seg);
        assert!(differs.is_empty() && got.checksums == (true, true), "{seg}, but got {got}: {differs:?}");
        got
    }
}

fn on<'a>(host: &'a Host, tags: &'a [Tag]) -> Tagged<'a> {
    Tagged { host, tags }
}

/// Lets time pass until the box sends this host something.
fn awaits(world: &World, host: &Host) {
    for _ in 0..100 {
        if !host.has_more() {
            world.after_ms(10);
        }
    }
}

/// Opens a proxied connection with data in both directions. `client` tags its SYN and what it sends later by two lists, the server its frames by one; the
/// box has the network's tags on what reaches the server, whose answers have `answered` on their way out.
#[track_caller]
fn talks(
    world: &World,
    client: &Host,
    server: &Host,
    syn_tags: &[Tag],
    client_tags: &[Tag],
    server_tags: &[Tag],
    answered: &[Tag],
) {
    let terms = Terms::linux(world.mss());
    let any = |seg: Seg| seg.any_window().any_options();
    on(client, syn_tags).sends(&terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
    let offered = on(client, &[]).gets(any(syn_ack(ANY, CLIENT_ISN + 1)), answered);
    let echo = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
    on(client, client_tags).sends(&ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echo));
    on(server, &[]).gets(any(segment(SYN, CLIENT_ISN, 0)), client_tags);
    on(server, server_tags).sends(&terms.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 1)));
    let update = on(client, &[]).gets(any(ack(offered.seq + 1, CLIENT_ISN + 1)), server_tags);
    while client.has_more() {
        on(client, &[]).gets(any(ack(offered.seq, CLIENT_ISN + 1)), server_tags);
    }
    awaits(world, server);
    on(server, &[]).gets(any(ack(CLIENT_ISN + 1, SERVER_ISN + 1)), client_tags);
    let stamp = update.ts().map(|(value, _)| (CLIENT_TS + 2, value));
    on(client, client_tags).sends(&data(CLIENT_ISN + 1, offered.seq + 1, 10).maybe_ts(stamp));
    on(server, &[]).gets(any(data(CLIENT_ISN + 1, SERVER_ISN + 1, 10)), client_tags);
    let stamp = Some((SERVER_TS + 1, CLIENT_TS + 2));
    on(server, server_tags).sends(&data(SERVER_ISN + 1, CLIENT_ISN + 11, 20).maybe_ts(stamp));
    on(client, &[]).gets(any(data(offered.seq + 1, CLIENT_ISN + 11, 20)), server_tags);
    // A reset somewhere in the window is challenged, in the tags of the other end's frames.
    world.after(Duration::from_secs(1));
    on(client, client_tags).sends(&rst(CLIENT_ISN + 100));
    on(client, &[]).gets(any(ack(offered.seq + 21, CLIENT_ISN + 11)), server_tags);
    world.after(Duration::from_secs(1));
    on(server, server_tags).sends(&rst(SERVER_ISN + 100));
    on(server, &[]).gets(any(ack(CLIENT_ISN + 11, SERVER_ISN + 1)), client_tags);
    assert_eq!(world.happened(Event::Spliced), 1);
}

const PRIORITY: Tag = (0x8100, 0xa000);
const NETWORK: Tag = (0x8100, 0x6064);

#[test]
fn a_priority_tag_is_no_network() {
    for family in [Mode::V4, Mode::V6] {
        for mode in [family, family.cached()] {
            let other = (0x8100, 0x2000);
            let cases: [[&[Tag]; 3]; 8] = [
                [&[PRIORITY], &[PRIORITY], &[]],
                [&[], &[PRIORITY], &[]],
                [&[PRIORITY], &[], &[]],
                [&[], &[], &[PRIORITY]],
                [&[PRIORITY], &[PRIORITY], &[PRIORITY]],
                [&[NETWORK, PRIORITY], &[NETWORK], &[NETWORK]],
                [&[(0x88a8, 0x4000), NETWORK], &[NETWORK], &[NETWORK, (0x8100, 0)]],
                [&[PRIORITY, other], &[PRIORITY], &[]],
            ];
            for [syn_tags, client_tags, server_tags] in cases {
                let (world, client, server) = mode.world();
                // The SYN-ACK has the SYN's form.
                talks(&world, &client, &server, syn_tags, client_tags, server_tags, syn_tags);
                assert_eq!(world.happened(Event::OtherVlan), 0, "one network");
            }
        }
    }
}

#[test]
fn a_lan_connection_is_one_with_priority_tags_and_without() {
    for mode in [Mode::V4, Mode::V6] {
        let (world, client, server) = mode.world();
        let passes = |from: &Host, to: &Host, tags: &[Tag], seg: &Seg| {
            on(from, tags).sends(seg);
            to.gets(unchanged());
        };
        passes(&server, &client, &[PRIORITY], &syn(100).mss(1400));
        passes(&client, &server, &[], &syn_ack(900, 101).mss(1400));
        passes(&server, &client, &[PRIORITY], &ack(101, 901));
        passes(&client, &server, &[], &data(901, 101, 10));
        assert_eq!((world.population().passthrough, world.happened(Event::LanSegment)), (1, 2));
        // The box speaks in the WAN's name as the WAN does.
        on(&server, &[PRIORITY]).sends(&rst(150));
        on(&server, &[]).gets(ack(901 + 10, 101).any_window(), &[]);
    }
}

#[test]
fn an_error_finds_its_connection_behind_a_priority_tag() {
    for mode in [Mode::V4, Mode::V6] {
        let (world, client, server) = mode.world();
        let joined = open(&client, &server, Terms::linux(world.mss()), Terms::linux(world.mss()));
        client.sends(data(joined.c(0), joined.o(0), 100));
        let got = server.gets(anything());
        server.sends(tagged(&icmp_error(&server.ends(), 0, Complaint::TooBig(1300), &got.frame, 2000), &[PRIORITY]));
        assert_eq!(world.happened(Event::IcmpTranslated), 1);
        let (_, error) = &world.discard()[0];
        assert_eq!(error[12..16], [0x81, 0, 0xa0, 0]);
    }
}

#[test]
fn the_two_directions_may_be_different_vlans() {
    let vlans: [[&[Tag]; 2]; 5] = [
        [&[(0x8100, 10)], &[(0x8100, 20)]],
        [&[(0x8100, 20)], &[(0x8100, 10)]],
        [&[], &[(0x8100, 20)]],
        [&[(0x8100, 10)], &[]],
        [&[(0x88a8, 10), (0x8100, 5)], &[(0x8100, 20)]],
    ];
    for mode in [Mode::V4, Mode::V6, Mode::V4.cached()] {
        for [inward, outward] in vlans {
            let (world, client, server) = mode.world();
            // Nothing is known yet: the SYN-ACK is in the SYN's VLAN.
            talks(&world, &client, &server, inward, inward, outward, inward);
            assert_eq!(world.happened(Event::OtherVlan), 1);
            // From then on in that of the server's answers, with a cookie as well.
            for port in [1000, 1001] {
                let (client, _) = world.on_port(port);
                on(&client, inward).sends(&Terms::linux(world.mss()).on(syn(5), (7, 0)));
                on(&client, &[]).gets(syn_ack(ANY, 6).any_window().any_options(), outward);
            }
            // Another connection of the same VLANs.
            let (client, server) = world.on_port(2000);
            on(&client, inward).sends(&syn(5).mss(1400));
            let offered = on(&client, &[]).gets(syn_ack(ANY, 6).any_window().any_options(), outward);
            on(&client, inward).sends(&ack(6, offered.seq + 1));
            on(&server, &[]).gets(segment(SYN, 5, 0).any_window().any_options(), inward);
            // Its server refuses: the client hears of it.
            on(&server, outward).sends(&rst_ack(0, 6));
            on(&client, &[]).gets(segment(RST, ANY, 0).any_window(), outward);
            assert_eq!(world.happened(Event::Refused), 1);
        }
    }
}

#[test]
fn what_is_counted_in_another_vlan_is_of_the_destination_that_was_opened() {
    let settings = Arc::new(Settings { mode: Some(tcpstate::config::Mode::Cache), ..Settings::default() });
    let network = Network { address: [0, 0, 0xffff, 0], prefix: 96 };
    let rule = DestinationRule { vlan: Some(10), network, port: None, settings };
    let (world, client, server) = Mode::V4.world_with(|config| config.rules.push(rule));
    let (inward, outward) = ([(0x8100, 10)], [(0x8100, 20)]);
    talks(&world, &client, &server, &inward, &inward, &outward, &inward);
    let of = |target| {
        world.operate(|proxy, _| {
            let counts = proxy.counters().of_target(target);
            [Event::Spliced, Event::OtherVlan, Event::LanSegment].map(|event| counts.happened(event) > 0)
        })
    };
    assert_eq!([of(0), of(1)], [[false; 3], [true; 3]]);
}

#[test]
fn a_lan_connection_is_answered_in_another_vlan() {
    for mode in [Mode::V4, Mode::V6] {
        for is_proved in [false, true] {
            let (world, client, server) = mode.world_with(|config| config.asymmetric = Asymmetric::Drop);
            let (inward, outward) = ([(0x8100, 10)], [(0x8100, 20)]);
            if is_proved {
                let (client, _) = world.on_port(999);
                on(&client, &inward).sends(&syn(5).mss(1400));
                let offered = on(&client, &[]).gets(syn_ack(ANY, 6).any_window().any_options(), &inward);
                on(&client, &inward).sends(&ack(6, offered.seq + 1));
                world.discard();
            }
            let passes = |from: &Host, to: &Host, tags: &[Tag], seg: &Seg| {
                on(from, tags).sends(seg);
                to.gets(unchanged());
            };
            passes(&server, &client, &outward, &syn(100).mss(1400));
            // Who did not see the SYN is not believed.
            client.sends_in_vain(tagged(&client.frame(&syn_ack(900, 102)), &inward), DropReason::NoFlow);
            passes(&client, &server, &inward, &syn_ack(900, 101).mss(1400));
            passes(&server, &client, &outward, &ack(101, 901));
            passes(&client, &server, &inward, &data(901, 101, 10));
            passes(&server, &client, &outward, &data(101, 911, 10));
            passes(&client, &server, &inward, &fin(911, 111));
            passes(&server, &client, &outward, &fin(111, 912));
            passes(&client, &server, &inward, &ack(912, 112));
            assert_eq!((world.happened(Event::OtherVlan), world.happened(Event::Challenge)), (1, 0));
            // What the WAN has shown changes nothing for clients of the WAN where they are answered in the VLAN of their SYN. Nor does a SYN pass.
            let (client, server) = world.on_port(1000);
            on(&client, &inward).sends(&syn(5).mss(1400));
            let answered = if is_proved { inward } else { outward };
            on(&client, &[]).gets(syn_ack(ANY, 6).any_window().any_options(), &answered);
            server.gets(nothing());
        }
    }
}

#[test]
fn a_lan_connection_is_refused_in_another_vlan() {
    let (world, client, server) = Mode::V4.world();
    on(&server, &[(0x8100, 20)]).sends(&syn(100).mss(1400));
    client.gets(unchanged());
    on(&client, &[(0x8100, 10)]).sends(&rst_ack(0, 101));
    server.gets(unchanged());
    assert_eq!(world.happened(Event::OtherVlan), 1);
}

#[test]
fn a_client_whose_server_cannot_be_reached_hears_of_it_from_another_vlan() {
    for mode in [Mode::V4, Mode::V6.cached()] {
        let (world, client, server) = mode.world();
        let (inward, outward) = ([(0x8100, 10)], [(0x8100, 20)]);
        on(&client, &inward).sends(&Terms::linux(world.mss()).on(syn(100), (7, 0)));
        let offered = on(&client, &[]).gets(syn_ack(ANY, 101).any_window().any_options(), &inward);
        let echo = offered.ts().map(|(value, _)| (8, value));
        on(&client, &inward).sends(&ack(101, offered.seq + 1).maybe_ts(echo));
        let asked = on(&server, &[]).gets(segment(SYN, 100, 0).any_window().any_options(), &inward);
        // Of another SYN than that.
        let error = |frame: &[u8]| {
            tagged(&icmp_error(&server.ends(), 0, Complaint::HostUnreachable, &tagged(frame, &[]), 20), &outward)
        };
        server.passes(error(&client.frame(&syn(99).mss(1400))));
        server.sends(error(&asked.frame));
        let told = world.discard().into_iter().filter(|(side, _)| *side == Side::Wan).count();
        assert_eq!(told, 2, "the error and a reset");
        assert_eq!(world.population().proxied, 0);
    }
}

#[test]
fn what_fits_no_connection_shows_nothing_of_vlans() {
    let (world, client, server) = Mode::V4.world_with(|config| config.asymmetric = Asymmetric::Drop);
    let (inward, outward) = ([(0x8100, 10)], [(0x8100, 20)]);
    on(&client, &inward).sends(&syn(100).mss(1400));
    let offered = on(&client, &[]).gets(syn_ack(ANY, 101).any_window().any_options(), &inward);
    on(&client, &inward).sends(&ack(101, offered.seq + 1));
    on(&server, &[]).gets(segment(SYN, 100, 0).any_window().any_options(), &inward);
    // A wrong acknowledgement, a damaged segment, and one from the WAN.
    on(&server, &outward).sends(&syn_ack(900, 100));
    world.discard();
    let mut damaged = tagged(&server.frame(&syn_ack(900, 101)), &outward);
    damaged[40] ^= 1;
    server.sends(damaged);
    world.discard();
    client.sends_in_vain(tagged(&client.frame(&syn_ack(900, 101)), &outward), DropReason::NoFlow);
    assert_eq!((world.happened(Event::OtherVlan), world.happened(Event::Spliced)), (0, 0));
    // An answer in its own VLAN is one as ever.
    on(&server, &inward).sends(&syn_ack(900, 101).mss(1400));
    assert_eq!(world.happened(Event::Spliced), 1);
    world.discard();
}

/// The two hosts with other Ethernet addresses: where the frames of each come from and where they go to.
pub(crate) fn stations(world: &World, client: [[u8; 6]; 2], server: [[u8; 6]; 2]) -> (Host, Host) {
    let (a, b) = world.on_port(CLIENT_PORT);
    let host = |host: Host, [from, to]: [[u8; 6]; 2]| {
        world.host(host.side(), FlowKey { src_mac: from, dst_mac: to, ..host.ends() })
    };
    (host(a, client), host(b, server))
}

const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER: [u8; 6] = [2, 0, 0, 0, 0, 4];
const OTHER: [u8; 6] = [2, 0, 0, 0, 7, 9];

#[test]
fn servers_behind_a_group_address_are_reached() {
    for group in [[3, 0xbf, 10, 77, 0, 2], [1, 0, 0x5e, 77, 0, 2], [0x33, 0x33, 0, 0, 0, 2]] {
        let own = [group[0] & !1, group[1], group[2], group[3], group[4], group[5]];
        for mode in [Mode::V4, Mode::V6, Mode::V4.cached(), Mode { tags: 1, ..Mode::V6 }] {
            let world = mode.world().0;
            let (client, server) = stations(&world, [CLIENT, group], [SERVER, CLIENT]);
            let terms = Terms::linux(world.mss());
            // With rare options the slow path answers, with common ones the fast path.
            for (port, seg) in [(1, terms.on(syn(1), (2, 0))), (2, syn(1).mss(1400).wscale(3))] {
                let rare = world.host(Side::Wan, FlowKey { sport: port, ..client.ends() });
                rare.sends(seg);
                assert_eq!(rare.gets(any_frame()).macs, (CLIENT, own), "no group sends");
            }
            client.sends(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            let offered = client.gets(any_frame());
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(offered.ts().map(|(v, _)| (CLIENT_TS + 1, v))));
            assert_eq!(
                server.gets(any_frame()).macs,
                (group, CLIENT),
                "the server gets the SYN where its client sent it"
            );
            world.after(Duration::from_millis(1100));
            assert_eq!(server.gets(any_frame()).macs, (group, CLIENT), "repeated");
            server.sends(terms.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 1)));
            while client.has_more() {
                assert_eq!(client.gets(any_frame()).macs, (CLIENT, SERVER), "the server's own address is known");
            }
            awaits(&world, &server);
            assert_eq!(server.gets(any_frame()).macs, (SERVER, CLIENT));
            client.sends(
                data(CLIENT_ISN + 1, offered.seq + 1, 10).maybe_ts(offered.ts().map(|(v, _)| (CLIENT_TS + 9, v))),
            );
            assert_eq!(server.gets(any_frame()).macs, (group, CLIENT), "what passes keeps its addresses");
            world.after(Duration::from_secs(1));
            client.sends(rst(CLIENT_ISN + 100));
            assert_eq!(client.gets(any_frame()).macs, (CLIENT, SERVER), "a challenge");
        }
    }
}

#[test]
fn no_frame_comes_from_a_group() {
    let world = Mode::V4.world().0;
    let (client, _) = stations(&world, [[3, 0, 0, 0, 0, 1], SERVER], [SERVER, CLIENT]);
    client.sends_in_vain(Terms::linux(1460).on(syn(1), (2, 0)), DropReason::BadAddress);
    client.sends_in_vain(syn(1).mss(1400), DropReason::BadAddress);
}

#[test]
fn what_the_box_sends_goes_to_the_station_that_is_there_now() {
    for mode in [Mode::V4, Mode::V6] {
        let world = mode.world().0;
        let (client, server) = stations(&world, [CLIENT, SERVER], [SERVER, CLIENT]);
        let joined = open(&client, &server, Terms::linux(world.mss()), Terms::linux(world.mss()));
        let mut transfer = Transfer::new(&client, &server, joined.clone());
        transfer.client(0, 10);
        transfer.server(0, 10);
        // Both move: the server to another station, the client behind another router.
        let router = [2, 0, 0, 0, 8, 8];
        let (moved_client, moved_server) = stations(&world, [router, OTHER], [OTHER, router]);
        let (ts_client, ts_server) = (CLIENT_TS + 50, SERVER_TS + 50);
        moved_server.sends(data(joined.s(10), joined.c(10), 10).ts(ts_server, CLIENT_TS + 2));
        assert_eq!(client.gets(any_frame()).macs, (router, OTHER));
        moved_client.sends(data(joined.c(10), joined.o(20), 10).ts(ts_client, joined.ts_out(ts_server)));
        assert_eq!(server.gets(any_frame()).macs, (OTHER, router));
        // Who is not in sequence does not move anything.
        let forger = stations(&world, [[2, 6, 6, 6, 6, 6], OTHER], [SERVER, CLIENT]).0;
        forger.sends(data(joined.c(1 << 30), joined.o(20), 10));
        world.discard();
        world.after(Duration::from_secs(1));
        moved_server.sends(rst(joined.s(200)));
        assert_eq!(server.gets(any_frame()).macs, (OTHER, router), "a challenge in the client's name");
        assert_eq!(world.happened(Event::Challenge), 2);
    }
}

/// The two hosts with these addresses.
pub(crate) fn at(world: &World, client: &str, server: &str) -> (Host, Host) {
    let (a, b) = world.on_port(CLIENT_PORT);
    let [c, s] = [client, server].map(|address| address.parse().unwrap());
    (
        world.host(Side::Wan, FlowKey { src: c, dst: s, ..a.ends() }),
        world.host(Side::Lan, FlowKey { src: s, dst: c, ..b.ends() }),
    )
}

#[test]
fn reserved_addresses_are_hosts_like_others() {
    for (mode, pairs) in [
        (Mode::V4, [("240.77.0.1", "240.77.0.2"), ("0.77.0.1", "0.77.0.2"), ("255.255.255.254", "0.0.0.1")]),
        (Mode::V6, [("::2", "::ffff:1:2:3"), ("fec0::1", "fd00::2"), ("fe80::1", "100::1")]),
    ] {
        for (one, other) in pairs {
            for (client, server) in [(one, other), (other, one)] {
                let world = mode.world().0;
                let (client, server) = at(&world, client, server);
                open(&client, &server, Terms::linux(1400), Terms::linux(1400));
                let world = mode.world().0;
                let (client, server) = at(&world, one, other);
                server.passes(syn(100).mss(1400));
                client.passes(syn_ack(900, 101).mss(1400));
            }
        }
    }
}

#[test]
fn addresses_that_no_host_accepts_open_nothing() {
    for (mode, host, impossible) in [
        (
            Mode::V4,
            "192.0.2.1",
            &["0.0.0.0", "255.255.255.255", "127.0.0.1", "127.255.255.254", "224.0.0.1", "239.255.255.255"][..],
        ),
        (Mode::V6, "2600::1", &["::", "::1", "ff02::1", "ffff::1", "::ffff:192.0.2.1"][..]),
    ] {
        for &address in impossible {
            let world = mode.world().0;
            for (client, server) in [at(&world, address, host), at(&world, host, address)] {
                client.sends_in_vain(Terms::linux(1400).on(syn(1), (2, 0)), DropReason::BadAddress);
                client.sends_in_vain(syn(1).mss(1400), DropReason::BadAddress);
                server.sends_in_vain(syn(1).mss(1400), DropReason::BadAddress);
            }
        }
    }
}

/// An IPv6 frame with this extension header, whose next-header field is left out, and these addresses in its IPv6 header instead of its ends'.
fn behind(frame: &[u8], number: u8, header: &[u8], source: Option<&str>, destination: Option<&str>) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let header = [&[frame[20]], header].concat();
    assert!(header.len().is_multiple_of(8));
    frame[20] = number;
    let len = u16::from_be_bytes([frame[18], frame[19]]) + header.len() as u16;
    frame[18..20].copy_from_slice(&len.to_be_bytes());
    for (at, address) in [(22, source), (38, destination)] {
        if let Some(address) = address {
            frame[at..at + 16].copy_from_slice(&octets(address));
        }
    }
    [&frame[..54], &header, &frame[54..]].concat()
}

fn octets(address: &str) -> [u8; 16] {
    address.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

/// What is not of the common kind about a frame.
pub(crate) type Wrap = Box<dyn Fn(Vec<u8>) -> Vec<u8>>;

const SEGMENT: &str = "2600:db8:5::1";

/// Headers that name the other end: of every type, with the last address where the type has it.
pub(crate) fn routes(to: &Host) -> Vec<(&'static str, Wrap)> {
    let std::net::IpAddr::V6(last) = to.ends().src else { panic!("IPv6 only") };
    let last = last.octets();
    let other = octets("2600:db8:7::7");
    let route = |header: Vec<u8>| -> Wrap { Box::new(move |frame| behind(&frame, 43, &header, None, Some(SEGMENT))) };
    let list = |fixed: [u8; 7], addresses: &[[u8; 16]]| route([&fixed[..], &addresses.concat()].concat());
    // RPL: the first twelve bytes of every address are those of the segment, and the last one has four of its own.
    vec![
        ("type 0", list([2, 0, 1, 0, 0, 0, 0], &[last])),
        ("type 0, two addresses", list([4, 0, 2, 0, 0, 0, 0], &[other, last])),
        ("type 2", list([2, 2, 1, 0, 0, 0, 0], &[last])),
        ("type 3", list([4, 3, 2, 0, 0, 0, 0], &[other, last])),
        ("type 4", list([2, 4, 1, 0, 0, 0, 0], &[last])),
        ("type 4, three segments", list([6, 4, 2, 2, 0, 0, 0], &[last, other, other])),
        ("type 4, reduced", list([4, 4, 2, 1, 0, 0, 0], &[last, other])),
        ("type 4, with a TLV", route([&[3u8, 4, 1, 0, 0, 0, 0], &last[..], &[4, 6, 0, 0, 0, 0, 0, 0]].concat())),
    ]
}

/// The client's home address option: the frame comes from elsewhere.
pub(crate) fn at_home() -> Wrap {
    Box::new(|frame| {
        let home: Vec<u8> = frame[22..38].to_vec();
        behind(&frame, 60, &[&[2, 1, 2, 0, 0, 0xc9, 16][..], &home[..]].concat(), Some("2600:db8:9::9"), None)
    })
}

#[test]
fn a_segment_whose_end_another_header_names_is_not_answered_but_passes_and_is_followed() {
    for mode in [Mode::V6, Mode::V6.cached()] {
        let (_, _, server) = mode.world();
        let mut wraps = routes(&server);
        wraps.push(("home address", at_home()));
        for (name, wrap) in wraps {
            let (world, client, server) = mode.world_with(|config| config.mss_clamp = Some(1000));
            let bridged = |seg: Seg| client.passes(wrap(client.frame(&seg)));
            println!("{name}");
            bridged(syn(100).mss(1440));
            assert_eq!(world.happened(Event::Rerouted), 1, "{name}");
            // The server answers as it likes, and its answer is expected.
            server.passes(syn_ack(900, 101).mss(900));
            bridged(ack(101, 901));
            bridged(data(101, 901, 100));
            server.passes(data(901, 201, 10));
            world.after(Duration::from_secs(1));
            bridged(rst(300));
            bridged(fin(201, 911));
            server.passes(fin(911, 202));
            bridged(ack(202, 912));
            assert_eq!(world.happened(Event::SynAnswered) + world.happened(Event::Challenge), 0);
            assert_eq!(world.population().passthrough, 1);
        }
    }
}

#[test]
fn syns_whose_end_another_header_names_pass_at_a_limited_rate() {
    let (world, _, server) = Mode::V6.world_with(|config| config.passed_rate = 10);
    let wrap = &routes(&server)[4].1;
    let sends = |port: u16| {
        let (client, _) = world.on_port(1000 + port);
        client.sends(wrap(client.frame(&syn(100).mss(1440))));
        world.discard().len()
    };
    let passed: usize = (0..100).map(sends).sum();
    assert!((1..=20).contains(&passed), "{passed} of 100");
    assert_eq!(world.dropped(DropReason::NotPassed) as usize, 100 - passed);
}

#[test]
fn a_proxied_connection_whose_client_turns_to_another_route_is_translated() {
    let (world, client, server) = Mode::V6.world();
    let joined = open(&client, &server, Terms::bare(1440), Terms::bare(1440));
    for (offset, (name, wrap)) in (0..).map(|n| n * 100).zip(routes(&server)) {
        client.sends(wrap(client.frame(&data(joined.c(offset), joined.o(0), 100))));
        let sent = world.discard();
        let (side, frame) = &sent[0];
        let tcp = frame.len() - 120;
        assert_eq!((*side, sent.len()), (Side::Lan, 1), "{name}");
        assert_eq!(frame[tcp + 8..tcp + 12], joined.s(0).to_be_bytes(), "{name}");
        // The checksum is of the last destination.
        let mut plain = [&frame[..54], &frame[tcp..]].concat();
        (plain[18], plain[19], plain[20]) = (0, 120, 6);
        plain[38..54].copy_from_slice(&octets(&server.ends().src.to_string()));
        assert_eq!(read(&plain, world.now()).unwrap().checksums, (true, true), "{name}");
    }
    // The same of the server's.
    server.sends(routes(&client)[4].1(server.frame(&data(joined.s(0), joined.c(800), 10))));
    assert_eq!(world.discard().len(), 1);
}

#[test]
fn what_is_behind_headers_that_the_box_does_not_understand_is_the_ends_own() {
    let list = |fixed: [u8; 7]| [&fixed[..], &octets(SEGMENT)[..]].concat();
    let headers: Vec<(&str, u8, Vec<u8>)> = vec![
        ("authentication", 51, [&[4, 0, 0][..], &[0x5a; 20]].concat()),
        ("encapsulation", 50, vec![0; 7]),
        ("mobility", 135, vec![0, 5, 0, 0, 0, 0, 0]),
        ("HIP", 139, vec![0; 7]),
        ("Shim6", 140, vec![0, 0x80, 0, 0, 0, 0, 7]),
        ("experiment", 253, vec![0; 7]),
        ("experiment", 254, vec![0; 7]),
        ("routing of an unknown type", 43, list([2, 77, 1, 0, 0, 0, 0])),
        ("routing with more segments left than there are", 43, list([2, 0, 2, 0, 0, 0, 0])),
        ("segment routing beyond its header", 43, list([2, 4, 1, 1, 0, 0, 0])),
        ("an odd list", 43, [&list([3, 0, 1, 0, 0, 0, 0])[..], &[0; 8]].concat()),
        ("an option that must not be skipped", 60, vec![0, 0x80, 4, 0, 0, 0, 0]),
        ("the same hop by hop", 0, vec![0, 0x80, 4, 0, 0, 0, 0]),
        ("a home address hop by hop", 0, [&[2, 1, 2, 0, 0, 0xc9, 16][..], &[7; 16]].concat()),
        ("an option beyond its header", 60, vec![0, 0x1e, 5, 0, 0, 0, 0]),
    ];
    for (name, number, header) in headers {
        let (world, client, server) = Mode::V6.world();
        println!("{name}");
        for (n, seg) in (1..).zip([syn(100).mss(1440), ack(101, 901), rst(101), syn_ack(900, 101)]) {
            client.passes(behind(&client.frame(&seg), number, &header, None, None));
            server.passes(behind(&server.frame(&seg), number, &header, None, None));
            assert_eq!(world.happened(Event::Bridged), 2 * n, "{name}");
        }
        assert_eq!(world.population(), tcpstate::Population::default(), "{name}");
    }
}

#[test]
fn headers_that_change_nothing_are_skipped() {
    let list = |fixed: [u8; 7]| [&fixed[..], &octets(SEGMENT)[..]].concat();
    for (number, header) in [
        (0, vec![0, 5, 2, 0, 0, 1, 0]),
        (60, vec![0, 0x1e, 4, 1, 2, 3, 4]),
        (43, list([2, 4, 0, 0, 0, 0, 0])),
        (43, list([2, 77, 0, 0, 0, 0, 0])),
        (43, list([2, 0, 0, 0, 0, 0, 0])),
    ] {
        let (_world, client, server) = Mode::V6.world();
        client.sends(behind(&client.frame(&syn(100).mss(1440)), number, &header, None, None));
        let offered = client.gets(syn_ack(ANY, 101).any_window().any_options());
        client.sends(behind(&client.frame(&ack(101, offered.seq + 1)), number, &header, None, None));
        server.gets(segment(SYN, 100, 0).any_window().any_options());
    }
}

#[test]
fn an_error_may_quote_a_segment_with_a_route() {
    let (world, client, server) = Mode::V6.world();
    let joined = open(&client, &server, Terms::bare(1440), Terms::bare(1440));
    let frame = client.frame(&data(joined.c(0), joined.o(0), 100));
    let routed = routes(&server)[4].1(frame);
    client.sends(routed);
    let (_, passed) = world.discard().remove(0);
    let error = icmp_error(&server.ends(), 0, Complaint::TooBig(1300), &passed, 2000);
    server.sends(error);
    assert_eq!((world.happened(Event::IcmpTranslated), world.discard().len()), (1, 1));
}

/// An IPv4 frame with a source route over `over` to its destination.
pub(crate) fn source_routed(frame: &[u8], kind: u8, over: [u8; 4]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let last = [frame[30], frame[31], frame[32], frame[33]];
    let option = [&[kind, 7, 4][..], &last, &[0]].concat();
    frame[14] = 0x47;
    let len = u16::from_be_bytes([frame[16], frame[17]]) + 8;
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    frame[30..34].copy_from_slice(&over);
    let mut frame = [&frame[..34], &option, &frame[34..]].concat();
    frame[24..26].fill(0);
    let sum = frame[14..42].as_chunks().0.iter().fold(0, |sum, word| sum + u32::from(u16::from_be_bytes(*word)));
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn a_source_route_names_the_last_destination() {
    for kind in [131, 137] {
        let (world, client, server) = Mode::V4.world();
        let bridged = |seg: Seg| client.passes(source_routed(&client.frame(&seg), kind, [192, 0, 2, 99]));
        bridged(syn(100).mss(1400));
        server.passes(syn_ack(900, 101).mss(1400));
        bridged(ack(101, 901));
        bridged(data(101, 901, 100));
        assert_eq!((world.happened(Event::Rerouted), world.happened(Event::SynAnswered)), (1, 0));
    }
}

#[test]
fn the_fragments_of_a_routed_segment_stay_together() {
    let (world, client, server) = Mode::V6.world_with(|config| config.stray_fragments = tcpstate::config::Action::Drop);
    let wrap = &routes(&server)[4].1;
    client.passes(wrap(client.frame(&syn(100).mss(1440))));
    server.passes(syn_ack(900, 101).mss(1440));
    client.passes(wrap(client.frame(&ack(101, 901))));
    let whole = client.frame(&data(101, 901, 2000));
    for range in [0..1208, 1208..2020] {
        let more = range.end < 2020;
        client.passes(wrap(fragment(&whole, 5, range, more)));
    }
    assert_eq!(world.happened(Event::Fragment), 1);
}

#[test]
fn a_running_connection_of_two_vlans_is_adopted() {
    let (world, client, server) = Mode::V4.world_with(|config| config.adopt_grace = Duration::from_secs(60));
    let (inward, outward) = ([(0x8100, 10)], [(0x8100, 20)]);
    on(&server, &outward).sends(&data(100, 900, 10));
    client.gets(unchanged());
    on(&client, &inward).sends(&ack(900, 110));
    server.gets(unchanged());
    assert_eq!((world.happened(Event::Adopted), world.happened(Event::OtherVlan)), (1, 1));
    world.after(Duration::from_secs(100));
    on(&client, &inward).sends(&data(900, 110, 10));
    server.gets(unchanged());
    on(&server, &outward).sends(&ack(110, 910));
    client.gets(unchanged());
}

#[test]
fn a_flood_does_not_make_the_box_search_all_vlans() {
    let (world, client, server) = Mode::V4.world();
    on(&server, &[(0x8100, 20)]).sends(&syn(100).mss(1400));
    client.gets(unchanged());
    for n in 0..5000 {
        client.sends(tagged(&client.frame(&syn_ack(n, n)), &[(0x8100, 10)]));
        world.discard();
    }
    // It has spent what it may search; a second later an answer is found again.
    world.after(Duration::from_secs(2));
    on(&client, &[(0x8100, 10)]).sends(&syn_ack(900, 101).mss(1400));
    server.gets(unchanged());
}
