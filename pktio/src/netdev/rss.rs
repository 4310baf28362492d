//! Configures the receive-side config (RSS) of two NICs symmetrically, so that both directions of a connection arrive on queues of the same
//! number; restored at exit.
//!
//! Two ways make RSS symmetric: the NIC combines source and destination by exclusive or before it hashes (`symmetric-xor`; the key can be
//! secret), or the key repeats itself every 16 bits.

use std::io;

use super::Interface;
use super::ethtool::Ethtool;
use super::undo::Undo;
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
    fn read(ethtool: &Ethtool, name: &str) -> io::Result<RssConfig> {
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
}

/// The request that restores the default table, which spreads over all queues in turn.
fn default_table() -> Vec<u32> {
    vec![ETHTOOL_SRSSH, 0, 0, 0, 0, 0]
}

/// The configuration of both devices before anything was changed.
pub(super) struct OriginalRss([RssConfig; 2]);

impl OriginalRss {
    /// Reads it.
    ///
    /// # Errors
    /// Which device does not report its configuration, and why.
    pub(super) fn read(ethtool: &Ethtool, interfaces: [&Interface; 2]) -> Result<OriginalRss, String> {
        let read = |interface: &Interface| {
            let name = interface.name();
            let config = RssConfig::read(ethtool, name).map_err(|error| format!("{name} has none ({error})"))?;
            match () {
                () if config.table.is_empty() => Err(format!("{name} has no table of queues")),
                () if config.key.len() < KEY => Err(format!("the key of {name} cannot be set")),
                () => Ok(config),
            }
        };
        Ok(OriginalRss([read(interfaces[0])?, read(interfaces[1])?]))
    }

    /// Restores tables and keys; to be applied when the number of queues has been restored.
    pub(super) fn undo(&self, interfaces: [&Interface; 2]) -> Vec<Undo> {
        let pairs = interfaces.iter().zip(&self.0);
        pairs
            .map(|(interface, config)| Undo::Rss { name: interface.name().into(), request: config.request() })
            .collect()
    }

    /// Makes both devices spread connections over `queues` queues in the same, symmetric way, and pushes onto `undo` what restores the
    /// former way.
    ///
    /// # Errors
    /// Why they cannot. Settings changed until then are on `undo`.
    pub(super) fn make_symmetric(
        &self,
        ethtool: &Ethtool,
        interfaces: [&Interface; 2],
        queues: usize,
        random: &[u8; 64],
        undo: &mut Vec<Undo>,
    ) -> Result<Twin, String> {
        let queues = u32::try_from(queues).map_err(|_| "too many queues".to_owned())?;
        if self.0[0].table.len() != self.0[1].table.len() && !queues.is_power_of_two() {
            return Err("the devices' tables of queues differ in size".into());
        }
        for interface in interfaces {
            // The number of queues cannot be lowered again while the table names more.
            undo.push(Undo::Rss { name: interface.name().into(), request: default_table() });
            for flow in [TCP_V4_FLOW, TCP_V6_FLOW] {
                undo.extend(hash_ports(ethtool, interface.name(), flow)?);
            }
        }
        let ways: [(u8, &mut dyn Iterator<Item = u8>, &mut dyn Iterator<Item = u8>); 2] = [
            (SYMMETRIC_XOR, &mut random.iter().copied().cycle(), &mut random.iter().copied().cycle()),
            (0, &mut REPEATED.into_iter().cycle(), &mut REPEATED.into_iter().cycle()),
        ];
        let mut reasons = Vec::new();
        for (transform, key, same_key) in ways {
            let wanted = [self.0[0].over(queues, key, transform), self.0[1].over(queues, same_key, transform)];
            let mut set = interfaces.iter().zip(&wanted);
            match set.try_for_each(|(interface, wanted)| set_rss(ethtool, interface.name(), wanted)) {
                Ok(()) => {
                    let RssConfig { table, key, transform, .. } = &wanted[0];
                    return Ok(Twin::with_key(key, table.clone(), *transform == SYMMETRIC_XOR));
                }
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons.join("; "))
    }
}

/// Configures a device, and reads the configuration back.
fn set_rss(ethtool: &Ethtool, name: &str, wanted: &RssConfig) -> Result<(), String> {
    let way = if wanted.transform == SYMMETRIC_XOR { "symmetric-xor" } else { "a symmetric key" };
    ethtool.command(name, &mut wanted.request()).map_err(|error| format!("{name} does not take {way} ({error})"))?;
    match RssConfig::read(ethtool, name) {
        Ok(found) if found == *wanted => Ok(()),
        Ok(_) => Err(format!("{name} does not keep {way}")),
        Err(error) => Err(format!("{name} does not report whether it keeps {way} ({error})")),
    }
}

/// Makes a device hash addresses and ports of TCP.
fn hash_ports(ethtool: &Ethtool, name: &str, flow: u32) -> Result<Option<Undo>, String> {
    // cmd, flow type, a 64-bit field of what is hashed.
    let mut fields = [0_u32; RXNFC_WORDS];
    (fields[0], fields[1]) = (ETHTOOL_GRXFH, flow);
    let low = if cfg!(target_endian = "big") { 3 } else { 2 };
    if ethtool.command(name, &mut fields).is_err() {
        // It cannot be chosen; samples show what the device hashes.
        return Ok(None);
    }
    let before = fields[low];
    if before == FOUR_TUPLE {
        return Ok(None);
    }
    fields = [0; RXNFC_WORDS];
    (fields[0], fields[1], fields[low]) = (ETHTOOL_SRXFH, flow, FOUR_TUPLE);
    let refused = |error| format!("{name} does not hash the ports of TCP ({error})");
    ethtool.command(name, &mut fields).map_err(refused)?;
    let mut request = vec![0; RXNFC_WORDS];
    (request[0], request[1], request[low]) = (ETHTOOL_SRXFH, flow, before);
    Ok(Some(Undo::Rss { name: name.into(), request }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(entries: usize, key: usize) -> RssConfig {
        RssConfig { table: vec![7; entries], key: vec![9; key], function: 2, transform: 0 }
    }

    #[test]
    fn a_request_says_all_there_is_to_say_and_a_default_one_only_the_table() {
        let wanted = config(4, 42).over(3, REPEATED.into_iter().cycle(), SYMMETRIC_XOR);
        let request = wanted.request();
        assert_eq!(request[..4], [ETHTOOL_SRSSH, 0, 4, 42]);
        assert_eq!(request[4].to_ne_bytes(), [TOEPLITZ, SYMMETRIC_XOR, 0, 0]);
        assert_eq!(request[6..10], [0, 1, 2, 0]);
        assert_eq!(request.len(), 6 + 4 + 11);
        assert_eq!(request[10].to_ne_bytes(), [0x6d, 0x5a, 0x6d, 0x5a]);
        assert_eq!(request[20].to_ne_bytes(), [0x6d, 0x5a, 0, 0]);
        // No table, no key, no function: entries 0 mean the default, the others no change.
        assert_eq!(default_table(), [ETHTOOL_SRSSH, 0, 0, 0, 0, 0]);
    }
}
