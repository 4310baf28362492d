//! The Ethernet addresses of the servers of services, or of the routers to them; and when the box asks for them, and announces its own addresses.
//!
//! Everything that may be asked for is known from the configuration, so the memory is bounded. An address is asked for again before what is known
//! of it is old, so that a connection need not wait for an answer, and a server that does not answer is known before a client goes there.

use crate::Instant;
use crate::service::Services;
use crate::wire::{Addr, Mac};
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
/// How often the box defends an address at most (RFC 5227 section 2.4).
const DEFENDED_EVERY: Duration = Duration::from_secs(10);

/// An address that is asked for.
#[derive(Clone, Copy)]
struct Hop {
    address: Addr,
    vlan: u16,
    mac: Option<Mac>,
    /// Questions since the last answer.
    asked: u8,
    due: Instant,
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

/// See the module.
#[derive(Clone, Default)]
pub struct Neighbours {
    hops: Vec<Hop>,
    own: Vec<Own>,
}

impl Neighbours {
    /// From now on these services count. What is known of addresses that they have too is kept, and what was announced is not announced again.
    pub fn set(&mut self, services: &Services, now: Instant) {
        let former = core::mem::take(self);
        self.hops = services
            .next_hops()
            .iter()
            .map(|hop| {
                let known = former.hops.iter().find(|known| (known.address, known.vlan) == (hop.address, hop.vlan));
                let fresh = Hop { address: hop.address, vlan: hop.vlan, mac: None, asked: 0, due: now };
                known.copied().unwrap_or(fresh)
            })
            .collect();
        self.own = services
            .owned()
            .iter()
            .map(|own| {
                let alike = |known: &&Own| (known.address, known.vlan, known.mac) == (own.address, own.vlan, own.mac);
                let (address, vlan, mac) = (own.address, own.vlan, own.mac);
                let fresh = Own { address, vlan, mac, left: ANNOUNCEMENTS, due: now, defended: None };
                former.own.iter().find(alike).copied().unwrap_or(fresh)
            })
            .collect();
    }

    /// The Ethernet address of the next hop with this number, if it is known.
    pub fn mac(&self, hop: u16) -> Option<Mac> {
        self.hops.get(usize::from(hop))?.mac
    }

    /// Takes note of an address's Ethernet address, if it is one that is asked for; whether it is.
    pub fn learn(&mut self, address: &Addr, vlan: u16, mac: Mac, now: Instant) -> bool {
        let found = self.hops.iter_mut().find(|hop| hop.address == *address && hop.vlan == vlan);
        let Some(hop) = found else { return false };
        *hop = Hop { mac: Some(mac), asked: 0, due: now + REACHABLE, ..*hop };
        true
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
            hop.due = hop.due.min(now + RETRANSMITTED);
        }
    }

    /// What is due, once; its next time is set.
    pub fn next_work(&mut self, now: Instant) -> Option<Work> {
        if let Some(at) = self.own.iter().position(|own| own.left > 0 && own.due <= now) {
            let own = &mut self.own[at];
            (own.left, own.due) = (own.left - 1, now + ANNOUNCED_EVERY);
            return Some(Work::Announce(at));
        }
        let at = self.hops.iter().position(|hop| hop.due <= now)?;
        let hop = &mut self.hops[at];
        if hop.asked >= QUESTIONS {
            hop.mac = None;
        }
        hop.asked = hop.asked.saturating_add(1);
        hop.due = now + if hop.asked > 2 * QUESTIONS { BACKED_OFF } else { RETRANSMITTED };
        Some(Work::Ask(at))
    }

    /// When something is due, if anything is.
    pub fn next_deadline(&self) -> Option<Instant> {
        let announced = self.own.iter().filter(|own| own.left > 0).map(|own| own.due);
        self.hops.iter().map(|hop| hop.due).chain(announced).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Protocol, ProxyHeader, ServiceConfig, ServiceServer};

    #[test]
    fn an_address_is_asked_for_until_it_answers_and_again_before_that_is_old() {
        let address = |n| [0, 0, 0xffff, n];
        let services = Services::new(&[ServiceConfig {
            address: address(1),
            port: 443,
            vlan: 0,
            mac: None,
            protocol: Protocol::Tls,
            header: ProxyHeader::None,
            routes: Vec::new(),
            default: vec![ServiceServer { address: address(2), port: 443, weight: 1 }],
            next_hop: None,
            patience: Duration::from_secs(10),
        }]);
        let start = Instant::from_secs(1000);
        let at = |secs| start + Duration::from_secs(secs);
        let mut neighbours = Neighbours::default();
        assert_eq!(neighbours.next_deadline(), None);
        neighbours.set(&services, start);
        let all =
            |neighbours: &mut Neighbours, now| std::iter::from_fn(|| neighbours.next_work(now)).collect::<Vec<_>>();
        assert_eq!(all(&mut neighbours, start), [Work::Announce(0), Work::Ask(0)]);
        assert_eq!(all(&mut neighbours, at(1)), [Work::Ask(0)]);
        assert_eq!(all(&mut neighbours, at(2)), [Work::Announce(0), Work::Ask(0)]);
        assert!(!neighbours.learn(&address(3), 0, [2; 6], at(2)) && !neighbours.learn(&address(2), 5, [2; 6], at(2)));
        assert!(neighbours.learn(&address(2), 0, [2; 6], at(2)));
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
}
