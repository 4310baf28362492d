//! What servers have shown of themselves: the options, the window, the hop limit and the class of their SYN-ACKs, kept per address and
//! port, and per address where the configuration asks for that.
//!
//! A server that answers one client in an unusual way, because it is short of memory, because of that client's path or of what that client asked
//! for, must not be taken to answer everybody so. Therefore:
//!
//! * Of an option, only an answer to an offer of it says something. What a client without timestamps is refused says nothing of clients with
//!   them, since a server that answers with SYN cookies can express scale, SACK and ECN nowhere but in a timestamp.
//! * An answer that agrees outweighs the refusals before it; a refusal has to be repeated before it outweighs many answers that agreed.
//! * A refusal is believed for four seconds, and twice as long after each one that confirms it, up to 17 minutes; then the option is offered again.
//! * Where there must be one value (MSS, scale, class), it is the usual one, which a single other answer does not change. An MSS that differs from the
//!   usual one is that of the client's path: it is kept for that client, and for its prefix as soon as two of its addresses were told so.

use crate::config::Source;
use crate::cookie::terms::{KnownEcn, Offer};
use crate::flow::table::Region;
use crate::flow::{Flow, FlowFlags};
use crate::keyed::{self, Keys};
use crate::policy::servers::ServerTable;
use crate::policy::{Policy, Rule, ServiceMark};
use crate::seq::{RawWindow, WindowScale};
use crate::wire::{Addr, EcnSetup, FlowKey, Options, Segment, Vlan};
use crate::{Instant, Side};
use core::sync::atomic::{Ordering, compiler_fence};
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Time is kept in units of 2^20 µs, 1.05 s. Sixteen bits of them go round in 19 hours: a server that is silent for
/// just so long may pass for one seen lately, which costs a client an option at most.
const UNIT_BITS: u32 = 20;
/// For how many units the first refusal of an option is believed. Each that confirms it doubles that.
const REFUSAL_LIFETIME: u16 = 4;
/// The refusals in a row that count: 4 << 8 units are 17 minutes.
const REFUSALS_MOST: i8 = 9;
/// The agreeing answers that count, and how many of them a refusal outweighs: ten are overturned by the third refusal in a row.
const AGREEMENTS_MOST: i8 = 10;
const REFUSAL_WEIGHT: i8 = 4;
/// How many other answers a usual value outlives, at most.
const USUAL_MOST: u8 = 3;
/// For how many units, ten minutes, a server that would not take an acknowledgement without its exact echo gets exact ones.
const EXACT_LIFETIME: u16 = 570;
/// A server's answer is published once in so many units, 17 s, though nothing is new.
const PUBLISHED_EVERY: u16 = 16;
const WAYS: usize = 4;
/// The hop limit of our segments in the name of a server of which nothing is known: no receiver takes it for too low (RFC 5082).
const UNKNOWN_TTL: u8 = 255;
/// The hop limit of what the box says in its own name.
const SERVICE_TTL: u8 = 64;

/// More routers than there are between the box and a server behind it: one that seems farther away began with a hop limit of its own.
const MOST_HOPS: u8 = 16;

/// How many routers a segment has passed that arrives with this hop limit: systems begin with 64, 128 or 255. Zero where that cannot be told.
const fn hops(ttl: u8) -> u8 {
    let passed = match ttl {
        0 => 0,
        1..=64 => 64 - ttl,
        65..=128 => 128 - ttl,
        _ => u8::MAX - ttl,
    };
    if passed > MOST_HOPS { 0 } else { passed }
}

/// What is known of one option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    Taken,
    Refused,
}

/// What a server takes or refuses; that of a client without timestamps it may refuse when it takes it of others.
#[derive(Clone, Copy)]
enum Trait {
    Scale = 0,
    Sack = 1,
    Ecn = 2,
    Timestamps = 6,
    AccurateEcn = 7,
}

/// Kinds of evidence: of three traits with timestamps and without, and of two more.
const KINDS: usize = 8;

impl Trait {
    /// The kind of evidence of clients with timestamps or without.
    fn kind(self, timestamps: bool) -> usize {
        match self {
            Trait::Scale | Trait::Sack | Trait::Ecn if !timestamps => self as usize + 3,
            _ => self as usize,
        }
    }
}

/// What is known of an option: a positive number of answers that agreed to it, less the refusals; a negative number of refusals since; or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
struct Evidence(i8);

impl Evidence {
    fn agree(&mut self) {
        self.0 = (self.0.max(0) + 1).min(AGREEMENTS_MOST);
    }

    /// Returns whether the option counts as refused now.
    fn refuse(&mut self) -> bool {
        self.0 = match self.0 {
            // A server that agreed a moment ago must refuse again before it is believed, if it agreed often.
            agreed @ 1.. if agreed > REFUSAL_WEIGHT => agreed - REFUSAL_WEIGHT,
            1.. => -1,
            refused => (refused - 1).max(-REFUSALS_MOST),
        };
        self.0 < 0
    }

    /// For how many units the last refusal is believed.
    fn refusal_lifetime(self) -> u16 {
        REFUSAL_LIFETIME << (-(self.0 + 1)).clamp(0, 8)
    }
}

/// A value that a server usually answers with, and how many other answers it outlives.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
struct Usual<T> {
    value: T,
    strength: u8,
}

impl<T: Copy + PartialEq> Usual<T> {
    fn first(value: T) -> Self {
        Self { value, strength: 1 }
    }

    fn learn(&mut self, value: T) {
        if value == { self.value } {
            self.strength = (self.strength + 1).min(USUAL_MOST);
        } else if self.strength == 0 {
            *self = Self::first(value);
        } else {
            self.strength -= 1;
        }
    }
}

/// What is known of one server, or of all at one address: a cache line of integers, any bytes of which are an entry once they are [brought in
/// line](Entry::settle).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
struct Entry {
    address: Addr,
    vlan: Vlan,
    /// Zero when the entry is for every port.
    port: u16,
    /// What was the usual MSS before.
    former_mss: u16,
    /// The smaller window field of the last two SYN-ACKs.
    window: RawWindow,
    /// The window field of the last one.
    last_window: RawWindow,
    /// When the last SYN-ACK came.
    seen: u16,
    /// When it would not take an acknowledgement without its exact echo.
    exact_since: u16,
    /// When it refused each option for the last time.
    refused: [u16; KINDS],
    evidence: [Evidence; KINDS],
    /// What it usually announces. Zero is a free slot.
    mss: Usual<u16>,
    /// The shift of its scale.
    scale: Usual<u8>,
    /// The hop limit of the last SYN-ACK as it reached the box.
    ttl: u8,
    /// The class of its SYN-ACKs, unless it reflects the client's, as it is taken to until it does not.
    class: u8,
    flags: u8,
}

const _: () = assert!(size_of::<Entry>() == 64, "an entry is a cache line");

/// The server reflects the class of its clients' SYNs.
const REFLECTS_CLASS: u8 = 1;
/// Some clients were announced another MSS.
const MSS_VARIES: u8 = 2;
/// It would not take an acknowledgement without its exact echo.
const WANTS_EXACT: u8 = 4;
/// How many other answers what is known of its class outlives: two bits.
const CLASS_STRENGTH: u8 = 0x18;
const ONE_STRONGER: u8 = 0x08;

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Set([Entry; WAYS]);

/// The memory of what servers have shown: of this process, or mapped by the owner of the engine.
#[derive(Clone, Debug)]
pub struct ServerSlab {
    sets: Region<Set>,
    /// What differs for some clients: as many as there are servers.
    paths: Region<PathSet>,
    /// Whether entries of another process may lie in it.
    is_used: bool,
}

impl ServerSlab {
    /// The version of the layout.
    pub const LAYOUT: u64 = 1;

    /// Zeroed memory of this process for so many servers.
    pub fn anonymous(capacity: usize) -> Self {
        let sets = Self::sets(capacity);
        Self { sets: Region::zeroed(sets), paths: Region::zeroed(sets.div_ceil(2)), is_used: false }
    }

    /// Mapped memory for so many servers: zeroed, or, if it `is_used`, with what a former process knew. `None` if it is too small or its beginning not
    /// aligned to 64 bytes.
    pub fn mapped(words: &'static mut [u64], capacity: usize, is_used: bool) -> Option<Self> {
        let sets = Self::sets(capacity);
        let (sets, paths) = (Region::mapped(words, sets)?, sets.div_ceil(2));
        let (paths, _) = Region::mapped(sets.1, paths)?;
        Some(Self { sets: sets.0, paths, is_used })
    }

    /// 64-bit words that mapped memory for so many servers needs.
    pub fn words(capacity: usize) -> usize {
        let sets = Self::sets(capacity);
        (sets * size_of::<Set>() + sets.div_ceil(2) * size_of::<PathSet>()).div_ceil(8)
    }

    fn sets(capacity: usize) -> usize {
        capacity.div_ceil(WAYS).next_power_of_two()
    }

    /// Brings in line what another process has left.
    fn settle(&mut self) {
        if self.is_used {
            self.sets
                .iter_mut()
                .flat_map(|set| &mut set.0)
                .filter(|entry| entry.mss.value != 0)
                .for_each(Entry::settle);
            let paths = self.paths.iter_mut().flatten();
            paths.filter(|path| path.tag & CONFIRMED == 0 || path.mss == 0).for_each(|path| path.tag = 0);
        }
    }
}

/// What a server's SYN-ACK shows of it, given the SYN that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The SYN-ACK's options.
    pub answered: Options,
    /// Whether the SYN offered a window scale, SACK, timestamps: to what was not offered, silence says nothing.
    pub offered_scale: bool,
    /// See `offered_scale`.
    pub offered_sack: bool,
    /// See `offered_scale`.
    pub offered_timestamps: bool,
    /// The kind of ECN that the SYN asked for.
    pub offered_ecn: EcnSetup,
    /// The kind that the SYN-ACK agrees to.
    pub answered_ecn: EcnSetup,
    /// The SYN-ACK's window field, which is never scaled (RFC 7323 section 2.2).
    pub window: RawWindow,
    /// The hop limit it came with.
    pub ttl: u8,
    /// The class (the upper six bits of the traffic class) of the SYN.
    pub offered_class: u8,
    /// The class of the SYN-ACK.
    pub answered_class: u8,
}

impl Observation {
    /// What the SYN-ACK `segment` in `frame`, with the options `answered`, says to a SYN with what `flow` noted of it.
    pub fn of(segment: &Segment, frame: &[u8], answered: Options, flow: &Flow) -> Observation {
        Observation {
            answered,
            offered_scale: flow.endpoint(Side::Wan).scale().is_some(),
            offered_sack: flow.is(FlowFlags::SACK),
            offered_timestamps: flow.is(FlowFlags::TIMESTAMPS),
            offered_ecn: flow.syn_ecn(),
            answered_ecn: segment.flags.agreed_ecn(flow.syn_ecn()),
            window: segment.window,
            ttl: segment.ttl,
            offered_class: flow.class(Side::Wan),
            answered_class: segment.class(frame),
        }
    }
}

/// An MSS that a server announced to one client, or to the addresses of one prefix, and not to others.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct PathMss {
    /// A keyed hash of the server and the client's address or prefix, its lowest two bits replaced: by how often other addresses of a prefix confirmed
    /// it, or 1 for an address; zero is a free place.
    tag: u32,
    mss: u16,
    seen: u16,
}

/// The bits of a tag that are none of a hash.
const CONFIRMED: u32 = 3;
/// How often what is known of a prefix must have been confirmed to be believed of its other addresses.
const BELIEVED: u32 = 2;

/// For whom an MSS is kept.
#[derive(Clone, Copy, PartialEq)]
enum Reach {
    Address,
    /// A /24, of IPv6 a /64.
    Prefix,
}

/// A cache line of them.
type PathSet = [PathMss; 8];

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
    slab: ServerSlab,
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
    /// A cache in this memory, under this policy: of what another process has left there, if one may have.
    pub fn new(mut slab: ServerSlab, policy: &Policy, keys: Keys) -> Self {
        slab.settle();
        Self {
            slab,
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
        let mut path = PathSet::default();
        for (n, port) in [key.lan_port, 0].into_iter().enumerate() {
            set.0[n] = self.find(key, port).copied().unwrap_or_default();
            for (m, reach) in [Reach::Address, Reach::Prefix].into_iter().enumerate() {
                path[2 * n + m] = self.known_path(key, port, reach).unwrap_or_default();
            }
        }
        Self {
            slab: ServerSlab {
                sets: Region::Owned(Box::new([set])),
                paths: Region::Owned(Box::new([path])),
                is_used: false,
            },
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

    /// How often something new was learned, on a circle.
    pub fn changes(&self) -> u32 {
        self.observations
    }

    /// What a client with timestamps is offered: as [`ServerOptions::offer`], and faster if the same was looked up recently.
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
                self.for_client(key, rule, cached_offers.offer)
            }
            _ => self.offer_uncached(key, rule, now),
        }
    }

    #[inline(never)]
    fn offer_uncached(&mut self, key: &FlowKey, rule: &Rule, now: Instant) -> Offer {
        let FlowKey { lan, lan_port, vlan, .. } = *key;
        let offer = self.usual_offer(key, rule, true, now);
        self.cached_offers[Self::cached_offer_at(key)] =
            Some(CachedOffer { lan, vlan, lan_port, unit: unit(now), observations: self.observations, offer });
        self.for_client(key, rule, offer)
    }

    /// Where the offer for a server is remembered. An attacker who picks targets that displace others only costs a lookup in the cache itself.
    #[inline(always)]
    fn cached_offer_at(key: &FlowKey) -> usize {
        (key.lan[3] ^ u32::from(key.lan_port)) as usize % CACHED_OFFERS
    }

    /// What a client of this server, with timestamps or without, is offered under the rule for it.
    pub fn offer(&self, key: &FlowKey, rule: &Rule, timestamps: bool, now: Instant) -> Offer {
        self.for_client(key, rule, self.usual_offer(key, rule, timestamps, now))
    }

    /// The same with the MSS for this client, if it has one of its own.
    #[inline(always)]
    fn for_client(&self, key: &FlowKey, rule: &Rule, offer: Offer) -> Offer {
        if offer.mss_varies { self.with_path_mss(key, rule, offer) } else { offer }
    }

    #[cold]
    #[inline(never)]
    fn with_path_mss(&self, key: &FlowKey, rule: &Rule, offer: Offer) -> Offer {
        let port = match rule.mss {
            Source::HashIpPort => key.lan_port,
            Source::HashIp => 0,
            Source::Default | Source::Commanded => return offer,
        };
        match self.path_mss(key, port) {
            Some(mss) => Offer { mss: mss.min(rule.mss_clamp), ..offer },
            None => offer,
        }
    }

    /// What a client is offered of which nothing else is known.
    fn usual_offer(&self, key: &FlowKey, rule: &Rule, stamps: bool, now: Instant) -> Offer {
        let by_port = self.find(key, key.lan_port);
        let by_address = if self.by_address { self.find(key, 0) } else { None };
        let entry = |source: Source| match source {
            Source::HashIpPort => by_port,
            Source::HashIp => by_address,
            Source::Default | Source::Commanded => None,
        };
        let mut offer = Offer {
            mss: own_mss(key, rule),
            mss_varies: false,
            scale: Some(rule.own_scale),
            sack: rule.own_sack,
            timestamps: true,
            timestamps_known: false,
            ecn: KnownEcn::Nothing,
            window: None,
            ttl: if rule.own_ttl == 0 { UNKNOWN_TTL } else { rule.own_ttl },
            hops: 0,
            class: 0,
            reflects_class: true,
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
            offer.mss = entry.mss.value;
            offer.mss_varies = entry.is(MSS_VARIES);
        }
        if let Some(entry) = entry(rule.wscale) {
            match entry.knows(Trait::Scale, stamps, now) {
                Known::Taken => offer.scale = Some(WindowScale::clamped(entry.scale.value)),
                Known::Refused => offer.scale = None,
                Known::Nothing => {}
            }
        }
        if let Some(entry) = entry(rule.sack) {
            match entry.knows(Trait::Sack, stamps, now) {
                Known::Taken => offer.sack = true,
                Known::Refused => offer.sack = false,
                Known::Nothing => {}
            }
        }
        // Timestamps have no mode of their own: they follow from what is known of the server.
        if let Some(entry) = by_port.or(by_address) {
            let timestamps = entry.knows(Trait::Timestamps, stamps, now);
            offer.timestamps_known = timestamps == Known::Taken;
            offer.timestamps = timestamps != Known::Refused;
        }
        // Nor have these, which one port's server does not promise for another's.
        if let Some(entry) = by_port {
            let classic = entry.knows(Trait::Ecn, stamps, now) == Known::Taken;
            offer.ecn = match entry.knows(Trait::AccurateEcn, stamps, now) {
                Known::Taken => KnownEcn::Accurate,
                Known::Refused if classic => KnownEcn::Classic,
                Known::Nothing if classic => KnownEcn::ClassicAtLeast,
                Known::Refused | Known::Nothing => KnownEcn::Nothing,
            };
            offer.window = Some(entry.window);
            offer.known = true;
        }
        // A host's hop limit and class are its own more often than its port's.
        if let Some(entry) = by_port.or(by_address) {
            if rule.own_ttl == 0 {
                offer.ttl = entry.ttl;
            }
            offer.hops = hops(entry.ttl);
            (offer.class, offer.reflects_class) = (entry.class, entry.is(REFLECTS_CLASS));
        }
        offer.mss = offer.mss.min(rule.mss_clamp);
        if rule.service != ServiceMark::None {
            // The box itself answers, keeps what the client sends, and is no router away.
            offer.window = Some(RawWindow(rule.early_window));
            offer.known = true;
            offer.ttl = if rule.own_ttl == 0 { SERVICE_TTL } else { rule.own_ttl };
        }
        offer
    }

    /// The largest MSS that a SYN-ACK in this server's name can have announced, whatever the configuration says now.
    pub fn most_told(&mut self, key: &FlowKey, rule: &Rule, now: Instant) -> u16 {
        let present = self.offer_cached(key, rule, now).mss.max(own_mss(key, rule));
        // It, or everybody, may have been told something else a moment ago.
        let known =
            [key.lan_port, 0].map(|port| self.find(key, port).map_or(0, |entry| entry.mss.value.max(entry.former_mss)));
        let sources = [rule.mss == Source::HashIpPort, rule.mss == Source::HashIp];
        let present =
            known.iter().zip(sources).fold(present, |most, (&mss, told)| if told { most.max(mss) } else { most });
        let (own_mss, clamp) = self.former_most;
        if clamp == 0 {
            return present.max(self.most_commanded).min(rule.mss_clamp);
        }
        // Another policy may have taken the MSS from elsewhere, and let more of it pass.
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

    /// Takes note that a server has answered, and of nothing else. Returns whether to publish it, so that its entry stays in other workers' caches.
    pub fn answered(&mut self, key: &FlowKey, now: Instant) -> bool {
        let set = self.set(key, key.lan_port);
        let Some(entry) = self.slab.sets[set].0.iter_mut().find(|entry| entry.is_for(key, key.lan_port)) else {
            return false;
        };
        let before = core::mem::replace(&mut entry.seen, unit(now).max(1));
        unit(now) / PUBLISHED_EVERY != before / PUBLISHED_EVERY
    }

    /// Whether this server's port has let anybody in lately: in the present unit or one of so many before it.
    pub fn has_answered(&self, key: &FlowKey, units: u16, now: Instant) -> bool {
        let within = |entry: &Entry| unit(now).wrapping_sub(entry.seen) <= units;
        self.find(key, key.lan_port).is_some_and(within)
    }

    /// Whether anything is known of this server's port.
    pub fn knows(&self, key: &FlowKey) -> bool {
        self.find(key, key.lan_port).is_some()
    }

    /// Whether this server gets an exact echo of its timestamp whatever it looks like, because nothing is known of it, or it recently needed one.
    pub fn needs_exact_echo(&self, key: &FlowKey, now: Instant) -> bool {
        !self.knows(key) || self.find(key, key.lan_port).is_some_and(|entry| entry.wants_exact_at(now))
    }

    /// Notes that this server would not take an acknowledgement without an exact echo.
    pub fn note_exact_echo(&mut self, key: &FlowKey, now: Instant) {
        let set = self.set(key, key.lan_port);
        if let Some(entry) = self.slab.sets[set].0.iter_mut().find(|entry| entry.is_for(key, key.lan_port)) {
            entry.exact_since = unit(now);
            entry.set(WANTS_EXACT, true);
        }
    }

    fn set(&self, key: &FlowKey, port: u16) -> usize {
        // The LAN's own addresses, and only those that have answered, are written here: an attacker cannot choose them, so a
        // product with a secret spreads them well enough.
        let [a, b, c, d] = key.lan.map(u64::from);
        let words = [a << 32 | b, c << 32 | d, u64::from(key.vlan.0) << 16 | u64::from(port)];
        let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(self.keys.1 | 1).rotate_left(29);
        words.into_iter().fold(self.keys.0, mix) as usize & (self.slab.sets.len() - 1)
    }

    fn find(&self, key: &FlowKey, port: u16) -> Option<&Entry> {
        self.slab.sets[self.set(key, port)].0.iter().find(|entry| entry.is_for(key, port))
    }

    /// Where the MSS for this client, or its prefix, at this server is kept, and its tag.
    fn path(&self, key: &FlowKey, port: u16, reach: Reach) -> (usize, u32) {
        let [a, b, c, d] = key.lan.map(u64::from);
        let [e, f, g, h] = key.wan.map(u64::from);
        let client = match (reach, key.v6) {
            (Reach::Address, _) => [e << 32 | f, g << 32 | h],
            (Reach::Prefix, true) => [e << 32 | f, 0],
            (Reach::Prefix, false) => [e << 32 | f, g << 32 | h & !0xff],
        };
        let server = u64::from(key.vlan.0) << 18 | u64::from(port) << 2 | u64::from(key.v6) << 1 | reach as u64;
        let hash = keyed::place(self.keys, [a << 32 | b, c << 32 | d, server, client[0], client[1]]);
        (hash as usize & (self.slab.paths.len() - 1), (hash >> 32) as u32 & !CONFIRMED)
    }

    fn known_path(&self, key: &FlowKey, port: u16, reach: Reach) -> Option<PathMss> {
        let (at, tag) = self.path(key, port, reach);
        self.slab.paths[at].iter().find(|path| path.is_of(tag)).copied()
    }

    /// What this client is told instead of the usual MSS.
    fn path_mss(&self, key: &FlowKey, port: u16) -> Option<u16> {
        self.known_path(key, port, Reach::Address).or_else(|| self.believed_of_prefix(key, port)).map(|path| path.mss)
    }

    fn believed_of_prefix(&self, key: &FlowKey, port: u16) -> Option<PathMss> {
        self.known_path(key, port, Reach::Prefix).filter(|path| path.tag & CONFIRMED >= BELIEVED)
    }

    /// Keeps what this server announced to this client; nothing is kept of the usual where its prefix is told that too. Returns whether what the client
    /// is offered has changed.
    fn store_path(&mut self, key: &FlowKey, port: u16, mss: u16, usual: u16, now: Instant) -> bool {
        let before = self.path_mss(key, port).unwrap_or(usual);
        let own = self.known_path(key, port, Reach::Address);
        let says_new = own.is_none_or(|own| own.mss != mss);
        let network = match (self.known_path(key, port, Reach::Prefix), mss == usual) {
            (Some(known), false) if known.mss == mss => {
                // The same client again confirms nothing.
                let confirmed = (known.tag & CONFIRMED) + u32::from(says_new);
                (confirmed.min(CONFIRMED), mss)
            }
            // Nor does it contradict again.
            (Some(known), _) if !says_new => (known.tag & CONFIRMED, known.mss),
            (Some(known), is_usual) => match (known.tag & CONFIRMED).saturating_sub(1) {
                0 if is_usual => (0, 0),
                0 => (1, mss),
                confirmed => (confirmed, known.mss),
            },
            (None, is_usual) => (u32::from(!is_usual), mss),
        };
        self.set_path(key, port, Reach::Prefix, network, now);
        let told = self.believed_of_prefix(key, port).map_or(usual, |path| path.mss);
        self.set_path(key, port, Reach::Address, (u32::from(mss != told || mss != usual), mss), now);
        before != mss
    }

    /// Keeps an MSS that was confirmed so often; one that never was is removed.
    fn set_path(&mut self, key: &FlowKey, port: u16, reach: Reach, (confirmed, mss): (u32, u16), now: Instant) {
        let (at, tag) = self.path(key, port, reach);
        let set = &mut self.slab.paths[at];
        let unseen = |path: &PathMss| if path.tag == 0 { u16::MAX } else { unit(now).wrapping_sub(path.seen) };
        let known = set.iter().position(|path| path.is_of(tag));
        match (known, confirmed) {
            (None, 0) => {}
            (Some(known), 0) => set[known].tag = 0,
            (Some(known), _) => set[known].replace(PathMss { tag: tag | confirmed, mss, seen: unit(now) }),
            (None, _) => {
                if let Some(oldest) = set.iter_mut().max_by_key(|path| unseen(path)) {
                    oldest.replace(PathMss { tag: tag | confirmed, mss, seen: unit(now) });
                }
            }
        }
    }

    /// Returns whether to publish the observation.
    fn store(&mut self, key: &FlowKey, port: u16, observation: &Observation, now: Instant) -> bool {
        // RFC 9293 section 3.7.1: without the option 536 is assumed, for IPv6 1220.
        let mss = observation.answered.mss.unwrap_or(default_mss(key));
        // A client that is known to be told another MSS than most says nothing more of what most are told.
        let is_unusual = self.find(key, port).is_some_and(|entry| entry.mss.value != mss);
        let is_own = is_unusual && self.path_mss(key, port) == Some(mss);
        let set = self.set(key, port);
        let set = &mut self.slab.sets[set].0;
        let at = set.iter().position(|entry| entry.is_for(key, port)).unwrap_or_else(|| {
            let longest_unseen =
                |n: &usize| if set[*n].mss.value == 0 { u16::MAX } else { unit(now).wrapping_sub(set[*n].seen) };
            let oldest = (0..WAYS).max_by_key(longest_unseen).unwrap_or(0);
            set[oldest].replace(Entry::new(key, port, mss, observation));
            oldest
        });
        let entry = &mut set[at];
        let before = *entry;
        if !is_own {
            entry.learn_mss(mss);
        }
        entry.learn(observation, now);
        let (usual, varies) = (entry.mss.value, entry.is(MSS_VARIES));
        // A refusal that had lapsed and is repeated is believed again, though nothing of it shows.
        let refuses_again = entry.refused != before.refused;
        let due = unit(now) / PUBLISHED_EVERY != before.seen / PUBLISHED_EVERY;
        // An entry that is new was never seen.
        let mut differs = before.seen == 0 || entry.shown() != before.shown();
        if mss != usual || varies {
            differs |= self.store_path(key, port, mss, usual, now);
        }
        if differs || refuses_again {
            self.observations = self.observations.wrapping_add(1);
        }
        differs || due
    }
}

impl PathMss {
    fn is_of(&self, tag: u32) -> bool {
        self.tag != 0 && self.tag & !CONFIRMED == tag
    }

    /// Another in its place. A process that is killed at this leaves a free place or a whole one.
    fn replace(&mut self, path: Self) {
        self.tag = 0;
        compiler_fence(Ordering::SeqCst);
        (self.mss, self.seen) = (path.mss, path.seen);
        compiler_fence(Ordering::SeqCst);
        self.tag = path.tag;
    }
}

impl Entry {
    /// What the first answer says of a server.
    fn new(key: &FlowKey, port: u16, mss: u16, observation: &Observation) -> Self {
        Self {
            address: key.lan,
            vlan: key.vlan,
            port,
            mss: Usual { value: mss, strength: 0 },
            former_mss: mss,
            last_window: observation.window,
            flags: REFLECTS_CLASS,
            ..Self::default()
        }
    }

    /// Another server's entry in its place. A process that is killed at this leaves a free slot or a whole entry.
    fn replace(&mut self, entry: Self) {
        self.mss.value = 0;
        compiler_fence(Ordering::SeqCst);
        *self = Self { mss: Usual { value: 0, ..entry.mss }, ..entry };
        compiler_fence(Ordering::SeqCst);
        self.mss.value = entry.mss.value;
    }

    /// Brings what another process has left within the bounds of what is counted.
    fn settle(&mut self) {
        for evidence in &mut self.evidence {
            evidence.0 = evidence.0.clamp(-REFUSALS_MOST, AGREEMENTS_MOST);
        }
        self.mss.strength = self.mss.strength.min(USUAL_MOST);
        self.scale.strength = self.scale.strength.min(USUAL_MOST);
    }

    fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn set(&mut self, flag: u8, on: bool) {
        self.flags = if on { self.flags | flag } else { self.flags & !flag };
    }

    fn is_for(&self, key: &FlowKey, port: u16) -> bool {
        self.mss.value != 0 && self.address == key.lan && self.port == port && self.vlan == key.vlan
    }

    /// What an offer shows of it. That a refusal has lapsed changes nothing here: offers are looked up anew each second.
    fn shown(&self) -> impl PartialEq {
        let evidence = self.evidence.map(|evidence| evidence.0.signum());
        let values = (self.mss.value, self.is(MSS_VARIES), self.window, self.scale.value, self.ttl);
        (evidence, values, self.class, self.is(REFLECTS_CLASS))
    }

    /// What is known now of a trait, towards clients with timestamps or without. Where nothing is known of the ones, what is known of the others holds,
    /// but for what those without were refused.
    fn knows(&self, which: Trait, stamps: bool, now: Instant) -> Known {
        let known = self.evidence_of(which.kind(stamps), now);
        match (known, self.evidence_of(which.kind(!stamps), now)) {
            (Known::Nothing, Known::Refused) if stamps => Known::Nothing,
            (Known::Nothing, others) => others,
            (known, _) => known,
        }
    }

    fn evidence_of(&self, kind: usize, now: Instant) -> Known {
        let evidence = self.evidence[kind];
        let since = unit(now).wrapping_sub(self.refused[kind]);
        if evidence.0 > 0 {
            Known::Taken
        } else if evidence.0 < 0 && since < evidence.refusal_lifetime() {
            Known::Refused
        } else {
            Known::Nothing
        }
    }

    fn wants_exact_at(&self, now: Instant) -> bool {
        self.is(WANTS_EXACT) && unit(now).wrapping_sub(self.exact_since) < EXACT_LIFETIME
    }

    fn learn_mss(&mut self, mss: u16) {
        let usual = self.mss.value;
        self.mss.learn(mss);
        if self.mss.value != usual {
            self.former_mss = usual;
        }
        if mss != self.mss.value {
            self.set(MSS_VARIES, true);
        }
    }

    fn learn_class(&mut self, offered: u8, answered: u8) {
        let reflects = self.is(REFLECTS_CLASS);
        let strength = self.flags & CLASS_STRENGTH;
        let strength = if answered == if reflects { offered } else { self.class } {
            // Of the two kinds of servers either would answer so.
            let tells_nothing = offered == if reflects { 0 } else { answered };
            (strength + if tells_nothing { 0 } else { ONE_STRONGER }).min(CLASS_STRENGTH)
        } else if strength > 0 {
            strength - ONE_STRONGER
        } else {
            self.class = answered;
            self.set(REFLECTS_CLASS, offered == answered && offered != 0);
            ONE_STRONGER
        };
        self.flags = self.flags & !CLASS_STRENGTH | strength;
    }

    fn learn(&mut self, observation: &Observation, now: Instant) {
        let answered = &observation.answered;
        self.window = RawWindow(observation.window.0.min(self.last_window.0));
        self.last_window = observation.window;
        // Zero says that it was never seen.
        self.seen = unit(now).max(1);
        self.ttl = observation.ttl;
        self.learn_class(observation.offered_class, observation.answered_class);
        if let Some(scale) = answered.scale {
            if self.knows(Trait::Scale, observation.offered_timestamps, now) == Known::Taken {
                self.scale.learn(scale.get());
            } else {
                self.scale = Usual::first(scale.get());
            }
        }
        let (asked, agreed) = (observation.offered_ecn, observation.answered_ecn);
        let said = [
            (Trait::Timestamps, observation.offered_timestamps, answered.timestamps.is_some()),
            (Trait::Scale, observation.offered_scale, answered.scale.is_some()),
            (Trait::Sack, observation.offered_sack, answered.sack_permitted),
            (Trait::Ecn, asked != EcnSetup::None, agreed != EcnSetup::None),
            // A server that answers a client without timestamps with a SYN cookie can express no kind of it.
            (
                Trait::AccurateEcn,
                asked == EcnSetup::Accurate && (observation.offered_timestamps || agreed != EcnSetup::None),
                agreed == EcnSetup::Accurate,
            ),
        ];
        for (which, _, taken) in said.into_iter().filter(|(_, offered, _)| *offered) {
            let kind = which.kind(observation.offered_timestamps);
            if taken {
                self.evidence[kind].agree();
            } else if self.evidence[kind].refuse() {
                self.refused[kind] = unit(now);
            }
        }
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
        Tested { cache: ServerOptions::new(ServerSlab::anonymous(config.learn_capacity), &policy, (1, 1)), policy }
    }

    impl Tested {
        fn offer(&self, key: &FlowKey, now: Instant) -> Offer {
            self.cache.offer(key, self.policy.everybody(), true, now)
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
            offered_ecn: EcnSetup::Classic,
            answered_ecn: EcnSetup::None,
            window: RawWindow(65535),
            ttl: 61,
            offered_class: 0,
            answered_class: 0,
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
        let offer = server_options.offer(&key(1, 80), Instant::from_secs(5 + 6));
        assert_eq!((offer.scale, offer.sack, offer.timestamps), (Some(WindowScale::clamped(7)), true, true));
    }

    /// A server that answers with SYN cookies has nowhere to keep the scale and SACK of a client without timestamps.
    #[test]
    fn what_clients_without_timestamps_are_refused_teaches_nothing_of_others() {
        let mut server_options = tested(&Config::default());
        let now = Instant::from_secs(5);
        let everybody = *server_options.policy.everybody();
        let poor = Observation { offered_timestamps: false, ..observation(1460, None, false, false) };
        for known in [false, true] {
            if known {
                server_options.learn(&key(1, 80), &observation(1460, Some(9), true, true), now);
            }
            let before = server_options.offer(&key(1, 80), now);
            for _ in 0..20 {
                server_options.learn(&key(1, 80), &poor, now);
            }
            let after = server_options.offer(&key(1, 80), now);
            assert_eq!((after.scale, after.sack, after.timestamps), (before.scale, before.sack, true));
            let without = server_options.cache.offer(&key(1, 80), &everybody, false, now);
            assert_eq!((without.scale, without.sack), (None, false), "but what they are told is what they will get");
        }
        // What it agrees to is known of everybody.
        let agrees = Observation { offered_timestamps: false, ..observation(1460, Some(3), true, false) };
        server_options.learn(&key(2, 80), &agrees, now);
        assert_eq!(server_options.offer(&key(2, 80), now).scale, Some(WindowScale::clamped(3)));
        // And what clients with timestamps are refused, others are too.
        server_options.learn(&key(3, 80), &observation(1460, None, false, true), now);
        let without = server_options.cache.offer(&key(3, 80), &everybody, false, now);
        assert_eq!((without.scale, without.sack), (None, false));
    }

    #[test]
    fn one_refusal_does_not_outweigh_ten_agreements_and_one_agreement_outweighs_all_refusals() {
        let mut server_options = tested(&Config::default());
        let now = Instant::from_secs(5);
        let agrees = Observation { answered_ecn: EcnSetup::Classic, ..observation(1460, Some(9), true, true) };
        let refuses = observation(1460, None, false, false);
        let mut taken = |said: &Observation| {
            server_options.learn(&key(1, 80), said, now);
            let offer = server_options.offer(&key(1, 80), now);
            [offer.scale.is_some(), offer.sack, offer.timestamps, offer.ecn != KnownEcn::Nothing]
        };
        for _ in 0..10 {
            assert_eq!(taken(&agrees), [true; 4]);
        }
        assert_eq!([taken(&refuses), taken(&refuses)], [[true; 4]; 2], "two of twelve are an exception");
        assert_eq!(taken(&refuses), [false; 4], "three in a row are not");
        (0..20).for_each(|_| assert_eq!(taken(&refuses), [false; 4]));
        assert_eq!(taken(&agrees), [true; 4]);
        assert_eq!(taken(&refuses), [false; 4], "one against one: the last counts");
    }

    #[test]
    fn what_was_not_offered_teaches_nothing() {
        let mut server_options = tested(&Config::default());
        let silent = Observation {
            offered_scale: false,
            offered_sack: false,
            offered_timestamps: false,
            offered_ecn: EcnSetup::None,
            ..observation(1400, None, false, false)
        };
        server_options.learn(&key(1, 80), &silent, Instant::default());
        let offer = server_options.offer(&key(1, 80), Instant::default());
        assert_eq!((offer.mss, offer.sack, offer.timestamps), (1400, true, true));
        // What was known of it before still holds.
        let agrees = Observation { answered_ecn: EcnSetup::Classic, ..observation(1400, Some(9), true, true) };
        server_options.learn(&key(1, 80), &agrees, Instant::default());
        server_options.learn(&key(1, 80), &silent, Instant::default());
        let offer = server_options.offer(&key(1, 80), Instant::default());
        assert_eq!(
            (offer.scale, offer.timestamps_known, offer.ecn),
            (Some(WindowScale::clamped(9)), true, KnownEcn::ClassicAtLeast)
        );
    }

    /// We do not offer what was refused, so most answers of a busy server say nothing of it. It is asked again, ever less often.
    #[test]
    fn a_busy_server_too_may_change_its_mind() {
        let mut server_options = tested(&Config::default());
        let refuses = observation(1460, Some(7), false, true);
        let silent = Observation { offered_sack: false, ..observation(1460, Some(7), true, true) };
        server_options.learn(&key(1, 80), &refuses, Instant::from_secs(5));
        let mut asked_anew = vec![5];
        for second in 6..4000 {
            let now = Instant::from_secs(second);
            if server_options.offer(&key(1, 80), now).sack {
                asked_anew.push(second);
                server_options.learn(&key(1, 80), &refuses, now);
            } else {
                server_options.learn(&key(1, 80), &silent, now);
            }
        }
        let intervals: Vec<u64> = asked_anew.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(intervals[0] <= 6, "{intervals:?}");
        assert!(intervals.windows(2).all(|pair| (pair[0] - 2..=2 * pair[0] + 2).contains(&pair[1])), "{intervals:?}");
        assert!(intervals.last().is_some_and(|last| (1000..1100).contains(last)), "{intervals:?}");
    }

    #[test]
    fn a_refusal_repeated_all_the_time_keeps_no_other_alive() {
        let config = Config { wscale: Source::Default, ..Config::default() };
        let mut server_options = tested(&config);
        server_options.learn(&key(1, 80), &observation(1460, None, false, true), Instant::from_secs(5));
        // The scale comes from the configuration, so it is offered, and refused, every time.
        let unscaled = Observation { offered_sack: false, ..observation(1460, None, false, true) };
        for second in 6..12 {
            server_options.learn(&key(1, 80), &unscaled, Instant::from_secs(second));
        }
        assert!(server_options.offer(&key(1, 80), Instant::from_secs(12)).sack);
    }

    #[test]
    fn one_other_mss_does_not_move_the_usual_one_and_is_told_its_own_client() {
        let mut server_options = tested(&Config::default());
        let now = Instant::from_secs(5);
        let from = |client: u32| FlowKey { wan: [0, 0, 0xffff, client], ..key(1, 80) };
        let (near, neighbour, far) = (from(0x0a00_0001), from(0x0a00_0002), from(0x0b00_0001));
        let usual = observation(1460, Some(7), true, true);
        let clamped = observation(1300, Some(7), true, true);
        server_options.learn(&near, &usual, now);
        for _ in 0..2 {
            server_options.learn(&far, &clamped, now);
            let told = [near, neighbour, far].map(|key| server_options.offer(&key, now).mss);
            assert_eq!(told, [1460, 1460, 1300]);
            assert_eq!(
                told,
                [near, neighbour, far].map(|key| {
                    let rule = *server_options.policy.everybody();
                    server_options.cache.offer_cached(&key, &rule, now).mss
                })
            );
            server_options.learn(&near, &usual, now);
        }
        // Its path has changed.
        server_options.learn(&far, &usual, now);
        assert_eq!(server_options.offer(&far, now).mss, 1460);
        // A server that was configured anew announces the new value to everybody.
        for client in 1..7 {
            server_options.learn(&from(0x0c00_0000 + (client << 8)), &observation(1400, Some(7), true, true), now);
        }
        assert_eq!(server_options.offer(&far, now).mss, 1400);
        assert_eq!(server_options.most_told(&far, now), 1460, "some were told the former one a moment ago");
    }

    #[test]
    fn clients_with_an_mss_of_their_own_are_kept_in_bounded_memory() {
        let config = Config { learn_capacity: 64, ..Config::default() };
        let mut server_options = tested(&config);
        let usual = observation(1460, Some(7), true, true);
        server_options.learn(&key(1, 80), &usual, Instant::from_secs(5));
        let from = |n: u32| FlowKey { wan: [0, 0, 0xffff, n << 8], ..key(1, 80) };
        for n in 0..1000 {
            let now = Instant::from_secs(5 + 2 * u64::from(n));
            server_options.learn(&from(n), &observation(1300, Some(7), true, true), now);
            server_options.learn(&key(1, 80), &usual, now);
        }
        let now = Instant::from_secs(2005);
        let kept = (0..1000).filter(|&n| server_options.offer(&from(n), now).mss == 1300).count();
        assert!((16..=64).contains(&kept), "{kept}");
        assert_eq!(server_options.offer(&from(999), now).mss, 1300);
        let v6 = |word: u32| FlowKey { wan: [0x2001_0db8, word, 0, 1], v6: true, ..key(2, 80) };
        server_options.learn(&v6(0x0001_0000), &usual, now);
        server_options.learn(&v6(0x0002_0000), &observation(1300, Some(7), true, true), now);
        let told =
            [0x0001_0000, 0x0002_0000, 0x0002_0009, 0x0003_0000].map(|word| server_options.offer(&v6(word), now).mss);
        assert_eq!(told, [1460, 1300, 1460, 1460]);
    }

    #[test]
    fn the_class_of_a_server_is_its_own_or_its_clients() {
        let mut server_options = tested(&Config::default());
        let now = Instant::from_secs(5);
        let mut told = |offered_class, answered_class| {
            let said = Observation { offered_class, answered_class, ..observation(1460, Some(7), true, true) };
            server_options.learn(&key(1, 80), &said, now);
            let offer = server_options.offer(&key(1, 80), now);
            [0, 0x28, 0xb8].map(|class| offer.class_for(class))
        };
        assert_eq!(told(0, 0), [0, 0x28, 0xb8], "nothing speaks against it");
        assert_eq!(told(0xb8, 0), [0; 3]);
        assert_eq!(told(0xb8, 0xb8), [0; 3], "a single other answer moves nothing");
        assert_eq!(told(0xb8, 0xb8), [0, 0x28, 0xb8], "as a server does that reflects");
        assert_eq!(told(0, 0), [0, 0x28, 0xb8], "either would answer so");
        assert_eq!(told(0, 0x48), [0, 0x28, 0xb8]);
        assert_eq!(told(0, 0x48), [0x48; 3]);
        assert_eq!(told(0x48, 0x48), [0x48; 3]);
        for _ in 0..10 {
            assert_eq!(told(0x28, 0x48), [0x48; 3]);
        }
        for _ in 0..3 {
            assert_eq!(told(0, 0), [0x48; 3], "after many that agreed, three others");
        }
        assert_eq!(told(0, 0), [0; 3]);
    }

    #[test]
    fn what_two_addresses_of_a_prefix_are_told_the_others_are_told_too() {
        let (usual, other) = (observation(1460, Some(7), true, true), observation(1300, Some(7), true, true));
        let now = Instant::from_secs(5);
        for v6 in [false, true] {
            let mut servers = tested(&Config::default());
            let server = FlowKey { v6, ..key(1, 80) };
            let client = |network: u32, host: u32| match v6 {
                false => FlowKey { wan: [0, 0, 0xffff, network << 8 | host], ..server },
                true => FlowKey { wan: [0x2001_0db8, network, host, host], ..server },
            };
            let told = |servers: &Tested, network, host| servers.offer(&client(network, host), now).mss;
            for _ in 0..3 {
                servers.learn(&client(9, 1), &usual, now);
            }
            for _ in 0..5 {
                servers.learn(&client(1, 1), &other, now);
            }
            assert_eq!((told(&servers, 1, 1), told(&servers, 1, 2)), (1300, 1460), "one address is one path");
            servers.learn(&client(1, 2), &other, now);
            assert_eq!([1, 2, 3].map(|host| told(&servers, 1, host)), [1300; 3]);
            assert_eq!([told(&servers, 2, 3), told(&servers, 9, 1)], [1460; 2], "other networks have other paths");
            assert!(!servers.learn(&client(1, 3), &other, now), "nothing new");
            // An address of that prefix with another path.
            (0..10).for_each(|_| _ = servers.learn(&client(1, 4), &usual, now));
            assert_eq!([1, 2, 3, 4].map(|host| told(&servers, 1, host)), [1300, 1300, 1300, 1460]);
            for host in 5..8 {
                servers.learn(&client(1, host), &usual, now);
            }
            assert_eq!([1, 2, 4, 9].map(|host| told(&servers, 1, host)), [1300, 1300, 1460, 1460], "not all of it has");
        }
    }

    #[test]
    fn a_server_is_spoken_for_with_the_hop_limit_it_was_seen_with() {
        let mut server_options = tested(&Config::default());
        let now = Instant::from_secs(5);
        assert_eq!(server_options.offer(&key(1, 80), now).ttl, 255);
        server_options.learn(&key(1, 80), &observation(1460, Some(7), true, true), now);
        assert_eq!(server_options.offer(&key(1, 80), now).ttl, 61);
        let mut fixed = tested(&Config { own_ttl: 255, ..Config::default() });
        fixed.learn(&key(1, 80), &observation(1460, Some(7), true, true), now);
        assert_eq!(fixed.offer(&key(1, 80), now).ttl, 255);
    }

    #[test]
    fn a_server_that_took_no_other_acknowledgement_gets_exact_echoes_for_ten_minutes() {
        let mut server_options = tested(&Config::default());
        let now = Instant::from_secs(5);
        server_options.cache.note_exact_echo(&key(1, 80), now);
        assert!(server_options.cache.needs_exact_echo(&key(1, 80), now), "nothing is known of it");
        server_options.learn(&key(1, 80), &observation(1460, Some(7), true, true), now);
        assert!(!server_options.cache.needs_exact_echo(&key(1, 80), now));
        server_options.cache.note_exact_echo(&key(1, 80), now);
        assert!(server_options.cache.needs_exact_echo(&key(1, 80), Instant::from_secs(500)));
        assert!(!server_options.cache.needs_exact_echo(&key(1, 80), Instant::from_secs(700)));
    }

    #[test]
    fn the_same_answer_again_is_published_rarely() {
        let mut server_options = tested(&Config::default());
        let answer = observation(1460, Some(7), true, true);
        let published =
            (1000..1100).filter(|&second| server_options.learn(&key(1, 80), &answer, Instant::from_secs(second)));
        assert!((5..=7).contains(&published.count()));
        assert!(server_options.learn(&key(1, 80), &observation(1300, Some(7), true, true), Instant::from_secs(1101)));
    }

    #[test]
    fn ecn_is_claimed_only_of_a_port_that_has_agreed_to_it() {
        let config = Config { mss: Source::HashIp, ..Config::default() };
        let mut server_options = tested(&config);
        let now = Instant::from_secs(5);
        let agrees = Observation { answered_ecn: EcnSetup::Classic, ..observation(1460, None, true, true) };
        server_options.learn(&key(1, 80), &agrees, now);
        assert_eq!(server_options.offer(&key(1, 80), now).ecn, KnownEcn::ClassicAtLeast);
        assert_eq!(server_options.offer(&key(1, 81), now).ecn, KnownEcn::Nothing);
        server_options.learn(&key(1, 80), &observation(1460, None, true, true), now);
        assert_eq!(server_options.offer(&key(1, 80), now).ecn, KnownEcn::Nothing, "it has changed its mind");
        assert_eq!(
            server_options.offer(&key(1, 80), Instant::from_secs(5000)).ecn,
            KnownEcn::Nothing,
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
        assert_eq!((nothing.known, nothing.window, nothing.ecn), (false, None, KnownEcn::Nothing));
        let agrees = Observation {
            answered_ecn: EcnSetup::Classic,
            window: RawWindow(4321),
            ..observation(1300, Some(3), false, false)
        };
        server_options.learn(&key(1, 80), &agrees, now);
        let offer = server_options.offer(&key(1, 80), now);
        assert_eq!((offer.mss, offer.scale, offer.sack), (nothing.mss, nothing.scale, nothing.sack));
        assert_eq!((offer.known, offer.window, offer.ecn), (true, Some(RawWindow(4321)), KnownEcn::ClassicAtLeast));
        assert!(!offer.timestamps);
        server_options.learn(&key(1, 80), &Observation { window: RawWindow(8), ..agrees }, now);
        assert_eq!(server_options.offer(&key(1, 80), now).window, Some(RawWindow(8)), "the smaller of the last two");
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
        assert_eq!(server_options.cache.slab.sets.len() * WAYS, 8);
        let known = (0..1000).filter(|&host| server_options.offer(&key(host, 80), Instant::from_secs(20_000)).known);
        assert_eq!(known.count(), 8);
        assert_eq!(server_options.offer(&key(999, 80), Instant::from_secs(20_000)).mss, 1300);
        assert_eq!(server_options.offer(&key(0, 80), Instant::from_secs(20_000)).mss, 1200, "who is seen often stays");
    }
}
