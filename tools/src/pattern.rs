//! Loads that expect no reply: the pattern, which sends over the test connections of a box; a flood; and a sink, which only receives.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::Serialize;
use tcpstate::seq::{RawWindow, SeqNum};
use tcpstate::wire::{Flags, Mac, OptionList, Parsed, TCP_LEN, Vlan};
use tcpstate::{Head, Side};

use crate::flood_template::FloodTemplate;
use crate::load_runner::{Load, Outbox};
use crate::pace::Pace;
use crate::segment::{self, OutgoingSegment};

/// The number of connections that the configuration key `test_connections` creates.
pub const TEST_CONNECTIONS: u32 = 540;

/// The endpoints of test connection `number`, LAN first.
pub fn test_connection(number: u32) -> [(IpAddr, u16); 2] {
    let address = |bits: u32| IpAddr::V4(Ipv4Addr::from_bits(bits));
    [(address(0x0a00_0000 + 2 * number + 2), 12345), (address(0x0b00_0000 + 2 * number + 1), 54321)]
}

/// Identical acknowledgements of many flows, of several lengths in turn, in a loop.
pub struct Pattern {
    /// In the order of sending.
    frames: Vec<Vec<u8>>,
    next: usize,
    pace: Pace,
    received: Counted,
}

impl Pattern {
    /// Frames from the LAN endpoints of the test connections in `flows`: for each flow, one of each size (in bytes, without FCS).
    /// `macs` are source and destination.
    ///
    /// # Panics
    /// If a size is too small for the headers.
    pub fn new(flows: impl Iterator<Item = u32>, sizes: &[usize], macs: [Mac; 2], vlan: Vlan, pace: Pace) -> Pattern {
        let mut frames = Vec::new();
        for flow in flows {
            let [lan, wan] = test_connection(flow);
            let envelope = segment::envelope(segment::key(lan, wan, vlan), Side::Lan, macs[0], macs[1]);
            for &size in sizes {
                let options = OptionList::none();
                let headers = envelope.frame_len(&options);
                assert!(size >= headers, "a frame of {size} bytes is too short for {headers} bytes of headers");
                let (flags, window) = (Flags::ACK, RawWindow(0));
                let (seq, ack) = (SeqNum::default(), SeqNum::default());
                let segment = OutgoingSegment { seq, ack, flags, window, options, from: 0, len: size - headers };
                let mut frame = vec![0; size.max(60)];
                segment.write(&envelope, &mut frame, |payload| payload.fill(0));
                frames.push(frame);
            }
        }
        Pattern { frames, next: 0, pace, received: Counted::default() }
    }

    /// The frames received.
    pub fn received(&self) -> &Counted {
        &self.received
    }
}

impl Load for Pattern {
    fn receive(&mut self, _: usize, head: &mut Head<'_>, _: Duration, _: &mut Outbox<'_>) {
        self.received.count(head);
    }

    fn send(&mut self, now: Duration, out: &mut Outbox<'_>) {
        for _ in 0..self.pace.due(now) {
            if !out.has_room(0) || !out.copy(0, &self.frames[self.next]) {
                return;
            }
            self.next = (self.next + 1) % self.frames.len();
            self.pace.made(1);
        }
    }

    fn next(&self) -> Option<Duration> {
        self.pace.next()
    }

    fn is_over(&self, now: Duration) -> bool {
        self.pace.is_over(now)
    }
}

/// A flood from random sources, and the replies to it.
pub struct Flood {
    template: FloodTemplate,
    pace: Pace,
    /// How long to receive after the last frame.
    linger: Duration,
    ended: Option<Duration>,
    received: Counted,
}

impl Flood {
    /// A flood that receives replies until `linger` after its last frame.
    pub fn new(template: FloodTemplate, pace: Pace, linger: Duration) -> Flood {
        Flood { template, pace, linger, ended: None, received: Counted::default() }
    }

    /// The frames received.
    pub fn received(&self) -> &Counted {
        &self.received
    }

    /// When its last frame was sent, if it was.
    pub fn ended(&self) -> Option<Duration> {
        self.ended
    }
}

impl Load for Flood {
    fn receive(&mut self, _: usize, head: &mut Head<'_>, _: Duration, _: &mut Outbox<'_>) {
        self.received.count(head);
    }

    fn send(&mut self, now: Duration, out: &mut Outbox<'_>) {
        let len = self.template.frame_len();
        for _ in 0..self.pace.due(now) {
            let stamp = |buffer: &mut [u8]| {
                self.template.stamp(&mut buffer[..len]);
                len
            };
            if !out.has_room(0) || !out.push(0, stamp) {
                break;
            }
            self.pace.made(1);
        }
        if self.pace.is_over(now) {
            self.ended.get_or_insert(now);
        }
    }

    fn next(&self) -> Option<Duration> {
        self.pace.next()
    }

    fn is_over(&self, now: Duration) -> bool {
        self.ended.is_some_and(|ended| now >= ended + self.linger)
    }
}

/// Counts every frame and answers none.
pub struct Sink {
    until: Duration,
    count: u64,
    received: Counted,
}

impl Sink {
    /// A sink that ends at `until` or after `count` frames.
    pub fn new(until: Duration, count: Option<u64>) -> Sink {
        Sink { until, count: count.unwrap_or(u64::MAX), received: Counted::default() }
    }

    /// The frames received.
    pub fn received(&self) -> &Counted {
        &self.received
    }
}

impl Load for Sink {
    fn receive(&mut self, _: usize, head: &mut Head<'_>, _: Duration, _: &mut Outbox<'_>) {
        self.received.count(head);
    }

    fn send(&mut self, _: Duration, _: &mut Outbox<'_>) {}

    fn next(&self) -> Option<Duration> {
        None
    }

    fn is_over(&self, now: Duration) -> bool {
        now >= self.until || self.received.frames >= self.count
    }
}

/// Counts of received frames, by kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counted {
    /// All frames.
    pub frames: u64,
    /// Their bytes, without FCS.
    pub bytes: u64,
    /// SYNs.
    pub syn: u64,
    /// SYN-ACKs.
    pub syn_ack: u64,
    /// RSTs.
    pub rst: u64,
    /// FINs.
    pub fin: u64,
    /// Other TCP segments.
    pub ack: u64,
    /// Frames other than TCP segments, and later fragments.
    pub other: u64,
    /// TCP segments with a wrong TCP or IP checksum.
    pub wrong: u64,
}

impl Counted {
    /// Counts a frame.
    pub fn count(&mut self, head: &Head<'_>) {
        self.frames += 1;
        self.bytes += head.total() as u64;
        // The side does not matter for counting.
        let Parsed::Tcp(segment) = Parsed::parse(Side::Lan, head) else {
            self.other += 1;
            return;
        };
        let Flags(flags) = segment.flags;
        let kind = match segment.flags {
            _ if flags & Flags::RST.0 != 0 => &mut self.rst,
            _ if flags & Flags::SYN.0 != 0 && flags & Flags::ACK.0 != 0 => &mut self.syn_ack,
            _ if flags & Flags::SYN.0 != 0 => &mut self.syn,
            _ if flags & Flags::FIN.0 != 0 => &mut self.fin,
            _ => &mut self.ack,
        };
        *kind += 1;
        if head.is_whole() && !segment.fragmented && !segment.checksums_hold(head) {
            self.wrong += 1;
        }
    }

    /// Adds other counts.
    pub fn add(&mut self, other: &Counted) {
        for (to, from) in [
            (&mut self.frames, other.frames),
            (&mut self.bytes, other.bytes),
            (&mut self.syn, other.syn),
            (&mut self.syn_ack, other.syn_ack),
            (&mut self.rst, other.rst),
            (&mut self.fin, other.fin),
            (&mut self.ack, other.ack),
            (&mut self.other, other.other),
            (&mut self.wrong, other.wrong),
        ] {
            *to += from;
        }
    }
}

/// The shortest frame with a TCP segment without options, in bytes: Ethernet, IPv4 and TCP headers.
pub const SHORTEST: usize = 14 + 20 + TCP_LEN;
