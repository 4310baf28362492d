//! Who owns a frame where several workers share the work: the one that keeps the state of what the frame belongs to. Its queue may be
//! another's; how it gets to its owner is the workers' own affair.
//!
//! A segment and an ICMP error about it belong to their connection, and a connection to a share of its keyed hash, which is the same in
//! both directions. A later fragment belongs with the first of its packet, which alone says whose it is: whoever received that one
//! remembers, so that both take the same way and stay in order. What is no TCP, and a fragment whose beginning nobody saw,
//! belongs to whoever received it.

use crate::keyed::Keys;
use crate::proxy::{Metadata, Secrets};
use crate::wire::{FlowKey, Fragment, IPV4_LEN, IPV6_LEN, Parsed, Segment};
use crate::{Instant, Side};

/// Lines of the memory of first fragments: 64 KiB.
const LINES: usize = 1024;
const WAYS: usize = 8;

/// Microseconds, as a power of two, that the clock of this memory ticks in; and for how many ticks a packet is remembered, no
/// less than its first fragment is to whoever decides on it.
const TICK: u32 = 22;
const LIFETIME: u64 = 8;
const TIME_MASK: u64 = 0xffff;

/// A way is a tag of 32 bits, the owner and one above it in 16, and the time in as many. Zero is nothing.
#[derive(Clone, Default)]
#[repr(align(64))]
struct Line([u64; WAYS]);

const _: () = assert!(size_of::<Line>() == 64, "a packet is remembered in one cache line");

/// Names the owners of what one worker receives. Takes all its memory when it is made.
pub struct Owners {
    keys: Keys,
    begun: Vec<Line>,
}

impl Owners {
    /// One that has seen no frame yet. `secrets` are the proxy's.
    pub fn new(secrets: &Secrets) -> Self {
        Self { keys: secrets.hash_keys(), begun: vec![Line::default(); LINES] }
    }

    /// The owner of a frame from `side`, the bytes in sight of which `parse` was taken from; `None` when that is whoever received it. `name` says which worker
    /// owns a connection, by its ends and their keyed hash; [`share`] does where nothing else names one.
    #[inline]
    pub fn owner(
        &mut self,
        side: Side,
        meta: &Metadata,
        frame: &[u8],
        now: Instant,
        name: impl FnOnce(&FlowKey, u64) -> usize,
    ) -> Option<usize> {
        match meta.parsed() {
            Parsed::Tcp(segment) => {
                let owner = name(&segment.key, meta.hash());
                if segment.fragmented {
                    self.note(side, segment, frame, owner, now);
                }
                Some(owner)
            }
            Parsed::Error(quote) => Some(name(&quote.key, meta.hash())),
            Parsed::Fragment(fragment) if !fragment.first => self.owner_of_first(meta.hash(), now),
            _ => None,
        }
    }

    /// Remembers whose the first fragment of a packet is.
    #[inline(never)]
    fn note(&mut self, side: Side, segment: &Segment, frame: &[u8], owner: usize, now: Instant) {
        let Some(fragment) = Fragment::first_of(frame, segment, side) else { return };
        let hash = fragment.hash(self.keys);
        let time = time(now);
        let age = |way: u64| match way {
            // The packet's own place, else the oldest's.
            _ if way != 0 && way >> 32 == hash >> 32 => u64::MAX,
            0 => u64::MAX - 1,
            way => time.wrapping_sub(way) & TIME_MASK,
        };
        if let Some(oldest) = self.begun[line(hash)].0.iter_mut().max_by_key(|way| age(**way)) {
            *oldest = hash >> 32 << 32 | (owner as u64 + 1) << 16 | time;
        }
    }

    /// Who owns the packet of this hash, if its first fragment came lately.
    #[inline(never)]
    fn owner_of_first(&self, hash: u64, now: Instant) -> Option<usize> {
        let line = &self.begun[line(hash)];
        let is_it = |way: &&u64| {
            **way >> 32 == hash >> 32 && time(now).wrapping_sub(**way) & TIME_MASK <= LIFETIME && **way != 0
        };
        line.0.iter().find(is_it).map(|way| (way >> 16 & 0xffff) as usize - 1)
    }
}

/// The ends of a segment, if any network card that hashes ports finds them: with at most one tag of 802.1Q, without options of IP or
/// extension headers, and no fragment.
#[inline]
pub fn plain(meta: &Metadata) -> Option<&FlowKey> {
    let Parsed::Tcp(segment) = meta.parsed() else { return None };
    let header = if segment.key.v6 { IPV6_LEN } else { IPV4_LEN };
    let is_bare = usize::from(segment.tcp - segment.ip) == header && !segment.fragmented;
    (is_bare && segment.key.vlan.is_common()).then_some(&segment.key)
}

/// The share a keyed hash falls to among `workers`, evenly; independent of the places it names in a worker's tables.
#[inline]
pub fn share(hash: u64, workers: usize) -> usize {
    // The upper half of the product depends on all bits of the hash.
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((mixed * workers as u64) >> 32) as usize
}

fn line(hash: u64) -> usize {
    hash as usize % LINES
}

fn time(now: Instant) -> u64 {
    now.as_micros() >> TICK & TIME_MASK
}
