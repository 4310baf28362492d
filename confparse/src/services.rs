//! A block of `services`: its keys, and servers, routes and Ethernet addresses as text and as the engine has them.

use crate::keys::{Key, Takes};
use crate::servers::Servers;
use crate::{Value, quoted, servers};
use core::net::IpAddr;
use core::time::Duration;
use tcpstate::Side;
use tcpstate::config::{
    Allowance, AllowedHost, AllowedPlace, Balance, Handshake, HealthCheck, Network, Protocol, ProxyHeader, Reach,
    ServiceConfig, ServiceRoute, ServiceServer, ServiceUser,
};
use tcpstate::service::{default_mac, is_mapped, names};
use tcpstate::wire::{Addr, Mac};

/// The most services, routes of one, names or servers of a route, and servers of all together.
pub(crate) const MOST: usize = 256;
const MOST_ROUTES: usize = 10_000;
const MOST_SERVERS: usize = 64;
const MOST_POOL: usize = 16;
const MOST_PROXIES: usize = 64;
const MOST_ALLOWED: usize = 1000;
const MOST_USERS: usize = 1000;
/// What a protocol is written behind, among the names of a route.
const ALPN: &str = "alpn:";
/// How long a client may take unless a block says otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

const fn key(name: &'static str, takes: Takes, unit: &'static str, help: &'static str) -> Key {
    Key { section: None, name, takes, unit, help, idle: None, set: |_, _| (), get: |_| None }
}

const SERVERS: &str = "`\"192.0.2.10:443\"`, with `*3` behind it for three times as many connections";

/// The keys of a block.
pub(crate) static KEYS: [Key; 21] = [
    key("address", Takes::Address, "", "the address that the box owns"),
    key("port", Takes::Number { min: 1, max: 65535 }, "", "its port"),
    key("vlan", Takes::Number { min: 0, max: 4094 }, "", "the VLAN of its clients and servers, 0 without a tag"),
    key("mac", Takes::Texts("`\"02:00:5e:00:00:01\"`"), "", "the Ethernet address at which the box has it"),
    key("protocol", Takes::Word(&["tls", "http", "socks", "connect"]), "", "what clients speak"),
    key("proxy", Takes::Word(&["none", "v1", "v2"]), "", "the header of the PROXY protocol that servers get"),
    key(
        "proxy_from",
        Takes::Texts("`\"192.0.2.0/24\"`"),
        "",
        "networks of proxies whose connections begin with a header of the PROXY protocol",
    ),
    key(
        "allow",
        Takes::Texts("`\"10.0.0.0/8 = 192.0.2.0/24:80 *.example:443\"`"),
        "",
        "clients, and where they may go that say so themselves",
    ),
    key("users", Takes::Texts("`\"alice secret\"`"), "", "names and passwords, if clients must say who they are"),
    key(
        "routes",
        Takes::Texts("`\"a.example *.b.example = 192.0.2.10:443\"`"),
        "",
        "servers by name, and by protocol as `alpn:h2`",
    ),
    key("default", Takes::Texts(SERVERS), "", "servers for everything else"),
    key("next_hop", Takes::Address, "", "the router to the servers"),
    key(
        "patience",
        Takes::Number { min: 1, max: 3600 },
        "seconds",
        "how long a client may take to say what it asks for",
    ),
    key("reach", Takes::Word(&["nat", "mac", "full"]), "", "how servers are reached"),
    key(
        "pool",
        Takes::Texts("`\"192.0.2.200\"`"),
        "",
        "addresses of the box that stand for clients, with `reach = full`; in whose name it asks servers, with `reach = mac`",
    ),
    key("balance", Takes::Word(&["weighted", "least", "hash"]), "", "which of several servers gets a connection"),
    key(
        "check",
        Takes::Number { min: 0, max: 3600 },
        "seconds",
        "how often the box tries whether a server accepts connections; 0: never",
    ),
    key(
        "rise",
        Takes::Number { min: 1, max: 100 },
        "",
        "tries in succession that must succeed until a server is up again",
    ),
    key(
        "clients_on",
        Takes::Word(&["wan", "both"]),
        "",
        "where its clients are; on the LAN too with `reach = full` alone",
    ),
    key("servers_on", Takes::Word(&["lan", "wan"]), "", "where its servers are; on the WAN with `reach = full` alone"),
    key("fall", Takes::Number { min: 1, max: 100 }, "", "tries in succession that must fail until a server is down"),
];

/// What is wrong, and what would be right.
type Complaint = (String, String);

fn wrong<T>(message: impl Into<String>, expected: impl Into<String>) -> Result<T, Complaint> {
    Err((message.into(), expected.into()))
}

/// A block as it is read.
#[derive(Default)]
pub(crate) struct Draft {
    address: Option<Addr>,
    port: Option<u16>,
    vlan: u16,
    mac: Option<Mac>,
    protocol: Protocol,
    header: ProxyHeader,
    proxies: Vec<Network>,
    users: Vec<ServiceUser>,
    allow: Vec<Allowance>,
    routes: Vec<ServiceRoute>,
    default: Vec<ServiceServer>,
    next_hop: Option<Addr>,
    patience: Option<Duration>,
    reach: Reach,
    pool: Vec<Addr>,
    balance: Balance,
    check: u64,
    rise: Option<u8>,
    fall: Option<u8>,
    of_lan: bool,
    of_wan: bool,
}

/// How many tries it takes unless a block says otherwise.
const RISE: u8 = 2;
const FALL: u8 = 3;

impl Draft {
    /// Takes the value of a key.
    pub fn take(&mut self, name: &str, value: Value) -> Result<(), Complaint> {
        match (name, value) {
            ("address", Value::Address(address)) => self.address = Some(of_ip(address)),
            ("next_hop", Value::Address(address)) => self.next_hop = Some(of_ip(address)),
            ("port", Value::Number(port)) => self.port = u16::try_from(port).ok(),
            ("vlan", Value::Number(vlan)) => self.vlan = u16::try_from(vlan).unwrap_or_default(),
            ("patience", Value::Number(seconds)) => self.patience = Some(Duration::from_secs(seconds)),
            ("check", Value::Number(seconds)) => self.check = seconds,
            ("clients_on", Value::Word(word)) => self.of_lan = word == "both",
            ("servers_on", Value::Word(word)) => self.of_wan = word == "wan",
            ("rise", Value::Number(tries)) => self.rise = u8::try_from(tries).ok(),
            ("fall", Value::Number(tries)) => self.fall = u8::try_from(tries).ok(),
            ("reach", Value::Word(word)) => {
                self.reach = match word {
                    "mac" => Reach::Mac,
                    "full" => Reach::Full,
                    _ => Reach::Nat,
                };
            }
            ("balance", Value::Word(word)) => {
                self.balance = match word {
                    "least" => Balance::Least,
                    "hash" => Balance::Hash,
                    _ => Balance::Weighted,
                };
            }
            ("pool", Value::Texts(texts)) => {
                if texts.len() > MOST_POOL {
                    return wrong(format!("`pool` has {} addresses, and {MOST_POOL} is the most", texts.len()), "");
                }
                self.pool = texts.iter().map(|text| address(text)).collect::<Result<_, _>>()?;
            }
            ("protocol", Value::Word(word)) => {
                self.protocol = match word {
                    "http" => Protocol::Http,
                    "socks" => Protocol::Socks,
                    "connect" => Protocol::Connect,
                    _ => Protocol::Tls,
                };
            }
            ("proxy", Value::Word(word)) => {
                self.header = match word {
                    "v1" => ProxyHeader::V1,
                    "v2" => ProxyHeader::V2,
                    _ => ProxyHeader::None,
                };
            }
            ("users", Value::Texts(texts)) => {
                if texts.len() > MOST_USERS {
                    return wrong(format!("`users` has {} entries, and {MOST_USERS} is the most", texts.len()), "");
                }
                self.users = texts.iter().map(|text| user(text)).collect::<Result<_, _>>()?;
            }
            ("allow", Value::Texts(texts)) => {
                for text in texts {
                    self.allow.append(&mut allowances(&text)?);
                }
                let places: usize = self.allow.iter().map(|allowance| allowance.to.len()).sum();
                if places > MOST_ALLOWED {
                    let message = format!(
                        "`allow` has {places} places, counted for each network of clients, and {MOST_ALLOWED} is the most"
                    );
                    return wrong(message, "");
                }
            }
            ("proxy_from", Value::Texts(texts)) => {
                if texts.len() > MOST_PROXIES {
                    return wrong(
                        format!("`proxy_from` has {} networks, and {MOST_PROXIES} is the most", texts.len()),
                        "",
                    );
                }
                self.proxies = texts.iter().map(|text| network(text)).collect::<Result<_, _>>()?;
            }
            ("mac", Value::Texts(texts)) => match &texts[..] {
                [text] => self.mac = Some(mac(text)?),
                _ => {
                    return wrong("`mac` is one Ethernet address", "expected `{ \"02:00:5e:00:00:01\" }`, for example");
                }
            },
            ("default", Value::Texts(texts)) => self.default = servers(texts.iter().map(String::as_str))?,
            ("routes", Value::Texts(texts)) => {
                if texts.len() > MOST_ROUTES {
                    return wrong(format!("`routes` has {} entries, and {MOST_ROUTES} is the most", texts.len()), "");
                }
                self.routes = texts.iter().map(|text| route(text)).collect::<Result<_, _>>()?;
                let mut protocols: Vec<_> = self.routes.iter().flat_map(|route| &route.alpn).collect();
                protocols.sort_unstable();
                protocols.dedup();
                if protocols.len() > names::MOST_PROTOCOLS {
                    let message = format!(
                        "`routes` names {} protocols, and {} is the most",
                        protocols.len(),
                        names::MOST_PROTOCOLS
                    );
                    return wrong(message, "");
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The service.
    pub fn finish(self) -> Result<ServiceConfig, Complaint> {
        let Some(address) = self.address else {
            return wrong("this block does not say which address it is for", "expected `address = \"192.0.2.1\";`");
        };
        let Some(port) = self.port else {
            return wrong("this block does not say which port it is for", "expected `port = 443;`");
        };
        let Draft {
            vlan,
            mac,
            protocol,
            header,
            proxies,
            users,
            allow,
            routes,
            default,
            next_hop,
            reach,
            pool,
            balance,
            ..
        } = self;
        if protocol.asks_for_place() {
            if !(routes.is_empty() && default.is_empty()) || header != ProxyHeader::None || self.check > 0 {
                let message = "clients of this protocol say themselves which server they want";
                return wrong(message, "expected no `routes`, `default`, `proxy` and `check` beside it");
            }
            if allow.is_empty() {
                let message = "nobody may go anywhere through this service";
                return wrong(
                    message,
                    "expected `allow = { \"10.0.0.0/8 = 192.0.2.0/24:80 *.example:443\" };`, for example",
                );
            }
            if next_hop.is_none() {
                let message = "where clients say which server they want, servers are reached by a router";
                return wrong(message, "expected `next_hop = \"192.0.2.1\";`, for example");
            }
            if reach == Reach::Mac {
                let message = "servers that clients name do not have the service's address";
                return wrong(message, "expected `reach = nat;` or `reach = full;`");
            }
            let networks = allow.iter().map(|allowance| allowance.clients);
            let places = allow.iter().flat_map(|allowance| &allowance.to).filter_map(|place| match &place.host {
                AllowedHost::Network(network) => Some(*network),
                AllowedHost::Any | AllowedHost::Names(_) => None,
            });
            if networks.chain(places).any(|network| is_mapped(&network.address) != is_mapped(&address)) {
                let message = "a service, its clients and its servers have addresses of the same IP version";
                return wrong(message, "expected networks of that version in `allow`");
            }
        } else if !allow.is_empty() || !users.is_empty() {
            let message = "`allow` and `users` are for clients that say themselves which server they want";
            return wrong(message, "expected `protocol = socks;` or `protocol = connect;` beside them");
        }
        if !protocol.asks_for_place() && routes.is_empty() && default.is_empty() {
            let expected = "expected `routes`, or a `default`";
            return wrong("this service has no servers", expected);
        }
        if protocol != Protocol::Tls && routes.iter().any(|route| !route.alpn.is_empty()) {
            let message = "only clients of TLS say which protocols they offer";
            return wrong(message, "expected `protocol = tls;` beside `alpn:…` in `routes`");
        }
        if proxies.iter().any(|proxy| is_mapped(&proxy.address) != is_mapped(&address)) {
            let message = "a service and the proxies in front of it have addresses of the same IP version";
            return wrong(message, "expected networks of that version in `proxy_from`");
        }
        let all = || routes.iter().flat_map(|route| &route.servers).chain(&default);
        let others = all().map(|server| &server.address).chain(&next_hop).chain(&pool);
        if others.clone().any(|other| is_mapped(other) != is_mapped(&address)) {
            let message = "a service and its servers have addresses of the same IP version";
            return wrong(message, "expected a second block for the other version");
        }
        if pool.is_empty() && reach == Reach::Mac {
            let message = "with `reach = mac` the box asks servers in the name of an address of its own, as the service's is theirs too";
            return wrong(message, "expected `pool = { \"192.0.2.200\" };`, for example");
        }
        if !pool.is_empty() && reach == Reach::Nat {
            return wrong(
                "`pool` is for servers that are asked or connected in the box's own name",
                "expected `reach = full;` or `reach = mac;` beside it",
            );
        }
        if pool.iter().any(|own| all().any(|server| server.address == *own)) {
            return wrong("an address of `pool` is one of the servers' too", "expected two different addresses");
        }
        let side = if self.of_wan { Side::Wan } else { Side::Lan };
        if reach != Reach::Full && (self.of_lan || self.of_wan) {
            let message = "only servers that see the box answer to it from the WAN, or for clients of the LAN";
            return wrong(message, "expected `reach = full;` beside `clients_on = both;` or `servers_on = wan;`");
        }
        if reach == Reach::Mac && all().any(|server| server.port != port) {
            let message = "with `reach = mac` a server has the port of the service";
            return wrong(message, format!("expected port {port} behind each server"));
        }
        if others.clone().take(all().count() + usize::from(next_hop.is_some())).any(|other| *other == address) {
            return wrong("the address of the service is one of its servers' too", "expected two different addresses");
        }
        let patience = self.patience.unwrap_or(PATIENCE);
        let check = (self.check > 0).then(|| HealthCheck {
            every: Duration::from_secs(self.check),
            rise: self.rise.unwrap_or(RISE),
            fall: self.fall.unwrap_or(FALL),
        });
        Ok(ServiceConfig {
            vlan,
            mac,
            protocol,
            header,
            proxies,
            users,
            allow,
            routes,
            default,
            next_hop,
            patience,
            reach,
            pool,
            balance,
            check,
            of_lan: self.of_lan,
            side,
            ..ServiceConfig::at(address, port)
        })
    }
}

/// What two services may not have in common.
pub(crate) fn clash(others: &[ServiceConfig], service: &ServiceConfig) -> Option<String> {
    let alike = |other: &&ServiceConfig| (other.address, other.vlan) == (service.address, service.vlan);
    let mut others = others.iter().filter(alike);
    let mac = |service: &ServiceConfig| service.mac.unwrap_or_else(|| default_mac(&service.address));
    others.find_map(|other| {
        if other.port == service.port {
            return Some("this address and port are those of another service".to_owned());
        }
        (mac(other) != mac(service)).then(|| "this address has another `mac` in another block".to_owned())
    })
}

fn of_ip(address: IpAddr) -> Addr {
    let servers = Servers { network: address, prefix: if address.is_ipv4() { 32 } else { 128 }, port: None };
    servers.destination(Handshake::default()).address
}

fn server(text: &str) -> Result<ServiceServer, Complaint> {
    let (place, weight) = text.split_once('*').map_or((text, None), |(place, weight)| (place, Some(weight)));
    let named = |message: &str| format!("`{text}` {message}");
    let (server, _) = match Servers::read(place) {
        Ok(server) => server,
        Err(servers::Mistake { message, expected }) => return wrong(named(&message), expected),
    };
    let most = if server.network.is_ipv4() { 32 } else { 128 };
    let Some(port) = server.port.filter(|_| server.prefix == most) else {
        return wrong(named("is no server"), "expected an address and a port, as `\"192.0.2.10:443\"`");
    };
    let weight = match weight.map(str::parse::<u16>) {
        None => 1,
        Some(Ok(weight)) if weight <= 1000 => weight,
        Some(_) => return wrong(named("has no weight behind its `*`"), "expected a number from 0 to 1000"),
    };
    Ok(ServiceServer { address: of_ip(server.network), port, weight })
}

fn servers<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<ServiceServer>, Complaint> {
    let servers: Vec<_> = texts.map(server).collect::<Result<_, _>>()?;
    if servers.len() > MOST_SERVERS {
        return wrong(format!("there are {} servers, and {MOST_SERVERS} is the most", servers.len()), "");
    }
    Ok(servers)
}

fn route(text: &str) -> Result<ServiceRoute, Complaint> {
    let expected = "expected names, `=` and servers, as `\"a.example *.b.example = 192.0.2.10:443\"`";
    let Some((names, places)) = text.split_once('=') else {
        return wrong(format!("`{text}` is no route"), expected);
    };
    let (alpn, names): (Vec<&str>, Vec<&str>) = names.split_whitespace().partition(|word| word.starts_with(ALPN));
    let names: Vec<String> = names.into_iter().map(str::to_ascii_lowercase).collect();
    let alpn: Vec<String> = alpn.into_iter().map(|word| word[ALPN.len()..].to_owned()).collect();
    if let Some(protocol) = alpn.iter().find(|protocol| !names::is_protocol(protocol)) {
        return wrong(format!("`{ALPN}{protocol}` names no protocol"), "expected one as `alpn:h2` or `alpn:http/1.1`");
    }
    if let Some(name) = names.iter().find(|name| !names::is_pattern(name)) {
        return wrong(
            format!("`{name}` is no name"),
            "expected a name, or `*.` and a name; names beyond ASCII as `xn--…`",
        );
    }
    let servers = servers(places.split_whitespace())?;
    if names.is_empty() && alpn.is_empty() || servers.is_empty() {
        return wrong(format!("`{text}` is no route"), expected);
    }
    Ok(ServiceRoute { names, alpn, servers })
}

/// A user: a name, and behind a blank a password.
fn user(text: &str) -> Result<ServiceUser, Complaint> {
    let Some((name, password)) = text.split_once(' ') else {
        // The text is not repeated: it may be a password.
        return wrong("a user has no password", "expected a name, a blank and a password, as `\"alice secret\"`");
    };
    if name.is_empty() || name.contains(':') || name.len() > 255 || password.is_empty() || password.len() > 255 {
        let expected = "expected 1 to 255 bytes each, and no `:` in the name (RFC 1929, RFC 7617)";
        return wrong("a user cannot have this name or password", expected);
    }
    Ok(ServiceUser { name: name.to_owned(), password: password.to_owned() })
}

/// Where some clients may go: their networks, and the places, behind `=`.
fn allowances(text: &str) -> Result<Vec<Allowance>, Complaint> {
    let expected = "expected networks of clients, `=` and places, as `\"10.0.0.0/8 = 192.0.2.0/24:80 *.example:443\"`";
    let Some((clients, places)) = text.split_once('=') else {
        return wrong(format!("`{text}` allows nothing"), expected);
    };
    let places: Vec<_> = places.split_whitespace().map(place).collect::<Result<_, _>>()?;
    let clients: Vec<_> = clients.split_whitespace().map(network).collect::<Result<_, _>>()?;
    if clients.is_empty() || places.is_empty() {
        return wrong(format!("`{text}` allows nothing"), expected);
    }
    Ok(clients.into_iter().map(|clients| Allowance { clients, to: places.clone() }).collect())
}

/// A place: `*` for every host, a name, or a network; with a port or for every port.
fn place(text: &str) -> Result<AllowedPlace, Complaint> {
    let named = |message: &str| format!("`{text}` {message}");
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    };
    if host != "*" && !names::is_pattern(host) {
        return match Servers::read(text) {
            Ok((servers, false)) => {
                Ok(AllowedPlace { host: AllowedHost::Network(servers.as_network()), port: servers.port })
            }
            Ok(_) => wrong(named("is no network"), "expected one as `192.0.2.0/24`, without bits beyond its prefix"),
            Err(servers::Mistake { message, expected }) => wrong(named(&message), expected),
        };
    }
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port != 0 => Some(port),
        Some(_) => return wrong(named("has no port behind its `:`"), "expected a number from 1 to 65535"),
    };
    let host = if host == "*" { AllowedHost::Any } else { AllowedHost::Names(host.to_ascii_lowercase()) };
    Ok(AllowedPlace { host, port })
}

/// A place as it stands in a file.
fn place_text(place: &AllowedPlace) -> String {
    let port = place.port.map_or(String::new(), |port| format!(":{port}"));
    match &place.host {
        AllowedHost::Any => format!("*{port}"),
        AllowedHost::Names(name) => format!("{name}{port}"),
        AllowedHost::Network(network) => Servers { port: place.port, ..Servers::of_network(network) }.to_string(),
    }
}

/// A network, or an address alone.
fn network(text: &str) -> Result<Network, Complaint> {
    let named = |message: &str| format!("`{text}` {message}");
    match Servers::read(text) {
        Ok((servers, beyond)) if servers.port.is_none() && !beyond => Ok(servers.as_network()),
        Ok(_) => wrong(named("is no network"), "expected one as `\"192.0.2.0/24\"`, without bits beyond its prefix"),
        Err(servers::Mistake { message, expected }) => wrong(named(&message), expected),
    }
}

fn address(text: &str) -> Result<Addr, Complaint> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(of_ip(address)),
        Err(_) => wrong(format!("`{text}` is no address"), "expected one as `\"192.0.2.200\"` or `\"2001:db8::200\"`"),
    }
}

fn mac(text: &str) -> Result<Mac, Complaint> {
    let bytes: Vec<_> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2)).collect();
    match bytes[..] {
        [Some(a), Some(b), Some(c), Some(d), Some(e), Some(f)] if a & 1 == 0 && [a, b, c, d, e, f] != [0; 6] => {
            Ok([a, b, c, d, e, f])
        }
        _ => wrong(format!("`{text}` is no Ethernet address of a station"), "expected one as `02:00:5e:00:00:01`"),
    }
}

fn ip(address: &Addr) -> IpAddr {
    let network = tcpstate::config::Network { address: *address, prefix: 128 };
    Servers::of_network(&network).network
}

fn server_text(server: &ServiceServer) -> String {
    let network = ip(&server.address);
    let prefix = if network.is_ipv4() { 32 } else { 128 };
    let place = Servers { network, prefix, port: Some(server.port) };
    if server.weight == 1 { place.to_string() } else { format!("{place}*{}", server.weight) }
}

/// A service as its block stands in a file, without the braces.
pub(crate) fn block(service: &ServiceConfig) -> String {
    let ServiceConfig { address, port, vlan, mac, protocol, header, routes, default, next_hop, patience, .. } = service;
    let ServiceConfig { proxies, users, allow, reach, pool, balance, check, of_lan, side, .. } = service;
    let mut out = format!("address = {}; port = {port};", quoted(&servers::unambiguous(ip(address))));
    let mut add = |text: String| {
        out.push(' ');
        out.push_str(&text);
    };
    if *vlan != 0 {
        add(format!("vlan = {vlan};"));
    }
    if let Some(mac) = mac {
        let bytes: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        add(format!("mac = {{ \"{}\" }};", bytes.join(":")));
    }
    add(format!("protocol = {};", protocol.label()));
    match header {
        ProxyHeader::None => {}
        ProxyHeader::V1 => add("proxy = v1;".to_owned()),
        ProxyHeader::V2 => add("proxy = v2;".to_owned()),
    }
    let list = |texts: Vec<String>| texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", ");
    if !proxies.is_empty() {
        let networks = proxies.iter().map(|network| Servers::of_network(network).to_string()).collect();
        add(format!("proxy_from = {{ {} }};", list(networks)));
    }
    if !users.is_empty() {
        let users = users.iter().map(|user| format!("{} {}", user.name, user.password)).collect();
        add(format!("users = {{ {} }};", list(users)));
    }
    if !allow.is_empty() {
        let text = |allowance: &Allowance| {
            let places: Vec<_> = allowance.to.iter().map(place_text).collect();
            format!("{} = {}", Servers::of_network(&allowance.clients), places.join(" "))
        };
        add(format!("allow = {{ {} }};", list(allow.iter().map(text).collect())));
    }
    let all = |servers: &[ServiceServer]| servers.iter().map(server_text).collect::<Vec<_>>();
    if !routes.is_empty() {
        let routes = routes
            .iter()
            .map(|route| {
                let alpn = route.alpn.iter().map(|protocol| format!("{ALPN}{protocol}"));
                let asked: Vec<_> = route.names.iter().cloned().chain(alpn).collect();
                format!("{} = {}", asked.join(" "), all(&route.servers).join(" "))
            })
            .collect();
        add(format!("routes = {{ {} }};", list(routes)));
    }
    if !default.is_empty() {
        add(format!("default = {{ {} }};", list(all(default))));
    }
    if let Some(hop) = next_hop {
        add(format!("next_hop = {};", quoted(&servers::unambiguous(ip(hop)))));
    }
    add(format!("patience = {};", patience.as_secs()));
    match reach {
        Reach::Nat => {}
        Reach::Mac => add("reach = mac;".to_owned()),
        Reach::Full => add("reach = full;".to_owned()),
    }
    if !pool.is_empty() {
        add(format!("pool = {{ {} }};", list(pool.iter().map(|own| ip(own).to_string()).collect())));
    }
    match balance {
        Balance::Weighted => {}
        Balance::Least => add("balance = least;".to_owned()),
        Balance::Hash => add("balance = hash;".to_owned()),
    }
    if *of_lan {
        add("clients_on = both;".to_owned());
    }
    if *side == Side::Wan {
        add("servers_on = wan;".to_owned());
    }
    if let Some(HealthCheck { every, rise, fall }) = check {
        add(format!("check = {}; rise = {rise}; fall = {fall};", every.as_secs()));
    }
    out
}
