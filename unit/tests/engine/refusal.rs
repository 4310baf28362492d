//! Ports that let nobody in: who learns of a refusal from whom, what the next client meets, how the box sees that a port is open again, and checks that
//! reset without an acknowledgement.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tcpstate::config::Asymmetric;
use tcpstate::{Config, DropReason, Event, Side, Verdict};
use unit::in_every_mode;
use unit::script::*;

/// A world that remembers for ten seconds what clients met.
fn remembering(world: &World) -> World {
    changed(world, |_| ())
}

fn changed(world: &World, change: impl FnOnce(&mut Config)) -> World {
    let (world, ..) = world.mode().world_with(|config| {
        config.closed_memory = Duration::from_secs(10);
        change(config);
    });
    // Long enough after the start that nothing is presumed of SYNs answered before it.
    world.after_secs(140);
    world
}

/// Both ends of a connection of the `n`th of networks that have nothing to do with each other.
fn unrelated(world: &World, n: u8, port: u16) -> (Host, Host) {
    let (client, server) = world.pair(0, 1, port);
    let src: IpAddr = match client.ends().src {
        IpAddr::V4(_) => Ipv4Addr::new(30, n, 1, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2700, u16::from(n), 1, 1, 0, 0, 0, 1).into(),
    };
    let there = FlowKey { src, ..client.ends() };
    let back = FlowKey { dst: src, ..server.ends() };
    (world.host(Side::Wan, there), world.host(Side::Lan, back))
}

fn offer(world: &World) -> Seg {
    Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0))
}

/// The box answers a client's SYN.
#[track_caller]
fn is_answered(world: &World, client: &Host) -> Got {
    client.sends(offer(world));
    client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options())
}

#[track_caller]
fn proves(client: &Host, server: &Host, offered: &Got) -> Got {
    let stamps = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
    client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(stamps));
    server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options())
}

/// A proved client is refused by its server.
#[track_caller]
fn is_refused(world: &World, (client, server): &(Host, Host)) {
    let offered = is_answered(world, client);
    proves(client, server, &offered);
    server.sends(rst_ack(0, CLIENT_ISN + 1));
    client.gets(rst(offered.seq + 1));
}

/// The box refuses for the server.
#[track_caller]
fn is_refused_at_once(world: &World, client: &Host) {
    client.sends(offer(world));
    client.gets(rst_ack(0, CLIENT_ISN + 1));
}

/// A check that resets what the SYN-ACK opened without having acknowledged it; what the server gets of that.
#[track_caller]
fn checks(world: &World, (client, server): &(Host, Host)) -> Got {
    let offered = is_answered(world, client);
    client.sends(resets(&offered));
    client.gets(nothing());
    server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options())
}

/// The same where the server is not asked.
#[track_caller]
fn checks_in_vain(world: &World, client: &Host) {
    let offered = is_answered(world, client);
    client.sends_in_vain(resets(&offered), DropReason::Consumed);
}

fn resets(offered: &Got) -> Seg {
    let stamps = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
    rst_ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(stamps)
}

/// The server's SYN-ACK to this SYN.
fn answer_to(world: &World, server_syn: &Got) -> Seg {
    let stamps = (SERVER_TS, server_syn.ts().map_or(0, |(value, _)| value));
    Terms::linux(world.mss()).on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), stamps)
}

const SIGNATURE: [u8; 20] = [19, 18, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 1, 1];

in_every_mode! {
    fn a_server_that_is_asked_in_a_clients_place_is_granted_no_more_than_its_syn_offered(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        let (client, server) = unrelated(&world, 1, 1000);
        let offered = is_answered(&world, &client);
        client.sends(resets(&offered).window(600));
        client.gets(nothing());
        let asked = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        assert!(asked.window <= 600, "{}", asked.window);
    }

    fn a_refused_network_closes_the_port_to_nobody_else(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        // Any number of networks that are related to each other.
        for net in 0..20 {
            is_refused(&world, &world.pair(net, 1, 1000));
        }
        is_refused_at_once(&world, &world.pair(19, 2, 1001).0);
        is_answered(&world, &unrelated(&world, 1, 1000).0);
        is_answered(&world, &world.pair(50, 1, 1000).0);
    }

    fn three_unrelated_networks_that_were_refused_close_the_port_to_everybody_until_it_answers_somebody(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        for n in 0..3 {
            is_answered(&world, &unrelated(&world, 9, 1000 + u16::from(n)).0);
            is_refused(&world, &unrelated(&world, n, 1000));
        }
        // The first SYN that has met nothing itself sees for all like it.
        let (scout, scouted) = unrelated(&world, 10, 1000);
        scout.passes(offer(&world));
        is_refused_at_once(&world, &unrelated(&world, 11, 1000).0);
        let (next, _) = unrelated(&world, 11, 1001);
        is_refused_at_once(&world, &next);
        assert_eq!((world.happened(Event::Retried), world.happened(Event::ClosedPort)), (1, 2));
        scouted.passes(syn_ack(SERVER_ISN, CLIENT_ISN + 1).mss(world.mss()));
        is_answered(&world, &unrelated(&world, 11, 1002).0);
        is_answered(&world, &unrelated(&world, 0, 1002).0);
        // It answers: whom it bars now bars nobody else, however many they are.
        for n in 20..24 {
            is_refused(&world, &unrelated(&world, n, 1000));
        }
        is_answered(&world, &unrelated(&world, 12, 1000).0);
        is_refused_at_once(&world, &unrelated(&world, 23, 1001).0);
    }

    fn a_flood_to_a_port_that_is_closed_to_everybody_keeps_no_honest_client_out(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        // The server bars the networks of an attacker, which has real hosts in three.
        for n in 0..3 {
            is_refused(&world, &unrelated(&world, n, 1000));
        }
        for _ in 0..5 {
            world.after_ms(1001);
            // It spends what may pass within each second, and the refusals.
            for n in 100..120 {
                let (forged, barred) = unrelated(&world, n, 1000);
                forged.sends(offer(&world));
                if barred.has_more() {
                    barred.gets(unchanged());
                    barred.passes(rst_ack(0, CLIENT_ISN + 1));
                } else {
                    forged.gets(anything());
                }
            }
        }
        let (honest, open) = unrelated(&world, 50, 1000);
        let offered = is_answered(&world, &honest);
        let server_syn = proves(&honest, &open, &offered);
        open.sends(answer_to(&world, &server_syn));
        honest.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
        world.tick(Duration::from_millis(750));
        world.discard();
        is_answered(&world, &unrelated(&world, 51, 1000).0);
    }

    fn a_caller_that_proved_nothing_teaches_nobody_anything(world, client, server) {
        let _ = (client, server);
        let world = changed(&world, |config| config.introductions = 3);
        // Signed, and introduced.
        for n in 0..3 {
            let (client, server) = unrelated(&world, n, 1000);
            client.passes(syn(CLIENT_ISN).mss(1460).raw(&SIGNATURE));
            server.passes(rst_ack(0, CLIENT_ISN + 1));
            let (client, server) = unrelated(&world, n, 1001);
            client.passes(offer(&world));
            server.passes(rst_ack(0, CLIENT_ISN + 1));
        }
        assert_eq!(world.happened(Event::Introduced), 3);
        is_answered(&world, &unrelated(&world, 4, 1000).0);
        // Nor the network that it says it is of; but the next SYN of that sees for itself.
        unrelated(&world, 0, 1002).0.sends_in_vain(offer(&world), DropReason::SilentPort);
        world.after_ms(1001);
        let before = world.happened(Event::Retried);
        unrelated(&world, 0, 1003).0.passes(offer(&world));
        assert_eq!(world.happened(Event::Retried), before + 1);
    }

    fn what_an_unproved_syn_is_answered_changes_nothing_that_is_known(world, client, server) {
        let _ = (client, server);
        let world = changed(&world, |config| config.introductions = 1);
        let plain = Terms { wscale: Some(3), ..Terms::linux(1300) };
        let (client, server) = world.on_port(1000);
        client.passes(offer(&world));
        server.passes(plain.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS)));
        world.after_secs(2);
        let offered = is_answered(&world, &world.on_port(1001).0);
        assert_eq!((offered.mss(), offered.wscale()), (Some(1300), Some(3)), "the first is believed");
        // Refused to all but one who asks without a proof: those are no news of the server's options.
        for n in 0..3 {
            is_refused(&world, &unrelated(&world, n, 1000));
        }
        world.after_secs(70);
        for n in 0..3 {
            is_refused(&world, &unrelated(&world, n, 1001));
        }
        for port in 0..6 {
            world.after_ms(1100);
            let (client, server) = unrelated(&world, 0, 2000 + port);
            client.sends(syn(CLIENT_ISN).mss(1460));
            if server.has_more() {
                server.gets(unchanged());
                server.passes(syn_ack(SERVER_ISN, CLIENT_ISN + 1).mss(600));
            } else {
                client.gets(anything());
            }
        }
        let offered = is_answered(&world, &unrelated(&world, 30, 1001).0);
        assert_eq!((offered.mss(), offered.wscale()), (Some(1300), Some(3)));
    }

    fn one_client_passes_no_flood_of_syns_behind_the_first(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        let (client, server) = world.pair(0, 1, 1000);
        client.passes(syn(CLIENT_ISN).mss(1460).raw(&SIGNATURE));
        for isn in [CLIENT_ISN, CLIENT_ISN + 9] {
            client.passes(syn(isn).mss(1460).raw(&SIGNATURE));
        }
        for isn in [CLIENT_ISN, CLIENT_ISN + 9, CLIENT_ISN + 77] {
            client.sends_in_vain(syn(isn).mss(1460).raw(&SIGNATURE), DropReason::NotPassed);
        }
        world.after_ms(600);
        client.passes(syn(CLIENT_ISN + 9).mss(1460).raw(&SIGNATURE));
        server.passes(syn_ack(SERVER_ISN, CLIENT_ISN + 10).mss(1460).raw(&SIGNATURE));
        client.passes(ack(CLIENT_ISN + 10, SERVER_ISN + 1).raw(&SIGNATURE));
    }

    fn an_unproved_syn_takes_no_connection_s_place_whose_end_is_not_acknowledged(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        let terms = Terms::linux(world.mss());
        let (client, server) = world.pair(0, 1, 1000);
        let j = open(&client, &server, terms, terms);
        let stamps = |n| (CLIENT_TS + n, j.ts_out(SERVER_TS));
        client.sends(terms.on(fin(j.c(0), j.o(0)), stamps(1)));
        server.gets(anything());
        server.sends(data(j.s(100), j.c(1), 100).flags(FIN).ts(SERVER_TS + 1, CLIENT_TS + 1));
        client.gets(anything());
        // Longer than the SYNs of the connection are remembered, and than its port counts as lively.
        world.tick(Duration::from_secs(110));
        world.discard();
        is_refused(&world, &world.pair(0, 1, 1001));
        world.after_ms(1100);
        let before = world.happened(Event::Retried) + world.happened(Event::Passed);
        for attempt in [offer(&world), syn(CLIENT_ISN + 99_999).mss(1460).raw(&SIGNATURE)] {
            let verdict = world.inject(Side::Wan, &client.frame(&attempt));
            assert_ne!(verdict, Verdict::Forward);
            world.discard();
        }
        assert_eq!(world.happened(Event::Retried) + world.happened(Event::Passed), before);
        server.sends(data(j.s(0), j.c(1), 100).ts(SERVER_TS + 2, CLIENT_TS + 1));
        client.gets(data(j.o(0), j.c(1), 100).any_window().any_options());
    }

    fn a_restarted_server_is_open_within_a_second(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        is_refused(&world, &world.pair(0, 1, 1000));
        world.after_ms(900);
        is_refused_at_once(&world, &world.pair(0, 2, 1000).0);
        world.after_ms(101);
        // It is not up yet: its refusal renews what is remembered.
        let (client, server) = world.pair(0, 3, 1000);
        client.passes(offer(&world));
        server.passes(rst_ack(0, CLIENT_ISN + 1));
        world.after_ms(900);
        is_refused_at_once(&world, &world.pair(0, 4, 1000).0);
        world.after_ms(101);
        let (client, server) = world.pair(0, 5, 1000);
        client.passes(offer(&world));
        server.passes(syn_ack(SERVER_ISN, CLIENT_ISN + 1).mss(world.mss()));
        client.passes(ack(CLIENT_ISN + 1, SERVER_ISN + 1));
        is_answered(&world, &world.pair(0, 6, 1000).0);
        world.has_flows(0, 1);
    }

    fn a_port_is_tried_no_more_often_than_the_rate_for_all_allows(world, client, server) {
        let _ = (client, server);
        let world = changed(&world, |config| config.retries = 0);
        is_refused(&world, &world.pair(0, 1, 1000));
        world.after_secs(5);
        is_refused_at_once(&world, &world.pair(0, 2, 1000).0);
        checks_in_vain(&world, &world.pair(1, 2, 1000).0);
        assert_eq!((world.happened(Event::Retried), world.happened(Event::ServerTried)), (0, 0));
    }

    fn a_half_open_check_is_answered_by_its_server_from_the_second_on(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        // Alive: the server sees what the check would have shown it.
        let pair = world.pair(0, 1, 1000);
        let server_syn = checks(&world, &pair);
        assert_eq!((server_syn.mss(), server_syn.ttl), (Some(world.mss()), CLIENT_TTL));
        pair.1.sends(answer_to(&world, &server_syn));
        pair.1.gets(rst(CLIENT_ISN + 1));
        world.has_flows(0, 0);
        // It is known to be there for a moment.
        checks_in_vain(&world, &world.pair(0, 1, 1001).0);
        world.after_ms(2200);
        // Dead.
        let pair = world.pair(0, 1, 1002);
        checks(&world, &pair);
        pair.1.sends_in_vain(rst_ack(0, CLIENT_ISN + 1), DropReason::Consumed);
        world.has_flows(0, 0);
        is_refused_at_once(&world, &world.pair(0, 1, 1003).0);
        for port in 0..40 {
            world.after_secs(2);
            let (client, server) = world.pair(0, 1, 1100 + port);
            client.passes(offer(&world));
            server.passes(rst_ack(0, CLIENT_ISN + 1));
        }
        // Alive again.
        world.after_secs(2);
        let (client, server) = world.pair(0, 1, 1005);
        client.passes(offer(&world));
        server.passes(syn_ack(SERVER_ISN, CLIENT_ISN + 1).mss(world.mss()));
        client.passes(rst_ack(CLIENT_ISN + 1, SERVER_ISN + 1));
        is_answered(&world, &world.pair(0, 1, 1006).0);
        assert_eq!((world.happened(Event::ServerTried), world.happened(Event::ResetProved)), (2, 3));
    }

    fn a_silent_server_is_silent_to_the_network_that_met_it_and_to_nobody_else(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        let pair = world.pair(0, 1, 1000);
        checks(&world, &pair);
        world.after_ms(501);
        pair.1.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        world.after_ms(1000);
        world.has_flows(0, 0);
        assert_eq!(world.happened(Event::Silent), 1);
        // The next sees for itself, and those beside it see nothing.
        let (client, server) = world.pair(0, 1, 1001);
        client.passes(offer(&world));
        world.pair(0, 1, 1002).0.sends_in_vain(offer(&world), DropReason::SilentPort);
        client.sends_in_vain(offer(&world), DropReason::NotPassed);
        world.after_ms(1001);
        client.passes(offer(&world));
        is_answered(&world, &world.pair(1, 1, 1000).0);
        // As long as it is tried, longer than it would be remembered.
        for port in 0..20 {
            world.after_secs(2);
            world.pair(0, 1, 1100 + port).0.passes(offer(&world));
        }
        let _ = server;
        let (client, server) = world.pair(0, 1, 2000);
        world.after_secs(2);
        client.passes(offer(&world));
        server.passes(syn_ack(SERVER_ISN, CLIENT_ISN + 1).mss(world.mss()));
        is_answered(&world, &world.pair(0, 1, 2001).0);
    }

    fn a_port_that_has_answered_within_the_last_minute_is_not_silent_to_anybody(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        let terms = Terms::linux(world.mss());
        let (first, first_server) = unrelated(&world, 1, 1000);
        open(&first, &first_server, terms, terms);
        world.after_secs(3);
        world.discard();
        let pair = world.pair(0, 1, 1000);
        checks(&world, &pair);
        world.after_ms(1600);
        world.discard();
        // The first to come sees for itself, and everybody else is answered.
        let (scout, _) = world.pair(0, 1, 1001);
        scout.passes(offer(&world));
        for port in 1002..1020 {
            is_answered(&world, &world.pair(0, 1, port).0);
        }
        assert_eq!(world.dropped(DropReason::SilentPort), 0);
        world.after_secs(70);
        world.discard();
        let pair = world.pair(0, 1, 1030);
        checks(&world, &pair);
        world.after_ms(1600);
        world.discard();
        world.pair(0, 1, 1031).0.passes(offer(&world));
        world.pair(0, 1, 1032).0.sends_in_vain(offer(&world), DropReason::SilentPort);
    }

    fn silence_that_a_connection_met_is_remembered_too(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        // One that waits, and one whose client resets at once.
        for (net, is_reset) in [(0, false), (1, true)] {
            let (client, server) = world.pair(net, 1, 1000);
            let offered = is_answered(&world, &client);
            proves(&client, &server, &offered);
            if is_reset {
                client.sends_in_vain(resets(&offered), DropReason::Consumed);
            }
            world.after_ms(3300);
            world.discard();
            world.pair(net, 1, 1001).0.passes(offer(&world));
            world.pair(net, 1, 1002).0.sends_in_vain(offer(&world), DropReason::SilentPort);
        }
    }

    fn where_servers_may_answer_another_way_silence_says_nothing(world, client, server) {
        let _ = (client, server);
        let world = changed(&world, |config| config.asymmetric = Asymmetric::Bypass);
        let pair = world.pair(0, 1, 1000);
        checks(&world, &pair);
        world.after_ms(1600);
        world.discard();
        is_answered(&world, &world.pair(0, 1, 1001).0);
        assert_eq!(world.happened(Event::Silent), 0);
    }

    fn an_icmp_error_is_given_to_the_next_as_it_came(world, client, server) {
        let _ = (client, server);
        for is_check in [false, true] {
            let world = remembering(&world);
            let pair = world.pair(0, 1, 1000);
            let (client, server) = &pair;
            let router = FlowKey {
                src: match server.ends().src {
                    IpAddr::V4(_) => "198.51.100.77".parse().unwrap(),
                    IpAddr::V6(_) => "2001:db8:77::1".parse().unwrap(),
                },
                ttl: 200,
                ..server.ends()
            };
            let error =
                |seen: &Got| icmp_error(&router, world.mode().tags, Complaint::HostUnreachable, &seen.frame, 9999);
            if is_check {
                let seen = checks(&world, &pair);
                server.sends_in_vain(error(&seen), DropReason::Consumed);
            } else {
                let offered = is_answered(&world, client);
                let seen = proves(client, server, &offered);
                server.sends(error(&seen));
                client.gets(an_error(Complaint::HostUnreachable));
                client.gets(rst(offered.seq + 1));
                server.gets(rst(CLIENT_ISN + 1));
            }
            if !is_check {
                // The client's SYN was not the try.
                let (scout, scouted) = world.pair(0, 1, 1001);
                world.after_ms(1001);
                scout.passes(offer(&world));
                let frame = scout.frame(&offer(&world));
                let router = FlowKey { dport: 1001, ..router };
                scouted.passes(icmp_error(&router, world.mode().tags, Complaint::HostUnreachable, &frame, 9999));
            }
            for terms in [Terms::linux(world.mss()), Terms::bare(world.mss())] {
                let (next, _) = world.pair(0, 1, 1002);
                let sent = next.frame(&terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
                next.sends(sent.clone());
                let got = next.gets(an_error(Complaint::HostUnreachable));
                assert_eq!((got.addresses.0, got.ttl), (router.src, 200));
                assert_eq!(got.quote, packet_of(&sent), "the whole SYN, as it was sent");
                assert!(got.quoted_checksum_holds());
            }
            assert_eq!(world.happened(Event::UnreachablePort), 2);
            is_answered(&world, &world.pair(1, 1, 1000).0);
        }
    }

    fn a_reset_without_an_acknowledgement_lets_the_next_syn_try_the_port(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        let (client, _) = world.pair(0, 1, 1000);
        is_answered(&world, &client);
        client.sends_in_vain_for_any_reason(rst(CLIENT_ISN + 1));
        let (next, next_server) = world.pair(0, 1, 1001);
        next.passes(offer(&world));
        // One a second, of any sender. Others wait, and who has waited is answered.
        let (waiting, _) = world.pair(0, 1, 1002);
        waiting.sends_in_vain(offer(&world), DropReason::SilentPort);
        next_server.passes(rst_ack(0, CLIENT_ISN + 1));
        world.after_ms(1100);
        world.pair(0, 1, 1003).0.passes(offer(&world));
        is_answered(&world, &waiting);
        is_answered(&world, &world.pair(1, 1, 1002).0);
        // A port that lets others in is not tried so.
        let terms = Terms::linux(world.mss());
        let (other, other_server) = unrelated(&world, 1, 1000);
        open(&other, &other_server, terms, terms);
        world.after_secs(2);
        world.discard();
        for port in 1004..1008 {
            let (client, _) = world.pair(0, 1, port);
            is_answered(&world, &client);
            client.sends_in_vain_for_any_reason(rst(CLIENT_ISN + 1));
        }
        assert_eq!(world.happened(Event::Retried), 2);
    }

    fn a_forged_reset_makes_no_server_be_asked(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        let (client, server) = world.pair(0, 1, 1000);
        let offered = is_answered(&world, &client);
        for acked in [0, 1, offered.seq.wrapping_add(2), offered.seq.wrapping_add(77_777)] {
            let (one, _) = world.pair(0, 1, 1000);
            one.sends_in_vain_for_any_reason(rst_ack(CLIENT_ISN.wrapping_add(1), acked));
        }
        server.gets(nothing());
        assert_eq!(world.happened(Event::ResetProved), 0);
    }

    fn a_client_that_comes_back_while_its_server_is_asked_is_served(world, client, server) {
        let _ = (client, server);
        let world = remembering(&world);
        let pair = world.pair(0, 1, 1000);
        checks(&world, &pair);
        let (client, server) = &pair;
        let isn = CLIENT_ISN.wrapping_add(0x1000_0000);
        client.sends(Terms::linux(world.mss()).on(syn(isn), (CLIENT_TS + 9, 0)));
        let offered = client.gets(syn_ack(ANY, isn.wrapping_add(1)).any_window().any_options());
        let stamps = offered.ts().map(|(value, _)| (CLIENT_TS + 10, value));
        client.sends(ack(isn.wrapping_add(1), offered.seq + 1).maybe_ts(stamps));
        let seen = server.gets(segment(SYN, isn, 0).any_window().any_options());
        server.gets(rst(CLIENT_ISN + 1));
        let answer = (SERVER_TS, seen.ts().map_or(0, |(value, _)| value));
        server.sends(Terms::linux(world.mss()).on(syn_ack(SERVER_ISN, isn.wrapping_add(1)), answer));
        client.gets(ack(offered.seq + 1, isn.wrapping_add(1)).any_window().any_options());
        world.tick(Duration::from_millis(750));
        world.discard();
        world.has_flows(1, 0);
    }
}
