//! A netmap port: one ring of received frames, one of frames to be sent, and system calls that synchronise them with the kernel.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;

use netmap_sys::netmap::{NS_BUF_CHANGED, NS_MOREFRAG};

use super::ring::{Ring, Slot};
use crate::frame::{Batch, Frame};
use crate::offload::Completer;
use crate::pool::{Pool, Refused};
use crate::port::{Capabilities, Port, PortStatistics};

/// The headroom of an idle frame, in bytes: for the header of a further buffer. Received frames begin where their buffer does.
pub(super) const NETMAP_HEADROOM: usize = 64;

/// The most slots a frame may lie in (`NETMAP_MAX_FRAGS`).
const MAX_SLOTS: usize = 64;

/// The first buffers belong to the kernel.
const FIRST_BUFFER: u32 = 2;

/// Synchronises the rings.
pub(super) trait Kernel: Send {
    /// Takes released receive slots, and makes received frames available (`NIOCRXSYNC`).
    fn receive(&mut self) -> io::Result<()>;

    /// Takes filled transmit slots, and releases those that were sent (`NIOCTXSYNC`).
    fn transmit(&mut self) -> io::Result<()>;

    /// The descriptor that becomes readable when frames have arrived.
    fn descriptor(&self) -> Option<RawFd>;
}

/// The buffers that the slots of a port refer to, in shared memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffers {
    /// The address of buffer 0.
    pub base: NonNull<u8>,
    /// Bytes of a buffer.
    pub size: usize,
    /// Their number.
    pub count: u32,
}

// SAFETY: an address and two numbers; the rings and the ownership of frames settle who may access which buffer.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Whether the slot's buffer and length are valid.
    fn allow(&self, slot: Slot) -> bool {
        (FIRST_BUFFER..self.count).contains(&slot.buffer) && slot.len as usize <= self.size
    }

    fn address(&self, buffer: u32) -> *mut u8 {
        debug_assert!(buffer < self.count);
        // SAFETY: the buffer exists.
        unsafe { self.base.as_ptr().add(buffer as usize * self.size) }
    }

    /// The bytes of the slot's buffer.
    ///
    /// # Safety
    ///
    /// The slot belongs to this process as long as the bytes are used, and is [`allow`](Buffers::allow)ed.
    unsafe fn bytes<'a>(&self, slot: Slot) -> &'a [u8] {
        // SAFETY: the buffer exists and holds this many bytes; the caller guarantees that it stays with this process.
        unsafe { std::slice::from_raw_parts(self.address(slot.buffer), slot.len.into()) }
    }
}

/// One ring pair of a netmap port.
///
/// When the pool lies in the same memory as the rings, a received frame's buffer is swapped with an idle one, and a frame to be sent is
/// swapped with the buffer in its slot: nothing is copied. Otherwise frames are copied in and out.
#[derive(Debug)]
pub(super) struct NetmapPort<K> {
    kernel: K,
    receive: Ring,
    transmit: Ring,
    buffers: Buffers,
    /// The pool lies in the memory of the rings.
    swaps: bool,
    capabilities: Capabilities,
    statistics: PortStatistics,
    /// Slots were filled since the last synchronisation.
    unflushed: bool,
    /// What completes checksums, where senders may leave them to a NIC.
    completer: Option<Completer>,
}

impl<K: Kernel> NetmapPort<K> {
    /// A port over these rings. `swaps` says that the pool lies in their memory, with its frames at the buffers' places.
    ///
    /// # Safety
    ///
    /// The slots of both rings refer to buffers that nothing else uses, and the memory stays mapped as long as `kernel` lives. With `swaps` the
    /// pool that is passed to the methods is one over the region of these `buffers`.
    pub unsafe fn new(
        kernel: K,
        [receive, transmit]: [Ring; 2],
        buffers: Buffers,
        swaps: bool,
        capabilities: Capabilities,
    ) -> Self {
        Self {
            kernel,
            receive,
            transmit,
            buffers,
            swaps,
            capabilities: Capabilities { backend: "netmap", zero_copy: swaps, ..capabilities },
            statistics: PortStatistics::default(),
            unflushed: false,
            completer: None,
        }
    }

    /// The same port, which completes the checksums that senders leave to a NIC.
    pub fn completing(self, completer: Option<Completer>) -> Self {
        Self { completer, ..self }
    }

    /// Slots with frames that were not received yet.
    #[cfg(test)]
    pub fn receivable(&self) -> u32 {
        self.receive.available()
    }

    /// How many of the `available` slots the frame takes that begins `ahead` slots after the head; `None` while its last slot is missing.
    fn extent(&self, ahead: u32, available: u32) -> Option<u32> {
        let mut slots = 1;
        while self.receive.slot(ahead + slots - 1).flags & NS_MOREFRAG != 0 {
            if ahead + slots == available {
                return None;
            }
            slots += 1;
        }
        Some(slots)
    }

    /// The frame in the slot, for which an idle one takes its place.
    fn swap_in(&mut self, ahead: u32, slot: Slot, pool: &mut Pool) -> Result<Frame, Refused> {
        let spare = pool.take_reserved().ok_or(Refused::NoBuffer)?;
        let idle = self.number(pool.lend(spare));
        self.receive.set_slot(ahead, Slot { buffer: idle, len: 0, flags: NS_BUF_CHANGED });
        // SAFETY: the slot belongs to this process and now refers to another buffer, so nothing holds this one, which counted as lent.
        Ok(unsafe { pool.reclaim(slot.buffer as usize * self.buffers.size, 0, slot.len.into()) })
    }

    /// The number of the buffer at this offset of the region.
    fn number(&self, offset: usize) -> u32 {
        (offset / self.buffers.size) as u32
    }

    /// A frame with the bytes of the `slots` slots from `ahead` on.
    fn copy_in(&self, ahead: u32, slots: u32, pool: &mut Pool) -> Result<Frame, Refused> {
        if slots as usize > MAX_SLOTS {
            return Err(Refused::TooLong);
        }
        let mut parts: [&[u8]; MAX_SLOTS] = [&[]; MAX_SLOTS];
        for (part, i) in parts.iter_mut().zip(0..slots) {
            let slot = self.receive.slot(ahead + i);
            if !self.buffers.allow(slot) {
                return Err(Refused::TooLong);
            }
            // SAFETY: the slot belongs to this process until the head moves, and was just allowed.
            *part = unsafe { self.buffers.bytes(slot) };
        }
        pool.gather(&parts[..slots as usize], self.capabilities.max_frame)
    }

    /// How many slots `frame` needs to be sent; `None` when it cannot be.
    fn need(&self, frame: &Frame) -> Option<u32> {
        let slots = if self.swaps { frame.buffers() } else { frame.total().div_ceil(self.buffers.size).max(1) };
        let fits = frame.total() <= self.capabilities.max_frame && slots <= MAX_SLOTS;
        (fits && (slots == 1 || self.capabilities.multi_buffer)).then_some(slots as u32)
    }

    /// Puts the frame's buffers into the slots from `ahead` on, and the former buffers of these slots into the pool.
    fn swap_out(&mut self, mut ahead: u32, frame: Frame, pool: &mut Pool) {
        let mut rest = Some(frame);
        while let Some(mut frame) = rest {
            rest = frame.split();
            let (start, len) = (frame.start(), frame.len());
            if start > 0 {
                // A slot has no offset: its frame begins where the buffer does.
                frame.buffer_mut().copy_within(start..start + len, 0);
            }
            let old = self.transmit.slot(ahead);
            let more = if rest.is_some() { NS_MOREFRAG } else { 0 };
            let buffer = self.number(pool.lend(frame));
            // No truncation: a buffer is smaller than 64 KiB where frames are swapped.
            self.transmit.set_slot(ahead, Slot { buffer, len: len as u16, flags: NS_BUF_CHANGED | more });
            // SAFETY: the slot belongs to this process and now refers to another buffer, so nothing holds this one, which counted as lent.
            let old = unsafe { pool.reclaim(old.buffer as usize * self.buffers.size, 0, 0) };
            pool.put(old);
            ahead += 1;
        }
    }

    /// Copies the frame into the buffers of `slots` slots from `ahead` on.
    fn copy_out(&mut self, ahead: u32, slots: u32, frame: &Frame) {
        let mut segments = frame.segments();
        let mut segment: &[u8] = &[];
        for i in 0..slots {
            let Slot { buffer, .. } = self.transmit.slot(ahead + i);
            // SAFETY: slot and buffer belong to this process, and `is_sound` has allowed the buffer.
            let room = unsafe { std::slice::from_raw_parts_mut(self.buffers.address(buffer), self.buffers.size) };
            let mut len = 0;
            while len < room.len() {
                if segment.is_empty() {
                    let Some(next) = segments.next() else { break };
                    segment = next;
                    continue;
                }
                let (now, later) = segment.split_at(segment.len().min(room.len() - len));
                room[len..len + now.len()].copy_from_slice(now);
                len += now.len();
                segment = later;
            }
            let flags = if i + 1 < slots { NS_MOREFRAG } else { 0 };
            // No truncation: a buffer holds less than 64 KiB.
            self.transmit.set_slot(ahead + i, Slot { buffer, len: len as u16, flags });
        }
    }

    /// Whether the slots to be filled refer to existing buffers.
    fn is_sound(&self, ahead: u32, slots: u32) -> bool {
        (ahead..ahead + slots).all(|at| self.buffers.allow(Slot { len: 0, ..self.transmit.slot(at) }))
    }

    /// Puts as many frames from the front of `batch` into slots as fit, and returns how many.
    fn fill(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        let room = self.transmit.available();
        let (mut ahead, mut fits) = (0, 0);
        for frame in batch.iter() {
            let slots = self.need(frame).unwrap_or(0);
            if ahead + slots > room || !self.is_sound(ahead, slots) {
                break;
            }
            ahead += slots;
            fits += 1;
        }
        ahead = 0;
        for frame in batch.drain(..fits) {
            let Some(slots) = self.need(&frame) else {
                self.statistics.transmit_errors += 1;
                pool.put(frame);
                continue;
            };
            self.statistics.sent += 1;
            self.statistics.sent_bytes += frame.total() as u64;
            if self.swaps {
                self.swap_out(ahead, frame, pool);
            } else {
                self.copy_out(ahead, slots, &frame);
                pool.put(frame);
            }
            ahead += slots;
        }
        if ahead > 0 {
            self.transmit.advance(ahead);
            self.unflushed = true;
        }
        fits
    }

    fn synchronise_transmission(&mut self) {
        self.unflushed = false;
        if self.kernel.transmit().is_err() {
            self.statistics.transmit_errors += 1;
            self.transmit.publish();
        }
    }
}

impl<K: Kernel> Port for NetmapPort<K> {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        if (self.receive.available() as usize) < max && self.kernel.receive().is_err() {
            self.receive.publish();
            return 0;
        }
        let available = self.receive.available();
        let before = batch.len();
        let (mut ahead, mut received) = (0, 0);
        while received < max && ahead < available {
            let Some(slots) = self.extent(ahead, available) else {
                if available + 1 < self.receive.slots() {
                    break;
                }
                // It fills the whole ring without its last slot, so it can never be completed.
                self.statistics.truncated += 1;
                ahead = available;
                break;
            };
            let first = self.receive.slot(ahead);
            let frame = match slots {
                1 if !self.buffers.allow(first) => Err(Refused::TooLong),
                1 if self.swaps => self.swap_in(ahead, first, pool),
                _ => self.copy_in(ahead, slots, pool),
            };
            match frame {
                Ok(frame) => {
                    self.statistics.received += 1;
                    self.statistics.received_bytes += frame.total() as u64;
                    batch.push(frame);
                    received += 1;
                }
                Err(Refused::NoBuffer) => self.statistics.no_buffer += 1,
                Err(Refused::TooLong) => self.statistics.truncated += 1,
            }
            ahead += slots;
        }
        if ahead > 0 {
            self.receive.advance(ahead);
        }
        if let Some(completer) = &self.completer {
            completer.complete(&mut batch[before..], &mut self.statistics);
        }
        received
    }

    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        if batch.is_empty() {
            return 0;
        }
        if (self.transmit.available() as usize) < batch.len() {
            self.synchronise_transmission();
        }
        let mut sent = self.fill(batch, pool);
        // A switch or a pipe takes filled slots at once, and its rings may be shorter than a batch. Others are synchronised once.
        let (mut last, mut taken) = (sent, true);
        while last > 0 && taken && !batch.is_empty() {
            self.synchronise_transmission();
            taken = self.transmit.kept() == 0;
            last = self.fill(batch, pool);
            sent += last;
        }
        if !batch.is_empty() {
            self.statistics.transmit_full += 1;
        }
        sent
    }

    fn flush(&mut self, _: &mut Pool) {
        // A switch or a pipe whose other end was full takes the rest at a later call, which also returns the sent buffers.
        if self.unflushed || self.transmit.kept() > 0 {
            self.synchronise_transmission();
        }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        self.kernel.descriptor()
    }

    fn is_backlogged(&self) -> bool {
        self.transmit.kept() > 0
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn statistics(&self) -> PortStatistics {
        self.statistics
    }
}
