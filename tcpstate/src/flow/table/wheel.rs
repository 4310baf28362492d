//! The timer wheel: four levels of 256 slots, each slot a list threaded through the flows themselves.
//!
//! A flow has one link and is filed under the earliest reason it has. Putting a deadline off only writes the flow's
//! `deadline`; when its slot comes up the wheel sees that it is not due and files it anew. Work is done one flow at a time,
//! so that the caller can stop at any point.

use super::id::{Id, NIL};
use crate::flow::Flow;
use crate::prefetch::prefetch;
use crate::{Instant, Side};

/// Ticks: 1024 µs, on a circle of 50 days.
pub type Ticks = u32;

pub(crate) const TICK_SHIFT: u32 = 10;
/// One second, in ticks.
pub(crate) const SECOND: Ticks = 1_000_000 / 1024;
const LEVELS: usize = 4;
const SLOTS: usize = 256;
/// Slots of all levels.
pub(super) const SLOTS_IN_ALL: usize = LEVELS * SLOTS;
/// A flow that is on no list.
pub(super) const UNFILED: u16 = u16::MAX;

/// The tick a time falls in.
#[inline(always)]
pub fn tick(now: Instant) -> Ticks {
    (now.as_micros() >> TICK_SHIFT) as Ticks
}

/// How long so many ticks between two moments are, on average.
pub fn average(ticks: Ticks) -> core::time::Duration {
    core::time::Duration::from_micros((u64::from(ticks) << TICK_SHIFT) + (1 << (TICK_SHIFT - 1)))
}

/// A duration in ticks, rounded up; at most a quarter of the circle (12 days).
pub fn ticks(duration: core::time::Duration) -> Ticks {
    let ticks = duration.as_micros().div_ceil(1 << TICK_SHIFT);
    Ticks::try_from(ticks).unwrap_or(Ticks::MAX).min(1 << 30)
}

/// Whether `deadline` has come at `now`.
fn is_due(deadline: Ticks, now: Ticks) -> bool {
    deadline.wrapping_sub(now) as i32 <= 0
}

/// The wheel.
pub struct Wheel {
    heads: Box<[u32; SLOTS_IN_ALL]>,
    /// One bit for each slot that is not empty.
    occupied: [[u64; SLOTS / 64]; LEVELS],
    /// Everything before this tick has been looked at.
    current: Ticks,
    /// The time at tick zero of the present circle, for the time of the next call.
    origin: u64,
}

impl Wheel {
    /// A wheel that stands at `now`.
    pub fn new(now: Instant) -> Self {
        let current = tick(now);
        Self {
            heads: Box::new([NIL; SLOTS_IN_ALL]),
            occupied: [[0; SLOTS / 64]; LEVELS],
            current,
            origin: now.as_micros() >> TICK_SHIFT,
        }
    }

    /// Makes the flow due at `deadline`, wherever it was filed.
    #[inline(always)]
    pub fn schedule(&mut self, flows: &mut [Flow], id: Id, deadline: Ticks) {
        let flow = &mut flows[id.0 as usize];
        let later = deadline.wrapping_sub(flow.deadline) as i32 >= 0;
        flow.deadline = deadline;
        if !later {
            self.draw_nearer(flows, id);
        }
    }

    /// Sees to it that a flow whose deadline has come nearer comes up in time. Mostly it does: its slot is that of an earlier reason.
    #[inline(never)]
    fn draw_nearer(&mut self, flows: &mut [Flow], id: Id) {
        let Flow { slot, deadline, .. } = flows[id.0 as usize];
        if slot == UNFILED || !is_due(self.beginning(slot), deadline) {
            self.file_anew(flows, id);
        }
    }

    /// The tick at which a slot that holds something comes up.
    fn beginning(&self, slot: u16) -> Ticks {
        let shift = 8 * u32::from(slot / SLOTS as u16);
        let above = u32::MAX.checked_shl(shift + 8).unwrap_or(0);
        self.current & above | u32::from(slot % SLOTS as u16) << shift
    }

    fn file_anew(&mut self, flows: &mut [Flow], id: Id) {
        self.unfile(flows, id);
        self.file(flows, id);
    }

    /// Files a flow that is on no list under `deadline`.
    pub fn enter(&mut self, flows: &mut [Flow], id: Id, deadline: Ticks) {
        flows[id.0 as usize].deadline = deadline;
        self.file(flows, id);
    }

    fn file(&mut self, flows: &mut [Flow], id: Id) {
        let deadline = flows[id.0 as usize].deadline;
        // What is overdue comes up next.
        let at = if is_due(deadline, self.current) { self.current } else { deadline };
        // The level is that of the highest byte in which the deadline differs from now: there, its slot is yet to come.
        let level = (31 - ((at ^ self.current) | 1).leading_zeros()) as usize / 8;
        let index = (at >> (8 * level)) as usize % SLOTS;
        let slot = level * SLOTS + index;
        let next = self.heads[slot];
        if next != NIL {
            flows[next as usize].link_prev = id.0;
        }
        let flow = &mut flows[id.0 as usize];
        (flow.link_next, flow.link_prev, flow.slot) = (next, NIL, slot as u16);
        self.heads[slot] = id.0;
        self.occupied[level][index / 64] |= 1 << (index % 64);
    }

    /// Takes a flow off its list.
    pub fn unfile(&mut self, flows: &mut [Flow], id: Id) {
        let Flow { link_next, link_prev, slot, .. } = flows[id.0 as usize];
        if slot == UNFILED {
            return;
        }
        flows[id.0 as usize].slot = UNFILED;
        let slot = usize::from(slot);
        if self.heads[slot] == id.0 {
            // The first one's link back is never read, so it is not written.
            self.heads[slot] = link_next;
            if link_next == NIL {
                let index = slot % SLOTS;
                self.occupied[slot / SLOTS][index / 64] &= !(1 << (index % 64));
            }
            return;
        }
        flows[link_prev as usize].link_next = link_next;
        if link_next != NIL {
            flows[link_next as usize].link_prev = link_prev;
        }
    }

    /// Prefetches the lines of the flow after the next, so that a list of cold flows does not cost one cache miss after another.
    fn prefetch_ahead(flows: &[Flow], id: Id) {
        let next = |flow: &Flow| flows.get(flow.link_next as usize);
        if let Some(after) = next(&flows[id.0 as usize]).and_then(next) {
            prefetch(after);
            prefetch(after.endpoint(Side::Wan));
        }
    }

    /// Does one piece of work: the flow it returns is due and on no list any more; `None` within a `Some` means that a flow was
    /// filed anew; a bare `None` that nothing is left to do before `now` is over.
    pub fn step(&mut self, flows: &mut [Flow], now: Instant) -> Option<Option<Id>> {
        let now = tick(now);
        loop {
            // At the beginning of a slot of a higher level its flows are spread over the levels below, before anything else.
            let boundary = (self.current.trailing_zeros() as usize / 8).min(LEVELS - 1);
            for level in (0..=boundary).rev() {
                let slot = level * SLOTS + (self.current >> (8 * level)) as usize % SLOTS;
                let head = self.heads[slot];
                if head == NIL {
                    continue;
                }
                let id = Id(head);
                Self::prefetch_ahead(flows, id);
                self.unfile(flows, id);
                if level == 0 && is_due(flows[head as usize].deadline, self.current) {
                    return Some(Some(id));
                }
                self.file(flows, id);
                return Some(None);
            }
            if self.current == now {
                return None;
            }
            self.advance(now);
        }
    }

    fn advance(&mut self, now: Ticks) {
        let next = self.next_event().filter(|&next| is_due(next, now)).unwrap_or(now);
        self.origin += u64::from(next.wrapping_sub(self.current));
        self.current = next;
    }

    /// The first tick after the current one at which a slot of any level begins that is not empty.
    fn next_event(&self) -> Option<Ticks> {
        for level in 0..LEVELS {
            let shift = 8 * level as u32;
            let here = (self.current >> shift) as usize % SLOTS;
            // Only the highest level is a circle; in the others what lies behind is the next higher slot's affair.
            let slot = self
                .first_occupied(level, here + 1..SLOTS)
                .or_else(|| (level == LEVELS - 1).then(|| self.first_occupied(level, 0..here)).flatten());
            if let Some(slot) = slot {
                return Some(self.beginning((level * SLOTS + slot) as u16));
            }
        }
        None
    }

    fn first_occupied(&self, level: usize, range: core::ops::Range<usize>) -> Option<usize> {
        let mut at = range.start;
        while at < range.end {
            let word = self.occupied[level][at / 64] >> (at % 64);
            if word != 0 {
                return Some(at + word.trailing_zeros() as usize).filter(|&at| at < range.end);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// The earliest time at which there may be work.
    pub fn next_deadline(&self) -> Option<Instant> {
        let here = self.current as usize % SLOTS;
        let next = if self.heads[here] == NIL { self.next_event()? } else { self.current };
        let ahead = u64::from(next.wrapping_sub(self.current));
        Some(Instant::from_micros((self.origin + ahead) << TICK_SHIFT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use proptest::prelude::*;

    fn after(now: Instant, millis: u64) -> Instant {
        now + Duration::from_millis(millis)
    }

    fn drain(wheel: &mut Wheel, flows: &mut [Flow], now: Instant) -> Vec<u32> {
        let mut due = Vec::new();
        while let Some(step) = wheel.step(flows, now) {
            due.extend(step.map(|id| id.0));
        }
        due
    }

    #[test]
    fn a_refreshed_flow_is_filed_anew_and_comes_up_once() {
        let start = Instant::from_secs(100);
        let (mut wheel, mut flows) = (Wheel::new(start), vec![Flow::default(); 1]);
        wheel.enter(&mut flows, Id(0), tick(after(start, 500)));
        wheel.schedule(&mut flows, Id(0), tick(after(start, 90_000)));
        assert!(drain(&mut wheel, &mut flows, after(start, 80_000)).is_empty());
        assert_eq!(drain(&mut wheel, &mut flows, after(start, 90_010)), [0]);
        assert!(wheel.next_deadline().is_none());
    }

    #[test]
    fn a_deadline_drawn_nearer_is_kept() {
        let start = Instant::from_secs(100);
        let (mut wheel, mut flows) = (Wheel::new(start), vec![Flow::default(); 1]);
        wheel.enter(&mut flows, Id(0), tick(after(start, 86_400_000)));
        wheel.schedule(&mut flows, Id(0), tick(after(start, 45_000)));
        assert_eq!(drain(&mut wheel, &mut flows, after(start, 45_010)), [0]);
    }

    proptest! {
        #[test]
        fn every_flow_comes_up_when_it_is_due_and_not_before(
            start in any::<u32>(),
            delays in prop::collection::vec(prop_oneof![0u32..600, 0u32..200_000, 0u32..100_000_000], 1..60),
            jumps in prop::collection::vec(prop_oneof![0u64..300, 0u64..100_000, 0u64..50_000_000], 1..40),
            moves in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![0u32..600, 0u32..200_000, 0u32..100_000_000]), 40),
            removed in any::<prop::sample::Index>(),
        ) {
            let mut now = Instant::from_micros(u64::from(start) << TICK_SHIFT);
            let (mut wheel, mut flows) = (Wheel::new(now), vec![Flow::default(); delays.len()]);
            let begin = u64::from(start);
            for (n, delay) in delays.iter().enumerate() {
                wheel.enter(&mut flows, Id(n as u32), start.wrapping_add(*delay));
            }
            let removed = removed.index(delays.len());
            wheel.unfile(&mut flows, Id(removed as u32));
            let mut pending: Vec<bool> = (0..delays.len()).map(|n| n != removed).collect();
            let mut dues: Vec<u64> = delays.iter().map(|&delay| begin + u64::from(delay)).collect();
            for (jump, (moved, delay)) in jumps.into_iter().chain([200_000_000]).zip(moves) {
                // A flow that still waits may get a later or an earlier deadline.
                let moved = moved.index(delays.len());
                if pending[moved] {
                    dues[moved] = (now.as_micros() >> TICK_SHIFT) + u64::from(delay);
                    wheel.schedule(&mut flows, Id(moved as u32), dues[moved] as Ticks);
                }
                if let Some(next) = wheel.next_deadline() {
                    let earliest = (0..delays.len()).filter(|&n| pending[n]).map(|n| dues[n]).min();
                    prop_assert!(next.as_micros() >> TICK_SHIFT <= earliest.unwrap().max(now.as_micros() >> TICK_SHIFT));
                }
                now = now + Duration::from_micros(jump << TICK_SHIFT);
                for due in drain(&mut wheel, &mut flows, now) {
                    prop_assert!(core::mem::take(&mut pending[due as usize]));
                    prop_assert!(dues[due as usize] <= now.as_micros() >> TICK_SHIFT);
                }
                for n in 0..delays.len() {
                    let late = dues[n] <= now.as_micros() >> TICK_SHIFT;
                    prop_assert_eq!(pending[n], n != removed && !late, "flow {} due at {}", n, dues[n]);
                }
            }
        }
    }
}
