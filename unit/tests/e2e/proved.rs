//! Sources that have proved themselves pass (`proved = pass`): a day of clients that come back is hardly touched, a flood in such a source's name reaches the
//! server within its budget, and what passed outlives the box without being handed to the next one.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use harness::{note, test};
use nix::sys::signal::Signal;
use unit::netns::sockets::{Making, Syns};
use unit::netns::{self, Appliance, Backend, Rig, program, traffic};
use unit::visits;

/// Another address of the client's host.
fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100 + number))
}

fn add_addresses(rig: &Rig, count: u8) {
    (0..count).for_each(|number| {
        rig.client.sh(&format!("ip addr add {}/24 dev c0", address(number)));
    });
}

/// Connects from an address in the calling thread's namespace.
fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    Making::default().connect(from, to, |_| Ok(())).unwrap_or_else(|error| panic!("{from} connects: {error}"))
}

/// Asks over a connection, and gets the answer.
fn ask(mut stream: &TcpStream, number: u32) {
    stream.write_all(&number.to_be_bytes()).expect("asking");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).expect("the answer");
    assert_eq!(answer, number.to_be_bytes());
}

/// A day of 24 s: an hour lasts a second, and so does one of `proved_memory`, which is a day. Of forty clients three in four were there the day before.
#[test(light, long)]
fn a_day_of_returning_clients_is_hardly_touched() {
    const DAY: Duration = Duration::from_secs(24);
    const CLIENTS: u8 = 40;
    let rig = Rig::new();
    add_addresses(&rig, CLIENTS);
    let config = format!("proved = pass; proved_memory = {};", DAY.as_secs());
    let proxy = Appliance::start(&rig, Backend::Driver, &config);
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    let to = server.address;
    let before = rig.counters();
    rig.client.run(|| {
        for number in (0..CLIENTS).filter(|number| number % 4 != 0) {
            ask(&connect(address(number), to), number.into());
        }
    });
    let syns = Syns::watch(&rig.server);
    let (start, visits) = (Instant::now(), visits::day(1, CLIENTS.into()));
    let opened: usize = visits.iter().map(|visit| 1 + visit.more).sum();
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let own = visits.iter().filter(move |visit| visit.client == usize::from(number));
            let client = &rig.client;
            scope.spawn(move || {
                client.run(|| {
                    for visit in own {
                        thread::sleep((start + DAY.mul_f64(visit.at)).saturating_duration_since(Instant::now()));
                        let page = connect(address(number), to);
                        ask(&page, 1);
                        let more: Vec<TcpStream> = (0..visit.more).map(|_| connect(address(number), to)).collect();
                        more.iter().for_each(|stream| ask(stream, 2));
                    }
                });
            });
        }
    });
    let came = syns.stop();
    let resets = rig.counters()[1].since(&before[1]).get("TcpEstabResets");
    let report = proxy.stop();
    let passed = report.figure("proved-passed").unwrap_or(0) as usize;
    note!(
        "of {opened} connections {passed} passed untouched; the server got {} SYNs; {:?}",
        came.len(),
        start.elapsed()
    );
    note!("{}", report.log.join("\n"));
    assert!(report.status.success());
    assert!(passed * 10 >= opened * 9, "of {opened} connections {passed} passed untouched");
    assert_eq!(resets, 0, "connections were reset");
    // A SYN for each connection: none was answered in vain.
    let ports: HashSet<SocketAddr> = came.iter().map(|syn| syn.from).collect();
    assert_eq!(ports.len(), opened, "connections at the server");
}

/// SYNs in a proved source's name, 20 000 a second for five seconds, in a time in which no half-open connection is given up.
#[test(alone)]
fn a_flood_in_a_proved_sources_name_reaches_its_server_within_the_budget() {
    const HALF_OPEN: usize = 6;
    let rig = Rig::alone();
    add_addresses(&rig, 2);
    let config =
        format!("proved = pass; proved_half_open = {HALF_OPEN}; shed = off; ratehash = {{ initial_tokens = 10; }};");
    let proxy = Appliance::start(&rig, Backend::Driver, &config);
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    let to = server.address;
    rig.client.run(|| (0..2).for_each(|number| ask(&connect(address(number), to), 7)));
    let syns = Syns::watch(&rig.server);
    let mut flood = rig.client.command(program("synflood"));
    flood.args(["--interface", "c0", "--to", &netns::SERVER_V4.to_string(), "--to-mac", netns::SERVER_MAC]);
    flood.args(["--from", &format!("{}/32", address(0)), "--from-mac", "02:00:00:00:00:66"]);
    flood.args(["--rate", "20000", "--seconds", "5"]);
    let mut flood = flood.stdout(Stdio::piped()).spawn().expect("starting the flood");
    thread::sleep(Duration::from_secs(1));
    // Another source has a budget of its own, although the flood has spent what its network may send.
    let other: Vec<u16> = rig.client.run(|| {
        let streams: Vec<TcpStream> = (0..20).map(|_| connect(address(1), to)).collect();
        streams.iter().for_each(|stream| ask(stream, 8));
        streams.iter().map(|stream| stream.local_addr().expect("it is connected").port()).collect()
    });
    flood.wait().expect("the flood ends by itself");
    let came = syns.stop();
    let report = proxy.stop();
    note!("{}", report.log.join("\n"));
    let of = |number: u8| came.iter().filter(move |syn| syn.from.ip() == address(number));
    let forged: HashSet<u16> = of(0).map(|syn| syn.from.port()).collect();
    note!("of the flood the server got {} SYNs, of {} connections", of(0).count(), forged.len());
    assert!(report.status.success());
    // Several workers have their part of it each, one at the least.
    let budget = HALF_OPEN.max(rig.queues() as usize);
    assert!((1..=budget).contains(&of(0).count()), "{} SYNs, and the budget is {budget}", of(0).count());
    let passed: HashSet<u16> = of(1).map(|syn| syn.from.port()).collect();
    assert!(other.iter().all(|port| passed.contains(port)));
    assert!(report.figure("proved-spent").unwrap_or(0) > 10_000, "the rest was answered, or refused");
    assert!(report.figure("proved-passed").unwrap_or(0) >= 20);
}

/// The process is killed, and the next one is handed nothing: what it had translated ends, what had passed goes on.
#[test]
fn what_passed_goes_on_when_the_box_has_lost_everything() {
    let rig = Rig::new();
    add_addresses(&rig, 1);
    let config = "proved = pass;";
    let proxy = Appliance::start(&rig, Backend::Driver, config);
    let server = rig.server.serve(netns::SERVER_V4, 80, |stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        traffic::echo(stream)
    });
    let to = server.address;
    let connect = || rig.client.run(|| connect(address(0), to));
    let translated = connect();
    ask(&translated, 1);
    let passed: Vec<TcpStream> = (0..5).map(|_| connect()).collect();
    passed.iter().for_each(|stream| ask(stream, 2));
    proxy.end(Signal::SIGKILL);
    let next = Appliance::start(&rig, Backend::Driver, config);
    for number in 0..3 {
        passed.iter().for_each(|stream| ask(stream, number));
    }
    translated.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let mut stream = &translated;
    let _ = stream.write_all(&[7; 4]);
    assert!(stream.read_exact(&mut [0; 4]).is_err(), "nobody knows its numbers any more");
    // And its source proves itself again.
    let again = connect();
    ask(&again, 3);
    ask(&connect(), 4);
    drop((passed, again));
    let report = next.stop();
    note!("{}", report.log.join("\n"));
    assert!(report.status.success());
    assert!(report.figure("adopted") >= Some(5) && report.figure("proved-passed") == Some(1));
}
