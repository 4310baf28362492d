//! The guest: a machine emulated by QEMU whose two virtio cards end in taps of the client's and the server's namespace.
//! It obeys shell lines on a port of its own; what its kernel says goes to a file.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use unit::netns::{self, Namespace, Rig};

/// How long the guest may take to start.
const BOOT: Duration = Duration::from_secs(90);

/// How long any one shell line may take in it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What ends the answer to a line, before its exit status.
const END: &str = "@@ ";

/// What a kernel prints when something is wrong with it.
const ALARMS: [&str; 9] = [
    "BUG",
    "WARNING:",
    "Out of memory",
    "segfault",
    "Oops",
    "Call Trace",
    "soft lockup",
    "stall",
    "allocation failure",
];

/// The process id of the guest that runs, for whoever has to end in a hurry; 0 if none does.
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// What the guest is started with.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The kernel.
    pub kernel: &'a Path,
    /// Everything else: a shell, the driver, the program.
    pub initramfs: &'a Path,
}

/// A running guest; ended when dropped, and then, after a panic, its console is printed.
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
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let console = std::env::temp_dir().join(format!("spx{}-{number}.console", process::id()));
        let complaints = console.with_extension("qemu");
        let mut command = Command::new("setpriv");
        command.stderr(File::create(&complaints).expect("a file of one's own"));
        command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-no-reboot", "-machine", "q35", "-m", "768", "-smp", "2"]);
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
            // The driver lends out its memory only where the device goes through the platform's DMA.
            let several = if queues > 1 { format!(",mq=on,rss=on,vectors={}", 2 * queues + 2) } else { String::new() };
            command.arg("-device").arg(format!(
                "virtio-net-pci,netdev={port},mac=02:00:00:00:00:{last},iommu_platform=on,disable-legacy=on,\
                 host_mtu=9000{several}"
            ));
            taps.extend(opened);
        }
        let mut qemu = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starting QEMU");
        RUNNING.store(qemu.id(), Ordering::Relaxed);
        // Other children shall not have them.
        drop(taps);
        let line = qemu.stdin.take().expect("piped");
        let said = BufReader::new(qemu.stdout.take().expect("piped"));
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut guest = Guest { qemu, line, answers, console, complaints };
        guest.await_shell();
        guest
    }

    /// Asks until somebody answers: what is written before the shell is there is lost.
    fn await_shell(&mut self) {
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < BOOT, "the guest does not start");
            if let Some(status) = self.qemu.try_wait().expect("waiting for a child of one's own") {
                panic!("QEMU ended: {status}");
            }
            writeln!(self.line, "echo hello").expect("QEMU listens");
            if self.answers.recv_timeout(Duration::from_secs(1)).is_ok_and(|answer| answer.ends_with("hello")) {
                // The shell may have been greeted more than once.
                while self.answers.recv_timeout(Duration::from_millis(500)).is_ok() {}
                return;
            }
        }
    }

    /// Runs a shell line, and returns its exit status and what it printed.
    ///
    /// # Panics
    /// If it does not end.
    pub fn run(&mut self, line: &str) -> (i32, String) {
        writeln!(self.line, "{{ {line}\n}} </dev/null 2>&1; echo \"{END}$?\"").expect("QEMU listens");
        let (begin, mut said) = (Instant::now(), String::new());
        loop {
            let left = PATIENCE.saturating_sub(begin.elapsed());
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

    /// Starts the proxy with these arguments before its interfaces and these entries of its configuration, and returns
    /// what it has said when frames flow.
    ///
    /// # Panics
    /// If it does not become ready; the message has all it said.
    pub fn start(&mut self, arguments: &str, config: &str) -> String {
        self.sh(&format!("printf '%s\\n' 'synproxyconf = {{ {config} }};' >/tmp/conf"));
        let (lan, wan) = (Rig::LAN, Rig::WAN);
        let (status, said) = self.run(&format!(
            ": >/tmp/log; synproxy --config /tmp/conf {arguments} xdp:{lan} xdp:{wan} >/tmp/log 2>&1 & pid=$!; n=0
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
        RUNNING.store(0, Ordering::Relaxed);
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        for file in [&self.console, &self.complaints] {
            let _ = fs::remove_file(file);
        }
    }
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

/// Ends the guest and removes what this process has made, without ceremony.
pub fn abandon() {
    let pid = RUNNING.load(Ordering::Relaxed);
    if pid != 0 {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
    }
    netns::remove_own();
    let own = format!("spx{}-", process::id());
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&own) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
