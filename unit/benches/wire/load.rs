//! The generator at work: a thread that sends until it is told to stop, and what is measured meanwhile.

use std::io;
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use nix::unistd::Pid;
use tools::flood_template::{Kind, Sources, Target};
use tools::xdp_generator::{ATTACKER, Sink, XdpGenerator};
use unit::netns::{self, Namespace, Rig};

use crate::machine;
use crate::middle::{Middle, OwnWords, Stood};

/// The port that is flooded, and where the echo listens.
pub const PORT: u16 = 80;

/// Frames a load sends if nobody stops it: bounded whatever happens.
const MOST: u32 = 200_000_000;

/// Connections whose segments are repeated.
const CONNECTIONS: usize = 64;

/// Bytes of data in each such segment: 98 on the wire with timestamps.
const WORD: [u8; 32] = [0x77; 32];

/// The number of an interface in the calling thread's namespace.
pub fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("an interface of the rig")
}

/// A load that runs until it is stopped.
pub struct Running {
    live: Arc<XdpGenerator>,
    stop: Arc<AtomicBool>,
    task: u32,
    thread: JoinHandle<io::Result<()>>,
}

impl Running {
    /// Starts it on the last core: before all others, or, if it is to be `gentle`, in what time they leave, so that hosts on the same
    /// core, and the kernel's reception there, come first.
    pub fn start(live: XdpGenerator, gentle: bool) -> Running {
        extern "C" fn nothing(_: libc::c_int) {}
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, which is safe at any moment.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("handling a signal");
        let (live, stop, task) = (Arc::new(live), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (at_work, told, who) = (Arc::clone(&live), Arc::clone(&stop), Arc::clone(&task));
        let thread = thread::spawn(move || {
            let mut core = CpuSet::new();
            core.set(thread::available_parallelism().map_or(1, usize::from) - 1).expect("there is a last core");
            sched_setaffinity(Pid::from_raw(0), &core).map_err(io::Error::from)?;
            let none = libc::sched_param { sched_priority: 0 };
            let done = if gentle {
                // SAFETY: the structure outlives the call. Zero is the calling thread alone.
                unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &none) }
            } else {
                // SAFETY: no pointers. Zero is the calling thread alone.
                unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) }
            };
            nix::errno::Errno::result(done)?;
            who.store(machine::own_thread(), Ordering::Release);
            while !told.load(Ordering::Relaxed) {
                at_work.run(MOST)?;
            }
            Ok(())
        });
        while task.load(Ordering::Acquire) == 0 && !thread.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        Running { live, stop, task: task.load(Ordering::Acquire), thread }
    }

    /// Frames made so far.
    pub fn made(&self) -> u64 {
        self.live.count().expect("reading a counter")
    }

    /// Ends it; frames made in all.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        while !self.thread.is_finished() {
            // SAFETY: the thread has not been joined, so its handle is good.
            unsafe { libc::pthread_kill(self.thread.as_pthread_t(), libc::SIGUSR1) };
            thread::sleep(Duration::from_millis(5));
        }
        self.thread.join().expect("the generator does not panic").expect("the generator");
        self.live.count().expect("reading a counter")
    }
}

/// What a load came to.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Millions a second that were offered.
    pub offered: f64,
    /// Millions a second that were dealt with.
    pub mpps: f64,
    /// CPU time of the candidate, nanoseconds for each of these.
    pub own: f64,
    /// CPU time of the whole machine without the generator's, likewise.
    pub machine: f64,
    /// Time of our program between reception and transmission, nanoseconds for each frame it received.
    pub stage: Option<f64>,
}

/// What is measured while a load runs.
struct Window {
    seconds: f64,
    offered: u64,
    done: u64,
    own: Duration,
    busy: Duration,
    generator: Duration,
}

fn watch(stood: Option<&Stood>, load: &Running, done: &dyn Fn() -> u64, window: Duration) -> Window {
    // The first frames find cold caches, and rings to be filled.
    thread::sleep(Duration::from_millis(300));
    let read = || {
        let own = stood.map_or(Duration::ZERO, Stood::time);
        (Instant::now(), load.made(), done(), own, machine::busy(), machine::time_of(load.task))
    };
    let before = read();
    thread::sleep(window);
    let after = read();
    Window {
        seconds: (after.0 - before.0).as_secs_f64(),
        offered: after.1 - before.1,
        done: after.2 - before.2,
        own: after.3 - before.3,
        busy: after.4.saturating_sub(before.4),
        generator: after.5 - before.5,
    }
}

/// The attack on the server's door.
pub fn attack(rig: &Rig, door: [u8; 6], kind: Kind, server: IpAddr, rate: Option<f64>) -> XdpGenerator {
    let target = Target { address: server, port: PORT, mac: door, from_mac: ATTACKER, vlan: None };
    let sources = if server.is_ipv4() { Sources::ANY_V4 } else { Sources::ANY_V6 };
    let mut live = XdpGenerator::flood(kind, target, sources, rate, 0x5eed)
        .expect("the generator, as root, on Linux 5.18 or later");
    rig.client.run(|| live.port(0, index("c0"))).expect("an interface of the rig");
    live
}

/// A sink at an end of the rig.
pub fn sink(namespace: &Namespace, port: &str) -> Sink {
    namespace.run(|| Sink::attach(index(port))).expect("attaching a program to an interface of the rig")
}

/// What the generator reaches alone: its frames are dropped where the box would receive them. Returns millions a second
/// and nanoseconds of CPU time a frame.
pub fn ceiling(window: Duration) -> [f64; 2] {
    let rig = Rig::alone();
    let wall = sink(&rig.middle, Rig::WAN);
    let load = Running::start(attack(&rig, [2; 6], Kind::Syn, netns::SERVER_V4, None), false);
    let window = watch(None, &load, &|| wall.count().expect("reading a counter"), window);
    load.stop();
    [window.done as f64 / window.seconds / 1e6, window.generator.as_nanos() as f64 / window.done.max(1) as f64]
}

/// A flood of one kind against one candidate; `frame_cost` is what the generator spends on a frame, in nanoseconds.
pub fn flood(middle: Middle, kind: Kind, server: IpAddr, window: Duration, frame_cost: f64) -> Rate {
    let rig = Rig::alone();
    let stood = Stood::stand(&rig, middle, true);
    let sinks = [sink(&rig.client, "c0"), sink(&rig.server, "s0")];
    let load = Running::start(attack(&rig, stood.door(), kind, server, None), false);
    let answers = kind == Kind::Syn && middle.protects();
    let done = || match middle {
        // What is not answered is counted by who drops it; ours tells at the end.
        Middle::Nftables if !answers => stood.judged(),
        _ => sinks[usize::from(!answers)].count().expect("reading a counter"),
    };
    let mut window = watch(Some(&stood), &load, &done, window);
    let made = load.stop();
    // What is in the rings is still on its way.
    thread::sleep(Duration::from_millis(50));
    let words = stood.leave();
    if let Some(words) = words
        && middle.protects()
        && !answers
    {
        window.done = (words.received / made as f64 * window.offered as f64) as u64;
    }
    window.rate(frame_cost, words)
}

impl Window {
    fn rate(&self, frame_cost: f64, words: Option<OwnWords>) -> Rate {
        if self.done == 0 {
            eprintln!("of {} frames nothing has come of one: this says nothing of the candidate", self.offered);
        }
        let each = |time: f64| time / self.done.max(1) as f64;
        let generator = frame_cost * self.offered as f64;
        Rate {
            offered: self.offered as f64 / self.seconds / 1e6,
            mpps: self.done as f64 / self.seconds / 1e6,
            own: each(self.own.as_nanos() as f64),
            machine: each((self.busy.as_nanos() as f64 - generator).max(0.0)),
            stage: words.map(|words| words.stage),
        }
    }
}

/// Small segments of established connections, both ways at once: the last segment with data that each end sent, repeated.
pub fn segments(middle: Middle, window: Duration, frame_cost: f64) -> Rate {
    let rig = Rig::alone();
    let stood = Stood::stand(&rig, middle, true);
    let server = crate::hosts::Server::start(&rig);
    let taps = [Tap::open(&rig.client), Tap::open(&rig.server)];
    let streams: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| rig.client.connect((netns::SERVER_V4, PORT).into()).expect("connecting in peace"))
        .collect();
    for stream in &streams {
        // The second time round neither end has anything else to say.
        for _ in 0..2 {
            crate::hosts::ask(stream, &mut [0; WORD.len()], &WORD).expect("an echo");
        }
    }
    thread::sleep(Duration::from_millis(200));
    let [up, down] = taps;
    let (up, down) = (up.last_segments(netns::CLIENT_V4), down.last_segments(netns::SERVER_V4));
    assert_eq!((up.len(), down.len()), (CONNECTIONS, CONNECTIONS), "each end has said a word on each connection");
    let frames: Vec<_> = up.into_iter().zip(down).flat_map(|(up, down)| [(up, 0), (down, 1)]).collect();

    let mut sinks = [sink(&rig.client, "c0"), sink(&rig.server, "s0")];
    sinks.iter_mut().for_each(|sink| sink.drop_all(true).expect("setting a switch"));
    let mut live = XdpGenerator::replay(&frames).expect("the generator, as root, on Linux 5.18 or later");
    for (number, namespace, port) in [(0, &rig.client, "c0"), (1, &rig.server, "s0")] {
        namespace.run(|| live.port(number, index(port))).expect("an interface of the rig");
    }
    let load = Running::start(live, false);
    let done = || sinks.iter().map(|sink| sink.count().expect("reading a counter")).sum();
    let window = watch(Some(&stood), &load, &done, window);
    load.stop();
    thread::sleep(Duration::from_millis(50));
    let words = stood.leave();
    drop(streams);
    drop(server);
    window.rate(frame_cost, words)
}

/// Hears what leaves an end of the rig.
struct Tap(OwnedFd);

impl Tap {
    fn open(namespace: &Namespace) -> Tap {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let open = || {
            let tap = socket::socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            socket::setsockopt(&tap, socket::sockopt::RcvBufForce, &(8 << 20))?;
            Ok::<_, nix::Error>(tap)
        };
        Tap(namespace.run(open).expect("a packet socket"))
    }

    /// The last segment with a word in it that `sender` sent on each connection, in the order of the clients' ports.
    fn last_segments(self, sender: IpAddr) -> Vec<Vec<u8>> {
        let mut last = std::collections::BTreeMap::new();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(len) = socket::recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let frame = &buffer[..len];
            // Ethernet, IPv4 without options, TCP with timestamps, the word.
            if len != 14 + 20 + 32 + WORD.len() || frame[12..14] != [8, 0] || frame[23] != 6 || !frame.ends_with(&WORD)
            {
                continue;
            }
            let ports = [34, 36].map(|at| u16::from_be_bytes([frame[at], frame[at + 1]]));
            let source = IpAddr::from([frame[26], frame[27], frame[28], frame[29]]);
            if source == sender {
                last.insert(if ports[1] == PORT { ports[0] } else { ports[1] }, frame.to_vec());
            }
        }
        last.into_values().collect()
    }
}
