//! What takes minutes: how long it takes until frames pass a worker that takes none, again and again, and that nobody takes an idle or a busy worker for one.
//! And what is left of minutes of mixed load. `make test-failover` runs it; `SWITCHES` of the environment says how often, `QUIET` and `LOAD` for how many
//! seconds.

use super::restart::Flood;
use control::{Client, Reply, Request};
use harness::{leftovers, note, test};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use std::env;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use unit::netns::{self, Appliance, Backend, CACHE_ON, Rig, traffic, within};

/// A number of the environment; the test is ignored without.
fn wanted(name: &str) -> u64 {
    match env::var(name).ok().and_then(|text| text.parse().ok()) {
        Some(number) => number,
        None => harness::ignore(format_args!("it takes minutes: `make test-failover`, or {name}=NUMBER")),
    }
}

/// A rig whose hosts take frames that the kernel sends to them without an skb.
fn rig() -> Rig {
    let rig = Rig::of_one_queue();
    rig.client.sh("ethtool -K c0 gro on");
    rig.server.sh("ethtool -K s0 gro on");
    rig
}

/// Datagrams to an echo and back, so often.
#[derive(Default)]
struct Probe {
    over: AtomicBool,
    sent: AtomicU64,
    heard: AtomicU64,
    /// The longest time without one that came back, in microseconds.
    gap: AtomicU64,
}

impl Probe {
    fn client(&self, echo: SocketAddr, every: Duration) {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
        socket.connect(echo).expect("an address");
        socket.set_read_timeout(Some(Duration::from_millis(1))).expect("a time-out");
        let (mut sent, mut heard, mut buffer) = (Instant::now(), Instant::now(), [0; 8]);
        while !self.over.load(Ordering::Relaxed) {
            if sent.elapsed() >= every {
                sent = Instant::now();
                self.sent.fetch_add(u64::from(socket.send(b"probe").is_ok()), Ordering::Relaxed);
            }
            if socket.recv(&mut buffer).is_ok() {
                heard = Instant::now();
                self.heard.fetch_add(1, Ordering::Relaxed);
            }
            self.gap.fetch_max(heard.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
    }

    fn echo(&self, socket: &UdpSocket) {
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a time-out");
        let mut buffer = [0; 8];
        while !self.over.load(Ordering::Relaxed) {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        }
    }
}

/// How a worker stops taking frames.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Process,
    Worker,
    Kill,
}

/// What comes meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// A datagram every two milliseconds.
    Peace,
    /// One every 300 ms: the worker has slept for long.
    Idle,
    /// As in peace, and a flood of SYNs.
    Flood,
}

#[test(alone)]
fn frames_pass_soon_after_a_worker_takes_none() {
    let rounds = wanted("SWITCHES");
    let rig = rig();
    let config = format!("{CACHE_ON} on_failure = open; shed = off;");
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let echo = rig.server.run(|| UdpSocket::bind((netns::SERVER_V4, 0))).expect("a socket");
    let address = echo.local_addr().expect("its address");
    let mut proxy = Appliance::start(&rig, Backend::Driver, &config);
    rig.client.sh(&format!("ping -n -q -c 2 -i 0.05 {}", netns::SERVER_V4));
    for load in [Load::Peace, Load::Idle, Load::Flood] {
        let every = if load == Load::Idle { 300 } else { 2 };
        let flood = (load == Load::Flood).then(|| Flood::start(&rig, server.address));
        for stop in [Stop::Process, Stop::Worker, Stop::Kill] {
            let (mut gaps, mut lost) = (Vec::new(), 0);
            for _ in 0..rounds {
                let probe = Probe::default();
                thread::scope(|scope| {
                    scope.spawn(|| rig.client.run(|| probe.client(address, Duration::from_millis(every))));
                    scope.spawn(|| probe.echo(&echo));
                    thread::sleep(Duration::from_millis(150 + every));
                    probe.gap.store(0, Ordering::Relaxed);
                    let worker = super::failure::worker(proxy.pid());
                    match stop {
                        Stop::Process => proxy.signal(Signal::SIGSTOP),
                        Stop::Kill => proxy.signal(Signal::SIGKILL),
                        Stop::Worker => {
                            // A tracer is a thread, so it lets go itself.
                            ptrace::seize(worker, ptrace::Options::empty()).expect("tracing a child of one's own");
                            ptrace::interrupt(worker).expect("stopping a thread");
                            let how = Some(nix::sys::wait::WaitPidFlag::__WALL);
                            nix::sys::wait::waitpid(worker, how).expect("it stops");
                        }
                    }
                    thread::sleep(Duration::from_millis(300 + 3 * every));
                    match stop {
                        Stop::Process => proxy.signal(Signal::SIGCONT),
                        Stop::Worker => ptrace::detach(worker, None).expect("letting it go on"),
                        Stop::Kill => {}
                    }
                    let missing =
                        probe.sent.load(Ordering::Relaxed).saturating_sub(probe.heard.load(Ordering::Relaxed));
                    lost += missing;
                    gaps.push(Duration::from_micros(probe.gap.load(Ordering::Relaxed)));
                    probe.over.store(true, Ordering::Relaxed);
                });
                if matches!(stop, Stop::Kill) {
                    drop(std::mem::replace(&mut proxy, Appliance::start(&rig, Backend::Driver, &config)));
                } else {
                    thread::sleep(Duration::from_millis(100));
                }
            }
            gaps.sort_unstable();
            let at = |part: usize| gaps[(gaps.len() * part).div_ceil(100).saturating_sub(1)];
            note!(
                "{load:?}, {stop:?} stopped: without a frame for p50 {:.1?}, p99 {:.1?}, max {:.1?} (one is sent every {every} ms); {:.1} datagrams lost each time",
                at(50),
                at(99),
                at(100),
                lost as f64 / rounds as f64
            );
            // A tick of the kernel and the scheduler of a crowded machine come on top of the 50 ms; in idle hours the second datagram notices.
            let bound = Duration::from_millis(500 + 3 * every);
            assert!(at(50) < bound, "{load:?}, {stop:?}: {gaps:?}");
        }
        drop(flood);
    }
    assert!(proxy.stop().status.success());
}

#[test(alone)]
fn nobody_takes_an_idle_worker_for_one_that_is_stuck_and_nothing_grows() {
    nobody_takes_it_for_stuck(Load::Idle);
}

#[test(alone)]
fn nobody_takes_a_busy_worker_for_one_that_is_stuck_and_nothing_grows() {
    nobody_takes_it_for_stuck(Load::Flood);
}

fn nobody_takes_it_for_stuck(load: Load) {
    let seconds = Duration::from_secs(wanted("QUIET"));
    let rig = rig();
    let proxy = Appliance::start(&rig, Backend::Driver, &format!("{CACHE_ON} on_failure = open; shed = off;"));
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let flood = (load == Load::Flood).then(|| Flood::start(&rig, server.address));
    let begin = Instant::now();
    // Once everything is warm.
    thread::sleep((seconds / 10).min(Duration::from_secs(10)));
    let memory = proxy.resident().expect("it runs");
    while begin.elapsed() < seconds {
        thread::sleep(Duration::from_millis(700));
        if load == Load::Idle {
            rig.client.sh(&format!("ping -n -q -c 1 -W 2 {} || true", netns::SERVER_V4));
        }
    }
    drop(flood);
    let grown = proxy.resident().expect("it runs").saturating_sub(memory);
    let report = proxy.stop();
    let said: Vec<&String> =
        report.log.iter().filter(|line| line.contains("left frames") || line.contains("is stuck")).collect();
    note!("{load:?}: {seconds:?}, {grown} KiB grown");
    assert!(said.is_empty() && report.figure("worker failed, times").unwrap_or(0) == 0, "{load:?}: {said:?}");
    // What a table has touched for the first time counts as memory.
    assert!(grown < 16 << 10, "{load:?}: {grown} KiB");
}

/// Connections that a box translates, and that pass through it.
fn flows(socket: &Path) -> (u64, u64) {
    match Client::connect(socket).expect("a box listens").ask(&Request::Status) {
        Ok(Reply::Status(status)) => (status.flows.proxied, status.flows.direct),
        other => panic!("{other:?}"),
    }
}

/// Connections one after the other, each with so many bytes both ways, closed in turn by a FIN that the other end answers, by a reset, and at once.
fn come_and_go(to: SocketAddr, from: &netns::Namespace, bytes: u64, over: &AtomicBool) -> io::Result<u64> {
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        let stream = from.connect(to)?;
        traffic::send(&stream, count, bytes)?;
        traffic::receive(&stream, count, Some(bytes))?;
        match count % 3 {
            0 => {
                stream.shutdown(Shutdown::Write)?;
                traffic::expect_end(&stream)?;
            }
            1 => traffic::abort_at_close(&stream)?,
            _ => {}
        }
        count += 1;
        thread::sleep(Duration::from_millis(2));
    }
    Ok(count)
}

#[test(alone)]
fn after_minutes_of_mixed_load_what_the_ends_have_open_is_what_lives() {
    const LASTING: usize = 100;
    let seconds = Duration::from_secs(wanted("LOAD"));
    let rig = rig();
    let socket = leftovers::file("endurance.sock");
    let times = "timeouts = { one_fin = 4; both_fin = 4; time_wait = 2; reseted = 2; ul_syn_sent = 8; dl_half_open = 8; dl_syn_sent = 8; };";
    let proxy = Appliance::start_with(
        &rig,
        Backend::Driver,
        &format!("{CACHE_ON} {times}"),
        &[&format!("--control={}", socket.display())],
    );
    // Some clients end with a reset, and others say nothing for minutes.
    let echo = |stream: TcpStream| {
        stream.set_read_timeout(None)?;
        match traffic::echo(stream) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            result => result,
        }
    };
    let inside = rig.server.serve(netns::SERVER_V4, 0, echo);
    let outside = rig.client.serve(netns::CLIENT_V4, 0, echo);
    let (from_wan, from_lan) = (inside.address, outside.address);
    let flood = Flood::start(&rig, from_wan);
    let over = AtomicBool::new(false);
    let open = |from: &netns::Namespace, to| -> Vec<TcpStream> {
        (0..LASTING).map(|_| from.connect(to).expect("a connection")).collect()
    };
    let (lasting, memory) = thread::scope(|scope| {
        let over = &over;
        let threads = [
            scope.spawn(|| come_and_go(from_wan, &rig.client, 64, over)),
            scope.spawn(|| come_and_go(from_wan, &rig.client, 4096, over)),
            scope.spawn(|| come_and_go(from_wan, &rig.client, 64 << 10, over)),
            scope.spawn(|| come_and_go(from_lan, &rig.server, 512, over)),
        ];
        thread::sleep(seconds / 5);
        let memory = proxy.resident().expect("it runs");
        // Opened in the middle of it, and left alone.
        let lasting = [open(&rig.client, from_wan), open(&rig.server, from_lan)];
        thread::sleep(seconds * 4 / 5);
        over.store(true, Ordering::Relaxed);
        let counts = threads.map(|thread| thread.join().expect("no panic").expect("no connection fails"));
        note!("{seconds:?}: {counts:?} connections came and went beside a flood");
        assert!(counts.iter().all(|&count| count > 20), "{counts:?}");
        (lasting, memory)
    });
    drop(flood);
    let patience = Duration::from_secs(60);
    let all = (LASTING as u64, LASTING as u64);
    within(patience, "what lives is what the ends have open", || flows(&socket) == all);
    for (n, stream) in (0..).zip(lasting.iter().flatten()) {
        traffic::send(stream, n, 64).and_then(|()| traffic::receive(stream, n, Some(64))).expect("it goes on");
    }
    let grown = proxy.resident().expect("it runs").saturating_sub(memory);
    drop(lasting);
    within(patience, "nothing lives when nothing is open", || flows(&socket) == (0, 0));
    note!("{grown} KiB grown");
    // What a table has touched for the first time counts as memory.
    assert!(grown < 16 << 10, "{grown} KiB");
    assert!(proxy.stop().status.success());
}
