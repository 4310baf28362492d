//! Captures of a box at work, between real kernels: what was received lies there as it came, what was sent as it left, what was dropped
//! with its reason, and traffic goes on whatever becomes of a capture. Read back by a reader that is not ours.

use std::fs::{self, File};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use etherparse::{SlicedPacket, TransportSlice};
use harness::{leftovers, test};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_statistics::InterfaceStatisticsOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use tcpstate::DropReason;
use unit::netns::{self, Appliance, Backend, Rig, program, traffic};

/// A file to capture into, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        Scratch(leftovers::file("capture.pcapng"))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path of ours")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Lan,
    Wan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Caught {
    port: Port,
    way: Way,
    bytes: Vec<u8>,
    comment: String,
}

/// What a file holds, and what its statistics say was there to be captured and was not, by interface.
struct Capture {
    frames: Vec<Caught>,
    statistics: Vec<[u64; 2]>,
}

impl Capture {
    fn read(file: &Scratch) -> Capture {
        let mut reader = PcapNgReader::new(File::open(&file.0).expect("the capture")).expect("a pcapng file");
        let mut capture = Capture { frames: Vec::new(), statistics: Vec::new() };
        while let Some(block) = reader.next_block() {
            match block.expect("every block is sound") {
                Block::EnhancedPacket(packet) => {
                    let mut way = None;
                    let mut comment = String::new();
                    for option in &packet.options {
                        match option {
                            EnhancedPacketOption::Flags(1) => way = Some(Way::In),
                            EnhancedPacketOption::Flags(2) => way = Some(Way::Out),
                            EnhancedPacketOption::Comment(text) => comment = text.to_string(),
                            _ => {}
                        }
                    }
                    capture.frames.push(Caught {
                        port: [Port::Lan, Port::Wan][packet.interface_id as usize],
                        way: way.expect("every frame has its direction"),
                        bytes: packet.data.to_vec(),
                        comment,
                    });
                }
                Block::InterfaceStatistics(block) => {
                    let mut counts = [0; 2];
                    for option in &block.options {
                        match option {
                            InterfaceStatisticsOption::IsbIfRecv(count) => counts[0] = *count,
                            InterfaceStatisticsOption::IsbIfDrop(count) => counts[1] = *count,
                            _ => {}
                        }
                    }
                    capture.statistics.push(counts);
                }
                _ => {}
            }
        }
        capture
    }

    /// The frames at a port that went a way, in order of their bytes: those of several workers come in any order.
    fn at(&self, port: Port, way: Way) -> Vec<&[u8]> {
        let mut frames: Vec<&[u8]> =
            self.frames.iter().filter(|f| (f.port, f.way) == (port, way)).map(|f| f.bytes.as_slice()).collect();
        frames.sort_unstable();
        frames
    }

    /// Its statistics say that this is all there was.
    fn is_complete(&self) -> bool {
        let count = |port| self.frames.iter().filter(|frame| frame.port == port).count() as u64;
        self.statistics == [[count(Port::Lan), 0], [count(Port::Wan), 0]]
    }
}

/// A TCP segment of a frame, told by what is edited on the way and what is not.
struct Told {
    from_server: bool,
    syn: bool,
    seq: u32,
    ack: u32,
    data: Vec<u8>,
}

fn segments(frames: &[&[u8]], server_port: u16) -> Vec<Told> {
    let tell = |frame: &&[u8]| {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
        let from_server = tcp.source_port() == server_port;
        (from_server || tcp.destination_port() == server_port).then(|| Told {
            from_server,
            syn: tcp.syn(),
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            data: tcp.payload().to_vec(),
        })
    };
    frames.iter().filter_map(tell).collect()
}

/// The one number that a kind of segment has.
fn the(segments: &[Told], number: impl Fn(&Told) -> Option<u32>) -> u32 {
    let mut all: Vec<u32> = segments.iter().filter_map(number).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 1, "one connection has one number of a kind");
    all[0]
}

fn all_captures_of(rig: &Rig, backend: Backend, arguments: &[&str]) {
    let files = [Scratch::new(), Scratch::new(), Scratch::new(), Scratch::new(), Scratch::new()];
    let [received, sent, lan, wan, drops] = &files;
    let mut all = vec!["-i", received.path(), "-o", sent.path(), "-l", lan.path(), "-w", wan.path()];
    all.extend(["--drops", drops.path()]);
    all.extend(arguments);
    // What nobody knows is dropped from the beginning.
    let proxy = Appliance::start_with(rig, backend, &format!("{} adopt_grace = 0;", netns::CACHE_OFF), &all);
    rig.client.sh(&format!("ping -n -q -c 3 -i 0.02 {}", netns::SERVER_V4));
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    let port = server.address.port();
    let stream = rig.client.connect(server.address).expect("connecting");
    traffic::exchange(&stream, 100_000, 100_000).expect("a transfer");
    drop((stream, server));
    // Acknowledgements of nothing.
    let flood = rig
        .client
        .command(program("synflood"))
        .args(["--interface", "c0", "--to", &netns::SERVER_V4.to_string(), "--to-mac", netns::SERVER_MAC])
        .args(["--from-mac", "02:00:00:00:00:66", "--kind", "ack", "--seconds", "1", "--rate", "300"])
        .output()
        .expect("a flood");
    assert!(flood.status.success());
    let report = proxy.stop();
    assert!(report.status.success(), "{}", report.log.join("\n"));
    let ends = report.log.iter().filter(|line| line.contains("frames captured, 0 missed")).count();
    assert_eq!(ends, 5, "{}", report.log.join("\n"));

    let [received, sent, lan, wan, drops] = [received, sent, lan, wan, drops].map(Capture::read);
    for (capture, name) in [(&received, "-i"), (&sent, "-o"), (&lan, "-l"), (&wan, "-w"), (&drops, "--drops")] {
        assert!(capture.is_complete(), "{name}: {:?}", capture.statistics);
    }
    // The files of one port and those of one direction are two cuts through the same frames.
    for (port, of_port) in [(Port::Lan, &lan), (Port::Wan, &wan)] {
        assert!(received.at(port, Way::In) == of_port.at(port, Way::In), "{port:?}, in");
        assert!(sent.at(port, Way::Out) == of_port.at(port, Way::Out), "{port:?}, out");
    }
    assert!(received.frames.iter().all(|frame| frame.way == Way::In) && sent.frames.iter().all(|f| f.way == Way::Out));
    // What is no TCP passes unchanged, and is in both.
    let pings = |capture: &Capture, port, way| {
        capture.at(port, way).iter().filter(|frame| frame[12..14] == [8, 0] && frame[23] == 1).count()
    };
    assert_eq!((pings(&received, Port::Wan, Way::In), pings(&sent, Port::Lan, Way::Out)), (3, 3));

    // Four views of one connection. The server's number as it said it, and the one the client was told instead.
    let came_lan = segments(&received.at(Port::Lan, Way::In), port);
    let came_wan = segments(&received.at(Port::Wan, Way::In), port);
    let left_lan = segments(&sent.at(Port::Lan, Way::Out), port);
    let left_wan = segments(&sent.at(Port::Wan, Way::Out), port);
    let isn = |told: &Told| (told.from_server && told.syn).then_some(told.seq);
    let (theirs, ours) = (the(&came_lan, isn), the(&left_wan, isn));
    assert_ne!(theirs, ours, "a cookie");
    let ahead = |of: u32, number: u32| number.wrapping_sub(of) <= 200_000;
    for (segments, base, what) in [
        (&came_lan, theirs, "from the server, as it came"),
        (&left_wan, ours, "from the server, edited"),
        (&came_wan, ours, "from the client, as it came"),
        (&left_lan, theirs, "from the client, edited"),
    ] {
        let data: Vec<&Told> = segments.iter().filter(|told| !told.data.is_empty()).collect();
        assert!(!data.is_empty(), "{what}");
        for told in data {
            let number = if told.from_server { told.seq } else { told.ack };
            assert!(ahead(base, number), "{what}: {number} is not ahead of {base}");
        }
    }
    // The client's own numbers stay, and the bytes as well.
    let uploaded = |segments: &[Told]| {
        let mut data: Vec<(u32, Vec<u8>)> =
            segments.iter().filter(|t| !t.from_server && !t.data.is_empty()).map(|t| (t.seq, t.data.clone())).collect();
        data.sort();
        data
    };
    assert!(uploaded(&came_wan) == uploaded(&left_lan));

    assert!(!drops.frames.is_empty());
    for drop in &drops.frames {
        let known = DropReason::ALL.iter().any(|reason| reason.label() == drop.comment);
        assert!(known && drop.way == Way::In, "{:?}, {:?}", drop.comment, drop.way);
    }
    let bad = drops.frames.iter().filter(|drop| drop.comment == DropReason::BadCookie.label()).count();
    assert!(bad > 0 && bad < 60, "{bad} of some 300: ten a second");
    assert!(drops.frames.iter().all(|drop| received.frames.iter().any(|frame| frame.bytes == drop.bytes)));
}

#[test]
fn what_came_is_captured_as_it_came_and_what_left_as_it_left() {
    for backend in [Backend::Driver, Backend::Packet] {
        all_captures_of(&Rig::new(), backend, &[]);
    }
}

#[test(alone)]
fn several_workers_capture_into_the_same_files() {
    all_captures_of(&Rig::queued(2), Backend::Driver, &["--steer=everything"]);
}

#[test]
fn a_capture_that_is_full_is_whole_and_the_traffic_goes_on() {
    let rig = Rig::new();
    let file = Scratch::new();
    let arguments = ["-i", file.path(), "--capture-limit", "64k", "--capture-snap", "96"];
    let proxy = Appliance::start_with(&rig, Backend::Driver, netns::CACHE_ON, &arguments);
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    rig.judge([0, 0], || {
        let stream = rig.client.connect(server.address).expect("connecting");
        traffic::exchange(&stream, 4 << 20, 4 << 20).expect("a transfer");
    });
    assert!(proxy.stop().status.success());
    let length = fs::metadata(&file.0).expect("the capture").len();
    assert!(length <= 64 << 10 && length > 63 << 10, "{length}");
    let capture = Capture::read(&file);
    assert!(capture.frames.iter().all(|frame| frame.bytes.len() <= 96));
    let [there, dropped] = [0, 1].map(|i| capture.statistics.iter().map(|counts| counts[i]).sum::<u64>());
    assert!(dropped > 0 && there - dropped == capture.frames.len() as u64, "{:?}", capture.statistics);
}

#[test]
fn a_running_box_captures_from_when_it_is_told_to_until_it_is_told_not_to() {
    let rig = Rig::new();
    let (socket, file, rest) = (Scratch::new(), Scratch::new(), Scratch::new());
    let control = format!("--control={}", socket.path());
    let proxy = Appliance::start_with(&rig, Backend::Driver, netns::CACHE_ON, &[&control]);
    let synctl = |line: &str| {
        let mut command = Command::new(program("synctl"));
        let output = command.args(["--socket", socket.path()]).args(line.split_whitespace()).output().expect("synctl");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
        (output.status.code().expect("an end"), said)
    };
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    let exchange = || {
        let stream = rig.client.connect(server.address).expect("connecting");
        traffic::exchange(&stream, 100_000, 100_000).expect("a transfer");
        stream.local_addr().expect("an address").port()
    };
    let before = exchange();
    assert_eq!(synctl("capture list"), (0, "nothing is being captured\n".to_owned()));
    let start = format!("capture start received {} --limit 16M", file.path());
    let (status, said) = synctl(&start);
    assert!(status == 0 && said.contains(file.path()), "{said}");
    assert_eq!(fs::metadata(&file.0).expect("the file").permissions().mode() & 0o777, 0o600);
    // The worker takes the tap with its next turn.
    thread::sleep(Duration::from_millis(300));
    let during = exchange();
    let (_, listed) = synctl("capture list");
    let cells: Vec<&str> = listed.lines().last().expect("a line").split_whitespace().collect();
    assert!(listed.lines().count() == 2 && cells[0] == "received" && cells[4] == file.path(), "{listed}");
    let (status, said) = synctl("capture stop received");
    assert!(status == 0 && said.contains(file.path()), "{said}");
    let after = exchange();

    let capture = Capture::read(&file);
    assert!(capture.is_complete(), "{:?}", capture.statistics);
    let said_frames: u64 = said.split_whitespace().nth(6).and_then(|word| word.parse().ok()).expect("a number");
    assert_eq!(said_frames, capture.frames.len() as u64, "{said}");
    let of = |port: u16| {
        let there = |frame: &Caught| frame.bytes.windows(2).skip(34).take(3).any(|two| two == port.to_be_bytes());
        capture.frames.iter().filter(|frame| there(frame)).count()
    };
    assert!(of(during) > 10 && of(after) == 0 && of(before) < 10, "{} {} {}", of(before), of(during), of(after));

    let length = fs::metadata(&file.0).expect("the file").len();
    let (status, said) = synctl(&start);
    assert!(status == 1 && said.contains("File exists"), "{said}");
    assert_eq!(fs::metadata(&file.0).expect("the file").len(), length);
    let (status, said) = synctl("capture stop");
    assert!(status == 1 && said.contains("nothing is being captured"), "{said}");
    // What goes on at the end is whole as well.
    assert_eq!(synctl(&format!("capture start wan {}", rest.path())).0, 0);
    let (status, said) = synctl(&format!("capture start wan {}2", rest.path()));
    assert!(status == 1 && said.contains("captured already"), "{said}");
    thread::sleep(Duration::from_millis(300));
    exchange();
    assert!(proxy.stop().status.success());
    let capture = Capture::read(&rest);
    assert!(!capture.frames.is_empty() && capture.is_complete(), "{:?}", capture.statistics);
}

#[test]
fn a_capture_shows_what_the_kernel_would_forward_by_itself_and_forwards_again_behind_it() {
    for (fast_path, backend) in [("tc", Backend::Packet), ("xdp", Backend::Driver)] {
        let rig = Rig::of_one_queue();
        for (host, port) in [(&rig.client, "c0"), (&rig.server, "s0")] {
            host.sh(&format!("ethtool -K {port} gro on"));
        }
        let (socket, file) = (Scratch::new(), Scratch::new());
        let control = format!("--control={}", socket.path());
        let proxy = Appliance::start_with(&rig, backend, &format!("fast_path = {fast_path};"), &[&control]);
        let synctl = |line: &str| {
            let mut command = Command::new(program("synctl"));
            command.args(["--socket", socket.path()]).args(line.split_whitespace());
            String::from_utf8(command.output().expect("synctl").stdout).expect("text")
        };
        // Frames that the kernel has forwarded, from either port.
        let forwarded = || {
            // Statistics are published five times a second.
            thread::sleep(Duration::from_millis(300));
            let stats = synctl("stats --json");
            let counts = stats.split("\"kernel-forwarded\":").skip(1);
            counts
                .map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or(""))
                .flat_map(str::parse::<u64>)
                .sum::<u64>()
        };
        let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
        let stream = rig.client.connect(server.address).expect("connecting");
        stream.set_nodelay(true).expect("a live socket");
        let exchange = |from: u64| {
            for seed in from..from + 100 {
                traffic::send(&stream, seed, 100).expect("sending");
                traffic::receive(&stream, seed, Some(100)).expect("the same bytes come back");
                thread::sleep(Duration::from_millis(2));
            }
        };
        exchange(0);
        let before = forwarded();
        assert!(before > 50, "{fast_path}: {before} frames are forwarded");
        assert!(synctl(&format!("capture start received {}", file.path())).contains(file.path()));
        thread::sleep(Duration::from_millis(300));
        let begin = forwarded();
        exchange(100);
        assert_eq!(forwarded(), begin, "{fast_path}: nothing is forwarded meanwhile");
        assert!(synctl("capture stop").contains(file.path()));
        exchange(200);
        assert!(forwarded() > begin + 50, "{fast_path}: it is forwarded again");
        let port = stream.local_addr().expect("an address").port().to_be_bytes();
        let capture = Capture::read(&file);
        let its = capture.frames.iter().filter(|frame| frame.bytes[34..38].chunks(2).any(|two| two == port)).count();
        assert!(its >= 200, "{fast_path}: {its} frames of the connection were captured");
        stream.shutdown(Shutdown::Write).expect("a live socket");
        traffic::expect_end(&stream).expect("both ends finish");
        assert!(proxy.stop().status.success());
    }
}

#[test]
fn a_capture_that_cannot_be_made_ends_the_start_with_its_name() {
    let rig = Rig::new();
    let output = rig
        .middle
        .command("timeout")
        .arg("10")
        .arg(program("synproxy"))
        .args(["--state-dir=none", "-w", "/nowhere/wan.pcapng", Rig::LAN, Rig::WAN])
        .output()
        .expect("starting");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("cannot capture into /nowhere/wan.pcapng"), "{said}");
}
