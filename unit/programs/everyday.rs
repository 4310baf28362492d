//! What an operator has behind the box, and what clients use to reach it: a script of `everyday/` each, with a program that serves and those that ask it.
//! What they print and how they end is the same with the proxy as with the kernel's bridge.
//!
//! A script has two functions, `serve` and `ask`, and says in its head which programs it needs and which ports listen when it serves; `prelude.sh` is what
//! all begin with. It runs in a network namespace of the rig, in a PID namespace, so that nothing outlives it, and with a `/run` of its own.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use harness::{leftovers, note, test};
use unit::netns::{self, CACHE_OFF, CACHE_ON, Namespace, Rig};

const PRELUDE: &str = include_str!("everyday/prelude.sh");

/// How long a server may take until it listens.
const READY: Duration = Duration::from_secs(40);

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// With this status a script ends that cannot run here; its last line says why.
const IGNORED: i32 = 77;

/// Where programs may be that are no part of a user's path.
const MORE_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/lib/nagios/plugins";

/// A folder for the files of one run, gone when this is dropped.
struct Folder(PathBuf);

impl Folder {
    /// Bytes of the file `payload`.
    const PAYLOAD: usize = 3_000_000;

    fn new() -> Folder {
        let folder = leftovers::file("everyday");
        {
            let _making = leftovers::making();
            // Servers give up root and still have to come in.
            DirBuilder::new().mode(0o755).create(&folder).expect("a new folder");
        }
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let bytes = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        let payload: Vec<u8> = bytes.take(Folder::PAYLOAD).collect();
        fs::write(folder.join("payload"), payload).expect("writing a file");
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A script.
#[derive(Clone, Copy)]
struct Script(&'static str);

impl Script {
    /// The words of the line of its head that begins so.
    fn head(self, key: &str) -> impl Iterator<Item = &'static str> {
        let line = self.0.lines().find_map(|line| line.strip_prefix("# ")?.strip_prefix(key)?.strip_prefix(": "));
        line.unwrap_or_default().split_whitespace()
    }

    /// Ends the test as ignored if what it needs is not installed.
    fn needs(self) {
        let works = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).env("PATH", path()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        for program in self.head("needs") {
            if !works("sh", &["-c", &format!("command -v {program}")]) {
                harness::ignore(format_args!("there is no {program}"));
            }
        }
        for module in self.head("needs-python") {
            if !works("/usr/bin/python3", &["-c", &format!("import {module}")]) {
                harness::ignore(format_args!("Python has no module {module}"));
            }
        }
    }

    /// What calls one of its functions in this namespace. Killed, it ends with all that it has started.
    fn command(self, namespace: &Namespace, folder: &Folder, function: &str) -> Command {
        let mut command = namespace.command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        // The shell stays the first process: a program that changes its user would not hear of its parent's end any more.
        let text = format!("mount -t tmpfs none /run\nexec 2>&1\n{PRELUDE}\n{}\n({function})\nexit 0\n", self.0);
        command.args(["bash", "-euo", "pipefail", "-c", &text]);
        command.env("PATH", path()).env("D", &folder.0).env("CLIENT", netns::CLIENT_V4.to_string());
        command.env("V4", netns::SERVER_V4.to_string()).env("V6", netns::SERVER_V6.to_string());
        command
    }
}

/// This process's path, and [`MORE_PATH`].
fn path() -> String {
    format!("{}:{MORE_PATH}", std::env::var("PATH").unwrap_or_default())
}

/// A server, until this is dropped.
struct Server {
    child: Child,
    said: PathBuf,
}

impl Server {
    fn start(rig: &Rig, folder: &Folder, script: Script) -> Server {
        let said = folder.0.join("serve.log");
        let log = fs::File::create(&said).expect("a new file");
        let mut command = script.command(&rig.server, folder, "serve");
        let child = command.stdout(log).stderr(Stdio::null()).spawn().expect("starting ip netns exec");
        let mut server = Server { child, said };
        for port in script.head("ports") {
            server.wait(rig, port);
        }
        server
    }

    /// Waits until it listens.
    fn wait(&mut self, rig: &Rig, port: &str) {
        let start = Instant::now();
        while rig.server.sh(&format!("ss -Hltn 'sport = :{port}'")).is_empty() {
            let ended = self.child.try_wait().expect("waiting for a child of one's own");
            let late = start.elapsed() > READY;
            assert!(ended.is_none() && !late, "nobody listens at port {port} ({ended:?}):\n{}", self.said());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            note!("the server said:\n{}", self.said());
        }
    }
}

/// How a client ended, and what it printed.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    status: Option<i32>,
    said: String,
}

/// Runs the script with this in the middle of the rig.
fn run(script: Script, middle: Option<&str>) -> Outcome {
    let (rig, folder) = (Rig::new(), Folder::new());
    let _proxy = netns::stand(&rig, middle);
    let _server = Server::start(&rig, &folder, script);
    let begin = Instant::now();
    let said = folder.0.join("ask.log");
    let log = fs::File::create(&said).expect("a new file");
    let mut ask = script.command(&rig.client, &folder, "ask");
    let mut child = ask.stdout(log).stderr(Stdio::null()).spawn().expect("starting ip netns exec");
    let status = loop {
        if let Some(status) = child.try_wait().expect("waiting for a child of one's own") {
            break status;
        }
        if begin.elapsed() > PATIENCE {
            child.kill().expect("a child can be killed");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let said = String::from_utf8_lossy(&fs::read(&said).unwrap_or_default()).into_owned();
    note!("{middle:?}: {status} after {:?}\n{said}", begin.elapsed());
    Outcome { status: status.code(), said: masked(&said, &folder.0) }
}

/// Runs the script with the kernel's bridge and with the proxy, and compares.
fn is_the_same(script: &'static str) {
    let script = Script(script);
    script.needs();
    let plain = run(script, None);
    if plain.status == Some(IGNORED) {
        harness::ignore(plain.said.lines().last().unwrap_or_default().trim_start_matches("ignored: "));
    }
    assert_eq!(plain.status, Some(0), "with the bridge:\n{}", plain.said);
    for config in [CACHE_ON, CACHE_OFF] {
        let other = run(script, Some(config));
        assert!(
            plain == other,
            "{config}: {:?}, with the bridge {:?}\n{}",
            other.status,
            plain.status,
            difference(&plain.said, &other.said)
        );
    }
}

/// The lines that are not the same.
fn difference(plain: &str, other: &str) -> String {
    let (plain, other): (Vec<_>, Vec<_>) = (plain.lines().collect(), other.lines().collect());
    let lines = (0..plain.len().max(other.len())).filter(|&at| plain.get(at) != other.get(at));
    lines.map(|at| format!("line {at}: {:?}\n  bridge: {:?}\n", other.get(at), plain.get(at))).collect()
}

/// Words after a number that make it a time or a speed.
const UNITS: [&str; 12] =
    ["ms", "us", "s", "sec", "secs", "seconds", "second", "msec", "KB/s", "MB/s", "bytes/sec", "Mbps"];

/// The text without what differs from run to run: times, speeds, ports that a kernel has chosen, and the name of the folder.
fn masked(text: &str, folder: &Path) -> String {
    let text = text.replace(&*folder.to_string_lossy(), "$D");
    let mut masked = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        masked += &rest[..at];
        rest = &rest[at..];
        // Digits, and dots and colons between them.
        let part_of = |(at, c): (usize, char)| {
            let next = rest[at + c.len_utf8()..].starts_with(|c: char| c.is_ascii_digit());
            c.is_ascii_digit() || (matches!(c, '.' | ':') && next)
        };
        let end = rest.char_indices().find(|&at| !part_of(at)).map_or(rest.len(), |(at, _)| at);
        let (number, after) = rest.split_at(end);
        masked += &masked_number(number, &masked, after);
        rest = after;
    }
    masked + rest
}

fn masked_number(number: &str, before: &str, after: &str) -> String {
    let [dots, colons] = ['.', ':'].map(|c| number.matches(c).count());
    let unit = after.trim_start_matches(' ').split(|c: char| !c.is_ascii_alphabetic() && c != '/').next();
    let is_chosen = |port: &str| port.parse::<u32>().is_ok_and(|port| (10_000..65_536).contains(&port));
    match number.rsplit_once(':') {
        Some((address, port)) if dots == 3 && is_chosen(port) => format!("{address}:PORT"),
        Some(_) if dots == 3 => number.to_owned(),
        Some(_) => "TIME".to_owned(),
        None if dots == 1 || unit.is_some_and(|unit| UNITS.contains(&unit)) => "#".to_owned(),
        None if dots + colons == 0 && is_chosen(number) && [":", "port "].iter().any(|mark| before.ends_with(mark)) => {
            "PORT".to_owned()
        }
        None => number.to_owned(),
    }
}

#[test]
fn what_differs_from_run_to_run_is_masked_and_nothing_else() {
    let folder = Path::new("/tmp/spx1-0-everyday");
    for (text, expected) in [
        ("10.77.0.1:43210 to 10.77.0.2:80", "10.77.0.1:PORT to 10.77.0.2:80"),
        ("[fd77::1]:43210, port 43210, 43210 bytes", "[fd77::1]:PORT, port PORT, 43210 bytes"),
        ("at 12:34:56 after 0.25 or 17 ms, 12 MB/s", "at TIME after # or # ms, # MB/s"),
        ("200 files, 3000000 bytes, v3", "200 files, 3000000 bytes, v3"),
        ("/tmp/spx1-0-everyday/up", "$D/up"),
    ] {
        assert_eq!(masked(text, folder), expected);
    }
}

/// A test for each script.
macro_rules! everyday {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                is_the_same(include_str!(concat!("everyday/", stringify!($name), ".sh")));
            }
        )*
    };
}

everyday! {
    ab_and_wrk dns ftp git haproxy http2 imap iperf iperf3 keepalived ldap mariadb memcached monitoring mosquitto nc nfs nginx openssl postgres redis rpc rsync
    samba smtp socat ssh stunnel subversion telnet tinyproxy traceroute websocket
}
