//! Replies of the box as text: status, counters, server entries and captures.

use control::{
    Capture, Counts, DestinationMode, Entry, Interface, Link, LinkCondition, Port, Record, ServiceServer, ServiceState,
    Stats, Status, Suggested,
};
use std::collections::BTreeMap;
use std::fmt::Write;
use synproxy::metrics::descriptors::{FORMER_LOSSES, Family, TABLE};
use tcpstate::{DropReason, Event};

/// The state of the box, one item per line.
pub fn status(status: &Status) -> String {
    let mut out = String::new();
    let interface = |interface: &Interface| {
        let link = interface.link.as_ref().map(|own| format!(", {}", link(own))).unwrap_or_default();
        format!("{} ({}){link}", interface.name, interface.backend)
    };
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<12}{value}");
    };
    line("synproxy", format!("{}, process {}, up {}", status.version, status.pid, span(status.uptime)));
    line("lan", interface(&status.lan));
    line("wan", interface(&status.wan));
    line("workers", workers(&status.workers));
    if status.ports_swapped {
        let words = "LAN and WAN seem to be swapped: connections are opened from the LAN, and none from the WAN, so nothing is protected";
        line("warning", words.to_owned());
    }
    if status.bypass {
        line("bypass", "on: all frames are forwarded without inspection, servers are not protected".to_owned());
    }
    if let Some(drain) = &status.drain {
        let left = if drain.left == 0 { "done".to_owned() } else { format!("{} connections left", drain.left) };
        line("draining", format!("for {}: {left}", span(drain.since)));
    }
    // An earlier synproxy sends the number under its former name only.
    if let Some(servers) = status.servers.or(status.backends) {
        line("servers", servers.to_string());
    }
    let flows = status.flows;
    line("flows", format!("{} proxied, {} direct, {} half-open", flows.proxied, flows.direct, flows.half_open));
    line("log level", status.log_level.name().to_owned());
    out
}

/// The link of an interface.
fn link(link: &Link) -> String {
    let condition = match link.condition {
        LinkCondition::Up => "link up",
        LinkCondition::NoCarrier => "NO LINK",
        LinkCondition::Down => "DOWN",
        LinkCondition::TakenDown => "TAKEN DOWN, since the other port has no link",
    };
    let lost = match link.lost {
        0 => String::new(),
        1 => ", lost once".to_owned(),
        times => format!(", lost {times} times"),
    };
    format!("{condition} for {}{lost}", span(link.since))
}

/// Server entries, one per line.
pub fn servers(entries: &[Entry]) -> String {
    let mut out = String::new();
    for entry in entries {
        let sack = if entry.sack { "on" } else { "off" };
        let _ = writeln!(
            out,
            "{:<48} mss {:<6} sack {sack:<4} wscale {}",
            entry.key().to_string(),
            entry.mss,
            entry.wscale
        );
    }
    out
}

/// Modes of destinations, one per line.
pub fn destinations(destinations: &[DestinationMode]) -> String {
    if destinations.is_empty() {
        return "no modes are decided: all frames are forwarded without inspection\n".to_owned();
    }
    let mut out = format!(
        "{:<36} {:<8} {:<8} {:>12} {:>9} {:>9} {:>9} {:>10} {:>8}\n",
        "destination", "mode", "now", "for", "half-open", "in flight", "SYNs/s", "proved", "switches"
    );
    for own in destinations {
        let _ = writeln!(
            out,
            "{:<36} {:<8} {:<8} {:>12} {:>9} {:>9} {:>9} {:>10} {:>8}",
            own.destination,
            own.mode,
            own.now,
            span(own.since),
            own.half_open,
            own.in_flight,
            own.syn_rate,
            own.proved,
            own.switches
        );
    }
    out
}

/// Services, each with its servers below it.
pub fn services(services: &[ServiceState]) -> String {
    if services.is_empty() {
        return "there are no services\n".to_owned();
    }
    let mut out = String::new();
    for own in services {
        let ServiceState { service, protocol, reach, opened, routed, refused, timed_out, servers } = own;
        let _ = writeln!(
            out,
            "{service}, {protocol}, {reach}: {opened} clients, {routed} routed, {refused} refused, {timed_out} silent"
        );
        for server in servers {
            let state = match server {
                ServiceServer { drained: true, .. } => "drained",
                ServiceServer { up: false, .. } => "down",
                ServiceServer { known: false, .. } => "unknown",
                ServiceServer { checked: true, .. } => "up",
                _ => "unchecked",
            };
            let ServiceServer { server, weight, connections, given, .. } = server;
            let _ = writeln!(out, "  {server:<48} {state:<9} weight {weight:<5} {connections} connections of {given}");
        }
    }
    out
}

/// A server's queue for half-open connections that many programs ask for.
const USUAL_BACKLOG: u64 = 128;

/// What was usual of destinations, and the thresholds that follow from it.
pub fn suggested(suggested: &[Suggested]) -> String {
    let mut out = String::new();
    for own in suggested {
        let Suggested { destination, seconds, half_open, syn_rate, enter_half_open, leave_half_open, enter_syn_rate } =
            own;
        let levels = |[middle, most, nearly_all, peak]: [u64; 4]| {
            format!("{middle} in the middle, {most} in 99 %, {nearly_all} in 99.9 %, {peak} at most")
        };
        let _ = writeln!(out, "{destination}, observed for {}", span(f64::from(*seconds)));
        let _ = writeln!(out, "  half-open    {}", levels(*half_open));
        let _ = writeln!(out, "  SYNs/s       {}", levels(*syn_rate));
        let _ = writeln!(
            out,
            "  auto = {{ enter_half_open = {enter_half_open}; leave_half_open = {leave_half_open}; enter_syn_rate = {enter_syn_rate}; }};"
        );
        if *seconds < 7 * 86_400 {
            let _ = writeln!(out, "  a whole week of traffic would tell more");
        }
        if *enter_half_open >= USUAL_BACKLOG {
            let _ = writeln!(
                out,
                "  its servers need a larger backlog than that ({USUAL_BACKLOG} is usual; `ss -ltn` shows it as Send-Q): raise it, or take less here"
            );
        }
    }
    out
}

/// Captures, one per line.
pub fn captures(captures: &[Capture]) -> String {
    if captures.is_empty() {
        return "nothing is being captured\n".to_owned();
    }
    let mut out = format!("{:<10}{:>12}{:>12}{:>12}  FILE\n", "FRAMES", "CAPTURED", "MISSED", "BEYOND");
    for Capture { kind, path, captured, missed, beyond } in captures {
        let _ = writeln!(out, "{:<10}{captured:>12}{missed:>12}{beyond:>12}  {}", kind.name(), path.display());
    }
    out
}

/// The number of workers, and those that do not answer.
fn workers(answered: &[bool]) -> String {
    let missing: Vec<String> =
        answered.iter().enumerate().filter(|(_, answers)| !**answers).map(|(n, _)| n.to_string()).collect();
    match missing.as_slice() {
        [] => format!("{}, all answer", answered.len()),
        missing => format!("{}, of which {} do not answer", answered.len(), missing.join(", ")),
    }
}

/// A duration in seconds, in readable units.
pub(crate) fn span(seconds: f64) -> String {
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds:.1} s"),
        (0, 0, _) => format!("{minutes} min {} s", whole % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// All counters in a table; counters that are zero are left out.
pub fn stats(stats: &Stats) -> String {
    let mut out = String::new();
    let total = &stats.total;
    let _ = writeln!(out, "{:<34}{:>18}{:>18}", format!("after {}", span(stats.uptime)), "lan", "wan");
    for name in total.lan.keys().filter(|name| !Family::Lan.is_former(name)) {
        let of = |port: &Port| port.get(name).copied().unwrap_or_default();
        let (lan, wan) = (of(&total.lan), of(&total.wan));
        if lan + wan > 0 {
            let _ = writeln!(out, "{name:<34}{lan:>18}{wan:>18}");
        }
    }
    for (name, &lan) in &total.lan_rings {
        let wan = total.wan_rings.get(name).copied().unwrap_or_default();
        if lan + wan > 0 {
            let _ = writeln!(out, "{:<34}{lan:>18}{wan:>18}", format!("rings, {name}"));
        }
    }
    for name in total.lan_link.keys().filter(|name| *name != "carrier") {
        let of = |port: &Port| port.get(name).copied().unwrap_or_default();
        let (lan, wan) = (of(&total.lan_link), of(&total.wan_link));
        if lan + wan > 0 {
            let _ = writeln!(out, "{:<34}{lan:>18}{wan:>18}", format!("link, {name}"));
        }
    }
    let flows = total.flows;
    section(&mut out, "flows", [("proxied", flows.proxied), ("direct", flows.direct), ("half-open", flows.half_open)]);
    section(&mut out, "frames held", [("held", total.held)]);
    let event = |name: &str| Event::ALL.iter().find(|event| event.label() == name).map(|event| event.meaning());
    let reason =
        |name: &str| DropReason::ALL.iter().find(|reason| reason.label() == name).map(|reason| reason.meaning());
    explained(&mut out, "events", &total.events, event);
    explained(&mut out, "drops (docs/drops.md has what to do about each)", &total.drops, reason);
    let loss = |name: &str| TABLE.iter().find(|row| row.loss == Some(name)).map(|row| row.meaning);
    explained(&mut out, "losses", &losses(total), loss);
    let described = |family: Family| {
        move |name: &str| family.descriptors().iter().find(|row| row.name == name).map(|row| row.meaning)
    };
    explained(&mut out, "control socket", &total.control, described(Family::Control));
    explained(&mut out, "events that were reported", &total.reported_events, described(Family::Reported));
    explained(&mut out, "their delivery", &total.delivery, described(Family::Delivery));
    let mut orders = total.orders.iter().filter(|(_, longest)| **longest > 0).peekable();
    if orders.peek().is_some() {
        let _ = writeln!(out, "longest time for a command, µs");
    }
    for (command, &longest) in orders {
        let _ = writeln!(out, "  {command:<32}{:>18.1}", longest as f64 / 1e3);
    }
    if let [_, _, ..] = stats.workers.as_slice() {
        worker_table(&mut out, &stats.workers);
    }
    if total.timed_frames > 0 {
        let each = total.timed_nanoseconds as f64 / total.timed_frames as f64;
        let _ = writeln!(out, "{:<34}{each:>18.1}", "ns a frame, without ports");
    }
    out
}

/// An event, with the sources and targets of an attack below it.
pub fn event(record: &Record) -> String {
    let mut out = format!("{}  {}  {}\n", record.time, record.event.name(), record.event);
    let Some(attack) = record.event.attack() else { return out };
    for source in &attack.top_sources {
        let _ = writeln!(out, "    from {}, {} a second", source.source_prefix, source.pps);
    }
    for target in &attack.top_targets {
        let _ = writeln!(out, "    to {} port {}, {} a second", target.target_prefix, target.lower_port, target.pps);
    }
    out
}

/// The losses, each under its present name alone.
pub(crate) fn losses(counts: &Counts) -> BTreeMap<String, u64> {
    let is_former = |name: &str| FORMER_LOSSES.iter().any(|(former, _)| *former == name);
    counts.losses.iter().filter(|(name, _)| !is_former(name)).map(|(name, count)| (name.clone(), *count)).collect()
}

fn section<'a>(out: &mut String, title: &str, rows: impl IntoIterator<Item = (&'a str, u64)>) {
    let _ = writeln!(out, "{title}");
    for (name, count) in rows {
        let _ = writeln!(out, "  {name:<32}{count:>18}");
    }
}

/// The counters that are not zero, each with its meaning.
fn explained<'a>(
    out: &mut String,
    title: &str,
    counts: &BTreeMap<String, u64>,
    meaning: impl Fn(&str) -> Option<&'a str>,
) {
    let mut counts = counts.iter().filter(|(_, count)| **count > 0).peekable();
    if counts.peek().is_some() {
        let _ = writeln!(out, "{title}");
    }
    for (name, count) in counts {
        let meaning = meaning(name).map(|meaning| format!("  {}", meaning.trim())).unwrap_or_default();
        let _ = writeln!(out, "  {name:<32}{count:>18}{meaning}");
    }
}

/// A row for each worker: frames received, flows, and frames handed over and taken over.
fn worker_table(out: &mut String, workers: &[Counts]) {
    const COLUMNS: [&str; 5] = ["lan received", "wan received", "flows", "handed over", "taken over"];
    let _ = writeln!(out, "{:<16}{}", "workers", COLUMNS.map(|column| format!("{column:>14}")).concat());
    for (number, worker) in workers.iter().enumerate() {
        let of = |counts: &BTreeMap<String, u64>, name: &str| counts.get(name).copied().unwrap_or_default();
        let flows = worker.flows;
        let row = [
            of(&worker.lan, "received"),
            of(&worker.wan, "received"),
            flows.proxied + flows.direct + flows.half_open,
            of(&worker.crossed, "handed-over"),
            of(&worker.crossed, "taken-over"),
        ];
        let _ = writeln!(out, "  {number:<14}{}", row.map(|count| format!("{count:>14}")).concat());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_readable_units() {
        let texts = [0.26, 59.9, 61.0, 3600.0, 90_061.0].map(span);
        assert_eq!(texts, ["0.3 s", "59.9 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"]);
    }

    #[test]
    fn a_link_that_was_lost_is_seen_at_once() {
        let own = |condition, lost| link(&Link { condition, since: 61.0, lost });
        assert_eq!(own(LinkCondition::Up, 0), "link up for 1 min 1 s");
        assert_eq!(own(LinkCondition::NoCarrier, 3), "NO LINK for 1 min 1 s, lost 3 times");
    }

    #[test]
    fn an_event_is_a_line_and_an_attack_has_its_sources_below() {
        let json = r#"{"number":1,"time":"2026-11-29T13:15:42.123Z","host":"gate","box":"a-b","event":"attack-end","mid":1,"status":"attack-stopped",
            "target-prefix":["192.0.2.1/32"],"target-protocol":[6],"mitigation-start":5,"duration":7,"pps":0,"pps-dropped":0,"pkts-dropped":9,
            "peak-pps-dropped":3,"peak-time":6,"top-sources":[{"source-prefix":"198.51.100.7/32","pps":2}],
            "top-targets":[{"target-prefix":"192.0.2.1/32","lower-port":80,"pps":1}]}"#;
        let record: Record = serde_json::from_str(json).expect("an event");
        let text = "2026-11-29T13:15:42.123Z  attack-end  192.0.2.1/32, 0 SYNs a second (0 not completed, peak 3), 7 s, attack-stopped\n    \
                    from 198.51.100.7/32, 2 a second\n    to 192.0.2.1/32 port 80, 1 a second\n";
        assert_eq!(event(&record), text);
    }

    #[test]
    fn a_worker_that_does_not_answer_is_named() {
        assert_eq!(workers(&[true, true]), "2, all answer");
        assert_eq!(workers(&[true, false, false]), "3, of which 1, 2 do not answer");
    }

    #[test]
    fn counters_are_shown_with_their_meaning_unless_zero() {
        let mut total = Counts::default();
        total.lan.insert("received".to_owned(), 12);
        total.wan.insert("received".to_owned(), 0);
        total.drops.insert("bad-cookie".to_owned(), 7);
        total.drops.insert("malformed".to_owned(), 0);
        total.orders.insert("flows".to_owned(), 42_120);
        total.orders.insert("drain".to_owned(), 0);
        let text = stats(&Stats { uptime: 1.0, workers: vec![total.clone()], total });
        assert!(text.contains("received                                          12                 0\n"), "{text}");
        assert!(
            text.contains("  flows                                         42.1\n") && !text.contains("drain"),
            "{text}"
        );
        assert!(text.contains("docs/drops.md"), "{text}");
        let meaning = DropReason::BadCookie.meaning().trim();
        assert!(text.contains(&format!("7  {meaning}\n")) && !text.contains("malformed"), "{text}");
    }
}
