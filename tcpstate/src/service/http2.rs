//! The host that the first request of an HTTP/2 connection names whose client knows beforehand that its server speaks it (RFC 9113 section 3.3): the field
//! `:authority` of the first header block, or `host`, decompressed (RFC 7541) as far as that takes.
//!
//! Of the compressed fields only these two are read. The table that a block fills need not be kept: what a field of the first block refers to there has been a
//! field of this block before, and so it is no first one of its name.

use super::NoRequest;
use super::names::{Name, of_authority};

/// What such a connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The beginning by which it is known.
pub(super) const BEGINNING: &[u8] = b"PRI ";

/// Bytes in front of each frame.
const FRAME: usize = 9;
/// The longest frame that may come before the server has said more (RFC 9113 section 6.5.2).
const LONGEST: usize = 1 << 14;
/// Frames that are passed over on the way to the first header block, and those of which it is made.
const MOST_FRAMES: usize = 64;
/// An authority that is longer has no name: 253 bytes, a port, and something to spare.
const LONGEST_AUTHORITY: usize = 272;

// Kinds of frames, and their flags (RFC 9113 section 6).
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const HAS_PRIORITY: u8 = 32;

/// Places of the static table (RFC 7541 appendix A).
const AUTHORITY: usize = 1;
const HOST: usize = 38;
const STATIC: usize = 61;

/// The name that the first request asks for, in what is, or may become, the beginning of a connection.
///
/// # Errors
/// If the request is not there as a whole, or none.
pub(super) fn read(bytes: &[u8]) -> Result<Option<Name>, NoRequest> {
    let begins = bytes.len().min(PREFACE.len());
    if bytes[..begins] != PREFACE[..begins] {
        return Err(NoRequest::Other);
    }
    authority(Block::find(bytes)?)
}

/// A frame.
#[derive(Clone, Copy)]
struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first of these bytes, and what is behind it.
    fn read(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), NoRequest> {
        let Some((header, rest)) = bytes.split_first_chunk::<FRAME>() else { return Err(NoRequest::More) };
        let &[a, b, c, kind, flags, d, e, f, g] = header;
        let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if len > LONGEST {
            return Err(NoRequest::Other);
        }
        let (payload, rest) = rest.split_at_checked(len).ok_or(NoRequest::More)?;
        Ok((Self { kind, flags, stream: u32::from_be_bytes([d & 0x7f, e, f, g]), payload }, rest))
    }

    /// Its part of a header block, if it is the first (RFC 9113 section 6.2).
    fn first_part(&self) -> Result<&'a [u8], NoRequest> {
        let (mut part, mut padding) = (self.payload, 0);
        if self.flags & PADDED != 0 {
            let (&length, rest) = part.split_first().ok_or(NoRequest::Other)?;
            (part, padding) = (rest, usize::from(length));
        }
        if self.flags & HAS_PRIORITY != 0 {
            part = part.get(5..).ok_or(NoRequest::Other)?;
        }
        part.len().checked_sub(padding).map(|len| &part[..len]).ok_or(NoRequest::Other)
    }
}

/// A header block, which is there as a whole: one byte after the other.
#[derive(Clone, Copy)]
struct Block<'a> {
    /// What is left of the present frame's part, and the frames behind it.
    part: &'a [u8],
    frames: &'a [u8],
    is_last: bool,
}

impl<'a> Block<'a> {
    /// The first one of a connection.
    fn find(bytes: &'a [u8]) -> Result<Self, NoRequest> {
        let mut rest = bytes.get(PREFACE.len()..).ok_or(NoRequest::More)?;
        for n in 0..MOST_FRAMES {
            let (frame, behind) = Frame::read(rest)?;
            match frame.kind {
                // RFC 9113 section 3.4: it comes first.
                SETTINGS if frame.stream == 0 => {}
                _ if n == 0 => return Err(NoRequest::Other),
                HEADERS if frame.stream != 0 => {
                    let is_last = frame.flags & END_HEADERS != 0;
                    let block = Self { part: frame.first_part()?, frames: behind, is_last };
                    return block.whole(frame.stream);
                }
                PRIORITY | PING | WINDOW_UPDATE => {}
                // RFC 9113 section 5.5: frames of a kind that is not known are passed over.
                kind if kind > CONTINUATION => {}
                _ => return Err(NoRequest::Other),
            }
            rest = behind;
        }
        Err(NoRequest::Other)
    }

    /// The same, if all frames are there of which it is made.
    fn whole(self, stream: u32) -> Result<Self, NoRequest> {
        let (mut is_last, mut rest) = (self.is_last, self.frames);
        for _ in 0..MOST_FRAMES {
            if is_last {
                return Ok(self);
            }
            let (frame, behind) = Frame::read(rest)?;
            if frame.kind != CONTINUATION || frame.stream != stream {
                return Err(NoRequest::Other);
            }
            (is_last, rest) = (frame.flags & END_HEADERS != 0, behind);
        }
        Err(NoRequest::Other)
    }

    fn next(&mut self) -> Option<u8> {
        loop {
            if let Some((&byte, rest)) = self.part.split_first() {
                self.part = rest;
                return Some(byte);
            }
            if self.is_last {
                return None;
            }
            let (frame, behind) = Frame::read(self.frames).ok()?;
            (self.part, self.frames, self.is_last) = (frame.payload, behind, frame.flags & END_HEADERS != 0);
        }
    }

    /// An integer whose first bits, in `byte`, are those of this mask (RFC 7541 section 5.1). None here needs more than 21 bits.
    fn integer(&mut self, byte: u8, mask: u8) -> Option<usize> {
        let first = byte & mask;
        let mut number = usize::from(first);
        if first < mask {
            return Some(number);
        }
        for shift in [0, 7, 14] {
            let byte = self.next()?;
            number += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// A string (RFC 7541 section 5.2), of which `text` gets what fits there.
    fn string(&mut self, text: &mut Text) -> Option<()> {
        let byte = self.next()?;
        let len = self.integer(byte, 0x7f)?;
        *text = Text { is_huffman: byte & 0x80 != 0, ..Text::default() };
        for _ in 0..len {
            let byte = self.next()?;
            text.take(byte);
        }
        text.end();
        Some(())
    }
}

/// What a string says, as far as it can be an authority.
struct Text {
    bytes: [u8; LONGEST_AUTHORITY],
    len: usize,
    /// Nothing that is an authority, or too long.
    is_other: bool,
    is_huffman: bool,
    /// Bits that have come and belong to no symbol yet, and how many these are.
    bits: u32,
    count: u32,
}

impl Default for Text {
    fn default() -> Self {
        Self { bytes: [0; LONGEST_AUTHORITY], len: 0, is_other: false, is_huffman: false, bits: 0, count: 0 }
    }
}

/// The symbols of the Huffman code of RFC 7541 appendix B that have no more than eight bits, in the order of their codes: those of 5, 6, 7 and 8 bits. No
/// authority that has a name contains others. The codes of one length follow each other, and begin where twice as many as those before end.
const SYMBOLS: [&[u8]; 4] =
    [b"012aceiost", b" %-./3456789=A_bdfghlmnpru", b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz", b"&*,;XZ"];

impl Text {
    fn put(&mut self, byte: u8) {
        match self.bytes.get_mut(self.len) {
            Some(place) => {
                *place = byte;
                self.len += 1;
            }
            None => self.is_other = true,
        }
    }

    fn take(&mut self, byte: u8) {
        if self.is_other {
            return;
        }
        if !self.is_huffman {
            return self.put(byte);
        }
        (self.bits, self.count) = (self.bits << 8 | u32::from(byte), self.count + 8);
        while self.count >= 8 {
            let next = self.bits >> (self.count - 8) & 0xff;
            let Some((symbol, len)) = symbol(next) else {
                self.is_other = true;
                return;
            };
            self.put(symbol);
            self.count -= len;
        }
    }

    /// Behind the last byte: the rest are whole symbols and padding of ones, of fewer than eight (RFC 7541 section 5.2).
    fn end(&mut self) {
        while self.is_huffman && !self.is_other && self.count > 0 {
            let ones = (1 << self.count) - 1;
            let rest = self.bits & ones;
            if rest == ones {
                return;
            }
            match symbol((rest << (8 - self.count) | ((1 << (8 - self.count)) - 1)) & 0xff) {
                Some((symbol, len)) if len <= self.count => {
                    self.put(symbol);
                    self.count -= len;
                }
                _ => self.is_other = true,
            }
        }
    }

    fn get(&self) -> Option<&[u8]> {
        (!self.is_other).then(|| &self.bytes[..self.len])
    }
}

/// The symbol with which eight bits begin, and how many of them are its code.
fn symbol(bits: u32) -> Option<(u8, u32)> {
    let mut first = 0;
    for (symbols, len) in SYMBOLS.iter().zip(5..) {
        let code = bits >> (8 - len);
        if let Some(&symbol) = symbols.get(code.wrapping_sub(first) as usize) {
            return Some((symbol, len));
        }
        first = (first + symbols.len() as u32) << 1;
    }
    None
}

/// The name in a whole header block; an error if it cannot be read.
fn authority(mut block: Block) -> Result<Option<Name>, NoRequest> {
    let (mut host, mut text) = (None, Text::default());
    let mut added = 0;
    while let Some(byte) = block.next() {
        // RFC 7541 section 6: a field of a table; the table's size; a field that is added to the table, or is not.
        let mask = match byte {
            0x80.. => {
                let place = block.integer(byte, 0x7f).ok_or(NoRequest::Other)?;
                if place == 0 || place > STATIC + added {
                    return Err(NoRequest::Other);
                }
                continue;
            }
            0x20..0x40 => {
                block.integer(byte, 0x1f).ok_or(NoRequest::Other)?;
                continue;
            }
            0x40..0x80 => 0x3f,
            _ => 0x0f,
        };
        let place = block.integer(byte, mask).ok_or(NoRequest::Other)?;
        if place > STATIC + added {
            return Err(NoRequest::Other);
        }
        added += usize::from(mask == 0x3f);
        let mut is_authority = place == AUTHORITY;
        let mut is_host = place == HOST;
        if place == 0 {
            block.string(&mut text).ok_or(NoRequest::Other)?;
            let name = text.get();
            (is_authority, is_host) = (name == Some(b":authority"), name == Some(b"host"));
        }
        block.string(&mut text).ok_or(NoRequest::Other)?;
        if is_authority {
            return Ok(text.get().and_then(of_authority));
        }
        if is_host && host.is_none() {
            host = Some(text.get().and_then(of_authority));
        }
    }
    // RFC 9113 section 8.3.1: a request may have it in the place of the other.
    Ok(host.flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
        [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// A connection whose first header block is this, behind what clients send first.
    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        [
            &PREFACE[..],
            &frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
            &frame(WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]),
            &frames.concat(),
        ]
        .concat()
    }

    fn name(bytes: &[u8]) -> Option<Option<String>> {
        read(bytes).ok().map(|name| name.map(|name| name.to_string()))
    }

    fn found(name: &str) -> Option<Option<String>> {
        Some(Some(name.into()))
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_requests_of_the_standard_name_their_host() {
        // RFC 7541 appendix C.3.1, C.4.1 and C.2.1, the last without a host.
        let literal = bytes("828684410f7777772e6578616d706c652e636f6d");
        let huffman = bytes("828684418cf1e3c2e5f23a6ba0ab90f4ff");
        let other = bytes("400a637573746f6d2d6b65790d637573746f6d2d686561646572");
        for (block, expected) in
            [(&literal, found("www.example.com")), (&huffman, found("www.example.com")), (&other, Some(None))]
        {
            assert_eq!(name(&connection(&[frame(HEADERS, END_HEADERS | 1, 1, block)])), expected);
        }
        let padded = [&[3, 0, 0, 0, 0, 15], &huffman[..], &[0; 3]].concat();
        let flags = END_HEADERS | PADDED | HAS_PRIORITY;
        assert_eq!(name(&connection(&[frame(HEADERS, flags, 1, &padded)])), found("www.example.com"));
    }

    #[test]
    fn a_block_may_lie_in_several_frames_and_a_host_may_stand_for_the_authority() {
        let block = [&[0x82, 0x86, 0x84, 0x66, 0x07][..], b"b.c:443", &[0x0f, 0x01, 1, b'x']].concat();
        for cut in 0..block.len() {
            let (first, rest) = block.split_at(cut);
            let frames = [
                frame(HEADERS, 0, 3, first),
                frame(CONTINUATION, 0, 3, &[]),
                frame(CONTINUATION, END_HEADERS, 3, rest),
            ];
            let whole = connection(&frames);
            assert_eq!(name(&whole), found("b.c"));
            let other = [frame(HEADERS, 0, 3, first), frame(CONTINUATION, END_HEADERS, 5, rest)];
            assert!(matches!(read(&connection(&other)), Err(NoRequest::Other)));
            for len in 0..whole.len() {
                assert!(matches!(read(&whole[..len]), Err(NoRequest::More)), "{len} of {}", whole.len());
            }
        }
        let literal_name = [&[0x82, 0x00, 10][..], b":authority", &[3], b"d.e"].concat();
        assert_eq!(name(&connection(&[frame(HEADERS, END_HEADERS, 1, &literal_name)])), found("d.e"));
    }

    #[test]
    fn what_is_no_request_is_not_taken_for_one() {
        let mut wrong = PREFACE.to_vec();
        wrong[20] = b'X';
        assert!(matches!(read(&wrong), Err(NoRequest::Other)));
        let block = bytes("828684410f7777772e6578616d706c652e636f6d");
        let headers = frame(HEADERS, END_HEADERS, 1, &block);
        assert!(matches!(read(&[&PREFACE[..], &headers].concat()), Err(NoRequest::Other)), "settings come first");
        for bad in [
            frame(0, 0, 1, b"data"),
            frame(HEADERS, END_HEADERS, 0, &block),
            frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 1]),
            // A place that no table has; a string beyond the end; a number without one.
            frame(HEADERS, END_HEADERS, 1, &[0xbe]),
            frame(HEADERS, END_HEADERS, 1, &[0x41, 9, b'a']),
            frame(HEADERS, END_HEADERS, 1, &[0x7f, 0xff, 0xff, 0xff, 0xff]),
        ] {
            assert!(matches!(read(&connection(&[bad])), Err(NoRequest::Other)));
        }
        let many = vec![frame(PING, 0, 0, &[0; 8]); MOST_FRAMES];
        assert!(matches!(read(&connection(&many)), Err(NoRequest::Other)));
        // Neither long authorities nor strange ones have a name.
        for authority in [vec![b'a'; 300], b"a b".to_vec(), vec![0xff; 4]] {
            let block = [
                &[0x41][..],
                &if authority.len() < 127 { vec![authority.len() as u8] } else { vec![127, 0xad, 1] },
                &authority,
            ]
            .concat();
            assert_eq!(name(&connection(&[frame(HEADERS, END_HEADERS, 1, &block)])), Some(None));
        }
    }

    /// As a client compresses it.
    fn compressed(text: &[u8]) -> Vec<u8> {
        let (mut bits, mut first) = (String::new(), 0);
        let codes: Vec<(u8, String)> = SYMBOLS
            .iter()
            .zip(5..)
            .flat_map(|(symbols, len)| {
                let from = first;
                first = (first + symbols.len()) << 1;
                symbols.iter().enumerate().map(move |(n, &symbol)| (symbol, format!("{:0len$b}", from + n)))
            })
            .collect();
        text.iter().for_each(|byte| bits += &codes.iter().find(|(symbol, _)| symbol == byte).expect("it has one").1);
        while bits.len() % 8 > 0 {
            bits.push('1');
        }
        (0..bits.len() / 8).map(|n| u8::from_str_radix(&bits[8 * n..8 * n + 8], 2).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn a_compressed_authority_is_read_as_it_was(text in "[a-z0-9]([-a-z0-9_A-Z.]{0,60}[a-z0-9])?") {
            let text = text.replace("..", ".x").replace("..", ".x");
            let compressed = compressed(text.as_bytes());
            let block = [&[0x82, 0x41, 0x80 | compressed.len() as u8][..], &compressed].concat();
            let plain = [&[0x82, 0x41, text.len() as u8][..], text.as_bytes()].concat();
            let read = |block: &[u8]| name(&connection(&[frame(HEADERS, END_HEADERS, 1, block)]));
            prop_assert_eq!(read(&block), read(&plain));
            prop_assert_eq!(read(&plain), Some(Name::new(text.as_bytes()).map(|name| name.to_string())));
        }

        #[test]
        fn any_frames_are_read_to_an_end(frames in prop::collection::vec((0u8..12, any::<u8>(), 0u32..3, prop::collection::vec(any::<u8>(), 0..60)), 0..6)) {
            let frames: Vec<_> = frames.iter().map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload)).collect();
            let _ = read(&connection(&frames));
        }
    }
}
