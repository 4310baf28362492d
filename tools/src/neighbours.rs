//! ARP (RFC 826) and neighbour discovery (RFC 4861) for simulated hosts: requests for an Ethernet address, and replies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tcpstate::wire::{ETHERNET_LEN, ETHERNET_MIN, ICMPV6, IPV6_LEN, Mac, checksum};

const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// Hardware type Ethernet, protocol IPv4, and their address lengths.
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
/// An ICMPv6 header, a target, and an option with an Ethernet address, in bytes.
const DISCOVERY_LEN: usize = 32;

/// An ARP or neighbour discovery message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A request for the Ethernet address of `target`.
    Request {
        /// The IP and Ethernet address of the sender.
        sender: (IpAddr, Mac),
        /// The address requested.
        target: IpAddr,
    },
    /// A reply: `address` has the Ethernet address `mac`.
    Reply {
        /// The IP address.
        address: IpAddr,
        /// Its Ethernet address.
        mac: Mac,
    },
}

/// Parses a frame; `None` if it is not such a message.
pub fn parse(frame: &[u8]) -> Option<Message> {
    let network = network(frame)?;
    let packet = &frame[network..];
    if frame[network - 2..network] == ARP {
        let arp: &[u8; 28] = packet.first_chunk()?;
        if arp[..6] != ARP_HEAD {
            return None;
        }
        let ip = |at: usize| IpAddr::V4(Ipv4Addr::new(arp[at], arp[at + 1], arp[at + 2], arp[at + 3]));
        let mac: Mac = arp[8..14].try_into().expect("six bytes");
        return match arp[7] {
            REQUEST => Some(Message::Request { sender: (ip(14), mac), target: ip(24) }),
            REPLY => Some(Message::Reply { address: ip(14), mac }),
            _ => None,
        };
    }
    if frame[network - 2..network] != IPV6 {
        return None;
    }
    let (header, icmp) = packet.split_first_chunk::<IPV6_LEN>()?;
    // RFC 4861 section 6.1: a hop limit of 255 proves that the message comes from this link.
    if header[6] != ICMPV6 || header[7] != 255 {
        return None;
    }
    let ip = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets)));
    let target = ip(icmp.get(8..24)?)?;
    let linked = icmp.get(26..32).and_then(|mac| Mac::try_from(mac).ok());
    let sender: Mac = frame[6..12].try_into().expect("six bytes");
    match icmp[0] {
        SOLICITATION => Some(Message::Request { sender: (ip(&header[8..24])?, linked.unwrap_or(sender)), target }),
        ADVERTISEMENT => Some(Message::Reply { address: target, mac: linked.unwrap_or(sender) }),
        _ => None,
    }
}

/// The offset of the network header.
fn network(frame: &[u8]) -> Option<usize> {
    let mut at = ETHERNET_LEN;
    while TAGS.iter().any(|tag| frame.get(at - 2..at) == Some(tag)) {
        at += 4;
    }
    (frame.len() >= at).then_some(at)
}

/// Writes a request for `target` from the host `sender`, with an optional VLAN tag, and returns the frame's length in bytes.
///
/// # Panics
/// If `buffer` is shorter than such a frame (90 bytes), or the addresses differ in family.
pub fn write_request(buffer: &mut [u8], vlan: Option<u16>, sender: (IpAddr, Mac), target: IpAddr) -> usize {
    match (sender.0, target) {
        (IpAddr::V4(own), IpAddr::V4(target)) => {
            let at = ethernet(buffer, [0xff; 6], sender.1, vlan, ARP);
            arp(&mut buffer[at..], REQUEST, (own, sender.1), (target, [0; 6]));
            padded(buffer, at + 28)
        }
        (IpAddr::V6(own), IpAddr::V6(target)) => {
            let low = target.octets();
            let group = Ipv6Addr::new(
                0xff02,
                0,
                0,
                0,
                0,
                1,
                0xff00 | u16::from(low[13]),
                u16::from_be_bytes([low[14], low[15]]),
            );
            let to = [0x33, 0x33, 0xff, low[13], low[14], low[15]];
            let at = ethernet(buffer, to, sender.1, vlan, IPV6);
            discovery(&mut buffer[at..], SOLICITATION, (own, group), target, sender.1);
            at + IPV6_LEN + DISCOVERY_LEN
        }
        _ => panic!("both addresses must be of one family"),
    }
}

/// Writes the reply to `sender` that `target` has the Ethernet address `mac`, and returns the frame's length in bytes; `None` for a request
/// from the unspecified address (duplicate address detection).
///
/// # Panics
/// If `buffer` is shorter than such a frame (90 bytes).
pub fn write_reply(
    buffer: &mut [u8],
    vlan: Option<u16>,
    sender: (IpAddr, Mac),
    target: IpAddr,
    mac: Mac,
) -> Option<usize> {
    match (sender.0, target) {
        (IpAddr::V4(asker), IpAddr::V4(target)) => {
            let at = ethernet(buffer, sender.1, mac, vlan, ARP);
            arp(&mut buffer[at..], REPLY, (target, mac), (asker, sender.1));
            Some(padded(buffer, at + 28))
        }
        (IpAddr::V6(asker), IpAddr::V6(target)) if !asker.is_unspecified() => {
            let at = ethernet(buffer, sender.1, mac, vlan, IPV6);
            discovery(&mut buffer[at..], ADVERTISEMENT, (target, asker), target, mac);
            Some(at + IPV6_LEN + DISCOVERY_LEN)
        }
        _ => None,
    }
}

fn ethernet(buffer: &mut [u8], to: Mac, from: Mac, vlan: Option<u16>, kind: [u8; 2]) -> usize {
    buffer[..6].copy_from_slice(&to);
    buffer[6..12].copy_from_slice(&from);
    let mut at = 12;
    if let Some(vlan) = vlan {
        buffer[at..at + 2].copy_from_slice(&TAGS[0]);
        buffer[at + 2..at + 4].copy_from_slice(&vlan.to_be_bytes());
        at += 4;
    }
    buffer[at..at + 2].copy_from_slice(&kind);
    at + 2
}

fn arp(packet: &mut [u8], operation: u8, sender: (Ipv4Addr, Mac), target: (Ipv4Addr, Mac)) {
    packet[..6].copy_from_slice(&ARP_HEAD);
    packet[6..8].copy_from_slice(&[0, operation]);
    for (at, (ip, mac)) in [(8, sender), (18, target)] {
        packet[at..at + 6].copy_from_slice(&mac);
        packet[at + 6..at + 10].copy_from_slice(&ip.octets());
    }
}

fn discovery(packet: &mut [u8], kind: u8, (from, to): (Ipv6Addr, Ipv6Addr), target: Ipv6Addr, mac: Mac) {
    packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, DISCOVERY_LEN as u8, ICMPV6, 255]);
    packet[8..24].copy_from_slice(&from.octets());
    packet[24..40].copy_from_slice(&to.octets());
    let icmp = &mut packet[IPV6_LEN..IPV6_LEN + DISCOVERY_LEN];
    icmp[..4].copy_from_slice(&[kind, 0, 0, 0]);
    // Flags of an advertisement: solicited, override.
    icmp[4..8].copy_from_slice(&[if kind == ADVERTISEMENT { 0x60 } else { 0 }, 0, 0, 0]);
    icmp[8..24].copy_from_slice(&target.octets());
    icmp[24..26].copy_from_slice(&[if kind == ADVERTISEMENT { TARGET_LINK } else { SOURCE_LINK }, 1]);
    icmp[26..32].copy_from_slice(&mac);
    let pseudo = u64::from(checksum::sum(&packet[8..40])) + u64::from(ICMPV6) + DISCOVERY_LEN as u64;
    let sum = !checksum::fold(pseudo + u64::from(checksum::sum(&packet[IPV6_LEN..IPV6_LEN + DISCOVERY_LEN])));
    packet[IPV6_LEN + 2..IPV6_LEN + 4].copy_from_slice(&sum.to_be_bytes());
}

fn padded(buffer: &mut [u8], len: usize) -> usize {
    buffer[len..ETHERNET_MIN.max(len)].fill(0);
    len.max(ETHERNET_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = [2, 0, 0, 0, 0, 4];
    const THEIRS: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn requests_and_replies_are_parsed() {
        for (own, target) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::1234:5678")] {
            let (own, target): (IpAddr, IpAddr) = (own.parse().unwrap(), target.parse().unwrap());
            for vlan in [None, Some(7)] {
                let mut frame = [0xee; 100];
                let len = write_request(&mut frame, vlan, (own, OURS), target);
                assert_eq!(parse(&frame[..len]), Some(Message::Request { sender: (own, OURS), target }), "{target}");
                let len = write_reply(&mut frame, vlan, (own, OURS), target, THEIRS).unwrap();
                assert_eq!(frame[..6], OURS);
                assert_eq!(parse(&frame[..len]), Some(Message::Reply { address: target, mac: THEIRS }), "{target}");
            }
        }
    }

    #[test]
    fn a_frame_of_any_length_is_parsed() {
        let mut frame = [0xee; 100];
        let len = write_request(&mut frame, None, ("fd00::1".parse().unwrap(), OURS), "fd00::2".parse().unwrap());
        for cut in 0..len {
            assert!(parse(&frame[..cut]).is_none_or(|_| cut >= ETHERNET_LEN + IPV6_LEN + 24));
        }
    }
}
