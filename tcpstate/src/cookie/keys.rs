//! The secret that cookies are signed with: an epoch's keys follow from it and the epoch's number, and it changes when an epoch begins.

use core::time::Duration;

use crate::Instant;
use crate::keyed::{self, Keys};

/// An epoch lasts 2^26 µs, 67 s: longer than the 63 s a client's SYN timer may wait. A cookie opens in its own epoch
/// and the next.
pub const EPOCH_BITS: u32 = 26;

/// Time for all workers to receive a change before the epoch in which it takes effect.
pub(super) const NOTICE: Duration = Duration::from_secs(5);

/// The epoch a time falls in.
pub(super) fn epoch_of(now: Instant) -> u64 {
    now.as_micros() >> EPOCH_BITS
}

/// The epoch at whose beginning a change requested `now` takes effect: 5 to 72 s later, on every worker at the same moment.
pub fn next_epoch(now: Instant) -> u64 {
    epoch_of(now + NOTICE) + 1
}

/// When an epoch begins.
pub fn beginning_of(epoch: u64) -> Instant {
    Instant::from_micros(epoch << EPOCH_BITS)
}

/// A change of the secret that cookies are signed with: it takes effect when an epoch begins, on every worker at the same moment, so that
/// what was minted before opens for as long as it would have.
#[derive(Clone, Debug)]
pub struct Rotation {
    master: Keys,
    from: u64,
}

impl Rotation {
    /// A change to a secret of 16 random bytes, requested `now`.
    pub fn new(random: [u8; 16], now: Instant) -> Self {
        let (high, low) = random.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
        Self { master: (word(high), word(low)), from: next_epoch(now) }
    }

    /// From when on cookies are signed with it, 5 to 72 s after the request.
    pub fn begins(&self) -> Instant {
        beginning_of(self.from)
    }

    /// When the last cookie signed with the former secret stops to open. Another change before that would end cookies early.
    pub fn ends(&self) -> Instant {
        beginning_of(self.from + 1)
    }
}

/// The secret, and the one before.
#[derive(Clone)]
pub(super) struct Secret {
    /// The secret, and since which epoch it is in use.
    master: (u64, Keys),
    former: Keys,
}

impl Secret {
    pub(super) fn new(master: Keys) -> Self {
        Self { master: (0, master), former: master }
    }

    /// Changes the secret. One change has to have ended before the next.
    pub(super) fn rotate(&mut self, rotation: &Rotation) {
        (self.former, self.master) = (self.master.1, (rotation.from, rotation.master));
    }

    /// The keys of an epoch whose cookies are made with the option tables of this digest. All workers derive the same without exchanging
    /// anything; and a cookie never opens as one made with other tables.
    pub(super) fn keys_of(&self, epoch: u64, tables: u64) -> Keys {
        let (from, master) = self.master;
        let master = if epoch < from { self.former } else { master };
        let half = |n: u64| keyed::signature(master, [epoch, n, tables]);
        (half(0), half(1))
    }
}
