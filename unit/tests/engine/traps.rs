//! What goes wrong in SYN proxies, one promise a test: options and windows, the handshake, the established connection,
//! packets off the common road, limits and timers.

use std::time::Duration;

use proptest::prelude::*;
use tcpstate::config::{SackConflict, Source};
use tcpstate::{DropReason, Event, Side, Verdict};
use unit::in_every_mode;
use unit::script::*;

/// Opens a connection up to the SYN to the server, which has not answered: the client's SYN-ACK and the server's SYN.
fn prove(client: &Host, server: &Host, theirs: Terms, isn: u32) -> (Got, Got) {
    client.sends(theirs.on(syn(isn), (CLIENT_TS, 0)));
    let offered = client.gets(syn_ack(ANY, isn.wrapping_add(1)).window(0).any_options());
    server.gets(nothing());
    let stamps = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
    client.sends(ack(isn.wrapping_add(1), offered.seq.wrapping_add(1)).maybe_ts(stamps));
    client.gets(nothing());
    let server_syn = server.gets(segment(SYN, isn, 0).any_window().any_options());
    (offered, server_syn)
}

/// A connection between two Linux hosts.
fn linux(world: &World, client: &Host, server: &Host) -> Transfer {
    let terms = Terms::linux(world.mss());
    Transfer::new(client, server, open(client, server, terms, terms))
}

/// A connection between two Linux hosts that both negotiate ECN, to a server that is known to.
fn ecn(world: &World, client: &Host, server: &Host) -> Transfer {
    let terms = Terms::linux(world.mss());
    let (first_client, first_server) = world.on_port(7);
    open_ecn(&first_client, &first_server, terms, terms, false);
    Transfer::new(client, server, open_ecn(client, server, terms, terms, true))
}

// ---- options and windows ----

in_every_mode! {
    fn a_client_without_window_scaling_is_not_offered_it(world, client, server) {
        let theirs = Terms { wscale: None, ..Terms::linux(world.mss()) };
        let (offered, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
        assert_eq!((offered.wscale(), server_syn.wscale()), (None, None), "none is not the same as a shift of zero");
    }

    fn a_client_that_scales_by_zero_is_not_one_that_does_not_scale(world, client, server) {
        for (port, ts) in [(1, true), (2, false)] {
            let (client, server) = world.on_port(port);
            let theirs = Terms { wscale: Some(0), ts, ..Terms::linux(world.mss()) };
            let (offered, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
            assert_eq!((offered.wscale(), server_syn.wscale()), (Some(7), Some(0)));
        }
        let _ = (client, server);
    }

    fn no_option_is_offered_that_the_client_did_not_offer(world, client, server) {
        let _ = (client, server);
        for bits in 0..16 {
            let theirs = Terms {
                mss: (bits & 1 != 0).then_some(world.mss()),
                wscale: (bits & 2 != 0).then_some(7),
                sack: bits & 4 != 0,
                ts: bits & 8 != 0,
                window: 64240,
            };
            let (client, server) = world.on_port(1000 + bits);
            let (offered, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
            let kinds = |got: &Got| (got.wscale().is_some(), got.sack_ok(), got.ts().is_some());
            let wanted = (theirs.wscale.is_some(), theirs.sack, theirs.ts);
            assert_eq!(kinds(&offered), wanted, "the client was answered {offered}");
            assert_eq!(kinds(&server_syn), wanted, "the SYN to the server is {server_syn}");
            assert_eq!(server_syn.wscale(), theirs.wscale);
            // The segment size is announced, not agreed on: any server announces its own.
            assert!(offered.mss().is_none_or(|mss| mss == world.mss()), "the client was answered {offered}");
            if theirs.mss.is_none() {
                // RFC 9293 section 3.7.1: without the option 536 bytes, 1220 with IPv6.
                let default = if world.mode().family == Family::V4 { 536 } else { 1220 };
                assert!(server_syn.mss().is_none_or(|mss| mss <= default), "the SYN to the server is {server_syn}");
            } else {
                let mss = world.mss();
                assert!(server_syn.mss().is_some_and(|got| (mss - 20..=mss).contains(&got)), "the SYN to the server is {server_syn}");
            }
        }
    }

    fn a_client_without_timestamps_keeps_scale_sack_and_mss_in_the_number_alone(world, client, server) {
        let (_, server_syn) = prove(&client, &server, Terms::windows(world.mss()), CLIENT_ISN);
        assert_eq!((server_syn.wscale(), server_syn.sack_ok(), server_syn.mss()), (Some(8), true, Some(world.mss())));
        assert_eq!(server_syn.ts(), None);
    }

    fn every_value_of_the_tables_survives_in_the_number_alone(world, client, server) {
        let _ = (client, server);
        let config = world.mode().config();
        let mut port = 2000;
        for mss in config.mss_table {
            for wscale in config.wscale_table.iter().copied().map(Some).chain([None]) {
                for sack in [false, true] {
                    port += 1;
                    let (client, server) = world.on_port(port);
                    let theirs = Terms { mss: Some(mss), wscale, sack, ts: false, window: 8192 };
                    let (_, server_syn) = prove(&client, &server, theirs, CLIENT_ISN + u32::from(port));
                    assert_eq!((server_syn.mss(), server_syn.wscale(), server_syn.sack_ok()), (Some(mss), wscale, sack));
                    // Make room for the next.
                    server.sends(rst_ack(0, CLIENT_ISN + u32::from(port) + 1));
                    client.gets(anything());
                }
            }
        }
    }

    fn every_scale_and_common_mss_survives_with_timestamps(world, client, server) {
        let _ = (client, server);
        // Once the server is known to take timestamps, no room need be kept for those it might refuse.
        let (first, first_server) = world.on_port(1);
        open(&first, &first_server, Terms::linux(8960), Terms::linux(8960));
        let sizes = [536, 1220, 1260, 1300, 1360, 1380, 1400, 1420, 1440, 1452, 1460, 8940, 8960];
        for (i, mss) in sizes.into_iter().enumerate() {
            for shift in 0..=14 {
                let port = 3000 + i as u16 * 20 + u16::from(shift);
                let (client, server) = world.on_port(port);
                let theirs = Terms { mss: Some(mss), wscale: Some(shift), ..Terms::linux(mss) };
                let (_, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
                assert_eq!((server_syn.mss(), server_syn.wscale()), (Some(mss), Some(shift)));
                server.sends(rst_ack(0, CLIENT_ISN + 1));
                client.gets(anything());
            }
        }
    }

    fn a_value_between_the_tables_entries_is_rounded_down(world, client, server) {
        let _ = (client, server);
        for (port, mss, shift) in [(1, 1459, 5), (2, 1300, 3), (3, 600, 1), (4, 8959, 14)] {
            let (client, server) = world.on_port(port);
            let theirs = Terms { mss: Some(mss), wscale: Some(shift), ts: false, ..Terms::linux(mss) };
            let (_, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
            assert!(server_syn.mss().is_some_and(|m| m <= mss && m >= 536), "mss {mss} became {server_syn}");
            assert!(server_syn.wscale().is_some_and(|s| s <= shift), "shift {shift} became {server_syn}");
        }
    }

    fn an_mss_below_the_table_is_never_rounded_up(world, client, server) {
        let _ = (client, server);
        for (port, ts) in [(1, true), (2, false)] {
            for mss in [1, 40, 63, 100, 215] {
                let (client, server) = world.on_port(port + mss * 2);
                let theirs = Terms { mss: Some(mss), ts, ..Terms::linux(mss) };
                client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
                let answers = world.discard();
                if answers.is_empty() {
                    assert!(world.dropped(DropReason::MssTooSmall) > 0, "a refused SYN is counted by its reason");
                    continue;
                }
                let offered = read(&answers[0].1, world.now()).unwrap();
                client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(offered.ts().map(|t| (CLIENT_TS + 1, t.0))));
                let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
                // No host has a segment size below 64; the engine may take it for 64.
                assert!(server_syn.mss().is_some_and(|m| m <= mss.max(64)), "mss {mss} became {server_syn}");
            }
        }
    }

    fn a_wscale_above_14_is_taken_for_14(world, client, server) {
        let _ = (client, server);
        for shift in [15, 16, 31, 32, 200, 255] {
            let (client, server) = world.on_port(u16::from(shift));
            let theirs = Terms { wscale: Some(shift), ..Terms::linux(world.mss()) };
            let (_, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
            assert_eq!(server_syn.wscale(), Some(14));
        }
    }

    fn the_client_is_offered_the_mss_of_its_family(world, client, server) {
        let (offered, _) = prove(&client, &server, Terms::linux(8960), CLIENT_ISN);
        assert_eq!(offered.mss(), Some(world.mss()), "nothing is known of the server, so own_mss (20 less with IPv6)");
    }

    fn the_window_of_a_syn_is_never_scaled(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let j = open(&client, &server, theirs, Terms { window: 65000, ..theirs });
        assert_eq!(j.update.window, 65000 >> 7, "65000 bytes must not become 8.3 MB");
        // To a client that does not scale they are 65000.
        let (client, server) = world.on_port(1);
        let plain = Terms { wscale: None, ..theirs };
        let j = open(&client, &server, plain, Terms { window: 65000, ..theirs });
        assert_eq!(j.update.window, 65000);
    }

    fn the_first_window_is_never_more_than_the_server_granted(world, client, server) {
        let _ = (client, server);
        let theirs = Terms::linux(world.mss());
        for (i, (shift, window)) in
            [(14, 10_000), (14, 16_384), (14, 65_535), (10, 1000), (9, 511), (8, 29_200), (0, 14_600)].into_iter().enumerate()
        {
            let (client, server) = fresh_server(&world, i);
            let j = open(&client, &server, theirs, Terms { wscale: Some(shift), window, ..theirs });
            let granted = u32::from(j.update.window) << j.offered.wscale().unwrap();
            let window = u32::from(window);
            if granted > window || granted == 0 {
                world.fail(&format!("a SYN-ACK's window of {window} bytes became {granted} (the server's scale is {shift})"));
            }
        }
    }

    fn windows_are_rescaled_between_what_was_offered_and_what_the_server_uses(world, client, server) {
        let _ = (client, server);
        // The client was offered a shift of 7; the server's, its field, and what the client must see.
        let cases = [
            (9, 100, 400),
            (9, 0, 0),
            (9, 1, 4),
            (9, 20_000, 65_535),
            (14, 65_535, 65_535),
            (2, 100, 3),
            (2, 1, 1),
            (2, 0, 0),
            (2, 65_535, 2047),
            (0, 127, 1),
            (7, 12_345, 12_345),
        ];
        for (i, (shift, field, seen)) in cases.into_iter().enumerate() {
            // Another server each time, for what is known of one is offered to the next.
            let (client, server) = fresh_server(&world, i);
            let theirs = Terms::linux(world.mss());
            let j = open(&client, &server, theirs, Terms { wscale: Some(shift), ..theirs });
            assert_eq!(j.offered.wscale(), Some(7));
            server.sends(ack(j.s(0), j.c(0)).window(field).ts(SERVER_TS, CLIENT_TS + 1));
            client.gets(ack(j.o(0), j.c(0)).window(seen).ts(j.ts_out(SERVER_TS), CLIENT_TS + 1));
            // The server knows the client's own shift, so the client's fields pass.
            client.sends(ack(j.c(0), j.o(0)).window(field).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)));
            server.gets(ack(j.c(0), j.s(0)).window(field).ts(CLIENT_TS + 2, SERVER_TS));
        }
    }

    fn a_server_without_window_scaling_sees_and_shows_bytes(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let j = open(&client, &server, theirs, Terms { wscale: None, window: 60_000, ..theirs });
        assert_eq!(j.update.window, 60_000 >> 7);
        // RFC 7323 section 2.2: without the option in both SYNs neither end scales, as far as the server knows.
        server.sends(ack(j.s(0), j.c(0)).window(64_000).ts(SERVER_TS, CLIENT_TS + 1));
        client.gets(ack(j.o(0), j.c(0)).window(500).ts(j.ts_out(SERVER_TS), CLIENT_TS + 1));
        for (field, seen) in [(100, 12_800), (0, 0), (600, 65_535)] {
            client.sends(ack(j.c(0), j.o(0)).window(field).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)));
            server.gets(ack(j.c(0), j.s(0)).window(seen).ts(CLIENT_TS + 2, SERVER_TS));
        }
    }

    fn a_client_without_window_scaling_meets_a_server_that_would(world, client, server) {
        let theirs = Terms { wscale: None, ..Terms::linux(world.mss()) };
        let j = open(&client, &server, theirs, Terms::linux(world.mss()));
        for window in [0, 1, 29_200, 65_535] {
            server.sends(ack(j.s(0), j.c(0)).window(window).ts(SERVER_TS, CLIENT_TS + 1));
            client.gets(ack(j.o(0), j.c(0)).window(window).ts(j.ts_out(SERVER_TS), CLIENT_TS + 1));
            client.sends(ack(j.c(0), j.o(0)).window(window).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)));
            server.gets(ack(j.c(0), j.s(0)).window(window).ts(CLIENT_TS + 2, SERVER_TS));
        }
    }

    fn a_servers_syn_ack_with_a_wild_scale_is_harmless(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let j = open(&client, &server, theirs, Terms { wscale: Some(255), ..theirs });
        server.sends(ack(j.s(0), j.c(0)).window(1).ts(SERVER_TS, CLIENT_TS + 1));
        client.gets(ack(j.o(0), j.c(0)).window(1 << 7).ts(j.ts_out(SERVER_TS), CLIENT_TS + 1));
    }

    fn tsecr_of_zero_stays_zero(world, client, server) {
        let j = linux(&world, &client, &server).joined;
        client.sends(data(j.c(0), j.o(0), 10).nop().nop().ts(CLIENT_TS + 5, 0));
        server.gets(data(j.c(0), j.s(0), 10).ts(CLIENT_TS + 5, 0));
        server.sends(ack(j.s(0), j.c(10)).nop().nop().ts(SERVER_TS, 0));
        client.gets(ack(j.o(0), j.c(10)).ts(j.ts_out(SERVER_TS), 0));
    }

    fn a_syn_with_a_nonzero_tsecr_does_not_carry_it_to_the_server(world, client, server) {
        let mss = world.mss();
        client.sends(syn(CLIENT_ISN).mss(mss).ts(CLIENT_TS, 0xDEAD_BEEF));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).mss(mss).ts(ANY, CLIENT_TS));
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().mss_up_to(mss).ts(ANY, 0));
    }

    fn a_server_that_refuses_timestamps_is_spared_them_and_the_client_still_gets_them(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let j = open(&client, &server, theirs, Terms { ts: false, ..theirs });
        let stamp = j.offered.ts().unwrap().0;
        let (value, echo) = j.update.ts().expect("RFC 7323 section 3.2: every segment but a RST carries timestamps");
        assert_eq!(echo, CLIENT_TS + 1);
        assert!((value.wrapping_sub(stamp) as i32) >= 0, "timestamps must not run backward");
        client.sends(data(j.c(0), j.o(0), 100).nop().nop().ts(CLIENT_TS + 7, value));
        server.gets(data(j.c(0), j.s(0), 100));
        for flags in [0, PSH, FIN] {
            server.sends(segment(ACK | flags, j.s(0), j.c(100)).payload(33));
            let got = client.gets(segment(ACK | flags, j.o(0), j.c(100)).ts(ANY, CLIENT_TS + 7).payload(33));
            assert!((got.ts().unwrap().0.wrapping_sub(value) as i32) >= 0, "timestamps must not run backward");
        }
        server.sends(ack(j.s(34), j.c(100)).sack(&[(j.c(200), j.c(300))]));
        client.gets(ack(j.o(34), j.c(100)).ts(ANY, CLIENT_TS + 7).sack(&[(j.c(200), j.c(300))]));
    }

    fn a_server_that_has_refused_an_option_is_not_presumed_to_take_it(world, client, server) {
        let theirs = Terms::linux(world.mss());
        open(&client, &server, theirs, Terms { wscale: None, sack: false, ts: false, mss: Some(1200), window: 8000 });
        let (client, server) = world.on_port(CLIENT_PORT + 1);
        let (offered, _) = prove(&client, &server, theirs, CLIENT_ISN);
        assert_eq!((offered.sack_ok(), offered.ts(), offered.mss()), (false, None, Some(1200)));
        assert_eq!(offered.wscale(), None);
    }

    fn what_the_server_uses_is_what_the_next_client_is_offered(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let ours = Terms { wscale: Some(9), mss: Some(1300), ..theirs };
        let j = open(&client, &server, theirs, ours);
        assert_eq!(j.offered.wscale(), Some(7));
        let (client, server) = world.on_port(CLIENT_PORT + 1);
        let j = open(&client, &server, theirs, ours);
        assert_eq!((j.offered.wscale(), j.offered.mss()), (Some(9), Some(1300)));
        // Both ends scale by the shift in the SYN they got: fields pass as they are.
        server.sends(ack(j.s(0), j.c(0)).window(777).ts(SERVER_TS, CLIENT_TS + 1));
        client.gets(ack(j.o(0), j.c(0)).window(777).ts(j.ts_out(SERVER_TS), CLIENT_TS + 1));
    }

    fn sack_blocks_of_the_client_are_translated_at_any_offset(world, client, server) {
        let transfer = linux(&world, &client, &server);
        let j = &transfer.joined;
        let outer = [(j.o(1000), j.o(2000)), (j.o(3000), j.o(4000)), (j.o(5000), j.o(6000))];
        let inner = [(j.s(1000), j.s(2000)), (j.s(3000), j.s(4000)), (j.s(5000), j.s(6000))];
        let stamps = (CLIENT_TS + 2, j.ts_out(SERVER_TS));
        for nops in 0..4 {
            for blocks in 1..=2 {
                for sack_first in [false, true] {
                    let with = |mut seg: Seg, blocks: &[(u32, u32)], echo| {
                        for _ in 0..nops {
                            seg = seg.nop();
                        }
                        if sack_first {
                            seg.sack(blocks).ts(stamps.0, echo)
                        } else {
                            seg.ts(stamps.0, echo).sack(blocks)
                        }
                    };
                    client.sends(with(ack(j.c(0), j.o(0)), &outer[..blocks], stamps.1));
                    server.gets(with(ack(j.c(0), j.s(0)), &inner[..blocks], SERVER_TS));
                }
            }
        }
        client.sends(ack(j.c(0), j.o(0)).nop().nop().ts(stamps.0, stamps.1).sack(&outer).raw(&[]));
        server.gets(ack(j.c(0), j.s(0)).ts(stamps.0, SERVER_TS).sack(&inner));
    }

    fn sack_blocks_that_straddle_the_wrap_are_translated(world, client, server) {
        let transfer = linux(&world, &client, &server);
        let j = &transfer.joined;
        // The server's numbers wrap after 0xDCB bytes.
        assert!(j.s(3000) > j.s(4000));
        let blocks = |f: &dyn Fn(u32) -> u32| [(f(3000), f(4000)), (f(5000), f(6000))];
        client.sends(ack(j.c(0), j.o(0)).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)).sack(&blocks(&|n| j.o(n))));
        server.gets(ack(j.c(0), j.s(0)).ts(CLIENT_TS + 2, SERVER_TS).sack(&blocks(&|n| j.s(n))));
    }

    fn dsack_below_the_acknowledgement_is_translated(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        for _ in 0..4 {
            transfer.server(0, 1000);
        }
        let j = &transfer.joined;
        // RFC 2883: the first block reports what came twice, below the cumulative acknowledgement.
        let stamps = (CLIENT_TS + 9, j.ts_out(SERVER_TS));
        client.sends(ack(j.c(0), j.o(3000)).ts(stamps.0, stamps.1).sack(&[(j.o(0), j.o(1000)), (j.o(3500), j.o(4000))]));
        server.gets(ack(j.c(0), j.s(3000)).ts(stamps.0, SERVER_TS).sack(&[(j.s(0), j.s(1000)), (j.s(3500), j.s(4000))]));
    }

    fn sack_blocks_of_the_server_are_in_the_clients_numbers_already(world, client, server) {
        let transfer = linux(&world, &client, &server);
        let j = &transfer.joined;
        let blocks = [(j.c(1000), j.c(2000)), (j.c(4000), j.c(5000))];
        server.sends(ack(j.s(0), j.c(0)).nop().nop().ts(SERVER_TS, CLIENT_TS + 1).nop().nop().sack(&blocks));
        client.gets(ack(j.o(0), j.c(0)).ts(j.ts_out(SERVER_TS), CLIENT_TS + 1).sack(&blocks));
    }

    fn sack_promised_in_vain_is_removed(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let j = open(&client, &server, theirs, Terms { sack: false, ..theirs });
        let stamps = (CLIENT_TS + 2, j.ts_out(SERVER_TS));
        for nops in 0..3 {
            let mut seg = ack(j.c(0), j.o(0)).ts(stamps.0, stamps.1);
            for _ in 0..nops {
                seg = seg.nop();
            }
            client.sends(seg.sack(&[(j.o(100), j.o(200)), (j.o(300), j.o(400))]));
            server.gets(ack(j.c(0), j.s(0)).ts(stamps.0, SERVER_TS));
        }
    }

    fn every_timestamp_option_of_a_segment_is_translated(world, client, server) {
        let j = linux(&world, &client, &server).joined;
        let (first, second) = ((CLIENT_TS + 2, j.ts_out(SERVER_TS)), (CLIENT_TS + 3, j.ts_out(SERVER_TS)));
        client.sends(ack(j.c(0), j.o(0)).ts(first.0, first.1).ts(second.0, second.1));
        server.gets(ack(j.c(0), j.s(0)).ts(first.0, SERVER_TS).ts(second.0, SERVER_TS));
    }

    fn what_follows_the_end_of_the_list_is_not_an_option(world, client, server) {
        let mss = world.mss();
        client.sends(syn(CLIENT_ISN).mss(mss).end().wscale(7).sack_ok().ts(1, 2));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).mss(mss));
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().mss(mss));
    }

    fn a_timestamp_behind_the_end_of_the_list_is_left_alone(world, client, server) {
        let j = linux(&world, &client, &server).joined;
        let seg = |ack_no, echo| ack(j.c(0), ack_no).ts(CLIENT_TS + 2, echo).end().nop().ts(11, 22);
        client.sends(seg(j.o(0), j.ts_out(SERVER_TS)));
        let got = server.gets(ack(j.c(0), j.s(0)).ts(CLIENT_TS + 2, SERVER_TS));
        let options = &got.frame[got.tcp_at + 20..got.tcp_at + 44];
        assert_eq!(options[10..22], [0, 1, 8, 10, 0, 0, 0, 11, 0, 0, 0, 22]);
    }

    fn an_error_on_the_wire_is_not_healed(world, client, server) {
        let j = linux(&world, &client, &server).joined;
        let mut frame = client.frame(&data(j.c(0), j.o(0), 100).nop().nop().ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)));
        let last = frame.len() - 1;
        frame[last] ^= 0x10;
        client.sends(frame);
        let out = world.discard();
        if let Some((_, frame)) = out.first() {
            let got = read(frame, world.now()).unwrap();
            assert!(!got.checksums.1, "the receiver must see that the payload was damaged");
        }
    }

    fn the_padding_of_short_frames_is_not_data(world, client, server) {
        let bare = Terms::bare(world.mss());
        let padded = |host: &Host, seg: Seg| {
            let mut frame = host.frame(&seg);
            while frame.len() < 60 {
                frame.push(0xEE);
            }
            frame
        };
        client.sends(padded(&client, bare.on(syn(CLIENT_ISN), (0, 0))));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).mss(world.mss()));
        client.sends(padded(&client, ack(CLIENT_ISN + 1, offered.seq + 1)));
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().mss(world.mss()));
        server.sends(padded(&server, bare.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (0, 0))));
        let update = client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).window(8192));
        if client.has_more() {
            client.gets(ack(offered.seq, CLIENT_ISN + 1).window(8192));
            client.sends(padded(&client, ack(CLIENT_ISN + 1, offered.seq + 1)));
        }
        server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window());
        let (client_isn, server_isn, cookie) = (CLIENT_ISN, SERVER_ISN, offered.seq);
        let j = Joined { client_isn, server_isn, cookie, ts_shift: 0, stamps: (0, 0), offered, server_syn, update };
        client.sends(padded(&client, data(j.c(0), j.o(0), 1)));
        server.gets(data(j.c(0), j.s(0), 1));
        server.sends(padded(&server, fin(j.s(0), j.c(1))));
        client.gets(fin(j.o(0), j.c(1)));
        client.sends(padded(&client, ack(j.c(1), j.o(1))));
        server.gets(ack(j.c(1), j.s(1)));
        client.sends(padded(&client, fin(j.c(1), j.o(1))));
        server.gets(fin(j.c(1), j.s(1)));
        server.sends(padded(&server, ack(j.s(1), j.c(2))));
        client.gets(ack(j.o(1), j.c(2)));
        // Had padding counted as data, the close would not have been seen.
        world.after_secs(124);
        world.has_flows(0, 0);
    }
}

/// A connection to a server of another address, of which nothing is known.
fn fresh_server(world: &World, number: usize) -> (Host, Host) {
    world.pair_to(0, 1, CLIENT_PORT, 100 + u8::try_from(number).expect("few servers"))
}

#[test]
fn sack_promised_in_vain_may_be_retained() {
    for mode in Mode::ALL {
        let (_world, client, server) = mode.world_with(|config| config.sack_conflict = SackConflict::Retain);
        let theirs = Terms::linux(mode.mss());
        let j = open(&client, &server, theirs, Terms { sack: false, ..theirs });
        client.sends(ack(j.c(0), j.o(0)).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)).sack(&[(j.o(100), j.o(200))]));
        server.gets(ack(j.c(0), j.s(0)).ts(CLIENT_TS + 2, SERVER_TS).sack(&[(j.s(100), j.s(200))]));
    }
}

#[test]
fn the_mss_clamp_holds_for_every_syn_that_passes() {
    for mode in Mode::ALL {
        let (world, client, server) = mode.world_with(|config| config.mss_clamp = Some(1300));
        let theirs = Terms::linux(mode.mss());
        let (offered, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
        let clamped = |mss: Option<u16>| mss.is_some_and(|mss| mss <= 1300);
        assert!(clamped(offered.mss()) && clamped(server_syn.mss()), "{offered}; {server_syn}");
        // From the LAN, and the repetition as the first.
        let (wan, lan) = world.on_port(7);
        for _ in 0..2 {
            lan.sends(theirs.on(syn(500), (1, 0)));
            let got = wan.gets(segment(SYN, 500, 0).window(64240).any_options());
            assert!(clamped(got.mss()), "{got}");
        }
        wan.sends(theirs.on(syn_ack(900, 501), (2, 1)));
        let got = lan.gets(segment(SYN | ACK, 900, 501).window(64240).any_options());
        assert!(clamped(got.mss()), "{got}");
    }
}

// ---- checksums ----

#[derive(Clone, Debug)]
struct Piece {
    from_client: bool,
    flags: u16,
    at: u32,
    acked: u32,
    window: u16,
    stamps: (u32, u32),
    blocks: Vec<(u32, u32)>,
    nops: [u8; 3],
    sack_first: bool,
    len: usize,
}

fn piece() -> impl Strategy<Value = Piece> {
    (
        any::<bool>(),
        prop::sample::select(vec![0, PSH, URG, ECE, CWR, PSH | ECE]),
        0..60_000_u32,
        0..60_000_u32,
        any::<u16>(),
        (any::<u32>(), 1..u32::MAX),
        prop::collection::vec((any::<u32>(), any::<u32>()), 0..=2),
        [0..=3_u8, 0..=3_u8, 0..=3_u8],
        any::<bool>(),
        0..200_usize,
    )
        .prop_map(|(from_client, flags, at, acked, window, stamps, blocks, nops, sack_first, len)| Piece {
            from_client,
            flags,
            at,
            acked,
            window,
            stamps,
            blocks,
            nops,
            sack_first,
            len,
        })
}

/// So many cases, or as many as `PROPTEST_CASES` says.
fn cases(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(64))]

    /// Whatever is translated, wherever it lies, and whether or not the payload is in sight.
    #[test]
    fn a_patched_checksum_is_the_full_one(
        pieces in prop::collection::vec(piece(), 1..40),
        mode in prop::sample::select(Mode::ALL.to_vec()),
        shift in prop::sample::select(vec![0_u8, 5, 7, 9, 14]),
        sight in prop::sample::select(vec![128_usize, 140, usize::MAX]),
        server_isn: u32,
    ) {
        let (world, client, server) = mode.world();
        let linux = Terms::linux(mode.mss());
        let j = open_from(&client, &server, linux, Terms { wscale: Some(shift), ..linux }, CLIENT_ISN, server_isn);
        // Enough has been sent that any number in the pieces is within what the ends may send.
        for i in 0..48 {
            server.sends(ack(j.s(i * 1250), j.c(i * 1250)).ts(SERVER_TS, 1).payload(1250));
            client.gets(anything());
            client.sends(ack(j.c(i * 1250), j.o(i * 1250)).ts(CLIENT_TS, j.ts_out(SERVER_TS)).payload(1250).window(8000));
            server.gets(anything());
        }
        world.first_buffer_holds(sight);
        for p in pieces {
            let dress = |mut seg: Seg, value: u32, echo: u32, blocks: Vec<(u32, u32)>| {
                for _ in 0..p.nops[0] { seg = seg.nop(); }
                if p.sack_first && !blocks.is_empty() { seg = seg.sack(&blocks); }
                for _ in 0..p.nops[1] { seg = seg.nop(); }
                seg = seg.ts(value, echo);
                for _ in 0..p.nops[2] { seg = seg.nop(); }
                if !p.sack_first && !blocks.is_empty() { seg = seg.sack(&blocks); }
                seg.payload(p.len)
            };
            // The server's clock runs on from its SYN-ACK; the client echoes what it has seen of it. The client's own clock is any.
            let server_clock = |stamp: u32| SERVER_TS + (stamp >> 3);
            if p.from_client {
                let (value, echo) = (p.stamps.0, server_clock(p.stamps.1));
                let delta = j.s(0).wrapping_sub(j.o(0));
                let inner = p.blocks.iter().map(|(a, b)| (a.wrapping_add(delta), b.wrapping_add(delta))).collect();
                let seg = |ack_no| segment(ACK | p.flags, j.c(p.at), ack_no).window(p.window);
                client.sends(dress(seg(j.o(p.acked)), value, j.ts_out(echo), p.blocks.clone()));
                server.gets(dress(seg(j.s(p.acked)), value, echo, inner));
            } else {
                let (value, echo) = (server_clock(p.stamps.0), p.stamps.1);
                let seg = |seq| segment(ACK | p.flags, seq, j.c(p.acked)).window(p.window);
                server.sends(dress(seg(j.s(p.at)), value, echo, p.blocks.clone()));
                client.gets(dress(seg(j.o(p.at)).any_window(), value.wrapping_add(j.ts_shift), echo, p.blocks.clone()));
            }
        }
    }
}

// ---- the handshake ----

in_every_mode! {
    fn the_first_packet_may_carry_data(world, client, server) {
        let theirs = Terms::linux(world.mss());
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        let stamp = offered.ts().unwrap().0;
        client.sends(data(CLIENT_ISN + 1, offered.seq + 1, 512).nop().nop().ts(CLIENT_TS + 1, stamp));
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        let mut transfer = Transfer::new(&client, &server, j);
        transfer.client(PSH, 512);
        transfer.closes_from_the_server();
    }

    fn the_first_packet_may_carry_fin(world, client, server) {
        let theirs = Terms::linux(world.mss());
        for (port, len) in [(1, 0), (2, 77)] {
            let (client, server) = world.on_port(port);
            client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
            let stamp = offered.ts().unwrap().0;
            client.sends(fin(CLIENT_ISN + 1, offered.seq + 1).payload(len).nop().nop().ts(CLIENT_TS + 1, stamp));
            let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
            let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
            let mut transfer = Transfer::new(&client, &server, j);
            transfer.client(FIN, len);
            transfer.server(0, 0);
            transfer.server(FIN, 0);
            transfer.client(0, 0);
        }
        let _ = (client, server);
        world.after_secs(125);
        world.has_flows(0, 0);
    }

    fn a_syn_may_come_again_with_a_new_timestamp(world, client, server) {
        let theirs = Terms::linux(world.mss());
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let first = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        world.after_secs(1);
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS + 1000, 0)));
        let second = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        assert_eq!(second.seq, first.seq, "the client may get both: they must have one number");
        let echo = if world.mode().cache { CLIENT_TS } else { CLIENT_TS + 1000 };
        assert_eq!(second.ts().unwrap().1, echo, "a cookie alone has not seen the first");
        client.sends(ack(CLIENT_ISN + 1, second.seq + 1).nop().nop().ts(CLIENT_TS + 1001, second.ts().unwrap().0));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().mss_up_to(world.mss()).sack_ok().ts(ANY, 0).wscale(7));
    }

    fn a_syn_may_come_again_with_a_new_number(world, client, server) {
        let theirs = Terms::linux(world.mss());
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        world.after_secs(3);
        let joined = open_from(&client, &server, theirs, theirs, CLIENT_ISN + 777_777, SERVER_ISN);
        Transfer::new(&client, &server, joined).closes_from_the_client();
    }

    fn a_syn_ack_is_repeated_for_a_syn_and_never_by_a_timer(world, client, server) {
        client.sends(Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        world.after_secs(300);
        client.gets(nothing());
        server.gets(nothing());
        assert_eq!(world.population().syn_cached, 0, "a half-open entry goes after its time");
        assert_eq!(world.emitted(), 0);
    }

    fn a_new_secret_between_syn_and_ack_does_no_harm(world, client, server) {
        let theirs = Terms::linux(world.mss());
        world.wait_for_new_secret(Duration::from_secs(1));
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        // The client's own repetition timer may have reached 63 s.
        world.after(EPOCH);
        let stamp = offered.ts().unwrap().0;
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 63_000, stamp));
        client.gets(nothing());
        let server_syn = server.gets(
            segment(SYN, CLIENT_ISN, 0).any_window().mss_up_to(world.mss()).sack_ok().wscale(7).ts(CLIENT_TS + 63_000, 0),
        );
        answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
    }

    fn a_cookie_of_two_secrets_ago_opens_nothing(world, client, server) {
        world.wait_for_new_secret(Duration::from_secs(1));
        client.sends(Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        // Three seconds behind the second change: up to two, another box's clock might still read the epoch before.
        world.after(EPOCH + Duration::from_secs(4));
        let stamp = offered.ts().unwrap().0;
        client.sends_in_vain(
            ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, stamp),
            DropReason::BadCookie,
        );
        server.gets(nothing());
        world.has_flows(0, 0);
    }

    fn a_cookie_answers_one_client_only(world, client, server) {
        let bare = Terms::bare(world.mss());
        client.sends(bare.on(syn(CLIENT_ISN), (0, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        let proof = ack(CLIENT_ISN + 1, offered.seq + 1);
        for (net, host, port) in [(0, 1, CLIENT_PORT + 1), (0, 2, CLIENT_PORT), (1, 1, CLIENT_PORT)] {
            let (other, _) = world.pair(net, host, port);
            other.sends_in_vain(proof.clone(), DropReason::BadCookie);
        }
        client.sends_in_vain_for_any_reason(ack(CLIENT_ISN + 1, offered.seq + 2));
        client.sends_in_vain_for_any_reason(ack(CLIENT_ISN + 1, offered.seq));
        client.sends_in_vain_for_any_reason(ack(CLIENT_ISN + 3, offered.seq + 1));
        world.has_flows(0, 0);
        client.sends(proof);
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().mss(world.mss()));
    }

    fn the_syn_to_a_silent_server_is_repeated_ever_more_seldom_and_then_the_client_is_reset(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let (offered, first) = prove(&client, &server, theirs, CLIENT_ISN);
        let start = first.at;
        let mut asked = Vec::new();
        let reset = loop {
            world.tick(Duration::from_millis(100));
            let now = world.now();
            let mut end = None;
            for (side, frame) in world.discard() {
                let got = read(&frame, now).unwrap();
                assert_eq!(got.checksums, (true, true));
                if side == Side::Lan && got.flags == SYN {
                    assert_eq!((got.seq, &got.options, got.window), (CLIENT_ISN, &first.options, first.window));
                    assert_eq!((got.ttl, got.macs), (CLIENT_TTL, first.macs));
                    asked.push(now.since(start).as_millis());
                } else if side == Side::Wan {
                    end = Some(got);
                }
            }
            if let Some(end) = end {
                break end;
            }
            assert!(now.since(start) < Duration::from_secs(300), "the client is never reset; SYNs at {asked:?} ms");
        };
        assert_eq!((reset.flags & RST, reset.seq), (RST, offered.seq + 1), "a reset the client accepts");
        let silence = world.now().since(start).as_secs();
        assert!((235..=245).contains(&silence), "reset after {silence} s");
        for (asked, wanted) in asked.iter().zip([1000, 3000, 7000, 15_000, 31_000]) {
            assert!((wanted..=wanted + wanted / 8 + 200).contains(asked), "SYN after {asked} ms instead of {wanted}");
        }
        // The interval doubles up to a cap.
        assert!(asked.windows(2).skip(4).all(|pair| pair[1] - pair[0] >= 15_000), "SYNs at {asked:?}");
        assert!((7..=20).contains(&asked.len()), "SYNs at {asked:?}");
        assert_eq!(world.happened(Event::DialTimeout), 1);
        assert_eq!(world.happened(Event::DialRepeated), asked.len() as u64);
        world.after_secs(50);
        world.has_flows(0, 0);
    }

    fn a_servers_late_answer_is_as_good_as_an_early_one(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let (offered, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
        world.tick(Duration::from_millis(1100));
        assert_eq!(world.discard().len(), 1);
        let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        Transfer::new(&client, &server, j).closes_from_the_client();
        // No SYN is repeated any more.
        world.after_secs(100);
        server.gets(nothing());
    }

    fn a_reset_of_another_number_does_not_end_the_server_handshake(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let (offered, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
        // RFC 9293 section 3.10.7.3: in SYN-SENT a reset counts only if it acknowledges the SYN.
        server.sends_in_vain_for_any_reason(rst(0));
        server.sends_in_vain_for_any_reason(rst_ack(0, CLIENT_ISN));
        server.sends_in_vain_for_any_reason(rst_ack(0, CLIENT_ISN + 2));
        let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        Transfer::new(&client, &server, j).closes_from_the_client();
    }

    fn a_syn_ack_of_another_number_does_not_join(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let (offered, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
        for wrong in [CLIENT_ISN, CLIENT_ISN + 2, 0] {
            server.sends(theirs.on(syn_ack(SERVER_ISN, wrong), (SERVER_TS, CLIENT_TS + 1)));
            client.gets(nothing());
            // RFC 9293 section 3.10.7.3 lets it be answered by a reset of that number.
            for (_, frame) in world.discard() {
                let got = read(&frame, world.now()).unwrap();
                assert_eq!((got.flags & !ACK, got.seq), (RST, wrong));
            }
        }
        assert_eq!(world.happened(Event::Spliced), 0);
        let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        Transfer::new(&client, &server, j).closes_from_the_client();
    }

    fn a_server_that_remembers_an_older_connection_is_made_to_forget_it(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let (offered, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
        // RFC 5961 section 4: the server challenges our SYN with what it remembers; RFC 9293 section 3.10.7.3: reset.
        server.sends(ack(0x1111_1111, 0x2222_2222).nop().nop().ts(SERVER_TS, 9));
        client.gets(nothing());
        server.gets(rst(0x2222_2222).any_window());
        world.tick(Duration::from_millis(1100));
        assert_eq!(world.discard().len(), 1, "the SYN is repeated");
        let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        Transfer::new(&client, &server, j).closes_from_the_client();
    }

    fn a_server_that_keeps_its_time_wait_is_asked_as_often_as_a_client_would_ask(world, client, server) {
        // Linux with `tcp_rfc1337`: no reset ends TIME-WAIT, and a SYN that does not open anew is challenged, twice a second at most. A host repeats its SYN
        // at once after the first challenge, and then at doubling intervals.
        let theirs = Terms::linux(world.mss());
        let (offered, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
        let challenges = || {
            server.sends(ack(0x1111_1111, 0x2222_2222).nop().nop().ts(SERVER_TS, 9));
            client.gets(nothing());
            server.gets(rst(0x2222_2222).any_window());
        };
        challenges();
        let mut asked = Vec::new();
        for passed in (10..20_000u64).step_by(10) {
            world.tick(Duration::from_millis(10));
            if !world.discard().is_empty() {
                asked.push(passed);
                if asked.len() > 1 {
                    challenges();
                }
            }
        }
        let expected = [20, 2020, 6020, 14_020u64];
        let is_near = |(at, expected): (&u64, &u64)| at.abs_diff(*expected) <= 10 + expected / 20;
        assert!(asked.len() == 4 && asked.iter().zip(&expected).all(is_near), "{asked:?}");
        // It was heard of: nobody else is told that it is silent.
        assert_eq!(world.happened(Event::Silent), 0);
        let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        Transfer::new(&client, &server, j).closes_from_the_client();
    }

    fn a_client_reset_during_the_server_handshake_is_told_when_the_server_has_answered(world, client, server) {
        // Over a cable the client's acknowledgement comes before its reset: a server accepts the connection and sees it reset.
        let theirs = Terms::linux(world.mss());
        let (offered, _) = prove(&client, &server, theirs, CLIENT_ISN);
        client.sends_in_vain(rst(CLIENT_ISN + 1), DropReason::Consumed);
        // What is repeated of its proof opens nothing any more.
        let stamps = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
        client.sends_in_vain(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(stamps), DropReason::WrongState);
        world.after_ms(300);
        server.sends(theirs.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 1)));
        client.gets(nothing());
        server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window().any_options());
        server.gets(rst(CLIENT_ISN + 1));
        // What the server has sent by then reaches the client, as after any reset.
        let stamps = offered.ts().map(|_| (SERVER_TS, CLIENT_TS + 1));
        server.sends(data(SERVER_ISN + 1, CLIENT_ISN + 1, 10).maybe_ts(stamps));
        client.gets(data(offered.seq + 1, CLIENT_ISN + 1, 10).any_window().any_options());
        world.after_secs(50);
        world.has_flows(0, 0);
    }

    fn a_client_reset_while_the_server_is_silent_ends_the_server_handshake(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let _ = prove(&client, &server, theirs, CLIENT_ISN);
        client.sends_in_vain(rst(CLIENT_ISN + 1), DropReason::Consumed);
        // In place of the SYN's repetition.
        world.after_ms(1100);
        server.gets(rst(CLIENT_ISN + 1));
        world.has_flows(0, 0);
        server.sends(theirs.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 1)));
        server.gets(rst(CLIENT_ISN + 1));
        // One that has had to be asked twice is told at once.
        let (client, server) = world.on_port(2);
        let _ = prove(&client, &server, theirs, CLIENT_ISN);
        world.after_ms(1100);
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        client.sends(rst(CLIENT_ISN + 1));
        server.gets(rst(CLIENT_ISN + 1));
        world.has_flows(0, 0);
        assert_eq!(world.happened(Event::Spliced), 0);
    }

    fn a_client_reset_while_its_acknowledgement_is_withheld_comes_behind_that(world, client, server) {
        let theirs = Terms::linux(world.mss());
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        world.after_ms(50);
        let stamps = offered.ts().map(|(value, _)| (CLIENT_TS + 50, value));
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(stamps));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        server.sends(theirs.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 50)));
        client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
        if client.has_more() {
            // A probe: without an entry of the SYN cache the client's distance is not known.
            client.gets(ack(offered.seq, CLIENT_ISN + 1).any_window().any_options());
        }
        server.gets(nothing());
        client.sends(rst(CLIENT_ISN + 1));
        server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window().any_options());
        server.gets(rst(CLIENT_ISN + 1).ttl(CLIENT_TTL));
        world.after_secs(60);
        world.has_flows(0, 0);
    }

    fn a_blind_reset_during_the_server_handshake_ends_nothing(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let (offered, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
        for seq in [CLIENT_ISN + 2, CLIENT_ISN + 100_000, CLIENT_ISN - 5000, 0] {
            client.sends(rst(seq));
            server.gets(nothing());
            world.discard();
        }
        let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        Transfer::new(&client, &server, j).closes_from_the_client();
    }

    fn a_lost_window_update_is_repeated_until_the_client_shows_itself(world, client, server) {
        // One of unknown distance shows itself in its answer to the probe.
        let _ = (client, server);
        let (world, client, server) = world.mode().cached().world();
        let transfer = linux(&world, &client, &server);
        let j = &transfer.joined;
        let mut repeated = 0;
        for _ in 0..100 {
            world.tick(Duration::from_millis(100));
            for (side, frame) in world.discard() {
                let got = read(&frame, world.now()).unwrap();
                assert_eq!(side, Side::Wan);
                assert_eq!((got.flags, got.seq, got.ack, got.window), (ACK, j.o(0), j.c(0), j.update.window));
                assert_eq!(got.checksums, (true, true));
                assert_eq!(got.ts().is_some(), j.update.ts().is_some());
                repeated += 1;
            }
        }
        assert!((1..=10).contains(&repeated), "repeated {repeated} times in ten seconds");
        assert_eq!(world.happened(Event::UpdateRepeated), repeated);
        let mut transfer = transfer;
        transfer.client(PSH, 10);
        world.after_secs(100);
        client.gets(nothing());
        transfer.server(0, 0);
    }

    fn a_server_that_sends_first_ends_the_repetition(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.server(PSH, 20);
        transfer.client(0, 0);
        world.after_secs(100);
        client.gets(nothing());
        server.gets(nothing());
    }

    fn a_lost_update_is_repeated_although_the_server_has_sent_data(world, client, server) {
        let _ = (client, server);
        let (world, client, server) = world.mode().cached().world();
        let mut transfer = linux(&world, &client, &server);
        // Suppose this acknowledgement is lost as well: only a sign of the client's ends the repetition.
        transfer.server(0, 0);
        world.tick(Duration::from_secs(3));
        let again = world.discard();
        if again.is_empty() {
            world.fail("the client has shown no sign, yet the window update was not repeated");
        }
        transfer.client(PSH, 1);
        world.after_secs(100);
    }

    fn a_client_that_sends_nothing_more_is_forgotten_in_time(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.server(PSH, 100);
        for wait in [1; 100].into_iter().chain([1000; 87]) {
            world.tick(Duration::from_secs(wait));
            world.discard();
        }
        world.has_flows(0, 0);
    }

    fn an_empty_pool_is_healed_by_repetition(world, client, server) {
        let theirs = Terms::linux(world.mss());
        world.spare_frames(0);
        let (offered, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
        server.sends(theirs.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 1)));
        // The server's own frame may have served for one of the two answers.
        assert!(world.discard().len() <= 1);
        assert!(world.happened(Event::NoSpareFrame) > 0);
        world.spare_frames(100);
        server.sends(theirs.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 1)));
        let mut updates = 0;
        let mut acks = 0;
        for _ in 0..50 {
            for (side, frame) in world.discard() {
                let got = read(&frame, world.now()).unwrap();
                match side {
                    Side::Wan => {
                        assert_eq!((got.seq, got.ack), (offered.seq + 1, CLIENT_ISN + 1));
                        updates += 1;
                    }
                    Side::Lan => {
                        assert_eq!((got.flags, got.seq, got.ack), (ACK, CLIENT_ISN + 1, SERVER_ISN + 1));
                        acks += 1;
                    }
                }
            }
            world.tick(Duration::from_millis(100));
        }
        world.discard();
        assert!(updates >= 1 && acks >= 1, "{updates} updates, {acks} acknowledgements");
        let _ = server_syn;
    }

    fn data_in_a_syn_is_not_delivered_and_its_cookie_not_passed_on(world, client, server) {
        let mss = world.mss();
        // A Fast Open SYN: the cookie, and data.
        let tfo = [34, 10, 1, 2, 3, 4, 5, 6, 7, 8];
        client.sends(syn(CLIENT_ISN).mss(mss).sack_ok().nop().wscale(7).raw(&tfo).payload(100));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).mss(mss).sack_ok().wscale(7));
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1));
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().mss(mss).sack_ok().wscale(7));
        let j = answer(&client, &server, Terms::linux(mss), CLIENT_ISN, SERVER_ISN, offered, server_syn);
        let mut transfer = Transfer::new(&client, &server, j);
        transfer.client(PSH, 100);
    }

    fn multipath_falls_back_cleanly(world, client, server) {
        let mss = world.mss();
        let mp_capable = [30, 4, 0x01, 0x01];
        client.sends(syn(CLIENT_ISN).mss(mss).sack_ok().ts(CLIENT_TS, 0).nop().wscale(7).raw(&mp_capable));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).mss(mss).sack_ok().ts(ANY, CLIENT_TS).wscale(7));
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().mss_up_to(mss).sack_ok().ts(ANY, 0).wscale(7));
    }

    fn ecn_is_not_claimed_for_a_server_that_has_not_agreed(world, client, server) {
        let _ = (client, server);
        let theirs = Terms::linux(world.mss());
        // RFC 3168, and accurate ECN.
        for (port, flags) in [(1, ECE | CWR), (2, AE | ECE | CWR)] {
            let (client, server) = world.on_port(port);
            client.sends(theirs.on(syn(CLIENT_ISN).flags(flags), (CLIENT_TS, 0)));
            let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0));
            // The server may be asked: what it answers holds for the next.
            let asked = server.gets(segment(SYN | flags, CLIENT_ISN, 0).any_window().any_options());
            let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, asked);
            let mut transfer = Transfer::new(&client, &server, j);
            transfer.client(PSH, 10);
            transfer.server(PSH, 10);
        }
    }

    fn a_simultaneous_open_of_a_lan_connection_passes(world, client, server) {
        let theirs = Terms::linux(world.mss());
        server.passes(theirs.on(syn(100), (1, 0)));
        client.passes(theirs.on(syn(900), (5, 0)));
        server.passes(theirs.on(syn_ack(100, 901), (2, 5)));
        client.passes(theirs.on(syn_ack(900, 101), (6, 1)));
        server.passes(data(101, 901, 10).nop().nop().ts(3, 6));
        client.passes(ack(901, 111).nop().nop().ts(7, 3));
        world.has_flows(0, 1);
        server.passes(fin(111, 901).nop().nop().ts(4, 7));
        client.passes(fin(901, 112).nop().nop().ts(8, 4));
        server.passes(ack(112, 902).nop().nop().ts(5, 8));
    }

    fn early_data_from_the_wan_passes_on_a_lan_connection(world, client, server) {
        let theirs = Terms::linux(world.mss());
        server.passes(theirs.on(syn(100), (1, 0)));
        client.passes(theirs.on(syn_ack(900, 101), (6, 1)));
        client.passes(data(901, 101, 40).nop().nop().ts(7, 1));
        server.passes(ack(101, 941).nop().nop().ts(2, 7));
        world.has_flows(0, 1);
    }

    fn a_lan_connection_may_close_with_its_first_acknowledgement(world, client, server) {
        let theirs = Terms::linux(world.mss());
        server.passes(theirs.on(syn(100), (1, 0)));
        client.passes(theirs.on(syn_ack(900, 101), (6, 1)));
        server.passes(fin(101, 901).nop().nop().ts(2, 6));
        client.passes(fin(901, 102).nop().nop().ts(7, 2));
        server.passes(ack(102, 902).nop().nop().ts(3, 7));
        world.after_secs(125);
        world.has_flows(0, 0);
    }
}

// ---- established ----

in_every_mode! {
    fn a_reset_within_the_window_is_challenged(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(PSH, 200);
        transfer.client(0, 0);
        let j = &transfer.joined;
        client.sends(rst(j.c(100 + 1000)));
        server.gets(nothing());
        client.gets(ack(j.o(200), j.c(100)).any_window().any_options());
        // Challenges are limited, so not at the same moment.
        world.after_secs(1);
        server.sends(rst(j.s(200 + 1000)));
        client.gets(nothing());
        server.gets(ack(j.c(100), j.s(200)).any_window().any_options());
        assert_eq!(world.happened(Event::Challenge), 2);
        transfer.client(PSH, 1);
        transfer.server(PSH, 1);
    }

    fn a_challenge_carries_timestamps_where_they_were_agreed(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(PSH, 200);
        client.sends(rst(transfer.joined.c(1100)));
        let challenge = client.gets(ack(transfer.joined.o(200), transfer.joined.c(100)).any_window().any_options());
        assert!(challenge.ts().is_some(), "RFC 7323 section 3.2: a segment without them may be dropped");
    }

    fn a_reset_outside_the_window_is_dropped(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(PSH, 200);
        transfer.client(0, 0);
        let j = transfer.joined.clone();
        for seq in [j.c(99), j.c(0).wrapping_sub(100_000), j.c(0).wrapping_add(1 << 31), j.c(10_000_000)] {
            client.sends_in_vain(rst(seq), DropReason::BadReset);
        }
        for seq in [j.s(199), j.s(0).wrapping_sub(100_000), j.s(0).wrapping_add(1 << 31), j.s(10_000_000)] {
            server.sends_in_vain(rst(seq), DropReason::BadReset);
        }
        transfer.client(PSH, 1);
        transfer.server(PSH, 1);
    }

    fn a_forged_reset_among_the_bytes_in_flight_ends_no_connection(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(PSH, 100);
        for (from, round) in [(Side::Wan, 0), (Side::Lan, 1), (Side::Wan, 2), (Side::Lan, 3)] {
            let (sent, host, other) = match from {
                Side::Wan => (transfer.client_sent, &client, &server),
                Side::Lan => (transfer.server_sent, &server, &client),
            };
            let j = transfer.joined.clone();
            let number = |offset: u32| match from {
                Side::Wan => (j.c(sent + offset), j.c(sent + offset)),
                Side::Lan => (j.s(sent + offset), j.o(sent + offset)),
            };
            match from {
                Side::Wan => transfer.client(PSH, 1000),
                Side::Lan => transfer.server(PSH, 1000),
            }
            // None of these is the one that the receiver expects, to whom all has come. The largest need not be the last.
            for offset in [0, 999, 600] {
                let (inner, outer) = number(offset);
                host.sends(rst(inner));
                other.gets(rst(outer));
            }
            // A new SYN of the same ends changes nothing, unless its cookie comes back.
            if round > 1 {
                client.sends(Terms::linux(world.mss()).on(syn(0xDEAD), (CLIENT_TS + 99, 0)));
                world.discard();
            }
            // The receiver goes on, as what has not come it would have to have repeated.
            match from {
                Side::Wan => transfer.server(PSH, 10),
                Side::Lan => transfer.client(PSH, 10),
            }
            world.after_secs(3600);
            world.has_flows(1, 0);
            transfer.server(PSH, 1);
            transfer.client(PSH, 1);
            assert_eq!(world.happened(Event::ResetOutlived), round + 1);
        }
        // Once more it ends like any other.
        transfer.closes_from_the_client();
        world.after_secs(125);
        world.has_flows(0, 0);
    }

    fn a_reset_behind_bytes_in_flight_ends_a_connection_soon(world, client, server) {
        for (from, number) in [(Side::Wan, 1000), (Side::Wan, 0), (Side::Lan, 1000), (Side::Lan, 0), (Side::Wan, 500)] {
            let mut transfer = linux(&world, &client, &server);
            transfer.client(PSH, 100);
            transfer.server(PSH, 100);
            transfer.client(0, 0);
            let j = transfer.joined.clone();
            match from {
                Side::Wan => {
                    transfer.client(PSH, 1000);
                    client.sends(rst(j.c(100 + number)));
                    server.gets(rst(j.c(100 + number)));
                    // Underway when the reset came.
                    for acked in [100, 100 + number] {
                        server.sends(ack(j.s(100), j.c(acked)).ts(SERVER_TS + 9, CLIENT_TS));
                        client.gets(ack(j.o(100), j.c(acked)).ts(j.ts_out(SERVER_TS + 9), CLIENT_TS));
                    }
                }
                Side::Lan => {
                    transfer.server(PSH, 1000);
                    server.sends(rst(j.s(100 + number)));
                    client.gets(rst(j.o(100 + number)));
                    for acked in [100, 100 + number] {
                        client.sends(ack(j.c(100), j.o(acked)).ts(CLIENT_TS + 9, j.ts_out(SERVER_TS)));
                        server.gets(ack(j.c(100), j.s(acked)).ts(CLIENT_TS + 9, SERVER_TS));
                    }
                }
            }
            world.after_secs(47);
            world.has_flows(0, 0);
        }
        assert_eq!(world.happened(Event::ResetOutlived), 0);
    }

    fn a_forged_fin_far_behind_the_window_closes_nothing(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(PSH, 100);
        transfer.client(0, 0);
        let j = transfer.joined.clone();
        for behind in [1, 100, 1_000_000, 60_000_000_u32] {
            let far = behind.wrapping_neg();
            client.sends(fin(j.c(99u32.wrapping_add(far)), j.o(100)));
            world.discard();
            client.sends(fin(j.c(99u32.wrapping_add(far)), j.o(100u32.wrapping_add(far))));
            world.discard();
            server.sends(fin(j.s(99u32.wrapping_add(far)), j.c(100u32.wrapping_add(far))));
            world.discard();
        }
        // The next number, by chance, with an acknowledgement of what the client acknowledged long ago.
        client.sends(fin(j.c(100), j.o(100u32.wrapping_sub(40_000_000))));
        world.discard();
        world.after_secs(8000);
        world.has_flows(1, 0);
        // It would break off once the window has gone by.
        for _ in 0..200 {
            transfer.client(PSH, 1200);
            transfer.server(PSH, 1200);
        }
        transfer.closes_from_the_client();
        world.after_secs(125);
        world.has_flows(0, 0);
    }

    fn a_damaged_acknowledgement_does_not_disprove_a_reset(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(PSH, 100);
        transfer.client(PSH, 1000);
        let j = transfer.joined.clone();
        client.sends(rst(j.c(600)));
        server.gets(rst(j.c(600)));
        let mut frame = server.frame(&ack(j.s(100), j.c(1100)).ts(SERVER_TS + 9, CLIENT_TS));
        let at = read(&frame, world.now()).unwrap().tcp_at;
        frame[at + 17] ^= 1;
        server.sends(frame);
        world.discard();
        world.after_secs(47);
        world.has_flows(0, 0);
    }

    fn a_connection_that_closes_outlives_a_forged_reset_too(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.client(FIN, 0);
        transfer.server(PSH, 1000);
        let j = transfer.joined.clone();
        server.sends(rst(j.s(500)));
        client.gets(rst(j.o(500)));
        transfer.client(0, 0);
        // Half closed it lasts for two hours.
        world.after_secs(3600);
        transfer.server(PSH, 1000);
        transfer.client(0, 0);
        transfer.server(FIN, 0);
        transfer.client(0, 0);
        world.after_secs(125);
        world.has_flows(0, 0);
    }

    fn a_forged_reset_does_not_end_a_passed_connection_either(world, client, server) {
        server.passes(syn(100).mss(1460));
        // The opener's reset with the number of some other connection: the answer to a challenge, or forged.
        server.passes(rst(77_777));
        client.passes(syn_ack(900, 101).mss(1460));
        server.passes(rst(66_666));
        server.passes(ack(101, 901));
        for i in 0..4 {
            client.passes(data(901 + i * 100, 101, 100));
            client.passes(rst(901 + i * 100 + 50));
            server.passes(ack(101, 1001 + i * 100));
            world.after_secs(3600);
            world.has_flows(0, 1);
        }
        server.passes(rst(101));
        world.after_secs(47);
        world.has_flows(0, 0);
    }

    fn what_has_reached_the_server_unseen_is_known_once_the_server_acknowledges_it(world, client, server) {
        // While no box was there (its process was dead, or a frame passed beside it) the client's bytes, whose numbers are the same on both
        // sides, reached the server, which may accept them even where their acknowledgement is of the other side's numbers.
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(PSH, 200);
        transfer.client(0, 0);
        for unseen in [1, 1000, 20_000] {
            transfer.client_sent += unseen;
            transfer.server(PSH, 50);
            transfer.client(PSH, 10);
            transfer.server(0, 0);
        }
        transfer.client(0, 0);
        let j = transfer.joined.clone();
        // But no server acknowledges more than it has granted.
        let (server_ts, client_ts) = (SERVER_TS + 20, CLIENT_TS + 20);
        server.sends(ack(j.s(350), j.c(50_000_000)).nop().nop().ts(server_ts, client_ts));
        client.gets(ack(j.o(350), j.c(50_000_000)).any_window().any_options());
        client.sends(data(j.c(50_000_000), j.o(350), 10).nop().nop().ts(client_ts, j.ts_out(server_ts)));
        server.gets(nothing());
        client.gets(ack(j.o(350), j.c(transfer.client_sent)).any_window().any_options());
        // And a damaged acknowledgement says nothing: the client's reset is still where it is expected.
        let acked = j.c(transfer.client_sent + 5000);
        let mut damaged = server.frame(&ack(j.s(350), acked).nop().nop().ts(server_ts, client_ts));
        *damaged.last_mut().expect("it has bytes") ^= 1;
        server.sends(damaged);
        world.discard();
        client.sends(rst(j.c(transfer.client_sent)));
        server.gets(rst(j.c(transfer.client_sent)));
    }

    fn challenges_are_limited(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        let j = transfer.joined.clone();
        for i in 0..10_000 {
            client.sends(rst(j.c(1 + i % 1000)));
            server.gets(nothing());
            world.discard();
        }
        let sent = world.happened(Event::Challenge);
        assert!((1..=1000).contains(&sent), "{sent} challenges");
        transfer.client(PSH, 1);
        transfer.server(PSH, 1);
    }

    fn a_challenge_does_not_set_the_servers_clock_back(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let j = open(&client, &server, theirs, theirs);
        // The server's clock is known from long segments alone, by small steps and by large ones.
        for (i, later) in [3, 9, 2000].into_iter().enumerate() {
            server.sends(ack(j.s(1200 * i as u32), j.c(0)).ts(SERVER_TS + later, CLIENT_TS).payload(1200));
            client.gets(anything());
            client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            client.gets(ack(j.o(1200 * (i as u32 + 1)), j.c(0)).any_window().nop().nop().ts(j.ts_out(SERVER_TS + later), CLIENT_TS + 1));
            server.gets(nothing());
            // It was no more than a stray copy.
            client.sends(ack(j.c(0), j.o(0)).ts(CLIENT_TS + 1, j.ts_out(SERVER_TS)));
            server.gets(anything());
            world.after_secs(1);
        }
    }

    fn a_syn_on_an_established_connection_is_challenged(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(PSH, 200);
        transfer.client(0, 0);
        let j = transfer.joined.clone();
        // RFC 5961 section 4: whatever its number.
        for seq in [j.client_isn, j.c(100), j.c(5000), 0xDEAD] {
            client.sends(Terms::linux(world.mss()).on(syn(seq), (CLIENT_TS + 99, 0)));
            server.gets(nothing());
            client.gets(ack(j.o(200), j.c(100)).any_window().any_options());
            world.after_secs(1);
            transfer.client(0, 0);
        }
        transfer.client(PSH, 1);
        transfer.server(PSH, 1);
        assert_eq!(world.happened(Event::SynAnswered), 1);
    }

    fn a_port_reused_over_a_stale_connection_is_no_black_hole(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(0, 0);
        let j = transfer.joined.clone();
        world.after_secs(3600);
        // The client has rebooted and knows nothing of the old connection.
        let theirs = Terms::linux(world.mss());
        client.sends(theirs.on(syn(0x0BAD_CAFE), (50, 0)));
        let challenge = client.gets(ack(j.o(0), j.c(100)).any_window().any_options());
        client.sends(rst(challenge.ack));
        server.gets(rst(j.c(100)).any_window());
        client.gets(nothing());
        world.after_secs(1);
        let j = open_from(&client, &server, theirs, theirs, 0x0BAD_CAFE, 0x3333_3333);
        Transfer::new(&client, &server, j).closes_from_the_client();
    }

    fn a_port_may_be_reused_in_time_wait(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.closes_from_the_server();
        world.after_secs(2);
        // RFC 6191, RFC 9293 section 3.6.1: a SYN beyond the old numbers opens anew.
        let j = open_from(&client, &server, theirs, theirs, CLIENT_ISN + 1_000_000, SERVER_ISN.wrapping_add(500_000));
        Transfer::new(&client, &server, j).closes_from_the_client();
        world.after_secs(125);
        world.has_flows(0, 0);
    }

    fn a_port_may_be_reused_after_a_reset(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let transfer = linux(&world, &client, &server);
        server.sends(rst(transfer.joined.s(0)));
        client.gets(rst(transfer.joined.o(0)));
        let j = open_from(&client, &server, theirs, theirs, CLIENT_ISN + 1_000_000, 0x3333_3333);
        Transfer::new(&client, &server, j).closes_from_the_client();
    }

    fn a_port_may_be_reused_with_the_same_number(world, client, server) {
        // A small device that restarts begins with the number and the port it began with before: its cookie is the same as well.
        let theirs = Terms::linux(world.mss());
        for server_isn in [0x3333_3333, 0x4444_4444] {
            let mut transfer = linux(&world, &client, &server);
            transfer.client(PSH, 100);
            transfer.server(0, 0);
            let j = transfer.joined.clone();
            client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            let challenge = client.gets(ack(j.o(0), j.c(100)).any_window().any_options());
            client.sends(rst(challenge.ack));
            server.gets(rst(j.c(100)).any_window());
            let j = open_from(&client, &server, theirs, theirs, CLIENT_ISN, server_isn);
            Transfer::new(&client, &server, j).closes_from_the_client();
            world.after_secs(125);
        }
    }

    fn a_lan_port_may_be_reused_after_its_close(world, client, server) {
        let theirs = Terms::linux(world.mss());
        for isn in [1000_u32, 5_000_000] {
            server.passes(theirs.on(syn(isn), (1, 0)));
            client.passes(theirs.on(syn_ack(isn + 7, isn + 1), (6, 1)));
            server.passes(ack(isn + 1, isn + 8).nop().nop().ts(2, 6));
            server.passes(fin(isn + 1, isn + 8).nop().nop().ts(2, 6));
            client.passes(fin(isn + 8, isn + 2).nop().nop().ts(7, 2));
            server.passes(ack(isn + 2, isn + 9).nop().nop().ts(3, 7));
            world.has_flows(0, 1);
        }
    }

    fn a_fin_repeated_in_time_wait_is_answered_by_its_receiver(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.closes_from_the_server();
        world.after_secs(1);
        // The last acknowledgement was lost, so the client's FIN comes again, and the server's acknowledgement of it.
        let j = &transfer.joined;
        let stamps = (CLIENT_TS + 500, SERVER_TS + 500);
        client.sends(fin(j.c(0), j.o(1)).nop().nop().ts(stamps.0, j.ts_out(stamps.1)));
        server.gets(fin(j.c(0), j.s(1)).ts(stamps.0, stamps.1));
        server.sends(ack(j.s(1), j.c(1)).nop().nop().ts(stamps.1, stamps.0));
        client.gets(ack(j.o(1), j.c(1)).ts(j.ts_out(stamps.1), stamps.0));
        server.sends(fin(j.s(0), j.c(1)).nop().nop().ts(stamps.1, stamps.0));
        client.gets(fin(j.o(0), j.c(1)).ts(j.ts_out(stamps.1), stamps.0));
        client.sends(ack(j.c(1), j.o(1)).nop().nop().ts(stamps.0, j.ts_out(stamps.1)));
        server.gets(ack(j.c(1), j.s(1)).ts(stamps.0, stamps.1));
    }

    fn keepalives_and_window_probes_pass(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(PSH, 200);
        let j = &transfer.joined;
        let (ct, st) = (CLIENT_TS + 50, SERVER_TS + 50);
        for len in [0, 1] {
            client.sends(ack(j.c(99), j.o(200)).payload(len).ts(ct, j.ts_out(st)));
            server.gets(ack(j.c(99), j.s(200)).payload(len).ts(ct, st));
            server.sends(ack(j.s(200), j.c(100)).window(0).ts(st, ct));
            client.gets(ack(j.o(200), j.c(100)).window(0).ts(j.ts_out(st), ct));
            server.sends(ack(j.s(199), j.c(100)).payload(len).ts(st, ct));
            client.gets(ack(j.o(199), j.c(100)).payload(len).ts(j.ts_out(st), ct));
            client.sends(ack(j.c(100), j.o(200)).window(0).ts(ct, j.ts_out(st)));
            server.gets(ack(j.c(100), j.s(200)).window(0).ts(ct, st));
        }
    }

    fn old_segments_pass_and_change_nothing(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        for _ in 0..5 {
            transfer.client(PSH, 100);
            transfer.server(PSH, 200);
        }
        let j = transfer.joined.clone();
        client.sends(data(j.c(100), j.o(200), 100).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)));
        server.gets(data(j.c(100), j.s(200), 100).ts(CLIENT_TS + 2, SERVER_TS));
        server.sends(data(j.s(200), j.c(100), 200).ts(SERVER_TS, CLIENT_TS + 2));
        client.gets(data(j.o(200), j.c(100), 200).ts(j.ts_out(SERVER_TS), CLIENT_TS + 2));
        // A reset of the newest number is still the exact one.
        client.sends(rst(j.c(500)));
        server.gets(rst(j.c(500)));
    }

    fn a_segment_far_beyond_the_window_moves_no_number(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        transfer.server(PSH, 200);
        transfer.client(0, 0);
        let j = transfer.joined.clone();
        for far in [1 << 20, 1 << 29, 1 << 30, (1 << 31) - 1, 1 << 31] {
            client.sends(data(j.c(far), j.o(200), 100).ts(CLIENT_TS + 9, j.ts_out(SERVER_TS)));
            world.discard();
            client.sends(ack(j.c(100), j.o(far)).ts(CLIENT_TS + 9, j.ts_out(SERVER_TS)));
            world.discard();
            client.sends_in_vain(rst(j.c(far.wrapping_add(100))), DropReason::BadReset);
            server.sends(data(j.s(far), j.c(100), 100).ts(SERVER_TS, CLIENT_TS));
            world.discard();
            server.sends_in_vain(rst(j.s(far.wrapping_add(100))), DropReason::BadReset);
        }
        transfer.client(PSH, 10);
        transfer.server(PSH, 10);
        client.sends(rst(j.c(110)));
        server.gets(rst(j.c(110)));
    }

    fn a_half_close_lasts_an_hour(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(FIN, 0);
        for _ in 0..6 {
            transfer.server(PSH, 1000);
            transfer.client(0, 0);
            world.after_secs(600);
        }
        world.has_flows(1, 0);
        transfer.server(FIN, 0);
        transfer.client(0, 0);
        world.after_secs(125);
        world.has_flows(0, 0);
    }

    fn an_idle_connection_lasts_a_day_and_no_longer(world, client, server) {
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 100);
        world.after_secs(86_000);
        transfer.server(PSH, 100);
        world.after_secs(86_000);
        world.has_flows(1, 0);
        transfer.client(0, 0);
        world.after_secs(86_400 + 200);
        world.has_flows(0, 0);
        assert_eq!(world.happened(Event::Expired), 1);
        client.sends_in_vain_for_any_reason(data(transfer.joined.c(100), transfer.joined.o(100), 5));
    }

    fn numbers_wrap_in_both_directions(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let j = open_from(&client, &server, theirs, theirs, 0xFFFF_FF00, 0xFFFF_FE00);
        let mut transfer = Transfer::new(&client, &server, j);
        for _ in 0..10 {
            transfer.client(PSH, 100);
            transfer.server(PSH, 100);
        }
        transfer.closes_from_the_client();
    }

    fn numbers_that_wrap_within_the_handshake_are_understood(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let isn = u32::MAX;
        let (offered, _) = prove(&client, &server, theirs, isn);
        server.sends(theirs.on(syn_ack(u32::MAX, 0), (SERVER_TS, CLIENT_TS + 1)));
        let update = client.gets(ack(offered.seq.wrapping_add(1), 0).any_window().any_options());
        world.tick(Duration::from_secs(1));
        world.discard();
        let value = update.ts().unwrap().0;
        client.sends(data(0, offered.seq.wrapping_add(1), 9).ts(CLIENT_TS + 2, value));
        server.gets(data(0, 0, 9).ts(CLIENT_TS + 2, ANY));
    }

    fn a_segment_of_no_connection_is_dropped_and_counted(world, client, server) {
        client.sends_in_vain_for_any_reason(data(5, 6, 10));
        client.sends_in_vain(rst(5), DropReason::NoFlow);
        client.sends_in_vain_for_any_reason(segment(FIN, 5, 0));
        client.sends_in_vain_for_any_reason(fin(5, 6));
        server.sends_in_vain(rst(5), DropReason::NoFlow);
        server.sends_in_vain(data(5, 6, 10), DropReason::NoFlow);
        world.has_flows(0, 0);
    }

    fn ecn_marks_and_flags_pass_on_an_established_connection(world, client, server) {
        let j = ecn(&world, &client, &server).joined;
        client.sends(data(j.c(0), j.o(0), 10).flags(CWR).tos(0b11).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)));
        server.gets(data(j.c(0), j.s(0), 10).flags(CWR).tos(0b11).ts(CLIENT_TS + 2, SERVER_TS).ttl(CLIENT_TTL));
        server.sends(ack(j.s(0), j.c(10)).flags(ECE | AE).tos(0xB8).ts(SERVER_TS, CLIENT_TS + 2));
        client.gets(ack(j.o(0), j.c(10)).flags(ECE | AE).tos(0xB8).ts(j.ts_out(SERVER_TS), CLIENT_TS + 2));
    }
}

// ---- packets off the common road ----

in_every_mode! {
    fn a_jumbo_frame_in_several_buffers_is_translated(world, client, server) {
        let linux_jumbo = Terms::linux(8960);
        let mut transfer = Transfer::new(&client, &server, open(&client, &server, linux_jumbo, linux_jumbo));
        for sight in [128, 200, 2048, 4096, usize::MAX] {
            world.first_buffer_holds(sight);
            for len in [8948, 8947, 3001, 1] {
                transfer.client(PSH, len);
                transfer.server(PSH, len);
            }
        }
        world.first_buffer_holds(128);
        transfer.closes_from_the_client();
    }

    fn ip_options_and_extension_headers_do_not_hide_a_syn(world, client, server) {
        use Extension::{Destination, HopByHop, Routing};
        let theirs = Terms::linux(world.mss());
        let dress = |seg: Seg| match world.mode().family {
            Family::V4 => seg.ip_options(&[0x94, 4, 0, 0, 1, 1, 1, 0]),
            Family::V6 => seg.behind(&[HopByHop, Destination, Routing, Destination]),
        };
        client.sends(dress(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0))));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        server.gets(nothing());
        let stamp = offered.ts().unwrap().0;
        client.sends(dress(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, stamp)));
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        client.sends(dress(data(j.c(0), j.o(0), 33).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS))));
        let got = server.gets(data(j.c(0), j.s(0), 33).ts(CLIENT_TS + 2, SERVER_TS));
        let plain = server.frame(&data(0, 0, 33).ts(0, 0)).len();
        assert!(got.frame.len() > plain, "options and extension headers pass");
        server.sends(dress(fin(j.s(0), j.c(33)).ts(SERVER_TS, CLIENT_TS + 2)));
        client.gets(fin(j.o(0), j.c(33)).ts(j.ts_out(SERVER_TS), CLIENT_TS + 2));
        client.sends(dress(rst(j.c(33))));
        server.gets(rst(j.c(33)));
    }

    fn what_is_no_tcp_passes_as_it_is(world, client, server) {
        let frames: [&[u8]; 6] = [
            &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 20, 0, 0, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 10],
            &[0x88, 0xCC, 2, 7, 4, 1, 2, 3, 4, 5, 6, 4, 2, 5, 1, 0, 0],
            &[0x88, 0x47, 0, 1, 0x11, 0x40, 0x45, 0],
            &[0x88, 0x64, 0x11, 0, 0, 1, 0, 4, 0, 0x21, 0x45, 0],
            &[
                0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0, 20, 0, 0, 1, 192, 0, 2, 10, 0, 53, 0, 53, 0,
                8, 0, 0,
            ],
            &[
                0x86, 0xDD, 0x60, 0, 0, 0, 0, 8, 58, 255, 0xFE, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xFF,
                2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 135, 0, 0, 0, 0, 0, 0, 0,
            ],
        ];
        for frame in frames {
            for host in [&client, &server] {
                let ends = host.ends();
                let mut whole = [ends.dst_mac, ends.src_mac].concat();
                for (protocol, control) in vlan_tags(world.mode().tags) {
                    whole.extend(protocol.to_be_bytes());
                    whole.extend(control.to_be_bytes());
                }
                whole.extend(frame);
                host.passes(whole);
            }
        }
        assert_eq!(world.happened(Event::Bridged), 12);
    }

    fn later_fragments_pass_and_those_that_overlap_the_header_do_not(world, client, server) {
        let tags = 4 * world.mode().tags;
        for host in [&client, &server] {
            let seg = data(1, 2, 64);
            match world.mode().family {
                Family::V4 => {
                    let fragment = |offset: u16, more: bool| {
                        let mut frame = host.frame(&seg);
                        let field = (offset / 8) | (u16::from(more) << 13);
                        frame[14 + tags + 6..14 + tags + 8].copy_from_slice(&field.to_be_bytes());
                        seal(&mut frame);
                        frame
                    };
                    for offset in [8, 16, 56] {
                        host.sends_in_vain(fragment(offset, true), DropReason::BadFragment);
                        host.sends_in_vain(fragment(offset, false), DropReason::BadFragment);
                    }
                    for offset in [64, 1480, 8000] {
                        host.passes(fragment(offset, false));
                    }
                }
                Family::V6 => {
                    for offset in [8, 64, 504] {
                        let frame = host.frame(&seg.clone().behind(&[Extension::Fragment(offset, false)]));
                        host.sends_in_vain(frame, DropReason::BadFragment);
                    }
                    for offset in [512, 1448, 8000] {
                        host.passes(host.frame(&seg.clone().behind(&[Extension::Fragment(offset, true)])));
                    }
                }
            }
        }
        assert_eq!(world.happened(Event::StrayFragment), 6);
    }

    fn a_fragmented_syn_opens_nothing(world, client, server) {
        let tags = 4 * world.mode().tags;
        let seg = Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)).payload(100);
        let frame = match world.mode().family {
            Family::V4 => {
                let mut frame = client.frame(&seg);
                frame[14 + tags + 6] = 0x20;
                seal(&mut frame);
                frame
            }
            Family::V6 => client.frame(&seg.behind(&[Extension::Fragment(0, true)])),
        };
        client.sends_in_vain_for_any_reason(frame);
        server.gets(nothing());
        world.has_flows(0, 0);
        assert_eq!(world.population().syn_cached, 0);
    }

    fn a_first_fragment_without_a_whole_header_is_dropped(world, client, server) {
        let tags = 4 * world.mode().tags;
        for host in [&client, &server] {
            let frame = match world.mode().family {
                Family::V4 => {
                    let mut frame = host.frame(&data(1, 2, 64));
                    frame.truncate(14 + tags + 20 + 16);
                    frame[14 + tags + 2..14 + tags + 4].copy_from_slice(&36_u16.to_be_bytes());
                    frame[14 + tags + 6] = 0x20;
                    reseal_v4(&mut frame, 14 + tags);
                    frame
                }
                Family::V6 => {
                    let mut frame = host.frame(&data(1, 2, 64).behind(&[Extension::Fragment(0, true)]));
                    frame.truncate(14 + tags + 40 + 8 + 16);
                    frame[14 + tags + 4..14 + tags + 6].copy_from_slice(&24_u16.to_be_bytes());
                    frame
                }
            };
            host.sends_in_vain(frame, DropReason::BadFragment);
        }
    }

    fn the_first_fragment_of_an_established_connection_is_translated(world, client, server) {
        let tags = 4 * world.mode().tags;
        let j = linux(&world, &client, &server).joined;
        let seg = |ack_no, echo| data(j.c(0), ack_no, 80).nop().nop().ts(CLIENT_TS + 2, echo);
        let whole = |host: &Host, seg: Seg| match world.mode().family {
            Family::V4 => {
                let mut frame = host.frame(&seg);
                frame[14 + tags + 6] = 0x20;
                seal(&mut frame);
                frame
            }
            Family::V6 => host.frame(&seg.behind(&[Extension::Fragment(0, true)])),
        };
        client.sends(whole(&client, seg(j.o(0), j.ts_out(SERVER_TS))));
        server.gets(seg(j.s(0), SERVER_TS));
    }

    fn the_answer_is_never_larger_than_the_question(world, client, server) {
        // World::deliver asserts it for every SYN; here are the smallest ones.
        for (port, seg) in
            [(1, syn(9)), (2, syn(9).mss(1460)), (3, syn(9).mss(1460).nop().nop().sack_ok()), (4, syn(9).nop().wscale(3))]
        {
            let (client, _) = world.on_port(port);
            client.sends(seg.clone());
            client.gets(syn_ack(ANY, 10).window(0).any_options());
        }
        let _ = (client, server);
    }
}

/// Computes an IPv4 header's checksum of 20 bytes at `at`, whatever the lengths say.
fn reseal_v4(frame: &mut [u8], at: usize) {
    frame[at + 10..at + 12].fill(0);
    let mut sum: u32 = frame[at..at + 20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    frame[at + 10..at + 12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

// ---- limits, timers, room ----

#[test]
fn a_prefix_that_has_spent_its_tokens_waits() {
    for mode in Mode::ALL {
        let (world, _, _) = mode.world_with(|config| {
            config.rate.burst = 10;
            config.rate.add = 5;
            config.rate.period = Duration::from_secs(1);
        });
        let mut answered = 0;
        for host in 1..=50 {
            let (client, _) = world.pair(1, host, CLIENT_PORT);
            client.sends(Terms::linux(mode.mss()).on(syn(1000), (CLIENT_TS, 0)));
            answered += world.discard().len();
        }
        assert_eq!(answered, 10, "{mode}");
        assert_eq!(world.dropped(DropReason::RateLimited), 40, "{mode}");
        // Another prefix is not concerned.
        let (client, _) = world.pair(2, 1, CLIENT_PORT);
        client.sends(Terms::linux(mode.mss()).on(syn(1000), (CLIENT_TS, 0)));
        client.gets(syn_ack(ANY, 1001).window(0).any_options());
        // Tokens come back with time.
        world.after_ms(1100);
        let mut answered = 0;
        for host in 100..=150 {
            let (client, _) = world.pair(1, host, CLIENT_PORT);
            client.sends(Terms::linux(mode.mss()).on(syn(1000), (CLIENT_TS, 0)));
            answered += world.discard().len();
        }
        assert!((4..=6).contains(&answered), "{mode}: {answered} answered after a second");
    }
}

#[test]
fn a_proved_client_gets_its_token_back() {
    for mode in Mode::ALL {
        let (world, _, _) = mode.world_with(|config| {
            config.rate.burst = 3;
            config.rate.add = 1;
            config.rate.period = Duration::from_secs(100_000);
        });
        let theirs = Terms::linux(mode.mss());
        for host in 1..=20 {
            let (client, server) = world.pair(1, host, CLIENT_PORT);
            open(&client, &server, theirs, theirs);
        }
        assert_eq!(world.dropped(DropReason::RateLimited), 0);
    }
}

#[test]
fn a_repeated_syn_is_a_better_sign_of_life_than_a_fresh_one() {
    for mode in Mode::ALL {
        let (world, _, _) = mode.world_with(|config| {
            config.rate.burst = 10;
            config.rate.add = 1;
            config.rate.period = Duration::from_secs(100_000);
        });
        let theirs = Terms::linux(mode.mss());
        for host in 1..=100 {
            let (bot, _) = world.pair(1, host, 666);
            bot.sends(theirs.on(syn(u32::from(host) * 1_000_003), (CLIENT_TS, 0)));
            world.discard();
        }
        let (client, server) = world.pair(1, 200, CLIENT_PORT);
        client.sends_in_vain(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)), DropReason::RateLimited);
        world.after_ms(1000);
        open(&client, &server, theirs, theirs);
        assert_eq!(world.happened(Event::SecondChance), 1, "{mode}");
    }
}

#[test]
fn a_syn_repeated_at_once_is_no_sign_of_life() {
    for mode in Mode::ALL {
        let (world, client, _server) = mode.world_with(|config| {
            config.rate.burst = 1;
            config.rate.add = 1;
            config.rate.period = Duration::from_secs(100_000);
        });
        let theirs = Terms::linux(mode.mss());
        client.sends(theirs.on(syn(1), (CLIENT_TS, 0)));
        client.gets(anything());
        let (bot, _) = world.on_port(9);
        for _ in 0..100 {
            bot.sends_in_vain(theirs.on(syn(7), (CLIENT_TS, 0)), DropReason::RateLimited);
        }
    }
}

#[test]
fn a_flood_of_syns_grows_nothing() {
    for mode in Mode::ALL {
        let (world, _, _) = mode.world_with(|config| config.rate.size = 131_072);
        let theirs = Terms::linux(mode.mss());
        for i in 0..20_000_u32 {
            let (client, _) = world.pair((i >> 4) as u16, (i & 15) as u8 + 1, CLIENT_PORT);
            client.sends(theirs.on(syn(i.wrapping_mul(2_654_435_761)), (CLIENT_TS, 0)));
            client.gets(syn_ack(ANY, ANY).window(0).any_options());
        }
        world.has_flows(0, 0);
        let most = if mode.cache { 64 } else { 0 };
        assert!(world.population().syn_cached <= most, "{mode}: {:?}", world.population());
        // Beyond the cache cookies serve: an honest client still gets in.
        let (client, server) = world.pair(60_000, 1, CLIENT_PORT);
        open(&client, &server, theirs, theirs);
    }
}

#[test]
fn a_flood_of_acknowledgements_opens_nothing() {
    for mode in Mode::ALL {
        let (world, _, server) = mode.world();
        for i in 0..20_000_u32 {
            let (client, _) = world.pair((i >> 8) as u16, i as u8, CLIENT_PORT);
            // Some are tested, and from then on none.
            client.sends_in_vain_for_any_reason(ack(i.wrapping_mul(40_503), i.wrapping_mul(2_654_435_761)));
        }
        server.gets(nothing());
        world.has_flows(0, 0);
    }
}

#[test]
fn a_wrong_checksum_opens_proves_and_resets_nothing() {
    for mode in Mode::ALL {
        let (world, client, server) = mode.world();
        let theirs = Terms::linux(mode.mss());
        let spoil = |host: &Host, seg: Seg| {
            let mut frame = host.frame(&seg);
            let at = read(&frame, world.now()).unwrap().tcp_at;
            frame[at + 17] ^= 1;
            frame
        };
        client.sends_in_vain(spoil(&client, theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0))), DropReason::BadChecksum);
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        let proof = ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0);
        client.sends_in_vain(spoil(&client, proof.clone()), DropReason::BadChecksum);
        client.sends(proof);
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        let answer_seg = theirs.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 1));
        server.sends_in_vain(spoil(&server, answer_seg), DropReason::BadChecksum);
        server.sends_in_vain(spoil(&server, rst_ack(0, CLIENT_ISN + 1)), DropReason::BadChecksum);
        let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        client.sends_in_vain(spoil(&client, rst(j.c(0))), DropReason::BadChecksum);
        server.sends_in_vain(spoil(&server, rst(j.s(0))), DropReason::BadChecksum);
        Transfer::new(&client, &server, j).closes_from_the_client();
        if mode.family == Family::V4 {
            let mut frame = client.frame(&theirs.on(syn(9), (CLIENT_TS, 0)));
            frame[14 + 4 * mode.tags + 10] ^= 1;
            client.sends_in_vain(frame, DropReason::BadChecksum);
        }
    }
}

/// A small table: the connections it holds when it is full of established ones.
fn small(mode: Mode) -> (World, usize) {
    let mut config = mode.config();
    config.table_buckets = 1;
    let capacity = config.flow_capacity();
    (World::new(mode, &config), capacity)
}

#[test]
fn a_full_table_gives_up_no_connection_that_moves_data_and_resets_who_comes() {
    for mode in Mode::ALL {
        let (world, capacity) = small(mode);
        let theirs = Terms::linux(mode.mss());
        let mut transfers: Vec<Transfer> = (0..capacity as u16)
            .map(|i| {
                let (client, server) = world.on_port(1000 + i);
                let mut transfer = Transfer::new(&client, &server, open(&client, &server, theirs, theirs));
                transfer.client(PSH, 10);
                transfer
            })
            .collect();
        world.has_flows(capacity as u64, 0);
        let (client, server) = world.on_port(9);
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        let proof = ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0);
        client.sends(proof);
        client.gets(rst(offered.seq + 1).any_window());
        server.gets(nothing());
        for transfer in &mut transfers {
            transfer.client(PSH, 10);
            transfer.server(PSH, 10);
        }
        assert_eq!(world.happened(Event::EvictedClosing) + world.happened(Event::EvictedHalfOpen), 0);
    }
}

#[test]
fn a_full_table_gives_up_closing_connections_first() {
    for mode in Mode::ALL {
        let (world, capacity) = small(mode);
        let theirs = Terms::linux(mode.mss());
        // One whose server has not answered, one closing, the others established.
        let (waiting, waiting_server) = world.on_port(1);
        prove(&waiting, &waiting_server, theirs, CLIENT_ISN);
        let mut transfers: Vec<Transfer> = (1..capacity as u16)
            .map(|i| {
                let (client, server) = world.on_port(1000 + i);
                let mut transfer = Transfer::new(&client, &server, open(&client, &server, theirs, theirs));
                transfer.client(PSH, 10);
                transfer
            })
            .collect();
        transfers.pop().unwrap().closes_from_the_client();
        let (client, server) = world.on_port(9);
        let mut late = Transfer::new(&client, &server, open(&client, &server, theirs, theirs));
        late.client(PSH, 10);
        assert_eq!((world.happened(Event::EvictedClosing), world.happened(Event::EvictedHalfOpen)), (1, 0), "{mode}");
        for transfer in &mut transfers {
            transfer.server(PSH, 10);
        }
        late.server(PSH, 10);
        world.has_flows(capacity as u64, 0);
    }
}

#[test]
fn a_full_table_does_not_give_up_a_connection_for_a_forged_reset() {
    for mode in Mode::ALL {
        let (world, capacity) = small(mode);
        let theirs = Terms::linux(mode.mss());
        let mut transfers: Vec<Transfer> = (0..capacity as u16)
            .map(|i| {
                let (client, server) = world.on_port(1000 + i);
                let mut transfer = Transfer::new(&client, &server, open(&client, &server, theirs, theirs));
                transfer.client(PSH, 10);
                client.sends(rst(transfer.joined.c(5)));
                server.gets(rst(transfer.joined.c(5)));
                transfer
            })
            .collect();
        let (client, server) = world.on_port(9);
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        let proof = ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0);
        client.sends(proof);
        client.gets(rst(offered.seq + 1).any_window());
        server.gets(nothing());
        for transfer in &mut transfers {
            transfer.server(PSH, 10);
            transfer.client(PSH, 10);
        }
        world.has_flows(capacity as u64, 0);
    }
}

#[test]
fn a_full_table_gives_up_the_connection_whose_server_has_been_silent_longest() {
    for mode in Mode::ALL {
        let (world, capacity) = small(mode);
        let theirs = Terms::linux(mode.mss());
        for i in 0..capacity as u16 {
            let (client, server) = world.on_port(1000 + i);
            client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0));
            server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
            world.tick(Duration::from_millis(500));
            world.discard();
        }
        // Every place is taken by a dead server's client: without eviction the box would be shut for four minutes.
        let (client, server) = world.on_port(9);
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0));
        let out: Vec<Got> = world.discard().iter().map(|(_, frame)| read(frame, world.now()).unwrap()).collect();
        let ends = server.ends();
        let has_syn = out.iter().any(|got| got.flags == SYN && got.ports == (ends.dport, ends.sport));
        if !has_syn {
            world.fail(&format!("{mode}: the connection found no place"));
        }
        assert_eq!(world.happened(Event::EvictedHalfOpen), 1);
        // The one given up gets a reset, and so does its server, should it still wake up.
        let (oldest, oldest_server) = world.on_port(1000);
        for ends in [oldest.ends(), oldest_server.ends()] {
            let told = out.iter().find(|got| got.ports == (ends.dport, ends.sport)).expect("both ends get a reset");
            assert!(told.flags & RST != 0, "{told}");
            assert!(told.ports.0 == SERVER_PORT || told.seq == CLIENT_ISN + 1, "{told}");
        }
    }
}

#[test]
fn a_full_table_gives_up_a_half_open_entry_before_anything_established() {
    for mode in [Mode::V4.cached(), Mode::V6.cached()] {
        let (world, capacity) = small(mode);
        let theirs = Terms::linux(mode.mss());
        let mut transfers: Vec<Transfer> = (1..capacity as u16)
            .map(|i| {
                let (client, server) = world.on_port(1000 + i);
                let mut transfer = Transfer::new(&client, &server, open(&client, &server, theirs, theirs));
                transfer.client(PSH, 10);
                transfer
            })
            .collect();
        let (cached, cached_server) = world.on_port(1);
        cached.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = cached.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        assert_eq!(world.population().syn_cached, 1);
        let (client, server) = world.on_port(9);
        let mut late = Transfer::new(&client, &server, open(&client, &server, theirs, theirs));
        late.client(PSH, 10);
        assert_eq!((world.population().syn_cached, world.happened(Event::EvictedHalfOpen)), (0, 1));
        for transfer in &mut transfers {
            transfer.server(PSH, 10);
        }
        // The cookie outlives the entry: with a place free again, its client still gets in.
        transfers.pop().unwrap().closes_from_the_client();
        cached.sends(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0));
        cached_server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
    }
}

#[test]
fn timers_are_the_configured_ones() {
    for mode in Mode::ALL {
        let (world, client, server) = mode.world_with(|config| {
            config.timeouts.connected = Duration::from_secs(10);
            config.timeouts.one_fin = Duration::from_secs(20);
            config.timeouts.both_fin = Duration::from_secs(30);
            config.timeouts.time_wait = Duration::from_secs(5);
            config.timeouts.reseted = Duration::from_secs(3);
            config.timeouts.dl_syn_sent = Duration::from_secs(8);
            config.timeouts.ul_syn_sent = Duration::from_secs(6);
            config.timeouts.ul_syn_rcvd = Duration::from_secs(7);
        });
        let theirs = Terms::linux(mode.mss());
        let lasts = |secs: u64| {
            world.after(Duration::from_secs(secs) - Duration::from_millis(200));
            let before = world.population();
            assert_eq!(before.proxied + before.passthrough, 1, "{mode}: gone before {secs} s");
            world.after(Duration::from_millis(1700));
            let after = world.population();
            assert_eq!(after.proxied + after.passthrough, 0, "{mode}: still there after {secs} s");
        };
        // Established; closing by stages; reset.
        let transfer = || {
            let mut transfer = Transfer::new(&client, &server, open(&client, &server, theirs, theirs));
            transfer.client(PSH, 10);
            transfer
        };
        transfer();
        lasts(10);
        transfer().client(FIN, 0);
        lasts(20);
        let mut t = transfer();
        t.client(FIN, 0);
        t.server(FIN, 0);
        lasts(30);
        transfer().closes_from_the_client();
        lasts(5);
        let t = transfer();
        client.sends(rst(t.joined.c(10)));
        server.gets(rst(t.joined.c(10)));
        lasts(3);
        // From the LAN.
        server.passes(theirs.on(syn(100), (1, 0)));
        lasts(6);
        server.passes(theirs.on(syn(100), (1, 0)));
        client.passes(theirs.on(syn_ack(900, 101), (6, 1)));
        lasts(7);
        // A server that does not answer within its time.
        prove(&client, &server, theirs, CLIENT_ISN);
        world.tick(Duration::from_secs(9));
        world.discard();
        world.after_secs(5);
        world.has_flows(0, 0);
    }
}

#[test]
fn a_half_open_entry_lasts_as_long_as_configured() {
    for mode in [Mode::V4.cached(), Mode::V6.cached()] {
        let (world, client, _server) = mode.world_with(|config| config.timeouts.dl_half_open = Duration::from_secs(5));
        client.sends(Terms::linux(mode.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        client.gets(anything());
        assert_eq!(world.population().syn_cached, 1);
        world.after_ms(4800);
        assert_eq!(world.population().syn_cached, 1);
        world.after_ms(1700);
        assert_eq!(world.population().syn_cached, 0);
    }
}

#[test]
fn the_syn_cache_keeps_what_no_cookie_could_express() {
    for mode in [Mode::V4.cached(), Mode::V6.cached()] {
        let (_world, client, server) = mode.world();
        let theirs = Terms { mss: Some(1333), wscale: Some(5), ts: false, ..Terms::linux(0) };
        let (_, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
        assert_eq!((server_syn.mss(), server_syn.wscale()), (Some(1333), Some(5)));
    }
}

// ---- further questions ----

in_every_mode! {
    fn an_echo_of_our_own_clock_is_not_sent_to_the_server(world, client, server) {
        let j = linux(&world, &client, &server).joined;
        // Sent before the window update came: it echoes the SYN-ACK, which the server never sent.
        let stamp = j.offered.ts().unwrap().0;
        client.sends(data(j.c(0), j.o(0), 10).nop().nop().ts(CLIENT_TS + 2, stamp));
        server.gets(data(j.c(0), j.s(0), 10).ts(CLIENT_TS + 2, SERVER_TS));
        client.sends(data(j.c(10), j.o(0), 10).nop().nop().ts(CLIENT_TS + 3, j.update.ts().unwrap().0));
        server.gets(data(j.c(10), j.s(0), 10).ts(CLIENT_TS + 3, SERVER_TS));
    }

    fn a_first_fragment_is_not_lengthened(world, client, server) {
        // The server refuses timestamps, which are otherwise added for the client; here they would overlap the next fragment.
        let theirs = Terms::linux(world.mss());
        let j = open(&client, &server, theirs, Terms { ts: false, ..theirs });
        let tags = 4 * world.mode().tags;
        let seg = data(j.s(0), j.c(0), 80);
        let frame = match world.mode().family {
            Family::V4 => {
                let mut frame = server.frame(&seg);
                frame[14 + tags + 6] = 0x20;
                seal(&mut frame);
                frame
            }
            Family::V6 => server.frame(&seg.behind(&[Extension::Fragment(0, true)])),
        };
        server.sends(frame.clone());
        for (_, out) in world.discard() {
            assert_eq!(out.len(), frame.len(), "payload was moved within the packet");
        }
    }

    fn what_a_fragment_hides_may_be_acknowledged(world, client, server) {
        let tags = 4 * world.mode().tags;
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 10);
        // The first 80 of 4000 bytes; the other fragments carry no TCP header.
        for host in [&server, &client] {
            let j = transfer.joined.clone();
            let seg = if host.side() == Side::Lan {
                data(j.s(0), j.c(10), 80).ts(SERVER_TS + 2, CLIENT_TS + 2)
            } else {
                data(j.c(10), j.o(4000), 80).ts(CLIENT_TS + 3, j.ts_out(SERVER_TS + 2))
            };
            let frame = match world.mode().family {
                Family::V4 => {
                    let mut frame = host.frame(&seg);
                    frame[14 + tags + 6] = 0x20;
                    seal(&mut frame);
                    frame
                }
                Family::V6 => host.frame(&seg.behind(&[Extension::Fragment(0, true)])),
            };
            host.sends(frame);
            let passed = world.discard();
            assert_eq!((passed.len(), passed[0].0), (1, host.side().other()));
            if host.side() == Side::Lan {
                client.sends(ack(j.c(10), j.o(4000)).ts(CLIENT_TS + 3, j.ts_out(SERVER_TS + 2)));
                server.gets(ack(j.c(10), j.s(4000)).ts(CLIENT_TS + 3, SERVER_TS + 2));
                client.gets(nothing());
            } else {
                server.sends(ack(j.s(4000), j.c(4010)).ts(SERVER_TS + 3, CLIENT_TS + 3));
                client.gets(ack(j.o(4000), j.c(4010)).ts(j.ts_out(SERVER_TS + 3), CLIENT_TS + 3));
                server.gets(nothing());
            }
        }
        // And both go on from there.
        let j = &transfer.joined;
        client.sends(data(j.c(4010), j.o(4000), 10).ts(CLIENT_TS + 4, j.ts_out(SERVER_TS + 3)));
        server.gets(data(j.c(4010), j.s(4000), 10).ts(CLIENT_TS + 4, SERVER_TS + 3));
        server.sends(data(j.s(4000), j.c(4020), 10).ts(SERVER_TS + 4, CLIENT_TS + 4));
        client.gets(data(j.o(4000), j.c(4020), 10).ts(j.ts_out(SERVER_TS + 4), CLIENT_TS + 4));
    }

    fn a_segment_the_box_has_not_seen_may_be_acknowledged_again(world, client, server) {
        // Old acknowledgements and data of up to a large window below: they pass, whatever the box knows.
        let mut transfer = linux(&world, &client, &server);
        for _ in 0..40 {
            transfer.server(0, 1400);
        }
        transfer.client(0, 0);
        let j = &transfer.joined;
        for acked in [0, 1400, 28_000] {
            client.sends(ack(j.c(0), j.o(acked)).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS + 2)));
            server.gets(ack(j.c(0), j.s(acked)).ts(CLIENT_TS + 2, SERVER_TS + 2));
            server.sends(data(j.s(acked), j.c(0), 1400).ts(SERVER_TS + 50, CLIENT_TS + 2));
            client.gets(data(j.o(acked), j.c(0), 1400).ts(j.ts_out(SERVER_TS + 50), CLIENT_TS + 2));
        }
    }

    fn a_server_with_a_shut_window_is_not_said_to_have_opened_it(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let j = open(&client, &server, theirs, Terms { window: 0, ..theirs });
        assert_eq!(j.update.window, 0);
        server.sends(ack(j.s(0), j.c(0)).window(300).ts(SERVER_TS + 1, CLIENT_TS + 1));
        client.gets(ack(j.o(0), j.c(0)).window(300).ts(j.ts_out(SERVER_TS + 1), CLIENT_TS + 1));
        client.sends(data(j.c(0), j.o(0), 10).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS + 1)));
        server.gets(data(j.c(0), j.s(0), 10).ts(CLIENT_TS + 2, SERVER_TS + 1));
    }

    fn a_client_with_a_new_syn_while_the_server_is_silent_gets_its_new_connection(world, client, server) {
        let theirs = Terms::linux(world.mss());
        prove(&client, &server, theirs, CLIENT_ISN);
        world.tick(Duration::from_millis(500));
        let isn = CLIENT_ISN + 5_000_000;
        client.sends(theirs.on(syn(isn), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, isn + 1).window(0).any_options());
        server.gets(nothing());
        client.sends(ack(isn + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0));
        client.gets(nothing());
        let told: Vec<Got> = world.discard().iter().map(|(_, frame)| read(frame, world.now()).unwrap()).collect();
        let server_syn = told.iter().find(|got| got.flags == SYN).expect("a SYN to the server").clone();
        assert_eq!(server_syn.seq, isn);
        // The old SYN may be reset, by its own number.
        assert!(told.iter().all(|got| got.flags == SYN || got.flags & RST != 0 && got.seq == CLIENT_ISN + 1));
        let j = answer(&client, &server, theirs, isn, SERVER_ISN, offered, server_syn);
        Transfer::new(&client, &server, j).closes_from_the_client();
        world.has_flows(1, 0);
    }

    fn the_old_connection_still_closes_while_a_new_one_is_being_opened(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let mut transfer = linux(&world, &client, &server);
        transfer.closes_from_the_server();
        let isn = CLIENT_ISN + 5_000_000;
        client.sends(theirs.on(syn(isn), (CLIENT_TS + 9, 0)));
        let offered = client.gets(syn_ack(ANY, isn + 1).window(0).any_options());
        let j = &transfer.joined;
        // A FIN of the old one, late on its way.
        client.sends(fin(j.c(0), j.o(1)).nop().nop().ts(CLIENT_TS + 5, j.ts_out(SERVER_TS + 1)));
        server.gets(fin(j.c(0), j.s(1)).ts(CLIENT_TS + 5, SERVER_TS + 1));
        client.sends(ack(isn + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 10, offered.ts().unwrap().0));
        let server_syn = server.gets(segment(SYN, isn, 0).any_window().any_options());
        answer(&client, &server, theirs, isn, 0x4444_4444, offered, server_syn);
    }

    fn a_blind_reset_does_not_end_the_opening_from_the_lan(world, client, server) {
        let theirs = Terms::linux(world.mss());
        server.passes(theirs.on(syn(100), (1, 0)));
        client.sends_in_vain(rst(0), DropReason::BadReset);
        client.sends_in_vain(rst_ack(0, 100), DropReason::BadReset);
        client.sends_in_vain(rst_ack(0, 102), DropReason::BadReset);
        client.passes(theirs.on(syn_ack(900, 101), (6, 1)));
        client.sends_in_vain(rst(1000), DropReason::BadReset);
        server.passes(ack(101, 901).nop().nop().ts(2, 6));
        client.passes(data(901, 101, 10).nop().nop().ts(7, 2));
        world.has_flows(0, 1);
    }

    fn a_reset_of_the_client_ends_its_half_open_entry(world, client, server) {
        client.sends(Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        client.sends_in_vain_for_any_reason(rst(CLIENT_ISN + 1000));
        assert_eq!(world.population().syn_cached, u64::from(world.mode().cache));
        // A host that sent no SYN answers our SYN-ACK so.
        client.sends_in_vain_for_any_reason(rst(CLIENT_ISN + 1));
        assert_eq!(world.population().syn_cached, 0);
        server.gets(nothing());
    }

    fn a_syn_repeated_is_counted_as_one_connection_attempt(world, client, server) {
        let theirs = Terms::linux(world.mss());
        for _ in 0..5 {
            client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        }
        server.gets(nothing());
        let cached = world.mode().cache;
        assert_eq!(world.population().syn_cached, u64::from(cached));
        assert_eq!(world.happened(Event::SynRepeated), if cached { 4 } else { 0 });
        assert_eq!(world.happened(Event::SynAnswered), 5);
    }

    fn segments_of_a_passed_connection_are_not_touched(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let ours = Terms { wscale: Some(2), sack: true, ..theirs };
        server.passes(ours.on(syn(100), (1, 0)));
        client.passes(Terms { wscale: Some(9), ..theirs }.on(syn_ack(900, 101), (6, 1)));
        server.passes(ack(101, 901).window(1).nop().nop().ts(2, 6));
        for i in 0..50 {
            client.passes(data(901 + i * 10, 101, 10).window(65535).nop().nop().ts(7, 2).sack(&[(5, 6), (8, 9)]));
            server.passes(ack(101, 911 + i * 10).window(3).sack(&[(1000, 2000)]).ts(3, 7));
        }
        // A reset beyond the window, and the exact one.
        client.sends_in_vain(rst(1500), DropReason::BadReset);
        client.passes(rst(1401));
        assert_eq!(world.happened(Event::Challenge), 0);
    }

    fn connections_of_the_same_ends_in_two_networks_are_two(world, client, server) {
        let tags = world.mode().tags;
        if tags == 0 {
            let _ = (client, server);
            return;
        }
        let theirs = Terms::linux(world.mss());
        prove(&client, &server, theirs, CLIENT_ISN);
        // The same ends with other numbers, in another network.
        let in_other = |host: &Host, seg: Seg| {
            let mut frame = host.frame(&seg);
            frame[15] ^= 0x40;
            frame
        };
        client.sends(in_other(&client, theirs.on(syn(7), (CLIENT_TS, 0))));
        let offered = read(&world.discard()[0].1, world.now()).unwrap();
        let echo = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
        client.sends(in_other(&client, ack(8, offered.seq + 1).maybe_ts(echo)));
        world.discard();
        assert_eq!(world.population().proxied, 2);
        server.sends(in_other(&server, theirs.on(syn_ack(SERVER_ISN, 8), (SERVER_TS, CLIENT_TS + 1))));
        world.discard();
        assert_eq!(world.happened(Event::Spliced), 1);
        server.sends(theirs.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 1)));
        assert_eq!(world.discard().len(), 2);
        assert_eq!((world.happened(Event::Spliced), world.happened(Event::OtherVlan)), (2, 0));
    }
}

#[test]
fn what_is_announced_can_be_configured() {
    for mode in Mode::ALL {
        let (_world, client, server) = mode.world_with(|config| {
            config.own_mss = 1400;
            config.own_wscale = 3;
            config.own_sack = false;
            config.mss = Source::Default;
            config.sack = Source::Default;
            config.wscale = Source::Default;
        });
        let theirs = Terms::linux(mode.mss());
        for port in 0..2 {
            let (client, server) = if port == 0 { (client.clone(), server.clone()) } else { _world.on_port(7) };
            let (offered, server_syn) = prove(&client, &server, theirs, CLIENT_ISN);
            let mss = if mode.family == Family::V4 { 1400 } else { 1380 };
            assert_eq!((offered.mss(), offered.wscale(), offered.sack_ok()), (Some(mss), Some(3), false), "{mode}");
            assert!(!server_syn.sack_ok(), "the server's SYN lacks what the client was refused");
            let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
            // The server scales by 7, the client reads by 3: all of it but a unit of the server's at most.
            let granted = u32::from(j.update.window) << 3;
            assert!((64240 - 128..=64240).contains(&granted), "{granted} bytes");
        }
    }
}

#[test]
fn what_is_known_of_a_server_by_address_holds_for_all_its_ports() {
    for mode in Mode::ALL {
        let (world, client, server) = mode.world_with(|config| {
            config.mss = Source::HashIp;
            config.sack = Source::HashIp;
            config.wscale = Source::HashIp;
        });
        let theirs = Terms::linux(mode.mss());
        open(&client, &server, theirs, Terms { mss: Some(1300), wscale: Some(9), sack: false, ..theirs });
        let (there, _) = world.on_port(7);
        let other_port = world.host(Side::Wan, FlowKey { dport: 443, ..there.ends() });
        other_port.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = other_port.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        assert_eq!((offered.mss(), offered.wscale(), offered.sack_ok()), (Some(1300), Some(9), false), "{mode}");
    }
}

#[test]
fn test_connections_carry_traffic_both_ways() {
    let (world, _, _) = Mode::V4.world_with(|config| {
        config.test_connections = true;
        config.table_buckets = 1024;
    });
    world.has_flows(540, 0);
    for j in [0_u32, 1, 255, 539] {
        let ip = |base: u32, n: u32| std::net::IpAddr::from((base + n).to_be_bytes());
        let (client, _) = world.on_port(1);
        let there = FlowKey {
            src: ip(0x0B00_0000, 2 * j + 1),
            dst: ip(0x0A00_0000, 2 * j + 2),
            sport: 54321,
            dport: 12345,
            ..client.ends()
        };
        let back = FlowKey { src: there.dst, dst: there.src, sport: 12345, dport: 54321, ..there };
        for i in 0..10 {
            // The WAN's numbers must fit what is known, which is nothing but zero.
            let frame = build(&there, 0, &data(i * 100, 0, 100));
            assert_eq!(world.inject(Side::Wan, &frame), Verdict::Forward);
            let frame = build(&back, 0, &data(i * 100, 1, 100));
            assert_eq!(world.inject(Side::Lan, &frame), Verdict::Forward);
            for (_, frame) in world.discard() {
                assert_eq!(read(&frame, world.now()).unwrap().checksums, (true, true));
            }
        }
    }
}

// ---- clocks that wrap, flows that end together ----

in_every_mode! {
    fn a_frame_without_room_to_grow_delays_a_connection_and_does_not_break_it(world, client, server) {
        let theirs = Terms::linux(world.mss());
        world.buffers_are_tight();
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        // The server's SYN is longer than the acknowledgement it would be written over.
        let stamp = offered.ts().unwrap().0;
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, stamp));
        let mut syns = world.discard();
        for _ in 0..20 {
            world.tick(Duration::from_millis(100));
            syns.extend(world.discard());
        }
        assert_eq!(syns.first().expect("the server gets a SYN, if late").0, Side::Lan);
        let server_syn = read(&syns[0].1, world.now()).unwrap();
        let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        let mut transfer = Transfer::new(&client, &server, j);
        transfer.client(PSH, 10);
        transfer.server(PSH, 10);
        transfer.closes_from_the_client();
    }

    fn a_syn_too_short_for_its_answer_is_survived(world, client, server) {
        world.buffers_are_tight();
        client.sends(syn(CLIENT_ISN));
        let out = world.discard();
        assert!(out.len() <= 1);
        if let Some((side, frame)) = out.first() {
            assert_eq!((*side, read(frame, world.now()).unwrap().flags), (Side::Wan, SYN | ACK));
        }
        server.gets(nothing());
    }

    fn blocks_that_leave_no_room_for_inserted_timestamps_make_way(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let j = open(&client, &server, theirs, Terms { ts: false, ..theirs });
        let value = j.update.ts().unwrap().0;
        client.sends(data(j.c(0), j.o(0), 10).ts(CLIENT_TS + 2, value));
        server.gets(data(j.c(0), j.s(0), 10));
        let blocks: Vec<(u32, u32)> = (1..=4).map(|i| (j.c(i * 1000), j.c(i * 1000 + 500))).collect();
        for count in 1..=4 {
            server.sends(ack(j.s(0), j.c(10)).nop().nop().sack(&blocks[..count]));
            let got = client.gets(ack(j.o(0), j.c(10)).any_options());
            let kept = got.sack().expect("blocks are kept, as many as fit");
            assert_eq!(kept, &blocks[..kept.len()]);
            assert!(kept.len() >= count.min(3), "{got}");
            assert_eq!(got.ts().map(|t| t.1), Some(CLIENT_TS + 2), "{got}");
        }
        // Without the common alignment, and with data.
        server.sends(data(j.s(0), j.c(10), 101).sack(&blocks[..2]));
        let got = client.gets(data(j.o(0), j.c(10), 101).any_options());
        assert_eq!((got.sack(), got.ts().map(|t| t.1)), (Some(&blocks[..2]), Some(CLIENT_TS + 2)));
        server.sends(fin(j.s(101), j.c(10)));
        let got = client.gets(fin(j.o(101), j.c(10)).any_options());
        assert!(got.ts().is_some());
    }

    fn a_client_of_a_server_known_to_refuse_options_is_served_without_them(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let poor = Terms { wscale: None, sack: false, ts: false, window: 8000, ..theirs };
        open(&client, &server, theirs, poor);
        let (client, server) = world.on_port(CLIENT_PORT + 1);
        let j = open(&client, &server, theirs, poor);
        assert_eq!((j.server_syn.wscale(), j.server_syn.sack_ok(), j.server_syn.ts()), (None, false, None));
        assert_eq!((j.update.window, j.update.ts()), (8000, None));
        for (window, offset) in [(0, 0), (1, 10), (65_535, 20)] {
            client.sends(data(j.c(offset), j.o(0), 10).window(window));
            server.gets(data(j.c(offset), j.s(0), 10).window(window));
            server.sends(ack(j.s(0), j.c(offset + 10)).window(window));
            client.gets(ack(j.o(0), j.c(offset + 10)).window(window));
        }
    }

    fn a_refusal_is_not_held_against_a_server_for_ever(world, client, server) {
        let theirs = Terms::linux(world.mss());
        open(&client, &server, theirs, Terms { wscale: None, sack: false, ts: false, ..theirs });
        world.tick(Duration::from_secs(3600));
        world.discard();
        let (client, server) = world.on_port(CLIENT_PORT + 1);
        let j = open(&client, &server, theirs, theirs);
        assert!(j.offered.sack_ok() && j.offered.ts().is_some() && j.offered.wscale().is_some());
        assert!(j.server_syn.sack_ok() && j.server_syn.ts().is_some() && j.server_syn.wscale().is_some());
    }

    fn a_syn_whose_hop_limit_ends_before_its_server_passes(world, client, server) {
        let _ = (client, server);
        let (world, ..) = world.mode().world_with(|config| config.passed_rate = 2);
        let terms = Terms::linux(world.mss());
        let attempt = |port: u16, ttl: u8| {
            let (client, _) = world.on_port(port);
            (client, terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)).ttl(ttl))
        };
        // Nothing is known of the server's distance.
        let (client, short) = attempt(1, 1);
        client.sends(short);
        client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        let (client, server) = world.on_port(2);
        let j = open(&client, &server, terms, terms);
        // It sends with 64, which come with 61: three routers.
        for (port, ttl) in [(3, 1), (4, 3)] {
            let (client, short) = attempt(port, ttl);
            let frame = client.frame(&short);
            client.passes(frame.clone());
            let (_, server) = world.on_port(port);
            server.passes(icmp_error(&server.ends(), world.mode().tags, Complaint::TooFar, &frame, 8));
        }
        // That is as many as may pass in a second.
        for (port, ttl) in [(5, 3), (6, 4), (7, 57)] {
            let (client, far) = attempt(port, ttl);
            client.sends(far);
            client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        }
        assert_eq!(world.happened(Event::Expiring), 2);
        Transfer::new(&client, &server, j).closes_from_the_client();
    }

    fn a_challenge_on_a_connection_that_passes_comes_from_as_far_as_the_end_it_speaks_for(world, client, server) {
        let terms = Terms::linux(world.mss());
        let (client, server) = (&client, &server);
        for (n, (opener, responder)) in [(server, client), (client, server)].into_iter().enumerate() {
            // From the WAN one passes that is signed.
            let signature: &[u8] = &[29, 4, 1, 1];
            let sign = |seg: Seg| if n == 0 { terms.on(seg, (1, 0)) } else { seg.mss(1460).raw(signature) };
            let plain = |seg: Seg| if n == 0 { seg.nop().nop().ts(2, 2) } else { seg.raw(signature) };
            opener.passes(sign(syn(100)));
            responder.passes(sign(syn_ack(900, 101)));
            opener.passes(plain(ack(101, 901)));
            let ttl = |host: &Host| host.ends().ttl;
            responder.sends(rst(901 + 50));
            responder.gets(ack(101, 901).any_window().any_options().ttl(ttl(opener)));
            world.after_secs(1);
            opener.sends(rst(101 + 50));
            opener.gets(ack(901, 101).any_window().any_options().ttl(ttl(responder)));
            opener.passes(rst(101));
            world.after_secs(50);
        }
    }

    fn a_reset_on_a_passed_connection_ends_it_only_by_its_exact_number(world, client, server) {
        let theirs = Terms::linux(world.mss());
        server.passes(theirs.on(syn(100), (1, 0)));
        client.passes(theirs.on(syn_ack(900, 101), (6, 1)));
        server.passes(ack(101, 901).nop().nop().ts(2, 6));
        // Passed for its receiver to challenge, challenged in its name, or dropped; but not believed.
        for seq in [902, 5000, 900_000_000, 0] {
            client.sends(rst(seq));
            let out = world.discard();
            assert!(out.len() <= 1);
            if let Some((Side::Wan, frame)) = out.first() {
                let got = read(frame, world.now()).unwrap();
                assert_eq!((got.flags, got.seq, got.ack), (ACK, 101, 901), "a challenge");
            }
        }
        for _ in 0..3 {
            world.after_secs(60);
            server.passes(data(101, 901, 0).nop().nop().ts(3, 6));
        }
        world.has_flows(0, 1);
        client.passes(rst(901));
        world.after_secs(60);
        world.has_flows(0, 0);
    }

    fn a_window_that_closes_as_it_fills_lets_its_data_through(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let j = open(&client, &server, theirs, theirs);
        // The server grants 4 MB, and takes nothing: its right edge stands still while its window shrinks to nothing.
        server.sends(ack(j.s(0), j.c(0)).window(32_768).ts(SERVER_TS, CLIENT_TS + 1));
        client.gets(ack(j.o(0), j.c(0)).window(32_768).ts(j.ts_out(SERVER_TS), CLIENT_TS + 1));
        let (mut sent, total) = (0, 32_768 << 7);
        while sent < total {
            let seg = |acked, echo| ack(j.c(sent), acked).ts(CLIENT_TS + 2, echo).payload(1024);
            client.sends(seg(j.o(0), j.ts_out(SERVER_TS)));
            server.gets(seg(j.s(0), SERVER_TS));
            sent += 1024;
            if sent % (64 * 1024) == 0 {
                // The acknowledgement comes half a window late.
                let acked = sent / 2;
                let field = ((total - acked) >> 7) as u16;
                server.sends(ack(j.s(0), j.c(acked)).window(field).ts(SERVER_TS, CLIENT_TS + 2));
                client.gets(ack(j.o(0), j.c(acked)).window(field).ts(j.ts_out(SERVER_TS), CLIENT_TS + 2));
            }
        }
        // A probe of the shut window, one byte beyond it, and its answer.
        server.sends(ack(j.s(0), j.c(total)).window(0).ts(SERVER_TS, CLIENT_TS + 2));
        client.gets(ack(j.o(0), j.c(total)).window(0).ts(j.ts_out(SERVER_TS), CLIENT_TS + 2));
        client.sends(ack(j.c(total), j.o(0)).ts(CLIENT_TS + 3, j.ts_out(SERVER_TS)).payload(1));
        server.gets(ack(j.c(total), j.s(0)).ts(CLIENT_TS + 3, SERVER_TS).payload(1));
    }

    fn our_timestamps_may_wrap_within_a_handshake(world, client, server) {
        let theirs = Terms::linux(world.mss());
        // They count microseconds: to the last second before the wrap.
        let micros = world.now().as_micros();
        let wrap = ((micros >> 32) + 1) << 32;
        world.after(Duration::from_micros(wrap - micros - 500_000));
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        world.after_ms(300);
        let stamp = offered.ts().unwrap().0;
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, stamp));
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        world.after_ms(400);
        let j = answer(&client, &server, theirs, CLIENT_ISN, SERVER_ISN, offered, server_syn);
        let ahead = j.update.ts().unwrap().0.wrapping_sub(stamp);
        assert!((1..1 << 31).contains(&ahead), "timestamps must not run backward: {stamp}, then {} more", ahead as i32);
        // Sent before the update came, it echoes what the box made up.
        client.sends(data(j.c(0), j.o(0), 5).ts(CLIENT_TS + 2, stamp));
        server.gets(data(j.c(0), j.s(0), 5).ts(CLIENT_TS + 2, SERVER_TS));
        let mut transfer = Transfer::new(&client, &server, j);
        transfer.client(PSH, 5);
        transfer.closes_from_the_server();
    }

    fn timers_outlive_the_wrap_of_their_ticks(world, client, server) {
        // A tick is 1024 microseconds, 2^32 of them 50 days.
        let wrap = 1_u64 << 42;
        world.after(Duration::from_micros(wrap - world.now().as_micros()) - Duration::from_secs(60));
        let mut transfer = linux(&world, &client, &server);
        transfer.client(PSH, 10);
        let (other, other_server) = world.on_port(1);
        linux(&world, &other, &other_server).closes_from_the_client_after(|| world.after_secs(30));
        world.after_secs(119);
        world.has_flows(2, 0);
        world.after_secs(4);
        world.has_flows(1, 0);
        transfer.server(PSH, 10);
        transfer.client(FIN, 0);
        transfer.server(FIN, 0);
        transfer.client(0, 0);
        world.after_secs(124);
        world.has_flows(0, 0);
    }
}

#[test]
fn a_thousand_flows_may_end_at_once() {
    for mode in [Mode::V4, Mode::V6] {
        let (world, _, _) = mode.world_with(|config| config.table_buckets = 512);
        for port in 0..3000 {
            let (_, server) = world.on_port(1000 + port);
            server.passes(Terms::linux(mode.mss()).on(syn(100), (1, 0)));
        }
        world.has_flows(0, 3000);
        world.after_secs(239);
        world.has_flows(0, 3000);
        world.after_secs(3);
        world.has_flows(0, 0);
        assert_eq!(world.happened(Event::Expired), 3000);
    }
}

#[test]
fn nothing_on_a_packets_way_writes_a_line() {
    // One line a packet is an attack on the log; what happens to packets is counted.
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let parts =
        ["worker.rs", "egress.rs", "engine.rs", "handoff.rs", "hold_buffer.rs", "load.rs", "polling.rs", "shedding.rs"];
    let mut files: Vec<_> = parts.map(|name| root.join("synproxy/src/dataplane").join(name)).into();
    let ports =
        ["frame.rs", "memory.rs", "packet.rs", "offload.rs", "packet/ring.rs", "pool.rs", "shed.rs", "xdp/port.rs"];
    files.extend(ports.map(|name| root.join("pktio/src").join(name)));
    let mut rooms = vec![root.join("tcpstate/src")];
    while let Some(room) = rooms.pop() {
        for entry in std::fs::read_dir(room).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                rooms.push(path);
            } else if !path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("_tests")) {
                files.push(path);
            }
        }
    }
    assert!(files.len() > 30, "only {} files", files.len());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for writer in ["println!", "eprintln!", "print!", "dbg!", "trace!", "debug!", "info!", "warn!", "error!"] {
            // Only where the name stands alone: `tracing::warn!` does, `forewarn!` does not.
            let found = code.match_indices(writer).any(|(at, _)| !code[..at].ends_with(char::is_alphanumeric));
            assert!(!found, "{} writes with {writer}", file.display());
        }
    }
}
