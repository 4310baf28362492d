//! The clocks of a worker: monotonic time, which goes on while the machine sleeps, real time beside it, and the thread's own computing time.

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;
use tcpstate::{CookieClock, Instant};

/// Microseconds since the machine started.
///
/// # Panics
/// If the kernel lacks `CLOCK_BOOTTIME`, which Linux has had since 2.6.39.
pub fn now() -> Instant {
    let reading = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME is there since Linux 2.6.39");
    Instant::from_micros(0) + Duration::from(reading)
}

/// By how much real time, in whose epochs cookies are made, is ahead of [`now`].
///
/// # Panics
/// If the kernel lacks one of the clocks.
pub fn cookie_clock() -> CookieClock {
    let read = || {
        let before = now();
        let real = clock_gettime(ClockId::CLOCK_REALTIME).expect("CLOCK_REALTIME is always there");
        // Before 1970 it is 1970.
        let real = u64::try_from(real.num_microseconds()).unwrap_or(0);
        (now().since(before), CookieClock::showing(real, before))
    };
    // Of several pairs of readings the closest one: the thread may have slept between the two.
    let readings = [read(), read(), read()];
    readings.into_iter().min_by_key(|(apart, _)| *apart).expect("three readings").1
}

/// The processor time of the calling thread so far, without that of other threads.
///
/// # Panics
/// If the kernel lacks `CLOCK_THREAD_CPUTIME_ID`, which Linux has had since 2.6.12.
pub fn thread_time() -> Duration {
    let reading = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    reading.expect("CLOCK_THREAD_CPUTIME_ID is there since Linux 2.6.12").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_millisecond_is_a_thousand_units() {
        let before = now();
        std::thread::sleep(Duration::from_millis(2));
        let passed = now().since(before);
        assert!(passed >= Duration::from_millis(2) && passed < Duration::from_secs(60), "{passed:?}");
    }
}
