//! The memory of an engine, region by region.

use super::candidates::Candidates;
use super::passthrough::UnprovedFlows;
use crate::Config;
use crate::cache::gathered::{Gathered, GatheredSlab};
use crate::cache::held::HoldQueue;
use crate::cache::proved_sources::ProvedSources;
use crate::cache::recent_syns::RecentSyns;
use crate::cache::refused::RefusedPorts;
use crate::cache::servers::ServerSlab;
use crate::cache::source_ports::SourcePorts;
use crate::config::Reach;
use crate::counters::Counters;
use crate::flow::table::{Redirect, Slab, Table};
use crate::memory::Words;
use crate::policy::limit::{Limiter, Sightings};
use crate::policy::mode::Modes;
use crate::policy::quotas::Quotas;

/// The regions of one worker's [`Proxy`](crate::Proxy).
pub struct Memory {
    /// The flow table's records.
    pub slab: Slab,
    /// What servers have shown of themselves.
    pub servers: ServerSlab,
    /// The recent-SYN filter.
    pub recent_syns: Words,
    /// The token buckets of source prefixes.
    pub limits: Words,
    /// SYNs that were refused a token lately.
    pub refused_syns: Words,
    /// Ports of the LAN that refused connections lately.
    pub refused_ports: Words,
    /// Sources that have proved themselves lately.
    pub proved_sources: Words,
    /// The counters of limits on connections and SYN-ACKs, which other workers may read.
    pub quotas: Words,
    /// The first bytes of connections to services.
    pub gathered: GatheredSlab,
}

/// Where in a [`Memory::LAYOUT`] the version of each region stands, in the order of [`Memory::same_regions`], and behind them that of the quotas: the lowest
/// bit, and how many there are.
const LAYOUT_BITS: [(u32, u32); 9] = [(32, 16), (48, 8), (0, 8), (8, 8), (16, 8), (24, 4), (28, 4), (60, 4), (56, 4)];

impl Memory {
    /// The version of the layouts of all regions together: it changes when that of one does. Memory of another version must not be
    /// handed in.
    pub const LAYOUT: u64 = {
        let versions = [
            crate::RECORD_LAYOUT as u64,
            ServerSlab::LAYOUT,
            RecentSyns::LAYOUT,
            Limiter::LAYOUT,
            Sightings::LAYOUT,
            RefusedPorts::LAYOUT,
            ProvedSources::LAYOUT,
            // A version rises, so that equal sums are of equal versions.
            Redirect::LAYOUT + GatheredSlab::LAYOUT - 1,
            Quotas::LAYOUT,
        ];
        let (mut layout, mut n) = (0, 0);
        while n < versions.len() {
            let (from, bits) = LAYOUT_BITS[n];
            assert!(versions[n] < 1 << bits, "a version needs more bits");
            layout |= versions[n] << from;
            n += 1;
        }
        layout
    };

    /// The version of the flow table's records in a [`Memory::LAYOUT`], which [`Remains`](crate::Remains) may be able to read though the others differ.
    pub const fn record_layout(layout: u64) -> u32 {
        let (from, bits) = LAYOUT_BITS[0];
        (layout >> from) as u32 & ((1 << bits) - 1)
    }

    /// Which regions are the same in a memory of this [`Memory::LAYOUT`] as in the present one: the slab, the servers, the recent SYNs, the limits, the refused
    /// SYNs, the refused ports, the proved sources, and the first bytes with the second keys of flows beside the slab.
    pub fn same_regions(layout: u64) -> [bool; 8] {
        std::array::from_fn(|n| {
            let (from, bits) = LAYOUT_BITS[n];
            (layout ^ Self::LAYOUT) >> from & ((1 << bits) - 1) == 0
        })
    }

    /// Memory of this process alone, all zero, of the sizes this configuration needs.
    pub fn anonymous(config: &Config) -> Self {
        let [recent_syns, limits, refused_syns, refused_ports, proved_sources, quotas] =
            Self::words_needed(config).map(Words::zeroed);
        let slab = Slab::anonymous(config.flow_capacity(), config.has_redirects());
        let servers = ServerSlab::anonymous(config.learn_capacity);
        let gathered = GatheredSlab::anonymous(config.service_buffers, config.first_bytes);
        Self { slab, servers, recent_syns, limits, refused_syns, refused_ports, proved_sources, quotas, gathered }
    }

    /// How many words each region of atomic words has at least, in the order of the fields; for the others see [`Slab::words`] and [`ServerSlab::words`].
    pub fn words_needed(config: &Config) -> [usize; 6] {
        [
            RecentSyns::words_needed(config),
            Limiter::words_needed(config),
            Sightings::words_needed(config),
            RefusedPorts::words_needed(config),
            ProvedSources::words_needed(config),
            Quotas::words_needed(config),
        ]
    }
}

/// The bytes that one worker's [`Proxy`](crate::Proxy) takes at most, by what decides their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// [`Config::table_buckets`]: records, index, the queues of flows that may be evicted, and the counters of limits.
    pub table: u64,
    /// [`Config::learn_capacity`].
    pub server_options: u64,
    /// [`RateLimit::size`](crate::config::RateLimit::size).
    pub limits: u64,
    /// [`Config::proved_sources`].
    pub proved_sources: u64,
    /// [`Config::held_frames`], without the frames themselves.
    pub held: u64,
    /// [`Config::service_buffers`].
    pub services: u64,
    /// What is the same whatever the configuration.
    pub fixed: u64,
}

/// The small caches of fixed size (fragments, stations, servers that answer another way, offers, rates of what passes unproved, shares of the table), and
/// what the engine has in single pieces.
const SMALL_CACHES: usize = 5 << 19;

impl Footprint {
    /// That of an engine of this configuration, which may be a [share](Config::share).
    pub fn of(config: &Config) -> Self {
        let flows = config.flow_capacity();
        // Everybody is one.
        let own = 2 * config.services.len();
        let pools: usize = config.services.iter().map(|service| service.pool.len().max(1)).sum();
        let has_pool = config.services.iter().any(|service| service.reach == Reach::Full);
        let source_ports = SourcePorts::bytes_needed(if has_pool { pools } else { 0 });
        let targets = 1 + own + config.rules.iter().filter(|rule| rule.settings.mode.is_some()).count();
        let [recent_syns, limits, refused_syns, refused_ports, proved_sources, quotas] = Memory::words_needed(config);
        let table = Table::bytes_needed(config.table_buckets, flows)
            + Candidates::bytes_needed(config.syn_cache_max, flows)
            + UnprovedFlows::bytes_needed(flows)
            + 8 * quotas
            + Quotas::bytes_needed(config);
        let second_keys = 8 * (Slab::words(flows, config.has_redirects()) - Slab::words(flows, false));
        Self {
            table: table as u64,
            server_options: 8 * ServerSlab::words(config.learn_capacity) as u64,
            limits: 8 * limits as u64,
            proved_sources: 8 * proved_sources as u64,
            held: HoldQueue::bytes_needed(config.held_frames) as u64,
            services: (8 * GatheredSlab::words(config.service_buffers, config.first_bytes)
                + Gathered::bytes_needed(config.service_buffers)
                + second_keys
                + source_ports) as u64,
            fixed: (8 * (recent_syns + refused_syns + refused_ports)
                + SMALL_CACHES
                + Modes::bytes_needed(targets)
                + Counters::bytes_needed(targets)) as u64,
        }
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        let Self { table, server_options, limits, proved_sources, held, services, fixed } = self;
        table + server_options + limits + proved_sources + held + services + fixed
    }
}
