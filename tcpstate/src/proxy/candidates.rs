//! The flows that may be evicted, in the order in which they came to their states.

use core::ops::{Index, IndexMut};
use std::collections::VecDeque;

use crate::Event;
use crate::flow::table::wheel::Ticks;
use crate::flow::table::{Id, Table};
use crate::flow::{Flow, FlowFlags, State};

/// How many flows of each kind that may be evicted are remembered as candidates: closing ones, those whose server has not answered, and so on.
const CANDIDATES_REMEMBERED: usize = 65_536;

/// Entries one frame may put out of a queue, at most.
const PUT_OUT: usize = 16;

/// An entry of the SYN cache younger than this is not given up for another: its client may be about to answer. What finds
/// no place is answered all the same, with a cookie alone. In ticks: three seconds.
pub(super) const HALF_OPEN_GRACE: Ticks = 3 * 1_000_000 / 1024;

/// Flows that may be evicted, in the order in which one is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Over, and waiting for its last timer; or seen in one direction alone.
    Closing,
    /// The handshakes are complete, and the client has never sent nor acknowledged data.
    Silent,
    /// An entry of the SYN cache.
    SynCached,
    /// The server has not answered yet.
    ServerSynSent,
    /// Passed through, and not established yet; or a server is asked whether it is there.
    Opening,
}

impl Kind {
    pub(super) const ALL: [Kind; 5] =
        [Kind::Closing, Kind::Silent, Kind::SynCached, Kind::ServerSynSent, Kind::Opening];

    /// The kind of a flow, if it may be evicted for what it is; one that still carries anything, be it an unacknowledged FIN, may only be
    /// [idle](super::idle).
    pub(super) fn of(flow: &Flow) -> Option<Kind> {
        match flow.state() {
            State::TimeWait => Some(Kind::Closing),
            // A blind RST must not have a connection evicted.
            State::Reset => (!flow.is_reset_in_doubt()).then_some(Kind::Closing),
            State::AckWithheld | State::WindowPending | State::Established => {
                (!flow.is(FlowFlags::CARRIED)).then_some(Kind::Silent)
            }
            State::SynCached => Some(Kind::SynCached),
            State::ServerSynSent | State::Gathering => Some(Kind::ServerSynSent),
            State::SynSent | State::SynReceived if flow.is(FlowFlags::UNJUDGED) => Some(Kind::Closing),
            State::SynSent | State::SynReceived | State::Unconfirmed | State::ServerTried => Some(Kind::Opening),
            State::Free | State::Repeating | State::HandedDown | State::FinWait | State::LastAck => None,
        }
    }

    /// The event that counts its eviction.
    pub(super) fn event(self) -> Event {
        match self {
            Kind::Closing => Event::EvictedClosing,
            Kind::Silent => Event::EvictedSilent,
            Kind::SynCached | Kind::ServerSynSent | Kind::Opening => Event::EvictedHalfOpen,
        }
    }
}

/// Flows in the order in which they came to a state; they may have left it since.
pub(crate) struct Queue {
    entries: VecDeque<(Id, u16)>,
    capacity: usize,
    /// Entries behind the last that an excerpt leaves out: they stand for flows that are gone.
    left_out: usize,
}

impl Queue {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { entries: VecDeque::with_capacity(capacity), capacity, left_out: 0 }
    }

    /// Whether nothing is ever kept.
    pub(crate) fn is_shut(&self) -> bool {
        self.capacity == 0
    }

    /// The entry that came first.
    pub(super) fn oldest(&self) -> Option<(Id, u16)> {
        self.entries.front().copied()
    }

    /// Takes out the entry that came first.
    pub(super) fn pop_oldest(&mut self) {
        self.entries.pop_front();
    }

    /// All entries, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(Id, u16)> {
        self.entries.iter()
    }

    /// Whether another entry puts the oldest out.
    #[inline(always)]
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() + self.left_out == self.capacity
    }

    /// The oldest entries are cold: prefetches the lines of those that will soon be evicted.
    pub(super) fn prefetch_next_victims(&self, table: &Table) {
        if let Some(&(id, _)) = self.entries.get(16) {
            table.prefetch(id);
        }
        if let Some(&(id, _)) = self.entries.get(8) {
            table.prefetch_neighbours(id);
        }
    }

    pub(crate) fn push(&mut self, id: Id, generation: u16) {
        if self.is_full() {
            self.entries.pop_front();
        }
        if self.capacity > 0 {
            self.entries.push_back((id, generation));
        }
    }

    /// A queue of `known` alone, which is so many entries from the front; if the queue is full, with as many others, all of a flow that is
    /// `gone`, of which those are there that a frame may put out.
    pub(super) fn excerpt(&self, known: Option<(usize, (Id, u16))>, gone: (Id, u16)) -> Self {
        if !self.is_full() {
            let entries = known.into_iter().map(|(_, entry)| entry).collect();
            return Self { entries, capacity: self.capacity, left_out: 0 };
        }
        let there = self.capacity.min(known.map_or(0, |(at, _)| at + 1) + PUT_OUT);
        let mut entries: VecDeque<_> = core::iter::repeat_n(gone, there).collect();
        if let Some((at, entry)) = known {
            entries[at] = entry;
        }
        Self { entries, capacity: self.capacity, left_out: self.capacity - there }
    }
}

/// The flows that may be evicted, a queue for each [`Kind`].
pub(crate) struct Candidates(pub(super) [Queue; 5]);

impl Candidates {
    /// Empty queues: for so many entries of the SYN cache, and as many of every other kind as are remembered of a table of `flows`.
    pub(crate) fn new(syn_cached: usize, flows: usize) -> Self {
        Self(Kind::ALL.map(|kind| Queue::new(Self::capacity(kind, syn_cached, flows))))
    }

    fn capacity(kind: Kind, syn_cached: usize, flows: usize) -> usize {
        if kind == Kind::SynCached { syn_cached.min(flows) } else { flows.min(CANDIDATES_REMEMBERED) }
    }

    /// The bytes these queues take.
    pub(crate) fn bytes_needed(syn_cached: usize, flows: usize) -> usize {
        let entries: usize = Kind::ALL.into_iter().map(|kind| Self::capacity(kind, syn_cached, flows)).sum();
        entries * size_of::<(Id, u16)>()
    }

    /// How many entries of the SYN cache there can be.
    pub(crate) fn syn_cached_most(&self) -> usize {
        self[Kind::SynCached].capacity
    }
}

impl Index<Kind> for Candidates {
    type Output = Queue;

    #[inline(always)]
    fn index(&self, kind: Kind) -> &Queue {
        &self.0[kind as usize]
    }
}

impl IndexMut<Kind> for Candidates {
    #[inline(always)]
    fn index_mut(&mut self, kind: Kind) -> &mut Queue {
        &mut self.0[kind as usize]
    }
}
