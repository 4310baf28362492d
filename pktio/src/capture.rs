//! Frames copied into a pcapng file, by workers that never wait for a disk.
//!
//! Each worker has a [`Tap`]: it copies frames into chunks of memory allocated at the start, and passes full ones to the file's own
//! thread over a bounded queue without locks. When all chunks are in the queue, the tap misses frames and counts them; the file
//! ends with the number of all frames and of those missed. The worker decides which frames are captured.

mod queue;
mod tap;
mod writer;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::thread_advice;
use crate::pcap::{InterfaceDescription, STATISTICS_LEN, put_header};
use queue::{CHUNK, Shared, TapQueue, total};
pub use queue::{INTERFACES, LONGEST};
pub use tap::Tap;
use writer::Writer;

/// How much is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureOptions {
    /// Bytes kept of each frame, at most [`LONGEST`]; its real length is recorded with them.
    pub snap_len: usize,
    /// The largest size of the file, in bytes. Frames after that are not captured, but counted.
    pub max_bytes: u64,
    /// Memory that one tap may fill while the disk is busy, in bytes; allocated at once, in chunks.
    pub buffer: usize,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        CaptureOptions { snap_len: LONGEST, max_bytes: 1 << 30, buffer: 4 << 20 }
    }
}

/// The counters of a capture.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CaptureStatistics {
    /// Frames written.
    pub captured: u64,
    /// Frames missed because the disk was too slow.
    pub missed: u64,
    /// Frames left out because the file was full or could not be written.
    pub beyond: u64,
}

/// What happens to a file that exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExistingFile {
    /// It is truncated.
    Truncate,
    /// It stays, and the capture is refused.
    Refuse,
}

/// A capture file that several workers write to. Dropping it does not wait for taps that still exist; [`finish`](Self::finish) does.
///
/// ```no_run
/// # use pktio::capture::{CaptureFile, CaptureOptions, ExistingFile};
/// # use std::time::Duration;
/// let interfaces = ["lan".into(), "wan".into()];
/// let (file, taps) = CaptureFile::create("all.pcapng", ExistingFile::Truncate, &interfaces, CaptureOptions::default(), 2, || ())?;
/// // Each worker takes a tap; when they are dropped:
/// # drop(taps);
/// let statistics = file.finish(Duration::from_secs(1));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct CaptureFile {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl CaptureFile {
    /// Creates the file with these interfaces and a tap for each worker, and starts its thread, which calls `settle` first. A new file has
    /// mode 0600, since it holds other people's data.
    ///
    /// # Errors
    ///
    /// When the file cannot be created or written, there is no memory for its buffers, or the thread cannot be started; or when a file, or a link to one, exists and
    /// [`Refuse`](ExistingFile::Refuse) was given.
    ///
    /// # Panics
    ///
    /// With more than [`INTERFACES`] interfaces.
    pub fn create(
        path: impl AsRef<Path>,
        existing: ExistingFile,
        interfaces: &[InterfaceDescription],
        options: CaptureOptions,
        taps: usize,
        settle: impl FnOnce() + Send + 'static,
    ) -> io::Result<(CaptureFile, Vec<Tap>)> {
        let mut open = OpenOptions::new();
        match existing {
            ExistingFile::Truncate => open.create(true).truncate(true),
            ExistingFile::Refuse => open.create_new(true),
        };
        let file = open.write(true).mode(0o600).open(&path)?;
        let made = CaptureFile::new(&path, file, interfaces, options, taps, settle);
        if made.is_err() && existing == ExistingFile::Refuse {
            // The file is new and empty; another attempt must not find it.
            let _ = fs::remove_file(&path);
        }
        made
    }

    /// As [`create`](Self::create), to any output; `path` is its name in the log.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    ///
    /// # Panics
    ///
    /// As [`create`](Self::create).
    pub fn new(
        path: impl AsRef<Path>,
        output: impl Write + Send + 'static,
        interfaces: &[InterfaceDescription],
        options: CaptureOptions,
        taps: usize,
        settle: impl FnOnce() + Send + 'static,
    ) -> io::Result<(CaptureFile, Vec<Tap>)> {
        assert!(interfaces.len() <= INTERFACES, "{} interfaces in a capture file", interfaces.len());
        let snap_len = options.snap_len.clamp(1, LONGEST);
        let described: Vec<InterfaceDescription> = interfaces
            .iter()
            .map(|interface| InterfaceDescription { snap_len: snap_len as u32, ..interface.clone() })
            .collect();
        let chunks = (options.buffer / CHUNK).max(2);
        let tap_queues: Vec<Arc<TapQueue>> =
            (0..taps).map(|_| TapQueue::new(chunks).map(Arc::new)).collect::<io::Result<_>>()?;
        let mut header = Vec::new();
        put_header(&mut header, &described);
        let mut output = output;
        output.write_all(&header)?;
        let ending = interfaces.len() * STATISTICS_LEN;
        let room = options.max_bytes.saturating_sub((header.len() + ending) as u64);

        let shared = Arc::new(Shared {
            captured: Default::default(),
            beyond: Default::default(),
            is_full: AtomicBool::new(room == 0),
            ending: AtomicBool::new(false),
            tap_queues: tap_queues.clone(),
            error: Mutex::new(None),
        });
        let path = path.as_ref().to_path_buf();
        let writer =
            Writer { output, path: path.clone(), room, interfaces: interfaces.len(), shared: Arc::clone(&shared) };
        let thread = thread::Builder::new().name("capture".to_owned()).spawn(move || {
            settle();
            writer.run();
        });
        let thread = thread.map_err(|error| {
            io::Error::new(error.kind(), format!("no thread can be started: {error}{}", thread_advice(&error)))
        })?;
        let tap =
            |(tap_queue, worker)| Tap::new(worker, snap_len, tap_queue, Arc::clone(&shared), thread.thread().clone());
        let taps = tap_queues.into_iter().zip(0..).map(tap).collect();
        Ok((CaptureFile { path, shared, thread: Some(thread) }, taps))
    }

    /// The counters so far.
    pub fn statistics(&self) -> CaptureStatistics {
        let sum = |of: fn(&TapQueue) -> &[AtomicU64; INTERFACES]| {
            self.shared.tap_queues.iter().map(|tap_queue| total(of(tap_queue))).sum::<u64>()
        };
        CaptureStatistics {
            captured: total(&self.shared.captured),
            missed: sum(|tap_queue| &tap_queue.missed),
            beyond: total(&self.shared.beyond) + sum(|tap_queue| &tap_queue.beyond),
        }
    }

    /// The first error of writing, once; the file holds the frames before it.
    pub fn take_error(&self) -> Option<io::Error> {
        self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the taps are dropped, but no longer than `timeout`, and everything is written.
    pub fn finish(mut self, timeout: Duration) -> CaptureStatistics {
        let begin = Instant::now();
        while begin.elapsed() < timeout && self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            thread::sleep(Duration::from_millis(2));
        }
        self.end();
        self.statistics()
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.ending.store(true, Ordering::Release);
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Drop for CaptureFile {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::frame::Batch;
    use crate::pcap::{Direction, Label, PcapReader, Record, put_statistics};
    use crate::pool::Pool;

    /// Keeps what is written; waits for a token before each write when there is a gate.
    #[derive(Clone, Default)]
    struct Disk {
        bytes: Arc<Mutex<Vec<u8>>>,
        gate: Option<Arc<Mutex<mpsc::Receiver<()>>>>,
        broken: bool,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // The header of the file passes.
            if !self.bytes.lock().unwrap().is_empty() {
                if self.broken {
                    return Err(io::Error::from(io::ErrorKind::StorageFull));
                }
                if let Some(gate) = &self.gate {
                    let _ = gate.lock().unwrap().recv();
                }
            }
            self.bytes.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    fn records(disk: &Disk) -> Vec<Record> {
        let bytes = disk.bytes.lock().unwrap().clone();
        let mut reader = PcapReader::new("capture", Box::new(io::Cursor::new(bytes))).unwrap();
        let (mut all, mut record) = (Vec::new(), Record::default());
        while reader.read(&mut record).unwrap() {
            all.push(record.clone());
        }
        all
    }

    /// The last statistics of an interface: received and dropped.
    fn last_statistics(disk: &Disk, interface: u32) -> (u64, u64) {
        let bytes = disk.bytes.lock().unwrap().clone();
        let mut expected = Vec::new();
        put_statistics(&mut expected, interface, Duration::ZERO, 0, 0);
        let at = bytes.windows(12).rposition(|w| w[..12] == expected[..12]).expect("the file ends with statistics");
        let word = |offset: usize| u64::from_le_bytes(bytes[at + offset..at + offset + 8].try_into().unwrap());
        (word(24), word(36))
    }

    fn file(disk: &Disk, options: CaptureOptions, taps: usize) -> (CaptureFile, Vec<Tap>) {
        CaptureFile::new("capture", disk.clone(), &["lan".into(), "wan".into()], options, taps, || ()).unwrap()
    }

    fn batch(pool: &mut Pool, frames: impl IntoIterator<Item = Vec<u8>>) -> Batch {
        frames.into_iter().map(|bytes| pool.adopt(&bytes).unwrap()).collect()
    }

    fn inbound(interface: u32, nanoseconds: u64) -> Label<'static> {
        let (time, direction) = (Duration::from_nanos(nanoseconds), Some(Direction::Inbound));
        Label { interface, time, direction, ..Label::default() }
    }

    #[test]
    fn frames_are_captured_with_their_labels() {
        let disk = Disk::default();
        let (file, mut taps) = file(&disk, CaptureOptions::default(), 2);
        let mut pool = Pool::heap(8, 256, 64);
        // A frame in several buffers is among them.
        let frames = batch(&mut pool, [vec![1; 60], vec![2; 500]]);
        taps[1].record(&inbound(1, 7), &frames[0]);
        let outbound = Label { direction: Some(Direction::Outbound), comment: "a comment", ..inbound(0, 8) };
        taps[1].prepare(&outbound, &frames);
        taps[1].settle(2);
        drop(taps);
        assert_eq!(file.finish(PATIENCE), CaptureStatistics { captured: 3, missed: 0, beyond: 0 });
        let seen: Vec<_> = records(&disk)
            .iter()
            .map(|r| (r.interface, r.bytes[0], r.bytes.len(), r.time.subsec_nanos(), r.direction.unwrap()))
            .collect();
        let (came, went) = (Direction::Inbound, Direction::Outbound);
        assert_eq!(seen, [(1, 1, 60, 7, came), (0, 1, 60, 8, went), (0, 2, 500, 8, went)]);
        assert_eq!((last_statistics(&disk, 0), last_statistics(&disk, 1)), ((2, 0), (1, 0)));
        frames.into_iter().for_each(|frame| pool.put(frame));
    }

    #[test]
    fn what_a_port_refused_is_not_captured() {
        let disk = Disk::default();
        let (file, mut taps) = file(&disk, CaptureOptions::default(), 1);
        let mut pool = Pool::heap(100, 9216, 64);
        // A chunk holds fourteen of them.
        let frames = batch(&mut pool, (0..100).map(|i| vec![i; 9000]));
        taps[0].prepare(&inbound(0, 0), &frames);
        taps[0].settle(40);
        taps[0].prepare(&inbound(0, 0), &frames[40..]);
        taps[0].settle(0);
        taps[0].hand_over();
        taps[0].prepare(&inbound(0, 0), &frames[40..]);
        taps[0].settle(40);
        drop(taps);
        file.finish(PATIENCE);
        let seen: Vec<u8> = records(&disk).iter().map(|record| record.bytes[0]).collect();
        assert_eq!(seen, (0..80).collect::<Vec<u8>>());
        frames.into_iter().for_each(|frame| pool.put(frame));
    }

    #[test]
    fn a_slow_disk_costs_the_capture_frames_and_the_worker_nothing() {
        let (open, gate) = mpsc::channel();
        let disk = Disk { gate: Some(Arc::new(Mutex::new(gate))), ..Disk::default() };
        let (file, mut taps) = file(&disk, CaptureOptions { buffer: 4 * CHUNK, ..CaptureOptions::default() }, 1);
        let mut pool = Pool::heap(64, 9216, 64);
        let frames = batch(&mut pool, (0..20).map(|i| vec![i; 9000]));
        for _ in 0..10 {
            for frame in &frames {
                taps[0].record(&inbound(1, 0), frame);
            }
            taps[0].hand_over();
        }
        let missed = file.statistics().missed;
        assert!((120..=180).contains(&missed), "{missed}");
        drop(open);
        drop(taps);
        let statistics = file.finish(PATIENCE);
        assert_eq!(statistics.captured + statistics.missed, 200);
        assert_eq!(records(&disk).len() as u64, statistics.captured);
        assert_eq!(last_statistics(&disk, 1), (200, statistics.missed));
        frames.into_iter().for_each(|frame| pool.put(frame));
    }

    #[test]
    fn the_file_stays_within_its_bound_and_ends_with_a_whole_frame() {
        for iterations_together in [1, 50] {
            let disk = Disk::default();
            let options = CaptureOptions { max_bytes: 10_000, snap_len: 96, ..CaptureOptions::default() };
            let (file, mut taps) = file(&disk, options, 1);
            let mut pool = Pool::heap(64, 2048, 64);
            let frames = batch(&mut pool, (0..20).map(|i| vec![i; 1500]));
            for i in 0..50 {
                frames.iter().for_each(|frame| taps[0].record(&inbound(0, 0), frame));
                if i % iterations_together == 0 {
                    taps[0].hand_over();
                }
            }
            drop(taps);
            let CaptureStatistics { captured, missed, beyond } = file.finish(PATIENCE);
            let all = records(&disk);
            // 96 bytes, 28 before them, options of 20 and 4 behind.
            let length = disk.bytes.lock().unwrap().len();
            assert!(length <= 10_000 && length > 10_000 - 148, "{length}");
            assert!(all.iter().all(|record| record.bytes.len() == 96 && record.original_len == 1500));
            assert_eq!((captured, captured + missed + beyond), (all.len() as u64, 1000));
            assert_eq!(last_statistics(&disk, 0), (1000, 1000 - captured));
            frames.into_iter().for_each(|frame| pool.put(frame));
        }
    }

    #[test]
    fn a_broken_disk_is_reported_once_and_the_worker_goes_on() {
        let disk = Disk { broken: true, ..Disk::default() };
        let (file, mut taps) = file(&disk, CaptureOptions::default(), 1);
        let mut pool = Pool::heap(4, 2048, 64);
        let frames = batch(&mut pool, [vec![7; 60]]);
        for _ in 0..3 {
            taps[0].record(&inbound(0, 0), &frames[0]);
            taps[0].hand_over();
        }
        drop(taps);
        while !file.thread.as_ref().unwrap().is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(file.take_error().unwrap().kind(), io::ErrorKind::StorageFull);
        assert!(file.take_error().is_none());
        assert_eq!(file.finish(PATIENCE), CaptureStatistics { captured: 0, missed: 0, beyond: 3 });
        frames.into_iter().for_each(|frame| pool.put(frame));
    }

    #[test]
    fn an_end_does_not_wait_for_a_tap_that_nobody_drops() {
        let disk = Disk::default();
        let (file, mut taps) = file(&disk, CaptureOptions::default(), 2);
        let mut pool = Pool::heap(4, 2048, 64);
        let frames = batch(&mut pool, [vec![7; 60]]);
        taps[0].record(&inbound(0, 0), &frames[0]);
        taps[0].hand_over();
        assert_eq!(file.finish(Duration::from_millis(20)).captured, 1);
        // Later frames are discarded.
        taps[0].record(&inbound(0, 0), &frames[0]);
        taps[0].hand_over();
        drop(taps);
        assert_eq!(records(&disk).len(), 1);
        frames.into_iter().for_each(|frame| pool.put(frame));
    }
}
