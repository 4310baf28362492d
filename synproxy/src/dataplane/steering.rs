//! Steering: names the owner of each frame where several workers share the traffic, and hands over the frames that arrived at another
//! worker. `handoff` carries them.
//!
//! Where both interfaces distribute connections over their queues by the same symmetric hash, a frame's queue is its owner's, and only what an
//! interface cannot parse (fragments, ICMP errors, several tags, extension headers) is steered: the software twin of the hash
//! says where the rest of the connection arrives. At first every frame is steered, until the interfaces have shown that they
//! hash as configured; from then on samples of all others are compared with the twin. If too many do not match, the interfaces are no longer
//! trusted, and the twin names the owner of every frame, so that the connections that did match stay where they are. Where the
//! interfaces cannot do it, a keyed hash, the same in both directions, names the owner; so it does where there can be services, whose connections have another
//! 4-tuple on each side, of which only that hash can name one owner.

use super::handoff::{Endpoint, Update};
use crate::metrics::descriptors::HandoffMetric;
use crate::metrics::snapshot::Snapshot;
use pktio::rss::Twin;
use pktio::{Batch, Pool};
use std::io;
use std::ops::{Index, IndexMut};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tcpstate::owner::{Naming, plain, share};
use tcpstate::wire::FlowKey;
use tcpstate::{Instant, Metadata, Owners, Secrets, Side};
use tracing::warn;

/// SYNs of every worker until which all its frames are compared with the twin, and handed over where they do not match: connections opened
/// while an interface hashes wrongly are then where the twin says, and stay there.
const PROBATION: u64 = 64;

/// After the probation one frame in this many is compared.
const SAMPLE: u64 = 256;

/// How many of the last 64 samples may mismatch before the interfaces are no longer trusted: a few frames may have been on their way while
/// the queues were set up.
const MISMATCHES_ALLOWED: u32 = 8;

/// How frames find their owners.
#[derive(Clone, Debug)]
pub enum Strategy {
    /// The interfaces choose the owner's queue.
    Rss(Twin),
    /// A keyed hash names the owner, and misdirected frames are handed over.
    HandOff(Naming),
    /// As [`Strategy::HandOff`], and every frame is handed over, even to the worker itself: for tests.
    Everything(Naming),
}

impl Strategy {
    /// What of a connection the hash is of that names its owner.
    fn naming(&self) -> Naming {
        match self {
            // The interfaces hash all of it.
            Strategy::Rss(_) => Naming::Connection,
            Strategy::HandOff(naming) | Strategy::Everything(naming) => *naming,
        }
    }

    /// The worker, out of so many, that owns the connection with this key, whose owner this hash names.
    pub fn owner(&self, key: &FlowKey, hash: u64, workers: usize) -> usize {
        match self {
            Strategy::Rss(twin) => queue(twin, key),
            Strategy::HandOff(_) | Strategy::Everything(_) => share(hash, workers),
        }
    }
}

/// The queue that interfaces choose for a connection.
fn queue(twin: &Twin, key: &FlowKey) -> usize {
    // IPv4 addresses are in the last word.
    let words = if key.v6 { 0..4 } else { 3..4 };
    twin.queue(&key.lan[words.clone()], &key.wan[words], Some([key.lan_port, key.wan_port]))
}

/// What all workers know of the interfaces.
struct Nics {
    twin: Twin,
    /// Read by every worker for every batch, and written once at most.
    trusted: AtomicBool,
}

impl Nics {
    fn owner(&self, key: &FlowKey) -> usize {
        queue(&self.twin, key)
    }
}

/// The samples of one worker.
#[derive(Default)]
struct Samples {
    /// Frames that could have been sampled.
    seen: u64,
    /// SYNs among them.
    syns: u64,
    /// The last 64 samples, a bit each, set for a mismatch.
    last: u64,
}

impl Samples {
    /// Whether the next frame is sampled.
    fn is_due(&mut self, is_syn: bool) -> bool {
        self.seen += 1;
        self.syns += u64::from(is_syn);
        self.is_probation() || self.seen.is_multiple_of(SAMPLE)
    }

    /// Whether the interfaces have yet to show that they hash as configured.
    fn is_probation(&self) -> bool {
        self.syns <= PROBATION
    }

    /// Records one; returns whether too many did not match.
    fn record(&mut self, matches: bool) -> bool {
        self.last = self.last << 1 | u64::from(!matches);
        self.last.count_ones() > MISMATCHES_ALLOWED
    }
}

/// What a worker has exchanged with the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandoffCounters([u64; HandoffMetric::COUNT]);

impl Index<HandoffMetric> for HandoffCounters {
    type Output = u64;

    fn index(&self, metric: HandoffMetric) -> &u64 {
        &self.0[metric as usize]
    }
}

impl IndexMut<HandoffMetric> for HandoffCounters {
    fn index_mut(&mut self, metric: HandoffMetric) -> &mut u64 {
        &mut self.0[metric as usize]
    }
}

impl HandoffCounters {
    /// Writes the counters into a snapshot.
    pub fn write(&self, snapshot: &mut Snapshot) {
        for &metric in HandoffMetric::ALL {
            snapshot.set(metric, self[metric]);
        }
    }
}

/// How one worker finds the owner of a frame.
enum OwnerLookup {
    ByNics { nics: Arc<Nics>, samples: Samples },
    ByHash { everything: bool },
}

/// The steering of one worker: its way to and from the others.
pub struct Steering {
    endpoint: Endpoint,
    owners: Owners,
    lookup: OwnerLookup,
    counters: HandoffCounters,
    /// SYNs from the WAN that other workers own.
    syns: u64,
}

impl Steering {
    /// The steering of each of `workers`, for frames of up to `longest` bytes. `secrets` are those of the engine.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn open(workers: usize, longest: usize, strategy: Strategy, secrets: &Secrets) -> io::Result<Vec<Steering>> {
        let everything = matches!(strategy, Strategy::Everything(_));
        let naming = strategy.naming();
        let nics = match strategy {
            Strategy::Rss(twin) => Some(Arc::new(Nics { twin, trusted: AtomicBool::new(true) })),
            _ => None,
        };
        let lookup = || match &nics {
            Some(nics) => OwnerLookup::ByNics { nics: Arc::clone(nics), samples: Samples::default() },
            None => OwnerLookup::ByHash { everything },
        };
        let steering = |endpoint| Steering {
            endpoint,
            owners: Owners::new(secrets, naming),
            lookup: lookup(),
            counters: HandoffCounters::default(),
            syns: 0,
        };
        Ok(Endpoint::open(workers, longest)?.into_iter().map(steering).collect())
    }

    /// Whether all frames of this worker's connections come to its own ports: the interfaces have shown that they bring them there.
    pub fn is_left_alone(&self) -> bool {
        matches!(&self.lookup, OwnerLookup::ByNics { nics, samples } if nics.trusted.load(Ordering::Relaxed) && !samples.is_probation())
    }

    /// Whether the interfaces were trusted to bring frames to their owners, and are no longer.
    pub fn has_lost_trust(&self) -> bool {
        matches!(&self.lookup, OwnerLookup::ByNics { nics, .. } if !nics.trusted.load(Ordering::Relaxed))
    }

    /// The same steering, for ports that consist of members or do not.
    #[must_use]
    pub fn with_members(self, has_members: bool) -> Steering {
        Steering { endpoint: self.endpoint.with_members(has_members), ..self }
    }

    /// Takes the frames of other owners out of a batch that came in on `side`, and hands them over.
    pub fn hand_over(&mut self, side: Side, now: Instant, batch: &mut Batch, metas: &mut [Metadata], pool: &mut Pool) {
        let mut kept = 0;
        for i in 0..batch.len() {
            let Some(owner) = self.receiver(side, &metas[i], batch[i].bytes(), now) else {
                if kept < i {
                    batch.swap(kept, i);
                    metas.swap(kept, i);
                }
                kept += 1;
                continue;
            };
            let is_syn = side == Side::Wan && metas[i].attempt().is_some();
            self.syns += u64::from(is_syn);
            let fits = self.endpoint.hand_over(owner, side, &batch[i], is_syn);
            self.counters[if fits { HandoffMetric::HandedOver } else { HandoffMetric::QueueFull }] += 1;
        }
        for misdirected in batch.drain(kept..) {
            pool.put(misdirected);
        }
        self.endpoint.wake_receivers();
    }

    /// The worker to which a frame is to be handed over; `None` if it stays.
    #[inline]
    fn receiver(&mut self, side: Side, meta: &Metadata, frame: &[u8], now: Instant) -> Option<usize> {
        let (own, workers) = (self.endpoint.number(), self.endpoint.workers());
        let owner = match &mut self.lookup {
            OwnerLookup::ByNics { nics, samples } => {
                if nics.trusted.load(Ordering::Relaxed)
                    && let Some(key) = plain(meta)
                {
                    if samples.is_due(meta.attempt().is_some()) {
                        let matches = nics.owner(key) == own;
                        self.counters[HandoffMetric::Sampled] += 1;
                        self.counters[HandoffMetric::WrongQueue] += u64::from(!matches);
                        if samples.record(matches) && nics.trusted.swap(false, Ordering::Relaxed) {
                            warn!(
                                "the interfaces do not distribute frames as configured: from now on the workers steer every frame to its owner"
                            );
                        }
                    }
                    if !samples.is_probation() {
                        return None;
                    }
                }
                self.owners.owner(side, meta, frame, now, |key, _| nics.owner(key))
            }
            OwnerLookup::ByHash { everything } => {
                let owner = self.owners.owner(side, meta, frame, now, |_, hash| share(hash, workers));
                if *everything {
                    return Some(owner.unwrap_or(own));
                }
                owner
            }
        };
        owner.filter(|&owner| owner != own)
    }

    /// Appends up to `max` frames of `side` that others have handed over, and returns how many.
    pub fn take_over(&mut self, side: Side, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        let taken = self.endpoint.take(side, batch, max, pool);
        self.counters[HandoffMetric::TakenOver] += taken.frames as u64;
        self.counters[HandoffMetric::NoBuffer] += taken.lost as u64;
        taken.frames
    }

    /// Sends an update to all other workers, which do not pass it on.
    pub fn publish(&mut self, update: Update) {
        let (sent, lost) = self.endpoint.publish(update);
        self.counters[HandoffMetric::UpdatesSent] += sent as u64;
        self.counters[HandoffMetric::UpdatesLost] += lost as u64;
    }

    /// The next update of another worker.
    #[inline]
    pub fn receive_update(&mut self) -> Option<Update> {
        let update = self.endpoint.receive_update();
        self.counters[HandoffMetric::UpdatesReceived] += u64::from(update.is_some());
        update
    }

    /// Calls `sleep`, unless frames have been handed over. `sleep` must end when the descriptor it gets becomes readable.
    ///
    /// # Errors
    /// Those of `sleep`.
    pub fn sleep_with(&self, sleep: impl FnOnce(Option<RawFd>) -> io::Result<()>) -> io::Result<()> {
        let slept = self.endpoint.begin_sleep().map_or(Ok(()), |event| sleep(Some(event.as_raw_fd())));
        self.endpoint.end_sleep();
        slept
    }

    /// SYNs from the WAN that other workers own, whether they fitted the queue or not.
    pub fn syns(&self) -> u64 {
        self.syns
    }

    /// Frames that were lost on the way between workers.
    pub fn lost(&self) -> u64 {
        self.counters[HandoffMetric::QueueFull] + self.counters[HandoffMetric::NoBuffer]
    }

    /// What has been counted so far.
    pub fn counters(&self) -> &HandoffCounters {
        &self.counters
    }
}
