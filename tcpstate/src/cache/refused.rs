//! Closed doors: ports of the LAN that refused a connection lately. Whoever knocks next hears the truth at once, where
//! we should otherwise have answered for a server that is not there. Only the LAN's own answers are written here.
//!
//! A port that is open to some and refuses others (a host that bars an address, with a reset) is remembered as closed to
//! those alone: one who is barred must not close it to everybody.
//!
//! Set-associative, of fixed size; when a set is full the refusal that is forgotten soonest gives way.

use core::time::Duration;

use crate::Instant;
use crate::keyed::{self, Keys};
use crate::wire::{Addr, FlowKey, Vlan};

/// 16 384 doors in all, 512 KiB.
const SETS: usize = 4096;
const WAYS: usize = 4;

#[derive(Clone, Copy, Default)]
struct RefusedPort {
    address: Addr,
    vlan: Vlan,
    port: u16,
    /// To whom it is closed.
    client: Client,
    /// When it is forgotten that the port refused; long past in a free place.
    until: Instant,
}

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

impl RefusedPort {
    fn is_of(&self, key: &FlowKey) -> bool {
        self.address == key.lan && self.port == key.lan_port && self.vlan == key.vlan
    }
}

#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Set([RefusedPort; WAYS]);

const _: () = assert!(size_of::<Set>() == 128, "a look touches two cache lines");

/// See the module.
pub struct RefusedPorts {
    sets: Vec<Set>,
    keys: Keys,
    memory: Duration,
    /// When the last refusal is forgotten: from then on there is nothing to look for.
    until: Instant,
}

impl RefusedPorts {
    /// All doors open. A refusal is remembered for `memory`; if that is zero, never.
    pub fn new(memory: Duration, keys: Keys) -> Self {
        Self { sets: vec![Set::default(); SETS], keys, memory, until: Instant::default() }
    }

    /// What is remembered of one port, in a memory of one set. `client` has another name there, and those who are neither it nor everybody none.
    pub fn excerpt(&self, key: &FlowKey, client: Client, renamed: Client) -> Self {
        let mut set = self.sets[self.place(key)];
        for port in &mut set.0 {
            port.client = match port.client {
                own if own == client => renamed,
                Client::EVERYBODY => Client::EVERYBODY,
                _ => {
                    *port = RefusedPort::default();
                    continue;
                }
            };
        }
        Self { sets: vec![set], ..*self }
    }

    /// Whether the port on the LAN is remembered to have refused this client.
    #[inline]
    pub fn is_refused(&self, key: &FlowKey, client: Client, now: Instant) -> bool {
        self.any_refused(now) && self.is_remembered(key, client, now)
    }

    /// Whether any port may be remembered to have refused anybody.
    #[inline(always)]
    pub fn any_refused(&self, now: Instant) -> bool {
        now < self.until
    }

    #[inline(never)]
    fn is_remembered(&self, key: &FlowKey, client: Client, now: Instant) -> bool {
        let is_meant = |port: &RefusedPort| port.client == Client::EVERYBODY || port.client == client;
        let closes = |port: &RefusedPort| now < port.until && is_meant(port) && port.is_of(key);
        self.sets[self.place(key)].0.iter().any(closes)
    }

    /// The port on the LAN has refused a connection of `client`.
    pub fn refused(&mut self, key: &FlowKey, client: Client, now: Instant) {
        let until = now + self.memory;
        self.until = self.until.max(until);
        let place = self.place(key);
        let set = &mut self.sets[place].0;
        let own = set.iter().position(|port| port.is_of(key) && port.client == client);
        let soonest = || (0..WAYS).min_by_key(|&way| set[way].until).unwrap_or(0);
        set[own.unwrap_or_else(soonest)] =
            RefusedPort { address: key.lan, vlan: key.vlan, port: key.lan_port, client, until };
    }

    /// The port on the LAN has answered a SYN after all. Returns whether anybody had been refused there.
    pub fn opened(&mut self, key: &FlowKey, now: Instant) -> bool {
        if !self.any_refused(now) {
            return false;
        }
        let place = self.place(key);
        let mut was_closed = false;
        for port in self.sets[place].0.iter_mut().filter(|port| port.is_of(key)) {
            *port = RefusedPort::default();
            was_closed = true;
        }
        was_closed
    }

    /// The set of a door. Who scans chooses what is written, so the hash has a secret.
    fn place(&self, key: &FlowKey) -> usize {
        let [a, b, c, d] = key.lan.map(u64::from);
        let words = [a << 32 | b, c << 32 | d, u64::from(key.vlan.0) << 16 | u64::from(key.lan_port)];
        keyed::place(self.keys, words) as usize & (self.sets.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const MEMORY: Duration = Duration::from_secs(10);

    fn port(port: u16) -> FlowKey {
        FlowKey { lan: [0, 0, 0xffff, 0xc000_0201], lan_port: port, wan_port: 40000, ..FlowKey::default() }
    }

    fn refused_ports(memory: Duration) -> RefusedPorts {
        RefusedPorts::new(memory, (1, 2))
    }

    #[test]
    fn a_port_that_refused_is_closed_to_everybody_until_it_is_forgotten() {
        let mut refused_ports = refused_ports(MEMORY);
        refused_ports.refused(&port(81), Client::EVERYBODY, Instant::from_secs(100));
        let another_client = FlowKey { wan: [1, 2, 3, 4], wan_port: 5, ..port(81) };
        assert!(refused_ports.is_refused(&another_client, Client::of(7), Instant::from_secs(100)));
        assert!(refused_ports.is_refused(&another_client, Client::of(7), Instant::from_micros(109_999_999)));
        assert!(!refused_ports.is_refused(&another_client, Client::of(7), Instant::from_secs(110)));
    }

    #[test]
    fn one_who_is_barred_closes_no_door_to_others() {
        let mut refused_ports = refused_ports(MEMORY);
        let now = Instant::from_secs(100);
        refused_ports.refused(&port(81), Client::of(7), now);
        assert!(refused_ports.is_refused(&port(81), Client::of(7), now));
        assert!(!refused_ports.is_refused(&port(81), Client::of(8), now));
        assert!(!refused_ports.is_refused(&port(81), Client::of(0), now), "no network is everybody");
    }

    #[test]
    fn its_neighbours_stay_open() {
        let mut refused_ports = refused_ports(MEMORY);
        let now = Instant::from_secs(100);
        refused_ports.refused(&port(81), Client::EVERYBODY, now);
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
        refused_ports.refused(&port(81), Client::EVERYBODY, now);
        refused_ports.refused(&port(81), Client::EVERYBODY, now);
        refused_ports.refused(&port(82), Client::EVERYBODY, now);
        refused_ports.opened(&port(81), Instant::from_secs(100));
        assert!(!refused_ports.is_refused(&port(81), Client::of(7), now));
        assert!(refused_ports.is_refused(&port(82), Client::of(7), now));
    }

    #[test]
    fn without_memory_no_door_is_closed() {
        let mut refused_ports = refused_ports(Duration::ZERO);
        for now in [Instant::default(), Instant::from_secs(100)] {
            assert!(
                !refused_ports.is_refused(&FlowKey::default(), Client::of(7), now),
                "nor is one nobody has touched"
            );
            refused_ports.refused(&port(81), Client::EVERYBODY, now);
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
            refused_ports.refused(key, Client::EVERYBODY, Instant::from_secs(100 + at as u64));
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
            refused_ports.refused(&port(n), Client::EVERYBODY, now);
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
        fn doors_are_a_map_that_forgets(
            acts in prop::collection::vec(
                (0u64..4_000_000, 0u16..20, prop_oneof![Just(Act::Refuse), Just(Act::Open), Just(Act::Ask)]), 0..300),
        ) {
            let (mut refused_ports, mut model, mut now) = (refused_ports(MEMORY), HashMap::new(), Instant::default());
            for (step, n, act) in acts {
                now = now + Duration::from_micros(step);
                match act {
                    Act::Refuse => {
                        refused_ports.refused(&port(n), Client::EVERYBODY, now);
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
