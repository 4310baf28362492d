//! What stands in the middle: our forwarder, the proxy, or what the kernel has instead.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tools::xdp_generator::ATTACKER;
use unit::netns::{self, Appliance, Backend, CACHE_OFF, CACHE_ON, Rig, traffic};

/// The core of whatever stands in the middle, as far as it can be told; the generator has the last one.
const CORE: usize = 0;

/// The candidates, side by side in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Middle {
    /// `synproxy --bypass`: the same ports, the same batches, and nothing is looked at. The limit.
    Bypass,
    /// `synproxy` without the SYN cache.
    Cookies,
    /// `synproxy` with it.
    Cache,
    /// The kernel's bridge, which protects nothing.
    Bridge,
    /// The kernel's SYNPROXY in a router, by nftables.
    Nftables,
    /// As [`Middle::Cookies`], asleep whenever there is nothing to do.
    Interrupt,
    /// As [`Middle::Cookies`], never asleep.
    Busy,
    /// `synproxy` that hands established connections down to programs at tc, between packet sockets.
    FastTc,
    /// `synproxy` that hands them down to the XDP program.
    FastXdp,
    /// As [`Middle::Cookies`], and the kernel answers SYNs by itself.
    Kernel,
    /// The same, and it answers SYNs at tc, too, however many come.
    KernelTc,
    /// [`Middle::FastXdp`], and the XDP program answers SYNs.
    KernelXdp,
    /// Whichever of the two suits these ports, as `fast_path = auto` takes it; with an XDP program in front of tc while many SYNs come.
    KernelAuto,
    /// The kernel's bridge behind a bare XDP program that drops the flood by its Ethernet address: the limit of a service under a flood.
    Sieve,
    /// A bare XDP program that sends every frame back. The limit of an answer.
    Bounce,
    /// A bare XDP program that drops every frame. The limit of a drop.
    Hole,
}

impl Middle {
    pub const ALL: [Middle; 5] = [Middle::Bypass, Middle::Cookies, Middle::Cache, Middle::Bridge, Middle::Nftables];

    /// Those that are measured only when asked for.
    pub const MORE: [Middle; 11] = [
        Middle::Interrupt,
        Middle::Busy,
        Middle::FastTc,
        Middle::FastXdp,
        Middle::Kernel,
        Middle::KernelTc,
        Middle::KernelXdp,
        Middle::KernelAuto,
        Middle::Sieve,
        Middle::Bounce,
        Middle::Hole,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Middle::Bypass => "bypass",
            Middle::Cookies => "cookies",
            Middle::Cache => "cache",
            Middle::Bridge => "bridge",
            Middle::Nftables => "nftables",
            Middle::Interrupt => "interrupt",
            Middle::Busy => "busy",
            Middle::FastTc => "fast-tc",
            Middle::FastXdp => "fast-xdp",
            Middle::Kernel => "kernel",
            Middle::KernelTc => "kernel-tc",
            Middle::KernelXdp => "kernel-xdp",
            Middle::KernelAuto => "kernel-auto",
            Middle::Sieve => "sieve",
            Middle::Bounce => "xdp-tx",
            Middle::Hole => "xdp-drop",
        }
    }

    /// Whether it is our program.
    pub fn is_ours(self) -> bool {
        !matches!(self, Middle::Bridge | Middle::Sieve | Middle::Nftables) && !self.is_bare()
    }

    /// Whether it is a bare program, which carries nothing.
    pub fn is_bare(self) -> bool {
        matches!(self, Middle::Bounce | Middle::Hole)
    }

    /// Whether a SYN that is not proved reaches the server.
    pub fn protects(self) -> bool {
        !matches!(self, Middle::Bypass | Middle::Bridge | Middle::Sieve)
    }
}

/// One of them at work in a rig.
pub struct Stood<'a> {
    pub middle: Middle,
    rig: &'a Rig,
    appliance: Option<Appliance>,
    /// The kernel's threads that receive for the box.
    threads: Vec<u32>,
}

impl<'a> Stood<'a> {
    /// Puts it there. `apart`, for rates: what the kernel receives for the box is received by threads of its own on [`CORE`], as a worker of
    /// ours is on it, and not by whoever sends, and nothing is left out under pressure; without, as the kernel and we do by default.
    pub fn stand(rig: &'a Rig, middle: Middle, apart: bool) -> Stood<'a> {
        // The strangers live behind the client.
        let strangers = "10.78.0.0/16";
        rig.client.sh(&format!("ip route add local {strangers} dev lo"));
        rig.server.sh(&format!("ip route add {strangers} via {}", netns::CLIENT_V4));
        let mut stood = Stood { middle, rig, appliance: None, threads: Vec::new() };
        let start_by = |backend: Backend, config: &str, arguments: &[&str]| {
            let shed = if apart { "shed = off;\n" } else { "" };
            let config = format!("adopt_grace = 0;\n{shed}{config}");
            let appliance = Appliance::start_with(rig, backend, &config, arguments);
            for task in tasks(appliance.pid()).filter(|task| name(*task).starts_with("worker")) {
                pin(task);
            }
            Some(appliance)
        };
        let start = |config: &str, arguments: &[&str]| start_by(Backend::Driver, config, arguments);
        match middle {
            Middle::Bypass => stood.appliance = start("", &["--bypass"]),
            Middle::Cookies => stood.appliance = start(CACHE_OFF, &[]),
            Middle::Cache => stood.appliance = start(CACHE_ON, &[]),
            Middle::Interrupt => stood.appliance = start(CACHE_OFF, &["--poll=interrupt"]),
            Middle::Busy => stood.appliance = start(CACHE_OFF, &["--poll=busy"]),
            Middle::FastTc => {
                stood.appliance = start_by(Backend::Packet, &format!("fast_path = tc;\n{CACHE_OFF}"), &[]);
            }
            Middle::FastXdp => {
                // The other end of a veth takes what a program redirects only then.
                rig.client.sh("ethtool -K c0 gro on >/dev/null");
                rig.server.sh("ethtool -K s0 gro on >/dev/null");
                stood.appliance = start(&format!("fast_path = xdp;\n{CACHE_OFF}"), &[]);
            }
            Middle::Kernel | Middle::KernelTc | Middle::KernelXdp | Middle::KernelAuto => {
                // A veth takes what the program sends, or redirects, if its other end has GRO.
                rig.client.sh("ethtool -K c0 gro on");
                rig.server.sh("ethtool -K s0 gro on");
                let (backend, way) = match middle {
                    Middle::KernelTc => (Backend::Packet, "fast_path = tc; fast_path_flood = 0;"),
                    Middle::KernelXdp => (Backend::Driver, "fast_path = xdp;"),
                    Middle::KernelAuto => (Backend::Packet, "fast_path = auto;"),
                    _ => (Backend::Driver, ""),
                };
                stood.appliance = start_by(backend, &format!("{way} {KERNEL}"), &[]);
                introduce(rig);
            }
            Middle::Bounce => {
                attach(rig, SEND_BACK);
                return stood;
            }
            Middle::Hole => {
                attach(rig, "return 1;");
                return stood;
            }
            Middle::Sieve => {
                let [a, b, c, d, e, f] = ATTACKER;
                attach(
                    rig,
                    &format!(
                        "unsigned char *from = (void *)(at + 3);
                         return from[0] == {a} && from[1] == {b} && from[2] == {c} && from[3] == {d} && from[4] == {e} && from[5] == {f} ? 1 : 2;"
                    ),
                );
                rig.bridge();
            }
            Middle::Bridge => rig.bridge(),
            Middle::Nftables => route(rig, strangers),
        }
        if stood.appliance.is_none() {
            stood.receive_natively(apart);
        }
        // Both ends learn each other's addresses before anything is timed.
        rig.client.sh(&format!("ping -n -q -c 2 -i 0.05 {}", netns::SERVER_V4));
        stood
    }

    /// Without an XDP program, veth takes frames of the generator only with GRO on, which is also what serves the kernel best.
    fn receive_natively(&mut self, apart: bool) {
        let before: Vec<u32> = receivers().collect();
        for port in [Rig::WAN, Rig::LAN] {
            self.rig.middle.sh(&format!("ethtool -K {port} gro on >/dev/null"));
            if apart {
                self.rig.middle.sh(&format!("echo 1 > /sys/class/net/{port}/threaded"));
            }
        }
        self.threads = receivers().filter(|thread| !before.contains(thread)).collect();
        self.threads.iter().for_each(|thread| pin(*thread));
    }

    /// The Ethernet address to which clients send what is for the server.
    pub fn server_mac(&self) -> [u8; 6] {
        let text = match self.middle {
            Middle::Nftables => self.rig.middle.sh(&format!("cat /sys/class/net/{}/address", Rig::WAN)),
            _ => netns::SERVER_MAC.to_owned(),
        };
        let mut bytes = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).expect("an Ethernet address"));
        std::array::from_fn(|_| bytes.next().expect("six bytes"))
    }

    /// CPU time of the candidate alone: of our process, or of the threads that receive for the kernel.
    pub fn time(&self) -> Duration {
        let tasks: Vec<u32> = match &self.appliance {
            Some(appliance) => tasks(appliance.pid()).collect(),
            None => self.threads.clone(),
        };
        tasks.into_iter().map(unit::machine::time_of).sum()
    }

    /// Segments the candidate has judged on its own, where that can be told while it runs: those of the nftables rule.
    pub fn judged(&self) -> u64 {
        if self.middle != Middle::Nftables {
            return 0;
        }
        let rules = self.rig.middle.sh("nft list chain ip guard forward");
        let words: Vec<&str> = rules.split_whitespace().collect();
        words.windows(2).filter(|pair| pair[0] == "packets").map(|pair| pair[1].parse::<u64>().unwrap_or(0)).sum()
    }

    /// Ends it; what it says of itself at the end.
    pub fn leave(self) -> Option<OwnWords> {
        let report = self.appliance?.stop();
        let figure = |label: &str, column: usize| {
            let line = report.log.iter().rev().find_map(|line| line.strip_prefix(label))?;
            line.split_whitespace().nth(column)?.parse::<f64>().ok()
        };
        let dropped = report.figure("kernel-dropped").unwrap_or(0) as f64;
        let received = figure("received, frames", 1)? + dropped;
        Some(OwnWords { stage: figure("ns a frame, without ports", 0)?, received })
    }
}

/// What our program counted itself.
#[derive(Clone, Copy, Debug)]
pub struct OwnWords {
    /// Nanoseconds a frame, from reception to transmission.
    pub stage: f64,
    /// Frames received by the WAN port, or dropped for it by the kernel's program.
    pub received: f64,
}

/// What the kernel answers SYNs by.
const KERNEL: &str = "halfopen_cache_max = 0; mode = cookie; syns_in_kernel = on;";

/// Has the box learn of the servers that are flooded.
fn introduce(rig: &Rig) {
    for address in [netns::SERVER_V4, netns::SERVER_V6] {
        let server = rig.server.serve(address, crate::load::PORT, traffic::echo);
        drop(rig.client.connect(server.address).expect("connecting through the box"));
    }
}

/// Exchanges the addresses of a frame, and sends it back.
const SEND_BACK: &str =
    "for (int i = 0; i < 3; i++) { unsigned short to = at[i]; at[i] = at[i + 3]; at[i + 3] = to; } return 3;";

/// Attaches an XDP program to the WAN port that does this with each frame, which is `at`.
fn attach(rig: &Rig, does: &str) {
    let source = format!(
        "struct xdp_md {{ unsigned data, data_end, a, b, c, d; }};
         __attribute__((section(\"xdp\"), used)) int bare(struct xdp_md *ctx) {{
             unsigned short *at = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
             if (at + 7 > end) return 1;
             {does}
         }}
         char _license[] __attribute__((section(\"license\"), used)) = \"GPL\";"
    );
    let object = harness::leftovers::file("bare.o");
    let mut clang = Command::new("clang");
    clang.args(["-target", "bpf", "-O2", "-xc", "-c", "-", "-o"]).arg(&object).stdin(Stdio::piped());
    let mut clang = clang.spawn().expect("running clang");
    clang.stdin.take().expect("piped").write_all(source.as_bytes()).expect("clang reads");
    assert!(clang.wait().expect("waiting for clang").success());
    rig.client.sh("ethtool -K c0 gro on");
    rig.middle.sh(&format!("ip link set dev {} xdpdrv obj {} sec xdp", Rig::WAN, object.display()));
}

/// The router with the kernel's SYNPROXY, as nftables' own documentation sets it up.
fn route(rig: &Rig, strangers: &str) {
    let mac = |port| rig.middle.sh(&format!("cat /sys/class/net/{port}/address")).trim().to_owned();
    let (client, server) = (netns::CLIENT_V4, netns::SERVER_V4);
    let attacker = ATTACKER.map(|byte| format!("{byte:02x}")).join(":");
    rig.middle.sh(&format!(
        "ip route add {client} dev wan0
         ip route add {server} dev lan0
         ip neigh replace {client} lladdr {} dev wan0 nud permanent
         ip neigh replace {server} lladdr {} dev lan0 nud permanent
         ip route add 10.77.0.66 dev wan0
         ip neigh replace 10.77.0.66 lladdr {attacker} dev wan0 nud permanent
         ip route add {strangers} via {client} dev wan0 onlink
         ip route add default via 10.77.0.66 dev wan0 onlink",
        netns::CLIENT_MAC,
        netns::SERVER_MAC,
    ));
    for (key, value) in [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.wan0.rp_filter", "0"),
        ("net.ipv4.conf.lan0.rp_filter", "0"),
        ("net.ipv4.tcp_syncookies", "1"),
        ("net.ipv4.tcp_timestamps", "1"),
    ] {
        rig.middle.sysctl(key, value);
    }
    rig.middle.sh(
        "nft -f - <<'RULES'
table ip guard {
    chain prerouting {
        type filter hook prerouting priority raw; policy accept;
        iifname \"wan0\" tcp dport 80-89 tcp flags syn notrack
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname \"wan0\" tcp dport 80-89 ct state invalid,untracked counter synproxy mss 1460 wscale 7 timestamp sack-perm
        ct state invalid drop
    }
}
RULES",
    );
    rig.middle.sysctl("net.netfilter.nf_conntrack_tcp_loose", "0");
    rig.client.sh(&format!("ip neigh replace {server} lladdr {} dev c0 nud permanent", mac("wan0")));
    rig.server.sh(&format!("ip neigh replace {client} lladdr {} dev s0 nud permanent", mac("lan0")));
}

/// The threads of a process.
fn tasks(pid: u32) -> impl Iterator<Item = u32> {
    numbers(&format!("/proc/{pid}/task"))
}

/// The kernel's receiving threads for ports of a rig.
fn receivers() -> impl Iterator<Item = u32> {
    numbers("/proc").filter(|pid| {
        let name = name(*pid);
        [Rig::WAN, Rig::LAN].iter().any(|port| name.starts_with(&format!("napi/{port}-")))
    })
}

fn numbers(directory: &str) -> impl Iterator<Item = u32> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn name(task: u32) -> String {
    fs::read_to_string(format!("/proc/{task}/comm")).unwrap_or_default().trim().to_owned()
}

fn pin(task: u32) {
    let mut core = CpuSet::new();
    core.set(CORE).expect("there is a first core");
    if let Err(error) = sched_setaffinity(Pid::from_raw(task as i32), &core) {
        eprintln!("thread {task} stays where it is: {error}");
    }
}
