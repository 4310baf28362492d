//! Load shedding: drops SYNs from the WAN when a worker is overloaded, in the port itself where it has a program for that, otherwise right
//! after the parse pass. `load` decides how much is dropped, and the rule of `pktio::shed` which SYNs.

use crate::dataplane::memory;
use crate::metrics::top_talkers::TopTalkers;
use crate::process::clock;
use pktio::shed::{ShedVerdict, SoftwareShedFilter};
use pktio::{Batch, Pool, Port, ShedLevel as Level};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicU64;
use tcpstate::{Metadata, Source};

/// What is shed, and by whom.
#[derive(Default)]
pub struct Shedder {
    level: Level,
    /// The filter of a worker whose port has none.
    own: Option<OwnFilter>,
}

/// A filter, the key of its hashes, and what it has dropped.
struct OwnFilter {
    filter: SoftwareShedFilter<&'static [AtomicU64]>,
    key: RandomState,
    fresh: u64,
    repeated: u64,
}

impl Shedder {
    /// Prepares to shed at this port, or begins anew: nothing is shed yet. Takes memory for a filter if the port has none, once.
    pub fn prepare(&mut self, port: &mut impl Port) {
        if port.shed_filter().is_none() && self.own.is_none() {
            self.own = Some(OwnFilter {
                filter: SoftwareShedFilter::over(memory::proved_sources()),
                key: RandomState::new(),
                fresh: 0,
                repeated: 0,
            });
        }
        self.set(port, Level::Off);
    }

    /// Sets the load level.
    pub fn set(&mut self, port: &mut impl Port, level: Level) {
        self.level = level;
        if let Some(filter) = port.shed_filter() {
            filter.set_level(level);
        }
    }

    /// Records that this source has proved itself. Returns whether the worker's own filter did not know it yet; other workers have to be
    /// told then.
    pub fn record_proved(&mut self, port: &mut impl Port, source: Source) -> bool {
        match &mut self.own {
            Some(own) => own.filter.add_proved_source(own.key.hash_one(source), nanos()),
            None => {
                if let Some(filter) = port.shed_filter() {
                    filter.add_proved_source(source);
                }
                false
            }
        }
    }

    /// First-time and retransmitted SYNs that the worker has shed itself, without those of the port.
    pub fn shed(&self) -> (u64, u64) {
        self.own.as_ref().map_or((0, 0), |own| (own.fresh, own.repeated))
    }

    /// Whether the worker has to filter what comes from the WAN.
    #[inline]
    pub fn is_filtering(&self) -> bool {
        self.level != Level::Off && self.own.is_some()
    }

    /// Returns the SYNs that are shed to the pool, and removes their metadata. Some of them are sampled for the top talkers, which would not
    /// see them otherwise.
    pub fn filter(&mut self, frames: &mut Batch, metas: &mut Vec<Metadata>, talkers: &mut TopTalkers, pool: &mut Pool) {
        let Some(own) = &mut self.own else { return };
        let now = nanos();
        let mut kept = 0;
        for at in 0..frames.len() {
            let verdict = metas[at].attempt().map_or(ShedVerdict::Pass, |syn| {
                own.filter.check(self.level, own.key.hash_one(syn.source), syn.hash, now)
            });
            match verdict {
                ShedVerdict::Pass => {
                    frames.swap(kept, at);
                    metas.swap(kept, at);
                    kept += 1;
                }
                ShedVerdict::Fresh => own.fresh += 1,
                ShedVerdict::Repeated => own.repeated += 1,
            }
        }
        let shed = frames.len() - kept;
        if let Some(at) = talkers.choose_shed(shed)
            && let Some(frame) = frames.get_mut(kept + at)
        {
            talkers.sample_shed(&metas[kept + at], frame.total(), shed);
        }
        metas.truncate(kept);
        frames.drain(kept..).for_each(|frame| pool.put(frame));
    }
}

/// The filter's time, in nanoseconds.
fn nanos() -> u64 {
    clock::now().as_micros() * 1000
}
