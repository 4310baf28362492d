//! Connections with real TLS, routed by name: nginx as their server, wrk as their clients. Both compute more than what is in the middle, on the same
//! cores; so the rate says something only beside no relay's.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use harness::leftovers;
use unit::netns::Rig;

use crate::arms::Running;
use crate::client::{self, Entry};
use crate::cost::{Cost, Stretch};
use crate::server;

/// Where nginx listens; the relays' port leads there by this name.
const PORT: u16 = 8443;
const NAME: &str = "real.bench.example";

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    pub connections: f64,
    pub cost: Cost,
}

impl Tls {
    pub fn add(&mut self, other: Tls) {
        self.connections += other.connections;
        self.cost.add(other.cost);
    }
}

/// Clients connect, ask for a page, and go, for so long.
pub fn apply(rig: &Rig, entry: Entry, window: Duration) -> io::Result<Tls> {
    let [certificate, key, conf, pid] = ["crt", "key", "tls.conf", "tls.pid"].map(leftovers::file);
    let text = |path: &std::path::Path| path.display().to_string();
    rig.server.sh(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {} -out {} -days 2 -subj /CN={NAME} 2>/dev/null",
        text(&key),
        text(&certificate)
    ));
    let server = include_str!("peers/tls-server.conf").replace("PID", &text(&pid));
    let server = server.replace("CERTIFICATE", &text(&certificate)).replace("KEY", &text(&key));
    fs::write(&conf, server)?;
    let last = thread::available_parallelism().map_or(1, usize::from) - 1;
    let mut command = rig.server.command("taskset");
    command.args(["-c", &last.to_string(), "nginx", "-c", &text(&conf)]);
    let nginx = Running::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let begin = Instant::now();
    let direct = SocketAddrV4::new(*client::server().ip(), PORT);
    // From the server's own host: some arms answer for a server before it is there, and others lead nowhere else.
    while rig.server.run(|| client::connect(Entry { address: direct, by_socks: false })).is_err() {
        if begin.elapsed() > Duration::from_secs(10) {
            return Err(io::Error::other("nginx does not listen"));
        }
        thread::sleep(Duration::from_millis(50));
    }
    // Without a relay its own port is the server's.
    let address = if entry.address.port() == server::PORT && *entry.address.ip() != *direct.ip() {
        entry.address
    } else {
        direct
    };
    let names = rig.client.name_hosts(&format!("{} localhost\n{} {NAME}\n", Ipv4Addr::LOCALHOST, address.ip()));
    let mut wrk = rig.client.command("taskset");
    let (url, seconds) = (format!("https://{NAME}:{}/", address.port()), format!("{}s", window.as_secs().max(1)));
    wrk.args(["-c", "0", "wrk", "-t", "1", "-c", "16", "-d", &seconds, "-H", "Connection: close", &url]);
    let stretch = Stretch::begin();
    let output = wrk.output()?;
    let cost = stretch.end();
    let said = String::from_utf8_lossy(&output.stdout);
    drop((nginx, names));
    [certificate, key, conf, pid].iter().for_each(|file| drop(fs::remove_file(file)));
    // "  12345 requests in 2.00s, 1.2MB read"
    let line = said.lines().find_map(|line| line.trim().split_once(" requests in "));
    let connections = line.and_then(|(count, _)| count.parse().ok());
    match connections {
        Some(connections) if connections > 0.0 && !said.contains("Non-2xx") => Ok(Tls { connections, cost }),
        _ => Err(io::Error::other(format!("wrk: {said}{}", String::from_utf8_lossy(&output.stderr)))),
    }
}
