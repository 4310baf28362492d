//! Opens the AF_XDP sockets: one UMEM for each worker, one socket for each of its queues.

use std::cmp::min;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info};

use super::cutter::Cutter;
use super::layout::Layout;
use super::port::XdpPort;
use super::program::AttachedProgram;
use super::refusal::{Refusal, descriptors_ran_out};
use super::rings::{Binding, Rings, Sizes, Umem, namespace_of, new_socket};
use super::shed::XdpShedFilter;
use crate::frame::HEADROOM;
use crate::left::{Bound, LeftSocket, LeftSockets};
use crate::netdev::Interface;
use crate::offload::Completer;
use crate::patience::patiently;
use crate::pool::{BufferMemory, Pool};
use crate::port::{Capabilities, Port, Ports};

/// The memory of one worker's frames, and the socket that is going to be bound first. To lock it takes time and nothing of an interface.
pub(crate) struct UmemMemory {
    umem: Umem,
    socket: OwnedFd,
}

impl UmemMemory {
    /// Locks memory for so many frames.
    ///
    /// # Errors
    ///
    /// When there is no such memory, or this process may not lock it.
    pub(crate) fn new(frames: usize, chunk: usize) -> Result<UmemMemory, Refusal> {
        let (umem, socket) = Umem::new(frames, chunk).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOBUFS | libc::ENOMEM) => Refusal::Limit(memory_refusal(frames * chunk)),
            _ => Refusal::failed(e),
        })?;
        Ok(UmemMemory { umem, socket })
    }

    fn is_for(&self, frames: usize, chunk: usize) -> bool {
        (self.umem.chunks(), self.umem.chunk()) == (frames, chunk)
    }
}

/// Opens the sockets of every worker, in memory that was `made` before where there is some that fits, and redirects the frames of its queues to them. Those
/// that a former process has `left` are taken as they are, where they are what would be opened, and closed otherwise.
///
/// # Errors
///
/// When a socket cannot be bound, with the reason; everything opened before is closed again.
pub(crate) fn open(
    interfaces: &[&Interface],
    programs: &mut [AttachedProgram],
    zero_copy: bool,
    layout: &Layout,
    made: &mut Vec<UmemMemory>,
    left: &mut Vec<LeftSockets>,
) -> Result<Vec<Ports>, Refusal> {
    let frames = interfaces.len() * layout.frames_per_port;
    made.retain(|memory| memory.is_for(frames, layout.chunk));
    let completer =
        |interface: &&Interface| (!interface.has_link_checksums()).then(|| Completer::new(interface.name()));
    let completers: Vec<_> = interfaces.iter().map(completer).collect();
    if programs.iter().any(AttachedProgram::forwards) {
        // Which frames the former program gave them it does not know.
        left.clear();
    }
    left.retain(|left| fits(left, interfaces, zero_copy, layout));
    let mut taken = 0;
    let sets = (0..layout.workers as u32).map(|queue| {
        if let Some(at) = left.iter().position(|left| left.queue == queue) {
            let left = left.swap_remove(at);
            match resume_queue(interfaces, programs, &completers, layout, left) {
                Ok(ports) => {
                    taken += 1;
                    return Ok(ports);
                }
                Err(reason) => debug!("queue {queue}: the sockets of the former process are closed: {reason}"),
            }
        }
        let memory = made.pop().map_or_else(|| UmemMemory::new(frames, layout.chunk), Ok)?;
        open_queue(interfaces, programs, &completers, zero_copy, layout, (queue, memory))
    });
    let sets = sets.collect::<Result<_, Refusal>>()?;
    if taken > 0 {
        info!("the sockets of {taken} worker(s) of the former process are taken over, and were never closed");
    }
    Ok(sets)
}

/// Whether sockets that a former process has left are those that would be opened for a queue.
pub(crate) fn fits(left: &LeftSockets, interfaces: &[&Interface], zero_copy: bool, layout: &Layout) -> bool {
    let frames = interfaces.len() * layout.frames_per_port;
    let bound = Bound { zero_copy, in_pieces: layout.is_in_pieces(), busy_poll: layout.busy_poll };
    let Ok(sizes) = ring_sizes(layout, frames) else { return false };
    // Their indexes are those of another namespace, if the sockets are.
    let own = new_socket().and_then(|socket| namespace_of(socket.as_raw_fd())).ok();
    let is_here = |one: &LeftSocket| own.is_some() && namespace_of(one.socket.as_raw_fd()).ok() == own;
    (left.chunks, left.chunk) == (frames, layout.chunk)
        && left.sockets.iter().map(|one| one.interface).eq(interfaces.iter().map(|one| one.index()))
        && left
            .sockets
            .iter()
            .all(|one| one.bound == bound && (one.ring, one.buffers) == (sizes.frames, sizes.buffers) && is_here(one))
        && (left.queue as usize) < layout.workers
}

/// How long what the kernel forwards out of an interface may wait there.
///
/// On a network card: in a transmit ring, which the card empties at the rate of its link. The other end of a veth takes frames when its core comes to it; and
/// at one go, those that were sent by a socket before those that were redirected, whatever came first (`veth_xdp_rcv`).
fn leaves_within(interface: &Interface) -> Duration {
    Duration::from_millis(if interface.has_link_checksums() { 2 } else { 10 })
}

/// Opens one queue of every interface over one UMEM.
fn open_queue(
    interfaces: &[&Interface],
    programs: &mut [AttachedProgram],
    completers: &[Option<Completer>],
    zero_copy: bool,
    layout: &Layout,
    (queue, memory): (u32, UmemMemory),
) -> Result<Ports, Refusal> {
    let UmemMemory { umem, socket } = memory;
    let buffers = umem.chunks();
    // SAFETY: no frame over the new memory exists.
    let mut pool = reserving(unsafe { Pool::over(memory_of(umem), HEADROOM) }, layout);
    let (mut socket, mut first) = (Some(socket), None);
    let mut ports: Vec<Box<dyn Port>> = Vec::new();
    for at in 0..interfaces.len() {
        let rings = bind(socket.take(), interfaces[at], zero_copy, layout, (queue, first), buffers)?;
        first = first.or(Some(rings.socket.as_raw_fd()));
        let port = port_over(rings, interfaces, at, &programs[at], &completers[at], layout, (queue, buffers));
        ports.push(start(port, interfaces[at], &mut programs[at], queue, &mut pool)?);
    }
    Ok((ports, pool))
}

/// The same of the sockets that a former process has left.
fn resume_queue(
    interfaces: &[&Interface],
    programs: &mut [AttachedProgram],
    completers: &[Option<Completer>],
    layout: &Layout,
    left: LeftSockets,
) -> Result<Ports, Refusal> {
    let LeftSockets { memory, chunks, chunk, queue, sockets } = left;
    let (umem, idle) = Umem::of_left(memory.into(), chunks, chunk).map_err(Refusal::failed)?;
    let lent = sockets.iter().map(|one| one.filled + one.in_flight).sum::<usize>();
    if idle.len() + lent > chunks {
        return Err(Refusal::Failed("more frames are in use than there are".into()));
    }
    // SAFETY: the former process uses neither those that are idle nor the rings, in which all others are that count.
    let mut pool = reserving(unsafe { Pool::partly(memory_of(umem), HEADROOM, idle, lent) }, layout);
    let mut ports: Vec<Box<dyn Port>> = Vec::new();
    for (at, LeftSocket { socket, filled, in_flight, ring, buffers, looked_at, .. }) in sockets.into_iter().enumerate()
    {
        let rings = Rings::of_left(socket, Sizes { frames: ring, buffers }).map_err(Refusal::failed)?;
        let port = port_over(rings, interfaces, at, &programs[at], &completers[at], layout, (queue, chunks));
        let port = port.resumed(filled, in_flight, looked_at);
        ports.push(start(port, interfaces[at], &mut programs[at], queue, &mut pool)?);
    }
    Ok((ports, pool))
}

/// The port of one interface over these rings.
fn port_over(
    rings: Rings,
    interfaces: &[&Interface],
    at: usize,
    program: &AttachedProgram,
    completer: &Option<Completer>,
    layout: &Layout,
    (queue, buffers): (u32, usize),
) -> XdpPort {
    let (interface, members) = (interfaces[at], interfaces.len().div_ceil(2));
    let shed = program.shed_maps().map(|maps| XdpShedFilter { maps: Arc::clone(maps), queue });
    let capabilities = Capabilities {
        backend: "xdp",
        driver_mode: program.driver,
        max_frame: interface.max_frame(),
        queue,
        ..Capabilities::default()
    };
    let cuts = layout.super_frames && interface.has_super_frames(program.driver);
    let cutter = cuts.then(|| Cutter::new(interface.mtu(), interface.max_frame()));
    XdpPort::new(rings, layout, capabilities, shed, interface.index())
        .finishing(completer.clone(), cutter)
        .telling((queue == 0).then(|| program.unclaimed().clone()))
        .watched(program.failure_switch(queue, at.is_multiple_of(members)))
        .beside(program.forwarded(queue), leaves_within(interface), buffers)
}

/// Has frames of the queue come to its port.
fn start(
    mut port: XdpPort,
    interface: &Interface,
    program: &mut AttachedProgram,
    queue: u32,
    pool: &mut Pool,
) -> Result<Box<dyn Port>, Refusal> {
    // The fill ring is full before the first frame is redirected to the socket.
    port.refill(pool);
    program.redirect(queue, port.fd()).map_err(|e| Refusal::Failed(format!("{}: {e}", interface.name())))?;
    port.wake_receiver();
    Ok(Box::new(port))
}

fn memory_of(umem: Umem) -> BufferMemory {
    let (base, chunks, chunk) = (umem.base(), umem.chunks(), umem.chunk());
    // SAFETY: the mapping is page-aligned, holds the chunks, and lives as long as its owner; only the frames over it and the kernel access it:
    // a former process that has left it has stopped to.
    unsafe { BufferMemory::new(base, chunks, chunk, Arc::new(umem)) }
}

/// The pool with what is kept for the ports.
fn reserving(mut pool: Pool, layout: &Layout) -> Pool {
    // A poll iteration takes at most two batches out of the rings of both ports, of frames in as many buffers as the longest needs.
    let buffers = layout.longest.div_ceil(layout.chunk - HEADROOM);
    pool.set_reserve(min(4 * layout.batch * buffers, layout.frames_per_port / 2));
    pool
}

/// Binds a socket, that of the memory or another, to one queue, and waits for a queue that its last owner is just leaving. `first` is the first socket of the
/// same memory.
fn bind(
    socket: Option<OwnedFd>,
    interface: &Interface,
    zero_copy: bool,
    layout: &Layout,
    (queue, first): (u32, Option<RawFd>),
    buffers: usize,
) -> Result<Rings, Refusal> {
    let name = interface.name();
    let mut flags = libc::XDP_USE_NEED_WAKEUP;
    flags |= if zero_copy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
    if layout.is_in_pieces() {
        flags |= libc::XDP_USE_SG;
    }
    let refused = |e: io::Error| bind_refusal(&e, name, queue, layout);
    let socket = socket.map_or_else(new_socket, Ok).map_err(refused)?;
    let rings = Rings::new(socket, ring_sizes(layout, buffers)?).map_err(refused)?;
    let binding = Binding { interface: interface.index(), queue, flags, first };
    let is_busy = |e: &io::Error| e.raw_os_error() == Some(libc::EBUSY);
    patiently(&format!("queue {queue} of {name}"), || rings.bind(binding), is_busy).map_err(refused)?;
    Ok(rings)
}

fn bind_refusal(error: &io::Error, name: &str, queue: u32, layout: &Layout) -> Refusal {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EINVAL) => Refusal::Unsupported(format!("the driver of {name} refuses it")),
        Some(libc::EBUSY) => Refusal::Busy {
            what: format!("queue {queue} of {name} is in use by another AF_XDP socket"),
            hint: "end that process".into(),
        },
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            Refusal::Limit(format!("{name}: {}", memory_refusal(2 * layout.frames_per_port * layout.chunk)))
        }
        Some(libc::EPERM | libc::EACCES) => {
            Refusal::Failed(format!("{name}: no permission; run as root or with CAP_NET_RAW"))
        }
        _ => descriptors_ran_out()
            .map_or_else(|| Refusal::Failed(format!("{name}: queue {queue}: {error}")), Refusal::Descriptors),
    }
}

fn memory_refusal(bytes: usize) -> String {
    format!(
        "cannot lock {} KiB a worker in memory; raise the limit (`ulimit -l unlimited`, LimitMEMLOCK=infinity), grant \
         CAP_IPC_LOCK, or use fewer frames",
        bytes / 1024
    )
}

fn ring_sizes(layout: &Layout, all: usize) -> Result<Sizes, Refusal> {
    let size = |entries: usize| {
        let size = u32::try_from(entries.next_power_of_two());
        size.map_err(|_| Refusal::Failed(format!("a ring of {entries} entries is not possible")))
    };
    // The kernel publishes late how far it has read the fill ring, so the ring looks fuller than it is; room for every frame makes that harmless. In a
    // completion ring of the same size no completion ever waits.
    Ok(Sizes { frames: size(layout.frames_per_port / 2)?, buffers: size(all)? })
}
