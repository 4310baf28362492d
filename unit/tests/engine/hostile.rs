//! Nothing that comes in a packet crashes, hangs or grows the engine: the faults by which its forerunner could be
//! killed from afar (W1 to W11), malformed input of every kind, and random sequences of frames.

use std::time::Duration;

use proptest::prelude::*;
use tcpstate::{DropReason, Event, Side, Verdict};
use unit::in_every_mode;
use unit::script::*;

fn linux(world: &World, client: &Host, server: &Host) -> Joined {
    let terms = Terms::linux(world.mss());
    open(client, server, terms, terms)
}

/// Where the IP header begins.
fn ip_at(world: &World) -> usize {
    14 + 4 * world.mode().tags
}

/// Computes the checksum of an IPv4 header of `len` bytes, whatever its length field says.
fn seal_header(frame: &mut [u8], at: usize, len: usize) {
    frame[at + 10..at + 12].fill(0);
    let mut sum: u32 = frame[at..at + len].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    if len >= 12 {
        frame[at + 10..at + 12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
}

// ---- W1 to W11 ----

#[test]
fn w1_an_extension_header_before_tcp_does_not_abort() {
    use Extension::{Authentication, Destination, Fragment, HopByHop, Mobility, Routing};
    let kinds = [HopByHop, Destination, Routing, Fragment(0, false), Authentication, Mobility];
    for mode in Mode::ALL.into_iter().filter(|mode| mode.family == Family::V6) {
        let (world, client, server) = mode.world();
        let mut port = 1000;
        let chains = kinds.iter().flat_map(|a| {
            kinds.iter().flat_map(move |b| [vec![*a], vec![*a, *b], vec![*a, *b, *a], vec![*b, *a, *b, *a]])
        });
        for chain in chains {
            port += 1;
            let (client, server) = world.on_port(port);
            client.sends(Terms::linux(1440).on(syn(CLIENT_ISN), (CLIENT_TS, 0)).behind(&chain));
            let answers = world.discard();
            let tame = chain.iter().all(|e| !matches!(e, Mobility | Authentication | Fragment(..)));
            if tame {
                assert_eq!(answers.len(), 1, "{chain:?}: {:?}", world.mode());
            }
            let Some((side, frame)) = answers.first() else { continue };
            if *side == Side::Lan {
                // What does not look like TCP (behind a mobility header) may pass; it opens nothing.
                continue;
            }
            let offered = read(frame, world.now()).unwrap();
            assert_eq!((offered.flags, offered.checksums), (SYN | ACK, (true, true)));
            let stamps = offered.ts().map(|(value, _)| (CLIENT_TS + 1, value));
            for seg in [
                ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(stamps),
                ack(CLIENT_ISN, offered.seq + 1).maybe_ts(stamps),
                fin(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(stamps),
                rst(CLIENT_ISN + 1),
            ] {
                client.sends(seg.behind(&chain));
                world.discard();
            }
            for seg in [syn_ack(SERVER_ISN, CLIENT_ISN + 1), rst_ack(0, CLIENT_ISN + 1), syn(9), fin(1, 2)] {
                server.sends(seg.behind(&chain));
                world.discard();
            }
            world.tick(Duration::from_millis(10));
            world.discard();
        }
        let _ = (client, server);
    }
}

#[test]
fn w2_an_ip_header_shorter_than_itself_is_dropped() {
    for mode in Mode::ALL.into_iter().filter(|mode| mode.family == Family::V4) {
        let (world, client, server) = mode.world();
        let at = ip_at(&world);
        for host in [&client, &server] {
            for ihl in 0..5 {
                for seg in [syn(1).mss(1460), ack(1, 2), rst(1), fin(1, 2)] {
                    let mut frame = host.frame(&seg);
                    frame[at] = 0x40 | ihl;
                    seal_header(&mut frame, at, usize::from(ihl) * 4);
                    host.sends_in_vain(frame, DropReason::Malformed);
                }
            }
        }
    }
}

#[test]
fn w3_a_total_length_below_the_header_length_is_dropped() {
    for mode in Mode::ALL {
        let (world, client, server) = mode.world();
        let at = ip_at(&world);
        for host in [&client, &server] {
            for seg in [syn(1).mss(1460), ack(1, 2), rst(1), fin(1, 2)] {
                let shortest = match mode.family {
                    Family::V4 => 40,
                    Family::V6 => 20,
                };
                for total in 0..shortest {
                    let mut frame = host.frame(&seg);
                    let field = if mode.family == Family::V4 { at + 2 } else { at + 4 };
                    frame[field..field + 2].copy_from_slice(&(total as u16).to_be_bytes());
                    if mode.family == Family::V4 {
                        seal_header(&mut frame, at, 20);
                    }
                    host.sends_in_vain(frame, DropReason::Malformed);
                }
            }
        }
    }
}

in_every_mode! {
    fn w4_option_of_length_zero_does_not_loop(world, client, server) {
        let j = linux(&world, &client, &server);
        for kind in [2, 3, 4, 5, 8, 30, 34, 253] {
            for len in [0, 1, 2, 3, 9, 11, 18, 40, 41, 255] {
                for nops in 0..4 {
                    let mut bytes = vec![1; nops];
                    bytes.extend([kind, len, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0]);
                    client.sends(ack(j.c(0), j.o(0)).raw(&bytes));
                    world.discard();
                    server.sends(ack(j.s(0), j.c(0)).raw(&bytes));
                    world.discard();
                    // And as the very last byte of the header, where no length follows.
                    let mut bytes = vec![1; 11];
                    bytes.push(kind);
                    client.sends(ack(j.c(0), j.o(0)).raw(&bytes));
                    world.discard();
                }
            }
        }
        Transfer::new(&client, &server, j).closes_from_the_client();
    }

    fn w5_sack_at_an_odd_offset_does_not_loop(world, client, server) {
        let j = linux(&world, &client, &server);
        let outer = [(j.o(100), j.o(200)), (j.o(300), j.o(400))];
        let inner = [(j.s(100), j.s(200)), (j.s(300), j.s(400))];
        client.sends(ack(j.c(0), j.o(0)).nop().sack(&outer).ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)));
        server.gets(ack(j.c(0), j.s(0)).sack(&inner).ts(CLIENT_TS + 2, SERVER_TS));
    }

    fn w6_the_first_syn_with_the_syn_cache_on_is_answered(world, client, server) {
        client.sends(Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
        server.gets(nothing());
        assert_eq!(world.population().syn_cached, u64::from(world.mode().cache));
        assert_eq!(world.happened(Event::CacheStored), u64::from(world.mode().cache));
    }
}

#[test]
fn w7_no_place_and_no_spare_frame_are_survived() {
    for mode in Mode::ALL {
        let (world, _, _) = mode.world_with(|config| {
            config.table_buckets = 1;
            config.learn_capacity = 1;
            config.syn_cache_max = config.syn_cache_max.min(1);
        });
        world.spare_frames(0);
        let theirs = Terms::linux(mode.mss());
        for i in 0..200 {
            let (client, server) = world.on_port(1000 + i);
            // Every other connection is opened from the LAN.
            if i % 2 == 0 {
                server.sends(theirs.on(syn(5), (1, 0)));
                world.discard();
                continue;
            }
            client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            let offered = client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).ts(CLIENT_TS + 1, offered.ts().unwrap().0));
            world.discard();
            server.sends(theirs.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS, CLIENT_TS + 1)));
            world.discard();
            world.tick(Duration::from_millis(700));
            world.discard();
        }
        let there = world.population();
        assert!(there.proxied + there.passthrough <= 8, "{there:?}");
    }
}

in_every_mode! {
    fn w8_a_wild_window_scale_shifts_nothing_out_of_its_width(world, client, server) {
        let _ = (client, server);
        for shift in [15, 31, 32, 64, 255] {
            let wild = Terms { wscale: Some(shift), ..Terms::linux(world.mss()) };
            // In the SYN of a client, and in the answer of its server.
            let (client, server) = world.on_port(1000 + u16::from(shift));
            let j = open(&client, &server, wild, wild);
            assert_eq!(j.server_syn.wscale(), Some(14));
            // In the SYN-ACK that a host of the LAN gets from the WAN.
            let (client, server) = world.on_port(2000 + u16::from(shift));
            server.passes(wild.on(syn(100), (1, 0)));
            client.passes(wild.on(syn_ack(900, 101), (2, 1)));
            server.passes(ack(101, 901).window(65535).ts(2, 2));
            client.passes(data(901, 101, 100).window(65535).ts(3, 2));
        }
    }

    fn w9_a_lan_reset_on_a_half_open_tuple_leaves_no_dangling_entry(world, client, server) {
        let theirs = Terms::linux(world.mss());
        for seq in [0, 1, u32::MAX, CLIENT_ISN] {
            client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
            client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options());
            server.sends_in_vain_for_any_reason(rst(seq));
            server.sends_in_vain_for_any_reason(rst_ack(seq, CLIENT_ISN + 1));
        }
        world.after_secs(10);
        let j = linux(&world, &client, &server);
        Transfer::new(&client, &server, j).closes_from_the_client();
        world.after_secs(300);
        world.has_flows(0, 0);
        assert_eq!(world.population().syn_cached, 0);
    }

    fn w10_a_frame_of_any_size_is_survived(world, client, server) {
        let j = linux(&world, &client, &server);
        for len in [1449, 2048, 4096, 9000, 16_000, 65_000] {
            for sight in [usize::MAX, 2048, 128] {
                world.first_buffer_holds(sight);
                client.sends(data(j.c(0), j.o(0), len).nop().nop().ts(CLIENT_TS + 2, j.ts_out(SERVER_TS)));
                for (side, frame) in world.discard() {
                    let got = read(&frame, world.now()).unwrap();
                    assert_eq!((side, got.seq, got.ack, got.checksums), (Side::Lan, j.c(0), j.s(0), (true, true)));
                }
                // A SYN that large is not answered by more than an ordinary one.
                let (other, _) = world.on_port(77);
                other.sends(Terms::linux(world.mss()).on(syn(CLIENT_ISN), (CLIENT_TS, 0)).payload(len));
                for (_, frame) in world.discard() {
                    assert!(frame.len() <= 110, "{} bytes", frame.len());
                }
            }
        }
    }

    fn w11_ethertype_and_version_at_odds_are_dropped(world, client, server) {
        let at = ip_at(&world);
        for host in [&client, &server] {
            for seg in [syn(1).mss(1400), ack(1, 2), rst(1)] {
                let frame = host.frame(&seg);
                let mut other_type = frame.clone();
                let swapped: [u8; 2] = if world.mode().family == Family::V4 { [0x86, 0xDD] } else { [0x08, 0x00] };
                other_type[at - 2..at].copy_from_slice(&swapped);
                host.sends_in_vain(other_type, DropReason::Malformed);
                for version in 0..16 {
                    if version == frame[at] >> 4 {
                        continue;
                    }
                    let mut other_version = frame.clone();
                    other_version[at] = version << 4 | (frame[at] & 15);
                    host.sends_in_vain(other_version, DropReason::Malformed);
                }
            }
        }
    }

    fn w11_a_data_offset_below_five_or_beyond_the_segment_is_dropped(world, client, server) {
        let j = linux(&world, &client, &server);
        let tcp = read(&client.frame(&ack(1, 2)), world.now()).unwrap().tcp_at;
        for (host, seq, acked) in [(&client, j.c(0), j.o(0)), (&server, j.s(0), j.c(0))] {
            for flags in [SYN, ACK, RST, FIN | ACK] {
                let seg = segment(flags, seq, acked).mss(1400);
                let frame = host.frame(&seg);
                for offset in (0..5).chain(7..16) {
                    let mut frame = frame.clone();
                    frame[tcp + 12] = offset << 4 | (frame[tcp + 12] & 15);
                    seal(&mut frame);
                    host.sends_in_vain(frame, DropReason::Malformed);
                }
            }
        }
    }
}

// ---- malformed input ----

in_every_mode! {
    fn every_truncation_is_dropped(world, client, server) {
        let j = linux(&world, &client, &server);
        for (host, seq, acked) in [(&client, j.c(0), j.o(0)), (&server, j.s(0), j.c(0))] {
            for seg in [
                Terms::linux(world.mss()).on(syn(seq), (1, 0)),
                Terms::linux(world.mss()).on(syn_ack(seq, acked), (1, 0)),
                data(seq, acked, 20).ts(CLIENT_TS, 5).sack(&[(1, 2)]),
                fin(seq, acked),
                rst(seq),
            ] {
                let frame = host.frame(&seg);
                for len in 0..frame.len() {
                    host.sends_in_vain(frame[..len].to_vec(), DropReason::Malformed);
                }
            }
        }
        Transfer::new(&client, &server, j).closes_from_the_client();
    }

    fn impossible_flags_are_dropped(world, client, server) {
        let j = linux(&world, &client, &server);
        let (fresh, fresh_server) = world.on_port(77);
        for (host, seq, acked) in
            [(&client, j.c(0), j.o(0)), (&server, j.s(0), j.c(0)), (&fresh, 5, 6), (&fresh_server, 5, 6)]
        {
            for flags in [SYN | FIN, SYN | RST, SYN | FIN | ACK, SYN | RST | ACK, SYN | FIN | RST, 0, 0x1FF] {
                host.sends_in_vain(segment(flags, seq, acked), DropReason::BadFlags);
            }
            // The Christmas tree, and data without acknowledgement.
            for flags in [FIN | PSH | URG, FIN, PSH, URG] {
                host.sends_in_vain_for_any_reason(segment(flags, seq, acked).payload(10));
            }
        }
        Transfer::new(&client, &server, j).closes_from_the_client();
    }

    fn sources_no_host_can_have_are_dropped(world, client, server) {
        let _ = server;
        for frame in impossible_sources(&world, &client, syn(1).mss(1400)) {
            client.sends_in_vain(frame, DropReason::BadAddress);
        }
        // What is no SYN is dropped for one reason or another.
        for seg in [ack(1, 2), rst(1), fin(1, 2), syn_ack(1, 2)] {
            for frame in impossible_sources(&world, &client, seg) {
                client.sends_in_vain_for_any_reason(frame);
            }
        }
    }

    fn sources_no_host_of_the_lan_can_have_are_dropped(world, client, server) {
        let _ = client;
        for seg in [syn(1).mss(1400), ack(1, 2), rst(1)] {
            for frame in impossible_sources(&world, &server, seg) {
                server.sends(frame);
                if !world.discard().is_empty() || world.population().passthrough > 0 {
                    world.fail("a segment from an address no host can have was passed on");
                }
            }
        }
    }

    fn a_syn_to_a_group_is_not_answered(world, client, server) {
        let at = ip_at(&world);
        let mut frame = client.frame(&syn(1).mss(1400));
        if world.mode().family == Family::V4 {
            frame[at + 16] = 224;
        } else {
            frame[at + 24] = 0xFF;
        }
        seal(&mut frame);
        client.sends(frame);
        client.gets(nothing());
        world.discard();
        server.gets(nothing());
    }

    fn a_syn_with_senseless_options_is_answered_or_dropped_and_no_more(world, client, server) {
        let _ = (client, server);
        let lists: [&[u8]; 16] = [
            &[1; 40],
            &[0; 40],
            &[2, 4, 5, 0xB4, 2, 4, 0, 100],
            &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 8, 10, 0, 0, 0, 2, 0, 0, 0, 0],
            &[3, 3, 7, 3, 3, 2, 1, 1],
            &[0, 2, 4, 5, 0xB4, 0, 0, 0],
            &[2, 0, 0, 0],
            &[2, 1, 0, 0],
            &[2, 3, 5, 1],
            &[2, 5, 5, 0xB4, 0, 0, 0, 0],
            &[2, 41, 0, 0],
            &[1, 1, 1, 2],
            &[1, 2, 4, 5, 0xB4, 3, 3, 7, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1],
            &[4, 3, 0, 1],
            &[8, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
            &[3, 2, 1, 1],
        ];
        for (i, list) in lists.into_iter().enumerate() {
            let (client, server) = world.on_port(1000 + i as u16);
            client.sends(syn(CLIENT_ISN).raw(list));
            server.gets(nothing());
            for (side, frame) in world.discard() {
                let got = read(&frame, world.now()).unwrap();
                assert_eq!((side, got.flags, got.window, got.checksums), (Side::Wan, SYN | ACK, 0, (true, true)));
                client.sends(
                    ack(CLIENT_ISN + 1, got.seq + 1).maybe_ts(got.ts().map(|(value, _)| (CLIENT_TS, value))),
                );
                server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
            }
        }
    }

    fn forty_bytes_of_padding_pass_on_an_established_connection(world, client, server) {
        let terms = Terms::bare(world.mss());
        let j = open(&client, &server, terms, terms);
        client.sends(data(j.c(0), j.o(0), 5).raw(&[1; 40]));
        server.gets(data(j.c(0), j.s(0), 5));
        server.sends(data(j.s(0), j.c(5), 5).raw(&[1; 40]));
        client.gets(data(j.o(0), j.c(5), 5));
    }

    fn floods_of_resets_and_closes_open_and_close_nothing(world, client, server) {
        let j = linux(&world, &client, &server);
        for i in 0..2000_u32 {
            let (bot, _) = world.pair((i >> 6) as u16, (i & 63) as u8 + 2, 4000);
            bot.sends_in_vain(rst(i * 7919), DropReason::NoFlow);
            bot.sends(fin(i * 7919, i * 104_729));
            server.gets(nothing());
            client.gets(nothing());
        }
        world.has_flows(1, 0);
        Transfer::new(&client, &server, j).closes_from_the_client();
    }
}

/// The frame of `seg` from the destination itself, from a group, from the broadcast address and from the unspecified one.
fn impossible_sources(world: &World, host: &Host, seg: Seg) -> Vec<Vec<u8>> {
    let at = ip_at(world);
    let v4 = world.mode().family == Family::V4;
    let frame = host.frame(&seg);
    let sources: Vec<Vec<u8>> = if v4 {
        let own = frame[at + 16..at + 20].to_vec();
        vec![own, vec![224, 0, 0, 1], vec![239, 1, 2, 3], vec![255; 4], vec![0; 4]]
    } else {
        let own = frame[at + 24..at + 40].to_vec();
        let mut multicast = vec![0; 16];
        (multicast[0], multicast[1], multicast[15]) = (0xFF, 0x02, 1);
        vec![own, multicast, vec![0; 16]]
    };
    sources
        .into_iter()
        .map(|source| {
            let mut frame = frame.clone();
            let from = if v4 { at + 12 } else { at + 8 };
            frame[from..from + source.len()].copy_from_slice(&source);
            seal(&mut frame);
            frame
        })
        .collect()
}

// ---- random sequences ----

/// A number a sender may choose: near something that means something in this connection, or anywhere.
#[derive(Clone, Copy, Debug)]
enum Pick {
    ClientIsn(i32),
    Cookie(i32),
    ServerIsn(i32),
    Anywhere(u32),
}

#[derive(Clone, Debug)]
struct Shaped {
    side: Side,
    port: u16,
    flags: u16,
    seq: Pick,
    ack: Pick,
    window: u16,
    options: Vec<u8>,
    payload: usize,
    extensions: Vec<Extension>,
    /// Bytes to change: where (modulo the frame's length) and how.
    damage: Vec<(usize, u8)>,
    /// Whether the checksums are made right again after the damage.
    sealed: bool,
    cut: Option<usize>,
    sight: usize,
}

#[derive(Clone, Debug)]
enum Act {
    /// Bytes without any sense.
    Noise(Side, Vec<u8>),
    /// A segment that is nearly right.
    Shaped(Shaped),
    /// A client opens by the book, up to its proof.
    Proof(u16, bool),
    /// The server answers the last SYN it got, if any.
    Answer(u16),
    /// Time passes, in milliseconds.
    Tick(u64),
    /// The pool holds so many spare frames.
    Spare(usize),
}

fn side() -> impl Strategy<Value = Side> {
    prop::sample::select(vec![Side::Lan, Side::Wan])
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        4 => (-2..3000_i32).prop_map(Pick::ClientIsn),
        4 => (-2..3000_i32).prop_map(Pick::Cookie),
        4 => (-2..3000_i32).prop_map(Pick::ServerIsn),
        1 => any::<u32>().prop_map(Pick::Anywhere),
    ]
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let option = prop_oneof![
        Just(vec![1]),
        Just(vec![0]),
        Just(vec![2, 4, 5, 0xB4]),
        any::<u8>().prop_map(|shift| vec![3, 3, shift]),
        Just(vec![4, 2]),
        any::<[u8; 8]>().prop_map(|b| [vec![8, 10], b.to_vec()].concat()),
        any::<[u8; 16]>().prop_map(|b| [vec![5, 18], b.to_vec()].concat()),
        (any::<u8>(), 0..20_u8).prop_map(|(kind, len)| vec![kind, len]),
    ];
    prop::collection::vec(option, 0..5).prop_map(|options| {
        let mut bytes = options.concat();
        bytes.truncate(40);
        bytes
    })
}

fn extensions() -> impl Strategy<Value = Vec<Extension>> {
    use Extension::{Authentication, Destination, Fragment, HopByHop, Mobility, Routing};
    let one = prop_oneof![
        Just(HopByHop),
        Just(Destination),
        Just(Routing),
        Just(Authentication),
        Just(Mobility),
        (0..1000_u16, any::<bool>()).prop_map(|(offset, more)| Fragment(offset & !7, more)),
    ];
    prop_oneof![6 => Just(Vec::new()), 1 => prop::collection::vec(one, 0..4)]
}

fn shaped() -> impl Strategy<Value = Shaped> {
    let flags = prop_oneof![
        8 => prop::sample::select(vec![SYN, SYN | ACK, ACK, PSH | ACK, FIN | ACK, RST, RST | ACK, SYN | ECE | CWR]),
        1 => 0..0x200_u16,
    ];
    (
        (side(), 0..3_u16, flags, pick(), pick(), any::<u16>()),
        (options(), prop_oneof![3 => Just(0), 1 => 1..1460_usize], extensions()),
        (
            prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec((any::<usize>(), any::<u8>()), 1..4)],
            any::<bool>(),
            prop_oneof![9 => Just(None), 1 => (0..100_usize).prop_map(Some)],
            prop::sample::select(vec![usize::MAX, usize::MAX, 128, 60]),
        ),
    )
        .prop_map(
            |((side, port, flags, seq, ack, window), (options, payload, extensions), (damage, sealed, cut, sight))| {
                Shaped { side, port, flags, seq, ack, window, options, payload, extensions, damage, sealed, cut, sight }
            },
        )
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => (side(), prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(side, bytes)| Act::Noise(side, bytes)),
        12 => shaped().prop_map(Act::Shaped),
        4 => (0..3_u16, any::<bool>()).prop_map(|(port, ts)| Act::Proof(port, ts)),
        4 => (0..3_u16).prop_map(Act::Answer),
        2 => prop_oneof![0..2000_u64, 0..200_000_u64].prop_map(Act::Tick),
        1 => prop_oneof![2 => Just(usize::MAX), 1 => 0..3_usize].prop_map(Act::Spare),
    ]
}

/// What the attacker has seen of one connection.
#[derive(Clone, Copy, Default)]
struct Seen {
    cookie: u32,
    stamp: Option<u32>,
    server_syn: Option<u32>,
}

fn live_through(mode: Mode, acts: Vec<Act>) {
    let (world, _, _) = mode.world_with(|config| {
        config.table_buckets = 1;
        config.learn_capacity = 2;
        config.syn_cache_max = config.syn_cache_max.min(2);
        config.rate.size = 2;
        config.rate.burst = 50;
    });
    let capacity = 8;
    let mut seen = [Seen::default(); 3];
    let isn = |port: u16| CLIENT_ISN + u32::from(port) * 1000;
    let meta = |seen: &mut [Seen; 3], sound: bool| {
        let out = world.discard();
        assert!(out.len() <= 4, "one frame in, {} out", out.len());
        for (side, frame) in out {
            let got = match read(&frame, world.now()) {
                Ok(got) if got.checksums == (true, true) => got,
                Ok(got) if sound => panic!("the engine's own segment has wrong checksums: {got}"),
                Err(error) if sound => panic!("the engine's own segment is malformed: {error}"),
                _ => continue,
            };
            let port = if side == Side::Wan { got.ports.1 } else { got.ports.0 };
            let Some(seen) = port.checked_sub(1000).and_then(|i| seen.get_mut(usize::from(i))) else { continue };
            match (side, got.flags & (SYN | ACK | RST)) {
                (Side::Wan, f) if f == SYN | ACK => (seen.cookie, seen.stamp) = (got.seq, got.ts().map(|t| t.0)),
                (Side::Lan, SYN) => seen.server_syn = Some(got.seq),
                _ => (),
            }
        }
    };
    for act in acts {
        match act {
            Act::Noise(side, bytes) => {
                let _ = world.inject(side, &bytes);
                meta(&mut seen, false);
            }
            Act::Shaped(s) => {
                let (client, server) = world.on_port(1000 + s.port);
                let host = if s.side == Side::Wan { client } else { server };
                let known = seen[usize::from(s.port)];
                let number = |pick: Pick| match pick {
                    Pick::ClientIsn(near) => isn(s.port).wrapping_add_signed(near),
                    Pick::Cookie(near) => known.cookie.wrapping_add_signed(near),
                    Pick::ServerIsn(near) => SERVER_ISN.wrapping_add_signed(near),
                    Pick::Anywhere(number) => number,
                };
                let seg = segment(s.flags, number(s.seq), number(s.ack)).window(s.window).raw(&s.options);
                let seg = seg.payload(s.payload);
                let seg = if mode.family == Family::V6 { seg.behind(&s.extensions) } else { seg };
                let mut frame = host.frame(&seg);
                for (at, change) in s.damage {
                    let at = at % frame.len();
                    frame[at] ^= change;
                }
                if s.sealed {
                    seal(&mut frame);
                }
                if let Some(cut) = s.cut {
                    frame.truncate(cut);
                }
                world.first_buffer_holds(s.sight);
                let verdict = world.inject(s.side, &frame);
                world.first_buffer_holds(usize::MAX);
                meta(&mut seen, !matches!(verdict, Verdict::Forward));
            }
            Act::Proof(port, ts) => {
                let (client, _) = world.on_port(1000 + port);
                let terms = Terms { ts, ..Terms::linux(mode.mss()) };
                let _ = world.inject(Side::Wan, &client.frame(&terms.on(syn(isn(port)), (CLIENT_TS, 0))));
                meta(&mut seen, true);
                let known = seen[usize::from(port)];
                let stamps = known.stamp.map(|value| (CLIENT_TS + 1, value));
                let proof = ack(isn(port) + 1, known.cookie.wrapping_add(1)).maybe_ts(stamps);
                let _ = world.inject(Side::Wan, &client.frame(&proof));
                meta(&mut seen, true);
            }
            Act::Answer(port) => {
                let (_, server) = world.on_port(1000 + port);
                if let Some(seq) = seen[usize::from(port)].server_syn {
                    let answer = Terms::linux(mode.mss()).on(syn_ack(SERVER_ISN, seq.wrapping_add(1)), (SERVER_TS, 1));
                    let _ = world.inject(Side::Lan, &server.frame(&answer));
                    meta(&mut seen, true);
                }
            }
            Act::Tick(millis) => {
                world.tick(Duration::from_millis(millis));
                for (_, frame) in world.discard() {
                    let got = read(&frame, world.now()).expect("the engine's own segments are sound");
                    assert_eq!(got.checksums, (true, true));
                }
            }
            Act::Spare(frames) => world.spare_frames(frames),
        }
        let there = world.population();
        assert!(there.proxied + there.passthrough <= capacity && there.syn_cached <= 2, "{there:?}");
    }
    // Whatever came, it all ends: a day and a bit later nothing is left.
    world.spare_frames(usize::MAX);
    for _ in 0..30 {
        world.tick(Duration::from_secs(3600));
        world.discard();
    }
    let there = world.population();
    assert_eq!((there.proxied, there.passthrough, there.syn_cached), (0, 0, 0), "something outlived its timers");
    // And an honest client gets in.
    let (client, server) = world.pair(9, 9, 9);
    let terms = Terms::linux(mode.mss());
    open(&client, &server, terms, terms);
}

/// So many cases, or as many as `PROPTEST_CASES` says.
fn cases(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn no_sequence_of_frames_and_ticks_breaks_the_engine(
        mode in prop::sample::select(Mode::ALL.to_vec()),
        acts in prop::collection::vec(act(), 1..200),
    ) {
        live_through(mode, acts);
    }

    #[test]
    fn no_bytes_at_all_break_the_engine(
        frames in prop::collection::vec((side(), prop::collection::vec(any::<u8>(), 0..128)), 1..100),
    ) {
        let (world, _, _) = Mode::V4.cached().world();
        for (side, bytes) in frames {
            let _ = world.inject(side, &bytes);
            world.discard();
            // The same bytes behind an EtherType that means something.
            for ethertype in [[0x08, 0x00], [0x86, 0xDD], [0x81, 0x00], [0x88, 0xA8]] {
                let mut frame = vec![2; 12];
                frame.extend(ethertype);
                frame.extend(&bytes);
                let _ = world.inject(side, &frame);
                world.discard();
            }
        }
    }
}
