//! Opens the AF_XDP sockets: one UMEM for each worker, one socket for each of its queues.

use std::cmp::min;
use std::error::Error as _;
use std::num::NonZeroU32;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use xsk_rs::config::{
    BindFlags, FrameSize, Interface as XskInterface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::{FrameDesc, Umem};

use super::cutter::Cutter;
use super::layout::Layout;
use super::patience::patiently;
use super::port::{Rings, XdpPort};
use super::program::AttachedProgram;
use super::refusal::{Refusal, chain, descriptors_ran_out, os_error};
use super::shed::XdpShedFilter;
use crate::frame::HEADROOM;
use crate::netdev::Interface;
use crate::offload::Completer;
use crate::pool::{BufferMemory, MemoryOwner, Pool};
use crate::port::{Capabilities, Port, Ports};

/// The memory of one worker's frames, in no socket yet. To lock it takes time and nothing of an interface.
pub(crate) struct UmemMemory {
    umem: Umem,
    templates: Vec<FrameDesc>,
    /// Bytes of a buffer.
    chunk: usize,
}

impl UmemMemory {
    /// Locks memory for so many frames.
    ///
    /// # Errors
    ///
    /// When there is no such memory, or this process may not lock it.
    pub(crate) fn new(frames: usize, chunk: usize) -> Result<UmemMemory, Refusal> {
        let failed = Refusal::Failed;
        let count = u32::try_from(frames).ok().and_then(NonZeroU32::new);
        let count = count.ok_or_else(|| failed(format!("{frames} frames are no possible number of frames")))?;
        // The kernel publishes late how far it has read the fill ring, so the ring looks fuller than it is; room for every
        // frame makes that harmless. In a completion ring of the same size no completion ever waits.
        let all = ring_size(frames)?;
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(chunk as u32).map_err(|e| failed(chain(&e)))?)
            .frame_headroom(0)
            .fill_queue_size(all)
            .comp_queue_size(all)
            .build()
            .map_err(|e| failed(chain(&e)))?;
        let (umem, templates) = Umem::new(config, count, false).map_err(|e| match os_error(&e) {
            Some(libc::ENOBUFS | libc::ENOMEM) => Refusal::Limit(memory_refusal(frames * chunk)),
            _ => Refusal::failed(e),
        })?;
        Ok(UmemMemory { umem, templates, chunk })
    }

    fn is_for(&self, frames: usize, chunk: usize) -> bool {
        (self.templates.len(), self.chunk) == (frames, chunk)
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
    let UmemMemory { umem, templates, .. } = memory;
    let templates: Arc<[FrameDesc]> = templates.into();
    let mut pool = pool_over(&umem, &templates, layout);

    let members = interfaces.len().div_ceil(2);
    let mut open_port = |(at, ((interface, completer), program)): (
        usize,
        ((&&Interface, &Option<Completer>), &mut AttachedProgram),
    )| {
        let rings = bind(&umem, interface, zero_copy, layout, queue)?;
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
        let mut port = XdpPort::new(rings, umem.clone(), Arc::clone(&templates), layout, capabilities, shed)
            .finishing(completer.clone(), cutter)
            .watched(program.failure_switch(queue, at.is_multiple_of(members)))
            .beside(program.forwarded(queue), leaves_within(interface));
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

impl MemoryOwner for Umem {}

/// A pool of all buffers of a new UMEM.
fn pool_over(umem: &Umem, templates: &[FrameDesc], layout: &Layout) -> Pool {
    let mut first = templates[0];
    let natural = first.addr();
    // SAFETY: the UMEM is new: its first frame is in no ring and nothing else accesses it.
    let data = unsafe { umem.data_mut(&mut first) }.contents_mut().as_mut_ptr() as usize;
    // The mapping was made outside of Rust and its address passed to C, so its provenance is exposed; the provenance of the
    // slice above covers one frame only.
    let base = NonNull::new(ptr::with_exposed_provenance_mut::<u8>(data - natural)).expect("a mapping is not at null");
    // SAFETY: the UMEM's mapping is page-aligned, holds a chunk per template, lives as long as a clone of the UMEM, and
    // only this pool's frames and the kernel access it.
    let memory = unsafe { BufferMemory::new(base, templates.len(), layout.chunk, Arc::new(umem.clone())) };
    // SAFETY: no frame over the new memory exists.
    let mut pool = unsafe { Pool::over(memory, HEADROOM) };
    // A poll iteration takes at most two batches out of the rings of both ports, of frames in as many buffers as the longest needs.
    let buffers = layout.longest.div_ceil(layout.chunk - HEADROOM);
    pool.set_reserve(min(4 * layout.batch * buffers, layout.frames_per_port / 2));
    pool
}

/// Binds a socket to one queue, and waits for a queue that its last owner is just leaving.
fn bind(umem: &Umem, interface: &Interface, zero_copy: bool, layout: &Layout, queue: u32) -> Result<Rings, Refusal> {
    let name = interface.name();
    let size = ring_size(layout.frames_per_port / 2)?;
    let mut flags = BindFlags::XDP_USE_NEED_WAKEUP;
    flags |= if zero_copy { BindFlags::XDP_ZEROCOPY } else { BindFlags::XDP_COPY };
    if layout.multi_buffer || layout.super_frames {
        flags |= BindFlags::XDP_USE_SG;
    }
    // The second socket of a UMEM is bound by the library with the shared flag alone, and inherits the mode.
    let config = SocketConfig::builder()
        .rx_queue_size(size)
        .tx_queue_size(size)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(flags)
        .build();
    let xsk_interface: XskInterface =
        name.parse().map_err(|_| Refusal::Failed(format!("{name:?} is no interface name")))?;
    // SAFETY: no program is loaded by the library (inhibited), and the pair of interface and queue is bound once.
    let attempt = || unsafe { xsk_rs::Socket::new(config, umem, &xsk_interface, queue) };
    let code = |e: &xsk_rs::socket::SocketCreateError| e.source().and_then(os_error);
    match patiently(&format!("queue {queue} of {name}"), attempt, |e| code(e) == Some(libc::EBUSY)) {
        Ok((tx, rx, Some((fill, completion)))) => Ok(Rings { rx, tx, fill, completion }),
        Ok((_, _, None)) => Err(Refusal::Failed(format!("{name}: queue {queue} is already bound in this memory"))),
        Err(e) => Err(bind_refusal(code(&e), name, queue, &chain(&e), layout)),
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
            Refusal::Limit(format!("{name}: {}", memory_refusal(2 * layout.frames_per_port * layout.chunk)))
        }
        Some(libc::EPERM | libc::EACCES) => {
            Refusal::Failed(format!("{name}: no permission; run as root or with CAP_NET_RAW"))
        }
        _ => descriptors_ran_out()
            .map_or_else(|| Refusal::Failed(format!("{name}: queue {queue}: {text}")), Refusal::Descriptors),
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
