//! Wraps any port and writes what it receives and transmits to a pcapng file.
//!
//! The worker only copies: frames are put into chunks of memory taken at the start, and a thread of the file's own writes
//! them. When all chunks are on their way the capture misses frames and counts them; the traffic never waits for a disk.

use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::frame::{Batch, Frame, Pool};
use crate::pcap::{Direction, PcapNgWriter};
use crate::port::{Capabilities, Port, PortStatistics};

/// How much is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureOptions {
    /// Bytes kept of each frame; its real length is noted beside them.
    pub snap_len: usize,
    /// How large the file may grow, in bytes. What comes after is missed, and counted.
    pub max_bytes: u64,
    /// Memory that one port may fill while the disk is busy, in bytes; taken at once, in chunks.
    pub buffer: usize,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        CaptureOptions { snap_len: 9022, max_bytes: 1 << 30, buffer: 4 << 20 }
    }
}

/// What a capture file holds so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CaptureStatistics {
    /// Frames handed to the writing thread.
    pub captured: u64,
    /// Frames missed because the disk was too slow.
    pub missed: u64,
    /// Frames missed because the file is full or could not be written.
    pub beyond: u64,
}

/// The size of a chunk, in bytes, unless a single frame needs more.
const CHUNK: usize = 128 << 10;

/// A capture file that several ports write to. Dropping it waits until all that was captured is written.
///
/// ```no_run
/// # use pktio::{capture::{CaptureFile, CaptureOptions}, memory};
/// let file = CaptureFile::create("all.pcapng", &["lan", "wan"], CaptureOptions::default())?;
/// let (lan, _wire) = memory::pair(16);
/// let lan = file.attach(lan, 0);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct CaptureFile {
    path: PathBuf,
    options: CaptureOptions,
    interfaces: usize,
    full: Option<SyncSender<Full>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    captured: AtomicU64,
    missed: AtomicU64,
    beyond: AtomicU64,
    error: Mutex<Option<io::Error>>,
}

/// A chunk on its way to the writing thread.
enum Full {
    Frames {
        bytes: Vec<u8>,
        frames: u64,
        /// Where the chunk goes back to.
        home: Sender<Vec<u8>>,
    },
    /// The file is being closed.
    End,
}

impl CaptureFile {
    /// Creates the file, or empties it, with an interface for each name, and starts its thread.
    ///
    /// # Errors
    ///
    /// When the file cannot be created or written, or the thread not started.
    pub fn create(path: impl AsRef<Path>, interfaces: &[&str], options: CaptureOptions) -> io::Result<CaptureFile> {
        let file = File::create(&path)?;
        CaptureFile::new(path, file, interfaces, options)
    }

    /// As [`create`](Self::create), to any output; `path` is what it is called.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub fn new(
        path: impl AsRef<Path>,
        mut output: impl Write + Send + 'static,
        interfaces: &[&str],
        options: CaptureOptions,
    ) -> io::Result<CaptureFile> {
        let header = PcapNgWriter::new(Vec::new(), interfaces)?;
        output.write_all(header.get_ref())?;
        let room = options.max_bytes.saturating_sub(header.written());
        // Every chunk of every port fits, so that only the want of a free chunk makes a port miss frames.
        let (full, chunks) = sync_channel(1024);
        let shared = Arc::new(Shared::default());
        let counters = shared.clone();
        let thread = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || write_chunks(&mut output, room, &chunks, &counters))?;
        Ok(CaptureFile {
            path: path.as_ref().to_path_buf(),
            options,
            interfaces: interfaces.len(),
            full: Some(full),
            shared,
            thread: Some(thread),
        })
    }

    /// Wraps `port`: its frames are captured as those of the interface with this index.
    ///
    /// # Panics
    ///
    /// When the file has no such interface.
    pub fn attach<P: Port>(&self, port: P, interface: u32) -> Capture<P> {
        assert!((interface as usize) < self.interfaces, "interface {interface} of {}", self.interfaces);
        let size = CHUNK.max(self.options.snap_len + 256);
        let chunks = (self.options.buffer / size).max(2);
        let (home, idle) = channel();
        Capture {
            port,
            interface,
            snap_len: self.options.snap_len,
            encoder: PcapNgWriter::headless(Vec::with_capacity(size)),
            frames: 0,
            filled: Vec::with_capacity(chunks),
            marks: Vec::new(),
            spare: (1..chunks).map(|_| Vec::with_capacity(size)).collect(),
            idle,
            travelling: 0,
            size,
            full: self.full.clone().expect("taken only by drop"),
            home,
            shared: self.shared.clone(),
            clock: Box::new(|| SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()),
        }
    }

    /// What has been captured, and what was missed.
    pub fn statistics(&self) -> CaptureStatistics {
        self.shared.statistics()
    }

    /// The first error of writing, once; the file holds what came before it.
    pub fn take_error(&self) -> Option<io::Error> {
        self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for CaptureFile {
    fn drop(&mut self) {
        if let Some(full) = self.full.take() {
            // Ports that are still open find the channel closed from here on.
            let _ = full.send(Full::End);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn statistics(&self) -> CaptureStatistics {
        CaptureStatistics {
            captured: self.captured.load(Ordering::Relaxed),
            missed: self.missed.load(Ordering::Relaxed),
            beyond: self.beyond.load(Ordering::Relaxed),
        }
    }
}

/// The writing thread: at most `room` bytes, whole chunks.
fn write_chunks(output: &mut impl Write, mut room: u64, chunks: &Receiver<Full>, shared: &Shared) {
    for full in chunks {
        let Full::Frames { mut bytes, frames, home } = full else { break };
        // One chunk that does not fit ends the file: a gap in the middle would be worse than an early end.
        let fits = bytes.len() as u64 <= room;
        room = if fits { room - bytes.len() as u64 } else { 0 };
        match if fits { output.write_all(&bytes) } else { Ok(()) } {
            Ok(()) if fits => shared.captured.fetch_add(frames, Ordering::Relaxed),
            Ok(()) => shared.beyond.fetch_add(frames, Ordering::Relaxed),
            Err(error) => {
                shared.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                room = 0;
                shared.beyond.fetch_add(frames, Ordering::Relaxed)
            }
        };
        bytes.clear();
        // The port may be gone.
        let _ = home.send(bytes);
    }
    if let Err(error) = output.flush() {
        shared.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// A port whose frames are captured; see [`CaptureFile::attach`]. Drop it before the file, so that its last frames are
/// written.
pub struct Capture<P: Port> {
    port: P,
    interface: u32,
    snap_len: usize,
    /// Writes into the chunk being filled.
    encoder: PcapNgWriter<Vec<u8>>,
    /// Frames in that chunk.
    frames: u64,
    /// Chunks filled during a call, with their frames; sent at its end.
    filled: Vec<(Vec<u8>, u64)>,
    /// For each frame of a batch being transmitted, the state before it; `None` when the frame was missed.
    marks: Vec<Option<Mark>>,
    /// Empty chunks.
    spare: Vec<Vec<u8>>,
    /// Where chunks come back.
    idle: Receiver<Vec<u8>>,
    /// Chunks sent and not back yet.
    travelling: usize,
    /// Bytes of a chunk.
    size: usize,
    full: SyncSender<Full>,
    home: Sender<Vec<u8>>,
    shared: Arc<Shared>,
    clock: Box<dyn FnMut() -> Duration + Send>,
}

#[derive(Clone, Copy)]
struct Mark {
    filled: usize,
    length: usize,
    frames: u64,
}

impl<P: Port> Capture<P> {
    /// Takes the times of frames from `clock`, since 1970 in UTC, instead of the system's clock.
    pub fn set_clock(&mut self, clock: impl FnMut() -> Duration + Send + 'static) {
        self.clock = Box::new(clock);
    }

    /// The wrapped port.
    pub fn get_ref(&self) -> &P {
        &self.port
    }

    /// The wrapped port, to be set up; what passes through it directly is not captured.
    pub fn get_mut(&mut self) -> &mut P {
        &mut self.port
    }

    /// An empty chunk.
    fn chunk(&mut self) -> Option<Vec<u8>> {
        while let Ok(chunk) = self.idle.try_recv() {
            self.travelling -= 1;
            self.spare.push(chunk);
        }
        self.spare.pop()
    }

    fn keep(&mut self, mut chunk: Vec<u8>) {
        chunk.clear();
        self.spare.push(chunk);
    }

    /// Copies a frame into the chunk, or the next. Returns what was before, or `None` when there is no chunk to be had.
    fn record(&mut self, frame: &Frame, direction: Direction, time: Duration) -> Option<Mark> {
        let captured = frame.total().min(self.snap_len);
        // The block's fields, its option and its padding take less than this.
        if self.encoder.output().len() + captured + 64 > self.size {
            let next = self.chunk()?;
            let full = mem::replace(self.encoder.output(), next);
            self.filled.push((full, mem::take(&mut self.frames)));
        }
        let mark = Mark { filled: self.filled.len(), length: self.encoder.output().len(), frames: self.frames };
        let mut left = captured;
        let parts = frame.segments().map(|segment| {
            let part = &segment[..segment.len().min(left)];
            left -= part.len();
            part
        });
        // Writing to memory does not fail.
        let _ = self.encoder.write(self.interface, time, Some(direction), parts, frame.total());
        self.frames += 1;
        Some(mark)
    }

    /// Back to what was before a frame that the port did not accept.
    fn rewind(&mut self, mark: Mark) {
        while self.filled.len() > mark.filled {
            // The condition says that there is one.
            let Some((before, _)) = self.filled.pop() else { return };
            let chunk = mem::replace(self.encoder.output(), before);
            self.keep(chunk);
        }
        self.encoder.output().truncate(mark.length);
        self.frames = mark.frames;
    }

    fn miss(&mut self, frames: u64) {
        if frames > 0 {
            self.shared.missed.fetch_add(frames, Ordering::Relaxed);
        }
    }

    /// Hands the filled chunks to the writing thread.
    fn send(&mut self) {
        let mut filled = mem::take(&mut self.filled);
        for (bytes, frames) in filled.drain(..) {
            let full = Full::Frames { bytes, frames, home: self.home.clone() };
            match self.full.try_send(full) {
                Ok(()) => self.travelling += 1,
                // The thread is behind by more chunks than any port has, or the file is closed.
                Err(TrySendError::Full(full) | TrySendError::Disconnected(full)) => {
                    if let Full::Frames { bytes, frames, .. } = full {
                        self.miss(frames);
                        self.keep(bytes);
                    }
                }
            }
        }
        self.filled = filled;
    }

    /// Sends what there is, so that the file does not lag behind a quiet port.
    fn send_rest(&mut self) {
        if self.frames > 0
            && let Some(next) = self.chunk()
        {
            let rest = mem::replace(self.encoder.output(), next);
            self.filled.push((rest, mem::take(&mut self.frames)));
            self.send();
        }
    }
}

impl<P: Port> Port for Capture<P> {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        let before = batch.len();
        let received = self.port.receive(batch, max, pool);
        if received > 0 {
            let time = (self.clock)();
            let missed = batch[before..].iter().filter(|f| self.record(f, Direction::Inbound, time).is_none()).count();
            self.miss(missed as u64);
            self.send();
        }
        received
    }

    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        let mut marks = mem::take(&mut self.marks);
        marks.clear();
        if !batch.is_empty() {
            let time = (self.clock)();
            // Before the port has them: what it accepts is gone.
            marks.extend(batch.iter().map(|frame| self.record(frame, Direction::Outbound, time)));
        }
        let sent = self.port.transmit(batch, pool);
        let (accepted, refused) = marks.split_at(sent.min(marks.len()));
        if let Some(mark) = refused.iter().flatten().next() {
            self.rewind(*mark);
        }
        let missed = accepted.iter().filter(|mark| mark.is_none()).count();
        self.marks = marks;
        self.miss(missed as u64);
        self.send();
        sent
    }

    fn flush(&mut self, pool: &mut Pool) {
        self.port.flush(pool);
        if self.frames > 0 {
            while self.idle.try_recv().map(|chunk| self.spare.push(chunk)).is_ok() {
                self.travelling -= 1;
            }
            // While the thread is busy the chunk may as well fill.
            if self.travelling == 0 {
                self.send_rest();
            }
        }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        self.port.poll_fd()
    }

    fn is_exhausted(&self) -> bool {
        self.port.is_exhausted()
    }

    fn capabilities(&self) -> Capabilities {
        self.port.capabilities()
    }

    fn statistics(&self) -> PortStatistics {
        self.port.statistics()
    }
}

impl<P: Port> Drop for Capture<P> {
    fn drop(&mut self) {
        let rest = mem::take(self.encoder.output());
        if self.frames > 0 {
            self.filled.push((rest, self.frames));
        }
        self.send();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::memory;
    use crate::pcap::{PcapReader, Record};

    /// Keeps what is written; waits for a token before each write when there is a gate.
    #[derive(Clone, Default)]
    struct Disk {
        bytes: Arc<Mutex<Vec<u8>>>,
        gate: Option<Arc<Mutex<mpsc::Receiver<()>>>>,
        broken: bool,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut kept = self.bytes.lock().unwrap();
            // The header of the file passes.
            if !kept.is_empty() {
                if self.broken {
                    return Err(io::Error::from(io::ErrorKind::StorageFull));
                }
                drop(kept);
                if let Some(gate) = &self.gate {
                    let _ = gate.lock().unwrap().recv();
                }
                kept = self.bytes.lock().unwrap();
            }
            kept.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn records(disk: &Disk) -> Vec<Record> {
        let bytes = disk.bytes.lock().unwrap().clone();
        let mut reader = PcapReader::new("capture", Box::new(io::Cursor::new(bytes))).unwrap();
        let (mut all, mut record) = (Vec::new(), Record::default());
        while reader.read(&mut record).unwrap() {
            all.push(record.clone());
        }
        all
    }

    fn file(disk: &Disk, options: CaptureOptions) -> CaptureFile {
        CaptureFile::new("capture", disk.clone(), &["lan", "wan"], options).unwrap()
    }

    fn batch(pool: &mut Pool, frames: impl IntoIterator<Item = Vec<u8>>) -> Batch {
        frames
            .into_iter()
            .map(|bytes| {
                let mut frame = pool.take().unwrap();
                frame.fill(&bytes);
                frame
            })
            .collect()
    }

    #[test]
    fn both_directions_are_captured_with_their_marks_and_times() {
        let disk = Disk::default();
        let file = file(&disk, CaptureOptions::default());
        let (port, mut wire) = memory::pair(16);
        let mut port = file.attach(port, 1);
        let mut now = Duration::from_secs(1000);
        port.set_clock(move || {
            now += Duration::from_nanos(1);
            now
        });
        let (mut pool, mut frames) = (Pool::heap(8, 256, 64), Batch::new());
        wire.push(&[1; 60]);
        // A frame in several buffers.
        wire.push(&[2; 500]);
        port.receive(&mut frames, 8, &mut pool);
        port.transmit(&mut frames, &mut pool);
        port.flush(&mut pool);
        drop(port);
        drop(file);
        let all = records(&disk);
        let seen: Vec<_> = all.iter().map(|r| (r.bytes[0], r.bytes.len(), r.time.subsec_nanos())).collect();
        assert_eq!(seen, [(1, 60, 1), (2, 500, 1), (1, 60, 2), (2, 500, 2)]);
        // The flags stand at the end of each block: inbound, then outbound.
        let bytes = disk.bytes.lock().unwrap();
        let flags = |value: u8| bytes.windows(8).filter(|w| *w == [2, 0, 4, 0, value, 0, 0, 0]).count();
        assert_eq!((flags(1), flags(2)), (2, 2));
    }

    #[test]
    fn what_the_port_refused_is_not_captured() {
        let disk = Disk::default();
        // Chunks of which each holds about twelve such frames.
        let file = file(&disk, CaptureOptions::default());
        let (port, mut wire) = memory::pair(40);
        let mut port = file.attach(port, 0);
        let mut pool = Pool::heap(100, 9216, 64);
        let mut frames = batch(&mut pool, (0..100).map(|i| vec![i; 9000]));
        assert_eq!(port.transmit(&mut frames, &mut pool), 40);
        assert_eq!(port.transmit(&mut frames, &mut pool), 0);
        while wire.pop().is_some() {}
        assert_eq!(port.transmit(&mut frames, &mut pool), 40);
        drop((port, file));
        let seen: Vec<u8> = records(&disk).iter().map(|record| record.bytes[0]).collect();
        assert_eq!(seen, (0..80).collect::<Vec<u8>>());
        frames.drain(..).for_each(|frame| pool.put(frame));
    }

    #[test]
    fn a_slow_disk_costs_the_capture_frames_and_the_traffic_nothing() {
        let (open, gate) = mpsc::channel();
        let disk = Disk { gate: Some(Arc::new(Mutex::new(gate))), ..Disk::default() };
        let file = file(&disk, CaptureOptions { buffer: 4 * CHUNK, ..CaptureOptions::default() });
        let (port, mut wire) = memory::pair(64);
        let mut port = file.attach(port, 0);
        let mut pool = Pool::heap(64, 9216, 64);
        for _ in 0..10 {
            let mut frames = batch(&mut pool, (0..20).map(|i| vec![i; 9000]));
            assert_eq!(port.transmit(&mut frames, &mut pool), 20);
            port.flush(&mut pool);
            while wire.pop().is_some() {}
        }
        let missed = file.statistics().missed;
        assert!((120..=180).contains(&missed), "{missed}");
        drop(open);
        drop(port);
        let shared = file.shared.clone();
        drop(file);
        let statistics = shared.statistics();
        assert_eq!(statistics.captured + statistics.missed, 200);
        assert_eq!(records(&disk).len() as u64, statistics.captured);
    }

    #[test]
    fn the_file_stays_within_its_bound_and_ends_with_a_whole_frame() {
        let disk = Disk::default();
        let file = file(&disk, CaptureOptions { max_bytes: 10_000, snap_len: 96, ..CaptureOptions::default() });
        let (port, mut wire) = memory::pair(64);
        let mut port = file.attach(port, 0);
        let mut pool = Pool::heap(64, 2048, 64);
        for _ in 0..50 {
            let mut frames = batch(&mut pool, (0..20).map(|i| vec![i; 1500]));
            port.transmit(&mut frames, &mut pool);
            port.flush(&mut pool);
            while wire.pop().is_some() {}
        }
        drop(port);
        let shared = file.shared.clone();
        drop(file);
        let all = records(&disk);
        assert!(disk.bytes.lock().unwrap().len() <= 10_000 && !all.is_empty());
        assert!(all.iter().all(|record| record.bytes.len() == 96 && record.original_len == 1500));
        let CaptureStatistics { captured, missed, beyond } = shared.statistics();
        assert_eq!((captured, captured + missed + beyond), (all.len() as u64, 1000));
        assert!(beyond > 0);
    }

    #[test]
    fn a_broken_disk_is_reported_once_and_the_traffic_goes_on() {
        let disk = Disk { broken: true, ..Disk::default() };
        let file = file(&disk, CaptureOptions::default());
        let (port, mut wire) = memory::pair(64);
        let mut port = file.attach(port, 0);
        let mut pool = Pool::heap(4, 2048, 64);
        for _ in 0..3 {
            let mut frames = batch(&mut pool, [vec![7; 60]]);
            assert_eq!(port.transmit(&mut frames, &mut pool), 1);
            assert!(wire.pop().is_some());
        }
        drop(port);
        let shared = file.shared.clone();
        drop(file);
        assert_eq!(shared.statistics(), CaptureStatistics { captured: 0, missed: 0, beyond: 3 });
        assert_eq!(shared.error.lock().unwrap().take().unwrap().kind(), io::ErrorKind::StorageFull);
    }
}
