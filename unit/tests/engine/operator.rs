//! What the operator does to the engine while it runs, as traces: states what servers take, drains the box, and changes
//! the secret. No client that has its SYN-ACK is affected.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tcpstate::config::Source;
use tcpstate::seq::WindowScale;
use tcpstate::{Config, CookieClock, Event, Policy, Rotation, ServerEntry, ServerTable};
use unit::in_every_mode;
use unit::script::*;

/// A world in which everything is commanded.
fn commanded(world: &World) -> (World, Host, Host) {
    world.mode().world_with(|config| (config.mss, config.sack, config.wscale) = [Source::Commanded; 3].into())
}

/// The operator states this of the server, and nothing of any other.
fn command(world: &World, server: &Host, port: u16, (mss, sack, scale): (u16, bool, u8)) {
    let backend =
        ServerEntry { address: words(server.ends().src), port, mss, sack, scale: WindowScale::clamped(scale) };
    world.operate(|proxy, _| proxy.command(Arc::new(ServerTable::new(&[backend], [3, 4]))));
}

/// An address as the engine has it.
fn words(address: IpAddr) -> [u32; 4] {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    [96, 64, 32, 0].map(|shift| (address.to_bits() >> shift) as u32)
}

/// What a client was offered.
fn told(offered: &Got) -> (Option<u16>, bool, Option<u8>) {
    (offered.mss(), offered.sack_ok(), offered.wscale())
}

/// Both ends send data, and the other gets it.
fn is_joined(client: &Host, server: &Host, joined: &Joined) {
    let stamps = |value, echo| joined.server_syn.ts().map(|_| (value, echo));
    client.sends(ack(joined.c(0), joined.o(0)).maybe_ts(stamps(CLIENT_TS + 1, joined.ts_out(SERVER_TS))));
    server.gets(ack(joined.c(0), joined.s(0)).any_window().any_options());
    server.sends(data(joined.s(0), joined.c(0), 100).maybe_ts(stamps(SERVER_TS, CLIENT_TS + 1)));
    client.gets(data(joined.o(0), joined.c(0), 100).any_window().any_options());
}

in_every_mode! {
    fn a_client_is_offered_what_the_operator_states_of_its_server(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = commanded(&world);
        let terms = Terms::linux(world.mss());
        let joined = open(&client, &server, terms, terms);
        assert_eq!(told(&joined.offered), (Some(world.mss()), true, Some(7)), "nothing is stated: own_*");
        let port = server.ends().sport;
        for (n, (entry, said)) in [(0, (1000, false, 3)), (port, (1100, true, 11)), (port + 1, (1, false, 0))].into_iter().enumerate() {
            command(&world, &server, entry, said);
            let (client, server) = world.on_port(10 + n as u16);
            let joined = open(&client, &server, terms, terms);
            let (mss, sack, scale) = if entry > port { (world.mss(), true, 7) } else { said };
            assert_eq!(told(&joined.offered), (Some(mss), sack, Some(scale)), "stated of port {entry}");
            // Whatever the server has answered besides: the connection works.
            is_joined(&client, &server, &joined);
        }
    }

    fn an_option_the_client_lacks_is_not_offered_whatever_the_operator_states(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = commanded(&world);
        command(&world, &server, 0, (1200, true, 5));
        let joined = open(&client, &server, Terms::bare(1400), Terms::linux(world.mss()));
        assert_eq!(told(&joined.offered), (Some(1200), false, None));
    }

    fn what_the_operator_says_between_the_answer_and_the_proof_changes_nothing(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = commanded(&world);
        let (theirs, ours) = (Terms::linux(world.mss()), Terms { wscale: Some(2), ..Terms::linux(1300) });
        command(&world, &server, 0, (1400, true, 9));
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        assert_eq!(told(&offered), (Some(1400), true, Some(9)));
        command(&world, &server, 0, (600, false, 0));
        let echo = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echo));
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        assert!(server_syn.sack_ok() && server_syn.wscale().is_some(), "the server's SYN has what the client was offered");
        command(&world, &server, 0, (700, true, 14));
        let joined = answer(&client, &server, ours, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        is_joined(&client, &server, &joined);
        // A window of the server's comes in the scale announced to the client: 4096 << 2 is 32 << 9.
        let stamps = |value, echo| joined.server_syn.ts().map(|_| (value, echo));
        server.sends(ack(joined.s(100), joined.c(0)).window(4096).maybe_ts(stamps(SERVER_TS + 9, CLIENT_TS + 1)));
        let seen = client.gets(ack(joined.o(100), joined.c(0)).any_window().any_options());
        assert_eq!(seen.window, 32);
    }

    fn a_drained_box_passes_new_connections_and_keeps_its_own(world, client, server) {
        let terms = Terms::linux(world.mss());
        let mut old = Transfer::new(&client, &server, open(&client, &server, terms, terms));
        old.client(ACK | PSH, 100);
        old.server(ACK | PSH, 100);
        // One more is answered, and has not proved itself yet.
        let (late, late_server) = world.on_port(20);
        late.sends(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = late.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        world.operate(|proxy, _| proxy.drain(true));

        let (new, new_server) = world.on_port(21);
        new.passes(terms.on(syn(1000), (CLIENT_TS, 0)));
        new_server.passes(terms.on(syn_ack(2000, 1001), (SERVER_TS, CLIENT_TS)));
        new.passes(ack(1001, 2001).nop().nop().ts(CLIENT_TS + 1, SERVER_TS));
        assert_eq!(world.happened(Event::Drained), 1);
        world.has_flows(1, 1);

        // Who repeats a SYN that was answered is answered again, and may use either answer.
        world.after_secs(1);
        late.sends(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let again = late.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        assert_eq!(again.seq, offered.seq);
        let echo = again.ts().map(|(value, _)| (CLIENT_TS + 1, value));
        late.sends(ack(CLIENT_ISN + 1, again.seq + 1).maybe_ts(echo));
        let server_syn = late_server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        let joined = answer(&late, &late_server, terms, CLIENT_ISN, SERVER_ISN, again, server_syn);
        Transfer::new(&late, &late_server, joined).closes_from_the_client();
        old.client(ACK | PSH, 100);
        old.server(ACK | PSH, 100);

        // A SYN over a live connection is challenged as ever.
        client.sends(terms.on(syn(77), (CLIENT_TS, 0)));
        client.gets(segment(ACK, ANY, ANY).any_window().any_options());
        server.gets(nothing());
        old.closes_from_the_client();

        world.operate(|proxy, _| proxy.drain(false));
        let (next, next_server) = world.on_port(22);
        open(&next, &next_server, terms, terms);
    }

    fn a_change_of_the_option_tables_disturbs_no_connection(world, client, server) {
        let _ = (client, server);
        let mut config = None;
        let (world, ..) = world.mode().world_with(|present| config = Some(present.clone()));
        let (config, terms) = (config.unwrap_or_default(), Terms::linux(world.mss()));
        // What a code stood for under the former tables, it does not stand for under these.
        let reversed = |table: &[u8]| table.iter().map(|scale| 14 - scale).rev().collect::<Vec<_>>();
        let next = Config {
            mss_table: vec![500, 1200, 1300, 1410, 1430, 1440, 1450, 1460],
            ts_mss_table: vec![500, 1200, 1300, 1430, 1440, 1450, 1460],
            wscale_table: reversed(&config.wscale_table),
            own_wscale: 3,
            ..config
        };
        let begins = world.operate(|proxy, now| {
            let policy = Arc::new(Policy::new(&next, now));
            let begins = policy.tables_begin();
            drop(proxy.set_policy(policy, now));
            begins
        });
        // As it is decided, before it comes into force, over that moment, and after it; each client but the first takes four seconds to answer.
        let wait = begins.since(world.now());
        for (n, lead) in [wait, Duration::from_secs(5), Duration::from_secs(2), Duration::ZERO].into_iter().enumerate() {
            let left = begins.since(world.now());
            world.after(left.saturating_sub(lead));
            // Servers that have a SYN of the box have not answered, and get it again.
            world.discard();
            let (client, server) = world.on_port(30 + n as u16);
            client.sends(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
            let echo = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
            world.after_secs(if n == 0 { 0 } else { 4 });
            world.discard();
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echo));
            let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
            // Room for timestamps is kept while the server is unknown; and a table may round down.
            assert!(server_syn.mss().is_some_and(|mss| (1380..=world.mss()).contains(&mss)) && server_syn.sack_ok(), "client {n}");
            assert_eq!(server_syn.wscale(), Some(terms.wscale.unwrap_or_default()), "client {n}");
            let joined = answer(&client, &server, terms, CLIENT_ISN, SERVER_ISN, offered, server_syn);
            is_joined(&client, &server, &joined);
            world.discard();
        }
        assert!(world.now() > begins);
    }

    fn a_change_of_the_secret_disturbs_no_connection(world, client, server) {
        let _ = (client, server);
        let terms = Terms::linux(world.mss());
        let begins = world.operate(|proxy, now| {
            let rotation = Rotation::new([5; 16], CookieClock::default(), now);
            proxy.rotate(&rotation, now);
            rotation.begins()
        });
        // Before the change, over it, and after it; each client takes nine seconds to answer.
        let wait = begins.since(world.now());
        for (n, lead) in [wait, Duration::from_secs(4), Duration::from_secs(1)].into_iter().enumerate() {
            let now = begins.since(world.now());
            world.after(now.saturating_sub(lead));
            let (client, server) = world.on_port(30 + n as u16);
            // Servers that have a SYN of the box have not answered, and get it again.
            world.discard();
            client.sends(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
            let echo = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
            world.after_secs(if n == 0 { 1 } else { 9 });
            world.discard();
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echo));
            server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        }
        assert!(world.now() > begins);
        world.discard();
        let (client, server) = world.on_port(40);
        open(&client, &server, terms, terms);
    }
}

#[test]
fn a_larger_mss_once_announced_is_remembered_when_the_operator_states_less() {
    for mode in Mode::ALL {
        let (world, ..) = mode.world();
        let (world, client, server) = commanded(&world);
        let terms = Terms::linux(world.mss());
        command(&world, &server, 0, (1400, true, 7));
        client.sends(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        command(&world, &server, 0, (536, true, 7));
        let echo = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echo));
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        let joined = answer(&client, &server, Terms::linux(600), CLIENT_ISN, SERVER_ISN, offered, server_syn);
        let stamps = joined.server_syn.ts().map(|_| (CLIENT_TS + 2, joined.ts_out(SERVER_TS)));
        // A segment of the announced MSS is longer than the server takes: it passes, and the client gets an ICMP error.
        client.sends(data(joined.c(0), joined.o(0), 1300).maybe_ts(stamps));
        assert_eq!(world.happened(Event::IcmpTooBig), 1, "{mode}");
        world.discard();
    }
}
