//! Opens the AF_XDP sockets: one UMEM for each worker, one socket for each of its queues.

use std::cmp::min;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::cutter::Cutter;
use super::layout::Layout;
use super::patience::patiently;
use super::port::XdpPort;
use super::program::AttachedProgram;
use super::refusal::{Refusal, descriptors_ran_out};
use super::rings::{Binding, Rings, Sizes, Umem, new_socket};
use super::shed::XdpShedFilter;
use crate::frame::HEADROOM;
use crate::netdev::Interface;
use crate::offload::Completer;
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

/// Opens the sockets of every worker, in memory that was `made` before where there is some that fits, and redirects the frames of its queues to them.
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
) -> Result<Vec<Ports>, Refusal> {
    let frames = interfaces.len() * layout.frames_per_port;
    made.retain(|memory| memory.is_for(frames, layout.chunk));
    let completer =
        |interface: &&Interface| (!interface.has_link_checksums()).then(|| Completer::new(interface.name()));
    let completers: Vec<_> = interfaces.iter().map(completer).collect();
    (0..layout.workers)
        .map(|queue| {
            let memory = made.pop().map_or_else(|| UmemMemory::new(frames, layout.chunk), Ok)?;
            open_queue(interfaces, programs, &completers, zero_copy, layout, (queue as u32, memory))
        })
        .collect()
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
    let failed = Refusal::Failed;
    let UmemMemory { umem, socket } = memory;
    let buffers = umem.chunks();
    let mut pool = pool_over(umem, layout);
    let (mut socket, mut first) = (Some(socket), None);

    let members = interfaces.len().div_ceil(2);
    let mut open_port = |(at, ((interface, completer), program)): (
        usize,
        ((&&Interface, &Option<Completer>), &mut AttachedProgram),
    )| {
        let rings = bind(socket.take(), interface, zero_copy, layout, (queue, first), buffers)?;
        first = first.or(Some(rings.socket.as_raw_fd()));
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
        let mut port = XdpPort::new(rings, layout, capabilities, shed)
            .finishing(completer.clone(), cutter)
            .watched(program.failure_switch(queue, at.is_multiple_of(members)))
            .beside(program.forwarded(queue), leaves_within(interface), buffers);
        // The fill ring is full before the first frame is redirected to the socket.
        port.refill(&mut pool);
        program.redirect(queue, port.fd()).map_err(|e| failed(format!("{}: {e}", interface.name())))?;
        port.wake_receiver();
        Ok(Box::new(port) as Box<dyn Port>)
    };
    let each = interfaces.iter().zip(completers).zip(programs).enumerate();
    let ports = each.map(&mut open_port).collect::<Result<_, _>>()?;
    Ok((ports, pool))
}

/// A pool of all buffers of a new memory.
fn pool_over(umem: Umem, layout: &Layout) -> Pool {
    let (base, chunks) = (umem.base(), umem.chunks());
    // SAFETY: the mapping is page-aligned, holds the chunks, and lives as long as its owner; only this pool's frames and the kernel access it.
    let memory = unsafe { BufferMemory::new(base, chunks, layout.chunk, Arc::new(umem)) };
    // SAFETY: no frame over the new memory exists.
    let mut pool = unsafe { Pool::over(memory, HEADROOM) };
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
    if layout.multi_buffer || layout.super_frames {
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
