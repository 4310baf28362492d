//! Nobody can keep honest clients out: whatever attackers do, no honest client waits longer than for its second retry.
//!
//! `ABUSE_SEED=n` runs one world, `ABUSE_SEEDS=n` the first n instead of a few, `ABUSE_ATTACKS=Flood,Guesses` with these attacks instead of those
//! a seed draws.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tcpstate::Event;
use unit::world::abuse::{Attack, Report, draw, run};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// The attacks of a seed.
fn attacks(seed: u64) -> Vec<Attack> {
    if let Ok(named) = std::env::var("ABUSE_ATTACKS") {
        let names: Vec<_> = named.split(',').map(str::trim).collect();
        return Attack::ALL.into_iter().filter(|attack| names.contains(&format!("{attack:?}").as_str())).collect();
    }
    draw(seed, &Attack::ALL)
}

/// Runs so many worlds on two threads; what they counted together.
fn run_all(seeds: core::ops::Range<u64>, attacks: impl Fn(u64) -> Vec<Attack> + Sync) -> Vec<Report> {
    let next = AtomicU64::new(seeds.start);
    let (reports, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    match run(seed, &attacks(seed)) {
                        Ok(report) => reports.lock().unwrap().push(report),
                        Err(what) => failures.lock().unwrap().push(what),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {} worlds:\n{}", failures.len(), seeds.end - seeds.start, failures.join("\n"));
    reports.into_inner().unwrap()
}

fn sum(reports: &[Report], event: Event) -> u64 {
    reports.iter().map(|report| report.events[event as usize]).sum()
}

#[test]
fn no_attack_keeps_an_honest_client_waiting_longer_than_for_its_second_retry() {
    if let Some(seed) = number("ABUSE_SEED") {
        println!("{:?}: {:?}", attacks(seed), run(seed, &attacks(seed)).unwrap_or_else(|what| panic!("{what}")));
        return;
    }
    let count = number("ABUSE_SEEDS").unwrap_or(24);
    let reports = run_all(0..count, attacks);
    let longest = reports.iter().map(|report| report.longest).max().unwrap_or_default();
    let repeated: u64 = reports.iter().map(|report| report.repeated).sum();
    println!(
        "{count} worlds: the longest wait was {:.2} s; {repeated} honest clients repeated their SYN",
        longest as f64 / 1e6
    );
    for event in Event::ALL {
        println!("{:>10} {}", sum(&reports, *event), event.label());
    }
    if count >= 24 && std::env::var_os("ABUSE_ATTACKS").is_none() {
        // A world in which nobody is attacked tests nothing.
        for event in [Event::CookieRemembered, Event::SecondChance, Event::CacheFull, Event::Passed, Event::HalfSeen] {
            assert!(sum(&reports, event) > 0, "{} never happened", event.label());
        }
    }
}

#[test]
fn every_attack_alone_and_all_together_are_stood() {
    for attack in Attack::ALL {
        run_all(100..102, |_| vec![attack]);
    }
    run_all(200..203, |_| Attack::ALL.to_vec());
}

#[test]
fn without_an_attack_nobody_waits() {
    let reports = run_all(300..304, |_| Vec::new());
    assert!(reports.iter().all(|report| report.repeated == 0));
}
