//! Connections that the kernel forwards by itself: the engine hands an established connection down, and takes it back.
//!
//! A connection that is handed down is in [`State::HandedDown`] and has an entry in words that a program of the kernel reads and writes at the same time
//! (`pktio/bpf/projection.h` lays them out in C). The program forwards what [`Proxy::forward_fast`](super::Proxy) would, and does to it what
//! [`Projection::apply_common`](crate::flow::translate::Projection::apply_common) does; everything else goes up. Tests run the program beside the engine.
//!
//! *Down.* A frame that the kernel forwards must not overtake one that went up before it. So the program lets the segments of each end go up, and notes by
//! a name which was the last of them, until it finds that the engine has noted the same: that segment has left the box, and so has everything before it.
//! A segment that is lost on the way up is followed by another, which then is the last. Of an end that sends nothing while its connection goes down there
//! is no such segment. What it sent before the entry was there may still be on its way up, where nobody has noted it: so the worker says at which instant
//! there was nothing on the way up at all, and what it has received until then has to leave. So a transfer goes down with its second flight, before a queue
//! stands in front of the worker.
//!
//! *Up.* At the first segment that the program does not forward it changes the entry's phase, and everything goes up from then on. The engine finds the
//! connection's numbers in the entry. A program on another core may still be writing the numbers of a segment that it forwarded just before, so the engine
//! looks there again for [`SETTLING`], before it uses the entry anew. What the kernel forwards waits in other queues than what the worker sends, and nobody
//! tells when it has left: so the engine says when the kernel last forwarded a segment of the end whose segment came up
//! ([`Proxy::forwarded_before`]), and the worker lets this one wait for as long as that may take.
//!
//! *Two keys.* The server of a service knows its connection under another key than the client, so the program finds such a connection by two hashes. Its entry
//! has the place of the client's; in that of the server's is a [`Splice`]: what is different on the other side, besides numbers, and what the program adds to
//! the client's. Each says where the other is, and the program follows none that is not answered.
//!
//! Each word has one writer at a time: what is said of an end is the program's while that end is down, and else the engine's.

use core::sync::atomic::Ordering;

use super::Proxy;
use crate::config::SackConflict;
use crate::flow::table::wheel::{Ticks, tick};
use crate::flow::table::{Id, Redirect};
use crate::flow::translate::Projection;
use crate::flow::{Flow, FlowFlags, State, ecn};
use crate::memory::{LINE, Word, Words, publish};
use crate::seq::{RawWindow, SeqNum};
use crate::wire::{FlowKey, Mac, Options, Segment};
use crate::{Event, Head, Instant, Side};

/// Entries of a bucket.
const SLOTS: usize = 8;
/// Words of an entry: a cache line of what stays as it is, and one for each end.
const ENTRY: usize = 3 * LINE;
/// Words of a bucket: the hashes of its flows, and their entries.
const BUCKET: usize = LINE + SLOTS * ENTRY;

// The words of an entry.
const PHASE: usize = 0;
const DELTAS: usize = 1;
const CLOCK: usize = 2;
const SCALES: usize = 3;
const MACS: usize = 4;
/// When the engine found that the connection has returned, in ticks plus one; 0: it has not.
const RETURNED_AT: usize = 5;
/// When the connection was gone, likewise.
const GONE_AT: usize = 6;
/// How much of what the kernel has forwarded was told: frames, and bytes in units of 2^[`TOLD_SHIFT`].
const TOLD: usize = 7;

const TOLD_SHIFT: u32 = 4;

/// In the word of the scales, in front of the place of the other part of a connection with two keys: the connection is one of this process; otherwise a former
/// one has left the entry and no connection of this one is known to go with it.
const OWNED: u64 = u64::from_ne_bytes([0, 0, 0, 1, 0, 0, 0, 0]);

// The words of an end.
const NUMBERS: usize = 0;
const WINDOW: usize = 1;
const WENT_UP: usize = 2;
const HAS_LEFT: usize = 3;
const FRAMES: usize = 4;
const BYTES: usize = 5;
const LAST_SEEN: usize = 6;
/// Names the use of the entry, in all but the lowest bit, which is set once everything has left that went up before the entry was there.
const CLEAR: usize = 7;

// The phases of an entry.
const GOING_DOWN: u32 = 1;
const RETURNED: u32 = 2;

// The flags of an entry.
const TRANSLATED: u32 = 1;
const TIMESTAMPS: u32 = 2;
const CLASSIC_ECN: u32 = 4;
const SACK: u32 = 8;
/// The server has a key of its own: there is a splice.
const SPLICED: u32 = 16;
/// Both keys are the same: the client's leads to the server's segments too.
const SAME_KEY: u32 = 32;
// The flags of a splice.
/// It is one.
const SECOND: u32 = 64;
/// An address of the box stands for the client.
const FULL: u32 = 128;

/// In place of a hash: the slot is being filled. No flow with such a hash is handed down.
const CLAIMED: u64 = 1;

/// How long an entry rests before it is used anew, in ticks: a tenth of a second.
const SETTLING: Ticks = 100;

/// Segments of connections that are going down which may wait to leave the box. Those beyond are not noted; a later one is.
const LEAVING: usize = 512;

/// Ends that may wait for an instant at which nothing is on its way up. Those beyond go down once they have sent something.
const ARRIVING: usize = 512;

/// Two 32-bit fields, in the order in which they lie in memory.
fn pair(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn unpair(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

/// Segments that are to leave the box.
struct Leaving {
    /// By the port of this side.
    by: Side,
    /// The worker watches whether they have left.
    is_watched: bool,
    /// The word that says so.
    at: usize,
    say: Say,
}

/// What a word says once segments have left.
enum Say {
    /// The name of the last of them.
    Name(u64),
    /// That the way is clear, if this is the use of the entry still.
    Clear(u64),
}

/// An end whose segments may be on their way up since before its entry was there.
struct Arriving {
    side: Side,
    at: usize,
    /// The use of the entry.
    usage: u64,
}

/// What the kernel has forwarded of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// Its ends.
    pub key: FlowKey,
    /// Frames of both ends; a super-frame counts once.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Connections that are gone which may wait to have told what the kernel forwarded of them.
const UNTOLD: usize = 256;

/// The entries, and what is under way.
pub(crate) struct HandedDown {
    /// None: nothing is handed down.
    words: Option<Words>,
    /// The number of buckets, a power of two, less one.
    mask: u64,
    /// The hash that falls in the second bucket of an excerpt.
    second: Option<u64>,
    /// The words that a former process has left, with those of its flows that this one has adopted.
    former: Option<Words>,
    /// The time of the last poll.
    pub(super) clock: Ticks,
    /// Segments that are to leave the box.
    leaving: Vec<Leaving>,
    /// Ends of which there may be segments that the worker has not received yet.
    arriving: Vec<Arriving>,
    /// How often entries were filled.
    fills: u32,
    /// When there last was no room for a connection.
    full_at: Option<Ticks>,
    /// What was forwarded of connections that are gone, and has not been told.
    untold: Vec<Forwarded>,
    /// The flow of the segment that is being processed, if it is handed down, its hash, and the segment's name.
    pub(super) came_up: Option<(Id, u64, u64)>,
    /// When the kernel last forwarded a segment of the end whose segment has just been processed.
    forwarded: Option<Instant>,
}

impl HandedDown {
    /// Nothing is handed down.
    pub(crate) fn none() -> Self {
        Self {
            words: None,
            mask: 0,
            second: None,
            former: None,
            clock: 0,
            leaving: Vec::new(),
            arriving: Vec::new(),
            fills: 0,
            full_at: None,
            untold: Vec::new(),
            came_up: None,
            forwarded: None,
        }
    }

    /// What concerns the flow with this hash and this second key, if it has one, in words of its own.
    pub(crate) fn excerpt(&self, hash: u64, redirect: Option<&Redirect>) -> Self {
        let Some((words, bucket)) = self.bucket(hash) else { return Self::none() };
        let tag = redirect.map(|redirect| Splice::tag(hash, redirect));
        let second = tag.and_then(|tag| self.bucket(tag)).map(|(_, at)| at).filter(|&at| at != bucket);
        let copied = [Some(bucket), second].into_iter().flatten().flat_map(|at| at..at + BUCKET);
        let copied: Vec<u64> = copied.map(|at| words[at].get()).collect();
        let words = Words::of(copied.into_iter());
        let tag = tag.filter(|_| second.is_some());
        let excerpt =
            Self { words: Some(words), clock: self.clock, full_at: self.full_at, second: tag, ..Self::none() };
        let there = self.find(hash).and_then(|entry| entry.splice());
        if let (Some(there), Some(entry)) = (there, excerpt.find(hash)) {
            // They find each other in these words.
            let slot = there.place() as usize % SLOTS;
            let place = if second.is_some() { SLOTS + slot } else { slot };
            entry.set_other_place(place as u32);
            entry.at_place(place).into_iter().for_each(|splice| splice.set_other_place(entry.place()));
        }
        excerpt
    }

    /// Has a word say this once everything that the worker has received of the end on `side` has left by the other port.
    fn note_leaving(&mut self, side: Side, at: usize, say: Say) {
        if self.leaving.len() < LEAVING {
            self.leaving.push(Leaving { by: side.other(), is_watched: false, at, say });
        }
    }

    /// What names the next use of an entry. No two uses of one are named alike: one rests for [`SETTLING`] before it is used anew.
    fn next_usage(&mut self) -> u64 {
        self.fills = self.fills.wrapping_add(1);
        u64::from(self.clock) << 32 | u64::from(self.fills << 1)
    }

    /// The entry of the flow with this hash has been filled: has it say when the way of each end's segments is clear.
    fn note_arriving(&mut self, hash: u64, usage: u64) {
        let Some(places) = self.find(hash).map(|entry| Side::BOTH.map(|side| (side, entry.end_at(side, CLEAR)))) else {
            return;
        };
        if self.arriving.len() + places.len() <= ARRIVING {
            self.arriving.extend(places.map(|(side, at)| Arriving { side, at, usage }));
        }
    }

    /// The words of the bucket that a hash falls in, and where it begins.
    fn bucket(&self, hash: u64) -> Option<(&Words, usize)> {
        let bucket = if self.second == Some(hash) { 1 } else { (hash & self.mask) as usize };
        Some((self.words.as_ref()?, bucket * BUCKET))
    }

    /// The entry of the flow with this hash.
    fn find(&self, hash: u64) -> Option<Entry<'_>> {
        let (words, bucket) = self.bucket(hash)?;
        find_in(words, bucket, hash)
    }

    /// The entry of the flow with this hash that a former process made. No program writes it any more once its flow's segments come up.
    fn find_former(&self, hash: u64) -> Option<Entry<'_>> {
        let words = self.former.as_ref()?;
        let buckets = (words.len() / BUCKET) as u64;
        find_in(words, (hash & (buckets - 1)) as usize * BUCKET, hash)
    }

    /// Takes a slot for the flow with this hash, if there is one. Other workers may do the same for their flows.
    fn take_slot(&self, hash: u64, now: Ticks) -> Option<Slot<'_>> {
        let (words, bucket) = self.bucket(hash).filter(|_| hash > CLAIMED)?;
        let entry = |slot: usize| Entry { words, at: bucket + LINE + slot * ENTRY };
        let own = (0..SLOTS).find(|slot| words[bucket + slot].get() == hash);
        let is_free = |slot: &usize| words[bucket + *slot].get() == 0 || entry(*slot).is_free(now);
        let slot = match own {
            Some(slot) => Some(slot).filter(is_free),
            None => (0..SLOTS).find(is_free),
        }?;
        let tag = &words[bucket + slot];
        let former = tag.get();
        if former == CLAIMED || !publish::claim(tag, former, CLAIMED) {
            return None;
        }
        Some(Slot { tag, former, hash, entry: entry(slot) })
    }

    /// Gives a flow with this key an entry that says what its record says, if there is room for one; and a splice, if it has a second key.
    fn claim(&self, flow: &Flow, key: &FlowKey, redirect: Option<&Redirect>, now: Ticks, usage: u64) -> bool {
        let Some(slot) = self.take_slot(flow.hash(), now) else { return false };
        let second = match redirect {
            None => None,
            Some(redirect) => match self.take_slot(Splice::tag(flow.hash(), redirect), now) {
                Some(second) => Some((second, redirect)),
                None => {
                    slot.put_back();
                    return false;
                }
            },
        };
        slot.entry.forget_counts();
        let written = second.as_ref().map(|(second, redirect)| Second::new(&second.entry, flow, key, redirect));
        slot.entry.fill(flow, written.as_ref(), usage);
        // A reader that finds the hash finds what was filled in. One that finds the entry finds the splice: it is written, though its own hash is not.
        if let Some((second, _)) = &second {
            second.show();
        }
        slot.show();
        true
    }

    /// The connection with this hash is gone: what comes goes up, and its entry is free in a while.
    pub(super) fn give_up(&mut self, hash: u64, key: FlowKey) {
        let untold = self.find(hash).map(|entry| entry.tell());
        self.find(hash).into_iter().chain(self.find_former(hash)).for_each(|entry| entry.give_up(self.clock));
        if let Some((frames, bytes)) = untold
            && frames > 0
            && self.untold.len() < self.untold.capacity()
        {
            self.untold.push(Forwarded { key, frames, bytes });
        }
    }

    /// What the entry of a flow knows better than its record. Returns when a segment was last seen, in ticks, if the kernel has forwarded any.
    pub(crate) fn merge(&self, flow: &mut Flow) -> Option<Ticks> {
        let entry = self.find(flow.hash()).or_else(|| self.find_former(flow.hash()))?;
        let is_returned = entry.phase() == RETURNED;
        // Until the engine has looked for the first time since the connection returned, the entry has the last word on windows too.
        let is_newest = !is_returned || entry.word(RETURNED_AT).get() == 0;
        let mut last = None;
        for side in Side::BOTH.into_iter().filter(|&side| entry.is_down(side)) {
            let (next, acked) = unpair(entry.end(side, NUMBERS).get());
            let (ts_value, rest) = unpair(entry.end(side, WINDOW).get());
            let (next, acked, window) = (SeqNum::new(next), SeqNum::new(acked), RawWindow(unpair16(rest).0));
            let carried = entry.end(side, BYTES).get() > 0;
            let endpoint = flow.endpoint_mut(side);
            let has_sent = next.after(endpoint.next);
            if has_sent {
                endpoint.next = next;
            }
            if acked.after(endpoint.acked) || is_newest && acked == endpoint.acked {
                (endpoint.acked, endpoint.window) = (acked, window);
            }
            let step = ts_value.wrapping_sub(endpoint.ts_value);
            if step != 0 && step < 1 << 31 {
                endpoint.ts_value = ts_value;
            }
            flow.set_if(FlowFlags::CARRIED, side == Side::Wan && has_sent);
            let seen = tick(Instant::from_micros(entry.end(side, LAST_SEEN).get() / 1000));
            if carried && last.is_none_or(|last: Ticks| (seen.wrapping_sub(last) as i32) > 0) {
                last = Some(seen);
            }
        }
        last
    }
}

/// All slots: the word of each that holds its flow's hash, and its entry.
fn slots(words: &Words) -> impl Iterator<Item = (&core::sync::atomic::AtomicU64, Entry<'_>)> {
    let places = (0..words.len() / BUCKET).flat_map(|bucket| (0..SLOTS).map(move |slot| (bucket * BUCKET, slot)));
    places.map(|(bucket, slot)| (&words[bucket + slot], Entry { words, at: bucket + LINE + slot * ENTRY }))
}

/// What a program writes into frames of a connection with two keys, besides what an entry says: the rest of the words of a splice.
struct Splice {
    flags: u32,
    /// What is added to the client's numbers and timestamps on their way to the server.
    deltas: (u32, u32),
    /// The first number of the server itself, as the client counts.
    first: SeqNum,
    /// The client's number behind what the box itself has acknowledged.
    kept_to: SeqNum,
    /// Of frames from the LAN, and from the WAN.
    ways: [Way; 2],
}

/// What frames from one side have on the other.
#[derive(Default)]
struct Way {
    /// Source and destination, as they lie in the IP header; those of IPv4 in the first eight bytes.
    addresses: [u8; 32],
    /// Source and destination.
    ports: [u8; 4],
    /// Destination and source.
    macs: [Mac; 2],
    /// By how much the sum grows of what the addresses, and the ports, replace (RFC 1624); as words lie in memory.
    sums: [u16; 2],
}

/// One's complement sum of what replaces these bytes by others: whole words of 32 bits.
fn replaced(old: &[u8], new: &[u8]) -> u16 {
    let words =
        |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_ne_bytes(word)).collect::<Vec<_>>();
    let sum: u64 = words(old).iter().zip(words(new)).map(|(&old, new)| u64::from(!old) + u64::from(new)).sum();
    (0..4).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16)) as u16
}

impl Way {
    /// The way of frames of the end on `side` from its own key to the other end's.
    fn new(side: Side, own: &FlowKey, other: &FlowKey, macs: [Mac; 2]) -> Self {
        let before = Self::of_key(side, own);
        let mut way = Self::of_key(side, other);
        way.macs = macs;
        way.sums = [replaced(&before.addresses, &way.addresses), replaced(&before.ports, &way.ports)];
        way
    }

    fn of_key(side: Side, key: &FlowKey) -> Self {
        let (lan, wan) = ((&key.lan, key.lan_port), (&key.wan, key.wan_port));
        let (from, to) = if side == Side::Lan { (lan, wan) } else { (wan, lan) };
        let words = if key.v6 { 0..4 } else { 3..4 };
        let mut way = Self::default();
        let both = [&from.0[words.clone()], &to.0[words]].concat();
        way.addresses.as_chunks_mut::<4>().0.iter_mut().zip(both).for_each(|(at, word)| *at = word.to_be_bytes());
        way.ports[..2].copy_from_slice(&from.1.to_be_bytes());
        way.ports[2..].copy_from_slice(&to.1.to_be_bytes());
        way
    }

    fn words(&self) -> [u64; LINE] {
        let mut line = [[0; 8]; LINE];
        let bytes = line.as_flattened_mut();
        bytes[..32].copy_from_slice(&self.addresses);
        bytes[32..36].copy_from_slice(&self.ports);
        bytes[36..48].copy_from_slice(self.macs.as_flattened());
        for (at, sum) in [48, 52].into_iter().zip(self.sums) {
            bytes[at..at + 4].copy_from_slice(&u32::from(sum).to_ne_bytes());
        }
        line.map(u64::from_ne_bytes)
    }
}

impl Splice {
    fn of(flow: &Flow, own: &FlowKey, redirect: &Redirect) -> Self {
        let second = redirect.key();
        let is_full = redirect.own_mac != [0; 6];
        Self {
            flags: SECOND | if is_full { FULL } else { 0 },
            deltas: (redirect.seq_delta.shift(0), redirect.ts_delta.shift(0)),
            first: flow.outer_isn + 1,
            kept_to: redirect.kept_to,
            ways: [
                Way::new(Side::Lan, &second, own, [flow.mac(Side::Wan), redirect.mac]),
                Way::new(Side::Wan, own, &second, [flow.mac(Side::Lan), redirect.own_mac]),
            ],
        }
    }

    /// Under which hash the program finds it: where both keys are the same it need not, and must not.
    fn tag(hash: u64, redirect: &Redirect) -> u64 {
        if redirect.hash() == hash { !hash } else { redirect.hash() }
    }
}

/// The entry of the flow with this hash in the bucket that begins there.
fn find_in(words: &Words, bucket: usize, hash: u64) -> Option<Entry<'_>> {
    let slot = (0..SLOTS).find(|slot| words[bucket + slot].get() == hash && hash > CLAIMED)?;
    Some(Entry { words, at: bucket + LINE + slot * ENTRY })
}

/// The two halves of a 32-bit field.
fn unpair16(word: u32) -> (u16, u16) {
    let [a, b, c, d] = word.to_ne_bytes();
    (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]))
}

/// A slot that is being filled.
struct Slot<'a> {
    tag: &'a core::sync::atomic::AtomicU64,
    /// What stood in the place of the hash before.
    former: u64,
    hash: u64,
    entry: Entry<'a>,
}

impl Slot<'_> {
    /// A reader that finds the hash finds what was filled in.
    fn show(&self) {
        publish::show(self.tag, self.hash);
    }

    /// It is not filled after all.
    fn put_back(&self) {
        publish::show(self.tag, self.former);
    }
}

/// Where the splice of an entry is, and what is to be written there.
struct Second<'a> {
    at: &'a Entry<'a>,
    splice: Splice,
    is_same: bool,
}

impl<'a> Second<'a> {
    fn new(at: &'a Entry<'a>, flow: &Flow, key: &FlowKey, redirect: &Redirect) -> Self {
        Self { at, splice: Splice::of(flow, key, redirect), is_same: redirect.hash() == flow.hash() }
    }

    /// The flags of its entry.
    fn flags(&self) -> u32 {
        SPLICED | if self.is_same { SAME_KEY } else { 0 }
    }
}

/// One entry.
struct Entry<'a> {
    words: &'a Words,
    at: usize,
}

impl<'a> Entry<'a> {
    fn word(&self, n: usize) -> &'a core::sync::atomic::AtomicU64 {
        &self.words[self.at + n]
    }

    fn end_at(&self, side: Side, n: usize) -> usize {
        self.at + LINE * (1 + side as usize) + n
    }

    fn end(&self, side: Side, n: usize) -> &'a core::sync::atomic::AtomicU64 {
        &self.words[self.end_at(side, n)]
    }

    fn phase(&self) -> u32 {
        unpair(self.word(PHASE).get()).0
    }

    fn set_phase(&self, phase: u32) {
        let (_, flags) = unpair(self.word(PHASE).get());
        self.word(PHASE).set(pair(phase, flags));
    }

    /// Whether the kernel forwards what the end on this side sends, or did so until the connection returned.
    fn is_down(&self, side: Side) -> bool {
        unpair16(unpair(self.end(side, WINDOW).get()).1).1 != 0
    }

    /// When the kernel last forwarded a segment of the end on this side, if it has forwarded any.
    fn forwarded(&self, side: Side) -> Option<Instant> {
        let has_forwarded = self.is_down(side) && self.end(side, FRAMES).get() > 0;
        has_forwarded.then(|| Instant::from_micros(self.end(side, LAST_SEEN).get() / 1000))
    }

    fn flags(&self) -> u32 {
        unpair(self.word(PHASE).get()).1
    }

    /// Its number among all entries, by which the parts of a connection with two keys find each other.
    fn place(&self) -> u32 {
        let (bucket, slot) = (self.at / BUCKET, (self.at % BUCKET - LINE) / ENTRY);
        (bucket * SLOTS + slot) as u32
    }

    /// Where its other part is, if its connection has two keys.
    fn other_place(&self) -> u32 {
        unpair(self.word(SCALES).get()).1
    }

    fn set_other_place(&self, place: u32) {
        let word = self.word(SCALES);
        word.set(pair(unpair(word.get()).0, place));
    }

    /// What has this place.
    fn at_place(&self, place: usize) -> Option<Entry<'a>> {
        let at = (place / SLOTS).checked_mul(BUCKET)?.checked_add(LINE + place % SLOTS * ENTRY)?;
        (at + ENTRY <= self.words.len()).then_some(Entry { words: self.words, at })
    }

    /// The splice of an entry: only one that says the same of this.
    fn splice(&self) -> Option<Entry<'a>> {
        let place = Some(self.other_place() as usize).filter(|_| self.flags() & SPLICED != 0)?;
        let is_its = |splice: &Entry| splice.flags() & SECOND != 0 && splice.other_place() == self.place();
        self.at_place(place).filter(is_its)
    }

    fn is_owned(&self) -> bool {
        self.word(SCALES).get() & OWNED != 0
    }

    fn set_owned(&self, owned: bool) {
        for word in self.splice().into_iter().chain([Entry { ..*self }]).map(|part| part.word(SCALES)) {
            word.set(if owned { word.get() | OWNED } else { word.get() & !OWNED });
        }
    }

    /// Of another connection nothing has been forwarded.
    fn forget_counts(&self) {
        for side in Side::BOTH {
            [FRAMES, BYTES].into_iter().for_each(|n| self.end(side, n).set(0));
        }
        self.word(TOLD).set(0);
    }

    /// The frames and bytes that the kernel has forwarded since this was asked last.
    fn tell(&self) -> (u64, u64) {
        let [frames, bytes] = [FRAMES, BYTES].map(|n| {
            let [lan, wan] = Side::BOTH.map(|side| self.end(side, n).get());
            lan.wrapping_add(wan)
        });
        let now = (frames as u32, (bytes >> TOLD_SHIFT) as u32);
        let told = unpair(self.word(TOLD).get());
        self.word(TOLD).set(pair(now.0, now.1));
        (now.0.wrapping_sub(told.0).into(), u64::from(now.1.wrapping_sub(told.1)) << TOLD_SHIFT)
    }

    /// Its connection is gone: what comes goes up, and the entry is free in a while.
    fn give_up(&self, now: Ticks) {
        for part in self.splice().into_iter().chain([Entry { ..*self }]) {
            part.set_phase(RETURNED);
            part.word(GONE_AT).set(u64::from(now) + 1);
        }
    }

    /// Whether it may be filled anew: its connection has been gone for a while.
    fn is_free(&self, now: Ticks) -> bool {
        let gone = self.word(GONE_AT).get();
        gone != 0 && now.wrapping_add(1).wrapping_sub(gone as Ticks) >= SETTLING
    }

    /// Writes what a flow's record says, and what its second key asks for, if it has one; from now on it is going down. `usage` names this use of the entry.
    fn fill(&self, flow: &Flow, second: Option<&Second>, usage: u64) {
        let translated = flow.is(FlowFlags::PROXIED);
        let flags = if translated { TRANSLATED } else { 0 }
            | if flow.is(FlowFlags::TIMESTAMPS) { TIMESTAMPS } else { 0 }
            // What is not translated is not looked at for marks.
            | if ecn::is_classic(flow) || !translated { CLASSIC_ECN } else { 0 }
            // Whether blocks that the server has not agreed to are taken out, the worker knows.
            | if flow.is(FlowFlags::SACK_LAN) || !translated { SACK } else { 0 }
            | second.map_or(0, |second| second.flags());
        let other = second.map_or(0, |second| {
            second.at.fill_splice(&second.splice, self.place());
            second.at.place()
        });
        let [lan, wan] = [Side::Lan, Side::Wan].map(|side| flow.endpoint(side).scales());
        let mac = |side| {
            let [_, _, own @ ..] = flow.mac(side);
            u32::from_ne_bytes(own)
        };
        let projection = Projection::of(flow, SackConflict::Remove);
        let (seq_delta, ts_delta, ts_base, ts_elapsed) = projection.numbers();
        self.word(DELTAS).set(pair(seq_delta, ts_delta));
        self.word(CLOCK).set(pair(ts_base, ts_elapsed));
        self.word(SCALES).set(pair(u32::from_ne_bytes([lan, wan, 0, 0]), other) | OWNED);
        self.word(MACS).set(pair(mac(Side::Lan), mac(Side::Wan)));
        self.word(RETURNED_AT).set(0);
        self.word(GONE_AT).set(0);
        for side in Side::BOTH {
            self.fill_end(flow, side);
            [WENT_UP, HAS_LEFT].into_iter().for_each(|n| self.end(side, n).set(0));
            self.end(side, CLEAR).set(usage);
        }
        self.word(PHASE).store(pair(GOING_DOWN, flags), Ordering::Release);
    }

    /// Writes the splice of the entry at `place`.
    fn fill_splice(&self, splice: &Splice, place: u32) {
        let Splice { flags, deltas, first, kept_to, ways } = splice;
        self.word(DELTAS).set(pair(deltas.0, deltas.1));
        self.word(CLOCK).set(pair(first.get(), kept_to.get()));
        self.word(SCALES).set(pair(0, place) | OWNED);
        [MACS, RETURNED_AT, GONE_AT, TOLD].into_iter().for_each(|n| self.word(n).set(0));
        let words = ways.iter().flat_map(Way::words);
        words.zip(LINE..).for_each(|(word, n)| self.word(n).set(word));
        self.word(PHASE).store(pair(GOING_DOWN, *flags), Ordering::Release);
    }

    /// Writes what a flow's record says of an end that is not down.
    fn fill_end(&self, flow: &Flow, side: Side) {
        let endpoint = flow.endpoint(side);
        let [a, b] = endpoint.window.0.to_ne_bytes();
        self.end(side, NUMBERS).set(pair(endpoint.next.get(), endpoint.acked.get()));
        self.end(side, WINDOW).set(pair(endpoint.ts_value, u32::from_ne_bytes([a, b, 0, 0])));
    }
}

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Adds a word to a name.
fn mixed(name: u64, word: u64) -> u64 {
    (name ^ name >> 32).wrapping_mul(MULTIPLIER).wrapping_add(word)
}

/// Names a segment among those of its sender, as the program does. Two that are named alike are the same to their receiver, and so is their order.
/// Never 0.
fn name_of(segment: &Segment, head: &Head) -> u64 {
    let options = segment.options(head.bytes());
    let timestamps = options.first_chunk().and_then(Options::common_timestamps).unwrap_or_default();
    let others = match segment.common_options(head.bytes()) {
        Some(_) => 0,
        None => {
            let mut words = [[0; 8]; 5];
            words.as_flattened_mut()[..options.len()].copy_from_slice(options);
            words.into_iter().fold(0, |name, word| mixed(name, u64::from_ne_bytes(word)))
        }
    };
    let end = segment.seq + segment.payload_len();
    let name = u64::from(end.get()) << 32 | u64::from(segment.ack.get());
    let stamps = u64::from(timestamps.value) << 32 | u64::from(timestamps.echo);
    let name = name.wrapping_mul(MULTIPLIER).wrapping_add(stamps);
    let rest = u64::from(segment.window.0) << 1 | u64::from(segment.payload_len() > 0);
    mixed(mixed(name, rest), others).max(1)
}

/// What keeps a flow from being handed down: what is in its way on the engine's own fast path, but for a second key.
const UNFIT: FlowFlags = FlowFlags::SLOW_PATH.without(FlowFlags::REDIRECTED).and(FlowFlags::UNJUDGED);

impl Proxy {
    /// Words that the entries of so many connections need, at least: each bucket has eight, and the number of buckets is a power of two.
    pub const fn words_to_hand_down(flows: usize) -> usize {
        flows.div_ceil(SLOTS).next_power_of_two() * BUCKET
    }

    /// From now on established connections are handed down to a program of the kernel that shares these words, as many as
    /// [`words_to_hand_down`](Proxy::words_to_hand_down) says, which were zero at first. Other workers may have the same words.
    ///
    /// Where a former process has left the words with its flows, what it had handed down is handed down: see
    /// [`prepare_to_go_on`](Proxy::prepare_to_go_on).
    ///
    /// # Panics
    /// If there is not even one bucket, or their number is no power of two.
    pub fn hand_down_in(&mut self, words: Words) {
        let buckets = words.len() / BUCKET;
        assert!(buckets.is_power_of_two(), "a power of two of buckets");
        self.handed_down = HandedDown {
            words: Some(words),
            mask: buckets as u64 - 1,
            leaving: Vec::with_capacity(LEAVING),
            arriving: Vec::with_capacity(ARRIVING),
            untold: Vec::with_capacity(UNTOLD),
            former: self.handed_down.former.take(),
            ..HandedDown::none()
        };
    }

    /// Before workers are given words that a former process has left, with its flows: no entry is known to be one of theirs. Each then says which are, with
    /// [`go_on_handed_down`](Proxy::go_on_handed_down), and behind the last of them [`end_without_flow`](Proxy::end_without_flow) ends the others. Meanwhile
    /// the program may go on to forward.
    pub fn prepare_to_go_on(words: &Words) {
        for (hash, entry) in slots(words) {
            entry.set_owned(false);
            // The former process was killed while it filled the slot.
            if hash.get() == CLAIMED {
                hash.set(0);
            }
        }
    }

    /// The entries of the flows that were adopted are this process's.
    pub fn go_on_handed_down(&self) {
        let (flows, _) = self.table.slice(0, u32::MAX);
        for (_, flow) in flows.filter(|(_, flow)| flow.is_in(State::HandedDown)) {
            if let Some(entry) = self.handed_down.find(flow.hash()) {
                entry.set_owned(true);
            }
        }
    }

    /// What the program forwards for connections that no worker has adopted, it forwards no more.
    pub fn end_without_flow(words: &Words, now: Instant) {
        for (hash, entry) in slots(words) {
            if hash.get() > CLAIMED && !entry.is_owned() && entry.word(GONE_AT).get() == 0 {
                entry.give_up(tick(now));
            }
        }
    }

    /// Flows that a former process had handed down are found in these words, which it has left beside those of this one: their numbers are those that the
    /// kernel has followed since. Words of another length than those of [`words_to_hand_down`](Proxy::words_to_hand_down) are not read.
    pub fn adopt_handed_down(&mut self, words: Words) {
        let buckets = words.len() / BUCKET;
        self.handed_down.former = (buckets.is_power_of_two() && words.len().is_multiple_of(BUCKET)).then_some(words);
    }

    /// Whether the worker is to watch what leaves, with [`watch_leaving`](Proxy::watch_leaving).
    #[inline]
    pub fn awaits_leaving(&self) -> bool {
        !self.handed_down.leaving.is_empty()
    }

    /// From now on the worker watches whether what was to leave by this side's port so far has left it. [`has_left`](Proxy::has_left) says so.
    pub fn watch_leaving(&mut self, by: Side) {
        self.handed_down.leaving.iter_mut().filter(|leaving| leaving.by == by).for_each(|one| one.is_watched = true);
    }

    /// What was watched at this side's port has left it: sent by the device, taken by the receiver behind the other end of a veth, or lost.
    pub fn has_left(&mut self, by: Side) {
        let HandedDown { words, leaving, .. } = &mut self.handed_down;
        let Some(words) = words else { return };
        leaving.retain(|one| {
            let has_left = one.by == by && one.is_watched;
            if has_left {
                let word = &words[one.at];
                // Ordered behind what the record says of the same segment.
                match one.say {
                    Say::Name(name) => word.store(name, Ordering::Release),
                    // Otherwise another use of the entry has begun.
                    Say::Clear(usage) => {
                        let _ = word.compare_exchange(usage, usage | 1, Ordering::Release, Ordering::Relaxed);
                    }
                }
            }
            !has_left
        });
    }

    /// Whether the worker is to look for an instant at which nothing is on its way up, for [`has_arrived`](Proxy::has_arrived).
    #[inline]
    pub fn awaits_arrival(&self) -> bool {
        !self.handed_down.arriving.is_empty()
    }

    /// Whatever has come to this side's port until now, and was not forwarded or dropped by the program, the worker has received; it is going to process what
    /// it has not processed yet before it watches again [what leaves](Proxy::watch_leaving).
    pub fn has_arrived(&mut self, side: Side) {
        let HandedDown { arriving, leaving, .. } = &mut self.handed_down;
        arriving.retain(|one| {
            let arrives = one.side == side && leaving.len() < LEAVING;
            if arrives {
                let say = Say::Clear(one.usage);
                leaving.push(Leaving { by: side.other(), is_watched: false, at: one.at, say });
            }
            !arrives
        });
    }

    /// Whether connections are handed down.
    #[inline]
    pub fn hands_down(&self) -> bool {
        self.handed_down.words.is_some()
    }

    /// Tells what the kernel has forwarded of connections since this was told last: of those from the place `cursor` on (0 to begin with), as many as cost
    /// some tens of microseconds at most, and of those that are gone, of which some are left out where there are very many. Returns the place to go on from,
    /// `None` at the end.
    pub fn tell_forwarded(&mut self, cursor: u32, mut tell: impl FnMut(Forwarded)) -> Option<u32> {
        /// Records that are looked at, and connections handed down among them.
        const LOOKED_AT: u32 = 1024;
        const FOUND: usize = 128;
        let Self { table, handed_down, .. } = self;
        handed_down.untold.drain(..).for_each(&mut tell);
        let (flows, next) = table.slice(cursor, LOOKED_AT);
        for (n, (id, flow)) in flows.filter(|(_, flow)| flow.is_in(State::HandedDown)).enumerate() {
            if n == FOUND {
                return Some(id.0);
            }
            let Some((frames, bytes)) = handed_down.find(flow.hash()).map(|entry| entry.tell()) else { continue };
            if frames > 0 {
                tell(Forwarded { key: table.key(id), frames, bytes });
            }
        }
        next
    }

    /// When the kernel last forwarded a segment of the end that has sent the segment of the last [`on_frame`](Proxy::on_frame), if the kernel has handed this one
    /// up: what it forwarded may not have left the box yet. Asked twice, it says so once.
    #[inline]
    pub fn forwarded_before(&mut self) -> Option<Instant> {
        self.handed_down.forwarded.take()
    }

    /// Whether the kernel may forward a flow: nothing is owed, pending or in doubt, and the frames of both ends are of one network.
    fn may_go_down(&self, id: Id) -> bool {
        let flow = &self.table[id];
        let proxied = flow.is(FlowFlags::PROXIED);
        let keeps_sides = |redirect: &Redirect| redirect.sides() == Some((Side::Wan, Side::Lan));
        (flow.is_in(State::Established) || flow.is_in(State::HandedDown))
            && !flow.is(UNFIT)
            && self.table.redirected(id).is_none_or(keeps_sides)
            && flow.held == 0
            && (flow.is(FlowFlags::CARRIED) || !proxied)
            && (flow.is(FlowFlags::TIMESTAMPS_LAN) || !flow.is(FlowFlags::TIMESTAMPS))
            && !flow.has_other_vlan()
            && !flow.is_crossed()
            && if proxied { ecn::is_plain_or_classic(flow) } else { flow.client() == Side::Lan }
    }

    /// After a segment of a flow: hands the flow down if the kernel may forward it. One for which there is no room is tried again whenever a segment of it
    /// comes; but once there was none for one, no other is tried in the same tick.
    #[inline]
    pub(super) fn hand_down(&mut self, id: Id, now: Instant) {
        if self.hands_down()
            && self.table[id].is_in(State::Established)
            && self.handed_down.full_at != Some(tick(now))
            && self.may_go_down(id)
        {
            self.hand_down_now(id, now);
        }
    }

    #[cold]
    fn hand_down_now(&mut self, id: Id, now: Instant) {
        let usage = self.handed_down.next_usage();
        let (flow, key) = (&self.table[id], self.table.key(id));
        if self.handed_down.claim(flow, &key, self.table.redirected(id), tick(now), usage) {
            self.handed_down.note_arriving(flow.hash(), usage);
            self.set_state(id, State::HandedDown, now, |_| ());
            self.counters.count(Event::HandedDown);
        } else {
            self.handed_down.full_at = Some(tick(now));
            self.counters.count(Event::NotHandedDown);
        }
    }

    /// After a segment that changed what the kernel does not know, as that the box owes the answer to a congestion mark: what comes goes up.
    #[cold]
    pub(super) fn take_back_unfit(&mut self, id: Id) {
        if self.table[id].is_in(State::HandedDown)
            && !self.may_go_down(id)
            && let Some(entry) = self.handed_down.find(self.table[id].hash())
        {
            entry.set_phase(RETURNED);
        }
    }

    /// Brings the record of a flow that is handed down up to date.
    pub(crate) fn refresh(&mut self, id: Id) {
        if !self.table[id].is_in(State::HandedDown) {
            return;
        }
        let handed_down = &self.handed_down;
        let last = self.table.update(id, |flow| {
            // Without an entry nobody knows what the kernel has followed since.
            let hash = flow.hash();
            let is_lost = handed_down.find(hash).is_none() && handed_down.find_former(hash).is_none();
            flow.set_if(FlowFlags::UNJUDGED, is_lost);
            handed_down.merge(flow)
        });
        if let Some(last) = last {
            let flow = &self.table[id];
            let due = last.wrapping_add(self.settings.profiles.of(flow.profile).of(State::HandedDown));
            if (due.wrapping_sub(flow.deadline()) as i32) > 0 {
                self.table.schedule(id, due);
            }
        }
    }

    /// The timer of a flow that is handed down has come; it is on no timer. Returns whether the flow goes on: the kernel has forwarded segments since.
    pub(super) fn is_alive_below(&mut self, id: Id, now: Instant) -> bool {
        let handed_down = &self.handed_down;
        let Some(last) = self.table.update(id, |flow| handed_down.merge(flow)) else { return false };
        let flow = &self.table[id];
        let due = last.wrapping_add(self.settings.profiles.of(flow.profile).of(State::HandedDown));
        let is_alive = (due.wrapping_sub(tick(now)) as i32) > 0;
        if is_alive {
            self.table.enter(id, due);
        }
        is_alive
    }

    /// Before a segment of a flow that is handed down.
    #[cold]
    pub(super) fn begin_handed_down(&mut self, side: Side, id: Id, segment: &Segment, head: &Head) {
        self.refresh(id);
        let hash = self.table[id].hash();
        let forwarded = self.handed_down.find(hash).and_then(|entry| entry.forwarded(side));
        self.handed_down.forwarded = forwarded;
        self.handed_down.came_up = Some((id, hash, name_of(segment, head)));
    }

    /// After a segment from `side` of a flow that is handed down.
    #[cold]
    pub(super) fn settle_handed_down(&mut self, side: Side, now: Instant) {
        let Some((id, hash, name)) = self.handed_down.came_up.take() else { return };
        if !self.table[id].is_in(State::HandedDown) || self.table[id].hash() != hash {
            return;
        }
        let may_go_down = self.may_go_down(id);
        let usage = self.handed_down.next_usage();
        let Some(entry) = self.handed_down.find(hash) else {
            // A former process had handed it down.
            self.set_state(id, State::Established, now, |_| ());
            return self.hand_down(id, now);
        };
        let (flow, clock) = (&self.table[id], tick(now));
        if entry.phase() == GOING_DOWN {
            if may_go_down && !entry.is_down(side) {
                entry.fill_end(flow, side);
                let at = entry.end_at(side, HAS_LEFT);
                self.handed_down.note_leaving(side, at, Say::Name(name));
                return;
            }
            // A segment that the program did not take for one of this flow; or it would not forward those that come.
            entry.set_phase(RETURNED);
        }
        let returned = entry.word(RETURNED_AT);
        match returned.get() {
            0 => {
                returned.set(u64::from(clock) + 1);
                self.counters.count(Event::HandedUp);
            }
            since if clock.wrapping_add(1).wrapping_sub(since as Ticks) < SETTLING => {}
            _ if may_go_down => {
                let splice = entry.splice();
                let (key, redirect) = (self.table.key(id), self.table.redirected(id));
                let second = splice.as_ref().zip(redirect).map(|(at, redirect)| Second::new(at, flow, &key, redirect));
                if redirect.is_some() && second.is_none() {
                    // Its splice is not there: it begins anew.
                    return self.set_state(id, State::Established, now, |_| ());
                }
                entry.fill(flow, second.as_ref(), usage);
                self.handed_down.note_arriving(hash, usage);
                self.counters.count(Event::HandedDown);
            }
            _ => self.set_state(id, State::Established, now, |_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::Secrets;
    use crate::memory::tests::shared;
    use crate::proxy::test_segments::TestSegment;
    use crate::proxy::tests::NoEgress;
    use crate::wire::Parsed;
    use core::time::Duration;

    const NOW: Instant = Instant::from_secs(1000);

    fn config() -> Config {
        Config { table_buckets: 8, learn_capacity: 64, syn_cache_max: 4, ..Config::default() }
    }

    /// An engine that can hand down eight connections.
    fn proxy() -> Proxy {
        let mut proxy = Proxy::new(&config(), &Secrets::new([3; 48]), NOW);
        proxy.hand_down_in(shared(Proxy::words_to_hand_down(8), || 0));
        proxy
    }

    /// Has a connection established, and hands it down if that is possible.
    fn enter(proxy: &mut Proxy, n: u32, now: Instant) -> Id {
        let key = FlowKey { lan: [0, 0, 0xffff, 1], wan: [0, 0, 0xffff, n], ..FlowKey::default() };
        let hash = key.hash(proxy.settings.hash_keys);
        let id = proxy.admit(&key, hash, Side::Wan, State::Established, now, |_| ()).expect("room");
        proxy.table.overwrite(id, State::Established, |flow| {
            flow.set(FlowFlags::PROXIED, true);
            flow.set(FlowFlags::CARRIED, true);
        });
        proxy.hand_down(id, now);
        id
    }

    /// What the program does when it forwards a segment of the end on `side`.
    fn forwarded(proxy: &Proxy, id: Id, side: Side, next: u32, now: Instant) {
        let entry = proxy.handed_down.find(proxy.table[id].hash()).expect("it has an entry");
        entry.end(side, NUMBERS).set(pair(next, 0));
        let down = u32::from_ne_bytes([7, 0, 1, 0]);
        entry.end(side, WINDOW).set(pair(0, down));
        entry.end(side, FRAMES).set(1);
        entry.end(side, BYTES).set(100);
        entry.end(side, LAST_SEEN).set(now.as_micros() * 1000);
    }

    fn poll(proxy: &mut Proxy, now: Instant) {
        while proxy.on_timeout(now, &mut NoEgress) {}
    }

    #[test]
    fn a_connection_lives_as_long_as_the_kernel_sees_it_and_no_longer() {
        let mut proxy = proxy();
        let id = enter(&mut proxy, 1, NOW);
        assert!(proxy.table[id].is_in(State::HandedDown));
        let lifetime = config().timeouts.connected;
        let seen = NOW + lifetime / 2;
        forwarded(&proxy, id, Side::Lan, 500, seen);
        poll(&mut proxy, NOW + lifetime + Duration::from_secs(1));
        assert!(proxy.table[id].is_in(State::HandedDown), "its last segment came half a lifetime ago");
        assert_eq!(proxy.table[id].endpoint(Side::Lan).next, SeqNum::new(500));
        poll(&mut proxy, seen + lifetime + Duration::from_secs(1));
        assert_eq!(proxy.population().proxied, 0);
        assert_eq!(proxy.counters().happened(Event::Expired), 1);
    }

    #[test]
    fn what_is_listed_is_as_old_as_the_last_segment_that_the_kernel_forwarded() {
        let mut proxy = proxy();
        let id = enter(&mut proxy, 1, NOW);
        forwarded(&proxy, id, Side::Wan, 500, NOW + Duration::from_secs(60));
        let mut told = Vec::new();
        let now = NOW + Duration::from_secs(63);
        proxy.list(0, &crate::Filter::default(), now, |connection| told.push(connection));
        let idle = told[0].idle.expect("it rests").as_secs_f64();
        assert!((2.9..3.2).contains(&idle), "{idle}");
        assert_eq!(told[0].endpoint[Side::Wan].window, 7);
    }

    #[test]
    fn an_entry_rests_before_it_is_used_anew_and_a_full_bucket_takes_no_more() {
        let mut proxy = proxy();
        let ids: Vec<Id> = (1..=9).map(|n| enter(&mut proxy, n, NOW)).collect();
        let are_down = ids.iter().filter(|id| proxy.table[**id].is_in(State::HandedDown)).count();
        assert_eq!((are_down, proxy.counters().happened(Event::NotHandedDown)), (SLOTS, 1));
        poll(&mut proxy, NOW);
        proxy.forget(ids[0]);
        let id = enter(&mut proxy, 10, NOW + Duration::from_millis(50));
        assert!(proxy.table[id].is_in(State::Established), "a program may still write there");
        let id = enter(&mut proxy, 11, NOW + Duration::from_millis(150));
        assert!(proxy.table[id].is_in(State::HandedDown));
    }

    #[test]
    fn a_connection_that_was_handed_down_goes_on_in_the_next_process_unjudged() {
        let mut proxy = proxy();
        let id = enter(&mut proxy, 1, NOW);
        let memory = crate::Memory { slab: proxy.into_slab(), ..crate::Memory::anonymous(&config()) };
        let next = Proxy::with_memory(&config(), &Secrets::new([3; 48]), NOW, memory);
        let mut next = next;
        assert!(next.table[id].is_in(State::HandedDown));
        next.refresh(id);
        assert!(next.table[id].is(FlowFlags::UNJUDGED), "nobody knows its numbers");
        next.handed_down.came_up = Some((id, next.table[id].hash(), 9));
        next.settle_handed_down(Side::Lan, NOW);
        assert!(next.table[id].is_in(State::Established));
    }

    #[test]
    fn a_connection_without_room_goes_down_once_there_is_some_whatever_it_sends() {
        let mut proxy = proxy();
        let ids: Vec<Id> = (1..=9).map(|n| enter(&mut proxy, n, NOW)).collect();
        let first = proxy.table.key(ids[0]);
        let meets = |proxy: &mut Proxy, n: u32, now: Instant| {
            let key = FlowKey { wan: [0, 0, 0xffff, n], ..first };
            let id = proxy.table.find(&key, key.hash(proxy.settings.hash_keys)).expect("it is there");
            let segment = TestSegment { flags: 0x10, ..TestSegment::default() };
            let mut frame = segment.frame();
            let Parsed::Tcp(segment) = Parsed::parse(Side::Lan, &Head::whole(&mut frame.clone(), frame.len())) else {
                panic!("one")
            };
            let length = frame.len();
            assert!(proxy.forward_fast(Side::Lan, &segment, id, &mut Head::whole(&mut frame, length), now));
            proxy.table[id].state()
        };
        assert_eq!(meets(&mut proxy, 9, NOW + Duration::from_millis(1)), State::Established);
        poll(&mut proxy, NOW + Duration::from_millis(2));
        proxy.forget(ids[0]);
        assert_eq!(meets(&mut proxy, 9, NOW + Duration::from_millis(300)), State::HandedDown);
        assert_eq!(proxy.counters().happened(Event::NotHandedDown), 2);
    }

    #[test]
    fn a_connection_goes_on_in_the_next_process_with_the_numbers_that_the_kernel_has_followed() {
        let mut proxy = proxy();
        let id = enter(&mut proxy, 1, NOW);
        forwarded(&proxy, id, Side::Lan, 500, NOW);
        let words = proxy.handed_down.words.take().expect("it has words");
        let memory = crate::Memory { slab: proxy.into_slab(), ..crate::Memory::anonymous(&config()) };
        let mut next = Proxy::with_memory(&config(), &Secrets::new([3; 48]), NOW, memory);
        next.hand_down_in(shared(Proxy::words_to_hand_down(8), || 0));
        next.adopt_handed_down(words);
        next.refresh(id);
        assert_eq!(next.table[id].endpoint(Side::Lan).next, SeqNum::new(500));
        assert!(!next.table[id].is(FlowFlags::UNJUDGED));
        next.handed_down.came_up = Some((id, next.table[id].hash(), 9));
        next.settle_handed_down(Side::Lan, NOW);
        assert!(
            next.handed_down.find(next.table[id].hash()).is_some(),
            "it is handed down again, in words of this process"
        );
        let old = next.handed_down.find_former(next.table[id].hash()).expect("it is there");
        assert_eq!(old.phase(), RETURNED, "a program that still reads there forwards nothing");
    }

    #[test]
    fn what_a_former_process_had_handed_down_stays_down_and_what_has_no_flow_any_more_comes_up() {
        let mut proxy = proxy();
        let id = enter(&mut proxy, 1, NOW);
        enter(&mut proxy, 2, NOW);
        let lost = enter(&mut proxy, 3, NOW);
        forwarded(&proxy, id, Side::Lan, 500, NOW);
        let [hash, gone] = [id, lost].map(|id| proxy.table[id].hash());
        // The process is killed while it hands another one down, and what it had written of the third is not to be read.
        let words = proxy.handed_down.words.as_ref().and_then(Words::share).expect("they are shared");
        let free = (0..SLOTS).find(|slot| words[*slot].get() == 0).expect("a slot");
        words[free].set(CLAIMED);
        proxy.table.remove(lost);
        let memory = crate::Memory { slab: proxy.into_slab(), ..crate::Memory::anonymous(&config()) };

        let mut next = Proxy::with_memory(&config(), &Secrets::new([3; 48]), NOW, memory);
        Proxy::prepare_to_go_on(&words);
        next.hand_down_in(words.share().expect("they are shared"));
        next.go_on_handed_down();
        let end = NOW + Duration::from_secs(1);
        Proxy::end_without_flow(&words, end);
        let phase = |hash| find_in(&words, 0, hash).expect("an entry").phase();
        assert_eq!((phase(hash), phase(gone), words[free].get()), (GOING_DOWN, RETURNED, 0));
        next.refresh(id);
        assert_eq!(next.table[id].endpoint(Side::Lan).next, SeqNum::new(500));
        assert!(next.table[id].is_in(State::HandedDown) && !next.table[id].is(FlowFlags::UNJUDGED));
        // The slot is used anew.
        for n in 4..=9 {
            enter(&mut next, n, end + Duration::from_millis(150));
        }
        assert_eq!((phase(hash), next.counters().happened(Event::NotHandedDown)), (GOING_DOWN, 0));
    }

    /// An engine that can hand down eight connections, or four of services.
    fn proxy_with_services() -> Proxy {
        let config = Config { service_buffers: 1, ..config() };
        let mut proxy = Proxy::new(&config, &Secrets::new([3; 48]), NOW);
        proxy.hand_down_in(shared(Proxy::words_to_hand_down(8), || 0));
        proxy
    }

    /// Has a connection to a service established, whose server is reached under another port or under the same key, and hands it down if that is possible.
    fn enter_second(proxy: &mut Proxy, n: u32, lan_port: u16, now: Instant) -> Id {
        let key = FlowKey { lan: [0, 0, 0xffff, 1], wan: [0, 0, 0xffff, n], ..FlowKey::default() };
        let id = proxy.admit(&key, key.hash(proxy.settings.hash_keys), Side::Wan, State::Established, now, |_| ());
        let id = id.expect("room");
        assert!(proxy.redirect_flow(&key, &FlowKey { lan_port, ..key }, [[2; 6], [0; 6]], (0, 0)));
        proxy.table.overwrite(id, State::Established, |flow| {
            flow.set(FlowFlags::PROXIED, true);
            flow.set(FlowFlags::CARRIED, true);
        });
        proxy.hand_down(id, now);
        id
    }

    #[test]
    fn a_connection_with_two_keys_takes_two_places_or_none() {
        let mut proxy = proxy_with_services();
        let ids: Vec<Id> = (1..=4).map(|n| enter_second(&mut proxy, n, 8080, NOW)).collect();
        assert!(ids.iter().all(|id| proxy.table[*id].is_in(State::HandedDown)));
        enter(&mut proxy, 5, NOW);
        assert_eq!(proxy.counters().happened(Event::NotHandedDown), 1);
        proxy.forget(ids[0]);
        let later = NOW + Duration::from_millis(150);
        poll(&mut proxy, later);
        enter(&mut proxy, 6, later);
        let words = proxy.handed_down.words.as_ref().and_then(Words::share).expect("they are shared");
        let tags = || (0..SLOTS).map(|slot| words[slot].get()).collect::<Vec<_>>();
        let before = tags();
        enter_second(&mut proxy, 7, 8080, later);
        assert_eq!((proxy.counters().happened(Event::NotHandedDown), tags()), (2, before), "one is not enough");
        enter(&mut proxy, 8, later + Duration::from_millis(1));
        assert_eq!(proxy.counters().happened(Event::NotHandedDown), 2, "it was put back");
    }

    #[test]
    fn a_splice_is_found_by_its_entry_and_ends_with_it() {
        for lan_port in [8080, 0] {
            let mut proxy = proxy_with_services();
            let id = enter_second(&mut proxy, 1, lan_port, NOW);
            let hash = proxy.table[id].hash();
            let tag = Splice::tag(hash, proxy.table.redirected(id).expect("a second key"));
            assert_ne!(tag, hash, "else the program took one for the other");
            let entry = proxy.handed_down.find(hash).expect("an entry");
            let splice = proxy.handed_down.find(tag).expect("a splice");
            assert_eq!(entry.splice().map(|splice| splice.at), Some(splice.at));
            assert_eq!(entry.flags() & SAME_KEY != 0, lan_port == 0);
            // A process that follows owns both, if it has the flow.
            let words = proxy.handed_down.words.as_ref().and_then(Words::share).expect("they are shared");
            Proxy::prepare_to_go_on(&words);
            proxy.go_on_handed_down();
            Proxy::end_without_flow(&words, NOW);
            assert_eq!([hash, tag].map(|hash| find_in(&words, 0, hash).expect("it is there").phase()), [GOING_DOWN; 2]);
            proxy.forget(id);
            assert_eq!([hash, tag].map(|hash| find_in(&words, 0, hash).expect("it is there").phase()), [RETURNED; 2]);
        }
    }

    /// Whether the way of an end's segments is clear, as the program sees it.
    fn is_clear(proxy: &Proxy, id: Id, side: Side) -> bool {
        let entry = proxy.handed_down.find(proxy.table[id].hash()).expect("it has an entry");
        entry.end(side, CLEAR).get() & 1 == 1
    }

    #[test]
    fn the_way_of_an_end_is_clear_once_all_that_was_on_its_way_up_has_arrived_and_left() {
        let mut proxy = proxy();
        let id = enter(&mut proxy, 1, NOW);
        let leave = |proxy: &mut Proxy, by| {
            proxy.watch_leaving(by);
            proxy.has_left(by);
        };
        leave(&mut proxy, Side::Lan);
        leave(&mut proxy, Side::Wan);
        assert!(!is_clear(&proxy, id, Side::Wan), "something may be in the receive ring");
        proxy.has_arrived(Side::Wan);
        assert!(!is_clear(&proxy, id, Side::Wan), "it has to leave yet");
        proxy.watch_leaving(Side::Lan);
        let late = enter(&mut proxy, 2, NOW);
        proxy.has_left(Side::Lan);
        assert!(is_clear(&proxy, id, Side::Wan) && !is_clear(&proxy, id, Side::Lan));
        assert!(!is_clear(&proxy, late, Side::Wan), "its entry came later");
    }

    #[test]
    fn what_has_left_for_a_former_use_of_an_entry_says_nothing_of_the_next() {
        let mut proxy = proxy();
        let id = enter(&mut proxy, 1, NOW);
        proxy.has_arrived(Side::Wan);
        proxy.watch_leaving(Side::Lan);
        let later = NOW + Duration::from_millis(250);
        poll(&mut proxy, later);
        let hash = proxy.table[id].hash();
        let usage = proxy.handed_down.next_usage();
        proxy.handed_down.find(hash).expect("an entry").fill(&proxy.table[id], None, usage);
        proxy.has_left(Side::Lan);
        assert!(!is_clear(&proxy, id, Side::Wan));
    }

    #[test]
    fn what_the_kernel_has_forwarded_is_told_once_also_of_connections_that_are_gone() {
        let mut proxy = proxy();
        let ids = [1, 2].map(|n| enter(&mut proxy, n, NOW));
        let told = |proxy: &mut Proxy| {
            let mut told = Vec::new();
            assert_eq!(proxy.tell_forwarded(0, |one| told.push((one.key.wan[3], one.frames, one.bytes))), None);
            told
        };
        let count = |proxy: &Proxy, id: Id, side, frames, bytes| {
            let entry = proxy.handed_down.find(proxy.table[id].hash()).expect("it has an entry");
            entry.end(side, FRAMES).set(frames);
            entry.end(side, BYTES).set(bytes);
        };
        assert_eq!(told(&mut proxy), []);
        count(&proxy, ids[0], Side::Lan, 3, 4800);
        count(&proxy, ids[0], Side::Wan, 2, 160);
        assert_eq!(told(&mut proxy), [(1, 5, 4960)]);
        assert_eq!(told(&mut proxy), []);
        // Also behind 2^32 frames, and 2^36 bytes.
        count(&proxy, ids[0], Side::Lan, (1 << 32) - 1, (1 << 36) - 160);
        assert_eq!(told(&mut proxy), [(1, (1 << 32) - 4, (1 << 36) - 4960)]);
        count(&proxy, ids[0], Side::Lan, (1 << 32) + 5, (1 << 36) + 1440);
        assert_eq!(told(&mut proxy), [(1, 6, 1600)]);
        count(&proxy, ids[1], Side::Wan, 7, 700);
        proxy.forget(ids[1]);
        assert_eq!(told(&mut proxy), [(2, 7, 688)]);
        // Another connection's entry begins anew.
        poll(&mut proxy, NOW + Duration::from_millis(250));
        enter(&mut proxy, 3, NOW + Duration::from_millis(250));
        assert_eq!(told(&mut proxy), []);
    }

    #[test]
    fn it_is_said_when_the_kernel_forwarded_the_segment_before_one_that_came_up() {
        let mut proxy = proxy();
        let id = enter(&mut proxy, 1, NOW);
        let mut frame = TestSegment::default().frame();
        let len = frame.len();
        let head = Head::whole(&mut frame, len);
        let Parsed::Tcp(segment) = Parsed::parse(Side::Lan, &head) else { panic!("it is a segment") };
        proxy.begin_handed_down(Side::Lan, id, &segment, &head);
        assert_eq!(proxy.forwarded_before(), None, "none yet");
        forwarded(&proxy, id, Side::Lan, 500, NOW);
        proxy.begin_handed_down(Side::Wan, id, &segment, &head);
        assert_eq!(proxy.forwarded_before(), None, "none of this end");
        proxy.begin_handed_down(Side::Lan, id, &segment, &head);
        assert_eq!((proxy.forwarded_before(), proxy.forwarded_before()), (Some(NOW), None));
    }

    #[test]
    fn segments_that_differ_in_their_sack_blocks_alone_have_names_of_their_own() {
        let name = |options: &[u8]| {
            let mut frame = TestSegment { options: options.to_vec(), ..TestSegment::default() }.frame();
            let len = frame.len();
            let head = Head::whole(&mut frame, len);
            let Parsed::Tcp(segment) = Parsed::parse(Side::Lan, &head) else { panic!("it is a segment") };
            name_of(&segment, &head)
        };
        let block = |edge: u8| [1, 1, 5, 10, 0, 0, 0, edge, 0, 0, 1, edge];
        assert_eq!(name(&block(1)), name(&block(1)));
        assert_ne!(name(&block(1)), name(&block(2)));
        assert_ne!(name(&[]), name(&[1; 4]));
    }

    #[test]
    fn data_and_the_acknowledgement_behind_them_have_names_of_their_own() {
        let name = |segment: TestSegment| {
            let mut frame = segment.frame();
            let len = frame.len();
            let head = Head::whole(&mut frame, len);
            let Parsed::Tcp(segment) = Parsed::parse(Side::Lan, &head) else { panic!("it is a segment") };
            name_of(&segment, &head)
        };
        let data = TestSegment { payload: 10, ..TestSegment::default() };
        let behind = TestSegment { seq: data.seq + 10, ..TestSegment::default() };
        assert_ne!(name(data), name(behind));
    }

    #[test]
    fn a_connection_for_which_the_box_answers_marks_is_the_engines() {
        let mut proxy = proxy();
        let id = enter(&mut proxy, 1, NOW);
        proxy.take_back_unfit(id);
        let phase = |proxy: &Proxy| proxy.handed_down.find(proxy.table[id].hash()).expect("an entry").phase();
        assert_eq!(phase(&proxy), GOING_DOWN);
        proxy.table.update(id, |flow| flow.set(FlowFlags::ECHO_OWED, true));
        proxy.take_back_unfit(id);
        assert_eq!(phase(&proxy), RETURNED);
    }

    #[test]
    fn foreign_words_are_read_like_any_other() {
        let mut random = crate::memory::tests::random(7);
        for _ in 0..50 {
            let config = Config { service_buffers: 1, ..config() };
            let mut proxy = Proxy::new(&config, &Secrets::new([3; 48]), NOW);
            let words = shared(Proxy::words_to_hand_down(8), &mut random);
            Proxy::prepare_to_go_on(&words);
            proxy.hand_down_in(words.share().expect("they are shared"));
            proxy.go_on_handed_down();
            Proxy::end_without_flow(&words, NOW);
            let id = enter(&mut proxy, 1, NOW);
            let second = enter_second(&mut proxy, 2, 8080, NOW);
            proxy.refresh(second);
            proxy.forget(second);
            proxy.refresh(id);
            proxy.handed_down.came_up = Some((id, proxy.table[id].hash(), 9));
            proxy.settle_handed_down(Side::Lan, NOW);
            proxy.has_arrived(Side::Lan);
            proxy.watch_leaving(Side::Wan);
            proxy.has_left(Side::Wan);
            poll(&mut proxy, NOW + Duration::from_secs(100_000));
        }
    }
}
