//! What the pages say is tried: every command is run, in a namespace whose interfaces have the names of the pages, with a live box where it
//! needs one; what a page shows of the output has the shape of what is printed. Configurations pass the check, requests to the control socket get
//! the reply that the page names. `unit::documents` says how a page tells what a command needs. Commands that build and test this tree are those
//! of the Makefile and of cargo: that these have them is checked here.
//!
//! ```text
//!   client namespace             box namespace                   server namespace
//!   c0 198.51.100.7 ──────────── eth1            eth0 ────────── s0 198.51.1.1
//!      10.77.0.1                 with /run, /etc and processes      10.77.0.2
//!                                of its own
//! ```

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use harness::{leftovers, note, test};
use serde_json::Value;
use unit::documents::{self, Item, Notes, Trial};
use unit::netns::traffic::{self, Server};
use unit::netns::{Namespace, programs};

/// How long a command may take, and a box to start.
const PATIENCE: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace").to_owned()
}

/// The names of a page's interfaces, the files it reads, and what stands for words in capitals.
const WORDS: [(&str, &str); 15] = [
    ("pcap:FILE:N", "pcap:cable.pcap:1"),
    ("drops FILE", "drops drops.pcapng"),
    ("block FILE", "block networks.txt"),
    ("HEX", "$SYN"),
    ("FRAME", "$SYN"),
    ("FILE", "new.conf"),
    ("LAN", "eth0"),
    ("WAN", "eth1"),
    ("PORT", "eth0"),
    ("DEVICE", "eth0"),
    ("NETWORK", "192.0.2.0/24"),
    ("ADDRESS", "198.51.1.1"),
    ("SECONDS", "5"),
    ("LEVEL", "info"),
    ("N", "1"),
];

/// A SYN of 198.51.100.7:40000 to 198.51.1.1:80 with the options that Linux has.
fn syn() -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0xc1], [2, 0, 0, 0, 0, 0x51]);
    let builder = builder.ipv4([198, 51, 100, 7], [198, 51, 1, 1], 64).tcp(40000, 80, 1000, 64240).syn();
    use etherparse::TcpOptionElement::{MaximumSegmentSize, SelectiveAcknowledgementPermitted, Timestamp, WindowScale};
    let options = [MaximumSegmentSize(1460), SelectiveAcknowledgementPermitted, Timestamp(65536, 0), WindowScale(7)];
    let builder = builder.options(&options).expect("they fit");
    let mut frame = Vec::new();
    builder.write(&mut frame, &[]).expect("writing to memory");
    frame
}

/// A capture with one frame, as programs write it that know only pcap.
fn capture(frame: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let length = frame.len() as u32;
    for word in [0xa1b2_c3d4_u32, 4 << 16 | 2, 0, 0, 65535, 1, 1_700_000_000, 0, length, length] {
        file.extend(word.to_le_bytes());
    }
    file.extend(frame);
    file
}

/// A machine as the pages describe it, with everything that a command can change of its own.
struct Machine {
    middle: Namespace,
    client: Namespace,
    server: Namespace,
    /// The servers of the protected host.
    servers: Vec<Server>,
    /// Connections through the box that runs.
    streams: Vec<TcpStream>,
    /// Where commands are run, with the files that pages name.
    directory: PathBuf,
    /// The process whose end ends all that runs here, its input, and its number.
    holder: Child,
    input: Option<ChildStdin>,
    pid: u32,
    /// The line that started the box that runs.
    running: Option<String>,
    /// The lines that were run last before a command.
    prepared: Vec<String>,
    /// Files for what processes say.
    outputs: u32,
}

/// What a command printed, and its status.
struct Said {
    text: String,
    status: Option<i32>,
}

impl Machine {
    fn new() -> Machine {
        programs();
        let [middle, client, server] = ["box", "client", "server"].map(Namespace::new);
        middle.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
        for (host, outer, mac, inner, addresses) in [
            (&client, "c0", "02:00:00:00:00:c1", "eth1", "198.51.100.7/24 10.77.0.1/24"),
            (&server, "s0", "02:00:00:00:00:51", "eth0", "198.51.1.1/24 10.77.0.2/24"),
        ] {
            middle.sh(&format!(
                "ip link add {inner} type veth peer name {outer} address {mac} netns {}; ip link set {inner} up",
                host.name()
            ));
            host.sh(&format!(
                "ethtool -K {outer} tx off txvlan off >/dev/null; ip link set {outer} up
                 for address in {addresses}; do ip addr add $address dev {outer}; done; ip route add default dev {outer}
                 ip route add 198.51.{}.0/24 dev {outer} src {}",
                if outer == "c0" { 1 } else { 100 },
                addresses.split('/').next().expect("an address")
            ));
        }
        let address = |text: &str| text.parse().expect("an address");
        let servers = ["198.51.1.1", "10.77.0.2"].map(|ip| server.serve(address(ip), 80, traffic::echo)).into();
        let directory = leftovers::file("docs");
        let over = directory.join("over");
        fs::create_dir_all(&over).expect("a directory of one's own");
        // Of its own are: processes, and what commands write to; /sys is that of the namespace already.
        let script = format!(
            "read pid rest </proc/self/stat
             mount -t proc proc /proc
             for place in /run /var/tmp /var/log /usr/local/bin {over}; do mount -t tmpfs tmpfs $place; done
             mkdir {over}/upper {over}/work /run/netns
             mount -t overlay overlay -o lowerdir=/etc,upperdir={over}/upper,workdir={over}/work /etc
             mkdir -p /etc/synproxy
             echo $pid
             # The first process of a machine reaps what others leave behind: bash does, while it waits for a line.
             exec bash -c 'while read -r line; do :; done'",
            over = over.display()
        );
        let mut holder = middle
            .command("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--propagation=private", "sh", "-ec", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting unshare");
        let mut pid = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut pid).expect("it says its number");
        let input = holder.stdin.take();
        let pid = pid.trim().parse().expect("a machine that is ready says its number");
        let machine = Machine {
            middle,
            client,
            server,
            servers,
            streams: Vec::new(),
            directory,
            holder,
            input,
            pid,
            running: None,
            prepared: Vec::new(),
            outputs: 0,
        };
        machine.write_files();
        machine
    }

    /// The files that pages name.
    fn write_files(&self) {
        let cable = capture(&syn());
        let conf = fs::read(root().join("conf.txt")).expect("there is a sample");
        let files: [(&str, &[u8]); 10] = [
            ("conf.txt", &conf),
            ("old.conf", b"synproxyconf = { };\n"),
            ("new.conf", b"synproxyconf = { own_mss = 1400; mss = { 536, 1400, 1460 }; conntablesize = 262144; };\n"),
            ("networks.txt", b"192.0.2.0/24\n203.0.113.7 # one host\n"),
            ("cable.pcap", &cable),
            ("wan.pcap", &cable),
            ("lan.pcap", &cable),
            ("open.conf", b"synproxyconf = { ratehash = { initial_tokens = 100000; }; };\n"),
            ("modes.conf", b"synproxyconf = { mode = pass; destinations = { { network = \"192.0.2.0/24\"; port = 443; mode = auto; } }; };\n"),
            ("commanded.conf", b"synproxyconf = { sackmode = commanded; mssmode = commanded; wscalemode = commanded; };\n"),
        ];
        for (name, text) in files {
            fs::write(self.directory.join(name), text).expect("a file of one's own");
        }
    }

    /// A command of a shell there, with the programs on its path.
    fn shell(&self, host: Option<&str>, line: &str) -> Command {
        let namespace = match host {
            Some("client") => &self.client,
            Some("server") => &self.server,
            _ => &self.middle,
        };
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--mount", "--pid"]);
        command.arg(format!("--net={}/{}", leftovers::NAMES, namespace.name()));
        command.args(["bash", "-c", &format!("cd {} || exit\n{line}", self.directory.display())]);
        let path = format!("{}:{}", programs().display(), env::var("PATH").unwrap_or_default());
        let hex: String = syn().iter().map(|byte| format!("{byte:02x}")).collect();
        command.env("PATH", path).env("SYN", hex).env("TERM", "xterm").stdin(Stdio::null());
        command
    }

    /// Starts a command whose output goes to a file, which is returned.
    fn start(&mut self, host: Option<&str>, line: &str) -> (Child, PathBuf) {
        self.outputs += 1;
        let path = self.directory.join(format!("output-{}", self.outputs));
        let file = fs::File::create(&path).expect("a file of one's own");
        let mut command = self.shell(host, line);
        command.stdout(file.try_clone().expect("one descriptor more")).stderr(file);
        (command.spawn().expect("starting nsenter"), path)
    }

    /// Runs a command to its end.
    fn run(&mut self, host: Option<&str>, line: &str) -> Said {
        let (mut child, path) = self.start(host, line);
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("waiting for a child of one's own") {
                break status.code();
            }
            if begin.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            thread::sleep(Duration::from_millis(5));
        };
        Said { text: fs::read_to_string(path).unwrap_or_default(), status }
    }

    /// Starts what runs on, and waits until it says that it is ready.
    fn leave_running(&mut self, host: Option<&str>, line: &str) -> Result<(), String> {
        let (mut child, path) = self.start(host, &format!("exec {line}"));
        let begin = Instant::now();
        loop {
            let said = fs::read_to_string(&path).unwrap_or_default();
            if said.split_whitespace().any(|word| word == "ready") {
                return Ok(());
            }
            let ended = child.try_wait().expect("waiting for a child of one's own");
            if ended.is_some() || begin.elapsed() > PATIENCE {
                return Err(format!("it is not ready ({ended:?}):\n{said}"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends everything but the machine itself.
    fn end_all(&mut self) {
        self.streams.clear();
        self.running = None;
        // Sent to all processes there but the first: numbers are those of this machine's own. A box that is interrupted puts its interfaces back at once.
        let line = "for sign in INT TERM KILL; do kill -$sign -1 2>/dev/null; for n in $(seq 300); do
                      pgrep -v -x 'bash|sleep|seq|pgrep|nsenter' >/dev/null || exit 0; sleep 0.02; done; done";
        let _ = self.run(None, &format!("trap '' INT TERM; {line}"));
    }

    /// Starts a box by this line, in place of the one that runs, with connections through it if it is one between the cables.
    fn start_box(&mut self, line: &str) -> Result<(), String> {
        self.end_all();
        // Pinned, the boxes of several machines would share a core.
        let line = line.replacen("synproxy ", "synproxy --no-pin ", 1);
        // What commands before it, and the box before, may have left: a box of this page takes over nothing.
        let _ = self.run(None, "rm -rf /run/synproxy/*/; for i in eth0 eth1; do ip link set $i up mtu 1500; done");
        self.leave_running(None, &line)?;
        self.running = Some(line);
        let through =
            self.run(Some("client"), "for i in $(seq 20); do ping -c 1 -W 1 198.51.1.1 && exit; done; exit 1");
        if through.status == Some(0) { Ok(()) } else { Err(format!("nothing passes:\n{}", through.text)) }
    }

    /// Has as many connections through the box.
    fn connect(&mut self, count: usize) -> Result<(), String> {
        let address: SocketAddr = "198.51.1.1:80".parse().expect("an address");
        while self.streams.len() < count {
            let mut stream = self.client.connect(address).map_err(|error| format!("through the box: {error}"))?;
            let mut echo = [0; 4];
            stream
                .write_all(b"docs")
                .and_then(|()| stream.read_exact(&mut echo))
                .map_err(|error| format!("through the box: {error}"))?;
            self.streams.push(stream);
        }
        Ok(())
    }

    /// Has the box there that the notes ask for.
    fn provide(&mut self, notes: &Notes, needs_one: bool) -> Result<(), String> {
        if self.running.is_some() && self.run(None, "pgrep -x synproxy").status != Some(0) {
            self.end_all();
        }
        match notes.running.as_deref() {
            Some("none") => self.end_all(),
            Some(arguments) => {
                let line = format!("synproxy {arguments} eth0 eth1");
                if self.running.as_ref().is_none_or(|running| running.replacen(" --no-pin", "", 1) != line) {
                    self.start_box(&line)?;
                }
            }
            None if needs_one && self.running.is_none() => self.start_box("synproxy eth0 eth1")?,
            None => {}
        }
        self.connect(notes.connections)
    }

    /// One command, and what the page shows of its output.
    fn command(&mut self, text: &str, shown: &[String], notes: &Notes) -> Result<(), String> {
        let line = replaced(text, notes);
        self.provide(notes, line.contains("synctl") || line.contains("curl"))?;
        let host = notes.host.as_deref();
        // Once for all commands of a block.
        if self.prepared != notes.before {
            self.prepared.clone_from(&notes.before);
            for before in &notes.before {
                let said = self.run(host, before);
                if said.status != Some(0) {
                    return Err(format!("before it, `{before}`: {:?}\n{}", said.status, said.text));
                }
            }
        }
        if let Some(line) = line.strip_suffix('&') {
            return self.leave_running(host, line);
        }
        if starts_a_box(&line) {
            return self.start_box(&line);
        }
        let said = match &notes.stop {
            Some(until) => self.run_until(host, &line, until)?,
            None => self.run(host, &line),
        };
        // Named without its arguments, as a part of the program: it has a page of help.
        let is_name = line
            .split_whitespace()
            .all(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-'));
        let said = if said.status == Some(2) && is_name { self.run(host, &format!("{line} --help")) } else { said };
        let is_expected =
            said.status == Some(notes.ends) || (notes.stop.is_some() && [None, Some(130)].contains(&said.status));
        if !is_expected {
            return Err(format!("status {:?} instead of {}:\n{}", said.status, notes.ends, said.text));
        }
        if line.contains("synctl stop") {
            // The box answers before it ends.
            let _ = self.run(None, "for n in $(seq 1000); do pgrep -x synproxy >/dev/null || exit; sleep 0.01; done");
        }
        let mut printed = said.text.lines();
        let shown = shown
            .iter()
            .map(|line| line.trim())
            .filter(|line| !line.is_empty() && !line.contains("...") && !line.contains('…'));
        for line in shown.take(notes.shape.unwrap_or(usize::MAX)) {
            if !printed.by_ref().any(|printed| documents::has_shape(printed, line)) {
                return Err(format!("no line is like `{line}`, or not in this place:\n{}", said.text));
            }
        }
        Ok(())
    }

    /// Runs a command until a line succeeds, and interrupts it then.
    fn run_until(&mut self, host: Option<&str>, line: &str, until: &str) -> Result<Said, String> {
        let (mut child, path) = self.start(host, &format!("echo $$ >pid\nexec {line}"));
        let begin = Instant::now();
        while self.run(None, until).status != Some(0) {
            if begin.elapsed() > PATIENCE {
                return Err(format!("`{until}` fails:\n{}", fs::read_to_string(&path).unwrap_or_default()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.run(None, "kill -INT $(cat pid)");
        let begin = Instant::now();
        let status = loop {
            match child.try_wait().expect("waiting for a child of one's own") {
                Some(status) => break status.code(),
                None if begin.elapsed() > PATIENCE => return Err("it does not end when it is interrupted".to_owned()),
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        Ok(Said { text: fs::read_to_string(path).unwrap_or_default(), status })
    }

    /// Sends a request to the control socket, and expects a reply of this kind.
    fn request(&mut self, request: &str, kind: &str, notes: &Notes) -> Result<(), String> {
        self.provide(notes, true)?;
        let directory = format!("/proc/{}/root/run/synproxy", self.pid);
        let entries = fs::read_dir(&directory).map_err(|error| error.to_string())?.flatten().map(|entry| entry.path());
        let socket = entries.filter(|path| path.extension().is_some_and(|end| end == "sock")).last();
        let mut stream =
            UnixStream::connect(socket.ok_or("no box has a socket")?).map_err(|error| error.to_string())?;
        let patience = Some(PATIENCE);
        stream
            .set_read_timeout(patience)
            .and_then(|()| writeln!(stream, "{request}"))
            .map_err(|error| error.to_string())?;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply).map_err(|error| error.to_string())?;
        let value: Value = serde_json::from_str(&reply).map_err(|error| format!("{error}: {reply}"))?;
        let found = value.as_object().and_then(|members| members.keys().next()).map_or("", String::as_str);
        let matches = found == kind || (value.as_str() == Some(kind)) || (kind.is_empty() && found != "error");
        if matches { Ok(()) } else { Err(format!("the reply is no `{kind}`: {reply}")) }
    }

    /// Checks a configuration, or a part of one.
    fn configuration(&mut self, text: &str, notes: &Notes) -> Result<(), String> {
        let whole =
            if text.contains("synproxyconf") { text.to_owned() } else { format!("synproxyconf = {{\n{text}\n}};\n") };
        fs::write(self.directory.join("page.conf"), whole).expect("a file of one's own");
        self.command("synproxy --check-config page.conf", &[], notes)
    }

    fn attempt(&mut self, item: &Item) -> Result<(), String> {
        match &item.trial {
            Trial::Command(text, shown) => self.command(text, shown, &item.notes),
            Trial::Configuration(text) => self.configuration(text, &item.notes),
            Trial::Json(text) => text.split("\n\n").try_for_each(|part| match serde_json::from_str::<Value>(part) {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("no JSON, {error}: {part}")),
            }),
            Trial::Request(request, kind) => self.request(request, kind, &item.notes),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.streams.clear();
        // Its first process ends with its input, and everything there with that process.
        self.input = None;
        let _ = self.holder.wait();
        self.servers.clear();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The command with what stands for its words.
fn replaced(text: &str, notes: &Notes) -> String {
    let own = notes.with.iter().map(|(word, text)| (word.as_str(), text.as_str()));
    own.chain(WORDS).fold(text.to_owned(), |line, (word, stands)| {
        // A whole word, since others may contain it.
        let (mut done, mut rest) = (String::new(), line.as_str());
        while let Some(at) = rest.find(word) {
            let (before, after) = (&rest[..at], &rest[at + word.len()..]);
            let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$');
            let is_whole = !is_part(before.chars().next_back()) && !is_part(after.chars().next());
            done += before;
            done += if is_whole { stands } else { word };
            rest = after;
        }
        done + rest
    })
}

/// Whether a line starts a box that stays.
fn starts_a_box(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().skip_while(|word| ["taskset", "-c", "0"].contains(word)).collect();
    let others = ["doctor", "--help", "--version", "--check-config", "--restore"];
    words.first() == Some(&"synproxy") && !words.iter().any(|word| others.contains(word) || word.starts_with("pcap:"))
}

/// The program by which this tree is built, tested or measured, if a command is of that kind.
fn building(text: &str) -> Option<&str> {
    let mut words = text.split_whitespace().skip_while(|word| word.contains('='));
    words.next().filter(|word| ["make", "cargo"].contains(word) || word.starts_with("unit/"))
}

/// The pages that are tried, as paths from the root.
fn pages() -> Vec<String> {
    let mut all = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    let entries = fs::read_dir(root().join("docs")).expect("there are pages").flatten();
    all.extend(
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.ends_with(".md"))
            .map(|name| format!("docs/{name}")),
    );
    all.sort();
    all
}

/// What can be tried of a page.
fn items(page: &str) -> Vec<Item> {
    let text = fs::read_to_string(root().join(page)).expect("there is such a page");
    documents::items(&text).unwrap_or_else(|faults| {
        panic!("{}", faults.iter().map(|fault| format!("{page}:{fault}\n")).collect::<String>())
    })
}

/// Tries a page from its beginning to its end; a command that stands there several times under the same conditions once.
fn attempt(machine: &mut Option<Machine>, page: &str) -> Vec<String> {
    let items = items(page);
    let builds = |item: &Item| matches!(&item.trial, Trial::Command(text, _) if building(text).is_some());
    let (mut done, mut faults) = (Vec::new(), Vec::new());
    if let Some(machine) = machine {
        machine.end_all();
        let _ = machine.run(None, "rm -rf /var/tmp/* /var/log/*");
        machine.prepared.clear();
    }
    for item in items.iter().filter(|item| item.notes.not_run.is_none() && item.notes.run_by.is_none() && !builds(item))
    {
        let what = (&item.trial, &item.notes);
        if done.contains(&what) {
            continue;
        }
        done.push(what);
        let begin = Instant::now();
        if let Err(why) = machine.get_or_insert_with(Machine::new).attempt(item) {
            let trial = match &item.trial {
                Trial::Command(text, _) | Trial::Configuration(text) | Trial::Json(text) | Trial::Request(text, _) => {
                    text
                }
            };
            faults.push(format!("{page}:{}: {trial}\n  {}", item.line, why.trim_end().replace('\n', "\n  ")));
        }
        note!("{page}:{}: {} ms", item.line, begin.elapsed().as_millis());
    }
    note!("{page}: {} tried", done.len());
    faults
}

fn all_work(pages: &[String]) {
    let mut machine = None;
    let faults: Vec<String> = pages.iter().flat_map(|page| attempt(&mut machine, page)).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// The pages that have a test of their own, so that they are tried side by side.
const LARGE: [&str; 5] = ["README.md", "docs/control.md", "docs/operations.md", "docs/tools.md", "docs/doctor.md"];

#[test]
fn what_the_readme_says_works() {
    all_work(&[LARGE[0].to_owned()]);
}

#[test]
fn what_is_said_of_control_works() {
    all_work(&[LARGE[1].to_owned()]);
}

#[test]
fn what_is_said_of_operations_works() {
    all_work(&[LARGE[2].to_owned()]);
}

#[test(long)]
fn what_is_said_of_the_tools_works() {
    all_work(&[LARGE[3].to_owned()]);
}

#[test(long)]
fn what_is_said_by_the_doctor_works() {
    all_work(&[LARGE[4].to_owned()]);
}

#[test(long)]
fn what_the_other_pages_say_works() {
    let others: Vec<String> = pages().into_iter().filter(|page| !LARGE.contains(&page.as_str())).collect();
    all_work(&others);
}

/// Every command that builds, tests or measures this tree is one that `make` or cargo knows.
#[test(light)]
fn what_builds_and_tests_this_tree_is_there() {
    let mut faults = Vec::new();
    let metadata = Command::new(env::var("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo can be started");
    let metadata: Value = serde_json::from_slice(&metadata.stdout).expect("what cargo says is JSON");
    let mut seen = BTreeSet::new();
    for page in pages() {
        for item in items(&page) {
            let Trial::Command(text, _) = &item.trial else { continue };
            let Some(program) = building(text) else { continue };
            if item.notes.not_run.is_some() || item.notes.run_by.is_some() || !seen.insert(text.clone()) {
                continue;
            }
            let found = match program {
                "make" => resolved_by_make(text),
                script if script.starts_with("unit/") => {
                    if root().join(script).is_file() {
                        Ok(())
                    } else {
                        Err("there is no such script".to_owned())
                    }
                }
                _ => resolved_by_cargo(text, &metadata),
            };
            if let Err(why) = found {
                faults.push(format!("{page}:{}: {text}: {why}", item.line));
            }
        }
    }
    assert!(faults.is_empty() && seen.len() > 20, "{} commands\n{}", seen.len(), faults.join("\n"));
}

/// Whether `make` would know what to do.
fn resolved_by_make(text: &str) -> Result<(), String> {
    let line = text.replacen("make ", "make --dry-run ", 1);
    let output =
        Command::new("bash").args(["-c", &line]).current_dir(root()).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Whether the workspace has the packages, tests, benchmarks and modules that a cargo command names.
fn resolved_by_cargo(text: &str, metadata: &Value) -> Result<(), String> {
    let words: Vec<&str> =
        text.split_whitespace().skip_while(|word| word.contains('=')).take_while(|word| *word != "--").collect();
    let after =
        |option: &str| words.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1]).collect::<Vec<_>>();
    let packages = metadata["packages"].as_array().ok_or("no packages")?;
    let named = after("-p");
    if let Some(absent) = named.iter().find(|name| !packages.iter().any(|package| package["name"] == **name)) {
        return Err(format!("there is no package {absent}"));
    }
    for kind in ["test", "bench"] {
        for target in after(&format!("--{kind}")) {
            let targets = packages
                .iter()
                .filter(|package| named.iter().any(|name| package["name"] == *name))
                .flat_map(|package| package["targets"].as_array().into_iter().flatten());
            let found = targets
                .into_iter()
                .find(|it| it["name"] == target && it["kind"][0] == kind)
                .ok_or(format!("there is no {kind} {target}"))?;
            let source =
                Path::new(found["src_path"].as_str().unwrap_or_default()).parent().unwrap_or(Path::new("/")).to_owned();
            let module = words.iter().find_map(|word| word.strip_suffix("::"));
            if let Some(module) = module.filter(|module| !source.join(format!("{module}.rs")).exists()) {
                return Err(format!("{target} has no module {module}"));
            }
        }
    }
    Ok(())
}
