//! What the first pass over a batch finds out about a frame.

use crate::flow::table::id::Id;
use crate::wire::{self, Flags, FlowKey, Parsed};

/// What the first pass found out about a frame.
#[derive(Clone, Copy, Debug)]
pub struct Metadata {
    pub(crate) parsed: Parsed,
    pub(crate) hash: u64,
    /// Where the limiter keeps the tokens of a SYN's source.
    pub(crate) tokens: u32,
    /// Where in the table its flow probably is, or nowhere.
    pub(crate) place: Id,
    /// If there is none, as of which flow that was entered.
    pub(crate) entered: u32,
}

impl Metadata {
    /// What the frame turned out to be.
    pub fn parsed(&self) -> &Parsed {
        &self.parsed
    }

    /// The keyed hash of the connection or the packet the frame belongs to; 0 if it belongs to none.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The connection attempt in a frame from the WAN, if it is one: a SYN without ACK.
    pub fn attempt(&self) -> Option<ConnectAttempt> {
        let Parsed::Tcp(segment) = &self.parsed else { return None };
        let flags = segment.flags;
        let opens = flags.has(Flags::SYN) && !flags.has(Flags::ACK.and(Flags::RST).and(Flags::FIN));
        let hash = self.hash ^ u64::from(segment.seq.get()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        opens.then(|| ConnectAttempt { source: source(&segment.key), hash })
    }
}

impl Default for Metadata {
    fn default() -> Self {
        Self { parsed: Parsed::Bad(wire::Error::Malformed), hash: 0, tokens: 0, place: Id::NOWHERE, entered: 0 }
    }
}

/// An IP address of 16 bytes in network order, an IPv4 one mapped into IPv6 (RFC 4291 section 2.5.5.2).
pub type Source = [u8; 16];

/// A client's attempt to open a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectAttempt {
    /// The client's address.
    pub source: Source,
    /// A keyed hash of the 4-tuple and the sequence number: the same when the client repeats its SYN.
    pub hash: u64,
}

/// The address at the WAN's end.
pub(crate) fn source(key: &FlowKey) -> Source {
    let mut source = [0; 16];
    for (bytes, word) in source.as_chunks_mut().0.iter_mut().zip(key.wan) {
        *bytes = word.to_be_bytes();
    }
    source
}
