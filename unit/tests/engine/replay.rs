//! Captures through the engine: the same answers for the same seed whatever way the frames come, with verdict and reason; and of damaged
//! captures as much as there is, and a line that says where they are damaged.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use etherparse::{SlicedPacket, TransportSlice};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use pktio::pcap::{Direction, Label, PcapNgWriter, PcapReader, Record};
use proptest::prelude::*;
use tcpstate::{Config, PerSide, Side};
use tools::replay::{Fate, Origin, Replay};
use unit::netns::program;
use unit::script::{FlowKey, Seg, ack, build, data, syn, syn_ack};

const LAN: u32 = Side::Lan as u32;
const WAN: u32 = Side::Wan as u32;
const SEED: u64 = 7;

/// A directory of a test's own, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let path = harness::leftovers::file("replay");
        fs::create_dir_all(&path).expect("a directory of ours");
        Scratch(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path of ours").to_owned()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.0.join(name), bytes).expect("writing a file of ours");
        self.path(name)
    }

    /// A pcapng with these interfaces, of frames some milliseconds apart; each with the interface it is written as.
    fn capture(
        &self,
        name: &str,
        interfaces: &[&str],
        frames: impl IntoIterator<Item = (u32, u64, Vec<u8>)>,
    ) -> String {
        let path = self.path(name);
        let interfaces: Vec<_> = interfaces.iter().map(|&name| name.into()).collect();
        let mut writer =
            PcapNgWriter::new(File::create(&path).expect("a file of ours"), &interfaces).expect("a header");
        for (interface, milliseconds, bytes) in frames {
            let time = Duration::from_millis(1_600_000_000_000 + milliseconds);
            let label = Label { interface, time, ..Label::default() };
            writer.write(&label, [bytes.as_slice()], bytes.len()).expect("writing a frame");
        }
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn client() -> FlowKey {
    FlowKey {
        src: Ipv4Addr::new(192, 0, 2, 1).into(),
        dst: Ipv4Addr::new(10, 0, 0, 1).into(),
        sport: 40_000,
        dport: 80,
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: [2, 0, 0, 0, 0, 2],
        ttl: 57,
    }
}

fn server() -> FlowKey {
    let FlowKey { src, dst, sport, dport, src_mac, dst_mac, .. } = client();
    FlowKey { src: dst, dst: src, sport: dport, dport: sport, src_mac: dst_mac, dst_mac: src_mac, ttl: 64 }
}

fn from_client(seg: Seg) -> Vec<u8> {
    build(&client(), 0, &seg)
}

fn from_server(seg: Seg) -> Vec<u8> {
    build(&server(), 0, &seg)
}

fn record(milliseconds: u64, bytes: Vec<u8>) -> Record {
    Record {
        time: Duration::from_millis(1_600_000_000_000 + milliseconds),
        original_len: bytes.len() as u32,
        bytes,
        ..Record::default()
    }
}

/// Cookies alone, and no segment is taken for one of a connection that runs already.
const CONFIG: &[u8] = b"synproxyconf = { halfopen_cache_max = 0; adopt_grace = 0; };";

/// The number of the SYN-ACK that answers the client's SYN under this seed.
fn cookie(seed: u64) -> u32 {
    let mut numbers = Vec::new();
    let mut replay = Replay::new(&Config::default(), seed);
    replay.frame(Side::Wan, &record(0, from_client(syn(1000).mss(1460))), &mut |outcome| {
        let packet = SlicedPacket::from_ethernet(outcome.bytes).expect("a frame");
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
        assert!(tcp.syn() && tcp.ack() && outcome.side == Side::Wan && outcome.fate == Fate::Sent);
        numbers.push(tcp.sequence_number());
    });
    assert_eq!(numbers.len(), 1);
    numbers[0]
}

/// A connection that begins well, and a stray segment.
fn conversation() -> Vec<(u32, u64, Vec<u8>)> {
    let isn = cookie(SEED);
    let stray = FlowKey { sport: 50_000, ..client() };
    vec![
        (WAN, 0, from_client(syn(1000).mss(1460))),
        (WAN, 40, from_client(ack(1001, isn.wrapping_add(1)))),
        (LAN, 41, from_server(syn_ack(5000, 1001).mss(1460))),
        (WAN, 80, from_client(data(1001, isn.wrapping_add(1), 100))),
        (LAN, 81, from_server(ack(5001, 1101))),
        (WAN, 90, build(&stray, 0, &ack(1, 2))),
    ]
}

fn replay(arguments: &[&str]) -> Output {
    Command::new(program("replay")).args(arguments).output().expect("starting replay")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Interface, direction flags, comment and time in nanoseconds of each frame, by a reader that is not ours.
fn outcomes(path: &str) -> Vec<(u32, u32, String, u128)> {
    let mut reader = PcapNgReader::new(File::open(path).expect("the output")).expect("a pcapng file");
    let mut all = Vec::new();
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block.expect("every block is sound") else { continue };
        let (mut flags, mut comment) = (0, String::new());
        for option in &packet.options {
            match option {
                EnhancedPacketOption::Flags(value) => flags = *value,
                EnhancedPacketOption::Comment(text) => comment = text.to_string(),
                _ => {}
            }
        }
        all.push((packet.interface_id, flags, comment, packet.timestamp.as_nanos()));
    }
    all
}

#[test]
fn every_frame_has_its_verdict_and_its_reason() {
    let scratch = Scratch::new();
    let (input, output) = (scratch.capture("in.pcapng", &["lan", "wan"], conversation()), scratch.path("out.pcapng"));
    let config = scratch.file("conf.txt", CONFIG);
    let done = replay(&["--seed", "7", "--config", &config, "--all", "-o", &output, &input]);
    assert!(done.status.success(), "{}", said(&done));
    let outcomes = outcomes(&output);
    let told: Vec<_> = outcomes.iter().map(|(port, way, words, _)| (*port, *way, words.as_str())).collect();
    let has = |port: u32, way: u32, begin: &str, end: &str| {
        let found = told
            .iter()
            .any(|(p, w, words)| (*p, *w) == (port, way) && words.starts_with(begin) && words.ends_with(end));
        assert!(found, "no {begin} … {end} in {told:#?}");
    };
    has(WAN, 2, "reflect: SYN-ACK (syn-answered", "frame 1");
    has(LAN, 2, "forward: SYN (cookie-good", "frame 2");
    has(LAN, 2, "forward: ACK 100 bytes", "frame 4");
    has(WAN, 1, "drop: bad-cookie: ACK", "frame 6");
    assert_eq!(outcomes[0].3, 1_600_000_000_000_000_000, "the capture's own times");
    let said = said(&done);
    for row in ["frames from the WAN 4", "frames from the LAN 2", "dropped 1", "bad-cookie 1", "syn-answered 1"] {
        let words: Vec<&str> = row.split(' ').collect();
        assert!(said.lines().any(|line| line.split_whitespace().eq(words.iter().copied())), "no {row} in\n{said}");
    }
}

#[test]
fn the_seed_and_the_frames_decide_everything_however_they_come() {
    let scratch = Scratch::new();
    let config = scratch.file("conf.txt", CONFIG);
    let run = |name: &str, seed: &str, arguments: &[&str]| {
        let output = scratch.path(name);
        let ours = ["--config", &config, "--seed", seed, "--after", "5", "--all", "-o", &output];
        let done = replay(&[&ours, arguments].concat());
        assert!(done.status.success(), "{}", said(&done));
        fs::read(output).expect("the output")
    };
    let frames = conversation();
    let one = scratch.capture("one.pcapng", &["lan", "wan"], frames.clone());
    let first = run("a", "7", &[&one]);
    assert!(run("b", "7", &[&one]) == first, "once more");
    assert!(run("c", "8", &[&one]) != first, "another seed");

    // Interfaces of other names, in the other order, with frames that the box had sent in between.
    let (lan, wan) = (scratch.path("x"), scratch.path("y"));
    let other = scratch.path("other.pcapng");
    let mut writer = PcapNgWriter::new(File::create(&other).unwrap(), &["eth1".into(), "eth0".into()]).unwrap();
    for (side, milliseconds, bytes) in &frames {
        let time = Duration::from_millis(1_600_000_000_000 + milliseconds);
        for direction in [Direction::Inbound, Direction::Outbound] {
            let label = Label { interface: 1 - side, time, direction: Some(direction), ..Label::default() };
            writer.write(&label, [bytes.as_slice()], bytes.len()).unwrap();
        }
    }
    drop(writer);
    assert!(run("d", "7", &["--lan-interface", "eth0", "--wan-interface", "eth1", &other]) == first, "by name");
    // Two files, in the other format.
    for (path, side) in [(&lan, LAN), (&wan, WAN)] {
        let mut file = [0xa1b2_3c4d_u32.to_be_bytes(), [0, 2, 0, 4], [0; 4], [0; 4], [0xff; 4], [0, 0, 0, 1]].concat();
        for (_, milliseconds, bytes) in frames.iter().filter(|(of, ..)| *of == side) {
            let (seconds, nanoseconds) = (1_600_000_000 + milliseconds / 1000, milliseconds % 1000 * 1_000_000);
            for word in [seconds as u32, nanoseconds as u32, bytes.len() as u32, bytes.len() as u32] {
                file.extend(word.to_be_bytes());
            }
            file.extend(bytes);
        }
        fs::write(path, file).unwrap();
    }
    assert!(run("e", "7", &[&lan, &wan]) == first, "two files");
    // One interface, the sides known by address.
    let single = scratch.capture("single.pcapng", &["any"], frames.into_iter().map(|(_, at, bytes)| (0, at, bytes)));
    assert!(run("f", "7", &["--lan", "10.0.0.0/8", &single]) == first, "by address");
    let done = replay(&["--seed", "7", &single]);
    assert!(said(&done).contains("6 frames left out, which do not tell which port"), "{}", said(&done));
}

#[test]
fn timers_run_by_the_capture_s_clock() {
    let scratch = Scratch::new();
    let input = scratch.capture("in.pcapng", &["lan", "wan"], conversation().into_iter().take(2));
    let output = scratch.path("out.pcapng");
    let begin = Instant::now();
    assert!(replay(&["--seed", "7", "--after", "3600", "-o", &output, &input]).status.success());
    assert!(begin.elapsed() < Duration::from_secs(600), "an hour was not waited for");
    let repeated: Vec<_> =
        outcomes(&output).into_iter().filter(|(_, _, words, _)| words.contains("dial-repeated")).collect();
    assert!(repeated.len() > 2, "the server is silent: {repeated:?}");
    assert!(repeated.windows(2).all(|pair| pair[1].3 - pair[0].3 >= 1_000_000_000), "{repeated:?}");
}

#[test]
fn at_the_original_pace_it_takes_its_time() {
    let scratch = Scratch::new();
    let input = scratch.capture("in.pcapng", &["lan", "wan"], (0..4).map(|i| (WAN, 100 * i, vec![0; 60])));
    let begin = Instant::now();
    assert!(replay(&["--pace", "original", &input]).status.success());
    assert!(begin.elapsed() >= Duration::from_millis(300));
}

#[test]
fn of_a_damaged_capture_comes_what_there_is_and_a_line_on_the_rest() {
    let scratch = Scratch::new();
    let whole = fs::read(scratch.capture("whole.pcapng", &["lan", "wan"], conversation())).unwrap();
    let output = scratch.path("out.pcapng");
    let cut = scratch.file("cut.pcapng", &whole[..whole.len() - 7]);
    let done = replay(&["--seed", "7", "-o", &output, &cut]);
    let told = said(&done);
    assert_eq!(done.status.code(), Some(1), "{told}");
    assert!(told.contains(&format!("replay: {cut}: at byte ")) && told.contains("into a block"), "{told}");
    assert!(outcomes(&output).iter().any(|(_, _, words, _)| words.starts_with("forward: ACK 100 bytes")));

    let nonsense = scratch.file("nonsense", b"#!/bin/sh\necho\n");
    // A pcap of another link type, and a pcapng with frames of one.
    let mut cooked =
        [0xa1b2_c3d4_u32.to_le_bytes(), [2, 0, 4, 0], [0; 4], [0; 4], [0, 0, 1, 0], [113, 0, 0, 0]].concat();
    cooked.extend([0; 32]);
    let cooked = scratch.file("cooked.pcap", &cooked);
    let config = scratch.file("conf.txt", b"synproxyconf = { own_ms = 1; };");
    for (arguments, status, says) in [
        (vec![nonsense.as_str()], 1, "neither a pcap nor a pcapng file"),
        (vec![cooked.as_str()], 1, "only Ethernet is understood"),
        (vec!["/nowhere/x.pcap"], 1, "/nowhere/x.pcap: "),
        (vec!["--config", &config, &cut], 3, "did you mean `own_mss`?"),
        (vec!["--lan", "10.0.0.0/40", &cut], 2, "is no network"),
        (vec!["-o", "/nowhere/out", &cut], 1, "/nowhere/out: "),
        (vec![], 2, "Usage"),
    ] {
        let done = replay(&arguments);
        assert_eq!(done.status.code(), Some(status), "{arguments:?}: {}", said(&done));
        assert!(said(&done).contains(says), "{arguments:?}: {}", said(&done));
    }
    let mut foreign = whole;
    // The link type of the first interface, behind a section header of 28 bytes.
    foreign[28 + 8] = 113;
    let foreign = scratch.file("foreign.pcapng", &foreign);
    let done = replay(&[&foreign]);
    assert!(
        done.status.success() && said(&done).contains("2 frames left out, which were captured on a link"),
        "{}",
        said(&done)
    );
}

/// Frames that begin as frames do, and go on anyhow.
fn frames() -> impl Strategy<Value = Vec<(bool, Record)>> {
    let isn = cookie(SEED);
    let sound = prop_oneof![
        Just(from_client(syn(1000).mss(1460))),
        Just(from_client(ack(1001, isn.wrapping_add(1)))),
        Just(from_client(data(1001, isn.wrapping_add(1), 300))),
        Just(from_server(syn_ack(5000, 1001).mss(1460))),
        Just(from_server(data(5001, 1001, 1400))),
        prop::collection::vec(any::<u8>(), 0..100),
        Just(vec![0xff; 60_000]),
    ];
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let time = prop_oneof![0u64..1000, 0u64..100_000, any::<u64>()].prop_map(Duration::from_micros);
    let frame = (sound, damage, any::<prop::sample::Index>(), any::<bool>(), time, any::<u32>(), any::<bool>());
    let frame = frame.prop_map(|(mut bytes, damage, cut, is_cut, time, length, lan)| {
        for (at, value) in damage.into_iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let mut original_len = bytes.len() as u32;
        if is_cut && !bytes.is_empty() {
            bytes.truncate(cut.index(bytes.len()));
            original_len = original_len.max(length);
        }
        (lan, Record { time, bytes, original_len, ..Record::default() })
    });
    prop::collection::vec(frame, 0..40)
}

/// A configuration whose tables are made in no time.
fn small() -> Config {
    Config { table_buckets: 64, learn_capacity: 64, syn_cache_max: 64, ..Config::default() }
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        by_address: bool,
    ) {
        let mut file = Vec::new();
        let mut writer = PcapNgWriter::new(&mut file, &["lan".into(), "wan".into()]).expect("memory");
        for (interface, milliseconds, bytes) in conversation() {
            let time = Duration::from_millis(milliseconds);
            let label = Label { interface, time, direction: Some(Direction::Inbound), ..Label::default() };
            writer.write(&label, [bytes.as_slice()], bytes.len()).expect("memory");
        }
        for (at, value) in damage {
            let at = at.index(file.len());
            file[at] = value;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let names = |name: &str| vec![name.to_owned()];
        let origin = match by_address {
            true => Origin::Networks(vec!["10.0.0.0/8".parse().expect("a network")]),
            false => Origin::Interfaces(PerSide::new(names("lan"), names("wan"))),
        };
        let mut replay = Replay::new(&small(), SEED);
        if let Ok(mut reader) = PcapReader::new("damaged", Box::new(std::io::Cursor::new(file))) {
            let mut record = Record::default();
            while let Ok(true) = reader.read(&mut record) {
                if let Ok(side) = origin.side(&record, reader.interface_name(record.interface)) {
                    replay.frame(side, &record, &mut |_| ());
                }
            }
        }
    }

    #[test]
    fn no_frames_make_it_panic_and_none_is_lost(frames in frames(), early: bool) {
        let mut config = small();
        if early {
            config.handshake = tcpstate::config::Handshake::Early;
        }
        let mut replay = Replay::new(&config, SEED);
        let mut told = [0u64; 3];
        for (lan, record) in &frames {
            let side = if *lan { Side::Lan } else { Side::Wan };
            replay.frame(side, record, &mut |outcome| {
                assert!(outcome.bytes.len() <= outcome.original_len && !outcome.comment.is_empty());
                told[outcome.fate as usize] += 1;
            });
        }
        replay.wait(Duration::from_secs(100), &mut |outcome| told[outcome.fate as usize] += 1);
        let summary = replay.summary();
        prop_assert_eq!(summary.frames[Side::Lan] + summary.frames[Side::Wan], frames.len() as u64);
        prop_assert_eq!(told, [summary.forwarded + summary.reflected + summary.emitted, summary.held, summary.dropped]);
        let gone = summary.forwarded + summary.reflected + summary.dropped;
        let waiting = frames.len() as u64 - gone;
        prop_assert!(waiting <= summary.held, "{waiting} of {} held are left", summary.held);
    }
}
