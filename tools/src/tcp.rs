//! One end of a TCP connection, as a real kernel would open, use and close it, small enough that there can be hundreds of thousands.
//! It knows how many bytes its streams have, not which; segments are written and read elsewhere.
//!
//! What is lost is sent again from there on; what overtakes is dropped. Windows, timestamps, the peer's MSS and a congestion window are kept to.

use std::ops::Range;
use std::time::Duration;

use tcpstate::seq::{RawWindow, SeqNum, Window, WindowScale};
use tcpstate::wire::{Flags, OptionList, Options, Segment, Timestamps};

use crate::segment::{PSH, Say};

/// The wait for an answer to a SYN (RFC 6298 section 2), doubled each time.
const SYN_WAIT: Duration = Duration::from_secs(1);
/// The wait for an acknowledgement, doubled each time.
const WAIT: Duration = Duration::from_millis(200);
/// SYNs and segments sent in vain before one gives up.
const TRIES: u32 = 6;
/// The first congestion window, in segments (RFC 6928).
const FIRST_FLIGHT: u64 = 10;
/// Acknowledgements that repeat themselves until a segment is taken for lost (RFC 5681 section 3.2).
const DUPLICATES: u32 = 3;

/// What an end offers in its SYN, and how much it takes.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The longest payload of a segment, without options.
    pub mss: u16,
    /// Whether SACK is permitted.
    pub sack: bool,
    /// Whether segments bear timestamps.
    pub timestamps: bool,
    /// The scale of its windows.
    pub scale: Option<WindowScale>,
    /// Bytes it lets the peer have on the way.
    pub window: u32,
    /// Bytes it has on the way itself at most.
    pub in_flight: u64,
}

impl Terms {
    /// What Linux offers, at this MSS.
    pub fn linux(mss: u16) -> Terms {
        let scale = Some(WindowScale::clamped(7));
        Terms { mss, sack: true, timestamps: true, scale, window: 64 << 10, in_flight: 64 << 10 }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both ends closed it, and both know.
    Finished,
    /// The peer reset it.
    Reset,
    /// We did.
    Aborted,
    /// Nobody answered.
    GaveUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    SynSent,
    SynReceived,
    Open,
    Over(End),
}

/// What was heard in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The bytes of the peer's stream that are new.
    pub fresh: Range<u64>,
    /// Where they begin in the payload.
    pub skip: usize,
    /// It says what cannot be: acknowledges what was never sent, or has data beyond the window.
    pub wrong: bool,
}

/// One end of a connection. Positions in streams count from 0 at the byte behind the SYN.
#[derive(Clone, Debug)]
pub struct Tcp {
    phase: Phase,
    terms: Terms,
    /// Payload of a segment of ours at most, with the peer's MSS and our options considered.
    room: u64,
    /// Our initial sequence number, and the peer's.
    iss: SeqNum,
    irs: SeqNum,
    /// What we sent: acknowledged up to here, to go on from here, and never sent from here on. The FIN counts as a byte.
    una: u64,
    next: u64,
    furthest: u64,
    /// Bytes of our stream; whether it ends there.
    total: u64,
    finishing: bool,
    /// What the peer lets us send: up to here.
    edge: u64,
    scale: WindowScale,
    flight: u64,
    duplicates: u32,
    recover: u64,
    /// Bytes of the peer's stream that have come, and whether it ended.
    got: u64,
    finished: bool,
    /// The peer's latest timestamp, if there are timestamps.
    stamp: Option<u32>,
    owes: bool,
    probe: bool,
    abort: bool,
    timer: Option<Duration>,
    tries: u32,
    /// Segments sent again.
    again: u64,
}

impl Tcp {
    /// An end that calls.
    pub fn call(terms: Terms, iss: u32, now: Duration) -> Tcp {
        let stamp = terms.timestamps.then_some(0);
        Tcp {
            phase: Phase::SynSent,
            terms,
            room: terms.mss.into(),
            iss: SeqNum::new(iss),
            irs: SeqNum::default(),
            una: 0,
            next: 0,
            furthest: 0,
            total: 0,
            finishing: false,
            edge: 0,
            scale: WindowScale::default(),
            flight: 0,
            duplicates: 0,
            recover: 0,
            got: 0,
            finished: false,
            stamp,
            owes: false,
            probe: false,
            abort: false,
            timer: Some(now),
            tries: 0,
            again: 0,
        }
    }

    /// An end that is called by `syn`.
    pub fn answer(terms: Terms, iss: u32, syn: &Segment, options: &Options, now: Duration) -> Tcp {
        let mut tcp = Tcp { phase: Phase::SynReceived, irs: syn.seq, ..Tcp::call(terms, iss, now) };
        tcp.agree(syn.window, options);
        tcp
    }

    /// Takes what the peer's SYN or SYN-ACK offers.
    fn agree(&mut self, window: RawWindow, options: &Options) {
        match options.scale {
            Some(scale) if self.terms.scale.is_some() => self.scale = scale,
            _ => self.terms.scale = None,
        }
        self.terms.sack &= options.sack_permitted;
        self.stamp = self.stamp.and(options.timestamps).map(|stamp| stamp.value);
        // RFC 9293 section 3.7.1: 536 without the option. Timestamps take twelve bytes of each segment.
        let mss = options.mss.unwrap_or(536).min(self.terms.mss);
        self.room = u64::from(mss - if self.stamp.is_some() { 12 } else { 0 });
        self.flight = FIRST_FLIGHT * self.room;
        // RFC 7323 section 2.2: the window in a SYN or SYN-ACK is not scaled.
        self.edge = window.0.into();
    }

    /// Appends so many bytes to our stream.
    pub fn write(&mut self, bytes: u64) {
        self.total += bytes;
    }

    /// Our stream ends with what was written.
    pub fn finish(&mut self) {
        self.finishing = true;
    }

    /// Ends the connection at once, by a reset.
    pub fn reset(&mut self) {
        self.abort = true;
    }

    /// How it ended, if it has.
    pub fn end(&self) -> Option<End> {
        match self.phase {
            Phase::Over(end) => Some(end),
            _ => None,
        }
    }

    /// Whether both ends know of each other.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the peer lets us send.
    pub fn may_send(&self) -> bool {
        self.is_open() && self.edge > self.next
    }

    /// Bytes of our stream that the peer has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.una.min(self.total)
    }

    /// Bytes of our stream.
    pub fn written(&self) -> u64 {
        self.total
    }

    /// Bytes of the peer's stream that have come.
    pub fn received(&self) -> u64 {
        self.got
    }

    /// Whether the peer's stream has ended.
    pub fn has_ended(&self) -> bool {
        self.finished
    }

    /// Segments that were sent again.
    pub fn sent_again(&self) -> u64 {
        self.again
    }

    /// When [`Tcp::say`] is to be called again, if nothing happens before.
    pub fn due(&self) -> Option<Duration> {
        self.timer
    }

    /// The sequence number expected next.
    fn expected(&self) -> SeqNum {
        self.irs + 1 + (self.got as u32).wrapping_add(u32::from(self.finished))
    }

    /// What is sent before the FIN counts, and the FIN as one more.
    fn all(&self) -> u64 {
        self.total + u64::from(self.finishing)
    }

    /// Hears a segment whose checksums hold.
    pub fn receive_update(&mut self, segment: &Segment, options: &Options, now: Duration) -> Heard {
        let mut heard = Heard { fresh: self.got..self.got, skip: 0, wrong: false };
        let flags = segment.flags;
        let acknowledges_syn = flags.has(Flags::ACK) && segment.ack == self.iss + 1;
        match self.phase {
            Phase::Over(end) => {
                // The peer did not hear that all of it has come, and repeats what may be far from its end
                // (RFC 9293 section 3.10.7.4, TIME-WAIT).
                let repeats = flags.has(Flags::FIN) || segment.payload_len() > 0;
                self.owes |= end == End::Finished && repeats;
                return heard;
            }
            Phase::SynSent => {
                if flags.has(Flags::RST) {
                    heard.wrong = !acknowledges_syn;
                    if acknowledges_syn {
                        self.over(End::Reset);
                    }
                } else if flags.has(Flags::SYN) && acknowledges_syn {
                    self.irs = segment.seq;
                    self.agree(segment.window, options);
                    (self.phase, self.owes, self.timer, self.tries) = (Phase::Open, true, None, 0);
                } else {
                    heard.wrong = true;
                }
                return heard;
            }
            Phase::SynReceived => {
                if flags.has(Flags::RST) {
                    self.over(End::Reset);
                    return heard;
                }
                if flags.has(Flags::SYN) {
                    self.timer = Some(now);
                    return heard;
                }
                if !acknowledges_syn {
                    heard.wrong = flags.has(Flags::ACK) && segment.ack != self.iss;
                    return heard;
                }
                (self.phase, self.timer, self.tries) = (Phase::Open, None, 0);
            }
            Phase::Open => {}
        }
        if flags.has(Flags::RST) {
            // RFC 5961 section 3.2: exactly the next number, or nothing.
            if segment.seq == self.expected() {
                self.over(End::Reset);
            }
            return heard;
        }
        if flags.has(Flags::SYN) {
            // A SYN-ACK again: our acknowledgement was lost.
            self.owes = true;
            return heard;
        }
        if let (Some(stamp), Some(theirs)) = (&mut self.stamp, options.timestamps)
            && segment.seq.beyond(self.irs + 1 + self.got as u32) as i32 <= 0
        {
            *stamp = theirs.value;
        }
        if flags.has(Flags::ACK) {
            heard.wrong = !self.acknowledge(segment);
        }
        self.take(segment, &mut heard);
        if self.finished && self.finishing && self.una == self.all() && !self.owes {
            self.over(End::Finished);
        }
        heard
    }

    /// Takes an acknowledgement; false for one of what was never sent.
    fn acknowledge(&mut self, segment: &Segment) -> bool {
        let ahead = segment.ack.beyond(self.iss + 1 + self.una as u32) as i32;
        let acked = self.una.wrapping_add_signed(ahead.into());
        if ahead > 0 && acked > self.furthest {
            return false;
        }
        if ahead < 0 {
            return true;
        }
        let edge = acked + u64::from((segment.window << self.scale).0);
        if ahead > 0 {
            self.flight = (self.flight + ahead as u64).min(self.terms.in_flight);
            self.una = acked;
            self.next = self.next.max(acked);
            (self.duplicates, self.tries, self.timer) = (0, 0, None);
        } else if segment.payload_len() == 0 && edge == self.edge && self.next > self.una {
            self.duplicates += 1;
            if self.duplicates == DUPLICATES && self.una >= self.recover {
                self.go_back();
            }
        }
        if edge > self.edge {
            self.tries = 0;
        }
        self.edge = edge;
        true
    }

    /// Takes data and the end of the peer's stream.
    fn take(&mut self, segment: &Segment, heard: &mut Heard) {
        let len = u64::from(segment.payload_len());
        let fin = segment.flags.has(Flags::FIN);
        let ahead = i64::from(segment.seq.beyond(self.irs + 1 + self.got as u32) as i32);
        if len == 0 && !fin {
            // A keepalive or a probe of a closed window: one below what is expected.
            self.owes |= segment.seq == self.expected() - 1;
            return;
        }
        self.owes = true;
        // Once more than the window, for windows are rounded on the way.
        heard.wrong |= ahead > 2 * i64::from(self.terms.window) + 65_535;
        if self.finished || ahead > 0 || -ahead > len as i64 {
            return;
        }
        let skip = (-ahead) as u64;
        let end = self.got + len - skip;
        (heard.fresh, heard.skip) = (self.got..end, skip as usize);
        self.got = end;
        self.finished = fin;
    }

    /// Sends all again that is not acknowledged.
    fn go_back(&mut self) {
        (self.recover, self.next) = (self.furthest, self.una);
        self.flight = (self.flight / 2).max(2 * self.room);
    }

    fn over(&mut self, end: End) {
        (self.phase, self.timer, self.owes) = (Phase::Over(end), None, false);
    }

    /// What it has to say at `now`; to be asked until it has nothing more to say.
    pub fn say(&mut self, now: Duration) -> Option<Say> {
        let due = self.timer.is_some_and(|timer| timer <= now);
        match self.phase {
            Phase::Over(_) => return self.say_little(now),
            Phase::SynSent | Phase::SynReceived if self.abort => {
                self.over(End::Aborted);
                return None;
            }
            Phase::SynSent | Phase::SynReceived => return if due { self.say_syn(now) } else { None },
            Phase::Open if self.abort => {
                let say = self.plain(now, self.next, Flags::RST.and(Flags::ACK), 0);
                self.over(End::Aborted);
                return Some(say);
            }
            Phase::Open => {}
        }
        if due {
            self.tries += 1;
            self.timer = None;
            if self.tries > TRIES {
                self.over(End::GaveUp);
                return None;
            }
            if self.next > self.una { self.go_back() } else { self.probe = true }
        }
        let say = self.say_data(now).or_else(|| self.say_little(now));
        if self.timer.is_none() && self.una < self.all() {
            // Something is on the way, or the window is shut.
            self.timer = Some(now + WAIT * (1 << self.tries));
        }
        if self.finished && self.finishing && self.una == self.all() && !self.owes {
            self.over(End::Finished);
        }
        say
    }

    fn say_syn(&mut self, now: Duration) -> Option<Say> {
        if self.tries == TRIES {
            self.over(End::GaveUp);
            return None;
        }
        self.timer = Some(now + SYN_WAIT * (1 << self.tries));
        self.again += u64::from(self.tries > 0);
        self.tries += 1;
        let answers = self.phase == Phase::SynReceived;
        let Terms { mss, sack, scale, window, .. } = self.terms;
        let stamps = self.stamp.map(|echo| Timestamps { value: clock(now), echo });
        Some(Say {
            seq: self.iss,
            ack: if answers { self.irs + 1 } else { SeqNum::default() },
            flags: Flags::SYN.and(Flags::ACK.when(answers)),
            window: Window(window).field(WindowScale::default()),
            options: OptionList::syn(Some(mss), sack, stamps, scale),
            from: 0,
            len: 0,
        })
    }

    /// The next piece of the stream, or its end.
    fn say_data(&mut self, now: Duration) -> Option<Say> {
        let allowed = self.edge.min(self.una + self.flight.min(self.terms.in_flight));
        if self.next >= self.all() || (self.next >= allowed && self.next < self.total) {
            return None;
        }
        let left = self.total.saturating_sub(self.next);
        let len = left.min(self.room).min(allowed.saturating_sub(self.next));
        // No small segments while others are on the way (RFC 9293 section 3.8.6.2.1).
        if len < left.min(self.room) && self.next > self.una {
            return None;
        }
        let from = self.next;
        let fin = self.finishing && from + len == self.total;
        let flags = Flags::ACK.and(PSH.when(len > 0 && len == left)).and(Flags::FIN.when(fin));
        let say = self.plain(now, from, flags, len as usize);
        self.next += len + u64::from(fin);
        self.again += u64::from(self.next <= self.furthest);
        self.furthest = self.furthest.max(self.next);
        (self.owes, self.probe) = (false, false);
        Some(say)
    }

    /// A probe of a closed window, or an acknowledgement.
    fn say_little(&mut self, now: Duration) -> Option<Say> {
        let (probe, owes) = (std::mem::take(&mut self.probe), std::mem::take(&mut self.owes));
        if probe {
            // One below, as Linux does: the answer tells the window.
            let mut say = self.plain(now, self.next, Flags::ACK, 0);
            say.seq = say.seq - 1;
            return Some(say);
        }
        owes.then(|| self.plain(now, self.next, Flags::ACK, 0))
    }

    fn plain(&self, now: Duration, from: u64, flags: Flags, len: usize) -> Say {
        let stamps = self.stamp.map(|echo| Timestamps { value: clock(now), echo });
        Say {
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

/// The clock of timestamps: milliseconds, never zero.
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
    use crate::segment::{Content, envelope, key};

    /// Two ends and the way between them, on which frames are lost.
    struct Wire {
        now: Duration,
        loss: f64,
        rng: SmallRng,
        ends: [Option<Tcp>; 2],
        on_the_way: [VecDeque<(Duration, Vec<u8>)>; 2],
        terms: Terms,
        content: Content,
        wrong: u32,
    }

    impl Wire {
        fn new(terms: [Terms; 2], iss: u32, loss: f64, seed: u64) -> Wire {
            let client = Tcp::call(terms[1], iss, Duration::ZERO);
            Wire {
                now: Duration::ZERO,
                loss,
                rng: SmallRng::seed_from_u64(seed),
                ends: [None, Some(client)],
                on_the_way: Default::default(),
                terms: terms[0],
                content: Content::default(),
                wrong: 0,
            }
        }

        /// A millisecond passes.
        fn step(&mut self) {
            self.now += Duration::from_millis(1);
            let both = key(("10.0.0.2".parse().unwrap(), 80), ("11.0.0.1".parse().unwrap(), 1025), Vlan::default());
            for side in Side::BOTH {
                let (own, other) = (side as usize, side.other() as usize);
                while let Some((_, mut frame)) = self.on_the_way[own].pop_front_if(|(at, _)| *at <= self.now) {
                    let len = frame.len();
                    let head = Head::whole(&mut frame, len);
                    let Parsed::Tcp(segment) = Parsed::parse(side.other(), &head) else { panic!("a segment") };
                    assert!(segment.checksums_hold(&head));
                    let options = Options::read(segment.options(head.bytes()));
                    match &mut self.ends[own] {
                        None => {
                            let iss = self.rng.random();
                            self.ends[own] = Some(Tcp::answer(self.terms, iss, &segment, &options, self.now));
                        }
                        Some(tcp) => {
                            let heard = tcp.receive_update(&segment, &options, self.now);
                            let (from, len) = (heard.fresh.start, (heard.fresh.end - heard.fresh.start) as usize);
                            let start = usize::from(segment.payload) + heard.skip;
                            let right =
                                head.bytes()[start..start + len] == *self.content.bytes(other as u64, from, len);
                            self.wrong += u32::from(heard.wrong) + u32::from(!right);
                        }
                    }
                }
                let Some(tcp) = &mut self.ends[own] else { continue };
                let way = envelope(both, side, [2; 6], [4; 6]);
                while let Some(say) = tcp.say(self.now) {
                    let mut frame = vec![0; 1600];
                    let content = &self.content;
                    let fill =
                        |payload: &mut [u8]| payload.copy_from_slice(content.bytes(own as u64, say.from, say.len));
                    let len = say.write(&way, &mut frame, fill);
                    frame.truncate(len);
                    if self.rng.random::<f64>() >= self.loss {
                        self.on_the_way[other].push_back((self.now + Duration::from_millis(5), frame));
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

        /// Whatever both offer, wherever their numbers begin and whatever is lost, all bytes arrive once and in order.
        #[test]
        fn everything_arrives_and_both_ends_know(
            server in terms(), client in terms(), iss in any::<u32>(), lossy in any::<bool>(), seed in any::<u64>(),
            bytes in [0u64..60_000, 0u64..60_000],
        ) {
            let mut wire = Wire::new([server, client], iss, if lossy { 0.02 } else { 0.0 }, seed);
            let mut told = [false; 2];
            for _ in 0..60_000 {
                wire.step();
                for side in 0..2 {
                    if let Some(tcp) = wire.ends[side].as_mut().filter(|tcp| tcp.is_open() && !told[side]) {
                        tcp.write(bytes[side]);
                        tcp.finish();
                        told[side] = true;
                    }
                }
                if wire.ends.iter().all(|end| end.as_ref().is_some_and(|end| end.end().is_some())) {
                    break;
                }
            }
            let [Some(server), Some(client)] = &wire.ends else { panic!("both were there") };
            prop_assert_eq!(wire.wrong, 0);
            prop_assert_eq!([server.end(), client.end()], [Some(End::Finished); 2]);
            prop_assert_eq!([client.received(), server.received()], bytes);
            if !lossy {
                prop_assert_eq!(server.sent_again() + client.sent_again(), 0);
            }
        }
    }

    #[test]
    fn nobody_answers_and_it_gives_up() {
        let mut tcp = Tcp::call(Terms::linux(1460), 7, Duration::ZERO);
        let mut syns = Vec::new();
        for second in 0..200 {
            syns.extend(tcp.say(Duration::from_secs(second)).map(|_| second));
        }
        assert_eq!(syns, [0, 1, 3, 7, 15, 31]);
        assert_eq!(tcp.end(), Some(End::GaveUp));
    }
}
