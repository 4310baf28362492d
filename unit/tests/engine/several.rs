//! Two engines of one box, as two workers have: what one has learned of a server the other knows too, so that a client is met
//! the same by whichever owns its connection. How updates get from one to the other is up to the workers, and tested there.

use std::time::Duration;

use tcpstate::Event;
use unit::in_every_mode;
use unit::script::*;

/// Two worlds alike, which remember for ten seconds which ports are closed.
fn two(world: &World) -> [World; 2] {
    [(); 2].map(|()| world.mode().world_with(|config| config.closed_memory = Duration::from_secs(10)).0)
}

/// A server that differs from what is presumed of it.
fn peculiar(world: &World) -> Terms {
    Terms { mss: Some(1300), wscale: Some(3), sack: false, ts: false, ..Terms::linux(world.mss()) }
}

/// What a client that connects through this engine is offered.
#[track_caller]
fn offered(world: &World, port: u16) -> Got {
    let (client, server) = world.on_port(port);
    client.sends(Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
    server.gets(nothing());
    client.gets(anything())
}

/// A client sends a SYN and proves itself, so that its server gets a SYN: what either got.
#[track_caller]
fn prove(world: &World, port: u16) -> (Got, Got) {
    let offered = offered(world, port);
    let echo = offered.ts().map(|(value, _)| value);
    let (client, server) = world.on_port(port);
    client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echo.map(|echo| (CLIENT_TS + 1, echo))));
    let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
    (offered, server_syn)
}

/// Connects to a server that refuses.
#[track_caller]
fn is_refused(world: &World, port: u16) {
    let (offered, _) = prove(world, port);
    let (client, server) = world.on_port(port);
    server.sends(rst_ack(0, CLIENT_ISN + 1));
    client.gets(rst(offered.seq + 1));
}

in_every_mode! {
    fn what_one_has_learned_of_a_server_the_other_offers_too(world, client, server) {
        let _ = (client, server);
        let [here, there] = two(&world);
        let (client, server) = here.on_port(1000);
        assert!(offered(&there, 999).sack_ok(), "what is presumed of an unknown server");
        open(&client, &server, Terms::linux(world.mss()), peculiar(&world));
        assert_eq!(here.publishes_to(&there), 1);
        let (own, learned) = (offered(&here, 1001), offered(&there, 1001));
        assert_eq!((learned.mss(), learned.wscale(), learned.sack_ok()), (own.mss(), own.wscale(), own.sack_ok()));
        assert_eq!((learned.mss(), learned.sack_ok(), learned.ts()), (Some(1300), false, None));
    }

    fn a_received_update_is_not_published_again(world, client, server) {
        let _ = (client, server);
        let [here, there] = two(&world);
        let (client, server) = here.on_port(1000);
        open(&client, &server, Terms::linux(world.mss()), peculiar(&world));
        is_refused(&here, 1001);
        assert_eq!(here.publishes_to(&there), 2);
        assert_eq!((there.publishes_to(&here), here.publishes_to(&there)), (0, 0));
    }

    fn what_is_known_is_published_again_only_now_and_then(world, client, server) {
        let _ = (client, server);
        let [here, there] = two(&world);
        // Nothing the server refuses is offered it any more, so its second answer has fewer options.
        for (port, said) in [(1000, 1), (1001, 0), (1002, 0)] {
            let (client, server) = here.on_port(port);
            open(&client, &server, Terms::linux(world.mss()), Terms::linux(world.mss()));
            assert_eq!(here.publishes_to(&there), said, "port {port}");
        }
        // The clients send nothing, so their window updates are repeated meanwhile.
        here.tick(Duration::from_secs(20));
        here.discard();
        let (client, server) = here.on_port(1003);
        open(&client, &server, Terms::linux(world.mss()), Terms::linux(world.mss()));
        assert_eq!(here.publishes_to(&there), 1, "that it still lives, for a place in the other's cache");
        let (client, server) = here.on_port(1004);
        open(&client, &server, Terms::linux(world.mss()), peculiar(&world));
        assert_eq!(here.publishes_to(&there), 1, "that it is another");
    }

    fn a_port_that_refused_one_worker_is_refused_by_the_other_until_it_answers(world, client, server) {
        let _ = (client, server);
        let [here, there] = two(&world);
        let (client, server) = here.on_port(999);
        let (offer, server_syn) = prove(&here, 999);
        is_refused(&here, 1000);
        here.publishes_to(&there);
        let (other, _) = there.on_port(1001);
        other.sends(syn(5000));
        other.gets(rst_ack(0, 5001));
        assert_eq!(there.happened(Event::ClosedPort), 1);
        // One whose SYN was on its way meanwhile is answered, and the port is open again, here and there.
        let terms = Terms::linux(world.mss());
        answer(&client, &server, terms, CLIENT_ISN, SERVER_ISN, offer, server_syn);
        assert_eq!(here.publishes_to(&there), 1);
        for engine in [&here, &there] {
            assert_eq!(offered(engine, 1002).flags & SYN, SYN);
        }
    }
}
