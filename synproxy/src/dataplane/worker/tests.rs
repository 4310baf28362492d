//! A worker between two wires in memory, with an engine that does what each frame says, and with the proxy.

mod several_workers;

use super::super::engine::Bypass;
use super::*;
use crate::dataplane::commands::CommandSender;
use crate::metrics::descriptors::{FlowGauge, HandoffMetric, Metric, PortMetric};
use crate::metrics::prometheus;
use crate::metrics::snapshot::Board;
use confparse::Poll;
use pktio::memory::{self, MemoryWire};
use std::collections::VecDeque;
use tcpstate::{Counters, DropReason, Egress, Event, Head, Population, Ticket};

/// An engine that does with a frame what the frame's first byte says.
#[derive(Default)]
struct Scripted {
    counters: Counters,
    /// Frames parsed but not yet decided on.
    parsed: std::cell::Cell<usize>,
    /// The most there were at once.
    deepest: usize,
    dropped: usize,
    emitted: usize,
    refused: usize,
    /// Segments to send at the next time-out.
    due: usize,
    /// Slots of the hold buffer.
    slots: u16,
    /// The free ones, and how often slots were used.
    free: Vec<u16>,
    generation: u16,
    /// Tickets not released yet, and those released: to be forwarded, or to be dropped.
    held: VecDeque<Ticket>,
    released: VecDeque<(Ticket, bool)>,
    /// Whether the next time-out drops all that is held.
    releases_all: bool,
    voided: usize,
    /// When the kernel forwarded the segment before the last frame.
    forwarded: Option<Instant>,
}

impl Scripted {
    /// One that holds up to this many frames.
    fn with_slots(slots: u16) -> Self {
        Self { slots, free: (0..slots).collect(), ..Self::default() }
    }

    /// Drops a frame and counts it.
    fn drop(&mut self, reason: DropReason) -> Verdict {
        self.dropped += 1;
        Verdict::Drop(reason)
    }

    fn hold(&mut self) -> Verdict {
        let Some(index) = self.free.pop() else { return self.drop(DropReason::NotHeld) };
        self.generation += 1;
        let ticket = Ticket { index, generation: self.generation };
        self.held.push_back(ticket);
        Verdict::Hold(ticket)
    }

    fn release(&mut self, count: usize, deliver: bool) {
        let tickets = self.held.drain(..count.min(self.held.len()));
        self.released.extend(tickets.map(|ticket| (ticket, deliver)));
    }

    fn emit(&mut self, to: Side, egress: &mut impl Egress) {
        let written = egress.emit(to, |buffer| {
            buffer[..5].copy_from_slice(b"hello");
            5
        });
        *if written { &mut self.emitted } else { &mut self.refused } += 1;
    }
}

impl Engine for Scripted {
    fn parse(&self, _: Side, _: &Head<'_>, _: &mut Metadata) {
        self.parsed.update(|parsed| parsed + 1);
    }

    fn prefetch(&self, _: &mut Metadata) {}

    fn on_frame(
        &mut self,
        side: Side,
        _: &Metadata,
        head: &mut Head<'_>,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict {
        self.deepest = self.deepest.max(self.parsed.get());
        self.parsed.update(|parsed| parsed - 1);
        match head.bytes()[0] {
            b'r' => Verdict::Reflect,
            b'd' => self.drop(DropReason::Malformed),
            b'e' => {
                self.emit(side.other(), egress);
                self.drop(DropReason::Consumed)
            }
            b'h' if side == Side::Wan => self.hold(),
            b'2' => {
                self.release(2, true);
                Verdict::Reflect
            }
            b'n' => {
                self.release(1, false);
                Verdict::Forward
            }
            b'u' => {
                self.forwarded = Some(now);
                Verdict::Forward
            }
            b'g' => {
                assert!(head.open_gap(1, 4), "there is headroom");
                head.bytes_mut()[1..5].copy_from_slice(b"rown");
                Verdict::Forward
            }
            b's' => {
                assert!(head.resize(2), "there is always room to be smaller");
                Verdict::Reflect
            }
            _ => Verdict::Forward,
        }
    }

    fn forwarded_before(&mut self) -> Option<Instant> {
        self.forwarded.take()
    }

    fn held_frames(&self) -> usize {
        self.slots.into()
    }

    fn next_release(&mut self) -> Option<Ticket> {
        self.released.front().map(|(ticket, _)| *ticket)
    }

    fn on_release(&mut self, ticket: Ticket, head: &mut Head<'_>, _: Instant, egress: &mut impl Egress) -> Verdict {
        let (released, deliver) = self.released.pop_front().expect("it was released");
        assert_eq!(ticket, released);
        assert_eq!(head.bytes()[0], b'h', "the frame that was held, as it was");
        self.free.push(ticket.index);
        match deliver {
            true if head.bytes() == b"he" => {
                self.emit(Side::Lan, egress);
                self.drop(DropReason::Consumed)
            }
            true if head.bytes() == b"hr" => Verdict::Reflect,
            true => Verdict::Forward,
            false => self.drop(DropReason::NotHeld),
        }
    }

    fn void(&mut self, ticket: Ticket) {
        assert_eq!(self.released.pop_front().map(|(ticket, _)| ticket), Some(ticket));
        self.free.push(ticket.index);
        self.voided += 1;
    }

    fn on_timeout(&mut self, _: Instant, egress: &mut impl Egress) -> bool {
        if std::mem::take(&mut self.releases_all) {
            self.release(usize::MAX, false);
        }
        if self.due > 0 {
            self.due -= 1;
            self.emit(Side::Lan, egress);
        }
        self.due > 0
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn population(&self) -> Population {
        Population::default()
    }
}

/// A worker between two wires in memory.
fn world<E: Engine>(engine: E, frames: usize, capacity: usize) -> (Worker<E>, PerSide<MemoryWire>) {
    let (lan, lan_wire) = memory::pair(capacity);
    let (wan, wan_wire) = memory::pair(capacity);
    let pool = Pool::heap(frames, 512, 128);
    let pair = Pair { lan: Box::new(lan), wan: Box::new(wan), pool };
    (Worker::new(pair, engine, None), PerSide::new(lan_wire, wan_wire))
}

fn now() -> Instant {
    Instant::from_secs(1)
}

impl<E> Worker<E> {
    fn assert_conserved(&self) {
        let somewhere = self.pool.idle() + self.pool.lent() + self.hold_buffer.buffers() + self.waiting.buffers();
        assert_eq!(somewhere, self.pool.total(), "every frame is somewhere");
    }
}

fn drain(wire: &mut MemoryWire) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| wire.pop()).collect()
}

#[test]
fn frames_go_where_the_verdict_says_and_in_order() {
    let (mut worker, mut wires) = world(Scripted::default(), 64, 64);
    for frame in ["f1", "r2", "d3", "f4", "e5"] {
        assert!(wires[Side::Wan].push(frame.as_bytes()));
    }
    let iteration = worker.poll(now());
    assert_eq!((iteration.received, iteration.sent, iteration.more), (5, 4, false));
    assert_eq!(drain(&mut wires[Side::Lan]), [b"f1".as_slice(), b"f4", b"hello"]);
    assert_eq!(drain(&mut wires[Side::Wan]), [b"r2"]);
    worker.assert_conserved();
}

#[test]
fn a_frame_that_comes_up_waits_and_what_its_end_sends_then_waits_behind_it() {
    let (mut worker, mut wires) = world(Scripted::default(), 64, 64);
    worker.waiting = WaitingFrames::new(PerSide::new(None, Some(Duration::from_millis(2))));
    let later = |millis| now() + Duration::from_millis(millis);
    for frame in ["f1", "u2", "f3", "d4"] {
        wires[Side::Lan].push(frame.as_bytes());
    }
    wires[Side::Wan].push(b"u5");
    let sent = worker.poll(now()).sent;
    assert_eq!(
        (sent, drain(&mut wires[Side::Wan]), drain(&mut wires[Side::Lan])),
        (2, vec![b"f1".into()], vec![b"u5".into()])
    );
    worker.assert_conserved();
    wires[Side::Lan].push(b"u6");
    assert!(worker.poll(later(1)).sent == 0);
    wires[Side::Lan].push(b"f7");
    worker.poll(later(2));
    assert_eq!(drain(&mut wires[Side::Wan]), [b"u2", b"f3"]);
    worker.poll(later(3));
    assert_eq!(drain(&mut wires[Side::Wan]), [b"u6", b"f7"]);
    wires[Side::Lan].push(b"f8");
    worker.poll(later(3));
    assert_eq!(drain(&mut wires[Side::Wan]), [b"f8"]);
    worker.assert_conserved();
}

#[test]
fn a_batch_is_parsed_as_a_whole_before_the_first_decision() {
    let (mut worker, mut wires) = world(Scripted::default(), 256, 256);
    for _ in 0..BATCH + 1 {
        wires[Side::Lan].push(b"f");
    }
    worker.poll(now());
    assert_eq!((worker.engine.deepest, worker.engine.parsed.get()), (BATCH, 0));
}

#[test]
fn a_frame_keeps_the_extent_the_engine_gave_it() {
    let (mut worker, mut wires) = world(Scripted::default(), 64, 64);
    wires[Side::Lan].push(b"g!");
    wires[Side::Lan].push(b"sssssss");
    worker.poll(now());
    assert_eq!(drain(&mut wires[Side::Wan]), [b"grown!"]);
    assert_eq!(drain(&mut wires[Side::Lan]), [b"ss"]);
    worker.assert_conserved();
}

#[test]
fn a_jumbo_frame_passes_whole_and_a_shortened_one_gives_its_buffers_back() {
    let (mut worker, mut wires) = world(Scripted::default(), 64, 64);
    let mut jumbo = vec![b'j'; 1500];
    wires[Side::Lan].push(&jumbo);
    worker.poll(now());
    assert_eq!(drain(&mut wires[Side::Wan]), [jumbo.clone()]);

    jumbo.fill(b's');
    wires[Side::Lan].push(&jumbo);
    worker.poll(now());
    assert_eq!(drain(&mut wires[Side::Lan]), [b"ss"]);
    worker.assert_conserved();
}

#[test]
fn frames_that_a_full_transmit_ring_refuses_are_counted_and_return_to_the_pool() {
    let (mut worker, mut wires) = world(Scripted::default(), 64, 8);
    for _ in 0..3 {
        for _ in 0..8 {
            assert!(wires[Side::Lan].push(b"f"));
        }
        worker.poll(now());
    }
    let snapshot = worker.snapshot();
    assert_eq!(UnsentMetric::ALL.iter().map(|&metric| snapshot.get(metric)).collect::<Vec<_>>(), [0, 16]);
    assert_eq!(snapshot.get(Metric::Wan(PortMetric::Sent)), 8);
    assert_eq!(drain(&mut wires[Side::Wan]).len(), 8);
    worker.assert_conserved();
}

#[test]
fn with_an_empty_pool_the_engine_is_refused_and_nothing_else_happens() {
    // One buffer: it holds the frame that asks the engine to emit a segment.
    let (mut worker, mut wires) = world(Scripted::default(), 1, 8);
    wires[Side::Wan].push(b"e");
    worker.poll(now());
    assert_eq!((worker.engine.emitted, worker.engine.refused), (0, 1));
    assert!(drain(&mut wires[Side::Lan]).is_empty());
    worker.assert_conserved();
}

#[test]
fn due_segments_leave_in_the_same_iteration_and_more_of_them_keep_the_worker_awake() {
    let (mut worker, mut wires) = world(Scripted { due: 2, ..Scripted::default() }, 8, 8);
    assert_eq!(worker.poll(now()), Iteration { sent: 1, more: true, ..Iteration::default() });
    assert_eq!(worker.poll(now()), Iteration { sent: 1, more: false, ..Iteration::default() });
    assert!(worker.poll(now()).is_idle());
    assert_eq!(drain(&mut wires[Side::Lan]).len(), 2);
}

#[test]
fn held_frames_leave_in_order_behind_the_frame_that_released_them() {
    let (mut worker, mut wires) = world(Scripted::with_slots(4), 64, 64);
    for frame in ["f", "h1", "h2", "h3", "he", "hr", "f"] {
        wires[Side::Wan].push(frame.as_bytes());
    }
    worker.poll(now());
    assert_eq!(drain(&mut wires[Side::Lan]), [b"f", b"f"]);
    assert_eq!((worker.snapshot().get(WorkerMetric::Held), worker.engine.dropped), (4, 1), "there are four slots");
    worker.assert_conserved();

    wires[Side::Lan].push(b"2!");
    worker.poll(now());
    assert_eq!(drain(&mut wires[Side::Lan]), [b"2!", b"h1", b"h2"]);
    assert_eq!(worker.snapshot().get(WorkerMetric::Held), 2);
    worker.assert_conserved();

    // A slot is used again, and a released frame may be consumed, or answered.
    wires[Side::Wan].push(b"hr");
    worker.poll(now());
    for _ in 0..2 {
        wires[Side::Lan].push(b"2!");
        worker.poll(now());
    }
    assert_eq!(drain(&mut wires[Side::Lan]), [b"2!".as_slice(), b"h3", b"hello", b"2!"]);
    assert_eq!(drain(&mut wires[Side::Wan]), [b"hr"]);
    assert_eq!(worker.snapshot().get(WorkerMetric::Held), 0);
    worker.assert_conserved();
}

#[test]
fn held_frames_that_are_dropped_return_to_the_pool() {
    let (mut worker, mut wires) = world(Scripted::with_slots(4), 64, 64);
    for _ in 0..3 {
        wires[Side::Wan].push(b"h");
    }
    worker.poll(now());
    wires[Side::Wan].push(b"n");
    worker.poll(now());
    assert_eq!((worker.snapshot().get(WorkerMetric::Held), worker.engine.dropped), (2, 1));
    worker.engine.releases_all = true;
    worker.poll(now());
    assert_eq!(
        (worker.snapshot().get(WorkerMetric::Held), worker.engine.dropped),
        (0, 3),
        "a time-out releases frames too"
    );
    assert_eq!(drain(&mut wires[Side::Lan]), [b"n"]);
    worker.assert_conserved();
}

#[test]
fn a_jumbo_frame_is_held_whole() {
    let (mut worker, mut wires) = world(Scripted::with_slots(1), 64, 64);
    let jumbo: Vec<u8> = (0..1500_u32).map(|i| if i == 0 { b'h' } else { i as u8 }).collect();
    wires[Side::Wan].push(&jumbo);
    worker.poll(now());
    assert!(worker.hold_buffer.buffers() > 1);
    worker.assert_conserved();
    wires[Side::Lan].push(b"2");
    worker.poll(now());
    assert_eq!(drain(&mut wires[Side::Lan]), [b"2".as_slice(), &jumbo]);
    worker.assert_conserved();
}

#[test]
fn held_frames_never_take_the_buffers_that_reception_needs() {
    let (mut worker, mut wires) = world(Scripted::with_slots(8), 8, 8);
    worker.pool.set_reserve(4);
    for _ in 0..6 {
        // One an iteration: each is the only one in processing when it is decided on.
        wires[Side::Wan].push(b"h");
        worker.poll(now());
    }
    let snapshot = worker.snapshot();
    assert_eq!((snapshot.get(WorkerMetric::Held), snapshot.get(WorkerMetric::TooFewToHold)), (3, 3));
    assert_eq!(worker.pool.idle(), 5);
    worker.assert_conserved();

    // Those that were not held had their slots all the same, and release them.
    for _ in 0..3 {
        wires[Side::Lan].push(b"2");
        worker.poll(now());
    }
    assert_eq!(drain(&mut wires[Side::Lan]).iter().filter(|frame| frame[0] == b'h').count(), 3);
    assert_eq!((worker.engine.voided, worker.engine.free.len(), worker.snapshot().get(WorkerMetric::Held)), (3, 8, 0));
    worker.assert_conserved();
}

#[test]
fn a_run_that_ends_returns_what_is_held() {
    let (mut worker, mut wires) = world(Scripted::with_slots(4), 16, 16);
    wires[Side::Wan].push(b"h1");
    wires[Side::Wan].push(&[b'h'; 1000]);
    wires[Side::Lan].hang_up();
    wires[Side::Wan].hang_up();
    let board = Board::new(1);
    worker.run(&AtomicBool::new(false), board.slot(0)).unwrap();
    assert_eq!((board.total().get(WorkerMetric::Held), worker.hold_buffer.buffers()), (2, 0));
    worker.assert_conserved();
}

#[test]
fn no_frame_is_lost_without_a_counter() {
    // A pool too small, wires too short and few slots, so that every way to lose a frame is taken.
    let (mut worker, mut wires) = world(Scripted::with_slots(20), 24, 16);
    worker.pool.set_reserve(4);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let (mut pushed, mut popped) = (0, 0);
    for _ in 0..20_000 {
        for side in Side::BOTH {
            for _ in 0..draw(20) {
                let len = if draw(8) == 0 { 700 } else { 2 };
                let frame = vec![b"frdegsh2n"[draw(9) as usize]; len];
                pushed += usize::from(wires[side].push(&frame));
            }
            for _ in 0..draw(24) {
                popped += usize::from(wires[side].pop().is_some());
            }
        }
        worker.poll(now());
        worker.assert_conserved();
    }
    let snapshot = worker.snapshot();
    let unreceived = wires[Side::Lan].unreceived() + wires[Side::Wan].unreceived();
    let pending = wires[Side::Lan].pending() + wires[Side::Wan].pending();
    let of = |metrics: [Metric; 2]| metrics.map(|metric| snapshot.get(metric)).iter().sum::<u64>() as usize;
    let unsent = of(Side::BOTH.map(|side| UnsentMetric::of(side).into()));
    let no_buffer = of(Side::BOTH.map(|side| Metric::port(side, PortMetric::NoBuffer)));
    let (held, not_held) =
        (snapshot.get(WorkerMetric::Held) as usize, snapshot.get(WorkerMetric::TooFewToHold) as usize);
    assert!(unsent > 0 && no_buffer > 0 && not_held > 0 && worker.engine.refused > 0, "the test takes every way");
    assert_eq!(
        pushed + worker.engine.emitted,
        unreceived + no_buffer + worker.engine.dropped + unsent + not_held + held + popped + pending
    );
    assert_eq!(worker.engine.free.len() + worker.engine.held.len(), 20, "every slot is free or taken");
}

/// A TCP segment between a client in the WAN and a server in the LAN, sent from `side`, without options or payload.
fn segment(side: Side, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    segment_of(40_000, side, seq, ack, flags)
}

/// As [`segment`], from or to this port of the client.
fn segment_of(port: u16, side: Side, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    segment_between(9, port, side, seq, ack, flags)
}

/// As [`segment_of`], of the client with this address in its network.
fn segment_between(client: u8, port: u16, side: Side, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    let (client, server) = ([192, 0, 2, client, high, low], [10, 0, 0, 1, 0, 80]);
    let (from, to) = if side == Side::Wan { (client, server) } else { (server, client) };
    let mut frame = vec![2, 0, 0, 0, 0, to[3], 2, 0, 0, 0, 0, from[3], 8, 0];
    let mut ip = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0];
    ip.extend([&from[..4], &to[..4]].concat());
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum);
    let mut tcp = [&from[4..], &to[4..], &seq.to_be_bytes(), &ack.to_be_bytes()].concat();
    tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = checksum(&[&from[..4], &to[..4], &[0, 6, 0, 20], &tcp]);
    tcp[16..18].copy_from_slice(&sum);
    frame.extend(ip);
    frame.extend(tcp);
    frame.resize(60, 0);
    frame
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2)).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    (!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes()
}

/// Sequence number, acknowledgement number and flags of a segment without tags.
fn numbers(frame: &[u8]) -> (u32, u32, u8) {
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    (word(38), word(42), frame[47])
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;

/// Walks a client through the handshake, with a pool of this many frames, up to the server's answer. Returns what the
/// server and the client got for it, and how often the engine found no spare frame.
fn handshake(frames: usize) -> ([Vec<Vec<u8>>; 2], u64) {
    let secrets = tcpstate::Secrets::new([7; 48]);
    let config = tcpstate::Config { table_buckets: 64, learn_capacity: 64, syn_cache_max: 64, ..Default::default() };
    let (mut worker, mut wires) = world(tcpstate::Proxy::new(&config, &secrets, now()), frames, 8);
    wires[Side::Wan].push(&segment(Side::Wan, 1000, 0, SYN));
    worker.poll(now());
    let (isn, ack, flags) = numbers(&wires[Side::Wan].pop().expect("the client gets a SYN-ACK"));
    assert_eq!((ack, flags), (1001, SYN | ACK));

    wires[Side::Wan].push(&segment(Side::Wan, 1001, isn.wrapping_add(1), ACK));
    worker.poll(now());
    let (seq, _, flags) = numbers(&wires[Side::Lan].pop().expect("the server gets a SYN"));
    assert_eq!((seq, flags), (1000, SYN));

    wires[Side::Lan].push(&segment(Side::Lan, 5000, 1001, SYN | ACK));
    worker.poll(now());
    worker.assert_conserved();
    let got = [drain(&mut wires[Side::Lan]), drain(&mut wires[Side::Wan])];
    (got, worker.snapshot().get(Event::NoSpareFrame))
}

#[test]
fn the_proxy_establishes_a_connection_through_the_worker() {
    let ([server, client], refused) = handshake(16);
    assert_eq!(server.iter().map(|frame| numbers(frame)).collect::<Vec<_>>(), [(1001, 5001, ACK)]);
    // The server names no MSS, so that the client is told 536 besides.
    let is_tcp = |frame: &&Vec<u8>| frame[23] == 6;
    assert_eq!((client.len(), client.iter().filter(is_tcp).count()), (2, 1), "the client's window opens");
    assert_eq!(refused, 0);
}

#[test]
fn a_worker_begins_and_ends_to_shed_and_to_sleep_when_it_is_told() {
    let (worker, _wires) = world(Scripted::default(), 64, 64);
    let sender = CommandSender::open(1).unwrap();
    let mut worker = worker.with_commands(sender.queue(0));
    let board = Board::new(1);
    for (poll, shed) in [(Poll::Busy, true), (Poll::Interrupt, false), (Poll::Busy, true), (Poll::Adaptive, true)] {
        thread::scope(|scope| {
            let sending = scope.spawn(|| sender.send(&Command::SetOptions { poll, shed }));
            while !sending.is_finished() {
                worker.execute_command(now(), board.slot(0));
                thread::yield_now();
            }
            assert!(matches!(sending.join().unwrap()[..], [Some(Answer::Done)]));
        });
        assert_eq!((worker.poll_policy.may_sleep(), worker.load.is_some()), (poll != Poll::Busy, shed));
        if shed {
            worker.shedder.set(&mut worker.ports[Side::Wan], ShedLevel::Repeated);
        }
        assert_eq!(worker.shedder.is_filtering(), shed, "what was shed is not any more");
    }
}

#[test]
fn under_overload_unproved_sources_are_shed_and_proved_ones_are_not() {
    let secrets = tcpstate::Secrets::new([7; 48]);
    let config = tcpstate::Config { table_buckets: 64, learn_capacity: 64, syn_cache_max: 64, ..Default::default() };
    let (worker, mut wires) = world(tcpstate::Proxy::new(&config, &secrets, now()), 64, 64);
    let mut worker = worker.with_shedding();
    // One client proves itself before there is any overload.
    wires[Side::Wan].push(&segment(Side::Wan, 1000, 0, SYN));
    worker.poll(now());
    let (isn, ..) = numbers(&wires[Side::Wan].pop().expect("the client gets a SYN-ACK"));
    wires[Side::Wan].push(&segment(Side::Wan, 1001, isn.wrapping_add(1), ACK));
    let iteration = worker.poll(now());
    worker.adjust_shedding(iteration, now());
    drain(&mut wires[Side::Lan]);

    worker.shedder.set(&mut worker.ports[Side::Wan], pktio::ShedLevel::Fresh(0));
    let mut unproved = segment(Side::Wan, 5000, 0, SYN);
    // Another source; the sum of the header and of the segment is as if the identification and the urgent pointer made up for it.
    unproved[29] = 10;
    unproved[19] = unproved[19].wrapping_sub(1);
    wires[Side::Wan].push(&unproved);
    // The proved client sends another SYN, and data besides.
    wires[Side::Wan].push(&segment(Side::Wan, 1001, isn.wrapping_add(1), ACK));
    wires[Side::Wan].push(&segment(Side::Wan, 9000, 0, SYN));
    worker.poll(now());
    assert_eq!(worker.shedder.shed(), (1, 0));
    assert_eq!(worker.snapshot().get(Metric::Wan(PortMetric::ShedFresh)), 1);
    worker.assert_conserved();
}

#[test]
fn segments_that_the_proxy_cannot_send_without_a_frame_are_counted() {
    // The only frame holds the server's answer and becomes one of the two segments and the ICMP error that answer it.
    let ([server, client], refused) = handshake(1);
    assert_eq!((server.len() + client.len(), refused), (1, 2));
}

#[test]
fn a_run_ends_when_both_ports_are_exhausted_and_everything_has_passed() {
    let (mut worker, mut wires) = world(Bypass::default(), 1024, 1024);
    for i in 0..1000_u16 {
        wires[Side::Wan].push(&i.to_be_bytes());
    }
    wires[Side::Lan].hang_up();
    wires[Side::Wan].hang_up();
    let board = Board::new(1);
    worker.run(&AtomicBool::new(false), board.slot(0)).unwrap();
    assert_eq!(drain(&mut wires[Side::Lan]).len(), 1000);
    let total = board.total();
    let counts = [Metric::Wan(PortMetric::Received), Metric::Lan(PortMetric::Sent)].map(|metric| total.get(metric));
    assert_eq!(counts, [1000, 1000]);
}

#[test]
fn a_run_ends_when_stop_is_set() {
    let (mut worker, _wires) = world(Bypass::default(), 8, 8);
    let (stop, board) = (AtomicBool::new(false), Board::new(1));
    thread::scope(|scope| {
        let run = scope.spawn(|| worker.run(&stop, board.slot(0)));
        thread::sleep(Duration::from_millis(5));
        assert!(!run.is_finished(), "stop is not set yet");
        stop.store(true, Ordering::Relaxed);
        run.join().unwrap().unwrap();
    });
}

/// The most that publishing its statistics may keep a worker from its frames.
const PUBLISHED_WITHIN: Duration = Duration::from_micros(100);

#[test]
fn scrapes_of_a_million_flows_never_hold_a_worker_for_100_microseconds() {
    const FLOWS: u64 = 1_000_000;
    let config = tcpstate::Config { table_buckets: 262_144, ..tcpstate::Config::default() };
    let engine = tcpstate::Proxy::new(&config, &tcpstate::Secrets::new([7; 48]), clock::now());
    let (mut worker, mut wires) = world(engine, 4 * BATCH, BATCH);
    // Opened from the LAN, by SYNs to as many ends.
    let ends = (0..16).flat_map(|client| (1..=u16::MAX).map(move |port| (client, port)));
    for (n, (client, port)) in ends.take(FLOWS as usize).enumerate() {
        wires[Side::Lan].push(&segment_between(client, port, Side::Lan, 1000, 0, SYN));
        if n % BATCH == BATCH - 1 {
            worker.poll(clock::now());
            drain(&mut wires[Side::Wan]);
        }
    }
    worker.poll(clock::now());
    let (stop, board) = (AtomicBool::new(false), Board::new(1));
    // Whatever else the machine does in the name of this thread is no cost of its own, so the best of several seconds counts.
    let mut least = Duration::MAX;
    for _ in 0..5 {
        worker.longest_command = Default::default();
        stop.store(false, Ordering::Relaxed);
        thread::scope(|scope| {
            let run = scope.spawn(|| worker.run(&stop, board.slot(0)));
            let begin = std::time::Instant::now();
            let mut scrapes = 0;
            while begin.elapsed() < Duration::from_secs(1) {
                let workers: Vec<_> = board.workers().collect();
                let text = prometheus::text(&workers, &board.supervisor(), &prometheus::Identity::default());
                assert!(text.contains("synproxy_flows{worker=\"0\",kind=\"direct\"} "));
                scrapes += 1;
            }
            assert!(scrapes > 10, "{scrapes} scrapes");
            stop.store(true, Ordering::Relaxed);
            run.join().unwrap().unwrap();
        });
        least = least.min(worker.longest_command[CommandKind::Publish as usize]);
        if least < PUBLISHED_WITHIN {
            break;
        }
    }
    let flows = board.total().get(FlowGauge::Direct);
    assert!(flows > FLOWS * 999 / 1000, "{flows} flows");
    assert!(least > Duration::ZERO && least < PUBLISHED_WITHIN, "{least:?}");
}
