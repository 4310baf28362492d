//! What the process may have: capabilities, descriptors, memory.

use super::root::Root;
use super::{Check, Found, Level, Scene, or_ok, word};
use crate::dataplane::worker::BATCH;
use crate::process::footprint::{Limit, Size, group_files};
use pktio::buffers_for;
use pktio::privilege::{self, Privilege};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "capabilities",
        looks_at: "the capabilities of the process",
        worst: Level::Error,
        why: "Without CAP_NET_RAW the box does not start; without another it works by AF_PACKET, several times slower, or at ordinary priority.",
        remedy: "setcap CAPABILITIES+ep PROGRAM",
        examine: capabilities,
    },
    Check {
        id: "locked-memory",
        looks_at: "whether the frames of all workers may be locked in memory (ulimit -l), without CAP_IPC_LOCK",
        worst: Level::Warning,
        why: "AF_XDP shares 32 MiB a worker with the kernel, and more for a large MTU or long rings, which count against this limit. Without, the box works by AF_PACKET.",
        remedy: "ulimit -l KIBIBYTES",
        examine: locked_memory,
    },
    Check {
        id: "open-files",
        looks_at: "how many files the process may open (ulimit -n)",
        worst: Level::Error,
        why: "A box opens about 40 files, and ten more for each further worker.",
        remedy: "ulimit -n 1024",
        examine: open_files,
    },
    Check {
        id: "address-space",
        looks_at: "whether the tables fit the address space of the process (ulimit -v, ulimit -d)",
        worst: Level::Error,
        why: "All tables are mapped at the start, and the C library sets 64 MiB aside for each thread.",
        remedy: "ulimit -v unlimited",
        examine: address_space,
    },
    Check {
        id: "memory",
        looks_at: "whether the tables fit the machine and the control group (memory.max)",
        worst: Level::Error,
        why: "The kernel would end the process when a flood fills the tables, so the box does not start.",
        remedy: "echo BYTES > /sys/fs/cgroup/GROUP/memory.max, or smaller tables in the configuration",
        examine: memory,
    },
    Check {
        id: "overcommit",
        looks_at: "whether the kernel promises as much memory as is mapped (vm.overcommit_memory)",
        worst: Level::Error,
        why: "With 2 the kernel refuses mappings beyond its commit limit, also those that are never used.",
        remedy: "sysctl -w vm.overcommit_memory=0",
        examine: overcommit,
    },
];

/// Capabilities without which the box does not use AF_XDP.
const FOR_XDP: [&str; 4] = ["CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"];

/// The bit of CAP_SYS_NICE, which opening an interface does not take.
const SYS_NICE: u32 = 23;

fn missing(root: &Root) -> Vec<&'static Privilege> {
    root.read("proc/self/status").map(|status| privilege::missing_of(&status)).unwrap_or_default()
}

/// Whether the process lacks what AF_XDP takes.
pub(super) fn lacks_for_xdp(scene: &Scene) -> bool {
    missing(&scene.root).iter().any(|it| FOR_XDP.contains(&it.name)) || lacks_locked_memory(scene).is_some()
}

fn capabilities(scene: &Scene) -> Vec<Found> {
    let effective = scene.root.value("proc/self/status", "CapEff");
    let effective = effective.and_then(|digits| u64::from_str_radix(&digits, 16).ok()).unwrap_or(u64::MAX);
    let lacks_nice = effective & 1 << SYS_NICE == 0;
    let missing = missing(&scene.root);
    let found = |level, text| {
        let wanted: Vec<String> = privilege::NEEDED.iter().map(|it| it.name.to_lowercase()).collect();
        let command = format!("setcap {},cap_sys_nice+ep {}", wanted.join(","), word(&scene.program));
        Found::new(level, text).mended_by(command)
    };
    let mut all: Vec<Found> = missing
        .into_iter()
        // Whether the limit suffices without is another check.
        .filter(|it| it.name != "CAP_IPC_LOCK")
        .map(|it| {
            let level = if it.name == "CAP_NET_RAW" { Level::Error } else { Level::Warning };
            found(level, format!("the process lacks {}, which is for {}", it.name, it.purpose))
        })
        .collect();
    if lacks_nice {
        let text = "the process lacks CAP_SYS_NICE, which is for the priority of the workers".to_owned();
        all.push(found(Level::Note, text));
    }
    or_ok(all, "the process has every capability")
}

/// The soft and the hard limit of this name in `/proc/self/limits`; `None` is no limit.
fn limit(root: &Root, name: &str) -> [Option<u64>; 2] {
    let text = root.read("proc/self/limits").unwrap_or_default();
    let row = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let mut columns = row.split_whitespace().map(|column| column.parse().ok());
    [columns.next().flatten(), columns.next().flatten()]
}

/// The command that raises a limit of the shell it is given to: its own, or with the help of root.
fn raise(hard: Option<u64>, needed: u64, letter: char, value: u64, option: &str) -> String {
    if hard.is_none_or(|hard| hard >= needed) {
        format!("ulimit -{letter} {value}")
    } else {
        format!("sudo prlimit --pid $$ --{option}={needed}")
    }
}

/// The locked memory that the box needs, and the limits, if that is more than they allow.
fn lacks_locked_memory(scene: &Scene) -> Option<(u64, u64, Option<u64>)> {
    // Those of a large MTU are larger, and with zero copy devices keep some in their rings.
    let buffer = scene.ports().filter_map(|port| buffers_for(port.mtu)).map(|buffers| buffers.bytes).max();
    let has_zero_copy = scene.ports().all(|port| port.xdp_features.is_some_and(|it| it.has_zero_copy));
    let parked =
        scene.ports().filter_map(|port| port.rings).map(|rings| (rings.receive + rings.transmit) as usize).max();
    let parked = parked.filter(|_| has_zero_copy).unwrap_or(0);
    let frames = confparse::FRAMES_OF_A_WORKER.max(2 * (2 * parked + BATCH));
    let needed = (scene.workers * frames * buffer.unwrap_or(2048)) as u64;
    let [soft, hard] = limit(&scene.root, "Max locked memory");
    let is_free = !missing(&scene.root).iter().any(|it| it.name == "CAP_IPC_LOCK");
    let soft = soft.filter(|soft| *soft < needed && !is_free)?;
    Some((needed, soft, hard))
}

fn locked_memory(scene: &Scene) -> Vec<Found> {
    let Some((needed, soft, hard)) = lacks_locked_memory(scene) else {
        return Found::ok("the frames may be locked in memory");
    };
    let text = format!("{} may be locked in memory, and the frames take {}", Size(soft), Size(needed));
    vec![Found::new(Level::Warning, text).mended_by(raise(hard, needed, 'l', needed.div_ceil(1024), "memlock"))]
}

fn open_files(scene: &Scene) -> Vec<Found> {
    let needed = 40 + 10 * (scene.workers as u64 - 1) + 8;
    let [soft, hard] = limit(&scene.root, "Max open files");
    match soft {
        Some(soft) if soft < needed => {
            let text = format!("the process may open {soft} files, and the box needs {needed}");
            let command = raise(hard, needed, 'n', 1024.min(hard.unwrap_or(1024)).max(needed), "nofile");
            vec![Found::new(Level::Error, text).mended_by(command)]
        }
        _ => Found::ok("the process may open as many files as it needs"),
    }
}

fn address_space(scene: &Scene) -> Vec<Found> {
    let needed = scene.needed.address_space();
    let limits = [("Max address space", 'v', "as"), ("Max data size", 'd', "data")];
    let found = limits.into_iter().filter_map(|(name, letter, option)| {
        let [soft, hard] = limit(&scene.root, name);
        let soft = soft.filter(|soft| *soft < needed)?;
        let text = format!(
            "the process may have {} ({}), and the box takes {}",
            Size(soft),
            name.to_lowercase(),
            Size(needed)
        );
        let command = match hard {
            None => format!("ulimit -{letter} unlimited"),
            hard => raise(hard, needed, letter, needed.div_ceil(1024), option),
        };
        Some(Found::new(Level::Error, text).mended_by(command))
    });
    or_ok(found.collect(), "the tables fit the address space")
}

fn memory(scene: &Scene) -> Vec<Found> {
    let total = scene.needed.total();
    let Some(limit) = Limit::below(&scene.root.path("")) else { return Vec::new() };
    let Some((section, name, message)) = scene.needed.exceeds(&limit) else {
        return Found::ok(format!("the box needs {}; {limit}", Size(total)));
    };
    let key = section.map_or(name.to_owned(), |section| format!("{section}.{name}"));
    let found = Found::new(Level::Error, format!("{message}; make `{key}` smaller, or raise the limit"));
    vec![match group_of(&scene.root, total) {
        Some(file) => found.mended_by(format!("echo {total} > {}", word(&file))),
        None => found,
    }]
}

/// The file with the limit of the control group that allows less than this, if one does.
fn group_of(root: &Root, total: u64) -> Option<String> {
    let files = group_files(&root.path("")).into_iter().map(|file| file.display().to_string());
    let mut low = files.filter(|file| root.number(file).is_some_and(|limit| (limit as u64) < total));
    low.next().map(|file| format!("/{file}"))
}

fn overcommit(scene: &Scene) -> Vec<Found> {
    if scene.root.number("proc/sys/vm/overcommit_memory") != Some(2) {
        return Found::ok("the kernel promises as much memory as is mapped");
    }
    let kib = |key: &str| {
        let value = scene.root.value("proc/meminfo", key)?;
        value.strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
    };
    let left = kib("CommitLimit").unwrap_or(u64::MAX).saturating_sub(kib("Committed_AS").unwrap_or(0));
    let needed = scene.needed.address_space();
    if left >= needed {
        return Found::ok(format!("the kernel promises another {}", Size(left)));
    }
    let text = format!("the kernel promises another {}, and the box takes {}", Size(left), Size(needed));
    vec![Found::new(Level::Error, text).mended_by("sysctl -w vm.overcommit_memory=0")]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Stage, find};
    use super::*;

    #[test]
    fn missing_capabilities_are_named_and_the_first_is_an_error() {
        let stage = Stage::new("capabilities");
        stage.file("proc/self/status", &Stage::status("0-3", 1 << 13));
        let found: Vec<_> = stage.complaints().into_iter().filter(|it| it.id == "capabilities").collect();
        assert_eq!(found.len(), 5, "{found:#?}");
        assert!(found[0].level == Level::Error && found[0].finding.contains("CAP_NET_RAW"));
        assert!(found.iter().skip(1).all(|it| it.level < Level::Error));
        let command = found[0].command.as_deref().unwrap();
        assert_eq!(
            command,
            "setcap cap_net_raw,cap_net_admin,cap_bpf,cap_perfmon,cap_ipc_lock,cap_sys_nice+ep /usr/sbin/synproxy"
        );
    }

    #[test]
    fn low_limits_are_raised_by_the_shell_or_by_root() {
        let mut stage = Stage::new("limits");
        // CAP_IPC_LOCK alone is missing.
        stage.file("proc/self/status", &Stage::status("0-3", 1 << 14));
        let limits = |stage: &Stage, rows: &[(&str, &str, &str)]| {
            let rows: String =
                rows.iter().map(|(name, soft, hard)| format!("{name:<26}{soft:<21}{hard:<21}units\n")).collect();
            stage.file(
                "proc/self/limits",
                &format!("Limit                     Soft Limit           Hard Limit\n{rows}"),
            );
        };
        limits(
            &stage,
            &[
                ("Max locked memory", "65536", "unlimited"),
                ("Max open files", "32", "524288"),
                ("Max address space", "1048576", "unlimited"),
            ],
        );
        let found = stage.complaints();
        let command = |id: &str| find(&found, id).unwrap().command.unwrap();
        assert_eq!(
            command("locked-memory"),
            "ulimit -l 66048",
            "more than the usual 65536, since the rings park frames"
        );
        assert_eq!(command("open-files"), "ulimit -n 1024");
        assert_eq!(command("address-space"), "ulimit -v unlimited");
        stage.port(0).rings = None;
        stage.port(1).rings = None;
        limits(
            &stage,
            &[
                ("Max locked memory", "65536", "65536"),
                ("Max open files", "32", "32"),
                ("Max data size", "4096", "4096"),
            ],
        );
        let found = stage.complaints();
        let command = |id: &str| find(&found, id).unwrap().command.unwrap();
        assert_eq!(command("locked-memory"), "sudo prlimit --pid $$ --memlock=67108864");
        assert_eq!(command("open-files"), "sudo prlimit --pid $$ --nofile=58");
        assert!(command("address-space").starts_with("sudo prlimit --pid $$ --data="));
    }

    #[test]
    fn memory_that_is_not_there_or_not_promised_is_an_error() {
        let stage = Stage::new("memory");
        stage.file("proc/self/cgroup", "0::/system.slice/synproxy.service\n");
        stage.file("sys/fs/cgroup/system.slice/memory.max", "104857600\n");
        let found = find(&stage.complaints(), "memory").unwrap();
        let command = found.command.unwrap();
        assert!(
            command.starts_with("echo ") && command.ends_with(" > /sys/fs/cgroup/system.slice/memory.max"),
            "{command}"
        );
        stage.file("sys/fs/cgroup/system.slice/memory.max", "max\n");
        assert_eq!(stage.complaints(), []);
        stage.file("proc/sys/vm/overcommit_memory", "2\n");
        stage.file("proc/meminfo", "MemTotal: 8388608 kB\nCommitLimit: 4194304 kB\nCommitted_AS: 4194000 kB\n");
        let found = find(&stage.complaints(), "overcommit").unwrap();
        assert_eq!((found.level, found.command.as_deref()), (Level::Error, Some("sysctl -w vm.overcommit_memory=0")));
    }
}
