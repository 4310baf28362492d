//! Time as an argument: the engine never reads a clock; it gets one reading a poll.

use core::ops::Add;
use core::time::Duration;

/// A reading of the worker's clock, in microseconds since an arbitrary origin.
///
/// The clock must never step backward and must keep counting while the machine sleeps
/// (`CLOCK_BOOTTIME` does both), because the age of a cookie is measured with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The reading `micros` microseconds after the clock's origin.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// The reading `secs` seconds after the clock's origin.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1_000_000)
    }

    /// Microseconds since the clock's origin.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The time passed since `earlier`, or zero if `earlier` lies ahead.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(rhs.as_micros()).unwrap_or(u64::MAX)))
    }
}
