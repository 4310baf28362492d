//! What becomes of a connection whose server got no true round trip with its handshake: `cargo bench -p unit --bench early`. Needs root, and
//! five minutes.
//!
//! Real kernels fetch answers over a bridge, an honest box, and an early one whose `early_echo` is `none` and `exact`; near and far, with
//! CUBIC and BBR, the answer's first segment lost on the WAN and not. The server is known to the box.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pktio::impair::Impairment;
use unit::netns::sockets::{self, Making};
use unit::netns::traffic::Server;
use unit::netns::{self, Appliance, Backend, Relay, Rig};

/// What stands in the middle: its name, and its configuration unless it is a bridge.
const MIDDLES: [(&str, Option<&str>); 4] = [
    ("bridge", None),
    ("honest", Some("handshake = honest;")),
    ("early, none", Some("handshake = early; early_echo = none;")),
    ("early, exact", Some("handshake = early; early_echo = exact;")),
];

/// Bytes of an answer: one segment, a page, and what takes several round trips at any window.
const ANSWERS: [u64; 3] = [200, 64 << 10, 2 << 20];

/// The answer in which the server's view of the path is looked at, and when: so long after the handshake.
const LOOKED_AT: (u64, Duration) = (ANSWERS[1], Duration::from_secs(1));

/// How often each is fetched. The median counts.
const TIMES: usize = 3;

/// What a client offers at most, in bytes: a veth end takes 256 frames in one go, and nothing but what is meant to be is lost.
const WINDOW: i32 = 320 << 10;

/// The server's round trip, its least, its retransmission time-out, all in milliseconds, and its segments sent again.
type View = [f64; 4];

/// A rig, with servers that lose nothing and the first segment of every answer.
struct Candidate {
    name: &'static str,
    servers: [Server; 2],
    /// Of every connection after its handshake, and when its answer was written or a second later.
    views: Mutex<Receiver<[View; 2]>>,
    _proxy: Option<Appliance>,
    _network: Relay,
    rig: Rig,
}

impl Candidate {
    fn new(
        rig: Rig,
        (name, config): (&'static str, Option<&str>),
        congestion: &str,
        round_trip: Duration,
    ) -> Candidate {
        let far = Impairment { delay: round_trip / 2, limit: 4096, ..Impairment::default() };
        let network = rig.impair(far, 7);
        rig.server.sysctl("net.ipv4.tcp_wmem", "4096 4194304 4194304");
        let proxy = config.map(|config| Appliance::start(&rig, Backend::Driver, config));
        if proxy.is_none() {
            rig.bridge();
        }
        let (tell, views) = mpsc::channel();
        let tell = Arc::new(Mutex::new(tell));
        let servers = [0; 2].map(|port| {
            let tell = Arc::clone(&tell);
            rig.server
                .serve(netns::SERVER_V4, port, move |stream| answer(&stream, &tell.lock().expect("no panic").clone()))
        });
        for server in &servers {
            sockets::set_congestion_control(server.listener(), congestion).expect("a congestion control");
        }
        rig.client.sh(&format!(
            "nft 'table ip loss {{
                set seen {{ type inet_service; size 65535; flags dynamic; }}
                chain in {{
                    type filter hook prerouting priority raw;
                    tcp sport {} ip length > 100 tcp dport != @seen add @seen {{ tcp dport }} drop
                }}
            }}'",
            servers[1].address.port()
        ));
        let candidate = Candidate { name, servers, views: Mutex::new(views), _proxy: proxy, _network: network, rig };
        // Neighbours are looked up, and the box learns what its servers offer.
        for server in &candidate.servers {
            candidate.fetch(server.address, 1);
        }
        candidate
    }

    /// From the SYN to the last byte of an answer, in milliseconds, and how the server saw it.
    fn fetch(&self, server: SocketAddr, bytes: u64) -> (f64, [View; 2]) {
        let start = Instant::now();
        let prepare = |socket: &_| sockets::bound_window(socket, WINDOW);
        let stream = self.rig.client.run(|| Making::default().connect(netns::CLIENT_V4, server, prepare));
        let mut stream = stream.expect("connecting");
        stream.write_all(&bytes.to_be_bytes()).expect("asking");
        io::copy(&mut Read::take(&mut stream, bytes), &mut io::sink()).expect("an answer");
        let took = start.elapsed().as_secs_f64() * 1e3;
        let views = self.views.lock().expect("no panic").recv().expect("the server tells");
        (took, views)
    }

    /// Everything, once: for each answer how long it takes without and with the loss, and the server's views.
    fn fetch_all(&self) -> Vec<f64> {
        let mut figures = Vec::new();
        let mut looked = [[0.0; 4]; 2];
        for bytes in ANSWERS {
            for server in &self.servers {
                let (took, views) = self.fetch(server.address, bytes);
                figures.push(took);
                if bytes == LOOKED_AT.0 && server.address == self.servers[0].address {
                    looked = views;
                }
            }
        }
        figures.extend(looked.concat());
        figures
    }
}

/// Serves: reads how many bytes are wanted, and sends them.
fn answer(mut stream: &TcpStream, tell: &Sender<[View; 2]>) -> io::Result<()> {
    let (begin, first) = (Instant::now(), view(stream));
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    let bytes = u64::from_be_bytes(bytes);
    stream.write_all(&vec![0x55; bytes as usize])?;
    if bytes == LOOKED_AT.0 {
        thread::sleep(LOOKED_AT.1.saturating_sub(begin.elapsed()));
    }
    let _ = tell.send([first, view(stream)]);
    netns::traffic::expect_end(stream)
}

fn view(stream: &TcpStream) -> View {
    let info = sockets::tcp_info(stream);
    // Without a sample the least is the greatest number there is.
    let least = if info.tcpi_min_rtt == u32::MAX { 0 } else { info.tcpi_min_rtt };
    let [rtt, least, timeout] = [info.tcpi_rtt, least, info.tcpi_rto].map(|time| f64::from(time) / 1e3);
    [rtt, least, timeout, f64::from(info.tcpi_total_retrans)]
}

/// The median of each figure.
fn medians(runs: &[Vec<f64>]) -> Vec<f64> {
    (0..runs[0].len())
        .map(|at| {
            let mut values: Vec<f64> = runs.iter().map(|run| run[at]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        })
        .collect()
}

fn main() {
    if !nix::unistd::geteuid().is_root() {
        return println!("early: skipped, because namespaces need root");
    }
    println!(
        "Milliseconds from the SYN to the last byte of the answer, its first segment not lost / lost; the median of {TIMES}."
    );
    println!(
        "Server: round trip / its least / time-out, in milliseconds, after the handshake and a second later, and segments sent again.\n"
    );
    let answers = ["200 B", "64 KiB", "2 MiB"];
    println!(
        "{:<6} {:>6}  {:<13} {:>15} {:>15} {:>15} {:>21} {:>21} {:>6}",
        "", "ms", "", answers[0], answers[1], answers[2], "server", "a second later", "again"
    );
    for congestion in ["cubic", "bbr"] {
        for round_trip in [5, 50, 250] {
            let first = Rig::alone();
            let mut rigs = vec![first.beside(), first.beside(), first.beside()];
            rigs.insert(0, first);
            let delay = Duration::from_millis(round_trip);
            let candidates: Vec<Candidate> = rigs
                .into_iter()
                .zip(MIDDLES)
                .map(|(rig, middle)| Candidate::new(rig, middle, congestion, delay))
                .collect();
            let all: Vec<Vec<f64>> = thread::scope(|scope| {
                let fetch = |candidate| {
                    move || medians(&(0..TIMES).map(|_| Candidate::fetch_all(candidate)).collect::<Vec<_>>())
                };
                let runs: Vec<_> = candidates.iter().map(|candidate| scope.spawn(fetch(candidate))).collect();
                runs.into_iter().map(|run| run.join().expect("a candidate")).collect()
            });
            for (candidate, figures) in candidates.iter().zip(all) {
                let times = figures[..6].chunks(2).map(|pair| format!("{:>7.0} /{:>6.0}", pair[0], pair[1]));
                let views =
                    figures[6..].chunks(4).map(|view| format!("{:>6.1} /{:>5.1} /{:>5.0}", view[0], view[1], view[2]));
                let cells: Vec<String> = times.chain(views).collect();
                println!(
                    "{congestion:<6} {round_trip:>6}  {:<13} {} {:>6.0}",
                    candidate.name,
                    cells.join(" "),
                    figures[13]
                );
            }
        }
    }
}
