//! One connection: a record of two cache lines, plain data, and the states it can be in.
//!
//! All sequence numbers and timestamps in a record are *outer* ones, as seen on the WAN; `seq_delta` and
//! `ts_delta` lead to what the server uses. For a connection that is passed through both are zero.

use crate::seq::{RawWindow, SeqDelta, SeqNum, Window, WindowScale};
use crate::wire::{Envelope, FlowKey, Mac, Vlan};
use crate::{PerSide, Side};

/// What state a flow is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum State {
    /// The record is not in use.
    #[default]
    Free,
    /// An entry of the SYN cache: we have answered a client's SYN.
    SynCached,
    /// The client has proved itself; our SYN is on its way to the server.
    ServerSynSent,
    /// The LAN has sent a SYN to the WAN.
    SynSent,
    /// The WAN has answered it.
    SynReceived,
    /// Both ends may send.
    Established,
    /// At least one end has sent FIN.
    Closing,
    /// Both FINs are acknowledged.
    TimeWait,
    /// A reset was accepted; what still comes is passed on for a while, lest a forged one kill the path.
    Reset,
}

impl State {
    /// Every state a connection can be in.
    pub const ALL: [State; 8] = [
        State::SynCached,
        State::ServerSynSent,
        State::SynSent,
        State::SynReceived,
        State::Established,
        State::Closing,
        State::TimeWait,
        State::Reset,
    ];

    /// The name operators use.
    pub const fn label(self) -> &'static str {
        match self {
            State::Free => "free",
            State::SynCached => "half-open",
            State::ServerSynSent => "dialling",
            State::SynSent => "opening-sent",
            State::SynReceived => "opening-answered",
            State::Established => "established",
            State::Closing => "closing",
            State::TimeWait => "time-wait",
            State::Reset => "reset",
        }
    }
}

/// What is known of a flow besides its state, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct FlowFlags(u32);

impl FlowFlags {
    /// We answered for the server: numbers differ between the sides.
    pub const PROXIED: FlowFlags = FlowFlags(1);
    /// The addresses are IPv6 and continue in the table's side array.
    pub const V6: FlowFlags = FlowFlags(1 << 1);
    /// The client was told that SACK may be used.
    pub const SACK: FlowFlags = FlowFlags(1 << 2);
    /// The server takes SACK.
    pub const SACK_LAN: FlowFlags = FlowFlags(1 << 3);
    /// The client was told that timestamps are used.
    pub const TIMESTAMPS: FlowFlags = FlowFlags(1 << 4);
    /// The server uses timestamps.
    pub const TIMESTAMPS_LAN: FlowFlags = FlowFlags(1 << 5);
    /// The client has not yet shown that it knows the server's window.
    pub const UPDATE_PENDING: FlowFlags = FlowFlags(1 << 6);
    /// A new SYN was answered over the remains of this flow: a cookie may come for it.
    pub const REOPENING: FlowFlags = FlowFlags(1 << 7);
    /// The LAN has sent FIN.
    pub const FIN_LAN: FlowFlags = FlowFlags(1 << 8);
    /// The WAN has sent FIN.
    pub const FIN_WAN: FlowFlags = FlowFlags(1 << 9);
    /// The LAN's FIN is acknowledged.
    pub const FIN_LAN_ACKED: FlowFlags = FlowFlags(1 << 10);
    /// The WAN's FIN is acknowledged.
    pub const FIN_WAN_ACKED: FlowFlags = FlowFlags(1 << 11);
    /// Fragments have come, which hide how long a segment truly is.
    pub const FRAGMENTED: FlowFlags = FlowFlags(1 << 12);

    /// Timestamps were promised to the client on the presumption that the server takes them.
    pub const TIMESTAMPS_PRESUMED: FlowFlags = FlowFlags(1 << 13);
    /// The LAN's window field is still that of its SYN-ACK, which is not scaled.
    pub const WINDOW_UNSCALED: FlowFlags = FlowFlags(1 << 14);
    /// The numbers were not followed from the beginning, so segments cannot be judged by them.
    pub const UNJUDGED: FlowFlags = FlowFlags(1 << 15);
    /// The WAN opened this connection, which is passed through.
    pub const OPENED_BY_WAN: FlowFlags = FlowFlags(1 << 16);
    /// The client speaks ECN and believes that the server does.
    pub const ECN: FlowFlags = FlowFlags(1 << 17);
    /// The server speaks ECN and believes that the client does.
    pub const ECN_LAN: FlowFlags = FlowFlags(1 << 18);
    /// Our SYN to the server asks for ECN, because the client's did.
    pub const ECN_ASKED: FlowFlags = FlowFlags(1 << 19);
    /// An end that speaks ECN alone sent a segment through congestion, and has not been told to its satisfaction.
    pub const ECHO_OWED: FlowFlags = FlowFlags(1 << 20);
    /// The server has not had the handshake's last acknowledgement yet.
    pub const ACK_OWED: FlowFlags = FlowFlags(1 << 21);
    /// The client's data is held until the server answers.
    pub const EARLY: FlowFlags = FlowFlags(1 << 22);
    /// The client has sent data or acknowledged some.
    pub const CARRIED: FlowFlags = FlowFlags(1 << 23);
    /// A SYN was answered with a challenge, and the client has not been heard of on this connection since.
    pub const SYN_CHALLENGED: FlowFlags = FlowFlags(1 << 24);
    /// The server announced a smaller MSS than its client was told.
    pub const MSS_BROKEN: FlowFlags = FlowFlags(1 << 25);
    /// One direction of a connection that may be running has been seen; the other has not agreed yet.
    pub const TENTATIVE: FlowFlags = FlowFlags(1 << 26);

    /// Whatever asks for more of a segment of an established connection than to follow its numbers and translate them.
    pub const UNUSUAL: FlowFlags = FlowFlags::UPDATE_PENDING
        .and(FlowFlags::REOPENING)
        .and(FlowFlags::FIN_LAN)
        .and(FlowFlags::FIN_WAN)
        .and(FlowFlags::FRAGMENTED)
        .and(FlowFlags::WINDOW_UNSCALED)
        .and(FlowFlags::ECHO_OWED)
        .and(FlowFlags::ACK_OWED)
        .and(FlowFlags::SYN_CHALLENGED)
        .and(FlowFlags::MSS_BROKEN)
        .and(FlowFlags::TENTATIVE);

    const fn and(self, flags: FlowFlags) -> FlowFlags {
        FlowFlags(self.0 | flags.0)
    }

    const fn fin(side: Side) -> FlowFlags {
        match side {
            Side::Lan => FlowFlags::FIN_LAN,
            Side::Wan => FlowFlags::FIN_WAN,
        }
    }

    const fn fin_acked(side: Side) -> FlowFlags {
        match side {
            Side::Lan => FlowFlags::FIN_LAN_ACKED,
            Side::Wan => FlowFlags::FIN_WAN_ACKED,
        }
    }
}

/// What is known of one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// The number after the highest this end has sent; after its FIN, once it has sent one.
    pub next: SeqNum,
    /// The highest number this end has acknowledged.
    pub acked: SeqNum,
    /// The last TSval of this end.
    pub ts_value: u32,
    /// This end's last window field.
    pub window: RawWindow,
    /// This end's scale (low four bits) and the one the other end was told (high); 15 is "none".
    scales: u8,
    /// The hop limit this end's frames arrive with.
    pub ttl: u8,
}

const NO_SCALE: u8 = 15;

impl Endpoint {
    /// Sets the scale by which this end's fields are to be read, and the one the other end reads them by.
    pub fn set_scales(&mut self, own: Option<WindowScale>, told: Option<WindowScale>) {
        let code = |scale: Option<WindowScale>| scale.map_or(NO_SCALE, WindowScale::get);
        self.scales = code(own) | code(told) << 4;
    }

    /// The scale by which this end's fields are to be read.
    pub fn scale(&self) -> Option<WindowScale> {
        decode_scale(self.scales & 15)
    }

    /// The scale by which the other end reads this end's fields.
    pub fn told(&self) -> Option<WindowScale> {
        decode_scale(self.scales >> 4)
    }

    /// A field of this end, rewritten for the scale the other end reads it by.
    #[inline(always)]
    pub fn rescale(&self, field: RawWindow) -> RawWindow {
        if self.scales & 15 == self.scales >> 4 {
            return field;
        }
        (field << self.scale().unwrap_or_default()).field(self.told().unwrap_or_default())
    }
}

fn decode_scale(code: u8) -> Option<WindowScale> {
    (code != NO_SCALE).then(|| WindowScale::clamped(code))
}

/// The record of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Flow {
    // First line: who, when, and how far apart the numberings are.
    pub(crate) hash: u64,
    lan: u32,
    wan: u32,
    lan_port: u16,
    wan_port: u16,
    vlan: Vlan,
    flags: FlowFlags,
    /// The state.
    pub state: State,
    /// How often a timer has repeated what it repeats.
    pub attempts: u8,
    /// Where the wheel has filed it.
    pub(crate) slot: u16,
    /// Ticks at which something is due; the wheel looks again when the slot it filed this under comes up.
    pub(crate) deadline: u32,
    pub(crate) link_next: u32,
    pub(crate) link_prev: u32,
    /// From the server's sequence numbers to the ones the client knows.
    pub seq_delta: SeqDelta,
    /// From the server's timestamps (or, if it has none, from our ticks) to the ones the client knows.
    pub ts_delta: SeqDelta,
    macs: [Mac; 2],
    // Second line: the two ends.
    endpoints: PerSide<Endpoint>,
    /// The number we answered the client's SYN with.
    pub outer_isn: SeqNum,
    /// The first TSval the client can have seen of the server itself.
    pub ts_base: u32,
    /// The tick at which the server was first called.
    pub born: u32,
    /// The MSS the client announced.
    pub mss: u16,
    /// The MSS the server announced, if its client was told a larger one.
    pub mss_lan: u16,
    /// The half-second in which this flow was last sent a challenge.
    pub challenged: u16,
    /// Counts the uses of this record.
    pub generation: u16,
    /// Ticks from our SYN-ACK to the client's acknowledgement; zero if not known.
    pub distance: u16,
    /// The first held frame: its place in the pen plus one, zero for none.
    pub held: u16,
    /// The priorities of the client's VLAN tags, outer in the low four bits.
    pub priorities: u8,
}

const _: () = assert!(size_of::<Flow>() == 128, "a lookup touches two cache lines");

impl Flow {
    pub(crate) fn new(key: &FlowKey, hash: u64, generation: u16) -> Self {
        let flags = if key.v6 { FlowFlags::V6 } else { FlowFlags::default() };
        let (lan, wan) = (key.lan[3], key.wan[3]);
        let FlowKey { lan_port, wan_port, vlan, .. } = *key;
        Self { lan, wan, lan_port, wan_port, vlan, flags, hash, generation, ..Self::default() }
    }

    /// Whether the part of the ends that is held here is theirs.
    #[inline(always)]
    pub(crate) fn fits(&self, key: &FlowKey) -> bool {
        // One branch instead of six.
        let ports = u32::from((self.lan_port ^ key.lan_port) | (self.wan_port ^ key.wan_port));
        let version = self.flags.0 & FlowFlags::V6.0 ^ if key.v6 { FlowFlags::V6.0 } else { 0 };
        (self.lan ^ key.lan[3]) | (self.wan ^ key.wan[3]) | (self.vlan.0 ^ key.vlan.0) | ports | version == 0
    }

    /// The ends, with `upper` the words of the addresses that are not held here.
    pub(crate) fn key(&self, upper: &[[u32; 3]; 2]) -> FlowKey {
        let join = |upper: [u32; 3], low| [upper[0], upper[1], upper[2], low];
        let v6 = self.is(FlowFlags::V6);
        let upper = if v6 { *upper } else { [[0, 0, 0xffff]; 2] };
        FlowKey {
            lan: join(upper[0], self.lan),
            wan: join(upper[1], self.wan),
            lan_port: self.lan_port,
            wan_port: self.wan_port,
            vlan: self.vlan,
            v6,
        }
    }

    /// Whether any of these marks is set.
    #[inline(always)]
    pub fn is(&self, set: FlowFlags) -> bool {
        self.flags.0 & set.0 != 0
    }

    /// Whether these marks are set in full.
    pub fn is_all(&self, flags: &[FlowFlags]) -> bool {
        flags.iter().all(|&set| self.is(set))
    }

    /// Sets or clears a mark.
    pub fn set(&mut self, flag: FlowFlags, on: bool) {
        if on {
            self.flags.0 |= flag.0;
        } else {
            self.flags.0 &= !flag.0;
        }
    }

    /// Clears these marks.
    pub fn clear(&mut self, flags: &[FlowFlags]) {
        for set in flags {
            self.flags.0 &= !set.0;
        }
    }

    /// Sets a mark if `set` says so, and never clears it.
    pub fn set_if(&mut self, flag: FlowFlags, on: bool) {
        self.flags.0 |= if on { flag.0 } else { 0 };
    }

    /// The end on this side.
    pub fn endpoint(&self, side: Side) -> &Endpoint {
        &self.endpoints[side]
    }

    /// The end on this side, to change.
    pub fn endpoint_mut(&mut self, side: Side) -> &mut Endpoint {
        &mut self.endpoints[side]
    }

    /// The Ethernet address by which the end on this side is reached.
    pub fn mac(&self, side: Side) -> Mac {
        self.macs[side as usize]
    }

    fn set_macs(&mut self, side: Side, from: Mac, to: Mac) {
        self.macs[side as usize] = from;
        self.macs[side.other() as usize] = to;
    }

    /// Remembers the way a frame from `side` took.
    pub fn keep_path(&mut self, side: Side, envelope: &Envelope) {
        self.set_macs(side, envelope.from, envelope.to);
        self.priorities = (envelope.priorities[0] >> 12 | envelope.priorities[1] >> 8) as u8;
    }

    /// The priorities of the VLAN tags, as [`Envelope`] has them.
    pub fn tag_priorities(&self) -> [u16; 2] {
        [u16::from(self.priorities & 0x0f) << 12, u16::from(self.priorities & 0xf0) << 8]
    }

    /// The latest TSval that the client was shown, if it was shown any.
    pub fn shown_ts_value(&self) -> Option<u32> {
        self.is(FlowFlags::TIMESTAMPS).then_some(self.endpoints[Side::Lan].ts_value)
    }

    /// Whether this end has sent FIN.
    pub fn has_finished(&self, side: Side) -> bool {
        self.is(FlowFlags::fin(side))
    }

    /// Notes that this end's FIN ends before `fin`.
    pub fn finish(&mut self, side: Side, fin: SeqNum) {
        self.set(FlowFlags::fin(side), true);
        // Nothing comes after it, whatever a damaged segment may have claimed before; but fragments hide how much came before it.
        if !self.is(FlowFlags::FRAGMENTED) {
            self.endpoints[side].next = fin;
        }
    }

    /// Notes what `side` has acknowledged of the other end's FIN.
    pub fn note_fin_acked(&mut self, side: Side) {
        let other = side.other();
        if self.has_finished(other) && !self.endpoints[side].acked.before(self.endpoints[other].next) {
            self.set(FlowFlags::fin_acked(other), true);
        }
    }

    /// The state the FINs lead to.
    pub fn state_by_fins(&self) -> State {
        if self.is_all(&[FlowFlags::FIN_LAN_ACKED, FlowFlags::FIN_WAN_ACKED]) {
            State::TimeWait
        } else if self.has_finished(Side::Lan) || self.has_finished(Side::Wan) {
            State::Closing
        } else {
            State::Established
        }
    }

    /// Whether nothing more is to be expected of the flow, so that a new connection may take its ends.
    pub fn is_over(&self) -> bool {
        match self.state {
            State::TimeWait | State::Reset => true,
            State::Closing => self.is_all(&[FlowFlags::FIN_LAN, FlowFlags::FIN_WAN]),
            _ => false,
        }
    }

    /// The window the end on this side grants.
    pub fn granted(&self, side: Side) -> Window {
        let endpoint = &self.endpoints[side];
        if side == Side::Lan && self.is(FlowFlags::WINDOW_UNSCALED) {
            return Window(endpoint.window.0.into());
        }
        endpoint.window << endpoint.scale().unwrap_or_default()
    }

    /// The window field that tells the other end what the end on this side grants.
    pub fn told_window(&self, side: Side) -> RawWindow {
        self.granted(side).field(self.endpoints[side].told().unwrap_or_default())
    }

    /// How far `side`'s numbers must be moved to stand among the outer ones: nothing for the WAN's.
    pub fn outward(&self, side: Side) -> SeqDelta {
        match side {
            Side::Lan => self.seq_delta,
            Side::Wan => SeqDelta::default(),
        }
    }
}
