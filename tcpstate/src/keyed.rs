//! Keyed hashes over a few words, in one shot: what names a place in a table, or signs a cookie, must not be foreseen by those who send.
//!
//! The number of words is known to the compiler, which unrolls the whole.

use siphasher::sip::{SipHasher13, SipHasher24};

/// A pair of SipHash keys.
pub type Keys = (u64, u64);

/// SipHash-1-3: for tables.
#[inline(always)]
pub fn place<const N: usize>(keys: Keys, words: [u64; N]) -> u64 {
    SipHasher13::new_with_keys(keys.0, keys.1).hash(words.map(u64::to_le_bytes).as_flattened())
}

/// SipHash-2-4: for signatures.
#[inline(always)]
pub fn signature<const N: usize>(keys: Keys, words: [u64; N]) -> u64 {
    SipHasher24::new_with_keys(keys.0, keys.1).hash(words.map(u64::to_le_bytes).as_flattened())
}
