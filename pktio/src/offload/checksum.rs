//! The Internet checksum (RFC 1071) and the CRC32c of SCTP (RFC 9260, appendix A), over bytes and over frames of several buffers.

use crate::frame::Frame;

/// The Internet checksum's running sum over `bytes`, added to `sum`. Several runs may be combined when all but the last have
/// an even length.
#[inline]
pub(super) fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_be_bytes(*word));
    }
    let mut tail = [0; 4];
    tail[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(tail))
}

/// Folds a running sum into 16 bits, without complementing it. Never zero, unless every word was.
#[inline]
pub(super) fn fold(sum: u64) -> u16 {
    let (sum, carry) = (sum as u32).overflowing_add((sum >> 32) as u32);
    let sum = sum + u32::from(carry);
    // Adding the rotated sum adds both halves, and the carry of the lower half into the upper one.
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// The checksum that a field is to hold for this sum. Zero means "no checksum" in UDP and is sent as all ones, which for the other
/// protocols is the same number; Linux does so for all of them.
#[inline]
pub(super) fn finish(sum: u64) -> u16 {
    match !fold(sum) {
        0 => 0xffff,
        sum => sum,
    }
}

/// The running sum over the bytes `from..to` of a frame, in whichever buffers they lie.
pub(super) fn add_frame(frame: &Frame, from: usize, to: usize) -> u64 {
    let (mut sum, mut at) = (0, 0);
    for segment in frame.segments() {
        let (start, end) = (from.max(at), to.min(at + segment.len()));
        if start < end {
            let part = fold(add(0, &segment[start - at..end - at]));
            // Bytes that begin at an odd offset stand swapped in the sum (RFC 1071 section 2.B).
            sum += u64::from(if (start - from).is_multiple_of(2) { part } else { part.swap_bytes() });
        }
        at += segment.len();
    }
    sum
}

/// The remainders of every byte, `n` bytes further up in the table of number `n`.
static CRC_TABLES: [[u32; 256]; 8] = crc_tables();

const fn crc_tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// The CRC32c's register after `bytes`; it begins and ends complemented.
pub(super) fn crc32c(mut crc: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word) ^ u64::from(crc);
        crc = (0..8).fold(0, |crc, i| crc ^ CRC_TABLES[7 - i][(word >> (8 * i)) as usize & 0xff]);
    }
    rest.iter().fold(crc, |crc, byte| (crc >> 8) ^ CRC_TABLES[0][((crc ^ u32::from(*byte)) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;

    #[test]
    fn the_checksum_of_a_known_header_comes_out_right() {
        // RFC 1071 section 3: the sum of these is ddf2.
        assert_eq!(fold(add(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
        assert_eq!(fold(add(0, &[0xff, 0xff, 0x01])), 0x0100);
        assert_eq!((finish(0xffff), finish(0x1_fffe)), (0xffff, 0xffff), "never zero");
    }

    #[test]
    fn folding_adds_what_is_carried_out() {
        let plain = |mut sum: u64| {
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            sum as u16
        };
        let edges = [0, 1, 0xfffe, 0xffff, 0x1_0000, 0x1_ffff, 0xffff_0000, 0xffff_fffe, 0xffff_ffff];
        for sum in edges.iter().flat_map(|high| edges.map(|low| high << 32 | low)) {
            assert_eq!(fold(sum), plain(sum), "{sum:x}");
        }
    }

    #[test]
    fn the_crc_of_the_standard_check_string_comes_out_right() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        let bytes: Vec<u8> = (0..100).collect();
        for cut in 0..100 {
            assert_eq!(crc32c(crc32c(!0, &bytes[..cut]), &bytes[cut..]), crc32c(!0, &bytes), "cut at {cut}");
        }
    }

    #[test]
    fn a_sum_over_odd_buffers_is_that_over_the_bytes() {
        let bytes: Vec<u8> = (0..200).map(|i| (i * 37 % 251) as u8).collect();
        let mut pool = Pool::heap(8, 320, 64);
        for cuts in [[1, 2, 3], [7, 60, 133], [13, 14, 100], [100, 150, 199]] {
            let mut frame = pool.take().unwrap();
            frame.fill(&bytes[..cuts[0]]);
            for (from, to) in [(cuts[0], cuts[1]), (cuts[1], cuts[2]), (cuts[2], 200)] {
                let mut further = pool.take().unwrap();
                further.fill(&bytes[from..to]);
                frame.append(further);
            }
            for (from, to) in [(0, 200), (1, 200), (34, 57), (14, 14), (99, 101)] {
                assert_eq!(fold(add_frame(&frame, from, to)), fold(add(0, &bytes[from..to])), "{cuts:?} {from}..{to}");
            }
            pool.put(frame);
        }
    }
}
