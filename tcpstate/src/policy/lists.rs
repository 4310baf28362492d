//! Lists of clients by network: who is blocked, who is passed, and who is always proxied.
//!
//! A client may be in several lists; the first counts in the order [`List::Block`], [`List::Allow`], [`List::Always`], whatever the lengths of the
//! prefixes are. IPv4 clients are in IPv4 networks alone and IPv6 clients in IPv6 networks: `::/0` names no IPv4 client.
//!
//! The networks of all lists are laid out as the points where the lists that an address is in change, in rising order, for each family. A look-up is one
//! binary search: at most 23 steps among four million IPv4 points, of which the first 16 bits of the address skip most, and as many among IPv6 points. Of
//! n networks there are 2n points at most, of 5 bytes (IPv4) or 17 (IPv6), and an index of 256 KiB for IPv4: a million IPv4 networks take at most
//! 11 MB, a million IPv6 networks 34 MB, once for all workers.

use crate::config::Network;
use crate::wire::FlowKey;

/// A list of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum List {
    /// Their new connections are dropped.
    Block,
    /// Their connections are passed to the servers unanswered, and followed.
    Allow,
    /// Their connections are proxied, whatever else would let them pass.
    Always,
}

impl List {
    /// Every list, the one that counts first before the others.
    pub const ALL: [List; 3] = [List::Block, List::Allow, List::Always];

    /// Its name in the configuration, on the control socket and in the log.
    pub const fn name(self) -> &'static str {
        match self {
            List::Block => "block",
            List::Allow => "allow",
            List::Always => "always",
        }
    }

    /// The bit that stands for it in a set of lists.
    const fn bit(self) -> u8 {
        1 << self as u8
    }

    /// Of a set of lists the one that counts.
    fn first_of(set: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|list| set & list.bit() != 0)
    }
}

/// Which clients are in which list: an immutable snapshot, made where there is time, and shared by all workers.
#[derive(Default)]
pub struct Lists {
    v4: Points<u32>,
    v6: Points<u128>,
    /// Of each upper half of an IPv4 address, and of one beyond, how many points lie before it; empty where there are no points.
    halves: Box<[u32]>,
}

/// The points at which the lists change that an address is in.
#[derive(Default)]
struct Points<T> {
    at: Box<[T]>,
    /// The lists from there on, as a set.
    sets: Box<[u8]>,
}

/// Where a network of a list begins, or where it has ended.
type Edge<T> = (T, u8);

/// Whether an edge is a beginning.
const BEGINS: u8 = 1 << 7;

impl<T: Copy + Ord> Points<T> {
    fn new(mut edges: Vec<Edge<T>>) -> Self {
        edges.sort_unstable_by_key(|&(at, _)| at);
        let (mut points, mut sets) = (Vec::new(), Vec::new());
        let (mut covering, mut last) = ([0u32; List::ALL.len()], 0);
        for together in edges.chunk_by(|one, other| one.0 == other.0) {
            for &(_, edge) in together {
                let count = &mut covering[usize::from(edge & !BEGINS)];
                // Of edges at one point an end may come before the beginning of the same network's neighbour, never before its own.
                *count = if edge & BEGINS != 0 { count.wrapping_add(1) } else { count.wrapping_sub(1) };
            }
            let set = List::ALL.into_iter().fold(0, |set, list| match covering[list as usize] {
                0 => set,
                _ => set | list.bit(),
            });
            if set != last {
                points.push(together[0].0);
                sets.push(set);
                last = set;
            }
        }
        Self { at: points.into(), sets: sets.into() }
    }

    /// The lists that an address is in, given how many of the points from `from` on are certainly not beyond it, and from where on all are.
    #[inline(always)]
    fn set_at(&self, address: T, from: usize, to: usize) -> u8 {
        let before = from + self.at[from..to].partition_point(|&at| at <= address);
        before.checked_sub(1).map_or(0, |last| self.sets[last])
    }
}

impl Lists {
    /// These networks in these lists, in any order; those of one list may overlap.
    ///
    /// # Panics
    /// If there are more than 2^31 networks.
    pub fn new(networks: impl IntoIterator<Item = (List, Network)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (list, Network { address, prefix }) in networks {
            let bits = address.iter().fold(0, |bits, &word| bits << 32 | u128::from(word));
            let beyond = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
            let (first, last) = (bits & !beyond, bits | beyond);
            let edges = [BEGINS | list as u8, list as u8];
            if is_ipv4(&address, prefix) {
                v4.push((first as u32, edges[0]));
                v4.extend((last as u32).checked_add(1).map(|end| (end, edges[1])));
            } else {
                v6.push((first, edges[0]));
                v6.extend(last.checked_add(1).map(|end| (end, edges[1])));
            }
        }
        let (v4, v6) = (Points::new(v4), Points::new(v6));
        assert!(u32::try_from(v4.at.len()).is_ok(), "points of IPv4 networks are counted in 32 bits");
        let mut halves = Vec::new();
        if !v4.at.is_empty() {
            halves.reserve_exact((1 << 16) + 1);
            let mut before = 0;
            for half in 0..=1u32 << 16 {
                while v4.at.get(before).is_some_and(|at| at >> 16 < half) {
                    before += 1;
                }
                halves.push(before as u32);
            }
        }
        Self { v4, v6, halves: halves.into() }
    }

    /// Whether no client is in any list.
    pub fn is_empty(&self) -> bool {
        self.v4.at.is_empty() && self.v6.at.is_empty()
    }

    /// The bytes it takes.
    pub fn bytes(&self) -> usize {
        5 * self.v4.at.len() + 17 * self.v6.at.len() + size_of_val(&*self.halves)
    }

    /// The list that counts for the client of a connection, if it is in any.
    #[inline]
    pub fn find(&self, key: &FlowKey) -> Option<List> {
        let set = if key.v6 {
            let address = key.wan.iter().fold(0, |bits, &word| bits << 32 | u128::from(word));
            self.v6.set_at(address, 0, self.v6.at.len())
        } else {
            let address = key.wan[3];
            let half = (address >> 16) as usize;
            match self.halves.get(half..half + 2) {
                Some(&[from, to]) => self.v4.set_at(address, from as usize, to as usize),
                _ => 0,
            }
        };
        List::first_of(set)
    }
}

impl core::fmt::Debug for Lists {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Lists").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

/// Whether a network is one of IPv4 addresses in their mapped form (RFC 4291 section 2.5.5.2).
fn is_ipv4(address: &crate::wire::Addr, prefix: u8) -> bool {
    prefix >= 96 && address[..3] == [0, 0, 0xffff]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::random;
    use proptest::prelude::*;
    use std::time::Instant;

    fn v4(address: u32) -> FlowKey {
        FlowKey { wan: [0, 0, 0xffff, address], ..FlowKey::default() }
    }

    fn v6(address: [u32; 4]) -> FlowKey {
        FlowKey { wan: address, v6: true, ..FlowKey::default() }
    }

    fn mapped(address: u32, prefix: u8) -> Network {
        Network { address: [0, 0, 0xffff, address], prefix: 96 + prefix }
    }

    fn lists() -> impl Strategy<Value = (List, Network)> {
        let list = prop::sample::select(&List::ALL[..]);
        let low = prop_oneof![Just(0u32), 0u32..16, 0xffff_fff0u32..=u32::MAX, any::<u32>()];
        let v4 = (low.clone(), prop_oneof![3 => 27u8..=32, 1 => 0u8..=32]).prop_map(|(low, len)| mapped(low, len));
        let v6 = (low.clone(), low, prop_oneof![60u8..=68, 120u8..=128, 0u8..=128])
            .prop_map(|(high, low, prefix)| Network { address: [high, 0, 7, low], prefix });
        (list, prop_oneof![v4, v6])
    }

    /// The list that counts, by looking through all networks.
    fn naive(networks: &[(List, Network)], key: &FlowKey) -> Option<List> {
        let covers =
            |network: &Network| network.covers(&key.wan) && is_ipv4(&network.address, network.prefix) != key.v6;
        networks.iter().filter(|(_, network)| covers(network)).map(|&(list, _)| list).min()
    }

    proptest! {
        #[test]
        fn the_list_found_is_the_one_a_look_through_all_networks_finds(
            networks in prop::collection::vec(lists(), 0..40),
            asked in prop::collection::vec((any::<u32>(), 0u32..20), 0..20),
        ) {
            let lists = Lists::new(networks.iter().copied());
            let ends = networks.iter().flat_map(|(_, Network { address, prefix })| {
                let beyond = u128::MAX.checked_shr((*prefix).into()).unwrap_or(0);
                let bits = address.iter().fold(0, |bits, &word| bits << 32 | u128::from(word));
                [(bits & !beyond).wrapping_sub(1), bits & !beyond, bits | beyond, (bits | beyond).wrapping_add(1)]
            });
            let ends: Vec<_> = ends.map(|bits| [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)).collect();
            let keys = ends.iter().flat_map(|&address| [v4(address[3]), v6(address)]);
            let keys = keys.chain(asked.iter().flat_map(|&(high, low)| [v4(high), v4(low), v6([high, 0, 7, low])]));
            for key in keys {
                prop_assert_eq!(lists.find(&key), naive(&networks, &key), "{:?}", key.wan);
            }
        }
    }

    #[test]
    fn the_order_of_lists_counts_and_not_the_length_of_prefixes() {
        let lists = Lists::new([
            (List::Always, mapped(0, 0)),
            (List::Allow, mapped(0x0a00_0001, 32)),
            (List::Block, mapped(0x0a00_0000, 8)),
            (List::Allow, mapped(0xc000_0200, 24)),
        ]);
        let found = [0x0a00_0001, 0xc000_0201, 0x0b00_0001].map(|address| lists.find(&v4(address)));
        assert_eq!(found, [List::Block, List::Allow, List::Always].map(Some));
        assert_eq!(lists.find(&v6([0x2001_0db8, 0, 0, 1])), None);
        let everybody = Lists::new([(List::Block, Network { address: [0; 4], prefix: 0 })]);
        assert_eq!([v4(7), v6([7; 4])].map(|key| everybody.find(&key)), [None, Some(List::Block)]);
    }

    #[test]
    fn without_networks_nothing_is_found_and_nothing_is_taken() {
        let lists = Lists::default();
        assert!(lists.is_empty() && lists.bytes() == 0);
        assert_eq!([v4(0), v6([0; 4])].map(|key| lists.find(&key)), [None, None]);
    }

    #[test]
    fn a_million_networks_take_what_is_stated_and_are_found() {
        let mut random = random(5);
        let mut network = |n: u32| match n % 2 {
            0 => (List::Block, mapped(random() as u32, 24 + (n % 9) as u8)),
            _ => {
                let address = [0x2000_0000 | random() as u32 >> 3, random() as u32, 0, 0];
                (List::Allow, Network { address, prefix: 48 + (n % 17) as u8 })
            }
        };
        let networks: Vec<_> = (0..1_000_000).map(&mut network).collect();
        let begin = Instant::now();
        let lists = Lists::new(networks.iter().copied());
        println!("a million networks: {} bytes, made in {:?}", lists.bytes(), begin.elapsed());
        // Half of each family.
        assert!(lists.bytes() <= 500_000 * 2 * (5 + 17) + 4 * ((1 << 16) + 1));
        for (list, Network { address, prefix }) in networks.iter().step_by(7) {
            let key = if is_ipv4(address, *prefix) { v4(address[3]) } else { v6(*address) };
            assert!(lists.find(&key).is_some_and(|found| found <= *list));
        }
    }
}
