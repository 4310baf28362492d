//! `synproxy doctor` on interfaces that are wrong in each way that namespaces can be: one finding each, with the command that mends it. The
//! command is executed, and the finding is gone.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use harness::{leftovers, note, test};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tools::xdp_generator::Sink;
use unit::netns::{self, Appliance, Backend, Namespace, Rig, program, programs};

/// A finding that is not `ok`.
#[derive(Clone, Debug, PartialEq)]
struct Finding {
    id: String,
    level: String,
    port: Option<String>,
    finding: String,
    command: Option<String>,
}

/// What the doctor has reported, and its exit status.
struct Report {
    summary: String,
    findings: Vec<Finding>,
    status: i32,
    json: Value,
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}, {}, {:#?}", self.status, self.summary, self.findings)
    }
}

impl Report {
    fn of(text: &str, status: i32) -> Report {
        let json: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let findings = json["findings"].as_array().expect("a list").iter().filter(|it| it["level"] != "ok");
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let findings = findings.map(|it| Finding {
            id: text(&it["id"]).expect("a name"),
            level: text(&it["level"]).expect("a level"),
            port: text(&it["port"]),
            finding: text(&it["finding"]).expect("a sentence"),
            command: text(&it["command"]),
        });
        Report { summary: text(&json["summary"]).expect("a line"), findings: findings.collect(), status, json }
    }

    fn find(&self, id: &str) -> Vec<&Finding> {
        self.findings.iter().filter(|finding| finding.id == id).collect()
    }
}

/// A shell line inside a namespace, with the programs on its path; what it prints, and its status.
fn shell(namespace: &Namespace, line: &str) -> (String, i32) {
    let path = format!("{}:{}", programs().display(), std::env::var("PATH").unwrap_or_default());
    let mut command = namespace.command("sh");
    let output = command.env("PATH", path).args(["-c", line]).output().expect("starting a shell");
    let complaint = String::from_utf8_lossy(&output.stderr);
    if !complaint.is_empty() {
        note!("{line}: {complaint}");
    }
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code().unwrap_or(-1))
}

/// Asks the doctor about these ports, given after its options.
fn examine(namespace: &Namespace, arguments: &str) -> Report {
    let (text, status) = shell(namespace, &format!("synproxy doctor --json {arguments}"));
    Report::of(&text, status)
}

/// Executes a command of a finding.
fn execute(namespace: &Namespace, command: &str) {
    let (said, status) = shell(namespace, command);
    assert_eq!(status, 0, "`{command}`: {said}");
}

/// Makes something wrong by a shell line, expects one finding of this kind about each of these interfaces, executes its command, and expects
/// the finding to be gone.
#[track_caller]
fn mended(namespace: &Namespace, arguments: &str, wrong: &str, (id, level): (&str, &str), ports: &[&str]) {
    let before = examine(namespace, arguments);
    assert_eq!(before.find(id), Vec::<&Finding>::new(), "before `{wrong}`");
    execute(namespace, wrong);
    let found = examine(namespace, arguments);
    let findings = found.find(id);
    note!("{wrong}: {findings:#?}");
    let about: Vec<&str> = findings.iter().map(|it| it.port.as_deref().unwrap_or("")).collect();
    assert_eq!(about, ports, "`{wrong}`: {:#?}", found.findings);
    for finding in &findings {
        assert_eq!(finding.level, level, "{finding:?}");
        execute(namespace, finding.command.as_ref().unwrap_or_else(|| panic!("no command: {finding:?}")));
    }
    let after = examine(namespace, arguments);
    assert_eq!(after.find(id), Vec::<&Finding>::new(), "after {findings:?}");
    let errors = |report: &Report| report.findings.iter().filter(|it| it.level == "error").count();
    for report in [&before, &found, &after] {
        assert_eq!(report.status, i32::from(errors(report) > 0), "{report:#?}");
    }
}

const PORTS: &str = "lan0 wan0";

#[test]
fn each_fault_of_an_interface_is_mended_by_the_command_that_is_given() {
    let rig = Rig::new();
    let mended = |wrong, kind, ports| mended(&rig.middle, PORTS, wrong, kind, ports);
    mended("ip link set lan0 down", ("up", "error"), &["lan0"]);
    mended("ip link set wan0 mtu 1400", ("mtu", "warning"), &["wan0"]);
    mended("ip link set lan0 mtu 9000; ip link set wan0 mtu 9000", ("buffers", "note"), &["lan0", "wan0"]);
    mended(
        "ip link add name bridge0 type bridge; ip link set lan0 master bridge0; ip link set wan0 master bridge0",
        ("member", "error"),
        &["lan0", "wan0"],
    );
    mended("ip address add 192.0.2.1/24 dev wan0", ("address", "warning"), &["wan0"]);
    let routes = "ip address add 192.0.2.1/24 dev lan0; ip route add default via 192.0.2.9 table 77; ip route add default via 192.0.2.9";
    mended(routes, ("default-route", "error"), &["lan0"]);
    mended("echo 3 > /sys/class/net/wan0/queues/rx-0/rps_cpus", ("rps", "note"), &["wan0"]);
    rig.middle.sysctl("net.ipv6.conf.lan0.disable_ipv6", "0");
    mended("ip -6 route add default dev lan0", ("default-route", "error"), &["lan0"]);
}

#[test]
fn offloads_are_noted_with_the_command_that_switches_them_off() {
    let rig = Rig::new();
    let found = examine(&rig.middle, PORTS);
    let offloads = found.find("offloads");
    assert_eq!(offloads.len(), 2, "a veth cuts frames: {found:#?}");
    offloads.iter().for_each(|it| execute(&rig.middle, it.command.as_ref().expect("a command")));
    let on = "ethtool -K wan0 gro on rx-gro-list on >/dev/null";
    mended(&rig.middle, PORTS, on, ("offloads", "note"), &["wan0"]);
}

#[test]
fn a_filter_of_what_the_machine_sends_is_taken_off_where_a_box_is_to_protect_it() {
    let rig = Rig::new().with_default_offloads(false);
    let wrong = "tc qdisc add dev s0 clsact; tc filter add dev s0 egress u32 match u32 0 0 action mirred egress redirect dev lo";
    mended(&rig.server, "host s0", wrong, ("egress-filter", "error"), &["s0"]);
}

#[test]
fn a_link_without_a_carrier_is_mended_at_its_other_end() {
    let rig = Rig::new();
    let ports = "lan1 wan0";
    rig.middle.sh("ip link add lan1 type veth peer name peer1; ip link set lan1 up; ip link set peer1 up");
    mended(&rig.middle, ports, "ip link set peer1 down", ("carrier", "warning"), &["lan1"]);
    // A peer in another namespace has no name here.
    rig.client.sh("ip link set c0 down");
    let found = examine(&rig.middle, PORTS);
    let [finding] = found.find("carrier")[..] else { panic!("{found:#?}") };
    assert!(finding.finding.contains("in another namespace") && finding.command.is_none(), "{finding:?}");
}

#[test]
fn interfaces_that_are_no_two_cables_are_errors() {
    let rig = Rig::new();
    rig.middle.sh("ip link add lan1 type veth peer name peer1; ip link set lan1 alias x; ip link property add dev lan1 altname inside");
    for (ports, id, text) in [
        ("lan0 lan0", "two-cables", "both ports are lan0"),
        ("inside lan1", "two-cables", "both ports are lan1"),
        ("lan1 peer1", "two-cables", "two ends of one veth pair"),
        ("lan0 wan7", "interface", "there is no interface \"wan7\""),
    ] {
        let report = examine(&rig.middle, ports);
        let [finding] = report.find(id)[..] else { panic!("{ports}: {report:#?}") };
        assert!(finding.finding.contains(text) && finding.level == "error" && report.status == 1, "{finding:?}");
        assert!(report.summary.contains("cannot start here"), "{}", report.summary);
        execute(&rig.middle, finding.command.as_ref().expect("a command"));
    }
    let (said, status) = shell(&rig.middle, "synproxy doctor vale0:1 wan0 2>&1");
    assert!(status == 4 && said.contains("no interface of the kernel"), "{said}");
}

/// A namespace with two interfaces of two queues.
fn of_two_queues() -> Namespace {
    let namespace = Namespace::new("doctor");
    for (name, peer) in [("lan0", "peer0"), ("wan0", "peer1")] {
        namespace.sh(&format!(
            "ip link add {name} numtxqueues 2 numrxqueues 2 type veth peer name {peer} numtxqueues 2 numrxqueues 2
             ip link set {name} up; ip link set {peer} up"
        ));
    }
    namespace
}

#[test]
fn queues_are_counted_and_compared() {
    let two = of_two_queues();
    let differ = "ethtool -L lan0 rx 1 tx 1; ethtool -L wan0 rx 2 tx 2";
    mended(&two, "--workers 2 lan0 wan0", differ, ("queue-counts", "note"), &[""]);
    let too_many = examine(&two, "--workers 3 lan0 wan0");
    let [of_lan, of_wan] = too_many.find("queues")[..] else { panic!("{too_many:#?}") };
    assert!(of_lan.level == "error" && of_wan.level == "error" && too_many.status == 1, "{too_many:#?}");
    let command = of_lan.command.as_ref().expect("a command");
    assert_eq!(command, "synproxy --workers 2 lan0 wan0");
    let fewer = examine(&two, command.strip_prefix("synproxy ").expect("it starts the box"));
    assert!(fewer.find("queues").is_empty() && fewer.status == 0, "{fewer:#?}");
    // XPS matters to AF_PACKET alone.
    let wrong = "echo 1 > /sys/class/net/lan0/queues/tx-1/xps_cpus";
    mended(&two, "--workers 2 packet:lan0 packet:wan0", wrong, ("xps", "note"), &["lan0"]);
    mended(
        &two,
        "packet:lan0 wan0",
        "echo 3 > /sys/class/net/lan0/queues/rx-1/rps_cpus",
        ("rps", "warning"),
        &["lan0"],
    );
    let both = examine(&two, "--workers 2 lan0 wan0");
    assert_eq!(both.find("rss").len(), 2, "a veth has no RSS: {both:#?}");
}

#[test]
fn workers_that_share_a_core_are_fewer_then() {
    let two = of_two_queues();
    let on_one_core = |arguments: &str| {
        let (text, status) = shell(&two, &format!("taskset -c 0 synproxy doctor --json {arguments}"));
        Report::of(&text, status)
    };
    let found = on_one_core("--workers 2 lan0 wan0");
    let [finding] = found.find("cores")[..] else { panic!("{found:#?}") };
    assert_eq!(
        (finding.level.as_str(), finding.command.as_deref()),
        ("warning", Some("synproxy --workers 1 lan0 wan0"))
    );
    let fewer = on_one_core("--workers 1 lan0 wan0");
    assert_eq!(fewer.find("cores")[0].level, "note", "one core for everything");
}

#[test]
fn workers_that_poll_the_driver_have_interrupts_deferred() {
    let two = of_two_queues();
    let config = leftovers::file("doctor.conf");
    fs::write(&config, "synproxyconf = { poll = busy; threadcount = 2; };").expect("a file of one's own");
    let arguments = format!("--config {} lan0 wan0", config.display());
    let found = examine(&two, &arguments);
    assert_eq!(found.json["speed"]["workers"], 2);
    let deferred = found.find("busy-poll");
    assert_eq!(deferred.len(), 2, "{found:#?}");
    deferred.iter().for_each(|it| execute(&two, it.command.as_ref().expect("a command")));
    assert!(examine(&two, &arguments).find("busy-poll").is_empty());
    fs::remove_file(config).expect("a file of one's own");
}

#[test]
fn an_xdp_program_of_somebody_else_is_taken_off() {
    let rig = Rig::new();
    let [source, object] = ["pass.c", "pass.o"].map(leftovers::file);
    let text = "__attribute__((section(\"xdp\"), used)) int pass(void *frame) { return 2; }\n\
                char _license[] __attribute__((section(\"license\"), used)) = \"GPL\";\n";
    fs::write(&source, text).expect("a file of one's own");
    let mut clang = Command::new("clang");
    let status = clang.args(["-O2", "-target", "bpf", "-c"]).arg(&source).arg("-o").arg(&object).status();
    assert!(status.expect("clang").success());
    for mode in ["xdp", "xdpgeneric"] {
        let attach = format!("ip link set dev lan0 {mode} obj {} sec xdp", object.display());
        mended(&rig.middle, PORTS, &attach, ("xdp-program", "error"), &["lan0"]);
    }
    for file in [source, object] {
        fs::remove_file(file).expect("a file of one's own");
    }
    // One whose attachment belongs to a process: this one.
    let index = rig.middle.sh("cat /sys/class/net/wan0/ifindex").trim().parse().expect("a number");
    let sink = rig.middle.run(|| Sink::attach(index)).expect("a program is attached");
    // A process that another test starts has its descriptors too, for a moment.
    let commands =
        || examine(&rig.middle, PORTS).find("xdp-program").iter().map(|it| it.command.clone()).collect::<Vec<_>>();
    let within = |expected: &[Option<String>]| {
        let begin = Instant::now();
        while commands() != expected {
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?} instead of {expected:?}", commands());
        }
    };
    within(&[Some(format!("kill {}", std::process::id()))]);
    drop(sink);
    within(&[]);
}

#[test]
fn a_program_that_reads_an_interface_is_named_and_ended() {
    let rig = Rig::new();
    let mut reader = rig
        .middle
        .command("tcpdump")
        .args(["-i", "wan0", "-w", "/dev/null"])
        .stderr(Stdio::null())
        .spawn()
        .expect("tcpdump");
    let begin = Instant::now();
    let found = loop {
        let found = examine(&rig.middle, PORTS);
        if !found.find("packet-sockets").is_empty() || begin.elapsed() > Duration::from_secs(10) {
            break found;
        }
    };
    let [finding] = found.find("packet-sockets")[..] else { panic!("{found:#?}") };
    assert!(finding.finding.starts_with("tcpdump, process ") && finding.port.as_deref() == Some("wan0"), "{finding:?}");
    assert_eq!((finding.level.as_str(), found.status), ("note", 0));
    execute(&rig.middle, finding.command.as_ref().expect("a command"));
    reader.wait().expect("waiting for a child of one's own");
    assert!(examine(&rig.middle, PORTS).find("packet-sockets").is_empty());
}

#[test]
fn a_connection_of_this_machine_is_not_cut_off() {
    let rig = Rig::new();
    rig.middle.sh("ip address add 10.77.0.3/24 dev wan0");
    let server = rig.client.serve(netns::CLIENT_V4, 0, |mut stream| stream.read(&mut [0]).map(drop));
    let stream = rig.middle.connect(server.address).expect("a connection of the box's own machine");
    let found = examine(&rig.middle, PORTS);
    let [finding] = found.find("login")[..] else { panic!("{found:#?}") };
    assert!(finding.level == "error" && finding.finding.contains("10.77.0.1"), "{finding:?}");
    assert_eq!(finding.command.as_deref(), Some("synproxy --force lan0 wan0"));
    drop(stream);
}

#[test]
fn a_running_box_is_said_to_run_and_judged_no_worse_for_it() {
    let rig = Rig::new();
    let proxy = Appliance::start(&rig, Backend::Driver, "");
    let found = examine(&rig.middle, PORTS);
    let [finding] = found.find("box")[..] else { panic!("{found:#?}") };
    assert_eq!((finding.level.as_str(), found.status), ("note", 0), "{found:#?}");
    assert!(found.summary.contains("a box runs here, process "), "{}", found.summary);
    for id in ["xdp-program", "packet-sockets", "offloads", "left-changed"] {
        assert!(found.find(id).is_empty(), "{found:#?}");
    }
    // Between other ports it is in the way.
    rig.middle.sh("ip link add lan1 type veth peer name peer1; ip link set lan1 up; ip link set peer1 up");
    let other = examine(&rig.middle, "lan1 wan0");
    let [in_the_way] = other.find("box")[..] else { panic!("{other:#?}") };
    assert_eq!((in_the_way.level.as_str(), other.status), ("error", 1), "{other:#?}");
    execute(&rig.middle, finding.command.as_ref().expect("a command"));
    let begin = Instant::now();
    while !examine(&rig.middle, PORTS).find("box").is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it goes on:\n{}", proxy.log().join("\n"));
    }
}

#[test]
fn what_a_killed_box_has_left_is_put_back() {
    let rig = Rig::new();
    let proxy = Appliance::start(&rig, Backend::Driver, "");
    kill(Pid::from_raw(proxy.pid() as i32), Signal::SIGKILL).expect("a child of one's own");
    let begin = Instant::now();
    let found = loop {
        let found = examine(&rig.middle, PORTS);
        if found.find("box").is_empty() {
            break found;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{found:#?}");
        thread::sleep(Duration::from_millis(50));
    };
    let left = found.find("left-changed");
    assert_eq!(left.len(), 2, "{found:#?}");
    assert_eq!(found.find("offloads").len(), 0, "{found:#?}");
    left.iter().for_each(|it| execute(&rig.middle, it.command.as_ref().expect("a command")));
    let after = examine(&rig.middle, PORTS);
    assert!(after.find("left-changed").is_empty() && after.find("offloads").len() == 2, "{after:#?}");
}

/// Runs the doctor twice in one shell that begins with these lines, and the command of its finding of this kind in between; the words before the
/// program are given too.
#[track_caller]
fn mended_in_one_shell(namespace: &Namespace, begin: &str, before: &str, (id, level): (&str, &str)) {
    let first = shell(namespace, &format!("{begin}\n{before} synproxy doctor --json lan0 wan0"));
    let found = Report::of(&first.0, first.1);
    let [finding] = found.find(id)[..] else { panic!("{begin}: {found:#?}") };
    note!("{begin}: {finding:#?}");
    assert_eq!(finding.level, level, "{finding:?}");
    let command = finding.command.as_ref().expect("a command");
    let second = shell(namespace, &format!("{begin}\n{command} || exit 9\n{before} synproxy doctor --json lan0 wan0"));
    let after = Report::of(&second.0, second.1);
    assert!(after.find(id).is_empty(), "{command}: {after:#?}");
}

#[test]
fn low_limits_are_raised_in_the_shell_that_starts_the_box() {
    let rig = Rig::new();
    mended_in_one_shell(&rig.middle, "ulimit -Sn 32", "", ("open-files", "error"));
    mended_in_one_shell(&rig.middle, "ulimit -Sv 300000", "", ("address-space", "error"));
    mended_in_one_shell(&rig.middle, "ulimit -Sd 300000", "", ("address-space", "error"));
    // The limit of locked memory binds who has no CAP_IPC_LOCK.
    let without = "setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock";
    let (hard, _) = shell(&rig.middle, "ulimit -Hl");
    if hard.trim() == "unlimited" {
        mended_in_one_shell(&rig.middle, "ulimit -Sl 64", without, ("locked-memory", "warning"));
    } else {
        let low = shell(&rig.middle, &format!("ulimit -l 64; {without} synproxy doctor --json lan0 wan0"));
        let found = Report::of(&low.0, low.1);
        let [finding] = found.find("locked-memory")[..] else { panic!("{found:#?}") };
        assert_eq!(finding.command.as_deref(), Some("sudo prlimit --pid $$ --memlock=33554432"));
        note!("the hard limit of locked memory is {} here, so the command is not executed", hard.trim());
    }
}

#[test]
fn file_systems_that_are_missing_or_not_to_be_written_are_mounted() {
    let rig = Rig::new();
    // Each command of `ip netns exec` has mounts of its own.
    mended_in_one_shell(&rig.middle, "", "", ("bpf-file-system", "note"));
    mended_in_one_shell(&rig.middle, "mount -t tmpfs -o ro tmpfs /run", "", ("run-directory", "warning"));
    let path = format!("{}:{}", programs().display(), std::env::var("PATH").unwrap_or_default());
    let inside = |line: &str| {
        // Without a /sys of the namespace.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", Path::new(leftovers::NAMES).join(rig.middle.name()).display()));
        let output = command.args(["sh", "-c", line]).env("PATH", &path).output().expect("nsenter");
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code().unwrap_or(-1))
    };
    let (text, status) = inside("synproxy doctor --json lan0 wan0");
    let found = Report::of(&text, status);
    let [finding] = found.find("sysfs")[..] else { panic!("{found:#?}") };
    let (text, status) = inside(finding.command.as_ref().expect("a command"));
    assert!(status == 0 && text.contains("ok: /sys shows the interfaces"), "{text}");
}

#[test]
fn missing_capabilities_are_given_to_the_program() {
    let rig = Rig::new();
    let folder = leftovers::file("doctor");
    fs::create_dir(&folder).expect("a folder of one's own");
    let copy = folder.join("synproxy");
    fs::copy(program("synproxy"), &copy).expect("the program can be copied");
    for path in [&folder, &copy] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, mode).expect("a file of one's own");
    }
    let as_nobody = |copy: &Path| {
        let line =
            format!("setpriv --reuid=65534 --regid=65534 --clear-groups {} doctor --json lan0 wan0", copy.display());
        let (text, status) = shell(&rig.middle, &line);
        Report::of(&text, status)
    };
    let found = as_nobody(&copy);
    let missing = found.find("capabilities");
    assert_eq!(missing.len(), 5, "{found:#?}");
    assert!(found.status == 1 && found.json["speed"]["mode"] == "packet", "{found:#?}");
    let command = missing[0].command.as_ref().expect("a command");
    execute(&rig.middle, command);
    let after = as_nobody(&copy);
    assert!(after.find("capabilities").is_empty() && after.json["speed"]["mode"] == "driver", "{after:#?}");
    // Where root lacks one, as in a container, it is named alone.
    let (text, status) = shell(
        &rig.middle,
        "setpriv --bounding-set=-perfmon,-sys_admin --inh-caps=-perfmon,-sys_admin synproxy doctor --json lan0 wan0",
    );
    let found = Report::of(&text, status);
    let [perfmon] = found.find("capabilities")[..] else { panic!("{found:#?}") };
    assert!(perfmon.finding.contains("CAP_PERFMON") && perfmon.level == "warning" && status == 0, "{perfmon:?}");
    fs::remove_dir_all(folder).expect("a folder of one's own");
}

#[test]
fn what_is_promised_is_what_a_box_does_and_nothing_is_changed_by_looking() {
    let rig = Rig::new();
    let settings = || {
        let of = |name| {
            rig.middle.sh(&format!("ip -d link show dev {name}; ethtool -k {name}; ethtool -l {name} 2>&1 || true"))
        };
        let number = rig.middle.sh("stat -Lc %i /proc/self/ns/net");
        let files = fs::read_dir(control::DIRECTORY).into_iter().flatten().flatten();
        let files: Vec<_> =
            files.map(|file| file.file_name()).filter(|name| name.to_string_lossy().contains(number.trim())).collect();
        ([Rig::LAN, Rig::WAN].map(of), files)
    };
    let before = settings();
    let (said, status) = shell(&rig.middle, "synproxy doctor lan0 wan0");
    assert_eq!((settings(), status), (before, 0), "{said}");
    let first = said.lines().next().unwrap_or_default();
    assert!(
        first
            .starts_with("lan0 and wan0: a box works here, by AF_XDP, driver mode, copying, with 1 worker; 0 errors, "),
        "{said}"
    );
    assert!(said.lines().nth(1).is_some_and(|line| line.starts_with("a worker: 0.7 to 0.9 million SYNs")), "{said}");
    let ports = ["lan0", "wan0"].map(str::to_owned);
    let log = Appliance::start_on(&rig, &ports, "", &[]).stop().log.join("\n");
    for port in ports {
        assert!(log.contains(&format!("{port}: AF_XDP, driver mode, copying")), "{log}");
    }
}
