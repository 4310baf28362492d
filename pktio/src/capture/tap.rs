//! A worker's side of a capture: copies frames into chunks, and never waits.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::Thread;

use super::queue::{CHUNK, Chunk, Counts, Shared, TapQueue};
use crate::frame::Frame;
use crate::pcap::{FRAME_OVERHEAD, Label, put_frame};

/// A worker's writer to a capture file. Dropping it queues what it has.
pub struct Tap {
    /// The worker's number, recorded with its frames.
    worker: u32,
    snap_len: usize,
    /// The chunk being filled, and the frames in it.
    bytes: Vec<u8>,
    frames: Counts,
    /// Chunks that are full and not queued yet, since frames in them may have to be removed again.
    filled: Vec<Chunk>,
    /// The state before each frame of a batch that is about to be sent; `None` for a frame that was missed.
    marks: Vec<(u32, Option<Mark>)>,
    chunks: Arc<TapQueue>,
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
    /// The tap of this worker.
    pub(super) fn new(worker: u32, snap_len: usize, chunks: Arc<TapQueue>, shared: Arc<Shared>, writer: Thread) -> Tap {
        Tap {
            worker,
            snap_len,
            // Its pages take memory when they are first filled.
            bytes: chunks.spare.pop().expect("a queue begins with all of its chunks"),
            frames: Counts::default(),
            filled: Vec::with_capacity(chunks.full.capacity()),
            // More than one port sends in a poll iteration.
            marks: Vec::with_capacity(1024),
            chunks,
            shared,
            writer,
        }
    }

    /// Copies a frame. Call [`hand_over`](Self::hand_over) afterwards, once for many frames.
    pub fn record(&mut self, label: &Label<'_>, frame: &Frame) {
        if self.put(label, frame).is_none() {
            self.miss(label.interface);
        }
    }

    /// Copies frames that are about to be sent, since a port keeps what it accepts. Call [`settle`](Self::settle) afterwards.
    pub fn prepare(&mut self, label: &Label<'_>, frames: &[Frame]) {
        for frame in frames {
            let mark = self.put(label, frame);
            self.marks.push((label.interface, mark));
        }
    }

    /// Reports how many of the prepared frames the port has accepted; the others are removed from the capture.
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

    /// Queues full chunks to the thread, and the current one if the thread has nothing to do. Call it once a poll iteration.
    pub fn hand_over(&mut self) {
        if self.filled.is_empty() && self.bytes.is_empty() {
            return;
        }
        if self.filled.is_empty() && !self.chunks.full.is_empty() {
            // The thread is busy, so let the chunk fill.
            return;
        }
        if !self.bytes.is_empty()
            && self.chunks.full.is_empty()
            && let Some(next) = self.chunks.spare.pop()
        {
            self.fill(next);
        }
        let mut filled = mem::take(&mut self.filled);
        for chunk in filled.drain(..) {
            // The queue has room for all chunks.
            let _ = self.chunks.full.push(chunk);
        }
        self.filled = filled;
        self.writer.unpark();
    }

    /// Copies a frame into the current chunk, or the next. Returns the state before, or `None` when the frame is missed.
    fn put(&mut self, label: &Label<'_>, frame: &Frame) -> Option<Mark> {
        if self.shared.is_full.load(Ordering::Relaxed) {
            return None;
        }
        let captured = frame.total().min(self.snap_len);
        let mark = Mark { filled: self.filled.len(), length: self.bytes.len(), frames: self.frames };
        if self.bytes.len() + captured + FRAME_OVERHEAD > CHUNK {
            let next = self.chunks.spare.pop()?;
            self.fill(next);
        }
        let mut left = captured;
        let parts = frame.segments().map(|segment| {
            let part = &segment[..segment.len().min(left)];
            left -= part.len();
            part
        });
        let label = Label { queue: Some(self.worker), ..*label };
        put_frame(&mut self.bytes, &label, parts, frame.total());
        self.frames[label.interface as usize] += 1;
        Some(mark)
    }

    /// Appends the current chunk to the full ones, and begins the next.
    fn fill(&mut self, next: Vec<u8>) {
        let bytes = mem::replace(&mut self.bytes, next);
        self.filled.push(Chunk { bytes, frames: mem::take(&mut self.frames) });
    }

    /// Restores the state before a frame.
    fn rewind(&mut self, mark: Mark) {
        while self.filled.len() > mark.filled {
            let Some(Chunk { bytes, .. }) = self.filled.pop() else { return };
            let mut later = mem::replace(&mut self.bytes, bytes);
            later.clear();
            // The queue has room for all chunks.
            let _ = self.chunks.spare.push(later);
        }
        self.bytes.truncate(mark.length);
        self.frames = mark.frames;
    }

    fn miss(&mut self, interface: u32) {
        let counts =
            if self.shared.is_full.load(Ordering::Relaxed) { &self.chunks.beyond } else { &self.chunks.missed };
        let count = &counts[interface as usize];
        // Only this tap writes it.
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.fill(Vec::new());
        }
        for chunk in self.filled.drain(..) {
            let _ = self.chunks.full.push(chunk);
        }
        self.chunks.is_over.store(true, Ordering::Release);
        self.writer.unpark();
    }
}
