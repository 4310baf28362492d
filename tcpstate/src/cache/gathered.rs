//! The first bytes of connections to services, from when the box has acknowledged them until their servers have them.
//!
//! A connection has one place of a fixed size, from its first byte on; what comes out of order is kept as far as a few gaps allow. When every place
//! is taken, one of the source network that has most of them gives way to a network that has fewer, so that one network cannot keep others
//! out. Memory is taken once, and may outlive the process: what another one has left is adopted for the connections that are adopted with it.

use crate::flow::table::Region;
use crate::seq::SeqNum;
use crate::service::negotiation::{self, Language};
use crate::service::proxy_header::{Header, LONGEST};
use core::sync::atomic::{Ordering, compiler_fence};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How many pieces can be kept that are not next.
const PIECES: usize = 4;
/// Networks are counted by this many bits of a hash.
const NETWORK_BITS: u32 = 10;
/// How many places one search for a place that can be spared looks at.
const SEARCHED: usize = 256;

/// The first bytes of a connection. Plain data: what another process has left is believed only when it has been looked at.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Place {
    /// The connection's place in the flow table.
    owner: u32,
    /// The client's number of the first byte.
    first: SeqNum,
    /// How much of the header and the bytes the server has acknowledged, and has been sent.
    acked: u32,
    sent: u32,
    /// How much beyond what it has acknowledged it takes.
    window: u32,
    /// A hash of its client's network.
    network: u16,
    /// The next free place: its index plus one, zero for none.
    next: u16,
    /// [`FREE`], [`TAKEN`] or, while another process's are adopted, [`ADOPTED`].
    use_of: u16,
    /// How many bytes there are in order.
    len: u16,
    /// How many of them are not for the server.
    skipped: u16,
    /// What is not next: from where to where; where the second is zero there is none.
    pieces: [[u16; 2]; PIECES],
    /// What the server gets in front of the bytes.
    header_len: u16,
    header: [u8; LONGEST + 1],
    /// What the box has said to the client in its own name: the number of the first byte, how many there are, and how many the client has acknowledged.
    said_first: SeqNum,
    said_len: u16,
    heard: u16,
    /// How far a client has come that says where it wants to go: a [`Stage`]; and the language it says that in.
    stage: u16,
    language: u16,
    /// Where it wants to go, as far as that is known.
    target: [u32; 4],
    target_port: u16,
    spare: u16,
    said: [u8; negotiation::LONGEST],
}

/// How far a client has come that says where it wants to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has not said it yet.
    Talks,
    /// It has named a server, whose address is being looked up.
    LooksUp,
    /// The address has been looked up.
    Found,
    /// It has been looked up in vain.
    NotFound,
    /// The server is connected, or the client was told why not.
    Settled,
}

impl Stage {
    const ALL: [Stage; 5] = [Stage::Talks, Stage::LooksUp, Stage::Found, Stage::NotFound, Stage::Settled];
}

const FREE: u16 = 0;
const TAKEN: u16 = 1;
const ADOPTED: u16 = 2;

impl Default for Place {
    fn default() -> Self {
        Self {
            owner: 0,
            first: SeqNum::default(),
            acked: 0,
            sent: 0,
            window: 0,
            network: 0,
            next: 0,
            use_of: FREE,
            len: 0,
            skipped: 0,
            pieces: [[0; 2]; PIECES],
            header_len: 0,
            header: [0; LONGEST + 1],
            said_first: SeqNum::default(),
            said_len: 0,
            heard: 0,
            stage: 0,
            language: 0,
            target: [0; 4],
            target_port: 0,
            spare: 0,
            said: [0; negotiation::LONGEST],
        }
    }
}

/// The memory of the first bytes of connections: of this process, or mapped by the owner of the engine.
#[derive(Clone)]
pub struct GatheredSlab {
    places: Region<Place>,
    bytes: Region<u8>,
    /// Whether those of another process may lie in it.
    is_used: bool,
}

impl GatheredSlab {
    /// The version of the layout.
    pub const LAYOUT: u64 = 2;

    /// Zeroed memory of this process for so many places of `room` bytes.
    pub fn anonymous(places: usize, room: u16) -> Self {
        let places = Self::places(places);
        let bytes = Region::zeroed(places * usize::from(room));
        Self { places: Region::zeroed(places), bytes, is_used: false }
    }

    /// Mapped memory for so many places: zeroed, or, if it `is_used`, with what a former process has left. `None` if it is too small or not aligned.
    pub fn mapped(words: &'static mut [u64], places: usize, room: u16, is_used: bool) -> Option<Self> {
        let count = Self::places(places);
        let (places, rest) = Region::mapped(words, count)?;
        let (bytes, _) = Region::mapped(rest, count * usize::from(room))?;
        Some(Self { places, bytes, is_used })
    }

    /// 64-bit words that mapped memory for so many places needs.
    pub fn words(places: usize, room: u16) -> usize {
        let places = Self::places(places);
        (places * size_of::<Place>()).div_ceil(8) + (places * usize::from(room)).div_ceil(8)
    }

    /// More have no number.
    fn places(places: usize) -> usize {
        places.min(usize::from(u16::MAX) - 1)
    }
}

impl Place {
    /// How many bytes there are in order.
    pub fn len(&self) -> u16 {
        self.len
    }

    /// How many of them are not for the server, and stand in front of the others.
    pub fn skipped(&self) -> u16 {
        self.skipped
    }

    /// How far the client has come in saying where it wants to go.
    pub fn stage(&self) -> Stage {
        Stage::ALL.get(usize::from(self.stage)).copied().unwrap_or(Stage::Settled)
    }

    /// The language in which the box speaks to it.
    pub fn language(&self) -> Option<Language> {
        match self.language {
            1 => Some(Language::Socks),
            2 => Some(Language::Connect),
            _ => None,
        }
    }

    /// The address, if that is known, and the port where it wants to go.
    pub fn target(&self) -> ([u32; 4], u16) {
        (self.target, self.target_port)
    }

    /// How much the box has said in its own name.
    pub fn said_len(&self) -> u16 {
        self.said_len
    }

    /// How much of that the client has not acknowledged.
    pub fn unheard(&self) -> u16 {
        self.said_len - self.heard
    }

    /// What the client has not acknowledged of it, and the number of the first byte of that.
    pub fn unheard_bytes(&self) -> (SeqNum, &[u8]) {
        (self.said_first + u32::from(self.heard), &self.said[self.heard.into()..self.said_len.into()])
    }

    /// The number after the last byte that is there in order.
    pub fn end(&self) -> SeqNum {
        self.first + u32::from(self.len)
    }
}

/// Why a connection gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The connection at this place in the flow table has one that must be taken from it first.
    Spare(u32),
    /// None can be spared.
    Refused,
}

/// See the module.
#[derive(Clone)]
pub struct Gathered {
    places: Region<Place>,
    bytes: Region<u8>,
    /// Bytes of a place.
    room: usize,
    /// The first free place, as [`Place::next`].
    free: u16,
    taken: usize,
    by_network: Vec<u16>,
    /// Where the next search begins.
    hand: usize,
}

impl Gathered {
    /// The bytes that are needed beside those of the [slab](GatheredSlab::words).
    pub const fn bytes_needed(places: usize) -> usize {
        if places > 0 { size_of::<u16>() << NETWORK_BITS } else { 0 }
    }

    /// Places of `room` bytes in this memory. Until [`Gathered::settle`] is called those of another process may be adopted.
    pub fn new(slab: GatheredSlab, room: u16) -> Self {
        let GatheredSlab { mut places, bytes, is_used } = slab;
        if !is_used {
            places.fill(Place::default());
        }
        // One that was killed while it adopted those of another has left them for the next; and what is adopted is for this one alone to say.
        places.iter_mut().filter(|place| place.use_of == ADOPTED).for_each(|place| place.use_of = TAKEN);
        let networks = if places.is_empty() { 0 } else { 1 << NETWORK_BITS };
        Self { places, bytes, room: room.into(), free: 0, taken: 0, by_network: vec![0; networks], hand: 0 }
    }

    /// The memory, as another process would find it.
    #[cfg(test)]
    pub fn into_slab(self) -> GatheredSlab {
        GatheredSlab { places: self.places, bytes: self.bytes, is_used: true }
    }

    /// Takes the place with this number for the connection `owner`, as another process has left it, if it can be its: what the client was acknowledged, up to
    /// `acked` if that matters still, is there.
    pub fn adopt(&mut self, number: u16, owner: u32, acked: Option<SeqNum>) -> bool {
        let room = self.room as u16;
        let Some(place) = number.checked_sub(1).and_then(|index| self.places.get_mut(usize::from(index))) else {
            return false;
        };
        let is_piece = |&[from, to]: &[u16; 2]| to == 0 || place.len < from && from < to && to <= room;
        let total = u32::from(place.header_len) + u32::from(place.len.saturating_sub(place.skipped));
        let is_its = place.use_of == TAKEN
            && place.owner == owner
            && place.len <= room
            && place.skipped <= place.len
            && acked.is_none_or(|acked| acked.beyond(place.first) <= u32::from(place.len))
            && usize::from(place.header_len) <= LONGEST
            && place.acked <= total
            && usize::from(place.network) < 1 << NETWORK_BITS
            && usize::from(place.said_len) <= negotiation::LONGEST
            && place.heard <= place.said_len
            && place.pieces.iter().all(is_piece);
        if is_its {
            (place.use_of, place.sent) = (ADOPTED, place.acked);
        }
        is_its
    }

    /// From now on every place is free that is not adopted.
    pub fn settle(&mut self) {
        (self.free, self.taken) = (0, 0);
        self.by_network.fill(0);
        for index in (0..self.places.len()).rev() {
            let place = &mut self.places[index];
            if place.use_of == ADOPTED {
                place.use_of = TAKEN;
                self.taken += 1;
                self.by_network[usize::from(place.network)] += 1;
            } else {
                *place = Place { next: self.free, ..Place::default() };
                self.free = index as u16 + 1;
            }
        }
    }

    /// How many places are taken, and how many there are.
    #[cfg(test)]
    pub fn taken(&self) -> (usize, usize) {
        (self.taken, self.places.len())
    }

    /// How many bytes a connection can have here.
    pub fn room(&self) -> u16 {
        self.room as u16
    }

    fn bucket(network: u64) -> u16 {
        (network.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - NETWORK_BITS)) as u16
    }

    /// A place for the connection `owner` of a client of this network, whose first byte has this number; its number plus one.
    ///
    /// # Errors
    /// If every place is taken.
    pub fn take(&mut self, owner: u32, network: u64, first: SeqNum) -> Result<u16, Full> {
        let network = Self::bucket(network);
        let Some(index) = self.free.checked_sub(1) else { return Err(self.spare(network)) };
        let place = &mut self.places[usize::from(index)];
        self.free = place.next;
        *place = Place { owner, network, first, use_of: TAKEN, ..Place::default() };
        self.taken += 1;
        self.by_network[usize::from(network)] += 1;
        Ok(index + 1)
    }

    /// Of some places one of the network that has most, if that has more than this one would have.
    fn spare(&mut self, network: u16) -> Full {
        let count = |network: u16| self.by_network[usize::from(network)];
        let all = self.places.len();
        let looked_at = (0..all.min(SEARCHED)).map(|n| &self.places[(self.hand + n) % all]);
        let most = looked_at.filter(|place| place.use_of == TAKEN).max_by_key(|place| count(place.network));
        let spare = most.filter(|place| count(place.network) > count(network) + 1).map(|place| place.owner);
        self.hand = (self.hand + SEARCHED) % all.max(1);
        spare.map_or(Full::Refused, Full::Spare)
    }

    /// Gives a place back.
    pub fn release(&mut self, number: u16) {
        let index = usize::from(number) - 1;
        let place = &mut self.places[index];
        debug_assert!(place.use_of == TAKEN);
        self.by_network[usize::from(place.network)] -= 1;
        *place = Place { next: self.free, ..Place::default() };
        self.free = number;
        self.taken -= 1;
    }

    /// A place.
    pub fn get(&self, number: u16) -> &Place {
        &self.places[usize::from(number) - 1]
    }

    /// The bytes that are there in order, those included that are not for the server.
    pub fn bytes(&self, number: u16) -> &[u8] {
        let start = (usize::from(number) - 1) * self.room;
        &self.bytes[start..start + usize::from(self.get(number).len)]
    }

    /// Keeps bytes with this number, as far as there is room; returns how many more there are in order now. What is there in order already stays as
    /// it came.
    pub fn keep(&mut self, number: u16, seq: SeqNum, bytes: &[u8]) -> u16 {
        let room = self.room as u32;
        let place = &mut self.places[usize::from(number) - 1];
        let before = place.len;
        // How far in front of the first byte it begins, or behind it.
        let ahead = place.end().beyond(seq);
        let (bytes, from) = if ahead < 1 << 31 {
            (bytes.get(ahead as usize..).unwrap_or_default(), u32::from(place.len))
        } else {
            (bytes, seq.beyond(place.first))
        };
        if bytes.is_empty() || from >= room {
            return 0;
        }
        let bytes = &bytes[..bytes.len().min((room - from) as usize)];
        let to = from + bytes.len() as u32;
        let start = (usize::from(number) - 1) * self.room + from as usize;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        // Should the process end here, the next one finds bytes that nobody counts, and never ones that are counted and not there.
        compiler_fence(Ordering::SeqCst);
        place.insert(from as u16, to as u16);
        place.len - before
    }

    /// So many of the bytes are not for the server, which has got none yet.
    pub fn skip(&mut self, number: u16, count: u16) {
        let place = &mut self.places[usize::from(number) - 1];
        place.skipped = count.min(place.len);
    }

    /// Notes how far the client has come, and in which language.
    pub fn set_stage(&mut self, number: u16, stage: Stage, language: Option<Language>) {
        let place = &mut self.places[usize::from(number) - 1];
        place.stage = stage as u16;
        place.language = match language {
            None => 0,
            Some(Language::Socks) => 1,
            Some(Language::Connect) => 2,
        };
    }

    /// Notes where it wants to go.
    pub fn set_target(&mut self, number: u16, target: [u32; 4], port: u16) {
        let place = &mut self.places[usize::from(number) - 1];
        (place.target, place.target_port) = (target, port);
    }

    /// The box says this to the client, as far as there is room; returns how much that is. `first` is the number of the first byte that it says at all.
    pub fn say(&mut self, number: u16, first: SeqNum, bytes: &[u8]) -> u16 {
        let place = &mut self.places[usize::from(number) - 1];
        let room = &mut place.said[place.said_len.into()..];
        let count = bytes.len().min(room.len());
        room[..count].copy_from_slice(&bytes[..count]);
        if place.said_len == 0 {
            place.said_first = first;
        }
        place.said_len += count as u16;
        count as u16
    }

    /// Notes that the client has acknowledged everything before this number; whether that says something new.
    pub fn hear(&mut self, number: u16, ack: SeqNum) -> bool {
        let place = &mut self.places[usize::from(number) - 1];
        let heard = ack.beyond(place.said_first);
        let is_new = place.said_len > 0 && heard > place.heard.into() && heard < 1 << 31;
        if is_new {
            place.heard = heard.min(place.said_len.into()) as u16;
        }
        is_new
    }

    /// Puts a header in front of the bytes, of which none was sent.
    pub fn put_header(&mut self, number: u16, header: Header) {
        let place = &mut self.places[usize::from(number) - 1];
        place.header[..header.bytes().len()].copy_from_slice(header.bytes());
        place.header_len = header.bytes().len() as u16;
    }

    fn header(&self, number: u16) -> &[u8] {
        let place = self.get(number);
        place.header.get(..place.header_len.into()).unwrap_or_default()
    }

    /// How many bytes the server is to get: the header, and what is there in order and not skipped.
    pub fn total(&self, number: u16) -> u32 {
        self.header(number).len() as u32 + u32::from(self.get(number).len - self.get(number).skipped)
    }

    /// The number of the first byte that the server gets.
    pub fn server_first(&self, number: u16) -> SeqNum {
        self.get(number).first + u32::from(self.get(number).skipped) - self.header(number).len() as u32
    }

    /// The number of the first byte that the server has not acknowledged.
    pub fn unacked(&self, number: u16) -> SeqNum {
        self.server_first(number) + self.get(number).acked
    }

    /// How many bytes the server has not acknowledged.
    pub fn left(&self, number: u16) -> u32 {
        self.total(number) - self.get(number).acked
    }

    /// Notes that the server has acknowledged everything before this number; whether that says something new. A number that it cannot have
    /// acknowledged says nothing.
    pub fn acknowledge(&mut self, number: u16, ack: SeqNum) -> bool {
        let acked = ack.beyond(self.server_first(number));
        let total = self.total(number);
        let place = &mut self.places[usize::from(number) - 1];
        // What it has got from the client itself is not of here.
        let is_new = acked.min(total) > place.acked && acked < 1 << 31;
        if is_new {
            place.acked = acked.min(total);
            place.sent = place.sent.max(place.acked);
        }
        is_new
    }

    /// Goes back to what the server has not acknowledged.
    pub fn rewind(&mut self, number: u16) {
        let place = &mut self.places[usize::from(number) - 1];
        place.sent = place.acked;
    }

    /// Notes how many bytes beyond what it has acknowledged the server takes.
    pub fn grant(&mut self, number: u16, window: u32) {
        self.places[usize::from(number) - 1].window = window;
    }

    /// Up to where bytes may be sent. A window that is shut is probed by one byte (RFC 9293 section 3.8.6.1), when nothing else is on its way.
    fn sendable(&self, number: u16) -> u32 {
        let place = self.get(number);
        let window = if place.sent == place.acked { place.window.max(1) } else { place.window };
        self.total(number).min(place.acked.saturating_add(window))
    }

    /// Whether anything is to be sent.
    pub fn has_next(&self, number: u16) -> bool {
        self.get(number).sent < self.sendable(number)
    }

    /// Copies to `out` what is to be sent next, as far as it fits there and in the server's window; its number and length. Length zero if there is
    /// nothing.
    pub fn next(&self, number: u16, out: &mut [u8]) -> (SeqNum, usize) {
        let place = self.get(number);
        let (header, bytes) = (self.header(number), &self.bytes(number)[place.skipped.into()..]);
        let end = self.sendable(number);
        let from = place.sent as usize;
        let count = (end as usize).saturating_sub(from).min(out.len());
        let in_header = header.get(from..).unwrap_or_default();
        let (first, second) = out[..count].split_at_mut(count.min(in_header.len()));
        first.copy_from_slice(&in_header[..first.len()]);
        let rest = (from + first.len()).saturating_sub(header.len());
        second.copy_from_slice(&bytes[rest..rest + second.len()]);
        (self.server_first(number) + place.sent, count)
    }

    /// Notes that so many bytes more were sent.
    pub fn note_sent(&mut self, number: u16, count: usize) {
        self.places[usize::from(number) - 1].sent += count as u32;
    }
}

impl Place {
    /// Notes that bytes from here to there have come, and joins what has become one, unless there is no room for another piece.
    fn insert(&mut self, from: u16, to: u16) {
        let (mut from, mut to) = (from, to);
        let mut pieces = [[0; 2]; PIECES];
        let mut count = 0;
        for [start, end] in self.pieces {
            if end == 0 {
                continue;
            }
            if start <= to && from <= end {
                (from, to) = (from.min(start), to.max(end));
            } else {
                pieces[count] = [start, end];
                count += 1;
            }
        }
        if from <= self.len {
            self.len = self.len.max(to);
        } else if count < PIECES {
            pieces[count] = [from, to];
        } else {
            return;
        }
        self.pieces = pieces;
        // What lies behind what has just been filled may be next now.
        while let Some(next) = self.pieces.iter_mut().find(|piece| piece[1] != 0 && piece[0] <= self.len) {
            self.len = self.len.max(next[1]);
            *next = [0, 0];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProxyHeader;
    use crate::wire::FlowKey;
    use proptest::prelude::*;

    fn gathered(places: usize, room: u16) -> Gathered {
        let mut gathered = Gathered::new(GatheredSlab::anonymous(places, room), room);
        gathered.settle();
        gathered
    }

    /// What another process has left goes on for the connection whose it is, and is free otherwise; whatever lies there, nothing else happens.
    #[test]
    fn what_another_process_has_kept_goes_on() {
        let mut before = gathered(3, 100);
        let numbers: Vec<_> = (0..3).map(|owner| before.take(owner, 1, SeqNum::new(10)).unwrap()).collect();
        before.keep(numbers[1], SeqNum::new(10), b"hello");
        before.keep(numbers[1], SeqNum::new(20), b"world");
        let mut after = Gathered::new(before.clone().into_slab(), 100);
        assert!(!after.adopt(numbers[1], 7, Some(SeqNum::new(15))), "another's");
        assert!(!after.adopt(numbers[1], 1, Some(SeqNum::new(16))), "more was acknowledged than there is");
        assert!(!after.adopt(0, 0, Some(SeqNum::new(10))) && !after.adopt(u16::MAX, 0, Some(SeqNum::new(10))));
        assert!(
            after.adopt(numbers[1], 1, Some(SeqNum::new(15))) && !after.adopt(numbers[1], 1, Some(SeqNum::new(15)))
        );
        after.settle();
        assert_eq!((after.taken(), after.bytes(numbers[1])), ((1, 3), &b"hello"[..]));
        assert_eq!(after.keep(numbers[1], SeqNum::new(15), b", my "), 10);
        assert_eq!(after.bytes(numbers[1]), b"hello, my world");
        let mut others: Vec<_> = (5..7).map(|owner| after.take(owner, 1, SeqNum::new(0)).unwrap()).collect();
        others.sort_unstable();
        assert_eq!(others, [numbers[0], numbers[2]]);
        let mut random = crate::memory::tests::random(3);
        for _ in 0..20_000 {
            let mut slab = before.clone().into_slab();
            for _ in 0..1 + random() % 8 {
                let (at, bytes) = (random() as usize, slab.places.as_mut_bytes());
                let at = at % bytes.len();
                bytes[at] = random() as u8;
            }
            let mut after = Gathered::new(slab, 100);
            let adopted: Vec<_> = numbers
                .iter()
                .zip(0..)
                .filter(|&(&number, owner)| after.adopt(number, owner, Some(SeqNum::new(10))))
                .collect();
            after.settle();
            assert_eq!(after.taken().0, adopted.len());
            for (&number, _) in adopted {
                after.keep(number, SeqNum::new(12), &[1; 50]);
                let mut out = [0; 300];
                after.grant(number, 1000);
                after.next(number, &mut out);
                after.release(number);
            }
            assert_eq!(after.taken().0, 0);
        }
    }

    proptest! {
        /// Whatever order pieces come in, repeated and overlapping, and wherever the numbers wrap: what is there in order is what was sent.
        #[test]
        fn pieces_in_any_order_become_what_was_sent(
            first: u32,
            total in 1usize..3000,
            pieces in prop::collection::vec((0usize..3000, 1usize..1500), 1..60),
        ) {
            let sent: Vec<u8> = (0..total).map(|n| (n * 7 % 251) as u8).collect();
            let (mut gathered, first) = (gathered(2, 2000), SeqNum::new(first));
            gathered.take(8, 1, first).unwrap();
            let number = gathered.take(9, 1, first).unwrap();
            let mut told = 0;
            for (from, len) in pieces {
                let from = from % total;
                let piece = &sent[from..total.min(from + len)];
                told += usize::from(gathered.keep(number, first + from as u32, piece));
                let bytes = gathered.bytes(number);
                prop_assert_eq!(bytes, &sent[..bytes.len()]);
                prop_assert_eq!(told, bytes.len());
            }
            // And once more in order.
            for from in (0..total).step_by(100) {
                gathered.keep(number, first + from as u32, &sent[from..total.min(from + 100)]);
            }
            prop_assert_eq!(gathered.bytes(number), &sent[..total.min(2000)]);
            prop_assert_eq!(gathered.bytes(1).len(), 0);
        }

        /// What a server gets in pieces, some of them lost, is the header and the bytes, with numbers that end where the client's do.
        #[test]
        fn a_server_gets_the_header_and_the_bytes(first: u32, total in 0usize..3000, skipped in 0usize..400, kind in 0..3usize, steps in prop::collection::vec((1u32..2000, 1usize..1460, any::<bool>()), 1..100)) {
            let sent: Vec<u8> = (0..total).map(|n| (n * 11 % 241) as u8).collect();
            let (mut gathered, first) = (gathered(1, 3000), SeqNum::new(first));
            let number = gathered.take(9, 1, first).unwrap();
            gathered.keep(number, first, &sent);
            let kind = [ProxyHeader::None, ProxyHeader::V1, ProxyHeader::V2][kind];
            let header = Header::new(kind, &FlowKey { lan: [0, 0, 0xffff, 5], wan: [0, 0, 0xffff, 6], ..FlowKey::default() });
            gathered.skip(number, skipped as u16);
            gathered.put_header(number, header);
            let whole = [header.bytes(), &sent[skipped.min(total)..]].concat();
            prop_assert_eq!(gathered.server_first(number) + whole.len() as u32, gathered.get(number).end());
            let mut got = Vec::new();
            for (window, room, is_lost) in steps.into_iter().chain([(0, 3200, true), (u32::MAX, 3200, false)]) {
                let mut out = vec![0; room];
                gathered.grant(number, window);
                let (seq, count) = gathered.next(number, &mut out);
                let at = seq.beyond(gathered.server_first(number)) as usize;
                prop_assert_eq!(&out[..count], &whole[at..at + count]);
                gathered.note_sent(number, count);
                if is_lost {
                    gathered.rewind(number);
                } else if at == got.len() {
                    got.extend_from_slice(&out[..count]);
                    gathered.acknowledge(number, seq + count as u32);
                }
            }
            prop_assert_eq!(got, whole);
            prop_assert_eq!(gathered.left(number), 0);
        }
    }

    #[test]
    fn one_network_does_not_keep_others_out() {
        let mut gathered = gathered(10, 10);
        for owner in 0..10 {
            gathered.take(owner, 7, SeqNum::new(0)).unwrap();
        }
        assert_eq!(gathered.take(10, 7, SeqNum::new(0)), Err(Full::Refused), "its own network has more than any other");
        let Err(Full::Spare(owner)) = gathered.take(10, 8, SeqNum::new(0)) else { panic!("one gives way") };
        let number = owner as u16 + 1;
        gathered.release(number);
        assert_eq!(gathered.take(10, 8, SeqNum::new(0)), Ok(number));
        assert_eq!(gathered.taken(), (10, 10));
    }
}
