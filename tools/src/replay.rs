//! Frames of a capture through the engine: what the box would send out, frame by frame, and why.
//!
//! The clock is the capture's, the secrets come from a seed: the same frames and the same seed give the same answers. Where frames
//! come from and go to is the caller's matter.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use pktio::pcap::{Direction, Record};
use tcpstate::wire::{Flags, Parsed};
use tcpstate::{
    Config, Counters, DropReason, Egress, Event, Head, Instant, PerSide, Proxy, Secrets, Side, Ticket, Verdict,
};

/// Room before and behind a frame, in bytes, as a worker's buffers have it.
const HEADROOM: usize = 256;
const TAILROOM: usize = 256;

/// Bytes of a buffer for a segment of the engine's own.
const OWN: usize = 2048;

/// The engine's clock at the first frame. Its own does not begin at zero either.
const ORIGIN: Instant = Instant::from_secs(1000);

/// A pause in a capture counts as this at most: no timer of a connection that is used runs longer, and a damaged time must not set it
/// off into the next century.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It leaves by the port.
    Sent,
    /// It came in by the port, and is kept aside.
    Held,
    /// It came in by the port, and goes nowhere.
    Dropped,
}

/// A frame, and what became of it.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// The port it leaves or came in by.
    pub side: Side,
    /// What became of it.
    pub fate: Fate,
    /// When, by the capture's clock.
    pub time: Duration,
    /// Its bytes, or as many as the capture had.
    pub bytes: &'a [u8],
    /// Its length on the wire, in bytes.
    pub original_len: usize,
    /// Verdict and reason, in words.
    pub comment: &'a str,
}

/// What a replay came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Frames replayed, by the port they came in by.
    pub frames: PerSide<u64>,
    /// Those of them that the capture had cut.
    pub cut: u64,
    /// Frames sent out of the other port.
    pub forwarded: u64,
    /// Frames answered where they lay.
    pub reflected: u64,
    /// Frames kept aside.
    pub held: u64,
    /// Frames kept aside that went on later.
    pub released: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Segments of the engine's own.
    pub emitted: u64,
    /// The engine's counters.
    pub counters: Counters,
}

/// The engine, and what a worker would hold for it.
pub struct Replay {
    proxy: Proxy,
    now: Instant,
    /// The capture's clock at `now`; nothing before the first frame.
    clock: Option<Duration>,
    pen: Vec<Option<Held>>,
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

/// Where in its buffer a frame lies, and how long it is on the wire.
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

/// Keeps what the engine says of its own accord.
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
    /// An engine with this configuration, and secrets that come from `seed`.
    pub fn new(config: &Config, seed: u64) -> Self {
        let proxy = Proxy::new(config, &secrets(seed), ORIGIN);
        Self {
            pen: (0..proxy.held_frames()).map(|_| None).collect(),
            proxy,
            now: ORIGIN,
            clock: None,
            emitted: Vec::new(),
            buffer: Vec::new(),
            comment: String::new(),
            summary: Summary::default(),
        }
    }

    /// A frame that comes in by `side`. Timers that are due before it go first. `out` is told of every frame that leaves, and of this one if
    /// it does not.
    pub fn frame(&mut self, side: Side, record: &Record, out: &mut impl FnMut(&Outcome)) {
        let clock = *self.clock.get_or_insert(record.time);
        // A capture of several queues may step back a little.
        self.pass(record.time.saturating_sub(clock), out);
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
        self.tell_emitted(&format!("on frame {number}"), "", out);
        let said = said(side, &mut buffer, extent);
        match verdict {
            Verdict::Hold(ticket) => {
                self.summary.held += 1;
                self.tell(side, Fate::Held, extent, &buffer, &format!("hold: {said}{events}, frame {number}"), out);
                let held = Held { number, buffer: std::mem::take(&mut buffer), extent };
                if let Some(place) = self.pen.get_mut(usize::from(ticket.index)) {
                    *place = Some(held);
                }
            }
            verdict => self.dispose(side, verdict, extent, &buffer, &format!("{said}{events}, frame {number}"), out),
        }
        self.buffer = buffer;
        self.bring_back(out);
    }

    /// Lets time pass after the last frame.
    pub fn wait(&mut self, time: Duration, out: &mut impl FnMut(&Outcome)) {
        self.pass(time, out);
    }

    /// What it has come to so far.
    pub fn summary(&self) -> Summary {
        Summary { counters: self.proxy.counters().clone(), ..self.summary.clone() }
    }

    /// Lets time pass, and what is due happen when it is due.
    fn pass(&mut self, time: Duration, out: &mut impl FnMut(&Outcome)) {
        let begin = (self.now, self.clock.unwrap_or_default());
        let end = self.now + time.min(LONGEST_PAUSE);
        while let Some(deadline) = self.proxy.next_deadline().filter(|&deadline| deadline <= end) {
            // At a deadline the wheel may find that nothing is due before a later one, but never before the next microsecond.
            self.now = deadline.max(self.now + Duration::from_micros(1)).min(end);
            self.clock = Some(begin.1 + self.now.since(begin.0));
            loop {
                let before = self.proxy.counters().clone();
                let more = self.proxy.on_timeout(self.now, &mut Emitted(&mut self.emitted));
                let events = events(&before, self.proxy.counters());
                self.tell_emitted("by timer", &events, out);
                self.bring_back(out);
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

    /// Brings back the held frames the engine asks for.
    fn bring_back(&mut self, out: &mut impl FnMut(&Outcome)) {
        while let Some(ticket) = self.proxy.next_release() {
            let Some(mut held) = self.give_up(ticket) else {
                self.proxy.void(ticket);
                continue;
            };
            let Extent { start, len, total } = held.extent;
            let before = self.proxy.counters().clone();
            let mut head = Head::new(&mut held.buffer, start, len, total);
            let verdict = self.proxy.on_release(ticket, &mut head, self.now, &mut Emitted(&mut self.emitted));
            let extent = Extent::of(&head);
            let events = events(&before, self.proxy.counters());
            self.tell_emitted(&format!("on frame {}", held.number), "", out);
            let said = said(Side::Wan, &mut held.buffer, extent);
            self.summary.released += u64::from(!matches!(verdict, Verdict::Drop(_)));
            let words = format!("{said}{events}, frame {}, held until now", held.number);
            self.dispose(Side::Wan, verdict, extent, &held.buffer, &words, out);
        }
    }

    fn give_up(&mut self, ticket: Ticket) -> Option<Held> {
        self.pen.get_mut(usize::from(ticket.index))?.take()
    }

    /// Does with a frame that came in by `side` as the verdict says.
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
        self.tell(to, fate, extent, buffer, &format!("{verb}: {words}"), out);
    }

    /// Tells of the engine's own segments.
    fn tell_emitted(&mut self, why: &str, events: &str, out: &mut impl FnMut(&Outcome)) {
        for (to, mut bytes) in std::mem::take(&mut self.emitted) {
            self.summary.emitted += 1;
            let extent = Extent { start: 0, len: bytes.len(), total: bytes.len() };
            let said = said(to.other(), &mut bytes, extent);
            self.tell(to, Fate::Sent, extent, &bytes, &format!("emit: {said}{events}, {why}"), out);
        }
    }

    fn tell(
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

/// What was counted in between, in brackets; nothing of what is counted for every segment.
fn events(before: &Counters, after: &Counters) -> String {
    let mut words = String::new();
    for &event in Event::ALL {
        let plain = matches!(event, Event::LanSegment | Event::WanSegment);
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

/// What a frame that came in by `side` says, in a few words.
fn said(side: Side, buffer: &mut [u8], extent: Extent) -> String {
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
        Parsed::Other => "no TCP".into(),
        Parsed::Bad(_) => "no sound frame".into(),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("frames from the LAN", self.frames[Side::Lan], true),
            ("frames from the WAN", self.frames[Side::Wan], true),
            ("of these cut by their capture", self.cut, false),
            ("forwarded", self.forwarded, true),
            ("reflected", self.reflected, true),
            ("held", self.held, false),
            ("released", self.released, false),
            ("dropped", self.dropped, true),
            ("segments of the box's own", self.emitted, true),
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

/// How the frames of a file tell which port they came in by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// All of them by this one.
    Port(Side),
    /// By the name of their interface: these are the LAN's and the WAN's.
    Interfaces(PerSide<Vec<String>>),
    /// By their addresses: those of hosts in these networks come from the LAN, and those to them from the WAN.
    Networks(Vec<Network>),
}

/// Why a frame of a capture is not replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// The box had sent it.
    Outbound,
    /// Nothing tells which port it came in by.
    Unknown,
}

impl Origin {
    /// By which port a frame came in; `interface` is the name of that it was captured at.
    ///
    /// # Errors
    /// When it did not come in, or nothing tells where.
    pub fn side(&self, record: &Record, interface: &str) -> Result<Side, Skipped> {
        let came = if record.direction == Some(Direction::Outbound) { Err(Skipped::Outbound) } else { Ok(()) };
        match self {
            Origin::Port(side) => came.map(|()| *side),
            Origin::Interfaces(names) => {
                let is_named = |side: &Side| names[*side].iter().any(|known| known == interface);
                let side = Side::BOTH.into_iter().find(is_named).ok_or(Skipped::Unknown)?;
                came.map(|()| side)
            }
            // Whoever captured on one of the cables saw both directions there.
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

/// A network, as 10.0.0.0/8 or fd00::/8; a host, without a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    length: u32,
}

impl Network {
    /// Whether the address is one of its.
    pub fn contains(&self, address: IpAddr) -> bool {
        let differ = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(a.to_bits() ^ b.to_bits()) << 96,
            (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() ^ b.to_bits(),
            _ => return false,
        };
        differ.leading_zeros() >= self.length
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let refuse = || format!("`{text}` is no network; write it as 10.0.0.0/8 or fd00::/8");
        let address: IpAddr = address.parse().map_err(|_| refuse())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Ok(most), str::parse).map_err(|_| refuse())?;
        if length > most { Err(refuse()) } else { Ok(Self { address, length }) }
    }
}

/// The addresses of a frame: IPv4, IPv6 or ARP, behind up to two tags.
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
    fn networks_hold_their_hosts() {
        let network = |text: &str| text.parse::<Network>().unwrap();
        let has = |text: &str, host: &str| network(text).contains(host.parse().unwrap());
        assert!(has("10.0.0.0/8", "10.255.0.1") && !has("10.0.0.0/8", "11.0.0.1"));
        assert!(has("0.0.0.0/0", "11.0.0.1") && !has("0.0.0.0/0", "::1"));
        assert!(has("fd00::/8", "fdff::1") && !has("fd00::/8", "fe80::1"));
        assert!(has("10.0.0.1", "10.0.0.1") && !has("10.0.0.1", "10.0.0.2"));
        for wrong in ["", "10.0.0.0/33", "10.0.0.0/-1", "fd00::/129", "10.0.0/8", "x/8"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_frame_tells_its_side_by_its_file_its_interface_or_its_addresses() {
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
