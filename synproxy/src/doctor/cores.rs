//! The cores that workers run on, and the memory near them.

use super::root::{list_of, parse_cores};
use super::{Check, Found, Level, Scene};
use std::collections::BTreeSet;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "cores",
        looks_at: "whether each worker has a core to itself, and one is left",
        worst: Level::Warning,
        why: "Each worker is pinned to a core, from the first that the process may use. A worker that shares its core never polls, and loses frames \
              while the other runs.",
        remedy: "synproxy --workers N LAN WAN",
        examine: cores,
    },
    Check {
        id: "numa",
        looks_at: "the NUMA nodes of both interfaces and of the workers' cores",
        worst: Level::Warning,
        why: "Every frame and every flow is read from memory; that of another node takes longer.",
        remedy: "taskset -c CORES synproxy LAN WAN",
        examine: numa,
    },
    Check {
        id: "siblings",
        looks_at: "whether two workers run on the two hyperthreads of one core",
        worst: Level::Note,
        why: "Two hyperthreads share the caches and units of one core, and together do little more than one.",
        remedy: "taskset -c CORES synproxy LAN WAN",
        examine: siblings,
    },
    Check {
        id: "isolated",
        looks_at: "whether workers run on the isolated cores, where there are any (isolcpus)",
        worst: Level::Note,
        why: "The scheduler puts nothing else on an isolated core, and no worker either unless it is told to.",
        remedy: "taskset -c CORES synproxy LAN WAN",
        examine: isolated,
    },
    Check {
        id: "governor",
        looks_at: "the frequency governor of the cores",
        worst: Level::Warning,
        why: "A core that slows down while there is little to do is slow when a flood begins, and wakes up later.",
        remedy: "for file in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance > $file; done",
        examine: governor,
    },
    Check {
        id: "huge-pages",
        looks_at: "whether the kernel gives huge pages to programs that ask for them",
        worst: Level::Warning,
        why: "Tables of millions of flows are read at random addresses: with ten million flows a segment takes 113 ns with huge pages, and 156 ns \
              without.",
        remedy: "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        examine: huge_pages,
    },
];

/// The cores that workers are pinned to.
fn workers_cores(scene: &Scene) -> Vec<usize> {
    scene.root.cores().into_iter().take(scene.workers).collect()
}

/// The command that starts the box with its workers on the first of these cores; cores behind them are left for the rest.
fn start_on(scene: &Scene, cores: &[usize]) -> String {
    format!("taskset -c {} {}", list_of(cores), scene.start(""))
}

fn cores(scene: &Scene) -> Vec<Found> {
    let (workers, cores) = (scene.workers, scene.root.cores().len());
    if cores == 0 || workers < cores {
        return Found::ok(format!("{workers} worker(s) on {cores} cores"));
    }
    if workers > cores {
        let text = format!("{workers} workers would share {cores} cores");
        return vec![Found::new(Level::Warning, text).mended_by(scene.start(&format!("--workers {cores}")))];
    }
    let found = Found::new(
        Level::Note,
        format!("{workers} worker(s) on {cores} core(s): none is left for the rest, so workers do not poll"),
    );
    vec![if workers > 1 { found.mended_by(scene.start(&format!("--workers {}", workers - 1))) } else { found }]
}

fn numa(scene: &Scene) -> Vec<Found> {
    let nodes: BTreeSet<u32> = scene.ports().filter_map(|port| scene.root.node_of(&port.name)).collect();
    let nodes: Vec<u32> = nodes.into_iter().collect();
    let [node] = nodes[..] else {
        if nodes.is_empty() {
            return Found::ok("no interface says on which NUMA node it is");
        }
        let of = |name: &str| scene.root.node_of(name).map_or("no node".to_owned(), |node| format!("node {node}"));
        let text: Vec<String> = scene.ports().map(|port| format!("{} is on {}", port.name, of(&port.name))).collect();
        let text = format!("{}: put both NICs into slots of one node", text.join(", and "));
        return vec![Found::new(Level::Warning, text)];
    };
    let near = scene.root.cores_of_node(node);
    let far: Vec<usize> = workers_cores(scene).into_iter().filter(|core| !near.contains(core)).collect();
    let possible: Vec<usize> = scene.root.cores().into_iter().filter(|core| near.contains(core)).collect();
    if far.is_empty() || near.is_empty() {
        return Found::ok(format!("interfaces and workers are on NUMA node {node}"));
    }
    let text = format!("workers would run on cores {}, and the interfaces are on NUMA node {node}", list_of(&far));
    let found = Found::new(Level::Warning, text);
    let possible = if possible.is_empty() { near } else { possible };
    vec![found.mended_by(start_on(scene, &possible))]
}

fn siblings(scene: &Scene) -> Vec<Found> {
    let group = |core: usize| {
        let path = format!("sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
        scene.root.read(&path).map_or_else(|| core.to_string(), |list| list.to_string())
    };
    let own = workers_cores(scene);
    let distinct: BTreeSet<String> = own.iter().map(|core| group(*core)).collect();
    if distinct.len() == own.len() {
        return Found::ok("no two workers run on one core");
    }
    // The first hyperthread of each core, and behind the last worker whatever is left.
    let mut taken = BTreeSet::new();
    let all = scene.root.cores();
    let first: Vec<usize> = all.iter().copied().filter(|core| taken.insert(group(*core))).take(scene.workers).collect();
    let text = format!("workers would run on cores {}, of which some are hyperthreads of one core", list_of(&own));
    let found = Found::new(Level::Note, text);
    if first.len() < scene.workers {
        return vec![found.mended_by(scene.start(&format!("--workers {}", first.len())))];
    }
    let last = first.last().copied().unwrap_or_default();
    let cores: Vec<usize> = all.into_iter().filter(|core| first.contains(core) || *core > last).collect();
    vec![found.mended_by(start_on(scene, &cores))]
}

fn isolated(scene: &Scene) -> Vec<Found> {
    let isolated =
        scene.root.read("sys/devices/system/cpu/isolated").map(|list| parse_cores(&list)).unwrap_or_default();
    let own = workers_cores(scene);
    if isolated.len() < scene.workers || own.iter().all(|core| isolated.contains(core)) {
        return Found::ok(if isolated.is_empty() {
            "no core is isolated"
        } else {
            "workers use the isolated cores, or there are too few"
        });
    }
    let text = format!("cores {} are isolated, and workers would run on cores {}", list_of(&isolated), list_of(&own));
    vec![Found::new(Level::Note, text).mended_by(start_on(scene, &isolated))]
}

fn governor(scene: &Scene) -> Vec<Found> {
    let of = |core: usize| scene.root.read(&format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"));
    let slow: BTreeSet<String> =
        scene.root.cores().into_iter().filter_map(of).filter(|it| it != "performance").collect();
    if slow.is_empty() {
        return Found::ok("no core is slowed down while there is little to do");
    }
    let names: Vec<String> = slow.into_iter().collect();
    let text = format!("the frequency governor of some cores is {}", names.join(" and "));
    vec![Found::new(Level::Warning, text).mended_by(
        "for file in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance > $file; done",
    )]
}

fn huge_pages(scene: &Scene) -> Vec<Found> {
    const FILE: &str = "sys/kernel/mm/transparent_hugepage/enabled";
    match scene.root.read(FILE) {
        Some(text) if text.contains("[never]") => {
            let found = Found::new(Level::Warning, "the kernel gives no huge pages");
            vec![found.mended_by(format!("echo madvise > /{FILE}"))]
        }
        Some(_) => Found::ok("the tables lie on huge pages"),
        None => vec![Found::new(Level::Note, "this kernel has no transparent huge pages")],
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Stage, find};
    use super::*;

    #[test]
    fn workers_have_cores_to_themselves() {
        let mut stage = Stage::new("cores");
        for (workers, expected) in [
            (3, None),
            (4, Some((Level::Note, "synproxy --workers 3 lan0 wan0"))),
            (6, Some((Level::Warning, "synproxy --workers 4 lan0 wan0"))),
        ] {
            stage.scene.workers = workers;
            let found = find(&stage.complaints(), "cores");
            assert_eq!(found.as_ref().map(|it| (it.level, it.command.as_deref().unwrap())), expected);
        }
    }

    #[test]
    fn interfaces_and_workers_belong_on_one_node() {
        let stage = Stage::new("numa");
        stage.file("sys/devices/system/node/node0/cpulist", "0-1");
        stage.file("sys/devices/system/node/node1/cpulist", "2-3");
        assert_eq!(find(&stage.complaints(), "numa"), None);
        for port in ["lan0", "wan0"] {
            stage.file(&format!("sys/class/net/{port}/device/numa_node"), "1\n");
        }
        let found = find(&stage.complaints(), "numa").unwrap();
        assert_eq!(found.command.as_deref(), Some("taskset -c 2-3 synproxy --workers 2 lan0 wan0"));
        stage.file("proc/self/status", &Stage::status("2-3", 0));
        assert_eq!(find(&stage.complaints(), "numa"), None, "the command's effect");
        stage.file("sys/class/net/lan0/device/numa_node", "0");
        let found = find(&stage.complaints(), "numa").unwrap();
        assert!(
            found.finding.contains("lan0 is on node 0, and wan0 is on node 1") && found.command.is_none(),
            "{found:?}"
        );
        stage.file("sys/class/net/lan0/device/numa_node", "-1");
        stage.file("sys/class/net/wan0/device/numa_node", "-1");
        assert_eq!(find(&stage.complaints(), "numa"), None);
    }

    #[test]
    fn hyperthreads_of_one_core_are_no_two_workers() {
        let mut stage = Stage::new("siblings");
        for (core, list) in [(0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")] {
            stage.file(&format!("sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"), list);
        }
        let found = find(&stage.complaints(), "siblings").unwrap();
        assert_eq!(found.command.as_deref(), Some("taskset -c 0,2-3 synproxy --workers 2 lan0 wan0"));
        stage.file("proc/self/status", &Stage::status("0,2-3", 0));
        assert_eq!(find(&stage.complaints(), "siblings"), None, "the command's effect");
        stage.scene.workers = 3;
        let found = find(&stage.complaints(), "siblings").unwrap();
        assert_eq!(found.command.as_deref(), Some("synproxy --workers 2 lan0 wan0"));
    }

    #[test]
    fn isolated_cores_are_for_workers() {
        let stage = Stage::new("isolated");
        stage.file("sys/devices/system/cpu/isolated", "2-3\n");
        let found = find(&stage.complaints(), "isolated").unwrap();
        assert_eq!(found.command.as_deref(), Some("taskset -c 2-3 synproxy --workers 2 lan0 wan0"));
        stage.file("proc/self/status", &Stage::status("2-3", 0));
        assert_eq!(find(&stage.complaints(), "isolated"), None, "the command's effect");
    }

    #[test]
    fn slow_governors_and_missing_huge_pages_are_warned_of() {
        let stage = Stage::new("governor");
        stage.file("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n");
        stage.file("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave\n");
        stage.file("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
        let found = stage.complaints();
        assert!(find(&found, "governor").unwrap().finding.ends_with("is powersave"));
        let command = find(&found, "huge-pages").unwrap().command.unwrap();
        assert_eq!(command, "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
        assert!(found.iter().all(|it| it.level == Level::Warning) && found.len() == 2, "{found:?}");
    }
}
