//! What is there for the time when the box fails: whether the kernel can bridge past it, watchdog devices, and bypasses.

use super::{Check, Found, Level, Scene, or_ok, word};
use confparse::{FastPath, OnFailure};
use rustix::fs::{Access, access};
use std::path::Path;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "fail-open",
        looks_at: "whether the kernel can send to each interface what passes without the box (`on_failure`)",
        worst: Level::Warning,
        why: "A program that sends a frame out of the other port needs that port's driver for it, and those of both ends of a veth; without, the frame \
              is lost in silence. AF_PACKET passes nothing without the box.",
        remedy: "ethtool -K PEER gro on",
        examine: fail_open,
    },
    Check {
        id: "kernel-syns",
        looks_at: "whether the kernel can answer SYNs by itself at the WAN port (`syns_in_kernel`)",
        worst: Level::Warning,
        why: "The XDP program does it, which needs AF_XDP and a driver that sends its answers; at a veth, that the other end takes them. With `fast_path = tc` \
              a program at tc does it, on every interface. Without either the workers answer all SYNs.",
        remedy: "ethtool -K PEER gro on",
        examine: kernel_syns,
    },
    Check {
        id: "watchdog-device",
        looks_at: "watchdog devices of the kernel (/dev/watchdog), and whether the configured one is there (`watchdog_device`)",
        worst: Level::Warning,
        why: "Such a device starts the machine again when a worker stays stuck, and when the kernel does.",
        remedy: "the driver of the machine's own device, or softdog; and `watchdog_device` in the configuration",
        examine: watchdog_device,
    },
    Check {
        id: "bypass",
        looks_at: "network cards with a bypass, and whether what switches it can be called (`bypass_hook`)",
        worst: Level::Warning,
        why: "A relay on the card lets frames around the box also when the machine has no power or hangs.",
        remedy: "a program that may be run; and `bypass_hook` in the configuration",
        examine: bypass,
    },
];

fn fail_open(scene: &Scene) -> Vec<Found> {
    if scene.failures.on_failure == OnFailure::Closed {
        return Found::ok("nothing is to pass without the box (`on_failure = closed`)");
    }
    if scene.asked.contains(&pktio::Asked::Packet) {
        let text = "AF_PACKET passes nothing without the box, whatever `on_failure` says";
        return vec![Found::new(Level::Warning, text)];
    }
    let found = scene.each(|port| {
        // A NIC says so only while a program is attached.
        let cannot = port.kind == "veth" && port.xdp_features.is_some_and(|it| it.is_native && !it.takes_redirected);
        let text =
            || format!("{} takes no frame that the kernel sends past the box: its other end has no GRO", port.name);
        let peer = port.peer.as_deref().map_or_else(|| "PEER".into(), word);
        cannot.then(|| Found::new(Level::Warning, text()).at(port).mended_by(format!("ethtool -K {peer} gro on")))
    });
    or_ok(found, "nothing is known that keeps the kernel from bridging past the box")
}

fn kernel_syns(scene: &Scene) -> Vec<Found> {
    if !scene.syns_in_kernel {
        return Found::ok("the workers answer all SYNs (`syns_in_kernel = off`)");
    }
    let is_at_tc = is_at_tc(scene);
    if !is_at_tc && scene.asked.contains(&pktio::Asked::Packet) {
        let text =
            "AF_PACKET has no program that answers SYNs without `fast_path = tc`, whatever `syns_in_kernel` says";
        return vec![Found::new(Level::Warning, text)];
    }
    let Some(wan) = &scene.ports[1] else { return Found::ok("there is no WAN port to look at") };
    if wan.kind == "veth" && wan.xdp_features.is_some_and(|it| it.is_native && !it.takes_redirected) {
        let text = match is_at_tc {
            true => format!(
                "no XDP program can answer SYNs in front of tc while they come in masses: the other end of {} has no GRO",
                wan.name
            ),
            false => format!("the other end of {} takes no answer from the kernel's program: it has no GRO", wan.name),
        };
        let peer = wan.peer.as_deref().map_or_else(|| "PEER".into(), word);
        return vec![Found::new(Level::Warning, text).at(wan).mended_by(format!("ethtool -K {peer} gro on"))];
    }
    match is_at_tc {
        true => Found::ok("the program at tc answers SYNs (`fast_path`)"),
        false => Found::ok("nothing is known that keeps the kernel from answering SYNs"),
    }
}

/// Whether the fast path is at tc (`choose_fast_path` in pktio).
fn is_at_tc(scene: &Scene) -> bool {
    let is_virtual = || scene.ports.iter().flatten().any(|port| port.kind == "veth");
    match scene.fast_path {
        _ if scene.asked.contains(&pktio::Asked::Xdp) => false,
        FastPath::Tc => true,
        FastPath::Auto => scene.asked.contains(&pktio::Asked::Packet) || is_virtual(),
        FastPath::Off | FastPath::Xdp => false,
    }
}

fn watchdog_device(scene: &Scene) -> Vec<Found> {
    let devices: Vec<String> = scene
        .root
        .list("dev")
        .into_iter()
        .filter(|name| name.starts_with("watchdog"))
        .map(|name| format!("/dev/{name}"))
        .collect();
    if let Some(device) = &scene.failures.watchdog_device {
        let path = device.display();
        let is_there = scene.root.path(device.to_string_lossy().trim_start_matches('/')).exists();
        return match is_there {
            true => Found::ok(format!("{path} is there")),
            false => {
                let text = format!("there is no {path}, so the box does not start");
                vec![Found::new(Level::Warning, text).mended_by("modprobe softdog")]
            }
        };
    }
    match devices.iter().min() {
        Some(first) => Found::ok(format!("{first} is there, and not used (`watchdog_device`)")),
        None => Found::ok("the kernel has no watchdog device"),
    }
}

fn bypass(scene: &Scene) -> Vec<Found> {
    let Some(hook) = &scene.failures.bypass_hook else {
        // Where the drivers of cards with relays put them.
        let known = ["proc/net/bypass", "sys/class/bypass"];
        let is_there = known.iter().find(|path| scene.root.path(path).exists());
        return Found::ok(match is_there {
            Some(path) => {
                format!("there is a network card with a bypass (/{path}), and nobody switches it (`bypass_hook`)")
            }
            None => "no network card with a bypass is known".into(),
        });
    };
    let first = hook.split_whitespace().next().unwrap_or_default();
    let path = scene.root.path(if hook.starts_with("/sys/") { hook } else { first }.trim_start_matches('/'));
    let (wanted, what) =
        if hook.starts_with("/sys/") { (Access::WRITE_OK, "written") } else { (Access::EXEC_OK, "run") };
    if access(Path::new(&path), wanted).is_ok() {
        return Found::ok(format!("{first} can be {what}"));
    }
    let text = format!("{first} cannot be {what}, so nobody switches the bypass");
    let found = Found::new(Level::Warning, text);
    vec![if hook.starts_with("/sys/") { found } else { found.mended_by(format!("chmod +x {}", word(first))) }]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Stage, find};
    use super::*;

    #[test]
    fn what_cannot_pass_without_the_box_is_said_if_it_is_to_pass() {
        let mut stage = Stage::new("fail-open");
        for side in 0..2 {
            stage.port(side).kind = "veth".into();
            stage.port(side).driver = "veth".into();
        }
        assert_eq!(find(&stage.complaints(), "fail-open"), None);
        stage.scene.failures.on_failure = OnFailure::Open;
        let found = find(&stage.complaints(), "fail-open").unwrap();
        assert_eq!((found.level, found.command.as_deref()), (Level::Warning, Some("ethtool -K PEER gro on")));
        for side in 0..2 {
            stage.port(side).xdp_features.as_mut().unwrap().takes_redirected = true;
        }
        assert_eq!(find(&stage.complaints(), "fail-open"), None);
        stage.scene.asked[0] = pktio::Asked::Packet;
        assert!(find(&stage.complaints(), "fail-open").unwrap().finding.contains("AF_PACKET"));
    }

    #[test]
    fn what_keeps_the_kernel_from_answering_syns_is_said_if_it_is_to() {
        let mut stage = Stage::new("kernel-syns");
        stage.port(1).kind = "veth".into();
        assert_eq!(find(&stage.complaints(), "kernel-syns"), None);
        stage.scene.syns_in_kernel = true;
        let found = find(&stage.complaints(), "kernel-syns").unwrap();
        assert_eq!((found.level, found.command.as_deref()), (Level::Warning, Some("ethtool -K PEER gro on")));
        stage.port(1).xdp_features.as_mut().unwrap().takes_redirected = true;
        assert_eq!(find(&stage.complaints(), "kernel-syns"), None);
        stage.scene.asked[1] = pktio::Asked::Packet;
        assert!(find(&stage.complaints(), "kernel-syns").unwrap().finding.contains("AF_PACKET"));
        // The program at tc does it on every interface, where the fast path is there.
        for (fast_path, asked, is_at_tc) in [
            (FastPath::Tc, pktio::Asked::Packet, true),
            (FastPath::Tc, pktio::Asked::Xdp, false),
            (FastPath::Auto, pktio::Asked::Best, true),
            (FastPath::Xdp, pktio::Asked::Best, false),
        ] {
            (stage.scene.fast_path, stage.scene.asked[1]) = (fast_path, asked);
            stage.port(1).xdp_features.as_mut().unwrap().takes_redirected = false;
            let lacks = find(&stage.complaints(), "kernel-syns").unwrap().finding;
            assert_eq!(lacks.contains("in front of tc"), is_at_tc, "{fast_path:?} {asked:?}: {lacks}");
            stage.port(1).xdp_features.as_mut().unwrap().takes_redirected = true;
            assert_eq!(find(&stage.complaints(), "kernel-syns"), None, "{fast_path:?} {asked:?}");
        }
    }

    #[test]
    fn devices_and_hooks_are_found_and_missed() {
        let mut stage = Stage::new("watchdogs");
        let of = |stage: &Stage, id: &str| stage.scene.examine().into_iter().find(|it| it.id == id).unwrap();
        assert_eq!(of(&stage, "watchdog-device").finding, "the kernel has no watchdog device");
        stage.file("dev/watchdog0", "");
        stage.file("dev/watchdog", "");
        assert!(of(&stage, "watchdog-device").finding.starts_with("/dev/watchdog is there, and not used"));
        stage.scene.failures.watchdog_device = Some("/dev/watchdog1".into());
        assert_eq!(find(&stage.complaints(), "watchdog-device").unwrap().command.as_deref(), Some("modprobe softdog"));
        stage.file("proc/net/bypass/eth0", "");
        assert!(of(&stage, "bypass").finding.contains("nobody switches it"));
        stage.scene.failures.bypass_hook = Some("/usr/sbin/bypass eth0".into());
        let found = find(&stage.complaints(), "bypass").unwrap();
        assert_eq!(found.command.as_deref(), Some("chmod +x /usr/sbin/bypass"));
    }
}
