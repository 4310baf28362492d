//! Runs the frames of a capture through the engine: what the box would send, frame by frame, and why.
//!
//! The clock is the capture's and the secrets come from a seed, so the same frames and seed give the same result. The caller reads
//! the capture and takes the results.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use crate::network::Network;
use pktio::pcap::{Direction, Record};
use tcpstate::wire::{Flags, Parsed};
use tcpstate::{
    Config, Counters, DropReason, Egress, Event, Head, Instant, PerSide, Proxy, Secrets, Side, Ticket, Verdict,
};

/// Bytes before and after a frame in its buffer, as in a worker's buffers.
const HEADROOM: usize = 256;
const TAILROOM: usize = 256;

/// Buffer size for a segment the engine emits, in bytes.
const OWN: usize = 2048;

/// The engine's clock at the first frame; not zero, as on a real machine.
const ORIGIN: Instant = Instant::from_secs(1000);

/// The longest pause between two frames: no timer of an active connection is longer, and a damaged timestamp must not make the engine
/// step through centuries.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// The fate of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was sent by the port.
    Sent,
    /// It was received at the port, and is held.
    Held,
    /// It was received at the port, and dropped.
    Dropped,
}

/// A frame and its fate.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// The port it was sent by or received at.
    pub side: Side,
    /// Its fate.
    pub fate: Fate,
    /// The time, by the capture's clock.
    pub time: Duration,
    /// Its bytes, as far as the capture has them.
    pub bytes: &'a [u8],
    /// Its length on the wire, in bytes.
    pub original_len: usize,
    /// Verdict, reason and events, as text.
    pub comment: &'a str,
}

/// The totals of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Frames replayed, by receiving port.
    pub frames: PerSide<u64>,
    /// Those truncated by the capture.
    pub cut: u64,
    /// Frames forwarded to the other port.
    pub forwarded: u64,
    /// Frames turned into a reply and sent back.
    pub reflected: u64,
    /// Frames held.
    pub held: u64,
    /// Held frames that were sent later.
    pub released: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Segments the engine emitted itself.
    pub emitted: u64,
    /// The engine's counters.
    pub counters: Counters,
}

/// The engine, with what a worker provides for it.
pub struct Replay {
    proxy: Proxy,
    now: Instant,
    /// The capture's clock at `now`; none before the first frame.
    clock: Option<Duration>,
    held: Vec<Option<Held>>,
    emitted: Vec<(Side, Vec<u8>)>,
    buffer: Vec<u8>,
    comment: String,
    summary: Summary,
}

struct Held {
    number: u64,
    buffer: Vec<u8>,
    extent: Extent,
}

/// The position of a frame in its buffer, and its length on the wire, in bytes.
#[derive(Clone, Copy)]
struct Extent {
    start: usize,
    len: usize,
    total: usize,
}

impl Extent {
    fn of(head: &Head) -> Self {
        Self { start: head.start(), len: head.len(), total: head.total() }
    }

    fn bytes(self, buffer: &[u8]) -> &[u8] {
        &buffer[self.start..self.start + self.len]
    }
}

/// Collects the segments the engine emits.
struct Emitted<'a>(&'a mut Vec<(Side, Vec<u8>)>);

impl Egress for Emitted<'_> {
    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut bytes = vec![0; OWN];
        let len = write(&mut bytes);
        bytes.truncate(len);
        self.0.push((to, bytes));
        true
    }
}

impl Replay {
    /// An engine with this configuration and secrets derived from `seed`.
    pub fn new(config: &Config, seed: u64) -> Self {
        let proxy = Proxy::new(config, &secrets(seed), ORIGIN);
        Self {
            held: (0..proxy.held_frames()).map(|_| None).collect(),
            proxy,
            now: ORIGIN,
            clock: None,
            emitted: Vec::new(),
            buffer: Vec::new(),
            comment: String::new(),
            summary: Summary::default(),
        }
    }

    /// Processes a frame received on `side`, after the timers that are due before it. Calls `out` for every frame sent, and for
    /// this one if it is held or dropped.
    pub fn frame(&mut self, side: Side, record: &Record, out: &mut impl FnMut(&Outcome)) {
        let clock = *self.clock.get_or_insert(record.time);
        // Frames of several queues may be slightly out of order.
        self.advance(record.time.saturating_sub(clock), out);
        self.summary.frames[side] += 1;
        let number = self.summary.frames[Side::Lan] + self.summary.frames[Side::Wan];
        let total = record.bytes.len().max(record.original_len as usize);
        self.summary.cut += u64::from(record.bytes.len() < total);

        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.resize(HEADROOM, 0);
        buffer.extend_from_slice(&record.bytes);
        buffer.resize(buffer.len() + TAILROOM, 0);
        let before = self.proxy.counters().clone();
        let mut head = Head::new(&mut buffer, HEADROOM, record.bytes.len(), total);
        let verdict = self.proxy.on_single(side, &mut head, self.now, &mut Emitted(&mut self.emitted));
        let extent = Extent::of(&head);
        let events = events(&before, self.proxy.counters());
        self.report_emitted(&format!("on frame {number}"), "", out);
        let frame_text = describe(side, &mut buffer, extent);
        match verdict {
            Verdict::Hold(ticket) => {
                self.summary.held += 1;
                self.report(
                    side,
                    Fate::Held,
                    extent,
                    &buffer,
                    &format!("hold: {frame_text}{events}, frame {number}"),
                    out,
                );
                let held = Held { number, buffer: std::mem::take(&mut buffer), extent };
                if let Some(place) = self.held.get_mut(usize::from(ticket.index)) {
                    *place = Some(held);
                }
            }
            verdict => {
                self.dispose(side, verdict, extent, &buffer, &format!("{frame_text}{events}, frame {number}"), out)
            }
        }
        self.buffer = buffer;
        self.release_held(out);
    }

    /// Advances the clock after the last frame.
    pub fn wait(&mut self, time: Duration, out: &mut impl FnMut(&Outcome)) {
        self.advance(time, out);
    }

    /// The totals so far.
    pub fn summary(&self) -> Summary {
        Summary { counters: self.proxy.counters().clone(), ..self.summary.clone() }
    }

    /// Advances the clock, and runs timers when they are due.
    fn advance(&mut self, time: Duration, out: &mut impl FnMut(&Outcome)) {
        let begin = (self.now, self.clock.unwrap_or_default());
        let end = self.now + time.min(LONGEST_PAUSE);
        while let Some(deadline) = self.proxy.next_deadline().filter(|&deadline| deadline <= end) {
            // The timer wheel may report a deadline at which nothing is due yet; always advance by at least a microsecond.
            self.now = deadline.max(self.now + Duration::from_micros(1)).min(end);
            self.clock = Some(begin.1 + self.now.since(begin.0));
            loop {
                let before = self.proxy.counters().clone();
                let more = self.proxy.on_timeout(self.now, &mut Emitted(&mut self.emitted));
                let events = events(&before, self.proxy.counters());
                self.report_emitted("by timer", &events, out);
                self.release_held(out);
                if !more {
                    break;
                }
            }
            if self.now == end {
                break;
            }
        }
        self.now = end;
        self.clock = Some(begin.1.saturating_add(time));
    }

    /// Returns the held frames that the engine releases.
    fn release_held(&mut self, out: &mut impl FnMut(&Outcome)) {
        while let Some(ticket) = self.proxy.next_release() {
            let Some(mut held) = self.take_held(ticket) else {
                self.proxy.void(ticket);
                continue;
            };
            let Extent { start, len, total } = held.extent;
            let before = self.proxy.counters().clone();
            let mut head = Head::new(&mut held.buffer, start, len, total);
            let verdict = self.proxy.on_release(ticket, &mut head, self.now, &mut Emitted(&mut self.emitted));
            let extent = Extent::of(&head);
            let events = events(&before, self.proxy.counters());
            self.report_emitted(&format!("on frame {}", held.number), "", out);
            let frame_text = describe(Side::Wan, &mut held.buffer, extent);
            self.summary.released += u64::from(!matches!(verdict, Verdict::Drop(_)));
            let words = format!("{frame_text}{events}, frame {}, held until now", held.number);
            self.dispose(Side::Wan, verdict, extent, &held.buffer, &words, out);
        }
    }

    fn take_held(&mut self, ticket: Ticket) -> Option<Held> {
        self.held.get_mut(usize::from(ticket.index))?.take()
    }

    /// Carries out the verdict on a frame received on `side`.
    fn dispose(
        &mut self,
        side: Side,
        verdict: Verdict,
        extent: Extent,
        buffer: &[u8],
        words: &str,
        out: &mut impl FnMut(&Outcome),
    ) {
        let (verb, to, fate, count) = match verdict {
            Verdict::Forward => ("forward".into(), side.other(), Fate::Sent, &mut self.summary.forwarded),
            Verdict::Reflect => ("reflect".into(), side, Fate::Sent, &mut self.summary.reflected),
            Verdict::Drop(reason) => {
                (format!("drop: {}", reason.label()), side, Fate::Dropped, &mut self.summary.dropped)
            }
            Verdict::Hold(_) => unreachable!("a frame that was held is not held again"),
        };
        *count += 1;
        self.report(to, fate, extent, buffer, &format!("{verb}: {words}"), out);
    }

    /// Reports the segments the engine emitted.
    fn report_emitted(&mut self, why: &str, events: &str, out: &mut impl FnMut(&Outcome)) {
        for (to, mut bytes) in std::mem::take(&mut self.emitted) {
            self.summary.emitted += 1;
            let extent = Extent { start: 0, len: bytes.len(), total: bytes.len() };
            let frame_text = describe(to.other(), &mut bytes, extent);
            self.report(to, Fate::Sent, extent, &bytes, &format!("emit: {frame_text}{events}, {why}"), out);
        }
    }

    fn report(
        &mut self,
        side: Side,
        fate: Fate,
        extent: Extent,
        buffer: &[u8],
        comment: &str,
        out: &mut impl FnMut(&Outcome),
    ) {
        self.comment.clear();
        self.comment.push_str(comment);
        let time = self.clock.unwrap_or_default();
        let bytes = extent.bytes(buffer);
        out(&Outcome { side, fate, time, bytes, original_len: extent.total, comment: &self.comment });
    }
}

/// Secrets from a seed (Steele, Lea and Flood's SplitMix).
fn secrets(seed: u64) -> Secrets {
    let mut state = seed;
    let mut bytes = [0; 48];
    for word in bytes.as_chunks_mut::<8>().0 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        *word = (mixed ^ mixed >> 31).to_le_bytes();
    }
    Secrets::new(bytes)
}

/// The events counted in between, in parentheses, except those that count every segment.
fn events(before: &Counters, after: &Counters) -> String {
    let mut words = String::new();
    for &event in Event::ALL {
        let plain = matches!(event, Event::LanSegment | Event::WanSegment | Event::WanSyn);
        if !plain && after.happened(event) > before.happened(event) {
            let lead = if words.is_empty() { " (" } else { ", " };
            let _ = write!(words, "{lead}{}", event.label());
        }
    }
    if !words.is_empty() {
        words.push(')');
    }
    words
}

/// A short description of a frame received on `side`.
fn describe(side: Side, buffer: &mut [u8], extent: Extent) -> String {
    let Extent { start, len, total } = extent;
    match Parsed::parse(side, &Head::new(buffer, start, len, total)) {
        Parsed::Tcp(segment) => {
            let names = [(Flags::SYN, "SYN"), (Flags::FIN, "FIN"), (Flags::RST, "RST"), (Flags::ACK, "ACK")];
            let set: Vec<&str> =
                names.iter().filter(|(flag, _)| segment.flags.has(*flag)).map(|(_, name)| *name).collect();
            let flags = if set.is_empty() { "no flags".to_owned() } else { set.join("-") };
            match segment.payload_len() {
                0 => flags,
                bytes => format!("{flags} {bytes} bytes"),
            }
        }
        Parsed::Error(_) | Parsed::StrayError => "ICMP error".into(),
        Parsed::Fragment(_) => "fragment".into(),
        Parsed::Other => "not TCP".into(),
        Parsed::Bad(_) => "malformed frame".into(),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("frames from the LAN", self.frames[Side::Lan], true),
            ("frames from the WAN", self.frames[Side::Wan], true),
            ("of these truncated by the capture", self.cut, false),
            ("forwarded", self.forwarded, true),
            ("reflected", self.reflected, true),
            ("held", self.held, false),
            ("released", self.released, false),
            ("dropped", self.dropped, true),
            ("emitted by the box", self.emitted, true),
        ];
        for (label, count, always) in rows {
            if always || count > 0 {
                writeln!(f, "{label:<34}{count:>12}")?;
            }
        }
        let events = Event::ALL.iter().map(|&event| (event.label(), self.counters.happened(event)));
        let drops = DropReason::ALL.iter().map(|&reason| (reason.label(), self.counters.dropped(reason)));
        writeln!(f, "events")?;
        for (label, count) in events.filter(|(_, count)| *count > 0) {
            writeln!(f, "  {label:<32}{count:>12}")?;
        }
        writeln!(f, "drops")?;
        for (label, count) in drops.filter(|(_, count)| *count > 0) {
            writeln!(f, "  {label:<32}{count:>12}")?;
        }
        Ok(())
    }
}

/// How to find the receiving port of the frames of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// All frames were received at this port.
    Port(Side),
    /// By the name of the capture interface: names of the LAN and of the WAN port.
    Interfaces(PerSide<Vec<String>>),
    /// By their addresses: frames from these networks come from the LAN, frames to them from the WAN.
    Networks(Vec<Network>),
}

/// Why a frame of a capture is not replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// The box sent it.
    Outbound,
    /// Its receiving port is unknown.
    Unknown,
}

impl Origin {
    /// The receiving port of a frame; `interface` is the name of its capture interface.
    ///
    /// # Errors
    /// If the box sent the frame, or its port is unknown.
    pub fn side(&self, record: &Record, interface: &str) -> Result<Side, Skipped> {
        let received = if record.direction == Some(Direction::Outbound) { Err(Skipped::Outbound) } else { Ok(()) };
        match self {
            Origin::Port(side) => received.map(|()| *side),
            Origin::Interfaces(names) => {
                let is_named = |side: &Side| names[*side].iter().any(|known| known == interface);
                let side = Side::BOTH.into_iter().find(is_named).ok_or(Skipped::Unknown)?;
                received.map(|()| side)
            }
            // A capture on a link next to the box sees both directions as incoming or outgoing, so the direction does not count.
            Origin::Networks(networks) => {
                let (from, to) = addresses(&record.bytes).ok_or(Skipped::Unknown)?;
                let is_lan = |address: IpAddr| networks.iter().any(|network| network.contains(address));
                match (is_lan(from), is_lan(to)) {
                    (true, _) => Ok(Side::Lan),
                    (_, true) => Ok(Side::Wan),
                    _ => Err(Skipped::Unknown),
                }
            }
        }
    }
}

/// Source and destination address of an IPv4, IPv6 or ARP frame with up to two VLAN tags.
fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let mut rest = frame.get(12..)?;
    for _ in 0..2 {
        if let [0x81, 0x00, ..] | [0x88, 0xa8, ..] | [0x91, 0x00, ..] = rest {
            rest = rest.get(4..)?;
        }
    }
    let v4 = |at: usize| Some(IpAddr::from(*rest.get(2 + at..)?.first_chunk::<4>()?));
    let v6 = |at: usize| Some(IpAddr::from(*rest.get(2 + at..)?.first_chunk::<16>()?));
    match rest {
        [0x08, 0x00, ..] => Some((v4(12)?, v4(16)?)),
        [0x86, 0xdd, ..] => Some((v6(8)?, v6(24)?)),
        [0x08, 0x06, ..] => Some((v4(14)?, v4(24)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_follows_from_file_interface_or_addresses() {
        let mut arp = vec![0; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        arp[28..32].copy_from_slice(&[10, 0, 0, 1]);
        arp[38..42].copy_from_slice(&[192, 0, 2, 1]);
        let record = |direction| Record { bytes: arp.clone(), direction, ..Record::default() };
        let (plain, sent) = (record(None), record(Some(Direction::Outbound)));
        assert_eq!(Origin::Port(Side::Lan).side(&plain, ""), Ok(Side::Lan));
        assert_eq!(Origin::Port(Side::Lan).side(&sent, ""), Err(Skipped::Outbound));
        let names = Origin::Interfaces(PerSide::new(vec!["lan".into()], vec!["wan".into()]));
        assert_eq!(names.side(&plain, "wan"), Ok(Side::Wan));
        assert_eq!(names.side(&plain, "eth0"), Err(Skipped::Unknown));
        let networks = |text: &str| Origin::Networks(vec![text.parse().unwrap()]);
        assert_eq!(networks("10.0.0.0/8").side(&sent, ""), Ok(Side::Lan));
        assert_eq!(networks("192.0.2.0/24").side(&plain, ""), Ok(Side::Wan));
        assert_eq!(networks("172.16.0.0/12").side(&plain, ""), Err(Skipped::Unknown));
    }
}
