//! AF_XDP: frames by descriptor, in memory shared with the kernel.
//!
//! Both sockets of a worker (its queue of either interface) share one UMEM, and the worker's [`Pool`] lies in it, so that
//! forwarding moves a descriptor and copies nothing. A small XDP program, compiled from `bpf/redirect.c`, hands the
//! frames of each queue to its socket. Which mode is wanted, and what to do when it does not work, `open` decides.
//!
//! The rings are those of `xsk-rs`; what is added here is ownership, chains, the fill level, and the kicks.

use std::cmp::min;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{DevMap, Map, PerCpuArray, XskMap};
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use siphasher::sip::SipHasher13;
use xsk_rs::config::{
    BindFlags, FrameSize, Interface as XskInterface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue, Umem};

use crate::frame::{Batch, Frame, HEADROOM, Keeper, Pool, Region};
use crate::mapped::Mapped;
use crate::netdev::Interface;
use crate::open::Ports;
use crate::port::{Capabilities, Port, PortStatistics};
use crate::sieve::{FAVOURED_LINES, Favoured, Level};

/// The XDP program, compiled by the build script. Aligned, since the loader reads ELF headers in place.
static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect.o"));

/// Descriptors moved from or to a ring at once.
const STRIDE: usize = 64;

/// The most buffers a frame may lie in: what an skb of the kernel can carry in fragments, less one for safety.
const MAX_BUFFERS: usize = 16;

/// The shortest frame that is one: two addresses and a type.
const MIN_FRAME: usize = 14;

/// The kernel sends at most this many frames a kick in copy mode, then wants another, unless it can be told otherwise.
const COPY_BUDGET: usize = 32;

/// The option that tells it otherwise, at `SOL_XDP`, since Linux 6.18; `libc` does not name it yet.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// How long the kernel looks for frames in one call when a worker drives the receive path, in microseconds; the call
/// is never made to wait, so any time but zero means one look.
const BUSY_POLL_MICROS: libc::c_int = 20;

/// How long a queue may stay busy after its last owner has gone: the kernel tears it down in the background, in 4 to 70 ms
/// on an idle machine.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);

/// How long to sleep between two attempts at a busy queue.
const BUSY_STEP: Duration = Duration::from_millis(10);

/// Another frame follows in this packet (`XDP_PKT_CONTD`).
const CONTINUED: u32 = 1;

/// The largest MTU whose frames fit 2048 bytes behind the headroom, header and tags included.
const SMALL_MTU: usize = 2048 - HEADROOM - 22;

/// The largest MTU for which a frame is kept in one buffer. Drivers keep the end of a page for themselves and draw this line
/// between 3000 and 3520 bytes.
const SINGLE_MTU: usize = 3000;

/// The largest MTU that fits the buffers a frame may have, well above any that is in use.
const LARGEST_MTU: usize = 16_000;

impl Keeper for Umem {}

/// What the XDP program does with a frame whose queue has no socket, because the process is gone or not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fallback {
    /// Drop it: no process, no traffic.
    #[default]
    Drop,
    /// Send it out of the other port, unseen: no process, no protection.
    Bypass,
}

/// What is asked of the sockets.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Queues to open, one worker each.
    pub workers: usize,
    /// Buffers a port, in the memory of one worker.
    pub frames_per_port: usize,
    /// Frames the worker moves at once.
    pub batch: usize,
    /// Room for received frames in a buffer, headroom included: 2048 or 4096.
    pub chunk: usize,
    /// Whether a frame may lie in several buffers.
    pub multi_buffer: bool,
    /// Bytes of the longest frame, header and tags included.
    pub longest: usize,
    /// Whether the worker drives the device's receive path itself.
    pub busy_poll: bool,
}

impl Layout {
    /// The layout that suits an MTU: small buffers where they suffice (more of them fit the cache), and several a frame
    /// where even a large one does not.
    ///
    /// # Errors
    ///
    /// When frames would need more buffers than the kernel chains.
    pub(crate) fn for_mtu(mtu: usize, workers: usize, frames_per_port: usize, batch: usize) -> Result<Layout, Refusal> {
        let chunk = if mtu <= SMALL_MTU { 2048 } else { 4096 };
        if mtu > LARGEST_MTU {
            return Err(Refusal::Unsupported(format!("an MTU of {mtu} does not fit; set it to {LARGEST_MTU} or less")));
        }
        let multi_buffer = mtu > SINGLE_MTU;
        Ok(Layout { workers, frames_per_port, batch, chunk, multi_buffer, longest: mtu + 22, busy_poll: false })
    }
}

/// The XDP program on one interface; it is detached when this is dropped.
pub(crate) struct Attached {
    /// The program runs in the driver.
    pub driver: bool,
    ebpf: Ebpf,
    name: &'static str,
    /// How to make the program leave frames out, if it can.
    valve: Option<Arc<Valve>>,
}

/// Words of the program's `struct control`: the level, and what was left out by it.
const CONTROL_WORDS: usize = 8;

/// The maps through which a worker tells the program what to leave out, and of whom nothing.
struct Valve {
    control: Mapped,
    favoured: Favoured<Mapped>,
    hasher: SipHasher13,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("driver", &self.driver).field("program", &self.name).finish()
    }
}

impl Attached {
    /// Loads the program and attaches it to `interface`, in the driver or in front of the network stack.
    ///
    /// # Errors
    ///
    /// What the kernel said, in words.
    pub(crate) fn new(
        interface: &Interface,
        other: &Interface,
        driver: bool,
        layout: &Layout,
        fallback: Fallback,
        sheds: bool,
    ) -> Result<Attached, Refusal> {
        fn failed(error: impl std::error::Error) -> Refusal {
            Refusal::Failed(chain(&error))
        }
        let bypass = u32::from(fallback == Fallback::Bypass);
        let queues = u32::try_from(layout.workers.max(1)).expect("a queue is a 32-bit number");
        let key = if sheds { random_key().map_err(failed)? } else { [0; 2] };
        let shedding = u32::from(sheds);
        let mut loader = EbpfLoader::new();
        if !sheds {
            // The program then never looks at them.
            loader.map_max_entries("favoured", 1).map_max_entries("recent", 1);
        }
        let mut ebpf = loader
            .override_global("fail_open", &bypass, true)
            .override_global("sheds", &shedding, true)
            .override_global("key0", &key[0], true)
            .override_global("key1", &key[1], true)
            .map_max_entries("control", queues)
            .map_max_entries("sockets", queues)
            .load(PROGRAM)
            .map_err(failed)?;
        let name = if layout.multi_buffer { "redirect_frags" } else { "redirect" };
        if fallback == Fallback::Bypass {
            let map = ebpf.map_mut("other").ok_or_else(|| Refusal::Failed("the program lacks its map".into()))?;
            let mut map = DevMap::try_from(map).map_err(failed)?;
            map.set(0, other.index(), None, 0).map_err(failed)?;
        }
        let program: &mut Xdp = ebpf
            .program_mut(name)
            .ok_or_else(|| Refusal::Failed("the program is missing".into()))?
            .try_into()
            .map_err(failed)?;
        program.load().map_err(failed)?;
        let mode = if driver { XdpMode::Driver } else { XdpMode::Skb };
        let begin = Instant::now();
        loop {
            match program.attach_to_if_index(interface.index(), mode) {
                Ok(_) => break,
                // The program of a process that has just gone may still be there.
                Err(e) if os_error(&e) == Some(libc::EBUSY) && begin.elapsed() < BUSY_PATIENCE => {
                    thread::sleep(BUSY_STEP);
                }
                Err(e) => return Err(attach_refusal(&e, interface)),
            }
        }
        let valve = match sheds {
            true => Some(Arc::new(Valve::of(&ebpf, layout.workers, key).map_err(failed)?)),
            false => None,
        };
        Ok(Attached { driver, ebpf, name, valve })
    }

    /// Hands the frames of `queue` to the socket `fd`.
    fn steer(&mut self, queue: u32, fd: RawFd) -> Result<(), String> {
        let map = self.ebpf.map_mut("sockets").ok_or("the program lacks its map")?;
        let mut map = XskMap::try_from(map).map_err(|e| chain(&e))?;
        map.set(queue, fd, 0).map_err(|e| chain(&e))
    }

    /// Frames that found no socket since the program was attached.
    pub(crate) fn strays(&self) -> u64 {
        let count = || {
            let map = PerCpuArray::<_, u64>::try_from(self.ebpf.map("strays")?).ok()?;
            Some(map.get(&0, 0).ok()?.iter().sum())
        };
        count().unwrap_or(0)
    }
}

impl Valve {
    /// Maps what the loaded program and this process share.
    fn of(ebpf: &Ebpf, workers: usize, key: [u64; 2]) -> io::Result<Valve> {
        let map = |name, words| match ebpf.map(name) {
            Some(Map::Array(data)) => Mapped::new(data.fd().as_fd(), words),
            _ => Err(io::Error::other("the program lacks its map")),
        };
        Ok(Valve {
            control: map("control", workers.max(1) * CONTROL_WORDS)?,
            favoured: Favoured::over(map("favoured", 2 * FAVOURED_LINES)?),
            hasher: SipHasher13::new_with_keys(key[0], key[1]),
        })
    }

    /// A word of the control of this queue: 0 the level, 1 and 2 the fresh and repeated calls left out.
    fn control(&self, queue: u32, word: usize) -> &AtomicU64 {
        &self.control[queue as usize * CONTROL_WORDS + word]
    }
}

/// A key nobody can foresee, so that nobody can choose sources that are taken for others.
fn random_key() -> io::Result<[u64; 2]> {
    let mut key = [0u64; 2];
    let size = size_of_val(&key);
    // SAFETY: the buffer is as long as we say, and every value of its integers is valid.
    let got = unsafe { libc::getrandom(key.as_mut_ptr().cast(), size, 0) };
    if usize::try_from(got) == Ok(size) { Ok(key) } else { Err(io::Error::last_os_error()) }
}

/// The time the program reckons by, `CLOCK_BOOTTIME`, in nanoseconds.
fn boot_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock is written to a structure of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text.replace('\n', " ").trim_end().to_owned()
}

/// The kernel's error number behind an error, if there is one.
fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if let Some(code) = inner.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(code);
        }
        cause = inner.source();
    }
    None
}

fn attach_refusal(error: &ProgramError, interface: &Interface) -> Refusal {
    let name = interface.name();
    match os_error(error) {
        Some(libc::EBUSY | libc::EEXIST) => Refusal::Busy {
            what: format!("another XDP program is attached to {name}"),
            hint: format!("end the process that did it, or detach it with `ip link set dev {name} xdp off`"),
        },
        Some(libc::EOPNOTSUPP) => Refusal::Unsupported("the driver has no XDP".into()),
        Some(libc::ERANGE) => Refusal::Unsupported(format!("the driver has no XDP for an MTU of {}", interface.mtu())),
        Some(libc::ENOSPC) => Refusal::Unsupported("the driver has too few queues for XDP".into()),
        _ => Refusal::Failed(chain(error)),
    }
}

/// Why AF_XDP could not be had.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The driver, one of the two, cannot do what was asked.
    Unsupported(String),
    /// Somebody else has it: no reason to take less, but one to stop.
    Busy {
        /// What is in use.
        what: String,
        /// How to free it.
        hint: String,
    },
    /// Everything else.
    Failed(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Unsupported(text) | Refusal::Failed(text) => f.write_str(text),
            Refusal::Busy { what, hint } => write!(f, "{what}; {hint}"),
        }
    }
}

/// Opens the sockets of every worker and steers the frames of its interfaces to them.
///
/// # Errors
///
/// When a socket cannot be bound, with the reason; everything opened before is closed again.
pub(crate) fn open(
    interfaces: &[&Interface],
    attached: &mut [Attached],
    zero_copy: bool,
    layout: &Layout,
) -> Result<Vec<Ports>, Refusal> {
    (0..layout.workers).map(|queue| open_queue(interfaces, attached, zero_copy, layout, queue as u32)).collect()
}

/// Opens one queue of every interface over one UMEM.
fn open_queue(
    interfaces: &[&Interface],
    attached: &mut [Attached],
    zero_copy: bool,
    layout: &Layout,
    queue: u32,
) -> Result<Ports, Refusal> {
    let failed = Refusal::Failed;
    let frames = interfaces.len() * layout.frames_per_port;
    let count = u32::try_from(frames).ok().and_then(NonZeroU32::new);
    let count = count.ok_or_else(|| failed(format!("{frames} frames are no possible number of frames")))?;
    // The kernel publishes late how far it has read the fill ring, so the ring looks fuller than it is: room for every
    // frame makes that harmless. The same size lets no completion ever wait.
    let all = ring_size(frames)?;
    let config = UmemConfig::builder()
        .frame_size(FrameSize::new(layout.chunk as u32).map_err(|e| failed(chain(&e)))?)
        .frame_headroom(0)
        .fill_queue_size(all)
        .comp_queue_size(all)
        .build()
        .map_err(|e| failed(chain(&e)))?;
    let (umem, templates) = Umem::new(config, count, false).map_err(|e| match os_error(&e) {
        Some(libc::ENOBUFS | libc::ENOMEM) => failed(memory_refusal(frames * layout.chunk)),
        _ => failed(chain(&e)),
    })?;
    let templates: Arc<[FrameDesc]> = templates.into();
    let mut pool = pool_over(&umem, &templates, layout);

    let mut open_port = |(interface, attached): (&&Interface, &mut Attached)| -> Result<Box<dyn Port>, Refusal> {
        let rings = bind(&umem, interface, zero_copy, layout, queue)?;
        let mut port = XdpPort::new(rings, umem.clone(), Arc::clone(&templates), layout);
        port.capabilities.driver_mode = attached.driver;
        port.capabilities.max_frame = interface.max_frame();
        port.capabilities.queue = queue;
        port.valve = attached.valve.clone();
        // The ring is full before the first frame is steered to it.
        port.refill(&mut pool);
        attached.steer(queue, port.fd).map_err(|e| failed(format!("{}: {e}", interface.name())))?;
        port.wake_receiver();
        Ok(Box::new(port))
    };
    let ports = interfaces.iter().zip(attached).map(&mut open_port).collect::<Result<_, _>>()?;
    Ok((ports, pool))
}

/// A pool of all buffers of a fresh UMEM.
fn pool_over(umem: &Umem, templates: &[FrameDesc], layout: &Layout) -> Pool {
    let mut first = templates[0];
    let natural = first.addr();
    // SAFETY: the UMEM is fresh: its first frame is in no ring and nobody else looks at it.
    let data = unsafe { umem.data_mut(&mut first) }.contents_mut().as_mut_ptr() as usize;
    // The mapping was made outside of Rust and its address handed to C, so it has exposed its provenance; the slice above
    // could only vouch for one frame.
    let base = NonNull::new(ptr::with_exposed_provenance_mut::<u8>(data - natural)).expect("a mapping is not at null");
    // SAFETY: the UMEM's mapping is page-aligned, holds a chunk per template, lives as long as a clone of the UMEM, and
    // nobody but this pool's frames and the kernel touches it.
    let region = unsafe { Region::new(base, templates.len(), layout.chunk, Arc::new(umem.clone())) };
    // SAFETY: no frame of the fresh region exists.
    let mut pool = unsafe { Pool::over(region, HEADROOM) };
    // A turn of both ports takes at most two batches out of the rings, of frames in as many buffers as the longest needs.
    let buffers = layout.longest.div_ceil(layout.chunk - HEADROOM);
    pool.set_reserve(min(4 * layout.batch * buffers, layout.frames_per_port / 2));
    pool
}

struct Rings {
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
}

/// Binds a socket to one queue, with patience for a queue that is just being left.
fn bind(umem: &Umem, interface: &Interface, zero_copy: bool, layout: &Layout, queue: u32) -> Result<Rings, Refusal> {
    let name = interface.name();
    let size = ring_size(layout.frames_per_port / 2)?;
    let mut flags = BindFlags::XDP_USE_NEED_WAKEUP;
    flags |= if zero_copy { BindFlags::XDP_ZEROCOPY } else { BindFlags::XDP_COPY };
    if layout.multi_buffer {
        flags |= BindFlags::XDP_USE_SG;
    }
    // The second socket of a UMEM is bound with the shared flag alone (the library sees to it) and inherits the mode.
    let config = SocketConfig::builder()
        .rx_queue_size(size)
        .tx_queue_size(size)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(flags)
        .build();
    let xsk_interface: XskInterface =
        name.parse().map_err(|_| Refusal::Failed(format!("{name:?} is no interface name")))?;
    let begin = Instant::now();
    loop {
        // SAFETY: no program is loaded by the library (inhibited), and the pair of interface and queue is bound once.
        match unsafe { xsk_rs::Socket::new(config, umem, &xsk_interface, queue) } {
            Ok((tx, rx, Some((fill, completion)))) => return Ok(Rings { rx, tx, fill, completion }),
            Ok((_, _, None)) => {
                return Err(Refusal::Failed(format!("{name}: queue {queue} is already bound in this memory")));
            }
            Err(e) => {
                let code = e.source().and_then(os_error);
                if code == Some(libc::EBUSY) && begin.elapsed() < BUSY_PATIENCE {
                    thread::sleep(BUSY_STEP);
                    continue;
                }
                return Err(bind_refusal(code, name, queue, &chain(&e), layout));
            }
        }
    }
}

fn bind_refusal(code: Option<i32>, name: &str, queue: u32, text: &str, layout: &Layout) -> Refusal {
    match code {
        Some(libc::EOPNOTSUPP | libc::EINVAL) => Refusal::Unsupported(format!("the driver of {name} refuses it")),
        Some(libc::EBUSY) => Refusal::Busy {
            what: format!("queue {queue} of {name} is in use by another AF_XDP socket"),
            hint: "end that process".into(),
        },
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            Refusal::Failed(format!("{name}: {}", memory_refusal(2 * layout.frames_per_port * layout.chunk)))
        }
        Some(libc::EPERM | libc::EACCES) => {
            Refusal::Failed(format!("{name}: no permission; run as root or with CAP_NET_RAW"))
        }
        _ => Refusal::Failed(format!("{name}: queue {queue}: {text}")),
    }
}

fn memory_refusal(bytes: usize) -> String {
    format!(
        "cannot lock {} KiB a worker in memory; raise the limit (`ulimit -l unlimited`, LimitMEMLOCK=infinity), grant \
         CAP_IPC_LOCK, or use fewer frames",
        bytes / 1024
    )
}

fn ring_size(entries: usize) -> Result<QueueSize, Refusal> {
    u32::try_from(entries.next_power_of_two())
        .ok()
        .and_then(|n| QueueSize::new(n).ok())
        .ok_or_else(|| Refusal::Failed(format!("a ring of {entries} entries is not possible")))
}

/// One queue of one interface through an AF_XDP socket.
struct XdpPort {
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    umem: Umem,
    /// Per buffer, the descriptor of a frame that begins at the headroom.
    templates: Arc<[FrameDesc]>,
    /// Where a descriptor keeps the address; see [`address_field`].
    address: usize,
    scratch: Box<[FrameDesc; STRIDE]>,
    /// Bytes of a buffer.
    chunk: usize,
    /// Entries of the transmit ring.
    ring: usize,
    /// Frames the kernel sends a kick, in copy mode.
    budget: usize,
    /// Whether the worker drives the device's receive path itself.
    busy_poll: bool,
    /// Frames to be kept between fill ring and receive ring.
    target: usize,
    /// As many must remain there, even if received frames are dropped for it.
    low: usize,
    /// Frames that are there now.
    filled: usize,
    /// Frames queued for transmission and not completed yet, in buffers.
    in_flight: usize,
    /// The kernel has not taken all of the transmit ring, and the last kick got no further.
    backlog: bool,
    /// The first buffers of a frame whose last has not been read yet. Empty between two calls.
    partial: Option<Frame>,
    /// The rest of a frame that is too long is being thrown away.
    discarding: bool,
    capabilities: Capabilities,
    statistics: PortStatistics,
    fd: RawFd,
    /// How to make the program leave frames out, if it can.
    valve: Option<Arc<Valve>>,
}

impl XdpPort {
    fn new(rings: Rings, umem: Umem, templates: Arc<[FrameDesc]>, layout: &Layout) -> XdpPort {
        let fd = rings.rx.fd().as_raw_fd();
        let target = layout.frames_per_port / 2;
        let ring = target.next_power_of_two();
        let address = address_field(templates[0]);
        // In copy mode every frame queued is charged to the socket's send buffer until the device is done with it; the
        // default holds a few hundred. Refused without CAP_NET_ADMIN, and then the default does.
        let bytes = libc::c_int::try_from(ring * (layout.chunk + 1024)).unwrap_or(libc::c_int::MAX);
        let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes);
        // One kick then sends the whole ring.
        let budget = libc::c_int::try_from(ring).unwrap_or(libc::c_int::MAX);
        let raised = set_option(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, budget).is_ok();
        let busy_poll = layout.busy_poll && prefer_busy_poll(fd, layout.batch).is_ok();
        // The library leaves its sockets open across exec(2): a child process would keep the queue bound after us.
        // SAFETY: the descriptor is open, and no pointer is passed.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        XdpPort {
            rx: rings.rx,
            tx: rings.tx,
            fill: rings.fill,
            completion: rings.completion,
            umem,
            templates,
            address,
            scratch: Box::new([FrameDesc::default(); STRIDE]),
            chunk: layout.chunk,
            ring,
            budget: if raised { ring } else { COPY_BUDGET },
            busy_poll,
            target,
            low: target / 4,
            filled: 0,
            in_flight: 0,
            backlog: false,
            partial: None,
            discarding: false,
            capabilities: Capabilities {
                backend: "xdp",
                zero_copy: is_zero_copy(fd),
                driver_mode: false,
                need_wakeup: true,
                multi_buffer: layout.multi_buffer,
                max_frame: 0,
                queue: 0,
            },
            statistics: PortStatistics::default(),
            fd,
            valve: None,
        }
    }

    /// Takes the buffer that `desc` describes out of the receive ring, and its frame into `batch` if it is complete.
    fn accept(&mut self, desc: FrameDesc, batch: &mut Batch, pool: &mut Pool) {
        let mask = self.chunk - 1;
        let (offset, start) = (desc.addr() & !mask, desc.addr() & mask);
        // SAFETY: the descriptor came off the receive ring, so its buffer was lent to this port's fill ring and the kernel
        // is done with it.
        let buffer = unsafe { pool.reclaim(offset, start, desc.lengths().data()) };
        let more = desc.has_more_frames();
        if self.discarding {
            self.discarding = more;
            return pool.put(buffer);
        }
        let frame = match self.partial.take() {
            None => buffer,
            Some(mut frame) => {
                frame.append(buffer);
                frame
            }
        };
        if frame.total() > self.capabilities.max_frame {
            self.statistics.truncated += 1;
            self.discarding = more;
            pool.put(frame);
        } else if more {
            self.partial = Some(frame);
        } else {
            batch.push(frame);
        }
    }

    /// Reads up to `max` descriptors off the receive ring; returns how many there were.
    fn read(&mut self, max: usize, batch: &mut Batch, pool: &mut Pool) -> usize {
        // SAFETY: the socket is bound to the UMEM of `pool`, and the descriptors are overwritten.
        let read = unsafe { self.rx.consume(&mut self.scratch[..min(max, STRIDE)]) };
        self.filled -= read;
        for i in 0..read {
            self.accept(self.scratch[i], batch, pool);
        }
        read
    }

    /// Fills the fill ring to its level, as far as the pool has frames.
    fn refill(&mut self, pool: &mut Pool) {
        while self.filled < self.target {
            let want = min(self.target - self.filled, STRIDE);
            let mut ready = 0;
            while ready < want {
                let Some(frame) = pool.take_reserved() else { break };
                self.scratch[ready] = self.templates[pool.lend(frame) / self.chunk];
                ready += 1;
            }
            // SAFETY: the frames were just taken out of the pool over this UMEM: nobody else holds them.
            let done = unsafe { self.fill.produce(&self.scratch[..ready]) };
            debug_assert_eq!(done, ready, "the fill ring has an entry for every frame");
            for desc in &self.scratch[done..ready] {
                // SAFETY: lent a moment ago and not taken by the ring.
                let frame = unsafe { pool.reclaim(desc.addr() & !(self.chunk - 1), HEADROOM, 0) };
                pool.put(frame);
            }
            self.filled += done;
            if done < want {
                break;
            }
        }
    }

    /// Tells the driver that there are buffers again, if it waits for some.
    fn wake_receiver(&mut self) {
        if self.fill.needs_wakeup() {
            self.drive_receiver();
        }
    }

    /// Lets the driver receive in this call.
    fn drive_receiver(&mut self) {
        self.statistics.kicks += 1;
        // SAFETY: a receive without a buffer reads nothing; for an AF_XDP socket it is the kick.
        unsafe { libc::recvfrom(self.fd, ptr::null_mut(), 0, libc::MSG_DONTWAIT, ptr::null_mut(), ptr::null_mut()) };
    }

    /// Takes the frames whose transmission is complete back into the pool.
    fn reap(&mut self, pool: &mut Pool) {
        while self.in_flight > 0 {
            // SAFETY: the socket is bound to the UMEM of `pool`, and the descriptors are overwritten.
            let done = unsafe { self.completion.consume(&mut self.scratch[..]) };
            for desc in &self.scratch[..done] {
                // SAFETY: the buffer was lent to the transmit ring and the kernel is done with it.
                let frame = unsafe { pool.reclaim(desc.addr() & !(self.chunk - 1), HEADROOM, 0) };
                pool.put(frame);
            }
            self.in_flight -= done;
            if done < STRIDE {
                break;
            }
        }
    }

    /// Whether the frame can be sent at all. What the kernel finds invalid it would never give back.
    ///
    /// The kernel asks that no descriptor is empty or leaves its chunk, which no extent of a frame does; where in the chunk it
    /// begins is ours to choose (`xp_aligned_validate_desc`), so that a header may grow into the headroom of a full buffer.
    fn is_sendable(&self, frame: &Frame) -> bool {
        (MIN_FRAME..=self.capabilities.max_frame).contains(&frame.total())
            && if frame.is_chained() {
                self.capabilities.multi_buffer
                    && frame.buffers() <= MAX_BUFFERS
                    && frame.segments().all(|segment| !segment.is_empty())
            } else {
                !frame.is_empty()
            }
    }

    /// The descriptor that sends one buffer from where its frame begins; the buffer passes to the ring.
    fn describe(&mut self, buffer: Frame, pool: &mut Pool) -> FrameDesc {
        let (start, len) = (buffer.start(), buffer.len());
        let offset = pool.lend(buffer);
        let mut desc = self.templates[offset / self.chunk];
        if start != HEADROOM {
            set_address(&mut desc, self.address, offset + start);
        }
        // SAFETY: the buffer was ours until now and is not in a ring yet, so nobody else looks at it.
        unsafe { self.umem.data_mut(&mut desc) }.cursor().set_pos(len);
        desc
    }

    /// Puts the first `ready` descriptors of the scratch into the transmit ring, whose room was checked before.
    fn submit(&mut self, ready: usize) {
        // SAFETY: the buffers belong to this UMEM and passed out of our hands with `lend`.
        let done = unsafe { self.tx.produce(&self.scratch[..ready]) };
        assert_eq!(done, ready, "the room of the transmit ring was counted before");
        self.in_flight += ready;
    }

    /// One kick. `Ok(true)` when the kernel wants another.
    fn kick(&mut self) -> io::Result<bool> {
        self.statistics.kicks += 1;
        // SAFETY: a send without a buffer sends nothing of ours; for an AF_XDP socket it is the kick.
        let sent = unsafe { libc::sendto(self.fd, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
        if sent >= 0 {
            return Ok(false);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(true),
            // Busy, or out of memory for the moment: what was queued stays queued.
            Some(libc::EBUSY | libc::ENOBUFS | libc::EINTR) => Ok(false),
            _ => Err(error),
        }
    }

    /// Wakes the driver's transmit path. Of a socket whose worker drives the receive path, a kick does that and no more
    /// (`xsk_no_wakeup`): enough for drivers that transmit there as well, but virtio-net would never send. The kernel's
    /// `xsk_poll` wakes whatever waits.
    fn wake_transmitter(&mut self) {
        self.statistics.kicks += 1;
        let mut poll = libc::pollfd { fd: self.fd, events: 0, revents: 0 };
        // SAFETY: one entry, which outlives the call; without a time to wait it returns at once.
        unsafe { libc::poll(&raw mut poll, 1, 0) };
    }
}

impl Port for XdpPort {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        let before = batch.len();
        while batch.len() - before < max {
            let want = min(max - (batch.len() - before), STRIDE);
            if self.read(want, batch, pool) < want {
                break;
            }
        }
        // The kernel publishes the buffers of a frame together, so the rest is there.
        while self.partial.is_some() && self.read(1, batch, pool) > 0 {}
        self.refill(pool);
        while self.filled < self.low && batch.len() > before {
            // Others hold so many frames that the receive ring would run dry: the youngest pays.
            if let Some(frame) = batch.pop() {
                pool.put(frame);
                self.statistics.no_buffer += 1;
            }
            self.refill(pool);
        }
        if self.busy_poll && batch.len() == before {
            self.drive_receiver();
        } else {
            self.wake_receiver();
        }
        let received = &batch[before..];
        self.statistics.received += received.len() as u64;
        self.statistics.received_bytes += received.iter().map(Frame::total).sum::<usize>() as u64;
        received.len()
    }

    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        self.reap(pool);
        if batch.is_empty() {
            return 0;
        }
        let mut free = self.tx.nb_free(batch.len() as u32) as usize;
        let mut fits = 0;
        for frame in batch.iter() {
            let buffers = if frame.is_chained() { frame.buffers() } else { 1 };
            if buffers > free {
                // A chain that would never fit is let through, to be refused below.
                if buffers <= MAX_BUFFERS {
                    break;
                }
            } else {
                free -= buffers;
            }
            fits += 1;
        }
        let mut ready = 0;
        for frame in batch.drain(..fits) {
            if !self.is_sendable(&frame) {
                self.statistics.transmit_errors += 1;
                pool.put(frame);
                continue;
            }
            self.statistics.sent += 1;
            self.statistics.sent_bytes += frame.total() as u64;
            if ready + MAX_BUFFERS > STRIDE {
                self.submit(ready);
                ready = 0;
            }
            let mut next = Some(frame);
            while let Some(mut buffer) = next {
                next = buffer.split();
                let mut desc = self.describe(buffer, pool);
                if next.is_some() {
                    desc.set_options(CONTINUED);
                }
                self.scratch[ready] = desc;
                ready += 1;
            }
        }
        self.submit(ready);
        if !batch.is_empty() {
            self.statistics.transmit_full += 1;
        }
        fits
    }

    fn flush(&mut self, pool: &mut Pool) {
        if self.in_flight == 0 {
            return;
        }
        self.backlog = false;
        let mut free = self.tx.nb_free_exact() as usize;
        // In copy mode nothing is sent but by a kick; a driver with zero copy says whether it needs one.
        let wanted = if self.capabilities.zero_copy { self.tx.needs_wakeup() } else { free < self.ring };
        if wanted {
            for _ in 0..self.ring / self.budget + 1 {
                match self.kick() {
                    Ok(false) => break,
                    Ok(true) => {
                        let now = self.tx.nb_free_exact() as usize;
                        if now == free {
                            break;
                        }
                        free = now;
                    }
                    // The interface is down or gone; the frames stay queued until it is back.
                    Err(_) => break,
                }
            }
            if self.busy_poll && self.capabilities.zero_copy && (self.tx.nb_free_exact() as usize) < self.ring {
                self.wake_transmitter();
            }
            self.backlog = (self.tx.nb_free_exact() as usize) < self.ring;
        }
        self.reap(pool);
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.fd)
    }

    fn is_backlogged(&self) -> bool {
        self.backlog
    }

    fn shed(&mut self, level: Level) -> bool {
        let Some(valve) = &self.valve else { return false };
        valve.control(self.capabilities.queue, 0).store(level.word(), Ordering::Relaxed);
        true
    }

    fn favour(&mut self, source: [u8; 16]) {
        if let Some(valve) = &self.valve {
            valve.favoured.note(valve.hasher.hash(&source), boot_nanos());
        }
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn statistics(&self) -> PortStatistics {
        let mut statistics = self.statistics;
        if let Some(valve) = &self.valve {
            let count = |word| valve.control(self.capabilities.queue, word).load(Ordering::Relaxed);
            (statistics.shed_fresh, statistics.shed_repeated) = (count(1), count(2));
        }
        if let Ok(kernel) = self.rx.fd().xdp_statistics() {
            statistics.receive_full += kernel.rx_ring_full();
            statistics.fill_empty += kernel.rx_fill_ring_empty_descs();
            statistics.kernel_drops += kernel.rx_dropped();
            statistics.transmit_errors += kernel.tx_invalid_descs();
        }
        statistics
    }
}

/// Where in a descriptor the library keeps the address, in bytes.
///
/// The library makes a descriptor once and has no way to let its frame begin elsewhere; moving the frame instead costs
/// a copy of all of it for a header that grew by twelve bytes, and a full buffer has no room for that. So the field is
/// looked for: every field is an integer, and `addr()` tells which word it reads.
///
/// # Panics
///
/// When no word is the address: another version of the library, which the tests would not have let pass.
fn address_field(template: FrameDesc) -> usize {
    let moved = template.addr() ^ 1;
    let is_address = |at: &usize| {
        let mut probe = template;
        set_address(&mut probe, *at, moved);
        probe.addr() == moved
            && probe.options() == template.options()
            && probe.lengths().data() == template.lengths().data()
            && probe.lengths().headroom() == template.lengths().headroom()
    };
    (0..size_of::<FrameDesc>()).step_by(size_of::<usize>()).find(is_address).expect("a descriptor has an address")
}

/// Writes the word at `at` of a descriptor, where [`address_field`] found the address.
#[inline]
fn set_address(desc: &mut FrameDesc, at: usize, addr: usize) {
    assert!(at <= size_of::<FrameDesc>() - size_of::<usize>() && at.is_multiple_of(align_of::<usize>()));
    // SAFETY: the word lies inside the descriptor, is aligned as the descriptor is (asserted below), and belongs to integers
    // or padding, for which every value is valid.
    unsafe { ptr::from_mut(desc).byte_add(at).cast::<usize>().write(addr) };
}

const _: () = assert!(size_of::<FrameDesc>() == 32, "an address, options and two lengths, and nothing but integers");
const _: () = assert!(align_of::<FrameDesc>() >= align_of::<usize>());

/// Whether the kernel bound the socket in zero-copy mode.
fn is_zero_copy(fd: RawFd) -> bool {
    let mut options = libc::xdp_options { flags: 0 };
    let mut len = size_of_val(&options) as libc::socklen_t;
    // SAFETY: the option is written into a structure of the length we say.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_XDP, libc::XDP_OPTIONS, (&raw mut options).cast(), &raw mut len) };
    result == 0 && options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0
}

/// Lets the worker's own calls drive the device's receive path in place of its interrupts.
fn prefer_busy_poll(fd: RawFd, batch: usize) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 1)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, BUSY_POLL_MICROS)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, libc::c_int::try_from(batch).unwrap_or(64))
}

fn set_option(fd: RawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the value is an integer of the length we say.
    let result = unsafe {
        libc::setsockopt(fd, level, option, (&raw const value).cast(), size_of_val(&value) as libc::socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya::programs::{TestRun, TestRunOptions};

    /// The program as the WAN port loads it, not attached to anything; `None`, with a word on why, without the right to.
    fn program() -> Option<(Ebpf, Valve)> {
        // SAFETY: no arguments.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("skipped: needs root to load an XDP program");
            return None;
        }
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let mut ebpf = EbpfLoader::new()
            .override_global("sheds", &1u32, true)
            .override_global("key0", &key[0], true)
            .override_global("key1", &key[1], true)
            .load(PROGRAM)
            .expect("the program is sound");
        let valve = Valve::of(&ebpf, 1, key).expect("the maps can be mapped");
        let program: &mut Xdp = ebpf.program_mut("redirect").expect("it is there").try_into().expect("it is XDP");
        program.load().expect("the verifier accepts it");
        Some((ebpf, valve))
    }

    /// A frame's first bytes: addresses, tags, and an IPv4 segment with so many bytes of IP options.
    fn v4(tags: &[u16], options: usize, source: [u8; 4], seq: u32, flags: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        tags.iter().for_each(|tag| frame.extend([(tag >> 8) as u8, *tag as u8, 0, 7]));
        frame.extend([8, 0, 0x45 + (options / 4) as u8, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([&source[..], &[10, 0, 0, 1]].concat());
        frame.resize(frame.len() + options, 1);
        frame.extend(tcp(seq, flags));
        frame
    }

    /// An IPv6 segment behind these extension headers.
    fn v6(headers: &[u8], source: u8, seq: u32, flags: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        let next = *headers.first().unwrap_or(&6);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 60, next, 64]);
        frame.extend([[0x20; 16], [0x21; 16]].concat());
        frame[14 + 8 + 15] = source;
        for at in 0..headers.len() {
            frame.extend([*headers.get(at + 1).unwrap_or(&6), 1]);
            frame.extend([0; 14]);
        }
        frame.extend(tcp(seq, flags));
        frame
    }

    fn tcp(seq: u32, flags: u8) -> Vec<u8> {
        let mut tcp = vec![0x9c, 0x40, 0, 80];
        tcp.extend(seq.to_be_bytes());
        tcp.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp
    }

    const SYN: u8 = 2;

    /// What the program has left out of these frames: fresh calls and repeated ones.
    fn left_out(ebpf: &Ebpf, valve: &Valve, frames: &[Vec<u8>]) -> (u64, u64) {
        let count = || [1, 2].map(|word| valve.control(0, word).load(Ordering::Relaxed));
        let before = count();
        let program: &Xdp = ebpf.program("redirect").expect("it is there").try_into().expect("it is XDP");
        for frame in frames {
            let options = TestRunOptions { data_in: Some(frame), repeat: 1, ..TestRunOptions::default() };
            program.test_run(options).expect("it can be run");
        }
        let after = count();
        (after[0] - before[0], after[1] - before[1])
    }

    fn set(valve: &Valve, level: Level) {
        valve.control(0, 0).store(level.word(), Ordering::Relaxed);
    }

    #[test]
    fn the_program_leaves_out_calls_and_nothing_else() {
        let Some((ebpf, valve)) = program() else { return };
        let calls = [
            v4(&[], 0, [192, 0, 2, 1], 1, SYN),
            v4(&[], 40, [192, 0, 2, 1], 2, SYN),
            v4(&[0x8100], 0, [192, 0, 2, 1], 3, SYN),
            v4(&[0x88a8, 0x8100], 8, [192, 0, 2, 1], 4, SYN),
            // With ECN-setup flags it is a call as well.
            v4(&[], 0, [192, 0, 2, 1], 5, SYN | 0xc0),
            v6(&[], 1, 6, SYN),
            v6(&[0, 60, 43], 1, 7, SYN),
        ];
        assert_eq!(left_out(&ebpf, &valve, &calls), (0, 0), "there is no pressure");
        set(&valve, Level::Fresh(0));
        assert_eq!(left_out(&ebpf, &valve, &calls), (calls.len() as u64, 0));

        let mut others: Vec<Vec<u8>> =
            [0x10, 0x12, 0x04, 0x11, 0x18, 0x03, 0x06, 0].map(|flags| v4(&[], 0, [192, 0, 2, 1], 9, flags)).into();
        others.push(v4(&[0x8100, 0x8100, 0x8100], 0, [192, 0, 2, 1], 9, SYN));
        others.push(v6(&[0, 60, 43, 60], 1, 9, SYN));
        others.push(v6(&[51], 1, 9, SYN));
        let mut udp = v4(&[], 0, [192, 0, 2, 1], 9, SYN);
        udp[23] = 17;
        let mut later = v4(&[], 0, [192, 0, 2, 1], 9, SYN);
        later[21] = 1;
        let mut arp = v4(&[], 0, [192, 0, 2, 1], 9, SYN);
        arp[13] = 6;
        let mut short = v4(&[], 0, [192, 0, 2, 1], 9, SYN);
        short[14] = 0x44;
        others.extend([udp, later, arp, short]);
        assert_eq!(left_out(&ebpf, &valve, &others), (0, 0));
    }

    #[test]
    fn the_program_passes_every_call_that_is_cut_off() {
        let Some((ebpf, valve)) = program() else { return };
        set(&valve, Level::Fresh(0));
        for whole in [v4(&[0x8100], 8, [192, 0, 2, 1], 1, SYN), v6(&[0, 60], 1, 1, SYN)] {
            let cut: Vec<Vec<u8>> = (14..whole.len()).map(|len| whole[..len].to_vec()).collect();
            assert_eq!(left_out(&ebpf, &valve, &cut), (0, 0));
            assert_eq!(left_out(&ebpf, &valve, &[whole]), (1, 0));
        }
    }

    #[test]
    fn the_program_passes_repeated_calls_and_proved_sources() {
        let Some((ebpf, valve)) = program() else { return };
        set(&valve, Level::Fresh(0));
        let call = [v4(&[], 0, [192, 0, 2, 1], 1, SYN), v6(&[], 1, 1, SYN)];
        assert_eq!(left_out(&ebpf, &valve, &call), (2, 0));
        thread::sleep(Duration::from_millis(1000));
        assert_eq!(left_out(&ebpf, &valve, &call), (0, 0), "a second later it is a sign of life");
        assert_eq!(
            left_out(&ebpf, &valve, &[v4(&[], 0, [192, 0, 2, 1], 2, SYN)]),
            (1, 0),
            "another number, another call"
        );
        let many: Vec<Vec<u8>> = (0..2560).map(|n| v4(&[], 0, [192, 0, 2, 1], 100 + n, SYN)).collect();
        set(&valve, Level::Fresh(64));
        let left_out_of_many = left_out(&ebpf, &valve, &many).0;
        assert!(
            (1800..2040).contains(&left_out_of_many),
            "{left_out_of_many} of 2560 were left out, not three in four"
        );
        set(&valve, Level::Repeated);
        thread::sleep(Duration::from_millis(1000));
        assert_eq!(left_out(&ebpf, &valve, &call), (0, 2));

        let favour = |source: [u8; 16]| valve.favoured.note(valve.hasher.hash(&source), boot_nanos());
        favour([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        let mut six = [0x20; 16];
        six[15] = 1;
        favour(six);
        assert_eq!(left_out(&ebpf, &valve, &call), (0, 0));
        let strangers = [v4(&[], 0, [192, 0, 2, 2], 1, SYN), v6(&[], 2, 1, SYN)];
        assert_eq!(left_out(&ebpf, &valve, &strangers), (2, 0));
    }
}
