//! When a changed value of each key takes effect in a running process. A new key is named here once, or nothing compiles.

use crate::keys::{KEYS, Key};

/// When a changed value takes effect in a running process that reads its configuration again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// At once.
    Now,
    /// For connections that begin from then on. Those that run keep what they began with.
    NewConnections,
    /// When the next epoch begins, 5 to 72 s later, on every worker at the same time. Cookies made before open with the tables they were made with.
    NextEpoch,
    /// When the process is started again, for this reason.
    Restart(&'static str),
    /// Never: the key is read and checked, yet changes nothing, for this reason.
    Nothing(&'static str),
}

impl Effect {
    /// It in one word, for programs: `now`, `new-connections`, `next-epoch`, `restart` or `nothing`.
    pub const fn name(self) -> &'static str {
        match self {
            Effect::Now => "now",
            Effect::NewConnections => "new-connections",
            Effect::NextEpoch => "next-epoch",
            Effect::Restart(_) => "restart",
            Effect::Nothing(_) => "nothing",
        }
    }

    /// Why a change has no effect in this process, if it has none.
    pub const fn reason(self) -> Option<&'static str> {
        match self {
            Effect::Restart(reason) | Effect::Nothing(reason) => Some(reason),
            Effect::Now | Effect::NewConnections | Effect::NextEpoch => None,
        }
    }
}

use Effect::{NewConnections, NextEpoch, Now, Restart};

/// The keys by the effect of a change, each under its full name. Keys that change nothing whatever their value ([`Key::idle`]) are not listed.
const EFFECTS: &[(Effect, &[&str])] = &[
    (
        Now,
        &[
            "passed_rate",
            "introductions",
            "retries",
            "proved_memory",
            "proved_syns",
            "proved_half_open",
            "proved_half_open_all",
            "mode",
            "auto.enter_half_open",
            "auto.enter_syn_rate",
            "auto.leave_half_open",
            "auto.stay",
            "auto.grace",
            "auto.in_flight",
            "lists.block",
            "lists.block_files",
            "lists.allow",
            "lists.allow_files",
            "lists.always",
            "lists.always_files",
            "limits.source_flows",
            "limits.source_rate",
            "limits.network_factor",
            "limits.destination_flows",
            "limits.destination_rate",
            "limits.syn_acks",
            "limits.destination_syn_acks",
            "stray",
            "icmp_errors",
            "stray_fragments",
            "poll",
            "shed",
            "link_loss",
            "events.file",
            "events.syslog",
            "events.on_event",
            "events.commands",
            "events.command_timeout",
            "events.attack_begin",
            "events.attack_end",
            "events.attack_end_after",
            "events.update_every",
            "events.capacity",
            "port_loss",
            "port",
            "listen",
            "control_group",
            "control_read",
            "control_operate",
            "control_admin",
            "metrics",
            "log_level",
            "ratehash.timer_period_usec",
            "ratehash.timer_add",
            "ratehash.initial_tokens",
            "ratehash.network_prefix",
            "ratehash.network_prefix6",
        ],
    ),
    (
        NewConnections,
        &[
            "sackmode",
            "mssmode",
            "wscalemode",
            "sackconflict",
            "own_mss",
            "own_sack",
            "own_ttl",
            "mss_clamp",
            "handshake",
            "early",
            "honest",
            "destinations",
            "services",
            "early_window",
            "early_echo",
            "mptcp",
            "fastopen",
            "signed",
            "proved",
            "closed_memory",
            "asymmetric",
            "timeouts.connected",
            "timeouts.one_fin",
            "timeouts.both_fin",
            "timeouts.time_wait",
            "timeouts.reseted",
            "timeouts.ul_syn_sent",
            "timeouts.ul_syn_rcvd",
            "timeouts.dl_half_open",
            "timeouts.dl_syn_sent",
            "timeouts.syn_retx",
            "timeouts.syn_retx_max",
        ],
    ),
    // For clients with timestamps `own_wscale` holds at once.
    (NextEpoch, &["own_wscale", "mss", "wscale", "tsmss"]),
    (
        Restart("its memory is allocated at the start"),
        &[
            "conntablesize",
            "halfopen_cache_max",
            "learnhashsize",
            "held_frames",
            "proved_sources",
            "ratehash.size",
            "service_buffers",
            "first_bytes",
        ],
    ),
    (Restart("each worker has a queue of either port, which are opened at the start"), &["threadcount"]),
    (
        Restart("the kernel's programs are attached when the ports are opened"),
        &["fast_path", "fast_path_flows", "fast_path_flood", "fast_path_calm"],
    ),
    (Restart("the rings are made when the ports are opened"), &["ldp.netmap_nr_rx_slots", "ldp.netmap_nr_tx_slots"]),
    (
        Restart("the XDP program is loaded at the start, and the map of flows allocated"),
        &["on_failure", "syns_in_kernel"],
    ),
    (Restart("it is opened at the start"), &["watchdog_device", "bypass_hook"]),
    (Restart("the process has changed to its user and group, and cannot change back"), &["user", "group"]),
    (Restart("the state is made, and taken over, at the start"), &["state_dir", "state_keep"]),
    (Restart("the socket is created before the process gives up its privileges"), &["control"]),
    (Restart("it concerns the time after a start"), &["adopt_grace", "test_connections"]),
];

impl Key {
    /// When a changed value takes effect in a running process.
    pub fn effect(&self) -> Effect {
        match self.idle {
            Some(reason) => Effect::Nothing(reason),
            None => listed(self).expect("the compiler has found every key"),
        }
    }

    /// Its name behind that of its section: `ratehash.size`.
    pub fn full_name(&self) -> String {
        match self.section {
            Some(section) => format!("{section}.{}", self.name),
            None => self.name.to_owned(),
        }
    }
}

/// The effect that is listed for a key.
const fn listed(key: &Key) -> Option<Effect> {
    let mut found = None;
    let mut at = 0;
    while at < EFFECTS.len() {
        let (effect, names) = EFFECTS[at];
        let mut name = 0;
        while name < names.len() {
            if is_name_of(names[name], key) {
                assert!(found.is_none(), "a key is listed twice");
                found = Some(effect);
            }
            name += 1;
        }
        at += 1;
    }
    found
}

/// Whether this is the full name of the key.
const fn is_name_of(name: &str, key: &Key) -> bool {
    let (name, own) = (name.as_bytes(), key.name.as_bytes());
    let before: &[u8] = match key.section {
        Some(section) => section.as_bytes(),
        None => &[],
    };
    let dot = if before.is_empty() { 0 } else { 1 };
    if name.len() != before.len() + dot + own.len() {
        return false;
    }
    let mut at = 0;
    while at < name.len() {
        let expected = if at < before.len() {
            before[at]
        } else if at < before.len() + dot {
            b'.'
        } else {
            own[at - before.len() - dot]
        };
        if name[at] != expected {
            return false;
        }
        at += 1;
    }
    true
}

// Every key that does something has one effect, and every name is that of a key.
const _: () = {
    let mut at = 0;
    let mut active = 0;
    while at < KEYS.len() {
        let effect = listed(&KEYS[at]);
        match KEYS[at].idle {
            None if effect.is_none() => panic!("{}", KEYS[at].name),
            None => active += 1,
            Some(_) => assert!(effect.is_none(), "a key that changes nothing is listed"),
        }
        at += 1;
    }
    let mut listed = 0;
    let mut at = 0;
    while at < EFFECTS.len() {
        listed += EFFECTS[at].1.len();
        at += 1;
    }
    assert!(listed == active, "a name is listed that is no key's");
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_effect_they_are_listed_with() {
        let effect = |name: &str| KEYS.iter().find(|key| key.full_name() == name).expect("a key").effect();
        assert_eq!(effect("poll"), Now);
        assert_eq!(effect("own_mss"), NewConnections);
        assert_eq!(effect("mss"), NextEpoch);
        assert_eq!(effect("ratehash.size").name(), "restart");
        assert!(effect("ratehash.size").reason().is_some_and(|reason| reason.contains("memory")));
        assert!(matches!(effect("tswscale"), Effect::Nothing(_)));
    }
}
