//! The binary protocol of the control port: requests of 12 bytes, or 28 for IPv6, each answered by two bytes, in order.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | IPv4 address; ignored for IPv6 |
//! | 4 | 2 | port; 0 is every port |
//! | 6 | 1 | protocol; 0 is every protocol |
//! | 7 | 1 | operation: 1 flush, 2 add, 4 modify, 8 delete; 128 more for IPv6 |
//! | 8 | 2 | MSS |
//! | 10 | 1 | SACK: 0 is no |
//! | 11 | 1 | window scale |
//! | 12 | 16 | IPv6 address, if the operation has bit 7 set |
//!
//! Numbers are big-endian. Window scales above 14 and an MSS of 0 are refused ([`Entry::check`]).

use crate::entry::{Entry, Key};
use std::net::{IpAddr, Ipv4Addr};

/// The reply to an operation that was carried out.
pub const DONE: [u8; 2] = *b"1\n";
/// The reply to an operation that was refused.
pub const REFUSED: [u8; 2] = *b"0\n";

const FLUSH: u8 = 1;
const ADD: u8 = 2;
const MODIFY: u8 = 4;
const DELETE: u8 = 8;
const IPV6: u8 = 128;

const SHORT: usize = 12;
const LONG: usize = 28;

/// An operation on the server entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Deletes the entries of this address, or all entries of both families.
    Flush(Option<IpAddr>),
    /// Adds an entry; refused if there is one with the same key.
    Add(Entry),
    /// Adds an entry, or replaces the one with the same key.
    Modify(Entry),
    /// Deletes the entry with exactly this key; refused if there is none.
    Delete(Key),
    /// An operation number that does not exist; always refused.
    Unknown(u8),
}

/// Parses the first request in `bytes`, and returns it with its length in bytes; `None` while it is incomplete.
pub fn read(bytes: &[u8]) -> Option<(Operation, usize)> {
    let short: &[u8; SHORT] = bytes.first_chunk()?;
    let long: Option<&[u8; LONG]> = bytes.first_chunk();
    let is_v6 = short[7] & IPV6 != 0;
    let [a, b, c, d, port @ .., protocol, operation, mss_high, mss_low, sack, wscale] = *short;
    let address: IpAddr = if is_v6 {
        let address: &[u8; 16] = long?.last_chunk()?;
        (*address).into()
    } else {
        Ipv4Addr::new(a, b, c, d).into()
    };
    let (port, mss) = (u16::from_be_bytes(port), u16::from_be_bytes([mss_high, mss_low]));
    let entry = Entry { address, port, protocol, mss, sack: sack != 0, wscale };
    let operation = match operation & !IPV6 {
        FLUSH if address == IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Operation::Flush(None),
        FLUSH => Operation::Flush(Some(address)),
        ADD => Operation::Add(entry),
        MODIFY => Operation::Modify(entry),
        DELETE => Operation::Delete(entry.key()),
        _ => Operation::Unknown(operation),
    };
    Some((operation, if is_v6 { LONG } else { SHORT }))
}

/// Appends the encoding of `operation` to `bytes`.
pub fn write(operation: &Operation, bytes: &mut Vec<u8>) {
    let everybody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let nobody = Entry { address: everybody, port: 0, protocol: 0, mss: 0, sack: false, wscale: 0 };
    let (number, entry) = match *operation {
        Operation::Flush(address) => (FLUSH, Entry { address: address.unwrap_or(everybody), ..nobody }),
        Operation::Add(entry) => (ADD, entry),
        Operation::Modify(entry) => (MODIFY, entry),
        Operation::Delete(Key { address, port, protocol }) => (DELETE, Entry { address, port, protocol, ..nobody }),
        Operation::Unknown(number) => (number & !IPV6, nobody),
    };
    let (first, rest, family) = match &entry.address {
        IpAddr::V4(address) => (address.octets(), None, 0),
        IpAddr::V6(address) => ([0; 4], Some(address.octets()), IPV6),
    };
    bytes.extend(first);
    bytes.extend(entry.port.to_be_bytes());
    bytes.extend([entry.protocol, number | family]);
    bytes.extend(entry.mss.to_be_bytes());
    bytes.extend([u8::from(entry.sack), entry.wscale]);
    bytes.extend(rest.into_iter().flatten());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_field_has_its_place() {
        let entry =
            Entry { address: "10.1.2.3".parse().unwrap(), port: 0x1234, protocol: 6, mss: 1460, sack: true, wscale: 7 };
        let bytes = [10, 1, 2, 3, 0x12, 0x34, 6, 2, 5, 0xb4, 1, 7];
        assert_eq!(read(&bytes), Some((Operation::Add(entry), 12)));
        let mut long = vec![9, 9, 9, 9, 0x12, 0x34, 6, 128 + 4, 5, 0xb4, 1, 7];
        long.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        let entry = Entry { address: "2001:db8::5".parse().unwrap(), ..entry };
        assert_eq!(read(&long), Some((Operation::Modify(entry), 28)), "the IPv4 field is ignored");
        assert_eq!(read(&long[..27]), None);
    }

    #[test]
    fn only_the_ipv4_form_without_an_address_means_everybody() {
        let flush = |operation, octets: &[u8]| {
            let mut bytes = vec![0, 0, 0, 0, 0, 80, 6, operation, 0, 0, 0, 0];
            bytes.extend(octets);
            read(&bytes).map(|(operation, _)| operation)
        };
        assert_eq!(flush(1, &[]), Some(Operation::Flush(None)));
        assert_eq!(flush(129, &[0; 16]), Some(Operation::Flush(Some("::".parse().unwrap()))));
        assert_eq!(flush(3, &[]), Some(Operation::Unknown(3)));
        assert_eq!(flush(0, &[]), Some(Operation::Unknown(0)));
        assert_eq!(flush(131, &[0; 15]), None, "an operation that does not exist is as long as one that does");
    }

    fn address() -> impl Strategy<Value = IpAddr> + Clone {
        prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let entry = (address(), any::<(u16, u8, u16, bool, u8)>()).prop_map(
            |(address, (port, protocol, mss, sack, wscale))| Entry { address, port, protocol, mss, sack, wscale },
        );
        prop_oneof![
            proptest::option::of(address()).prop_map(|address| Operation::Flush(
                address.filter(|address| *address != IpAddr::V4(Ipv4Addr::UNSPECIFIED))
            )),
            entry.clone().prop_map(Operation::Add),
            entry.clone().prop_map(Operation::Modify),
            entry.prop_map(|entry| Operation::Delete(entry.key())),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_whatever_follows(operation in operation(), more in any::<[u8; 5]>()) {
            let mut bytes = Vec::new();
            write(&operation, &mut bytes);
            let length = bytes.len();
            for short in 0..length {
                prop_assert_eq!(read(&bytes[..short]), None);
            }
            bytes.extend(more);
            prop_assert_eq!(read(&bytes), Some((operation, length)));
        }

        #[test]
        fn any_bytes_are_read(bytes in any::<[u8; 40]>()) {
            let (_, length) = read(&bytes).expect("there are enough for one");
            prop_assert!(length == SHORT || length == LONG);
        }
    }
}
