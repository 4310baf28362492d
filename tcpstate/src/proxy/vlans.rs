//! Connections whose two directions bear different VLAN tags. A flow has the VLAN of its opener's frames in its key; the answers, which come in another,
//! find it here.

use super::adoption::agrees;
use super::{Egress, Proxy};
use crate::cache::updates::ServerUpdate;
use crate::cache::vlan_pairs::{Shown, VlanPair};
use crate::flow::table::Id;
use crate::flow::{Flow, State};
use crate::metadata::Metadata;
use crate::policy::exceptions::Exception;
use crate::seq::SeqNum;
use crate::wire::{Envelope, Flags, FlowKey, Kind, Parsed, Quote, Segment, Tags, Vlan};
use crate::{Event, Head, Instant, Side, Verdict};

/// How far the numbers of a segment may lie from those of its connection if it alone shows that its VLAN belongs to the connection's.
const NEAR: u32 = 1 << 26;

/// A flow that answers of another VLAN belong to.
pub(crate) struct Answered {
    key: FlowKey,
    hash: u64,
    pub(crate) id: Id,
    /// What the answer shows that was not known.
    shows: Option<VlanPair>,
}

impl Proxy {
    /// The flow of another VLAN that a frame from `side`, which has none in its own, belongs to.
    pub(crate) fn find_answered(&self, side: Side, meta: &Metadata, head: &Head) -> Option<Answered> {
        match &meta.parsed {
            Parsed::Tcp(segment) => {
                self.find_known(side, &segment.key).or_else(|| self.find_shown(side, segment, head))
            }
            Parsed::Error(quote) => self.find_quoted(side, quote),
            _ => None,
        }
    }

    /// The same for a segment other than a SYN. How often the WAN makes the engine search is limited: a search may look at every VLAN.
    #[inline]
    pub(super) fn find_answered_segment(
        &mut self,
        side: Side,
        segment: &Segment,
        hash: u64,
        head: &Head,
        now: Instant,
    ) -> Option<Answered> {
        let pairs = &self.caches.vlan_pairs;
        // In a network without tags, or with those of one VLAN, there is nothing to look for.
        if pairs.is_empty() && !pairs.has_seen_others(segment.key.vlan) {
            return None;
        }
        let known = self.find_known(side, &segment.key);
        let adopts = segment.kind() != Kind::Ack || now < self.settings.adopt_until;
        let may_search = known.is_none()
            && (side == Side::Lan || adopts && self.is_excepted(Exception::VlanSearch, segment, hash, now));
        if may_search { self.find_shown(side, segment, head) } else { known }
    }

    /// The flow that was opened from the other side in a VLAN which is known to be answered in this one.
    pub(super) fn find_known(&self, side: Side, key: &FlowKey) -> Option<Answered> {
        self.caches.vlan_pairs.known(side, key.vlan).find_map(|vlan| self.find_in(side, key, vlan))
    }

    /// The flow that was opened from the other side in another VLAN and that an error is about: of a VLAN that is known to be answered in this one, or
    /// the flow whose SYN the error quotes, which only the LAN has got.
    pub(super) fn find_quoted(&self, side: Side, quote: &Quote) -> Option<Answered> {
        let known = self.find_known(side, &quote.key);
        if known.is_some() || side == Side::Wan {
            return known;
        }
        let own = quote.key.vlan;
        if self.caches.vlan_pairs.is_empty() && !self.caches.vlan_pairs.has_seen_others(own) {
            return None;
        }
        self.caches.vlan_pairs.recent(own).find_map(|vlan| {
            let found = self.find_in(side, &quote.key, vlan)?;
            let flow = &self.table[found.id];
            let is_syn = match flow.state() {
                State::ServerSynSent | State::ServerTried => quote.seq == self.next_number(found.id, Side::Lan) - 1,
                State::SynSent => quote.seq == flow.outer_isn,
                _ => false,
            };
            is_syn.then_some(found)
        })
    }

    fn find_in(&self, side: Side, key: &FlowKey, vlan: Vlan) -> Option<Answered> {
        let key = FlowKey { vlan, ..*key };
        let hash = key.hash(self.settings.hash_keys);
        let id = self.table.find(&key, hash)?;
        (self.table[id].client() != side).then_some(Answered { key, hash, id, shows: None })
    }

    /// The flow whose SYN a segment of an unknown pair of VLANs answers. From the WAN only answers to connections of the LAN are looked for, and what
    /// they show does not change how the box answers clients in VLANs where some have proved themselves.
    fn find_shown(&self, side: Side, segment: &Segment, head: &Head) -> Option<Answered> {
        let kind = segment.kind();
        let may_show = match kind {
            Kind::SynAck | Kind::Rst => segment.flags.has(Flags::ACK),
            Kind::Ack => true,
            Kind::Syn | Kind::Bad => false,
        };
        if !may_show || !segment.checksums_hold(head) {
            return None;
        }
        let own = segment.key.vlan;
        self.caches.vlan_pairs.recent(own).find_map(|vlan| {
            let found = self.find_in(side, &segment.key, vlan)?;
            let flow = &self.table[found.id];
            is_shown(flow, side, segment, kind).then(|| {
                let is_proved = matches!(flow.state(), State::ServerSynSent | State::ServerTried);
                let shown = match (side, kind) {
                    (Side::Lan, Kind::Ack) => Shown::ByPeer,
                    (Side::Lan, _) => {
                        if is_proved {
                            Shown::ByServer
                        } else {
                            Shown::Unproved
                        }
                    }
                    // Numbers of a running connection that agree, more or less, may be guessed.
                    (Side::Wan, Kind::Ack) => Shown::Unproved,
                    (Side::Wan, _) => Shown::ByPeer,
                };
                let (inward, outward) = if side == Side::Lan { (vlan, own) } else { (own, vlan) };
                Answered { shows: Some(VlanPair { inward, outward, shown }), ..found }
            })
        })
    }

    /// A segment that belongs to a flow of another VLAN.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "as of the function that calls it")]
    pub(super) fn on_answer_of_other_vlan(
        &mut self,
        side: Side,
        segment: &Segment,
        answered: &Answered,
        meta: &Metadata,
        head: &mut Head,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict {
        let Answered { key, hash, id, shows } = *answered;
        egress.note(|| "it belongs to a connection that was opened in another VLAN".into());
        self.counters.set_target(self.target_if_counted(id));
        if let Some(pair) = shows
            && self.caches.vlan_pairs.learn(pair)
        {
            self.publish(ServerUpdate::Vlans(pair));
        }
        if !self.table[id].has_other_vlan() {
            self.counters.count(Event::OtherVlan);
            self.table.update(id, |flow| flow.set_other_vlan(true));
        }
        let moved = Segment { key, ..*segment };
        let meta = Metadata { parsed: Parsed::Tcp(moved), hash, ..*meta };
        self.on_segment(side, &moved, &meta, Some(id), head, now, egress)
    }

    /// A server has answered a client of the WAN in the VLAN of its SYN.
    pub(super) fn note_answer_in_own_vlan(&mut self, id: Id, vlan: Vlan) {
        if !self.caches.vlan_pairs.is_empty() && !self.table[id].has_other_vlan() {
            self.caches.vlan_pairs.unlearn_answer(vlan);
        }
    }

    /// The VLAN tags of a segment that the box sends in the name of the end on `sender`.
    pub(super) fn tags(&self, id: Id, sender: Side) -> Tags {
        let flow = &self.table[id];
        let own = flow.vlan();
        let answered = || self.caches.vlan_pairs.answered(flow.client(), own);
        let is_answer = flow.has_other_vlan() && sender != flow.client();
        flow.tags(sender, if is_answer { answered().unwrap_or(own) } else { own })
    }

    /// The envelope of an answer with this hop limit to a segment, with the tags that a server's answer has.
    #[inline(always)]
    pub(super) fn answer_envelope(&self, envelope: Envelope, ttl: u8) -> Envelope {
        let (side, vlan) = (envelope.sender, envelope.key.vlan);
        let mut answer = envelope.reversed(ttl);
        if side == Side::Wan
            && let Some(outward) = self.caches.vlan_pairs.answer(vlan)
        {
            answer.tags = Tags::of_network(outward, false, answer.tags.priorities());
        }
        answer
    }
}

/// Whether a segment from `side`, in another VLAN than the flow's, is what the flow waits for: an answer that none but who got its SYN can have sent,
/// or the other direction of a connection that was running before. A flow that is known to have answers of another VLAN may be left by a former process, which knew more of VLANs.
fn is_shown(flow: &Flow, side: Side, segment: &Segment, kind: Kind) -> bool {
    let (sender, receiver) = (flow.endpoint(side), flow.endpoint(side.other()));
    match (flow.state(), kind) {
        (State::ServerSynSent | State::ServerTried, Kind::SynAck | Kind::Rst) => segment.ack == receiver.next,
        (State::SynSent, Kind::SynAck | Kind::Rst) => flow.answers_syn(segment),
        (State::Unconfirmed, Kind::Ack) => agrees(flow, segment),
        (_, Kind::Ack) if side == Side::Lan && flow.has_other_vlan() => {
            let is_near = |number: SeqNum, next: SeqNum| number.within(next - NEAR, next + NEAR);
            is_near(segment.ack, receiver.next) && is_near(segment.seq + flow.outward(side), sender.next)
        }
        _ => false,
    }
}
