//! The wire oracle: stands at every host's cable and judges each segment about to be received.
//!
//! It knows what each host has sent and nothing of what happens in between. A connection through the box should be
//! indistinguishable from one without it, so every number that reaches a host must be one that the host, or its real
//! peer, can account for: in positions of the byte stream, where the two sides' sequence numbers mean the same.

pub mod icmp;
pub mod layers;
#[cfg(test)]
mod tests;
pub mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use layers::{Tag, Tags, networks};
use wire::told;
pub use wire::{CE, Counters, Layout, Mode, Options, Segment};

/// The byte at `offset` of the stream from `source` to `destination`, as every application of the world writes it.
///
/// Neighbouring and distant bytes differ, so that a shifted or repeated payload shows. What goes to a port in [`SERVED`] begins with a request.
pub fn pattern(source: SocketAddr, destination: SocketAddr, offset: u64) -> u8 {
    if SERVED.contains(&destination.port())
        && let Some(byte) = request(destination, offset)
    {
        return byte;
    }
    let ends = u64::from(source.port()) << 16 | u64::from(destination.port());
    let mut word = (offset >> 3).wrapping_add(ends.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (word >> ((offset & 7) * 8)) as u8
}

/// The ports of the LAN whose clients reach them by a service of the box.
pub const SERVED: [u16; 2] = [86, 87];
/// What they ask for, but for the number of the host.
pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: l0.example\r\n\r\n";
/// Where that is.
const NUMBER: usize = 23;

/// The byte at `offset` of what a client of a service sends first to this server.
pub fn request(server: SocketAddr, offset: u64) -> Option<u8> {
    let last = match server.ip() {
        std::net::IpAddr::V4(address) => address.octets()[3],
        std::net::IpAddr::V6(address) => address.octets()[15],
    };
    let at = usize::try_from(offset).ok()?;
    REQUEST.get(at).map(|&byte| if at == NUMBER { b'0' + last % 10 } else { byte })
}

/// Why a segment must not reach its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Which rule is broken.
    pub rule: Rule,
    /// The segment and the numbers that contradict it.
    pub detail: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.detail)
    }
}

/// What every segment about to be received must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Checksums are right, and a segment corrupted on the way keeps a wrong one.
    Checksum,
    /// Options can be read to their end.
    Options,
    /// A SYN, an answer or a segment comes only where a host sent one.
    Origin,
    /// Options of a SYN or SYN-ACK are among those offered.
    Offer,
    /// The answer is not larger than the question was on the wire.
    Amplification,
    /// The acknowledgement covers only what was sent and has been acknowledged by the real peer.
    Acknowledgement,
    /// SACK blocks are those the real peer reported, in this host's numbers.
    Sack,
    /// TSecr echoes a TSval of this host, or is zero; that of the SYN-ACK, where the host keeps nothing else of its terms.
    TimestampEcho,
    /// TSval is the real peer's, shifted by one constant, and never behind the handshake's.
    TimestampValue,
    /// Timestamps are on every segment but RST once negotiated, and on none otherwise.
    TimestampPresence,
    /// The right edge of the window is one the real peer has promised; closed windows stay closed, open ones open.
    Window,
    /// Sequence numbers lie within what the real peer has sent.
    Sequence,
    /// A segment with data fits what the receiver announced (RFC 6691: options count).
    Size,
    /// Every payload byte is the one the peer's application wrote at that place.
    Payload,
    /// FIN stands where the peer put it.
    Fin,
    /// A reset has a cause, and a number the receiver accepts.
    Reset,
    /// No ECN flag or codepoint reaches a host that the peer has not sent (RFC 3168), and a count of marks is the peer's, or that of the marks
    /// which came to the box where the peer does not count (RFC 9768). Counters of bytes are the peer's, in the very segment that had them.
    Congestion,
    /// An ICMP error quotes its receiver's own segment, in its receiver's own numbers, and is summed up rightly.
    Quote,
    /// What surrounds a segment that passes the box (stations, tags, IP header and options) stays as it was.
    Surroundings,
    /// What the box says in a host's name has a hop limit and a class of that host's segments (RFC 5082, RFC 2474).
    Voice,
}

/// What a frame was when it entered the box, if it is the same segment that leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// SYN flag.
    pub syn: bool,
    /// RST flag.
    pub rst: bool,
    /// Window field.
    pub window: u16,
    /// TSval and TSecr.
    pub stamps: Option<(u32, u32)>,
    /// Bytes of payload.
    pub payload: usize,
    /// Sender.
    pub source: SocketAddr,
    /// Whether an off-path attacker made it, from whatever address.
    pub forged: bool,
    /// Whether it was the first of several fragments.
    pub fragmented: bool,
    /// ECE and CWR flags.
    pub echoes: (bool, bool),
    /// Those and AE as a number.
    pub ace: u8,
    /// The AccECN option.
    pub counters: Option<Counters>,
    /// The congestion field of its IP header.
    pub ecn: u8,
    /// [`Layers::surroundings`](layers::Layers::surroundings).
    pub surroundings: u64,
}

impl From<&Segment<'_>> for Ancestor {
    fn from(segment: &Segment<'_>) -> Self {
        Self {
            syn: segment.syn,
            rst: segment.rst,
            window: segment.window,
            stamps: segment.options.stamps,
            payload: segment.payload.len(),
            source: segment.source,
            forged: false,
            fragmented: false,
            echoes: (segment.ece, segment.cwr),
            ace: segment.ace(),
            counters: segment.options.counters,
            ecn: segment.ecn,
            surroundings: segment.surroundings,
        }
    }
}

/// Hop limits and classes.
#[derive(Clone, Debug, Default)]
struct Voice {
    hops: BTreeSet<u8>,
    classes: BTreeSet<u8>,
}

impl Voice {
    fn note(&mut self, hops: u8, class: u8) {
        self.hops.insert(hops);
        self.classes.insert(class);
    }
}

/// What the box can know of an end by a segment that it has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    source: SocketAddr,
    destination: SocketAddr,
    seq: u32,
    syn: bool,
    answers: bool,
    hops: u8,
    class: u8,
    tags: Tags,
    /// Whether a bit of it was turned over, and whether an off-path attacker made it.
    corrupt: bool,
    forged: bool,
}

impl Taken {
    /// What this frame says, if it is a segment; a damaged one of which no checksum tells is one.
    pub fn read(frame: &[u8], corrupt: bool, forged: bool) -> Option<Self> {
        let segment = Segment::read(frame).filter(Segment::sums_right)?;
        let Segment { source, destination, seq, syn, hops, class, tags, .. } = segment;
        let answers = segment.ack.is_some();
        Some(Self { source, destination, seq, syn, answers, hops, class, tags, corrupt, forged })
    }
}

/// What one host has sent and received in one connection. Positions are counted from the SYN, which is 0.
#[derive(Clone, Debug, Default)]
struct End {
    isn: Option<u32>,
    offer: Options,
    /// Frame length of the SYN, as on the wire.
    syn_len: usize,
    /// Whether the host opened the connection.
    active: bool,
    /// What its SYNs asked for, and what it goes on with: by the first SYN-ACK that arrived here, or that it sent.
    wanted: Mode,
    mode: Option<Mode>,
    /// The congestion fields its SYNs or SYN-ACKs left with, and the three flags of what else it has sent.
    syn_fields: BTreeSet<u8>,
    aces: BTreeSet<u8>,
    /// How many of its segments have left the box that had come there with a mark; and whether some came in fragments, of which any may bear it.
    marks: u64,
    fragments: bool,
    /// Whether it had another with the same ends before.
    again: bool,
    peer_isn: Option<u32>,
    peer_offer: Options,
    /// SYNs that reached the host before it chose one, with their three flags.
    offered: Vec<(u32, Options, u8)>,
    /// One past the last position sent.
    edge: i64,
    /// The highest position of the peer acknowledged; 0 before the first.
    acked: i64,
    /// The highest position of its own whose acknowledgement has come.
    peer_acked: i64,
    /// The highest right edge promised to the peer.
    granted: i64,
    /// The lowest right edge promised to it since the SYN-ACK.
    least_granted: Option<i64>,
    /// The right edge that the accepted SYN-ACK promised to this host.
    opened: i64,
    fin: Option<i64>,
    blocks: BTreeSet<(i64, i64)>,
    stamps: BTreeSet<u32>,
    /// Those of its SYN-ACKs, and whether one of them has come back.
    answer_stamps: BTreeSet<u32>,
    echoed: bool,
    /// Hop limits and classes of what it has sent.
    voice: Voice,
    /// A SYN-ACK of it has come to the box.
    answered: bool,
    /// Positions where a keepalive carried a byte that is none of the stream's.
    garbage: BTreeSet<i64>,
    reset: bool,
    /// The distance between the peer's TSval and the one that arrives here.
    drift: Option<u32>,
    /// Segments received in a row that lie wholly below what this host has acknowledged.
    stale: u32,
    /// The position the peer asks for, and how often it has while this host sent nothing there.
    asked: (i64, u32),
    /// Segments this host has sent, and how many have left the box for its peer, since [`Oracle::calm`].
    said: (u64, u64),
    /// TSval of the SYN-ACK accepted.
    first_stamp: Option<u32>,
    /// The first number and the end of what it sent before it was woken by a SYN, if it was.
    before: Option<(u32, i64)>,
    /// The latest TSval received, and that of the connection before between the same ends.
    last_stamp: Option<u32>,
    /// When that came, by the world's clock in microseconds.
    stamped_at: u64,
    former_stamp: Option<u32>,
}

impl End {
    /// What it has agreed on about congestion marks.
    fn mode(&self) -> Mode {
        self.mode.unwrap_or_default()
    }

    fn stamped(&self) -> bool {
        self.offer.stamps.is_some() && self.peer_offer.stamps.is_some()
    }

    /// The shift of this host's own windows, as it understands the negotiation.
    fn own_shift(&self) -> u8 {
        if self.peer_offer.scale.is_some() { self.offer.scale.unwrap_or(0).min(14) } else { 0 }
    }

    /// The shift this host applies to windows it receives.
    fn peer_shift(&self) -> u8 {
        if self.offer.scale.is_some() { self.peer_offer.scale.unwrap_or(0).min(14) } else { 0 }
    }
}

/// Distance on the circle of sequence numbers, signed.
fn position(number: u32, isn: u32) -> i64 {
    i64::from(number.wrapping_sub(isn) as i32)
}

/// What stands between the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// A cable or a bridge: nothing is answered on behalf of others.
    Bridge,
    /// The proxy: connections to a host that `protects` names are answered by the box first.
    Proxy,
}

/// Judges every segment about to be received.
#[derive(Clone, Debug)]
pub struct Oracle {
    between: Between,
    ends: BTreeMap<(SocketAddr, SocketAddr), End>,
    /// Addresses behind the box.
    protected: BTreeSet<std::net::IpAddr>,
    /// Pairs (receiver, peer) for which the box may send a reset of its own accord.
    licensed: BTreeSet<(SocketAddr, SocketAddr)>,
    /// Any reset is taken, for worlds whose tables are too small for their connections.
    lenient_resets: bool,
    /// SACK blocks are taken by hosts that never permitted them: so the box is configured.
    retains_sack: bool,
    /// Servers whose options change.
    changing: BTreeSet<SocketAddr>,
    /// Servers that have their terms in the TSval of their SYN-ACK.
    forgetful: BTreeSet<SocketAddr>,
    /// What the box may let clients send before their servers have promised anything.
    early: i64,
    /// What the box may acknowledge and keep of what clients send to a port in [`SERVED`] before their servers have it.
    kept: i64,
    /// Connections, by (opener, opened), whose SYN a bridge has passed before the proxy took over.
    bridged: BTreeSet<(SocketAddr, SocketAddr)>,
    /// Ends that have sent in a connection before the present one.
    forgotten: BTreeSet<(SocketAddr, SocketAddr)>,
    /// Whether the box may ask the hosts whether they know a connection.
    adopts: bool,
    /// Whether the box may try ports again by clients' own SYNs, and which SYNs have passed so: to which server, by which client, when.
    retries: bool,
    /// Whether the box passes some connections as a bridge does, and which ones is to be seen by their SYNs.
    passes_some: bool,
    /// Whether an attacker sends segments in the hosts' names.
    attacked: bool,
    retried: Vec<(SocketAddr, SocketAddr, u64)>,
    /// Hosts behind a link that takes only so long packets.
    narrow: BTreeMap<std::net::IpAddr, usize>,
    /// What the SYN-ACKs of hosts that have come to the box had, and the classes of the SYNs, by (sender, receiver), forged ones too.
    shown: BTreeMap<std::net::IpAddr, Voice>,
    asked: BTreeMap<(SocketAddr, SocketAddr), BTreeSet<u8>>,
    /// Whether the box forgets no server, and those that it knows, by their networks.
    remembers: bool,
    known: BTreeSet<(SocketAddr, Vec<Tag>)>,
    judged: u64,
    /// The world's clock in microseconds.
    now: u64,
}

impl Oracle {
    /// An oracle that has seen nothing yet. `protected` are the addresses behind the box.
    pub fn new(between: Between, protected: impl IntoIterator<Item = std::net::IpAddr>) -> Self {
        Self {
            between,
            ends: BTreeMap::new(),
            protected: protected.into_iter().collect(),
            licensed: BTreeSet::new(),
            lenient_resets: false,
            retains_sack: false,
            changing: BTreeSet::new(),
            forgetful: BTreeSet::new(),
            early: 0,
            kept: 0,
            forgotten: BTreeSet::new(),
            bridged: BTreeSet::new(),
            adopts: false,
            retries: false,
            passes_some: false,
            attacked: false,
            retried: Vec::new(),
            narrow: BTreeMap::new(),
            shown: BTreeMap::new(),
            asked: BTreeMap::new(),
            remembers: false,
            known: BTreeSet::new(),
            judged: 0,
            now: 0,
        }
    }

    /// Lets the box reset the connection between these two without either having done so: the server is silent.
    pub fn license_reset(&mut self, one: SocketAddr, other: SocketAddr) {
        self.licensed.insert((one, other));
        self.licensed.insert((other, one));
    }

    /// Lets the box reset any connection: its tables are too small for all of them.
    pub fn license_all_resets(&mut self) {
        self.lenient_resets = true;
    }

    /// Says that this server gives up or takes up timestamps at some time.
    ///
    /// A client that was promised them on the server's earlier options gets them from the box, in segments the server
    /// had sized without.
    pub fn changes_mind(&mut self, server: SocketAddr) {
        self.changing.insert(server);
    }

    /// Says that this server keeps the terms of a connection in the TSval of its SYN-ACK and nowhere else: that must come back.
    pub fn needs_echo(&mut self, server: SocketAddr) {
        self.forgetful.insert(server);
    }

    /// Says that the box forgets nothing of servers that have answered: it has room for all of them, and is not replaced.
    pub fn remember_servers(&mut self) {
        self.remembers = true;
    }

    /// Lets the box promise clients so many bytes before their servers have (an early handshake): it keeps what comes.
    pub fn promise_early(&mut self, window: u16) {
        self.early = window.into();
    }

    /// Lets the box keep so many bytes of what clients of services send, and acknowledge them, before it knows the server.
    pub fn keep_first(&mut self, bytes: u16) {
        self.kept = bytes.into();
    }

    /// Notes that a bridge has passed this SYN: the box does not answer for its receiver.
    pub fn bridge(&mut self, opener: SocketAddr, opened: SocketAddr) {
        self.bridged.insert((opener, opened));
    }

    /// Whether the connection is open in the eyes of both ends.
    pub fn is_open(&self, one: SocketAddr, other: SocketAddr) -> bool {
        let ends = [(one, other), (other, one)].map(|ends| self.ends.get(&ends));
        ends.iter().all(|end| end.is_some_and(|end| end.peer_isn.is_some() && end.peer_acked >= 1))
            && self.ends[&(one, other)].isn == self.ends[&(other, one)].peer_isn
    }

    /// Says that the way from the box to this host takes packets of at most so many bytes.
    pub fn narrow_way(&mut self, host: std::net::IpAddr, mtu: usize) {
        self.narrow.insert(host, mtu);
    }

    /// Lets segments of unknown connections reach a host: the box takes over from a bridge.
    pub fn let_adopt(&mut self) {
        self.adopts = true;
    }

    /// Lets a few SYNs pass to ports that refused or were silent, of any sender: to each server at most one a second of clients of a network that has
    /// proved itself there, and one of others. `attacked` says whether an attacker sends segments in the hosts' names.
    pub fn let_retry(&mut self, attacked: bool) {
        (self.retries, self.attacked) = (true, attacked);
    }

    /// Another process has taken over from the one before, which has kept no more than its connections: it knows of no SYN that passed before.
    pub fn begin_anew(&mut self) {
        self.retried.clear();
    }

    /// Lets connections pass whose SYNs pass: the mode of their server changes.
    pub fn let_pass(&mut self) {
        self.passes_some = true;
    }

    /// Whether a SYN of this client has passed to this server so, its own or one in its name.
    pub fn is_retried(&self, client: SocketAddr, server: SocketAddr) -> bool {
        self.retries && self.bridged.contains(&(client, server))
    }

    /// Judges a SYN that passes unchanged to a server, and lets its connection pass as across a bridge.
    fn judge_retry(&mut self, segment: &Segment) -> Result<(), Complaint> {
        const SECOND: u64 = 990_000;
        let (client, server) = (segment.source, segment.destination);
        if !self.proxied(client, server) {
            return Ok(());
        }
        let lately = |&&(to, from, at): &&(SocketAddr, SocketAddr, u64)| {
            to == server && from != client && self.now.saturating_sub(at) < SECOND
        };
        // All clients of a world are in one network of each family.
        if self.retried.iter().filter(lately).count() >= 2 {
            let detail = format!("a third SYN that was not answered passes to a server within a second\n  {segment}");
            return Err(Complaint { rule: Rule::Origin, detail });
        }
        self.retried.push((server, client, self.now));
        self.bridged.insert((client, server));
        Ok(())
    }

    /// Lets SACK blocks pass to hosts that never permitted them (`sackconflict=retain`).
    pub fn retain_sack(&mut self) {
        self.retains_sack = true;
    }

    /// Whether a connection stands still although its hosts get all they need.
    ///
    /// smoltcp falls into this in three ways. When both ends repeat their data at once, each throws away the
    /// acknowledgement in a segment that lies below its window, and for ever receives what it has already. And when
    /// the byte of a window probe is lost, the sender may take it for sent and never repeat it, however often it is
    /// asked. And one that repeats one segment a time-out, restarts its time-out with whatever it receives, or fills the
    /// queue of a narrow cable with a whole window at once, time-out after time-out, does not come to an end in minutes
    /// although the box passes all it sends. Nothing between the two can help them.
    pub fn deadlocked(&self, one: SocketAddr, other: SocketAddr) -> bool {
        let ends = [(one, other), (other, one)].map(|ends| self.ends.get(&ends));
        ends.iter().all(|end| end.is_some_and(|end| end.stale >= 4))
            || ends.iter().any(|end| end.is_some_and(|end| end.asked.1 >= 4))
            || ends.iter().all(|end| end.is_some_and(|end| end.said.0 >= 8 && end.said.1 + 1 >= end.said.0))
    }

    /// From now on the box must pass everything.
    pub fn calm(&mut self) {
        for end in self.ends.values_mut() {
            end.said = (0, 0);
        }
    }

    /// Takes note of a segment that the box has taken.
    pub fn took(&mut self, taken: &Taken) {
        let &Taken { source, destination, hops, class, .. } = taken;
        if taken.syn && !taken.answers {
            self.asked.entry((source, destination)).or_default().insert(class);
        }
        if taken.forged {
            return;
        }
        let is_answer = taken.syn && taken.answers;
        if is_answer {
            self.shown.entry(source.ip()).or_default().note(hops, class);
            // One that comes to a client which has reset the connection teaches nothing.
            let is_reset = self.ends.get(&(destination, source)).is_some_and(|end| end.reset);
            if self.remembers && !is_reset && self.proxied(destination, source) {
                self.known.insert((source, networks(taken.tags)));
            }
        }
        let Some(end) = self.ends.get_mut(&(source, destination)) else { return };
        end.answered |= is_answer && end.isn == Some(taken.seq);
        if taken.corrupt {
            // Of an IPv6 header nobody can tell.
            end.voice.note(hops, class);
        }
    }

    /// Takes note of a packet that has left the box, whole or with its last fragment.
    pub fn left(&mut self, packet: &[u8]) {
        if let Some(segment) = Segment::read(packet)
            && let Some(end) = self.ends.get_mut(&(segment.source, segment.destination))
        {
            end.said.1 += 1;
        }
    }

    /// Takes note of what leaves the box. Judges the hop limit and the class of what the box says in a host's name, by what it can know by now, and
    /// the count of marks where that is the box's own: a peer of another kind does not count.
    ///
    /// # Errors
    /// It has another hop limit or class than that host's, or the count is not that of the marks which came.
    pub fn passed(&mut self, frame: &[u8], corrupt: bool, ancestor: Option<Ancestor>) -> Result<(), Complaint> {
        if let Some(ancestor) = ancestor.filter(|ancestor| ancestor.fragmented) {
            let ends = self.ends.iter_mut().filter(|((source, _), _)| *source == ancestor.source);
            ends.for_each(|(_, end)| end.fragments = true);
        }
        let Some(segment) = Segment::read(frame) else { return Ok(()) };
        let is_same = ancestor.is_some_and(|ancestor| ancestor.syn && ancestor.source == segment.source);
        if self.passes_some && is_same && segment.syn && segment.ack.is_none() {
            self.bridged.insert((segment.source, segment.destination));
        } else if self.passes_some && ancestor.is_none() && segment.syn && segment.ack.is_some() {
            self.bridged.remove(&(segment.destination, segment.source));
        } else if self.retries && is_same && segment.syn && segment.ack.is_none() {
            self.judge_retry(&segment)?;
        }
        if !corrupt {
            self.judge_voice(&segment, ancestor)?;
        }
        let passes = ancestor.filter(|ancestor| !ancestor.syn && !ancestor.forged && ancestor.source == segment.source);
        if let Some(end) = self.ends.get_mut(&(segment.source, segment.destination)) {
            end.marks += u64::from(!corrupt && passes.is_some_and(|ancestor| ancestor.ecn == CE));
            if corrupt && passes.is_some() {
                // The box does not add up each segment, so this may be the last it has seen of that end.
                end.voice.note(segment.hops, segment.class);
            }
        }
        let ends = [(segment.destination, segment.source), (segment.source, segment.destination)];
        let [Some(end), Some(peer)] = ends.map(|ends| self.ends.get(&ends)) else { return Ok(()) };
        let forged = ancestor.is_some_and(|ancestor| ancestor.forged);
        let joins = end.mode() == Mode::Accurate && peer.mode.is_some_and(|mode| mode != Mode::Accurate);
        if !joins
            || corrupt
            || forged
            || end.fragments
            || end.again
            || peer.again
            || segment.syn
            || segment.rst
            || segment.ack.is_none()
        {
            return Ok(());
        }
        // A server's own SYN-ACK may have come with a mark, which counts once; and the acknowledgement of one tells the field that came with it.
        let first = !end.active && end.syn_fields.iter().any(|&field| field != 0);
        let opens = !end.active && end.peer_acked <= 1;
        let ace = u64::from(segment.ace());
        let counted = [end.marks, end.marks + u64::from(first)].iter().any(|marks| (5 + marks) % 8 == ace);
        if counted || opens && ancestor.is_none() && (ace == 2 || first && ace == 6) {
            return Ok(());
        }
        let detail = format!("{} marks have come to the box from its receiver\n  {segment}", end.marks);
        Err(Complaint { rule: Rule::Congestion, detail })
    }

    /// Judges the hop limit and the class of what comes in a host's name and not from it.
    fn judge_voice(&self, segment: &Segment, ancestor: Option<Ancestor>) -> Result<(), Complaint> {
        let (receiver, sender) = (segment.destination, segment.source);
        // A client's acknowledgement becomes the SYN to its server, and a SYN-ACK the update that opens the window.
        let is_image = ancestor.is_some_and(|ancestor| {
            let is_same = (ancestor.syn, ancestor.rst) == (segment.syn, segment.rst);
            ancestor.source == sender && is_same || ancestor.forged
        });
        if is_image || self.attacked && (self.is_retried(receiver, sender) || self.is_retried(sender, receiver)) {
            return Ok(());
        }
        let (none, silent) = (End::default(), Voice::default());
        let [end, peer] = [(receiver, sender), (sender, receiver)].map(|ends| self.ends.get(&ends).unwrap_or(&none));
        let from_server = self.is_inward(receiver, sender);
        // What is known of a server from its other connections.
        let shown = self.shown.get(&sender.ip()).filter(|_| from_server).unwrap_or(&silent);
        let (hops, class) = (segment.hops, segment.class);
        let unknown = !peer.active && !peer.answered;
        // The SYN-ACK of a service is the box's, whichever server is chosen, and so is what it says to a client whose connection it has forgotten.
        let is_served = from_server && self.kept > 0 && SERVED.contains(&sender.port());
        let is_own = segment.syn || segment.rst && (unknown || segment.ack.is_none());
        if is_served && hops == SERVICE_HOPS && is_own {
            return Ok(());
        }
        // Until its server has answered, the box speaks for it with the largest hop limit, which no receiver takes for too low. What it says of no
        // connection is by what it knows of the server; of a client it then knows nothing.
        let forgotten = from_server && (segment.syn || segment.rst) || self.is_inward(sender, receiver) && segment.rst;
        let is_known = !is_served && self.known.contains(&(sender, networks(segment.tags)));
        let has_hops = peer.voice.hops.contains(&hops)
            || shown.hops.contains(&hops)
            || hops == u8::MAX && (unknown || forgotten) && !is_known;
        let is_syn = segment.syn && segment.ack.is_none();
        // A server may answer with the class of the SYN, and a reset has that of what it answers.
        let reflects = !is_syn && (unknown || forgotten) || segment.rst;
        let asked = self.asked.get(&(receiver, sender)).is_some_and(|asked| asked.contains(&class));
        let has_class = peer.voice.classes.contains(&class)
            || shown.classes.contains(&class)
            || reflects && (asked || end.voice.classes.contains(&class))
            // Before a service knows the server, its class is nobody's.
            || is_served && unknown && hops == u8::MAX;
        if has_hops && has_class {
            return Ok(());
        }
        let detail = format!(
            "hop limit {hops} and class {class}, where the peer has {:?}, and {:?} in other SYN-ACKs\n  {segment}",
            peer.voice, shown
        );
        Err(Complaint { rule: Rule::Voice, detail })
    }

    /// Says what time it is, in microseconds.
    pub fn set_time(&mut self, now: u64) {
        self.now = now;
    }

    /// How many segments have been judged.
    pub fn judged(&self) -> u64 {
        self.judged
    }

    /// Whether TCP between these two passes a box that answers for the receiver of the SYN.
    fn proxied(&self, client: SocketAddr, server: SocketAddr) -> bool {
        self.is_inward(client, server) && !self.bridged.contains(&(client, server))
    }

    /// Whether there is a proxy between the two, with the second behind it.
    fn is_inward(&self, client: SocketAddr, server: SocketAddr) -> bool {
        self.between == Between::Proxy
            && self.protected.contains(&server.ip())
            && !self.protected.contains(&client.ip())
    }

    /// Takes note of what a host puts on its cable.
    pub fn sent(&mut self, frame: &[u8]) {
        let Some(segment) = Segment::read(frame) else { return };
        let opens_again = segment.syn && segment.ack.is_none() && {
            let end = self.ends.get(&(segment.source, segment.destination));
            end.and_then(|end| end.isn).is_some_and(|isn| isn != segment.seq)
        };
        if opens_again {
            // What the peer sent in the connection before means nothing in this one.
            self.ends.remove(&(segment.destination, segment.source));
            self.forgotten.insert((segment.destination, segment.source));
        }
        let end = self.ends.entry((segment.source, segment.destination)).or_default();
        end.again |= opens_again;
        end.said.0 += 1;
        if segment.rst {
            end.reset = true;
            // Who acknowledges an answer has got it: a reset proves as much as any other segment.
            end.acked = end.acked.max(i64::from(segment.ack.is_some()));
            return;
        }
        if segment.syn {
            if end.isn != Some(segment.seq) {
                let offered = std::mem::take(&mut end.offered);
                let (again, reset, former_stamp) = (end.again, end.reset, end.last_stamp);
                let before = end.isn.map(|isn| (isn, end.edge));
                *end = End {
                    before,
                    former_stamp,
                    isn: Some(segment.seq),
                    offered,
                    active: segment.ack.is_none(),
                    again,
                    reset,
                    ..End::default()
                };
            }
            end.syn_len = end.syn_len.max(segment.frame_len);
            end.offer = segment.options;
            end.syn_fields.insert(segment.ecn);
            if let (false, Some(ack)) = (end.active, segment.ack) {
                let isn = ack.wrapping_sub(1);
                end.peer_isn = Some(isn);
                let chosen = end.offered.iter().rev().filter(|(seq, ..)| *seq == isn);
                if let Some((_, options, _)) = chosen.clone().next() {
                    end.peer_offer = *options;
                }
                // A server may still hold an older SYN than the last.
                let asked = chosen.map(|(.., ace)| Mode::asked(*ace)).max().unwrap_or(Mode::Accurate);
                end.mode = end.mode.or(Some(asked.agreed(segment.ace())));
            } else {
                end.wanted = end.wanted.max(Mode::asked(segment.ace()));
            }
        } else {
            end.aces.insert(segment.ace());
        }
        let Some(isn) = end.isn else { return };
        let here = position(segment.seq, isn);
        let shift = if segment.syn { 0 } else { end.own_shift() };
        let acked = match (segment.ack, end.peer_isn) {
            (Some(ack), Some(peer_isn)) => position(ack, peer_isn),
            // A first SYN promises from the first byte on, whatever its number will be.
            _ => 1,
        };
        if segment.ack.is_some() {
            end.acked = end.acked.max(acked);
        }
        let granted = acked + (i64::from(segment.window) << shift);
        end.granted = end.granted.max(granted);
        end.least_granted = match segment.syn {
            true => segment.ack.map(|_| granted),
            false => end.least_granted.map(|least| least.min(granted)),
        };
        if let Some((value, _)) = segment.options.stamps {
            end.stamps.insert(value);
            if segment.syn && segment.ack.is_some() {
                end.answer_stamps.insert(value);
            }
        }
        end.voice.note(segment.hops, segment.class);
        if let Some(peer_isn) = end.peer_isn {
            for (left, right) in segment.options.blocks() {
                end.blocks.insert((position(left, peer_isn), position(right, peer_isn)));
            }
        }
        if here <= end.asked.0 && end.asked.0 < here + i64::from(segment.length()) {
            end.asked.1 = 0;
        }
        let old_edge = end.edge;
        end.edge = end.edge.max(here + i64::from(segment.length()));
        if segment.fin {
            end.fin = Some(here + segment.payload.len() as i64);
        }
        if let ([byte], true) = (segment.payload, here < old_edge) {
            let written = pattern(segment.source, segment.destination, (here - 1).max(0) as u64);
            if here < 1 || *byte != written {
                end.garbage.insert(here);
            }
        }
    }

    /// Judges an ICMP error a host is about to receive.
    ///
    /// # Errors
    /// What it quotes is none of the host's, or a checksum is wrong.
    pub fn complained(&mut self, error: &icmp::Error) -> Result<(), Complaint> {
        self.judged += 1;
        let complain = |why: String| Err(Complaint { rule: Rule::Quote, detail: format!("{why}\n  {error:?}") });
        if !error.sums_right {
            return complain("a checksum of the error is wrong".into());
        }
        if error.tcp_sum_right == Some(false) {
            return complain("the quoted segment's checksum is wrong".into());
        }
        if error.source.ip() != error.receiver {
            return complain("the quoted segment is another host's".into());
        }
        let Some(end) = self.ends.get(&(error.source, error.destination)) else {
            return match self.forgotten.contains(&(error.source, error.destination)) {
                true => Ok(()),
                false => complain("the host has sent nothing there".into()),
            };
        };
        // What is quoted may be of the connection before.
        let (Some(isn), false) = (end.isn, end.again || self.lenient_resets) else { return Ok(()) };
        let here = position(error.seq(), isn);
        // As every kernel has it, the next number counts as in flight (RFC 5927 section 4.1): what was a SYN that the
        // client knows to be acknowledged, stands there.
        if here < 0 || here > end.edge {
            return complain(format!("quotes position {here} of what the host has sent up to {}", end.edge));
        }
        if let (Some(ack), Some(peer_isn)) = (error.ack(), end.peer_isn) {
            let acked = position(ack, peer_isn);
            if acked < 1 || acked > end.acked {
                return complain(format!("quotes an acknowledgement of {acked}, the host's last is {}", end.acked));
            }
        }
        let stamps = error.tcp.get(12).and_then(|offset| stamps_of(error.tcp.get(20..usize::from(offset >> 4) * 4)?));
        match stamps {
            // Those that a host does not use were inserted by the box.
            Some((value, _)) if end.offer.stamps.is_some() && !end.stamps.contains(&value) => {
                complain(format!("quotes a TSval of {value}"))
            }
            _ => Ok(()),
        }
    }

    /// Judges what a host is about to receive, then lets it know.
    ///
    /// `corrupt` says that a bit of this copy was turned over on its way; `ancestor`, what the frame was when it
    /// entered the box, unless the box made it.
    ///
    /// # Errors
    /// The first rule the segment breaks.
    pub fn delivered(&mut self, frame: &[u8], corrupt: bool, ancestor: Option<Ancestor>) -> Result<(), Complaint> {
        let Some(segment) = Segment::read(frame) else { return Ok(()) };
        self.judged += 1;
        let complain = |rule, why: String| Err(Complaint { rule, detail: format!("{why}\n  {segment}") });
        if corrupt {
            if segment.sums_right() {
                return complain(Rule::Checksum, "a corrupted segment carries right checksums".into());
            }
            return Ok(());
        }
        if !segment.sums_right() {
            return complain(Rule::Checksum, "a checksum is wrong".into());
        }
        if !segment.options_sound {
            return complain(Rule::Options, "the options cannot be read".into());
        }
        let (receiver, sender) = (segment.destination, segment.source);
        let said = ancestor.filter(|ancestor| ancestor.source == sender).and_then(|ancestor| ancestor.counters);
        if segment.options.counters != said {
            return complain(Rule::Congestion, format!("the AccECN option was {said:?} when it came to the box"));
        }
        if self.attacked && (self.is_retried(receiver, sender) || self.is_retried(sender, receiver)) {
            // An attacker's segments pass there, and the hosts answer them, as over a cable.
            return Ok(());
        }
        let licensed = self.lenient_resets || self.licensed.contains(&(receiver, sender));
        let peer = self.ends.get(&(sender, receiver)).cloned().unwrap_or_default();
        let from_server = self.proxied(receiver, sender);
        let from_client = self.proxied(sender, receiver);
        // A connection that began across a bridge may be answered by the box when its SYN is repeated.
        let across = self.bridged.contains(&(receiver, sender)) || self.bridged.contains(&(sender, receiver));
        let kept = if from_server && SERVED.contains(&sender.port()) { self.kept } else { 0 };
        let early = if from_server || across { self.early } else { 0 }.max(kept);
        let now = self.now;
        let end = self.ends.entry((receiver, sender)).or_default();

        if ancestor.is_some_and(|ancestor| ancestor.forged) {
            // Without the box it would arrive as well, and on connections that the box only watches it may.
            return match from_client && !end.active {
                true => complain(Rule::Origin, "an off-path attacker's segment reaches a protected host".into()),
                false => Ok(()),
            };
        }
        if segment.rst {
            return judge_reset(&segment, end, &peer, licensed);
        }
        if segment.syn && segment.ack.is_none() {
            if peer.isn.is_none() {
                return complain(Rule::Origin, "a SYN that its source never sent".into());
            }
            if from_client && peer.acked < 1 {
                return complain(Rule::Origin, "the server gets a SYN for a client that has proved nothing".into());
            }
            judge_offer(&segment, &peer.offer, Some(&peer.offer))?;
            if let Some((_, echo)) = segment.options.stamps
                && echo != 0
            {
                return complain(Rule::TimestampEcho, format!("a SYN echoes {echo}"));
            }
            if !segment.payload.is_empty() {
                return complain(Rule::Payload, "a SYN carries data".into());
            }
            if 1 + i64::from(segment.window) > peer.granted {
                return complain(Rule::Window, format!("the client promised up to {}", peer.granted));
            }
            let is_lawful = match ancestor.filter(|ancestor| ancestor.syn && ancestor.source == sender) {
                // What the client's own SYN asks for, be it by a reserved combination.
                Some(ancestor) => segment.ace() == ancestor.ace,
                None => matches!(segment.ace(), 0 | 3 | 7) && Mode::asked(segment.ace()) <= peer.wanted,
            };
            if !is_lawful {
                return complain(Rule::Congestion, "a SYN asks for ECN, which the client never did, or not so".into());
            }
            if segment.ecn != 0 && !ancestor.is_some_and(|ancestor| ancestor.syn && ancestor.ecn != 0) {
                return complain(Rule::Congestion, "a SYN is marked as capable".into());
            }
            end.offered.push((segment.seq, segment.options, segment.ace()));
            return Ok(());
        }
        let Some(isn) = end.isn else {
            // A host that never took part answers with a reset; the box must not let it come to that, unless it cannot
            // know better yet.
            if self.adopts {
                return Ok(());
            }
            return complain(Rule::Origin, "a segment of a connection this host never took part in".into());
        };
        let Some(ack) = segment.ack else {
            return complain(Rule::Acknowledgement, "no ACK flag".into());
        };
        let acked = position(ack, isn);
        if end.again && end.peer_isn.is_none() && !segment.syn && segment.payload.is_empty() {
            // RFC 5961 section 4: who takes the old connection to be alive challenges the new SYN.
            return Ok(());
        }
        if !end.active && end.before.is_some_and(|(isn, edge)| (1..=edge).contains(&position(ack, isn))) {
            // A late copy of the connection before, which the end woken by a late SYN is no part of.
            return Ok(());
        }
        if acked < 1 || acked > end.edge {
            return complain(
                Rule::Acknowledgement,
                format!("acknowledges position {acked}, but this host has sent up to {}", end.edge),
            );
        }
        if acked > peer.acked.max(1).max(1 + kept) {
            return complain(
                Rule::Acknowledgement,
                format!("acknowledges position {acked}, but the peer has acknowledged only {}", peer.acked),
            );
        }
        end.peer_acked = end.peer_acked.max(acked);
        if let Some((_, echo)) = segment.options.stamps
            && echo != 0
            && !end.stamps.contains(&echo)
        {
            return complain(Rule::TimestampEcho, format!("echoes {echo}, which this host never sent"));
        }
        if self.forgetful.contains(&receiver) && !end.active && !end.echoed && !end.answer_stamps.is_empty() {
            let echo = segment.options.stamps.map(|(_, echo)| echo);
            end.echoed = echo.is_some_and(|echo| end.answer_stamps.contains(&echo));
            if !end.echoed {
                let why = format!("echoes {echo:?}, where this host has its terms in {:?}", end.answer_stamps);
                return complain(Rule::TimestampEcho, why);
            }
        }

        if segment.syn {
            if from_server && segment.frame_len > end.syn_len.max(60) {
                return complain(Rule::Amplification, format!("{} bytes for {}", segment.frame_len, end.syn_len));
            }
            judge_offer(&segment, &end.offer, peer.isn.is_some().then_some(&peer.offer))?;
            let answer = ancestor.filter(|ancestor| ancestor.syn && ancestor.source == sender && !peer.active);
            let lawful = match (end.wanted, segment.ace()) {
                // What its server says is lawful, be it broken.
                (_, ace) if answer.is_some() => answer.is_some_and(|answer| answer.ace == ace),
                (_, 0) | (Mode::Classic | Mode::Accurate, 1) => true,
                // It tells how a SYN of this host arrived: as it left, or with a mark.
                (Mode::Accurate, ace) => {
                    end.syn_fields.iter().any(|&field| ace == told(field) || field != 0 && ace == 6)
                }
                _ => false,
            };
            if !lawful {
                return complain(Rule::Congestion, "ECN, which this host never asked for, or not so".into());
            }
            if segment.ecn != 0 && !ancestor.is_some_and(|ancestor| ancestor.syn && ancestor.ecn != 0) {
                return complain(Rule::Congestion, "a SYN-ACK is marked as capable".into());
            }
            if !segment.payload.is_empty() {
                return complain(Rule::Payload, "a SYN-ACK carries data".into());
            }
            let promised = if peer.isn.is_some() { peer.granted } else { 1 }.max(1 + early);
            if 1 + i64::from(segment.window) > promised {
                return complain(Rule::Window, format!("no host has promised more than {promised}"));
            }
            if end.active && end.peer_isn.is_none() {
                if segment.options.stamps.is_some_and(|(_, echo)| echo == 0) && !end.stamps.contains(&0) {
                    return complain(Rule::TimestampEcho, "a SYN-ACK does not echo the SYN's TSval".into());
                }
                end.peer_isn = Some(segment.seq);
                end.peer_offer = segment.options;
                end.opened = acked + i64::from(segment.window);
                end.mode = Some(end.wanted.agreed(segment.ace()));
                // RFC 7323 section 5.8 and RFC 6191: within twice the segment lifetime a clock goes on where it was.
                if let (Some((value, _)), Some(former), true) = (segment.options.stamps, end.former_stamp, from_server)
                    // A box that has forgotten that connection shows its cookie's clock, which is up to 8.2 s behind.
                    && (value.wrapping_sub(former) as i32) < -8192
                {
                    return complain(Rule::TimestampValue, format!("TSval was at {former} in the connection before"));
                }
                end.last_stamp = segment.options.stamps.map(|(value, _)| value);
                end.stamped_at = now;
                end.first_stamp = segment.options.stamps.map(|(value, _)| value);
            }
            return Ok(());
        }

        // Before the SYN-ACK (it was lost or overtaken) the numbers of the peer mean nothing here yet.
        let Some(peer_isn) = end.peer_isn else { return Ok(()) };
        if end.reset && peer.before.is_some() {
            // It has reset the connection, and the peer was woken once more by a late SYN: what comes may be of the peer's life before.
            return Ok(());
        }
        let most = self.narrow.get(&receiver.ip()).copied().unwrap_or(usize::MAX);
        judge_stamps(&segment, end, &peer, most, ancestor, now)?;
        let proxied = from_server && end.active || from_client && !end.active;
        judge_congestion(&segment, end, &peer, ancestor, proxied)?;
        if let Some(ancestor) = ancestor
            && !ancestor.syn
            && !ancestor.fragmented
            && ancestor.source == sender
            && ancestor.surroundings != segment.surroundings
        {
            return complain(Rule::Surroundings, "stations, tags or IP header are not what the peer sent".into());
        }

        for (left, right) in segment.options.blocks() {
            let (from, to) = (position(left, isn), position(right, isn));
            if from < 0 || from >= to || to > end.edge {
                return complain(
                    Rule::Sack,
                    format!("block {from}..{to} lies outside what this host has sent, 0..{}", end.edge),
                );
            }
            if !peer.blocks.contains(&(from, to)) {
                return complain(Rule::Sack, format!("the peer never reported {from}..{to}"));
            }
            if !end.offer.sack_permitted && !self.retains_sack {
                return complain(Rule::Sack, "this host never permitted SACK".into());
            }
        }

        let edge = acked + (i64::from(segment.window) << end.peer_shift());
        // What is left of a window where an acknowledgement was raised may be less than one unit of its own scale.
        let unit = if (1..=1 + kept).contains(&acked) && kept > 0 { 1 << peer.own_shift() } else { 0 };
        // An open window smaller than one unit of the scale can be announced as one unit or not at all; and a window that
        // looks closed would stop the sender for good.
        let least = segment.window == 1 && (acked < peer.granted || acked <= kept);
        if edge > peer.granted.max(1 + early) + unit && !least {
            return complain(
                Rule::Window,
                format!("promises up to position {edge}, the peer only up to {}", peer.granted),
            );
        }
        // The box's own window update, in the name of a server that has granted no less than the box promised.
        let is_update = from_server && acked == 1 && ancestor.is_none_or(|ancestor| ancestor.syn);
        if is_update && edge < end.opened && peer.least_granted.is_some_and(|least| least >= end.opened) {
            return complain(
                Rule::Window,
                format!("takes back {} bytes that were promised up to position {}", end.opened - edge, end.opened),
            );
        }
        // Where an acknowledgement is raised to what the box has given already, the window is lowered by as much.
        let is_raised = kept > 0 && segment.window == 0;
        if let Some(ancestor) = ancestor
            && !ancestor.syn
            && ancestor.source == sender
            && (ancestor.window == 0) != (segment.window == 0)
            && !is_raised
        {
            return complain(
                Rule::Window,
                format!("the peer's window field was {}, here it is {}", ancestor.window, segment.window),
            );
        }

        end.asked = match end.asked {
            _ if acked >= end.edge || segment.window == 0 => (acked, 0),
            (place, times) if place == acked => (place, times + 1),
            _ => (acked, 1),
        };
        let here = position(segment.seq, peer_isn);
        let sent = peer.edge.max(1);
        if here < 0 || here + i64::from(segment.length()) > sent {
            return complain(Rule::Sequence, format!("position {here} of what the peer has sent up to {sent}"));
        }
        // What a client may send is announced before anything is known of the server, so only the other direction can be kept.
        let size = segment.payload.len() + segment.options_len;
        let slack = if self.changing.contains(&sender) { 12 } else { 0 };
        let most = usize::from(end.offer.mss.unwrap_or(default_mss(&segment))) + slack;
        if !from_client && !across && !segment.payload.is_empty() && size > most {
            return complain(Rule::Size, format!("data and options take {size} bytes, the receiver's MSS is {most}"));
        }
        if here + i64::from(segment.length()) <= end.acked && here < end.acked {
            end.stale += 1;
        } else {
            end.stale = 0;
        }
        for (offset, byte) in segment.payload.iter().enumerate() {
            let place = here + offset as i64;
            if peer.garbage.contains(&place) && segment.payload.len() == 1 {
                continue;
            }
            if place < 1 || pattern(sender, receiver, (place - 1) as u64) != *byte {
                return complain(Rule::Payload, format!("the byte at position {place} is not the one written there"));
            }
        }
        if segment.fin {
            let place = here + segment.payload.len() as i64;
            if peer.fin != Some(place) {
                return complain(Rule::Fin, format!("FIN at position {place}, the peer's at {:?}", peer.fin));
            }
        }
        Ok(())
    }
}

/// The timestamps among these options.
fn stamps_of(options: &[u8]) -> Option<(u32, u32)> {
    let number = |at: usize| Some(u32::from_be_bytes(options.get(at..at + 4)?.try_into().expect("four bytes")));
    let mut at = 0;
    loop {
        at += match options.get(at)? {
            0 => return None,
            1 => 1,
            8 => return Some((number(at + 2)?, number(at + 6)?)),
            _ => usize::from(*options.get(at + 1)?).max(2),
        };
    }
}

/// The MSS of a SYN without the option (RFC 9293 section 3.7.1).
fn default_mss(segment: &Segment) -> u16 {
    if segment.source.is_ipv6() { 1220 } else { 536 }
}

/// Judges the options of a SYN, or of a SYN-ACK, by what the client `offer`ed and the sender, if it has sent one, `said`.
fn judge_offer(segment: &Segment, offer: &Options, said: Option<&Options>) -> Result<(), Complaint> {
    let complain = |why: String| Err(Complaint { rule: Rule::Offer, detail: format!("{why}\n  {segment}") });
    let got = &segment.options;
    if got.scale.is_some() && offer.scale.is_none() {
        return complain("window scaling was not offered".into());
    }
    if got.scale.is_some_and(|scale| scale > 14) {
        return complain("a window scale beyond 14".into());
    }
    if got.sack_permitted && !offer.sack_permitted {
        return complain("SACK was not offered".into());
    }
    if got.stamps.is_some() && offer.stamps.is_none() {
        return complain("timestamps were not offered".into());
    }
    if got.blocks().next().is_some() {
        return complain("SACK blocks in a SYN".into());
    }
    match got.mss {
        Some(mss) if mss < 48 => complain(format!("an MSS of {mss}")),
        Some(mss) if segment.ack.is_none() && mss > offer.mss.unwrap_or(default_mss(segment)) => {
            complain(format!("an MSS of {mss} where the client announced {:?}", offer.mss))
        }
        None if offer.mss.is_some() && said.is_none_or(|said| said.mss.is_some()) => complain("no MSS".into()),
        _ => Ok(()),
    }
}

/// The hop limit of what a service says by itself.
const SERVICE_HOPS: u8 = 64;

fn judge_stamps(
    segment: &Segment,
    end: &mut End,
    peer: &End,
    narrow: usize,
    ancestor: Option<Ancestor>,
    now: u64,
) -> Result<(), Complaint> {
    let least = default_mss(segment);
    // The largest segment the path is known to carry, by both ends' MSS and its routers' errors.
    let most = usize::from(end.offer.mss.unwrap_or(least).min(peer.peer_offer.mss.unwrap_or(least)));
    let most = most.min(narrow.saturating_sub(if segment.source.is_ipv6() { 60 } else { 40 }));
    let complain = |rule, why: String| Err(Complaint { rule, detail: format!("{why}\n  {segment}") });
    match (segment.options.stamps, end.stamped()) {
        // To a fragment the box cannot add them.
        (None, true) if !peer.stamped() && ancestor.is_some_and(|ancestor| ancestor.fragmented) => Ok(()),
        // The peer has none, and with those of the box the segment would exceed what the path is known to carry.
        (None, true)
            if !peer.stamped()
                && !segment.payload.is_empty()
                && segment.payload.len() + segment.options_len + 12 > most =>
        {
            Ok(())
        }
        (None, true) => complain(Rule::TimestampPresence, "timestamps were negotiated and are missing".into()),
        (Some(_), false) => complain(Rule::TimestampPresence, "timestamps were not negotiated".into()),
        (None, false) => Ok(()),
        (Some((value, echo)), true) => {
            if let Some(first) = end.first_stamp
                && (value.wrapping_sub(first) as i32) < 0
            {
                return complain(Rule::TimestampValue, format!("TSval {value} lies behind the SYN-ACK's {first}"));
            }
            let step = value.wrapping_sub(end.last_stamp.unwrap_or(value));
            // RFC 7323 section 5.4: a millisecond a tick at the least; a middlebox that follows the clock allows for 30 seconds and a tenth.
            let most = (30_000 + now.saturating_sub(end.stamped_at) / 1000) * 11 / 10;
            if (step as i32) > 0 && u64::from(step) > most {
                return complain(
                    Rule::TimestampValue,
                    format!("TSval jumps by {step}, where {most} would be the most"),
                );
            }
            if (step as i32) > 0 || end.last_stamp.is_none() {
                (end.last_stamp, end.stamped_at) = (Some(value), now);
            }
            let Some(ancestor) = ancestor else { return Ok(()) };
            let Some((old_value, old_echo)) = ancestor.stamps else { return Ok(()) };
            if ancestor.syn || ancestor.source != segment.source {
                return Ok(());
            }
            let drift = value.wrapping_sub(old_value);
            if *end.drift.get_or_insert(drift) != drift {
                return complain(
                    Rule::TimestampValue,
                    format!("TSval was shifted by {drift}, before by {:?}", end.drift),
                );
            }
            if old_echo == 0 && echo != 0 {
                return complain(Rule::TimestampEcho, format!("no echo became the echo {echo}"));
            }
            Ok(())
        }
    }
}

fn judge_congestion(
    segment: &Segment,
    end: &End,
    peer: &End,
    ancestor: Option<Ancestor>,
    proxied: bool,
) -> Result<(), Complaint> {
    let complain = |why: String| Err(Complaint { rule: Rule::Congestion, detail: format!("{why}\n  {segment}") });
    let (mode, joins) = (end.mode(), end.mode() != peer.mode());
    if mode == Mode::None && (segment.ace() != 0 || segment.ecn != 0) {
        return complain("ECN was not agreed upon".into());
    }
    // Where the two have not agreed on the same, the box answers for each: nothing is said to be capable.
    if joins && segment.ecn != 0 {
        return complain("the peer takes part in another way, or in none".into());
    }
    let ancestor = ancestor.filter(|ancestor| !ancestor.syn && ancestor.source == segment.source);
    match (mode, ancestor) {
        // The count is judged as it leaves the box.
        (Mode::None, _) | (Mode::Accurate, _) if mode == Mode::None || joins => {}
        (Mode::Accurate, None) => {
            let fields = end.syn_fields.iter().filter(|_| !end.active);
            let told = fields.map(|&field| told(field)).chain([5, 4]).any(|ace| ace == segment.ace());
            // Where a connection passes through the box follows no count, so its challenge has none.
            let is_challenge = !proxied && segment.ace() == 0;
            if !told && !is_challenge && !peer.aces.contains(&segment.ace()) {
                return complain("a count that the peer has not sent".into());
            }
        }
        (Mode::Accurate, Some(ancestor)) if ancestor.ace != segment.ace() => {
            return complain(format!("the peer's count was {}", ancestor.ace));
        }
        // A host whose peer was not asked, or has declined, gets from the box the echo of its own marks.
        (Mode::Classic, _) if joins && (segment.cwr || segment.ae) => return complain("the box sets CWR or AE".into()),
        (Mode::Classic, None) if !joins && segment.ace() != 0 => return complain("the box sets ECN flags".into()),
        (Mode::Classic, Some(ancestor)) if !joins && ancestor.ace != segment.ace() => {
            return complain(format!("the peer said (ECE, CWR) {:?}", ancestor.echoes));
        }
        _ => {}
    }
    match ancestor {
        None if segment.ecn != 0 => complain("the box sets the congestion field".into()),
        // Between the box and the host a mark may have been added.
        Some(ancestor) if !joins && ancestor.ecn != segment.ecn && !(segment.ecn == CE && ancestor.ecn != 0) => {
            complain(format!("the congestion field was {} when it came to the box", ancestor.ecn))
        }
        _ => Ok(()),
    }
}

fn judge_reset(segment: &Segment, end: &End, peer: &End, licensed: bool) -> Result<(), Complaint> {
    let complain = |why: String| Err(Complaint { rule: Rule::Reset, detail: format!("{why}\n  {segment}") });
    if end.isn.is_none() && !peer.reset && !licensed {
        return complain("a reset for a host that has sent nothing".into());
    }
    let Some(isn) = end.isn else { return Ok(()) };
    // A host that has reset the connection itself and then sends on it once more gets a reset.
    // A late copy of its SYN wakes a server when all is over; the box resets it.
    let woken = !end.active && peer.fin.is_some();
    if !peer.reset && !end.reset && !licensed && !woken {
        return complain("a reset that the peer never sent".into());
    }
    match end.peer_isn {
        // RFC 9293 section 3.10.7.3: in SYN-SENT a reset is valid if it acknowledges the SYN.
        None => match segment.ack {
            Some(ack) if position(ack, isn) == 1 => Ok(()),
            _ => complain("in SYN-SENT only a reset that acknowledges the SYN counts".into()),
        },
        Some(peer_isn) => {
            let here = position(segment.seq, peer_isn);
            let expected = end.acked.max(1);
            if here < 1.min(expected) || here > peer.edge.max(expected) {
                return complain(format!("a reset at position {here}, this host expects {expected}"));
            }
            Ok(())
        }
    }
}
