//! TCP options (RFC 9293 section 3.1, RFC 7323, RFC 2018): an iterator over them in place, and a summary of what they say.

use super::{be16, be32};
use crate::seq::WindowScale;

/// Option kinds.
pub mod kind {
    /// End of option list.
    pub const END: u8 = 0;
    /// No operation.
    pub const NOP: u8 = 1;
    /// Maximum segment size.
    pub const MSS: u8 = 2;
    /// Window scale.
    pub const WINDOW_SCALE: u8 = 3;
    /// SACK permitted.
    pub const SACK_PERMITTED: u8 = 4;
    /// SACK blocks.
    pub const SACK: u8 = 5;
    /// Timestamps.
    pub const TIMESTAMPS: u8 = 8;
    /// TCP-MD5 signature (RFC 2385).
    pub const MD5: u8 = 19;
    /// TCP authentication option (RFC 5925).
    pub const AUTHENTICATION: u8 = 29;
    /// Multipath TCP (RFC 8684).
    pub const MULTIPATH: u8 = 30;
    /// Fast open cookie (RFC 7413).
    pub const FAST_OPEN: u8 = 34;
    /// Shared by experiments, which an identifier of 16 bits or more tells apart (RFC 4727, RFC 6994).
    pub const EXPERIMENT_1: u8 = 253;
    /// See [`EXPERIMENT_1`].
    pub const EXPERIMENT_2: u8 = 254;
}

/// The experiment identifier of a fast open cookie from before it had a kind of its own (RFC 7413 appendix A of its drafts); Linux still grants it.
const FAST_OPEN_EXPERIMENT: u16 = 0xf989;

/// An iterator over the options of a header: yields kind, offset and length of each, without the no-operations.
///
/// Ends at the end-of-list option and, as kernels do, at the first option whose length is below two or reaches past the header.
pub struct Walk<'a> {
    options: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    /// Iterates over the bytes behind the fixed header.
    pub fn new(options: &'a [u8]) -> Self {
        Self { options, at: 0 }
    }
}

impl Iterator for Walk<'_> {
    type Item = (u8, usize, usize);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let at = self.at;
            match *self.options.get(at)? {
                kind::END => return None,
                kind::NOP => self.at += 1,
                kind => {
                    let len = usize::from(*self.options.get(at + 1)?);
                    if len < 2 || at + len > self.options.len() {
                        return None;
                    }
                    self.at += len;
                    return Some((kind, at, len));
                }
            }
        }
    }
}

/// Bytes of a timestamps option with the two no-operations that align it (RFC 7323 appendix A).
pub const TIMESTAMPS_ROOM: usize = 12;

/// The value and the echo of a timestamps option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timestamps {
    /// TSval: the sender's clock.
    pub value: u32,
    /// TSecr: the receiver's clock, echoed; zero means "no echo".
    pub echo: u32,
}

/// The 32-bit words that make up the options of common stacks: Linux, Windows, Apple's.
pub(super) const MSS: u32 = 0x0204;
pub(super) const NOP_SCALE: u32 = 0x01_0303;
const NOPS_SACK_PERMITTED: u32 = 0x0101_0402;
const NOPS_TIMESTAMPS: u32 = 0x0101_080a;
pub(super) const SACK_PERMITTED_TIMESTAMPS: u32 = 0x0402_080a;
const SACK_PERMITTED_END: u32 = 0x0402_0000;

/// What a segment's options say. Of an option that occurs twice the last counts, as in kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// Maximum segment size; zero is read as absent.
    pub mss: Option<u16>,
    /// Window scale, limited to 14.
    pub scale: Option<WindowScale>,
    /// SACK permitted.
    pub sack_permitted: bool,
    /// Timestamps.
    pub timestamps: Option<Timestamps>,
    /// A signature over the segment: TCP-MD5 or TCP-AO.
    pub signed: bool,
    /// Multipath TCP is offered.
    pub multipath: bool,
    /// A fast open cookie, or the request for one, of either kind.
    pub fast_open: bool,
}

impl Options {
    /// Reads the bytes behind the fixed header.
    #[inline]
    pub fn read(options: &[u8]) -> Self {
        Self::read_words(options).unwrap_or_else(|| Self::read_any(options))
    }

    /// Reads options in the layouts of common stacks, word by word; `None` if there is an unknown word.
    fn read_words(options: &[u8]) -> Option<Self> {
        let mut summary = Self::default();
        let (mut words, []) = options.as_chunks::<4>() else { return None };
        while let [word, rest @ ..] = words {
            words = rest;
            let word = u32::from_be_bytes(*word);
            match (word, word >> 8, word >> 16) {
                (_, _, MSS) => summary.mss = Some(word as u16).filter(|&mss| mss != 0),
                (_, NOP_SCALE, _) => summary.scale = Some(WindowScale::clamped(word as u8)),
                (NOPS_SACK_PERMITTED, ..) => summary.sack_permitted = true,
                (SACK_PERMITTED_TIMESTAMPS | NOPS_TIMESTAMPS, ..) => {
                    let [value, echo, rest @ ..] = words else { return None };
                    words = rest;
                    summary.sack_permitted |= word == SACK_PERMITTED_TIMESTAMPS;
                    let [value, echo] = [value, echo].map(|word| u32::from_be_bytes(*word));
                    summary.timestamps = Some(Timestamps { value, echo });
                }
                (SACK_PERMITTED_END, ..) => {
                    summary.sack_permitted = true;
                    break;
                }
                _ => return None,
            }
        }
        Some(summary)
    }

    /// Reads options in any layout, one by one.
    #[inline(never)]
    fn read_any(options: &[u8]) -> Self {
        let mut summary = Self::default();
        for (kind, at, len) in Walk::new(options) {
            match (kind, len) {
                (kind::MSS, 4) => summary.mss = Some(be16(options, at + 2)).filter(|&mss| mss != 0),
                (kind::WINDOW_SCALE, 3) => summary.scale = Some(WindowScale::clamped(options[at + 2])),
                (kind::SACK_PERMITTED, 2) => summary.sack_permitted = true,
                (kind::TIMESTAMPS, 10) => summary.timestamps = Some(Self::timestamps_at(options, at)),
                (kind::MD5 | kind::AUTHENTICATION, _) => summary.signed = true,
                (kind::MULTIPATH, _) => summary.multipath = true,
                (kind::FAST_OPEN, _) => summary.fast_open = true,
                (kind::EXPERIMENT_1 | kind::EXPERIMENT_2, 4..) if be16(options, at + 2) == FAST_OPEN_EXPERIMENT => {
                    summary.fast_open = true;
                }
                _ => {}
            }
        }
        summary
    }

    /// Reads timestamps as the only option, in the layout every stack uses (RFC 7323 appendix A).
    #[inline(always)]
    pub fn common_timestamps(options: &[u8; TIMESTAMPS_ROOM]) -> Option<Timestamps> {
        let [a, b, c, d, ..] = *options;
        let common = [a, b, c, d] == [kind::NOP, kind::NOP, kind::TIMESTAMPS, 10];
        common.then(|| Timestamps { value: be32(options, 4), echo: be32(options, 8) })
    }

    /// Reads only the timestamps.
    #[inline(always)]
    pub fn timestamps(options: &[u8]) -> Option<Timestamps> {
        // The common layout needs no walk.
        if let Ok(options) = options.try_into()
            && let Some(timestamps) = Self::common_timestamps(options)
        {
            return Some(timestamps);
        }
        let mut walk = Walk::new(options).filter(|&(kind, _, len)| kind == kind::TIMESTAMPS && len == 10);
        walk.next().map(|first| walk.last().unwrap_or(first)).map(|(_, at, _)| Self::timestamps_at(options, at))
    }

    fn timestamps_at(options: &[u8], at: usize) -> Timestamps {
        Timestamps { value: be32(options, at + 2), echo: be32(options, at + 6) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_syn_is_read() {
        let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1, 3, 3, 7];
        let read = Options::read(&options);
        assert_eq!(read.mss, Some(1460));
        assert_eq!(read.scale, Some(WindowScale::clamped(7)));
        assert!(read.sack_permitted);
        assert_eq!(read.timestamps, Some(Timestamps { value: 9, echo: 0 }));
    }

    #[test]
    fn what_follows_the_end_or_a_bad_length_is_not_read() {
        assert_eq!(Options::read(&[0, 2, 4, 5, 0xb4]), Options::default());
        assert_eq!(Options::read(&[8, 0, 2, 4, 5, 0xb4]), Options::default());
        assert_eq!(Options::read(&[8, 1, 2, 4, 5, 0xb4]), Options::default());
        assert_eq!(Options::read(&[2, 4, 5]), Options::default());
        assert_eq!(Options::read(&[3]), Options::default());
    }

    #[test]
    fn a_fast_open_option_is_known_by_its_kind_or_by_its_experiment() {
        for option in [&[34, 2][..], &[34, 6, 1, 2, 3, 4], &[254, 4, 0xf9, 0x89], &[253, 6, 0xf9, 0x89, 1, 2]] {
            assert!(Options::read(option).fast_open, "{option:?}");
        }
        // SMC-R, an identifier cut short, another experiment.
        for option in [&[254, 6, 0xe2, 0xd4, 0xc3, 0xd9][..], &[254, 3, 0xf9, 0x89], &[254, 2], &[253, 4, 0x89, 0xf9]] {
            assert!(!Options::read(option).fast_open, "{option:?}");
        }
    }

    #[test]
    fn absent_scale_and_shift_zero_are_different() {
        assert_eq!(Options::read(&[1, 3, 3, 0]).scale, Some(WindowScale::clamped(0)));
        assert_eq!(Options::read(&[1, 1, 1, 1]).scale, None);
    }

    /// Words of common stacks, and a few that differ a little.
    fn word() -> impl Strategy<Value = [u8; 4]> {
        let known = prop::sample::select(vec![
            [2, 4, 5, 0xb4],
            [2, 4, 0, 0],
            [1, 3, 3, 7],
            [1, 3, 3, 15],
            [1, 1, 4, 2],
            [1, 1, 8, 10],
            [4, 2, 8, 10],
            [4, 2, 0, 0],
            [1, 1, 1, 1],
            [4, 2, 1, 1],
            [1, 2, 8, 10],
            [4, 1, 8, 10],
            [0, 0, 0, 0],
            [2, 4, 0, 1],
            [3, 3, 7, 1],
            [34, 2, 1, 1],
        ]);
        prop_oneof![4 => known, 1 => any::<[u8; 4]>()]
    }

    proptest! {
        #[test]
        fn words_are_read_as_their_bytes_are(words in prop::collection::vec(word(), 0..=10)) {
            let options = words.as_flattened();
            prop_assert_eq!(Options::read(options), Options::read_any(options));
        }

        #[test]
        fn any_bytes_are_walked_to_an_end(options in prop::collection::vec(any::<u8>(), 0..=40)) {
            prop_assert!(Walk::new(&options).count() <= 20);
            prop_assert_eq!(Options::timestamps(&options), Options::read(&options).timestamps);
        }
    }
}
