//! What servers have shown of themselves: the options and the window of their SYN-ACKs, kept per address and port, and
//! per address where the configuration asks for that.

use crate::config::Source;
use crate::cookie::terms::Offer;
use crate::flow::{Flow, FlowFlags};
use crate::keyed::Keys;
use crate::policy::servers::ServerTable;
use crate::policy::{Policy, Rule};
use crate::seq::{RawWindow, WindowScale};
use crate::wire::{Addr, FlowKey, Options, Segment, Vlan};
use crate::{Instant, Side};
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
    /// Zero when the entry is for every port.
    port: u16,
    /// Zero is a free slot.
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

const _: () = assert!(size_of::<Set>() == 128, "a lookup touches two cache lines");

/// What a server's SYN-ACK shows of it, given the options of our SYN.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
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

impl Observation {
    /// What the SYN-ACK `segment`, with the options `answered`, says to a SYN with what `flow` noted of it.
    pub fn of(segment: &Segment, answered: Options, flow: &Flow) -> Observation {
        Observation {
            answered,
            offered_scale: flow.endpoint(Side::Wan).scale().is_some(),
            offered_sack: flow.is(FlowFlags::SACK),
            offered_timestamps: flow.is(FlowFlags::TIMESTAMPS),
            // From the first repetition on a SYN asks for ECN no more (RFC 3168 section 6.1.1.1).
            offered_ecn: flow.is(FlowFlags::ECN_ASKED) && flow.attempts == 0,
            answered_ecn: segment.flags.agree_to_ecn(),
            window: segment.window,
        }
    }
}

/// What was offered in a server's name, while that holds.
#[derive(Clone, Copy)]
struct CachedOffer {
    lan: Addr,
    vlan: Vlan,
    lan_port: u16,
    /// When, and before what was learned next.
    unit: u16,
    observations: u32,
    offer: Offer,
}

/// Servers whose last offers are remembered: a flood has few targets.
const CACHED_OFFERS: usize = 64;

/// The learning cache: set-associative, the least recently updated entry is evicted.
pub struct ServerOptions {
    sets: Vec<Set>,
    keys: Keys,
    /// Whether any rule takes an attribute from what is known of an address.
    by_address: bool,
    /// Whether any rule takes an attribute from what is commanded, and whether the MSS.
    is_commanded: bool,
    commands_mss: bool,
    commanded: Arc<ServerTable>,
    /// Of former policies the largest MSS announced for servers nothing is known of, and the largest clamp; zero if there was none.
    former_most: (u16, u16),
    /// The largest MSS ever commanded.
    most_commanded: u16,
    cached_offers: Box<[Option<CachedOffer>; CACHED_OFFERS]>,
    /// How often something new was learned, on a circle.
    observations: u32,
}

impl ServerOptions {
    /// An empty cache for so many servers, under this policy.
    pub fn new(capacity: usize, policy: &Policy, keys: Keys) -> Self {
        let sets = capacity.div_ceil(WAYS).next_power_of_two();
        Self {
            sets: vec![Set::default(); sets],
            keys,
            by_address: policy.learns_by_address(),
            is_commanded: policy.is_commanded(),
            commands_mss: policy.commands_mss(),
            commanded: Arc::default(),
            former_most: (0, 0),
            most_commanded: 0,
            cached_offers: Box::new([None; CACHED_OFFERS]),
            observations: 0,
        }
    }

    /// What is known of one server, in a cache of one set.
    pub fn excerpt(&self, key: &FlowKey) -> Self {
        let mut set = Set::default();
        for (place, entry) in set.0.iter_mut().zip([self.find(key, key.lan_port), self.find(key, 0)]) {
            *place = entry.copied().unwrap_or_default();
        }
        Self {
            sets: vec![set],
            commanded: Arc::clone(&self.commanded),
            cached_offers: Box::new([None; CACHED_OFFERS]),
            ..*self
        }
    }

    /// From now on these are the operator's statements; returns the former ones. What earlier SYN-ACKs announced stays true of their
    /// connections: their cookies hold it.
    pub fn command(&mut self, entries: Arc<ServerTable>) -> Arc<ServerTable> {
        if self.commands_mss {
            self.most_commanded = self.most_commanded.max(entries.most_mss());
        }
        self.observations = self.observations.wrapping_add(1);
        core::mem::replace(&mut self.commanded, entries)
    }

    /// From now on offers follow this policy instead of that one.
    pub fn set_policy(&mut self, policy: &Policy, former: &Policy) {
        let (own_mss, clamp) = former.most_told();
        self.former_most = (self.former_most.0.max(own_mss), self.former_most.1.max(clamp));
        self.by_address = policy.learns_by_address();
        self.is_commanded = policy.is_commanded();
        self.commands_mss = policy.commands_mss();
        if self.commands_mss {
            self.most_commanded = self.most_commanded.max(self.commanded.most_mss());
        }
        self.observations = self.observations.wrapping_add(1);
    }

    /// As [`ServerOptions::offer`], and faster if the same was looked up recently.
    #[inline(always)]
    pub fn offer_cached(&mut self, key: &FlowKey, rule: &Rule, now: Instant) -> Offer {
        match &self.cached_offers[Self::cached_offer_at(key)] {
            Some(cached_offers)
                if cached_offers.lan == key.lan
                    && cached_offers.lan_port == key.lan_port
                    && cached_offers.vlan == key.vlan
                    && cached_offers.unit == unit(now)
                    && cached_offers.observations == self.observations =>
            {
                cached_offers.offer
            }
            _ => self.offer_uncached(key, rule, now),
        }
    }

    #[inline(never)]
    fn offer_uncached(&mut self, key: &FlowKey, rule: &Rule, now: Instant) -> Offer {
        let FlowKey { lan, lan_port, vlan, .. } = *key;
        let offer = self.offer(key, rule, now);
        self.cached_offers[Self::cached_offer_at(key)] =
            Some(CachedOffer { lan, vlan, lan_port, unit: unit(now), observations: self.observations, offer });
        offer
    }

    /// Where the offer for a server is remembered. An attacker who picks targets that displace others only costs a lookup in the cache itself.
    #[inline(always)]
    fn cached_offer_at(key: &FlowKey) -> usize {
        (key.lan[3] ^ u32::from(key.lan_port)) as usize % CACHED_OFFERS
    }

    /// What a client of this server is offered under the rule for it.
    pub fn offer(&self, key: &FlowKey, rule: &Rule, now: Instant) -> Offer {
        let by_port = self.find(key, key.lan_port);
        let by_address = if self.by_address { self.find(key, 0) } else { None };
        let entry = |source: Source| match source {
            Source::HashIpPort => by_port,
            Source::HashIp => by_address,
            Source::Default | Source::Commanded => None,
        };
        let mut offer = Offer {
            mss: own_mss(key, rule),
            scale: Some(rule.own_scale),
            sack: rule.own_sack,
            timestamps: true,
            timestamps_known: false,
            ecn: false,
            window: None,
            known: false,
        };
        if self.is_commanded
            && let Some(entry) = self.commanded.find(&key.lan, key.lan_port)
        {
            if rule.mss == Source::Commanded {
                offer.mss = entry.mss;
            }
            if rule.wscale == Source::Commanded {
                offer.scale = Some(entry.scale);
            }
            if rule.sack == Source::Commanded {
                offer.sack = entry.sack;
            }
        }
        if let Some(entry) = entry(rule.mss) {
            offer.mss = entry.mss;
        }
        if let Some(entry) = entry(rule.wscale) {
            match entry.knows(Trait::Scale, now) {
                Known::Taken => offer.scale = Some(entry.scale),
                Known::Refused => offer.scale = None,
                Known::Nothing => {}
            }
        }
        if let Some(entry) = entry(rule.sack) {
            match entry.knows(Trait::Sack, now) {
                Known::Taken => offer.sack = true,
                Known::Refused => offer.sack = false,
                Known::Nothing => {}
            }
        }
        // Timestamps have no mode of their own: they follow from what is known of the server.
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
        offer.mss = offer.mss.min(rule.mss_clamp);
        offer
    }

    /// The largest MSS that a SYN-ACK in this server's name can have announced, whatever the configuration says now.
    pub fn most_told(&mut self, key: &FlowKey, rule: &Rule, now: Instant) -> u16 {
        let present = self.offer_cached(key, rule, now).mss.max(own_mss(key, rule));
        let (own_mss, clamp) = self.former_most;
        if clamp == 0 {
            return present.max(self.most_commanded).min(rule.mss_clamp);
        }
        // Another policy may have taken the MSS from elsewhere, and let more of it pass.
        let known = [key.lan_port, 0].map(|port| self.find(key, port).map_or(0, |entry| entry.mss));
        let most = known.into_iter().fold(present.max(own_mss), u16::max);
        most.max(self.most_commanded).min(rule.mss_clamp.max(clamp))
    }

    /// Takes note of a server's SYN-ACK. Returns whether to publish it: something not known before, or the first SYN-ACK for a
    /// while, which keeps its entry in other workers' caches.
    pub fn learn(&mut self, key: &FlowKey, observation: &Observation, now: Instant) -> bool {
        let of_port = self.store(key, key.lan_port, observation, now);
        let of_address = self.by_address && self.store(key, 0, observation, now);
        of_port || of_address
    }

    fn set(&self, key: &FlowKey, port: u16) -> usize {
        // The LAN's own addresses, and only those that have answered, are written here: an attacker cannot choose them, so a
        // product with a secret spreads them well enough.
        let [a, b, c, d] = key.lan.map(u64::from);
        let words = [a << 32 | b, c << 32 | d, u64::from(key.vlan.0) << 16 | u64::from(port)];
        let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(self.keys.1 | 1).rotate_left(29);
        words.into_iter().fold(self.keys.0, mix) as usize & (self.sets.len() - 1)
    }

    fn find(&self, key: &FlowKey, port: u16) -> Option<&Entry> {
        self.sets[self.set(key, port)].0.iter().find(|entry| entry.is_for(key, port))
    }

    /// Returns whether the entry has changed.
    fn store(&mut self, key: &FlowKey, port: u16, observation: &Observation, now: Instant) -> bool {
        let set = self.set(key, port);
        let set = &mut self.sets[set].0;
        let at = set.iter().position(|entry| entry.is_for(key, port)).unwrap_or_else(|| {
            let longest_unseen =
                |n: &usize| if set[*n].mss == 0 { u16::MAX } else { unit(now).wrapping_sub(set[*n].seen) };
            let oldest = (0..WAYS).max_by_key(longest_unseen).unwrap_or(0);
            set[oldest] = Entry { address: key.lan, vlan: key.vlan, port, ..Entry::default() };
            oldest
        });
        let entry = &mut set[at];
        let before = *entry;
        let answered = &observation.answered;
        // RFC 9293 section 3.7.1: without the option 536 is assumed, for IPv6 1220.
        entry.mss = answered.mss.unwrap_or(default_mss(key));
        entry.window = observation.window;
        entry.seen = unit(now);
        if let Some(scale) = answered.scale {
            entry.scale = scale;
        }
        if !entry.refusals_stand(now) {
            entry.traits.forget_refusals();
        }
        entry.note(Trait::Scale, observation.offered_scale, answered.scale.is_some(), now);
        entry.note(Trait::Sack, observation.offered_sack, answered.sack_permitted, now);
        entry.note(Trait::Timestamps, observation.offered_timestamps, answered.timestamps.is_some(), now);
        entry.note(Trait::Ecn, observation.offered_ecn, observation.answered_ecn, now);
        let is_news = *entry != before;
        if before != (Entry { seen: before.seen, ..*entry }) {
            self.observations = self.observations.wrapping_add(1);
        }
        is_news
    }
}

impl Entry {
    fn is_for(&self, key: &FlowKey, port: u16) -> bool {
        self.mss != 0 && self.address == key.lan && self.port == port && self.vlan == key.vlan
    }

    /// What is known of a trait now.
    fn knows(&self, which: Trait, now: Instant) -> Known {
        match self.traits.get(which) {
            Known::Refused if !self.refusals_stand(now) => Known::Nothing,
            known => known,
        }
    }

    fn note(&mut self, which: Trait, offered: bool, taken: bool, now: Instant) {
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

/// The MSS announced for an unknown server: to an IPv6 client at most what the larger header leaves.
fn own_mss(key: &FlowKey, rule: &Rule) -> u16 {
    if key.v6 { rule.own_mss.saturating_sub(20).max(1) } else { rule.own_mss }
}

/// The MSS of a peer that names none (RFC 9293 section 3.7.1).
pub fn default_mss(key: &FlowKey) -> u16 {
    if key.v6 { 1220 } else { 536 }
}

fn unit(now: Instant) -> u16 {
    (now.as_micros() >> UNIT_BITS) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::wire::Timestamps;

    /// A cache and the rule for everybody.
    struct Tested {
        cache: ServerOptions,
        policy: Policy,
    }

    fn tested(config: &Config) -> Tested {
        let policy = Policy::new(config, Instant::default());
        Tested { cache: ServerOptions::new(config.learn_capacity, &policy, (1, 1)), policy }
    }

    impl Tested {
        fn offer(&self, key: &FlowKey, now: Instant) -> Offer {
            self.cache.offer(key, self.policy.everybody(), now)
        }

        fn most_told(&mut self, key: &FlowKey, now: Instant) -> u16 {
            self.cache.most_told(key, self.policy.everybody(), now)
        }

        fn learn(&mut self, key: &FlowKey, observation: &Observation, now: Instant) -> bool {
            self.cache.learn(key, observation, now)
        }

        fn set_policy(&mut self, config: &Config) {
            let policy = Policy::new(config, Instant::default());
            self.cache.set_policy(&policy, &self.policy);
            self.policy = policy;
        }
    }

    #[test]
    fn what_clients_were_told_under_former_policies_is_remembered() {
        let told = |own_mss, mss_clamp| Config { own_mss, mss_clamp, ..Config::default() };
        let mut server_options = tested(&told(1460, Some(1400)));
        let now = Instant::default();
        assert_eq!(server_options.most_told(&key(1, 80), now), 1400);
        server_options.set_policy(&told(1200, None));
        assert_eq!(server_options.offer(&key(1, 80), now).mss, 1200);
        assert_eq!(server_options.most_told(&key(1, 80), now), 1460);
        server_options.learn(&key(1, 80), &observation(8940, None, true, true), now);
        server_options.set_policy(&Config { mss: Source::Default, ..told(1200, Some(600)) });
        assert_eq!(server_options.offer(&key(1, 80), now).mss, 600);
        assert_eq!(server_options.most_told(&key(1, 80), now), 8940);
    }

    fn key(host: u32, port: u16) -> FlowKey {
        FlowKey { lan: [0, 0, 0xffff, host], lan_port: port, ..FlowKey::default() }
    }

    fn observation(mss: u16, scale: Option<u8>, sack: bool, timestamps: bool) -> Observation {
        let answered = Options {
            mss: Some(mss),
            scale: scale.map(WindowScale::clamped),
            sack_permitted: sack,
            timestamps: timestamps.then(Timestamps::default),
            ..Options::default()
        };
        Observation {
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
        let server_options = tested(&Config::default());
        let offer = server_options.offer(&key(1, 80), Instant::default());
        assert_eq!((offer.mss, offer.scale, offer.sack), (1460, Some(WindowScale::clamped(7)), true));
        let v6 = FlowKey { v6: true, ..key(1, 80) };
        assert_eq!(server_options.offer(&v6, Instant::default()).mss, 1440);
    }

    #[test]
    fn a_server_is_known_by_its_last_answer_and_by_its_port() {
        let mut server_options = tested(&Config::default());
        let now = Instant::from_secs(5);
        server_options.learn(&key(1, 80), &observation(8960, Some(9), false, true), now);
        let offer = server_options.offer(&key(1, 80), now);
        assert_eq!(
            (offer.mss, offer.scale, offer.sack, offer.timestamps_known),
            (8960, Some(WindowScale::clamped(9)), false, true)
        );
        assert!(server_options.offer(&key(1, 81), now).sack);
    }

    #[test]
    fn a_refusal_is_forgotten_so_that_the_server_may_change_its_mind() {
        let mut server_options = tested(&Config::default());
        let now = Instant::from_secs(5);
        server_options.learn(&key(1, 80), &observation(1460, None, false, false), now);
        let offer = server_options.offer(&key(1, 80), now);
        assert_eq!((offer.scale, offer.sack, offer.timestamps), (None, false, false));
        let offer = server_options.offer(&key(1, 80), Instant::from_secs(5 + 601));
        assert_eq!((offer.scale, offer.sack, offer.timestamps), (Some(WindowScale::clamped(7)), true, true));
    }

    #[test]
    fn what_was_not_offered_teaches_nothing() {
        let mut server_options = tested(&Config::default());
        let silent = Observation {
            offered_scale: false,
            offered_sack: false,
            offered_timestamps: false,
            offered_ecn: false,
            ..observation(1400, None, false, false)
        };
        server_options.learn(&key(1, 80), &silent, Instant::default());
        let offer = server_options.offer(&key(1, 80), Instant::default());
        assert_eq!((offer.mss, offer.sack, offer.timestamps), (1400, true, true));
        // What was known of it before still holds.
        let agrees = Observation { answered_ecn: true, ..observation(1400, Some(9), true, true) };
        server_options.learn(&key(1, 80), &agrees, Instant::default());
        server_options.learn(&key(1, 80), &silent, Instant::default());
        let offer = server_options.offer(&key(1, 80), Instant::default());
        assert_eq!((offer.scale, offer.timestamps_known, offer.ecn), (Some(WindowScale::clamped(9)), true, true));
    }

    /// We do not offer what was refused, so most lessons of a busy server say nothing of it: they must not prolong the
    /// refusal.
    #[test]
    fn a_busy_server_too_may_change_its_mind() {
        let mut server_options = tested(&Config::default());
        let refuses = observation(1460, Some(7), false, true);
        let silent = Observation { offered_sack: false, ..observation(1460, Some(7), true, true) };
        server_options.learn(&key(1, 80), &refuses, Instant::from_secs(5));
        let mut asked_anew = Vec::new();
        for second in 6..3000 {
            let now = Instant::from_secs(second);
            if server_options.offer(&key(1, 80), now).sack {
                asked_anew.push(second);
                server_options.learn(&key(1, 80), &refuses, now);
            } else {
                server_options.learn(&key(1, 80), &silent, now);
            }
        }
        let intervals: Vec<u64> = asked_anew.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(intervals.len(), 3, "{asked_anew:?}");
        assert!(intervals.iter().all(|interval| (580..=620).contains(interval)), "{asked_anew:?}");
    }

    #[test]
    fn the_last_answer_counts() {
        let mut server_options = tested(&Config::default());
        let now = Instant::from_secs(5);
        for taken in [false, true, false] {
            let answer = observation(1460, taken.then_some(9), taken, taken);
            server_options.learn(&key(1, 80), &Observation { answered_ecn: taken, ..answer }, now);
            let offer = server_options.offer(&key(1, 80), now);
            assert_eq!((offer.scale.is_some(), offer.sack, offer.timestamps, offer.ecn), (taken, taken, taken, taken));
        }
    }

    #[test]
    fn a_refusal_repeated_all_the_time_keeps_no_other_alive() {
        let config = Config { wscale: Source::Default, ..Config::default() };
        let mut server_options = tested(&config);
        server_options.learn(&key(1, 80), &observation(1460, None, false, true), Instant::from_secs(5));
        // The scale comes from the configuration, so it is offered, and refused, every time.
        let unscaled = Observation { offered_sack: false, ..observation(1460, None, false, true) };
        for second in 6..625 {
            server_options.learn(&key(1, 80), &unscaled, Instant::from_secs(second));
        }
        assert!(server_options.offer(&key(1, 80), Instant::from_secs(625)).sack);
    }

    #[test]
    fn ecn_is_claimed_only_of_a_port_that_has_agreed_to_it() {
        let config = Config { mss: Source::HashIp, ..Config::default() };
        let mut server_options = tested(&config);
        let now = Instant::from_secs(5);
        let agrees = Observation { answered_ecn: true, ..observation(1460, None, true, true) };
        server_options.learn(&key(1, 80), &agrees, now);
        assert!(server_options.offer(&key(1, 80), now).ecn);
        assert!(!server_options.offer(&key(1, 81), now).ecn);
        server_options.learn(&key(1, 80), &observation(1460, None, true, true), now);
        assert!(!server_options.offer(&key(1, 80), now).ecn, "it has changed its mind");
        assert!(
            !server_options.offer(&key(1, 80), Instant::from_secs(5000)).ecn,
            "nor is it presumed when that is long ago"
        );
    }

    #[test]
    fn what_has_no_mode_is_learned_by_port_even_if_everything_else_is_configured() {
        let config =
            Config { mss: Source::Default, sack: Source::Default, wscale: Source::Commanded, ..Config::default() };
        let mut server_options = tested(&config);
        let now = Instant::from_secs(5);
        let nothing = server_options.offer(&key(1, 80), now);
        assert_eq!((nothing.known, nothing.window, nothing.ecn), (false, None, false));
        let agrees =
            Observation { answered_ecn: true, window: RawWindow(4321), ..observation(1300, Some(3), false, false) };
        server_options.learn(&key(1, 80), &agrees, now);
        let offer = server_options.offer(&key(1, 80), now);
        assert_eq!((offer.mss, offer.scale, offer.sack), (nothing.mss, nothing.scale, nothing.sack));
        assert_eq!((offer.known, offer.window, offer.ecn), (true, Some(RawWindow(4321)), true));
        assert!(!offer.timestamps);
        server_options.learn(&key(1, 80), &Observation { window: RawWindow(8), ..agrees }, now);
        assert_eq!(server_options.offer(&key(1, 80), now).window, Some(RawWindow(8)), "the last answer counts");
        assert_eq!(server_options.offer(&key(1, 81), now), nothing, "and another port is another server");
    }

    #[test]
    fn what_is_known_by_address_holds_for_every_port() {
        let config =
            Config { mss: Source::HashIp, sack: Source::HashIp, wscale: Source::HashIpPort, ..Config::default() };
        let mut server_options = tested(&config);
        let now = Instant::from_secs(5);
        server_options.learn(&key(1, 80), &observation(1300, Some(3), false, false), now);
        let offer = server_options.offer(&key(1, 81), now);
        assert_eq!((offer.mss, offer.sack, offer.scale), (1300, false, Some(WindowScale::clamped(7))));
        assert_eq!((offer.timestamps, offer.known, offer.window), (false, false, None));
    }

    #[test]
    fn no_client_was_told_more_than_this() {
        let config = Config { mss_clamp: Some(1450), ..Config::default() };
        let mut server_options = tested(&config);
        let (v4, v6, now) = (key(1, 80), FlowKey { v6: true, ..key(2, 80) }, Instant::default());
        assert_eq!((server_options.most_told(&v4, now), server_options.most_told(&v6, now)), (1450, 1440));
        server_options.learn(&v4, &observation(1300, None, true, true), now);
        server_options.learn(&v6, &observation(8940, None, true, true), now);
        assert_eq!((server_options.most_told(&v4, now), server_options.most_told(&v6, now)), (1450, 1450));
    }

    #[test]
    fn the_cache_keeps_its_size_and_whom_it_sees_often() {
        let config = Config { learn_capacity: 8, ..Config::default() };
        let mut server_options = tested(&config);
        for host in 1..1000 {
            let now = Instant::from_secs(20 * u64::from(host));
            server_options.learn(&key(host, 80), &observation(1300, None, true, true), now);
            server_options.learn(&key(0, 80), &observation(1200, None, true, true), now);
        }
        assert_eq!(server_options.cache.sets.len() * WAYS, 8);
        let known = (0..1000).filter(|&host| server_options.offer(&key(host, 80), Instant::from_secs(20_000)).known);
        assert_eq!(known.count(), 8);
        assert_eq!(server_options.offer(&key(999, 80), Instant::from_secs(20_000)).mss, 1300);
        assert_eq!(server_options.offer(&key(0, 80), Instant::from_secs(20_000)).mss, 1200, "who is seen often stays");
    }
}
