//! Receive-side scaling, in which the network card chooses the queue of a frame by a hash of its ends: made symmetric, so that both directions
//! of a connection arrive on queues of the same number, put back at exit, and computed once more in software, to see whether the
//! card does as it was told and to know where it would have sent what it cannot parse.
//!
//! The hash is Toeplitz's, over source address, destination address, source port and destination port, as Microsoft published it with
//! its test vectors. Two ways make it symmetric: the card joins source and destination by exclusive or before it hashes
//! (`symmetric-xor`; the key can be secret), or the key repeats itself every 16 bits.

use std::fmt;
use std::io;

use crate::netdev::{Control, Interface, Undo};

// linux/ethtool.h
const ETHTOOL_GRXFH: u32 = 0x29;
const ETHTOOL_SRXFH: u32 = 0x2a;
const ETHTOOL_GRSSH: u32 = 0x46;
const ETHTOOL_SRSSH: u32 = 0x47;
const TCP_V4_FLOW: u32 = 0x01;
const TCP_V6_FLOW: u32 = 0x05;
/// Both addresses and both ports (`RXH_IP_SRC | RXH_IP_DST | RXH_L4_B_0_1 | RXH_L4_B_2_3`).
const FOUR_TUPLE: u32 = 0xf0;
/// `ETH_RSS_HASH_TOP`: Toeplitz.
const TOEPLITZ: u8 = 1;
/// `RXH_XFRM_SYM_XOR`: source and destination are joined first.
const SYMMETRIC_XOR: u8 = 1;
/// Words of `struct ethtool_rxfh` before the table.
const RXFH_WORDS: usize = 6;
/// Words of `struct ethtool_rxnfc`, and some to spare.
const RXNFC_WORDS: usize = 64;

/// Two bytes that, repeated, spread well (Woo and Park, 2012).
const REPEATED: [u8; 2] = [0x6d, 0x5a];

/// Bytes that are hashed at most: two IPv6 addresses and two ports.
const INPUT: usize = 36;

/// Bytes of a key that matter.
const KEY: usize = INPUT + 4;

/// How a card spreads frames over its queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scaling {
    /// The queue of each value of the hash's lower bits.
    table: Vec<u32>,
    key: Vec<u8>,
    function: u8,
    transform: u8,
}

impl Scaling {
    /// Asks a device.
    fn read(control: &Control, name: &str) -> io::Result<Scaling> {
        // cmd, context, table size, key size, hash function and transform and two spare bytes, spare.
        let mut sizes = [ETHTOOL_GRSSH, 0, 0, 0, 0, 0];
        control.ethtool(name, &mut sizes)?;
        let (entries, key) = (sizes[2] as usize, sizes[3] as usize);
        let mut request = vec![0_u32; RXFH_WORDS + entries + key.div_ceil(4)];
        (request[0], request[2], request[3]) = (ETHTOOL_GRSSH, sizes[2], sizes[3]);
        control.ethtool(name, &mut request)?;
        let [function, transform, ..] = request[4].to_ne_bytes();
        let bytes: Vec<u8> = request[RXFH_WORDS + entries..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let table = request[RXFH_WORDS..RXFH_WORDS + entries].to_vec();
        Ok(Scaling { table, key: bytes[..key].to_vec(), function, transform })
    }

    /// The request that makes a device spread like this.
    fn request(&self) -> Vec<u32> {
        let functions = u32::from_ne_bytes([self.function, self.transform, 0, 0]);
        let mut request = vec![ETHTOOL_SRSSH, 0, self.table.len() as u32, self.key.len() as u32, functions, 0];
        request.extend(&self.table);
        request.extend(self.key.chunks(4).map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_ne_bytes(word)
        }));
        request
    }

    /// The same, over this many queues in turn, with Toeplitz's hash, this key and this transform.
    fn over(&self, queues: u32, key: impl Iterator<Item = u8>, transform: u8) -> Scaling {
        Scaling {
            table: (0..self.table.len() as u32).map(|i| i % queues).collect(),
            key: key.take(self.key.len()).collect(),
            function: TOEPLITZ,
            transform,
        }
    }
}

/// The request that has a device spread over its queues in turn again, whatever their number.
fn default_table() -> Vec<u32> {
    vec![ETHTOOL_SRSSH, 0, 0, 0, 0, 0]
}

/// What was found on both devices before anything was changed.
pub(crate) struct Before([Scaling; 2]);

impl Before {
    /// Asks both devices.
    ///
    /// # Errors
    /// The first that does not tell, and why.
    pub(crate) fn read(control: &Control, interfaces: [&Interface; 2]) -> Result<Before, String> {
        let read = |interface: &Interface| {
            let name = interface.name();
            let scaling = Scaling::read(control, name).map_err(|error| format!("{name} has none ({error})"))?;
            match () {
                () if scaling.table.is_empty() => Err(format!("{name} has no table of queues")),
                () if scaling.key.len() < KEY => Err(format!("the key of {name} cannot be set")),
                () => Ok(scaling),
            }
        };
        Ok(Before([read(interfaces[0])?, read(interfaces[1])?]))
    }

    /// What puts the tables and keys back, once the queues are as many as they were.
    pub(crate) fn undo(&self, interfaces: [&Interface; 2]) -> Vec<Undo> {
        let pairs = interfaces.iter().zip(&self.0);
        pairs
            .map(|(interface, scaling)| Undo::Scaling { name: interface.name().into(), request: scaling.request() })
            .collect()
    }

    /// Makes both devices spread connections over `queues` queues in the same, symmetric way, and pushes onto `undo` what puts it back.
    ///
    /// # Errors
    /// Why they cannot; what had been changed is on `undo` all the same.
    pub(crate) fn make_symmetric(
        &self,
        control: &Control,
        interfaces: [&Interface; 2],
        queues: usize,
        random: &[u8; 64],
        undo: &mut Vec<Undo>,
    ) -> Result<Twin, String> {
        let queues = u32::try_from(queues).map_err(|_| "too many queues".to_owned())?;
        if self.0[0].table.len() != self.0[1].table.len() && !queues.is_power_of_two() {
            return Err("the devices' tables of queues differ in size".into());
        }
        for interface in interfaces {
            // The queues could not be as few as before while a table names more.
            undo.push(Undo::Scaling { name: interface.name().into(), request: default_table() });
            for flow in [TCP_V4_FLOW, TCP_V6_FLOW] {
                undo.extend(hash_ports(control, interface.name(), flow)?);
            }
        }
        let ways: [(u8, &mut dyn Iterator<Item = u8>, &mut dyn Iterator<Item = u8>); 2] = [
            (SYMMETRIC_XOR, &mut random.iter().copied().cycle(), &mut random.iter().copied().cycle()),
            (0, &mut REPEATED.into_iter().cycle(), &mut REPEATED.into_iter().cycle()),
        ];
        let mut reasons = Vec::new();
        for (transform, key, same_key) in ways {
            let wanted = [self.0[0].over(queues, key, transform), self.0[1].over(queues, same_key, transform)];
            let mut set = interfaces.iter().zip(&wanted);
            match set.try_for_each(|(interface, wanted)| impose(control, interface.name(), wanted)) {
                Ok(()) => return Ok(Twin::new(&wanted[0])),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons.join("; "))
    }
}

/// Makes a device spread as wanted, and sees whether it says so itself.
fn impose(control: &Control, name: &str, wanted: &Scaling) -> Result<(), String> {
    let way = if wanted.transform == SYMMETRIC_XOR { "symmetric-xor" } else { "a symmetric key" };
    control.ethtool(name, &mut wanted.request()).map_err(|error| format!("{name} does not take {way} ({error})"))?;
    match Scaling::read(control, name) {
        Ok(found) if found == *wanted => Ok(()),
        Ok(_) => Err(format!("{name} does not keep {way}")),
        Err(error) => Err(format!("{name} does not tell whether it keeps {way} ({error})")),
    }
}

/// Has a device hash addresses and ports of TCP.
fn hash_ports(control: &Control, name: &str, flow: u32) -> Result<Option<Undo>, String> {
    // cmd, flow type, a 64-bit field of what is hashed.
    let mut fields = [0_u32; RXNFC_WORDS];
    (fields[0], fields[1]) = (ETHTOOL_GRXFH, flow);
    let low = if cfg!(target_endian = "big") { 3 } else { 2 };
    if control.ethtool(name, &mut fields).is_err() {
        // It has no choice; the samples will tell what it hashes.
        return Ok(None);
    }
    let before = fields[low];
    if before == FOUR_TUPLE {
        return Ok(None);
    }
    fields = [0; RXNFC_WORDS];
    (fields[0], fields[1], fields[low]) = (ETHTOOL_SRXFH, flow, FOUR_TUPLE);
    let refused = |error| format!("{name} does not hash the ports of TCP ({error})");
    control.ethtool(name, &mut fields).map_err(refused)?;
    let mut request = vec![0; RXNFC_WORDS];
    (request[0], request[1], request[low]) = (ETHTOOL_SRXFH, flow, before);
    Ok(Some(Undo::Scaling { name: name.into(), request }))
}

/// The software twin of the hash both cards compute, and of their table: names the queue a connection's frames arrive on.
#[derive(Clone)]
pub struct Twin {
    /// What each value of each byte of the input contributes.
    parts: Box<[[u32; 256]]>,
    table: Vec<u32>,
    joined: bool,
}

impl fmt::Debug for Twin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Twin").field("joined", &self.joined).field("table", &self.table).finish_non_exhaustive()
    }
}

impl Twin {
    fn new(scaling: &Scaling) -> Twin {
        Twin::with_key(&scaling.key, scaling.table.clone(), scaling.transform == SYMMETRIC_XOR)
    }

    /// One for this key, of 40 bytes at least, and this table of queues, whose length is a power of two. `joined`: source and destination
    /// are joined by exclusive or before they are hashed.
    ///
    /// # Panics
    /// If the key is too short or the table empty.
    pub fn with_key(key: &[u8], table: Vec<u32>, joined: bool) -> Twin {
        assert!(key.len() >= KEY && !table.is_empty());
        // The 32 bits of the key that begin at bit `at`.
        let window = |at: usize| {
            let from = at / 8;
            let wide = key[from..].iter().chain(&[0; 5]).take(5).fold(0_u64, |wide, &byte| wide << 8 | u64::from(byte));
            (wide >> (8 - at % 8)) as u32
        };
        let part = |position: usize| {
            std::array::from_fn(|value| {
                let set = (0..8).filter(|bit| value & (0x80 >> bit) != 0);
                set.fold(0, |sum, bit| sum ^ window(8 * position + bit))
            })
        };
        Twin { parts: (0..INPUT).map(part).collect(), table, joined }
    }

    /// Whether source and destination are joined by exclusive or, so that the key can be secret; else the key repeats itself.
    pub fn is_joined(&self) -> bool {
        self.joined
    }

    /// The hash over these words: source, destination (of one word each in IPv4, four in IPv6), and the two ports in one, if ports are hashed.
    pub fn hash(&self, source: &[u32], destination: &[u32], ports: Option<[u16; 2]>) -> u32 {
        let both = |i: usize| source[i] ^ destination[i];
        let address = |own: &[u32], i: usize| if self.joined { both(i) } else { own[i] };
        let ports = ports.map(|[from, to]| {
            let [from, to] = if self.joined { [from ^ to; 2] } else { [from, to] };
            u32::from(from) << 16 | u32::from(to)
        });
        let addresses = (0..source.len()).map(|i| address(source, i));
        let words = addresses.chain((0..destination.len()).map(|i| address(destination, i))).chain(ports);
        let bytes = words.flat_map(u32::to_be_bytes);
        self.parts.iter().zip(bytes).fold(0, |hash, (part, byte)| hash ^ part[usize::from(byte)])
    }

    /// The queue the frames of a connection between these ends arrive on, by either port and in either direction.
    ///
    /// # Panics
    /// If the addresses are of different families.
    pub fn queue(&self, one: &[u32], other: &[u32], ports: Option<[u16; 2]>) -> usize {
        let hash = self.hash(one, other, ports) as usize;
        self.table[hash % self.table.len()] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// The key and the vectors of "Verifying the RSS Hash Calculation" (Microsoft, Windows driver documentation).
    const PUBLISHED: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];

    fn v4(address: &str) -> [u32; 1] {
        [address.parse::<Ipv4Addr>().unwrap().to_bits()]
    }

    fn v6(address: &str) -> [u32; 4] {
        let bits = address.parse::<Ipv6Addr>().unwrap().to_bits();
        [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
    }

    #[test]
    fn the_published_vectors_of_ipv4_hold() {
        let twin = Twin::with_key(&PUBLISHED, vec![0], false);
        for (destination, to, source, from, addresses, all) in [
            ("161.142.100.80", 1766, "66.9.149.187", 2794, 0x323e_8fc2, 0x51cc_c178),
            ("65.69.140.83", 4739, "199.92.111.2", 14230, 0xd718_262a, 0xc626_b0ea),
            ("12.22.207.184", 38024, "24.19.198.95", 12898, 0xd2d0_a5de, 0x5c2b_394a),
            ("209.142.163.6", 2217, "38.27.205.30", 48228, 0x8298_9176, 0xafc7_327f),
            ("202.188.127.2", 1303, "153.39.163.191", 44251, 0x5d18_09c5, 0x10e8_28a2),
        ] {
            assert_eq!(twin.hash(&v4(source), &v4(destination), None), addresses, "{source}");
            assert_eq!(twin.hash(&v4(source), &v4(destination), Some([from, to])), all, "{source}");
        }
    }

    #[test]
    fn the_published_vectors_of_ipv6_hold() {
        let twin = Twin::with_key(&PUBLISHED, vec![0], false);
        for (destination, to, source, from, addresses, all) in [
            ("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2cc1_8cd5, 0x4020_7d3d),
            ("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0f0c_461c, 0xdde5_1bbf),
            ("fe80::200:f8ff:fe21:67cf", 38024, "3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, 0x4b61_e985, 0x02d1_feef),
        ] {
            assert_eq!(twin.hash(&v6(source), &v6(destination), None), addresses, "{source}");
            assert_eq!(twin.hash(&v6(source), &v6(destination), Some([from, to])), all, "{source}");
        }
    }

    /// Toeplitz's hash as it is defined, bit by bit.
    fn defined(key: &[u8], input: &[u8]) -> u32 {
        let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
        let window = |at: usize| (at..at + 32).fold(0_u32, |window, at| window << 1 | u32::from(bit(key, at)));
        (0..8 * input.len()).filter(|&at| bit(input, at) == 1).fold(0, |hash, at| hash ^ window(at))
    }

    fn scaling(entries: usize, key: usize) -> Scaling {
        Scaling { table: vec![7; entries], key: vec![9; key], function: 2, transform: 0 }
    }

    #[test]
    fn a_request_says_all_there_is_to_say_and_a_default_one_only_the_table() {
        let wanted = scaling(4, 42).over(3, REPEATED.into_iter().cycle(), SYMMETRIC_XOR);
        let request = wanted.request();
        assert_eq!(request[..4], [ETHTOOL_SRSSH, 0, 4, 42]);
        assert_eq!(request[4].to_ne_bytes(), [TOEPLITZ, SYMMETRIC_XOR, 0, 0]);
        assert_eq!(request[6..10], [0, 1, 2, 0]);
        assert_eq!(request.len(), 6 + 4 + 11);
        assert_eq!(request[10].to_ne_bytes(), [0x6d, 0x5a, 0x6d, 0x5a]);
        assert_eq!(request[20].to_ne_bytes(), [0x6d, 0x5a, 0, 0]);
        // No table, no key, no function: entries 0 mean the default, the others no change.
        assert_eq!(default_table(), [ETHTOOL_SRSSH, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn the_twin_computes_what_is_defined(
            key in prop::array::uniform32(any::<u8>()), rest in prop::array::uniform8(any::<u8>()),
            one in prop::array::uniform4(any::<u32>()), other in prop::array::uniform4(any::<u32>()),
            ports in any::<[u16; 2]>(),
        ) {
            let key = [key.as_slice(), &rest].concat();
            let twin = Twin::with_key(&key, vec![0], false);
            let words: Vec<u32> = [one, other].concat();
            let mut input: Vec<u8> = words.into_iter().flat_map(u32::to_be_bytes).collect();
            prop_assert_eq!(twin.hash(&one, &other, None), defined(&key, &input));
            input.extend(ports.into_iter().flat_map(u16::to_be_bytes));
            prop_assert_eq!(twin.hash(&one, &other, Some(ports)), defined(&key, &input));
        }

        #[test]
        fn both_ways_are_symmetric(
            key in prop::array::uniform32(any::<u8>()), joined in any::<bool>(),
            one in prop::array::uniform4(any::<u32>()), other in prop::array::uniform4(any::<u32>()),
            [from, to] in any::<[u16; 2]>(),
        ) {
            let key: Vec<u8> = if joined { key.into_iter().cycle().take(52).collect() } else { REPEATED.into_iter().cycle().take(40).collect() };
            let twin = Twin::with_key(&key, (0..128).map(|i| i % 6).collect(), joined);
            for len in [1, 4] {
                let (one, other) = (&one[..len], &other[..len]);
                prop_assert_eq!(twin.queue(one, other, Some([from, to])), twin.queue(other, one, Some([to, from])));
                prop_assert_eq!(twin.queue(one, other, None), twin.queue(other, one, None));
            }
        }
    }
}
