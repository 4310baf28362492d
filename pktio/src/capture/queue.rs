//! What the taps, the file and its thread share: chunks of blocks in bounded queues without locks, and counters.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam::queue::ArrayQueue;

use crate::huge_pages;
use crate::pcap::FRAME_OVERHEAD;

/// The most bytes kept of a frame.
pub const LONGEST: usize = 65_535;

/// The most interfaces of a file.
pub const INTERFACES: usize = 2;

/// The size of a chunk, in bytes.
pub(super) const CHUNK: usize = 128 << 10;

const _: () = assert!(LONGEST + FRAME_OVERHEAD <= CHUNK, "every frame fits a chunk");

/// Frames, by interface.
pub(super) type Counts = [u64; INTERFACES];

/// Blocks to be written to the file, and the number of frames in them.
pub(super) struct Chunk {
    pub bytes: Vec<u8>,
    pub frames: Counts,
}

/// The queue from one tap to the thread, and the queue of empty chunks back to the tap.
pub(super) struct TapQueue {
    pub full: ArrayQueue<Chunk>,
    pub spare: ArrayQueue<Vec<u8>>,
    /// Frames missed because the disk was too slow. Written by the tap alone.
    pub missed: [AtomicU64; INTERFACES],
    /// Frames left out because the file was full. Written by the tap alone.
    pub beyond: [AtomicU64; INTERFACES],
    /// The tap was dropped, and has queued everything.
    pub is_over: AtomicBool,
}

/// The state that the file, its thread and its taps share.
pub(super) struct Shared {
    /// Frames written.
    pub captured: [AtomicU64; INTERFACES],
    /// Frames that were queued and not written.
    pub beyond: [AtomicU64; INTERFACES],
    /// The file takes no more frames.
    pub is_full: AtomicBool,
    /// The thread ends without waiting for the taps.
    pub ending: AtomicBool,
    pub tap_queues: Vec<Arc<TapQueue>>,
    /// The first error of writing.
    pub error: Mutex<Option<io::Error>>,
}

/// The sum over all interfaces.
pub(super) fn total(counts: &[AtomicU64; INTERFACES]) -> u64 {
    counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

/// Adds to the counts of each interface.
pub(super) fn add(counts: &[AtomicU64; INTERFACES], more: Counts) {
    for (count, more) in counts.iter().zip(more) {
        if more > 0 {
            count.fetch_add(more, Ordering::Relaxed);
        }
    }
}

impl TapQueue {
    /// A queue of this many chunks, and their memory.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub(super) fn new(chunks: usize) -> io::Result<TapQueue> {
        let queue = TapQueue {
            full: ArrayQueue::new(chunks),
            spare: ArrayQueue::new(chunks),
            missed: Default::default(),
            beyond: Default::default(),
            is_over: AtomicBool::new(false),
        };
        for _ in 0..chunks {
            let mut chunk = Vec::new();
            huge_pages::may_fail(|| chunk.try_reserve_exact(CHUNK))
                .map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
            let _ = queue.spare.push(chunk);
        }
        Ok(queue)
    }
}
