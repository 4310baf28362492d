//! What the log says of the statistics: a line every two seconds in which anything happened, and a table at exit.

use super::descriptors::{
    Descriptor, Family, FlowGauge, HandoffMetric, LinkMetric, Metric, PortMetric, RingMetric, TABLE, UnsentMetric,
    WorkerMetric,
};
use super::snapshot::Snapshot;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;
use tcpstate::{DropReason, Event, MetricKind, Side, Unit};

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

impl Line<'_> {
    /// Whether anything has happened that the line tells: a frame came or was lost, something was counted, or flows came or went. Without it the
    /// line would say the same again.
    pub fn has_news(&self, before: &Snapshot) -> bool {
        let counted = TABLE.iter().filter(|row| row.kind == MetricKind::Counter && row.unit != Unit::Times);
        let is_own = |row: &&Descriptor| !matches!(row.metric, Metric::Worker(_) | Metric::Handoff(_));
        counted.filter(is_own).any(|row| self.change.get(row.metric) > 0)
            || self.change.losses().iter().any(|(_, count)| *count > 0)
            || FlowGauge::ALL.iter().any(|&gauge| self.total.get(gauge) != before.get(gauge))
            || self.total.get(WorkerMetric::Held) != before.get(WorkerMetric::Held)
    }
}

impl Display for Line<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (side, name) in [(Side::Lan, "lan->wan"), (Side::Wan, "wan->lan")] {
            let (frames, bits) = rates(self.change, side, self.period);
            write!(f, "{name} {} {}, ", Rate(frames, "pps"), Rate(bits, "bit/s"))?;
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
        let [frames, bits] = [rates.map(|rate| Rate(rate.0, "pps")), rates.map(|rate| Rate(rate.1, "bit/s"))];
        for [lan, wan] in [frames, bits] {
            writeln!(f, "{:<34}{:>18}{:>18}", "received", lan.to_string(), wan.to_string())?;
        }
        for &metric in PortMetric::ALL {
            let counts = Side::BOTH.map(|side| self.total.get(Metric::port(side, metric)));
            if ALWAYS_SHOWN_OF_PORTS.contains(&metric) || counts != [0, 0] {
                Self::port_row(f, metric.description().title, counts)?;
            }
        }
        for &metric in RingMetric::ALL {
            let counts = Side::BOTH.map(|side| self.total.get(Metric::ring(side, metric)));
            if counts != [0, 0] {
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
        let width = |metric: &HandoffMetric| (metric.description().title.len() + 2).max(18);
        let cells = |of: &dyn Fn(&HandoffMetric) -> String| {
            columns.iter().map(|metric| format!("{:>1$}", of(metric), width(metric))).collect::<String>()
        };
        writeln!(f, "{:<34}{}", "workers", cells(&|metric| metric.description().title.to_owned()))?;
        for (number, worker) in self.workers.iter().enumerate() {
            writeln!(f, "  {number:<32}{}", cells(&|&metric| worker.get(metric).to_string()))?;
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

/// Frames and bits a second that a port received, a frame counted without preamble and FCS.
fn rates(snapshot: &Snapshot, side: Side, period: Duration) -> (f64, f64) {
    let seconds = period.as_secs_f64().max(1e-9);
    let [frames, bytes] =
        [PortMetric::Received, PortMetric::ReceivedBytes].map(|metric| snapshot.get(Metric::port(side, metric)) as f64);
    (frames / seconds, bytes * 8.0 / seconds)
}

/// So many of a unit, with the prefix that leaves three digits or more to be seen.
struct Rate(f64, &'static str);

impl Display for Rate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let &Rate(mut value, unit) = self;
        let mut prefixes = ["", "k", "M", "G"].into_iter();
        let mut prefix = prefixes.next().unwrap_or_default();
        // From here on it would be written as 1000.
        while value >= 999.5
            && let Some(next) = prefixes.next()
        {
            (value, prefix) = (value / 1e3, next);
        }
        let digits = match value {
            0.0 => 0,
            ..9.995 => 2,
            ..99.95 => 1,
            _ => 0,
        };
        write!(f, "{value:.digits$} {prefix}{unit}")
    }
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
            "lan->wan 2.00 Mpps 2.00 Gbit/s, wan->lan 1.00 pps 480 bit/s, \
             flows: 2 proxied 3 direct 1 half-open, held: 4, new: 0 SYNs answered 0 cookies good 0 bad 0 cache hits, \
             drops: 6 too-few-to-hold 5 transmit-ring-full 9 queue-full 9 no-buffer"
        );
    }

    #[test]
    fn rates_have_the_prefix_that_shows_them() {
        let shown = |value| Rate(value, "pps").to_string();
        let values = [0.0, 0.5, 9.99, 12.34, 999.0, 999.9, 1000.0, 12_345.0, 1e6, 123_456_789.0, 1e9, 5e12];
        let expected = [
            "0 pps",
            "0.50 pps",
            "9.99 pps",
            "12.3 pps",
            "999 pps",
            "1.00 kpps",
            "1.00 kpps",
            "12.3 kpps",
            "1.00 Mpps",
            "123 Mpps",
            "1.00 Gpps",
            "5000 Gpps",
        ];
        assert_eq!(values.map(shown), expected);
    }

    #[test]
    fn the_line_has_news_only_when_something_has_moved() {
        let sample = sample();
        let has_news = |total: &Snapshot, before: &Snapshot| {
            Line { total, change: &total.since(before), period: Duration::from_secs(2) }.has_news(before)
        };
        assert!(has_news(&sample, &Snapshot::default()) && !has_news(&sample, &sample));
        // A worker that wakes up and finds nothing has nothing to tell.
        let mut idle = sample.clone();
        for metric in [WorkerMetric::PollIterations, WorkerMetric::Sleeps, WorkerMetric::Wakes] {
            idle.set(metric, 1000);
        }
        idle.set(Metric::port(Side::Lan, PortMetric::Kicks), 5);
        assert!(!has_news(&idle, &sample));
        for metric in [
            Metric::Flows(FlowGauge::Proxied),
            Metric::Worker(WorkerMetric::Held),
            Metric::Worker(WorkerMetric::TooFewToHold),
            Metric::Drop(DropReason::BadCookie),
            Metric::Event(Event::SynAnswered),
            Metric::port(Side::Wan, PortMetric::Received),
            Metric::Handoff(HandoffMetric::QueueFull),
        ] {
            let mut moved = sample.clone();
            moved.set(metric, 77);
            assert!(has_news(&moved, &sample), "{metric:?}");
        }
        let mut fewer = sample.clone();
        fewer.set(FlowGauge::Direct, 0);
        assert!(has_news(&fewer, &sample), "flows that go are news");
    }

    #[test]
    fn the_table_leaves_out_losses_that_did_not_happen() {
        let sample = sample();
        let table = Table { total: &sample, workers: std::slice::from_ref(&sample), period: Duration::from_secs(2) }
            .to_string();
        assert!(table.contains("lost, no buffer                                    0                 9\n"), "{table}");
        assert!(table.contains("lost, transmit ring full                           0                 5\n"), "{table}");
        assert!(table.contains("lost, too few to hold                              0                 6\n"), "{table}");
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
