//! Statistics on their way from the workers, which write them, to the threads that report them.
//!
//! Each worker has a [`Slot`] on cache lines of its own and is its only writer. A reader may see one value a moment older than
//! the next; none is ever torn or lost. The cells are those of [`TABLE`].

use super::descriptors::{
    CELLS, ControlMetric, Family, FlowGauge, LinkMetric, Metric, Notice, PortMetric, RingMetric, StateMetric, TABLE,
    TIMED, Timed, Total, WorkerMetric,
};
use super::top_talkers::SynReport;
use crate::process::link_monitor::{Condition, LinkReport};
use crossbeam::utils::CachePadded;
use pktio::PortStatistics;
use std::iter::Sum;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tcpstate::histogram::{BOUNDED, Histogram};
use tcpstate::wire::FlowKey;
use tcpstate::{Counters, DropReason, Event, Population, Side, Timing};

/// The time of poll iterations that received frames, from reception to transmission: what the program itself costs, without the
/// kernel's share of moving frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCost {
    /// Frames of these iterations.
    pub frames: u64,
    /// Their time.
    pub time: Duration,
}

/// An iteration of two batches takes some microseconds. One that takes so much longer was interrupted, which is no cost of its own.
const INTERRUPTED: Duration = Duration::from_millis(1);

impl FrameCost {
    /// Adds an iteration.
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

/// The values of all metrics of one worker at some moment, or the total over all workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    cells: [u64; CELLS],
    times: [Histogram; TIMED],
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { cells: [0; CELLS], times: Default::default() }
    }
}

impl Snapshot {
    /// What an engine has counted; every other value is zero.
    pub fn of_engine(counters: &Counters, population: &Population) -> Self {
        let mut snapshot = Self::default();
        for &reason in DropReason::ALL {
            snapshot.set(reason, counters.dropped(reason));
        }
        for &event in Event::ALL {
            snapshot.set(event, counters.happened(event));
        }
        for &gauge in FlowGauge::ALL {
            snapshot.set(gauge, gauge.of(population));
        }
        for &timing in Timing::ALL {
            snapshot.set_times(Timed::Engine(timing), counters.timing(timing));
        }
        snapshot
    }

    /// The value of a metric.
    pub fn get(&self, metric: impl Into<Metric>) -> u64 {
        self.cells[metric.into().cell()]
    }

    /// Writes the value of a metric.
    pub fn set(&mut self, metric: impl Into<Metric>, value: u64) {
        self.cells[metric.into().cell()] = value;
    }

    /// How long this took, each time.
    pub fn times(&self, timed: impl Into<Timed>) -> &Histogram {
        &self.times[timed.into().place()]
    }

    /// Writes how long this took.
    pub fn set_times(&mut self, timed: impl Into<Timed>, times: &Histogram) {
        self.times[timed.into().place()].clone_from(times);
    }

    /// Writes the values of a port.
    pub fn set_port(&mut self, side: Side, statistics: &PortStatistics) {
        for &metric in PortMetric::ALL {
            self.set(Metric::port(side, metric), metric.of(statistics));
        }
        for &metric in RingMetric::ALL {
            self.set(Metric::ring(side, metric), metric.of(&statistics.rings));
        }
    }

    /// Writes the cost of the iterations.
    pub fn set_frame_cost(&mut self, cost: FrameCost) {
        self.set(WorkerMetric::TimedFrames, cost.frames);
        self.set(WorkerMetric::TimedNanoseconds, u64::try_from(cost.time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The cost of the iterations.
    pub fn frame_cost(&self) -> FrameCost {
        let time = Duration::from_nanos(self.get(WorkerMetric::TimedNanoseconds));
        FrameCost { frames: self.get(WorkerMetric::TimedFrames), time }
    }

    /// The values of a family by the names of its metrics, former names included.
    pub fn named(&self, family: Family) -> impl Iterator<Item = (&'static str, u64)> {
        family.descriptors().iter().flat_map(|row| row.names().map(|name| (name, self.get(row.metric))))
    }

    /// What was lost for want of room, by the name of the loss; losses of zero are there too.
    pub fn losses(&self) -> Vec<(&'static str, u64)> {
        let mut losses: Vec<(&'static str, u64)> = Vec::new();
        for row in &TABLE {
            let Some(name) = row.loss else { continue };
            let count = self.get(row.metric);
            match losses.iter_mut().find(|(own, _)| *own == name) {
                Some((_, sum)) => *sum += count,
                None => losses.push((name, count)),
            }
        }
        losses
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        let mut difference = self.clone();
        for (cell, before) in difference.cells.iter_mut().zip(earlier.cells) {
            *cell = cell.saturating_sub(before);
        }
        for (times, before) in difference.times.iter_mut().zip(&earlier.times) {
            times
                .counts
                .iter_mut()
                .zip(before.counts)
                .for_each(|(count, before)| *count = count.saturating_sub(before));
            times.sum = times.sum.saturating_sub(before.sum);
        }
        difference
    }
}

impl Sum for Snapshot {
    fn sum<I: Iterator<Item = Snapshot>>(snapshots: I) -> Self {
        snapshots.fold(Snapshot::default(), |mut sum, snapshot| {
            for ((cell, more), row) in sum.cells.iter_mut().zip(snapshot.cells).zip(&TABLE) {
                *cell = match row.total {
                    Total::Sum => *cell + more,
                    Total::Largest => more.max(*cell),
                };
            }
            for (times, more) in sum.times.iter_mut().zip(&snapshot.times) {
                times.counts.iter_mut().zip(more.counts).for_each(|(count, more)| *count += more);
                times.sum = times.sum.saturating_add(more.sum);
            }
            sum
        })
    }
}

/// Where one worker publishes its statistics.
pub struct Slot {
    cells: [AtomicU64; CELLS],
    times: [Times; TIMED],
    /// Servers found to answer another way, which the log has yet to name.
    found: Mutex<Vec<FlowKey>>,
    /// The SYNs of the last window, which the detection of attacks has yet to see.
    syns: Mutex<Option<SynReport>>,
}

/// A histogram that is read while it is written: its counts, and their sum.
type Times = ([AtomicU64; BOUNDED + 1], AtomicU64);

/// Servers kept until the log has named them: more than are found in the time between two looks.
const FOUND_KEPT: usize = 64;

impl Slot {
    /// Shows `snapshot` to the readers. To be called by one worker only.
    pub fn publish(&self, snapshot: &Snapshot) {
        for (cell, value) in self.cells.iter().zip(snapshot.cells) {
            cell.store(value, Ordering::Relaxed);
        }
        for ((counts, sum), times) in self.times.iter().zip(&snapshot.times) {
            counts.iter().zip(times.counts).for_each(|(cell, count)| cell.store(count, Ordering::Relaxed));
            sum.store(times.sum, Ordering::Relaxed);
        }
    }

    /// Notes a server that is found to answer another way than through the box, so that a reader can say so: a worker writes no log.
    pub fn found(&self, key: FlowKey) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() < FOUND_KEPT {
            found.push(key);
        }
    }

    /// Shows the SYNs of a window. A reader that holds the place at this very moment misses them: a worker waits for nobody.
    pub fn publish_syns(&self, syns: SynReport) {
        if let Ok(mut place) = self.syns.try_lock() {
            *place = Some(syns);
        }
    }

    /// What was published last.
    pub fn read(&self) -> Snapshot {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Snapshot {
            cells: self.cells.each_ref().map(load),
            times: self
                .times
                .each_ref()
                .map(|(counts, sum)| Histogram { counts: counts.each_ref().map(load), sum: load(sum) }),
        }
    }
}

/// The slots of all workers, and those of the threads that supervise them and that report events.
pub struct Board {
    slots: Box<[CachePadded<Slot>]>,
    supervisor: CachePadded<Slot>,
    events: CachePadded<Slot>,
    /// The links of LAN and WAN.
    links: Mutex<[Option<LinkReport>; 2]>,
    /// What the threads count that serve operators.
    control: [AtomicU64; ControlMetric::COUNT],
    /// What is known of the state that outlives the process.
    state: [AtomicU64; StateMetric::COUNT],
}

impl Board {
    /// A board for this many workers.
    pub fn new(workers: usize) -> Self {
        let slot = |_| {
            let cells = std::array::from_fn(|_| AtomicU64::new(0));
            CachePadded::new(Slot { cells, times: Default::default(), found: Mutex::default(), syns: Mutex::default() })
        };
        Self {
            slots: (0..workers).map(slot).collect(),
            supervisor: slot(0),
            events: slot(0),
            links: Mutex::default(),
            control: Default::default(),
            state: Default::default(),
        }
    }

    /// Where this worker publishes its statistics.
    ///
    /// # Panics
    /// If there is no such worker.
    pub fn slot(&self, worker: usize) -> &Slot {
        &self.slots[worker]
    }

    /// The statistics of each worker, in their order.
    pub fn workers(&self) -> impl Iterator<Item = Snapshot> {
        self.slots.iter().map(|slot| slot.read())
    }

    /// The servers that any worker has [found](Slot::found) since the last time.
    pub fn take_found(&self) -> Vec<FlowKey> {
        let take =
            |slot: &CachePadded<Slot>| std::mem::take(&mut *slot.found.lock().unwrap_or_else(PoisonError::into_inner));
        self.slots.iter().flat_map(take).collect()
    }

    /// What is counted once for the box: by the thread that supervises the workers, by that which reports events, and by those that serve
    /// operators.
    pub fn supervisor(&self) -> Snapshot {
        let mut snapshot: Snapshot = [&self.supervisor, &self.events].into_iter().map(|slot| slot.read()).sum();
        for &metric in ControlMetric::ALL {
            snapshot.set(metric, self.control[metric as usize].load(Ordering::Relaxed));
        }
        for &metric in StateMetric::ALL {
            snapshot.set(metric, self.state[metric as usize].load(Ordering::Relaxed));
        }
        snapshot
    }

    /// Counts something that a thread which serves operators has done.
    pub fn count(&self, metric: ControlMetric) {
        self.control[metric as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds to what is known of the state that outlives the process.
    pub fn add_state(&self, metric: StateMetric, value: u64) {
        self.state[metric as usize].fetch_add(value, Ordering::Relaxed);
    }

    /// The total over all workers, with what is counted once for the box.
    pub fn total(&self) -> Snapshot {
        self.workers().chain([self.supervisor()]).sum()
    }

    /// The SYNs of the last window of each worker, `None` if it has published none since the last time.
    pub fn take_syns(&self) -> Vec<Option<SynReport>> {
        let take = |slot: &CachePadded<Slot>| slot.syns.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.slots.iter().map(take).collect()
    }

    /// Shows what has become of events. To be called by the thread that reports them only.
    pub fn publish_events(&self, snapshot: &Snapshot) {
        self.events.publish(snapshot);
    }

    /// Shows what is known of the links of LAN and WAN, whether they seem to be swapped, and whether SYNs are answered in front of tc. To be called by the
    /// supervisor only.
    pub fn publish_links(&self, links: [Option<LinkReport>; 2], are_swapped: bool, in_front: bool) {
        let mut snapshot = Snapshot::default();
        for (side, link) in Side::BOTH.into_iter().zip(&links) {
            let Some(link) = link else { continue };
            for (metric, value) in [
                (LinkMetric::Carrier, u64::from(link.condition == Condition::Up)),
                (LinkMetric::Lost, link.lost),
                (LinkMetric::TakenDown, link.taken_down),
                (LinkMetric::SettingsChanged, link.settings_changed),
            ] {
                snapshot.set(Metric::link(side, metric), value);
            }
        }
        snapshot.set(Notice::PortsSwapped, u64::from(are_swapped));
        snapshot.set(Notice::XdpInFront, u64::from(in_front));
        self.supervisor.publish(&snapshot);
        *self.links.lock().unwrap_or_else(PoisonError::into_inner) = links;
    }

    /// What is known of the links of LAN and WAN.
    pub fn links(&self) -> [Option<LinkReport>; 2] {
        *self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::descriptors::{CommandKind, HandoffMetric, UnsentMetric};
    use super::*;
    use pktio::RingStatistics;

    /// A snapshot in which every cell has another value.
    fn numbered() -> Snapshot {
        let times = std::array::from_fn(|n| Histogram { counts: [n as u64; BOUNDED + 1], sum: 5 });
        Snapshot { cells: std::array::from_fn(|i| 1 + i as u64), times }
    }

    #[test]
    fn what_a_worker_publishes_is_what_readers_see() {
        let population = Population { syn_cached: 4, proxied: 5, passthrough: 6 };
        let mut own = Snapshot::of_engine(&Counters::default(), &population);
        own.set_port(Side::Lan, &PortStatistics { received: 1, received_bytes: 2, ..PortStatistics::default() });
        let rings = RingStatistics { rx_ring_full: 7, tx_ring_empty_descs: 9, ..RingStatistics::default() };
        own.set_port(Side::Wan, &PortStatistics { kernel_drops: 3, rings, ..PortStatistics::default() });
        let cost = FrameCost { frames: 11, time: Duration::from_nanos(12) };
        own.set_frame_cost(cost);
        own.set(UnsentMetric::of(Side::Wan), 8);
        own.set(HandoffMetric::UpdatesLost, 19);
        own.set(CommandKind::Top, 36);
        let board = Board::new(2);
        board.slot(1).publish(&own);
        let seen = board.total();
        assert_eq!(seen, own);
        let of_port = |side, metric| seen.get(Metric::port(side, metric));
        assert_eq!(of_port(Side::Lan, PortMetric::Received), 1);
        assert_eq!(of_port(Side::Lan, PortMetric::ReceivedBytes), 2);
        assert_eq!((of_port(Side::Lan, PortMetric::KernelDrops), of_port(Side::Wan, PortMetric::KernelDrops)), (0, 3));
        let of_ring = |side, metric| seen.get(Metric::ring(side, metric));
        assert_eq!((of_ring(Side::Lan, RingMetric::RxRingFull), of_ring(Side::Wan, RingMetric::RxRingFull)), (0, 7));
        assert_eq!(of_ring(Side::Wan, RingMetric::TxRingEmptyDescs), 9);
        assert_eq!(
            [FlowGauge::HalfOpen, FlowGauge::Proxied, FlowGauge::Direct].map(|flows| seen.get(flows)),
            [4, 5, 6]
        );
        assert_eq!((seen.get(UnsentMetric::Lan), seen.get(UnsentMetric::Wan)), (0, 8));
        assert_eq!(
            (seen.frame_cost(), seen.get(HandoffMetric::UpdatesLost), seen.get(CommandKind::Top)),
            (cost, 19, 36)
        );
    }

    #[test]
    fn the_total_is_the_sum_over_the_workers_or_the_largest_value() {
        let board = Board::new(3);
        for worker in 0..3 {
            board.slot(worker).publish(&numbered());
        }
        let total = board.total();
        for (i, (cell, row)) in total.cells.iter().zip(&TABLE).enumerate() {
            let times = if row.total == Total::Largest { 1 } else { 3 };
            assert_eq!(*cell, times * (1 + i as u64));
        }
        assert_eq!(total.since(&numbered()).get(DropReason::ALL[0]), 2);
        assert_eq!(TABLE.iter().filter(|row| row.total == Total::Largest).count(), CommandKind::COUNT);
    }

    #[test]
    fn losses_of_one_name_are_added_up_and_former_names_still_stand() {
        let mut snapshot = Snapshot::default();
        snapshot.set(UnsentMetric::Lan, 1);
        snapshot.set(UnsentMetric::Wan, 2);
        snapshot.set(Metric::Wan(PortMetric::Truncated), 3);
        snapshot.set(HandoffMetric::QueueFull, 4);
        let losses: Vec<_> = snapshot.losses().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(losses, [("transmit-ring-full", 3), ("queue-full", 4), ("too-long", 3)]);
        let handoff: Vec<_> = snapshot.named(Family::Handoff).filter(|(_, count)| *count > 0).collect();
        assert_eq!(handoff, [("queue-full", 4), ("full", 4)]);
    }

    #[test]
    fn iterations_without_frames_or_interrupted_cost_nothing() {
        let mut cost = FrameCost::default();
        assert_eq!(cost.each(), None);
        cost.add(0, Duration::from_micros(5));
        cost.add(3, Duration::from_millis(20));
        assert_eq!(cost.each(), None);
        cost.add(100, Duration::from_micros(20));
        cost.add(60, Duration::from_micros(12));
        assert_eq!(cost.each(), Some(200.0));
    }

    #[test]
    fn the_syns_of_a_window_are_taken_once_and_only_the_last_ones() {
        let board = Board::new(2);
        let report = |syns| SynReport { syns, ..SynReport::default() };
        board.slot(0).publish_syns(report(1));
        board.slot(0).publish_syns(report(2));
        assert_eq!(board.take_syns(), [Some(report(2)), None]);
        assert_eq!(board.take_syns(), [None, None]);
    }

    #[test]
    fn workers_do_not_share_cache_lines() {
        let board = Board::new(2);
        let distance = std::ptr::from_ref(board.slot(1)).addr() - std::ptr::from_ref(board.slot(0)).addr();
        assert!(distance.is_multiple_of(64) && distance >= size_of::<Slot>());
    }
}
