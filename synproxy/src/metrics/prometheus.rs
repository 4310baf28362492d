//! The statistics in Prometheus' text format, version 0.0.4, made from the one [table](super::descriptors::TABLE).
//!
//! A scrape reads what the workers have published; it asks nothing of them, but of services, where there can be some.

use super::descriptors::{Descriptor, ServiceMetric, ServiceServerMetric, TABLE, TargetMetric, Timed, Writer};
use super::snapshot::Snapshot;
use super::targets::TargetStatus;
use ::control::ServiceState;
use std::collections::BTreeMap;
use std::fmt::Write;
use tcpstate::config::Mode;
use tcpstate::histogram::{self, BOUNDED};
use tcpstate::{DropReason, Event, Histogram, MetricKind};

/// The content type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What does not change while the box runs.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// The LAN and the WAN port: the interface, and how it is driven.
    pub ports: [(String, String); 2],
    /// The configuration file, if there is one, and a hash of the effective configuration.
    pub config: (Option<String>, u64),
    /// When the box was started, in seconds since 1970.
    pub started: f64,
}

/// One metric of Prometheus: everything of one name.
#[derive(Default)]
struct Group {
    help: String,
    kind: &'static str,
    lines: String,
}

/// The statistics of all workers, and of the thread that supervises them.
pub fn text(workers: &[Snapshot], supervisor: &Snapshot, identity: &Identity) -> String {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for row in &TABLE {
        let series = row.series();
        let group = groups.entry(series.name.clone()).or_insert_with(|| Group {
            help: help(row),
            kind: row.kind.label(),
            lines: String::new(),
        });
        if row.writer == Writer::Supervisor {
            let _ = writeln!(group.lines, "{series} {}", supervisor.get(row.metric));
            continue;
        }
        let mut label: String = series.labels.iter().map(|(key, value)| format!(",{key}=\"{value}\"")).collect();
        if let Some(side) = row.metric.ring_side() {
            let (interface, _) = &identity.ports[side as usize];
            let _ = write!(label, ",interface=\"{}\"", escaped(interface));
        }
        for (number, worker) in workers.iter().enumerate() {
            let value = worker.get(row.metric);
            let name = &series.name;
            let _ = if series.scale == 1.0 {
                writeln!(group.lines, "{name}{{worker=\"{number}\"{label}}} {value}")
            } else {
                writeln!(group.lines, "{name}{{worker=\"{number}\"{label}}} {}", value as f64 * series.scale)
            };
        }
    }
    for timed in Timed::all() {
        let (name, description) = (timed.series(), timed.description());
        let mut lines = String::new();
        for (number, worker) in workers.iter().enumerate() {
            histogram_lines(&mut lines, &name, number, worker.times(timed));
        }
        let kind = MetricKind::Histogram.label();
        groups.insert(name, Group { help: description.meaning.to_owned(), kind, lines });
    }
    let mut text = about(identity);
    for (name, Group { help, kind, lines }) in groups {
        let _ = write!(text, "# HELP {name} {}\n# TYPE {name} {kind}\n{lines}", escaped_help(&help));
    }
    text
}

/// The modes of destinations, and what is counted of each, by the label `policy`.
pub fn targets(targets: &[TargetStatus]) -> String {
    let mut text = String::new();
    if targets.is_empty() {
        return text;
    }
    let name = "synproxy_policy_mode";
    let _ = writeln!(text, "# HELP {name} Whether a destination is in this mode: 1 or 0.\n# TYPE {name} gauge");
    for status in targets {
        let policy = escaped(&status.target.to_string());
        for mode in Mode::ALL.into_iter().filter(|mode| *mode != Mode::Auto) {
            let is_so = u8::from(status.present == mode);
            let _ = writeln!(text, "{name}{{policy=\"{policy}\",mode=\"{}\"}} {is_so}", mode.label());
        }
    }
    for &metric in TargetMetric::ALL {
        let (name, kind) = (metric.series(), metric.description().kind.label());
        let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", escaped_help(metric.meaning()));
        for status in targets {
            let policy = escaped(&status.target.to_string());
            let _ = writeln!(text, "{name}{{policy=\"{policy}\"}} {}", metric.of(status));
        }
    }
    let name = POLICY_DROPS;
    let _ =
        writeln!(text, "# HELP {name} Segments of a destination that were dropped, by reason.\n# TYPE {name} counter");
    for status in targets {
        let policy = escaped(&status.target.to_string());
        for (reason, count) in DropReason::ALL.iter().zip(status.all.drops) {
            let _ = writeln!(text, "{name}{{policy=\"{policy}\",reason=\"{}\"}} {count}", reason.label());
        }
    }
    let name = POLICY_EVENTS;
    let _ = writeln!(text, "# HELP {name} What has happened to a destination, by event.\n# TYPE {name} counter");
    for status in targets {
        let policy = escaped(&status.target.to_string());
        for (event, count) in Event::ALL.iter().zip(status.all.events) {
            let _ = writeln!(text, "{name}{{policy=\"{policy}\",event=\"{}\"}} {count}", event.label());
        }
    }
    text
}

/// The drops of destinations, in Prometheus.
pub const POLICY_DROPS: &str = "synproxy_policy_dropped_segments_total";

/// The events of destinations, in Prometheus.
pub const POLICY_EVENTS: &str = "synproxy_policy_events_total";

/// What is counted of services, by the label `service`, and of their servers, by the label `server` besides.
pub fn services(services: &[ServiceState]) -> String {
    let mut text = String::new();
    if services.is_empty() {
        return text;
    }
    for &metric in ServiceMetric::ALL {
        let (name, kind) = (metric.series(), metric.description().kind.label());
        let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", escaped_help(metric.meaning()));
        for service in services {
            let _ = writeln!(text, "{name}{{service=\"{}\"}} {}", escaped(&service.service), metric.of(service));
        }
    }
    for &metric in ServiceServerMetric::ALL {
        let (name, kind) = (metric.series(), metric.description().kind.label());
        let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", escaped_help(metric.meaning()));
        for service in services {
            for server in &service.servers {
                let labels =
                    format!("service=\"{}\",server=\"{}\"", escaped(&service.service), escaped(&server.server));
                let _ = writeln!(text, "{name}{{{labels}}} {}", metric.of(server));
            }
        }
    }
    text
}

/// What a metric of Prometheus means: the row itself, or its family where the rows differ in a label.
fn help(row: &Descriptor) -> String {
    let family = row.metric.family();
    let shares_name = family.descriptors().iter().filter(|other| other.series().name == row.series().name).count() > 1;
    if shares_name { family.heading().to_owned() } else { row.meaning.to_owned() }
}

/// What the box is.
fn about(identity: &Identity) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, labels: &str, value: f64| {
        let lead = format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
        if !text.contains(&lead) {
            text.push_str(&lead);
        }
        let _ = writeln!(text, "{name}{labels} {value}");
    };
    let version = escaped(env!("CARGO_PKG_VERSION"));
    gauge("synproxy_build_info", "The version of the program.", &format!("{{version=\"{version}\"}}"), 1.0);
    let (file, hash) = &identity.config;
    let labels = format!("{{file=\"{}\",hash=\"{hash:016x}\"}}", escaped(file.as_deref().unwrap_or_default()));
    gauge("synproxy_config_info", "The configuration file and a hash of what it says.", &labels, 1.0);
    for (port, (interface, driven)) in ["lan", "wan"].iter().zip(&identity.ports) {
        let labels =
            format!("{{port=\"{port}\",interface=\"{}\",backend=\"{}\"}}", escaped(interface), escaped(driven));
        gauge("synproxy_port_info", "The interface of a port and how it is driven.", &labels, 1.0);
    }
    let help = "When the box was started, in seconds since 1970.";
    gauge("synproxy_start_time_seconds", help, "", identity.started);
    text
}

/// The lines of one histogram. Buckets count all that their bound includes.
fn histogram_lines(lines: &mut String, name: &str, worker: usize, times: &Histogram) {
    let mut below = 0;
    for (bucket, count) in times.counts.iter().take(BOUNDED).enumerate() {
        below += count;
        let bound = histogram::bound(bucket).as_secs_f64();
        let _ = writeln!(lines, "{name}_bucket{{worker=\"{worker}\",le=\"{bound}\"}} {below}");
    }
    let all = times.count();
    let _ = writeln!(lines, "{name}_bucket{{worker=\"{worker}\",le=\"+Inf\"}} {all}");
    let _ = writeln!(lines, "{name}_sum{{worker=\"{worker}\"}} {}", times.sum as f64 / 1e9);
    let _ = writeln!(lines, "{name}_count{{worker=\"{worker}\"}} {all}");
}

/// The value of a label, as the format wants it between its quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A help text, as the format wants it.
fn escaped_help(help: &str) -> String {
    help.replace('\\', "\\\\").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::descriptors::{FlowGauge, LinkMetric, Metric, WorkerMetric, WorkerTiming};
    use crate::metrics::targets::Baseline;
    use std::collections::BTreeSet;
    use std::time::Duration;
    use tcpstate::{Counts, Side, TargetCounts, TargetKey};

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.set(DropReason::BadCookie, 7);
        snapshot.set(FlowGauge::Proxied, 3);
        snapshot.set(WorkerMetric::TimedNanoseconds, 1_500_000_000);
        let mut times = Histogram::default();
        [3, 900, 100_000_000].iter().for_each(|&micros| times.observe(Duration::from_micros(micros)));
        snapshot.set_times(WorkerTiming::HoldTime, &times);
        snapshot
    }

    #[test]
    fn every_metric_is_there_once_for_each_worker() {
        let mut supervisor = Snapshot::default();
        supervisor.set(Metric::link(Side::Wan, LinkMetric::Lost), 4);
        let text = text(&[snapshot(), Snapshot::default()], &supervisor, &Identity::default());
        for line in [
            "synproxy_dropped_frames_total{worker=\"0\",reason=\"bad-cookie\"} 7",
            "synproxy_dropped_frames_total{worker=\"1\",reason=\"bad-cookie\"} 0",
            "synproxy_flows{worker=\"0\",kind=\"proxied\"} 3",
            "synproxy_worker_timed_seconds_total{worker=\"0\"} 1.5",
            "synproxy_link_lost_total{port=\"lan\"} 0",
            "synproxy_link_lost_total{port=\"wan\"} 4",
            "synproxy_notice_ports_swapped 0",
            "synproxy_port_received_frames_total{worker=\"1\",port=\"lan\"} 0",
            "synproxy_hold_time_seconds_bucket{worker=\"0\",le=\"0.000002\"} 0",
            "synproxy_hold_time_seconds_bucket{worker=\"0\",le=\"0.000004\"} 1",
            "synproxy_hold_time_seconds_bucket{worker=\"0\",le=\"0.001024\"} 2",
            "synproxy_hold_time_seconds_bucket{worker=\"0\",le=\"67.108864\"} 2",
            "synproxy_hold_time_seconds_bucket{worker=\"0\",le=\"+Inf\"} 3",
            "synproxy_hold_time_seconds_count{worker=\"0\"} 3",
            "synproxy_hold_time_seconds_sum{worker=\"0\"} 100.000903",
            "# TYPE synproxy_hold_time_seconds histogram",
            "# TYPE synproxy_flows gauge",
            "# TYPE synproxy_dropped_frames_total counter",
        ] {
            assert!(text.lines().any(|own| own == line), "{line}\n{text}");
        }
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let names = |line: &&str| line.rsplit_once(' ').map(|(name, _)| name.to_owned());
        assert_eq!(samples.iter().filter_map(names).collect::<BTreeSet<_>>().len(), samples.len(), "each once");
        let once = TABLE.iter().filter(|row| row.writer == Writer::Supervisor).count();
        assert_eq!(samples.len(), 5 + once + 2 * (TABLE.len() - once + Timed::all().count() * (BOUNDED + 3)));
        // All lines of a name stand together, behind its type.
        let types: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let own: BTreeSet<&str> = types.iter().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(own.len(), types.len());
    }

    #[test]
    fn services_and_their_servers_are_told_apart_by_labels() {
        assert_eq!(services(&[]), "");
        let server = |server: &str, up| ::control::ServiceServer {
            server: server.to_owned(),
            up,
            checked: true,
            drained: !up,
            known: true,
            weight: 2,
            connections: 3,
            given: 4,
        };
        let service = ServiceState {
            service: "192.0.2.100:443".to_owned(),
            protocol: "tls".to_owned(),
            reach: "nat".to_owned(),
            opened: 10,
            routed: 9,
            refused: 8,
            timed_out: 7,
            servers: vec![server("192.0.2.10:443", true), server("[2001:db8::1]:443", false)],
        };
        let text = services(&[service]);
        for line in [
            "# TYPE synproxy_service_opened_connections_total counter",
            "synproxy_service_opened_connections_total{service=\"192.0.2.100:443\"} 10",
            "synproxy_service_timed_out_connections_total{service=\"192.0.2.100:443\"} 7",
            "# TYPE synproxy_service_server_up gauge",
            "synproxy_service_server_up{service=\"192.0.2.100:443\",server=\"192.0.2.10:443\"} 1",
            "synproxy_service_server_up{service=\"192.0.2.100:443\",server=\"[2001:db8::1]:443\"} 0",
            "synproxy_service_server_drained{service=\"192.0.2.100:443\",server=\"[2001:db8::1]:443\"} 1",
            "synproxy_service_server_open_connections{service=\"192.0.2.100:443\",server=\"192.0.2.10:443\"} 3",
            "synproxy_service_server_given_connections_total{service=\"192.0.2.100:443\",server=\"192.0.2.10:443\"} 4",
        ] {
            assert!(text.lines().any(|own| own == line), "{line}\n{text}");
        }
    }

    #[test]
    fn destinations_are_told_apart_by_a_label() {
        assert_eq!(targets(&[]), "");
        let key = TargetKey { vlan: Some(7), address: [0, 0, 0xffff, 0xc000_0200], prefix: 120, port: Some(443) };
        let status = TargetStatus {
            target: key,
            wanted: Mode::Auto,
            present: Mode::Cookie,
            since: tcpstate::Instant::from_secs(1),
            switches: 3,
            counts: TargetCounts { half_open: 5, passed: 6, ..TargetCounts::default() },
            all: {
                let mut all = Counts::NONE;
                all.drops[DropReason::BadCookie as usize] = 7;
                all.events[Event::Dialled as usize] = 11;
                all
            },
            in_flight: 8,
            syn_rate: 9,
            baseline: Baseline::default(),
        };
        let text = targets(&[TargetStatus { target: TargetKey::EVERYBODY, ..status.clone() }, status]);
        for line in [
            "# TYPE synproxy_policy_mode gauge",
            "synproxy_policy_mode{policy=\"192.0.2.0/24:443 vlan 7\",mode=\"cookie\"} 1",
            "synproxy_policy_mode{policy=\"everybody\",mode=\"pass\"} 0",
            "synproxy_policy_half_open_connections{policy=\"192.0.2.0/24:443 vlan 7\"} 5",
            "synproxy_policy_in_flight_connections{policy=\"everybody\"} 8",
            "# TYPE synproxy_policy_passed_segments_total counter",
            "synproxy_policy_passed_segments_total{policy=\"everybody\"} 6",
            "synproxy_policy_switches_total{policy=\"everybody\"} 3",
            "synproxy_policy_dropped_segments_total{policy=\"192.0.2.0/24:443 vlan 7\",reason=\"bad-cookie\"} 7",
            "synproxy_policy_events_total{policy=\"192.0.2.0/24:443 vlan 7\",event=\"dialled\"} 11",
        ] {
            assert!(text.lines().any(|own| own == line), "{line}\n{text}");
        }
        let types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
        assert_eq!(types.iter().collect::<BTreeSet<_>>().len(), 3 + TargetMetric::COUNT);
    }

    #[test]
    fn names_of_interfaces_and_files_are_escaped() {
        let identity = Identity {
            ports: [("a\"b\\c".to_owned(), "xdp".to_owned()), Default::default()],
            config: (Some("/etc/x\ny".to_owned()), 1),
            started: 12.5,
        };
        let text = text(&[], &Snapshot::default(), &identity);
        assert!(text.contains("interface=\"a\\\"b\\\\c\"") && text.contains("file=\"/etc/x\\ny\""), "{text}");
        assert!(text.contains("synproxy_start_time_seconds 12.5\n"), "{text}");
    }
}
