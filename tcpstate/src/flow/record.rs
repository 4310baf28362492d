//! The record of one connection: two cache lines of integers, without a pointer or an enumeration, so that any bytes are a record and a foreign
//! byte breaks nothing. States, sides and scales are parsed from it. Only [`Table`](super::table::Table) writes records.
//!
//! Sequence numbers and timestamps in a record are the *outer* ones, as seen on the WAN; `seq_delta` and `ts_delta` lead to what the server uses.
//! For a connection that is passed through both are zero.
//!
//! Each word that a segment of an established connection changes is valid alone: a process that is killed between two stores leaves a record that
//! was true a segment ago in some fields and is true now in the others. What must change together changes with the state, for which the table keeps
//! a copy to go back to.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::State;
use crate::keyed::Keys;
use crate::seq::{RawWindow, SeqDelta, SeqNum, Window, WindowScale};
use crate::wire::{Ace, EcnSetup, Envelope, FlowKey, GROUP, Mac, Tags, Vlan};
use crate::{PerSide, Side};

/// The version of the record's layout, for a process that takes over records of another.
pub const LAYOUT: u32 = 3;

/// The bit of [`Flow::profile`] that says that a flow passes as it is.
pub(crate) const UNTOUCHED: u16 = 1 << 15;

/// What is known of a flow besides its state, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FlowFlags(u32);

impl FlowFlags {
    /// The box answered for the server: numbers differ between the sides.
    pub const PROXIED: FlowFlags = FlowFlags(1);
    /// The addresses are IPv6 and continue in the table's side array.
    pub const V6: FlowFlags = FlowFlags(1 << 1);
    /// The client's SYN-ACK permits SACK.
    pub const SACK: FlowFlags = FlowFlags(1 << 2);
    /// The server takes SACK.
    pub const SACK_LAN: FlowFlags = FlowFlags(1 << 3);
    /// The client's SYN-ACK has timestamps.
    pub const TIMESTAMPS: FlowFlags = FlowFlags(1 << 4);
    /// The server uses timestamps.
    pub const TIMESTAMPS_LAN: FlowFlags = FlowFlags(1 << 5);
    /// A new SYN was answered over the remains of this flow: a cookie may come for it.
    pub const REOPENING: FlowFlags = FlowFlags(1 << 6);
    /// The LAN has sent FIN.
    pub const FIN_LAN: FlowFlags = FlowFlags(1 << 7);
    /// The WAN has sent FIN.
    pub const FIN_WAN: FlowFlags = FlowFlags(1 << 8);
    /// The LAN's FIN is acknowledged.
    pub const FIN_LAN_ACKED: FlowFlags = FlowFlags(1 << 9);
    /// The WAN's FIN is acknowledged.
    pub const FIN_WAN_ACKED: FlowFlags = FlowFlags(1 << 10);
    /// Fragments have come, which hide how long a segment truly is.
    pub const FRAGMENTED: FlowFlags = FlowFlags(1 << 11);
    /// Timestamps were promised to the client on the presumption that the server takes them.
    pub const TIMESTAMPS_PRESUMED: FlowFlags = FlowFlags(1 << 12);
    /// The LAN's window field is still that of its SYN-ACK, which is not scaled.
    pub const WINDOW_UNSCALED: FlowFlags = FlowFlags(1 << 13);
    /// The numbers were not followed from the beginning, so segments cannot be judged by them.
    pub const UNJUDGED: FlowFlags = FlowFlags(1 << 14);
    /// The client has negotiated ECN, of either kind.
    pub const ECN: FlowFlags = FlowFlags(1 << 15);
    /// The server has negotiated ECN, of either kind.
    pub const ECN_LAN: FlowFlags = FlowFlags(1 << 16);
    /// The box's SYN to the server asks for ECN, because the client's did.
    pub const ECN_ASKED: FlowFlags = FlowFlags(1 << 17);
    /// A segment of an end that negotiated classic ECN, and whose peer did not, came with a congestion mark, and that end has not answered ECE with
    /// CWR yet.
    pub const ECHO_OWED: FlowFlags = FlowFlags(1 << 18);
    /// The client's data is held until the server answers.
    pub const EARLY: FlowFlags = FlowFlags(1 << 19);
    /// The client has sent data or acknowledged some.
    pub const CARRIED: FlowFlags = FlowFlags(1 << 20);
    /// A SYN was answered with a challenge ACK, and nothing has come from the client on this connection since. Before the server has answered: it was the
    /// server that answered the box's SYN so, because it remembers an older connection.
    pub const SYN_CHALLENGED: FlowFlags = FlowFlags(1 << 21);
    /// The server announced a smaller MSS than the client's SYN-ACK.
    pub const MSS_BROKEN: FlowFlags = FlowFlags(1 << 22);
    /// The server is reached under a second key, which lies in the table's side array.
    pub const REDIRECTED: FlowFlags = FlowFlags(1 << 23);
    /// The RST that was passed last came from the LAN.
    pub const RESET_LAN: FlowFlags = FlowFlags(1 << 24);
    /// The RST that was passed last came from the WAN. Before the server has answered: the client's RST, which passes when it has.
    pub const RESET_WAN: FlowFlags = FlowFlags(1 << 25);
    /// The SYN was signed, had an extension, or was repeated with other options: how such a connection is answered says nothing of others.
    pub const EXCEPTIONAL: FlowFlags = FlowFlags(1 << 26);
    /// The ECN that the client's SYN asked for, and the box's SYN asks for, is accurate ECN (RFC 9768). Once the server has answered: the ECN that the
    /// client negotiated is.
    pub const ACCURATE: FlowFlags = FlowFlags(1 << 27);
    /// The ECN that the server negotiated is accurate ECN.
    pub const ACCURATE_LAN: FlowFlags = FlowFlags(1 << 28);
    /// The server gets no echo of its timestamps from the box itself, until the client has sent something: it would take the LAN for the client's distance.
    pub const NO_ECHO: FlowFlags = FlowFlags(1 << 29);
    /// The LAN's frames bear a priority tag.
    pub const PRIORITY_LAN: FlowFlags = FlowFlags(1 << 30);
    /// The WAN's frames bear a priority tag.
    pub const PRIORITY_WAN: FlowFlags = FlowFlags(1 << 31);

    /// What asks for more of a segment of an established connection than to follow its numbers and translate them.
    pub const SLOW_PATH: FlowFlags = FlowFlags::REOPENING
        .and(FlowFlags::FIN_LAN)
        .and(FlowFlags::FIN_WAN)
        .and(FlowFlags::FRAGMENTED)
        .and(FlowFlags::WINDOW_UNSCALED)
        .and(FlowFlags::ECHO_OWED)
        .and(FlowFlags::SYN_CHALLENGED)
        .and(FlowFlags::MSS_BROKEN)
        .and(FlowFlags::REDIRECTED)
        .and(FlowFlags::PRIORITY_LAN)
        .and(FlowFlags::PRIORITY_WAN);

    /// No flag.
    pub const NONE: FlowFlags = FlowFlags(0);

    /// These flags if `wanted`, else none.
    #[inline(always)]
    pub(crate) const fn when(self, wanted: bool) -> FlowFlags {
        if wanted { self } else { FlowFlags::NONE }
    }

    pub(crate) const fn and(self, flags: FlowFlags) -> FlowFlags {
        FlowFlags(self.0 | flags.0)
    }

    pub(crate) const fn without(self, flags: FlowFlags) -> FlowFlags {
        FlowFlags(self.0 & !flags.0)
    }

    const fn priority(side: Side) -> FlowFlags {
        match side {
            Side::Lan => FlowFlags::PRIORITY_LAN,
            Side::Wan => FlowFlags::PRIORITY_WAN,
        }
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

    const fn reset(side: Side) -> FlowFlags {
        match side {
            Side::Lan => FlowFlags::RESET_LAN,
            Side::Wan => FlowFlags::RESET_WAN,
        }
    }
}

/// What is known of one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
    /// This end's scale (low four bits) and the one announced to the other end (high); 15 is "none".
    scales: u8,
    /// The hop limit this end's frames arrive with; zero if none has come.
    pub ttl: u8,
}

const NO_SCALE: u8 = 15;
/// The bits of a distance among those of the word it shares.
const DISTANCE: u16 = 0x3ff;

/// Where the ACE field of the end on this side is in that word.
const fn ace_at(side: Side) -> u32 {
    10 + 3 * side as u32
}

/// The bits of a class in a byte.
const CLASS: u8 = 0xfc;
/// The bit of `ends` that says that answers bear the VLAN tags of another network.
const OTHER_VLAN: u8 = 2;
/// The bit of `ends` that says that the server has opened the connection too.
const CROSSED: u8 = 2;

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

    /// Both scales: this end's in the low four bits, the one announced to the other end in the high four; 15 is "none".
    #[inline(always)]
    pub fn scales(&self) -> u8 {
        self.scales
    }
}

fn decode_scale(code: u8) -> Option<WindowScale> {
    (code != NO_SCALE).then(|| WindowScale::clamped(code))
}

/// How far a connection had got when it was inspected, and when that was: the low 19 bits of its [progress](Flow::progress); above them, whether it had
/// moved hardly anything before; and above that the low 12 bits of the time in units of 1024 ticks, which are about seconds, on a circle of 71 minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(u32);

const PROGRESS: u32 = (1 << 19) - 1;
const SLOW: u32 = 1 << 19;
const SECONDS: u32 = u32::MAX >> 20;

impl Snapshot {
    /// That of a connection, at this tick.
    pub(crate) fn of(flow: &Flow, tick: u32) -> Self {
        Self((tick >> 10) << 20 | flow.progress() & PROGRESS)
    }

    /// The same of a connection that has moved hardly anything.
    pub(crate) fn slow(self) -> Self {
        Self(self.0 | SLOW)
    }

    /// Whether the connection had moved hardly anything.
    pub(crate) fn is_slow(self) -> bool {
        self.0 & SLOW != 0
    }

    /// Seconds since `earlier`, and bytes that were acknowledged meanwhile, below 2^19.
    pub(crate) fn since(self, earlier: Snapshot) -> (u32, u32) {
        ((self.0 >> 20).wrapping_sub(earlier.0 >> 20) & SECONDS, self.0.wrapping_sub(earlier.0) & PROGRESS)
    }
}

/// The record of a connection. Fields that only the table and its timer wheel may set, or that are parsed, are private.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct Flow {
    // First line: which connection, its state and timer, and how far apart the numberings are.
    /// The keyed hash of the key.
    pub(super) hash: u64,
    lan: u32,
    wan: u32,
    lan_port: u16,
    wan_port: u16,
    vlan: Vlan,
    flags: FlowFlags,
    /// The [`State`].
    pub(super) state: u8,
    /// How often a timer has repeated what it repeats.
    pub attempts: u8,
    /// Where the wheel has filed it.
    pub(super) slot: u16,
    /// Ticks at which something is due; the wheel looks again when the slot it filed this under comes up.
    pub(super) deadline: u32,
    pub(super) link_next: u32,
    pub(super) link_prev: u32,
    /// From the server's sequence numbers to the ones the client knows.
    pub seq_delta: SeqDelta,
    /// From the server's timestamps (or, if it has none, from the box's clock in milliseconds) to the ones the client knows.
    pub ts_delta: SeqDelta,
    macs: [Mac; 2],
    // Second line: the two ends.
    endpoints: PerSide<Endpoint>,
    /// The number the client's SYN was answered with.
    pub outer_isn: SeqNum,
    /// The first TSval the client can have seen of the server itself.
    pub ts_base: u32,
    /// The tick at which the server's SYN was first sent.
    pub born: u32,
    /// The MSS the client announced.
    pub mss: u16,
    /// The MSS the server announced, if the client's SYN-ACK has a larger one.
    pub mss_lan: u16,
    /// Counts the uses of this record.
    pub(super) generation: u16,
    /// In the low ten bits, ticks from the box's SYN-ACK to the client's acknowledgement; zero if not known. Above them the ACE field of each end, the
    /// LAN's first: what it said last, or what the box says in its name.
    distance_and_aces: u16,
    /// The first held frame: its place in the hold queue plus one, zero for none.
    pub held: u16,
    /// Which set of timeouts holds for it.
    pub profile: u16,
    /// The half-second in which this flow was last sent a challenge, on a circle.
    pub challenged: u8,
    /// The priorities of the VLAN tags of the client's frames, outer in the low four bits; of the server's, if those alone have tags.
    priorities: u8,
    /// Of the LAN and the WAN: the class of that end's segments in the upper six bits. In bit 0, of the LAN's the side the client is on and of the
    /// WAN's the side the server is on: 0 the LAN, 1 the WAN. In bit 1 of the LAN's, whether the connection has [answers of another
    /// VLAN](Flow::has_other_vlan); of the WAN's, whether the server [has opened it too](Flow::is_crossed).
    ends: [u8; 2],
    /// The number of the RST that was passed last, where it came behind the handshakes. In an entry of the SYN cache: what its SYN offered. In a
    /// connection of which no RST was passed: the [`Snapshot`] of its last inspection or of its beginning, zero if there is none.
    reset_at: SeqNum,
}

const _: () = assert!(size_of::<Flow>() == 128, "a lookup touches two cache lines");

impl Flow {
    /// A record that is not in use yet, of a connection whose client is on `client`.
    pub(super) fn new(key: &FlowKey, hash: u64, generation: u16, client: Side) -> Self {
        let flags = if key.v6 { FlowFlags::V6 } else { FlowFlags::default() };
        let (lan, wan) = (key.lan[3], key.wan[3]);
        let FlowKey { lan_port, wan_port, vlan, .. } = *key;
        let ends = [client as u8, client.other() as u8];
        Self { lan, wan, lan_port, wan_port, vlan, flags, hash, generation, ends, ..Self::default() }
    }

    /// Whether a record that another process left can be one of a living connection, and if so brings it in line: its state and sides parse, and its hash
    /// is that of its key.
    pub(super) fn make_plausible(&mut self, upper: &[[u32; 3]; 2], keys: Keys) -> bool {
        self.settle();
        State::parse(self.state).is_some_and(|state| state != State::Free)
            && self.client() != self.server()
            && self.key(upper).hash(keys) == self.hash
    }

    /// Brings flags and state of a record that another process left in line, should they disagree: the FINs determine the state of a
    /// connection, and the state whether the box answered for the server.
    fn settle(&mut self) {
        match self.state() {
            State::Established | State::FinWait | State::LastAck | State::TimeWait => {
                self.state = self.state_by_fins() as u8
            }
            State::AckWithheld | State::WindowPending if self.state_by_fins() != State::Established => {
                self.state = self.state_by_fins() as u8;
            }
            State::SynCached
            | State::ServerSynSent
            | State::ServerTried
            | State::Gathering
            | State::Repeating
            | State::AckWithheld
            | State::WindowPending => {
                self.set(FlowFlags::PROXIED, true);
            }
            State::SynSent | State::SynReceived | State::Unconfirmed => self.set(FlowFlags::PROXIED, false),
            // What the kernel has followed since is found when the flow is looked at.
            State::HandedDown => {
                if self.state_by_fins() != State::Established {
                    self.state = self.state_by_fins() as u8;
                }
            }
            State::Free | State::Reset => {}
        }
    }

    /// The state.
    #[inline(always)]
    pub fn state(&self) -> State {
        State::parse(self.state).unwrap_or_default()
    }

    /// Whether this is the state.
    #[inline(always)]
    pub fn is_in(&self, state: State) -> bool {
        self.state == state as u8
    }

    /// How often this record has been used, on a circle.
    pub fn generation(&self) -> u16 {
        self.generation
    }

    /// The keyed hash of the key.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The tick at which its timer is due.
    pub fn deadline(&self) -> u32 {
        self.deadline
    }

    /// The side the client is on, who sent the first SYN.
    pub fn client(&self) -> Side {
        if self.ends[0] & 1 == 0 { Side::Lan } else { Side::Wan }
    }

    /// The side the server is on.
    pub fn server(&self) -> Side {
        if self.ends[1] & 1 == 0 { Side::Lan } else { Side::Wan }
    }

    /// Sets the side the client is on; the server is on the other one.
    pub fn set_client(&mut self, client: Side) {
        for (end, side) in self.ends.iter_mut().zip([client, client.other()]) {
            *end = *end & CLASS | side as u8;
        }
    }

    /// Whether the part of the ends that is held here is theirs.
    #[inline(always)]
    pub(super) fn fits(&self, key: &FlowKey) -> bool {
        // One branch instead of six.
        let ports = u32::from((self.lan_port ^ key.lan_port) | (self.wan_port ^ key.wan_port));
        let version = self.flags.0 & FlowFlags::V6.0 ^ if key.v6 { FlowFlags::V6.0 } else { 0 };
        (self.lan ^ key.lan[3]) | (self.wan ^ key.wan[3]) | (self.vlan.0 ^ key.vlan.0) | ports | version == 0
    }

    /// The VLAN tags of the key.
    pub fn vlan(&self) -> Vlan {
        self.vlan
    }

    /// The ends, with `upper` the words of the addresses that are not held here.
    pub(super) fn key(&self, upper: &[[u32; 3]; 2]) -> FlowKey {
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

    /// Whether any of these flags is set.
    #[inline(always)]
    pub fn is(&self, set: FlowFlags) -> bool {
        self.flags.0 & set.0 != 0
    }

    /// Those of these flags that are set.
    #[inline(always)]
    pub fn among(&self, set: FlowFlags) -> FlowFlags {
        FlowFlags(self.flags.0 & set.0)
    }

    /// Whether all of these flags are set.
    pub fn is_all(&self, flags: &[FlowFlags]) -> bool {
        flags.iter().all(|&set| self.is(set))
    }

    /// Sets or clears a flag.
    pub fn set(&mut self, flag: FlowFlags, on: bool) {
        if on {
            self.flags.0 |= flag.0;
        } else {
            self.flags.0 &= !flag.0;
        }
    }

    /// Of `these` flags sets those that are in `set`, and clears the others.
    #[inline(always)]
    pub(crate) fn replace(&mut self, these: FlowFlags, set: FlowFlags) {
        self.flags.0 = self.flags.0 & !these.0 | set.0;
    }

    /// Clears these flags.
    pub fn clear(&mut self, flags: &[FlowFlags]) {
        for set in flags {
            self.flags.0 &= !set.0;
        }
    }

    /// Sets a flag if `on` says so, and never clears it.
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

    /// Sets the Ethernet address by which the end on this side is reached.
    pub fn set_mac(&mut self, side: Side, mac: Mac) {
        self.macs[side as usize] = mac;
    }

    /// The class of the segments of the end on this side, in the upper six bits.
    pub fn class(&self, side: Side) -> u8 {
        self.ends[side as usize] & CLASS
    }

    /// Ticks from the box's SYN-ACK to the client's acknowledgement; zero if not known.
    pub fn distance(&self) -> u16 {
        self.distance_and_aces & DISTANCE
    }

    /// Notes the ticks from the box's SYN-ACK to the client's acknowledgement: fewer than 1024.
    pub fn set_distance(&mut self, ticks: u16) {
        self.distance_and_aces = self.distance_and_aces & !DISTANCE | ticks & DISTANCE;
    }

    /// The ACE field of the end on this side, as [`ecn`](super::ecn) says; meaningful where the other end negotiated accurate ECN.
    #[inline(always)]
    pub fn ace(&self, side: Side) -> Ace {
        Ace((self.distance_and_aces >> ace_at(side) & 7) as u8)
    }

    /// Notes the ACE field of the end on this side.
    pub fn set_ace(&mut self, side: Side, ace: Ace) {
        let at = ace_at(side);
        self.distance_and_aces = self.distance_and_aces & !(7 << at) | u16::from(ace.0 & 7) << at;
    }

    /// The ECN that the SYN asked for which is answered now. RFC 3168 section 6.1.1.1: a SYN that is repeated asks no more. RFC 9768 section 3.1.4.1:
    /// for accurate ECN, it asks once more.
    pub fn syn_ecn(&self) -> EcnSetup {
        match (self.is(FlowFlags::ECN_ASKED), self.is(FlowFlags::ACCURATE), self.attempts) {
            (true, false, 0) => EcnSetup::Classic,
            (true, true, 0..=1) => EcnSetup::Accurate,
            _ => EcnSetup::None,
        }
    }

    /// Notes the class of the segments of the end on this side.
    pub fn set_class(&mut self, side: Side, class: u8) {
        let end = &mut self.ends[side as usize];
        *end = *end & !CLASS | class & CLASS;
    }

    /// Keeps the link-layer path of a frame from `side`, and its class: where it came from and went to, and its tags. Until the other side sends, its
    /// frames are taken to be like this one.
    pub fn keep_path(&mut self, side: Side, envelope: &Envelope) {
        self.macs[side.other() as usize] = envelope.to;
        if envelope.from[0] & GROUP == 0 {
            self.macs[side as usize] = envelope.from;
        }
        self.set_class(side, envelope.class);
        let both = FlowFlags::PRIORITY_LAN.and(FlowFlags::PRIORITY_WAN);
        self.replace(both, both.when(envelope.tags.has_priority_tag()));
        self.priorities = envelope.tags.priorities();
    }

    /// Keeps where a frame from `side` came from, and its tags: there its sender is from now on.
    pub fn follow_path(&mut self, side: Side, envelope: &Envelope) {
        if envelope.from[0] & GROUP == 0 {
            self.macs[side as usize] = envelope.from;
        }
        self.set(FlowFlags::priority(side), envelope.tags.has_priority_tag());
        if self.priorities == 0 || side == self.client() && !envelope.tags.is_empty() {
            self.priorities = envelope.tags.priorities();
        }
    }

    /// Whether a frame from `side` came as the last one that was followed.
    pub fn is_on_path(&self, side: Side, envelope: &Envelope) -> bool {
        (self.macs[side as usize] == envelope.from || envelope.from[0] & GROUP != 0)
            && self.is(FlowFlags::priority(side)) == envelope.tags.has_priority_tag()
    }

    /// Whether the lower four bytes of the source address of a frame from `side` are those of its end: the part in which stations of one network
    /// differ.
    #[inline(always)]
    pub fn comes_from(&self, side: Side, frame: &[u8]) -> bool {
        let [_, _, own @ ..] = self.macs[side as usize];
        frame.get(8..12) == Some(&own)
    }

    /// The VLAN tags of a frame of the network `vlan` in the name of the end on `side`.
    pub fn tags(&self, side: Side, vlan: Vlan) -> Tags {
        Tags::of_network(vlan, self.is(FlowFlags::priority(side)), self.priorities)
    }

    /// Whether the frames of the side that did not open the connection bear the VLAN tags of another network than the key's.
    pub fn has_other_vlan(&self) -> bool {
        self.ends[0] & OTHER_VLAN != 0
    }

    /// Notes whether they do.
    pub fn set_other_vlan(&mut self, on: bool) {
        self.ends[0] = self.ends[0] & !OTHER_VLAN | if on { OTHER_VLAN } else { 0 };
    }

    /// Whether the server has sent a SYN of its own, which waits for a SYN-ACK in the client's name; in the SYN cache: for the client's proof.
    pub fn is_crossed(&self) -> bool {
        self.ends[1] & CROSSED != 0
    }

    /// Notes whether it has.
    pub fn set_crossed(&mut self, on: bool) {
        self.ends[1] = self.ends[1] & !CROSSED | if on { CROSSED } else { 0 };
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

    /// Notes a RST with this number in the name of the end on `side`, which has been passed. Of several the one counts that its receiver would
    /// have accepted last.
    pub fn note_reset(&mut self, side: Side, number: SeqNum) {
        let flag = FlowFlags::reset(side);
        let is_earlier = self.is(flag) && number.before(self.reset_at);
        self.reset_at = if is_earlier { self.reset_at } else { number };
        self.set(FlowFlags::reset(side.other()), false);
        self.set(flag, true);
    }

    /// What the SYN of an entry of the SYN cache offered, in one number.
    pub fn offered(&self) -> u32 {
        self.reset_at.get()
    }

    /// Keeps what the SYN of an entry of the SYN cache offers.
    pub fn set_offered(&mut self, summary: u32) {
        self.reset_at = SeqNum::new(summary);
    }

    /// Bytes that both ends have acknowledged, on a circle: what moves on while data flows, and stands still while there are only probes and
    /// keepalives.
    pub(crate) fn progress(&self) -> u32 {
        self.endpoints[Side::Lan].acked.get().wrapping_add(self.endpoints[Side::Wan].acked.get())
    }

    /// Bytes of the server that the client has acknowledged, on a circle; of a connection that is passed through, bytes that the client has sent.
    pub(crate) fn carried(&self) -> u32 {
        let reached = match self.is(FlowFlags::PROXIED) {
            true => self.endpoints[Side::Wan].acked,
            false => self.endpoints[self.client()].next,
        };
        reached.beyond(self.outer_isn + 1)
    }

    /// The snapshot of the last inspection or of the beginning, if there is one and no RST has been passed since.
    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        let is_taken = self.reset_at != SeqNum::default() && self.has_room_for_snapshot();
        is_taken.then_some(Snapshot(self.reset_at.get()))
    }

    /// Keeps a snapshot, if no RST has been passed.
    pub(crate) fn keep_snapshot(&mut self, snapshot: Snapshot) {
        if self.has_room_for_snapshot() {
            self.reset_at = SeqNum::new(snapshot.0);
        }
    }

    fn has_room_for_snapshot(&self) -> bool {
        !self.is(FlowFlags::RESET_LAN.and(FlowFlags::RESET_WAN)) && !self.is_in(State::SynCached)
    }

    /// Whether an acknowledgement of `side` proves that this end has not accepted the RST that was passed to it. RFC 9293 section 3.10.7.4 and RFC
    /// 5961 section 3.2: a RST is accepted with the number that its receiver expects next. The receiver then sends no more, so it never acknowledges
    /// anything beyond that number.
    pub fn disproves_reset(&self, side: Side, ack: SeqNum) -> bool {
        self.is(FlowFlags::reset(side.other())) && ack.after(self.reset_at)
    }

    /// Whether the RST that was passed has a number in the middle of what its sender has sent. A stack that aborts resets behind all that it has sent.
    pub fn is_reset_in_doubt(&self) -> bool {
        Side::BOTH.iter().any(|&side| self.is(FlowFlags::reset(side)) && self.reset_at.before(self.endpoint(side).next))
    }

    /// Forgets the RST: its receiver goes on.
    pub fn outlive_reset(&mut self) {
        self.clear(&[FlowFlags::RESET_LAN, FlowFlags::RESET_WAN]);
        self.reset_at = SeqNum::default();
    }

    /// The state the FINs lead to.
    pub fn state_by_fins(&self) -> State {
        match (self.has_finished(Side::Lan), self.has_finished(Side::Wan)) {
            _ if self.is_all(&[FlowFlags::FIN_LAN_ACKED, FlowFlags::FIN_WAN_ACKED]) => State::TimeWait,
            (true, true) => State::LastAck,
            (false, false) => State::Established,
            _ => State::FinWait,
        }
    }

    /// Whether nothing more is to be expected of the flow, so that a new connection may take its key.
    pub fn is_over(&self) -> bool {
        self.state().is_over()
    }

    /// The window the end on this side grants.
    pub fn granted(&self, side: Side) -> Window {
        let endpoint = &self.endpoints[side];
        if side == Side::Lan && self.is(FlowFlags::WINDOW_UNSCALED) {
            return Window(endpoint.window.0.into());
        }
        endpoint.window << endpoint.scale().unwrap_or_default()
    }

    /// The window field, for the other end, that expresses what the end on this side grants.
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
