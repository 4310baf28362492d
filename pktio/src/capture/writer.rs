//! The thread that writes a capture file.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use tracing::{info, warn};

use super::queue::{Chunk, Counts, INTERFACES, Shared, add};
use crate::pcap::put_statistics;

/// How long the thread sleeps when no tap wakes it.
const SLEEP: Duration = Duration::from_millis(100);

/// The thread of a file.
pub(super) struct Writer<W> {
    pub output: W,
    /// Its name, for the log.
    pub path: PathBuf,
    /// Bytes of frames that still fit.
    pub room: u64,
    /// How many interfaces the file describes.
    pub interfaces: usize,
    pub shared: Arc<Shared>,
}

impl<W: Write> Writer<W> {
    /// Writes chunks until all taps are dropped or the file is to end.
    pub(super) fn run(mut self) {
        loop {
            // Read before the queues: chunks that were queued last are then visible.
            let is_over = self.shared.ending.load(Ordering::Acquire)
                || self.shared.tap_queues.iter().all(|tap_queue| tap_queue.is_over.load(Ordering::Acquire));
            let mut idle = true;
            for tap_queue in &self.shared.clone().tap_queues {
                while let Some(Chunk { mut bytes, frames }) = tap_queue.full.pop() {
                    idle = false;
                    self.write(&bytes, frames);
                    bytes.clear();
                    // The queue has room for all chunks.
                    let _ = tap_queue.spare.push(bytes);
                }
            }
            if is_over {
                break;
            }
            if idle {
                thread::park_timeout(SLEEP);
            }
        }
        self.conclude();
    }

    fn write(&mut self, bytes: &[u8], frames: Counts) {
        if self.shared.is_full.load(Ordering::Relaxed) {
            return add(&self.shared.beyond, frames);
        }
        let (mut length, mut fit) = (bytes.len(), frames);
        if bytes.len() as u64 > self.room {
            (length, fit) = fitting(bytes, self.room as usize);
        }
        match self.output.write_all(&bytes[..length]) {
            Ok(()) => {
                self.room -= length as u64;
                add(&self.shared.captured, fit);
            }
            Err(error) => {
                warn!("{}: {error}; nothing more is captured", self.path.display());
                self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                // The file may end in the middle of a frame now.
                (self.interfaces, fit) = (0, Counts::default());
                self.shared.is_full.store(true, Ordering::Relaxed);
            }
        }
        if length < bytes.len() {
            info!("{}: it is as large as it may grow; nothing more is captured", self.path.display());
            self.shared.is_full.store(true, Ordering::Relaxed);
        }
        add(&self.shared.beyond, std::array::from_fn(|i| frames[i] - fit[i]));
    }

    /// Ends the file with the statistics of its interfaces.
    fn conclude(&mut self) {
        let (shared, mut bytes) = (&self.shared, Vec::new());
        for i in 0..self.interfaces {
            let of = |counts: &[AtomicU64; INTERFACES]| counts[i].load(Ordering::Relaxed);
            let lost: u64 =
                shared.tap_queues.iter().map(|tap_queue| of(&tap_queue.missed) + of(&tap_queue.beyond)).sum();
            let dropped = lost + of(&shared.beyond);
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            put_statistics(&mut bytes, i as u32, now, of(&shared.captured) + dropped, dropped);
        }
        if let Err(error) = self.output.write_all(&bytes).and_then(|()| self.output.flush()) {
            shared.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }
}

/// As many whole blocks of frames as fit into `room` bytes: their length, and the number of frames.
fn fitting(bytes: &[u8], room: usize) -> (usize, Counts) {
    let (mut length, mut frames) = (0, Counts::default());
    while let Some(block) = bytes[length..].first_chunk::<12>() {
        let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]) as usize;
        if length + word(4) > room {
            break;
        }
        length += word(4);
        frames[word(8)] += 1;
    }
    (length, frames)
}
