//! What the appliance does to its interfaces, it undoes: after every signal that ends it and after a start that failed, they are as
//! they were.

use std::time::Duration;

use harness::test;
use nix::sys::signal::Signal;
use unit::netns::{Appliance, Backend, CACHE_ON, Rig, program};

/// Everything about the box's two interfaces that start-up may change.
fn settings(rig: &Rig) -> String {
    [Rig::LAN, Rig::WAN]
        .map(|interface| {
            rig.middle.sh(&format!(
                "ip -d link show dev {interface}; ethtool -k {interface}; ethtool -l {interface} 2>&1 || true;
                 ethtool -a {interface} 2>&1 || true"
            ))
        })
        .concat()
}

fn promiscuous(rig: &Rig, interface: &str) -> bool {
    let flags = rig.middle.sh(&format!("ip -d link show dev {interface}"));
    !flags.contains("promiscuity 0 ")
}

#[test]
fn signals_end_it_and_the_interfaces_are_as_before() {
    for backend in Backend::ALL {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let rig = Rig::new();
            let before = settings(&rig);
            let proxy = Appliance::start(&rig, backend, CACHE_ON);
            assert!(promiscuous(&rig, Rig::LAN) && promiscuous(&rig, Rig::WAN), "{backend:?}: hears only its own");
            let report = proxy.end(signal);
            assert!(report.status.success(), "{backend:?}, {signal}: {}\n{}", report.status, report.log.join("\n"));
            assert!(report.took < Duration::from_secs(3), "{backend:?}, {signal}: {:?} to end", report.took);
            assert_eq!(settings(&rig), before, "{backend:?}, {signal}");
        }
    }
}

#[test]
fn sighup_does_not_end_it() {
    let rig = Rig::new();
    let proxy = Appliance::start(&rig, Backend::Packet, CACHE_ON);
    for _ in 0..5 {
        proxy.signal(Signal::SIGHUP);
        std::thread::sleep(Duration::from_millis(20));
    }
    let report = proxy.stop();
    assert!(report.status.success(), "{}", report.log.join("\n"));
    assert!(report.log.iter().any(|line| line.contains("reloaded ")), "{}", report.log.join("\n"));
    // Without a file there is nothing to read again, and nothing ends either.
    let proxy = Appliance::start(&rig, Backend::Packet, "");
    proxy.signal(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(300));
    let report = proxy.stop();
    let log = report.log.join("\n");
    assert!(report.status.success() && log.contains("started without --config"), "{log}");
}

#[test]
fn it_can_be_started_again_at_once() {
    for backend in Backend::ALL {
        let rig = Rig::new();
        for _ in 0..3 {
            let report = Appliance::start(&rig, backend, CACHE_ON).stop();
            assert!(report.status.success(), "{backend:?}: {}\n{}", report.status, report.log.join("\n"));
        }
    }
}

#[test]
fn a_start_that_fails_says_why_in_one_line_and_changes_nothing() {
    let rig = Rig::new();
    rig.middle.sh("ip link add down0 type veth peer name down1");
    let before = settings(&rig);
    let cases: [(&[&str], i32, &str); 5] = [
        (&[Rig::LAN, "nowhere0"], 4, "nowhere0"),
        (&["nowhere0", Rig::WAN], 4, "nowhere0"),
        (&[Rig::LAN, Rig::LAN], 4, Rig::LAN),
        (&[Rig::LAN, "down0"], 4, "down0"),
        (&["--config", "/nowhere/conf.txt", Rig::LAN, Rig::WAN], 3, "/nowhere/conf.txt"),
    ];
    for (arguments, code, names) in cases {
        let output = rig
            .middle
            .command("timeout")
            .arg("10")
            .arg(program("synproxy"))
            .arg("--state-dir=none")
            .args(arguments)
            .output()
            .expect("starting");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(names), "{arguments:?}: {said}");
        // Log lines begin with the year.
        let complaints: Vec<&str> = said.lines().filter(|line| !line.starts_with("20") && !line.is_empty()).collect();
        assert_eq!(complaints.len(), 1, "{arguments:?}: {said}");
        assert_eq!(settings(&rig), before, "{arguments:?}");
    }
}

#[test]
fn without_privilege_it_says_so() {
    let rig = Rig::new();
    let before = settings(&rig);
    let mut command = rig.middle.command("timeout");
    // Root by name only.
    command.args(["10", "setpriv", "--inh-caps=-all", "--bounding-set=-all", "--"]);
    command.arg(program("synproxy")).args(["--state-dir=none", Rig::LAN, Rig::WAN]);
    let output = command.output().expect("starting");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("CAP_NET"), "{said}");
    assert_eq!(settings(&rig), before);
}
