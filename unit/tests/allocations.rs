//! No frame takes memory: what the engine needs is taken when it starts. The loads of the benchmark, under an allocator that counts.

#[path = "../benches/engine/frames.rs"]
#[allow(dead_code, reason = "the benchmark needs the rest")]
mod frames;
#[path = "../benches/engine/loads.rs"]
#[allow(dead_code, reason = "the benchmark needs the rest")]
mod loads;
#[path = "../benches/engine/worker.rs"]
#[allow(dead_code, reason = "the benchmark needs the rest")]
mod worker;

use loads::{
    AckFlood, Chance, Data, Errors, Load, Sources, SynFlood, Visits, answer_all, config, connections, early, establish,
    proxy,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;
use tcpstate::config::{Mode, RateLimit};
use tcpstate::{Config, Event, FlowMap, Footprint, Instant, Proxy, Secrets, Words};
use worker::{BATCH, Worker};

thread_local! {
    /// How often this thread has asked for memory.
    static TAKEN: Cell<u64> = const { Cell::new(0) };
    /// How many bytes it has asked for, without those it has given back.
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator, counted.
struct Counting;

// SAFETY: both calls are the system allocator's own, with the same arguments; counting touches no memory of theirs.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.set(TAKEN.get() + 1);
        BYTES.set(BYTES.get() + layout.size() as i64);
        // SAFETY: what the caller promises is what is asked.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get() - layout.size() as i64);
        // SAFETY: as above; the block came from `alloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Buckets of a small table, and a SYN cache that fills it by half.
const BUCKETS: usize = 128;
const CACHE: usize = 512;

fn sources(count: Option<u32>) -> Sources {
    Sources { chance: Chance(1), count }
}

/// Runs a load until whatever is kept has its size; then nothing more may be taken.
#[track_caller]
fn takes_nothing(proxy: &mut Proxy, worker: &mut Worker, load: &mut impl Load) {
    let mut run = |batches: usize| {
        let (mut taken, mut astray) = (0, 0);
        for _ in 0..batches.next_multiple_of(load.batches_a_unit()) {
            let side = load.fill(worker);
            worker.now = worker.now + worker::BEAT;
            let before = TAKEN.get();
            worker.poll(proxy, side);
            taken += TAKEN.get() - before;
            astray += load.read(worker);
        }
        (taken, astray)
    };
    run(200);
    assert_eq!(run(400), (0, 0), "memory taken, frames astray");
}

#[test]
fn the_counter_counts() {
    let before = TAKEN.get();
    drop(std::hint::black_box(vec![1u8; 100]));
    assert_eq!(TAKEN.get(), before + 1);
}

#[test]
fn a_syn_that_passes_takes_no_memory_nor_does_the_one_at_which_that_ends() {
    for mode in [Mode::Pass, Mode::Observe, Mode::Auto] {
        let mut worker = Worker::new();
        let mut proxy = proxy(&Config { mode, ..config(CACHE, BUCKETS) }, &worker);
        let mut load = SynFlood { sources: sources(None), repeats: false, pause: Duration::ZERO };
        let mut run = |batches: usize| {
            let mut taken = 0;
            for _ in 0..batches {
                let side = load.fill(&mut worker);
                worker.now = worker.now + worker::BEAT;
                let before = TAKEN.get();
                worker.poll(&mut proxy, side);
                taken += TAKEN.get() - before;
                load.read(&worker);
            }
            taken
        };
        // The worker's own queues grow at first. In mode auto the second batch is answered.
        run(1);
        assert_eq!(run(400), 0, "{mode:?}");
    }
}

/// An engine takes what it is said to take before it is started, by which a configuration is refused that the machine cannot hold: not more, and
/// not so much less that a configuration is refused in vain.
#[test]
fn an_engine_takes_the_memory_it_is_said_to_take() {
    let small = Config { table_buckets: 64, learn_capacity: 64, syn_cache_max: 0, held_frames: 0, ..Config::default() };
    let rate = |size| RateLimit { size, ..RateLimit::default() };
    for config in [
        Config::default(),
        small.clone(),
        Config { table_buckets: 300_001, syn_cache_max: 2_000_000_000, ..small.clone() },
        Config { learn_capacity: 1 << 20, ..small.clone() },
        Config { rate: rate(1 << 22), ..small.clone() },
        Config { held_frames: 65_535, ..small },
    ] {
        let said = Footprint::of(&config).total() as i64;
        let before = BYTES.get();
        let proxy = Proxy::new(&config, &Secrets::new([1; 48]), Instant::from_secs(1));
        let took = BYTES.get() - before;
        drop(proxy);
        assert!(took <= said && said <= took + took / 10 + (2 << 20), "{took} bytes, and {said} were said: {config:?}");
    }
}

#[test]
fn a_syn_takes_no_memory_however_it_is_answered() {
    for (cache, count, repeats, pause) in
        [(0, None, false, 0), (CACHE, None, false, 0), (CACHE, None, false, 400_000), (CACHE, Some(100), true, 0)]
    {
        let mut worker = Worker::new();
        let mut proxy = proxy(&config(cache, BUCKETS), &worker);
        let mut load = SynFlood { sources: sources(count), repeats, pause: Duration::from_micros(pause) };
        takes_nothing(&mut proxy, &mut worker, &mut load);
    }
}

#[test]
fn a_forged_acknowledgement_takes_no_memory() {
    for timestamps in [true, false] {
        let mut worker = Worker::new();
        let mut proxy = proxy(&config(0, BUCKETS), &worker);
        worker.now = worker.now + Duration::from_secs(200);
        answer_all(&mut proxy, &mut worker, 100);
        takes_nothing(
            &mut proxy,
            &mut worker,
            &mut AckFlood { sources: sources(Some(100)), timestamps, is_tested: true },
        );
    }
}

#[test]
fn established_segments_and_errors_about_them_take_no_memory() {
    for v6 in [false, true] {
        let mut worker = Worker::new();
        let mut proxy = proxy(&config(0, BUCKETS), &worker);
        let mut connections = connections(2 * BATCH, v6);
        establish(&mut proxy, &mut worker, &mut connections);
        takes_nothing(&mut proxy, &mut worker, &mut Data::new(connections, 100));
    }
    let mut worker = Worker::new();
    let mut proxy = proxy(&config(0, BUCKETS), &worker);
    let mut connections = connections(2 * BATCH, false);
    establish(&mut proxy, &mut worker, &mut connections);
    let mut load = Errors::new(&mut proxy, &mut worker, connections);
    takes_nothing(&mut proxy, &mut worker, &mut load);
}

#[test]
fn connections_come_and_go_without_taking_memory() {
    for (cache, manner, load) in [
        (0, None, Visits::new as fn() -> Visits),
        (CACHE, None, Visits::new),
        (0, Some(early as fn(tcpstate::Config) -> tcpstate::Config), Visits::early),
    ] {
        let mut worker = Worker::new();
        let config = config(cache, BUCKETS);
        let mut proxy = proxy(&manner.map_or(config.clone(), |manner| manner(config)), &worker);
        takes_nothing(&mut proxy, &mut worker, &mut load());
    }
}

/// Twelve hours in which connections come, go and are left behind, while SYNs and acknowledgements are forged: in virtual time. What began and has not
/// ended is what lives, no memory is taken after the first hour, and a day later nothing is left.
#[test]
fn twelve_hours_of_mixed_load_leave_nothing_behind() {
    const STEP: Duration = Duration::from_secs(2);
    const HOUR: Duration = Duration::from_secs(3600);
    let mut worker = Worker::new();
    let mut proxy = proxy(&config(CACHE, BUCKETS), &worker);
    proxy.publish_flows(Words::zeroed(FlowMap::words_needed(10 * BUCKETS)));
    let begin = worker.now;
    let live = |proxy: &Proxy| {
        let population = proxy.population();
        population.syn_cached + population.proxied + population.passthrough
    };
    let mut loads: [Box<dyn Load>; 4] = [
        Box::new(Visits::new()),
        Box::new(SynFlood { sources: sources(None), repeats: false, pause: Duration::ZERO }),
        Box::new(AckFlood { sources: sources(Some(100)), timestamps: true, is_tested: true }),
        Box::new(Visits::abandoned()),
    ];
    let (mut late, mut most) = (0, 0);
    while worker.now < begin + 12 * HOUR {
        for load in &mut loads {
            for _ in 0..load.batches_a_unit() {
                let side = load.fill(&mut worker);
                worker.now = worker.now + STEP;
                let before = TAKEN.get();
                worker.poll(&mut proxy, side);
                while proxy.on_timeout(worker.now, &mut worker.spares) {}
                if worker.now > begin + HOUR {
                    late += TAKEN.get() - before;
                }
                load.read(&worker);
            }
        }
        most = live(&proxy).max(most);
        assert_eq!(proxy.published_flows(), live(&proxy), "what began and has not ended is what lives");
    }
    assert_eq!(late, 0, "memory taken after the first hour");
    assert!(most <= 10 * BUCKETS as u64);
    // The longest time-out is that of an established connection.
    for _ in 0..50 * 60 {
        worker.now = worker.now + Duration::from_secs(60);
        while proxy.on_timeout(worker.now, &mut worker.spares) {}
    }
    assert_eq!((live(&proxy), proxy.published_flows(), proxy.unpublished_flows()), (0, 0, 0));
    let counters = proxy.counters();
    assert!(
        counters.happened(Event::Spliced) > 10_000 && counters.happened(Event::Expired) > 0,
        "connections came and went"
    );
}
