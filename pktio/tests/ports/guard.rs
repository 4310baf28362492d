//! What the guard changes on the interfaces, and that all of it is put back.
//!
//! Alone: a process that another test is about to start has, for a moment, what this one has opened, and keeps it open.

use std::collections::BTreeSet;
use std::io::Write;
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
fn an_interface_is_a_port_of_one_box_only() {
    let world = World::new(Links::default());
    for first_port in ["", "packet:"] {
        let names = ["lan", "wan"].map(|name| format!("{first_port}{name}").leak() as &'static str);
        let first = try_open(&world, names[0], names[1], Options::default()).unwrap();
        for (lan, wan) in [("lan", "wan"), ("wan", "lan"), ("packet:lan", "packet:wan"), ("xdp:lan", "xdp:wan")] {
            let error = try_open(&world, lan, wan, Options::default()).unwrap_err();
            assert!(matches!(error, OpenError::Busy { .. }), "{error}");
            let error = error.to_string();
            let holder =
                format!("belongs to the box between {} and {}, process {}", names[0], names[1], std::process::id());
            assert!(error.contains(&holder), "{error}");
        }
        let alone = world.within("box", || pktio::open_alone("packet:wan", &Options::default()).map(drop));
        assert!(alone.join().unwrap().is_err());
        drop(first);
    }
    // What has failed holds nothing.
    assert!(try_open(&world, "lan", "wan", Options { workers: 64, ..Options::default() }).is_err());
    drop(try_open(&world, "lan", "wan", Options::default()).unwrap());
}

#[test(alone)]
fn what_is_no_cable_of_its_own_is_refused_with_the_reason() {
    let world = World::new(Links::default());
    let before = settings(&world);
    let refused = |lan, wan, options: Options| match try_open(&world, lan, wan, options) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{lan} and {wan} were opened"),
    };
    let forced = || Options { force: true, ..Options::default() };
    world.run("box", "ip link add bridge0 type bridge");
    world.run("box", "ip link set wan master bridge0");
    for ports in [("lan", "wan"), ("packet:wan", "packet:lan"), ("xdp:lan", "xdp:wan")] {
        let said = refused(ports.0, ports.1, forced());
        assert!(said.starts_with("wan is a member of bridge0 (bridge)"), "{said}");
    }
    world.run("box", "ip link del bridge0");
    world.run("box", "ip link add one type veth peer name other");
    world.run("box", "ip link set one up");
    world.run("box", "ip link set other up");
    let said = refused("packet:one", "packet:other", forced());
    assert!(said.starts_with("one and other are the two ends of one veth pair"), "{said}");
    world.run("box", "ip link add link lan name upper type macvlan");
    world.run("box", "ip link set upper up");
    let said = refused("packet:lan", "packet:upper", forced());
    assert!(said.starts_with("upper lies on lan"), "{said}");
    world.run("box", "ip link del upper");
    world.run("box", "ip link del one");
    assert_eq!(before, settings(&world));
}

#[test(alone)]
fn what_the_machine_itself_is_reached_by_is_no_port_unless_forced() {
    let world = World::new(Links::default());
    let refused = |what: &str| {
        let said = try_open(&world, "lan", "wan", Options::default()).map(drop).unwrap_err().to_string();
        assert!(said.contains(what) && said.contains("--force"), "{said}");
        drop(try_open(&world, "lan", "wan", Options { force: true, ..Options::default() }).unwrap());
    };
    world.run("box", "ip link set lo up");
    world.run("box", "ip addr add 10.9.0.9/24 dev wan");
    drop(try_open(&world, "lan", "wan", Options::default()).unwrap());
    for (add, del) in [
        ("ip route add default via 10.9.0.2", "ip route del default"),
        ("ip route add default table 77 dev wan", "ip route del default table 77"),
        ("ip route add default nexthop dev wan nexthop dev lo", "ip route del default"),
    ] {
        world.run("box", add);
        refused("wan carries the default route of this machine");
        world.run("box", del);
    }
    // Somebody is logged in from the host at the WAN: to an address of the port, or to another one of this machine.
    world.run("box", "ip addr add 10.8.0.1/32 dev lo");
    world.run("wan", "ip route add 10.8.0.1 via 10.9.0.9");
    for address in ["10.9.0.9:22", "10.8.0.1:22"] {
        let listener = world.within("box", move || std::net::TcpListener::bind(address).unwrap()).join().unwrap();
        let session = world.within("wan", move || std::net::TcpStream::connect(address).unwrap()).join().unwrap();
        let accepted = listener.accept().unwrap();
        refused("wan carries a connection of this machine with 10.9.0.2");
        drop((session, accepted, listener));
    }
}

#[test(alone)]
fn an_alternative_name_is_a_name() {
    let world = World::new(Links::default());
    world.run("box", "ip link property add dev lan altname the-port-toward-the-servers-of-the-house");
    world.run("box", "ip link property add dev wan altname uplink");
    for prefix in ["", "packet:"] {
        let names = ["the-port-toward-the-servers-of-the-house", "uplink"];
        let [lan, wan] = names.map(|name| format!("{prefix}{name}").leak() as &'static str);
        let opened = try_open(&world, lan, wan, Options::default()).unwrap();
        assert!(opened.notes.iter().any(|note| note.starts_with("lan: ")), "{:?}", opened.notes);
    }
    let error = try_open(&world, "lan", "the-port-toward-the-servers-of-the-house", Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "both ports are lan; a bridge needs two interfaces");
}

#[test(alone)]
fn what_somebody_changes_meanwhile_is_set_back() {
    let world = World::new(Links { queues: 2, ..Links::default() });
    for host in ["lan", "wan"] {
        world.run(host, "ethtool -L e0 rx 1 tx 1");
    }
    let before = settings(&world);
    for name in ["lan", "packet:lan"] {
        let other = if name == "lan" { "wan" } else { "packet:wan" };
        let mut opened = try_open(&world, name, other, Options::default()).unwrap();
        assert_eq!(opened.guard.check_settings(), []);
        world.run("box", "ethtool -L lan rx 2 tx 2");
        let changed = opened.guard.check_settings();
        assert!(changed.len() == 1 && changed[0].is_set_back && changed[0].what.contains("from 1 to 2"), "{changed:?}");
        world.run("box", "ethtool -K wan gro on tso on");
        let changed = opened.guard.check_settings();
        assert!(changed.len() == 1 && changed[0].is_set_back && changed[0].what.contains("rx-gro"), "{changed:?}");
        assert_eq!(opened.guard.check_settings(), []);
        drop(opened);
        // GRO was off before, and is off; segmentation was on, and is on.
        let after = settings(&world);
        assert_eq!(before, after, "{:#?}", before.symmetric_difference(&after).collect::<Vec<_>>());
    }
}

#[test(alone)]
fn what_comes_on_a_queue_without_a_worker_is_counted() {
    // A tap has as many queues as are open.
    let world = World::new(Links::default());
    let first = world.open_tap("tap0", libc::IFF_MULTI_QUEUE);
    world.run("box", "ip link set tap0 up");
    let opened = try_open(&world, "tap0", "wan", Options::default()).unwrap();
    assert_eq!((opened.pairs.len(), opened.guard.unclaimed()), (1, 0));
    let mut queues = [first, world.open_tap("tap0", libc::IFF_MULTI_QUEUE)];
    for n in 0..10 {
        queues[n % 2].write_all(&[0xff; 60]).unwrap();
    }
    let pair = &opened.pairs[0];
    let counted = || [&pair.lan, &pair.wan].map(|port| port.statistics().unserved);
    let end = Instant::now() + Duration::from_secs(10);
    while counted()[0] < 5 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((counted(), opened.guard.unclaimed()), ([5, 0], 5));
}

#[test(alone)]
fn a_port_that_was_taken_down_is_up_again_at_the_end() {
    let world = World::new(Links::default());
    let is_up = || world.run("box", "ip link show wan").contains(",UP");
    let mut opened = try_open(&world, "lan", "wan", Options::default()).unwrap();
    let index = world.within("box", || pktio::netdev::Interface::find("wan").unwrap().index()).join().unwrap();
    opened.guard.set_up(index, false).unwrap();
    assert!(!is_up());
    opened.guard.set_up(index, true).unwrap();
    assert!(is_up());
    opened.guard.set_up(index, false).unwrap();
    assert_eq!(opened.guard.set_up(index + 1000, false).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    drop(opened);
    assert!(is_up());
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
