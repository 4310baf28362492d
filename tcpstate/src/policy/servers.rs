//! What the operator has said of servers: which options their clients are offered. A table that never changes and is replaced as a whole.
//!
//! The appliance receives and keeps the entries. Here is the look-up, which every SYN makes where a mode is `commanded`.

use crate::keyed::{self, Keys};
use crate::seq::WindowScale;
use crate::wire::Addr;

/// What the clients of one server, or of all at one address, are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ServerEntry {
    /// The server's address; an IPv4 one mapped into IPv6, as in [`FlowKey`](crate::wire::FlowKey).
    pub address: Addr,
    /// Its port, or 0 for every port.
    pub port: u16,
    /// The MSS announced in its name. Zero is a free slot, and stands for no MSS.
    pub mss: u16,
    /// Whether SACK is announced.
    pub sack: bool,
    /// The window scale announced.
    pub scale: WindowScale,
}

/// The entries, found by address and port in two looks.
#[derive(Clone, Debug)]
pub struct ServerTable {
    /// A power of two, at least twice as many as there are entries: every search ends at a free place.
    places: Box<[ServerEntry]>,
    keys: Keys,
    len: usize,
    most_mss: u16,
}

impl ServerTable {
    /// A table of these entries; of several with the same address and port the last one counts. `random` spreads them, so that
    /// an attacker who can choose addresses cannot choose which of them collide.
    pub fn new(entries: &[ServerEntry], random: [u64; 2]) -> Self {
        let places = vec![ServerEntry::default(); (2 * entries.len()).next_power_of_two().max(2)].into_boxed_slice();
        let mut table = Self { places, keys: (random[0], random[1]), len: 0, most_mss: 0 };
        for entry in entries.iter().filter(|entry| entry.mss > 0) {
            let at = table.place(&entry.address, entry.port);
            table.len += usize::from(table.places[at].mss == 0);
            table.places[at] = *entry;
        }
        table.most_mss = table.places.iter().map(|place| place.mss).max().unwrap_or(0);
        table
    }

    /// What is said of the server at this address and port: of this port, or else of every port.
    pub fn find(&self, address: &Addr, port: u16) -> Option<&ServerEntry> {
        let at = |port| Some(&self.places[self.place(address, port)]).filter(|place| place.mss > 0);
        at(port).or_else(|| at(0))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The largest MSS of any entry; 0 without entries.
    pub fn most_mss(&self) -> u16 {
        self.most_mss
    }

    /// Where this entry is, or would be.
    fn place(&self, address: &Addr, port: u16) -> usize {
        let [a, b, c, d] = address.map(u64::from);
        let hash = keyed::place(self.keys, [a << 32 | b, c << 32 | d, port.into()]);
        let last = self.places.len() - 1;
        let mut at = hash as usize & last;
        while self.places[at].mss > 0 && (self.places[at].address != *address || self.places[at].port != port) {
            at = (at + 1) & last;
        }
        at
    }
}

impl Default for ServerTable {
    fn default() -> Self {
        Self::new(&[], [0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry() -> impl Strategy<Value = ServerEntry> {
        // Few addresses and ports, so that entries meet.
        (0..6_u32, 0..4_u16, 1..9000_u16, any::<bool>(), 0..=14_u8).prop_map(|(host, port, mss, sack, scale)| {
            ServerEntry { address: [0, 0, 0xffff, host], port, mss, sack, scale: WindowScale::clamped(scale) }
        })
    }

    proptest! {
        #[test]
        fn the_port_counts_more_than_every_port_and_the_last_word_counts(
            entries in proptest::collection::vec(entry(), 0..40), random in any::<[u64; 2]>()
        ) {
            let table = ServerTable::new(&entries, random);
            let model: BTreeMap<_, _> = entries.iter().map(|entry| ((entry.address, entry.port), *entry)).collect();
            prop_assert_eq!(table.len(), model.len());
            prop_assert_eq!(table.most_mss(), model.values().map(|entry| entry.mss).max().unwrap_or(0));
            for host in 0..7 {
                for port in 1..5 {
                    let address = [0, 0, 0xffff, host];
                    let expected = model.get(&(address, port)).or_else(|| model.get(&(address, 0)));
                    prop_assert_eq!(table.find(&address, port), expected);
                }
            }
        }
    }

    #[test]
    fn nothing_is_found_where_nothing_was_said() {
        assert_eq!(ServerTable::default().find(&[0, 0, 0xffff, 1], 80), None);
        let unusable = ServerEntry { port: 80, ..ServerEntry::default() };
        assert!(ServerTable::new(&[unusable], [1, 2]).is_empty());
    }
}
