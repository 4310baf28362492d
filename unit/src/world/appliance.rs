//! The box between the cables: the engine in the worker's loop, with frames from a bounded pool.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use tcpstate::wire::Parsed;
use tcpstate::{
    Config, Counters, Directive, DropReason, Egress, Event, Filter, Head, Instant, Memory, Metadata, Proxy, Secrets,
    ServerUpdate, Side, Ticket, Verdict, Words,
};

use super::served::Served;
use crate::oracle::layers::Layers;
use crate::oracle::{Ancestor, Segment, Taken};

/// Bytes of a buffer, and of the room before a frame in it.
const BUFFER: usize = 2048;
const HEADROOM: usize = 128;
/// Frames that are not given to the engine to hold.
const RESERVE: usize = 2;

/// A buffer of the box, owned: it is always in exactly one place.
pub struct Frame {
    id: u32,
    buffer: Box<[u8]>,
    start: usize,
    len: usize,
    /// What did not fit the buffer: the further ones of a jumbo frame, which the engine does not see.
    tail: Vec<u8>,
    corrupt: bool,
    ancestor: Option<Ancestor>,
    /// What the engine can know by it.
    taken: Option<Taken>,
}

impl Frame {
    fn fresh(id: u32) -> Self {
        Self {
            id,
            buffer: vec![0xa5; BUFFER].into_boxed_slice(),
            start: HEADROOM,
            len: 0,
            tail: Vec::new(),
            corrupt: false,
            ancestor: None,
            taken: None,
        }
    }

    /// What is on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        [&self.buffer[self.start..self.start + self.len], &self.tail].concat()
    }

    /// What the engine sees of it.
    fn head(&mut self) -> Head<'_> {
        let total = self.len + self.tail.len();
        Head::new(&mut self.buffer, self.start, self.len, total)
    }

    /// Takes over how the engine left the head.
    fn settle(&mut self, (start, len, total): (usize, usize, usize)) {
        if total == len {
            // Written anew, in one buffer.
            self.tail.clear();
        }
        assert_eq!(total, len + self.tail.len(), "a jumbo frame's further buffers are out of reach");
        (self.start, self.len) = (start, len);
    }
}

/// A frame the box has put on a cable.
pub struct Sent {
    /// Which cable.
    pub to: Side,
    /// What.
    pub bytes: Vec<u8>,
    /// Whether a bit was turned over before it came here.
    pub corrupt: bool,
    /// What it was when it came, unless the box made it.
    pub ancestor: Option<Ancestor>,
    /// What the engine has taken since what it sent before.
    pub taken: Vec<Taken>,
}

/// How the box is built.
#[derive(Clone, Debug)]
pub struct Build {
    /// The engine's configuration.
    pub config: Config,
    /// The engine's secrets.
    pub secrets: [u8; 48],
    /// Frames in the pool.
    pub frames: usize,
    /// Frames a receive ring holds.
    pub ring: usize,
    /// Frames taken in a turn and direction.
    pub batch: usize,
    /// How long a frame stays in the transmit ring, in microseconds.
    pub transmission: u64,
    /// Whether the engine works at all, or the box is a plain bridge.
    pub bridge: bool,
    /// Until then the box is a plain bridge, which gives way to the engine while connections run.
    pub bridge_until: u64,
    /// When frames run out altogether, and until when.
    pub drought: Option<(u64, u64)>,
    /// When the engine's process ends and another takes over with the memory of its flow table alone.
    pub restarts: Vec<u64>,
    /// Whether it takes over with nothing at all instead.
    pub forgets: bool,
    /// Whether every client has just proved itself, to another worker, whenever it sends a SYN.
    pub all_proved: bool,
    /// When a box in mode `auto` stops to pass SYNs, and begins again, in turn.
    pub switches: Vec<u64>,
    /// Whether the engine's timers wait for the next frame, so that turns are those of a plain bridge.
    pub lazy: bool,
    /// What its services stand for, if it has any.
    pub served: Option<Served>,
}

/// The box.
pub struct Appliance {
    proxy: Proxy,
    build: Build,
    pool: Vec<Frame>,
    rings: [VecDeque<Frame>; 2],
    /// Frames the engine has the box hold.
    held: BTreeMap<u16, (Ticket, Frame)>,
    /// Frames being sent, with the time they come back to the pool.
    transmitting: VecDeque<(u64, Frame)>,
    /// Whether the engine has taken over.
    taken_over: bool,
    /// Frames that cannot be had while there is a drought.
    withheld: Vec<Frame>,
    /// Frames that arrived and found no buffer.
    pub missed: u64,
    /// Whether an attacker has guessed a cookie, which one acknowledgement in some millions does.
    pub guessed: bool,
    /// What the processes before this one counted.
    former: Vec<Counters>,
    /// Whether it is told to answer SYNs.
    engaged: bool,
    /// What it has taken since it last sent something.
    taken: Vec<Taken>,
}

/// The engine's own segments take spare frames of the pool.
struct Spare<'a> {
    pool: &'a mut Vec<Frame>,
    out: &'a mut Vec<(Side, Frame)>,
}

impl Egress for Spare<'_> {
    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let Some(mut frame) = self.pool.pop() else { return false };
        // What a buffer held before is random.
        frame.buffer.fill(0xa5);
        frame.start = HEADROOM;
        frame.len = write(&mut frame.buffer[HEADROOM..]);
        frame.tail.clear();
        frame.corrupt = false;
        frame.ancestor = None;
        self.out.push((to, frame));
        true
    }
}

/// Gives the engine a map of its flows, too small for many of them.
fn publish(proxy: &mut Proxy) {
    proxy.publish_flows(Words::zeroed(16 * 8));
}

impl Appliance {
    /// A box with empty tables.
    pub fn new(build: Build, now: u64) -> Self {
        let mut proxy = Proxy::new(&build.config, &Secrets::new(build.secrets), Instant::from_micros(now));
        publish(&mut proxy);
        let pool = (0..build.frames as u32).map(Frame::fresh).collect();
        let taken_over = build.bridge_until == 0;
        Self {
            proxy,
            build,
            pool,
            rings: [VecDeque::new(), VecDeque::new()],
            held: BTreeMap::new(),
            transmitting: VecDeque::new(),
            taken_over,
            withheld: Vec::new(),
            missed: 0,
            guessed: false,
            former: Vec::new(),
            engaged: false,
            taken: Vec::new(),
        }
    }

    /// Whether the box is a plain bridge now.
    pub fn is_bridge(&self, now: u64) -> bool {
        self.build.bridge || now < self.build.bridge_until
    }

    /// The engine.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// A frame arrives: it waits in the ring for the next turn, unless there is no buffer for it.
    pub fn receive(&mut self, side: Side, bytes: &[u8], corrupt: bool, forged: bool) {
        let ring = &mut self.rings[side as usize];
        if ring.len() >= self.build.ring {
            self.missed += 1;
            return;
        }
        let Some(mut frame) = self.pool.pop() else {
            self.missed += 1;
            return;
        };
        frame.start = HEADROOM;
        frame.ancestor = ancestor(bytes, forged);
        frame.taken = Taken::read(bytes, corrupt, forged);
        let mut bytes = bytes.to_vec();
        if let Some(served) = &mut self.build.served {
            served.enter(side, &mut bytes, corrupt);
        }
        let (first, tail) = bytes.split_at(bytes.len().min(BUFFER - HEADROOM));
        frame.len = first.len();
        frame.buffer[HEADROOM..HEADROOM + first.len()].copy_from_slice(first);
        frame.tail = tail.to_vec();
        frame.corrupt = corrupt;
        ring.push_back(frame);
    }

    /// One turn of the worker: both passes over a batch of each side, then what is due.
    pub fn turn(&mut self, now: u64) -> Vec<Sent> {
        while self.transmitting.front().is_some_and(|&(until, _)| until <= now) {
            let (_, frame) = self.transmitting.pop_front().expect("a front");
            self.pool.push(frame);
        }
        match self.build.drought {
            Some((from, until)) if (from..until).contains(&now) => self.withheld.append(&mut self.pool),
            _ => self.pool.append(&mut self.withheld),
        }
        let time = Instant::from_micros(now);
        if !self.is_bridge(now) && !self.taken_over {
            self.taken_over = true;
            self.proxy = Proxy::new(&self.build.config, &Secrets::new(self.build.secrets), time);
            publish(&mut self.proxy);
        }
        let bridges = self.is_bridge(now);
        if self.build.restarts.first().is_some_and(|&at| at <= now) {
            self.build.restarts.remove(0);
            if !bridges {
                self.restart(time);
            }
        }
        while self.build.switches.first().is_some_and(|&at| at <= now) {
            self.build.switches.remove(0);
            self.engaged = !self.engaged;
            for target in 0..self.proxy.targets().len() as u32 {
                self.proxy.direct(target, &Directive { engaged: self.engaged, limit: u32::MAX }, time);
            }
        }
        let mut out = Vec::new();
        // With how much had been sent before.
        let mut taken: Vec<_> = std::mem::take(&mut self.taken).into_iter().map(|taken| (0, taken)).collect();
        for side in Side::BOTH {
            let ring = &mut self.rings[side as usize];
            let count = ring.len().min(self.build.batch);
            let mut batch: Vec<Frame> = ring.drain(..count).collect();
            if bridges {
                out.extend(batch.drain(..).map(|frame| (side.other(), frame)));
                continue;
            }
            let mut metas = vec![Metadata::default(); batch.len()];
            for (frame, meta) in batch.iter_mut().zip(&mut metas) {
                self.proxy.parse(side, &frame.head(), meta);
            }
            for meta in &mut metas {
                self.proxy.prefetch(meta);
                if self.build.all_proved
                    && let Parsed::Tcp(segment) = meta.parsed()
                    && meta.attempt().is_some()
                {
                    self.proxy.receive_update(&ServerUpdate::Proved(segment.key), time);
                }
            }
            for (mut frame, meta) in batch.into_iter().zip(&metas) {
                let proofs = self.proxy.counters().happened(Event::CookieGood);
                let forged = frame.ancestor.is_some_and(|ancestor| ancestor.forged);
                taken.extend(frame.taken.take().map(|taken| (out.len(), taken)));
                let mut head = frame.head();
                let mut spare = Spare { pool: &mut self.pool, out: &mut out };
                let verdict = self.proxy.on_frame(side, meta, &mut head, time, &mut spare);
                let left = (head.start(), head.len(), head.total());
                frame.settle(left);
                self.guessed |= forged && self.proxy.counters().happened(Event::CookieGood) > proofs;
                match verdict {
                    Verdict::Forward => out.push((side.other(), frame)),
                    Verdict::Reflect => {
                        // The answer is a new segment, whatever the question had suffered.
                        frame.corrupt = false;
                        frame.ancestor = None;
                        out.push((side, frame));
                    }
                    // Held frames must not starve reception.
                    Verdict::Hold(_) if self.pool.len() < RESERVE => self.pool.push(frame),
                    Verdict::Hold(ticket) => {
                        if let Some((_, other)) = self.held.insert(ticket.index, (ticket, frame)) {
                            panic!("frames {} and another are held in one place", other.id);
                        }
                    }
                    Verdict::Drop(_) => self.pool.push(frame),
                }
                self.bring_back(time, &mut out);
            }
        }
        if !bridges {
            let mut spare = Spare { pool: &mut self.pool, out: &mut out };
            let mut turns = 0;
            while self.proxy.on_timeout(time, &mut spare) {
                turns += 1;
                assert!(turns < 100_000, "on_timeout says forever that more is due");
            }
            self.bring_back(time, &mut out);
        }
        let mut sent: Vec<Sent> = out
            .iter()
            .map(|(to, frame)| Sent {
                to: *to,
                bytes: frame.bytes(),
                corrupt: frame.corrupt,
                ancestor: frame.ancestor,
                taken: Vec::new(),
            })
            .collect();
        for (before, taken) in taken {
            sent.get_mut(before).map_or(&mut self.taken, |sent| &mut sent.taken).push(taken);
        }
        if let Some(served) = &mut self.build.served {
            let proxy = &self.proxy;
            sent.iter_mut().for_each(|sent| served.leave(sent.to, &mut sent.bytes, |own| client_of(proxy, own, time)));
        }
        self.transmitting.extend(out.into_iter().map(|(_, frame)| (now + self.build.transmission, frame)));
        sent
    }

    /// Another process takes over: it finds a copy of the flow table's memory, or nothing, and makes everything that follows from it anew. Held frames are
    /// lost.
    fn restart(&mut self, now: Instant) {
        let Build { config, secrets, .. } = &self.build;
        let population = self.proxy.population();
        let flows = population.syn_cached + population.proxied + population.passthrough;
        assert_eq!(self.proxy.published_flows(), flows, "the map of flows has others than the table");
        let fresh = Proxy::new(config, &Secrets::new(*secrets), now);
        let former = std::mem::replace(&mut self.proxy, fresh);
        self.former.push(former.counters().clone());
        if !self.build.forgets {
            let memory = Memory { slab: former.into_slab().clone(), ..Memory::anonymous(config) };
            self.proxy = Proxy::with_memory(config, &Secrets::new(*secrets), now, memory);
            assert_eq!(self.proxy.population(), population, "a flow was lost, or made up");
        }
        publish(&mut self.proxy);
        self.pool.extend(std::mem::take(&mut self.held).into_values().map(|(_, frame)| frame));
    }

    /// How many processes have ended.
    pub fn restarts(&self) -> usize {
        self.former.len()
    }

    /// How often something was counted, by this process and those before it.
    pub fn total(&self, count: impl Fn(&Counters) -> u64) -> u64 {
        self.former.iter().chain([self.proxy.counters()]).map(count).sum()
    }

    /// Whether everything that is counted of a connection or a segment is counted of exactly one target.
    ///
    /// # Errors
    /// The first of which that is not so, with the counts.
    pub fn ascribed(&self) -> Result<(), String> {
        // What happens to frames that are no segments, nor errors about one; health checks of services.
        const OF_NONE: [Event; 14] = [
            Event::Bridged,
            Event::Fragment,
            Event::StrayFragment,
            Event::NoSpareFrame,
            Event::IcmpUnmatched,
            Event::NeighbourAnswered,
            Event::NeighbourAsked,
            Event::AddressAnnounced,
            Event::AddressConflict,
            Event::EchoAnswered,
            Event::ServerAsked,
            Event::ServerUp,
            Event::ServerDown,
            Event::KernelDropped,
        ];
        let targets = self.proxy.targets().len() as u32;
        for &event in Event::ALL {
            let all = self.total(|counters| counters.happened(event));
            let sum = self.total(|counters| (0..targets).map(|one| counters.of_target(one).happened(event)).sum());
            if sum != all && (sum > all || !OF_NONE.contains(&event)) {
                return Err(format!("{} happened {all} times, to {targets} targets {sum} times", event.label()));
            }
        }
        for &reason in DropReason::ALL {
            let all = self.total(|counters| counters.dropped(reason));
            let sum = self.total(|counters| (0..targets).map(|one| counters.of_target(one).dropped(reason)).sum());
            if sum > all {
                return Err(format!("{all} were dropped by {}, of {targets} targets {sum}", reason.label()));
            }
        }
        Ok(())
    }

    /// Brings back the held frames the engine asks for.
    fn bring_back(&mut self, now: Instant, out: &mut Vec<(Side, Frame)>) {
        while let Some(ticket) = self.proxy.next_release() {
            if self.held.get(&ticket.index).is_none_or(|(minted, _)| *minted != ticket) {
                self.proxy.void(ticket);
                continue;
            }
            let (_, mut frame) = self.held.remove(&ticket.index).expect("it is there, as just seen");
            let mut head = frame.head();
            let verdict = self.proxy.on_release(ticket, &mut head, now, &mut Spare { pool: &mut self.pool, out });
            let left = (head.start(), head.len(), head.total());
            frame.settle(left);
            match verdict {
                Verdict::Forward => out.push((Side::Lan, frame)),
                Verdict::Reflect => {
                    (frame.corrupt, frame.ancestor) = (false, None);
                    out.push((Side::Wan, frame));
                }
                Verdict::Hold(_) => panic!("a frame is held once"),
                Verdict::Drop(_) => self.pool.push(frame),
            }
        }
    }

    /// When the next turn is due without a frame having come.
    pub fn next_turn(&self, now: u64) -> Option<u64> {
        if self.rings.iter().any(|ring| !ring.is_empty()) {
            return Some(now + 1);
        }
        if self.is_bridge(now) || self.build.lazy {
            return None;
        }
        self.proxy.next_deadline().map(|at| at.as_micros().max(now + 1))
    }

    /// Every frame is in exactly one place.
    ///
    /// # Errors
    /// Which is missing or twice there.
    pub fn conserved(&self) -> Result<(), String> {
        let mut seen = vec![0u8; self.build.frames];
        let received =
            self.rings.iter().flatten().chain(self.held.values().map(|(_, frame)| frame)).chain(&self.withheld);
        for frame in self.pool.iter().chain(received).chain(self.transmitting.iter().map(|(_, frame)| frame)) {
            seen[frame.id as usize] += 1;
        }
        match seen.iter().position(|&count| count != 1) {
            None => Ok(()),
            Some(id) => Err(format!("frame {id} is in {} places", seen[id])),
        }
    }
}

/// The client for which an address and port of the box stands.
fn client_of(proxy: &Proxy, own: SocketAddr, now: Instant) -> Option<SocketAddr> {
    let (mut found, mut cursor) = (None, Some(0));
    while let Some(at) = cursor {
        cursor = proxy.list(at, &Filter::default(), now, |connection| {
            if connection.redirect.is_some_and(|redirect| redirect.socket(Side::Wan) == own) {
                found = Some(connection.key.socket(Side::Wan));
            }
        });
    }
    found
}

/// What a frame is, to be compared with what it has become: a segment, or the first of its fragments.
fn ancestor(bytes: &[u8], forged: bool) -> Option<Ancestor> {
    let layers = Layers::read(bytes)?;
    let read = |bytes: &[u8], fragmented| {
        Segment::read(bytes).map(|segment| Ancestor { forged, fragmented, ..Ancestor::from(&segment) })
    };
    match layers.fragment {
        None => read(bytes, false),
        Some((0, ..)) => {
            // In one piece the fragment reads as a segment with less payload.
            let mut bytes = bytes.to_vec();
            let field = if layers.v6 { layers.payload - 6 } else { layers.ip + 6 };
            bytes[field..field + 2].fill(0);
            read(&bytes, true)
        }
        Some(_) => None,
    }
}
