//! Connections of sources that have proved themselves lately (`proved = pass`), as traces: they pass untouched, and of SYNs in such a source's name
//! no more get through than the budgets allow.

use std::sync::Arc;
use std::time::Duration;

use tcpstate::config::{Action, DestinationRule, Network, Proved, Settings};
use tcpstate::{Config, DropReason, Event, Policy, Proxy, Secrets};
use unit::in_every_mode;
use unit::script::*;

/// A world whose engine passes connections of proved sources.
fn passing(world: &World, change: impl FnOnce(&mut Config)) -> (World, Host, Host) {
    world.mode().world_with(|config| {
        config.proved = Proved::Pass;
        change(config);
    })
}

/// The client of these ends proves itself, on a connection that is reset again.
#[track_caller]
fn proves(client: &Host, server: &Host) {
    let terms = Terms::linux(client.mode().mss());
    let joined = open(client, server, terms, terms);
    client.sends(rst(joined.c(0)));
    server.gets(rst(joined.c(0)));
}

/// The client's SYN.
fn a_syn(client: &Host, isn: u32) -> Seg {
    Terms::linux(client.mode().mss()).on(syn(isn), (CLIENT_TS, 0))
}

/// Opens a connection that passes unchanged.
#[track_caller]
fn passes(client: &Host, server: &Host) {
    client.passes(a_syn(client, 1000));
    completes(client, server);
}

/// A world, and the ends of a connection of a proved source in it, whose client has sent 200 bytes that are not acknowledged.
fn sending(world: &World) -> (World, Host, Host) {
    let (world, client, server) = passing(world, |_| ());
    proves(&client, &server);
    let (client, server) = world.on_port(2);
    passes(&client, &server);
    client.passes(data(1001, 2001, 100).nop().nop().ts(CLIENT_TS + 2, SERVER_TS));
    client.passes(data(1101, 2001, 100).nop().nop().ts(CLIENT_TS + 2, SERVER_TS));
    (world, client, server)
}

/// The server answers the SYN that has passed, and the client completes the handshake.
#[track_caller]
fn completes(client: &Host, server: &Host) {
    let terms = Terms::linux(client.mode().mss());
    server.passes(terms.on(syn_ack(2000, 1001), (SERVER_TS, CLIENT_TS)));
    client.passes(ack(1001, 2001).nop().nop().ts(CLIENT_TS + 1, SERVER_TS));
}

/// The client's SYN is answered by the box.
#[track_caller]
fn is_answered(client: &Host, server: &Host) -> Got {
    client.sends(a_syn(client, 1000));
    server.gets(nothing());
    client.gets(syn_ack(ANY, 1001).any_window().any_options())
}

/// Of so many SYNs from ports of the client from this one on, how many the server gets; the client gets an answer to each of the others.
#[track_caller]
fn floods(world: &World, first: u16, count: u16) -> u16 {
    let mut passed = 0;
    for port in first..first + count {
        let (client, server) = world.on_port(port);
        client.sends(a_syn(&client, 1000));
        if server.has_more() {
            server.gets(unchanged());
            client.gets(nothing());
            passed += 1;
        } else {
            client.gets(syn_ack(ANY, 1001).any_window().any_options());
        }
    }
    passed
}

in_every_mode! {
    fn a_source_that_has_proved_itself_passes_and_nothing_of_its_connection_is_touched(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = passing(&world, |config| config.mss_clamp = Some(600));
        proves(&client, &server);
        let (client, server) = world.on_port(2);
        // With data, with an extension and signed: the server answers for itself.
        let offers = [a_syn(&client, 1000), a_syn(&client, 1000).raw(&[34, 2, 1, 1]), a_syn(&client, 1000).payload(10)];
        for (port, offer) in (3..).zip(offers) {
            let (client, server) = world.on_port(port);
            client.passes(offer);
            server.passes(Terms::linux(world.mss()).on(syn_ack(2000, 1001), (SERVER_TS, CLIENT_TS)));
        }
        passes(&client, &server);
        assert_eq!(world.happened(Event::ProvedPassed), 4);
        let stamped = |segment: Seg| segment.nop().nop().ts(CLIENT_TS + 2, SERVER_TS + 2);
        for _ in 0..2 {
            client.passes(stamped(data(1001, 2001, 100)));
            server.passes(stamped(data(2001, 1101, 1400)).flags(ACK | ECE));
            // Resets in the window and out of it, blind data, and SYNs are for the ends to judge.
            client.passes(rst(1001 + 5000));
            client.passes(rst(77));
            server.passes(rst(2001 + 5000));
            client.passes(data(99_999_999, 77_777_777, 10));
            client.passes(a_syn(&client, 1_000_000));
        }
        client.passes(stamped(fin(1101, 3401)));
        server.passes(stamped(fin(3401, 1102)));
        client.passes(stamped(ack(1102, 3402)));
        // Another source has proved nothing.
        let (client, server) = world.pair(0, 2, CLIENT_PORT);
        is_answered(&client, &server);
        assert_eq!((world.happened(Event::ProvedPassed), world.happened(Event::ProvedSpent)), (4, 0));
    }

    fn without_the_policy_every_connection_is_translated(world, client, server) {
        proves(&client, &server);
        let (client, server) = world.on_port(2);
        is_answered(&client, &server);
        assert_eq!(world.happened(Event::ProvedPassed), 0);
    }

    fn a_proof_at_one_server_stands_at_every_server_that_passes(world, client, server) {
        let _ = (client, server);
        let (_, _, server) = world.mode().world();
        let address = match server.ends().src {
            std::net::IpAddr::V4(address) => address.to_ipv6_mapped(),
            std::net::IpAddr::V6(address) => address,
        };
        let address = [96, 64, 32, 0].map(|shift| (address.to_bits() >> shift) as u32);
        let says = |proved| Arc::new(Settings { proved: Some(proved), ..Settings::default() });
        let (world, client, server) = passing(&world, |config| {
            let network = Network { address, prefix: 128 };
            config.rules = vec![DestinationRule { vlan: None, network, port: None, settings: says(Proved::Translate) }];
        });
        proves(&client, &server);
        let (client, server) = world.on_port(2);
        is_answered(&client, &server);
        let (client, server) = world.pair_to(0, 1, 3, 11);
        passes(&client, &server);
    }

    fn a_proof_lapses_and_a_connection_that_passed_and_was_completed_renews_it(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = passing(&world, |config| config.proved_memory = Duration::from_secs(600));
        proves(&client, &server);
        for port in 2..6 {
            world.after_secs(500);
            let (client, server) = world.on_port(port);
            world.operate(|proxy, _| while proxy.next_proved().is_some() {});
            passes(&client, &server);
            // Load shedding learns of it too.
            assert!(world.operate(|proxy, _| proxy.next_proved()).is_some());
        }
        // One that is not completed does not, whatever its server says.
        world.after_secs(500);
        let (client, server) = world.on_port(6);
        client.passes(a_syn(&client, 1000));
        server.passes(Terms::linux(world.mss()).on(syn_ack(2000, 1001), (SERVER_TS, CLIENT_TS)));
        client.sends(ack(1001, 2077));
        world.discard();
        world.after_secs(200);
        let (client, server) = world.on_port(7);
        is_answered(&client, &server);
    }

    fn a_flood_in_a_proved_sources_name_reaches_its_server_within_the_budget_of_half_open_connections(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = passing(&world, |config| config.proved_half_open = 5);
        proves(&client, &server);
        assert_eq!(floods(&world, 100, 60), 5);
        assert_eq!(world.happened(Event::ProvedSpent), 55);
        // Its owner connects all the same, as everybody does.
        let (client, server) = world.on_port(200);
        proves(&client, &server);
        // What is completed makes place for one more.
        let (client, server) = world.on_port(102);
        completes(&client, &server);
        assert_eq!(floods(&world, 300, 60), 1);
        // A server gives up what nobody completes.
        world.after_secs(85);
        assert_eq!(floods(&world, 400, 60), 5);
    }

    fn a_flood_of_repeated_syns_in_its_name_reaches_the_server_within_the_budget_of_syns(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = passing(&world, |config| config.proved_syns = 4);
        proves(&client, &server);
        let (client, server) = world.on_port(2);
        client.passes(a_syn(&client, 1000));
        for _ in 0..3 {
            client.passes(a_syn(&client, 1000));
        }
        for _ in 0..50 {
            client.sends(a_syn(&client, 1000));
            server.gets(nothing());
            client.gets(syn_ack(ANY, 1001).any_window().any_options());
        }
        let (other, other_server) = world.on_port(3);
        is_answered(&other, &other_server);
        world.after_secs(2);
        // Its owner's own SYN may be among those that passed, and the server has it: the connection passes.
        client.passes(a_syn(&client, 1000));
        completes(&client, &server);
        client.passes(data(1001, 2001, 100).nop().nop().ts(CLIENT_TS + 2, SERVER_TS));
    }

    fn a_repeated_syn_beyond_the_budget_is_answered_and_either_answer_connects(world, client, server) {
        let _ = (client, server);
        for server_was_first in [false, true] {
            let (world, client, server) = passing(&world, |config| config.proved_syns = 1);
            proves(&client, &server);
            world.after_secs(2);
            let (client, server) = world.on_port(2);
            let terms = Terms::linux(world.mss());
            client.passes(a_syn(&client, 1000));
            if server_was_first {
                server.passes(terms.on(syn_ack(2000, 1001), (SERVER_TS, CLIENT_TS)));
            }
            let offered = is_answered(&client, &server);
            // It acknowledges the box's, because the server's is lost, or was never sent.
            client.sends(ack(1001, offered.seq + 1).maybe_ts(offered.ts().map(|(value, _)| (CLIENT_TS + 1, value))));
            let server_syn = server.gets(segment(SYN, 1000, 0).any_window().any_options());
            let joined = answer(&client, &server, terms, 1000, 2000, offered, server_syn);
            Transfer::new(&client, &server, joined).closes_from_the_client();
        }
    }

    fn a_syn_that_was_answered_is_answered_again_and_not_passed_beside_it(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = passing(&world, |_| ());
        let (early, early_server) = world.on_port(2);
        let offered = is_answered(&early, &early_server);
        proves(&client, &server);
        world.after_secs(1);
        let again = is_answered(&early, &early_server);
        assert_eq!(again.seq, offered.seq);
        assert_eq!(world.happened(Event::ProvedPassed), 0);
        let (other, other_server) = world.on_port(3);
        passes(&other, &other_server);
    }

    fn a_closed_port_answers_for_itself(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = passing(&world, |config| config.closed_memory = Duration::from_secs(10));
        proves(&client, &server);
        for port in 2..6 {
            let (client, server) = world.on_port(port);
            client.passes(a_syn(&client, 1000));
            server.passes(rst_ack(0, 1001));
        }
        assert_eq!((world.happened(Event::ProvedPassed), world.happened(Event::ClosedPort)), (4, 0));
        world.has_flows(1, 0);
    }

    fn a_port_is_used_again_over_what_is_over(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = passing(&world, |_| ());
        proves(&client, &server);
        let (client, server) = world.on_port(2);
        for isn in [1000, 500_000] {
            client.passes(a_syn(&client, isn));
            server.passes(Terms::linux(world.mss()).on(syn_ack(2000, isn + 1), (SERVER_TS, CLIENT_TS)));
            let stamped = |segment: Seg| segment.nop().nop().ts(CLIENT_TS + 1, SERVER_TS);
            client.passes(stamped(ack(isn + 1, 2001)));
            client.passes(stamped(fin(isn + 1, 2001)));
            server.passes(stamped(fin(2001, isn + 2)));
            client.passes(stamped(ack(isn + 2, 2002)));
        }
        // And over a translated one, from its port.
        let (client, _) = world.on_port(CLIENT_PORT);
        client.passes(a_syn(&client, 3_000_000));
    }

    fn a_port_is_used_again_over_what_was_reset_in_the_midst_of_what_was_sent(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = sending(&world);
        // The number of an application that has read but a part.
        client.passes(rst(1101));
        client.passes(a_syn(&client, 3_000_000));
        server.passes(Terms::linux(world.mss()).on(syn_ack(4000, 3_000_001), (SERVER_TS, CLIENT_TS)));
        client.passes(ack(3_000_001, 4001).nop().nop().ts(CLIENT_TS + 3, SERVER_TS));
        assert_eq!(world.happened(Event::SynAnswered), 1, "when it proved itself");
        // Likewise for ever, by a record of its own.
        world.after_secs(3000);
        client.passes(data(3_000_001, 4001, 100).nop().nop().ts(CLIENT_TS + 4, SERVER_TS));
        server.passes(ack(4001, 3_000_101).nop().nop().ts(SERVER_TS + 4, CLIENT_TS + 4));
    }

    fn a_forged_reset_and_a_forged_syn_end_no_connection_of_a_proved_source(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = sending(&world);
        // The server challenges both, and answers neither.
        client.passes(rst(1150));
        client.passes(a_syn(&client, 3_000_000));
        server.passes(ack(2001, 1201).nop().nop().ts(SERVER_TS + 2, CLIENT_TS + 2));
        world.after_secs(3000);
        client.passes(data(1201, 2001, 100).nop().nop().ts(CLIENT_TS + 5, SERVER_TS + 2));
        server.passes(ack(2001, 1301).nop().nop().ts(SERVER_TS + 5, CLIENT_TS + 5));
    }

    fn a_network_that_has_spent_its_syns_does_not_lock_out_its_proved_sources(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = passing(&world, |config| (config.rate.burst, config.rate.add) = (3, 0));
        proves(&client, &server);
        // A client that has proved itself has got its own back.
        for port in 0..3 {
            let (client, server) = world.pair(0, 9, port);
            is_answered(&client, &server);
        }
        let (other, _) = world.pair(0, 9, 99);
        other.sends_in_vain(a_syn(&other, 1000), DropReason::RateLimited);
        let (client, server) = world.on_port(2);
        passes(&client, &server);
    }

    fn what_proves_itself_to_one_worker_passes_at_the_other(world, client, server) {
        let _ = (client, server);
        let [here, there] = [(); 2].map(|()| passing(&world, |config| config.proved_memory = Duration::from_secs(800)).0);
        let (client, server) = here.on_port(1000);
        proves(&client, &server);
        assert!(here.publishes_to(&there) > 0);
        let (client, server) = there.on_port(1001);
        passes(&client, &server);
        // What is not new is told again only now and then: here it is as old as there.
        assert_eq!(there.publishes_to(&here), 0);
        for world in [&here, &there] {
            world.after_secs(200);
        }
        let (client, server) = there.on_port(1002);
        passes(&client, &server);
        assert!(there.publishes_to(&here) > 0);
        for world in [&here, &there] {
            world.after_secs(700);
        }
        let (client, server) = here.on_port(1003);
        passes(&client, &server);
    }

    fn the_operator_may_turn_it_on_and_off(world, client, server) {
        let (off, mut on) = (world.mode().config(), world.mode().config());
        on.proved = Proved::Pass;
        let set = |config: &Config| {
            drop(world.operate(|proxy, now| proxy.set_policy(Arc::new(Policy::new(config, now)), now)));
        };
        proves(&client, &server);
        set(&on);
        // It was not remembered while nobody asked for it.
        let (client, server) = world.on_port(2);
        proves(&client, &server);
        let (passed, passed_server) = world.on_port(3);
        passes(&passed, &passed_server);
        set(&off);
        let (client, server) = world.on_port(4);
        is_answered(&client, &server);
        // What passed goes on untouched.
        passed.passes(rst(1001 + 5000));
        passed_server.passes(data(2001, 1001, 100).nop().nop().ts(SERVER_TS + 1, CLIENT_TS + 1));
    }

    fn a_signed_syn_that_policy_drops_is_dropped(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = passing(&world, |config| config.signed = Action::Drop);
        proves(&client, &server);
        let (client, _) = world.on_port(2);
        let signed = syn(1000).mss(world.mss()).raw(&[19, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        client.sends_in_vain(signed, DropReason::NotPassed);
    }

    fn a_port_is_used_again_over_what_was_seen_of_a_connection_from_before_a_restart(world, client, server) {
        let _ = (client, server);
        let mut config = None;
        let (world, client, server) = passing(&world, |present| {
            present.adopt_grace = Duration::from_secs(60);
            config = Some(present.clone());
        });
        proves(&client, &server);
        let (client, server) = world.on_port(2);
        passes(&client, &server);
        let config = config.expect("it was set");
        world.operate(|proxy, now| *proxy = Proxy::new(&config, &Secrets::new([9; 48]), now));
        server.passes(data(2001, 1001, 10).nop().nop().ts(CLIENT_TS + 2, SERVER_TS + 2));
        let (other, other_server) = world.on_port(3);
        proves(&other, &other_server);
        client.passes(a_syn(&client, 900_000_000));
        server.passes(Terms::linux(world.mss()).on(syn_ack(4000, 900_000_001), (SERVER_TS, CLIENT_TS)));
        client.passes(ack(900_000_001, 4001).nop().nop().ts(CLIENT_TS + 3, SERVER_TS));
        assert_eq!(world.happened(Event::SynAnswered), 1, "when it proved itself");
        world.after_secs(3000);
        client.passes(data(900_000_001, 4001, 100).nop().nop().ts(CLIENT_TS + 4, SERVER_TS));
    }

    /// There is nothing of the box in it: neither numbers nor options.
    fn after_a_restart_with_nothing_left_such_connections_go_on(world, client, server) {
        let _ = (client, server);
        let mut config = None;
        let (world, client, server) = passing(&world, |present| {
            present.adopt_grace = Duration::from_secs(60);
            config = Some(present.clone());
        });
        proves(&client, &server);
        let ports = [2, 3, 4].map(|port| world.on_port(port));
        ports.iter().for_each(|(client, server)| passes(client, server));
        let config = config.expect("it was set");
        // Another process, with another secret.
        world.operate(|proxy, now| *proxy = Proxy::new(&config, &Secrets::new([9; 48]), now));
        let stamped = |segment: Seg| segment.nop().nop().ts(CLIENT_TS + 2, SERVER_TS + 2);
        let [(client, server), (other, other_server), (idle, idle_server)] = &ports;
        server.passes(stamped(data(2001, 1001, 100)));
        client.passes(stamped(ack(1001, 2101)));
        other.passes(stamped(data(1001, 2001, 300)));
        other_server.passes(stamped(ack(2001, 1301)));
        other.passes(stamped(data(1301, 2001, 300)));
        world.after_secs(50);
        idle_server.passes(stamped(data(2001, 1001, 10)));
        idle.passes(stamped(ack(1001, 2011)));
        world.after_secs(3000);
        for (client, server) in [(client, server), (idle, idle_server)] {
            client.passes(stamped(data(1001, 2101, 100)));
            server.passes(stamped(ack(2101, 1101)));
        }
        other.passes(stamped(fin(1601, 2001)));
        other_server.passes(stamped(fin(2001, 1602)));
        other.passes(stamped(ack(1602, 2002)));
    }
}

/// A whole day of 500 clients, of whom three in four were there the day before, in the engine's time. Returns the connections that were opened and those
/// of them that were touched.
fn spend_a_day(proved_memory: Duration) -> [u64; 2] {
    const DAY: f64 = 86_400.0;
    let (clients, visits) = (500, unit::visits::day(1, 500));
    let (world, ..) = Mode::V4.world_with(|config| {
        (config.proved, config.proved_memory, config.table_buckets) = (Proved::Pass, proved_memory, 1024);
    });
    let ends = |client: usize, port: u16| world.pair(client as u16 / 100, client as u8 % 100, port);
    let mut ports = vec![1024u16; clients];
    let mut connect = |client: usize| {
        ports[client] += 1;
        let (client, server) = ends(client, ports[client]);
        let terms = Terms::linux(client.mode().mss());
        client.sends(a_syn(&client, 1000));
        if server.has_more() {
            server.gets(unchanged());
            completes(&client, &server);
            client.passes(rst(1001));
        } else {
            let offered = client.gets(syn_ack(ANY, 1001).any_window().any_options());
            let echo = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
            client.sends(ack(1001, offered.seq + 1).maybe_ts(echo));
            let server_syn = server.gets(segment(SYN, 1000, 0).any_window().any_options());
            answer(&client, &server, terms, 1000, 2000, offered, server_syn);
            client.sends(rst(1001));
            server.gets(rst(1001));
        }
    };
    (0..clients).filter(|client| client % 4 != 0).for_each(&mut connect);
    let before = world.happened(Event::Spliced);
    let (start, mut opened) = (world.now(), 0);
    for visit in visits {
        let due = start + Duration::from_secs_f64(visit.at * DAY);
        world.after(due.since(world.now()));
        (0..=visit.more).for_each(|_| connect(visit.client));
        opened += 1 + visit.more as u64;
    }
    assert_eq!(world.happened(Event::ProvedSpent), 0);
    let touched = world.happened(Event::Spliced) - before;
    assert_eq!(world.happened(Event::ProvedPassed), opened - touched);
    [opened, touched]
}

#[test]
fn of_a_day_of_returning_clients_nine_connections_in_ten_are_untouched() {
    for (memory, percent) in [(86_400, 97), (3600, 80)] {
        let [opened, touched] = spend_a_day(Duration::from_secs(memory));
        println!("proved_memory = {memory}: of {opened} connections {touched} were touched");
        assert!(opened > 10_000 && touched * 100 <= opened * (100 - percent), "{memory}: {touched} of {opened}");
    }
}
