//! What the log says of the statistics: a line every two seconds, and a table at exit.

use super::descriptors::{
    Family, FlowGauge, HandoffMetric, LinkMetric, Metric, PortMetric, UnsentMetric, WorkerMetric,
};
use super::snapshot::Snapshot;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;
use tcpstate::{DropReason, Event, Side};

/// One line on the last few seconds: the rates and events of that time, and the flows there are now.
pub struct Line<'a> {
    /// The statistics now.
    pub total: &'a Snapshot,
    /// What they grew by.
    pub change: &'a Snapshot,
    /// In how much time.
    pub period: Duration,
}

/// What the line says of new connections, each with its words.
const NEW: [(Metric, &str); 4] = [
    (Metric::Event(Event::SynAnswered), "SYNs answered"),
    (Metric::Event(Event::CookieGood), "cookies good"),
    (Metric::Drop(DropReason::BadCookie), "bad"),
    (Metric::Event(Event::CacheHit), "cache hits"),
];

impl Display for Line<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (side, name) in [(Side::Lan, "lan->wan"), (Side::Wan, "wan->lan")] {
            let (mpps, gbps) = rates(self.change, side, self.period);
            write!(f, "{name} {mpps:.6} Mpps {gbps:.6} Gbit/s, ")?;
        }
        f.write_str("flows:")?;
        for &gauge in FlowGauge::ALL {
            write!(f, " {} {}", self.total.get(gauge), gauge.label())?;
        }
        write!(f, ", held: {}, new:", self.total.get(WorkerMetric::Held))?;
        for (metric, words) in NEW {
            write!(f, " {} {words}", self.change.get(metric))?;
        }
        let mut lead = ", drops: ";
        let dropped = DropReason::ALL.iter().map(|&reason| (reason.label(), self.change.get(reason)));
        for (name, count) in dropped.chain(self.change.losses()).filter(|(_, count)| *count > 0) {
            write!(f, "{lead}{count} {name}")?;
            lead = " ";
        }
        Ok(())
    }
}

/// The whole run in a table.
pub struct Table<'a> {
    /// The statistics at the end.
    pub total: &'a Snapshot,
    /// Those of each worker.
    pub workers: &'a [Snapshot],
    /// How long the run was.
    pub period: Duration,
}

/// The metrics that the table shows even when they are zero, since their absence is an answer too.
const ALWAYS_SHOWN: [Metric; 4] = [
    Metric::Event(Event::SynAnswered),
    Metric::Event(Event::CookieGood),
    Metric::Event(Event::CacheHit),
    Metric::Drop(DropReason::BadCookie),
];

/// Likewise, of each port.
const ALWAYS_SHOWN_OF_PORTS: [PortMetric; 4] =
    [PortMetric::Received, PortMetric::ReceivedBytes, PortMetric::Sent, PortMetric::SentBytes];

impl Table<'_> {
    /// A row with a value for each port.
    fn port_row(f: &mut Formatter<'_>, title: &str, [lan, wan]: [u64; 2]) -> fmt::Result {
        writeln!(f, "{title:<34}{lan:>18}{wan:>18}")
    }

    /// What the ports have done.
    fn ports(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let rates = Side::BOTH.map(|side| rates(self.total, side, self.period));
        writeln!(f, "{:<34}{:>18}{:>18}", format!("after {:.1} s", self.period.as_secs_f64()), "lan", "wan")?;
        writeln!(f, "{:<34}{:>18.6}{:>18.6}", "received, Mpps", rates[0].0, rates[1].0)?;
        writeln!(f, "{:<34}{:>18.6}{:>18.6}", "received, Gbit/s", rates[0].1, rates[1].1)?;
        for &metric in PortMetric::ALL {
            let counts = Side::BOTH.map(|side| self.total.get(Metric::port(side, metric)));
            if ALWAYS_SHOWN_OF_PORTS.contains(&metric) || counts != [0, 0] {
                Self::port_row(f, metric.description().title, counts)?;
            }
        }
        for &metric in LinkMetric::ALL {
            let counts = Side::BOTH.map(|side| self.total.get(Metric::link(side, metric)));
            if metric != LinkMetric::Carrier && counts != [0, 0] {
                Self::port_row(f, metric.description().title, counts)?;
            }
        }
        // Only frames from the WAN are held.
        let not_held = [0, self.total.get(WorkerMetric::TooFewToHold)];
        let unsent = Side::BOTH.map(|side| self.total.get(UnsentMetric::of(side)));
        for (title, counts) in [
            (WorkerMetric::TooFewToHold.description().title, not_held),
            (UnsentMetric::Lan.description().title, unsent),
        ] {
            if counts != [0, 0] {
                Self::port_row(f, title, counts)?;
            }
        }
        Ok(())
    }

    /// A row for each worker, where there are several.
    fn workers(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.workers.len() < 2 {
            return Ok(());
        }
        let columns = HandoffMetric::ALL;
        let cells = |of: &dyn Fn(&HandoffMetric) -> String| columns.iter().map(of).collect::<String>();
        writeln!(f, "{:<34}{}", "workers", cells(&|metric| format!("{:>18}", metric.description().title)))?;
        for (number, worker) in self.workers.iter().enumerate() {
            writeln!(f, "  {number:<32}{}", cells(&|&metric| format!("{:>18}", worker.get(metric))))?;
        }
        Ok(())
    }

    /// The metrics of a family under this heading, each with its meaning.
    fn explained(&self, f: &mut Formatter<'_>, heading: &str, family: Family) -> fmt::Result {
        writeln!(f, "{heading}")?;
        for row in family.descriptors() {
            let count = self.total.get(row.metric);
            if count > 0 || ALWAYS_SHOWN.contains(&row.metric) {
                writeln!(f, "  {:<32}{count:>18}  {}", row.title, row.meaning)?;
            }
        }
        Ok(())
    }
}

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        use WorkerMetric::{Held, PollIterations, Sleeps, Wakes};
        self.ports(f)?;
        if let Some(each) = self.total.frame_cost().each() {
            writeln!(f, "{:<34}{each:>18.1}", "ns a frame, without ports")?;
        }
        self.workers(f)?;
        writeln!(f, "flows at the end")?;
        for &gauge in FlowGauge::ALL {
            writeln!(f, "  {:<32}{:>18}", gauge.label(), self.total.get(gauge))?;
        }
        for metric in [Held, PollIterations, Sleeps, Wakes] {
            let count = self.total.get(metric);
            if count > 0 || metric != Wakes {
                writeln!(f, "{:<34}{count:>18}", metric.description().title)?;
            }
        }
        self.explained(f, "events", Family::Event)?;
        self.explained(f, "drops", Family::Drop)
    }
}

/// Millions of frames and billions of bits a second that a port received, a frame counted without preamble and FCS.
fn rates(snapshot: &Snapshot, side: Side, period: Duration) -> (f64, f64) {
    let seconds = period.as_secs_f64().max(1e-9);
    let [frames, bytes] =
        [PortMetric::Received, PortMetric::ReceivedBytes].map(|metric| snapshot.get(Metric::port(side, metric)) as f64);
    (frames / seconds / 1e6, bytes * 8.0 / seconds / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::snapshot::FrameCost;
    use pktio::PortStatistics;
    use tcpstate::{Counters, Population};

    fn sample() -> Snapshot {
        let population = Population { syn_cached: 1, proxied: 2, passthrough: 3 };
        let mut sample = Snapshot::of_engine(&Counters::default(), &population);
        let lan = PortStatistics { received: 4_000_000, received_bytes: 500_000_000, ..PortStatistics::default() };
        let wan = PortStatistics { received: 2, received_bytes: 120, no_buffer: 9, ..PortStatistics::default() };
        sample.set_port(Side::Lan, &lan);
        sample.set_port(Side::Wan, &wan);
        sample.set_frame_cost(FrameCost { frames: 64, time: Duration::from_nanos(3200) });
        for (metric, value) in [
            (HandoffMetric::HandedOver, 7),
            (HandoffMetric::TakenOver, 8),
            (HandoffMetric::QueueFull, 9),
            (HandoffMetric::Sampled, 3),
            (HandoffMetric::WrongQueue, 1),
            (HandoffMetric::UpdatesSent, 2),
        ] {
            sample.set(metric, value);
        }
        sample.set(WorkerMetric::Held, 4);
        sample.set(WorkerMetric::TooFewToHold, 6);
        sample.set(UnsentMetric::Wan, 5);
        sample
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
        assert!(!table.contains("handed over"), "one worker has no other to hand anything over to: {table}");
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
