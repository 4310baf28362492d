//! The engine between two independent TCP stacks over bad cables, judged segment by segment.
//!
//! `SIM_SEED=n` replays one world and prints every frame; `SIM_SEEDS=n` runs the first n worlds instead of 256, `SIM_FIRST=n` begins elsewhere.
//! Other worlds: with `SIM_BRIDGE=1` a plain bridge is in the box's place; with `SIM_QUIET=1` there is no off-path attacker; with `SIM_PROVED=1` every
//! source has proved itself and passes (and with `SIM_BRIDGE=1` as well, the very same world has a cable); with `SIM_SERVICES=1` most clients of the
//! WAN reach their servers by services of the box.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tcpstate::{DropReason, Event};
use unit::world::{Failure, Mode, Report, Scenario, run, run_scenario};

/// What the engine must have done in 256 worlds.
const MUST_HAPPEN: [Event; 21] = [
    Event::SynAnswered,
    Event::SynRepeated,
    Event::CacheStored,
    Event::CacheHit,
    Event::CookieGood,
    Event::Dialled,
    Event::DialRepeated,
    Event::Spliced,
    Event::Refused,
    Event::DialTimeout,
    Event::Direct,
    Event::Expired,
    Event::Bridged,
    Event::Fragment,
    Event::IcmpTranslated,
    Event::NoSpareFrame,
    Event::Held,
    Event::Released,
    Event::AckWithheld,
    Event::ClosedPort,
    Event::Adopted,
];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// The mode of a world that is replayed.
fn mode() -> Mode {
    let is_on = |name| number(name) == Some(1);
    Mode {
        bridge: is_on("SIM_BRIDGE"),
        quiet: is_on("SIM_QUIET"),
        proved: is_on("SIM_PROVED"),
        services: is_on("SIM_SERVICES"),
        verbose: false,
    }
}

/// Runs these worlds on two threads; panics with the seeds that fail.
fn run_all(first: u64, count: u64, mode: Mode) -> Report {
    let next = AtomicU64::new(first);
    let failures: Mutex<Vec<Box<Failure>>> = Mutex::new(Vec::new());
    let total = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    match run(seed, mode) {
                        Ok(report) => total.lock().unwrap().add(&report),
                        // smoltcp alone may be too slow for a world.
                        Err(_) if mode.proved && run(seed, Mode { bridge: true, ..mode }).is_err() => {}
                        Err(failure) => failures.lock().unwrap().push(failure),
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort_by_key(|failure| failure.seed);
    for failure in failures.iter().take(40) {
        eprintln!("SIM_SEED={}: {}", failure.seed, failure.what);
    }
    let total = total.into_inner().unwrap();
    println!(
        "{count} worlds from seed {first} (bridge: {}): {} segments judged, {} connections finished, {} ended otherwise, {} stalled; in {} worlds a cookie was guessed",
        mode.bridge, total.judged, total.finished, total.others, total.stalled, total.guessed
    );
    for (event, times) in Event::ALL.iter().zip(total.events).filter(|(_, times)| *times > 0) {
        println!("{:>10} {}", times, event.label());
    }
    for (reason, times) in DropReason::ALL.iter().zip(total.drops).filter(|(_, times)| *times > 0) {
        println!("{:>10} dropped: {}", times, reason.label());
    }
    if let Some(first) = failures.first() {
        panic!(
            "{} of {count} worlds failed; replay the first with\n\
             {}{}{}{}SIM_SEED={} cargo test -p unit --test engine simulation:: -- --nocapture\n{}\n{}",
            failures.len(),
            if mode.bridge { "SIM_BRIDGE=1 " } else { "" },
            if mode.quiet { "SIM_QUIET=1 " } else { "" },
            if mode.proved { "SIM_PROVED=1 " } else { "" },
            if mode.services { "SIM_SERVICES=1 " } else { "" },
            first.seed,
            first.trace,
            first.what
        );
    }
    // A guess hits one time in 2^23 or so.
    assert!(total.guessed <= 1 + count / 2000, "cookies were guessed in {} of {count} worlds", total.guessed);
    if count >= 24 {
        assert!(total.judged > 0 && total.finished > total.others, "{total:?}");
        // smoltcp's own standstill is rare; were it not, it would hide what the box does.
        assert!(total.stalled * 100 <= total.finished, "{total:?}");
    }
    total
}

#[test]
fn every_segment_through_the_proxy_can_be_accounted_for() {
    if let Some(seed) = number("SIM_SEED") {
        let mode = Mode { verbose: true, ..mode() };
        match run(seed, mode) {
            Ok(report) => println!("SIM_SEED={seed}: {report:?}"),
            Err(failure) => panic!("SIM_SEED={seed}: {}", failure.what),
        }
        return;
    }
    let count = number("SIM_SEEDS").unwrap_or(256);
    let total = run_all(
        number("SIM_FIRST").unwrap_or(0),
        count,
        Mode { quiet: number("SIM_QUIET") == Some(1), ..Mode::default() },
    );
    if count >= 256 {
        // A world that never comes to a state does not test it.
        for event in MUST_HAPPEN {
            assert!(total.events[event as usize] > 0, "{} never happened in {count} worlds", event.label());
        }
    }
}

#[test]
fn the_oracle_finds_nothing_wrong_with_a_plain_bridge() {
    if number("SIM_SEED").is_some() {
        return;
    }
    let total = run_all(
        number("SIM_FIRST").unwrap_or(0),
        number("SIM_SEEDS").unwrap_or(24),
        Mode { bridge: true, ..Mode::default() },
    );
    assert!(total.judged > 0 && total.finished > total.others, "{total:?}");
}

/// Clients ask for a server by name, over cables that lose, repeat, reorder and damage, from any number on: every byte is what the other end has sent, and no
/// number one that its receiver cannot have.
#[test]
fn every_segment_through_a_service_can_be_accounted_for() {
    if number("SIM_SEED").is_some() {
        return;
    }
    let count = number("SIM_SEEDS").unwrap_or(192);
    let total = run_all(number("SIM_FIRST").unwrap_or(0), count, Mode { services: true, ..Mode::default() });
    let happened = |event: Event| total.events[event as usize];
    if count >= 192 {
        assert!(happened(Event::ServiceRouted) > 2 * count && happened(Event::Spliced) > 2 * count, "{total:?}");
        let rare = [Event::Gathered, Event::GatheredRepeated, Event::AnswerRepeated];
        for event in rare {
            assert!(happened(event) > 0, "{} never happened in {count} worlds", event.label());
        }
    }
}

/// The oracle takes the box for a cable: it may say nothing of its own, and change nothing. A quarter of the worlds have restarts that leave nothing of
/// any connection.
#[test]
fn a_box_that_passes_proved_sources_is_a_cable_to_them() {
    if number("SIM_SEED").is_some() {
        return;
    }
    let count = number("SIM_SEEDS").unwrap_or(128);
    let total = run_all(number("SIM_FIRST").unwrap_or(0), count, Mode { proved: true, ..Mode::default() });
    let happened = |event: Event| total.events[event as usize];
    assert_eq!([Event::SynAnswered, Event::Dialled, Event::ProvedSpent].map(happened), [0; 3]);
    // Resets of what the LAN has opened are judged, which is seldom needed: of the first worlds in 17.
    assert!(happened(Event::Challenge) <= count.div_ceil(128), "{total:?}");
    if count >= 128 {
        assert!(happened(Event::ProvedPassed) > 2 * count && happened(Event::Adopted) > 0, "{total:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_at_the_same_time() {
    let hash = |seed, bridge| {
        let mode = Mode { bridge, ..Mode::default() };
        run(seed, mode).map(|report| report.hash).map_err(|failure| failure.what)
    };
    for seed in [1, 7, 11] {
        assert_eq!(hash(seed, false), hash(seed, false), "seed {seed}");
        assert_eq!(hash(seed, true), hash(seed, true), "seed {seed}");
        assert_ne!(hash(seed, true), hash(seed, false), "seed {seed}: the proxy changes nothing");
    }
    assert_ne!(hash(1, false), hash(2, false));
}

#[test]
fn an_engine_that_passes_everything_is_a_cable_bit_by_bit() {
    let bridge = Mode { bridge: true, ..Mode::default() };
    let mut passed = 0;
    for seed in number("SIM_SEED").map_or(0..64, |seed| seed..seed + 1) {
        let run = |is_bridge| {
            run_scenario(Scenario::cable(seed, is_bridge), bridge)
                .unwrap_or_else(|failure| panic!("seed {seed}: {}\n{}", failure.trace, failure.what))
        };
        let (cable, engine) = (run(true), run(false));
        assert_eq!(
            (engine.hash, engine.judged, engine.finished),
            (cable.hash, cable.judged, cable.finished),
            "seed {seed}"
        );
        assert_eq!(engine.drops.iter().sum::<u64>(), 0, "seed {seed}");
        passed += engine.events[Event::PassedByMode as usize];
    }
    assert!(passed > 0);
}

#[test]
fn every_segment_can_be_accounted_for_while_the_mode_switches() {
    let mut total = Report::default();
    for seed in number("SIM_SEED").map_or(0..96, |seed| seed..seed + 1) {
        match run_scenario(Scenario::switching(seed), Mode::default()) {
            Ok(report) => total.add(&report),
            Err(failure) => panic!("seed {seed}: {}\n{}", failure.trace, failure.what),
        }
    }
    let happened = |event: Event| total.events[event as usize];
    if number("SIM_SEED").is_none() {
        assert!(total.finished > total.others, "{total:?}");
        assert!(happened(Event::PassedByMode) > 50 && happened(Event::CookieGood) > 50, "{total:?}");
    }
}
