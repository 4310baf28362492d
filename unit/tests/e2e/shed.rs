//! Pressed beyond what it can do, the proxy leaves out the flood and nobody else: those who have proved themselves connect, and so do strangers
//! who repeat their SYN. How fast is the benchmarks' affair.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use harness::{note, test};
use unit::netns::sockets::Making;
use unit::netns::{self, Appliance, Backend, Rig, program, traffic};

/// Connections of each kind of client.
const HONEST: u32 = 5;

/// Keeps all threads of a process on one core.
fn confine(pid: u32, core: usize) {
    let arguments = ["-a", "-p", "-c", &core.to_string(), &pid.to_string()];
    let output = Command::new("taskset").args(arguments).output().expect("taskset is part of util-linux");
    assert!(output.status.success(), "taskset: {}", String::from_utf8_lossy(&output.stderr));
}

/// The niceness of this process, and so of the flood it starts.
fn niceness() -> u32 {
    let stat = fs::read_to_string("/proc/self/stat").expect("a process may read of itself");
    // The nineteenth field (proc_pid_stat(5)), the seventeenth behind the name, which may hold anything.
    let field = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(16));
    let nice: i32 = field.and_then(|field| field.parse().ok()).expect("a number");
    nice.max(0) as u32
}

fn the_flood_is_what_is_left_out(backend: Backend) {
    let rig = Rig::alone();
    // Behind the flood's generator on the same core, the workers cannot keep up however fast they are. Five steps leave one of them a
    // quarter of the core, and every three more half as much: several have together what one would have.
    let nice = (niceness() + 5 + 3 * rig.queues().ilog2()).min(19);
    let proxy = Appliance::start_with(&rig, backend, netns::CACHE_OFF, &["--nice", &nice.to_string()]);
    confine(proxy.pid(), 0);
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    let address = server.address;
    rig.client.sh(&format!("ping -n -q -c 2 -i 0.05 {}", netns::SERVER_V4));
    let mut established = rig.client.connect(address).expect("connecting in peace");

    let mut flood = rig.client.command("taskset");
    flood.args(["-c", "0"]).arg(program("synflood"));
    flood.args(["--interface", "c0", "--to", &netns::SERVER_V4.to_string(), "--to-mac", netns::SERVER_MAC]);
    flood.args(["--from-mac", "02:00:00:00:00:66", "--kind", "syn", "--seconds", "60"]);
    let mut flood = flood.stdout(Stdio::null()).spawn().expect("starting the flood");
    thread::sleep(Duration::from_secs(1));

    let ask = |stream: &mut TcpStream, number: u32| {
        stream.write_all(&number.to_be_bytes()).expect("asking");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("the answer");
        assert_eq!(answer, number.to_be_bytes());
    };
    for number in 0..HONEST {
        ask(&mut established, number);
        // The client's address has proved itself.
        ask(&mut rig.client.connect(address).expect("a proved source connects"), number);
    }
    // Another address of the same host has not: it is heard when it repeats its SYN.
    for number in 0..HONEST {
        let stranger = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100 + number as u8));
        rig.client.sh(&format!("ip addr add {stranger}/24 dev c0"));
        let stream = rig.client.run(|| Making::default().connect(stranger, address, |_| Ok(())));
        ask(&mut stream.expect("a stranger connects"), number);
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(flood.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .expect("the flood outlasts the honest");
    flood.wait().expect("waiting for the flood");
    // Their ends pass the box before it goes.
    drop((established, server));
    let report = proxy.stop();
    note!("{}", report.log.join("\n"));
    assert!(report.status.success());
    // The last column of the table is the WAN's.
    let row = report.log.iter().find_map(|line| line.strip_prefix("shed-fresh")).unwrap_or_default();
    let left_out = row.split_whitespace().next_back().and_then(|count| count.parse::<u64>().ok());
    assert!(left_out.unwrap_or(0) > 0, "{backend:?}: nothing was left out");
}

#[test(alone)]
fn the_flood_is_what_is_left_out_by_the_program_in_the_driver() {
    the_flood_is_what_is_left_out(Backend::Driver);
}

#[test(alone)]
fn the_flood_is_what_is_left_out_by_the_worker_behind_af_packet() {
    the_flood_is_what_is_left_out(Backend::Packet);
}
