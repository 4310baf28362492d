//! The hold queue: which frames are held, for which flow, in what order. The worker keeps the frames themselves.
//!
//! A flow names its first held frame, and each names the next. Memory is taken once; a frame that finds no free slot is not held, and
//! its sender repeats it.

use std::collections::VecDeque;

use crate::flow::Flow;
use crate::seq::SeqNum;
use crate::verdict::Ticket;

/// The most frames of one flow: as many as a first flight has, and some.
const MOST_OF_A_FLOW: usize = 32;

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Empty,
    Held,
    /// To be delivered.
    Released,
    /// To be dropped.
    Forgotten,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    generation: u16,
    /// The flow's next held frame, or the next free place: its index plus one, zero for none.
    next: u16,
    stage: Stage,
    /// The number after the segment's last.
    end: SeqNum,
}

/// See the module.
#[derive(Clone)]
pub struct HoldQueue {
    slots: Vec<Slot>,
    /// The first free place, as [`Slot::next`].
    free: u16,
    released: VecDeque<Ticket>,
}

impl HoldQueue {
    /// The bytes a hold queue for so many frames takes.
    pub const fn bytes_needed(frames: usize) -> usize {
        frames * (size_of::<Slot>() + size_of::<Ticket>())
    }

    /// An empty hold queue for so many frames, at most 65535.
    pub fn new(frames: usize) -> Self {
        let frames = frames.min(usize::from(u16::MAX));
        let next = |index: usize| if index + 1 < frames { index as u16 + 2 } else { 0 };
        let slots = (0..frames).map(|index| Slot { next: next(index), ..Slot::default() }).collect();
        Self { slots, free: u16::from(frames > 0), released: VecDeque::with_capacity(frames) }
    }

    /// How many places there are.
    pub fn places(&self) -> usize {
        self.slots.len()
    }

    /// A ticket for a segment of `flow` that ends before `end`; `None` when it is held already, or no slot is free.
    pub fn hold(&mut self, flow: &mut Flow, end: SeqNum) -> Option<Ticket> {
        let (mut last, mut at) = (0, flow.held);
        for count in 1.. {
            if at == 0 {
                break;
            }
            let slot = &self.slots[usize::from(at) - 1];
            if slot.end == end || count == MOST_OF_A_FLOW {
                return None;
            }
            (last, at) = (at, slot.next);
        }
        let index = self.free.checked_sub(1)?;
        let slot = &mut self.slots[usize::from(index)];
        self.free = slot.next;
        (slot.next, slot.stage, slot.end) = (0, Stage::Held, end);
        let generation = slot.generation;
        match last {
            0 => flow.held = index + 1,
            last => self.slots[usize::from(last) - 1].next = index + 1,
        }
        Some(Ticket { index, generation })
    }

    /// The number after the last of what `flow` has held, or `first` if that is nothing.
    pub fn reach(&self, flow: &Flow, first: SeqNum) -> SeqNum {
        let (mut reach, mut at) = (first, flow.held);
        while at != 0 {
            let slot = &self.slots[usize::from(at) - 1];
            reach = if slot.end.after(reach) { slot.end } else { reach };
            at = slot.next;
        }
        reach
    }

    /// How many frames `flow` has held.
    pub fn count(&self, flow: &Flow) -> usize {
        let next = |at: &u16| Some(self.slots[usize::from(*at) - 1].next).filter(|&next| next != 0);
        core::iter::successors(Some(flow.held).filter(|&first| first != 0), next).count()
    }

    /// Releases what `flow` has held up to the first segment that reaches beyond `edge`.
    pub fn release(&mut self, flow: &mut Flow, edge: SeqNum) {
        while flow.held != 0 && !self.slots[usize::from(flow.held) - 1].end.after(edge) {
            self.end_first(flow, Stage::Released);
        }
    }

    /// Drops everything held for `flow`.
    pub fn forget(&mut self, flow: &mut Flow) {
        while flow.held != 0 {
            self.end_first(flow, Stage::Forgotten);
        }
    }

    /// Releases or drops the first frame of a flow that has one.
    fn end_first(&mut self, flow: &mut Flow, stage: Stage) {
        let index = flow.held - 1;
        let slot = &mut self.slots[usize::from(index)];
        flow.held = slot.next;
        slot.stage = stage;
        self.released.push_back(Ticket { index, generation: slot.generation });
    }

    /// The next ticket whose frame the worker shall bring back.
    pub fn next_release(&mut self) -> Option<Ticket> {
        self.released.pop_front()
    }

    /// Ends a ticket; whether its frame is to be delivered. False for one that is none.
    pub fn redeem(&mut self, ticket: Ticket) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(ticket.index)) else { return false };
        if slot.generation != ticket.generation || !matches!(slot.stage, Stage::Released | Stage::Forgotten) {
            return false;
        }
        let deliver = slot.stage == Stage::Released;
        *slot = Slot { generation: slot.generation.wrapping_add(1), next: self.free, ..Slot::default() };
        self.free = ticket.index + 1;
        deliver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(hold_queue: &mut HoldQueue) -> Vec<(u16, bool)> {
        std::iter::from_fn(|| hold_queue.next_release().map(|ticket| (ticket.index, hold_queue.redeem(ticket))))
            .collect()
    }

    #[test]
    fn held_frames_come_out_in_order_and_no_further_than_the_window() {
        let (mut hold_queue, mut flow) = (HoldQueue::new(3), Flow::default());
        let tickets: Vec<_> = [10, 20, 30].map(|end| hold_queue.hold(&mut flow, SeqNum::new(end)).unwrap()).into();
        assert_eq!(hold_queue.hold(&mut flow, SeqNum::new(40)), None, "every place is taken");
        hold_queue.release(&mut flow, SeqNum::new(25));
        assert_eq!(key(&mut hold_queue), [(tickets[0].index, true), (tickets[1].index, true)]);
        hold_queue.release(&mut flow, SeqNum::new(30));
        assert_eq!(key(&mut hold_queue), [(tickets[2].index, true)]);
        assert_eq!(flow.held, 0);
    }

    #[test]
    fn a_repeated_segment_is_held_once_and_a_used_ticket_is_worth_nothing() {
        let (mut hold_queue, mut flow) = (HoldQueue::new(2), Flow::default());
        let ticket = hold_queue.hold(&mut flow, SeqNum::new(10)).unwrap();
        assert_eq!(hold_queue.hold(&mut flow, SeqNum::new(10)), None);
        hold_queue.forget(&mut flow);
        assert_eq!(key(&mut hold_queue), [(ticket.index, false)]);
        assert!(!hold_queue.redeem(ticket));
        let again = hold_queue.hold(&mut flow, SeqNum::new(10)).unwrap();
        assert_eq!((again.index, again.generation), (ticket.index, ticket.generation + 1));
    }

    #[test]
    fn one_flow_does_not_take_every_place() {
        let (mut hold_queue, mut flow) = (HoldQueue::new(100), Flow::default());
        let held = (1..=100).filter(|&end| hold_queue.hold(&mut flow, SeqNum::new(end)).is_some()).count();
        assert_eq!(held, MOST_OF_A_FLOW);
    }

    #[test]
    fn no_place_is_lost() {
        let mut hold_queue = HoldQueue::new(5);
        for round in 0..1000u32 {
            let mut flow = Flow::default();
            for end in 0..round % 7 {
                hold_queue.hold(&mut flow, SeqNum::new(end));
            }
            if round % 2 == 0 {
                hold_queue.forget(&mut flow)
            } else {
                hold_queue.release(&mut flow, SeqNum::new(6))
            }
            assert_eq!(key(&mut hold_queue).len(), (round as usize % 7).min(5));
        }
    }
}
