//! AF_PACKET: the backend that works on every interface, at the price of a copy each way.
//!
//! *Receiving* goes through a ring mapped from the kernel, `TPACKET_V2`. V3 packs better, but hands over whole blocks, and a
//! block that does not fill waits for a timer of a millisecond or more; V2 shows each frame the moment it is there, which
//! is what a bridge wants. Super-frames (TSO of a veth peer, GRO) do not fit a slot sized for the MTU: the kernel queues
//! them on the socket beside the ring (`PACKET_COPY_THRESH`), and we cut them into frames ([`offload`]). Unfinished
//! checksums are finished, tags the kernel stripped are put back: what the worker sees is what a wire would carry.
//!
//! *Sending* is `sendmmsg` on a socket of its own, past the queueing discipline (`PACKET_QDISC_BYPASS`), and not the mapped
//! transmit ring: that ring lends its pages to the skb, and a veth orphans the skb on its way to the peer, which marks the
//! slot free while the peer still reads it; where it does not, a receiver that dawdles holds up the slots of everybody
//! else. The copy into a ring slot would cost as much as the copy into the skb, and a system call a batch is needed
//! either way.
//!
//! What is left to others: turning offloads off, the interface's state, and keeping the host's own stack quiet.

mod offload;

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::frame::{Batch, Frame, Pool};
use crate::memory::{Refused, gather};
use crate::port::{Capabilities, Port, PortStatistics};
use offload::{MAX_HEADERS, Offload, Plan, VNET_HEADER};

/// How a packet port is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketOptions {
    /// Frames the receive ring holds, per queue.
    pub ring_frames: usize,
    /// Frames that wait for the kernel to take them before [`Port::transmit`] leaves them in the batch.
    pub transmit_frames: usize,
    /// Receive what is addressed to others; the kernel ends this with the socket.
    pub promiscuous: bool,
}

impl Default for PacketOptions {
    fn default() -> Self {
        PacketOptions { ring_frames: 2048, transmit_frames: 512, promiscuous: true }
    }
}

/// One queue of an interface, through AF_PACKET.
pub struct PacketPort {
    receiver: OwnedFd,
    sender: OwnedFd,
    ring: Ring,
    /// A frame too long for its slot, with its virtio-net header in front.
    scratch: Box<[u8]>,
    /// The super-frame being cut. Its slot stays ours until the last segment is out, so that poll(2) still finds the
    /// ring readable.
    cutting: Option<Cutting>,
    /// Frames the kernel has not taken yet.
    queue: VecDeque<Frame>,
    transmit_frames: usize,
    /// Kicks in a row at which the kernel took nothing.
    refusals: u32,
    max_frame: usize,
    index: u32,
    statistics: PortStatistics,
    /// The kernel forgets its count of drops when it is read.
    ring_drops: Cell<u64>,
}

/// Where the bytes of a received frame lie, and the tag to be put back into them.
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
    /// In `scratch`, behind the virtio-net header.
    Scratch,
}

#[derive(Debug, Clone, Copy)]
struct Cutting {
    received: Received,
    plan: Plan,
    next: usize,
}

/// The largest super-frame taken in: what TSO and GRO make unless told to make more. Longer ones are counted as truncated.
const SUPER_FRAME: usize = 65_536 + 64;

/// Messages handed over in one `sendmmsg`.
const CHUNK: usize = 64;

/// Buffers handed over in one `sendmmsg`; a jumbo frame needs several.
const BUFFERS: usize = 256;

/// Kicks in a row at which the kernel takes nothing before the frames are given up: a link without carrier refuses in the
/// same words as a full queue, and frames must not wait for it to come back.
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

    /// Opens the interface as `queues` ports among which the kernel shares the frames by flow (`PACKET_FANOUT_HASH`).
    ///
    /// Its hash is symmetric in addresses and ports and the same for every interface, so that both directions of a flow,
    /// on whichever two interfaces opened with the same number of queues, come to the port of the same index. Later
    /// fragments carry no ports and follow their addresses alone.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is no such interface, `PermissionDenied` without `CAP_NET_RAW`, `InvalidInput` when it is no
    /// Ethernet interface or `queues` is 0 or above 256, and whatever the kernel says otherwise (no memory for the ring).
    pub fn open_queues(interface: &str, queues: usize, options: &PacketOptions) -> io::Result<Vec<PacketPort>> {
        if queues == 0 || queues > 256 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{queues} queues; 1 to 256 are possible")));
        }
        let device = Device::find(interface)?;
        let mut ports = Vec::with_capacity(queues);
        let mut group = None;
        for index in 0..queues {
            let port = PacketPort::bind(&device, index, options)?;
            if queues > 1 {
                group = Some(join(&port.receiver, group)?);
            }
            ports.push(port);
        }
        // Until all have joined, each would see what belongs to the others; the filter kept them deaf.
        for port in &ports {
            set(&port.receiver, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0)?;
        }
        Ok(ports)
    }

    /// A bound port that hears nothing yet.
    fn bind(device: &Device, index: usize, options: &PacketOptions) -> io::Result<PacketPort> {
        // Room for two tags behind the 14 bytes of the header.
        let max_frame = device.mtu + 14 + 8;
        let receiver = socket()?;
        set(&receiver, libc::SOL_PACKET, libc::PACKET_VERSION, &TPACKET_V2)?;
        set(&receiver, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1)?;
        set(&receiver, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, &1)?;
        // Linux 4.20; before that, the packet type in each slot tells.
        let _ = set(&receiver, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1);
        // The queue beside the ring, for super-frames. Without CAP_NET_ADMIN the system's limit applies.
        set(&receiver, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(8 << 20))
            .or_else(|_| set(&receiver, libc::SOL_SOCKET, libc::SO_RCVBUF, &(8 << 20)))?;
        deafen(&receiver)?;
        let ring = Ring::new(&receiver, max_frame, options.ring_frames.max(1))?;
        device.bind(&receiver, libc::ETH_P_ALL as u16)?;
        if options.promiscuous {
            let request =
                Membership { ifindex: device.index, kind: libc::PACKET_MR_PROMISC as u16, ..Membership::default() };
            set(&receiver, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)?;
        }
        let sender = socket()?;
        // Without the bypass frames still go out, through the interface's queueing discipline.
        let _ = set(&sender, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1);
        set(&sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &(8 << 20))
            .or_else(|_| set(&sender, libc::SOL_SOCKET, libc::SO_SNDBUF, &(8 << 20)))?;
        // Protocol 0: this socket receives nothing.
        device.bind(&sender, 0)?;
        Ok(PacketPort {
            receiver,
            sender,
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
        })
    }

    /// Takes what the kernel left in the current slot. `None` when it is nothing to pass on; the slot is then given back.
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
            // SAFETY: the buffer is ours and as long as we say.
            let got = unsafe {
                let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
                libc::recv(self.receiver.as_raw_fd(), self.scratch.as_mut_ptr().cast(), self.scratch.len(), flags)
            };
            if usize::try_from(got) == Ok(VNET_HEADER + len) && VNET_HEADER + len <= self.scratch.len() {
                let offload = Offload::parse(self.scratch.first_chunk().expect("longer than the header"));
                return Some((Received { source: Source::Scratch, len, tag }, offload));
            }
        }
        self.statistics.truncated += 1;
        None
    }

    /// Finishes a whole frame and copies it into one of the pool.
    fn take(&mut self, received: &Received, offload: &Offload, pool: &mut Pool) -> Result<Frame, Refused> {
        let bytes = match received.source {
            Source::Slot(at) => self.ring.bytes(at, received.len).ok_or(Refused::TooLong)?,
            Source::Scratch => &mut self.scratch[VNET_HEADER..VNET_HEADER + received.len],
        };
        if let Some((start, offset)) = offload.checksum {
            // The kernel vouches for the place; should it lie outside, the receiver will see a wrong checksum.
            offload::complete(bytes, start, offset);
        }
        match &received.tag {
            Some(tag) if bytes.len() >= 12 => gather(pool, &[&bytes[..12], tag, &bytes[12..]], self.max_frame),
            _ => gather(pool, &[bytes], self.max_frame),
        }
    }

    /// The next segment of the super-frame being cut, copied into a frame of the pool.
    fn cut(&mut self, cutting: &Cutting, pool: &mut Pool) -> Result<Frame, Refused> {
        let received = &cutting.received;
        let bytes: &[u8] = match received.source {
            Source::Slot(at) => self.ring.bytes(at, received.len).ok_or(Refused::TooLong)?,
            Source::Scratch => &self.scratch[VNET_HEADER..VNET_HEADER + received.len],
        };
        let mut headers = [0; MAX_HEADERS];
        let (length, payload) = cutting.plan.segment(bytes, cutting.next, &mut headers);
        let tag: &[u8] = received.tag.as_ref().map_or(&[], |tag| tag.as_slice());
        gather(pool, &[&headers[..12], tag, &headers[12..length], &bytes[payload]], self.max_frame)
    }

    /// Counts what became of a frame. True when it is in the batch now.
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

    /// Hands frames to the kernel until it has all, or takes no more.
    fn kick(&mut self, pool: &mut Pool) {
        // Every round sends a frame, gives one up or ends the loop, but for interrupted ones, which are bounded too.
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
                        self.give_up(self.queue.len(), pool);
                    }
                    return;
                }
                Err(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => self.give_up(self.queue.len(), pool),
                // This frame cannot be sent at all, whatever it is (too long, shorter than its header).
                Err(_) => self.give_up(1, pool),
            }
        }
    }

    fn give_up(&mut self, frames: usize, pool: &mut Pool) {
        self.refusals = 0;
        self.statistics.transmit_errors += frames as u64;
        self.queue.drain(..frames).for_each(|frame| pool.put(frame));
    }

    /// One `sendmmsg` of the frames at the front of the queue: how many went, at least one, or the error of the first.
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
                // The kernel only reads what it is given to send.
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

impl Port for PacketPort {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        let mut received = 0;
        // Bounds the frames looked at, delivered or not: a pool that is empty must not keep us here.
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
                    Some((frame, offload)) => {
                        let bytes: Option<&[u8]> = match frame.source {
                            Source::Slot(at) => self.ring.bytes(at, frame.len).map(|bytes| &*bytes),
                            Source::Scratch => Some(&self.scratch[VNET_HEADER..VNET_HEADER + frame.len]),
                        };
                        match bytes.and_then(|bytes| Plan::new(bytes, &offload)) {
                            Some(plan) => self.cutting = Some(Cutting { received: frame, plan, next: 0 }),
                            None => {
                                self.statistics.truncated += 1;
                                self.ring.release();
                            }
                        }
                    }
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
            self.kick(pool);
        }
        let fits = batch.len().min(self.transmit_frames - self.queue.len());
        if fits < batch.len() {
            self.statistics.transmit_full += 1;
        }
        self.queue.extend(batch.drain(..fits));
        fits
    }

    fn flush(&mut self, pool: &mut Pool) {
        self.kick(pool);
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
            ..Capabilities::default()
        }
    }

    fn statistics(&self) -> PortStatistics {
        let mut kernel = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        if get(&self.receiver, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut kernel).is_ok() {
            self.ring_drops.set(self.ring_drops.get() + u64::from(kernel.tp_drops));
        }
        PortStatistics { receive_full: self.ring_drops.get(), ..self.statistics }
    }
}

/// The interface as the kernel knows it.
struct Device {
    index: i32,
    mtu: usize,
}

impl Device {
    fn find(name: &str) -> io::Result<Device> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        let text = CString::new(name).map_err(|_| invalid(format!("`{name}` is no interface name")))?;
        let fd = socket()?;
        // SAFETY: all zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        let bytes = text.as_bytes();
        if bytes.is_empty() || bytes.len() >= request.ifr_name.len() {
            return Err(invalid(format!("`{name}` is no interface name: it has 1 to 15 bytes")));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        let ask = |request: &mut libc::ifreq, what| {
            // SAFETY: the three requests below read and write an ifreq and nothing else.
            match unsafe { libc::ioctl(fd.as_raw_fd(), what, std::ptr::from_mut(request)) } {
                0 => Ok(()),
                _ => match io::Error::last_os_error() {
                    e if e.raw_os_error() == Some(libc::ENODEV) => {
                        Err(io::Error::new(io::ErrorKind::NotFound, format!("no interface is named `{name}`")))
                    }
                    e => Err(e),
                },
            }
        };
        ask(&mut request, libc::SIOCGIFINDEX)?;
        // SAFETY: the request filled in this field of the union.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        ask(&mut request, libc::SIOCGIFMTU)?;
        // SAFETY: as above.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        ask(&mut request, libc::SIOCGIFHWADDR)?;
        // SAFETY: as above.
        let kind = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
        if kind != libc::ARPHRD_ETHER && kind != libc::ARPHRD_LOOPBACK {
            return Err(invalid(format!("`{name}` is no Ethernet interface")));
        }
        Ok(Device { index, mtu: usize::try_from(mtu).unwrap_or(0).clamp(68, 65_536) })
    }

    fn bind(&self, fd: &OwnedFd, protocol: u16) -> io::Result<()> {
        // SAFETY: all zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = self.index;
        // SAFETY: the address is as long as we say.
        let result = unsafe {
            let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), length)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: a call without pointers; the descriptor it returns is nobody else's.
    unsafe {
        match libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn set<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value is as long as we say, and the kernel only reads it.
    let result = unsafe {
        let length = size_of::<T>() as libc::socklen_t;
        libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `T` is a plain C structure of integers: whatever the kernel writes is a valid value.
fn get<T: Copy>(fd: &OwnedFd, level: i32, name: i32, value: &mut T) -> io::Result<()> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes of plain integers.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, std::ptr::from_mut(value).cast(), &raw mut length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets nothing through until the filter is detached.
fn deafen(fd: &OwnedFd) -> io::Result<()> {
    // One instruction: return 0, the number of bytes to keep.
    let mut program = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Joins the fanout group `group`, or makes a new one, and returns its number. Members are numbered as they join.
fn join(fd: &OwnedFd, group: Option<u32>) -> io::Result<u32> {
    let flags = match group {
        None => libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_UNIQUEID,
        Some(_) => libc::PACKET_FANOUT_HASH,
    };
    let ask = |flags: u32| set(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &(group.unwrap_or(0) | flags << 16));
    // In a group the group's own flag decides; kernels before 6.1 do not know it, and there the packet type tells.
    ask(flags | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING).or_else(|_| ask(flags))?;
    let mut joined = 0u32;
    get(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &mut joined)?;
    Ok(joined & 0xffff)
}

/// `struct packet_mreq`.
#[repr(C)]
#[derive(Default)]
struct Membership {
    ifindex: i32,
    kind: u16,
    address_len: u16,
    address: [u8; 8],
}

/// `struct tpacket_req`.
#[repr(C)]
#[derive(Default)]
struct RingRequest {
    block_size: u32,
    blocks: u32,
    frame_size: u32,
    frames: u32,
}

/// `TPACKET_V2` of `enum tpacket_versions`.
const TPACKET_V2: i32 = 1;

/// What the kernel writes in front of the frame, `TPACKET_ALIGN(TPACKET2_HDRLEN)` and the virtio-net header at most.
const SLOT_OVERHEAD: usize = 96;

/// The receive ring, mapped.
struct Ring {
    base: NonNull<u8>,
    size: usize,
    block_size: usize,
    slot_size: usize,
    slots_per_block: usize,
    slots: usize,
    next: usize,
}

// SAFETY: the mapping belongs to this ring alone, and is used only through `&mut self` and the kernel's status word.
unsafe impl Send for Ring {}

/// A slot's header, read once.
struct Slot {
    status: u32,
    /// Bytes of the frame on the wire.
    len: u32,
    /// Bytes of it in the slot.
    captured: u32,
    /// Where in the slot the frame begins.
    mac: u16,
    tci: u16,
    tpid: u16,
    /// Whom the frame is for, `PACKET_HOST` and so on.
    kind: u8,
}

impl Ring {
    fn new(fd: &OwnedFd, max_frame: usize, frames: usize) -> io::Result<Ring> {
        let slot_size = (SLOT_OVERHEAD + max_frame).next_multiple_of(64);
        // The kernel wants blocks of whole pages; a power of two wastes none of what its allocator gives.
        let block_size = slot_size.next_power_of_two().max(64 << 10);
        let slots_per_block = block_size / slot_size;
        let blocks = frames.div_ceil(slots_per_block);
        let slots = blocks * slots_per_block;
        let size = blocks.checked_mul(block_size).filter(|size| u32::try_from(*size).is_ok());
        let Some(size) = size else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a receive ring of {frames} frames")));
        };
        // No truncation: all are at most `size`, which fits.
        let request = RingRequest {
            block_size: block_size as u32,
            blocks: blocks as u32,
            frame_size: slot_size as u32,
            frames: slots as u32,
        };
        set(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a fresh mapping at a place the kernel chooses.
        let base = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("a successful mmap is not null");
        Ok(Ring { base, size, block_size, slot_size, slots_per_block, slots, next: 0 })
    }

    /// The slot whose turn it is.
    fn slot(&self) -> *mut u8 {
        let offset =
            self.next / self.slots_per_block * self.block_size + self.next % self.slots_per_block * self.slot_size;
        // SAFETY: `next` is below `slots`, so the slot lies inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: the status is the first word of a slot, slots are aligned to 64 bytes, and both sides change it atomically.
        unsafe { AtomicU32::from_ptr(self.slot().cast()) }
    }

    /// The header of the current slot once the kernel has filled it. The slot is then ours until `release`.
    fn current(&self) -> Option<Slot> {
        // Acquire: what the kernel wrote before the status is seen after it.
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let slot = self.slot();
        // SAFETY: the slot is ours, begins with this header, aligned, and with a link-layer address behind it
        // (TPACKET_ALIGN of the header's 32 bytes is 32).
        let (header, address) = unsafe {
            (
                slot.cast::<libc::tpacket2_hdr>().read(),
                slot.add(size_of::<libc::tpacket2_hdr>()).cast::<libc::sockaddr_ll>(),
            )
        };
        const _: () = assert!(size_of::<libc::tpacket2_hdr>() == 32);
        Some(Slot {
            status,
            len: header.tp_len,
            captured: header.tp_snaplen,
            mac: header.tp_mac,
            tci: header.tp_vlan_tci,
            tpid: header.tp_vlan_tpid,
            // SAFETY: as above.
            kind: unsafe { (*address).sll_pkttype },
        })
    }

    /// `len` bytes at `at` of the current slot; `None` when they do not lie in it. Only between `current` and `release`.
    fn bytes(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        if at.checked_add(len)? > self.slot_size {
            return None;
        }
        // SAFETY: the range lies in the slot, which is ours: its callers have seen `current` return it, and the kernel leaves
        // it alone until its status is given back.
        Some(unsafe { std::slice::from_raw_parts_mut(self.slot().add(at), len) })
    }

    /// Gives the current slot back to the kernel.
    fn release(&mut self) {
        // Release: the kernel may overwrite the slot only after we have read it.
        self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % self.slots;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing points into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.size) };
    }
}
