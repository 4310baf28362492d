//! Explicit congestion notification where only one end negotiated it, because the box's assumption about the server was wrong.
//!
//! The other end ignores congestion marks, so it must not get ECN-capable packets, and the marks on those that come must not be lost. The box
//! forwards the ECN-capable end's packets as not ECN-capable, and answers marks that they arrive with on behalf of the other end: it sets ECE in
//! the other end's acknowledgements until CWR comes (RFC 3168 section 6.1).

use crate::Side;
use crate::flow::{Flow, FlowFlags};
use crate::head::Head;
use crate::wire::checksum::Patch;
use crate::wire::{Flags, Segment, be16, put16};

/// The field's value for "congestion experienced" (RFC 3168 section 5).
const CONGESTED: u8 = 3;

/// Whether [`adapt`] would change neither flow nor segment, for a segment with this traffic class from either end.
#[inline(always)]
pub fn needs_no_change(flow: &Flow, segment: &Segment, traffic_class: u8) -> bool {
    let both = flow.is(FlowFlags::ECN) && flow.is(FlowFlags::ECN_LAN);
    both || traffic_class & 3 == 0 && !segment.flags.has(Flags::CWR) && !flow.is(FlowFlags::ECHO_OWED)
}

/// The low bits of the traffic class (IPv4: type of service), of which the lowest two are the ECN field.
#[inline(always)]
pub fn traffic_class(segment: &Segment, frame: &[u8]) -> u8 {
    let byte = frame[usize::from(segment.ip) + 1];
    if segment.key.v6 { byte >> 4 } else { byte }
}

/// Adapts a segment from `side` where not both ends negotiated ECN. True if the box takes over answering a congestion mark.
pub fn adapt(flow: &mut Flow, side: Side, segment: &Segment, head: &mut Head) -> bool {
    let (client, server) = (flow.is(FlowFlags::ECN), flow.is(FlowFlags::ECN_LAN));
    if client && server {
        return false;
    }
    let (sender_capable, receiver_capable) = if side == Side::Wan { (client, server) } else { (server, client) };
    let field = traffic_class(segment, head.bytes()) & 3;
    let (marked, owed_before) = (field == CONGESTED, flow.is(FlowFlags::ECHO_OWED));
    let mut flags = segment.flags;
    if !receiver_capable {
        if flags.has(Flags::CWR) && (sender_capable || owed_before) {
            // The sender has got ECE.
            flow.set(FlowFlags::ECHO_OWED, false);
            flags = flags.without(Flags::CWR);
        }
        if field != 0 {
            flow.set_if(FlowFlags::ECHO_OWED, marked);
            clear_field(segment, head);
        }
    }
    // Whether the receiver is the end that gets ECE: the one that negotiated ECN alone. One that marks packets without having negotiated is a client.
    let owed = if side == Side::Wan { server && !client } else { !server };
    if owed && flow.is(FlowFlags::ECHO_OWED) && flags.has(Flags::ACK) && !flags.has(Flags::SYN.and(Flags::RST)) {
        flags = flags.and(Flags::ECE);
    }
    if flags != segment.flags {
        set_flags(segment, head, flags);
    }
    !receiver_capable && marked && !owed_before
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

fn set_flags(segment: &Segment, head: &mut Head, flags: Flags) {
    const OFFSET: usize = 13;
    let tcp = usize::from(segment.tcp);
    let frame = head.bytes_mut();
    let mut patch = Patch::default();
    patch.replace8(OFFSET, frame[tcp + OFFSET], flags.0);
    frame[tcp + OFFSET] = flags.0;
    let sum = patch.apply(be16(frame, tcp + 16));
    put16(frame, tcp + 16, sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::test_segments::TestSegment;
    use crate::wire::Parsed;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn where_no_change_is_needed_none_is_made(
            flags in any::<[bool; 3]>(),
            side in prop_oneof![Just(Side::Lan), Just(Side::Wan)],
            (v6, tcp_flags, ecn) in (any::<bool>(), any::<u8>(), 0u8..4),
        ) {
            let mut flow = Flow::default();
            for (flag, on) in [FlowFlags::ECN, FlowFlags::ECN_LAN, FlowFlags::ECHO_OWED].into_iter().zip(flags) {
                flow.set(flag, on);
            }
            let mut frame = TestSegment { side, v6, flags: tcp_flags, ecn, ..TestSegment::default() }.frame();
            let before = (flow, frame.clone());
            let mut head = Head::whole(&mut frame, before.1.len());
            let Parsed::Tcp(segment) = Parsed::parse(side, &head) else { panic!("it is a segment") };
            if needs_no_change(&flow, &segment, traffic_class(&segment, head.bytes())) {
                prop_assert!(!adapt(&mut flow, side, &segment, &mut head));
                prop_assert_eq!(before, (flow, frame));
            }
        }
    }
}
