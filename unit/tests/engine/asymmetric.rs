//! Connections of which one direction does not cross the box: a SYN-ACK whose SYN left another way, and servers whose answers do.

use std::time::Duration;

use tcpstate::config::Asymmetric;
use tcpstate::{DropReason, Event, Side};
use unit::in_every_mode;
use unit::script::*;

/// A world in the same mode with this policy.
fn with(world: &World, asymmetric: Asymmetric) -> (World, Host, Host) {
    world.mode().world_with(|config| config.asymmetric = asymmetric)
}

/// A client proves itself to a server whose answers do not cross the box, and challenges the server's own SYN-ACK, once a second.
#[track_caller]
fn fails_to_connect(world: &World, port: u16) {
    let (client, server) = world.on_port(port);
    let terms = Terms::linux(world.mss());
    client.sends(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
    let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
    let proof = ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(offered.ts().map(|(value, _)| (CLIENT_TS + 1, value)));
    client.sends(proof.clone());
    server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
    // SYNs are repeated, of this connection and of those before.
    world.tick(Duration::from_millis(1050));
    world.discard();
    client.sends(proof);
    server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
}

in_every_mode! {
    fn an_answer_whose_syn_left_another_way_passes_and_what_follows_it(world, client, server) {
        let terms = Terms::linux(world.mss());
        client.passes(terms.on(syn_ack(900, 101), (6, 1)));
        client.passes(terms.on(syn_ack(900, 101), (7, 1)));
        client.passes(data(901, 101, 1000).nop().nop().ts(8, 1));
        // An hour of silence, and more bytes than any window, of which the other end's acknowledgements are not seen.
        world.after_secs(3600);
        for n in 0..200u32 {
            client.passes(data(901u32.wrapping_add(n.wrapping_mul(1 << 20)), 5000, 1000).nop().nop().ts(9 + n, 2));
        }
        world.has_flows(0, 1);
        assert_eq!(world.happened(Event::HalfSeen), 1);
        client.passes(fin(900 + (200 << 20), 5000).nop().nop().ts(500, 2));
        world.after_secs(3600 * 25);
        world.has_flows(0, 0);
        let _ = server;
    }

    fn an_acknowledgement_of_the_lan_makes_it_a_connection_like_any_other(world, client, server) {
        let terms = Terms::linux(world.mss());
        client.passes(terms.on(syn_ack(900, 101), (6, 1)));
        server.passes(ack(101, 901).nop().nop().ts(2, 6));
        server.passes(data(101, 901, 100).nop().nop().ts(3, 6));
        client.passes(data(901, 201, 100).nop().nop().ts(7, 3));
        server.passes(fin(201, 1001).nop().nop().ts(4, 7));
        client.passes(fin(1001, 202).nop().nop().ts(8, 4));
        server.passes(ack(202, 1002).nop().nop().ts(5, 8));
        world.after_secs(125);
        world.has_flows(0, 0);
    }

    fn an_answer_that_comes_after_its_connection_has_finished_ends_it_at_once(world, client, server) {
        // The client has got its SYN-ACK another way, and has said all; then the server's takes this way, and its FIN.
        server.passes(syn(100).mss(1460));
        server.passes(fin(101, 901));
        client.passes(syn_ack(900, 101).mss(1460));
        client.passes(fin(901, 102));
        server.passes(ack(102, 902));
        world.after_secs(125);
        world.has_flows(0, 0);
    }

    fn a_host_that_knows_nothing_of_it_ends_it(world, client, server) {
        client.passes(syn_ack(900, 101).mss(1460));
        server.passes(rst(101));
        world.has_flows(0, 0);
        client.sends_in_vain_for_any_reason(data(901, 101, 10));
    }

    fn a_client_behind_a_forged_answer_is_answered_as_ever(world, client, server) {
        client.passes(syn_ack(900, 101).mss(1460));
        let terms = Terms::linux(world.mss());
        Transfer::new(&client, &server, open(&client, &server, terms, terms)).closes_from_the_client();
    }

    fn no_more_answers_pass_in_a_second_than_the_rate_allows(world, client, server) {
        let _ = (client, server);
        let (world, ..) = world.mode().world_with(|config| config.passed_rate = 3);
        for n in 0..3 {
            world.on_port(1000 + n).0.passes(syn_ack(900, 101).mss(1460));
        }
        world.on_port(1003).0.sends_in_vain(syn_ack(900, 101).mss(1460), DropReason::NotPassed);
        // What other connections pass by is not used up.
        world.on_port(1004).0.passes(syn(1).raw(&[19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 1]));
    }

    fn where_policy_drops_it_nothing_passes(world, client, server) {
        let _ = (client, server);
        let (world, client, _) = with(&world, Asymmetric::Drop);
        client.sends_in_vain(syn_ack(900, 101).mss(1460), DropReason::NoFlow);
        world.has_flows(0, 0);
    }

    fn a_lan_whose_answers_come_another_way_is_not_cut_off(world, client, server) {
        let terms = Terms::linux(world.mss());
        server.passes(terms.on(syn(100), (1, 0)));
        server.passes(ack(101, 901).nop().nop().ts(2, 6));
        for n in 0..10u32 {
            world.after_secs(1000);
            server.passes(data(101 + 100 * n, 901 + n, 100).nop().nop().ts(3 + n, 7 + n));
        }
        assert_eq!(world.happened(Event::HalfSeen), 1);
        server.passes(fin(1101, 950).nop().nop().ts(30, 20));
        world.after_secs(125);
        world.has_flows(0, 0);
        let _ = client;
    }

    fn a_server_that_answers_another_way_is_found_and_nothing_else_changes(world, client, server) {
        let _ = (client, server);
        for n in 0..5 {
            fails_to_connect(&world, 2000 + n);
            assert_eq!(world.happened(Event::DirectReturn), u64::from(n >= 3));
        }
        let (client, _) = world.on_port(1);
        client.sends(syn(7).mss(1460));
        client.gets(syn_ack(ANY, 8).any_window().any_options());
        world.tick(Duration::from_secs(300));
        world.discard();
    }

    fn where_policy_bypasses_it_connects_from_then_on_until_it_answers(world, client, server) {
        let _ = (client, server);
        let (world, ..) = with(&world, Asymmetric::Bypass);
        for n in 0..4 {
            fails_to_connect(&world, 2000 + n);
        }
        world.tick(Duration::from_secs(300));
        world.discard();
        // Another worker hears of it.
        let (other, ..) = with(&world, Asymmetric::Bypass);
        assert!(world.publishes_to(&other) >= 1);
        for world in [&world, &other] {
            let (client, server) = world.on_port(3000);
            let terms = Terms::linux(world.mss());
            client.passes(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            // The server's answer goes to the client directly.
            client.passes(ack(CLIENT_ISN + 1, 9001).nop().nop().ts(CLIENT_TS + 1, 5));
            client.passes(data(CLIENT_ISN + 1, 9001, 100).nop().nop().ts(CLIENT_TS + 2, 5));
            world.after_secs(1000);
            client.passes(data(CLIENT_ISN + 101, 9500, 100).nop().nop().ts(CLIENT_TS + 3, 9));
            assert_eq!(world.happened(Event::Bypassed), 1);
            // One that does answer through the box is protected again.
            let (client, server_2) = world.on_port(3001);
            client.passes(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            server_2.passes(terms.on(syn_ack(9000, CLIENT_ISN + 1), (5, CLIENT_TS)));
            let (client, _) = world.on_port(3002);
            client.sends(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
            let _ = server;
        }
    }

    fn a_server_that_is_down_is_not_taken_for_one(world, client, server) {
        let _ = (client, server);
        let terms = Terms::linux(world.mss());
        for n in 0..6 {
            let (client, server) = world.on_port(2000 + n);
            client.sends(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
            let stamps = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(stamps));
            server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
            world.tick(Duration::from_secs(2));
            world.discard();
            // It probes the closed window.
            client.sends(ack(CLIENT_ISN, offered.seq + 1).maybe_ts(stamps));
            world.discard();
        }
        assert_eq!(world.happened(Event::DirectReturn), 0);
        world.tick(Duration::from_secs(300));
        world.discard();
    }
}

#[test]
fn a_full_table_gives_up_what_is_half_seen_first() {
    let (world, ..) = Mode::V4.world_with(|config| {
        config.table_buckets = 1;
        config.passed_rate = 1000;
    });
    let (established, server) = world.on_port(1);
    let terms = Terms::linux(1460);
    server.passes(terms.on(syn(100), (1, 0)));
    established.passes(terms.on(syn_ack(900, 101), (6, 1)));
    server.passes(ack(101, 901).nop().nop().ts(2, 6));
    for n in 0..20 {
        world.on_port(1000 + n).0.passes(syn_ack(900, 101).mss(1460));
    }
    // Those that are half seen take every place, since every newcomer gets theirs.
    assert_eq!(world.happened(Event::EvictedClosing), 13);
    established.passes(data(901, 101, 10).nop().nop().ts(7, 2));
    assert!(world.status(Side::Lan, &server.frame(&ack(101, 911))).is_some());
}
