//! Frames that wait before they are sent: those of connections that the kernel has handed up, which must not overtake what it has forwarded before.
//!
//! What the kernel forwards and what the worker sends wait in different queues of the device behind the other port, and nobody tells when the former has left
//! its own. So the first frame of an end that comes up waits for as long as that may take; and while it does, what else its end sends, or is sent by the
//! same hash, waits behind it.

use pktio::{Frame, Pool};
use std::collections::VecDeque;
use std::time::Duration;
use tcpstate::{Instant, PerSide, Side};

/// So many frames wait at most.
const MOST: usize = 4096;

/// Hashes are told apart by so many values.
const PLACES: usize = 4096;

/// A frame from `side` that waits.
struct Waiting {
    due: Instant,
    side: Side,
    place: usize,
    frame: Frame,
}

/// The frames that wait, in the order in which they leave.
pub struct WaitingFrames {
    /// Within which time what the kernel forwards leaves by the port of a side; `None`: it cannot be overtaken.
    leaves_within: PerSide<Option<Duration>>,
    frames: VecDeque<Waiting>,
    /// How many of them there are by side and hash.
    by_place: Box<[u16]>,
}

fn place(side: Side, hash: u64) -> usize {
    hash as usize % PLACES * 2 + side as usize
}

impl WaitingFrames {
    /// None waits yet. By the port of each side what the kernel forwards leaves within such a time; `None`: it cannot be overtaken.
    pub fn new(leaves_within: PerSide<Option<Duration>>) -> Self {
        let is_needed = Side::BOTH.into_iter().any(|side| leaves_within[side].is_some());
        let (most, places) = if is_needed { (MOST, 2 * PLACES) } else { (0, 0) };
        Self { leaves_within, frames: VecDeque::with_capacity(most), by_place: vec![0; places].into() }
    }

    /// When the next frame is to be sent, if one waits.
    pub fn due(&self) -> Option<Instant> {
        self.frames.front().map(|waiting| waiting.due)
    }

    /// When a frame from `side` with this hash may be sent, if not at once. `forwarded` says when the kernel has forwarded the segment before it, if the kernel
    /// has handed this one up.
    #[inline]
    pub fn until(&self, side: Side, hash: u64, forwarded: Option<Instant>, now: Instant) -> Option<Instant> {
        if forwarded.is_none() && self.frames.is_empty() {
            return None;
        }
        let within = self.leaves_within[side.other()]?;
        // All are sent in the order in which they came.
        let last = self.frames.back().map_or(now, |waiting| waiting.due);
        let is_behind = self.by_place[place(side, hash)] > 0;
        let due = forwarded.map_or(now, |forwarded| forwarded + within);
        (is_behind || due > now).then(|| due.min(now + within).max(last))
    }

    /// Has a frame wait that came from `side`. Returns it if there is no room for it: it is sent too early then, and not lost.
    pub fn put(&mut self, due: Instant, side: Side, hash: u64, frame: Frame, pool: &Pool) -> Option<Frame> {
        if self.frames.len() == MOST || pool.is_low() {
            return Some(frame);
        }
        let place = place(side, hash);
        self.by_place[place] += 1;
        self.frames.push_back(Waiting { due, side, place, frame });
        None
    }

    /// The next frame whose time has come, and the side it came from.
    #[inline]
    pub fn take(&mut self, now: Instant) -> Option<(Side, Frame)> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        self.take_next()
    }

    /// The next frame, whether its time has come or not, and the side it came from.
    fn take_next(&mut self) -> Option<(Side, Frame)> {
        let Waiting { side, place, frame, .. } = self.frames.pop_front()?;
        self.by_place[place] -= 1;
        Some((side, frame))
    }

    /// The pool's buffers that they occupy.
    #[cfg(test)]
    pub fn buffers(&self) -> usize {
        self.frames.iter().map(|waiting| waiting.frame.buffers()).sum()
    }

    /// Returns every frame to the pool.
    pub fn clear(&mut self, pool: &mut Pool) {
        while let Some((_, frame)) = self.take_next() {
            pool.put(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_secs(5);
    const WITHIN: Duration = Duration::from_millis(2);

    fn pool() -> Pool {
        Pool::heap(2 * MOST, 256, 64)
    }

    #[test]
    fn what_comes_up_waits_for_what_the_kernel_has_forwarded_before_and_what_follows_it_waits_behind() {
        let at_tc = WaitingFrames::new(PerSide::new(None, None));
        assert_eq!(at_tc.until(Side::Lan, 7, Some(NOW), NOW), None, "it cannot be overtaken");
        let (mut pool, mut waiting) = (pool(), WaitingFrames::new(PerSide::new(None, Some(WITHIN))));
        assert_eq!(waiting.until(Side::Wan, 7, Some(NOW), NOW), None, "nor on its way to the LAN");
        let later = |micros| NOW + Duration::from_micros(micros);
        assert_eq!(waiting.until(Side::Lan, 7, None, NOW), None);
        assert_eq!(waiting.until(Side::Lan, 7, Some(NOW), NOW + WITHIN), None, "it has left");
        let due = waiting.until(Side::Lan, 7, Some(NOW), later(100)).expect("it waits");
        assert_eq!(due, NOW + WITHIN);
        let frame = pool.take().expect("a frame");
        assert!(waiting.put(due, Side::Lan, 7, frame, &pool).is_none());
        assert_eq!(waiting.until(Side::Lan, 7, None, later(200)), Some(due), "behind it");
        assert_eq!(waiting.until(Side::Wan, 7, None, later(200)), None, "the other end's");
        assert_eq!(waiting.until(Side::Lan, 8, None, later(200)), None, "another connection's");
        assert_eq!(waiting.until(Side::Lan, 8, Some(later(150)), later(200)), Some(later(2150)));
        assert_eq!(
            waiting.until(Side::Lan, 8, Some(later(9000)), later(200)),
            Some(later(2200)),
            "a clock that is wrong"
        );
        assert!(waiting.take(later(1999)).is_none());
        let (side, frame) = waiting.take(due).expect("it is due");
        pool.put(frame);
        assert_eq!((side, waiting.due()), (Side::Lan, None));
        assert_eq!(waiting.until(Side::Lan, 7, None, due), None);
    }

    #[test]
    fn where_no_more_can_wait_frames_are_sent_too_early() {
        let (mut pool, mut waiting) = (pool(), WaitingFrames::new(PerSide::new(Some(WITHIN), None)));
        for n in 0..=MOST {
            let frame = pool.take().expect("a frame");
            let rest = waiting.put(NOW, Side::Wan, n as u64, frame, &pool);
            assert_eq!(rest.is_some(), n == MOST);
            rest.into_iter().for_each(|frame| pool.put(frame));
        }
        waiting.clear(&mut pool);
        assert_eq!(pool.idle(), pool.total());
        assert!(waiting.by_place.iter().all(|&count| count == 0));
    }
}
