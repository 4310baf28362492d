//! One endpoint of a TCP connection that opens, transfers and closes as a kernel would, small enough for hundreds of thousands of them.
//! It counts the bytes of its streams without storing them; the caller writes and parses segments.
//!
//! Loss recovery is go-back-N, and out-of-order segments are dropped. It respects windows, timestamps, the peer's MSS and a
//! congestion window.

use std::ops::Range;
use std::time::Duration;

use tcpstate::seq::{RawWindow, SeqNum, Window, WindowScale};
use tcpstate::wire::{Flags, OptionList, Options, Segment, Timestamps};

use crate::segment::{Content, OutgoingSegment, PSH};

/// The first retransmission timeout of a SYN (RFC 6298 section 2), doubled each time.
const SYN_WAIT: Duration = Duration::from_secs(1);
/// The first retransmission timeout of data, doubled each time.
const WAIT: Duration = Duration::from_millis(200);
/// Transmissions without a reply before the endpoint gives up.
const TRIES: u32 = 6;
/// The initial congestion window, in segments (RFC 6928).
const FIRST_FLIGHT: u64 = 10;
/// Duplicate acknowledgements that trigger a retransmission (RFC 5681 section 3.2).
const DUPLICATES: u32 = 3;

/// What an endpoint offers in its SYN, and its windows.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The MSS, in bytes.
    pub mss: u16,
    /// Whether SACK is permitted.
    pub sack: bool,
    /// Whether timestamps are offered.
    pub timestamps: bool,
    /// The window scale offered; none for unscaled windows.
    pub scale: Option<WindowScale>,
    /// The receive window, in bytes.
    pub window: u32,
    /// The largest congestion window, in bytes.
    pub in_flight: u64,
}

impl Terms {
    /// The options Linux offers, with this MSS and windows of 64 KiB.
    pub fn linux(mss: u16) -> Terms {
        let scale = Some(WindowScale::clamped(7));
        Terms { mss, sack: true, timestamps: true, scale, window: 64 << 10, in_flight: 64 << 10 }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both endpoints closed it, and both FINs are acknowledged.
    Finished,
    /// The peer reset it.
    Reset,
    /// This endpoint reset it.
    Aborted,
    /// The peer did not answer.
    GaveUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    SynSent,
    SynReceived,
    Open,
    Over(End),
}

/// What a received segment delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The new bytes, as positions in the peer's stream.
    pub fresh: Range<u64>,
    /// Where they begin in the payload, in bytes.
    pub skip: usize,
    /// Whether the segment is impossible: it acknowledges data never sent, or has data far beyond the window.
    pub wrong: bool,
}

impl Delivery {
    /// The number of new bytes.
    pub fn len(&self) -> usize {
        (self.fresh.end - self.fresh.start) as usize
    }

    /// Whether there are no new bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the new bytes are those of this stream. `segment` is the one that was received, `frame` its frame.
    pub fn matches(&self, content: &Content, stream: u64, segment: &Segment, frame: &[u8]) -> bool {
        let start = usize::from(segment.payload) + self.skip;
        frame[start..start + self.len()] == *content.bytes(stream, self.fresh.start, self.len())
    }
}

/// One endpoint of a connection. Positions in streams are in bytes and count from 0 at the byte after the SYN.
#[derive(Clone, Debug)]
pub struct Tcp {
    phase: Phase,
    terms: Terms,
    /// The largest payload of a segment sent, given the peer's MSS and the options in use.
    segment_payload: u64,
    /// Our initial sequence number, and the peer's.
    iss: SeqNum,
    irs: SeqNum,
    /// The send sequence: acknowledged up to `una`, sent next at `next`, never sent from `furthest` on. The FIN counts as a byte.
    una: u64,
    next: u64,
    furthest: u64,
    /// Bytes of our stream so far, and whether it ends there.
    total: u64,
    finishing: bool,
    /// The position up to which the peer's window lets us send.
    send_limit: u64,
    scale: WindowScale,
    congestion_window: u64,
    duplicates: u32,
    recover: u64,
    /// Bytes of the peer's stream received, and whether its FIN was received.
    received: u64,
    finished: bool,
    /// The peer's latest timestamp (TS.Recent), if timestamps are in use.
    peer_timestamp: Option<u32>,
    ack_pending: bool,
    probe: bool,
    abort: bool,
    timer: Option<Duration>,
    tries: u32,
    /// Retransmitted segments.
    retransmissions: u64,
}

impl Tcp {
    /// An endpoint that opens actively: it sends a SYN at `now`.
    pub fn connect(terms: Terms, iss: u32, now: Duration) -> Tcp {
        let peer_timestamp = terms.timestamps.then_some(0);
        Tcp {
            phase: Phase::SynSent,
            terms,
            segment_payload: terms.mss.into(),
            iss: SeqNum::new(iss),
            irs: SeqNum::default(),
            una: 0,
            next: 0,
            furthest: 0,
            total: 0,
            finishing: false,
            send_limit: 0,
            scale: WindowScale::default(),
            congestion_window: 0,
            duplicates: 0,
            recover: 0,
            received: 0,
            finished: false,
            peer_timestamp,
            ack_pending: false,
            probe: false,
            abort: false,
            timer: Some(now),
            tries: 0,
            retransmissions: 0,
        }
    }

    /// An endpoint that opens passively: it answers `syn`, which has these `options`.
    pub fn accept(terms: Terms, iss: u32, syn: &Segment, options: &Options, now: Duration) -> Tcp {
        let mut tcp = Tcp { phase: Phase::SynReceived, irs: syn.seq, ..Tcp::connect(terms, iss, now) };
        tcp.negotiate(syn.window, options);
        tcp
    }

    /// Negotiates options with the peer's SYN or SYN-ACK.
    fn negotiate(&mut self, window: RawWindow, options: &Options) {
        match options.scale {
            Some(scale) if self.terms.scale.is_some() => self.scale = scale,
            _ => self.terms.scale = None,
        }
        self.terms.sack &= options.sack_permitted;
        self.peer_timestamp = self.peer_timestamp.and(options.timestamps).map(|stamp| stamp.value);
        // RFC 9293 section 3.7.1: the default MSS is 536. Timestamps take twelve bytes of each segment.
        let mss = options.mss.unwrap_or(536).min(self.terms.mss);
        self.segment_payload = u64::from(mss - if self.peer_timestamp.is_some() { 12 } else { 0 });
        self.congestion_window = FIRST_FLIGHT * self.segment_payload;
        // RFC 7323 section 2.2: the window in a SYN or SYN-ACK is not scaled.
        self.send_limit = window.0.into();
    }

    /// Appends `bytes` bytes to our stream.
    pub fn write(&mut self, bytes: u64) {
        self.total += bytes;
    }

    /// Closes our stream: a FIN follows the last byte written.
    pub fn finish(&mut self) {
        self.finishing = true;
    }

    /// Aborts the connection with an RST.
    pub fn reset(&mut self) {
        self.abort = true;
    }

    /// How the connection ended, if it has.
    pub fn end(&self) -> Option<End> {
        match self.phase {
            Phase::Over(end) => Some(end),
            _ => None,
        }
    }

    /// Whether the handshake is complete.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the peer's window lets us send.
    pub fn may_send(&self) -> bool {
        self.is_open() && self.send_limit > self.next
    }

    /// Bytes of our stream that the peer has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.una.min(self.total)
    }

    /// Bytes written to our stream.
    pub fn written(&self) -> u64 {
        self.total
    }

    /// Bytes of the peer's stream received in order.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether the peer's FIN was received.
    pub fn has_ended(&self) -> bool {
        self.finished
    }

    /// Retransmitted segments.
    pub fn retransmitted(&self) -> u64 {
        self.retransmissions
    }

    /// When to call [`Tcp::next_segment`] again if nothing arrives before.
    pub fn due(&self) -> Option<Duration> {
        self.timer
    }

    /// RCV.NXT: the sequence number expected next.
    fn expected(&self) -> SeqNum {
        self.irs + 1 + (self.received as u32).wrapping_add(u32::from(self.finished))
    }

    /// The end of our send sequence: the bytes written, and the FIN as one more.
    fn stream_end(&self) -> u64 {
        self.total + u64::from(self.finishing)
    }

    /// Processes a segment, whose checksums the caller has verified.
    pub fn on_segment(&mut self, segment: &Segment, options: &Options, now: Duration) -> Delivery {
        let mut delivery = Delivery { fresh: self.received..self.received, skip: 0, wrong: false };
        let flags = segment.flags;
        let acknowledges_syn = flags.has(Flags::ACK) && segment.ack == self.iss + 1;
        match self.phase {
            Phase::Over(end) => {
                // RFC 9293 section 3.10.7.4, TIME-WAIT: our last acknowledgement was lost, so the peer retransmits; acknowledge again.
                // It may retransmit more than the FIN.
                let repeats = flags.has(Flags::FIN) || segment.payload_len() > 0;
                self.ack_pending |= end == End::Finished && repeats;
                return delivery;
            }
            Phase::SynSent => {
                if flags.has(Flags::RST) {
                    delivery.wrong = !acknowledges_syn;
                    if acknowledges_syn {
                        self.end_with(End::Reset);
                    }
                } else if flags.has(Flags::SYN) && acknowledges_syn {
                    self.irs = segment.seq;
                    self.negotiate(segment.window, options);
                    (self.phase, self.ack_pending, self.timer, self.tries) = (Phase::Open, true, None, 0);
                } else {
                    delivery.wrong = true;
                }
                return delivery;
            }
            Phase::SynReceived => {
                if flags.has(Flags::RST) {
                    self.end_with(End::Reset);
                    return delivery;
                }
                if flags.has(Flags::SYN) {
                    self.timer = Some(now);
                    return delivery;
                }
                if !acknowledges_syn {
                    delivery.wrong = flags.has(Flags::ACK) && segment.ack != self.iss;
                    return delivery;
                }
                (self.phase, self.timer, self.tries) = (Phase::Open, None, 0);
            }
            Phase::Open => {}
        }
        if flags.has(Flags::RST) {
            // RFC 5961 section 3.2: only an RST with exactly RCV.NXT resets.
            if segment.seq == self.expected() {
                self.end_with(End::Reset);
            }
            return delivery;
        }
        if flags.has(Flags::SYN) {
            // A retransmitted SYN-ACK: our acknowledgement was lost.
            self.ack_pending = true;
            return delivery;
        }
        if let (Some(stamp), Some(theirs)) = (&mut self.peer_timestamp, options.timestamps)
            && segment.seq.beyond(self.irs + 1 + self.received as u32) as i32 <= 0
        {
            *stamp = theirs.value;
        }
        if flags.has(Flags::ACK) {
            delivery.wrong = !self.on_ack(segment);
        }
        self.on_data(segment, &mut delivery);
        if self.finished && self.finishing && self.una == self.stream_end() && !self.ack_pending {
            self.end_with(End::Finished);
        }
        delivery
    }

    /// Processes an acknowledgement; false if it acknowledges data never sent.
    fn on_ack(&mut self, segment: &Segment) -> bool {
        let ahead = segment.ack.beyond(self.iss + 1 + self.una as u32) as i32;
        let acked = self.una.wrapping_add_signed(ahead.into());
        if ahead > 0 && acked > self.furthest {
            return false;
        }
        if ahead < 0 {
            return true;
        }
        let send_limit = acked + u64::from((segment.window << self.scale).0);
        if ahead > 0 {
            self.congestion_window = (self.congestion_window + ahead as u64).min(self.terms.in_flight);
            self.una = acked;
            self.next = self.next.max(acked);
            (self.duplicates, self.tries, self.timer) = (0, 0, None);
        } else if segment.payload_len() == 0 && send_limit == self.send_limit && self.next > self.una {
            self.duplicates += 1;
            if self.duplicates == DUPLICATES && self.una >= self.recover {
                self.go_back();
            }
        }
        if send_limit > self.send_limit {
            self.tries = 0;
        }
        self.send_limit = send_limit;
        true
    }

    /// Processes data and the peer's FIN.
    fn on_data(&mut self, segment: &Segment, delivery: &mut Delivery) {
        let len = u64::from(segment.payload_len());
        let fin = segment.flags.has(Flags::FIN);
        let ahead = i64::from(segment.seq.beyond(self.irs + 1 + self.received as u32) as i32);
        if len == 0 && !fin {
            // A keepalive or window probe has the sequence number before RCV.NXT.
            self.ack_pending |= segment.seq == self.expected() - 1;
            return;
        }
        self.ack_pending = true;
        // Twice the window plus rounding: the box may round windows.
        delivery.wrong |= ahead > 2 * i64::from(self.terms.window) + 65_535;
        if self.finished || ahead > 0 || -ahead > len as i64 {
            return;
        }
        let skip = (-ahead) as u64;
        let end = self.received + len - skip;
        (delivery.fresh, delivery.skip) = (self.received..end, skip as usize);
        self.received = end;
        self.finished = fin;
    }

    /// Retransmits everything unacknowledged, with half the congestion window.
    fn go_back(&mut self) {
        (self.recover, self.next) = (self.furthest, self.una);
        self.congestion_window = (self.congestion_window / 2).max(2 * self.segment_payload);
    }

    fn end_with(&mut self, end: End) {
        (self.phase, self.timer, self.ack_pending) = (Phase::Over(end), None, false);
    }

    /// The next segment to send at `now`; to be called until it returns `None`.
    pub fn next_segment(&mut self, now: Duration) -> Option<OutgoingSegment> {
        let due = self.timer.is_some_and(|timer| timer <= now);
        match self.phase {
            Phase::Over(_) => return self.next_ack(now),
            Phase::SynSent | Phase::SynReceived if self.abort => {
                self.end_with(End::Aborted);
                return None;
            }
            Phase::SynSent | Phase::SynReceived => return if due { self.next_syn(now) } else { None },
            Phase::Open if self.abort => {
                let segment = self.segment(now, self.next, Flags::RST.and(Flags::ACK), 0);
                self.end_with(End::Aborted);
                return Some(segment);
            }
            Phase::Open => {}
        }
        if due {
            self.tries += 1;
            self.timer = None;
            if self.tries > TRIES {
                self.end_with(End::GaveUp);
                return None;
            }
            if self.next > self.una { self.go_back() } else { self.probe = true }
        }
        let segment = self.next_data(now).or_else(|| self.next_ack(now));
        if self.timer.is_none() && self.una < self.stream_end() {
            // Data is unacknowledged, or the window is closed.
            self.timer = Some(now + WAIT * (1 << self.tries));
        }
        if self.finished && self.finishing && self.una == self.stream_end() && !self.ack_pending {
            self.end_with(End::Finished);
        }
        segment
    }

    fn next_syn(&mut self, now: Duration) -> Option<OutgoingSegment> {
        if self.tries == TRIES {
            self.end_with(End::GaveUp);
            return None;
        }
        self.timer = Some(now + SYN_WAIT * (1 << self.tries));
        self.retransmissions += u64::from(self.tries > 0);
        self.tries += 1;
        let answers = self.phase == Phase::SynReceived;
        let Terms { mss, sack, scale, window, .. } = self.terms;
        let stamps = self.peer_timestamp.map(|echo| Timestamps { value: clock(now), echo });
        Some(OutgoingSegment {
            seq: self.iss,
            ack: if answers { self.irs + 1 } else { SeqNum::default() },
            flags: Flags::SYN.and(Flags::ACK.when(answers)),
            window: Window(window).field(WindowScale::default()),
            options: OptionList::syn(Some(mss), sack, stamps, scale),
            from: 0,
            len: 0,
        })
    }

    /// The next segment with data or FIN.
    fn next_data(&mut self, now: Duration) -> Option<OutgoingSegment> {
        let allowed = self.send_limit.min(self.una + self.congestion_window.min(self.terms.in_flight));
        if self.next >= self.stream_end() || (self.next >= allowed && self.next < self.total) {
            return None;
        }
        let left = self.total.saturating_sub(self.next);
        let len = left.min(self.segment_payload).min(allowed.saturating_sub(self.next));
        // RFC 9293 section 3.8.6.2.1: against silly windows, no partial segment while data is unacknowledged.
        if len < left.min(self.segment_payload) && self.next > self.una {
            return None;
        }
        let from = self.next;
        let fin = self.finishing && from + len == self.total;
        let flags = Flags::ACK.and(PSH.when(len > 0 && len == left)).and(Flags::FIN.when(fin));
        let segment = self.segment(now, from, flags, len as usize);
        self.next += len + u64::from(fin);
        self.retransmissions += u64::from(self.next <= self.furthest);
        self.furthest = self.furthest.max(self.next);
        (self.ack_pending, self.probe) = (false, false);
        Some(segment)
    }

    /// A window probe, or a pending acknowledgement.
    fn next_ack(&mut self, now: Duration) -> Option<OutgoingSegment> {
        let (probe, ack_pending) = (std::mem::take(&mut self.probe), std::mem::take(&mut self.ack_pending));
        if probe {
            // Linux probes with the sequence number before SND.NXT: the peer answers with its window.
            let mut segment = self.segment(now, self.next, Flags::ACK, 0);
            segment.seq = segment.seq - 1;
            return Some(segment);
        }
        ack_pending.then(|| self.segment(now, self.next, Flags::ACK, 0))
    }

    fn segment(&self, now: Duration, from: u64, flags: Flags, len: usize) -> OutgoingSegment {
        let stamps = self.peer_timestamp.map(|echo| Timestamps { value: clock(now), echo });
        OutgoingSegment {
            seq: self.iss + 1 + from as u32,
            ack: self.expected(),
            flags,
            window: Window(self.terms.window).field(self.terms.scale.unwrap_or_default()),
            options: OptionList::plain(stamps),
            from,
            len,
        }
    }
}

/// The timestamp clock, in milliseconds; it starts above zero.
fn clock(now: Duration) -> u32 {
    (now.as_millis() as u32).wrapping_add(1_000)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};
    use tcpstate::wire::{Parsed, Vlan};
    use tcpstate::{Head, Side};

    use super::*;
    use crate::segment::{envelope, key};

    /// Two endpoints, and a lossy link between them.
    struct Wire {
        now: Duration,
        loss: f64,
        rng: SmallRng,
        ends: [Option<Tcp>; 2],
        in_flight_frames: [VecDeque<(Duration, Vec<u8>)>; 2],
        terms: Terms,
        content: Content,
        wrong: u32,
    }

    impl Wire {
        fn new(terms: [Terms; 2], iss: u32, loss: f64, seed: u64) -> Wire {
            let client = Tcp::connect(terms[1], iss, Duration::ZERO);
            Wire {
                now: Duration::ZERO,
                loss,
                rng: SmallRng::seed_from_u64(seed),
                ends: [None, Some(client)],
                in_flight_frames: Default::default(),
                terms: terms[0],
                content: Content::default(),
                wrong: 0,
            }
        }

        /// Advances the clock by a millisecond.
        fn step(&mut self) {
            self.now += Duration::from_millis(1);
            let both = key(("10.0.0.2".parse().unwrap(), 80), ("11.0.0.1".parse().unwrap(), 1025), Vlan::default());
            for side in Side::BOTH {
                let (own, other) = (side as usize, side.other() as usize);
                while let Some((_, mut frame)) = self.in_flight_frames[own].pop_front_if(|(at, _)| *at <= self.now) {
                    let len = frame.len();
                    let head = Head::whole(&mut frame, len);
                    let Parsed::Tcp(segment) = Parsed::parse(side.other(), &head) else { panic!("a segment") };
                    assert!(segment.checksums_hold(&head));
                    let options = Options::read(segment.options(head.bytes()));
                    match &mut self.ends[own] {
                        None => {
                            let iss = self.rng.random();
                            self.ends[own] = Some(Tcp::accept(self.terms, iss, &segment, &options, self.now));
                        }
                        Some(tcp) => {
                            let delivery = tcp.on_segment(&segment, &options, self.now);
                            let right = delivery.matches(&self.content, other as u64, &segment, head.bytes());
                            self.wrong += u32::from(delivery.wrong) + u32::from(!right);
                        }
                    }
                }
                let Some(tcp) = &mut self.ends[own] else { continue };
                let way = envelope(both, side, [2; 6], [4; 6]);
                while let Some(segment) = tcp.next_segment(self.now) {
                    let mut frame = vec![0; 1600];
                    let content = &self.content;
                    let fill = |payload: &mut [u8]| {
                        payload.copy_from_slice(content.bytes(own as u64, segment.from, segment.len))
                    };
                    let len = segment.write(&way, &mut frame, fill);
                    frame.truncate(len);
                    if self.rng.random::<f64>() >= self.loss {
                        self.in_flight_frames[other].push_back((self.now + Duration::from_millis(5), frame));
                    }
                }
            }
        }
    }

    fn terms() -> impl Strategy<Value = Terms> {
        (100u16..1460, any::<bool>(), prop::option::of(0u8..14), 2_000u32..200_000, 500u64..100_000).prop_map(
            |(mss, timestamps, scale, window, in_flight)| {
                let scale = scale.map(WindowScale::clamped);
                Terms { mss, sack: false, timestamps, scale, window, in_flight }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// For all options, initial sequence numbers and losses, every byte arrives once and in order.
        #[test]
        fn everything_arrives_and_both_endpoints_finish(
            server in terms(), client in terms(), iss in any::<u32>(), lossy in any::<bool>(), seed in any::<u64>(),
            bytes in [0u64..60_000, 0u64..60_000],
        ) {
            let mut wire = Wire::new([server, client], iss, if lossy { 0.02 } else { 0.0 }, seed);
            let mut written = [false; 2];
            for _ in 0..60_000 {
                wire.step();
                for side in 0..2 {
                    if let Some(tcp) = wire.ends[side].as_mut().filter(|tcp| tcp.is_open() && !written[side]) {
                        tcp.write(bytes[side]);
                        tcp.finish();
                        written[side] = true;
                    }
                }
                if wire.ends.iter().all(|end| end.as_ref().is_some_and(|end| end.end().is_some())) {
                    break;
                }
            }
            let [Some(server), Some(client)] = &wire.ends else { panic!("both endpoints exist") };
            prop_assert_eq!(wire.wrong, 0);
            prop_assert_eq!([server.end(), client.end()], [Some(End::Finished); 2]);
            prop_assert_eq!([client.received(), server.received()], bytes);
            if !lossy {
                prop_assert_eq!(server.retransmitted() + client.retransmitted(), 0);
            }
        }
    }

    #[test]
    fn an_endpoint_without_answer_gives_up() {
        let mut tcp = Tcp::connect(Terms::linux(1460), 7, Duration::ZERO);
        let mut syns = Vec::new();
        for second in 0..200 {
            syns.extend(tcp.next_segment(Duration::from_secs(second)).map(|_| second));
        }
        assert_eq!(syns, [0, 1, 3, 7, 15, 31]);
        assert_eq!(tcp.end(), Some(End::GaveUp));
    }
}
