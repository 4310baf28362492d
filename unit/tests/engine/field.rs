//! What operators of SYN proxies and middleboxes report (`docs/field.md`): servers that answer one client in another way than the next, the numbers
//! that the box itself chooses, and what must reach the other end as it was said.

use std::time::Duration;

use tcpstate::config::{EarlyEcho, Handshake};
use tcpstate::{Event, Side};
use unit::in_every_mode;
use unit::script::*;

/// A client with these terms connects and proves itself, and its server answers with `ours`, of whatever the box asked: the SYN-ACK that the client
/// got, the SYN that the server got, and the connection is reset again.
#[track_caller]
fn visits(world: &World, client: &Host, server: &Host, theirs: Terms, ours: Terms) -> (Got, Got) {
    let (offered, server_syn) = proves(client, server, theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
    answers(world, client, server, &offered, &server_syn, ours);
    client.sends(rst(CLIENT_ISN + 1));
    server.gets(rst(CLIENT_ISN + 1));
    world.after_secs(50);
    (offered, server_syn)
}

/// A client sends this SYN and proves itself: the SYN-ACK, and the SYN that the server gets.
#[track_caller]
fn proves(client: &Host, server: &Host, syn: Seg) -> (Got, Got) {
    client.sends(syn);
    let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
    proves_by(client, server, &offered)
}

/// A client acknowledges this SYN-ACK.
#[track_caller]
fn proves_by(client: &Host, server: &Host, offered: &Got) -> (Got, Got) {
    client.sends(acknowledges(offered));
    let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
    (offered.clone(), server_syn)
}

fn acknowledges(offered: &Got) -> Seg {
    acknowledges_at(offered, CLIENT_TS + 1)
}

/// The same when the client's clock is there.
fn acknowledges_at(offered: &Got, clock: u32) -> Seg {
    ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(offered.ts().map(|(value, _)| (clock, value)))
}

/// The server's answer with these terms, of which it takes those it was asked for.
fn answer_of(server_syn: &Got, ours: Terms) -> Seg {
    let agreed = Terms {
        wscale: ours.wscale.filter(|_| server_syn.wscale().is_some()),
        sack: ours.sack && server_syn.sack_ok(),
        ts: ours.ts && server_syn.ts().is_some(),
        ..ours
    };
    agreed.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, server_syn.ts().map_or(0, |(value, _)| value)))
}

/// The server answers so, and a second later all that belongs to the handshake has been said.
#[track_caller]
fn answers(world: &World, client: &Host, server: &Host, offered: &Got, server_syn: &Got, ours: Terms) -> Got {
    server.sends(answer_of(server_syn, ours));
    let update = gets_update(client, offered, CLIENT_ISN, ours.mss);
    world.tick(Duration::from_millis(720));
    world.discard();
    update
}

// ---- what is learned of one client is not told another ----

in_every_mode! {
    /// Linux echoes the first: a repeated SYN finds its half-open connection, and changes nothing of it.
    fn a_syn_repeated_with_a_new_timestamp_gets_the_echo_of_the_first_from_the_cache(world, client, server) {
        let (mss, later) = (world.mss(), CLIENT_TS + 1000);
        let repeats = |client: &Host, terms: Terms| {
            [CLIENT_TS, later].map(|value| {
                client.sends(terms.on(syn(CLIENT_ISN), (value, 0)));
                let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
                world.after_secs(1);
                offered
            })
        };
        let (other, _) = world.on_port(7);
        assert!(repeats(&other, Terms::windows(mss)).iter().all(|offered| offered.ts().is_none()));
        let [first, again] = repeats(&client, Terms::linux(mss));
        // A cookie alone has no memory.
        let echo = if world.mode().cache { CLIENT_TS } else { later };
        assert_eq!([&first, &again].map(|offered| offered.ts().map(|(_, echo)| echo)), [Some(CLIENT_TS), Some(echo)]);
        // Its server hears the client's present clock.
        client.sends(acknowledges_at(&again, later + 5));
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        let (value, _) = server_syn.ts().expect("the client was offered timestamps");
        assert!((later + 4..=later + 5).contains(&value), "{value}");
    }

    fn a_server_with_syn_cookies_that_meets_a_client_without_timestamps_refuses_nobody_else(world, client, server) {
        let _ = (client, server);
        let mss = world.mss();
        let full = Terms::linux(mss);
        for known in [false, true] {
            let (world, ..) = world.mode().world();
            let meets = |n: u16, theirs, ours| {
                let (client, server) = world.on_port(100 + n);
                visits(&world, &client, &server, theirs, ours).0
            };
            if known {
                (0..3).for_each(|n| drop(meets(n, full, full)));
            }
            // Linux in SYN-cookie mode: what such a client offers it can keep nowhere.
            let poor = Terms { ts: false, ..full };
            let told = meets(10, poor, Terms::bare(mss));
            assert_eq!(told.ts(), None);
            let told = meets(11, full, full);
            assert_eq!((told.wscale(), told.sack_ok(), told.ts().is_some()), (Some(7), true, true));
            if known {
                // Nor does one answer without anything, of a server that agreed to all so often.
                (20..27).for_each(|n| drop(meets(n, full, full)));
                meets(30, full, Terms::bare(mss));
                let told = meets(31, full, full);
                assert_eq!((told.wscale(), told.sack_ok(), told.ts().is_some()), (Some(7), true, true));
            }
        }
    }

    fn a_bad_lesson_heals_in_seconds(world, client, server) {
        let mss = world.mss();
        let full = Terms::linux(mss);
        let (offered, server_syn) = proves(&client, &server, full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        answers(&world, &client, &server, &offered, &server_syn, Terms::bare(mss));
        let (next, _) = world.on_port(2);
        next.sends(full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let told = next.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        assert_eq!((told.wscale(), told.sack_ok(), told.ts().is_some()), (None, false, false), "the last answer counts");
        world.tick(Duration::from_secs(5));
        world.discard();
        let (next, _) = world.on_port(3);
        next.sends(full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let told = next.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        assert_eq!((told.wscale(), told.sack_ok(), told.ts().is_some()), (Some(7), true, true));
    }

    fn an_mss_for_one_client_is_told_that_client_alone(world, client, server) {
        let _ = (client, server);
        let full = Terms::linux(world.mss());
        // Neighbours in one network may have different paths.
        let visit = |host: u8, port, mss| {
            let (client, server) = world.pair(0, host + 1, port);
            visits(&world, &client, &server, full, Terms { mss: Some(mss), ..full }).0.mss()
        };
        let usual = world.mss();
        assert_eq!([visit(0, 1, usual), visit(0, 2, usual)], [Some(usual); 2]);
        assert_eq!([visit(1, 3, 1300), visit(1, 4, 1300), visit(0, 5, usual)], [Some(usual), Some(1300), Some(usual)]);
        // Its first connection was told the usual one, and then the truth, by an ICMP error before it could send anything.
        assert_eq!(world.happened(Event::IcmpTooBig), 1);
        assert_eq!([visit(1, 6, 1300), visit(2, 7, usual)], [Some(1300), Some(usual)]);
        // However often that client comes.
        (8..20).for_each(|port| assert_eq!(visit(1, port, 1300), Some(1300)));
        assert_eq!([visit(0, 20, usual), visit(3, 21, usual)], [Some(usual); 2]);
    }
}

// ---- a SYN repeated with other options ----

in_every_mode! {
    fn an_option_that_nobody_knows_is_not_reflected(world, client, server) {
        let _ = (client, server);
        let mss = world.mss();
        // SMC-R (RFC 7609) as z/OS and Linux ask for it, an experiment of nobody, and a number that is not assigned.
        let asked: [&[u8]; 3] = [&[254, 6, 0xe2, 0xd4, 0xc3, 0xd9, 1, 1], &[253, 4, 0x12, 0x34], &[200, 3, 7, 1]];
        for (n, asked) in asked.iter().enumerate() {
            let (client, server) = world.on_port(100 + n as u16);
            for repeated in [false, true] {
                client.sends(syn(CLIENT_ISN).mss(536).raw(asked));
                let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().mss(mss));
                if repeated {
                    client.sends(acknowledges(&offered));
                    server.gets(segment(SYN, CLIENT_ISN, 0).any_window().mss(536));
                }
            }
        }
    }

    fn a_small_segment_size_beside_the_greatest_scale_reaches_the_server(world, client, server) {
        let theirs = Terms { mss: Some(536), wscale: Some(14), sack: false, ts: false, window: 64_240 };
        client.sends(theirs.on(syn(CLIENT_ISN), (0, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        let (offered, server_syn) = proves_by(&client, &server, &offered);
        assert_eq!(server_syn.mss(), Some(536));
        let scale = server_syn.wscale().expect("the client scales");
        let is_kept = world.mode().config().syn_cache_max > 0;
        assert!(if is_kept { scale == 14 } else { scale <= 14 }, "{scale}");
        answers(&world, &client, &server, &offered, &server_syn, Terms::linux(world.mss()));
    }

    fn each_answer_to_a_syn_is_opened_by_its_own_acknowledgement(world, client, server) {
        let _ = (client, server);
        let mss = world.mss();
        let offers = [Terms::linux(mss), Terms::bare(mss), Terms::windows(1300), Terms { sack: false, ..Terms::linux(1200) }];
        for first in 0..offers.len() {
            for chosen in 0..offers.len() {
                let (client, server) = world.on_port((100 + 10 * first + chosen) as u16);
                // The same number each time, other options each time, and the first ones again in the end.
                let order: Vec<usize> = (0..offers.len()).map(|n| (first + n) % offers.len()).chain([first]).collect();
                let mut told = vec![None; offers.len()];
                for &n in &order {
                    client.sends(offers[n].on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
                    let got = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
                    assert_eq!(got.ts().is_some(), offers[n].ts);
                    told[n] = Some(got);
                }
                let (offered, server_syn) = proves_by(&client, &server, told[chosen].as_ref().unwrap());
                let theirs = offers[chosen];
                let options = (server_syn.sack_ok(), server_syn.ts().is_some(), server_syn.wscale().is_some());
                assert_eq!(options, (theirs.sack, theirs.ts, theirs.wscale.is_some()), "the server is told what was agreed");
                assert!(server_syn.mss() <= theirs.mss);
                answers(&world, &client, &server, &offered, &server_syn, Terms::linux(mss));
                client.sends(rst(CLIENT_ISN + 1));
                server.gets(rst(CLIENT_ISN + 1));
                world.after_secs(50);
            }
        }
    }
}

// ---- numbers that the box chooses ----

/// Whether pf's "scrub reassemble tcp" takes this TSval after that one, so many milliseconds later: it may be 30 seconds ahead at 1.1 kHz.
fn is_taken(last: u32, value: u32, millis: u64) -> bool {
    let step = value.wrapping_sub(last);
    step < 1 << 31 && u64::from(step) <= (millis + 30_000) * 1100 / 1000
}

in_every_mode! {
    fn a_clock_shown_to_a_client_never_jumps(world, client, server) {
        let _ = (client, server);
        let full = Terms::linux(world.mss());
        for (port, wait) in (1..).zip([0, 1, 20, 100, 999, 4000, 9000, 20_000]) {
            for server_clock in [0, SERVER_TS, u32::MAX - 10] {
                let (world, client, server) = (world.clone(), world.on_port(port).0, world.on_port(port).1);
                let (offered, server_syn) = {
                    client.sends(full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
                    let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
                    world.tick(Duration::from_millis(wait));
                    world.discard();
                    proves_by(&client, &server, &offered)
                };
                let clock = (world.now().as_micros() / 1000) as u32;
                let first = offered.ts().unwrap().0;
                assert!(clock.wrapping_sub(first) <= 8192 + wait as u32 + 1, "milliseconds, and never ahead");
                let stamps = (server_clock, server_syn.ts().unwrap().0);
                server.sends(full.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), stamps));
                let update = client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
                assert!(is_taken(first, update.ts().unwrap().0, wait), "from {first} to {:?}", update.ts());
                world.tick(Duration::from_millis(720));
                world.discard();
                server.sends(data(SERVER_ISN + 1, CLIENT_ISN + 1, 9).ts(server_clock.wrapping_add(720), CLIENT_TS + 1));
                let got = client.gets(data(offered.seq + 1, CLIENT_ISN + 1, 9).any_options());
                assert!(is_taken(update.ts().unwrap().0, got.ts().unwrap().0, 720));
                client.sends(rst(CLIENT_ISN + 1));
                server.gets(rst(CLIENT_ISN + 1));
                world.after_secs(50);
            }
        }
    }

    fn the_box_speaks_for_a_server_with_the_servers_hop_limit(world, client, server) {
        let _ = (client, server);
        let full = Terms::linux(world.mss());
        for (hops, learned) in [(255, 255), (61, 61), (40, 40)] {
            let (world, client, server) = world.mode().world_with(|config| config.closed_memory = Duration::from_secs(10));
            client.sends(full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
            assert_eq!(offered.ttl, 255, "of a server nothing is known of no receiver takes the hop limit for too low");
            let (offered, server_syn) = proves_by(&client, &server, &offered);
            assert_eq!(server_syn.ttl, CLIENT_TTL);
            server.sends(answer_of(&server_syn, full).ttl(hops));
            let update = client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
            assert_eq!(update.ttl, learned);
            world.tick(Duration::from_millis(720));
            for (side, frame) in world.discard() {
                let got = read(&frame, world.now()).unwrap();
                assert_eq!(got.ttl, if side == Side::Lan { CLIENT_TTL } else { learned });
            }
            // A challenge to a SYN, and later a SYN-ACK and a reset for other connections.
            client.sends(full.on(syn(77), (CLIENT_TS + 50, 0)));
            assert_eq!(client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options()).ttl, learned);
            let (next, next_server) = world.on_port(2);
            let (offered, _) = proves(&next, &next_server, full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            assert_eq!(offered.ttl, learned);
            next_server.sends(rst_ack(0, CLIENT_ISN + 1));
            next.gets(rst(offered.seq + 1));
            next.sends(syn(9));
            assert_eq!(next.gets(rst_ack(0, 10)).ttl, learned, "the port is remembered as closed to this network");
        }
        let (_, client, _) = world.mode().world_with(|config| config.own_ttl = 77);
        client.sends(full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        assert_eq!(client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options()).ttl, 77);
    }

    fn the_hop_limit_of_an_end_is_that_of_its_last_segment(world, client, server) {
        let full = Terms::linux(world.mss());
        let (offered, server_syn) = proves(&client, &server, full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let update = answers(&world, &client, &server, &offered, &server_syn, full);
        let echo = update.ts().map_or(0, |(value, _)| value);
        let (mut sent, stamps) = (0, |step| (SERVER_TS + step, CLIENT_TS + 1));
        // A daemon that sets GTSM's hop limit on the socket that it has accepted.
        for (step, ttl) in [(1, 64), (2, 255), (3, 255), (4, 63)] {
            let says = data(SERVER_ISN + 1 + sent, CLIENT_ISN + 1, 10).maybe_ts(Some(stamps(step))).ttl(ttl);
            server.sends(says);
            assert_eq!(client.gets(anything()).ttl, ttl);
            sent += 10;
            let blind = data(CLIENT_ISN + 0x1000_0000, offered.seq + 1, 10);
            client.sends(blind.maybe_ts(Some((CLIENT_TS + 1, echo))));
            assert_eq!(client.gets(anything()).ttl, ttl, "a challenge");
            world.tick(Duration::from_millis(600));
            world.discard();
        }
    }

    fn the_syn_cache_keeps_the_class_and_the_hop_limit_of_a_syn(world, client, server) {
        let full = Terms::linux(world.mss());
        client.sends(full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)).tos(0xb8).ttl(60));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        client.sends(acknowledges(&offered).tos(0x28).ttl(50));
        let got = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        let kept = if world.mode().cache { (0xb8, 60) } else { (0x28, 50) };
        assert_eq!((got.tos, got.ttl), kept, "a cookie has no place for them");
        // The proof again.
        client.sends(acknowledges(&offered).tos(0x28).ttl(50));
        let again = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        assert_eq!((again.tos, again.ttl), kept);
        world.tick(Duration::from_millis(1100));
        let again = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        assert_eq!((again.tos, again.ttl), kept);
    }

    fn the_class_reaches_the_other_end(world, client, server) {
        let _ = (client, server);
        let full = Terms::linux(world.mss());
        for reflects in [false, true] {
            let (world, ..) = world.mode().world();
            let mut told = Vec::new();
            for (port, class) in (1..).zip([0xb8, 0, 0x28, 0xb8]) {
                let (client, server) = world.on_port(port);
                let before = full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)).tos(class);
                client.sends(before);
                let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
                told.push(offered.tos);
                client.sends(acknowledges(&offered).tos(class));
                let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
                assert_eq!(server_syn.tos, class, "the class of the client's SYN");
                world.tick(Duration::from_millis(1100));
                let again = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
                assert_eq!(again.tos, class, "and of the SYN repeated");
                world.discard();
                let answered = if reflects { class } else { 0x48 };
                server.sends(answer_of(&server_syn, full).tos(answered));
                let update = client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
                assert_eq!(update.tos, answered);
                world.tick(Duration::from_millis(720));
                for (side, frame) in world.discard() {
                    let got = read(&frame, world.now()).unwrap();
                    assert_eq!(got.tos, if side == Side::Lan { class } else { answered });
                }
                client.sends(rst(CLIENT_ISN + 1));
                server.gets(rst(CLIENT_ISN + 1));
                world.after_secs(50);
            }
            assert_eq!(told, if reflects { [0xb8, 0, 0x28, 0xb8] } else { [0xb8, 0x48, 0x48, 0x48] });
        }
    }
}

// ---- early: servers that keep their terms in the timestamp they sent ----

/// What a server of an early client makes of the two SYNs it gets.
#[derive(Clone, Copy, PartialEq)]
enum Answers {
    /// It keeps the first, and repeats its answer.
    Keeps,
    /// It answers each as if it were the only one.
    Forgets,
    /// Likewise, and its second answer overtakes the first: each took another queue to the box.
    Crosses,
    /// It answers once.
    Once,
}

/// What the handshake's last acknowledgement echoes to a server whose SYN-ACK has this TSval.
#[track_caller]
fn echo_to(world: &World, port: u16, clock: u32, answers: Answers) -> u32 {
    let full = Terms::linux(world.mss());
    let (client, server) = world.on_port(port);
    client.sends(full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
    let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
    client.sends(acknowledges(&offered));
    let mut values =
        [(); 2].map(|()| server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options()).ts().unwrap().0);
    // The box's own segments leave before the frame that made it send them; here they are seen behind it.
    values.sort_unstable();
    let [first, second] = values;
    assert!(second == first || second == first + 1);
    let answer = |value| full.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (clock, value));
    let acknowledged = || server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window().any_options()).ts().unwrap().1;
    // Where the SYNs differ, and the clock says nothing, the second answer decides.
    let waits = second != first && clock & 0x1f != 0x17 && answers != Answers::Crosses;
    server.sends(answer(if answers == Answers::Crosses { second } else { first }));
    let mut got = (!waits).then(acknowledged);
    client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
    match answers {
        Answers::Keeps | Answers::Crosses => server.sends(answer(first)),
        Answers::Forgets => server.sends(answer(second)),
        Answers::Once => world.after_ms(5),
    }
    for _ in 0..u32::from(waits) + u32::from(answers != Answers::Once) {
        let echo = acknowledged();
        assert_eq!(*got.get_or_insert(echo), echo);
    }
    // What the client itself sends echoes exactly in any case.
    client.sends(data(CLIENT_ISN + 1, offered.seq + 1, 9).ts(CLIENT_TS + 2, offered.ts().unwrap().0));
    server.gets(data(CLIENT_ISN + 1, SERVER_ISN + 1, 9).ts(CLIENT_TS + 2, clock));
    client.sends(rst(CLIENT_ISN + 10));
    server.gets(rst(CLIENT_ISN + 10));
    world.after_secs(50);
    got.unwrap()
}

in_every_mode! {
    fn a_server_that_keeps_its_terms_in_its_timestamp_gets_it_back(world, client, server) {
        let _ = (client, server);
        let early = |echo| {
            let change = |config: &mut tcpstate::Config| (config.handshake, config.early_echo) = (Handshake::Early, echo);
            world.mode().world_with(change).0
        };
        // The client's scale, 7, and SACK, as nftables and a box like this write them; and a clock that looks otherwise.
        let (minted, plain) = (SERVER_TS & !0x3f | 0x17, SERVER_TS | 0x1f);
        let auto = early(EarlyEcho::Auto);
        assert_eq!(echo_to(&auto, 1, plain, Answers::Keeps), plain, "nothing is known of it");
        let echoes = [(2, plain), (3, minted), (4, plain)].map(|(port, clock)| echo_to(&auto, port, clock, Answers::Keeps));
        assert_eq!(echoes, [0, minted, 0]);
        let exact = early(EarlyEcho::Exact);
        assert_eq!([1, 2, 3].map(|port| echo_to(&exact, port, plain, Answers::Keeps)), [plain; 3]);
        let none = early(EarlyEcho::None);
        assert_eq!([1, 2, 3].map(|port| echo_to(&none, port, minted, Answers::Forgets)), [0; 3]);
    }

    fn a_server_that_keeps_nothing_gets_its_timestamp_back_whatever_it_looks_like(world, client, server) {
        let _ = (client, server);
        let (world, ..) = world.mode().world_with(|config| config.handshake = Handshake::Early);
        // Linux hides what it keeps there behind a secret.
        let plain = SERVER_TS | 0x1f;
        use Answers::{Crosses, Forgets, Keeps, Once};
        let echoes = [Keeps, Keeps, Once, Crosses, Keeps, Forgets, Keeps];
        let echoes = echoes.iter().zip(1..).map(|(&answers, port)| echo_to(&world, port, plain, answers));
        // The last is spared the question for a while.
        assert_eq!(echoes.collect::<Vec<_>>(), [plain, 0, plain, plain, 0, plain, plain]);
    }

    fn held_data_leaves_behind_the_acknowledgement_that_waited_for_the_second_answer(world, client, server) {
        let _ = (client, server);
        let (world, ..) = world.mode().world_with(|config| config.handshake = Handshake::Early);
        let (plain, full) = (SERVER_TS | 0x1f, Terms::linux(world.mss()));
        echo_to(&world, 1, plain, Answers::Keeps);
        for (port, ending) in (2..).zip(["a second answer", "nothing", "the client"]) {
            let (client, server) = world.on_port(port);
            client.sends(full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
            let asks = |at, len| data(CLIENT_ISN + 1 + at, offered.seq + 1, len).ts(CLIENT_TS + 1, offered.ts().unwrap().0);
            let asked = |at, len| data(CLIENT_ISN + 1 + at, SERVER_ISN + 1, len).any_window().ts(CLIENT_TS + 1, plain);
            client.sends(asks(0, 9));
            let syn = || server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options()).ts().unwrap().0;
            let (first, second) = (syn(), syn());
            assert_eq!(second, first + 1);
            let answer = full.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (plain, first));
            server.sends(answer.clone());
            client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
            server.gets(nothing());
            let acknowledged = |echo| server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window().ts(CLIENT_TS + 1, echo));
            match ending {
                "a second answer" => {
                    server.sends(answer);
                    acknowledged(0);
                    acknowledged(0);
                }
                "nothing" => {
                    world.after_ms(5);
                    acknowledged(plain);
                }
                _ => {
                    client.sends(asks(9, 5));
                    server.gets(asked(9, 5));
                }
            }
            server.gets(asked(0, 9));
            client.sends(rst(CLIENT_ISN + if ending == "the client" { 15 } else { 10 }));
            server.gets(segment(RST, ANY, 0).any_window().any_options());
            world.after_secs(50);
        }
    }

    fn a_server_that_resets_what_bears_no_echo_gets_exact_ones_from_then_on(world, client, server) {
        let _ = (client, server);
        let (world, ..) = world.mode().world_with(|config| config.handshake = Handshake::Early);
        let plain = SERVER_TS | 0x1f;
        echo_to(&world, 1, plain, Answers::Keeps);
        assert_eq!(echo_to(&world, 2, plain, Answers::Keeps), 0);
        let full = Terms::linux(world.mss());
        let (client, server) = world.on_port(3);
        client.sends(full.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        client.sends(acknowledges(&offered));
        let values = [(); 2].map(|()| server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options()).ts().unwrap().0);
        let answer = full.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (plain, values[0].min(values[1])));
        server.sends(answer.clone());
        client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
        server.sends(answer);
        for _ in 0..2 {
            server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window().any_options());
        }
        server.sends(rst(SERVER_ISN + 1));
        client.gets(rst(offered.seq + 1));
        world.after_secs(50);
        assert_eq!(echo_to(&world, 4, plain, Answers::Keeps), plain);
        assert_eq!(world.happened(Event::Spliced), 4);
    }
}
