//! The secret that cookies are signed with: an epoch's keys follow from it and the epoch's number, and it changes when an epoch begins. Epochs are those
//! of real time, so that boxes with one secret, and processes that follow each other, agree on them.

use core::fmt;
use core::time::Duration;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::Instant;
use crate::keyed::{self, Keys};

/// An epoch lasts 2^26 µs, 67 s: longer than the 63 s a client's SYN timer may wait. A cookie opens in its own epoch
/// and the next.
pub const EPOCH_BITS: u32 = 26;

/// Time for all workers to receive a change before the epoch in which it takes effect.
pub(super) const NOTICE: Duration = Duration::from_secs(5);

/// By how many microseconds the clock of cookies, which is real time, is ahead of the clock of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CookieClock(u64);

impl CookieClock {
    /// The clock that shows `real` microseconds when the worker's shows `now`.
    pub const fn showing(real: u64, now: Instant) -> Self {
        Self(real.wrapping_sub(now.as_micros()))
    }

    /// What it shows, in microseconds, when the worker's clock shows `now`.
    #[inline(always)]
    pub const fn at(self, now: Instant) -> u64 {
        now.as_micros().wrapping_add(self.0)
    }

    /// By how much it is ahead of `other`, in microseconds; negative if it is behind.
    pub const fn ahead_of(self, other: CookieClock) -> i64 {
        self.0.wrapping_sub(other.0) as i64
    }

    /// The epoch at whose beginning a change requested `now` takes effect: 5 to 72 s later, on every worker at the same moment.
    pub fn next_epoch(self, now: Instant) -> u64 {
        (self.at(now + NOTICE) >> EPOCH_BITS) + 1
    }

    /// The worker's time when an epoch begins; that of the clock's origin for one that began before.
    pub fn beginning_of(self, epoch: u64) -> Instant {
        let ahead = (epoch << EPOCH_BITS).wrapping_sub(self.0);
        Instant::from_micros(if (ahead as i64) < 0 { 0 } else { ahead })
    }
}

/// A change of the secret that cookies are signed with: it takes effect when an epoch begins, on every worker at the same moment, so that
/// what was minted before opens for as long as it would have.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Rotation {
    random: [u8; 16],
    from: u64,
    #[zeroize(skip)]
    clock: CookieClock,
}

impl Rotation {
    /// A change to a secret of 16 random bytes, requested `now`.
    pub fn new(random: [u8; 16], clock: CookieClock, now: Instant) -> Self {
        Self { random, from: clock.next_epoch(now), clock }
    }

    /// A change that another process made: to this secret from this epoch on.
    pub fn restored(random: [u8; 16], from: u64, clock: CookieClock) -> Self {
        Self { random, from, clock }
    }

    /// The secret, and from which epoch on it holds: for the process that follows.
    pub fn parts(&self) -> ([u8; 16], u64) {
        (self.random, self.from)
    }

    /// From when on cookies are signed with it, 5 to 72 s after the request.
    pub fn begins(&self) -> Instant {
        self.clock.beginning_of(self.from)
    }

    /// When the last cookie signed with the former secret stops to open. Another change before that would end cookies early.
    pub fn ends(&self) -> Instant {
        self.clock.beginning_of(self.from.saturating_add(1))
    }

    fn keys(&self) -> Keys {
        let (high, low) = self.random.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
        (word(high), word(low))
    }
}

/// Says nothing of the secret, so that no log does.
impl fmt::Debug for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotation").field("from", &self.from).finish_non_exhaustive()
    }
}

/// The secret, and the one before.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
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
        (self.former, self.master) = (self.master.1, (rotation.from, rotation.keys()));
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
