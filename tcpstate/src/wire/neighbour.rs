//! Which Ethernet address an IP address has: ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861), as far as a host with fixed addresses needs
//! them.

use super::{
    Addr, ETHERNET_LEN, ETHERNET_MIN, GROUP, ICMPV6, IPV6_LEN, Mac, Tags, Vlan, be16, be32, checksum, put16, put32,
};

const ETHER_ARP: u16 = 0x0806;
const ETHER_IPV6: u16 = 0x86dd;
/// Bytes of an ARP packet for IPv4 over Ethernet.
const ARP_LEN: usize = 28;
/// Bytes of a solicitation or advertisement without options, and of an option with an Ethernet address.
const ND_LEN: usize = 24;
const OPTION_LEN: usize = 8;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The options with the source's and the target's Ethernet address.
const SOURCE_OPTION: u8 = 1;
const TARGET_OPTION: u8 = 2;
/// RFC 4861 section 7.1: what has passed a router has a smaller one.
const HOP_LIMIT: u8 = 255;
/// Flags of an advertisement.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const BROADCAST: Mac = [0xff; 6];
/// All nodes of a link, ff02::1.
const ALL_NODES: Addr = [0xff02_0000, 0, 0, 1];

/// The most bytes of a frame that is written here.
pub const LONGEST: usize = ETHERNET_LEN + 8 + IPV6_LEN + ND_LEN + OPTION_LEN;

/// What a frame says of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Whether it is about IPv6 addresses.
    pub v6: bool,
    /// The tags of the frame.
    pub tags: Tags,
    /// Whether it asks for the Ethernet address of `target`.
    pub asks: bool,
    /// Who sends it; zero if that has no address yet (RFC 5227 section 1.1, RFC 4862 section 5.4). An IPv4 address in its IPv6-mapped form.
    pub sender: Addr,
    /// The Ethernet address that the sender says it has; of an advertisement, the one that `target` has.
    pub mac: Option<Mac>,
    /// The address it is about.
    pub target: Addr,
}

/// The IPv6-mapped form of an IPv4 address; all zero stays so.
fn mapped(address: u32) -> Addr {
    if address == 0 { [0; 4] } else { [0, 0, 0xffff, address] }
}

fn mac_at(bytes: &[u8], at: usize) -> Option<Mac> {
    let mac: Mac = *bytes.get(at..)?.first_chunk()?;
    (mac[0] & GROUP == 0 && mac != [0; 6]).then_some(mac)
}

fn address_at(bytes: &[u8], at: usize) -> Addr {
    [0, 4, 8, 12].map(|n| be32(bytes, at + n))
}

impl Neighbour {
    /// What a frame of two tags at most says of addresses, if anything. Whatever the bytes are, it does not panic.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let mut ip = ETHERNET_LEN;
        while ip <= ETHERNET_LEN + 4 && matches!(be16(frame.get(..ip)?, ip - 2), 0x8100 | 0x88a8 | 0x9100) {
            ip += 4;
        }
        let kind = be16(frame.get(..ip)?, ip - 2);
        let tags = Tags::of(frame, ip);
        match kind {
            ETHER_ARP => Self::arp(frame.get(ip..ip + ARP_LEN)?, tags),
            ETHER_IPV6 => Self::discovery(frame.get(ip..)?, tags),
            _ => None,
        }
    }

    fn arp(packet: &[u8], tags: Tags) -> Option<Self> {
        // Ethernet, IPv4, and the lengths of their addresses.
        if packet[..6] != [0, 1, 8, 0, 6, 4] || !matches!(be16(packet, 6), 1 | 2) {
            return None;
        }
        let (sender, target) = (mapped(be32(packet, 14)), mapped(be32(packet, 24)));
        let asks = be16(packet, 6) == 1;
        let mac = mac_at(packet, 8);
        Some(Self { v6: false, tags, asks, sender, mac, target })
    }

    fn discovery(packet: &[u8], tags: Tags) -> Option<Self> {
        let header = packet.get(..IPV6_LEN)?;
        let message = packet.get(IPV6_LEN..IPV6_LEN + usize::from(be16(header, 4)))?;
        if header[0] >> 4 != 6 || header[6] != ICMPV6 || header[7] != HOP_LIMIT || message.len() < ND_LEN {
            return None;
        }
        let asks = match message[..2] {
            [SOLICITATION, 0] => true,
            [ADVERTISEMENT, 0] => false,
            _ => return None,
        };
        let pseudo = checksum::fold(u64::from(checksum::sum(&header[8..])) + message.len() as u64 + u64::from(ICMPV6));
        if checksum::fold(u64::from(pseudo) + u64::from(checksum::sum(message))) != u16::MAX {
            return None;
        }
        let wanted = if asks { SOURCE_OPTION } else { TARGET_OPTION };
        let (mut mac, mut rest) = (None, &message[ND_LEN..]);
        while let [kind, units, ..] = *rest {
            // RFC 4861 section 4.6: an option without a length is none.
            let option = rest.get(..usize::from(units) * 8).filter(|option| !option.is_empty())?;
            if kind == wanted && units == 1 {
                mac = mac_at(option, 2);
            }
            rest = &rest[option.len()..];
        }
        Some(Self { v6: true, tags, asks, sender: address_at(header, 8), mac, target: address_at(message, 8) })
    }

    /// The VLAN it is of, by the identifier of its only tag that names one; `None` if two do.
    pub fn vlan(&self) -> Option<u16> {
        let vlan = self.tags.vlan();
        (vlan.count() < 2).then(|| vlan.identifiers().next().unwrap_or(0))
    }
}

/// A question, an answer or an announcement of the box, which is at `own.1` as `own.0`.
#[derive(Clone, Copy, Debug)]
pub enum Statement {
    /// Who has this address?
    Asks(Addr),
    /// The box has its address: to who asked, at this IP and Ethernet address; to everybody, if that has no address yet.
    Answers(Addr, Mac),
    /// The same, to everybody, unasked (RFC 5227 section 2.3, RFC 4861 section 7.2.6).
    Announces,
}

impl Statement {
    /// Writes it to the beginning of `buffer`; returns the length of the frame.
    ///
    /// # Panics
    /// If the buffer is shorter than [`LONGEST`].
    pub fn write(&self, own: (Addr, Mac), v6: bool, tags: &Tags, buffer: &mut [u8]) -> usize {
        let mut at = 12;
        for &tag in tags.words() {
            put32(buffer, at, tag);
            at += 4;
        }
        put16(buffer, at, if v6 { ETHER_IPV6 } else { ETHER_ARP });
        let (packet, to) = if v6 {
            self.write_discovery(own, &mut buffer[at + 2..])
        } else {
            self.write_arp(own, &mut buffer[at + 2..])
        };
        buffer[..6].copy_from_slice(&to);
        buffer[6..12].copy_from_slice(&own.1);
        let end = at + 2 + packet;
        if end < ETHERNET_MIN {
            buffer[end..ETHERNET_MIN].fill(0);
        }
        end.max(ETHERNET_MIN)
    }

    /// Returns the length of the packet, and where it goes.
    fn write_arp(&self, (address, mac): (Addr, Mac), packet: &mut [u8]) -> (usize, Mac) {
        let (operation, target, target_mac, to) = match *self {
            Statement::Asks(asked) => (1, asked[3], [0; 6], BROADCAST),
            Statement::Answers(asker, asker_mac) => (2, asker[3], asker_mac, asker_mac),
            // RFC 5227 section 3: a request, as some hosts heed no unasked reply.
            Statement::Announces => (1, address[3], [0; 6], BROADCAST),
        };
        packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
        packet[8..14].copy_from_slice(&mac);
        put32(packet, 14, address[3]);
        packet[18..24].copy_from_slice(&target_mac);
        put32(packet, 24, target);
        (ARP_LEN, to)
    }

    fn write_discovery(&self, (address, mac): (Addr, Mac), packet: &mut [u8]) -> (usize, Mac) {
        let [a, b, c, d] = match *self {
            Statement::Asks([.., last]) => [0xff02_0000, 0, 1, 0xff00_0000 | last & 0xff_ffff],
            Statement::Answers(asker, _) if asker != [0; 4] => asker,
            Statement::Answers(..) | Statement::Announces => ALL_NODES,
        };
        let (kind, flags, about, option) = match *self {
            Statement::Asks(asked) => (SOLICITATION, 0, asked, SOURCE_OPTION),
            Statement::Answers(asker, _) if asker != [0; 4] => {
                (ADVERTISEMENT, SOLICITED | OVERRIDE, address, TARGET_OPTION)
            }
            _ => (ADVERTISEMENT, OVERRIDE, address, TARGET_OPTION),
        };
        let to = match *self {
            Statement::Answers(asker, asker_mac) if asker != [0; 4] => asker_mac,
            // RFC 2464 section 7.
            _ => {
                let [e, f, g, h] = d.to_be_bytes();
                [0x33, 0x33, e, f, g, h]
            }
        };
        const LEN: usize = ND_LEN + OPTION_LEN;
        put32(packet, 0, 6 << 28);
        put32(packet, 4, (LEN as u32) << 16 | u32::from(ICMPV6) << 8 | u32::from(HOP_LIMIT));
        for (n, word) in address.into_iter().chain([a, b, c, d]).enumerate() {
            put32(packet, 8 + 4 * n, word);
        }
        let message = &mut packet[IPV6_LEN..IPV6_LEN + LEN];
        message[..8].copy_from_slice(&[kind, 0, 0, 0, flags, 0, 0, 0]);
        for (n, word) in about.into_iter().enumerate() {
            put32(message, 8 + 4 * n, word);
        }
        message[ND_LEN..ND_LEN + 2].copy_from_slice(&[option, 1]);
        message[ND_LEN + 2..].copy_from_slice(&mac);
        let sum = u64::from(checksum::sum(message));
        let pseudo = u64::from(checksum::sum(&packet[8..IPV6_LEN])) + LEN as u64 + u64::from(ICMPV6);
        let sum = !checksum::fold(sum + pseudo);
        put16(packet, IPV6_LEN + 2, sum);
        (IPV6_LEN + LEN, to)
    }
}

/// The tags of a frame of this VLAN, given by the identifier of its tag; none for 0.
pub fn tags(vlan: u16) -> Tags {
    Tags::from(network(vlan))
}

/// The network that this identifier names in one tag of 802.1Q; 0: without a tag.
pub fn network(vlan: u16) -> Vlan {
    if vlan == 0 { Vlan::default() } else { Vlan(1 << 24 | u32::from(vlan)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_address(v6: bool, words: [u32; 4]) -> Addr {
        if v6 { [words[0] | 0x2000_0000, words[1], words[2], words[3]] } else { [0, 0, 0xffff, words[3].max(1)] }
    }

    proptest! {
        /// What is said is understood, with tags and without, and so is nothing else in its place.
        #[test]
        fn a_statement_is_read_back(v6: bool, own: [u32; 4], other: [u32; 4], vlan in 0u16..4095, mac: [u8; 5], kind in 0..3, damage: (u16, u8)) {
            let (own, other) = (any_address(v6, own), any_address(v6, other));
            let [a, b, c, d, e] = mac;
            let (own_mac, other_mac) = ([2, a, b, c, d, e], [6, e, d, c, b, a]);
            let statement = match kind {
                0 => Statement::Asks(other),
                1 => Statement::Answers(other, other_mac),
                _ => Statement::Announces,
            };
            let mut buffer = [0xee; LONGEST];
            let len = statement.write((own, own_mac), v6, &tags(vlan), &mut buffer);
            let read = Neighbour::parse(&buffer[..len]).expect("what was said");
            let asks = kind == 0 || kind == 2 && !v6;
            let target = match kind { 0 => other, 1 if !v6 => other, _ => own };
            prop_assert_eq!((read.v6, read.asks, read.sender, read.target), (v6, asks, own, target));
            prop_assert_eq!((read.mac, read.vlan()), (Some(own_mac), Some(vlan)));
            let (at, flip) = damage;
            let at = usize::from(at) % len;
            buffer[at] ^= flip;
            let _ = Neighbour::parse(&buffer[..len]);
            let _ = Neighbour::parse(&buffer[..at]);
        }

        #[test]
        fn any_frame_is_survived(frame in prop::collection::vec(any::<u8>(), 0..120), kind in 0..3usize) {
            let mut frame = frame;
            if frame.len() > 14 {
                frame[12..14].copy_from_slice(&[[8, 6], [0x86, 0xdd], [0x81, 0]][kind]);
            }
            let _ = Neighbour::parse(&frame);
        }
    }
}
