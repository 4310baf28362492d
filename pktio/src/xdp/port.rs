//! One queue of one interface through an AF_XDP socket.

use std::cell::Cell;
use std::cmp::min;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::cutter::Cutter;
use super::failure::{PATIENCE, XdpFailureSwitch};
use super::forward::ForwardedThere;
use super::layout::Layout;
use super::program::Unclaimed;
use super::rings::{Descriptor, Rings, Sizes, is_zero_copy, set_option, statistics as kernel_statistics};
use super::shed::XdpShedFilter;
use crate::failure::FailureSwitch;
use crate::frame::{Batch, Frame, HEADROOM};
use crate::left::{Bound, LeftSocket, monotonic};
use crate::offload::{Completer, SUPER_FRAME};
use crate::pool::{Pool, Refused};
use crate::port::{Capabilities, Handover, KernelForwarding, Port, PortStatistics, RingStatistics};
use crate::shed::ShedFilter;

/// Entries taken out of a ring, or put into it, at once.
const STRIDE: usize = 64;

/// The most buffers a frame may lie in: what an skb of the kernel can carry in fragments, less one for safety.
const MAX_BUFFERS: usize = 16;

/// The shortest possible frame: two addresses and a type.
const MIN_FRAME: usize = 14;

/// The frames that the kernel sends in one system call in copy mode, unless `XDP_MAX_TX_SKB_BUDGET` raises it.
const COPY_BUDGET: usize = 32;

/// The option that raises it, at `SOL_XDP`, since Linux 6.18; `libc` does not name it yet.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// How long the kernel looks for frames in one call when a worker drives the receive path, in microseconds; the call
/// never waits, so any time but zero means one look.
const BUSY_POLL_MICROS: libc::c_int = 20;

/// One queue of one interface through an AF_XDP socket.
pub(super) struct XdpPort {
    rings: Rings,
    /// Bytes of a buffer.
    chunk: usize,
    /// Entries of the transmit ring.
    ring: usize,
    /// Frames the kernel sends in one system call, in copy mode.
    budget: usize,
    /// Whether the worker drives the device's receive path itself.
    busy_poll: bool,
    /// Buffers to be kept in fill ring and receive ring together.
    target: usize,
    /// So many must remain there, even if received frames are dropped for it.
    low: usize,
    /// Buffers that are there now.
    filled: usize,
    /// Frames queued for transmission and not completed yet, in buffers.
    in_flight: usize,
    /// The kernel has not taken all of the transmit ring, and the last system call made no progress.
    backlog: bool,
    /// The interface was down at the last attempt to send.
    is_down: bool,
    /// The first buffers of a frame whose last has not been read yet. Empty between two calls.
    partial: Option<Frame>,
    /// The rest of a frame that is too long is being discarded.
    discarding: bool,
    capabilities: Capabilities,
    statistics: PortStatistics,
    fd: RawFd,
    /// The program's filter for load shedding, if it has one.
    shed: Option<XdpShedFilter>,
    /// What came on queues that no worker serves, which one port of an interface tells.
    unclaimed: Option<Unclaimed>,
    /// What the program is told of this worker, where it acts on it.
    failure: Option<XdpFailureSwitch>,
    /// Frames whose transmission is complete, in buffers.
    completed: u64,
    /// Frames taken out of the receive ring, and those that the kernel has dropped instead of putting them there, as far as it was asked.
    taken: u64,
    missed: Cell<u64>,
    /// How long what is forwarded out of this port may wait there.
    leaves_within: Duration,
    /// What the program forwards past this port, and how to see when frames have left, where it does.
    forwarded: Option<(ForwardedThere, Leaving)>,
    /// What completes checksums, where senders may leave them to a NIC.
    completer: Option<Completer>,
    /// What cuts super-frames, where they may come.
    cutter: Option<Cutter>,
    /// The index of the interface.
    interface: u32,
    /// What the kernel had counted of the socket before.
    before: libc::xdp_statistics,
    /// How the socket was opened.
    bound: Bound,
    /// After this time what is in the receive ring is not to be taken any more, if it is a former process's socket that has not been looked at yet.
    stale_after: Option<Duration>,
}

impl XdpPort {
    /// A port over these rings. What the socket and the layout determine is added to `capabilities`.
    pub(super) fn new(
        rings: Rings,
        layout: &Layout,
        capabilities: Capabilities,
        shed: Option<XdpShedFilter>,
        interface: u32,
    ) -> XdpPort {
        let fd = rings.socket.as_raw_fd();
        let target = layout.frames_per_port / 2;
        let ring = target.next_power_of_two();
        // In copy mode every queued frame is charged to the socket's send buffer until the device has sent it; the
        // default holds a few hundred. Refused without CAP_NET_ADMIN; the default then stays.
        let bytes = libc::c_int::try_from(ring * (layout.chunk + 1024)).unwrap_or(libc::c_int::MAX);
        let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes);
        // One system call then sends the whole ring.
        let budget = libc::c_int::try_from(ring).unwrap_or(libc::c_int::MAX);
        let raised = set_option(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget).is_ok();
        let busy_poll = layout.busy_poll && prefer_busy_poll(fd, layout.batch).is_ok();
        XdpPort {
            rings,
            chunk: layout.chunk,
            ring,
            budget: if raised { ring } else { COPY_BUDGET },
            busy_poll,
            target,
            low: target / 4,
            filled: 0,
            in_flight: 0,
            backlog: false,
            is_down: false,
            partial: None,
            discarding: false,
            capabilities: Capabilities {
                zero_copy: is_zero_copy(fd),
                need_wakeup: true,
                multi_buffer: layout.multi_buffer,
                ..capabilities
            },
            statistics: PortStatistics::default(),
            fd,
            shed,
            unclaimed: None,
            failure: None,
            completed: 0,
            taken: 0,
            missed: Cell::new(0),
            leaves_within: Duration::ZERO,
            forwarded: None,
            completer: None,
            cutter: None,
            interface,
            bound: Bound { zero_copy: is_zero_copy(fd), in_pieces: layout.is_in_pieces(), busy_poll: layout.busy_poll },
            // SAFETY: it holds integers alone.
            before: unsafe { std::mem::zeroed() },
            stale_after: None,
        }
    }

    /// The same port over the socket of a former process, which had so many buffers in its rings. It looked at them then, if its program bridged frames past one
    /// that does not.
    pub(super) fn resumed(self, filled: usize, in_flight: usize, looked_at: Option<Duration>) -> XdpPort {
        let before = kernel_statistics(self.fd).unwrap_or(self.before);
        XdpPort { filled, in_flight, before, stale_after: looked_at.map(|at| at + PATIENCE), ..self }
    }

    /// The same port, which does what senders leave to a NIC: completes checksums, and cuts super-frames.
    pub(super) fn finishing(self, completer: Option<Completer>, cutter: Option<Cutter>) -> XdpPort {
        XdpPort { completer, cutter, ..self }
    }

    /// The same port, which also counts what came to its interface on queues that no worker serves.
    pub(super) fn telling(self, unclaimed: Option<Unclaimed>) -> Self {
        Self { unclaimed, ..self }
    }

    /// The same port, which tells the program that its worker takes frames.
    pub(super) fn watched(self, failure: Option<XdpFailureSwitch>) -> XdpPort {
        let taken = failure.as_ref().map_or(0, XdpFailureSwitch::given_before);
        XdpPort { failure, taken, ..self }
    }

    /// The same port, past which the program forwards frames by itself, and counts them there. What it forwards out of this port leaves within such a time.
    /// `buffers` are in the memory.
    pub(super) fn beside(self, forwarded: Option<ForwardedThere>, leaves_within: Duration, buffers: usize) -> XdpPort {
        let forwarded = forwarded.map(|forwarded| (forwarded, Leaving::new(buffers)));
        XdpPort { forwarded, leaves_within, ..self }
    }

    /// The socket.
    pub(super) fn fd(&self) -> RawFd {
        self.fd
    }

    /// Of an address in the memory: where its buffer begins, and where in that it is.
    fn split(&self, address: u64) -> (usize, usize) {
        let (address, mask) = (address as usize, self.chunk - 1);
        (address & !mask, address & mask)
    }

    /// Takes the buffer that `desc` describes out of the receive ring, and its frame into `batch` if it is complete.
    fn accept(&mut self, desc: Descriptor, batch: &mut Batch, pool: &mut Pool) {
        let (offset, start) = self.split(desc.addr);
        // SAFETY: the descriptor came off the receive ring, so its buffer was lent to this port's fill ring and the kernel
        // no longer uses it.
        let buffer = unsafe { pool.reclaim(offset, start, desc.len as usize) };
        let more = desc.options & libc::XDP_PKT_CONTD != 0;
        self.taken += u64::from(!more);
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
        let longest = if self.cutter.is_some() { SUPER_FRAME } else { self.capabilities.max_frame };
        if frame.total() > longest {
            self.statistics.truncated += 1;
            self.discarding = more;
            pool.put(frame);
        } else if more {
            self.partial = Some(frame);
        } else if frame.total() > self.capabilities.max_frame {
            self.begin_cutting(frame, pool);
        } else {
            batch.push(frame);
        }
    }

    /// Takes a super-frame apart; its segments are received next.
    #[cold]
    fn begin_cutting(&mut self, frame: Frame, pool: &mut Pool) {
        let is_cut = self.cutter.as_mut().is_some_and(|cutter| cutter.begin(&frame));
        *if is_cut { &mut self.statistics.super_frames } else { &mut self.statistics.uncut } += 1;
        pool.put(frame);
    }

    /// Receives the next segment of the super-frame that is being cut. False when there is none.
    fn receive_segment(&mut self, batch: &mut Batch, pool: &mut Pool) -> bool {
        match self.cutter.as_mut().and_then(|cutter| cutter.next(pool)) {
            None => return false,
            Some(Ok(segment)) => batch.push(segment),
            Some(Err(Refused::NoBuffer)) => self.statistics.no_buffer += 1,
            Some(Err(Refused::TooLong)) => self.statistics.truncated += 1,
        }
        true
    }

    /// Reads up to `max` descriptors off the receive ring; returns how many there were.
    fn read(&mut self, max: usize, batch: &mut Batch, pool: &mut Pool) -> usize {
        let read = self.rings.rx.ready(min(max, STRIDE) as u32);
        self.filled -= read as usize;
        for n in 0..read {
            self.accept(self.rings.rx.get(n), batch, pool);
        }
        self.rings.rx.release(read);
        read as usize
    }

    /// Drops what was given to the worker before it failed. Others have passed without it since, the same frames repeated among them: a SYN, for example,
    /// whose connection is long established.
    #[cold]
    fn drop_stale(&mut self, pool: &mut Pool) {
        let mut stale = Batch::new();
        while self.receive_segment(&mut stale, pool) {}
        while self.read(STRIDE, &mut stale, pool) > 0 {
            self.statistics.failure_dropped += stale.len() as u64;
            stale.drain(..).for_each(|frame| pool.put(frame));
        }
    }

    /// Fills the fill ring to its level, as far as the pool has buffers.
    pub(super) fn refill(&mut self, pool: &mut Pool) {
        while self.filled < self.target {
            let want = min(self.target - self.filled, STRIDE) as u32;
            // Room for all: the ring has an entry for every buffer.
            let room = min(self.rings.fill.room(want), want);
            let mut ready = 0;
            while ready < room {
                let Some(frame) = pool.take_reserved() else { break };
                // SAFETY: there is room, and the frame was just taken out of the pool over this memory: nothing else holds it.
                unsafe { self.rings.fill.put(ready, pool.lend(frame) as u64) };
                ready += 1;
            }
            self.rings.fill.submit(ready);
            self.filled += ready as usize;
            if ready < want {
                break;
            }
        }
    }

    /// Wakes the driver if it waits for buffers.
    pub(super) fn wake_receiver(&mut self) {
        if self.rings.fill.needs_wakeup() {
            self.drive_receiver();
        }
    }

    /// Lets the driver receive in this call.
    fn drive_receiver(&mut self) {
        self.statistics.kicks += 1;
        // SAFETY: a receive without a buffer reads nothing; for an AF_XDP socket it wakes the driver.
        unsafe { libc::recvfrom(self.fd, ptr::null_mut(), 0, libc::MSG_DONTWAIT, ptr::null_mut(), ptr::null_mut()) };
    }

    /// Takes the frames whose transmission is complete back into the pool.
    fn reap(&mut self, pool: &mut Pool) {
        while self.in_flight > 0 {
            let done = self.rings.completion.ready(STRIDE as u32);
            for n in 0..done {
                let (offset, _) = self.split(self.rings.completion.get(n));
                if let Some((_, leaving)) = &mut self.forwarded {
                    leaving.left(offset / self.chunk);
                }
                // SAFETY: the buffer was lent to the transmit ring and the kernel no longer uses it.
                let frame = unsafe { pool.reclaim(offset, HEADROOM, 0) };
                pool.put(frame);
            }
            self.rings.completion.release(done);
            let done = done as usize;
            self.in_flight -= done;
            self.completed += done as u64;
            if done < STRIDE {
                break;
            }
        }
    }

    /// Whether the frame can be sent at all. The kernel would never give an invalid one back.
    ///
    /// The kernel asks that no descriptor is empty or leaves its chunk, which no extent of a frame does; the frame may begin
    /// anywhere in the chunk (`xp_aligned_validate_desc`), so that a header may grow into the headroom of a full buffer.
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

    /// Puts a buffer into the transmit ring as the `n`th of those to be submitted next, to be sent from where its frame begins.
    ///
    /// # Panics
    ///
    /// When there is no room for it, which would have been counted before.
    fn put(&mut self, n: u32, buffer: Frame, more: bool, pool: &mut Pool) {
        let (start, len) = (buffer.start(), buffer.len());
        let offset = pool.lend(buffer);
        let options = if more { libc::XDP_PKT_CONTD } else { 0 };
        // SAFETY: the room was counted; the buffer lies in this memory, and `lend` gave up its frame.
        unsafe { self.rings.tx.put(n, Descriptor { addr: (offset + start) as u64, len: len as u32, options }) };
        if let Some((_, leaving)) = &mut self.forwarded {
            leaving.sent(offset / self.chunk);
        }
    }

    /// One system call that makes the kernel send. `Ok(true)` when it wants another.
    fn send(&mut self) -> io::Result<bool> {
        self.statistics.kicks += 1;
        // SAFETY: a send without a buffer passes no pointer; for an AF_XDP socket it sends what is in the transmit ring.
        let sent = unsafe { libc::sendto(self.fd, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
        if sent >= 0 {
            return Ok(false);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(true),
            // Busy, or out of memory for the moment: queued frames stay queued.
            Some(libc::EBUSY | libc::ENOBUFS | libc::EINTR) => Ok(false),
            _ => Err(error),
        }
    }

    /// Drops frames for an interface that is down, as a cable would: those in the ring are enough to notice by that it is up again, and
    /// who gets more of them then gets them late.
    #[cold]
    fn discard(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        let frames = batch.len();
        self.statistics.transmit_errors += frames as u64;
        batch.drain(..).for_each(|frame| pool.put(frame));
        frames
    }

    /// Wakes the driver's transmit path. For a socket whose worker drives the receive path, `send` runs that path only
    /// (`xsk_no_wakeup`): enough for drivers that transmit there as well, but virtio-net would never send. The kernel's
    /// `xsk_poll` wakes either path.
    fn wake_transmitter(&mut self) {
        self.statistics.kicks += 1;
        let mut poll = libc::pollfd { fd: self.fd, events: 0, revents: 0 };
        // SAFETY: one entry, which outlives the call; with a time-out of zero it returns at once.
        unsafe { libc::poll(&raw mut poll, 1, 0) };
    }
}

impl Port for XdpPort {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        // As long as a worker that is stuck leaves them, frames have perhaps been bridged past it.
        if self.stale_after.take().is_some_and(|end| monotonic() > end) {
            self.drop_stale(pool);
        }
        if self.failure.as_mut().is_some_and(XdpFailureSwitch::has_failed) {
            self.drop_stale(pool);
        }
        let before = batch.len();
        // The segments of a super-frame come before what follows it, so that one frame is read at a time where there are any.
        let stride = if self.cutter.is_some() { 1 } else { STRIDE };
        while batch.len() - before < max {
            if self.receive_segment(batch, pool) {
                continue;
            }
            let want = min(max - (batch.len() - before), stride);
            if self.read(want, batch, pool) < want {
                break;
            }
        }
        // The kernel publishes the buffers of a frame together, so the rest is there.
        while self.partial.is_some() && self.read(1, batch, pool) > 0 {}
        if let Some(switch) = &mut self.failure {
            switch.looked();
        }
        self.refill(pool);
        while self.filled < self.low && batch.len() > before {
            // So many frames are held elsewhere that the receive ring would run empty: drop the one received last.
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
        let received = &mut batch[before..];
        if let Some(completer) = &self.completer {
            completer.complete(received, &mut self.statistics);
        }
        self.statistics.received += received.len() as u64;
        self.statistics.received_bytes += received.iter().map(Frame::total).sum::<usize>() as u64;
        received.len()
    }

    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        self.reap(pool);
        if batch.is_empty() {
            return 0;
        }
        // Waiting for frames sends what is in the ring, too: with nothing there the interface is up again.
        self.is_down &= self.in_flight > 0;
        if self.is_down {
            return self.discard(batch, pool);
        }
        let mut free = self.rings.tx.room(batch.len() as u32) as usize;
        let (mut fits, mut used) = (0, 0);
        for frame in batch.iter() {
            let buffers = if frame.is_chained() { frame.buffers() } else { 1 };
            if used + buffers > free {
                free = self.rings.tx.room_now() as usize;
            }
            if used + buffers <= free {
                used += buffers;
            } else if buffers <= MAX_BUFFERS {
                break;
            }
            // A chain that would never fit is taken, to be refused below.
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
            let mut next = Some(frame);
            while let Some(mut buffer) = next {
                next = buffer.split();
                self.put(ready, buffer, next.is_some(), pool);
                ready += 1;
            }
        }
        self.rings.tx.submit(ready);
        self.in_flight += ready as usize;
        if !batch.is_empty() {
            self.statistics.transmit_full += 1;
        }
        fits
    }

    fn flush(&mut self, pool: &mut Pool) {
        if self.in_flight == 0 {
            return;
        }
        (self.backlog, self.is_down) = (false, false);
        let mut free = self.rings.tx.room_now() as usize;
        // In copy mode nothing is sent without a system call; a zero-copy driver says whether it needs one.
        let wanted = if self.capabilities.zero_copy { self.rings.tx.needs_wakeup() } else { free < self.ring };
        if wanted {
            for _ in 0..self.ring / self.budget + 1 {
                match self.send() {
                    Ok(false) => break,
                    Ok(true) => {
                        let now = self.rings.tx.room_now() as usize;
                        if now == free {
                            break;
                        }
                        free = now;
                    }
                    // The interface is down or was removed; the frames stay queued, and are sent when it is up again.
                    Err(_) => {
                        self.is_down = true;
                        break;
                    }
                }
            }
            if self.busy_poll && self.capabilities.zero_copy && (self.rings.tx.room_now() as usize) < self.ring {
                self.wake_transmitter();
            }
            self.backlog = !self.is_down && (self.rings.tx.room_now() as usize) < self.ring;
        }
        self.reap(pool);
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.fd)
    }

    fn is_backlogged(&self) -> bool {
        self.backlog
    }

    fn shed_filter(&mut self) -> Option<&mut dyn ShedFilter> {
        self.shed.as_mut().map(|filter| filter as &mut dyn ShedFilter)
    }

    fn failure_switch(&mut self) -> Option<&mut dyn FailureSwitch> {
        self.failure.as_mut().map(|switch| switch as &mut dyn FailureSwitch)
    }

    fn completed(&self) -> u64 {
        self.completed
    }

    fn kernel_forwarding(&mut self) -> Option<&mut dyn KernelForwarding> {
        if self.forwarded.is_some() { Some(self) } else { None }
    }

    fn handover(&mut self) -> Option<&mut dyn Handover> {
        // Which frames a program that forwards has given to the socket, only the process knows that has counted those it has taken.
        if self.forwarded.is_some() { None } else { Some(self) }
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn statistics(&self) -> PortStatistics {
        let mut statistics = self.statistics;
        if let Some(filter) = &self.shed {
            [statistics.shed_fresh, statistics.shed_repeated] = filter.dropped();
        }
        statistics.unserved = self.unclaimed.as_ref().map_or(0, Unclaimed::unserved);
        if let Some(switch) = &self.failure {
            let [failures, bridged, dropped] = switch.counts();
            (statistics.failures, statistics.failure_bridged) = (failures, bridged);
            statistics.failure_dropped += dropped;
        }
        if let Some((forwarded, _)) = &self.forwarded {
            [statistics.forwarded, statistics.forwarded_bytes, statistics.forwarded_partial] =
                forwarded.counters.map(|count| count.load(Ordering::Relaxed));
        }
        if let Ok(kernel) = kernel_statistics(self.fd) {
            let before = &self.before;
            let rings = RingStatistics {
                rx_dropped: kernel.rx_dropped - before.rx_dropped,
                rx_invalid_descs: kernel.rx_invalid_descs - before.rx_invalid_descs,
                tx_invalid_descs: kernel.tx_invalid_descs - before.tx_invalid_descs,
                rx_ring_full: kernel.rx_ring_full - before.rx_ring_full,
                rx_fill_ring_empty_descs: kernel.rx_fill_ring_empty_descs - before.rx_fill_ring_empty_descs,
                tx_ring_empty_descs: kernel.tx_ring_empty_descs - before.tx_ring_empty_descs,
            };
            statistics.receive_full += rings.rx_ring_full;
            statistics.fill_empty += rings.rx_fill_ring_empty_descs;
            statistics.kernel_drops += rings.rx_dropped;
            statistics.transmit_errors += rings.tx_invalid_descs;
            statistics.rings = rings;
        }
        statistics
    }
}

impl KernelForwarding for XdpPort {
    fn watch_leaving(&mut self) -> bool {
        self.forwarded.as_mut().is_some_and(|(_, leaving)| leaving.watch())
    }

    fn has_left(&self) -> bool {
        self.forwarded.as_ref().is_some_and(|(_, leaving)| leaving.has_left())
    }

    fn is_drained(&self) -> bool {
        let Some(switch) = &self.failure else { return false };
        // What came in, read behind what was taken and missed: no less than these, and the same only if nothing is between.
        let is_all = || self.taken + self.missed.get() == switch.given();
        is_all() || {
            let Ok(kernel) = kernel_statistics(self.fd) else { return false };
            let missed = kernel.rx_dropped + kernel.rx_ring_full;
            missed != self.missed.replace(missed) && is_all()
        }
    }

    fn leaves_within(&self) -> Option<Duration> {
        Some(self.leaves_within)
    }

    fn allow(&mut self, may: bool) {
        if let Some((forwarded, _)) = &mut self.forwarded {
            forwarded.allow(may);
        }
    }
}

impl Handover for XdpPort {
    fn leave(&mut self, pool: &mut Pool, sockets: &mut Vec<LeftSocket>) -> bool {
        // In this order: whatever has come since is younger than this time.
        let looked_at = self.failure.as_ref().is_some_and(XdpFailureSwitch::is_watched).then(monotonic);
        if let Some(switch) = &mut self.failure {
            switch.looked();
            if switch.has_failed() {
                self.drop_stale(pool);
            }
        }
        self.reap(pool);
        while self.discarding && self.read(1, &mut Batch::new(), pool) > 0 {}
        let Ok(socket) = self.rings.socket.try_clone() else { return false };
        // Who follows could not map them before Linux 6.4.
        if socket.try_clone().and_then(|socket| Rings::of_left(socket, self.rings.sizes)).is_err() {
            return false;
        }
        let Sizes { frames: ring, buffers } = self.rings.sizes;
        let (interface, bound, filled, in_flight) = (self.interface, self.bound, self.filled, self.in_flight);
        sockets.push(LeftSocket { socket, interface, bound, filled, in_flight, ring, buffers, looked_at });
        true
    }
}

/// Which frames have left, told by the buffers that the kernel has given back: it may do so in another order than that in which they were sent.
struct Leaving {
    /// Per buffer, in which of two turns it was sent.
    turns: Box<[u8]>,
    /// The turn in which frames are sent now.
    turn: u8,
    /// Buffers of each turn that have not been given back.
    out: [usize; 2],
}

impl Leaving {
    fn new(buffers: usize) -> Leaving {
        Leaving { turns: vec![0; buffers].into(), turn: 0, out: [0; 2] }
    }

    fn sent(&mut self, buffer: usize) {
        self.turns[buffer] = self.turn;
        self.out[usize::from(self.turn)] += 1;
    }

    fn left(&mut self, buffer: usize) {
        self.out[usize::from(self.turns[buffer])] -= 1;
    }

    /// Begins the other turn, if nothing of it is out.
    fn watch(&mut self) -> bool {
        let is_over = self.has_left();
        self.turn ^= u8::from(is_over);
        is_over
    }

    /// Whether all frames of the former turn have left.
    fn has_left(&self) -> bool {
        self.out[usize::from(self.turn ^ 1)] == 0
    }
}

/// Makes the worker's system calls drive the device's receive path in place of its interrupts.
fn prefer_busy_poll(fd: RawFd, batch: usize) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, &1)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, &BUSY_POLL_MICROS)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, &libc::c_int::try_from(batch).unwrap_or(64))
}
