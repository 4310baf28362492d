//! The Internet checksum (RFC 1071), in full and by differences (RFC 1624).

/// The one's complement sum of `bytes` as 16-bit words in network order, a last odd byte padded with zero; folded, not complemented.
#[inline(always)]
pub fn sum(bytes: &[u8]) -> u16 {
    // Words are summed in the machine's order, eight bytes at a time: the sum of swapped words is the swapped sum (RFC 1071 section 2.B), and
    // end-around carry makes up for what overflows.
    let (words, rest) = bytes.as_chunks::<8>();
    let mut total = 0u64;
    for word in words {
        let (sum, carry) = total.overflowing_add(u64::from_le_bytes(*word));
        total = sum + u64::from(carry);
    }
    fold((total & 0xffff_ffff) + (total >> 32) + sum_of_rest(rest)).swap_bytes()
}

/// The sum of the last bytes, at most seven, which begin at an even offset.
#[inline(always)]
fn sum_of_rest(bytes: &[u8]) -> u64 {
    let (word, rest) = bytes.split_first_chunk::<4>().unwrap_or((&[0; 4], bytes));
    let mut last = [0; 4];
    for (place, &byte) in last.iter_mut().zip(rest) {
        *place = byte;
    }
    u64::from(u32::from_le_bytes(*word)) + u64::from(u32::from_le_bytes(last))
}

/// Folds a sum of 16-bit words into 16 bits, end-around carries included. Never zero, unless every word was.
#[inline(always)]
pub const fn fold(total: u64) -> u16 {
    let (sum, carry) = (total as u32).overflowing_add((total >> 32) as u32);
    let sum = sum + carry as u32;
    // Adding the rotated sum adds both halves, and the carry of the lower half into the upper one.
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// The differences that edits make to the checksum that covers them.
///
/// Fields are named by their offset from the start of the sum, because a field at an odd offset lies
/// byte-swapped in it. The result is bit for bit that of a full sum, unless the old checksum was 0xffff, which a sum over bytes that are
/// not all zero never gives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patch(u64);

impl Patch {
    /// A 16-bit field at an even offset changed.
    #[inline(always)]
    pub fn replace16(&mut self, old: u16, new: u16) {
        self.0 += u64::from(!old) + u64::from(new);
    }

    /// A 32-bit field at `offset` changed.
    #[inline(always)]
    pub fn replace32(&mut self, offset: usize, old: u32, new: u32) {
        // A 32-bit word folds to the sum of its halves (RFC 1071 section 2.C), so it is added whole. Bytes a b c d at an odd offset
        // stand in the sum as ?a bc d?, which folds to the same as bc da.
        let odd = 8 * (offset as u32 & 1);
        self.0 += u64::from((!old).rotate_left(odd)) + u64::from(new.rotate_left(odd));
    }

    /// One byte at `offset` changed.
    pub fn replace8(&mut self, offset: usize, old: u8, new: u8) {
        let shift = if offset % 2 == 1 { 0 } else { 8 };
        self.replace16(u16::from(old) << shift, u16::from(new) << shift);
    }

    /// The edits of `other`, whose offsets count from an even offset of this sum, were made too.
    pub fn include(&mut self, other: Patch) {
        self.0 += other.0;
    }

    /// The checksum after the edit.
    // RFC 1624 section 3, equation 3: HC' = ~(~HC + ~m + m').
    #[inline(always)]
    pub fn apply(self, checksum: u16) -> u16 {
        !fold(u64::from(!checksum) + self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain_sum(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn folding_adds_what_is_carried_out() {
        let plain = |mut total: u64| {
            while total > 0xffff {
                total = (total & 0xffff) + (total >> 16);
            }
            total as u16
        };
        let edges = [0, 1, 0xfffe, 0xffff, 0x1_0000, 0x1_ffff, 0xffff_0000, 0xffff_fffe, 0xffff_ffff];
        for high in edges {
            for low in edges {
                assert_eq!(fold(high << 32 | low), plain(high << 32 | low), "{high:x} {low:x}");
            }
        }
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_plain_sum(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(sum(&bytes), plain_sum(&bytes));
        }

        #[test]
        fn patching_equals_summing_at_any_parity(
            mut bytes in prop::collection::vec(any::<u8>(), 8..120), at in any::<prop::sample::Index>(), new in any::<u32>(), byte in any::<u8>(),
        ) {
            bytes[0] |= 1; // a sum over nothing but zeros is the one case with two representations
            let before = !sum(&bytes);
            let offset = at.index(bytes.len() - 4 - 3) + 3;
            let mut patch = Patch::default();
            let old = u32::from_be_bytes(bytes[offset..offset + 4].try_into().unwrap());
            patch.replace32(offset, old, new);
            bytes[offset..offset + 4].copy_from_slice(&new.to_be_bytes());
            patch.replace8(2, bytes[2], byte);
            bytes[2] = byte;
            prop_assert_eq!(patch.apply(before), !sum(&bytes));
        }
    }
}
