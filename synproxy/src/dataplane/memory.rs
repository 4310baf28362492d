//! The memory of a worker's engine: regions that are mapped here and handed in, so that the engine does not know where they lie.

use std::sync::atomic::AtomicU64;

use pktio::huge_pages;
use pktio::region::{Region, RegionError};
use pktio::shed::PROVED_WORDS;
use tcpstate::{Config, GatheredSlab, Memory, ServerSlab, Slab, Words};

/// Zeroed memory of this process for an engine of this configuration. It stays mapped until the process ends; pages that are never used take none.
///
/// # Errors
/// If the system has none.
pub fn anonymous(config: &Config) -> Result<Memory, RegionError> {
    let capacity = config.flow_capacity();
    let redirects = config.has_redirects();
    let slab = Region::anonymous(Slab::words(capacity, redirects))?.into_words();
    let slab = Slab::mapped(slab, capacity, redirects, false);
    let slab = slab.expect("as many words as it needs, from the beginning of a page");
    let servers = Region::anonymous(ServerSlab::words(config.learn_capacity))?.into_words();
    let servers =
        ServerSlab::mapped(servers, config.learn_capacity, false).expect("as many words as it needs, from a page on");
    let (places, room) = (config.service_buffers, config.first_bytes);
    let gathered = match GatheredSlab::words(places, room) {
        0 => Some(GatheredSlab::anonymous(0, room)),
        words => GatheredSlab::mapped(Region::anonymous(words)?.into_words(), places, room, false),
    };
    let [recent_syns, limits, refused_syns, refused_ports, proved_sources, quotas] = Memory::words_needed(config);
    Ok(Memory {
        slab,
        servers,
        recent_syns: words(recent_syns)?,
        limits: words(limits)?,
        refused_syns: words(refused_syns)?,
        refused_ports: words(refused_ports)?,
        proved_sources: words(proved_sources)?,
        quotas: words(quotas)?,
        gathered: gathered.expect("as many words as it needs, from a page on"),
    })
}

/// Zeroed words of this process.
fn words(len: usize) -> Result<Words, RegionError> {
    Region::anonymous(len).map(|region| Words::from(region.into_atomics()))
}

/// Zeroed memory for the counters of limits of an engine of this configuration: they never outlive the process.
///
/// # Errors
/// If the system has none.
pub fn quotas(config: &Config) -> Result<Words, RegionError> {
    let [.., quotas] = Memory::words_needed(config);
    words(quotas)
}

/// The memory of so many workers' engines.
///
/// # Errors
/// If the system has none.
pub fn of_workers(config: &Config, workers: usize) -> Result<Vec<Memory>, RegionError> {
    (0..workers).map(|_| anonymous(config)).collect()
}

/// With each memory the counters of limits of all others.
pub fn with_others(memories: Vec<Memory>) -> Vec<(Memory, Vec<Words>)> {
    let others = |own: usize| {
        let others = memories.iter().enumerate().filter(|(n, _)| *n != own);
        others.map(|(_, memory)| memory.quotas.share().expect("it was handed in")).collect()
    };
    let others: Vec<Vec<Words>> = (0..memories.len()).map(others).collect();
    memories.into_iter().zip(others).collect()
}

/// Zeroed memory for the proved sources of a worker whose port does not keep them itself. Ends the process in one line if the system has none.
pub fn proved_sources() -> &'static [AtomicU64] {
    Region::anonymous(PROVED_WORDS).unwrap_or_else(|_| huge_pages::out_of_memory(8 * PROVED_WORDS)).into_atomics()
}
