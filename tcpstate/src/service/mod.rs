//! Services: the box owns an address, reads the first bytes of a connection to it, and chooses the server by what they say.
//!
//! Here is what is pure of it: parsers that say which name a client asks for ([`tls`], [`http`]), the header of the PROXY protocol
//! ([`proxy_header`]), names and the patterns they are compared with ([`names`]), and the table of services that the operator wants
//! ([`Services`]). A parser gets all bytes that have come in order so far, and is called again when there are more. It keeps nothing, allocates
//! nothing, and looks at each byte a bounded number of times, so that a client cannot make it work longer than its bytes are long.
//!
//! Who calls whom: `policy` makes [`Services`] of the configuration; `proxy::service` gathers a client's bytes ([`crate::cache::gathered`]), asks
//! [`Protocol::read`] and [`Service::route`], and connects to the server; `proxy::neighbours` answers and asks for Ethernet addresses.

pub mod http;
pub mod names;
pub mod proxy_header;
pub mod tls;

use crate::config::{Protocol, ProxyHeader, ServiceConfig, ServiceServer};
use crate::wire::{Addr, Mac};
use core::time::Duration;
use names::{Name, Patterns};

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "it lives for one call, and a box would be an allocation")]
pub enum Reading {
    /// Too little to tell; more may come.
    More,
    /// The client asks for this name, or for none.
    Asks(Option<Name>),
    /// They are not of the protocol that is expected, or too long to be read.
    Other,
}

impl Protocol {
    /// What these first bytes of a connection say, of which there can be `most`. `fresh` of them have come since the last time.
    pub fn read(self, bytes: &[u8], fresh: usize, most: usize) -> Reading {
        match self {
            Protocol::Tls => tls::read(bytes, most),
            Protocol::Http => http::read(bytes, fresh, most),
        }
    }
}

/// A server of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its address; an IPv4 address in its IPv6-mapped form.
    pub address: Addr,
    /// Its port.
    pub port: u16,
    /// How many connections it gets in comparison with the others, at least 1.
    pub weight: u16,
    /// Whose Ethernet address its frames bear: its own address, or that of a router.
    pub next_hop: u16,
}

impl Server {
    fn of(config: &ServiceServer, next_hop: u16) -> Self {
        let &ServiceServer { address, port, weight } = config;
        Self { address, port, weight: weight.max(1), next_hop }
    }
}

/// Servers among which connections are divided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    servers: Vec<Server>,
}

impl Group {
    /// The server for a connection with this hash: of those that are `reachable`, by weight; of all if none is. `None` of an empty group.
    pub fn choose(&self, hash: u64, reachable: impl Fn(&Server) -> bool) -> Option<Server> {
        let any = self.servers.iter().any(&reachable);
        let may = |server: &&Server| !any || reachable(server);
        let all: u64 = self.servers.iter().filter(may).map(|server| u64::from(server.weight)).sum();
        // The upper half of a product depends on all bits of the hash.
        let mut left = ((u128::from(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)) * u128::from(all)) >> 64) as u64;
        for server in self.servers.iter().filter(may) {
            match left.checked_sub(server.weight.into()) {
                Some(rest) => left = rest,
                None => return Some(*server),
            }
        }
        None
    }

    /// Its servers.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }
}

/// An address and a port that the box owns, and where connections to it go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The address; an IPv4 address in its IPv6-mapped form.
    pub address: Addr,
    /// The port.
    pub port: u16,
    /// Whether the address is IPv6.
    pub v6: bool,
    /// The VLAN, by the identifier of its tag; 0 without a tag.
    pub vlan: u16,
    /// The Ethernet address at which the box has it.
    pub mac: Mac,
    /// What clients are expected to speak.
    pub protocol: Protocol,
    /// What a server's connection begins with.
    pub header: ProxyHeader,
    /// How long a client may take to say what it asks for.
    pub patience: Duration,
    patterns: Patterns,
    groups: Vec<Group>,
    default: Group,
}

impl Service {
    /// The servers for a client that asks for `name`, or for none; `None` if there are none for it.
    pub fn route(&self, name: Option<&Name>) -> Option<&Group> {
        let group = name.and_then(|name| self.patterns.find(name)).and_then(|group| self.groups.get(group as usize));
        group.or_else(|| self.default())
    }

    /// The server at this address and port, if the service has it.
    pub fn server(&self, address: &Addr, port: u16) -> Option<&Server> {
        let all = self.groups.iter().chain([&self.default]).flat_map(|group| &group.servers);
        all.into_iter().find(|server| server.address == *address && server.port == port)
    }

    /// The servers for clients that ask for nothing that is known, if there are any.
    pub fn default(&self) -> Option<&Group> {
        Some(&self.default).filter(|group| !group.servers.is_empty())
    }
}

/// An address whose Ethernet address the box has to know to reach servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The address.
    pub address: Addr,
    /// Whether it is IPv6.
    pub v6: bool,
    /// The VLAN it is asked for in.
    pub vlan: u16,
    /// The address of the box in whose name it is asked for, and at which Ethernet address the box has that.
    pub asker: (Addr, Mac),
}

/// An address of the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// The address.
    pub address: Addr,
    /// Whether it is IPv6.
    pub v6: bool,
    /// The VLAN, 0 without a tag.
    pub vlan: u16,
    /// The Ethernet address at which the box has it.
    pub mac: Mac,
}

/// All services, as the operator wants them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    all: Vec<Service>,
    next_hops: Vec<NextHop>,
    owned: Vec<Owned>,
}

/// The Ethernet address of an address of the box for which none is given: administered locally (IEEE 802), and the same on each box with that
/// address, so that one that takes another's place has it too.
pub fn default_mac(address: &Addr) -> Mac {
    let mixed = address.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &word| {
        (hash ^ u64::from(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29)
    });
    let [a, b, c, d, e, ..] = mixed.to_be_bytes();
    [0x02, a, b, c, d, e]
}

impl Services {
    /// Those of a configuration.
    pub fn new(configs: &[ServiceConfig]) -> Self {
        let mut services = Self::default();
        for config in configs {
            let service = services.service(config);
            services.all.push(service);
        }
        services
    }

    fn service(&mut self, config: &ServiceConfig) -> Service {
        let &ServiceConfig { address, port, vlan, protocol, header, patience, .. } = config;
        let v6 = !is_mapped(&address);
        let known = self.owned.iter().find(|owned| (owned.address, owned.vlan) == (address, vlan));
        let mac = config.mac.or(known.map(|owned| owned.mac)).unwrap_or_else(|| default_mac(&address));
        if known.is_none() {
            self.owned.push(Owned { address, v6, vlan, mac });
        }
        let mut group = |servers: &[ServiceServer]| Group {
            servers: servers
                .iter()
                .map(|server| {
                    let hop = config.next_hop.unwrap_or(server.address);
                    let hop = NextHop { address: hop, v6, vlan, asker: (address, mac) };
                    Server::of(server, self.next_hop(hop))
                })
                .collect(),
        };
        let groups = config.routes.iter().map(|route| group(&route.servers)).collect();
        let default = group(&config.default);
        let named = config.routes.iter().zip(0..).flat_map(|(route, n)| route.names.iter().map(move |name| (name, n)));
        let patterns = Patterns::new(named.map(|(name, n)| (name.as_str(), n)));
        Service { address, port, v6, vlan, mac, protocol, header, patience, patterns, groups, default }
    }

    /// The number of this next hop.
    fn next_hop(&mut self, hop: NextHop) -> u16 {
        let found = self.next_hops.iter().position(|own| (own.address, own.vlan) == (hop.address, hop.vlan));
        let at = found.unwrap_or_else(|| {
            self.next_hops.push(hop);
            self.next_hops.len() - 1
        });
        at as u16
    }

    /// Whether there is none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The service with this number.
    pub fn get(&self, number: u16) -> Option<&Service> {
        self.all.get(usize::from(number))
    }

    /// All of them, in the order of the configuration.
    pub fn all(&self) -> &[Service] {
        &self.all
    }

    /// The addresses of the box, each once.
    pub fn owned(&self) -> &[Owned] {
        &self.owned
    }

    /// The addresses that servers are reached by, each once.
    pub fn next_hops(&self) -> &[NextHop] {
        &self.next_hops
    }

    /// The box's address that is this one, on this VLAN.
    pub fn owner(&self, address: &Addr, vlan: u16) -> Option<&Owned> {
        self.owned.iter().find(|owned| owned.address == *address && owned.vlan == vlan)
    }
}

/// Whether this is an IPv4 address in its IPv6-mapped form.
pub fn is_mapped(address: &Addr) -> bool {
    matches!(address, [0, 0, 0xffff, _])
}

#[cfg(test)]
mod tests;
