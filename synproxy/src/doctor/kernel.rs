//! What the kernel has, and which of its file systems are where the box looks for them.

use super::root::Root;
use super::{Check, Found, Level, Scene, or_ok, word};
use rustix::fs::{Access, access};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "kernel",
        looks_at: "the version of the kernel",
        worst: Level::Warning,
        why: "AF_XDP as the box uses it needs Linux 5.6. Since 6.3 the kernel says what drivers \
              can do, since 6.8 tags of a veth are seen, and virtio-net has zero copy since 6.18.",
        remedy: "a newer kernel",
        examine: version,
    },
    Check {
        id: "bpf",
        looks_at: "whether the kernel has BPF and AF_XDP (CONFIG_BPF_SYSCALL, CONFIG_XDP_SOCKETS)",
        worst: Level::Warning,
        why: "Without them the box works by AF_PACKET, several times slower.",
        remedy: "a kernel with both",
        examine: bpf,
    },
    Check {
        id: "bpf-jit",
        looks_at: "whether BPF programs are compiled (net.core.bpf_jit_enable)",
        worst: Level::Warning,
        why: "An interpreted XDP program takes longer, for every frame.",
        remedy: "sysctl -w net.core.bpf_jit_enable=1",
        examine: jit,
    },
    Check {
        id: "bpf-file-system",
        looks_at: "whether the BPF file system is mounted at /sys/fs/bpf",
        worst: Level::Note,
        why: "What the kernel forwards by itself (`fast_path`) is pinned there, and so goes on while the process is dead, and in the next one.",
        remedy: "mount -t bpf bpf /sys/fs/bpf",
        examine: bpf_file_system,
    },
    Check {
        id: "run-directory",
        looks_at: "whether the box can write below /run/synproxy",
        worst: Level::Warning,
        why: "Locks of interfaces, settings to be put back after a kill, and the control socket are there.",
        remedy: "install -d -o USER /run/synproxy, or mount -o remount,rw /run",
        examine: run_directory,
    },
    Check {
        id: "sysfs",
        looks_at: "whether /sys shows the interfaces of this network namespace",
        worst: Level::Note,
        why: "Queues, interrupts and NUMA nodes are read there, so some of these checks say nothing where /sys is another namespace's.",
        remedy: "unshare -m sh -c 'mount -t sysfs sysfs /sys && synproxy doctor LAN WAN'",
        examine: sysfs,
    },
];

/// Version and patch level of the kernel.
pub(super) fn release(root: &Root) -> Option<(u32, u32)> {
    let text = root.read("proc/sys/kernel/osrelease")?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Whether it has the system call for BPF.
pub(super) fn has_bpf(root: &Root) -> bool {
    root.path("proc/sys/kernel/unprivileged_bpf_disabled").exists()
}

/// Whether it has AF_XDP sockets.
pub(super) fn has_af_xdp(root: &Root) -> bool {
    let protocols = root.read("proc/self/net/protocols").unwrap_or_default();
    protocols.lines().any(|line| line.starts_with("XDP "))
}

fn version(scene: &Scene) -> Vec<Found> {
    let Some((major, minor)) = release(&scene.root) else { return Vec::new() };
    let text = format!("Linux {major}.{minor}");
    let lacks = match (major, minor) {
        version if version < (5, 6) => (Level::Warning, ": AF_XDP does not work as the box needs it"),
        version if version < (6, 3) => (Level::Note, ": what drivers can do with XDP is known from a list alone"),
        _ => return Found::ok(text),
    };
    vec![Found::new(lacks.0, text + lacks.1)]
}

fn bpf(scene: &Scene) -> Vec<Found> {
    let missing =
        |name: &str| Found::new(Level::Warning, format!("this kernel has no {name}; the box works by AF_PACKET"));
    let found = [(has_bpf(&scene.root), "BPF"), (has_af_xdp(&scene.root), "AF_XDP")];
    or_ok(
        found.into_iter().filter(|(has, _)| !has).map(|(_, name)| missing(name)).collect(),
        "the kernel has BPF and AF_XDP",
    )
}

fn jit(scene: &Scene) -> Vec<Found> {
    match scene.root.number("proc/sys/net/core/bpf_jit_enable") {
        Some(0) => {
            let found = Found::new(Level::Warning, "BPF programs are interpreted");
            vec![found.mended_by("sysctl -w net.core.bpf_jit_enable=1")]
        }
        Some(_) => Found::ok("BPF programs are compiled"),
        None => Found::ok("this network namespace does not say whether BPF programs are compiled"),
    }
}

fn bpf_file_system(scene: &Scene) -> Vec<Found> {
    let mounts = scene.root.read("proc/self/mounts").unwrap_or_default();
    if mounts.lines().any(|line| line.contains(" /sys/fs/bpf bpf ")) {
        return Found::ok("the BPF file system is mounted");
    }
    let found = Found::new(Level::Note, "the BPF file system is not mounted at /sys/fs/bpf");
    vec![found.mended_by("mount -t bpf bpf /sys/fs/bpf")]
}

fn run_directory(scene: &Scene) -> Vec<Found> {
    let own = scene.root.path("run/synproxy");
    let above = scene.root.path("run");
    let is_writable = |path| access(path, Access::WRITE_OK).is_ok();
    if is_writable(if own.exists() { &own } else { &above }) {
        return Found::ok("/run/synproxy can be written");
    }
    let found = Found::new(
        Level::Warning,
        "/run/synproxy cannot be written: nothing locks an interface, and there is no control socket",
    );
    let mounts = scene.root.read("proc/self/mounts").unwrap_or_default();
    let options = mounts.lines().rev().find_map(|line| line.split_once(" /run ")?.1.split(' ').nth(1));
    if options.is_some_and(|options| options.split(',').any(|option| option == "ro")) {
        return vec![found.mended_by("mount -o remount,rw /run")];
    }
    let user = scene.root.value("proc/self/status", "Uid").unwrap_or_default();
    let user = user.split_whitespace().nth(1).unwrap_or("0");
    vec![found.mended_by(format!("install -d -o {user} /run/synproxy"))]
}

fn sysfs(scene: &Scene) -> Vec<Found> {
    let is_here =
        |name: &str, index: u32| scene.root.number(&format!("sys/class/net/{name}/ifindex")) == Some(i64::from(index));
    if scene.ports().all(|port| is_here(&port.name, port.index)) {
        return Found::ok("/sys shows the interfaces of this network namespace");
    }
    let [lan, wan] = scene.names.each_ref().map(|name| word(name));
    let found = Found::new(Level::Note, "/sys does not show the interfaces of this network namespace");
    vec![found.mended_by(format!("unshare -m sh -c 'mount -t sysfs sysfs /sys && synproxy doctor {lan} {wan}'"))]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Stage, find};
    use super::*;

    #[test]
    fn the_version_of_the_kernel_decides_what_is_missing() {
        let stage = Stage::new("version");
        for (text, expected) in [
            ("6.18.44-cloud", None),
            ("6.3.0", None),
            ("6.1.0-18-amd64", Some(Level::Note)),
            ("5.8.0", Some(Level::Note)),
            ("4.19.0-26-amd64", Some(Level::Warning)),
        ] {
            stage.file("proc/sys/kernel/osrelease", text);
            assert_eq!(find(&stage.complaints(), "kernel").map(|it| it.level), expected, "{text}");
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let stage = Stage::new("bpf");
        stage.file("proc/self/net/protocols", "protocol  size\nTCP 1\n");
        stage.file("proc/sys/net/core/bpf_jit_enable", "0");
        stage.file("proc/self/mounts", "proc /proc proc rw 0 0\n");
        let found = stage.complaints();
        assert!(find(&found, "bpf").unwrap().finding.contains("no AF_XDP"));
        assert_eq!(find(&found, "bpf-jit").unwrap().command.as_deref(), Some("sysctl -w net.core.bpf_jit_enable=1"));
        assert_eq!(find(&found, "bpf-file-system").unwrap().command.as_deref(), Some("mount -t bpf bpf /sys/fs/bpf"));
        std::fs::remove_file(stage.path("proc/sys/kernel/unprivileged_bpf_disabled")).unwrap();
        assert!(find(&stage.complaints(), "bpf").unwrap().finding.contains("no BPF"));
    }

    #[test]
    fn files_of_another_namespace_are_not_taken_for_ours() {
        let stage = Stage::new("sysfs");
        stage.file("sys/class/net/wan0/ifindex", "99");
        let found = find(&stage.complaints(), "sysfs").unwrap();
        assert!(found.command.unwrap().ends_with("&& synproxy doctor lan0 wan0'"));
    }
}
