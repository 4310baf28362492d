//! How long the operator keeps a worker from its frames, with a million connections in the table: `cargo bench -p unit --bench operator`.
//! Needs root, and a minute. A number on the command line takes the place of the million.
//!
//! It is the box itself that measures, as `synctl stats` tells it; here the connections are made, the questions are asked, and what it
//! says is printed.

use std::time::{Duration, Instant};

use control::{Client, Entry, FlowFilter, FlowList, Key, Reply, Request, Side, Stats};
use unit::netns::{self, Appliance, Backend, Rig, program};
use unit::script::{self, FlowKey};

/// Servers the operator speaks of.
const SERVERS: u32 = 1000;

/// How often what is quickly answered is asked.
const TIMES: usize = 1000;

/// How long the connections may take to be there.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    if !nix::unistd::geteuid().is_root() {
        return println!("operator: skipped, because namespaces need root");
    }
    let flows: u64 = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(1_000_000);
    let rig = Rig::alone();
    let socket = harness::leftovers::file("bench.sock");
    let config = "conntablesize = 262144; sackmode = commanded; timeouts = { ul_syn_sent = 3600; reseted = 3600; };";
    let control = format!("--control={}", socket.display());
    rig.middle.sh("ip link set lo up");
    let appliance = Appliance::start_with(&rig, Backend::Driver, config, &[&control]);
    let mut client = Client::connect(&socket).expect("a box listens");
    fill(&rig, &mut client, flows);

    println!("{:<52}{:>10}{:>12}{:>20}", "", "answers", "seconds", "longest turn, µs");
    let everything = FlowFilter::default();
    let nothing = FlowFilter { lan_port: Some(1), ..FlowFilter::default() };
    let few = FlowFilter { lan: Some("203.0.0.0/12".into()), ..FlowFilter::default() };
    let state = FlowFilter { state: Some("established".into()), ..FlowFilter::default() };
    for (what, filter) in [
        ("flows, none of which fits the port", nothing),
        ("flows, none of which is established", state),
        ("flows, few of which fit the network", few),
        ("flows, all of them", everything),
    ] {
        let mut connections = 0;
        tell(&mut client, what, "flows", |client| {
            let (mut from, mut replies) = (None, 0);
            loop {
                let FlowList { flows, next } = list(client, &filter, from);
                connections += flows.len();
                replies += 1;
                from = next;
                if from.is_none() {
                    return replies;
                }
            }
        });
        println!("    {connections} connections");
    }
    let frames = frames(&mut client);
    tell(&mut client, "explain, a segment of a connection", "explain", |client| {
        frames.iter().cycle().take(TIMES).for_each(|frame| {
            let asked = Request::Explain { side: Side::Lan, frame: frame.clone(), worker: None };
            let Ok(Reply::Explained(told)) = client.ask(&asked) else { panic!("no explanation") };
            assert!(told.before.is_some(), "its connection is known: {told:?}");
        });
        TIMES
    });
    tell(&mut client, "top", "top", |client| repeat(client, &Request::Top));
    tell(&mut client, "backends, one after the other", "backends", |client| {
        (0..SERVERS).for_each(|n| done(client, &Request::AddServer(entry(n))));
        SERVERS as usize
    });
    tell(&mut client, "backends, all taken back", "backends", |client| {
        (0..SERVERS).for_each(|n| done(client, &Request::DeleteServer(key(n))));
        SERVERS as usize
    });
    tell(&mut client, "rotate-secrets", "rotate-secrets", |client| {
        done(client, &Request::RotateSecrets);
        1
    });
    tell(&mut client, "drain, and back", "drain", |client| {
        [true, false].map(|on| done(client, &Request::Drain { on })).len()
    });
    tell(&mut client, "status", "status", |client| repeat(client, &Request::Status));
    println!("\n`longest turn` is that of the command so far, in the worker's own time.");
    drop(client);
    assert!(appliance.stop().status.success());
}

/// Opens connections from the LAN, to hosts that do not exist, until there are so many.
fn fill(rig: &Rig, client: &mut Client, flows: u64) {
    let deadline = Instant::now() + PATIENCE;
    let mut there = 0;
    let mut seed = 1;
    while there < flows {
        assert!(Instant::now() < deadline, "only {there} connections after {PATIENCE:?}");
        let more = (flows - there).max(1000);
        let arguments = format!(
            "packet:s0 --flood syn --bare --to {} --to-mac {} --count {more} --rate 200000 --seconds 60 --seed {seed}",
            netns::CLIENT_V4,
            netns::CLIENT_MAC
        );
        let mut load = rig.server.command(program("netmapsend"));
        let output = load.args(arguments.split_whitespace()).output().expect("netmapsend runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let Ok(Reply::Status(status)) = client.ask(&Request::Status) else { panic!("no status") };
        there = status.flows.direct;
        seed += 1;
    }
    println!("{there} connections in the table\n");
}

/// Does something as often as it says, and prints how long that took, and what its longest turn was.
fn tell(client: &mut Client, what: &str, command: &str, ask: impl FnOnce(&mut Client) -> usize) {
    let begin = Instant::now();
    let answers = ask(client);
    let seconds = begin.elapsed().as_secs_f64();
    // Workers show their counters ten times a second.
    std::thread::sleep(Duration::from_millis(300));
    let longest = stats(client).total.orders[command] as f64 / 1e3;
    println!("{what:<52}{answers:>10}{seconds:>12.3}{longest:>20.1}");
}

fn stats(client: &mut Client) -> Stats {
    match client.ask(&Request::Stats) {
        Ok(Reply::Stats(stats)) => *stats,
        other => panic!("{other:?}"),
    }
}

fn list(client: &mut Client, filter: &FlowFilter, from: Option<control::Cursor>) -> FlowList {
    match client.ask(&Request::Flows { filter: filter.clone(), from, limit: None }) {
        Ok(Reply::Flows(list)) => list,
        other => panic!("{other:?}"),
    }
}

fn repeat(client: &mut Client, request: &Request) -> usize {
    (0..TIMES).for_each(|_| assert!(client.ask(request).is_ok()));
    TIMES
}

fn done(client: &mut Client, request: &Request) {
    let reply = client.ask(request);
    assert!(matches!(reply, Ok(Reply::Done(_))), "{reply:?}");
}

/// What the operator says of the server of this number.
fn entry(n: u32) -> Entry {
    let Key { address, port, protocol } = key(n);
    Entry { address, port, protocol, mss: 1400, sack: true, wscale: 7 }
}

fn key(n: u32) -> Key {
    Key { address: std::net::Ipv4Addr::from(0x0a00_0001 + n).into(), port: 80, protocol: 6 }
}

/// Segments of connections there are, as their LAN ends would send them next.
fn frames(client: &mut Client) -> Vec<String> {
    let flows = list(client, &FlowFilter::default(), None).flows;
    let frame = |flow: &control::Flow| {
        let [lan, wan]: [std::net::SocketAddr; 2] = [&flow.lan, &flow.wan].map(|end| end.parse().expect("an end"));
        let ends = FlowKey {
            src: lan.ip(),
            dst: wan.ip(),
            sport: lan.port(),
            dport: wan.port(),
            src_mac: [2, 0, 0, 0, 0, 1],
            dst_mac: [2, 0, 0, 0, 0, 2],
            ttl: 64,
        };
        script::build(&ends, 0, &script::syn(1000)).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    flows.iter().take(100).map(frame).collect()
}
