//! What the box reports by itself: a flood from its beginning to its end, links, and a command that does not do what it should, which costs nobody
//! anything; and who is behind SYNs that never reach a worker.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use control::{Attack, AttackStatus, Client, Event, LinkCondition, Record, Reply, Request, Stats, Top};
use harness::{leftovers, note, test};
use unit::netns::{self, Appliance, Backend, Rig, program, traffic, within};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A box with a control socket, and files beside it.
struct Box {
    proxy: Appliance,
    directory: PathBuf,
}

impl Box {
    /// With these entries in its section `events`, in which `HERE` is its directory.
    fn start(rig: &Rig, backend: Backend, events: &str, config: &str, arguments: &[&str]) -> Box {
        let directory = leftovers::file("events");
        fs::create_dir(&directory).expect("a directory for the test");
        Box::start_in(directory, rig, backend, events, config, arguments)
    }

    fn start_in(
        directory: PathBuf,
        rig: &Rig,
        backend: Backend,
        events: &str,
        config: &str,
        arguments: &[&str],
    ) -> Box {
        let events = events.replace("HERE", &directory.display().to_string());
        let config = format!("{config} events = {{ {events} }};");
        let socket = format!("--control={}", directory.join("socket").display());
        let arguments = [&[socket.as_str()], arguments].concat();
        Box { proxy: Appliance::start_with(rig, backend, &config, &arguments), directory }
    }

    fn ask(&self, request: &Request) -> Reply {
        let mut client = Client::connect(&self.directory.join("socket")).expect("a box listens");
        client.ask(request).expect("an answer")
    }

    fn stats(&self) -> Stats {
        let Reply::Stats(stats) = self.ask(&Request::Stats) else { panic!("another reply") };
        *stats
    }

    fn top(&self) -> Top {
        let Reply::Top(top) = self.ask(&Request::Top) else { panic!("another reply") };
        *top
    }

    fn events(&self) -> Vec<Record> {
        let Reply::Events(events) = self.ask(&Request::Events { after: 0 }) else { panic!("another reply") };
        events
    }

    fn delivery(&self, name: &str) -> u64 {
        self.stats().total.delivery[name]
    }

    fn has(&self, event: &str) -> bool {
        self.events().iter().any(|record| record.event.name() == event)
    }
}

impl Drop for Box {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The records in a file of events.
fn records(path: &Path) -> Vec<Record> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// A flood, which ends when this is dropped.
struct Flood(Child);

impl Flood {
    fn start(rig: &Rig, from: &str, rate: Option<u32>, core: Option<usize>) -> Flood {
        let mut command = match core {
            Some(core) => {
                let mut command = rig.client.command("taskset");
                command.args(["-c", &core.to_string()]).arg(program("synflood"));
                command
            }
            None => rig.client.command(program("synflood")),
        };
        command.args(["--interface", "c0", "--to", &netns::SERVER_V4.to_string(), "--to-mac", netns::SERVER_MAC]);
        command.args(["--from-mac", "02:00:00:00:00:66", "--from", from, "--seconds", "120"]);
        if let Some(rate) = rate {
            command.args(["--rate", &rate.to_string()]);
        }
        Flood(command.stdout(Stdio::null()).spawn().expect("starting the flood"))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One exchange of an honest client.
fn talk(rig: &Rig, server: &traffic::Server) {
    let mut stream = rig.client.connect(server.address).expect("connecting");
    stream.write_all(b"hello").expect("sending");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("receiving");
}

#[test(long)]
fn a_flood_is_reported_from_its_beginning_to_its_end_to_a_file_and_to_the_syslog() {
    let rig = Rig::new();
    let directory = leftovers::file("events");
    fs::create_dir(&directory).expect("a directory for the test");
    let syslog = UnixDatagram::bind(directory.join("log")).expect("a syslog server");
    syslog.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let settings =
        "file = \"HERE/file\"; syslog = \"HERE/log\"; attack_begin = 500; attack_end = 100; attack_end_after = 1;";
    let it = Box::start_in(directory, &rig, Backend::Driver, settings, netns::CACHE_ON, &[]);
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(4) {
        (0..10).for_each(|_| talk(&rig, &server));
        thread::sleep(Duration::from_millis(5));
    }
    assert!(!it.has("attack-begin"), "honest clients are no attack, however many: {:?}", it.events());

    let flood = Flood::start(&rig, "203.0.113.7/32", Some(5000), None);
    // The file has its own writer, which may be behind what the control socket says.
    let file = it.directory.join("file");
    within(PATIENCE, "the attack goes on", || records(&file).iter().any(|it| it.event.name() == "attack-update"));
    // What logrotate does, and nobody is told.
    let rotated = it.directory.join("file.1");
    fs::rename(&file, &rotated).expect("rotating");
    talk(&rig, &server);
    drop(flood);
    within(PATIENCE, "the attack ends", || it.has("attack-end"));
    let kept = it.events();
    note!("{kept:#?}");
    let names: Vec<&str> = kept.iter().map(|record| record.event.name()).collect();
    assert_eq!([names[0], names[1]], ["attack-begin", "attack-update"]);
    let peak = names.iter().position(|name| *name == "attack-peak").expect("a peak");
    assert!(
        peak > 1
            && names.last() == Some(&"attack-end")
            && names.iter().filter(|name| **name == "attack-begin").count() == 1
    );

    let attacks: Vec<&Attack> = kept.iter().filter_map(|record| record.event.attack()).collect();
    let (first, last) = (attacks[0], attacks[attacks.len() - 1]);
    assert!(attacks.iter().all(|attack| attack.mid == first.mid));
    assert_eq!(first.target_prefix, [format!("{}/32", netns::SERVER_V4)]);
    assert_eq!(first.target_port_range.first().map(|range| range.lower_port), Some(80));
    assert_eq!(first.top_sources.first().map(|source| source.source_prefix.as_str()), Some("203.0.113.7/32"));
    assert_eq!(first.status, AttackStatus::AttackMitigationInProgress);
    assert_eq!(last.status, AttackStatus::AttackStopped);
    assert!((500..20_000).contains(&last.peak_pps_dropped) && last.pkts_dropped > 500, "{last:?}");

    // The same in both files together, in the syslog, and in the counters.
    within(PATIENCE, "the file has them all", || records(&file).last() == kept.last());
    let written: Vec<Record> = [&rotated, &file].into_iter().flat_map(|path| records(path)).collect();
    assert_eq!(written, kept);
    assert!(records(&rotated).len() >= 2 && !records(&file).is_empty(), "before and after the rotation");
    for record in &kept {
        let mut message = [0; 8192];
        let length = syslog.recv(&mut message).expect("a message for each event");
        let message = std::str::from_utf8(&message[..length]).expect("text");
        let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
        let (priority, rest) = message.split_once(">1 ").unwrap_or_else(|| panic!("{message}"));
        assert!(["<28", "<29"].contains(&priority), "{message}");
        let lead = format!("{} {} synproxy {} {} - ", record.time, host.trim(), it.proxy.pid(), record.event.name());
        let json = rest.strip_prefix(&lead).unwrap_or_else(|| panic!("{lead:?} leads {rest}"));
        assert_eq!(serde_json::from_str::<Record>(json).expect("JSON"), *record);
    }
    within(PATIENCE, "both are counted", || {
        let events = it.stats().total.reported_events;
        (events["attack-begin"], events["attack-end"]) == (1, 1)
    });
    let total = it.stats().total;
    assert_eq!((total.notices["attacks"], total.delivery["file-lost"], total.delivery["syslog-lost"]), (0, 0, 0));

    let mut synctl = Command::new(program("synctl"));
    synctl.arg("--socket").arg(it.directory.join("socket"));
    let mut follow = synctl.args(["events", "--follow"]).stdout(Stdio::piped()).spawn().expect("synctl runs");
    rig.client.sh("ip link set c0 down");
    within(PATIENCE, "the loss of a link is reported", || it.has("link-changed"));
    let mut said = String::new();
    let mut out = follow.stdout.take().expect("piped");
    let begin = Instant::now();
    while !said.contains("wan0 is no-carrier") {
        assert!(begin.elapsed() < PATIENCE, "{said}");
        let mut piece = [0; 4096];
        let read = out.read(&mut piece).expect("reading");
        assert!(read > 0, "synctl goes on: {said}");
        said.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    assert!(
        said.contains("attack-begin  10.77.0.2/32 port 80, ") && said.contains("    from 203.0.113.7/32, "),
        "{said}"
    );
    follow.kill().expect("ending synctl");
    follow.wait().expect("ending synctl");
    let lost = it.events().into_iter().rev().find(|record| record.event.name() == "link-changed");
    let Some(Record { event: Event::LinkChanged { interface, condition, .. }, .. }) = lost else { panic!("{lost:?}") };
    assert_eq!((interface.as_str(), condition), (Rig::WAN, LinkCondition::NoCarrier));
}

/// Makes events: the link of the WAN is lost and comes back.
fn flap(rig: &Rig, it: &Box, times: usize) {
    let changes = || it.events().iter().filter(|record| record.event.name() == "link-changed").count();
    for _ in 0..times {
        for state in ["down", "up"] {
            let before = changes();
            rig.client.sh(&format!("ip link set c0 {state}"));
            within(PATIENCE, "the change is reported", || changes() > before);
        }
    }
}

#[test]
fn a_command_that_hangs_is_killed_and_frames_go_on() {
    let rig = Rig::new();
    // It reads nothing, and leaves a child behind.
    let directory = leftovers::file("events");
    fs::create_dir(&directory).expect("a directory for the test");
    let script = directory.join("hang");
    let text = "#!/bin/sh\nls -l /proc/self/fd >$1/open.$$\nmv $1/open.$$ $1/open\nsleep 1000 &\necho $! >>$1/pids\nsleep 1000\n";
    fs::write(&script, text).expect("writing a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("making it executable");
    let settings = "on_event = \"HERE/hang HERE\"; command_timeout = 1; commands = 2;";
    let it = Box::start_in(directory, &rig, Backend::Driver, settings, netns::CACHE_ON, &[]);
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    talk(&rig, &server);
    flap(&rig, &it, 2);
    // The address has a neighbour again that was lost with the link.
    within(PATIENCE, "the client is back", || rig.client.connect(server.address).is_ok());
    let begin = Instant::now();
    while it.delivery("command-killed") < 4 {
        assert!(begin.elapsed() < PATIENCE, "{:?}", it.stats().total.delivery);
        let start = Instant::now();
        talk(&rig, &server);
        assert!(start.elapsed() < Duration::from_secs(2), "an exchange took {:?}", start.elapsed());
    }
    let total = it.stats().total.delivery;
    assert_eq!((total["command-run"], total["command-lost"], total["events-dropped"]), (4, 0, 0), "{total:?}");
    let pids = fs::read_to_string(it.directory.join("pids")).expect("the children of the command");
    assert_eq!(pids.lines().count(), 4);
    // The children are killed too. What is left of them is a zombie until init has waited for it.
    let runs = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains("(sleep)") && !stat.contains("(sleep) Z")
    };
    within(PATIENCE, "its children are gone", || !pids.lines().any(runs));
    // Nothing of the box is open in it: neither its sockets nor its maps.
    let open = fs::read_to_string(it.directory.join("open")).expect("what it has open");
    for what in ["socket:", "anon_inode:", "/synproxy"] {
        assert!(!open.contains(what), "{open}");
    }
    let report = {
        let Box { proxy, .. } = &it;
        proxy.signal(nix::sys::signal::Signal::SIGTERM);
        let begin = Instant::now();
        within(PATIENCE, "the box ends", || netns::has_ended(it.proxy.pid()));
        begin.elapsed()
    };
    assert!(report < Duration::from_secs(3), "{report:?} to end");
}

/// Keeps all threads of a process on one core.
fn confine(pid: u32, core: usize) {
    let arguments = ["-a", "-p", "-c", &core.to_string(), &pid.to_string()];
    let output = Command::new("taskset").args(arguments).output().expect("taskset is part of util-linux");
    assert!(output.status.success(), "taskset: {}", String::from_utf8_lossy(&output.stderr));
}

fn shed_syns_are_among_the_top_talkers(backend: Backend) {
    let rig = Rig::alone();
    // Behind the flood's generator on the same core the workers cannot keep up.
    let settings = "attack_begin = 500;";
    let it = Box::start(&rig, backend, settings, netns::CACHE_OFF, &["--nice", "15"]);
    confine(it.proxy.pid(), 0);
    let _server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    rig.client.sh(&format!("ping -n -q -c 2 -i 0.05 {}", netns::SERVER_V4));
    let _flood = Flood::start(&rig, "203.0.113.4/30", None, Some(0));
    let shed = |stats: &Stats| stats.total.wan["shed-fresh"] + stats.total.wan["shed-repeated"];
    within(PATIENCE, "SYNs are shed", || shed(&it.stats()) > 100_000);
    // As long as the period that the top talkers are of may have begun before it.
    let (begin, before) = (Instant::now(), shed(&it.stats()));
    thread::sleep(Duration::from_secs(4));
    let rate = (shed(&it.stats()) - before) as f64 / begin.elapsed().as_secs_f64();
    let top = it.top();
    note!("{backend:?}: {rate:.0} shed a second; {:?}, {:?}", top.sources, top.targets);
    let from_flood = top.sources.iter().filter(|source| source.name.starts_with("203.0.113."));
    let syns: u64 = from_flood.map(|source| source.syns).sum();
    let estimated = syns as f64 / top.period;
    assert!(
        estimated > rate / 2.0 && estimated < rate * 2.0,
        "{backend:?}: {estimated:.0} a second, where {rate:.0} are shed"
    );
    let target = format!("{}:80", netns::SERVER_V4);
    assert_eq!(top.targets.first().map(|target| target.name.as_str()), Some(target.as_str()));
    assert!(top.targets[0].syns as f64 / top.period > rate / 2.0);
    within(PATIENCE, "it is an attack", || it.has("attack-begin"));
    let events = it.events();
    let attack = events.iter().rev().find_map(|record| record.event.attack()).expect("it was reported");
    let mut sources: Vec<&str> = attack.top_sources.iter().map(|source| source.source_prefix.as_str()).collect();
    sources.sort_unstable();
    assert_eq!(sources, ["203.0.113.4/32", "203.0.113.5/32", "203.0.113.6/32", "203.0.113.7/32"]);
}

#[test(alone)]
fn syns_that_the_program_in_the_driver_sheds_are_among_the_top_talkers() {
    shed_syns_are_among_the_top_talkers(Backend::Driver);
}

#[test(alone)]
fn syns_that_a_worker_behind_af_packet_sheds_are_among_the_top_talkers() {
    shed_syns_are_among_the_top_talkers(Backend::Packet);
}

#[test]
fn the_end_of_a_box_whose_port_is_gone_is_its_last_event() {
    let rig = Rig::new();
    let directory = leftovers::file("events");
    fs::create_dir(&directory).expect("a directory for the test");
    let script = directory.join("last");
    fs::write(&script, "#!/bin/sh\ncat >>$1/seen\n").expect("writing a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("making it executable");
    let settings = "file = \"HERE/file\"; on_event = \"HERE/last HERE\";";
    let it = Box::start_in(directory, &rig, Backend::Packet, settings, netns::CACHE_ON, &[]);
    let pid = it.proxy.pid();
    rig.client.sh("ip link del c0");
    within(PATIENCE, "the box ends", || netns::has_ended(pid));
    for file in ["file", "seen"] {
        let last = records(&it.directory.join(file)).pop().map(|record| record.event);
        let Some(Event::BoxFailed { why }) = &last else { panic!("{file}: {last:?}") };
        assert!(why.starts_with("wan0 is gone"), "{why}");
    }
}
