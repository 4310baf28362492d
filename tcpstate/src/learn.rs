//! What servers have shown of themselves: the options of their SYN-ACKs, kept per address and port or per address.

use crate::config::Source;
use crate::keyed::Keys;
use crate::seq::WindowScale;
use crate::terms::Offer;
use crate::wire::{Addr, Ends, Options, Vlan};
use crate::{Config, Instant};

/// Seconds after which "the server does not take this" is asked anew: a server that has learned an option since
/// could otherwise never show it, as we do not offer what we hold to be refused.
const REFUSAL_LIFETIME: u32 = 600;
const WAYS: usize = 4;

/// What is known of one option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
enum Known {
    #[default]
    Nothing,
    Taken,
    Refused,
}

/// One server's entry: 40 bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    address: Addr,
    vlan: Vlan,
    /// Zero when the entry speaks for every port.
    port: u16,
    /// Zero marks a free place.
    mss: u16,
    scale: WindowScale,
    scaling: Known,
    sack: Known,
    timestamps: Known,
    /// When the last SYN-ACK came, in seconds.
    seen: u32,
}

/// What the options of a server's SYN-ACK teach, given what our SYN had offered.
#[derive(Clone, Copy, Debug)]
pub struct Lesson {
    /// The SYN-ACK's options.
    pub answered: Options,
    /// Whether our SYN offered a window scale, SACK, timestamps: to what was not offered, silence says nothing.
    pub offered_scale: bool,
    /// See `offered_scale`.
    pub offered_sack: bool,
    /// See `offered_scale`.
    pub offered_timestamps: bool,
}

/// The learning cache: set-associative, the entry longest unseen gives way.
pub struct Learned {
    sets: Vec<[Entry; WAYS]>,
    keys: Keys,
    sources: Sources,
    own_mss: u16,
    own: Offer,
    clamp: u16,
}

/// Where each attribute comes from.
struct Sources {
    mss: Source,
    sack: Source,
    scale: Source,
}

impl Learned {
    /// An empty cache of this configuration's size.
    pub fn new(config: &Config, keys: Keys) -> Self {
        let sets = config.learn_capacity.div_ceil(WAYS).next_power_of_two();
        Self {
            sets: vec![[Entry::default(); WAYS]; sets],
            keys,
            sources: Sources { mss: config.mss, sack: config.sack, scale: config.wscale },
            own_mss: config.own_mss,
            own: Offer {
                mss: config.own_mss,
                scale: Some(WindowScale::clamped(config.own_wscale)),
                sack: config.own_sack,
                timestamps: true,
                timestamps_known: false,
            },
            clamp: config.mss_clamp.unwrap_or(u16::MAX),
        }
    }

    /// What a client that calls this server is offered.
    pub fn offer(&self, ends: &Ends, now: Instant) -> Offer {
        let by_port = self.uses(Source::HashIpPort).then(|| self.find(ends, ends.lan_port)).flatten();
        let by_address = self.uses(Source::HashIp).then(|| self.find(ends, 0)).flatten();
        let entry = |source: Source| match source {
            Source::HashIpPort => by_port,
            Source::HashIp => by_address,
            Source::Default | Source::Commanded => None,
        };
        // Announced to an IPv6 client: at most what the larger header leaves.
        let own_mss = if ends.v6 { self.own_mss.saturating_sub(20).max(1) } else { self.own_mss };
        let mut offer = Offer { mss: own_mss, ..self.own };
        if let Some(entry) = entry(self.sources.mss) {
            offer.mss = entry.mss;
        }
        if let Some(entry) = entry(self.sources.scale) {
            match entry.scaling {
                Known::Taken => offer.scale = Some(entry.scale),
                Known::Refused if entry.is_fresh(now) => offer.scale = None,
                _ => {}
            }
        }
        if let Some(entry) = entry(self.sources.sack) {
            match entry.sack {
                Known::Taken => offer.sack = true,
                Known::Refused if entry.is_fresh(now) => offer.sack = false,
                _ => {}
            }
        }
        // Timestamps have no mode of their own: whatever is known of the server tells.
        if let Some(entry) = by_port.or(by_address) {
            offer.timestamps_known = entry.timestamps == Known::Taken;
            offer.timestamps = entry.timestamps != Known::Refused || !entry.is_fresh(now);
        }
        offer.mss = offer.mss.min(self.clamp);
        offer
    }

    /// Takes note of a server's SYN-ACK.
    pub fn learn(&mut self, ends: &Ends, lesson: &Lesson, now: Instant) {
        if self.uses(Source::HashIpPort) {
            self.store(ends, ends.lan_port, lesson, now);
        }
        if self.uses(Source::HashIp) {
            self.store(ends, 0, lesson, now);
        }
    }

    fn uses(&self, source: Source) -> bool {
        [self.sources.mss, self.sources.sack, self.sources.scale].contains(&source)
    }

    fn set(&self, ends: &Ends, port: u16) -> usize {
        // The LAN's own addresses, and only those that have answered, are written here: nobody can choose them, so a product with a secret
        // spreads them well enough.
        let [a, b, c, d] = ends.lan.map(u64::from);
        let words = [a << 32 | b, c << 32 | d, u64::from(ends.vlan.0) << 16 | u64::from(port)];
        let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(self.keys.1 | 1).rotate_left(29);
        words.into_iter().fold(self.keys.0, mix) as usize & (self.sets.len() - 1)
    }

    fn find(&self, ends: &Ends, port: u16) -> Option<&Entry> {
        self.sets[self.set(ends, port)].iter().find(|entry| entry.is_for(ends, port))
    }

    fn store(&mut self, ends: &Ends, port: u16, lesson: &Lesson, now: Instant) {
        let set = self.set(ends, port);
        let set = &mut self.sets[set];
        let at = set.iter().position(|entry| entry.is_for(ends, port)).unwrap_or_else(|| {
            let oldest = (0..WAYS).min_by_key(|&n| if set[n].mss == 0 { 0 } else { set[n].seen }).unwrap_or(0);
            set[oldest] = Entry { address: ends.lan, vlan: ends.vlan, port, ..Entry::default() };
            oldest
        });
        let entry = &mut set[at];
        let answered = &lesson.answered;
        // RFC 9293 section 3.7.1: without the option 536 is assumed, for IPv6 1220.
        entry.mss = answered.mss.unwrap_or(default_mss(ends));
        entry.seen = seconds(now);
        if let Some(scale) = answered.scale {
            entry.scale = scale;
        }
        let tell = |known: &mut Known, offered: bool, taken: bool| {
            if offered {
                *known = if taken { Known::Taken } else { Known::Refused };
            }
        };
        tell(&mut entry.scaling, lesson.offered_scale, answered.scale.is_some());
        tell(&mut entry.sack, lesson.offered_sack, answered.sack_permitted);
        tell(&mut entry.timestamps, lesson.offered_timestamps, answered.timestamps.is_some());
    }
}

impl Entry {
    fn is_for(&self, ends: &Ends, port: u16) -> bool {
        self.mss != 0 && self.address == ends.lan && self.port == port && self.vlan == ends.vlan
    }

    fn is_fresh(&self, now: Instant) -> bool {
        seconds(now).wrapping_sub(self.seen) < REFUSAL_LIFETIME
    }
}

/// The MSS of a peer that names none (RFC 9293 section 3.7.1).
pub fn default_mss(ends: &Ends) -> u16 {
    if ends.v6 { 1220 } else { 536 }
}

fn seconds(now: Instant) -> u32 {
    (now.as_micros() / 1_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Timestamps;

    fn ends(host: u32, port: u16) -> Ends {
        Ends { lan: [0, 0, 0xffff, host], lan_port: port, ..Ends::default() }
    }

    fn lesson(mss: u16, scale: Option<u8>, sack: bool, timestamps: bool) -> Lesson {
        let answered = Options {
            mss: Some(mss),
            scale: scale.map(WindowScale::clamped),
            sack_permitted: sack,
            timestamps: timestamps.then(Timestamps::default),
        };
        Lesson { answered, offered_scale: true, offered_sack: true, offered_timestamps: true }
    }

    #[test]
    fn an_unknown_server_is_presumed_to_be_as_configured() {
        let learned = Learned::new(&Config::default(), (1, 1));
        let offer = learned.offer(&ends(1, 80), Instant::default());
        assert_eq!((offer.mss, offer.scale, offer.sack), (1460, Some(WindowScale::clamped(7)), true));
        let v6 = Ends { v6: true, ..ends(1, 80) };
        assert_eq!(learned.offer(&v6, Instant::default()).mss, 1440);
    }

    #[test]
    fn a_server_is_known_by_its_last_answer_and_by_its_port() {
        let mut learned = Learned::new(&Config::default(), (1, 1));
        let now = Instant::from_secs(5);
        learned.learn(&ends(1, 80), &lesson(8960, Some(9), false, true), now);
        let offer = learned.offer(&ends(1, 80), now);
        assert_eq!(
            (offer.mss, offer.scale, offer.sack, offer.timestamps_known),
            (8960, Some(WindowScale::clamped(9)), false, true)
        );
        assert!(learned.offer(&ends(1, 81), now).sack);
    }

    #[test]
    fn a_refusal_is_forgotten_so_that_the_server_may_change_its_mind() {
        let mut learned = Learned::new(&Config::default(), (1, 1));
        let now = Instant::from_secs(5);
        learned.learn(&ends(1, 80), &lesson(1460, None, false, false), now);
        let offer = learned.offer(&ends(1, 80), now);
        assert_eq!((offer.scale, offer.sack, offer.timestamps), (None, false, false));
        let offer = learned.offer(&ends(1, 80), Instant::from_secs(5 + 601));
        assert_eq!((offer.scale, offer.sack, offer.timestamps), (Some(WindowScale::clamped(7)), true, true));
    }

    #[test]
    fn what_was_not_offered_teaches_nothing() {
        let mut learned = Learned::new(&Config::default(), (1, 1));
        let silent = Lesson {
            offered_scale: false,
            offered_sack: false,
            offered_timestamps: false,
            ..lesson(1400, None, false, false)
        };
        learned.learn(&ends(1, 80), &silent, Instant::default());
        let offer = learned.offer(&ends(1, 80), Instant::default());
        assert_eq!((offer.mss, offer.sack, offer.timestamps), (1400, true, true));
    }

    #[test]
    fn the_cache_keeps_its_size() {
        let config = Config { learn_capacity: 8, ..Config::default() };
        let mut learned = Learned::new(&config, (1, 1));
        for host in 0..1000 {
            learned.learn(&ends(host, 80), &lesson(1300, None, true, true), Instant::from_secs(u64::from(host)));
        }
        assert_eq!(learned.sets.len() * WAYS, 8);
        assert_eq!(learned.offer(&ends(999, 80), Instant::from_secs(999)).mss, 1300);
    }
}
