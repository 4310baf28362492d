//! What a block of `destinations` may hold: the keys that say which servers it is for, and those of [`KEYS`](crate::Config::KEYS) that may differ
//! from server to server, each with the same range and words as for everybody.

use crate::keys::{KEYS, Key, Takes};
use crate::{Config, Value};
use tcpstate::config::Settings;

/// A key that may stand in a block.
pub(crate) struct RuleKey {
    /// The section it belongs in.
    pub section: Option<&'static str>,
    /// Its name.
    pub name: &'static str,
    /// Takes what a configuration says for everybody into a block's settings.
    take: fn(&mut Settings, &tcpstate::Config),
    /// Says for everybody what a block settles; false where that is left open.
    pub give: fn(&Settings, &mut tcpstate::Config) -> bool,
}

impl RuleKey {
    /// The key of the same name for everybody.
    pub fn key(&self) -> &'static Key {
        KEYS.iter()
            .find(|key| key.section == self.section && key.name == self.name)
            .expect("a test looks for all of them")
    }

    /// Settles a value.
    pub fn set(&self, settings: &mut Settings, value: Value) {
        let mut config = Config::default();
        (self.key().set)(&mut config, value);
        (self.take)(settings, &config.engine);
    }
}

macro_rules! ruled {
    ($section:expr, $name:literal, $($field:ident).+) => {
        RuleKey {
            section: $section,
            name: $name,
            take: |settings, engine| settings.$($field).+ = Some(engine.$($field).+),
            give: |settings, engine| settings.$($field).+.map(|value| engine.$($field).+ = value).is_some(),
        }
    };
}

pub(crate) const TIMEOUTS: Option<&str> = Some("timeouts");
pub(crate) const AUTO: Option<&str> = Some("auto");

/// The sections that a block may have.
pub(crate) const SECTIONS_OF_BLOCKS: [&str; 2] = ["timeouts", "auto"];

/// Every key that may differ from server to server, in the order of the table of keys.
pub(crate) const RULE_KEYS: &[RuleKey] = &[
    ruled!(None, "sackmode", sack),
    ruled!(None, "mssmode", mss),
    ruled!(None, "wscalemode", wscale),
    ruled!(None, "sackconflict", sack_conflict),
    ruled!(None, "own_mss", own_mss),
    ruled!(None, "own_wscale", own_wscale),
    ruled!(None, "own_sack", own_sack),
    ruled!(None, "own_ttl", own_ttl),
    RuleKey {
        section: None,
        name: "mss_clamp",
        take: |settings, engine| settings.mss_clamp = engine.mss_clamp,
        give: |settings, engine| {
            engine.mss_clamp = settings.mss_clamp;
            settings.mss_clamp.is_some()
        },
    },
    ruled!(None, "mode", mode),
    ruled!(None, "handshake", handshake),
    ruled!(None, "early_window", early_window),
    ruled!(None, "early_echo", early_echo),
    ruled!(None, "mptcp", multipath),
    ruled!(None, "fastopen", fast_open),
    ruled!(None, "signed", signed),
    ruled!(None, "closed_memory", closed_memory),
    ruled!(None, "proved", proved),
    ruled!(None, "asymmetric", asymmetric),
    ruled!(None, "stray", stray),
    ruled!(None, "icmp_errors", icmp_errors),
    ruled!(None, "stray_fragments", stray_fragments),
    ruled!(TIMEOUTS, "connected", timeouts.connected),
    ruled!(TIMEOUTS, "one_fin", timeouts.one_fin),
    ruled!(TIMEOUTS, "both_fin", timeouts.both_fin),
    ruled!(TIMEOUTS, "time_wait", timeouts.time_wait),
    ruled!(TIMEOUTS, "reseted", timeouts.reseted),
    ruled!(TIMEOUTS, "ul_syn_sent", timeouts.ul_syn_sent),
    ruled!(TIMEOUTS, "ul_syn_rcvd", timeouts.ul_syn_rcvd),
    ruled!(TIMEOUTS, "dl_half_open", timeouts.dl_half_open),
    ruled!(TIMEOUTS, "dl_syn_sent", timeouts.dl_syn_sent),
    ruled!(TIMEOUTS, "syn_retx", timeouts.syn_retx),
    ruled!(TIMEOUTS, "syn_retx_max", timeouts.syn_retx_max),
    ruled!(AUTO, "enter_half_open", auto.enter_half_open),
    ruled!(AUTO, "enter_syn_rate", auto.enter_syn_rate),
    ruled!(AUTO, "leave_half_open", auto.leave_half_open),
    ruled!(AUTO, "stay", auto.stay),
    ruled!(AUTO, "grace", auto.grace),
    ruled!(AUTO, "in_flight", auto.in_flight),
];

/// A key that says which servers a block is for.
const fn place_key(name: &'static str, takes: Takes, help: &'static str) -> Key {
    Key { section: None, name, takes, unit: "", help, idle: None, set: |_, _| (), get: |_| None }
}

static NETWORK: Key = place_key("network", Takes::Network, "the servers' address or network");
pub(crate) static PORT: Key =
    place_key("port", Takes::Number { min: 1, max: 65535 }, "their port; every port unless given");
pub(crate) static VLAN: Key =
    place_key("vlan", Takes::Number { min: 0, max: 4094 }, "their VLAN, 0 without a tag; any unless given");

/// The keys that say which servers a block is for.
pub(crate) static PLACE_KEYS: [&Key; 3] = [&NETWORK, &PORT, &VLAN];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_block_is_one_for_everybody_too() {
        for key in RULE_KEYS {
            assert_eq!((key.key().section, key.key().name), (key.section, key.name));
        }
        for section in SECTIONS_OF_BLOCKS {
            let all = KEYS.iter().filter(|key| key.section == Some(section)).count();
            assert_eq!(RULE_KEYS.iter().filter(|key| key.section == Some(section)).count(), all);
        }
    }
}
