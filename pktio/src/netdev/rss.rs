//! Configures the receive-side config (RSS) of two NICs symmetrically, so that both directions of a connection arrive on queues of the same
//! number; restored at exit.
//!
//! Two ways make RSS symmetric: the NIC combines source and destination by exclusive or before it hashes (`symmetric-xor`; the key can be
//! secret), or the key repeats itself every 16 bits.

use std::io;

use super::Interface;
use super::ethtool::Ethtool;
use crate::rss::{KEY, REPEATED, Twin};

// linux/ethtool.h
const ETHTOOL_GRXFH: u32 = 0x29;
const ETHTOOL_SRXFH: u32 = 0x2a;
const ETHTOOL_GRSSH: u32 = 0x46;
const ETHTOOL_SRSSH: u32 = 0x47;
const TCP_V4_FLOW: u32 = 0x01;
const TCP_V6_FLOW: u32 = 0x05;
/// Both addresses and both ports (`RXH_IP_SRC | RXH_IP_DST | RXH_L4_B_0_1 | RXH_L4_B_2_3`).
const FOUR_TUPLE: u32 = 0xf0;
/// `ETH_RSS_HASH_TOP`: Toeplitz.
const TOEPLITZ: u8 = 1;
/// `RXH_XFRM_SYM_XOR`: source and destination are combined by exclusive or first.
const SYMMETRIC_XOR: u8 = 1;
/// Words of `struct ethtool_rxfh` before the table.
const RXFH_WORDS: usize = 6;
/// Words of `struct ethtool_rxnfc`, rounded up.
const RXNFC_WORDS: usize = 64;

/// How a NIC spreads frames over its queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RssConfig {
    /// The queue of each value of the hash's lower bits.
    table: Vec<u32>,
    key: Vec<u8>,
    function: u8,
    transform: u8,
}

impl RssConfig {
    /// Reads the configuration of a device.
    pub(super) fn read(ethtool: &Ethtool, name: &str) -> io::Result<RssConfig> {
        // cmd, context, table size, key size, hash function and transform and two spare bytes, spare.
        let mut sizes = [ETHTOOL_GRSSH, 0, 0, 0, 0, 0];
        ethtool.command(name, &mut sizes)?;
        let (entries, key) = (sizes[2] as usize, sizes[3] as usize);
        let mut request = vec![0_u32; RXFH_WORDS + entries + key.div_ceil(4)];
        (request[0], request[2], request[3]) = (ETHTOOL_GRSSH, sizes[2], sizes[3]);
        ethtool.command(name, &mut request)?;
        let [function, transform, ..] = request[4].to_ne_bytes();
        let bytes: Vec<u8> = request[RXFH_WORDS + entries..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let table = request[RXFH_WORDS..RXFH_WORDS + entries].to_vec();
        Ok(RssConfig { table, key: bytes[..key].to_vec(), function, transform })
    }

    /// The request that configures a device like this.
    fn request(&self) -> Vec<u32> {
        let functions = u32::from_ne_bytes([self.function, self.transform, 0, 0]);
        let mut request = vec![ETHTOOL_SRSSH, 0, self.table.len() as u32, self.key.len() as u32, functions, 0];
        request.extend(&self.table);
        request.extend(self.key.chunks(4).map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_ne_bytes(word)
        }));
        request
    }

    /// A configuration of the same sizes, over `queues` queues in turn, with Toeplitz's hash, this key and this transform.
    fn over(&self, queues: u32, key: impl Iterator<Item = u8>, transform: u8) -> RssConfig {
        RssConfig {
            table: (0..self.table.len() as u32).map(|i| i % queues).collect(),
            key: key.take(self.key.len()).collect(),
            function: TOEPLITZ,
            transform,
        }
    }

    /// The words that [`RssConfig::of_words`] reads: function, transform, key in hexadecimal digits, table.
    pub(super) fn words(&self) -> Vec<String> {
        let key = self.key.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut words = vec![self.function.to_string(), self.transform.to_string(), key];
        words.extend(self.table.iter().map(u32::to_string));
        words
    }

    /// The configuration of these words.
    pub(super) fn of_words<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<RssConfig> {
        let (function, transform) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let key = words.next()?.as_bytes().chunks(2);
        let key =
            key.map(|byte| u8::from_str_radix(std::str::from_utf8(byte).ok()?, 16).ok()).collect::<Option<_>>()?;
        let table = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        Some(RssConfig { table, key, function, transform })
    }

    /// What of it others may know: the table, the key, and whether source and destination are combined by exclusive or first.
    pub(super) fn parts(&self) -> (&[u32], &[u8], bool) {
        (&self.table, &self.key, self.transform & SYMMETRIC_XOR != 0)
    }

    /// Some configuration.
    #[cfg(test)]
    pub(super) fn for_tests(table: Vec<u32>, key: Vec<u8>) -> RssConfig {
        RssConfig { table, key, function: TOEPLITZ, transform: SYMMETRIC_XOR }
    }
}

/// Restores the default table, which spreads over all queues in turn: no table, no key and no function in the request; no entries mean the
/// default, and the others no change.
pub(super) fn set_default(ethtool: &Ethtool, name: &str) -> io::Result<()> {
    ethtool.command(name, &mut [ETHTOOL_SRSSH, 0, 0, 0, 0, 0])
}

/// Configures a device.
pub(super) fn set(ethtool: &Ethtool, name: &str, config: &RssConfig) -> io::Result<()> {
    ethtool.command(name, &mut config.request())
}

/// The configuration of both devices before anything is changed, if both can be made symmetric.
///
/// # Errors
/// Which device does not report its configuration, and why.
pub(super) fn read_both(ethtool: &Ethtool, interfaces: [&Interface; 2]) -> Result<[RssConfig; 2], String> {
    let read = |interface: &Interface| {
        let name = interface.name();
        let config = RssConfig::read(ethtool, name).map_err(|error| format!("{name} has none ({error})"))?;
        match () {
            () if config.table.is_empty() => Err(format!("{name} has no table of queues")),
            () if config.key.len() < KEY => Err(format!("the key of {name} cannot be set")),
            () => Ok(config),
        }
    };
    Ok([read(interfaces[0])?, read(interfaces[1])?])
}

/// What a device hashes of TCP now, by type of flow, where that can be chosen and is not what symmetric RSS needs.
pub(super) fn hashed_otherwise(ethtool: &Ethtool, name: &str) -> Vec<(u32, u32)> {
    let now = |flow| Some((flow, hashed(ethtool, name, flow).ok()?));
    [TCP_V4_FLOW, TCP_V6_FLOW].into_iter().filter_map(now).filter(|(_, fields)| *fields != FOUR_TUPLE).collect()
}

/// Makes a device hash addresses and ports of these types of flow.
pub(super) fn hash_four_tuples(ethtool: &Ethtool, name: &str, flows: &[(u32, u32)]) -> io::Result<()> {
    flows.iter().try_for_each(|&(flow, _)| set_hashed(ethtool, name, flow, FOUR_TUPLE))
}

/// Makes both devices spread connections over `queues` queues in the same, symmetric way.
///
/// # Errors
/// Why they cannot. Some settings may have changed until then.
pub(super) fn make_symmetric(
    ethtool: &Ethtool,
    interfaces: [&Interface; 2],
    original: &[RssConfig; 2],
    queues: usize,
    random: &[u8; 64],
) -> Result<Twin, String> {
    let queues = u32::try_from(queues).map_err(|_| "too many queues".to_owned())?;
    if original[0].table.len() != original[1].table.len() && !queues.is_power_of_two() {
        return Err("the devices' tables of queues differ in size".into());
    }
    for interface in interfaces {
        let name = interface.name();
        hash_four_tuples(ethtool, name, &hashed_otherwise(ethtool, name))
            .map_err(|error| format!("{name} does not hash the ports of TCP ({error})"))?;
    }
    let ways: [(u8, &mut dyn Iterator<Item = u8>, &mut dyn Iterator<Item = u8>); 2] = [
        (SYMMETRIC_XOR, &mut random.iter().copied().cycle(), &mut random.iter().copied().cycle()),
        (0, &mut REPEATED.into_iter().cycle(), &mut REPEATED.into_iter().cycle()),
    ];
    let mut reasons = Vec::new();
    for (transform, key, same_key) in ways {
        let wanted = [original[0].over(queues, key, transform), original[1].over(queues, same_key, transform)];
        let mut both = interfaces.iter().zip(&wanted);
        match both.try_for_each(|(interface, wanted)| set_rss(ethtool, interface.name(), wanted)) {
            Ok(()) => {
                let RssConfig { table, key, transform, .. } = &wanted[0];
                return Ok(Twin::with_key(key, table.clone(), *transform == SYMMETRIC_XOR));
            }
            Err(reason) => reasons.push(reason),
        }
    }
    Err(reasons.join("; "))
}

/// Configures a device, and reads the configuration back.
fn set_rss(ethtool: &Ethtool, name: &str, wanted: &RssConfig) -> Result<(), String> {
    let way = if wanted.transform == SYMMETRIC_XOR { "symmetric-xor" } else { "a symmetric key" };
    // As a former process has left it: some devices take their link down for every change.
    if RssConfig::read(ethtool, name).is_ok_and(|found| found == *wanted) {
        return Ok(());
    }
    set(ethtool, name, wanted).map_err(|error| format!("{name} does not take {way} ({error})"))?;
    match RssConfig::read(ethtool, name) {
        Ok(found) if found == *wanted => Ok(()),
        Ok(_) => Err(format!("{name} does not keep {way}")),
        Err(error) => Err(format!("{name} does not report whether it keeps {way} ({error})")),
    }
}

/// The place of the fields' lower half in the words of `struct ethtool_rxnfc`.
const FIELDS: usize = if cfg!(target_endian = "big") { 3 } else { 2 };

/// What a device hashes of this type of flow (`RXH_*`).
pub(super) fn hashed(ethtool: &Ethtool, name: &str, flow: u32) -> io::Result<u32> {
    // cmd, flow type, a 64-bit field of what is hashed.
    let mut request = [0_u32; RXNFC_WORDS];
    (request[0], request[1]) = (ETHTOOL_GRXFH, flow);
    ethtool.command(name, &mut request)?;
    Ok(request[FIELDS])
}

/// Makes a device hash these fields of this type of flow.
pub(super) fn set_hashed(ethtool: &Ethtool, name: &str, flow: u32, fields: u32) -> io::Result<()> {
    let mut request = [0_u32; RXNFC_WORDS];
    (request[0], request[1], request[FIELDS]) = (ETHTOOL_SRXFH, flow, fields);
    ethtool.command(name, &mut request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(entries: usize, key: usize) -> RssConfig {
        RssConfig { table: vec![7; entries], key: vec![9; key], function: 2, transform: 0 }
    }

    #[test]
    fn a_request_says_all_there_is_to_say() {
        let wanted = config(4, 42).over(3, REPEATED.into_iter().cycle(), SYMMETRIC_XOR);
        let request = wanted.request();
        assert_eq!(request[..4], [ETHTOOL_SRSSH, 0, 4, 42]);
        assert_eq!(request[4].to_ne_bytes(), [TOEPLITZ, SYMMETRIC_XOR, 0, 0]);
        assert_eq!(request[6..10], [0, 1, 2, 0]);
        assert_eq!(request.len(), 6 + 4 + 11);
        assert_eq!(request[10].to_ne_bytes(), [0x6d, 0x5a, 0x6d, 0x5a]);
        assert_eq!(request[20].to_ne_bytes(), [0x6d, 0x5a, 0, 0]);
    }
}
