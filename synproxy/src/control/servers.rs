//! The server table as the operator sets it: TCP options of servers by address, port and protocol. After every change each worker gets
//! an immutable table to look servers up in; connections answered before keep the options they were offered.

use crate::dataplane::commands::{Answer, Command, CommandSender};
use ::control::wire::Operation;
use ::control::{Entry, Key};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tcpstate::seq::WindowScale;
use tcpstate::{ServerEntry, ServerTable};
use tracing::{debug, warn};

/// The most entries there may be: a change of one rebuilds the table, which takes a few milliseconds for this many.
pub const MAX_ENTRIES: usize = 65_536;

/// The protocol number of TCP.
const TCP: u8 = 6;

/// Why an operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is an entry for this server already.
    Exists,
    /// There is no entry for this server.
    Absent,
    /// There are [`MAX_ENTRIES`] entries already.
    Full,
    /// There is no such operation.
    Unknown,
    /// The entry is not valid, for this reason.
    Invalid(&'static str),
}

/// The entries.
#[derive(Debug, Default)]
struct Table {
    entries: BTreeMap<Key, Entry>,
}

impl Table {
    /// Executes the operation; true if anything has changed.
    fn apply(&mut self, operation: &Operation) -> Result<bool, Refused> {
        match *operation {
            Operation::Flush(None) => {
                let changed = !self.entries.is_empty();
                self.entries.clear();
                Ok(changed)
            }
            Operation::Flush(Some(address)) => {
                let before = self.entries.len();
                self.entries.retain(|key, _| key.address != address);
                Ok(self.entries.len() < before)
            }
            Operation::Add(entry) => {
                entry.check().map_err(Refused::Invalid)?;
                if self.entries.contains_key(&entry.key()) {
                    return Err(Refused::Exists);
                }
                self.insert(entry)
            }
            Operation::Modify(entry) => {
                entry.check().map_err(Refused::Invalid)?;
                self.insert(entry)
            }
            Operation::Delete(key) => self.entries.remove(&key).map(|_| true).ok_or(Refused::Absent),
            Operation::Unknown(_) => Err(Refused::Unknown),
        }
    }

    fn insert(&mut self, entry: Entry) -> Result<bool, Refused> {
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&entry.key()) {
            return Err(Refused::Full);
        }
        Ok(self.entries.insert(entry.key(), entry) != Some(entry))
    }

    /// The entries for the workers, which look up TCP only: of two entries for the same address and port, the one that names TCP.
    fn compile(&self) -> Vec<ServerEntry> {
        // In this order protocol 0 comes before 6, and the last one counts.
        let entries = self.entries.values().filter(|entry| entry.protocol == 0 || entry.protocol == TCP);
        entries
            .map(|entry| ServerEntry {
                address: words(entry.address),
                port: entry.port,
                mss: entry.mss,
                sack: entry.sack,
                scale: WindowScale::clamped(entry.wscale),
            })
            .collect()
    }
}

/// An address as the engine represents it.
fn words(address: IpAddr) -> [u32; 4] {
    let bits = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
    .to_bits();
    [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
}

/// The entries, and the workers that use them.
pub struct ServerRegistry {
    /// Locked until the workers have a change, so that they get changes in order.
    table: Mutex<Table>,
    workers: CommandSender,
    /// The key of the hash in the workers' tables.
    random: [u64; 2],
}

impl ServerRegistry {
    /// No entries, for these workers; `random` must be unpredictable.
    pub fn new(workers: CommandSender, random: [u64; 2]) -> Self {
        Self { table: Mutex::default(), workers, random }
    }

    /// Executes the operations in order, and returns the outcome of each once every worker uses the result.
    pub fn apply(&self, operations: &[Operation]) -> Vec<Result<(), Refused>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        let outcomes = operations.iter().map(|operation| {
            let outcome = table.apply(operation);
            debug!("server table: {operation:?}: {outcome:?}");
            changed |= outcome == Ok(true);
            outcome.map(drop)
        });
        let outcomes = outcomes.collect();
        if changed {
            let servers = Arc::new(ServerTable::new(&table.compile(), self.random));
            let mut missing = 0;
            for answer in self.workers.send(&Command::ServerTable(servers)) {
                match answer {
                    // The worker has sent its former table back to be freed here.
                    Some(Answer::Former(former)) => drop(former),
                    _ => missing += 1,
                }
            }
            if missing > 0 {
                warn!("{missing} workers have not confirmed the change of the server table yet");
            }
        }
        outcomes
    }

    /// The entries, in order.
    pub fn list(&self) -> Vec<Entry> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).entries.values().copied().collect()
    }

    /// How many entries there are.
    pub fn count(&self) -> usize {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: &str, port: u16, protocol: u8, mss: u16) -> Entry {
        Entry { address: address.parse().unwrap(), port, protocol, mss, sack: true, wscale: 7 }
    }

    fn registry() -> ServerRegistry {
        ServerRegistry::new(CommandSender::open(0).unwrap(), [1, 2])
    }

    /// The MSS that workers find for a server.
    fn found(registry: &ServerRegistry, address: &str, port: u16) -> Option<u16> {
        let table = registry.table.lock().unwrap();
        let servers = ServerTable::new(&table.compile(), registry.random);
        servers.find(&words(address.parse().unwrap()), port).map(|server| server.mss)
    }

    #[test]
    fn operations_do_what_they_are_named_after_and_return_the_outcome() {
        let registry = registry();
        let apply = |operation: Operation| registry.apply(&[operation])[0];
        let first = entry("10.0.0.1", 80, 6, 1000);
        let key = first.key();
        assert_eq!(apply(Operation::Delete(key)), Err(Refused::Absent));
        assert_eq!(apply(Operation::Add(first)), Ok(()));
        assert_eq!(apply(Operation::Add(entry("10.0.0.1", 80, 6, 1001))), Err(Refused::Exists));
        assert_eq!(found(&registry, "10.0.0.1", 80), Some(1000));
        assert_eq!(apply(Operation::Modify(entry("10.0.0.1", 80, 6, 1002))), Ok(()));
        assert_eq!(found(&registry, "10.0.0.1", 80), Some(1002));
        assert_eq!(apply(Operation::Modify(entry("10.0.0.2", 0, 0, 1003))), Ok(()), "modify adds what is not there");
        assert_eq!(apply(Operation::Delete(Key { port: 0, ..key })), Err(Refused::Absent), "only exactly this key");
        assert_eq!(apply(Operation::Delete(key)), Ok(()));
        assert_eq!(registry.list(), [entry("10.0.0.2", 0, 0, 1003)]);
        assert_eq!(apply(Operation::Unknown(3)), Err(Refused::Unknown));
    }

    #[test]
    fn the_more_specific_entry_counts_whatever_the_order() {
        let entries = [
            entry("10.0.0.1", 0, 0, 1),
            entry("10.0.0.1", 0, 6, 2),
            entry("10.0.0.1", 80, 0, 3),
            entry("10.0.0.1", 80, 6, 4),
            entry("10.0.0.1", 80, 17, 5),
            entry("10.0.0.1", 53, 17, 6),
        ];
        for rotation in 0..entries.len() {
            let mut entries = entries;
            entries.rotate_left(rotation);
            for operations in [entries.map(Operation::Add), entries.map(Operation::Modify)] {
                let registry = registry();
                registry.apply(&operations);
                let seen = [80, 81, 53].map(|port| found(&registry, "10.0.0.1", port));
                assert_eq!(seen, [Some(4), Some(2), Some(2)]);
                registry.apply(&[Operation::Delete(entry("10.0.0.1", 80, 6, 0).key())]);
                assert_eq!(found(&registry, "10.0.0.1", 80), Some(3), "the port counts more than the protocol");
            }
        }
    }

    #[test]
    fn a_flush_takes_an_address_or_everything() {
        let registry = registry();
        let four = entry("10.0.0.1", 80, 6, 1);
        let all = [four, entry("10.0.0.1", 0, 0, 2), entry("10.0.0.2", 80, 6, 3), entry("2001:db8::1", 80, 6, 4)];
        registry.apply(&all.map(Operation::Add));
        registry.apply(&[Operation::Flush(Some(four.address))]);
        assert_eq!(registry.count(), 2);
        registry.apply(&[Operation::Flush(Some("::".parse().unwrap()))]);
        assert_eq!(registry.count(), 2, "`::` is an address like any other");
        assert_eq!(registry.apply(&[Operation::Flush(None), Operation::Flush(None)]), [Ok(()), Ok(())]);
        assert_eq!(registry.count(), 0);
    }

    #[test]
    fn invalid_entries_are_refused() {
        let registry = registry();
        let good = entry("10.0.0.1", 80, 6, 1460);
        let mapped = entry("::ffff:10.0.0.1", 80, 6, 1460);
        for wrong in [Entry { wscale: 15, ..good }, Entry { mss: 0, ..good }, mapped] {
            for operation in [Operation::Add(wrong), Operation::Modify(wrong)] {
                assert!(matches!(registry.apply(&[operation])[0], Err(Refused::Invalid(_))), "{wrong:?}");
            }
        }
        assert_eq!(registry.count(), 0);
    }

    #[test]
    fn the_number_of_entries_is_limited() {
        let registry = registry();
        let of = |n: u32| Entry { address: std::net::Ipv4Addr::from_bits(n).into(), ..entry("0.0.0.0", 80, 6, 1460) };
        let many: Vec<_> = (0..=MAX_ENTRIES as u32).map(|n| Operation::Add(of(n))).collect();
        let outcomes = registry.apply(&many);
        assert!(outcomes[..MAX_ENTRIES].iter().all(Result::is_ok));
        assert_eq!(outcomes[MAX_ENTRIES], Err(Refused::Full));
        let changed = Entry { mss: 1, ..of(7) };
        assert_eq!(registry.apply(&[Operation::Modify(changed)]), [Ok(())], "what is there can still be changed");
    }

    mod model {
        use super::*;
        use proptest::prelude::*;

        fn operation() -> impl Strategy<Value = Operation> {
            // Few of each, so that they collide; some that are not valid.
            let address = prop_oneof![
                (0..3_u8).prop_map(|n| IpAddr::from([10, 0, 0, n])),
                (0..2_u16).prop_map(|n| IpAddr::from([0x2001, 0, 0, 0, 0, 0, 0, n])),
            ];
            let entry = (address.clone(), 0..3_u16, prop_oneof![Just(0), Just(6), Just(17)], 0..9_u16, 0..16_u8)
                .prop_map(|(address, port, protocol, mss, wscale)| Entry {
                    address,
                    port,
                    protocol,
                    mss,
                    sack: mss & 1 > 0,
                    wscale,
                });
            prop_oneof![
                1 => proptest::option::of(address).prop_map(Operation::Flush),
                8 => entry.clone().prop_map(Operation::Add),
                4 => entry.clone().prop_map(Operation::Modify),
                4 => entry.prop_map(|entry| Operation::Delete(entry.key())),
                1 => any::<u8>().prop_map(Operation::Unknown),
            ]
        }

        /// The entries as a list, looked through from end to end.
        #[derive(Default)]
        struct Model(Vec<Entry>);

        impl Model {
            fn apply(&mut self, operation: &Operation) -> bool {
                let is_good = |entry: &Entry| entry.mss > 0 && entry.wscale <= 14;
                match operation {
                    Operation::Flush(None) => self.0.clear(),
                    Operation::Flush(Some(address)) => self.0.retain(|entry| entry.address != *address),
                    Operation::Add(new) => {
                        if !is_good(new) || self.0.iter().any(|entry| entry.key() == new.key()) {
                            return false;
                        }
                        self.0.push(*new);
                    }
                    Operation::Modify(new) => {
                        if !is_good(new) {
                            return false;
                        }
                        self.0.retain(|entry| entry.key() != new.key());
                        self.0.push(*new);
                    }
                    Operation::Delete(key) => {
                        let before = self.0.len();
                        self.0.retain(|entry| entry.key() != *key);
                        return self.0.len() < before;
                    }
                    Operation::Unknown(_) => return false,
                }
                true
            }

            fn find(&self, address: IpAddr, port: u16) -> Option<u16> {
                let fits = |entry: &&Entry| {
                    entry.address == address
                        && (entry.port == 0 || entry.port == port)
                        && (entry.protocol == 0 || entry.protocol == 6)
                };
                let best = self.0.iter().filter(fits).max_by_key(|entry| (entry.port > 0, entry.protocol > 0));
                best.map(|entry| entry.mss)
            }
        }

        proptest! {
            #[test]
            fn the_registry_is_a_list_looked_through_from_end_to_end(
                operations in proptest::collection::vec(operation(), 0..60)
            ) {
                let (registry, mut model) = (registry(), Model::default());
                for operation in &operations {
                    prop_assert_eq!(registry.apply(&[*operation])[0].is_ok(), model.apply(operation));
                }
                prop_assert_eq!(registry.count(), model.0.len());
                for address in ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "2001::", "2001::1"] {
                    for port in 1..4 {
                        prop_assert_eq!(found(&registry, address, port), model.find(address.parse().unwrap(), port));
                    }
                }
            }
        }
    }
}
