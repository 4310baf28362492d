//! The transfer check: a load that plays both endpoints of connections through a box, and checks that each receives what the other
//! sent, byte by byte and number by number.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use serde::Serialize;
use tcpstate::wire::{Flags, FlowKey, Mac, Options, Parsed, Segment, Vlan};
use tcpstate::{Head, PerSide, Side};

use crate::latency::Latencies;
use crate::load_runner::{Load, Outbox};
use crate::pace::Pace;
use crate::segment::{self, Content};
use crate::tcp::{End, Tcp, Terms};

/// The ports of the endpoints, LAN first, and the first addresses: the same as in nmsynproxy's tcpsendrecv.
const PORTS: [u16; 2] = [12121, 21212];
const LAN_V4: u32 = 0x0a64_0002;
const WAN_V4: u32 = 0x0b64_0001;
const LAN_V6: u128 = 0x2001_0db8_0100_0000_0000_0000_0000_0002;
const WAN_V6: u128 = 0x2001_0db8_0111_0000_0000_0000_0000_0001;

/// The parameters of a transfer check.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The number of connections.
    pub flows: u32,
    /// The side that opens them.
    pub opener: Side,
    /// The sides that send.
    pub sends: PerSide<bool>,
    /// Bytes each sender sends on each connection; if absent, it sends until `until`.
    pub bytes: Option<u64>,
    /// When senders stop, if they have no number of bytes to send.
    pub until: Duration,
    /// The options both endpoints offer, and their windows.
    pub terms: Terms,
    /// The hosts' Ethernet addresses.
    pub macs: PerSide<Mac>,
    /// Whether the addresses are IPv6.
    pub v6: bool,
    /// The VLAN tags of all frames.
    pub vlan: Vlan,
}

/// Results of a transfer check.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TransferReport {
    /// Connections attempted.
    pub opened: u64,
    /// Those that both endpoints closed after each received every byte sent.
    pub finished: u64,
    /// Those that were reset, timed out, or were still open at the end.
    pub failed: u64,
    /// Correct bytes received by the LAN endpoints.
    pub bytes_to_lan: u64,
    /// Correct bytes received by the WAN endpoints.
    pub bytes_to_wan: u64,
    /// Segments with a wrong checksum, with impossible sequence numbers, with other bytes than were sent, or of no connection.
    pub wrong: u64,
    /// Retransmitted segments.
    pub sent_again: u64,
    /// Time from a connection's SYN to the SYN-ACK.
    pub handshake: Latencies,
    /// Time from a connection's SYN until the passive endpoint is open.
    pub opening: Latencies,
}

/// One endpoint of a connection.
struct Endpoint {
    tcp: Tcp,
    was_open: bool,
    timer: Option<Duration>,
}

/// A connection and its endpoints, LAN first.
#[derive(Default)]
struct Flow {
    ends: [Option<Endpoint>; 2],
    started: Duration,
    /// Whether its result has been counted.
    counted: bool,
}

/// Connections between two ports; port 0 is the LAN's.
pub struct TransferCheck {
    plan: Plan,
    pace: Pace,
    rng: SmallRng,
    content: Content,
    flows: Vec<Flow>,
    ready: Vec<(usize, Side)>,
    timers: BinaryHeap<Reverse<(Duration, usize, u8)>>,
    left: u64,
    outcome: TransferReport,
}

impl TransferCheck {
    /// The connections of `plan`, `rate` of which are opened per second.
    pub fn new(plan: Plan, rate: f64, rng: SmallRng) -> TransferCheck {
        TransferCheck {
            pace: Pace::new(Some(rate), Some(plan.flows.into()), plan.until),
            rng,
            content: Content::default(),
            flows: (0..plan.flows).map(|_| Flow::default()).collect(),
            ready: Vec::new(),
            timers: BinaryHeap::new(),
            left: plan.flows.into(),
            outcome: TransferReport::default(),
            plan,
        }
    }

    /// The results. Connections that are still open count as failed.
    pub fn outcome(mut self) -> TransferReport {
        for number in 0..self.flows.len() {
            self.count(number, true);
        }
        self.outcome
    }

    fn key(&self, number: usize) -> FlowKey {
        let n = number as u32;
        let [lan, wan]: [IpAddr; 2] = if self.plan.v6 {
            [LAN_V6, WAN_V6].map(|first| Ipv6Addr::from_bits(first + u128::from(2 * n)).into())
        } else {
            [LAN_V4, WAN_V4].map(|first| Ipv4Addr::from_bits(first + 2 * n).into())
        };
        segment::key((lan, PORTS[0]), (wan, PORTS[1]), self.plan.vlan)
    }

    /// The number of the connection a segment belongs to.
    fn number(&self, segment: &Segment) -> Option<usize> {
        let first = if self.plan.v6 { WAN_V6 as u32 } else { WAN_V4 };
        let number = (segment.key.wan[3].wrapping_sub(first) / 2) as usize;
        (number < self.flows.len() && self.key(number) == segment.key).then_some(number)
    }

    /// The number of the stream an endpoint sends.
    fn stream(number: usize, sender: Side) -> u64 {
        2 * number as u64 + sender as u64
    }

    fn on_segment(&mut self, side: Side, segment: &Segment, head: &Head<'_>, now: Duration) {
        let known = self.number(segment).filter(|_| !head.is_whole() || segment.checksums_hold(head));
        let Some(number) = known else {
            self.outcome.wrong += 1;
            return;
        };
        let options = Options::read(segment.options(head.bytes()));
        let flow = &mut self.flows[number];
        if flow.ends[side as usize].is_none() {
            let is_syn = segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK);
            if side == self.plan.opener || !is_syn {
                self.outcome.wrong += 1;
                return;
            }
            let tcp = Tcp::accept(self.plan.terms, self.rng.random(), segment, &options, now);
            flow.ends[side as usize] = Some(Endpoint { tcp, was_open: false, timer: None });
            self.ready.push((number, side));
            return;
        }
        let Some(end) = &mut flow.ends[side as usize] else { return };
        let delivery = end.tcp.on_segment(segment, &options, now);
        let stream = Self::stream(number, side.other());
        let content_matches = head.is_whole() && delivery.matches(&self.content, stream, segment, head.bytes());
        self.outcome.wrong += u64::from(delivery.wrong || !content_matches);
        if content_matches {
            let bytes = if side == Side::Lan { &mut self.outcome.bytes_to_lan } else { &mut self.outcome.bytes_to_wan };
            *bytes += delivery.len() as u64;
        }
        if end.tcp.is_open() && !end.was_open {
            end.was_open = true;
            let since = now - flow.started;
            if side == self.plan.opener {
                self.outcome.handshake.record(since)
            } else {
                self.outcome.opening.record(since)
            }
        }
        self.ready.push((number, side));
    }

    /// Sends the segments of an endpoint, and counts its connection when it has ended.
    fn service(&mut self, number: usize, side: Side, now: Duration, out: &mut Outbox<'_>) {
        let envelope = segment::envelope(self.key(number), side, self.plan.macs[side], self.plan.macs[side.other()]);
        let flow = &mut self.flows[number];
        let Some(end) = &mut flow.ends[side as usize] else { return };
        if end.was_open {
            let tcp = &mut end.tcp;
            match self.plan.bytes {
                _ if !self.plan.sends[side] => {
                    if tcp.has_ended() {
                        tcp.finish();
                    }
                }
                Some(bytes) => {
                    tcp.write(bytes - tcp.written());
                    tcp.finish();
                }
                None if now < self.plan.until => {
                    let ahead = tcp.acknowledged() + 2 * self.plan.terms.in_flight;
                    tcp.write(ahead.saturating_sub(tcp.written()));
                }
                None => tcp.finish(),
            }
        }
        let (content, stream, port) = (&self.content, Self::stream(number, side), side as usize);
        while out.has_room(port) {
            let Some(segment) = end.tcp.next_segment(now) else { break };
            let fill = |payload: &mut [u8]| payload.copy_from_slice(content.bytes(stream, segment.from, segment.len));
            out.push(port, |buffer| segment.write(&envelope, buffer, fill));
        }
        if !out.has_room(port) {
            self.ready.push((number, side));
        }
        if end.tcp.end().is_some() {
            return self.count(number, false);
        }
        let due = match self.plan.bytes {
            // The endpoint closes at `until`.
            None if self.plan.until > now => end.tcp.due().map_or(self.plan.until, |due| due.min(self.plan.until)),
            _ => end.tcp.due().unwrap_or(Duration::MAX),
        };
        if due < Duration::MAX && end.timer.is_none_or(|timer| timer > due) {
            end.timer = Some(due);
            self.timers.push(Reverse((due, number, side as u8)));
        }
    }

    /// Counts a connection that has ended; at the end of the run (`final_count`) also one that has not.
    fn count(&mut self, number: usize, final_count: bool) {
        let flow = &mut self.flows[number];
        let over = |end: &Option<Endpoint>| end.as_ref().and_then(|end| end.tcp.end());
        let [lan, wan] = &flow.ends;
        let ends = [over(lan), over(wan)];
        // If one endpoint was reset or timed out, the other cannot finish.
        let broken = ends.iter().flatten().any(|end| *end != End::Finished);
        let whole = ends == [Some(End::Finished); 2];
        if flow.counted || (lan.is_none() && wan.is_none()) || !(whole || broken || final_count) {
            return;
        }
        flow.counted = true;
        self.left -= 1;
        let tcps = [lan, wan].map(|end| end.as_ref().map(|end| &end.tcp));
        self.outcome.sent_again += tcps.iter().flatten().map(|tcp| tcp.retransmitted()).sum::<u64>();
        let all_received = matches!(tcps, [Some(lan), Some(wan)] if lan.received() == wan.written() && wan.received() == lan.written());
        if whole && all_received { self.outcome.finished += 1 } else { self.outcome.failed += 1 }
    }
}

impl Load for TransferCheck {
    fn receive(&mut self, port: usize, head: &mut Head<'_>, now: Duration, _: &mut Outbox<'_>) {
        let side = Side::BOTH[port];
        // The other side's endpoint sent it. Frames other than TCP are ignored.
        if let Parsed::Tcp(segment) = Parsed::parse(side.other(), head) {
            self.on_segment(side, &segment, head, now);
        }
    }

    fn send(&mut self, now: Duration, out: &mut Outbox<'_>) {
        while let Some(&Reverse((due, number, side))) = self.timers.peek()
            && due <= now
        {
            self.timers.pop();
            let end = self.flows[number].ends[usize::from(side)].as_mut();
            if let Some(end) = end.filter(|end| end.timer == Some(due)) {
                end.timer = None;
                self.ready.push((number, Side::BOTH[usize::from(side)]));
            }
        }
        for (number, side) in std::mem::take(&mut self.ready) {
            self.service(number, side, now, out);
        }
        let opener = self.plan.opener;
        for _ in 0..self.pace.due(now) {
            if !out.has_room(opener as usize) {
                break;
            }
            let number = self.pace.total() as usize;
            let tcp = Tcp::connect(self.plan.terms, self.rng.random(), now);
            let flow = &mut self.flows[number];
            flow.started = now;
            flow.ends[opener as usize] = Some(Endpoint { tcp, was_open: false, timer: None });
            self.outcome.opened += 1;
            self.pace.made(1);
            self.service(number, opener, now, out);
        }
    }

    fn next(&self) -> Option<Duration> {
        let timer = self.timers.peek().map(|Reverse((due, ..))| *due);
        let ready = (!self.ready.is_empty()).then_some(Duration::ZERO);
        [timer, self.pace.next(), ready].into_iter().flatten().min()
    }

    fn is_over(&self, now: Duration) -> bool {
        let started = self.pace.total();
        self.pace.is_over(now) && self.left == u64::from(self.plan.flows) - started
    }
}
