//! Keyed hashes over a few words, in one shot: what names a place in a table, or signs a cookie, must not be foreseen by those who send.

use siphasher::sip::{SipHasher13, SipHasher24};

/// A pair of SipHash keys.
pub type Keys = (u64, u64);

/// Up to eight words to be hashed, gathered on the stack.
pub struct Words {
    bytes: [u8; 64],
    len: usize,
}

impl Default for Words {
    fn default() -> Self {
        Self { bytes: [0; 64], len: 0 }
    }
}

impl Words {
    /// Adds a word.
    ///
    /// # Panics
    /// If there are eight already.
    #[inline(always)]
    pub fn push(&mut self, word: u64) {
        self.bytes[self.len..self.len + 8].copy_from_slice(&word.to_le_bytes());
        self.len += 8;
    }

    /// SipHash-1-3: for tables.
    #[inline(always)]
    pub fn place(&self, keys: Keys) -> u64 {
        SipHasher13::new_with_keys(keys.0, keys.1).hash(&self.bytes[..self.len])
    }

    /// SipHash-2-4: for signatures.
    #[inline(always)]
    pub fn signature(&self, keys: Keys) -> u64 {
        SipHasher24::new_with_keys(keys.0, keys.1).hash(&self.bytes[..self.len])
    }
}
