//! What a client's acknowledgement proves: the terms it has agreed to and the numbers it agreed with. Both handshakes speak of it.

use crate::Side;
use crate::cookie::terms::{Ecn, Terms};
use crate::flow::{Flow, FlowFlags};
use crate::seq::SeqNum;

/// The longest time for which a server's SYN-ACK is left without its acknowledgement, in ticks: 700 ms, below the second after which servers
/// repeat it (RFC 6298 section 2).
pub(super) const WITHHELD_MOST: u16 = (700_000 / 1024) as u16;
const _: () = assert!(WITHHELD_MOST < 1024, "a record has ten bits for it");

/// A proof: the terms a client's acknowledgement has shown to be agreed, and the numbers it was agreed with.
pub(super) struct Proof {
    pub(super) terms: Terms,
    pub(super) client_isn: SeqNum,
    pub(super) outer_isn: SeqNum,
    /// Ticks from our SYN-ACK to this segment; zero if not known.
    pub(super) distance: u16,
    /// The hop limit and the class of the client's SYN; `None` where the SYN cache does not have them.
    pub(super) opened: Option<(u8, u8)>,
}

/// Why a segment proves nothing.
pub(super) enum Unproved {
    /// No SYN of its connection was answered recently.
    Unasked,
    /// Its source's network has spent its failures: the cookie was not checked.
    Untested,
    /// What it acknowledges is no cookie of ours, or an old one.
    Wrong,
}

/// A distance in ticks as a flow keeps it: zero where it is not known, or so long that something else must have happened.
pub(super) fn distance(ticks: u32) -> u16 {
    if ticks < WITHHELD_MOST.into() { (ticks as u16).max(1) } else { 0 }
}

/// What stands for each kind and answer of ECN, by its value.
const ECN_FLAGS: [FlowFlags; 5] = {
    let asked = FlowFlags::ECN_ASKED;
    let (agreed, accurate) = (asked.and(FlowFlags::ECN), asked.and(FlowFlags::ACCURATE));
    let mut flags = [FlowFlags::NONE; 5];
    flags[Ecn::Asked as usize] = asked;
    flags[Ecn::Agreed as usize] = agreed;
    flags[Ecn::AccurateAsked as usize] = accurate;
    flags[Ecn::AccurateAgreed as usize] = accurate.and(FlowFlags::ECN);
    flags
};

/// All flags that terms set or clear.
const TERMS: FlowFlags =
    FlowFlags::PROXIED.and(FlowFlags::SACK).and(FlowFlags::TIMESTAMPS).and(ECN_FLAGS[Ecn::AccurateAgreed as usize]);

/// Writes the terms a client has been offered into its flow's record.
pub(super) fn keep_terms(flow: &mut Flow, terms: &Terms) {
    let options = FlowFlags::SACK.when(terms.sack).and(FlowFlags::TIMESTAMPS.when(terms.timestamps));
    flow.replace(TERMS, FlowFlags::PROXIED.and(options).and(ECN_FLAGS[terms.ecn as usize]));
    flow.mss = terms.mss;
    flow.endpoint_mut(Side::Wan).set_scales(terms.scale, None);
    flow.endpoint_mut(Side::Lan).set_scales(None, terms.promised);
}

/// The hop limit and the class of the SYN that an entry of the SYN cache holds.
pub(super) fn opened_by(flow: &Flow) -> Option<(u8, u8)> {
    Some((flow.endpoint(Side::Wan).ttl, flow.class(Side::Wan))).filter(|&(ttl, _)| ttl != 0)
}

/// The terms that an entry of the SYN cache holds.
pub(super) fn terms_of(flow: &Flow) -> Terms {
    Terms {
        mss: flow.mss,
        scale: flow.endpoint(Side::Wan).scale(),
        promised: flow.endpoint(Side::Lan).told(),
        sack: flow.is(FlowFlags::SACK),
        timestamps: flow.is(FlowFlags::TIMESTAMPS),
        ecn: match (flow.is(FlowFlags::ECN_ASKED), flow.is(FlowFlags::ACCURATE), flow.is(FlowFlags::ECN)) {
            (false, ..) => Ecn::Silent,
            (true, false, false) => Ecn::Asked,
            (true, false, true) => Ecn::Agreed,
            (true, true, false) => Ecn::AccurateAsked,
            (true, true, true) => Ecn::AccurateAgreed,
        },
    }
}
