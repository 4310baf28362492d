//! The interfaces themselves: whether they are two, up and free, and who else has them.

use super::{Check, Found, Level, Scene, or_ok, word};
use pktio::netdev::{Description, Holder};
use std::collections::BTreeSet;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "interface",
        looks_at: "whether both interfaces exist, by their name or an alternative one",
        worst: Level::Error,
        why: "The box opens interfaces of the network namespace it is started in.",
        remedy: "ip -br link",
        examine: exist,
    },
    Check {
        id: "two-cables",
        looks_at: "whether the interfaces are two cables, not one interface, the ends of a veth pair, or one on the other",
        worst: Level::Error,
        why: "Each frame would pass twice, or circle.",
        remedy: "ip -br link",
        examine: two_cables,
    },
    Check {
        id: "box",
        looks_at: "whether a box or another program of this package has an interface",
        worst: Level::Error,
        why: "An interface is a port of one box. While a box runs, the settings of its interfaces are those that it has made.",
        remedy: "kill PROCESS",
        examine: holder,
    },
    Check {
        id: "other-box",
        looks_at: "whether another box runs on this machine",
        worst: Level::Note,
        why: "Two boxes on separate members of one aggregation (bond, LAG) are right only where both switches hash symmetrically; else connections whose \
              directions cross different boxes break. `half-seen`, `direct-return` and `no-flow` rise then. One box may have all members.",
        remedy: "one box that has all members, or the same symmetric hash at both switches",
        examine: other_box,
    },
    Check {
        id: "left-changed",
        looks_at: "whether a killed box has left settings of an interface changed",
        worst: Level::Warning,
        why: "The next start puts them back first; until then the interface has the queues and offloads of a box.",
        remedy: "synproxy --restore PORT",
        examine: left_changed,
    },
    Check {
        id: "up",
        looks_at: "whether the interfaces are up",
        worst: Level::Error,
        why: "The box does not start on an interface that is down.",
        remedy: "ip link set dev PORT up",
        examine: up,
    },
    Check {
        id: "carrier",
        looks_at: "whether there is somebody at the other end of each link",
        worst: Level::Warning,
        why: "The box waits ten seconds for a link and then goes on without; nothing passes until it comes.",
        remedy: "ip link set dev PEER up, or a look at the cable and the other end",
        examine: carrier,
    },
    Check {
        id: "member",
        looks_at: "whether an interface is a member of a bridge, a bond or a team",
        worst: Level::Error,
        why: "Frames of a member would pass twice, so the box does not start on one.",
        remedy: "ip link set dev PORT nomaster",
        examine: member,
    },
    Check {
        id: "default-route",
        looks_at: "whether a default route of this machine leads out of an interface, or of a VLAN on it",
        worst: Level::Error,
        why: "The machine itself loses an interface that is a port of the box, so the box starts there with --force alone.",
        remedy: "ip -4 route flush table all exact default dev PORT",
        examine: default_route,
    },
    Check {
        id: "login",
        looks_at: "whether a TCP connection of this machine (a login by ssh) uses an interface",
        worst: Level::Error,
        why: "The connection would break and lock out who is logged in, so the box starts there with --force alone.",
        remedy: "synproxy --force LAN WAN",
        examine: login,
    },
    Check {
        id: "address",
        looks_at: "whether an interface has an address",
        worst: Level::Warning,
        why: "This machine cannot use the address while the interface is a port of the box.",
        remedy: "ip address flush dev PORT",
        examine: address,
    },
    Check {
        id: "managed",
        looks_at: "whether systemd-networkd or NetworkManager configures an interface",
        worst: Level::Warning,
        why: "A manager gives the interface addresses, asks for leases through it, and takes it down or changes its MTU while the box runs.",
        remedy: "nmcli device set PORT managed no",
        examine: managed,
    },
    Check {
        id: "xdp-program",
        looks_at: "whether another program's XDP program is attached",
        worst: Level::Error,
        why: "An interface has one XDP program. AF_PACKET would see only the frames that a foreign one passes, so the box does not start.",
        remedy: "kill PROCESS, or ip link set dev PORT xdp off",
        examine: xdp_program,
    },
    Check {
        id: "egress-filter",
        looks_at: "whether a filter of `tc` sees what this machine sends by the NIC, where a box is to protect the machine itself",
        worst: Level::Error,
        why: "The box takes the frames before they leave the NIC, so the filter would not see them any more, or would take them from the box. The box does not start.",
        remedy: "tc filter del dev PORT egress",
        examine: egress_filter,
    },
    Check {
        id: "packet-sockets",
        looks_at: "whether a program reads an interface by AF_PACKET (tcpdump, a DHCP client)",
        worst: Level::Note,
        why: "With AF_XDP such a program no longer sees what arrives; with AF_PACKET each frame is copied for it as well.",
        remedy: "kill PROCESS",
        examine: packet_sockets,
    },
];

fn exist(scene: &Scene) -> Vec<Found> {
    let missing = scene.names.iter().zip(&scene.ports).filter(|(_, port)| port.is_none());
    let missing = missing.map(|(name, _)| {
        let text = format!("there is no interface {name:?} in this network namespace");
        Found { port: Some(name.clone()), ..Found::new(Level::Error, text).mended_by("ip -br link") }
    });
    let alias = |(name, port): (&String, &Option<Description>)| {
        let own = &port.as_ref()?.name;
        (own != name).then(|| format!("; {name} is an alternative name of {own}"))
    };
    let aliases: String = scene.names.iter().zip(&scene.ports).filter_map(alias).collect();
    or_ok(missing.collect(), format!("{} exist{aliases}", scene.names()))
}

fn two_cables(scene: &Scene) -> Vec<Found> {
    match &scene.conflict {
        Some(conflict) => vec![Found::new(Level::Error, conflict.clone()).mended_by("ip -br link")],
        None if scene.is_host => Found::ok("the LAN port is this machine's own stack"),
        None if scene.both().is_some() => Found::ok("the interfaces are two cables"),
        None => Vec::new(),
    }
}

fn holder(scene: &Scene) -> Vec<Found> {
    if let Some((process, what)) = scene.running_box() {
        let text = format!("{what} runs, process {process}; a second one cannot start on its interfaces");
        return vec![Found::new(Level::Note, text).mended_by(format!("kill {process}"))];
    }
    let found = scene.each(|port| {
        let Holder::Process { process, what } = &port.holder else { return None };
        let of = process.map_or(String::new(), |process| format!(", process {process}"));
        let found = Found::new(Level::Error, format!("{} belongs to {what}{of}", port.name)).at(port);
        Some(match process {
            Some(process) => found.mended_by(format!("kill {process}")),
            None => found,
        })
    });
    or_ok(found, "no box has an interface")
}

fn other_box(scene: &Scene) -> Vec<Found> {
    let own: BTreeSet<u32> = scene
        .ports()
        .filter_map(|port| match port.holder {
            Holder::Process { process, .. } => process,
            _ => None,
        })
        .collect();
    let here = scene.root.link("proc/self/ns/net").unwrap_or_default();
    let here = here.strip_prefix("net:[").and_then(|rest| rest.strip_suffix(']')).unwrap_or_default().to_owned();
    let files = scene.root.list("run/synproxy").into_iter().filter(|name| name.ends_with(&format!("@{here}")));
    let boxes: BTreeSet<(u32, String)> = files
        .filter_map(|name| {
            let text = scene.root.read(&format!("run/synproxy/{name}"))?;
            let (process, what) = text.lines().find_map(|line| line.strip_prefix("holder ")?.split_once(' '))?;
            Some((process.parse().ok()?, what.to_owned()))
        })
        .filter(|(process, what)| !own.contains(process) && what.starts_with("the box between"))
        .filter(|(process, _)| scene.root.read(&format!("proc/{process}/comm")).is_some())
        .collect();
    let found = boxes.into_iter().map(|(process, what)| {
        let text = format!("{what} runs as well, process {process}; if both are in one aggregation, both switches have to hash symmetrically");
        Found::new(Level::Note, text)
    });
    or_ok(found.collect(), "no other box runs on this machine")
}

fn left_changed(scene: &Scene) -> Vec<Found> {
    let found = scene.each(|port| {
        (port.holder == Holder::Killed).then(|| {
            Found::new(Level::Warning, format!("a box that was killed has left settings of {} changed", port.name))
                .at(port)
                .mended_by(format!("synproxy --restore {}", word(&port.name)))
        })
    });
    or_ok(found, "no killed box has left anything changed")
}

fn up(scene: &Scene) -> Vec<Found> {
    let found = scene.each(|port| {
        (!port.is_up).then(|| {
            Found::new(Level::Error, format!("{} is down", port.name))
                .at(port)
                .mended_by(format!("ip link set dev {} up", word(&port.name)))
        })
    });
    or_ok(found, format!("{} are up", scene.names()))
}

fn carrier(scene: &Scene) -> Vec<Found> {
    let found = scene.each(|port| {
        if !port.is_up || port.has_carrier {
            return None;
        }
        let found = |text: String| Found::new(Level::Warning, text).at(port);
        Some(match &port.peer {
            Some(peer) => found(format!("{} has no link: its peer {peer} is down", port.name))
                .mended_by(format!("ip link set dev {} up", word(peer))),
            None if port.kind == "veth" => {
                found(format!("{} has no link: its peer, in another namespace, is down; take it up there", port.name))
            }
            None => found(format!("{} has no link: check the cable and the other end", port.name))
                .mended_by(format!("ethtool {}", word(&port.name))),
        })
    });
    or_ok(found, "every interface that is up has a link")
}

fn member(scene: &Scene) -> Vec<Found> {
    let found = scene.each(|port| {
        let (master, kind) = port.master.as_ref()?;
        Some(
            Found::new(
                Level::Error,
                format!("{} is a member of {master} ({kind}); take it out, or name {master}", port.name),
            )
            .at(port)
            .mended_by(format!("ip link set dev {} nomaster", word(&port.name))),
        )
    });
    or_ok(found, "no interface is a member of a bridge, a bond or a team")
}

fn default_route(scene: &Scene) -> Vec<Found> {
    if scene.is_host {
        return Found::ok("the machine keeps its default routes");
    }
    let found = scene.ports().flat_map(|port| {
        port.default_routes.iter().map(move |route| {
            let (version, flag) = if route.is_v6 { ("IPv6", "-6") } else { ("IPv4", "-4") };
            Found::new(
                Level::Error,
                format!("the default route of this machine ({version}) leads out of {}", route.interface),
            )
            .at(port)
            .mended_by(format!("ip {flag} route flush table all exact default dev {}", word(&route.interface)))
        })
    });
    or_ok(found.collect(), "no default route leads out of an interface")
}

fn login(scene: &Scene) -> Vec<Found> {
    if scene.is_host {
        return Found::ok("the machine keeps its connections");
    }
    let found = scene.each(|port| {
        let (interface, peer) = port.session.as_ref()?;
        Some(
            Found::new(Level::Error, format!("{interface} carries a connection of this machine with {peer}"))
                .at(port)
                .mended_by(scene.start("--force")),
        )
    });
    or_ok(found, "no connection of this machine uses an interface")
}

fn address(scene: &Scene) -> Vec<Found> {
    if scene.is_host {
        return Found::ok("the machine keeps its addresses");
    }
    let found = scene.each(|port| {
        let addresses: Vec<String> = port.addresses.iter().map(ToString::to_string).collect();
        (!addresses.is_empty()).then(|| {
            Found::new(Level::Warning, format!("{} has the address {}", port.name, addresses.join(" and ")))
                .at(port)
                .mended_by(format!("ip address flush dev {}", word(&port.name)))
        })
    });
    or_ok(found, "no interface has an address")
}

fn managed(scene: &Scene) -> Vec<Found> {
    if scene.is_host {
        return Found::ok("who manages the NIC may go on, since nothing of it is moved");
    }
    let found = scene.each(|port| {
        let (name, index) = (word(&port.name), port.index);
        let line = |path: &str, line: &str| scene.root.read(path).is_some_and(|text| text.lines().any(|it| it == line));
        let state = scene.root.read(&format!("run/systemd/netif/links/{index}")).unwrap_or_default();
        let state = state.lines().find_map(|line| line.strip_prefix("ADMIN_STATE=")).unwrap_or("unmanaged");
        let found = |manager: &str| Found::new(Level::Warning, format!("{manager} configures {}", port.name)).at(port);
        if !matches!(state, "unmanaged" | "linger") {
            return Some(found("systemd-networkd").mended_by(format!(
                "printf '[Match]\\nName=%s\\n[Link]\\nUnmanaged=yes\\n' {name} > /etc/systemd/network/00-synproxy-{index}.network && \
                 networkctl reload"
            )));
        }
        line(&format!("run/NetworkManager/devices/{index}"), "managed=true")
            .then(|| found("NetworkManager").mended_by(format!("nmcli device set {name} managed no")))
    });
    or_ok(found, "no network manager configures an interface")
}

fn xdp_program(scene: &Scene) -> Vec<Found> {
    if scene.running_box().is_some() {
        return Found::ok("the XDP programs are those of the box that runs");
    }
    let found = scene.each(|port| {
        let xdp = port.xdp?;
        let mode = if xdp.is_generic { "generic mode" } else { "driver mode" };
        let owner = (xdp.number != 0).then(|| owner_of(scene, xdp.number)).flatten();
        if owner.is_none() && port.holder == Holder::Killed {
            let text =
                format!("{} has the XDP program of a box that was killed, which the next start replaces", port.name);
            let restore = format!("synproxy --restore {}", word(&port.name));
            return Some(Found::new(Level::Note, text).at(port).mended_by(restore));
        }
        let off = if xdp.is_generic { "xdpgeneric off" } else { "xdp off" };
        let (of, command) = match owner {
            Some((process, name)) => (format!(", of {name}, process {process}"), format!("kill {process}")),
            None => (String::new(), format!("ip link set dev {} {off}", word(&port.name))),
        };
        let text = format!("{} has an XDP program (number {}) in {mode}{of}", port.name, xdp.number);
        Some(Found::new(Level::Error, text).at(port).mended_by(command))
    });
    or_ok(found, "no interface has an XDP program")
}

/// The process that holds the attachment of a BPF program, if it is one that ends with a process.
fn owner_of(scene: &Scene, program: u32) -> Option<(u32, String)> {
    let program = program.to_string();
    scene.root.processes().into_iter().find(|(process, _)| {
        let folder = format!("proc/{process}/fdinfo");
        scene.root.list(&folder).iter().any(|number| {
            let text = scene.root.read(&format!("{folder}/{number}")).unwrap_or_default();
            let value = |key: &str| {
                text.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned()))
            };
            value("link_type").as_deref() == Some("xdp") && value("prog_id").as_ref() == Some(&program)
        })
    })
}

fn egress_filter(scene: &Scene) -> Vec<Found> {
    if !scene.is_host {
        return Found::ok("no frame of this machine passes the box");
    }
    let found = scene.each(|port| {
        let first = port.egress_filters.first()?;
        let text = format!("{} has a filter at its egress ({first})", port.name);
        let remove = format!("tc filter del dev {} egress", word(&port.name));
        Some(Found::new(Level::Error, text).at(port).mended_by(remove))
    });
    or_ok(found, "no filter sees what this machine sends by the NIC")
}

fn packet_sockets(scene: &Scene) -> Vec<Found> {
    let table = scene.root.read("proc/self/net/packet").unwrap_or_default();
    // sk RefCnt Type Proto Iface R Rmem User Inode; a socket of protocol 0 receives nothing, and one of interface 0 from all.
    let sockets: Vec<(u32, u64)> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let [_, _, _, protocol, interface, _, _, _, inode] = columns[..] else { return None };
            protocol.contains(|c| c != '0').then_some((interface.parse().ok()?, inode.parse().ok()?))
        })
        .collect();
    if scene.is_host {
        return Found::ok("programs that read the NIC by AF_PACKET see what has passed the box");
    }
    if sockets.is_empty() {
        return Found::ok("no program reads an interface by AF_PACKET");
    }
    let owners = owners_of(scene, &sockets.iter().map(|(_, inode)| *inode).collect());
    let running = scene.running_box().map(|(process, _)| process);
    let found = scene.ports().flat_map(|port| {
        let here: BTreeSet<u64> = sockets
            .iter()
            .filter(|(interface, _)| *interface == 0 || *interface == port.index)
            .map(|(_, inode)| *inode)
            .collect();
        let programs: BTreeSet<&(u32, String)> =
            owners.iter().filter(|(inode, _)| here.contains(inode)).map(|(_, process)| process).collect();
        let programs = programs.into_iter().filter(|(process, _)| Some(*process) != running);
        programs.map(move |(process, name)| {
            Found::new(Level::Note, format!("{name}, process {process}, reads {} by AF_PACKET", port.name))
                .at(port)
                .mended_by(format!("kill {process}"))
        })
    });
    or_ok(found.collect(), "no other program reads an interface by AF_PACKET")
}

/// The processes that have these sockets.
fn owners_of(scene: &Scene, inodes: &BTreeSet<u64>) -> Vec<(u64, (u32, String))> {
    let mut owners = Vec::new();
    for (process, name) in scene.root.processes() {
        let folder = format!("proc/{process}/fd");
        for number in scene.root.list(&folder) {
            let link = scene.root.link(&format!("{folder}/{number}")).unwrap_or_default();
            let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
                owners.push((inode, (process, name.clone())));
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Stage, find};
    use super::*;
    use pktio::netdev::{DefaultRoute, XdpProgram};
    use std::os::unix::fs::symlink;

    #[test]
    fn a_scene_where_all_is_well_has_no_complaint() {
        let stage = Stage::new("well");
        for check in CHECKS {
            let found = (check.examine)(&stage.scene);
            assert!(found.iter().all(|it| it.level == Level::Ok), "{}: {found:?}", check.id);
        }
    }

    #[test]
    fn each_fault_of_an_interface_is_found_with_the_command_that_mends_it() {
        type Fault = fn(&mut Description);
        let faults: [(&str, Level, &str, Fault); 9] = [
            ("up", Level::Error, "ip link set dev wan0 up", |port| (port.is_up, port.has_carrier) = (false, false)),
            ("carrier", Level::Warning, "ethtool wan0", |port| port.has_carrier = false),
            ("member", Level::Error, "ip link set dev wan0 nomaster", |port| {
                port.master = Some(("br0".into(), "bridge".into()));
            }),
            ("address", Level::Warning, "ip address flush dev wan0", |port| {
                port.addresses = vec!["192.0.2.1".parse().unwrap()]
            }),
            ("default-route", Level::Error, "ip -6 route flush table all exact default dev wan0.7", |port| {
                port.default_routes = vec![DefaultRoute { interface: "wan0.7".into(), is_v6: true }];
            }),
            ("login", Level::Error, "synproxy --workers 2 --force lan0 wan0", |port| {
                port.session = Some(("wan0".into(), "192.0.2.9".parse().unwrap()));
            }),
            ("box", Level::Error, "kill 77", |port| {
                port.holder = Holder::Process { process: Some(77), what: "a program".into() };
            }),
            ("left-changed", Level::Warning, "synproxy --restore wan0", |port| port.holder = Holder::Killed),
            ("xdp-program", Level::Error, "ip link set dev wan0 xdpgeneric off", |port| {
                port.xdp = Some(XdpProgram { number: 5, is_generic: true });
            }),
        ];
        for (id, level, command, fault) in faults {
            let mut stage = Stage::new(id);
            fault(stage.scene.ports[1].as_mut().unwrap());
            let found = stage.complaints();
            let [finding] = &found[..] else { panic!("{id}: {found:#?}") };
            assert_eq!((finding.id, finding.level, finding.command.as_deref()), (id, level, Some(command)));
            assert_eq!(finding.port.as_deref(), Some("wan0"));
        }
    }

    #[test]
    fn a_missing_interface_and_a_loop_are_errors() {
        let mut stage = Stage::new("missing");
        stage.scene.ports[0] = None;
        let found = find(&stage.complaints(), "interface").unwrap();
        assert!(found.finding.contains("\"lan0\"") && found.level == Level::Error);
        let mut stage = Stage::new("loop");
        stage.scene.conflict = Some("both ports are lan0".into());
        assert_eq!(find(&stage.complaints(), "two-cables").unwrap().finding, "both ports are lan0");
    }

    #[test]
    fn a_box_on_both_interfaces_is_a_note_and_its_xdp_programs_are_its_own() {
        let mut stage = Stage::new("running");
        for port in stage.scene.ports.iter_mut().flatten() {
            port.holder = Holder::Process { process: Some(8), what: "the box between lan0 and wan0".into() };
            port.xdp = Some(XdpProgram { number: 5, is_generic: false });
        }
        let found = stage.complaints();
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!((found[0].id, found[0].level, found[0].command.as_deref()), ("box", Level::Note, Some("kill 8")));
    }

    #[test]
    fn a_machine_that_protects_itself_keeps_its_routes_addresses_connections_and_managers() {
        let mut stage = Stage::new("host");
        stage.scene.is_host = true;
        stage.file("run/systemd/netif/links/12", "ADMIN_STATE=configured\n");
        let nic = stage.scene.ports[1].as_mut().unwrap();
        nic.default_routes = vec![DefaultRoute { interface: "wan0".into(), is_v6: false }];
        nic.session = Some(("wan0".into(), "192.0.2.9".parse().unwrap()));
        nic.addresses = vec!["192.0.2.1".parse().unwrap()];
        let stack = super::super::stack_behind(nic, 2);
        stage.scene.ports[0] = Some(stack);
        let graver: Vec<_> = stage.complaints().into_iter().filter(|found| found.level > Level::Note).collect();
        assert_eq!(graver, []);
        stage.scene.ports[1].as_mut().unwrap().egress_filters = vec!["u32".into()];
        let found = find(&stage.complaints(), "egress-filter").unwrap();
        assert_eq!((found.level, found.command.as_deref()), (Level::Error, Some("tc filter del dev wan0 egress")));
    }

    #[test]
    fn another_box_may_be_on_another_member_of_the_same_aggregation() {
        let stage = Stage::new("other");
        std::fs::create_dir_all(stage.path("proc/self/ns")).unwrap();
        symlink("net:[77]", stage.path("proc/self/ns/net")).unwrap();
        let file =
            |process| format!("synproxy-port 1\ntaken-down 0\nholder {process} the box between lan1 and wan1\nend\n");
        stage.file("run/synproxy/port-3@77", &file(9));
        assert_eq!(stage.complaints(), [], "it has ended");
        stage.file("proc/9/comm", "synproxy");
        stage.file("run/synproxy/port-4@77", &file(9));
        stage.file("run/synproxy/port-5@78", &file(9).replace("lan1", "lan2"));
        let found = stage.complaints();
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].id == "other-box" && found[0].finding.contains("the box between lan1 and wan1"), "{found:?}");
    }

    #[test]
    fn the_process_that_holds_an_xdp_program_is_named() {
        let mut stage = Stage::new("owner");
        stage.scene.ports[0].as_mut().unwrap().xdp = Some(XdpProgram { number: 42, is_generic: false });
        stage.file("proc/9/comm", "other");
        stage.file("proc/9/fdinfo/3", "pos:\t0\nlink_type:\txdp\nlink_id:\t1\nprog_id:\t41\n");
        stage.file("proc/31/comm", "filter");
        stage.file("proc/31/fdinfo/7", "link_type:\txdp\nlink_id:\t2\nprog_id:\t42\nifindex:\t3\n");
        let found = stage.complaints();
        assert!(found[0].finding.contains("of filter, process 31"), "{found:?}");
        assert_eq!(found[0].command.as_deref(), Some("kill 31"));
    }

    #[test]
    fn a_network_manager_is_asked_to_keep_away() {
        let stage = Stage::new("networkd");
        stage.file("run/systemd/netif/links/12", "ADMIN_STATE=configured\nOPER_STATE=routable\n");
        let command = find(&stage.complaints(), "managed").unwrap().command.unwrap();
        assert!(command.contains("00-synproxy-12.network") && command.contains("networkctl reload"), "{command}");
        stage.file("run/systemd/netif/links/12", "ADMIN_STATE=unmanaged\n");
        assert_eq!(stage.complaints(), []);
        stage.file("run/NetworkManager/devices/11", "[device]\nmanaged=true\n");
        let found = find(&stage.complaints(), "managed").unwrap();
        assert_eq!(found.command.as_deref(), Some("nmcli device set lan0 managed no"));
        stage.file("run/NetworkManager/devices/11", "[device]\nmanaged=false\n");
        assert_eq!(stage.complaints(), []);
    }

    #[test]
    fn readers_of_an_interface_are_named_and_memberships_are_none() {
        let stage = Stage::new("readers");
        stage.file(
            "proc/self/net/packet",
            "sk RefCnt Type Proto Iface R Rmem User Inode\n\
             0 3 3 0003 11 1 0 0 1001\n0 3 3 0000 12 0 0 0 1002\n0 3 3 0003 99 1 0 0 1003\n",
        );
        for (process, inode) in [(50, 1001), (51, 1002), (52, 1003)] {
            stage.file(&format!("proc/{process}/comm"), "tcpdump");
            std::fs::create_dir_all(stage.path(&format!("proc/{process}/fd"))).unwrap();
            symlink(format!("socket:[{inode}]"), stage.path(&format!("proc/{process}/fd/3"))).unwrap();
        }
        let found = stage.complaints();
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!((found[0].level, found[0].command.as_deref()), (Level::Note, Some("kill 50")));
    }
}
