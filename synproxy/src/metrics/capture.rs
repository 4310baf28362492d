//! Captures while running: which frames go to which file, started and stopped while the workers run.
//!
//! [`Captures`] is the control side, shared and cheap to clone. Each worker has a [`CaptureTap`], which checks once an iteration whether
//! something has changed and holds the taps of the open files; without any it costs one branch a batch. `pktio::capture` writes
//! the frames to disk.

use crate::process::privileges;
use ::control::{Capture, CaptureKind as Kind, CaptureLimits as Limits};
use pktio::capture::{CaptureFile, CaptureOptions, CaptureStatistics, ExistingFile, Tap};
use pktio::pcap::{Direction, InterfaceDescription, Label};
use pktio::{Batch, Frame};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tcpstate::{DropReason, Instant, Side};
use tracing::info;

/// How long the end of a capture waits for workers to release it: longer than they ever sleep.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether a capture of this kind includes frames that went in this direction at this port.
fn includes(kind: Kind, side: Side, direction: Direction) -> bool {
    match kind {
        Kind::Received => direction == Direction::Inbound,
        Kind::Sent => direction == Direction::Outbound,
        Kind::Lan => side == Side::Lan,
        Kind::Wan => side == Side::Wan,
        Kind::Drops => false,
    }
}

/// A capture as the control protocol describes it.
fn described(kind: Kind, path: &Path, statistics: CaptureStatistics) -> Capture {
    let CaptureStatistics { captured, missed, beyond } = statistics;
    Capture { kind, path: path.to_owned(), captured, missed, beyond }
}

/// The control side of all captures. Their files are complete when the last clone and the workers are gone, or after
/// [`Captures::finish`].
#[derive(Clone, Default)]
pub struct Captures {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Incremented with every change.
    change: AtomicU32,
    plan: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    /// The interfaces of every file: LAN and WAN.
    interfaces: [InterfaceDescription; 2],
    files: [Option<CaptureFile>; Kind::ALL.len()],
    /// By worker and kind: what the worker is to do next.
    changes: Vec<[Change; Kind::ALL.len()]>,
}

/// What a worker is to do about a kind of capture.
#[derive(Default)]
enum Change {
    /// Go on.
    #[default]
    Nothing,
    /// Release its tap.
    Stop,
    /// Take this tap.
    Start(Tap, Limits),
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        // The plan is consistent at any time, so a panic under the lock does no harm.
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.change.fetch_add(1, Ordering::Release);
    }
}

impl Captures {
    /// No captures yet, for this many workers between these two ports, named as on the command line.
    pub fn new(workers: usize, lan: &str, wan: &str) -> Self {
        let describe = |name: &str, port| InterfaceDescription {
            name: name.to_owned(),
            description: format!("{name} port {port}"),
            snap_len: 0,
        };
        let plan = Plan {
            interfaces: [describe("lan", lan), describe("wan", wan)],
            files: Default::default(),
            changes: (0..workers).map(|_| Default::default()).collect(),
        };
        Self { shared: Arc::new(Shared { change: AtomicU32::new(0), plan: Mutex::new(plan) }) }
    }

    /// Starts to capture frames of a kind into `path`, which is created.
    ///
    /// # Errors
    /// When the file cannot be created, or exists and must not be overwritten, or a capture of the kind runs already.
    pub fn start(&self, kind: Kind, path: &Path, limits: Limits, existing: ExistingFile) -> io::Result<()> {
        let mut plan = self.shared.plan();
        if let Some(running) = &plan.files[kind as usize] {
            let text = format!("{} frames are being captured already, into {}", kind.name(), running.path().display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let options = CaptureOptions {
            snap_len: limits.frame_bytes.into(),
            max_bytes: limits.file_bytes,
            ..CaptureOptions::default()
        };
        let workers = plan.changes.len();
        let (file, taps) =
            CaptureFile::create(path, existing, &plan.interfaces, options, workers, prepare_writer_thread)?;
        info!("{}: capturing {} frames, up to {} bytes", path.display(), kind.name(), limits.file_bytes);
        // Together the workers keep to the rate.
        let share = limits.drops_a_second.div_ceil(plan.changes.len().max(1) as u32);
        for (changes, tap) in plan.changes.iter_mut().zip(taps) {
            changes[kind as usize] = Change::Start(tap, Limits { drops_a_second: share, ..limits });
        }
        plan.files[kind as usize] = Some(file);
        self.shared.changed();
        Ok(())
    }

    /// Ends the capture of frames of a kind and returns its result; `None` if there was none. Waits until the workers have released
    /// their taps, which takes as long as the longest sleep of a worker.
    pub fn stop(&self, kind: Kind) -> Option<Capture> {
        let file = {
            let mut plan = self.shared.plan();
            let file = plan.files[kind as usize].take()?;
            for changes in &mut plan.changes {
                // A tap that its worker has not taken yet is dropped here.
                changes[kind as usize] = Change::Stop;
            }
            self.shared.changed();
            file
        };
        let path = file.path().to_path_buf();
        let statistics = file.finish(RELEASE_TIMEOUT);
        let CaptureStatistics { captured, missed, beyond } = statistics;
        info!(
            "{}: {captured} {} frames captured, {missed} missed while the disk was busy, {beyond} beyond the size limit",
            path.display(),
            kind.name()
        );
        Some(described(kind, &path, statistics))
    }

    /// The running captures, with what they hold so far.
    pub fn running(&self) -> Vec<Capture> {
        let plan = self.shared.plan();
        let files = plan.files.iter().zip(Kind::ALL).filter_map(|(file, kind)| Some((file.as_ref()?, kind)));
        files.map(|(file, kind)| described(kind, file.path(), file.statistics())).collect()
    }

    /// Ends all captures and returns their results.
    pub fn finish(&self) -> Vec<Capture> {
        Kind::ALL.into_iter().filter_map(|kind| self.stop(kind)).collect()
    }

    /// The tap of worker `number`.
    pub fn tap(&self, number: usize) -> CaptureTap {
        CaptureTap { shared: Arc::clone(&self.shared), number, seen: 0, frames: None, drops: None }
    }
}

/// Prepares the calling thread to write a capture file and do nothing else.
fn prepare_writer_thread() {
    // The raised priority of the workers is not for disk writes.
    if rustix::process::getpriority_process(None).is_ok_and(|nice| nice < 0) {
        let _ = rustix::process::setpriority_process(None, 0);
    }
    privileges::drop_capabilities();
}

/// The side of one worker.
#[derive(Default)]
pub struct CaptureTap {
    shared: Arc<Shared>,
    number: usize,
    /// The last change that was applied.
    seen: u32,
    frames: Option<Box<FrameTaps>>,
    drops: Option<Box<DropTap>>,
}

impl CaptureTap {
    /// Applies what has changed. To be called once an iteration.
    #[inline]
    pub fn update(&mut self) {
        if self.shared.change.load(Ordering::Relaxed) != self.seen {
            self.apply_changes();
        }
    }

    #[cold]
    fn apply_changes(&mut self) {
        let shared = Arc::clone(&self.shared);
        // The holder of the lock creates files; the next iteration is early enough.
        let Ok(mut plan) = shared.plan.try_lock() else { return };
        self.seen = shared.change.load(Ordering::Relaxed);
        let Some(changes) = plan.changes.get_mut(self.number) else { return };
        for (change, kind) in changes.iter_mut().zip(Kind::ALL) {
            match (std::mem::take(change), kind) {
                (Change::Nothing, _) => {}
                (Change::Stop, Kind::Drops) => self.drops = None,
                (Change::Start(tap, limits), Kind::Drops) => self.drops = Some(Box::new(DropTap::new(tap, limits))),
                (Change::Stop, _) => self.set(kind, None),
                (Change::Start(tap, _), _) => self.set(kind, Some(tap)),
            }
        }
    }

    fn set(&mut self, kind: Kind, tap: Option<Tap>) {
        let frames = self.frames.get_or_insert_default();
        frames.0[kind as usize] = tap;
        if frames.0.iter().all(Option::is_none) {
            self.frames = None;
        }
    }

    /// The taps of frames received and sent; `None` when no such frames are captured.
    #[inline]
    pub fn frames(&mut self) -> Option<&mut FrameTaps> {
        self.frames.as_deref_mut()
    }

    /// Takes the tap of dropped frames out, to be returned by [`CaptureTap::return_drops`]; `None` when none are captured.
    #[inline]
    pub fn take_drops(&mut self) -> Option<Box<DropTap>> {
        self.drops.take()
    }

    /// Puts the tap of dropped frames back.
    pub fn return_drops(&mut self, drops: Box<DropTap>) {
        self.drops = Some(drops);
    }

    /// Hands what was captured to the writing thread. To be called once an iteration.
    #[inline]
    pub fn hand_over(&mut self) {
        if let Some(frames) = &mut self.frames {
            frames.0.iter_mut().flatten().for_each(Tap::hand_over);
        }
        if let Some(drops) = &mut self.drops {
            drops.tap.hand_over();
        }
    }
}

/// The taps of frames received and sent.
#[derive(Default)]
pub struct FrameTaps([Option<Tap>; Kind::ALL.len()]);

impl FrameTaps {
    fn including(&mut self, side: Side, direction: Direction) -> impl Iterator<Item = &mut Tap> {
        let taps = self.0.iter_mut().zip(Kind::ALL);
        taps.filter_map(move |(tap, kind)| tap.as_mut().filter(|_| includes(kind, side, direction)))
    }

    /// Copies what was just received.
    pub fn received(&mut self, side: Side, frames: &Batch) {
        if frames.is_empty() {
            return;
        }
        let label = label(side, Some(Direction::Inbound));
        for tap in self.including(side, Direction::Inbound) {
            frames.iter().for_each(|frame| tap.record(&label, frame));
        }
    }

    /// Copies what is about to be sent. To be followed by [`FrameTaps::sent`].
    pub fn about_to_send(&mut self, side: Side, frames: &Batch) {
        if frames.is_empty() {
            return;
        }
        let label = label(side, Some(Direction::Outbound));
        for tap in self.including(side, Direction::Outbound) {
            tap.prepare(&label, frames);
        }
    }

    /// How many of these were sent.
    pub fn sent(&mut self, side: Side, count: usize) {
        for tap in self.including(side, Direction::Outbound) {
            tap.settle(count);
        }
    }
}

/// What every frame of a batch has in common.
fn label(side: Side, direction: Option<Direction>) -> Label<'static> {
    let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    Label { interface: side as u32, time, direction, ..Label::default() }
}

/// Sees every frame that is dropped, before it goes back into the pool.
pub trait DropObserver {
    /// A frame that came in by `side` is about to be dropped.
    fn dropped(&mut self, side: Side, frame: &Frame, reason: DropReason);
}

/// An observer that does nothing.
pub struct NoObserver;

impl DropObserver for NoObserver {
    #[inline]
    fn dropped(&mut self, _: Side, _: &Frame, _: DropReason) {}
}

/// The tap of dropped frames, which records a limited number of each reason in a second.
pub struct DropTap {
    tap: Tap,
    a_second: u32,
    /// How many more are recorded in this second, by reason.
    left: [u32; DropReason::COUNT],
    /// When that second began.
    since: Instant,
}

impl DropTap {
    fn new(tap: Tap, limits: Limits) -> Self {
        Self {
            tap,
            a_second: limits.drops_a_second,
            left: [limits.drops_a_second; DropReason::COUNT],
            since: Instant::default(),
        }
    }

    /// Sets the time. To be called once a batch.
    pub fn set_now(&mut self, now: Instant) {
        if now.since(self.since) >= Duration::from_secs(1) {
            self.since = now;
            self.left = [self.a_second; DropReason::COUNT];
        }
    }
}

impl DropObserver for DropTap {
    fn dropped(&mut self, side: Side, frame: &Frame, reason: DropReason) {
        let left = &mut self.left[reason as usize];
        if *left > 0 {
            *left -= 1;
            let label = Label { comment: reason.label(), ..label(side, Some(Direction::Inbound)) };
            self.tap.record(&label, frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pktio::Pool;
    use pktio::pcap::{PcapReader, Record};
    use std::path::PathBuf;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("captures-{}-{name}.pcapng", std::process::id())))
        }

        fn records(&self) -> Vec<Record> {
            let mut reader = PcapReader::open(&self.0).unwrap();
            let (mut all, mut record) = (Vec::new(), Record::default());
            while reader.read(&mut record).unwrap() {
                all.push(record.clone());
            }
            all
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_capture_is_switched_on_and_off_while_a_worker_runs() {
        let file = Scratch::new("switched");
        let captures = Captures::new(1, "eth0", "eth1");
        let mut tap = captures.tap(0);
        let mut pool = Pool::heap(4, 256, 64);
        let frames = vec![pool.adopt(&[7; 60]).unwrap()];
        let iterate = |tap: &mut CaptureTap| {
            tap.update();
            for side in Side::BOTH {
                if let Some(taps) = tap.frames() {
                    taps.received(side, &frames);
                    taps.about_to_send(side, &frames);
                    taps.sent(side, 1);
                }
            }
            tap.hand_over();
        };
        iterate(&mut tap);
        captures.start(Kind::Wan, &file.0, Limits::default(), ExistingFile::Truncate).unwrap();
        let again = captures.start(Kind::Wan, &file.0, Limits::default(), ExistingFile::Truncate).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        iterate(&mut tap);
        assert_eq!(captures.running().len(), 1);
        let summary = std::thread::scope(|scope| {
            let end = scope.spawn(|| captures.stop(Kind::Wan).expect("it is running"));
            while !end.is_finished() {
                tap.update();
                std::thread::yield_now();
            }
            end.join().unwrap()
        });
        assert!(tap.frames().is_none() && captures.running().is_empty() && captures.stop(Kind::Wan).is_none());
        iterate(&mut tap);
        assert_eq!(summary, Capture { kind: Kind::Wan, path: file.0.clone(), captured: 2, missed: 0, beyond: 0 });
        let seen: Vec<_> = file.records().iter().map(|r| (r.interface, r.direction.unwrap())).collect();
        assert_eq!(seen, [(1, Direction::Inbound), (1, Direction::Outbound)]);
        frames.into_iter().for_each(|frame| pool.put(frame));
    }

    #[test]
    fn drops_are_sampled_by_reason_and_second() {
        let file = Scratch::new("drops");
        let captures = Captures::new(2, "eth0", "eth1");
        let mut tap = captures.tap(1);
        captures
            .start(Kind::Drops, &file.0, Limits { drops_a_second: 6, ..Limits::default() }, ExistingFile::Refuse)
            .unwrap();
        tap.update();
        let mut pool = Pool::heap(4, 256, 64);
        let frame = pool.adopt(&[7; 60]).unwrap();
        for second in 1..3 {
            let mut drops = tap.take_drops().expect("drops are captured");
            drops.set_now(Instant::from_secs(second));
            for _ in 0..10 {
                drops.dropped(Side::Wan, &frame, DropReason::BadCookie);
                drops.dropped(Side::Wan, &frame, DropReason::NoFlow);
            }
            tap.return_drops(drops);
        }
        pool.put(frame);
        drop(tap);
        captures.finish();
        // Three a second and reason are this worker's share.
        assert_eq!(file.records().len(), 2 * 2 * 3);
        let bytes = std::fs::read(&file.0).unwrap();
        let said = |word: &str| bytes.windows(word.len()).filter(|w| *w == word.as_bytes()).count();
        assert_eq!((said("bad-cookie"), said("no-flow")), (6, 6));
    }

    #[test]
    fn a_file_that_cannot_be_made_is_refused() {
        let captures = Captures::new(1, "eth0", "eth1");
        let error = captures
            .start(Kind::Sent, Path::new("/nowhere/x.pcapng"), Limits::default(), ExistingFile::Truncate)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(captures.running().is_empty());
    }

    #[test]
    fn a_file_that_is_to_be_kept_is() {
        let (file, link) = (Scratch::new("kept"), Scratch::new("link"));
        std::fs::write(&file.0, "kept").unwrap();
        std::os::unix::fs::symlink("nothing", &link.0).unwrap();
        let captures = Captures::new(1, "eth0", "eth1");
        for path in [&file.0, &link.0] {
            let error = captures.start(Kind::Sent, path, Limits::default(), ExistingFile::Refuse).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(std::fs::read_to_string(&file.0).unwrap(), "kept");
        captures.start(Kind::Sent, &file.0, Limits::default(), ExistingFile::Truncate).unwrap();
        assert_eq!(captures.finish().len(), 1);
        assert!(file.records().is_empty());
    }
}
