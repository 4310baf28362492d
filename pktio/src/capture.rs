//! Frames copied aside into a pcapng file, by workers who never wait for a disk.
//!
//! Each worker has a [`Tap`]: it copies frames into chunks of memory taken at the start, and hands full ones to the file's own
//! thread over a bounded queue without locks. When all chunks are on their way the tap misses frames and counts them; the file
//! ends with what there was to be captured and what was missed. Which frames are captured is the worker's matter.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant, SystemTime};

use crossbeam::queue::ArrayQueue;
use tracing::{info, warn};

use crate::frame::Frame;
use crate::pcap::{self, InterfaceDescription, Label};

/// How much is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureOptions {
    /// Bytes kept of each frame, at most [`LONGEST`]; its real length is noted beside them.
    pub snap_len: usize,
    /// How large the file may grow, in bytes. What comes after is not captured, and counted.
    pub max_bytes: u64,
    /// Memory that one tap may fill while the disk is busy, in bytes; taken at once, in chunks.
    pub buffer: usize,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        CaptureOptions { snap_len: LONGEST, max_bytes: 1 << 30, buffer: 4 << 20 }
    }
}

/// The most bytes kept of a frame.
pub const LONGEST: usize = 65_535;

/// The most interfaces of a file.
pub const INTERFACES: usize = 2;

/// The size of a chunk, in bytes.
const CHUNK: usize = 128 << 10;

const _: () = assert!(LONGEST + pcap::FRAME_OVERHEAD <= CHUNK, "every frame fits a chunk");

/// How long the thread sleeps when nobody wakes it.
const NAP: Duration = Duration::from_millis(100);

/// What a capture file holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CaptureStatistics {
    /// Frames written.
    pub captured: u64,
    /// Frames missed because the disk was too slow.
    pub missed: u64,
    /// Frames left out because the file was full or could not be written.
    pub beyond: u64,
}

/// Frames, by interface.
type Counts = [u64; INTERFACES];

/// Blocks of the file on their way to it, and the frames they are.
struct Chunk {
    bytes: Vec<u8>,
    frames: Counts,
}

/// The way from one tap to the thread, and back for empty chunks.
struct Belt {
    full: ArrayQueue<Chunk>,
    spare: ArrayQueue<Vec<u8>>,
    /// Written by the tap alone.
    missed: [AtomicU64; INTERFACES],
    beyond: [AtomicU64; INTERFACES],
    /// The tap is gone, and has handed over all it had.
    is_over: AtomicBool,
}

struct Shared {
    captured: [AtomicU64; INTERFACES],
    /// What was handed over and not written.
    beyond: [AtomicU64; INTERFACES],
    /// The file takes no more frames.
    is_full: AtomicBool,
    /// Taps are no longer waited for.
    ending: AtomicBool,
    belts: Vec<Arc<Belt>>,
    error: Mutex<Option<io::Error>>,
}

/// What becomes of a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Former {
    /// It is emptied.
    Emptied,
    /// It stays, and nothing is captured.
    Kept,
}

/// A capture file that several workers write to. Dropping it does not wait for taps that are still there; [`finish`](Self::finish) does.
///
/// ```no_run
/// # use pktio::capture::{CaptureFile, CaptureOptions, Former};
/// # use std::time::Duration;
/// let interfaces = ["lan".into(), "wan".into()];
/// let (file, taps) = CaptureFile::create("all.pcapng", Former::Emptied, &interfaces, CaptureOptions::default(), 2, || ())?;
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
    /// Creates the file with these interfaces and a tap for each worker, and starts its thread, which calls `settle` first. Only its owner
    /// may read a file that is new: it holds what others said.
    ///
    /// # Errors
    ///
    /// When the file cannot be created or written, or the thread not started; or when a file, or a link to one, is there and to be
    /// [`Kept`](Former::Kept).
    ///
    /// # Panics
    ///
    /// With more than [`INTERFACES`] interfaces.
    pub fn create(
        path: impl AsRef<Path>,
        former: Former,
        interfaces: &[InterfaceDescription],
        options: CaptureOptions,
        taps: usize,
        settle: impl FnOnce() + Send + 'static,
    ) -> io::Result<(CaptureFile, Vec<Tap>)> {
        let mut open = OpenOptions::new();
        match former {
            Former::Emptied => open.create(true).truncate(true),
            Former::Kept => open.create_new(true),
        };
        let file = open.write(true).mode(0o600).open(&path)?;
        CaptureFile::new(path, file, interfaces, options, taps, settle)
    }

    /// As [`create`](Self::create), to any output; `path` is what it is called.
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
        let mut header = Vec::new();
        pcap::put_header(&mut header, &described);
        let mut output = output;
        output.write_all(&header)?;
        let ending = interfaces.len() * pcap::STATISTICS_LEN;
        let room = options.max_bytes.saturating_sub((header.len() + ending) as u64);

        let chunks = (options.buffer / CHUNK).max(2);
        let belts: Vec<Arc<Belt>> = (0..taps).map(|_| Arc::new(Belt::new(chunks))).collect();
        let shared = Arc::new(Shared {
            captured: Default::default(),
            beyond: Default::default(),
            is_full: AtomicBool::new(room == 0),
            ending: AtomicBool::new(false),
            belts: belts.clone(),
            error: Mutex::new(None),
        });
        let path = path.as_ref().to_path_buf();
        let writer =
            Writer { output, path: path.clone(), room, interfaces: interfaces.len(), shared: Arc::clone(&shared) };
        let thread = thread::Builder::new().name("capture".to_owned()).spawn(move || {
            settle();
            writer.run();
        })?;
        let tap = |(belt, queue)| Tap {
            queue,
            snap_len,
            // The pages are touched, and so taken, when they are first filled.
            bytes: Vec::with_capacity(CHUNK),
            frames: Counts::default(),
            filled: Vec::with_capacity(chunks),
            // More than a turn sends by one port.
            marks: Vec::with_capacity(1024),
            belt,
            shared: Arc::clone(&shared),
            writer: thread.thread().clone(),
        };
        let taps = belts.into_iter().zip(0..).map(tap).collect();
        Ok((CaptureFile { path, shared, thread: Some(thread) }, taps))
    }

    /// What has been captured so far, and what was missed.
    pub fn statistics(&self) -> CaptureStatistics {
        let sum = |of: fn(&Belt) -> &[AtomicU64; INTERFACES]| {
            self.shared.belts.iter().map(|belt| total(of(belt))).sum::<u64>()
        };
        CaptureStatistics {
            captured: total(&self.shared.captured),
            missed: sum(|belt| &belt.missed),
            beyond: total(&self.shared.beyond) + sum(|belt| &belt.beyond),
        }
    }

    /// The first error of writing, once; the file holds what came before it.
    pub fn take_error(&self) -> Option<io::Error> {
        self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the taps are gone, but no longer than `patience`, and everything is written.
    pub fn finish(mut self, patience: Duration) -> CaptureStatistics {
        let begin = Instant::now();
        while begin.elapsed() < patience && self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
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

fn total(counts: &[AtomicU64; INTERFACES]) -> u64 {
    counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

fn add(counts: &[AtomicU64; INTERFACES], more: Counts) {
    for (count, more) in counts.iter().zip(more) {
        if more > 0 {
            count.fetch_add(more, Ordering::Relaxed);
        }
    }
}

impl Belt {
    fn new(chunks: usize) -> Belt {
        let belt = Belt {
            full: ArrayQueue::new(chunks),
            spare: ArrayQueue::new(chunks),
            missed: Default::default(),
            beyond: Default::default(),
            is_over: AtomicBool::new(false),
        };
        // One more is in the hands of the tap.
        for _ in 1..chunks {
            let _ = belt.spare.push(Vec::with_capacity(CHUNK));
        }
        belt
    }
}

/// The thread of a file.
struct Writer<W> {
    output: W,
    path: PathBuf,
    /// Bytes of frames that still fit.
    room: u64,
    interfaces: usize,
    shared: Arc<Shared>,
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        loop {
            // Asked before the belts are looked at: what was handed over last is then there.
            let is_over = self.shared.ending.load(Ordering::Acquire)
                || self.shared.belts.iter().all(|belt| belt.is_over.load(Ordering::Acquire));
            let mut idle = true;
            for belt in &self.shared.clone().belts {
                while let Some(Chunk { mut bytes, frames }) = belt.full.pop() {
                    idle = false;
                    self.write(&bytes, frames);
                    bytes.clear();
                    // There are no more chunks than places.
                    let _ = belt.spare.push(bytes);
                }
            }
            if is_over {
                break;
            }
            if idle {
                thread::park_timeout(NAP);
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
                // What was written of it ends in the middle of a frame.
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
            let lost: u64 = shared.belts.iter().map(|belt| of(&belt.missed) + of(&belt.beyond)).sum();
            let dropped = lost + of(&shared.beyond);
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            pcap::put_statistics(&mut bytes, i as u32, now, of(&shared.captured) + dropped, dropped);
        }
        if let Err(error) = self.output.write_all(&bytes).and_then(|()| self.output.flush()) {
            shared.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }
}

/// As many whole blocks of frames as lie in `room` bytes: their length, and the frames they are.
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

/// A worker's way into a capture file. Dropping it hands over what it has.
pub struct Tap {
    /// The worker's number, noted with its frames.
    queue: u32,
    snap_len: usize,
    /// The chunk being filled, and the frames in it.
    bytes: Vec<u8>,
    frames: Counts,
    /// Chunks that are full and not handed over yet, lest frames in them have to be taken back.
    filled: Vec<Chunk>,
    /// What was before each frame of a batch that is about to be sent; `None` for one that was missed.
    marks: Vec<(u32, Option<Mark>)>,
    belt: Arc<Belt>,
    shared: Arc<Shared>,
    writer: Thread,
}

#[derive(Clone, Copy)]
struct Mark {
    filled: usize,
    length: usize,
    frames: Counts,
}

impl Tap {
    /// Copies a frame. To be followed by [`hand_over`](Self::hand_over), once for many.
    pub fn record(&mut self, label: &Label<'_>, frame: &Frame) {
        if self.put(label, frame).is_none() {
            self.miss(label.interface);
        }
    }

    /// Copies frames that are about to be sent: what a port accepts is gone. To be followed by [`settle`](Self::settle).
    pub fn prepare(&mut self, label: &Label<'_>, frames: &[Frame]) {
        for frame in frames {
            let mark = self.put(label, frame);
            self.marks.push((label.interface, mark));
        }
    }

    /// Says how many of the frames that were prepared the port has accepted: those after them are taken back.
    pub fn settle(&mut self, sent: usize) {
        let mut marks = mem::take(&mut self.marks);
        if let Some(mark) = marks.iter().skip(sent).find_map(|(_, mark)| *mark) {
            self.rewind(mark);
        }
        for (interface, _) in marks.iter().take(sent).filter(|(_, mark)| mark.is_none()) {
            self.miss(*interface);
        }
        marks.clear();
        self.marks = marks;
    }

    /// Hands full chunks to the thread, and what is in the present one if the thread waits for it. To be called once a turn.
    pub fn hand_over(&mut self) {
        if self.filled.is_empty() && self.bytes.is_empty() {
            return;
        }
        if self.filled.is_empty() && !self.belt.full.is_empty() {
            // While the thread is busy the chunk may as well fill.
            return;
        }
        if !self.bytes.is_empty()
            && self.belt.full.is_empty()
            && let Some(next) = self.belt.spare.pop()
        {
            self.fill(next);
        }
        let mut filled = mem::take(&mut self.filled);
        for chunk in filled.drain(..) {
            // There are no more chunks than places.
            let _ = self.belt.full.push(chunk);
        }
        self.filled = filled;
        self.writer.unpark();
    }

    /// Copies a frame into the chunk, or the next. Returns what was before, or `None` when it is missed.
    fn put(&mut self, label: &Label<'_>, frame: &Frame) -> Option<Mark> {
        if self.shared.is_full.load(Ordering::Relaxed) {
            return None;
        }
        let captured = frame.total().min(self.snap_len);
        let mark = Mark { filled: self.filled.len(), length: self.bytes.len(), frames: self.frames };
        if self.bytes.len() + captured + pcap::FRAME_OVERHEAD > CHUNK {
            let next = self.belt.spare.pop()?;
            self.fill(next);
        }
        let mut left = captured;
        let parts = frame.segments().map(|segment| {
            let part = &segment[..segment.len().min(left)];
            left -= part.len();
            part
        });
        let label = Label { queue: Some(self.queue), ..*label };
        pcap::put_frame(&mut self.bytes, &label, parts, frame.total());
        self.frames[label.interface as usize] += 1;
        Some(mark)
    }

    /// Puts the present chunk to the full ones, and begins the next.
    fn fill(&mut self, next: Vec<u8>) {
        let bytes = mem::replace(&mut self.bytes, next);
        self.filled.push(Chunk { bytes, frames: mem::take(&mut self.frames) });
    }

    /// Back to what was before a frame.
    fn rewind(&mut self, mark: Mark) {
        while self.filled.len() > mark.filled {
            let Some(Chunk { bytes, .. }) = self.filled.pop() else { return };
            let mut later = mem::replace(&mut self.bytes, bytes);
            later.clear();
            // There are no more chunks than places.
            let _ = self.belt.spare.push(later);
        }
        self.bytes.truncate(mark.length);
        self.frames = mark.frames;
    }

    fn miss(&mut self, interface: u32) {
        let counts = if self.shared.is_full.load(Ordering::Relaxed) { &self.belt.beyond } else { &self.belt.missed };
        let count = &counts[interface as usize];
        // Nobody else writes it.
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.fill(Vec::new());
        }
        for chunk in self.filled.drain(..) {
            let _ = self.belt.full.push(chunk);
        }
        self.belt.is_over.store(true, Ordering::Release);
        self.writer.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::frame::{Batch, Pool};
    use crate::pcap::{Direction, PcapReader, Record};

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
        pcap::put_statistics(&mut expected, interface, Duration::ZERO, 0, 0);
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
        let outbound = Label { direction: Some(Direction::Outbound), comment: "said", ..inbound(0, 8) };
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
        for turns_together in [1, 50] {
            let disk = Disk::default();
            let options = CaptureOptions { max_bytes: 10_000, snap_len: 96, ..CaptureOptions::default() };
            let (file, mut taps) = file(&disk, options, 1);
            let mut pool = Pool::heap(64, 2048, 64);
            let frames = batch(&mut pool, (0..20).map(|i| vec![i; 1500]));
            for i in 0..50 {
                frames.iter().for_each(|frame| taps[0].record(&inbound(0, 0), frame));
                if i % turns_together == 0 {
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
        // What comes later goes nowhere.
        taps[0].record(&inbound(0, 0), &frames[0]);
        taps[0].hand_over();
        drop(taps);
        assert_eq!(records(&disk).len(), 1);
        frames.into_iter().for_each(|frame| pool.put(frame));
    }
}
