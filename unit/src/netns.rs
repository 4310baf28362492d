//! Three network namespaces in a row: a client on the WAN, the box between, a server on the LAN. The kernel's TCP at
//! both ends is the judge; [`appliance`] puts the proxy into the box, [`traffic`] makes and checks the bytes, and
//! [`counters`] reads what the kernels noticed.
//!
//! ```text
//!   client namespace          box namespace           server namespace
//!   c0 10.77.0.1 ──────────── wan0   lan0 ──────────── s0 10.77.0.2
//!      fd77::1                                            fd77::2
//! ```
//!
//! Needs root. What a killed test leaves behind, the next one removes: see [`harness::leftovers`].

pub mod appliance;
pub mod big_tcp;
pub mod card;
pub mod counters;
pub mod mangle;
pub mod relay;
pub mod routers;
pub mod sockets;
pub mod tags;
pub mod tap;
pub mod tcp_info;
pub mod traffic;

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use harness::{leftovers, note};
use nix::sched::{CloneFlags, setns};
use pktio::impair::Impairment;

pub use appliance::{Appliance, Backend, CACHE_OFF, CACHE_ON, MIDDLES, Report, stand};
pub use card::Card;
pub use counters::Counters;
pub use relay::Relay;
pub use tags::Tag;
pub use tap::{Tap, TimedTap};
pub use tcp_info::TcpInfo;

/// Waits until `condition` holds, and returns how long that took. What a box publishes from time to time (its counters, the counts of its modes) is asked for
/// so.
///
/// # Panics
///
/// If it does not hold within `patience`, with `what`.
pub fn within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < patience, "not within {patience:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
    begin.elapsed()
}

/// Whether a process has ended, be it that nobody has waited for it yet: one that lost its parent is waited for by init, in its own time.
pub fn has_ended(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// The client's addresses.
pub const CLIENT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
/// The client's addresses.
pub const CLIENT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));
/// The server's addresses.
pub const SERVER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
/// The server's addresses.
pub const SERVER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));
/// Addresses at which nobody is: the neighbour entry is there, the host is not.
pub const NOBODY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 9));
/// Addresses at which nobody is: the neighbour entry is there, the host is not.
pub const NOBODY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 9));
/// The Ethernet address of the client.
pub const CLIENT_MAC: &str = "02:00:00:00:00:c1";
/// The Ethernet address of the server.
pub const SERVER_MAC: &str = "02:00:00:00:00:51";

/// See [`Namespace::name_hosts`].
pub struct Hosts(PathBuf);

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One network namespace of our own; gone when dropped, with every interface in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
}

impl Namespace {
    /// Makes an empty namespace; `role` ends its name. Its loopback is up.
    ///
    /// # Panics
    /// Without root or without `ip`.
    pub fn new(role: &str) -> Namespace {
        harness::needs_root();
        let name = leftovers::name(role);
        let handle = {
            let _making = leftovers::making();
            sh(&format!("ip netns add {name}"));
            File::open(Path::new(leftovers::NAMES).join(&name)).expect("a namespace just made can be opened")
        };
        let namespace = Namespace { name, handle };
        namespace.sh("ip link set lo up");
        // Nothing else here: no duplicate address detection to wait for, no routers to ask for.
        for key in ["accept_dad", "dad_transmits", "router_solicitations", "accept_ra"] {
            namespace.sysctl(&format!("net.ipv6.conf.default.{key}"), "0");
        }
        namespace
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside. Sockets opened there stay inside wherever they are used afterwards.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET).expect("entering one's own namespace");
                work()
            });
            // A panic inside is the caller's panic, with its own message.
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Gives programs that are started inside from now on their own `/etc/hosts`, and no name server that answers, until what is returned is dropped.
    ///
    /// # Panics
    /// If `/etc/netns` cannot be written.
    pub fn name_hosts(&self, hosts: &str) -> Hosts {
        let folder = Path::new("/etc/netns").join(&self.name);
        fs::create_dir_all(&folder).expect("a folder below /etc/netns");
        fs::write(folder.join("hosts"), hosts).expect("writing names of hosts");
        fs::write(folder.join("resolv.conf"), "nameserver 127.0.0.1\n").expect("writing a name server");
        Hosts(folder)
    }

    /// A command that will run inside, with `/sys` of this namespace, and that ends when the thread that starts it
    /// does: what a test forgets to stop does not outlive it.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "setpriv", "--pdeathsig", "TERM", "--"]).arg(program.as_ref());
        command.stdin(Stdio::null());
        command
    }

    /// Runs a shell line inside and returns what it printed.
    ///
    /// # Panics
    /// If it fails; the message has the line and its complaint.
    pub fn sh(&self, line: &str) -> String {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "sh", "-ec", line]);
        output(command, line)
    }

    /// Sets a sysctl of this namespace, named with dots.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        self.run(|| fs::write(&path, value).unwrap_or_else(|error| panic!("{} = {value}: {error}", path.display())));
    }

    /// What the kernel has counted here so far.
    pub fn counters(&self) -> Counters {
        self.run(Counters::read)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing to do about a failure; the next sweep tries again.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
        // What a box that was killed has noted of the interfaces that were here.
        let Ok(own) = self.handle.metadata() else { return };
        let noted = fs::read_dir(pktio::netdev::DIRECTORY).into_iter().flatten().flatten();
        let is_own = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().ends_with(&format!("@{}", own.ino()));
        let is_noted = |entry: &fs::DirEntry| {
            ["port-", "host-"].iter().any(|prefix| entry.file_name().to_string_lossy().starts_with(prefix))
        };
        for entry in noted.filter(|entry| is_own(entry) && is_noted(entry)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The three namespaces and the two cables between them.
#[derive(Debug)]
pub struct Rig {
    /// Where the clients live: everybody else.
    pub client: Namespace,
    /// Where the servers live: what is protected.
    pub server: Namespace,
    /// Where the appliance stands, with interfaces [`Rig::WAN`] and [`Rig::LAN`] and no address.
    pub middle: Namespace,
    /// The queues of every interface, and so the workers of the appliance.
    queues: u32,
    is_alone: bool,
}

impl Rig {
    /// The box's interface towards the clients.
    pub const WAN: &str = "wan0";
    /// The box's interface towards the servers.
    pub const LAN: &str = "lan0";

    /// Makes the namespaces, with Ethernet of 1500 bytes.
    ///
    /// # Panics
    /// Without root, `ip` or `ethtool`.
    pub fn new() -> Rig {
        Rig::with_mtu(1500)
    }

    /// As [`Rig::new`], with cables that carry packets of `mtu` bytes.
    ///
    /// # Panics
    /// As [`Rig::new`].
    pub fn with_mtu(mtu: u32) -> Rig {
        Rig::build(mtu, queues(), false)
    }

    /// As [`Rig::new`], with interfaces of one queue whatever `QUEUES` says: for what depends on how much memory a box takes.
    ///
    /// # Panics
    /// As [`Rig::new`].
    pub fn of_one_queue() -> Rig {
        Rig::build(1500, 1, false)
    }

    /// As [`Rig::new`], with no other rig beside it: for floods and timing.
    ///
    /// # Panics
    /// As [`Rig::new`], and in a test that is not marked `#[test(alone)]`.
    pub fn alone() -> Rig {
        Rig::queued(queues())
    }

    /// As [`Rig::alone`], with interfaces of this many queues. The one a frame arrives on is the one its sender chose, which knows
    /// nothing of connections: their two directions rarely meet. Without, `QUEUES` of the environment says how many, or one.
    ///
    /// # Panics
    /// As [`Rig::alone`].
    pub fn queued(queues: u32) -> Rig {
        assert!(harness::may_be_alone(), "a test that needs the machine to itself is marked `#[test(alone)]`");
        Rig::build(1500, queues, true)
    }

    /// Whether no other rig is up.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// Another rig of the same test, to be compared with this one at the same time.
    #[must_use]
    pub fn beside(&self) -> Rig {
        Rig::build(1500, self.queues, false)
    }

    fn build(mtu: u32, queues: u32, is_alone: bool) -> Rig {
        // A compiler at work between two steps of a test would be a pause of seconds in it.
        programs();
        let rig = Rig {
            client: Namespace::new("client"),
            server: Namespace::new("server"),
            middle: Namespace::new("box"),
            queues,
            is_alone,
        };
        let several = queue_counts(queues);
        // The box owns no address, not even a link-local one.
        rig.middle.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
        rig.middle.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
        let ends = [
            (&rig.client, "c0", CLIENT_MAC, Rig::WAN, CLIENT_V4, CLIENT_V6),
            (&rig.server, "s0", SERVER_MAC, Rig::LAN, SERVER_V4, SERVER_V6),
        ];
        for (host, outer, mac, inner, v4, v6) in ends {
            rig.middle.sh(&format!(
                "ip link add {inner} {several} mtu {mtu} type veth peer name {outer} {several} mtu {mtu} address {mac} netns {}
                 ip link set {inner} up",
                host.name
            ));
            // On veth, a segment whose checksum is left to the hardware would cross the box with half a checksum, and a
            // tag in metadata would be lost: the end hosts do both themselves, as a wire demands.
            host.sh(&format!(
                "ethtool -K {outer} tx off txvlan off >/dev/null
                 ip link set {outer} up
                 ip addr add {v4}/24 dev {outer}
                 ip addr add {v6}/64 dev {outer} nodad
                 ip neigh add {NOBODY_V4} lladdr 02:00:00:00:00:dd dev {outer}
                 ip neigh add {NOBODY_V6} lladdr 02:00:00:00:00:dd dev {outer}"
            ));
            // Whatever the machine's default is; of the others, only Reno may be chosen in every namespace.
            host.sysctl("net.ipv4.tcp_congestion_control", "reno");
            host.sysctl("net.ipv4.tcp_no_metrics_save", "1");
            // A veth end takes 256 frames in one go and silently loses more: no sender may have so many on the way.
            host.sysctl("net.ipv4.tcp_wmem", "4096 65536 262144");
            // Thousands of short connections to one port, without waiting for old ones to be forgotten.
            host.sysctl("net.ipv4.ip_local_port_range", "10000 65000");
        }
        rig
    }

    /// The same rig, whose hosts leave checksums and segmentation to their interfaces, as `ip link add` makes them; and tags, unless
    /// they are to be in the frame.
    ///
    /// # Panics
    /// Without `ethtool`.
    #[must_use]
    pub fn with_default_offloads(self, tags_in_frame: bool) -> Rig {
        let tags = if tags_in_frame { "" } else { "txvlan on tx-vlan-stag-hw-insert on" };
        for (host, interface) in [(&self.client, "c0"), (&self.server, "s0")] {
            host.sh(&format!("ethtool -K {interface} tx on sg on tso on gso on {tags} >/dev/null"));
        }
        self
    }

    /// The argument by which a box has a worker for each queue, where there are several. With fewer it would take queues from its interfaces, and a veth
    /// whose peer has more would take no program in its driver any more.
    pub fn workers(&self) -> Option<String> {
        (self.queues > 1).then(|| format!("--workers={}", self.queues))
    }

    /// The queues of every interface.
    pub fn queues(&self) -> u32 {
        self.queues
    }

    /// What `ip link add` is told for each end of a veth pair, so that it has as many queues.
    pub fn queue_counts(&self) -> String {
        queue_counts(self.queues)
    }

    /// Puts a bad network between the client and the box, until the relay is dropped; see [`relay`].
    ///
    /// # Panics
    /// Without root.
    pub fn impair(&self, impairment: Impairment, seed: u64) -> Relay {
        self.impair_port(Rig::WAN, impairment, seed)
    }

    /// Puts a bad network at [`Rig::WAN`] or [`Rig::LAN`], until the relay is dropped.
    ///
    /// # Panics
    /// Without root.
    pub fn impair_port(&self, port: &str, impairment: Impairment, seed: u64) -> Relay {
        // The cable that was: c0 to wan0. Two now: c0 to near0, far0 to wan0.
        let (relay, several) = (Namespace::new("relay"), queue_counts(self.queues));
        relay.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
        self.middle.sh(&format!("ip link set {port} netns {} name near0", relay.name()));
        self.middle.sh(&format!(
            "ip link add {port} {several} type veth peer name far0 {several} netns {}; ip link set {port} up; ethtool -K {port} tx off >/dev/null",
            relay.name()
        ));
        relay.sh("ip link set near0 up; ip link set far0 up; ethtool -K near0 tx off >/dev/null; ethtool -K far0 tx off >/dev/null");
        Relay::start(relay, ["near0", "far0"], impairment, seed)
    }

    /// Puts the kernel's own bridge into the middle: what a plain wire would do.
    ///
    /// # Panics
    /// If the kernel has no bridge.
    pub fn bridge(&self) {
        let (lan, wan) = (Rig::LAN, Rig::WAN);
        self.middle.sh(&format!(
            "ip link add name bridge0 type bridge forward_delay 0 mcast_snooping 0
             ip link set {lan} master bridge0
             ip link set {wan} master bridge0
             ip link set bridge0 up"
        ));
    }

    /// Takes the kernel's bridge out again.
    ///
    /// # Panics
    /// If there is none.
    pub fn unbridge(&self) {
        self.middle.sh("ip link del bridge0");
    }

    /// Sets a sysctl at both ends.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.client.sysctl(key, value);
        self.server.sysctl(key, value);
    }

    /// Runs `work`, then asks both kernels what they thought of it: no fault at either end (see [`counters::FAULTS`]),
    /// no more resets sent than `resets` (by the client, by the server), and not every fifth segment sent twice.
    /// That bytes arrive proves little: with SACK blocks or echoes left untranslated they do, thousands of times slower.
    ///
    /// # Panics
    /// If a kernel has cause to complain.
    pub fn judge<T>(&self, resets: [i64; 2], work: impl FnOnce() -> T) -> T {
        judge([&self.client, &self.server], resets, work)
    }

    /// So many bytes go to and fro over a new connection of each family, opened from each side; no host has cause to complain.
    ///
    /// # Panics
    /// As [`Rig::judge`], and if a connection fails.
    pub fn exchange_every_way(&self, bytes: u64) {
        for (client, server) in [(CLIENT_V4, SERVER_V4), (CLIENT_V6, SERVER_V6)] {
            for (from, to, address) in [(&self.client, &self.server, server), (&self.server, &self.client, client)] {
                let service = to.serve(address, 0, traffic::exchanged);
                self.judge([0, 0], || {
                    let stream = from.connect(service.address).expect("connecting");
                    let speeds = traffic::exchange(&stream, bytes, bytes).expect("bulk");
                    note!("{address}: {:.0} and {:.0} Mbit/s", speeds[0], speeds[1]);
                });
            }
        }
    }

    /// Counters of client and server, in this order.
    pub fn counters(&self) -> [Counters; 2] {
        [self.client.counters(), self.server.counters()]
    }
}

impl Default for Rig {
    fn default() -> Rig {
        Rig::new()
    }
}

/// [`Rig::judge`], for a client and a server that are no part of a rig.
///
/// # Panics
/// As [`Rig::judge`].
pub fn judge<T>(ends: [&Namespace; 2], resets: [i64; 2], work: impl FnOnce() -> T) -> T {
    let before = ends.map(Namespace::counters);
    let result = work();
    // The last acknowledgements are still on their way.
    thread::sleep(Duration::from_millis(100));
    let after = ends.map(Namespace::counters);
    let risen = [after[0].since(&before[0]), after[1].since(&before[1])];
    // On a crowded machine even a plain wire makes a sender impatient, and what is sent again is acknowledged again: to one who has
    // closed meanwhile, and whose kernel then knows of no connection.
    let sent_again: i64 = risen.iter().map(|end| end.get("TcpRetransSegs")).sum();
    for (at, (end, resets)) in ["client", "server"].iter().zip(resets).enumerate() {
        let (own, other) = (&risen[at], &risen[1 - at]);
        let faults = own.excused(other).faults(resets + sent_again);
        assert!(faults.is_empty(), "the {end}'s kernel noticed {}; in all {}", faults.join(", "), own.tell());
        let (sent, again) = (own.get("TcpOutSegs"), own.get("TcpRetransSegs"));
        // Many times that is another matter.
        assert!(again <= 50 + sent / 5, "the {end} sent {again} of {sent} segments again");
    }
    result
}

/// How many queues the interfaces of a rig have: `QUEUES` of the environment, or one.
///
/// # Panics
/// If it is no number.
fn queues() -> u32 {
    std::env::var("QUEUES").map_or(1, |queues| queues.parse().expect("QUEUES is a number"))
}

/// What `ip link add` is told of them.
fn queue_counts(queues: u32) -> String {
    if queues > 1 { format!("numtxqueues {queues} numrxqueues {queues}") } else { String::new() }
}

/// The path of a program of this workspace, built as it is needed.
///
/// `SYNPROXY_BIN_DIR` names a directory with ready programs instead.
///
/// # Panics
/// If it cannot be built; the message says how to try by hand.
pub fn program(name: &str) -> PathBuf {
    let path = programs().join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace --bins` first", path.display());
    path
}

/// Where the programs lie; they are brought up to date first, once a process.
///
/// # Panics
/// If they cannot be built.
pub fn programs() -> PathBuf {
    static BUILD: Once = Once::new();
    std::env::var_os("SYNPROXY_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        // target/debug/deps/this_test: programs lie one directory up.
        let test = std::env::current_exe().expect("a test knows where it lies");
        let profile = test.parent().and_then(Path::parent).expect("a test lies in target/PROFILE/deps");
        BUILD.call_once(|| build(profile));
        profile.to_owned()
    })
}

/// Brings the programs up to date, which `cargo test -p unit` does not. `cargo test --workspace` has built these very ones already, with the
/// same features: then there is nothing to do. Cargo sets `CARGO` for the tests it runs; without it, what is there is taken.
fn build(profile: &Path) {
    let (Some(cargo), Some(target)) = (std::env::var_os("CARGO"), profile.parent()) else { return };
    let name = match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace");
    let mut command = Command::new(cargo);
    command.args(["build", "--workspace", "--bins", "--profile", name]);
    command.arg("--target-dir").arg(target).current_dir(root).stdin(Stdio::null());
    // What it says is shown: it may take minutes.
    let status = command.status().expect("cargo can be started");
    assert!(status.success(), "cargo build --workspace --bins: {status}");
}

/// Runs a shell line in this very namespace.
fn sh(line: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", line]);
    output(command, line)
}

fn output(mut command: Command, what: &str) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{what}: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{what}` failed, {}: {complaint}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
