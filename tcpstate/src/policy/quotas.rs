//! Limits on the connections that run and on new ones, by networks of clients and by destination, and on SYN-ACKs.
//!
//! A connection counts from the moment its client has proved that it is there until it is over. So nobody can spend a network's share by forging
//! its addresses. It counts for each of the networks that its client is in, from a part of one address to the largest that one owner is likely to have:
//! the owner of a large network takes no more than its share, however many addresses of it are used. It also counts for its destination, which
//! is the server's address and port on its VLAN.
//!
//! | level | IPv4 | IPv6 | limit |
//! | --- | --- | --- | --- |
//! | part | 4096 ports of an address | an address | a quarter of what an address may |
//! | address | /32 | /64 | as configured |
//! | network | /24 | /56 | `network_factor` times that |
//! | site | /16 | /48 | `network_factor` times that |
//! | provider | - | /32 | `network_factor` times that |
//!
//! Behind a carrier's NAT many subscribers share an address, and each has a block of its ports (RFC 6888, RFC 7422). A part of an address gets a quarter,
//! so that one subscriber does not use up what the others need.
//!
//! Each level has two rows of counters, of which the lower counts (a count-min sketch, Cormode and Muthukrishnan 2005). Two that share both count
//! together; places are keyed, so that nobody can choose with whom. Sizes follow the flow table, so that this is rare.
//!
//! All workers count together: each adds to its own what it reads of the others' counters, which they publish as they count. So a limit is exceeded by
//! at most one connection for each other worker, in the same instant.
//!
//! Layout 1: a word a counter. From the lowest bit on: connections that run (24 bits), new ones in the current second (24 bits), the low 16 bits of
//! that second.

use crate::config::{Config, Limits};
use crate::keyed::{self, Keys};
use crate::memory::{LINE, Word, Words};
use crate::wire::FlowKey;
use crate::{Event, Instant};

/// The levels at which something is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Part,
    Address,
    Network,
    Site,
    Provider,
    Destination,
    /// SYN-ACKs in the name of a destination.
    Answers,
    /// All SYN-ACKs.
    AllAnswers,
}

impl Level {
    const ALL: [Level; 8] = [
        Level::Part,
        Level::Address,
        Level::Network,
        Level::Site,
        Level::Provider,
        Level::Destination,
        Level::Answers,
        Level::AllAnswers,
    ];

    /// The levels at which connections count.
    const OF_CONNECTIONS: [Level; 6] =
        [Level::Part, Level::Address, Level::Network, Level::Site, Level::Provider, Level::Destination];

    /// The counters of each of its two rows, a power of two, for a table of so many flows.
    fn width(self, flows: usize) -> usize {
        let addresses = (flows / 4).next_power_of_two().clamp(1024, 1 << 20);
        match self {
            Level::Part | Level::Address => addresses,
            Level::Network => addresses / 4,
            Level::Site => addresses / 16,
            Level::Provider => addresses / 64,
            Level::Destination | Level::Answers => 4096.min(addresses),
            Level::AllAnswers => LINE,
        }
    }
}

/// How many parts of an address use up what the address may.
const PARTS: u32 = 4;
/// Ports of a part of an IPv4 address, as a power of two.
const PART_PORTS: u32 = 12;
/// Of the SYN-ACKs that may be sent, three of four may answer SYNs that are seen for the first time; the others are for those that are repeated.
const fn first_answers(limit: u32) -> u32 {
    limit - limit / 4
}

/// The bits of a count.
const COUNT_BITS: u32 = 24;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// What a counter holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Connections that run.
    flows: u32,
    /// What began in a second.
    began: u32,
    /// The low bits of that second.
    second: u16,
}

impl Counts {
    fn of(word: u64) -> Self {
        Self {
            flows: (word & COUNT) as u32,
            began: (word >> COUNT_BITS & COUNT) as u32,
            second: (word >> (2 * COUNT_BITS)) as u16,
        }
    }

    fn word(self) -> u64 {
        let field = |count: u32| u64::from(count).min(COUNT);
        u64::from(self.second) << (2 * COUNT_BITS) | field(self.began) << COUNT_BITS | field(self.flows)
    }

    /// What began in this second.
    fn began_in(self, second: u16) -> u32 {
        if self.second == second { self.began } else { 0 }
    }
}

/// The second that a moment lies in, as far as a counter tells.
fn second(now: Instant) -> u16 {
    (now.as_micros() / 1_000_000) as u16
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quota {
    SourceRate,
    SourceFlows,
    DestinationRate,
    DestinationFlows,
    Answers,
    AllAnswers,
}

impl Quota {
    /// The event that counts what it has stopped.
    pub(crate) fn event(self) -> Event {
        match self {
            Quota::SourceRate => Event::OverSourceRate,
            Quota::SourceFlows => Event::OverSourceFlows,
            Quota::DestinationRate => Event::OverDestinationRate,
            Quota::DestinationFlows => Event::OverDestinationFlows,
            Quota::Answers => Event::OverDestinationSynAcks,
            Quota::AllAnswers => Event::OverSynAcks,
        }
    }
}

/// See the module.
pub(crate) struct Quotas {
    keys: Keys,
    limits: Limits,
    /// Whether anything is limited for connections, and for SYN-ACKs.
    limits_connections: bool,
    limits_answers: bool,
    /// Of each level where its rows begin, and their counters.
    rows: [(usize, usize); Level::ALL.len()],
    own: Words,
    /// The counters of the other workers.
    others: Vec<Words>,
    /// A bit for each flow of the table: whether it is counted.
    counted: Box<[u64]>,
}

impl Quotas {
    /// The version of the layout of the words.
    pub(crate) const LAYOUT: u64 = 1;

    /// The words of this configuration's counters. Pages that are never used take no memory: without a limit none is.
    pub(crate) fn words_needed(config: &Config) -> usize {
        let flows = config.flow_capacity();
        Level::ALL.into_iter().map(|level| 2 * level.width(flows)).sum()
    }

    /// The bytes besides the words.
    pub(crate) fn bytes_needed(config: &Config) -> usize {
        config.flow_capacity().div_ceil(64) * 8
    }

    /// Counters in these words, for a table of so many flows of which none is counted yet.
    ///
    /// # Panics
    /// If there are too few words.
    pub(crate) fn new(limits: &Limits, flows: usize, keys: Keys, own: Words) -> Self {
        let mut end = 0;
        let rows = Level::ALL.map(|level| {
            let (begin, width) = (end, level.width(flows));
            end += 2 * width;
            (begin, width)
        });
        assert!(own.len() >= end, "the counters of limits need more words");
        if own.is_shared() {
            // Whatever a former process has counted is counted anew.
            (0..end).filter(|&n| own[n].get() != 0).for_each(|n| own[n].set(0));
        }
        let mut quotas = Self {
            keys,
            limits: Limits::default(),
            limits_connections: false,
            limits_answers: false,
            rows,
            own,
            others: Vec::new(),
            counted: vec![0; flows.div_ceil(64)].into(),
        };
        quotas.set_limits(limits);
        quotas
    }

    /// Changes the limits. Connections that began while nothing was limited do not count.
    pub(crate) fn set_limits(&mut self, limits: &Limits) {
        self.limits = limits.clone();
        self.limits_connections = limits.limits_connections();
        self.limits_answers = limits.limits_syn_acks();
    }

    /// Adds up with these counters of other workers from now on.
    pub(crate) fn set_others(&mut self, others: Vec<Words>) {
        debug_assert!(others.iter().all(|words| words.len() >= self.own.len()), "all workers are configured alike");
        self.others = others;
    }

    /// Whether anything is limited for connections.
    #[inline(always)]
    pub(crate) fn limits_connections(&self) -> bool {
        self.limits_connections
    }

    /// Whether anything is limited for SYN-ACKs.
    #[inline(always)]
    pub(crate) fn limits_answers(&self) -> bool {
        self.limits_answers
    }

    /// The counters of a connection at a level; `None` where its address family has no such level.
    fn places(&self, level: Level, key: &FlowKey) -> Option<[usize; 2]> {
        let [high, low] = halves(&key.wan);
        let tag = level as u64 | u64::from(key.v6) << 8;
        let wide = |prefix: u32| high & u64::MAX << (64 - prefix);
        let narrow = |prefix: u32| low & u64::MAX << (32 - prefix);
        let hash = match (level, key.v6) {
            (Level::Part, true) => keyed::place(self.keys, [high, low, tag]),
            (Level::Part, false) => keyed::place(self.keys, [u64::from(key.wan_port >> PART_PORTS), low, tag]),
            (Level::Address, true) => keyed::place(self.keys, [wide(64), tag]),
            (Level::Address, false) => keyed::place(self.keys, [narrow(32), tag]),
            (Level::Network, true) => keyed::place(self.keys, [wide(56), tag]),
            (Level::Network, false) => keyed::place(self.keys, [narrow(24), tag]),
            (Level::Site, true) => keyed::place(self.keys, [wide(48), tag]),
            (Level::Site, false) => keyed::place(self.keys, [narrow(16), tag]),
            (Level::Provider, true) => keyed::place(self.keys, [wide(32), tag]),
            (Level::Provider, false) => return None,
            (Level::Destination | Level::Answers, _) => {
                let [high, low] = halves(&key.lan);
                let port = u64::from(key.vlan.0) << 16 | u64::from(key.lan_port);
                keyed::place(self.keys, [high, low, port, tag])
            }
            (Level::AllAnswers, _) => 0,
        };
        let (begin, width) = self.rows[level as usize];
        let place = |row: usize, hash: u64| begin + row * width + (hash as usize & (width - 1));
        Some([place(0, hash), place(1, hash >> 32)])
    }

    /// What all workers have counted at a level: connections that run, and what began in this second.
    fn sum(&self, places: [usize; 2], second: u16) -> (u32, u32) {
        let [one, other] = places.map(|place| {
            let workers = self.others.iter().chain([&self.own]);
            workers.fold((0u32, 0u32), |(flows, began), words| {
                let counts = Counts::of(words[place].get());
                (flows.saturating_add(counts.flows), began.saturating_add(counts.began_in(second)))
            })
        });
        (one.0.min(other.0), one.1.min(other.1))
    }

    fn change(&self, places: [usize; 2], change: impl Fn(&mut Counts)) {
        for place in places {
            let word = &self.own[place];
            let mut counts = Counts::of(word.get());
            change(&mut counts);
            word.set(counts.word());
        }
    }

    /// How many connections may run at a level, and begin in a second; zero is no limit.
    fn limits_at(&self, level: Level) -> (u32, u32) {
        let Limits { source_flows, source_rate, network_factor, destination_flows, destination_rate, .. } = self.limits;
        let of_source = |limit: u32| match level {
            // No limit stays none, and what is limited is never shut.
            Level::Part => limit.div_ceil(PARTS),
            Level::Address => limit,
            Level::Network => limit.saturating_mul(network_factor),
            Level::Site => limit.saturating_mul(network_factor.saturating_pow(2)),
            _ => limit.saturating_mul(network_factor.saturating_pow(3)),
        };
        match level {
            Level::Destination => (destination_flows, destination_rate),
            _ => (of_source(source_flows), of_source(source_rate)),
        }
    }

    /// The limit that keeps another connection from beginning, if one does.
    pub(crate) fn exceeded(&self, key: &FlowKey, now: Instant) -> Option<Quota> {
        if !self.limits_connections {
            return None;
        }
        let second = second(now);
        Level::OF_CONNECTIONS.into_iter().find_map(|level| {
            let (most_flows, most_began) = self.limits_at(level);
            if most_flows == 0 && most_began == 0 {
                return None;
            }
            let (flows, began) = self.sum(self.places(level, key)?, second);
            let is_reached = |count, most| most > 0 && count >= most;
            let of_destination = level == Level::Destination;
            match (is_reached(flows, most_flows), is_reached(began, most_began)) {
                (true, _) if of_destination => Some(Quota::DestinationFlows),
                (true, _) => Some(Quota::SourceFlows),
                (_, true) if of_destination => Some(Quota::DestinationRate),
                (_, true) => Some(Quota::SourceRate),
                (false, false) => None,
            }
        })
    }

    /// Counts a flow that is not counted yet.
    pub(crate) fn begin(&mut self, flow: u32, key: &FlowKey, now: Instant) {
        self.counted[flow as usize / 64] |= 1 << (flow % 64);
        let second = second(now);
        for level in Level::OF_CONNECTIONS {
            let Some(places) = self.places(level, key) else { continue };
            self.change(places, |counts| {
                *counts = Counts { flows: counts.flows + 1, began: counts.began_in(second) + 1, second };
            });
        }
    }

    /// Counts a flow no more that is counted.
    pub(crate) fn end(&mut self, flow: u32, key: &FlowKey) {
        self.counted[flow as usize / 64] &= !(1 << (flow % 64));
        for level in Level::OF_CONNECTIONS {
            let Some(places) = self.places(level, key) else { continue };
            self.change(places, |counts| counts.flows = counts.flows.saturating_sub(1));
        }
    }

    /// Whether a flow is counted.
    #[inline(always)]
    pub(crate) fn is_counted(&self, flow: u32) -> bool {
        self.counted[flow as usize / 64] >> (flow % 64) & 1 == 1
    }

    /// The limit that keeps a SYN from being answered, if one does; `repeated` says whether it was left unanswered in an earlier second, and is asked
    /// only if that matters.
    pub(crate) fn answers_exceeded(
        &self,
        key: &FlowKey,
        now: Instant,
        mut repeated: impl FnMut() -> bool,
    ) -> Option<Quota> {
        if !self.limits_answers {
            return None;
        }
        let second = second(now);
        let limits = [
            (Level::AllAnswers, self.limits.syn_acks, Quota::AllAnswers),
            (Level::Answers, self.limits.destination_syn_acks, Quota::Answers),
        ];
        limits.into_iter().find_map(|(level, limit, quota)| {
            if limit == 0 {
                return None;
            }
            let (_, answered) = self.sum(self.places(level, key)?, second);
            let is_reached = answered >= limit || answered >= first_answers(limit) && !repeated();
            is_reached.then_some(quota)
        })
    }

    /// Counts a SYN-ACK.
    pub(crate) fn note_answer(&self, key: &FlowKey, now: Instant) {
        let second = second(now);
        for level in [Level::Answers, Level::AllAnswers] {
            let Some(places) = self.places(level, key) else { continue };
            self.change(places, |counts| {
                *counts = Counts { began: counts.began_in(second) + 1, second, ..*counts };
            });
        }
    }

    /// What is known of one connection, of all workers together, for an excerpt of a table of so many flows, where its flow and the
    /// place of that in the excerpt are given, if it has one.
    pub(crate) fn excerpt(&self, key: &FlowKey, flow: Option<(u32, u32)>, flows: usize) -> Self {
        let rows = core::array::from_fn(|level| (2 * level, 1));
        let own = Words::zeroed(2 * Level::ALL.len());
        for level in Level::ALL {
            let Some(places) = self.places(level, key) else { continue };
            let seconds = self.others.iter().chain([&self.own]).map(|words| Counts::of(words[places[0]].get()).second);
            let second = seconds.max().unwrap_or_default();
            let (flows, began) = self.sum(places, second);
            // Both rows are the lower one.
            for row in 0..2 {
                own[2 * level as usize + row].set(Counts { flows, began, second }.word());
            }
        }
        let mut counted: Box<[u64]> = vec![0; flows.div_ceil(64)].into();
        if let Some((_, place)) = flow.filter(|&(flow, _)| self.is_counted(flow)) {
            counted[place as usize / 64] |= 1 << (place % 64);
        }
        Self { keys: self.keys, limits: self.limits.clone(), rows, own, others: Vec::new(), counted, ..*self }
    }
}

/// An address as two words.
fn halves([a, b, c, d]: &crate::wire::Addr) -> [u64; 2] {
    [[a, b], [c, d]].map(|[high, low]| u64::from(*high) << 32 | u64::from(*low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const START: Instant = Instant::from_secs(1000);

    fn config(limits: Limits) -> Config {
        Config { table_buckets: 512, limits, ..Config::default() }
    }

    fn quotas(limits: Limits) -> Quotas {
        let config = config(limits);
        Quotas::new(&config.limits, config.flow_capacity(), (3, 4), Words::zeroed(Quotas::words_needed(&config)))
    }

    /// The quotas of two workers that add up.
    fn two_workers(limits: &Limits) -> [Quotas; 2] {
        let config = config(limits.clone());
        let len = Quotas::words_needed(&config);
        let words = [(); 2].map(|()| crate::memory::tests::shared(len, || 0));
        let [one, other] = words.each_ref().map(|words| words.share().unwrap());
        let mut others = [vec![other], vec![one]].into_iter();
        words.map(|words| {
            let mut quotas = Quotas::new(limits, config.flow_capacity(), (3, 4), words);
            quotas.set_others(others.next().unwrap());
            quotas
        })
    }

    fn v4(address: u32, port: u16) -> FlowKey {
        FlowKey { wan: [0, 0, 0xffff, address], wan_port: port, lan: [0, 0, 0xffff, 9], ..FlowKey::default() }
    }

    fn v6(address: u128) -> FlowKey {
        let wan = [96, 64, 32, 0].map(|shift| (address >> shift) as u32);
        FlowKey { wan, lan: [0, 0, 0xffff, 9], v6: true, ..FlowKey::default() }
    }

    /// How many of these connections may begin, one after the other, none of which ends.
    fn admitted(quotas: &mut Quotas, first: u32, keys: impl IntoIterator<Item = FlowKey>, now: Instant) -> usize {
        let mut flow = first;
        let begins = keys.into_iter().filter(|key| {
            let begins = quotas.exceeded(key, now).is_none();
            if begins {
                quotas.begin(flow, key, now);
                flow += 1;
            }
            begins
        });
        begins.count()
    }

    #[test]
    fn each_network_takes_no_more_than_its_share_however_many_addresses_it_has() {
        let limits = Limits { source_flows: 8, network_factor: 4, ..Limits::default() };
        type Make = fn(u32) -> FlowKey;
        let networks: [(usize, Make); 8] = [
            (2, |n| v4(0x0a00_0001, 4096 + n as u16)),
            (8, |n| v4(0x0a00_0001, (n << 8) as u16)),
            (32, |n| v4(0x0a00_0000 + n % 256, (n << 8) as u16)),
            (128, |n| v4(0x0a00_0000 + n * 97 % 65536, (n << 8) as u16)),
            (2, |_| v6(0x2001_0db8 << 96)),
            (8, |n| v6(0x2001_0db8 << 96 | u128::from(n))),
            (32, |n| v6(0x2001_0db8 << 96 | u128::from(n % 256) << 64 | u128::from(n))),
            (128, |n| v6(0x2001_0db8 << 96 | u128::from(n * 97 % 65536) << 64 | u128::from(n))),
        ];
        for (most, network) in networks {
            let mut quotas = quotas(limits.clone());
            assert_eq!(admitted(&mut quotas, 0, (0..3000).map(network), START), most);
            assert_eq!(quotas.exceeded(&network(0), START), Some(Quota::SourceFlows));
            let stranger = if network(0).v6 { v6(0x2003 << 112) } else { v4(0xc000_0201, 7) };
            assert_eq!(quotas.exceeded(&stranger, START), None);
            // An end makes room for another.
            quotas.end(0, &network(0));
            assert_eq!(admitted(&mut quotas, 0, (0..3000).map(network), START), 1);
        }
        // Of a provider's /32 the whole.
        let mut quotas = quotas(limits);
        let provider = (0..3000u32).map(|n| v6(0x2001_0db8 << 96 | u128::from(n * 21) << 80 | u128::from(n)));
        assert_eq!(admitted(&mut quotas, 0, provider, START), 512);
    }

    #[test]
    fn a_subscriber_behind_a_nat_leaves_the_others_theirs() {
        let limits = Limits { source_flows: 100, source_rate: 100, ..Limits::default() };
        let mut quotas = quotas(limits);
        // Each has a block of 2048 ports.
        let subscriber = |block: u16| (0..2000).map(move |n| v4(0xc633_6401, (block << 11) + n));
        assert_eq!(admitted(&mut quotas, 0, subscriber(4), START), 25);
        for block in [7, 9, 12] {
            assert_eq!(admitted(&mut quotas, 100 * u32::from(block), subscriber(block).take(20), START), 20);
        }
    }

    #[test]
    fn new_connections_are_counted_by_the_second_and_those_that_run_until_they_end() {
        let limits = Limits { source_rate: 40, destination_flows: 25, ..Limits::default() };
        let mut quotas = quotas(limits);
        let connections = |network: u32| (0..100).map(move |n| v4(network << 16 | n, 0));
        assert_eq!(admitted(&mut quotas, 0, (0..100).map(|_| v4(7, 0)), START), 10);
        assert_eq!(quotas.exceeded(&v4(7, 0), START), Some(Quota::SourceRate));
        assert_eq!(quotas.exceeded(&v4(7, 0), START + Duration::from_secs(1)), None);
        assert_eq!(admitted(&mut quotas, 10, connections(1), START), 15);
        assert_eq!(quotas.exceeded(&v4(9 << 16, 0), START), Some(Quota::DestinationFlows));
        let elsewhere = FlowKey { lan_port: 81, ..v4(9 << 16, 0) };
        assert_eq!(quotas.exceeded(&elsewhere, START + Duration::from_secs(100)), None);
        (0..10).for_each(|flow| quotas.end(flow, &v4(7, 0)));
        assert_eq!(admitted(&mut quotas, 30, connections(2), START), 10);
    }

    #[test]
    fn workers_count_together() {
        let limits = Limits { source_flows: 40, syn_acks: 8, ..Limits::default() };
        let [mut one, mut other] = two_workers(&limits);
        let connections = || (0..100).map(|n| v4(1, n << 12));
        assert_eq!(admitted(&mut one, 0, connections().take(13), START), 13);
        assert_eq!(admitted(&mut other, 0, connections(), START), 27);
        assert_eq!([&one, &other].map(|quotas| quotas.exceeded(&v4(1, 0xf000), START)), [Some(Quota::SourceFlows); 2]);
        one.end(0, &v4(1, 0));
        assert_eq!(other.exceeded(&v4(1, 0), START), None);
        for quotas in [&one, &other].into_iter().cycle().take(6) {
            assert_eq!(quotas.answers_exceeded(&v4(1, 0), START, || false), None);
            quotas.note_answer(&v4(1, 0), START);
        }
        assert_eq!(one.answers_exceeded(&v4(1, 0), START, || false), Some(Quota::AllAnswers));
        assert_eq!(one.answers_exceeded(&v4(1, 0), START, || true), None, "a quarter is for repeated SYNs");
        (0..2).for_each(|_| one.note_answer(&v4(1, 0), START));
        assert_eq!(other.answers_exceeded(&v4(1, 0), START, || true), Some(Quota::AllAnswers));
        assert_eq!(other.answers_exceeded(&v4(1, 0), START + Duration::from_secs(1), || false), None);
    }

    #[test]
    fn syn_acks_for_one_server_leave_the_others_theirs() {
        let quotas = quotas(Limits { destination_syn_acks: 4, ..Limits::default() });
        let other = FlowKey { lan_port: 81, ..v4(1, 0) };
        (0..4).for_each(|_| quotas.note_answer(&v4(1, 0), START));
        assert_eq!(quotas.answers_exceeded(&v4(2, 0), START, || true), Some(Quota::Answers));
        assert_eq!(quotas.answers_exceeded(&other, START, || false), None);
    }

    #[test]
    fn whatever_another_process_left_is_counted_anew() {
        let config = config(Limits { source_flows: 4, ..Limits::default() });
        let mut random = crate::memory::tests::random(3);
        let words = crate::memory::tests::shared(Quotas::words_needed(&config), &mut random);
        let mut quotas = Quotas::new(&config.limits, config.flow_capacity(), (3, 4), words);
        assert_eq!(admitted(&mut quotas, 0, (0..9).map(|n| v4(1, n << 12)), START), 4);
    }

    proptest! {
        /// In a large table counters are shared so rarely that what is counted is what there is; ends and changed limits leave no trace.
        #[test]
        fn what_is_counted_is_what_runs(
            steps in prop::collection::vec((0u32..6, 0u16..4, 0u64..400, any::<bool>()), 1..200),
            limits in prop::collection::vec(0u32..12, 4),
        ) {
            let limits = Limits {
                source_flows: limits[0], source_rate: limits[1],
                destination_flows: limits[2], destination_rate: limits[3],
                network_factor: 2, ..Limits::default()
            };
            let mut quotas = quotas(limits.clone());
            let (mut now, mut running, mut begun) = (START, Vec::<(u32, FlowKey)>::new(), Vec::<(FlowKey, u64)>::new());
            for (n, (host, port, later, ends)) in steps.into_iter().enumerate() {
                now = now + Duration::from_millis(later);
                // Two hosts of each of three /24, which are of two /16.
                let source = 0x0a00_0000 + [0, 0x100, 0x1_0000][host as usize / 2] + host % 2;
                let key = FlowKey { lan_port: port % 2, ..v4(source, port << 12) };
                if ends && !running.is_empty() {
                    let (flow, key) = running.swap_remove(n % running.len());
                    quotas.end(flow, &key);
                }
                let second = now.as_micros() / 1_000_000;
                let names: [fn(&FlowKey) -> u64; 5] = [
                    |key| u64::from(key.wan[3]) << 16 | u64::from(key.wan_port >> 12),
                    |key| key.wan[3].into(),
                    |key| (key.wan[3] >> 8).into(),
                    |key| (key.wan[3] >> 16).into(),
                    |key| key.lan_port.into(),
                ];
                let factors = [(1, 4), (1, 1), (2, 1), (4, 1)];
                let fits = names.iter().enumerate().all(|(level, name)| {
                    let flows = running.iter().filter(|(_, other)| name(other) == name(&key)).count() as u32;
                    let began = begun.iter().filter(|(other, at)| name(other) == name(&key) && *at == second).count() as u32;
                    let (most_flows, most_began) = match factors.get(level) {
                        Some(&(times, parts)) => (
                            (limits.source_flows * times).div_ceil(parts),
                            (limits.source_rate * times).div_ceil(parts),
                        ),
                        None => (limits.destination_flows, limits.destination_rate),
                    };
                    (most_flows == 0 || flows < most_flows) && (most_began == 0 || began < most_began)
                });
                prop_assert_eq!(quotas.exceeded(&key, now).is_none(), fits);
                let excerpt = quotas.excerpt(&key, None, 64);
                prop_assert_eq!(excerpt.exceeded(&key, now), quotas.exceeded(&key, now));
                if fits && limits.limits_connections() {
                    quotas.begin(n as u32, &key, now);
                    running.push((n as u32, key));
                    begun.push((key, second));
                }
            }
            running.drain(..).for_each(|(flow, key)| quotas.end(flow, &key));
            let left: HashMap<usize, u32> =
                (0..quotas.own.len()).map(|n| (n, Counts::of(quotas.own[n].get()).flows)).filter(|it| it.1 > 0).collect();
            prop_assert!(left.is_empty() && quotas.counted.iter().all(|&word| word == 0), "{:?}", left);
        }
    }
}
