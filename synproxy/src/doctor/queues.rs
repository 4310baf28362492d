//! Queues, how frames find them, and the interrupts that announce frames.

use super::root::{Root, list_of, parse_cores};
use super::speed::{Mode, mode_of};
use super::{Check, Found, Level, Scene, or_ok, word};
use pktio::netdev::{Description, Holder};
use std::collections::BTreeSet;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "queues",
        looks_at: "whether each interface can have a queue for each worker, and could have more",
        worst: Level::Error,
        why: "A worker owns one queue of each port. With more workers than an interface can have queues the box does not start.",
        remedy: "synproxy --workers N LAN WAN",
        examine: queues,
    },
    Check {
        id: "queue-counts",
        looks_at: "whether both interfaces have the same number of receive queues",
        worst: Level::Note,
        why: "The box gives both as many queues as it has workers, and puts that back at its end; some NICs drop their link for it.",
        remedy: "ethtool -L PORT combined N",
        examine: queue_counts,
    },
    Check {
        id: "rings",
        looks_at: "the sizes of the rings of a NIC beside the largest it can have",
        worst: Level::Warning,
        why: "A ring holds what arrives while the worker does something else. At ten million frames a second 256 entries last for 26 microseconds.",
        remedy: "ethtool -G PORT rx N tx N",
        examine: rings,
    },
    Check {
        id: "rss",
        looks_at: "whether both interfaces can spread connections over their queues symmetrically (RSS), and whether they do",
        worst: Level::Note,
        why: "Both directions of a connection must meet at one worker. Where the NICs do not see to that, workers hand over misdirected frames, \
              which costs each of these a copy. The box sets key and table at its start, and back at its end.",
        remedy: "ethtool -X PORT equal N hkey KEY",
        examine: rss,
    },
    Check {
        id: "rps",
        looks_at: "whether the kernel moves received frames to other cores (RPS)",
        worst: Level::Warning,
        why: "Each move costs an interrupt of another core, and in generic mode and with AF_PACKET mixes up the queues. It does nothing in driver \
              mode.",
        remedy: "for file in /sys/class/net/PORT/queues/rx-*/rps_cpus; do echo 0 > $file; done",
        examine: rps,
    },
    Check {
        id: "xps",
        looks_at: "whether the kernel chooses transmit queues by core (XPS), where the box sends by AF_PACKET",
        worst: Level::Note,
        why: "AF_PACKET sends on the queue that XPS gives the worker's core, which may be another worker's. AF_XDP sends on its own queue.",
        remedy: "for file in /sys/class/net/PORT/queues/tx-*/xps_cpus; do echo 0 > $file; done",
        examine: xps,
    },
    Check {
        id: "irq-affinity",
        looks_at: "which cores handle the interrupts of the queues",
        worst: Level::Warning,
        why: "The core that handles a queue's interrupt runs its driver. One core for all queues is the bottleneck of all workers, and one on \
              another NUMA node reads every frame from far away.",
        remedy: "echo CORE > /proc/irq/IRQ/smp_affinity_list",
        examine: irq_affinity,
    },
    Check {
        id: "irqbalance",
        looks_at: "whether irqbalance runs",
        worst: Level::Warning,
        why: "It moves the interrupts of the queues to other cores every ten seconds, whatever was set.",
        remedy: "systemctl disable --now irqbalance",
        examine: irqbalance,
    },
    Check {
        id: "busy-poll",
        looks_at: "whether interrupts are deferred where workers poll the driver (poll = busy)",
        worst: Level::Note,
        why: "A worker that polls the driver itself competes with the interrupts of its queue unless these are deferred.",
        remedy: "echo 2 > /sys/class/net/PORT/napi_defer_hard_irqs; echo 200000 > /sys/class/net/PORT/gro_flush_timeout",
        examine: busy_poll,
    },
];

/// The most workers that an interface has queues for.
fn most_workers(port: &Description) -> usize {
    port.queues.map_or(1, |queues| queues.most_pairs.max(1))
}

fn queues(scene: &Scene) -> Vec<Found> {
    let workers = scene.workers;
    let found = scene.each(|port| {
        let most = most_workers(port);
        (workers > most).then(|| {
            Found::new(
                Level::Error,
                format!("{} can have {most} queue(s), and there are to be {workers} workers", port.name),
            )
            .at(port)
            .mended_by(scene.start(&format!("--workers {most}")))
        })
    });
    if !found.is_empty() {
        return found;
    }
    let Some(both) = scene.both() else { return Vec::new() };
    let [lan, wan] = both.map(most_workers);
    // A core is left for the rest.
    let possible = lan.min(wan).min(scene.root.cores().len().saturating_sub(1));
    let text = format!("{} and {} can have {lan} and {wan} queues", scene.names[0], scene.names[1]);
    if workers == 1 && possible > 1 && scene.running_box().is_none() {
        let command = scene.start(&format!("--workers {possible}"));
        return vec![Found::new(Level::Note, format!("{text}: there may be {possible} workers")).mended_by(command)];
    }
    Found::ok(text)
}

fn queue_counts(scene: &Scene) -> Vec<Found> {
    let Some([lan, wan]) = scene.both() else { return Vec::new() };
    let (Some(of_lan), Some(of_wan)) = (lan.queues, wan.queues) else { return Vec::new() };
    if of_lan.receiving == of_wan.receiving {
        return Found::ok(format!("both have {} receive queue(s)", of_lan.receiving));
    }
    let text =
        format!("{} has {} receive queues, and {} has {}", lan.name, of_lan.receiving, wan.name, of_wan.receiving);
    let both = [(lan, of_lan), (wan, of_wan)];
    let commands: Vec<String> = both
        .into_iter()
        .filter(|(_, queues)| queues.receiving != scene.workers && queues.most_pairs >= scene.workers)
        .map(|(port, queues)| {
            let (name, n) = (word(&port.name), scene.workers);
            if queues.are_combined {
                format!("ethtool -L {name} combined {n}")
            } else {
                format!("ethtool -L {name} rx {n} tx {n}")
            }
        })
        .collect();
    let found = Found::new(Level::Note, text);
    vec![if commands.is_empty() { found } else { found.mended_by(commands.join(" && ")) }]
}

fn rings(scene: &Scene) -> Vec<Found> {
    /// Entries that last for a tenth of a millisecond at ten million frames a second.
    const ENOUGH: u32 = 1024;
    /// More does not fit the caches.
    const MOST: u32 = 2048;
    let found = scene.each(|port| {
        let rings = port.rings?;
        let is_short = |now: u32, most: u32| now < ENOUGH && now < most;
        if !is_short(rings.receive, rings.most_receive) && !is_short(rings.transmit, rings.most_transmit) {
            return None;
        }
        let (receive, transmit) = (rings.most_receive.min(MOST), rings.most_transmit.min(MOST));
        let text = format!(
            "{} has rings of {} received and {} sent frames, and can have {} and {}",
            port.name, rings.receive, rings.transmit, rings.most_receive, rings.most_transmit
        );
        let command = format!(
            "ethtool -G {} rx {} tx {}",
            word(&port.name),
            receive.max(rings.receive),
            transmit.max(rings.transmit)
        );
        Some(Found::new(Level::Warning, text).at(port).mended_by(command))
    });
    or_ok(found, "no ring is short that can be longer")
}

fn rss(scene: &Scene) -> Vec<Found> {
    if scene.workers == 1 {
        return Found::ok("one worker needs no spreading");
    }
    let Some([lan, wan]) = scene.both() else { return Vec::new() };
    let unable = scene.each(|port| {
        let is_able = port.rss.as_ref().is_some_and(|rss| !rss.table.is_empty() && rss.key.len() >= 40);
        let text = || format!("{} has no RSS that can be set: workers hand over misdirected frames", port.name);
        (!is_able).then(|| Found::new(Level::Note, text()).at(port))
    });
    if !unable.is_empty() {
        return unable;
    }
    if lan.rss == wan.rss && lan.rss.as_ref().is_some_and(|rss| rss.is_symmetric()) {
        return Found::ok("both spread connections symmetrically, by the same key");
    }
    scene.each(|port| {
        let rss = port.rss.as_ref()?;
        let key: Vec<&str> = ["6d", "5a"].into_iter().cycle().take(rss.key.len()).collect();
        let text = format!(
            "{} does not spread connections as the other does, or not symmetrically; the box sees to it",
            port.name
        );
        let name = word(&port.name);
        let mut command = format!("ethtool -X {name} equal {} hkey {}", scene.workers, key.join(":"));
        if !rss.hashes_ports {
            command +=
                &format!(" && ethtool -N {name} rx-flow-hash tcp4 sdfn && ethtool -N {name} rx-flow-hash tcp6 sdfn");
        }
        Some(Found::new(Level::Note, text).at(port).mended_by(command))
    })
}

/// The queues of an interface (`rx-0`) whose file `of` names any core.
fn queues_that_name_cores(root: &Root, port: &Description, kind: &str, of: &str) -> Vec<String> {
    let folder = format!("sys/class/net/{}/queues", port.name);
    let names_cores = |queue: &String| {
        let mask = root.read(&format!("{folder}/{queue}/{of}")).unwrap_or_default();
        mask.chars().any(|c| c != '0' && c != ',')
    };
    root.list(&folder).into_iter().filter(|queue| queue.starts_with(kind)).filter(names_cores).collect()
}

fn rps(scene: &Scene) -> Vec<Found> {
    let found = scene.each(|port| {
        let queues = queues_that_name_cores(&scene.root, port, "rx-", "rps_cpus");
        let is_harmless = matches!(mode_of(scene, port).0, Mode::ZeroCopy | Mode::Driver);
        let level = if is_harmless { Level::Note } else { Level::Warning };
        (!queues.is_empty()).then(|| {
            Found::new(level, format!("{}: the kernel moves frames of {} to other cores", port.name, queues.join(", ")))
                .at(port)
                .mended_by(clear(port, "rx-*/rps_cpus"))
        })
    });
    or_ok(found, "no frames are moved to other cores")
}

fn xps(scene: &Scene) -> Vec<Found> {
    let found = scene.each(|port| {
        if mode_of(scene, port).0 != Mode::Packet || scene.workers == 1 {
            return None;
        }
        let queues = queues_that_name_cores(&scene.root, port, "tx-", "xps_cpus");
        (!queues.is_empty()).then(|| {
            Found::new(Level::Note, format!("{}: the sending core chooses among {}", port.name, queues.join(", ")))
                .at(port)
                .mended_by(clear(port, "tx-*/xps_cpus"))
        })
    });
    or_ok(found, "no transmit queue is chosen by core where that matters")
}

/// The command that writes a zero into these files of the queues.
fn clear(port: &Description, files: &str) -> String {
    format!("for file in /sys/class/net/{}/queues/{files}; do echo 0 > $file; done", word(&port.name))
}

/// The interrupts of the queues of an interface, in order.
fn interrupts(root: &Root, port: &Description) -> Vec<u32> {
    let device = format!("sys/class/net/{}/device", port.name);
    // A virtio device has them one level above.
    let folders = ["msi_irqs", "../msi_irqs"].map(|folder| root.list(&format!("{device}/{folder}")));
    let names = folders.into_iter().find(|names| !names.is_empty()).unwrap_or_default();
    let mut own: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    own.sort_unstable();
    let table = root.read("proc/interrupts").unwrap_or_default();
    let is_of_a_queue = |number: &u32| {
        let row = table.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{number}:")));
        let name = row.and_then(|row| row.split_whitespace().next_back()).unwrap_or_default();
        let name = name.split('@').next().unwrap_or_default();
        let others = ["async", "ctrl", "cmd", "misc", "config", "aq", "mgmt"];
        name.ends_with(|c: char| c.is_ascii_digit()) && !others.iter().any(|other| name.contains(other))
    };
    own.into_iter().filter(is_of_a_queue).collect()
}

/// The cores that handle an interrupt.
fn cores_of(root: &Root, interrupt: u32) -> Vec<usize> {
    let read = |file: &str| root.read(&format!("proc/irq/{interrupt}/{file}")).filter(|list| !list.is_empty());
    read("effective_affinity_list")
        .or_else(|| read("smp_affinity_list"))
        .map(|list| parse_cores(&list))
        .unwrap_or_default()
}

fn irq_affinity(scene: &Scene) -> Vec<Found> {
    let allowed = scene.root.cores();
    let found = scene.each(|port| {
        let interrupts = interrupts(&scene.root, port);
        let used: BTreeSet<usize> = interrupts.iter().flat_map(|number| cores_of(&scene.root, *number)).collect();
        let node: Vec<usize> =
            scene.root.node_of(&port.name).map(|node| scene.root.cores_of_node(node)).unwrap_or_default();
        let near: Vec<usize> = allowed.iter().copied().filter(|core| node.is_empty() || node.contains(core)).collect();
        let used: Vec<usize> = used.into_iter().collect();
        let text = if interrupts.len() > 1 && used.len() == 1 && near.len() > 1 && scene.workers > 1 {
            format!("core {} handles all {} interrupts of {}", used[0], interrupts.len(), port.name)
        } else if !node.is_empty() && !near.is_empty() && used.iter().any(|core| !node.contains(core)) {
            format!(
                "cores {} handle interrupts of {}, whose NUMA node has cores {}",
                list_of(&used),
                port.name,
                list_of(&node)
            )
        } else {
            return None;
        };
        let echo = |(number, core): (&u32, &usize)| format!("echo {core} > /proc/irq/{number}/smp_affinity_list");
        let commands: Vec<String> = interrupts.iter().zip(near.iter().cycle()).map(echo).collect();
        Some(Found::new(Level::Warning, text).at(port).mended_by(commands.join(" && ")))
    });
    or_ok(found, "interrupts are handled where they should be, as far as there are any")
}

fn irqbalance(scene: &Scene) -> Vec<Found> {
    let has_interrupts = scene.ports().any(|port| !interrupts(&scene.root, port).is_empty());
    let running = scene.root.processes().into_iter().find(|(_, name)| name == "irqbalance");
    match running {
        Some((process, _)) if has_interrupts => {
            let text = format!("irqbalance runs, process {process}");
            vec![Found::new(Level::Warning, text).mended_by("systemctl disable --now irqbalance")]
        }
        _ => Found::ok("nothing moves the interrupts of the interfaces"),
    }
}

fn busy_poll(scene: &Scene) -> Vec<Found> {
    if !scene.is_busy {
        return Found::ok("workers do not poll the drivers");
    }
    let found = scene.each(|port| {
        let folder = format!("sys/class/net/{}", port.name);
        let is_deferred = ["napi_defer_hard_irqs", "gro_flush_timeout"]
            .iter()
            .all(|file| scene.root.number(&format!("{folder}/{file}")).is_none_or(|number| number > 0));
        // A box that runs has its own way.
        (!is_deferred && port.holder == Holder::Nobody).then(|| {
            let name = word(&port.name);
            Found::new(Level::Note, format!("interrupts of {} are not deferred while a worker polls", port.name)).at(port).mended_by(format!(
                "echo 2 > /sys/class/net/{name}/napi_defer_hard_irqs; echo 200000 > /sys/class/net/{name}/gro_flush_timeout"
            ))
        })
    });
    or_ok(found, "interrupts are deferred while workers poll")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Stage, find};
    use super::*;
    use pktio::Asked;
    use pktio::netdev::{QueueCounts, Rings, Rss};

    #[test]
    fn more_workers_than_queues_are_an_error_and_fewer_than_possible_a_note() {
        let mut stage = Stage::new("queues");
        stage.scene.workers = 16;
        let found = find(&stage.complaints(), "queues").unwrap();
        assert_eq!((found.level, found.command.as_deref()), (Level::Error, Some("synproxy --workers 8 lan0 wan0")));
        stage.scene.workers = 1;
        let found = find(&stage.complaints(), "queues").unwrap();
        assert_eq!((found.level, found.command.as_deref()), (Level::Note, Some("synproxy --workers 3 lan0 wan0")));
    }

    #[test]
    fn queues_get_the_number_of_workers() {
        let mut stage = Stage::new("counts");
        stage.port(0).queues = Some(QueueCounts { receiving: 8, most_pairs: 8, are_combined: true });
        stage.port(1).queues = Some(QueueCounts { receiving: 4, most_pairs: 8, are_combined: false });
        let command = find(&stage.complaints(), "queue-counts").unwrap().command.unwrap();
        assert_eq!(command, "ethtool -L lan0 combined 2 && ethtool -L wan0 rx 2 tx 2");
    }

    #[test]
    fn a_short_ring_is_made_longer_if_it_can_be() {
        let mut stage = Stage::new("rings");
        stage.port(1).rings = Some(Rings { receive: 512, most_receive: 8160, transmit: 512, most_transmit: 1000 });
        let found = find(&stage.complaints(), "rings").unwrap();
        assert_eq!((found.level, found.command.as_deref()), (Level::Warning, Some("ethtool -G wan0 rx 2048 tx 1000")));
        stage.port(1).rings = Some(Rings { receive: 256, most_receive: 256, transmit: 4096, most_transmit: 4096 });
        assert_eq!(find(&stage.complaints(), "rings"), None);
    }

    #[test]
    fn spreading_that_is_not_the_same_and_symmetric_is_a_note() {
        let mut stage = Stage::new("rss");
        assert_eq!(find(&stage.complaints(), "rss"), None);
        let rss = Rss { table: vec![0, 1], key: (0..40).collect(), is_symmetric_xor: false, hashes_ports: true };
        stage.port(1).rss = Some(rss);
        let found = find(&stage.complaints(), "rss").unwrap();
        assert!(found.command.unwrap().starts_with("ethtool -X lan0 equal 2 hkey 6d:5a:6d:5a:"));
        stage.port(1).rss.as_mut().unwrap().hashes_ports = false;
        let of_wan = stage.complaints().into_iter().find(|it| it.id == "rss" && it.port.as_deref() == Some("wan0"));
        let command = of_wan.unwrap().command.unwrap();
        assert!(command.ends_with(" && ethtool -N wan0 rx-flow-hash tcp6 sdfn"), "{command}");
        stage.port(1).rss = None;
        let found = find(&stage.complaints(), "rss").unwrap();
        assert!(found.finding.contains("hand over") && found.port.as_deref() == Some("wan0"), "{found:?}");
        stage.scene.workers = 1;
        assert_eq!(find(&stage.complaints(), "rss"), None);
    }

    #[test]
    fn frames_moved_to_other_cores_matter_where_the_stack_sees_them() {
        let mut stage = Stage::new("rps");
        stage.file("sys/class/net/wan0/queues/rx-0/rps_cpus", "00000000,00000003");
        stage.file("sys/class/net/wan0/queues/rx-1/rps_cpus", "00000000,00000000");
        stage.file("sys/class/net/wan0/queues/tx-0/xps_cpus", "1");
        let found = find(&stage.complaints(), "rps").unwrap();
        assert!(found.level == Level::Note && found.finding.ends_with("frames of rx-0 to other cores"), "{found:?}");
        assert_eq!(find(&stage.complaints(), "xps"), None);
        stage.scene.asked = [Asked::Packet; 2];
        assert_eq!(find(&stage.complaints(), "rps").unwrap().level, Level::Warning);
        let command = find(&stage.complaints(), "xps").unwrap().command.unwrap();
        assert_eq!(command, "for file in /sys/class/net/wan0/queues/tx-*/xps_cpus; do echo 0 > $file; done");
    }

    /// Four queues of the LAN interface, and what is no queue, with interrupts on this core each.
    fn with_interrupts(stage: &Stage, core: impl Fn(u32) -> usize) {
        let mut table = "           CPU0       CPU1\n".to_owned();
        for number in 30..34 {
            stage.file(&format!("sys/class/net/lan0/device/msi_irqs/{number}"), "msix");
            stage.file(&format!("proc/irq/{number}/effective_affinity_list"), &core(number).to_string());
            table += &format!(
                "  {number}:   5  6  PCI-MSIX-0000:3b:00.0   {}-edge      i40e-lan0-TxRx-{}\n",
                number - 30,
                number - 30
            );
        }
        stage.file("sys/class/net/lan0/device/msi_irqs/34", "msix");
        stage.file("proc/irq/34/effective_affinity_list", "0");
        table += "  34:   5  6  PCI-MSIX-0000:3b:00.0   4-edge      i40e-0000:3b:00.0:misc\n";
        stage.file("proc/interrupts", &table);
    }

    #[test]
    fn interrupts_on_one_core_or_on_a_foreign_node_are_spread() {
        let stage = Stage::new("irq");
        with_interrupts(&stage, |number| number as usize - 30);
        assert_eq!(find(&stage.complaints(), "irq-affinity"), None);
        with_interrupts(&stage, |_| 2);
        let found = find(&stage.complaints(), "irq-affinity").unwrap();
        assert_eq!(found.finding, "core 2 handles all 4 interrupts of lan0");
        let command = found.command.unwrap();
        assert!(command.starts_with("echo 0 > /proc/irq/30/smp_affinity_list && echo 1 > /proc/irq/31/"), "{command}");
        assert!(!command.contains("/34/"), "{command}");
        with_interrupts(&stage, |number| number as usize - 30);
        stage.file("sys/devices/system/node/node0/cpulist", "0-1");
        let found = find(&stage.complaints(), "irq-affinity").unwrap();
        assert!(found.finding.contains("whose NUMA node has cores 0-1"), "{found:?}");
    }

    #[test]
    fn irqbalance_matters_where_there_are_interrupts() {
        let stage = Stage::new("irqbalance");
        stage.file("proc/700/comm", "irqbalance\n");
        assert_eq!(find(&stage.complaints(), "irqbalance"), None);
        with_interrupts(&stage, |number| number as usize - 30);
        let found = find(&stage.complaints(), "irqbalance").unwrap();
        assert_eq!(found.command.as_deref(), Some("systemctl disable --now irqbalance"));
    }

    #[test]
    fn polling_defers_interrupts() {
        let mut stage = Stage::new("busy");
        stage.file("sys/class/net/lan0/napi_defer_hard_irqs", "0");
        assert_eq!(find(&stage.complaints(), "busy-poll"), None);
        stage.scene.is_busy = true;
        let found = find(&stage.complaints(), "busy-poll").unwrap();
        assert!(found.level == Level::Note && found.port.as_deref() == Some("lan0"), "{found:?}");
    }
}
