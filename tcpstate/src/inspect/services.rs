//! What is known of services and their servers, for an operator to read. Decides nothing.

use crate::cache::backends::ServiceCounts;
use crate::config::{Protocol, Reach};
use crate::proxy::Proxy;
use crate::wire::Addr;

/// A server of a service, as one worker knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerStatus {
    /// Its address.
    pub address: Addr,
    /// Its port.
    pub port: u16,
    /// Whether its address is IPv6.
    pub v6: bool,
    /// How many connections it gets in comparison with others; none anew, if 0.
    pub weight: u16,
    /// Whether it accepts connections, as far as it is asked.
    pub is_up: bool,
    /// Whether it is asked.
    pub is_checked: bool,
    /// Whether it gets none anew by command.
    pub is_drained: bool,
    /// Whether its Ethernet address is known, or that of the router to it.
    pub is_known: bool,
    /// Connections it has from here, of all services.
    pub connections: u32,
    /// Connections it was given since the start, of all services.
    pub given: u64,
}

/// A service, as one worker knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Its address.
    pub address: Addr,
    /// Its port.
    pub port: u16,
    /// Whether its address is IPv6.
    pub v6: bool,
    /// Its VLAN; 0 without a tag.
    pub vlan: u16,
    /// What its clients speak.
    pub protocol: Protocol,
    /// How its servers are reached.
    pub reach: Reach,
    /// What became of its clients.
    pub counts: ServiceCounts,
    /// Its servers, each once.
    pub servers: Vec<ServerStatus>,
}

impl Proxy {
    /// The services of the present policy, in its order.
    pub fn service_status(&self) -> Vec<ServiceStatus> {
        let services = &self.settings.policy.services;
        let (backends, neighbours) = (&self.caches.backends, &self.caches.neighbours);
        let all = (0..).map_while(|number| Some((number, services.get(number)?)));
        all.map(|(number, service)| {
            let servers = service.members().filter_map(|member| {
                let (server, slot) =
                    (services.servers().get(usize::from(member.server))?, backends.slot(member.server));
                Some(ServerStatus {
                    address: server.address,
                    port: server.port,
                    v6: server.v6,
                    weight: member.weight,
                    is_up: backends.is_up(slot),
                    is_checked: server.check.is_some(),
                    is_drained: backends.is_drained(slot),
                    is_known: neighbours.mac(server.next_hop).is_some(),
                    connections: backends.connections(slot),
                    given: backends.given(slot),
                })
            });
            ServiceStatus {
                address: service.address,
                port: service.port,
                v6: service.v6,
                vlan: service.vlan,
                protocol: service.protocol,
                reach: service.reach,
                counts: backends.counts(number),
                servers: servers.collect(),
            }
        })
        .collect()
    }

    /// From now on a server gets no connections anew, or gets some again, whatever the configuration says; false if no service has it.
    pub fn drain_server(&mut self, address: &Addr, port: u16, drained: bool) -> bool {
        self.caches.backends.drain(address, port, drained)
    }
}
