//! The option tables of cookies: which MSS values and window scales a cookie can express, and the codes it expresses them with.
//!
//! A cookie relies on them and does not carry them, so they are the same for all destinations, and change only when an epoch begins: its
//! bit in the cookie then names which tables the cookie was made with.

use crate::Config;
use crate::cookie::terms::{Ecn, Terms};
use crate::keyed;
use crate::seq::{SeqNum, WindowScale};

/// The tables of one generation of cookies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionTables {
    /// For clients without timestamps.
    pub(super) plain: OptionTable,
    /// For clients with timestamps.
    pub(super) ts_mss: MssTable,
    /// The window scale announced to every client without timestamps.
    pub(super) own_scale: WindowScale,
    /// A hash of all that.
    pub(super) digest: u64,
}

impl OptionTables {
    /// The tables of this configuration.
    pub fn new(config: &Config) -> Self {
        let plain = OptionTable::new(&config.mss_table, &config.wscale_table);
        let ts_mss = MssTable::new(&config.ts_mss_table);
        let own_scale = WindowScale::clamped(config.own_wscale);
        let lengths = [plain.mss.len(), plain.scales.len(), ts_mss.len].map(|len| len as u64);
        let entries = plain.mss.iter().chain(&ts_mss.values).map(|&mss| mss.into());
        let scales = plain.scales.iter().copied().chain([own_scale.get()]).map(u64::from);
        let all = lengths.into_iter().chain(entries).chain(scales);
        let digest = all.fold(0, |digest, value| keyed::place((0, 0), [digest, value]));
        Self { plain, ts_mss, own_scale, digest }
    }

    /// The smallest MSS a cookie can express, with or without timestamps: a smaller one would be rounded up.
    #[inline(always)]
    pub(super) fn smallest_mss(&self, timestamps: bool) -> u16 {
        if timestamps { self.ts_mss.values[0] } else { self.plain.mss[0] }
    }

    /// The scale a client is promised: `wanted` if the cookie can carry it, else the one that is the same for all.
    #[inline(always)]
    pub(super) fn promise(&self, wanted: Option<WindowScale>, timestamps: bool) -> Option<WindowScale> {
        wanted.map(|scale| if timestamps { scale } else { self.own_scale })
    }
}

/// The index of the largest entry of a rising table that does not exceed `value`; 0 if all do.
pub(super) fn floor_index<T: PartialOrd + Copy>(table: &[T], value: T) -> usize {
    table.partition_point(|&entry| entry <= value).saturating_sub(1)
}

/// The rising MSS values of a cookie with timestamps: up to 32, the rest filled up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MssTable {
    pub(super) values: [u16; 32],
    len: usize,
}

impl MssTable {
    /// A table of the first 32 of these.
    pub(super) fn new(mss: &[u16]) -> Self {
        let mut values = [u16::MAX; 32];
        let len = mss.len().min(32);
        values[..len].copy_from_slice(&mss[..len]);
        Self { values, len }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, index: usize) -> Option<u16> {
        self.values[..self.len].get(index).copied()
    }

    /// As [`floor_index`], in five steps without a branch.
    #[inline(always)]
    pub(super) fn floor(&self, mss: u16) -> usize {
        let mut at = 0;
        for step in [16, 8, 4, 2, 1] {
            at += if self.values[(at + step) & 31] <= mss { step } else { 0 };
        }
        at.min(self.len - 1)
    }
}

/// The mixed-radix code of a cookie without timestamps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OptionTable {
    pub(super) mss: Vec<u16>,
    scales: Vec<u8>,
    pub(super) bits: u32,
}

impl OptionTable {
    fn new(mss: &[u16], scales: &[u8]) -> Self {
        let option_table = Self { mss: mss.to_vec(), scales: scales.to_vec(), bits: 0 };
        Self { bits: (option_table.radix() - 1).checked_ilog2().map_or(1, |log| log + 1), ..option_table }
    }

    pub(super) fn radix(&self) -> u32 {
        (self.mss.len() * (self.scales.len() + 1) * 2) as u32
    }

    /// How many digits stand for a window scale or none.
    pub(super) fn radix_of_scales(&self) -> usize {
        self.scales.len() + 1
    }

    /// The digit of a window scale: 0 is "none", n the table's entry n - 1.
    pub(super) fn digit(&self, scale: WindowScale) -> usize {
        floor_index(&self.scales, scale.get()) + 1
    }

    pub(super) fn encode(&self, terms: &Terms) -> u32 {
        let mss = floor_index(&self.mss, terms.mss);
        let scale = terms.scale.map_or(0, |scale| self.digit(scale));
        ((mss * self.radix_of_scales() + scale) * 2 + usize::from(terms.sack)) as u32
    }

    /// The code in a cookie.
    pub(super) fn code(&self, isn: SeqNum) -> u32 {
        (isn.get() & 0x7fff_ffff) >> (31 - self.bits)
    }

    /// The terms of a code, the promise left out; `None` for a number that is no code.
    pub(super) fn decode(&self, code: u32) -> Option<Terms> {
        if code >= self.radix() {
            return None;
        }
        let (rest, sack) = (code as usize / 2, code & 1 == 1);
        let digit = rest % (self.scales.len() + 1);
        Some(Terms {
            mss: self.mss[rest / (self.scales.len() + 1)],
            scale: digit.checked_sub(1).map(|n| WindowScale::clamped(self.scales[n])),
            promised: None,
            sack,
            timestamps: false,
            ecn: Ecn::Silent,
        })
    }
}
