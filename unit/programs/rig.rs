//! What the tests of programs share: programs that may be missing, that run until they are dropped, and ports of a server that do not let anybody in.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use unit::netns::Namespace;

/// Ends the test as ignored where one of these programs is not installed.
pub fn needs(programs: &[&str]) {
    for program in programs {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            harness::ignore(format_args!("there is no {program}"));
        }
    }
}

/// A program that runs until this is dropped.
pub struct Running(Child);

impl Running {
    /// Starts it; what it prints is not looked at.
    pub fn start(mut command: Command) -> Running {
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting a program"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = signal::kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let start = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(3) {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that accepts connections and closes them, until it is dropped: from then on its port is closed.
pub struct Listening {
    ends: Arc<AtomicBool>,
    accepts: Option<JoinHandle<()>>,
}

impl Listening {
    /// Listens in `namespace`.
    pub fn start(namespace: &Namespace, ip: IpAddr, port: u16) -> Listening {
        let address = SocketAddr::new(ip, port);
        let listener = namespace.run(|| TcpListener::bind(address)).expect("listening");
        listener.set_nonblocking(true).expect("a listener that does not wait");
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let accepts = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                // The client gets nothing.
                if listener.accept().is_err() {
                    thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Listening { ends, accepts: Some(accepts) }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(accepts) = self.accepts.take() {
            let _ = accepts.join();
        }
    }
}

/// What a port does with a client.
pub const BARRED: [(u16, &str); 3] =
    [(8003, "drop"), (8004, "reject with icmpx type admin-prohibited"), (8005, "reject with tcp reset")];

/// Has the server's firewall do that.
pub fn bar(namespace: &Namespace) {
    namespace.sh("nft 'add table inet bar; add chain inet bar input { type filter hook input priority 0; }'");
    for (port, does) in BARRED {
        namespace.sh(&format!("nft add rule inet bar input tcp dport {port} {does}"));
    }
}

/// Has it stop that.
pub fn unbar(namespace: &Namespace) {
    namespace.sh("nft delete table inet bar");
}
