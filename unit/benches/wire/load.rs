//! The generator at work: a thread that sends until it is told to stop, and what is measured meanwhile.

use std::io;
use std::net::IpAddr;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;
use tools::flood_template::{Kind, Sources, Target};
use tools::xdp_generator::{ATTACKER, Sink, XdpGenerator};
use unit::machine;
use unit::netns::{self, Namespace, Rig};

use crate::middle::{Middle, OwnWords, Stood};

/// The port that is flooded, and where the echo listens.
pub const PORT: u16 = 80;

/// Frames a load sends if nobody stops it: bounded whatever happens.
const MOST: u32 = 200_000_000;

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
pub struct Window {
    seconds: f64,
    offered: u64,
    done: u64,
    own: Duration,
    busy: Duration,
    generator: Duration,
}

/// Watches a load for this long, and counts the frames that are dealt with by `done`.
pub fn watch(stood: Option<&Stood>, load: &Running, done: &dyn Fn() -> u64, window: Duration) -> Window {
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

/// The attack on the server, whose frames go to the station `mac`.
pub fn attack(rig: &Rig, mac: [u8; 6], kind: Kind, server: IpAddr, rate: Option<f64>) -> XdpGenerator {
    let target = Target { address: server, port: PORT, mac, from_mac: ATTACKER, vlan: None };
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
    if middle == Middle::Kernel && kind == Kind::Ack {
        // Cookies of a process before may come back for so long.
        eprintln!("waiting 136 s until the kernel may drop what nobody asked for");
        thread::sleep(Duration::from_secs(136));
    }
    let load = Running::start(attack(&rig, stood.server_mac(), kind, server, None), false);
    let answers = kind == Kind::Syn && middle.protects();
    let done = || match middle {
        // What is not answered is counted by who drops it; ours tells at the end.
        Middle::Nftables if !answers => stood.judged(),
        Middle::Hole => load.made(),
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
    /// What it came to, if the generator needs so many nanoseconds a frame.
    pub fn rate(&self, frame_cost: f64, words: Option<OwnWords>) -> Rate {
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
