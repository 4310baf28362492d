//! Services: the box owns an address, reads the first bytes of a connection to it, and chooses the server by what they say.
//!
//! Here is what is pure of it: parsers that say which name a client asks for ([`tls`], [`http`] of either version), the header of the PROXY protocol, written and read
//! ([`proxy_header`]), names and the patterns they are compared with ([`names`]), and the table of services that the operator wants
//! ([`Services`]). A parser gets all bytes that have come in order so far, and is called again when there are more. It keeps nothing, allocates
//! nothing, and looks at each byte a bounded number of times, so that a client cannot make it work longer than its bytes are long.
//!
//! Who calls whom: `policy` makes [`Services`] of the configuration; `proxy::service` gathers a client's bytes ([`crate::cache::gathered`]), asks
//! [`Service::read`] and [`Service::route`], and connects to the server; `proxy::neighbours` answers and asks for Ethernet addresses.

pub mod access;
pub mod http;
mod http2;
pub mod names;
pub mod negotiation;
pub mod proxy_header;
pub mod tls;

use crate::Side;
use crate::config::{Balance, HealthCheck, Network, Protocol, ProxyHeader, Reach, ServiceConfig, ServiceServer};
use crate::wire::{Addr, Mac};
use access::Access;
use core::time::Duration;
use names::{Name, Patterns, Protocols};
use negotiation::Language;

/// What a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The name, if it has one.
    pub name: Option<Name>,
    /// Which of the protocols that routes ask for it offers, by their bits ([`Protocols`]).
    pub offers: u64,
}

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "it lives for one call, and a box would be an allocation")]
pub enum Reading {
    /// Too little to tell; more may come.
    More,
    /// The client asks for this.
    Asks(Asked),
    /// They are not of the protocol that is expected, or too long to be read.
    Other,
}

/// Why there is no request.
enum NoRequest {
    /// It is not there as a whole.
    More,
    /// It is none.
    Other,
}

impl Protocol {
    /// What these first bytes of a connection say, of which there can be `most`. `fresh` of them have come since the last time; `known` are the protocols
    /// that routes ask for.
    pub fn read(self, bytes: &[u8], fresh: usize, most: usize, known: &Protocols) -> Reading {
        match self {
            Protocol::Tls => tls::read(bytes, most, known),
            Protocol::Http => http::read(bytes, fresh, most),
            // What these say is a conversation: see `language`.
            Protocol::Socks | Protocol::Connect => Reading::Other,
        }
    }

    /// The language in which clients say where they want to go, if they do.
    pub fn language(self) -> Option<Language> {
        match self {
            Protocol::Tls | Protocol::Http => None,
            Protocol::Socks => Some(Language::Socks),
            Protocol::Connect => Some(Language::Connect),
        }
    }
}

/// A server of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number among all servers ([`Services::servers`]).
    pub server: u16,
    /// How many connections it gets in comparison with the others; none anew, if 0.
    pub weight: u16,
    /// A number that follows from its address and port alone.
    seed: u64,
}

impl Member {
    fn new(server: u16, &ServiceServer { address, port, weight }: &ServiceServer) -> Self {
        let seed = address.iter().fold(mix(port.into()), |seed, &word| mix(seed ^ u64::from(word)));
        Self { server, weight, seed }
    }
}

/// What the choice among the members of a group depends on.
pub struct Choice<'a> {
    /// A hash of the connection.
    pub connection: u64,
    /// A keyed hash of the client's address.
    pub client: u64,
    /// How well a server can be used: only members of the highest rank are chosen.
    pub rank: &'a dyn Fn(u16) -> u8,
    /// How many connections a server has.
    pub load: &'a dyn Fn(u16) -> u32,
    /// Whether a server gets no connections anew.
    pub is_drained: &'a dyn Fn(u16) -> bool,
}

/// Servers among which connections are divided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    members: Vec<Member>,
    balance: Balance,
}

impl Group {
    /// The member for a connection; `None` if all have the weight 0 or are drained, or there is none.
    pub fn choose(&self, choice: &Choice<'_>) -> Option<Member> {
        let takes = |member: &&Member| member.weight > 0 && !(choice.is_drained)(member.server);
        let best = self.members.iter().filter(takes).map(|member| (choice.rank)(member.server)).max()?;
        let usable = || self.members.iter().filter(takes).filter(|member| (choice.rank)(member.server) == best);
        // The upper half of a product depends on all bits of the hash.
        let below = |most: u64| {
            ((u128::from(choice.connection.wrapping_mul(0x9e37_79b9_7f4a_7c15)) * u128::from(most)) >> 64) as u64
        };
        match self.balance {
            Balance::Weighted => {
                let mut left = below(usable().map(|member| u64::from(member.weight)).sum());
                usable().copied().find(|member| match left.checked_sub(member.weight.into()) {
                    Some(rest) => {
                        left = rest;
                        false
                    }
                    None => true,
                })
            }
            Balance::Least => {
                let share = |member: &Member, other: &Member| {
                    let load = |member: &Member| u64::from((choice.load)(member.server));
                    (load(member) * u64::from(other.weight)).cmp(&(load(other) * u64::from(member.weight)))
                };
                let least = usable().min_by(|member, other| share(member, other))?;
                // Of several with as few, any.
                let alike = || usable().filter(|member| share(member, least).is_eq());
                alike().nth(below(alike().count() as u64) as usize).copied()
            }
            // Rendezvous hashing with weights: a server that comes or goes takes or leaves the clients of its own share alone.
            Balance::Hash => usable().copied().max_by(|member, other| {
                let score = |member: &Member| {
                    let mixed = mix(choice.client ^ member.seed);
                    // From 0 to 1, without either.
                    let fraction = ((mixed >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
                    -f64::from(member.weight) / fraction.ln()
                };
                score(member).total_cmp(&score(other))
            }),
        }
    }

    /// Its members.
    pub fn members(&self) -> &[Member] {
        &self.members
    }
}

/// Spreads the bits of a number over all bits.
fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number ^ number >> 32
}

/// A server of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its address; an IPv4 address in its IPv6-mapped form.
    pub address: Addr,
    /// Its port.
    pub port: u16,
    /// Whether its address is IPv6.
    pub v6: bool,
    /// Its VLAN, by the identifier of the tag; 0 without one.
    pub vlan: u16,
    /// Whose Ethernet address its frames bear: the number of its own address, or that of a router ([`Services::next_hops`]).
    pub next_hop: u16,
    /// The side it is on.
    pub side: Side,
    /// The address of the box that asks whether it accepts connections, and its Ethernet address.
    pub asker: (Addr, Mac),
    /// The address at which it is asked: where its clients are sent, so the service's where it has that itself ([`Reach::Mac`]).
    pub asked: Addr,
    /// How often it is asked, if at all.
    pub check: Option<HealthCheck>,
}

/// A route for clients that offer one of some protocols.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Offered {
    /// The bits of the protocols.
    protocols: u64,
    /// The names, if it is for some alone.
    names: Option<Patterns>,
    /// Its group.
    group: u32,
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
    /// How servers are reached.
    pub reach: Reach,
    /// Whether its clients may be on the LAN too.
    pub of_lan: bool,
    /// The side its servers are on.
    pub side: Side,
    /// The addresses that take the place of clients', by their numbers ([`Services::pools`]); none if these are kept.
    pub pool: Vec<u16>,
    /// Who may go where, of clients that say where they want to go.
    pub access: Access,
    /// The number of the router to the servers of such clients, which no configuration names.
    pub router: Option<u16>,
    proxies: Vec<Network>,
    protocols: Protocols,
    /// Routes for clients that offer a protocol, in their order.
    offered: Vec<Offered>,
    patterns: Patterns,
    groups: Vec<Group>,
    default: Group,
}

impl Service {
    /// Whether connections of this address begin with the header of the PROXY protocol.
    pub fn trusts(&self, address: &Addr) -> bool {
        self.proxies.iter().any(|network| network.covers(address))
    }

    /// What these first bytes of a connection say, behind a header: see [`Protocol::read`].
    pub fn read(&self, bytes: &[u8], fresh: usize, most: usize) -> Reading {
        self.protocol.read(bytes, fresh, most, &self.protocols)
    }

    /// The servers for a client that asks for this; `None` if there are none for it. A route for protocols counts before those for names alone.
    pub fn route(&self, asked: &Asked) -> Option<&Group> {
        let is_for = |route: &&Offered| {
            let names =
                || route.names.as_ref().is_none_or(|names| asked.name.is_some_and(|name| names.find(&name).is_some()));
            route.protocols & asked.offers != 0 && names()
        };
        let offered = self.offered.iter().find(is_for).map(|route| route.group);
        let group = offered.or_else(|| self.patterns.find(asked.name.as_ref()?));
        group.and_then(|group| self.groups.get(group as usize)).or_else(|| self.default())
    }

    /// Its servers, each once.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        let mut members: Vec<Member> = Vec::new();
        for member in self.groups.iter().chain([&self.default]).flat_map(Group::members) {
            match members.iter_mut().find(|own| own.server == member.server) {
                Some(own) => own.weight = own.weight.max(member.weight),
                None => members.push(*member),
            }
        }
        members.into_iter()
    }

    /// The servers for clients that ask for nothing that is known, if there are any.
    pub fn default(&self) -> Option<&Group> {
        Some(&self.default).filter(|group| !group.members.is_empty())
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
    /// The side it is on.
    pub side: Side,
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
    servers: Vec<Server>,
    pools: Vec<Owned>,
    any_turned: bool,
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
            services.any_turned |= service.of_lan || service.side == Side::Wan;
            services.all.push(service);
        }
        services
    }

    fn service(&mut self, config: &ServiceConfig) -> Service {
        let &ServiceConfig { address, port, vlan, protocol, header, patience, reach, balance, of_lan, side, .. } =
            config;
        let v6 = !is_mapped(&address);
        let mac = self.own(address, vlan, config.mac);
        let pool: Vec<u16> = match (reach, &config.pool[..]) {
            (Reach::Full, []) => vec![self.pool(address, vlan)],
            (Reach::Full, pool) => pool.iter().map(|&address| self.pool(address, vlan)).collect(),
            _ => Vec::new(),
        };
        // Servers that have the service's address themselves do not answer a question in its name.
        let asker = match config.pool.first() {
            Some(&own) => (own, self.own(own, vlan, None)),
            None => (address, mac),
        };
        let mut group = |servers: &[ServiceServer]| Group {
            members: servers
                .iter()
                .map(|own| {
                    let &ServiceServer { address, port, .. } = own;
                    let hop = config.next_hop.unwrap_or(address);
                    let next_hop = self.next_hop(NextHop { address: hop, v6, vlan, side, asker });
                    let asked = if reach == Reach::Mac { config.address } else { address };
                    let check = config.check;
                    let server = Server { address, port, v6, vlan, next_hop, side, asker, asked, check };
                    Member::new(self.server(server), own)
                })
                .collect(),
            balance,
        };
        let groups: Vec<_> = config.routes.iter().map(|route| group(&route.servers)).collect();
        let default = group(&config.default);
        let asks = protocol.asks_for_place();
        let router = config.next_hop.filter(|_| asks);
        let router = router.map(|hop| self.next_hop(NextHop { address: hop, v6, vlan, side, asker }));
        let plain = || config.routes.iter().zip(0..).filter(|(route, _)| route.alpn.is_empty());
        let named = plain().flat_map(|(route, n)| route.names.iter().map(move |name| (name, n)));
        let patterns = Patterns::new(named.map(|(name, n)| (name.as_str(), n)));
        let mut protocols = Protocols::default();
        let mut offered = Vec::new();
        for (route, group) in config.routes.iter().zip(0..).filter(|(route, _)| !route.alpn.is_empty()) {
            let names = Patterns::new(route.names.iter().map(|name| (name.as_str(), group)));
            let names = Some(names).filter(|_| !route.names.is_empty());
            let bits = route.alpn.iter().fold(0, |bits, protocol| bits | protocols.add(protocol.as_bytes()));
            offered.push(Offered { protocols: bits, names, group });
        }
        // One that is for some names counts before one that is for all.
        offered.sort_by_key(|route| route.names.is_none());
        Service {
            address,
            port,
            v6,
            vlan,
            mac,
            protocol,
            header,
            patience,
            reach,
            of_lan,
            side,
            pool,
            access: Access::new(&config.users, &config.allow),
            router,
            proxies: config.proxies.clone(),
            protocols,
            offered,
            patterns,
            groups,
            default,
        }
    }

    /// Notes an address of the box, and returns the Ethernet address at which the box has it.
    fn own(&mut self, address: Addr, vlan: u16, mac: Option<Mac>) -> Mac {
        if let Some(known) = self.owned.iter().find(|owned| (owned.address, owned.vlan) == (address, vlan)) {
            return known.mac;
        }
        let mac = mac.unwrap_or_else(|| default_mac(&address));
        self.owned.push(Owned { address, v6: !is_mapped(&address), vlan, mac });
        mac
    }

    /// The number of this address of a pool.
    fn pool(&mut self, address: Addr, vlan: u16) -> u16 {
        let mac = self.own(address, vlan, None);
        number_of(&mut self.pools, Owned { address, v6: !is_mapped(&address), vlan, mac }, |own, other| {
            (own.address, own.vlan) == (other.address, other.vlan)
        })
    }

    /// The number of this server.
    fn server(&mut self, server: Server) -> u16 {
        let number = number_of(&mut self.servers, server, |own, other| {
            (own.address, own.port, own.vlan) == (other.address, other.port, other.vlan)
        });
        // One service that asks is enough.
        let known = &mut self.servers[usize::from(number)];
        if known.check.is_none() && server.check.is_some() {
            (known.check, known.asker, known.asked) = (server.check, server.asker, server.asked);
        }
        number
    }

    /// The number of this next hop.
    fn next_hop(&mut self, hop: NextHop) -> u16 {
        number_of(&mut self.next_hops, hop, |own, other| {
            (own.address, own.vlan, own.side) == (other.address, other.vlan, other.side)
        })
    }

    /// Whether there is none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether a service has clients on the LAN or servers on the WAN.
    #[inline(always)]
    pub fn any_turned(&self) -> bool {
        self.any_turned
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

    /// All servers, each once.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// The addresses of the box that take the place of clients', each once.
    pub fn pools(&self) -> &[Owned] {
        &self.pools
    }

    /// The box's address that is this one, on this VLAN.
    pub fn owner(&self, address: &Addr, vlan: u16) -> Option<&Owned> {
        self.owned.iter().find(|owned| owned.address == *address && owned.vlan == vlan)
    }
}

/// The place of an element in a list, which it is added to if none is alike.
fn number_of<T>(list: &mut Vec<T>, element: T, is_alike: impl Fn(&T, &T) -> bool) -> u16 {
    let found = list.iter().position(|own| is_alike(own, &element));
    let at = found.unwrap_or_else(|| {
        list.push(element);
        list.len() - 1
    });
    at as u16
}

/// Whether this is an IPv4 address in its IPv6-mapped form.
pub fn is_mapped(address: &Addr) -> bool {
    matches!(address, [0, 0, 0xffff, _])
}

#[cfg(test)]
mod tests;
