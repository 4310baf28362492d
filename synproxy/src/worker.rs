//! The worker: receives a batch from each port, lets the engine decide, transmits, and sleeps when nothing is left to do.
//!
//! One worker owns one queue of both ports, the frames they share and one engine. It decides nothing itself, and it
//! loses no frame: what it receives ends up in a transmit ring or back in the pool.

use crate::clock;
use crate::engine::Engine;
use crate::handoff::Word;
use crate::mail::{Answer, Mailbox, Order};
use crate::pace::Pace;
use crate::pen::Pen;
use crate::pressure::{Pressure, Seen};
use crate::recorder::{Mourner, Nobody, Witness};
use crate::relief::Relief;
use crate::stats::{Slot, Snapshot, Stage, Tally};
use crate::steer::Crossing;
use crate::talkers::Talkers;
use pktio::{Batch, Frame, Pair, Pool, Port};
use std::hint;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tcpstate::{Egress, Head, Instant, Metadata, PerSide, Side, Verdict};

/// Frames taken from a port at once: enough to hide the latency of memory behind each other, few enough that the
/// heads of a batch stay in the first-level cache.
pub const BATCH: usize = 64;

/// Words of other workers taken to heart between two batches, at most: as many as frames.
const WORDS_A_BATCH: usize = BATCH;

/// The longest sleep, and so how late a worker notices that it is to stop.
const LONGEST_SLEEP: Duration = Duration::from_millis(200);

/// How often the counters are shown to others.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

/// One queue of both ports and the engine between them.
pub struct Worker<E> {
    ports: PerSide<Box<dyn Port>>,
    pool: Pool,
    engine: E,
    /// What was just received. Empty between two halves of a turn.
    incoming: Batch,
    /// What the first pass found out about it, frame by frame.
    metas: Vec<Metadata>,
    /// What the engine has us keep aside.
    pen: Pen,
    /// What is to leave by each port. Empty between turns.
    outgoing: PerSide<Batch>,
    /// Frames that found their port's transmit ring full.
    unsent: PerSide<u64>,
    /// The time from reception to transmission.
    stage: Stage,
    /// How hard it is pressed, and what is left out for it; nothing where that is not wanted.
    pressure: Option<Pressure>,
    relief: Relief,
    /// Whether it may sleep.
    pace: Pace,
    /// Turns so far, and sleeps in between.
    turns: u64,
    sleeps: u64,
    /// The way to and from the other workers; none where there are none.
    crossing: Option<Crossing>,
    /// What the operator asks of it.
    mailbox: Option<Arc<Mailbox>>,
    /// What is captured of its frames.
    witness: Witness,
    /// Who talks most.
    talkers: Talkers,
    /// The most time an order of each kind has taken.
    orders: [Duration; Order::KINDS],
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Frames received from either port, or taken over from other workers.
    pub received: usize,
    /// Frames taken by the transmit rings of either port.
    pub sent: usize,
    /// Whether the WAN, or other workers for it, had a full batch, and so perhaps more.
    pub is_full: bool,
    /// Whether the engine has more to do at once.
    pub more: bool,
}

impl Turn {
    /// Whether the next turn may find nothing to do.
    ///
    /// A turn that only sent is followed by another one, which takes the completed frames back and repeats a kick that
    /// the kernel answered only in part.
    fn is_idle(self) -> bool {
        self.received == 0 && self.sent == 0 && !self.more
    }
}

impl<E: Engine> Worker<E> {
    /// A worker for this pair of ports, and the way it reaches the other workers, if there are any.
    pub fn new(pair: Pair, engine: E, crossing: Option<Crossing>) -> Self {
        // A batch from either port and as many answers or segments of the engine's own, and both once more from other
        // workers; more grow it once.
        let batches = if crossing.is_some() { 2 } else { 1 };
        let room = || Batch::with_capacity(4 * batches * BATCH);
        Self {
            ports: PerSide::new(pair.lan, pair.wan),
            pool: pair.pool,
            pen: Pen::new(engine.held_frames()),
            engine,
            incoming: Batch::with_capacity(batches * BATCH),
            metas: Vec::with_capacity(batches * BATCH),
            outgoing: PerSide::new(room(), room()),
            unsent: PerSide::default(),
            stage: Stage::default(),
            pressure: None,
            relief: Relief::default(),
            pace: Pace::new(confparse::Poll::default(), false),
            turns: 0,
            sleeps: 0,
            crossing,
            mailbox: None,
            witness: Witness::default(),
            talkers: Talkers::new(clock::now()),
            orders: Default::default(),
        }
    }

    /// The same worker, which leaves out calls from the WAN while it is pressed.
    pub fn relieved(mut self) -> Self {
        self.pressure = Some(Pressure::default());
        self.relief = Relief::new(&mut self.ports[Side::Wan]);
        self
    }

    /// The same worker, at this pace.
    pub fn paced(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// The same worker, which obeys what comes to this mailbox.
    pub fn reading(self, mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox: Some(mailbox), ..self }
    }

    /// The same worker, whose frames are captured as its witness is told.
    pub fn witnessed(self, witness: Witness) -> Self {
        Self { witness, ..self }
    }

    /// Works until `stop` is set, or until neither port will ever deliver a frame again.
    ///
    /// # Errors
    /// When waiting for frames fails, which a sound port never makes happen.
    pub fn run(&mut self, stop: &AtomicBool, slot: &Slot) -> io::Result<()> {
        let mut publish_at = Instant::default();
        let ended = loop {
            let now = clock::now();
            let turn = self.turn(now);
            self.pace.note(turn.received, now);
            self.relieve(turn, now);
            if let Some(mailbox) = self.mailbox.as_ref().filter(|mailbox| mailbox.has_mail()) {
                // Whoever is answered finds counters as new as the answer.
                let begin = clock::own_time();
                slot.publish(&self.snapshot());
                let mut kind = None;
                mailbox.read(|order| {
                    kind = Some(order.kind());
                    match order {
                        Order::Talk => Answer::Talk(self.talkers.last().clone()),
                        order => self.engine.obey(order, now),
                    }
                });
                if let Some(longest) = kind.and_then(|kind| self.orders.get_mut(kind)) {
                    *longest = clock::own_time().saturating_sub(begin).max(*longest);
                }
            }
            if now >= publish_at {
                slot.publish(&self.snapshot());
                self.talkers.turn(now);
                publish_at = now + PUBLISH_EVERY;
            }
            if stop.load(Ordering::Relaxed) || (turn.is_idle() && self.is_exhausted()) {
                break Ok(());
            }
            if turn.is_idle()
                && let Err(error) = self.rest(now)
            {
                break Err(error);
            }
        };
        slot.publish(&self.snapshot());
        // Their senders repeat them.
        self.pen.clear(&mut self.pool);
        ended
    }

    /// Serves both ports once.
    pub fn turn(&mut self, now: Instant) -> Turn {
        let begin = std::time::Instant::now();
        self.turns += 1;
        let mut turn = Turn::default();
        self.witness.attend();
        for side in Side::BOTH {
            let received = self.ports[side].receive(&mut self.incoming, BATCH, &mut self.pool);
            if let Some(taps) = self.witness.taps() {
                taps.received(side, &self.incoming);
            }
            let taken = self.parse_batch(side, now);
            turn.received += received + taken;
            turn.is_full |= side == Side::Wan && (received == BATCH || taken == BATCH);
            self.step(side, now);
        }
        turn.more = self.expire(now);
        self.tell();
        self.stage.add(turn.received, begin.elapsed());
        for side in Side::BOTH {
            turn.sent += self.transmit(side);
        }
        self.witness.hand_over();
        turn
    }

    /// Has calls left out, or not any more, as the pressure is; and tells the port whom not to.
    fn relieve(&mut self, turn: Turn, now: Instant) {
        let Some(pressure) = &mut self.pressure else { return };
        let port = &mut self.ports[Side::Wan];
        while let Some(source) = self.engine.next_proved() {
            // Ports with a program have one account for all workers.
            if self.relief.favour(port, source)
                && let Some(crossing) = &mut self.crossing
            {
                crossing.tell(Word::Proved(source));
            }
        }
        if pressure.note(turn.received, turn.is_full, now) {
            let statistics = port.statistics();
            let (fresh, repeated) = self.relief.shed();
            let crossing = self.crossing.as_ref();
            let lost_between = crossing.map(Crossing::counted).map_or(0, |crossed| crossed.full + crossed.lost);
            let seen = Seen {
                calls: self.engine.calls() + crossing.map_or(0, Crossing::calls),
                lost: statistics.receive_full + statistics.fill_empty + statistics.kernel_drops + lost_between,
                shed: [statistics.shed_fresh + fresh, statistics.shed_repeated + repeated],
            };
            if let Some(level) = pressure.judge(seen, now) {
                self.relief.set(port, level);
            }
        }
    }

    /// What has been counted so far.
    pub fn snapshot(&self) -> Snapshot {
        let mut statistics = PerSide::new(self.ports[Side::Lan].statistics(), self.ports[Side::Wan].statistics());
        let (fresh, repeated) = self.relief.shed();
        statistics[Side::Wan].shed_fresh += fresh;
        statistics[Side::Wan].shed_repeated += repeated;
        let own = Tally {
            held: self.pen.held(),
            unkept: self.pen.unkept(),
            wakes: self.pace.wakes(),
            turns: self.turns,
            sleeps: self.sleeps,
            unsent: self.unsent,
            stage: self.stage,
            crossed: self.crossing.as_ref().map(Crossing::counted).unwrap_or_default(),
            orders: self.orders,
        };
        Snapshot::of(self.engine.counters(), self.engine.population(), &statistics, &own)
    }

    /// Parses and hashes the whole batch and asks for the memory it will touch, so that one wait serves all. What other workers own
    /// leaves the batch for them, and what they have sent joins it; returns how much that was.
    ///
    /// Calls are sifted where they arrive, whoever owns them: a flood of them would fill the lanes, where a call of a proved source is as
    /// good as any other. A repeated one arrives on the queue of the first, as ports without a program of their own spread by flow.
    fn parse_batch(&mut self, side: Side, now: Instant) -> usize {
        self.parse(side, 0);
        if side == Side::Wan && self.relief.sifts() {
            self.receive_update(now);
            self.relief.sift(&mut self.incoming, &mut self.metas, &mut self.pool);
        }
        let mut taken = 0;
        if let Some(crossing) = &mut self.crossing {
            crossing.hand_over(side, now, &mut self.incoming, &mut self.metas, &mut self.pool);
            taken = crossing.take_over(side, &mut self.incoming, BATCH, &mut self.pool);
            self.parse(side, self.incoming.len() - taken);
            self.receive_update(now);
        }
        for meta in &mut self.metas[..self.incoming.len()] {
            self.engine.prefetch(meta);
        }
        taken
    }

    /// Takes to heart what other workers have told: after a batch was received and before it is decided on, so that whoever comes
    /// because of what another worker said is met by one who knows.
    fn receive_update(&mut self, now: Instant) {
        let Some(crossing) = &mut self.crossing else { return };
        for _ in 0..WORDS_A_BATCH {
            match crossing.receive_update() {
                None => break,
                Some(Word::ServerUpdate(news)) => self.engine.receive_update(&news, now),
                Some(Word::Proved(source)) => {
                    self.relief.favour(&mut self.ports[Side::Wan], source);
                }
            }
        }
    }

    /// Tells the other workers what was learned in this turn, before anything of it leaves by a port.
    fn tell(&mut self) {
        let Some(crossing) = &mut self.crossing else { return };
        for news in self.engine.updates() {
            crossing.tell(Word::ServerUpdate(news));
        }
    }

    /// Parses and hashes the batch from this frame on.
    fn parse(&mut self, side: Side, from: usize) {
        // Written where they stay: a copy of what was only just written in smaller pieces would wait for it.
        if self.metas.len() < self.incoming.len() {
            self.metas.resize(self.incoming.len(), Metadata::default());
        }
        for (frame, meta) in self.incoming.iter_mut().zip(&mut self.metas).skip(from) {
            self.engine.parse(side, &head(frame), meta);
        }
    }

    /// Lets the engine decide on the whole batch.
    fn step(&mut self, side: Side, now: Instant) {
        let batch = self.incoming.len();
        if let Some(at) = self.talkers.choose(batch)
            && let Some(frame) = self.incoming.get_mut(at)
        {
            self.talkers.sample(side, &self.metas[at], frame.total(), batch);
        }
        match self.witness.take_drops() {
            None => self.step_mourned(side, now, &mut Nobody),
            Some(mut drops) => {
                drops.set_now(now);
                self.step_mourned(side, now, &mut *drops);
                self.witness.put_back(drops);
            }
        }
    }

    /// As [`Worker::step`]; compiled once more for when drops are captured, so that they cost nothing when they are not.
    fn step_mourned(&mut self, side: Side, now: Instant, mourner: &mut impl Mourner) {
        let mut outlet = Outlet { pool: &mut self.pool, outgoing: &mut self.outgoing, mourner };
        for (mut frame, meta) in self.incoming.drain(..).zip(&self.metas) {
            let mut head = head(&mut frame);
            let verdict = self.engine.on_frame(side, meta, &mut head, now, &mut outlet);
            let extent = Extent::of(&head);
            match verdict {
                Verdict::Hold(ticket) => self.pen.keep(ticket, frame, outlet.pool),
                verdict => outlet.dispose(side, frame, extent, verdict),
            }
            // What this frame has set free leaves behind it.
            bring_back(&mut self.engine, &mut self.pen, now, &mut outlet);
        }
    }

    /// Lets the engine do what is due; true when more is.
    fn expire(&mut self, now: Instant) -> bool {
        match self.witness.take_drops() {
            None => self.expire_mourned(now, &mut Nobody),
            Some(mut drops) => {
                let more = self.expire_mourned(now, &mut *drops);
                self.witness.put_back(drops);
                more
            }
        }
    }

    /// As [`Worker::expire`]; compiled as [`Worker::step_mourned`] is.
    fn expire_mourned(&mut self, now: Instant, mourner: &mut impl Mourner) -> bool {
        let mut outlet = Outlet { pool: &mut self.pool, outgoing: &mut self.outgoing, mourner };
        let more = self.engine.on_timeout(now, &mut outlet);
        bring_back(&mut self.engine, &mut self.pen, now, &mut outlet);
        more
    }

    /// Hands the port what is to leave by it, and kicks it once. What finds no place is lost, as on any full link.
    fn transmit(&mut self, side: Side) -> usize {
        let (port, outgoing) = (&mut self.ports[side], &mut self.outgoing[side]);
        if let Some(taps) = self.witness.taps() {
            taps.about_to_send(side, outgoing);
        }
        let sent = port.transmit(outgoing, &mut self.pool);
        if let Some(taps) = self.witness.taps() {
            taps.sent(side, sent);
        }
        self.unsent[side] += outgoing.len() as u64;
        for frame in outgoing.drain(..) {
            self.pool.put(frame);
        }
        port.flush(&mut self.pool);
        sent
    }

    /// Whether neither port will ever deliver a frame again.
    fn is_exhausted(&self) -> bool {
        Side::BOTH.into_iter().all(|side| self.ports[side].is_exhausted())
    }

    /// What is done between a turn that found nothing to do and the next.
    fn rest(&mut self, now: Instant) -> io::Result<()> {
        if self.pace.may_sleep() {
            self.sleeps += 1;
            return self.sleep(now);
        }
        if self.pace.yields() {
            // Whoever fills or empties our rings may be waiting for this core.
            thread::yield_now();
        } else {
            hint::spin_loop();
        }
        Ok(())
    }

    /// Sleeps until a frame arrives, another worker hands one over, or the engine has something to do.
    fn sleep(&self, now: Instant) -> io::Result<()> {
        let due = self.engine.next_deadline().map_or(LONGEST_SLEEP, |deadline| deadline.since(now)).min(LONGEST_SLEEP);
        // It is rung before anybody can find it empty, so a letter that comes from now on ends the sleep at once.
        let mail = self.mailbox.as_ref().map(|mailbox| mailbox.bell().as_raw_fd());
        let ports: [&dyn Port; 2] = [&self.ports[Side::Lan], &self.ports[Side::Wan]];
        let sleep = |bell| pktio::wait_or_bell(ports, [bell, mail], Some(due));
        match &self.crossing {
            None => sleep(None),
            Some(crossing) => crossing.asleep(sleep),
        }
    }
}

/// The engine's view of a frame.
fn head(frame: &mut Frame) -> Head<'_> {
    let (start, len, total) = (frame.start(), frame.len(), frame.total());
    Head::new(frame.buffer_mut(), start, len, total)
}

/// Brings back the held frames the engine asks for, of which there are never more than places in the pen.
#[inline]
fn bring_back<E: Engine, M: Mourner>(engine: &mut E, pen: &mut Pen, now: Instant, outlet: &mut Outlet<M>) {
    while let Some(ticket) = engine.next_release() {
        let Some(mut frame) = pen.give_up(ticket) else {
            engine.void(ticket);
            continue;
        };
        let mut head = head(&mut frame);
        let verdict = engine.on_release(ticket, &mut head, now, outlet);
        let extent = Extent::of(&head);
        outlet.dispose(Side::Wan, frame, extent, verdict);
    }
}

/// What the engine made of a frame's head.
struct Extent {
    start: usize,
    len: usize,
    is_whole: bool,
}

impl Extent {
    fn of(head: &Head<'_>) -> Self {
        Self { start: head.start(), len: head.len(), is_whole: head.is_whole() }
    }
}

/// Where frames go when they are decided on, and the engine's own segments: those into spare frames.
struct Outlet<'a, M> {
    pool: &'a mut Pool,
    outgoing: &'a mut PerSide<Batch>,
    mourner: &'a mut M,
}

impl<M: Mourner> Outlet<'_, M> {
    /// Does with a frame that came in by `side` as the verdict says.
    #[inline]
    fn dispose(&mut self, side: Side, mut frame: Frame, extent: Extent, verdict: Verdict) {
        frame.set(extent.start, extent.len);
        if extent.is_whole && frame.is_chained() {
            self.pool.shrink(&mut frame);
        }
        match verdict {
            Verdict::Forward => self.outgoing[side.other()].push(frame),
            Verdict::Reflect => self.outgoing[side].push(frame),
            Verdict::Hold(_) => unreachable!("a frame that was held is not held again"),
            Verdict::Drop(reason) => {
                self.mourner.mourn(side, &frame, reason);
                self.pool.put(frame);
            }
        }
    }
}

impl<M> Egress for Outlet<'_, M> {
    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let Some(mut frame) = self.pool.take() else { return false };
        let start = frame.start();
        let len = write(&mut frame.buffer_mut()[start..]);
        frame.set(start, len);
        self.outgoing[to].push(frame);
        true
    }
}

#[cfg(test)]
mod tests {
    mod crowd;

    use super::*;
    use crate::engine::Bypass;
    use crate::stats::Board;
    use pktio::memory::{self, MemoryWire};
    use std::collections::VecDeque;
    use tcpstate::{Counters, DropReason, Population, Ticket};

    /// An engine that does with a frame what the frame's first byte says.
    #[derive(Default)]
    struct Obedient {
        counters: Counters,
        /// Frames looked at but not yet decided on.
        looked: std::cell::Cell<usize>,
        /// The most there were at once.
        deepest: usize,
        dropped: usize,
        emitted: usize,
        refused: usize,
        /// Segments to send at the next time-out.
        due: usize,
        /// Places in the pen.
        places: u16,
        /// The free ones, and how often places were used.
        free: Vec<u16>,
        generation: u16,
        /// Tickets not released yet, and those released: to be forwarded, or to be dropped.
        held: VecDeque<Ticket>,
        released: VecDeque<(Ticket, bool)>,
        /// Whether the next time-out drops all that is held.
        forgets: bool,
        voided: usize,
    }

    impl Obedient {
        /// One that holds up to this many frames.
        fn with_places(places: u16) -> Self {
            Self { places, free: (0..places).collect(), ..Self::default() }
        }

        /// Drops a frame on its own account.
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

        fn say(&mut self, to: Side, egress: &mut impl Egress) {
            let written = egress.emit(to, |buffer| {
                buffer[..5].copy_from_slice(b"hello");
                5
            });
            *if written { &mut self.emitted } else { &mut self.refused } += 1;
        }
    }

    impl Engine for Obedient {
        fn parse(&self, _: Side, _: &Head<'_>, _: &mut Metadata) {
            self.looked.update(|looked| looked + 1);
        }

        fn prefetch(&self, _: &mut Metadata) {}

        fn on_frame(
            &mut self,
            side: Side,
            _: &Metadata,
            head: &mut Head<'_>,
            _: Instant,
            egress: &mut impl Egress,
        ) -> Verdict {
            self.deepest = self.deepest.max(self.looked.get());
            self.looked.update(|looked| looked - 1);
            match head.bytes()[0] {
                b'r' => Verdict::Reflect,
                b'd' => self.drop(DropReason::Malformed),
                b'e' => {
                    self.say(side.other(), egress);
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

        fn held_frames(&self) -> usize {
            self.places.into()
        }

        fn next_release(&mut self) -> Option<Ticket> {
            self.released.front().map(|(ticket, _)| *ticket)
        }

        fn on_release(&mut self, ticket: Ticket, head: &mut Head<'_>, _: Instant, egress: &mut impl Egress) -> Verdict {
            let (released, deliver) = self.released.pop_front().expect("somebody released it");
            assert_eq!(ticket, released);
            assert_eq!(head.bytes()[0], b'h', "the frame that was held, as it was");
            self.free.push(ticket.index);
            match deliver {
                true if head.bytes() == b"he" => {
                    self.say(Side::Lan, egress);
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
            if std::mem::take(&mut self.forgets) {
                self.release(usize::MAX, false);
            }
            if self.due > 0 {
                self.due -= 1;
                self.say(Side::Lan, egress);
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
            let somewhere = self.pool.idle() + self.pool.lent() + self.pen.buffers();
            assert_eq!(somewhere, self.pool.total(), "every frame is somewhere");
        }
    }

    fn drain(wire: &mut MemoryWire) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| wire.pop()).collect()
    }

    #[test]
    fn frames_go_where_the_verdict_says_and_in_order() {
        let (mut worker, mut wires) = world(Obedient::default(), 64, 64);
        for frame in ["f1", "r2", "d3", "f4", "e5"] {
            assert!(wires[Side::Wan].push(frame.as_bytes()));
        }
        let turn = worker.turn(now());
        assert_eq!((turn.received, turn.sent, turn.more), (5, 4, false));
        assert_eq!(drain(&mut wires[Side::Lan]), [b"f1".as_slice(), b"f4", b"hello"]);
        assert_eq!(drain(&mut wires[Side::Wan]), [b"r2"]);
        worker.assert_conserved();
    }

    #[test]
    fn a_batch_is_looked_at_as_a_whole_before_the_first_decision() {
        let (mut worker, mut wires) = world(Obedient::default(), 256, 256);
        for _ in 0..BATCH + 1 {
            wires[Side::Lan].push(b"f");
        }
        worker.turn(now());
        assert_eq!((worker.engine.deepest, worker.engine.looked.get()), (BATCH, 0));
    }

    #[test]
    fn a_frame_keeps_the_extent_the_engine_gave_it() {
        let (mut worker, mut wires) = world(Obedient::default(), 64, 64);
        wires[Side::Lan].push(b"g!");
        wires[Side::Lan].push(b"sssssss");
        worker.turn(now());
        assert_eq!(drain(&mut wires[Side::Wan]), [b"grown!"]);
        assert_eq!(drain(&mut wires[Side::Lan]), [b"ss"]);
        worker.assert_conserved();
    }

    #[test]
    fn a_jumbo_frame_passes_whole_and_a_shortened_one_gives_its_buffers_back() {
        let (mut worker, mut wires) = world(Obedient::default(), 64, 64);
        let mut jumbo = vec![b'j'; 1500];
        wires[Side::Lan].push(&jumbo);
        worker.turn(now());
        assert_eq!(drain(&mut wires[Side::Wan]), [jumbo.clone()]);

        jumbo.fill(b's');
        wires[Side::Lan].push(&jumbo);
        worker.turn(now());
        assert_eq!(drain(&mut wires[Side::Lan]), [b"ss"]);
        worker.assert_conserved();
    }

    #[test]
    fn what_a_full_transmit_ring_refuses_is_counted_and_comes_back() {
        let (mut worker, mut wires) = world(Obedient::default(), 64, 8);
        for _ in 0..3 {
            for _ in 0..8 {
                assert!(wires[Side::Lan].push(b"f"));
            }
            worker.turn(now());
        }
        let snapshot = worker.snapshot();
        assert_eq!((snapshot.unsent(Side::Wan), snapshot.unsent(Side::Lan)), (16, 0));
        assert_eq!(snapshot.port(Side::Wan).sent, 8);
        assert_eq!(drain(&mut wires[Side::Wan]).len(), 8);
        worker.assert_conserved();
    }

    #[test]
    fn with_an_empty_pool_the_engine_is_refused_and_nothing_else_happens() {
        // One buffer: it holds the frame that asks the engine to speak.
        let (mut worker, mut wires) = world(Obedient::default(), 1, 8);
        wires[Side::Wan].push(b"e");
        worker.turn(now());
        assert_eq!((worker.engine.emitted, worker.engine.refused), (0, 1));
        assert!(drain(&mut wires[Side::Lan]).is_empty());
        worker.assert_conserved();
    }

    #[test]
    fn what_is_due_leaves_in_the_same_turn_and_more_of_it_keeps_the_worker_awake() {
        let (mut worker, mut wires) = world(Obedient { due: 2, ..Obedient::default() }, 8, 8);
        assert_eq!(worker.turn(now()), Turn { sent: 1, more: true, ..Turn::default() });
        assert_eq!(worker.turn(now()), Turn { sent: 1, more: false, ..Turn::default() });
        assert!(worker.turn(now()).is_idle());
        assert_eq!(drain(&mut wires[Side::Lan]).len(), 2);
    }

    #[test]
    fn held_frames_leave_in_order_behind_the_frame_that_set_them_free() {
        let (mut worker, mut wires) = world(Obedient::with_places(4), 64, 64);
        for frame in ["f", "h1", "h2", "h3", "he", "hr", "f"] {
            wires[Side::Wan].push(frame.as_bytes());
        }
        worker.turn(now());
        assert_eq!(drain(&mut wires[Side::Lan]), [b"f", b"f"]);
        assert_eq!((worker.snapshot().held(), worker.engine.dropped), (4, 1), "there are four places");
        worker.assert_conserved();

        wires[Side::Lan].push(b"2!");
        worker.turn(now());
        assert_eq!(drain(&mut wires[Side::Lan]), [b"2!", b"h1", b"h2"]);
        assert_eq!(worker.snapshot().held(), 2);
        worker.assert_conserved();

        // A place is used again, and what is brought back may be used up, or answered.
        wires[Side::Wan].push(b"hr");
        worker.turn(now());
        for _ in 0..2 {
            wires[Side::Lan].push(b"2!");
            worker.turn(now());
        }
        assert_eq!(drain(&mut wires[Side::Lan]), [b"2!".as_slice(), b"h3", b"hello", b"2!"]);
        assert_eq!(drain(&mut wires[Side::Wan]), [b"hr"]);
        assert_eq!(worker.snapshot().held(), 0);
        worker.assert_conserved();
    }

    #[test]
    fn held_frames_that_nobody_wants_any_more_go_back_to_the_pool() {
        let (mut worker, mut wires) = world(Obedient::with_places(4), 64, 64);
        for _ in 0..3 {
            wires[Side::Wan].push(b"h");
        }
        worker.turn(now());
        wires[Side::Wan].push(b"n");
        worker.turn(now());
        assert_eq!((worker.snapshot().held(), worker.engine.dropped), (2, 1));
        worker.engine.forgets = true;
        worker.turn(now());
        assert_eq!((worker.snapshot().held(), worker.engine.dropped), (0, 3), "a time-out sets free too");
        assert_eq!(drain(&mut wires[Side::Lan]), [b"n"]);
        worker.assert_conserved();
    }

    #[test]
    fn a_jumbo_frame_is_held_whole() {
        let (mut worker, mut wires) = world(Obedient::with_places(1), 64, 64);
        let jumbo: Vec<u8> = (0..1500_u32).map(|i| if i == 0 { b'h' } else { i as u8 }).collect();
        wires[Side::Wan].push(&jumbo);
        worker.turn(now());
        assert!(worker.pen.buffers() > 1);
        worker.assert_conserved();
        wires[Side::Lan].push(b"2");
        worker.turn(now());
        assert_eq!(drain(&mut wires[Side::Lan]), [b"2".as_slice(), &jumbo]);
        worker.assert_conserved();
    }

    #[test]
    fn what_is_held_never_takes_the_frames_that_reception_needs() {
        let (mut worker, mut wires) = world(Obedient::with_places(8), 8, 8);
        worker.pool.set_reserve(4);
        for _ in 0..6 {
            // One a turn: each is alone in our hands when its fate is decided.
            wires[Side::Wan].push(b"h");
            worker.turn(now());
        }
        let snapshot = worker.snapshot();
        assert_eq!((snapshot.held(), snapshot.unkept(), worker.pool.idle()), (3, 3, 5));
        worker.assert_conserved();

        // Those that were not kept had their places all the same, and give them back.
        for _ in 0..3 {
            wires[Side::Lan].push(b"2");
            worker.turn(now());
        }
        assert_eq!(drain(&mut wires[Side::Lan]).iter().filter(|frame| frame[0] == b'h').count(), 3);
        assert_eq!((worker.engine.voided, worker.engine.free.len(), worker.snapshot().held()), (3, 8, 0));
        worker.assert_conserved();
    }

    #[test]
    fn a_run_that_ends_gives_up_what_is_held() {
        let (mut worker, mut wires) = world(Obedient::with_places(4), 16, 16);
        wires[Side::Wan].push(b"h1");
        wires[Side::Wan].push(&[b'h'; 1000]);
        wires[Side::Lan].hang_up();
        wires[Side::Wan].hang_up();
        let board = Board::new(1);
        worker.run(&AtomicBool::new(false), board.slot(0)).unwrap();
        assert_eq!((board.total().held(), worker.pen.buffers()), (2, 0));
        worker.assert_conserved();
    }

    #[test]
    fn no_frame_is_lost_without_a_counter() {
        // A pool too small, wires too short and few places, so that every way to lose a frame is taken.
        let (mut worker, mut wires) = world(Obedient::with_places(20), 24, 16);
        worker.pool.set_reserve(4);
        let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = |below: u64| {
            chance ^= chance << 13;
            chance ^= chance >> 7;
            chance ^= chance << 17;
            chance % below
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
            worker.turn(now());
            worker.assert_conserved();
        }
        let snapshot = worker.snapshot();
        let of = |count: fn(&Snapshot, Side) -> u64| {
            Side::BOTH.into_iter().map(|side| count(&snapshot, side)).sum::<u64>() as usize
        };
        let unreceived = wires[Side::Lan].unreceived() + wires[Side::Wan].unreceived();
        let pending = wires[Side::Lan].pending() + wires[Side::Wan].pending();
        let (unsent, no_buffer) = (of(Snapshot::unsent), of(|snapshot, side| snapshot.port(side).no_buffer));
        let (held, unkept) = (snapshot.held() as usize, snapshot.unkept() as usize);
        assert!(unsent > 0 && no_buffer > 0 && unkept > 0 && worker.engine.refused > 0, "the test takes every way");
        assert_eq!(
            pushed + worker.engine.emitted,
            unreceived + no_buffer + worker.engine.dropped + unsent + unkept + held + popped + pending
        );
        assert_eq!(worker.engine.free.len() + worker.engine.held.len(), 20, "every place is free or taken");
    }

    /// A TCP segment between a client in the WAN and a server in the LAN, sent from `side`, without options or payload.
    fn segment(side: Side, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
        segment_of(40_000, side, seq, ack, flags)
    }

    /// As [`segment`], from or to this port of the client.
    fn segment_of(port: u16, side: Side, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
        let [high, low] = port.to_be_bytes();
        let (client, server) = ([192, 0, 2, 9, high, low], [10, 0, 0, 1, 0, 80]);
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
        let config =
            tcpstate::Config { table_buckets: 64, learn_capacity: 64, syn_cache_max: 64, ..Default::default() };
        let (mut worker, mut wires) = world(tcpstate::Proxy::new(&config, &secrets, now()), frames, 8);
        wires[Side::Wan].push(&segment(Side::Wan, 1000, 0, SYN));
        worker.turn(now());
        let (isn, ack, flags) = numbers(&wires[Side::Wan].pop().expect("the client gets a SYN-ACK"));
        assert_eq!((ack, flags), (1001, SYN | ACK));

        wires[Side::Wan].push(&segment(Side::Wan, 1001, isn.wrapping_add(1), ACK));
        worker.turn(now());
        let (seq, _, flags) = numbers(&wires[Side::Lan].pop().expect("the server is dialled"));
        assert_eq!((seq, flags), (1000, SYN));

        wires[Side::Lan].push(&segment(Side::Lan, 5000, 1001, SYN | ACK));
        worker.turn(now());
        worker.assert_conserved();
        let got = [drain(&mut wires[Side::Lan]), drain(&mut wires[Side::Wan])];
        (got, worker.snapshot().happened(tcpstate::Event::NoSpareFrame))
    }

    #[test]
    fn the_proxy_joins_a_connection_through_the_worker() {
        let ([server, client], refused) = handshake(16);
        assert_eq!(server.iter().map(|frame| numbers(frame)).collect::<Vec<_>>(), [(1001, 5001, ACK)]);
        assert_eq!(client.len(), 1, "the client's window opens");
        assert_eq!(refused, 0);
    }

    #[test]
    fn under_pressure_strangers_are_left_out_and_proved_sources_are_not() {
        let secrets = tcpstate::Secrets::new([7; 48]);
        let config =
            tcpstate::Config { table_buckets: 64, learn_capacity: 64, syn_cache_max: 64, ..Default::default() };
        let (worker, mut wires) = world(tcpstate::Proxy::new(&config, &secrets, now()), 64, 64);
        let mut worker = worker.relieved();
        // One client proves itself before there is any pressure.
        wires[Side::Wan].push(&segment(Side::Wan, 1000, 0, SYN));
        worker.turn(now());
        let (isn, ..) = numbers(&wires[Side::Wan].pop().expect("the client gets a SYN-ACK"));
        wires[Side::Wan].push(&segment(Side::Wan, 1001, isn.wrapping_add(1), ACK));
        let turn = worker.turn(now());
        worker.relieve(turn, now());
        drain(&mut wires[Side::Lan]);

        worker.relief.set(&mut worker.ports[Side::Wan], pktio::Level::Fresh(0));
        let mut stranger = segment(Side::Wan, 5000, 0, SYN);
        // Another source; the sum of the header and of the segment is as if the identification and the urgent pointer made up for it.
        stranger[29] = 10;
        stranger[19] = stranger[19].wrapping_sub(1);
        wires[Side::Wan].push(&stranger);
        // The one who is known calls again, and data comes besides.
        wires[Side::Wan].push(&segment(Side::Wan, 1001, isn.wrapping_add(1), ACK));
        wires[Side::Wan].push(&segment(Side::Wan, 9000, 0, SYN));
        worker.turn(now());
        assert_eq!(worker.relief.shed(), (1, 0));
        assert_eq!(worker.snapshot().port(Side::Wan).shed_fresh, 1);
        worker.assert_conserved();
    }

    #[test]
    fn what_the_proxy_cannot_say_for_want_of_a_frame_is_counted() {
        // The only frame holds the server's answer and becomes one of the two segments that answer it.
        let ([server, client], refused) = handshake(1);
        assert_eq!((server.len() + client.len(), refused), (1, 1));
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
        assert_eq!((total.port(Side::Wan).received, total.port(Side::Lan).sent), (1000, 1000));
    }

    #[test]
    fn a_run_ends_when_it_is_told_to() {
        let (mut worker, _wires) = world(Bypass::default(), 8, 8);
        let (stop, board) = (AtomicBool::new(false), Board::new(1));
        thread::scope(|scope| {
            let run = scope.spawn(|| worker.run(&stop, board.slot(0)));
            thread::sleep(Duration::from_millis(5));
            assert!(!run.is_finished(), "nobody has told it yet");
            stop.store(true, Ordering::Relaxed);
            run.join().unwrap().unwrap();
        });
    }
}
