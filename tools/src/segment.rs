//! Segments as a TCP of ours writes them, payload and all, and the bytes of streams that can be known again.

use std::net::IpAddr;

use tcpstate::seq::{RawWindow, SeqNum};
use tcpstate::wire::{Addr, Envelope, Flags, FlowKey, OptionList, Outgoing, Vlan, checksum};
use tcpstate::{Side, wire};

/// The receiver should hand on what it has (RFC 9293 section 3.9.1.2).
pub const PSH: Flags = Flags(8);

/// What one segment says.
#[derive(Clone, Copy, Debug)]
pub struct Say {
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
    /// The position in the sender's stream of the first byte of payload.
    pub from: u64,
    /// Bytes of payload.
    pub len: usize,
}

impl Say {
    /// Writes the frame to the beginning of `buffer`, with `fill` making the payload, and returns its length.
    ///
    /// # Panics
    /// If the frame does not fit.
    pub fn write(&self, envelope: &Envelope, buffer: &mut [u8], fill: impl FnOnce(&mut [u8])) -> usize {
        let Say { seq, ack, flags, window, ref options, .. } = *self;
        let bare = Outgoing { envelope, seq, ack, flags, window, options }.write(buffer);
        if self.len == 0 {
            return bare;
        }
        let data = envelope.frame_len(options);
        let payload = &mut buffer[data..data + self.len];
        fill(payload);
        let sum = checksum::sum(payload);
        let ip = wire::ETHERNET_LEN + 4 * envelope.key.vlan.count();
        // The lengths that stand in the headers grow by the payload's.
        let (length, tcp) = if envelope.key.v6 { (ip + 4, ip + wire::IPV6_LEN) } else { (ip + 2, ip + wire::IPV4_LEN) };
        let old = get16(buffer, length);
        put16(buffer, length, old + self.len as u16);
        if !envelope.key.v6 {
            let mut patch = checksum::Patch::default();
            patch.replace16(old, old + self.len as u16);
            put16(buffer, ip + 10, patch.apply(get16(buffer, ip + 10)));
        }
        // The pseudo header has the segment's length too.
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

/// An address as the engine's wire formats have it.
pub fn address(address: IpAddr) -> Addr {
    let bytes = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    std::array::from_fn(|i| u32::from_be_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]))
}

/// One 802.1Q tag with this identifier.
pub fn tag(identifier: u16) -> Vlan {
    Vlan(1 << 24 | u32::from(identifier & 0xfff))
}

/// The ends of a connection between these.
pub fn key(lan: (IpAddr, u16), wan: (IpAddr, u16), vlan: Vlan) -> FlowKey {
    let v6 = lan.0.is_ipv6();
    FlowKey { lan: address(lan.0), wan: address(wan.0), lan_port: lan.1, wan_port: wan.1, vlan, v6 }
}

/// The way from the end on the side `sender` to the other.
pub fn envelope(key: FlowKey, sender: Side, from: wire::Mac, to: wire::Mac) -> Envelope {
    Envelope { from, to, key, sender, ttl: wire::DEFAULT_TTL, id: 0, label: 0, priorities: [0; 2] }
}

/// Bytes of which every stream is a piece, repeated: a prime number of them, so that a byte in a wrong place is a wrong byte.
const PERIOD: usize = 65_521;

/// The longest payload of one segment.
const LONGEST: usize = 9_216;

/// What streams consist of. Where a stream begins in it depends on whose it is.
pub struct Content(Vec<u8>);

impl Default for Content {
    fn default() -> Content {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes: Vec<u8> = (0..PERIOD)
            .map(|_| {
                // Marsaglia's xorshift: whatever looks random will do.
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
    /// The `len` bytes of the stream `whose` that begin at `from`.
    ///
    /// # Panics
    /// If `len` is more than a segment holds.
    pub fn bytes(&self, whose: u64, from: u64, len: usize) -> &[u8] {
        let start = (whose.wrapping_mul(7_919) % PERIOD as u64 + from % PERIOD as u64) as usize % PERIOD;
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
        fn what_is_written_is_read_again_and_its_checksums_hold(
            v6 in any::<bool>(), vlan in prop::option::of(0u16..4096), seq in any::<u32>(), ack in any::<u32>(),
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
            let say = Say {
                seq: SeqNum::new(seq), ack: SeqNum::new(ack), flags: Flags::ACK.and(PSH), window: RawWindow(500), options, from, len,
            };
            let content = Content::default();
            let mut buffer = [0xee; 1600];
            let total = say.write(&way, &mut buffer, |payload| payload.copy_from_slice(content.bytes(3, from, len)));
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
    fn a_stream_goes_on_where_a_segment_ends_and_no_other_looks_like_it() {
        let content = Content::default();
        let from = PERIOD as u64 - 100;
        assert_eq!(content.bytes(1, from, 300)[150..], *content.bytes(1, from + 150, 150));
        assert_ne!(content.bytes(1, 0, 64), content.bytes(2, 0, 64));
        assert_ne!(content.bytes(1, 0, 64), content.bytes(1, 1, 64));
    }
}
