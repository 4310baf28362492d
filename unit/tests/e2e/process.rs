//! The process in an operator's hands: limits that are too small end the start in one line, each missing capability is named, members of the
//! `control_group` see no secret and keep nobody out, a stopped box is said to be stopped, and an idle one is silent.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use harness::{leftovers, test};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use unit::netns::{self, Appliance, Backend, Rig, program, traffic};
use unit::script::{self, FlowKey};

/// A group that nobody is a member of but whom a test makes one.
const GROUP: u32 = 65_533;

/// A box with a control socket for the members of [`GROUP`].
struct Box {
    rig: Rig,
    proxy: Appliance,
    socket: PathBuf,
}

impl Box {
    fn start(name: &str) -> Box {
        Box::start_in(Rig::new(), name)
    }

    fn start_in(rig: Rig, name: &str) -> Box {
        let socket = leftovers::file(&format!("{name}.sock"));
        let config = format!("control = \"{}\"; control_group = {GROUP};", socket.display());
        let proxy = Appliance::start(&rig, Backend::Packet, &config);
        Box { rig, proxy, socket }
    }

    /// What `synctl` says: to root, or to a member of the group that is nobody else.
    fn synctl(&self, is_member: bool, arguments: &[&str]) -> (String, i32) {
        let mut command = Command::new(if is_member { "setpriv" } else { "env" });
        if is_member {
            command.args(["--reuid=65534", "--regid=65534", &format!("--groups={GROUP}")]);
        }
        command.arg(program("synctl")).arg("--socket").arg(&self.socket).args(arguments);
        said(&command.output().expect("running synctl"))
    }
}

/// Everything a program has said, and its status; -1 for one that a signal has ended.
fn said(output: &Output) -> (String, i32) {
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat();
    (said, output.status.code().unwrap_or(-1))
}

/// The frame as `synctl explain` takes it.
fn hex(ends: &FlowKey, seg: &script::Seg) -> String {
    script::build(ends, 0, seg).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The number behind `before` in a text, up to the next character that is none of it.
fn behind<'t>(text: &'t str, before: &str) -> &'t str {
    let at = text.find(before).unwrap_or_else(|| panic!("no {before:?} in {text}")) + before.len();
    let end = text[at..].find(|c: char| !c.is_ascii_alphanumeric()).map_or(text.len(), |end| at + end);
    &text[at..end]
}

#[test]
fn a_member_of_the_group_sees_no_number_that_opens_a_connection() {
    let it = Box::start("secrets");
    let server = it.rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    let stream = it.rig.client.connect(server.address).expect("a connection through the box");
    let ends = FlowKey {
        src: netns::CLIENT_V4,
        dst: netns::SERVER_V4,
        sport: 40_000,
        dport: server.address.port(),
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: [2, 0, 0, 0, 0, 2],
        ttl: 64,
    };
    let syn = hex(&ends, &script::syn(70_000).mss(1460).sack_ok().ts(80_000, 0));
    let (owner, status) = it.synctl(false, &["explain", &syn]);
    assert_eq!(status, 0, "{owner}");
    let isn = behind(&owner, "sequence number 0x");
    let value = behind(&owner, "TSval ");
    let isn = u32::from_str_radix(isn, 16).expect("a number of 32 bits");
    for arguments in [&["explain", &syn][..], &["explain", "--json", &syn]] {
        let (member, status) = it.synctl(true, arguments);
        assert_eq!(status, 0, "{member}");
        assert!(member.contains("reflect") && member.contains("(withheld)") && member.contains("70000"), "{member}");
        for secret in [isn.to_string(), format!("{isn:08x}"), value.to_owned()] {
            assert!(!member.contains(&secret), "{secret} in {member}");
        }
    }
    // Whether a number is the right one is as good as the number.
    for seg in [script::ack(70_001, isn.wrapping_add(1)), script::rst(70_001)] {
        let frame = hex(&ends, &seg);
        assert_eq!(it.synctl(false, &["explain", &frame]).1, 0);
        let (member, status) = it.synctl(true, &["explain", &frame]);
        assert!(status == 5 && member.contains("only root"), "{member}");
    }
    let shift = |is_member| {
        let (flows, status) = it.synctl(is_member, &["flows", "--json"]);
        assert_eq!(status, 0, "{flows}");
        let flow: serde_json::Value = serde_json::from_str(flows.lines().next().expect("a connection")).expect("JSON");
        [&flow["sequence-shift"], &flow["timestamp-shift"]].map(|shift| shift.is_number())
    };
    assert_eq!((shift(false), shift(true)), ([true; 2], [false; 2]));
    drop(stream);
    it.proxy.stop();
}

/// Connections of a member of the group that ask nothing.
fn idle_members(socket: &Path, count: usize) -> Vec<UnixStream> {
    let socket = socket.to_owned();
    let group = GROUP;
    let connect = move || {
        // The C library changes all threads of a process; the system call only this one, which ends with it.
        // SAFETY: calls with numbers alone, and a list of one group.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, 1, &raw const group), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, 65_534, 65_534, 65_534), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534), 0);
        }
        (0..count).map(|_| UnixStream::connect(&socket).expect("a member may connect")).collect()
    };
    thread::spawn(connect).join().expect("a thread that connects")
}

/// Whether a connection is served.
fn answers(stream: &UnixStream) -> bool {
    let mut stream = stream;
    let mut line = String::new();
    stream.write_all(b"{\"command\":\"captures\"}\n").is_ok()
        && BufReader::new(stream).read_line(&mut line).is_ok()
        && line.contains("captures")
}

#[test]
fn a_member_that_takes_every_place_keeps_neither_root_nor_another_member_out() {
    let it = Box::start("places");
    let crowd = idle_members(&it.socket, 32);
    assert!(answers(&crowd[31]), "as many places as there are");
    for round in 0..3 {
        let (said, status) = it.synctl(false, &["status"]);
        assert_eq!(status, 0, "{round}: {said}");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65532", "--regid=65532", &format!("--groups={GROUP}")]);
    command.arg(program("synctl")).arg("--socket").arg(&it.socket).arg("status");
    let (text, status) = said(&command.output().expect("running synctl"));
    assert_eq!(status, 0, "another member: {text}");
    let mut closed = 0;
    for stream in &crowd[..31] {
        stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
        let mut stream = stream;
        closed += usize::from(matches!(stream.read(&mut [0]), Ok(0)));
    }
    assert_eq!(closed, 1, "one idle connection of the crowd gave its place");
    assert!(answers(&crowd[31]), "one that asks keeps it");
    let (said, status) = it.synctl(true, &["status"]);
    assert!(status != 0 || said.contains("workers"), "{said}");
    it.proxy.stop();
}

#[test(long)]
fn a_stopped_box_is_said_not_to_answer() {
    let it = Box::start("stopped");
    it.proxy.signal(Signal::SIGSTOP);
    let begin = Instant::now();
    let (said, status) = it.synctl(false, &["status"]);
    it.proxy.signal(Signal::SIGCONT);
    assert_eq!(status, 4, "{said}");
    assert!(
        said.contains("does not answer") && said.contains("within 10 s") && said.contains("stopped.sock"),
        "{said}"
    );
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    let (said, status) = it.synctl(false, &["status"]);
    assert_eq!(status, 0, "{said}");
    it.proxy.stop();
}

#[test(long)]
fn an_idle_box_is_silent_and_a_busy_one_is_not() {
    let it = Box::start("silent");
    let server = it.rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    let lines = |log: Vec<String>| log.iter().filter(|line| line.contains("lan->wan")).count();
    let stream = it.rig.client.connect(server.address).expect("a connection through the box");
    traffic::exchange(&stream, 1000, 1000).expect("bytes through the box");
    thread::sleep(Duration::from_millis(2500));
    let busy = lines(it.proxy.log());
    assert!(busy >= 1, "{:?}", it.proxy.log());
    let shown = it.proxy.log().iter().any(|line| line.contains("pps") && !line.contains("lan->wan 0 pps 0 bit/s"));
    assert!(shown, "few frames are shown too: {:?}", it.proxy.log());
    // What the hosts say to find each other is over by then.
    let silent = (0..8).any(|_| {
        let before = lines(it.proxy.log());
        thread::sleep(Duration::from_millis(4500));
        lines(it.proxy.log()) == before
    });
    assert!(silent, "{:?}", it.proxy.log());
    drop(stream);
    it.proxy.stop();
}

/// How long a start may take, on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts a box in this rig behind another program, which sets limits or capabilities, and ends it as soon as it is ready; what it said, and its
/// status, which is 0 if it has been ready.
fn start(rig: &Rig, before: &[&str], arguments: &[&str]) -> (String, i32) {
    let mut command = rig.middle.command(before[0]);
    command.args(&before[1..]).arg(program("synproxy")).args(["--control=none", "--state-dir=none", "--no-pin"]);
    command.args(rig.workers()).args(arguments);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starting");
    let pid = Pid::from_raw(child.id() as i32);
    let (over, is_over) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        if is_over.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let _ = signal::kill(pid, Signal::SIGKILL);
        }
    });
    let mut said = String::new();
    for line in BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok) {
        said.push_str(&line);
        said.push('\n');
        if line.starts_with("ready ") {
            signal::kill(pid, Signal::SIGTERM).expect("signalling a child of one's own");
        }
    }
    let status = child.wait().expect("waiting for a child of one's own").code().unwrap_or(-1);
    drop(over);
    watch.join().expect("a thread that waits");
    assert!(status != 0 || said.contains("\nready ") || said.starts_with("ready "), "{before:?} {arguments:?}: {said}");
    (said, status)
}

/// The lines that are neither log lines, which begin with the year, nor the table at the end.
fn complaints(said: &str) -> Vec<&str> {
    said.lines().filter(|line| line.starts_with("synproxy: ")).collect()
}

#[test]
fn every_number_of_descriptors_starts_the_box_or_ends_it_in_one_line() {
    let rig = Rig::new();
    let [lan, wan] = [Rig::LAN, Rig::WAN].map(|name| format!("xdp:{name}"));
    let mut ended = 0;
    for ports in [[Rig::LAN, Rig::WAN], [&lan, &wan]] {
        for limit in [5, 7, 9, 12, 16, 22, 27, 28, 29, 30, 31, 34] {
            let limit = format!("--nofile={limit}");
            let (said, status) = start(&rig, &["prlimit", &limit], &ports);
            if status == 0 {
                continue;
            }
            ended += 1;
            let complaints = complaints(&said);
            assert!([1, 4].contains(&status) && complaints.len() == 1, "{limit} {ports:?}: {status}: {said}");
            assert!(complaints[0].contains("ulimit -n") && complaints[0].len() < 300, "{limit}: {}", complaints[0]);
        }
    }
    assert!(ended > 4, "some limits are too small");
}

#[test]
fn every_size_of_the_address_space_starts_the_box_or_ends_it_in_one_line() {
    let rig = Rig::of_one_queue();
    let ports = [Rig::LAN, Rig::WAN];
    let [mut ended, mut ready] = [0; 2];
    for mebibytes in [48_u64, 64, 96, 128, 200, 280, 360, 420, 480, 540, 600, 700, 900, 2000] {
        let limit = format!("--as={}", mebibytes << 20);
        let (said, status) = start(&rig, &["prlimit", &limit], &ports);
        if status == 0 {
            ready += 1;
            continue;
        }
        ended += 1;
        let complaints = complaints(&said);
        assert!([1, 4].contains(&status) && complaints.len() == 1, "{mebibytes} MiB: {status}: {said}");
        assert!(complaints[0].contains("memory") || complaints[0].contains("thread"), "{mebibytes} MiB: {said}");
    }
    assert!(ended > 3 && ready > 1, "{ended} ended, {ready} ready");
}

#[test]
fn a_capture_for_which_there_is_no_memory_is_refused_and_the_box_goes_on() {
    let it = Box::start_in(Rig::of_one_queue(), "memory");
    let pid = it.proxy.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let size = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    // Enough for the thread of a client, and not for the buffers of five captures.
    let limit = (size.expect("its size") << 10) + (14 << 20);
    let limited = Command::new("prlimit").args([format!("--pid={pid}"), format!("--as={limit}")]).status();
    assert!(limited.expect("running prlimit").success());
    let mut refused = 0;
    for kind in ["received", "sent", "lan", "wan", "drops"] {
        let file = leftovers::file(&format!("memory-{kind}.pcapng"));
        let (said, status) = it.synctl(false, &["capture", "start", kind, file.to_str().expect("a path")]);
        if status != 0 {
            refused += 1;
            assert!(
                status == 1 && said.contains("cannot capture into") && said.contains("raise"),
                "{kind}: {status}: {said}"
            );
            assert!(!file.exists(), "{kind}: nothing is left of it");
        }
    }
    assert!(refused > 0, "the limit is too high");
    let (said, status) = it.synctl(false, &["status"]);
    assert_eq!(status, 0, "{said}");
    assert!(it.proxy.stop().status.success());
}

/// What a box says that runs as nobody with these capabilities, and its status.
fn with_capabilities(rig: &Rig, capabilities: &[&str], arguments: &[&str]) -> (String, i32) {
    let list: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let [inherited, ambient, bounding] =
        ["inh-caps", "ambient-caps", "bounding-set"].map(|set| format!("--{set}=-all{list}"));
    let before = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &bounding, &inherited, &ambient, "--"];
    start(rig, &before, arguments)
}

/// What docs/operations.md lists.
const CAPABILITIES: [&str; 6] = ["net_raw", "net_admin", "bpf", "perfmon", "ipc_lock", "sys_nice"];

#[test]
fn the_listed_capabilities_are_enough_and_each_that_is_missing_is_named() {
    let rig = Rig::new();
    let ports = [Rig::LAN, Rig::WAN];
    let (said, status) = with_capabilities(&rig, &CAPABILITIES, &ports);
    // Where its directory is another's, it says that nothing is locked.
    let warned = said.lines().any(|line| line.contains("WARN") && !line.contains("/run/synproxy/"));
    assert!(status == 0 && said.contains("AF_XDP, ") && !warned, "{status}: {said}");
    for missing in CAPABILITIES {
        let rest: Vec<&str> = CAPABILITIES.into_iter().filter(|name| *name != missing).collect();
        let (said, status) = with_capabilities(&rig, &rest, &ports);
        let name = format!("CAP_{}", missing.to_uppercase());
        let naming: Vec<&str> = said.lines().filter(|line| line.contains(&name)).collect();
        // A machine may let everybody lock as much as the box needs.
        let suffices = missing == "ipc_lock" && said.contains("AF_XDP, ");
        assert!(suffices || naming.len() == 1, "{missing}: {said}");
        assert!(suffices || naming[0].contains("WARN") || naming[0].starts_with("synproxy: "), "{missing}: {said}");
        assert!(!said.contains("Verifier output") && said.lines().all(|line| line.len() < 400), "{missing}: {said}");
        let goes_on = !["net_raw"].contains(&missing);
        assert_eq!(status == 0, goes_on, "{missing}: {status}: {said}");
    }
}
