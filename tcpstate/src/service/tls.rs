//! The name in a TLS ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3) and the protocols it offers (ALPN, RFC 7301), across records. Nothing is
//! decrypted: with Encrypted Client Hello (RFC 9849) both are those of the outer hello.

use super::names::{Name, Protocols};
use super::{Asked, Reading};
use crate::wire::be16;

/// Bytes of a record's header (RFC 8446 section 5.1).
const RECORD_LEN: usize = 5;
/// The most bytes of a record's fragment.
const LONGEST_FRAGMENT: usize = 1 << 14;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const APPLICATION_PROTOCOLS: u16 = 16;
const HOST_NAME: u8 = 0;

/// An alert that ends a connection whose client asks for a name that nobody has (RFC 6066 section 3): fatal, unrecognized_name, in a record of TLS 1.2,
/// which every version reads (RFC 8446 section 5.1).
pub const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What these first bytes of a connection say; `most` can be read. `known` are the protocols that are of interest.
pub fn read(bytes: &[u8], most: usize, known: &Protocols) -> Reading {
    let mut stream = Stream { bytes, record: 0, left: 0, at: 0, taken: 0, end: usize::MAX };
    match hello(&mut stream, known) {
        Ok(asked) => Reading::Asks(asked),
        // What a hello that is too long would need never comes.
        Err(End::Missing) if bytes.len() >= most => Reading::Other,
        Err(End::Missing) => Reading::More,
        Err(End::Wrong) => Reading::Other,
    }
}

/// Why a hello cannot be read.
enum End {
    /// There are too few bytes.
    Missing,
    /// It is none.
    Wrong,
}

type Result<T> = core::result::Result<T, End>;

/// The bytes of the handshake, which lie in records.
#[derive(Clone, Copy)]
struct Stream<'a> {
    bytes: &'a [u8],
    /// Where the next record begins.
    record: usize,
    /// How many bytes of the present one are left.
    left: usize,
    /// Where they are.
    at: usize,
    /// How many bytes of the handshake were taken.
    taken: usize,
    /// How many there are in what is being read.
    end: usize,
}

impl Stream<'_> {
    /// Skips to a record that has bytes left.
    fn fill(&mut self) -> Result<()> {
        if self.left > 0 {
            return Ok(());
        }
        let header = &self.bytes[self.record.min(self.bytes.len())..];
        // What is wrong with the beginning of a header is wrong before its end has come.
        if header.first().is_some_and(|&kind| kind != HANDSHAKE) || header.get(1).is_some_and(|&major| major != 3) {
            return Err(End::Wrong);
        }
        if header.len() < RECORD_LEN {
            return Err(End::Missing);
        }
        let len = usize::from(be16(header, 3));
        // RFC 8446 section 5.1: fragments of a handshake are never empty.
        if len == 0 || len > LONGEST_FRAGMENT {
            return Err(End::Wrong);
        }
        (self.at, self.left) = (self.record + RECORD_LEN, len);
        self.record = self.at + len;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8> {
        if self.taken >= self.end {
            return Err(End::Wrong);
        }
        self.fill()?;
        let byte = *self.bytes.get(self.at).ok_or(End::Missing)?;
        (self.at, self.left, self.taken) = (self.at + 1, self.left - 1, self.taken + 1);
        Ok(byte)
    }

    fn number(&mut self, bytes: usize) -> Result<usize> {
        (0..bytes).try_fold(0, |number, _| Ok(number << 8 | usize::from(self.byte()?)))
    }

    /// Skips so many bytes, record by record.
    fn skip(&mut self, mut count: usize) -> Result<()> {
        if count > self.end - self.taken {
            return Err(End::Wrong);
        }
        while count > 0 {
            self.fill()?;
            let step = count.min(self.left);
            (self.at, self.left, self.taken) = (self.at + step, self.left - step, self.taken + step);
            count -= step;
        }
        if self.at > self.bytes.len() { Err(End::Missing) } else { Ok(()) }
    }

    /// Reads something that is `len` bytes long, with nothing behind it.
    fn within<T>(&mut self, len: usize, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if len > self.end - self.taken {
            return Err(End::Wrong);
        }
        let outer = core::mem::replace(&mut self.end, self.taken + len);
        let result = read(self)?;
        if self.taken != self.end {
            return Err(End::Wrong);
        }
        self.end = outer;
        Ok(result)
    }
}

/// What a ClientHello asks for, which is there as a whole.
fn hello(stream: &mut Stream, known: &Protocols) -> Result<Asked> {
    if stream.byte()? != CLIENT_HELLO {
        return Err(End::Wrong);
    }
    let len = stream.number(3)?;
    // Long lists are read only once, when all has come: else who sends byte by byte would make us read them for each.
    let is_whole = { *stream }.skip(len).is_ok();
    stream.within(len, |stream| {
        // Version and random.
        if stream.byte()? != 3 {
            return Err(End::Wrong);
        }
        stream.skip(33)?;
        let session = stream.number(1)?;
        if session > 32 {
            return Err(End::Wrong);
        }
        stream.skip(session)?;
        let suites = stream.number(2)?;
        if suites < 2 || suites % 2 == 1 {
            return Err(End::Wrong);
        }
        stream.skip(suites)?;
        let methods = stream.number(1)?;
        if methods == 0 {
            return Err(End::Wrong);
        }
        stream.skip(methods)?;
        if stream.taken == stream.end {
            // RFC 5246 section 7.4.1.2: extensions may be absent.
            return Ok(Asked::default());
        }
        let extensions = stream.number(2)?;
        stream.within(extensions, |stream| {
            let (mut asked, mut seen) = (Asked::default(), [false; 2]);
            while stream.taken < stream.end {
                let kind = stream.number(2)? as u16;
                let len = stream.number(2)?;
                let offers = kind == APPLICATION_PROTOCOLS && !known.is_empty() && is_whole;
                if kind != SERVER_NAME && !offers {
                    stream.skip(len)?;
                    continue;
                }
                // RFC 8446 section 4.2: not more than one extension of a kind.
                if core::mem::replace(&mut seen[usize::from(offers)], true) {
                    return Err(End::Wrong);
                }
                if offers {
                    asked.offers = stream.within(len, |stream| protocols(stream, known))?;
                } else {
                    asked.name = stream.within(len, server_name)?;
                }
            }
            Ok(asked)
        })
    })
}

/// Those of the known protocols that are in the list of an application_layer_protocol_negotiation extension (RFC 7301 section 3.1).
fn protocols(stream: &mut Stream, known: &Protocols) -> Result<u64> {
    let len = stream.number(2)?;
    stream.within(len, |stream| {
        let mut offers = 0;
        while stream.taken < stream.end {
            let len = stream.number(1)?;
            if len == 0 || len > stream.end - stream.taken {
                return Err(End::Wrong);
            }
            let mut text = [0; 255];
            for byte in &mut text[..len] {
                *byte = stream.byte()?;
            }
            offers |= known.find(&text[..len]);
        }
        Ok(offers)
    })
}

/// The list in a server_name extension.
fn server_name(stream: &mut Stream) -> Result<Option<Name>> {
    let len = stream.number(2)?;
    stream.within(len, |stream| {
        let mut name = None;
        while stream.taken < stream.end {
            let kind = stream.byte()?;
            let len = stream.number(2)?;
            if kind != HOST_NAME || name.is_some() {
                stream.skip(len)?;
                continue;
            }
            if len == 0 || len > stream.end - stream.taken {
                return Err(End::Wrong);
            }
            let mut text = [0; 255];
            match text.get_mut(..len) {
                None => stream.skip(len)?,
                Some(text) => {
                    for byte in text.iter_mut() {
                        *byte = stream.byte()?;
                    }
                    name = Name::new(text);
                }
            }
        }
        Ok(name)
    })
}
