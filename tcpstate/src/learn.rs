//! What servers have shown of themselves: the options and the window of their SYN-ACKs, kept per address and port, and
//! per address where the configuration asks for that.

use crate::backends::Backends;
use crate::config::Source;
use crate::flow::{Flow, Marks};
use crate::keyed::Keys;
use crate::seq::{RawWindow, WindowScale};
use crate::terms::Offer;
use crate::wire::{Addr, Ends, Options, Segment, Vlan};
use crate::{Config, Instant, Side};
use std::sync::Arc;

/// Time is kept in units of 2^24 µs, 16.8 s. Sixteen bits of them go round in 12.7 days: a server that is silent for
/// just so long may pass for one seen lately, which costs a client an option at most.
const UNIT_BITS: u32 = 24;
/// After how many units, ten minutes, "the server does not take this" is asked anew: a server that has learned an
/// option since could otherwise never show it, as we do not offer what we hold to be refused.
const REFUSAL_LIFETIME: u16 = 36;
const WAYS: usize = 4;

/// What is known of one option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    Taken,
    Refused,
}

/// What a server takes or refuses.
#[derive(Clone, Copy)]
enum Trait {
    Scale,
    Sack,
    Timestamps,
    Ecn,
}

/// What is known of each trait, in two bits: whether it is taken, whether it is refused.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Traits(u8);

impl Traits {
    const ALL_REFUSED: u8 = 0b10_10_10_10;

    fn get(self, which: Trait) -> Known {
        match self.0 >> (2 * which as u8) & 3 {
            0 => Known::Nothing,
            1 => Known::Taken,
            _ => Known::Refused,
        }
    }

    fn set(&mut self, which: Trait, taken: bool) {
        let shift = 2 * which as u8;
        self.0 = self.0 & !(3 << shift) | (if taken { 1 } else { 2 }) << shift;
    }

    fn has_refusals(self) -> bool {
        self.0 & Self::ALL_REFUSED != 0
    }

    fn forget_refusals(&mut self) {
        self.0 &= !Self::ALL_REFUSED;
    }
}

/// What is known of one server, or of all at one address.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Entry {
    address: Addr,
    vlan: Vlan,
    /// Zero when the entry speaks for every port.
    port: u16,
    /// Zero marks a free place.
    mss: u16,
    /// The window field of the last SYN-ACK.
    window: RawWindow,
    scale: WindowScale,
    traits: Traits,
    /// When the last SYN-ACK came.
    seen: u16,
    /// Since when there are refusals. None of them outlives the first.
    refused: u16,
}

#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Set([Entry; WAYS]);

const _: () = assert!(size_of::<Set>() == 128, "a look touches two cache lines");

/// What a server's SYN-ACK teaches, given what our SYN had offered.
#[derive(Clone, Copy, Debug)]
pub struct Lesson {
    /// The SYN-ACK's options.
    pub answered: Options,
    /// Whether our SYN offered a window scale, SACK, timestamps, ECN: to what was not offered, silence says nothing.
    pub offered_scale: bool,
    /// See `offered_scale`.
    pub offered_sack: bool,
    /// See `offered_scale`.
    pub offered_timestamps: bool,
    /// See `offered_scale`.
    pub offered_ecn: bool,
    /// Whether the SYN-ACK agrees to ECN (RFC 3168 section 6.1.1).
    pub answered_ecn: bool,
    /// The SYN-ACK's window field, which is never scaled (RFC 7323 section 2.2).
    pub window: RawWindow,
}

impl Lesson {
    /// What the SYN-ACK `segment`, with the options `answered`, says to a SYN with what `flow` noted of it.
    pub fn of(segment: &Segment, answered: Options, flow: &Flow) -> Lesson {
        Lesson {
            answered,
            offered_scale: flow.half(Side::Wan).scale().is_some(),
            offered_sack: flow.is(Marks::SACK),
            offered_timestamps: flow.is(Marks::TIMESTAMPS),
            // From the first repetition on a SYN asks for ECN no more (RFC 3168 section 6.1.1.1).
            offered_ecn: flow.is(Marks::ECN_ASKED) && flow.attempts == 0,
            answered_ecn: segment.flags.agree_to_ecn(),
            window: segment.window,
        }
    }
}

/// What was offered in a server's name, while that holds.
#[derive(Clone, Copy)]
struct Said {
    lan: Addr,
    vlan: Vlan,
    lan_port: u16,
    /// When, and before what was learned next.
    unit: u16,
    lessons: u32,
    offer: Offer,
}

/// Servers whose last offers are remembered: a flood calls few.
const SAID: usize = 64;

/// The learning cache: set-associative, the entry longest unseen gives way.
pub struct Learned {
    sets: Vec<Set>,
    keys: Keys,
    sources: Sources,
    /// Whether any attribute comes from what is known of an address.
    by_address: bool,
    own: Offer,
    clamp: u16,
    /// Whether any attribute is commanded.
    is_commanded: bool,
    commanded: Arc<Backends>,
    /// The largest MSS ever commanded.
    most_commanded: u16,
    said: Box<[Option<Said>; SAID]>,
    /// How often something new was learned, on a circle.
    lessons: u32,
}

/// Where each attribute comes from.
#[derive(Clone, Copy)]
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
            sets: vec![Set::default(); sets],
            keys,
            sources: Sources { mss: config.mss, sack: config.sack, scale: config.wscale },
            by_address: [config.mss, config.sack, config.wscale].contains(&Source::HashIp),
            own: Offer {
                mss: config.own_mss,
                scale: Some(WindowScale::clamped(config.own_wscale)),
                sack: config.own_sack,
                timestamps: true,
                timestamps_known: false,
                ecn: false,
                window: None,
                known: false,
            },
            clamp: config.mss_clamp.unwrap_or(u16::MAX),
            is_commanded: [config.mss, config.sack, config.wscale].contains(&Source::Commanded),
            commanded: Arc::default(),
            most_commanded: 0,
            said: Box::new([None; SAID]),
            lessons: 0,
        }
    }

    /// What is known of one server, in a cache of one set.
    pub fn excerpt(&self, ends: &Ends) -> Self {
        let mut set = Set::default();
        for (place, entry) in set.0.iter_mut().zip([self.find(ends, ends.lan_port), self.find(ends, 0)]) {
            *place = entry.copied().unwrap_or_default();
        }
        Self { sets: vec![set], commanded: Arc::clone(&self.commanded), said: Box::new([None; SAID]), ..*self }
    }

    /// From now on this is what the operator says; returns what he had said before. What clients were told before stays true of their
    /// connections: their cookies hold it.
    pub fn command(&mut self, backends: Arc<Backends>) -> Arc<Backends> {
        if self.sources.mss == Source::Commanded {
            self.most_commanded = self.most_commanded.max(backends.most_mss());
        }
        self.lessons = self.lessons.wrapping_add(1);
        core::mem::replace(&mut self.commanded, backends)
    }

    /// As [`Learned::offer`], and sooner said if it was said lately.
    #[inline(always)]
    pub fn offer_again(&mut self, ends: &Ends, now: Instant) -> Offer {
        match &self.said[Self::said_at(ends)] {
            Some(said)
                if said.lan == ends.lan
                    && said.lan_port == ends.lan_port
                    && said.vlan == ends.vlan
                    && said.unit == unit(now)
                    && said.lessons == self.lessons =>
            {
                said.offer
            }
            _ => self.offer_anew(ends, now),
        }
    }

    #[inline(never)]
    fn offer_anew(&mut self, ends: &Ends, now: Instant) -> Offer {
        let Ends { lan, lan_port, vlan, .. } = *ends;
        let offer = self.offer(ends, now);
        self.said[Self::said_at(ends)] =
            Some(Said { lan, vlan, lan_port, unit: unit(now), lessons: self.lessons, offer });
        offer
    }

    /// Where the offer for a server is remembered. Whoever chooses targets to displace others gains nothing but a look at the cache itself.
    #[inline(always)]
    fn said_at(ends: &Ends) -> usize {
        (ends.lan[3] ^ u32::from(ends.lan_port)) as usize % SAID
    }

    /// What a client that calls this server is offered.
    pub fn offer(&self, ends: &Ends, now: Instant) -> Offer {
        let by_port = self.find(ends, ends.lan_port);
        let by_address = if self.by_address { self.find(ends, 0) } else { None };
        let entry = |source: Source| match source {
            Source::HashIpPort => by_port,
            Source::HashIp => by_address,
            Source::Default | Source::Commanded => None,
        };
        let mut offer = Offer { mss: self.own_mss(ends), ..self.own };
        if self.is_commanded
            && let Some(backend) = self.commanded.find(&ends.lan, ends.lan_port)
        {
            if self.sources.mss == Source::Commanded {
                offer.mss = backend.mss;
            }
            if self.sources.scale == Source::Commanded {
                offer.scale = Some(backend.scale);
            }
            if self.sources.sack == Source::Commanded {
                offer.sack = backend.sack;
            }
        }
        if let Some(entry) = entry(self.sources.mss) {
            offer.mss = entry.mss;
        }
        if let Some(entry) = entry(self.sources.scale) {
            match entry.knows(Trait::Scale, now) {
                Known::Taken => offer.scale = Some(entry.scale),
                Known::Refused => offer.scale = None,
                Known::Nothing => {}
            }
        }
        if let Some(entry) = entry(self.sources.sack) {
            match entry.knows(Trait::Sack, now) {
                Known::Taken => offer.sack = true,
                Known::Refused => offer.sack = false,
                Known::Nothing => {}
            }
        }
        // Timestamps have no mode of their own: whatever is known of the server tells.
        if let Some(entry) = by_port.or(by_address) {
            let timestamps = entry.knows(Trait::Timestamps, now);
            offer.timestamps_known = timestamps == Known::Taken;
            offer.timestamps = timestamps != Known::Refused;
        }
        // Nor have these, which one port's server does not promise for another's.
        if let Some(entry) = by_port {
            offer.ecn = entry.knows(Trait::Ecn, now) == Known::Taken;
            offer.window = Some(entry.window);
            offer.known = true;
        }
        offer.mss = offer.mss.min(self.clamp);
        offer
    }

    /// The largest MSS a client of this server can have been told, whatever the operator has said of the server since.
    pub fn most_told(&mut self, ends: &Ends, now: Instant) -> u16 {
        self.offer_again(ends, now).mss.max(self.own_mss(ends)).max(self.most_commanded).min(self.clamp)
    }

    /// What is announced for a server nothing is known of: to an IPv6 client at most what the larger header leaves.
    fn own_mss(&self, ends: &Ends) -> u16 {
        if ends.v6 { self.own.mss.saturating_sub(20).max(1) } else { self.own.mss }
    }

    /// Takes note of a server's SYN-ACK. Returns whether that is news: something not known before, or the first sign of life for a
    /// while, which keeps its place in a cache wherever it is told.
    pub fn learn(&mut self, ends: &Ends, lesson: &Lesson, now: Instant) -> bool {
        let of_port = self.store(ends, ends.lan_port, lesson, now);
        let of_address = self.by_address && self.store(ends, 0, lesson, now);
        of_port || of_address
    }

    fn set(&self, ends: &Ends, port: u16) -> usize {
        // The LAN's own addresses, and only those that have answered, are written here: nobody can choose them, so a
        // product with a secret spreads them well enough.
        let [a, b, c, d] = ends.lan.map(u64::from);
        let words = [a << 32 | b, c << 32 | d, u64::from(ends.vlan.0) << 16 | u64::from(port)];
        let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(self.keys.1 | 1).rotate_left(29);
        words.into_iter().fold(self.keys.0, mix) as usize & (self.sets.len() - 1)
    }

    fn find(&self, ends: &Ends, port: u16) -> Option<&Entry> {
        self.sets[self.set(ends, port)].0.iter().find(|entry| entry.is_for(ends, port))
    }

    /// Returns whether the entry has changed.
    fn store(&mut self, ends: &Ends, port: u16, lesson: &Lesson, now: Instant) -> bool {
        let set = self.set(ends, port);
        let set = &mut self.sets[set].0;
        let at = set.iter().position(|entry| entry.is_for(ends, port)).unwrap_or_else(|| {
            let longest_unseen =
                |n: &usize| if set[*n].mss == 0 { u16::MAX } else { unit(now).wrapping_sub(set[*n].seen) };
            let oldest = (0..WAYS).max_by_key(longest_unseen).unwrap_or(0);
            set[oldest] = Entry { address: ends.lan, vlan: ends.vlan, port, ..Entry::default() };
            oldest
        });
        let entry = &mut set[at];
        let before = *entry;
        let answered = &lesson.answered;
        // RFC 9293 section 3.7.1: without the option 536 is assumed, for IPv6 1220.
        entry.mss = answered.mss.unwrap_or(default_mss(ends));
        entry.window = lesson.window;
        entry.seen = unit(now);
        if let Some(scale) = answered.scale {
            entry.scale = scale;
        }
        if !entry.refusals_stand(now) {
            entry.traits.forget_refusals();
        }
        entry.tell(Trait::Scale, lesson.offered_scale, answered.scale.is_some(), now);
        entry.tell(Trait::Sack, lesson.offered_sack, answered.sack_permitted, now);
        entry.tell(Trait::Timestamps, lesson.offered_timestamps, answered.timestamps.is_some(), now);
        entry.tell(Trait::Ecn, lesson.offered_ecn, lesson.answered_ecn, now);
        let is_news = *entry != before;
        if before != (Entry { seen: before.seen, ..*entry }) {
            self.lessons = self.lessons.wrapping_add(1);
        }
        is_news
    }
}

impl Entry {
    fn is_for(&self, ends: &Ends, port: u16) -> bool {
        self.mss != 0 && self.address == ends.lan && self.port == port && self.vlan == ends.vlan
    }

    /// What is known of a trait now.
    fn knows(&self, which: Trait, now: Instant) -> Known {
        match self.traits.get(which) {
            Known::Refused if !self.refusals_stand(now) => Known::Nothing,
            known => known,
        }
    }

    fn tell(&mut self, which: Trait, offered: bool, taken: bool, now: Instant) {
        if !offered {
            return;
        }
        if !taken && !self.traits.has_refusals() {
            self.refused = unit(now);
        }
        self.traits.set(which, taken);
    }

    fn refusals_stand(&self, now: Instant) -> bool {
        unit(now).wrapping_sub(self.refused) < REFUSAL_LIFETIME
    }
}

/// The MSS of a peer that names none (RFC 9293 section 3.7.1).
pub fn default_mss(ends: &Ends) -> u16 {
    if ends.v6 { 1220 } else { 536 }
}

fn unit(now: Instant) -> u16 {
    (now.as_micros() >> UNIT_BITS) as u16
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
            ..Options::default()
        };
        Lesson {
            answered,
            offered_scale: true,
            offered_sack: true,
            offered_timestamps: true,
            offered_ecn: true,
            answered_ecn: false,
            window: RawWindow(65535),
        }
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
            offered_ecn: false,
            ..lesson(1400, None, false, false)
        };
        learned.learn(&ends(1, 80), &silent, Instant::default());
        let offer = learned.offer(&ends(1, 80), Instant::default());
        assert_eq!((offer.mss, offer.sack, offer.timestamps), (1400, true, true));
        // What was known of it before still holds.
        let agrees = Lesson { answered_ecn: true, ..lesson(1400, Some(9), true, true) };
        learned.learn(&ends(1, 80), &agrees, Instant::default());
        learned.learn(&ends(1, 80), &silent, Instant::default());
        let offer = learned.offer(&ends(1, 80), Instant::default());
        assert_eq!((offer.scale, offer.timestamps_known, offer.ecn), (Some(WindowScale::clamped(9)), true, true));
    }

    /// We do not offer what was refused, so most lessons of a busy server say nothing of it: they must not prolong the
    /// refusal.
    #[test]
    fn a_busy_server_too_may_change_its_mind() {
        let mut learned = Learned::new(&Config::default(), (1, 1));
        let refuses = lesson(1460, Some(7), false, true);
        let silent = Lesson { offered_sack: false, ..lesson(1460, Some(7), true, true) };
        learned.learn(&ends(1, 80), &refuses, Instant::from_secs(5));
        let mut asked_anew = Vec::new();
        for second in 6..3000 {
            let now = Instant::from_secs(second);
            if learned.offer(&ends(1, 80), now).sack {
                asked_anew.push(second);
                learned.learn(&ends(1, 80), &refuses, now);
            } else {
                learned.learn(&ends(1, 80), &silent, now);
            }
        }
        let intervals: Vec<u64> = asked_anew.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(intervals.len(), 3, "{asked_anew:?}");
        assert!(intervals.iter().all(|interval| (580..=620).contains(interval)), "{asked_anew:?}");
    }

    #[test]
    fn the_last_answer_counts() {
        let mut learned = Learned::new(&Config::default(), (1, 1));
        let now = Instant::from_secs(5);
        for taken in [false, true, false] {
            let answer = lesson(1460, taken.then_some(9), taken, taken);
            learned.learn(&ends(1, 80), &Lesson { answered_ecn: taken, ..answer }, now);
            let offer = learned.offer(&ends(1, 80), now);
            assert_eq!((offer.scale.is_some(), offer.sack, offer.timestamps, offer.ecn), (taken, taken, taken, taken));
        }
    }

    #[test]
    fn a_refusal_repeated_all_the_time_keeps_no_other_alive() {
        let config = Config { wscale: Source::Default, ..Config::default() };
        let mut learned = Learned::new(&config, (1, 1));
        learned.learn(&ends(1, 80), &lesson(1460, None, false, true), Instant::from_secs(5));
        // The scale comes from the configuration, so it is offered, and refused, every time.
        let unscaled = Lesson { offered_sack: false, ..lesson(1460, None, false, true) };
        for second in 6..625 {
            learned.learn(&ends(1, 80), &unscaled, Instant::from_secs(second));
        }
        assert!(learned.offer(&ends(1, 80), Instant::from_secs(625)).sack);
    }

    #[test]
    fn ecn_is_claimed_only_of_a_port_that_has_agreed_to_it() {
        let config = Config { mss: Source::HashIp, ..Config::default() };
        let mut learned = Learned::new(&config, (1, 1));
        let now = Instant::from_secs(5);
        let agrees = Lesson { answered_ecn: true, ..lesson(1460, None, true, true) };
        learned.learn(&ends(1, 80), &agrees, now);
        assert!(learned.offer(&ends(1, 80), now).ecn);
        assert!(!learned.offer(&ends(1, 81), now).ecn);
        learned.learn(&ends(1, 80), &lesson(1460, None, true, true), now);
        assert!(!learned.offer(&ends(1, 80), now).ecn, "it has changed its mind");
        assert!(!learned.offer(&ends(1, 80), Instant::from_secs(5000)).ecn, "nor is it presumed when that is long ago");
    }

    #[test]
    fn what_has_no_mode_is_learned_by_port_even_if_everything_else_is_configured() {
        let config =
            Config { mss: Source::Default, sack: Source::Default, wscale: Source::Commanded, ..Config::default() };
        let mut learned = Learned::new(&config, (1, 1));
        let now = Instant::from_secs(5);
        let nothing = learned.offer(&ends(1, 80), now);
        assert_eq!((nothing.known, nothing.window, nothing.ecn), (false, None, false));
        let agrees = Lesson { answered_ecn: true, window: RawWindow(4321), ..lesson(1300, Some(3), false, false) };
        learned.learn(&ends(1, 80), &agrees, now);
        let offer = learned.offer(&ends(1, 80), now);
        assert_eq!((offer.mss, offer.scale, offer.sack), (nothing.mss, nothing.scale, nothing.sack));
        assert_eq!((offer.known, offer.window, offer.ecn), (true, Some(RawWindow(4321)), true));
        assert!(!offer.timestamps);
        learned.learn(&ends(1, 80), &Lesson { window: RawWindow(8), ..agrees }, now);
        assert_eq!(learned.offer(&ends(1, 80), now).window, Some(RawWindow(8)), "the last answer counts");
        assert_eq!(learned.offer(&ends(1, 81), now), nothing, "and another port is another server");
    }

    #[test]
    fn what_is_known_by_address_holds_for_every_port() {
        let config =
            Config { mss: Source::HashIp, sack: Source::HashIp, wscale: Source::HashIpPort, ..Config::default() };
        let mut learned = Learned::new(&config, (1, 1));
        let now = Instant::from_secs(5);
        learned.learn(&ends(1, 80), &lesson(1300, Some(3), false, false), now);
        let offer = learned.offer(&ends(1, 81), now);
        assert_eq!((offer.mss, offer.sack, offer.scale), (1300, false, Some(WindowScale::clamped(7))));
        assert_eq!((offer.timestamps, offer.known, offer.window), (false, false, None));
    }

    #[test]
    fn no_client_was_told_more_than_this() {
        let config = Config { mss_clamp: Some(1450), ..Config::default() };
        let mut learned = Learned::new(&config, (1, 1));
        let (v4, v6, now) = (ends(1, 80), Ends { v6: true, ..ends(2, 80) }, Instant::default());
        assert_eq!((learned.most_told(&v4, now), learned.most_told(&v6, now)), (1450, 1440));
        learned.learn(&v4, &lesson(1300, None, true, true), now);
        learned.learn(&v6, &lesson(8940, None, true, true), now);
        assert_eq!((learned.most_told(&v4, now), learned.most_told(&v6, now)), (1450, 1450));
    }

    #[test]
    fn the_cache_keeps_its_size_and_whom_it_sees_often() {
        let config = Config { learn_capacity: 8, ..Config::default() };
        let mut learned = Learned::new(&config, (1, 1));
        for host in 1..1000 {
            let now = Instant::from_secs(20 * u64::from(host));
            learned.learn(&ends(host, 80), &lesson(1300, None, true, true), now);
            learned.learn(&ends(0, 80), &lesson(1200, None, true, true), now);
        }
        assert_eq!(learned.sets.len() * WAYS, 8);
        let known = (0..1000).filter(|&host| learned.offer(&ends(host, 80), Instant::from_secs(20_000)).known);
        assert_eq!(known.count(), 8);
        assert_eq!(learned.offer(&ends(999, 80), Instant::from_secs(20_000)).mss, 1300);
        assert_eq!(learned.offer(&ends(0, 80), Instant::from_secs(20_000)).mss, 1200, "who is seen often stays");
    }
}
