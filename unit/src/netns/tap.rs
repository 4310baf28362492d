//! A tap at an end of a rig: the segments that come in there, told in words that leave out what differs between any two
//! connections: numbers, clocks, checksums.

use std::fmt::Write;
use std::os::fd::{AsRawFd, OwnedFd};

use etherparse::{NetSlice, SlicedPacket, TcpOptionElement, TcpSlice, TransportSlice};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

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

impl Tap {
    /// Listens from now on at every interface of `namespace`.
    ///
    /// # Panics
    /// Without root.
    pub fn open(namespace: &Namespace) -> Tap {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let open = || socket::socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll);
        Tap(namespace.run(open).expect("a packet socket"))
    }

    /// The TCP segments, in or out, of those ports (source, destination) that are `asked` for.
    pub fn segments(self, asked: impl Fn(u16, u16) -> bool) -> Vec<Told> {
        let mut buffer = vec![0; 1 << 16];
        let mut segments = Vec::new();
        while let Ok(len) = socket::recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let Ok(packet) = SlicedPacket::from_ethernet(&buffer[..len]) else { continue };
            let (Some(net), Some(TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else { continue };
            if asked(tcp.source_port(), tcp.destination_port()) {
                segments.push(tell(net, tcp));
            }
        }
        segments
    }
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
