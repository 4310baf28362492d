//! Interfaces of several queues, and as many workers: the two directions of a connection arrive on whatever queues their senders chose,
//! and all is as with one worker; also when every frame goes through the workers' hands, were it to its own.

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use harness::{note, test};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use unit::netns::{self, Appliance, Backend, Rig, program, traffic};

const MB: u64 = 1 << 20;

/// How workers share: what is not theirs, or everything.
const STEERS: [&str; 2] = ["--steer=handoff", "--steer=everything"];

/// On rigs of two and four queues, in both ways of sharing; the workers have then shared, and lost nothing between them.
fn with_several_workers(backend: Backend, config: &str, work: impl Fn(&Rig, &str)) {
    for queues in [2, 4] {
        for steer in STEERS {
            let what = format!("{queues} queues, {steer}, {backend:?}, {config}");
            let rig = Rig::queued(queues);
            let proxy = Appliance::start_with(&rig, backend, config, &[steer]);
            work(&rig, &what);
            let report = proxy.stop();
            assert!(report.status.success(), "{what}");
            let crossed = report.crossed();
            note!("{what}: handed over, taken over: {crossed:?}");
            assert_eq!(crossed.len(), queues as usize, "{what}:\n{}", report.log.join("\n"));
            let sum = |of: usize| crossed.iter().map(|row| row[of]).sum::<u64>();
            assert!(sum(0) > 0 && sum(0) == sum(1), "{what}: {crossed:?}");
            // What one learns all others hear of, but for what was told last.
            let [told, heard, lost] = [0, 1, 2].map(|of| report.words().iter().map(|row| row[of]).sum::<u64>());
            assert!(
                told > 0 && heard > 0 && told >= heard && lost == 0,
                "{what}: {told} told, {heard} heard, {lost} lost"
            );
        }
    }
}

#[test(alone)]
fn transfers_every_way() {
    for (backend, config) in [(Backend::Driver, netns::CACHE_ON), (Backend::Packet, netns::CACHE_OFF)] {
        with_several_workers(backend, config, |rig, what| {
            for (opener, acceptor, ip) in [
                (&rig.client, &rig.server, netns::SERVER_V4),
                (&rig.client, &rig.server, netns::SERVER_V6),
                (&rig.server, &rig.client, netns::CLIENT_V4),
                (&rig.server, &rig.client, netns::CLIENT_V6),
            ] {
                let server = acceptor.serve(ip, 0, traffic::exchanged);
                rig.judge([0, 0], || {
                    for _ in 0..4 {
                        let stream = opener.connect(server.address).unwrap_or_else(|e| panic!("{what}, {ip}: {e}"));
                        traffic::exchange(&stream, 2 * MB, 2 * MB).unwrap_or_else(|e| panic!("{what}, {ip}: {e}"));
                    }
                });
            }
        });
    }
}

#[test(alone)]
fn what_fails_fails_as_it_should() {
    with_several_workers(Backend::Driver, netns::CACHE_ON, |rig, what| {
        // Pings cross, whole and in pieces.
        for ip in [netns::SERVER_V4, netns::SERVER_V6] {
            rig.client.sh(&format!("ping -n -q -c 5 -i 0.02 {ip} && ping -n -q -c 5 -i 0.02 -s 4000 {ip}"));
            // A port nobody listens at. What one worker learns the others know before the next client comes: only the first is
            // ever answered in the server's name.
            for port in 4000..4004 {
                for client in 0..8 {
                    let refused =
                        rig.client.connect(SocketAddr::new(ip, port)).and_then(|mut stream| stream.read(&mut [0]));
                    let kind = refused.expect_err("nobody listens").kind();
                    let told = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset];
                    assert!(told[..if client == 0 { 2 } else { 1 }].contains(&kind), "{what}, {ip}, {client}: {kind}");
                }
            }
        }
    });
}

/// A slow flood: on few cores a fast one takes the time of those it is aimed at.
#[test(alone)]
fn honest_clients_connect_through_a_flood() {
    with_several_workers(Backend::Driver, netns::CACHE_ON, |rig, what| {
        let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
        rig.client.sh(&format!("ping -n -q -c 2 -i 0.05 {}", netns::SERVER_V4));
        let mut flood = rig.client.command(program("synflood"));
        flood.args(["--interface", "c0", "--to", &netns::SERVER_V4.to_string(), "--to-mac", netns::SERVER_MAC]);
        flood.args(["--from-mac", "02:00:00:00:00:66", "--kind", "syn", "--seconds", "30", "--rate", "20000"]);
        let mut flood = flood.stdout(Stdio::null()).spawn().expect("starting the flood");
        thread::sleep(Duration::from_millis(300));
        for _ in 0..50 {
            let stream = rig.client.connect(server.address).unwrap_or_else(|e| panic!("{what}: {e}"));
            let answered = traffic::send(&stream, 1, 1000).and_then(|()| (&stream).read_exact(&mut [0; 1000]));
            answered.unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        assert!(flood.try_wait().expect("looking at the flood").is_none(), "it has ended before");
        signal::kill(Pid::from_raw(flood.id() as i32), Signal::SIGTERM).expect("the flood lasts");
        flood.wait().expect("waiting for the flood");
    });
}
