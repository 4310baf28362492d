//! On which side of the box Ethernet stations are, as far as they have been heard: a switch floods a frame to a station it does not know out of all
//! ports, and a hub or a promiscuous port group every frame, so that the box gets frames between stations that are on one side of it. A bridge
//! filters those (IEEE 802.1D section 7.7.1); answered in a station's name they would end its connections, and move its address to the box.
//!
//! Two tables of fixed size, one for each side, of one place for each hash; a station takes the place of another. What is heard on
//! one side changes nothing of what was heard on the other.

use crate::flow::table::wheel::{Ticks, tick};
use crate::{Instant, PerSide, Side};

/// Places for each side: 4 KiB.
const PLACES_BITS: u32 = 9;
const PLACES: usize = 1 << PLACES_BITS;
/// Ticks are kept in units of 2^16, 67 s.
const UNIT_BITS: u32 = 16;
/// A station is known to be on a side for five minutes after it was heard there, as long as a bridge remembers it.
const KNOWN: u16 = 4;
/// But for a day it is not held to be on the other side alone: routers may have one address on both.
const POSSIBLE: u16 = 1287;
const ARP: [u8; 2] = [0x08, 0x06];

/// The stations heard on one side. A word is a station's address in the upper 48 bits and the time at which it was heard, in units, in the
/// lower 16; zero is a free place.
type Heard = Box<[u64; PLACES]>;

/// An Ethernet address, in the upper 48 bits.
pub type Mac = u64;

/// See the module.
#[derive(Clone)]
pub struct Stations {
    heard: PerSide<Heard>,
    /// How often something new was heard on the WAN, on a circle.
    news_of_wan: u32,
}

impl Default for Stations {
    fn default() -> Self {
        let empty = || Box::new([0; PLACES]);
        Self { heard: PerSide::new(empty(), empty()), news_of_wan: 0 }
    }
}

impl Stations {
    /// Notes that the sender of a frame is on this side. Returns its address if that has not been noted for a minute, or was never.
    pub fn note(&mut self, side: Side, frame: &[u8], now: Instant) -> Option<Mac> {
        let mac = mac_at(frame, 6);
        let is_group = mac >> 56 & 1 == 1;
        (!is_group && self.heard_on(side, mac, now)).then_some(mac)
    }

    /// Notes that a station was heard on this side; returns whether that is news.
    pub fn heard_on(&mut self, side: Side, mac: Mac, now: Instant) -> bool {
        let word = mac | u64::from(unit(now));
        let place = &mut self.heard[side][place(mac)];
        let is_news = *place != word;
        *place = word;
        self.news_of_wan = self.news_of_wan.wrapping_add(u32::from(is_news && side == Side::Wan));
        is_news
    }

    /// How often something new was heard on the WAN, on a circle.
    pub fn heard_on_wan(&self) -> u32 {
        self.news_of_wan
    }

    /// Whether a frame is for a station that is known to be on the WAN, wherever else it may be.
    pub fn was_heard_on_wan(&self, frame: &[u8], now: Instant) -> bool {
        was_heard(&self.heard[Side::Wan], mac_at(frame, 0), KNOWN, now)
    }

    /// Whether a frame that came in on this side is for a station that is known to be on the same side, and has not been heard on the other.
    #[inline(always)]
    pub fn are_on(&self, side: Side, frame: &[u8], now: Instant) -> bool {
        let mac = mac_at(frame, 0);
        was_heard(&self.heard[side], mac, KNOWN, now) && self.is_elsewhere(side, frame, mac, now)
    }

    #[cold]
    #[inline(never)]
    fn is_elsewhere(&self, side: Side, frame: &[u8], mac: Mac, now: Instant) -> bool {
        mac != mac_at(frame, 6) && !was_heard(&self.heard[side.other()], mac, POSSIBLE, now)
    }
}

/// Whether the sender of a frame that is no TCP is worth noting: hosts make themselves known by ARP, and by what they send to groups.
#[inline(always)]
pub fn announces(frame: &[u8]) -> bool {
    frame[0] & 1 == 1 || frame[12..14] == ARP
}

/// The address at this offset.
#[inline(always)]
fn mac_at(frame: &[u8], at: usize) -> Mac {
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(&frame[at..at + 6]);
    u64::from_be_bytes(bytes)
}

#[inline(always)]
fn was_heard(heard: &Heard, mac: Mac, at_most: u16, now: Instant) -> bool {
    let word = heard[place(mac)];
    word ^ mac <= 0xffff && mac != 0 && unit(now).wrapping_sub(word as u16) <= at_most
}

#[inline(always)]
fn place(mac: Mac) -> usize {
    (mac.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACES_BITS)) as usize
}

#[inline(always)]
fn unit(now: Instant) -> u16 {
    let ticks: Ticks = tick(now);
    (ticks >> UNIT_BITS) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use proptest::prelude::*;

    /// A frame from one station to another.
    fn frame(from: u8, to: u8) -> [u8; 14] {
        [2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0]
    }

    #[test]
    fn a_station_is_where_it_was_heard_last_five_minutes_ago_and_nowhere_else_for_a_day() {
        let (start, mut stations) = (Instant::from_secs(1_000_000), Stations::default());
        let after = |secs| start + Duration::from_secs(secs);
        assert!(!stations.are_on(Side::Wan, &frame(1, 2), start), "nothing was heard");
        assert!(stations.note(Side::Wan, &frame(2, 1), start).is_some());
        assert_eq!(stations.note(Side::Wan, &frame(2, 1), start), None);
        assert!(stations.are_on(Side::Wan, &frame(1, 2), after(260)));
        assert!(!stations.are_on(Side::Lan, &frame(1, 2), start));
        assert!(!stations.are_on(Side::Wan, &frame(2, 2), start), "one address may be on both sides");
        assert!(!stations.are_on(Side::Wan, &frame(1, 2), after(400)));
        stations.note(Side::Lan, &frame(2, 1), start);
        for (secs, known) in [(0, false), (3600, false), (86_000, false), (87_000, true)] {
            stations.note(Side::Wan, &frame(2, 1), after(secs));
            assert_eq!(stations.are_on(Side::Wan, &frame(1, 2), after(secs)), known, "after {secs} s");
        }
    }

    #[test]
    fn groups_and_no_address_are_no_stations() {
        let (now, mut stations) = (Instant::from_secs(10), Stations::default());
        let group = [2, 0, 0, 0, 0, 1, 1, 0, 0x5e, 0, 0, 18, 8, 6];
        assert_eq!(stations.note(Side::Wan, &group, now), None);
        assert!(!stations.are_on(Side::Wan, &[0; 14], now));
    }

    proptest! {
        #[test]
        fn what_is_said_on_one_side_displaces_nothing_of_the_other(macs in prop::collection::vec(any::<[u8; 6]>(), 1..2000)) {
            let (now, mut stations) = (Instant::from_secs(10), Stations::default());
            stations.note(Side::Lan, &frame(1, 2), now);
            for mac in macs {
                let mut flood = frame(0, 1);
                flood[6..12].copy_from_slice(&mac);
                stations.note(Side::Wan, &flood, now);
            }
            stations.note(Side::Wan, &frame(1, 2), now);
            prop_assert!(!stations.are_on(Side::Lan, &frame(2, 1), now));
            prop_assert!(!stations.are_on(Side::Wan, &frame(2, 1), now));
        }
    }
}
