//! What deployed stacks and middleboxes do, as people reported it: each case is a row of `docs/field.md`.

use std::time::Duration;

use tcpstate::config::Stray;
use tcpstate::{DropReason, Event, Side};
use unit::in_every_mode;
use unit::script::*;

/// The largest window two Linux hosts can agree on: 65 535 bytes, scaled by 14 (RFC 7323 section 2.3).
fn wide(mss: u16) -> Terms {
    Terms { wscale: Some(14), window: 65_535, ..Terms::linux(mss) }
}

/// Bytes in flight on a path of 100 Gbit/s with a round trip of 25 ms.
const IN_FLIGHT: u32 = 300 << 20;

/// Opens a connection whose ends have granted each other a window of nearly 1 GiB.
fn open_wide(client: &Host, server: &Host, mss: u16) -> Joined {
    let j = open(client, server, wide(mss), wide(mss));
    client.sends(ack(j.c(0), j.o(0)).window(65_535).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)));
    server.gets(ack(j.c(0), j.s(0)).any_window().any_options());
    server.sends(ack(j.s(0), j.c(0)).window(65_535).ts(SERVER_TS, CLIENT_TS + 2));
    client.gets(ack(j.o(0), j.c(0)).any_window().any_options());
    j
}

in_every_mode! {
    fn hundreds_of_megabytes_may_be_in_flight_to_the_client(world, client, server) {
        let j = open_wide(&client, &server, world.mss());
        let stamps = (CLIENT_TS + 3, j.ts_out(SERVER_TS));
        // What lies between would only repeat it.
        for at in [0, IN_FLIGHT] {
            server.sends(data(j.s(at), j.c(0), 100).window(65_535).ts(SERVER_TS, CLIENT_TS + 2));
            client.gets(data(j.o(at), j.c(0), 100).any_window().any_options());
        }
        for (at, len) in [(0, 0), (100, 0), (100, 10), (IN_FLIGHT + 100, 0)] {
            client.sends(data(j.c(0), j.o(at), len).window(65_535).ts(stamps.0, stamps.1));
            server.gets(data(j.c(0), j.s(at), len).any_window().any_options());
        }
        // Blind data acknowledges what was never sent, or what was acknowledged long ago (RFC 5961 section 5).
        for at in [IN_FLIGHT + 10_000_000, 0_u32.wrapping_sub(200 << 20)] {
            world.after_secs(1);
            client.sends(data(j.c(10), j.o(at), 10).window(65_535).ts(stamps.0, stamps.1));
            client.gets(ack(j.o(IN_FLIGHT + 100), j.c(0)).any_window().any_options());
            server.gets(nothing());
        }
    }

    fn hundreds_of_megabytes_may_be_in_flight_to_the_server(world, client, server) {
        let j = open_wide(&client, &server, world.mss());
        let echo = j.ts_out(SERVER_TS);
        // More than the window in all, and never less than that in flight: the box has to follow the server's acknowledgements.
        let step = IN_FLIGHT / 3;
        for n in 0..16 {
            client.sends(data(j.c(n * step), j.o(0), 100).window(65_535).ts(CLIENT_TS + 3, echo));
            server.gets(data(j.c(n * step), j.s(0), 100).any_window().any_options());
            let acked = (n * step).saturating_sub(IN_FLIGHT) + 100;
            server.sends(ack(j.s(0), j.c(acked)).window(65_535).ts(SERVER_TS, CLIENT_TS + 3));
            client.gets(ack(j.o(0), j.c(acked)).any_window().any_options());
        }
    }
}

/// A world that adopts connections that run already.
fn adopting(world: &World) -> (World, Host, Host) {
    world.mode().world_with(|config| config.adopt_grace = Duration::from_secs(60))
}

in_every_mode! {
    fn a_running_connection_with_much_in_flight_is_adopted(world, client, server) {
        let _ = (client, server);
        for (seq, acked) in [(5100, 9200), (5100 + IN_FLIGHT, 9200), (5100, 9200u32.wrapping_sub(IN_FLIGHT))] {
            let (world, client, server) = adopting(&world);
            server.passes(data(9000, 5100, 200));
            client.passes(data(seq, acked, 100));
            assert_eq!(world.happened(Event::Adopted), 1, "seq {seq}, ack {acked}");
        }
    }
}
