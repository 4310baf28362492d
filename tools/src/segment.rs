//! TCP segments with payload as the loads write them, and the recognizable content of their streams.

use std::net::IpAddr;

use tcpstate::seq::{RawWindow, SeqNum};
use tcpstate::wire::{Addr, Envelope, Flags, FlowKey, OptionList, Outgoing, Vlan, checksum};
use tcpstate::{Side, wire};

/// PSH: the receiver should deliver the data at once (RFC 9293 section 3.9.1.2).
pub const PSH: Flags = Flags(8);

/// The hop limit of what the loads send.
const TTL: u8 = 64;

/// A segment to send.
#[derive(Clone, Copy, Debug)]
pub struct OutgoingSegment {
    /// Sequence number.
    pub seq: SeqNum,
    /// Acknowledgement number.
    pub ack: SeqNum,
    /// Flags.
    pub flags: Flags,
    /// Window field.
    pub window: RawWindow,
    /// Options.
    pub options: OptionList,
    /// The position of the payload's first byte in the sender's stream.
    pub from: u64,
    /// Payload length, in bytes.
    pub len: usize,
}

impl OutgoingSegment {
    /// Writes the frame at the beginning of `buffer`, with the payload written by `fill`, and returns its length in bytes.
    ///
    /// # Panics
    /// If the frame does not fit.
    pub fn write(&self, envelope: &Envelope, buffer: &mut [u8], fill: impl FnOnce(&mut [u8])) -> usize {
        let OutgoingSegment { seq, ack, flags, window, ref options, .. } = *self;
        let bare = Outgoing { envelope, seq, ack, flags, window, options }.write(buffer);
        if self.len == 0 {
            return bare;
        }
        let data = envelope.frame_len(options);
        let payload = &mut buffer[data..data + self.len];
        fill(payload);
        let sum = checksum::sum(payload);
        let ip = wire::ETHERNET_LEN + 4 * envelope.key.vlan.count();
        // Add the payload to the length fields of the headers.
        let (length, tcp) = if envelope.key.v6 { (ip + 4, ip + wire::IPV6_LEN) } else { (ip + 2, ip + wire::IPV4_LEN) };
        let old = get16(buffer, length);
        put16(buffer, length, old + self.len as u16);
        if !envelope.key.v6 {
            let mut patch = checksum::Patch::default();
            patch.replace16(old, old + self.len as u16);
            put16(buffer, ip + 10, patch.apply(get16(buffer, ip + 10)));
        }
        // The pseudo-header includes the segment length.
        let segment = (data - tcp) as u16;
        let mut patch = checksum::Patch::default();
        patch.replace16(segment, segment + self.len as u16);
        patch.replace16(0, sum);
        put16(buffer, tcp + 16, patch.apply(get16(buffer, tcp + 16)));
        bare.max(data + self.len)
    }
}

fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// An address in the form of `tcpstate::wire`.
pub fn address(address: IpAddr) -> Addr {
    let bytes = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    std::array::from_fn(|i| u32::from_be_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]))
}

/// A single 802.1Q tag with this VLAN identifier.
pub fn tag(identifier: u16) -> Vlan {
    Vlan(1 << 24 | u32::from(identifier & 0xfff))
}

/// The flow key of a connection between these addresses and ports.
pub fn key(lan: (IpAddr, u16), wan: (IpAddr, u16), vlan: Vlan) -> FlowKey {
    let v6 = lan.0.is_ipv6();
    FlowKey { lan: address(lan.0), wan: address(wan.0), lan_port: lan.1, wan_port: wan.1, vlan, v6 }
}

/// The addressing of a segment from the endpoint on side `sender` to the other.
pub fn envelope(key: FlowKey, sender: Side, from: wire::Mac, to: wire::Mac) -> Envelope {
    let port = sender.other();
    Envelope { from, to, key, sender, port, ttl: TTL, class: 0, id: 0, label: 0, tags: key.vlan.into() }
}

/// The period of the content of streams, in bytes: a prime, so that a byte in a wrong place is a wrong byte.
const PERIOD: usize = 65_521;

/// The longest payload of a segment, in bytes.
const LONGEST: usize = 9_216;

/// The content of all streams. Where a stream begins in it depends on its number.
pub struct Content(Vec<u8>);

impl Default for Content {
    fn default() -> Content {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes: Vec<u8> = (0..PERIOD)
            .map(|_| {
                // Marsaglia's xorshift.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            })
            .collect();
        bytes.extend_from_within(..LONGEST);
        Content(bytes)
    }
}

impl Content {
    /// The `len` bytes at position `from` of stream number `stream`.
    ///
    /// # Panics
    /// If `len` is longer than the longest payload.
    pub fn bytes(&self, stream: u64, from: u64, len: usize) -> &[u8] {
        let start = (stream.wrapping_mul(7_919) % PERIOD as u64 + from % PERIOD as u64) as usize % PERIOD;
        assert!(len <= LONGEST, "{len} bytes in one segment");
        &self.0[start..start + len]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tcpstate::Head;
    use tcpstate::wire::{Options, Parsed, Timestamps};

    use super::*;

    proptest! {
        #[test]
        fn a_written_segment_parses_and_its_checksums_hold(
            v6 in any::<bool>(), vlan in prop::option::of(1u16..4096), seq in any::<u32>(), ack in any::<u32>(),
            len in 0usize..1400, from in any::<u64>(), stamped in any::<bool>(),
        ) {
            let (lan, wan): (IpAddr, IpAddr) = if v6 {
                ("fd00::1".parse().unwrap(), "2001:db8::7".parse().unwrap())
            } else {
                ("10.0.0.2".parse().unwrap(), "11.0.0.1".parse().unwrap())
            };
            let key = key((lan, 12345), (wan, 54321), vlan.map_or(Vlan::default(), tag));
            let way = envelope(key, Side::Wan, [2, 0, 0, 0, 0, 4], [2, 0, 0, 0, 0, 1]);
            let options = OptionList::plain(stamped.then_some(Timestamps { value: 7, echo: 9 }));
            let outgoing = OutgoingSegment {
                seq: SeqNum::new(seq), ack: SeqNum::new(ack), flags: Flags::ACK.and(PSH), window: RawWindow(500), options, from, len,
            };
            let content = Content::default();
            let mut buffer = [0xee; 1600];
            let total = outgoing.write(&way, &mut buffer, |payload| payload.copy_from_slice(content.bytes(3, from, len)));
            prop_assert!(total >= 60);
            let head = Head::whole(&mut buffer, total);
            let Parsed::Tcp(read) = Parsed::parse(Side::Wan, &head) else { panic!("a segment") };
            prop_assert!(read.checksums_hold(&head));
            prop_assert_eq!((read.key, read.seq.get(), read.ack.get()), (key, seq, ack));
            let (start, end) = (usize::from(read.payload), read.end as usize);
            prop_assert_eq!(&head.bytes()[start..end], content.bytes(3, from, len));
            prop_assert_eq!(Options::read(read.options(head.bytes())).timestamps.is_some(), stamped);
        }
    }

    #[test]
    fn streams_are_contiguous_and_differ_from_each_other() {
        let content = Content::default();
        let from = PERIOD as u64 - 100;
        assert_eq!(content.bytes(1, from, 300)[150..], *content.bytes(1, from + 150, 150));
        assert_ne!(content.bytes(1, 0, 64), content.bytes(2, 0, 64));
        assert_ne!(content.bytes(1, 0, 64), content.bytes(1, 1, 64));
    }
}
