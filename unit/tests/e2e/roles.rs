//! Who may do what over the control socket: real users with real groups, and what the log says of them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use control::{Client, Reply, Request, Role};
use harness::{leftovers, test};
use unit::netns::{self, Appliance, Backend, Rig, program, traffic};

/// Groups that nobody is a member of but whom a test makes one: of each role, and one without.
const READ: u32 = 65_531;
const OPERATE: u32 = 65_532;
const ADMIN: u32 = 65_533;
const OTHER: u32 = 65_530;

/// The configuration that gives these groups their roles.
fn groups(socket: &Path) -> String {
    format!(
        "control = \"{}\"; control_read = {READ}; control_operate = {OPERATE}; control_admin = {ADMIN};",
        socket.display()
    )
}

/// `synctl` as a user that is nobody but for these groups: what it says, and its status.
fn synctl(socket: &Path, groups: &[u32], line: &str) -> (String, i32) {
    let list: Vec<String> = groups.iter().map(u32::to_string).collect();
    let list = if list.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={}", list.join(",")) };
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", &list]).arg(program("synctl"));
    let output = command.arg("--socket").arg(socket).args(line.split_whitespace()).output().expect("running setpriv");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (said, output.status.code().unwrap_or(-1))
}

/// A connection of a user that is nobody but for this group.
fn member(socket: &Path, group: u32) -> UnixStream {
    let socket = socket.to_owned();
    let connect = move || {
        // The C library changes all threads of a process; the system call only this one, which ends with it.
        // SAFETY: calls with numbers alone, and a list of one group.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, 1, &raw const group), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, 65_534, 65_534, 65_534), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534), 0);
        }
        UnixStream::connect(&socket).expect("a member may connect")
    };
    thread::spawn(connect).join().expect("a thread that connects")
}

/// How much was changed over the socket, and how much refused.
fn counted(socket: &Path) -> [u64; 2] {
    let mut client = Client::connect(socket).expect("a box listens");
    let Ok(Reply::Stats(stats)) = client.ask(&Request::Stats) else { panic!("statistics") };
    ["changes", "forbidden"].map(|name| stats.total.control[name])
}

#[test]
fn each_role_may_do_what_it_takes_and_no_more() {
    let rig = Rig::new();
    let [socket, capture] = ["roles.sock", "roles.pcapng"].map(leftovers::file);
    let file = leftovers::file("roles.conf");
    let config = groups(&socket);
    fs::write(&file, format!("synproxyconf = {{ {config} }};")).expect("writing a configuration");
    let [conf, control] = [format!("--config={}", file.display()), format!("--control={}", socket.display())];
    let proxy = Appliance::start_with(&rig, Backend::Packet, "", &[&conf, &control]);
    assert_eq!(fs::metadata(&socket).expect("a socket").mode() & 0o777, 0o666);

    let lines: [(&str, Role, bool); 14] = [
        ("whoami", Role::Read, false),
        ("status", Role::Read, false),
        ("stats", Role::Read, false),
        ("flows", Role::Read, false),
        ("servers list", Role::Read, false),
        ("capture list", Role::Read, false),
        ("config show", Role::Read, false),
        ("config diff", Role::Read, false),
        ("drain", Role::Operate, true),
        ("drain --off", Role::Operate, true),
        ("set log-level error", Role::Operate, true),
        ("reload", Role::Operate, true),
        (&format!("capture start wan {}", capture.display()), Role::Admin, true),
        (&format!("reload {}", file.display()), Role::Admin, true),
    ];
    let members = [(&[READ][..], Role::Read), (&[READ, OPERATE], Role::Operate), (&[OTHER, ADMIN], Role::Admin)];
    let [mut changes, mut forbidden] = counted(&socket);
    for (groups, role) in members {
        for (line, needed, is_change) in lines {
            let (said, status) = synctl(&socket, groups, line);
            if role >= needed {
                assert_eq!(status, 0, "{role}: {line}: {said}");
                changes += u64::from(is_change);
            } else {
                assert!(status == 5 && said.contains(&format!("takes the role {needed}")), "{role}: {line}: {said}");
                assert!(said.contains(&format!("you have {role}")), "{role}: {line}: {said}");
                forbidden += 1;
            }
        }
        assert_eq!(synctl(&socket, groups, "whoami").0, format!("user 65534, role {role}\n"));
    }
    // Root, and those who have no group that counts: the primary one does.
    let mut root = Client::connect(&socket).expect("a box listens");
    assert!(matches!(root.ask(&Request::Whoami), Ok(Reply::Whoami(who)) if who.role == Role::Admin && who.user == 0));
    for groups in [&[][..], &[OTHER]] {
        let (said, status) = synctl(&socket, groups, "status");
        assert!(status == 5 && said.contains("not permitted"), "{said}");
        forbidden += 1;
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65529", &format!("--regid={OPERATE}"), "--clear-groups"]).arg(program("synctl"));
    let output = command.arg("--socket").arg(&socket).arg("whoami").output().expect("running setpriv");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "user 65529, role operate\n");

    assert_eq!(counted(&socket), [changes, forbidden]);
    let report = proxy.stop();
    let log = report.log.join("\n");
    for line in [
        r#"user 65534 (operate): {"command":"drain","on":true}"#,
        r#"user 65534 (operate): {"command":"reload"}"#,
        r#"user 65534 (read) is refused {"command":"drain","on":true}: it takes the role operate"#,
        r#"user 65534 (admin): {"command":"start-capture","kind":"wan","#,
        "user 65534 (admin): load-config \"",
        "control socket: user 65534 is not permitted",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert!(!log.contains(r#""command":"status""#), "who only looks is not logged");
    assert!(report.status.success() && !socket.exists());
    [file, capture].iter().for_each(|path| fs::remove_file(path).expect("it was written"));
}

#[test]
fn numbers_of_connections_are_shown_to_admin_alone() {
    let rig = Rig::new();
    let socket = leftovers::file("numbers.sock");
    let _proxy = Appliance::start(&rig, Backend::Packet, &groups(&socket));
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    let stream = rig.client.connect(server.address).expect("a connection through the box");
    for (group, expected) in [(READ, false), (OPERATE, false), (ADMIN, true)] {
        let (flows, status) = synctl(&socket, &[group], "flows --json");
        assert_eq!(status, 0, "{flows}");
        let flow: serde_json::Value = serde_json::from_str(flows.lines().next().expect("a connection")).expect("JSON");
        assert_eq!(flow["sequence-shift"].is_number(), expected, "{flow}");
    }
    drop(stream);
}

#[test]
fn a_role_that_is_taken_away_ends_with_the_next_request() {
    let rig = Rig::new();
    let socket = leftovers::file("taken.sock");
    let _proxy = Appliance::start(&rig, Backend::Packet, &groups(&socket));
    let mode = || fs::metadata(&socket).expect("a socket").mode() & 0o777;
    let mut client = BufReader::new(member(&socket, OPERATE));
    let mut ask = |line: &str| {
        writeln!(client.get_mut(), "{line}").expect("asking");
        let mut answer = String::new();
        client.read_line(&mut answer).expect("an answer");
        answer
    };
    assert_eq!(ask(r#"{"command":"drain","on":false}"#), "{\"done\":\"new connections are answered again\"}\n");
    let mut root = Client::connect(&socket).expect("a box listens");
    let mut load = |body: String| {
        let text = format!("synproxyconf = {{ control = \"{}\"; {body} }};", socket.display());
        let reply = root.ask(&Request::LoadConfig { name: "a".to_owned(), text });
        assert!(matches!(reply, Ok(Reply::Reloaded(_))), "{reply:?}");
    };
    load(format!("control_read = {OPERATE}; control_operate = {ADMIN};"));
    assert!(ask(r#"{"command":"drain","on":false}"#).contains("takes the role operate"));
    assert!(ask(r#"{"command":"whoami"}"#).contains(r#""role":"read""#));
    assert_eq!(mode(), 0o666);
    // The socket cannot be given to the group any more: it is for the credentials to say.
    load(format!("control_group = {ADMIN};"));
    assert_eq!((mode(), fs::metadata(&socket).expect("a socket").gid()), (0o666, 0));
    assert!(ask(r#"{"command":"status"}"#).contains("not permitted"));
    assert_eq!(synctl(&socket, &[ADMIN], "whoami"), ("user 65534, role operate\n".to_owned(), 0));
    assert_eq!(synctl(&socket, &[OPERATE], "whoami").1, 5);
    load(String::new());
    assert_eq!(mode(), 0o600);
    assert_eq!(synctl(&socket, &[ADMIN], "whoami").1, 5);
}

#[test]
fn a_box_without_privileges_admits_groups_that_a_reload_names() {
    let rig = Rig::new();
    let socket: PathBuf = leftovers::file("later.sock");
    let own = "user = 65534; group = 65534;";
    let config = format!("control = \"{}\"; {own}", socket.display());
    let _proxy = Appliance::start(&rig, Backend::Packet, &config);
    let reader = |groups: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65529", "--regid=65529", groups]).arg(program("synctl"));
        command.arg("--socket").arg(&socket).arg("whoami").output().expect("running setpriv").status.code()
    };
    assert_eq!(reader(&format!("--groups={READ}")), Some(5));
    let mut root = Client::connect(&socket).expect("a box listens");
    let text = format!("synproxyconf = {{ {config} control_read = {READ}; }};");
    let reply = root.ask(&Request::LoadConfig { name: "a".to_owned(), text });
    assert!(matches!(reply, Ok(Reply::Reloaded(_))), "{reply:?}");
    assert_eq!(reader(&format!("--groups={READ}")), Some(0));
    assert_eq!(reader("--clear-groups"), Some(5));
    // Who is not admitted is told so, and keeps nobody out.
    let mut stranger = UnixStream::connect(&socket).expect("root may connect");
    stranger.write_all(b"{\"command\":\"whoami\"}\n").expect("asking");
    let mut answer = String::new();
    BufReader::new(stranger).read_line(&mut answer).expect("an answer");
    assert!(answer.contains("\"admin\""), "{answer}");
}
