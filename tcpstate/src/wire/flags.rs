//! The flags of a TCP header, and the kinds of segments they make.

use core::fmt;

/// The flag bits of a TCP header, with the accurate-ECN bit left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Flags(pub u8);

/// Writes the names of the flags that are set, the lowest bit first.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (bit, name) in ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"].iter().enumerate() {
            if self.0 >> bit & 1 == 1 {
                write!(f, "{separator}{name}")?;
                separator = " ";
            }
        }
        f.write_str(if separator.is_empty() { "no flags" } else { "" })
    }
}

impl Flags {
    /// No more data from the sender.
    pub const FIN: Flags = Flags(1);
    /// Synchronise sequence numbers.
    pub const SYN: Flags = Flags(2);
    /// Reset the connection.
    pub const RST: Flags = Flags(4);
    /// The acknowledgement field is significant.
    pub const ACK: Flags = Flags(16);
    /// Congestion was experienced (RFC 3168 section 6.1); in a SYN, with [`Flags::CWR`]: the sender is ECN-capable.
    pub const ECE: Flags = Flags(64);
    /// The sender has reduced its congestion window (RFC 3168 section 6.1.2).
    pub const CWR: Flags = Flags(128);

    /// Whether any of these flags is set.
    pub const fn has(self, flags: Flags) -> bool {
        self.0 & flags.0 != 0
    }

    /// The union of both sets.
    #[must_use]
    pub const fn and(self, flags: Flags) -> Flags {
        Flags(self.0 | flags.0)
    }

    /// This set without those flags.
    #[must_use]
    pub const fn without(self, flags: Flags) -> Flags {
        Flags(self.0 & !flags.0)
    }

    /// This set if `wanted`, else none.
    #[must_use]
    pub const fn when(self, wanted: bool) -> Flags {
        if wanted { self } else { Flags(0) }
    }

    /// Whether a SYN with these flags asks for ECN (RFC 3168 section 6.1.1); one that asks for accurate ECN does too (RFC 9768 section 3.1.1).
    pub const fn ask_for_ecn(self) -> bool {
        self.has(Flags::ECE) && self.has(Flags::CWR)
    }

    /// Whether a SYN-ACK with these flags agrees to ECN (RFC 3168 section 6.1.1).
    pub const fn agree_to_ecn(self) -> bool {
        self.has(Flags::ECE) && !self.has(Flags::CWR)
    }

    /// Whether a segment with these flags goes on with a connection: ACK without SYN, FIN and RST.
    #[inline(always)]
    pub const fn go_on(self) -> bool {
        Flags::SYN.and(Flags::FIN).and(Flags::RST).and(Flags::ACK).0 & self.0 == Flags::ACK.0
    }

    /// Whether a segment with these flags opens a connection: SYN without ACK, FIN and RST.
    #[inline(always)]
    pub const fn open(self) -> bool {
        Flags::SYN.and(Flags::FIN).and(Flags::RST).and(Flags::ACK).0 & self.0 == Flags::SYN.0
    }

    /// What a segment with these flags does: one look-up in a table of 32 bytes.
    ///
    /// PSH, URG, ECE and CWR do not matter.
    #[inline(always)]
    pub const fn kind(self) -> Kind {
        KINDS[(self.0 & KIND_BITS) as usize]
    }
}

/// The kind of explicit congestion notification that a SYN asks for or a SYN-ACK agrees to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EcnSetup {
    /// None.
    #[default]
    None,
    /// Classic (RFC 3168).
    Classic,
    /// Accurate (RFC 9768).
    Accurate,
}

/// What a segment does, by its flags. The engine sorts segments by this once, before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// SYN without ACK: opens a connection.
    Syn,
    /// SYN with ACK: answers a SYN.
    SynAck,
    /// RST, with or without ACK: ends a connection at once.
    Rst,
    /// ACK without SYN and RST, with or without data or FIN: every other segment of a connection (RFC 9293 section 3.1).
    Ack,
    /// A combination that no TCP sends: SYN with FIN or RST, or neither SYN, RST nor ACK.
    Bad,
}

/// FIN, SYN, RST, PSH and ACK, the lowest five bits. PSH lies among them and does not matter.
const KIND_BITS: u8 = 0x1f;

/// The kind of each combination of those bits.
const KINDS: [Kind; KIND_BITS as usize + 1] = {
    let mut kinds = [Kind::Bad; KIND_BITS as usize + 1];
    let mut bits = 0;
    while bits <= KIND_BITS {
        let flags = Flags(bits);
        kinds[bits as usize] = match (flags.has(Flags::SYN), flags.has(Flags::ACK)) {
            (true, _) if flags.has(Flags::FIN.and(Flags::RST)) => Kind::Bad,
            (true, false) => Kind::Syn,
            (true, true) => Kind::SynAck,
            (false, _) if flags.has(Flags::RST) => Kind::Rst,
            (false, true) => Kind::Ack,
            (false, false) => Kind::Bad,
        };
        bits += 1;
    }
    kinds
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_flags_has_the_kind_the_conditions_say() {
        for bits in 0..=u8::MAX {
            let flags = Flags(bits);
            let opens_and_ends = flags.has(Flags::SYN) && flags.has(Flags::FIN.and(Flags::RST));
            let is_bad = opens_and_ends || !flags.has(Flags::SYN.and(Flags::ACK).and(Flags::RST));
            let opens = flags.has(Flags::SYN) && !flags.has(Flags::ACK.and(Flags::RST).and(Flags::FIN));
            let kind = flags.kind();
            assert_eq!(kind == Kind::Bad, is_bad, "{flags}");
            assert_eq!(flags.go_on(), kind == Kind::Ack && !flags.has(Flags::FIN), "{flags}");
            assert_eq!(flags.open(), kind == Kind::Syn, "{flags}");
            assert_eq!(kind == Kind::Syn, opens, "{flags}");
            if is_bad {
                continue;
            }
            assert_eq!(kind == Kind::Rst, flags.has(Flags::RST), "{flags}");
            assert_eq!(kind == Kind::SynAck, flags.has(Flags::SYN) && flags.has(Flags::ACK), "{flags}");
            assert_eq!(kind == Kind::Ack, !flags.has(Flags::SYN.and(Flags::RST)), "{flags}");
        }
    }

    #[test]
    fn flags_are_named_from_the_lowest_bit() {
        assert_eq!(Flags(0).to_string(), "no flags");
        assert_eq!(Flags::SYN.and(Flags::ACK).and(Flags::ECE).to_string(), "SYN ACK ECE");
    }
}
