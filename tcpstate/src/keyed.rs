//! Secrets, and keyed hashes over a few words. Senders must not be able to predict places in tables, nor forge cookies.
//!
//! SipHash (Aumasson and Bernstein, 2012) over whole words. The compiler knows their number and unrolls everything: half the instructions of a
//! hasher for any number of bytes. Tests compare it with such a hasher.

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A pair of SipHash keys.
pub type Keys = (u64, u64);

/// The secret of all cookies, hashes and filters: 48 random bytes, the same on every worker.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secrets([u8; 48]);

impl Secrets {
    /// Secrets made of these bytes, which must come from a good source.
    pub const fn new(random: [u8; 48]) -> Self {
        Self(random)
    }

    /// The bytes, for the process that follows.
    pub const fn bytes(&self) -> &[u8; 48] {
        &self.0
    }

    /// The keys of the hash that names flows and packets. A program that looks flows up in a [`FlowMap`](crate::FlowMap) needs them, and nobody else may know them.
    pub fn hash_keys(&self) -> Keys {
        self.pair(0)
    }

    /// The `n`th of three pairs of SipHash keys.
    pub(crate) fn pair(&self, n: usize) -> Keys {
        let word = |at: usize| self.0[at..at + 8].iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
        (word(16 * n), word(16 * n + 8))
    }
}

/// SipHash-1-3 of `words` in little-endian order: for places in tables.
#[inline(always)]
pub fn place<const N: usize>(keys: Keys, words: [u64; N]) -> u64 {
    sip::<1, 3, N>(keys, words)
}

/// SipHash-2-4 of `words` in little-endian order: for MACs.
#[inline(always)]
pub fn signature<const N: usize>(keys: Keys, words: [u64; N]) -> u64 {
    sip::<2, 4, N>(keys, words)
}

/// SipHash-`C`-`D` of `words` in little-endian order.
#[inline(always)]
fn sip<const C: usize, const D: usize, const N: usize>((k0, k1): Keys, words: [u64; N]) -> u64 {
    let mut state = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    for word in words {
        absorb::<C>(&mut state, word);
    }
    // The last word holds the remaining bytes, of which there are none, and the number of all bytes modulo 256 in its highest byte.
    absorb::<C>(&mut state, (8 * N as u64) << 56);
    state[2] ^= 0xff;
    for _ in 0..D {
        round(&mut state);
    }
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

#[inline(always)]
fn absorb<const C: usize>(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    for _ in 0..C {
        round(state);
    }
    state[0] ^= word;
}

#[inline(always)]
fn round(state: &mut [u64; 4]) {
    let [mut a, mut b, mut c, mut d] = *state;
    a = a.wrapping_add(b);
    c = c.wrapping_add(d);
    b = b.rotate_left(13) ^ a;
    d = d.rotate_left(16) ^ c;
    a = a.rotate_left(32).wrapping_add(d);
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    d = d.rotate_left(21) ^ a;
    *state = [a, b, c.rotate_left(32), d];
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use siphasher::sip::{SipHasher13, SipHasher24};

    #[test]
    fn the_test_vector_of_the_authors() {
        // Of the key 00 to 0f and the bytes 00 to 07.
        let keys = (0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(signature(keys, [0x0706_0504_0302_0100]), 0x93f5_f579_9a93_2462);
    }

    proptest! {
        #[test]
        fn words_are_hashed_as_their_bytes_are(keys in any::<Keys>(), words in any::<[u64; 6]>()) {
            let bytes = words.map(u64::to_le_bytes);
            prop_assert_eq!(signature(keys, words), SipHasher24::new_with_keys(keys.0, keys.1).hash(bytes.as_flattened()));
            prop_assert_eq!(place(keys, words), SipHasher13::new_with_keys(keys.0, keys.1).hash(bytes.as_flattened()));
            let [first, second, ..] = words;
            let bytes = [first, second].map(u64::to_le_bytes);
            prop_assert_eq!(place(keys, [first, second]), SipHasher13::new_with_keys(keys.0, keys.1).hash(bytes.as_flattened()));
        }
    }
}
