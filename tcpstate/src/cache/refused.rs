//! What clients met lately at ports of the LAN that did not let them in: a reset, an ICMP error, or silence. The next client gets the same from the
//! box, which would otherwise have answered for a server that is not there.
//!
//! Only the LAN's own answers, and its silence, are written here, each for the network of clients that met it: a host that bars one network must not
//! close its port to others. A refusal holds for everybody once [three unrelated networks](UNRELATED) of clients that had proved themselves met one.
//! What a client met that proved nothing is given to nobody: it only lets the next SYN of its network try the port, and those beside it wait.
//!
//! A port is tried again by its clients' own SYNs, as the box has no address to ask from: at most one a second of each network that has proved
//! itself there, and one a second of all others together, passes to the server unanswered. Where more SYNs come to a port closed to everybody than a
//! few a second, they are answered with a cookie as if nothing were remembered: an attacker who forges them spends the refusals, and not the way in of
//! honest clients.
//!
//! Set-associative, of fixed size, all entries of a port in one set; when a set is full the entry that counts least is evicted.
//!
//! Layout 2: 2048 sets of eight entries of eight words each. Words 0 and 1 of an entry are the server's address, its first 32 bits in the high half
//! of word 0. Word 2 is the VLAN tags in the high half, then 16 bits of port, then the time (in units of 2^20 µs, on a circle) until which a
//! client's proof stands for the entry. Word 3 is the time in µs at which it expires; an entry whose time is past is free, and one that would last
//! longer than any is kept is none. Word 4, from its low end: 8 bits each of what was met, of an ICMP error's type, code, hop limit and class, and of
//! how many refusals were given out since a SYN passed; then 16 bits of a hash of the wide network of the clients. Words 5 and 6 are the address of
//! an ICMP error's sender. Word 7 is the tick of the last try in the low half, and a hash of the clients' network in the high half.

use core::sync::atomic::AtomicU64;
use core::time::Duration;

use crate::flow::table::wheel::{Ticks, tick};
use crate::keyed::{self, Keys};
use crate::memory::{Word, Words};
use crate::policy::limit::Meter;
use crate::wire::{FlowKey, Unreachable};
use crate::{Config, Instant};

/// 16 384 entries in all, 1 MiB.
const SETS: usize = 2048;
const WAYS: usize = 8;
/// Words of an entry.
const ENTRY: usize = 8;
/// Words of a set.
const SET: usize = WAYS * ENTRY;

/// From how many unrelated networks of proved clients a port must have refused somebody to be closed to everybody. Networks are unrelated that differ
/// in the first 16 bits of their addresses, of IPv6 in the first 32.
pub const UNRELATED: usize = 3;
/// The time between two tries of a port, in ticks: one second.
const BETWEEN_TRIES: Ticks = 1_000_000 / 1024;
/// How many SYNs get the refusal that other networks met, from one SYN that passes to the next.
const GIVEN_MOST: u8 = 8;
/// How long a proof stands for what its client met, as long as the port goes on so: a health check that gets the port's own answers proves nothing.
const PROOF_STANDS: Duration = Duration::from_secs(60);
/// The same at most, however long an entry lasts: a quarter of the circle its time is on, nearly.
const LONGEST_PROOF: Duration = Duration::from_secs(16_000);
/// How long an entry lasts that only says when the port was tried.
const TRY_KEPT: Duration = Duration::from_secs(2);

/// What a client met at a port that did not let it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// A reset.
    Reset,
    /// An ICMP error that says that the port, the host or its network cannot be reached.
    Error(Unreachable),
    /// No answer at all.
    Silence,
}

/// What becomes of a SYN to a port of which something is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It passes to the server, unanswered, to show whether the port still does the same.
    Passes,
    /// Another of its network, which has proved nothing, is on its way to the server. A client that repeats its SYN is answered as if nothing were
    /// known.
    Waits,
    /// Its client gets what another of its network met.
    Gets(Met),
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Says {
    /// When the port was tried, and nothing else.
    #[default]
    Tried,
    /// A client has asked for the port and gone away without a proof.
    Asked,
    Met(Met),
}

/// An entry, as it is read from its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Entry {
    /// The words that name the port: address, VLAN tags and port, the last with its low 16 bits zero.
    name: [u64; 3],
    /// The network of clients, and the wide one it is in, by keyed hashes.
    network: u32,
    wide: u16,
    says: Says,
    /// Until when a proof stands for it, in [units](unit).
    proved: u16,
    /// Refusals given out since a SYN passed.
    given: u8,
    tried: Ticks,
    /// When it expires, in µs; long past in a free place.
    until: u64,
}

/// Time in units of 2^20 µs, on a circle; zero says that there is none.
fn unit(now: Instant) -> u16 {
    ((now.as_micros() >> 20) as u16).max(1)
}

impl Entry {
    fn read(words: &[AtomicU64; ENTRY]) -> Self {
        let [high, low, port, until, met, from_high, from_low, clients] = words.each_ref().map(Word::get);
        let [what, kind, code, ttl, class, given, wide_low, wide_high] = met.to_le_bytes();
        let halves = |word: u64| [(word >> 32) as u32, word as u32];
        let ([a, b], [c, d]) = (halves(from_high), halves(from_low));
        let says = match what {
            1 => Says::Asked,
            2 => Says::Met(Met::Reset),
            3 => Says::Met(Met::Error(Unreachable { kind, code, ttl, class, from: [a, b, c, d] })),
            4 => Says::Met(Met::Silence),
            _ => Says::Tried,
        };
        let [network, tried] = halves(clients);
        let wide = u16::from_le_bytes([wide_low, wide_high]);
        Self { name: [high, low, port & !0xffff], network, wide, says, proved: port as u16, given, tried, until }
    }

    fn write(self, words: &[AtomicU64; ENTRY]) {
        let [high, low, port] = self.name;
        let (what, error) = match self.says {
            Says::Tried => (0, None),
            Says::Asked => (1, None),
            Says::Met(Met::Reset) => (2, None),
            Says::Met(Met::Error(error)) => (3, Some(error)),
            Says::Met(Met::Silence) => (4, None),
        };
        let Unreachable { kind, code, ttl, class, from: [a, b, c, d] } = error.unwrap_or_default();
        let [wide_low, wide_high] = self.wide.to_le_bytes();
        let met = u64::from_le_bytes([what, kind, code, ttl, class, self.given, wide_low, wide_high]);
        let word = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        // It is valid only as a whole: until its time is written it is free.
        words[3].set(0);
        let values =
            [high, low, port | u64::from(self.proved), 0, met, word(a, b), word(c, d), word(self.network, self.tried)];
        for (at, value) in values.into_iter().enumerate().filter(|(at, _)| *at != 3) {
            words[at].set(value);
        }
        words[3].set(self.until);
    }

    /// Whether a client that had proved itself stands for it.
    fn is_proved(&self, now: Instant) -> bool {
        self.proved != 0 && (self.proved.wrapping_sub(unit(now)) as i16) > 0
    }

    /// Whether it is a refusal, by a reset or an ICMP error.
    fn refuses(&self) -> bool {
        matches!(self.says, Says::Met(Met::Reset | Met::Error(_)))
    }

    /// Whether the last try was so long ago that the next may come.
    fn may_try(&self, now: Instant) -> bool {
        tick(now).wrapping_sub(self.tried) >= BETWEEN_TRIES
    }

    /// How much it counts: the less, the sooner it is evicted.
    fn weight(&self, now: Instant) -> (bool, bool, u64) {
        (self.is_proved(now), self.says != Says::Tried, self.until)
    }
}

/// The words that name the port a key's LAN endpoint is at.
fn name(key: &FlowKey) -> [u64; 3] {
    let [a, b, c, d] = key.lan.map(u64::from);
    [a << 32 | b, c << 32 | d, u64::from(key.vlan.0) << 32 | u64::from(key.lan_port) << 16]
}

/// See the module.
pub struct RefusedPorts {
    words: Words,
    /// The number of sets, a power of two, less one.
    mask: usize,
    keys: Keys,
    /// The longest time an entry was ever to last.
    longest: Duration,
    /// When the last entry expires that matters to a SYN: from then on no lookup is needed.
    until: Instant,
}

impl RefusedPorts {
    /// The version of the layout.
    pub const LAYOUT: u64 = 2;

    /// The words of the table, whatever the configuration.
    pub fn words_needed(_: &Config) -> usize {
        SETS * SET
    }

    /// A table in these words, whose entries last for `longest` at most.
    ///
    /// # Panics
    /// If there are too few words.
    pub fn new(words: Words, longest: Duration, keys: Keys, now: Instant) -> Self {
        assert!(words.len() >= SETS * SET, "the table of refused ports needs more words");
        let longest = longest.max(TRY_KEPT);
        let mut table = Self { words, mask: SETS - 1, keys, longest, until: Instant::default() };
        if table.words.is_shared() {
            let lasting = (0..SETS * WAYS).map(|n| Entry::read(table.words.piece(n)).until);
            let last = lasting.filter(|&until| table.lasts(until, now)).max();
            table.until = Instant::from_micros(last.unwrap_or(0));
        }
        table
    }

    /// What is remembered of one port, in a memory of one set.
    pub fn excerpt(&self, key: &FlowKey) -> Self {
        let copy = Self { words: Words::zeroed(SET), mask: 0, ..*self };
        let (place, name) = (self.place(key), name(key));
        for way in 0..WAYS {
            let entry = Entry::read(self.words_of(place, way));
            if entry.name == name {
                entry.write(copy.words_of(0, way));
            }
        }
        copy
    }

    fn words_of(&self, set: usize, way: usize) -> &[AtomicU64; ENTRY] {
        self.words.piece(set * WAYS + way)
    }

    /// From now on an entry may last this long.
    pub fn may_last(&mut self, longest: Duration) {
        self.longest = self.longest.max(longest);
    }

    /// Whether an entry that expires then is one, and has not expired.
    fn lasts(&self, until: u64, now: Instant) -> bool {
        let left = Duration::from_micros(until.saturating_sub(now.as_micros()));
        !left.is_zero() && left <= self.longest
    }

    /// Whether there may be an entry that matters to a SYN, for any port.
    #[inline(always)]
    pub fn any_refused(&self, now: Instant) -> bool {
        now < self.until
    }

    /// Whether anything is remembered of this port that may matter to a SYN.
    #[inline(always)]
    pub fn is_remembered(&self, key: &FlowKey, now: Instant) -> bool {
        self.any_refused(now) && self.has_entry(key, now)
    }

    #[inline(never)]
    fn has_entry(&self, key: &FlowKey, now: Instant) -> bool {
        self.of_port(key, now).any(|(_, entry)| entry.says != Says::Tried)
    }

    /// The entries of a port that have not expired, and where they are.
    fn of_port(&self, key: &FlowKey, now: Instant) -> impl Iterator<Item = (usize, Entry)> {
        let (place, name) = (self.place(key), name(key));
        (0..WAYS)
            .map(move |way| (place * WAYS + way, Entry::read(self.words_of(place, way))))
            .filter(move |(_, entry)| entry.name == name && self.lasts(entry.until, now))
    }

    /// The entry of a port for one network of clients.
    fn own(&self, key: &FlowKey, network: u32, now: Instant) -> Option<(usize, Entry)> {
        self.of_port(key, now).find(|(_, entry)| entry.network == network)
    }

    fn write(&self, at: usize, entry: Entry) {
        entry.write(self.words.piece(at));
    }

    /// The entry of a port for one network of clients, or a new one in place of that which counts least. None if only clients that have proved
    /// themselves may evict what is there.
    fn own_or_new(&self, key: &FlowKey, network: u32, is_proved: bool, now: Instant) -> Option<(usize, Entry)> {
        if let Some(own) = self.own(key, network, now) {
            return Some(own);
        }
        let place = self.place(key);
        let weight = |way: &usize| {
            let entry = Entry::read(self.words_of(place, *way));
            self.lasts(entry.until, now).then(|| entry.weight(now))
        };
        let least = (0..WAYS).min_by_key(weight)?;
        let evicts_proved = weight(&least).is_some_and(|(is_proved, ..)| is_proved);
        let tried = tick(now).wrapping_sub(BETWEEN_TRIES);
        let entry = Entry { name: name(key), network, wide: self.wide(key), tried, ..Entry::default() };
        (is_proved || !evicts_proved).then_some((place * WAYS + least, entry))
    }

    /// What becomes of a SYN of a client in `network` to this port, if anything is remembered that matters to it. `is_lively` says whether the port
    /// has let anybody in within the last minute: then its silence is no dead server's, and only a refusal that a proof stands for counts, for its own
    /// network. `may_pass`, whether this SYN may be one that tries the port again; `retries` limits those of all ports together. If it passes to a port
    /// that was silent, or of which nothing else is known, that is remembered for `memory` again.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "what the rule is made of")]
    pub fn fate(
        &mut self,
        key: &FlowKey,
        network: u32,
        is_lively: impl FnOnce() -> bool,
        may_pass: bool,
        retries: &mut Meter,
        memory: Duration,
        now: Instant,
    ) -> Option<Fate> {
        if !self.any_refused(now) {
            return None;
        }
        self.fate_remembered(key, network, is_lively, may_pass, retries, memory, now)
    }

    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "as above")]
    fn fate_remembered(
        &mut self,
        key: &FlowKey,
        network: u32,
        is_lively: impl FnOnce() -> bool,
        may_pass: bool,
        retries: &mut Meter,
        memory: Duration,
        now: Instant,
    ) -> Option<Fate> {
        let own = self.own(key, network, now).filter(|(_, entry)| entry.says != Says::Tried);
        let (at, entry) = own.or_else(|| self.everybodys(key, now))?;
        let is_alone = own.is_some() && entry.is_proved(now);
        let is_lively = is_lively();
        if is_lively && !is_alone {
            return None;
        }
        if may_pass && self.may_pass(key, is_alone.then_some(&entry), now) && retries.take(now) {
            // Nobody but the server could say that the port is silent no longer.
            let goes_on = matches!(entry.says, Says::Met(Met::Silence) | Says::Asked).then_some(own).flatten();
            if self.note_try(key, network, is_alone, now) {
                self.of_port(key, now).for_each(|(at, entry)| self.write(at, Entry { given: 0, ..entry }));
                if goes_on.is_some()
                    && let Some((at, entry)) = self.own(key, network, now)
                {
                    self.keep(at, entry, memory, now);
                }
                return Some(Fate::Passes);
            }
        }
        let met = match entry.says {
            Says::Met(Met::Silence) if is_lively => return None,
            Says::Met(met) if is_alone => met,
            Says::Met(met) if own.is_none() && entry.given < GIVEN_MOST => {
                self.write(at, Entry { given: entry.given + 1, ..entry });
                met
            }
            _ if may_pass && own.is_some() && !self.may_pass(key, None, now) => return Some(Fate::Waits),
            _ => return None,
        };
        Some(Fate::Gets(met))
    }

    /// Whether a port may be tried: as its network's own entry says if a proof stands for that, else as all those without one say.
    fn may_pass(&self, key: &FlowKey, proved: Option<&Entry>, now: Instant) -> bool {
        match proved {
            Some(entry) => entry.may_try(now),
            None => self.of_port(key, now).all(|(_, other)| other.is_proved(now) || other.may_try(now)),
        }
    }

    /// The refusal that holds for everybody, if the port has refused proved clients of enough unrelated networks: the one that lasts longest.
    fn everybodys(&self, key: &FlowKey, now: Instant) -> Option<(usize, Entry)> {
        let (mut wide, mut unrelated) = ([0; UNRELATED], 0);
        let mut last: Option<(usize, Entry)> = None;
        for (at, entry) in self.of_port(key, now).filter(|(_, entry)| entry.refuses() && entry.is_proved(now)) {
            if unrelated < UNRELATED && !wide[..unrelated].contains(&entry.wide) {
                wide[unrelated] = entry.wide;
                unrelated += 1;
            }
            if last.is_none_or(|(_, last)| last.until < entry.until) {
                last = Some((at, entry));
            }
        }
        last.filter(|_| unrelated == UNRELATED)
    }

    /// Whether a client of `network` that has proved itself is refused at once, because its network met a refusal there within the last second. From then
    /// on it may try again, which is noted, if `retries` allows.
    #[inline]
    pub fn refuses_proved(&mut self, key: &FlowKey, network: u32, retries: &mut Meter, now: Instant) -> bool {
        if !self.any_refused(now) {
            return false;
        }
        let own = self.own(key, network, now).filter(|(_, entry)| entry.refuses() && entry.is_proved(now));
        let Some((at, entry)) = own else { return false };
        if !entry.may_try(now) || !retries.take(now) {
            return true;
        }
        self.write(at, Entry { tried: tick(now), ..entry });
        false
    }

    /// Notes that a port is tried for a client of `network` that has proved itself. Returns false, and notes nothing, if it was for another within the
    /// last second.
    pub fn begin_try(&mut self, key: &FlowKey, network: u32, now: Instant) -> bool {
        let may_try = |(_, entry): (usize, Entry)| !entry.is_proved(now) || entry.may_try(now);
        self.own(key, network, now).is_none_or(may_try) && self.note_try(key, network, true, now)
    }

    /// Notes that a port was tried just now for a client of `network`; returns false if there is no room.
    pub fn note_try(&mut self, key: &FlowKey, network: u32, is_proved: bool, now: Instant) -> bool {
        let Some((at, entry)) = self.own_or_new(key, network, is_proved, now) else { return false };
        let until = entry.until.max((now + TRY_KEPT).as_micros());
        // The answer will say for how much longer.
        let proved = if is_proved && !entry.is_proved(now) { unit(now + TRY_KEPT) } else { entry.proved };
        self.write(at, Entry { tried: tick(now), until, proved, ..entry });
        true
    }

    /// A client of `network` has asked for the port and reset without a proof: the next may try it, for `memory`.
    pub fn asked(&mut self, key: &FlowKey, network: u32, memory: Duration, now: Instant) {
        let Some((at, entry)) = self.own_or_new(key, network, false, now) else { return };
        if entry.says == Says::Tried && !memory.is_zero() {
            self.keep(at, Entry { says: Says::Asked, proved: 0, ..entry }, memory, now);
        }
    }

    /// A client of `network` did not get in at this port, which is remembered for `memory`; if that is zero, not at all. `is_proved` says whether the
    /// client had proved itself.
    pub fn met(&mut self, key: &FlowKey, network: u32, met: Met, is_proved: bool, memory: Duration, now: Instant) {
        if memory.is_zero() {
            return;
        }
        let Some((at, entry)) = self.own_or_new(key, network, is_proved, now) else { return };
        let is_new = entry.says == Says::Tried;
        let proved = match (is_proved, is_new) {
            // Its unit is coarser than that of the time at which the entry expires.
            (true, _) => unit(now + memory.clamp(PROOF_STANDS, LONGEST_PROOF)).saturating_add(1),
            (false, true) => 0,
            (false, false) => entry.proved,
        };
        // The client's own SYN was the try.
        let tried = if met == Met::Silence { entry.tried } else { tick(now) };
        self.keep(at, Entry { says: Says::Met(met), proved, tried, ..entry }, memory, now);
    }

    /// Writes an entry that lasts so long.
    fn keep(&mut self, at: usize, entry: Entry, memory: Duration, now: Instant) {
        self.may_last(memory);
        let until = now + memory;
        self.until = self.until.max(until);
        self.write(at, Entry { until: until.as_micros(), ..entry });
    }

    /// The port on the LAN has answered a SYN after all. Returns whether anything was remembered of it that mattered to a SYN.
    pub fn opened(&mut self, key: &FlowKey, now: Instant) -> bool {
        if !self.any_refused(now) {
            return false;
        }
        let mut was_closed = false;
        for (at, entry) in self.of_port(key, now) {
            was_closed |= entry.says != Says::Tried;
            self.write(at, Entry { says: Says::Tried, proved: 0, given: 0, ..entry });
        }
        was_closed
    }

    /// The wide network of the client of a connection, by a keyed hash.
    fn wide(&self, key: &FlowKey) -> u16 {
        let [a, _, _, d] = key.wan;
        keyed::place(self.keys, [u64::from(key.v6), u64::from(if key.v6 { a } else { d >> 16 })]) as u16
    }

    /// The set of a port. Who scans chooses what is written, so the hash has a secret.
    fn place(&self, key: &FlowKey) -> usize {
        let [a, b, c, d] = key.lan.map(u64::from);
        let words = [a << 32 | b, c << 32 | d, u64::from(key.vlan.0) << 16 | u64::from(key.lan_port)];
        keyed::place(self.keys, words) as usize & self.mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use crate::wire::Vlan;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const MEMORY: Duration = Duration::from_secs(10);
    const START: Instant = Instant::from_secs(100);

    fn port(port: u16) -> FlowKey {
        FlowKey { lan: [0, 0, 0xffff, 0xc000_0201], lan_port: port, wan_port: 40000, ..FlowKey::default() }
    }

    /// A connection to that port from the `n`th of unrelated networks, and the network.
    fn from(n: u32, at: u16) -> (FlowKey, u32) {
        (FlowKey { wan: [0, 0, 0xffff, n << 16 | 7], ..port(at) }, n)
    }

    fn after(millis: u64) -> Instant {
        START + Duration::from_millis(millis)
    }

    struct Ports {
        table: RefusedPorts,
        retries: Meter,
    }

    impl Ports {
        fn new() -> Self {
            let words = Words::zeroed(RefusedPorts::words_needed(&Config::default()));
            let table = RefusedPorts::new(words, MEMORY, (1, 2), Instant::default());
            Self { table, retries: Meter::new(1000) }
        }

        fn met(&mut self, (key, network): (FlowKey, u32), met: Met, is_proved: bool, now: Instant) {
            self.table.met(&key, network, met, is_proved, MEMORY, now);
        }

        fn refused(&mut self, from: (FlowKey, u32), now: Instant) {
            self.met(from, Met::Reset, true, now);
        }

        /// The fate of a SYN, to a port that has let nobody in for a minute.
        fn fate(&mut self, (key, network): (FlowKey, u32), now: Instant) -> Option<Fate> {
            self.table.fate(&key, network, || false, true, &mut self.retries, MEMORY, now)
        }

        fn fate_at_lively(&mut self, (key, network): (FlowKey, u32), now: Instant) -> Option<Fate> {
            self.table.fate(&key, network, || true, true, &mut self.retries, MEMORY, now)
        }

        /// What is remembered, without a try.
        fn gets(&mut self, (key, network): (FlowKey, u32), now: Instant) -> Option<Fate> {
            self.table.fate(&key, network, || false, false, &mut self.retries, MEMORY, now)
        }
    }

    const RESET: Option<Fate> = Some(Fate::Gets(Met::Reset));
    const PASSES: Option<Fate> = Some(Fate::Passes);
    const WAITS: Option<Fate> = Some(Fate::Waits);

    #[test]
    fn whatever_another_process_left_nothing_panics_and_what_is_refused_is_refused() {
        let mut random = memory::tests::random(3);
        let words = memory::tests::shared(RefusedPorts::words_needed(&Config::default()), &mut random);
        // Some entries are of ports that are asked for, and expire at times near the present ones.
        for n in 0..8000 {
            let entry: &[AtomicU64; ENTRY] = words.piece(n);
            let name = name(&port(n as u16));
            let until = random() % 40_000_000;
            for (at, value) in [name[0], name[1], name[2] | random() & 0xffff, until].into_iter().enumerate() {
                entry[at].set(value);
            }
        }
        let table = RefusedPorts::new(words, MEMORY, (1, 2), Instant::default());
        let mut ports = Ports { table, retries: Meter::new(1000) };
        for n in 0..50_000 {
            let now = Instant::from_micros(n * 400);
            let of = from(random() as u32 % 4, random() as u16);
            ports.fate(of, now);
            match random() % 4 {
                0 => drop(ports.table.opened(&of.0, now)),
                1 => {
                    ports.refused(of, now);
                    assert_eq!(ports.fate(of, now), RESET);
                }
                2 => drop(ports.table.begin_try(&of.0, of.1, now)),
                _ => drop(ports.table.excerpt(&of.0)),
            }
        }
        assert!(!ports.table.any_refused(Instant::from_secs(60)));
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let words = Words::zeroed(ENTRY);
        let error = Unreachable { kind: 3, code: 13, ttl: 61, class: 0xc0, from: [1, 2, 3, u32::MAX] };
        for says in
            [Says::Tried, Says::Asked, Says::Met(Met::Reset), Says::Met(Met::Silence), Says::Met(Met::Error(error))]
        {
            let entry = Entry {
                name: [u64::MAX, 7, 0x1234_5678_9abc_0000],
                network: 0xfeed_beef,
                wide: 0x1357,
                says,
                proved: 0xfffe,
                given: 9,
                tried: 0xdead_4321,
                until: u64::MAX - 3,
            };
            entry.write(words.piece(0));
            assert_eq!(Entry::read(words.piece(0)), entry);
        }
    }

    #[test]
    fn a_refusal_holds_for_its_network_until_it_is_forgotten() {
        let mut ports = Ports::new();
        ports.refused(from(1, 81), START);
        assert_eq!(ports.gets(from(1, 81), START), RESET);
        assert_eq!(ports.gets(from(1, 81), after(9999)), RESET);
        assert_eq!(ports.gets(from(1, 81), after(10_000)), None);
        assert_eq!(ports.gets(from(2, 81), START), None, "others have met nothing");
    }

    #[test]
    fn what_three_unrelated_networks_of_proved_clients_met_holds_for_everybody() {
        let mut ports = Ports::new();
        for n in 1..=3 {
            assert_eq!(ports.gets(from(9, 81), START), None);
            // Several networks of one wide one count once, and who proved nothing does not count.
            for low in 0..2 {
                let (key, _) = from(n, 81);
                ports.met((key, 1000 * n + low), Met::Reset, true, START);
            }
            let (key, _) = from(20 + n, 81);
            ports.met((key, 5000 + n), Met::Reset, false, START);
        }
        assert_eq!(ports.gets(from(9, 81), START), RESET);
        assert_eq!(
            ports.fate_at_lively(from(9, 81), START),
            None,
            "a port that lets others in is closed to nobody else"
        );
        assert_eq!(ports.gets(from(9, 82), START), None);
        assert!(ports.table.opened(&port(81), START));
        assert_eq!((ports.gets(from(9, 81), START), ports.gets((from(1, 81).0, 1000), START)), (None, None));
    }

    #[test]
    fn a_port_is_tried_once_a_second_for_each_proved_network_and_for_all_others_together() {
        let mut ports = Ports::new();
        for n in 1..=3 {
            ports.refused(from(n, 81), START);
        }
        // Each was a try.
        assert_eq!(ports.fate(from(1, 81), after(900)), RESET);
        // One that has met nothing itself tries for all like it.
        assert_eq!(ports.fate(from(9, 81), after(900)), PASSES);
        assert_eq!(ports.fate(from(8, 81), after(900)), RESET);
        for n in 1..=3 {
            assert_eq!(ports.fate(from(n, 81), after(1000)), PASSES, "its network's own second is over");
            assert_eq!(ports.fate(from(n, 81), after(1000)), RESET);
        }
        assert_eq!(ports.fate(from(8, 81), after(1800)), RESET);
        assert_eq!(ports.fate(from(8, 81), after(1901)), PASSES);
    }

    #[test]
    fn where_more_come_than_a_few_a_second_those_that_met_nothing_are_answered_as_if_nothing_were_known() {
        let mut ports = Ports::new();
        for n in 1..=3 {
            ports.refused(from(n, 81), START);
        }
        let fates: Vec<_> = (0..20).map(|n| ports.fate(from(100 + n, 81), START)).collect();
        assert_eq!((fates[0], &fates[1..9], &fates[9..]), (PASSES, &[RESET; 8][..], &[None; 11][..]));
        assert_eq!(ports.fate(from(1, 81), START), RESET, "one that was refused itself is refused");
        assert_eq!(ports.fate(from(200, 81), after(1001)), PASSES);
        assert_eq!(ports.fate(from(201, 81), after(1001)), RESET);
    }

    #[test]
    fn without_a_token_no_port_is_tried() {
        let mut ports = Ports { retries: Meter::new(0), ..Ports::new() };
        ports.refused(from(1, 81), START);
        assert_eq!(ports.fate(from(1, 81), after(5000)), RESET);
    }

    #[test]
    fn what_an_unproved_client_met_stands_in_nobodys_way() {
        let mut ports = Ports::new();
        ports.met(from(1, 81), Met::Reset, false, START);
        assert_eq!(ports.fate(from(1, 81), START), WAITS);
        assert_eq!(ports.gets(from(1, 81), START), None);
        assert_eq!(ports.fate(from(2, 81), START), None);
        assert_eq!(ports.fate_at_lively(from(1, 81), after(1001)), None);
        assert_eq!(ports.fate(from(1, 81), after(1001)), PASSES);
        assert_eq!(ports.fate(from(1, 81), after(1002)), WAITS);
        assert!(!ports.table.refuses_proved(&port(81), 1, &mut Meter::new(1000), START));
        // It lengthens what was met before, but not the time for which a proof stands.
        let mut ports = Ports::new();
        ports.refused(from(1, 81), START);
        for secs in (9..60).step_by(9) {
            ports.met(from(1, 81), Met::Reset, false, after(1000 * secs));
        }
        assert_eq!(ports.gets(from(1, 81), after(59_000)), RESET);
        assert_eq!(ports.gets(from(1, 81), after(63_000)), None);
        assert_eq!(ports.fate(from(1, 81), after(63_000)), PASSES);
    }

    #[test]
    fn a_proved_client_is_refused_for_a_second_and_then_tries_again() {
        let mut ports = Ports::new();
        let refuses = |ports: &mut Ports, now| ports.table.refuses_proved(&port(81), 1, &mut ports.retries, now);
        assert!(!refuses(&mut ports, START));
        ports.refused(from(1, 81), START);
        assert!(refuses(&mut ports, START) && refuses(&mut ports, after(998)));
        assert!(!refuses(&mut ports, after(1000)));
        assert!(refuses(&mut ports, after(1001)));
        ports.met(from(2, 81), Met::Silence, true, START);
        assert!(!ports.table.refuses_proved(&port(81), 2, &mut ports.retries, START), "a silent one is asked");
    }

    #[test]
    fn silence_is_given_to_its_network_unless_the_port_lets_somebody_in_and_lasts_while_it_is_tried() {
        let mut ports = Ports::new();
        ports.met(from(1, 81), Met::Silence, true, START);
        assert_eq!(ports.fate(from(1, 81), START), PASSES, "nothing says that it was tried with a SYN just now");
        assert_eq!(ports.fate(from(1, 81), START), Some(Fate::Gets(Met::Silence)));
        assert_eq!(ports.fate_at_lively(from(1, 81), after(500)), None);
        assert_eq!(ports.fate_at_lively(from(1, 81), after(1100)), PASSES, "it is seen again all the same");
        for secs in (3..40).step_by(2) {
            assert_eq!(ports.fate(from(1, 81), after(1000 * secs)), PASSES);
        }
        assert_eq!(ports.gets(from(1, 81), after(48_000)), Some(Fate::Gets(Met::Silence)));
        assert_eq!(ports.gets(from(1, 81), after(49_500)), None);
        for n in 2..=4 {
            ports.met(from(n, 82), Met::Silence, true, START);
        }
        assert_eq!(ports.gets(from(9, 82), START), None, "silence holds for those alone that met it");
    }

    #[test]
    fn after_a_reset_without_a_proof_the_next_syn_passes() {
        let mut ports = Ports::new();
        let (key, network) = from(1, 81);
        ports.table.asked(&key, network, MEMORY, START);
        assert_eq!(ports.gets(from(1, 81), START), None);
        assert_eq!(ports.fate_at_lively(from(1, 81), START), None);
        assert_eq!(ports.fate(from(1, 81), START), PASSES);
        assert_eq!(ports.fate(from(1, 81), after(500)), WAITS);
        for secs in (2..40).step_by(9) {
            assert_eq!(ports.fate(from(1, 81), after(1000 * secs)), PASSES, "as long as nobody answers");
        }
        let mut ports = Ports::new();
        ports.table.asked(&key, network, MEMORY, START);
        assert_eq!(ports.fate(from(1, 81), START), PASSES);
        // What is known is not overwritten.
        ports.refused(from(1, 81), after(500));
        ports.table.asked(&key, network, MEMORY, after(600));
        assert_eq!(ports.gets(from(1, 81), after(600)), RESET);
    }

    #[test]
    fn a_network_tries_a_port_once_a_second() {
        let mut ports = Ports::new();
        let (key, network) = from(1, 81);
        assert!(ports.table.begin_try(&key, network, START));
        assert!(!ports.table.any_refused(START), "that alone matters to no SYN");
        assert!(!ports.table.begin_try(&key, network, after(900)));
        assert!(ports.table.begin_try(&key, 2, after(900)));
        assert!(ports.table.begin_try(&key, network, after(1001)));
        // What no proof stands for does not keep a client that proves itself from asking, once.
        ports.met(from(1, 82), Met::Reset, false, START);
        let (key, network) = from(1, 82);
        assert!(ports.table.begin_try(&key, network, after(10)) && !ports.table.begin_try(&key, network, after(20)));
    }

    #[test]
    fn its_neighbours_stay_open() {
        let mut ports = Ports::new();
        ports.refused((port(81), 1), START);
        // Those that differ in one thing alone and yet lie in the same set.
        let mut neighbours = [
            &mut (82..).map(port) as &mut dyn Iterator<Item = FlowKey>,
            &mut (0..).map(|n| FlowKey { vlan: Vlan(1 << 24 | n), ..port(81) }),
            &mut (0..).map(|n| FlowKey { lan: [0, 0, 0xffff, 0xc001_0000 + n], ..port(81) }),
            &mut (1..).map(|n| FlowKey { lan: [n, 0, 0xffff, 0xc000_0201], v6: true, ..port(81) }),
        ];
        for neighbours in &mut neighbours {
            let neighbour =
                neighbours.find(|key| ports.table.place(key) == ports.table.place(&port(81))).expect("a neighbour");
            assert_eq!(ports.gets((neighbour, 1), START), None, "{neighbour:?}");
        }
        assert_eq!(ports.gets((port(81), 1), START), RESET);
    }

    #[test]
    fn without_memory_no_port_is_refused() {
        let mut ports = Ports::new();
        ports.table.met(&port(81), 1, Met::Reset, true, Duration::ZERO, START);
        ports.table.asked(&port(81), 1, Duration::ZERO, START);
        assert_eq!(ports.fate((port(81), 1), START), None);
    }

    #[test]
    fn what_no_proof_stands_for_displaces_nothing_that_one_does() {
        let mut ports = Ports::new();
        for n in 1..=WAYS as u32 {
            ports.refused(from(n, 81), after(u64::from(n)));
        }
        for n in 100..200 {
            let (key, network) = from(n, 81);
            ports.met((key, network), Met::Reset, false, after(20));
            ports.table.asked(&key, network, MEMORY, after(20));
            assert!(!ports.table.note_try(&key, network, false, after(20)));
        }
        let refused: Vec<_> = (1..=WAYS as u32).map(|n| ports.gets(from(n, 81), after(20))).collect();
        assert_eq!(refused, [RESET; WAYS]);
        // What a proof stands for displaces what ends first.
        ports.refused(from(50, 81), after(20));
        assert_eq!(ports.own(1), None);
        assert!(ports.own(2).is_some() && ports.own(50).is_some());
    }

    impl Ports {
        fn own(&self, n: u32) -> Option<Entry> {
            let (key, network) = from(n, 81);
            Some(self.table.own(&key, network, after(20))?.1)
        }
    }

    #[test]
    fn a_scan_of_all_ports_is_remembered_in_the_room_there_is() {
        let mut ports = Ports::new();
        for n in 1..=u16::MAX {
            ports.refused((port(n), 1), START);
            assert_eq!(ports.gets((port(n), 1), START), RESET);
        }
        let remembered = (1..=u16::MAX).filter(|&n| ports.gets((port(n), 1), START) == RESET).count();
        assert!((16_000..=16_384).contains(&remembered), "{remembered}");
    }

    #[derive(Clone, Debug)]
    enum Act {
        Refuse,
        Open,
        Ask,
    }

    proptest! {
        #[test]
        fn refused_ports_are_a_map_that_forgets(
            acts in prop::collection::vec(
                (0u64..4_000_000, 0u16..20, prop_oneof![Just(Act::Refuse), Just(Act::Open), Just(Act::Ask)]), 0..300),
        ) {
            let (mut ports, mut model, mut now) = (Ports::new(), HashMap::new(), START);
            for (step, n, act) in acts {
                now = now + Duration::from_micros(step);
                match act {
                    Act::Refuse => {
                        ports.refused((port(n), 1), now);
                        model.insert(n, now);
                    }
                    Act::Open => {
                        ports.table.opened(&port(n), now);
                        model.remove(&n);
                    }
                    Act::Ask => {
                        // A proof stands for it in coarser units than it lasts in.
                        let is_refused = model.get(&n).is_some_and(|&at| now.since(at) < MEMORY);
                        prop_assert_eq!(ports.gets((port(n), 1), now) == RESET, is_refused);
                    }
                }
            }
        }
    }
}
