//! One connection: a record of two cache lines, plain data, and the states it can be in.
//!
//! All sequence numbers and timestamps in a record are *outer* ones, as seen on the WAN; `seq_delta` and
//! `ts_delta` lead to what the server uses. For a connection that is passed through both are zero.

use crate::seq::{RawWindow, SeqDelta, SeqNum, Window, WindowScale};
use crate::wire::{Ends, Envelope, Mac, Vlan};
use crate::{PerSide, Side};

/// What state a flow is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum State {
    /// The record is not in use.
    #[default]
    Free,
    /// An entry of the SYN cache: we have answered a client's SYN.
    HalfOpen,
    /// The client has proved itself; our SYN is on its way to the server.
    Dialling,
    /// The LAN has sent a SYN to the WAN.
    OpeningSent,
    /// The WAN has answered it.
    OpeningAnswered,
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
        State::HalfOpen,
        State::Dialling,
        State::OpeningSent,
        State::OpeningAnswered,
        State::Established,
        State::Closing,
        State::TimeWait,
        State::Reset,
    ];

    /// The name operators use.
    pub const fn label(self) -> &'static str {
        match self {
            State::Free => "free",
            State::HalfOpen => "half-open",
            State::Dialling => "dialling",
            State::OpeningSent => "opening-sent",
            State::OpeningAnswered => "opening-answered",
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
pub struct Marks(u32);

impl Marks {
    /// We answered for the server: numbers differ between the sides.
    pub const PROXIED: Marks = Marks(1);
    /// The addresses are IPv6 and continue in the table's side array.
    pub const V6: Marks = Marks(1 << 1);
    /// The client was told that SACK may be used.
    pub const SACK: Marks = Marks(1 << 2);
    /// The server takes SACK.
    pub const SACK_LAN: Marks = Marks(1 << 3);
    /// The client was told that timestamps are used.
    pub const TIMESTAMPS: Marks = Marks(1 << 4);
    /// The server uses timestamps.
    pub const TIMESTAMPS_LAN: Marks = Marks(1 << 5);
    /// The client has not yet shown that it knows the server's window.
    pub const UPDATE_PENDING: Marks = Marks(1 << 6);
    /// A new SYN was answered over the remains of this flow: a cookie may come for it.
    pub const REOPENING: Marks = Marks(1 << 7);
    /// The LAN has sent FIN.
    pub const FIN_LAN: Marks = Marks(1 << 8);
    /// The WAN has sent FIN.
    pub const FIN_WAN: Marks = Marks(1 << 9);
    /// The LAN's FIN is acknowledged.
    pub const FIN_LAN_ACKED: Marks = Marks(1 << 10);
    /// The WAN's FIN is acknowledged.
    pub const FIN_WAN_ACKED: Marks = Marks(1 << 11);
    /// Fragments have come, which hide how long a segment truly is.
    pub const FRAGMENTED: Marks = Marks(1 << 12);

    /// Timestamps were promised to the client on the presumption that the server takes them.
    pub const TIMESTAMPS_PRESUMED: Marks = Marks(1 << 13);
    /// The LAN's window field is still that of its SYN-ACK, which is not scaled.
    pub const WINDOW_UNSCALED: Marks = Marks(1 << 14);
    /// The numbers were not followed from the beginning, so segments cannot be judged by them.
    pub const UNJUDGED: Marks = Marks(1 << 15);
    /// The WAN opened this connection, which is passed through.
    pub const OPENED_BY_WAN: Marks = Marks(1 << 16);
    /// The client speaks ECN and believes that the server does.
    pub const ECN: Marks = Marks(1 << 17);
    /// The server speaks ECN and believes that the client does.
    pub const ECN_LAN: Marks = Marks(1 << 18);
    /// Our SYN to the server asks for ECN, because the client's did.
    pub const ECN_ASKED: Marks = Marks(1 << 19);
    /// An end that speaks ECN alone sent a segment through congestion, and has not been told to its satisfaction.
    pub const ECHO_OWED: Marks = Marks(1 << 20);
    /// The server has not had the handshake's last acknowledgement yet.
    pub const ACK_OWED: Marks = Marks(1 << 21);
    /// The client's data is held until the server answers.
    pub const EARLY: Marks = Marks(1 << 22);
    /// The client has sent data or acknowledged some.
    pub const CARRIED: Marks = Marks(1 << 23);
    /// A SYN was answered with a challenge, and the client has not been heard of on this connection since.
    pub const SYN_CHALLENGED: Marks = Marks(1 << 24);
    /// The server announced a smaller MSS than its client was told.
    pub const MSS_BROKEN: Marks = Marks(1 << 25);
    /// One direction of a connection that may be running has been seen; the other has not agreed yet.
    pub const TENTATIVE: Marks = Marks(1 << 26);

    /// Whatever asks for more of a segment of an established connection than to follow its numbers and translate them.
    pub const UNUSUAL: Marks = Marks::UPDATE_PENDING
        .and(Marks::REOPENING)
        .and(Marks::FIN_LAN)
        .and(Marks::FIN_WAN)
        .and(Marks::FRAGMENTED)
        .and(Marks::WINDOW_UNSCALED)
        .and(Marks::ECHO_OWED)
        .and(Marks::ACK_OWED)
        .and(Marks::SYN_CHALLENGED)
        .and(Marks::MSS_BROKEN)
        .and(Marks::TENTATIVE);

    const fn and(self, marks: Marks) -> Marks {
        Marks(self.0 | marks.0)
    }

    const fn fin(side: Side) -> Marks {
        match side {
            Side::Lan => Marks::FIN_LAN,
            Side::Wan => Marks::FIN_WAN,
        }
    }

    const fn fin_acked(side: Side) -> Marks {
        match side {
            Side::Lan => Marks::FIN_LAN_ACKED,
            Side::Wan => Marks::FIN_WAN_ACKED,
        }
    }
}

/// What is known of one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Half {
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

impl Half {
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
    pub fn retell(&self, field: RawWindow) -> RawWindow {
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
    marks: Marks,
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
    halves: PerSide<Half>,
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
    pub(crate) fn new(ends: &Ends, hash: u64, generation: u16) -> Self {
        let marks = if ends.v6 { Marks::V6 } else { Marks::default() };
        let (lan, wan) = (ends.lan[3], ends.wan[3]);
        let Ends { lan_port, wan_port, vlan, .. } = *ends;
        Self { lan, wan, lan_port, wan_port, vlan, marks, hash, generation, ..Self::default() }
    }

    /// Whether the part of the ends that is held here is theirs.
    #[inline(always)]
    pub(crate) fn fits(&self, ends: &Ends) -> bool {
        // One branch instead of six.
        let ports = u32::from((self.lan_port ^ ends.lan_port) | (self.wan_port ^ ends.wan_port));
        let version = self.marks.0 & Marks::V6.0 ^ if ends.v6 { Marks::V6.0 } else { 0 };
        (self.lan ^ ends.lan[3]) | (self.wan ^ ends.wan[3]) | (self.vlan.0 ^ ends.vlan.0) | ports | version == 0
    }

    /// The ends, with `upper` the words of the addresses that are not held here.
    pub(crate) fn ends(&self, upper: &[[u32; 3]; 2]) -> Ends {
        let join = |upper: [u32; 3], low| [upper[0], upper[1], upper[2], low];
        let v6 = self.is(Marks::V6);
        let upper = if v6 { *upper } else { [[0, 0, 0xffff]; 2] };
        Ends {
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
    pub fn is(&self, mark: Marks) -> bool {
        self.marks.0 & mark.0 != 0
    }

    /// Whether these marks are set in full.
    pub fn is_all(&self, marks: &[Marks]) -> bool {
        marks.iter().all(|&mark| self.is(mark))
    }

    /// Sets or clears a mark.
    pub fn mark(&mut self, mark: Marks, set: bool) {
        if set {
            self.marks.0 |= mark.0;
        } else {
            self.marks.0 &= !mark.0;
        }
    }

    /// Clears these marks.
    pub fn unmark(&mut self, marks: &[Marks]) {
        for mark in marks {
            self.marks.0 &= !mark.0;
        }
    }

    /// Sets a mark if `set` says so, and never clears it.
    pub fn mark_if(&mut self, mark: Marks, set: bool) {
        self.marks.0 |= if set { mark.0 } else { 0 };
    }

    /// The end on this side.
    pub fn half(&self, side: Side) -> &Half {
        &self.halves[side]
    }

    /// The end on this side, to change.
    pub fn half_mut(&mut self, side: Side) -> &mut Half {
        &mut self.halves[side]
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
    pub fn keep_way(&mut self, side: Side, envelope: &Envelope) {
        self.set_macs(side, envelope.from, envelope.to);
        self.priorities = (envelope.priorities[0] >> 12 | envelope.priorities[1] >> 8) as u8;
    }

    /// The priorities of the VLAN tags, as [`Envelope`] has them.
    pub fn tag_priorities(&self) -> [u16; 2] {
        [u16::from(self.priorities & 0x0f) << 12, u16::from(self.priorities & 0xf0) << 8]
    }

    /// The latest TSval that the client was shown, if it was shown any.
    pub fn clock_shown(&self) -> Option<u32> {
        self.is(Marks::TIMESTAMPS).then_some(self.halves[Side::Lan].ts_value)
    }

    /// Whether this end has sent FIN.
    pub fn has_finished(&self, side: Side) -> bool {
        self.is(Marks::fin(side))
    }

    /// Notes that this end's FIN ends before `fin`.
    pub fn finish(&mut self, side: Side, fin: SeqNum) {
        self.mark(Marks::fin(side), true);
        // Nothing comes after it, whatever a damaged segment may have claimed before; but fragments hide how much came before it.
        if !self.is(Marks::FRAGMENTED) {
            self.halves[side].next = fin;
        }
    }

    /// Notes what `side` has acknowledged of the other end's FIN.
    pub fn note_fin_acked(&mut self, side: Side) {
        let other = side.other();
        if self.has_finished(other) && !self.halves[side].acked.before(self.halves[other].next) {
            self.mark(Marks::fin_acked(other), true);
        }
    }

    /// The state the FINs lead to.
    pub fn state_by_fins(&self) -> State {
        if self.is_all(&[Marks::FIN_LAN_ACKED, Marks::FIN_WAN_ACKED]) {
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
            State::Closing => self.is_all(&[Marks::FIN_LAN, Marks::FIN_WAN]),
            _ => false,
        }
    }

    /// The window the end on this side grants.
    pub fn granted(&self, side: Side) -> Window {
        let half = &self.halves[side];
        if side == Side::Lan && self.is(Marks::WINDOW_UNSCALED) {
            return Window(half.window.0.into());
        }
        half.window << half.scale().unwrap_or_default()
    }

    /// The window field that tells the other end what the end on this side grants.
    pub fn told_window(&self, side: Side) -> RawWindow {
        self.granted(side).field(self.halves[side].told().unwrap_or_default())
    }

    /// How far `side`'s numbers must be moved to stand among the outer ones: nothing for the WAN's.
    pub fn outward(&self, side: Side) -> SeqDelta {
        match side {
            Side::Lan => self.seq_delta,
            Side::Wan => SeqDelta::default(),
        }
    }
}
