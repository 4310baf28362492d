//! HAProxy's health checks, which reset what a SYN-ACK opens without having acknowledged it, follow their servers.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use harness::{leftovers, note, test};
use unit::netns::{self, CACHE_OFF, CACHE_ON, Rig};

use crate::rig::{BARRED, Listening, Running, bar, needs, unbar};

/// The interval of the checks, and how long one waits for an answer.
const INTERVAL: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_millis(800);
/// Within this time a check must have seen that its server has changed: two intervals, the last of which may end in silence; and a moment of a busy
/// machine.
const FOLLOWS: Duration = Duration::from_millis(2 * 2000 + 800 + 1000);

/// The port that nobody listens at any more.
const CLOSED: u16 = 8002;

struct Balancer {
    _running: Running,
    files: [PathBuf; 2],
}

impl Balancer {
    fn start(rig: &Rig) -> Balancer {
        let [config, socket] = ["cfg", "sock"].map(leftovers::file);
        let mut text = format!(
            "global\n  stats socket {} mode 600\ndefaults\n  mode tcp\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n  timeout check {}ms\nbackend servers\n  default-server check inter {}ms fall 1 rise 1\n",
            socket.display(),
            PATIENCE.as_millis(),
            INTERVAL.as_millis(),
        );
        for (family, ip) in [("four", netns::SERVER_V4), ("six", netns::SERVER_V6)] {
            for port in ports() {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "  server {family}-{port} {}", std::net::SocketAddr::new(ip, port));
            }
        }
        fs::write(&config, text).expect("writing a configuration");
        let mut command = rig.client.command("haproxy");
        command.arg("-db").arg("-f").arg(&config);
        Balancer { _running: Running::start(command), files: [config, socket] }
    }

    /// Whether each server is up, by its name.
    fn servers(&self) -> Vec<(String, bool)> {
        let mut said = String::new();
        let asked = UnixStream::connect(&self.files[1]).and_then(|mut socket| {
            socket.write_all(b"show stat\n")?;
            socket.read_to_string(&mut said)
        });
        if asked.is_err() {
            // It has not begun yet.
            return Vec::new();
        }
        let rows = said.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let servers = rows.filter(|row| row.len() > 17 && (row[1].starts_with("four-") || row[1].starts_with("six-")));
        servers.map(|row| (row[1].to_owned(), row[17].starts_with("UP"))).collect()
    }

    /// Waits until all servers are up, or all are down.
    #[track_caller]
    fn follows(&self, up: bool, within: Duration, what: &str) {
        let start = Instant::now();
        loop {
            let servers = self.servers();
            if servers.len() == 2 * ports().count() && servers.iter().all(|(_, is_up)| *is_up == up) {
                note!("{what}: after {:?}", start.elapsed());
                return;
            }
            assert!(start.elapsed() < within, "{what}: after {within:?} {servers:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

fn ports() -> impl Iterator<Item = u16> {
    [CLOSED].into_iter().chain(BARRED.map(|(port, _)| port))
}

fn follow(middle: Option<&str>) {
    let rig = Rig::new();
    let _proxy = netns::stand(&rig, middle);
    let ips = [netns::SERVER_V4, netns::SERVER_V6];
    let listen = |ports: &[u16]| -> Vec<_> {
        let ends = ips.iter().flat_map(|&ip| ports.iter().map(move |&port| (ip, port)));
        ends.map(|(ip, port)| Listening::start(&rig.server, ip, port)).collect()
    };
    let _others = listen(&BARRED.map(|(port, _)| port));
    let mut listening = listen(&[CLOSED]);
    let balancer = Balancer::start(&rig);
    balancer.follows(true, Duration::from_secs(10), &format!("{middle:?}: all servers are there"));
    thread::sleep(2 * INTERVAL);
    for round in 0..2 {
        // One is closed, one silent, two are rejected.
        drop(listening);
        bar(&rig.server);
        balancer.follows(false, FOLLOWS, &format!("{middle:?}: all servers are gone, round {round}"));
        // Longer than anything is remembered without being met again.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(if round == 0 { 15 } else { 3 }) {
            let up: Vec<_> = balancer.servers().into_iter().filter(|(_, is_up)| *is_up).collect();
            assert!(up.is_empty(), "{middle:?}: {up:?} after {:?}", start.elapsed());
            thread::sleep(Duration::from_millis(50));
        }
        unbar(&rig.server);
        listening = listen(&[CLOSED]);
        balancer.follows(true, FOLLOWS, &format!("{middle:?}: all servers are back, round {round}"));
    }
}

#[test]
fn half_open_checks_follow_their_servers() {
    needs(&["haproxy", "nft"]);
    thread::scope(|scope| {
        for middle in [None, Some(CACHE_ON), Some(CACHE_OFF)] {
            scope.spawn(move || follow(middle));
        }
    });
}
