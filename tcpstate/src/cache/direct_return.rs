//! Servers whose answers do not cross the box (direct server return): the box can answer for them, but never learns whether they have answered it.
//!
//! What tells them from servers that are down is their clients: a client that got the server's own SYN-ACK acknowledges it, or challenges it because it
//! contradicts ours, and that does cross the box, a second and more after the server's SYN, while nothing at all comes from the server.

use crate::wire::{Addr, FlowKey, Vlan};

/// Servers remembered: with evidence, or found.
const SERVERS: usize = 64;

/// Connections in a row that speak for it, with no answer in between, before a server counts as one that answers another way.
const EVIDENCE: u8 = 4;

#[derive(Clone, Copy, Default)]
struct Server {
    address: Addr,
    vlan: Vlan,
    port: u16,
    /// How many connections speak for it; zero in a free place.
    evidence: u8,
    /// The keyed hash of the last of them, which counts once.
    last: u64,
    /// Its SYNs are to pass.
    is_bypassed: bool,
}

impl Server {
    fn is_at(&self, key: &FlowKey) -> bool {
        self.evidence > 0 && self.address == key.lan && self.port == key.lan_port && self.vlan == key.vlan
    }
}

/// See the module.
#[derive(Clone)]
pub struct DirectReturns {
    servers: Box<[Server; SERVERS]>,
    /// How many places are in use, and how many hold a server whose SYNs pass.
    used: usize,
    bypassed: usize,
    /// The place to be given up next.
    next: usize,
}

impl DirectReturns {
    /// Nothing is known of any server.
    pub fn new() -> Self {
        Self { servers: Box::new([Server::default(); SERVERS]), used: 0, bypassed: 0, next: 0 }
    }

    /// Whether SYNs of any server pass.
    #[inline(always)]
    pub fn any_bypassed(&self) -> bool {
        self.bypassed > 0
    }

    /// Whether SYNs of this server pass.
    pub fn is_bypassed(&self, key: &FlowKey) -> bool {
        self.any_bypassed() && self.servers.iter().any(|server| server.is_bypassed && server.is_at(key))
    }

    /// A connection with this keyed hash speaks for its server's answering another way. Returns whether it is found to, for the first time.
    pub fn note(&mut self, key: &FlowKey, hash: u64) -> bool {
        let at = self.servers.iter().position(|server| server.is_at(key)).unwrap_or_else(|| {
            let free = self.servers.iter().position(|server| server.evidence == 0);
            let at = free.unwrap_or(self.next);
            self.next = (at + 1) % SERVERS;
            self.clear(at);
            self.used += 1;
            self.servers[at] = Server { address: key.lan, vlan: key.vlan, port: key.lan_port, ..Server::default() };
            at
        });
        let server = &mut self.servers[at];
        if server.evidence == EVIDENCE || server.evidence > 0 && server.last == hash {
            return false;
        }
        server.evidence += 1;
        server.last = hash;
        server.evidence == EVIDENCE
    }

    /// The server is known to answer another way; its SYNs pass from now on if `bypass` says so.
    pub fn found(&mut self, key: &FlowKey, bypass: bool) {
        while !self.is_found(key) {
            // Each hash is another's.
            let hash = self.servers.iter().find(|server| server.is_at(key)).map_or(0, |server| !server.last);
            self.note(key, hash);
        }
        for server in self.servers.iter_mut().filter(|server| server.is_at(key)) {
            self.bypassed += usize::from(bypass && !server.is_bypassed);
            server.is_bypassed |= bypass;
        }
    }

    /// Whether the server is found to answer another way.
    pub fn is_found(&self, key: &FlowKey) -> bool {
        self.servers.iter().any(|server| server.is_at(key) && server.evidence == EVIDENCE)
    }

    /// The server has answered through the box.
    #[inline(always)]
    pub fn answered(&mut self, key: &FlowKey) {
        if self.used > 0 {
            self.forget(key);
        }
    }

    #[inline(never)]
    fn forget(&mut self, key: &FlowKey) {
        if let Some(at) = self.servers.iter().position(|server| server.is_at(key)) {
            self.clear(at);
        }
    }

    fn clear(&mut self, at: usize) {
        let server = core::mem::take(&mut self.servers[at]);
        self.used -= usize::from(server.evidence > 0);
        self.bypassed -= usize::from(server.is_bypassed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey { lan: [0, 0, 0xffff, 7], lan_port: port, ..FlowKey::default() }
    }

    #[test]
    fn a_server_is_found_after_four_connections_and_forgotten_with_its_first_answer() {
        let mut servers = DirectReturns::new();
        assert_eq!([1, 1, 2, 2, 3].map(|hash| servers.note(&key(80), hash)), [false; 5]);
        assert!(servers.note(&key(80), 4) && !servers.note(&key(80), 5), "it is found once");
        assert!(!servers.is_bypassed(&key(80)));
        servers.found(&key(80), true);
        assert!(servers.is_bypassed(&key(80)) && !servers.is_bypassed(&key(81)));
        servers.answered(&key(80));
        assert!(!servers.any_bypassed() && !servers.is_bypassed(&key(80)));
        assert_eq!([1, 2, 3].map(|hash| servers.note(&key(80), hash)), [false; 3], "it begins anew");
    }

    #[test]
    fn what_another_worker_has_found_holds_at_once() {
        let mut servers = DirectReturns::new();
        servers.found(&key(80), false);
        assert!(!servers.any_bypassed());
        servers.found(&key(80), true);
        assert!(servers.is_bypassed(&key(80)));
    }

    #[test]
    fn a_scan_displaces_and_never_overflows() {
        let mut servers = DirectReturns::new();
        for port in 0..1000 {
            servers.found(&key(port), port % 2 == 0);
        }
        assert_eq!((servers.used, servers.bypassed), (SERVERS, SERVERS / 2));
        assert!(servers.is_bypassed(&key(998)) && !servers.is_bypassed(&key(0)));
        (0..1000).for_each(|port| servers.answered(&key(port)));
        assert_eq!((servers.used, servers.bypassed), (0, 0));
    }
}
