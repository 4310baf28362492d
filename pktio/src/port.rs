//! The contract between an I/O backend and the worker: receive a batch, transmit a batch, flush, wait.

use std::fmt;
use std::iter::Sum;
use std::ops::Add;
use std::os::fd::RawFd;
use std::time::Duration;

use crate::failure::FailureSwitch;
use crate::frame::Batch;
use crate::left::{LeftSocket, LeftSockets};
use crate::pool::Pool;
use crate::shed::ShedFilter;

/// One queue of each of the interfaces that a worker serves, and the frames they share.
pub(crate) type Ports = (Vec<Box<dyn Port>>, Pool);

/// One queue of one interface.
///
/// A port never blocks without bound and never allocates per frame. The pool passed in is always the one the port was
/// opened with; ports panic on frames of another pool.
///
/// What only some ports can do is a trait of its own, which a port may offer: [`shed_filter`](Port::shed_filter),
/// [`failure_switch`](Port::failure_switch), [`kernel_forwarding`](Port::kernel_forwarding) and [`handover`](Port::handover).
pub trait Port: Send {
    /// Appends up to `max` received frames to `batch` and returns how many.
    ///
    /// The receive ring is refilled from `pool` as frames leave it. When the pool has no replacement, a frame is
    /// dropped, counted in [`PortStatistics::no_buffer`], and its buffer goes back to the ring: the ring never runs empty
    /// because frames are held elsewhere.
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize;

    /// Queues frames from the front of `batch`, as many as fit, and returns how many. The others stay in `batch`, in order.
    /// Takes completed transmissions back into `pool`.
    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize;

    /// Makes the system call that starts transmission if one is needed, and takes completed transmissions back into `pool`.
    fn flush(&mut self, pool: &mut Pool);

    /// The descriptor that becomes readable when frames have arrived; `None` for ports that are always ready.
    fn poll_fd(&self) -> Option<RawFd>;

    /// The ports that it consists of, if it is an aggregation; none otherwise.
    fn members(&self) -> &[Box<dyn Port>] {
        &[]
    }

    /// True once the port will never deliver a frame again (the end of a capture file).
    fn is_exhausted(&self) -> bool {
        false
    }

    /// True while frames wait in the transmit ring that the kernel would not take at the last [`flush`](Port::flush);
    /// [`wait`](crate::wait()) then sleeps no longer than a millisecond, so that the next flush comes soon.
    fn is_backlogged(&self) -> bool {
        false
    }

    /// The port's filter for load shedding; `None` when it has none, and the worker has to filter what it receives.
    fn shed_filter(&mut self) -> Option<&mut dyn ShedFilter> {
        None
    }

    /// Who does the worker's part while it does not take frames; `None` where nobody can.
    fn failure_switch(&mut self) -> Option<&mut dyn FailureSwitch> {
        None
    }

    /// Frames whose transmission is complete, so far. It stands still while the kernel or the device sends nothing.
    fn completed(&self) -> u64 {
        0
    }

    /// What the port tells of frames that the kernel forwards past it; `None` where the kernel forwards nothing.
    fn kernel_forwarding(&mut self) -> Option<&mut dyn KernelForwarding> {
        None
    }

    /// How the port leaves its sockets to another process; `None` where it cannot.
    fn handover(&mut self) -> Option<&mut dyn Handover> {
        None
    }

    /// What the port can do; it does not change while the port is open.
    fn capabilities(&self) -> Capabilities;

    /// The counters since the port was opened. May make a system call: for the control path, not for every poll iteration.
    fn statistics(&self) -> PortStatistics;
}

impl<P: Port + ?Sized> Port for Box<P> {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        (**self).receive(batch, max, pool)
    }

    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        (**self).transmit(batch, pool)
    }

    fn flush(&mut self, pool: &mut Pool) {
        (**self).flush(pool)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        (**self).poll_fd()
    }

    fn members(&self) -> &[Box<dyn Port>] {
        (**self).members()
    }

    fn is_exhausted(&self) -> bool {
        (**self).is_exhausted()
    }

    fn is_backlogged(&self) -> bool {
        (**self).is_backlogged()
    }

    fn shed_filter(&mut self) -> Option<&mut dyn ShedFilter> {
        (**self).shed_filter()
    }

    fn failure_switch(&mut self) -> Option<&mut dyn FailureSwitch> {
        (**self).failure_switch()
    }

    fn completed(&self) -> u64 {
        (**self).completed()
    }

    fn kernel_forwarding(&mut self) -> Option<&mut dyn KernelForwarding> {
        (**self).kernel_forwarding()
    }

    fn handover(&mut self) -> Option<&mut dyn Handover> {
        (**self).handover()
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn statistics(&self) -> PortStatistics {
        (**self).statistics()
    }
}

/// What the ports of a worker leave; `None` if they are others, or the kernel forwards past them. They are not to be used any more: what leaves them belongs
/// to the next process. `pool` has all frames back that are in no ring.
pub fn leave_sockets(lan: &mut dyn Port, wan: &mut dyn Port, pool: &mut Pool) -> Option<LeftSockets> {
    let mut sockets = Vec::new();
    let queue = wan.capabilities().queue;
    let (lan, wan) = (lan.handover()?, wan.handover()?);
    if !lan.leave(pool, &mut sockets) || !wan.leave(pool, &mut sockets) {
        return None;
    }
    let (memory, chunks, chunk) = pool.leave()?;
    Some(LeftSockets { memory, chunks, chunk, queue, sockets })
}

/// What a port tells, and is told, of frames that the kernel forwards by itself: beside a [`FastPath`](crate::FastPath), or a program that forwards.
pub trait KernelForwarding {
    /// Watches from now on when all frames given to the port so far have left: [`has_left`](KernelForwarding::has_left) says so. Returns false if it cannot,
    /// because the kernel has not taken some of them yet. Not to be called again until they have left.
    fn watch_leaving(&mut self) -> bool;

    /// Whether the frames that are watched have left: the device has sent them, at the other end of a veth the receiver has taken them, or they were
    /// dropped.
    fn has_left(&self) -> bool;

    /// Whether all frames that have come until now, and were to come to this port, have been [received](Port::receive): none lies in a ring or in the hands
    /// of the kernel. A port that cannot tell says no.
    fn is_drained(&self) -> bool;

    /// If what the kernel forwards by itself, out of this port, waits in other queues than what the port is given to send: within which time it has left. One
    /// may overtake the other there. `None`: both wait in the same queue.
    fn leaves_within(&self) -> Option<Duration>;

    /// Whether the kernel may forward frames from this port to the other one. At first it may. Where it may not, all of them come to the port.
    fn allow(&mut self, may: bool);
}

/// How a port leaves its sockets to another process, open and bound.
pub trait Handover {
    /// Adds the port's sockets to `sockets`. Returns false if it cannot leave them. The port is not to be used any more, except to be closed.
    fn leave(&mut self, pool: &mut Pool, sockets: &mut Vec<LeftSocket>) -> bool;
}

/// What a port can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The I/O backend, as it is named in interface names: `xdp`, `netmap`, `packet`, `pcap`, `memory`.
    pub backend: &'static str,
    /// The device reads and writes the frames in place.
    pub zero_copy: bool,
    /// The XDP program runs in the driver, before the kernel makes an skb.
    pub driver_mode: bool,
    /// The kernel says when it needs a system call to send or receive, so an idle ring costs none.
    pub need_wakeup: bool,
    /// A frame may lie in several buffers.
    pub multi_buffer: bool,
    /// The longest frame that can be received or sent, in bytes, from the destination address to the end of the payload.
    pub max_frame: usize,
    /// The interface's receive queue this port serves.
    pub queue: u32,
    /// Its frames lie in memory of the port, which stays open while that is mapped.
    pub owns_frames: bool,
    /// Another process can only have such a port when this one is closed. A port that is not so may be closed at leisure.
    pub exclusive: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Capabilities {
            backend: "",
            zero_copy: false,
            driver_mode: false,
            need_wakeup: false,
            multi_buffer: false,
            max_frame: 1518,
            queue: 0,
            owns_frames: false,
            exclusive: true,
        }
    }
}

/// Counters of a port since it was opened.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PortStatistics {
    /// Frames given to the worker.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames accepted for transmission.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Times that [`Port::transmit`] had to leave frames in the batch.
    pub transmit_full: u64,
    /// Frames that could not be sent at all (too long, refused by the kernel) and went back to the pool.
    pub transmit_errors: u64,
    /// Received frames dropped by the port because the pool had no buffer to replace theirs.
    pub no_buffer: u64,
    /// Received frames dropped because they were longer than [`Capabilities::max_frame`] or incomplete.
    pub truncated: u64,
    /// Frames the kernel dropped because the receive ring was full.
    pub receive_full: u64,
    /// Times the kernel found no buffer to receive into.
    pub fill_empty: u64,
    /// Frames the kernel dropped on the way to the port for other reasons.
    pub kernel_drops: u64,
    /// System calls that made the kernel send, or look for buffers to receive into.
    pub kicks: u64,
    /// SYNs of unproved sources that the port dropped because they were seen for the first time ([`Port::shed_filter`]).
    pub shed_fresh: u64,
    /// Repeated SYNs of unproved sources that the port dropped.
    pub shed_repeated: u64,
    /// How often the XDP program found that the worker did not take its frames, and bridged or dropped them in its place.
    pub failures: u64,
    /// Frames that it bridged then.
    pub failure_bridged: u64,
    /// Frames that it dropped then.
    pub failure_dropped: u64,
    /// Frames that the XDP program dropped because they came on a queue that no worker serves.
    pub unserved: u64,
    /// Frames whose TCP, UDP or SCTP checksum the sender had left to a NIC that is not there; the port has completed it.
    pub checksums_completed: u64,
    /// Super-frames (TSO, GRO) that the port has cut into frames.
    pub super_frames: u64,
    /// Super-frames dropped because the port cannot cut them: of an unknown kind, or with headers that contradict each other.
    pub uncut: u64,
    /// Frames that the kernel has forwarded from this port to the other one by itself ([`FastPath`](crate::FastPath)), super-frames counted once.
    pub forwarded: u64,
    /// Their bytes.
    pub forwarded_bytes: u64,
    /// Frames of connections that were handed down which came up because their sender had left the checksum to a device.
    pub forwarded_partial: u64,
    /// What the kernel counts of the rings of an AF_XDP socket; zero where the port has none.
    pub rings: RingStatistics,
}

/// What the kernel counts of the rings of one AF_XDP socket, as `XDP_STATISTICS` gives it and by the names there (`struct xdp_statistics` of
/// `linux/if_xdp.h`). Frames that it counts make no `skb`, so none of the kernel's drop reasons knows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStatistics {
    /// Frames dropped on reception for other reasons than a full receive ring: longer than a buffer, or no buffer was there.
    pub rx_dropped: u64,
    /// Descriptors of the fill ring that the kernel refused.
    pub rx_invalid_descs: u64,
    /// Descriptors of the transmit ring that the kernel refused.
    pub tx_invalid_descs: u64,
    /// Frames dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// Times the kernel found the fill ring empty when a frame came.
    pub rx_fill_ring_empty_descs: u64,
    /// Times the kernel found the transmit ring empty when it looked for frames to send.
    pub tx_ring_empty_descs: u64,
}

impl Add for PortStatistics {
    type Output = PortStatistics;

    fn add(self, other: PortStatistics) -> PortStatistics {
        PortStatistics {
            received: self.received + other.received,
            received_bytes: self.received_bytes + other.received_bytes,
            sent: self.sent + other.sent,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            transmit_full: self.transmit_full + other.transmit_full,
            transmit_errors: self.transmit_errors + other.transmit_errors,
            no_buffer: self.no_buffer + other.no_buffer,
            truncated: self.truncated + other.truncated,
            receive_full: self.receive_full + other.receive_full,
            fill_empty: self.fill_empty + other.fill_empty,
            kernel_drops: self.kernel_drops + other.kernel_drops,
            kicks: self.kicks + other.kicks,
            shed_fresh: self.shed_fresh + other.shed_fresh,
            shed_repeated: self.shed_repeated + other.shed_repeated,
            failures: self.failures + other.failures,
            failure_bridged: self.failure_bridged + other.failure_bridged,
            failure_dropped: self.failure_dropped + other.failure_dropped,
            unserved: self.unserved + other.unserved,
            checksums_completed: self.checksums_completed + other.checksums_completed,
            super_frames: self.super_frames + other.super_frames,
            uncut: self.uncut + other.uncut,
            forwarded: self.forwarded + other.forwarded,
            forwarded_bytes: self.forwarded_bytes + other.forwarded_bytes,
            forwarded_partial: self.forwarded_partial + other.forwarded_partial,
            rings: self.rings + other.rings,
        }
    }
}

impl Sum for PortStatistics {
    fn sum<I: Iterator<Item = PortStatistics>>(all: I) -> PortStatistics {
        all.fold(PortStatistics::default(), Add::add)
    }
}

impl Add for RingStatistics {
    type Output = RingStatistics;

    fn add(self, other: RingStatistics) -> RingStatistics {
        RingStatistics {
            rx_dropped: self.rx_dropped + other.rx_dropped,
            rx_invalid_descs: self.rx_invalid_descs + other.rx_invalid_descs,
            tx_invalid_descs: self.tx_invalid_descs + other.tx_invalid_descs,
            rx_ring_full: self.rx_ring_full + other.rx_ring_full,
            rx_fill_ring_empty_descs: self.rx_fill_ring_empty_descs + other.rx_fill_ring_empty_descs,
            tx_ring_empty_descs: self.tx_ring_empty_descs + other.tx_ring_empty_descs,
        }
    }
}

/// What one worker owns: its queue of both ports, and the frames they share.
///
/// The ports are dropped before the pool, so that their rings release the frames first.
pub struct Pair {
    /// The port to the LAN, where the servers are.
    pub lan: Box<dyn Port>,
    /// The port to the WAN.
    pub wan: Box<dyn Port>,
    /// The frames of both ports.
    pub pool: Pool,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("lan", &self.lan.capabilities())
            .field("wan", &self.wan.capabilities())
            .field("pool", &self.pool)
            .finish()
    }
}
