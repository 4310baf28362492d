//! What the box says and hears of its own addresses: ARP and neighbour discovery, echo requests, and TCP where it has no service.

use super::context::Context;
use super::{Egress, Proxy};
use crate::cache::neighbours::Work;
use crate::cache::updates::ServerUpdate;
use crate::service::Owned;
use crate::wire::neighbour::{LONGEST, Neighbour, Statement, tags};
use crate::wire::{ETHERNET_LEN, GROUP, ICMP, ICMPV6, IPV4_LEN, IPV6_LEN, Kind, Mac, be16, checksum::Patch, put16};
use crate::{DropReason, Event, Head, Instant, Side, Verdict};

/// Questions and announcements in one call.
const WORK_A_TURN: usize = 16;

impl Proxy {
    /// Sends what is due of questions and announcements.
    pub(super) fn speak_to_neighbours(&mut self, now: Instant, egress: &mut impl Egress) {
        for _ in 0..WORK_A_TURN {
            let mut lost = None;
            let Some(work) = self.caches.neighbours.next_work(now, |heard| lost = Some(heard)) else { return };
            if let Some(heard) = lost {
                self.publish(ServerUpdate::Neighbour(heard));
            }
            let services = &self.settings.policy.services;
            match work {
                Work::Ask(at) => {
                    let Some(hop) = services.next_hops().get(at) else { continue };
                    let (own, question, tags) = (hop.asker, Statement::Asks(hop.address), tags(hop.vlan));
                    let v6 = hop.v6;
                    let sent = egress.emit(hop.side, |buffer| question.write(own, v6, &tags, buffer));
                    self.counters.count(if sent { Event::NeighbourAsked } else { Event::NoSpareFrame });
                }
                Work::Announce(at) => {
                    if let Some(owned) = services.owned().get(at).copied() {
                        self.announce(&owned, egress);
                    }
                }
            }
        }
    }

    /// Announces an address on both sides.
    fn announce(&mut self, owned: &Owned, egress: &mut impl Egress) {
        let Owned { address, v6, vlan, mac } = *owned;
        for side in Side::BOTH {
            let sent = egress.emit(side, |buffer| Statement::Announces.write((address, mac), v6, &tags(vlan), buffer));
            self.counters.count(if sent { Event::AddressAnnounced } else { Event::NoSpareFrame });
        }
    }

    /// A frame that is no TCP, if it is about the box's addresses, or for them: what becomes of it.
    #[inline(never)]
    pub(super) fn on_own_frame(
        &mut self,
        side: Side,
        head: &mut Head,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Option<Verdict> {
        if let Some(said) = Neighbour::parse(head.bytes()) {
            return self.on_neighbour(side, &said, head, now, egress);
        }
        let to: Mac = *head.bytes().first_chunk()?;
        let services = &self.settings.policy.services;
        if to[0] & GROUP != 0 || !services.owned().iter().any(|owned| owned.mac == to) {
            return None;
        }
        if answer_echo(head.bytes_mut(), |address, v6| {
            services.owned().iter().any(|owned| owned.v6 == v6 && owned.address == address)
        }) {
            self.counters.count(Event::EchoAnswered);
            return Some(Verdict::Reflect);
        }
        Some(self.counters.drop(DropReason::NotServed))
    }

    fn on_neighbour(
        &mut self,
        side: Side,
        said: &Neighbour,
        head: &mut Head,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Option<Verdict> {
        let vlan = said.vlan()?;
        let claimed = if said.v6 && !said.asks { &said.target } else { &said.sender };
        if let Some(mac) = said.mac {
            if let Some(heard) = self.caches.neighbours.learn(side, claimed, vlan, mac, now) {
                self.publish(ServerUpdate::Neighbour(heard));
            }
            let services = &self.settings.policy.services;
            // RFC 5227 section 2.4: another station has the box's address. An announcement of our own may come back.
            if let Some(owned) = services.owner(claimed, vlan).filter(|owned| owned.mac != mac).copied() {
                self.counters.count(Event::AddressConflict);
                if self.caches.neighbours.defends(claimed, vlan, now) {
                    self.announce(&owned, egress);
                }
            }
        }
        let services = &self.settings.policy.services;
        let Some(owned) = services.owner(&said.target, vlan).copied() else {
            // Answers to the box's own questions end here.
            let to: Mac = *head.bytes().first_chunk()?;
            let is_ours = services.owned().iter().any(|own| own.mac == to);
            return is_ours.then(|| self.counters.drop(DropReason::Consumed));
        };
        if !said.asks || said.mac == Some(owned.mac) {
            // It answers a question of the box, or is the box's own.
            return Some(self.counters.drop(DropReason::Consumed));
        }
        let frame = head.bytes();
        let asker = said.mac.unwrap_or(*frame[6..].first_chunk()?);
        if asker[0] & GROUP != 0 {
            return Some(self.counters.drop(DropReason::BadAddress));
        }
        let answer = Statement::Answers(said.sender, asker);
        if !head.resize(LONGEST) {
            return Some(self.counters.drop(DropReason::NoRoom));
        }
        let len = answer.write((owned.address, owned.mac), said.v6, &said.tags, head.bytes_mut());
        let is_cut = head.resize(len);
        debug_assert!(is_cut);
        self.counters.count(Event::NeighbourAnswered);
        Some(Verdict::Reflect)
    }

    /// A segment from the LAN for an address of the box, which has services for the WAN alone: it may be what a server answers to the box's own question.
    pub(super) fn on_own_side(&mut self, mut ctx: Context<impl Egress>, kind: Kind) -> Verdict {
        if ctx.side == Side::Lan
            && let Some(verdict) = self.on_answer_of_server(&mut ctx, kind)
        {
            return verdict;
        }
        match kind {
            Kind::Rst => Verdict::Drop(DropReason::NoFlow),
            _ if !ctx.is_sound() => Verdict::Drop(DropReason::BadChecksum),
            _ => self.reset_in_place(&mut ctx, None),
        }
    }

    /// A segment from the WAN for an address of the box that belongs to no connection there: as a host does (RFC 9293 section 3.10.7.1).
    pub(super) fn on_unknown_connection_of_box(&mut self, ctx: Context<impl Egress>) -> Verdict {
        let kind = ctx.kind;
        if ctx.segment.indirect {
            return Verdict::Drop(DropReason::NoFlow);
        }
        // It may be what follows a proof that is late, or lost: the client sends that again.
        if kind == Kind::Ack && self.caches.recent_syns.may_have(ctx.hash, ctx.now) {
            return Verdict::Drop(DropReason::BadCookie);
        }
        self.on_own_side(ctx, kind)
    }
}

/// Turns an echo request for an address of the box into the reply (RFC 1122 section 3.2.2.6, RFC 4443 section 4.2), if it is one.
fn answer_echo(frame: &mut [u8], is_own: impl Fn(crate::wire::Addr, bool) -> bool) -> bool {
    let mut ip = ETHERNET_LEN;
    while ip <= ETHERNET_LEN + 4 && frame.len() > ip && matches!(be16(frame, ip - 2), 0x8100 | 0x88a8 | 0x9100) {
        ip += 4;
    }
    if frame.len() < ip {
        return false;
    }
    let kind = be16(frame, ip - 2);
    let word = |frame: &[u8], at: usize| crate::wire::be32(frame, at);
    let icmp = match kind {
        0x0800 if frame.len() >= ip + IPV4_LEN + 8 => {
            // Without options, and whole.
            let is_plain = frame[ip] == 0x45 && frame[ip + 9] == ICMP && be16(frame, ip + 6) & 0x3fff == 0;
            let is_ours = is_own([0, 0, 0xffff, word(frame, ip + 16)], false);
            if !is_plain || !is_ours || frame[ip + IPV4_LEN..][..2] != [8, 0] {
                return false;
            }
            let (from, to) = frame[ip + 12..ip + 20].split_at_mut(4);
            from.swap_with_slice(to);
            let mut patch = Patch::default();
            patch.replace16(u16::from(frame[ip + 8]) << 8, 64 << 8);
            frame[ip + 8] = 64;
            let sum = patch.apply(be16(frame, ip + 10));
            put16(frame, ip + 10, sum);
            (ip + IPV4_LEN, 0)
        }
        0x86dd if frame.len() >= ip + IPV6_LEN + 8 => {
            let to = [24, 28, 32, 36].map(|at| word(frame, ip + at));
            if frame[ip + 6] != ICMPV6 || !is_own(to, true) || frame[ip + IPV6_LEN..][..2] != [128, 0] {
                return false;
            }
            let (from, to) = frame[ip + 8..ip + 40].split_at_mut(16);
            from.swap_with_slice(to);
            frame[ip + 7] = 64;
            (ip + IPV6_LEN, 129)
        }
        _ => return false,
    };
    let (icmp, reply) = icmp;
    let mut patch = Patch::default();
    patch.replace16(be16(frame, icmp), u16::from(reply) << 8);
    frame[icmp] = reply;
    let sum = patch.apply(be16(frame, icmp + 2));
    put16(frame, icmp + 2, sum);
    let (to, from) = frame[..12].split_at_mut(6);
    to.swap_with_slice(from);
    true
}
