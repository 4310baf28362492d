//! Services of the box in the world. Hosts know nothing of them: a client connects to a server's own address, and in front of the box's ports the service's
//! takes its place, as the other end's does behind it. So hosts, and the oracle, see connections between clients and servers, as ever.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::scenario::HOSTS;
use tcpstate::Side;
use tcpstate::config::{Protocol, Reach, ServiceConfig, ServiceRoute, ServiceServer};
use tcpstate::service::default_mac;
use tcpstate::wire::Addr;

use crate::oracle::layers::Layers;
use crate::oracle::{REQUEST, SERVED, request};

/// How long a client may take: longer than any cable is bad.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(600);

/// The addresses of the box, by their last number.
const SERVICE: u8 = 100;
const POOL: u8 = 101;

/// An address of the box, in the network of all hosts.
fn own(v6: bool, last: u8) -> IpAddr {
    match v6 {
        false => Ipv4Addr::new(10, 0, 9, last).into(),
        true => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 9, last.into()).into(),
    }
}

/// The address of a host of the LAN.
fn server(v6: bool, number: u8) -> IpAddr {
    match v6 {
        false => Ipv4Addr::new(10, 0, Side::Lan as u8, number).into(),
        true => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, Side::Lan as u16, number.into()).into(),
    }
}

/// As the engine writes addresses.
fn addr(address: IpAddr) -> Addr {
    let v6 = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let bits = v6.to_bits();
    [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
}

/// The Ethernet address of a host, if it is one.
fn station(address: IpAddr) -> Option<[u8; 6]> {
    let (side, number) = match address {
        IpAddr::V4(address) => match address.octets() {
            [10, 0, side, number] => (side.into(), number.into()),
            _ => return None,
        },
        IpAddr::V6(address) => match address.segments() {
            [0xfd00, 0, 0, 0, 0, 0, side, number] => (side, number),
            _ => return None,
        },
    };
    (side < 2 && (1..=HOSTS as u16).contains(&number)).then_some([2, 0, 0, side as u8, 0, number as u8])
}

/// Services of each family at each of their ports, which send clients to the hosts of the LAN by name.
pub fn services(reach: Reach, hosts: u8) -> Vec<ServiceConfig> {
    let each = [false, true].into_iter().flat_map(|v6| SERVED.map(|port| (v6, port)));
    each.map(|(v6, port)| {
        let route = |number| ServiceRoute {
            names: vec![format!("l{number}.example")],
            servers: vec![ServiceServer { address: addr(server(v6, number)), port, weight: 1 }],
            ..ServiceRoute::default()
        };
        ServiceConfig {
            protocol: Protocol::Http,
            routes: (1..=hosts).map(route).collect(),
            patience: PATIENCE,
            reach,
            pool: if reach == Reach::Nat { Vec::new() } else { vec![addr(own(v6, POOL))] },
            ..ServiceConfig::at(addr(own(v6, SERVICE)), port)
        }
    })
    .collect()
}

/// Bytes that a client has to send to be known.
pub const LEAST: u64 = REQUEST.len() as u64;

/// Whether this is a server of a service.
fn is_served(end: SocketAddr) -> bool {
    SERVED.contains(&end.port())
        && request(end, 0).is_some()
        && station(end.ip()).is_some_and(|mac| mac[3] == Side::Lan as u8)
}

/// What stands for what at the box's ports.
#[derive(Clone, Debug, Default)]
pub struct Served {
    reach: Reach,
    /// The server of each client.
    servers: BTreeMap<SocketAddr, SocketAddr>,
    /// What stands for each client, and the client for which each stands.
    stand_ins: BTreeMap<SocketAddr, SocketAddr>,
    clients: BTreeMap<SocketAddr, SocketAddr>,
}

impl Served {
    /// Services whose servers are reached so.
    pub fn new(reach: Reach) -> Self {
        Self { reach, ..Self::default() }
    }

    /// A frame comes to the box. What is damaged says nothing of who is connected to whom.
    pub fn enter(&mut self, side: Side, frame: &mut [u8], corrupt: bool) {
        let Some((layers, [source, destination])) = ends(frame) else { return };
        let v6 = layers.v6;
        match side {
            Side::Wan if is_served(destination) => {
                if !corrupt {
                    self.servers.insert(source, destination);
                }
                readdress(frame, &layers, To::Destination, SocketAddr::new(own(v6, SERVICE), destination.port()));
                frame[..6].copy_from_slice(&default_mac(&addr(own(v6, SERVICE))));
            }
            Side::Lan if is_served(source) && self.servers.get(&destination) == Some(&source) => match self.reach {
                Reach::Nat => {}
                Reach::Mac => readdress(frame, &layers, To::Source, SocketAddr::new(own(v6, SERVICE), source.port())),
                Reach::Full => {
                    let Some(&stand_in) = self.stand_ins.get(&destination) else { return };
                    readdress(frame, &layers, To::Destination, stand_in);
                    frame[..6].copy_from_slice(&default_mac(&addr(stand_in.ip())));
                }
            },
            _ => {}
        }
    }

    /// A frame leaves the box; `client` tells for whom an address of the box stands.
    pub fn leave(&mut self, side: Side, frame: &mut [u8], client: impl Fn(SocketAddr) -> Option<SocketAddr>) {
        if side == Side::Wan && self.quote(frame) {
            return;
        }
        let Some((layers, [source, destination])) = ends(frame) else { return };
        let v6 = layers.v6;
        match side {
            Side::Wan if source.ip() == own(v6, SERVICE) => {
                let Some(&server) = self.servers.get(&destination) else { return };
                readdress(frame, &layers, To::Source, server);
                frame[6..12].copy_from_slice(&station(server.ip()).expect("it is a host"));
            }
            Side::Lan if self.reach == Reach::Mac && destination.ip() == own(v6, SERVICE) => {
                let Some(&server) = self.servers.get(&source) else { return };
                readdress(frame, &layers, To::Destination, server);
            }
            Side::Lan if source.ip() == own(v6, POOL) => {
                if let Some(client) = client(source) {
                    self.stand_ins.insert(client, source);
                    self.clients.insert(source, client);
                }
                let Some(&client) = self.clients.get(&source) else { return };
                readdress(frame, &layers, To::Source, client);
                if let Some(mac) = station(client.ip()) {
                    frame[6..12].copy_from_slice(&mac);
                }
            }
            _ => {}
        }
    }
}

impl Served {
    /// An error about a client's segment to a service quotes it as one to its server. False if the frame is none.
    fn quote(&self, frame: &mut [u8]) -> bool {
        let Some(layers) = Layers::read(frame).filter(|layers| matches!(layers.protocol, 1 | 58)) else { return false };
        // The quoted packet, behind an Ethernet header that it has not; it may be cut short.
        let message = layers.payload..layers.end;
        let mut quoted = vec![0; 12];
        quoted.extend(if layers.v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        quoted.extend_from_slice(frame.get(message.start + 8..message.end).unwrap_or_default());
        let Some((inner, [source, destination])) = quoted_ends(&quoted, layers.v6) else { return false };
        let Some(&server) = self.servers.get(&source).filter(|_| destination.ip() == own(layers.v6, SERVICE)) else {
            return false;
        };
        let before = words(&quoted);
        readdress(&mut quoted, &inner, To::Destination, server);
        let grows = 0xffff * (before / 0xffff + 1) - before + words(&quoted);
        frame[message.start + 8..message.end].copy_from_slice(&quoted[14..]);
        patch(&mut frame[message.start + 2..], grows);
        true
    }
}

/// The sum of the words of these bytes.
fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |&low| u32::from(low))).sum()
}

/// Has the checksum at the beginning of these bytes be that of what has grown by so much.
fn patch(field: &mut [u8], grows: u32) {
    let mut sum = u32::from(!u16::from_be_bytes([field[0], field[1]])) + grows;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    field[..2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// Source and destination of a segment of which only the beginning may be there, behind an Ethernet header without tags.
fn quoted_ends(frame: &[u8], v6: bool) -> Option<(Layers, [SocketAddr; 2])> {
    let ip = 14;
    let (mut payload, mut protocol) = match v6 {
        false => (ip + usize::from(frame.get(ip)? & 15) * 4, *frame.get(ip + 9)?),
        true => (ip + 40, *frame.get(ip + 6)?),
    };
    while v6 && matches!(protocol, 0 | 43 | 44 | 60) {
        let length = if protocol == 44 { 0 } else { usize::from(*frame.get(payload + 1)?) };
        protocol = *frame.get(payload)?;
        payload += 8 + 8 * length;
    }
    let layers = Layers { tags: [None; 2], v6, ip, payload, end: frame.len(), protocol, fragment: None };
    ends_in(frame, layers)
}

/// Source and destination of a whole segment.
fn ends(frame: &[u8]) -> Option<(Layers, [SocketAddr; 2])> {
    ends_in(frame, Layers::read(frame)?)
}

fn ends_in(frame: &[u8], layers: Layers) -> Option<(Layers, [SocketAddr; 2])> {
    if layers.protocol != 6 || layers.fragment.is_some() {
        return None;
    }
    let ports = frame.get(layers.payload..layers.payload + 4)?;
    let address = |n: usize| -> Option<IpAddr> {
        match layers.v6 {
            false => Some(<[u8; 4]>::try_from(frame.get(layers.ip + 12 + 4 * n..layers.ip + 16 + 4 * n)?).ok()?.into()),
            true => {
                Some(<[u8; 16]>::try_from(frame.get(layers.ip + 8 + 16 * n..layers.ip + 24 + 16 * n)?).ok()?.into())
            }
        }
    };
    let port = |n: usize| u16::from_be_bytes([ports[2 * n], ports[2 * n + 1]]);
    Some((layers, [SocketAddr::new(address(0)?, port(0)), SocketAddr::new(address(1)?, port(1))]))
}

#[derive(Clone, Copy)]
enum To {
    Source,
    Destination,
}

/// Writes an end into a segment. Checksums change by the difference, so that what is damaged stays so.
fn readdress(frame: &mut [u8], layers: &Layers, to: To, end: SocketAddr) {
    let n = to as usize;
    let (at, octets) = match end.ip() {
        IpAddr::V4(address) => (layers.ip + 12 + 4 * n, address.octets().to_vec()),
        IpAddr::V6(address) => (layers.ip + 8 + 16 * n, address.octets().to_vec()),
    };
    let grown = |old: &[u8], new: &[u8]| (0xffff * 16 - words(old)) + words(new);
    let port_at = layers.payload + 2 * n;
    let port = end.port().to_be_bytes();
    let address_grows = grown(&frame[at..at + octets.len()], &octets);
    let port_grows = grown(&frame[port_at..port_at + 2], &port);
    frame[at..at + octets.len()].copy_from_slice(&octets);
    frame[port_at..port_at + 2].copy_from_slice(&port);
    let mut sums = vec![(layers.payload + 16, address_grows + port_grows)];
    if !layers.v6 {
        sums.push((layers.ip + 10, address_grows));
    }
    for (at, grows) in sums {
        if let Some(field) = frame.get_mut(at..at + 2) {
            patch(field, grows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{Layout, Segment};

    #[test]
    fn what_comes_in_goes_out_as_it_was() {
        for (reach, v6) in [(Reach::Nat, false), (Reach::Mac, true), (Reach::Full, false), (Reach::Full, true)] {
            let mut served = Served::new(reach);
            let client =
                SocketAddr::new(if v6 { "fd00::1:1".parse().unwrap() } else { "10.0.1.1".parse().unwrap() }, 4000);
            let host = SocketAddr::new(server(v6, 2), SERVED[1]);
            let stations = (station(client.ip()).unwrap(), station(host.ip()).unwrap());
            let mut segment = Segment::new(client, host, 7, Some(9));
            segment.payload = b"abc";
            let there = segment.write(stations.0, stations.1, Layout::default());
            let mut frame = there.clone();
            served.enter(Side::Wan, &mut frame, false);
            let entered = Segment::read(&frame).expect("a segment");
            assert!(entered.sums_right() && entered.destination == SocketAddr::new(own(v6, SERVICE), SERVED[1]));
            // What the box makes of it.
            let stand_in = SocketAddr::new(own(v6, POOL), 2000);
            let (layers, _) = ends(&frame).expect("a segment");
            if reach != Reach::Mac {
                readdress(&mut frame, &layers, To::Destination, host);
            }
            if reach == Reach::Full {
                readdress(&mut frame, &layers, To::Source, stand_in);
            }
            frame[..6].copy_from_slice(&stations.1);
            served.leave(Side::Lan, &mut frame, |_| Some(client));
            assert_eq!(frame, there);
            let mut answer = Segment::new(host, client, 9, Some(10));
            answer.payload = b"d";
            let mut back = answer.write(stations.1, stations.0, Layout::default());
            served.enter(Side::Lan, &mut back, false);
            let entered = Segment::read(&back).expect("a segment");
            assert_eq!(entered.destination, if reach == Reach::Full { stand_in } else { client });
            assert!(entered.sums_right());
        }
    }
}
