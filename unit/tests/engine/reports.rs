//! What deployed stacks and middleboxes do, as people reported it: each case is a row of `docs/field.md`.

use std::time::Duration;

use tcpstate::config::Stray;
use tcpstate::{DropReason, Event, Side, Verdict};
use unit::in_every_mode;
use unit::script::*;

/// The largest window two Linux hosts can agree on: 65 535 bytes, scaled by 14 (RFC 7323 section 2.3).
fn wide(mss: u16) -> Terms {
    Terms { wscale: Some(14), window: 65_535, ..Terms::linux(mss) }
}

/// Bytes in flight on a path of 100 Gbit/s with a round trip of 25 ms.
const IN_FLIGHT: u32 = 300 << 20;

/// Opens a connection whose ends have granted each other a window of nearly 1 GiB.
fn open_wide(client: &Host, server: &Host, mss: u16) -> Joined {
    let j = open(client, server, wide(mss), wide(mss));
    client.sends(ack(j.c(0), j.o(0)).window(65_535).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)));
    server.gets(ack(j.c(0), j.s(0)).any_window().any_options());
    server.sends(ack(j.s(0), j.c(0)).window(65_535).ts(SERVER_TS, CLIENT_TS + 2));
    client.gets(ack(j.o(0), j.c(0)).any_window().any_options());
    j
}

in_every_mode! {
    fn hundreds_of_megabytes_may_be_in_flight_to_the_client(world, client, server) {
        let j = open_wide(&client, &server, world.mss());
        let stamps = (CLIENT_TS + 3, j.ts_out(SERVER_TS));
        // What lies between would only repeat it.
        for at in [0, IN_FLIGHT] {
            server.sends(data(j.s(at), j.c(0), 100).window(65_535).ts(SERVER_TS, CLIENT_TS + 2));
            client.gets(data(j.o(at), j.c(0), 100).any_window().any_options());
        }
        for (at, len) in [(0, 0), (100, 0), (100, 10), (IN_FLIGHT + 100, 0)] {
            client.sends(data(j.c(0), j.o(at), len).window(65_535).ts(stamps.0, stamps.1));
            server.gets(data(j.c(0), j.s(at), len).any_window().any_options());
        }
        // Blind data acknowledges what was never sent, or what was acknowledged long ago (RFC 5961 section 5).
        for at in [IN_FLIGHT + 10_000_000, 0_u32.wrapping_sub(200 << 20)] {
            world.after_secs(1);
            client.sends(data(j.c(10), j.o(at), 10).window(65_535).ts(stamps.0, stamps.1));
            client.gets(ack(j.o(IN_FLIGHT + 100), j.c(0)).any_window().any_options());
            server.gets(nothing());
        }
    }

    fn hundreds_of_megabytes_may_be_in_flight_to_the_server(world, client, server) {
        let j = open_wide(&client, &server, world.mss());
        let echo = j.ts_out(SERVER_TS);
        // More than the window in all, and never less than that in flight: the box has to follow the server's acknowledgements.
        let step = IN_FLIGHT / 3;
        for n in 0..16 {
            client.sends(data(j.c(n * step), j.o(0), 100).window(65_535).ts(CLIENT_TS + 3, echo));
            server.gets(data(j.c(n * step), j.s(0), 100).any_window().any_options());
            let acked = (n * step).saturating_sub(IN_FLIGHT) + 100;
            server.sends(ack(j.s(0), j.c(acked)).window(65_535).ts(SERVER_TS, CLIENT_TS + 3));
            client.gets(ack(j.o(0), j.c(acked)).any_window().any_options());
        }
    }
}

/// A world that adopts connections that run already.
fn adopting(world: &World) -> (World, Host, Host) {
    world.mode().world_with(|config| config.adopt_grace = Duration::from_secs(60))
}

in_every_mode! {
    fn a_running_connection_with_much_in_flight_is_adopted(world, client, server) {
        let _ = (client, server);
        for (seq, acked) in [(5100, 9200), (5100 + IN_FLIGHT, 9200), (5100, 9200u32.wrapping_sub(IN_FLIGHT))] {
            let (world, client, server) = adopting(&world);
            server.passes(data(9000, 5100, 200));
            client.passes(data(seq, acked, 100));
            assert_eq!(world.happened(Event::Adopted), 1, "seq {seq}, ack {acked}");
        }
    }
}

in_every_mode! {
    fn a_forged_syn_keeps_no_running_connection_from_being_adopted(world, client, server) {
        let _ = (client, server);
        for lan_first in [true, false] {
            let (world, client, server) = adopting(&world);
            let forges = || {
                client.sends(Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
                client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
            };
            forges();
            if !lan_first {
                // Nothing shows yet that it is the connection's.
                client.passes(data(5100, 9200, 100));
            }
            server.passes(data(9000, 5100, 200));
            forges();
            client.passes(data(5100, 9200, 100));
            assert_eq!(world.happened(Event::Adopted), 1);
            server.passes(ack(9200, 5200));
        }
    }
}

in_every_mode! {
    fn the_answer_of_a_server_says_which_syn_in_its_clients_name_it_has_taken(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = world.mode().world_with(|config| config.introductions = 1000);
        let full = Terms::linux(world.mss());
        client.passes(full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        // Somebody else's.
        client.passes(full.on(syn(77), (1, 0)));
        server.passes(full.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS)));
        client.passes(ack(CLIENT_ISN + 1, SERVER_ISN + 1).maybe_ts(Some((CLIENT_TS + 1, SERVER_TS))));
        client.passes(data(CLIENT_ISN + 1, SERVER_ISN + 1, 10).maybe_ts(Some((CLIENT_TS + 1, SERVER_TS))));
        server.passes(ack(SERVER_ISN + 1, CLIENT_ISN + 11).maybe_ts(Some((SERVER_TS + 1, CLIENT_TS + 1))));
        client.sends_in_vain(rst(CLIENT_ISN.wrapping_add(0x3000_0000)), DropReason::BadReset);
    }
}

/// The ends of a connection between two hosts on one side, whose stations are the fifth and the sixth.
fn neighbours(side: Side, client: &Host, server: &Host) -> FlowKey {
    let own = if side == Side::Lan { server.ends().src } else { client.ends().src };
    let mut next = own;
    match &mut next {
        std::net::IpAddr::V4(ip) => *ip = std::net::Ipv4Addr::from_bits(ip.to_bits() + 7),
        std::net::IpAddr::V6(ip) => *ip = std::net::Ipv6Addr::from_bits(ip.to_bits() + 7),
    }
    FlowKey {
        src: own,
        dst: next,
        sport: 40_000,
        dport: 80,
        src_mac: [2, 0, 0, 0, side as u8, 5],
        dst_mac: [2, 0, 0, 0, side as u8, 6],
        ttl: 64,
    }
}

/// The other direction.
fn back(ends: &FlowKey) -> FlowKey {
    FlowKey {
        src: ends.dst,
        dst: ends.src,
        sport: ends.dport,
        dport: ends.sport,
        src_mac: ends.dst_mac,
        dst_mac: ends.src_mac,
        ttl: ends.ttl,
    }
}

/// A station on this side makes itself known by an ARP request.
fn hear(world: &World, side: Side, mac: [u8; 6]) {
    let request = [&[0xff; 6], &mac[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac, &[0; 28]].concat();
    assert_eq!(world.inject(side, &request), Verdict::Forward);
    assert_eq!(world.discard(), [(side.other(), request)]);
}

in_every_mode! {
    fn neighbours_whose_frames_a_switch_floods_connect_undisturbed(world, client, server) {
        for side in Side::BOTH {
            let ends = neighbours(side, &client, &server);
            let [caller, called] = [ends, back(&ends)].map(|ends| world.host(side, ends));
            for mac in [ends.src_mac, ends.dst_mac] {
                hear(&world, side, mac);
            }
            // Whatever comes out on the side it came from is one of their addresses taken, and a connection ended.
            caller.sends_in_vain(syn(1000).ts(1, 0), DropReason::Elsewhere);
            called.sends_in_vain_for_any_reason(syn_ack(5000, 1001).ts(2, 1));
            caller.sends_in_vain_for_any_reason(ack(1001, 5001).ts(2, 2));
            caller.sends_in_vain_for_any_reason(data(1001, 5001, 100).ts(2, 2));
            called.sends_in_vain_for_any_reason(data(5001, 1101, 100).ts(2, 2));
            called.sends_in_vain_for_any_reason(rst(5101));
        }
        assert_eq!(world.dropped(DropReason::Elsewhere), 8, "two from the WAN, six from the LAN");
        world.has_flows(0, 0);
    }

    fn a_stray_of_neighbours_is_not_reset(world, client, server) {
        let (world, ..) = world.mode().world_with(|config| config.stray = Stray::Reset);
        for side in Side::BOTH {
            let ends = neighbours(side, &client, &server);
            hear(&world, side, ends.dst_mac);
            world.host(side, ends).sends_in_vain_for_any_reason(data(1001, 5001, 100));
        }
    }

    fn a_station_that_moves_to_the_lan_is_served_at_once(world, client, server) {
        let mac = client.ends().dst_mac;
        hear(&world, Side::Wan, mac);
        client.sends_in_vain(syn(CLIENT_ISN).mss(world.mss()), DropReason::Elsewhere);
        // It announces itself at its new place.
        hear(&world, Side::Lan, mac);
        open(&client, &server, Terms::linux(world.mss()), Terms::linux(world.mss()));
        // Somebody on the WAN who takes its address does not take it from its clients.
        hear(&world, Side::Wan, mac);
        let (client, server) = world.on_port(1);
        open(&client, &server, Terms::linux(world.mss()), Terms::linux(world.mss()));
    }

    fn routers_with_one_address_on_both_sides_connect_their_hosts(world, client, server) {
        let one = |ends: FlowKey| FlowKey { src_mac: [2, 0, 0, 0, 0, 9], dst_mac: [2, 0, 0, 0, 0, 9], ..ends };
        hear(&world, Side::Wan, [2, 0, 0, 0, 0, 9]);
        let (client, server) = (world.host(Side::Wan, one(client.ends())), world.host(Side::Lan, one(server.ends())));
        open(&client, &server, Terms::linux(world.mss()), Terms::linux(world.mss()));
    }

    fn a_station_heard_by_one_worker_is_known_to_all(world, client, server) {
        let other = world.mode().world().0;
        hear(&world, Side::Wan, client.ends().dst_mac);
        assert_eq!(world.publishes_to(&other), 0);
        let _ = server;
        other.host(Side::Wan, client.ends()).sends_in_vain(syn(CLIENT_ISN), DropReason::Elsewhere);
    }

    fn a_server_whose_client_called_another_way_is_not_reset(world, client, server) {
        // By then no cookie of a former process opens any more.
        world.after_secs(140);
        for repeated in 0..3 {
            server.passes(syn_ack(SERVER_ISN, CLIENT_ISN + 1).mss(world.mss()).ts(SERVER_TS, CLIENT_TS));
            assert_eq!(world.happened(Event::ForeignAnswer), 1, "answer {repeated}");
            world.after_secs(3);
        }
        for n in 0..5 {
            world.after_secs(50);
            server.passes(data(SERVER_ISN.wrapping_add(1 + 100 * n), CLIENT_ISN + 1, 100).ts(SERVER_TS + n, CLIENT_TS));
        }
        server.passes(fin(SERVER_ISN.wrapping_add(501), CLIENT_ISN + 1));
        // Its client's segments may come this way from now on.
        client.passes(ack(CLIENT_ISN + 1, SERVER_ISN.wrapping_add(502)));
        world.has_flows(0, 1);
    }

    fn a_server_that_answers_a_former_process_may_still_be_reached(world, client, server) {
        server.passes(syn_ack(SERVER_ISN, CLIENT_ISN + 1).mss(world.mss()).ts(SERVER_TS, CLIENT_TS));
        world.has_flows(0, 0);
        let terms = Terms::linux(world.mss());
        open(&client, &server, terms, terms);
    }

    fn a_server_that_answers_after_the_box_has_given_up_is_reset(world, client, server) {
        let (world, client, server) = {
            let _ = (&client, &server);
            world.mode().world_with(|config| config.timeouts.dl_syn_sent = Duration::from_secs(2))
        };
        client.sends(syn(CLIENT_ISN).mss(world.mss()));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        for _ in 0..30 {
            world.tick(Duration::from_millis(100));
        }
        world.discard();
        world.has_flows(0, 0);
        server.sends(syn_ack(SERVER_ISN, CLIENT_ISN + 1).mss(world.mss()));
        server.gets(rst(CLIENT_ISN + 1).any_window());
    }
}

// ---- segments that others write differently ----

in_every_mode! {
    fn keepalives_without_timestamps_pass(world, client, server) {
        // Apple's and Microsoft's bear none where all else does.
        let terms = Terms::linux(world.mss());
        let mut transfer = Transfer::new(&client, &server, open(&client, &server, terms, terms));
        for len in [0, 1] {
            let j = &transfer.joined;
            client.sends(data(j.c(0).wrapping_sub(1), j.o(0), len).flags(ACK));
            server.gets(data(j.c(0).wrapping_sub(1), j.s(0), len).flags(ACK).any_window());
            server.sends(data(j.s(0).wrapping_sub(1), j.c(0), len).flags(ACK));
            client.gets(data(j.o(0).wrapping_sub(1), j.c(0), len).flags(ACK).any_window());
        }
        transfer.client(PSH, 100);
        transfer.server(PSH, 100);
        transfer.closes_from_the_client();
    }

    fn a_server_that_stops_to_send_timestamps_is_passed_on_as_it_is(world, client, server) {
        // A load balancer in SYN-cookie mode has answered in the server's name.
        let j = open(&client, &server, Terms::linux(world.mss()), Terms::linux(world.mss()));
        for n in 0..3 {
            server.sends(data(j.s(100 * n), j.c(0), 100));
            client.gets(data(j.o(100 * n), j.c(0), 100).any_window());
            client.sends(ack(j.c(0), j.o(100 * (n + 1))).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)));
            server.gets(ack(j.c(0), j.s(100 * (n + 1))).any_window().nop().nop().ts(CLIENT_TS + 2, SERVER_TS));
        }
    }

    fn an_option_of_the_third_segment_alone_is_lost_and_later_ones_pass(world, client, server) {
        // An address option (254), by which a load balancer in front of us tells the server its client's address. A deviation.
        let address = [254, 8, 0x13, 0x88, 203, 0, 113, 5];
        let theirs = Terms::linux(world.mss());
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        let echo = offered.ts().map_or(0, |(value, _)| value);
        let third = ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, echo).raw(&address);
        client.sends(third);
        client.gets(nothing());
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        client.sends(data(j.c(0), j.o(0), 10).nop().nop().ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)).raw(&address));
        server.gets(data(j.c(0), j.s(0), 10).any_window().nop().nop().ts(CLIENT_TS + 2, SERVER_TS).raw(&address));
    }

    fn a_third_segment_without_the_timestamps_agreed_opens_only_the_syn_cache(world, client, server) {
        // What was agreed rides in the timestamp. A deviation.
        let theirs = Terms::linux(world.mss());
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        let third = ack(CLIENT_ISN + 1, offered.seq + 1);
        if world.mode().cache {
            client.sends(third);
            server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        } else {
            client.sends_in_vain(third, DropReason::BadCookie);
        }
    }

    fn a_syn_and_all_that_follows_may_come_twice(world, client, server) {
        // As from a promiscuous port, or a network that sends everything over two paths.
        let twice = |host: &Host, seg: Seg| {
            for _ in 0..2 {
                let _ = world.inject(host.side(), &host.frame(&seg));
            }
        };
        let theirs = Terms::linux(world.mss());
        twice(&client, theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        let again = client.gets(syn_ack(offered.seq, CLIENT_ISN + 1).window(0).any_options());
        assert_eq!(again.ts(), offered.ts());
        let echo = offered.ts().map_or(0, |(value, _)| value);
        twice(&client, ack(CLIENT_ISN + 1, offered.seq + 1).ts(CLIENT_TS + 1, echo));
        for _ in 0..2 {
            server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        }
        twice(&server, theirs.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 1)));
        // From here on what the ends get twice they may answer twice, but the connection stands.
        world.discard();
        assert_eq!((world.happened(Event::Spliced), world.happened(Event::AnswerRepeated)), (1, 1));
        let delta = offered.seq.wrapping_sub(SERVER_ISN);
        twice(&client, data(CLIENT_ISN + 1, offered.seq + 1, 10).ts(CLIENT_TS + 2, echo));
        for _ in 0..2 {
            server.gets(data(CLIENT_ISN + 1, SERVER_ISN.wrapping_add(1), 10).any_window().any_options());
        }
        twice(&server, data(SERVER_ISN.wrapping_add(1), CLIENT_ISN + 11, 10).ts(SERVER_TS, CLIENT_TS + 2));
        for _ in 0..2 {
            client.gets(data(SERVER_ISN.wrapping_add(1).wrapping_add(delta), CLIENT_ISN + 11, 10).any_window().any_options());
        }
        world.has_flows(1, 0);
    }
}

// ---- frames that are none of ours ----

/// Frames of other protocols, from this station.
fn foreign(mac: [u8; 6]) -> Vec<(&'static str, Vec<u8>)> {
    let to = |group: [u8; 6], rest: &[&[u8]]| {
        let mut frame = [&group[..], &mac, &rest.concat()].concat();
        frame.resize(frame.len().max(60), 0);
        frame
    };
    let reserved = |last| [1, 0x80, 0xc2, 0, 0, last];
    let station = [2, 0, 0, 0, 0, 0x77];
    // A SYN, as it would lie in a tunnel.
    let mut syn = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 20, 0, 0, 1, 192, 0, 2, 10];
    syn.extend([0xd4, 0x31, 0x30, 0x39, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    vec![
        ("STP", to(reserved(0), &[&[0, 38, 0x42, 0x42, 3], &[7; 40]])),
        ("PAUSE", to(reserved(1), &[&[0x88, 8, 0, 1, 0, 5]])),
        ("LACP", to(reserved(2), &[&[0x88, 9, 1, 1], &[7; 108]])),
        ("802.1X", to(reserved(3), &[&[0x88, 0x8e, 2, 1, 0, 0]])),
        ("LLDP", to(reserved(14), &[&[0x88, 0xcc], &[7; 60]])),
        ("CDP", to([1, 0, 0xc, 0xcc, 0xcc, 0xcc], &[&[0, 60, 0xaa, 0xaa, 3, 0, 0, 12, 0x20, 0], &[7; 52]])),
        ("PPPoE", to(station, &[&[0x88, 0x64, 0x11, 0, 0, 1, 0, 42, 0, 0x21], &syn])),
        ("MPLS", to(station, &[&[0x88, 0x47, 0, 1, 1, 64], &syn])),
        ("SNAP", to(station, &[&[0, 48, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &syn])),
        ("MACsec", to(station, &[&[0x88, 0xe5], &[0x2c; 80]])),
        ("PTP", to([1, 0x1b, 0x19, 0, 0, 0], &[&[0x88, 0xf7], &[7; 46]])),
        ("VRRP", to([1, 0, 0x5e, 0, 0, 18], &[&[8, 0, 0x45, 0xc0, 0, 40, 0, 1, 0, 0, 255, 112], &[7; 28]])),
        ("IGMP", to([1, 0, 0x5e, 0, 0, 22], &[&[8, 0, 0x46, 0xc0, 0, 40, 0, 0, 0x40, 0, 1, 2], &[7; 28]])),
        ("ESP", to(station, &[&[8, 0, 0x45, 0, 0, 80, 0, 1, 0x40, 0, 64, 50], &[7; 70]])),
    ]
}

in_every_mode! {
    fn what_only_neighbours_say_to_each_other_passes_as_over_a_cable(world, client, server) {
        let _ = (client, server);
        for side in Side::BOTH {
            for (name, frame) in foreign([2, 0, 0, 0, 0, if side == Side::Lan { 4 } else { 1 }]) {
                assert_eq!(world.inject(side, &frame), Verdict::Forward, "{name}");
                assert_eq!(world.discard(), [(side.other(), frame)], "{name}");
            }
        }
    }

    fn with_introductions_a_check_that_never_acknowledges_asks_an_unknown_server(world, client, server) {
        // A load balancer's check: SYN, SYN-ACK, RST. Without, the box answers for a server that may be dead: a deviation.
        let theirs = Terms::linux(world.mss());
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        client.sends_in_vain_for_any_reason(rst_ack(CLIENT_ISN + 1, offered.seq + 1));
        server.gets(nothing());
        let (_world, client, server) = world.mode().world_with(|config| config.introductions = 10);
        client.passes(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let _ = server;
    }
}

in_every_mode! {
    fn a_late_copy_of_a_syn_from_the_lan_ends_nothing(world, client, server) {
        server.passes(syn(5000).mss(world.mss()).ts(1, 0));
        client.passes(syn_ack(9000, 5001).mss(world.mss()).ts(7, 1));
        server.passes(ack(5001, 9001).ts(2, 7));
        server.passes(data(5001, 9001, 100).ts(3, 7));
        for _ in 0..2 {
            // Repeated because the answer was late, and late itself.
            server.passes(syn(5000).mss(world.mss()).ts(1, 0));
            world.has_flows(0, 1);
            // Longer than a connection may wait for its SYN-ACK.
            world.after_secs(1000);
            client.passes(ack(9001, 5101).ts(8, 3));
            server.passes(data(5101, 9001, 100).ts(4, 7));
        }
        // A host that has forgotten the connection begins another.
        server.passes(syn(7000).mss(world.mss()).ts(5, 0));
        client.passes(ack(9001, 5201).ts(9, 4));
        server.passes(rst(5201));
    }
    fn a_signed_connection_whose_server_has_forgotten_one_of_the_same_ends_is_judged_by_its_own_numbers(world, client, server) {
        let signed = |segment: Seg| segment.raw(&[19, 18, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 1, 1]);
        client.passes(signed(syn(100).mss(1400)));
        server.passes(signed(syn_ack(900, 101).mss(1400)));
        client.passes(signed(ack(101, 901)));
        server.passes(signed(data(901, 101, 100)));
        world.after_secs(300);
        // Both routers have started anew, with the same ports. Anybody may have sent the SYN: it changes nothing.
        client.passes(signed(syn(2_000_000_000).mss(1400)));
        client.sends_in_vain(rst(2_000_000_001), DropReason::BadReset);
        server.passes(signed(data(1001, 101, 100)));
        server.passes(signed(syn_ack(3_000_000_000, 2_000_000_001).mss(1400)));
        client.passes(signed(ack(2_000_000_001, 3_000_000_001)));
        server.passes(signed(data(3_000_000_001, 2_000_000_001, 100)));
        client.passes(signed(rst(2_000_000_001)));
        world.after_secs(125);
        world.has_flows(0, 0);
    }
}
