//! A host's manner of speaking TCP: the options it has, where its numbers begin, how it lays out a header.
//!
//! smoltcp has one manner. This layer, between the stack and the cable, gives every host its own: initial sequence
//! numbers near the wrap, clocks that start anywhere, options missing or at odd offsets, D-SACK, several SACK blocks.
//! Seen from the cable, stack and layer together are the host; the oracle stands outside.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::chance::Chance;
use super::envelope::Envelope;
use crate::oracle::icmp::{Error, Trouble};
use crate::oracle::wire::{CE, ECT0, ECT1, Mode, told};
use crate::oracle::{Counters, Layout, Segment, pattern};

/// The MSS a host announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// What its MTU allows.
    Own,
    /// No more than this.
    Below(u16),
    /// None: 536 is meant (RFC 9293 section 3.7.1).
    Absent,
}

/// Whether and how a host negotiates ECN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ecn {
    /// Not at all.
    None,
    /// As in RFC 3168; a repeated SYN asks no more.
    Classic,
    /// As in RFC 9768: it asks for accurate ECN and answers who does, and falls back to the classic one. In half of all dialects its SYNs and SYN-ACKs
    /// are ECN-capable too; in half of them some of its segments with data bear the AccECN option.
    Accurate,
    /// The same, but its SYNs ask by a combination that is reserved.
    Reserved,
    /// As in RFC 3540: classic, with a SYN-ACK whose nonce sum is one.
    Nonce,
    /// Not at all, but its SYN-ACKs have the bits of the SYN in all that is reserved (the broken servers of RFC 9768 section 3.1.2).
    Broken,
}

impl Ecn {
    /// Most hosts know the classic kind, the accurate one or none; a few are strange.
    const DRAWN: [Ecn; 18] = {
        use Ecn::{Accurate, Broken, Classic, Nonce, None, Reserved};
        [
            None, None, None, None, None, Classic, Classic, Classic, Classic, Classic, Accurate, Accurate, Accurate,
            Accurate, Accurate, Reserved, Nonce, Broken,
        ]
    };

    /// The most it agrees to.
    fn mode(self) -> Mode {
        match self {
            Ecn::None | Ecn::Broken => Mode::None,
            Ecn::Classic | Ecn::Nonce => Mode::Classic,
            Ecn::Accurate | Ecn::Reserved => Mode::Accurate,
        }
    }

    /// What it goes on with as a server, where a SYN has these three flags.
    fn answers(self, asked: u8) -> Mode {
        match self.mode() {
            Mode::Accurate => Mode::asked(asked),
            // It knows two flags and takes the third for a reserved bit.
            Mode::Classic if asked & 3 == 3 => Mode::Classic,
            _ => Mode::None,
        }
    }
}

/// Where a server keeps what it has agreed on with a client whose SYN it has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// In its memory.
    Itself,
    /// In the low six bits of the TSval of its SYN-ACK, as Linux's SYN cookies do, to which a secret is added.
    Secretly,
    /// There, in the open, as nftables' SYN proxy does.
    Openly,
}

/// A manner of speaking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Window scaling is offered and answered.
    pub scale: bool,
    /// SACK is offered and answered.
    pub sack: bool,
    /// Timestamps are offered and answered.
    pub stamps: bool,
    /// How options are laid out.
    pub layout: Layout,
    /// Segments below the acknowledgement are reported as D-SACK (RFC 2883).
    pub duplicates: bool,
    /// Added to the timestamp clock.
    pub clock: u32,
    /// The initial sequence number; the stack's own if none.
    pub isn: Option<u32>,
    /// The MSS announced.
    pub mss: Announced,
    /// The window scale announced, if the receive buffer is no smaller than four of its units; else the greatest for
    /// which it is. The stack's own if none.
    pub shift: Option<u8>,
    /// Explicit congestion notification.
    pub ecn: Ecn,
    /// Where its terms are, as a server with timestamps. One that has them in its TSval answers every SYN anew, and ignores what acknowledges its SYN-ACK and
    /// does not echo that.
    pub keeps: Keeps,
    /// What segments are wrapped in.
    pub envelope: Envelope,
}

impl Dialect {
    /// Draws a manner of speaking.
    pub fn draw(chance: &mut Chance) -> Self {
        Self {
            scale: chance.one_in(3, 4),
            sack: chance.one_in(3, 4),
            stamps: chance.one_in(2, 3),
            layout: Layout(chance.within(0..u64::from(Layout::COUNT)) as u8),
            duplicates: chance.one_in(1, 2),
            clock: if chance.one_in(1, 3) {
                // The clock wraps during the run.
                (chance.within(0..30_000) as u32).wrapping_neg()
            } else {
                chance.word() as u32
            },
            isn: None,
            mss: match chance.within(0..8) {
                0 => Announced::Absent,
                1 => Announced::Below(*chance.pick(&[216, 256, 536, 1220, 1300, 1360, 1452, 8940, 8960])),
                _ => Announced::Own,
            },
            shift: chance.one_in(2, 3).then(|| chance.within(0..15) as u8),
            ecn: *chance.pick(&Ecn::DRAWN),
            keeps: match chance.within(0..12) {
                0 => Keeps::Secretly,
                1 => Keeps::Openly,
                _ => Keeps::Itself,
            },
            envelope: Envelope::draw(chance),
        }
    }

    /// A manner without any peculiarity: all options, the stack's own numbers.
    pub fn plain() -> Self {
        Self {
            scale: true,
            sack: true,
            stamps: true,
            layout: Layout::default(),
            duplicates: false,
            clock: 0,
            isn: None,
            mss: Announced::Own,
            shift: None,
            ecn: Ecn::None,
            keeps: Keeps::Itself,
            envelope: Envelope::default(),
        }
    }

    /// The same for a host with a receive buffer of this size.
    #[must_use]
    pub fn with_buffer(self, bytes: usize) -> Self {
        let most = bytes.ilog2().saturating_sub(2).min(14) as u8;
        Self { shift: self.shift.map(|shift| shift.min(most)), ..self }
    }

    /// Draws an initial sequence number: in half of all cases one that wraps within the transfer.
    pub fn draw_isn(&mut self, chance: &mut Chance) {
        self.isn = Some(if chance.one_in(1, 2) {
            (chance.within(0..100_000) as u32).wrapping_neg()
        } else {
            chance.word() as u32
        });
    }
}

/// One connection, as the layer remembers it.
#[derive(Clone, Debug)]
struct Connection {
    dialect: Dialect,
    /// The stack's own initial sequence number and its distance to the one on the cable.
    isn: Option<u32>,
    shift: u32,
    /// Whether each side permitted SACK: blocks may be sent if both did.
    sack_here: bool,
    sack_there: bool,
    /// The window scale each side announced, and the one the stack here reckons with.
    scale_stack: u8,
    scale_here: Option<u8>,
    scale_there: Option<u8>,
    /// The right edge of the stack's window.
    edge: Option<u32>,
    /// The right edge of the window promised in a field of this host's own scale.
    told: Option<u32>,
    /// The highest acknowledgement received.
    peer_acked: Option<u32>,
    /// The highest acknowledgement sent.
    acked: Option<u32>,
    /// A duplicate segment received and not yet reported.
    duplicate: Option<(u32, u32)>,
    /// Blocks reported lately.
    reported: Vec<(u32, u32)>,
    /// How many SYNs have been sent.
    syns: u32,
    /// The three flags of the peer's first SYN.
    asked_there: Option<u8>,
    /// What both have agreed on, by the first SYN that came or the first SYN-ACK.
    mode: Option<Mode>,
    /// The congestion field of the peer's last SYN or SYN-ACK.
    field_there: u8,
    /// A SYN-ACK has come that no acknowledgement answers yet.
    answers: bool,
    /// The marks counted (RFC 9768 section 3.2.1: r.cep).
    marks: u32,
    /// The peer's first count was zero: flags are zeroed on the way, or it does not count (section 3.2.2.4).
    zeroed: Option<bool>,
    /// Congestion was met and the peer has not said that it has slowed down.
    echoing: bool,
    /// The peer echoes congestion: said to be known with the next new data.
    slowed: bool,
    /// One past the highest number sent.
    sent: Option<u32>,
    /// The MSS the peer has announced.
    mss_there: Option<u16>,
    /// Bytes of data received by their congestion field.
    bytes: [u32; 4],
    /// TSval of the last SYN received, and those of the SYN-ACKs that keep the terms.
    asked_at: u32,
    terms: Vec<u32>,
    /// The last SYN-ACK on the cable.
    answer: Option<Vec<u8>>,
    /// One of the terms has come back.
    proved: bool,
}

/// The manners of one host, by connection (local end first).
#[derive(Debug, Default)]
pub struct Tongue {
    connections: BTreeMap<(SocketAddr, SocketAddr), Connection>,
    /// The path MTU to these hosts, as routers have reported it (RFC 1191, RFC 8201).
    routes: BTreeMap<IpAddr, usize>,
}

impl Tongue {
    /// Settles how the host speaks in this connection.
    pub fn settle(&mut self, local: SocketAddr, remote: SocketAddr, dialect: Dialect) {
        self.connections.insert(
            (local, remote),
            Connection {
                dialect,
                isn: None,
                shift: 0,
                sack_here: false,
                sack_there: false,
                scale_stack: 0,
                scale_here: None,
                scale_there: None,
                edge: None,
                told: None,
                peer_acked: None,
                acked: None,
                duplicate: None,
                reported: Vec::new(),
                syns: 0,
                asked_there: None,
                mode: None,
                field_there: 0,
                answers: false,
                marks: 5,
                zeroed: None,
                echoing: false,
                slowed: false,
                sent: None,
                mss_there: None,
                bytes: [0, 1, 1, 0],
                asked_at: 0,
                terms: Vec::new(),
                answer: None,
                proved: false,
            },
        );
    }

    /// Takes note of an ICMP error, if the segment it quotes is in flight (RFC 5927 section 4.1).
    ///
    /// Returns the ends of a connection that is being opened and cannot be.
    pub fn heed_error(&mut self, error: &Error) -> Option<(SocketAddr, SocketAddr)> {
        let ends = (error.source, error.destination);
        let connection = self.connections.get(&ends).filter(|_| error.sums_right)?;
        let first = connection.peer_acked.or(Some(connection.isn?.wrapping_add(connection.shift)))?;
        if error.seq().wrapping_sub(first) >= connection.sent?.wrapping_sub(first) {
            return None;
        }
        match error.trouble {
            Trouble::TooBig(mtu) => {
                let least = if error.receiver.is_ipv6() { 1280 } else { 68 };
                let route = self.routes.entry(error.destination.ip()).or_insert(usize::MAX);
                *route = (*route).min((mtu as usize).max(least));
                None
            }
            Trouble::Unreachable(_) => connection.peer_acked.is_none().then_some(ends),
        }
    }

    /// The largest packet the way to this host is known to take.
    pub fn route(&self, host: IpAddr) -> usize {
        self.routes.get(&host).copied().unwrap_or(usize::MAX)
    }

    /// What the cable gets for this frame of the stack, and what it is to be wrapped in.
    pub fn outward(&mut self, frame: Vec<u8>) -> (Vec<Vec<u8>>, Envelope) {
        let Some(mut segment) = Segment::read(&frame) else { return (vec![frame], Envelope::default()) };
        let Some(connection) = self.connections.get_mut(&(segment.source, segment.destination)) else {
            return (vec![frame], Envelope::default());
        };
        if segment.syn && connection.isn != Some(segment.seq) {
            connection.isn = Some(segment.seq);
            connection.shift = connection.dialect.isn.map_or(0, |isn| isn.wrapping_sub(segment.seq));
        }
        segment.seq = segment.seq.wrapping_add(connection.shift);
        if let (&[byte], Some(isn), Some(peer_acked)) = (segment.payload, connection.isn, connection.peer_acked) {
            // The byte of smoltcp's keepalives is none of the stream's. While the true one has not arrived, its own
            // receiver takes it for that.
            let offset = segment.seq.wrapping_sub(isn.wrapping_add(connection.shift)).wrapping_sub(1);
            let missing = (segment.seq.wrapping_sub(peer_acked) as i32) >= 0;
            if missing && byte != pattern(segment.source, segment.destination, u64::from(offset)) {
                segment.payload = &[];
            }
        }
        if segment.syn {
            connection.offer(&mut segment);
        }
        let is_answer = segment.syn && segment.ack.is_some();
        if let Some((value, echo)) = segment.options.stamps {
            segment.options.stamps = Some(match is_answer && connection.dialect.keeps != Keeps::Itself {
                true => connection.write_terms(value),
                false => (value.wrapping_add(connection.dialect.clock), echo),
            });
        }
        if let Some(ack) = segment.ack
            && !segment.rst
        {
            if connection.acked.is_none_or(|acked| (ack.wrapping_sub(acked) as i32) > 0) {
                connection.acked = Some(ack);
            }
            let mut bytes = u32::from(segment.window);
            if let (Some(shift), Some(_), false) = (connection.scale_here, connection.scale_there, segment.syn) {
                bytes <<= connection.scale_stack;
                // What was promised is not taken back, though it may be more than there is (RFC 7323 section 2.4).
                let promised = connection.told.map_or(0, |told| told.wrapping_sub(ack));
                let units = if (promised as i32) > 0 { promised.div_ceil(1 << shift) } else { 0 };
                segment.window = (bytes >> shift).max(units).min(u32::from(u16::MAX)) as u16;
                let told = ack.wrapping_add(u32::from(segment.window) << shift);
                if connection.told.is_none_or(|old| (told.wrapping_sub(old) as i32) > 0) {
                    connection.told = Some(told);
                }
            }
            let edge = ack.wrapping_add(bytes);
            if connection.edge.is_none_or(|old| (edge.wrapping_sub(old) as i32) > 0) {
                connection.edge = Some(edge);
            }
            if !segment.syn && segment.payload.is_empty() && connection.sack_here && connection.sack_there {
                connection.add_blocks(&mut segment, ack);
            }
        }
        let envelope = connection.dialect.envelope;
        let mtu = self.route(segment.destination.ip());
        let most = mtu.saturating_sub(segment.options_len + if segment.source.is_ipv6() { 60 } else { 40 }).max(8);
        let mut frames = Vec::new();
        for piece in pieces(&segment, most) {
            let connection =
                self.connections.get_mut(&(segment.source, segment.destination)).expect("a connection, as just seen");
            let mut piece = connection.signal(piece);
            connection.add_counters(&mut piece, mtu);
            let frame = rewrite(&frame, &piece, connection.dialect.layout);
            if is_answer {
                connection.answer = Some(frame.clone());
            }
            frames.push(frame);
        }
        (frames, envelope)
    }

    /// What a server that has forgotten it all answers at this time to this frame, if it is a SYN that it has answered before.
    pub fn answer_again(&mut self, frame: &[u8], millis: u32) -> Option<(Vec<u8>, Envelope)> {
        let syn =
            Segment::read(frame).filter(|segment| segment.syn && segment.ack.is_none() && segment.sums_right())?;
        let connection = self.connections.get_mut(&(syn.destination, syn.source))?;
        if connection.terms.is_empty() || connection.proved {
            return None;
        }
        let before = connection.answer.clone()?;
        let mut answer = Segment::read(&before).filter(|answer| answer.ack == Some(syn.seq.wrapping_add(1)))?;
        (connection.asked_at, _) = syn.options.stamps?;
        answer.options.stamps = Some(connection.write_terms(millis));
        let frame = rewrite(&before, &answer, connection.dialect.layout);
        connection.answer = Some(frame.clone());
        Some((frame, connection.dialect.envelope))
    }

    /// Whether a server that has forgotten it all ignores this frame: an acknowledgement of its SYN-ACK that does not bring the terms back.
    pub fn ignores(&mut self, frame: &[u8]) -> bool {
        let Some(segment) = Segment::read(frame).filter(|segment| !segment.syn && !segment.rst) else { return false };
        let Some(connection) = self.connections.get_mut(&(segment.destination, segment.source)) else { return false };
        let answer = connection.answer.as_deref().and_then(Segment::read);
        let acknowledges = answer.is_some_and(|answer| segment.ack == Some(answer.seq.wrapping_add(1)));
        if connection.terms.is_empty() || connection.proved || !acknowledges || !segment.sums_right() {
            return false;
        }
        connection.proved = segment.options.stamps.is_some_and(|(_, echo)| connection.terms.contains(&echo));
        !connection.proved
    }

    /// What the stack gets for this frame of the cable.
    pub fn inward(&mut self, frame: Vec<u8>) -> Vec<u8> {
        let Some(mut segment) = Segment::read(&frame) else { return frame };
        let Some(connection) = self.connections.get_mut(&(segment.destination, segment.source)) else { return frame };
        if !segment.sums_right() {
            return frame;
        }
        if let Some(ack) = &mut segment.ack {
            if connection.peer_acked.is_none_or(|peer_acked| (ack.wrapping_sub(peer_acked) as i32) > 0) {
                connection.peer_acked = Some(*ack);
            }
            *ack = ack.wrapping_sub(connection.shift);
        }
        connection.heed(&segment);
        for (left, right) in segment.options.sack.iter_mut().flatten() {
            *left = left.wrapping_sub(connection.shift);
            *right = right.wrapping_sub(connection.shift);
        }
        if let Some((_, echo)) = &mut segment.options.stamps
            && *echo != 0
        {
            *echo = echo.wrapping_sub(connection.dialect.clock);
        }
        if segment.syn {
            if !connection.dialect.scale {
                segment.options.scale = None;
            }
            segment.options.sack_permitted &= connection.dialect.sack;
            connection.sack_there = segment.options.sack_permitted;
            connection.scale_there = segment.options.scale;
            connection.mss_there = segment.options.mss;
            if !connection.dialect.stamps {
                segment.options.stamps = None;
            }
        } else if connection.dialect.duplicates && !segment.payload.is_empty() {
            let end = segment.seq.wrapping_add(segment.payload.len() as u32);
            // The byte of a keepalive lies below the acknowledgement too; it is reported like any duplicate.
            if connection.acked.is_some_and(|acked| (end.wrapping_sub(acked) as i32) <= 0) {
                connection.duplicate = Some((segment.seq, end));
            }
        }
        // smoltcp takes the FIN of a segment whose data it had to cut at its window's edge.
        if let (Some(edge), true) = (connection.edge, segment.fin) {
            let end = segment.seq.wrapping_add(segment.payload.len() as u32);
            segment.fin = (end.wrapping_sub(edge) as i32) <= 0;
        }
        (segment.ece, segment.cwr, segment.ae, segment.ecn) = (false, false, false, 0);
        segment.options.counters = None;
        // The stack reads four blocks and writes three; a fourth means nothing to it.
        segment.options.sack[3] = None;
        rewrite(&frame, &segment, Layout::default())
    }
}

impl Connection {
    /// Turns the stack's SYN or SYN-ACK into this host's.
    fn offer(&mut self, segment: &mut Segment) {
        let dialect = &self.dialect;
        self.scale_stack = segment.options.scale.unwrap_or(0);
        segment.options.scale = segment.options.scale.filter(|_| dialect.scale).map(|own| dialect.shift.unwrap_or(own));
        segment.options.sack_permitted &= dialect.sack;
        segment.options.mss = match dialect.mss {
            Announced::Own => segment.options.mss,
            Announced::Below(most) => segment.options.mss.map(|own| own.min(most)),
            Announced::Absent => None,
        };
        self.sack_here = segment.options.sack_permitted;
        self.scale_here = segment.options.scale;
        self.syns += 1;
        let most = dialect.ecn.mode();
        // RFC 8311 section 4.3 lets experiments have them capable.
        let field = if dialect.clock & 2 == 0 { 0 } else { self.capable() };
        if segment.ack.is_none() {
            // RFC 3168 section 6.1.1.1 and RFC 9768 section 3.1.4.1: a host that gets no answer may ask without.
            let asks = if self.syns <= 2 { most } else { Mode::None };
            // RFC 9768 section 3.1.3: whatever is reserved asks as well.
            let accurate = match dialect.ecn {
                Ecn::Reserved => [1, 2, 4, 5, 6][(dialect.clock >> 6) as usize % 5],
                _ => 7,
            };
            segment.set_ace([0, 3, accurate][asks as usize]);
            segment.ecn = if asks == Mode::Accurate { field } else { 0 };
        } else {
            let asked = self.asked_there.unwrap_or_default();
            let mode = *self.mode.get_or_insert(dialect.ecn.answers(asked));
            let classic = if dialect.ecn == Ecn::Nonce { 5 } else { 1 };
            let none = if dialect.ecn == Ecn::Broken && asked & 3 == 3 { asked } else { 0 };
            segment.set_ace([none, classic, told(self.field_there)][mode as usize]);
            segment.ecn = if mode == Mode::Accurate { field } else { 0 };
        }
    }

    /// The timestamps of a SYN-ACK at this time: the latest TSval with the terms in its low bits, and the echo of the SYN that came last.
    fn write_terms(&mut self, millis: u32) -> (u32, u32) {
        const TERMS: u32 = 0x3f;
        let Dialect { keeps, clock, .. } = self.dialect;
        let scale = self.scale_here.and(self.scale_there).map_or(0xf, u32::from);
        let sack = self.sack_here && self.sack_there;
        let terms = scale | u32::from(sack) << 4 | u32::from(self.mode() != Mode::None) << 5;
        let now = if keeps == Keeps::Openly { millis.wrapping_add(clock) } else { millis };
        let latest = now.wrapping_sub(now.wrapping_sub(terms) & TERMS);
        let value = if keeps == Keeps::Openly { latest } else { latest.wrapping_add(clock) };
        self.terms.push(value);
        (value, self.asked_at)
    }

    /// The congestion field of what this host says to be capable.
    fn capable(&self) -> u8 {
        if self.dialect.clock & 1 == 0 { ECT0 } else { ECT1 }
    }

    /// Sets a segment's ECN bits.
    fn signal<'a>(&mut self, mut segment: Segment<'a>) -> Segment<'a> {
        let end = segment.seq.wrapping_add(segment.length());
        let fresh = self.sent.is_none_or(|sent| (end.wrapping_sub(sent) as i32) > 0);
        let begins = self.sent.is_none_or(|sent| (segment.seq.wrapping_sub(sent) as i32) >= 0);
        if fresh {
            self.sent = Some(end);
        }
        if segment.syn || segment.rst {
            return segment;
        }
        // RFC 3168 section 6.1.5: repeated data is not marked as capable, nor is an acknowledgement alone.
        let speaks = begins && !segment.payload.is_empty();
        match self.mode() {
            Mode::None => {}
            Mode::Classic => {
                segment.ece = self.echoing && segment.ack.is_some();
                if speaks {
                    segment.ecn = self.capable();
                    segment.cwr = std::mem::take(&mut self.slowed);
                }
            }
            Mode::Accurate => {
                let is_pure = segment.length() == 0 && segment.options.blocks().next().is_none();
                // RFC 9768 section 3.2.2.1: the acknowledgement of a SYN-ACK tells the field that came with it.
                let answers = std::mem::take(&mut self.answers) && is_pure;
                segment.set_ace(if answers { told(self.field_there) } else { (self.marks & 7) as u8 });
                if speaks && self.zeroed != Some(true) {
                    segment.ecn = self.capable();
                }
            }
        }
        segment
    }

    /// Takes note of a segment's ECN bits.
    fn heed(&mut self, segment: &Segment) {
        if segment.syn {
            self.field_there = segment.ecn;
            if segment.ack.is_none() {
                self.asked_at = segment.options.stamps.map_or(self.asked_at, |(value, _)| value);
                self.asked_there.get_or_insert(segment.ace());
                return;
            }
            self.answers = true;
            if self.mode.is_none() {
                self.mode = Some(self.dialect.ecn.mode().agreed(segment.ace()));
                self.marks += u32::from(segment.ecn == CE);
            }
            return;
        }
        if segment.rst {
            return;
        }
        match self.mode() {
            Mode::None => {}
            Mode::Classic => {
                self.echoing = segment.ecn == CE || self.echoing && !segment.cwr;
                self.slowed |= segment.ece;
            }
            Mode::Accurate => {
                self.marks += u32::from(segment.ecn == CE);
                let bytes = &mut self.bytes[usize::from(segment.ecn)];
                *bytes = bytes.wrapping_add(segment.payload.len() as u32) & 0xff_ffff;
                self.zeroed.get_or_insert(segment.ace() == 0);
            }
        }
    }

    /// Has some segments with data bear the AccECN option, in half of all dialects and where it fits.
    fn add_counters(&self, segment: &mut Segment, mtu: usize) {
        let (clock, length) = (self.dialect.clock, segment.payload.len());
        let speaks = self.mode() == Mode::Accurate && length > 0 && !segment.syn && !segment.rst;
        if !speaks || clock & 4 == 0 || !length.is_multiple_of(2) {
            return;
        }
        // RFC 9768 section 3.2.3: from the last one on, counters may be left out.
        let count = (clock >> 3 & 3) as u8;
        let kind = if clock & 32 == 0 { Counters::ORDER_0 } else { Counters::ORDER_1 };
        let values = match kind {
            Counters::ORDER_0 => [ECT0, CE, ECT1],
            _ => [ECT1, CE, ECT0],
        };
        let mut values = values.map(|field| self.bytes[usize::from(field)]);
        values[usize::from(count)..].fill(0);
        let counters = Counters { kind, count, values };
        // The stack has sized its segments without. What every host of the world can send, and its peer takes, is no longer.
        const MSS: u16 = 1220;
        let header = if segment.source.is_ipv6() { 60 } else { 40 };
        let most = usize::from(self.mss_there.unwrap_or(536).min(MSS)).min(mtu.saturating_sub(header));
        let blocks = segment.options.blocks().count();
        let options = counters.write().len() + 12 + if blocks > 0 { 2 + 8 * blocks } else { 0 };
        if options <= 40 && length + options.next_multiple_of(4) <= most {
            segment.options.counters = Some(counters);
        }
    }

    /// What both have agreed on.
    fn mode(&self) -> Mode {
        self.mode.unwrap_or_default()
    }

    /// Completes the one block the stack reports: a D-SACK before it, blocks reported earlier behind it.
    fn add_blocks(&mut self, segment: &mut Segment, ack: u32) {
        let fresh: Vec<_> = segment.options.blocks().collect();
        self.reported.retain(|&(left, right)| {
            (left.wrapping_sub(ack) as i32) > 0
                && !fresh
                    .iter()
                    .any(|&(from, to)| (to.wrapping_sub(left) as i32) >= 0 && (right.wrapping_sub(from) as i32) >= 0)
        });
        let room = if segment.options.stamps.is_some() { 3 } else { 4 };
        let duplicate = self.duplicate.take();
        let blocks: Vec<_> = duplicate
            .into_iter()
            .chain(fresh.iter().copied())
            .chain(self.reported.iter().copied())
            .take(room)
            .collect();
        segment.options.sack = [0, 1, 2, 3].map(|place| blocks.get(place).copied());
        for block in fresh {
            self.reported.insert(0, block);
        }
        self.reported.truncate(4);
    }
}

/// The segment in pieces of at most so many bytes of data.
fn pieces<'a>(segment: &Segment<'a>, most: usize) -> Vec<Segment<'a>> {
    if segment.payload.len() <= most {
        return vec![segment.clone()];
    }
    let count = segment.payload.len().div_ceil(most);
    let piece = |(number, payload): (usize, &'a [u8])| {
        let last = number + 1 == count;
        let seq = segment.seq.wrapping_add((number * most) as u32);
        Segment { seq, payload, psh: segment.psh && last, fin: segment.fin && last, ..segment.clone() }
    };
    segment.payload.chunks(most).enumerate().map(piece).collect()
}

/// The frame with this segment in place of its own.
fn rewrite(frame: &[u8], segment: &Segment, layout: Layout) -> Vec<u8> {
    let mac = |at: usize| -> [u8; 6] { frame[at..at + 6].try_into().expect("six bytes") };
    segment.write(mac(6), mac(0), layout)
}
