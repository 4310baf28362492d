//! The source ports of the box's own addresses that stand for clients before servers which must not, or need not, see these.
//!
//! A server keeps a connection that it has ended itself for some time in TIME-WAIT, and refuses another with the same 4-tuple, or takes what is late of the
//! former for its own. So a port rests after its connection has ended, whatever server that had, and ports are taken in turn. Whether a
//! connection has one now the flow table knows.

use crate::Instant;
use crate::service::Services;
use crate::wire::Addr;
use core::time::Duration;

/// The ports of an address: those that no protocol has for its own (RFC 6056 section 3.2).
const FIRST: u32 = 1024;
const PORTS: u32 = 65_536 - FIRST;
/// How long a port rests: as long as most systems keep TIME-WAIT, twice (RFC 9293 has four minutes, Linux one).
pub const REST: Duration = Duration::from_secs(120);
/// How many ports are tried for one connection.
const TRIED: u32 = 512;

/// An address and its ports.
#[derive(Clone)]
struct Source {
    address: Addr,
    vlan: u16,
    /// For each port, when its last connection ended, in seconds on a circle; zero if none has.
    ended: Vec<u16>,
    /// Where the next search begins.
    next: u32,
}

/// See the module.
#[derive(Clone, Default)]
pub struct SourcePorts {
    sources: Vec<Source>,
    /// Which address is next.
    turn: usize,
    /// The present, or some iterations ago.
    pub now: Instant,
}

/// The second of a time on a circle of 18 hours, never zero.
fn second(now: Instant) -> u16 {
    ((now.as_micros() / 1_000_000) as u16).max(1)
}

impl SourcePorts {
    /// The bytes that so many addresses take.
    pub const fn bytes_needed(addresses: usize) -> usize {
        addresses * (PORTS as usize * size_of::<u16>() + size_of::<Source>())
    }

    /// From now on these addresses count. What is known of those that were there before is kept. `first` says where the ports of an address begin to be
    /// taken: a keyed hash of it (RFC 6056 section 3.3.3).
    pub fn set(&mut self, services: &Services, first: impl Fn(&Addr) -> u64) {
        let former = core::mem::take(&mut self.sources);
        let mut known: Vec<_> = former.into_iter().map(Some).collect();
        self.sources = services
            .pools()
            .iter()
            .map(|own| {
                let is_it = |source: &&mut Option<Source>| {
                    source.as_ref().is_some_and(|source| (source.address, source.vlan) == (own.address, own.vlan))
                };
                known.iter_mut().find(is_it).and_then(Option::take).unwrap_or_else(|| Source {
                    address: own.address,
                    vlan: own.vlan,
                    ended: vec![0; PORTS as usize],
                    next: first(&own.address) as u32 % PORTS,
                })
            })
            .collect();
    }

    /// An address of this pool, and a port of it that has rested and `is_free`, if one is found.
    pub fn take(&mut self, pool: &[u16], now: Instant, is_free: impl Fn(&Addr, u16) -> bool) -> Option<(u16, u16)> {
        for _ in 0..TRIED {
            self.turn = (self.turn + 1) % pool.len().max(1);
            let number = *pool.get(self.turn)?;
            let source = self.sources.get_mut(usize::from(number))?;
            let at = source.next;
            source.next = (at + 1) % PORTS;
            let port = (FIRST + at) as u16;
            let ended = source.ended[at as usize];
            let has_rested = ended == 0 || u64::from(second(now).wrapping_sub(ended)) >= REST.as_secs();
            if has_rested && is_free(&source.address, port) {
                return Some((number, port));
            }
        }
        None
    }

    /// The connection of a port of an address, if it is one of these, has ended.
    pub fn note_end(&mut self, address: &Addr, vlan: u16, port: u16) {
        let now = self.now;
        let found = self.sources.iter_mut().find(|source| source.address == *address && source.vlan == vlan);
        if let (Some(source), Some(at)) = (found, u32::from(port).checked_sub(FIRST)) {
            source.ended[at as usize] = second(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Reach, ServiceConfig};
    use std::collections::HashSet;

    #[test]
    fn a_port_is_taken_again_only_when_it_has_rested_and_all_others_had_their_turn() {
        let address = |last| [0, 0, 0xffff, last];
        let pool = vec![address(2), address(3)];
        let services =
            Services::new(&[ServiceConfig { reach: Reach::Full, pool, ..ServiceConfig::at(address(1), 80) }]);
        let mut ports = SourcePorts::default();
        ports.set(&services, |_| 70_000);
        let start = Instant::from_secs(65_536 - 60);
        ports.now = start;
        let mut seen = HashSet::new();
        while let Some(taken) = ports.take(&[0, 1], start, |_, port| port != 5000) {
            assert!(taken.1 >= 1024 && taken.1 != 5000);
            if !seen.insert(taken) {
                panic!("{taken:?} twice");
            }
            ports.note_end(&address(2 + u32::from(taken.0)), 0, taken.1);
        }
        assert_eq!(seen.len(), 2 * (PORTS as usize - 1));
        // The configuration is read again: they rest still.
        ports.set(&services, |_| 0);
        assert_eq!(ports.take(&[0], start + (REST - Duration::from_secs(1)), |_, _| true).map(|taken| taken.1), None);
        assert!(ports.take(&[0, 1], start + REST, |_, _| true).is_some(), "the clock's circle begins anew meanwhile");
    }
}
