//! The Ethernet addresses of the servers of services, or of the routers to them; and when the box asks for them, and announces its own addresses.
//!
//! Everything that may be asked for is known from the configuration, so the memory is bounded. An address is asked for again before what is known
//! of it is old, so that a connection need not wait for an answer, and a server that does not answer is known before a client goes there.
//!
//! Of several workers the first asks and announces, and whichever gets an answer tells the others. These ask by themselves only when a connection of
//! theirs waits for an address that is not known.

use crate::service::Services;
use crate::wire::{Addr, Mac};
use crate::{Instant, Side};
use core::time::Duration;

/// How long an answer is good, and when it is asked for again (RFC 4861 section 10: 30 s).
const REACHABLE: Duration = Duration::from_secs(30);
/// From one question to the next, of those that get no answer (RFC 1122 section 2.3.2.1: no more than one a second).
const RETRANSMITTED: Duration = Duration::from_secs(1);
/// The same after many.
const BACKED_OFF: Duration = Duration::from_secs(5);
/// How many questions go without an answer until an address is not reachable (RFC 4861 section 10, MAX_UNICAST_SOLICIT).
const QUESTIONS: u8 = 3;
/// How often an address is announced, and how far apart (RFC 5227 section 1.1; RFC 4861 section 10 has one and three).
const ANNOUNCEMENTS: u8 = 2;
const ANNOUNCED_EVERY: Duration = Duration::from_secs(2);
/// How often a worker tells the others at most what it has heard of an address, unless that has changed.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// How often the box defends an address at most (RFC 5227 section 2.4).
const DEFENDED_EVERY: Duration = Duration::from_secs(10);

/// An address that is asked for.
#[derive(Clone, Copy)]
struct Hop {
    address: Addr,
    vlan: u16,
    side: Side,
    mac: Option<Mac>,
    /// Questions since the last answer.
    asked: u8,
    /// When it is asked for next; `None` while another worker does that.
    due: Option<Instant>,
    /// When it was last asked for, and when the others were last told of it.
    last: Option<Instant>,
    told: Option<Instant>,
}

/// An address that is announced.
#[derive(Clone, Copy)]
struct Own {
    address: Addr,
    vlan: u16,
    mac: Mac,
    left: u8,
    due: Instant,
    defended: Option<Instant>,
}

/// What is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The next hop with this number is to be asked for.
    Ask(usize),
    /// The box's address with this number is to be announced.
    Announce(usize),
}

/// What is to be told to other workers of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The side it is on.
    pub side: Side,
    /// The address.
    pub address: Addr,
    /// The VLAN.
    pub vlan: u16,
    /// Its Ethernet address; `None` if it does not answer any more.
    pub mac: Option<Mac>,
}

/// See the module.
#[derive(Clone)]
pub struct Neighbours {
    hops: Vec<Hop>,
    own: Vec<Own>,
    /// Whether this worker asks and announces for all.
    is_first: bool,
}

impl Default for Neighbours {
    fn default() -> Self {
        Self { hops: Vec::new(), own: Vec::new(), is_first: true }
    }
}

impl Neighbours {
    /// From now on these services count. What is known of addresses that they have too is kept, and what was announced is not announced again.
    pub fn set(&mut self, services: &Services, now: Instant) {
        let is_first = self.is_first;
        let former = core::mem::take(self);
        self.is_first = is_first;
        let due = is_first.then_some(now);
        self.hops = services
            .next_hops()
            .iter()
            .map(|hop| {
                let known = former
                    .hops
                    .iter()
                    .find(|known| (known.address, known.vlan, known.side) == (hop.address, hop.vlan, hop.side));
                let (address, vlan, side) = (hop.address, hop.vlan, hop.side);
                let fresh = Hop { address, vlan, side, mac: None, asked: 0, due, last: None, told: None };
                known.copied().unwrap_or(fresh)
            })
            .collect();
        self.own = services
            .owned()
            .iter()
            .map(|own| {
                let alike = |known: &&Own| (known.address, known.vlan, known.mac) == (own.address, own.vlan, own.mac);
                let (address, vlan, mac) = (own.address, own.vlan, own.mac);
                let left = if is_first { ANNOUNCEMENTS } else { 0 };
                let fresh = Own { address, vlan, mac, left, due: now, defended: None };
                former.own.iter().find(alike).copied().unwrap_or(fresh)
            })
            .collect();
    }

    /// Whether this worker is the first of several, which asks and announces for all; it is, unless told otherwise.
    pub fn set_first(&mut self, is_first: bool, now: Instant) {
        self.is_first = is_first;
        for hop in &mut self.hops {
            hop.due = is_first.then_some(now);
        }
        for own in &mut self.own {
            own.left = if is_first { ANNOUNCEMENTS } else { 0 };
        }
    }

    /// The Ethernet address of the next hop with this number, if it is known.
    pub fn mac(&self, hop: u16) -> Option<Mac> {
        self.hops.get(usize::from(hop))?.mac
    }

    /// Whether it has been asked for in vain.
    pub fn is_silent(&self, hop: u16) -> bool {
        self.hops.get(usize::from(hop)).is_some_and(|hop| hop.mac.is_none() && hop.asked >= QUESTIONS)
    }

    /// Takes note of an address's Ethernet address, if it is one that is asked for on this side; what is to be told to other workers of that, if anything is.
    pub fn learn(&mut self, side: Side, address: &Addr, vlan: u16, mac: Mac, now: Instant) -> Option<Heard> {
        let is_it = |hop: &&mut Hop| hop.address == *address && hop.vlan == vlan && hop.side == side;
        let hop = self.hops.iter_mut().find(is_it)?;
        let is_news = hop.mac != Some(mac) || hop.told.is_none_or(|told| now.since(told) >= TOLD_EVERY);
        let due = self.is_first.then(|| now + REACHABLE);
        *hop = Hop { mac: Some(mac), asked: 0, due, told: if is_news { Some(now) } else { hop.told }, ..*hop };
        is_news.then_some(Heard { side, address: *address, vlan, mac: Some(mac) })
    }

    /// Takes note of what another worker has heard.
    pub fn receive(&mut self, heard: &Heard, now: Instant) {
        match heard.mac {
            Some(mac) => _ = self.learn(heard.side, &heard.address, heard.vlan, mac, now),
            None => {
                let place = (heard.address, heard.vlan, heard.side);
                let is_it = |hop: &&mut Hop| (hop.address, hop.vlan, hop.side) == place;
                // The first knows better.
                if let Some(hop) = self.hops.iter_mut().find(is_it).filter(|_| !self.is_first) {
                    hop.mac = None;
                }
            }
        }
    }

    /// Another station claims the box's address: whether the box is to defend it now.
    pub fn defends(&mut self, address: &Addr, vlan: u16, now: Instant) -> bool {
        let found = self.own.iter_mut().find(|own| own.address == *address && own.vlan == vlan);
        let Some(own) = found else { return false };
        let is_due = own.defended.is_none_or(|before| now.since(before) >= DEFENDED_EVERY);
        if is_due {
            own.defended = Some(now);
        }
        is_due
    }

    /// A server is not known yet and a connection waits for it: it is asked for at once, unless that has just been done.
    pub fn want(&mut self, hop: u16, now: Instant) {
        if let Some(hop) = self.hops.get_mut(usize::from(hop))
            && hop.mac.is_none()
        {
            let soon = hop.last.map_or(now, |last| (last + RETRANSMITTED).max(now));
            hop.due = Some(hop.due.map_or(soon, |due| due.min(soon)));
        }
    }

    /// What is due, once; its next time is set. An address that does not answer any more is reported to `lost`.
    pub fn next_work(&mut self, now: Instant, lost: impl FnOnce(Heard)) -> Option<Work> {
        if let Some(at) = self.own.iter().position(|own| own.left > 0 && own.due <= now) {
            let own = &mut self.own[at];
            (own.left, own.due) = (own.left - 1, now + ANNOUNCED_EVERY);
            return Some(Work::Announce(at));
        }
        let at = self.hops.iter().position(|hop| hop.due.is_some_and(|due| due <= now))?;
        let hop = &mut self.hops[at];
        if hop.asked >= QUESTIONS && hop.mac.take().is_some() {
            lost(Heard { side: hop.side, address: hop.address, vlan: hop.vlan, mac: None });
        }
        hop.asked = hop.asked.saturating_add(1);
        let interval = if hop.asked > 2 * QUESTIONS { BACKED_OFF } else { RETRANSMITTED };
        hop.due = self.is_first.then(|| now + interval);
        hop.last = Some(now);
        Some(Work::Ask(at))
    }

    /// When something is due, if anything is.
    pub fn next_deadline(&self) -> Option<Instant> {
        let announced = self.own.iter().filter(|own| own.left > 0).map(|own| own.due);
        self.hops.iter().filter_map(|hop| hop.due).chain(announced).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ServiceConfig, ServiceServer};

    fn services() -> Services {
        let address = |n| [0, 0, 0xffff, n];
        Services::new(&[ServiceConfig {
            default: vec![ServiceServer { address: address(2), port: 443, weight: 1 }],
            ..ServiceConfig::at(address(1), 443)
        }])
    }

    #[test]
    fn an_address_is_asked_for_until_it_answers_and_again_before_that_is_old() {
        let address = |n| [0, 0, 0xffff, n];
        let services = services();
        let start = Instant::from_secs(1000);
        let at = |secs| start + Duration::from_secs(secs);
        let mut neighbours = Neighbours::default();
        assert_eq!(neighbours.next_deadline(), None);
        neighbours.set(&services, start);
        let all = |neighbours: &mut Neighbours, now| {
            std::iter::from_fn(|| neighbours.next_work(now, |_| ())).collect::<Vec<_>>()
        };
        assert_eq!(all(&mut neighbours, start), [Work::Announce(0), Work::Ask(0)]);
        assert_eq!(all(&mut neighbours, at(1)), [Work::Ask(0)]);
        assert_eq!(all(&mut neighbours, at(2)), [Work::Announce(0), Work::Ask(0)]);
        assert_eq!(neighbours.learn(Side::Lan, &address(3), 0, [2; 6], at(2)), None);
        assert_eq!(neighbours.learn(Side::Wan, &address(2), 0, [2; 6], at(2)), None);
        assert_eq!(neighbours.learn(Side::Lan, &address(2), 5, [2; 6], at(2)), None);
        let heard = Heard { side: Side::Lan, address: address(2), vlan: 0, mac: Some([2; 6]) };
        assert_eq!(neighbours.learn(Side::Lan, &address(2), 0, [2; 6], at(2)), Some(heard));
        assert_eq!(neighbours.learn(Side::Lan, &address(2), 0, [2; 6], at(2)), None, "the others know that");
        assert_eq!((all(&mut neighbours, at(31)), neighbours.mac(0)), (vec![], Some([2; 6])));
        // The configuration is read again: what is known stays.
        neighbours.set(&services, at(31));
        assert_eq!((all(&mut neighbours, at(32)), neighbours.mac(0)), (vec![Work::Ask(0)], Some([2; 6])));
        for secs in 33..36 {
            assert_eq!(all(&mut neighbours, at(secs)), [Work::Ask(0)]);
        }
        assert_eq!(neighbours.mac(0), None, "three questions had no answer");
        assert_eq!(neighbours.next_deadline(), Some(at(36)));
        assert!(neighbours.defends(&address(1), 0, at(40)) && !neighbours.defends(&address(1), 0, at(49)));
        assert!(neighbours.defends(&address(1), 0, at(50)));
    }

    #[test]
    fn a_worker_that_is_not_the_first_asks_only_for_what_it_needs_and_is_not_told() {
        let address = |n| [0, 0, 0xffff, n];
        let services = services();
        let start = Instant::from_secs(1000);
        let at = |secs| start + Duration::from_secs(secs);
        let mut neighbours = Neighbours::default();
        neighbours.set_first(false, start);
        neighbours.set(&services, start);
        assert_eq!((neighbours.next_work(at(9), |_| ()), neighbours.next_deadline()), (None, None));
        neighbours.want(0, at(9));
        neighbours.want(0, at(9));
        assert_eq!(neighbours.next_work(at(9), |_| ()), Some(Work::Ask(0)));
        neighbours.want(0, at(9));
        assert_eq!(neighbours.next_work(at(9), |_| ()), None, "once a second");
        assert_eq!(neighbours.next_deadline(), Some(at(10)));
        neighbours.receive(&Heard { side: Side::Lan, address: address(2), vlan: 0, mac: Some([2; 6]) }, at(9));
        assert_eq!((neighbours.mac(0), neighbours.next_deadline()), (Some([2; 6]), None));
        neighbours.receive(&Heard { side: Side::Lan, address: address(2), vlan: 0, mac: None }, at(60));
        assert_eq!(neighbours.mac(0), None);
    }
}
