//! Clients in lists, and limits: who is dropped, passed, always proxied, and refused because there are too many.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tcpstate::config::{DestinationRule, Extension as Offer, Limits, Network, Settings};
use tcpstate::{DropReason, Event, List, Lists, Policy, Side};
use unit::in_every_mode;
use unit::script::*;

/// The network of a host, by so many leading bits; for IPv4 96 less.
fn network(host: &Host, prefix: u8) -> Network {
    let (bits, prefix) = match host.ends().src {
        IpAddr::V4(address) => (address.to_ipv6_mapped().to_bits(), prefix.max(96)),
        IpAddr::V6(address) => (address.to_bits(), prefix),
    };
    Network { address: [96, 64, 32, 0].map(|shift| (bits >> shift) as u32), prefix }
}

/// Puts the hosts' addresses in these lists, and nobody else in any.
fn lists(world: &World, listed: &[(List, &Host)]) {
    let lists = Lists::new(listed.iter().map(|(list, host)| (*list, network(host, 128))));
    world.operate(|proxy, _| drop(proxy.set_lists(Arc::new(lists))));
}

fn linux(world: &World) -> Terms {
    Terms::linux(world.mss())
}

fn offer(world: &World) -> Seg {
    linux(world).on(syn(CLIENT_ISN), (CLIENT_TS, 0))
}

#[track_caller]
fn is_answered(world: &World, client: &Host) -> Got {
    client.sends(offer(world));
    client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options())
}

fn proof(offered: &Got) -> Seg {
    ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(offered.ts().map(|(value, _)| (CLIENT_TS + 1, value)))
}

/// The client proves itself and its server gets the box's SYN.
#[track_caller]
fn connects(world: &World, (client, server): &(Host, Host)) -> Got {
    let offered = is_answered(world, client);
    client.sends(proof(&offered));
    server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
    offered
}

/// The client proves itself and is reset.
#[track_caller]
fn is_turned_away(world: &World, client: &Host) {
    let offered = is_answered(world, client);
    client.sends(proof(&offered));
    client.gets(rst(offered.seq + 1));
}

const SIGNATURE: [u8; 20] = [19, 18, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 1, 1];

in_every_mode! {
    fn a_blocked_client_is_not_answered_and_its_neighbour_is(world, client, server) {
        lists(&world, &[(List::Block, &client)]);
        client.sends_in_vain(offer(&world), DropReason::Blocked);
        is_answered(&world, &world.pair(0, 2, 1000).0);
        // What the LAN opens to it passes.
        server.passes(syn(7).mss(1400));
        lists(&world, &[]);
        is_answered(&world, &world.on_port(1001).0);
    }

    fn a_client_blocked_after_its_syn_was_answered_does_not_reach_its_server(world, client, server) {
        let offered = is_answered(&world, &client);
        lists(&world, &[(List::Block, &client)]);
        client.sends_in_vain(proof(&offered), DropReason::Blocked);
        let reset = rst_ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(offered.ts().map(|(value, _)| (CLIENT_TS + 1, value)));
        client.sends_in_vain(reset, DropReason::Blocked);
        let _ = server;
    }

    fn a_connection_goes_on_when_its_client_is_blocked_until_it_is_reset_on_demand(world, client, server) {
        let joined = open(&client, &server, linux(&world), linux(&world));
        let (other, other_server) = world.pair(0, 2, 1000);
        let neighbour = open(&other, &other_server, linux(&world), linux(&world));
        let mut transfer = Transfer::new(&client, &server, joined.clone());
        transfer.client(PSH, 100);
        lists(&world, &[(List::Block, &client)]);
        transfer.server(PSH, 50);
        transfer.client(0, 0);
        world.operate(|proxy, _| proxy.reset_blocked());
        world.after_ms(1);
        client.gets(rst(joined.o(50)));
        server.gets(rst(joined.c(100)));
        assert_eq!((world.happened(Event::BlockedReset), world.population().proxied), (1, 1));
        Transfer::new(&other, &other_server, neighbour).client(PSH, 10);
    }

    fn a_blocked_connection_is_reset_when_frames_for_that_are_spare_again(world, client, server) {
        let joined = open(&client, &server, linux(&world), linux(&world));
        lists(&world, &[(List::Block, &client)]);
        world.spare_frames(0);
        world.operate(|proxy, _| proxy.reset_blocked());
        world.after_ms(3);
        assert_eq!(world.population().proxied, 1);
        world.spare_frames(usize::MAX);
        world.after_ms(1);
        client.gets(rst(joined.o(0)));
        server.gets(rst(joined.c(0)));
        assert_eq!(world.population().proxied, 0);
    }

    fn what_is_counted_while_no_frame_is_spare_is_no_later_frame_s(world, client, server) {
        let settings = Arc::new(Settings { mode: Some(tcpstate::config::Mode::Cache), ..Settings::default() });
        let apart = DestinationRule { vlan: None, network: network(&server, 128), port: None, settings };
        let (world, client, server) = world.mode().world_with(|config| config.rules.push(apart));
        let _ = open(&client, &server, linux(&world), linux(&world));
        let (other, _) = world.pair(0, 2, CLIENT_PORT);
        lists(&world, &[(List::Block, &client)]);
        world.spare_frames(0);
        world.operate(|proxy, _| proxy.reset_blocked());
        world.after_ms(40);
        other.sends(syn(5).mss(1400));
        other.gets(syn_ack(ANY, 6).any_window().any_options());
        assert!(world.happened(Event::NoSpareFrame) > 15);
        let of = |event| {
            [0, 1].map(|target| world.operate(|proxy, _| proxy.counters().of_target(target).happened(event)))
        };
        assert_eq!((of(Event::NoSpareFrame), of(Event::SynAnswered)), ([0, 0], [0, 2]));
    }

    fn a_client_whose_server_has_not_answered_is_reset_with_it(world, client, server) {
        let offered = connects(&world, &(world.pair(0, 1, CLIENT_PORT)));
        lists(&world, &[(List::Block, &client)]);
        world.operate(|proxy, _| proxy.reset_blocked());
        world.after_ms(1);
        server.gets(rst(CLIENT_ISN + 1));
        client.gets(rst(offered.seq + 1));
    }

    fn an_allowed_client_s_connection_is_the_cable_s(world, client, server) {
        let _ = (client, server);
        // Whatever would change it, or stop it.
        let (world, client, server) = world.mode().world_with(|config| {
            config.mss_clamp = Some(600);
            config.rate.burst = 1;
            config.passed_rate = 0;
            config.limits = Limits { source_flows: 1, source_rate: 1, syn_acks: 1, ..Limits::default() };
        });
        lists(&world, &[(List::Allow, &client)]);
        for port in 1000..1010 {
            world.pair(0, 1, port).0.passes(offer(&world));
        }
        client.passes(offer(&world));
        client.passes(offer(&world));
        client.passes(offer(&world));
        server.passes(linux(&world).on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS)));
        client.passes(ack(CLIENT_ISN + 1, SERVER_ISN + 1).ts(CLIENT_TS, SERVER_TS));
        client.passes(data(CLIENT_ISN + 1, SERVER_ISN + 1, 100).ts(CLIENT_TS, SERVER_TS));
        server.passes(data(SERVER_ISN + 1, CLIENT_ISN + 101, 50).ts(SERVER_TS, CLIENT_TS));
        // It has left the list; its connection has not ended.
        lists(&world, &[]);
        client.passes(data(CLIENT_ISN + 101, SERVER_ISN + 51, 100).ts(CLIENT_TS, SERVER_TS));
        server.passes(fin(SERVER_ISN + 51, CLIENT_ISN + 201).ts(SERVER_TS, CLIENT_TS));
        assert_eq!((world.happened(Event::Allowed), world.population().proxied), (11, 0));
    }

    fn an_allowed_client_may_sign_and_reset_as_it_likes(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = world.mode().world_with(|config| config.passed_rate = 0);
        lists(&world, &[(List::Allow, &client)]);
        client.passes(syn(CLIENT_ISN).raw(&SIGNATURE));
        server.passes(syn_ack(SERVER_ISN, CLIENT_ISN + 1).raw(&SIGNATURE));
        client.passes(rst(CLIENT_ISN + 77));
    }

    fn a_client_that_is_allowed_after_its_syn_was_answered_ends_what_it_began(world, client, server) {
        let offered = is_answered(&world, &client);
        lists(&world, &[(List::Allow, &client)]);
        client.sends(offer(&world));
        client.gets(syn_ack(offered.seq, CLIENT_ISN + 1).any_window().any_options());
        client.sends(proof(&offered));
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        let joined = answer(&client, &server, linux(&world), CLIENT_ISN, SERVER_ISN, offered, server_syn);
        Transfer::new(&client, &server, joined).client(PSH, 10);
        world.pair(0, 1, 1000).0.passes(offer(&world));
    }

    fn who_must_be_proxied_is_whatever_else_would_let_it_pass(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = world.mode().world_with(|config| {
            (config.introductions, config.fast_open, config.multipath) = (1000, Offer::Pass, Offer::Pass);
        });
        lists(&world, &[(List::Always, &client)]);
        world.pair(0, 2, 1000).0.passes(offer(&world));
        client.sends(syn(CLIENT_ISN).mss(1400).raw(&[34, 2, 1, 1]));
        client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        connects(&world, &world.on_port(1000));
        assert_eq!(world.happened(Event::AlwaysProxied), 2);
        // What is signed only its server can answer, and while the box drains it answers nobody.
        world.on_port(1001).0.passes(syn(CLIENT_ISN).raw(&SIGNATURE));
        world.operate(|proxy, _| proxy.drain(true));
        world.on_port(1002).0.passes(offer(&world));
        let _ = server;
    }

    fn who_is_blocked_and_allowed_is_blocked_and_who_is_allowed_need_not_be_proxied(world, client, server) {
        let (other, _) = world.pair(0, 2, 1000);
        lists(&world, &[(List::Allow, &client), (List::Block, &client), (List::Always, &other), (List::Allow, &other)]);
        client.sends_in_vain(offer(&world), DropReason::Blocked);
        other.passes(offer(&world));
        let _ = server;
    }

    fn a_client_beyond_its_limit_of_connections_is_reset_until_one_of_them_ends(world, client, server) {
        let _ = (client, server);
        let limits = Limits { source_flows: 8, network_factor: 2, ..Limits::default() };
        let (world, ..) = world.mode().world_with(|config| config.limits = limits);
        // Ports of one part of the address, and hosts that share no address.
        connects(&world, &world.pair(0, 1, 1000));
        connects(&world, &world.pair(0, 1, 1001));
        is_turned_away(&world, &world.pair(0, 1, 1002).0);
        assert_eq!(world.happened(Event::OverSourceFlows), 1);
        connects(&world, &world.pair(1, 1, 1000));
        // Without a server's answer the client gives up.
        let (client, server) = world.pair(0, 1, 1000);
        client.sends(rst(CLIENT_ISN + 1));
        world.discard();
        for _ in 0..300 {
            world.tick(Duration::from_secs(1));
            world.discard();
        }
        assert_eq!(world.population().proxied, 0);
        connects(&world, &world.pair(0, 1, 1003));
        let _ = server;
    }

    fn a_connection_that_is_over_counts_no_more(world, client, server) {
        let _ = (client, server);
        let limits = Limits { source_flows: 4, ..Limits::default() };
        let (world, client, server) = world.mode().world_with(|config| config.limits = limits);
        let joined = open(&client, &server, linux(&world), linux(&world));
        is_turned_away(&world, &world.on_port(CLIENT_PORT + 1).0);
        Transfer::new(&client, &server, joined).closes_from_the_client();
        assert_eq!(world.population().proxied, 1, "its record waits");
        let (client, server) = world.on_port(CLIENT_PORT + 1);
        let joined = open(&client, &server, linux(&world), linux(&world));
        client.sends(rst(joined.c(0)));
        server.gets(rst(joined.c(0)));
        connects(&world, &world.on_port(CLIENT_PORT + 2));
    }

    fn new_connections_are_limited_by_the_second(world, client, server) {
        let _ = (client, server);
        let limits = Limits { destination_rate: 3, ..Limits::default() };
        let (world, ..) = world.mode().world_with(|config| config.limits = limits);
        for net in 0..3 {
            connects(&world, &world.pair(net, 1, 1000));
        }
        is_turned_away(&world, &world.pair(3, 1, 1000).0);
        connects(&world, &world.pair_to(4, 1, 1000, 11));
        assert_eq!(world.happened(Event::OverDestinationRate), 1);
        world.tick(Duration::from_secs(1));
        world.discard();
        connects(&world, &world.pair(5, 1, 1000));
        world.discard();
    }

    fn forged_syns_that_pass_spend_nobody_s_share(world, client, server) {
        let _ = (client, server);
        let limits = Limits { source_rate: 4, source_flows: 4, ..Limits::default() };
        let (world, client, server) = world.mode().world_with(|config| config.limits = limits);
        let signed = |seq| syn(seq).raw(&SIGNATURE);
        for n in 0..8 {
            world.pair(0, 1, CLIENT_PORT + 1 + n).0.passes(signed(7));
        }
        // The one that is there completes the handshake, and is the only one that counts.
        client.passes(signed(CLIENT_ISN));
        server.passes(syn_ack(SERVER_ISN, CLIENT_ISN + 1).raw(&SIGNATURE));
        client.passes(ack(CLIENT_ISN + 1, SERVER_ISN + 1).raw(&SIGNATURE));
        world.on_port(CLIENT_PORT - 1).0.sends_in_vain(signed(7), DropReason::OverLimit);
        is_turned_away(&world, &world.on_port(CLIENT_PORT - 2).0);
    }

    fn syn_acks_beyond_the_budget_are_for_who_repeats(world, client, server) {
        let _ = (client, server);
        let limits = Limits { syn_acks: 8, ..Limits::default() };
        let (world, ..) = world.mode().world_with(|config| config.limits = limits);
        for net in 0..6 {
            is_answered(&world, &world.pair(net, 1, 1000).0);
        }
        for net in 6..20 {
            world.pair(net, 1, 1000).0.sends_in_vain(offer(&world), DropReason::OverLimit);
        }
        assert_eq!(world.happened(Event::OverSynAcks), 14);
        world.after(Duration::from_micros(1 << 20));
        for net in 20..26 {
            is_answered(&world, &world.pair(net, 1, 1000).0);
        }
        world.pair(26, 1, 1000).0.sends_in_vain(offer(&world), DropReason::OverLimit);
        for net in 6..8 {
            is_answered(&world, &world.pair(net, 1, 1000).0);
        }
        world.pair(8, 1, 1000).0.sends_in_vain(offer(&world), DropReason::OverLimit);
    }

    fn syn_acks_for_one_server_leave_the_others_theirs(world, client, server) {
        let _ = (client, server);
        let limits = Limits { destination_syn_acks: 4, ..Limits::default() };
        let (world, ..) = world.mode().world_with(|config| config.limits = limits);
        for net in 0..3 {
            is_answered(&world, &world.pair(net, 1, 1000).0);
        }
        world.pair(3, 1, 1000).0.sends_in_vain(offer(&world), DropReason::OverLimit);
        is_answered(&world, &world.pair_to(3, 1, 1001, 11).0);
        assert_eq!(world.happened(Event::OverDestinationSynAcks), 1);
    }

    fn a_new_policy_brings_its_limits_for_what_begins_from_then_on(world, client, server) {
        let _ = (client, server);
        let limit = |limits: Limits| {
            let config = tcpstate::Config { limits, ..world.mode().config() };
            world.operate(|proxy, now| drop(proxy.set_policy(Arc::new(Policy::new(&config, now)), now)));
        };
        connects(&world, &world.pair(0, 1, 1000));
        connects(&world, &world.pair(0, 1, 1001));
        limit(Limits { source_flows: 4, ..Limits::default() });
        connects(&world, &world.pair(0, 1, 1002));
        is_turned_away(&world, &world.pair(0, 1, 1003).0);
        limit(Limits::default());
        connects(&world, &world.pair(0, 1, 1004));
        world.discard();
    }
}

#[test]
fn a_forged_flood_in_a_network_s_name_does_not_lock_its_clients_out() {
    let limits = Limits { source_rate: 8, source_flows: 64, ..Limits::default() };
    for mode in [Mode::V4, Mode::V4.cached(), Mode::V6] {
        let (world, ..) = mode.world_with(|config| config.limits = limits.clone());
        for host in 201..205u8 {
            // Forged in the names of all hosts of the network: SYNs of which nobody gets the answer, and wrong acknowledgements.
            for n in 0..3000u32 {
                let (forged, _) = world.pair(0, (n % 200) as u8, 2000 + (n / 200) as u16);
                let frame = forged.frame(&linux(&world).on(syn(n), (n, 0)));
                let _ = world.inject(Side::Wan, &frame);
                let _ = world.inject(Side::Wan, &forged.frame(&ack(n + 1, n ^ 0x5555)));
            }
            world.discard();
            // Its tokens are spent, so that a SYN is answered when it is repeated; no limit on connections is touched.
            let (client, server) = world.pair(0, host, 1000);
            client.sends_in_vain(offer(&world), DropReason::RateLimited);
            world.tick(Duration::from_micros(1 << 20));
            world.discard();
            let offered = is_answered(&world, &client);
            client.sends(proof(&offered));
            server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        }
        assert_eq!(world.happened(Event::OverSourceRate) + world.happened(Event::OverSourceFlows), 0);
        world.discard();
    }
}

#[test]
fn a_greedy_subscriber_of_a_carrier_s_nat_leaves_the_others_behind_its_address_theirs() {
    let limits = Limits { source_rate: 40, ..Limits::default() };
    let (world, ..) = Mode::V4.world_with(|config| config.limits = limits);
    // Its block of 2048 ports; each of the others has one of its own.
    for n in 0..100 {
        let (client, _) = world.pair(0, 1, 8192 + n);
        let offered = is_answered(&world, &client);
        client.sends(proof(&offered));
        world.discard();
    }
    assert_eq!(world.happened(Event::OverSourceRate), 90);
    for block in [6u16, 11, 30] {
        for n in 0..8 {
            connects(&world, &world.pair(0, 1, (block << 11) + n));
        }
    }
    world.discard();
}
