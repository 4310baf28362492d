//! What the field meets (`docs/field.md`), on connections that pass untouched: because of the mode of their destination, because their client has proved
//! itself, or because it is in the list `allow`. The box does what a cable does: every frame leaves as it came, and the connection is followed to its end.

use std::sync::Arc;
use std::time::Duration;

use tcpstate::config::{Action, Asymmetric, Mode as Does, Network, Proved};
use tcpstate::wire::Parsed;
use tcpstate::{Config, Head, List, Lists, Metadata, ServerUpdate, Side};
use unit::script::*;

use crate::who::{Tag, Wrap, at, at_home, routes, source_routed, stations, tagged};

/// Why connections pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Mode(Does),
    Proved,
    Listed,
}

const WHY: [Why; 5] =
    [Why::Mode(Does::Pass), Why::Mode(Does::Observe), Why::Mode(Does::Auto), Why::Proved, Why::Listed];
const MODES: [Mode; 3] = [Mode::V4, Mode::V6, Mode::V4.cached()];

impl Why {
    /// A world in which clients' connections pass for this reason.
    fn world(self, mode: Mode) -> (World, Host, Host) {
        self.world_with(mode, |_| ())
    }

    fn world_with(self, mode: Mode, change: impl FnOnce(&mut Config)) -> (World, Host, Host) {
        let (world, client, server) = mode.world_with(|config| {
            // Whatever would be changed, dropped or answered otherwise.
            config.mss_clamp = Some(500);
            config.closed_memory = Duration::from_secs(10);
            config.icmp_errors = Action::Drop;
            config.stray_fragments = Action::Drop;
            match self {
                Why::Mode(mode) => config.mode = mode,
                Why::Proved => {
                    config.proved = Proved::Pass;
                    (config.proved_syns, config.proved_half_open) = (100, 12);
                }
                Why::Listed => {}
            }
            change(config);
        });
        if self == Why::Listed {
            let address = match mode.family {
                Family::V4 => Network { address: [0, 0, 0xffff, 0], prefix: 96 },
                Family::V6 => Network { address: [0; 4], prefix: 0 },
            };
            world.operate(|proxy, _| drop(proxy.set_lists(Arc::new(Lists::new([(List::Allow, address)])))));
        }
        (world, client, server)
    }
}

/// Both ends of a connection that passes, how the frames of each look, and what the world was called.
struct Ends<'a> {
    why: Why,
    world: &'a World,
    client: Host,
    server: Host,
    client_frames: Wrap,
    server_frames: Wrap,
    what: String,
}

impl<'a> Ends<'a> {
    fn new(why: Why, (world, client, server): &'a (World, Host, Host), what: impl std::fmt::Display) -> Self {
        let plain = || -> Wrap { Box::new(|frame| frame) };
        let what = format!("{why:?}, {}, {what}", world.mode());
        println!("{what}");
        let (client, server) = (client.clone(), server.clone());
        Self { why, world, client, server, client_frames: plain(), server_frames: plain(), what }
    }

    /// The two directions' frames bear these tags.
    fn in_tags(self, client: &'static [Tag], server: &'static [Tag]) -> Self {
        Self {
            client_frames: Box::new(|frame| tagged(&frame, client)),
            server_frames: Box::new(|frame| tagged(&frame, server)),
            ..self
        }
    }

    /// The client's frame goes through as it is.
    #[track_caller]
    fn up(&self, seg: impl Sendable) {
        let frame = (self.client_frames)(seg.frame(&self.client));
        if self.why == Why::Proved {
            self.prove(&frame);
        }
        self.client.passes(frame);
    }

    /// The server's frame goes through as it is.
    #[track_caller]
    fn down(&self, seg: impl Sendable) {
        let frame = (self.server_frames)(seg.frame(&self.server));
        self.server.passes(frame);
    }

    /// The client of this frame has proved itself, to another worker.
    fn prove(&self, frame: &[u8]) {
        let mut bytes = frame.to_vec();
        let head = Head::new(&mut bytes, 0, frame.len(), frame.len());
        let mut meta = Metadata::default();
        self.world.operate(|proxy, now| {
            proxy.parse(Side::Wan, &head, &mut meta);
            if let Parsed::Tcp(segment) = meta.parsed() {
                proxy.receive_update(&ServerUpdate::Proved(segment.key), now);
            }
        });
    }

    fn half_open(&self) -> u64 {
        self.world.operate(|proxy, _| proxy.target_counts(0).half_open)
    }

    fn terms(&self) -> Terms {
        Terms::linux(self.world.mss())
    }

    fn a_syn(&self) -> Seg {
        self.terms().on(syn(100), (7, 0))
    }

    fn an_answer(&self) -> Seg {
        self.terms().on(syn_ack(900, 101), (70, 7))
    }

    #[track_caller]
    fn opens(&self) {
        self.up(self.a_syn());
        self.down(self.an_answer());
        self.up(stamped(ack(101, 901), 8, 70));
    }

    /// What the ends judge for themselves, data, and the end.
    #[track_caller]
    fn talks(&self) {
        self.up(rst(101 + 5000));
        self.down(rst(901 + 5000));
        self.up(data(99_999_999, 77_777_777, 10));
        self.says_and_ends();
    }

    #[track_caller]
    fn says_and_ends(&self) {
        self.up(stamped(data(101, 901, 100), 9, 70).flags(PSH));
        self.down(stamped(data(901, 201, 200), 71, 9));
        self.down(stamped(data(901, 201, 200), 72, 9));
        self.up(stamped(fin(201, 1101), 10, 72));
        self.down(stamped(fin(1101, 202), 73, 10));
        self.up(stamped(ack(202, 1102), 11, 73));
    }

    /// The connection is followed and over, nobody counts it any more, and the box has done nothing of its own.
    #[track_caller]
    fn is_over(&self) {
        assert_eq!(self.half_open(), 0, "{}", self.what);
        self.world.after_secs(130);
        self.world.has_flows(0, 0);
        self.has_done_nothing();
    }

    #[track_caller]
    fn has_done_nothing(&self) {
        assert_eq!((self.world.all_dropped(), self.world.emitted()), (0, 0), "{}", self.what);
    }
}

fn stamped(seg: Seg, value: u32, echo: u32) -> Seg {
    seg.nop().nop().ts(value, echo)
}

/// Runs a story for each reason, in each of these modes.
fn each(modes: &[Mode], story: impl Fn(Why, Mode)) {
    for why in WHY {
        for &mode in modes {
            story(why, mode);
        }
    }
}

const PRIORITY: Tag = (0x8100, 0xa000);

#[test]
fn frames_with_priority_tags_and_without() {
    let network: [&[Tag]; 2] = [&[(0x8100, 10)], &[(0x8100, 0xe00a)]];
    let cases: [[&[Tag]; 2]; 4] = [[&[PRIORITY], &[]], [&[], &[PRIORITY]], [&[PRIORITY], &[PRIORITY]], network];
    each(&MODES, |why, mode| {
        for [inward, outward] in cases {
            let world = why.world(mode);
            let ends = Ends::new(why, &world, format!("{inward:x?} {outward:x?}")).in_tags(inward, outward);
            ends.opens();
            ends.world.has_flows(0, 1);
            ends.talks();
            ends.is_over();
        }
    });
}

const VLANS: [[&[Tag]; 2]; 5] = [
    [&[(0x8100, 10)], &[(0x8100, 20)]],
    [&[(0x8100, 20)], &[(0x8100, 10)]],
    [&[], &[(0x8100, 20)]],
    [&[(0x8100, 10)], &[]],
    [&[(0x88a8, 10), (0x8100, 5)], &[(0x8100, 20)]],
];

#[test]
fn directions_in_different_vlans() {
    each(&MODES, |why, mode| {
        for [inward, outward] in VLANS {
            let world = why.world(mode);
            let ends = Ends::new(why, &world, format!("{inward:x?} {outward:x?}")).in_tags(inward, outward);
            ends.opens();
            assert_eq!(ends.half_open(), 0, "{}", ends.what);
            ends.talks();
            ends.is_over();
        }
    });
}

#[test]
fn a_refusal_and_an_error_in_another_vlan() {
    each(&MODES, |why, mode| {
        for [inward, outward] in VLANS {
            let world = why.world(mode);
            let ends = Ends::new(why, &world, "refused").in_tags(inward, outward);
            ends.up(ends.a_syn());
            ends.down(rst_ack(0, 101));
            ends.is_over();
            let world = why.world(mode);
            let ends = Ends::new(why, &world, "unreachable").in_tags(inward, outward);
            ends.up(ends.a_syn());
            let syn = ends.client.frame(&ends.a_syn());
            ends.down(icmp_error(&ends.server.ends(), 0, Complaint::HostUnreachable, &syn, 20));
            ends.up(ends.a_syn());
            ends.down(ends.an_answer());
            ends.up(stamped(ack(101, 901), 8, 70));
            ends.talks();
            ends.is_over();
        }
    });
}

#[test]
fn connections_of_the_lan_in_different_vlans() {
    each(&MODES, |why, mode| {
        for [inward, outward] in VLANS {
            let world = why.world_with(mode, |config| config.mss_clamp = None);
            let ends = Ends::new(why, &world, format!("{inward:x?} {outward:x?}")).in_tags(inward, outward);
            ends.down(ends.terms().on(syn(900), (70, 0)));
            ends.up(ends.terms().on(syn_ack(100, 901), (7, 70)));
            ends.down(stamped(ack(901, 101), 71, 7));
            ends.up(stamped(data(101, 901, 100), 9, 71));
            ends.down(stamped(data(901, 201, 200), 72, 9));
            ends.up(stamped(fin(201, 1101), 10, 72));
            ends.down(stamped(fin(1101, 202), 73, 10));
            ends.up(stamped(ack(202, 1102), 11, 73));
            ends.is_over();
        }
    });
}

#[test]
fn servers_behind_a_group_address_and_ends_that_move() {
    let (group, own, other) = ([3, 0xbf, 10, 77, 0, 2], [2, 0, 0, 0, 0, 4], [2, 0, 0, 0, 7, 9]);
    let client_at = [2, 0, 0, 0, 0, 1];
    each(&MODES, |why, mode| {
        let (world, ..) = why.world(mode);
        let (client, server) = stations(&world, [client_at, group], [own, client_at]);
        let (later, moved) = stations(&world, [other, group], [other, client_at]);
        let first = (world.clone(), client, server);
        let second = (world.clone(), later, moved);
        Ends::new(why, &first, "a group").opens();
        let ends = Ends::new(why, &second, "other stations");
        ends.talks();
        ends.is_over();
    });
}

#[test]
fn reserved_addresses() {
    each(&[Mode::V4], |why, mode| {
        for (one, other) in [("240.77.0.1", "240.77.0.2"), ("0.77.0.1", "255.255.255.254")] {
            let (world, ..) = why.world(mode);
            let (client, server) = at(&world, one, other);
            let world = (world, client, server);
            let ends = Ends::new(why, &world, one);
            ends.opens();
            ends.talks();
            ends.is_over();
        }
    });
}

#[test]
fn headers_that_name_another_end() {
    each(&[Mode::V6], |why, mode| {
        let (_, _, server) = mode.world();
        let wraps = routes(&server).into_iter().chain([("home address", at_home())]);
        for (name, wrap) in wraps {
            // Where that is no mode's doing they pass as such connections always do.
            let world = why.world_with(mode, |config| config.mss_clamp = None);
            let ends = Ends { client_frames: wrap, ..Ends::new(why, &world, name) };
            ends.opens();
            ends.says_and_ends();
            ends.is_over();
        }
    });
    each(&[Mode::V4], |why, mode| {
        for kind in [131, 137] {
            // Where that is no mode's doing they pass as such connections always do.
            let world = why.world_with(mode, |config| config.mss_clamp = None);
            let wrap: Wrap = Box::new(move |frame| source_routed(&frame, kind, [192, 0, 2, 99]));
            let ends = Ends { client_frames: wrap, ..Ends::new(why, &world, "a source route") };
            ends.opens();
            ends.says_and_ends();
            ends.is_over();
        }
    });
}

#[test]
fn ends_that_open_at_the_same_time() {
    each(&MODES, |why, mode| {
        for wan_first in [true, false] {
            for [inward, outward] in [[&[] as &[Tag], &[]], [&[PRIORITY], &[]]] {
                let world = why.world_with(mode, |config| config.mss_clamp = None);
                let what = format!("WAN first: {wan_first}");
                let ends = Ends::new(why, &world, what).in_tags(inward, outward);
                let theirs = || ends.terms().on(syn(900), (70, 0));
                if wan_first {
                    ends.up(ends.a_syn());
                    ends.down(theirs());
                } else {
                    ends.down(theirs());
                    ends.up(ends.a_syn());
                }
                // Both are repeated, then answered (RFC 9293 section 3.5, figure 7).
                ends.down(theirs());
                ends.up(ends.a_syn());
                ends.up(ends.terms().on(syn_ack(100, 901), (8, 70)));
                ends.down(ends.an_answer());
                ends.says_and_ends();
                ends.is_over();
            }
        }
    });
}

#[test]
fn a_syn_repeated_with_other_options_and_either_answer() {
    each(&MODES, |why, mode| {
        for answers_first in [true, false] {
            let world = why.world(mode);
            let ends = Ends::new(why, &world, format!("the first is answered: {answers_first}"));
            ends.up(ends.a_syn());
            ends.up(Terms::bare(mode.mss()).on(syn(100), (0, 0)));
            if answers_first {
                ends.down(ends.an_answer());
                ends.up(stamped(ack(101, 901), 8, 70));
                ends.talks();
            } else {
                ends.down(Terms::bare(mode.mss()).on(syn_ack(900, 101), (0, 0)));
                ends.up(ack(101, 901));
                ends.up(data(101, 901, 60_000));
                ends.down(fin(901, 60_101));
                ends.up(fin(60_101, 902));
                ends.down(ack(902, 60_102));
            }
            ends.is_over();
        }
    });
}

#[test]
fn classes_hop_limits_and_congestion_marks() {
    each(&MODES, |why, mode| {
        let world = why.world(mode);
        let ends = Ends::new(why, &world, "classes");
        // AccECN (RFC 9768) with an option of its own in each segment.
        let option = [172, 5, 1, 2, 3, 1, 1, 1];
        ends.up(ends.a_syn().flags(AE | CWR | ECE).tos(0xb8 | 1).ttl(255));
        ends.down(ends.an_answer().flags(AE | ECE).tos(0x88 | 2).ttl(255));
        ends.up(stamped(ack(101, 901), 8, 70).raw(&option).flags(CWR).tos(0x20 | 3).ttl(1));
        ends.up(stamped(data(101, 901, 100), 9, 70).raw(&option).flags(AE).tos(0xb8 | 1));
        ends.down(stamped(data(901, 201, 200), 71, 9).raw(&option).flags(AE | CWR | ECE).tos(0x88 | 3));
        ends.up(stamped(fin(201, 1101), 10, 71).flags(ECE).tos(3));
        ends.down(stamped(fin(1101, 202), 73, 10).flags(CWR).tos(3));
        ends.up(stamped(ack(202, 1102), 11, 73));
        ends.is_over();
    });
}

#[test]
fn syns_that_routers_behind_the_box_return() {
    each(&MODES, |why, mode| {
        let world = why.world(mode);
        let ends = Ends::new(why, &world, "tcptraceroute");
        // The server is known to be two routers away.
        ends.opens();
        ends.talks();
        for (n, hops) in (1..).zip([1, 2, 3]) {
            let (client, server) = ends.world.on_port(1000 + n);
            let world = (ends.world.clone(), client, server);
            let ends = Ends::new(why, &world, format!("hop limit {hops}"));
            let probe = ends.a_syn().ttl(hops);
            ends.up(probe.clone());
            let router = FlowKey { src: ends.server.ends().src, ..ends.server.ends() };
            let quoted = ends.client.frame(&probe.ttl(1));
            for quoted in [(8, Complaint::TooFar), (200, Complaint::HostUnreachable)]
                .map(|(len, what)| icmp_error(&router, 0, what, &quoted, len))
            {
                ends.down(quoted);
            }
        }
        ends.has_done_nothing();
    });
}

#[test]
fn half_of_a_conversation() {
    each(&MODES, |why, mode| {
        // The server's answers take another way.
        let world = why.world(mode);
        let ends = Ends::new(why, &world, "no answers");
        ends.up(ends.a_syn());
        ends.up(stamped(ack(101, 901), 8, 70));
        ends.up(stamped(data(101, 901, 100), 9, 70));
        ends.world.after_secs(100);
        ends.up(stamped(data(201, 5000, 100), 10, 80));
        ends.up(stamped(fin(301, 9000), 11, 81));
        ends.up(stamped(ack(302, 9001), 12, 82));
        ends.has_done_nothing();
        // The LAN's SYN has taken another way.
        let world = why.world_with(mode, |config| config.mss_clamp = None);
        let ends = Ends::new(why, &world, "no SYN");
        ends.up(ends.terms().on(syn_ack(100, 901), (7, 70)));
        ends.down(stamped(ack(901, 101), 71, 7));
        ends.down(stamped(data(901, 101, 10), 72, 7));
        ends.up(stamped(data(101, 911, 10), 8, 72));
        ends.has_done_nothing();
    });
}

#[test]
fn policies_that_drop_what_is_asymmetric_say_nothing_of_what_passes() {
    each(&MODES, |why, mode| {
        let world = why.world_with(mode, |config| config.asymmetric = Asymmetric::Drop);
        let ends = Ends::new(why, &world, "no answers");
        ends.up(ends.a_syn());
        ends.up(stamped(ack(101, 901), 8, 70));
        ends.up(stamped(data(101, 901, 100), 9, 70));
        ends.up(stamped(fin(201, 901), 9, 70));
        ends.has_done_nothing();
    });
}

#[test]
fn segments_in_fragments() {
    each(&MODES, |why, mode| {
        for vlans in [[&[] as &[Tag], &[]], [&[(0x8100, 10)], &[(0x8100, 20)]]] {
            let world = why.world(mode);
            let ends = Ends::new(why, &world, format!("fragments {vlans:x?}")).in_tags(vlans[0], vlans[1]);
            ends.opens();
            for n in 0..3u32 {
                let up = ends.client.frame(&stamped(data(101 + 1000 * n, 901 + 1000 * n, 1000), 9 + n, 70));
                let down = ends.server.frame(&stamped(data(901 + 1000 * n, 1101 + 1000 * n, 1000), 71 + n, 9));
                for range in [(0..512, true), (512..1032, false)] {
                    ends.up(fragment(&up, n as u16, range.0.clone(), range.1));
                    ends.down(fragment(&down, n as u16, range.0, range.1));
                }
            }
            ends.up(stamped(fin(3101, 3901), 20, 80));
            ends.down(stamped(fin(3901, 3102), 81, 20));
            ends.up(stamped(ack(3102, 3902), 21, 81));
            ends.is_over();
        }
    });
}

#[test]
fn syns_with_extensions_and_data() {
    let signature = [&[19, 18][..], &[7; 16], &[1, 1]].concat();
    let authentication = [&[29, 16][..], &[7; 14]].concat();
    let extensions: [(&[u8], usize); 7] = [
        (&[34, 2, 1, 1], 0),
        (&[34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1], 500),
        (&[254, 4, 0xf9, 0x89], 0),
        (&[30, 4, 1, 1], 0),
        (&signature, 0),
        (&authentication, 0),
        (&[], 500),
    ];
    each(&MODES, |why, mode| {
        for (option, len) in extensions {
            let world = why.world(mode);
            let ends = Ends::new(why, &world, format!("option {option:?} and {len} bytes"));
            ends.up(syn(100).mss(1400).raw(option).payload(len));
            ends.down(syn_ack(900, 101 + len as u32).mss(1400).raw(option));
            ends.up(ack(101 + len as u32, 901));
            ends.down(fin(901, 101 + len as u32));
            ends.up(fin(101 + len as u32, 902));
            ends.down(ack(902, 102 + len as u32));
            ends.is_over();
        }
    });
}

#[test]
fn clients_that_give_up() {
    each(&MODES, |why, mode| {
        let world = why.world(mode);
        let ends = Ends::new(why, &world, "a reset behind the SYN-ACK");
        ends.up(ends.a_syn());
        ends.down(ends.an_answer());
        ends.up(ack(101, 77));
        ends.up(rst(101));
        ends.is_over();
        let world = why.world(mode);
        let ends = Ends::new(why, &world, "a reset behind the SYN");
        ends.up(ends.a_syn());
        ends.up(rst(101));
        if why == Why::Mode(Does::Auto) {
            // Anybody may have sent both, so as to hide what the server has half-open.
            assert_eq!(ends.half_open(), 1);
            ends.world.after_secs(70);
        }
        ends.is_over();
        let world = why.world(mode);
        let ends = Ends::new(why, &world, "an error about the SYN-ACK");
        ends.up(ends.a_syn());
        ends.down(ends.an_answer());
        let answer = ends.server.frame(&ends.an_answer());
        ends.up(icmp_error(&ends.client.ends(), 0, Complaint::HostUnreachable, &answer, 8));
        ends.has_done_nothing();
    });
}

#[test]
fn errors_about_nothing_and_in_pieces() {
    each(&MODES, |why, mode| {
        if !matches!(why, Why::Mode(_)) {
            return;
        }
        let world = why.world(mode);
        let ends = Ends::new(why, &world, "errors");
        let later = ends.client.frame(&ends.a_syn());
        let error = icmp_error(&ends.server.ends(), 0, Complaint::TooBig(1300), &later, 20);
        ends.down(error.clone());
        // Of what one quotes nothing can be read.
        let quote: &[u8] = if mode.family == Family::V4 { &[] } else { &[0x60] };
        ends.down(icmp_error_raw(&ends.server.ends(), 0, Complaint::HostUnreachable, quote, &[]));
        ends.up(icmp_error_raw(&ends.client.ends(), 0, Complaint::HostUnreachable, quote, &[]));
        ends.down(fragment(&error, 3, 0..48, true));
        ends.up(fragment(&error, 4, 512..520, false));
        ends.has_done_nothing();
    });
}

#[test]
fn a_port_used_again_with_a_lower_number_and_without_timestamps() {
    each(&MODES, |why, mode| {
        let world = why.world(mode);
        let ends = Ends::new(why, &world, "again");
        ends.opens();
        ends.talks();
        ends.world.after_secs(1);
        ends.up(syn(50).mss(1400));
        ends.down(stamped(ack(1102, 202), 80, 11));
        ends.up(rst(202));
        ends.world.after_secs(1);
        ends.up(syn(50).mss(1400));
        ends.down(syn_ack(400, 51).mss(1400));
        ends.up(ack(51, 401));
        ends.up(fin(51, 401));
        ends.down(fin(401, 52));
        ends.up(ack(52, 402));
        ends.is_over();
    });
}

#[test]
fn a_server_that_has_forgotten_a_connection_takes_another_of_the_same_ends() {
    each(&MODES, |why, mode| {
        let world = why.world(mode);
        let ends = Ends::new(why, &world, "over a connection that nobody ended");
        ends.opens();
        ends.up(stamped(data(101, 901, 100), 9, 70));
        ends.world.after_secs(300);
        // Both have started anew, far from where they were.
        ends.up(syn(2_000_000_000).mss(1400));
        ends.down(syn_ack(3_000_000_000, 2_000_000_001).mss(1400));
        ends.up(ack(2_000_000_001, 3_000_000_001));
        ends.down(data(3_000_000_001, 2_000_000_001, 100));
        ends.up(fin(2_000_000_001, 3_000_000_101));
        ends.down(fin(3_000_000_101, 2_000_000_002));
        ends.up(ack(2_000_000_002, 3_000_000_102));
        ends.is_over();
    });
}

#[test]
fn what_is_learned_of_an_unproved_client_is_what_its_answered_syn_offered() {
    for mode in MODES {
        let why = Why::Mode(Does::Auto);
        let world = why.world_with(mode, |config| config.mss_clamp = None);
        let ends = Ends::new(why, &world, "taught by a SYN that was repeated bare");
        // The first SYN is lost behind the box, so that the server knows the bare one alone.
        ends.up(ends.a_syn());
        ends.up(Terms::bare(mode.mss()).on(syn(100), (0, 0)));
        ends.down(Terms::bare(mode.mss()).on(syn_ack(900, 101), (0, 0)));
        ends.up(ack(101, 901));
        ends.world.operate(|proxy, now| {
            proxy.direct(0, &tcpstate::Directive { engaged: true, limit: u32::MAX }, now);
        });
        ends.world.after_secs(1);
        let (client, _) = ends.world.on_port(2000);
        client.sends(ends.a_syn());
        let told = client.gets(syn_ack(ANY, 101).any_window().any_options());
        assert_eq!((told.wscale().is_some(), told.sack_ok(), told.ts().is_some()), (true, true, true), "{}", ends.what);
    }
}
