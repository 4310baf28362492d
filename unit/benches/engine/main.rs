//! How fast the engine is, on one core, in memory: `make bench`. Words on the command line choose the rows that contain them all;
//! `--quick` runs each row briefly, for a profiler; `--check` counts instructions instead (`count`).
//!
//! Frames are written before a batch and read after it; timed is what a worker does with a batch between reception and
//! transmission. `docs/performance.md` explains the rows.

mod count;
mod frames;
mod loads;
mod worker;

use frames::{Options, Pair, Tcp};
use loads::{
    AckFlood, Chance, Data, Errors, Load, Sources, SynFlood, Visits, answer_all, config, connections, early, establish,
    establish_unseen, proxy, send,
};
use nix::time::{ClockId, clock_gettime};
use pktio::region::Region;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tcpstate::config::{Limits, Network, Timeouts};
use tcpstate::wire::Flags;
use tcpstate::{Config, Event, List, Lists, Memory, Proxy, Side, Slab, Words};
use worker::{BATCH, BEAT, Worker};

/// As the appliance has it.
#[global_allocator]
static ALLOCATOR: pktio::HugePageAllocator = pktio::HugePageAllocator;

/// Buckets of the default table (1 048 576 flows), and of one that stays in the caches (1024 flows).
const LARGE: usize = 131_072;
const SMALL: usize = 128;
/// Buckets of the smallest table that can be configured for ten million flows.
const HUGE: usize = 2_097_152;
/// A million flows, as whole batches.
const MILLION: usize = 15_625 * BATCH;
/// A hundred thousand flows, as whole batches.
const HUNDRED_THOUSAND: usize = 100_032 / BATCH * BATCH;
/// Ten million flows, as whole batches.
const TEN_MILLION: usize = 10 * MILLION;
/// The hot set, as whole batches: 128 flows.
const HOT: usize = 2 * BATCH;
/// The SYN cache's default size.
const CACHE: usize = 65_536;
/// Runs of a row: many short ones, so that some are not disturbed by whatever else the machine does.
const RUNS: usize = 151;
/// Batches of a run.
const BATCHES: usize = 480;
/// Batches before the first run of a row.
const WARM_UP: usize = 12_000;

/// The switch that makes a process measure its memory and nothing else.
const MEASURE_MEMORY: &str = "--measure-memory";
/// The same, of all it has with ten million flows.
const MEASURE_ALL_MEMORY: &str = "--measure-all-memory";
/// The switch that makes a process leave so many flows in a file.
const LEAVE_FLOWS: &str = "--leave-flows";
/// The switch that makes a process take them over, and measure how long it takes.
const ADOPT_FLOWS: &str = "--adopt-flows";
/// Longer than a turn of the timers may take.
const TOO_LONG: Duration = Duration::from_micros(100);

/// What the reference implementation reaches on this kind of machine, in millions a second.
mod reference {
    pub const SYN: f64 = 4.7;
    pub const BOGUS_ACK: f64 = 1.9;
    pub const ESTABLISHED: f64 = 12.0;
    pub const HANDSHAKE: f64 = 0.29;
    /// Bytes.
    pub const FLOW: f64 = 280.0;
}

fn main() -> ExitCode {
    let (switches, wanted): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|word| word.starts_with('-'));
    let is_on = |name: &str| switches.iter().any(|switch| switch == name);
    let v6 = wanted.iter().any(|word| word == "IPv6");
    if is_on(MEASURE_MEMORY) {
        println!("{}", bytes_a_flow(v6));
        return ExitCode::SUCCESS;
    }
    if is_on(MEASURE_ALL_MEMORY) {
        println!("{}", bytes_of_ten_million(v6));
        return ExitCode::SUCCESS;
    }
    if is_on(LEAVE_FLOWS) || is_on(ADOPT_FLOWS) {
        let [file, flows] = &wanted[..] else { panic!("a file and a number of flows are expected") };
        let flows = flows.parse().expect("a number of flows is expected");
        if is_on(LEAVE_FLOWS) {
            leave_flows(file, flows);
        } else {
            println!("{}", adopt_flows(file, flows).as_nanos());
        }
        return ExitCode::SUCCESS;
    }
    if is_on("--check") {
        return count::check(std::env::var("INSTRUCTIONS").is_ok_and(|value| value == "accept"));
    }
    let mut table = Table { wanted, quick: is_on("--quick"), counts: is_on(count::ONE_ROW) };
    if !table.counts {
        Table::head();
    }
    harness(&mut table);
    syns(&mut table);
    bogus_acks(&mut table);
    data(&mut table);
    errors(&mut table);
    visits(&mut table);
    expiry(&mut table);
    adoption(&mut table);
    aging(&mut table);
    memory(&mut table);
    ExitCode::SUCCESS
}

/// What the harness costs, to be subtracted from the rows below if one likes.
fn harness(table: &mut Table) {
    let mut worker = Worker::new();
    table.row("harness: clock readings alone", None, 1, || {
        let begin = Instant::now();
        std::hint::black_box(begin.elapsed())
    });
    let mut template = [0; 256];
    let tcp = Tcp { seq: 1, ack: 2, flags: Flags::ACK, options: Options::Timestamps { value: 3, echo: 4 }, payload: 0 };
    let len = frames::write(&mut template, Side::Wan, Pair::numbered(1, false), &tcp);
    table.row("harness: frame copied from its template, MACs swapped", None, 1, || {
        let begin = Instant::now();
        worker.touch(&template[..len]);
        begin.elapsed()
    });
}

fn syns(table: &mut Table) {
    let any = || Sources { chance: Chance(1), count: None };
    let hundred = || Sources { chance: Chance(1), count: Some(100) };
    let flood = |sources| SynFlood { sources, repeats: false, pause: Duration::ZERO };
    let reference = Some(reference::SYN);
    table.load("SYN -> SYN-ACK, cache off, hot (100 sources)", reference, &config(0, LARGE), &mut flood(hundred()));
    table.load("SYN -> SYN-ACK, cache off, random sources", reference, &config(0, LARGE), &mut flood(any()));
    let mut repeats = SynFlood { repeats: true, ..flood(hundred()) };
    table.load("SYN -> SYN-ACK, cache on, hot (100 sources, repeated)", reference, &config(CACHE, LARGE), &mut repeats);
    table.load(
        "SYN -> SYN-ACK, cache on and full, random sources",
        reference,
        &config(CACHE, LARGE),
        &mut flood(any()),
    );
    guarded_syns(table);
    // The clock moves so that the oldest entry is always old enough to give way: three seconds for the whole cache.
    let mut stored = SynFlood { pause: Duration::from_micros(3_100), ..flood(any()) };
    table.load("SYN -> SYN-ACK, cache on, each stored, random sources", reference, &config(CACHE, LARGE), &mut stored);
}

/// SYNs that are compared with lists and limits before they are answered.
fn guarded_syns(table: &mut Table) {
    let budgets = Limits { syn_acks: 10_000_000, destination_syn_acks: 10_000_000, ..Limits::default() };
    for (name, listed, limits) in [
        ("SYN -> SYN-ACK, cache off, a million networks listed, random sources", 1_000_000, Limits::default()),
        ("SYN -> SYN-ACK, cache off, SYN-ACKs limited, random sources", 0, budgets),
    ] {
        if !table.wants(name) {
            continue;
        }
        let mut worker = Worker::new();
        let mut proxy = proxy(&Config { limits, ..config(0, LARGE) }, &worker);
        // Spread over all addresses that a source may have: one in a thousand is listed, and answered all the same.
        let mut chance = Chance(3);
        let networks = (0..listed).map(|_| {
            let address = [0, 0, 0xffff, Pair::numbered(chance.word(), false).client];
            (List::Always, Network { address, prefix: 128 })
        });
        drop(proxy.set_lists(Arc::new(Lists::new(networks))));
        let mut load =
            SynFlood { sources: Sources { chance: Chance(1), count: None }, repeats: false, pause: Duration::ZERO };
        table.measure(name, Some(reference::SYN), &mut proxy, &mut worker, &mut load);
    }
}

fn bogus_acks(table: &mut Table) {
    for (timestamps, with) in [(true, "with timestamps"), (false, "without timestamps")] {
        for (answered, is_tested, count, sources) in [
            (true, true, Some(100), "hot (100), SYNs answered"),
            (true, false, Some(100), "hot (100), SYNs answered, guesses spent"),
            (false, true, Some(100), "hot (100), no SYN"),
            (false, true, None, "random, no SYN"),
        ] {
            let name = format!("bogus ACK, {with}, cache off, {sources}");
            if !table.wants(&name) {
                continue;
            }
            let mut worker = Worker::new();
            let mut config = config(0, LARGE);
            if !is_tested {
                config.rate.guesses = 0;
            }
            let mut proxy = proxy(&config, &worker);
            // When it has run for a while it knows of every SYN that was answered lately.
            worker.now = worker.now + Duration::from_secs(200);
            if answered {
                answer_all(&mut proxy, &mut worker, 100);
            }
            let mut load = AckFlood { sources: Sources { chance: Chance(2), count }, timestamps, is_tested };
            table.measure(&name, Some(reference::BOGUS_ACK), &mut proxy, &mut worker, &mut load);
        }
    }
}

fn data(table: &mut Table) {
    for (count, buckets, temperature) in [
        (HOT, LARGE, "hot (128 flows)"),
        (MILLION, LARGE, "cold (1 000 000 flows)"),
        (TEN_MILLION, HUGE, "cold (10 000 000 flows)"),
    ] {
        for v6 in [false, true] {
            for payload in [100, 1448] {
                let name =
                    format!("established, {payload} B, {}, cache off, {temperature}", if v6 { "IPv6" } else { "IPv4" });
                if !table.wants(&name) || (v6 || count == TEN_MILLION) && payload != 100 {
                    continue;
                }
                let mut worker = Worker::new();
                let mut proxy = proxy(&config(0, buckets), &worker);
                let mut connections = connections(count, v6);
                establish(&mut proxy, &mut worker, &mut connections);
                let mut load = Data::new(connections, payload);
                table.measure(&name, Some(reference::ESTABLISHED), &mut proxy, &mut worker, &mut load);
            }
        }
    }
}

fn errors(table: &mut Table) {
    for (count, temperature) in [(HOT, "hot (128 flows)"), (MILLION, "cold (1 000 000 flows)")] {
        let name = format!("ICMP error about a segment in flight, IPv4, {temperature}");
        if !table.wants(&name) {
            continue;
        }
        let mut worker = Worker::new();
        let mut proxy = proxy(&config(0, LARGE), &worker);
        let mut connections = connections(count, false);
        establish(&mut proxy, &mut worker, &mut connections);
        let mut load = Errors::new(&mut proxy, &mut worker, connections);
        table.measure(&name, None, &mut proxy, &mut worker, &mut load);
    }
}

/// Whose connections are counted: their name, the SYN cache's size, what is configured, the load.
type Visitors = (&'static str, usize, fn(Config) -> Config, fn() -> Visits);

fn visits(table: &mut Table) {
    let rows: [Visitors; 3] = [
        ("6 frames, cache off", 0, |config| config, Visits::new),
        ("6 frames, cache on", CACHE, |config| config, Visits::new),
        ("early data, cache off", 0, early, Visits::early),
    ];
    for (buckets, temperature) in [(SMALL, "table of 1024"), (LARGE, "table of 1 048 576")] {
        for (mode, cache, manner, load) in rows {
            let name = format!("connection opened and closed, {mode}, {temperature}");
            if !table.wants(&name) {
                continue;
            }
            let mut worker = Worker::new();
            let mut proxy = proxy(&manner(config(cache, buckets)), &worker);
            let mut load = load();
            // As in the long run: every place taken, by connections that have just closed.
            let places = 2 * BATCH + buckets * Config::FLOWS_PER_BUCKET;
            for _ in 0..places.div_ceil(BATCH) * load.batches_a_unit() {
                iterate(&mut proxy, &mut worker, &mut load);
            }
            table.measure(&name, Some(reference::HANDSHAKE), &mut proxy, &mut worker, &mut load);
        }
    }
}

/// The longest turn of the timers while a million flows are removed that have fallen due at the same moment.
fn expiry(table: &mut Table) {
    let name = "expiry of 1 000 000 flows that fall due at once";
    if !table.wants(name) || table.counts {
        return;
    }
    // The best of three: a hypervisor's interruptions count.
    let runs = (0..if table.quick { 1 } else { 3 }).map(|_| {
        let mut worker = Worker::new();
        let mut proxy = proxy(&config(0, LARGE), &worker);
        establish_unseen(&mut proxy, &mut worker, MILLION, false);
        worker.now = worker.now + Timeouts::default().connected + Duration::from_secs(1);
        let mut turns = Vec::new();
        while proxy.population().proxied > 0 {
            // Not the wall's clock, which goes on while somebody else has the core.
            let begin = processor_time();
            proxy.on_timeout(worker.now, &mut worker.spares);
            turns.push(processor_time() - begin);
        }
        turns
    });
    let turns = runs.min_by_key(|turns| turns.iter().max().copied()).unwrap_or_default();
    let total: Duration = turns.iter().sum();
    let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
    println!(
        "{name:<66} {:>8.2} ns a flow; {} turns, on average {:.1} us, the longest {:.1} us, {} above {} us",
        total.as_nanos() as f64 / MILLION as f64,
        turns.len(),
        micros(total) / turns.len() as f64,
        micros(turns.iter().max().copied().unwrap_or_default()),
        turns.iter().filter(|&&turn| turn > TOO_LONG).count(),
        TOO_LONG.as_micros(),
    );
}

/// How long a process takes over the flows that a former one has left in a file on a tmpfs: from opening the file until the engine is ready.
fn adoption(table: &mut Table) {
    for flows in [HUNDRED_THOUSAND, TEN_MILLION] {
        let name = format!("taking over {flows} flows after a restart");
        if !table.wants(&name) || table.counts {
            continue;
        }
        let file = Left(format!("/dev/shm/synproxy-bench-{}", std::process::id()));
        let of_process = |switch: &str| measured_with(&[switch, &file.0, &flows.to_string()]);
        of_process(LEAVE_FLOWS);
        // Each process adopts what the one before has adopted.
        let times: Vec<f64> = (0..if table.quick { 1 } else { 5 })
            .map(|_| of_process(ADOPT_FLOWS).trim().parse().expect("it answers with a number"))
            .collect();
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        println!(
            "{name:<66} {:>8.2} ns a flow; {:.2} ms, at the slowest of {} {:.2} ms",
            best / flows as f64,
            best / 1e6,
            times.len(),
            times.iter().copied().fold(0.0, f64::max) / 1e6
        );
    }
}

/// A file that is removed at the end.
struct Left(String);

impl Drop for Left {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A configuration with a table for so many flows, the smallest but for the default's.
fn config_for(flows: usize) -> Config {
    config(CACHE, if flows > MILLION { HUGE } else { LARGE })
}

/// An engine whose flows lie in a region.
fn proxy_in(region: Region, config: &Config, others: Memory, is_used: bool) -> Proxy {
    let slab = Slab::mapped(region.into_words(), config.flow_capacity(), false, is_used);
    let memory = Memory { slab: slab.expect("the file is large enough"), ..others };
    Proxy::with_memory(config, &loads::secrets(), Worker::new().now, memory)
}

fn leave_flows(file: &str, flows: usize) {
    let config = config_for(flows);
    let region = Region::create(file, Slab::words(config.flow_capacity(), false)).expect("room in /dev/shm");
    let mut proxy = proxy_in(region, &config, Memory::anonymous(&config), false);
    establish_unseen(&mut proxy, &mut Worker::new(), flows, false);
    assert_eq!(proxy.population().proxied, flows as u64);
}

fn adopt_flows(file: &str, flows: usize) -> Duration {
    let config = config_for(flows);
    // A box has the rest of its memory before it asks the former process to end.
    let others = Memory::anonymous(&config);
    let begin = Instant::now();
    let region = Region::existing(file).expect("a process has left it");
    let proxy = proxy_in(region, &config, others, true);
    let time = begin.elapsed();
    assert_eq!(proxy.population().proxied, flows as u64);
    time
}

/// What it takes to see that a million connections go on which the kernel forwards: the timers of all come, and none expires.
fn aging(table: &mut Table) {
    let name = "aging of 1 000 000 flows that are handed down";
    if !table.wants(name) || table.counts {
        return;
    }
    // Half of the places stay free, so that every hash finds one.
    let words = Proxy::words_to_hand_down(2 * MILLION);
    let words: &'static [AtomicU64] = (0..words).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
    let mut worker = Worker::new();
    let mut proxy = proxy(&config(0, LARGE), &worker);
    proxy.hand_down_in(Words::from(words));
    let mut connections = connections(MILLION, false);
    establish(&mut proxy, &mut worker, &mut connections);
    // Only what has carried data both ways is handed down, by the usual segment that follows; and none in a tick in which one found no room.
    for side in [Side::Wan, Side::Lan, Side::Wan] {
        for some in connections.chunks(64) {
            worker.now = worker.now + Duration::from_millis(2);
            send(&mut proxy, &mut worker, some, side);
        }
    }
    let flows = proxy.counters().happened(Event::HandedDown);
    assert!(flows > MILLION as u64 / 2, "{flows} were handed down");
    let lifetime = Timeouts::default().connected;
    let mut runs = Vec::new();
    for _ in 0..if table.quick { 1 } else { 3 } {
        worker.now = worker.now + lifetime + Duration::from_secs(1);
        forwarded_just_now(words, worker.now);
        let begin = processor_time();
        while proxy.on_timeout(worker.now, &mut worker.spares) {}
        runs.push(processor_time() - begin);
    }
    assert_eq!(proxy.population().proxied, flows, "all that were handed down go on");
    let each = runs.into_iter().min().unwrap_or_default().as_nanos() as f64 / flows as f64;
    // Each once in its lifetime.
    let share = |lifetime: f64| each * MILLION as f64 / 1e9 / lifetime * 100.0;
    println!(
        "{name:<66} {each:>8.2} ns a flow; {:.4} % of a core where they live for {} s, {:.2} % for 60 s; {flows} were handed down",
        share(lifetime.as_secs_f64()),
        lifetime.as_secs(),
        share(60.0),
    );
}

/// Writes into the entries of handed-down flows what the kernel's program does that has just forwarded a segment of each end (`struct entry` in
/// `pktio/bpf/projection.h`).
fn forwarded_just_now(words: &[AtomicU64], now: tcpstate::Instant) {
    const LINE: usize = 8;
    const ENTRY: usize = 3 * LINE;
    const IS_DOWN: u64 = 1 << 48;
    const WINDOW: usize = 1;
    const BYTES: usize = 5;
    const LAST_SEEN: usize = 6;
    for bucket in words.chunks(LINE + 8 * ENTRY) {
        for (_, entry) in
            bucket.iter().zip(bucket[LINE..].chunks(ENTRY)).filter(|(hash, _)| hash.load(Ordering::Relaxed) != 0)
        {
            for end in entry[LINE..].chunks(LINE) {
                end[WINDOW].fetch_or(IS_DOWN, Ordering::Relaxed);
                end[BYTES].store(100, Ordering::Relaxed);
                end[LAST_SEEN].store(now.as_micros() * 1000, Ordering::Relaxed);
            }
        }
    }
}

/// What this thread has had of a processor.
fn processor_time() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has this clock"))
}

/// What an established flow takes, with the default tables and a million flows; and what a process with ten million has in memory.
fn memory(table: &mut Table) {
    for version in ["IPv4", "IPv6"] {
        let name = format!("memory of an established flow, {version}, everything counted");
        if !table.wants(&name) {
            continue;
        }
        let bytes = measured(MEASURE_MEMORY, version);
        println!("{name:<69} {bytes:>5.0} bytes {:>12.0} {:>5.2} x", reference::FLOW, bytes / reference::FLOW);
    }
    for version in ["IPv4", "IPv6"] {
        let name = format!("memory of the process, 10 000 000 established flows, {version}");
        if table.wants(&name) {
            println!("{name:<69} {:>5.2} GiB", measured(MEASURE_ALL_MEMORY, version) / f64::from(1 << 30));
        }
    }
}

/// What a process of its own says, in which nothing that was freed before is used again unseen.
fn measured(switch: &str, version: &str) -> f64 {
    measured_with(&[switch, version]).trim().parse().expect("it answers with a number")
}

/// What a process of its own says.
fn measured_with(arguments: &[&str]) -> String {
    let output = std::env::current_exe()
        .and_then(|own| Command::new(own).args(arguments).output())
        .expect("a benchmark can start itself");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// All that a process has in memory that has an engine and ten million flows in it.
fn bytes_of_ten_million(v6: bool) -> usize {
    let mut worker = Worker::new();
    let mut proxy = proxy(&config(CACHE, HUGE), &worker);
    establish_unseen(&mut proxy, &mut worker, TEN_MILLION, v6);
    assert_eq!(proxy.population().proxied, TEN_MILLION as u64);
    resident()
}

/// The growth of the resident memory by an engine and a million flows in it, a flow.
fn bytes_a_flow(v6: bool) -> f64 {
    let mut worker = Worker::new();
    let mut connections = connections(MILLION, v6);
    let before = resident();
    let mut proxy = proxy(&config(CACHE, LARGE), &worker);
    establish(&mut proxy, &mut worker, &mut connections);
    (resident() - before) as f64 / proxy.population().proxied as f64
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = statm.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// One batch: what it took, and how many of its frames did not become what they should.
fn iterate(proxy: &mut Proxy, worker: &mut Worker, load: &mut impl Load) -> (Duration, usize) {
    let side = load.fill(worker);
    worker.now = worker.now + BEAT;
    let begin = Instant::now();
    worker.poll(proxy, side);
    (begin.elapsed(), load.read(worker))
}

/// The table that is printed.
struct Table {
    wanted: Vec<String>,
    quick: bool,
    /// Whether the one row with this very name is run for its instructions to be counted.
    counts: bool,
}

impl Table {
    fn head() {
        println!(
            "One core, batches of {BATCH}; best and median of {RUNS} runs; per frame, or per connection where it says so.\n"
        );
        println!("{:<66} {:>8} {:>8} {:>9} {:>9} {:>7}", "", "best ns", "median", "best M/s", "reference", "ratio");
    }

    fn wants(&self, name: &str) -> bool {
        self.wanted.iter().all(|word| if self.counts { name == word } else { name.contains(word.as_str()) })
    }

    /// Measures a load on a new engine.
    fn load(&mut self, name: &str, reference: Option<f64>, config: &Config, load: &mut impl Load) {
        if self.wants(name) {
            let mut worker = Worker::new();
            let mut proxy = proxy(config, &worker);
            self.measure(name, reference, &mut proxy, &mut worker, load);
        }
    }

    /// Measures a load on an engine, after a first round that is not counted.
    fn measure(
        &mut self,
        name: &str,
        reference: Option<f64>,
        proxy: &mut Proxy,
        worker: &mut Worker,
        load: &mut impl Load,
    ) {
        let unit = load.batches_a_unit();
        let warm_up = match (self.counts, self.quick) {
            (true, _) => count::warm_up(name),
            (false, true) => BATCHES,
            (false, false) => WARM_UP,
        };
        for _ in 0..warm_up.next_multiple_of(unit) {
            iterate(proxy, worker, load);
        }
        let (mut astray, mut count) = (0, 0);
        if self.counts {
            for _ in 0..count::BATCHES.next_multiple_of(unit) {
                let side = load.fill(worker);
                worker.now = worker.now + BEAT;
                count::counted_poll(worker, proxy, side);
                astray += load.read(worker);
                count += BATCH;
            }
            println!("counted: {}", count / unit);
        } else {
            self.row(name, reference, unit, || {
                let (took, wrong) = iterate(proxy, worker, load);
                astray += wrong;
                count += BATCH;
                took
            });
        }
        // A random number is a cookie once in many millions; its source, of a hundred one, is then taken for a client.
        assert!(astray <= count / 50, "{name}: {astray} of {count} frames did not become what they should");
    }

    /// Runs `batch` and prints a row.
    fn row(&mut self, name: &str, reference: Option<f64>, unit: usize, mut batch: impl FnMut() -> Duration) {
        if !self.wants(name) {
            return;
        }
        let mut runs: Vec<f64> = (0..if self.quick { 3 } else { RUNS })
            .map(|_| {
                let batches = BATCHES / unit * unit;
                let total: Duration = (0..batches).map(|_| batch()).sum();
                total.as_nanos() as f64 / (batches / unit * BATCH) as f64
            })
            .collect();
        runs.sort_by(f64::total_cmp);
        let (best, median) = (runs[0], runs[runs.len() / 2]);
        let rate = 1e3 / best;
        print!("{name:<66} {best:>8.2} {median:>8.2} {rate:>9.2}");
        match reference {
            Some(reference) => println!(" {reference:>9.2} {:>5.1} x", rate / reference),
            None => println!(),
        }
    }
}
