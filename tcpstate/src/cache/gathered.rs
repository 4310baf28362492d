//! The first bytes of connections to services, from when the box has acknowledged them until their servers have them.
//!
//! A connection has one place of a fixed size, from its first byte on; what comes out of order is kept as far as a few gaps allow. When every place
//! is taken, one of the source network that has most of them gives way to a network that has fewer, so that one network cannot keep others
//! out. Memory is taken once.

use crate::seq::SeqNum;
use crate::service::proxy_header::Header;

/// How many pieces can be kept that are not next.
const PIECES: usize = 4;
/// Networks are counted by this many bits of a hash.
const NETWORK_BITS: u32 = 10;
/// How many places one search for a place that can be spared looks at.
const SEARCHED: usize = 256;

/// The first bytes of a connection.
#[derive(Clone, Copy, Default)]
pub struct Place {
    /// The connection's place in the flow table.
    owner: u32,
    /// A hash of its client's network.
    network: u16,
    /// The next free place: its index plus one, zero for none.
    next: u16,
    is_taken: bool,
    /// The client's number of the first byte.
    first: SeqNum,
    /// How many bytes there are in order.
    len: u16,
    /// What is not next: from where to where; the first zero is the end.
    pieces: [(u16, u16); PIECES],
    /// How much of the header and the bytes the server has acknowledged, and has been sent.
    acked: u32,
    sent: u32,
    /// How much beyond what it has acknowledged it takes.
    window: u32,
}

impl Place {
    /// How many bytes there are in order.
    pub fn len(&self) -> u16 {
        self.len
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
#[derive(Clone, Default)]
pub struct Gathered {
    places: Vec<Place>,
    headers: Vec<Option<Header>>,
    bytes: Vec<u8>,
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
    /// The bytes that so many places of `room` bytes take.
    pub const fn bytes_needed(places: usize, room: usize) -> usize {
        let fixed = if places > 0 { size_of::<u16>() << NETWORK_BITS } else { 0 };
        places * (size_of::<Place>() + size_of::<Option<Header>>() + room) + fixed
    }

    /// So many free places, at most 65535, of `room` bytes.
    pub fn new(places: usize, room: u16) -> Self {
        let (places, room) = (places.min(u16::MAX.into()), usize::from(room));
        let next = |index: usize| if index + 1 < places { index as u16 + 2 } else { 0 };
        Self {
            places: (0..places).map(|index| Place { next: next(index), ..Place::default() }).collect(),
            headers: vec![None; places],
            bytes: vec![0; places * room],
            room,
            free: u16::from(places > 0),
            taken: 0,
            by_network: vec![0; if places > 0 { 1 << NETWORK_BITS } else { 0 }],
            hand: 0,
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
        *place = Place { owner, network, first, is_taken: true, ..Place::default() };
        self.headers[usize::from(index)] = None;
        self.taken += 1;
        self.by_network[usize::from(network)] += 1;
        Ok(index + 1)
    }

    /// Of some places one of the network that has most, if that has more than this one would have.
    fn spare(&mut self, network: u16) -> Full {
        let count = |network: u16| self.by_network[usize::from(network)];
        let all = self.places.len();
        let looked_at = (0..all.min(SEARCHED)).map(|n| &self.places[(self.hand + n) % all]);
        let most = looked_at.filter(|place| place.is_taken).max_by_key(|place| count(place.network));
        let spare = most.filter(|place| count(place.network) > count(network) + 1).map(|place| place.owner);
        self.hand = (self.hand + SEARCHED) % all.max(1);
        spare.map_or(Full::Refused, Full::Spare)
    }

    /// Gives a place back.
    pub fn release(&mut self, number: u16) {
        let index = usize::from(number) - 1;
        let place = &mut self.places[index];
        debug_assert!(place.is_taken);
        self.by_network[usize::from(place.network)] -= 1;
        *place = Place { next: self.free, ..Place::default() };
        self.headers[index] = None;
        self.free = number;
        self.taken -= 1;
    }

    /// A place.
    pub fn get(&self, number: u16) -> &Place {
        &self.places[usize::from(number) - 1]
    }

    /// The bytes that are there in order.
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
        if !place.insert(from as u16, to as u16) {
            return 0;
        }
        let start = (usize::from(number) - 1) * self.room + from as usize;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        place.len - before
    }

    /// Puts a header in front of the bytes, of which none was sent.
    pub fn put_header(&mut self, number: u16, header: Header) {
        self.headers[usize::from(number) - 1] = Some(header);
    }

    fn header(&self, number: u16) -> &[u8] {
        self.headers[usize::from(number) - 1].as_ref().map_or(&[], Header::bytes)
    }

    /// How many bytes the server is to get: the header and what is there in order.
    pub fn total(&self, number: u16) -> u32 {
        self.header(number).len() as u32 + u32::from(self.get(number).len)
    }

    /// The number of the first byte that the server gets.
    pub fn server_first(&self, number: u16) -> SeqNum {
        self.get(number).first - self.header(number).len() as u32
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
        let is_new = acked > place.acked && acked < 1 << 31;
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
        let (header, bytes) = (self.header(number), self.bytes(number));
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
    /// Notes that bytes from here to there have come, and joins what has become one. False if there is no room for another piece.
    fn insert(&mut self, from: u16, to: u16) -> bool {
        let (mut from, mut to) = (from, to);
        let mut pieces = [(0, 0); PIECES];
        let mut count = 0;
        for (start, end) in self.pieces {
            if end == 0 {
                continue;
            }
            if start <= to && from <= end {
                (from, to) = (from.min(start), to.max(end));
            } else {
                pieces[count] = (start, end);
                count += 1;
            }
        }
        if from <= self.len {
            self.len = self.len.max(to);
        } else if count < PIECES {
            pieces[count] = (from, to);
        } else {
            return false;
        }
        self.pieces = pieces;
        // What lies behind what has just been filled may be next now.
        while let Some(next) = self.pieces.iter_mut().find(|piece| piece.1 != 0 && piece.0 <= self.len) {
            self.len = self.len.max(next.1);
            *next = (0, 0);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProxyHeader;
    use crate::wire::FlowKey;
    use proptest::prelude::*;

    proptest! {
        /// Whatever order pieces come in, repeated and overlapping, and wherever the numbers wrap: what is there in order is what was sent.
        #[test]
        fn pieces_in_any_order_become_what_was_sent(
            first: u32,
            total in 1usize..3000,
            pieces in prop::collection::vec((0usize..3000, 1usize..1500), 1..60),
        ) {
            let sent: Vec<u8> = (0..total).map(|n| (n * 7 % 251) as u8).collect();
            let (mut gathered, first) = (Gathered::new(2, 2000), SeqNum::new(first));
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
        fn a_server_gets_the_header_and_the_bytes(first: u32, total in 0usize..3000, kind in 0..3usize, steps in prop::collection::vec((1u32..2000, 1usize..1460, any::<bool>()), 1..100)) {
            let sent: Vec<u8> = (0..total).map(|n| (n * 11 % 241) as u8).collect();
            let (mut gathered, first) = (Gathered::new(1, 3000), SeqNum::new(first));
            let number = gathered.take(9, 1, first).unwrap();
            gathered.keep(number, first, &sent);
            let kind = [ProxyHeader::None, ProxyHeader::V1, ProxyHeader::V2][kind];
            let header = Header::new(kind, &FlowKey { lan: [0, 0, 0xffff, 5], wan: [0, 0, 0xffff, 6], ..FlowKey::default() });
            gathered.put_header(number, header);
            let whole = [header.bytes(), &sent].concat();
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
        let mut gathered = Gathered::new(10, 10);
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
