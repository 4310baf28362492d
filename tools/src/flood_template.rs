//! The frames of a flood: a template is built once, and every copy gets a random source and numbers. `raw`, `pattern` and
//! `xdp_generator` send them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::network::Network;

/// An Ethernet address.
pub type Mac = [u8; 6];

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
const UDP: usize = 8;

/// The payload of a UDP datagram, in bytes: it fills the shortest frame.
const DATAGRAM: usize = 18;

/// The shortest Ethernet frame, in bytes, without FCS.
const MIN_FRAME: usize = 60;

/// The options of a Linux SYN, in its order: MSS 1460, SACK permitted, timestamps, window scale 7.
const SYN_OPTIONS: [u8; 20] = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7];

/// The kind of segments of a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// SYNs: connection attempts.
    Syn,
    /// SYN-ACKs without a SYN.
    SynAck,
    /// ACKs with random numbers: guesses at a cookie.
    Ack,
    /// FINs without a connection.
    Fin,
    /// RSTs without a connection.
    Rst,
    /// UDP datagrams, which the proxy only forwards.
    Udp,
}

impl Kind {
    fn flags(self) -> u8 {
        match self {
            Kind::Syn => 0x02,
            Kind::SynAck => 0x12,
            Kind::Ack => 0x10,
            Kind::Fin => 0x11,
            Kind::Rst => 0x04,
            Kind::Udp => 0,
        }
    }

    fn has_ack(self) -> bool {
        self.flags() & 0x10 != 0
    }
}

/// The source addresses of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    network: IpAddr,
    length: u8,
}

impl Sources {
    /// All public IPv4 unicast addresses: neither loopback, private nor link-local.
    pub const ANY_V4: Sources = Sources { network: IpAddr::V4(Ipv4Addr::UNSPECIFIED), length: 0 };
    /// IPv6 global unicast, `2000::/3`.
    pub const ANY_V6: Sources = Sources { network: IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0)), length: 3 };

    /// Whether these are IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.network.is_ipv4()
    }

    /// The network's address.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// The number of addresses, without the network and broadcast address; at most 2^32.
    pub fn count(&self) -> u64 {
        let longest = if self.is_ipv4() { 32 } else { 128 };
        let all = 1 << (longest - u32::from(self.length)).min(32);
        if all > 2 { all - 2 } else { all }
    }

    /// Address number `n`, from 0; counting wraps around.
    pub fn nth(&self, n: u64) -> IpAddr {
        let n = (n % self.count()) + u64::from(self.count() > 2);
        match self.network {
            IpAddr::V4(network) => {
                let host = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Ipv4Addr::from_bits((network.to_bits() & !host) | n as u32).into()
            }
            IpAddr::V6(network) => {
                let host = u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Ipv6Addr::from_bits((network.to_bits() & !host) | u128::from(n)).into()
            }
        }
    }

    /// Whether `address` is in the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        Network { address: self.network, length: self.length.into() }.contains(address)
    }

    /// The 16-bit words of the address that vary, in host byte order: index, mask of the varying bits, value of the others.
    /// At most four words of an IPv6 address, including the last. For [`Sources::ANY_V4`], 64.0.0.0/3, which has no special ranges.
    pub(crate) fn words(&self) -> Vec<(usize, u16, u16)> {
        let (network, host, count) = match self.network {
            IpAddr::V4(_) if self.length == 0 => (0x4000_0000, 0x1fff_ffff, 2),
            IpAddr::V4(network) => {
                (network.to_bits().into(), u32::MAX.checked_shr(self.length.into()).unwrap_or(0).into(), 2)
            }
            IpAddr::V6(network) => (network.to_bits(), u128::MAX.checked_shr(self.length.into()).unwrap_or(0), 8),
        };
        let word = |word: usize| {
            let shift = 16 * (count - 1 - word);
            let mask = (host >> shift) as u16;
            (word, mask, (network >> shift) as u16 & !mask)
        };
        let varying: Vec<_> = (0..count).map(word).filter(|(_, mask, _)| *mask != 0).collect();
        match varying.as_slice() {
            [first @ .., last] if first.len() > 3 => [&first[..3], &[*last]].concat(),
            _ => varying,
        }
    }

    fn v4(&self, network: Ipv4Addr, rng: &mut SmallRng) -> Ipv4Addr {
        let host = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
        loop {
            let address = Ipv4Addr::from_bits((network.to_bits() & !host) | (rng.random::<u32>() & host));
            let first = address.octets()[0];
            let is_public = first != 0
                && first < 224
                && !address.is_loopback()
                && !address.is_private()
                && !address.is_link_local();
            // In a network given by the user every address is used.
            if self.length > 0 || is_public {
                return address;
            }
        }
    }

    fn v6(&self, network: Ipv6Addr, rng: &mut SmallRng) -> Ipv6Addr {
        let host = u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
        Ipv6Addr::from_bits((network.to_bits() & !host) | (rng.random::<u128>() & host))
    }
}

impl FromStr for Sources {
    type Err = String;

    /// Parses `192.0.2.0/24` or `2001:db8::/32`; an address without a length is a single host.
    fn from_str(text: &str) -> Result<Self, String> {
        let Network { address, length } = text.parse()?;
        if length == 0 {
            return Err(format!("the prefix length of `{text}` must be at least 1"));
        }
        Ok(Sources { network: address, length: length as u8 })
    }
}

/// The random numbers of thread `number` of a flood with this seed.
pub fn thread_rng(seed: u64, number: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The target of a load.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The IP address.
    pub address: IpAddr,
    /// The TCP or UDP port.
    pub port: u16,
    /// The Ethernet destination: the server's, or that of the router before it.
    pub mac: Mac,
    /// The Ethernet source.
    pub from_mac: Mac,
    /// The 802.1Q tag of every frame.
    pub vlan: Option<u16>,
}

/// A frame built once, of which [`FloodTemplate::stamp`] makes the next one.
#[derive(Clone, Debug)]
pub struct FloodTemplate {
    frame: Vec<u8>,
    kind: Kind,
    sources: Sources,
    /// Offset of the IP header.
    ip: usize,
    /// Offset of the TCP or UDP header.
    tcp: usize,
    /// Offset of the padding.
    end: usize,
    /// The checksum over the constant part of pseudo-header and segment.
    constant: u64,
    rng: SmallRng,
}

impl FloodTemplate {
    /// Builds a segment of `kind`; SYNs and SYN-ACKs have Linux's options unless `bare`.
    ///
    /// # Panics
    /// If `sources` and the target's address are of different families.
    pub fn new(kind: Kind, target: Target, sources: Sources, bare: bool, rng: SmallRng) -> FloodTemplate {
        assert_eq!(
            target.address.is_ipv4(),
            sources.network.is_ipv4(),
            "sources and target must be of one address family"
        );
        let options: &[u8] = if matches!(kind, Kind::Syn | Kind::SynAck) && !bare { &SYN_OPTIONS } else { &[] };
        let (header, protocol) = if kind == Kind::Udp { (UDP + DATAGRAM, 17) } else { (TCP, 6) };
        let length = (header + options.len()) as u16;
        let mut frame = Vec::with_capacity(ETHERNET + 4 + IPV6 + TCP + SYN_OPTIONS.len());
        frame.extend_from_slice(&target.mac);
        frame.extend_from_slice(&target.from_mac);
        if let Some(vlan) = target.vlan {
            frame.extend_from_slice(&[0x81, 0x00]);
            frame.extend_from_slice(&vlan.to_be_bytes());
        }
        let ip = frame.len() + 2;
        let mut constant = u64::from(length) + u64::from(protocol);
        match target.address {
            IpAddr::V4(address) => {
                frame.extend_from_slice(&[0x08, 0x00, 0x45, 0]);
                frame.extend_from_slice(&(IPV4 as u16 + length).to_be_bytes());
                frame.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
                frame.extend_from_slice(&[0; 4]);
                frame.extend_from_slice(&address.octets());
                constant += sum(&address.octets());
            }
            IpAddr::V6(address) => {
                frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend_from_slice(&length.to_be_bytes());
                frame.extend_from_slice(&[protocol, 64]);
                frame.extend_from_slice(&[0; 16]);
                frame.extend_from_slice(&address.octets());
                constant += sum(&address.octets());
            }
        }
        let tcp = frame.len();
        frame.extend_from_slice(&[0; 2]);
        frame.extend_from_slice(&target.port.to_be_bytes());
        if kind == Kind::Udp {
            frame.extend_from_slice(&length.to_be_bytes());
            frame.extend_from_slice(&[0; 2 + DATAGRAM]);
        } else {
            frame.extend_from_slice(&[0; 8]);
            frame.extend_from_slice(&[((TCP + options.len()) as u8 / 4) << 4, kind.flags()]);
            // An RST announces no window; the others, the initial window of Linux.
            frame.extend_from_slice(&if kind == Kind::Rst { 0 } else { 64240u16 }.to_be_bytes());
            frame.extend_from_slice(&[0; 4]);
            frame.extend_from_slice(options);
        }
        constant += sum(&frame[tcp..]);
        let end = frame.len();
        frame.resize(end.max(MIN_FRAME), 0);
        FloodTemplate { frame, kind, sources, ip, tcp, end, constant, rng }
    }

    /// The length of every frame, in bytes.
    pub fn frame_len(&self) -> usize {
        self.frame.len()
    }

    /// The offsets of the IP header and of the TCP or UDP header.
    pub(crate) fn headers(&self) -> (usize, usize) {
        (self.ip, self.tcp)
    }

    /// The offset of the TCP or UDP checksum.
    pub(crate) fn checksum_at(&self) -> usize {
        self.tcp + if self.kind == Kind::Udp { 6 } else { 16 }
    }

    /// Writes the next frame into `out`, with random source address, port and numbers, and correct checksums.
    ///
    /// # Panics
    /// If the length of `out` is not [`FloodTemplate::frame_len`].
    pub fn stamp(&mut self, out: &mut [u8]) {
        out.copy_from_slice(&self.frame);
        let port: u16 = self.rng.random_range(1024..=u16::MAX);
        let numbers: u64 = self.rng.random();
        let tcp = self.tcp;
        out[tcp..tcp + 2].copy_from_slice(&port.to_be_bytes());
        let mut changing = u64::from(port);
        let (sequence, acknowledged) =
            if self.kind == Kind::Udp { (tcp + UDP, tcp + UDP + 4) } else { (tcp + 4, tcp + 8) };
        out[sequence..sequence + 4].copy_from_slice(&(numbers as u32).to_be_bytes());
        if self.kind.has_ack() || self.kind == Kind::Udp {
            out[acknowledged..acknowledged + 4].copy_from_slice(&((numbers >> 32) as u32).to_be_bytes());
        }
        changing += sum(&out[sequence..sequence + 8]);
        if self.kind != Kind::Udp && self.end - tcp == TCP + SYN_OPTIONS.len() {
            let ticks: u32 = self.rng.random();
            out[tcp + 28..tcp + 32].copy_from_slice(&ticks.to_be_bytes());
            changing += sum(&out[tcp + 28..tcp + 32]);
        }
        let ip = self.ip;
        match self.sources.network {
            IpAddr::V4(network) => {
                let source = self.sources.v4(network, &mut self.rng).octets();
                out[ip + 12..ip + 16].copy_from_slice(&source);
                changing += sum(&source);
                let header = fold(sum(&out[ip..ip + IPV4]));
                out[ip + 10..ip + 12].copy_from_slice(&header.to_be_bytes());
            }
            IpAddr::V6(network) => {
                let source = self.sources.v6(network, &mut self.rng).octets();
                out[ip + 8..ip + 24].copy_from_slice(&source);
                changing += sum(&source);
            }
        }
        let at = self.checksum_at();
        let checksum = match fold(self.constant + changing) {
            // RFC 768: a checksum of zero means that there is none.
            0 if self.kind == Kind::Udp => u16::MAX,
            checksum => checksum,
        };
        out[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// The unfolded one's complement sum of an even number of bytes.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

/// The checksum of an unfolded sum (RFC 1071).
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn target(address: &str) -> Target {
        Target { address: address.parse().unwrap(), port: 80, mac: [2; 6], from_mac: [4; 6], vlan: None }
    }

    fn template(kind: Kind, to: &str, sources: Sources, bare: bool) -> FloodTemplate {
        FloodTemplate::new(kind, target(to), sources, bare, SmallRng::seed_from_u64(7))
    }

    /// The checksums over IP header, and over pseudo-header and segment; zero if those in the frame are correct.
    fn residue(frame: &[u8], ip: usize) -> (u16, u16) {
        match frame[ip - 2] {
            0x08 => {
                let total = usize::from(u16::from_be_bytes([frame[ip + 2], frame[ip + 3]]));
                let (segment, protocol) = (&frame[ip + 20..ip + total], u64::from(frame[ip + 9]));
                let pseudo = sum(&frame[ip + 12..ip + 20]) + protocol + segment.len() as u64;
                (fold(sum(&frame[ip..ip + 20])), fold(pseudo + sum(segment)))
            }
            _ => {
                let length = usize::from(u16::from_be_bytes([frame[ip + 4], frame[ip + 5]]));
                let (segment, protocol) = (&frame[ip + 40..ip + 40 + length], u64::from(frame[ip + 6]));
                (0, fold(sum(&frame[ip + 8..ip + 40]) + protocol + length as u64 + sum(segment)))
            }
        }
    }

    #[test]
    fn every_kind_of_segment_has_correct_checksums() {
        for kind in [Kind::Syn, Kind::SynAck, Kind::Ack, Kind::Fin, Kind::Rst, Kind::Udp] {
            for (to, sources) in [("10.0.0.1", Sources::ANY_V4), ("fd00::1", Sources::ANY_V6)] {
                for (bare, vlan) in [(false, None), (true, None), (false, Some(7))] {
                    let target = Target { vlan, ..target(to) };
                    let mut template = FloodTemplate::new(kind, target, sources, bare, SmallRng::seed_from_u64(7));
                    let mut frame = vec![0xee; template.frame_len()];
                    for _ in 0..100 {
                        template.stamp(&mut frame);
                        let ip = if vlan.is_some() { 18 } else { 14 };
                        assert_eq!(residue(&frame, ip), (0, 0), "{kind:?} to {to}, bare {bare}, tag {vlan:?}");
                        assert!(frame.len() >= MIN_FRAME);
                        assert!(vlan.is_none() || frame[12..16] == [0x81, 0, 0, 7]);
                    }
                }
            }
        }
    }

    #[test]
    fn the_words_of_an_address_vary_within_the_network() {
        assert_eq!(Sources::ANY_V4.words(), [(0, 0x1fff, 0x4000), (1, 0xffff, 0)]);
        let all = |n| (n, 0xffff, 0);
        assert_eq!(Sources::ANY_V6.words(), [(0, 0x1fff, 0x2000), all(1), all(2), all(7)]);
        assert_eq!("10.9.8.0/24".parse::<Sources>().unwrap().words(), [(1, 0x00ff, 0x0800)]);
        assert_eq!("10.9.8.7".parse::<Sources>().unwrap().words(), []);
        assert_eq!("2001:db8:0:5::/60".parse::<Sources>().unwrap().words()[0], (3, 0x000f, 0));
    }

    #[test]
    fn the_addresses_of_a_network_are_numbered() {
        let clients: Sources = "10.9.8.0/24".parse().unwrap();
        assert_eq!(clients.count(), 254);
        assert_eq!([0, 253, 254].map(|n| clients.nth(n).to_string()), ["10.9.8.1", "10.9.8.254", "10.9.8.1"]);
        let one: Sources = "fd00::7".parse().unwrap();
        assert_eq!((one.count(), one.nth(5).to_string().as_str()), (1, "fd00::7"));
        assert!(clients.contains(clients.nth(17)) && !clients.contains("10.9.9.1".parse().unwrap()));
        assert!(one.contains(one.nth(0)) && !one.contains(clients.nth(0)));
    }

    #[test]
    fn sources_are_many_and_public() {
        let mut template = template(Kind::Syn, "10.0.0.1", Sources::ANY_V4, true);
        let mut frame = vec![0; template.frame_len()];
        let mut seen = HashSet::new();
        for _ in 0..10_000 {
            template.stamp(&mut frame);
            let source = Ipv4Addr::from_octets(frame[26..30].try_into().unwrap());
            assert!(!source.is_private() && !source.is_loopback() && source.octets()[0] < 224, "{source}");
            seen.insert(source);
        }
        assert!(seen.len() > 9_990, "only {} different sources in 10000", seen.len());
    }

    #[test]
    fn sources_stay_in_the_given_network() {
        let mut template = template(Kind::Syn, "10.0.0.1", "10.9.8.0/24".parse().unwrap(), false);
        let mut frame = vec![0; template.frame_len()];
        for _ in 0..1000 {
            template.stamp(&mut frame);
            assert_eq!(frame[26..29], [10, 9, 8]);
        }
    }

    #[test]
    fn networks_are_parsed_and_anything_else_is_refused() {
        assert_eq!("192.0.2.1".parse::<Sources>().unwrap().length, 32);
        assert_eq!("2001:db8::/32".parse::<Sources>().unwrap().length, 32);
        for nonsense in ["", "x", "10.0.0.0/33", "10.0.0.0/0", "::/129", "10.0.0.0/"] {
            assert!(nonsense.parse::<Sources>().is_err(), "{nonsense}");
        }
    }
}
