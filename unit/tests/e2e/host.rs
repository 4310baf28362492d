//! `synproxy host NIC`: a machine's own services behind a box on the same machine. The NIC keeps everything that it has, connections go on when
//! the box starts, ends and is killed, and nothing is left of it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::restart::StateDir;
use harness::{ignore, note, test};
use nix::sys::signal::Signal;
use unit::netns::tags::{self, CUSTOMER};
use unit::netns::{self, Appliance, CACHE_OFF, CACHE_ON, Namespace, Rig, program, traffic};

const MB: u64 = 1 << 20;

/// A machine with a NIC, `s0`, in the rig's server namespace; the clients and its router are in the client namespace. Both leave checksums
/// and segments to their interfaces.
fn machine() -> Rig {
    let rig = Rig::new().with_default_offloads(false);
    rig.bridge();
    rig
}

/// Everything of an address, a route, a rule, a neighbour and a group that a NIC may have.
fn furnish(rig: &Rig) {
    rig.server.sh("
        ip addr add 10.77.0.21/24 brd 10.77.0.255 dev s0 label s0:second
        ip addr add 192.0.2.5 peer 192.0.2.6/32 dev s0 scope link
        ip addr add 10.77.0.22/24 dev s0 valid_lft 7000 preferred_lft 6000
        ip addr add fd77::22/64 dev s0 nodad valid_lft 7000 preferred_lft 0
        ip addr add fd77::23/64 dev s0 nodad noprefixroute
        ip route add default via 10.77.0.1 dev s0 src 10.77.0.2 metric 50
        ip route add 198.51.100.0/24 via 10.77.0.1 dev s0 proto dhcp metric 100 mtu 1400
        ip route add 203.0.113.0/24 dev s0 table 100
        ip -6 route add default via fd77::1 dev s0 metric 1024 pref high
        ip -6 route add 2001:db8::/32 via fd77::1 dev s0 table 100
        ip rule add iif s0 lookup 100 pref 1000
        ip rule add oif s0 fwmark 7 lookup 100 pref 1001
        ip neigh add 10.77.0.77 lladdr 02:00:00:00:00:77 dev s0
        ip neigh add proxy 10.77.0.200 dev s0
        ip -6 neigh add proxy fd77::200 dev s0
        ip maddr add 01:00:5e:01:02:03 dev s0
        ip link set dev s0 alias uplink
        ip link property add dev s0 altname en-first");
    rig.server.sysctl("net.ipv4.conf.s0.rp_filter", "2");
}

/// What the NIC has, in the words of `ip`. Lifetimes go on, and what a program has attached is no part of it.
fn identity(rig: &Rig) -> String {
    let said = rig.server.sh("
        ip addr show dev s0; ip -6 neigh show proxy
        ip link show dev s0 | grep -o 'alias.*\\|altname.*\\|link/ether [^ ]*\\|mtu [^ ]*'
        ip route show table all dev s0; ip -6 route show table all dev s0; ip rule; ip -6 rule
        ip neigh show nud permanent dev s0; ip neigh show proxy dev s0; ip maddr show dev s0
        grep . /proc/sys/net/ipv4/conf/s0/* /proc/sys/net/ipv6/conf/s0/* 2>/dev/null || true");
    let is_kept = |word: &&str| !word.starts_with("xdp");
    let kept = |word: &str| if word.ends_with("sec") { "SECONDS".to_owned() } else { word.to_owned() };
    let line = |line: &str| line.split(' ').filter(is_kept).map(kept).collect::<Vec<_>>().join(" ") + "\n";
    said.lines().filter(|line| !line.contains("prog/xdp")).map(line).collect()
}

/// Everything of the machine that a box may have changed.
fn traces(rig: &Rig) -> String {
    rig.server.sh("ip -d link; tc qdisc; tc filter show dev s0 egress; ethtool -k s0; ethtool -l s0 2>&1 || true")
        + &files(rig).join("\n")
}

/// The files about interfaces of the machine.
fn files(rig: &Rig) -> Vec<String> {
    let number = rig.server.sh("stat -Lc %i /proc/self/ns/net");
    let entries = fs::read_dir(control::DIRECTORY).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.ends_with(&format!("@{}", number.trim()))).collect()
}

/// The command of the page. The machine's NIC has another name in the rig.
const COMMAND: &str = "synproxy host eth0";

fn start(rig: &Rig, config: &str, arguments: &[&str]) -> Appliance {
    let ports = COMMAND.split(' ').skip(1).map(|port| port.replace("eth0", "s0"));
    Appliance::start_in(rig, &rig.server, &ports.collect::<Vec<_>>(), config, arguments)
}

/// Runs the program on the machine to its end; what it says, and its status.
fn synproxy(rig: &Rig, arguments: &[&str]) -> (String, i32) {
    let mut command = rig.server.command("timeout");
    let Output { status, stdout, stderr } =
        command.arg("20").arg(program("synproxy")).args(arguments).output().expect("starting");
    let said = [stdout, stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
    (said, status.code().expect("an end"))
}

/// A connection on which a byte goes there and back all the time, as somebody types who is logged in.
struct Session {
    stop: Arc<AtomicBool>,
    echoes: Arc<AtomicU64>,
    thread: Option<JoinHandle<io::Result<Duration>>>,
}

impl Session {
    /// Connects from `from` to an echo server.
    fn open(from: &Namespace, to: SocketAddr) -> Session {
        let stream = from.connect(to).expect("logging in");
        let (stop, echoes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = thread::spawn({
            let (stop, echoes) = (Arc::clone(&stop), Arc::clone(&echoes));
            move || type_on(stream, &stop, &echoes)
        });
        Session { stop, echoes, thread: Some(thread) }
    }

    /// Waits until the session has gone on from here.
    fn goes_on(&self, when: &str) {
        let begin = Instant::now();
        let before = self.echoes.load(Ordering::Relaxed);
        while self.echoes.load(Ordering::Relaxed) < before + 5 {
            let is_over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!is_over && begin.elapsed() < Duration::from_secs(30), "the session does not go on {when}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it; returns the longest time that an echo took.
    fn end(mut self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("ended once").join().expect("it does not panic").expect("the session lasted")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Its server waits for it, also when a test has failed.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn type_on(mut stream: TcpStream, stop: &AtomicBool, echoes: &AtomicU64) -> io::Result<Duration> {
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        longest = longest.max(begin.elapsed());
        echoes.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(5));
    }
    Ok(longest)
}

/// A member of a multicast group on the machine, which says what it has heard.
struct Member(UdpSocket);

/// The group, and the port.
const GROUP: (Ipv4Addr, u16) = (Ipv4Addr::new(239, 1, 2, 3), 5353);

impl Member {
    fn join(rig: &Rig) -> Member {
        let IpAddr::V4(own) = netns::SERVER_V4 else { unreachable!("it is an IPv4 address") };
        let socket = rig.server.run(|| UdpSocket::bind(("0.0.0.0", GROUP.1))).expect("a socket");
        socket.join_multicast_v4(&GROUP.0, &own).expect("joining");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
        Member(socket)
    }

    fn hears(&self, rig: &Rig, what: &str) {
        let sender = rig.client.run(|| UdpSocket::bind((netns::CLIENT_V4, 0))).expect("a socket");
        sender.send_to(what.as_bytes(), GROUP).expect("sending to the group");
        let mut buffer = [0; 64];
        let length = self.0.recv(&mut buffer).unwrap_or_else(|error| panic!("the group is not heard {what}: {error}"));
        assert_eq!(&buffer[..length], what.as_bytes());
    }
}

#[test]
fn a_machine_is_protected_by_a_box_of_its_own_and_its_nic_keeps_all_it_has() {
    let rig = machine();
    furnish(&rig);
    let member = Member::join(&rig);
    let echo = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let far = rig.client.serve(netns::CLIENT_V6, 0, traffic::echo);
    rig.judge([0, 0], || {
        let (login, outward) = (Session::open(&rig.client, echo.address), Session::open(&rig.server, far.address));
        member.hears(&rig, "before");
        let (before, untouched) = (identity(&rig), traces(&rig));
        assert!(before.contains("s0:second") && before.contains("iif s0") && before.contains("239.1.2.3"), "{before}");
        for config in [CACHE_ON, CACHE_OFF] {
            let proxy = start(&rig, config, &[]);
            assert_eq!(identity(&rig), before, "while the box runs");
            login.goes_on("when the box has started");
            outward.goes_on("when the box has started");
            member.hears(&rig, "while the box runs");
            rig.exchange_every_way(2 * MB);
            rig.client.sh("ping -c1 -W2 10.77.0.21; ping -c1 -W2 fd77::23");
            let report = proxy.stop();
            assert!(report.status.success());
            assert_eq!(report.figure("syn-answered"), Some(2), "two connections came from outside");
            assert_eq!(traces(&rig), untouched, "after the box has ended");
            assert_eq!(identity(&rig), before, "after the box has ended");
            login.goes_on("when the box has ended");
            outward.goes_on("when the box has ended");
            member.hears(&rig, "after the box");
        }
        note!("an echo took {:?} and {:?} at most", login.end(), outward.end());
    });
}

#[test]
fn a_nic_without_xdp_in_its_driver_has_a_box_as_well() {
    let rig = machine();
    let proxy = start(&rig, CACHE_ON, &["--xdp-mode=generic"]);
    rig.exchange_every_way(2 * MB);
    let report = proxy.stop();
    assert!(report.status.success());
    assert_eq!(report.figure("syn-answered"), Some(2));
}

#[test]
fn a_box_that_is_killed_leaves_the_machine_reachable_and_is_cleaned_up_after() {
    let rig = machine();
    furnish(&rig);
    let echo = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let login = Session::open(&rig.client, echo.address);
    let (before, untouched) = (identity(&rig), traces(&rig));
    let starts_and_is_killed = || {
        let proxy = start(&rig, CACHE_ON, &[]);
        login.goes_on("when the box has started");
        proxy.end(Signal::SIGKILL);
        login.goes_on("when the box was killed");
        assert_eq!(identity(&rig), before);
        // Nothing is in between any more, and what is left does nothing.
        rig.exchange_every_way(10_000);
        assert_ne!(traces(&rig), untouched, "a killed process cleans nothing up");
    };
    starts_and_is_killed();
    let (said, status) = synproxy(&rig, &["--restore"]);
    assert!(status == 0 && said.contains("s0: filter of this machine's frames"), "{said}");
    assert_eq!(traces(&rig), untouched);
    assert_eq!(synproxy(&rig, &["--restore", "s0"]), ("nothing is to be put back\n".to_owned(), 0));
    starts_and_is_killed();
    let proxy = start(&rig, CACHE_ON, &[]);
    assert!(proxy.log().iter().any(|line| line.contains("of a process that was killed removed")));
    login.goes_on("with the next box");
    rig.exchange_every_way(10_000);
    assert!(proxy.stop().status.success());
    assert_eq!(traces(&rig), untouched);
    login.end();
}

/// Without a box the machine is reachable as it is, so what belongs to a translated connection reaches the wrong numbers: its ends challenge that, and
/// wait for the next box.
#[test]
fn a_connection_through_the_box_goes_on_with_the_next_one() {
    let rig = machine();
    let state = StateDir::new();
    let arguments = state.arguments();
    let arguments = arguments.each_ref().map(String::as_str);
    let echo = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let mut proxy = start(&rig, CACHE_ON, &arguments);
    let login = Session::open(&rig.client, echo.address);
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        login.goes_on("through the box");
        proxy.end(signal);
        thread::sleep(Duration::from_millis(500));
        proxy = start(&rig, CACHE_ON, &arguments);
        let log = proxy.log();
        assert!(log.iter().any(|line| line.contains("taking over the state")), "{signal}: {}", log.join("\n"));
        login.goes_on(&format!("with the next box after {signal}"));
    }
    note!("the longest pause: {:?}", login.end());
    assert!(proxy.stop().status.success());
}

#[test]
fn what_is_no_nic_for_a_box_of_the_machine_is_refused_and_nothing_is_left() {
    let rig = machine();
    let untouched = traces(&rig);
    let refused = |arguments: &[&str], words: &str| {
        let (said, status) = synproxy(&rig, &[&["--control=none"], arguments].concat());
        let complaint = said.lines().find(|line| line.starts_with("synproxy: ")).unwrap_or_else(|| panic!("{said}"));
        assert!(status == 4 && complaint.contains(words), "{arguments:?}: status {status}, {complaint}");
    };
    refused(&["host", "s9"], "there is no interface \"s9\"");
    refused(&["host", "lo"], "lo is no Ethernet interface");
    refused(&["host", "packet:s0"], "write `host NIC`");
    refused(&["s0", "host"], "write `host NIC`");
    rig.server.sh("ip link add b0 type bridge; ip link set s0 master b0");
    refused(&["host", "s0"], "s0 is a member of b0 (bridge)");
    rig.server.sh("ip link del b0; ip link add host-s0 type ifb");
    refused(&["host", "s0"], "there is an interface host-s0 or stack-s0 already");
    rig.server.sh("ip link del host-s0");
    rig.server.sh("tc qdisc add dev s0 clsact; tc filter add dev s0 egress u32 match u32 0 0 action mirred egress redirect dev lo");
    refused(&["host", "s0"], "s0 has a filter at its egress (u32)");
    rig.server.sh("tc qdisc del dev s0 clsact");
    assert_eq!(traces(&rig), untouched);
    let proxy = start(&rig, CACHE_ON, &[]);
    refused(&["host", "s0"], &format!("s0 belongs to the box between host and s0, process {}", proxy.pid()));
    rig.exchange_every_way(10_000);
    assert!(proxy.stop().status.success());
    assert_eq!(traces(&rig), untouched);
}

/// The tag is beside the frame when the machine sends it, as with a VLAN interface above the NIC.
#[test]
fn vlans_above_the_nic_go_through_the_box() {
    let rig = Rig::tagged(1500, &[CUSTOMER]).with_default_offloads(false);
    rig.bridge();
    // The rig's filter stands for a VLAN interface, which hands the NIC its frames: before any filter of the NIC.
    rig.server.sh("tc filter del dev s0 egress");
    let proxy = start(&rig, CACHE_ON, &[]);
    tags::put_first(&rig.server, "s0", &[CUSTOMER]);
    rig.exchange_every_way(MB);
    let report = proxy.stop();
    assert!(report.status.success());
    assert_eq!(report.figure("syn-answered"), Some(2));
}

/// A lease is asked for and given by a box that runs: a DHCP client reads and writes frames below the stack.
#[test]
fn a_dhcp_client_gets_its_lease_through_the_box() {
    let rig = machine();
    for needed in ["dnsmasq", "busybox"] {
        if rig.server.sh(&format!("command -v {needed} || true")).is_empty() {
            ignore(format_args!("{needed} is not installed"));
        }
    }
    let mut daemon = rig.client.command("dnsmasq");
    daemon.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=c0", "--bind-interfaces"]);
    daemon.args(["--dhcp-range=10.77.0.50,10.77.0.60,2m", "--dhcp-leasefile=/dev/null", "--pid-file="]);
    let mut daemon = daemon.spawn().expect("starting dnsmasq");
    let proxy = start(&rig, CACHE_ON, &[]);
    let said = rig.server.sh("busybox udhcpc -f -n -q -t 10 -T 1 -i s0 -s /bin/true 2>&1");
    let _ = daemon.kill();
    let _ = daemon.wait();
    assert!(said.contains("lease of 10.77.0.5") || said.contains("lease of 10.77.0.60"), "{said}");
    assert!(proxy.stop().status.success());
}
