//! What the box passes, or works for, although nobody has proved anything: signed SYNs, those with an extension that policy passes, segments of connections that
//! may be running, and so on. Each kind has a rate of its own, and below it one for each network of sources and one for each destination, so that
//! who forges them neither uses up what others pass by nor reaches one server with all of it.
//!
//! What exceeds that may pass when it is repeated a second later, as an honest sender's is and a flood's is not, by rates of their own. And an address
//! that has completed the handshake of such a connection before passes by a small rate of its own, which only what is sent in its name can use up.
//!
//! Everything is counted in seconds of 2^20 µs, in tables of fixed size named by keyed hashes. Who shares a place shares its rates.

use crate::Instant;
use crate::keyed::{self, Keys};
use crate::policy::limit::Meter;
use crate::wire::FlowKey;

/// Places for networks, for destinations and for known sources, a power of two.
const PLACES: usize = 4096;

/// SYNs a second that pass from a known source.
const FROM_KNOWN: u16 = 8;

/// What network and destination get at the least, if the rate of all together is not less.
const LEAST: u32 = 8;

/// By what multiple more of what is repeated passes, for a network and for a destination.
const REPEATED_SHARE: u32 = 16;

/// A kind of exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// A SYN that only its server can answer: it is signed, offers an extension that policy passes, or names its end by another header.
    Syn,
    /// A SYN to a server nothing is known of. If it may not pass, it is answered.
    Introduction,
    /// A SYN whose hop limit ends before its server. If it may not pass, it is answered.
    Expiring,
    /// A SYN-ACK for a SYN that did not cross the box.
    Answer,
    /// A segment of a connection that may have been running when the box started.
    Segment,
    /// A segment of an unknown connection that is to be answered with a reset.
    Reset,
    /// A segment for whose connection other VLANs are searched.
    VlanSearch,
}

impl Exception {
    const COUNT: usize = Exception::VlanSearch as usize + 1;

    /// What of the whole rate one network, and one destination, may use: one part of so many.
    fn shares(self) -> (u32, u32) {
        match self {
            Exception::Syn => (32, 8),
            Exception::Introduction | Exception::Expiring => (8, 4),
            Exception::Answer | Exception::Segment | Exception::Reset | Exception::VlanSearch => (4, 2),
        }
    }

    /// Whether what may not pass is dropped, so that an honest sender repeats it.
    fn is_repeated(self) -> bool {
        !matches!(self, Exception::Introduction | Exception::Expiring)
    }
}

/// What has passed in a second.
#[derive(Clone, Copy, Default)]
struct Passed {
    second: u32,
    /// For the first time, and repeated.
    counts: [u16; 2],
}

impl Passed {
    /// What has passed in this second.
    fn within(&mut self, second: u32) -> &mut [u16; 2] {
        if self.second != second {
            *self = Self { second, counts: [0; 2] };
        }
        &mut self.counts
    }
}

/// What may pass in a second, for the first time and repeated.
#[derive(Clone, Copy)]
struct Limits([u16; 2]);

impl Limits {
    fn new(rate: u32, share: u32) -> Self {
        let limit = |of: u32| (of / share).max(LEAST).min(rate).try_into().unwrap_or(u16::MAX);
        Self([limit(rate), limit(rate.saturating_mul(REPEATED_SHARE))])
    }
}

/// The rates of one kind.
#[derive(Clone)]
struct Allowance {
    all: [Meter; 2],
    of_network: Limits,
    of_destination: Limits,
    networks: Box<[Passed]>,
    destinations: Box<[Passed]>,
}

impl Allowance {
    fn new(kind: Exception, rate: u32) -> Self {
        let (network, destination) = kind.shares();
        let passed = || vec![Passed::default(); PLACES].into();
        Self {
            all: [Meter::new(rate), Meter::new(rate)],
            of_network: Limits::new(rate, network),
            of_destination: Limits::new(rate, destination),
            networks: passed(),
            destinations: passed(),
        }
    }

    fn set_rate(&mut self, kind: Exception, rate: u32) {
        let (network, destination) = kind.shares();
        self.all.iter_mut().for_each(|meter| meter.set_rate(rate));
        (self.of_network, self.of_destination) = (Limits::new(rate, network), Limits::new(rate, destination));
    }

    /// What it knows of one network and one destination, in tables of one place.
    fn excerpt(&self, network: usize, destination: usize) -> Self {
        let of = |passed: &[Passed], place: usize| Box::new([passed[place & (passed.len() - 1)]]);
        Self {
            all: self.all.clone(),
            networks: of(&self.networks, network),
            destinations: of(&self.destinations, destination),
            ..*self
        }
    }

    fn take(&mut self, repeated: bool, network: usize, destination: usize, now: Instant) -> bool {
        let (nth, second) = (usize::from(repeated), second(now));
        let network = place(&mut self.networks, network).within(second);
        let destination = place(&mut self.destinations, destination).within(second);
        let granted = network[nth] < self.of_network.0[nth]
            && destination[nth] < self.of_destination.0[nth]
            && self.all[nth].take(now);
        if granted {
            network[nth] += 1;
            destination[nth] += 1;
        }
        granted
    }
}

/// A source that completed a handshake that passed unproved.
#[derive(Clone, Copy, Default)]
struct Known {
    /// What it is recognised by; zero in a free place.
    tag: u32,
    passed: Passed,
}

/// See the module.
pub struct Exceptions {
    keys: Keys,
    allowances: [Allowance; Exception::COUNT],
    known: Box<[Known]>,
}

/// The rates of each kind, a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Of [`Exception::Introduction`].
    pub introductions: u32,
    /// Of [`Exception::VlanSearch`].
    pub vlan_searches: u32,
    /// Of each other kind.
    pub passed: u32,
}

impl Rates {
    /// That of one kind.
    fn of(&self, kind: Exception) -> u32 {
        match kind {
            Exception::Introduction => self.introductions,
            Exception::VlanSearch => self.vlan_searches,
            _ => self.passed,
        }
    }
}

/// Every kind, in the order of their numbers.
const KINDS: [Exception; Exception::COUNT] = {
    use Exception::{Answer, Expiring, Introduction, Reset, Segment, Syn, VlanSearch};
    [Syn, Introduction, Expiring, Answer, Segment, Reset, VlanSearch]
};

impl Exceptions {
    /// Nothing has passed yet.
    pub fn new(rates: &Rates, keys: Keys) -> Self {
        debug_assert!(KINDS.iter().enumerate().all(|(n, &kind)| kind as usize == n), "each at its own place");
        Self {
            keys,
            allowances: KINDS.map(|kind| Allowance::new(kind, rates.of(kind))),
            known: vec![Known::default(); PLACES].into(),
        }
    }

    /// From now on these are the rates. What has passed in this second counts.
    pub fn set_rates(&mut self, rates: &Rates) {
        for (kind, allowance) in KINDS.into_iter().zip(&mut self.allowances) {
            allowance.set_rate(kind, rates.of(kind));
        }
    }

    /// What is known of one connection's source and destination; its source's network is at `network` here, and at 0 there.
    pub fn excerpt(&self, key: &FlowKey, network: u32) -> Self {
        let (destination, source) = (self.destination(key), self.source(key));
        Self {
            keys: self.keys,
            allowances: core::array::from_fn(|kind| self.allowances[kind].excerpt(network as usize, destination)),
            known: Box::new([self.known[source as usize & (self.known.len() - 1)]]),
        }
    }

    /// Whether nothing of this kind ever passes.
    #[inline(always)]
    pub fn is_shut(&self, kind: Exception) -> bool {
        self.allowances[kind as usize].all[0].is_shut()
    }

    /// Whether a segment of this connection may pass as such an exception, which is charged. `network` names its source's network; `repeats` says whether
    /// the segment was refused in an earlier second, and notes that it is refused now.
    pub fn admit(
        &mut self,
        kind: Exception,
        key: &FlowKey,
        network: u32,
        now: Instant,
        repeats: impl FnOnce() -> bool,
    ) -> bool {
        if self.is_shut(kind) {
            return false;
        }
        if kind == Exception::Syn && self.is_known(key, now) {
            return true;
        }
        let (network, destination) = (network as usize, self.destination(key));
        let allowance = &mut self.allowances[kind as usize];
        allowance.take(false, network, destination, now)
            || kind.is_repeated() && repeats() && allowance.take(true, network, destination, now)
    }

    /// A connection that passed unproved is established: its client gets what is sent to it.
    pub fn note_source(&mut self, key: &FlowKey) {
        let source = self.source(key);
        let known = place(&mut self.known, source as usize);
        if known.tag != tag(source) {
            *known = Known { tag: tag(source), passed: Passed::default() };
        }
    }

    /// Whether this source is known and has not used up its rate, which is charged.
    fn is_known(&mut self, key: &FlowKey, now: Instant) -> bool {
        let source = self.source(key);
        let known = place(&mut self.known, source as usize);
        let [passed, _] = known.passed.within(second(now));
        let granted = known.tag == tag(source) && *passed < FROM_KNOWN;
        *passed += u16::from(granted);
        granted
    }

    /// A keyed hash of the server, by address, network and port.
    fn destination(&self, key: &FlowKey) -> usize {
        let [a, b, c, d] = key.lan.map(u64::from);
        let port = u64::from(key.vlan.0) << 16 | u64::from(key.lan_port);
        keyed::place(self.keys, [a << 32 | b, c << 32 | d, port]) as usize
    }

    /// A keyed hash of the client's address.
    fn source(&self, key: &FlowKey) -> u64 {
        let [a, b, c, d] = key.wan.map(u64::from);
        keyed::place(self.keys, [a << 32 | b, c << 32 | d])
    }
}

fn place<T>(table: &mut [T], hash: usize) -> &mut T {
    let mask = table.len() - 1;
    &mut table[hash & mask]
}

/// What distinguishes the sources of one place.
fn tag(source: u64) -> u32 {
    ((source >> 32) as u32).max(1)
}

fn second(now: Instant) -> u32 {
    (now.as_micros() >> 20) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use std::collections::HashSet;

    const RATES: Rates = Rates { introductions: 100, vlan_searches: 1000, passed: 1000 };
    const START: Instant = Instant::from_secs(1000);

    fn exceptions() -> Exceptions {
        Exceptions::new(&RATES, (1, 2))
    }

    fn key(source: u32, port: u16) -> FlowKey {
        FlowKey { wan: [0, 0, 0xffff, source], lan: [0, 0, 0xffff, 9], lan_port: port, ..FlowKey::default() }
    }

    /// What is refused is repeated after a second by those that repeat.
    #[derive(Default)]
    struct Refused(HashSet<u32>);

    impl Exceptions {
        fn admit_syn(&mut self, source: u32, port: u16, now: Instant, seen: bool) -> bool {
            self.admit(Exception::Syn, &key(source, port), source >> 8, now, || seen)
        }
    }

    #[test]
    fn a_flood_to_one_server_leaves_the_others_their_share() {
        let mut exceptions = exceptions();
        let passed = (0..5000u32).filter(|n| exceptions.admit_syn(n << 8, 80, START, false)).count();
        assert_eq!(passed, 125);
        assert!(exceptions.admit_syn(1 << 8, 81, START, false));
    }

    #[test]
    fn a_flood_in_one_networks_name_leaves_the_others_their_share() {
        let mut exceptions = exceptions();
        let passed = (0..5000u32).filter(|n| exceptions.admit_syn(n & 0xff, *n as u16, START, false)).count();
        assert_eq!(passed, 31);
        assert!(exceptions.admit_syn(1 << 8, 81, START, false));
    }

    #[test]
    fn who_repeats_passes_where_a_flood_has_used_up_the_rest() {
        let (mut exceptions, mut refused, mut waited) = (exceptions(), Refused::default(), 0);
        for second in 0..20u64 {
            let now = START + Duration::from_micros(second << 20);
            for n in 0..12_500u32 {
                let _ = exceptions.admit_syn(n << 12 | second as u32, 80, now, false);
            }
            let honest = 0x0b00_0001 + ((second as u32) << 8);
            for source in refused.0.drain() {
                assert!(exceptions.admit_syn(source, 80, now, true), "it has been refused twice");
                waited += 1;
            }
            if !exceptions.admit_syn(honest, 80, now, false) {
                refused.0.insert(honest);
            }
        }
        assert!(waited > 15);
    }

    #[test]
    fn a_source_that_has_connected_so_before_passes_through_a_flood_that_repeats() {
        let mut exceptions = exceptions();
        let peer = 0x0a00_0001;
        exceptions.note_source(&key(peer, 179));
        for n in 0..20_000u32 {
            let _ = exceptions.admit_syn(n << 8 | 7, 179, START, true);
            let _ = exceptions.admit_syn(peer ^ (n & 0xff).max(1), 179, START, true);
        }
        assert!((0..8).all(|_| exceptions.admit_syn(peer, 179, START, false)));
        assert!(!exceptions.admit_syn(peer, 179, START, false), "in its name no more than eight a second pass");
    }

    #[test]
    fn kinds_do_not_share() {
        let mut exceptions = exceptions();
        for n in 0..5000 {
            let _ = exceptions.admit(Exception::Answer, &key(n << 8, 80), n, START, || true);
        }
        for kind in [Exception::Segment, Exception::Syn, Exception::Reset] {
            assert!(exceptions.admit(kind, &key(1 << 8, 80), 1, START, || false), "{kind:?}");
        }
    }

    #[test]
    fn a_rate_of_nothing_passes_nothing_and_a_small_one_is_not_divided() {
        let rates = |passed| Rates { passed, introductions: 0, vlan_searches: 1 };
        let mut none = Exceptions::new(&rates(0), (1, 2));
        none.note_source(&key(1, 80));
        assert!(!none.admit_syn(1, 80, START, true) && none.is_shut(Exception::Introduction));
        let mut small = Exceptions::new(&rates(5), (1, 2));
        assert_eq!((0..100).filter(|_| small.admit_syn(1, 80, START, false)).count(), 5);
    }

    #[test]
    fn an_excerpt_decides_as_the_whole() {
        let mut exceptions = exceptions();
        exceptions.note_source(&key(5, 80));
        for n in 0..3000u32 {
            let (source, now) = (n % 64 * 77, START + Duration::from_millis(n.into()));
            let (key, network) = (key(source, (n % 3) as u16), source >> 8);
            for kind in [Exception::Syn, Exception::Introduction, Exception::Segment] {
                let mut excerpt = exceptions.excerpt(&key, network);
                let decided = excerpt.admit(kind, &key, 0, now, || n % 2 == 0);
                assert_eq!(exceptions.admit(kind, &key, network, now, || n % 2 == 0), decided);
            }
        }
    }
}
