//! What stands in the middle, one after the other: nothing but a bridge, relays of our own, relays of others, and the box.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use harness::leftovers;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use unit::netns::{self, Appliance, Backend, Rig};

use crate::client::{self, Entry, Line};
use crate::server;

/// Where clients find a relay, or the box's service.
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

/// Whose address a relay has towards the server.
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 200);

/// How long a relay may take to stand.
const PATIENCE: Duration = Duration::from_secs(15);

/// The candidates, side by side in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arm {
    /// The kernel's bridge: no relay at all. The limit.
    NoRelay,
    /// The box as a service that routes by name, with established connections handed down to programs at tc.
    KernelTc,
    /// The same, handed down to the XDP programs.
    KernelXdp,
    /// The same, everything in its worker, on AF_XDP.
    User,
    /// `read` and `write`.
    ReadWrite,
    /// `splice(2)` with pooled pipes.
    Splice,
    /// io_uring, multishot receives.
    Uring,
    /// The same, with sends that do not copy.
    UringZeroCopy,
    /// SOCKMAP.
    SockMap,
    /// HAProxy, routing by TLS server name.
    HaProxy,
    /// nginx, routing by TLS server name.
    Nginx,
    /// dante, by SOCKS 5.
    Dante,
    /// shadowsocks-libev, which encrypts between the client's host and the middle: for scale.
    Shadowsocks,
}

impl Arm {
    pub const ALL: [Arm; 13] = [
        Arm::NoRelay,
        Arm::KernelTc,
        Arm::KernelXdp,
        Arm::User,
        Arm::ReadWrite,
        Arm::Splice,
        Arm::Uring,
        Arm::UringZeroCopy,
        Arm::SockMap,
        Arm::HaProxy,
        Arm::Nginx,
        Arm::Dante,
        Arm::Shadowsocks,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Arm::NoRelay => "no relay",
            Arm::KernelTc => "ours, kernel (tc)",
            Arm::KernelXdp => "ours, kernel (XDP)",
            Arm::User => "ours, user space",
            Arm::ReadWrite => "read/write",
            Arm::Splice => "splice",
            Arm::Uring => "io_uring",
            Arm::UringZeroCopy => "io_uring, zero copy",
            Arm::SockMap => "SOCKMAP",
            Arm::HaProxy => "HAProxy",
            Arm::Nginx => "nginx",
            Arm::Dante => "dante",
            Arm::Shadowsocks => "shadowsocks",
        }
    }

    /// Whether it can be told never to sleep.
    pub fn can_spin(self) -> bool {
        matches!(self, Arm::User | Arm::ReadWrite | Arm::Splice | Arm::Uring | Arm::UringZeroCopy | Arm::HaProxy)
    }

    /// Whether it leads connections with TLS of their own to their server.
    pub fn is_routed_to_tls(self) -> bool {
        self.is_routed() && self != Arm::ReadWrite
    }

    /// Whether it is asked how many connections it routes; what has no routes stands beside.
    pub fn is_routed(self) -> bool {
        !matches!(self, Arm::Splice | Arm::Uring | Arm::UringZeroCopy | Arm::SockMap | Arm::Dante | Arm::Shadowsocks)
    }
}

/// The box's configuration: a service that routes by name. `fast_path` is put in front of it.
const SERVICE: &str = include_str!("peers/synproxy.conf");

/// What the others are told.
const HAPROXY: &str = include_str!("peers/haproxy.cfg");
const NGINX: &str = include_str!("peers/nginx.conf");
const DANTE: &str = include_str!("peers/danted.conf");
const SHADOWSOCKS: &str = include_str!("peers/shadowsocks.json");

/// An arm that stands.
pub struct Stood<'a> {
    rig: &'a Rig,
    entry: Entry,
    running: Vec<Running>,
    appliance: Option<Appliance>,
    files: Vec<PathBuf>,
}

impl<'a> Stood<'a> {
    /// Puts it into the middle; `spins` if it shall never sleep.
    pub fn stand(rig: &'a Rig, arm: Arm, spins: bool) -> io::Result<Stood<'a>> {
        let entry = Entry { address: SocketAddrV4::new(RELAY, server::PORT), by_socks: false };
        let mut stood = Stood { rig, entry, running: Vec::new(), appliance: None, files: Vec::new() };
        match arm {
            Arm::NoRelay => {
                rig.bridge();
                stood.entry.address = client::server();
            }
            Arm::KernelTc => {
                let config = format!("fast_path = tc;\n{SERVICE}");
                stood.appliance = Some(Appliance::start_with(rig, Backend::Packet, &config, &[]));
            }
            Arm::KernelXdp => {
                // An XDP program sees what a wire carries: checksums and segments that are finished. And the other end of a veth takes what it
                // redirects only with GRO.
                for (host, port) in [(&rig.client, "c0"), (&rig.server, "s0")] {
                    host.sh(&format!("ethtool -K {port} gro on tx off >/dev/null"));
                }
                let config = format!("fast_path = xdp;\n{SERVICE}");
                stood.appliance = Some(Appliance::start_with(rig, Backend::Driver, &config, &[]));
            }
            Arm::User => {
                let poll: &[&str] = if spins { &["--poll=busy"] } else { &[] };
                stood.appliance = Some(Appliance::start_with(rig, Backend::Driver, SERVICE, poll));
            }
            Arm::ReadWrite => stood.relay("read-write", spins),
            Arm::Splice => stood.relay("splice", spins),
            Arm::Uring => stood.relay("uring", spins),
            Arm::UringZeroCopy => stood.relay("uring-zero-copy", spins),
            Arm::SockMap => stood.relay("sockmap", spins),
            Arm::HaProxy => {
                let text = if spins { HAPROXY.replace("# BUSY", "busy-polling") } else { HAPROXY.to_owned() };
                let file = stood.file("haproxy.cfg", &text);
                stood.peer("haproxy", &["-db", "-f", &file]);
            }
            Arm::Nginx => {
                let pid = leftovers::file("nginx.pid");
                let file = stood.file("nginx.conf", &NGINX.replace("PID", &pid.display().to_string()));
                stood.files.push(pid);
                stood.peer("nginx", &["-c", &file]);
            }
            Arm::Dante => {
                let (file, pid) = (stood.file("danted.conf", DANTE), leftovers::file("danted.pid"));
                stood.peer("danted", &["-f", &file, "-p", &pid.display().to_string()]);
                stood.files.push(pid);
                stood.entry = Entry { address: SocketAddrV4::new(RELAY, 1080), by_socks: true };
            }
            Arm::Shadowsocks => {
                let file = stood.file("shadowsocks.json", SHADOWSOCKS);
                stood.peer("ss-server", &["-c", &file]);
                // The client's half of it, on the client's host.
                let (local, server) = (SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1081), client::server().to_string());
                let mut command = rig.client.command("ss-tunnel");
                command.args(["-c", &file, "-b", "127.0.0.1", "-l", "1081", "-L", &server]);
                stood.running.push(Running::start(command.stdout(Stdio::null()).stderr(Stdio::null())));
                stood.entry.address = local;
            }
        }
        stood.wait()?;
        Ok(stood)
    }

    /// How clients get to the server.
    pub fn entry(&self) -> Entry {
        self.entry
    }

    /// Gives the middle addresses of its own: one towards the clients, one towards the server.
    fn address(&self) {
        let (client, server) = (netns::CLIENT_V4, netns::SERVER_V4);
        self.rig.middle.sh(&format!(
            "ip addr add {RELAY}/32 dev {wan}
             ip addr add {BEHIND}/32 dev {lan}
             ip route add {client} dev {wan} src {RELAY}
             ip route add {server} dev {lan} src {BEHIND}",
            wan = Rig::WAN,
            lan = Rig::LAN,
        ));
        // As the hosts: some machines' default is one that paces by timers.
        self.rig.middle.sysctl("net.ipv4.tcp_congestion_control", "reno");
        self.rig.middle.sysctl("net.ipv4.tcp_no_metrics_save", "1");
        self.rig.middle.sysctl("net.ipv4.ip_local_port_range", "10000 65000");
    }

    /// A relay of our own: this program once more.
    fn relay(&mut self, kind: &str, spins: bool) {
        self.address();
        let program = std::env::current_exe().expect("a program knows where it lies");
        let mut command = self.rig.middle.command(program);
        command.args(["relay", kind, &self.entry.address.to_string(), &client::server().to_string(), "1"]);
        command.args(spins.then_some("spin"));
        let mut running = Running::start(command.stdout(Stdio::piped()));
        let mut line = String::new();
        let said = running.0.stdout.take().expect("piped");
        let _ = BufReader::new(said).read_line(&mut line);
        assert_eq!(line, "ready\n", "the relay {kind} does not stand");
        self.running.push(running);
    }

    /// A program of others, in the middle.
    fn peer(&mut self, program: &str, arguments: &[&str]) {
        self.address();
        let mut command = self.rig.middle.command(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        self.running.push(Running::start(&mut command));
    }

    /// A file that goes with the arm.
    fn file(&mut self, role: &str, text: &str) -> String {
        let path = leftovers::file(role);
        fs::write(&path, text).expect("a file of one's own");
        self.files.push(path.clone());
        path.to_str().expect("a name of ours").to_owned()
    }

    /// Waits until a connection through it works.
    fn wait(&self) -> io::Result<()> {
        let begin = Instant::now();
        loop {
            match self.rig.client.run(|| Line::open(self.entry)) {
                Ok(_) => return Ok(()),
                Err(error) if begin.elapsed() > PATIENCE => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

impl Drop for Stood<'_> {
    fn drop(&mut self) {
        // A box puts interfaces back, and says what it has left to the kernel.
        match self.appliance.take() {
            Some(appliance) if !thread::panicking() && appliance.runs() => {
                let report = appliance.stop();
                let figures =
                    ["handed-down", "handed-up", "not-handed-down", "kernel-forwarded", "kernel-not-finished"];
                let told = figures.map(|name| format!("{name} {}", report.figure(name).unwrap_or(0)));
                eprintln!("  {}", told.join(", "));
                if std::env::var_os("SPLICE_LOG").is_some() {
                    report.log.iter().for_each(|line| eprintln!("    {line}"));
                }
            }
            other => drop(other),
        }
        self.running.clear();
        self.files.iter().for_each(|file| drop(fs::remove_file(file)));
    }
}

/// A program that ends with its arm.
pub struct Running(Child);

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> Running {
        Running(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Some have children, which they end themselves when they may.
        let _ = signal::kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(3) && matches!(self.0.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
