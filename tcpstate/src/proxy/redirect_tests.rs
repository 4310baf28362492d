//! A flow whose server has a key of its own: a simple model says what every segment looks like on each wire, and the engine must agree with it
//! to the last byte, both ways, in ICMP errors and in what it says itself.

use super::test_segments::{TestSegment, key};
use super::tests::NoEgress;
use super::{Memory, Proxy, Secrets};
use crate::flow::table::{Id, Redirect, Slab};
use crate::flow::{FlowFlags, State};
use crate::seq::{RawWindow, SeqDelta, SeqNum};
use crate::wire::{Flags, FlowKey, put32};
use crate::{Config, DropReason, Head, Instant, PerSide, Side, Verdict};
use etherparse::PacketBuilder;
use proptest::prelude::*;

const NOW: Instant = Instant::from_secs(1000);
/// The port that the server has, other than the client knows.
const SECOND_PORT: u16 = 8080;
/// The last word of the address that the server sees, if that is the box's.
const SECOND_CLIENT: u32 = 0x0c00_0009;

/// What is added to the numbers and the timestamps of each end on their way to the other.
#[derive(Clone, Copy, Debug)]
struct Deltas(PerSide<(u32, u32)>);

/// What a segment says, in the numbers of the WAN.
#[derive(Clone, Debug)]
struct Said {
    from: Side,
    seq: u32,
    ack: u32,
    flags: u16,
    sack: Option<(u32, u32)>,
    timestamps: (u32, u32),
    payload: usize,
    v6: bool,
    /// Whether the server sees an address of the box.
    full: bool,
}

impl Said {
    /// The segment as it stands on the wire of this side.
    fn on(&self, wire: Side, deltas: &Deltas) -> TestSegment {
        let moved = |end: Side| match (end, wire) {
            (_, Side::Wan) => (0, 0),
            (Side::Wan, Side::Lan) => deltas.0[Side::Wan],
            (Side::Lan, Side::Lan) => (deltas.0[Side::Lan].0.wrapping_neg(), deltas.0[Side::Lan].1.wrapping_neg()),
        };
        let (own, other) = (moved(self.from), moved(self.from.other()));
        let mut options = vec![1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0];
        put32(&mut options, 4, self.timestamps.0.wrapping_add(own.1));
        put32(&mut options, 8, self.timestamps.1.wrapping_add(other.1));
        if let Some((first, last)) = self.sack {
            options.extend([1, 1, 5, 10]);
            options.extend([first, last].map(|edge| edge.wrapping_add(other.0).to_be_bytes()).concat());
        }
        TestSegment {
            side: self.from,
            v6: self.v6,
            client: if wire == Side::Lan && self.full { SECOND_CLIENT } else { key(self.v6).wan[3] },
            lan_port: if wire == Side::Lan { SECOND_PORT } else { key(self.v6).lan_port },
            seq: self.seq.wrapping_add(own.0),
            ack: self.ack.wrapping_add(other.0),
            flags: self.flags,
            options,
            payload: self.payload,
            ..TestSegment::default()
        }
    }
}

/// What one end has done, in the numbers of the WAN.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    sent: u32,
    acked: u32,
    clock: u32,
}

/// One step: who sends, how far behind the newest byte, how much, how much of what has come is acknowledged, whether with a SACK block, and how
/// much of the segment an error quotes.
type Step = (Side, u32, usize, u32, bool, usize);

fn step() -> impl Strategy<Value = Step> {
    let side = prop_oneof![Just(Side::Lan), Just(Side::Wan)];
    let behind = prop_oneof![3 => Just(0u32), 1 => 1u32..2000];
    (side, behind, 0usize..1200, 0u32..=100, any::<bool>(), prop::sample::select(vec![8, 12, 16, 2000]))
}

struct World {
    proxy: Proxy,
    id: Id,
    deltas: Deltas,
    ends: PerSide<End>,
    v6: bool,
    full: bool,
}

impl World {
    fn new(isns: (u32, u32), clocks: (u32, u32), deltas: Deltas, v6: bool, full: bool) -> Self {
        let config = Config { table_buckets: 4, learn_capacity: 64, syn_cache_max: 4, ..Config::default() };
        let slab = Slab::anonymous(config.flow_capacity(), true);
        let memory = Memory { slab, ..Memory::anonymous(&config) };
        let mut proxy = Proxy::with_memory(&config, &Secrets::new([7; 48]), NOW, memory);
        let key = key(v6);
        let ends = PerSide::new(
            End { sent: isns.0, acked: isns.1, clock: clocks.0 },
            End { sent: isns.1, acked: isns.0, clock: clocks.1 },
        );
        let [(server_seq, server_ts), (client_seq, client_ts)] = [deltas.0[Side::Lan], deltas.0[Side::Wan]];
        let delta = |by| SeqDelta::between(0, by);
        let id = proxy.admit(&key, key.hash(proxy.settings.hash_keys), Side::Wan, State::Established, NOW, |flow| {
            for flag in [
                FlowFlags::PROXIED,
                FlowFlags::TIMESTAMPS,
                FlowFlags::TIMESTAMPS_LAN,
                FlowFlags::SACK,
                FlowFlags::SACK_LAN,
            ] {
                flow.set(flag, true);
            }
            (flow.seq_delta, flow.ts_delta, flow.mss) = (delta(server_seq), delta(server_ts), 1460);
            (flow.outer_isn, flow.ts_base) = (SeqNum::new(isns.0) - 1, clocks.0);
            for side in Side::BOTH {
                let endpoint = flow.endpoint_mut(side);
                endpoint.set_scales(None, None);
                (endpoint.next, endpoint.acked) = (SeqNum::new(ends[side].sent), SeqNum::new(ends[side].acked));
                (endpoint.ts_value, endpoint.window, endpoint.ttl) = (ends[side].clock, RawWindow(64_240), 60);
            }
        });
        let id = id.expect("an empty table has room");
        let mut own = FlowKey { lan_port: SECOND_PORT, ..key };
        if full {
            own.wan[3] = SECOND_CLIENT;
        }
        let mut redirect = Redirect::new(&own, own.hash(proxy.settings.hash_keys), Side::Wan, Side::Lan);
        (redirect.seq_delta, redirect.ts_delta) = (delta(client_seq), delta(client_ts));
        redirect.kept_to = SeqNum::new(ends[Side::Lan].acked);
        redirect.own_mac = if full { [2, 0, 0, 0, 0, 9] } else { [0; 6] };
        assert!(proxy.table.redirect(id, redirect));
        Self { proxy, id, deltas, ends, v6, full }
    }

    /// What becomes of a frame, and the frame then.
    fn takes(&mut self, side: Side, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let mut buffer = [&[0; 64], frame, &[0; 192]].concat();
        let mut head = Head::new(&mut buffer, 64, frame.len(), frame.len());
        let verdict = self.proxy.on_single(side, &mut head, NOW, &mut NoEgress);
        (verdict, head.bytes().to_vec())
    }

    /// A segment of the end on `from` with these flags besides ACK.
    fn said(&mut self, from: Side, behind: u32, payload: usize, flags: u16) -> Said {
        self.ends[from].clock = self.ends[from].clock.wrapping_add(1);
        let (own, other) = (self.ends[from], self.ends[from.other()]);
        let seq = own.sent.wrapping_sub(behind);
        let timestamps = (own.clock, other.clock);
        let flags = flags | Flags::ACK.0;
        Said { from, seq, ack: own.acked, flags, sack: None, timestamps, payload, v6: self.v6, full: self.full }
    }

    /// The segment passes, and looks as the model says.
    fn passes(&mut self, said: &Said) -> Result<(), TestCaseError> {
        let (sent, expected) = (said.on(said.from, &self.deltas), said.on(said.from.other(), &self.deltas));
        let (verdict, passed) = self.takes(said.from, &sent.frame());
        prop_assert_eq!(verdict, Verdict::Forward, "{:?}", said);
        // Ethernet addresses are those of the stations, where the box has one of its own.
        let from = if self.full { 12 } else { 0 };
        prop_assert_eq!(&passed[from..], &expected.frame()[from..], "{:?}", said);
        Ok(())
    }

    /// An error about a segment that has passed reaches its sender with the quote of what that has sent, if it is in flight.
    fn quotes(&mut self, said: &Said, seen: usize) -> Result<(), TestCaseError> {
        let error = |wire: Side| {
            let frame = said.on(wire, &self.deltas).frame();
            let ip = if self.v6 { 40 } else { 20 };
            let packet = &frame[14..14 + ip + 20 + said.on(wire, &self.deltas).options.len() + said.payload];
            error_about(&packet[..packet.len().min(ip + seen)], self.v6)
        };
        let reports = said.from.other();
        let (told, expected) = (error(reports), error(said.from));
        let (acked, sent) = (self.ends[reports].acked, self.ends[said.from].sent);
        let is_in_flight = SeqNum::new(said.seq).within(SeqNum::new(acked), SeqNum::new(sent));
        let (verdict, passed) = self.takes(reports, &told);
        if is_in_flight {
            prop_assert_eq!(verdict, Verdict::Forward);
            // The frame of an error to the server goes to the server's station.
            let from = if self.full { 12 } else { 6 };
            prop_assert_eq!(&passed[from..], &expected[from..], "{:?}, of which {} bytes are quoted", said, seen);
        } else {
            prop_assert_eq!(verdict, Verdict::Drop(DropReason::IcmpNotInFlight));
        }
        Ok(())
    }

    fn take(&mut self, (from, behind, payload, share, sacks, seen): Step) -> Result<(), TestCaseError> {
        let other = from.other();
        // What has come, and how much of it is acknowledged now.
        let unacked = self.ends[other].sent.wrapping_sub(self.ends[from].acked);
        self.ends[from].acked =
            self.ends[from].acked.wrapping_add((u64::from(unacked) * u64::from(share) / 100) as u32);
        // The window takes no more.
        let in_flight = self.ends[from].sent.wrapping_sub(self.ends[other].acked);
        let payload = if in_flight > 60_000 { 0 } else { payload };
        let behind = behind.min(in_flight);
        let mut said = self.said(from, behind, payload, 0);
        if sacks {
            let first = self.ends[from].acked.wrapping_add(300);
            said.sack = Some((first, first.wrapping_add(700)));
        }
        let end = said.seq.wrapping_add(payload as u32);
        self.ends[from].sent = SeqNum::later(self.ends[from].sent, end);
        self.passes(&said)?;
        self.quotes(&said, seen)
    }

    /// Both ends close; the engine follows it to the last acknowledgement.
    fn closes(&mut self) -> Result<(), TestCaseError> {
        for side in Side::BOTH {
            self.ends[side].acked = self.ends[side.other()].sent;
        }
        for from in Side::BOTH {
            let fin = self.said(from, 0, 0, Flags::FIN.0);
            self.passes(&fin)?;
            self.ends[from].sent = self.ends[from].sent.wrapping_add(1);
            self.ends[from.other()].acked = self.ends[from].sent;
            let acknowledgement = self.said(from.other(), 0, 0, 0);
            self.passes(&acknowledgement)?;
        }
        prop_assert_eq!(self.proxy.table[self.id].state(), State::TimeWait);
        Ok(())
    }

    /// A SYN of the server on the open connection is challenged in the client's name, by what the client would say to the server.
    fn challenges(&mut self) -> Result<(), TestCaseError> {
        let syn =
            TestSegment { seq: 99, flags: Flags::SYN.0, ..self.said(Side::Lan, 0, 0, 0).on(Side::Lan, &self.deltas) };
        let (verdict, answer) = self.takes(Side::Lan, &TestSegment { ack: 0, ..syn }.frame());
        prop_assert_eq!(verdict, Verdict::Reflect);
        self.ends[Side::Lan].clock = self.ends[Side::Lan].clock.wrapping_sub(1);
        let client = self.ends[Side::Wan];
        let said = Said {
            from: Side::Wan,
            seq: client.sent,
            ack: client.acked,
            flags: Flags::ACK.0,
            sack: None,
            timestamps: (client.clock, self.ends[Side::Lan].clock),
            payload: 0,
            v6: self.v6,
            full: self.full,
        };
        let expected = said.on(Side::Lan, &self.deltas).frame();
        let tcp = if self.v6 { 54 } else { 34 };
        // Ports, numbers and options; the rest is the box's own.
        prop_assert_eq!(&answer[tcp..tcp + 12], &expected[tcp..tcp + 12]);
        prop_assert_eq!(&answer[tcp + 20..tcp + 32], &expected[tcp + 20..tcp + 32]);
        Ok(())
    }
}

/// An error of a router about this packet.
fn error_about(packet: &[u8], v6: bool) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let mut frame = Vec::new();
    if v6 {
        let sender = packet[8..24].try_into().expect("an address");
        let builder = link.ipv6([9; 16], sender, 64).icmpv6_raw(1, 0, [0; 4]);
        builder.write(&mut frame, packet).expect("room");
    } else {
        let sender = packet[12..16].try_into().expect("an address");
        let builder = link.ipv4([9; 4], sender, 64).icmpv4_raw(3, 1, [0; 4]);
        builder.write(&mut frame, packet).expect("room");
    }
    frame
}

#[test]
fn four_gigabytes_on_the_numbers_of_what_the_box_said_are_the_server_s() {
    let mut world = World::new((1000, 5000), (1000, 2000), Deltas(PerSide::new((5, 6), (0, 0))), false, false);
    let id = world.id;
    world.proxy.table.update(id, |flow| flow.outer_isn = SeqNum::new(1050));
    world.take((Side::Wan, 0, 100, 0, false, 8)).expect("it acknowledges what it has got, and no more");
    // Likewise the other way round.
    world.proxy.table.beside_mut(id).expect("it has a second key").kept_to = SeqNum::new(5050);
    world.take((Side::Lan, 0, 100, 0, false, 8)).expect("it acknowledges what it has got, and no more");
}

/// A damaged segment passes as it is, and its receiver drops it. What it says must not come to him by another one.
#[test]
fn what_a_damaged_segment_acknowledges_no_sound_one_does() {
    let mut world = World::new((1000, 5000), (1000, 2000), Deltas(PerSide::new((5, 6), (7, 8))), false, false);
    for _ in 0..2 {
        world.take((Side::Wan, 0, 1000, 0, false, 8)).expect("it passes");
    }
    let mut damaged = world.said(Side::Lan, 0, 10, 0);
    damaged.ack = world.ends[Side::Wan].sent;
    let (verdict, _) =
        world.takes(Side::Lan, &TestSegment { damaged: true, ..damaged.on(Side::Lan, &world.deltas) }.frame());
    assert_eq!(verdict, Verdict::Forward);
    world.take((Side::Lan, 0, 10, 50, false, 8)).expect("it acknowledges half of it");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_redirected_flow_is_translated_as_the_model_says(
        isns in any::<(u32, u32)>(),
        clocks in any::<(u32, u32)>(),
        server in any::<(u32, u32)>(),
        client in prop_oneof![any::<(u32, u32)>(), (1u32..2000, Just(0u32)), Just((0u32, 0u32))],
        (v6, full) in any::<(bool, bool)>(),
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let mut world = World::new(isns, clocks, Deltas(PerSide::new(server, client)), v6, full);
        for step in steps {
            world.take(step)?;
        }
        world.challenges()?;
        world.closes()?;
    }

    #[test]
    fn a_redirected_flow_outlives_its_process(isns in any::<(u32, u32)>(), client in any::<(u32, u32)>()) {
        let mut world = World::new(isns, (1000, 2000), Deltas(PerSide::new((5, 6), client)), false, false);
        world.take((Side::Wan, 0, 100, 0, true, 8))?;
        let config = Config { table_buckets: 4, learn_capacity: 64, syn_cache_max: 4, ..Config::default() };
        let memory = |slab| Memory { slab, ..Memory::anonymous(&config) };
        let secrets = Secrets::new([7; 48]);
        world.proxy = Proxy::with_memory(&config, &secrets, NOW, memory(world.proxy.into_slab()));
        world.take((Side::Lan, 0, 100, 100, true, 8))?;
        world.closes()?;
        // Not so without the side array: then nobody knows its numbers.
        let mut slab = Slab::anonymous(config.flow_capacity(), false);
        let bytes = world.proxy.into_slab().bytes_mut().to_vec();
        slab.bytes_mut().copy_from_slice(&bytes);
        let without = Proxy::with_memory(&config, &secrets, NOW, memory(slab));
        prop_assert_eq!(without.population().proxied, 0);
    }

    /// The ends of a redirected flow are reset by numbers they know.
    #[test]
    fn resets_of_a_redirected_flow_are_judged_by_its_numbers(isns in any::<(u32, u32)>(), client in any::<(u32, u32)>()) {
        for from in Side::BOTH {
            let mut world = World::new(isns, (1000, 2000), Deltas(PerSide::new((5, 6), client)), false, false);
            world.take((Side::Wan, 0, 100, 0, false, 8))?;
            world.take((Side::Lan, 0, 100, 100, false, 8))?;
            world.take((Side::Wan, 0, 0, 100, false, 8))?;
            let mut reset = world.said(from, 0, 0, 0);
            reset.flags = Flags::RST.0;
            let far = Said { seq: reset.seq.wrapping_add(1 << 20), ..reset.clone() };
            let (verdict, _) = world.takes(from, &far.on(from, &world.deltas).frame());
            prop_assert_eq!(verdict, Verdict::Drop(DropReason::BadReset));
            let (verdict, _) = world.takes(from, &reset.on(from, &world.deltas).frame());
            prop_assert_eq!(verdict, Verdict::Forward);
            prop_assert_eq!(world.proxy.table[world.id].state(), State::Reset);
        }
    }
}
