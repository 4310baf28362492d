//! A client calls: its SYN answered with a cookie, its proof examined, the server dialled, the two joined.

use super::{Proxy, Turn};
use crate::cookie::{Minted, ts_clock};
use crate::flow::{Flow, Marks, State};
use crate::learn::{Lesson, default_mss};
use crate::limit::Admission;
use crate::seq::{RawWindow, SeqDelta, SeqNum, WindowScale};
use crate::table::Id;
use crate::terms::{Offer, Terms};
use crate::translate::TIMESTAMPS_ROOM;
use crate::wheel::{Ticks, tick};
use crate::wire::{
    Addr, DEFAULT_TTL, ETHERNET_MIN, Ends, Envelope, Flags, OptionList, Options, Outgoing, Segment, Timestamps,
};
use crate::{DropReason, Egress, Event, Instant, Side, Verdict};

/// The longest interval between two SYNs to a server, as a power of two of the first.
const MAX_BACK_OFF: u8 = 4;
/// How often a window update is repeated to a client that shows no sign of it, at intervals of 1, 2, 4 and 8 s.
const UPDATES_REPEATED: u8 = 4;
/// One second, in ticks.
const SECOND: Ticks = 1_000_000 / 1024;
/// When a server that remembers an older connection is called again after it was told to forget: 20 ms, in ticks.
const AFTER_RESET: Ticks = 20;

/// A proof: the terms a client's acknowledgement has shown to be agreed, and the numbers it was agreed with.
pub(super) struct Proof {
    terms: Terms,
    client_isn: SeqNum,
    outer_isn: SeqNum,
}

impl Proxy {
    /// Answers a SYN from the WAN, over the remains of `former` if there are any.
    pub(super) fn answer_syn(&mut self, mut turn: Turn<impl Egress>, former: Option<Id>) -> Verdict {
        if !turn.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        if !are_possible(turn.ends()) || is_to_or_from_group(turn.head.bytes()) {
            return Verdict::Drop(DropReason::BadAddress);
        }
        let (now, isn) = (turn.now, turn.segment.seq);
        let admission = self.limiter.admit(turn.tokens, turn.hash, isn, now);
        if admission == Admission::Refused {
            return Verdict::Drop(DropReason::RateLimited);
        }
        if let Some(event) = admission.event() {
            self.counters.count(event);
        }
        self.jar.turn(now);
        let offered = Options::read(turn.options());
        let offer = self.learned.offer(turn.ends(), now);
        let terms = self.agree(turn.ends(), &offered, &offer);
        let mut minted = self.jar.mint(turn.ends(), isn, &terms, now);
        match former {
            Some(id) if self.table[id].state == State::HalfOpen => {
                minted = self.repeat_half_open(&turn, id, &terms, minted);
            }
            Some(id) => self.table[id].mark(Marks::REOPENING, true),
            None => {
                let (ends, hash) = (*turn.ends(), turn.hash);
                let stored = self
                    .admit_half_open(&ends, hash, now, |flow| keep_half_open(flow, &turn, &offered, &terms, minted));
                if stored.is_none() && terms.mss < self.jar.smallest_mss(terms.timestamps) {
                    return Verdict::Drop(DropReason::MssTooSmall);
                }
            }
        }
        self.write_syn_ack(&mut turn, &offered, &offer, &terms, minted)
    }

    /// What holds between a client that offered this and a server of which we say that.
    fn agree(&self, ends: &Ends, offered: &Options, offer: &Offer) -> Terms {
        let timestamps = offered.timestamps.is_some() && offer.timestamps;
        let promised = if offered.scale.is_some() { self.jar.promise(offer.scale, timestamps) } else { None };
        Terms {
            mss: offered.mss.unwrap_or(default_mss(ends)).min(self.mss_clamp),
            scale: offered.scale.filter(|_| promised.is_some()),
            promised,
            sack: offered.sack_permitted && offer.sack,
            timestamps,
        }
    }

    /// A SYN for an entry of the SYN cache: the same one gets the same number, another begins anew.
    fn repeat_half_open(&mut self, turn: &Turn<impl Egress>, id: Id, terms: &Terms, minted: Minted) -> Minted {
        let flow = &mut self.table[id];
        let offered = Options::read(turn.options());
        let isn = if flow.half(Side::Wan).next == turn.segment.seq + 1 {
            self.counters.count(Event::SynRepeated);
            flow.outer_isn
        } else {
            minted.isn
        };
        let minted = Minted { isn, ..minted };
        keep_half_open(flow, turn, &offered, terms, minted);
        self.rest(id, turn.now);
        minted
    }

    fn write_syn_ack(
        &mut self,
        turn: &mut Turn<impl Egress>,
        offered: &Options,
        offer: &Offer,
        terms: &Terms,
        minted: Minted,
    ) -> Verdict {
        let envelope = turn.envelope().reversed();
        let echo = offered.timestamps.map_or(0, |timestamps| timestamps.value);
        let timestamps = minted.ts_value.map(|value| Timestamps { value, echo });
        let mut options = OptionList::syn(Some(offer.mss), terms.sack, timestamps, terms.promised);
        // An answer longer than the question would make us an amplifier: then it goes without MSS, or not at all.
        let room = turn.head.total().max(ETHERNET_MIN);
        if envelope.frame_len(&options) > room {
            options = OptionList::syn(None, terms.sack, timestamps, terms.promised);
        }
        let answer = Outgoing {
            envelope: &envelope,
            seq: minted.isn,
            ack: turn.segment.seq + 1,
            flags: Flags::SYN.and(Flags::ACK),
            // Nothing may come before the server has answered: what came we should have to keep.
            window: RawWindow(0),
            options: &options,
        };
        if answer.frame_len() > room || !turn.overwrite(&answer) {
            return Verdict::Drop(DropReason::NoRoom);
        }
        self.counters.count(Event::SynAnswered);
        Verdict::Reflect
    }

    /// A segment from the WAN that may prove its sender by a cookie; a `former` flow of these ends gives way to it.
    pub(super) fn try_cookie(&mut self, turn: Turn<impl Egress>, former: Option<Id>) -> Verdict {
        match self.open_cookie(&turn) {
            Some(proof) => self.accept_cookie(turn, &proof, former),
            None => Verdict::Drop(DropReason::BadCookie),
        }
    }

    /// What a segment from the WAN proves, if it acknowledges a cookie.
    pub(super) fn open_cookie(&mut self, turn: &Turn<impl Egress>) -> Option<Proof> {
        self.jar.turn(turn.now);
        let Segment { seq, ack, .. } = *turn.segment;
        let outer_isn = ack - 1;
        let echo = Options::timestamps(turn.options()).map(|timestamps| timestamps.echo);
        // A keepalive or a zero-window probe counts one below the next number, which is the SYN's own.
        [seq - 1, seq].into_iter().find_map(|client_isn| {
            let terms = self.jar.open(turn.ends(), client_isn, outer_isn, echo)?;
            Some(Proof { terms, client_isn, outer_isn })
        })
    }

    pub(super) fn accept_cookie(&mut self, turn: Turn<impl Egress>, proof: &Proof, former: Option<Id>) -> Verdict {
        if is_damaged(&turn) {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        self.counters.count(Event::CookieGood);
        self.dial(turn, proof, former)
    }

    /// Segments for an entry of the SYN cache.
    pub(super) fn on_half_open(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        let Segment { seq, ack, flags, .. } = *turn.segment;
        let flow = &self.table[id];
        let next = flow.half(Side::Wan).next;
        match turn.side {
            Side::Wan if flags.has(Flags::SYN) && flags.has(Flags::ACK) => Verdict::Drop(DropReason::WrongState),
            Side::Wan if flags.has(Flags::SYN) => self.answer_syn(turn, Some(id)),
            Side::Wan if flags.has(Flags::RST) => {
                // The owner of a forged source did not call and says so; a client may also think better of it.
                if seq != next {
                    return Verdict::Drop(DropReason::BadReset);
                }
                if !turn.is_sound() {
                    return Verdict::Drop(DropReason::BadChecksum);
                }
                self.forget(id);
                Verdict::Drop(DropReason::Consumed)
            }
            Side::Wan => {
                let ours = ack == flow.outer_isn + 1 && (seq == next || seq == next - 1);
                if !ours {
                    return self.try_cookie(turn, Some(id));
                }
                if is_damaged(&turn) {
                    return Verdict::Drop(DropReason::BadChecksum);
                }
                let proof = Proof { terms: terms_of(flow), client_isn: next - 1, outer_isn: flow.outer_isn };
                self.counters.count(Event::CacheHit);
                self.dial(turn, &proof, Some(id))
            }
            // The LAN has called the same ends at the same time.
            Side::Lan if flags.has(Flags::SYN) && !flags.has(Flags::ACK) => self.open_direct(turn, Some(id)),
            Side::Lan => Verdict::Drop(DropReason::WrongState),
        }
    }

    /// The client is real: calls the server in its name, by a SYN written over the segment that proved it.
    fn dial(&mut self, mut turn: Turn<impl Egress>, proof: &Proof, former: Option<Id>) -> Verdict {
        let now = turn.now;
        self.limiter.refund(turn.ends(), now);
        if let Some(former) = former {
            self.give_way(former, turn.egress);
        }
        let (ends, hash) = (*turn.ends(), turn.hash);
        self.make_room(now, turn.egress);
        let presumed = proof.terms.timestamps && !self.learned.offer(&ends, now).timestamps_known;
        let Some(id) = self.admit(&ends, hash, now, |flow| begin_dialling(flow, &turn, proof, presumed)) else {
            return Verdict::Drop(DropReason::TableFull);
        };
        self.dialling.push(id, self.table[id].generation);
        self.dial_in_place(&mut turn, id)
    }

    /// Removes a flow whose ends a new connection takes. A server that is just being called is told that the old call is off.
    fn give_way(&mut self, id: Id, egress: &mut impl Egress) {
        if self.table[id].state == State::Dialling {
            self.call_off(id, egress);
        }
        self.forget(id);
    }

    /// Tells a server that is being called to forget the call.
    fn call_off(&mut self, id: Id, egress: &mut impl Egress) {
        let seq = self.table[id].half(Side::Wan).next;
        let envelope = self.envelope(id, Side::Wan);
        self.emit(Side::Lan, &bare_reset(&envelope, seq, &OptionList::none()), egress);
    }

    /// Gives up calling a server: both ends are told, and the flow is forgotten.
    pub(super) fn give_up(&mut self, id: Id, egress: &mut impl Egress) {
        self.call_off(id, egress);
        let seq = self.table[id].outer_isn + 1;
        let envelope = self.envelope(id, Side::Lan);
        self.emit(Side::Wan, &bare_reset(&envelope, seq, &OptionList::none()), egress);
        self.forget(id);
    }

    fn dial_in_place(&mut self, turn: &mut Turn<impl Egress>, id: Id) -> Verdict {
        let envelope = turn.envelope();
        let options = call_options(&self.table[id]);
        if !turn.overwrite(&call(&self.table[id], &envelope, &options)) {
            return Verdict::Drop(DropReason::NoRoom);
        }
        self.counters.count(Event::Dialled);
        Verdict::Forward
    }

    /// Segments while the server is being called.
    pub(super) fn on_dialling(&mut self, turn: Turn<impl Egress>, id: Id) -> Verdict {
        match turn.side {
            Side::Wan => self.on_client_while_dialling(turn, id),
            Side::Lan => self.on_server_while_dialling(turn, id),
        }
    }

    fn on_client_while_dialling(&mut self, mut turn: Turn<impl Egress>, id: Id) -> Verdict {
        let Segment { seq, ack, flags, window, .. } = *turn.segment;
        let flow = &mut self.table[id];
        let next = flow.half(Side::Wan).next;
        if flags.has(Flags::SYN) {
            return if flags.has(Flags::ACK) {
                Verdict::Drop(DropReason::WrongState)
            } else {
                self.answer_syn(turn, Some(id))
            };
        }
        if flags.has(Flags::RST) {
            if seq != next {
                return Verdict::Drop(DropReason::BadReset);
            }
            if !turn.is_sound() {
                return Verdict::Drop(DropReason::BadChecksum);
            }
            // The client has changed its mind; the server, if it has heard of it already, must too.
            let envelope = turn.envelope();
            let overwritten = turn.overwrite(&bare_reset(&envelope, seq, &OptionList::none()));
            self.forget(id);
            return if overwritten { Verdict::Forward } else { Verdict::Drop(DropReason::NoRoom) };
        }
        if ack == flow.outer_isn + 1 && (seq == next || seq == next - 1) {
            // It knocks again; so do we. Whatever data it brings it will bring again, as the window is shut.
            if is_damaged(&turn) {
                return Verdict::Drop(DropReason::BadChecksum);
            }
            flow.half_mut(Side::Wan).window = window;
            return self.dial_in_place(&mut turn, id);
        }
        if flow.is(Marks::REOPENING) {
            return self.try_cookie(turn, Some(id));
        }
        Verdict::Drop(DropReason::WrongState)
    }

    fn on_server_while_dialling(&mut self, mut turn: Turn<impl Egress>, id: Id) -> Verdict {
        let Segment { ack, flags, .. } = *turn.segment;
        let answers = flags.has(Flags::ACK) && ack == self.table[id].half(Side::Wan).next;
        if flags.has(Flags::RST) && !answers {
            return Verdict::Drop(DropReason::BadReset);
        }
        if !turn.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        if flags.has(Flags::RST) {
            return self.pass_refusal(turn, id);
        }
        if flags.has(Flags::SYN) && answers {
            return self.splice(turn, id);
        }
        if flags.has(Flags::ACK) {
            // The server remembers an older connection of these ends. The client itself would answer so (RFC 9293 section 3.10.7.3).
            let soon = tick(turn.now).wrapping_add(AFTER_RESET);
            self.wheel.schedule(self.table.flows_mut(), id, soon);
            return Self::reset_in_place(&mut turn);
        }
        Verdict::Drop(DropReason::WrongState)
    }

    /// The server refuses: the client, which takes itself for connected, gets a reset it must accept.
    fn pass_refusal(&mut self, mut turn: Turn<impl Egress>, id: Id) -> Verdict {
        let envelope = turn.envelope();
        let seq = self.table[id].outer_isn + 1;
        let overwritten = turn.overwrite(&bare_reset(&envelope, seq, &OptionList::none()));
        self.counters.count(Event::Refused);
        // Should the reset be lost, the client's next segment opens its cookie again and asks again.
        self.forget(id);
        if overwritten { Verdict::Forward } else { Verdict::Drop(DropReason::NoRoom) }
    }

    /// A SYN-ACK from the LAN nobody waits for any more.
    pub(super) fn refuse_late_answer(&mut self, mut turn: Turn<impl Egress>) -> Verdict {
        if !turn.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        Self::reset_in_place(&mut turn)
    }

    /// The server has answered: from here on we only translate. The SYN-ACK becomes the handshake's last
    /// acknowledgement; the client is told that the window is open.
    fn splice(&mut self, mut turn: Turn<impl Egress>, id: Id) -> Verdict {
        let now = turn.now;
        let answered = Options::read(turn.options());
        let ttl = turn.envelope().ttl;
        let flow = &mut self.table[id];
        let lesson = Lesson {
            answered,
            offered_scale: flow.half(Side::Wan).scale().is_some(),
            offered_sack: flow.is(Marks::SACK),
            offered_timestamps: flow.is(Marks::TIMESTAMPS),
        };
        join(flow, turn.segment, &answered, ttl, now);
        self.learned.learn(turn.ends(), &lesson, now);
        self.set_state(id, State::Established, now);
        self.wheel.schedule(self.table.flows_mut(), id, tick(now).wrapping_add(SECOND));
        self.counters.count(Event::Spliced);
        self.send_update(id, now, turn.egress);
        self.acknowledge_in_place(&mut turn, id)
    }

    /// Tells the client the server's window.
    fn send_update(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        let envelope = self.envelope(id, Side::Lan);
        let acknowledgement = self.acknowledgement(id, Side::Wan, now);
        self.emit(Side::Wan, &acknowledgement.outgoing(&envelope), egress);
    }

    /// The client has shown no sign of the window update, which may be lost: its persist timer must not be what saves it.
    pub(super) fn repeat_update(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        let flow = &mut self.table[id];
        flow.attempts += 1;
        let (attempts, passed) = (flow.attempts, tick(now).wrapping_sub(flow.born));
        let wait = if attempts > UPDATES_REPEATED {
            flow.mark(Marks::UPDATE_PENDING, false);
            self.lifetimes.connected.saturating_sub(passed)
        } else {
            self.counters.count(Event::UpdateRepeated);
            self.send_update(id, now, egress);
            SECOND << attempts
        };
        self.wheel.enter(self.table.flows_mut(), id, tick(now).wrapping_add(wait));
    }

    /// The server has not answered yet: calls it again, at doubling intervals, or gives up and tells the client.
    pub(super) fn redial(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        let passed = tick(now).wrapping_sub(self.table[id].born);
        if passed >= self.lifetimes.dialling {
            self.counters.count(Event::DialTimeout);
            return self.give_up(id, egress);
        }
        let envelope = self.envelope(id, Side::Wan);
        let flow = &mut self.table[id];
        flow.attempts = (flow.attempts + 1).min(MAX_BACK_OFF);
        let wait = self.lifetimes.redial.saturating_mul(1 << flow.attempts).min(self.lifetimes.dialling - passed);
        let flow = *flow;
        let options = call_options(&flow);
        if self.emit(Side::Lan, &call(&flow, &envelope, &options), egress) {
            self.counters.count(Event::DialRepeated);
            self.counters.count(Event::Dialled);
        }
        self.wheel.enter(self.table.flows_mut(), id, tick(now).wrapping_add(wait));
    }
}

/// Whether a segment that is whole in sight fails its checksums. One that is not is judged by its cookie alone.
pub(super) fn is_damaged<E>(turn: &Turn<E>) -> bool {
    !turn.segment.fragmented && turn.head.is_whole() && !turn.is_sound()
}

/// Whether a frame is sent to, or claims to come from, a group of Ethernet stations: no connection can be opened so (RFC 1122 section
/// 4.2.3.10), and an answer would bear a sender's address no station has.
fn is_to_or_from_group(frame: &[u8]) -> bool {
    (frame[0] | frame[6]) & 1 != 0
}

/// Whether hosts can have these addresses and call each other: none is multicast, broadcast, loopback or unspecified
/// (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5), and they differ.
pub(super) fn are_possible(ends: &Ends) -> bool {
    let possible = |address: &Addr| match (ends.v6, address) {
        (true, [0, 0, 0, 0 | 1]) => false,
        (true, [first, ..]) => first >> 24 != 0xff,
        // The first eighth from 224 on: multicast, and the reserved block with the limited broadcast.
        (false, [.., last]) => !matches!(last >> 24, 0 | 127 | 224..),
    };
    ends.lan != ends.wan && possible(&ends.lan) && possible(&ends.wan)
}

/// Writes what a SYN said into its entry of the SYN cache.
fn keep_half_open<E>(flow: &mut Flow, turn: &Turn<E>, offered: &Options, terms: &Terms, minted: Minted) {
    let envelope = turn.envelope();
    flow.state = State::HalfOpen;
    flow.outer_isn = minted.isn;
    keep_terms(flow, terms);
    flow.set_macs(Side::Wan, envelope.from, envelope.to);
    let client = flow.half_mut(Side::Wan);
    client.next = turn.segment.seq + 1;
    client.ts_value = offered.timestamps.map_or(0, |timestamps| timestamps.value);
}

fn keep_terms(flow: &mut Flow, terms: &Terms) {
    flow.mark(Marks::PROXIED, true);
    flow.mark(Marks::SACK, terms.sack);
    flow.mark(Marks::TIMESTAMPS, terms.timestamps);
    flow.mss = terms.mss;
    flow.half_mut(Side::Wan).set_scales(terms.scale, None);
    flow.half_mut(Side::Lan).set_scales(None, terms.promised);
}

fn terms_of(flow: &Flow) -> Terms {
    Terms {
        mss: flow.mss,
        scale: flow.half(Side::Wan).scale(),
        promised: flow.half(Side::Lan).told(),
        sack: flow.is(Marks::SACK),
        timestamps: flow.is(Marks::TIMESTAMPS),
    }
}

/// Fills the record of a client that has proved itself.
fn begin_dialling<E>(flow: &mut Flow, turn: &Turn<E>, proof: &Proof, presumed: bool) {
    let envelope = turn.envelope();
    flow.state = State::Dialling;
    keep_terms(flow, &proof.terms);
    flow.mark(Marks::TIMESTAMPS_PRESUMED, presumed);
    flow.outer_isn = proof.outer_isn;
    flow.set_macs(Side::Wan, envelope.from, envelope.to);
    let client = flow.half_mut(Side::Wan);
    client.next = proof.client_isn + 1;
    client.acked = proof.outer_isn + 1;
    client.window = turn.segment.window;
    client.ttl = envelope.ttl;
    client.ts_value = Options::timestamps(turn.options()).map_or(0, |timestamps| timestamps.value);
    let server = flow.half_mut(Side::Lan);
    server.next = proof.outer_isn + 1;
    server.ttl = DEFAULT_TTL;
}

/// The options of our SYN to the server: what the client offered and was not denied.
fn call_options(flow: &Flow) -> OptionList {
    let client = flow.half(Side::Wan);
    // A SYN acknowledges nothing, so it echoes nothing (RFC 7323 section 3.2).
    let timestamps = flow.is(Marks::TIMESTAMPS).then_some(Timestamps { value: client.ts_value, echo: 0 });
    // Should the server turn out not to take the timestamps the client was promised, they are added to its segments: this keeps the room.
    let reserve = if flow.is(Marks::TIMESTAMPS_PRESUMED) { TIMESTAMPS_ROOM as u16 } else { 0 };
    OptionList::syn(Some(flow.mss.saturating_sub(reserve).max(1)), flow.is(Marks::SACK), timestamps, client.scale())
}

/// Our SYN to the server, in the client's name and with its own number.
fn call<'a>(flow: &Flow, envelope: &'a Envelope, options: &'a OptionList) -> Outgoing<'a> {
    let client = flow.half(Side::Wan);
    // RFC 7323 section 2.2: the window in a SYN is never scaled; what the client granted in a scaled field is spelt out.
    let window = flow.granted(Side::Wan).field(WindowScale::default());
    let (seq, ack) = (client.next - 1, SeqNum::default());
    Outgoing { envelope, seq, ack, flags: Flags::SYN, window, options }
}

fn bare_reset<'a>(envelope: &'a Envelope, seq: SeqNum, options: &'a OptionList) -> Outgoing<'a> {
    Outgoing { envelope, seq, ack: SeqNum::default(), flags: Flags::RST, window: RawWindow(0), options }
}

/// Joins the two halves by the server's SYN-ACK.
fn join(flow: &mut Flow, answer: &Segment, answered: &Options, ttl: u8, now: Instant) {
    flow.seq_delta = SeqDelta::between(answer.seq.get(), flow.outer_isn.get());
    flow.attempts = 0;
    flow.mark(Marks::UPDATE_PENDING, true);
    flow.mark(Marks::REOPENING, false);
    flow.mark(Marks::SACK_LAN, flow.is(Marks::SACK) && answered.sack_permitted);
    join_scales(flow, answered.scale);
    join_timestamps(flow, answered, now);
    let outer_isn = flow.outer_isn;
    let server = flow.half_mut(Side::Lan);
    server.next = outer_isn + 1;
    server.acked = answer.ack;
    server.ttl = ttl;
    // RFC 7323 section 2.2: the window in a SYN-ACK is not scaled.
    server.window = answer.window;
    flow.mark(Marks::WINDOW_UNSCALED, true);
}

/// Scaling is on between us and the server only if both said so (RFC 7323 section 2.2); towards the client it is what we promised.
fn join_scales(flow: &mut Flow, server: Option<WindowScale>) {
    let client = flow.half(Side::Wan).scale();
    let promised = flow.half(Side::Lan).told();
    let agreed = client.is_some() && server.is_some();
    flow.half_mut(Side::Wan).set_scales(client, client.filter(|_| agreed));
    flow.half_mut(Side::Lan).set_scales(server.filter(|_| agreed), promised);
}

/// The server's clock goes on, for the client, from where ours is: beyond every TSval our SYN-ACKs can have borne.
fn join_timestamps(flow: &mut Flow, answered: &Options, now: Instant) {
    if !flow.is(Marks::TIMESTAMPS) {
        return;
    }
    let base = ts_clock(now).wrapping_add(0x1000);
    flow.mark(Marks::TIMESTAMPS_LAN, answered.timestamps.is_some());
    // A server without a clock is lent one of ours, of about a millisecond, which like any other must not wrap within days.
    let clock = answered.timestamps.map_or(tick(now), |timestamps| timestamps.value);
    flow.ts_delta = SeqDelta::between(clock, base);
    flow.ts_base = base;
    flow.half_mut(Side::Lan).ts_value = base;
}
