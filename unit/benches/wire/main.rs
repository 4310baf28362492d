//! The whole appliance between real kernels, end to end, beside what it could at best be and what one would take instead:
//! `make bench`. Needs root.
//!
//! Three namespaces on two veth pairs; in the middle stand, one after the other and again and again, `synproxy --bypass` (the limit
//! of this rig), `synproxy` with cookies alone, `synproxy` with the SYN cache, the kernel's bridge, and a router with the kernel's
//! SYNPROXY. Words on the command line choose the rows and candidates whose names contain one of them; `--quick` takes a minute;
//! `--seconds=20` measures everything once and so long, for a profiler to look at.
//! `docs/performance.md` explains the rows.

mod hosts;
mod load;
mod middle;
mod segments;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use middle::Middle;
use tools::flood_template::Kind;
use unit::{machine, netns};

/// How often everything is measured, one candidate after the other.
const ROUNDS: usize = 3;
/// How long a rate is watched.
const WINDOW: Duration = Duration::from_millis(1500);
/// How long each part of the hosts' service lasts.
const SPAN: Duration = Duration::from_millis(1500);

fn main() {
    let (switches, wanted): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|word| word.starts_with('-'));
    if !nix::unistd::geteuid().is_root() {
        return println!("wire: skipped, because namespaces need root");
    }
    let quick = switches.iter().any(|switch| switch == "--quick");
    let long = switches.iter().find_map(|switch| switch.strip_prefix("--seconds=")?.parse().ok());
    let (rounds, window, span) = match long.map(Duration::from_secs) {
        Some(long) => (1, long, long),
        None if quick => (1, Duration::from_millis(500), Duration::from_millis(350)),
        None => (ROUNDS, WINDOW, SPAN),
    };
    let everybody = [&Middle::ALL[..], &Middle::MORE].concat();
    let middles: Vec<Middle> = match chosen(&everybody, &wanted, |middle| middle.name()) {
        all if all.len() == everybody.len() => Middle::ALL.to_vec(),
        some => some,
    };
    let parts: Vec<Part> = chosen(&Part::ALL, &wanted, |part| part.name());
    let mut book = Book::default();
    let [ceiling, frame_cost] = load::ceiling(window);
    for round in 1..=rounds {
        for &part in &parts {
            for &middle in &middles {
                eprintln!("round {round} of {rounds}: {}, {}", part.name(), middle.name());
                part.measure(&mut book, middle, window, span, frame_cost);
            }
        }
    }
    println!("{}", machine::told());
    println!(
        "Best and median of {rounds}, beside the limit (bypass). The generator alone: {ceiling:.2} Mpps, {frame_cost:.0} ns a frame.\n"
    );
    book.print(&middles);
}

/// Those whose names are asked for, or all if none is.
fn chosen<T: Copy>(all: &[T], wanted: &[String], name: impl Fn(T) -> &'static str) -> Vec<T> {
    let named = |item: &T| wanted.iter().any(|word| name(*item).contains(word.as_str()));
    let some: Vec<T> = all.iter().copied().filter(named).collect();
    if some.is_empty() { all.to_vec() } else { some }
}

/// What is measured in one go.
#[derive(Clone, Copy)]
enum Part {
    Flood(&'static str, Kind, IpAddr),
    Segments,
    Peace,
    /// Bulk between hosts with their offloads on.
    Offloads,
    /// With so many SYNs a second; between hosts with their offloads on or not.
    UnderFlood(&'static str, f64, bool),
}

impl Part {
    const ALL: [Part; 9] = [
        Part::Flood("SYN -> SYN-ACK", Kind::Syn, netns::SERVER_V4),
        Part::Flood("SYN -> SYN-ACK, IPv6", Kind::Syn, netns::SERVER_V6),
        Part::Flood("bogus ACK", Kind::Ack, netns::SERVER_V4),
        Part::Segments,
        Part::Peace,
        Part::Offloads,
        Part::UnderFlood("under 0.5 Mpps", 0.5e6, false),
        Part::UnderFlood("under 1 Mpps", 1e6, false),
        Part::UnderFlood("offloads on, under 1 Mpps", 1e6, true),
    ];

    fn name(self) -> &'static str {
        match self {
            Part::Flood(name, ..) | Part::UnderFlood(name, ..) => name,
            Part::Segments => "established, 98 B both ways",
            Part::Peace => "in peace",
            Part::Offloads => "offloads on",
        }
    }

    fn measure(self, book: &mut Book, middle: Middle, window: Duration, span: Duration, frame_cost: f64) {
        match self {
            // The router is set up for IPv4.
            Part::Flood(_, _, server) if middle == Middle::Nftables && server.is_ipv6() => {}
            // What carries nothing is the limit of an answer, or of a drop.
            Part::Flood(_, kind, _) if middle.is_bare() && (kind == Kind::Syn) != (middle == Middle::Bounce) => {}
            Part::Segments | Part::Peace | Part::UnderFlood(..) if middle.is_bare() => {}
            Part::Flood(name, kind, server) => {
                let rate = load::flood(middle, kind, server, window, frame_cost);
                book.rate(middle, name, &rate);
            }
            Part::Segments => {
                let rate = segments::rate(middle, window, frame_cost);
                book.rate(middle, self.name(), &rate);
            }
            Part::Peace => book.service(middle, self.name(), &hosts::in_peace(middle, span)),
            Part::Offloads => {
                for (connections, rates) in ["one connection", "eight"].iter().zip(hosts::with_offloads(middle, span)) {
                    for (direction, rate) in ["to the server", "to the client"].iter().zip(rates) {
                        let name = format!("{}: bulk of {connections} {direction}, Gbit/s", self.name());
                        book.note(middle, name, Good::More, 2, true, rate);
                    }
                }
            }
            Part::UnderFlood(name, rate, offloads) => {
                book.service(middle, name, &hosts::under_flood(middle, rate, offloads, span));
            }
        }
    }
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Good {
    More,
    Less,
}

/// A row: its name, which way is good, digits after the point, and whether a ratio to the limit says anything.
#[derive(Clone, Debug)]
struct Row {
    name: String,
    good: Good,
    digits: usize,
    ratio: bool,
    values: BTreeMap<Middle, Vec<f64>>,
}

/// Everything measured, in the order in which it first was.
#[derive(Default)]
struct Book {
    rows: Vec<Row>,
}

impl Book {
    fn note(&mut self, middle: Middle, name: String, good: Good, digits: usize, ratio: bool, value: f64) {
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.rows.push(Row { name, good, digits, ratio, values: BTreeMap::new() });
            self.rows.len() - 1
        });
        self.rows[at].values.entry(middle).or_default().push(value);
    }

    fn rate(&mut self, middle: Middle, name: &str, rate: &load::Rate) {
        self.note(middle, format!("{name}, Mpps"), Good::More, 3, true, rate.mpps);
        self.note(middle, format!("{name}, offered"), Good::More, 2, false, rate.offered);
        self.note(middle, format!("{name}, CPU ns of the box"), Good::Less, 0, true, rate.own);
        self.note(middle, format!("{name}, CPU ns of the machine"), Good::Less, 0, true, rate.machine);
        if let Some(stage) = rate.stage {
            self.note(middle, format!("{name}, own stage, ns"), Good::Less, 1, false, stage);
        }
    }

    fn service(&mut self, middle: Middle, when: &str, service: &hosts::Service) {
        for (direction, rate) in ["to the server", "to the client"].iter().zip(service.bulk) {
            self.note(middle, format!("{when}: bulk {direction}, Gbit/s"), Good::More, 2, true, rate);
        }
        if let Some(stage) = service.stage {
            self.note(middle, format!("{when}: bulk, own stage, ns"), Good::Less, 1, false, stage);
        }
        if let Some(idle) = service.idle {
            self.note(middle, format!("{when}: CPU while idle, ms/s"), Good::Less, 2, false, idle);
        }
        for (share, wait) in ["p50", "p99", "p99.9"].iter().zip(service.answer) {
            self.note(middle, format!("{when}: ping-pong {share}, us"), Good::Less, 1, true, wait);
        }
        for (who, connections) in [("proved", service.proved), ("strangers", service.strangers)] {
            self.note(middle, format!("{when}: {who}, connections a second"), Good::More, 0, true, connections.rate);
            for (retries, share) in ["no retry", "one", "two"].iter().zip(connections.retries) {
                self.note(middle, format!("{when}: {who}, with {retries}, %"), Good::More, 2, false, share);
            }
        }
        if service.flood > 0.0 {
            self.note(middle, format!("{when}: the flood, Mpps"), Good::More, 2, false, service.flood);
        }
    }

    /// Prints it all: best, median, and the best beside the limit's best.
    fn print(&self, middles: &[Middle]) {
        print!("{:<54}", "");
        middles.iter().for_each(|middle| print!("{:>24}", middle.name()));
        println!();
        for row in &self.rows {
            print!("{:<54}", row.name);
            let limit = row.values.get(&Middle::Bypass).map(|values| row.sorted(values)[0]);
            for middle in middles {
                let Some(values) = row.values.get(middle) else {
                    print!("{:>24}", "-");
                    continue;
                };
                let sorted = row.sorted(values);
                let (best, median, digits) = (sorted[0], sorted[sorted.len() / 2], row.digits);
                let ratio = match limit {
                    Some(limit) if row.ratio && *middle != Middle::Bypass => format!(" {:.2}x", best / limit),
                    _ => "      ".into(),
                };
                print!("{:>24}", format!("{best:.digits$} {median:.digits$}{ratio}"));
            }
            println!();
        }
    }
}

impl Row {
    /// Best first.
    fn sorted(&self, values: &[f64]) -> Vec<f64> {
        let mut sorted = values.to_vec();
        sorted.sort_by(|a, b| if self.good == Good::More { b.total_cmp(a) } else { a.total_cmp(b) });
        sorted
    }
}
