//! What is known of the servers of services: whether they accept connections, and how many they have from here.
//!
//! The box opens a connection to a server now and then, and resets it as soon as the server has answered. Every server that the configuration names has a
//! slot, which it keeps when the configuration is read again, so that a connection can name it by a number; a server that is gone keeps it until its last
//! connection has ended. Memory is bounded by the configuration. Of several workers the first asks, and tells the others what changes.

use crate::config::HealthCheck;
use crate::seq::SeqNum;
use crate::service::{Server, Services};
use crate::wire::neighbour::network;
use crate::wire::{Addr, FlowKey, Mac};
use crate::{Instant, Side};
use core::time::Duration;

/// The source ports of attempts: below those of pools, so that no connection has one.
const FIRST_PORT: u16 = 512;
const PORTS: u16 = 512;
/// How long a server may take to answer, at most; less if it is asked more often.
const PATIENCE: Duration = Duration::from_secs(2);

/// From an attempt that could not be made to the next.
const POSTPONED: Duration = Duration::from_millis(200);

/// An attempt that waits for an answer.
#[derive(Clone, Copy)]
struct Attempt {
    port: u16,
    isn: SeqNum,
}

/// See the module.
#[derive(Clone, Copy)]
struct Slot {
    address: Addr,
    port: u16,
    vlan: u16,
    v6: bool,
    /// The number of its next hop; `None` once the configuration does not name it any more.
    next_hop: Option<u16>,
    asker: (Addr, Mac),
    /// Where it is asked. Several servers may be asked at one address, from ports of their own.
    asked: Addr,
    side: Side,
    check: Option<HealthCheck>,
    is_up: bool,
    /// How many attempts in succession said that it is not what it is taken for.
    streak: u8,
    /// When it is to be asked, or is taken for silent.
    due: Option<Instant>,
    attempt: Option<Attempt>,
    /// How many connections it has.
    connections: u32,
    /// How many it was given.
    given: u64,
    /// Whether it gets none anew, by command.
    is_drained: bool,
}

impl Slot {
    fn is(&self, server: &Server) -> bool {
        (self.address, self.port, self.vlan) == (server.address, server.port, server.vlan)
    }

    fn key(&self, port: u16) -> FlowKey {
        let (lan, lan_port, wan, v6) = (self.asked, self.port, self.asker.0, self.v6);
        FlowKey { lan, lan_port, wan, wan_port: port, v6, vlan: network(self.vlan) }
    }
}

/// What became of the clients of a service since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounts {
    /// Clients that have proved themselves.
    pub opened: u64,
    /// Those whose server was chosen.
    pub routed: u64,
    /// Those that were turned away.
    pub refused: u64,
    /// Those that said nothing in time.
    pub timeouts: u64,
}

/// A service and its counts.
#[derive(Clone, Copy)]
struct Counted {
    address: Addr,
    port: u16,
    vlan: u16,
    counts: ServiceCounts,
}

/// A server that has become usable, or is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Its address.
    pub address: Addr,
    /// Its port.
    pub port: u16,
    /// Its VLAN.
    pub vlan: u16,
    /// Whether it accepts connections.
    pub is_up: bool,
}

/// What is due.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// An attempt is to be made.
    Ask(Question),
    /// A server has not answered in time: what is to be told of that, if anything has changed.
    Silence(Option<Health>),
}

/// An attempt that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The slot of the server.
    pub slot: u16,
    /// Whose Ethernet address its frames bear.
    pub next_hop: u16,
    /// The address of the box that asks.
    pub asker: (Addr, Mac),
    /// The side it is on.
    pub side: Side,
    /// Its VLAN.
    pub vlan: u16,
    /// The connection that is attempted.
    pub key: FlowKey,
}

/// See the module.
#[derive(Clone)]
pub struct Backends {
    slots: Vec<Slot>,
    /// By the number of a server in the configuration.
    slot_of: Vec<u16>,
    /// By the number of a service in the configuration.
    counted: Vec<Counted>,
    next_port: u16,
    /// Whether this worker asks.
    is_first: bool,
}

impl Default for Backends {
    fn default() -> Self {
        Self { slots: Vec::new(), slot_of: Vec::new(), counted: Vec::new(), next_port: 0, is_first: true }
    }
}

impl Backends {
    /// From now on these services count. What is known of servers that they have too is kept; others are taken for usable until they have been asked.
    pub fn set(&mut self, services: &Services, now: Instant) {
        for slot in &mut self.slots {
            (slot.next_hop, slot.due, slot.attempt) = (None, None, None);
        }
        self.slot_of.clear();
        let former = core::mem::take(&mut self.counted);
        for service in (0..).map_while(|number| services.get(number)) {
            let own = (service.address, service.port, service.vlan);
            let known = former.iter().find(|other| (other.address, other.port, other.vlan) == own);
            let counts = known.map(|known| known.counts).unwrap_or_default();
            let (address, port, vlan) = own;
            self.counted.push(Counted { address, port, vlan, counts });
        }
        for server in services.servers() {
            let at = self.slots.iter().position(|slot| slot.is(server));
            let is_spare = |slot: &Slot| slot.next_hop.is_none() && slot.connections == 0;
            let spare = || {
                let is_wanted = |slot: &Slot| services.servers().iter().any(|server| slot.is(server));
                self.slots.iter().position(|slot| is_spare(slot) && !is_wanted(slot))
            };
            let fresh = Slot {
                address: server.address,
                port: server.port,
                vlan: server.vlan,
                v6: server.v6,
                next_hop: None,
                asker: server.asker,
                asked: server.asked,
                side: server.side,
                check: None,
                is_up: true,
                streak: 0,
                due: None,
                attempt: None,
                connections: 0,
                given: 0,
                is_drained: false,
            };
            let at = match at.or_else(spare) {
                Some(at) => at,
                None => {
                    self.slots.push(fresh);
                    self.slots.len() - 1
                }
            };
            let slot = &mut self.slots[at];
            if !slot.is(server) {
                *slot = fresh;
            }
            (slot.next_hop, slot.asker, slot.asked) = (Some(server.next_hop), server.asker, server.asked);
            slot.check = server.check;
            slot.side = server.side;
            slot.due = server.check.filter(|_| self.is_first).map(|_| now);
            if server.check.is_none() {
                (slot.is_up, slot.streak) = (true, 0);
            }
            self.slot_of.push(at as u16);
        }
    }

    /// Whether this worker is the first of several, which asks for all; it is, unless told otherwise.
    pub fn set_first(&mut self, is_first: bool, now: Instant) {
        self.is_first = is_first;
        for slot in &mut self.slots {
            slot.due = slot.check.filter(|_| is_first && slot.next_hop.is_some()).map(|_| now);
            slot.attempt = None;
        }
    }

    /// The slot of a server by its number in the configuration.
    pub fn slot(&self, server: u16) -> u16 {
        self.slot_of.get(usize::from(server)).copied().unwrap_or(u16::MAX)
    }

    /// The number of its next hop, if the configuration has it still.
    pub fn next_hop(&self, slot: u16) -> Option<u16> {
        self.slots.get(usize::from(slot))?.next_hop
    }

    /// Whether it accepts connections, as far as is known.
    pub fn is_up(&self, slot: u16) -> bool {
        self.slots.get(usize::from(slot)).is_some_and(|slot| slot.is_up)
    }

    /// How many connections it has.
    pub fn connections(&self, slot: u16) -> u32 {
        self.slots.get(usize::from(slot)).map_or(0, |slot| slot.connections)
    }

    /// Counts a connection to it.
    pub fn count(&mut self, slot: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
            slot.connections += 1;
            slot.given += 1;
        }
    }

    /// Counts one that another process has given to it.
    pub fn recount(&mut self, slot: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
            slot.connections += 1;
        }
    }

    /// How many connections it was given since the start.
    pub fn given(&self, slot: u16) -> u64 {
        self.slots.get(usize::from(slot)).map_or(0, |slot| slot.given)
    }

    /// Whether it gets none anew, by command.
    pub fn is_drained(&self, slot: u16) -> bool {
        self.slots.get(usize::from(slot)).is_some_and(|slot| slot.is_drained)
    }

    /// From now on a server that the configuration names gets no connections anew, or gets some again; false if it names none such.
    pub fn drain(&mut self, address: &Addr, port: u16, drained: bool) -> bool {
        let is_it = |slot: &&mut Slot| (slot.address, slot.port) == (*address, port) && slot.next_hop.is_some();
        let found = self.slots.iter_mut().filter(is_it).map(|slot| slot.is_drained = drained).count();
        found > 0
    }

    /// What became of the clients of a service, by its number in the configuration.
    pub fn counts(&self, service: u16) -> ServiceCounts {
        self.counted.get(usize::from(service)).map_or_else(Default::default, |counted| counted.counts)
    }

    /// The same, to change.
    pub fn counts_mut(&mut self, service: u16) -> Option<&mut ServiceCounts> {
        self.counted.get_mut(usize::from(service)).map(|counted| &mut counted.counts)
    }

    /// Counts one less.
    pub fn discount(&mut self, slot: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
            slot.connections = slot.connections.saturating_sub(1);
        }
    }

    /// The slot of the server of a connection that another process has left there, with the number of that process's slot. Of several servers at the
    /// address of their service it is taken for the one with this number: the same one, unless servers were taken away since the former process began.
    pub fn slot_left(&self, left: Option<u16>, address: &Addr, port: u16, vlan: u16) -> Option<u16> {
        let is_there = |slot: &Slot| (slot.asked, slot.port, slot.vlan) == (*address, port, vlan);
        let by_number = || left.filter(|&left| self.slots.get(usize::from(left)).is_some_and(is_there));
        self.slot_at(address, port, vlan).or_else(by_number)
    }

    /// The slot of the server with this address.
    fn slot_at(&self, address: &Addr, port: u16, vlan: u16) -> Option<u16> {
        let found = self.slots.iter().position(|slot| (slot.address, slot.port, slot.vlan) == (*address, port, vlan));
        found.map(|at| at as u16)
    }

    /// What is due, once; its next time is set. `may_ask` says of a connection whether it can be attempted, and its answer comes here.
    pub fn next_step(&mut self, now: Instant, may_ask: impl Fn(&FlowKey) -> bool) -> Option<Step> {
        let at = self.slots.iter().position(|slot| slot.due.is_some_and(|due| due <= now))?;
        let slot = self.slots[at];
        if slot.attempt.is_some() {
            return Some(Step::Silence(self.judge(at, false, now)));
        }
        self.slots[at].due = slot.check.map(|check| now + check.every.min(PATIENCE));
        let (Some(next_hop), true) = (slot.next_hop, slot.check.is_some()) else { return Some(Step::Silence(None)) };
        let port = |n| FIRST_PORT + (self.next_port + n) % PORTS;
        let is_free = |&port: &u16| {
            let key = slot.key(port);
            let has = |other: &Slot| other.attempt.is_some_and(|attempt| other.key(attempt.port) == key);
            !self.slots.iter().any(has) && may_ask(&key)
        };
        let Some(port) = (0..PORTS).map(port).find(is_free) else {
            return Some(Step::Silence(None));
        };
        self.next_port = (port - FIRST_PORT + 1) % PORTS;
        let key = slot.key(port);
        self.slots[at].attempt = Some(Attempt { port, isn: SeqNum::default() });
        Some(Step::Ask(Question {
            slot: at as u16,
            next_hop,
            asker: slot.asker,
            side: slot.side,
            vlan: slot.vlan,
            key,
        }))
    }

    /// An attempt could not be made yet.
    pub fn postpone(&mut self, slot: u16, now: Instant) {
        if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
            (slot.attempt, slot.due) = (None, Some(now + POSTPONED));
        }
    }

    /// The attempt bears this number.
    pub fn note_number(&mut self, slot: u16, isn: SeqNum) {
        if let Some(Attempt { isn: own, .. }) =
            self.slots.get_mut(usize::from(slot)).and_then(|slot| slot.attempt.as_mut())
        {
            *own = isn;
        }
    }

    /// The slot of the server from which a segment with this key comes that acknowledges this number, if it answers an attempt.
    pub fn answered(&self, key: &FlowKey, ack: SeqNum) -> Option<u16> {
        let answers =
            |slot: &Slot| slot.attempt.is_some_and(|attempt| slot.key(attempt.port) == *key && attempt.isn + 1 == ack);
        self.slots.iter().position(answers).map(|at| at as u16)
    }

    /// A server has accepted a connection, or refused it, or said nothing in time: what is to be told of that, if anything has changed.
    pub fn conclude(&mut self, slot: u16, accepts: bool, now: Instant) -> Option<Health> {
        self.judge(usize::from(slot), accepts, now)
    }

    fn judge(&mut self, at: usize, accepts: bool, now: Instant) -> Option<Health> {
        let slot = self.slots.get_mut(at)?;
        slot.attempt = None;
        let check = slot.check?;
        slot.due = Some(now + check.every);
        if accepts == slot.is_up {
            slot.streak = 0;
            return None;
        }
        slot.streak = slot.streak.saturating_add(1);
        if slot.streak < if accepts { check.rise } else { check.fall } {
            return None;
        }
        (slot.is_up, slot.streak) = (accepts, 0);
        Some(Health { address: slot.address, port: slot.port, vlan: slot.vlan, is_up: accepts })
    }

    /// Takes note of what the first worker has found out.
    pub fn receive(&mut self, health: &Health) {
        let &Health { address, port, vlan, is_up } = health;
        if let Some(slot) = self.slot_at(&address, port, vlan)
            && !self.is_first
        {
            self.slots[usize::from(slot)].is_up = is_up;
        }
    }

    /// When something is due, if anything is.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.slots.iter().filter_map(|slot| slot.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Reach, ServiceConfig, ServiceServer};

    const CHECK: HealthCheck = HealthCheck { every: Duration::from_secs(5), rise: 2, fall: 3 };

    fn services(servers: &[u32]) -> Services {
        let server = |&last: &u32| ServiceServer { address: [0, 0, 0xffff, last], port: 80, weight: 1 };
        let default = servers.iter().map(server).collect();
        Services::new(&[ServiceConfig { default, check: Some(CHECK), ..ServiceConfig::at([0, 0, 0xffff, 1], 80) }])
    }

    #[test]
    fn a_server_falls_and_rises_after_some_attempts_in_succession() {
        let mut now = Instant::from_secs(1000);
        let mut backends = Backends::default();
        backends.set(&services(&[2]), now);
        let mut changes = Vec::new();
        for accepts in [false, false, true, false, false, false, true, false, true, true, false] {
            let Some(Step::Ask(question)) = backends.next_step(now, |_| true) else { panic!("it is asked") };
            assert_eq!((question.key.lan[3], question.key.wan[3]), (2, 1));
            backends.note_number(question.slot, SeqNum::new(77));
            let changed = if accepts {
                assert_eq!(backends.answered(&question.key, SeqNum::new(77)), None);
                let slot = backends.answered(&question.key, SeqNum::new(78)).expect("the attempt's server");
                backends.conclude(slot, true, now)
            } else {
                // It says nothing.
                now = backends.next_deadline().expect("it is waited for");
                let Some(Step::Silence(changed)) = backends.next_step(now, |_| true) else { panic!("it is silent") };
                changed
            };
            changes.push(changed.map(|changed| changed.is_up));
            assert_eq!(backends.next_deadline(), Some(now + CHECK.every));
            now = now + CHECK.every;
        }
        let expected = [None, None, None, None, None, Some(false), None, None, None, Some(true), None];
        assert_eq!(changes, expected);
    }

    #[test]
    fn a_server_keeps_its_slot_while_it_is_named_or_has_connections() {
        let now = Instant::from_secs(1000);
        let mut backends = Backends::default();
        backends.set(&services(&[2, 3, 4]), now);
        let slots: Vec<_> = (0..3).map(|server| backends.slot(server)).collect();
        backends.count(slots[1]);
        backends.set(&services(&[5, 4]), now);
        assert_eq!((backends.slot(1), backends.slot(0)), (slots[2], slots[0]), "the first's is free");
        assert_eq!((backends.connections(slots[1]), backends.next_hop(slots[1])), (1, None));
        assert!(!backends.drain(&[0, 0, 0xffff, 3], 80, true), "it is not named any more");
        backends.set(&services(&[6, 3]), now);
        assert_eq!((backends.slot(1), backends.connections(slots[1])), (slots[1], 1));
        backends.discount(slots[1]);
        assert_eq!(backends.connections(slots[1]), 0);
        assert_eq!(backends.slot_left(None, &[0, 0, 0xffff, 6], 80, 0), Some(backends.slot(0)));
    }

    #[test]
    fn a_server_stays_drained_and_a_service_counted_when_the_configuration_is_read_again() {
        let now = Instant::from_secs(1000);
        let mut backends = Backends::default();
        backends.set(&services(&[2, 3]), now);
        assert!(backends.drain(&[0, 0, 0xffff, 3], 80, true));
        backends.counts_mut(0).expect("the service").opened += 1;
        backends.count(backends.slot(0));
        backends.recount(backends.slot(0));
        backends.set(&services(&[4, 3, 2]), now);
        assert_eq!([0, 1, 2].map(|server| backends.is_drained(backends.slot(server))), [false, true, false]);
        assert_eq!((backends.counts(0).opened, backends.given(backends.slot(2))), (1, 1));
        assert!(backends.drain(&[0, 0, 0xffff, 3], 80, false));
        assert!(!backends.is_drained(backends.slot(1)));
    }

    #[test]
    fn of_servers_with_their_service_s_address_a_connection_s_is_known_by_its_number() {
        let now = Instant::from_secs(1000);
        let server = |last| ServiceServer { address: [0, 0, 0xffff, last], port: 80, weight: 1 };
        let at = |last, reach, default| ServiceConfig {
            reach,
            default,
            pool: vec![[0, 0, 0xffff, 200]],
            check: Some(CHECK),
            ..ServiceConfig::at([0, 0, 0xffff, last], 80)
        };
        let mut backends = Backends::default();
        let configs = [at(1, Reach::Mac, vec![server(2), server(3)]), at(9, Reach::Full, vec![server(4)])];
        backends.set(&Services::new(&configs), now);
        let mut keys = Vec::new();
        while let Some(Step::Ask(question)) = backends.next_step(now, |_| true) {
            keys.push(question.key);
        }
        let asked: Vec<_> = keys.iter().map(|key| key.lan[3]).collect();
        assert_eq!(asked, [1, 1, 4]);
        assert_ne!(keys[0].wan_port, keys[1].wan_port, "their answers have the same address");
        let left = |number, last| backends.slot_left(number, &[0, 0, 0xffff, last], 80, 0);
        assert_eq!((left(Some(1), 1), left(Some(0), 1), left(Some(2), 1)), (Some(1), Some(0), None));
        assert_eq!((left(None, 1), left(Some(0), 4), left(Some(0), 5)), (None, Some(2), None));
    }

    #[test]
    fn what_the_first_worker_finds_out_the_others_know() {
        let now = Instant::from_secs(1000);
        let mut other = Backends::default();
        other.set_first(false, now);
        other.set(&services(&[2]), now);
        assert_eq!(other.next_deadline(), None);
        let health = Health { address: [0, 0, 0xffff, 2], port: 80, vlan: 0, is_up: false };
        other.receive(&health);
        assert!(!other.is_up(0));
        other.receive(&Health { is_up: true, ..health });
        assert!(other.is_up(0));
    }
}
