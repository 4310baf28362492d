//! The headers of a frame, down through the tunnels inside which a Linux sender leaves work to a NIC: IP in IP, GRE, and VXLAN,
//! Geneve or plain IP in UDP.
//!
//! A tunnel in UDP is recognised by its own header and by the consistency of the packet inside, not by a port: operators choose
//! those.

use super::checksum::{add, fold};

/// The longest run of headers that is understood: a tunnel with options in IPv6, and TCP in IPv6 inside it.
pub(crate) const MAX_HEADERS: usize = 512;

/// The most IP headers, one inside the other, that are followed.
pub(super) const MAX_LAYERS: usize = 3;

/// The most tags, labels or extension headers in a row that are followed.
const MAX_IN_A_ROW: usize = 8;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const GRE: u8 = 47;
pub(super) const SCTP: u8 = 132;
const IPV4: u8 = 4;
const IPV6: u8 = 41;

/// Bytes of an Ethernet header without its type.
const ADDRESSES: usize = 12;

/// The GRE header's flags (RFC 2784, RFC 2890): a checksum, a key and a sequence number follow.
pub(super) const GRE_CHECKSUM: u16 = 0x8000;
const GRE_KEY: u16 = 0x2000;
pub(super) const GRE_SEQUENCE: u16 = 0x1000;
/// The other bits, among them the version, are zero in what is understood here.
const GRE_OTHERS: u16 = 0x4fff;

/// An IP header, and where what it carries begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Layer {
    /// Where the IP header begins.
    pub network: usize,
    /// 4 or 6.
    pub version: u8,
    /// The protocol behind the IP header and its extension headers.
    pub protocol: u8,
    /// Where its header begins.
    pub transport: usize,
    /// Where the packet ends, as the IP header says; `None` for a super-frame beyond its 16 bits.
    pub end: Option<usize>,
    /// Where the destination address of the pseudo-header is: behind a routing header, the last one (RFC 8200, section 8.1).
    pub destination: usize,
    /// It is a part of a packet.
    pub is_fragment: bool,
}

/// The 16-bit word at `at`.
#[inline]
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word))
}

impl Layer {
    /// The IP header of the Ethernet frame at `at`, behind any tags and MPLS labels.
    #[inline]
    pub fn in_ethernet(bytes: &[u8], at: usize) -> Option<Layer> {
        let mut at = at + ADDRESSES;
        let mut ethertype = word(bytes, at)?;
        for _ in 0..MAX_IN_A_ROW {
            if !matches!(ethertype, 0x8100 | 0x88a8 | 0x9100) {
                break;
            }
            at += 4;
            ethertype = word(bytes, at)?;
        }
        at += 2;
        if ethertype == 0x8847 {
            for _ in 0..MAX_IN_A_ROW {
                at += 4;
                if bytes.get(at - 2)? & 1 == 1 {
                    return Layer::of(bytes, at);
                }
            }
            return None;
        }
        Layer::typed(bytes, at, ethertype)
    }

    /// The IP header at `at` that this EtherType announces.
    #[inline]
    fn typed(bytes: &[u8], at: usize, ethertype: u16) -> Option<Layer> {
        match ethertype {
            0x0800 => Layer::v4(bytes, at),
            0x86dd => Layer::v6(bytes, at),
            _ => None,
        }
    }

    /// The IP header at `at`, of either version.
    fn of(bytes: &[u8], at: usize) -> Option<Layer> {
        match bytes.get(at)? >> 4 {
            4 => Layer::v4(bytes, at),
            6 => Layer::v6(bytes, at),
            _ => None,
        }
    }

    #[inline]
    fn v4(bytes: &[u8], network: usize) -> Option<Layer> {
        let header: &[u8; 20] = bytes.get(network..)?.first_chunk()?;
        let length = 4 * usize::from(header[0] & 15);
        if header[0] >> 4 != 4 || length < 20 {
            return None;
        }
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        Some(Layer {
            network,
            version: 4,
            protocol: header[9],
            transport: network + length,
            end: (total != 0).then_some(network + total),
            destination: network + 16,
            // More fragments, or an offset.
            is_fragment: header[6] & 0x3f != 0 || header[7] != 0,
        })
    }

    #[inline]
    fn v6(bytes: &[u8], network: usize) -> Option<Layer> {
        let header: &[u8; 40] = bytes.get(network..)?.first_chunk()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let mut layer = Layer {
            network,
            version: 6,
            protocol: header[6],
            transport: network + 40,
            end: (payload != 0).then_some(network + 40 + payload),
            destination: network + 24,
            is_fragment: false,
        };
        for _ in 0..MAX_IN_A_ROW {
            // Hop-by-hop options, routing, fragment, destination options: all but the fragment header say their length.
            if !matches!(layer.protocol, 0 | 43 | 44 | 60) {
                return Some(layer);
            }
            let extension: &[u8; 8] = bytes.get(layer.transport..)?.first_chunk()?;
            let length = 8 + 8 * usize::from(extension[1]);
            match layer.protocol {
                44 => {
                    layer.is_fragment = true;
                    return Some(layer);
                }
                43 if extension[3] > 0 => {
                    // The last address of the source route (RFC 8754: the first of its list), of types 0, 2 and 4.
                    layer.destination = match extension[2] {
                        0 => (layer.transport + length).checked_sub(16)?,
                        2 | 4 => layer.transport + 8,
                        _ => return None,
                    };
                    bytes.get(layer.destination..layer.destination + 16)?;
                }
                _ => {}
            }
            layer.protocol = extension[0];
            layer.transport += length;
        }
        None
    }

    /// The packet that this one carries in a tunnel. Its own header is sound.
    pub fn inner(&self, bytes: &[u8]) -> Option<Layer> {
        if self.is_fragment {
            return None;
        }
        let inner = match self.protocol {
            IPV4 => Layer::v4(bytes, self.transport),
            IPV6 => Layer::v6(bytes, self.transport),
            GRE => self.in_gre(bytes),
            UDP => self.in_udp(bytes),
            _ => None,
        }?;
        let fits = match (inner.end, self.end) {
            (Some(inner), Some(end)) => inner <= end,
            _ => true,
        };
        // A sum over a whole header is all ones.
        let is_sound = inner.version != 4 || fold(add(0, bytes.get(inner.network..inner.transport)?)) == 0xffff;
        (fits && is_sound).then_some(inner)
    }

    fn in_gre(&self, bytes: &[u8]) -> Option<Layer> {
        let flags = word(bytes, self.transport)?;
        if flags & GRE_OTHERS != 0 {
            return None;
        }
        let fields = [GRE_CHECKSUM, GRE_KEY, GRE_SEQUENCE].iter().filter(|field| flags & **field != 0).count();
        Layer::carried(bytes, self.transport + 4 + 4 * fields, word(bytes, self.transport + 2)?)
    }

    /// What a tunnel carries whose header names it by its EtherType; 0x6558 is an Ethernet frame.
    fn carried(bytes: &[u8], at: usize, ethertype: u16) -> Option<Layer> {
        if ethertype == 0x6558 { Layer::in_ethernet(bytes, at) } else { Layer::typed(bytes, at, ethertype) }
    }

    #[inline]
    fn in_udp(&self, bytes: &[u8]) -> Option<Layer> {
        let at = self.transport + 8;
        match *bytes.get(at..)?.first_chunk::<8>()? {
            // VXLAN (RFC 7348), and with a group policy.
            [0x08, 0, 0, 0, _, _, _, 0] | [0x88, _, _, _, _, _, _, 0] => Layer::in_ethernet(bytes, at + 8),
            // VXLAN-GPE with a next protocol.
            [0x0c, 0, 0, 1 | 2, ..] => Layer::of(bytes, at + 8),
            [0x0c, 0, 0, 3, ..] => Layer::in_ethernet(bytes, at + 8),
            // Geneve (RFC 8926), version 0, with options of some words.
            [options @ 0..0x40, flags, a, b, _, _, _, 0] if flags & 0x3f == 0 => {
                Layer::carried(bytes, at + 8 + 4 * usize::from(options), u16::from_be_bytes([a, b]))
            }
            // Foo over UDP, and tunnels of layer 3: nothing between.
            [0x45, ..] | [0x60..0x70, ..] => Layer::of(bytes, at),
            _ => None,
        }
    }

    /// The IP header without options that ends where this transport header begins, in a tunnel of a kind that is not known here.
    pub fn before(bytes: &[u8], transport: usize, protocol: u8) -> Option<Layer> {
        let ends_here =
            |layer: &Layer| layer.transport == transport && layer.protocol == protocol && !layer.is_fragment;
        let v4 = transport.checked_sub(20).and_then(|at| Layer::v4(bytes, at));
        let v4 = v4.filter(|v4| fold(add(0, &bytes[v4.network..transport])) == 0xffff);
        let v6 = || transport.checked_sub(40).and_then(|at| Layer::v6(bytes, at));
        v4.filter(ends_here).or_else(|| v6().filter(ends_here))
    }

    /// The sum of the pseudo-header for `length` bytes of transport header and payload.
    #[inline]
    pub fn pseudo(&self, bytes: &[u8], length: usize) -> u64 {
        let (source, size) = if self.version == 4 { (self.network + 12, 4) } else { (self.network + 8, 16) };
        // Both addresses lie in headers that were read when this layer was made.
        let addresses = add(add(0, &bytes[source..source + size]), &bytes[self.destination..self.destination + size]);
        addresses + u64::from(self.protocol) + length as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0usize..8, inner in 0usize..8,
        ) {
            const STARTS: [&[u8]; 8] = [
                &[8, 0, 0x45, 0, 0, 200, 0, 0, 0, 0, 64, 17], &[8, 0, 0x45, 0, 0, 200, 0, 0, 0, 0, 64, 47],
                &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 200, 17], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 200, 43], &[0x88, 0x47], &[0x81, 0],
                &[8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 4], &[],
            ];
            const INNER: [&[u8]; 8] = [
                &[0x08, 0, 0, 0, 1, 2, 3, 0], &[0, 0, 0x65, 0x58, 1, 2, 3, 0], &[0x45], &[0x60], &[0x80, 0, 8, 0], &[0xb0, 0, 0x65, 0x58],
                &[0x0c, 0, 0, 3], &[],
            ];
            for (at, part) in [(12, STARTS[kind]), (42, INNER[inner])] {
                if bytes.len() > at + part.len() {
                    bytes[at..at + part.len()].copy_from_slice(part);
                }
            }
            let mut layer = Layer::in_ethernet(&bytes, 0);
            while let Some(this) = layer {
                this.pseudo(&bytes, 20);
                layer = this.inner(&bytes).filter(|inner| inner.network > this.network);
                prop_assert!(layer.is_none() || layer.unwrap().network < bytes.len());
            }
            for at in 0..bytes.len() {
                Layer::before(&bytes, at, TCP);
            }
        }
    }
}
