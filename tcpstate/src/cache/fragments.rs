//! Which packets have begun: the first fragments that passed recently, which separates their later fragments from stray ones.
//!
//! A fixed number of lines of one cache line each, sixteen packets a line, of which the oldest is evicted. A packet is remembered by a
//! tag of 20 bits under a keyed hash: of a million stray fragments about fifteen are taken for another packet's.

use crate::Instant;
use crate::prefetch::prefetch;

/// What was in a first fragment. The two do not share lines: anyone may send what is no TCP, and must not wash out what is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP header.
    Tcp = 0,
    /// None (only of IPv6 packets, whose later fragments do not say).
    Other = 1,
}

/// Lines of each kind, a power of two: 128 KiB.
const LINES: usize = 2048;
const WAYS: usize = 16;
/// Bits of the time a packet was noted at, in units of 2^22 µs: they go round in 4.8 hours.
const TIME_BITS: u32 = 12;
const TIME_MASK: u32 = (1 << TIME_BITS) - 1;
/// Units for which a packet is remembered: 33 s at least, as long as any receiver waits for the rest (RFC 791 section 3.2 wants 15 s to begin
/// with; RFC 8200 section 4.5, 60 s at most, from the first to arrive).
const LIFETIME: u32 = 8;

/// Each way is a tag, never zero, above the time; zero is nothing.
#[derive(Clone, Default)]
#[repr(align(64))]
struct Line([u32; WAYS]);

/// See the module.
pub struct Fragments(Vec<Line>);

impl Fragments {
    /// Nothing has begun.
    pub fn new() -> Self {
        Self(vec![Line::default(); 2 * LINES])
    }

    fn line(&self, kind: Kind, hash: u64) -> usize {
        let lines = self.0.len() / 2;
        kind as usize * lines + (hash as usize & (lines - 1))
    }

    /// What it remembers of one packet, in a line of each kind.
    pub fn excerpt(&self, hash: u64) -> Self {
        Self([Kind::Tcp, Kind::Other].map(|kind| self.0[self.line(kind, hash)].clone()).into())
    }

    /// Asks for the line a packet of TCP would be in.
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.0[self.line(Kind::Tcp, hash)]);
    }

    /// Notes that a packet has begun.
    pub fn note(&mut self, kind: Kind, hash: u64, now: Instant) {
        let (tag, time) = (tag(hash), time(now));
        let place = self.line(kind, hash);
        let line = &mut self.0[place].0;
        let age = |way: u32| match way {
            // The packet's own place, else the oldest's.
            _ if way != 0 && way >> TIME_BITS == tag => u32::MAX,
            0 => u32::MAX - 1,
            way => time.wrapping_sub(way) & TIME_MASK,
        };
        if let Some(oldest) = line.iter_mut().max_by_key(|way| age(**way)) {
            *oldest = tag << TIME_BITS | time;
        }
    }

    /// Whether a packet has begun.
    pub fn has_begun(&self, kind: Kind, hash: u64, now: Instant) -> bool {
        let (tag, time) = (tag(hash), time(now));
        let is_it = |way: &u32| way >> TIME_BITS == tag && time.wrapping_sub(*way) & TIME_MASK <= LIFETIME;
        self.0[self.line(kind, hash)].0.iter().any(is_it)
    }
}

fn tag(hash: u64) -> u32 {
    ((hash >> (32 + TIME_BITS)) as u32).max(1)
}

fn time(now: Instant) -> u32 {
    (now.as_micros() >> 22) as u32 & TIME_MASK
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use proptest::prelude::*;

    fn spread(n: u64) -> u64 {
        let n = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (n ^ n >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    #[test]
    fn a_packet_is_remembered_for_half_a_minute_and_forgotten_in_the_next() {
        let mut fragments = Fragments::new();
        for at in [0, 1 << 22, (1 << 34) - 1, 77_777_777_777] {
            let start = Instant::from_micros(at);
            fragments.note(Kind::Tcp, spread(at), start);
            assert!(fragments.has_begun(Kind::Tcp, spread(at), start));
            assert!(fragments.has_begun(Kind::Tcp, spread(at), start + Duration::from_secs(33)));
            assert!(!fragments.has_begun(Kind::Tcp, spread(at), start + Duration::from_secs(60)));
            assert!(!fragments.has_begun(Kind::Other, spread(at), start));
            assert!(!fragments.has_begun(Kind::Tcp, spread(at + 1), start));
        }
    }

    #[test]
    fn an_empty_memory_knows_nothing_and_a_full_one_has_few_false_positives() {
        let mut fragments = Fragments::new();
        let now = Instant::from_secs(100);
        assert!((0..100_000).all(|n| !fragments.has_begun(Kind::Tcp, spread(n), now)));
        (0..100_000).for_each(|n| fragments.note(Kind::Tcp, spread(n), now));
        let unknown = (100_000..1_100_000).filter(|&n| fragments.has_begun(Kind::Tcp, spread(n), now)).count();
        assert!(unknown < 60, "{unknown} of a million, 15 expected");
    }

    #[test]
    fn other_protocols_do_not_wash_out_tcp() {
        let mut fragments = Fragments::new();
        let now = Instant::from_secs(100);
        fragments.note(Kind::Tcp, spread(0), now);
        (1..1_000_000).for_each(|n| fragments.note(Kind::Other, spread(n), now));
        assert!(fragments.has_begun(Kind::Tcp, spread(0), now));
    }

    proptest! {
        #[test]
        fn nothing_of_the_last_half_minute_is_forgotten_while_there_is_room(
            notes in prop::collection::vec((0u64..2000, 0u64..5_000_000), 1..400),
        ) {
            let mut fragments = Fragments::new();
            let mut now = Instant::from_secs(1000);
            let mut model = std::collections::HashMap::new();
            for (n, pause) in notes {
                now = now + Duration::from_micros(pause);
                fragments.note(Kind::Tcp, spread(n), now);
                model.insert(n, now);
            }
            for (n, noted) in model {
                let age = now.since(noted);
                let known = fragments.has_begun(Kind::Tcp, spread(n), now);
                prop_assert!(known || age > Duration::from_secs(33), "forgotten after {age:?}");
                prop_assert!(!known || age < Duration::from_secs(38), "remembered after {age:?}");
            }
        }
    }
}
