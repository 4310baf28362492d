//! A load at work on ports: what comes in is shown to it, what it wants to say goes out, and in between one sleeps.
//! What the load consists of is told elsewhere.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pktio::{Batch, Pool, Port};
use tcpstate::Head;

/// Frames received or sent in one go.
const BATCH: usize = 64;

/// How long a load is left asleep, so that a signal is noticed.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);

/// How long frames may take to leave once a load is over.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Something that is sent, and what it makes of the answers. Time is counted from its beginning.
pub trait Load {
    /// A frame has come in by a port.
    fn receive(&mut self, port: usize, head: &mut Head<'_>, now: Duration, out: &mut Outbox<'_>);

    /// Makes what is due, as long as `out` takes it.
    fn send(&mut self, now: Duration, out: &mut Outbox<'_>);

    /// When there is something to send next, if nothing comes in before.
    fn next(&self) -> Option<Duration>;

    /// Whether it has nothing more to send and nothing to wait for.
    fn is_over(&self, now: Duration) -> bool;
}

/// Ports that a load is sent and received by, and their frames.
pub struct Station {
    /// The ports.
    pub ports: Vec<Box<dyn Port>>,
    /// The frames of all of them.
    pub pool: Pool,
}

/// Where a load puts what it sends in one turn.
pub struct Outbox<'a> {
    batches: &'a mut [Batch],
    pool: &'a mut Pool,
}

impl Outbox<'_> {
    /// Whether a frame of ordinary length would be taken at this port.
    pub fn has_room(&self, port: usize) -> bool {
        self.batches[port].len() < BATCH && self.pool.idle() > self.pool.reserve()
    }

    /// Sends the frame that `make` writes to the buffer it is given; it returns the frame's length. False, and `make` is not
    /// called, when there is no buffer: what is sent in answer is then lost, as on a wire.
    pub fn push(&mut self, port: usize, make: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let Some(mut frame) = self.pool.take() else { return false };
        let start = frame.start();
        frame.set(start, frame.capacity() - start);
        let length = make(frame.bytes_mut());
        frame.set(start, length);
        self.batches[port].push(frame);
        true
    }

    /// Sends these bytes, in as many buffers as they need. False when there are not enough.
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

impl Station {
    /// Runs `load` until it is over, until it only waits and nothing can come any more (files end), until `end`, or until `stop` is set.
    ///
    /// # Errors
    /// Those of `ppoll(2)`.
    pub fn run(&mut self, load: &mut impl Load, begin: Instant, end: Duration, stop: &AtomicBool) -> io::Result<()> {
        let Station { ports, pool } = self;
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
                // The device is full: it may be this very core that is to empty it.
                thread::yield_now();
            } else if received == 0 {
                let asleep = load.next().map_or(LONGEST_SLEEP, |next| next.saturating_sub(begin.elapsed()));
                rest(ports, asleep.min(LONGEST_SLEEP).min(end.saturating_sub(now)))?;
            }
        }
        self.leave(batches);
        Ok(())
    }

    /// Lets the last frames leave.
    fn leave(&mut self, mut batches: Vec<Batch>) {
        let begin = Instant::now();
        loop {
            let mut waiting = false;
            for (port, batch) in self.ports.iter_mut().zip(&mut batches) {
                port.transmit(batch, &mut self.pool);
                port.flush(&mut self.pool);
                waiting |= !batch.is_empty() || port.is_backlogged();
            }
            if !waiting || begin.elapsed() > LAST_WORDS {
                break;
            }
            thread::sleep(Duration::from_micros(100));
        }
        batches.into_iter().flatten().for_each(|frame| self.pool.put(frame));
    }

    /// What has passed the ports, all together.
    pub fn passed(&self) -> Passed {
        let mut sum = Passed::default();
        for one in self.ports.iter().map(|port| port.statistics()) {
            sum.received += one.received;
            sum.sent += one.sent;
            sum.sent_bytes += one.sent_bytes;
            sum.unsent += one.transmit_errors;
            // That the kernel found no buffer is one of the reasons for its drops, and no other frame.
            sum.missed += one.no_buffer + one.truncated + one.receive_full + one.kernel_drops;
        }
        sum
    }
}

/// Frames that have passed ports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    /// Those sent.
    pub sent: u64,
    /// Their bytes, without check sequences.
    pub sent_bytes: u64,
    /// Those that the interfaces would not send.
    pub unsent: u64,
    /// Those received.
    pub received: u64,
    /// Those that came in and could not be taken.
    pub missed: u64,
}

/// Sleeps for so long, or until something comes in.
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
