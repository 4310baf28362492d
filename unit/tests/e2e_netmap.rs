//! netmap, against the kernel module: veth cables between real kernels, switches with hosts behind them, pipes. Runs where
//! there is a `/dev/netmap`; `make e2e-netmap` takes it to a guest that has one.
//!
//! How the module opens a veth end (by itself, or through the network stack) is a parameter of the module, common to all
//! namespaces: the tests take turns.

use std::fs::{self, File, OpenOptions};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use netmap_sys::netmap::{IFNAMSIZ, NETMAP_BDG_ATTACH, NETMAP_BDG_DETACH, NIOCREGIF, nmreq};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use unit::netns::{self, Appliance, Namespace, Rig, traffic};

const MB: u64 = 1 << 20;

/// How the module is to open an interface (`NETMAP_ADMODE_*`).
#[derive(Clone, Copy, Debug)]
enum Adapter {
    /// By the driver's own support, where it has any.
    Native = 0,
    /// Through the network stack.
    Generic = 2,
}

const PARAMETERS: &str = "/sys/module/netmap/parameters";

static TURNS: Mutex<()> = Mutex::new(());

/// The module, set to open interfaces so; `None`, and a line that says so, where there is none.
fn module(adapter: Adapter) -> Option<MutexGuard<'static, ()>> {
    if !Path::new("/dev/netmap").exists() {
        println!("skipped: there is no /dev/netmap here (`make e2e-netmap` has one)");
        return None;
    }
    let turn = TURNS.lock().unwrap_or_else(|poison| poison.into_inner());
    // A veth end without NAPI queues a frame where its sender runs: what one sends from two processors may overtake itself
    // before the module sees it. Threads and programs started from here stay where this is.
    let mut first = CpuSet::new();
    first.set(0).expect("there is a processor");
    sched_setaffinity(Pid::from_raw(0), &first).expect("staying on one processor");
    fs::write(format!("{PARAMETERS}/admode"), format!("{}", adapter as u8)).expect("setting a parameter of the module");
    Some(turn)
}

/// An interface as one more port of a switch, until it is dropped.
struct Plugged {
    device: File,
    name: String,
}

impl Plugged {
    /// `interface` of `namespace` becomes a port of `switch` there.
    fn new(namespace: &Namespace, switch: &str, interface: &str) -> Plugged {
        let name = format!("{switch}:{interface}");
        let device =
            namespace.run(|| OpenOptions::new().read(true).write(true).open("/dev/netmap").expect("/dev/netmap"));
        // The module looks names up in the namespace of the thread that asks.
        namespace.run(|| command(&device, &name, NETMAP_BDG_ATTACH)).unwrap_or_else(|error| panic!("{name}: {error}"));
        Plugged { device, name }
    }

    fn unplug(self, namespace: &Namespace) {
        namespace
            .run(|| command(&self.device, &self.name, NETMAP_BDG_DETACH))
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }
}

fn command(device: &File, name: &str, command: i32) -> std::io::Result<()> {
    // SAFETY: plain numbers, for all of which zero is a value.
    let mut request: nmreq = unsafe { std::mem::zeroed() };
    assert!(name.len() < IFNAMSIZ, "{name} is too long");
    for (to, from) in request.nr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.nr_version = 14;
    request.nr_cmd = command as u16;
    // SAFETY: the request is a whole structure of ours, which lives as long as the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), NIOCREGIF as _, &raw mut request) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The proxy on these two ports; what it says of them is shown.
fn start(rig: &Rig, lan: &str, wan: &str, config: &str, arguments: &[&str]) -> Appliance {
    let proxy = Appliance::start_on(rig, &[lan.to_owned(), wan.to_owned()], config, arguments);
    let tells = |line: &&String| [": netmap, ", " slots, ", " memories, "].iter().any(|word| line.contains(word));
    for line in proxy.log().iter().filter(tells) {
        println!("  the log says: {}", line.split_once("INFO").map_or(line.as_str(), |(_, told)| told.trim()));
    }
    proxy
}

fn ping(from: &Namespace, to: IpAddr) {
    let said = from.sh(&format!("ping -n -q -c 20 -i 0.05 -W 2 {to}"));
    assert!(said.contains(" 0% packet loss"), "{said}");
}

/// Pings, then a connection every way with every byte looked at, both kernels asked.
fn exchange_every_way(rig: &Rig, what: &str, bytes: u64) {
    ping(&rig.client, netns::SERVER_V4);
    ping(&rig.server, netns::CLIENT_V6);
    for (way, caller, called, ip) in [
        ("from the WAN, IPv4", &rig.client, &rig.server, netns::SERVER_V4),
        ("from the WAN, IPv6", &rig.client, &rig.server, netns::SERVER_V6),
        ("from the LAN, IPv4", &rig.server, &rig.client, netns::CLIENT_V4),
        ("from the LAN, IPv6", &rig.server, &rig.client, netns::CLIENT_V6),
    ] {
        let server = called.serve(ip, 0, traffic::exchanged);
        rig.judge([0, 0], || {
            let stream = caller.connect(server.address).unwrap_or_else(|e| panic!("{what}, {way}: connect: {e}"));
            traffic::exchange(&stream, bytes, bytes).unwrap_or_else(|e| panic!("{what}, {way}: {e}"));
        });
        println!("  {what}, {way}: {} KiB up and as many down, every byte as sent", bytes >> 10);
    }
}

/// Ends it, and expects that it lost nothing on the way that it says it lost.
fn stop(proxy: Appliance) -> Vec<String> {
    let report = proxy.stop();
    assert!(report.status.success(), "{}", report.log.join("\n"));
    report.log
}

/// What an interface has of queues and offloads.
fn settings(rig: &Rig, interface: &str) -> String {
    rig.middle.sh(&format!("ethtool -l {interface}; ethtool -k {interface}"))
}

#[test]
fn veth_cables_between_two_kernels_through_their_network_stacks() {
    let Some(_module) = module(Adapter::Generic) else { return };
    for cache in [netns::CACHE_ON, netns::CACHE_OFF] {
        let rig = Rig::alone();
        let before = [Rig::LAN, Rig::WAN].map(|interface| settings(&rig, interface));
        let proxy = start(&rig, "netmap:lan0", "netmap:wan0", cache, &[]);
        let ready = proxy.log().join("\n");
        assert_eq!(ready.matches("frames change places").count(), 2, "one memory:\n{ready}");
        exchange_every_way(&rig, &format!("veth, {cache}"), MB);
        stop(proxy);
        assert_eq!(before, [Rig::LAN, Rig::WAN].map(|interface| settings(&rig, interface)), "put back");
        // The kernel has its interfaces again.
        rig.middle.sh("ip addr add 10.77.0.77/24 dev wan0");
        ping(&rig.client, "10.77.0.77".parse().expect("an address"));
    }
}

#[test]
fn several_ring_pairs_with_a_worker_each() {
    let Some(_module) = module(Adapter::Generic) else { return };
    let rig = Rig::queued(4);
    let before = settings(&rig, Rig::WAN);
    let proxy = start(&rig, "netmap:lan0", "netmap:wan0", netns::CACHE_ON, &["--workers=2"]);
    assert_ne!(before, settings(&rig, Rig::WAN), "two queues instead of four");
    exchange_every_way(&rig, "two ring pairs", MB);
    stop(proxy);
    assert_eq!(before, settings(&rig, Rig::WAN), "put back");
}

#[test]
fn switches_with_hosts_behind_them() {
    let Some(_module) = module(Adapter::Generic) else { return };
    for (slots, cache) in
        [("", netns::CACHE_ON), ("ldp = { netmap_nr_rx_slots = 1024; netmap_nr_tx_slots = 1024; };", netns::CACHE_OFF)]
    {
        let rig = Rig::alone();
        let plugged = [("vale0", Rig::LAN), ("vale1", Rig::WAN)]
            .map(|(switch, interface)| Plugged::new(&rig.middle, switch, interface));
        let proxy = start(&rig, "vale0:1", "vale1:1", &format!("{slots} {cache}"), &[]);
        let rings = if slots.is_empty() { "rings of 256 and 64 slots" } else { "rings of 1024 and 1024 slots" };
        assert!(proxy.log().join("\n").contains(rings), "{}", proxy.log().join("\n"));
        exchange_every_way(&rig, &format!("VALE, {cache}"), MB);
        stop(proxy);
        plugged.into_iter().for_each(|plugged| plugged.unplug(&rig.middle));
    }
}

#[test]
fn pipes() {
    let Some(_module) = module(Adapter::Generic) else { return };
    let rig = Rig::alone();
    let proxy = start(&rig, "netmap:l{1", "netmap:w{1", netns::CACHE_ON, &[]);
    // Two that only forward lead from the other ends to the cables.
    let lan = start(&rig, "netmap:lan0", "netmap:l}1", "", &["--bypass"]);
    let wan = start(&rig, "netmap:wan0", "netmap:w}1", "", &["--bypass"]);
    exchange_every_way(&rig, "pipes", MB);
    [lan, wan, proxy].into_iter().for_each(|one| drop(stop(one)));
}

#[test]
fn a_pipe_in_the_memory_of_a_card_takes_its_frames_as_they_lie() {
    let Some(_module) = module(Adapter::Generic) else { return };
    let rig = Rig::alone();
    let proxy = start(&rig, "netmap:lan0", "netmap:lan0{1", netns::CACHE_ON, &[]);
    let wan = start(&rig, "netmap:lan0}1", "netmap:wan0", "", &["--bypass"]);
    let ready = [proxy.log(), wan.log()].concat().join("\n");
    assert_eq!(ready.matches("frames change places").count(), 4, "one memory:\n{ready}");
    exchange_every_way(&rig, "a card and a pipe in its memory", MB);
    [wan, proxy].into_iter().for_each(|one| drop(stop(one)));
}

/// netmap's own program that joins an interface's rings with those that lead to the network stack.
struct HostBridge(Child);

impl HostBridge {
    fn start(program: &Path, namespace: &Namespace, interface: &str) -> HostBridge {
        let mut command = namespace.command(program);
        command.args(["-i", &format!("netmap:{interface}")]).stdout(Stdio::null()).stderr(Stdio::null());
        HostBridge(command.spawn().expect("starting netmap's bridge"))
    }
}

impl Drop for HostBridge {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn veth_cables_whose_driver_knows_netmap() {
    let Some(_module) = module(Adapter::Native) else { return };
    let Some(program) = std::env::var_os("NETMAP_BRIDGE") else {
        println!("skipped: NETMAP_BRIDGE does not name netmap's program `bridge`, without which its kernel is no host");
        return;
    };
    let rig = Rig::alone();
    // Such a cable joins rings with rings: its outer ends have to be netmap's as well.
    let hosts =
        [(&rig.client, "c0"), (&rig.server, "s0")].map(|(host, end)| HostBridge::start(Path::new(&program), host, end));
    thread::sleep(Duration::from_secs(3));
    let proxy = start(&rig, "netmap:lan0", "netmap:wan0", netns::CACHE_ON, &[]);
    exchange_every_way(&rig, "veth that knows netmap", MB);
    stop(proxy);
    drop(hosts);
}
