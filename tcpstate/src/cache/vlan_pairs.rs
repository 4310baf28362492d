//! Networks whose two directions bear different VLAN tags: frames from the WAN those of one VLAN, frames from the LAN those of another.
//!
//! A connection has the VLAN of its opener's frames in its key. What shows the other one is an answer that fits nothing in its own VLAN but acknowledges
//! the SYN of a connection of another. The pair is kept, in bounded memory, so that the later frames of that direction find their connections, and
//! so that the box's own answers bear the tags that the server's do. Nothing passes the proxy because of a pair: a host that makes the box believe in
//! one gains no way around it.

use crate::Side;
use crate::wire::Vlan;

/// How many pairs are kept; the one that was confirmed longest ago gives way.
const PAIRS: usize = 16;
/// How many VLANs of connections begun lately are searched for one that an answer fits.
const RECENT: usize = 16;

/// What has shown that two VLANs belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shown {
    /// A segment of, or an answer to, somebody who has proved nothing: it serves to find connections, and changes no answer to others.
    Unproved,
    /// A connection that the LAN has opened: clients of the WAN are answered so as long as none has proved itself in the VLAN of its SYN.
    ByPeer,
    /// A server's answer to a client of the WAN that has proved itself.
    ByServer,
}

/// The VLANs of the two directions of one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanPair {
    /// Of frames from the WAN.
    pub inward: Vlan,
    /// Of frames from the LAN.
    pub outward: Vlan,
    /// What has shown it.
    pub shown: Shown,
}

impl VlanPair {
    /// The VLAN in which connections are opened of which frames from `side` are in this one.
    fn opened_from_the_other(&self, side: Side, vlan: Vlan) -> Option<Vlan> {
        let (own, other) = match side {
            Side::Lan => (self.outward, self.inward),
            Side::Wan => (self.inward, self.outward),
        };
        (own == vlan).then_some(other)
    }
}

/// The pairs, and where to look for new ones.
#[derive(Clone)]
pub struct VlanPairs {
    /// The one confirmed last first.
    pairs: [Option<VlanPair>; PAIRS],
    /// VLANs of connections begun lately, the last first.
    recent: [Vlan; RECENT],
    /// Whether they are all the same.
    is_single: bool,
    /// VLANs in which clients of the WAN have lately proved themselves by an answer in the same VLAN, the last first.
    proved: [Option<Vlan>; RECENT],
}

impl VlanPairs {
    /// No pair.
    pub fn new() -> Self {
        Self { pairs: [None; PAIRS], recent: [Vlan::default(); RECENT], is_single: true, proved: [None; RECENT] }
    }

    /// Whether there is no pair.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.pairs[0].is_none()
    }

    /// Notes that a connection has begun in this VLAN.
    #[inline]
    pub fn note(&mut self, vlan: Vlan) {
        if self.recent[0] != vlan {
            let end = self.recent.iter().position(|&other| other == vlan).unwrap_or(RECENT - 1);
            self.recent[..=end].rotate_right(1);
            self.recent[0] = vlan;
            self.is_single = self.recent == [vlan; RECENT];
        }
    }

    /// Whether connections have begun in another VLAN than this.
    #[inline(always)]
    pub fn has_seen_others(&self, vlan: Vlan) -> bool {
        !self.is_single || self.recent[0] != vlan
    }

    /// The VLANs in which a connection may have been opened that an answer in this one may belong to.
    pub fn recent(&self, vlan: Vlan) -> impl Iterator<Item = Vlan> {
        let seen = self.recent;
        (0..RECENT).filter(move |&n| seen[n] != vlan && !seen[..n].contains(&seen[n])).map(move |n| seen[n])
    }

    /// The VLANs in which connections are known to be opened from the other side whose frames from `side` are in this one.
    pub fn known(&self, side: Side, vlan: Vlan) -> impl Iterator<Item = Vlan> + use<> {
        self.pairs.into_iter().flatten().filter_map(move |pair| pair.opened_from_the_other(side, vlan))
    }

    /// The VLAN of the frames that answer those of a connection opened in this one by `client`.
    pub fn answered(&self, client: Side, vlan: Vlan) -> Option<Vlan> {
        // Seen from the one who answers, it is the other way round.
        self.pairs.iter().flatten().find_map(|pair| match client {
            Side::Wan => (pair.inward == vlan).then_some(pair.outward),
            Side::Lan => (pair.outward == vlan).then_some(pair.inward),
        })
    }

    /// The VLAN in which clients of the WAN are to be answered whose SYN is in this one, if it is another: that of the servers' answers, or, as
    /// long as no client has been answered in its own, that in which the LAN opens connections.
    #[inline(always)]
    pub fn answer(&self, vlan: Vlan) -> Option<Vlan> {
        if self.is_empty() { None } else { self.find_answer(vlan) }
    }

    #[inline(never)]
    fn find_answer(&self, vlan: Vlan) -> Option<Vlan> {
        let is_meant = |pair: &&VlanPair| pair.inward == vlan && pair.shown > Shown::Unproved;
        let pair = self.pairs.iter().flatten().find(is_meant)?;
        (pair.shown == Shown::ByServer || !self.proved.contains(&Some(vlan))).then_some(pair.outward)
    }

    /// Notes that a client of the WAN has proved itself, whose SYN came in this VLAN.
    #[inline]
    pub fn note_proof(&mut self, vlan: Vlan) {
        if self.proved[0] != Some(vlan) && self.answer(vlan).is_none() {
            self.keep_proved(vlan);
        }
    }

    fn keep_proved(&mut self, vlan: Vlan) {
        let end = self.proved.iter().position(|&other| other == Some(vlan)).unwrap_or(RECENT - 1);
        self.proved[..=end].rotate_right(1);
        self.proved[0] = Some(vlan);
    }

    /// Keeps a pair; returns whether it says anything new.
    pub fn learn(&mut self, pair: VlanPair) -> bool {
        let is_it = |known: &Option<VlanPair>| {
            known.is_some_and(|known| (known.inward, known.outward) == (pair.inward, pair.outward))
        };
        let found = self.pairs.iter().position(is_it);
        let known = found.and_then(|n| self.pairs[n]);
        self.pairs[..=found.unwrap_or(PAIRS - 1)].rotate_right(1);
        let shown = known.map_or(pair.shown, |known| known.shown.max(pair.shown));
        self.pairs[0] = Some(VlanPair { shown, ..pair });
        known.is_none_or(|known| known.shown != shown)
    }

    /// Notes that a server answers a client of the WAN in the VLAN of its SYN.
    #[inline]
    pub fn unlearn_answer(&mut self, vlan: Vlan) {
        for pair in self.pairs.iter_mut().flatten().filter(|pair| pair.inward == vlan) {
            pair.shown = pair.shown.min(Shown::ByPeer);
        }
        self.keep_proved(vlan);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vlan(n: u32) -> Vlan {
        Vlan(1 << 24 | n)
    }

    #[test]
    fn a_pair_leads_from_either_direction_to_the_other() {
        let mut pairs = VlanPairs::new();
        assert!(pairs.is_empty());
        let pair = VlanPair { inward: vlan(10), outward: vlan(20), shown: Shown::ByPeer };
        assert!(pairs.learn(pair) && !pairs.learn(pair));
        assert_eq!(pairs.known(Side::Lan, vlan(20)).collect::<Vec<_>>(), [vlan(10)]);
        assert_eq!(pairs.known(Side::Wan, vlan(10)).collect::<Vec<_>>(), [vlan(20)]);
        assert_eq!(pairs.known(Side::Wan, vlan(20)).count() + pairs.known(Side::Lan, vlan(10)).count(), 0);
        assert_eq!(pairs.answered(Side::Wan, vlan(10)), Some(vlan(20)));
        assert_eq!(pairs.answered(Side::Lan, vlan(20)), Some(vlan(10)));
        assert_eq!(pairs.answer(vlan(10)), Some(vlan(20)), "the LAN sends so");
        let mut used = VlanPairs::new();
        used.note_proof(vlan(10));
        used.learn(pair);
        assert_eq!(
            used.answer(vlan(10)),
            None,
            "clients are answered in the VLAN of their SYN, and no server has answered otherwise"
        );
        assert!(pairs.learn(VlanPair { shown: Shown::ByServer, ..pair }) && !pairs.learn(pair));
        assert_eq!((pairs.answer(vlan(10)), pairs.answer(vlan(20))), (Some(vlan(20)), None));
        pairs.unlearn_answer(vlan(10));
        assert_eq!(pairs.answer(vlan(10)), None);
    }

    #[test]
    fn what_somebody_shows_who_has_proved_nothing_changes_no_answer_to_others() {
        let mut pairs = VlanPairs::new();
        let pair = VlanPair { inward: vlan(10), outward: vlan(20), shown: Shown::Unproved };
        assert!(pairs.learn(pair) && !pairs.learn(pair));
        assert_eq!(pairs.known(Side::Lan, vlan(20)).collect::<Vec<_>>(), [vlan(10)]);
        assert_eq!((pairs.answered(Side::Wan, vlan(10)), pairs.answer(vlan(10))), (Some(vlan(20)), None));
        assert!(pairs.learn(VlanPair { shown: Shown::ByServer, ..pair }));
        assert!(!pairs.learn(pair) && pairs.answer(vlan(10)) == Some(vlan(20)));
    }

    #[test]
    fn what_was_confirmed_longest_ago_gives_way() {
        let mut pairs = VlanPairs::new();
        let pair = |n| VlanPair { inward: vlan(n), outward: vlan(1000 + n), shown: Shown::ByServer };
        (0..PAIRS as u32).for_each(|n| assert!(pairs.learn(pair(n))));
        assert!(!pairs.learn(pair(0)) && pairs.learn(pair(100)));
        assert_eq!((pairs.answer(vlan(0)), pairs.answer(vlan(1))), (Some(vlan(1000)), None));
        let mut recent = VlanPairs::new();
        (0..100).for_each(|n| recent.note(vlan(n)));
        recent.note(vlan(90));
        let seen: Vec<_> = recent.recent(vlan(99)).collect();
        assert_eq!((seen.len(), seen[0]), (RECENT - 1, vlan(90)));
        assert_eq!(VlanPairs::new().recent(vlan(1)).collect::<Vec<_>>(), [Vlan::default()]);
    }
}
