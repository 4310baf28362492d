//! The engine: one worker's share of the proxy. What a frame is and whose it is gets decided here; the rest of the story is told in
//! `handshake` (a client calls), `calling` (its server is called), `direct` (the LAN calls, and whatever else is passed through),
//! `joined` (both ends talk), `errors` (somebody on the way complains) and `unknown` (nobody knows the connection).

mod calling;
mod direct;
mod errors;
mod explain;
mod handshake;
mod joined;
mod listing;
mod room;
#[cfg(test)]
pub(crate) mod said;
mod standing;
mod unknown;

use crate::answered::Answered;
use crate::backends::Backends;
use crate::config::{Destination, Extension, Handshake, Policy, SackConflict, Stray, Timeouts};
use crate::cookie::{Jar, Rotation};
use crate::doors::Doors;
use crate::flow::{Flow, Marks, State};
use crate::fragments::Fragments;
use crate::keyed::Keys;
use crate::learn::{Learned, Lesson};
use crate::limit::{Limiter, Meter};
use crate::news::News;
use crate::pen::Pen;
use crate::seq::{RawWindow, SeqDelta, SeqNum};
use crate::table::{Guess, Id, Table};
use crate::wheel::{Ticks, Wheel, tick, ticks};
use crate::wire::{Ends, Envelope, Flags, OptionList, Outgoing, Parsed, Segment, Timestamps};
use crate::{Config, Counters, DropReason, Event, Head, Instant, Side, Ticket, Verdict};
pub use explain::{Excerpt, Explanation, Field, fields};
pub use listing::{Connection, End, Filter};
use room::Queue;
pub use standing::Standing;
use std::sync::Arc;

/// The secret of all cookies, hashes and filters: 48 random bytes, the same on every worker.
#[derive(Clone)]
pub struct Secrets([u8; 48]);

impl Secrets {
    /// Secrets made of these bytes, which must come from a good source.
    pub const fn new(random: [u8; 48]) -> Self {
        Self(random)
    }

    /// The keys of the hash that names flows and packets.
    pub(crate) fn hash_keys(&self) -> Keys {
        self.pair(0)
    }

    /// The `n`th of three pairs of SipHash keys.
    fn pair(&self, n: usize) -> Keys {
        let word = |at: usize| self.0[at..at + 8].iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
        (word(16 * n), word(16 * n + 8))
    }
}

/// Where the engine's own segments go: the worker, which fills a spare frame.
pub trait Egress {
    /// Takes a spare frame, lets `write` fill its buffer (of at least 128 bytes) and sends as many bytes as it returns out of
    /// port `to`. Returns false, without calling `write`, when no frame is spare.
    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool;

    /// Whether it wants to be told why something is decided.
    const LISTENS: bool = false;

    /// Is told why something is decided, in the words and with the numbers of the decision. Those are made up only for an egress that
    /// wants to know; a worker's does not.
    #[inline(always)]
    fn note(&mut self, _why: impl FnOnce() -> String) {}
}

/// What the first pass found out about a frame.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    parsed: Parsed,
    hash: u64,
    /// Where the limiter keeps the tokens of a SYN's source.
    tokens: u32,
    /// Where in the table its flow probably is, or nowhere.
    place: Id,
    /// If there is none, as of which flow that was entered.
    entered: u32,
}

impl Look {
    /// What the frame turned out to be.
    pub fn parsed(&self) -> &Parsed {
        &self.parsed
    }

    /// The keyed hash of the connection or the packet the frame belongs to; 0 if it belongs to none.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

impl Default for Look {
    fn default() -> Self {
        Self { parsed: Parsed::Bad(DropReason::Malformed), hash: 0, tokens: 0, place: Id::NOWHERE, entered: 0 }
    }
}

/// An IP address of 16 bytes in network order, an IPv4 one mapped into IPv6 (RFC 4291 section 2.5.5.2).
pub type Source = [u8; 16];

/// A client's attempt to open a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who calls.
    pub source: Source,
    /// A keyed hash of the ends and the number: the same when the call is repeated.
    pub hash: u64,
}

impl Look {
    /// The call that a frame from the WAN is, if it is one: a SYN without ACK.
    pub fn call(&self) -> Option<Call> {
        let Parsed::Tcp(segment) = &self.parsed else { return None };
        let flags = segment.flags;
        let opens = flags.has(Flags::SYN) && !flags.has(Flags::ACK.and(Flags::RST).and(Flags::FIN));
        let hash = self.hash ^ u64::from(segment.seq.get()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        opens.then(|| Call { source: source(&segment.ends), hash })
    }
}

/// The address at the WAN's end.
fn source(ends: &Ends) -> Source {
    let mut source = [0; 16];
    for (bytes, word) in source.as_chunks_mut().0.iter_mut().zip(ends.wan) {
        *bytes = word.to_be_bytes();
    }
    source
}

/// Proved sources remembered until they are asked for: more than a turn brings.
const PROVED_KEPT: usize = 256;

/// News kept until they are asked for: more than a turn brings.
const NEWS_KEPT: usize = 512;

/// How many flows there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Population {
    /// Entries of the SYN cache.
    pub half_open: u64,
    /// Connections from the WAN, from the dialled server to the last timer.
    pub proxied: u64,
    /// Connections passed through.
    pub direct: u64,
}

impl Population {
    /// The count a flow belongs to.
    fn of(&mut self, flow: &Flow) -> &mut u64 {
        match flow.state {
            State::HalfOpen => &mut self.half_open,
            _ if flow.is(Marks::PROXIED) => &mut self.proxied,
            _ => &mut self.direct,
        }
    }
}

/// [`Timeouts`] in ticks.
#[derive(Clone, Copy)]
struct Lifetimes {
    connected: Ticks,
    one_fin: Ticks,
    both_fin: Ticks,
    time_wait: Ticks,
    reset: Ticks,
    opening_sent: Ticks,
    opening_answered: Ticks,
    half_open: Ticks,
    dialling: Ticks,
    redial: Ticks,
    redial_most: Ticks,
}

impl Lifetimes {
    fn new(timeouts: &Timeouts) -> Self {
        Self {
            connected: ticks(timeouts.connected),
            one_fin: ticks(timeouts.one_fin),
            both_fin: ticks(timeouts.both_fin),
            time_wait: ticks(timeouts.time_wait),
            reset: ticks(timeouts.reseted),
            opening_sent: ticks(timeouts.ul_syn_sent),
            opening_answered: ticks(timeouts.ul_syn_rcvd),
            half_open: ticks(timeouts.dl_half_open),
            dialling: ticks(timeouts.dl_syn_sent),
            redial: ticks(timeouts.syn_retx.min(timeouts.dl_syn_sent)),
            redial_most: ticks(timeouts.syn_retx_max.max(timeouts.syn_retx)),
        }
    }

    /// How long a flow may rest in its state.
    fn of(&self, flow: &Flow) -> Ticks {
        match flow.state {
            State::Free => 0,
            State::HalfOpen => self.half_open,
            State::Dialling => self.redial,
            State::OpeningSent => self.opening_sent,
            State::OpeningAnswered => self.opening_answered,
            State::Established if flow.is(Marks::TENTATIVE) => self.half_open,
            State::Established => self.connected,
            State::Closing if flow.is_over() => self.both_fin,
            State::Closing => self.one_fin,
            State::TimeWait => self.time_wait,
            State::Reset => self.reset,
        }
    }
}

/// Steps of the timer wheel worked off in one call, so that a million flows that expire at once hold nobody up: as many as frames in a batch,
/// each of which costs about as much.
const STEPS_A_TURN: usize = 64;

/// The shortest time between two challenges sent on one flow, in half seconds (RFC 5961 section 7 wants a limit;
/// one for each flow cannot be read by others as a common one could).
const HALF_SECOND: u32 = 9;

/// The flow label of our own segments, where that of the sender is not known: not zero, and the same for all of a flow (RFC 6437 section 3).
fn label(hash: u64) -> u32 {
    ((hash >> 20) as u32 & 0xf_ffff) | 1
}

/// The half-second a time falls in, on a circle of nine hours.
fn half_second(now: Instant) -> u16 {
    (tick(now) >> HALF_SECOND) as u16
}

/// A frame at hand: everything a decision is made from.
struct Turn<'a, 'b, E> {
    side: Side,
    segment: &'a Segment,
    hash: u64,
    tokens: u32,
    now: Instant,
    head: &'a mut Head<'b>,
    egress: &'a mut E,
}

impl<E> Turn<'_, '_, E> {
    fn ends(&self) -> &Ends {
        &self.segment.ends
    }

    /// The bytes of the segment's options.
    fn options(&self) -> &[u8] {
        self.segment.options(self.head.bytes())
    }

    /// Whether the whole segment is in sight and its checksums hold.
    fn is_sound(&self) -> bool {
        self.segment.checksums_hold(self.head)
    }

    /// The envelope of the frame itself.
    #[inline(always)]
    fn envelope(&self) -> Envelope {
        Envelope::of(self.head.bytes(), self.segment, self.side)
    }

    /// Writes a segment of ours over the frame.
    #[inline(never)]
    fn overwrite(&mut self, outgoing: &Outgoing) -> bool {
        self.overwrite_inline(outgoing)
    }

    /// The same, grown into the caller: for what a flood is answered with.
    #[inline(always)]
    fn overwrite_inline(&mut self, outgoing: &Outgoing) -> bool {
        if !self.head.resize(outgoing.frame_len()) {
            return false;
        }
        outgoing.write(self.head.bytes_mut());
        true
    }
}

/// One worker's share of the proxy.
pub struct Proxy {
    hash_keys: Keys,
    table: Table,
    wheel: Wheel,
    jar: Jar,
    learned: Learned,
    limiter: Limiter,
    half_open: Queue,
    closing: Queue,
    dialling: Queue,
    /// Joined connections that may not have carried data yet.
    silent: Queue,
    /// Connections that are passed through and not established yet.
    openings: Queue,
    pen: Pen,
    fragments: Fragments,
    stray_fragments: Policy,
    icmp_errors: Policy,
    answered: Answered,
    doors: Doors,
    /// SYNs, and segments of connections that may be running, that are passed although nobody vouches for them.
    passed: Meter,
    introductions: Meter,
    draining: bool,
    lifetimes: Lifetimes,
    handshake: Handshake,
    /// The most particular first.
    destinations: Vec<Destination>,
    early_window: u16,
    multipath: Extension,
    fast_open: Extension,
    signed: Policy,
    stray: Stray,
    adopt_until: Instant,
    sack_conflict: SackConflict,
    mss_clamp: u16,
    counters: Counters,
    population: Population,
    /// Who has proved himself since [`Proxy::next_proved`] was last asked.
    proved: Vec<Source>,
    /// What was learned since [`Proxy::news`] was last asked.
    news: Vec<News>,
}

impl Proxy {
    /// A proxy with empty tables. All memory is taken here.
    ///
    /// # Panics
    /// If the flow table or the learning cache is empty, or the latter's size no power of two.
    pub fn new(config: &Config, secrets: &Secrets, now: Instant) -> Self {
        let candidates = || Queue::new(config.flow_capacity().min(room::CANDIDATES_REMEMBERED));
        let mut destinations = config.destinations.clone();
        destinations.sort_by_key(|destination| core::cmp::Reverse((destination.prefix, destination.port.is_some())));
        let mut proxy = Self {
            hash_keys: secrets.hash_keys(),
            table: Table::new(config.table_buckets, config.flow_capacity()),
            wheel: Wheel::new(now),
            jar: Jar::new(config, secrets.pair(1), now),
            learned: Learned::new(config, secrets.pair(2)),
            limiter: Limiter::new(&config.rate, secrets.pair(2)),
            half_open: Queue::new(config.half_open_max.min(config.flow_capacity())),
            closing: candidates(),
            dialling: candidates(),
            silent: candidates(),
            openings: candidates(),
            pen: Pen::new(config.pen_frames),
            fragments: Fragments::new(),
            stray_fragments: config.stray_fragments,
            icmp_errors: config.icmp_errors,
            answered: Answered::new(now),
            doors: Doors::new(config.closed_memory, secrets.pair(2)),
            passed: Meter::new(config.passed_rate),
            introductions: Meter::new(config.introductions),
            draining: false,
            lifetimes: Lifetimes::new(&config.timeouts),
            handshake: config.handshake,
            destinations,
            early_window: config.early_window,
            multipath: config.multipath,
            fast_open: config.fast_open,
            signed: config.signed,
            stray: config.stray,
            adopt_until: now + config.adopt_grace,
            sack_conflict: config.sack_conflict,
            mss_clamp: config.mss_clamp.unwrap_or(u16::MAX),
            counters: Counters::default(),
            population: Population::default(),
            proved: Vec::with_capacity(PROVED_KEPT),
            news: Vec::with_capacity(NEWS_KEPT),
        };
        if config.test_connections {
            proxy.make_test_connections(now);
        }
        proxy
    }

    /// From now on this is what the operator says of servers, for attributes that are commanded; returns what he had said before, so that
    /// the caller can free it elsewhere. Connections that were answered before keep what they were told.
    pub fn command(&mut self, backends: Arc<Backends>) -> Arc<Backends> {
        self.learned.command(backends)
    }

    /// Begins or ends to keep new connections from the proxy: SYNs from the WAN are passed to their servers as they are, so that connections opened
    /// from now on do not depend on this process. Clients that were answered lately may still prove themselves.
    pub fn drain(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// Changes the secret that cookies are signed with, when its time comes.
    pub fn rotate(&mut self, rotation: &Rotation, now: Instant) {
        self.jar.turn(now);
        self.jar.rotate(rotation);
    }

    /// First pass: parses the frame, hashes its ends and asks for the line of the flow table they fall in. What it finds out it writes to `look`.
    #[inline]
    pub fn look(&self, side: Side, head: &Head, look: &mut Look) {
        if let Some(segment) = Segment::usual_ipv4(side, head) {
            self.look_at_segment(side, segment, look);
        } else if let Some(segment) = Segment::usual_ipv6(side, head) {
            self.look_at_segment(side, segment, look);
        } else {
            self.look_closer(side, head, look);
        }
    }

    #[inline(always)]
    fn look_at_segment(&self, side: Side, segment: Segment, look: &mut Look) {
        let hash = segment.ends.hash(self.hash_keys);
        self.table.prefetch_bucket(hash);
        let mut tokens = 0;
        if segment.flags.has(Flags::SYN) && side == Side::Wan {
            // A copy, lest the segment itself have to lie in memory.
            let ends = segment.ends;
            tokens = self.limiter.place(&ends);
            self.limiter.prefetch(tokens);
        }
        *look = Look { parsed: Parsed::Tcp(segment), hash, tokens, place: Id::NOWHERE, entered: 0 };
    }

    /// Looks at a frame that is no usual segment.
    #[inline(never)]
    fn look_closer(&self, side: Side, head: &Head, look: &mut Look) {
        match Parsed::parse(side, head) {
            Parsed::Tcp(segment) => self.look_at_segment(side, segment, look),
            parsed => *look = Look { parsed, hash: self.look_for_owner(&parsed), ..Look::default() },
        }
    }

    /// The hash of what is no segment, but may belong to one.
    fn look_for_owner(&self, parsed: &Parsed) -> u64 {
        match parsed {
            Parsed::Error(quote) => {
                let hash = quote.ends.hash(self.hash_keys);
                self.table.prefetch_bucket(hash);
                hash
            }
            Parsed::Fragment(fragment) => {
                let hash = fragment.hash(self.hash_keys);
                self.fragments.prefetch(hash);
                hash
            }
            _ => 0,
        }
    }

    /// Between the passes: asks for the flow's own lines, now that the table's line is here, and notes whose they are.
    #[inline]
    pub fn reach(&self, look: &mut Look) {
        if let Parsed::Tcp(segment) = &look.parsed {
            match self.table.prefetch_flow(look.hash, segment.ends.v6) {
                Guess::Perhaps(id) => look.place = id,
                Guess::Elsewhere => self.answered.prefetch(look.hash),
                Guess::Nowhere => {
                    (look.place, look.entered) = (Id::ABSENT, self.table.entered());
                    self.answered.prefetch(look.hash);
                }
            }
        }
    }

    /// Second pass: decides what becomes of the frame, which has not changed since `look`.
    pub fn on_frame<E: Egress>(
        &mut self,
        side: Side,
        look: &Look,
        head: &mut Head,
        now: Instant,
        egress: &mut E,
    ) -> Verdict {
        match &look.parsed {
            Parsed::Tcp(segment) => {
                // Frames that went before in the batch may have changed what is where.
                let found = match look.place {
                    Id::ABSENT if look.entered == self.table.entered() => None,
                    place if self.table.is_at(place, &segment.ends) => Some(place),
                    _ => self.table.find(&segment.ends, look.hash),
                };
                let verdict = match found {
                    Some(id) if self.pass_usual(side, segment, id, head, now) => {
                        egress.note(|| {
                            "established, in sequence, nothing owed or in doubt: passed and translated".into()
                        });
                        Verdict::Forward
                    }
                    // Whoever wants to know why is told step by step, which leads to the same.
                    None if !E::LISTENS && self.answer_usual(side, segment, look, head, now) => Verdict::Reflect,
                    _ => self.on_any_segment(side, segment, look, found, head, now, egress),
                };
                self.conclude(side, verdict)
            }
            Parsed::Error(quote) => self.on_error(side, quote, look.hash, head, egress),
            Parsed::StrayError => self.on_stray_error(),
            Parsed::Fragment(fragment) => self.on_fragment(side, fragment.first, look.hash, now),
            Parsed::Pass(event) => {
                self.counters.count(*event);
                Verdict::Forward
            }
            Parsed::Bad(reason) => self.counters.drop(*reason),
        }
    }

    /// All passes for a single frame.
    pub fn on_single(&mut self, side: Side, head: &mut Head, now: Instant, egress: &mut impl Egress) -> Verdict {
        let mut look = Look::default();
        self.look(side, head, &mut look);
        self.on_frame(side, &look, head, now, egress)
    }

    /// Counts what becomes of a segment.
    #[inline(always)]
    fn conclude(&mut self, side: Side, verdict: Verdict) -> Verdict {
        if let Verdict::Drop(reason) = verdict {
            return self.counters.drop(reason);
        }
        self.counters.count(match side {
            Side::Lan => Event::LanSegment,
            Side::Wan => Event::WanSegment,
        });
        verdict
    }

    /// A segment of the flow that was found, or of none.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "what a turn is made of, in registers")]
    fn on_any_segment(
        &mut self,
        side: Side,
        segment: &Segment,
        look: &Look,
        found: Option<Id>,
        head: &mut Head,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict {
        let turn = Turn { side, segment, hash: look.hash, tokens: look.tokens, now, head: &mut *head, egress };
        let verdict = self.on_segment(turn, found);
        if segment.fragmented && verdict == Verdict::Forward {
            self.note_first_fragment(side, segment, head, now);
        }
        verdict
    }

    fn on_segment(&mut self, turn: Turn<impl Egress>, found: Option<Id>) -> Verdict {
        let flags = turn.segment.flags;
        let opens_and_ends = flags.has(Flags::SYN) && flags.has(Flags::FIN.and(Flags::RST));
        if opens_and_ends || !flags.has(Flags::SYN.and(Flags::ACK).and(Flags::RST)) {
            return Verdict::Drop(DropReason::BadFlags);
        }
        match found.map(|id| (id, self.table[id].state)) {
            None => self.on_stranger(turn),
            Some((id, State::HalfOpen)) => self.on_half_open(turn, id),
            Some((id, State::Dialling)) => self.on_dialling(turn, id),
            Some((id, State::OpeningSent | State::OpeningAnswered)) => self.on_opening(turn, id),
            Some((id, _)) => self.on_joined(turn, id),
        }
    }

    /// A segment whose ends no flow has.
    fn on_stranger(&mut self, turn: Turn<impl Egress>) -> Verdict {
        let flags = turn.segment.flags;
        match turn.side {
            _ if flags.has(Flags::RST) => self.on_unknown(turn),
            Side::Wan if !flags.has(Flags::SYN) => self.try_cookie(turn, None),
            Side::Wan if flags.has(Flags::ACK) => Verdict::Drop(DropReason::NoFlow),
            Side::Wan => self.answer_syn(turn, None),
            Side::Lan if flags.has(Flags::SYN) && flags.has(Flags::ACK) => self.refuse_late_answer(turn),
            Side::Lan if flags.has(Flags::SYN) => self.open_direct(turn, None),
            Side::Lan => self.on_unknown(turn),
        }
    }

    /// Does what is due: repeats SYNs, removes what has expired, changes keys. Works off a bounded share;
    /// returns true when more is due already.
    pub fn on_timeout(&mut self, now: Instant, egress: &mut impl Egress) -> bool {
        self.jar.turn(now);
        for _ in 0..STEPS_A_TURN {
            match self.wheel.step(self.table.flows_mut(), now) {
                None => return false,
                Some(None) => {}
                Some(Some(id)) => {
                    self.table.prefetch_next_bucket(id);
                    self.expire(id, now, egress);
                }
            }
        }
        true
    }

    /// The next held frame to bring back with [`Proxy::on_release`], if any. Ask after every frame and every timeout, until none is left.
    #[inline]
    pub fn next_release(&mut self) -> Option<Ticket> {
        self.pen.next_release()
    }

    /// Ends a ticket: what becomes of the frame that was held for it, which came from the WAN and has not changed since. Never
    /// [`Verdict::Hold`] again.
    pub fn on_release(&mut self, ticket: Ticket, head: &mut Head, now: Instant, egress: &mut impl Egress) -> Verdict {
        if !self.pen.redeem(ticket) {
            return self.counters.drop(DropReason::NotHeld);
        }
        self.counters.count(Event::Released);
        match self.on_single(Side::Wan, head, now, egress) {
            Verdict::Hold(_) => self.counters.drop(DropReason::NotHeld),
            verdict => verdict,
        }
    }

    /// A source that has proved itself by a cookie or an entry of the SYN cache, each time it does, until none is left. To be asked
    /// for once a turn; of those nobody asks for only the first few are kept.
    #[inline]
    pub fn next_proved(&mut self) -> Option<Source> {
        self.proved.pop()
    }

    /// Takes note that the client of a segment has proved itself.
    fn note_proof(&mut self, event: Event, ends: &Ends) {
        self.counters.count(event);
        if self.proved.len() < PROVED_KEPT {
            self.proved.push(source(ends));
        }
    }

    /// What this worker has learned of servers, for the others to [hear](Proxy::hear), oldest first. To be asked for once a turn; of what
    /// nobody asks for only the first few are kept.
    #[inline]
    pub fn news(&mut self) -> impl Iterator<Item = News> {
        self.news.drain(..)
    }

    /// Takes what another worker has learned for learned here; it is told no further. The worker's configuration and secrets are the same.
    pub fn hear(&mut self, news: &News, now: Instant) {
        match news {
            News::Answered(ends, lesson) => {
                self.learned.learn(ends, lesson, now);
                self.doors.opened(ends, now);
            }
            News::Refused(ends, client) => self.doors.refused(ends, *client, now),
        }
    }

    /// Takes note of a server's SYN-ACK.
    fn learn(&mut self, ends: &Ends, lesson: &Lesson, now: Instant) {
        let is_new = self.learned.learn(ends, lesson, now);
        let was_closed = self.doors.opened(ends, now);
        if is_new || was_closed {
            self.tell(News::Answered(*ends, *lesson));
        }
    }

    fn tell(&mut self, news: News) {
        if self.news.len() < NEWS_KEPT {
            self.news.push(news);
        }
    }

    /// Ends a ticket in whose name no frame was kept.
    pub fn void(&mut self, ticket: Ticket) {
        self.pen.redeem(ticket);
    }

    /// Frames held at most; every ticket's index is below.
    pub fn pen_frames(&self) -> usize {
        self.pen.places()
    }

    /// The earliest time at which [`Proxy::on_timeout`] may have something to do; `None` when nothing is pending.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.wheel.next_deadline()
    }

    /// What has been counted since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many flows there are of each kind.
    pub fn population(&self) -> Population {
        self.population
    }

    /// A flow's time has come; it is on no list.
    fn expire(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        let flow = &self.table[id];
        match flow.state {
            State::Dialling => self.redial(id, now, egress),
            State::Established if flow.is(Marks::ACK_OWED) => self.settle_acknowledgement(id, now, egress),
            State::Established if flow.is(Marks::UPDATE_PENDING) => self.repeat_update(id, now, egress),
            _ => {
                self.counters.count(Event::Expired);
                self.forget(id);
            }
        }
    }

    /// Sets a flow's deadline to what its state allows from now on.
    #[inline(always)]
    fn rest(&mut self, id: Id, now: Instant) {
        let lifetime = self.lifetimes.of(&self.table[id]);
        self.wheel.schedule(self.table.flows_mut(), id, tick(now).wrapping_add(lifetime));
    }

    /// Changes a flow's state, with what hangs on it: the population, the queue of those that may be evicted, the deadline.
    fn set_state(&mut self, id: Id, state: State, now: Instant) {
        let flow = &mut self.table[id];
        *self.population.of(flow) -= 1;
        flow.state = state;
        *self.population.of(flow) += 1;
        if matches!(state, State::TimeWait | State::Reset) {
            self.closing.push(id, flow.generation);
        }
        self.rest(id, now);
    }

    /// The way a segment takes that we send in the name of the end on `sender`.
    fn envelope(&self, id: Id, sender: Side) -> Envelope {
        let flow = &self.table[id];
        let (from, to) = (flow.mac(sender), flow.mac(sender.other()));
        Envelope {
            from,
            to,
            ends: self.table.ends(id),
            sender,
            ttl: flow.half(sender).ttl.max(1),
            id: 0,
            label: label(flow.hash),
            priorities: flow.tag_priorities(),
        }
    }

    /// Sends a segment of our own accord.
    fn emit(&mut self, to: Side, outgoing: &Outgoing, egress: &mut impl Egress) -> bool {
        let sent = egress.emit(to, |buffer| outgoing.write(buffer));
        if !sent {
            self.counters.count(Event::NoSpareFrame);
        }
        sent
    }

    /// The acknowledgement the end opposite to `to` would send now: it serves as the handshake's last one, as window
    /// update, and as challenge (RFC 5961).
    #[inline(always)]
    fn acknowledgement(&self, id: Id, to: Side, now: Instant) -> Acknowledgement {
        let flow = &self.table[id];
        let (sender, receiver) = (flow.half(to.other()), flow.half(to));
        let timestamps = match to {
            Side::Wan => flow.is(Marks::TIMESTAMPS).then(|| Timestamps {
                value: if flow.is(Marks::TIMESTAMPS_LAN) { sender.ts_value } else { flow.ts_delta.shift(tick(now)) },
                echo: receiver.ts_value,
            }),
            Side::Lan => flow.is(Marks::TIMESTAMPS_LAN).then(|| {
                // A server that must not take the LAN for the client's distance gets no echo to measure it by.
                let measures = !flow.is(Marks::EARLY) || flow.is(Marks::CARRIED);
                let echo = if measures { (-flow.ts_delta).shift(receiver.ts_value) } else { 0 };
                Timestamps { value: sender.ts_value, echo }
            }),
        };
        Acknowledgement {
            seq: sender.next,
            ack: sender.acked - flow.outward(to),
            window: flow.told_window(to.other()),
            options: OptionList::plain(timestamps),
        }
    }

    /// Answers a segment on the other end's behalf with an acknowledgement: its sender, if it is genuine, then knows where the connection stands.
    fn challenge(&mut self, mut turn: Turn<impl Egress>, id: Id) -> Verdict {
        let flow = &mut self.table[id];
        if flow.challenged == half_second(turn.now) {
            turn.egress.note(|| "challenged within this half-second already".into());
            return Verdict::Drop(DropReason::Challenged);
        }
        flow.challenged = half_second(turn.now);
        self.counters.count(Event::Challenge);
        self.acknowledge_in_place(&mut turn, id)
    }

    /// Writes the acknowledgement the receiver would send over the segment itself, and sends it back.
    fn acknowledge_in_place(&self, turn: &mut Turn<impl Egress>, id: Id) -> Verdict {
        let mut envelope = turn.envelope().reversed();
        envelope.ttl = self.table[id].half(turn.side.other()).ttl.max(1);
        envelope.label = label(turn.hash);
        let acknowledgement = self.acknowledgement(id, turn.side, turn.now);
        if turn.overwrite_inline(&acknowledgement.outgoing(&envelope)) {
            Verdict::Reflect
        } else {
            Verdict::Drop(DropReason::NoRoom)
        }
    }

    /// Answers a segment that no connection can have asked for with the reset that RFC 9293 section 3.10.7.1 prescribes.
    fn reset_in_place(turn: &mut Turn<impl Egress>) -> Verdict {
        let Segment { seq, ack, flags, .. } = *turn.segment;
        if flags.has(Flags::ACK) {
            return Self::refuse_in_place(turn, ack, None);
        }
        Self::refuse_in_place(turn, SeqNum::default(), Some(seq + turn.segment.seq_len()))
    }

    /// Answers a segment with a reset that bears this number, and acknowledges that one.
    fn refuse_in_place(turn: &mut Turn<impl Egress>, seq: SeqNum, ack: Option<SeqNum>) -> Verdict {
        let envelope = turn.envelope().reversed();
        let reset = Outgoing {
            envelope: &envelope,
            seq,
            ack: ack.unwrap_or_default(),
            flags: Flags::RST.and(Flags::ACK.when(ack.is_some())),
            window: RawWindow(0),
            options: &OptionList::none(),
        };
        if turn.overwrite(&reset) { Verdict::Reflect } else { Verdict::Drop(DropReason::NoRoom) }
    }

    /// The established flows load generators count on: 540 pairs of a LAN end 10.0.0.0 + 2(j + 1), port 12345, and a WAN end
    /// 11.0.0.0 + 2j + 1, port 54321.
    fn make_test_connections(&mut self, now: Instant) {
        for j in 0..540 {
            let mapped = |address| [0, 0, 0xffff, address];
            let ends = Ends {
                lan: mapped(0x0a00_0000 + 2 * j + 2),
                wan: mapped(0x0b00_0000 + 2 * j + 1),
                lan_port: 12345,
                wan_port: 54321,
                ..Ends::default()
            };
            let hash = ends.hash(self.hash_keys);
            let Some(id) = self.table.insert(&ends, hash) else { return };
            let flow = &mut self.table[id];
            flow.state = State::Established;
            flow.mark(Marks::PROXIED, true);
            flow.mark(Marks::UNJUDGED, true);
            flow.seq_delta = SeqDelta::between(0, hash as u32);
            *self.population.of(flow) += 1;
            let deadline = tick(now).wrapping_add(self.lifetimes.connected);
            self.wheel.enter(self.table.flows_mut(), id, deadline);
        }
    }
}

/// An acknowledgement without data, but for its envelope.
struct Acknowledgement {
    seq: SeqNum,
    ack: SeqNum,
    window: RawWindow,
    options: OptionList,
}

impl Acknowledgement {
    fn outgoing<'a>(&'a self, envelope: &'a Envelope) -> Outgoing<'a> {
        let Self { seq, ack, window, ref options } = *self;
        Outgoing { envelope, seq, ack, flags: Flags::ACK, window, options }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An egress without a frame to spare.
    pub(super) struct Nobody;

    impl Egress for Nobody {
        fn emit(&mut self, _: Side, _: impl FnOnce(&mut [u8]) -> usize) -> bool {
            false
        }
    }

    /// An engine with this many connections that rest from `now` on.
    fn resting(count: u32, now: Instant) -> Proxy {
        let config = Config { table_buckets: 1000, half_open_max: 4, ..Config::default() };
        let mut proxy = Proxy::new(&config, &Secrets::new([1; 48]), now);
        for n in 0..count {
            let ends = Ends { lan: [0, 0, 0xffff, 1], wan: [0, 0, 0xffff, n], ..Ends::default() };
            let hash = ends.hash(proxy.hash_keys);
            proxy.admit(&ends, hash, now, |flow| flow.state = State::Established).unwrap();
        }
        proxy
    }

    #[test]
    fn what_was_absent_in_the_first_pass_may_have_come_by_the_second() {
        let now = Instant::from_secs(1000);
        let mut proxy = resting(0, now);
        let call = said::Said { flags: Flags::SYN.0, ..said::Said::default() };
        let (mut frames, mut looks) = ([call.frame(), call.frame()], [Look::default(); 2]);
        for (frame, look) in frames.iter_mut().zip(&mut looks) {
            let len = frame.len();
            proxy.look(Side::Lan, &Head::whole(frame, len), look);
        }
        looks.iter_mut().for_each(|look| proxy.reach(look));
        for (frame, look) in frames.iter_mut().zip(&looks) {
            let len = frame.len();
            let verdict = proxy.on_frame(Side::Lan, look, &mut Head::whole(frame, len), now, &mut Nobody);
            assert_eq!((verdict, proxy.population().direct), (Verdict::Forward, 1));
        }
    }

    #[test]
    fn flows_that_fall_due_together_are_removed_a_share_a_turn_and_none_is_forgotten() {
        let now = Instant::from_secs(1000);
        let mut proxy = resting(5000, now);
        let due = now + Timeouts::default().connected + core::time::Duration::from_secs(1);
        let (mut left, mut turns) = (5000, 0);
        loop {
            let more = proxy.on_timeout(due, &mut Nobody);
            turns += 1;
            let still = proxy.population().direct;
            assert!(left - still <= STEPS_A_TURN as u64, "{} in one turn", left - still);
            left = still;
            if !more {
                break;
            }
        }
        assert_eq!((left, proxy.next_deadline()), (0, None));
        // Besides its removal a flow costs the turns of the wheel's four levels at most.
        assert!(turns <= 5 * 5000 / STEPS_A_TURN + 1, "{turns} turns");
    }
}
