//! What the drivers can do, and settings that change what frames look like.

use super::kernel::release;
use super::speed::{Mode, mode_of};
use super::{Check, Found, Level, Scene, or_ok, word};
use confparse::FastPath;
use pktio::{Asked, FastPathWay, buffers_for};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "driver",
        looks_at: "the driver of each interface, and the best way it works with AF_XDP",
        worst: Level::Note,
        why: "Zero copy is several times as fast as copying. Both ports share their buffers, so they copy unless both drivers have zero copy.",
        remedy: "another NIC, or a newer kernel; no command adds an ability to a driver",
        examine: driver,
    },
    Check {
        id: "mtu",
        looks_at: "whether both interfaces have the same MTU",
        worst: Level::Warning,
        why: "A frame that fits one link and not the other is lost, and the box owns no address to report that from.",
        remedy: "ip link set dev PORT mtu N",
        examine: mtu,
    },
    Check {
        id: "buffers",
        looks_at: "whether a frame of the MTU fits one buffer",
        worst: Level::Error,
        why: "Longer frames lie in several buffers, for which many drivers have no zero copy or no XDP; beyond 16000 bytes there is no way.",
        remedy: "ip link set dev PORT mtu N",
        examine: buffers,
    },
    Check {
        id: "offloads",
        looks_at: "offloads that merge or cut frames, or take VLAN tags out of them (LRO, GRO, TSO, VLAN)",
        worst: Level::Note,
        why: "Merged frames fit no link, and XDP does not see a tag that the NIC has taken out. The box switches these offloads off at its start and \
              back on at its end; some NICs drop their link for it, so it is better done before.",
        remedy: "ethtool -K PORT NAME off",
        examine: offloads,
    },
    Check {
        id: "fixed-offloads",
        looks_at: "such offloads that the driver cannot switch off",
        worst: Level::Warning,
        why: "Frames that it merges are dropped, and tags that it takes out are lost, unless AF_PACKET puts them back.",
        remedy: "synproxy packet:LAN packet:WAN",
        examine: fixed_offloads,
    },
    Check {
        id: "vlan-tags",
        looks_at: "whether VLAN tags beside the frames of a veth are put back",
        worst: Level::Warning,
        why: "A veth hands over tags beside its frames; XDP programs see them since Linux 6.8. Without, a frame goes on untagged, into the wrong \
              network.",
        remedy: "ethtool -K PEER txvlan off tx-vlan-stag-hw-insert off",
        examine: vlan_tags,
    },
    Check {
        id: "pause",
        looks_at: "whether a NIC sends or heeds pause frames",
        worst: Level::Note,
        why: "With pause frames one slow host stops a link for all. The box switches them off at its start and back on at its end.",
        remedy: "ethtool -A PORT autoneg off rx off tx off",
        examine: pause,
    },
    Check {
        id: "coalescing",
        looks_at: "how long a NIC waits for further frames before it interrupts",
        worst: Level::Warning,
        why: "The wait is added to the latency of every frame that wakes a sleeping worker, twice on each round trip; an adaptive one varies.",
        remedy: "ethtool -C PORT adaptive-rx off rx-usecs 20",
        examine: coalescing,
    },
    Check {
        id: "fast-path",
        looks_at: "where the kernel would forward established connections by itself (`fast_path`), and what it lacks for that",
        worst: Level::Warning,
        why: "At tc super-frames pass whole; in XDP a frame takes no worker's time, with drivers that send what another interface's program \
              redirects. Without, the workers forward everything.",
        remedy: "ethtool -K PEER gro on",
        examine: fast_path,
    },
];

fn fast_path(scene: &Scene) -> Vec<Found> {
    let Some(ports) = scene.both() else { return Vec::new() };
    let wanted = scene.fast_path;
    // What cannot be done matters where it is to be done.
    let lacking = if wanted == FastPath::Off { Level::Ok } else { Level::Warning };
    let begin = if wanted == FastPath::Off { "off; `auto` would take " } else { "" };
    if scene.is_host {
        return vec![Found::new(lacking, "the machine's own stack has no fast path: the workers forward everything")];
    }
    let way = match wanted {
        FastPath::Xdp => FastPathWay::Xdp,
        FastPath::Tc => FastPathWay::Tc,
        FastPath::Auto | FastPath::Off => FastPathWay::Auto,
    };
    let asked = scene.asked.into_iter().find(|asked| *asked != Asked::Best).unwrap_or(Asked::Best);
    let virtual_port = ports.into_iter().find(|port| !port.has_link_checksums()).map(|port| port.name.as_str());
    let (way, why) = match pktio::fast_path_way(way, asked, virtual_port) {
        Ok((way, why)) => (way, why.unwrap_or_else(|| if way == FastPathWay::Tc { "tc" } else { "XDP" }.into())),
        Err(reason) => return vec![Found::new(lacking, format!("the workers forward everything: {reason}"))],
    };
    if release(&scene.root).is_some_and(|release| release < (6, 6)) {
        let text = format!("{begin}{why}, but that takes Linux 6.6: the workers forward everything");
        return vec![Found::new(lacking, text)];
    }
    let found = scene.each(|port| {
        // A NIC says so only while a program is attached.
        let cannot = port.kind == "veth" && port.xdp_features.is_some_and(|it| it.is_native && !it.takes_redirected);
        let peer = port.peer.as_deref().map_or_else(|| "PEER".into(), word);
        (way == FastPathWay::Xdp && cannot).then(|| {
            let text =
                format!("{begin}{why}, but {} takes no frame that is redirected: its other end has no GRO", port.name);
            Found::new(lacking, text).at(port).mended_by(format!("ethtool -K {peer} gro on"))
        })
    });
    or_ok(found, format!("{begin}{why}"))
}

fn driver(scene: &Scene) -> Vec<Found> {
    let found = scene.ports().map(|port| {
        let bus = if port.bus.is_empty() || port.bus == "N/A" { String::new() } else { format!(" at {}", port.bus) };
        let driver = if port.driver.is_empty() { "no driver that has a name" } else { &port.driver };
        let (mode, reason) = mode_of(scene, port);
        let level = if mode == Mode::ZeroCopy { Level::Ok } else { Level::Note };
        let reason = reason.map(|reason| format!("; {reason}")).unwrap_or_default();
        Found::new(level, format!("{}: {driver}{bus}, {}{reason}", port.name, mode.name())).at(port)
    });
    found.collect()
}

fn mtu(scene: &Scene) -> Vec<Found> {
    let Some([lan, wan]) = scene.both() else { return Vec::new() };
    if lan.mtu == wan.mtu {
        return Found::ok(format!("both have an MTU of {}", lan.mtu));
    }
    let (small, large) = if lan.mtu < wan.mtu { (lan, wan) } else { (wan, lan) };
    // A port has to carry whatever its network does, so the larger one is right, if both can have it.
    let is_possible = small.most_mtu.is_none_or(|most| most >= large.mtu) && buffers_for(large.mtu).is_some();
    let (change, to) = if is_possible { (small, large.mtu) } else { (large, small.mtu) };
    let text = format!("the MTU of {} is {}, and that of {} is {}", lan.name, lan.mtu, wan.name, wan.mtu);
    let command = format!("ip link set dev {} mtu {to}", word(&change.name));
    vec![Found::new(Level::Warning, text).at(change).mended_by(command)]
}

fn buffers(scene: &Scene) -> Vec<Found> {
    /// What Ethernet has where nobody has changed it.
    const USUAL: usize = 1500;
    let found = scene.each(|port| {
        let (level, what) = match buffers_for(port.mtu) {
            None => (Level::Error, "fit no buffers"),
            Some(buffers) if buffers.are_chained => {
                let level = if port.xdp_features.is_some_and(|it| it.is_native && !it.has_frags) {
                    Level::Warning
                } else {
                    Level::Note
                };
                (level, "lie in several buffers")
            }
            Some(_) => return None,
        };
        Some(
            Found::new(level, format!("{}: frames of an MTU of {} {what}", port.name, port.mtu))
                .at(port)
                .mended_by(format!("ip link set dev {} mtu {USUAL}", word(&port.name))),
        )
    });
    or_ok(found, "frames fit one buffer")
}

fn offloads(scene: &Scene) -> Vec<Found> {
    let found = scene.each(|port| {
        let off: Vec<String> = port.offloads.iter().map(|name| format!("{name} off")).collect();
        (!off.is_empty()).then(|| {
            Found::new(
                Level::Note,
                format!("{} has {} on; the box switches them off", port.name, port.offloads.join(", ")),
            )
            .at(port)
            .mended_by(format!("ethtool -K {} {}", word(&port.name), off.join(" ")))
        })
    });
    or_ok(found, "no offload is on that merges or cuts frames or takes tags out")
}

fn fixed_offloads(scene: &Scene) -> Vec<Found> {
    // What senders leave to be cut is no matter of a NIC's receiving side.
    let is_harmful =
        |name: &&String| ["rx-lro", "rx-gro-hw", "rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"].contains(&name.as_str());
    let found = scene.each(|port| {
        let names: Vec<&str> = port.fixed_offloads.iter().filter(is_harmful).map(String::as_str).collect();
        let is_packet = mode_of(scene, port).0 == Mode::Packet;
        (!names.is_empty() && !is_packet).then(|| {
            let [lan, wan] = scene.names.each_ref().map(|name| word(&format!("packet:{name}")));
            Found::new(Level::Warning, format!("{} cannot switch off {}", port.name, names.join(", ")))
                .at(port)
                .mended_by(format!("synproxy {lan} {wan}"))
        })
    });
    or_ok(found, "every such offload can be switched off")
}

fn vlan_tags(scene: &Scene) -> Vec<Found> {
    let is_able = release(&scene.root).is_none_or(|release| release >= (6, 8))
        && scene.root.path("sys/kernel/btf/vmlinux").exists();
    let found = scene.each(|port| {
        let is_lost = match mode_of(scene, port).0 {
            Mode::Driver => !is_able,
            Mode::Generic => true,
            Mode::ZeroCopy | Mode::Packet => false,
        };
        (port.kind == "veth" && is_lost).then(|| {
            let peer = port.peer.as_ref().map_or("PEER".to_owned(), |peer| word(peer));
            Found::new(
                Level::Warning,
                format!("{}: VLAN tags that its peer leaves beside the frames are lost", port.name),
            )
            .at(port)
            .mended_by(format!("ethtool -K {peer} txvlan off tx-vlan-stag-hw-insert off"))
        })
    });
    or_ok(found, "no interface hides VLAN tags")
}

fn pause(scene: &Scene) -> Vec<Found> {
    let found = scene.each(|port| {
        port.has_pause.then(|| {
            Found::new(Level::Note, format!("{} has pause frames on; the box switches them off", port.name))
                .at(port)
                .mended_by(format!("ethtool -A {} autoneg off rx off tx off", word(&port.name)))
        })
    });
    or_ok(found, "no interface has pause frames on")
}

fn coalescing(scene: &Scene) -> Vec<Found> {
    /// Microseconds that hardly show beside a wake-up of a worker.
    const SHORT: u32 = 50;
    let found = scene.each(|port| {
        let coalescing = port.coalescing?;
        let (level, what) = match coalescing.receive_usecs {
            _ if coalescing.is_adaptive => {
                (Level::Note, "chooses by itself how long it waits before it interrupts".to_owned())
            }
            usecs if usecs > SHORT => (Level::Warning, format!("waits {usecs} us before it interrupts")),
            _ => return None,
        };
        // A worker that never sleeps is not woken.
        let level = if scene.is_busy { Level::Note } else { level };
        Some(
            Found::new(level, format!("{} {what}", port.name))
                .at(port)
                .mended_by(format!("ethtool -C {} adaptive-rx off rx-usecs 20", word(&port.name))),
        )
    });
    or_ok(found, "no NIC waits long before it interrupts")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Stage, find};
    use super::*;
    use pktio::netdev::{Coalescing, XdpFeatures};

    #[test]
    fn the_smaller_mtu_is_raised_unless_it_cannot_be() {
        let mut stage = Stage::new("mtu");
        stage.port(0).mtu = 2000;
        let found = find(&stage.complaints(), "mtu").unwrap();
        assert_eq!((found.level, found.command.as_deref()), (Level::Warning, Some("ip link set dev wan0 mtu 2000")));
        stage.port(1).most_mtu = Some(1500);
        assert_eq!(find(&stage.complaints(), "mtu").unwrap().command.as_deref(), Some("ip link set dev lan0 mtu 1500"));
        (stage.port(0).mtu, stage.port(1).most_mtu) = (65_536, None);
        assert_eq!(find(&stage.complaints(), "mtu").unwrap().command.as_deref(), Some("ip link set dev lan0 mtu 1500"));
    }

    #[test]
    fn long_frames_are_a_note_a_warning_or_an_error() {
        let mut stage = Stage::new("long");
        let level = |stage: &Stage| find(&stage.complaints(), "buffers").map(|found| found.level);
        for side in 0..2 {
            stage.port(side).mtu = 3000;
        }
        assert_eq!(level(&stage), None);
        for side in 0..2 {
            stage.port(side).mtu = 9000;
        }
        assert_eq!(level(&stage), Some(Level::Warning));
        for side in 0..2 {
            stage.port(side).xdp_features = Some(XdpFeatures {
                is_native: true,
                has_zero_copy: true,
                has_frags: true,
                zero_copy_frags: 4,
                ..XdpFeatures::default()
            });
        }
        assert_eq!(level(&stage), Some(Level::Note));
        stage.port(0).mtu = 65_000;
        assert_eq!(level(&stage), Some(Level::Error));
    }

    #[test]
    fn offloads_and_pause_frames_are_switched_off_by_one_command_each() {
        let mut stage = Stage::new("offloads");
        stage.port(0).offloads = vec!["rx-gro".into(), "rx-lro".into()];
        stage.port(1).has_pause = true;
        stage.port(1).fixed_offloads = vec!["rx-vlan-hw-parse".into(), "tx-udp-segmentation".into()];
        let found = stage.complaints();
        let command = |id: &str| find(&found, id).unwrap().command.unwrap();
        assert_eq!(command("offloads"), "ethtool -K lan0 rx-gro off rx-lro off");
        assert_eq!(command("pause"), "ethtool -A wan0 autoneg off rx off tx off");
        assert_eq!(command("fixed-offloads"), "synproxy packet:lan0 packet:wan0");
        assert!(!find(&found, "fixed-offloads").unwrap().finding.contains("tx-udp"), "{found:?}");
    }

    #[test]
    fn a_long_wait_for_further_frames_is_shortened() {
        let mut stage = Stage::new("coalescing");
        let level = |stage: &Stage| find(&stage.complaints(), "coalescing").map(|found| found.level);
        for (receive_usecs, is_adaptive, expected) in
            [(20, false, None), (125, false, Some(Level::Warning)), (3, true, Some(Level::Note))]
        {
            stage.port(1).coalescing = Some(Coalescing { receive_usecs, receive_frames: 0, is_adaptive });
            assert_eq!(level(&stage), expected);
        }
        stage.port(1).coalescing = Some(Coalescing { receive_usecs: 125, ..Coalescing::default() });
        stage.scene.is_busy = true;
        assert_eq!(level(&stage), Some(Level::Note));
    }

    #[test]
    fn it_is_said_where_the_kernel_would_forward_and_what_it_lacks() {
        let mut stage = Stage::new("fast-path");
        let said = |stage: &Stage| find(&stage.scene.examine(), "fast-path").map(|found| (found.level, found.finding));
        let both = "XDP, since the frames of both ports come over links";
        assert_eq!(said(&stage), Some((Level::Ok, format!("off; `auto` would take {both}"))));
        stage.scene.fast_path = FastPath::Auto;
        assert_eq!(said(&stage), Some((Level::Ok, both.into())));
        (stage.port(1).kind, stage.port(1).driver) = ("veth".into(), "veth".into());
        stage.port(1).bus = String::new();
        let tc = "tc, since senders may leave checksums and segmentation to wan0";
        assert_eq!(said(&stage), Some((Level::Ok, tc.into())));
        stage.file("proc/sys/kernel/osrelease", "6.1.0-cloud");
        let old = format!("{tc}, but that takes Linux 6.6: the workers forward everything");
        assert_eq!(said(&stage), Some((Level::Warning, old)));
        stage.file("proc/sys/kernel/osrelease", "6.12.1");
        stage.scene.asked = [Asked::Xdp; 2];
        let found = find(&stage.complaints(), "fast-path").expect("no GRO");
        assert_eq!(found.command.as_deref(), Some("ethtool -K PEER gro on"));
        stage.scene.fast_path = FastPath::Tc;
        let found = find(&stage.complaints(), "fast-path").expect("other names");
        assert!(found.finding.contains("named for another I/O backend"), "{}", found.finding);
    }

    #[test]
    fn tags_beside_frames_need_a_newer_kernel() {
        let mut stage = Stage::new("tags");
        stage.port(0).kind = "veth".into();
        stage.port(0).peer = Some("peer0".into());
        stage.port(0).xdp_features = Some(XdpFeatures { is_native: true, has_frags: true, ..XdpFeatures::default() });
        assert_eq!(find(&stage.complaints(), "vlan-tags"), None);
        stage.file("proc/sys/kernel/osrelease", "6.7.12-cloud");
        let found = find(&stage.complaints(), "vlan-tags").unwrap();
        assert_eq!(found.command.as_deref(), Some("ethtool -K peer0 txvlan off tx-vlan-stag-hw-insert off"));
    }
}
