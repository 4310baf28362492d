//! The VLAN tags of a frame as they stand in it. [`Vlan`] says which network they name; a priority tag names none.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{ETHERNET_LEN, be32};

/// The network a frame belongs to by its VLAN tags: up to two identifiers and the tag protocols, packed; zero means untagged.
///
/// A priority tag, of identifier 0, names no network (IEEE 802.1Q, table 9-2), so it does not appear here: frames with and without one are of the same
/// network. [`Tags`] has the tags as they stand in a frame.
///
/// Bits 0-11 the outer identifier, 12-23 the inner, 24-25 the number of tags, 26-27 and 28-29 the outer and inner tag protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Vlan(pub u32);

pub(super) const TAG_PROTOCOLS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

impl Vlan {
    /// How many tags there are, 0 to 2.
    pub fn count(self) -> usize {
        (self.0 >> 24 & 3).min(2) as usize
    }

    /// Whether there is no tag, or one of 802.1Q.
    pub fn is_common(self) -> bool {
        self.count() == 0 || self.count() == 1 && self.tag(0).0 == 0x8100
    }

    /// The tag protocol and the identifier of tag `n`.
    pub(super) fn tag(self, n: usize) -> (u16, u16) {
        let protocol = TAG_PROTOCOLS.get((self.0 >> (26 + 2 * n) & 3) as usize);
        (protocol.copied().unwrap_or(TAG_PROTOCOLS[0]), (self.0 >> (12 * n) & 0xfff) as u16)
    }

    /// The identifiers of the tags, the outer first.
    pub fn identifiers(self) -> impl Iterator<Item = u16> {
        (0..self.count()).map(move |n| self.tag(n).1)
    }

    /// Adds a tag, unless it is a priority tag.
    pub(super) fn push(&mut self, protocol: usize, identifier: u16) {
        if identifier == 0 {
            return;
        }
        let n = self.count();
        self.0 += 1 << 24;
        self.0 |= u32::from(identifier) << (12 * n) | (protocol as u32) << (26 + 2 * n);
    }
}

/// Bits of a tag's control information that hold the identifier; the others are priority and drop eligibility.
pub(super) const IDENTIFIER: u16 = 0xfff;

/// Up to two VLAN tags as they stand in a frame, the outer first: each the tag protocol and the control information.
///
/// A tag with identifier 0 is a *priority tag*: it says nothing of the network, but it is a part of the frame (IEEE 802.1Q, table 9-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Tags {
    words: [u32; 2],
    count: u8,
}

impl Tags {
    /// The tags of a frame whose IP header is at `ip`.
    ///
    /// # Panics
    /// If the frame is shorter than that.
    #[inline(always)]
    pub fn of(frame: &[u8], ip: usize) -> Self {
        let mut tags = Self::default();
        // Most frames have none.
        if ip > ETHERNET_LEN {
            for at in (12..ip - 2).step_by(4).take(2) {
                tags.push(be32(frame, at));
            }
        }
        tags
    }

    /// The tags of a frame of this network, and a priority tag behind them if there is to be one and room for it, with these
    /// [priorities](Tags::priorities).
    pub fn of_network(vlan: Vlan, has_priority_tag: bool, priorities: u8) -> Self {
        let mut tags = Self::default();
        let named = (0..vlan.count()).map(|n| vlan.tag(n));
        for (n, (protocol, identifier)) in
            named.chain(has_priority_tag.then_some((TAG_PROTOCOLS[0], 0))).take(2).enumerate()
        {
            let priority = u32::from(priorities >> (4 * n) & 15) << 12;
            tags.push(u32::from(protocol) << 16 | u32::from(identifier) | priority);
        }
        tags
    }

    #[inline(always)]
    fn push(&mut self, word: u32) {
        self.words[usize::from(self.count)] = word;
        self.count += 1;
    }

    /// The tags, each its protocol in the high and its control information in the low half.
    #[inline(always)]
    pub fn words(&self) -> &[u32] {
        &self.words[..usize::from(self.count)]
    }

    /// Bytes of the tags in the frame.
    #[inline(always)]
    pub fn len(&self) -> usize {
        4 * usize::from(self.count)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The network they name.
    pub fn vlan(&self) -> Vlan {
        let mut vlan = Vlan::default();
        for &word in self.words() {
            if let Some(protocol) = TAG_PROTOCOLS.iter().position(|&protocol| u32::from(protocol) == word >> 16) {
                vlan.push(protocol, word as u16 & IDENTIFIER);
            }
        }
        vlan
    }

    /// The upper four bits of the control information of both: of the outer tag in the low half.
    pub fn priorities(&self) -> u8 {
        self.words().iter().rev().fold(0, |priorities, word| priorities << 4 | (word >> 12) as u8 & 15)
    }

    /// Whether one of them is a priority tag.
    pub fn has_priority_tag(&self) -> bool {
        self.words().iter().any(|&word| word as u16 & IDENTIFIER == 0)
    }
}

/// Without a priority tag, and with priority 0.
impl From<Vlan> for Tags {
    fn from(vlan: Vlan) -> Self {
        Self::of_network(vlan, false, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with these tags, up to its IP header.
    fn frame(tags: &[u32]) -> Vec<u8> {
        let tags = tags.iter().flat_map(|tag| tag.to_be_bytes());
        [0; 12].into_iter().chain(tags).chain([8, 0]).collect()
    }

    #[test]
    fn what_a_record_keeps_of_the_tags_makes_them_again() {
        let tags = [0x8100_a000, 0x8100_2064, 0x88a8_0000, 0x88a8_f123, 0x9100_0fff];
        let pairs = tags.iter().flat_map(|&outer| tags.map(|inner| vec![outer, inner]));
        let single = tags.iter().map(|&tag| vec![tag]);
        for words in pairs.chain(single).chain([vec![]]) {
            let frame = frame(&words);
            let tags = Tags::of(&frame, frame.len());
            assert_eq!((tags.words(), tags.len()), (&words[..], 4 * words.len()));
            let made = Tags::of_network(tags.vlan(), tags.has_priority_tag(), tags.priorities());
            // A record keeps one priority tag, behind the others.
            let last_is_priority =
                words.split_last().is_none_or(|(_, before)| before.iter().all(|word| word & 0xfff != 0));
            if last_is_priority && !words.contains(&0x88a8_0000) {
                assert_eq!(made, tags, "{words:08x?}");
            }
            let names: Vec<_> = words.iter().map(|word| *word as u16 & IDENTIFIER).filter(|&name| name != 0).collect();
            assert_eq!(tags.vlan().identifiers().collect::<Vec<_>>(), names, "a priority tag names no network");
        }
    }

    #[test]
    fn any_byte_of_a_record_makes_tags() {
        for byte in 0..=u8::MAX {
            for vlan in [Vlan::default(), Vlan(1 << 24 | 5), Vlan(2 << 24 | 5 | 6 << 12), Vlan(u32::MAX)] {
                assert!(Tags::of_network(vlan, byte & 1 == 1, byte).len() <= 8);
            }
        }
    }
}
