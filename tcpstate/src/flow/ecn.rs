//! Explicit congestion notification (ECN): classic (RFC 3168) or accurate (RFC 9768), and where the two ends did not negotiate the same, because the
//! box's assumption about the server was wrong.
//!
//! | client | server | what the box does |
//! |---|---|---|
//! | classic | classic | passes field and flags unchanged |
//! | accurate | accurate | the same, and keeps the latest ACE field of each end for its own segments |
//! | one of them | another, or none | answers the marks on that end's segments in the other end's name |
//! | none | none | a client's marks are answered as those of a classic one, for a cookie may have forgotten what its SYN-ACK said |
//!
//! An end that negotiated another kind of ECN than its peer must not get ECN-capable packets through the box, which nobody would answer for, and the
//! marks on its own must not be lost. So the box forwards its packets as not ECN-capable, and answers marks that they arrive with as that end
//! expects it: a classic one gets ECE until it says CWR (RFC 3168 section 6.1), an accurate one the count of marks in the ACE field of every segment
//! (RFC 9768 section 3.2.2). What its peer says in these flags, or in its own ECN field as far as that has a meaning, stops at the box.
//!
//! [`Flow::ace`] is, of each end, the ACE field that the other end was last sent in its name: of three bits, since no more of a count is ever sent.

use crate::Side;
use crate::flow::{Flow, FlowFlags};
use crate::head::Head;
use crate::wire::checksum::Patch;
use crate::wire::{Ace, EcnSetup, Flags, Segment, be16, put16};

/// The field's value for "congestion experienced" (RFC 3168 section 5).
const CONGESTED: u8 = 3;
/// The field's value for a sender that takes part: ECT(0).
const CAPABLE: u8 = 2;

/// Whether [`adapt`] would change neither flow nor segment, and [`follow`] has nothing to note, for a segment from the end on `side`.
#[inline(always)]
pub fn needs_no_change(flow: &Flow, side: Side, segment: &Segment, frame: &[u8]) -> bool {
    is_classic(flow)
        || segment.ecn(frame) == 0 && !segment.flags.has(Flags::CWR) && !flow.is(WATCHED)
        || is_accurate(flow) && segment.flags.ace() == flow.ace(side)
}

/// What makes even a segment without mark or CWR one to look at.
const WATCHED: FlowFlags = FlowFlags::ECHO_OWED.and(FlowFlags::ACCURATE).and(FlowFlags::ACCURATE_LAN);
const BOTH: FlowFlags = FlowFlags::ECN.and(FlowFlags::ECN_LAN);
const BOTH_ACCURATE: FlowFlags = FlowFlags::ACCURATE.and(FlowFlags::ACCURATE_LAN);

/// Whether both ends negotiated classic ECN.
#[inline(always)]
pub fn is_classic(flow: &Flow) -> bool {
    flow.among(BOTH.and(BOTH_ACCURATE)) == BOTH
}

/// Whether [`needs_no_change`] holds for every segment of a flow, or at least for those without mark or CWR.
pub fn is_plain_or_classic(flow: &Flow) -> bool {
    is_classic(flow) || !flow.is(WATCHED)
}

/// Whether both ends negotiated accurate ECN.
#[inline(always)]
fn is_accurate(flow: &Flow) -> bool {
    flow.among(BOTH.and(BOTH_ACCURATE)) == BOTH.and(BOTH_ACCURATE)
}

/// The kind of ECN that the end on `side` negotiated.
fn kind(flow: &Flow, side: Side) -> EcnSetup {
    let (any, accurate) = match side {
        Side::Wan => (FlowFlags::ECN, FlowFlags::ACCURATE),
        Side::Lan => (FlowFlags::ECN_LAN, FlowFlags::ACCURATE_LAN),
    };
    match (flow.is(any), flow.is(accurate)) {
        (false, _) => EcnSetup::None,
        (true, false) => EcnSetup::Classic,
        (true, true) => EcnSetup::Accurate,
    }
}

/// Notes what the server's SYN-ACK, with these flags and this ECN field, agrees to. So far [`Flow::ace`] of the client is what the segment said that
/// proved it.
pub fn join(flow: &mut Flow, answer: Flags, field: u8) {
    let asked = match (flow.is(FlowFlags::ECN_ASKED), flow.is(FlowFlags::ACCURATE)) {
        (false, _) => EcnSetup::None,
        (true, false) => EcnSetup::Classic,
        (true, true) => EcnSetup::Accurate,
    };
    let agreed = answer.agreed_ecn(match asked {
        // A server that holds an older SYN of the client answers what that asked for.
        EcnSetup::None => EcnSetup::Accurate,
        asked => asked,
    });
    flow.set(FlowFlags::ECN_LAN, agreed != EcnSetup::None);
    flow.set(FlowFlags::ACCURATE_LAN, agreed == EcnSetup::Accurate);
    flow.set(FlowFlags::ACCURATE, asked == EcnSetup::Accurate && flow.is(FlowFlags::ECN));
    let ace = match (is_accurate(flow), flow.ace(Side::Wan)) {
        // The box's SYN-ACK came to the client as it was sent, so for the server its own has too. The client does not count a mark that is on the
        // latter; none of its later segments would bear that out.
        (true, Ace::NOT_ECT | Ace::FIRST | Ace(7)) => Ace::tells(if field == CONGESTED { CAPABLE } else { field }),
        // What happened to the box's on its way; or that the client has not understood it as agreement.
        (true, told) => told,
        // The box counts in the client's name.
        (false, _) if field == CONGESTED => Ace::CE,
        (false, _) => Ace::FIRST,
    };
    flow.set_ace(Side::Wan, ace);
    flow.set_ace(Side::Lan, Ace::FIRST);
}

/// The flags of the acknowledgement of the server's SYN-ACK, in the client's name (RFC 9768 section 3.2.2.1).
pub fn acknowledging_syn_ack(flow: &Flow) -> Flags {
    if kind(flow, Side::Lan) != EcnSetup::Accurate {
        return Flags::ACK;
    }
    let ace = flow.ace(Side::Wan);
    let is_count = !is_accurate(flow) || flow.is(FlowFlags::CARRIED);
    let told = if is_count && ace != Ace::CE { Ace::NOT_ECT } else { ace };
    Flags::ACK.with_ace(told)
}

/// The flags of any other acknowledgement that the box sends the end on `to` in the other end's name.
pub fn acknowledging(flow: &Flow, to: Side) -> Flags {
    match (kind(flow, to), kind(flow, to.other())) {
        (EcnSetup::Accurate, _) => Flags::ACK.with_ace(count(flow, to.other())),
        (EcnSetup::Classic, EcnSetup::Classic) | (EcnSetup::None, _) => Flags::ACK,
        (EcnSetup::Classic, _) => Flags::ACK.and(Flags::ECE.when(flow.is(FlowFlags::ECHO_OWED))),
    }
}

/// How many marks the end on `side` has counted: as it says, but for what is said in the acknowledgement of a SYN-ACK, which is no count.
fn count(flow: &Flow, side: Side) -> Ace {
    let ace = flow.ace(side);
    let opens = side == Side::Wan && is_accurate(flow) && !flow.is(FlowFlags::CARRIED);
    if opens && ace.is_told() { Ace::FIRST } else { ace }
}

/// Notes what a segment of the end on `side` with these flags says, the latest so far, on a proxied connection.
#[inline(always)]
pub fn follow(flow: &mut Flow, side: Side, flags: Flags) {
    if is_accurate(flow) && flow.is(FlowFlags::PROXIED) && !flags.has(Flags::SYN.and(Flags::RST)) {
        flow.set_ace(side, flags.ace());
    }
}

/// Adapts a segment from `side` where the ends did not negotiate the same kind of ECN. True if the box takes over answering a congestion mark.
pub fn adapt(flow: &mut Flow, side: Side, segment: &Segment, head: &mut Head) -> bool {
    let (sender, receiver) = (kind(flow, side), kind(flow, side.other()));
    if sender == receiver && sender != EcnSetup::None {
        return false;
    }
    let owed_before = flow.is(FlowFlags::ECHO_OWED);
    // Marks of an end that did not negotiate reach one that did: it may do with them what it likes.
    let stops = receiver == EcnSetup::None || sender != EcnSetup::None;
    let is_answered = stops && take_mark(flow, side, sender, segment, head);
    let has_ace = !segment.flags.has(Flags::SYN.and(Flags::RST));
    let flags = match (sender, receiver) {
        (_, EcnSetup::Accurate) if has_ace => segment.flags.with_ace(flow.ace(side)),
        (_, EcnSetup::Accurate) => segment.flags,
        (EcnSetup::Accurate, _) => segment.flags.with_ace(Ace(0)),
        // The sender has got ECE.
        (EcnSetup::Classic, _) => segment.flags.without(Flags::CWR),
        (EcnSetup::None, EcnSetup::None) if owed_before => segment.flags.without(Flags::CWR),
        (EcnSetup::None, _) => segment.flags,
    };
    // One that marks packets without having negotiated is a client.
    let is_owed = receiver == EcnSetup::Classic || sender == receiver && side == Side::Lan;
    let echoes = is_owed && flow.is(FlowFlags::ECHO_OWED) && segment.flags.has(Flags::ACK) && has_ace;
    set_flags(segment, head, flags.and(Flags::ECE.when(echoes)));
    is_answered
}

/// Takes the ECN field off a segment, and notes for its sender, which negotiated this kind, whether it came with a mark. True if the box answers that.
fn take_mark(flow: &mut Flow, side: Side, sender: EcnSetup, segment: &Segment, head: &mut Head) -> bool {
    let field = segment.ecn(head.bytes());
    let is_marked = field == CONGESTED;
    let is_answered = match sender {
        EcnSetup::Accurate => {
            // RFC 9768 section 3.2: marks on segments that the receiver accepts count.
            let counts = is_marked && (segment.fragmented || !head.is_whole() || segment.checksums_hold(head));
            if counts {
                flow.set_ace(side.other(), flow.ace(side.other()).next());
            }
            counts
        }
        // A server that agreed without having been asked is owed nothing. A client may have been told by the box that it was agreed with.
        EcnSetup::None if side == Side::Lan => false,
        EcnSetup::Classic | EcnSetup::None => {
            let owed_before = flow.is(FlowFlags::ECHO_OWED);
            if segment.flags.has(Flags::CWR) {
                flow.set(FlowFlags::ECHO_OWED, false);
            }
            flow.set_if(FlowFlags::ECHO_OWED, is_marked);
            is_marked && !owed_before
        }
    };
    if field != 0 {
        clear_field(segment, head);
    }
    is_answered
}

/// Makes the packet not ECN-capable.
fn clear_field(segment: &Segment, head: &mut Head) {
    let at = usize::from(segment.ip);
    let frame = head.bytes_mut();
    if segment.key.v6 {
        frame[at + 1] &= !0x30;
        return;
    }
    let mut patch = Patch::default();
    patch.replace8(1, frame[at + 1], frame[at + 1] & !3);
    frame[at + 1] &= !3;
    let sum = patch.apply(be16(frame, at + 10));
    put16(frame, at + 10, sum);
}

/// Writes these flags into the segment's header, and leaves the reserved bits beside them.
fn set_flags(segment: &Segment, head: &mut Head, flags: Flags) {
    const OFFSET: usize = 12;
    if flags == segment.flags {
        return;
    }
    let tcp = usize::from(segment.tcp);
    let frame = head.bytes_mut();
    let old = be16(frame, tcp + OFFSET);
    let mut patch = Patch::default();
    patch.replace16(old, flags.into(old));
    put16(frame, tcp + OFFSET, flags.into(old));
    let sum = patch.apply(be16(frame, tcp + 16));
    put16(frame, tcp + 16, sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::test_segments::TestSegment;
    use crate::wire::Parsed;
    use proptest::prelude::*;

    /// A flow of these flags, the ACE fields of its ends, and a segment with all bits of the flag word drawn.
    fn cases() -> impl Strategy<Value = (Flow, TestSegment)> {
        let side = prop_oneof![Just(Side::Lan), Just(Side::Wan)];
        let flags = (any::<[bool; 5]>(), any::<[u8; 2]>());
        (flags, side, any::<(bool, u16, u8)>(), 0u8..4).prop_map(|((set, aces), side, (v6, flags, reserved), ecn)| {
            let mut flow = Flow::default();
            flow.set(FlowFlags::PROXIED, true);
            let drawn = [
                FlowFlags::ECN,
                FlowFlags::ECN_LAN,
                FlowFlags::ECHO_OWED,
                FlowFlags::ACCURATE,
                FlowFlags::ACCURATE_LAN,
            ];
            for (flag, on) in drawn.into_iter().zip(set) {
                flow.set(flag, on);
            }
            for (side, ace) in Side::BOTH.into_iter().zip(aces) {
                flow.set_ace(side, Ace(ace & 7));
            }
            (
                flow,
                TestSegment { side, v6, flags: flags & 0x1ff, reserved: reserved & 7, ecn, ..TestSegment::default() },
            )
        })
    }

    proptest! {
        #[test]
        fn where_no_change_is_needed_none_is_made((mut flow, said) in cases()) {
            let mut frame = said.frame();
            let before = (flow, frame.clone());
            let mut head = Head::whole(&mut frame, before.1.len());
            let Parsed::Tcp(segment) = Parsed::parse(said.side, &head) else { panic!("it is a segment") };
            if needs_no_change(&flow, said.side, &segment, head.bytes()) {
                prop_assert!(!adapt(&mut flow, said.side, &segment, &mut head));
                follow(&mut flow, said.side, segment.flags);
                prop_assert_eq!(before, (flow, frame));
            }
        }

        #[test]
        fn what_a_server_marks_unasked_is_owed_no_answer((mut flow, said) in cases()) {
            for flag in [FlowFlags::ECN, FlowFlags::ECN_LAN, FlowFlags::ECHO_OWED] {
                flow.set(flag, false);
            }
            let said = TestSegment { side: Side::Lan, ecn: 3, ..said };
            let mut frame = said.frame();
            let len = frame.len();
            let mut head = Head::whole(&mut frame, len);
            let Parsed::Tcp(segment) = Parsed::parse(said.side, &head) else { panic!("it is a segment") };
            prop_assert!(!adapt(&mut flow, said.side, &segment, &mut head));
            prop_assert!(!flow.is(FlowFlags::ECHO_OWED));
            prop_assert_eq!(segment.ecn(head.bytes()), 0);
        }

        #[test]
        fn only_ecn_bits_change_and_checksums_stay_right((mut flow, said) in cases()) {
            let mut frame = said.frame();
            let before = frame.clone();
            let mut head = Head::whole(&mut frame, before.len());
            let Parsed::Tcp(segment) = Parsed::parse(said.side, &head) else { panic!("it is a segment") };
            adapt(&mut flow, said.side, &segment, &mut head);
            prop_assert!(segment.checksums_hold(&head));
            let Parsed::Tcp(adapted) = Parsed::parse(said.side, &head) else { panic!("it is a segment") };
            let rest = |flags: Flags| flags.without(Flags::ACE);
            prop_assert_eq!(rest(adapted.flags), rest(segment.flags));
            prop_assert_eq!(adapted, Segment { flags: adapted.flags, ..segment });
            let tcp = usize::from(segment.tcp);
            prop_assert_eq!(frame[tcp + 12] & 0xfe, before[tcp + 12] & 0xfe);
        }

        #[test]
        fn an_accurate_end_gets_the_count_of_its_marks((mut flow, said) in cases(), marks in prop::collection::vec(any::<bool>(), 0..30)) {
            let other = said.side.other();
            if kind(&flow, said.side) != EcnSetup::Accurate || kind(&flow, other) == EcnSetup::Accurate {
                return Ok(());
            }
            flow.set_ace(other, Ace::FIRST);
            for &is_marked in &marks {
                let mut frame = TestSegment { ecn: if is_marked { 3 } else { said.ecn % 3 }, flags: 0x10, ..said.clone() }.frame();
                let len = frame.len();
                let mut head = Head::whole(&mut frame, len);
                let Parsed::Tcp(segment) = Parsed::parse(said.side, &head) else { panic!("it is a segment") };
                prop_assert_eq!(adapt(&mut flow, said.side, &segment, &mut head), is_marked);
                prop_assert_eq!(segment.ecn(head.bytes()), 0);
            }
            let mut frame = TestSegment { side: other, flags: said.flags & 0x1f8 | 0x10, ..said }.frame();
            let len = frame.len();
            let mut head = Head::whole(&mut frame, len);
            let Parsed::Tcp(segment) = Parsed::parse(other, &head) else { panic!("it is a segment") };
            adapt(&mut flow, other, &segment, &mut head);
            let Parsed::Tcp(adapted) = Parsed::parse(other, &head) else { panic!("it is a segment") };
            let count = marks.iter().filter(|&&is_marked| is_marked).count();
            prop_assert_eq!(usize::from(adapted.flags.ace().0), (5 + count) % 8);
        }
    }
}
