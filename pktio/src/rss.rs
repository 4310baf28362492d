//! The software twin of receive-side scaling (RSS), in which a NIC chooses the queue of a frame by a hash over its addresses and ports.
//!
//! The hash is Toeplitz's, over source address, destination address, source port and destination port, as Microsoft published it with
//! its test vectors. Computed in software, it shows whether the NIC does as configured, and names the queue of a connection whose frames
//! the NIC cannot parse. How NICs are configured is in `netdev`.

use std::fmt;

/// Bytes that are hashed at most: two IPv6 addresses and two ports.
const INPUT: usize = 36;

/// Bytes of a key that are used.
pub(crate) const KEY: usize = INPUT + 4;

/// The two bytes of a key that is symmetric because it repeats itself every 16 bits; these spread well (Woo and Park, 2012).
pub(crate) const REPEATED: [u8; 2] = [0x6d, 0x5a];

/// Computes the hash of both NICs, and looks it up in their table: names the queue that a connection's frames arrive on.
#[derive(Clone)]
pub struct Twin {
    /// The contribution of each value of each byte of the input.
    parts: Box<[[u32; 256]]>,
    table: Vec<u32>,
    symmetric_xor: bool,
}

impl fmt::Debug for Twin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Twin")
            .field("symmetric_xor", &self.symmetric_xor)
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl Twin {
    /// A number that differs between twins which send a connection to different queues: of key and table (FNV-1a).
    pub fn fingerprint(&self) -> u64 {
        let words = self
            .parts
            .iter()
            .flatten()
            .chain(&self.table)
            .chain([&u32::from(self.symmetric_xor)])
            .copied()
            .collect::<Vec<_>>();
        words
            .into_iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3))
    }

    /// The twin of a NIC with this key, of at least 40 bytes, and this table of queues, whose length is a power of two. With `symmetric_xor`
    /// the NIC combines source and destination by exclusive or before it hashes.
    ///
    /// # Panics
    /// If the key is too short or the table empty.
    pub fn with_key(key: &[u8], table: Vec<u32>, symmetric_xor: bool) -> Twin {
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
        Twin { parts: (0..INPUT).map(part).collect(), table, symmetric_xor }
    }

    /// Whether source and destination are combined by exclusive or, so that the key can be secret; otherwise the key repeats itself.
    pub fn is_symmetric_xor(&self) -> bool {
        self.symmetric_xor
    }

    /// The hash over these words: source, destination (of one word each in IPv4, four in IPv6), and the two ports in one, if ports are hashed.
    pub fn hash(&self, source: &[u32], destination: &[u32], ports: Option<[u16; 2]>) -> u32 {
        let both = |i: usize| source[i] ^ destination[i];
        let address = |own: &[u32], i: usize| if self.symmetric_xor { both(i) } else { own[i] };
        let ports = ports.map(|[from, to]| {
            let [from, to] = if self.symmetric_xor { [from ^ to; 2] } else { [from, to] };
            u32::from(from) << 16 | u32::from(to)
        });
        let addresses = (0..source.len()).map(|i| address(source, i));
        let words = addresses.chain((0..destination.len()).map(|i| address(destination, i))).chain(ports);
        let bytes = words.flat_map(u32::to_be_bytes);
        self.parts.iter().zip(bytes).fold(0, |hash, (part, byte)| hash ^ part[usize::from(byte)])
    }

    /// The queue on which the frames of a connection between these addresses and ports arrive, at either port and in either direction.
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
