//! The maps by which the programs answer SYNs (`bpf/syns.h`), as this process sees them: plain memory, which a worker's engine writes.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;

use aya::Ebpf;
use aya::maps::Map;

use super::shed::MappedArray;
use crate::mapping::Mapping;
use crate::options::SynPlan;

/// 64-bit words of a value of each map.
const VALUES: [usize; 3] = [32, 16, 2];

/// The names of the maps.
const NAMES: [&str; 3] = ["answers", "noted", "buckets"];

/// A worker's part of the memory by which the program answers SYNs, mapped as long as the process lives: what it answers, the recent-SYN filter, and the
/// token buckets. `tcpstate::SharedSyns` says what is in it.
pub type SynMemory = [&'static [AtomicU64]; 3];

/// Values of each map that a worker has.
pub(crate) fn sizes(plan: Option<SynPlan>) -> [u32; 3] {
    let of = |n: usize| plan.map_or(1, |plan| u32::try_from(plan.words[n] / VALUES[n]).expect("a 32-bit number"));
    [of(0), of(1), of(2)]
}

/// Each worker's part of the maps of a loaded object.
///
/// # Errors
///
/// Those of `mmap(2)`.
pub(crate) fn map(ebpf: &Ebpf, workers: usize, plan: SynPlan) -> io::Result<Vec<SynMemory>> {
    let part = |n: usize| {
        let Some(Map::Array(data)) = ebpf.map(NAMES[n]) else {
            return Err(io::Error::other("the program lacks its map"));
        };
        let mapping = Mapping::shared(data.fd().as_fd(), 8 * plan.words[n] * workers)?;
        let all: &'static MappedArray = Box::leak(Box::new(MappedArray::over(mapping)));
        Ok(all.chunks_exact(plan.words[n]).collect::<Vec<&'static [AtomicU64]>>())
    };
    let [answers, noted, buckets] = [part(0)?, part(1)?, part(2)?];
    Ok((0..workers).map(|worker| [answers[worker], noted[worker], buckets[worker]]).collect())
}
