//! The memory of an engine, region by region.

use crate::Config;
use crate::cache::recent_syns::RecentSyns;
use crate::cache::refused::RefusedPorts;
use crate::flow::table::Slab;
use crate::memory::Words;
use crate::policy::limit::{Limiter, Sightings};

/// The regions of one worker's [`Proxy`](crate::Proxy).
pub struct Memory {
    /// The flow table's records.
    pub slab: Slab,
    /// The recent-SYN filter.
    pub recent_syns: Words,
    /// The token buckets of source prefixes.
    pub limits: Words,
    /// SYNs that were refused a token lately.
    pub refused_syns: Words,
    /// Ports of the LAN that refused connections lately.
    pub refused_ports: Words,
}

impl Memory {
    /// The version of the layouts of all regions together: it changes when that of one does. Memory of another version must not be
    /// handed in.
    pub const LAYOUT: u64 = (crate::RECORD_LAYOUT as u64) << 32
        | RecentSyns::LAYOUT
        | Limiter::LAYOUT << 8
        | Sightings::LAYOUT << 16
        | RefusedPorts::LAYOUT << 24;

    /// Memory of this process alone, all zero, of the sizes this configuration needs.
    pub fn anonymous(config: &Config) -> Self {
        let [recent_syns, limits, refused_syns, refused_ports] = Self::words_needed(config).map(Words::zeroed);
        let slab = Slab::anonymous(config.flow_capacity(), false);
        Self { slab, recent_syns, limits, refused_syns, refused_ports }
    }

    /// How many words each region of atomic words has at least, in the order of the fields; for the slab see [`Slab::words`].
    pub fn words_needed(config: &Config) -> [usize; 4] {
        [
            RecentSyns::words_needed(config),
            Limiter::words_needed(config),
            Sightings::words_needed(config),
            RefusedPorts::words_needed(config),
        ]
    }
}
