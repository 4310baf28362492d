//! What the kernel knows of an interface: address, queues, counters, ARP table.

use std::fs;
use std::net::IpAddr;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::flood_template::Mac;

/// The kernel interface a port name stands for, if there is one.
pub fn behind(port: &str) -> Option<&str> {
    match port.split_once(':') {
        None => Some(port),
        Some(("xdp" | "packet", name)) => Some(name),
        Some(("netmap", name)) if !name.contains(['{', '}']) => Some(name),
        Some(_) => None,
    }
}

/// The Ethernet address of an interface, from sysfs.
pub fn mac(interface: &str) -> Option<Mac> {
    parse_mac(fs::read_to_string(format!("/sys/class/net/{interface}/address")).ok()?.trim()).ok()
}

/// The Ethernet address that a load sends from by `port`: that of its interface; without one, as at a switch or a pipe, an [`own_mac`].
pub fn source_mac(port: &str, seed: Option<u64>) -> Mac {
    behind(port).and_then(mac).filter(|mac| *mac != [0; 6]).unwrap_or_else(|| own_mac(seed, 0))
}

/// A locally administered Ethernet address (IEEE 802) of this process alone, so that a switch tells it from that of another load: the
/// `nth` of those it needs. With a seed, that of all loads with this seed.
pub fn own_mac(seed: Option<u64>, nth: u64) -> Mac {
    let mut chance = match seed {
        Some(seed) => SmallRng::seed_from_u64(seed),
        None => SmallRng::from_rng(&mut rand::rng()),
    };
    chance.fill_bytes(&mut vec![0; 8 * nth as usize]);
    let mut mac = Mac::default();
    chance.fill_bytes(&mut mac);
    mac[0] = mac[0] & !1 | 2;
    mac
}

/// The present number of receive queues of an interface.
pub fn queues(interface: &str) -> Option<usize> {
    let entries = fs::read_dir(format!("/sys/class/net/{interface}/queues")).ok()?;
    let is_receive = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.starts_with("rx-"));
    Some(entries.flatten().filter(|entry| is_receive(&entry.file_name())).count())
}

/// The packets an interface has transmitted and received, by its own counters.
pub fn packets(interface: &str) -> Option<[u64; 2]> {
    let count = |name: &str| {
        let text = fs::read_to_string(format!("/sys/class/net/{interface}/statistics/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    Some([count("tx_packets")?, count("rx_packets")?])
}

/// The Ethernet address of an IPv4 neighbour, from the kernel's ARP table.
pub fn neighbour(address: IpAddr, interface: &str) -> Option<Mac> {
    let table = fs::read_to_string("/proc/net/arp").ok()?;
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[ip, _, _, mac, _, device] = fields.as_slice() else { return None };
        let known = ip.parse() == Ok(address) && device == interface;
        parse_mac(mac).ok().filter(|mac| known && *mac != [0; 6])
    })
}

/// Parses an Ethernet address like 02:00:00:00:00:01.
///
/// # Errors
/// A message with an example, for any other text.
pub fn parse_mac(text: &str) -> Result<Mac, String> {
    let wrong = || format!("`{text}` is not an Ethernet address like 02:00:00:00:00:01");
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>();
    bytes.map_err(|_| wrong())?.try_into().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names_map_to_kernel_interfaces() {
        let names = ["eth0", "xdp:eth0", "packet:eth0", "netmap:eth0", "netmap:pipe{1", "vale0:1", "pcap:out=x"];
        let known = names.map(behind);
        assert_eq!(known, [Some("eth0"), Some("eth0"), Some("eth0"), Some("eth0"), None, None, None]);
    }

    #[test]
    fn loads_at_a_switch_have_addresses_of_their_own() {
        let macs: Vec<Mac> = (0..100).map(|_| source_mac("vale0:1", None)).collect();
        for (at, mac) in macs.iter().enumerate() {
            assert_eq!(mac[0] & 3, 2, "locally administered, and of one station");
            assert!(!macs[..at].contains(mac), "{mac:02x?} twice");
        }
        assert_eq!(own_mac(Some(1), 0), source_mac("netmap:p{1", Some(1)), "the same seed makes the same load");
        assert_ne!(own_mac(Some(1), 0), own_mac(Some(1), 1));
        assert_ne!(own_mac(Some(1), 0), own_mac(Some(2), 0));
        assert_eq!(source_mac("lo", Some(1)), own_mac(Some(1), 0), "a loop has no address");
    }

    #[test]
    fn addresses_are_parsed_and_anything_else_is_refused() {
        assert_eq!(parse_mac("02:00:00:00:00:0a"), Ok([2, 0, 0, 0, 0, 10]));
        for nonsense in ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "02:00:00:00:00:xx", "020000000001"] {
            assert!(parse_mac(nonsense).is_err(), "{nonsense}");
        }
    }
}
