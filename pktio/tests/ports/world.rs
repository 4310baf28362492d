//! Three network namespaces of a test's own: a LAN host, a box with two ports, a WAN host; and a plain bridge to run there.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use harness::leftovers;
use pktio::{Batch, Pair, PortStatistics, wait};

/// Address of the LAN host.
pub const LAN: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// Address of the WAN host.
pub const WAN: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// What to make of the links between hosts and box.
#[derive(Clone, Copy)]
pub struct Links {
    pub mtu: u32,
    pub queues: u32,
    /// The hosts leave checksums, tags and segmentation to their interface, as `ip link add` makes it.
    pub offloads: bool,
}

impl Default for Links {
    fn default() -> Self {
        Links { mtu: 1500, queues: 1, offloads: false }
    }
}

/// The three namespaces; they go with this value. The box's ports are `lan` and `wan`, the hosts' interface is `e0`.
pub struct World {
    prefix: String,
}

impl World {
    pub fn new(links: Links) -> World {
        harness::needs_root();
        let world = World { prefix: leftovers::name("ports") };
        {
            let _making = leftovers::making();
            for role in ["lan", "box", "wan"] {
                run(&format!("ip netns add {}", world.namespace(role)));
            }
        }
        let (mtu, queues) = (links.mtu, links.queues);
        for (side, address) in [("lan", LAN), ("wan", WAN)] {
            let host = world.namespace(side);
            let inside = world.namespace("box");
            // Nothing but the tests' own traffic: no IPv6 that solicits routers.
            run(&format!("ip netns exec {host} sysctl -qw net.ipv6.conf.default.disable_ipv6=1"));
            run(&format!("ip netns exec {inside} sysctl -qw net.ipv6.conf.default.disable_ipv6=1"));
            run(&format!(
                "ip -n {inside} link add {side} mtu {mtu} numtxqueues {queues} numrxqueues {queues} type veth \
                 peer name e0 mtu {mtu} numtxqueues {queues} numrxqueues {queues} netns {host}"
            ));
            // A veth passes unfinished checksums and tags beside the frame; on a wire there is neither.
            if !links.offloads {
                run(&format!("ip netns exec {host} ethtool -K e0 tx off txvlan off"));
            }
            run(&format!("ip -n {inside} link set {side} up"));
            run(&format!("ip -n {host} link set e0 up"));
            run(&format!("ip -n {host} addr add {address}/24 dev e0"));
        }
        world
    }

    /// A tap of the namespace `box` with these flags too, or a further queue of it.
    pub fn open_tap(&self, name: &'static str, flags: libc::c_int) -> File {
        /// `struct ifreq` of `TUNSETIFF`.
        #[repr(C)]
        struct Request {
            name: [u8; 16],
            flags: u16,
            rest: [u8; 22],
        }
        const TUNSETIFF: libc::Ioctl = 0x4004_54ca as libc::Ioctl;
        let tap = self.within("box", move || {
            let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("the kernel has taps");
            let flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as u16;
            let mut request = Request { name: [0; 16], flags, rest: [0; 22] };
            request.name[..name.len()].copy_from_slice(name.as_bytes());
            // SAFETY: the request is a whole ifreq, which outlives the call.
            let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            file
        });
        tap.join().unwrap()
    }

    pub fn namespace(&self, role: &str) -> String {
        format!("{}-{role}", self.prefix)
    }

    /// Runs `work` on a thread of its own inside a namespace.
    pub fn within<T: Send + 'static>(&self, role: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let path = format!("/run/netns/{}", self.namespace(role));
        std::thread::spawn(move || {
            let namespace = File::open(&path).expect("the namespace is there");
            // SAFETY: the descriptor is open; only this thread changes its namespace.
            let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "{path}: {}", std::io::Error::last_os_error());
            work()
        })
    }

    /// Runs a command in a namespace and returns what it printed.
    pub fn run(&self, role: &str, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.namespace(role)))
    }

    /// How many of `count` pings from the WAN host to the LAN host are answered.
    pub fn ping(&self, count: u32) -> u32 {
        self.ping_from("wan", LAN, count)
    }

    /// How many of `count` pings from a host are answered, the last within five seconds.
    pub fn ping_from(&self, role: &str, target: Ipv4Addr, count: u32) -> u32 {
        self.answered_within(5, role, target, count)
    }

    /// How many of `count` pings from a host are answered where hardly any should be, the last within a second.
    pub fn strays(&self, role: &str, target: Ipv4Addr, count: u32) -> u32 {
        self.answered_within(1, role, target, count)
    }

    fn answered_within(&self, seconds: u32, role: &str, target: Ipv4Addr, count: u32) -> u32 {
        let namespace = self.namespace(role);
        let arguments = format!("netns exec {namespace} ping -n -q -i 0.02 -W {seconds} -c {count} {target}");
        let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip is installed");
        let text = String::from_utf8_lossy(&output.stdout);
        let received = text.split(", ").find_map(|part| part.strip_suffix(" received"));
        received.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("ping said {text:?}"))
    }

    /// Sends `bytes` patterned bytes over TCP from the WAN host to the LAN host, and back again.
    pub fn transfer(&self, bytes: usize) {
        let address = SocketAddr::from((LAN, 5001));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let server = self.within("lan", move || {
            let listener = TcpListener::bind(address).unwrap();
            ready.send(()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut data = vec![0; bytes];
            stream.read_exact(&mut data).unwrap();
            stream.write_all(&data).unwrap();
        });
        is_ready.recv_timeout(Duration::from_secs(5)).unwrap();
        let client = self.within("wan", move || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let pattern: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
            let expected = pattern.clone();
            let mut writer = stream.try_clone().unwrap();
            let writer = std::thread::spawn(move || writer.write_all(&pattern).unwrap());
            let mut back = vec![0; bytes];
            stream.read_exact(&mut back).unwrap();
            writer.join().unwrap();
            assert!(back == expected, "the bytes came back changed");
        });
        client.join().unwrap();
        server.join().unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for role in ["lan", "box", "wan"] {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(role)]).output();
        }
    }
}

/// Runs a command and returns what it printed.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a command");
    let output = Command::new(program).args(words).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a bridge has moved, at its end.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    pub lan: PortStatistics,
    pub wan: PortStatistics,
}

/// Moves frames between the ports of `pair` until told to stop, then checks that none is lost.
pub fn bridge(mut pair: Pair, stop: &AtomicBool) -> Pair {
    let mut batch = Batch::new();
    while !stop.load(Ordering::Relaxed) {
        let mut moved = pair.lan.receive(&mut batch, 64, &mut pair.pool);
        pair.wan.transmit(&mut batch, &mut pair.pool);
        batch.drain(..).for_each(|frame| pair.pool.put(frame));
        moved += pair.wan.receive(&mut batch, 64, &mut pair.pool);
        pair.lan.transmit(&mut batch, &mut pair.pool);
        batch.drain(..).for_each(|frame| pair.pool.put(frame));
        pair.lan.flush(&mut pair.pool);
        pair.wan.flush(&mut pair.pool);
        if moved == 0 {
            wait([&*pair.lan, &*pair.wan], Some(Duration::from_millis(20))).unwrap();
        }
    }
    assert_conserved(&pair);
    pair
}

/// With no frame in hand, every frame is idle or in a ring.
pub fn assert_conserved(pair: &Pair) {
    assert_eq!(pair.pool.idle() + pair.pool.lent(), pair.pool.total(), "frames are lost");
}

/// Bridges that run on threads until stopped.
pub struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Pair>>,
}

impl Running {
    pub fn start(pairs: Vec<Pair>) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |pair: Pair| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || bridge(pair, &stop))
        };
        Running { threads: pairs.into_iter().map(start).collect(), stop }
    }

    pub fn stop(self) -> Vec<Moved> {
        let moved = |pair: Pair| Moved { lan: pair.lan.statistics(), wan: pair.wan.statistics() };
        self.pairs().into_iter().map(moved).collect()
    }

    /// Stops, and leaves the ports open.
    pub fn pairs(mut self) -> Vec<Pair> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).map(|thread| thread.join().unwrap()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The lines of `text` as a set, for comparing settings before and after.
pub fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(|line| line.trim().to_owned()).collect()
}
