//! A scene where all is well, with files that a test may change.

use super::root::Root;
use super::{Finding, Level, Scene};
use crate::process::footprint::Needed;
use confparse::Config;
use pktio::Asked;
use pktio::netdev::{Description, QueueCounts, Rings, Rss, XdpFeatures};
use std::fs;
use std::path::PathBuf;

/// Two NICs of eight queues with zero copy, two workers, four cores, and files for it; removed when dropped.
pub(super) struct Stage {
    pub scene: Scene,
    folder: PathBuf,
}

impl Stage {
    pub(super) fn new(test: &str) -> Stage {
        let folder = std::env::temp_dir().join(format!("spx-doctor-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let port = |name: &str, index| Description {
            name: name.into(),
            index,
            driver: "ice".into(),
            bus: "0000:3b:00.0".into(),
            is_up: true,
            has_carrier: true,
            mtu: 1500,
            most_mtu: Some(9702),
            xdp_features: Some(XdpFeatures { is_native: true, has_zero_copy: true, ..XdpFeatures::default() }),
            queues: Some(QueueCounts { receiving: 2, most_pairs: 8, are_combined: true }),
            rings: Some(Rings { receive: 2048, most_receive: 8160, transmit: 2048, most_transmit: 8160 }),
            rss: Some(Rss { table: vec![0, 1], key: vec![0x6d; 40], is_symmetric_xor: false, hashes_ports: true }),
            ..Description::default()
        };
        let config = Config { workers: 2, ..Config::default() };
        let scene = Scene {
            names: ["lan0".into(), "wan0".into()],
            asked: [Asked::Best; 2],
            ports: [Some(port("lan0", 11)), Some(port("wan0", 12))],
            conflict: None,
            is_host: false,
            root: Root::new(&folder),
            workers: 2,
            is_busy: false,
            fast_path: config.fast_path,
            needed: Needed::of(&config, 2, false),
            syns_in_kernel: config.syns_in_kernel,
            failures: config.failures,
            program: "/usr/sbin/synproxy".into(),
        };
        let stage = Stage { scene, folder };
        for (path, text) in [
            ("proc/self/status", Stage::status("0-3", 0).as_str()),
            ("proc/self/limits", "Limit  Soft Limit  Hard Limit\n"),
            ("proc/self/mounts", "bpf /sys/fs/bpf bpf rw,nosuid 0 0\n"),
            ("proc/self/net/protocols", "protocol  size\nXDP 1088\nTCP 1\n"),
            ("proc/sys/kernel/osrelease", "6.18.44-cloud\n"),
            ("proc/sys/kernel/unprivileged_bpf_disabled", "2"),
            ("proc/sys/net/core/bpf_jit_enable", "1"),
            ("proc/meminfo", "MemTotal:        8388608 kB\n"),
            ("sys/kernel/btf/vmlinux", ""),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("sys/class/net/lan0/ifindex", "11"),
            ("sys/class/net/wan0/ifindex", "12"),
            ("sys/class/net/lan0/device/numa_node", "0"),
            ("sys/class/net/wan0/device/numa_node", "0"),
            ("sys/devices/system/node/node0/cpulist", "0-3"),
            ("run/synproxy/keep", ""),
        ] {
            stage.file(path, text);
        }
        stage
    }

    /// The status of a process that may use these cores and lacks the capabilities of these bits, or from these bits on those that a box takes.
    pub(super) fn status(cores: &str, lacking: u64) -> String {
        let taken: u64 = [12, 13, 14, 23, 38, 39].iter().map(|bit| 1_u64 << bit).sum();
        // CAP_NET_RAW missing stands for a process without any.
        let effective = if lacking & 1 << 13 != 0 { 0 } else { taken & !lacking };
        format!("Name:\tsynproxy\nUid:\t0\t0\t0\t0\nCapEff:\t{effective:016x}\nCpus_allowed_list:\t{cores}\n")
    }

    pub(super) fn port(&mut self, side: usize) -> &mut Description {
        self.scene.ports[side].as_mut().expect("the interface is there")
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    pub(super) fn file(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a directory")).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What is not as it should be.
    pub(super) fn complaints(&self) -> Vec<Finding> {
        self.scene.examine().into_iter().filter(|finding| finding.level > Level::Ok).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The first finding of this check.
pub(super) fn find(findings: &[Finding], id: &str) -> Option<Finding> {
    findings.iter().find(|finding| finding.id == id).cloned()
}
