//! Runs a load on ports: hands it every frame received, transmits what it sends, and sleeps in between. The loads are in
//! `pattern`, `clients` and `transfer_check`.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pktio::{Batch, Pool, Port};
use tcpstate::Head;

/// The most frames received or sent per iteration.
const BATCH: usize = 64;

/// The longest sleep, so that a signal is noticed.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);

/// How long the last frames may take to leave.
const DRAIN_TIME: Duration = Duration::from_millis(200);

/// A load: sends frames, and handles those received. Times count from its start.
pub trait Load {
    /// Handles a frame received on `port`.
    fn receive(&mut self, port: usize, head: &mut Head<'_>, now: Duration, out: &mut Outbox<'_>);

    /// Sends the frames that are due, as long as `out` has room.
    fn send(&mut self, now: Duration, out: &mut Outbox<'_>);

    /// When to call [`Load::send`] next if nothing is received before; `None` for never.
    fn next(&self) -> Option<Duration>;

    /// Whether the load has ended: nothing to send, and nothing to wait for.
    fn is_over(&self, now: Duration) -> bool;
}

/// The ports a load runs on, and their buffers.
pub struct LoadRunner {
    /// The ports.
    pub ports: Vec<Box<dyn Port>>,
    /// The buffers of all ports.
    pub pool: Pool,
}

/// Takes the frames a load sends in one iteration.
pub struct Outbox<'a> {
    batches: &'a mut [Batch],
    pool: &'a mut Pool,
}

impl Outbox<'_> {
    /// Whether this port has room for a frame of one buffer.
    pub fn has_room(&self, port: usize) -> bool {
        self.batches[port].len() < BATCH && self.pool.idle() > self.pool.reserve()
    }

    /// Sends the frame that `make` writes into the buffer it is given; `make` returns the frame's length. Returns false without
    /// calling `make` if there is no buffer; a reply is then lost as on a wire.
    pub fn push(&mut self, port: usize, make: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let Some(mut frame) = self.pool.take() else { return false };
        let start = frame.start();
        frame.set(start, frame.capacity() - start);
        let length = make(frame.bytes_mut());
        frame.set(start, length);
        self.batches[port].push(frame);
        true
    }

    /// Sends a frame of these bytes, in as many buffers as it needs. Returns false if there are not enough.
    pub fn copy(&mut self, port: usize, bytes: &[u8]) -> bool {
        let buffers = bytes.len().div_ceil(self.pool.buffer() - self.pool.headroom());
        if self.pool.idle() < self.pool.reserve() + buffers {
            return false;
        }
        let Some(frame) = self.pool.adopt(bytes) else { return false };
        self.batches[port].push(frame);
        true
    }
}

impl LoadRunner {
    /// Runs `load` until it has ended, until `end`, until `stop` is set, or until all ports are exhausted (files) and it has
    /// nothing to send.
    ///
    /// # Errors
    /// Those of `ppoll(2)`.
    pub fn run(&mut self, load: &mut impl Load, begin: Instant, end: Duration, stop: &AtomicBool) -> io::Result<()> {
        let LoadRunner { ports, pool } = self;
        let mut batches: Vec<Batch> = ports.iter().map(|_| Batch::with_capacity(2 * BATCH)).collect();
        let mut inbox = Batch::with_capacity(BATCH);
        loop {
            let now = begin.elapsed();
            if now >= end || stop.load(Ordering::Relaxed) || load.is_over(now) {
                break;
            }
            let mut received = 0;
            for (index, port) in ports.iter_mut().enumerate() {
                received += port.receive(&mut inbox, BATCH, pool);
                for mut frame in inbox.drain(..) {
                    let (start, len, total) = (frame.start(), frame.len(), frame.total());
                    let mut head = Head::new(frame.buffer_mut(), start, len, total);
                    load.receive(index, &mut head, now, &mut Outbox { batches: &mut batches, pool });
                    pool.put(frame);
                }
            }
            load.send(now, &mut Outbox { batches: &mut batches, pool });
            let mut waiting = false;
            for (port, batch) in ports.iter_mut().zip(&mut batches) {
                if !batch.is_empty() {
                    port.transmit(batch, pool);
                }
                port.flush(pool);
                waiting |= !batch.is_empty();
            }
            let silent = received == 0 && ports.iter().all(|port| port.is_exhausted());
            if silent && !waiting && load.next().is_none() {
                break;
            }
            if waiting {
                // The device is full, and emptying it may need this core.
                thread::yield_now();
            } else if received == 0 {
                let asleep = load.next().map_or(LONGEST_SLEEP, |next| next.saturating_sub(begin.elapsed()));
                rest(ports, asleep.min(LONGEST_SLEEP).min(end.saturating_sub(now)))?;
            }
        }
        self.drain(batches);
        Ok(())
    }

    /// Transmits the last frames.
    fn drain(&mut self, mut batches: Vec<Batch>) {
        let begin = Instant::now();
        loop {
            let mut waiting = false;
            for (port, batch) in self.ports.iter_mut().zip(&mut batches) {
                port.transmit(batch, &mut self.pool);
                port.flush(&mut self.pool);
                waiting |= !batch.is_empty() || port.is_backlogged();
            }
            if !waiting || begin.elapsed() > DRAIN_TIME {
                break;
            }
            thread::sleep(Duration::from_micros(100));
        }
        batches.into_iter().flatten().for_each(|frame| self.pool.put(frame));
    }

    /// The sum of the counters of all ports.
    pub fn passed(&self) -> Passed {
        let mut sum = Passed::default();
        for one in self.ports.iter().map(|port| port.statistics()) {
            sum.received += one.received;
            sum.sent += one.sent;
            sum.sent_bytes += one.sent_bytes;
            sum.unsent += one.transmit_errors;
            // `fill_empty` is not added: the kernel counts those frames as drops too.
            sum.missed += one.no_buffer + one.truncated + one.receive_full + one.kernel_drops;
        }
        sum
    }
}

/// Frames sent and received.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    /// Frames sent.
    pub sent: u64,
    /// Their bytes, without FCS.
    pub sent_bytes: u64,
    /// Frames the interfaces refused to send.
    pub unsent: u64,
    /// Frames received.
    pub received: u64,
    /// Frames lost on reception.
    pub missed: u64,
}

/// Sleeps for `asleep`, or until a frame arrives.
fn rest(ports: &[Box<dyn Port>], asleep: Duration) -> io::Result<()> {
    if asleep.is_zero() {
        return Ok(());
    }
    if ports.iter().all(|port| port.is_exhausted()) {
        thread::sleep(asleep);
        return Ok(());
    }
    let (Some(first), Some(last)) = (ports.first(), ports.last()) else { return Ok(()) };
    pktio::wait([&**first, &**last], Some(asleep))
}
