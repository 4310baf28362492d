//! A segment at hand, with all that a decision is made from, and what is asked of every segment.

use crate::wire::{Addr, Envelope, FlowKey, GROUP, Kind, Mac, Outgoing, Segment};
use crate::{Head, Instant, Side};

/// A frame at hand: everything a decision is made from.
pub(super) struct Context<'a, 'b, E> {
    pub(super) side: Side,
    pub(super) segment: &'a Segment,
    /// What the segment does, by its flags.
    pub(super) kind: Kind,
    pub(super) hash: u64,
    pub(super) tokens: u32,
    pub(super) now: Instant,
    pub(super) head: &'a mut Head<'b>,
    pub(super) egress: &'a mut E,
}

impl<E> Context<'_, '_, E> {
    pub(super) fn key(&self) -> &FlowKey {
        &self.segment.key
    }

    /// The bytes of the segment's options.
    pub(super) fn options(&self) -> &[u8] {
        self.segment.options(self.head.bytes())
    }

    /// Whether the whole segment is in sight and its checksums hold.
    pub(super) fn is_sound(&self) -> bool {
        self.segment.checksums_hold(self.head)
    }

    /// The envelope of the frame itself.
    #[inline(always)]
    pub(super) fn envelope(&self) -> Envelope {
        Envelope::of(self.head.bytes(), self.segment, self.side)
    }

    /// The Ethernet address of the frame's sender.
    pub(super) fn source(&self) -> Mac {
        *self.head.bytes()[6..].first_chunk().expect("a segment has an Ethernet header")
    }

    /// Writes a segment of ours over the frame.
    #[inline(never)]
    pub(super) fn overwrite(&mut self, outgoing: &Outgoing) -> bool {
        self.overwrite_inline(outgoing)
    }

    /// The same, inlined: for the answers to a flood.
    #[inline(always)]
    pub(super) fn overwrite_inline(&mut self, outgoing: &Outgoing) -> bool {
        if !self.head.resize(outgoing.frame_len()) {
            return false;
        }
        outgoing.write(self.head.bytes_mut());
        true
    }
}

/// Whether a segment that is whole in sight fails its checksums. One that is not is judged by its cookie alone.
pub(super) fn is_damaged<E>(ctx: &Context<E>) -> bool {
    !ctx.segment.fragmented && ctx.head.is_whole() && !ctx.is_sound()
}

/// Whether a frame claims to come from a group of Ethernet stations, which nothing does. Frames *to* a group are in use: several servers
/// share its address.
#[inline(always)]
pub(super) fn is_from_group(frame: &[u8]) -> bool {
    frame[6] & GROUP != 0
}

/// Whether hosts can have these addresses and connect to each other: none is multicast, broadcast, loopback or unspecified
/// (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5) or an IPv4 address mapped into IPv6 (RFC 4291 section 2.5.5.2: those are not for the wire), and
/// they differ. The reserved 240.0.0.0/4 and the rest of 0.0.0.0/8 are in use inside networks, and hosts accept them.
pub(super) fn are_possible(key: &FlowKey) -> bool {
    let possible = |address: &Addr| match (key.v6, address) {
        (true, [0, 0, 0, 0 | 1] | [0, 0, 0xffff, _]) => false,
        (true, [first, ..]) => first >> 24 != 0xff,
        (false, [.., 0 | u32::MAX]) => false,
        (false, [.., last]) => !matches!(last >> 24, 127 | 224..=239),
    };
    key.lan != key.wan && possible(&key.lan) && possible(&key.wan)
}
