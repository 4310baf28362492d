//! What a splice is worth: every way to relay TCP, one after the other between the same client and server: `make bench-splice`. Needs root.
//!
//! Three namespaces in a row; the client's thread runs on the first core, the server's on the last, and what stands in the middle on either. Every byte
//! is compared; one that is wrong fails the run. Words on the command line choose the loads and arms whose names contain one of them; `--quick` shortens
//! the windows to 300 ms, `--window=` says them in ms, `--rounds=` how often everything is measured; `--write` puts table and plots into
//! `docs/splice.md`, which explains the rows.

mod arms;
mod client;
mod cost;
mod echo;
mod pattern;
mod plot;
mod poll;
mod relay;
mod routed;
mod server;
mod table;
mod tails;
mod tls;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use arms::{Arm, Stood};
use echo::{Load, Outcome, Pace};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use plot::Panel;
use routed::Routed;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use server::Server;
use table::{Good, Kind, Row};
use tails::{Ends, Slow};
use tls::Tls;
use unit::machine;
use unit::netns::Rig;

/// Sizes of blocks, and their names.
const BLOCKS: [(u64, &str); 3] = [(16 << 10, "16 KiB"), (128 << 10, "128 KiB"), (2 << 20, "2 MiB")];

const CONNECTIONS: [usize; 3] = [1, 64, 1024];

/// The part of what no relay carries in a closed loop that is offered in the open one.
const OFFERED: f64 = 0.05;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("relay", rest)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return match relay::main(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("relay {}: {error}", rest.join(" "));
                ExitCode::FAILURE
            }
        };
    }
    let (switches, wanted): (Vec<_>, Vec<_>) = words.into_iter().partition(|word| word.starts_with('-'));
    if !nix::unistd::geteuid().is_root() {
        println!("splice: skipped, because namespaces need root");
        return ExitCode::SUCCESS;
    }
    harness::leftovers::guard();
    raise_descriptors();
    let has = |name: &str| switches.iter().any(|switch| switch == name);
    let rounds = switches.iter().find_map(|switch| switch.strip_prefix("--rounds=")?.parse().ok()).unwrap_or(1);
    let millis = switches.iter().find_map(|switch| switch.strip_prefix("--window=")?.parse().ok());
    let window = Duration::from_millis(millis.unwrap_or(if has("--quick") { 300 } else { 1000 }));
    let arms = chosen(&Arm::ALL, &wanted, |arm| arm.name().to_owned());
    let parts = chosen(&Part::all(), &wanted, |part| part.name());
    let mut book = Book { idle_share: cost::idle_share(Duration::from_secs(1)), ..Book::default() };
    let rates = match parts.iter().any(|part| matches!(part, Part::Echo { open: true, .. })) {
        true => offered_rates(window),
        false => [0.0; 3],
    };
    for round in 1..=rounds {
        for &arm in &arms {
            eprintln!("round {round} of {rounds}: {}", arm.name());
            for is_spinning in [false, true] {
                let parts: Vec<Part> = parts.iter().copied().filter(|part| part.spins() == is_spinning).collect();
                if !parts.is_empty() && (!is_spinning || arm.can_spin()) {
                    measure(&mut book, arm, &parts, window, rates);
                }
            }
        }
    }
    let rows = book.rows();
    let (told, table, goals) = (machine::told(), table::markdown(&rows, &arms), table::goals(&rows, &arms));
    let told = format!(
        "{told}. {rounds} round{} with windows of {} ms; offered in the open loop: {:.0}, {:.0} and {:.0} blocks a second.",
        if rounds == 1 { "" } else { "s" },
        window.as_millis(),
        rates[0],
        rates[1],
        rates[2],
    );
    println!("{told}\n\n{table}\n{goals}");
    book.faults.iter().for_each(|fault| println!("{fault}"));
    if has("--write") {
        write(&book, &arms, &format!("{told}\n\n{table}"), &goals);
    }
    if book.is_wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What is measured in one go; in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Indices of block and number of connections.
    Echo {
        spins: bool,
        open: bool,
        block: usize,
        connections: usize,
    },
    Ends,
    Slow,
    Routed,
    Tls,
}

impl Part {
    fn all() -> Vec<Part> {
        let mut parts = Vec::new();
        for open in [false, true] {
            for block in 0..3 {
                parts.extend((0..3).map(|connections| Part::Echo { spins: false, open, block, connections }));
            }
        }
        parts.extend((0..3).map(|block| Part::Echo { spins: true, open: false, block, connections: 0 }));
        parts.extend([Part::Ends, Part::Slow, Part::Routed, Part::Tls]);
        parts
    }

    fn spins(self) -> bool {
        matches!(self, Part::Echo { spins: true, .. })
    }

    fn name(self) -> String {
        match self {
            Part::Echo { spins, open, block, connections } => {
                let loop_name = if open { "open loop" } else { "closed loop" };
                let poll = if spins { ", busy-poll" } else { "" };
                format!("{loop_name}, {} × {}{poll}", BLOCKS[block].1, CONNECTIONS[connections])
            }
            Part::Ends => "ends of connections".to_owned(),
            Part::Slow => "a slow reader".to_owned(),
            Part::Routed => "routed connections".to_owned(),
            Part::Tls => "connections with real TLS".to_owned(),
        }
    }
}

/// How many blocks of each size a second are offered.
fn offered_rates(window: Duration) -> [f64; 3] {
    let rig = Rig::alone().with_default_offloads(false);
    let server = Server::start(&rig);
    let stood = Stood::stand(&rig, Arm::NoRelay, false).expect("a bridge carries everything");
    let rates = BLOCKS.map(|(block, _)| {
        let load = Load { block, connections: 64, pace: Pace::Closed, window };
        let outcome = echo::apply(&rig, stood.entry(), load).expect("a bridge carries everything");
        outcome.bytes as f64 / 2.0 / block as f64 / outcome.cost.passed.as_secs_f64() * OFFERED
    });
    drop((stood, server));
    rates
}

/// Everything that is asked of an arm, with one and the same standing in the middle.
fn measure(book: &mut Book, arm: Arm, parts: &[Part], window: Duration, rates: [f64; 3]) {
    let rig = Rig::alone().with_default_offloads(false);
    let server = Server::start(&rig);
    let stood = match Stood::stand(&rig, arm, parts[0].spins()) {
        Ok(stood) => stood,
        Err(error) => return book.fault(arm, parts[0], &format!("it does not stand: {error}")),
    };
    let entry = stood.entry();
    for &part in parts {
        eprintln!("  {}", part.name());
        let mut wrong = Vec::new();
        match part {
            Part::Echo { open, block, connections, .. } => {
                let pace = if open { Pace::Open(rates[block]) } else { Pace::Closed };
                let load = Load { block: BLOCKS[block].0, connections: CONNECTIONS[connections], pace, window };
                match echo::apply(&rig, entry, load) {
                    Ok(outcome) => {
                        wrong = outcome.wrong.clone();
                        book.echo.entry((part, arm)).or_default().add(outcome);
                    }
                    Err(error) => book.fault(arm, part, &error.to_string()),
                }
            }
            Part::Ends => {
                let ends = tails::ends(&rig, entry, &server);
                wrong = ends.wrong.clone();
                if let Some(first) = ends.failures.first() {
                    book.fault(arm, part, &format!("{} of {} not whole: {first}", ends.tried - ends.whole, ends.tried));
                }
                book.ends.entry(arm).or_default().add(ends);
            }
            Part::Slow => {
                // One that has released nothing.
                let rig = Rig::alone().with_default_offloads(false);
                let server = Server::start(&rig);
                let stood = Stood::stand(&rig, arm, false);
                let slow = stood.and_then(|stood| tails::slow_reader(&rig, stood.entry(), &server));
                match slow {
                    Ok(slow) => {
                        wrong = slow.wrong.clone();
                        book.slow.entry(arm).or_default().add(slow);
                    }
                    Err(error) => book.fault(arm, part, &error.to_string()),
                }
            }
            Part::Routed if !arm.is_routed() => {}
            Part::Tls if !arm.is_routed_to_tls() => {}
            Part::Tls => match tls::apply(&rig, entry, window * 2) {
                Ok(tls) => book.tls.entry(arm).or_default().add(tls),
                Err(error) => book.fault(arm, part, &error.to_string()),
            },
            Part::Routed => match routed::apply(&rig, entry, window * 2) {
                Ok(routed) => {
                    wrong = routed.wrong.clone();
                    book.routed.entry(arm).or_default().add(routed);
                }
                Err(error) => book.fault(arm, part, &error.to_string()),
            },
        }
        for wrong in wrong {
            book.fault(arm, part, &format!("a wrong byte: {wrong}"));
            // Its faults are to be shown.
            book.is_wrong |= arm != Arm::SockMap;
        }
    }
    drop((stood, server));
}

/// Everything measured.
#[derive(Default)]
struct Book {
    idle_share: f64,
    echo: BTreeMap<(Part, Arm), Outcome>,
    ends: BTreeMap<Arm, Ends>,
    slow: BTreeMap<Arm, Slow>,
    routed: BTreeMap<Arm, Routed>,
    tls: BTreeMap<Arm, Tls>,
    faults: Vec<String>,
    is_wrong: bool,
}

/// The points of a distribution that are told.
const SHARES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

impl Book {
    fn fault(&mut self, arm: Arm, part: Part, what: &str) {
        let fault = format!("{}, {}: {what}", arm.name(), part.name());
        eprintln!("{fault}");
        self.faults.push(fault);
    }

    /// CPU seconds for each gigabyte.
    fn cpu(&self, outcome: &Outcome) -> f64 {
        outcome.cost.without(self.idle_share).busy.as_secs_f64() / (outcome.bytes as f64 / 1e9)
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut parts: Vec<Part> = self.echo.keys().map(|(part, _)| *part).collect();
        parts.dedup();
        for part in parts {
            let group = part.name();
            let mut row = |name: &str, kind, good, digits, value: &dyn Fn(&Outcome) -> Option<f64>| {
                let values = self.echo.iter().filter(|((its, _), _)| *its == part);
                let values = values.filter_map(|((_, arm), outcome)| Some((*arm, value(outcome)?))).collect();
                rows.push(Row { group: group.clone(), name: name.to_owned(), kind, good, digits, values });
            };
            let kind = if part.spins() { Kind::Other } else { Kind::Latency };
            for (name, share) in SHARES {
                // The window may have ended before a block that fell due in it.
                let value =
                    |outcome: &Outcome| (outcome.latencies.count() > 0).then(|| micros(outcome.latencies.at(share)));
                row(&format!("{name}, µs"), kind, Good::Less, 0, &value);
            }
            if let Part::Echo { open: false, spins: false, .. } = part {
                row("goodput, Gbit/s", Kind::Goodput, Good::More, 2, &|outcome| Some(gigabits(outcome)));
            }
            let kind = if part.spins() { Kind::Other } else { Kind::Cpu };
            row("CPU, s/GB", kind, Good::Less, 3, &|outcome| Some(self.cpu(outcome)));
            if self.echo.iter().any(|((its, _), outcome)| *its == part && outcome.lost > 0) {
                row("lost blocks", Kind::Other, Good::Neither, 0, &|outcome| Some(outcome.lost as f64));
            }
        }
        self.rows_of_ends(&mut rows);
        self.rows_of_routed(&mut rows);
        rows
    }

    fn rows_of_ends(&self, rows: &mut Vec<Row>) {
        let group = "ends of connections, one after the other";
        let mut row = |name: String, good, value: &dyn Fn(&Ends) -> f64| {
            // Of what has not happened there are no times.
            let values = self.ends.iter().map(|(arm, ends)| (*arm, value(ends)));
            let values = values.filter(|(_, value)| good != Good::Less || *value > 0.0).collect();
            rows.push(Row { group: group.into(), name, kind: Kind::Other, good, digits: 0, values });
        };
        if !self.ends.is_empty() {
            for (name, share) in [SHARES[0], SHARES[3]] {
                row(format!("FIN to FIN, {name}, µs"), Good::Less, &|ends| micros(ends.fins.at(share)));
            }
            row("whole, of 100".into(), Good::Neither, &|ends| percent(ends.whole, ends.tried));
            for (name, share) in [SHARES[0], SHARES[3]] {
                row(format!("RST to the server, {name}, µs"), Good::Less, &|ends| micros(ends.resets.at(share)));
            }
            row("heard as RST, of 100".into(), Good::Neither, &|ends| percent(ends.as_resets, ends.reset));
        }
        let group = "a slow reader, 64 connections";
        let mut row = |name: &str, good, value: &dyn Fn(&Slow) -> f64| {
            let values = self.slow.iter().map(|(arm, slow)| (*arm, value(slow))).collect();
            rows.push(Row { group: group.into(), name: name.into(), kind: Kind::Other, good, digits: 0, values });
        };
        if !self.slow.is_empty() {
            row("taken while nobody reads, MiB", Good::Neither, &|slow| slow.taken as f64 / f64::from(1 << 20));
            row("memory of the machine for it, MiB", Good::Less, &|slow| slow.memory as f64 / f64::from(1 << 20));
            row("whole in the end, of 100", Good::Neither, &|slow| percent(slow.whole, slow.tried));
        }
    }

    fn rows_of_routed(&self, rows: &mut Vec<Row>) {
        if self.routed.is_empty() {
            return;
        }
        let each =
            |routed: &Routed| micros(routed.cost.without(self.idle_share).busy) / routed.connections.max(1) as f64;
        let mut row = |name: String, good, digits, value: &dyn Fn(&Routed) -> Option<f64>| {
            let values = self.routed.iter().filter_map(|(arm, routed)| Some((*arm, value(routed)?))).collect();
            let group = "routed connections, 64 at a time".to_owned();
            rows.push(Row { group, name, kind: Kind::Other, good, digits, values });
        };
        row(table::RATE.into(), Good::More, 0, &|routed| {
            Some(routed.connections as f64 / routed.cost.passed.as_secs_f64())
        });
        row("CPU for each, µs".into(), Good::Less, 1, &|routed| Some(each(routed)));
        let limit = self.routed.get(&Arm::NoRelay).map(each);
        row(table::OWN.into(), Good::Less, 1, &|routed| Some(each(routed) - limit?));
        for (name, share) in SHARES {
            row(format!("SYN to the end, {name}, µs"), Good::Less, 0, &|routed| {
                Some(micros(routed.latencies.at(share)))
            });
        }
        row("lost".into(), Good::Neither, 0, &|routed| Some(routed.lost as f64));
        let rate = |tls: &Tls| tls.connections / tls.cost.passed.as_secs_f64();
        if !self.tls.is_empty() {
            let values = self.tls.iter().map(|(arm, tls)| (*arm, rate(tls))).collect();
            let (group, name) = ("connections with real TLS, 16 at a time".to_owned(), "a second".to_owned());
            rows.push(Row { group, name, kind: Kind::Other, good: Good::More, digits: 0, values });
        }
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn gigabits(outcome: &Outcome) -> f64 {
    outcome.bytes as f64 * 8e-9 / outcome.cost.passed.as_secs_f64()
}

fn percent(some: usize, all: usize) -> f64 {
    some as f64 / all.max(1) as f64 * 100.0
}

/// Puts table and plots into the document.
fn write(book: &Book, arms: &[Arm], table: &str, goals: &str) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let page = docs.join("splice.md");
    let mut text = fs::read_to_string(&page).expect("docs/splice.md");
    let places = [
        ("### The run\n", "![latency in the closed loop]", table),
        ("## Against the goals\n", "### What that says\n", goals),
    ];
    for (begin, end, part) in places {
        let from = text.find(begin).expect("a heading of docs/splice.md") + begin.len();
        let to = from + text[from..].find(end).expect("what follows it");
        text.replace_range(from..to, &format!("\n{}\n\n", part.trim_end()));
    }
    fs::write(&page, text).expect("writing docs/splice.md");
    let folder = docs.join("splice");
    fs::create_dir_all(&folder).expect("a folder beside the document");
    let echo = |open: bool, values: &dyn Fn(&Outcome) -> Vec<f64>| -> Vec<Panel> {
        let parts = Part::all()
            .into_iter()
            .filter(|part| matches!(part, Part::Echo { spins: false, open: its, .. } if *its == open));
        parts
            .map(|part| Panel {
                name: part.name(),
                lines: arms
                    .iter()
                    .map(|arm| (arm.name(), book.echo.get(&(part, *arm)).map(values).unwrap_or_default()))
                    .collect(),
            })
            .collect()
    };
    let latencies = |outcome: &Outcome| SHARES.map(|(_, share)| micros(outcome.latencies.at(share))).to_vec();
    let routed = |name: &str, value: &dyn Fn(&Routed) -> f64| Panel {
        name: name.to_owned(),
        lines: arms.iter().filter_map(|arm| Some((arm.name(), vec![value(book.routed.get(arm)?)]))).collect(),
    };
    let figures = [
        ("latency", plot::panels("Latency in the closed loop: p50, p99, p99.9, max", "µs", &echo(false, &latencies))),
        ("open", plot::panels("Latency in the open loop: p50, p99, p99.9, max", "µs", &echo(true, &latencies))),
        (
            "goodput",
            plot::panels(
                "Goodput, both directions together",
                "Gbit/s",
                &echo(false, &|outcome| vec![gigabits(outcome)]),
            ),
        ),
        ("cpu", plot::panels("CPU time of the machine", "s/GB", &echo(false, &|outcome| vec![book.cpu(outcome)]))),
        (
            "routed",
            plot::panels(
                "Connections routed by name",
                "64 at a time",
                &[
                    routed("connections a second", &|routed| {
                        routed.connections as f64 / routed.cost.passed.as_secs_f64()
                    }),
                    routed("CPU time of the machine for each, µs", &|routed| {
                        micros(routed.cost.without(book.idle_share).busy) / routed.connections.max(1) as f64
                    }),
                ],
            ),
        ),
    ];
    for (name, figure) in figures {
        fs::write(folder.join(name).with_extension("svg"), figure).expect("writing a figure");
    }
}

/// Those whose names contain a word that is asked for, or all if none does.
fn chosen<T: Copy>(all: &[T], wanted: &[String], name: impl Fn(&T) -> String) -> Vec<T> {
    let named = |item: &&T| wanted.iter().any(|word| name(item).contains(word.as_str()));
    let some: Vec<T> = all.iter().filter(named).copied().collect();
    if some.is_empty() { all.to_vec() } else { some }
}

/// As many sockets and pipes as the largest load takes, in this process and in those it starts.
fn raise_descriptors() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).expect("anybody may have what is allowed");
}

/// Has the calling thread run on the first core.
fn pin_to_first() {
    pin(0);
}

/// Has the calling thread run on the last core.
fn pin_to_last() {
    pin(std::thread::available_parallelism().map_or(1, usize::from) - 1);
}

fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core).expect("there is such a core");
    sched_setaffinity(Pid::from_raw(0), &cores).expect("a thread of one's own");
}
