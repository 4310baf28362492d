//! What the caller asks of the ports it opens.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::failure::FailurePlan;

/// The memory by which a worker tells the XDP program how to answer SYNs; `tcpstate::SharedSyns` says what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynPlan {
    /// Words of a worker's answers, of its recent-SYN filter, and of its token buckets.
    pub words: [usize; 3],
}

/// How to open the ports.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether frames that come in by one port are to leave by the other. Ports between which they would then return for ever are refused.
    pub forwards: bool,
    /// Number of workers, each with one queue of both ports.
    pub workers: usize,
    /// Buffers a port has in each worker. Half of them wait in the receive ring. Raised for a zero-copy device that keeps more in its
    /// own rings.
    pub frames_per_port: usize,
    /// Frames the worker receives at once.
    pub batch: usize,
    /// Which mode of AF_XDP to take.
    pub mode: Mode,
    /// What the XDP program does with frames that no worker takes. It stays attached when the process is killed. Without a plan it drops them, and
    /// goes with the process.
    pub failure: Option<FailurePlan>,
    /// What the WAN port's XDP program needs to answer SYNs by itself; `None` if it is not to.
    pub syns: Option<SynPlan>,
    /// Whether the workers never sleep, so that they may drive a device's receive path themselves.
    pub busy_poll: bool,
    /// Whether the WAN port shall offer a filter for load shedding ([`Port::shed_filter`](crate::Port::shed_filter)), which takes 36 MiB
    /// of kernel memory.
    pub shed: bool,
    /// Slots that netmap is asked to give a receive and a transmit ring. Only switches and pipes honour it; a NIC's rings have a size
    /// of their own.
    pub netmap_slots: [u32; 2],
    /// Random bytes for the RSS key by which both interfaces spread connections over their queues, the same way on both. `None` leaves
    /// RSS as it is.
    pub spread: Option<[u8; 64]>,
    /// Whether an interface may be taken that this machine itself is reached by.
    pub force: bool,
    /// Whether the WAN port is a NIC that this machine goes on using: [`open`](crate::open()) sets it for the LAN port `host`.
    pub host: bool,
    /// How the kernel shall forward connections by itself that the workers hand down; `None` if it shall not.
    pub fast_path: Option<FastPathPlan>,
    /// Ends the wait for links when it is set.
    pub stop: Arc<AtomicBool>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            forwards: true,
            workers: 1,
            frames_per_port: 8192,
            batch: 64,
            mode: Mode::Auto,
            failure: None,
            syns: None,
            busy_poll: false,
            shed: false,
            netmap_slots: [256, 64],
            spread: None,
            force: false,
            host: false,
            fast_path: None,
            stop: Arc::default(),
        }
    }
}

/// How the kernel forwards connections by itself that the workers hand down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastPathPlan {
    /// Where.
    pub way: FastPathWay,
    /// Words of memory for the entries of these connections.
    pub words: usize,
    /// The keys of the hash that names flows.
    pub flow_keys: (u64, u64),
    /// Whether an XDP program that answers SYNs is made ready in front of tc, where SYNs are answered there ([`Guard::answer_in_front`](crate::Guard)).
    pub has_front: bool,
}

/// Where the kernel forwards them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FastPathWay {
    /// In the XDP program where frames come over links, and at tc where senders leave checksums and segmentation to the interface.
    Auto,
    /// In the XDP program, frame by frame; the ports are AF_XDP sockets.
    Xdp,
    /// At the tc hook, super-frames whole; the ports are packet sockets.
    Tc,
}

/// Which mode of AF_XDP to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The best that works.
    #[default]
    Auto,
    /// Driver mode with zero copy: the device reads and writes the frames in place. Nothing else.
    ZeroCopy,
    /// Driver mode, copying.
    Driver,
    /// Generic mode, in front of the network stack: works on every interface.
    Generic,
}
