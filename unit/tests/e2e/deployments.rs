//! The places where a box stands, with the very commands of `docs/deployments.md`. The machine's own services are in `host`, bonds in `bonds`.

use std::io::{Read, Write};
use std::net::IpAddr;

use harness::{note, test};
use unit::netns::tags::{CUSTOMER, PROVIDER};
use unit::netns::{self, Appliance, CACHE_ON, Card, Namespace, Rig, TcpInfo, traffic};

const MB: u64 = 1 << 20;

/// The page.
const PAGE: &str = include_str!("../../../docs/deployments.md");

/// What the page has, and is executed here; `synproxy host eth0` is in `host`, and `synproxy lan0,lan1 wan0,wan1` in `bonds`.
const COMMANDS: [&str; 11] = [
    "ip link set dev eth0 up",
    "ip link set dev eth1 up",
    "synproxy eth0 eth1",
    "synproxy lan0 x0",
    "synproxy x1 wan0",
    "ip link add lan-web type veth peer name eth0 netns web",
    "ip link set dev lan-web up",
    "synproxy lan-web eth1",
    "ip tuntap add dev tap0 mode tap",
    "ip link set dev tap0 up",
    "synproxy tap0 eth1",
];

/// The blocks of commands of the section with this heading, a line each.
fn commands(heading: &str) -> Vec<Vec<&'static str>> {
    let section = PAGE.split("\n## ").find(|section| section.lines().next() == Some(heading));
    let section = section.unwrap_or_else(|| panic!("the page has no section {heading:?}"));
    let blocks = section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap_or_default());
    let blocks: Vec<Vec<&str>> = blocks.map(|block| block.lines().collect()).collect();
    assert!(blocks.iter().flatten().all(|line| COMMANDS.contains(line)), "the page has another command: {blocks:?}");
    blocks
}

/// Executes a block in `place`: the box that it starts. Words of the page are replaced as `names` says.
fn execute(rig: &Rig, place: &Namespace, block: &[&str], names: &[(&str, &str)]) -> Vec<Appliance> {
    let mut boxes = Vec::new();
    for line in block {
        let word = |word: &str| {
            let replaced = names.iter().find(|(name, _)| *name == word);
            replaced.map_or(word, |(_, name)| name).to_owned()
        };
        let words: Vec<String> = line.split(' ').map(word).collect();
        match &words[..] {
            [program, ports @ ..] if program == "synproxy" => {
                boxes.push(Appliance::start_in(rig, place, ports, CACHE_ON, &[]));
            }
            words => drop(place.sh(&words.join(" "))),
        }
    }
    boxes
}

/// Bulk from clients to servers and back, over both versions of IP, and from servers to clients.
fn is_served(client: &Namespace, server: &Namespace, bytes: u64) {
    let ways: [(&Namespace, &Namespace, IpAddr); 4] = [
        (client, server, netns::SERVER_V4),
        (client, server, netns::SERVER_V6),
        (server, client, netns::CLIENT_V4),
        (server, client, netns::CLIENT_V6),
    ];
    for (from, to, address) in ways {
        let service = to.serve(address, 0, traffic::exchanged);
        netns::judge([client, server], [0, 0], || {
            let stream = from.connect(service.address).expect("connecting");
            let speeds = traffic::exchange(&stream, bytes, bytes).expect("bulk");
            note!("{address}: {:.0} and {:.0} Mbit/s", speeds[0], speeds[1]);
        });
    }
}

/// Ends boxes; each of them has answered the two connections from the WAN.
fn end(boxes: Vec<Appliance>) {
    for one in boxes {
        let report = one.stop();
        assert!(report.status.success());
        assert_eq!(report.figure("syn-answered"), Some(2), "{}", report.log.join("\n"));
    }
}

/// The ports of the rig's box have the names of the page.
fn named_as_on_the_page(rig: &Rig) {
    rig.middle.sh("for port in lan0:eth0 wan0:eth1; do
                       ip link set dev ${port%:*} down; ip link set dev ${port%:*} name ${port#*:}
                   done");
}

#[test]
fn servers_behind_a_cable_are_protected() {
    let rig = Rig::new();
    named_as_on_the_page(&rig);
    let [block] = &commands("Between two ports")[..] else { panic!("one block") };
    let boxes = execute(&rig, &rig.middle, block, &[]);
    is_served(&rig.client, &rig.server, 2 * MB);
    end(boxes);
}

#[test]
fn servers_in_vlans_are_protected_by_the_same_commands() {
    let [block] = &commands("Between two ports")[..] else { panic!("one block") };
    for tags in [&[CUSTOMER][..], &[PROVIDER, CUSTOMER]] {
        let rig = Rig::tagged(1500, tags);
        named_as_on_the_page(&rig);
        let boxes = execute(&rig, &rig.middle, block, &[]);
        is_served(&rig.client, &rig.server, MB);
        end(boxes);
    }
}

#[test]
fn servers_behind_two_boxes_in_a_row_are_protected_by_both() {
    let rig = Rig::new();
    let several = rig.queue_counts();
    rig.middle.sh(&format!(
        "ip link add x0 {several} type veth peer name x1 {several}; ip link set x0 up; ip link set x1 up"
    ));
    let blocks = commands("Two boxes in a row");
    let boxes = execute(&rig, &rig.middle, &blocks[1], &[]);
    assert_eq!(boxes.len(), 2);
    is_served(&rig.client, &rig.server, 2 * MB);
    end(boxes);
}

#[test]
fn two_boxes_in_a_row_work_whatever_their_handshakes() {
    const HANDSHAKES: [&str; 2] = ["handshake = honest;", "handshake = early;"];
    for (outer, inner) in HANDSHAKES.into_iter().flat_map(|outer| HANDSHAKES.map(|inner| (outer, inner))) {
        let rig = Rig::new();
        let several = rig.queue_counts();
        rig.middle.sh(&format!(
            "ip link add x0 {several} type veth peer name x1 {several}; ip link set x0 up; ip link set x1 up"
        ));
        // The inner one keeps all of a connection in its cookie, which the outer one is to bring back.
        let ports =
            [[format!("xdp:{}", Rig::LAN), "xdp:x0".to_owned()], ["xdp:x1".to_owned(), format!("xdp:{}", Rig::WAN)]];
        let boxes = [(inner, netns::CACHE_OFF), (outer, CACHE_ON)].into_iter().zip(&ports).map(
            |((handshake, cache), ports)| {
                Appliance::start_in(&rig, &rig.middle, ports, &format!("{handshake} {cache} adopt_grace = 0;"), &[])
            },
        );
        let boxes: Vec<Appliance> = boxes.collect();
        for ip in [netns::SERVER_V4, netns::SERVER_V6] {
            // The server speaks first, as one of mail does.
            let service = rig.server.serve(ip, 0, |mut stream| {
                stream.write_all(b"220 ready")?;
                traffic::echo(stream)
            });
            for n in 0..3 {
                let what = format!("outside {outer} inside {inner} {ip}, connection {n}");
                let mut stream = rig.client.connect(service.address).unwrap_or_else(|e| panic!("{what}: {e}"));
                let mut heard = [0; 9];
                stream.read_exact(&mut heard).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(&heard, b"220 ready", "{what}");
                let options = TcpInfo::of(&stream).options();
                assert_eq!(options, "ts sack wscale", "{what}");
                stream.write_all(b"HELO").unwrap_or_else(|e| panic!("{what}: {e}"));
                stream.read_exact(&mut heard[..4]).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
        }
        is_served(&rig.client, &rig.server, MB);
        for one in boxes {
            let report = one.stop();
            assert!(report.status.success());
            assert_eq!(report.figure("spliced"), Some(8), "{}", report.log.join("\n"));
        }
    }
}

/// The rig's box has its WAN port alone, under the name of the page.
fn without_lan(rig: &Rig) {
    rig.middle
        .sh("ip link del lan0; ip link set dev wan0 down; ip link set dev wan0 name eth1; ip link set dev eth1 up");
}

/// The server has its addresses at its `eth0`.
fn give_addresses(rig: &Rig) {
    rig.server.sh(&format!(
        "ip link set dev eth0 address {}; ip link set dev eth0 up
         ip addr add {}/24 dev eth0; ip addr add {}/64 dev eth0 nodad",
        netns::SERVER_MAC,
        netns::SERVER_V4,
        netns::SERVER_V6
    ));
}

#[test]
fn a_virtual_machine_as_it_comes_is_protected() {
    let rig = Rig::new().with_default_offloads(false);
    if rig.queues() > 1 {
        harness::ignore("a tap as it comes has one queue");
    }
    without_lan(&rig);
    let [block] = &commands("A virtual machine")[..] else { panic!("one block") };
    let (tap, start) = block.split_at(2);
    execute(&rig, &rig.middle, tap, &[]);
    let _card = Card::plug((&rig.server, "eth0"), (&rig.middle, "tap0"));
    give_addresses(&rig);
    let boxes = execute(&rig, &rig.middle, start, &[]);
    is_served(&rig.client, &rig.server, 2 * MB);
    end(boxes);
}

#[test]
fn a_container_as_it_comes_is_protected() {
    let rig = Rig::new().with_default_offloads(false);
    if rig.queues() as usize > std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
        harness::ignore("the veth that a runtime makes has as many queues as the machine has processors");
    }
    without_lan(&rig);
    let [block] = &commands("A container")[..] else { panic!("one block") };
    // The runtime has given the container its namespace, and gives its interface an address.
    let (runtime, container) = block.split_at(2);
    execute(&rig, &rig.middle, runtime, &[("web", rig.server.name())]);
    give_addresses(&rig);
    let boxes = execute(&rig, &rig.middle, container, &[]);
    is_served(&rig.client, &rig.server, 2 * MB);
    end(boxes);
}
