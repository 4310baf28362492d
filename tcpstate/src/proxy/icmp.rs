//! ICMP errors and fragments. The box checks an ICMP error by the segment it quotes, and translates it like one. Later fragments, which
//! have no TCP header to check, pass behind the first of their packet.

use super::Proxy;
use super::context::Context;
use super::refusal::emit_error;
use super::reply::{half_second, hop_limit};
use super::service::rewrite_ends;
use crate::cache::fragments::Kind;
use crate::config::Action;
use crate::cookie::ts_clock;
use crate::flow::table::Id;
use crate::flow::translate::{Projection, replace32};
use crate::flow::{Flow, FlowFlags, State};
use crate::seq::SeqNum;
use crate::service::negotiation::Failure;
use crate::wire::checksum::Patch;
use crate::wire::{
    Addr, Envelope, Flags, Fragment, IPV4_LEN, IPV4_MTU, IPV6_LEN, IPV6_MTU, IcmpKind, OptionList, Outgoing, Quote,
    Segment, TCP_LEN, TIMESTAMPS_ROOM, Timestamps, be16, be32, become_too_big, is_too_big, may_be_too_big, put16,
    write_too_big,
};
use crate::{DropReason, Egress, Event, Head, Instant, Side, Verdict};

/// How far beyond what is known to be sent a quoted segment may lie when fragments have hidden how long one truly is.
const HIDDEN: u32 = 65_535;

impl Proxy {
    /// An ICMP error from `side` about a segment that went there.
    #[inline(never)]
    pub(super) fn on_icmp_error(
        &mut self,
        side: Side,
        quote: &Quote,
        hash: u64,
        head: &mut Head,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict {
        let found = self.table.find(&quote.key, hash).or_else(|| Some(self.find_quoted(side, quote)?.id));
        let Some(id) = found else {
            if self.settings.policy.services.any_turned()
                && let Some(verdict) = self.on_turned_error(side, quote, head, now, egress)
            {
                return verdict;
            }
            let passes = self.passes(&quote.key);
            let action = if passes { Action::Pass } else { self.settings.policy.rule(&quote.key).icmp_errors };
            return self.on_unmatched_icmp(action);
        };
        self.refresh(id);
        self.counters.set_target(self.target_if_counted(id));
        if self.is_untouched(id) {
            if self.table[id].is_in(State::SynSent) && quote.checksums_hold(head) {
                self.note_error_while_syn_sent(side, id, quote, head, now);
            }
            self.counters.count(Event::IcmpTranslated);
            return Verdict::Forward;
        }
        if head.is_whole() && !quote.checksums_hold(head) {
            return self.counters.drop(DropReason::BadChecksum);
        }
        let verdict = match self.table[id].state() {
            State::SynCached => self.on_icmp_while_syn_cached(side, quote, id, head),
            State::Gathering => Verdict::Drop(DropReason::IcmpUnmatched),
            State::ServerSynSent if self.table[id].is(FlowFlags::REDIRECTED) => {
                self.on_icmp_while_dialling(side, quote, id, head, now, egress)
            }
            State::Repeating if side == Side::Lan && self.is_of_repeated(id, quote.seq) => {
                self.on_icmp_while_repeating(quote, id, head, now, egress)
            }
            State::ServerSynSent => self.on_icmp_while_server_syn_sent(side, quote, id, head, now, egress),
            State::ServerTried => self.on_icmp_while_server_tried(side, quote, id, head, now),
            State::SynSent => {
                self.note_error_while_syn_sent(side, id, quote, head, now);
                self.on_icmp_while_established(side, quote, id, head)
            }
            _ => self.on_icmp_while_established(side, quote, id, head),
        };
        match verdict {
            Verdict::Drop(reason) => self.counters.drop(reason),
            passed => {
                self.counters.count(Event::IcmpTranslated);
                passed
            }
        }
    }

    /// An ICMP error about a segment of no connection we know.
    pub(super) fn on_unmatched_icmp(&mut self, action: Action) -> Verdict {
        match action {
            Action::Pass => {
                self.counters.count(Event::IcmpUnmatched);
                Verdict::Forward
            }
            Action::Drop => self.counters.drop(DropReason::IcmpUnmatched),
        }
    }

    /// Our SYN did not reach the server: the client, which takes itself for connected, gets the error and a reset, as the error
    /// alone no longer ends a connection (RFC 5461 section 2).
    fn on_icmp_while_server_syn_sent(
        &mut self,
        side: Side,
        quote: &Quote,
        id: Id,
        head: &mut Head,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict {
        // The key of the flow, as the error may have come in another VLAN.
        if let Err(reason) = self.remember_error_of_syn(side, quote, id, &self.table.key(id), head, now) {
            return Verdict::Drop(reason);
        }
        let next = self.table[id].endpoint(Side::Wan).next;
        // To the client the SYN is acknowledged; what it has in flight begins behind it.
        let mut edit = Edit::begin(quote, head);
        edit.replace32(4, next.get());
        edit.finish();
        self.abort(id, egress);
        Verdict::Forward
    }

    /// The SYN to the server of a service did not reach it: the client is reset.
    fn on_icmp_while_dialling(
        &mut self,
        side: Side,
        quote: &Quote,
        id: Id,
        head: &Head,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict {
        let unreachable = match self.remember_error_of_syn(side, quote, id, &quote.key, head, now) {
            Ok(unreachable) => unreachable,
            Err(reason) => return Verdict::Drop(reason),
        };
        if self.talks(id) {
            if !self.table[id].has_finished(Side::Lan) {
                // RFC 792, RFC 4443 section 3.1: code 0 is about the network.
                let is_network = unreachable.is_some_and(|error| error.code == 0);
                let failure = if is_network { Failure::NetworkUnreachable } else { Failure::HostUnreachable };
                self.fail(id, failure, now, egress);
            }
            return Verdict::Drop(DropReason::Consumed);
        }
        self.abort(id, egress);
        Verdict::Drop(DropReason::Consumed)
    }

    /// Whether a server was sent this number by the box, which has to repeat it.
    fn is_of_repeated(&self, id: Id, seq: SeqNum) -> bool {
        let number = self.gathered(id);
        number != 0 && seq.beyond(self.caches.gathered.unacked(number)) < self.caches.gathered.left(number)
    }

    /// An error about what the box repeats to a server: a smaller MTU on the way is the box's to heed. The client has no part in it.
    fn on_icmp_while_repeating(
        &mut self,
        quote: &Quote,
        id: Id,
        head: &Head,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict {
        let frame = head.bytes();
        if quote.kind(frame) == IcmpKind::TooBig {
            let at = usize::from(quote.icmp) + 6;
            let (least, headers) =
                if quote.key.v6 { (IPV6_MTU, IPV6_LEN + TCP_LEN) } else { (IPV4_MTU, IPV4_LEN + TCP_LEN) };
            let mtu = usize::from(be16(frame, at)).max(least);
            let mss = (mtu - headers) as u16;
            if mss < self.table[id].mss_lan {
                self.table.update(id, |flow| flow.mss_lan = mss);
                self.repeat_smaller(id, now, egress);
            }
        }
        Verdict::Drop(DropReason::Consumed)
    }

    /// Gives an error about a segment of a service's connection, which is translated, the addresses of the other side.
    fn readdress_error(&self, id: Id, side: Side, quote: &Quote, head: &mut Head) {
        let Some(redirect) = self.table.redirected(id) else { return };
        let (own, server) = (self.table.key(id), redirect.key());
        let (ip, icmp, tcp) = (usize::from(quote.ip), usize::from(quote.icmp), usize::from(quote.tcp));
        let shows_sum = tcp + 18 <= usize::from(quote.seen);
        let v6 = own.v6;
        let frame = head.bytes_mut();
        let is_full = redirect.own_mac != [0; 6];
        // What was sent to the server is quoted to the client, and the other way round.
        let key = if side == Side::Lan { &own } else { &server };
        let sum_at = icmp + 8 + 10;
        let before = if v6 { 0 } else { be16(frame, sum_at) };
        let (addresses, ports) = rewrite_ends(frame, icmp + 8, tcp, key, side.other(), is_full);
        let mut patch = addresses;
        patch.include(ports);
        if !v6 {
            patch.replace16(before, be16(frame, sum_at));
        }
        if shows_sum {
            let mut inner = addresses;
            inner.include(ports);
            let old = be16(frame, tcp + 16);
            let new = inner.apply(old);
            put16(frame, tcp + 16, new);
            patch.replace16(old, new);
        }
        // The error itself goes to the server from the WAN, to the client from the LAN; the ends' own have their addresses.
        let (source, destination) = if v6 { (ip + 8, ip + 24) } else { (ip + 12, ip + 16) };
        let mut outer = Patch::default();
        match side {
            Side::Wan => {
                if exchange(frame, destination, v6, (&own.lan, &server.lan), &mut outer) {
                    frame[..6].copy_from_slice(&self.table[id].mac(Side::Lan));
                }
                if is_full {
                    exchange(frame, source, v6, (&own.wan, &server.wan), &mut outer);
                    frame[6..12].copy_from_slice(&redirect.own_mac);
                }
            }
            Side::Lan => {
                if exchange(frame, source, v6, (&server.lan, &own.lan), &mut outer) || is_full {
                    frame[6..12].copy_from_slice(&redirect.mac);
                }
                if is_full && exchange(frame, destination, v6, (&server.wan, &own.wan), &mut outer) {
                    frame[..6].copy_from_slice(&self.table[id].mac(Side::Wan));
                }
            }
        }
        if v6 {
            patch.include(outer);
        } else {
            let sum = outer.apply(be16(frame, ip + 10));
            put16(frame, ip + 10, sum);
        }
        let sum = patch.apply(be16(frame, icmp + 2));
        put16(frame, icmp + 2, sum);
    }

    /// Nothing of the client's has been passed, so an error of the WAN is about our SYN-ACK, which did not reach the client: its entry goes, as a host's
    /// would (RFC 9293 section 3.9.2.2). Or it is about the LAN's own SYN.
    fn on_icmp_while_syn_cached(&mut self, side: Side, quote: &Quote, id: Id, head: &Head) -> Verdict {
        let flow = &self.table[id];
        if side == Side::Lan || quote.kind(head.bytes()) != IcmpKind::Unreachable {
            return Verdict::Drop(DropReason::IcmpUnmatched);
        }
        if flow.is_crossed() && quote.seq + 1 == flow.endpoint(Side::Lan).next {
            return Verdict::Forward;
        }
        if quote.seq != flow.outer_isn {
            return Verdict::Drop(DropReason::IcmpNotInFlight);
        }
        self.forget(id);
        Verdict::Drop(DropReason::Consumed)
    }

    fn on_icmp_while_established(&mut self, side: Side, quote: &Quote, id: Id, head: &mut Head) -> Verdict {
        let flow = &self.table[id];
        let kind = quote.kind(head.bytes());
        let proxied = flow.is(FlowFlags::PROXIED);
        if proxied && kind == IcmpKind::SourceQuench {
            return Verdict::Drop(DropReason::SourceQuench);
        }
        // The errors of a proxied flow quote outer numbers on the WAN, and on the LAN those of the client, as the server knows them.
        let outer = match side {
            Side::Lan => quote.seq - self.table.client_deltas(id).0,
            Side::Wan => quote.seq,
        };
        // Where the box has negotiated nothing the ends judge for themselves.
        if proxied && !flow.is(FlowFlags::UNJUDGED) && !is_in_flight(flow, side, outer) {
            return Verdict::Drop(DropReason::IcmpNotInFlight);
        }
        if proxied && let Some(mss) = translate_error(&self.projection(id), side, quote, kind, head) {
            self.table.update(id, |flow| flow.mss = flow.mss.min(mss));
        }
        self.readdress_error(id, side, quote, head);
        Verdict::Forward
    }

    /// A segment from a client whose SYN-ACK had a larger MSS than the server's: if it is longer than the server takes, the client gets the
    /// ICMP error that a smaller link on its way would send. The segment passes all the same: where the LAN carries it nothing is lost.
    #[inline(never)]
    pub(super) fn tell_too_big(&mut self, ctx: &mut Context<impl Egress>, id: Id) {
        let flow = &self.table[id];
        let (mss, ttl) = (flow.mss_lan, hop_limit(flow.endpoint(Side::Lan).ttl));
        if flow.challenged == half_second(ctx.now) || !is_too_big(ctx.segment, ctx.head, mss) {
            return;
        }
        self.table.update(id, |flow| flow.challenged = half_second(ctx.now));
        let told = emit_error(ctx, self.port_of(id, Side::Wan), &self.tags(id, Side::Lan), 0, |segment, head| {
            become_too_big(segment, head, mss, ttl)
        });
        self.counters.count(if told { Event::IcmpTooBig } else { Event::NoSpareFrame });
    }

    /// The server announces a smaller MSS than its client was `told`: reports that at once, as if about the first segment the client may send. That
    /// segment may never come here, for what made the server announce less may be a link in front of the box.
    pub(super) fn tell_too_big_ahead(&mut self, id: Id, told: u16, now: Instant, egress: &mut impl Egress) {
        let flow = &self.table[id];
        let mss = flow.mss_lan;
        if !may_be_too_big(flow.is(FlowFlags::V6), told, mss) {
            return;
        }
        let envelope = Envelope { tags: self.tags(id, Side::Lan), ..self.envelope(id, Side::Wan) };
        let client = flow.endpoint(Side::Wan);
        let timestamps = Timestamps { value: client.ts_value, echo: ts_clock(now) };
        let empty = Outgoing {
            envelope: &envelope,
            // As the client counts. What it may have sent already, nobody has acknowledged.
            seq: flow.endpoint(Side::Lan).acked,
            ack: flow.outer_isn + 1,
            flags: Flags::ACK,
            window: client.window,
            options: &OptionList::plain(flow.is(FlowFlags::TIMESTAMPS).then_some(timestamps)),
        };
        let ttl = hop_limit(flow.endpoint(Side::Lan).ttl);
        let told = egress.emit(self.port_of(id, Side::Wan), |buffer| write_too_big(&empty, told, mss, ttl, buffer));
        self.counters.count(if told { Event::IcmpTooBig } else { Event::NoSpareFrame });
    }

    /// A first fragment has passed as a segment of its connection: so may those that follow.
    #[inline(never)]
    pub(super) fn note_first_fragment(&mut self, side: Side, segment: &Segment, head: &Head, now: Instant) {
        // What was answered or became our SYN is no fragment any more; what follows it has no beginning then.
        if let Some(fragment) = Fragment::first_of(head.bytes(), segment, side) {
            self.caches.fragments.note(Kind::Tcp, fragment.hash(self.settings.hash_keys), now);
        }
    }

    /// Whether a fragment is dropped because its first one was not seen.
    fn drops_stray(&self, side: Side, fragment: &Fragment) -> bool {
        let rule = self.settings.policy.rule_of_fragment(side, fragment);
        rule.stray_fragments == Action::Drop && !self.settings.modes.present(rule.target).passes()
    }

    /// A fragment without TCP header, of a packet whose keyed hash this is.
    ///
    /// It cannot reach into a TCP header, so alone it does no harm; but it may fill the receiver's memory for fragments.
    #[inline(never)]
    pub(super) fn on_fragment(&mut self, side: Side, fragment: &Fragment, hash: u64, now: Instant) -> Verdict {
        if fragment.first {
            self.caches.fragments.note(Kind::Other, hash, now);
            self.counters.count(Event::Bridged);
        } else if [Kind::Tcp, Kind::Other].iter().any(|&kind| self.caches.fragments.has_begun(kind, hash, now)) {
            self.counters.count(Event::Fragment);
        } else if side == Side::Wan && self.drops_stray(side, fragment) {
            return self.counters.drop(DropReason::StrayFragment);
        } else {
            self.counters.count(Event::StrayFragment);
        }
        Verdict::Forward
    }
}

/// Whether an outer number can be that of a segment in flight on `side` (RFC 5927 section 4.1).
fn is_in_flight(flow: &Flow, side: Side, seq: SeqNum) -> bool {
    let (sender, receiver) = (flow.endpoint(side.other()), flow.endpoint(side));
    seq.within(receiver.acked, sender.next + if flow.is(FlowFlags::FRAGMENTED) { HIDDEN } else { 0 })
}

/// Rewrites an error from `side` so that the end that receives it finds its own segment quoted. Returns the MSS that limits the flow's from now
/// on, if the error reports an MTU and timestamps are inserted into the server's segments.
fn translate_error(projection: &Projection, side: Side, quote: &Quote, kind: IcmpKind, head: &mut Head) -> Option<u16> {
    let mut edit = Edit::begin(quote, head);
    // The sender of the quoted segment is on the other side, and the segment was translated on its way.
    let sender = side.other();
    edit.apply(&projection.inverse(), sender);
    let is_larger = sender == Side::Lan && projection.inserts_timestamps();
    let mss = (is_larger && kind == IcmpKind::TooBig).then(|| edit.make_room_for_timestamps(quote));
    edit.finish();
    mss
}

/// An edit of what an error quotes, and of the error itself, with the checksums of both.
struct Edit<'a> {
    frame: &'a mut [u8],
    icmp: usize,
    tcp: usize,
    seen: usize,
    /// What has changed in the quoted segment.
    quoted: Patch,
    /// What has changed in the error besides.
    own: Patch,
}

impl<'a> Edit<'a> {
    fn begin(quote: &Quote, head: &'a mut Head) -> Self {
        let (icmp, tcp, seen) = (quote.icmp.into(), quote.tcp.into(), quote.seen.into());
        Self { frame: head.bytes_mut(), icmp, tcp, seen, quoted: Patch::default(), own: Patch::default() }
    }

    /// Whether the first `len` bytes of the quoted TCP header are visible.
    fn shows(&self, len: usize) -> bool {
        self.tcp + len <= self.seen
    }

    /// Replaces the 32-bit field `offset` bytes into the quoted TCP header.
    fn replace32(&mut self, offset: usize, new: u32) {
        replace32(&mut self.frame[self.tcp..], offset, new, &mut self.quoted);
    }

    /// Rewrites the quoted TCP header, which the end on the `sender` side has sent.
    fn apply(&mut self, projection: &Projection, sender: Side) {
        let patch = projection.apply_to_header(sender, &mut self.frame[self.tcp..self.seen]);
        self.quoted.include(patch);
    }

    /// Lowers the MTU reported to a server by the length of the timestamps that are inserted into its segments; returns the MSS that fits the
    /// reported MTU. Where the MTU cannot be lowered, segments that would not fit pass without timestamps.
    fn make_room_for_timestamps(&mut self, quote: &Quote) -> u16 {
        // Of the 32 bits that ICMPv6 has for it the upper 16 are zero where TCP is concerned.
        let (least, header) = if quote.key.v6 { (IPV6_MTU as u16, IPV6_LEN) } else { (IPV4_MTU as u16, IPV4_LEN) };
        let mtu = be16(self.frame, self.icmp + 6);
        let is_wide = quote.key.v6 && be16(self.frame, self.icmp + 4) != 0;
        // RFC 1191 section 5: routers older than that RFC leave the field zero.
        if mtu == 0 || is_wide {
            return u16::MAX;
        }
        let told = mtu.saturating_sub(TIMESTAMPS_ROOM as u16).max(least).min(mtu);
        self.own.replace16(mtu, told);
        put16(self.frame, self.icmp + 6, told);
        mtu.max(least) - (header + TCP_LEN) as u16
    }

    /// Patches the checksums: the quoted one, if it is visible, and the error's, which covers it too.
    fn finish(mut self) {
        if self.shows(18) {
            let at = self.tcp + 16;
            let old = be16(self.frame, at);
            let new = self.quoted.apply(old);
            put16(self.frame, at, new);
            self.own.replace16(old, new);
        }
        self.own.include(self.quoted);
        let at = self.icmp + 2;
        let sum = self.own.apply(be16(self.frame, at));
        put16(self.frame, at, sum);
    }
}
/// Writes one address over another, if that stands at this place of a packet; whether it does.
fn exchange(frame: &mut [u8], at: usize, v6: bool, (from, to): (&Addr, &Addr), patch: &mut Patch) -> bool {
    let (from, to) = if v6 { (&from[..], &to[..]) } else { (&from[3..], &to[3..]) };
    let stands = from.iter().enumerate().all(|(n, word)| be32(frame, at + 4 * n) == *word);
    if stands {
        for (n, &word) in to.iter().enumerate() {
            replace32(&mut frame[at + 4 * n..], 0, word, patch);
        }
    }
    stands
}
