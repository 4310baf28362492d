//! Sources that have proved their address lately. To a server whose policy says so (`proved = pass`) a SYN of such a source passes unanswered, and its
//! connection is followed and not touched.
//!
//! Anybody can send SYNs in such a source's name. So what passes has budgets of its own: SYNs a second of one source, half-open connections of one source,
//! and half-open connections of all sources at one destination. A connection is half-open from its SYN until its client has acknowledged the number that
//! the server chose, which only a client that gets what is sent to it can do; or, if none does, until servers give up. A SYN that finds a budget spent is
//! answered like any other.
//!
//! A source has one of two cache lines that a keyed hash of its address and VLAN names; the one whose proof is older gives way to another source. A
//! destination has one line, named by a keyed hash of its address, VLAN and port; who shares that shares its budget. Time is counted in seconds of 2^20 µs and
//! in [slices](SLICE_SECONDS).
//!
//! Layout 1: pairs of lines of eight words, one line a source, and behind them 4096 lines, one a destination. Word 0 of a source is a tag of its hash in
//! the high half, never zero, and the second of its last proof in the low half; word 1 the second in which SYNs last passed in the high half, and how many in
//! the low half. Words 2 to 7 hold two half-open connections each: 16 bits of the number of the slice in which it began above 16 bits of the connection's
//! hash of which the lowest is set; zero is none. Word `n % 8` of a destination is the number `n` of a slice in the high half, and how many of the connections that began in it
//! are half-open in the low half. What is out of date is recognised when it is read.

use core::sync::atomic::AtomicU64;

use crate::keyed::{self, Keys};
use crate::memory::{LINE, Word, Words};
use crate::wire::FlowKey;
use crate::{Config, Instant};

/// Lines of destinations.
const DESTINATIONS: usize = 4096;
/// A half-open connection that its client does not complete counts for eight slices of ten seconds less the part of the first that had passed: 70 s at
/// least, as Linux repeats its SYN-ACK for 63 s (`tcp_synack_retries`).
const SLICE_SECONDS: u64 = 10;
const SLICES: u64 = LINE as u64;
/// The part of the time for which a proof stands after which a new one is told to the other workers.
const TOLD_AFTER: u32 = 8;
/// The word of a source that counts its SYNs, and the first that holds half-open connections.
const SYNS: usize = 1;
const HALF_OPEN: usize = 2;
/// Half-open connections that each of the other words holds.
const IN_WORD: usize = 2;

type Line = [AtomicU64; LINE];

/// How long a source counts as proved, and how much of it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// For how many seconds a proof stands.
    lasting: u32,
    /// The budgets: SYNs a second and half-open connections of one source, half-open connections at one destination.
    syns: u32,
    half_open: usize,
    half_open_all: u32,
}

impl Budgets {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            lasting: config.proved_memory.as_secs().try_into().unwrap_or(u32::MAX),
            syns: config.proved_syns,
            half_open: config.proved_half_open.min(ProvedSources::HALF_OPEN_MOST),
            half_open_all: config.proved_half_open_all,
        }
    }
}

/// See the module.
pub struct ProvedSources {
    words: Words,
    keys: Keys,
    /// Whether any destination passes connections of proved sources. Without one nothing is kept.
    is_on: bool,
    /// The number of pairs of sources' lines, a power of two, and of destinations' lines.
    pairs: usize,
    destinations: usize,
    budgets: Budgets,
}

/// The place of a half-open connection in its source's line.
#[derive(Clone, Copy)]
struct Place {
    word: usize,
    shift: u32,
}

impl Place {
    /// Every place of a line.
    fn all() -> impl Iterator<Item = Self> {
        (0..ProvedSources::HALF_OPEN_MOST)
            .map(|n| Self { word: HALF_OPEN + n / IN_WORD, shift: 32 * (n % IN_WORD) as u32 })
    }

    /// The slice in which its connection began, and the connection's tag.
    fn read(self, line: &Line) -> (u16, u16) {
        let half = (line[self.word].get() >> self.shift) as u32;
        ((half >> 16) as u16, half as u16)
    }

    fn write(self, line: &Line, slice: u16, tag: u16) {
        let (word, half) = (&line[self.word], u32::from(slice) << 16 | u32::from(tag));
        word.set(word.get() & !(u64::from(u32::MAX) << self.shift) | u64::from(half) << self.shift);
    }
}

/// The halves of a word, the high one first.
fn halves(word: &AtomicU64) -> [u32; 2] {
    let value = word.get();
    [(value >> 32) as u32, value as u32]
}

fn word_of(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn second(now: Instant) -> u32 {
    (now.as_micros() >> 20) as u32
}

fn slice(now: Instant) -> u32 {
    (now.as_micros() / (SLICE_SECONDS * 1_000_000)) as u32
}

/// What tells the connections of one source apart, by the keyed hash of the 4-tuple; never zero.
fn tag(hash: u64) -> u16 {
    (hash >> 48) as u16 | 1
}

/// Whether a connection that began in this slice and was not completed still counts.
fn counts(began: u16, slice: u32) -> bool {
    u64::from((slice as u16).wrapping_sub(began)) < SLICES
}

impl ProvedSources {
    /// The version of the layout.
    pub const LAYOUT: u64 = 1;
    /// Half-open connections of one source that one worker can remember.
    pub const HALF_OPEN_MOST: usize = (LINE - HALF_OPEN) * IN_WORD;

    /// Pairs of lines for this configuration's sources.
    fn pairs(config: &Config) -> usize {
        (config.proved_sources / 2).next_power_of_two()
    }

    /// The words of this configuration's sources and destinations.
    pub fn words_needed(config: &Config) -> usize {
        LINE * (2 * Self::pairs(config) + DESTINATIONS)
    }

    /// Sources and destinations in these words; nothing is kept until it is [turned on](Self::turn).
    ///
    /// # Panics
    /// If there are too few words.
    pub fn new(config: &Config, words: Words, keys: Keys) -> Self {
        assert!(words.len() >= Self::words_needed(config), "the proved sources need more words");
        Self {
            words,
            keys,
            is_on: false,
            pairs: Self::pairs(config),
            destinations: DESTINATIONS,
            budgets: Budgets::of(config),
        }
    }

    /// These are the budgets from now on.
    pub fn set_budgets(&mut self, budgets: Budgets) {
        self.budgets = budgets;
    }

    /// What is known of one connection's source and destination, in a table of one pair and one line.
    pub fn excerpt(&self, key: &FlowKey) -> Self {
        let lines = self.pair(self.hash(key)).into_iter().chain([self.destination(key)]);
        let words: Vec<u64> = lines.flatten().map(Word::get).collect();
        Self { words: Words::of(words.into_iter()), pairs: 1, destinations: 1, ..*self }
    }

    /// Whether any destination passes connections of proved sources, from now on.
    pub fn turn(&mut self, on: bool) {
        self.is_on = on;
    }

    /// Whether any does.
    #[inline(always)]
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// A keyed hash of the client's address, which says nothing outside its VLAN.
    fn hash(&self, key: &FlowKey) -> u64 {
        let [a, b, c, d] = key.wan.map(u64::from);
        keyed::place(self.keys, [a << 32 | b, c << 32 | d, key.vlan.0.into()])
    }

    /// The lines that the source with this hash may have.
    fn pair(&self, hash: u64) -> [&Line; 2] {
        self.words.pair(hash as usize & (self.pairs - 1))
    }

    /// What a source is recognised by in its lines.
    fn name(hash: u64) -> u32 {
        ((hash >> 32) as u32).max(1)
    }

    /// The line of a source whose proof stands.
    fn find(&self, key: &FlowKey, now: Instant) -> Option<&Line> {
        let hash = self.hash(key);
        self.pair(hash).into_iter().find(|line| {
            let [name, proved] = halves(&line[0]);
            name == Self::name(hash) && second(now).wrapping_sub(proved) < self.budgets.lasting
        })
    }

    fn destination(&self, key: &FlowKey) -> &Line {
        let [a, b, c, d] = key.lan.map(u64::from);
        let port = word_of(key.vlan.0, key.lan_port.into());
        let hash = keyed::place(self.keys, [a << 32 | b, c << 32 | d, port]) as usize;
        self.words.line(2 * self.pairs + (hash & (self.destinations - 1)))
    }

    /// Whether the source of this connection has proved itself lately.
    #[inline(never)]
    pub fn is_proved(&self, key: &FlowKey, now: Instant) -> bool {
        self.find(key, now).is_some()
    }

    /// The source of this connection has proved itself. Returns whether that is news: its last proof was long ago, or is not known.
    pub fn note(&mut self, key: &FlowKey, now: Instant) -> bool {
        let (hash, present) = (self.hash(key), second(now));
        let pair = self.pair(hash);
        let age = |line: &Line| present.wrapping_sub(halves(&line[0])[1]);
        if let Some(own) = pair.into_iter().find(|line| halves(&line[0])[0] == Self::name(hash)) {
            let is_news = age(own) > self.budgets.lasting / TOLD_AFTER;
            own[0].set(word_of(Self::name(hash), present));
            return is_news;
        }
        let oldest = if age(pair[1]) > age(pair[0]) { pair[1] } else { pair[0] };
        oldest.iter().for_each(|word| word.set(0));
        oldest[0].set(word_of(Self::name(hash), present));
        true
    }

    /// Whether another SYN of this source may pass within this second; it is not charged yet.
    fn has_syns(&self, line: &Line, now: Instant) -> bool {
        let [last, passed] = halves(&line[SYNS]);
        self.budgets.syns > 0 && (last != second(now) || passed < self.budgets.syns)
    }

    fn charge_syn(line: &Line, now: Instant) {
        let [last, passed] = halves(&line[SYNS]);
        let passed = if last == second(now) { passed.saturating_add(1) } else { 1 };
        line[SYNS].set(word_of(second(now), passed));
    }

    /// Whether the SYN of a new connection with this keyed hash, of a proved source, may pass: it is charged to all budgets, or to none.
    pub fn admit(&mut self, key: &FlowKey, hash: u64, now: Instant) -> bool {
        let Some(line) = self.find(key, now).filter(|line| self.has_syns(line, now)) else { return false };
        let slice = slice(now);
        let is_free = |place: &Place| matches!(place.read(line), (began, tag) if tag == 0 || !counts(began, slice));
        let used = Place::all().filter(|place| !is_free(place)).count();
        let Some(place) = Place::all().find(is_free).filter(|_| used < self.budgets.half_open) else { return false };
        if !self.admit_at_destination(key, slice) {
            return false;
        }
        place.write(line, slice as u16, tag(hash));
        Self::charge_syn(line, now);
        true
    }

    /// Charges a half-open connection to its destination, if that may have another.
    fn admit_at_destination(&self, key: &FlowKey, slice: u32) -> bool {
        let line = self.destination(key);
        let recent = line.iter().map(halves).filter(|[n, _]| u64::from(slice.wrapping_sub(*n)) < SLICES);
        if recent.fold(0u32, |sum, [_, count]| sum.saturating_add(count)) >= self.budgets.half_open_all {
            return false;
        }
        let word = &line[slice as usize % LINE];
        let [n, count] = halves(word);
        word.set(word_of(slice, if n == slice { count.saturating_add(1) } else { 1 }));
        true
    }

    /// Whether another SYN of a connection that passed may pass: it is charged to its source's SYNs.
    pub fn admit_repeated(&mut self, key: &FlowKey, now: Instant) -> bool {
        let line = self.find(key, now).filter(|line| self.has_syns(line, now));
        line.inspect(|line| Self::charge_syn(line, now)).is_some()
    }

    /// The client of the connection with this keyed hash has acknowledged what its server chose: it gives its place back, and if it passed as a proved
    /// source's the proof is renewed. Returns whether that is news, as [`note`](Self::note) does; `None` if it did not, or was not passed so.
    pub fn completed(&mut self, key: &FlowKey, hash: u64, now: Instant) -> Option<bool> {
        let (line, slice) = (self.find(key, now)?, slice(now));
        let place = Place::all().find(|place| {
            let (began, other) = place.read(line);
            other == tag(hash) && counts(began, slice)
        })?;
        let (began, _) = place.read(line);
        place.write(line, 0, 0);
        let word = &self.destination(key)[usize::from(began) % LINE];
        let [n, count] = halves(word);
        if n as u16 == began {
            word.set(word_of(n, count.saturating_sub(1)));
        }
        Some(self.note(key, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::{random, shared};
    use crate::wire::Vlan;
    use core::time::Duration;

    const START: Instant = Instant::from_secs(100_000);

    fn config() -> Config {
        Config {
            proved_sources: 4096,
            proved_memory: Duration::from_secs(3600),
            proved_syns: 20,
            proved_half_open: 8,
            proved_half_open_all: 50,
            ..Config::default()
        }
    }

    fn sources(config: &Config) -> ProvedSources {
        ProvedSources::new(config, Words::zeroed(ProvedSources::words_needed(config)), (1, 2))
    }

    /// A connection of this client, and its keyed hash.
    fn connection(client: u32, n: u16) -> (FlowKey, u64) {
        let server = [0, 0, 0xffff, 0x0a00_0001];
        let key = FlowKey { wan: [0, 0, 0xffff, client], wan_port: n, lan: server, lan_port: 80, ..FlowKey::default() };
        (key, key.hash((3, 4)))
    }

    fn passed(sources: &mut ProvedSources, client: u32, ports: core::ops::Range<u16>, now: Instant) -> usize {
        let mut admit = |n| {
            let (key, hash) = connection(client, n);
            sources.admit(&key, hash, now)
        };
        ports.filter(|&n| admit(n)).count()
    }

    fn after(secs: u64) -> Instant {
        START + Duration::from_secs(secs)
    }

    #[test]
    fn a_proof_stands_for_its_source_alone_as_long_as_it_is_to() {
        let mut sources = sources(&config());
        let (key, _) = connection(7, 1);
        assert!(!sources.is_proved(&key, START));
        assert!(sources.note(&key, START));
        for (client, vlan, expected) in [(7, 0, true), (8, 0, false), (7, 1 << 24 | 9, false)] {
            let other = FlowKey { vlan: Vlan(vlan), ..connection(client, 99).0 };
            assert_eq!(sources.is_proved(&other, after(3590)), expected, "{client}, VLAN {vlan:x}");
        }
        // Seconds are of 2^20 µs.
        assert!(!sources.is_proved(&key, after(3600 + 3600 / 20)));
        assert!(sources.note(&key, after(8000)), "what has lapsed is news");
        assert!(!sources.note(&key, after(8100)) && sources.note(&key, after(9000)), "and so is what is old");
        assert!(sources.is_proved(&key, after(12_500)));
    }

    #[test]
    fn a_flood_in_a_proved_sources_name_gets_its_half_open_connections_and_no_more() {
        let mut sources = sources(&config());
        sources.note(&connection(7, 0).0, START);
        assert_eq!(passed(&mut sources, 7, 0..10_000, START), 8);
        assert_eq!(passed(&mut sources, 7, 0..10_000, after(69)), 0);
        assert_eq!(passed(&mut sources, 7, 0..10_000, after(85)), 8, "servers have given up the others");
    }

    #[test]
    fn who_completes_gives_its_place_back_and_renews_its_proof() {
        let mut sources = sources(&config());
        sources.note(&connection(7, 0).0, START);
        for n in 0..2000 {
            let (key, hash) = connection(7, n);
            let now = START + Duration::from_millis(u64::from(n) * 100);
            assert!(sources.admit(&key, hash, now), "{n}");
            // What was not passed gives nothing back.
            let (other, other_hash) = connection(7, n + 1);
            assert_eq!(sources.completed(&other, other_hash, now), None);
            assert!(sources.completed(&key, hash, now + Duration::from_millis(50)).is_some());
            assert_eq!(sources.completed(&key, hash, now), None, "nor does one connection twice");
        }
        assert!(sources.is_proved(&connection(7, 0).0, after(3600)));
        // Nobody renews a proof that has lapsed, and none that was never given.
        let (key, hash) = connection(8, 1);
        assert!(sources.completed(&key, hash, START).is_none() && !sources.is_proved(&key, START));
        let (key, hash) = connection(7, 9);
        assert!(sources.admit(&key, hash, after(3700)));
        assert!(sources.completed(&key, hash, after(9000)).is_none() && !sources.is_proved(&key, after(9000)));
    }

    #[test]
    fn no_more_syns_pass_in_a_second_than_may_whether_they_are_repeated_or_not() {
        let mut sources = sources(&config());
        let (key, hash) = connection(7, 1);
        sources.note(&key, START);
        for now in [START, after(2)] {
            assert!(sources.admit(&key, hash, now));
            assert_eq!((0..100).filter(|_| sources.admit_repeated(&key, now)).count(), 19);
            assert!(!sources.admit(&key, hash, now));
        }
    }

    #[test]
    fn all_sources_together_have_no_more_half_open_connections_at_one_destination() {
        let mut sources = sources(&config());
        let mut all = 0;
        for client in 0..100 {
            sources.note(&connection(client, 0).0, START);
            all += passed(&mut sources, client, 0..3, START);
        }
        assert_eq!(all, 50);
        let (mut key, hash) = connection(99, 9);
        assert!(!sources.admit(&key, hash, after(30)));
        key.lan_port = 81;
        assert!(sources.admit(&key, hash, after(30)), "another destination has places of its own");
        // One completes, and one may begin; the others last until servers give them up.
        let (done, done_hash) = connection(3, 1);
        sources.completed(&done, done_hash, after(30));
        assert_eq!(passed(&mut sources, 98, 10..20, after(30)), 1);
        assert_eq!((0..100).map(|n| passed(&mut sources, n, 20..21, after(75))).sum::<usize>(), 0);
        assert_eq!((0..100).map(|n| passed(&mut sources, n, 20..21, after(85))).sum::<usize>(), 49);
    }

    #[test]
    fn without_a_budget_nothing_passes() {
        for config in [
            Config { proved_syns: 0, ..config() },
            Config { proved_half_open: 0, ..config() },
            Config { proved_half_open_all: 0, ..config() },
            Config { proved_memory: Duration::ZERO, ..config() },
        ] {
            let mut sources = sources(&config);
            sources.note(&connection(7, 0).0, START);
            assert_eq!(passed(&mut sources, 7, 0..10, START), 0);
        }
    }

    #[test]
    fn the_older_proof_of_a_pair_gives_way() {
        let config = Config { proved_sources: 2, ..config() };
        let mut sources = sources(&config);
        let key = |client| connection(client, 0).0;
        sources.note(&key(1), START);
        sources.note(&key(2), after(2));
        sources.note(&key(1), after(4));
        sources.note(&key(3), after(6));
        assert_eq!([1, 2, 3].map(|client| sources.is_proved(&key(client), after(8))), [true, false, true]);
    }

    #[test]
    fn an_excerpt_decides_as_the_whole() {
        let mut sources = sources(&config());
        let mut random = random(5);
        for n in 0..3000u64 {
            let (client, now) = (random() as u32 % 30, START + Duration::from_millis(40 * n));
            let (key, hash) = connection(client, random() as u16 % 100);
            let mut excerpt = sources.excerpt(&key);
            assert_eq!(sources.is_proved(&key, now), excerpt.is_proved(&key, now));
            match random() % 4 {
                0 => assert_eq!(sources.note(&key, now), excerpt.note(&key, now)),
                1 => assert_eq!(sources.completed(&key, hash, now), excerpt.completed(&key, hash, now)),
                2 => assert_eq!(sources.admit_repeated(&key, now), excerpt.admit_repeated(&key, now)),
                _ => assert_eq!(sources.admit(&key, hash, now), excerpt.admit(&key, hash, now)),
            }
        }
    }

    #[test]
    fn whatever_the_memory_held_nothing_panics_and_the_budgets_hold() {
        let config = config();
        let mut random = random(3);
        let words = shared(ProvedSources::words_needed(&config), &mut random);
        let mut sources = ProvedSources::new(&config, words, (1, 2));
        for n in 0..2000u64 {
            let now = Instant::from_micros(random() >> (n % 60));
            let client = random() as u32;
            let _ = passed(&mut sources, client, 0..3, now);
            sources.note(&connection(client, 0).0, now);
            assert!(sources.is_proved(&connection(client, 0).0, now));
            assert!(passed(&mut sources, client, 0..100, now) <= 8);
            let (key, hash) = connection(client, 1);
            sources.completed(&key, hash, now);
        }
    }
}
