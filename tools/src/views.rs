//! Replies of the box as text: connections in columns, and explanations of frames.

use control::{Explained, Flow, FlowEnd, Side};
use std::fmt::Write;

/// The column widths of a listing, as the first page of connections needs them.
#[derive(Clone, Debug)]
pub struct Columns([usize; COLUMNS]);

const COLUMNS: usize = 10;
const HEAD: [&str; COLUMNS] = ["WAN", "LAN", "STATE", "OPENED BY", "AGE", "IDLE", "MSS", "SCALES", "OPTIONS", "HELD"];

impl Columns {
    /// The widths these connections need.
    pub fn of(flows: &[Flow]) -> Self {
        let mut widths = HEAD.map(str::len);
        for flow in flows {
            for (width, cell) in widths.iter_mut().zip(cells(flow)) {
                *width = (*width).max(cell.len());
            }
        }
        Self(widths)
    }

    /// The header line.
    pub fn head(&self) -> String {
        self.line(HEAD.map(str::to_owned))
    }

    /// The line of a connection.
    pub fn row(&self, flow: &Flow) -> String {
        self.line(cells(flow))
    }

    fn line(&self, cells: [String; COLUMNS]) -> String {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(self.0) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        format!("{}\n", line.trim_end())
    }
}

fn cells(flow: &Flow) -> [String; COLUMNS] {
    let tags: String = flow.vlan.iter().map(|tag| format!(" vlan {tag}")).collect();
    let scale = |end: &FlowEnd| match (end.scale, end.told) {
        (None, None) => "-".to_owned(),
        (own, told) if own == told => own.map_or("-".into(), |own| own.to_string()),
        (own, told) => [own, told].map(|scale| scale.map_or("-".into(), |scale| scale.to_string())).join("/"),
    };
    let mut options = Vec::new();
    if flow.sack {
        options.push("SACK");
    }
    if flow.timestamps {
        options.push("TS");
    }
    [
        match &flow.client {
            Some(client) => format!("{client} > {}", flow.wan),
            None => flow.wan.clone(),
        },
        match &flow.server {
            Some(server) => format!("{}{tags} > {server}", flow.lan),
            None => format!("{}{tags}", flow.lan),
        },
        if flow.proxied || matches!(flow.state.as_str(), "syn-cached" | "half-open") {
            flow.state.clone()
        } else {
            format!("{} (direct)", flow.state)
        },
        flow.opened_by.map_or("?", |side| if side == Side::Lan { "lan" } else { "wan" }).to_owned(),
        time(flow.age),
        flow.idle.map_or("-".into(), time),
        if flow.mss == 0 { "-".into() } else { flow.mss.to_string() },
        format!("{} {}", scale(&flow.wan_end), scale(&flow.lan_end)),
        if options.is_empty() { "-".into() } else { options.join(" ") },
        if flow.held == 0 { "-".into() } else { flow.held.to_string() },
    ]
}

/// A duration in seconds, in few characters.
fn time(seconds: f64) -> String {
    match seconds as u64 {
        0..10 => format!("{seconds:.1}s"),
        whole @ 10..120 => format!("{whole}s"),
        whole @ 120..7200 => format!("{}m{:02}", whole / 60, whole % 60),
        whole @ 7200..172_800 => format!("{}h{:02}", whole / 3600, whole / 60 % 60),
        whole => format!("{}d{:02}", whole / 86_400, whole / 3600 % 24),
    }
}

/// The explanation of a frame, step by step.
pub fn explained(explained: &Explained) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "worker {}:", explained.worker);
    for (number, step) in explained.steps.iter().enumerate() {
        let _ = writeln!(out, "{:>4}. {step}", number + 1);
    }
    for counted in &explained.counted {
        let times = if counted.count > 1 { format!(" {} times", counted.count) } else { String::new() };
        let _ = writeln!(out, "      counted{times}: {}: {}", counted.name, counted.meaning);
    }
    let verdict =
        explained.reason.as_deref().map_or_else(|| explained.verdict.clone(), |reason| format!("drop, {reason}"));
    let _ = writeln!(out, "verdict: {verdict}: {}", explained.meaning);
    if let Some(reason) = &explained.reason {
        let _ = writeln!(out, "causes and remedies: docs/drops.md, section {reason}");
    }
    if explained.released > 0 {
        let _ = writeln!(out, "then {} held frames are released", explained.released);
    }
    match (&explained.before, &explained.after) {
        (None, None) => {}
        (Some(before), None) => {
            let _ = writeln!(out, "connection: {}, then none", before.status);
        }
        (None, Some(after)) => {
            let _ = writeln!(out, "connection: none, then {}", after.status);
        }
        (Some(before), Some(after)) => {
            let _ = writeln!(out, "connection: {}, then {}", before.status, after.status);
        }
    }
    let _ = writeln!(out, "\n{:<22}{:<34}on departure", "field", "on arrival");
    let leaves = explained.verdict != "drop";
    for field in &explained.fields {
        let before = field.before.as_deref().unwrap_or("-");
        let after = match (&field.after, &field.before) {
            _ if !leaves => "",
            (after, before) if after == before => "=",
            (Some(after), _) => after,
            (None, _) => "-",
        };
        let _ = writeln!(out, "{}", format!("{:<22}{before:<34}{after}", field.name).trim_end());
    }
    for sent in &explained.sent {
        let port = if sent.to == Side::Lan { "LAN" } else { "WAN" };
        let _ = writeln!(out, "\nalso sent by the {port} port:\n{}", sent.frame);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::{Changed, Counted};

    fn flow() -> Flow {
        Flow {
            wan: "198.51.100.7:40000".into(),
            lan: "192.0.2.1:80".into(),
            vlan: vec![7],
            state: "established".into(),
            status: "Established (proxied)".into(),
            proxied: true,
            opened_by: Some(Side::Wan),
            age: 3725.0,
            idle: Some(0.25),
            due: 86_399.0,
            wan_end: FlowEnd { scale: Some(7), told: Some(7), window: 65_536, hop_limit: 57 },
            lan_end: FlowEnd { scale: Some(8), told: Some(7), window: 65_536, hop_limit: 64 },
            mss: 1460,
            sack: true,
            timestamps: true,
            sequence_shift: Some(1),
            timestamp_shift: Some(2),
            held: 0,
            worker: 0,
            server: None,
            source: None,
            client: None,
        }
    }

    #[test]
    fn connections_are_listed_in_columns() {
        let other = Flow { proxied: false, opened_by: None, idle: None, sack: false, mss: 0, vlan: vec![], ..flow() };
        let columns = Columns::of(&[flow(), other.clone()]);
        assert_eq!(
            format!("{}{}{}", columns.head(), columns.row(&flow()), columns.row(&other)),
            "\
WAN                 LAN                  STATE                 OPENED BY  AGE   IDLE  MSS   SCALES  OPTIONS  HELD
198.51.100.7:40000  192.0.2.1:80 vlan 7  established           wan        62m05  0.2s  1460  7 8/7   SACK TS  -
198.51.100.7:40000  192.0.2.1:80         established (direct)  ?          62m05  -     -     7 8/7   TS       -
"
            .replace("AGE   IDLE", "AGE    IDLE")
        );
    }

    #[test]
    fn a_connection_to_a_service_shows_its_server() {
        let flow = Flow { server: Some("192.0.2.10:8080".into()), vlan: Vec::new(), ..flow() };
        assert_eq!(cells(&flow)[1], "192.0.2.1:80 > 192.0.2.10:8080");
        let flow = Flow { client: Some("203.0.113.5:4711".into()), wan: "192.0.2.9:5000".into(), ..flow };
        assert_eq!(cells(&flow)[0], "203.0.113.5:4711 > 192.0.2.9:5000");
    }

    #[test]
    fn times_are_short() {
        let texts = [0.26, 11.0, 125.0, 7300.0, 200_000.0].map(time);
        assert_eq!(texts, ["0.3s", "11s", "2m05", "2h01", "2d07"]);
    }

    #[test]
    fn an_explanation_lists_steps_verdict_and_fields() {
        let changed = |name: &str, before: Option<&str>, after: Option<&str>| Changed {
            name: name.into(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        };
        let explained = Explained {
            worker: 1,
            steps: vec!["from the WAN: a SYN".into(), "the server is known".into()],
            verdict: "reflect".into(),
            reason: None,
            meaning: "the reply leaves by the WAN port".into(),
            counted: vec![Counted { name: "syn-answered".into(), count: 1, meaning: "SYNs answered.".into() }],
            fields: vec![
                changed("flags", Some("SYN"), Some("SYN ACK")),
                changed("hop limit", Some("64"), Some("64")),
                changed("MSS", None, Some("1460")),
            ],
            sent: vec![],
            before: None,
            after: Some(flow()),
            released: 0,
        };
        assert_eq!(
            super::explained(&explained),
            "\
worker 1:
   1. from the WAN: a SYN
   2. the server is known
      counted: syn-answered: SYNs answered.
verdict: reflect: the reply leaves by the WAN port
connection: none, then Established (proxied)

field                 on arrival                        on departure
flags                 SYN                               SYN ACK
hop limit             64                                =
MSS                   -                                 1460
"
        );
    }
}
