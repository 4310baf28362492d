//! Modes by destination, as traces: what passes untouched, what is answered, and that a switch between the two loses no connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tcpstate::config::{Auto, DestinationRule, Mode as Does, Network, RateLimit, Settings};
use tcpstate::{Directive, DropReason, Event, Policy, Side, TargetCounts};
use unit::in_every_mode;
use unit::script::*;

/// The server's first number.
const THEIR_ISN: u32 = 7_000_000;

/// A world whose destinations are all in this mode, which adopts for ten seconds after a switch.
fn world_in(world: &World, does: Does) -> World {
    world_with(world, |config| config.mode = does)
}

fn world_with(world: &World, change: impl FnOnce(&mut tcpstate::Config)) -> World {
    let world = world.mode().world_with(|config| {
        config.auto = Auto { enter_half_open: 3, ..Auto::default() };
        change(config);
    });
    world.0
}

/// Everybody's target is told to pass SYNs, or not to.
fn direct(world: &World, engaged: bool) {
    world.operate(|proxy, now| proxy.direct(0, &Directive { engaged, limit: 3 }, now));
}

fn counts(world: &World, target: u32) -> TargetCounts {
    world.operate(|proxy, _| proxy.target_counts(target))
}

fn present(world: &World, target: u32) -> Does {
    world.operate(|proxy, _| proxy.present_mode(target))
}

fn targets(world: &World) -> Vec<String> {
    world.operate(|proxy, _| proxy.targets().iter().map(|target| target.key.to_string()).collect())
}

/// A client's SYN, as Linux sends it, which asks for ECN.
fn call(world: &World) -> Seg {
    Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)).flags(ECE | CWR)
}

fn reply(world: &World) -> Seg {
    Terms::linux(world.mss()).on(syn_ack(THEIR_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS)).flags(ECE)
}

fn proof() -> Seg {
    ack(CLIENT_ISN + 1, THEIR_ISN + 1).nop().nop().ts(CLIENT_TS + 1, SERVER_TS)
}

fn from_client(offset: u32, acked: u32, len: usize) -> Seg {
    data(CLIENT_ISN + 1 + offset, THEIR_ISN + 1 + acked, len).nop().nop().ts(CLIENT_TS + 2, SERVER_TS)
}

fn from_server(offset: u32, acked: u32, len: usize) -> Seg {
    data(THEIR_ISN + 1 + offset, CLIENT_ISN + 1 + acked, len).nop().nop().ts(SERVER_TS + 1, CLIENT_TS + 1)
}

/// A connection of which every frame passes as it is.
fn opens_untouched(world: &World, client: &Host, server: &Host) {
    client.passes(call(world));
    server.passes(reply(world));
    client.passes(proof());
}

fn exchanges_untouched(client: &Host, server: &Host) {
    client.passes(from_client(0, 0, 100));
    server.passes(from_server(0, 100, 200));
    client.passes(from_client(100, 200, 0));
}

fn closes_untouched(client: &Host, server: &Host) {
    client.passes(from_client(100, 200, 0).flags(FIN));
    server.passes(from_server(200, 101, 0).flags(FIN));
    client.passes(from_client(101, 201, 0));
}

/// The box answers a client, which gets a SYN-ACK and its server nothing.
fn is_answered(world: &World, client: &Host, server: &Host) -> Got {
    client.sends(Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
    server.gets(nothing());
    client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options())
}

/// A client acknowledges what it was answered, and is joined with its server.
fn proves(world: &World, client: &Host, server: &Host, offered: Got) -> Joined {
    let echo = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
    client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echo));
    let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
    answer(client, server, Terms::linux(world.mss()), CLIENT_ISN, SERVER_ISN, offered, server_syn)
}

/// A block for one server.
fn block(server: &Host, settings: Settings) -> DestinationRule {
    let address = match server.ends().src {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let address = [96, 64, 32, 0].map(|shift| (address.to_bits() >> shift) as u32);
    DestinationRule { vlan: None, network: Network { address, prefix: 128 }, port: None, settings: Arc::new(settings) }
}

in_every_mode! {
    fn in_mode_pass_nothing_of_a_connection_is_touched(world, client, server) {
        let _ = (client, server);
        let world = world_with(&world, |config| {
            config.mode = Does::Pass;
            // Whatever would be changed, dropped or answered otherwise.
            config.mss_clamp = Some(500);
            config.rate = RateLimit { size: 64, add: 1, burst: 1, ..RateLimit::default() };
            config.passed_rate = 0;
            config.closed_memory = Duration::from_secs(10);
            config.signed = tcpstate::config::Action::Drop;
        });
        for port in 1..40 {
            let (client, server) = world.on_port(port);
            opens_untouched(&world, &client, &server);
            exchanges_untouched(&client, &server);
            // A segment far outside, a reset that hits nothing, a copy of the SYN: the ends judge.
            client.passes(from_client(900_000_000, 0, 10));
            client.passes(rst(CLIENT_ISN + 1 + 50_000));
            server.passes(rst(THEIR_ISN + 1 + 70_000));
            client.passes(call(&world));
            server.passes(reply(&world));
            exchanges_untouched(&client, &server);
            closes_untouched(&client, &server);
        }
        let (client, server) = world.on_port(50);
        client.passes(call(&world).raw(&[19, 18]).raw(&[7; 16]));
        server.passes(rst_ack(0, CLIENT_ISN + 1));
        world.has_flows(0, 39);
        client.passes(call(&world).payload(300));
        server.passes(rst_ack(0, CLIENT_ISN + 301));
        // Neither the refusal nor a wrong checksum changes anything.
        let mut damaged = client.frame(&call(&world));
        *damaged.last_mut().unwrap() ^= 1;
        client.passes(&damaged[..]);
        assert_eq!((world.all_dropped(), world.emitted()), (0, 0));
        assert_eq!(world.happened(Event::PassedByMode), 39 + 3, "a copy of the SYN is no other connection");
    }

    fn in_mode_pass_segments_of_unknown_connections_pass_and_the_lans_are_followed(world, client, server) {
        let _ = (client, server);
        let world = world_in(&world, Does::Pass);
        let (client, server) = world.on_port(1);
        client.passes(from_client(0, 0, 100));
        client.passes(rst(5));
        client.passes(syn_ack(9, 9));
        server.passes(rst_ack(5, 6));
        server.passes(syn_ack(9, 9));
        client.passes(segment(0, 1, 1));
        world.has_flows(0, 0);
        server.passes(from_server(0, 0, 100));
        world.has_flows(0, 1);
        client.passes(from_client(0, 100, 100));
        assert_eq!(world.happened(Event::Adopted), 1);
        exchanges_untouched(&client, &server);
        closes_untouched(&client, &server);
        assert_eq!((world.all_dropped(), world.emitted()), (0, 0));
    }

    fn in_mode_pass_connections_of_the_lan_are_not_touched_either(world, client, server) {
        let _ = (client, server);
        let world = world_with(&world, |config| (config.mode, config.mss_clamp) = (Does::Pass, Some(500)));
        let (client, server) = world.on_port(1);
        server.passes(Terms::linux(world.mss()).on(syn(1), (5, 0)));
        client.passes(Terms::linux(world.mss()).on(syn_ack(9, 2), (6, 5)));
        server.passes(ack(2, 10));
        client.passes(data(10, 2, 10));
        client.passes(rst(10 + 40_000));
        server.passes(data(2, 20, 10));
        world.has_flows(0, 1);
    }

    fn mode_observe_passes_and_counts_what_would_have_happened(world, client, server) {
        let _ = (client, server);
        let is_cached = world.mode().cache;
        let world = world_with(&world, |config| {
            config.mode = Does::Observe;
            config.syn_cache_max = config.syn_cache_max.min(2);
            config.closed_memory = Duration::from_secs(10);
            config.rate = RateLimit { size: 64, add: 1, burst: 6, ..RateLimit::default() };
        });
        for port in 1..5 {
            let (client, _) = world.on_port(port);
            client.passes(call(&world));
        }
        let would = |event| world.happened(event);
        let cached = if is_cached { 2 } else { 0 };
        assert_eq!((would(Event::WouldBeCached), would(Event::WouldGetCookie)), (cached, 4 - cached));
        // Who completes its handshake gets back what its SYN took.
        let (client, server) = world.on_port(5);
        opens_untouched(&world, &client, &server);
        // Of another network, so that it is refused nothing for its rate.
        let (client, server) = world.pair(9, 1, 6);
        client.passes(call(&world));
        server.passes(rst_ack(0, CLIENT_ISN + 1));
        client.passes(call(&world));
        assert_eq!((would(Event::WouldBeRefused), would(Event::WouldBeLimited)), (1, 0));
        for port in 7..10 {
            let (client, _) = world.on_port(port);
            client.passes(call(&world));
        }
        assert_eq!(would(Event::WouldBeLimited), 1, "the network had six, and spent four and two of these");
        assert_eq!((world.all_dropped(), world.emitted()), (0, 0));
    }

    fn in_mode_cookie_the_syn_cache_is_left_aside(world, client, server) {
        let _ = (client, server);
        let world = world_in(&world, Does::Cookie);
        let (client, server) = world.on_port(1);
        let offered = is_answered(&world, &client, &server);
        assert_eq!((world.population().syn_cached, world.happened(Event::CacheFull)), (0, 0));
        proves(&world, &client, &server, offered);
        assert_eq!(world.happened(Event::CookieGood), 1);
        assert_eq!(counts(&world, 0), TargetCounts { answered: 1, proved: 1, ..TargetCounts::default() });
    }

    fn mode_auto_answers_the_syn_that_would_be_one_too_many(world, client, server) {
        let _ = (client, server);
        let world = world_in(&world, Does::Auto);
        for port in 1..4 {
            let (client, _) = world.on_port(port);
            client.passes(call(&world));
            // A repeated SYN is the same connection.
            client.passes(call(&world));
        }
        assert_eq!((present(&world, 0), counts(&world, 0).half_open), (Does::Pass, 3));
        assert_eq!(world.operate(|proxy, _| proxy.next_alarm()), None);
        let (client, server) = world.on_port(4);
        let offered = is_answered(&world, &client, &server);
        assert_eq!((present(&world, 0), world.population().syn_cached), (Does::Cookie, 0));
        let alarms = world.operate(|proxy, _| [proxy.next_alarm(), proxy.next_alarm()]);
        assert_eq!(alarms, [Some(0), None]);
        proves(&world, &client, &server, offered);
        let own = counts(&world, 0);
        assert_eq!((own.half_open, own.passed, own.answered, own.proved), (3, 3, 1, 1));
    }

    fn a_connection_is_half_open_until_it_is_established_reset_refused_or_forgotten(world, client, server) {
        let _ = (client, server);
        let world = world_in(&world, Does::Auto);
        let half_open = || counts(&world, 0).half_open;
        let (one, one_server) = world.on_port(1);
        opens_untouched(&world, &one, &one_server);
        assert_eq!(half_open(), 0);
        // Forged acknowledgements, resets and SYN-ACKs of others change nothing.
        let (two, two_server) = world.on_port(2);
        two.passes(call(&world));
        two.passes(ack(CLIENT_ISN + 1, 77));
        two.passes(rst(CLIENT_ISN + 9));
        two_server.passes(reply(&world));
        two.passes(ack(CLIENT_ISN + 1, 77));
        two.passes(rst(CLIENT_ISN + 9));
        assert_eq!(half_open(), 1);
        two.passes(rst(CLIENT_ISN + 1));
        assert_eq!(half_open(), 0);
        let (three, three_server) = world.on_port(3);
        three.passes(call(&world));
        assert_eq!(half_open(), 1);
        three_server.passes(rst_ack(0, CLIENT_ISN + 1));
        assert_eq!(half_open(), 0);
        let (four, four_server) = world.on_port(4);
        four.passes(call(&world));
        world.after_secs(60);
        four_server.passes(reply(&world));
        world.after_secs(60);
        assert_eq!(half_open(), 1, "its server remembers it as long");
        world.after_secs(10);
        assert_eq!(half_open(), 0);
        exchanges_untouched(&one, &one_server);
        assert_eq!(present(&world, 0), Does::Pass);
    }

    fn a_client_that_goes_on_without_an_answer_is_counted_no_longer_than_others(world, client, server) {
        let _ = (client, server);
        let world = world_in(&world, Does::Auto);
        for port in 1..4 {
            let (client, _) = world.on_port(port);
            client.passes(call(&world));
            // Anybody can send that, as its server is silent.
            client.passes(ack(CLIENT_ISN + 1, 77));
        }
        assert_eq!(counts(&world, 0).half_open, 3);
        world.after_secs(70);
        assert_eq!(counts(&world, 0).half_open, 0);
    }

    fn a_connection_stays_half_open_after_a_reset_that_its_server_may_not_heed(world, client, server) {
        let _ = (client, server);
        let world = world_with(&world, |config| {
            (config.mode, config.auto.enter_half_open) = (Does::Auto, 100);
        });
        let half_open = || counts(&world, 0).half_open;
        let signature = [19, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        let plain = || rst(CLIENT_ISN + 1);
        let stamped = |value, echo| plain().nop().nop().ts(value, echo);
        let forged: [(&str, u8, Seg); 8] = [
            ("it ends on its way", 56, plain()),
            ("it acknowledges what was not sent", 57, rst_ack(CLIENT_ISN + 1, THEIR_ISN + 2)),
            ("it acknowledges nothing", 57, rst_ack(CLIENT_ISN + 1, 0)),
            ("it is older than the SYN", 57, stamped(CLIENT_TS - 1, SERVER_TS)),
            ("it echoes what was not sent", 57, stamped(CLIENT_TS, SERVER_TS + 1)),
            ("it is signed", 57, plain().raw(&signature)),
            ("its number is only in the window", 57, rst(CLIENT_ISN + 2)),
            ("it repeats the SYN's number", 57, rst(CLIENT_ISN)),
        ];
        let opened = |port: u16, ttl: u8| {
            let (client, server) = world.on_port(port);
            let ends = FlowKey { ttl: 57, ..client.ends() };
            let (syn, later) = (world.host(Side::Wan, ends), world.host(Side::Wan, FlowKey { ttl, ..ends }));
            syn.passes(call(&world));
            (later, server)
        };
        for (port, (what, ttl, reset)) in (1..).zip(forged) {
            let (client, server) = opened(port, ttl);
            // Before its server has answered nobody knows what that will do.
            client.passes(plain());
            server.passes(reply(&world));
            client.passes(reset);
            assert_eq!(half_open(), u64::from(port), "{what}");
        }
        let heeded = [plain(), rst_ack(CLIENT_ISN + 1, THEIR_ISN + 1), stamped(CLIENT_TS + 1, SERVER_TS)];
        for (port, reset) in (11..).zip(heeded) {
            for ttl in [57, 58] {
                let (client, server) = opened(port, ttl);
                server.passes(reply(&world));
                assert_eq!(half_open(), 9);
                client.passes(reset.clone());
                assert_eq!(half_open(), 8, "a reset that its server heeds");
            }
        }
    }

    fn what_anybody_may_have_sent_keeps_no_connection_half_open_beyond_the_time_of_its_syn(world, client, server) {
        let _ = (client, server);
        let world = world_in(&world, Does::Auto);
        let (client, _) = world.on_port(1);
        client.passes(call(&world));
        for _ in 0..6 {
            client.passes(ack(CLIENT_ISN + 1, 77));
            world.after_secs(10);
        }
        assert_eq!(counts(&world, 0).half_open, 1);
        world.after_secs(10);
        assert_eq!(counts(&world, 0).half_open, 0);
    }

    fn what_is_passed_before_a_switch_goes_on_untouched_after_it_in_every_state(world, client, server) {
        let _ = (client, server);
        let world = world_with(&world, |config| {
            (config.mode, config.mss_clamp) = (Does::Auto, Some(500));
            config.adopt_grace = Duration::from_secs(10);
            config.auto.enter_half_open = 100;
        });
        let pairs: Vec<(Host, Host)> = (1..9).map(|port| world.on_port(port)).collect();
        let host = |n: usize| &pairs[n];
        let (c, s) = host(0);
        c.passes(call(&world));
        let (c, s1) = host(1);
        c.passes(call(&world));
        s1.passes(reply(&world));
        for n in 2..6 {
            let (c, s) = host(n);
            opens_untouched(&world, c, s);
        }
        let (c3, s3) = host(3);
        exchanges_untouched(c3, s3);
        c3.passes(from_client(100, 200, 0).flags(FIN));
        let (c4, s4) = host(4);
        exchanges_untouched(c4, s4);
        closes_untouched(c4, s4);
        // Running before, and seen in one direction so far.
        let (c6, s6) = host(6);
        s6.passes(from_server(0, 0, 50));

        direct(&world, true);
        let (new, new_server) = world.on_port(20);
        is_answered(&world, &new, &new_server);
        // SynSent: the client repeats its SYN, and its server answers.
        world.after_secs(1);
        let (c0, _) = host(0);
        c0.passes(call(&world));
        s.passes(reply(&world));
        c0.passes(proof());
        exchanges_untouched(c0, s);
        // SynReceived.
        let (c1, s1) = host(1);
        s1.passes(reply(&world));
        c1.passes(proof());
        exchanges_untouched(c1, s1);
        // Established, and what only the ends can judge.
        let (c2, s2) = host(2);
        exchanges_untouched(c2, s2);
        c2.passes(rst(CLIENT_ISN + 40_000));
        closes_untouched(c2, s2);
        // FinWait.
        s3.passes(from_server(200, 101, 0).flags(FIN));
        c3.passes(from_client(101, 201, 0));
        // TimeWait: a new SYN is answered, and the old connection's last segments pass.
        s4.passes(from_server(200, 101, 0).flags(FIN));
        let offered = is_answered(&world, c4, s4);
        proves(&world, c4, s4, offered);
        // Reset.
        let (c5, s5) = host(5);
        exchanges_untouched(c5, s5);
        s5.passes(rst_ack(THEIR_ISN + 201, CLIENT_ISN + 101));
        c5.passes(from_client(100, 200, 0));
        // Unconfirmed.
        c6.passes(from_client(0, 50, 10));
        s6.passes(from_server(50, 10, 10));
        // Not known at all: adopted, for a while.
        let (c7, s7) = host(7);
        s7.passes(from_server(0, 0, 50));
        c7.passes(from_client(0, 50, 10));
        world.after_secs(20);
        let (late, late_server) = world.on_port(21);
        late.sends_in_vain(from_client(0, 0, 10), DropReason::BadCookie);
        late_server.sends_in_vain(from_server(0, 0, 10), DropReason::NoFlow);
        exchanges_untouched(c2, s2);
    }

    fn what_is_answered_before_a_switch_goes_on_after_it_in_every_state(world, client, server) {
        let _ = (client, server);
        let is_cached = world.mode().cache;
        let world = world_with(&world, |config| config.mode = Does::Cache);
        let terms = Terms::linux(world.mss());
        let pass = |world: &World, mode| {
            let mut config = world.mode().config();
            (config.mode, config.auto.grace) = (mode, Duration::from_secs(90));
            world.operate(|proxy, now| drop(proxy.set_policy(Arc::new(Policy::new(&config, now)), now)));
        };
        let (waits, waiting_server) = world.on_port(1);
        let offered = is_answered(&world, &waits, &waiting_server);
        // The server's SYN is out.
        let (asks, asked) = world.on_port(2);
        let asking = is_answered(&world, &asks, &asked);
        let echo = asking.ts().map(|(value, _)| (CLIENT_TS + 1, value));
        asks.sends(ack(CLIENT_ISN + 1, asking.seq + 1).maybe_ts(echo));
        let asked_syn = asked.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        let (client, server) = world.on_port(3);
        let mut old = Transfer::new(&client, &server, open(&client, &server, terms, terms));
        old.client(ACK | PSH, 100);

        pass(&world, Does::Pass);
        assert_eq!(present(&world, 0), Does::Pass);
        let (new, new_server) = world.on_port(10);
        opens_untouched(&world, &new, &new_server);
        world.after_secs(1);
        // The box repeats its SYN to the second's server.
        asked.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        // A client that repeats its SYN is answered again, and either answer opens.
        is_answered(&world, &waits, &waiting_server);
        assert_eq!(world.happened(Event::SynRepeated), u64::from(is_cached));
        let joined = answer(&asks, &asked, terms, CLIENT_ISN, SERVER_ISN, asking, asked_syn);
        Transfer::new(&asks, &asked, joined).client(ACK | PSH, 10);
        let joined = proves(&world, &waits, &waiting_server, offered);
        Transfer::new(&waits, &waiting_server, joined).server(ACK | PSH, 10);
        old.server(ACK | PSH, 100);
        old.closes_from_the_server();
        // What proves nothing goes to the server.
        let (other, _) = world.on_port(11);
        other.passes(from_client(0, 0, 1));

        // When the grace is over, whatever acknowledges a cookie passes.
        let (forgets, forgetting_server) = world.on_port(12);
        pass(&world, Does::Cookie);
        let offered = is_answered(&world, &forgets, &forgetting_server);
        pass(&world, Does::Pass);
        world.after_secs(91);
        let echo = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
        forgets.passes(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echo));
        exchanges_untouched(&new, &new_server);
    }

    fn a_switch_to_and_fro_loses_no_connection_and_tells_those_apart_that_came_between(world, client, server) {
        let _ = (client, server);
        let world = world_with(&world, |config| {
            config.mode = Does::Auto;
            config.auto.enter_half_open = 100;
        });
        let mut answered = Vec::new();
        for round in 0..10 {
            let (client, server) = world.on_port(100 + round);
            opens_untouched(&world, &client, &server);
            direct(&world, true);
            let (other, other_server) = world.on_port(200 + round);
            let offered = is_answered(&world, &other, &other_server);
            let joined = proves(&world, &other, &other_server, offered);
            answered.push(Transfer::new(&other, &other_server, joined));
            client.passes(from_client(0, 0, 100));
            direct(&world, false);
            server.passes(from_server(0, 100, 200));
            answered.iter_mut().for_each(|transfer| transfer.client(ACK | PSH, 10));
        }
        direct(&world, true);
        answered.iter_mut().for_each(Transfer::closes_from_the_client);
        for round in 0..10 {
            let (client, server) = world.on_port(100 + round);
            exchanges_untouched(&client, &server);
            closes_untouched(&client, &server);
        }
        assert_eq!(world.all_dropped(), 0);
    }

    fn each_block_that_settles_a_mode_counts_for_itself(world, client, server) {
        let _ = (client, server);
        let family = world.mode();
        let (_, quiet) = world.pair_to(0, 1, 1, 10);
        let (_, attacked) = world.pair_to(0, 1, 1, 11);
        let (_, kept) = world.pair_to(0, 1, 1, 12);
        let auto = || Settings { mode: Some(Does::Auto), ..Settings::default() };
        let world = family.world_with(|config| {
            config.auto.enter_half_open = 3;
            config.mode = Does::Pass;
            config.rules = vec![
                block(&quiet, auto()),
                // The same settings, and a target of its own.
                block(&attacked, auto()),
                block(&kept, Settings { own_mss: Some(1000), ..Settings::default() }),
            ];
        }).0;
        let names = targets(&world);
        assert_eq!((names.len(), names[0].as_str()), (3, "everybody"));
        for port in 1..4 {
            world.pair_to(0, 1, port, 11).0.passes(call(&world));
            world.pair_to(0, 1, port, 10).0.passes(call(&world));
            world.pair_to(0, 1, port, 12).0.passes(call(&world));
        }
        let (client, server) = world.pair_to(0, 1, 4, 11);
        is_answered(&world, &client, &server);
        let attacked = (1..3).find(|&n| present(&world, n) == Does::Cookie).expect("one of the two");
        assert_eq!((counts(&world, attacked).half_open, counts(&world, 3 - attacked).half_open), (3, 3));
        assert_eq!(counts(&world, 0).half_open, 3, "a block without a mode is everybody's");
        world.pair_to(0, 1, 5, 12).0.passes(call(&world));
        // What is dropped is dropped of the destination it was for.
        for port in 6..9 {
            world.pair_to(0, 1, port, 11).0.sends_in_vain(ack(CLIENT_ISN + 1, 77), DropReason::BadCookie);
        }
        let dropped = [0, attacked, 3 - attacked]
            .map(|target| world.operate(|proxy, _| proxy.counters().of_target(target).dropped(DropReason::BadCookie)));
        assert_eq!(dropped, [0, 3, 0]);
    }

    fn a_table_that_is_a_sixteenth_half_open_stops_it_too(world, client, server) {
        let _ = (client, server);
        let world = world_with(&world, |config| {
            config.mode = Does::Auto;
            config.auto.enter_half_open = 1_000_000;
        });
        let mut passed = 0;
        for port in 1..600 {
            let (client, server) = world.on_port(port);
            client.sends(call(&world));
            if server.has_more() {
                server.gets(unchanged());
                passed += 1;
            } else {
                client.gets(anything());
            }
        }
        assert_eq!((passed, present(&world, 0)), (512 / 16, Does::Cookie));
        assert_eq!(counts(&world, 0).half_open, 512 / 16);
    }

    fn a_half_open_connection_of_another_process_is_counted_by_the_next(world, client, server) {
        let _ = (client, server);
        let mut config = world.mode().config();
        config.mode = Does::Auto;
        let secrets = tcpstate::Secrets::new([9; 48]);
        let now = world.now();
        let mut proxy = tcpstate::Proxy::new(&config, &secrets, now);
        let (client, _) = world.on_port(1);
        let mut frame = client.frame(&call(&world));
        let len = frame.len();
        struct Nobody;
        impl tcpstate::Egress for Nobody {
            fn emit(&mut self, _: Side, _: impl FnOnce(&mut [u8]) -> usize) -> bool {
                false
            }
        }
        let mut head = tcpstate::Head::whole(&mut frame, len);
        let _ = proxy.on_single(Side::Wan, &mut head, now, &mut Nobody);
        assert_eq!(proxy.target_counts(0).half_open, 1);
        let memory = tcpstate::Memory { slab: proxy.into_slab(), ..tcpstate::Memory::anonymous(&config) };
        let next = tcpstate::Proxy::with_memory(&config, &secrets, now, memory);
        assert_eq!(next.target_counts(0).half_open, 1);
    }
}
