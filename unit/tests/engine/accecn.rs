//! Accurate ECN (RFC 9768): what is negotiated in a server's name, the fields that tell of a mark, the counts that pass, and those that the box keeps
//! where the two ends do not agree.

use tcpstate::Event;
use unit::in_every_mode;
use unit::script::*;

/// AE, CWR and ECE as one number, as RFC 9768 writes them.
const fn ace(bits: u16) -> u16 {
    bits << 6
}

/// The three flags of a SYN that asks for accurate ECN, and for the classic one.
const ACCURATE: u16 = 0b111;
const CLASSIC: u16 = 0b011;
/// How a SYN-ACK, or its acknowledgement, tells each value of the ECN field: Not-ECT, ECT(1), ECT(0), CE (tables 2 and 3).
const TOLD: [u16; 4] = [0b010, 0b011, 0b100, 0b110];
/// What a count begins with.
const FIRST: u16 = 5;

/// One handshake: the flags and ECN fields of the two ends' segments, and what is expected of the box.
#[derive(Clone, Copy, Debug)]
struct Handshake {
    /// The client's SYN.
    asks: u16,
    syn_field: u8,
    /// Its third segment.
    third: u16,
    /// The server's SYN-ACK.
    answers: u16,
    answer_field: u8,
    /// What the client is told in the SYN-ACK, what the server is asked, and what the server gets as the acknowledgement of its SYN-ACK.
    told: u16,
    asked: u16,
    last: u16,
    /// What the box's own segments to the client bear.
    update: u16,
    /// Whether the server uses timestamps.
    stamps: bool,
}

/// Both ends speak accurate ECN, and the box knows it of the server.
const KNOWN: Handshake = Handshake {
    asks: ACCURATE,
    syn_field: 0,
    third: 0b010,
    answers: 0b010,
    answer_field: 0,
    told: 0b010,
    asked: ACCURATE,
    last: 0b010,
    update: FIRST,
    stamps: true,
};

/// The same, of a server about which nothing is known.
const UNKNOWN: Handshake = Handshake { third: 0, told: 0, update: 0, ..KNOWN };

/// A connection after its handshake.
#[derive(Clone, Copy)]
struct Opened {
    cookie: u32,
    shift: u32,
}

impl Opened {
    fn c(self, at: u32) -> u32 {
        CLIENT_ISN.wrapping_add(1).wrapping_add(at)
    }

    fn s(self, at: u32) -> u32 {
        SERVER_ISN.wrapping_add(1).wrapping_add(at)
    }

    fn o(self, at: u32) -> u32 {
        self.cookie.wrapping_add(1).wrapping_add(at)
    }

    /// Timestamps of the client's segments as it sends them and as the server gets them.
    fn client_stamps(self) -> [Option<(u32, u32)>; 2] {
        [self.shift.wrapping_add(SERVER_TS), SERVER_TS].map(|echo| Some((CLIENT_TS + 2, echo)))
    }

    /// Timestamps of the server's segments as it sends them and as the client gets them.
    fn server_stamps(self) -> [Option<(u32, u32)>; 2] {
        [SERVER_TS + 1, self.shift.wrapping_add(SERVER_TS + 1)].map(|value| Some((value, CLIENT_TS + 1)))
    }
}

impl Handshake {
    /// The client's half: its SYN-ACK, and the SYN that the server gets.
    #[track_caller]
    fn asks(&self, world: &World, client: &Host, server: &Host) -> (Got, Got) {
        let theirs = Terms::linux(world.mss());
        client.sends(theirs.on(syn(CLIENT_ISN).flags(ace(self.asks)).tos(self.syn_field), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).flags(ace(self.told)).tos(0).any_window().any_options());
        let echo = offered.ts().expect("timestamps are presumed").0;
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).flags(ace(self.third)).maybe_ts(Some((CLIENT_TS + 1, echo))));
        let flags = SYN | ace(self.asked);
        (offered, server.gets(segment(flags, CLIENT_ISN, 0).tos(0).any_window().any_options()))
    }

    /// The server's SYN-ACK.
    fn answer(&self, world: &World, server_syn: &Got) -> Seg {
        let value = server_syn.ts().map_or(0, |(value, _)| value);
        let ours = Terms { ts: self.stamps, ..Terms::linux(world.mss()) };
        let answer = ours.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, value));
        answer.flags(ace(self.answers)).tos(self.answer_field)
    }

    /// Opens the connection; the client shows itself only when the server has its acknowledgement.
    #[track_caller]
    fn opens(&self, world: &World, client: &Host, server: &Host) -> Opened {
        let (offered, server_syn) = self.asks(world, client, server);
        server.sends(self.answer(world, &server_syn));
        let says = |seq| ack(seq, CLIENT_ISN + 1).flags(ace(self.update)).any_window().any_options();
        let update = client.gets(says(offered.seq + 1));
        if client.has_more() {
            client.gets(says(offered.seq));
        }
        for _ in 0..75 {
            if !server.has_more() {
                world.after_ms(10);
            }
        }
        server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).flags(ace(self.last)).tos(0).any_window().any_options());
        let shift = update.ts().map_or(0, |(value, _)| value.wrapping_sub(SERVER_TS));
        Opened { cookie: offered.seq, shift }
    }
}

/// Lets the box learn on another port that the server negotiates accurate ECN.
#[track_caller]
fn teach(world: &World) {
    let (client, server) = world.on_port(7);
    let open = UNKNOWN.opens(world, &client, &server);
    let [outer, inner] = open.client_stamps();
    client.sends(ack(open.c(0), open.o(0)).maybe_ts(outer));
    server.gets(ack(open.c(0), open.s(0)).flags(ace(FIRST)).maybe_ts(inner));
}

in_every_mode! {
    fn each_ecn_field_of_a_syn_is_told_in_the_syn_ack(world, client, server) {
        let _ = (client, server);
        teach(&world);
        for (field, told) in TOLD.into_iter().enumerate() {
            let (client, server) = world.on_port(100 + field as u16);
            Handshake { syn_field: 0xb8 | field as u8, told, ..KNOWN }.asks_with_class(&world, &client, &server);
        }
    }

    fn what_a_client_asks_decides_what_it_is_told_and_its_server_asked(world, client, server) {
        let _ = (client, server);
        teach(&world);
        // The classic kind; none; and the reserved combinations, which count as asking for the accurate kind (section 3.1.3).
        let rows = [(0, 0, 0), (CLASSIC, 0b001, CLASSIC), (ACCURATE, 0b010, ACCURATE)];
        let reserved = [1, 2, 4, 5, 6].map(|asks| (asks, 0b010, ACCURATE));
        for (n, (asks, told, asked)) in rows.into_iter().chain(reserved).enumerate() {
            let (client, server) = world.on_port(100 + n as u16);
            Handshake { asks, told, asked, ..KNOWN }.asks(&world, &client, &server);
        }
    }

    fn what_a_server_answers_decides_what_the_next_client_is_told(world, client, server) {
        let _ = (client, server);
        // Table 2: the four fields, the reserved combination, the classic kind, none, and a server that reflects the flags.
        let accurate = TOLD.into_iter().chain([0b101]).map(|answers| (answers, 0b010, 0b010, ACCURATE, FIRST));
        let rest = [(0b001, 0, 0b001, CLASSIC, 0), (0, 0, 0, ACCURATE, 0), (0b111, 0, 0, ACCURATE, 0)];
        for (answers, last, told, asked, _) in accurate.chain(rest) {
            let (world, client, server) = world.mode().world();
            Handshake { answers, last, ..UNKNOWN }.opens(&world, &client, &server);
            let (client, server) = world.on_port(100);
            Handshake { told, asked, ..KNOWN }.asks(&world, &client, &server);
        }
    }

    fn a_server_asked_for_the_classic_kind_alone_may_know_the_other(world, client, server) {
        // Clients of the classic kind say nothing of it.
        let classic =
            Handshake { asks: CLASSIC, answers: 0b001, told: 0, asked: CLASSIC, last: 0, third: 0, update: 0, ..KNOWN };
        let (first, its_server) = world.on_port(50);
        let open = classic.opens(&world, &first, &its_server);
        let [outer, inner] = open.client_stamps();
        first.sends(ack(open.c(0), open.o(0)).maybe_ts(outer));
        its_server.gets(ack(open.c(0), open.s(0)).maybe_ts(inner));
        UNKNOWN.opens(&world, &client, &server);
        let (client, server) = world.on_port(100);
        KNOWN.asks(&world, &client, &server);
        let (client, server) = world.on_port(101);
        Handshake { asks: CLASSIC, told: 0b001, asked: CLASSIC, ..KNOWN }.asks(&world, &client, &server);
    }

    fn a_server_that_refuses_the_accurate_kind_is_asked_again_later(world, client, server) {
        let _ = (client, server);
        let on = |port| world.on_port(port);
        let refuses = Handshake { answers: 0b001, last: 0, ..UNKNOWN };
        let (client, server) = on(50);
        refuses.opens(&world, &client, &server);
        let classic = Handshake { told: 0b001, asked: CLASSIC, third: 0, ..KNOWN };
        let (client, server) = on(51);
        classic.asks(&world, &client, &server);
        // It may have learned it by now.
        world.tick(std::time::Duration::from_secs(10));
        world.discard();
        let (client, server) = on(52);
        UNKNOWN.opens(&world, &client, &server);
        let (client, server) = on(53);
        KNOWN.asks(&world, &client, &server);
    }

    fn who_cannot_be_told_is_no_reason_to_tell_others_nothing(world, client, server) {
        let _ = (client, server);
        teach(&world);
        // A server that answers with SYN cookies can keep it nowhere but in a timestamp.
        if world.mode().cache {
            for port in 20..26 {
                let (client, server) = world.on_port(port);
                let theirs = Terms::windows(world.mss());
                client.sends(theirs.on(syn(CLIENT_ISN).flags(ace(ACCURATE)), (CLIENT_TS, 0)));
                let offered = client.gets(anything());
                client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).flags(ace(0b010)));
                let server_syn = server.gets(anything());
                assert_eq!(server_syn.flags & ace(ACCURATE), ace(ACCURATE));
                server.sends(theirs.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, 0)));
                world.tick(std::time::Duration::from_secs(1));
                world.discard();
            }
        }
        let (client, server) = world.on_port(100);
        KNOWN.asks(&world, &client, &server);
    }

    fn a_server_that_tells_a_client_without_timestamps_the_classic_kind_refuses_the_other(world, client, server) {
        let theirs = Terms::windows(world.mss());
        if !world.mode().cache {
            return;
        }
        let asks = |client: &Host| {
            client.sends(theirs.on(syn(CLIENT_ISN).flags(ace(ACCURATE)), (CLIENT_TS, 0)));
            client.gets(anything())
        };
        let offered = asks(&client);
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1));
        server.gets(anything());
        server.sends(theirs.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1).flags(ace(0b001)), (SERVER_TS, 0)));
        world.tick(std::time::Duration::from_secs(1));
        world.discard();
        let (client, _) = world.on_port(20);
        assert_eq!(asks(&client).flags, SYN | ACK | ace(0b001));
    }

    fn the_acknowledgement_of_a_syn_ack_tells_how_it_arrived(world, client, server) {
        let _ = (client, server);
        for answer_field in 0..4 {
            // The box's SYN-ACK arrived as it was sent, or the client says nothing of it: so did the server's. A mark on that counts nowhere, so it is
            // told as what it was before.
            let intact = [0b010, 0b011, 0b100, 0b100][usize::from(answer_field)];
            for (third, last) in [(0b010, intact), (FIRST, intact), (0b011, 0b011), (0b100, 0b100), (0b110, 0b110), (0, 0)] {
                let (world, client, server) = world.mode().world();
                teach(&world);
                Handshake { third, answer_field, last, ..KNOWN }.opens(&world, &client, &server);
            }
        }
    }

    fn a_repeated_syn_ack_is_acknowledged_as_the_first(world, client, server) {
        teach(&world);
        let handshake = Handshake { third: 0b110, last: 0b110, ..KNOWN };
        handshake.opens(&world, &client, &server);
        let (other_client, other_server) = world.on_port(100);
        let (_, server_syn) = handshake.asks(&world, &other_client, &other_server);
        for _ in 0..2 {
            server.sends(handshake.answer(&world, &server_syn));
            server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).flags(ace(0b110)).any_window().any_options());
        }
    }

    fn counts_fields_and_options_pass_both_ways(world, client, server) {
        teach(&world);
        let open = KNOWN.opens(&world, &client, &server);
        let ([outer, inner], [from, to]) = (open.client_stamps(), open.server_stamps());
        // Both orders of the option: its counters are of bytes, which no translation changes.
        for n in 0..40 {
            let (count, field) = (ace((5 + n) % 8), (n % 4) as u8);
            let option = [if n % 2 == 0 { 172 } else { 174 }, 11, 0, 0, n as u8, 0, 0, 7, 0, 1, 2];
            let says = |seq, ack, stamps| {
                let says = segment(ACK | PSH | count, seq, ack).maybe_ts(stamps);
                says.payload(10).tos(field).nop().raw(&option)
            };
            client.sends(says(open.c(10 * u32::from(n)), open.o(0), outer));
            server.gets(says(open.c(10 * u32::from(n)), open.s(0), inner));
            server.sends(says(open.s(0), open.c(0), from));
            client.gets(says(open.o(0), open.c(0), to));
            // Bare acknowledgements bear the count too.
            client.sends(ack(open.c(10 * u32::from(n) + 10), open.o(0)).flags(count).maybe_ts(outer));
            server.gets(ack(open.c(10 * u32::from(n) + 10), open.s(0)).flags(count).maybe_ts(inner));
        }
        assert_eq!(world.happened(Event::EcnLent), 0);
    }

    fn what_the_box_sends_in_a_name_bears_the_latest_count_of_that_end(world, client, server) {
        teach(&world);
        let open = KNOWN.opens(&world, &client, &server);
        let ([outer, inner], [from, to]) = (open.client_stamps(), open.server_stamps());
        for n in 0..9u16 {
            let counts = [(6 + n) % 8, (3 + 3 * n) % 8].map(ace);
            client.sends(segment(ACK | PSH | counts[0], open.c(0), open.o(0)).maybe_ts(outer).payload(10));
            server.gets(segment(ACK | PSH | counts[0], open.c(0), open.s(0)).maybe_ts(inner).payload(10));
            server.sends(ack(open.s(0), open.c(10)).flags(counts[1]).maybe_ts(from));
            client.gets(ack(open.o(0), open.c(10)).flags(counts[1]).maybe_ts(to));
            // RFC 5961 section 4: a SYN from the server is challenged in the client's name, and blind data from a client in the server's.
            server.sends(Terms::linux(world.mss()).on(syn(17), (SERVER_TS, 0)));
            server.gets(ack(open.c(10), open.s(0)).flags(counts[0]).any_window().any_options());
            world.after_ms(600);
            client.sends(data(open.c(0x1000_0000), open.o(0), 10).maybe_ts(outer));
            client.gets(ack(open.o(0), open.c(10)).flags(counts[1]).any_window().any_options());
            world.after_ms(600);
        }
    }

    fn a_client_promised_a_count_in_vain_gets_it_from_the_box(world, client, server) {
        let _ = (client, server);
        // The server no longer knows it, or only the classic kind.
        for (answers, echo) in [(0, 0), (0b001, ECE)] {
            let (world, client, server) = world.mode().world();
            teach(&world);
            let open = Handshake { answers, last: 0, ..KNOWN }.opens(&world, &client, &server);
            let ([outer, inner], [from, to]) = (open.client_stamps(), open.server_stamps());
            let mut count = FIRST;
            for n in 0..30 {
                let (at, field) = (10 * n, [2, 3, 3, 1][n as usize % 4]);
                count += u16::from(field == 3);
                let client_count = ace(FIRST);
                client.sends(segment(ACK | PSH | client_count, open.c(at), open.o(0)).maybe_ts(outer).payload(10).tos(0xb8 | field));
                server.gets(segment(ACK | PSH, open.c(at), open.s(0)).maybe_ts(inner).payload(10).tos(0xb8));
                // What the server says of its own marks is not the client's.
                server.sends(ack(open.s(0), open.c(at + 10)).maybe_ts(from));
                client.gets(ack(open.o(0), open.c(at + 10)).flags(ace(count % 8)).maybe_ts(to));
            }
            assert_eq!(world.happened(Event::EcnLent), u64::from(count - FIRST));
            // The server's packets are not capable on their way, and their marks are echoed as it expects.
            for (field, flags, expected) in [(2, 0, 0), (3, 0, echo), (2, 0, echo), (2, CWR, 0)] {
                let flags = if echo == 0 { 0 } else { flags };
                let field = if echo == 0 { 0 } else { field };
                server.sends(segment(ACK | PSH | flags, open.s(0), open.c(300)).maybe_ts(from).payload(10).tos(field));
                client.gets(segment(ACK | PSH | ace(count % 8), open.o(0), open.c(300)).maybe_ts(to).payload(10).tos(0));
                client.sends(ack(open.c(300), open.o(10)).flags(ace(FIRST)).maybe_ts(outer));
                server.gets(ack(open.c(300), open.s(10)).flags(expected).maybe_ts(inner));
            }
            // A challenge in the server's name bears the count as well.
            client.sends(data(open.c(0x1000_0000), open.o(10), 10).maybe_ts(outer));
            client.gets(ack(open.o(10), open.c(300)).flags(ace(count % 8)).any_window().any_options());
        }
    }

    fn a_server_whose_client_was_told_none_gets_a_count_from_the_box(world, client, server) {
        let _ = (client, server);
        // A mark on the SYN-ACK counts (table 4).
        for (answer_field, last, first) in [(0, 0b010, FIRST), (3, 0b110, 6)] {
            let (world, client, server) = world.mode().world();
            let open = Handshake { answer_field, last, ..UNKNOWN }.opens(&world, &client, &server);
            let ([outer, inner], [from, to]) = (open.client_stamps(), open.server_stamps());
            let mut count = first;
            for n in 0..30 {
                let (at, field) = (10 * n, [2, 3, 1, 3][n as usize % 4]);
                count += u16::from(field == 3);
                server.sends(segment(ACK | PSH | ace(FIRST), open.s(at), open.c(0)).maybe_ts(from).payload(10).tos(field));
                client.gets(segment(ACK | PSH, open.o(at), open.c(0)).maybe_ts(to).payload(10).tos(0));
                client.sends(ack(open.c(0), open.o(at + 10)).maybe_ts(outer));
                server.gets(ack(open.c(0), open.s(at + 10)).flags(ace(count % 8)).maybe_ts(inner));
            }
            assert_eq!(world.happened(Event::EcnLent), u64::from(count - first));
        }
    }

    fn a_damaged_segment_counts_no_mark(world, client, server) {
        teach(&world);
        let open = Handshake { answers: 0, last: 0, ..KNOWN }.opens(&world, &client, &server);
        let ([outer, _], [from, to]) = (open.client_stamps(), open.server_stamps());
        let says = segment(ACK | PSH | ace(FIRST), open.c(0), open.o(0)).maybe_ts(outer).payload(10).tos(3);
        let mut frame = client.frame(&says);
        let last = frame.len() - 1;
        frame[last] ^= 1;
        let _ = world.inject(tcpstate::Side::Wan, &frame);
        world.discard();
        server.sends(ack(open.s(0), open.c(0)).maybe_ts(from));
        client.gets(ack(open.o(0), open.c(0)).flags(ace(FIRST)).maybe_ts(to));
    }

    fn a_syn_that_is_repeated_without_ecn_has_none(world, client, server) {
        teach(&world);
        let theirs = Terms::linux(world.mss());
        client.sends(theirs.on(syn(CLIENT_ISN).flags(ace(ACCURATE)), (CLIENT_TS, 0)));
        client.gets(syn_ack(ANY, CLIENT_ISN + 1).flags(ace(0b010)).any_window().any_options());
        world.after_secs(3);
        client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS + 3000, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).any_window().any_options());
        let echo = offered.ts().map(|(value, _)| (CLIENT_TS + 3001, value));
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echo));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
    }

    fn the_box_asks_once_more_and_then_without(world, client, server) {
        teach(&world);
        let (offered, _) = KNOWN.asks(&world, &client, &server);
        // RFC 9768 section 3.1.4.1.
        let mut syns = Vec::new();
        for _ in 0..1000 {
            world.after_ms(10);
            if server.has_more() {
                syns.push(server.gets(anything()));
            }
        }
        let flags: Vec<_> = syns.iter().map(|got| got.flags).collect();
        assert_eq!(flags[..3], [SYN | ace(ACCURATE), SYN, SYN]);
        // The server has got the first one all the same: what it answers to that holds.
        server.sends(KNOWN.answer(&world, &syns[0]));
        client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).flags(ace(FIRST)).any_window().any_options());
        world.discard();
    }

    fn a_client_with_inserted_timestamps_gets_the_option_too(world, client, server) {
        let open = Handshake { stamps: false, ..UNKNOWN }.opens(&world, &client, &server);
        let option = [172, 11, 0, 0, 1, 0, 0, 2, 0, 0, 3];
        server.sends(segment(ACK | PSH | ace(FIRST), open.s(0), open.c(0)).payload(10).nop().raw(&option));
        let got = client.gets(segment(ACK | PSH, open.o(0), open.c(0)).payload(10).any_options());
        assert!(got.ts().is_some() && got.options.contains(&Opt::Raw(option.to_vec())), "{:?}", got.options);
    }
}

impl Handshake {
    /// The same as [`Handshake::asks`], where the client's SYN has a class besides its ECN field.
    #[track_caller]
    fn asks_with_class(&self, world: &World, client: &Host, server: &Host) {
        let theirs = Terms::linux(world.mss());
        client.sends(theirs.on(syn(CLIENT_ISN).flags(ace(self.asks)).tos(self.syn_field), (CLIENT_TS, 0)));
        let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).flags(ace(self.told)).any_window().any_options());
        assert_eq!(offered.tos & 3, 0);
        let echo = offered.ts().expect("timestamps are known").0;
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).flags(ace(self.third)).maybe_ts(Some((CLIENT_TS + 1, echo))));
        let asked = SYN | ace(self.asked);
        server.gets(segment(asked, CLIENT_ISN, 0).any_window().any_options());
    }
}
