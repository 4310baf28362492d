//! Connections through a box, both ends of which are played here: whatever one end says the other must hear, byte by byte and number by number.

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
use crate::pace::Pace;
use crate::segment::{self, Content};
use crate::station::{Load, Outbox};
use crate::tcp::{End, Tcp, Terms};

/// The ports of the ends, LAN first, and the first addresses: those of nmsynproxy's tcpsendrecv.
const PORTS: [u16; 2] = [12121, 21212];
const LAN_V4: u32 = 0x0a64_0002;
const WAN_V4: u32 = 0x0b64_0001;
const LAN_V6: u128 = 0x2001_0db8_0100_0000_0000_0000_0000_0002;
const WAN_V6: u128 = 0x2001_0db8_0111_0000_0000_0000_0000_0001;

/// What is exchanged.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Connections.
    pub flows: u32,
    /// Who calls.
    pub opener: Side,
    /// Who sends.
    pub sends: PerSide<bool>,
    /// Bytes each sender has for each connection; without, it sends until the time is over.
    pub bytes: Option<u64>,
    /// When the time is over.
    pub until: Duration,
    /// What both ends offer.
    pub terms: Terms,
    /// The hosts' Ethernet addresses.
    pub macs: PerSide<Mac>,
    /// Whether the addresses are IPv6.
    pub v6: bool,
    /// The tags of all frames.
    pub vlan: Vlan,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Exchanged {
    /// Connections that were tried.
    pub opened: u64,
    /// Those that both ends closed, with every byte heard that was said.
    pub finished: u64,
    /// Those that were reset, given up, or left over.
    pub failed: u64,
    /// Bytes heard by the LAN's ends, and by the WAN's, each of them the right one.
    pub bytes_to_lan: u64,
    /// Likewise.
    pub bytes_to_wan: u64,
    /// Segments that say what cannot be, bytes that are not those sent, wrong checksums, segments of nobody.
    pub wrong: u64,
    /// Segments sent again.
    pub sent_again: u64,
    /// From a connection's SYN to the SYN-ACK.
    pub handshake: Latencies,
    /// From a connection's SYN until the end that was called is open.
    pub opening: Latencies,
}

/// One end of a connection.
struct EndPoint {
    tcp: Tcp,
    was_open: bool,
    alarm: Option<Duration>,
}

/// A connection with its ends, LAN first.
#[derive(Default)]
struct Flow {
    ends: [Option<EndPoint>; 2],
    begun: Duration,
    /// It is over, and counted.
    counted: bool,
}

/// Many connections between two ports, the LAN's being number 0.
pub struct Exchange {
    plan: Plan,
    pace: Pace,
    rng: SmallRng,
    content: Content,
    flows: Vec<Flow>,
    awake: Vec<(usize, Side)>,
    alarms: BinaryHeap<Reverse<(Duration, usize, u8)>>,
    left: u64,
    outcome: Exchanged,
}

impl Exchange {
    /// Connections as planned, so many of which are begun a second.
    pub fn new(plan: Plan, rate: f64, rng: SmallRng) -> Exchange {
        Exchange {
            pace: Pace::new(Some(rate), Some(plan.flows.into()), plan.until),
            rng,
            content: Content::default(),
            flows: (0..plan.flows).map(|_| Flow::default()).collect(),
            awake: Vec::new(),
            alarms: BinaryHeap::new(),
            left: plan.flows.into(),
            outcome: Exchanged::default(),
            plan,
        }
    }

    /// What came of it. What is not over has failed.
    pub fn outcome(mut self) -> Exchanged {
        for number in 0..self.flows.len() {
            self.count(number, true);
        }
        self.outcome
    }

    fn ends(&self, number: usize) -> FlowKey {
        let n = number as u32;
        let [lan, wan]: [IpAddr; 2] = if self.plan.v6 {
            [LAN_V6, WAN_V6].map(|first| Ipv6Addr::from_bits(first + u128::from(2 * n)).into())
        } else {
            [LAN_V4, WAN_V4].map(|first| Ipv4Addr::from_bits(first + 2 * n).into())
        };
        segment::key((lan, PORTS[0]), (wan, PORTS[1]), self.plan.vlan)
    }

    /// The connection that a segment belongs to.
    fn number(&self, segment: &Segment) -> Option<usize> {
        let first = if self.plan.v6 { WAN_V6 as u32 } else { WAN_V4 };
        let number = (segment.key.wan[3].wrapping_sub(first) / 2) as usize;
        (number < self.flows.len() && self.ends(number) == segment.key).then_some(number)
    }

    /// Which stream it is that an end sends.
    fn whose(number: usize, sender: Side) -> u64 {
        2 * number as u64 + sender as u64
    }

    fn receive_update(&mut self, side: Side, segment: &Segment, head: &Head<'_>, now: Duration) {
        let known = self.number(segment).filter(|_| !head.is_whole() || segment.checksums_hold(head));
        let Some(number) = known else {
            self.outcome.wrong += 1;
            return;
        };
        let options = Options::read(segment.options(head.bytes()));
        let flow = &mut self.flows[number];
        if flow.ends[side as usize].is_none() {
            let calls = segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK);
            if side == self.plan.opener || !calls {
                self.outcome.wrong += 1;
                return;
            }
            let tcp = Tcp::answer(self.plan.terms, self.rng.random(), segment, &options, now);
            flow.ends[side as usize] = Some(EndPoint { tcp, was_open: false, alarm: None });
            self.awake.push((number, side));
            return;
        }
        let Some(end) = &mut flow.ends[side as usize] else { return };
        let heard = end.tcp.receive_update(segment, &options, now);
        let (from, len) = (heard.fresh.start, (heard.fresh.end - heard.fresh.start) as usize);
        let start = usize::from(segment.payload) + heard.skip;
        let said = self.content.bytes(Self::whose(number, side.other()), from, len);
        let as_said = head.is_whole() && head.bytes()[start..start + len] == *said;
        self.outcome.wrong += u64::from(heard.wrong || !as_said);
        if as_said {
            let bytes = if side == Side::Lan { &mut self.outcome.bytes_to_lan } else { &mut self.outcome.bytes_to_wan };
            *bytes += len as u64;
        }
        if end.tcp.is_open() && !end.was_open {
            end.was_open = true;
            let since = now - flow.begun;
            if side == self.plan.opener {
                self.outcome.handshake.record(since)
            } else {
                self.outcome.opening.record(since)
            }
        }
        self.awake.push((number, side));
    }

    /// Lets an end say what it has to say.
    fn look_after(&mut self, number: usize, side: Side, now: Duration, out: &mut Outbox<'_>) {
        let envelope = segment::envelope(self.ends(number), side, self.plan.macs[side], self.plan.macs[side.other()]);
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
        let (content, whose, port) = (&self.content, Self::whose(number, side), side as usize);
        while out.has_room(port) {
            let Some(say) = end.tcp.say(now) else { break };
            let fill = |payload: &mut [u8]| payload.copy_from_slice(content.bytes(whose, say.from, say.len));
            out.push(port, |buffer| say.write(&envelope, buffer, fill));
        }
        if !out.has_room(port) {
            self.awake.push((number, side));
        }
        if end.tcp.end().is_some() {
            return self.count(number, false);
        }
        let due = match self.plan.bytes {
            // To be told that the time is over.
            None if self.plan.until > now => end.tcp.due().map_or(self.plan.until, |due| due.min(self.plan.until)),
            _ => end.tcp.due().unwrap_or(Duration::MAX),
        };
        if due < Duration::MAX && end.alarm.is_none_or(|alarm| alarm > due) {
            end.alarm = Some(due);
            self.alarms.push(Reverse((due, number, side as u8)));
        }
    }

    /// Counts a connection that is over, or at the last every one.
    fn count(&mut self, number: usize, at_last: bool) {
        let flow = &mut self.flows[number];
        let over = |end: &Option<EndPoint>| end.as_ref().and_then(|end| end.tcp.end());
        let [lan, wan] = &flow.ends;
        let ends = [over(lan), over(wan)];
        // One that was reset or gave up says no more; the other cannot finish then.
        let broken = ends.iter().flatten().any(|end| *end != End::Finished);
        let whole = ends == [Some(End::Finished); 2];
        if flow.counted || (lan.is_none() && wan.is_none()) || !(whole || broken || at_last) {
            return;
        }
        flow.counted = true;
        self.left -= 1;
        let tcps = [lan, wan].map(|end| end.as_ref().map(|end| &end.tcp));
        self.outcome.sent_again += tcps.iter().flatten().map(|tcp| tcp.sent_again()).sum::<u64>();
        let all_heard = matches!(tcps, [Some(lan), Some(wan)] if lan.received() == wan.written() && wan.received() == lan.written());
        if whole && all_heard { self.outcome.finished += 1 } else { self.outcome.failed += 1 }
    }
}

impl Load for Exchange {
    fn receive(&mut self, port: usize, head: &mut Head<'_>, now: Duration, _: &mut Outbox<'_>) {
        let side = Side::BOTH[port];
        // It was sent by the other side's end. What is no TCP is somebody else's.
        if let Parsed::Tcp(segment) = Parsed::parse(side.other(), head) {
            self.receive_update(side, &segment, head, now);
        }
    }

    fn send(&mut self, now: Duration, out: &mut Outbox<'_>) {
        while let Some(&Reverse((due, number, side))) = self.alarms.peek()
            && due <= now
        {
            self.alarms.pop();
            let end = self.flows[number].ends[usize::from(side)].as_mut();
            if let Some(end) = end.filter(|end| end.alarm == Some(due)) {
                end.alarm = None;
                self.awake.push((number, Side::BOTH[usize::from(side)]));
            }
        }
        for (number, side) in std::mem::take(&mut self.awake) {
            self.look_after(number, side, now, out);
        }
        let opener = self.plan.opener;
        for _ in 0..self.pace.due(now) {
            if !out.has_room(opener as usize) {
                break;
            }
            let number = self.pace.total() as usize;
            let tcp = Tcp::call(self.plan.terms, self.rng.random(), now);
            let flow = &mut self.flows[number];
            flow.begun = now;
            flow.ends[opener as usize] = Some(EndPoint { tcp, was_open: false, alarm: None });
            self.outcome.opened += 1;
            self.pace.made(1);
            self.look_after(number, opener, now, out);
        }
    }

    fn next(&self) -> Option<Duration> {
        let alarm = self.alarms.peek().map(|Reverse((due, ..))| *due);
        let awake = (!self.awake.is_empty()).then_some(Duration::ZERO);
        [alarm, self.pace.next(), awake].into_iter().flatten().min()
    }

    fn is_over(&self, now: Duration) -> bool {
        let begun = self.pace.total();
        self.pace.is_over(now) && self.left == u64::from(self.plan.flows) - begun
    }
}
