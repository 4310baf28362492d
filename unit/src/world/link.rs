//! A direction of a cable, and what may happen to a frame on it.

use super::chance::Chance;

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
    /// The most it is delayed beyond the rest, in microseconds.
    pub jitter: u64,
}

impl Faults {
    /// Draws faults; each kind is absent in many worlds.
    pub fn draw(chance: &mut Chance) -> Self {
        let mut some = |worst: u64| if chance.one_in(1, 2) { chance.within(1..worst) as u32 } else { 0 };
        Self {
            loss: some(100_000),
            duplication: some(80_000),
            reordering: some(100_000),
            corruption: some(40_000),
            jitter: u64::from(some(5000)),
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
        Arrival { at, flip }
    }

    /// A bit of a TCP packet that a checksum covers.
    fn flip(&mut self, frame: &[u8]) -> Option<usize> {
        let bytes = match (frame[12], frame[13]) {
            (0x08, 0x00) if frame[23] == 6 => 14..14 + usize::from(u16::from_be_bytes([frame[16], frame[17]])),
            // Of the IPv6 header only the addresses enter the checksum.
            (0x86, 0xdd) if frame[20] == 6 => 22..54 + usize::from(u16::from_be_bytes([frame[18], frame[19]])),
            _ => return None,
        };
        Some(self.chance.within(bytes.start as u64 * 8..bytes.end as u64 * 8) as usize)
    }
}
