//! The bytes that connections carry, told apart at every position, and the ClientHellos that connections begin with.

use std::sync::LazyLock;

/// How many bytes pass until they come again. No power of two, and no multiple of what a relay reads at once: what is lost, doubled or moved shows.
const PERIOD: usize = 251 * 1021;

/// How many bytes at most are sent and compared at once.
pub const CHUNK: usize = 256 << 10;

/// A period and a chunk, so that every position has a chunk behind it.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let period: Vec<u8> = (0..PERIOD as u64).map(|at| mixed(at) as u8).collect();
    period.iter().copied().cycle().take(PERIOD + CHUNK).collect()
});

/// SplitMix64's finaliser: every bit of what goes in reaches every bit of what comes out.
fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The bytes of the stream `seed` from `position` on, `most` of them or a chunk. Two streams are the same bytes, begun at places far apart.
pub fn bytes(seed: u64, position: u64, most: u64) -> &'static [u8] {
    let at = (mixed(seed) % PERIOD as u64 + position) % PERIOD as u64;
    &BYTES[at as usize..][..(CHUNK as u64).min(most) as usize]
}

/// Where the first byte is that does not belong to the stream `seed`, if `got`, at most a chunk, is what came from `position` on.
pub fn wrong(seed: u64, position: u64, got: &[u8]) -> Option<u64> {
    let expected = bytes(seed, position, got.len() as u64);
    if expected == got {
        return None;
    }
    let at = got.iter().zip(expected).position(|(got, expected)| got != expected);
    Some(position + at.unwrap_or(expected.len()) as u64)
}

/// Recorded of curl 7.88 with OpenSSL 3.0.
const CURL: &[u8] = include_bytes!("curl.hello");

/// The name in [`CURL`]; it is replaced by others of its length, so that all that tells lengths stays true.
const RECORDED: &[u8] = b"echo.bench.example";

/// Where connections go: the service behind a name, and the name that a ClientHello asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Takes an [`Order`](crate::server::Order) behind the ClientHello.
    Echo,
    /// Answers the ClientHello with fixed bytes and ends the connection.
    Page,
}

impl Name {
    fn text(self) -> &'static [u8] {
        match self {
            Name::Echo => RECORDED,
            Name::Page => b"page.bench.example",
        }
    }

    /// A whole ClientHello that asks for it: as recorded, or with a key share as long as X25519MLKEM768's, which takes two segments.
    pub fn hello(self, long: bool) -> Vec<u8> {
        let at = CURL.windows(RECORDED.len()).position(|part| part == RECORDED).expect("a name in what was recorded");
        let mut hello = CURL.to_vec();
        hello[at..at + RECORDED.len()].copy_from_slice(self.text());
        if long {
            // The extension of a private use: a relay need not know what is in it. Three lengths count it: the record's, the message's, the extensions'.
            let body = [7; 1216];
            let more = [&[0xff, 0x01], &(body.len() as u16 + 2).to_be_bytes()[..], &[0, 0], &body].concat();
            let suites = usize::from(u16::from_be_bytes([hello[76], hello[77]]));
            let extensions = 78 + suites + 2;
            for (at, width) in [(3, 2), (6, 3), (extensions, 2)] {
                let old = hello[at..at + width].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                let new = (old + more.len()).to_be_bytes();
                hello[at..at + width].copy_from_slice(&new[new.len() - width..]);
            }
            hello.extend(more);
        }
        hello
    }

    /// The name that a whole ClientHello of ours asks for.
    pub fn asked(hello: &[u8]) -> Option<Name> {
        let says = |name: Name| hello.windows(RECORDED.len()).any(|part| part == name.text());
        [Name::Echo, Name::Page].into_iter().find(|name| says(*name))
    }
}

/// How long the TLS record is that begins so, its head included.
pub fn record(head: &[u8]) -> Option<usize> {
    let len: [u8; 2] = head.get(3..5)?.try_into().ok()?;
    Some(5 + usize::from(u16::from_be_bytes(len)))
}
