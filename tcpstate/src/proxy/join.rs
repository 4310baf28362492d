//! The two halves of a connection become one: what the server's SYN or SYN-ACK settles.

use super::proof::WITHHELD_MOST;
use crate::cookie::ts_clock;
use crate::flow::table::wheel::tick;
use crate::flow::{Flow, FlowFlags, Snapshot, ecn};
use crate::seq::{RawWindow, SeqDelta, SeqNum, WindowScale};
use crate::wire::{Options, Segment};
use crate::{Instant, Side};

/// The box does not wait for a client this near (ticks; two milliseconds): cookies and timers are too coarse to tell it from a neighbour.
const NEAR: u16 = 2;

/// Splices the two halves of the connection, with the numbers and options of the server's SYN-ACK.
pub(super) fn join(
    flow: &mut Flow,
    answer: &Segment,
    answered: &Options,
    (ttl, class, field): (u8, u8, u8),
    now: Instant,
) {
    flow.seq_delta = SeqDelta::between(answer.seq.get(), flow.outer_isn.get());
    ecn::join(flow, answer.flags, field);
    flow.attempts = 0;
    flow.set(FlowFlags::REOPENING, false);
    flow.set(FlowFlags::SYN_CHALLENGED, false);
    flow.set(FlowFlags::SACK_LAN, flow.is(FlowFlags::SACK) && answered.sack_permitted);
    join_scales(flow, answered.scale);
    join_timestamps(flow, answered, now);
    let (outer_isn, synchronised) = (flow.outer_isn, flow.endpoint(Side::Wan).next);
    let server = flow.endpoint_mut(Side::Lan);
    server.next = outer_isn + 1;
    // The answer acknowledges the client's SYN.
    server.acked = synchronised;
    server.ttl = ttl;
    flow.set_class(Side::Lan, class);
    let server = flow.endpoint_mut(Side::Lan);
    // RFC 7323 section 2.2: the window in a SYN-ACK is not scaled.
    server.window = answer.window;
    flow.set(FlowFlags::WINDOW_UNSCALED, true);
    flow.keep_snapshot(Snapshot::of(flow, tick(now)));
}

/// Scaling is on between us and the server only if both SYNs had the option (RFC 7323 section 2.2); towards the client it is what our SYN-ACK promised.
fn join_scales(flow: &mut Flow, server: Option<WindowScale>) {
    let client = flow.endpoint(Side::Wan).scale();
    let promised = flow.endpoint(Side::Lan).told();
    let agreed = client.is_some() && server.is_some();
    flow.endpoint_mut(Side::Wan).set_scales(client, client.filter(|_| agreed));
    flow.endpoint_mut(Side::Lan).set_scales(server.filter(|_| agreed), promised);
}

/// The server's clock goes on, for the client, from where ours is: beyond every TSval our SYN-ACKs can have borne.
fn join_timestamps(flow: &mut Flow, answered: &Options, now: Instant) {
    if !flow.is(FlowFlags::TIMESTAMPS) {
        return;
    }
    let base = SeqNum::later(ts_clock(now), flow.endpoint(Side::Lan).ts_value).wrapping_add(1);
    flow.set(FlowFlags::TIMESTAMPS_LAN, answered.timestamps.is_some());
    // A server without timestamps gets the box's clock.
    let clock = answered.timestamps.map_or(ts_clock(now), |timestamps| timestamps.value);
    flow.ts_delta = SeqDelta::between(clock, base);
    flow.ts_base = base;
    flow.endpoint_mut(Side::Lan).ts_value = base;
}

/// For how many ticks the server's SYN-ACK goes without its acknowledgement: as long as the client's round trip takes, so that the server measures
/// that.
pub(super) fn time_withheld(flow: &Flow) -> u16 {
    match flow.distance() {
        _ if flow.is(FlowFlags::EARLY) => 0,
        // Nothing is known of its distance: an answer to a probe will bring the acknowledgement.
        0 => WITHHELD_MOST,
        near if near <= NEAR => 0,
        distance => distance,
    }
}

/// The window of our SYN or SYN-ACK to the server, which is never scaled (RFC 7323 section 2.2): what the client granted in a scaled field is spelt out.
pub(super) fn syn_window(flow: &Flow) -> RawWindow {
    flow.granted(Side::Wan).field(WindowScale::default())
}
