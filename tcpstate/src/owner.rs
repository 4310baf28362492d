//! Which of several workers owns a frame: the one that keeps the state that the frame belongs to. Another worker may receive it, and hands it
//! over to the owner.
//!
//! A segment, and an ICMP error about it, belong to their connection; the connection's keyed hash, the same in both directions and without
//! the VLAN tags, names its owner. Where there can be services, whose connections have another 4-tuple on each side of the box, the keyed hash of the WAN's
//! end of it does, which both have ([`Naming`]). A later fragment belongs to the owner of its packet's first fragment, the only one with ports: the worker that received that one
//! remembers the owner, so that all fragments go the same way and stay in order. Frames that are not TCP, and fragments whose first one was
//! not seen, belong to the worker that received them.

use crate::keyed::{Keys, Secrets};
use crate::metadata::Metadata;
use crate::wire::{FlowKey, Fragment, IPV4_LEN, IPV6_LEN, Parsed, Segment, Vlan};
use crate::{Config, Instant, Side};

/// What of a connection names its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// Its 4-tuple.
    #[default]
    Connection,
    /// Address and port of its end on the WAN: a connection to a service has this end on both sides of the box, or one there that was chosen to name the same
    /// owner.
    WanEnd,
}

impl Naming {
    /// What names owners with this configuration.
    pub fn of(config: &Config) -> Self {
        if config.has_redirects() { Naming::WanEnd } else { Naming::Connection }
    }

    /// The hash that names the owner of a connection with this key and keyed hash.
    #[inline(always)]
    pub(crate) fn hash(self, key: &FlowKey, hash: u64, keys: Keys) -> u64 {
        match self {
            Naming::Connection => named_by(key, hash, keys),
            Naming::WanEnd => hash_of_wan_end(key, keys),
        }
    }
}

#[inline(never)]
fn hash_of_wan_end(key: &FlowKey, keys: Keys) -> u64 {
    let &FlowKey { wan, wan_port, v6, .. } = key;
    FlowKey { wan, wan_port, v6, ..FlowKey::default() }.hash(keys)
}

/// One worker of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Which one; the first is 0.
    pub number: usize,
    /// How many there are, at least 1.
    pub of: usize,
}

impl Worker {
    /// The only one.
    pub const ALONE: Worker = Worker { number: 0, of: 1 };
}

/// Cache lines of the table of first fragments: 64 KiB.
const LINES: usize = 1024;
const WAYS: usize = 8;

/// The table's clock tick, as a power of two in microseconds (about 4 s), and how many ticks a packet is remembered: at least as long as the
/// engine remembers first fragments.
const TICK: u32 = 22;
const LIFETIME: u64 = 8;
const TIME_MASK: u64 = 0xffff;

/// Each way holds the upper 32 bits of the packet's hash, 16 bits of the owner's number plus one, and 16 bits of time. Zero is an empty way.
#[derive(Clone, Default)]
#[repr(align(64))]
struct Line([u64; WAYS]);

const _: () = assert!(size_of::<Line>() == 64, "a packet is remembered in one cache line");

/// Finds the owners of the frames that one worker receives. Allocates all memory when it is made.
pub struct Owners {
    keys: Keys,
    naming: Naming,
    first_fragments: Vec<Line>,
}

impl Owners {
    /// A finder that has seen no frame yet. `secrets` are the proxy's.
    pub fn new(secrets: &Secrets, naming: Naming) -> Self {
        Self { keys: secrets.hash_keys(), naming, first_fragments: vec![Line::default(); LINES] }
    }

    /// The owner of a frame from `side`; `None` if that is the worker that received it. `frame` holds the visible bytes from which `meta` was parsed.
    /// `owner_of` says which worker owns a connection, by its key and keyed hash: [`share`], unless the network card distributes connections.
    #[inline]
    pub fn owner(
        &mut self,
        side: Side,
        meta: &Metadata,
        frame: &[u8],
        now: Instant,
        owner_of: impl FnOnce(&FlowKey, u64) -> usize,
    ) -> Option<usize> {
        match meta.parsed() {
            Parsed::Tcp(segment) => {
                let owner = owner_of(&segment.key, self.naming.hash(&segment.key, meta.hash(), self.keys));
                if segment.fragmented {
                    self.note(side, segment, frame, owner, now);
                }
                Some(owner)
            }
            Parsed::Error(quote) => Some(owner_of(&quote.key, self.naming.hash(&quote.key, meta.hash(), self.keys))),
            Parsed::Fragment(fragment) if !fragment.first => self.owner_of_first(meta.hash(), now),
            _ => None,
        }
    }

    /// Remembers the owner of a packet by its first fragment.
    #[inline(never)]
    fn note(&mut self, side: Side, segment: &Segment, frame: &[u8], owner: usize, now: Instant) {
        let Some(fragment) = Fragment::first_of(frame, segment, side) else { return };
        let hash = fragment.hash(self.keys);
        let time = time(now);
        let age = |way: u64| match way {
            // The packet's own way is taken first, then an empty one, then the oldest.
            _ if way != 0 && way >> 32 == hash >> 32 => u64::MAX,
            0 => u64::MAX - 1,
            way => time.wrapping_sub(way) & TIME_MASK,
        };
        if let Some(oldest) = self.first_fragments[line(hash)].0.iter_mut().max_by_key(|way| age(**way)) {
            *oldest = hash >> 32 << 32 | (owner as u64 + 1) << 16 | time;
        }
    }

    /// The owner of the packet with this hash, if its first fragment came recently.
    #[inline(never)]
    fn owner_of_first(&self, hash: u64, now: Instant) -> Option<usize> {
        let line = &self.first_fragments[line(hash)];
        let is_it = |way: &&u64| {
            **way >> 32 == hash >> 32 && time(now).wrapping_sub(**way) & TIME_MASK <= LIFETIME && **way != 0
        };
        line.0.iter().find(is_it).map(|way| (way >> 16 & 0xffff) as usize - 1)
    }
}

/// The key of a segment whose ports any network card that hashes ports finds: at most one 802.1Q tag that names a network, no IP options or
/// extension headers, and not a fragment.
#[inline]
pub fn plain(meta: &Metadata) -> Option<&FlowKey> {
    let Parsed::Tcp(segment) = meta.parsed() else { return None };
    let header = if segment.key.v6 { IPV6_LEN } else { IPV4_LEN };
    let is_bare = usize::from(segment.tcp - segment.ip) == header && !segment.fragmented && !segment.has_priority_tag();
    (is_bare && segment.key.vlan.is_common()).then_some(&segment.key)
}

/// The worker, out of `workers`, that a keyed hash names: evenly, and independent of the hash's places in a worker's tables.
#[inline]
pub fn share(hash: u64, workers: usize) -> usize {
    // The upper half of the product depends on all bits of the hash.
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((mixed * workers as u64) >> 32) as usize
}

/// The hash that names the owner of a connection with this key and keyed hash: that of the untagged key, because the two directions of a connection
/// may bear different VLAN tags.
#[inline(always)]
pub(crate) fn named_by(key: &FlowKey, hash: u64, keys: Keys) -> u64 {
    if key.vlan == Vlan::default() { hash } else { untagged_hash(key, keys) }
}

#[inline(never)]
fn untagged_hash(key: &FlowKey, keys: Keys) -> u64 {
    FlowKey { vlan: Vlan::default(), ..*key }.hash(keys)
}

fn line(hash: u64) -> usize {
    hash as usize % LINES
}

fn time(now: Instant) -> u64 {
    now.as_micros() >> TICK & TIME_MASK
}
