//! How frames get from the worker that received them to the one that owns them: by value, over bounded lanes, one for each pair of
//! workers and each side. A frame's buffer never leaves the memory of its worker; its bytes are copied into a slot of the lane, and out
//! of it. Whose a frame is, is `steer`'s matter.
//!
//! What a worker has learned gets to all others in the same way, over one lane to each of them: it is written only when there is
//! something to tell, and read between batches.
//!
//! Nothing waits: a full lane refuses. A worker that sleeps says so first, looks at its lanes once more, and is woken by its bell,
//! which is rung only then, and for frames only: what is told is of use when the next frame comes.

mod bell;

use bell::{Bell, published};
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use pktio::{Batch, Frame, Pool};
use rustix::event::{EventfdFlags, eventfd};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use tcpstate::{ServerUpdate, Side, Source};

/// Frames on their way to one worker at most, those of one side: shared out among the lanes that lead there. And as many words. Two hundred thousand
/// a second come to so many while a worker is kept from its work for ten milliseconds.
const INBOX: usize = 2048;

/// The fewest and the most frames of a lane.
const LANE: std::ops::RangeInclusive<usize> = 32..=1024;

/// A frame on its way, or room for one.
struct Slot {
    len: usize,
    bytes: Box<[u8]>,
}

/// The way from one worker to another for what came in on one side. Slots go round: spare, full, spare.
struct Lane {
    full: ArrayQueue<Slot>,
    spare: ArrayQueue<Slot>,
}

impl Lane {
    fn new(slots: usize, longest: usize) -> Self {
        let lane = Self { full: ArrayQueue::new(slots), spare: ArrayQueue::new(slots) };
        for _ in 0..slots {
            // There is room for exactly as many.
            let _ = lane.spare.push(Slot { len: 0, bytes: vec![0; longest].into_boxed_slice() });
        }
        lane
    }

    /// Copies a frame into the lane; false when the lane is full, or the frame longer than a slot. A call may not take the last quarter
    /// of the places: a flood of them leaves room for what belongs to connections.
    fn push(&self, frame: &Frame, is_call: bool) -> bool {
        if is_call && self.spare.len() <= self.spare.capacity() / 4 {
            return false;
        }
        let Some(mut slot) = self.spare.pop() else { return false };
        let fits = frame.total() <= slot.bytes.len();
        if fits {
            slot.len = frame.copy_to(&mut slot.bytes);
        }
        let queue = if fits { &self.full } else { &self.spare };
        queue.push(slot).is_ok() && fits
    }

    /// Takes the next frame out of the lane into one of `pool`, which may have none left.
    fn pop(&self, pool: &mut Pool) -> Option<Option<Frame>> {
        let slot = self.full.pop()?;
        let frame = pool.adopt(&slot.bytes[..slot.len]);
        let _ = self.spare.push(slot);
        Some(frame)
    }
}

/// What workers tell each other.
#[derive(Clone, Copy, Debug)]
pub enum Word {
    /// An engine has learned something.
    ServerUpdate(ServerUpdate),
    /// A source has proved itself, for workers that keep their own account of them.
    Proved(Source),
}

/// What wakes a worker.
struct Alarm {
    bell: Bell,
    event: OwnedFd,
}

/// The lanes between all workers, and their bells.
struct Exchange {
    workers: usize,
    /// By receiver, then side, then sender.
    lanes: Vec<Lane>,
    /// What others tell, by receiver.
    words: Vec<ArrayQueue<Word>>,
    alarms: Vec<CachePadded<Alarm>>,
}

impl Exchange {
    fn lane(&self, from: usize, to: usize, side: Side) -> &Lane {
        &self.lanes[(2 * to + side as usize) * self.workers + from]
    }
}

/// One worker's place at the exchange.
pub struct Desk {
    exchange: Arc<Exchange>,
    number: usize,
    /// Workers to be woken, a bit each.
    owed: u64,
    /// Rings announced to this worker and not yet heard.
    due: Cell<u64>,
    /// Whose lane is looked at first, so that none starves.
    first: usize,
}

/// What came of taking over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Frames taken over.
    pub frames: usize,
    /// Frames lost because the pool had no buffer for them.
    pub lost: usize,
}

impl Desk {
    /// A desk for each of `workers` (64 at most), with lanes for frames of up to `longest` bytes. All memory is taken here.
    ///
    /// # Errors
    /// When the system gives no descriptors for the bells.
    pub fn open(workers: usize, longest: usize) -> io::Result<Vec<Desk>> {
        assert!(workers <= 64, "one bit a worker");
        let slots = (INBOX / workers.max(1)).clamp(*LANE.start(), *LANE.end());
        let alarm = || {
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            Ok(CachePadded::new(Alarm { bell: Bell::new(), event }))
        };
        let exchange = Arc::new(Exchange {
            workers,
            lanes: (0..2 * workers * workers).map(|_| Lane::new(slots, longest)).collect(),
            words: (0..workers).map(|_| ArrayQueue::new(INBOX)).collect(),
            alarms: (0..workers).map(|_| alarm()).collect::<io::Result<_>>()?,
        });
        let desk = |number| Desk { exchange: Arc::clone(&exchange), number, owed: 0, due: Cell::new(0), first: 0 };
        Ok((0..workers).map(desk).collect())
    }

    /// Whose desk it is.
    pub fn number(&self) -> usize {
        self.number
    }

    /// How many desks there are.
    pub fn workers(&self) -> usize {
        self.exchange.workers
    }

    /// Copies a frame that came in on `side`, and may be a client's call, into the lane to worker `to`. False when it found no place there. To be followed by
    /// [`Desk::ring`], once for many.
    pub fn hand_over(&mut self, to: usize, side: Side, frame: &Frame, is_call: bool) -> bool {
        self.owed |= 1 << to;
        self.exchange.lane(self.number, to, side).push(frame, is_call)
    }

    /// Wakes those that sleep while they have been handed something.
    pub fn ring(&mut self) {
        if self.owed == 0 {
            return;
        }
        published();
        while self.owed != 0 {
            let alarm = &self.exchange.alarms[self.owed.trailing_zeros() as usize];
            self.owed &= self.owed - 1;
            if alarm.bell.is_to_be_rung() {
                // It counts to 2^64, and whoever sleeps there empties it: the write cannot fail for want of room.
                let _ = rustix::io::write(&alarm.event, &1_u64.to_ne_bytes());
            }
        }
    }

    /// Appends up to `max` frames of `side` that others have handed over.
    pub fn take(&mut self, side: Side, batch: &mut Batch, max: usize, pool: &mut Pool) -> Taken {
        let mut taken = Taken::default();
        let workers = self.exchange.workers;
        for i in 0..workers {
            let lane = self.exchange.lane((self.first + i) % workers, self.number, side);
            while taken.frames + taken.lost < max {
                match lane.pop(pool) {
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

    /// Tells all others. Returns to how many it was told and how many had no room for it.
    pub fn tell(&self, word: Word) -> (usize, usize) {
        let others = self.exchange.words.iter().enumerate().filter(|(to, _)| *to != self.number);
        let told = others.filter(|(_, lane)| lane.push(word).is_ok()).count();
        (told, self.workers() - 1 - told)
    }

    /// The next word that another has told.
    pub fn receive_update(&self) -> Option<Word> {
        self.exchange.words[self.number].pop()
    }

    /// Says that this worker is about to sleep, and returns what is to wake it; `None` when there is something to do already.
    /// To be followed by [`Desk::wake`].
    pub fn doze(&self) -> Option<BorrowedFd<'_>> {
        let alarm = &self.exchange.alarms[self.number];
        let waits =
            |side| (0..self.exchange.workers).any(|from| !self.exchange.lane(from, self.number, side).full.is_empty());
        alarm.bell.doze(|| Side::BOTH.into_iter().any(waits)).then(|| alarm.event.as_fd())
    }

    /// Says that this worker is awake.
    pub fn wake(&self) {
        let alarm = &self.exchange.alarms[self.number];
        alarm.bell.wake(&self.due, || {
            let mut rings = [0; 8];
            // It fails while nobody has rung yet.
            rustix::io::read(&alarm.event, &mut rings).map_or(0, |_| u64::from_ne_bytes(rings))
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

    fn send(desk: &mut Desk, to: usize, side: Side, pool: &mut Pool, bytes: &[u8]) -> bool {
        let frame = frame(pool, bytes);
        let sent = desk.hand_over(to, side, &frame, false);
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
    fn frames_arrive_in_order_at_whom_they_are_for_with_their_side() {
        let mut pool = Pool::heap(64, 256, 64);
        let mut batch = Batch::new();
        let mut desks = Desk::open(3, 1000).unwrap();
        let jumbo: Vec<u8> = (0..1000_u32).map(|i| i as u8).collect();
        for (side, frame) in [(Side::Wan, b"one".as_slice()), (Side::Lan, b"two"), (Side::Wan, &jumbo)] {
            assert!(send(&mut desks[0], 2, side, &mut pool, frame));
        }
        assert_eq!(desks[1].take(Side::Wan, &mut batch, 64, &mut pool), Taken::default());
        assert_eq!(desks[2].take(Side::Wan, &mut batch, 64, &mut pool), Taken { frames: 2, lost: 0 });
        assert_eq!(bytes(&mut batch, &mut pool), [b"one".to_vec(), jumbo]);
        assert_eq!(desks[2].take(Side::Lan, &mut batch, 64, &mut pool).frames, 1);
        assert_eq!(bytes(&mut batch, &mut pool), [b"two"]);
        assert_eq!(pool.idle(), pool.total());
    }

    #[test]
    fn a_full_lane_refuses_and_takes_again_when_there_is_room() {
        let mut pool = Pool::heap(64, 256, 64);
        let mut batch = Batch::new();
        let mut desks = Desk::open(2, 100).unwrap();
        let sent = (0..INBOX).take_while(|_| send(&mut desks[0], 1, Side::Lan, &mut pool, b"x")).count();
        assert_eq!(sent, *LANE.end());
        assert!(send(&mut desks[1], 1, Side::Lan, &mut pool, b"own"), "every sender has a lane of its own");
        assert_eq!(desks[1].take(Side::Lan, &mut batch, 7, &mut pool).frames, 7);
        assert_eq!((0..INBOX).take_while(|_| send(&mut desks[0], 1, Side::Lan, &mut pool, b"x")).count(), 7);
        assert!(!send(&mut desks[0], 1, Side::Wan, &mut pool, &[0; 101]), "longer than any frame can be");
        assert_eq!(bytes(&mut batch, &mut pool).len(), 7);
        assert_eq!(pool.idle(), pool.total());
    }

    #[test]
    fn a_flood_of_calls_leaves_room_for_connections() {
        let mut pool = Pool::heap(8, 256, 64);
        let mut desks = Desk::open(2, 100).unwrap();
        let frame = frame(&mut pool, b"x");
        let mut push = |is_call| (0..1000).take_while(|_| desks[0].hand_over(1, Side::Wan, &frame, is_call)).count();
        assert_eq!((push(true), push(false), push(true)), (LANE.end() * 3 / 4, LANE.end() / 4, 0));
        pool.put(frame);
    }

    #[test]
    fn what_finds_no_buffer_is_lost_and_counted() {
        let mut pool = Pool::heap(8, 256, 64);
        let mut desks = Desk::open(2, 100).unwrap();
        for _ in 0..5 {
            send(&mut desks[0], 1, Side::Lan, &mut pool, b"x");
        }
        let (mut few, mut batch) = (Pool::heap(3, 256, 64), Batch::new());
        assert_eq!(desks[1].take(Side::Lan, &mut batch, 64, &mut few), Taken { frames: 3, lost: 2 });
        assert!(send(&mut desks[0], 1, Side::Lan, &mut pool, b"x"), "their slots are not lost");
        batch.drain(..).for_each(|frame| few.put(frame));
    }

    #[test]
    fn a_word_reaches_all_others_in_order_and_who_does_not_listen_misses_some() {
        let mut source = Source::default();
        let mut word = |n: usize| {
            source[0] = n as u8;
            Word::Proved(source)
        };
        let desks = Desk::open(3, 100).unwrap();
        assert_eq!(desks[0].tell(word(1)), (2, 0));
        assert_eq!(desks[1].tell(word(2)), (2, 0));
        let heard = |desk: &Desk| -> Vec<u8> {
            let first = |word| if let Word::Proved(source) = word { source[0] } else { 0 };
            std::iter::from_fn(|| desk.receive_update()).map(first).collect()
        };
        assert_eq!(desks.iter().map(heard).collect::<Vec<_>>(), [vec![2], vec![1], vec![1, 2]]);
        for n in 0..INBOX {
            assert_eq!(desks[0].tell(word(n)), (2, 0));
        }
        assert_eq!(heard(&desks[1]).len(), INBOX);
        assert_eq!(desks[0].tell(word(0)), (1, 1), "one has room again, the other not");
        assert!(desks[2].doze().is_some(), "nobody stays awake for words");
        desks[2].wake();
    }

    #[test]
    fn whoever_has_something_to_do_does_not_sleep() {
        let mut pool = Pool::heap(8, 256, 64);
        let mut desks = Desk::open(2, 100).unwrap();
        assert!(desks[1].doze().is_some());
        desks[1].wake();
        send(&mut desks[0], 1, Side::Wan, &mut pool, b"x");
        assert!(desks[1].doze().is_none());
        desks[1].wake();
    }

    /// Throws one frame to and fro with the other worker, and sleeps whenever there is none. Returns the longest sleep.
    fn rally(mut desk: Desk, serves: bool) -> Duration {
        let (mut pool, mut batch) = (Pool::heap(8, 256, 64), Batch::new());
        let other = 1 - desk.number();
        if serves {
            assert!(send(&mut desk, other, Side::Lan, &mut pool, b"ball"));
            desk.ring();
        }
        let mut longest = Duration::ZERO;
        for _ in 0..50_000 {
            while desk.take(Side::Lan, &mut batch, 64, &mut pool).frames == 0 {
                if let Some(bell) = desk.doze() {
                    let begin = Instant::now();
                    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
                    poll(&mut [PollFd::new(&bell, PollFlags::IN)], Some(&patience)).unwrap();
                    longest = longest.max(begin.elapsed());
                }
                desk.wake();
            }
            let ball = batch.pop().expect("just taken");
            assert!(desk.hand_over(other, Side::Lan, &ball, false));
            pool.put(ball);
            desk.ring();
        }
        longest
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn no_wake_up_is_lost() {
        let mut desks = Desk::open(2, 100).unwrap();
        let (second, first) = (desks.pop().unwrap(), desks.pop().unwrap());
        let longest = thread::scope(|scope| {
            let first = scope.spawn(|| rally(first, true));
            rally(second, false).max(first.join().unwrap())
        });
        assert!(longest < PATIENCE, "somebody slept until its time was over");
    }
}
