//! Samples of the SYNs that the XDP program has dropped or answered, from its ring buffer: who sends and who is meant, while most frames never reach a
//! worker.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use aya::maps::{MapData, RingBuf};

use super::shed::ShedMaps;
use crate::shed::{ShedSample, next_every};

/// Bytes of the program's `struct sample`.
const SAMPLE: usize = 40;

/// At the beginning one SYN in so many is sampled: few enough for the ring at any rate, until the first reading.
const FIRST_EVERY: u32 = 1024;

/// The reader of the samples; there is one. Dropping it ends the sampling.
pub struct ShedSamples {
    ring: RingBuf<MapData>,
    maps: Arc<ShedMaps>,
    every: u32,
    /// What had been dropped or answered at the last reading, and when that was.
    before: (u64, Instant),
}

impl ShedSamples {
    /// Begins to sample.
    pub(super) fn new(ring: RingBuf<MapData>, maps: Arc<ShedMaps>) -> ShedSamples {
        maps.set_every(FIRST_EVERY);
        ShedSamples { ring, maps, every: FIRST_EVERY, before: (0, Instant::now()) }
    }

    /// Calls `each` for every sample since the last reading, and adapts how many SYNs are sampled to how many are dropped. To be called about
    /// once a second; a reader that comes late finds the first of the samples it missed.
    ///
    /// Makes no system call.
    pub fn read(&mut self, mut each: impl FnMut(ShedSample)) {
        while let Some(bytes) = self.ring.next() {
            if let Some(sample) = <&[u8; SAMPLE]>::try_from(&*bytes).ok().map(parse) {
                each(sample);
            }
        }
        let of = |queue| self.maps.dropped(queue).iter().sum::<u64>() + self.maps.answered(queue);
        let dropped = (0..self.maps.queues()).map(of).sum();
        let (before, then) = self.before;
        let every = next_every(self.every, dropped - before, then.elapsed());
        if every != self.every {
            self.every = every;
            self.maps.set_every(every);
        }
        self.before = (dropped, Instant::now());
    }
}

impl Drop for ShedSamples {
    fn drop(&mut self) {
        self.maps.set_every(0);
    }
}

impl fmt::Debug for ShedSamples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShedSamples").field("every", &self.every).finish_non_exhaustive()
    }
}

/// A sample as the program writes it.
fn parse(bytes: &[u8; SAMPLE]) -> ShedSample {
    let address = |at: usize| bytes[at..at + 16].try_into().expect("sixteen bytes");
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let [.., a, b, c, d] = *bytes;
    ShedSample {
        source: address(0),
        destination: address(16),
        source_port: port(32),
        destination_port: port(34),
        stands_for: u32::from_ne_bytes([a, b, c, d]),
    }
}
