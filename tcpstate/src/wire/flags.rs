//! The flags of a TCP header, and the kinds of segments they make.

use core::fmt;

/// The flag bits of a TCP header: those of its fourteenth byte, and above them AE, the lowest bit of the thirteenth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Flags(pub u16);

/// Writes the names of the flags that are set, the lowest bit first.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (bit, name) in ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "AE"].iter().enumerate() {
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
    /// The receiver shall hand on what has come (RFC 9293 section 3.1).
    pub const PSH: Flags = Flags(8);
    /// The acknowledgement field is significant.
    pub const ACK: Flags = Flags(16);
    /// Congestion was experienced (RFC 3168 section 6.1); in a SYN, with [`Flags::CWR`]: the sender is ECN-capable.
    pub const ECE: Flags = Flags(64);
    /// The sender has reduced its congestion window (RFC 3168 section 6.1.2).
    pub const CWR: Flags = Flags(128);
    /// Accurate ECN (RFC 9768 section 3.1.1), once the nonce sum.
    pub const AE: Flags = Flags(256);
    /// The ACE field: AE, CWR and ECE (RFC 9768 section 3.2.2).
    pub const ACE: Flags = Flags::AE.and(Flags::CWR).and(Flags::ECE);
    /// What [`Flags::of`] reads.
    const MASK: u16 = 0x1ff;

    /// The flags in the thirteenth and fourteenth byte of a TCP header, as one big-endian number.
    #[inline(always)]
    pub const fn of(word: u16) -> Flags {
        Flags(word & Flags::MASK)
    }

    /// The number whose flags are [read](Flags::of) from it, with these in their place.
    #[inline(always)]
    pub const fn into(self, word: u16) -> u16 {
        word & !Flags::MASK | self.0
    }

    /// AE, CWR and ECE as a number from 0 to 7: AE is its highest bit.
    #[inline(always)]
    pub const fn ace(self) -> Ace {
        Ace((self.0 >> 6 & 7) as u8)
    }

    /// These flags with AE, CWR and ECE as this number says.
    #[must_use]
    #[inline(always)]
    pub const fn with_ace(self, ace: Ace) -> Flags {
        Flags(self.0 & !Flags::ACE.0 | (ace.0 as u16 & 7) << 6)
    }

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

    /// The ECN that a SYN with these flags asks for (RFC 3168 section 6.1.1, RFC 9768 section 3.1.1).
    pub const fn asked_ecn(self) -> EcnSetup {
        match self.ace() {
            Ace::CLASSIC_SYN => EcnSetup::Classic,
            Ace::ACCURATE_SYN => EcnSetup::Accurate,
            _ => EcnSetup::None,
        }
    }

    /// These flags of a SYN, asking for ECN of this kind.
    #[must_use]
    pub const fn asking_for(self, ecn: EcnSetup) -> Flags {
        match ecn {
            EcnSetup::None => self,
            EcnSetup::Classic => self.with_ace(Ace::CLASSIC_SYN),
            EcnSetup::Accurate => self.with_ace(Ace::ACCURATE_SYN),
        }
    }

    /// The ECN that a SYN-ACK with these flags agrees to, where the SYN asked for `asked` (RFC 9768 section 3.1.2, table 2).
    pub const fn agreed_ecn(self, asked: EcnSetup) -> EcnSetup {
        match (asked, self.ace()) {
            (EcnSetup::None, _) => EcnSetup::None,
            // RFC 3168 section 6.1.1.
            (EcnSetup::Classic, _) if self.has(Flags::ECE) && !self.has(Flags::CWR) => EcnSetup::Classic,
            (EcnSetup::Classic, _) => EcnSetup::None,
            (EcnSetup::Accurate, Ace::CLASSIC_SYN_ACK) => EcnSetup::Classic,
            // A server that reflects the SYN's flags supports neither kind.
            (EcnSetup::Accurate, Ace::ACCURATE_SYN | Ace(0)) => EcnSetup::None,
            // Section 3.1.3 has the reserved combination (1,0,1) count as agreement too.
            (EcnSetup::Accurate, _) => EcnSetup::Accurate,
        }
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

/// The flags AE, CWR and ECE as a number: what a SYN asks for, what a SYN-ACK or its acknowledgement says of the ECN field of the segment that it
/// answers, and in any other segment the low bits of a count (RFC 9768 section 3.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Ace(pub u8);

impl Ace {
    /// A SYN asks for classic ECN.
    pub const CLASSIC_SYN: Ace = Ace(0b011);
    /// A SYN asks for accurate ECN.
    pub const ACCURATE_SYN: Ace = Ace(0b111);
    /// A SYN-ACK agrees to classic ECN.
    pub const CLASSIC_SYN_ACK: Ace = Ace(0b001);
    /// What was answered came as not ECN-capable.
    pub const NOT_ECT: Ace = Ace(0b010);
    /// What was answered came with a congestion mark. Where it was a SYN-ACK the client's count stands at 6, which is the same number.
    pub const CE: Ace = Ace(0b110);
    /// A count before the first mark (section 3.2.1).
    pub const FIRST: Ace = Ace(5);

    /// How a SYN-ACK, or the acknowledgement of one, says that what it answers came with this ECN field (tables 2 and 3).
    #[inline(always)]
    pub const fn tells(field: u8) -> Ace {
        // In the order of the field's values: Not-ECT, ECT(1), ECT(0), CE.
        const TOLD: [Ace; 4] = [Ace::NOT_ECT, Ace(0b011), Ace(0b100), Ace::CE];
        TOLD[(field & 3) as usize]
    }

    /// Whether this says, in the acknowledgement of a SYN-ACK, with which of the fields without a mark that came, and so is no count.
    pub const fn is_told(self) -> bool {
        matches!(self.0, 0b010..=0b100)
    }

    /// The count after another mark.
    #[must_use]
    pub const fn next(self) -> Ace {
        Ace(self.0.wrapping_add(1) & 7)
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
const KIND_BITS: u16 = 0x1f;

/// The kind of each combination of those bits.
const KINDS: [Kind; KIND_BITS as usize + 1] = {
    let mut kinds = [Kind::Bad; KIND_BITS as usize + 1];
    let mut bits = 0u16;
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
        for bits in 0..=Flags::MASK {
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
    fn every_row_of_the_negotiation_table_has_the_mode_it_names() {
        use EcnSetup::{Accurate, Classic, None};
        // RFC 9768 section 3.1.2, table 2, and section 3.1.3: the SYN, the SYN-ACK, and what its client goes on with.
        let rows = [
            (0b111, 0b010, Accurate),
            (0b111, 0b011, Accurate),
            (0b111, 0b100, Accurate),
            (0b111, 0b110, Accurate),
            (0b111, 0b101, Accurate),
            (0b111, 0b001, Classic),
            (0b111, 0b000, None),
            (0b011, 0b001, Classic),
            (0b000, 0b000, None),
            (0b111, 0b111, None),
            // A client of the classic kind does not know AE (RFC 3168 section 6.1.1).
            (0b011, 0b101, Classic),
            (0b011, 0b011, None),
            (0b011, 0b000, None),
        ];
        for (asked, answered, mode) in rows {
            let [asked, answered] = [asked, answered].map(|ace| Flags::SYN.with_ace(Ace(ace)));
            assert_eq!(answered.agreed_ecn(asked.asked_ecn()), mode, "{asked}; {answered}");
        }
        for field in 0..4 {
            let answer = Flags::SYN.and(Flags::ACK).with_ace(Ace::tells(field));
            assert_eq!(answer.agreed_ecn(Accurate), Accurate);
        }
    }

    #[test]
    fn flags_leave_the_other_bits_of_their_word() {
        for word in 0..=u16::MAX {
            assert_eq!(Flags::of(word).into(word), word);
            let ace = Flags::of(word).ace();
            assert_eq!(Flags::of(word).with_ace(ace), Flags::of(word));
            assert_eq!(Flags::of(word).with_ace(ace.next()).into(word) & 0xfe3f, word & 0xfe3f);
        }
    }

    #[test]
    fn flags_are_named_from_the_lowest_bit() {
        assert_eq!(Flags(0).to_string(), "no flags");
        assert_eq!(Flags::SYN.and(Flags::ACK).and(Flags::ECE).to_string(), "SYN ACK ECE");
    }
}
