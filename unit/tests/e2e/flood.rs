//! Under a flood from sources that do not exist, at a rate that a worker can take: those who do exist connect, and what is
//! established goes on. What happens beyond that rate is told in `e2e::shed`.

use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{note, test};
use unit::netns::{self, Appliance, Backend, Rig, program, traffic};

/// Honest connections in a row.
const HONEST: u32 = 200;

/// Segments a second of the flood. A worker that is not optimised and shares two cores with everybody else takes two to three times as many; where more come
/// and none may be left out, frames are lost before it, the honest ones' like others.
const FLOOD: u32 = 150_000;

/// Frames of the flood and of the honest that a crowded machine may lose before the worker that owns them sees them, and with them a second of an
/// honest client's time, say nothing of the proxy: such a run is repeated, twice at the most.
fn honest_clients_connect(backend: Backend, config: &str, kind: &str) {
    for again in [true, true, false] {
        let (slow, lost) = endure(backend, config, kind);
        if slow.is_empty() {
            return;
        }
        let said = format!("{kind} {config}: {} of {HONEST} failed or took a second: {slow:?}", slow.len());
        assert!(again && lost > 0, "{said}; {lost} frames were lost before the worker");
        note!("{said}; but {lost} frames were lost before the worker: once more");
    }
}

/// One run. Returns the honest who were slow or failed, and the frames lost before the worker.
fn endure(backend: Backend, config: &str, kind: &str) -> (Vec<String>, u64) {
    let rig = Rig::alone();
    // Everything is answered: what happens when SYNs are left out is another file's matter, and a flood that is not answered
    // becomes so fast that veth's own queue loses frames, the honest ones' too.
    let proxy = Appliance::start(&rig, backend, &format!("{config} shed = off;"));
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    let address = server.address;
    // Both ends know the other's Ethernet address before the noise begins.
    rig.client.sh(&format!("ping -n -q -c 2 -i 0.05 {}", netns::SERVER_V4));
    // The server hears of the end of the first handshake perhaps later than the client.
    let before = rig.counters();
    let established = rig.client.connect(address).expect("connecting in peace");
    let memory = proxy.resident().expect("it runs");

    let mut flood = rig.client.command(program("synflood"));
    flood.args(["--interface", "c0", "--to", &netns::SERVER_V4.to_string(), "--to-mac", netns::SERVER_MAC]);
    // The answers go to an address nobody here has, or this kernel would have to route them to nowhere.
    flood.args(["--from-mac", "02:00:00:00:00:66", "--kind", kind, "--seconds", "60"]);
    flood.args(["--rate", &FLOOD.to_string()]);
    let mut flood = flood.stdout(Stdio::piped()).spawn().expect("starting the flood");
    thread::sleep(Duration::from_millis(300));

    let over = AtomicBool::new(false);
    let (times, moved) = thread::scope(|scope| {
        // The established connection: questions and answers until the flood is over, then the end in good order.
        let going_on = scope.spawn(|| {
            let mut stream = &established;
            let (question, mut answer) = ([7; 10_000], [0; 10_000]);
            let mut moved = 0u64;
            while !over.load(Ordering::Relaxed) {
                stream.write_all(&question).expect("the established connection, sending");
                stream.read_exact(&mut answer).expect("the established connection, receiving");
                assert_eq!(question, answer);
                moved += answer.len() as u64;
            }
            stream.shutdown(std::net::Shutdown::Write).expect("finishing");
            traffic::expect_end(stream).expect("the established connection ends in good order");
            moved
        });
        let times: Vec<Result<Duration, String>> = rig.client.run(|| {
            (0..HONEST)
                .map(|number| {
                    // Spread over a few seconds of flood.
                    thread::sleep(Duration::from_millis(10));
                    let start = Instant::now();
                    let mut stream = traffic::connect(address).map_err(|e| format!("connect: {e}"))?;
                    stream.write_all(&number.to_be_bytes()).map_err(|e| format!("asking: {e}"))?;
                    let mut answer = [0; 4];
                    stream.read_exact(&mut answer).map_err(|e| format!("the answer: {e}"))?;
                    assert_eq!(answer, number.to_be_bytes());
                    Ok(start.elapsed())
                })
                .collect()
        });
        over.store(true, Ordering::Relaxed);
        (times, going_on.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });

    nix::sys::signal::kill(nix::unistd::Pid::from_raw(flood.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .expect("the flood outlasts the honest");
    let mut said = String::new();
    flood.stdout.take().expect("piped").read_to_string(&mut said).expect("reading what the flood achieved");
    flood.wait().expect("waiting for the flood");
    let grown = proxy.resident().expect("it runs").saturating_sub(memory);
    let report = proxy.stop();
    let name = format!("{backend:?}, {kind} {config}");
    note!("{name}: flood {}; {} MB moved; {grown} KiB grown", said.trim(), moved / 1_000_000);
    note!("{}", report.log.join("\n"));

    let mut slow = Vec::new();
    let mut slowest = Duration::ZERO;
    for (number, time) in times.iter().enumerate() {
        match time {
            Ok(time) if *time < Duration::from_secs(1) => slowest = slowest.max(*time),
            other => slow.push(format!("connection {number}: {other:?}")),
        }
    }
    note!("{name}: slowest honest connection {slowest:?}");
    assert!(moved > 100_000, "{name}: the established connection moved {moved} bytes");
    assert!(report.status.success());
    // What a flood may fill is bounded and mapped at the start; each worker's own is touched bit by bit.
    let most = (48 + 16 * u64::from(rig.queues())) << 10;
    assert!(grown < most, "{name}: grew by {grown} KiB");
    let server = rig.counters()[1].since(&before[1]);
    let opened = server.get("TcpPassiveOpens");
    assert!(opened <= i64::from(HONEST) + 1, "{name}: the flood reached the server: {opened} connections");
    let lost = report.log.iter().filter_map(|line| line.strip_prefix("lost, kernel drops"));
    let before_all = lost.flat_map(str::split_whitespace).filter_map(|count| count.parse::<u64>().ok()).sum::<u64>();
    (slow, before_all + report.lost_between())
}

#[test(alone)]
fn honest_clients_connect_through_a_syn_flood_with_the_cache() {
    honest_clients_connect(Backend::Driver, netns::CACHE_ON, "syn");
}

#[test(alone)]
fn honest_clients_connect_through_a_syn_flood_without_the_cache() {
    honest_clients_connect(Backend::Driver, netns::CACHE_OFF, "syn");
}

#[test(alone)]
fn honest_clients_connect_through_an_ack_flood() {
    honest_clients_connect(Backend::Driver, netns::CACHE_ON, "ack");
}

#[test(alone)]
fn honest_clients_connect_through_a_reset_flood() {
    honest_clients_connect(Backend::Driver, netns::CACHE_ON, "rst");
}
