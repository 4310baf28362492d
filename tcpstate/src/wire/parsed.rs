//! Parses a frame: into a TCP segment, an ICMP error about one, a fragment, or whatever else it is.

use super::icmp::{self, Message, Quote};
use super::segment::{
    Chain, ETHER_IPV4, ETHER_IPV6, FRAGMENT_OFFSET, Fragment, Layout, extension_headers, source_route, untag,
};
use super::{Error, ICMP, ICMPV6, IPV4_LEN, Segment, TCP, Vlan, be16, checksum};
use crate::{Head, Side};

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug)]
pub enum Parsed {
    /// A TCP segment, or the first fragment of one with its whole header.
    Tcp(Segment),
    /// An ICMP error about a TCP segment.
    Error(Quote),
    /// An ICMP error about a TCP segment whose connection the quote does not show, or that does not go to the segment's sender.
    StrayError,
    /// A fragment that holds no TCP header.
    Fragment(Fragment),
    /// No TCP and no ICMP error about it: ARP, UDP, other ICMP and the rest.
    Other,
    /// Invalid.
    Bad(Error),
}

impl From<Message> for Parsed {
    fn from(message: Message) -> Parsed {
        match message {
            Message::Error(quote) => Parsed::Error(quote),
            Message::StrayError => Parsed::StrayError,
            Message::Other => Parsed::Other,
        }
    }
}

/// A later IPv4 fragment at this offset in bytes, or beyond, cannot overlap the TCP header (RFC 3128).
const IPV4_FRAGMENT_FLOOR: usize = 60;
/// The same for IPv6, where the TCP header must end within as many bytes of the first fragment.
const IPV6_FRAGMENT_FLOOR: usize = 512;
const MALFORMED: Parsed = Parsed::Bad(Error::Malformed);

impl Parsed {
    /// Parses a frame that came in on `side`.
    pub fn parse(side: Side, head: &Head) -> Parsed {
        let Some((ip, vlan, ether_type)) = untag(head.bytes()) else { return MALFORMED };
        match ether_type {
            ETHER_IPV4 => Self::ipv4(side, head, ip, vlan),
            ETHER_IPV6 => Self::ipv6(side, head, ip, vlan),
            _ => Parsed::Other,
        }
    }

    fn ipv4(side: Side, head: &Head, ip: usize, vlan: Vlan) -> Parsed {
        let Some((layout, protocol, is_fragment)) = Layout::ipv4(head, ip, vlan) else { return MALFORMED };
        match (protocol, is_fragment) {
            (TCP, false) => Self::ipv4_tcp(side, head, layout),
            (TCP, true) => Self::ipv4_fragment(side, head, layout),
            (ICMP, false) => icmp::parse(side, head, &layout).into(),
            _ => Parsed::Other,
        }
    }

    /// A segment, or the beginning of one. Its checksum is of the last address of a source route (RFC 1122 section 4.2.3.8).
    fn ipv4_tcp(side: Side, head: &Head, mut layout: Layout) -> Parsed {
        if let Some(last) = source_route(&head.bytes()[layout.ip + IPV4_LEN..layout.payload]) {
            (layout.addresses.1, layout.indirect) = (last, true);
        }
        Self::tcp(side, head, &layout)
    }

    /// A fragment whose protocol field says TCP. Reassembly never mixes protocols (RFC 791 section 2.3), so it is a part of a TCP segment.
    fn ipv4_fragment(side: Side, head: &Head, layout: Layout) -> Parsed {
        let (frame, ip) = (head.bytes(), layout.ip);
        // A flipped bit must not turn a whole packet into a fragment, of which less is checked.
        if checksum::sum(&frame[ip..layout.payload]) != u16::MAX {
            return Parsed::Bad(Error::BadChecksum);
        }
        let field = be16(frame, ip + 6);
        match usize::from(field & FRAGMENT_OFFSET) * 8 {
            0 => Self::ipv4_tcp(side, head, Layout { more: true, ..layout }),
            // RFC 1858, RFC 3128: it could overlap the TCP header in the first fragment.
            offset if offset < IPV4_FRAGMENT_FLOOR => Parsed::Bad(Error::BadFragment),
            _ => Parsed::Fragment(layout.fragment(be16(frame, ip + 4).into(), false)),
        }
    }

    fn ipv6(side: Side, head: &Head, ip: usize, vlan: Vlan) -> Parsed {
        match Layout::ipv6(head, ip, vlan) {
            None => MALFORMED,
            Some((layout, TCP)) => Self::tcp(side, head, &layout),
            Some((layout, _)) => Self::ipv6_extended(side, head, layout),
        }
    }

    fn ipv6_extended(side: Side, head: &Head, layout: Layout) -> Parsed {
        let chain = match extension_headers(head.bytes(), layout.ip, layout.end) {
            Ok(chain) => chain,
            Err(reason) => return Parsed::Bad(reason),
        };
        let Chain { next, at, piece, .. } = chain;
        let layout = Layout { payload: at, more: piece.is_some(), ..layout };
        match (next, piece) {
            // Only the first fragment's next-header field counts (RFC 8200 section 4.5), so a later one may be of TCP whatever it says.
            (_, Some(piece)) if piece.offset > 0 => {
                if piece.offset < IPV6_FRAGMENT_FLOOR {
                    return Parsed::Bad(Error::BadFragment);
                }
                Parsed::Fragment(layout.fragment(piece.identification, false))
            }
            (TCP, _) if !chain.foreign => match (Self::tcp(side, head, &layout.between(&chain)), piece) {
                (Parsed::Tcp(segment), Some(piece))
                    if usize::from(segment.payload) > piece.from + IPV6_FRAGMENT_FLOOR =>
                {
                    Parsed::Bad(Error::BadFragment)
                }
                (parsed, _) => parsed,
            },
            // RFC 7112: the first fragment must hold the header of TCP, too, whatever host it is for.
            (TCP, Some(_)) if Segment::at(side, head, &layout).is_err() => Parsed::Bad(Error::BadFragment),
            (_, Some(piece)) => Parsed::Fragment(layout.fragment(piece.identification, true)),
            (ICMPV6, None) if !chain.foreign => icmp::parse(side, head, &layout).into(),
            _ => Parsed::Other,
        }
    }

    fn tcp(side: Side, head: &Head, layout: &Layout) -> Parsed {
        Segment::at(side, head, layout).map_or_else(Parsed::Bad, Parsed::Tcp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::IPV6_LEN;
    use crate::wire::tags::TAG_PROTOCOLS;
    use proptest::prelude::*;

    #[test]
    fn a_parsed_frame_is_no_larger_than_a_segment() {
        assert_eq!(size_of::<Parsed>(), size_of::<Segment>(), "it is copied for every frame");
    }

    proptest! {
        /// Frames of every shape, most of them segments: tags, versions, header lengths, fragments and extension headers are drawn as well.
        #[test]
        fn the_common_parsers_agree_with_the_general_one(
            tags in prop::collection::vec((0usize..3, any::<u16>()), 0..4),
            v6: bool,
            (words, protocol) in (0u8..=15, prop_oneof![4 => Just(TCP), 1 => any::<u8>()]),
            fragment in prop_oneof![4 => Just(0u16), 1 => any::<u16>()],
            (cut, excess) in (0usize..40, -30i32..30),
            body in prop::collection::vec(any::<u8>(), 0..120),
            offset in prop_oneof![4 => 5u8..=8, 1 => 0u8..=15],
            side in prop_oneof![Just(Side::Lan), Just(Side::Wan)],
        ) {
            let mut frame = vec![0; 12];
            for (tpid, identifier) in tags {
                frame.extend_from_slice(&TAG_PROTOCOLS[tpid].to_be_bytes());
                frame.extend_from_slice(&identifier.to_be_bytes());
            }
            frame.extend_from_slice(&if v6 { ETHER_IPV6 } else { ETHER_IPV4 }.to_be_bytes());
            let words = if words < 12 { 5 } else { words };
            let mut header = vec![0; if v6 { IPV6_LEN } else { usize::from(words) * 4 }];
            let carried = body.len() as i32 + excess.min(0);
            if v6 {
                (header[0], header[6]) = (0x60, protocol);
                header[4..6].copy_from_slice(&(carried as u16).to_be_bytes());
            } else {
                (header[0], header[9]) = (0x40 | words, protocol);
                let total = (header.len() as i32 + carried) as u16;
                header[2..4].copy_from_slice(&total.to_be_bytes());
                header[6..8].copy_from_slice(&fragment.to_be_bytes());
            }
            frame.extend(header);
            let tcp = frame.len();
            frame.extend(body);
            if let Some(byte) = frame.get_mut(tcp + 12) {
                *byte = offset << 4;
            }
            let len = if cut < 10 { frame.len() - cut } else { frame.len() };
            let head = Head::new(&mut frame, 0, len, len + if cut == 39 { 9000 } else { 0 });
            let whole = match Parsed::parse(side, &head) {
                Parsed::Tcp(segment) if !segment.fragmented => Some(segment),
                _ => None,
            };
            let common = Segment::common_ipv4(side, &head).or_else(|| Segment::common_ipv6(side, &head));
            // Behind extension headers and IPv4 options a segment is not in the common place.
            prop_assert!(common == whole || common.is_none() && (v6 && protocol != TCP || !v6 && words != 5));
        }
    }
}
