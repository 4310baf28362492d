//! Counters on their way from the workers, who write them, to whoever reports them.
//!
//! Each worker has a slot of its own, on cache lines of its own, and is its only writer. A reader may see one counter
//! a moment older than the next; none is ever torn or lost.

use crate::mail::Order;
use crate::steer::Crossed;
use crossbeam::utils::CachePadded;
use pktio::PortStatistics;
use std::iter::Sum;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tcpstate::{Counters, DropReason, Event, PerSide, Population, Side};

/// The cells of a snapshot, one after the other.
const DROPS: usize = 0;
const EVENTS: usize = DROPS + DropReason::COUNT;
const POPULATION: usize = EVENTS + Event::COUNT;
const HELD: usize = POPULATION + 3;
const UNKEPT: usize = HELD + 1;
const WAKES: usize = UNKEPT + 1;
const TURNS: usize = WAKES + 1;
const SLEEPS: usize = TURNS + 1;
const UNSENT: usize = SLEEPS + 1;
const STAGE: usize = UNSENT + 2;
const CROSSED: usize = STAGE + 2;
const ORDERS: usize = CROSSED + Crossed::COUNT;
const PORTS: usize = ORDERS + Order::KINDS;
const CELLS: usize = PORTS + 2 * PORT_CELLS;

/// Declares the order in which the statistics of a port lie in its cells.
macro_rules! port_cells {
    ($($field:ident),+ $(,)?) => {
        const PORT_CELLS: usize = [$(stringify!($field)),+].len();

        fn to_cells(statistics: &PortStatistics) -> [u64; PORT_CELLS] {
            [$(statistics.$field),+]
        }

        /// The statistics of a port, each with its name.
        pub fn named(statistics: &PortStatistics) -> [(&'static str, u64); PORT_CELLS] {
            [$((stringify!($field), statistics.$field)),+]
        }

        fn from_cells([$($field),+]: [u64; PORT_CELLS]) -> PortStatistics {
            PortStatistics { $($field),+ }
        }
    };
}

port_cells! {
    received, received_bytes, sent, sent_bytes, transmit_full, transmit_errors,
    no_buffer, truncated, receive_full, fill_empty, kernel_drops, kicks,
    shed_fresh, shed_repeated,
}

/// What a worker counts itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames that are held now.
    pub held: u64,
    /// Frames that were to be held and dropped instead, because few were spare.
    pub unkept: u64,
    /// How often the load made the worker poll.
    pub wakes: u64,
    /// How often it has served its ports, and how often it went to sleep in between.
    pub turns: u64,
    /// See `turns`.
    pub sleeps: u64,
    /// Frames that found the transmit ring of a port full.
    pub unsent: PerSide<u64>,
    /// What its turns cost.
    pub stage: Stage,
    /// What passed between this worker and the others.
    pub crossed: Crossed,
    /// The most time an order of each kind has taken it.
    pub orders: [Duration; Order::KINDS],
}

/// The time of turns that received frames, from reception to transmission: what the program itself costs, without the kernel's
/// share of moving frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// Frames of these turns.
    pub frames: u64,
    /// Their time.
    pub time: Duration,
}

/// A turn of two batches takes some microseconds. One that took so much longer was interrupted, which is nothing it cost itself.
const INTERRUPTED: Duration = Duration::from_millis(1);

impl Stage {
    /// Adds a turn.
    pub fn add(&mut self, frames: usize, time: Duration) {
        if frames > 0 && time < INTERRUPTED {
            self.frames += frames as u64;
            self.time += time;
        }
    }

    /// Nanoseconds a frame; none without frames.
    pub fn each(self) -> Option<f64> {
        (self.frames > 0).then(|| self.time.as_nanos() as f64 / self.frames as f64)
    }
}

/// What one worker has counted up to some moment, or the sum over all workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    cells: [u64; CELLS],
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { cells: [0; CELLS] }
    }
}

impl Snapshot {
    /// The counters of a worker: its engine's, its ports' and its own.
    pub fn of(counters: &Counters, population: Population, ports: &PerSide<PortStatistics>, own: &Tally) -> Self {
        let mut snapshot = Self::default();
        let cells = &mut snapshot.cells;
        for &reason in DropReason::ALL {
            cells[DROPS + reason as usize] = counters.dropped(reason);
        }
        for &event in Event::ALL {
            cells[EVENTS + event as usize] = counters.happened(event);
        }
        cells[POPULATION..][..3].copy_from_slice(&[population.syn_cached, population.proxied, population.passthrough]);
        (cells[HELD], cells[UNKEPT], cells[WAKES]) = (own.held, own.unkept, own.wakes);
        (cells[TURNS], cells[SLEEPS]) = (own.turns, own.sleeps);
        (cells[STAGE], cells[STAGE + 1]) = (own.stage.frames, own.stage.time.as_nanos() as u64);
        cells[CROSSED..][..Crossed::COUNT].copy_from_slice(&own.crossed.to_cells());
        for (cell, longest) in cells[ORDERS..PORTS].iter_mut().zip(own.orders) {
            *cell = longest.as_nanos() as u64;
        }
        for side in Side::BOTH {
            cells[UNSENT + side as usize] = own.unsent[side];
            cells[port_range(side)].copy_from_slice(&to_cells(&ports[side]));
        }
        snapshot
    }

    /// Frames dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.cells[DROPS + reason as usize]
    }

    /// How often this happened.
    pub fn happened(&self, event: Event) -> u64 {
        self.cells[EVENTS + event as usize]
    }

    /// How many flows there are.
    pub fn population(&self) -> Population {
        let [syn_cached, proxied, passthrough] = self.cells[POPULATION..][..3].try_into().expect("three cells");
        Population { syn_cached, proxied, passthrough }
    }

    /// Frames that are held until their server answers.
    pub fn held(&self) -> u64 {
        self.cells[HELD]
    }

    /// Frames that were to be held and dropped instead, because few were spare.
    pub fn unkept(&self) -> u64 {
        self.cells[UNKEPT]
    }

    /// How often the load made workers poll.
    pub fn wakes(&self) -> u64 {
        self.cells[WAKES]
    }

    /// How often workers have served their ports.
    pub fn turns(&self) -> u64 {
        self.cells[TURNS]
    }

    /// How often they went to sleep in between.
    pub fn sleeps(&self) -> u64 {
        self.cells[SLEEPS]
    }

    /// Frames that found the transmit ring of this port full.
    pub fn unsent(&self, side: Side) -> u64 {
        self.cells[UNSENT + side as usize]
    }

    /// What the workers' turns cost.
    pub fn stage(&self) -> Stage {
        Stage { frames: self.cells[STAGE], time: Duration::from_nanos(self.cells[STAGE + 1]) }
    }

    /// What passed between workers.
    pub fn crossed(&self) -> Crossed {
        Crossed::from_cells(self.cells[CROSSED..][..Crossed::COUNT].try_into().expect("the cells of the crossing"))
    }

    /// The longest a worker was kept from its frames by an order of each kind.
    pub fn orders(&self) -> [Duration; Order::KINDS] {
        std::array::from_fn(|kind| Duration::from_nanos(self.cells[ORDERS + kind]))
    }

    /// What has passed this port.
    pub fn port(&self, side: Side) -> PortStatistics {
        from_cells(self.cells[port_range(side)].try_into().expect("the cells of one port"))
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        let mut difference = self.clone();
        for (cell, before) in difference.cells.iter_mut().zip(earlier.cells) {
            *cell = cell.saturating_sub(before);
        }
        difference
    }
}

impl Sum for Snapshot {
    fn sum<I: Iterator<Item = Snapshot>>(snapshots: I) -> Self {
        snapshots.fold(Snapshot::default(), |mut sum, snapshot| {
            for (n, (cell, more)) in sum.cells.iter_mut().zip(snapshot.cells).enumerate() {
                // The longest of all, where it is not a count.
                *cell = if (ORDERS..PORTS).contains(&n) { more.max(*cell) } else { *cell + more };
            }
            sum
        })
    }
}

fn port_range(side: Side) -> std::ops::Range<usize> {
    let begin = PORTS + side as usize * PORT_CELLS;
    begin..begin + PORT_CELLS
}

/// Where one worker shows its counters.
pub struct Slot {
    cells: [AtomicU64; CELLS],
}

impl Slot {
    /// Shows `snapshot` to the readers. To be called by one worker only.
    pub fn publish(&self, snapshot: &Snapshot) {
        for (cell, value) in self.cells.iter().zip(snapshot.cells) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// What was shown last.
    pub fn read(&self) -> Snapshot {
        Snapshot { cells: std::array::from_fn(|i| self.cells[i].load(Ordering::Relaxed)) }
    }
}

/// The slots of all workers.
pub struct Board {
    slots: Box<[CachePadded<Slot>]>,
}

impl Board {
    /// A board for this many workers.
    pub fn new(workers: usize) -> Self {
        let slot = |_| CachePadded::new(Slot { cells: std::array::from_fn(|_| AtomicU64::new(0)) });
        Self { slots: (0..workers).map(slot).collect() }
    }

    /// Where this worker shows its counters.
    pub fn slot(&self, worker: usize) -> &Slot {
        &self.slots[worker]
    }

    /// What each worker has counted, in their order.
    pub fn workers(&self) -> impl Iterator<Item = Snapshot> {
        self.slots.iter().map(|slot| slot.read())
    }

    /// The sum over all workers.
    pub fn total(&self) -> Snapshot {
        self.workers().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A snapshot in which every cell has another value.
    fn numbered() -> Snapshot {
        Snapshot { cells: std::array::from_fn(|i| 1 + i as u64) }
    }

    #[test]
    fn what_a_worker_shows_is_what_readers_see() {
        let ports = PerSide::new(
            PortStatistics { received: 1, received_bytes: 2, ..PortStatistics::default() },
            PortStatistics { kernel_drops: 3, ..PortStatistics::default() },
        );
        let population = Population { syn_cached: 4, proxied: 5, passthrough: 6 };
        let board = Board::new(2);
        let crossed = Crossed {
            handed_over: 11,
            taken_over: 12,
            full: 13,
            lost: 14,
            sampled: 15,
            misfits: 16,
            told: 17,
            heard: 18,
            unheard: 19,
        };
        let stage = Stage { frames: 11, time: Duration::from_nanos(12) };
        let orders = std::array::from_fn(|kind| Duration::from_nanos(30 + kind as u64));
        let unsent = PerSide::new(7, 8);
        let own = Tally { held: 9, unkept: 10, wakes: 13, turns: 20, sleeps: 21, unsent, stage, crossed, orders };
        board.slot(1).publish(&Snapshot::of(&Counters::default(), population, &ports, &own));
        let seen = board.total();
        assert_eq!(seen.port(Side::Lan), ports[Side::Lan]);
        assert_eq!(seen.port(Side::Wan), ports[Side::Wan]);
        assert_eq!(seen.population(), population);
        assert_eq!((seen.unsent(Side::Lan), seen.unsent(Side::Wan)), (7, 8));
        assert_eq!(
            (seen.held(), seen.unkept(), seen.wakes(), seen.stage(), seen.crossed()),
            (9, 10, 13, stage, crossed)
        );
        assert_eq!((seen.turns(), seen.sleeps(), seen.orders()), (20, 21, orders));
    }

    #[test]
    fn the_total_is_the_sum_over_the_workers() {
        let board = Board::new(3);
        for worker in 0..3 {
            board.slot(worker).publish(&numbered());
        }
        let total = board.total();
        for (i, cell) in total.cells.iter().enumerate() {
            let times = if (ORDERS..PORTS).contains(&i) { 1 } else { 3 };
            assert_eq!(*cell, times * (1 + i as u64));
        }
        assert_eq!(total.since(&numbered()).dropped(DropReason::ALL[0]), 2);
    }

    #[test]
    fn turns_without_frames_or_interrupted_cost_nothing() {
        let mut stage = Stage::default();
        assert_eq!(stage.each(), None);
        stage.add(0, Duration::from_micros(5));
        stage.add(3, Duration::from_millis(20));
        assert_eq!(stage.each(), None);
        stage.add(100, Duration::from_micros(20));
        stage.add(60, Duration::from_micros(12));
        assert_eq!(stage.each(), Some(200.0));
    }

    #[test]
    fn workers_do_not_share_cache_lines() {
        let board = Board::new(2);
        let distance = std::ptr::from_ref(board.slot(1)).addr() - std::ptr::from_ref(board.slot(0)).addr();
        assert!(distance.is_multiple_of(64) && distance >= size_of::<Slot>());
    }
}
