//! The first thing one tries: ping both ways, and text typed into `nc` at each end coming out at the other. On every
//! backend.

use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use harness::test;
use unit::netns::{self, Appliance, Backend, Namespace, Rig};

fn ping(from: &Namespace, to: IpAddr) {
    let output = from.sh(&format!("ping -n -q -c 20 -i 0.02 -W 2 {to}"));
    assert!(output.contains(" 0% packet loss"), "{output}");
}

/// `nc` with a keyboard and a screen.
struct Nc {
    child: Child,
    screen: BufReader<std::process::ChildStdout>,
}

impl Nc {
    fn start(namespace: &Namespace, arguments: &str) -> Nc {
        let mut command = namespace.command("nc");
        command.args(arguments.split(' ')).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("starting nc");
        let screen = BufReader::new(child.stdout.take().expect("piped"));
        Nc { child, screen }
    }

    fn types(&mut self, line: &str) {
        let keyboard = self.child.stdin.as_mut().expect("piped");
        writeln!(keyboard, "{line}").and_then(|()| keyboard.flush()).expect("typing");
    }

    fn shows(&mut self, line: &str) {
        let mut shown = String::new();
        self.screen.read_line(&mut shown).expect("reading the screen");
        assert_eq!(shown.trim_end(), line);
    }
}

impl Drop for Nc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for_listener(namespace: &Namespace, port: u16) {
    let start = Instant::now();
    let pattern = format!(":{port:04X} ");
    loop {
        let listening = namespace.run(|| {
            ["tcp", "tcp6"].iter().any(|table| {
                let table = std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
                // State 0A is LISTEN.
                table.lines().any(|line| line.contains(&pattern) && line.contains(" 0A "))
            })
        });
        if listening {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "nobody listens on port {port}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn typed_text_comes_out_at_the_other_end(listens: (&Namespace, IpAddr), connects: &Namespace) {
    let (namespace, ip) = listens;
    let mut there = Nc::start(namespace, &format!("-l {ip} 1234"));
    wait_for_listener(namespace, 1234);
    let mut here = Nc::start(connects, &format!("{ip} 1234"));
    here.types("text typed by the one who connected");
    there.shows("text typed by the one who connected");
    there.types("text typed by the one who listened");
    here.shows("text typed by the one who listened");
    here.types("and again");
    there.shows("and again");
}

fn first_steps(backend: Backend) {
    let rig = Rig::new();
    let proxy = Appliance::start(&rig, backend, netns::CACHE_ON);
    for (client, server) in [(netns::CLIENT_V4, netns::SERVER_V4), (netns::CLIENT_V6, netns::SERVER_V6)] {
        ping(&rig.client, server);
        ping(&rig.server, client);
        rig.judge([0, 0], || {
            typed_text_comes_out_at_the_other_end((&rig.server, server), &rig.client);
            typed_text_comes_out_at_the_other_end((&rig.client, client), &rig.server);
        });
    }
    assert!(proxy.stop().status.success());
}

#[test]
fn ping_and_nc_work_both_ways_in_driver_mode() {
    first_steps(Backend::Driver);
}

#[test]
fn ping_and_nc_work_both_ways_in_generic_mode() {
    first_steps(Backend::Generic);
}

#[test]
fn ping_and_nc_work_both_ways_on_af_packet() {
    first_steps(Backend::Packet);
}
