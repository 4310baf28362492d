//! Hand-off between workers: carries frames from the worker that received them to the one that owns their flow, by value, over bounded
//! queues, one for each pair of workers and each side. A frame's buffer stays in the memory of its worker; its bytes are copied into a slot
//! of the queue, and out of it. `steering` names the owner of a frame.
//!
//! Updates on servers and proved sources reach the other workers in the same way, over one queue for each receiver, which is written only
//! when there is news and read between batches.
//!
//! Nothing waits: a full queue refuses. A worker that is about to sleep announces it, checks its queues once more, and is woken by an eventfd,
//! which others write only then, and for frames only: an update is of use only when the next frame comes.

mod waker;

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use pktio::{Batch, Frame, NO_MEMBER, Pool};
use rustix::event::{EventfdFlags, eventfd};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use tcpstate::{ServerUpdate, Side, Source};
use waker::{Waker, published};

/// Frames of one side on their way to one worker at most, shared out among the queues to it, and as many updates. At two hundred thousand
/// a second this many arrive while a worker does not run for ten milliseconds.
const INBOX: usize = 2048;

/// The fewest and the most frames of a queue.
const QUEUE_LENGTH: std::ops::RangeInclusive<usize> = 32..=1024;

/// A frame on its way, or the space for one.
struct Slot {
    len: usize,
    /// The member of an aggregation by which the frame came in.
    member: u8,
    bytes: Box<[u8]>,
}

/// The way from one worker to another for frames that came in on one side. Slots circulate between the two queues.
struct FrameQueue {
    full: ArrayQueue<Slot>,
    free: ArrayQueue<Slot>,
}

impl FrameQueue {
    fn new(slots: usize, longest: usize) -> Self {
        let queue = Self { full: ArrayQueue::new(slots), free: ArrayQueue::new(slots) };
        for _ in 0..slots {
            // There is space for exactly as many.
            let _ = queue.free.push(Slot { len: 0, member: NO_MEMBER, bytes: vec![0; longest].into_boxed_slice() });
        }
        queue
    }

    /// Copies a frame into the queue; false when the queue is full, or the frame longer than a slot. A client's SYN may not take the last
    /// quarter of the slots: a flood of SYNs leaves space for the frames of connections.
    fn push(&self, frame: &Frame, member: u8, is_syn: bool) -> bool {
        if is_syn && self.free.len() <= self.free.capacity() / 4 {
            return false;
        }
        let Some(mut slot) = self.free.pop() else { return false };
        let fits = frame.total() <= slot.bytes.len();
        if fits {
            (slot.len, slot.member) = (frame.copy_to(&mut slot.bytes), member);
        }
        let queue = if fits { &self.full } else { &self.free };
        queue.push(slot).is_ok() && fits
    }

    /// Copies the next frame out of the queue into one of `pool`, which may have none left.
    fn pop(&self, pool: &mut Pool) -> Option<Option<Frame>> {
        let slot = self.full.pop()?;
        let mut frame = pool.adopt(&slot.bytes[..slot.len]);
        if let Some(frame) = frame.as_mut().filter(|_| slot.member != NO_MEMBER) {
            frame.set_member(slot.member);
        }
        let _ = self.free.push(slot);
        Some(frame)
    }
}

/// What workers publish to each other.
#[derive(Clone, Copy, Debug)]
pub enum Update {
    /// An engine has learned something of a server.
    Server(ServerUpdate),
    /// A source has proved itself, for workers that keep their own record of them.
    Proved(Source),
}

/// What wakes a worker.
struct Wakeup {
    waker: Waker,
    event: OwnedFd,
}

/// The queues between all workers, and what wakes them.
struct Shared {
    workers: usize,
    /// By receiver, then side, then sender.
    frames: Vec<FrameQueue>,
    /// By receiver.
    updates: Vec<ArrayQueue<Update>>,
    wakeups: Vec<CachePadded<Wakeup>>,
}

impl Shared {
    fn queue(&self, from: usize, to: usize, side: Side) -> &FrameQueue {
        &self.frames[(2 * to + side as usize) * self.workers + from]
    }
}

/// The end of one worker: sends to all others and receives from them.
pub struct Endpoint {
    shared: Arc<Shared>,
    number: usize,
    /// Workers to be woken, a bit each.
    owed: u64,
    /// Signals claimed for this worker that have not arrived yet.
    due: Cell<u64>,
    /// The sender whose queue is read first, so that none starves.
    first: usize,
    /// Frames go with the number of their member.
    has_members: bool,
}

/// The result of taking frames over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Frames taken over.
    pub frames: usize,
    /// Frames lost because the pool had no buffer for them.
    pub lost: usize,
}

impl Endpoint {
    /// An endpoint for each of `workers` (64 at most), for frames of up to `longest` bytes. All memory is taken here.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    ///
    /// # Panics
    /// With more than 64 workers.
    pub fn open(workers: usize, longest: usize) -> io::Result<Vec<Endpoint>> {
        assert!(workers <= 64, "one bit a worker");
        let slots = (INBOX / workers.max(1)).clamp(*QUEUE_LENGTH.start(), *QUEUE_LENGTH.end());
        let wakeup = || {
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            Ok(CachePadded::new(Wakeup { waker: Waker::new(), event }))
        };
        let shared = Arc::new(Shared {
            workers,
            frames: (0..2 * workers * workers).map(|_| FrameQueue::new(slots, longest)).collect(),
            updates: (0..workers).map(|_| ArrayQueue::new(INBOX)).collect(),
            wakeups: (0..workers).map(|_| wakeup()).collect::<io::Result<_>>()?,
        });
        let endpoint = |number| Endpoint {
            shared: Arc::clone(&shared),
            number,
            owed: 0,
            due: Cell::new(0),
            first: 0,
            has_members: false,
        };
        Ok((0..workers).map(endpoint).collect())
    }

    /// The same end, for ports that consist of members or do not: frames then go with the number of theirs.
    pub fn with_members(self, has_members: bool) -> Endpoint {
        Endpoint { has_members, ..self }
    }

    /// The number of its worker.
    pub fn number(&self) -> usize {
        self.number
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.shared.workers
    }

    /// Copies a frame that came in on `side`, and may be a client's SYN, into the queue to worker `to`. False when it did not fit.
    /// To be followed by [`Endpoint::wake_receivers`], once for many frames.
    pub fn hand_over(&mut self, to: usize, side: Side, frame: &Frame, is_syn: bool) -> bool {
        self.owed |= 1 << to;
        // The byte lies on a cache line that nothing else has touched.
        let member = if self.has_members { frame.member() } else { NO_MEMBER };
        self.shared.queue(self.number, to, side).push(frame, member, is_syn)
    }

    /// Wakes the sleeping workers among those that were handed something.
    pub fn wake_receivers(&mut self) {
        if self.owed == 0 {
            return;
        }
        published();
        while self.owed != 0 {
            let wakeup = &self.shared.wakeups[self.owed.trailing_zeros() as usize];
            self.owed &= self.owed - 1;
            if wakeup.waker.claim() {
                // The counter of the eventfd holds up to 2^64 and its reader clears it, so the write does not fail.
                let _ = rustix::io::write(&wakeup.event, &1_u64.to_ne_bytes());
            }
        }
    }

    /// Appends up to `max` frames of `side` that others have handed over.
    pub fn take(&mut self, side: Side, batch: &mut Batch, max: usize, pool: &mut Pool) -> Taken {
        let mut taken = Taken::default();
        let workers = self.shared.workers;
        for i in 0..workers {
            let queue = self.shared.queue((self.first + i) % workers, self.number, side);
            while taken.frames + taken.lost < max {
                match queue.pop(pool) {
                    None => break,
                    Some(Some(frame)) => {
                        taken.frames += 1;
                        batch.push(frame);
                    }
                    Some(None) => taken.lost += 1,
                }
            }
        }
        self.first = (self.first + 1) % workers;
        taken
    }

    /// Sends an update to all other workers. Returns to how many, and how many had no space for it.
    pub fn publish(&self, update: Update) -> (usize, usize) {
        let others = self.shared.updates.iter().enumerate().filter(|(to, _)| *to != self.number);
        let sent = others.filter(|(_, queue)| queue.push(update).is_ok()).count();
        (sent, self.workers() - 1 - sent)
    }

    /// The next update of another worker.
    pub fn receive_update(&self) -> Option<Update> {
        self.shared.updates[self.number].pop()
    }

    /// Announces that this worker is about to sleep, and returns the descriptor that wakes it; `None` when there are frames already.
    /// To be followed by [`Endpoint::end_sleep`].
    pub fn begin_sleep(&self) -> Option<BorrowedFd<'_>> {
        let wakeup = &self.shared.wakeups[self.number];
        let is_pending =
            |side| (0..self.shared.workers).any(|from| !self.shared.queue(from, self.number, side).full.is_empty());
        wakeup.waker.begin_sleep(|| Side::BOTH.into_iter().any(is_pending)).then(|| wakeup.event.as_fd())
    }

    /// Announces that this worker is awake.
    pub fn end_sleep(&self) {
        let wakeup = &self.shared.wakeups[self.number];
        wakeup.waker.end_sleep(&self.due, || {
            let mut signals = [0; 8];
            // It fails while no claimed signal has arrived yet.
            rustix::io::read(&wakeup.event, &mut signals).map_or(0, |_| u64::from_ne_bytes(signals))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::thread;
    use std::time::{Duration, Instant};

    fn frame(pool: &mut Pool, bytes: &[u8]) -> Frame {
        pool.adopt(bytes).expect("a frame is spare")
    }

    fn send(endpoint: &mut Endpoint, to: usize, side: Side, pool: &mut Pool, bytes: &[u8]) -> bool {
        let frame = frame(pool, bytes);
        let sent = endpoint.hand_over(to, side, &frame, false);
        pool.put(frame);
        sent
    }

    fn bytes(batch: &mut Batch, pool: &mut Pool) -> Vec<Vec<u8>> {
        let frames = batch.drain(..);
        frames
            .map(|frame| {
                let bytes = frame.segments().collect::<Vec<_>>().concat();
                pool.put(frame);
                bytes
            })
            .collect()
    }

    #[test]
    fn frames_arrive_in_order_at_their_receiver_with_their_side() {
        let mut pool = Pool::heap(64, 256, 64);
        let mut batch = Batch::new();
        let mut endpoints = Endpoint::open(3, 1000).unwrap();
        let jumbo: Vec<u8> = (0..1000_u32).map(|i| i as u8).collect();
        for (side, frame) in [(Side::Wan, b"one".as_slice()), (Side::Lan, b"two"), (Side::Wan, &jumbo)] {
            assert!(send(&mut endpoints[0], 2, side, &mut pool, frame));
        }
        assert_eq!(endpoints[1].take(Side::Wan, &mut batch, 64, &mut pool), Taken::default());
        assert_eq!(endpoints[2].take(Side::Wan, &mut batch, 64, &mut pool), Taken { frames: 2, lost: 0 });
        assert_eq!(bytes(&mut batch, &mut pool), [b"one".to_vec(), jumbo]);
        assert_eq!(endpoints[2].take(Side::Lan, &mut batch, 64, &mut pool).frames, 1);
        assert_eq!(bytes(&mut batch, &mut pool), [b"two"]);
        assert_eq!(pool.idle(), pool.total());
    }

    #[test]
    fn a_frame_keeps_its_member() {
        let (mut pool, mut batch) = (Pool::heap(8, 256, 64), Batch::new());
        let mut endpoints: Vec<_> =
            Endpoint::open(2, 100).unwrap().into_iter().map(|end| end.with_members(true)).collect();
        let mut sent = frame(&mut pool, b"x");
        sent.set_member(5);
        assert!(endpoints[0].hand_over(1, Side::Wan, &sent, false));
        sent.set_member(0);
        pool.put(sent);
        assert_eq!(endpoints[1].take(Side::Wan, &mut batch, 8, &mut pool).frames, 1);
        assert_eq!(batch[0].member(), 5);
        batch.drain(..).for_each(|frame| pool.put(frame));
    }

    #[test]
    fn a_full_queue_refuses_and_takes_again_when_there_is_space() {
        let mut pool = Pool::heap(64, 256, 64);
        let mut batch = Batch::new();
        let mut endpoints = Endpoint::open(2, 100).unwrap();
        let sent = (0..INBOX).take_while(|_| send(&mut endpoints[0], 1, Side::Lan, &mut pool, b"x")).count();
        assert_eq!(sent, *QUEUE_LENGTH.end());
        assert!(send(&mut endpoints[1], 1, Side::Lan, &mut pool, b"own"), "every sender has a queue of its own");
        assert_eq!(endpoints[1].take(Side::Lan, &mut batch, 7, &mut pool).frames, 7);
        assert_eq!((0..INBOX).take_while(|_| send(&mut endpoints[0], 1, Side::Lan, &mut pool, b"x")).count(), 7);
        assert!(!send(&mut endpoints[0], 1, Side::Wan, &mut pool, &[0; 101]), "longer than any frame can be");
        assert_eq!(bytes(&mut batch, &mut pool).len(), 7);
        assert_eq!(pool.idle(), pool.total());
    }

    #[test]
    fn a_flood_of_syns_leaves_space_for_connections() {
        let mut pool = Pool::heap(8, 256, 64);
        let mut endpoints = Endpoint::open(2, 100).unwrap();
        let frame = frame(&mut pool, b"x");
        let mut push = |is_syn| (0..1000).take_while(|_| endpoints[0].hand_over(1, Side::Wan, &frame, is_syn)).count();
        assert_eq!((push(true), push(false), push(true)), (QUEUE_LENGTH.end() * 3 / 4, QUEUE_LENGTH.end() / 4, 0));
        pool.put(frame);
    }

    #[test]
    fn a_frame_without_a_buffer_is_lost_and_counted() {
        let mut pool = Pool::heap(8, 256, 64);
        let mut endpoints = Endpoint::open(2, 100).unwrap();
        for _ in 0..5 {
            send(&mut endpoints[0], 1, Side::Lan, &mut pool, b"x");
        }
        let (mut few, mut batch) = (Pool::heap(3, 256, 64), Batch::new());
        assert_eq!(endpoints[1].take(Side::Lan, &mut batch, 64, &mut few), Taken { frames: 3, lost: 2 });
        assert!(send(&mut endpoints[0], 1, Side::Lan, &mut pool, b"x"), "their slots are not lost");
        batch.drain(..).for_each(|frame| few.put(frame));
    }

    #[test]
    fn an_update_reaches_all_others_in_order_and_a_full_queue_loses_some() {
        let mut source = Source::default();
        let mut update = |n: usize| {
            source[0] = n as u8;
            Update::Proved(source)
        };
        let endpoints = Endpoint::open(3, 100).unwrap();
        assert_eq!(endpoints[0].publish(update(1)), (2, 0));
        assert_eq!(endpoints[1].publish(update(2)), (2, 0));
        let received = |endpoint: &Endpoint| -> Vec<u8> {
            let first = |update| if let Update::Proved(source) = update { source[0] } else { 0 };
            std::iter::from_fn(|| endpoint.receive_update()).map(first).collect()
        };
        assert_eq!(endpoints.iter().map(received).collect::<Vec<_>>(), [vec![2], vec![1], vec![1, 2]]);
        for n in 0..INBOX {
            assert_eq!(endpoints[0].publish(update(n)), (2, 0));
        }
        assert_eq!(received(&endpoints[1]).len(), INBOX);
        assert_eq!(endpoints[0].publish(update(0)), (1, 1), "one has space again, the other not");
        assert!(endpoints[2].begin_sleep().is_some(), "no worker stays awake for updates");
        endpoints[2].end_sleep();
    }

    #[test]
    fn a_worker_with_frames_to_take_does_not_sleep() {
        let mut pool = Pool::heap(8, 256, 64);
        let mut endpoints = Endpoint::open(2, 100).unwrap();
        assert!(endpoints[1].begin_sleep().is_some());
        endpoints[1].end_sleep();
        send(&mut endpoints[0], 1, Side::Wan, &mut pool, b"x");
        assert!(endpoints[1].begin_sleep().is_none());
        endpoints[1].end_sleep();
    }

    /// Exchanges one frame with the other worker, and sleeps whenever there is none. Returns the longest sleep.
    fn ping_pong(mut endpoint: Endpoint, starts: bool) -> Duration {
        let (mut pool, mut batch) = (Pool::heap(8, 256, 64), Batch::new());
        let other = 1 - endpoint.number();
        if starts {
            assert!(send(&mut endpoint, other, Side::Lan, &mut pool, b"ball"));
            endpoint.wake_receivers();
        }
        let mut longest = Duration::ZERO;
        for _ in 0..50_000 {
            while endpoint.take(Side::Lan, &mut batch, 64, &mut pool).frames == 0 {
                if let Some(event) = endpoint.begin_sleep() {
                    let begin = Instant::now();
                    let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
                    poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&timeout)).unwrap();
                    longest = longest.max(begin.elapsed());
                }
                endpoint.end_sleep();
            }
            let ball = batch.pop().expect("just taken");
            assert!(endpoint.hand_over(other, Side::Lan, &ball, false));
            pool.put(ball);
            endpoint.wake_receivers();
        }
        longest
    }

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn no_wake_up_is_lost() {
        let mut endpoints = Endpoint::open(2, 100).unwrap();
        let (second, first) = (endpoints.pop().unwrap(), endpoints.pop().unwrap());
        let longest = thread::scope(|scope| {
            let first = scope.spawn(|| ping_pong(first, true));
            ping_pong(second, false).max(first.join().unwrap())
        });
        assert!(longest < TIMEOUT, "a sleep lasted until its timeout");
    }
}
