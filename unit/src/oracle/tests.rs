//! The oracle against a box that translates rightly, and against one that forgets one thing at a time.

use std::net::SocketAddr;

use super::*;

const CLIENT: &str = "10.0.1.1:20000";
const SERVER: &str = "10.0.0.1:80";
/// Initial sequence numbers: the client's, the server's, and the one the box showed the client.
const ISN: u32 = 0xffff_ff00;
const SERVER_ISN: u32 = 7000;
const COOKIE: u32 = 0x8000_0000;
/// The server's clock and what the box shows the client instead.
const SERVER_CLOCK: u32 = 500;
const COOKIE_CLOCK: u32 = 0x4000_0000;

fn client() -> SocketAddr {
    CLIENT.parse().unwrap()
}

fn server() -> SocketAddr {
    SERVER.parse().unwrap()
}

fn frame(segment: &Segment) -> Vec<u8> {
    segment.write([2; 6], [4; 6], Layout::default())
}

/// The segment as it came to the box.
fn ancestor_of(original: &Segment) -> Ancestor {
    Ancestor::from(&Segment::read(&frame(original)).expect("a segment"))
}

fn from_client(seq: u32, ack: Option<u32>) -> Segment<'static> {
    Segment::new(client(), server(), seq, ack)
}

fn from_server(seq: u32, ack: Option<u32>) -> Segment<'static> {
    Segment::new(server(), client(), seq, ack)
}

fn stamped(mut segment: Segment<'_>, value: u32, echo: u32) -> Segment<'_> {
    segment.options.stamps = Some((value, echo));
    segment
}

fn windowed(mut segment: Segment<'_>, window: u16) -> Segment<'_> {
    segment.window = window;
    segment
}

fn opening(mut segment: Segment<'static>, mss: u16, scale: u8) -> Segment<'static> {
    segment.syn = true;
    segment.options.mss = Some(mss);
    segment.options.scale = Some(scale);
    segment.options.sack_permitted = true;
    segment
}

/// The client's SYN: padded with what an operating system adds, so that the answer has room.
fn syn() -> Segment<'static> {
    windowed(stamped(opening(from_client(ISN, None), 1460, 7), 100, 0), 64_000)
}

fn syn_ack() -> Segment<'static> {
    stamped(opening(from_server(COOKIE, Some(ISN.wrapping_add(1))), 1460, 4), COOKIE_CLOCK, 100)
}

fn server_syn() -> Segment<'static> {
    windowed(stamped(opening(from_client(ISN, None), 1460, 7), 101, 0), 500)
}

fn server_answers() -> Segment<'static> {
    windowed(stamped(opening(from_server(SERVER_ISN, Some(ISN.wrapping_add(1))), 1440, 2), SERVER_CLOCK, 101), 30_000)
}

/// A connection that a rightly working box has joined: both ends have sent a little.
fn joined() -> Oracle {
    // The server's 30000 bytes, in units of the scale 4 announced to the client.
    joined_with(0, 30_000 >> 4).unwrap()
}

/// A connection whose client was promised a window in the SYN-ACK, and in the update that followed the server's grant of 30000 bytes.
fn joined_with(promised: u16, told: u16) -> Result<Oracle, Complaint> {
    let mut oracle = Oracle::new(Between::Proxy, [server().ip()]);
    oracle.promise_early(promised);
    let mut step = |sent: Option<Segment>, delivered: Option<(Segment, Option<Segment>)>| {
        if let Some(segment) = sent {
            oracle.sent(&frame(&segment));
        }
        delivered.map_or(Ok(()), |(segment, ancestor)| {
            oracle.delivered(&frame(&segment), false, ancestor.as_ref().map(ancestor_of))
        })
    };
    step(Some(syn()), Some((windowed(syn_ack(), promised), None)))?;
    let ack = windowed(stamped(from_client(ISN.wrapping_add(1), Some(COOKIE + 1)), 101, COOKIE_CLOCK), 500);
    step(Some(ack), Some((server_syn(), None)))?;
    let final_ack = windowed(stamped(from_client(ISN.wrapping_add(1), Some(SERVER_ISN + 1)), 101, SERVER_CLOCK), 500);
    step(Some(server_answers()), Some((final_ack, None)))?;
    let update = windowed(stamped(from_server(COOKIE + 1, Some(ISN.wrapping_add(1))), COOKIE_CLOCK, 101), told);
    step(None, Some((update, None)))?;
    Ok(oracle)
}

fn with_ace(mut segment: Segment<'_>, ace: u8) -> Segment<'_> {
    segment.set_ace(ace);
    segment
}

/// The count of marks before the first (RFC 9768 section 3.2.1).
const UNMARKED: u8 = 5;

/// A connection that a right box has joined, whose client has been told that accurate ECN is agreed upon, and whose server says so with `answer` in
/// its SYN-ACK, or says something else.
fn accurate(answer: u8) -> Oracle {
    let mut oracle = Oracle::new(Between::Proxy, [server().ip()]);
    oracle.sent(&frame(&with_ace(syn(), 7)));
    oracle.delivered(&frame(&with_ace(syn_ack(), told(0))), false, None).unwrap();
    let ack = windowed(stamped(from_client(ISN.wrapping_add(1), Some(COOKIE + 1)), 101, COOKIE_CLOCK), 500);
    oracle.sent(&frame(&with_ace(ack, told(0))));
    oracle.delivered(&frame(&with_ace(server_syn(), 7)), false, None).unwrap();
    oracle.sent(&frame(&with_ace(server_answers(), answer)));
    let last = windowed(stamped(from_client(ISN.wrapping_add(1), Some(SERVER_ISN + 1)), 101, SERVER_CLOCK), 500);
    let tells = if answer == told(0) { told(0) } else { 0 };
    oracle.delivered(&frame(&with_ace(last, tells)), false, None).unwrap();
    let update = windowed(stamped(from_server(COOKIE + 1, Some(ISN.wrapping_add(1))), COOKIE_CLOCK, 101), 30_000 >> 4);
    let update = frame(&with_ace(update, UNMARKED));
    oracle.passed(&update, false, None).unwrap();
    oracle.delivered(&update, false, None).unwrap();
    oracle
}

/// A segment with data of the server's stream from position `at` on, as the server sends it.
fn server_data(at: u32, payload: &[u8]) -> Segment<'_> {
    let mut segment = stamped(from_server(SERVER_ISN + at, Some(ISN.wrapping_add(1))), SERVER_CLOCK + 9, 101);
    segment.window = 7000;
    segment.payload = payload;
    segment
}

/// The same as a right box delivers it.
fn translated<'a>(segment: &Segment<'a>) -> Segment<'a> {
    let mut segment = segment.clone();
    segment.seq = segment.seq.wrapping_sub(SERVER_ISN).wrapping_add(COOKIE);
    let (value, echo) = segment.options.stamps.unwrap();
    segment.options.stamps = Some((value - SERVER_CLOCK + COOKIE_CLOCK, echo));
    segment.window >>= 2;
    segment
}

fn stream(source: SocketAddr, destination: SocketAddr, len: u64) -> Vec<u8> {
    (0..len).map(|offset| pattern(source, destination, offset)).collect()
}

/// Says what a box does wrong to the server's data, and which rule it breaks.
fn spoiled(rule: Rule, spoil: impl FnOnce(&mut Segment<'static>)) {
    let data: &'static [u8] = stream(server(), client(), 100).leak();
    let mut oracle = joined();
    let original = server_data(1, data);
    oracle.sent(&frame(&original));
    let mut segment = translated(&original);
    oracle.clone_and_deliver(&segment, &original).expect("rightly translated");
    spoil(&mut segment);
    let complaint = oracle.clone_and_deliver(&segment, &original).expect_err("the oracle must complain");
    assert_eq!(complaint.rule, rule, "{complaint}");
}

/// Says what a box does wrong to the client's acknowledgement of data, and which rule it breaks.
fn spoiled_acknowledgement(rule: Rule, spoil: impl FnOnce(&mut Segment<'static>)) {
    let data: &'static [u8] = stream(server(), client(), 100).leak();
    let mut oracle = joined();
    for at in [1, 201] {
        let original = server_data(at, &data[..if at == 1 { 100 } else { 0 }]);
        oracle.sent(&frame(&original));
    }
    let tail: Vec<u8> = (200..300).map(|offset| pattern(server(), client(), offset)).collect();
    oracle.sent(&frame(&server_data(201, &tail)));
    // The client has the first 100 bytes and those from 201 on.
    let mut original = stamped(from_client(ISN.wrapping_add(1), Some(COOKIE + 101)), 120, COOKIE_CLOCK + 9);
    original.window = 500;
    original.options.sack[0] = Some((COOKIE + 201, COOKIE + 301));
    oracle.sent(&frame(&original));
    let mut segment = original.clone();
    segment.ack = Some(SERVER_ISN + 101);
    segment.options.stamps = Some((120, SERVER_CLOCK + 9));
    segment.options.sack[0] = Some((SERVER_ISN + 201, SERVER_ISN + 301));
    oracle.clone_and_deliver(&segment, &original).expect("rightly translated");
    spoil(&mut segment);
    let complaint = oracle.clone_and_deliver(&segment, &original).expect_err("the oracle must complain");
    assert_eq!(complaint.rule, rule, "{complaint}");
}

impl Oracle {
    fn clone_and_deliver(&self, segment: &Segment, original: &Segment) -> Result<(), Complaint> {
        self.clone().delivered(&frame(segment), false, Some(ancestor_of(original)))
    }
}

#[test]
fn untranslated_acknowledgement() {
    spoiled_acknowledgement(Rule::Acknowledgement, |segment| segment.ack = Some(COOKIE + 101));
}

#[test]
fn acknowledgement_of_what_the_client_has_not_got() {
    spoiled_acknowledgement(Rule::Acknowledgement, |segment| segment.ack = Some(SERVER_ISN + 102));
}

#[test]
fn untranslated_sack_edges() {
    spoiled_acknowledgement(Rule::Sack, |segment| segment.options.sack[0] = Some((COOKIE + 201, COOKIE + 301)));
}

#[test]
fn half_translated_sack_block() {
    spoiled_acknowledgement(Rule::Sack, |segment| segment.options.sack[0] = Some((SERVER_ISN + 201, SERVER_ISN + 300)));
}

#[test]
fn untranslated_echo() {
    spoiled_acknowledgement(Rule::TimestampEcho, |segment| segment.options.stamps = Some((120, COOKIE_CLOCK + 9)));
}

#[test]
fn terms_that_do_not_come_back() {
    let open = |is_forgetful: bool| {
        let mut oracle = Oracle::new(Between::Proxy, [server().ip()]);
        if is_forgetful {
            oracle.needs_echo(server());
        }
        oracle.sent(&frame(&syn()));
        oracle.delivered(&frame(&syn_ack()), false, None).unwrap();
        let ack = windowed(stamped(from_client(ISN.wrapping_add(1), Some(COOKIE + 1)), 101, COOKIE_CLOCK), 500);
        oracle.sent(&frame(&ack));
        oracle.delivered(&frame(&server_syn()), false, None).unwrap();
        // It answers once more, later.
        for clock in [SERVER_CLOCK, SERVER_CLOCK + 64] {
            oracle.sent(&frame(&stamped(server_answers(), clock, 101)));
        }
        oracle
    };
    let echoes = |oracle: &mut Oracle, echo: Option<u32>| {
        let mut segment = windowed(from_client(ISN.wrapping_add(1), Some(SERVER_ISN + 1)), 500);
        segment.options.stamps = echo.map(|echo| (101, echo));
        oracle.delivered(&frame(&segment), false, None).map_err(|complaint| complaint.rule)
    };
    for clock in [SERVER_CLOCK, SERVER_CLOCK + 64] {
        let mut oracle = open(true);
        assert_eq!(echoes(&mut oracle, Some(clock)), Ok(()));
        // From then on it knows the connection.
        assert_eq!(echoes(&mut oracle, Some(0)), Ok(()));
    }
    for clock in [0, SERVER_CLOCK - 1, SERVER_CLOCK + 1] {
        assert_eq!(echoes(&mut open(true), Some(clock)), Err(Rule::TimestampEcho), "{clock}");
    }
    assert_eq!(echoes(&mut open(true), None), Err(Rule::TimestampEcho));
    assert_eq!(echoes(&mut open(false), Some(0)), Ok(()), "its terms are in its memory");
}

#[test]
fn timestamps_lost_on_the_way() {
    spoiled_acknowledgement(Rule::TimestampPresence, |segment| segment.options.stamps = None);
}

#[test]
fn untranslated_sequence_number() {
    spoiled(Rule::Sequence, |segment| segment.seq = SERVER_ISN + 1);
}

#[test]
fn payload_one_byte_off() {
    spoiled(Rule::Payload, |segment| {
        segment.seq += 1;
        segment.payload = &segment.payload[..99];
    });
}

#[test]
fn untranslated_clock() {
    spoiled(Rule::TimestampValue, |segment| segment.options.stamps = Some((SERVER_CLOCK + 9, 101)));
}

#[test]
fn unscaled_window() {
    spoiled(Rule::Window, |segment| segment.window = 7000);
}

#[test]
fn open_window_shown_closed() {
    spoiled(Rule::Window, |segment| segment.window = 0);
}

#[test]
fn congestion_out_of_thin_air() {
    spoiled(Rule::Congestion, |segment| segment.ece = true);
    spoiled(Rule::Congestion, |segment| segment.ecn = CE);
    spoiled(Rule::Congestion, |segment| segment.cwr = true);
}

#[test]
fn errors_quote_the_receivers_own_numbers() {
    let data = stream(server(), client(), 1400);
    let mut oracle = joined();
    let original = server_data(1, &data);
    oracle.sent(&frame(&original));
    let quoting = |segment: &Segment| {
        let trouble = icmp::Trouble::TooBig(1280);
        icmp::Error::write(trouble, "10.0.1.254".parse().unwrap(), &frame(segment), 64)
    };
    let mut judge = |bytes: &[u8]| oracle.complained(&icmp::Error::read(bytes).expect("an error"));
    judge(&quoting(&original)).expect("the server's own segment");
    for spoil in [
        |segment: &mut Segment| segment.seq = COOKIE + 1,
        |segment: &mut Segment| segment.ack = Some(SERVER_ISN),
        |segment: &mut Segment| segment.options.stamps = Some((COOKIE_CLOCK + 9, 101)),
        |segment: &mut Segment| std::mem::swap(&mut segment.source, &mut segment.destination),
    ] {
        let mut segment = original.clone();
        spoil(&mut segment);
        let mut bytes = quoting(&segment);
        // Whatever it quotes, it is the server that gets it.
        if segment.source == client() {
            bytes[30..34].copy_from_slice(&[10, 0, 0, 1]);
            let sum = wire::fold(wire::sum(&bytes[14..24], wire::sum(&bytes[26..34], 0)));
            bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        assert_eq!(judge(&bytes).expect_err("must complain").rule, Rule::Quote);
    }
    let mut bytes = quoting(&original);
    bytes[14 + 20 + 7] ^= 1;
    assert_eq!(judge(&bytes).expect_err("must complain").rule, Rule::Quote);
}

#[test]
fn hop_limit_and_class_of_another() {
    let voice = |segment: Segment<'static>, hops, class| Segment { hops, class, ..segment };
    let judge = |oracle: &Oracle, segment: &Segment, is_right: bool| {
        let judged = oracle.clone().passed(&frame(segment), false, None);
        match is_right {
            true => judged.unwrap_or_else(|complaint| panic!("{complaint}")),
            false => assert_eq!(judged.expect_err("must complain").rule, Rule::Voice, "{segment}"),
        }
    };
    let answer = |oracle: &mut Oracle, segment: &Segment| {
        oracle.sent(&frame(segment));
        oracle.took(&Taken::read(&frame(segment), false, false).expect("a SYN-ACK"));
    };
    let mut oracle = Oracle::new(Between::Proxy, [server().ip()]);
    oracle.remember_servers();
    oracle.sent(&frame(&voice(syn(), 50, 0x28)));
    // Nothing is known of the server: the largest hop limit, and the class of the SYN.
    for (hops, class, is_right) in [(255, 0x28, true), (255, 0, false), (64, 0x28, false), (50, 0x28, false)] {
        judge(&oracle, &voice(syn_ack(), hops, class), is_right);
    }
    // To another client it has answered.
    let mut known = oracle.clone();
    let other = SocketAddr::new(client().ip(), 1);
    answer(&mut known, &Segment { destination: other, ..voice(server_answers(), 61, 0xb8) });
    for (hops, class, is_right) in
        [(61, 0xb8, true), (61, 0x28, true), (61, 0, false), (60, 0xb8, false), (255, 0x28, false)]
    {
        judge(&known, &voice(syn_ack(), hops, class), is_right);
    }
    // The client's hop limit and class, in whatever is said in its name.
    let ack = windowed(stamped(from_client(ISN.wrapping_add(1), Some(COOKIE + 1)), 101, COOKIE_CLOCK), 500);
    oracle.sent(&frame(&voice(ack, 50, 0x28)));
    let voices = [(50, 0x28, true), (50, 0, false), (50, 0xb8, false), (51, 0x28, false), (255, 0x28, false)];
    for (hops, class, is_right) in voices {
        judge(&oracle, &voice(server_syn(), hops, class), is_right);
    }
    // The server answers, with a class of its own: from then on it has its own hop limit.
    answer(&mut oracle, &voice(server_answers(), 61, 0xb8));
    let last = windowed(stamped(from_client(ISN.wrapping_add(1), Some(SERVER_ISN + 1)), 101, SERVER_CLOCK), 500);
    for (hops, class, is_right) in voices {
        judge(&oracle, &voice(last.clone(), hops, class), is_right);
    }
    let update = windowed(stamped(from_server(COOKIE + 1, Some(ISN.wrapping_add(1))), COOKIE_CLOCK, 101), 30_000 >> 4);
    for (hops, class, is_right) in [(61, 0xb8, true), (61, 0x28, false), (61, 0, false), (255, 0xb8, false)] {
        judge(&oracle, &voice(update.clone(), hops, class), is_right);
    }
    // A reset may have the class of what it answers.
    let reset = Segment { rst: true, ..update };
    for (hops, class, is_right) in [(61, 0xb8, true), (61, 0x28, true), (61, 0, false), (255, 0xb8, false)] {
        judge(&oracle, &voice(reset.clone(), hops, class), is_right);
    }
    // A route that has become longer.
    oracle.sent(&frame(&voice(server_data(1, &[]), 60, 0xb8)));
    judge(&oracle, &voice(reset, 60, 0xb8), true);
}

#[test]
fn another_station_speaks() {
    let data = stream(server(), client(), 10);
    let mut oracle = joined();
    let original = server_data(1, &data);
    oracle.sent(&frame(&original));
    let arrives = translated(&original).write([6; 6], [4; 6], Layout::default());
    let complaint = oracle.delivered(&arrives, false, Some(ancestor_of(&original))).unwrap_err();
    assert_eq!(complaint.rule, Rule::Surroundings);
}

#[test]
fn ecn_promised_for_a_server_that_was_not_asked() {
    let mut oracle = Oracle::new(Between::Proxy, [server().ip()]);
    let mut question = syn();
    (question.ece, question.cwr) = (true, true);
    let mut answer = syn_ack();
    answer.ece = true;
    oracle.sent(&frame(&question));
    oracle.clone().delivered(&frame(&answer), false, None).expect("the client asked");
    oracle.sent(&frame(&Segment { seq: ISN.wrapping_add(99), ece: false, cwr: false, ..question }));
    answer.ack = Some(ISN.wrapping_add(100));
    let complaint = oracle.delivered(&frame(&answer), false, None).unwrap_err();
    assert_eq!(complaint.rule, Rule::Congestion);
}

#[test]
fn count_of_marks_is_the_peers() {
    let data = stream(server(), client(), 10);
    for count in 0..8 {
        let mut oracle = accurate(told(0));
        let original = with_ace(server_data(1, &data), count);
        oracle.sent(&frame(&original));
        let right = translated(&original);
        oracle.clone_and_deliver(&right, &original).expect("it is the peer's");
        // One mark more, and the highest bit lost or set.
        for wrong in [(count + 1) & 7, count ^ 4] {
            let complaint = oracle.clone_and_deliver(&with_ace(right.clone(), wrong), &original).unwrap_err();
            assert_eq!(complaint.rule, Rule::Congestion, "{count} became {wrong}");
        }
    }
}

#[test]
fn counters_of_bytes_are_those_of_the_segment() {
    let data = stream(server(), client(), 10);
    let counters = |kind, count, values| Some(Counters { kind, count, values });
    let sent = [
        None,
        counters(Counters::ORDER_0, 0, [0; 3]),
        counters(Counters::ORDER_0, 3, [1, 20, 0xff_ffff]),
        counters(Counters::ORDER_1, 1, [1, 0, 0]),
        counters(Counters::ORDER_1, 3, [1, 20, 0xff_ffff]),
    ];
    for said in sent {
        let mut oracle = accurate(told(0));
        let mut original = with_ace(server_data(1, &data), UNMARKED);
        original.options.counters = said;
        oracle.sent(&frame(&original));
        for arrives in sent {
            let mut segment = translated(&original);
            segment.options.counters = arrives;
            let judged = oracle.clone_and_deliver(&segment, &original);
            match arrives == said {
                true => judged.expect("unchanged"),
                false => assert_eq!(judged.unwrap_err().rule, Rule::Congestion, "{said:?} became {arrives:?}"),
            }
        }
    }
    // The box has counted nothing.
    let mut update = stamped(from_server(COOKIE + 1, Some(ISN.wrapping_add(1))), COOKIE_CLOCK, 101);
    update.options.counters = sent[2];
    let update = frame(&with_ace(windowed(update, 30_000 >> 4), UNMARKED));
    assert_eq!(accurate(told(0)).delivered(&update, false, None).unwrap_err().rule, Rule::Congestion);
}

#[test]
fn count_of_marks_that_the_box_makes_up() {
    let update = |ace| {
        let update = stamped(from_server(COOKIE + 1, Some(ISN.wrapping_add(1))), COOKIE_CLOCK, 101);
        frame(&with_ace(windowed(update, 30_000 >> 4), ace))
    };
    let mut oracle = accurate(told(0));
    oracle.delivered(&update(UNMARKED), false, None).expect("nobody has counted a mark");
    assert_eq!(oracle.delivered(&update(UNMARKED + 1), false, None).unwrap_err().rule, Rule::Congestion);
}

#[test]
fn count_of_marks_that_is_lent_wrongly() {
    let data = stream(client(), server(), 10);
    // A server that declines, and one that agrees to classic ECN: the box counts in their names.
    for answer in [0, 1] {
        let mut oracle = accurate(answer);
        for marks in 1..20u8 {
            let mut marked = stamped(from_client(ISN.wrapping_add(1), Some(COOKIE + 1)), 110, COOKIE_CLOCK);
            (marked.payload, marked.ecn) = (&data, CE);
            oracle.sent(&frame(&with_ace(marked.clone(), UNMARKED)));
            let passes = Segment { ecn: 0, ..with_ace(marked.clone(), 0) };
            oracle.passed(&frame(&passes), false, Some(ancestor_of(&marked))).unwrap();
            for ace in 0..8 {
                let update = stamped(from_server(COOKIE + 1, Some(ISN.wrapping_add(1))), COOKIE_CLOCK, 101);
                let judged = oracle.clone().passed(&frame(&with_ace(update, ace)), false, None);
                match (UNMARKED + marks) % 8 == ace {
                    true => judged.expect("so many marks have come"),
                    false => assert_eq!(judged.unwrap_err().rule, Rule::Congestion, "{ace} after {marks} marks"),
                }
            }
        }
    }
}

#[test]
fn syn_ack_that_tells_another_field_than_the_syn_left_with() {
    for field in [0, wire::ECT1, wire::ECT0] {
        let mut oracle = Oracle::new(Between::Proxy, [server().ip()]);
        oracle.sent(&frame(&Segment { ecn: field, ..with_ace(syn(), 7) }));
        for ace in 0..8 {
            // A SYN that is capable may meet congestion; a server may decline, or agree to classic ECN.
            let right = ace == told(field) || ace == told(CE) && field != 0 || ace < 2;
            let judged = oracle.clone().delivered(&frame(&with_ace(syn_ack(), ace)), false, None);
            match right {
                true => judged.expect("it tells what left"),
                false => assert_eq!(judged.unwrap_err().rule, Rule::Congestion, "{ace} for {field}"),
            }
        }
    }
}

#[test]
fn reserved_combinations_come_from_hosts_alone() {
    for said in 0..8 {
        // A SYN and its answer that pass.
        let mut oracle = Oracle::new(Between::Proxy, [server().ip()]);
        oracle.bridge(client(), server());
        let asks = with_ace(syn(), said);
        oracle.sent(&frame(&asks));
        let mut answered = oracle.clone();
        answered.delivered(&frame(&asks), false, Some(ancestor_of(&asks))).unwrap();
        let answers = with_ace(stamped(server_answers(), SERVER_CLOCK, 100), said);
        answered.sent(&frame(&answers));
        for arrives in 0..8 {
            for (oracle, segment) in [(&oracle, &asks), (&answered, &answers)] {
                match oracle.clone_and_deliver(&with_ace(segment.clone(), arrives), segment) {
                    Ok(()) => assert_eq!(arrives, said),
                    Err(complaint) => assert!(complaint.rule == Rule::Congestion && arrives != said, "{complaint}"),
                }
            }
        }
        // The box's own SYN asks by one of the three combinations that mean something, and for no more than the client did.
        let mut oracle = Oracle::new(Between::Proxy, [server().ip()]);
        oracle.sent(&frame(&asks));
        oracle.delivered(&frame(&syn_ack()), false, None).unwrap();
        oracle.sent(&frame(&stamped(from_client(ISN.wrapping_add(1), Some(COOKIE + 1)), 101, COOKIE_CLOCK)));
        for arrives in 0..8 {
            let syn = windowed(with_ace(server_syn(), arrives), 0);
            let is_right = match arrives {
                0 => true,
                3 => said != 0,
                7 => !matches!(said, 0 | 3),
                _ => false,
            };
            match oracle.clone().delivered(&frame(&syn), false, None) {
                Ok(()) => assert!(is_right, "{arrives} for {said}"),
                Err(complaint) => assert!(complaint.rule == Rule::Congestion && !is_right, "{complaint}"),
            }
        }
    }
}

#[test]
fn clock_that_steps_back_between_two_connections() {
    let again = |value| {
        let mut oracle = joined();
        let mut question = syn();
        question.seq = ISN.wrapping_add(70_000);
        question.options.stamps = Some((300, 0));
        oracle.sent(&frame(&question));
        let mut answer = syn_ack();
        answer.ack = Some(question.seq.wrapping_add(1));
        answer.options.stamps = Some((value, 300));
        oracle.delivered(&frame(&answer), false, None)
    };
    again(COOKIE_CLOCK).expect("it goes on");
    again(COOKIE_CLOCK - 8192).expect("a cookie keeps the terms in the low bits of its clock");
    assert_eq!(again(COOKIE_CLOCK - 8193).expect_err("it steps back").rule, Rule::TimestampValue);
}

#[test]
fn clock_that_jumps_further_than_it_can_have_run() {
    let mut oracle = joined();
    let shows = |oracle: &Oracle, value| {
        let update = stamped(from_server(COOKIE + 1, Some(ISN.wrapping_add(1))), value, 101);
        oracle.clone().delivered(&frame(&windowed(update, 30_000 >> 4)), false, None)
    };
    shows(&oracle, COOKIE_CLOCK + 33_000).expect("thirty seconds, and a tenth more");
    let complaint = shows(&oracle, COOKIE_CLOCK + 33_001).expect_err("a jump");
    assert_eq!(complaint.rule, Rule::TimestampValue);
    assert!(complaint.detail.contains("jumps by 33001"), "{}", complaint.detail);
    // What has passed since the last segment comes on top.
    oracle.set_time(10_000_000);
    shows(&oracle, COOKIE_CLOCK + 44_000).expect("ten seconds later");
    assert_eq!(shows(&oracle, COOKIE_CLOCK + 44_001).expect_err("a jump").rule, Rule::TimestampValue);
}

#[test]
fn fin_from_nowhere() {
    spoiled(Rule::Sequence, |segment| segment.fin = true);
}

#[test]
fn reset_from_nowhere() {
    spoiled(Rule::Reset, |segment| segment.rst = true);
}

#[test]
fn checksum_one_off() {
    let data = stream(server(), client(), 10);
    let mut oracle = joined();
    let original = server_data(1, &data);
    oracle.sent(&frame(&original));
    let mut bytes = frame(&translated(&original));
    bytes[14 + 20 + 17] ^= 1;
    let complaint = oracle.delivered(&bytes, false, None).unwrap_err();
    assert_eq!(complaint.rule, Rule::Checksum);
    // The same copy, had the cable done it, is for the host to reject.
    assert_eq!(oracle.delivered(&bytes, true, None), Ok(()));
}

#[test]
fn corruption_laundered_by_a_fresh_checksum() {
    let mut data = stream(server(), client(), 10);
    let mut oracle = joined();
    oracle.sent(&frame(&server_data(1, &data)));
    data[3] ^= 4;
    let complaint = oracle.delivered(&frame(&translated(&server_data(1, &data))), true, None).unwrap_err();
    assert_eq!(complaint.rule, Rule::Checksum);
}

#[test]
fn syn_ack_with_what_was_not_offered() {
    let without = |strip: fn(&mut Options)| {
        let mut oracle = Oracle::new(Between::Proxy, [server().ip()]);
        let mut syn = syn();
        strip(&mut syn.options);
        oracle.sent(&frame(&syn));
        oracle.delivered(&frame(&syn_ack()), false, None).unwrap_err().rule
    };
    // The answer is then larger than the question, which is reported first; equal sizes show the offer itself.
    assert_eq!(without(|options| options.sack_permitted = false), Rule::Offer);
    assert_eq!(without(|options| options.scale = None), Rule::Amplification);
    assert_eq!(without(|options| options.stamps = None), Rule::TimestampEcho);
}

#[test]
fn window_before_any_server_has_promised_one() {
    let mut oracle = Oracle::new(Between::Proxy, [server().ip()]);
    oracle.sent(&frame(&syn()));
    let complaint = oracle.delivered(&frame(&windowed(syn_ack(), 1)), false, None).unwrap_err();
    assert_eq!(complaint.rule, Rule::Window);
}

#[test]
fn server_gets_a_syn_for_an_unproved_client() {
    let mut oracle = Oracle::new(Between::Proxy, [server().ip()]);
    let complaint = oracle.delivered(&frame(&server_syn()), false, None).unwrap_err();
    assert_eq!(complaint.rule, Rule::Origin);
    // A SYN alone proves nothing yet.
    oracle.sent(&frame(&syn()));
    let complaint = oracle.delivered(&frame(&server_syn()), false, None).unwrap_err();
    assert_eq!(complaint.rule, Rule::Origin);
}

#[test]
fn early_window_taken_back() {
    assert!(joined_with(29_984, 29_984 >> 4).is_ok());
    let complaint = joined_with(29_999, 29_999 >> 4).unwrap_err();
    assert_eq!(complaint.rule, Rule::Window);
    assert!(complaint.detail.contains("takes back 15 bytes"), "{}", complaint.detail);
    // A server that grants less than was promised is the one who takes it back.
    assert!(joined_with(30_016, 30_000 >> 4).is_ok());
}

#[test]
fn unscaled_window_repeated_from_a_syn() {
    // 30000 bytes promised in a SYN-ACK become 480000 when the field is repeated under a scale of 4.
    let mut oracle = joined();
    let update = windowed(stamped(from_server(COOKIE + 1, Some(ISN.wrapping_add(1))), COOKIE_CLOCK, 101), 30_000);
    assert_eq!(oracle.delivered(&frame(&update), false, None).unwrap_err().rule, Rule::Window);
}

#[test]
fn data_and_fin_where_they_were_put() {
    let data = stream(server(), client(), 10);
    let mut oracle = joined();
    let mut original = server_data(1, &data);
    original.fin = true;
    oracle.sent(&frame(&original));
    let good = translated(&original);
    oracle.clone_and_deliver(&good, &original).unwrap();
    let mut early = good.clone();
    early.payload = &data[..9];
    assert_eq!(oracle.clone_and_deliver(&early, &original).unwrap_err().rule, Rule::Fin);
}

#[test]
fn reset_beyond_what_the_receiver_expects() {
    let mut oracle = joined();
    let mut reset = from_server(SERVER_ISN + 1, None);
    reset.rst = true;
    oracle.sent(&frame(&reset));
    let mut arrives = from_server(COOKIE + 1, None);
    arrives.rst = true;
    oracle.delivered(&frame(&arrives), false, None).unwrap();
    arrives.seq = COOKIE + 5000;
    assert_eq!(oracle.delivered(&frame(&arrives), false, None).unwrap_err().rule, Rule::Reset);
}

#[test]
fn of_the_syns_that_try_a_port_of_a_server_two_clients_may_pass_a_second_and_after_a_restart_two_more() {
    let mut oracle = Oracle::new(Between::Proxy, [server().ip()]);
    oracle.let_retry(false);
    let passes = |oracle: &mut Oracle, port: u16, now: u64| {
        let syn = Segment { source: SocketAddr::new(client().ip(), port), ..syn() };
        oracle.set_time(now);
        oracle.passed(&frame(&syn), false, Some(ancestor_of(&syn)))
    };
    for (port, now) in [(1, 0), (2, 100_000)] {
        passes(&mut oracle, port, now).unwrap();
    }
    let complaint = passes(&mut oracle.clone(), 3, 900_000).expect_err("a third");
    assert_eq!(complaint.rule, Rule::Origin);
    passes(&mut oracle.clone(), 3, 1_000_000).unwrap();
    oracle.begin_anew();
    for (port, now) in [(3, 900_000), (4, 910_000)] {
        passes(&mut oracle, port, now).unwrap();
    }
    passes(&mut oracle, 5, 920_000).expect_err("a third of the new process's");
}
