//! Relief for a worker that is pressed: calls from the WAN are left out, by the port itself where it can, else right after the
//! first pass. How hard it is pressed `pressure` says; the rule is `pktio::sieve`'s.

use crate::clock;
use pktio::sieve::{Sieve, Sifted};
use pktio::{Batch, Level, Pool, Port};
use std::hash::{BuildHasher, RandomState};
use tcpstate::{Metadata, Source};

/// What is left out, and by whom.
#[derive(Default)]
pub struct Relief {
    level: Level,
    /// The sieve of a worker whose port has none.
    own: Option<Own>,
}

/// A sieve, the key of its hashes, and what it has left out.
struct Own {
    sieve: Sieve,
    key: RandomState,
    fresh: u64,
    repeated: u64,
}

impl Relief {
    /// Relief by this port; takes memory if it cannot give any.
    pub fn new(port: &mut impl Port) -> Self {
        let own = || Own { sieve: Sieve::default(), key: RandomState::new(), fresh: 0, repeated: 0 };
        let can = port.shed(Level::Nothing);
        Self { level: Level::Nothing, own: (!can).then(own) }
    }

    /// Has so much left out from now on.
    pub fn set(&mut self, port: &mut impl Port, level: Level) {
        self.level = level;
        port.shed(level);
    }

    /// Remembers that this source has proved itself. Returns whether that is news to this worker's own account, which no other has.
    pub fn favour(&mut self, port: &mut impl Port, source: Source) -> bool {
        match &mut self.own {
            Some(own) => own.sieve.favour(own.key.hash_one(source), nanos()),
            None => {
                port.favour(source);
                false
            }
        }
    }

    /// Fresh and repeated calls left out here, not by the port.
    pub fn shed(&self) -> (u64, u64) {
        self.own.as_ref().map_or((0, 0), |own| (own.fresh, own.repeated))
    }

    /// Whether what comes from the WAN has to be sifted here.
    #[inline]
    pub fn sifts(&self) -> bool {
        self.level != Level::Nothing && self.own.is_some()
    }

    /// Puts the calls that are to be left out back into the pool, and their looks away.
    pub fn sift(&mut self, frames: &mut Batch, metas: &mut Vec<Metadata>, pool: &mut Pool) {
        let Some(own) = &mut self.own else { return };
        let now = nanos();
        let mut kept = 0;
        for at in 0..frames.len() {
            let sifted = metas[at].attempt().map_or(Sifted::Passed, |call| {
                own.sieve.sift(self.level, own.key.hash_one(call.source), call.hash, now)
            });
            match sifted {
                Sifted::Passed => {
                    frames.swap(kept, at);
                    metas.swap(kept, at);
                    kept += 1;
                }
                Sifted::Fresh => own.fresh += 1,
                Sifted::Repeated => own.repeated += 1,
            }
        }
        metas.truncate(kept);
        frames.drain(kept..).for_each(|frame| pool.put(frame));
    }
}

/// The time the sieve reckons by.
fn nanos() -> u64 {
    clock::now().as_micros() * 1000
}
