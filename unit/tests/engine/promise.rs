//! A proxied connection is like a direct one: when the server gets the handshake's last ACK, what a client may send
//! before, what is learned of servers and promised in their name, which ports are closed, what is passed and adopted,
//! and who may take whose place.

use std::time::Duration;

use tcpstate::config::{Action, Destination, EarlyEcho, Extension as Policed, Handshake, RateLimit, Stray};
use tcpstate::{DropReason, Event, Side};
use unit::in_every_mode;
use unit::script::*;

/// The timestamps of a client's segment behind this SYN-ACK, if it uses any.
fn echoed(offered: &Got) -> Option<(u32, u32)> {
    offered.ts().map(|(value, _)| (CLIENT_TS + 1, value))
}

/// A client sends a SYN and gets the SYN-ACK.
#[track_caller]
fn connect(client: &Host, theirs: Terms, isn: u32) -> Got {
    client.sends(theirs.on(syn(isn), (CLIENT_TS, 0)));
    client.gets(syn_ack(ANY, isn.wrapping_add(1)).any_window().any_options())
}

/// A client sends a SYN, gets the SYN-ACK, and proves itself so many milliseconds later: the SYN-ACK, and the SYN to the server.
#[track_caller]
fn prove_from(world: &World, client: &Host, server: &Host, theirs: Terms, distance: u64) -> (Got, Got) {
    let offered = connect(client, theirs, CLIENT_ISN);
    world.after_ms(distance);
    client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
    client.gets(nothing());
    let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
    (offered, server_syn)
}

/// A server's SYN-ACK for this SYN: of its options those it was asked for.
fn answer_to(server_syn: &Got, ours: Terms) -> Seg {
    let agreed = Terms {
        wscale: ours.wscale.filter(|_| server_syn.wscale().is_some()),
        sack: ours.sack && server_syn.sack_ok(),
        ts: ours.ts && server_syn.ts().is_some(),
        ..ours
    };
    agreed.on(syn_ack(SERVER_ISN, server_syn.seq + 1), (SERVER_TS, server_syn.ts().map_or(0, |(value, _)| value)))
}

/// How many milliseconds pass until something comes out at a host; `None` if nothing does for so long.
fn waits(world: &World, host: &Host, most: u64) -> Option<u64> {
    let start = world.now();
    for _ in 0..=most {
        if host.has_more() {
            return Some(world.now().since(start).as_millis() as u64);
        }
        world.after_ms(1);
    }
    None
}

/// The window update a client gets when its server has answered, its number and what it acknowledges.
#[track_caller]
fn update(client: &Host, offered: &Got) -> Got {
    let told = client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
    // A cookie tells nothing of its client's distance: the box probes it.
    if !client.mode().cache && client.has_more() {
        client.gets(ack(offered.seq, CLIENT_ISN + 1).any_window().any_options());
    }
    told
}

/// The handshake's last acknowledgement, from us or from the client.
#[track_caller]
fn last_acknowledgement(server: &Host) -> Got {
    server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window().any_options())
}

/// The client of a connection acknowledges, so that nothing need be repeated to it.
#[track_caller]
fn shows_itself(client: &Host, server: &Host, j: &Joined) {
    let stamps = |echo| j.server_syn.ts().map(|_| (CLIENT_TS + 1, echo));
    client.sends(ack(j.c(0), j.o(0)).maybe_ts(stamps(j.ts_out(SERVER_TS))));
    server.gets(ack(j.c(0), j.s(0)).any_options());
}

/// A connection two Linux hosts have opened.
fn linux(world: &World, client: &Host, server: &Host) -> Transfer {
    let terms = Terms::linux(world.mss());
    Transfer::new(client, server, open(client, server, terms, terms))
}

// ---- honest: the server gets the handshake's last ACK when the client's own could have come ----

in_every_mode! {
    fn a_server_is_acknowledged_when_its_clients_distance_has_passed(world, client, server) {
        let _ = (client, server);
        let mss = world.mss();
        for (n, distance) in [10, 50, 123, 300, 650].into_iter().enumerate() {
            for (m, theirs) in [Terms::linux(mss), Terms::windows(mss)].into_iter().enumerate() {
                let (client, server) = world.on_port(100 + 10 * n as u16 + m as u16);
                let (offered, server_syn) = prove_from(&world, &client, &server, theirs, distance);
                server.sends(answer_to(&server_syn, Terms::linux(mss)));
                update(&client, &offered);
                client.gets(nothing());
                let waited = waits(&world, &server, 2000).expect("the server is acknowledged");
                last_acknowledgement(&server);
                // Of a client that proved itself by a cookie the distance is not known, and this one does not answer the probe.
                let expected = if world.mode().cache { distance } else { 700 };
                assert!(waited.abs_diff(expected) <= 4, "{waited} ms, where the client is {distance} ms away");
                // The client's own comes later, and nothing of ours with it.
                client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
                last_acknowledgement(&server);
                world.after_secs(5);
            }
        }
        assert_eq!(world.happened(Event::AckWithheld), 10);
    }

    fn the_box_does_not_wait_for_a_nearby_client(world, client, server) {
        let (offered, server_syn) = prove_from(&world, &client, &server, Terms::linux(world.mss()), 0);
        server.sends(answer_to(&server_syn, Terms::linux(world.mss())));
        let known = world.mode().cache;
        if known {
            last_acknowledgement(&server);
        }
        update(&client, &offered);
        assert_eq!(world.happened(Event::AckWithheld), u64::from(!known));
        server.gets(nothing());
    }

    fn a_client_of_unknown_distance_is_probed(world, client, server) {
        let _ = (client, server);
        let mss = world.mss();
        // A cookie tells no time, and most of a second is no round trip.
        for (port, theirs, distance, known) in [
            (1, Terms::windows(mss), 50, world.mode().cache),
            (4, Terms::linux(mss), 50, world.mode().cache),
            (2, Terms::linux(mss), 900, false),
            (3, Terms::windows(mss), 900, false),
        ] {
            let (client, server) = world.on_port(port);
            let (offered, server_syn) = prove_from(&world, &client, &server, theirs, distance);
            server.sends(answer_to(&server_syn, Terms::linux(mss)));
            let told = client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
            if known {
                client.gets(nothing());
                assert_eq!(waits(&world, &server, 2000).map(|waited| waited.abs_diff(distance) <= 4), Some(true));
                last_acknowledgement(&server);
            } else {
                // RFC 9293 section 3.10.7.4: what lies below the window is answered with an acknowledgement.
                let stamps = told.ts().map(|(value, _)| (value, told.ts().unwrap().1));
                client.gets(ack(offered.seq, CLIENT_ISN + 1).window(told.window).maybe_ts(stamps));
                server.gets(nothing());
                world.after_ms(distance.min(600));
                client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
                last_acknowledgement(&server);
            }
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
            last_acknowledgement(&server);
            world.after_secs(5);
        }
    }

    fn a_server_is_acknowledged_before_it_repeats_its_syn_ack(world, client, server) {
        let _ = (client, server);
        let mss = world.mss();
        for distance in (0..2000).step_by(150) {
            for (m, theirs) in [Terms::linux(mss), Terms::windows(mss)].into_iter().enumerate() {
                let (client, server) = world.on_port(100 + distance as u16 + m as u16);
                let (offered, server_syn) = prove_from(&world, &client, &server, theirs, distance);
                server.sends(answer_to(&server_syn, Terms::linux(mss)));
                update(&client, &offered);
                if client.has_more() {
                    client.gets(ack(offered.seq, CLIENT_ISN + 1).any_window().any_options());
                }
                let waited = waits(&world, &server, 2000).expect("the server is acknowledged");
                assert!(waited <= 710, "{waited} ms, where the client is {distance} ms away");
                last_acknowledgement(&server);
                client.sends(rst(CLIENT_ISN + 1));
                server.gets(rst(CLIENT_ISN + 1));
            }
        }
    }

    fn whatever_the_client_sends_first_is_the_acknowledgement(world, client, server) {
        let _ = (client, server);
        let mss = world.mss();
        let terms = Terms::linux(mss);
        // The last is a segment that was sent after one that is lost.
        let kinds = [(PSH, 0, 100), (0, 0, 0), (FIN, 0, 0), (PSH | FIN, 0, 7), (PSH, 100, 50)];
        for (port, (flags, at, len)) in (1..).zip(kinds) {
            let first = |peer| segment(ACK | flags, CLIENT_ISN + 1 + at, peer).payload(len);
            let (client, server) = world.on_port(port);
            let (offered, server_syn) = prove_from(&world, &client, &server, terms, 200);
            server.sends(answer_to(&server_syn, terms));
            update(&client, &offered);
            client.gets(nothing());
            world.after_ms(50);
            client.sends(first(offered.seq + 1).maybe_ts(echoed(&offered)));
            server.gets(first(SERVER_ISN + 1).maybe_ts(Some((CLIENT_TS + 1, SERVER_TS))));
            // No second one comes, and no update is repeated to one that has shown itself.
            world.after_secs(20);
            assert_eq!(world.happened(Event::UpdateRepeated), 0);
        }
    }

    fn a_lost_acknowledgement_is_given_again_for_each_syn_ack_the_server_repeats(world, client, server) {
        let terms = Terms::linux(world.mss());
        let (offered, server_syn) = prove_from(&world, &client, &server, terms, 100);
        let answer = answer_to(&server_syn, terms);
        server.sends(answer.clone());
        update(&client, &offered);
        assert!(waits(&world, &server, 750).is_some());
        last_acknowledgement(&server);
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
        last_acknowledgement(&server);
        for pause in [1, 2, 4] {
            world.after_secs(pause);
            server.sends(answer.clone());
            let again = last_acknowledgement(&server);
            assert_eq!(again.ts().map(|(_, echo)| echo), Some(SERVER_TS));
            client.gets(nothing());
        }
        assert_eq!(world.happened(Event::AnswerRepeated), 3);
    }

    fn a_syn_ack_repeated_too_soon_is_acknowledged_at_once_and_only_once(world, client, server) {
        let terms = Terms::linux(world.mss());
        let (offered, server_syn) = prove_from(&world, &client, &server, terms, 500);
        let answer = answer_to(&server_syn, terms);
        server.sends(answer.clone());
        update(&client, &offered);
        world.after_ms(200);
        server.sends(answer);
        last_acknowledgement(&server);
        client.gets(nothing());
        // The client has sent nothing, so it may get the update again; the server gets nothing.
        assert_eq!(waits(&world, &server, 0), None);
        world.tick(Duration::from_millis(600));
        server.gets(nothing());
        world.discard();
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
        last_acknowledgement(&server);
        world.after_secs(5);
    }

    fn with_an_empty_pool_the_servers_own_repetition_brings_the_acknowledgement(world, client, server) {
        let terms = Terms::linux(world.mss());
        for (port, distance) in [(1, 100), (2, 900)] {
            let (client_, server_) = world.on_port(port);
            let (offered, server_syn) = prove_from(&world, &client_, &server_, terms, distance);
            world.spare_frames(0);
            let answer = answer_to(&server_syn, terms);
            server_.sends(answer.clone());
            update(&client_, &offered);
            world.after_ms(999);
            server_.sends(answer);
            last_acknowledgement(&server_);
            assert!(world.happened(Event::NoSpareFrame) > 0);
            world.spare_frames(usize::MAX);
            client_.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
            last_acknowledgement(&server_);
            world.after_secs(20);
        }
        let _ = (client, server);
    }

    fn a_client_that_resets_before_the_acknowledgement_ends_it(world, client, server) {
        let terms = Terms::linux(world.mss());
        let (offered, server_syn) = prove_from(&world, &client, &server, terms, 300);
        server.sends(answer_to(&server_syn, terms));
        update(&client, &offered);
        world.after_ms(100);
        client.sends(rst(CLIENT_ISN + 1));
        // The server accepts the connection, and sees it reset.
        server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window().any_options());
        server.gets(rst(CLIENT_ISN + 1));
        // Neither end gets any more.
        world.after_secs(60);
        world.has_flows(0, 0);
    }

    fn a_client_that_sends_fin_before_the_acknowledgement_closes_as_any_other(world, client, server) {
        let terms = Terms::linux(world.mss());
        let (offered, server_syn) = prove_from(&world, &client, &server, terms, 300);
        server.sends(answer_to(&server_syn, terms));
        update(&client, &offered);
        client.sends(fin(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
        server.gets(fin(CLIENT_ISN + 1, SERVER_ISN + 1).maybe_ts(Some((CLIENT_TS + 1, SERVER_TS))));
        world.after_secs(5);
        server.sends(fin(SERVER_ISN + 1, CLIENT_ISN + 2).maybe_ts(Some((SERVER_TS + 5000, CLIENT_TS + 1))));
        client.gets(fin(offered.seq + 1, CLIENT_ISN + 2).any_options());
        client.sends(ack(CLIENT_ISN + 2, offered.seq + 2).maybe_ts(echoed(&offered)));
        server.gets(ack(CLIENT_ISN + 2, SERVER_ISN + 2).any_options());
        world.after_secs(130);
        world.has_flows(0, 0);
    }

    fn a_server_may_send_before_it_is_acknowledged(world, client, server) {
        // With TCP_DEFER_ACCEPT or Fast Open a server's data may be under way already.
        let terms = Terms::linux(world.mss());
        let (offered, server_syn) = prove_from(&world, &client, &server, terms, 300);
        server.sends(answer_to(&server_syn, terms));
        update(&client, &offered);
        server.sends(data(SERVER_ISN + 1, CLIENT_ISN + 1, 400).maybe_ts(Some((SERVER_TS + 1, CLIENT_TS + 1))));
        let banner = client.gets(data(offered.seq + 1, CLIENT_ISN + 1, 400).any_options());
        let stamps = Some((CLIENT_TS + 2, banner.ts().unwrap().0));
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 401).maybe_ts(stamps));
        server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 401).maybe_ts(Some((CLIENT_TS + 2, SERVER_TS + 1))));
        world.after_secs(20);
    }
}

// ---- early: the client may send at once, and what it sends waits for the server ----

/// A world whose clients may send before their servers have answered.
fn early(world: &World) -> (World, Host, Host) {
    let change =
        |config: &mut tcpstate::Config| (config.handshake, config.early_echo) = (Handshake::Early, EarlyEcho::None);
    world.mode().world_with(change)
}

/// Has the box meet the server on another port of the client's: its window is known from then on.
#[track_caller]
fn acquaint(world: &World, ours: Terms) {
    let (client, server) = world.on_port(7);
    let offered = connect(&client, Terms::linux(world.mss()), CLIENT_ISN);
    assert_eq!(offered.window, 0, "of a server nothing is known of nothing is promised");
    client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
    let server_syn = gets_two_syns(&server, CLIENT_ISN);
    server.sends(answer_to(&server_syn, ours));
    update(&client, &offered);
    last_acknowledgement(&server);
    client.sends(rst(CLIENT_ISN + 1));
    server.gets(rst(CLIENT_ISN + 1));
    // Nothing is left of the connection but what it taught.
    world.after_secs(50);
    world.has_flows(0, 0);
}

/// A server with early handshakes gets two SYNs, which are the same.
#[track_caller]
fn gets_two_syns(server: &Host, isn: u32) -> Got {
    let [first, second] = [(); 2].map(|()| server.gets(segment(SYN, isn, 0).any_window().any_options()));
    assert_eq!((first.ack, first.window, &first.options), (second.ack, second.window, &second.options));
    second
}

/// A client of a known server connects, and proves itself by so many bytes of data.
#[track_caller]
fn connects_with_data(client: &Host, server: &Host, theirs: Terms, len: usize) -> (Got, Got) {
    let offered = connect(client, theirs, CLIENT_ISN);
    client.sends(data(CLIENT_ISN + 1, offered.seq + 1, len).maybe_ts(echoed(&offered)));
    client.gets(nothing());
    let server_syn = gets_two_syns(server, CLIENT_ISN);
    (offered, server_syn)
}

/// `len` bytes of the client's stream from `at` on, as it sends them behind a SYN-ACK.
fn theirs_at(offered: &Got, at: u32, len: usize) -> Seg {
    data((CLIENT_ISN + 1).wrapping_add(at), offered.seq + 1, len).maybe_ts(echoed(offered))
}

/// The same as the server must get it, which has stamped its SYN-ACK if that is so.
fn ours_at(server_syn: &Got, at: u32, len: usize) -> Seg {
    data(CLIENT_ISN + 1 + at, SERVER_ISN + 1, len).maybe_ts(server_syn.ts().map(|_| (CLIENT_TS + 1, SERVER_TS)))
}

in_every_mode! {
    fn the_early_window_is_what_the_server_granted_last_and_no_more_than_configured(world, client, server) {
        let _ = (client, server);
        let windows = [(64_240, 16_384, 16_384), (5000, 16_384, 5000), (0, 16_384, 0), (64_240, 1001, 1001)];
        for (granted, most, promised) in windows {
            let (world, client, _) = world.mode().world_with(|config| {
                (config.handshake, config.early_echo) = (Handshake::Early, EarlyEcho::None);
                config.early_window = most;
            });
            let ours = Terms { window: granted, ..Terms::linux(world.mss()) };
            acquaint(&world, ours);
            for theirs in [Terms::linux(world.mss()), Terms::windows(world.mss()), Terms::bare(536)] {
                client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
                // Windows that are scaled later are counted in units of 2^7.
                let promised = if theirs.wscale.is_some() { promised >> 7 << 7 } else { promised };
                client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(promised).any_options());
            }
        }
    }

    fn a_server_that_grants_the_same_takes_nothing_of_the_early_window_back(world, client, server) {
        let _ = (client, server);
        // The second is no multiple of any scale, the third lies below the unit of the largest.
        for (granted, wscale) in [(4992, 7), (5001, 7), (5001, 13), (5001, 0), (65_535, 9)] {
            let (world, ..) = world.mode().world_with(|config| {
                (config.handshake, config.early_echo) = (Handshake::Early, EarlyEcho::None);
                config.early_window = u16::MAX;
            });
            let ours = Terms { window: granted, wscale: Some(wscale), ..Terms::linux(world.mss()) };
            acquaint(&world, ours);
            for (port, theirs) in [(1, Terms::linux(world.mss())), (2, Terms::windows(world.mss())), (3, Terms::bare(536))] {
                let (client, server) = world.on_port(port);
                let offered = connect(&client, theirs, CLIENT_ISN);
                client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
                let server_syn = gets_two_syns(&server, CLIENT_ISN);
                server.sends(answer_to(&server_syn, ours));
                let told = |got: &Got| u32::from(got.window) << offered.wscale().unwrap_or(0);
                let first = update(&client, &offered);
                assert!(told(&first) >= offered.window.into(), "{} after {}", told(&first), offered.window);
                last_acknowledgement(&server);
                // The same in a scaled field.
                let field = granted >> server_syn.wscale().map_or(0, |_| wscale);
                let stamps = server_syn.ts().map(|_| (SERVER_TS + 1, CLIENT_TS + 1));
                server.sends(ack(SERVER_ISN + 1, CLIENT_ISN + 1).window(field).maybe_ts(stamps));
                let second = client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
                assert!(told(&second) >= offered.window.into(), "{} after {}", told(&second), offered.window);
                // Nor is there less than the units demand.
                let unit = server_syn.wscale().map_or(0, |_| wscale.max(offered.wscale().unwrap_or(0)));
                assert_eq!(offered.window, granted >> unit << unit);
            }
        }
    }

    fn another_port_of_a_known_server_is_an_unknown_server(world, client, server) {
        let _ = (client, server);
        let (world, client, _) = early(&world);
        acquaint(&world, Terms::linux(world.mss()));
        let elsewhere = world.host(Side::Wan, FlowKey { dport: SERVER_PORT + 1, ..client.ends() });
        assert_eq!(connect(&elsewhere, Terms::linux(world.mss()), CLIENT_ISN).window, 0);
        assert_eq!(connect(&client, Terms::linux(world.mss()), CLIENT_ISN).window, 16_384);
    }

    fn each_destination_has_its_own_handshake(world, client, server) {
        let _ = (client, server);
        let v4 = world.mode().family == Family::V4;
        let address = if v4 { [0, 0, 0xffff, 0xc000_020a] } else { [0x2600_0db8, 0xffff_0001, 0, 10] };
        let rule = |prefix, port, handshake| Destination { address, prefix, port, handshake };
        let net = if v4 { 120 } else { 64 };
        for (rules, is_early) in [
            (vec![rule(net, None, Handshake::Early)], true),
            (vec![rule(net, None, Handshake::Early), rule(128, None, Handshake::Honest)], false),
            (vec![rule(128, None, Handshake::Honest), rule(128, Some(SERVER_PORT), Handshake::Early)], true),
            (vec![rule(128, Some(SERVER_PORT + 1), Handshake::Early)], false),
        ] {
            let (world, client, server) = world.mode().world_with(|config| config.destinations = rules);
            let terms = Terms::linux(world.mss());
            let (first, first_server) = world.on_port(7);
            let offered = connect(&first, terms, CLIENT_ISN);
            first.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
            let server_syn = first_server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
            if is_early {
                first_server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
            }
            first_server.sends(answer_to(&server_syn, terms));
            update(&first, &offered);
            assert!(waits(&world, &first_server, 750).is_some());
            last_acknowledgement(&first_server);
            assert_eq!(connect(&client, terms, CLIENT_ISN).window, if is_early { 16_384 } else { 0 });
            server.gets(nothing());
        }
    }

    fn data_before_the_server_has_answered_is_delivered_once_and_in_order(world, client, server) {
        let _ = (client, server);
        let (world, ..) = early(&world);
        let mss = world.mss();
        acquaint(&world, Terms::linux(mss));
        for (port, theirs) in [(1, Terms::linux(mss)), (2, Terms::windows(mss))] {
            let (client, server) = world.on_port(port);
            let (offered, server_syn) = connects_with_data(&client, &server, theirs, 100);
            for (at, len) in [(100, 1000), (1100, 1), (1101, 700)] {
                client.sends(theirs_at(&offered, at, len));
                // Again, as its timer may have it.
                client.sends_in_vain(theirs_at(&offered, at, len), DropReason::NotHeld);
            }
            client.sends_in_vain(theirs_at(&offered, 0, 100), DropReason::NotHeld);
            world.after_ms(5);
            server.sends(answer_to(&server_syn, Terms::linux(mss)));
            update(&client, &offered);
            last_acknowledgement(&server);
            client.gets(nothing());
            for (at, len) in [(0, 100), (100, 1000), (1100, 1), (1101, 700)] {
                let got = server.gets(ours_at(&server_syn, at, len).any_window());
                assert_eq!(got.ttl, CLIENT_TTL);
            }
            server.gets(nothing());
            // The second SYN opens no further connection.
            server.sends(answer_to(&server_syn, Terms::linux(mss)));
            server.gets(ack(CLIENT_ISN + 1802, SERVER_ISN + 1).any_window().any_options());
            client.gets(nothing());
            let stamps = server_syn.ts().map(|_| (SERVER_TS + 3, CLIENT_TS + 1));
            server.sends(data(SERVER_ISN + 1, CLIENT_ISN + 1802, 50).maybe_ts(stamps));
            client.gets(data(offered.seq + 1, CLIENT_ISN + 1802, 50).any_options().any_window());
        }
        assert_eq!((world.happened(Event::Held), world.happened(Event::Released)), (8, 8));
    }

    fn data_that_comes_after_the_proof_is_held_too(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = early(&world);
        let terms = Terms::linux(world.mss());
        acquaint(&world, terms);
        let offered = connect(&client, terms, CLIENT_ISN);
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
        let server_syn = gets_two_syns(&server, CLIENT_ISN);
        // Out of order, the last with FIN.
        client.sends(theirs_at(&offered, 300, 200).flags(FIN));
        client.sends(theirs_at(&offered, 0, 300));
        server.gets(nothing());
        client.gets(nothing());
        server.sends(answer_to(&server_syn, terms));
        update(&client, &offered);
        last_acknowledgement(&server);
        let mut got = [server.gets(anything()), server.gets(anything())];
        server.gets(nothing());
        got.sort_by_key(|got| got.seq.wrapping_sub(CLIENT_ISN));
        assert_eq!(got.each_ref().map(|g| (g.seq, g.ack, g.flags)), [
            (CLIENT_ISN + 1, SERVER_ISN + 1, PSH | ACK),
            (CLIENT_ISN + 301, SERVER_ISN + 1, PSH | ACK | FIN),
        ]);
        assert_eq!(got.map(|g| g.payload.len()), [300, 200]);
        // It closes as any other.
        server.sends(fin(SERVER_ISN + 1, CLIENT_ISN + 502).maybe_ts(Some((SERVER_TS + 1, CLIENT_TS + 1))));
        client.gets(fin(offered.seq + 1, CLIENT_ISN + 502).any_options());
        client.sends(ack(CLIENT_ISN + 502, offered.seq + 2).maybe_ts(echoed(&offered)));
        server.gets(ack(CLIENT_ISN + 502, SERVER_ISN + 2).any_options());
        world.after_secs(130);
        world.has_flows(0, 0);
    }

    fn what_reaches_beyond_the_early_window_is_not_held(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = world.mode().world_with(|config| {
            (config.handshake, config.early_echo) = (Handshake::Early, EarlyEcho::None);
            config.early_window = 1000;
        });
        let terms = Terms::linux(world.mss());
        acquaint(&world, terms);
        let (offered, server_syn) = connects_with_data(&client, &server, terms, 600);
        client.sends_in_vain(theirs_at(&offered, 600, 401), DropReason::NotHeld);
        client.sends_in_vain(theirs_at(&offered, 2000, 1), DropReason::NotHeld);
        client.sends_in_vain(theirs_at(&offered, u32::MAX, 1), DropReason::NotHeld);
        client.sends_in_vain(theirs_at(&offered, u32::MAX, 3), DropReason::NotHeld);
        // One that ends at the edge is; its FIN counts one more.
        client.sends_in_vain(theirs_at(&offered, 600, 400).flags(FIN), DropReason::NotHeld);
        client.sends(theirs_at(&offered, 600, 400));
        server.sends(answer_to(&server_syn, terms));
        update(&client, &offered);
        last_acknowledgement(&server);
        server.gets(ours_at(&server_syn, 0, 600));
        server.gets(ours_at(&server_syn, 600, 400));
        // What was dropped the client sends again.
        client.sends(theirs_at(&offered, 1000, 1));
        server.gets(ours_at(&server_syn, 1000, 1));
    }

    fn what_the_servers_window_does_not_take_stays_held_until_it_opens(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = early(&world);
        let terms = Terms::linux(world.mss());
        acquaint(&world, terms);
        let (offered, server_syn) = connects_with_data(&client, &server, terms, 1000);
        client.sends(theirs_at(&offered, 1000, 1000));
        client.sends(theirs_at(&offered, 2000, 1000));
        // It was promised 16384 bytes; the server grants half of what it has sent.
        server.sends(answer_to(&server_syn, Terms { window: 1999, ..terms }));
        update(&client, &offered);
        last_acknowledgement(&server);
        server.gets(ours_at(&server_syn, 0, 1000));
        server.gets(nothing());
        world.after_ms(500);
        // 8 << 7 bytes from 1000 on are 2024.
        let stamps = Some((SERVER_TS + 1, CLIENT_TS + 1));
        server.sends(ack(SERVER_ISN + 1, CLIENT_ISN + 1001).window(8).maybe_ts(stamps));
        client.gets(ack(offered.seq + 1, CLIENT_ISN + 1001).window(8).any_options());
        server.gets(ours_at(&server_syn, 1000, 1000));
        server.gets(nothing());
        world.after_ms(500);
        server.sends(ack(SERVER_ISN + 1, CLIENT_ISN + 2001).window(0).maybe_ts(stamps));
        client.gets(ack(offered.seq + 1, CLIENT_ISN + 2001).window(0).any_options());
        server.gets(nothing());
        world.after_ms(500);
        server.sends(ack(SERVER_ISN + 1, CLIENT_ISN + 2001).window(8).maybe_ts(stamps));
        client.gets(ack(offered.seq + 1, CLIENT_ISN + 2001).window(8).any_options());
        server.gets(ours_at(&server_syn, 2000, 1000));
        server.gets(nothing());
        assert_eq!((world.happened(Event::Held), world.happened(Event::Released)), (3, 3));
    }

    fn a_server_that_opens_no_window_at_all_is_acknowledged_and_given_the_rest_later(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = early(&world);
        let terms = Terms::linux(world.mss());
        acquaint(&world, terms);
        let (offered, server_syn) = connects_with_data(&client, &server, terms, 100);
        server.sends(answer_to(&server_syn, Terms { window: 0, ..terms }));
        let told = update(&client, &offered);
        assert_eq!(told.window, 0);
        last_acknowledgement(&server);
        server.gets(nothing());
        // The client's timer fires: its data is now a probe that the server, not the box, answers.
        server.sends(ack(SERVER_ISN + 1, CLIENT_ISN + 1).window(100).maybe_ts(Some((SERVER_TS + 1, CLIENT_TS + 1))));
        client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).window(100).any_options());
        server.gets(ours_at(&server_syn, 0, 100));
    }

    fn a_server_that_refuses_after_data_was_taken_resets_its_client(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = early(&world);
        let terms = Terms::linux(world.mss());
        acquaint(&world, terms);
        let (offered, _) = connects_with_data(&client, &server, terms, 100);
        client.sends(theirs_at(&offered, 100, 100));
        let dropped = world.dropped(DropReason::NotHeld);
        server.sends(rst_ack(0, CLIENT_ISN + 1));
        client.gets(rst(offered.seq + 1));
        server.gets(nothing());
        assert_eq!((world.dropped(DropReason::NotHeld), world.happened(Event::Released)), (dropped + 2, 0));
        world.after_secs(60);
        world.has_flows(0, 0);
        // The frames are free again.
        let (offered, server_syn) = connects_with_data(&client, &server, terms, 100);
        server.sends(answer_to(&server_syn, terms));
        update(&client, &offered);
        last_acknowledgement(&server);
        server.gets(ours_at(&server_syn, 0, 100));
    }

    fn a_silent_server_costs_the_client_a_reset_and_the_data_is_given_back(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = world.mode().world_with(|config| {
            (config.handshake, config.early_echo) = (Handshake::Early, EarlyEcho::None);
            config.timeouts.dl_syn_sent = Duration::from_secs(10);
        });
        let terms = Terms::linux(world.mss());
        acquaint(&world, terms);
        let (offered, _) = connects_with_data(&client, &server, terms, 100);
        for _ in 0..3 {
            assert!(waits(&world, &server, 8001).is_some(), "the SYN is repeated");
            server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        }
        assert!(waits(&world, &client, 8001).is_some(), "and given up");
        client.gets(rst(offered.seq + 1));
        server.gets(rst(CLIENT_ISN + 1));
        assert_eq!(world.dropped(DropReason::NotHeld), 1);
        world.has_flows(0, 0);
    }

    fn nothing_is_held_once_the_syn_to_the_server_was_repeated(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = early(&world);
        let terms = Terms::linux(world.mss());
        acquaint(&world, terms);
        let (offered, _) = connects_with_data(&client, &server, terms, 100);
        assert!(waits(&world, &server, 1100).is_some());
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        // It goes on holding nothing until the server has answered, and the client's own timer delivers the data.
        client.sends_in_vain(theirs_at(&offered, 100, 100), DropReason::NotHeld);
        server.sends(answer_to(&server_syn, terms));
        update(&client, &offered);
        while server.has_more() {
            let got = server.gets(anything());
            assert_eq!((got.seq, got.ack), (CLIENT_ISN + 1, SERVER_ISN + 1));
        }
        client.sends(theirs_at(&offered, 0, 100));
        server.gets(ours_at(&server_syn, 0, 100));
        client.sends(theirs_at(&offered, 100, 100));
        server.gets(ours_at(&server_syn, 100, 100));
    }

    fn a_client_reset_behind_its_data_resets_the_server(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = early(&world);
        let terms = Terms::linux(world.mss());
        acquaint(&world, terms);
        let (offered, server_syn) = connects_with_data(&client, &server, terms, 100);
        client.sends_in_vain(rst(CLIENT_ISN), DropReason::BadReset);
        client.sends_in_vain(rst(CLIENT_ISN + 1 + 16_385), DropReason::BadReset);
        // RFC 5961 section 3: nor one in the middle of them.
        client.sends_in_vain(rst(CLIENT_ISN + 51), DropReason::BadReset);
        client.sends_in_vain(rst(CLIENT_ISN + 101), DropReason::Consumed);
        assert_eq!(world.dropped(DropReason::NotHeld), 1);
        server.sends(answer_to(&server_syn, terms));
        server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window().any_options());
        server.gets(rst(CLIENT_ISN + 1));
        world.after_secs(50);
        world.has_flows(0, 0);
        let _ = offered;
    }

    fn a_full_hold_queue_and_an_empty_pool_cost_a_retransmission(world, client, server) {
        let _ = (client, server);
        for (places, spare) in [(1, usize::MAX), (0, usize::MAX), (4096, 0), (4096, 1)] {
            let (world, client, server) = world.mode().world_with(|config| {
                (config.handshake, config.early_echo) = (Handshake::Early, EarlyEcho::None);
                config.held_frames = places;
            });
            let terms = Terms::linux(world.mss());
            acquaint(&world, terms);
            let offered = connect(&client, terms, CLIENT_ISN);
            world.spare_frames(spare);
            client.sends(theirs_at(&offered, 0, 100));
            let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
            while server.has_more() {
                server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
            }
            let held = world.happened(Event::Held) == 1;
            assert_eq!(held, places > 0 && spare > 1, "without a spare frame the data's own frame becomes the SYN");
            if places < 2 {
                client.sends_in_vain(theirs_at(&offered, 100, 100), DropReason::NotHeld);
            }
            let unsent = world.happened(Event::NoSpareFrame);
            server.sends(answer_to(&server_syn, terms));
            update(&client, &offered);
            if world.happened(Event::NoSpareFrame) == unsent {
                last_acknowledgement(&server);
            }
            if held {
                server.gets(ours_at(&server_syn, 0, 100));
            } else {
                client.sends(theirs_at(&offered, 0, 100));
                server.gets(ours_at(&server_syn, 0, 100));
            }
            client.sends(theirs_at(&offered, 100, 100));
            server.gets(ours_at(&server_syn, 100, 100));
        }
    }
}

in_every_mode! {
    fn a_server_that_answers_with_other_options_gets_the_held_data_in_its_own_terms(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = early(&world);
        let terms = Terms::linux(world.mss());
        acquaint(&world, terms);
        let (offered, server_syn) = connects_with_data(&client, &server, terms, 100);
        assert!(server_syn.ts().is_some() && offered.sack_ok());
        // Neither timestamps nor SACK nor scaling this time.
        server.sends(answer_to(&server_syn, Terms { window: 8192, ..Terms::bare(536) }));
        let told = gets_update(&client, &offered, CLIENT_ISN, Some(536));
        last_acknowledgement(&server);
        assert!(told.ts().is_some() && told.window == 8192 >> 7);
        let got = server.gets(anything());
        assert_eq!((got.flags, got.seq, got.ack, got.ts()), (PSH | ACK, CLIENT_ISN + 1, SERVER_ISN + 1, None));
        assert_eq!((got.payload.len(), got.window), (100, WINDOW << 7));
        server.sends(data(SERVER_ISN + 1, CLIENT_ISN + 101, 30));
        let reply = client.gets(data(offered.seq + 1, CLIENT_ISN + 101, 30).any_window().any_options());
        assert_eq!(reply.ts().map(|(_, echo)| echo), Some(CLIENT_TS + 1));
        server.gets(nothing());
    }

    fn a_client_evicted_while_its_server_is_silent_loses_its_data_and_is_reset(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = world.mode().world_with(|config| {
            (config.handshake, config.early_echo) = (Handshake::Early, EarlyEcho::None);
            config.table_buckets = 1;
        });
        let terms = Terms::linux(world.mss());
        acquaint(&world, terms);
        let (offered, _) = connects_with_data(&client, &server, terms, 100);
        world.tick(Duration::from_secs(4));
        world.discard();
        let mut resets = Vec::new();
        for port in 100..120 {
            let (other, _) = world.on_port(port);
            let _ = world.inject(Side::Wan, &other.frame(&terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0))));
            let Some((_, answer)) = world.discard().pop() else { continue };
            let answer = read(&answer, world.now()).expect("a SYN-ACK");
            let proof = ack(CLIENT_ISN + 1, answer.seq + 1).maybe_ts(echoed(&answer));
            let _ = world.inject(Side::Wan, &other.frame(&proof));
            for (side, frame) in world.discard() {
                let got = read(&frame, world.now()).expect("a segment");
                if got.flags & RST != 0 {
                    resets.push((side, got.seq, got.ports.0.max(got.ports.1)));
                }
            }
        }
        assert!(resets.contains(&(Side::Wan, offered.seq + 1, CLIENT_PORT)), "{resets:?}");
        assert!(resets.contains(&(Side::Lan, CLIENT_ISN + 1, CLIENT_PORT)), "{resets:?}");
        assert_eq!((world.dropped(DropReason::NotHeld), world.happened(Event::Released)), (1, 0));
    }
}

// ---- ECN: nothing is claimed for a server, and nothing is lost between ends of which one negotiated it ----

/// A client sends a SYN that asks for ECN: what its SYN-ACK said of ECN, and what the server's SYN asked.
#[track_caller]
fn asks_for_ecn(client: &Host, server: &Host, theirs: Terms, flags: u16) -> (Got, Got) {
    client.sends(theirs.on(syn(CLIENT_ISN).flags(flags), (CLIENT_TS, 0)));
    let offered = client.gets(anything());
    assert_eq!((offered.flags & !ECE, offered.ack), (SYN | ACK, CLIENT_ISN + 1));
    client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
    (offered, server.gets(anything()))
}

/// Lets the box learn on another port that the server negotiates ECN.
#[track_caller]
fn teach_ecn(world: &World) {
    let terms = Terms::linux(world.mss());
    let (client, server) = world.on_port(7);
    let j = open_ecn(&client, &server, terms, terms, false);
    shows_itself(&client, &server, &j);
}

in_every_mode! {
    fn ecn_is_promised_where_it_is_known_and_asked_where_it_is_not(world, client, server) {
        let _ = (client, server);
        let mss = world.mss();
        let asked = SYN | ECE | CWR;
        let (client, server) = world.on_port(1);
        let (offered, server_syn) = asks_for_ecn(&client, &server, Terms::linux(mss), ECE | CWR);
        assert_eq!((offered.flags, server_syn.flags), (SYN | ACK, asked), "an unknown server");
        let (client, server) = world.on_port(70);
        let j = open(&client, &server, Terms::linux(mss), Terms::linux(mss));
        shows_itself(&client, &server, &j);
        let (client, server) = world.on_port(71);
        let (offered, server_syn) = asks_for_ecn(&client, &server, Terms::linux(mss), ECE | CWR);
        assert_eq!((offered.flags, server_syn.flags), (SYN | ACK, asked), "one that was never asked");
        teach_ecn(&world);
        let (client, server) = world.on_port(2);
        let (offered, server_syn) = asks_for_ecn(&client, &server, Terms::linux(mss), ECE | CWR);
        assert_eq!((offered.flags, server_syn.flags), (SYN | ACK | ECE, asked), "a known one");
        let (client, server) = world.on_port(3);
        let accurate = AE | ECE | CWR;
        let (offered, server_syn) = asks_for_ecn(&client, &server, Terms::linux(mss), accurate);
        assert_eq!((offered.flags, server_syn.flags), (SYN | ACK, SYN | accurate), "it was never asked for this kind");
        for (port, flags) in [(4, 0), (5, ECE), (6, CWR), (8, AE)] {
            let (client, server) = world.on_port(port);
            let (offered, server_syn) = asks_for_ecn(&client, &server, Terms::linux(mss), flags);
            assert_eq!((offered.flags, server_syn.flags), (SYN | ACK, SYN), "a client that does not ask: {flags:#x}");
        }
        // A cookie without timestamps has no place for the promise; the cache has.
        let (client, server) = world.on_port(9);
        let (offered, server_syn) = asks_for_ecn(&client, &server, Terms::windows(mss), ECE | CWR);
        let kept = world.mode().cache;
        assert_eq!((offered.flags & ECE != 0, server_syn.flags & ECE != 0), (kept, kept), "a client without timestamps");
    }

    fn a_repeated_syn_asks_for_no_ecn(world, client, server) {
        teach_ecn(&world);
        let (offered, _) = asks_for_ecn(&client, &server, Terms::linux(world.mss()), ECE | CWR);
        assert!(waits(&world, &server, 1500).is_some());
        // RFC 3168 section 6.1.1.1.
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        server.sends(answer_to(&server_syn, Terms::linux(world.mss())));
        update(&client, &offered);
        assert!(waits(&world, &server, 750).is_some());
        last_acknowledgement(&server);
        client.sends(data(CLIENT_ISN + 1, offered.seq + 1, 50).tos(2).maybe_ts(echoed(&offered)));
        let got = server.gets(data(CLIENT_ISN + 1, SERVER_ISN + 1, 50).tos(0).any_options());
        assert!(got.ts().is_some());
        // From a refusal of what was not asked the box learns nothing: the next client is still promised it.
        let (client, server) = world.on_port(77);
        let (offered, _) = asks_for_ecn(&client, &server, Terms::linux(world.mss()), ECE | CWR);
        assert_eq!(offered.flags, SYN | ACK | ECE);
    }

    fn a_client_promised_ecn_in_vain_gets_ece_from_the_box(world, client, server) {
        teach_ecn(&world);
        let terms = Terms::linux(world.mss());
        let (offered, server_syn) = asks_for_ecn(&client, &server, terms, ECE | CWR);
        assert_eq!(offered.flags, SYN | ACK | ECE);
        let j = answer(&client, &server, terms, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        let (inner, outer) = (Some((CLIENT_TS + 2, SERVER_TS)), Some((CLIENT_TS + 2, j.ts_out(SERVER_TS))));
        let mut at = 0;
        let mut sends = |tos: u8, flags: u16| {
            client.sends(segment(ACK | PSH | flags, j.c(at), j.o(0)).maybe_ts(outer).payload(10).tos(tos));
            // The server did not negotiate it: neither mark nor CWR reaches it, and the rest of the field is as it was.
            server.gets(segment(ACK | PSH, j.c(at), j.s(0)).maybe_ts(inner).payload(10).tos(tos & !3));
            at += 10;
            at
        };
        let receives = |at: u32, echo: u16| {
            let stamps = |value| Some((value, CLIENT_TS + 2));
            server.sends(ack(j.s(0), j.c(at)).maybe_ts(stamps(SERVER_TS + 1)));
            client.gets(ack(j.o(0), j.c(at)).flags(echo).maybe_ts(stamps(j.ts_out(SERVER_TS + 1))));
        };
        for ect in [1, 2, 0xB8 | 2] {
            receives(sends(ect, 0), 0);
        }
        // Congestion: every acknowledgement says so until the client has reduced its window (RFC 3168 section 6.1.3).
        receives(sends(0xB8 | 3, 0), ECE);
        receives(sends(2, 0), ECE);
        receives(sends(2, CWR), 0);
        receives(sends(3, 0), ECE);
        receives(sends(2, CWR), 0);
        assert_eq!(world.happened(Event::EcnLent), 2);
        // The next one is promised nothing.
        let (client, server) = world.on_port(77);
        let (offered, server_syn) = asks_for_ecn(&client, &server, terms, ECE | CWR);
        assert_eq!((offered.flags, server_syn.flags), (SYN | ACK, SYN | ECE | CWR));
    }

    fn a_server_whose_client_was_promised_no_ecn_gets_ece_from_the_box(world, client, server) {
        let terms = Terms::linux(world.mss());
        let j = open_ecn(&client, &server, terms, terms, false);
        let (inner, outer) = (Some((SERVER_TS + 2, CLIENT_TS + 1)), Some((j.ts_out(SERVER_TS + 2), CLIENT_TS + 1)));
        let mut at = 0;
        let mut sends = |tos: u8, flags: u16| {
            server.sends(segment(ACK | PSH | flags, j.s(at), j.c(0)).maybe_ts(inner).payload(10).tos(tos));
            client.gets(segment(ACK | PSH, j.o(at), j.c(0)).maybe_ts(outer).payload(10).tos(tos & !3));
            at += 10;
            at
        };
        let receives = |at: u32, echo: u16| {
            client.sends(ack(j.c(0), j.o(at)).maybe_ts(Some((CLIENT_TS + 3, j.ts_out(SERVER_TS + 2)))));
            server.gets(ack(j.c(0), j.s(at)).flags(echo).maybe_ts(Some((CLIENT_TS + 3, SERVER_TS + 2))));
        };
        receives(sends(2, 0), 0);
        receives(sends(3, 0), ECE);
        receives(sends(2, 0), ECE);
        receives(sends(2, CWR), 0);
        receives(sends(0x40 | 1, 0), 0);
    }

    fn between_ends_that_both_negotiated_ecn_every_mark_passes(world, client, server) {
        teach_ecn(&world);
        let terms = Terms::linux(world.mss());
        let j = open_ecn(&client, &server, terms, terms, true);
        let (inner, outer) = (Some((CLIENT_TS + 2, SERVER_TS)), Some((CLIENT_TS + 2, j.ts_out(SERVER_TS))));
        for (n, (tos, flags)) in [(1, 0), (2, ECE), (3, CWR), (3, ECE | CWR)].into_iter().enumerate() {
            let at = 10 * n as u32;
            client.sends(segment(ACK | flags, j.c(at), j.o(0)).maybe_ts(outer).payload(10).tos(tos));
            server.gets(segment(ACK | flags, j.c(at), j.s(0)).maybe_ts(inner).payload(10).tos(tos));
        }
        assert_eq!(world.happened(Event::EcnLent), 0);
    }
}

// ---- learning ----

/// A TCP-MD5 option (RFC 2385), and a TCP-AO one (RFC 5925).
const SIGNATURES: [&[u8]; 2] = [
    &[19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 1],
    &[29, 16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14],
];

/// A connection from the WAN that only the server can answer, which is passed; the box learns the server's options.
#[track_caller]
fn passes_a_signed_syn(client: &Host, server: &Host, ours: Terms) {
    client.passes(syn(77).mss(1400).wscale(3).nop().raw(SIGNATURES[0]));
    let mss = ours.mss.expect("a size to be learned");
    let scale = ours.wscale.expect("a scale to be learned");
    server.passes(syn_ack(99, 78).window(ours.window).mss(mss).wscale(scale).nop().raw(SIGNATURES[0]));
}

in_every_mode! {
    fn the_syn_ack_of_a_passed_connection_teaches_what_the_next_client_is_offered(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = world.mode().world_with(|config| config.introductions = 1000);
        let (first, first_server) = world.on_port(7);
        first.passes(Terms::linux(world.mss()).on(syn(77), (CLIENT_TS, 0)));
        let ours = Terms { wscale: Some(11), ..Terms::linux(1234) };
        first_server.passes(ours.on(syn_ack(SERVER_ISN, 78), (SERVER_TS, CLIENT_TS)));
        let (offered, _) = prove_from(&world, &client, &server, Terms::linux(world.mss()), 0);
        assert_eq!((offered.mss(), offered.wscale()), (Some(1234), Some(11)));
    }

    fn a_signed_connection_teaches_nothing_of_others(world, client, server) {
        let usual = connect(&client, Terms::linux(world.mss()), CLIENT_ISN);
        let (first, first_server) = world.on_port(7);
        passes_a_signed_syn(&first, &first_server, Terms { wscale: Some(11), ..Terms::linux(1234) });
        let (refused, refuses) = world.on_port(8);
        refused.passes(syn(77).mss(1400).wscale(3).nop().raw(SIGNATURES[0]));
        refuses.passes(rst_ack(0, 78));
        let (next, next_server) = world.on_port(9);
        let (offered, _) = prove_from(&world, &next, &next_server, Terms::linux(world.mss()), 0);
        assert_eq!((offered.mss(), offered.wscale()), (usual.mss(), usual.wscale()));
        let _ = server;
    }

    fn a_scale_without_timestamps_is_exact_from_the_cache_and_the_constant_without_it(world, client, server) {
        let mss = world.mss();
        let (first, first_server) = world.on_port(7);
        let ours = Terms { wscale: Some(11), ..Terms::linux(mss) };
        open(&first, &first_server, Terms::linux(mss), ours);
        let theirs = Terms { wscale: Some(9), ..Terms::windows(mss) };
        let (offered, server_syn) = prove_from(&world, &client, &server, theirs, 0);
        let cache = world.mode().cache;
        // 9 is not in the book of cookies, 8 is.
        let known = if cache { (Some(11), Some(9)) } else { (Some(7), Some(8)) };
        assert_eq!((offered.wscale(), server_syn.wscale()), known);
        let j = answer(&client, &server, ours, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        // Windows are read as they were promised.
        server.sends(ack(j.s(0), j.c(0)).window(100));
        client.gets(ack(j.o(0), j.c(0)).window(if cache { 100 } else { 100 << 4 }));
        client.sends(ack(j.c(0), j.o(0)).window(100));
        // The server reads what the client writes by the scale in its SYN, so by less than the client meant.
        server.gets(ack(j.c(0), j.s(0)).window(100));
    }

    fn a_number_that_promised_what_no_cookie_can_opens_nothing_when_its_entry_is_gone(world, client, server) {
        let mss = world.mss();
        let (first, first_server) = world.on_port(7);
        let j = open(&first, &first_server, Terms::linux(mss), Terms { wscale: Some(11), ..Terms::linux(mss) });
        shows_itself(&first, &first_server, &j);
        // One whose promise a cookie can keep, and one whose it cannot.
        let (other, other_server) = world.on_port(8);
        let plain = connect(&other, Terms { wscale: None, ..Terms::windows(mss) }, CLIENT_ISN);
        let offered = connect(&client, Terms::windows(mss), CLIENT_ISN);
        world.after_secs(65);
        assert_eq!(world.population().syn_cached, 0);
        other.sends(ack(CLIENT_ISN + 1, plain.seq + 1));
        other_server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        if world.mode().cache {
            assert_eq!(offered.wscale(), Some(11));
            client.sends_in_vain(ack(CLIENT_ISN + 1, offered.seq + 1), DropReason::BadCookie);
        } else {
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1));
            server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        }
    }

    fn a_repeated_syn_gets_the_same_offer(world, client, server) {
        let _ = (client, server);
        let mss = world.mss();
        for (port, theirs) in [(1, Terms::windows(mss)), (2, Terms::linux(mss))] {
            // What the server shows before the first connection, and between the two.
            for (n, (before, between)) in [(None, 11), (Some(11), 3), (Some(3), 12)].into_iter().enumerate() {
                let (world, ..) = world.mode().world();
                let shows = |scale, port| {
                    let (client, server) = world.on_port(port);
                    let ours = Terms { wscale: Some(scale), ..Terms::linux(mss) };
                    let j = open(&client, &server, Terms::linux(mss), ours);
                    shows_itself(&client, &server, &j);
                };
                if let Some(scale) = before {
                    shows(scale, 70);
                }
                let (client, server) = world.on_port(port + 10 * n as u16);
                let told = connect(&client, theirs, CLIENT_ISN);
                (71..74).for_each(|port| shows(between, port));
                let again = connect(&client, theirs, CLIENT_ISN);
                // A cookie alone remembers nothing, but one number never has two meanings.
                if world.mode().cache || !theirs.ts {
                    assert_eq!((again.seq, again.wscale()), (told.seq, told.wscale()));
                } else {
                    assert_ne!(again.seq, told.seq);
                }
                client.sends(ack(CLIENT_ISN + 1, told.seq + 1).maybe_ts(echoed(&told)));
                let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
                let ours = Terms { wscale: Some(9), ..Terms::linux(mss) };
                let j = answer(&client, &server, ours, CLIENT_ISN, SERVER_ISN, told, server_syn);
                // Windows are in the scale of the answer that was acknowledged.
                let stamps = j.server_syn.ts().map(|_| (SERVER_TS, CLIENT_TS + 1));
                server.sends(ack(j.s(0), j.c(0)).window(16).maybe_ts(stamps));
                let told = j.offered.wscale().expect("the client scales");
                client.gets(ack(j.o(0), j.c(0)).window((16u32 << 9 >> told) as u16).any_options());
            }
        }
    }
}

in_every_mode! {
    fn a_segment_size_no_cookie_expresses_is_never_rounded_up_not_even_over_a_former_connection(world, client, server) {
        let theirs = Terms { mss: Some(100), ..Terms::windows(world.mss()) };
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 10);
        transfer.closes_from_the_client();
        client.sends_in_vain(theirs.on(syn(transfer.joined.c(100_000)), (0, 0)), DropReason::MssTooSmall);
        // Where the cache remembers it, it is exact; when the entry is gone its number opens nothing.
        for gone in [false, true] {
            let (client, server) = world.on_port(20 + u16::from(gone));
            let attempt = theirs.on(syn(1000), (0, 0));
            if !world.mode().cache {
                client.sends_in_vain(attempt, DropReason::MssTooSmall);
                continue;
            }
            client.sends(attempt);
            let offered = client.gets(syn_ack(ANY, 1001).window(0).any_options());
            // Another SYN with the same 4-tuple does not change that.
            client.sends_in_vain(theirs.on(syn(2000), (0, 0)), DropReason::MssTooSmall);
            if gone {
                world.after_secs(65);
                client.sends_in_vain(ack(1001, offered.seq + 1), DropReason::BadCookie);
            } else {
                client.sends(ack(1001, offered.seq + 1));
                assert_eq!(server.gets(syn(1000).any_window().any_options()).mss(), Some(100));
                server.sends(rst_ack(0, 1001));
                client.gets(rst(offered.seq + 1));
            }
        }
    }
}

// ---- clocks: what a client is shown never goes backward ----

/// Fails if a clock has gone backward on its circle.
#[track_caller]
fn goes_on(before: &mut u32, got: &Got, strictly: bool) {
    let value = got.ts().expect("a segment with timestamps").0;
    let step = value.wrapping_sub(*before) as i32;
    assert!(step > 0 || step == 0 && !strictly, "the clock went from {before} to {value}");
    *before = value;
}

in_every_mode! {
    fn a_clock_never_goes_backward_within_a_connection_its_syn_acks_included(world, client, server) {
        let _ = (client, server);
        let terms = Terms::linux(world.mss());
        let clocks = [Some(0), Some(1), Some(u32::MAX), Some(1 << 31), Some(SERVER_TS), None];
        for (port, clock) in (1..).zip(clocks) {
            let (client, server) = world.on_port(port);
            let mut shown = ((world.now().as_micros() / 1000) as u32).wrapping_sub(8192);
            let mut offered = connect(&client, terms, CLIENT_ISN);
            shown = shown.wrapping_sub(1);
            goes_on(&mut shown, &offered, true);
            for _ in 0..3 {
                world.after_secs(1);
                offered = connect(&client, terms, CLIENT_ISN);
                // The clock of a cookie stands still for eight seconds.
                goes_on(&mut shown, &offered, false);
            }
            world.after_ms(20);
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
            let server_syn = server.gets(anything());
            world.after_ms(1);
            let answer = Terms { ts: false, ..terms }.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (0, 0));
            server.sends(match clock {
                Some(value) => answer.ts(value, server_syn.ts().unwrap().0),
                None => answer,
            });
            goes_on(&mut shown, &update(&client, &offered), true);
            if client.has_more() {
                // Which of its SYN-ACKs it acknowledged cannot be told: it is probed.
                goes_on(&mut shown, &client.gets(anything()), false);
            }
            assert!(waits(&world, &server, 800).is_some());
            last_acknowledgement(&server);
            for n in 1..4 {
                world.after_ms(100);
                let stamps = clock.map(|value: u32| (value.wrapping_add(n * 100), CLIENT_TS + 1));
                server.sends(data(SERVER_ISN + 1, CLIENT_ISN + 1, 10).maybe_ts(stamps));
                goes_on(&mut shown, &client.gets(anything()), true);
                client.sends(ack(CLIENT_ISN + 1, offered.seq + 11).maybe_ts(Some((CLIENT_TS + n, shown))));
                let got = server.gets(anything());
                assert_eq!(got.ts().map(|(_, echo)| echo), clock.map(|value| value.wrapping_add(n * 100)));
            }
        }
    }

    fn a_clock_goes_on_from_what_the_old_connection_still_shows_while_a_new_one_opens(world, client, server) {
        let terms = Terms::linux(world.mss());
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(0, 0);
        let j = transfer.joined.clone();
        let isn = 0x0BAD_CAFE;
        client.sends(terms.on(syn(isn), (CLIENT_TS + 50, 0)));
        client.gets(ack(j.o(0), j.c(100)).any_window().any_options());
        world.after_secs(1);
        client.sends(terms.on(syn(isn), (CLIENT_TS + 1050, 0)));
        let offered = client.gets(syn_ack(ANY, isn + 1).window(0).any_options());
        // A server whose clock is fast.
        server.sends(data(j.s(0), j.c(100), 10).maybe_ts(Some((SERVER_TS + (1 << 28), CLIENT_TS + 1))));
        let mut shown = client.gets(data(j.o(0), j.c(100), 10).any_options()).ts().unwrap().0;
        client.sends(ack(isn + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
        let server_syn = server.gets(segment(SYN, isn, 0).any_window().any_options());
        let j = answer(&client, &server, terms, isn, 0x4444_4444, offered, server_syn);
        goes_on(&mut shown, &j.update, true);
    }

    fn a_port_reused_in_time_wait_is_shown_a_clock_that_goes_on_however_long_the_connection_was(world, client, server) {
        let _ = (client, server);
        let terms = Terms::linux(world.mss());
        for minutes in [1, 10, 34, 36, 40, 70, 72, 100, 143, 180] {
            let (world, client, server) = world.mode().world();
            let mut shown = ((world.now().as_micros() / 1000) as u32).wrapping_sub(8193);
            let (mut isn, mut clock) = (CLIENT_ISN, SERVER_TS);
            for round in 0..3 {
                let mut offered = connect(&client, terms, isn);
                goes_on(&mut shown, &offered, true);
                world.after_secs(1);
                offered = connect(&client, terms, isn);
                goes_on(&mut shown, &offered, false);
                let first = shown;
                client.sends(ack(isn + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
                let server_syn = server.gets(segment(SYN, isn, 0).any_window().any_options());
                let answer = Terms { ts: false, ..terms }.on(syn_ack(SERVER_ISN, isn + 1), (0, 0));
                server.sends(answer.ts(clock, server_syn.ts().unwrap().0));
                let told = client.gets(ack(offered.seq + 1, isn + 1).any_window().any_options());
                goes_on(&mut shown, &told, true);
                assert_ne!(first, shown);
                if client.has_more() {
                    goes_on(&mut shown, &client.gets(anything()), false);
                }
                if server.has_more() {
                    server.gets(ack(isn + 1, SERVER_ISN + 1).any_options());
                }
                client.sends(ack(isn + 1, offered.seq + 1).maybe_ts(Some((CLIENT_TS + 1, shown))));
                server.gets(ack(isn + 1, SERVER_ISN + 1).any_options());
                let mut at = 0;
                for _ in 0..minutes {
                    world.after_secs(60);
                    clock = clock.wrapping_add(60_000);
                    let stamps = Some((clock, CLIENT_TS + 1));
                    server.sends(data(SERVER_ISN.wrapping_add(1 + at), isn + 1, 10).maybe_ts(stamps));
                    at += 10;
                    goes_on(&mut shown, &client.gets(anything()), true);
                    client.sends(ack(isn + 1, offered.seq.wrapping_add(1 + at)).maybe_ts(Some((CLIENT_TS + 1, shown))));
                    server.gets(anything());
                }
                server.sends(fin(SERVER_ISN.wrapping_add(1 + at), isn + 1).maybe_ts(Some((clock + 1, CLIENT_TS + 1))));
                goes_on(&mut shown, &client.gets(anything()), true);
                let stamps = Some((CLIENT_TS + 1, shown));
                client.sends(fin(isn + 1, offered.seq.wrapping_add(2 + at)).maybe_ts(stamps));
                server.gets(anything());
                server.sends(ack(SERVER_ISN.wrapping_add(2 + at), isn + 2).maybe_ts(Some((clock + 2, CLIENT_TS + 1))));
                goes_on(&mut shown, &client.gets(anything()), true);
                world.after_secs(30 * round);
                clock = clock.wrapping_add(30_000 * round as u32 + 1000);
                isn = isn.wrapping_add(0x1000_0000);
            }
        }
    }
}

// ---- refused ports ----

/// A world that remembers for ten seconds which ports are closed.
fn with_refused_ports(world: &World) -> (World, Host, Host) {
    world.mode().world_with(|config| config.closed_memory = Duration::from_secs(10))
}

/// A client connects to a port that refuses: its SYN-ACK.
#[track_caller]
fn is_refused(world: &World, client: &Host, server: &Host) -> Got {
    let (offered, _) = prove_from(world, client, server, Terms::linux(world.mss()), 0);
    server.sends(rst_ack(0, CLIENT_ISN + 1));
    client.gets(rst(offered.seq + 1));
    offered
}

in_every_mode! {
    fn a_port_that_refused_is_closed_to_its_network_until_its_entry_expires(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = with_refused_ports(&world);
        is_refused(&world, &client, &server);
        let (colleague, _) = world.pair(0, 9, 999);
        for theirs in [Terms::linux(world.mss()), Terms::bare(536)] {
            for opener in [&client, &colleague] {
                for flags in [0, ECE | CWR] {
                    // RFC 9293 section 3.10.7.1.
                    opener.sends(theirs.on(syn(5000).flags(flags), (CLIENT_TS, 0)));
                    opener.gets(rst_ack(0, 5001));
                    server.gets(nothing());
                }
            }
        }
        assert_eq!(world.happened(Event::ClosedPort), 8);
        // Another network, the next port, and the next host are others.
        connect(&world.pair(3, 9, 999).0, Terms::linux(world.mss()), CLIENT_ISN);
        let neighbour = world.host(Side::Wan, FlowKey { dport: SERVER_PORT + 1, ..client.ends() });
        connect(&neighbour, Terms::linux(world.mss()), CLIENT_ISN);
        connect(&world.pair_to(0, 1, CLIENT_PORT, 11).0, Terms::linux(world.mss()), CLIENT_ISN);
        world.after_ms(9900);
        client.sends(syn(5000));
        client.gets(rst_ack(0, 5001));
        world.after_ms(100);
        connect(&client, Terms::linux(world.mss()), CLIENT_ISN);
    }

    fn a_port_that_others_have_reached_is_closed_to_the_refused_network_alone(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = with_refused_ports(&world);
        let terms = Terms::linux(world.mss());
        let (first, first_server) = world.pair(3, 1, 7);
        open(&first, &first_server, terms, terms);
        // A host that bars one network is not closed to the next.
        is_refused(&world, &client, &server);
        let (neighbour, neighbour_server) = world.pair(0, 200, 999);
        neighbour.sends(terms.on(syn(5000), (CLIENT_TS, 0)));
        neighbour.gets(rst_ack(0, 5001));
        let (other, other_server) = world.pair(4, 1, 999);
        prove_from(&world, &other, &other_server, terms, 0);
        neighbour_server.gets(nothing());
        assert_eq!(world.happened(Event::ClosedPort), 1);
    }

    fn a_repeated_proof_to_a_refused_port_sends_no_syn_to_the_server(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = with_refused_ports(&world);
        let offered = is_refused(&world, &client, &server);
        for _ in 0..5 {
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
            client.gets(rst(offered.seq + 1));
            server.gets(nothing());
        }
        client.sends(data(CLIENT_ISN + 1, offered.seq + 1, 100).maybe_ts(echoed(&offered)));
        client.gets(rst(offered.seq + 1));
        server.gets(nothing());
        assert_eq!(world.happened(Event::Dialled), 1);
    }

    fn a_port_that_answers_is_open_again(world, client, server) {
        let _ = server;
        let (world, ..) = with_refused_ports(&world);
        let terms = Terms::linux(world.mss());
        // Two clients are on their way when the port refuses the first; then it answers the second.
        let (client, server) = world.on_port(client.ends().sport);
        let (other, other_server) = world.on_port(2);
        let (offered, server_syn) = prove_from(&world, &other, &other_server, terms, 0);
        is_refused(&world, &client, &server);
        client.sends(syn(5000));
        client.gets(rst_ack(0, 5001));
        other_server.sends(answer_to(&server_syn, terms));
        update(&other, &offered);
        assert!(waits(&world, &other_server, 750).is_some());
        last_acknowledgement(&other_server);
        connect(&client, terms, CLIENT_ISN);
    }

    fn only_a_reset_from_the_lan_closes_a_port(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = with_refused_ports(&world);
        let terms = Terms::linux(world.mss());
        let (offered, _) = prove_from(&world, &client, &server, terms, 0);
        // Resets that acknowledge something else, or come from the client.
        server.sends_in_vain(rst_ack(0, CLIENT_ISN + 2), DropReason::BadReset);
        server.sends_in_vain(rst(CLIENT_ISN + 1), DropReason::BadReset);
        client.sends(rst(CLIENT_ISN + 1));
        world.after_ms(1100);
        // It is asked once more, to learn whether it is there.
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        world.after_ms(1000);
        server.gets(rst(CLIENT_ISN + 1));
        let _ = offered;
        connect(&world.pair(3, 9, 999).0, terms, CLIENT_ISN);
        world.on_port(77).0.passes(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        assert_eq!(world.happened(Event::ClosedPort), 0);
    }
}

// ---- what only the server can answer passes ----

in_every_mode! {
    fn a_signed_connection_passes_untouched_in_both_directions(world, client, server) {
        let _ = (client, server);
        for (n, signature) in SIGNATURES.into_iter().enumerate() {
            let (world, ..) = world.mode().world_with(|config| config.mss_clamp = Some(1000));
            for (m, port) in [(0, 21), (1, 22)] {
                let (client, server) = world.on_port(port);
                let (opener, responder) = if m == 0 { (&client, &server) } else { (&server, &client) };
                opener.passes(syn(1000).mss(1460).raw(signature));
                opener.passes(syn(1000).mss(1460).raw(signature));
                responder.passes(syn_ack(2000, 1001).mss(1460).raw(signature));
                opener.passes(ack(1001, 2001).raw(signature));
                opener.passes(data(1001, 2001, 100).raw(signature));
                responder.passes(data(2001, 1101, 100).raw(signature));
                responder.passes(fin(2101, 1101).raw(signature));
                opener.passes(fin(1101, 2102).raw(signature));
                responder.passes(ack(2102, 1102).raw(signature));
            }
            world.has_flows(0, 2);
            assert_eq!(world.happened(Event::Passed), 1, "signature {n}");
            assert_eq!(world.happened(Event::SynAnswered), 0);
        }
    }

    fn a_syn_that_passes_in_a_client_s_name_does_not_keep_it_from_connecting(world, client, server) {
        let _ = (client, server);
        let terms = Terms::linux(world.mss());
        // Somebody sends a SYN with the client's 4-tuple between the box's SYN-ACK and the client's ACK, and the server may have answered it.
        for (port, is_answered) in [(21, false), (22, true)] {
            let (client, server) = world.on_port(port);
            let offered = connect(&client, terms, CLIENT_ISN);
            client.passes(syn(77).mss(1400).raw(SIGNATURES[1]));
            if is_answered {
                server.passes(syn_ack(99, 78).mss(1400).raw(SIGNATURES[1]));
                // What the client makes of that, it has sent before.
                client.passes(rst(CLIENT_ISN + 1));
            }
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
            client.gets(nothing());
            let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
            answer(&client, &server, terms, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        }
    }

    fn a_signed_syn_is_dropped_where_policy_drops_it_and_the_lans_own_is_not(world, client, server) {
        let _ = (client, server);
        let (_, client, server) = world.mode().world_with(|config| config.signed = Action::Drop);
        for signature in SIGNATURES {
            client.sends_in_vain(syn(1000).mss(1460).raw(signature), DropReason::NotPassed);
        }
        server.passes(syn(1000).mss(1460).raw(SIGNATURES[0]));
        client.passes(syn_ack(2000, 1001).mss(1460).raw(SIGNATURES[0]));
    }

    fn no_more_is_passed_in_a_second_than_the_rate_allows(world, client, server) {
        let _ = (client, server);
        let (world, ..) = world.mode().world_with(|config| config.passed_rate = 3);
        for second in 0..3 {
            for n in 0..3 {
                world.on_port(1000 + 10 * second + n).0.passes(syn(1000).raw(SIGNATURES[1]));
            }
            world.on_port(1009 + 10 * second).0.sends_in_vain(syn(1000).raw(SIGNATURES[1]), DropReason::NotPassed);
            world.after_secs(1);
        }
        // The limit is on unproved segments.
        connect(&world.on_port(2).0, Terms::linux(world.mss()), CLIENT_ISN);
    }

    fn nothing_more_passes_in_the_wake_of_a_syn_that_passed_unproved(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = world.mode().world_with(|config| config.passed_rate = 10);
        // One network and one destination have eight a second of ten.
        let passed = |seg: Seg| {
            client.sends(seg);
            world.discard().len()
        };
        let syns = (0..50).map(|n| passed(syn(1000 + n).raw(SIGNATURES[1]))).sum::<usize>();
        assert_eq!(syns, 3, "one, and what a client may repeat at once");
        let acks = (0..50).map(|n| passed(ack(1001 + n, 7).payload(10))).sum::<usize>();
        assert_eq!(acks, 8);
        world.after_secs(2);
        assert!((0..50).map(|n| passed(rst(5000 + n))).sum::<usize>() <= 8);
        world.after_secs(2);
        // The server's answer passes, and so does the client that has got it; who has not may send no more than before.
        client.passes(syn(3000).raw(SIGNATURES[1]));
        server.passes(syn_ack(2000, 3001).raw(SIGNATURES[1]));
        assert_eq!((0..50).map(|n| passed(ack(3001, 7000 + n).payload(10))).sum::<usize>(), 8);
        client.passes(ack(3001, 2001).raw(SIGNATURES[1]));
        (0..50).for_each(|n| client.passes(data(3001 + 10 * n, 2001, 10).raw(SIGNATURES[1])));
        // And what a server refuses leaves nothing behind.
        let (client, server) = world.on_port(7);
        client.passes(syn(3000).raw(SIGNATURES[1]));
        server.passes(rst_ack(0, 3001));
        (0..50).for_each(|n| client.sends_in_vain_for_any_reason(ack(3001, n).payload(10)));
        world.has_flows(0, 1);
    }

    fn connections_that_passed_unproved_take_a_small_part_of_the_table(world, client, server) {
        let _ = (client, server);
        // Of 512 flows 32.
        let (world, ..) = world.mode().world_with(|config| (config.table_buckets, config.passed_rate) = (64, 100_000));
        let (signer, its_server) = world.on_port(1);
        signer.passes(syn(100).raw(SIGNATURES[1]));
        its_server.passes(syn_ack(200, 101).raw(SIGNATURES[1]));
        signer.passes(ack(101, 201).raw(SIGNATURES[1]));
        for n in 0..500 {
            let (forged, _) = world.pair(n + 1, 9, 50);
            forged.passes(syn(100).raw(SIGNATURES[1]));
            assert!(world.population().passthrough <= 33, "{:?}", world.population());
        }
        assert_eq!(world.happened(Event::EvictedHalfOpen), 500 - 32);
        signer.passes(data(101, 201, 10).raw(SIGNATURES[1]));
    }

    fn multipath_and_fast_open_pass_where_policy_passes_them(world, client, server) {
        let _ = (client, server);
        let multipath: &[u8] = &[30, 4, 0x01, 0x01];
        let fast_open: &[u8] = &[34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1];
        // Linux servers grant the experimental option too.
        let experiment: &[u8] = &[254, 12, 0xf9, 0x89, 1, 2, 3, 4, 5, 6, 7, 8];
        let request: &[u8] = &[253, 4, 0xf9, 0x89];
        let cases = [(0, multipath, 0), (1, fast_open, 300), (1, fast_open, 0), (1, experiment, 300), (1, request, 0)];
        for (kind, option, len) in cases {
            for passes in [0, 1] {
                let (world, client, server) = world.mode().world_with(|config| {
                    let policy = if passes == 1 { Policed::Pass } else { Policed::Strip };
                    (config.multipath, config.fast_open) =
                        if kind == 0 { (policy, Policed::Strip) } else { (Policed::Strip, policy) };
                });
                let attempt = syn(1000).mss(1400).raw(option).payload(len);
                if passes == 0 {
                    client.sends(attempt);
                    let offered = client.gets(syn_ack(ANY, 1001).window(0).mss(world.mss()));
                    client.sends(ack(1001, offered.seq + 1));
                    server.gets(syn(1000).any_window().mss(1400));
                    continue;
                }
                client.passes(attempt);
                // The server may take the data, and answer at once with some of its own.
                server.passes(syn_ack(2000, 1001 + len as u32).mss(1300).raw(option));
                server.passes(data(2001, 1001 + len as u32, 50));
                client.passes(ack(1001 + len as u32, 2051).raw(if kind == 0 { multipath } else { &[] }));
                client.passes(data(1001 + len as u32, 2051, 70));
                server.passes(ack(2051, 1071 + len as u32));
                world.has_flows(0, 1);
            }
        }
    }

    fn the_first_syn_to_an_unknown_port_passes_as_its_introduction(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = world.mode().world_with(|config| config.introductions = 1);
        let terms = Terms::linux(world.mss());
        client.passes(terms.on(syn(1000), (CLIENT_TS, 0)));
        // One a second: the box answers the next SYN to an unknown server.
        let elsewhere = world.host(Side::Wan, FlowKey { dport: 999, ..world.on_port(5).0.ends() });
        connect(&elsewhere, terms, CLIENT_ISN);
        server.passes(Terms { wscale: Some(12), ..Terms::linux(1111) }.on(syn_ack(2000, 1001), (SERVER_TS, CLIENT_TS)));
        client.passes(ack(1001, 2001).nop().nop().ts(CLIENT_TS, SERVER_TS));
        // Now it is known.
        world.after_secs(2);
        let (next, next_server) = world.on_port(4);
        let (offered, _) = prove_from(&world, &next, &next_server, terms, 0);
        assert_eq!((offered.mss(), offered.wscale()), (Some(1111), Some(12)));
        assert_eq!(world.happened(Event::Introduced), 1);
    }

    fn a_refused_introduction_lets_the_next_client_see_for_itself(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = world.mode().world_with(|config| {
            config.introductions = 1;
            config.closed_memory = Duration::from_secs(10);
        });
        client.passes(syn(1000).mss(1460));
        server.passes(rst_ack(0, 1001));
        world.after_secs(2);
        let (next, _) = world.on_port(4);
        next.passes(syn(5000).mss(1460));
        assert_eq!(world.happened(Event::Retried), 1, "and takes no token of the introductions");
    }
}

// ---- connections that were running before the box ----

/// A world that adopts running connections for a minute, and then treats strays so.
fn adopting(world: &World, stray: Stray) -> (World, Host, Host) {
    world.mode().world_with(|config| {
        config.adopt_grace = Duration::from_secs(60);
        config.stray = stray;
    })
}

in_every_mode! {
    fn a_running_connection_is_adopted_when_both_directions_agree(world, client, server) {
        let _ = (client, server);
        for first in 0..3 {
            let (world, client, server) = adopting(&world, Stray::Drop);
            let stamps = |value, echo| Some((value, echo));
            let theirs = data(5000, 9000, 100).maybe_ts(stamps(1, 2));
            let ours = data(9000, 5100, 200).maybe_ts(stamps(2, 1));
            if first != 1 {
                client.passes(theirs.clone());
                world.has_flows(0, 0);
            }
            server.passes(ours);
            world.has_flows(0, 1);
            assert_eq!(world.happened(Event::Adopted), 0);
            client.passes(ack(5100, 9200).maybe_ts(stamps(3, 2)));
            assert_eq!(world.happened(Event::Adopted), 1);
            // It outlives the grace time, and an hour's silence.
            world.after_secs(3600);
            client.passes(data(5100, 9200, 10).maybe_ts(stamps(3, 2)));
            server.passes(ack(9200, 5110).sack(&[(5200, 5300)]).maybe_ts(stamps(4, 3)));
            if first == 2 {
                server.passes(rst(9200));
            } else {
                server.passes(fin(9200, 5110));
                client.passes(fin(5110, 9201));
                server.passes(ack(9201, 5111));
            }
            world.after_secs(130);
            world.has_flows(0, 0);
        }
    }

    fn a_client_whose_numbers_are_not_the_servers_is_not_adopted(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = adopting(&world, Stray::Drop);
        server.passes(data(9000, 5100, 200));
        // More than any window, and more than can be missed.
        const FAR: u32 = 9 << 27;
        for (seq, acked) in [(5100 + FAR, 9200), (5100, 9200 + FAR), (5100u32.wrapping_sub(FAR), 9200)] {
            client.sends_in_vain(ack(seq, acked), DropReason::NoFlow);
        }
        client.sends_in_vain(rst(5100 + FAR), DropReason::NoFlow);
        assert_eq!(world.happened(Event::Adopted), 0);
        // The other direction sent nothing: an unconfirmed flow is soon forgotten.
        world.after_secs(66);
        world.has_flows(0, 0);
        client.sends_in_vain(ack(5100, 9200), DropReason::BadCookie);
        server.sends_in_vain(data(9000, 5100, 200), DropReason::NoFlow);
    }

    fn resets_of_running_connections_pass_in_the_grace_time(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = adopting(&world, Stray::Drop);
        // What a host answers where it has no connection.
        client.passes(rst(5100));
        client.passes(data(5000, 9000, 10));
        server.passes(rst(9000));
        // One that acknowledges answers a SYN, and those were ours.
        server.sends_in_vain(rst_ack(0, 5001), DropReason::NoFlow);
        world.has_flows(0, 0);
        world.after_secs(61);
        client.sends_in_vain(rst(5100), DropReason::NoFlow);
        server.sends_in_vain(rst(9000), DropReason::NoFlow);
    }

    fn a_syn_of_the_lan_over_a_connection_that_may_be_running_passes(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = adopting(&world, Stray::Drop);
        server.passes(data(9000, 5100, 200));
        server.passes(syn(777).mss(1460));
        client.passes(syn_ack(888, 778).mss(1460));
        server.passes(ack(778, 889));
        client.passes(data(889, 778, 10));
        world.has_flows(0, 1);
    }

    fn after_the_grace_time_strays_are_dropped_or_reset_as_policy_says(world, client, server) {
        let _ = (client, server);
        for stray in [Stray::Drop, Stray::Reset] {
            let (world, client, server) = adopting(&world, stray);
            world.after_secs(60);
            let resets = stray == Stray::Reset;
            for host in [&client, &server] {
                for (seg, reset) in [
                    (data(5000, 9000, 100), rst(9000)),
                    (ack(5000, 9000), rst(9000)),
                    (fin(5000, 9000), rst(9000)),
                ] {
                    host.sends(seg);
                    if resets {
                        host.gets(reset);
                    }
                    host.gets(nothing());
                }
                // A reset is never answered.
                host.sends_in_vain(rst(5000), DropReason::NoFlow);
                host.sends_in_vain(rst_ack(5000, 9000), DropReason::NoFlow);
            }
            world.has_flows(0, 0);
            assert_eq!(world.happened(Event::StrayReset), if resets { 6 } else { 0 });
        }
    }
}

// ---- ports that are used again ----

in_every_mode! {
    fn a_client_that_ignores_the_challenge_is_answered_on_its_second_syn_and_the_old_connection_stays_until_the_proof(
        world, client, server
    ) {
        let terms = Terms::linux(world.mss());
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(PSH, 50);
        transfer.client(0, 0);
        let j = transfer.joined.clone();
        world.after_secs(60);
        let isn = 0x0BAD_CAFE;
        client.sends(terms.on(syn(isn), (CLIENT_TS + 50, 0)));
        client.gets(ack(j.o(50), j.c(100)).any_options());
        world.after_secs(1);
        client.sends(terms.on(syn(isn), (CLIENT_TS + 1050, 0)));
        let offered = client.gets(syn_ack(ANY, isn + 1).window(0).any_options());
        server.gets(nothing());
        // The server still sends on the old connection, and the box still translates.
        transfer.server(PSH, 20);
        world.has_flows(1, 0);
        client.sends(ack(isn + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
        let server_syn = server.gets(segment(SYN, isn, 0).any_window().any_options());
        let j = answer(&client, &server, terms, isn, 0x4444_4444, offered, server_syn);
        let mut transfer = Transfer::new(&client, &server, j);
        transfer.client(PSH, 10);
        transfer.server(PSH, 10);
        world.has_flows(1, 0);
    }

    fn a_connection_survives_syns_in_its_name_that_are_never_proved(world, client, server) {
        let terms = Terms::linux(world.mss());
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(0, 0);
        let j = transfer.joined.clone();
        for n in 0..5u32 {
            client.sends(terms.on(syn(0xBAD_0000 + n), (n, 0)));
            if n == 0 {
                client.gets(ack(j.o(0), j.c(100)).any_options());
            } else {
                client.gets(syn_ack(ANY, 0xBAD_0001 + n).window(0).any_options());
            }
            world.after_secs(1);
        }
        server.gets(nothing());
        transfer.server(PSH, 30);
        transfer.client(PSH, 30);
        transfer.server(0, 0);
        // It has shown itself: the next SYN is challenged again.
        client.sends(terms.on(syn(0xBAD_CAFE), (77, 0)));
        client.gets(ack(j.o(30), j.c(130)).any_window().any_options());
        transfer.client(PSH, 1);
        transfer.closes_from_the_server();
    }

    fn a_proof_of_an_old_syn_does_not_replace_a_connection_that_has_sent_since(world, client, server) {
        let terms = Terms::linux(world.mss());
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        client.sends(terms.on(syn(0xBAD_0000), (1, 0)));
        client.gets(ack(transfer.joined.o(0), transfer.joined.c(0)).any_window().any_options());
        world.after_secs(1);
        client.sends(terms.on(syn(0xBAD_0000), (2, 0)));
        let offered = client.gets(syn_ack(ANY, 0xBAD_0001).any_options().window(0));
        transfer.client(PSH, 100);
        transfer.server(0, 0);
        // Numbers of another connection are out of sequence here: the sender learns where this one stands.
        client.sends(ack(0xBAD_0001, offered.seq + 1).maybe_ts(echoed(&offered)));
        server.gets(nothing());
        client.gets(ack(transfer.joined.o(0), transfer.joined.c(200)).any_window().any_options());
        transfer.server(PSH, 100);
    }

    fn a_syn_of_the_lan_over_a_proxied_connection_is_challenged(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(PSH, 40);
        let j = transfer.joined.clone();
        server.sends(Terms::linux(world.mss()).on(syn(0xBAD_CAFE), (1, 0)));
        server.gets(ack(j.c(100), j.s(0)).any_window().any_options());
        client.gets(nothing());
        transfer.client(0, 0);
        transfer.server(PSH, 1);
        // Once it has reset the old connection, its SYN passes.
        server.sends(rst(j.s(41)));
        client.gets(rst(j.o(41)));
        server.passes(Terms::linux(world.mss()).on(syn(0xBAD_CAFE), (2, 0)));
        world.has_flows(0, 1);
    }
}

// ---- what may be tested, and who goes first ----

in_every_mode! {
    fn where_no_syn_was_answered_no_acknowledgement_is_tested(world, client, server) {
        // Another process may have answered before this one began: for two epochs everything is tested.
        client.sends_in_vain(ack(5000, 9000), DropReason::BadCookie);
        world.after_secs(133);
        client.sends_in_vain(ack(5000, 9000), DropReason::BadCookie);
        assert_eq!(world.happened(Event::Unasked), 0);
        world.after_secs(2);
        for n in 0..10 {
            client.sends_in_vain(ack(5000 + n, 9000), DropReason::BadCookie);
        }
        assert_eq!(world.happened(Event::Unasked), 10);
        // Who was answered is tested; who is not, between other ends, is not.
        let (offered, _) = prove_from(&world, &client, &server, Terms::linux(world.mss()), 60_000);
        world.on_port(1).0.sends_in_vain(ack(CLIENT_ISN + 1, offered.seq + 1), DropReason::BadCookie);
        assert_eq!(world.happened(Event::Unasked), 11);
    }

    fn a_prefix_that_guesses_wrong_is_tested_for_what_was_answered_alone(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = world.mode().world_with(|config| {
            config.rate = RateLimit { failures: 1, ..config.rate.clone() };
        });
        // An address of the client's own network, and one of another.
        let offered = connect(&client, Terms::linux(world.mss()), CLIENT_ISN);
        let (other_client, other_server) = world.pair(40, 1, 50);
        let elsewhere = connect(&other_client, Terms::linux(world.mss()), CLIENT_ISN);
        for n in 0..8 {
            let (guesser, _) = world.pair(0, 100 + n as u8, 2000);
            let tested = n < 5;
            guesser.sends_in_vain(
                ack(5000, 9000),
                if tested { DropReason::BadCookie } else { DropReason::RateLimited },
            );
        }
        other_client.sends(ack(CLIENT_ISN + 1, elsewhere.seq + 1).maybe_ts(echoed(&elsewhere)));
        other_server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        // In the client's own name: the budget stays spent, and the client's proof costs nothing of it.
        client.sends_in_vain(ack(CLIENT_ISN + 3, offered.seq + 1), DropReason::RateLimited);
        client.sends_in_vain(ack(CLIENT_ISN + 9, offered.seq + 2), DropReason::RateLimited);
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        assert_eq!(world.happened(Event::CookieRemembered), u64::from(!world.mode().cache));
        // Who knows the number of the SYN has sent it, and each guess costs another.
        let (guesser, server) = world.pair(0, 78, 50);
        for wrong in [1, 2, 1 << 31] {
            let offered = connect(&guesser, Terms::linux(world.mss()), CLIENT_ISN);
            guesser.sends_in_vain_for_any_reason(ack(CLIENT_ISN + 1, offered.seq.wrapping_add(1 + wrong)));
            let right = ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered));
            guesser.sends_in_vain(right, DropReason::RateLimited);
            server.gets(nothing());
        }
        let offered = connect(&guesser, Terms::linux(world.mss()), CLIENT_ISN);
        guesser.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
    }

    fn a_connection_that_never_carried_data_is_evicted_first_and_both_ends_are_reset(world, client, server) {
        let _ = (client, server);
        // Eight connections fill the table.
        let (world, ..) = world.mode().world_with(|config| config.table_buckets = 1);
        let terms = Terms::linux(world.mss());
        let mut transfers = Vec::new();
        for port in 0..8 {
            let (client, server) = world.on_port(100 + port);
            let mut transfer = linux(&world, &client, &server);
            transfer.client(0, 0);
            if port % 2 == 0 {
                transfer.client(PSH, 10);
            }
            transfers.push((transfer, client, server));
        }
        world.after_secs(4);
        let mut gone = Vec::new();
        for n in 0..4 {
            let (client, server) = world.on_port(200 + n);
            let offered = connect(&client, terms, CLIENT_ISN);
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
            let mut resets = Vec::new();
            for (side, frame) in world.discard() {
                let got = read(&frame, world.now()).expect("a segment");
                if got.flags == RST {
                    let ends = (got.ports.0, got.ports.1);
                    resets.push((side, got.seq, ends));
                } else {
                    assert_eq!((side, got.flags, got.seq), (Side::Lan, SYN, CLIENT_ISN));
                }
            }
            resets.sort_by_key(|reset| reset.0 as u8);
            // Exactly the next number each end expects (RFC 5961 section 3).
            let evicted = transfers.iter().position(|(_, client, _)| client.ends().sport == resets[1].2.1).unwrap();
            assert!(evicted % 2 == 1 && !gone.contains(&evicted), "{evicted} behind {gone:?}");
            gone.push(evicted);
            let (transfer, old_client, old_server) = &transfers[evicted];
            let j = &transfer.joined;
            let ports = (old_client.ends().sport, old_server.ends().sport);
            let mut wanted = vec![(Side::Wan, j.o(0), (ports.1, ports.0)), (Side::Lan, j.c(0), ports)];
            wanted.sort_by_key(|reset| reset.0 as u8);
            assert_eq!(resets, wanted);
            // The new one is carried at once.
            let dialled_ts = CLIENT_TS + 1;
            server.sends(terms.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, dialled_ts)));
            world.discard();
            let stamps = Some((CLIENT_TS + 2, offered.ts().unwrap().0));
            client.sends(data(CLIENT_ISN + 1, offered.seq + 1, 10).maybe_ts(stamps));
            server.gets(data(CLIENT_ISN + 1, SERVER_ISN + 1, 10).any_options());
        }
        assert_eq!(world.happened(Event::EvictedSilent), 4);
        // All that is left has carried something, and stays while it carries more.
        for (transfer, ..) in transfers.iter_mut().step_by(2) {
            transfer.client(PSH, 10);
            transfer.server(PSH, 10);
        }
        let (client, _) = world.on_port(300);
        let offered = connect(&client, terms, CLIENT_ISN);
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
        client.gets(rst(offered.seq + 1).any_window());
        for (transfer, ..) in transfers.iter_mut().step_by(2) {
            transfer.client(PSH, 10);
            transfer.server(PSH, 10);
        }
    }
}

/// A segment in whose payload or header a bit has flipped.
fn damaged(host: &Host, seg: &Seg) -> Vec<u8> {
    let mut frame = host.frame(seg);
    let last = frame.len() - 1;
    frame[last] ^= 0x10;
    frame
}

in_every_mode! {
    fn a_damaged_segment_is_no_acknowledgement(world, client, server) {
        let terms = Terms::linux(world.mss());
        let (offered, server_syn) = prove_from(&world, &client, &server, terms, 200);
        server.sends(answer_to(&server_syn, terms));
        update(&client, &offered);
        let seg = data(CLIENT_ISN + 1, offered.seq + 1, 100).maybe_ts(echoed(&offered));
        let _ = world.inject(Side::Wan, &damaged(&client, &seg));
        world.discard();
        assert!(waits(&world, &server, 750).is_some(), "the server drops it, and is still to be acknowledged");
        last_acknowledgement(&server);
        client.sends(seg);
        server.gets(data(CLIENT_ISN + 1, SERVER_ISN + 1, 100).maybe_ts(Some((CLIENT_TS + 1, SERVER_TS))));
    }

    fn a_congestion_mark_in_the_segment_that_answers_the_last_one_is_echoed(world, client, server) {
        teach_ecn(&world);
        let terms = Terms::linux(world.mss());
        let (offered, server_syn) = asks_for_ecn(&client, &server, terms, ECE | CWR);
        let j = answer(&client, &server, terms, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        let (inner, outer) = (Some((CLIENT_TS + 2, SERVER_TS)), Some((CLIENT_TS + 2, j.ts_out(SERVER_TS))));
        for (at, flags) in [(0, 0), (10, CWR)] {
            client.sends(segment(ACK | PSH | flags, j.c(at), j.o(0)).maybe_ts(outer).payload(10).tos(3));
            server.gets(segment(ACK | PSH, j.c(at), j.s(0)).maybe_ts(inner).payload(10).tos(0));
            let stamps = |value| Some((value, CLIENT_TS + 2));
            server.sends(ack(j.s(0), j.c(at + 10)).maybe_ts(stamps(SERVER_TS + 1)));
            client.gets(ack(j.o(0), j.c(at + 10)).flags(ECE).maybe_ts(stamps(j.ts_out(SERVER_TS + 1))));
        }
    }

    fn a_syn_over_a_connection_that_may_be_running_is_answered_and_opens(world, client, server) {
        let _ = (client, server);
        let (world, client, server) =
            world.mode().world_with(|config| config.adopt_grace = std::time::Duration::from_secs(60));
        server.passes(data(9000, 5100, 200));
        let j = open(&client, &server, Terms::linux(world.mss()), Terms::linux(world.mss()));
        Transfer::new(&client, &server, j).closes_from_the_client();
    }

    fn a_syn_ack_repeated_while_its_acknowledgement_is_withheld_does_not_hasten_the_update(world, client, server) {
        let terms = Terms::linux(world.mss());
        let (offered, server_syn) = prove_from(&world, &client, &server, terms, 500);
        let answer = answer_to(&server_syn, terms);
        server.sends(answer.clone());
        update(&client, &offered);
        world.after_ms(200);
        server.sends(answer);
        last_acknowledgement(&server);
        assert_eq!(waits(&world, &client, 790), None, "updates are repeated a second after the first");
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered)));
        last_acknowledgement(&server);
    }
}

in_every_mode! {
    fn early_data_of_the_responder_and_a_reset_behind_it_pass(world, client, server) {
        let theirs = Terms::linux(world.mss());
        server.passes(theirs.on(syn(0x4000_0000), (1, 0)));
        client.passes(theirs.on(syn_ack(0x4000_0900, 0x4000_0001), (6, 1)));
        client.passes(data(0x4000_0901, 0x4000_0001, 40).nop().nop().ts(7, 1));
        client.passes(rst(0x4000_0929));
    }
}

#[test]
fn a_blind_acknowledgement_does_not_establish_a_passed_connection() {
    for guess in [0x4000_0000u32, 0x1000_0000, 5] {
        let (world, client, server) = Mode::V4.world_with(|config| config.introductions = 1000);
        client.passes(syn(CLIENT_ISN).mss(1460));
        server.passes(syn_ack(0x2000_0000, CLIENT_ISN + 1).mss(1460));
        client.sends(ack(CLIENT_ISN + 1, 0x2000_0001u32.wrapping_add(guess)));
        world.discard();
        world.after_secs(300);
        world.has_flows(0, 0);
    }
}
