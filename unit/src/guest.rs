//! The guest: a machine emulated by QEMU whose two cards end in taps of the client's and the server's namespace.
//! It obeys shell lines on a port of its own; what its kernel says goes to a file.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::netns::{self, Namespace, Rig, traffic};
use harness::leftovers;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// How long the guest may take to start.
const BOOT: Duration = Duration::from_secs(90);

/// How often it may fail to.
const BOOTS: u32 = 3;

/// How long any one shell line may take in it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What ends the answer to a line, before its exit status.
const END: &str = "@@ ";

/// What a kernel prints when something is wrong with it.
const ALARMS: [&str; 10] = [
    "BUG",
    "WARNING:",
    "Out of memory",
    "segfault",
    "Oops",
    "Call Trace",
    "soft lockup",
    "stall",
    "allocation failure",
    "double free",
];

/// What the guest is started with.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The kernel.
    pub kernel: &'a Path,
    /// Everything else: a shell, the driver, the program.
    pub initramfs: &'a Path,
    /// What its network cards are.
    pub card: Card,
}

/// The network cards of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Card {
    /// virtio, with as many queues as one likes, whose driver can do AF_XDP without copies.
    Virtio,
    /// Intel's 82540EM, with one queue, whose driver netmap can patch.
    E1000,
}

/// A running guest; ended when dropped, and then, after a panic, its console is printed.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    line: ChildStdin,
    answers: Receiver<String>,
    /// What the guest's kernel says, and what QEMU does.
    console: PathBuf,
    complaints: PathBuf,
}

impl Guest {
    /// Starts a guest whose LAN port is `s0` of the server's namespace and whose WAN port is `c0` of the client's, with
    /// as many queues each, and waits until it obeys.
    ///
    /// # Panics
    /// If it cannot be started; its console is printed.
    pub fn boot(image: &Image, client: &Namespace, server: &Namespace, queues: usize) -> Guest {
        let mut attempt = 1;
        loop {
            let mut guest = Self::launch(image, client, server, queues);
            match guest.await_shell() {
                Ok(()) => return guest,
                // Two emulated processors may run code that one of them is rewriting, which a kernel does while it boots.
                Err(why) if attempt < BOOTS => row("the guest did not boot, once more", &guest.last_words(&why)),
                Err(why) => panic!("the guest does not boot: {why}"),
            }
            attempt += 1;
        }
    }

    /// Why the guest is gone, as its kernel says or, if it says nothing, as QEMU does.
    fn last_words(&self, why: &str) -> String {
        let said = fs::read_to_string(&self.console).unwrap_or_default();
        let alarm = said.lines().find(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
        alarm.map_or(why, str::trim).to_owned()
    }

    fn launch(image: &Image, client: &Namespace, server: &Namespace, queues: usize) -> Guest {
        let console = leftovers::file("console");
        let complaints = console.with_extension("qemu");
        let mut command = Command::new("setpriv");
        command.stderr(File::create(&complaints).expect("a file of one's own"));
        command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-no-reboot", "-machine", "q35", "-m", "1280", "-smp", "2"]);
        // An x86 kernel on a machine that is itself a guest may not get hardware virtualisation that works.
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.arg("-kernel").arg(image.kernel).arg("-initrd").arg(image.initramfs);
        command.args(["-append", "console=ttyS0 panic=-1"]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.args(["-chardev", "stdio,id=shell", "-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=shell"]);
        let mut taps = Vec::new();
        for (port, host, interface, last) in [("lan", server, "s0", "0a"), ("wan", client, "c0", "0b")] {
            let opened: Vec<OwnedFd> = (0..queues).map(|_| tap(host, interface, queues > 1)).collect();
            let numbers: Vec<String> = opened.iter().map(|tap| tap.as_raw_fd().to_string()).collect();
            let key = if queues > 1 { "fds" } else { "fd" };
            command.arg("-netdev").arg(format!("tap,id={port},{key}={},vhost=off", numbers.join(":")));
            let several = if queues > 1 { format!(",mq=on,rss=on,vectors={}", 2 * queues + 2) } else { String::new() };
            let card = match image.card {
                // The driver lends out its memory only where the device goes through the platform's DMA.
                Card::Virtio => {
                    format!("virtio-net-pci,iommu_platform=on,disable-legacy=on,host_mtu=9000{several}")
                }
                Card::E1000 => "e1000".to_owned(),
            };
            command.arg("-device").arg(format!("{card},netdev={port},mac=02:00:00:00:00:{last}"));
            taps.extend(opened);
        }
        let mut qemu = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starting QEMU");
        // Other children shall not have them.
        drop(taps);
        let line = qemu.stdin.take().expect("piped");
        let said = BufReader::new(qemu.stdout.take().expect("piped"));
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Guest { qemu, line, answers, console, complaints }
    }

    /// Asks until somebody answers: what is written before the shell is there is lost. Says why if nobody will.
    fn await_shell(&mut self) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            if begin.elapsed() > BOOT {
                return Err("its shell says nothing".into());
            }
            if let Some(status) = self.qemu.try_wait().expect("waiting for a child of one's own") {
                return Err(format!("QEMU ended: {status}"));
            }
            writeln!(self.line, "echo hello").map_err(|error| format!("QEMU listens no more: {error}"))?;
            if self.answers.recv_timeout(Duration::from_secs(1)).is_ok_and(|answer| answer.ends_with("hello")) {
                // The shell may have been greeted more than once.
                while self.answers.recv_timeout(Duration::from_millis(500)).is_ok() {}
                return Ok(());
            }
        }
    }

    /// Runs a shell line, and returns its exit status and what it printed.
    ///
    /// # Panics
    /// If it does not end.
    pub fn run(&mut self, line: &str) -> (i32, String) {
        self.run_for(line, PATIENCE)
    }

    /// As [`Guest::run`], with as much time as `patience`.
    ///
    /// # Panics
    /// If it does not end by then.
    pub fn run_for(&mut self, line: &str, patience: Duration) -> (i32, String) {
        writeln!(self.line, "{{ {line}\n}} </dev/null 2>&1; echo \"{END}$?\"").expect("QEMU listens");
        let (begin, mut said) = (Instant::now(), String::new());
        loop {
            let left = patience.saturating_sub(begin.elapsed());
            let answer = self.answers.recv_timeout(left).unwrap_or_else(|_| panic!("`{line}` does not end:\n{said}"));
            // A program may leave its last line open.
            if let Some((rest, status)) = answer.split_once(END) {
                said.push_str(rest);
                return (status.trim().parse().expect("an exit status"), said);
            }
            said.push_str(&answer);
            said.push('\n');
        }
    }

    /// Runs a shell line that has to succeed, and returns what it printed.
    ///
    /// # Panics
    /// If it fails; the message has what it printed.
    pub fn sh(&mut self, line: &str) -> String {
        let (status, said) = self.run(line);
        assert_eq!(status, 0, "`{line}` failed in the guest:\n{said}");
        said
    }

    /// Starts the proxy with these arguments, its two ports among them, and these entries of its configuration, and returns
    /// what it has said when frames flow.
    ///
    /// # Panics
    /// If it does not become ready; the message has all it said.
    pub fn start(&mut self, arguments: &str, config: &str) -> String {
        self.sh(&format!("printf '%s\\n' 'synproxyconf = {{ {config} }};' >/tmp/conf"));
        let (status, said) = self.run(&format!(
            ": >/tmp/log; synproxy --state-dir none --config /tmp/conf {arguments} >/tmp/log 2>&1 & pid=$!; n=0
             until grep -q ^ready /tmp/log; do
                 n=$((n + 1)); [ $n -lt 300 ] && kill -0 $pid || break; sleep 0.1
             done
             cat /tmp/log; kill -0 $pid || {{ wait $pid; echo \"ended with status $?\"; }}; grep -q ^ready /tmp/log"
        ));
        assert_eq!(status, 0, "synproxy did not become ready in the guest:\n{said}");
        said
    }

    /// Ends the proxy by SIGTERM, and returns all it has said.
    ///
    /// # Panics
    /// If it had ended, or ends badly; the message has all it said.
    pub fn stop(&mut self) -> String {
        let (status, said) = self.run("kill -TERM $pid && wait $pid; status=$?; cat /tmp/log; (exit $status)");
        assert_eq!(status, 0, "synproxy ended badly in the guest:\n{said}");
        said
    }

    /// Asserts that the guest's kernel has nothing to complain of.
    ///
    /// # Panics
    /// If it has.
    pub fn expect_calm(&self) {
        let said = fs::read_to_string(&self.console).unwrap_or_default();
        let alarms: Vec<&str> = said.lines().filter(|line| ALARMS.iter().any(|alarm| line.contains(alarm))).collect();
        assert!(alarms.is_empty(), "the guest's kernel complains:\n{}", alarms.join("\n"));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if thread::panicking() {
            // Short of a time-out, or the shell is busy with what hangs.
            let log = writeln!(self.line, "\necho; cat /tmp/log; echo \"{END}0\"");
            if log.is_ok() {
                println!("synproxy said in the guest, at the end:");
                while let Ok(line) = self.answers.recv_timeout(Duration::from_secs(2)) {
                    println!("  {line}");
                }
            }
            for (who, file) in [("QEMU", &self.complaints), ("the guest's console", &self.console)] {
                println!("{who}:");
                let said = fs::read(file).unwrap_or_default();
                String::from_utf8_lossy(&said).lines().for_each(|line| println!("  {line}"));
            }
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        for file in [&self.console, &self.complaints] {
            let _ = fs::remove_file(file);
        }
    }
}

/// A guest between two hosts.
#[derive(Debug)]
pub struct Lab {
    /// The guest.
    pub guest: Guest,
    /// Where the clients live, at the guest's WAN port.
    pub client: Namespace,
    /// Where the servers live, at its LAN port.
    pub server: Namespace,
}

impl Lab {
    /// Boots a guest whose ports have so many queues, over cables of this MTU.
    ///
    /// # Panics
    /// As [`Guest::boot`].
    pub fn new(image: &Image, queues: usize, mtu: u32) -> Lab {
        let (client, server) = (Namespace::new("client"), Namespace::new("server"));
        let guest = Guest::boot(image, &client, &server, queues);
        let ends = [
            (&client, "c0", netns::CLIENT_MAC, netns::CLIENT_V4, netns::CLIENT_V6),
            (&server, "s0", netns::SERVER_MAC, netns::SERVER_V4, netns::SERVER_V6),
        ];
        for (host, interface, mac, v4, v6) in ends {
            host.sh(&format!(
                "ip link set {interface} address {mac} up
                 ip addr add {v4}/24 dev {interface}
                 ip addr add {v6}/64 dev {interface} nodad"
            ));
            host.sysctl("net.ipv4.tcp_congestion_control", "reno");
            host.sysctl("net.ipv4.tcp_no_metrics_save", "1");
            // An emulated card is slow to take what a window of megabytes holds.
            host.sysctl("net.ipv4.tcp_wmem", "4096 65536 262144");
        }
        let mut lab = Lab { guest, client, server };
        lab.set_mtu(mtu);
        lab
    }

    /// Gives all four ends of the two cables this MTU.
    ///
    /// # Panics
    /// If they cannot have it.
    pub fn set_mtu(&mut self, mtu: u32) {
        for port in [Rig::LAN, Rig::WAN] {
            self.guest.sh(&format!("ip link set {port} mtu {mtu} up"));
        }
        self.client.sh(&format!("ip link set c0 mtu {mtu}"));
        self.server.sh(&format!("ip link set s0 mtu {mtu}"));
    }

    /// The four ways a connection can run: who connects to whom, over what.
    fn ways(&self) -> [(&'static str, &Namespace, &Namespace, IpAddr); 4] {
        [
            ("from the WAN, IPv4", &self.client, &self.server, netns::SERVER_V4),
            ("from the WAN, IPv6", &self.client, &self.server, netns::SERVER_V6),
            ("from the LAN, IPv4", &self.server, &self.client, netns::CLIENT_V4),
            ("from the LAN, IPv6", &self.server, &self.client, netns::CLIENT_V6),
        ]
    }

    /// `count` connections at once every way, `bytes` up and as many down in each, every byte looked at, both kernels
    /// asked. Returns how each way went.
    ///
    /// # Panics
    /// If a connection or a kernel complains.
    pub fn exchange(&self, count: usize, bytes: u64) -> Vec<(String, String)> {
        let ways = self.ways().into_iter();
        ways.map(|(way, opener, acceptor, ip)| {
            let server = acceptor.serve(ip, 0, traffic::exchanged);
            let took = netns::judge([&self.client, &self.server], [0, 0], || {
                let begin = Instant::now();
                let connect = |_| traffic::connect(server.address).unwrap_or_else(|e| panic!("{way}: connect: {e}"));
                let streams: Vec<TcpStream> = opener.run(|| (0..count).map(connect).collect());
                thread::scope(|scope| {
                    for stream in &streams {
                        scope.spawn(move || {
                            traffic::exchange(stream, bytes, bytes).unwrap_or_else(|e| panic!("{way}: {e}"));
                        });
                    }
                });
                begin.elapsed()
            });
            let all = 2 * bytes * count as u64;
            let what = format!("{count} x {} KiB up and down, {way}", bytes >> 10);
            (what, format!("every byte as sent, {:.0} Mbit/s", traffic::megabits(all, took)))
        })
        .collect()
    }

    /// Thirty pings every way, all answered.
    ///
    /// # Panics
    /// If one is not.
    pub fn ping(&self) {
        for (host, address) in [
            (&self.client, netns::SERVER_V4),
            (&self.client, netns::SERVER_V6),
            (&self.server, netns::CLIENT_V4),
            (&self.server, netns::CLIENT_V6),
        ] {
            let said = host.sh(&format!("ping -n -q -c 30 -i 0.05 -W 2 {address}"));
            let told = said.lines().find(|line| line.contains("packets transmitted")).unwrap_or_default();
            assert!(told.contains(" 30 received"), "ping {address}: {said}");
            row(&format!("ping {address}"), told.rsplit_once(',').map_or(told, |(told, _)| told));
        }
    }
}

/// Says what is tried next.
pub fn step(what: &str) {
    println!("\n{what}");
}

/// Says what came of something.
pub fn row(what: &str, came: &str) {
    println!("  {what:<52} {came}");
}

/// Says what came of several things.
pub fn rows(rows: Vec<(String, String)>) {
    rows.iter().for_each(|(what, came)| row(what, came));
}

/// A tap in `host`, or one more queue of it; it is gone when nobody has it open any more.
fn tap(host: &Namespace, interface: &str, multi_queue: bool) -> OwnedFd {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    host.run(|| {
        let tap: File = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
        let mut name = [0; libc::IFNAMSIZ];
        for (to, from) in name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short };
        let mut request = libc::ifreq { ifr_name: name, ifr_ifru };
        // SAFETY: the request is a structure of the kind this call reads and writes, and lives as long as the call.
        let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(result, 0, "{interface}: {}", std::io::Error::last_os_error());
        // QEMU inherits it.
        fcntl(&tap, FcntlArg::F_SETFD(FdFlag::empty())).expect("a descriptor of one's own");
        OwnedFd::from(tap)
    })
}

/// The parts of a run that needs a guest, by name.
pub type Parts<'a> = &'a [(&'a str, &'a dyn Fn(&Image))];

/// The `main` of such a run, `make goal`: `KERNEL INITRAMFS [PART...]` on its command line, all parts if none is named. One that panics has
/// failed, and the others go on.
///
/// # Panics
/// If somebody else handles signals.
pub fn run(goal: &str, card: Card, parts: Parts) -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(kernel), Some(initramfs)) = (arguments.next(), arguments.next()) else {
        eprintln!("this needs a guest: run `make {goal}`");
        return ExitCode::FAILURE;
    };
    let wanted: Vec<String> = arguments.map(|part| part.to_string_lossy().into_owned()).collect();
    let image = Image { kernel: &kernel, initramfs: &initramfs, card };
    leftovers::guard();

    let mut failed = Vec::new();
    for &(name, part) in parts {
        let is_wanted = wanted.is_empty() || wanted.iter().any(|part| part == name);
        if is_wanted && catch_unwind(AssertUnwindSafe(|| part(&image))).is_err() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("\nfailed: {}", failed.join(", "));
    ExitCode::FAILURE
}
