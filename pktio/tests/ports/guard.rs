//! What the guard changes on the interfaces, and that all of it is put back.
//!
//! Alone: a process that another test is about to start has, for a moment, what this one has opened, and keeps it open.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::world::{Links, World, lines};
use harness::test;
use pktio::{Mode, OpenError, Opened, Options, open};

/// Everything that can be seen of the settings of both ports.
fn settings(world: &World) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for port in ["lan", "wan"] {
        let mut seen = world.run("box", &format!("ethtool -k {port}"));
        seen += &world.run("box", &format!("ethtool -l {port}"));
        seen += &world.run("box", &format!("ip -d -o link show {port}"));
        all.extend(lines(&seen).into_iter().map(|line| format!("{port} {line}")));
    }
    all
}

fn try_open(world: &World, lan: &'static str, wan: &'static str, options: Options) -> Result<Opened, OpenError> {
    world.within("box", move || open(lan, wan, &options)).join().unwrap()
}

#[test(alone)]
fn everything_is_put_back() {
    let world = World::new(Links { queues: 2, ..Links::default() });
    world.run("box", "ethtool -K lan gro on");
    // The hosts get by with one queue, so that the box may have fewer than it has now.
    for host in ["lan", "wan"] {
        world.run(host, "ethtool -L e0 rx 1 tx 1");
    }
    let before = settings(&world);
    for mode in [Mode::Driver, Mode::Generic] {
        let opened = try_open(&world, "lan", "wan", Options { mode, ..Options::default() }).unwrap();
        let during = settings(&world);
        for expected in ["lan generic-receive-offload: off", "lan rx-vlan-offload: off", "lan RX:\t\t1", "wan TX:\t\t1"]
        {
            // In driver mode a veth switches receive merging on for the program's sake.
            if mode == Mode::Generic || !expected.contains("generic-receive") {
                assert!(during.contains(expected), "{mode:?}: {expected:?} is not in {during:#?}");
            }
        }
        assert!(during.iter().any(|line| line.contains("promiscuity 1")), "{during:#?}");
        assert!(during.iter().any(|line| line.contains("xdp")), "{during:#?}");
        drop(opened);
        let after = settings(&world);
        assert_eq!(before, after, "{mode:?}: {:#?}", before.symmetric_difference(&after).collect::<Vec<_>>());
    }
}

#[test(alone)]
fn everything_is_put_back_after_a_start_that_failed() {
    let world = World::new(Links::default());
    let before = settings(&world);
    let failures = [
        try_open(&world, "lan", "wan", Options { workers: 64, ..Options::default() }),
        try_open(&world, "lan", "wan", Options { mode: Mode::ZeroCopy, ..Options::default() }),
    ];
    for failure in failures {
        let error = failure.unwrap_err();
        assert!(matches!(error, OpenError::Unsupported { .. }), "{error}");
    }
    assert_eq!(before, settings(&world));
}

#[test(alone)]
fn a_link_that_comes_up_late_is_waited_for() {
    let world = World::new(Links::default());
    world.run("wan", "ip link set e0 down");
    let begin = Instant::now();
    let opening = world.within("box", || open("lan", "wan", &Options::default()));
    std::thread::sleep(Duration::from_millis(1200));
    assert!(!opening.is_finished(), "nobody waited for the link");
    world.run("wan", "ip link set e0 up");
    let opened = opening.join().unwrap().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(8));
    assert!(!opened.notes.iter().any(|note| note.contains("no link")), "{:?}", opened.notes);
}

#[test(alone)]
fn an_error_names_the_interface_and_the_remedy() {
    let world = World::new(Links::default());
    let said = |lan, wan| try_open(&world, lan, wan, Options::default()).unwrap_err().to_string();
    assert_eq!(said("lan", "lan"), "both ports are lan; a bridge needs two interfaces");
    assert_eq!(
        said("xdp:lan", "packet:lan"),
        "AF_XDP and AF_PACKET cannot share their frames; name the same backend for both ports"
    );
    assert_eq!(said("lan", "nowhere"), "there is no interface \"nowhere\"; `ip link` lists those there are");
    world.run("box", "ip link set wan down");
    assert_eq!(said("lan", "wan"), "wan is down; bring it up with `ip link set dev wan up`");
}

#[test(alone)]
fn another_program_on_the_interface_is_named() {
    let world = World::new(Links::default());
    let first = try_open(&world, "lan", "wan", Options::default()).unwrap();
    let error = try_open(&world, "lan", "wan", Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Busy { .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains("another XDP program is attached to lan"), "{error}");
    drop(first);
}

#[test(alone)]
fn without_the_right_to_it_the_error_says_which_rights_are_needed() {
    let world = World::new(Links::default());
    let denied = world.within("box", || {
        // SAFETY: capabilities are per thread; this thread gives up the effective ones by changing its user, and ends. The
        // raw call is what keeps the other threads as they are.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
        open("lan", "wan", &Options::default()).map(drop)
    });
    let error = denied.join().unwrap().unwrap_err();
    assert!(matches!(error, OpenError::Permission { .. }), "{error}");
    assert!(error.to_string().contains("CAP_NET_RAW"), "{error}");
}
