//! The engine on one core, on two, and so on for as many as there are: `make bench`. Each worker is a thread on a core of its own,
//! with an engine and frames of its own, as in the appliance; they share what cores share: caches, memory, and the machine's power.
//!
//! The loads are those of the engine's benchmark. Words on the command line choose the rows that contain them all.

#[path = "../engine/frames.rs"]
mod frames;
#[path = "../engine/loads.rs"]
#[expect(dead_code, reason = "likewise")]
mod loads;
#[path = "../engine/worker.rs"]
#[expect(dead_code, reason = "more loads are made of it than are run here")]
mod worker;

use loads::{AckFlood, Chance, Data, Load, Sources, SynFlood, config, connections, establish, proxy};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};
use tcpstate::Proxy;
use worker::{BATCH, BEAT, Worker};

/// Buckets of the default table.
const BUCKETS: usize = 131_072;
/// Flows of the hot set, and of the cold one, a worker.
const HOT: usize = 2 * BATCH;
const COLD: usize = 7_812 * BATCH;
/// Runs of a row. They begin together on all cores; the best are those that nothing else disturbed on any.
const RUNS: usize = 51;
/// Turns a row's crews take.
const TURNS: usize = 4;
/// Batches of a run, and before the first.
const BATCHES: usize = 480;
const WARM_UP: usize = 12_000;

/// What one worker runs: its engine, its frames, what it is loaded with.
type Setup = fn() -> (Proxy, Worker, Box<dyn Load>);

fn main() {
    let (switches, wanted): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|word| word.starts_with('-'));
    let quick = switches.iter().any(|switch| switch == "--quick");
    let (runs, warm_up) = if quick { (5, BATCHES) } else { (RUNS, WARM_UP) };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    println!(
        "The engine in memory, a worker a core; millions of frames a second in all, best and median of {} runs; \
         `linear` is the ratio of the bests to as many times one worker's.\n",
        TURNS * runs
    );
    println!("{:<44} {:>8} {:>9} {:>9} {:>8}", "", "workers", "best M/s", "median", "linear");
    let rows: [(&str, Setup); 4] = [
        ("SYN -> SYN-ACK, cookies, random sources", syns),
        ("bogus ACK, random, no SYN", acks),
        ("established, 100 B, hot (128 flows each)", hot),
        ("established, 100 B, cold (half a million each)", cold),
    ];
    for (name, setup) in rows {
        if !wanted.iter().all(|word| name.contains(word.as_str())) {
            continue;
        }
        let crews: Vec<usize> =
            (0..).map(|power| 1 << power).take_while(|&workers| workers < cores).chain([cores]).collect();
        let mut rates = vec![Vec::new(); crews.len()];
        // In turns, or a machine that is faster at the end than at the beginning would look like one that scales.
        for _ in 0..TURNS {
            for (rates, &workers) in rates.iter_mut().zip(&crews) {
                rates.extend(measure(setup, workers, runs, warm_up));
            }
        }
        rates.iter_mut().for_each(|rates| rates.sort_by(|a, b| b.total_cmp(a)));
        let alone = rates[0][0];
        for (rates, workers) in rates.iter().zip(crews) {
            let (best, median) = (rates[0], rates[rates.len() / 2]);
            let linear = best / (alone * workers as f64);
            println!("{name:<44} {workers:>8} {best:>9.2} {median:>9.2} {linear:>8.3}");
        }
    }
}

/// Rates of all workers together, in millions a second.
fn measure(setup: Setup, workers: usize, runs: usize, warm_up: usize) -> Vec<f64> {
    let start = Barrier::new(workers);
    let mut totals = vec![0.0; runs];
    let work = &|core: usize| {
        let mut cores = CpuSet::new();
        cores.set(core).expect("a core of this machine");
        sched_setaffinity(Pid::from_raw(0), &cores).expect("staying on one core");
        // Made here, so that its memory lies near the core.
        let (mut proxy, mut worker, mut load) = setup();
        let mut run = |batches| {
            let mut total = Duration::ZERO;
            for _ in 0..batches {
                let side = load.fill(&mut worker);
                worker.now = worker.now + BEAT;
                let begin = Instant::now();
                worker.poll(&mut proxy, side);
                total += begin.elapsed();
                load.read(&worker);
            }
            (batches * BATCH) as f64 / total.as_secs_f64() / 1e6
        };
        run(warm_up);
        let rates: Vec<f64> = (0..runs)
            .map(|_| {
                start.wait();
                run(BATCHES)
            })
            .collect();
        rates
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|core| scope.spawn(move || work(core))).collect();
        for thread in threads {
            let rates = thread.join().expect("a worker does not panic");
            totals.iter_mut().zip(rates).for_each(|(total, rate)| *total += rate);
        }
    });
    totals
}

fn any() -> Sources {
    Sources { chance: Chance(1), count: None }
}

fn syns() -> (Proxy, Worker, Box<dyn Load>) {
    let worker = Worker::new();
    (
        proxy(&config(0, BUCKETS), &worker),
        worker,
        Box::new(SynFlood { sources: any(), repeats: false, pause: Duration::ZERO }),
    )
}

fn acks() -> (Proxy, Worker, Box<dyn Load>) {
    let mut worker = Worker::new();
    let proxy = proxy(&config(0, BUCKETS), &worker);
    // When it has run for a while it knows of every SYN that was answered lately.
    worker.now = worker.now + Duration::from_secs(200);
    (proxy, worker, Box::new(AckFlood { sources: any(), timestamps: true, is_tested: true }))
}

fn hot() -> (Proxy, Worker, Box<dyn Load>) {
    established(HOT)
}

fn cold() -> (Proxy, Worker, Box<dyn Load>) {
    established(COLD)
}

fn established(count: usize) -> (Proxy, Worker, Box<dyn Load>) {
    let mut worker = Worker::new();
    let mut proxy = proxy(&config(0, BUCKETS), &worker);
    let mut connections = connections(count, false);
    establish(&mut proxy, &mut worker, &mut connections);
    (proxy, worker, Box::new(Data::new(connections, 100)))
}
