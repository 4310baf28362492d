//! A tap at an end of a rig: the segments that come in there, told in words that leave out what differs between any two
//! connections: numbers, clocks, checksums.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TcpOptionElement, TcpSlice, TransportSlice};
use nix::libc;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sockopt};

use super::Namespace;

/// Listens at an end host.
#[derive(Debug)]
pub struct Tap(OwnedFd);

/// What a segment says, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `SYN+ACK+ECE`; AE is the flag in front of CWR.
    pub flags: String,
    /// The window field as it stands.
    pub window: u16,
    /// Bytes of data.
    pub data: usize,
    /// In their order, with commas; of timestamps only whether one is echoed.
    pub options: String,
    /// TTL or hop limit, DSCP, DF, whether the identification is zero, whether there are options or extension headers.
    pub ip: String,
    /// The bits of RFC 3168.
    pub ecn: u8,
    /// Whether an IPv6 packet has a flow label.
    pub label: bool,
}

/// A segment as it stands in its frame.
#[derive(Clone, Debug)]
pub struct Framed {
    /// The Ethernet address that the frame goes to.
    pub to: [u8; 6],
    /// And the one that it comes from.
    pub from: [u8; 6],
    /// What the segment acknowledges.
    pub ack: u32,
    /// What it says.
    pub told: Told,
}

impl Tap {
    /// Listens from now on at every interface of `namespace`.
    ///
    /// # Panics
    /// Without root.
    pub fn open(namespace: &Namespace) -> Tap {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let open = || socket::socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll);
        let tap = Tap(namespace.run(open).expect("a packet socket"));
        socket::setsockopt(&tap.0, sockopt::RcvBufForce, &(64 << 20)).expect("root may have a large buffer");
        tap
    }

    /// The TCP segments, in or out, of those ends (source, destination) that are `asked` for. A port alone is no end: now and then a
    /// client has the port that its server listens at.
    pub fn segments(self, asked: impl Fn(SocketAddr, SocketAddr) -> bool) -> Vec<Told> {
        self.frames(asked).into_iter().map(|framed| framed.told).collect()
    }

    /// The same that have come since the last time, with their frames' Ethernet addresses. A frame that an interface hands to another one (a macvlan) is
    /// there twice.
    pub fn frames(&self, asked: impl Fn(SocketAddr, SocketAddr) -> bool) -> Vec<Framed> {
        let mut buffer = vec![0; 1 << 16];
        let mut frames = Vec::new();
        while let Ok(len) = socket::recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let Ok(packet) = SlicedPacket::from_ethernet(&buffer[..len]) else { continue };
            let (Some(net), Some(TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else { continue };
            let Some([source, destination]) = ends(net, tcp) else { continue };
            if asked(source, destination) {
                let mac = |at: usize| *buffer[at..].first_chunk().expect("it begins with two addresses");
                frames.push(Framed {
                    to: mac(0),
                    from: mac(6),
                    ack: tcp.acknowledgment_number(),
                    told: tell(net, tcp),
                });
            }
        }
        frames
    }

    /// How long the longest frame is that has come in or gone out, in bytes.
    pub fn longest(self) -> usize {
        let flags = MsgFlags::MSG_TRUNC;
        std::iter::from_fn(|| socket::recv(self.0.as_raw_fd(), &mut [], flags).ok()).max().unwrap_or(0)
    }
}

/// Listens at an end host, and notes by the kernel's clock when each segment came.
#[derive(Debug)]
pub struct TimedTap(OwnedFd);

/// Asks for the kernel's time of the frame that was received last (socket(7)).
const SIOCGSTAMPNS: libc::c_ulong = 0x8907;

impl TimedTap {
    /// Listens from now on at every interface of `namespace`.
    ///
    /// # Panics
    /// Without root.
    pub fn open(namespace: &Namespace) -> TimedTap {
        let tap = TimedTap(Tap::open(namespace).0);
        // The first question has the kernel note times from now on.
        let _ = tap.stamp();
        tap
    }

    fn stamp(&self) -> Duration {
        let mut stamp = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes a timespec to the place it is given, which is one and outlives the call.
        let _ = unsafe { libc::ioctl(self.0.as_raw_fd(), SIOCGSTAMPNS, &raw mut stamp) };
        Duration::new(stamp.tv_sec as u64, stamp.tv_nsec as u32)
    }

    /// When segments came or went that are `asked` for by source, destination and flags, since 1970.
    pub fn times(self, asked: impl Fn(SocketAddr, SocketAddr, &TcpSlice) -> bool) -> Vec<Duration> {
        let mut buffer = vec![0; 1 << 16];
        let mut times = Vec::new();
        while let Ok(len) = socket::recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let Ok(packet) = SlicedPacket::from_ethernet(&buffer[..len]) else { continue };
            let (Some(net), Some(TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else { continue };
            let Some([source, destination]) = ends(net, tcp) else { continue };
            if asked(source, destination, tcp) {
                times.push(self.stamp());
            }
        }
        times
    }
}

/// In which order segments came in at an end host.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// How many came.
    pub segments: u64,
    /// Those that another one of their sender had overtaken, or that came twice, in words.
    pub overtaken: Vec<String>,
}

/// Listens at an end host, and watches in which order the segments of each connection come in, by the identification of their IPv4 packets: Linux counts it up
/// with each segment that a connection sends, be it the first time or again. So it must not be opened before what the box says in a host's name is over.
#[derive(Debug)]
pub struct OrderTap {
    over: Arc<AtomicBool>,
    watching: JoinHandle<Order>,
}

impl OrderTap {
    /// Watches from now on what comes to `own`, an IPv4 address of `namespace`.
    ///
    /// # Panics
    /// Without root, or if `own` is none of IPv4.
    pub fn open(namespace: &Namespace, own: IpAddr) -> OrderTap {
        let IpAddr::V4(own) = own else { panic!("{own} is no address of IPv4") };
        let tap = Tap::open(namespace).0;
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let watching = thread::spawn(move || {
            let (mut order, mut last) = (Order::default(), HashMap::new());
            // Headers are all that counts; the kernel cuts off the rest.
            let mut buffer = [0; 128];
            loop {
                match socket::recv(tap.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(len) => order.note(&buffer[..len], own, &mut last),
                    Err(_) if is_over.load(Ordering::Relaxed) => return order,
                    Err(_) => thread::sleep(Duration::from_micros(200)),
                }
            }
        });
        OrderTap { over, watching }
    }

    /// What came until now.
    ///
    /// # Panics
    /// If it has panicked.
    pub fn stop(self) -> Order {
        self.over.store(true, Ordering::Relaxed);
        self.watching.join().expect("a watcher does not panic")
    }
}

impl Order {
    /// Notes a frame. `last` has the last identification from each sender.
    fn note(&mut self, frame: &[u8], own: Ipv4Addr, last: &mut HashMap<(u32, u32), Seen>) {
        let word = |at: usize| frame.get(at..at + 4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four")));
        let ip = 14;
        let (Some(0x0800), Some(first)) = (word(10).map(|word| word & 0xffff), word(ip)) else { return };
        let tcp = ip + (first >> 24 & 15) as usize * 4;
        let (Some(identification), Some(protocol), Some(source), Some(target)) =
            (word(ip + 4), word(ip + 8), word(ip + 12), word(ip + 16))
        else {
            return;
        };
        let (Some(ports), Some(number), Some(flags)) = (word(tcp), word(tcp + 4), word(tcp + 12)) else { return };
        // No RST is counted with the segments of its connection, nor is a SYN.
        if protocol >> 16 & 0xff != 6 || target != u32::from(own) || flags >> 16 & 6 != 0 {
            return;
        }
        self.segments += 1;
        let seen = Seen {
            identification: (identification >> 16) as u16,
            number,
            length: first & 0xffff,
            header: tcp - ip,
            flags: flags >> 16 & 0xff,
        };
        if let Some(former) = last.insert((source, ports), seen)
            && seen.identification.wrapping_sub(former.identification) as i16 <= 0
        {
            let (from, to) = (ports >> 16, ports & 0xffff);
            self.overtaken.push(format!("ports {from} to {to}: {seen} behind {former}"));
        }
    }
}

/// A segment that came in.
#[derive(Clone, Copy)]
struct Seen {
    identification: u16,
    number: u32,
    /// Bytes of the packet, and of its IP header.
    length: u32,
    header: usize,
    flags: u32,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { identification, number, length, header, flags } = self;
        write!(f, "{identification} (sequence number {number}, {length} bytes, IP header {header}, flags {flags:x})")
    }
}

/// From where to where a segment goes.
fn ends(net: &NetSlice, tcp: &TcpSlice) -> Option<[SocketAddr; 2]> {
    let hosts: [IpAddr; 2] = match net {
        NetSlice::Ipv4(ip) => [ip.header().source_addr().into(), ip.header().destination_addr().into()],
        NetSlice::Ipv6(ip) => [ip.header().source_addr().into(), ip.header().destination_addr().into()],
        NetSlice::Arp(_) => return None,
    };
    Some([(hosts[0], tcp.source_port()).into(), (hosts[1], tcp.destination_port()).into()])
}

fn tell(net: &NetSlice, tcp: &TcpSlice) -> Told {
    let flags = [
        (tcp.syn(), "SYN"),
        (tcp.fin(), "FIN"),
        (tcp.rst(), "RST"),
        (tcp.psh(), "PSH"),
        (tcp.ack(), "ACK"),
        (tcp.ece(), "ECE"),
        (tcp.cwr(), "CWR"),
        (tcp.ns(), "AE"),
    ];
    let flags: Vec<&str> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    let options: Vec<String> = tcp
        .options_iterator()
        .map(|option| match option {
            Ok(TcpOptionElement::Noop) => "nop".into(),
            Ok(TcpOptionElement::MaximumSegmentSize(mss)) => format!("mss {mss}"),
            Ok(TcpOptionElement::WindowScale(shift)) => format!("scale {shift}"),
            Ok(TcpOptionElement::SelectiveAcknowledgementPermitted) => "sack".into(),
            Ok(TcpOptionElement::SelectiveAcknowledgement(..)) => "blocks".into(),
            Ok(TcpOptionElement::Timestamp(_, 0)) => "timestamps".into(),
            Ok(TcpOptionElement::Timestamp(_, _)) => "timestamps with an echo".into(),
            Err(error) => error.to_string(),
        })
        .collect();
    let mut ip = String::new();
    let (ecn, label) = match net {
        NetSlice::Ipv4(packet) => {
            let header = packet.header();
            let _ = write!(ip, "ttl {}, dscp {}", header.ttl(), header.dcp().value());
            ip.push_str(if header.dont_fragment() { ", DF" } else { "" });
            ip.push_str(if header.identification() == 0 { ", id 0" } else { "" });
            ip.push_str(if header.options().is_empty() { "" } else { ", options" });
            (header.ecn().value(), false)
        }
        NetSlice::Ipv6(packet) => {
            let header = packet.header();
            let _ = write!(ip, "ttl {}, dscp {}", header.hop_limit(), header.traffic_class() >> 2);
            ip.push_str(if packet.extensions().slice().is_empty() { "" } else { ", extensions" });
            (header.traffic_class() & 3, header.flow_label().value() != 0)
        }
        NetSlice::Arp(_) => (0, false),
    };
    Told {
        flags: flags.join("+"),
        window: tcp.window_size(),
        data: tcp.payload().len(),
        options: options.join(", "),
        ip,
        ecn,
        label,
    }
}
