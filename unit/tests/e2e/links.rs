//! The interfaces of the box: one box has them at a time, they are as they were after a kill too, and a link that is lost, settings that
//! somebody changes and ports that are swapped are noticed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use control::{Client, LinkCondition, Reply, Request, Stats, Status};
use harness::{leftovers, note, test};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use unit::netns::{self, Appliance, Backend, CACHE_ON, Namespace, Rig, program, traffic, within};

/// Everything about the box's two interfaces that it may change.
pub(super) fn settings(rig: &Rig) -> String {
    let of = |interface| {
        rig.middle.sh(&format!(
            "ip -d link show dev {interface}; ethtool -k {interface}; ethtool -l {interface} 2>&1 || true; ethtool -a {interface} 2>&1 || true"
        ))
    };
    // The numbers of a link's programs and its time stamps are no settings.
    [Rig::LAN, Rig::WAN].map(of).concat()
}

/// Runs the program to its end; what it says, and its status.
pub(super) fn synproxy(rig: &Rig, arguments: &[&str]) -> (String, i32) {
    let mut command = rig.middle.command("timeout");
    let Output { status, stdout, stderr } =
        command.arg("20").arg(program("synproxy")).args(arguments).output().expect("starting");
    let said = [stdout, stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
    (said, status.code().expect("an end"))
}

/// The files about interfaces of the rig's box.
fn files(rig: &Rig) -> Vec<String> {
    let number = rig.middle.sh("stat -Lc %i /proc/self/ns/net");
    let entries = fs::read_dir(control::DIRECTORY).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("port-") && name.ends_with(&format!("@{}", number.trim()))).collect()
}

const SECONDS: Duration = Duration::from_secs(30);

fn has_carrier(host: &Namespace, interface: &str) -> bool {
    // A carrier cannot be read while the interface is down.
    host.sh(&format!("cat /sys/class/net/{interface}/carrier 2>/dev/null || echo 0")).trim() == "1"
}

/// A box with a control socket.
struct Watched {
    proxy: Appliance,
    socket: PathBuf,
}

impl Watched {
    fn start(rig: &Rig, ports: &[String], config: &str) -> Watched {
        let socket = leftovers::file("links.sock");
        let proxy = Appliance::start_on(rig, ports, config, &[&format!("--control={}", socket.display())]);
        Watched { proxy, socket }
    }

    fn status(&self) -> Status {
        match Client::connect(&self.socket).expect("a box listens").ask(&Request::Status) {
            Ok(Reply::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn stats(&self) -> Stats {
        match Client::connect(&self.socket).expect("a box listens").ask(&Request::Stats) {
            Ok(Reply::Stats(stats)) => *stats,
            other => panic!("{other:?}"),
        }
    }

    /// How each link is, LAN first.
    fn conditions(&self) -> [LinkCondition; 2] {
        let status = self.status();
        [status.lan, status.wan].map(|interface| interface.link.expect("it is an interface").condition)
    }

    fn says(&self, words: &str) -> bool {
        self.proxy.log().iter().any(|line| line.contains(words))
    }
}

#[test]
fn an_interface_is_a_port_of_one_box_only() {
    for first in Backend::ALL {
        let rig = Rig::new();
        let proxy = Appliance::start(&rig, first, CACHE_ON);
        for second in Backend::ALL {
            for ports in [[Rig::LAN, Rig::WAN], [Rig::WAN, Rig::LAN]] {
                let prefix = if second == Backend::Packet { "packet" } else { "xdp" };
                let [lan, wan] = ports.map(|port| format!("{prefix}:{port}"));
                let (said, status) = synproxy(&rig, &["--control=none", &lan, &wan]);
                assert_eq!(status, 4, "{first:?}, {second:?}: {said}");
                let complaint = said.lines().find(|line| line.starts_with("synproxy: ")).expect("a complaint");
                let holder = format!("process {}", proxy.pid());
                assert!(complaint.contains("belongs to the box between") && complaint.contains(&holder), "{complaint}");
            }
        }
        let server = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
        let stream = rig.client.connect(server.address).expect("the first box is at work");
        traffic::exchange(&stream, 10_000, 10_000).expect("the first box is at work");
        proxy.end(Signal::SIGKILL);
        assert!(Appliance::start(&rig, first, CACHE_ON).stop().status.success(), "a lock ends with its process");
        assert_eq!(files(&rig), [""; 0]);
    }
}

#[test]
fn interfaces_in_use_are_refused_with_the_reason() {
    let rig = Rig::new();
    let before = settings(&rig);
    let refused = |arguments: &[&str], words: &[&str]| {
        let (said, status) = synproxy(&rig, &[&["--control=none"], arguments].concat());
        assert!(status == 4 && words.iter().all(|word| said.contains(word)), "{arguments:?}, {status}: {said}");
    };
    for prefix in ["", "packet:", "xdp:"] {
        let [lan, wan] = [Rig::LAN, Rig::WAN].map(|port| format!("{prefix}{port}"));
        rig.middle.sh("ip link add bridge0 type bridge; ip link set wan0 master bridge0");
        refused(&[&lan, &wan], &["wan0 is a member of bridge0 (bridge)", "nomaster"]);
        refused(&["--force", &lan, &wan], &["wan0 is a member of bridge0 (bridge)"]);
        rig.middle.sh("ip link del bridge0; ip addr add 10.77.0.5/24 dev wan0; ip route add default via 10.77.0.1");
        refused(&[&lan, &wan], &["wan0 carries the default route of this machine", "--force"]);
        rig.middle.sh("ip route del default");
        let login = rig.middle.serve("10.77.0.5".parse().expect("an address"), 0, traffic::echo);
        let session = rig.client.connect(login.address).expect("logging in");
        refused(&[&lan, &wan], &["wan0 carries a connection of this machine with 10.77.0.1", "--force"]);
        let forced = [format!("{prefix}{}", Rig::LAN), format!("{prefix}{}", Rig::WAN)];
        assert!(Appliance::start_on(&rig, &forced, CACHE_ON, &["--force"]).stop().status.success());
        drop(session);
        drop(login);
        rig.middle.sh("ip addr del 10.77.0.5/24 dev wan0");
    }
    rig.middle.sh("ip link add one type veth peer name other; ip link set one up; ip link set other up");
    refused(&["packet:one", "packet:other"], &["the two ends of one veth pair"]);
    rig.middle.sh("ip link del one");
    assert_eq!(settings(&rig), before);
}

#[test]
fn an_alternative_name_is_a_name() {
    let rig = Rig::new();
    rig.middle.sh(
        "ip link property add dev lan0 altname port-toward-the-servers; ip link property add dev wan0 altname uplink",
    );
    for prefix in ["xdp", "packet"] {
        let ports = ["port-toward-the-servers", "uplink"].map(|name| format!("{prefix}:{name}"));
        let watched = Watched::start(&rig, &ports, CACHE_ON);
        let server = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
        let stream = rig.client.connect(server.address).expect("connecting");
        traffic::exchange(&stream, 10_000, 10_000).expect("talking");
        within(SECONDS, "the links are seen", || watched.status().lan.link.is_some());
        assert_eq!(watched.conditions(), [LinkCondition::Up; 2]);
        let (said, status) = synproxy(&rig, &["packet:lan0", "packet:wan0"]);
        assert!(status == 4 && said.contains("belongs to"), "another name is no other interface: {said}");
        assert!(watched.proxy.stop().status.success());
    }
}

#[test]
fn what_a_killed_box_has_changed_is_put_back() {
    const USER: &str = "user = 65534; group = 65534;";
    for (backend, config) in [(Backend::Driver, CACHE_ON), (Backend::Packet, CACHE_ON), (Backend::Packet, USER)] {
        let rig = Rig::new();
        // More to put back than a veth has by itself.
        rig.middle.sh("ethtool -K lan0 gro on; ethtool -K wan0 gro off");
        let before = settings(&rig);
        let what = format!("{backend:?}, {config}");
        let proxy = Appliance::start(&rig, backend, config);
        let (said, status) = synproxy(&rig, &["--restore", Rig::LAN]);
        assert!(status == 4 && said.contains("lan0 belongs to the box between"), "{what}: {said}");
        let (said, status) = synproxy(&rig, &["--restore"]);
        assert!(status == 0 && said.contains("lan0 belongs to"), "{what}: {said}");
        proxy.end(Signal::SIGKILL);
        assert_ne!(settings(&rig), before, "{what}: nothing is left to be put back");
        let mut stranger = rig.middle.command("setpriv");
        stranger.args(["--reuid=65533", "--regid=65533", "--clear-groups"]).arg(program("synproxy")).arg("--restore");
        let refused = stranger.output().expect("running setpriv");
        assert_eq!(refused.status.code(), Some(5), "{what}: {}", String::from_utf8_lossy(&refused.stderr));
        let (said, status) = synproxy(&rig, &["--restore"]);
        assert!(status == 0 && said.contains("lan0: promiscuous mode, offloads put back"), "{what}: {said}");
        assert_eq!(settings(&rig), before, "{what}");
        let (said, status) = synproxy(&rig, &["--restore"]);
        assert!(status == 0 && said.contains("nothing is to be put back"), "{what}: {said}");
        assert_eq!(synproxy(&rig, &["--restore", Rig::LAN, "nowhere0"]).1, 4, "{what}");

        // Killed twice, then ended: the originals are still those of the first start, and nothing was put back in between.
        for _ in 0..2 {
            Appliance::start(&rig, backend, config).end(Signal::SIGKILL);
        }
        let proxy = Appliance::start(&rig, backend, &format!("{config} log_level = debug;"));
        assert!(proxy.log().iter().any(|line| line.contains("settings are those of a former process")), "{what}");
        assert!(proxy.stop().status.success(), "{what}");
        assert_eq!(settings(&rig), before, "{what}");
        // The user may not remove what lies in root's directory.
        let path = |name: &String| Path::new(control::DIRECTORY).join(name);
        let left: Vec<String> = files(&rig)
            .into_iter()
            .filter(|name| config != USER || fs::metadata(path(name)).is_ok_and(|file| file.len() > 0))
            .collect();
        assert_eq!(left, [""; 0], "{what}");
    }
}

#[test]
fn a_loss_is_passed_on_to_the_other_port_and_taken_back() {
    for backend in [Backend::Driver, Backend::Packet] {
        let rig = Rig::new();
        let ports: Vec<String> = backend.arguments();
        let watched = Watched::start(&rig, &ports, "link_loss = forward;");
        within(SECONDS, "the links are seen", || watched.status().lan.link.is_some());
        for (lost, host, own, other, far) in
            [(0, &rig.server, "s0", &rig.client, "c0"), (1, &rig.client, "c0", &rig.server, "s0")]
        {
            let [port, taken] = if lost == 0 { [Rig::LAN, Rig::WAN] } else { [Rig::WAN, Rig::LAN] };
            host.sh(&format!("ip link set {own} down"));
            let took = within(SECONDS, "the other port's neighbour notices", || !has_carrier(other, far));
            note!("{backend:?}: passed on after {took:?}");
            assert!(took < Duration::from_secs(3), "{backend:?}: {took:?}");
            within(SECONDS, "status", || {
                let mut expected = [LinkCondition::NoCarrier; 2];
                expected[1 - lost] = LinkCondition::TakenDown;
                watched.conditions() == expected
            });
            within(SECONDS, "it says so", || {
                watched.says(&format!("{port} has lost its link")) && watched.says(&format!("{taken} is taken down"))
            });
            host.sh(&format!("ip link set {own} up"));
            let took = within(SECONDS, "the other port's neighbour has its link again", || has_carrier(other, far));
            note!("{backend:?}: taken back after {took:?}");
            within(SECONDS, "status", || watched.conditions() == [LinkCondition::Up; 2]);
            let link =
                |stats: &Stats, side: usize| [stats.total.lan_link.clone(), stats.total.wan_link.clone()][side].clone();
            within(SECONDS, "counted", || {
                let stats = watched.stats();
                (link(&stats, lost)["lost"], link(&stats, 1 - lost)["taken-down"]) == (1, 1)
            });
        }
        rig.client.sh("ip -6 addr show dev c0");
        let server = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
        let stream = rig.client.connect(server.address).expect("connecting afterwards");
        traffic::exchange(&stream, 10_000, 10_000).expect("talking afterwards");

        // A port that is down when the box is killed is taken up by the next, or without it.
        rig.server.sh("ip link set s0 down");
        within(SECONDS, "passed on", || !has_carrier(&rig.client, "c0"));
        watched.proxy.end(Signal::SIGKILL);
        rig.server.sh("ip link set s0 up");
        let (said, status) = synproxy(&rig, &["--restore", Rig::WAN]);
        assert!(status == 0 && said.contains("wan0: state"), "{said}");
        assert!(has_carrier(&rig.client, "c0"));
        let watched = Watched::start(&rig, &ports, "link_loss = forward;");
        rig.server.sh("ip link set s0 down");
        within(SECONDS, "passed on", || !has_carrier(&rig.client, "c0"));
        watched.proxy.end(Signal::SIGKILL);
        rig.server.sh("ip link set s0 up");
        let watched = Watched::start(&rig, &ports, "link_loss = forward;");
        rig.server.sh("ip link set s0 down");
        within(SECONDS, "passed on", || !has_carrier(&rig.client, "c0"));
        assert!(watched.proxy.stop().status.success());
        assert!(has_carrier(&rig.client, "c0"), "a clean end takes it up");
    }
}

#[test]
fn a_lost_link_is_said_and_shown_and_ends_nothing() {
    for backend in [Backend::Driver, Backend::Packet] {
        let rig = Rig::new();
        let watched = Watched::start(&rig, &backend.arguments(), "");
        within(SECONDS, "the links are seen", || watched.status().lan.link.is_some());
        for times in 1..=3 {
            rig.server.sh("ip link set s0 down");
            within(SECONDS, "seen", || watched.conditions() == [LinkCondition::NoCarrier, LinkCondition::Up]);
            assert!(has_carrier(&rig.client, "c0"), "nobody asked for it to be passed on");
            rig.server.sh("ip link set s0 up");
            within(SECONDS, "seen", || watched.conditions() == [LinkCondition::Up; 2]);
            assert_eq!(watched.status().lan.link.expect("an interface").lost, times);
        }
        let shown = Command::new(program("synctl")).arg("--socket").arg(&watched.socket).arg("status").output();
        let shown = String::from_utf8(shown.expect("running synctl").stdout).expect("text");
        assert!(shown.contains("link up for") && shown.contains("lost 3 times"), "{shown}");
        rig.middle.sh("ip link set wan0 down");
        within(SECONDS, "seen", || watched.conditions() == [LinkCondition::Up, LinkCondition::Down]);
        within(SECONDS, "said", || watched.says("wan0 is down; nothing passes"));
        rig.middle.sh("ip link set wan0 up");
        let server = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
        let stream = rig.client.connect(server.address).expect("connecting afterwards");
        traffic::exchange(&stream, 10_000, 10_000).expect("talking afterwards");
        assert!(watched.proxy.stop().status.success());
    }
}

#[test(alone)]
fn settings_that_somebody_changes_are_set_back_and_counted() {
    let rig = Rig::queued(2);
    let before = settings(&rig);
    let watched = Watched::start(&rig, &Backend::Packet.arguments(), CACHE_ON);
    rig.middle.sh("ethtool -L lan0 rx 1 tx 1");
    within(SECONDS, "queues are set back", || rig.middle.sh("ethtool -l lan0 | tail -n 4").contains("RX:\t\t2"));
    rig.middle.sh("ethtool -K wan0 gro on tso on >/dev/null");
    within(SECONDS, "offloads are set back", || {
        rig.middle.sh("ethtool -k wan0").contains("generic-receive-offload: off")
    });
    within(SECONDS, "counted", || {
        let total = watched.stats().total;
        (total.lan_link["settings-changed"], total.wan_link["settings-changed"]) == (1, 1)
    });
    within(SECONDS, "said", || watched.says("lan0: somebody has changed its queues from 2 to 1; set back"));
    assert!(watched.proxy.stop().status.success());
    assert_eq!(settings(&rig), before);
}

#[test]
fn an_mtu_and_a_membership_that_somebody_changes_are_set_back_and_counted() {
    for (backend, other) in [(Backend::Driver, "9000"), (Backend::Packet, "1400")] {
        let rig = Rig::new();
        let before = settings(&rig);
        let watched = Watched::start(&rig, &backend.arguments(), CACHE_ON);
        let server = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
        let stream = rig.client.connect(server.address).expect("connecting");
        let mtu = |port: &str| rig.middle.sh(&format!("cat /sys/class/net/{port}/mtu")).trim().to_owned();
        rig.middle.sh(&format!("ip link set lan0 mtu {other}"));
        within(SECONDS, "the MTU is set back", || mtu(Rig::LAN) == "1500");
        within(SECONDS, "it says so", || {
            watched.says(&format!("lan0: somebody has changed its MTU from 1500 to {other}; set back, since"))
        });
        rig.middle.sh("ip link add bridge0 type bridge; ip link set wan0 master bridge0");
        within(SECONDS, "it leaves the bridge", || !rig.middle.sh("ip -d link show dev wan0").contains("bridge0"));
        within(SECONDS, "counted", || {
            let total = watched.stats().total;
            (total.lan_link["settings-changed"], total.wan_link["settings-changed"]) == (1, 1)
        });
        within(SECONDS, "said", || watched.says("wan0: somebody has made it a member of bridge0; set back"));
        rig.middle.sh("ip link del bridge0");
        traffic::exchange(&stream, 100_000, 100_000).expect("the connection goes on");
        assert!(watched.proxy.stop().status.success());
        assert_eq!(settings(&rig), before, "{backend:?}");
    }
}

/// A box whose start is looked at, with what it says in a file.
struct Starting {
    child: Child,
    file: PathBuf,
}

impl Starting {
    fn new(rig: &Rig, backend: Backend) -> Starting {
        Starting::on(rig, &backend.arguments())
    }

    fn on(rig: &Rig, ports: &[String]) -> Starting {
        let file = leftovers::file("start.log");
        let log = fs::File::create(&file).expect("a file of one's own");
        let mut command = rig.middle.command(program("synproxy"));
        command.args(["--no-pin", "--control=none", "--state-dir=none"]).args(rig.workers()).args(ports);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("starting");
        Starting { child, file }
    }

    fn says(&self, words: &str) -> bool {
        fs::read_to_string(&self.file).unwrap_or_default().contains(words)
    }

    /// Pages that it has been given so far.
    fn page_faults(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let fields = stat.rsplit_once(')').expect("a name in brackets").1;
        fields.split_whitespace().nth(7).and_then(|minor| minor.parse().ok()).expect("proc(5): minflt")
    }

    fn end(mut self) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        self.child.wait().expect("a child of one's own");
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(Path::new(&self.file));
    }
}

#[test]
fn a_start_says_what_it_waits_for_and_is_ready_soon_after() {
    for backend in Backend::ALL {
        let rig = Rig::new();
        let before = settings(&rig);
        rig.server.sh("ip link set s0 down");
        let starting = Starting::new(&rig, backend);
        within(SECONDS, "it says what it waits for", || starting.says("waiting for the link of lan0"));
        assert!(!starting.says("\nready"), "nobody waits");
        rig.server.sh("ip link set s0 up");
        let took = within(SECONDS, "it is ready", || starting.says("\nready"));
        note!("{backend:?}: ready {took:?} after the link");
        starting.end();
        assert_eq!(settings(&rig), before);

        // A signal meanwhile ends it at once, and everything is as it was.
        rig.server.sh("ip link set s0 down");
        let starting = Starting::new(&rig, backend);
        within(SECONDS, "it says what it waits for", || starting.says("waiting for the link of lan0"));
        let begin = Instant::now();
        starting.end();
        let took = begin.elapsed();
        note!("{backend:?}: ended {took:?} after a signal");
        assert!(took < Duration::from_secs(10), "{took:?}");
        rig.server.sh("ip link set s0 up");
        assert_eq!(settings(&rig), before);
    }
}

/// What a start does is counted rather than timed: most of its time goes into pages, of which the frames of a worker take 32 MiB.
#[test]
fn a_start_takes_the_memory_of_its_frames_once() {
    let rig = Rig::new();
    // As an operator names them, so that the best mode that works is taken.
    let starting = Starting::on(&rig, &[Rig::LAN, Rig::WAN].map(str::to_owned));
    within(SECONDS, "it is ready", || starting.says("\nready"));
    let frames = (32 << 20) / 4096 * u64::from(rig.queues());
    let faults = starting.page_faults();
    note!("{faults} page faults, {frames} of them for frames");
    assert!(starting.says("no zero copy: the driver of lan0 has none"), "it was not asked for what a veth lacks");
    // Once more would be `frames` more; how the kernel maps programs and tables is worth a few hundred.
    assert!(faults < 2 * frames + frames / 2, "{faults} page faults");
    starting.end();
}

#[test(long)]
fn ports_that_are_swapped_are_noticed() {
    let rig = Rig::new();
    let ports = [format!("packet:{}", Rig::WAN), format!("packet:{}", Rig::LAN)];
    let watched = Watched::start(&rig, &ports, CACHE_ON);
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    let connect = || {
        let stream = rig.client.connect(server.address).expect("connecting");
        traffic::exchange(&stream, 1000, 1000).expect("talking");
    };
    (0..12).for_each(|_| connect());
    assert!(!watched.status().ports_swapped);
    within(Duration::from_secs(60), "it is noticed", || {
        thread::sleep(Duration::from_millis(500));
        watched.status().ports_swapped
    });
    within(SECONDS, "said", || watched.says("are the two swapped?"));
    within(SECONDS, "counted", || watched.stats().total.notices["ports-swapped"] == 1);
    // From the box's WAN, which is where the server is.
    let callee = rig.client.serve(netns::CLIENT_V4, 0, traffic::exchanged);
    let stream = rig.server.connect(callee.address).expect("connecting");
    traffic::exchange(&stream, 1000, 1000).expect("talking");
    within(SECONDS, "it is taken back", || !watched.status().ports_swapped);
    assert!(watched.proxy.stop().status.success());
}
