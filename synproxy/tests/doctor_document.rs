//! `docs/doctor.md` is made from the table of checks, and equal to it. `DOCTOR=accept cargo test -p synproxy --test doctor_document`
//! writes it anew.

use std::fmt::Write;
use std::path::Path;
use synproxy::doctor::{Check, checks};

/// A cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn document() -> String {
    let mut text = "\
# Doctor

`synproxy doctor LAN WAN` (with `host` for LAN, at [the machine's own services](deployments.md#the-machines-own-services)) looks at two interfaces and at the machine, and says whether a box works between them, by which I/O backend and mode, about how fast, and what to change, each with the
command that does it. It changes nothing and needs no running box; where one runs, it says so. Root sees everything; another user sees what a box of that user would have.

<!-- box: none -->
<!-- before: ip link set dev eth1 down -->
<!-- ends: 1 -->
```console
$ synproxy doctor eth0 eth1
eth0 and eth1: a box cannot start here; 1 error, 0 warnings, 5 notes
a worker: 0.7 to 0.9 million SYNs answered a second, 0.8 to 0.9 million small segments, 4.5 to 5 Gbit/s of full frames
          (measured on veth, where the kernel's transmission takes nine tenths of the time; a NIC's driver may be faster)

error: eth1 is down  [up]
    The box does not start on an interface that is down.
    $ ip link set dev eth1 up

note: eth0: veth, AF_XDP, driver mode, copying; its driver has no zero copy  [driver]
    Zero copy is several times as fast as copying. Both ports share their buffers, so they copy unless both drivers have zero copy.
...
```

| level | meaning |
|---|---|
| error | the box does not start, or passes no frames |
| warning | the box works, but worse than it could |
| note | worth knowing; the box works as it should |
| ok | nothing is to be changed |

The exit status is 1 if there is an error, else 0. With `--config FILE` and `--workers N` it judges by the workers, the polling and the tables of the box that is to run. With `--json` it prints one
object: `summary`, `errors`, `warnings`, `notes`, `speed` (`modes` of LAN and WAN, `workers`, and per worker `syns`, `segments` and `bulk` as `[from, to]`, with `basis`) and `findings`,
each with `id`, `level`, `port` (or null), `finding`, `why` and `command` (or null). Of two [aggregations](deployments.md#bonds) (`doctor lan0,lan1 wan0,wan1`) it reports on each pair of members, with `--json` an object a line. The figures are those of [performance.md](performance.md#what-to-expect-of-a-port).

Commands take effect at once and last until the next start of the machine; what is to last belongs in the configuration of the network or of the service. A command that begins with `ulimit` or `taskset`
belongs in the shell, or the unit, that starts the box. Of what the box sets itself at its start and puts back at its end (offloads, pause frames, queues, RSS) the doctor only makes notes.

It cannot see into switches, into another host's end of a cable, or into interfaces of another network namespace. Programs pinned in a BPF file system have no process; where `ip link set dev PORT xdp off`
is refused for one, remove its pin.

This page is made from the table of checks (`synproxy/src/doctor/`) by `DOCTOR=accept cargo test -p synproxy --test doctor_document`; the same test fails when the page and the table differ.
"
    .to_owned();
    let mut last = "";
    for (heading, Check { id, looks_at, worst, why, remedy, .. }) in checks() {
        if heading != last {
            let _ = writeln!(
                text,
                "\n## {heading}\n\n| check | looks at | at worst | why | what to do |\n|---|---|---|---|---|"
            );
            last = heading;
        }
        let (looks_at, why, remedy) = (cell(looks_at), cell(why), cell(remedy));
        let _ =
            writeln!(text, "| `{id}` | {looks_at} | {} | {why} | {}{} |", worst.name(), remedies(&remedy), notes(id));
    }
    text
}

/// How the commands of a check are tried (`unit/src/documents.rs`), for a reader of the source alone.
fn notes(id: &str) -> String {
    let machine = |file: &str| format!("before: mount -t tmpfs tmpfs {file}");
    let notes: &[String] = &match id {
        "box" => vec!["box: --nice 1".to_owned(), "with: PROCESS=$(pgrep -x synproxy)".to_owned()],
        "left-changed" => vec!["box: none".to_owned()],
        "egress-filter" => vec!["before: tc qdisc add dev eth0 clsact".to_owned()],
        "xdp-program" | "packet-sockets" => vec![
            "box: none".to_owned(),
            format!("before: sleep 60 & echo $! >{id}"),
            format!("with: PROCESS=$(cat {id})"),
        ],
        "kernel-syns" => vec!["at: client".to_owned(), "with: PEER=c0".to_owned()],
        "carrier" | "vlan-tags" | "fail-open" | "fast-path" => {
            vec!["at: server".to_owned(), "with: PEER=s0".to_owned()]
        }
        "mtu" | "buffers" => vec!["with: N=1500".to_owned()],
        "offloads" => vec!["with: NAME=gro".to_owned()],
        "managed" => vec!["not run: it takes NetworkManager".to_owned()],
        "pause" | "coalescing" | "queue-counts" | "rings" | "rss" => vec!["not run: it takes a NIC".to_owned()],
        "irqbalance" => vec!["run by: unit/systemd/run.sh".to_owned()],
        "numa" | "siblings" | "isolated" => vec!["with: CORES=0".to_owned()],
        // At the box /sys is that of its namespace already.
        "sysfs" => ["at: client", "with: LAN=c0", "with: WAN=c0", "ends: 1"].map(str::to_owned).into(),
        "run-directory" => vec!["with: USER=nobody".to_owned()],
        "capabilities" => {
            vec![
                "before: cp /bin/true copy".to_owned(),
                "with: CAPABILITIES=cap_net_raw".to_owned(),
                "with: PROGRAM=copy".to_owned(),
            ]
        }
        "locked-memory" => vec!["with: KIBIBYTES=$(ulimit -H -l)".to_owned()],
        // These are settings of the whole machine, so that files stand for them.
        "xps" => vec![
            machine("/sys/class/net/eth0/queues/tx-0"),
            "before: touch /sys/class/net/eth0/queues/tx-0/xps_cpus".to_owned(),
        ],
        "irq-affinity" => vec![
            machine("/proc/irq"),
            "before: mkdir /proc/irq/1".to_owned(),
            "with: IRQ=1".to_owned(),
            "with: CORE=1".to_owned(),
        ],
        "governor" => vec![
            machine("/sys/devices/system/cpu"),
            "before: mkdir -p /sys/devices/system/cpu/cpu0/cpufreq".to_owned(),
            "before: touch /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor".to_owned(),
        ],
        "huge-pages" => vec![machine("/sys/kernel/mm"), "before: mkdir /sys/kernel/mm/transparent_hugepage".to_owned()],
        "bpf-jit" => vec![machine("/proc/sys/net/core"), "before: touch /proc/sys/net/core/bpf_jit_enable".to_owned()],
        "memory" => {
            vec![
                machine("/sys/fs/cgroup"),
                "before: mkdir /sys/fs/cgroup/box".to_owned(),
                "with: GROUP=box".to_owned(),
                "with: BYTES=1000000000".to_owned(),
            ]
        }
        "overcommit" => vec![machine("/proc/sys/vm"), "before: touch /proc/sys/vm/overcommit_memory".to_owned()],
        _ => Vec::new(),
    };
    notes.iter().map(|note| format!(" <!-- {note} -->")).collect()
}

/// What mends it: commands as such, sentences as such.
fn remedies(text: &str) -> String {
    let is_command = |part: &str| {
        let first = part.split(' ').next().unwrap_or_default();
        [
            "ip",
            "ethtool",
            "kill",
            "synproxy",
            "echo",
            "for",
            "mount",
            "sysctl",
            "systemctl",
            "setcap",
            "ulimit",
            "taskset",
            "nmcli",
            "tc",
            "unshare",
            "install",
        ]
        .contains(&first)
    };
    let part = |part: &str| if is_command(part) { format!("`{part}`") } else { part.to_owned() };
    text.split(", or ").map(part).collect::<Vec<_>>().join(", or ")
}

#[test]
fn the_page_on_the_doctor_is_made_from_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/doctor.md");
    let document = document();
    if std::env::var_os("DOCTOR").is_some_and(|value| value == "accept") {
        std::fs::write(&path, &document).expect("the page can be written");
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == document, "docs/doctor.md differs from the table; DOCTOR=accept writes it anew");
}
