//! What the operator is told: a line every two seconds, and a table at the end.

use crate::stats::Snapshot;
use crate::steer::Crossed;
use pktio::PortStatistics;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;
use tcpstate::{DropReason, Event, Side};

/// One line on the last few seconds: rates and events of that time, and the flows there are now.
pub struct Line<'a> {
    /// The counters now.
    pub total: &'a Snapshot,
    /// What they grew by.
    pub change: &'a Snapshot,
    /// In how much time.
    pub period: Duration,
}

impl Display for Line<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (side, name) in [(Side::Lan, "lan->wan"), (Side::Wan, "wan->lan")] {
            let (mpps, gbps) = rates(&self.change.port(side), self.period);
            write!(f, "{name} {mpps:.6} Mpps {gbps:.6} Gbit/s, ")?;
        }
        let flows = self.total.population();
        write!(
            f,
            "flows: {} proxied {} direct {} half-open, held: {}, new: {} SYNs answered {} cookies good {} bad {} cache hits",
            flows.proxied,
            flows.passthrough,
            flows.syn_cached,
            self.total.held(),
            self.change.happened(Event::SynAnswered),
            self.change.happened(Event::CookieGood),
            self.change.dropped(DropReason::BadCookie),
            self.change.happened(Event::CacheHit),
        )?;
        let mut lead = ", drops: ";
        for (count, label) in losses(self.change) {
            write!(f, "{lead}{count} {label}")?;
            lead = " ";
        }
        Ok(())
    }
}

/// The whole run in a table.
pub struct Table<'a> {
    /// The counters at the end.
    pub total: &'a Snapshot,
    /// Those of each worker.
    pub workers: &'a [Snapshot],
    /// How long the run was.
    pub period: Duration,
}

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ports = Side::BOTH.map(|side| self.total.port(side));
        let rates = ports.map(|port| rates(&port, self.period));
        writeln!(f, "{:<34}{:>18}{:>18}", format!("after {:.1} s", self.period.as_secs_f64()), "lan", "wan")?;
        writeln!(f, "{:<34}{:>18.6}{:>18.6}", "received, Mpps", rates[0].0, rates[1].0)?;
        writeln!(f, "{:<34}{:>18.6}{:>18.6}", "received, Gbit/s", rates[0].1, rates[1].1)?;
        for (label, of, always) in PORT_ROWS {
            let [lan, wan] = ports.map(|port| of(&port));
            if *always || lan + wan > 0 {
                writeln!(f, "{label:<34}{lan:>18}{wan:>18}")?;
            }
        }
        if self.total.unkept() > 0 {
            // Only what comes from the WAN is ever held.
            writeln!(f, "{:<34}{:>18}{:>18}", "lost, too few spare to hold it", 0, self.total.unkept())?;
        }
        let unsent = Side::BOTH.map(|side| self.total.unsent(side));
        if unsent != [0, 0] {
            writeln!(f, "{:<34}{:>18}{:>18}", "lost, transmit ring full", unsent[0], unsent[1])?;
        }

        if let Some(each) = self.total.stage().each() {
            writeln!(f, "{:<34}{each:>18.1}", "ns a frame, without ports")?;
        }

        if self.workers.len() > 1 {
            writeln!(f, "{:<34}{}", "workers", CROSSED_COLUMNS.map(|(label, _)| format!("{label:>18}")).concat())?;
            for (number, worker) in self.workers.iter().enumerate() {
                let crossed = worker.crossed();
                let row = CROSSED_COLUMNS.map(|(_, of)| format!("{:>18}", of(&crossed))).concat();
                writeln!(f, "  {number:<32}{row}")?;
            }
        }

        let flows = self.total.population();
        writeln!(f, "flows at the end")?;
        for (label, count) in
            [("proxied", flows.proxied), ("direct", flows.passthrough), ("half-open", flows.syn_cached)]
        {
            writeln!(f, "  {label:<32}{count:>18}")?;
        }

        writeln!(f, "{:<34}{:>18}", "frames held at the end", self.total.held())?;
        writeln!(f, "{:<34}{:>18}", "turns", self.total.turns())?;
        writeln!(f, "{:<34}{:>18}", "sleeps between them", self.total.sleeps())?;
        if self.total.wakes() > 0 {
            writeln!(f, "{:<34}{:>18}", "times load ended the sleep", self.total.wakes())?;
        }

        writeln!(f, "events")?;
        for &event in Event::ALL {
            let count = self.total.happened(event);
            if count > 0 || ALWAYS_SHOWN.contains(&event) {
                writeln!(f, "  {:<32}{count:>18}  {}", event.label(), event.meaning().trim())?;
            }
        }

        writeln!(f, "drops")?;
        for &reason in DropReason::ALL {
            let count = self.total.dropped(reason);
            if count > 0 || reason == DropReason::BadCookie {
                writeln!(f, "  {:<32}{count:>18}  {}", reason.label(), reason.meaning().trim())?;
            }
        }
        Ok(())
    }
}

/// The events an operator looks for first; their absence is an answer too.
const ALWAYS_SHOWN: [Event; 3] = [Event::SynAnswered, Event::CookieGood, Event::CacheHit];

/// A row of the table: its label, where it is read, and whether it is shown when both ports have zero.
type PortRow = (&'static str, fn(&PortStatistics) -> u64, bool);

const PORT_ROWS: &[PortRow] = &[
    ("received, frames", |port| port.received, true),
    ("received, bytes", |port| port.received_bytes, true),
    ("sent, frames", |port| port.sent, true),
    ("sent, bytes", |port| port.sent_bytes, true),
    ("transmit ring found full, times", |port| port.transmit_full, false),
    ("lost, refused for transmission", |port| port.transmit_errors, false),
    ("lost, no spare buffer", |port| port.no_buffer, false),
    ("lost, too long", |port| port.truncated, false),
    ("lost, receive ring full", |port| port.receive_full, false),
    ("lost, elsewhere in the kernel", |port| port.kernel_drops, false),
    ("fill ring found empty, times", |port| port.fill_empty, false),
    ("kernel woken up, times", |port| port.kicks, false),
    ("shed-fresh", |port| port.shed_fresh, false),
    ("shed-repeated", |port| port.shed_repeated, false),
];

/// A column of the workers' rows: its label, and where it is read.
type CrossedColumn = (&'static str, fn(&Crossed) -> u64);

/// What a worker hands over to others and takes over from them.
const CROSSED_COLUMNS: [CrossedColumn; 9] = [
    ("handed over", |crossed| crossed.handed_over),
    ("taken over", |crossed| crossed.taken_over),
    ("lost, lane full", |crossed| crossed.full),
    ("lost, no buffer", |crossed| crossed.lost),
    ("queues sampled", |crossed| crossed.sampled),
    ("of these wrong", |crossed| crossed.misfits),
    ("words told", |crossed| crossed.told),
    ("words heard", |crossed| crossed.heard),
    ("words lost", |crossed| crossed.unheard),
];

/// What was lost, and under which name: by the engine's decision, or for want of room on the way.
fn losses(change: &Snapshot) -> impl Iterator<Item = (u64, &'static str)> {
    let decided = DropReason::ALL.iter().map(|&reason| (change.dropped(reason), reason.label()));
    decided.chain(lost_on_the_way(change)).filter(|(count, _)| *count > 0)
}

/// What was lost for want of room, and the name of the place; what is zero too.
pub fn lost_on_the_way(change: &Snapshot) -> impl Iterator<Item = (u64, &'static str)> {
    let sum = |of: fn(&PortStatistics) -> u64| Side::BOTH.into_iter().map(|side| of(&change.port(side))).sum();
    [
        (change.unkept(), "too-few-to-hold"),
        (Side::BOTH.into_iter().map(|side| change.unsent(side)).sum(), "transmit-ring-full"),
        (change.crossed().full, "lane-full"),
        (change.crossed().lost, "no-buffer-to-take-over"),
        (sum(|port| port.transmit_errors), "transmit-refused"),
        (sum(|port| port.no_buffer), "no-buffer"),
        (sum(|port| port.truncated), "too-long"),
        (sum(|port| port.receive_full), "receive-ring-full"),
        (sum(|port| port.kernel_drops), "kernel"),
        (sum(|port| port.shed_fresh), "shed-fresh"),
        (sum(|port| port.shed_repeated), "shed-repeated"),
    ]
    .into_iter()
}

/// Millions of frames and billions of bits a second that a port received, a frame counted without preamble and FCS.
fn rates(port: &PortStatistics, period: Duration) -> (f64, f64) {
    let seconds = period.as_secs_f64().max(1e-9);
    (port.received as f64 / seconds / 1e6, port.received_bytes as f64 * 8.0 / seconds / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Stage, Tally};
    use tcpstate::{Counters, PerSide, Population};

    fn sample() -> Snapshot {
        let ports = PerSide::new(
            PortStatistics { received: 4_000_000, received_bytes: 500_000_000, ..PortStatistics::default() },
            PortStatistics { received: 2, received_bytes: 120, no_buffer: 9, ..PortStatistics::default() },
        );
        let population = Population { syn_cached: 1, proxied: 2, passthrough: 3 };
        let stage = Stage { frames: 64, time: Duration::from_nanos(3200) };
        let crossed =
            Crossed { handed_over: 7, taken_over: 8, full: 9, sampled: 3, misfits: 1, told: 2, ..Crossed::default() };
        let own = Tally { held: 4, unkept: 6, unsent: PerSide::new(0, 5), stage, crossed, ..Tally::default() };
        Snapshot::of(&Counters::default(), population, &ports, &own)
    }

    #[test]
    fn the_line_tells_rates_flows_and_losses() {
        let sample = sample();
        let line = Line { total: &sample, change: &sample, period: Duration::from_secs(2) }.to_string();
        assert_eq!(
            line,
            "lan->wan 2.000000 Mpps 2.000000 Gbit/s, wan->lan 0.000001 Mpps 0.000000 Gbit/s, \
             flows: 2 proxied 3 direct 1 half-open, held: 4, new: 0 SYNs answered 0 cookies good 0 bad 0 cache hits, \
             drops: 6 too-few-to-hold 5 transmit-ring-full 9 lane-full 9 no-buffer"
        );
    }

    #[test]
    fn the_table_leaves_out_losses_that_did_not_happen() {
        let sample = sample();
        let table = Table { total: &sample, workers: std::slice::from_ref(&sample), period: Duration::from_secs(2) }
            .to_string();
        assert!(table.contains("lost, no spare buffer                              0                 9\n"), "{table}");
        assert!(table.contains("lost, transmit ring full                           0                 5\n"), "{table}");
        assert!(table.contains("lost, too few spare to hold it                     0                 6\n"), "{table}");
        assert!(table.contains("ns a frame, without ports                       50.0\n"), "{table}");
        assert!(table.contains("frames held at the end                             4\n"), "{table}");
        assert!(!table.contains("too long"), "{table}");
        assert!(table.contains("  bad-cookie"), "{table}");
        assert!(!table.contains("handed over"), "one worker has nobody to hand anything to: {table}");
    }

    #[test]
    fn several_workers_have_a_row_each() {
        let sample = sample();
        let workers = [sample.clone(), Snapshot::default()];
        let table = Table { total: &sample, workers: &workers, period: Duration::from_secs(2) }.to_string();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .skip_while(|line| !line.starts_with("workers "))
            .take(3)
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows[1], ["0", "7", "8", "9", "0", "3", "1", "2", "0", "0"], "{table}");
        assert_eq!(rows[2], ["1", "0", "0", "0", "0", "0", "0", "0", "0", "0"], "{table}");
    }
}
