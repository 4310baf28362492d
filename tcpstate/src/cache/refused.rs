//! Ports of the LAN that recently refused a connection: SYNs to them get a RST immediately, where the box would otherwise have answered for a
//! server that is not there. Only the LAN's own answers are written here.
//!
//! A port that is open to some clients and refuses others (a host that rejects an address with a reset) is remembered as closed to
//! those alone: a rejected client must not close the port to everybody.
//!
//! Set-associative, of fixed size; when a set is full the refusal that expires first is evicted.
//!
//! Layout 1: 4096 sets of four entries of four words each. Words 0 and 1 of an entry are the server's address, its first 32 bits in the high half
//! of word 0. Word 2 is the VLAN tags in the high half, then 16 bits of port, then 16 bits that name the network of clients the port is closed
//! to, zero for everybody. Word 3 is the time in µs at which the entry expires; an entry whose time is past is free, and one that would last longer
//! than any refusal is remembered is none.

use core::sync::atomic::AtomicU64;
use core::time::Duration;

use crate::keyed::{self, Keys};
use crate::memory::{Word, Words};
use crate::wire::FlowKey;
use crate::{Config, Instant};

/// 16 384 ports in all, 512 KiB.
const SETS: usize = 4096;
const WAYS: usize = 4;
/// Words of an entry.
const ENTRY: usize = 4;
/// Words of a set.
const SET: usize = WAYS * ENTRY;

/// A network of clients, by a keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Client(u16);

impl Client {
    /// All of them.
    pub const EVERYBODY: Client = Client(0);

    /// The network with this keyed hash.
    pub fn of(hash: u32) -> Self {
        Self((hash as u16).max(1))
    }
}

/// An entry, as it is read from its words.
#[derive(Clone, Copy, Default)]
struct RefusedPort {
    /// The words that name the port: address, VLAN tags and port, the last with its low 16 bits zero.
    name: [u64; 3],
    /// To whom it is closed.
    client: Client,
    /// When the entry expires, in µs; long past in a free place.
    until: u64,
}

impl RefusedPort {
    fn read(entry: &[AtomicU64; ENTRY]) -> Self {
        let [high, low, port, until] = entry.each_ref().map(Word::get);
        Self { name: [high, low, port & !0xffff], client: Client(port as u16), until }
    }

    fn write(self, entry: &[AtomicU64; ENTRY]) {
        let [high, low, port] = self.name;
        // It is valid only as a whole: until the last word is written it is free.
        entry[3].set(0);
        for (word, value) in entry.iter().zip([high, low, port | u64::from(self.client.0), self.until]) {
            word.set(value);
        }
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
    /// The longest time a refusal was ever to be remembered for.
    longest: Duration,
    /// When the last refusal expires: from then on no lookup is needed.
    until: Instant,
}

impl RefusedPorts {
    /// The version of the layout.
    pub const LAYOUT: u64 = 1;

    /// The words of the table, whatever the configuration.
    pub fn words_needed(_: &Config) -> usize {
        SETS * SET
    }

    /// A table in these words, whose refusals are remembered for `longest` at most.
    ///
    /// # Panics
    /// If there are too few words.
    pub fn new(words: Words, longest: Duration, keys: Keys, now: Instant) -> Self {
        assert!(words.len() >= SETS * SET, "the table of refused ports needs more words");
        let mut table = Self { words, mask: SETS - 1, keys, longest, until: Instant::default() };
        if table.words.is_shared() {
            let lasting = (0..SETS * WAYS).map(|n| RefusedPort::read(table.words.piece(n)).until);
            let last = lasting.filter(|&until| table.lasts(until, now)).max();
            table.until = Instant::from_micros(last.unwrap_or(0));
        }
        table
    }

    /// What is remembered of one port, in a memory of one set. `client` has another name there; clients that are neither it nor everybody have none.
    pub fn excerpt(&self, key: &FlowKey, client: Client, renamed: Client) -> Self {
        let copy = Self { words: Words::zeroed(SET), mask: 0, ..*self };
        for way in 0..WAYS {
            let port = RefusedPort::read(self.entry(self.place(key), way));
            let client = match port.client {
                own if own == client => renamed,
                Client::EVERYBODY => Client::EVERYBODY,
                _ => continue,
            };
            RefusedPort { client, ..port }.write(copy.entry(0, way));
        }
        copy
    }

    fn entry(&self, set: usize, way: usize) -> &[AtomicU64; ENTRY] {
        self.words.piece(set * WAYS + way)
    }

    /// From now on a refusal may be remembered for this long.
    pub fn may_last(&mut self, longest: Duration) {
        self.longest = self.longest.max(longest);
    }

    /// Whether an entry that expires then is one, and has not expired.
    fn lasts(&self, until: u64, now: Instant) -> bool {
        let left = Duration::from_micros(until.saturating_sub(now.as_micros()));
        !left.is_zero() && left <= self.longest
    }

    /// Whether the port on the LAN is remembered to have refused this client.
    #[inline]
    pub fn is_refused(&self, key: &FlowKey, client: Client, now: Instant) -> bool {
        self.any_refused(now) && self.is_remembered(key, client, now)
    }

    /// Whether there may be an entry for any port.
    #[inline(always)]
    pub fn any_refused(&self, now: Instant) -> bool {
        now < self.until
    }

    #[inline(never)]
    fn is_remembered(&self, key: &FlowKey, client: Client, now: Instant) -> bool {
        let (place, name) = (self.place(key), name(key));
        (0..WAYS).map(|way| RefusedPort::read(self.entry(place, way))).any(|port| {
            let is_meant = port.client == Client::EVERYBODY || port.client == client;
            is_meant && port.name == name && self.lasts(port.until, now)
        })
    }

    /// The port on the LAN has refused a connection of `client`, which is remembered for `memory`; if that is zero, not at all.
    pub fn refused(&mut self, key: &FlowKey, client: Client, memory: Duration, now: Instant) {
        if memory.is_zero() {
            return;
        }
        self.may_last(memory);
        let until = now + memory;
        self.until = self.until.max(until);
        let (place, name) = (self.place(key), name(key));
        let ports: [_; WAYS] = core::array::from_fn(|way| RefusedPort::read(self.entry(place, way)));
        let own = ports.iter().position(|port| port.name == name && port.client == client);
        let expiry = |way: &usize| if self.lasts(ports[*way].until, now) { ports[*way].until } else { 0 };
        let first = || (0..WAYS).min_by_key(expiry).unwrap_or(0);
        let entry = self.entry(place, own.unwrap_or_else(first));
        RefusedPort { name, client, until: until.as_micros() }.write(entry);
    }

    /// The port on the LAN has answered a SYN after all. Returns whether it had an entry.
    pub fn opened(&mut self, key: &FlowKey, now: Instant) -> bool {
        if !self.any_refused(now) {
            return false;
        }
        let (place, name) = (self.place(key), name(key));
        let mut was_closed = false;
        for entry in (0..WAYS).map(|way| self.entry(place, way)) {
            let port = RefusedPort::read(entry);
            if port.until > 0 && port.name == name {
                RefusedPort::default().write(entry);
                was_closed = true;
            }
        }
        was_closed
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

    fn port(port: u16) -> FlowKey {
        FlowKey { lan: [0, 0, 0xffff, 0xc000_0201], lan_port: port, wan_port: 40000, ..FlowKey::default() }
    }

    fn refused_ports(memory: Duration) -> RefusedPorts {
        let words = Words::zeroed(RefusedPorts::words_needed(&Config::default()));
        RefusedPorts::new(words, memory, (1, 2), Instant::default())
    }

    #[test]
    fn whatever_another_process_left_nothing_panics_and_what_is_refused_is_refused() {
        let mut random = memory::tests::random(3);
        let words = memory::tests::shared(RefusedPorts::words_needed(&Config::default()), &mut random);
        // Some entries are of ports that are asked for, and expire at times near the present ones.
        for n in 0..8000 {
            let entry: &[AtomicU64; ENTRY] = words.piece(n);
            let name = name(&port(n as u16));
            let values = [name[0], name[1], name[2] | random() & 3, random() % 40_000_000];
            entry.iter().zip(values).for_each(|(word, value)| word.set(value));
        }
        let mut table = RefusedPorts::new(words, MEMORY, (1, 2), Instant::default());
        for n in 0..100_000 {
            let now = Instant::from_micros(n * 200);
            let (key, client) = (port(random() as u16), Client::of(random() as u32 % 4));
            table.is_refused(&key, client, now);
            match random() % 3 {
                0 => drop(table.opened(&key, now)),
                1 => {
                    table.refused(&key, client, MEMORY, now);
                    assert!(table.is_refused(&key, client, now));
                }
                _ => drop(table.excerpt(&key, client, Client::of(0))),
            }
        }
        let later = Instant::from_secs(60);
        assert!(!table.any_refused(later) && !(0..=u16::MAX).any(|n| table.is_refused(&port(n), Client::of(1), later)));
    }

    #[test]
    fn a_port_that_refused_is_closed_to_everybody_until_it_is_forgotten() {
        let mut refused_ports = refused_ports(MEMORY);
        refused_ports.refused(&port(81), Client::EVERYBODY, MEMORY, Instant::from_secs(100));
        let another_client = FlowKey { wan: [1, 2, 3, 4], wan_port: 5, ..port(81) };
        assert!(refused_ports.is_refused(&another_client, Client::of(7), Instant::from_secs(100)));
        assert!(refused_ports.is_refused(&another_client, Client::of(7), Instant::from_micros(109_999_999)));
        assert!(!refused_ports.is_refused(&another_client, Client::of(7), Instant::from_secs(110)));
    }

    #[test]
    fn a_port_that_bars_one_client_stays_open_to_others() {
        let mut refused_ports = refused_ports(MEMORY);
        let now = Instant::from_secs(100);
        refused_ports.refused(&port(81), Client::of(7), MEMORY, now);
        assert!(refused_ports.is_refused(&port(81), Client::of(7), now));
        assert!(!refused_ports.is_refused(&port(81), Client::of(8), now));
        assert!(!refused_ports.is_refused(&port(81), Client::of(0), now), "no network is everybody");
    }

    #[test]
    fn its_neighbours_stay_open() {
        let mut refused_ports = refused_ports(MEMORY);
        let now = Instant::from_secs(100);
        refused_ports.refused(&port(81), Client::EVERYBODY, MEMORY, now);
        // Those that differ in one thing alone and yet lie in the same set.
        let mut neighbours = [
            &mut (82..).map(port) as &mut dyn Iterator<Item = FlowKey>,
            &mut (0..).map(|n| FlowKey { vlan: Vlan(1 << 24 | n), ..port(81) }),
            &mut (0..).map(|n| FlowKey { lan: [0, 0, 0xffff, 0xc001_0000 + n], ..port(81) }),
            &mut (1..).map(|n| FlowKey { lan: [n, 0, 0xffff, 0xc000_0201], v6: true, ..port(81) }),
        ];
        for neighbours in &mut neighbours {
            let neighbour = neighbours.find(|key| refused_ports.place(key) == refused_ports.place(&port(81))).unwrap();
            assert!(!refused_ports.is_refused(&neighbour, Client::of(7), now), "{neighbour:?}");
        }
        assert!(refused_ports.is_refused(&port(81), Client::of(7), now));
    }

    #[test]
    fn one_answer_opens_it_again() {
        let mut refused_ports = refused_ports(MEMORY);
        let now = Instant::from_secs(100);
        refused_ports.refused(&port(81), Client::EVERYBODY, MEMORY, now);
        refused_ports.refused(&port(81), Client::EVERYBODY, MEMORY, now);
        refused_ports.refused(&port(82), Client::EVERYBODY, MEMORY, now);
        refused_ports.opened(&port(81), Instant::from_secs(100));
        assert!(!refused_ports.is_refused(&port(81), Client::of(7), now));
        assert!(refused_ports.is_refused(&port(82), Client::of(7), now));
    }

    #[test]
    fn without_memory_no_port_is_refused() {
        let mut refused_ports = refused_ports(Duration::ZERO);
        for now in [Instant::default(), Instant::from_secs(100)] {
            assert!(!refused_ports.is_refused(&FlowKey::default(), Client::of(7), now), "nor is one without an entry");
            refused_ports.refused(&port(81), Client::EVERYBODY, Duration::ZERO, now);
            assert!(!refused_ports.is_refused(&port(81), Client::of(7), now));
        }
    }

    #[test]
    fn in_a_full_set_the_oldest_refusal_gives_way() {
        let mut refused_ports = refused_ports(MEMORY);
        let set = refused_ports.place(&port(1));
        let crowd: Vec<FlowKey> =
            (1..=u16::MAX).map(port).filter(|key| refused_ports.place(key) == set).take(5).collect();
        for (at, key) in [&crowd[0], &crowd[1], &crowd[2], &crowd[3], &crowd[0], &crowd[4]].into_iter().enumerate() {
            refused_ports.refused(key, Client::EVERYBODY, MEMORY, Instant::from_secs(100 + at as u64));
        }
        let is_refused: Vec<bool> =
            crowd.iter().map(|key| refused_ports.is_refused(key, Client::of(7), Instant::from_secs(105))).collect();
        assert_eq!(is_refused, [true, false, true, true, true]);
    }

    #[test]
    fn a_scan_of_all_ports_is_remembered_in_the_room_there_is() {
        let mut refused_ports = refused_ports(MEMORY);
        let now = Instant::from_secs(100);
        for n in 1..=u16::MAX {
            refused_ports.refused(&port(n), Client::EVERYBODY, MEMORY, now);
            assert!(refused_ports.is_refused(&port(n), Client::of(7), now));
        }
        let remembered = (1..=u16::MAX).filter(|&n| refused_ports.is_refused(&port(n), Client::of(7), now)).count();
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
            let (mut refused_ports, mut model, mut now) = (refused_ports(MEMORY), HashMap::new(), Instant::default());
            for (step, n, act) in acts {
                now = now + Duration::from_micros(step);
                match act {
                    Act::Refuse => {
                        refused_ports.refused(&port(n), Client::EVERYBODY, MEMORY, now);
                        model.insert(n, now);
                    }
                    Act::Open => {
                        refused_ports.opened(&port(n), now);
                        model.remove(&n);
                    }
                    Act::Ask => {
                        let is_refused = model.get(&n).is_some_and(|&at| now.since(at) < MEMORY);
                        prop_assert_eq!(refused_ports.is_refused(&port(n), Client::of(7), now), is_refused);
                    }
                }
            }
        }
    }
}
