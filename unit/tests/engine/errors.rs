//! What belongs to a connection without being a segment of it: ICMP errors, which must quote numbers their receiver knows, and
//! fragments, which must not become a way around the box.

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;
use tcpstate::config::{Action, Handshake};
use tcpstate::{DropReason, Event, Side, Verdict};
use unit::in_every_mode;
use unit::script::*;

/// A connection whose halves differ in everything that is translated: numbers, clocks and scales.
fn unlike(world: &World, client: &Host, server: &Host) -> Joined {
    let theirs = Terms::linux(world.mss());
    open(client, server, theirs, Terms { wscale: Some(3), ..theirs })
}

/// The ends of what a router on `host`'s side sends across the box.
fn router(host: &Host) -> FlowKey {
    let address: IpAddr = match host.ends().src {
        IpAddr::V4(_) => "198.51.100.77".parse().unwrap(),
        IpAddr::V6(_) => "2001:db8:77::1".parse().unwrap(),
    };
    FlowKey { src: address, ttl: 200, ..host.ends() }
}

/// The error a router on `host`'s side sends about a frame that came out there, quoting so many bytes of TCP.
fn about(world: &World, host: &Host, complaint: Complaint, frame: &[u8], quoted: usize) -> Vec<u8> {
    icmp_error(&router(host), world.mode().tags, complaint, frame, quoted)
}

/// The first bytes of the packet in `frame`: its IP header and so many bytes of TCP.
fn beginning(frame: &[u8], quoted: usize) -> &[u8] {
    let packet = packet_of(frame);
    &packet[..(tcp_at(packet) + quoted).min(packet.len())]
}

/// Lengths of a quote that end between two fields. (A checksum covers more than a short quote shows, and the two cannot be distinguished.)
const WHOLE_FIELDS: [usize; 7] = [8, 12, 14, 16, 32, 33, 9999];
/// Lengths that cut one.
const CUT_FIELDS: [usize; 10] = [9, 11, 13, 15, 17, 18, 20, 25, 29, 31];

in_every_mode! {
    fn an_error_about_the_server_s_segment_speaks_of_the_server_s_numbers(world, client, server) {
        let j = unlike(&world, &client, &server);
        let sent = server.frame(&data(j.s(0), j.c(0), 501).window(4800).nop().nop().ts(SERVER_TS + 1, CLIENT_TS + 1));
        server.sends(sent.clone());
        let seen = client.gets(data(j.o(0), j.c(0), 501).window(300).ts(j.ts_out(SERVER_TS + 1), CLIENT_TS + 1)).frame;
        for complaint in [Complaint::TooBig(1300), Complaint::TooFar, Complaint::HostUnreachable, Complaint::Parameter(0)] {
            for quoted in WHOLE_FIELDS {
                client.sends(about(&world, &client, complaint, &seen, quoted));
                let got = server.gets(an_error(complaint));
                client.gets(nothing());
                assert_eq!(got.quote, beginning(&sent, quoted), "{quoted} bytes of its own segment, as it sent them");
                assert_eq!((got.addresses.0, got.ttl), (router(&client).src, 200));
            }
        }
        for quoted in CUT_FIELDS {
            client.sends(about(&world, &client, Complaint::TooBig(1300), &seen, quoted));
            let got = server.gets(an_error(Complaint::TooBig(1300)));
            assert_eq!((got.seq(), got.tcp().len()), (j.s(0), quoted));
        }
        assert_eq!(world.happened(Event::IcmpTranslated), 4 * WHOLE_FIELDS.len() as u64 + CUT_FIELDS.len() as u64);
    }

    fn an_error_about_the_client_s_segment_speaks_of_the_client_s_numbers(world, client, server) {
        let j = unlike(&world, &client, &server);
        let outer = [(j.o(100), j.o(200)), (j.o(300), j.o(400))];
        let inner = [(j.s(100), j.s(200)), (j.s(300), j.s(400))];
        let echo = j.ts_out(SERVER_TS);
        let sent = client.frame(&data(j.c(0), j.o(0), 333).nop().nop().ts(CLIENT_TS + 2, echo).nop().nop().sack(&outer));
        client.sends(sent.clone());
        let seen = server.gets(data(j.c(0), j.s(0), 333).ts(CLIENT_TS + 2, SERVER_TS).sack(&inner)).frame;
        for complaint in [Complaint::TooBig(1300), Complaint::TooFar, Complaint::HostUnreachable, Complaint::PortUnreachable] {
            for quoted in [8, 12, 14, 16, 52, 53, 9999] {
                server.sends(about(&world, &server, complaint, &seen, quoted));
                let got = client.gets(an_error(complaint));
                server.gets(nothing());
                assert_eq!(got.quote, beginning(&sent, quoted), "{quoted} bytes of its own segment, as it sent them");
            }
        }
        for quoted in CUT_FIELDS {
            server.sends(about(&world, &server, Complaint::TooBig(1300), &seen, quoted));
            assert_eq!(client.gets(an_error(Complaint::TooBig(1300))).seq(), j.c(0));
        }
    }

    fn an_echo_in_a_quote_is_led_back_whatever_the_server_s_clock_shows(world, client, server) {
        for (port, clock) in (3000..).zip([1, 0x4000_0000, 0x8000_0000, 0xC000_0000]) {
            let (client, server) = world.on_port(port);
            let (offered, server_syn) = prove(&world, &client, &server);
            let answer = Terms::linux(world.mss()).on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (clock, server_syn.ts().unwrap().0));
            server.sends(answer);
            let update = client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
            world.tick(Duration::from_secs(1));
            world.discard();
            let sent = client.frame(&data(CLIENT_ISN + 1, update.seq, 9).nop().nop().ts(CLIENT_TS + 2, update.ts().unwrap().0));
            client.sends(sent.clone());
            let seen = server.gets(data(CLIENT_ISN + 1, SERVER_ISN + 1, 9).ts(CLIENT_TS + 2, clock)).frame;
            server.sends(about(&world, &server, Complaint::TooBig(1300), &seen, 9999));
            assert_eq!(client.gets(an_error(Complaint::TooBig(1300))).quote, packet_of(&sent), "clock {clock:#x}");
        }
        let _ = (client, server);
    }

    fn a_whole_quote_of_odd_length_keeps_its_checksum(world, client, server) {
        let mut transfer = Transfer::new(&client, &server, unlike(&world, &client, &server));
        for len in 1..12 {
            let j = transfer.joined.clone();
            let at = transfer.server_sent;
            let sent = server.frame(&data(j.s(at), j.c(0), len).window(4800).nop().nop().ts(SERVER_TS + 2, CLIENT_TS + 2));
            server.sends(sent.clone());
            let seen = client.gets(data(j.o(at), j.c(0), len).any_window().ts(j.ts_out(SERVER_TS + 2), CLIENT_TS + 2)).frame;
            transfer.server_sent += len as u32;
            client.sends(about(&world, &client, Complaint::TooBig(1400), &seen, 9999));
            let got = server.gets(an_error(Complaint::TooBig(1400)));
            assert!(got.quoted_checksum_holds());
            assert_eq!(got.quote, packet_of(&sent));
        }
    }

    fn an_error_must_quote_what_is_in_flight(world, client, server) {
        let j = unlike(&world, &client, &server);
        server.sends(data(j.s(0), j.c(0), 1000).nop().nop().ts(SERVER_TS + 1, CLIENT_TS + 1));
        client.gets(data(j.o(0), j.c(0), 1000).any_window().ts(j.ts_out(SERVER_TS + 1), CLIENT_TS + 1));
        client.sends(data(j.c(0), j.o(400), 200).nop().nop().ts(CLIENT_TS + 2, j.ts_out(SERVER_TS + 1)));
        server.gets(data(j.c(0), j.s(400), 200).any_window().ts(CLIENT_TS + 2, SERVER_TS + 1));
        let servers = |n: u32| about(&world, &client, Complaint::TooBig(600), &reversed(&client, j.o(n), j.c(0)), 8);
        let clients = |n: u32| about(&world, &server, Complaint::TooBig(600), &reversed(&server, j.c(n), j.s(0)), 8);
        for n in [400, 401, 999, 1000] {
            client.sends(servers(n));
            assert_eq!(server.gets(an_error(Complaint::TooBig(600))).seq(), j.s(n));
        }
        for n in [399, 1001, 0, 5000, 1 << 31] {
            client.sends_in_vain(servers(n), DropReason::IcmpNotInFlight);
        }
        for n in [0, 1, 200] {
            server.sends(clients(n));
            assert_eq!(client.gets(an_error(Complaint::TooBig(600))).seq(), j.c(n));
        }
        for n in [u32::MAX, 201, 400, 1 << 31] {
            server.sends_in_vain(clients(n), DropReason::IcmpNotInFlight);
        }
        // The server's own numbers mean nothing on the WAN.
        let seen = reversed(&client, j.s(500), j.c(0));
        client.sends_in_vain(about(&world, &client, Complaint::TooBig(600), &seen, 8), DropReason::IcmpNotInFlight);
    }

    fn a_damaged_error_is_dropped(world, client, server) {
        let j = unlike(&world, &client, &server);
        for host in [&client, &server] {
            let (seq, ack_no) = if host.side() == Side::Wan { (j.o(0), j.c(0)) } else { (j.c(0), j.s(0)) };
            let good = about(&world, host, Complaint::TooBig(600), &reversed(host, seq, ack_no), 20);
            let ip = 14 + 4 * world.mode().tags;
            let mtu = ip + if world.mode().family == Family::V4 { 27 } else { 47 };
            for at in [mtu, good.len() - 1] {
                let mut bad = good.clone();
                bad[at] ^= 0x40;
                host.sends_in_vain(bad, DropReason::BadChecksum);
            }
            if world.mode().family == Family::V4 {
                let mut bad = good.clone();
                bad[ip + 10] ^= 1;
                host.sends_in_vain(bad, DropReason::BadChecksum);
            }
            host.sends(good);
            assert_eq!(world.discard().len(), 1);
        }
    }

    fn an_error_of_which_only_the_head_is_in_sight_is_patched_all_the_same(world, client, server) {
        let j = unlike(&world, &client, &server);
        let sent = server.frame(&data(j.s(0), j.c(0), 500).window(4800).nop().nop().ts(SERVER_TS + 1, CLIENT_TS + 1));
        server.sends(sent.clone());
        let seen = client.gets(data(j.o(0), j.c(0), 500).any_window().ts(j.ts_out(SERVER_TS + 1), CLIENT_TS + 1)).frame;
        world.first_buffer_holds(190);
        client.sends(about(&world, &client, Complaint::TooBig(600), &seen, 450));
        assert_eq!(server.gets(an_error(Complaint::TooBig(600))).quote, beginning(&sent, 450));
    }

    fn errors_and_quotes_with_options_and_extension_headers_are_read(world, client, server) {
        let j = unlike(&world, &client, &server);
        let plain = data(j.s(0), j.c(0), 100).window(4800).nop().nop().ts(SERVER_TS + 1, CLIENT_TS + 1);
        let seg = match world.mode().family {
            Family::V4 => plain.ip_options(&[7, 7, 4, 0, 0, 0, 0, 0]),
            Family::V6 => plain.behind(&[Extension::HopByHop, Extension::Destination, Extension::Fragment(0, false)]),
        };
        let sent = server.frame(&seg);
        server.sends(sent.clone());
        let seen = client.gets(anything()).frame;
        let outer: &[u8] = match world.mode().family {
            Family::V4 => &[1, 1, 1, 1],
            Family::V6 => &[58, 0, 1, 4, 0, 0, 0, 0],
        };
        let error = icmp_error_raw(&router(&client), world.mode().tags, Complaint::TooFar, packet_of(&seen), outer);
        client.sends(error);
        assert_eq!(server.gets(an_error(Complaint::TooFar)).quote, packet_of(&sent));
    }

    fn what_follows_the_quote_is_not_taken_for_it(world, client, server) {
        use Extension::{Destination, HopByHop, Routing};
        let j = unlike(&world, &client, &server);
        // RFC 4884: 128 bytes of the packet, then an extension. In IPv6 the quote ends in the middle of the timestamp.
        let plain = data(j.s(0), j.c(0), 100).window(4800).raw(&[1; 16]).ts(SERVER_TS + 1, CLIENT_TS + 1);
        let (seg, length_at, length) = match world.mode().family {
            Family::V4 => (plain, 5, 32),
            Family::V6 => (plain.behind(&[HopByHop, Destination, Destination, Routing]), 4, 16),
        };
        let sent = server.frame(&seg);
        server.sends(sent.clone());
        let seen = client.gets(anything()).frame;
        let extension = [0x20, 0, 0xAB, 0xCD, 0, 8, 1, 1, 0x12, 0x34, 0x56, 0x78];
        let quote = [&packet_of(&seen)[..128], &extension].concat();
        let mut error = icmp_error_raw(&router(&client), world.mode().tags, Complaint::TooFar, &quote, &[]);
        let icmp = error.len() - quote.len() - 8;
        error[icmp + length_at] = length;
        seal_error(&mut error);
        client.sends(error);
        let out = world.discard().remove(0).1;
        let (quoted, rest) = out[out.len() - 140..].split_at(128);
        assert_eq!(rest, extension);
        match world.mode().family {
            Family::V4 => assert_eq!(quoted, &packet_of(&sent)[..128]),
            Family::V6 => assert_eq!(quoted[..104], packet_of(&sent)[..104]),
        }
    }

    fn an_error_about_nothing_we_know_passes_by_default(world, client, server) {
        let j = unlike(&world, &client, &server);
        let (other, _) = world.on_port(999);
        let strange = about(&world, &client, Complaint::TooBig(600), &reversed(&other, 1, 2), 8);
        client.passes(strange);
        // Too little of TCP.
        client.passes(about(&world, &client, Complaint::TooBig(600), &reversed(&client, j.o(0), j.c(0)), 7));
        // Not for whom it is about.
        let (elsewhere, _) = world.pair_to(0, 1, CLIENT_PORT, 11);
        client.passes(icmp_error(&router(&elsewhere), world.mode().tags, Complaint::TooFar, &reversed(&client, j.o(0), j.c(0)), 20));
        // A later fragment, whose bytes are anything but a header.
        let whole = reversed(&client, j.o(0), j.c(0));
        let later = match world.mode().family {
            Family::V4 => fragment(&whole, 9, 8..20, false),
            Family::V6 => fragment(&whole, 9, 8..20, false),
        };
        client.passes(icmp_error_raw(&router(&client), world.mode().tags, Complaint::TooFar, packet_of(&later), &[]));
        assert_eq!(world.happened(Event::IcmpUnmatched), 4);
        assert_eq!(world.happened(Event::IcmpTranslated), 0);
    }

    fn an_error_in_fragments_passes_as_it_is(world, client, server) {
        let j = unlike(&world, &client, &server);
        let error = about(&world, &client, Complaint::TooBig(600), &reversed(&client, j.o(0), j.c(0)), 20);
        client.passes(fragment(&error, 3, 0..48, true));
        client.passes(fragment(&error, 3, 512..520, false));
        assert_eq!(world.happened(Event::IcmpTranslated), 0);
    }

    fn other_messages_pass_as_they_are(world, client, server) {
        let j = unlike(&world, &client, &server);
        let good = about(&world, &client, Complaint::TooBig(600), &reversed(&client, j.o(0), j.c(0)), 20);
        let icmp = 14 + 4 * world.mode().tags + if world.mode().family == Family::V4 { 20 } else { 40 };
        for kind in [0, 5, 8, 13, 100, 128, 129, 133, 135, 137, 255] {
            let mut other = good.clone();
            other[icmp] = kind;
            client.passes(other);
        }
        // And errors about other protocols.
        let mut other = good.clone();
        let protocol = icmp + 8 + if world.mode().family == Family::V4 { 9 } else { 6 };
        for number in [0, 1, 17, 58, 59, 132] {
            other[protocol] = number;
            seal_error(&mut other);
            client.passes(other.clone());
        }
        // And what is no message at all.
        let short = match world.mode().family {
            Family::V4 => icmp_error_raw(&router(&client), world.mode().tags, Complaint::TooFar, &[], &[]),
            Family::V6 => icmp_error_raw(&router(&client), world.mode().tags, Complaint::TooFar, &[0x60], &[]),
        };
        client.passes(short);
        assert_eq!(world.happened(Event::Bridged), 18);
    }

    fn the_client_of_an_unreachable_server_gets_the_error_and_a_reset(world, client, server) {
        for (port, complaint) in (2000..).zip([
            Complaint::HostUnreachable,
            Complaint::PortUnreachable,
            Complaint::TooFar,
            Complaint::Parameter(1),
        ]) {
            let (client, server) = world.on_port(port);
            let (offered, server_syn) = prove(&world, &client, &server);
            // An attacker guesses; and what a SYN cannot provoke is no answer to it.
            let forged = reversed(&server, CLIENT_ISN + 1, 0);
            server.sends_in_vain(about(&world, &server, complaint, &forged, 8), DropReason::IcmpNotInFlight);
            server.sends_in_vain(about(&world, &server, Complaint::TooBig(600), &server_syn.frame, 8), DropReason::IcmpUnmatched);
            world.has_flows(1, 0);
            server.sends(about(&world, &server, complaint, &server_syn.frame, 8));
            let told = client.gets(an_error(complaint));
            assert_eq!(told.seq(), CLIENT_ISN + 1, "a number the client has in flight");
            client.gets(rst(offered.seq + 1));
            server.gets(rst(CLIENT_ISN + 1));
            world.has_flows(0, 0);
        }
        let _ = (client, server);
    }

    fn a_whole_quoted_syn_keeps_its_checksum_too(world, client, server) {
        let (_, server_syn) = prove(&world, &client, &server);
        server.sends(about(&world, &server, Complaint::HostUnreachable, &server_syn.frame, 9999));
        assert!(client.gets(an_error(Complaint::HostUnreachable)).quoted_checksum_holds());
        world.discard();
    }

    fn an_error_about_our_own_answer_reaches_neither_end(world, client, server) {
        client.sends(Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        let error = about(&world, &client, Complaint::HostUnreachable, &offered.frame, 8);
        if world.mode().cache {
            // As a host would, the box gives the client up; its acknowledgement opens the cookie all the same.
            client.sends_in_vain(about(&world, &client, Complaint::HostUnreachable, &reversed(&client, 79, 0), 8), DropReason::IcmpNotInFlight);
            client.sends_in_vain(about(&world, &client, Complaint::TooBig(1300), &offered.frame, 8), DropReason::IcmpUnmatched);
            assert_eq!(world.population().syn_cached, 1);
            client.sends_in_vain(error, DropReason::Consumed);
            assert_eq!(world.population().syn_cached, 0);
        } else {
            // Without a cache the box keeps no record; the server has sent no such segment, and ignores it.
            client.passes(error);
        }
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        // Nor does one about it while the server has not answered the SYN.
        let error = about(&world, &client, Complaint::HostUnreachable, &offered.frame, 8);
        client.sends_in_vain(error, DropReason::IcmpUnmatched);
        world.has_flows(1, 0);
    }

    fn an_error_about_a_connection_from_the_lan_passes_as_it_is(world, client, server) {
        let sent = server.frame(&Terms::linux(world.mss()).on(syn(77), (1, 0)));
        server.passes(sent.clone());
        client.passes(about(&world, &client, Complaint::HostUnreachable, &sent, 8));
        // The ends of a connection that the box has not negotiated judge for themselves.
        client.passes(about(&world, &client, Complaint::HostUnreachable, &reversed(&client, 79, 0), 8));
        let answer = client.frame(&Terms::linux(world.mss()).on(syn_ack(900, 78), (2, 1)));
        client.passes(answer.clone());
        server.passes(about(&world, &server, Complaint::TooFar, &answer, 20));
        server.passes(server.frame(&ack(78, 901).nop().nop().ts(2, 2)));
        let segment = server.frame(&data(78, 901, 100).nop().nop().ts(3, 2));
        server.passes(segment.clone());
        for quoted in [8, 20, 9999] {
            client.passes(about(&world, &client, Complaint::TooBig(600), &segment, quoted));
        }
        for seq in [77, 179, 1 << 31] {
            client.passes(about(&world, &client, Complaint::TooBig(600), &reversed(&client, seq, 901), 8));
        }
        if world.mode().family == Family::V4 {
            client.passes(about(&world, &client, Complaint::Quench, &segment, 8));
        }
        assert_eq!(world.happened(Event::IcmpTranslated), 9 + u64::from(world.mode().family == Family::V4));
    }

    fn a_client_with_too_large_an_mss_gets_an_icmp_error(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let j = open(&client, &server, theirs, Terms { mss: Some(1200), ..theirs });
        let (header, mtu) = if world.mode().family == Family::V4 { (40, 1240) } else { (60, 1280) };
        let seg = |ack_no, echo, len| data(j.c(0), ack_no, len).nop().nop().ts(CLIENT_TS + 2, echo);
        let outer = |len| seg(j.o(0), j.ts_out(SERVER_TS), len);
        for (len, told) in [(1380, true), (usize::from(mtu) - header - 11, true), (usize::from(mtu) - header - 12, false)] {
            let sent = client.frame(&outer(len));
            client.sends(sent.clone());
            // What the LAN carries is not lost on it.
            server.gets(seg(j.s(0), SERVER_TS, len));
            if !told {
                client.gets(nothing());
                continue;
            }
            let got = client.gets(an_error(Complaint::TooBig(mtu)));
            assert_eq!((got.addresses.0, got.ttl), (server.ends().src, SERVER_TTL), "as from the server itself");
            assert_eq!(got.quote, packet_of(&sent)[..got.quote.len()]);
            assert!(got.frame.len() <= sent.len() && got.tcp().len() >= 32);
            // Once in a while is enough.
            client.sends(sent);
            server.gets(seg(j.s(0), SERVER_TS, len));
            client.gets(nothing());
            world.after_secs(1);
        }
        if world.mode().family == Family::V4 {
            let mut may_be_cut = client.frame(&outer(1380));
            may_be_cut[14 + 4 * world.mode().tags + 6] = 0;
            seal(&mut may_be_cut);
            client.sends(may_be_cut);
            server.gets(seg(j.s(0), SERVER_TS, 1380));
            client.gets(nothing());
        }
        // A number outside the window provokes a challenge and no error.
        client.sends(data(j.c(1 << 30), j.o(0), 1380).nop().nop().ts(CLIENT_TS + 3, j.ts_out(SERVER_TS)));
        client.gets(ack(j.o(0), j.c(0)).any_window().any_options());
        // One as it connected, and two about segments.
        assert_eq!(world.happened(Event::IcmpTooBig), 3);
        // The next client is offered the true one from the start.
        let (client, server) = world.on_port(4000);
        let j = open(&client, &server, theirs, Terms { mss: Some(1200), ..theirs });
        assert_eq!(j.offered.mss(), Some(1200));
    }

    fn a_large_segment_that_the_server_takes_causes_no_error(world, client, server) {
        let j = unlike(&world, &client, &server);
        client.sends(data(j.c(0), j.o(0), 1380).nop().nop().ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)));
        server.gets(data(j.c(0), j.s(0), 1380).ts(CLIENT_TS + 2, SERVER_TS));
        client.gets(nothing());
    }

    fn an_mtu_for_a_server_without_timestamps_leaves_room_for_them(world, client, server) {
        let theirs = Terms::linux(world.mss());
        let j = open(&client, &server, theirs, Terms { ts: false, ..theirs });
        let header = if world.mode().family == Family::V4 { 40 } else { 60 };
        let least = if world.mode().family == Family::V4 { 68 } else { 1280 };
        server.sends(data(j.s(0), j.c(0), 1300));
        let seen = client.gets(data(j.o(0), j.c(0), 1300).any_window().ts(ANY, ANY)).frame;
        for (mtu, told) in [(1400, 1388), (1293, 1281), (1292, 1280)] {
            client.sends(about(&world, &client, Complaint::TooBig(mtu), &seen, 8));
            let got = server.gets(an_error(Complaint::TooBig(told)));
            assert_eq!(got.seq(), j.s(0));
            // What the server makes of it is as long as the MTU allows, not longer.
            server.sends(data(j.s(0), j.c(0), usize::from(told) - header));
            let out = client.gets(data(j.o(0), j.c(0), usize::from(told) - header).any_window().ts(ANY, ANY)).frame;
            assert_eq!(packet_of(&out).len(), usize::from(mtu));
        }
        // Where it can go no lower, the clock stays away instead.
        client.sends(about(&world, &client, Complaint::TooBig(least), &seen, 8));
        server.gets(an_error(Complaint::TooBig(least)));
        let len = usize::from(least) - header;
        server.sends(data(j.s(0), j.c(0), len));
        client.gets(data(j.o(0), j.c(0), len).any_window());
        // An old router says nothing of its MTU.
        client.sends(about(&world, &client, Complaint::TooBig(0), &seen, 8));
        server.gets(an_error(Complaint::TooBig(0)));
    }
}

/// A connection that waits for its server's answer: what the client was offered, and the SYN the server got.
fn prove(world: &World, client: &Host, server: &Host) -> (Got, Got) {
    client.sends(Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
    let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
    client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0));
    let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
    (offered, server_syn)
}

/// A frame of ten bytes as `host`'s peer would have sent it to `host`, numbers as on `host`'s side.
fn reversed(host: &Host, seq: u32, ack_no: u32) -> Vec<u8> {
    let FlowKey { src, dst, sport, dport, src_mac, dst_mac, .. } = host.ends();
    let ends =
        FlowKey { src: dst, dst: src, sport: dport, dport: sport, src_mac: dst_mac, dst_mac: src_mac, ttl: SERVER_TTL };
    build(&ends, 0, &data(seq, ack_no, 10))
}

#[test]
fn source_quench_ends_at_the_box() {
    for mode in Mode::ALL.into_iter().filter(|mode| mode.family == Family::V4) {
        let (world, client, server) = mode.world();
        let j = unlike(&world, &client, &server);
        for (host, seq) in [(&client, j.o(0)), (&server, j.c(0))] {
            let quench = about(&world, host, Complaint::Quench, &reversed(host, seq, 1), 8);
            host.sends_in_vain(quench, DropReason::SourceQuench);
        }
    }
}

#[test]
fn data_held_for_an_unreachable_server_is_dropped_with_the_connection() {
    for mode in Mode::ALL {
        let (world, client, server) = mode.world_with(|config| config.handshake = Handshake::Early);
        client.sends(Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        let proof = data(CLIENT_ISN + 1, offered.seq + 1, 100).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0);
        client.sends(proof);
        let server_syn = server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        assert_eq!(world.happened(Event::Held), 1);
        // The SYN may have been repeated at once.
        world.discard();
        server.sends(about(&world, &server, Complaint::HostUnreachable, &server_syn.frame, 8));
        assert_eq!(client.gets(an_error(Complaint::HostUnreachable)).seq(), CLIENT_ISN + 1);
        client.gets(rst(offered.seq + 1));
        server.gets(rst(CLIENT_ISN + 1));
        assert_eq!((world.dropped(DropReason::NotHeld), world.happened(Event::Released)), (1, 0));
        world.has_flows(0, 0);
    }
}

#[test]
fn errors_about_nothing_we_know_are_dropped_where_the_operator_wants_it() {
    for mode in Mode::ALL {
        let (world, client, server) = mode.world_with(|config| config.icmp_errors = Action::Drop);
        for host in [&client, &server] {
            let error = about(&world, host, Complaint::HostUnreachable, &reversed(host, 1, 2), 20);
            host.sends_in_vain(error, DropReason::IcmpUnmatched);
        }
        let j = unlike(&world, &client, &server);
        client.sends(about(&world, &client, Complaint::TooFar, &reversed(&client, j.o(0), j.c(0)), 8));
        server.gets(an_error(Complaint::TooFar));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever an error quotes, it is dropped or comes out an error with right checksums, and if the whole segment is quoted
    /// with a right checksum, that too.
    #[test]
    fn any_quote_is_translated_with_its_checksums(
        mode in 0..Mode::ALL.len(), from_client in any::<bool>(), offset in 0u32..3, kind in 0u8..14, code in 0u8..6, rest in any::<u32>(),
        flags in 0u16..0x200, window in any::<u16>(), options in prop::collection::vec(any::<u8>(), 0..=10),
        sack in any::<bool>(), stamps in prop::option::of(any::<(u32, u32)>()), len in 0usize..40, quoted in 8usize..110,
        flips in prop::collection::vec((0usize..120, any::<u8>()), 0..3), seen in 60usize..200,
    ) {
        let (world, client, server) = Mode::ALL[mode].world();
        let j = unlike(&world, &client, &server);
        let host = if from_client { &client } else { &server };
        let (seq, ack_no) = if from_client { (j.o(offset), j.c(0)) } else { (j.c(offset), j.s(0)) };
        let mut seg = segment(flags, seq, ack_no).window(window).payload(len).maybe_ts(stamps);
        if sack {
            seg = seg.sack(&[(ack_no.wrapping_add(9), ack_no.wrapping_add(19))]);
        }
        let FlowKey { src, dst, sport, dport, .. } = host.ends();
        let ends = FlowKey { src: dst, dst: src, sport: dport, dport: sport, ..host.ends() };
        let whole = build(&ends, 0, &seg.raw(&options));
        let mut error = about(&world, host, Complaint::TooFar, &whole, quoted);
        let icmp = 14 + 4 * world.mode().tags + if world.mode().family == Family::V4 { 20 } else { 40 };
        error[icmp] = kind;
        error[icmp + 1] = code;
        error[icmp + 4..icmp + 8].copy_from_slice(&rest.to_be_bytes());
        for (at, bits) in &flips {
            let at = icmp + 8 + at;
            if at < error.len() {
                error[at] ^= bits;
            }
        }
        seal_error(&mut error);
        world.first_buffer_holds(seen);
        let verdict = world.inject(host.side(), &error);
        for (side, frame) in world.discard() {
            prop_assert_eq!((side, verdict), (host.side().other(), Verdict::Forward));
            let mut sealed = frame.clone();
            seal_error(&mut sealed);
            prop_assert!(frame == sealed, "the sum over all of it is {:02x?}, not {:02x?}", sealed, frame);
        }
    }
}

// ---- fragments ----

/// The TCP bytes of two fragments put together, in the frame of the first; without any fragment header.
fn put_together(first: &[u8], rest: &[&[u8]]) -> Vec<u8> {
    let packet = packet_of(first);
    let is_v4 = packet[0] >> 4 == 4;
    let body = |frame: &[u8]| packet_of(frame)[if is_v4 { 20 } else { 48 }..].to_vec();
    let mut out = first[..first.len() - packet.len()].to_vec();
    let at = out.len();
    let whole: Vec<u8> = std::iter::once(first).chain(rest.iter().copied()).flat_map(body).collect();
    if is_v4 {
        out.extend(&packet[..20]);
        out[at + 2..at + 4].copy_from_slice(&(20 + whole.len() as u16).to_be_bytes());
        out[at + 6..at + 8].fill(0);
        out.extend(whole);
        let header: u32 = (0..10).map(|n| u32::from(u16::from_be_bytes([out[at + 2 * n], out[at + 2 * n + 1]]))).sum();
        let header = header - u32::from(u16::from_be_bytes([out[at + 10], out[at + 11]]));
        let folded = (header & 0xFFFF) + (header >> 16);
        let check = !(((folded & 0xFFFF) + (folded >> 16)) as u16);
        out[at + 10..at + 12].copy_from_slice(&check.to_be_bytes());
    } else {
        out.extend(&packet[..40]);
        out[at + 4..at + 6].copy_from_slice(&(whole.len() as u16).to_be_bytes());
        out[at + 6] = packet[40];
        out.extend(whole);
    }
    out
}

/// Later fragments of TCP begin here at the earliest.
fn floor(world: &World) -> usize {
    if world.mode().family == Family::V4 { 64 } else { 512 }
}

/// A host's segment in three fragments.
fn in_three(world: &World, host: &Host, seg: &Seg, identification: u16) -> [Vec<u8>; 3] {
    let frame = host.frame(seg);
    let at = floor(world);
    [
        fragment(&frame, identification, 0..at, true),
        fragment(&frame, identification, at..at + 200, true),
        fragment(&frame, identification, at + 200..9999, false),
    ]
}

/// A world that drops fragments without beginning.
fn strict(mode: Mode) -> (World, Host, Host) {
    mode.world_with(|config| config.stray_fragments = Action::Drop)
}

#[test]
fn fragments_pass_behind_their_first() {
    for mode in Mode::ALL {
        let (world, client, server) = strict(mode);
        let j = unlike(&world, &client, &server);
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (sent, got) = if from.side() == Side::Wan {
                (data(j.c(0), j.o(0), 999).nop().nop().ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)), (j.c(0), j.s(0)))
            } else {
                (data(j.s(0), j.c(999), 999).nop().nop().ts(SERVER_TS + 2, CLIENT_TS + 2), (j.o(0), j.c(999)))
            };
            let [first, second, third] = in_three(&world, from, &sent, 0x4321);
            from.sends(first);
            let first = world.discard().remove(0).1;
            for later in [&third, &second] {
                from.passes(later.clone());
            }
            // What the other end puts together is one sound segment in its numbers.
            let whole = read(&put_together(&first, &[&second, &third]), world.now()).unwrap();
            assert_eq!((whole.seq, whole.ack, whole.checksums), (got.0, got.1, (true, true)));
            assert_eq!(whole.payload.len(), 999);
            to.gets(nothing());
        }
        assert_eq!((world.happened(Event::Fragment), world.happened(Event::StrayFragment)), (4, 0));
    }
}

#[test]
fn fragments_without_beginning_pass_from_the_lan_and_from_the_wan_by_policy() {
    for mode in Mode::ALL {
        for policy in [Action::Pass, Action::Drop] {
            let (world, client, server) = mode.world_with(|config| config.stray_fragments = policy);
            let [_, second, third] = in_three(&world, &client, &data(1, 2, 999), 1);
            for later in [second, third] {
                match policy {
                    Action::Pass => client.passes(later),
                    Action::Drop => client.sends_in_vain(later, DropReason::StrayFragment),
                }
            }
            let [_, second, _] = in_three(&world, &server, &data(1, 2, 999), 1);
            server.passes(second);
            assert_eq!(world.happened(Event::Fragment), 0);
            assert_eq!(world.happened(Event::StrayFragment), if policy == Action::Pass { 3 } else { 1 });
        }
    }
}

#[test]
fn a_fragment_belongs_to_one_packet_for_half_a_minute() {
    for mode in Mode::ALL {
        let (world, client, server) = strict(mode);
        let j = unlike(&world, &client, &server);
        let seg = data(j.c(0), j.o(0), 999).nop().nop().ts(CLIENT_TS + 2, j.ts_out(SERVER_TS));
        let [first, second, _] = in_three(&world, &client, &seg, 7);
        client.sends(first);
        world.discard();
        client.passes(second.clone());
        // Another number, another sender, another network.
        let [_, other, _] = in_three(&world, &client, &seg, 8);
        client.sends_in_vain(other, DropReason::StrayFragment);
        let (neighbour, _) = world.pair(0, 2, CLIENT_PORT);
        let [_, other, _] = in_three(&world, &neighbour, &seg, 7);
        client.sends_in_vain(other, DropReason::StrayFragment);
        if mode.tags > 0 {
            let mut other = second.clone();
            other[15] ^= 1;
            client.sends_in_vain(other, DropReason::StrayFragment);
        }
        world.after_secs(30);
        client.passes(second.clone());
        world.after_secs(30);
        client.sends_in_vain(second, DropReason::StrayFragment);
    }
}

#[test]
fn what_follows_a_fragment_that_did_not_pass_is_a_stray() {
    for mode in Mode::ALL {
        let (world, client, server) = strict(mode);
        let j = unlike(&world, &client, &server);
        let (fresh, _) = world.on_port(3000);
        let echo = j.ts_out(SERVER_TS);
        let firsts = [
            // A SYN, a wrong cookie, a reset, data far outside the window, and a client that sends a SYN over its own connection.
            (&fresh, Terms::linux(world.mss()).on(syn(1), (1, 0)).payload(999)),
            (&fresh, data(5, 6, 999)),
            (&client, rst(j.c(0)).payload(999)),
            (&client, data(j.c(1 << 30), j.o(0), 999).nop().nop().ts(CLIENT_TS + 2, echo)),
            (&client, Terms::linux(world.mss()).on(syn(1), (1, 0)).payload(999)),
        ];
        for (identification, (host, seg)) in (50..).zip(firsts) {
            let [first, second, third] = in_three(&world, host, &seg, identification);
            host.sends(first);
            let out = world.discard();
            assert!(out.iter().all(|(side, _)| *side == Side::Wan), "{seg} reaches the server");
            for later in [second, third] {
                host.sends_in_vain(later, DropReason::StrayFragment);
            }
        }
        server.gets(nothing());
    }
}

#[test]
fn what_follows_a_fragment_that_became_our_own_syn_is_a_stray() {
    for mode in Mode::ALL {
        let (world, client, server) = strict(mode);
        client.sends(Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        let proof = data(CLIENT_ISN + 1, offered.seq + 1, 999).nop().nop().ts(CLIENT_TS + 1, offered.ts().unwrap().0);
        let [first, second, _] = in_three(&world, &client, &proof, 9);
        client.sends(first);
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        client.sends_in_vain(second, DropReason::StrayFragment);
    }
}

in_every_mode! {
    fn no_fragment_reaches_into_a_tcp_header(world, client, server) {
        let j = unlike(&world, &client, &server);
        for host in [&client, &server] {
            let seg = if host.side() == Side::Wan {
                data(j.c(0), j.o(0), 900).nop().nop().ts(CLIENT_TS + 2, j.ts_out(SERVER_TS))
            } else {
                data(j.s(0), j.c(0), 900).nop().nop().ts(SERVER_TS + 2, CLIENT_TS + 2)
            };
            let whole = host.frame(&seg);
            // RFC 1858: tiny fragments, which split the header or leave only ports in the first.
            for len in [8, 16, 24] {
                host.sends_in_vain(fragment(&whole, 1, 0..len, true), DropReason::BadFragment);
            }
            // RFC 3128: a good first fragment, over which another one writes.
            host.sends(fragment(&whole, 2, 0..64, true));
            assert_eq!(world.discard().len(), 1);
            for at in (8..floor(&world)).step_by(8).filter(|at| world.mode().family == Family::V6 || *at < 60) {
                for more in [false, true] {
                    host.sends_in_vain(fragment(&whole, 2, at..at + 64, more), DropReason::BadFragment);
                }
            }
            // RFC 5722: nor by another first one, unless it is as good a segment.
            let other = host.frame(&syn(j.c(0)).payload(900));
            host.sends(fragment(&other, 2, 0..64, true));
            assert!(world.discard().iter().all(|(side, _)| *side == host.side()), "a SYN in fragments gets through");
        }
    }
}

#[test]
fn a_flipped_bit_makes_no_fragment() {
    for mode in Mode::ALL.into_iter().filter(|mode| mode.family == Family::V4) {
        let (world, client, server) = mode.world();
        let j = unlike(&world, &client, &server);
        let ip = 14 + 4 * mode.tags;
        for (host, seg) in [(&client, data(j.c(0), j.o(0), 900)), (&server, data(j.s(0), j.c(0), 900))] {
            // "More follow", and every bit of the offset.
            for bit in 0..14 {
                let mut frame = host.frame(&seg);
                frame[ip + 7 - bit / 8] ^= 1 << (bit % 8);
                host.sends_in_vain(frame, DropReason::BadChecksum);
            }
        }
    }
}

#[test]
fn an_ipv6_fragment_is_known_for_one_wherever_its_header_stands() {
    use Extension::{Authentication, Destination, Fragment, HopByHop, Mobility, Routing};
    for mode in Mode::ALL.into_iter().filter(|mode| mode.family == Family::V6) {
        let (world, client, server) = strict(mode);
        let chains = |piece| {
            [
                vec![piece],
                vec![HopByHop, piece],
                vec![HopByHop, Destination, Routing, piece],
                vec![piece, Destination],
                vec![Mobility, piece, Authentication],
                vec![Fragment(0, false), piece],
            ]
        };
        let seg = Terms::linux(1440).on(syn(CLIENT_ISN), (CLIENT_TS, 0)).payload(100);
        // Behind headers that say more than the box understands, a segment is not its business.
        let is_foreign = |chain: &[Extension]| chain.iter().any(|header| matches!(header, Mobility | Authentication));
        for (port, chain) in (1000..).zip(chains(Fragment(0, true))) {
            // A SYN in fragments cannot be verified.
            let (client, _) = world.on_port(port);
            if !is_foreign(&chain) {
                client.sends_in_vain(seg.clone().behind(&chain), DropReason::BadChecksum);
            }
        }
        for chain in chains(Fragment(504, false)) {
            client.sends_in_vain(seg.clone().behind(&chain), DropReason::BadFragment);
        }
        for chain in chains(Fragment(512, false)) {
            client.sends_in_vain(seg.clone().behind(&chain), DropReason::StrayFragment);
        }
        // RFC 6946: a packet in one piece, whatever its fragment header looks like.
        for (port, chain) in (2000..).zip(chains(Fragment(0, false))) {
            let (client, _) = world.on_port(port);
            let syn = Terms::linux(1440).on(syn(CLIENT_ISN), (CLIENT_TS, 0));
            if is_foreign(&chain) {
                client.passes(syn.behind(&chain));
                continue;
            }
            client.sends(syn.behind(&chain));
            client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        }
        // Pieces of pieces.
        for second in [Fragment(0, true), Fragment(0, false), Fragment(512, false)] {
            let chain = [Fragment(0, true), second];
            client.sends_in_vain(seg.clone().behind(&chain), DropReason::BadFragment);
        }
        assert_eq!(world.population().proxied, 0);
        server.gets(nothing());
        for chain in chains(Fragment(0, true)).into_iter().filter(|chain| is_foreign(chain)) {
            client.passes(seg.clone().behind(&chain));
        }
    }
}

#[test]
fn an_ipv6_chain_that_goes_on_in_the_next_fragment_is_dropped() {
    use Extension::{Authentication, Destination, HopByHop, Routing};
    for mode in Mode::ALL.into_iter().filter(|mode| mode.family == Family::V6) {
        let (_world, client, _server) = mode.world();
        // RFC 7112. Each header, and the segment's, cut in every possible place.
        let seg = syn(1).mss(1440);
        for header in [HopByHop, Destination, Routing, Authentication] {
            let whole = client.frame(&seg.clone().behind(&[header, Destination]));
            let len = packet_of(&whole).len() - 40;
            for cut in (8..len).step_by(8) {
                client.sends_in_vain(fragment(&whole, 3, 0..cut, true), DropReason::BadFragment);
            }
        }
    }
}

#[test]
fn what_a_later_ipv6_fragment_says_of_its_protocol_is_not_believed() {
    for mode in Mode::ALL.into_iter().filter(|mode| mode.family == Family::V6) {
        let (world, client, _server) = strict(mode);
        let next = 14 + 4 * mode.tags + 40;
        let whole = client.frame(&data(1, 2, 2000));
        for protocol in [0, 6, 17, 43, 58, 59, 60, 132, 255] {
            let mut overlap = fragment(&whole, 4, 16..400, true);
            overlap[next] = protocol;
            client.sends_in_vain(overlap, DropReason::BadFragment);
            let mut stray = fragment(&whole, 4, 800..1000, true);
            stray[next] = protocol;
            client.sends_in_vain(stray, DropReason::StrayFragment);
        }
        assert_eq!(world.happened(Event::Bridged), 0);
    }
}

#[test]
fn fragments_of_other_protocols_pass() {
    for mode in Mode::ALL {
        let (world, client, server) = strict(mode);
        let protocol = 14 + 4 * mode.tags + if mode.family == Family::V4 { 9 } else { 6 };
        for (identification, number) in (10..).zip([1, 17, 47, 50, 58, 89, 132]) {
            for host in [&client, &server] {
                let mut whole = host.frame(&data(1, 2, 2000));
                whole[protocol] = number;
                for range in [0..1208, 1208..1800, 1800..2020] {
                    let more = range.end < 2020;
                    host.passes(fragment(&whole, identification, range, more));
                }
            }
        }
        // In IPv6 only the first one says that it is not TCP, and the others pass behind it.
        let followers = if mode.family == Family::V4 { 0 } else { 28 };
        assert_eq!((world.happened(Event::Bridged), world.happened(Event::Fragment)), (42 - followers, followers));
    }
}
