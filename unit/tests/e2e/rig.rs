//! The rig itself, with the kernel's own bridge in the middle: what the other end-to-end tests assert must hold on a
//! plain wire, and must not hold when somebody breaks the wire.

use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use harness::{note, test};
use unit::netns::{self, Rig, traffic};

#[test]
fn on_a_plain_wire_every_byte_arrives_and_no_kernel_complains() {
    let rig = Rig::new();
    rig.bridge();
    for ip in [netns::SERVER_V4, netns::SERVER_V6] {
        let server = rig.server.serve(ip, 0, traffic::exchanged);
        let speeds = rig.judge([0, 0], || {
            let stream = rig.client.connect(server.address).expect("connecting over a plain wire");
            traffic::exchange(&stream, 32 << 20, 32 << 20).expect("bulk over a plain wire")
        });
        note!("{ip}: up {:.0} Mbit/s, down {:.0} Mbit/s", speeds[0], speeds[1]);
    }
}

#[test]
fn a_reset_nobody_expected_is_noticed() {
    let rig = Rig::new();
    rig.bridge();
    let closed = SocketAddr::new(netns::SERVER_V4, 9);
    let refused = || assert!(rig.client.connect(closed).is_err());
    rig.judge([0, 1], refused);
    catch_unwind(AssertUnwindSafe(|| rig.judge([0, 0], refused))).expect_err("one reset more than allowed");
}

#[test]
fn nothing_is_left_of_a_rig() {
    let rig = Rig::new();
    let names = [&rig.client, &rig.server, &rig.middle].map(|namespace| namespace.name().to_owned());
    let there = |name: &String| std::path::Path::new("/run/netns").join(name).exists();
    assert!(names.iter().all(there));
    drop(rig);
    assert!(!names.iter().any(there));
}

#[test]
fn hosts_that_are_not_there_stay_silent() {
    let rig = Rig::new();
    rig.bridge();
    for nobody in [netns::NOBODY_V4, netns::NOBODY_V6] {
        let silent = |ip: IpAddr| {
            let address = SocketAddr::new(ip, 80);
            rig.client.run(|| std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(300)))
        };
        assert_eq!(silent(nobody).unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    }
}
