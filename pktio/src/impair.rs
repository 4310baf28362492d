//! Wraps any port and impairs its frames as a bad network does: loses, duplicates, delays, reorders and corrupts them.
//!
//! The result is a function of the seed, the frames and the times that the caller gives: no clock is read, unless
//! [`Impair::real_time`] asks for one. Frames in flight are held here, taken from the worker's pool, up to a limit.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::frame::{Batch, Frame};
use crate::pool::Pool;
use crate::port::{Capabilities, Port, PortStatistics};

/// What one direction of the network does to frames. The default does nothing.
///
/// Probabilities are from 0 (never) to 1 (always), each drawn on its own for every frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Impairment {
    /// The probability that a frame is lost.
    pub loss: f64,
    /// The probability that a frame arrives twice.
    pub duplicate: f64,
    /// The probability that a bit of a frame is flipped.
    pub corrupt: f64,
    /// The probability that a frame is held back by `reorder_by`, so that those behind it overtake it.
    pub reorder: f64,
    /// How long a reordered frame is held back beyond its delay.
    pub reorder_by: Duration,
    /// The delay of every frame.
    pub delay: Duration,
    /// An additional delay, evenly distributed from zero to this. Jitter alone keeps frames in order.
    pub jitter: Duration,
    /// The rate of the link, in bits per second; `None` is without bound.
    pub rate: Option<u64>,
    /// Frames in flight at most; a frame that enters beyond that is lost.
    pub limit: usize,
}

impl Default for Impairment {
    fn default() -> Self {
        Impairment {
            loss: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(1),
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            rate: None,
            limit: 1000,
        }
    }
}

/// The counters of one direction, in frames.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ImpairStatistics {
    /// Frames that entered.
    pub entered: u64,
    /// Frames lost by chance.
    pub lost: u64,
    /// Frames lost because `limit` frames were in flight.
    pub overflowed: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Frames in which a bit was flipped.
    pub corrupted: u64,
    /// Frames held back so that others overtake.
    pub reordered: u64,
    /// Frames that left.
    pub left: u64,
}

/// A port behind a bad network; see the module.
///
/// ```
/// use std::time::Duration;
/// use pktio::impair::{Impair, Impairment};
/// use pktio::{Batch, Pool, Port, memory};
///
/// let (port, mut wire) = memory::pair(16);
/// let slow = Impairment { delay: Duration::from_millis(20), ..Impairment::default() };
/// let mut port = Impair::new(port, 7).receiving(slow);
/// let (mut pool, mut batch) = (Pool::heap(4, 2048, 64), Batch::new());
/// wire.push(&[0; 60]);
/// assert_eq!(port.receive(&mut batch, 64, &mut pool), 0);
/// port.set_now(Duration::from_millis(20));
/// assert_eq!(port.receive(&mut batch, 64, &mut pool), 1);
/// # batch.drain(..).for_each(|frame| pool.put(frame));
/// ```
pub struct Impair<P: Port> {
    port: P,
    inward: Link,
    outward: Link,
    /// Frames that the wrapped port delivered last, before it enters `inward`.
    arriving: Batch,
    /// Frames that have left `outward` and that the wrapped port has not taken yet.
    leaving: Batch,
    now: Duration,
    clock: Option<Clock>,
}

impl<P: Port> Impair<P> {
    /// Wraps `port`. Nothing is impaired until [`receiving`](Self::receiving) or [`transmitting`](Self::transmitting)
    /// says so. Time stands at zero until [`set_now`](Self::set_now) moves it.
    pub fn new(port: P, seed: u64) -> Impair<P> {
        let mut seeds = Random(seed);
        Impair {
            port,
            inward: Link::new(seeds.next()),
            outward: Link::new(seeds.next()),
            arriving: Batch::new(),
            leaving: Batch::new(),
            now: Duration::ZERO,
            clock: None,
        }
    }

    /// Impairs what is received.
    #[must_use]
    pub fn receiving(mut self, impairment: Impairment) -> Self {
        self.inward.impairment = impairment;
        self
    }

    /// Impairs what is transmitted.
    #[must_use]
    pub fn transmitting(mut self, impairment: Impairment) -> Self {
        self.outward.impairment = impairment;
        self
    }

    /// Takes the time from the system's monotonic clock from now on. The descriptor of [`Port::poll_fd`] then becomes readable also
    /// when a frame in flight is due.
    ///
    /// # Errors
    ///
    /// Those of `epoll_create1(2)` and `timerfd_create(2)`.
    pub fn real_time(mut self) -> io::Result<Self> {
        self.clock = Some(Clock::new(self.port.poll_fd(), self.now)?);
        Ok(self)
    }

    /// Advances the time; the caller chooses its zero. Without effect in [`real_time`](Self::real_time).
    pub fn set_now(&mut self, now: Duration) {
        if self.clock.is_none() {
            self.now = self.now.max(now);
        }
    }

    /// When the next frame in flight is due, by the time of [`set_now`](Self::set_now).
    pub fn next_due(&self) -> Option<Duration> {
        let blocked = (!self.leaving.is_empty()).then_some(self.now);
        [self.inward.next_due(), self.outward.next_due(), blocked].into_iter().flatten().min()
    }

    /// Frames in flight, in both directions.
    pub fn held(&self) -> usize {
        self.inward.held.len() + self.outward.held.len() + self.leaving.len()
    }

    /// The counters of received and of transmitted frames.
    pub fn impairments(&self) -> [ImpairStatistics; 2] {
        [self.inward.statistics, self.outward.statistics]
    }

    /// The wrapped port.
    pub fn get_ref(&self) -> &P {
        &self.port
    }

    /// The wrapped port; the frames in flight go back to `pool`.
    pub fn into_inner(mut self, pool: &mut Pool) -> P {
        let held = self.inward.held.drain().chain(self.outward.held.drain()).map(|held| held.frame);
        held.chain(self.leaving.drain(..)).for_each(|frame| pool.put(frame));
        self.port
    }

    fn tick(&mut self) {
        if let Some(clock) = &self.clock {
            self.now = clock.now();
        }
    }

    /// Passes frames that are due to the wrapped port.
    fn release(&mut self, pool: &mut Pool) {
        self.outward.leave(self.now, usize::MAX, &mut self.leaving);
        if !self.leaving.is_empty() {
            self.port.transmit(&mut self.leaving, pool);
        }
    }

    /// Sets the timer to the next frame due.
    fn arm_timer(&mut self) {
        let due = self.next_due();
        if let Some(clock) = &mut self.clock {
            clock.arm(due);
        }
    }
}

impl<P: Port> Port for Impair<P> {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        self.tick();
        self.port.receive(&mut self.arriving, max, pool);
        for frame in self.arriving.drain(..) {
            self.inward.enter(frame, self.now, pool);
        }
        let received = self.inward.leave(self.now, max, batch);
        self.release(pool);
        self.arm_timer();
        received
    }

    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        self.tick();
        // The network's queue is in front of the wrapped port's ring: while that is full, report it to the worker.
        self.release(pool);
        if !self.leaving.is_empty() {
            self.arm_timer();
            return 0;
        }
        let count = batch.len();
        for frame in batch.drain(..) {
            self.outward.enter(frame, self.now, pool);
        }
        self.release(pool);
        self.arm_timer();
        count
    }

    fn flush(&mut self, pool: &mut Pool) {
        self.tick();
        self.release(pool);
        self.port.flush(pool);
        self.arm_timer();
    }

    fn poll_fd(&self) -> Option<RawFd> {
        match &self.clock {
            Some(clock) => self.port.poll_fd().map(|_| clock.epoll.as_raw_fd()),
            None => self.port.poll_fd(),
        }
    }

    fn is_exhausted(&self) -> bool {
        self.inward.held.is_empty() && self.port.is_exhausted()
    }

    fn capabilities(&self) -> Capabilities {
        self.port.capabilities()
    }

    /// Those of the wrapped port; see [`Impair::impairments`] for those of the impairments.
    fn statistics(&self) -> PortStatistics {
        self.port.statistics()
    }
}

/// The link in one direction.
struct Link {
    impairment: Impairment,
    random: Random,
    held: BinaryHeap<Held>,
    /// Numbers the frames, so that those due at the same time leave in order.
    sequence: u64,
    /// When the last frame that keeps its place is due: the next may not be before.
    last_due: Duration,
    /// When the link has sent what entered before.
    free: Duration,
    statistics: ImpairStatistics,
}

struct Held {
    due: Duration,
    sequence: u64,
    frame: Frame,
}

impl Ord for Held {
    /// The heap gives its greatest first, which is to be the one due first.
    fn cmp(&self, other: &Held) -> Ordering {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Held) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Held {}

impl Link {
    fn new(seed: u64) -> Link {
        Link {
            impairment: Impairment::default(),
            random: Random(seed),
            held: BinaryHeap::new(),
            sequence: 0,
            last_due: Duration::ZERO,
            free: Duration::ZERO,
            statistics: ImpairStatistics::default(),
        }
    }

    fn next_due(&self) -> Option<Duration> {
        self.held.peek().map(|held| held.due)
    }

    fn enter(&mut self, mut frame: Frame, now: Duration, pool: &mut Pool) {
        self.statistics.entered += 1;
        if self.random.chance(self.impairment.loss) {
            self.statistics.lost += 1;
            pool.put(frame);
            return;
        }
        let copy = if self.random.chance(self.impairment.duplicate) { pool.copy(&frame) } else { None };
        if self.random.chance(self.impairment.corrupt) && !frame.is_empty() {
            self.statistics.corrupted += 1;
            let bit = self.random.next() as usize % (8 * frame.len());
            frame.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
        }
        self.hold(frame, now, pool);
        if let Some(copy) = copy {
            self.statistics.duplicated += 1;
            self.hold(copy, now, pool);
        }
    }

    fn hold(&mut self, frame: Frame, now: Duration, pool: &mut Pool) {
        if self.held.len() >= self.impairment.limit {
            self.statistics.overflowed += 1;
            pool.put(frame);
            return;
        }
        if let Some(rate) = self.impairment.rate {
            let nanoseconds = frame.total() as u64 * 8 * 1_000_000_000 / rate.max(1);
            self.free = self.free.max(now) + Duration::from_nanos(nanoseconds);
        }
        let jitter = self.impairment.jitter.mul_f64(self.random.unit());
        let mut due = (self.free.max(now) + self.impairment.delay + jitter).max(self.last_due);
        if self.random.chance(self.impairment.reorder) {
            self.statistics.reordered += 1;
            due += self.impairment.reorder_by;
        } else {
            self.last_due = due;
        }
        self.held.push(Held { due, sequence: self.sequence, frame });
        self.sequence += 1;
    }

    /// Moves up to `max` frames that are due to `batch`.
    fn leave(&mut self, now: Duration, max: usize, batch: &mut Batch) -> usize {
        let mut count = 0;
        while count < max && self.next_due().is_some_and(|due| due <= now) {
            batch.extend(self.held.pop().map(|held| held.frame));
            count += 1;
        }
        self.statistics.left += count as u64;
        count
    }
}

/// SplitMix64: small, evenly distributed, and the same on every machine. Not for secrets.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, but not including, 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn chance(&mut self, probability: f64) -> bool {
        // Drawn also when the answer is known, so that one setting does not change the results of the others.
        self.unit() < probability
    }
}

/// The system's clock, and a descriptor that is readable when a frame is due or the wrapped port has one.
struct Clock {
    origin: Instant,
    epoll: OwnedFd,
    timer: OwnedFd,
    /// What the timer is set to.
    armed: Option<Duration>,
}

impl Clock {
    /// A clock that stands at `now`.
    fn new(port: Option<RawFd>, now: Duration) -> io::Result<Clock> {
        let own = |fd: i32| match fd {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the descriptor was just made and belongs to nothing else.
            fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        };
        // SAFETY: calls without pointers.
        let (epoll, timer) = unsafe {
            let timer = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK);
            (own(libc::epoll_create1(libc::EPOLL_CLOEXEC))?, own(timer)?)
        };
        for fd in port.into_iter().chain([timer.as_raw_fd()]) {
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
            // SAFETY: the event is valid for the call.
            if unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        let origin = Instant::now();
        Ok(Clock { origin: origin.checked_sub(now).unwrap_or(origin), epoll, timer, armed: None })
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Sets the timer to `due`, or stops it. Setting it also makes it unreadable until it expires again.
    fn arm(&mut self, due: Option<Duration>) {
        if due == self.armed && due.is_none_or(|due| due > self.now()) {
            return;
        }
        self.armed = due;
        // Zero would stop the timer; for a frame that is due already it expires at once.
        let left = due.map_or(Duration::ZERO, |due| due.saturating_sub(self.now()).max(Duration::from_micros(1)));
        let value = libc::timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: the setting is valid for the call; the old one is not asked for.
        unsafe { libc::timerfd_settime(self.timer.as_raw_fd(), 0, &raw const setting, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::{self, MemoryPort, MemoryWire};

    const MS: Duration = Duration::from_millis(1);

    fn impaired(receive: Impairment, transmit: Impairment, seed: u64) -> (Impair<MemoryPort>, MemoryWire) {
        let (port, wire) = memory::pair(4096);
        (Impair::new(port, seed).receiving(receive).transmitting(transmit), wire)
    }

    /// Pushes `count` numbered frames, one each `step`, and returns the numbers in the order they arrive, with the times.
    fn arrivals(receive: Impairment, seed: u64, count: u32, step: Duration) -> Vec<(u32, Duration)> {
        let (mut port, mut wire) = impaired(receive, Impairment::default(), seed);
        let (mut pool, mut batch, mut seen) = (Pool::heap(4096, 256, 64), Batch::new(), Vec::new());
        let mut now = Duration::ZERO;
        let mut meta = |port: &mut Impair<MemoryPort>, now| {
            port.set_now(now);
            port.receive(&mut batch, 4096, &mut pool);
            for frame in batch.drain(..) {
                seen.push((u32::from_be_bytes(*frame.bytes().first_chunk().unwrap()), now));
                pool.put(frame);
            }
        };
        for i in 0..count {
            wire.push(&[&i.to_be_bytes()[..], &[0; 56]].concat());
            meta(&mut port, now);
            now += step;
        }
        while let Some(due) = port.next_due() {
            now = now.max(due);
            meta(&mut port, now);
        }
        assert_eq!(port.held(), 0);
        assert_eq!(pool.idle(), pool.total());
        seen
    }

    #[test]
    fn without_impairment_everything_passes_at_once_in_order() {
        let seen = arrivals(Impairment::default(), 1, 100, MS);
        assert_eq!(seen, (0..100).map(|i| (i, MS * i)).collect::<Vec<_>>());
    }

    #[test]
    fn loss_and_duplication_come_as_often_as_asked() {
        let seen = arrivals(Impairment { loss: 0.25, ..Impairment::default() }, 2, 4000, MS).len();
        assert!((2900..3100).contains(&seen), "{seen}");
        let seen = arrivals(Impairment { duplicate: 0.25, ..Impairment::default() }, 2, 4000, MS).len();
        assert!((4900..5100).contains(&seen), "{seen}");
        assert!(arrivals(Impairment { loss: 1.0, ..Impairment::default() }, 2, 100, MS).is_empty());
    }

    #[test]
    fn a_delayed_frame_arrives_when_it_is_due_and_jitter_keeps_the_order() {
        let seen = arrivals(Impairment { delay: 20 * MS, ..Impairment::default() }, 3, 100, MS);
        assert!(seen.iter().all(|(i, at)| *at == MS * *i + 20 * MS));
        let seen = arrivals(Impairment { delay: 5 * MS, jitter: 5 * MS, ..Impairment::default() }, 3, 1000, MS);
        assert!(seen.is_sorted());
        assert!(
            seen.iter().any(|(i, at)| *at > MS * *i + 9 * MS) && seen.iter().any(|(i, at)| *at <= MS * *i + 6 * MS)
        );
    }

    #[test]
    fn a_reordered_frame_is_overtaken_and_not_lost() {
        let rough = Impairment { reorder: 0.2, reorder_by: 3 * MS, ..Impairment::default() };
        let mut seen: Vec<u32> = arrivals(rough, 4, 1000, MS).into_iter().map(|(i, _)| i).collect();
        let overtaken = seen.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!((100..300).contains(&overtaken), "{overtaken}");
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn the_rate_bounds_what_passes() {
        // 60 bytes at 480 kbit/s take a millisecond each.
        let seen = arrivals(Impairment { rate: Some(480_000), ..Impairment::default() }, 5, 100, Duration::ZERO);
        assert_eq!(seen, (0..100).map(|i| (i, MS * (i + 1))).collect::<Vec<_>>());
    }

    #[test]
    fn beyond_the_limit_frames_are_lost_and_counted() {
        let (mut port, mut wire) =
            impaired(Impairment { delay: MS, limit: 10, ..Impairment::default() }, Impairment::default(), 6);
        let (mut pool, mut batch) = (Pool::heap(64, 256, 64), Batch::new());
        (0..30).for_each(|_| assert!(wire.push(&[0; 60])));
        port.receive(&mut batch, 64, &mut pool);
        assert_eq!((port.held(), port.impairments()[0].overflowed), (10, 20));
        drop(port.into_inner(&mut pool));
        assert_eq!(pool.idle(), 64);
    }

    #[test]
    fn corruption_flips_one_bit() {
        let (mut port, mut wire) =
            impaired(Impairment::default(), Impairment { corrupt: 1.0, ..Impairment::default() }, 7);
        let mut pool = Pool::heap(4, 256, 64);
        let mut frame = pool.take().unwrap();
        frame.fill(&[0; 60]);
        port.transmit(&mut vec![frame], &mut pool);
        let flipped: u32 = wire.pop().unwrap().iter().map(|byte| byte.count_ones()).sum();
        assert_eq!((flipped, port.impairments()[1].corrupted), (1, 1));
    }

    #[test]
    fn a_transmitted_frame_leaves_when_due_at_the_flush() {
        let (mut port, mut wire) =
            impaired(Impairment::default(), Impairment { delay: 10 * MS, ..Impairment::default() }, 8);
        let mut pool = Pool::heap(4, 256, 64);
        let mut frame = pool.take().unwrap();
        frame.fill(&[9; 60]);
        assert_eq!(port.transmit(&mut vec![frame], &mut pool), 1);
        port.set_now(9 * MS);
        port.flush(&mut pool);
        assert_eq!((wire.pending(), port.next_due()), (0, Some(10 * MS)));
        port.set_now(10 * MS);
        port.flush(&mut pool);
        assert_eq!(wire.pop().unwrap(), [9; 60]);
        assert_eq!(pool.idle(), 4);
    }

    #[test]
    fn a_full_port_behind_it_keeps_the_frames_in_the_batch() {
        let (port, mut wire) = memory::pair(1);
        let mut port = Impair::new(port, 9);
        let mut pool = Pool::heap(8, 256, 64);
        let mut batch: Batch = (0..2).map(|_| pool.take().unwrap()).collect();
        assert_eq!(port.transmit(&mut batch, &mut pool), 2);
        assert_eq!((port.held(), wire.pending()), (1, 1));
        batch.push(pool.take().unwrap());
        assert_eq!((port.transmit(&mut batch, &mut pool), batch.len()), (0, 1));
        assert_eq!((wire.pop().is_some(), port.transmit(&mut batch, &mut pool), batch.len()), (true, 1, 0));
        assert_eq!((port.held(), wire.pending()), (1, 1), "the frame before it went first");
        drop(port.into_inner(&mut pool));
        assert_eq!(pool.idle(), 8);
    }

    #[test]
    fn in_real_time_the_descriptor_is_readable_when_a_frame_is_due() {
        struct Quiet(MemoryPort, std::os::unix::net::UnixDatagram);
        impl Port for Quiet {
            fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
                self.0.receive(batch, max, pool)
            }
            fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
                self.0.transmit(batch, pool)
            }
            fn flush(&mut self, pool: &mut Pool) {
                self.0.flush(pool);
            }
            fn poll_fd(&self) -> Option<RawFd> {
                Some(self.1.as_raw_fd())
            }
            fn capabilities(&self) -> Capabilities {
                self.0.capabilities()
            }
            fn statistics(&self) -> PortStatistics {
                self.0.statistics()
            }
        }
        let (port, mut wire) = memory::pair(4);
        let (one, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let slow = Impairment { delay: 30 * MS, ..Impairment::default() };
        let mut port = Impair::new(Quiet(port, one), 10).receiving(slow).real_time().unwrap();
        let (mut pool, mut batch) = (Pool::heap(4, 256, 64), Batch::new());
        wire.push(&[1; 60]);
        let begin = Instant::now();
        assert_eq!(port.receive(&mut batch, 4, &mut pool), 0);
        while batch.is_empty() && begin.elapsed() < 2000 * MS {
            crate::wait([&port, &port], Some(1000 * MS)).unwrap();
            port.receive(&mut batch, 4, &mut pool);
        }
        let took = begin.elapsed();
        assert!(batch.len() == 1 && took >= 30 * MS && took < 900 * MS, "{took:?}");
        // With nothing on its way the descriptor is quiet again.
        let begin = Instant::now();
        crate::wait([&port, &port], Some(50 * MS)).unwrap();
        assert!(begin.elapsed() >= 49 * MS, "{:?}", begin.elapsed());
        batch.drain(..).for_each(|frame| pool.put(frame));
    }

    proptest! {
        #[test]
        fn the_same_seed_does_the_same_and_no_frame_is_lost_unseen(
            seed: u64, loss in 0.0..0.5, duplicate in 0.0..0.5, reorder in 0.0..0.5, corrupt in 0.0..0.5,
            delay in 0u32..20, jitter in 0u32..20, limit in 1usize..200,
        ) {
            let rough = Impairment {
                loss, duplicate, reorder, corrupt, delay: MS * delay, jitter: MS * jitter, limit, ..Impairment::default()
            };
            let run = || {
                let (mut port, mut wire) = impaired(rough, rough, seed);
                let (mut pool, mut batch) = (Pool::heap(1024, 256, 64), Batch::new());
                let mut out = Vec::new();
                for i in 0..200u32 {
                    wire.push(&[i as u8; 60]);
                    port.set_now(MS * i);
                    port.receive(&mut batch, 64, &mut pool);
                    port.transmit(&mut batch, &mut pool);
                    port.flush(&mut pool);
                }
                port.set_now(MS * 10_000);
                while port.held() > 0 {
                    port.receive(&mut batch, 64, &mut pool);
                    port.transmit(&mut batch, &mut pool);
                    port.set_now(port.next_due().unwrap_or_default());
                    port.flush(&mut pool);
                }
                while let Some(bytes) = wire.pop() {
                    out.push(bytes);
                }
                (out, port.impairments(), pool.idle() == pool.total())
            };
            let (out, counts, whole) = run();
            prop_assert!(whole);
            for count in counts {
                prop_assert_eq!(count.entered + count.duplicated, count.left + count.lost + count.overflowed);
            }
            prop_assert_eq!(counts[1].left, out.len() as u64);
            prop_assert_eq!((out, counts, whole), run());
        }
    }
}
