//! What the engine counts: of all, and of each [target](crate::Target) where there are several.
//!
//! Whose a frame was is known when it is done with. What is [counted](Counters::count) is remembered until then, and [ascribed](Counters::ascribe) to its
//! target, or [forgotten](Counters::forget_recent) if it is of none: who counts outside a frame or a flow's timer does one of these, or
//! [adds](Counters::add) to a target at once.

use crate::histogram::Histogram;
use crate::{DropReason, Event, Timing, Verdict};
use core::time::Duration;

/// How often each event happened, and how often something was dropped for each reason. All of it only grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// By the number of the event.
    pub events: [u64; Event::COUNT],
    /// By the number of the reason.
    pub drops: [u64; DropReason::COUNT],
}

impl Counts {
    /// Nothing has happened.
    pub const NONE: Counts = Counts { events: [0; Event::COUNT], drops: [0; DropReason::COUNT] };

    /// How often this happened.
    pub fn happened(&self, event: Event) -> u64 {
        self.events[event as usize]
    }

    /// How often something was dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }
}

/// Adds what another has counted.
impl core::ops::AddAssign<&Counts> for Counts {
    fn add_assign(&mut self, other: &Counts) {
        self.events.iter_mut().zip(&other.events).for_each(|(sum, count)| *sum += count);
        self.drops.iter_mut().zip(&other.drops).for_each(|(sum, count)| *sum += count);
    }
}

/// Everything the engine counts. One writer; a worker copies it out for others to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    all: Counts,
    timings: [Histogram; Timing::COUNT],
    /// Of each target; empty while there is none but everybody.
    targets: Vec<Counts>,
    recent: Recent,
}

/// What was counted since the last time that it was ascribed to a target: of a frame it is known only afterwards whose it was, and then only if it is asked
/// for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Recent {
    /// The target, where another is known to be it than that of the frame's own key.
    target: Option<u32>,
    len: u8,
    /// Numbers of events, and behind them those of reasons.
    items: [u8; Recent::MOST],
}

impl Recent {
    /// Room for more than one frame, or one timer, is ever counted as.
    const MOST: usize = 15;
}

const _: () = assert!(Event::COUNT + DropReason::COUNT <= 1 << u8::BITS);

impl Default for Counters {
    fn default() -> Self {
        Self { all: Counts::NONE, timings: Default::default(), targets: Vec::new(), recent: Recent::default() }
    }
}

impl Counters {
    /// Frames dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.all.dropped(reason)
    }

    /// Frames dropped, by reason.
    pub fn drops(&self) -> &[u64; DropReason::COUNT] {
        &self.all.drops
    }

    /// How often this happened.
    pub fn happened(&self, event: Event) -> u64 {
        self.all.happened(event)
    }

    /// How long this took, each time.
    pub fn timing(&self, timing: Timing) -> &Histogram {
        &self.timings[timing as usize]
    }

    /// What was counted of a target; of everybody all that was, while there is no other; of one there is not nothing.
    pub fn of_target(&self, target: u32) -> &Counts {
        match self.targets.get(target as usize) {
            Some(counts) => counts,
            None if self.targets.is_empty() && target == 0 => &self.all,
            None => &Counts::NONE,
        }
    }

    /// Whether there are several targets, so that what is counted is to be ascribed to one.
    #[inline(always)]
    pub(crate) fn has_targets(&self) -> bool {
        !self.targets.is_empty()
    }

    /// From now on these are the targets: for each, which of the former ones it was, if any. Once there were several everybody is one of its own for good: what
    /// others had counted would be a leap.
    pub(crate) fn set_targets(&mut self, former: impl ExactSizeIterator<Item = Option<u32>>) {
        let targets = match former.len() {
            0 | 1 if self.targets.is_empty() => Vec::new(),
            _ => former.map(|place| place.map_or(Counts::NONE, |place| self.of_target(place).clone())).collect(),
        };
        self.targets = targets;
        self.forget_recent();
    }

    /// The bytes that so many targets take.
    pub(crate) fn bytes_needed(targets: usize) -> usize {
        targets * size_of::<Counts>()
    }

    #[inline(always)]
    pub(crate) fn drop(&mut self, reason: DropReason) -> Verdict {
        self.all.drops[reason as usize] += 1;
        self.remember(Event::COUNT + reason as usize);
        Verdict::Drop(reason)
    }

    #[inline(always)]
    pub(crate) fn count(&mut self, event: Event) {
        self.all.events[event as usize] += 1;
        self.remember(event as usize);
    }

    /// Something else has dropped so many, of no target.
    pub(crate) fn add_drops(&mut self, reason: DropReason, times: u64) {
        self.all.drops[reason as usize] += times;
    }

    /// This has happened so often elsewhere, to this target if to any.
    pub(crate) fn add(&mut self, event: Event, times: u64, target: Option<u32>) {
        self.all.events[event as usize] += times;
        if let Some(counts) = target.and_then(|target| self.targets.get_mut(target as usize)) {
            counts.events[event as usize] += times;
        }
    }

    /// Adds an observation.
    pub(crate) fn time(&mut self, timing: Timing, taken: Duration) {
        self.timings[timing as usize].observe(taken);
    }

    #[inline(always)]
    fn remember(&mut self, item: usize) {
        if self.has_targets() {
            let Recent { len, items, .. } = &mut self.recent;
            // What finds no room is counted of all, and of no target.
            if let Some(place) = items.get_mut(usize::from(*len)) {
                *place = item as u8;
                *len += 1;
            }
        }
    }

    /// What is counted of this frame is of this target, whatever its own key says.
    pub(crate) fn set_target(&mut self, target: Option<u32>) {
        self.recent.target = target;
    }

    /// What was counted since the last time was of the target that was set, or else of this one.
    #[inline(never)]
    pub(crate) fn ascribe(&mut self, target: impl FnOnce() -> u32) {
        let Recent { len, items, target: known } = core::mem::take(&mut self.recent);
        let target = known.unwrap_or_else(target);
        debug_assert!(usize::from(len) < Recent::MOST, "more was counted at once than there is room for");
        let Some(counts) = self.targets.get_mut(target as usize) else { return };
        for item in items.into_iter().take(len.into()).map(usize::from) {
            match item.checked_sub(Event::COUNT) {
                None => counts.events[item] += 1,
                Some(reason) => counts.drops[reason] += 1,
            }
        }
    }

    /// What was counted since the last time was of no target.
    #[inline(always)]
    pub(crate) fn forget_recent(&mut self) {
        (self.recent.len, self.recent.target) = (0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_ascribed_to_one_target_or_none() {
        let mut counters = Counters::default();
        counters.count(Event::Dialled);
        assert_eq!((counters.of_target(0).happened(Event::Dialled), counters.of_target(1)), (1, &Counts::NONE));
        counters.set_targets([Some(0), None].into_iter());
        assert_eq!((counters.of_target(0).happened(Event::Dialled), counters.of_target(1)), (1, &Counts::NONE));
        counters.count(Event::Dialled);
        let _ = counters.drop(DropReason::BadCookie);
        counters.ascribe(|| 1);
        counters.count(Event::Bridged);
        counters.forget_recent();
        counters.count(Event::Dialled);
        counters.set_target(Some(0));
        counters.ascribe(|| 1);
        counters.add(Event::Dialled, 5, Some(1));
        counters.add(Event::Dialled, 7, None);
        let of = |target| {
            let counts: &Counts = counters.of_target(target);
            (counts.happened(Event::Dialled), counts.happened(Event::Bridged), counts.dropped(DropReason::BadCookie))
        };
        assert_eq!([of(0), of(1), of(2)], [(2, 0, 0), (6, 0, 1), (0, 0, 0)]);
        assert_eq!((counters.happened(Event::Dialled), counters.happened(Event::Bridged)), (15, 1));
        // Other targets: the second is there still, as the first.
        counters.set_targets([Some(1), None, None].into_iter());
        assert_eq!([0, 1, 2].map(|target| counters.of_target(target).happened(Event::Dialled)), [6, 0, 0]);
        // None but everybody, to whom no more has happened than before.
        counters.set_targets([Some(0)].into_iter());
        counters.count(Event::Dialled);
        counters.ascribe(|| 0);
        assert_eq!((counters.of_target(0).happened(Event::Dialled), counters.happened(Event::Dialled)), (7, 16));
    }
}
