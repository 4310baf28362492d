//! Honest clients as a load: they connect at a rate, from as many addresses and ports as needed, exchange a message and close. Each has its
//! own [`Tcp`], and the load answers ARP and neighbour discovery for their addresses; the kernel's TCP is not involved.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use serde::Serialize;
use tcpstate::seq::{RawWindow, SeqNum};
use tcpstate::wire::{Addr, Flags, FlowKey, OptionList, Options, Parsed, Segment, Vlan};
use tcpstate::{Head, Side};

use crate::flood_template::{Mac, Sources, Target};
use crate::latency::Latencies;
use crate::load_runner::{Load, Outbox};
use crate::neighbours::{self, Message};
use crate::pace::Pace;
use crate::segment::{self, Content, OutgoingSegment};
use crate::tcp::{End, Tcp, Terms};

/// The first TCP port of an address, and the number of its ports.
const FIRST_PORT: u16 = 1_025;
const PORTS: u64 = 64_000;

/// What the clients do.
#[derive(Clone, Debug)]
pub struct ClientProfile {
    /// The server they connect to.
    pub target: Target,
    /// Their addresses.
    pub sources: Sources,
    /// The options they offer, and their windows.
    pub terms: Terms,
    /// Bytes each sends and expects back from an echo server; with 0 they only connect and close.
    pub message: u64,
    /// Whether they close with an RST instead of a FIN.
    pub abrupt: bool,
    /// The largest number of concurrent clients.
    pub most: usize,
    /// How long each waits before it counts as lost.
    pub patience: Duration,
}

/// Results of all clients.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Connections attempted.
    pub attempted: u64,
    /// Those that received a SYN-ACK.
    pub answered: u64,
    /// Those that completed their exchange.
    pub served: u64,
    /// Those that were reset before that.
    pub refused: u64,
    /// Those that timed out, or were still open at the end.
    pub lost: u64,
    /// Retransmitted segments, SYNs included.
    pub sent_again: u64,
    /// Segments with a wrong checksum, with impossible sequence numbers, or with other bytes than expected.
    pub wrong: u64,
    /// Time from the first SYN to the SYN-ACK.
    pub handshake: Latencies,
    /// Time from the first SYN until the exchange was complete.
    pub service: Latencies,
}

/// One client.
struct Client {
    tcp: Tcp,
    key: FlowKey,
    started: Duration,
    answered: bool,
    served: bool,
    /// The number of its stream in [`Content`].
    stream: u64,
    /// When its entry in `Clients::timers` is due; other entries for it are stale.
    timer: Option<Duration>,
}

/// The address and port of a client.
type Endpoint = (Addr, u16);

/// Many clients, as a load.
pub struct Clients {
    profile: ClientProfile,
    vlan: Vlan,
    target: Addr,
    pace: Pace,
    rng: SmallRng,
    content: Content,
    clients: Vec<Option<Client>>,
    /// Free slots of `clients`.
    free: Vec<usize>,
    by_endpoint: HashMap<Endpoint, usize>,
    /// Slots of clients that may have segments to send.
    ready: Vec<usize>,
    /// When which slot is due. Stale entries are skipped.
    timers: BinaryHeap<Reverse<(Duration, usize)>>,
    outcome: Outcome,
}

impl Clients {
    /// Clients that start at the times of `pace`.
    pub fn new(profile: ClientProfile, pace: Pace, rng: SmallRng) -> Clients {
        Clients {
            vlan: profile.target.vlan.map_or(Vlan::default(), segment::tag),
            target: segment::address(profile.target.address),
            pace,
            rng,
            content: Content::default(),
            clients: Vec::new(),
            free: Vec::new(),
            by_endpoint: HashMap::new(),
            ready: Vec::new(),
            timers: BinaryHeap::new(),
            outcome: Outcome::default(),
            profile,
        }
    }

    /// The results. Clients that are not served yet count as lost.
    pub fn outcome(mut self) -> Outcome {
        let left = self.clients.iter().flatten().filter(|client| !client.served).count();
        self.outcome.lost += left as u64;
        self.outcome
    }

    /// Starts a new client; false if its address and port are still in use.
    fn connect(&mut self, now: Duration) -> bool {
        let number = self.pace.total();
        let hosts = self.profile.sources.count();
        let (address, port) = (self.profile.sources.nth(number), FIRST_PORT + (number / hosts % PORTS) as u16);
        let endpoint = (segment::address(address), port);
        if self.by_endpoint.contains_key(&endpoint) {
            return false;
        }
        let target = (self.profile.target.address, self.profile.target.port);
        let client = Client {
            tcp: Tcp::connect(self.profile.terms, self.rng.random(), now),
            key: segment::key(target, (address, port), self.vlan),
            started: now,
            answered: false,
            served: false,
            stream: number,
            timer: None,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() - 1
        });
        self.clients[slot] = Some(client);
        self.by_endpoint.insert(endpoint, slot);
        self.ready.push(slot);
        self.outcome.attempted += 1;
        true
    }

    /// Hands a segment to its client.
    fn on_segment(&mut self, segment: &Segment, head: &Head<'_>, now: Duration, out: &mut Outbox<'_>) {
        let FlowKey { lan, lan_port, wan, wan_port, vlan, .. } = segment.key;
        if lan != self.target || lan_port != self.profile.target.port || vlan != self.vlan {
            return;
        }
        let slot = self.by_endpoint.get(&(wan, wan_port)).copied();
        let client = slot.and_then(|slot| Some((slot, self.clients[slot].as_mut()?)));
        let Some((slot, client)) = client else { return self.refuse(segment, out) };
        if head.is_whole() && !segment.checksums_hold(head) {
            self.outcome.wrong += 1;
            return;
        }
        let options = Options::read(segment.options(head.bytes()));
        let delivery = client.tcp.on_segment(segment, &options, now);
        let content_matches = !head.is_whole() || delivery.matches(&self.content, client.stream, segment, head.bytes());
        self.outcome.wrong += u64::from(delivery.wrong || !content_matches);
        if client.tcp.is_open() && !client.answered {
            client.answered = true;
            self.outcome.answered += 1;
            self.outcome.handshake.record(now - client.started);
            client.tcp.write(self.profile.message);
        }
        self.ready.push(slot);
    }

    /// Answers a segment for a client that is gone with an RST, as its host would.
    fn refuse(&self, segment: &Segment, out: &mut Outbox<'_>) {
        if segment.flags.has(Flags::RST) || !segment.flags.has(Flags::ACK) {
            return;
        }
        let Target { mac, from_mac, .. } = self.profile.target;
        let envelope = segment::envelope(segment.key, Side::Wan, from_mac, mac);
        // RFC 9293 section 3.10.7.1: the sequence number of the RST is the acknowledgement number of the segment.
        let (seq, ack, flags) = (segment.ack, SeqNum::default(), Flags::RST);
        let segment =
            OutgoingSegment { seq, ack, flags, window: RawWindow(0), options: OptionList::none(), from: 0, len: 0 };
        out.push(0, |buffer| segment.write(&envelope, buffer, |_| ()));
    }

    /// Sends the segments of the client in this slot, and removes it when it is done.
    fn service(&mut self, slot: usize, now: Duration, out: &mut Outbox<'_>) {
        let Some(client) = &mut self.clients[slot] else { return };
        if client.answered && !client.served {
            let has_reply = client.tcp.received() >= self.profile.message;
            // Without a message the client is done once the server has opened its window.
            let done = self.profile.message > 0 || client.tcp.may_send() || client.tcp.has_ended();
            if has_reply && done {
                client.served = true;
                self.outcome.served += 1;
                self.outcome.service.record(now - client.started);
                if self.profile.abrupt { client.tcp.reset() } else { client.tcp.finish() }
            }
        }
        let envelope = segment::envelope(client.key, Side::Wan, self.profile.target.from_mac, self.profile.target.mac);
        let (content, stream) = (&self.content, client.stream);
        while out.has_room(0) {
            let Some(segment) = client.tcp.next_segment(now) else { break };
            let fill = |payload: &mut [u8]| payload.copy_from_slice(content.bytes(stream, segment.from, segment.len));
            out.push(0, |buffer| segment.write(&envelope, buffer, fill));
        }
        if !out.has_room(0) {
            self.ready.push(slot);
        }
        let late = now >= client.started + self.profile.patience;
        if let Some(end) = client.tcp.end() {
            self.outcome.sent_again += client.tcp.retransmitted();
            if !client.served {
                let count = if end == End::Reset { &mut self.outcome.refused } else { &mut self.outcome.lost };
                *count += 1;
            }
            self.remove(slot);
        } else if late {
            // A client that was served only waits for the peer to close.
            self.outcome.sent_again += client.tcp.retransmitted();
            self.outcome.lost += u64::from(!client.served);
            self.remove(slot);
        } else {
            let patience = client.started + self.profile.patience;
            let due = client.tcp.due().map_or(patience, |due| due.min(patience));
            if client.timer.is_none_or(|timer| timer > due) {
                client.timer = Some(due);
                self.timers.push(Reverse((due, slot)));
            }
        }
    }

    fn remove(&mut self, slot: usize) {
        if let Some(client) = self.clients[slot].take() {
            self.by_endpoint.remove(&(client.key.wan, client.key.wan_port));
            self.free.push(slot);
        }
    }

    fn is_any_left(&self) -> bool {
        self.free.len() < self.clients.len()
    }
}

impl Load for Clients {
    fn receive(&mut self, _: usize, head: &mut Head<'_>, now: Duration, out: &mut Outbox<'_>) {
        if let Parsed::Tcp(segment) = Parsed::parse(Side::Lan, head) {
            return self.on_segment(&segment, head, now, out);
        }
        if let Some(Message::Request { sender, target }) = neighbours::parse(head.bytes())
            && self.profile.sources.contains(target)
        {
            answer(out, self.profile.target.vlan, sender, target, self.profile.target.from_mac);
        }
    }

    fn send(&mut self, now: Duration, out: &mut Outbox<'_>) {
        while let Some(&Reverse((due, slot))) = self.timers.peek()
            && due <= now
        {
            self.timers.pop();
            // Another entry than the latest one is stale.
            if let Some(client) = self.clients[slot].as_mut().filter(|client| client.timer == Some(due)) {
                client.timer = None;
                self.ready.push(slot);
            }
        }
        for slot in std::mem::take(&mut self.ready) {
            self.service(slot, now, out);
        }
        for _ in 0..self.pace.due(now) {
            let open = self.clients.len() - self.free.len();
            if open >= self.profile.most || !out.has_room(0) || !self.connect(now) {
                break;
            }
            self.pace.made(1);
            if let Some(slot) = self.ready.pop() {
                self.service(slot, now, out);
            }
        }
    }

    fn next(&self) -> Option<Duration> {
        let timer = self.timers.peek().map(|Reverse((due, _))| *due);
        // With the largest number of clients open, only a reply or a timer can free a slot.
        let full = self.clients.len() - self.free.len() >= self.profile.most;
        let connect = if full { None } else { self.pace.next() };
        let ready = (!self.ready.is_empty()).then_some(Duration::ZERO);
        [timer, connect, ready].into_iter().flatten().min()
    }

    fn is_over(&self, now: Duration) -> bool {
        self.pace.is_over(now) && !self.is_any_left()
    }
}

/// Answers an ARP request or neighbour solicitation for an address of the clients.
fn answer(out: &mut Outbox<'_>, vlan: Option<u16>, sender: (IpAddr, Mac), target: IpAddr, mac: Mac) {
    let mut frame = [0; 96];
    if let Some(len) = neighbours::write_reply(&mut frame, vlan, sender, target, mac) {
        out.copy(0, &frame[..len]);
    }
}
