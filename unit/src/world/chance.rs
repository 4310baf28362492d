//! Everything a run leaves to chance comes from here, and so from its seed.

use std::ops::Range;

/// A generator of numbers that look random and follow from the seed alone, on every machine and in every release
/// (SplitMix64; no library promises that of its generators).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Self {
        let mut chance = Self(seed);
        // Neighbouring seeds begin far apart.
        chance.0 = chance.word();
        chance
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// A number of the range, which must not be empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.word() % (range.end - range.start)
    }

    /// True in `part` of `whole` cases.
    pub fn one_in(&mut self, part: u64, whole: u64) -> bool {
        self.word() % whole < part
    }

    /// True with a probability given in millionths.
    pub fn ppm(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.word() % 1_000_000 < u64::from(ppm)
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.within(0..choices.len() as u64) as usize]
    }

    /// A generator of its own for one part of the world, so that drawing more there changes nothing elsewhere.
    pub fn fork(&mut self) -> Chance {
        Chance::new(self.word())
    }
}
