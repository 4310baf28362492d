//! Segments of a flood: one frame laid out once, then stamped with a new random source for every copy.
//! How they leave is `raw`'s business.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use rand::RngExt;
use rand::rngs::SmallRng;

/// An Ethernet address.
pub type Mac = [u8; 6];

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
const UDP: usize = 8;

/// What a datagram of a flood holds, in bytes: with it, it fills the shortest frame.
const DATAGRAM: usize = 18;

/// The shortest frame Ethernet carries, without its checksum.
const MIN_FRAME: usize = 60;

/// MSS 1460, SACK permitted, timestamps, window scale 7: what Linux puts into a SYN, in its order.
const SYN_OPTIONS: [u8; 20] = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7];

/// What a flood consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Connection attempts.
    Syn,
    /// Answers nobody asked for.
    SynAck,
    /// Random acknowledgements: guesses at a cookie.
    Ack,
    /// Closings of connections nobody opened.
    Fin,
    /// Resets of connections nobody opened.
    Rst,
    /// Datagrams, which are none of the proxy's business.
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

/// The addresses a load claims to come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    network: IpAddr,
    length: u8,
}

impl Sources {
    /// Every IPv4 address a stranger could have: unicast, and neither loopback, private nor link-local.
    pub const ANY_V4: Sources = Sources { network: IpAddr::V4(Ipv4Addr::UNSPECIFIED), length: 0 };
    /// IPv6's global unicast, `2000::/3`.
    pub const ANY_V6: Sources = Sources { network: IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0)), length: 3 };

    /// Whether these are IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.network.is_ipv4()
    }

    /// The network they are in.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// How many there are, less those that mean the network itself and all of it; 2^32 at most.
    pub fn count(&self) -> u64 {
        let longest = if self.is_ipv4() { 32 } else { 128 };
        let all = 1 << (longest - u32::from(self.length)).min(32);
        if all > 2 { all - 2 } else { all }
    }

    /// Number `n` of them, from 0.
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

    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let host = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & !host == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let host = u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & !host == 0
            }
            _ => false,
        }
    }

    /// The words of 16 bits of such an address that are not always the same, in host order: which, the bits that vary, and the others.
    /// Of IPv6 addresses four at most, the last one among them. Of all IPv4 addresses an eighth in which nothing is special.
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
            let stranger = first != 0
                && first < 224
                && !address.is_loopback()
                && !address.is_private()
                && !address.is_link_local();
            // A named network is taken at its word.
            if self.length > 0 || stranger {
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

    /// Reads `192.0.2.0/24` or `2001:db8::/32`; an address without a length is that address alone.
    fn from_str(text: &str) -> Result<Self, String> {
        let (network, length) = text.split_once('/').map_or((text, None), |(network, length)| (network, Some(length)));
        let network: IpAddr = network.parse().map_err(|_| format!("`{network}` is no address"))?;
        let longest = if network.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => longest,
            Some(length) => length
                .parse()
                .ok()
                .filter(|length| (1..=longest).contains(length))
                .ok_or_else(|| format!("a prefix length lies between 1 and {longest}, not `{length}`"))?,
        };
        Ok(Sources { network, length })
    }
}

/// Where a flood goes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The address attacked.
    pub address: IpAddr,
    /// The port attacked.
    pub port: u16,
    /// The Ethernet destination: the server's, or the router's in front of it.
    pub mac: Mac,
    /// The Ethernet source.
    pub from_mac: Mac,
    /// The 802.1Q tag of every frame.
    pub vlan: Option<u16>,
}

/// A segment laid out once; [`Spray::stamp`] makes the next one of it.
#[derive(Clone, Debug)]
pub struct Spray {
    frame: Vec<u8>,
    kind: Kind,
    sources: Sources,
    /// Where the IP header begins.
    ip: usize,
    /// Where TCP or UDP begins.
    tcp: usize,
    /// Where the segment ends and the padding begins.
    end: usize,
    /// The sum of what stays the same in the pseudo-header and the segment.
    constant: u64,
    rng: SmallRng,
}

impl Spray {
    /// Lays out a segment of `kind`; a SYN carries Linux's options unless it is `bare`.
    ///
    /// # Panics
    /// If `sources` and the target's address are of different families.
    pub fn new(kind: Kind, target: Target, sources: Sources, bare: bool, rng: SmallRng) -> Spray {
        assert_eq!(target.address.is_ipv4(), sources.network.is_ipv4(), "one flood, one address family");
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
            // A reset advertises nothing; the others, Linux's first window.
            frame.extend_from_slice(&if kind == Kind::Rst { 0 } else { 64240u16 }.to_be_bytes());
            frame.extend_from_slice(&[0; 4]);
            frame.extend_from_slice(options);
        }
        constant += sum(&frame[tcp..]);
        let end = frame.len();
        frame.resize(end.max(MIN_FRAME), 0);
        Spray { frame, kind, sources, ip, tcp, end, constant, rng }
    }

    /// The length of every frame, in bytes.
    pub fn frame_len(&self) -> usize {
        self.frame.len()
    }

    /// Where the IP header begins, and what follows it.
    pub(crate) fn headers(&self) -> (usize, usize) {
        (self.ip, self.tcp)
    }

    /// Where the checksum over addresses and payload is.
    pub(crate) fn checksum_at(&self) -> usize {
        self.tcp + if self.kind == Kind::Udp { 6 } else { 16 }
    }

    /// Writes the next segment into `out`, whose length is [`Spray::frame_len`]: a new source address and port, new
    /// numbers, right checksums.
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
            // RFC 768: zero would say that there is none.
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

    use rand::SeedableRng;

    use super::*;

    fn target(address: &str) -> Target {
        Target { address: address.parse().unwrap(), port: 80, mac: [2; 6], from_mac: [4; 6], vlan: None }
    }

    fn spray(kind: Kind, to: &str, sources: Sources, bare: bool) -> Spray {
        Spray::new(kind, target(to), sources, bare, SmallRng::seed_from_u64(7))
    }

    /// Sums header and pseudo-header the slow way; a right checksum makes zero.
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
    fn every_kind_of_segment_carries_right_checksums() {
        for kind in [Kind::Syn, Kind::SynAck, Kind::Ack, Kind::Fin, Kind::Rst, Kind::Udp] {
            for (to, sources) in [("10.0.0.1", Sources::ANY_V4), ("fd00::1", Sources::ANY_V6)] {
                for (bare, vlan) in [(false, None), (true, None), (false, Some(7))] {
                    let target = Target { vlan, ..target(to) };
                    let mut spray = Spray::new(kind, target, sources, bare, SmallRng::seed_from_u64(7));
                    let mut frame = vec![0xee; spray.frame_len()];
                    for _ in 0..100 {
                        spray.stamp(&mut frame);
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
    fn words_of_an_address_vary_where_the_network_leaves_them_to() {
        assert_eq!(Sources::ANY_V4.words(), [(0, 0x1fff, 0x4000), (1, 0xffff, 0)]);
        let all = |n| (n, 0xffff, 0);
        assert_eq!(Sources::ANY_V6.words(), [(0, 0x1fff, 0x2000), all(1), all(2), all(7)]);
        assert_eq!("10.9.8.0/24".parse::<Sources>().unwrap().words(), [(1, 0x00ff, 0x0800)]);
        assert_eq!("10.9.8.7".parse::<Sources>().unwrap().words(), []);
        assert_eq!("2001:db8:0:5::/60".parse::<Sources>().unwrap().words()[0], (3, 0x000f, 0));
    }

    #[test]
    fn the_addresses_of_a_network_are_numbered_and_its_own() {
        let clients: Sources = "10.9.8.0/24".parse().unwrap();
        assert_eq!(clients.count(), 254);
        assert_eq!([0, 253, 254].map(|n| clients.nth(n).to_string()), ["10.9.8.1", "10.9.8.254", "10.9.8.1"]);
        let one: Sources = "fd00::7".parse().unwrap();
        assert_eq!((one.count(), one.nth(5).to_string().as_str()), (1, "fd00::7"));
        assert!(clients.contains(clients.nth(17)) && !clients.contains("10.9.9.1".parse().unwrap()));
        assert!(one.contains(one.nth(0)) && !one.contains(clients.nth(0)));
    }

    #[test]
    fn sources_are_many_and_never_ones_own() {
        let mut spray = spray(Kind::Syn, "10.0.0.1", Sources::ANY_V4, true);
        let mut frame = vec![0; spray.frame_len()];
        let mut seen = HashSet::new();
        for _ in 0..10_000 {
            spray.stamp(&mut frame);
            let source = Ipv4Addr::from_octets(frame[26..30].try_into().unwrap());
            assert!(!source.is_private() && !source.is_loopback() && source.octets()[0] < 224, "{source}");
            seen.insert(source);
        }
        assert!(seen.len() > 9_990, "only {} different sources in 10000", seen.len());
    }

    #[test]
    fn a_named_network_is_kept_to() {
        let mut spray = spray(Kind::Syn, "10.0.0.1", "10.9.8.0/24".parse().unwrap(), false);
        let mut frame = vec![0; spray.frame_len()];
        for _ in 0..1000 {
            spray.stamp(&mut frame);
            assert_eq!(frame[26..29], [10, 9, 8]);
        }
    }

    #[test]
    fn networks_are_read_and_nonsense_is_refused() {
        assert_eq!("192.0.2.1".parse::<Sources>().unwrap().length, 32);
        assert_eq!("2001:db8::/32".parse::<Sources>().unwrap().length, 32);
        for nonsense in ["", "x", "10.0.0.0/33", "10.0.0.0/0", "::/129", "10.0.0.0/"] {
            assert!(nonsense.parse::<Sources>().is_err(), "{nonsense}");
        }
    }
}
