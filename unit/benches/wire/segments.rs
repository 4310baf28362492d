//! The rate of small segments of established connections.

use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use tools::xdp_generator::XdpGenerator;
use unit::netns::{self, Namespace, Rig};

use crate::hosts::{self, Server};
use crate::load::{PORT, Rate, Running, index, sink, watch};
use crate::middle::{Middle, Stood};

/// Connections whose segments are repeated.
const CONNECTIONS: usize = 64;

/// Bytes of data in each such segment: 98 on the wire with timestamps.
const WORD: [u8; 32] = [0x77; 32];

/// Small segments of established connections, both ways at once: the last segment with data that each end sent, repeated.
pub fn rate(middle: Middle, window: Duration, frame_cost: f64) -> Rate {
    let rig = Rig::alone();
    let stood = Stood::stand(&rig, middle, true);
    let server = Server::start(&rig);
    let taps = [Tap::open(&rig.client), Tap::open(&rig.server)];
    let streams: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| rig.client.connect((netns::SERVER_V4, PORT).into()).expect("connecting in peace"))
        .collect();
    for stream in &streams {
        // The second time round neither end has anything else to say.
        for _ in 0..2 {
            hosts::ask(stream, &mut [0; WORD.len()], &WORD).expect("an echo");
        }
    }
    thread::sleep(Duration::from_millis(200));
    let [up, down] = taps;
    let (up, down) = (up.last_segments(netns::CLIENT_V4), down.last_segments(netns::SERVER_V4));
    assert_eq!((up.len(), down.len()), (CONNECTIONS, CONNECTIONS), "each end has said a word on each connection");
    let frames: Vec<_> = up.into_iter().zip(down).flat_map(|(up, down)| [(up, 0), (down, 1)]).collect();

    let mut sinks = [sink(&rig.client, "c0"), sink(&rig.server, "s0")];
    sinks.iter_mut().for_each(|sink| sink.drop_all(true).expect("setting a switch"));
    let mut live = XdpGenerator::replay(&frames).expect("the generator, as root, on Linux 5.18 or later");
    for (number, namespace, port) in [(0, &rig.client, "c0"), (1, &rig.server, "s0")] {
        namespace.run(|| live.port(number, index(port))).expect("an interface of the rig");
    }
    let load = Running::start(live, false);
    let done = || sinks.iter().map(|sink| sink.count().expect("reading a counter")).sum();
    let window = watch(Some(&stood), &load, &done, window);
    load.stop();
    thread::sleep(Duration::from_millis(50));
    let words = stood.leave();
    drop(streams);
    drop(server);
    window.rate(frame_cost, words)
}

/// Captures what leaves an end of the rig.
struct Tap(OwnedFd);

impl Tap {
    fn open(namespace: &Namespace) -> Tap {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let open = || {
            let tap = socket::socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            socket::setsockopt(&tap, socket::sockopt::RcvBufForce, &(8 << 20))?;
            Ok::<_, nix::Error>(tap)
        };
        Tap(namespace.run(open).expect("a packet socket"))
    }

    /// The last segment with a word in it that `sender` sent on each connection, in the order of the clients' ports.
    fn last_segments(self, sender: IpAddr) -> Vec<Vec<u8>> {
        let mut last = std::collections::BTreeMap::new();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(len) = socket::recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let frame = &buffer[..len];
            // Ethernet, IPv4 without options, TCP with timestamps, the word.
            if len != 14 + 20 + 32 + WORD.len() || frame[12..14] != [8, 0] || frame[23] != 6 || !frame.ends_with(&WORD)
            {
                continue;
            }
            let ports = [34, 36].map(|at| u16::from_be_bytes([frame[at], frame[at + 1]]));
            let source = IpAddr::from([frame[26], frame[27], frame[28], frame[29]]);
            if source == sender {
                last.insert(if ports[1] == PORT { ports[0] } else { ports[1] }, frame.to_vec());
            }
        }
        last.into_values().collect()
    }
}
