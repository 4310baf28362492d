//! Rules by destination: path-compressed binary tries of address prefixes, one for each VLAN that rules name and one for any VLAN. A node
//! holds the rules of its prefix, the one for every port and those for single ports.
//!
//! A look-up walks two tries at most, that of the VLAN and that of any. Each step of a walk goes at least one bit deeper, so a walk visits 33
//! nodes of an IPv4 address and 129 of an IPv6 one at most, however many prefixes there are; among prefixes that are spread evenly it
//! visits about as many as their number has bits. Memory is at most two nodes for each prefix.

use crate::wire::{Addr, Vlan};

/// No node, or no rule.
const NONE: u32 = u32::MAX;

/// The bits of an address, the first the most significant.
fn bits(address: &Addr) -> u128 {
    address.iter().fold(0, |bits, &word| bits << 32 | u128::from(word))
}

/// A mask of the `len` leading bits.
fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

/// The bit at this place, 0 to 127; 0 beyond.
fn bit(bits: u128, at: u8) -> usize {
    (bits.checked_shl(at.into()).unwrap_or(0) >> 127) as usize
}

/// The VLAN that frames with these tags are of: the identifier of the outer tag, 0 without a tag.
fn vlan_of(tags: Vlan) -> u16 {
    tags.identifiers().next().unwrap_or(0)
}

/// Which destinations a rule covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    vlan: Option<u16>,
    bits: u128,
    len: u8,
    port: Option<u16>,
}

impl Place {
    /// This network, at one port or every port, on one VLAN or any.
    pub(super) fn new(vlan: Option<u16>, address: &Addr, prefix: u8, port: Option<u16>) -> Self {
        let len = prefix.min(128);
        Self { vlan, bits: bits(address) & mask(len), len, port }
    }

    /// What decides which of several rules counts: the greatest does.
    pub(super) fn precedence(&self) -> (u8, bool, bool) {
        (self.len, self.vlan.is_some(), self.port.is_some())
    }
}

/// A prefix, and the rules that are said of it.
#[derive(Clone, Debug)]
struct Node {
    /// The prefix's bits, as two words so that nodes lie close.
    prefix: [u64; 2],
    children: [u32; 2],
    /// The rule for every port.
    every_port: u32,
    /// Where the rules for single ports are, in `Destinations::ports`.
    ports: u32,
    len: u8,
}

impl Node {
    fn new(bits: u128, len: u8) -> Self {
        let prefix = [(bits >> 64) as u64, bits as u64];
        Self { prefix, children: [NONE; 2], every_port: NONE, ports: NONE, len }
    }

    fn bits(&self) -> u128 {
        u128::from(self.prefix[0]) << 64 | u128::from(self.prefix[1])
    }

    /// Whether an address is in the prefix.
    fn covers(&self, bits: u128) -> bool {
        (self.bits() ^ bits) & mask(self.len) == 0
    }
}

/// What a walk has found: how long the prefix was, and the rule.
type Found = (u8, u32);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    nodes: Vec<Node>,
    /// The rules for single ports of the prefixes that have any, each by rising ports.
    ports: Vec<Vec<(u16, u32)>>,
    /// The root of the trie for any VLAN.
    any: Option<u32>,
    /// The roots of the others, by their VLANs, rising.
    vlans: Vec<(u16, u32)>,
}

impl Destinations {
    /// The rule for a server at this address and port on the VLAN of these tags; without a port, of the rules for every port.
    pub(super) fn find(&self, tags: Vlan, address: &Addr, port: Option<u16>) -> Option<u32> {
        self.find_counted(vlan_of(tags), bits(address), port, &mut || ())
    }

    fn find_counted(&self, vlan: u16, bits: u128, port: Option<u16>, visit: &mut impl FnMut()) -> Option<u32> {
        let any = self.walk(self.any, bits, port, visit);
        let own = if self.vlans.is_empty() { None } else { self.walk(self.root_of(vlan), bits, port, visit) };
        // At the same length the VLAN's own rule counts, whatever their ports.
        let best = match (own, any) {
            (Some(own), Some(any)) => Some(if own.0 >= any.0 { own } else { any }),
            (own, any) => own.or(any),
        };
        best.map(|(_, rule)| rule)
    }

    /// Of the rules there are the one that counts for everything a place covers.
    pub(super) fn covering(&self, place: &Place) -> Option<u32> {
        let any = self.walk(self.any, place.bits, place.port, &mut || ());
        let own = place.vlan.and_then(|vlan| self.walk(self.root_of(vlan), place.bits, place.port, &mut || ()));
        // Rules are entered by rising precedence: none is of a longer prefix.
        let best = match (own, any) {
            (Some(own), Some(any)) => Some(if own.0 >= any.0 { own } else { any }),
            (own, any) => own.or(any),
        };
        best.map(|(_, rule)| rule)
    }

    fn root_of(&self, vlan: u16) -> Option<u32> {
        let at = self.vlans.binary_search_by_key(&vlan, |&(vlan, _)| vlan).ok()?;
        Some(self.vlans[at].1)
    }

    /// The rule of the longest prefix, for the port alone if there is one, below this root.
    fn walk(&self, root: Option<u32>, bits: u128, port: Option<u16>, visit: &mut impl FnMut()) -> Option<Found> {
        let (mut at, mut found) = (root?, None);
        while let Some(node) = self.nodes.get(at as usize) {
            visit();
            if !node.covers(bits) {
                break;
            }
            if let Some(rule) = self.rule_at(node, port) {
                found = Some((node.len, rule));
            }
            at = if node.len < 128 { node.children[bit(bits, node.len)] } else { NONE };
        }
        found
    }

    /// Enters a rule for a place, or puts it in the stead of the one there is for it.
    pub(super) fn insert(&mut self, place: &Place, rule: u32) {
        let root = match place.vlan {
            None => *self.any.get_or_insert_with(|| push(&mut self.nodes, Node::new(0, 0))),
            Some(vlan) => match self.vlans.binary_search_by_key(&vlan, |&(vlan, _)| vlan) {
                Ok(at) => self.vlans[at].1,
                Err(at) => {
                    let root = push(&mut self.nodes, Node::new(0, 0));
                    self.vlans.insert(at, (vlan, root));
                    root
                }
            },
        };
        let at = self.node_for(root, place.bits, place.len);
        let node = &mut self.nodes[at as usize];
        let Some(port) = place.port else {
            node.every_port = rule;
            return;
        };
        if node.ports == NONE {
            node.ports = self.ports.len() as u32;
            self.ports.push(Vec::new());
        }
        let ports = &mut self.ports[node.ports as usize];
        match ports.binary_search_by_key(&port, |&(port, _)| port) {
            Ok(at) => ports[at].1 = rule,
            Err(at) => ports.insert(at, (port, rule)),
        }
    }

    /// The rule a node has for this port, or else for every port.
    fn rule_at(&self, node: &Node, port: Option<u16>) -> Option<u32> {
        let alone = self.ports.get(node.ports as usize).zip(port).and_then(|(ports, port)| {
            let at = ports.binary_search_by_key(&port, |&(port, _)| port).ok()?;
            Some(ports[at].1)
        });
        alone.or((node.every_port != NONE).then_some(node.every_port))
    }

    /// The node of a prefix below a root, made if it is not there.
    fn node_for(&mut self, root: u32, bits: u128, len: u8) -> u32 {
        let mut at = root;
        loop {
            let node = &self.nodes[at as usize];
            if node.len == len {
                return at;
            }
            let branch = bit(bits, node.len);
            let child = node.children[branch];
            let Some(next) = self.nodes.get(child as usize) else {
                let new = push(&mut self.nodes, Node::new(bits, len));
                self.nodes[at as usize].children[branch] = new;
                return new;
            };
            let common = ((next.bits() ^ bits).leading_zeros() as u8).min(next.len).min(len);
            if common == next.len {
                at = child;
                continue;
            }
            // A node where the two part, or that of the prefix itself, goes between.
            let (next_bits, mut between) = (next.bits(), Node::new(bits & mask(common), common));
            between.children[bit(next_bits, common)] = child;
            let between = push(&mut self.nodes, between);
            self.nodes[at as usize].children[branch] = between;
            at = between;
        }
    }
}

fn push(nodes: &mut Vec<Node>, node: Node) -> u32 {
    nodes.push(node);
    nodes.len() as u32 - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use proptest::prelude::*;

    const MAPPED: u128 = 0xffff << 32;

    fn address(bits: u128) -> Addr {
        [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
    }

    impl Place {
        fn covers(&self, vlan: u16, address: u128, port: Option<u16>) -> bool {
            self.vlan.is_none_or(|own| own == vlan)
                && (self.bits ^ address) & mask(self.len) == 0
                && self.port.is_none_or(|own| Some(own) == port)
        }
    }

    /// Few addresses, so that prefixes cover one another, and some that differ in their first bits.
    fn addresses() -> impl Strategy<Value = u128> {
        prop_oneof![
            4 => (0u128..64).prop_map(|low| MAPPED | 0x0a00_0000 | low),
            2 => (0u128..16).prop_map(|low| 0x2001_0db8 << 96 | low << 60),
            1 => any::<u128>(),
        ]
    }

    fn places() -> impl Strategy<Value = Place> {
        let len = prop_oneof![3 => 118u8..=128, 1 => 60u8..=68, 1 => 0u8..=128];
        (prop::option::of(0u16..3), addresses(), len, prop::option::of(80u16..83))
            .prop_map(|(vlan, bits, len, port)| Place::new(vlan, &address(bits), len, port))
    }

    proptest! {
        #[test]
        fn the_rule_found_is_the_one_a_look_through_all_of_them_finds(
            places in prop::collection::vec(places(), 0..60),
            asked in prop::collection::vec((0u16..4, addresses(), prop::option::of(79u16..84)), 1..60),
        ) {
            let mut destinations = Destinations::default();
            for (rule, place) in places.iter().enumerate() {
                destinations.insert(place, rule as u32);
            }
            for (vlan, bits, port) in asked {
                let covering = places.iter().enumerate().filter(|(_, place)| place.covers(vlan, bits, port));
                // The last of those with the greatest precedence.
                let best = covering.max_by_key(|(_, place)| place.precedence()).map(|(rule, _)| rule as u32);
                let mut visits = 0;
                let found = destinations.find_counted(vlan, bits, port, &mut || visits += 1);
                prop_assert_eq!(found, best, "{} {:x} {:?}", vlan, bits, port);
                let most = if bits >> 32 == 0xffff { 34 } else { 129 };
                prop_assert!(visits <= 2 * most);
            }
        }
    }

    #[test]
    fn a_million_prefixes_are_found_in_few_steps() {
        let mut random = memory::tests::random(4);
        let mut destinations = Destinations::default();
        let networks: Vec<Place> = (0..1_000_000)
            .map(|n| match n % 4 {
                0 => Place::new(None, &address(u128::from(random()) << 64), 48 + (n % 17) as u8, None),
                1 => {
                    Place::new(Some((n % 4096) as u16), &address(MAPPED | u128::from(random() as u32)), 128, Some(443))
                }
                _ => Place::new(None, &address(MAPPED | u128::from(random() as u32)), 112 + (n % 17) as u8, None),
            })
            .collect();
        for (rule, place) in networks.iter().enumerate() {
            destinations.insert(place, rule as u32);
        }
        assert!(destinations.nodes.len() <= 2 * networks.len() + 4097 + 1);
        let (mut most, mut all) = (0, 0u64);
        for (rule, place) in networks.iter().enumerate().step_by(7) {
            let mut visits = 0;
            let vlan = place.vlan.unwrap_or(5000);
            let found = destinations.find_counted(vlan, place.bits, place.port, &mut || visits += 1);
            let found = &networks[found.expect("it is there") as usize];
            assert!(found.len >= place.len && found.covers(vlan, place.bits, place.port), "{rule}");
            most = most.max(visits);
            all += visits;
        }
        // Of random prefixes a walk sees about as many as their number has bits, and those that cover one another.
        assert!(most <= 2 * 34, "{most} visits");
        assert!(all / (1_000_000 / 7) <= 40, "{} visits on average", all / (1_000_000 / 7));
    }

    #[test]
    fn every_length_of_prefix_nested_is_the_most_a_walk_can_see() {
        let mut destinations = Destinations::default();
        for len in 0..=128 {
            destinations.insert(&Place::new(None, &[u32::MAX; 4], len, Some(7)), len.into());
            destinations.insert(&Place::new(Some(9), &[u32::MAX; 4], len, None), 200 + u32::from(len));
        }
        for (vlan, port, expected) in [(9, 7, 328), (9, 8, 328), (8, 7, 128)] {
            let mut visits = 0;
            let found = destinations.find_counted(vlan, u128::MAX, Some(port), &mut || visits += 1);
            assert_eq!(found, Some(expected));
            assert!(visits <= 2 * 129, "{visits}");
        }
        assert_eq!(destinations.find_counted(8, u128::MAX, Some(8), &mut || ()), None);
    }
}
