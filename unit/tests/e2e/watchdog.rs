//! What the service manager hears of the workers: a beat as long as none is stuck.

use harness::{leftovers, test};
use nix::sys::{ptrace, signal};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use unit::netns::{self, Rig, program, traffic};

/// How long the service manager waits for a beat: it gets four in this time.
const PATIENCE: Duration = Duration::from_millis(800);

/// How long a loaded machine may take for anything.
const LONG: Duration = Duration::from_secs(30);

/// A box, its service manager's end of the socket, and what it logs.
struct Managed {
    rig: Rig,
    child: Child,
    socket: UnixDatagram,
    files: [PathBuf; 2],
}

impl Managed {
    fn start() -> Self {
        let rig = Rig::new();
        let files = ["notify", "log"].map(leftovers::file);
        let socket = UnixDatagram::bind(&files[0]).expect("a socket");
        let mut command = rig.middle.command("env");
        command.arg(format!("NOTIFY_SOCKET={}", files[0].display()));
        command.arg(format!("WATCHDOG_USEC={}", PATIENCE.as_micros()));
        command.arg(program("synproxy")).args(["--control=none", "--state-dir=none", "--no-pin", Rig::LAN, Rig::WAN]);
        let log = fs::File::create(&files[1]).expect("a file");
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("starting");
        let it = Self { rig, child, socket, files };
        assert!(it.hears("READY=1", LONG), "{}", it.log());
        it
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.files[1]).unwrap_or_default()
    }

    /// Whether this line comes within some time.
    fn hears(&self, line: &str, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut message = [0; 4096];
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left)).expect("a time-out");
            let Ok(length) = self.socket.recv(&mut message) else { return false };
            if String::from_utf8_lossy(&message[..length]).lines().any(|said| said == line) {
                return true;
            }
        }
        false
    }

    /// Forgets what has been said.
    fn forget(&self) {
        self.socket.set_nonblocking(true).expect("a flag");
        while self.socket.recv(&mut [0; 4096]).is_ok() {}
        self.socket.set_nonblocking(false).expect("a flag");
    }

    /// The worker's thread.
    fn worker(&self) -> Pid {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs");
        let mut tasks = tasks.map(|task| task.expect("a task").path());
        let worker =
            tasks.find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "worker 0"));
        let number = worker.expect("a worker").file_name().and_then(|name| name.to_str()?.parse().ok());
        Pid::from_raw(number.expect("a number"))
    }

    fn wait_for_log(&self, text: &str) {
        let deadline = Instant::now() + LONG;
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "{text}: {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        let _ = signal::kill(Pid::from_raw(self.child.id() as i32), signal::Signal::SIGTERM);
        let _ = self.child.wait();
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

#[test]
fn an_idle_box_and_a_busy_one_beat() {
    let it = Managed::start();
    for _ in 0..8 {
        assert!(it.hears("WATCHDOG=1", LONG), "{}", it.log());
    }
    let server = it.rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    let stream = it.rig.client.connect(server.address).expect("connecting");
    traffic::exchange(&stream, 8 << 20, 8 << 20).expect("bulk");
    it.forget();
    for _ in 0..4 {
        assert!(it.hears("WATCHDOG=1", LONG), "{}", it.log());
    }
}

#[test]
fn a_worker_that_stands_still_beside_waiting_frames_silences_it_until_it_goes_on() {
    let it = Managed::start();
    assert!(it.hears("WATCHDOG=1", LONG), "{}", it.log());
    let worker = it.worker();
    // Only this thread stops; the others of the process run.
    ptrace::seize(worker, ptrace::Options::empty()).expect("tracing a child of one's own");
    ptrace::interrupt(worker).expect("stopping a thread");
    nix::sys::wait::waitpid(worker, Some(nix::sys::wait::WaitPidFlag::__WALL)).expect("it stops");
    // An idle worker that is not allowed to run lacks nothing, until a frame comes.
    let _ = it
        .rig
        .client
        .command("ping")
        .args(["-c1", "-W1", &netns::SERVER_V4.to_string()])
        .stdout(Stdio::null())
        .status();
    it.wait_for_log("worker 0 is stuck");
    it.forget();
    assert!(!it.hears("WATCHDOG=1", 3 * PATIENCE), "a stuck worker is said to be alive: {}", it.log());
    ptrace::detach(worker, None).expect("letting it go on");
    assert!(it.hears("WATCHDOG=1", LONG), "{}", it.log());
    it.wait_for_log("worker 0 goes on");
}
