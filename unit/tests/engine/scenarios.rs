//! The twenty conversations every build must carry, for IPv4 and IPv6, with the SYN cache off and on, with and without
//! VLAN tags, and with the options real hosts send. The first eight are opened from the LAN and pass through;
//! the others are opened from the WAN and proxied.

use std::time::Duration;

use tcpstate::{DropReason, Event};
use unit::in_every_mode;
use unit::script::*;

const LAN_ISN: u32 = 0x1234_5678;
const WAN_ISN: u32 = 0x8765_4321;

/// A connection opened from the LAN up to its last acknowledgement: each of its segments repeated so often.
fn direct(world: &World, wan: &Host, lan: &Host, syns: usize, syn_acks: usize) {
    let linux = Terms::linux(world.mss());
    for _ in 0..syns {
        lan.passes(linux.on(syn(LAN_ISN), (100, 0)));
        world.has_flows(0, 1);
    }
    for _ in 0..syn_acks {
        wan.passes(linux.on(syn_ack(WAN_ISN, LAN_ISN + 1), (200, 100)));
    }
    lan.passes(ack(LAN_ISN + 1, WAN_ISN + 1).nop().nop().ts(101, 200));
    world.has_flows(0, 1);
    assert_eq!(world.happened(Event::Direct), 1, "one connection, however often its SYN was sent");
}

/// Its close, the LAN first: each FIN repeated so often.
fn direct_close(world: &World, wan: &Host, lan: &Host, lan_fins: usize, wan_fins: usize) {
    for _ in 0..lan_fins {
        lan.passes(fin(LAN_ISN + 1, WAN_ISN + 1).nop().nop().ts(102, 200));
    }
    wan.passes(ack(WAN_ISN + 1, LAN_ISN + 2).nop().nop().ts(201, 102));
    for _ in 0..wan_fins {
        wan.passes(fin(WAN_ISN + 1, LAN_ISN + 2).nop().nop().ts(202, 102));
    }
    lan.passes(ack(LAN_ISN + 2, WAN_ISN + 2).nop().nop().ts(103, 202));
    world.has_flows(0, 1);
    world.after_secs(119);
    world.has_flows(0, 1);
    world.after_secs(4);
    world.has_flows(0, 0);
}

in_every_mode! {
    /// 1: a connection from the LAN passes bit by bit, and is forgotten after TIME_WAIT.
    fn three_way_handshake_four_way_fin(world, client, server) {
        direct(&world, &client, &server, 1, 1);
        direct_close(&world, &client, &server, 1, 1);
        assert_eq!(world.all_dropped(), 0);
    }

    /// 2: the LAN resets its own connection.
    fn established_rst_uplink(world, client, server) {
        direct(&world, &client, &server, 1, 1);
        server.passes(rst(LAN_ISN + 1));
        world.after_secs(49);
        world.has_flows(0, 0);
    }

    /// 3: the WAN resets a connection of the LAN.
    fn established_rst_downlink(world, client, server) {
        direct(&world, &client, &server, 1, 1);
        client.passes(rst(WAN_ISN + 1));
        world.after_secs(49);
        world.has_flows(0, 0);
    }

    /// 4: a host of the LAN meets a closed port.
    fn closed_port(world, client, server) {
        server.passes(Terms::linux(world.mss()).on(syn(LAN_ISN), (100, 0)));
        client.passes(rst_ack(0, LAN_ISN + 1));
        world.after_secs(49);
        world.has_flows(0, 0);
    }

    /// 5: the LAN repeats its SYN.
    fn three_way_handshake_ulretransmit(world, client, server) {
        direct(&world, &client, &server, 2, 1);
        direct_close(&world, &client, &server, 1, 1);
    }

    /// 6: the WAN repeats its SYN-ACK.
    fn three_way_handshake_dlretransmit(world, client, server) {
        direct(&world, &client, &server, 1, 2);
        direct_close(&world, &client, &server, 1, 1);
    }

    /// 7: the LAN repeats its FIN.
    fn three_way_handshake_finulretransmit(world, client, server) {
        direct(&world, &client, &server, 1, 1);
        direct_close(&world, &client, &server, 2, 1);
    }

    /// 8: the WAN repeats its FIN.
    fn three_way_handshake_findlretransmit(world, client, server) {
        direct(&world, &client, &server, 1, 1);
        direct_close(&world, &client, &server, 1, 2);
    }

    /// 9: a client proves itself, the server gets its SYN, both send data, both close. In full here; `open` repeats it.
    fn syn_proxy_handshake(world, client, server) {
        let (isn, mss) = (CLIENT_ISN, world.mss());

        // The SYN is answered by the box: window zero, and no option that was not offered.
        client.sends(syn(isn).window(64240).mss(mss).sack_ok().ts(CLIENT_TS, 0).nop().wscale(7));
        let offered = client.gets(syn_ack(ANY, isn + 1).window(0).mss(mss).sack_ok().ts(ANY, CLIENT_TS).wscale(7));
        server.gets(nothing());
        world.has_flows(0, 0);
        assert_eq!(world.population().syn_cached, u64::from(world.mode().cache));
        let (cookie, stamp) = (offered.seq, offered.ts().expect("timestamps were offered").0);

        // The cookie comes back: now the server gets a SYN, with the client's own options.
        client.sends(ack(isn + 1, cookie + 1).nop().nop().ts(CLIENT_TS + 1, stamp));
        client.gets(nothing());
        let server_syn = server.gets(
            segment(SYN, isn, 0).any_window().mss_up_to(mss).sack_ok().ts(CLIENT_TS + 1, 0).wscale(7).ttl(CLIENT_TTL),
        );
        // The client has room for 502 << 7 bytes; the window of a SYN is not scaled (RFC 7323 section 2.2).
        assert!((1..=502 << 7).contains(&u32::from(server_syn.window)), "a SYN window of {}", server_syn.window);
        world.has_flows(1, 0);
        assert_eq!(world.population().syn_cached, 0);
        let proof = if world.mode().cache { Event::CacheHit } else { Event::CookieGood };
        assert_eq!((world.happened(proof), world.happened(Event::Dialled)), (1, 1));

        // The server answers; it gets its acknowledgement, and the client its window: 65160 bytes, in units of 128.
        server.sends(
            syn_ack(SERVER_ISN, isn + 1).window(65160).mss(mss).sack_ok().ts(SERVER_TS, CLIENT_TS + 1).nop().wscale(7),
        );
        let update = client.gets(ack(cookie + 1, isn + 1).window(509).ts(ANY, CLIENT_TS + 1));
        if !world.mode().cache {
            // A cookie tells nothing of its client's distance: the box probes it, and the answer is the acknowledgement.
            client.gets(ack(cookie, isn + 1).window(509).ts(ANY, CLIENT_TS + 1));
            server.gets(nothing());
            client.sends(ack(isn + 1, cookie + 1).nop().nop().ts(CLIENT_TS + 1, update.ts().unwrap().0));
        }
        server.gets(ack(isn + 1, SERVER_ISN + 1).any_window().ts(CLIENT_TS + 1, SERVER_TS));
        assert_eq!(world.happened(Event::Spliced), 1);
        let shift = update.ts().expect("timestamps were agreed").0.wrapping_sub(SERVER_TS);
        assert!((update.ts().unwrap().0.wrapping_sub(stamp) as i32) >= 0, "timestamps must not run backward");

        // From now on only numbers change.
        client.sends(data(isn + 1, cookie + 1, 100).nop().nop().ts(CLIENT_TS + 2, SERVER_TS.wrapping_add(shift)));
        server.gets(data(isn + 1, SERVER_ISN + 1, 100).ts(CLIENT_TS + 2, SERVER_TS).ttl(CLIENT_TTL));
        server.sends(data(SERVER_ISN + 1, isn + 101, 50).nop().nop().ts(SERVER_TS + 9, CLIENT_TS + 2));
        client.gets(
            data(cookie + 1, isn + 101, 50).ts((SERVER_TS + 9).wrapping_add(shift), CLIENT_TS + 2).ttl(SERVER_TTL),
        );
        let stamps_in = (CLIENT_TS + 3, (SERVER_TS + 9).wrapping_add(shift));
        client.sends(fin(isn + 101, cookie + 51).nop().nop().ts(stamps_in.0, stamps_in.1));
        server.gets(fin(isn + 101, SERVER_ISN + 51).ts(CLIENT_TS + 3, SERVER_TS + 9));
        server.sends(fin(SERVER_ISN + 51, isn + 102).nop().nop().ts(SERVER_TS + 10, CLIENT_TS + 3));
        client.gets(fin(cookie + 51, isn + 102).ts((SERVER_TS + 10).wrapping_add(shift), CLIENT_TS + 3));
        client.sends(ack(isn + 102, cookie + 52).nop().nop().ts(CLIENT_TS + 4, (SERVER_TS + 10).wrapping_add(shift)));
        server.gets(ack(isn + 102, SERVER_ISN + 52).ts(CLIENT_TS + 4, SERVER_TS + 10));

        world.has_flows(1, 0);
        world.after_secs(119);
        world.has_flows(1, 0);
        world.after_secs(4);
        world.has_flows(0, 0);
    }

    /// 10: the client repeats its SYN.
    fn syn_proxy_handshake_2_1_1(world, client, server) {
        let linux = Terms::linux(world.mss());
        client.sends(linux.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        world.after_secs(1);
        let joined = open(&client, &server, linux, linux);
        Transfer::new(&client, &server, joined).closes_from_the_server();
        assert_eq!(world.happened(Event::Dialled), 1);
    }

    /// 11: the client repeats its acknowledgement before the server has answered; the server gets the SYN again.
    fn syn_proxy_handshake_1_2_1(world, client, server) {
        let linux = Terms::linux(world.mss());
        client.sends(linux.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        let stamp = offered.ts().unwrap().0;
        let proof = ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, stamp);
        client.sends(proof.clone());
        let first = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        client.sends(proof);
        let again = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        client.gets(nothing());
        assert_eq!((first.options, first.window), (again.options.clone(), again.window));
        world.has_flows(1, 0);
        let joined = answer(&client, &server, linux, CLIENT_ISN, SERVER_ISN, offered, again);
        Transfer::new(&client, &server, joined).closes_from_the_client();
    }

    /// 12: the server repeats its SYN-ACK, which means that it has not seen our acknowledgement.
    fn syn_proxy_handshake_1_1_2(world, client, server) {
        let linux = Terms::linux(world.mss());
        let joined = open(&client, &server, linux, linux);
        server.sends(linux.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 1)));
        server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window().ts(CLIENT_TS + 1, ANY));
        client.gets(nothing());
        Transfer::new(&client, &server, joined).closes_from_the_server();
        assert_eq!(world.happened(Event::Spliced), 1);
    }

    /// 13: the client's acknowledgement was lost, its keepalive opens the connection; the server repeats its SYN-ACK.
    fn syn_proxy_handshake_1_1_1_keepalive(world, client, server) {
        let linux = Terms::linux(world.mss());
        let joined = open_by(&client, &server, linux, Opening::Keepalive);
        server.sends(linux.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 1)));
        server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window().ts(CLIENT_TS + 1, ANY));
        client.gets(nothing());
        Transfer::new(&client, &server, joined).closes_from_the_server();
        world.has_flows(1, 0);
    }

    /// 14: the client's acknowledgement was lost, its zero-window probe opens the connection.
    fn syn_proxy_handshake_1_1_1_zerowindowprobe(world, client, server) {
        let linux = Terms::linux(world.mss());
        let joined = open_by(&client, &server, linux, Opening::Probe);
        let mut transfer = Transfer::new(&client, &server, joined);
        // No end has taken the probe's byte, so it comes again.
        transfer.client(PSH, 1);
        transfer.server(0, 0);
        transfer.closes_from_the_server();
        world.has_flows(1, 0);
    }

    /// 15: the port is closed, and the client gets a reset with a number it accepts.
    fn syn_proxy_closed_port(world, client, server) {
        let linux = Terms::linux(world.mss());
        client.sends(linux.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        server.sends(rst_ack(0, CLIENT_ISN + 1));
        client.gets(rst(offered.seq + 1).any_window());
        server.gets(nothing());
        assert_eq!(world.happened(Event::Refused), 1);
        // The server gets no further SYN.
        world.after_secs(49);
        world.has_flows(0, 0);
    }

    /// 16: 10000 full segments to the client, each acknowledged, however the connection was opened.
    fn syn_proxy_uplink(world, client, server) {
        let len = usize::from(world.mss()) - 12;
        three_passes(&world, &client, &server, |transfer| {
            for _ in 0..10_000 {
                transfer.server(0, len);
                transfer.client(0, 0);
            }
        });
    }

    /// 17: 10000 full segments to the server.
    fn syn_proxy_downlink(world, client, server) {
        let len = usize::from(world.mss()) - 12;
        three_passes(&world, &client, &server, |transfer| {
            for _ in 0..10_000 {
                transfer.client(0, len);
                transfer.server(0, 0);
            }
        });
    }

    /// 18: both directions in turn, 100 segments at a time.
    fn syn_proxy_uplink_downlink(world, client, server) {
        let linux = Terms::linux(world.mss());
        let len = usize::from(world.mss()) - 12;
        let mut transfer = Transfer::new(&client, &server, open(&client, &server, linux, linux));
        for _ in 0..100 {
            for _ in 0..100 {
                transfer.server(0, len);
                transfer.client(0, 0);
            }
            for _ in 0..100 {
                transfer.client(0, len);
                transfer.server(0, 0);
            }
            world.after(Duration::from_micros(100));
        }
        transfer.closes_from_the_client();
        assert_eq!(world.all_dropped(), world.dropped(DropReason::Consumed), "nothing of the traffic is dropped");
    }

    /// 19: the server resets; its number is translated.
    fn syn_proxy_rst_uplink(world, client, server) {
        let linux = Terms::linux(world.mss());
        let j = open(&client, &server, linux, linux);
        server.sends(rst_ack(j.s(0), j.c(0)));
        client.gets(rst_ack(j.o(0), j.c(0)));
        server.gets(nothing());
        world.after_secs(49);
        world.has_flows(0, 0);
    }

    /// 20: the client resets; its number passes unchanged.
    fn syn_proxy_rst_downlink(world, client, server) {
        let linux = Terms::linux(world.mss());
        let j = open(&client, &server, linux, linux);
        client.sends(rst(j.c(0)));
        server.gets(rst(j.c(0)));
        client.gets(nothing());
        world.after_secs(49);
        world.has_flows(0, 0);
    }
}

/// How the client's first packet after the SYN-ACK looks.
#[derive(Clone, Copy, Debug)]
enum Opening {
    /// An acknowledgement.
    Plain,
    /// A keepalive: one number below the first byte, no data.
    Keepalive,
    /// A zero-window probe: the first byte.
    Probe,
}

fn open_by(client: &Host, server: &Host, terms: Terms, opening: Opening) -> Joined {
    client.sends(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
    let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
    let first = match opening {
        Opening::Plain => ack(CLIENT_ISN + 1, offered.seq + 1),
        Opening::Keepalive => ack(CLIENT_ISN, offered.seq + 1),
        Opening::Probe => ack(CLIENT_ISN + 1, offered.seq + 1).payload(1),
    };
    client.sends(first.nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0));
    client.gets(nothing());
    let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options().ttl(CLIENT_TTL));
    answer(client, server, terms, CLIENT_ISN, SERVER_ISN, offered, server_syn)
}

fn three_passes(world: &World, client: &Host, server: &Host, traffic: impl Fn(&mut Transfer)) {
    let linux = Terms::linux(world.mss());
    for (i, opening) in [Opening::Plain, Opening::Keepalive, Opening::Probe].into_iter().enumerate() {
        let (client, server) =
            if i == 0 { (client.clone(), server.clone()) } else { world.on_port(CLIENT_PORT + i as u16) };
        let mut transfer = Transfer::new(&client, &server, open_by(&client, &server, linux, opening));
        traffic(&mut transfer);
        transfer.closes_from_the_client();
    }
    world.has_flows(3, 0);
    world.after_secs(125);
    world.has_flows(0, 0);
}
