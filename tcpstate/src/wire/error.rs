//! What can be wrong with a frame.

/// Why a frame cannot be parsed: something no host sends, or what only an attack has a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Error {
    /// Shorter than its headers say, a length or version field that contradicts another, or a header below its minimum.
    Malformed,
    /// The checksum of an IPv4 fragment's header is wrong.
    BadChecksum,
    /// A fragment that could overlap or hide a TCP header (RFC 1858, RFC 3128), or that does not hold all headers it should (RFC 7112).
    BadFragment,
}
