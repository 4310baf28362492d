//! Nobody off path can keep clients out: neither by guesses in their own name, nor by signed SYNs that use up what passes unproved. Between real kernels, with
//! what `engine::abuse` tries in worlds without one.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{note, test};
use nix::errno::Errno;
use tools::raw::Sender;
use unit::netns::sockets::{self, Making, Syns};
use unit::netns::{self, Appliance, Backend, Rig, traffic};
use unit::script::{FlowKey, Seg, ack, build, syn};
use unit::world::Chance;

/// The longest that an honest client may wait: for its second retry, after three seconds, and its answer.
const LONGEST: Duration = Duration::from_millis(3500);

const PORT: u16 = 80;

/// The frame of a segment in somebody's name.
fn frame(source: Ipv4Addr, port: u16, segment: &Seg) -> Vec<u8> {
    let mac = |text: &str| tools::interface::parse_mac(text).expect("an Ethernet address");
    let ends = FlowKey {
        src: source.into(),
        dst: netns::SERVER_V4,
        sport: port,
        dport: PORT,
        // The answers go to an address nobody here has: this kernel would reset what it did not ask for.
        src_mac: mac("02:00:00:00:00:66"),
        dst_mac: mac(netns::SERVER_MAC),
        ttl: 64,
    };
    let mut frame = build(&ends, 0, segment);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Sends what `draw` makes, so many frames a second, from the client's side until `over`; how many.
fn attack(rig: &Rig, over: &AtomicBool, rate: u64, mut draw: impl FnMut(&mut Chance) -> Vec<u8> + Send) -> u64 {
    rig.client.run(|| {
        let sender = Sender::open("c0").expect("a packet socket");
        let (mut chance, start, mut sent) = (Chance::new(7), Instant::now(), 0);
        while !over.load(Ordering::Relaxed) {
            let due = start.elapsed().as_micros() as u64 * rate / 1_000_000;
            for _ in sent..due {
                let frame = draw(&mut chance);
                // What finds the queue full is lost, as on the way.
                let _ = sender.send(&frame, frame.len());
            }
            sent = due;
            thread::sleep(Duration::from_millis(1));
        }
        sent
    })
}

fn anybody(chance: &mut Chance) -> Ipv4Addr {
    Ipv4Addr::from(20 << 24 | chance.word() as u32 & 0x00ff_ffff)
}

/// The client's own address, or another of its network.
fn in_its_name(chance: &mut Chance) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, *chance.pick(&[1, 200, 201, 202, 203]))
}

fn port(chance: &mut Chance) -> u16 {
    chance.within(1024..65_535) as u16
}

#[test(light)]
fn guesses_in_its_own_name_keep_no_client_out() {
    for config in ["halfopen_cache_max = 16;", netns::CACHE_OFF] {
        let rig = Rig::new();
        let proxy = Appliance::start(&rig, Backend::Packet, &format!("{config} adopt_grace = 0; shed = off;"));
        let server = rig.server.serve(netns::SERVER_V4, PORT, traffic::echo);
        rig.client.sh(&format!("ping -n -q -c 2 -i 0.05 {}", netns::SERVER_V4));
        let over = AtomicBool::new(false);
        let (rig, over) = (&rig, &over);
        let waits = thread::scope(|scope| {
            // So many that a cache of sixteen is full all the time, and ten times the guesses that locked a /24 out.
            let mut seq = 0;
            let flood = move |chance: &mut Chance| {
                seq += 1;
                frame(anybody(chance), port(chance), &syn(seq).mss(1460))
            };
            let guesses = |chance: &mut Chance| {
                let [seq, number] = [chance.word(), chance.word()].map(|word| word as u32);
                frame(in_its_name(chance), port(chance), &ack(seq, number))
            };
            scope.spawn(move || attack(rig, over, 500, flood));
            let sent = scope.spawn(move || attack(rig, over, 20_000, guesses));
            thread::sleep(Duration::from_secs(1));
            let waits = rig.client.run(|| {
                let visit = |_| {
                    thread::sleep(Duration::from_millis(50));
                    let start = Instant::now();
                    let mut stream = traffic::connect(server.address)?;
                    stream.write_all(b"question")?;
                    stream.read_exact(&mut [0; 8])?;
                    Ok(start.elapsed())
                };
                (0..60).map(visit).collect::<Vec<std::io::Result<Duration>>>()
            });
            over.store(true, Ordering::Relaxed);
            note!("{config} {} guesses", sent.join().expect("an attacker"));
            waits
        });
        let report = proxy.stop();
        let slow: Vec<_> =
            waits.iter().filter(|wait| wait.as_ref().is_ok_and(|wait| *wait > LONGEST) || wait.is_err()).collect();
        let longest = waits.iter().flatten().max();
        note!("{config} longest wait {longest:?}; {}", report.log.join("\n"));
        assert!(slow.is_empty(), "{config}: {} of {} were kept out: {slow:?}", slow.len(), waits.len());
        assert!(report.figure("cookie-remembered").is_some_and(|clients| clients > 0), "nobody was attacked");
    }
}

#[test(light)]
fn forged_signed_syns_keep_no_signer_out_and_hardly_reach_the_server() {
    const KEY: &[u8] = b"a secret between routers";
    const SIGNATURE: [u8; 18] = [19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let (client, server): (IpAddr, IpAddr) = (netns::CLIENT_V4, netns::SERVER_V4);
    let rig = Rig::new();
    let proxy = Appliance::start(&rig, Backend::Packet, "");
    let making = Making { port: PORT, ..Making::default() };
    let listener = rig.server.run(|| making.listen(server, |socket| sockets::sign_with_md5(socket, client, KEY)));
    let listener = match listener {
        Err(error) if error.raw_os_error() == Some(Errno::ENOPROTOOPT as i32) => {
            harness::ignore("this kernel has no TCP-MD5");
        }
        other => other.expect("a listener that wants signatures"),
    };
    let address = listener.local_addr().expect("a bound socket has an address");
    rig.client.sh(&format!("ping -n -q -c 2 -i 0.05 {}", netns::SERVER_V4));
    let syns = Syns::watch(&rig.server);
    let (over, seconds) = (AtomicBool::new(false), AtomicU64::new(0));
    let (rig, over, seconds) = (&rig, &over, &seconds);
    let (waits, sent) = thread::scope(|scope| {
        // Ten times as many as a hostile tester sent, half in the name of the client's network.
        let forged = |chance: &mut Chance| {
            let source = if chance.one_in(1, 2) { in_its_name(chance) } else { anybody(chance) };
            frame(source, port(chance), &syn(chance.word() as u32).mss(1460).raw(&SIGNATURE))
        };
        let sent = scope.spawn(move || {
            let start = Instant::now();
            let sent = attack(rig, over, 12_500, forged);
            seconds.store(start.elapsed().as_secs() + 1, Ordering::Relaxed);
            sent
        });
        thread::sleep(Duration::from_secs(1));
        let served = scope.spawn(|| {
            for _ in 0..5 {
                sockets::accept(&listener, Duration::from_secs(10)).and_then(traffic::exchanged).expect("a server");
            }
        });
        let waits = rig.client.run(|| {
            let visit = |_| {
                let start = Instant::now();
                let stream =
                    Making::default().connect(client, address, |socket| sockets::sign_with_md5(socket, server, KEY))?;
                let waited = start.elapsed();
                traffic::exchange(&stream, 10_000, 10_000)?;
                Ok(waited)
            };
            (0..5).map(visit).collect::<Vec<std::io::Result<Duration>>>()
        });
        over.store(true, Ordering::Relaxed);
        served.join().expect("a server");
        (waits, sent.join().expect("an attacker"))
    });
    let reached = syns.stop().iter().filter(|syn| syn.to.port() == PORT && syn.from.ip() != client).count() as u64;
    let seconds = seconds.load(Ordering::Relaxed);
    let report = proxy.stop();
    note!("{sent} forged in {seconds} s, {reached} reached the server; {waits:?}; {}", report.log.join("\n"));
    for wait in waits {
        assert!(wait.expect("a signer connects") < LONGEST);
    }
    assert!(sent > 5000 * seconds.min(1), "the attack was none: {sent}");
    // Each worker allows a destination a little.
    assert!(
        reached < 150 * u64::from(rig.queues()) * seconds,
        "{reached} forged SYNs reached the server in {seconds} s"
    );
}
