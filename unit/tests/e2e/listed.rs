//! Lists of clients and limits between real kernels: what the operator lists, and what it takes; a million networks; a carrier's NAT with two networks
//! behind it; a network in whose name somebody floods.

use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{leftovers, note, test};
use tools::raw::Sender;
use unit::netns::sockets::Making;
use unit::netns::traffic::{self, Server};
use unit::netns::{self, Appliance, Backend, Namespace, Rig};
use unit::script::{FlowKey, build, syn};
use unit::world::Chance;

/// A box with a socket of its own.
struct Box {
    proxy: Appliance,
    socket: PathBuf,
}

impl Box {
    fn start(rig: &Rig, config: &str) -> Box {
        let socket = leftovers::file("listed.sock");
        let argument = format!("--control={}", socket.display());
        Box { proxy: Appliance::start_with(rig, Backend::Packet, config, &[&argument]), socket }
    }

    /// What `synctl` says to this line, and its status.
    fn synctl(&self, line: &str) -> (String, i32) {
        let mut command = Command::new(netns::program("synctl"));
        command.arg("--socket").arg(&self.socket).args(line.split_whitespace());
        let Output { status, stdout, stderr } = command.output().expect("running synctl");
        let said = [stdout, stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
        (said, status.code().expect("an end"))
    }

    #[track_caller]
    fn does(&self, line: &str) -> String {
        let (said, status) = self.synctl(line);
        assert_eq!(status, 0, "{line}: {said}");
        said
    }
}

/// Another address of the client's, by its last byte.
fn client(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, 0, last).into()
}

/// From now on a client that gets no answer to its SYN and the repetition gives up, after three seconds.
fn clients_are_impatient(rig: &Rig) {
    rig.client.sysctl("net.ipv4.tcp_syn_retries", "1");
}

/// Gives the client these addresses as well.
fn add_addresses(rig: &Rig, addresses: impl IntoIterator<Item = u8>) {
    let lines: String = addresses.into_iter().map(|last| format!("ip addr add {}/24 dev c0\n", client(last))).collect();
    rig.client.sh(&lines);
}

/// Connects from this address, and gets an answer of its server.
fn visits(rig: &Rig, from: IpAddr, server: &Server) -> std::io::Result<TcpStream> {
    rig.client.run(|| {
        let mut stream = Making::default().connect(from, server.address, |_| Ok(()))?;
        stream.write_all(b"question")?;
        stream.read_exact(&mut [0; 8])?;
        Ok(stream)
    })
}

#[test]
fn what_the_operator_lists_holds_for_new_connections_and_for_those_that_run_on_demand() {
    let file = leftovers::file("block.txt");
    fs::write(&file, "# a feed\n10.77.0.21 ; the first\n192.0.2.0/24\n").expect("a file");
    let [always, allow] = ["always.txt", "allow.txt"].map(leftovers::file);
    fs::write(&always, "10.77.0.23\n").expect("a file");
    fs::write(&allow, "203.0.113.0/24\n203.0.113.7\n").expect("a file");
    let rig = Rig::new();
    add_addresses(&rig, [21, 22, 23]);
    clients_are_impatient(&rig);
    let config = format!(
        "lists = {{ block_files = {{ \"{}\" }}; always_files = {{ \"{}\" }}; allow_files = {{ \"{}\" }}; }}; introductions = 1000;",
        file.display(),
        always.display(),
        allow.display()
    );
    let the_box = Box::start(&rig, &config);
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    assert!(visits(&rig, client(21), &server).is_err(), "it is in the file");
    let mut runs = visits(&rig, client(22), &server).expect("it is in no list");
    let mut proxied = visits(&rig, client(23), &server).expect("it is proxied");
    let shown = the_box.does("lists show");
    assert!(shown.contains("block   2") && shown.contains("always  1") && shown.contains("allow   2"), "{shown}");
    assert_eq!(the_box.does("lists show block"), "10.77.0.21\n192.0.2.0/24\n");

    // A change is in force when it is answered; connections that run go on.
    the_box.does("lists add block 10.77.0.22");
    assert!(visits(&rig, client(22), &server).is_err());
    runs.write_all(b"more").expect("it goes on");
    runs.read_exact(&mut [0; 4]).expect("it goes on");
    the_box.does("block --existing");
    let end = runs.read(&mut [0]).expect_err("it is reset");
    assert_eq!(end.kind(), ErrorKind::ConnectionReset, "{end}");
    let (absent, status) = the_box.synctl("lists remove block 10.77.0.0/24");
    assert!(status == 1 && absent.contains("is not in the list"), "{absent}");
    the_box.does("block 10.77.0.23 --existing");
    let end = proxied.read(&mut [0]).expect_err("it is reset");
    assert_eq!(end.kind(), ErrorKind::ConnectionReset, "{end}");
    the_box.does("lists remove block 10.77.0.22 10.77.0.21 10.77.0.23");
    for last in [21, 22, 23] {
        visits(&rig, client(last), &server).expect("nobody is blocked any more");
    }
    let (wrong, status) = the_box.synctl("lists replace block /nonexistent/list");
    assert!(status == 2 && wrong.contains("/nonexistent/list"), "{wrong}");
    fs::write(&file, "10.77.0.21\n10.77.0.256\n").expect("a file");
    let (wrong, status) = the_box.synctl(&format!("lists replace block {}", file.display()));
    assert!(status == 2 && wrong.contains("block.txt:2: `10.77.0.256` is no address"), "{wrong}");

    let log = the_box.proxy.log().join("\n");
    assert!(log.contains("user 0 (admin): add-to-list block: 10.77.0.22"), "{log}");
    assert!(log.contains("user 0 (admin): remove-from-list block: 10.77.0.22, 10.77.0.21, 10.77.0.23"), "{log}");
    let report = the_box.proxy.stop();
    assert!(report.figure("blocked").is_some_and(|frames| frames >= 2));
    assert_eq!(report.figure("blocked-reset"), Some(2));
    assert_eq!(report.figure("always-proxied"), Some(2));

    // After a start the lists are what the files say; one that cannot be read is named with its line.
    let text = leftovers::file("lists.conf");
    fs::write(&text, format!("synproxyconf = {{ {config} }};")).expect("a file");
    let check = Command::new(netns::program("synproxy")).arg("--check-config").arg(&text).output().expect("it runs");
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(!check.status.success() && said.contains("block.txt:2: `10.77.0.256`"), "{said}");
    fs::write(&file, "10.77.0.22\n").expect("a file");
    let the_box = Box::start(&rig, &config);
    assert_eq!(the_box.does("lists show block"), "10.77.0.22\n");
    visits(&rig, client(21), &server).expect("it is not in the file any more");
}

#[test]
fn an_allowed_client_meets_its_server_itself() {
    let rig = Rig::new();
    add_addresses(&rig, [21]);
    let the_box = Box::start(&rig, "lists = { allow = { \"10.77.0.21\" }; }; mss_clamp = 600;");
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    rig.judge([0, 0], || {
        rig.client.run(|| {
            let stream = Making::default().connect(client(21), server.address, |_| Ok(())).expect("a connection");
            assert!(netns::TcpInfo::of(&stream).get("snd_mss") > 1400, "nothing is clamped");
            traffic::exchange(&stream, 1_000_000, 1_000_000).expect("every byte");
        });
    });
    let report = the_box.proxy.stop();
    assert_eq!((report.figure("allowed"), report.figure("spliced")), (Some(1), None), "zero is not shown");
}

#[test(alone)]
fn a_million_networks_are_replaced_under_load_and_cost_no_connection() {
    let rig = Rig::alone();
    add_addresses(&rig, [21]);
    clients_are_impatient(&rig);
    let the_box = Box::start(&rig, "");
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let file = leftovers::file("million.txt");
    let (mut chance, mut text) = (Chance::new(3), String::new());
    for n in 0..1_000_000u32 {
        match n % 4 {
            // Nothing of 10.0.0.0/8.
            0..3 => writeln!(text, "{}/{}", Ipv4Addr::from(chance.word() as u32 | 0x8000_0000), 24 + n % 9),
            _ => writeln!(text, "2001:db8:{:x}:{:x}::/64", chance.word() as u16, chance.word() as u16),
        }
        .expect("a string takes everything");
    }
    fs::write(&file, text).expect("a file");
    let over = AtomicBool::new(false);
    let before = the_box.proxy.resident();
    let (replaced, visited) = thread::scope(|scope| {
        let visitor = scope.spawn(|| {
            let mut visited = 0;
            while !over.load(Ordering::Relaxed) {
                visits(&rig, netns::CLIENT_V4, &server).expect("a client in no list is served");
                visited += 1;
            }
            visited
        });
        let begin = Instant::now();
        the_box.does(&format!("lists replace block {}", file.display()));
        let replaced = begin.elapsed();
        let shown = the_box.does("lists show");
        the_box.does("lists add block 10.77.0.21");
        assert!(visits(&rig, client(21), &server).is_err());
        the_box.does("lists remove block 10.77.0.21");
        visits(&rig, client(21), &server).expect("it is blocked no more");
        over.store(true, Ordering::Relaxed);
        note!("{shown}");
        (replaced, visitor.join().expect("a visitor"))
    });
    let used = the_box.proxy.resident().zip(before).map(|(now, before)| now.saturating_sub(before) / 1_000_000);
    note!("replaced in {replaced:?}, {visited} connections meanwhile, {used:?} MB more");
    assert!(visited > 0);
    fs::remove_file(&file).expect("it is there");
}

/// A network behind the client's namespace, which translates its addresses into the client's own and the ports of one block, as a carrier's NAT does.
fn behind_nat(rig: &Rig, n: u8, ports: &str) -> Namespace {
    let network = Namespace::new(&format!("nat{n}"));
    rig.client.sh(&format!(
        "ip link add n{n} type veth peer name e0 netns {}
         ethtool -K n{n} tx off >/dev/null
         ip link set n{n} up
         ip addr add 10.1.{n}.1/24 dev n{n}
         nft add rule ip nat post ip protocol tcp ip saddr 10.1.{n}.0/24 snat to {}:{ports}",
        network.name(),
        netns::CLIENT_V4,
    ));
    network.sh(&format!(
        "ethtool -K e0 tx off >/dev/null
         ip link set e0 up
         ip addr add 10.1.{n}.2/24 dev e0
         ip route add default via 10.1.{n}.1"
    ));
    network
}

/// Opens connections one after the other, as many; those that get an answer stay open.
fn opens(network: &Namespace, server: SocketAddr, count: usize) -> Vec<TcpStream> {
    network.run(|| {
        let visit = |_| {
            let mut stream = traffic::connect(server).ok()?;
            stream.write_all(b"question").ok()?;
            stream.read_exact(&mut [0; 8]).ok()?;
            Some(stream)
        };
        (0..count).filter_map(visit).collect()
    })
}

#[test]
fn one_host_behind_a_carrier_s_nat_does_not_lock_out_the_others_behind_its_address() {
    let rig = Rig::new();
    let nat = "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }";
    let made = rig.client.command("nft").arg(nat).output();
    if !made.is_ok_and(|made| made.status.success()) {
        harness::ignore("no NAT here: nft, or the kernel's");
    }
    rig.client.sysctl("net.ipv4.ip_forward", "1");
    let (greedy, honest) = (behind_nat(&rig, 1, "8192-12287"), behind_nat(&rig, 2, "20480-24575"));
    let the_box = Box::start(&rig, "limits = { source_flows = 80; };");
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let held = opens(&greedy, server.address, 100);
    assert_eq!(held.len(), 20, "a quarter of what the address may");
    let served = opens(&honest, server.address, 18);
    assert_eq!(served.len(), 18);
    // Ended connections make room for others.
    drop(held);
    thread::sleep(Duration::from_millis(500));
    assert!(opens(&greedy, server.address, 5).len() == 5);
    thread::sleep(Duration::from_millis(2100));
    let log = the_box.proxy.log();
    let lines = log.iter().filter(|line| line.contains("limits were reached")).count();
    // Their ends pass the box before it goes.
    drop((served, server));
    let report = the_box.proxy.stop();
    assert_eq!(report.figure("over-source-flows"), Some(80));
    assert!((1..=10).contains(&lines), "{lines} lines for 80 refusals");
}

#[test(light, long)]
fn a_flood_in_a_network_s_name_spends_no_limit_of_its_clients() {
    let rig = Rig::new();
    add_addresses(&rig, 31..35);
    // Each worker has buckets of its own: together as many tokens as one has by default.
    let [most, a_second] = [2000, 400].map(|tokens: u32| tokens / rig.queues());
    let the_box = Box::start(
        &rig,
        &format!(
            "limits = {{ source_rate = 40; source_flows = 200; destination_rate = 1000; }}; shed = off; adopt_grace = 0;
             ratehash = {{ initial_tokens = {most}; timer_add = {a_second}; }};"
        ),
    );
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    rig.client.sh(&format!("ping -n -q -c 2 -i 0.05 {}", netns::SERVER_V4));
    let (over, port) = (AtomicBool::new(false), server.address.port());
    let (waits, sent) = thread::scope(|scope| {
        let flood = scope.spawn(|| rig.client.run(|| forge(&over, port)));
        thread::sleep(Duration::from_secs(1));
        let waits: Vec<_> = (0..20u8)
            .map(|n| {
                let begin = Instant::now();
                rig.client.run(|| {
                    let mut stream = Making::default().connect(client(31 + n % 4), server.address, |_| Ok(()))?;
                    stream.write_all(b"question")?;
                    stream.read_exact(&mut [0; 8])?;
                    std::io::Result::Ok(begin.elapsed())
                })
            })
            .collect();
        over.store(true, Ordering::Relaxed);
        (waits, flood.join().expect("a flood"))
    });
    let report = the_box.proxy.stop();
    let longest = waits.iter().flatten().max();
    note!("{sent} forged SYNs, longest wait {longest:?}");
    assert!(waits.iter().all(Result::is_ok), "{waits:?}");
    // For its second retry, after three seconds, and its answer.
    assert!(longest.is_some_and(|longest| *longest < Duration::from_millis(3500)), "{waits:?}");
    assert_eq!([report.figure("over-source-rate"), report.figure("over-source-flows")], [None; 2], "zero is not shown");
    assert!(report.figure("rate-limited").is_some_and(|frames| frames > 1000), "its SYNs are limited");
}

/// SYNs in the name of the client's whole /24 to this port, 5000 a second, until `over`; how many.
fn forge(over: &AtomicBool, port: u16) -> u64 {
    let mac = |text: &str| tools::interface::parse_mac(text).expect("an Ethernet address");
    let sender = Sender::open("c0").expect("a packet socket");
    let (mut chance, start, mut sent) = (Chance::new(9), Instant::now(), 0);
    while !over.load(Ordering::Relaxed) {
        let due = start.elapsed().as_micros() as u64 * 5000 / 1_000_000;
        for _ in sent..due {
            let ends = FlowKey {
                src: client(chance.within(100..250) as u8),
                dst: netns::SERVER_V4,
                sport: chance.within(1024..65_535) as u16,
                dport: port,
                // The answers go to an address nobody here has: this kernel would reset what it did not ask for.
                src_mac: mac("02:00:00:00:00:66"),
                dst_mac: mac(netns::SERVER_MAC),
                ttl: 64,
            };
            let mut frame = build(&ends, 0, &syn(chance.word() as u32).mss(1460));
            frame.resize(frame.len().max(60), 0);
            // What finds the queue full is lost, as on the way.
            let _ = sender.send(&frame, frame.len());
        }
        sent = due;
        thread::sleep(Duration::from_millis(1));
    }
    sent
}
