//! A worker without ports: batches of frames in buffers as a pool cuts them, taken through the engine in the worker's two
//! passes. Only that is timed; frames are written before and read after.

use crate::frames::{Pair, Tcp, write};
use std::hint::black_box;
use std::mem;
use std::time::Duration;
use tcpstate::{Egress, Head, Instant, Metadata, Proxy, Side, Verdict};

/// Frames of a batch, as in the worker.
pub const BATCH: usize = 64;
/// Bytes of a buffer.
const BUFFER: usize = 2048;
/// Where a frame begins in its buffer, as AF_XDP leaves it.
const HEADROOM: usize = 256;
/// What the clock moves on between two batches: 64 frames at 12.8 million a second.
pub const BEAT: Duration = Duration::from_micros(5);

/// One frame's place.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    len: usize,
}

/// The buffers of a batch and what became of them.
pub struct Worker {
    buffers: Vec<Vec<u8>>,
    places: Vec<Place>,
    metas: Vec<Metadata>,
    verdicts: Vec<Verdict>,
    /// Frames that are held, by the index of their tickets, and buffers to take theirs' place.
    held: Vec<Option<(Vec<u8>, Place)>>,
    idle: Vec<Vec<u8>>,
    /// What became of the frames that were brought back in the last batch.
    released: Vec<Verdict>,
    pub spares: Spares,
    pub now: Instant,
}

/// The worker's spare frames: few, used in turn.
pub struct Spares {
    buffers: Vec<[u8; BUFFER]>,
    used: usize,
}

impl Spares {
    /// The `n`th segment the engine sent of its own accord in this batch.
    pub fn sent(&self, n: usize) -> &[u8] {
        &self.buffers[n % BATCH]
    }
}

impl Egress for Spares {
    fn emit(&mut self, _: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let n = self.used % BATCH;
        self.used += 1;
        black_box(write(&mut self.buffers[n]));
        true
    }
}

impl Worker {
    pub fn new() -> Self {
        Self {
            buffers: vec![vec![0; BUFFER]; BATCH],
            places: vec![Place { start: HEADROOM, len: 0 }; BATCH],
            metas: vec![Metadata::default(); BATCH],
            verdicts: Vec::with_capacity(BATCH),
            held: Vec::new(),
            idle: Vec::new(),
            released: Vec::with_capacity(BATCH),
            spares: Spares { buffers: vec![[0; BUFFER]; BATCH], used: 0 },
            now: Instant::from_secs(1000),
        }
    }

    /// Writes frame `n` of the next batch.
    pub fn write(&mut self, n: usize, side: Side, pair: Pair, tcp: &Tcp) {
        self.fill(n, |buffer| write(buffer, side, pair, tcp));
    }

    /// Puts zeros where frame `n` of the next batch will lie: a payload of zeros is not written, but another frame may have been there.
    pub fn blank(&mut self, n: usize) {
        self.buffers[n][HEADROOM..].fill(0);
    }

    /// Has frame `n` of the next batch written; `write` returns its length.
    pub fn fill(&mut self, n: usize, write: impl FnOnce(&mut [u8]) -> usize) {
        let len = write(&mut self.buffers[n][HEADROOM..]);
        self.places[n] = Place { start: HEADROOM, len };
    }

    /// Frame `n` after the batch.
    pub fn frame(&self, n: usize) -> &[u8] {
        let Place { start, len } = self.places[n];
        &self.buffers[n][start..start + len]
    }

    /// What became of the frames of the last batch.
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// What became of the frames that were brought back in the last batch.
    pub fn released(&self) -> &[Verdict] {
        &self.released
    }

    /// Takes the batch through the engine and lets it do what is due.
    #[inline(never)]
    pub fn poll(&mut self, proxy: &mut Proxy, side: Side) {
        self.verdicts.clear();
        self.released.clear();
        self.spares.used = 0;
        if self.held.is_empty() {
            self.held.resize_with(proxy.held_frames(), || None);
        }
        for ((buffer, place), meta) in self.buffers.iter_mut().zip(&self.places).zip(&mut self.metas) {
            proxy.parse(side, &Head::new(&mut buffer[..], place.start, place.len, place.len), meta);
        }
        for meta in &mut self.metas {
            proxy.prefetch(meta);
        }
        for ((buffer, place), meta) in self.buffers.iter_mut().zip(&mut self.places).zip(&self.metas) {
            let mut head = Head::new(&mut buffer[..], place.start, place.len, place.len);
            let verdict = proxy.on_frame(side, meta, &mut head, self.now, &mut self.spares);
            *place = Place { start: head.start(), len: head.len() };
            if let Verdict::Hold(ticket) = verdict {
                let other = self.idle.pop().unwrap_or_else(|| vec![0; BUFFER]);
                self.held[usize::from(ticket.index)] = Some((mem::replace(buffer, other), *place));
            }
            self.verdicts.push(verdict);
            while let Some(ticket) = proxy.next_release() {
                let held = self.held[usize::from(ticket.index)].take();
                let (mut buffer, place) = held.expect("a ticket is released once");
                let mut head = Head::new(&mut buffer[..], place.start, place.len, place.len);
                self.released.push(proxy.on_release(ticket, &mut head, self.now, &mut self.spares));
                self.idle.push(buffer);
            }
        }
        proxy.on_timeout(self.now, &mut self.spares);
    }

    /// What the harness itself costs: a batch whose frames are copied from `template` and have their Ethernet addresses swapped.
    #[inline(never)]
    pub fn touch(&mut self, template: &[u8]) {
        self.verdicts.clear();
        for (buffer, place) in self.buffers.iter_mut().zip(&mut self.places) {
            let frame = &mut buffer[HEADROOM..HEADROOM + template.len()];
            frame.copy_from_slice(template);
            let (to, from) = frame[..12].split_at_mut(6);
            to.swap_with_slice(from);
            black_box(&frame[0]);
            *place = Place { start: HEADROOM, len: template.len() };
            self.verdicts.push(Verdict::Reflect);
        }
    }
}
