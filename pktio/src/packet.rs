//! AF_PACKET: the I/O backend that works on every interface, at the price of a copy each way.
//!
//! *Receiving* goes through a ring mapped from the kernel, `TPACKET_V2`. V3 packs better, but delivers whole blocks, and a
//! block that does not fill waits for a timer of a millisecond or more; V2 delivers each frame at once, which
//! is what a bridge needs. Super-frames (TSO of a veth peer, GRO) do not fit a slot sized for the MTU: the kernel queues
//! them on the socket beside the ring (`PACKET_COPY_THRESH`), and this module cuts them into frames ([`offload`](crate::offload)).
//! Partial checksums are completed and stripped tags restored, so that the worker sees what a link would carry.
//!
//! *Sending* is `sendmmsg` on a socket of its own, past the queueing discipline (`PACKET_QDISC_BYPASS`), and not the mapped
//! transmit ring: that ring lends its pages to the skb, and a veth orphans the skb on its way to the peer, which marks the
//! slot free while the peer still reads it; where it does not, a slow receiver holds up the slots of all
//! others. The copy into a ring slot would cost as much as the copy into the skb, and a system call for each batch is
//! needed either way.
//!
//! Offloads and the state of the interface are up to `netdev`.

mod fast_path;
mod ring;
mod socket;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::failure::FailureSwitch;
use crate::frame::{Batch, Frame};
use crate::offload::{self, MAX_HEADERS, Offload, Plan, SUPER_FRAME, VNET_HEADER};
use crate::pool::{Pool, Refused};
use crate::port::{Capabilities, KernelForwarding, Port, PortStatistics};
pub use fast_path::{Answering, FastPath};
use ring::{Ring, Slot, TPACKET_V2};
use socket::{Device, Membership};

/// How a packet port is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketOptions {
    /// Frames the receive ring holds, per queue.
    pub ring_frames: usize,
    /// Frames that wait for the kernel to take them before [`Port::transmit`] leaves them in the batch.
    pub transmit_frames: usize,
    /// Receive what is addressed to others; the kernel ends this with the socket.
    pub promiscuous: bool,
    /// Send past the interface's queueing discipline.
    pub bypasses_qdisc: bool,
    /// Receive nothing until the port joins a [`FastPath`].
    pub awaits_fast_path: bool,
}

impl Default for PacketOptions {
    fn default() -> Self {
        PacketOptions {
            ring_frames: 2048,
            transmit_frames: 512,
            promiscuous: true,
            bypasses_qdisc: true,
            awaits_fast_path: false,
        }
    }
}

/// One queue of an interface, through AF_PACKET.
pub struct PacketPort {
    receiver: OwnedFd,
    sender: OwnedFd,
    /// Beside a fast path: the socket that sends in turn with the other, so that what one has sent can be seen to have left.
    former_sender: Option<OwnedFd>,
    /// Whether frames are to be sent past the queueing discipline.
    bypasses_qdisc: bool,
    device: Device,
    ring: Ring,
    /// A frame too long for its slot, with its virtio-net header in front.
    scratch: Box<[u8]>,
    /// The super-frame being cut. Its slot is released after the last segment, so that poll(2) finds the ring readable until
    /// then.
    cutting: Option<Cutting>,
    /// Frames the kernel has not taken yet.
    queue: VecDeque<Frame>,
    transmit_frames: usize,
    /// Calls in a row in which the kernel took nothing.
    refusals: u32,
    max_frame: usize,
    index: u32,
    statistics: PortStatistics,
    /// The kernel resets its count of drops when it is read.
    ring_drops: Cell<u64>,
    /// The frames and bytes that the kernel forwards past this port; of one of an interface's ports.
    forwarded: Option<[&'static AtomicU64; 3]>,
    /// Says that the worker's flows are in the map that the programs ask before they answer a SYN.
    entered: Option<&'static AtomicU64>,
}

/// Where the bytes of a received frame lie, and the tag to be restored in them.
#[derive(Debug, Clone, Copy)]
struct Received {
    source: Source,
    len: usize,
    tag: Option<[u8; 4]>,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    /// In the ring's current slot, at this offset.
    Slot(usize),
    /// In `scratch`, at this offset.
    Scratch(usize),
}

impl Received {
    /// Its bytes.
    fn bytes<'a>(&self, ring: &'a mut Ring, scratch: &'a mut [u8]) -> Option<&'a mut [u8]> {
        match self.source {
            Source::Slot(at) => ring.bytes(at, self.len),
            Source::Scratch(at) => scratch.get_mut(at..at + self.len),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Cutting {
    received: Received,
    plan: Plan,
    next: usize,
}

/// Messages sent with one `sendmmsg`.
const CHUNK: usize = 64;

/// Buffers sent with one `sendmmsg`; a jumbo frame needs several.
const BUFFERS: usize = 256;

/// Calls in a row in which the kernel takes nothing before the frames are dropped: a link without carrier gives the same
/// error as a full queue, and frames must not wait for the link to come back.
const REFUSALS: u32 = 64;

impl PacketPort {
    /// Opens the interface as one queue.
    ///
    /// # Errors
    ///
    /// As [`open_queues`](Self::open_queues).
    pub fn open(interface: &str, options: &PacketOptions) -> io::Result<PacketPort> {
        let mut ports = PacketPort::open_queues(interface, 1, options)?;
        Ok(ports.remove(0))
    }

    /// Opens the interface as `queues` ports among which the kernel distributes the frames by flow (`PACKET_FANOUT_HASH`).
    ///
    /// Its hash is symmetric in addresses and ports and the same for every interface, so that both directions of a flow,
    /// on whichever two interfaces opened with the same number of queues, come to the port of the same index. Later
    /// fragments carry no ports and follow their addresses alone.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is no such interface, `PermissionDenied` without `CAP_NET_RAW`, `InvalidInput` when it is no
    /// Ethernet interface or `queues` is 0 or above 256, and other errors of the kernel (no memory for the ring).
    pub fn open_queues(interface: &str, queues: usize, options: &PacketOptions) -> io::Result<Vec<PacketPort>> {
        if queues == 0 || queues > 256 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{queues} queues; 1 to 256 are possible")));
        }
        let device = Device::find(interface)?;
        // At once: the kernel waits for all processors, 20 ms for each.
        let ports = thread::scope(|scope| {
            let bind = |index| scope.spawn(move || PacketPort::bind(&device, index, options));
            let threads: Vec<_> = (0..queues).map(bind).collect();
            let ports = threads.into_iter().map(|thread| thread.join().expect("a thread that binds does not panic"));
            ports.collect::<io::Result<Vec<_>>>()
        })?;
        let mut group = None;
        for port in ports.iter().filter(|_| queues > 1) {
            group = Some(socket::join_fanout(&port.receiver, group)?);
        }
        // Until all have joined, each would receive frames of the others; the filter has blocked them. A fast path puts its own in the place of it.
        for port in ports.iter().filter(|_| !options.awaits_fast_path) {
            socket::set(&port.receiver, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0)?;
        }
        Ok(ports)
    }

    /// From now on the fast path decides which frames of this port of `side` come to it, and forwards the others.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub(crate) fn join(&mut self, fast_path: &FastPath, side: usize) -> io::Result<()> {
        self.former_sender = Some(sender(&self.device, self.bypasses_qdisc)?);
        fast_path.sort(side, &self.receiver)?;
        if self.index == 0 {
            self.forwarded = Some(fast_path.forwarded(side));
        }
        if side == 1 {
            self.entered = fast_path.flows_entered()?.get(self.index as usize).copied();
        }
        Ok(())
    }

    /// A bound port that receives nothing yet.
    fn bind(device: &Device, index: usize, options: &PacketOptions) -> io::Result<PacketPort> {
        // Room for two tags behind the 14 bytes of the header.
        let max_frame = device.mtu + 14 + 8;
        let receiver = socket::open()?;
        socket::set(&receiver, libc::SOL_PACKET, libc::PACKET_VERSION, &TPACKET_V2)?;
        socket::set(&receiver, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1)?;
        socket::set(&receiver, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, &1)?;
        // Since Linux 4.20; before that, the packet type in each slot shows it.
        let _ = socket::set(&receiver, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1);
        // The queue beside the ring, for super-frames. Without CAP_NET_ADMIN the system's limit applies.
        socket::set(&receiver, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(8 << 20))
            .or_else(|_| socket::set(&receiver, libc::SOL_SOCKET, libc::SO_RCVBUF, &(8 << 20)))?;
        socket::block_all(&receiver)?;
        let ring = Ring::new(&receiver, max_frame, options.ring_frames.max(1))?;
        device.bind(&receiver, libc::ETH_P_ALL as u16)?;
        if options.promiscuous {
            let request =
                Membership { ifindex: device.index, kind: libc::PACKET_MR_PROMISC as u16, ..Membership::default() };
            socket::set(&receiver, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)?;
        }
        Ok(PacketPort {
            receiver,
            sender: sender(device, options.bypasses_qdisc)?,
            former_sender: None,
            bypasses_qdisc: options.bypasses_qdisc,
            device: *device,
            ring,
            scratch: vec![0; VNET_HEADER + SUPER_FRAME].into(),
            cutting: None,
            queue: VecDeque::with_capacity(options.transmit_frames.max(1)),
            transmit_frames: options.transmit_frames.max(1),
            refusals: 0,
            max_frame,
            index: index as u32,
            statistics: PortStatistics::default(),
            ring_drops: Cell::new(0),
            forwarded: None,
            entered: None,
        })
    }

    /// Reads the frame in the current slot. `None` when there is nothing to deliver; the caller then releases the slot.
    fn accept(&mut self, slot: &Slot) -> Option<(Received, Offload)> {
        let tag = (slot.status & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
            let known = slot.status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            let [a, b] = if known { slot.tpid } else { 0x8100 }.to_be_bytes();
            let [c, d] = slot.tci.to_be_bytes();
            [a, b, c, d]
        });
        let len = slot.len as usize;
        if slot.kind == libc::PACKET_OUTGOING {
            return None;
        }
        if slot.captured == slot.len {
            let header = self.ring.bytes(usize::from(slot.mac).checked_sub(VNET_HEADER)?, VNET_HEADER)?;
            let offload = Offload::parse(header.first_chunk().expect("as long as asked"));
            self.ring.bytes(usize::from(slot.mac), len)?;
            return Some((Received { source: Source::Slot(usize::from(slot.mac)), len, tag }, offload));
        }
        if slot.status & libc::TP_STATUS_COPY != 0 {
            // SAFETY: the buffer is a local one of the length given.
            let got = unsafe {
                let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
                libc::recv(self.receiver.as_raw_fd(), self.scratch.as_mut_ptr().cast(), self.scratch.len(), flags)
            };
            if usize::try_from(got) == Ok(VNET_HEADER + len) && VNET_HEADER + len <= self.scratch.len() {
                let offload = Offload::parse(self.scratch.first_chunk().expect("longer than the header"));
                return Some((Received { source: Source::Scratch(VNET_HEADER), len, tag }, offload));
            }
        }
        self.statistics.truncated += 1;
        None
    }

    /// Completes a whole frame and copies it into one of the pool.
    fn take(&mut self, received: &Received, offload: &Offload, pool: &mut Pool) -> Result<Frame, Refused> {
        let bytes = received.bytes(&mut self.ring, &mut self.scratch).ok_or(Refused::TooLong)?;
        if let Some((start, offset)) = offload.checksum {
            // The kernel gives the place; if it lies outside, the receiver sees a wrong checksum.
            self.statistics.checksums_completed += u64::from(offload::complete(bytes, start, offset));
        }
        match &received.tag {
            Some(tag) if bytes.len() >= 12 => pool.gather(&[&bytes[..12], tag, &bytes[12..]], self.max_frame),
            _ => pool.gather(&[bytes], self.max_frame),
        }
    }

    /// How the super-frame is to be cut; `None` when it cannot be.
    fn plan(&mut self, mut received: Received, mut offload: Offload) -> Option<Cutting> {
        let bytes = received.bytes(&mut self.ring, &mut self.scratch)?;
        let stripped = offload::strip_jumbo(bytes);
        if let Some((start, _)) = &mut offload.checksum {
            *start = start.checked_sub(stripped)?;
        }
        let plan = Plan::new(&bytes[stripped..], &offload)?;
        received.len -= stripped;
        let (Source::Slot(at) | Source::Scratch(at)) = &mut received.source;
        *at += stripped;
        Some(Cutting { received, plan, next: 0 })
    }

    /// The next segment of the super-frame being cut, copied into a frame of the pool.
    fn cut(&mut self, cutting: &Cutting, pool: &mut Pool) -> Result<Frame, Refused> {
        let received = &cutting.received;
        let bytes = received.bytes(&mut self.ring, &mut self.scratch).ok_or(Refused::TooLong)?;
        let mut headers = [0; MAX_HEADERS];
        let (length, payload) = cutting.plan.segment(bytes, cutting.next, &mut headers);
        let tag: &[u8] = received.tag.as_ref().map_or(&[], |tag| tag.as_slice());
        pool.gather(&[&headers[..12], tag, &headers[12..length], &bytes[payload]], self.max_frame)
    }

    /// Counts a frame, and puts it into the batch if it was made. True when it is in the batch now.
    fn deliver(&mut self, frame: Result<Frame, Refused>, batch: &mut Batch) -> bool {
        match frame {
            Ok(frame) => {
                self.statistics.received += 1;
                self.statistics.received_bytes += frame.total() as u64;
                batch.push(frame);
                return true;
            }
            Err(Refused::NoBuffer) => self.statistics.no_buffer += 1,
            Err(Refused::TooLong) => self.statistics.truncated += 1,
        }
        false
    }

    /// Sends queued frames until all are sent or the kernel takes no more.
    fn send_queued(&mut self, pool: &mut Pool) {
        // Every round sends a frame, drops one or ends the loop, except interrupted ones, which are bounded too.
        let mut interrupted = 0;
        while !self.queue.is_empty() {
            match self.send_chunk() {
                Ok(sent) => {
                    self.refusals = 0;
                    for frame in self.queue.drain(..sent) {
                        self.statistics.sent += 1;
                        self.statistics.sent_bytes += frame.total() as u64;
                        pool.put(frame);
                    }
                }
                Err(libc::EINTR) if interrupted < 8 => interrupted += 1,
                Err(libc::EAGAIN | libc::ENOBUFS | libc::EINTR) => {
                    self.refusals += 1;
                    if self.refusals >= REFUSALS {
                        self.drop_queued(self.queue.len(), pool);
                    }
                    return;
                }
                Err(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => self.drop_queued(self.queue.len(), pool),
                // This frame cannot be sent at all (too long, shorter than its header).
                Err(_) => self.drop_queued(1, pool),
            }
        }
    }

    fn drop_queued(&mut self, frames: usize, pool: &mut Pool) {
        self.refusals = 0;
        self.statistics.transmit_errors += frames as u64;
        self.queue.drain(..frames).for_each(|frame| pool.put(frame));
    }

    /// One `sendmmsg` of the frames at the front of the queue: how many were sent, at least one, or the error of the first.
    fn send_chunk(&self) -> Result<usize, i32> {
        let mut buffers = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BUFFERS];
        // SAFETY: all zero is a valid message header, with no name, no buffers and no control data.
        let mut messages: [libc::mmsghdr; CHUNK] = unsafe { mem::zeroed() };
        let mut used = 0;
        let mut count = 0;
        for (frame, message) in self.queue.iter().zip(&mut messages) {
            let need = frame.buffers();
            if need > BUFFERS {
                return if count == 0 { Err(libc::EMSGSIZE) } else { self.send(&mut messages[..count]) };
            }
            if used + need > BUFFERS {
                break;
            }
            for (buffer, segment) in buffers[used..].iter_mut().zip(frame.segments()) {
                // The kernel only reads the bytes to be sent.
                *buffer = libc::iovec { iov_base: segment.as_ptr().cast_mut().cast(), iov_len: segment.len() };
            }
            message.msg_hdr.msg_iov = &mut buffers[used];
            message.msg_hdr.msg_iovlen = need as _;
            used += need;
            count += 1;
        }
        self.send(&mut messages[..count])
    }

    fn send(&self, messages: &mut [libc::mmsghdr]) -> Result<usize, i32> {
        // SAFETY: the messages point to buffers of the frames in `queue`, which outlive the call.
        let sent = unsafe {
            let count = messages.len() as libc::c_uint;
            libc::sendmmsg(self.sender.as_raw_fd(), messages.as_mut_ptr(), count, libc::MSG_DONTWAIT as _)
        };
        match usize::try_from(sent) {
            Ok(0) => Err(libc::EAGAIN),
            Ok(sent) => Ok(sent),
            Err(_) => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

/// A socket that sends by this interface and receives nothing.
fn sender(device: &Device, bypasses_qdisc: bool) -> io::Result<OwnedFd> {
    let sender = socket::open()?;
    // Without the bypass frames still go out, through the interface's queueing discipline.
    let _ = socket::set(&sender, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &i32::from(bypasses_qdisc));
    socket::set(&sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &(8 << 20))
        .or_else(|_| socket::set(&sender, libc::SOL_SOCKET, libc::SO_SNDBUF, &(8 << 20)))?;
    // Protocol 0: it receives nothing.
    device.bind(&sender, 0)?;
    Ok(sender)
}

impl FailureSwitch for &'static AtomicU64 {
    fn set_flows_entered(&mut self) {
        self.store(1, Ordering::Release);
    }

    fn failures(&self) -> u64 {
        // Nobody does anything in a worker's place.
        0
    }
}

impl Port for PacketPort {
    fn failure_switch(&mut self) -> Option<&mut dyn FailureSwitch> {
        self.entered.as_mut().map(|entered| entered as &mut dyn FailureSwitch)
    }

    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        let mut received = 0;
        // Bounds the frames read, delivered or not: an empty pool must not make the loop endless.
        for _ in 0..max {
            if self.cutting.is_none() {
                let Some(slot) = self.ring.current() else { break };
                match self.accept(&slot) {
                    None => self.ring.release(),
                    Some((frame, offload)) if offload.segmentation.is_none() => {
                        let frame = self.take(&frame, &offload, pool);
                        received += usize::from(self.deliver(frame, batch));
                        self.ring.release();
                    }
                    Some((frame, offload)) => match self.plan(frame, offload) {
                        Some(cutting) => {
                            self.statistics.super_frames += 1;
                            self.cutting = Some(cutting);
                        }
                        None => {
                            self.statistics.uncut += 1;
                            self.ring.release();
                        }
                    },
                }
            }
            if let Some(mut cutting) = self.cutting.take() {
                let frame = self.cut(&cutting, pool);
                received += usize::from(self.deliver(frame, batch));
                cutting.next += 1;
                if cutting.next < cutting.plan.count() {
                    self.cutting = Some(cutting);
                } else {
                    self.ring.release();
                }
            }
        }
        received
    }

    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        if batch.len() > self.transmit_frames - self.queue.len() {
            self.send_queued(pool);
        }
        let fits = batch.len().min(self.transmit_frames - self.queue.len());
        if fits < batch.len() {
            self.statistics.transmit_full += 1;
        }
        self.queue.extend(batch.drain(..fits));
        fits
    }

    fn flush(&mut self, pool: &mut Pool) {
        self.send_queued(pool);
    }

    fn kernel_forwarding(&mut self) -> Option<&mut dyn KernelForwarding> {
        if self.former_sender.is_some() { Some(self) } else { None }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.receiver.as_raw_fd())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            backend: "packet",
            multi_buffer: true,
            max_frame: self.max_frame,
            queue: self.index,
            // Each socket gets all frames; but beside a fast path its filter decides what becomes of them.
            exclusive: self.former_sender.is_some(),
            ..Capabilities::default()
        }
    }

    fn statistics(&self) -> PortStatistics {
        let mut kernel = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        if socket::get(&self.receiver, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut kernel).is_ok() {
            self.ring_drops.set(self.ring_drops.get() + u64::from(kernel.tp_drops));
        }
        let [forwarded, forwarded_bytes, _] =
            self.forwarded.map_or([0; 3], |counts| counts.map(|n| n.load(Ordering::Relaxed)));
        PortStatistics { receive_full: self.ring_drops.get(), forwarded, forwarded_bytes, ..self.statistics }
    }
}

impl KernelForwarding for PacketPort {
    fn watch_leaving(&mut self) -> bool {
        match &mut self.former_sender {
            Some(former) if self.queue.is_empty() => {
                mem::swap(&mut self.sender, former);
                true
            }
            _ => false,
        }
    }

    fn has_left(&self) -> bool {
        // The kernel charges a frame to its socket until the device has sent it, or until the stack behind the other end of a veth has taken it out of its
        // queue.
        self.former_sender.as_ref().is_some_and(|former| socket::unsent(former) == 0)
    }

    fn is_drained(&self) -> bool {
        // The kernel decides about a frame and fills its slot in one go.
        self.cutting.is_none() && self.ring.current().is_none()
    }

    fn allow(&mut self, may: bool) {
        if let Some([_, _, stopped]) = self.forwarded {
            stopped.store(u64::from(!may), Ordering::Relaxed);
        }
    }

    fn leaves_within(&self) -> Option<Duration> {
        // Both go through the queue of the device.
        None
    }
}
