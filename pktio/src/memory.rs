//! A port with both ends in memory: the worker holds a [`MemoryPort`], a test or a simulated world the [`MemoryWire`].
//!
//! Bytes are copied in and out, so that the far end needs no pool.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::frame::{Batch, MAX_FRAME};
use crate::pool::{Pool, Refused};
use crate::port::{Capabilities, Port, PortStatistics};

/// A port and the other end of its wire. Each direction holds up to `capacity` frames.
///
/// ```
/// use pktio::{Batch, Pool, Port, memory};
///
/// let mut pool = Pool::heap(4, 2048, 64);
/// let (mut port, mut wire) = memory::pair(16);
/// let mut batch = Batch::new();
/// wire.push(b"a frame of some bytes");
/// assert_eq!(port.receive(&mut batch, 64, &mut pool), 1);
/// port.transmit(&mut batch, &mut pool);
/// assert_eq!(wire.pop().as_deref(), Some(b"a frame of some bytes".as_slice()));
/// assert_eq!(pool.idle(), pool.total());
/// ```
pub fn pair(capacity: usize) -> (MemoryPort, MemoryWire) {
    let shared = Arc::new(Mutex::new(Shared {
        inward: VecDeque::with_capacity(capacity),
        outward: VecDeque::with_capacity(capacity),
        spare: Vec::with_capacity(2 * capacity),
        capacity,
        refused: 0,
        open: true,
    }));
    (MemoryPort { shared: shared.clone(), statistics: PortStatistics::default() }, MemoryWire { shared })
}

/// The state that both ends share. The lock is taken once a batch and never held while waiting.
struct Shared {
    /// Frames sent to the port.
    inward: VecDeque<Vec<u8>>,
    /// Frames sent by the port.
    outward: VecDeque<Vec<u8>>,
    /// Buffers to be used again, so that a steady exchange does not allocate.
    spare: Vec<Vec<u8>>,
    capacity: usize,
    /// Frames the wire pushed while `inward` was full.
    refused: u64,
    /// The wire has not been closed.
    open: bool,
}

impl Shared {
    fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < 2 * self.capacity {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

/// A test that panics while it holds the lock must not make the other end panic too: the queues are consistent at any time.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The worker's end; see [`pair`].
pub struct MemoryPort {
    shared: Arc<Mutex<Shared>>,
    statistics: PortStatistics,
}

impl Port for MemoryPort {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        let mut shared = lock(&self.shared);
        let mut received = 0;
        while received < max {
            let Some(bytes) = shared.inward.pop_front() else { break };
            match pool.gather(&[&bytes], MAX_FRAME) {
                Ok(frame) => {
                    self.statistics.received += 1;
                    self.statistics.received_bytes += bytes.len() as u64;
                    batch.push(frame);
                    received += 1;
                }
                Err(Refused::NoBuffer) => self.statistics.no_buffer += 1,
                Err(Refused::TooLong) => self.statistics.truncated += 1,
            }
            shared.recycle(bytes);
        }
        received
    }

    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        let mut shared = lock(&self.shared);
        let fits = batch.len().min(shared.capacity - shared.outward.len());
        if fits < batch.len() {
            self.statistics.transmit_full += 1;
        }
        for frame in batch.drain(..fits) {
            let mut bytes = shared.buffer();
            frame.segments().for_each(|segment| bytes.extend_from_slice(segment));
            self.statistics.sent += 1;
            self.statistics.sent_bytes += bytes.len() as u64;
            shared.outward.push_back(bytes);
            pool.put(frame);
        }
        fits
    }

    fn flush(&mut self, _: &mut Pool) {}

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }

    /// True once the wire is closed and everything it pushed before has been received.
    fn is_exhausted(&self) -> bool {
        let shared = lock(&self.shared);
        !shared.open && shared.inward.is_empty()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { backend: "memory", multi_buffer: true, max_frame: MAX_FRAME, ..Capabilities::default() }
    }

    fn statistics(&self) -> PortStatistics {
        PortStatistics { receive_full: lock(&self.shared).refused, ..self.statistics }
    }
}

/// The far end of a [`MemoryPort`]: what is pushed here the port receives, what the port transmits is popped here.
///
/// Dropping it closes the wire.
pub struct MemoryWire {
    shared: Arc<Mutex<Shared>>,
}

impl MemoryWire {
    /// Sends a frame to the port. False, and the port counts it in [`PortStatistics::receive_full`], when the wire is full.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let mut shared = lock(&self.shared);
        if shared.inward.len() == shared.capacity {
            shared.refused += 1;
            return false;
        }
        let mut buffer = shared.buffer();
        buffer.extend_from_slice(bytes);
        shared.inward.push_back(buffer);
        true
    }

    /// The next frame the port transmitted.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        lock(&self.shared).outward.pop_front()
    }

    /// Like [`pop`](Self::pop), into a buffer of the caller, replacing its content. False when there is no frame. Does not allocate
    /// once the buffers have grown to the size of the traffic.
    pub fn pop_into(&mut self, bytes: &mut Vec<u8>) -> bool {
        let mut shared = lock(&self.shared);
        let Some(mut frame) = shared.outward.pop_front() else { return false };
        std::mem::swap(bytes, &mut frame);
        shared.recycle(frame);
        true
    }

    /// Frames pushed that the port has not received yet.
    pub fn unreceived(&self) -> usize {
        lock(&self.shared).inward.len()
    }

    /// Frames transmitted that have not been popped yet.
    pub fn pending(&self) -> usize {
        lock(&self.shared).outward.len()
    }

    /// Closes the wire: the port is exhausted once it has received what was pushed before. Popping still works.
    pub fn hang_up(&mut self) {
        lock(&self.shared).open = false;
    }
}

impl Drop for MemoryWire {
    fn drop(&mut self) {
        self.hang_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_wire_refuses_and_the_port_counts_it() {
        let mut pool = Pool::heap(8, 2048, 64);
        let (mut port, mut wire) = pair(2);
        assert!(wire.push(b"one") && wire.push(b"two") && !wire.push(b"three"));
        let mut batch = Batch::new();
        assert_eq!(port.receive(&mut batch, 8, &mut pool), 2);
        assert_eq!((port.statistics().received, port.statistics().receive_full), (2, 1));
        batch.drain(..).for_each(|frame| pool.put(frame));
    }

    #[test]
    fn what_does_not_fit_stays_in_the_batch_in_order() {
        let mut pool = Pool::heap(8, 2048, 64);
        let (mut port, mut wire) = pair(2);
        let mut batch: Batch = (0..3u8)
            .map(|i| {
                let mut frame = pool.take().unwrap();
                frame.fill(&[i; 60]);
                frame
            })
            .collect();
        assert_eq!(port.transmit(&mut batch, &mut pool), 2);
        assert_eq!((batch.len(), batch[0].bytes()[0], port.statistics().transmit_full), (1, 2, 1));
        assert_eq!((wire.pop().unwrap()[0], wire.pop().unwrap()[0]), (0, 1));
        assert_eq!(port.transmit(&mut batch, &mut pool), 1);
        assert_eq!(wire.pop().unwrap(), [2; 60]);
        assert_eq!(pool.idle(), pool.total());
    }

    #[test]
    fn a_dropped_wire_exhausts_the_port_only_after_its_last_frame() {
        let mut pool = Pool::heap(2, 2048, 64);
        let (mut port, mut wire) = pair(2);
        wire.push(b"last words");
        drop(wire);
        assert!(!port.is_exhausted());
        let mut batch = Batch::new();
        port.receive(&mut batch, 8, &mut pool);
        assert!(port.is_exhausted());
        batch.drain(..).for_each(|frame| pool.put(frame));
    }

    #[test]
    fn an_empty_pool_drops_and_counts() {
        let mut pool = Pool::heap(1, 256, 64);
        let (mut port, mut wire) = pair(8);
        for bytes in [[1; 60].as_slice(), &[2; 60], &[3; 250]] {
            wire.push(bytes);
        }
        let mut batch = Batch::new();
        assert_eq!(port.receive(&mut batch, 8, &mut pool), 1);
        assert_eq!((port.statistics().no_buffer, wire.unreceived()), (2, 0));
        batch.drain(..).for_each(|frame| pool.put(frame));
        assert_eq!(pool.idle(), 1);
    }

    #[test]
    fn the_longest_frame_passes_whole_also_held_and_grown_by_a_header() {
        let mut pool = Pool::heap(8, 2048, 256);
        pool.set_reserve(6);
        let (mut port, mut wire) = pair(4);
        let bytes: Vec<u8> = (0..MAX_FRAME).map(|i| (i % 251) as u8).collect();
        wire.push(&bytes[12..]);
        let mut held = Batch::new();
        assert_eq!(port.receive(&mut held, 8, &mut pool), 1);
        // While it is held, what is left serves reception and nothing else.
        assert!(pool.is_low() && pool.take().is_none());
        wire.push(&bytes[..60]);
        let mut batch = Batch::new();
        assert_eq!(port.receive(&mut batch, 8, &mut pool), 1);
        assert_eq!(port.transmit(&mut batch, &mut pool), 1);
        assert_eq!(wire.pop().unwrap(), bytes[..60]);
        let (start, len) = (held[0].start(), held[0].len());
        held[0].set(start - 12, len + 12);
        held[0].bytes_mut()[..12].copy_from_slice(&bytes[..12]);
        assert_eq!(port.transmit(&mut held, &mut pool), 1);
        assert!(wire.pop().unwrap() == bytes);
        assert_eq!(pool.idle(), pool.total());
    }

    #[test]
    fn both_ends_can_move_to_another_thread() {
        fn send<T: Send>(_: &T) {}
        let (port, wire) = pair(1);
        send(&port);
        send(&wire);
    }
}
