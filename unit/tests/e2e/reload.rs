//! A configuration that changes under a running box: what can change does, what cannot is named, a wrong file changes nothing, and no frame
//! and no connection is lost by it.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use control::{Client, Reply, Request};
use harness::{leftovers, note, test};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use unit::netns::{self, Appliance, Backend, Rig, TcpInfo, program, traffic, within};

/// How long a reload may take on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// A box with a configuration file and a control socket.
struct Box {
    proxy: Appliance,
    socket: PathBuf,
    file: PathBuf,
}

impl Box {
    /// Started with this configuration; the file is named as `name` makes of its path.
    fn start_as(rig: &Rig, config: &str, name: impl Fn(&Path) -> PathBuf, arguments: &[&str]) -> Box {
        Self::start_on(rig, Backend::Packet, config, name, arguments)
    }

    fn start_on(rig: &Rig, backend: Backend, config: &str, name: impl Fn(&Path) -> PathBuf, arguments: &[&str]) -> Box {
        let [socket, file] = ["reload.sock", "reload.conf"].map(leftovers::file);
        write(&file, config);
        let [control, conf] =
            [format!("--control={}", socket.display()), format!("--config={}", name(&file).display())];
        let arguments = [&[control.as_str(), conf.as_str()], arguments].concat();
        Box { proxy: Appliance::start_with(rig, backend, "", &arguments), socket, file }
    }

    fn start(rig: &Rig, config: &str) -> Box {
        Self::start_as(rig, config, Path::to_owned, &[])
    }

    /// What `synctl` says, and its status.
    fn synctl(&self, arguments: &[&str]) -> (String, i32) {
        let mut command = Command::new(program("synctl"));
        let output = command.arg("--socket").arg(&self.socket).args(arguments).output().expect("running synctl");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
        (said, output.status.code().expect("an end"))
    }

    /// Writes the file and sends SIGHUP; returns what the log says from then on, once it has said `until`.
    fn hang_up(&self, config: &str, until: &str) -> String {
        write(&self.file, config);
        let before = self.proxy.log().len();
        self.proxy.signal(Signal::SIGHUP);
        self.logged(before, until)
    }

    /// What the log says from this line on, once it has said `until`.
    fn logged(&self, before: usize, until: &str) -> String {
        let begin = Instant::now();
        loop {
            let said = self.proxy.log()[before..].join("\n");
            if said.contains(until) {
                return said;
            }
            assert!(begin.elapsed() < PATIENCE, "no {until:?}: {said}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// How often a configuration was read again, and how often it was refused.
    fn reloads(&self) -> [u64; 2] {
        let mut client = Client::connect(&self.socket).expect("a box listens");
        let Ok(Reply::Stats(stats)) = client.ask(&Request::Stats) else { panic!("statistics") };
        ["reloads", "reloads-refused"].map(|name| stats.total.control[name])
    }
}

impl Drop for Box {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// Replaces the file, as editors do.
fn write(file: &Path, config: &str) {
    let part = file.with_extension("part");
    fs::write(&part, format!("synproxyconf = {{\n{config}\n}};\n")).expect("writing a configuration");
    fs::rename(part, file).expect("a file of one's own");
}

/// The MSS that the client was told.
fn mss(stream: &TcpStream) -> u32 {
    let info = TcpInfo::of(stream);
    info.get("snd_mss") + if info.options().contains("ts") { 12 } else { 0 }
}

fn ask(mut stream: &TcpStream, number: u32) -> std::io::Result<()> {
    stream.write_all(&number.to_be_bytes())?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    if answer == number.to_be_bytes() { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

#[test]
fn a_reload_changes_what_can_change_and_names_what_cannot() {
    // With more, the number of workers stands on the command line.
    let rig = Rig::of_one_queue();
    let it = Box::start(&rig, "mssmode = default; own_mss = 1400;");
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let old = rig.client.connect(server.address).expect("connecting");
    assert_eq!(mss(&old), 1400);

    // What would change is told beforehand, and nothing changes by that.
    let next = it.file.with_extension("next");
    let config = "mssmode = default; own_mss = 1300; threadcount = 2; poll = interrupt;\nmss = { 500, 1300 };";
    write(&next, config);
    let (said, status) = it.synctl(&["config", "diff", next.to_str().expect("a path")]);
    assert_eq!(status, 0, "{said}");
    for line in [
        "own_mss: for new connections\n    - 1400\n    + 1300\n",
        "threadcount: at a restart: each worker has a queue of either port",
        "poll: now\n    - adaptive\n    + interrupt\n",
        "mss: at the next epoch",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    fs::remove_file(&next).expect("it is ours");
    assert_eq!(it.synctl(&["config", "diff"]), ("nothing differs\n".to_owned(), 0));
    assert_eq!(it.reloads(), [0, 0]);

    let log = it.hang_up(config, "`mss`: ");
    for line in [
        "`own_mss`: 1400 -> 1300, for new connections",
        "`threadcount`: 1 -> 2 takes a restart: each worker has a queue",
        "4 changes, 1 of them without effect",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    let new = rig.client.connect(server.address).expect("connecting");
    assert_eq!((mss(&new), mss(&old)), (1300, 1400));
    [&old, &new].iter().for_each(|stream| ask(stream, 7).expect("both go on"));

    let (shown, _) = it.synctl(&["config", "show"]);
    assert!(shown.contains("own_mss = 1300;\n") && shown.contains("threadcount = 1;\n"), "{shown}");
    assert!(shown.contains("control = ") && shown.contains("# by --control\n"), "{shown}");
    // The same file again: what takes a restart is told again.
    let (said, status) = it.synctl(&["reload"]);
    assert!(status == 0 && said.contains("threadcount: at a restart") && !said.contains("own_mss"), "{said}");
    assert_eq!(it.reloads(), [2, 0]);
}

#[test]
fn a_wrong_file_changes_nothing_and_says_where() {
    let rig = Rig::new();
    let good = "mssmode = default; own_mss = 1400;";
    let it = Box::start(&rig, good);
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let told = || mss(&rig.client.connect(server.address).expect("connecting"));
    let place = format!("{}:3:1: ", it.file.display());
    for (wrong, hint) in [
        ("mssmode = default; own_mss = 1300;\nown_ms = 1300;", "did you mean `own_mss`?"),
        ("mssmode = default; own_mss = 1300;\ncontrol_read = \"no-such-group\";", "there is no such group"),
        ("mssmode = default; own_mss = 1300;\nmetrics = \"192.0.2.77:9117\";", "no such address"),
    ] {
        let log = it.hang_up(wrong, hint);
        assert!(log.contains("reload refused, nothing is changed") && log.contains(&place), "{log}");
        let (said, status) = it.synctl(&["reload"]);
        assert!(status == 1 && said.contains(&place) && said.contains(hint), "{said}");
        let (said, status) = it.synctl(&["config", "diff"]);
        assert!(status == 1 && said.starts_with(&place) && said.contains(hint), "{said}");
        assert_eq!(told(), 1400, "{wrong}");
    }
    fs::remove_file(&it.file).expect("it is ours");
    let (said, status) = it.synctl(&["reload"]);
    assert!(status == 1 && said.contains("No such file"), "{said}");
    it.hang_up(&good.replace("1400", "1350"), "reloaded");
    assert_eq!((told(), it.reloads()), (1350, [1, 7]));
}

#[test]
fn a_file_that_was_named_by_a_relative_path_is_found_again() {
    let rig = Rig::new();
    let relative = |path: &Path| {
        let here = env::current_dir().expect("a directory");
        let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
        up.join(path.strip_prefix("/").expect("a whole path"))
    };
    let it = Box::start_as(&rig, "own_mss = 1400;", relative, &[]);
    let log = it.hang_up("own_mss = 1300;", "reloaded");
    assert!(log.contains("`own_mss`: 1400 -> 1300"), "{log}");
    // Another file by a relative path of the caller's.
    let name = it.file.file_name().expect("a name");
    let mut command = Command::new(program("synctl"));
    command.current_dir(it.file.parent().expect("a directory")).arg("--socket").arg(&it.socket);
    write(&it.file, "own_mss = 1200;");
    let output = command.arg("reload").arg(name).output().expect("running synctl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    it.logged(0, "`own_mss`: 1300 -> 1200");
}

#[test]
fn a_file_that_the_box_may_not_read_any_more_can_be_sent_by_root() {
    let rig = Rig::new();
    let it = Box::start(&rig, "user = 65534; group = 65534; own_mss = 1400;");
    fs::set_permissions(&it.file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let config = "user = 65534; group = 65534; own_mss = 1300;";
    write(&it.file, config);
    fs::set_permissions(&it.file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let before = it.proxy.log().len();
    let (said, status) = it.synctl(&["reload"]);
    assert!(status == 1 && said.contains("runs as user 65534 and may not read it"), "{said}");
    assert!(said.contains("synctl reload FILE"), "{said}");
    let (said, status) = it.synctl(&["reload", it.file.to_str().expect("a path")]);
    assert!(status == 0 && said.contains("own_mss: for new connections\n    - 1400\n    + 1300\n"), "{said}");
    let log = it.logged(before, "user 0 (admin): load-config ");
    assert!(log.contains("`own_mss`: 1400 -> 1300"), "{log}");
    assert_eq!(it.reloads(), [1, 1]);
}

#[test]
fn the_statistics_and_the_control_port_move_and_close() {
    let rig = Rig::new();
    rig.middle.sh("ip link set lo up");
    let local: IpAddr = "127.0.0.1".parse().expect("an address");
    let it = Box::start(&rig, "metrics = \"127.0.0.1:9117\";");
    let open = |port| rig.middle.connect((local, port).into()).is_ok();
    assert_eq!([9117, 9118, 7777].map(open), [true, false, false]);
    it.hang_up("metrics = \"127.0.0.1:9118\"; mssmode = commanded; port = 7777;", "reloaded");
    assert_eq!([9117, 9118, 7777].map(open), [false, true, true]);
    let (said, status) = it.synctl(&["servers", "add", "10.77.0.2", "--mss", "1000", "--wscale", "3"]);
    assert_eq!(status, 0, "{said}");
    it.hang_up("metrics = \"0.0.0.0:9118\"; mssmode = default;", "reloaded");
    assert_eq!([9117, 9118, 7777].map(open), [false, true, false]);
    assert_eq!(it.synctl(&["servers", "add", "10.77.0.2", "--mss", "1000", "--wscale", "3"]).1, 1);
    it.hang_up("", "reloaded");
    assert_eq!([9117, 9118, 7777].map(open), [false; 3]);
}

/// Configurations that follow each other: policy, tables, limits, lists, workers' options, listeners, groups.
const CONFIGURATIONS: [&str; 3] = [
    "own_mss = 1400; mssmode = default; timeouts = { connected = 3600; };",
    "own_mss = 1300; mss = { 500, 1200, 1300 }; wscale = { 0, 3 }; own_wscale = 3; early = { \"10.77.0.0/16\" }; poll = interrupt; \
     ratehash = { timer_add = 500; network_prefix = 32; }; metrics = \"127.0.0.1:9117\"; passed_rate = 10;",
    "tsmss = { 500, 1300 }; mode = auto; auto = { enter_half_open = 100000; leave_half_open = 90000; }; limits = { source_flows = 100000; source_rate = 100000; }; \
     lists = { allow = { \"192.0.2.0/24\" }; block = { \"198.51.100.0/24\" }; }; events = { attack_begin = 900000; attack_end = 800000; }; shed = off; closed_memory = 3; metrics = \"127.0.0.1:9118\"; control_read = 65533; log_level = warn; \
     destinations = { { network = \"10.77.0.2\"; own_mss = 1200; timeouts = { connected = 60; }; } }; introductions = 3;",
];

#[test]
fn a_hundred_reloads_under_load_lose_no_frame_and_no_connection() {
    reloads_under_load(&Rig::new(), Backend::Packet, &["--workers=1"]);
}

#[test(alone)]
fn a_hundred_reloads_under_load_lose_nothing_with_af_xdp_and_several_workers_either() {
    reloads_under_load(&Rig::queued(3), Backend::Driver, &[]);
}

fn reloads_under_load(rig: &Rig, backend: Backend, arguments: &[&str]) {
    rig.middle.sh("ip link set lo up");
    let it = Box::start_on(rig, backend, CONFIGURATIONS[0], Path::to_owned, arguments);
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let address = server.address;
    let over = AtomicBool::new(false);
    let [asked, opened] = [(); 2].map(|()| AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            // A connection that lasts, and one after the other that does not.
            let lasting = rig.client.connect(address).expect("connecting");
            let (over, asked, opened) = (&over, &asked, &opened);
            scope.spawn(move || {
                let mut number = 0;
                while !over.load(Ordering::Relaxed) {
                    number += 1;
                    ask(&lasting, number).expect("a connection goes on over reloads");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let stream = rig.client.connect(address).expect("connecting while the box reloads");
                    (0..5).for_each(|number| ask(&stream, number).expect("a new connection"));
                    opened.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        // Two clients reload at once, by the socket, and signals come in between.
        let reloaders: Vec<_> = (0..2)
            .map(|first| {
                let it = &it;
                scope.spawn(move || {
                    let mut client = Client::connect(&it.socket).expect("a box listens");
                    for turn in 0..50 {
                        let body = CONFIGURATIONS[(first + turn) % 3];
                        let text = format!("synproxyconf = {{ {body} }};");
                        let reply = client.ask(&Request::LoadConfig { name: format!("{turn}"), text });
                        assert!(matches!(reply, Ok(Reply::Reloaded(_))), "{reply:?}");
                        if turn % 10 == 0 {
                            it.proxy.signal(Signal::SIGHUP);
                        }
                        thread::sleep(Duration::from_millis(20));
                    }
                })
            })
            .collect();
        reloaders.into_iter().for_each(|reloader| reloader.join().expect("a client that reloads"));
        over.store(true, Ordering::Relaxed);
    });
    let [done, refused] = it.reloads();
    assert!(done > 100 && refused == 0, "{done} reloads, {refused} refused");
    let mut client = Client::connect(&it.socket).expect("a box listens");
    thread::sleep(Duration::from_millis(300));
    let Ok(Reply::Stats(stats)) = client.ask(&Request::Stats) else { panic!("statistics") };
    let positive = |counts: &std::collections::BTreeMap<String, u64>| {
        counts
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect::<Vec<_>>()
    };
    assert_eq!((positive(&stats.total.drops), positive(&stats.total.losses)), (Vec::new(), Vec::new()));
    let longest = ["policy", "options"].map(|order| Duration::from_nanos(stats.total.orders[order]));
    note!("{done} reloads, {asked:?} answers, {opened:?} connections; policy and options took the worker {longest:?}");
    assert!(opened.load(Ordering::Relaxed) > 20 && asked.load(Ordering::Relaxed) > 200);
}

#[test]
fn the_service_manager_is_told() {
    let rig = Rig::new();
    let [path, file] = ["notify", "notify.conf"].map(leftovers::file);
    write(&file, "");
    let manager = UnixDatagram::bind(&path).expect("a socket of one's own");
    manager.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let told = || {
        let mut buffer = [0; 4096];
        let len = manager.recv(&mut buffer).expect("the box tells the service manager");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let mut command = rig.middle.command(program("synproxy"));
    command
        .args(["--no-pin", "--control=none", "--state-dir=none", "--config"])
        .arg(&file)
        .args(Backend::Packet.arguments());
    command.env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("starting");
    let pid = Pid::from_raw(child.id() as i32);
    let ready = told();
    assert!(ready.contains("READY=1") && ready.contains("STATUS=ready"), "{ready}");
    for (config, status) in [("own_mss = 1300;", "STATUS=reloaded"), ("own_mss", "STATUS=reload refused")] {
        write(&file, config);
        signal::kill(pid, Signal::SIGHUP).expect("signalling a child of one's own");
        let reloading = told();
        assert!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
        let ready = told();
        assert!(ready.contains("READY=1") && ready.contains(status), "{ready}");
    }
    signal::kill(pid, Signal::SIGTERM).expect("signalling a child of one's own");
    assert!(told().contains("STOPPING=1"));
    assert!(child.wait().expect("waiting for a child of one's own").success());
    [path, file].iter().for_each(|path| fs::remove_file(path).expect("it is ours"));
}

#[test(light)]
fn a_lost_link_is_passed_on_from_the_moment_that_the_file_says_so() {
    let rig = Rig::new();
    let own = Box::start(&rig, "");
    let carrier = || {
        // A carrier cannot be read while the interface is down.
        rig.client.sh("cat /sys/class/net/c0/carrier 2>/dev/null || echo 0").trim() == "1"
    };
    let until = |what: &str, wanted: bool| within(PATIENCE, what, || carrier() == wanted);
    let before = own.proxy.log().len();
    rig.server.sh("ip link set s0 down");
    own.logged(before, "lan0 has lost its link");
    assert!(carrier(), "it is not passed on");
    own.hang_up("link_loss = forward;", "wan0 is taken down");
    until("a loss that lasts is passed on", false);
    own.hang_up("link_loss = ignore;", "reloaded");
    until("what is not passed on any more is taken back", true);
    let events = leftovers::file("events");
    let to_a_file = format!("link_loss = forward; events = {{ file = \"{}\"; }};", events.display());
    own.hang_up(&to_a_file, "wan0 is taken down");
    rig.server.sh("ip link set s0 up");
    until("the link is back", true);
    // What reports events has followed the file too.
    within(PATIENCE, "an event of the link", || {
        fs::read_to_string(&events).is_ok_and(|text| text.contains("link-changed"))
    });
}
