//! The differential matrix in full: every combination of the two ends' options, on every kind of network, with the
//! box proxying, by cookies alone and from the SYN cache, and with a bridge in its place; what the hosts saw must be the
//! same, but for a short list.
//!
//! The network is the simulated one, without faults (`unit::world`); real kernels run a covering part of it in `e2e/matrix.rs`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tcpstate::Side;
use unit::oracle::layers::Tags;
use unit::world::{Cell, End, Mode, Scenario, View, observe};

const NETWORKS: [Tags; 3] =
    [[None; 2], [Some((0x8100, 0x6064)), None], [Some((0x88a8, 0x0007)), Some((0x8100, 0x2ffe))]];

/// What may differ, and why; nothing else may.
struct Difference {
    /// The end that sees it.
    at: Side,
    /// The field of [`View::fields`].
    field: &'static str,
    /// In which cells.
    when: fn(&Cell) -> bool,
    /// Why it cannot be otherwise.
    why: &'static str,
}

const DIFFERENCES: &[Difference] = &[
    Difference {
        at: Side::Wan,
        field: "first window",
        when: |_| true,
        why: "the SYN-ACK's window is shut: nothing may come before the server has answered",
    },
    Difference {
        at: Side::Wan,
        field: "scale",
        when: |cell| cell.client.scale && cell.server.scale && has_bare_cookie(cell),
        why: "without timestamps a cookie does not carry the promised scale, which is therefore a constant",
    },
    Difference {
        at: Side::Lan,
        field: "mss",
        when: has_bare_cookie,
        why: "a cookie without timestamps rounds the client's MSS down to an entry of its table",
    },
    Difference {
        at: Side::Wan,
        field: "largest",
        when: has_bare_cookie,
        why: "for the same reason the server's segments are a little smaller",
    },
    Difference {
        at: Side::Lan,
        field: "sack",
        when: |cell| cell.client.sack && !cell.server.sack,
        why: "the server is not offered what it is known to refuse",
    },
    Difference {
        at: Side::Lan,
        field: "stamps",
        when: |cell| cell.client.stamps && !cell.server.stamps,
        why: "the server is not offered what it is known to refuse",
    },
    Difference {
        at: Side::Lan,
        field: "scale",
        when: |cell| cell.client.scale && !cell.server.scale,
        why: "the server is not offered what it is known to refuse",
    },
    Difference {
        at: Side::Lan,
        field: "ecn",
        when: |cell| cell.client.ecn && has_bare_cookie(cell),
        why: "a cookie without timestamps has no room for ECN",
    },
    Difference {
        at: Side::Wan,
        field: "ecn",
        when: |cell| cell.client.ecn && cell.server.ecn && has_bare_cookie(cell),
        why: "a cookie without timestamps has no room for ECN",
    },
    Difference {
        at: Side::Lan,
        field: "capable",
        when: |cell| cell.client.ecn && cell.server.ecn && has_bare_cookie(cell),
        why: "a cookie without timestamps has no room for ECN",
    },
    Difference {
        at: Side::Wan,
        field: "capable",
        when: |cell| cell.client.ecn && cell.server.ecn && has_bare_cookie(cell),
        why: "a cookie without timestamps has no room for ECN",
    },
];

/// Whether all that is known of the client when it answers is a cookie without timestamps.
fn has_bare_cookie(cell: &Cell) -> bool {
    !(cell.cache || cell.client.stamps && cell.server.stamps)
}

fn cells() -> Vec<Cell> {
    let end =
        |bits: usize| End { stamps: bits & 1 != 0, sack: bits & 2 != 0, scale: bits & 4 != 0, ecn: bits & 8 != 0 };
    let mut cells = Vec::new();
    for bits in 0..256 {
        for v6 in [false, true] {
            for mtu in [1280, 1500, 9000] {
                for tags in NETWORKS {
                    cells.push(Cell { client: end(bits & 15), server: end(bits >> 4), v6, mtu, tags, cache: false });
                }
            }
        }
    }
    cells
}

/// What the two hosts of a cell have seen, by side: the LAN's first.
fn views(cell: &Cell, bridge: bool) -> [View; 2] {
    let mode = Mode { bridge, quiet: true, ..Mode::default() };
    let views = observe(Scenario::quiet(cell, bridge), mode)
        .unwrap_or_else(|failure| panic!("{cell:?}, bridge {bridge}: {}\n{}", failure.what, failure.trace));
    let find = |client: bool| {
        let judged =
            views.iter().find(|((local, remote), _)| (if client { local } else { remote }).port() == Scenario::JUDGED);
        judged.expect("both ends have seen something").1.clone()
    };
    [find(false), find(true)]
}

/// The fields in which a cell's two runs differ without being on the list, and the entries of the list that were needed.
fn compare(cell: &Cell) -> (Vec<String>, Vec<usize>) {
    let bridged = views(cell, true);
    let (mut wrong, mut needed) = (Vec::new(), Vec::new());
    for cache in [false, true] {
        let cell = &Cell { cache, ..*cell };
        let proxied = views(cell, false);
        for side in Side::BOTH {
            let pairs = proxied[side as usize].fields().into_iter().zip(bridged[side as usize].fields());
            for ((field, proxied), (_, bridged)) in pairs.filter(|(one, other)| one != other) {
                let excused = |entry: &Difference| entry.at == side && entry.field == field && (entry.when)(cell);
                match DIFFERENCES.iter().position(excused) {
                    Some(entry) => needed.push(entry),
                    None => wrong.push(format!("{cell:?}: {side:?} {field}: proxied {proxied}, bridged {bridged}")),
                }
            }
        }
    }
    (wrong, needed)
}

#[test]
fn a_proxied_connection_is_a_bridged_one_but_for_a_short_list() {
    let cells = cells();
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    let needed = Mutex::new(vec![0usize; DIFFERENCES.len()]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (differ, used) = compare(cell);
                    wrong.lock().unwrap().extend(differ);
                    let mut needed = needed.lock().unwrap();
                    used.into_iter().for_each(|entry| needed[entry] += 1);
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().unwrap();
    wrong.sort();
    assert!(wrong.is_empty(), "{} fields differ:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
    let needed = needed.into_inner().unwrap();
    for (entry, count) in DIFFERENCES.iter().zip(&needed) {
        println!("{count:>6} cells: {:?} {}: {}", entry.at, entry.field, entry.why);
    }
    println!("{} cells, each proxied twice and bridged", cells.len());
    for (entry, count) in DIFFERENCES.iter().zip(needed) {
        assert!(count > 0, "nothing differs any more because {}: take it off the list", entry.why);
    }
}
