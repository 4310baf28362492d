//! Frames made of given headers, for tests, and what must hold of them on a link. It shares no code with what it judges.

/// A header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    Ethernet,
    /// An 802.1Q or 802.1ad tag.
    Tag(u16),
    /// An MPLS label, the last of its stack.
    Label,
    /// IPv4 with so many words of options.
    V4(usize),
    V6,
    /// A hop-by-hop options header with padding.
    HopByHop,
    /// A segment routing header with two more segments to go.
    Route,
    /// With a checksum or without.
    Udp(bool),
    Vxlan,
    /// Geneve with so many words of options.
    Geneve(usize),
    /// GRE with these flags.
    Gre(u16),
    /// TCP with so many words of options.
    Tcp(usize),
    Sctp,
    /// Four bytes of a tunnel that nobody knows.
    Shim,
}

use Header::{Ethernet, Geneve, Gre, HopByHop, Label, Route, Sctp, Shim, Tag, Tcp, Udp, V4, V6, Vxlan};

/// The first sequence number.
pub const SEQUENCE: u32 = 0xffff_ff00;

impl Header {
    pub fn len(self) -> usize {
        match self {
            Ethernet => 14,
            Tag(_) | Label | Shim => 4,
            V4(words) => 20 + 4 * words,
            V6 => 40,
            HopByHop | Udp(_) | Vxlan => 8,
            Route => 8 + 3 * 16,
            Geneve(words) => 8 + 4 * words,
            Gre(flags) => 4 + 4 * (flags >> 12).count_ones() as usize,
            Tcp(words) => 20 + 4 * words,
            Sctp => 12,
        }
    }

    fn is_ip(self) -> bool {
        matches!(self, V4(_) | V6)
    }

    /// The number by which IP names it.
    fn protocol(self) -> u8 {
        match self {
            HopByHop => 0,
            V4(_) => 4,
            Tcp(_) => 6,
            Udp(_) => 17,
            V6 => 41,
            Route => 43,
            Gre(_) => 47,
            Sctp => 132,
            _ => 253,
        }
    }

    /// The type by which an Ethernet header names it.
    fn ethertype(self) -> u16 {
        match self {
            Tag(ethertype) => ethertype,
            Label => 0x8847,
            V4(_) => 0x0800,
            V6 => 0x86dd,
            Ethernet => 0x6558,
            _ => 0x88b5,
        }
    }
}

/// RFC 1071, word by word.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0u32;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Where each header begins.
pub fn offsets(headers: &[Header]) -> Vec<usize> {
    headers.iter().scan(0, |at, header| Some(std::mem::replace(at, *at + header.len()))).collect()
}

/// Where the payload begins.
pub fn payload_at(headers: &[Header]) -> usize {
    headers.iter().map(|header| header.len()).sum()
}

/// Where the last transport header begins, and where in it the checksum is.
pub fn transport(headers: &[Header]) -> (usize, usize) {
    let last = headers.len() - 1;
    (
        offsets(headers)[last],
        match headers[last] {
            Tcp(_) => 16,
            Udp(_) => 6,
            _ => 8,
        },
    )
}

/// The pseudo-header of the transport header `index`, over `length` bytes.
fn pseudo(bytes: &[u8], headers: &[Header], index: usize, length: usize) -> Vec<u8> {
    let at = offsets(headers);
    let ip = (0..index).rev().find(|i| headers[*i].is_ip()).expect("an IP header in front");
    let mut pseudo = match headers[ip] {
        V4(_) => bytes[at[ip] + 12..at[ip] + 20].to_vec(),
        _ => bytes[at[ip] + 8..at[ip] + 40].to_vec(),
    };
    if let Some(route) = (ip..index).find(|i| headers[*i] == Route) {
        // The last segment is the first of the list.
        pseudo[16..].copy_from_slice(&bytes[at[route] + 8..at[route] + 24]);
    }
    pseudo.extend([0, 0, 0, headers[index].protocol()]);
    pseudo.extend((length as u32).to_be_bytes());
    pseudo
}

/// The frame with all lengths and checksums right, as it would be on a link. Lengths beyond 16 bits are zero.
pub fn whole(headers: &[Header], payload: &[u8]) -> Vec<u8> {
    let at = offsets(headers);
    let mut bytes = vec![0; payload_at(headers)];
    bytes.extend(payload);
    let end = bytes.len();
    for (i, header) in headers.iter().enumerate().rev() {
        let next = headers.get(i + 1).copied();
        let length = u16::try_from(end - at[i]).unwrap_or(0);
        let here = &mut bytes[at[i]..];
        let put = |here: &mut [u8], at: usize, word: u16| here[at..at + 2].copy_from_slice(&word.to_be_bytes());
        match *header {
            Ethernet => {
                here[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
                put(here, 12, next.map_or(0x88b5, Header::ethertype));
            }
            Tag(_) => {
                put(here, 0, 7);
                put(here, 2, next.map_or(0x88b5, Header::ethertype));
            }
            Label => here[..4].copy_from_slice(&[0, 1, 0x01, 64]),
            V4(words) => {
                here[..12].copy_from_slice(&[0x45 + words as u8, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, 0, 0, 0]);
                here[9] = next.map_or(253, Header::protocol);
                here[12..20].copy_from_slice(&[10, 9, i as u8, 1, 10, 9, i as u8, 2]);
                here[20..20 + 4 * words].fill(1);
                put(here, 2, length);
                let check = !sum(&here[..20 + 4 * words]);
                put(here, 10, check);
            }
            V6 => {
                here[..2].copy_from_slice(&[0x60, 0]);
                put(here, 4, length.saturating_sub(40));
                here[6..8].copy_from_slice(&[next.map_or(59, Header::protocol), 64]);
                here[8..40].fill(0xfd);
                (here[22], here[38], here[39]) = (i as u8, i as u8, 2);
            }
            HopByHop => here[..8].copy_from_slice(&[next.map_or(59, Header::protocol), 0, 1, 4, 0, 0, 0, 0]),
            Route => {
                here[..8].copy_from_slice(&[next.map_or(59, Header::protocol), 6, 4, 2, 2, 0, 0, 0]);
                here[8..56].iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
            }
            Udp(_) => {
                here[..4].copy_from_slice(&[0xc0, 0x01, 0x12, 0xb5]);
                put(here, 4, length);
            }
            Vxlan => here[..8].copy_from_slice(&[8, 0, 0, 0, 0, 0, 42, 0]),
            Geneve(words) => {
                here[..8].copy_from_slice(&[words as u8, 0, 0, 0, 0, 0, 42, 0]);
                put(here, 2, next.map_or(0, Header::ethertype));
                here[8..8 + 4 * words].fill(7);
            }
            Gre(flags) => {
                here[4..header.len()].fill(0);
                put(here, 0, flags);
                put(here, 2, next.map_or(0, Header::ethertype));
            }
            Tcp(words) => {
                here[..4].copy_from_slice(&[0x10, 0, 0x20, 0]);
                here[4..8].copy_from_slice(&SEQUENCE.to_be_bytes());
                here[8..16].copy_from_slice(&[0, 0, 0, 9, 0x50 + ((words as u8) << 4), 0x99, 1, 0]);
                here[20..20 + 4 * words].fill(1);
            }
            Sctp => here[..8].copy_from_slice(&[0x10, 0, 0x20, 0, 1, 2, 3, 4]),
            Shim => here[..4].copy_from_slice(&[0xaa, 0xbb, 0xcc, 0xdd]),
        }
    }
    // From the inside out.
    for (i, header) in headers.iter().enumerate().rev() {
        let covered = match header {
            Tcp(_) | Udp(true) => [pseudo(&bytes, headers, i, end - at[i]), bytes[at[i]..].to_vec()].concat(),
            Gre(flags) if flags & 0x8000 != 0 => bytes[at[i]..].to_vec(),
            Sctp => {
                let crc = bitwise_crc32c(&bytes[at[i]..]);
                bytes[at[i] + 8..at[i] + 12].copy_from_slice(&crc.to_le_bytes());
                continue;
            }
            _ => continue,
        };
        let field = at[i]
            + match header {
                Tcp(_) => 16,
                Udp(_) => 6,
                _ => 4,
            };
        let check = if !sum(&covered) == 0 { 0xffff } else { !sum(&covered) };
        bytes[field..field + 2].copy_from_slice(&check.to_be_bytes());
    }
    bytes
}

/// The frame as a sender hands it to a NIC that computes the innermost checksum: the field holds the pseudo-header's sum, in SCTP zero.
pub fn partial(headers: &[Header], payload: &[u8]) -> Vec<u8> {
    let mut bytes = whole(headers, payload);
    let (start, offset) = transport(headers);
    if headers.last() == Some(&Sctp) {
        bytes[start + 8..start + 12].fill(0);
    } else {
        let sum = sum(&pseudo(&bytes, headers, headers.len() - 1, bytes.len() - start));
        bytes[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// Asserts that every length and every checksum of a frame with these headers is right.
pub fn assert_sound(bytes: &[u8], headers: &[Header]) {
    let at = offsets(headers);
    let word = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    for (i, header) in headers.iter().enumerate() {
        let rest = bytes.len() - at[i];
        let covered = match header {
            V4(words) => {
                assert_eq!(word(at[i] + 2), rest, "the IPv4 length of header {i} of {headers:?}");
                bytes[at[i]..at[i] + 20 + 4 * words].to_vec()
            }
            V6 => {
                assert_eq!(word(at[i] + 4), rest - 40, "the IPv6 length of header {i} of {headers:?}");
                continue;
            }
            Udp(has_sum) => {
                assert_eq!(word(at[i] + 4), rest, "the UDP length of header {i} of {headers:?}");
                assert_eq!(word(at[i] + 6) != 0, *has_sum, "a checksum or none in header {i} of {headers:?}");
                if !has_sum {
                    continue;
                }
                [pseudo(bytes, headers, i, rest), bytes[at[i]..].to_vec()].concat()
            }
            Tcp(_) => [pseudo(bytes, headers, i, rest), bytes[at[i]..].to_vec()].concat(),
            Gre(flags) if flags & 0x8000 != 0 => bytes[at[i]..].to_vec(),
            _ => continue,
        };
        assert_eq!(sum(&covered), 0xffff, "the checksum of header {i} of {headers:?}");
    }
}

/// CRC32c, bit by bit.
fn bitwise_crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// Tunnels and what is inside, from Ethernet to the transport header.
pub fn tunnels() -> Vec<Vec<Header>> {
    let mut all = Vec::new();
    for outer in [&[V4(0)][..], &[V6], &[V6, HopByHop], &[V4(3)]] {
        for tunnel in [
            &[Udp(false), Vxlan, Ethernet][..],
            &[Udp(true), Vxlan, Ethernet],
            &[Udp(true), Vxlan, Ethernet, Tag(0x8100)],
            &[Udp(false), Geneve(0), Ethernet],
            &[Udp(true), Geneve(5), Ethernet],
            &[Udp(true), Geneve(2)],
            &[Udp(false)],
            &[Gre(0)],
            &[Gre(0x8000)],
            &[Gre(0x2000)],
            &[Gre(0xa000)],
            &[Gre(0xa000), Ethernet],
            &[],
        ] {
            for inner in [&[V4(0), Tcp(3)][..], &[V6, Tcp(0)], &[V4(0), Udp(true)], &[V6, Udp(true)]] {
                all.push([&[Ethernet], outer, tunnel, inner].concat());
            }
        }
    }
    // Two tunnels, one in the other.
    all.push(vec![Ethernet, V6, V4(0), Gre(0x8000), V6, Tcp(3)]);
    all.push(vec![Ethernet, Tag(0x8100), V4(0), V4(0), Udp(true), Vxlan, Ethernet, V4(0), Tcp(3)]);
    all
}

/// Frames without a tunnel.
pub fn plain() -> Vec<Vec<Header>> {
    let mut all = Vec::new();
    for link in [&[Ethernet][..], &[Ethernet, Tag(0x8100)], &[Ethernet, Tag(0x88a8), Tag(0x8100)], &[Ethernet, Label]] {
        for ip in [&[V4(0)][..], &[V4(10)], &[V6], &[V6, HopByHop], &[V6, Route], &[V6, HopByHop, Route]] {
            for transport in [Tcp(0), Tcp(3), Udp(true)] {
                all.push([link, ip, &[transport]].concat());
            }
        }
    }
    all
}
