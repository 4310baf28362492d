//! The screens of `synctl top`, compared with those in `screens/`. `SCREENS=accept cargo test -p tools --test memory top` rewrites them:
//! review the difference, and commit it with the change.

use control::{Counts, Flows, Stats, Talker, Top};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use std::{env, fs};
use tools::top::{Action, Screen};

fn named(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// Counters of a worker after `times` seconds.
fn counts(times: u64) -> Counts {
    let port = |frames: u64, bytes: u64| {
        named(&[
            ("received", times * frames),
            ("received-bytes", times * frames * bytes),
            ("sent", times * frames / 2),
            ("sent-bytes", times * frames / 2 * bytes),
        ])
    };
    Counts {
        lan: port(120_000, 1400),
        wan: port(1_600_000, 74),
        flows: Flows { proxied: 1200, direct: 34, half_open: 5 },
        held: 6,
        events: named(&[
            ("syn-answered", times * 1_500_000),
            ("cookie-good", times * 240),
            ("cache-hit", times * 7),
            ("spliced", times * 246),
            ("refused", times),
        ]),
        drops: named(&[("bad-cookie", times * 75_000), ("rate-limited", times * 900), ("malformed", 0)]),
        losses: named(&[("receive-ring-full", times / 2)]),
        crossed: named(&[("handed-over", times * 600_000)]),
        timed_frames: times * 1_720_000,
        timed_nanoseconds: times * 1_720_000 * 97,
        ..Counts::default()
    }
}

fn talkers(of: impl Fn(u64) -> String) -> Vec<Talker> {
    let talker = |n: u64| Talker {
        name: of(n),
        frames: 40_000 / (n + 1),
        surplus: 0,
        syns: if n.is_multiple_of(2) { 2 * n } else { 900 / n },
        bytes: 3_000_000 * n,
    };
    (0..20).map(talker).collect()
}

fn answer(seconds: u64, workers: usize) -> Top {
    let workers = vec![counts(seconds); workers];
    let mut total = counts(seconds * workers.len() as u64);
    total.flows = Flows { proxied: 2400, direct: 68, half_open: 10 };
    Top {
        stats: Stats { uptime: seconds as f64, total, workers },
        period: 2.0,
        sources: talkers(
            |n| if n == 3 { "2001:db8:aaaa:bbbb:cccc:dddd:eeee:3".into() } else { format!("198.51.100.{n}") },
        ),
        targets: talkers(|n| format!("192.0.2.1:{}", 80 + n)),
    }
}

/// Compares a screen of this size with the stored one of this name.
#[track_caller]
fn shows(name: &str, screen: &Screen, (width, height): (u16, u16)) {
    let text = screen.text(width, height);
    assert!(text.lines().all(|line| line.chars().count() <= width.into()) && text.lines().count() <= height.into());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/memory/screens/{name}.txt"));
    if env::var_os("SCREENS").is_some_and(|word| word == "accept") {
        fs::write(&path, &text).expect("the repository is writable");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(text == kept, "{name} differs from the stored screen; now it is:\n{text}");
}

fn after_ten_seconds(workers: usize) -> Screen {
    let mut screen = Screen::default();
    screen.update(answer(10, workers));
    screen.update(answer(12, workers));
    screen
}

#[test]
fn one_worker_on_a_small_screen() {
    shows("one-worker-80x24", &after_ten_seconds(1), (80, 24));
}

#[test]
fn two_workers_on_a_small_screen() {
    shows("two-workers-80x24", &after_ten_seconds(2), (80, 24));
}

#[test]
fn a_large_screen_has_all_talkers() {
    shows("two-workers-132x50", &after_ten_seconds(2), (132, 50));
}

#[test]
fn totals_by_syns() {
    let mut screen = after_ten_seconds(1);
    assert_eq!([screen.press('t'), screen.press('s')], [Action::Redraw; 2]);
    shows("totals-by-syns-80x24", &screen, (80, 24));
}

#[test]
fn before_the_second_reply_there_are_no_rates() {
    let mut screen = Screen::default();
    screen.update(answer(10, 1));
    shows("first-80x24", &screen, (80, 24));
}

#[test]
fn a_frozen_screen_does_not_change_until_it_is_unfrozen() {
    let mut screen = after_ten_seconds(1);
    let _ = screen.press('p');
    let frozen = screen.text(80, 24);
    screen.update(answer(100, 1));
    assert_eq!(screen.text(80, 24), frozen);
    assert!(frozen.contains("FROZEN"));
    let _ = screen.press(' ');
    screen.update(answer(101, 1));
    assert!(screen.text(80, 24).contains("up 1 min 41 s"));
}

#[test]
fn long_names_and_large_numbers_fit() {
    let mut screen = Screen::default();
    for seconds in [400_000, 400_001] {
        let mut top = answer(seconds, 1);
        top.stats.total.flows = Flows { proxied: 12_345_678, direct: 12_345_678, half_open: 12_345_678 };
        for n in 0..4 {
            top.sources[n].name = format!("2001:db8:aaaa:bbbb:cccc:dddd:eeee:{:x}", 0xfff0 + n);
            top.targets[n].name = format!("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:{:x}]:{}", 0xfff0 + n, 50_000 + n);
            top.sources[n].frames *= 4000;
            top.sources[n].syns *= 4000;
            top.sources[n].bytes *= 4000;
        }
        screen.update(top);
    }
    shows("long-80x24", &screen, (80, 24));
    shows("long-132x50", &screen, (132, 50));
}

#[test]
fn a_late_reply_is_reported() {
    let mut screen = after_ten_seconds(1);
    assert!(!screen.wait(Duration::from_millis(1999)));
    assert!(screen.wait(Duration::from_millis(2000)) && !screen.wait(Duration::from_millis(2900)));
    assert!(screen.text(80, 24).lines().next().is_some_and(|title| title.contains("NO ANSWER FOR 2 s")));
    screen.update(answer(14, 1));
    assert!(!screen.text(80, 24).contains("NO ANSWER"));
}

#[test]
fn q_quits_and_unknown_keys_do_nothing() {
    let mut screen = after_ten_seconds(1);
    let before = screen.text(80, 24);
    assert_eq!(screen.press('x'), Action::Redraw);
    assert_eq!(screen.text(80, 24), before);
    assert_eq!(screen.press('q'), Action::Quit);
}

#[test]
fn a_screen_of_any_size_is_drawn() {
    for (width, height) in [(1, 1), (10, 3), (79, 10), (300, 2)] {
        for workers in [1, 64] {
            let _ = after_ten_seconds(workers).text(width, height);
        }
    }
}
