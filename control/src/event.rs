//! Events: what the box reports to its operator by itself, as lines of JSON.
//!
//! The members of an attack have the names of RFC 9132 (DOTS signal channel) and RFC 9244 (DOTS telemetry), where these have one.

use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};

/// An event, and where and when it happened: one line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    /// The number of the event, from 1 at the start of the process on.
    pub number: u64,
    /// When it happened, in UTC: `2026-11-29T13:15:42.123Z` (RFC 3339).
    pub time: String,
    /// The name of the machine.
    pub host: String,
    /// The names of the interfaces, LAN first, with a hyphen between them.
    #[serde(rename = "box")]
    pub appliance: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Something that the operator wants to know of: its member `event` names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Event {
    /// An attack has begun.
    AttackBegin(Box<Attack>),
    /// An attack goes on, or its status has changed.
    AttackUpdate(Box<Attack>),
    /// An attack has been at its strongest: its rate has not been exceeded for some seconds. Again, if it is exceeded later by a quarter.
    AttackPeak(Box<Attack>),
    /// An attack has ended.
    AttackEnd(Box<Attack>),
    /// The mode of a destination has changed.
    ModeSwitched {
        /// The destination, by its network, port and VLAN.
        destination: String,
        /// The mode until now.
        from: String,
        /// The mode from now on.
        to: String,
        /// What has changed it, in words.
        why: String,
    },
    /// A server of services accepts connections again.
    ServerUp {
        /// Its address and port.
        server: String,
        /// The first service that names it.
        service: String,
    },
    /// A server of services does not accept connections any more.
    ServerDown {
        /// Its address and port.
        server: String,
        /// The first service that names it.
        service: String,
    },
    /// A port has lost its link, or has it again.
    LinkChanged {
        /// The port: `lan` or `wan`.
        port: crate::Side,
        /// The interface.
        interface: String,
        /// How the link is now.
        condition: crate::LinkCondition,
        /// How often it was lost since the start.
        lost: u64,
    },
    /// Somebody has changed settings of an interface that the box works with.
    SettingsChanged {
        /// The port: `lan` or `wan`.
        port: crate::Side,
        /// The interface.
        interface: String,
        /// How often since the start.
        times: u64,
    },
    /// A worker does not serve its ports any more.
    WorkerStalled {
        /// Its number, from 0.
        worker: usize,
        /// For how long, in seconds.
        seconds: u64,
    },
    /// A worker that was stalled serves its ports again.
    WorkerResumed {
        /// Its number, from 0.
        worker: usize,
    },
    /// A worker or a port has failed, and the box ends.
    BoxFailed {
        /// Why, in words.
        why: String,
    },
}

/// An attack: a flood of SYNs whose handshakes are not completed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attack {
    /// The number of the attack, which no other one has, not even after a restart (RFC 9132, mitigation identifier).
    pub mid: u32,
    /// What becomes of it.
    pub status: AttackStatus,
    /// What is attacked: one address, or one network.
    pub target_prefix: Vec<String>,
    /// The port that is attacked; absent if it is several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_port_range: Vec<PortRange>,
    /// The IP protocol: 6, TCP.
    pub target_protocol: Vec<u8>,
    /// When it began, in seconds since 1970.
    pub mitigation_start: u64,
    /// For how long it lasts or has lasted, in seconds.
    pub duration: u64,
    /// SYNs a second now.
    pub pps: u64,
    /// Of these, SYNs a second whose handshake is not completed: none of them opens a connection to the server.
    pub pps_dropped: u64,
    /// All of these since the attack began.
    pub pkts_dropped: u64,
    /// The most `pps_dropped` so far.
    pub peak_pps_dropped: u64,
    /// When that was, in seconds since 1970.
    pub peak_time: u64,
    /// The sources of most of its SYNs, those that more than a sixty-fourth of all SYNs come from; sources that are forged at random are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_sources: Vec<TopSource>,
    /// Where several services are attacked, those that get most of its SYNs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_targets: Vec<TopTarget>,
}

/// What becomes of an attack: the status of its mitigation (RFC 9132 section 4.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttackStatus {
    /// It has just begun.
    AttackMitigationInProgress,
    /// Its SYNs reach no server, and the box keeps up.
    AttackSuccessfullyMitigated,
    /// It has ended.
    AttackStopped,
    /// It exceeds what the box, or the link, can take: frames of others are lost.
    AttackExceededCapability,
}

impl AttackStatus {
    /// Its name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            AttackStatus::AttackMitigationInProgress => "attack-mitigation-in-progress",
            AttackStatus::AttackSuccessfullyMitigated => "attack-successfully-mitigated",
            AttackStatus::AttackStopped => "attack-stopped",
            AttackStatus::AttackExceededCapability => "attack-exceeded-capability",
        }
    }
}

/// A range of ports: here always one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortRange {
    /// The port.
    pub lower_port: u16,
}

/// A source of an attack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TopSource {
    /// Its address.
    pub source_prefix: String,
    /// SYNs a second of it.
    pub pps: u64,
}

/// A service that is attacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TopTarget {
    /// Its address.
    pub target_prefix: String,
    /// Its port.
    pub lower_port: u16,
    /// SYNs a second for it.
    pub pps: u64,
}

impl Event {
    /// Its name, as in JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Event::AttackBegin(_) => "attack-begin",
            Event::AttackUpdate(_) => "attack-update",
            Event::AttackPeak(_) => "attack-peak",
            Event::AttackEnd(_) => "attack-end",
            Event::ModeSwitched { .. } => "mode-switched",
            Event::ServerUp { .. } => "server-up",
            Event::ServerDown { .. } => "server-down",
            Event::LinkChanged { .. } => "link-changed",
            Event::SettingsChanged { .. } => "settings-changed",
            Event::WorkerStalled { .. } => "worker-stalled",
            Event::WorkerResumed { .. } => "worker-resumed",
            Event::BoxFailed { .. } => "box-failed",
        }
    }

    /// The attack it is about.
    pub fn attack(&self) -> Option<&Attack> {
        match self {
            Event::AttackBegin(attack)
            | Event::AttackUpdate(attack)
            | Event::AttackPeak(attack)
            | Event::AttackEnd(attack) => Some(attack),
            _ => None,
        }
    }
}

/// In words, without its name.
impl Display for Event {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Event::AttackBegin(attack)
            | Event::AttackUpdate(attack)
            | Event::AttackPeak(attack)
            | Event::AttackEnd(attack) => write!(f, "{attack}"),
            Event::ModeSwitched { destination, from, to, why } => {
                write!(f, "{destination}: from {from} to {to}, {why}")
            }
            Event::ServerUp { server, service } => write!(f, "{server} of {service} accepts connections again"),
            Event::ServerDown { server, service } => write!(f, "{server} of {service} accepts no connections any more"),
            Event::LinkChanged { interface, condition, lost, .. } => {
                write!(f, "{interface} is {}; lost {lost} times", condition.name())
            }
            Event::SettingsChanged { interface, times, .. } => {
                write!(f, "somebody has changed settings of {interface}, {times} times")
            }
            Event::WorkerStalled { worker, seconds } => write!(f, "worker {worker} has served no port for {seconds} s"),
            Event::WorkerResumed { worker } => write!(f, "worker {worker} serves its ports again"),
            Event::BoxFailed { why } => f.write_str(why),
        }
    }
}

/// As `192.0.2.1/32 port 80, 20000 SYNs a second (19900 not completed, peak 21000), 7 s, attack-successfully-mitigated`.
impl Display for Attack {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.target_prefix.join(" "))?;
        if let Some(range) = self.target_port_range.first() {
            write!(f, " port {}", range.lower_port)?;
        }
        let Attack { pps, pps_dropped, peak_pps_dropped, duration, .. } = self;
        write!(f, ", {pps} SYNs a second ({pps_dropped} not completed, peak {peak_pps_dropped}), {duration} s, ")?;
        f.write_str(self.status.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attack() -> Attack {
        Attack {
            mid: 1_795_958_142,
            status: AttackStatus::AttackExceededCapability,
            target_prefix: vec!["192.0.2.1/32".to_owned()],
            target_port_range: vec![PortRange { lower_port: 80 }],
            target_protocol: vec![6],
            mitigation_start: 1_795_958_142,
            duration: 7,
            pps: 20_000,
            pps_dropped: 19_900,
            pkts_dropped: 139_300,
            peak_pps_dropped: 21_000,
            peak_time: 1_795_958_145,
            top_sources: vec![TopSource { source_prefix: "198.51.100.7/32".to_owned(), pps: 900 }],
            top_targets: Vec::new(),
        }
    }

    fn record(event: Event) -> Record {
        let [time, host, appliance] = ["2026-11-29T13:15:42.123Z", "gate", "eth0-eth1"].map(str::to_owned);
        Record { number: 3, time, host, appliance, event }
    }

    #[test]
    fn an_attack_is_a_line_of_json_in_the_words_of_dots() {
        let record = record(Event::AttackBegin(Box::new(attack())));
        let line = serde_json::to_string(&record).unwrap();
        assert_eq!(
            line,
            r#"{"number":3,"time":"2026-11-29T13:15:42.123Z","host":"gate","box":"eth0-eth1","event":"attack-begin","mid":1795958142,"#
                .to_owned()
                + r#""status":"attack-exceeded-capability","target-prefix":["192.0.2.1/32"],"target-port-range":[{"lower-port":80}],"#
                + r#""target-protocol":[6],"mitigation-start":1795958142,"duration":7,"pps":20000,"pps-dropped":19900,"pkts-dropped":139300,"#
                + r#""peak-pps-dropped":21000,"peak-time":1795958145,"top-sources":[{"source-prefix":"198.51.100.7/32","pps":900}]}"#
        );
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }

    #[test]
    fn every_event_has_one_name_and_is_read_back() {
        let port = crate::Side::Wan;
        let [text, interface] = ["x", "eth1"].map(str::to_owned);
        let attack = || Box::new(attack());
        for event in [
            Event::AttackBegin(attack()),
            Event::AttackUpdate(attack()),
            Event::AttackPeak(attack()),
            Event::AttackEnd(attack()),
            Event::ModeSwitched { destination: text.clone(), from: text.clone(), to: text.clone(), why: text.clone() },
            Event::ServerUp { server: text.clone(), service: text.clone() },
            Event::ServerDown { server: text.clone(), service: text.clone() },
            Event::LinkChanged {
                port,
                interface: interface.clone(),
                condition: crate::LinkCondition::NoCarrier,
                lost: 2,
            },
            Event::SettingsChanged { port, interface, times: 1 },
            Event::WorkerStalled { worker: 1, seconds: 5 },
            Event::WorkerResumed { worker: 1 },
            Event::BoxFailed { why: text },
        ] {
            let record = record(event);
            let value = serde_json::to_value(&record).unwrap();
            assert_eq!(value["event"], record.event.name());
            assert_eq!(serde_json::from_value::<Record>(value).unwrap(), record);
            assert!(!record.event.to_string().is_empty());
        }
        assert_eq!(
            attack().to_string(),
            "192.0.2.1/32 port 80, 20000 SYNs a second (19900 not completed, peak 21000), 7 s, attack-exceeded-capability"
        );
    }
}
