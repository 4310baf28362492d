//! Captures while running: which frames go to which file, switched on and off while workers are at work.
//!
//! The [`Recorder`] is the operator's end, shared and cheap to clone. Each worker has a [`Witness`], which looks once a turn whether
//! something has changed, and holds the taps of the files that are open; without any it is one branch a batch. How frames
//! get to the disk is `pktio::capture`'s story.

use crate::process::privileges as identity;
use ::control::{Capture, CaptureKind as Kind, CaptureLimits as Limits};
use pktio::capture::{CaptureFile, CaptureOptions, CaptureStatistics, Former, Tap};
use pktio::pcap::{Direction, InterfaceDescription, Label};
use pktio::{Batch, Frame};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tcpstate::{DropReason, Instant, Side};
use tracing::info;

/// How long the end of a capture waits for workers to let go of it: longer than they ever sleep.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether frames that went this way at this port are of this kind.
fn covers(kind: Kind, side: Side, direction: Direction) -> bool {
    match kind {
        Kind::Received => direction == Direction::Inbound,
        Kind::Sent => direction == Direction::Outbound,
        Kind::Lan => side == Side::Lan,
        Kind::Wan => side == Side::Wan,
        Kind::Drops => false,
    }
}

/// A capture as the operator is told of it.
fn told(kind: Kind, path: &Path, statistics: CaptureStatistics) -> Capture {
    let CaptureStatistics { captured, missed, beyond } = statistics;
    Capture { kind, path: path.to_owned(), captured, missed, beyond }
}

/// The operator's end. The captures end, and are whole, when the last clone and the workers are gone, or by [`Recorder::finish`].
#[derive(Clone, Default)]
pub struct Recorder {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Grows with every change.
    change: AtomicU32,
    desk: Mutex<Desk>,
}

#[derive(Default)]
struct Desk {
    /// What the file's interfaces are: LAN and WAN.
    interfaces: [InterfaceDescription; 2],
    files: [Option<CaptureFile>; Kind::ALL.len()],
    /// By worker and kind: a tap it is to take.
    offers: Vec<[Offer; Kind::ALL.len()]>,
}

/// What a worker is to do about a kind of capture.
#[derive(Default)]
enum Offer {
    /// Go on.
    #[default]
    Nothing,
    /// Let go of the tap it has.
    Stop,
    /// Take this one.
    Start(Tap, Limits),
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // The desk is whole at any time.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.change.fetch_add(1, Ordering::Release);
    }
}

impl Recorder {
    /// A recorder for so many workers between these two ports, named as on the command line.
    pub fn new(workers: usize, lan: &str, wan: &str) -> Self {
        let describe = |name: &str, port| InterfaceDescription {
            name: name.to_owned(),
            description: format!("{name} port {port}"),
            snap_len: 0,
        };
        let desk = Desk {
            interfaces: [describe("lan", lan), describe("wan", wan)],
            files: Default::default(),
            offers: (0..workers).map(|_| Default::default()).collect(),
        };
        Self { shared: Arc::new(Shared { change: AtomicU32::new(0), desk: Mutex::new(desk) }) }
    }

    /// Begins to capture frames of a kind into `path`, which is created.
    ///
    /// # Errors
    /// When the file cannot be created, or is there and to be kept, or frames of the kind are being captured already.
    pub fn start(&self, kind: Kind, path: &Path, limits: Limits, former: Former) -> io::Result<()> {
        let mut desk = self.shared.desk();
        if let Some(running) = &desk.files[kind as usize] {
            let told = format!("{} frames are being captured already, into {}", kind.name(), running.path().display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, told));
        }
        let options = CaptureOptions {
            snap_len: limits.frame_bytes.into(),
            max_bytes: limits.file_bytes,
            ..CaptureOptions::default()
        };
        let workers = desk.offers.len();
        let (file, taps) = CaptureFile::create(path, former, &desk.interfaces, options, workers, settle)?;
        info!("{}: capturing {} frames, up to {} bytes", path.display(), kind.name(), limits.file_bytes);
        // Together the workers keep to the rate.
        let share = limits.drops_a_second.div_ceil(desk.offers.len().max(1) as u32);
        for (offers, tap) in desk.offers.iter_mut().zip(taps) {
            offers[kind as usize] = Offer::Start(tap, Limits { drops_a_second: share, ..limits });
        }
        desk.files[kind as usize] = Some(file);
        self.shared.changed();
        Ok(())
    }

    /// Ends the capture of frames of a kind, and says what came of it; `None` if there was none. Waits for the workers to let go,
    /// which takes as long as the longest sleep of a worker.
    pub fn stop(&self, kind: Kind) -> Option<Capture> {
        let file = {
            let mut desk = self.shared.desk();
            let file = desk.files[kind as usize].take()?;
            for offers in &mut desk.offers {
                // A tap that nobody has taken goes here.
                offers[kind as usize] = Offer::Stop;
            }
            self.shared.changed();
            file
        };
        let path = file.path().to_path_buf();
        let statistics = file.finish(PATIENCE);
        let CaptureStatistics { captured, missed, beyond } = statistics;
        info!(
            "{}: {captured} {} frames captured, {missed} missed while the disk was busy, {beyond} beyond what it may hold",
            path.display(),
            kind.name()
        );
        Some(told(kind, &path, statistics))
    }

    /// The captures there are, with what they hold so far.
    pub fn running(&self) -> Vec<Capture> {
        let desk = self.shared.desk();
        let files = desk.files.iter().zip(Kind::ALL).filter_map(|(file, kind)| Some((file.as_ref()?, kind)));
        files.map(|(file, kind)| told(kind, file.path(), file.statistics())).collect()
    }

    /// Ends all captures, and says what came of them.
    pub fn finish(&self) -> Vec<Capture> {
        Kind::ALL.into_iter().filter_map(|kind| self.stop(kind)).collect()
    }

    /// What worker `number` is to hold.
    pub fn witness(&self, number: usize) -> Witness {
        Witness { shared: Arc::clone(&self.shared), number, seen: 0, taps: None, drops: None }
    }
}

/// Makes the calling thread that of a file: it writes, and nothing more.
fn settle() {
    // A worker's priority is not for a disk.
    if rustix::process::getpriority_process(None).is_ok_and(|nice| nice < 0) {
        let _ = rustix::process::setpriority_process(None, 0);
    }
    identity::renounce();
}

/// A worker's end.
#[derive(Default)]
pub struct Witness {
    shared: Arc<Shared>,
    number: usize,
    /// The last change that was looked at.
    seen: u32,
    taps: Option<Box<Taps>>,
    drops: Option<Box<Drops>>,
}

impl Witness {
    /// Looks whether something has changed. To be called once a turn.
    #[inline]
    pub fn attend(&mut self) {
        if self.shared.change.load(Ordering::Relaxed) != self.seen {
            self.catch_up();
        }
    }

    #[cold]
    fn catch_up(&mut self) {
        let shared = Arc::clone(&self.shared);
        // Whoever holds it makes files; the next turn is early enough.
        let Ok(mut desk) = shared.desk.try_lock() else { return };
        self.seen = shared.change.load(Ordering::Relaxed);
        let Some(offers) = desk.offers.get_mut(self.number) else { return };
        for (offer, kind) in offers.iter_mut().zip(Kind::ALL) {
            match (std::mem::take(offer), kind) {
                (Offer::Nothing, _) => {}
                (Offer::Stop, Kind::Drops) => self.drops = None,
                (Offer::Start(tap, limits), Kind::Drops) => self.drops = Some(Box::new(Drops::new(tap, limits))),
                (Offer::Stop, _) => self.set(kind, None),
                (Offer::Start(tap, _), _) => self.set(kind, Some(tap)),
            }
        }
    }

    fn set(&mut self, kind: Kind, tap: Option<Tap>) {
        let taps = self.taps.get_or_insert_default();
        taps.0[kind as usize] = tap;
        if taps.0.iter().all(Option::is_none) {
            self.taps = None;
        }
    }

    /// The taps of frames received and sent; `None` when no such frames are captured.
    #[inline]
    pub fn taps(&mut self) -> Option<&mut Taps> {
        self.taps.as_deref_mut()
    }

    /// Takes the tap of dropped frames away, to be brought back; `None` when none are captured.
    #[inline]
    pub fn take_drops(&mut self) -> Option<Box<Drops>> {
        self.drops.take()
    }

    /// Brings it back.
    pub fn put_back(&mut self, drops: Box<Drops>) {
        self.drops = Some(drops);
    }

    /// Hands over what was captured. To be called once a turn.
    #[inline]
    pub fn hand_over(&mut self) {
        if let Some(taps) = &mut self.taps {
            taps.0.iter_mut().flatten().for_each(Tap::hand_over);
        }
        if let Some(drops) = &mut self.drops {
            drops.tap.hand_over();
        }
    }
}

/// The taps of frames received and sent.
#[derive(Default)]
pub struct Taps([Option<Tap>; Kind::ALL.len()]);

impl Taps {
    fn concerned(&mut self, side: Side, direction: Direction) -> impl Iterator<Item = &mut Tap> {
        let taps = self.0.iter_mut().zip(Kind::ALL);
        taps.filter_map(move |(tap, kind)| tap.as_mut().filter(|_| covers(kind, side, direction)))
    }

    /// Copies what was just received.
    pub fn received(&mut self, side: Side, frames: &Batch) {
        if frames.is_empty() {
            return;
        }
        let label = label(side, Some(Direction::Inbound));
        for tap in self.concerned(side, Direction::Inbound) {
            frames.iter().for_each(|frame| tap.record(&label, frame));
        }
    }

    /// Copies what is about to be sent. To be followed by [`Taps::sent`].
    pub fn about_to_send(&mut self, side: Side, frames: &Batch) {
        if frames.is_empty() {
            return;
        }
        let label = label(side, Some(Direction::Outbound));
        for tap in self.concerned(side, Direction::Outbound) {
            tap.prepare(&label, frames);
        }
    }

    /// How many of these were sent.
    pub fn sent(&mut self, side: Side, count: usize) {
        for tap in self.concerned(side, Direction::Outbound) {
            tap.settle(count);
        }
    }
}

/// Says what every frame of a batch has in common.
fn label(side: Side, direction: Option<Direction>) -> Label<'static> {
    let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    Label { interface: side as u32, time, direction, ..Label::default() }
}

/// What is done about a frame that is dropped, beyond counting it.
pub trait Mourner {
    /// A frame that came in by `side` is about to be dropped.
    fn mourn(&mut self, side: Side, frame: &Frame, reason: DropReason);
}

/// Nothing.
pub struct Nobody;

impl Mourner for Nobody {
    #[inline]
    fn mourn(&mut self, _: Side, _: &Frame, _: DropReason) {}
}

/// The tap of dropped frames.
pub struct Drops {
    tap: Tap,
    a_second: u32,
    /// What is left of this second, by reason.
    left: [u32; DropReason::COUNT],
    /// When that second began.
    since: Instant,
}

impl Drops {
    fn new(tap: Tap, limits: Limits) -> Self {
        Self {
            tap,
            a_second: limits.drops_a_second,
            left: [limits.drops_a_second; DropReason::COUNT],
            since: Instant::default(),
        }
    }

    /// Says what time it is. To be called once a batch.
    pub fn set_now(&mut self, now: Instant) {
        if now.since(self.since) >= Duration::from_secs(1) {
            self.since = now;
            self.left = [self.a_second; DropReason::COUNT];
        }
    }
}

impl Mourner for Drops {
    fn mourn(&mut self, side: Side, frame: &Frame, reason: DropReason) {
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
            Self(std::env::temp_dir().join(format!("recorder-{}-{name}.pcapng", std::process::id())))
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
    fn a_capture_is_switched_on_and_off_while_a_worker_is_at_work() {
        let file = Scratch::new("switched");
        let recorder = Recorder::new(1, "eth0", "eth1");
        let mut witness = recorder.witness(0);
        let mut pool = Pool::heap(4, 256, 64);
        let frames = vec![pool.adopt(&[7; 60]).unwrap()];
        let turn = |witness: &mut Witness| {
            witness.attend();
            for side in Side::BOTH {
                if let Some(taps) = witness.taps() {
                    taps.received(side, &frames);
                    taps.about_to_send(side, &frames);
                    taps.sent(side, 1);
                }
            }
            witness.hand_over();
        };
        turn(&mut witness);
        recorder.start(Kind::Wan, &file.0, Limits::default(), Former::Emptied).unwrap();
        let again = recorder.start(Kind::Wan, &file.0, Limits::default(), Former::Emptied).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        turn(&mut witness);
        assert_eq!(recorder.running().len(), 1);
        let summary = std::thread::scope(|scope| {
            let end = scope.spawn(|| recorder.stop(Kind::Wan).expect("it is running"));
            while !end.is_finished() {
                witness.attend();
                std::thread::yield_now();
            }
            end.join().unwrap()
        });
        assert!(witness.taps().is_none() && recorder.running().is_empty() && recorder.stop(Kind::Wan).is_none());
        turn(&mut witness);
        assert_eq!(summary, Capture { kind: Kind::Wan, path: file.0.clone(), captured: 2, missed: 0, beyond: 0 });
        let seen: Vec<_> = file.records().iter().map(|r| (r.interface, r.direction.unwrap())).collect();
        assert_eq!(seen, [(1, Direction::Inbound), (1, Direction::Outbound)]);
        frames.into_iter().for_each(|frame| pool.put(frame));
    }

    #[test]
    fn drops_are_sampled_by_reason_and_second() {
        let file = Scratch::new("drops");
        let recorder = Recorder::new(2, "eth0", "eth1");
        let mut witness = recorder.witness(1);
        recorder.start(Kind::Drops, &file.0, Limits { drops_a_second: 6, ..Limits::default() }, Former::Kept).unwrap();
        witness.attend();
        let mut pool = Pool::heap(4, 256, 64);
        let frame = pool.adopt(&[7; 60]).unwrap();
        for second in 1..3 {
            let mut drops = witness.take_drops().expect("drops are captured");
            drops.set_now(Instant::from_secs(second));
            for _ in 0..10 {
                drops.mourn(Side::Wan, &frame, DropReason::BadCookie);
                drops.mourn(Side::Wan, &frame, DropReason::NoFlow);
            }
            witness.put_back(drops);
        }
        pool.put(frame);
        drop(witness);
        recorder.finish();
        // Three a second and reason are this worker's share.
        assert_eq!(file.records().len(), 2 * 2 * 3);
        let bytes = std::fs::read(&file.0).unwrap();
        let said = |word: &str| bytes.windows(word.len()).filter(|w| *w == word.as_bytes()).count();
        assert_eq!((said("bad-cookie"), said("no-flow")), (6, 6));
    }

    #[test]
    fn a_file_that_cannot_be_made_is_refused() {
        let recorder = Recorder::new(1, "eth0", "eth1");
        let error =
            recorder.start(Kind::Sent, Path::new("/nowhere/x.pcapng"), Limits::default(), Former::Emptied).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(recorder.running().is_empty());
    }

    #[test]
    fn a_file_that_is_to_be_kept_is() {
        let (file, link) = (Scratch::new("kept"), Scratch::new("link"));
        std::fs::write(&file.0, "kept").unwrap();
        std::os::unix::fs::symlink("nothing", &link.0).unwrap();
        let recorder = Recorder::new(1, "eth0", "eth1");
        for path in [&file.0, &link.0] {
            let error = recorder.start(Kind::Sent, path, Limits::default(), Former::Kept).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(std::fs::read_to_string(&file.0).unwrap(), "kept");
        recorder.start(Kind::Sent, &file.0, Limits::default(), Former::Emptied).unwrap();
        assert_eq!(recorder.finish().len(), 1);
        assert!(file.records().is_empty());
    }
}
