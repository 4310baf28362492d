//! The wire formats: Ethernet, VLAN tags, IPv4, IPv6, TCP and ICMP errors, from bytes to meaning and back.
//!
//! [`Parsed::parse`] takes any bytes: it checks every length and offset once, never panics, and says what a frame is or what is wrong
//! with it ([`Error`]). What it returns ([`Segment`], [`Quote`]) keeps offsets into the frame, not the frame itself; accessors and edits
//! take the bytes beside it. With the bytes that were parsed they do not panic; with others, or fewer, they may. Functions that panic
//! in any other case say so.
//!
//! Nothing here knows the engine: neither its flows nor its counters.

mod build;
pub mod checksum;
mod common;
mod error;
mod flags;
mod icmp;
pub mod neighbour;
mod options;
mod parsed;
mod segment;
mod tags;

pub use build::{Envelope, OptionList, Outgoing};
pub use common::{CommonSyn, CommonSynAck};
pub use error::Error;
pub use flags::{Ace, EcnSetup, Flags, Kind};
pub use icmp::{
    IPV4_MTU, IPV6_MTU, IcmpKind, Quote, Unreachable, become_too_big, become_unreachable, error_overhead, is_too_big,
    may_be_too_big, write_too_big,
};
pub use options::{Options, TIMESTAMPS_ROOM, Timestamps, Walk, kind};
pub use parsed::Parsed;
pub use segment::{Addr, FlowKey, Fragment, Segment};
pub use tags::{Tags, Vlan};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The bit in the first byte of an Ethernet address that says that it names a group of stations (IEEE 802). No station sends from such an address;
/// frames are sent to one that several servers share.
pub(crate) const GROUP: u8 = 1;

/// The address of a station that is reached by `mac`: that itself, or, if it is a group's, the same as an address of one station. Servers that
/// share a group's address (03:bf:...) send from that (02:bf:...), or from their own.
#[inline(always)]
pub(crate) fn station(mac: Mac) -> Mac {
    let [first, rest @ ..] = mac;
    let [a, b, c, d, e] = rest;
    [first & !GROUP, a, b, c, d, e]
}

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
/// The least bytes of an Ethernet frame, without the frame check sequence (IEEE 802.3).
pub const ETHERNET_MIN: usize = 60;
/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6_LEN: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP_LEN: usize = 20;
/// The protocol number of ICMP.
pub const ICMP: u8 = 1;
/// The protocol number of TCP.
pub const TCP: u8 = 6;
/// The protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// The `N` bytes at this offset, if they are there; as an array, so that the compiler knows their length.
#[inline(always)]
pub(crate) fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

#[inline(always)]
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline(always)]
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[inline(always)]
pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
