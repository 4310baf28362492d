//! A direction of a cable, and what may happen to a frame on it.

use super::chance::Chance;
use crate::oracle::layers::Layers;
use crate::oracle::wire::CE;

/// What a direction of a cable does to frames, until it heals. Probabilities in millionths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The frame never arrives.
    pub loss: u32,
    /// It arrives twice.
    pub duplication: u32,
    /// It is overtaken by others.
    pub reordering: u32,
    /// One bit of its IP packet is turned over.
    pub corruption: u32,
    /// Congestion is marked on it, if its sender takes part in that (RFC 3168).
    pub marks: u32,
    /// The most it is delayed beyond the rest, in microseconds.
    pub jitter: u64,
}

impl Faults {
    /// Draws faults; each kind is absent from many cables.
    pub fn draw(chance: &mut Chance) -> Self {
        let mut some = |worst: u64| if chance.one_in(1, 2) { chance.within(1..worst) as u32 } else { 0 };
        Self {
            loss: some(100_000),
            duplication: some(80_000),
            reordering: some(100_000),
            corruption: some(40_000),
            marks: some(100_000),
            jitter: u64::from(some(5000)),
        }
    }

    /// The same without the kinds whose bit is set in `off`: whole worlds without loss, or without anything but loss.
    #[must_use]
    pub fn without(self, off: u64) -> Self {
        let keep = |bit: u64| off >> bit & 1 == 0;
        let part = |bit: u64, ppm: u32| if keep(bit) { ppm } else { 0 };
        Self {
            loss: part(0, self.loss),
            duplication: part(1, self.duplication),
            reordering: part(2, self.reordering),
            corruption: part(3, self.corruption),
            marks: part(4, self.marks),
            jitter: if keep(5) { self.jitter } else { 0 },
        }
    }
}

/// A direction of a cable.
#[derive(Clone, Debug)]
pub struct Link {
    /// Time on the way, in microseconds.
    pub delay: u64,
    /// Time a frame takes to pass, in microseconds: the next one arrives no sooner after it.
    pub gap: u64,
    /// What may happen until the world heals.
    pub faults: Faults,
    chance: Chance,
    /// When the last frame arrives that was not delayed out of order.
    last: u64,
}

/// One arrival of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When.
    pub at: u64,
    /// Which bit of the frame is turned over.
    pub flip: Option<usize>,
    /// Whether congestion is marked on it.
    pub marked: bool,
}

impl Arrival {
    /// The copy of the frame that arrives, and whether a bit of it is turned over.
    pub fn of(&self, frame: &[u8]) -> (Vec<u8>, bool) {
        let mut bytes = frame.to_vec();
        if self.marked
            && let Some(layers) = Layers::read(frame)
            && layers.ecn(frame) != 0
        {
            layers.set_ecn(&mut bytes, CE);
        }
        if let Some(bit) = self.flip {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        (bytes, self.flip.is_some())
    }
}

impl Link {
    /// A direction with this delay, this gap between frames and these faults.
    pub fn new(delay: u64, gap: u64, faults: Faults, chance: Chance) -> Self {
        Self { delay, gap, faults, chance, last: 0 }
    }

    /// When and how a frame that leaves now arrives: never, once, or twice.
    pub fn carry(&mut self, frame: &[u8], now: u64, healed: bool) -> [Option<Arrival>; 2] {
        let faults = if healed { Faults::default() } else { self.faults };
        if self.chance.ppm(faults.loss) {
            return [None; 2];
        }
        let twice = self.chance.ppm(faults.duplication);
        let first = self.arrival(frame, now, &faults);
        [Some(first), twice.then(|| self.arrival(frame, now, &faults))]
    }

    fn arrival(&mut self, frame: &[u8], now: u64, faults: &Faults) -> Arrival {
        let jitter = if faults.jitter > 0 { self.chance.within(0..faults.jitter) } else { 0 };
        let at = if self.chance.ppm(faults.reordering) {
            now + self.delay + jitter + self.chance.within(0..20_000)
        } else {
            // Jitter alone does not reorder.
            self.last = (self.last + self.gap).max(now + self.delay + jitter);
            self.last
        };
        let flip = if self.chance.ppm(faults.corruption) { self.flip(frame) } else { None };
        Arrival { at, flip, marked: self.chance.ppm(faults.marks) }
    }

    /// A bit of a TCP packet that a checksum covers.
    fn flip(&mut self, frame: &[u8]) -> Option<usize> {
        let layers = Layers::read(frame).filter(|layers| layers.protocol == 6)?;
        let plain = layers.payload - layers.ip == if layers.v6 { 40 } else { 20 };
        let start = match layers {
            // The ECN bits of a fragment's own header stay its own.
            Layers { fragment: Some(_), .. } => layers.payload,
            Layers { v6: false, .. } => layers.ip,
            // Of the IPv6 header only the addresses enter the checksum.
            _ if plain => layers.ip + 8,
            _ => layers.payload,
        };
        (start < layers.end).then(|| self.chance.within(start as u64 * 8..layers.end as u64 * 8) as usize)
    }
}
