//! Ends whose Ethernet addresses are not what one would think: behind a pair of switches (vPC with `peer-gateway`, MLAG) the one takes frames that are addressed
//! to the other, so that an end is sent to at one address and sends from another; and when one of the pair fails, the other takes over in the middle of a
//! connection. Over the bridge first, which is the truth, then through boxes of each kind.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use etherparse::PacketBuilder;
use harness::{note, test};
use tools::raw::Sender;
use unit::netns::sockets;
use unit::netns::tap::Framed;
use unit::netns::{Namespace, Rig, Tap, traffic, within};

use super::field::ENDS;
use super::reports::{connect, connect_from, listen, middles, talk, with_each_of};

type Mac = [u8; 6];

/// The addresses of client and server to which frames for them go: those of the switches that do not send.
const FRONT: [Mac; 2] = [[2, 0, 0, 0, 0, 0xc2], [2, 0, 0, 0, 0, 0x52]];
/// The addresses that they send from, at first and after they have moved.
const OWN: [[Mac; 2]; 2] =
    [[[2, 0, 0, 0, 0, 0xc1], [2, 0, 0, 0, 0, 0xc3]], [[2, 0, 0, 0, 0, 0x51], [2, 0, 0, 0, 0, 0x53]]];

/// A port of the server at which nobody listens.
const CLOSED: u16 = 9;

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Client and server, each with its interface and how many it is in the tables above.
fn ends(rig: &Rig) -> [(usize, &Namespace, &'static str); 2] {
    [(0, &rig.client, "c0"), (1, &rig.server, "s0")]
}

/// Puts both ends behind a pair each. No end takes a frame to an address that it does not have, or no longer.
fn stand_behind_pairs(rig: &Rig) {
    for (at, host, device) in ends(rig) {
        host.sh(&format!(
            "for i in all default {device}; do sysctl -qw net.ipv4.conf.$i.rp_filter=0; done
             ip link add front0 link {device} address {} type macvlan mode private
             ip link set front0 up",
            text(FRONT[at])
        ));
    }
    move_ends(rig, 0);
}

/// Has both ends send from the one of the pair or the other. They hear nothing of each other's move.
fn move_ends(rig: &Rig, to: usize) {
    for (at, host, device) in ends(rig) {
        let others = ENDS.map(|(client, server)| [server, client][at]);
        // With the address the kernel forgets its neighbours.
        host.sh(&format!(
            "ip link set {device} address {own}
             ip neigh replace {} lladdr {front} dev {device} nud permanent
             ip neigh replace {} lladdr {front} dev {device} nud permanent",
            others[0],
            others[1],
            own = text(OWN[at][to]),
            front = text(FRONT[1 - at])
        ));
    }
}

/// What came to an end from the other, whose address this is: what the other sent goes to [`FRONT`], and what the box said itself to where the end is.
struct Heard {
    frames: Vec<Framed>,
    own: Mac,
}

impl Heard {
    fn new(tap: &Tap, at: usize, place: usize, from: IpAddr, what: &str) -> Heard {
        let frames = tap.frames(|source, _| source.ip() == from);
        let own = OWN[at][place];
        let lost: Vec<_> = frames.iter().filter(|frame| ![FRONT[at], own].contains(&frame.to)).collect();
        assert!(lost.is_empty(), "{what}: nobody is where these go: {lost:x?}");
        Heard { frames, own }
    }

    /// What the box said itself.
    fn of_box(&self) -> Vec<&Framed> {
        self.frames.iter().filter(|frame| frame.to == self.own).collect()
    }

    /// The flags of that.
    fn flags_of_box(&self) -> Vec<&str> {
        self.of_box().iter().map(|frame| &*frame.told.flags).collect()
    }
}

/// A reset somewhere in the window, in the name of the end `at`, which a receiver challenges (RFC 5961).
fn inexact_reset(rig: &Rig, at: usize, place: usize, [from, to]: [SocketAddr; 2], expected: u32) {
    let (_, host, device) = ends(rig)[at];
    let ethernet = PacketBuilder::ethernet2(OWN[at][place], FRONT[1 - at]);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{from} and {to} are of two families"),
    };
    let mut frame = Vec::new();
    let reset = ip.tcp(from.port(), to.port(), expected.wrapping_add(5000), 0).rst();
    reset.write(&mut frame, &[]).expect("writing to memory");
    let sender = host.run(|| Sender::open(device)).expect("a packet socket");
    assert_eq!(sender.send(&frame, frame.len()).expect("sending"), 1);
}

/// Opens connections to a server that listens, and to a port where nobody does.
fn open(rig: &Rig, middle: Option<&str>, place: usize, (own, ip): (IpAddr, IpAddr), what: &str) {
    let listener = listen(rig, ip, |_| Ok(()));
    for n in 0..2 {
        let what = format!("{what}, connection {n}");
        let taps = [&rig.client, &rig.server].map(Tap::open);
        let ends = connect(&rig.client, own, &listener, |_| Ok(()));
        let [client, server] = ends.unwrap_or_else(|e| panic!("{what}: {e}"));
        talk([&client, &server], 10_000).unwrap_or_else(|e| panic!("{what}: {e}"));
        let at_client = Heard::new(&taps[0], 0, place, ip, &what);
        let at_server = Heard::new(&taps[1], 1, place, own, &what);
        let [to_client, to_server] = [&at_client, &at_server].map(Heard::flags_of_box);
        note!("{what}: of the box to the client {to_client:?}, to the server {to_server:?}");
        let first = &at_server.frames[0];
        assert_eq!((&*first.told.flags, first.to), ("SYN", FRONT[1]), "{what}: where the client's SYN went");
        assert_eq!(middle.is_some(), to_client.contains(&"SYN+ACK"), "{what}: {to_client:?}");
        assert!(middle.is_some() || to_server.is_empty(), "{what}: {to_server:?}");
    }
    // Nobody listens there: the first client learns it from the server, the second from what the box has learned.
    for n in 0..2 {
        let what = format!("{what}, refused {n}");
        let tap = Tap::open(&rig.client);
        let address = SocketAddr::new(ip, CLOSED);
        let refused = connect_from(&rig.client, SocketAddr::new(own, 0), address, |_| Ok(()))
            .and_then(|stream| traffic::expect_end(&stream));
        refused.expect_err(&what);
        let heard = Heard::new(&tap, 0, place, ip, &what);
        note!("{what}: of the box {:?}", heard.flags_of_box());
        if middle.is_some() && n == 1 {
            assert_eq!(heard.flags_of_box().last(), Some(&"RST+ACK"), "{what}");
        }
    }
}

/// Which number each end awaits from the other, once they have talked: first what the server awaits of the client. In the numbers that its sender counts in.
fn expected((own, ip): (IpAddr, IpAddr), taps: &[Tap; 2]) -> [u32; 2] {
    // The last acknowledgements may be delayed.
    thread::sleep(Duration::from_millis(100));
    [(ip, &taps[0]), (own, &taps[1])].map(|(from, tap)| {
        let frames = tap.frames(|source, _| source.ip() == from);
        frames.last().expect("they have talked").ack
    })
}

fn ends_move_and_their_connections_go_on(rig: &Rig, middle: Option<&str>) {
    for ends in ENDS {
        open(rig, middle, 0, ends, &format!("{middle:?}, {}", ends.1));
    }
    let running = ENDS.map(|(own, ip)| {
        let what = format!("{middle:?}, {ip}, moved");
        let listener = listen(rig, ip, |_| Ok(()));
        let taps = [&rig.client, &rig.server].map(Tap::open);
        let ends = connect(&rig.client, own, &listener, |_| Ok(()));
        let [client, server] = ends.unwrap_or_else(|e| panic!("{what}: {e}"));
        // So much that it is handed down where the kernel forwards.
        talk([&client, &server], 200_000).unwrap_or_else(|e| panic!("{what}: {e}"));
        let expected = expected((own, ip), &taps);
        (what, listener, taps, client, server, expected)
    });
    move_ends(rig, 1);
    for ((_, ip), (what, listener, taps, client, server, expected_before)) in ENDS.into_iter().zip(running) {
        let (own, address) = (client.local_addr().expect("it is connected"), SocketAddr::new(ip, 80));
        let challenged = |at: usize, expected: [u32; 2], what: &str| {
            let ends = [[own, address], [address, own]][at];
            Heard::new(&taps[at], at, 1, ends[1].ip(), what);
            inexact_reset(rig, at, 1, ends, expected[at]);
            let mut answers = Vec::new();
            within(traffic::PATIENCE, what, || {
                // Over the bridge the other's reset comes as well.
                let frames = Heard::new(&taps[at], at, 1, ends[1].ip(), what).frames;
                answers.extend(frames.into_iter().filter(|frame| frame.told.flags != "RST"));
                !answers.is_empty()
            });
            assert_eq!((&*answers[0].told.flags, answers[0].told.data), ("ACK", 0), "{what}: {answers:x?}");
            let wanted = if middle.is_some() { OWN[at][1] } else { FRONT[at] };
            assert_eq!(answers[0].to, wanted, "{what}: {answers:x?}");
            answers.swap_remove(0).from
        };
        // A connection is challenged twice a second at the most.
        let pause = || thread::sleep(Duration::from_millis(700));
        // The first frame from the new place is one that says nothing of where its end is, but it is answered there.
        for at in [0, 1] {
            challenged(at, expected_before, &format!("{what}: {at} is challenged"));
            pause();
        }
        talk([&client, &server], 200_000).unwrap_or_else(|e| panic!("{what}: {e}"));
        // Now the box knows where each end is, and speaks for the one to the other from there.
        let expected = expected((own.ip(), ip), &taps);
        for at in [0, 1] {
            let from = challenged(at, expected, &format!("{what}: {at} is challenged again"));
            assert_eq!(from, OWN[1 - at][1], "{what}: where {at} is challenged from");
            pause();
        }
        // The client forgets the connection and opens another one on its port: that is challenged too.
        sockets::vanish(client).expect("a socket under repair");
        let again = connect_from(&rig.client, own, address, |_| Ok(()));
        let client = again.unwrap_or_else(|e| panic!("{what}: {e}"));
        let server = sockets::accept(&listener, traffic::PATIENCE).unwrap_or_else(|e| panic!("{what}: {e}"));
        talk([&client, &server], 10_000).unwrap_or_else(|e| panic!("{what}: {e}"));
        let to_client = Heard::new(&taps[0], 0, 1, ip, &what);
        Heard::new(&taps[1], 1, 1, own.ip(), &what);
        note!("{what}: of the box to the client {:?}", to_client.flags_of_box());
        assert_eq!(middle.is_some(), to_client.flags_of_box().contains(&"SYN+ACK"), "{what}");
    }
    for ends in ENDS {
        open(rig, middle, 1, ends, &format!("{middle:?}, {}, new", ends.1));
    }
}

/// A client that moves while its server is asleep: what the box says to it when the server has answered goes to where it is then.
fn a_client_moves_while_its_server_is_asleep(rig: &Rig, middle: Option<&str>) {
    for (own, ip) in ENDS {
        let what = format!("{middle:?}, {ip}, asleep");
        move_ends(rig, 0);
        let listener = listen(rig, ip, |_| Ok(()));
        rig.server.sh(&format!("ip route add blackhole {own}"));
        let tap = Tap::open(&rig.client);
        thread::scope(|scope| {
            let talking = scope.spawn(|| {
                let client = connect_from(&rig.client, SocketAddr::new(own, 0), SocketAddr::new(ip, 80), |_| Ok(()))?;
                // To a box that has connected it alone it speaks at once, and asks again and again whether there is room.
                traffic::send(&client, 1, 10_000)?;
                traffic::receive(&client, 2, Some(10_000))
            });
            let sends_from = |mac: Mac| {
                within(traffic::PATIENCE, "the client sends", || {
                    tap.frames(|source, _| source.ip() == own).iter().any(|frame| frame.from == mac)
                });
            };
            sends_from(OWN[0][0]);
            thread::sleep(Duration::from_millis(300));
            move_ends(rig, 1);
            sends_from(OWN[0][1]);
            rig.server.sh(&format!("ip route del blackhole {own}"));
            let serves = || {
                let server = sockets::accept(&listener, traffic::PATIENCE)?;
                traffic::receive(&server, 1, Some(10_000))?;
                traffic::send(&server, 2, 10_000)
            };
            serves().unwrap_or_else(|e| panic!("{what}: the server: {e}"));
            let talked = talking.join().expect("a client does not panic");
            talked.unwrap_or_else(|e| panic!("{what}: the client: {e}"));
        });
        let heard = Heard::new(&tap, 0, 1, ip, &what);
        note!("{what}: of the box to the client {:?}", heard.flags_of_box());
    }
}

#[test]
fn ends_behind_pairs_of_switches_connect_and_move() {
    let middles = middles().chain([Some("fast_path = xdp;")]);
    let prepare = |rig: &Rig| {
        // What an XDP program redirects to a veth is taken there.
        rig.client.sh("ethtool -K c0 gro on");
        rig.server.sh("ethtool -K s0 gro on");
        stand_behind_pairs(rig);
    };
    with_each_of(middles, prepare, |rig, middle| {
        ends_move_and_their_connections_go_on(rig, middle);
        a_client_moves_while_its_server_is_asleep(rig, middle);
    });
}
