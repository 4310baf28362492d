//! Connections to services whose client is on the LAN, or whose server is on the WAN.
//!
//! Everywhere else the WAN's end is the client of what is proxied, and a key names its ends by their sides. Of such a connection the keys name the client as the
//! WAN's end all the same, and the server as the LAN's: a frame that belongs to no connection as it is, and is for an address of the box or comes from a
//! server there, is read once more as if it had come from the other side. What is sent leaves by the side on which its receiver is
//! ([`Proxy::port_of`]), which may be the one that the frame came from. Servers see an address of the box, so that their answers come to it.

use super::context::Context;
use super::{Egress, Proxy};
use crate::flow::table::{Id, Redirect};
use crate::flow::{FlowFlags, State};
use crate::metadata::Metadata;
use crate::policy::ServiceMark;
use crate::wire::{Parsed, Quote, Segment};
use crate::{Head, Instant, Side, Verdict};

impl Proxy {
    /// The side of the box on which an end of a flow is: of `role` WAN its client, of LAN its server.
    #[inline]
    pub(super) fn port_of(&self, id: Id, role: Side) -> Side {
        match self.table.beside(id) {
            None => role,
            Some(beside) => self.side_beside(id, beside, role),
        }
    }

    #[inline(never)]
    fn side_beside(&self, id: Id, beside: &Redirect, role: Side) -> Side {
        let flow = &self.table[id];
        let is_of_service = flow.is(FlowFlags::REDIRECTED) || flow.is_in(State::Gathering);
        match (beside.sides().filter(|_| is_of_service), role) {
            (Some((client, _)), Side::Wan) => client,
            (Some((_, server)), Side::Lan) => server,
            (None, role) => role,
        }
    }

    /// Whether a frame that came from `side` can be of the end `role` of this flow.
    fn is_of(&self, id: Id, role: Side, side: Side) -> bool {
        self.port_of(id, role) == side || role == Side::Wan && self.table[id].is_in(State::SynCached)
    }

    /// A segment that belongs to no connection as it is: what becomes of it if it belongs to such a one, or begins one.
    #[inline(never)]
    pub(super) fn on_turned(
        &mut self,
        side: Side,
        segment: &Segment,
        head: &mut Head,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Option<Verdict> {
        let own = if side == Side::Lan { &segment.key.wan } else { &segment.key.lan };
        if self.arrived.is_some() || !self.is_own(own, &segment.key) {
            return None;
        }
        let role = side.other();
        let Parsed::Tcp(segment) = Parsed::parse(role, head) else { return None };
        let (hash, kind) = (segment.key.hash(self.settings.hash_keys), segment.kind());
        let found = self.table.find(&segment.key, hash).filter(|&id| self.is_of(id, role, side));
        let tokens = self.caches.limiter.place(&segment.key);
        if found.is_none() && role == Side::Lan {
            let mut ctx = Context { side: role, segment: &segment, kind, hash, tokens, now, head, egress };
            return self.on_answer_of_server(&mut ctx, kind);
        }
        let takes = || match self.mark(&segment.key) {
            ServiceMark::Service(number) => self.settings.policy.services.get(number).is_some_and(|own| own.of_lan),
            _ => false,
        };
        if found.is_none() && !takes() {
            return None;
        }
        let receiver = found.map(|id| self.port_of(id, role.other()));
        let (place, entered) = (found.unwrap_or(Id::ABSENT), self.table.entered());
        let meta = Metadata { parsed: Parsed::Tcp(segment), hash, tokens, place, entered };
        if self.counters.has_targets() {
            let target = found.and_then(|id| self.target_if_counted(id));
            self.counters.set_target(target.or_else(|| Some(self.settings.policy.rule(&segment.key).target)));
        }
        self.arrived = Some(side);
        let verdict = self.on_segment(role, &segment, &meta, found, head, now, egress);
        self.arrived = None;
        Some(turn(verdict, side, receiver))
    }

    /// An ICMP error about a segment that belongs to no connection as it is, likewise.
    #[inline(never)]
    pub(super) fn on_turned_error(
        &mut self,
        side: Side,
        quote: &Quote,
        head: &mut Head,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Option<Verdict> {
        let own = if side == Side::Lan { &quote.key.wan } else { &quote.key.lan };
        if self.arrived.is_some() || !self.is_own(own, &quote.key) {
            return None;
        }
        let role = side.other();
        let Parsed::Error(quote) = Parsed::parse(role, head) else { return None };
        let hash = quote.key.hash(self.settings.hash_keys);
        let id = self.table.find(&quote.key, hash).filter(|&id| self.is_of(id, role, side))?;
        let receiver = Some(self.port_of(id, role.other()));
        self.arrived = Some(side);
        let verdict = self.on_icmp_error(role, &quote, hash, head, now, egress);
        self.arrived = None;
        Some(turn(verdict, side, receiver))
    }
}

/// What becomes of a frame from `side` that is to be forwarded to a receiver which may be on the same one.
pub(super) fn turn(verdict: Verdict, side: Side, receiver: Option<Side>) -> Verdict {
    if verdict == Verdict::Forward && receiver == Some(side) { Verdict::Reflect } else { verdict }
}
