//! Honest clients: connections opened at a rate, from as many addresses and ports as it takes, used for a word and closed. Every one is a
//! TCP of its own, and its hosts answer for their addresses; no kernel is asked.

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

use crate::latency::Latencies;
use crate::neighbours::{self, ServerUpdate};
use crate::pace::Pace;
use crate::segment::{self, Content, Say};
use crate::spray::{Mac, Sources, Target};
use crate::station::{Load, Outbox};
use crate::tcp::{End, Tcp, Terms};

/// The first port of a client, and how many it has.
const FIRST_PORT: u16 = 1_025;
const PORTS: u64 = 64_000;

/// How clients are to be.
#[derive(Clone, Debug)]
pub struct Manner {
    /// Whom they call.
    pub target: Target,
    /// The addresses they have.
    pub sources: Sources,
    /// What they offer.
    pub terms: Terms,
    /// Bytes they say, and expect to be said to them in return. Without, they only open and close.
    pub word: u64,
    /// Whether they go by a reset instead of a FIN.
    pub abrupt: bool,
    /// How many are there at the same time.
    pub most: usize,
    /// How long each has patience.
    pub patience: Duration,
}

/// What became of the clients.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Connections tried.
    pub attempted: u64,
    /// Those whose SYN was answered.
    pub answered: u64,
    /// Those that did all they came for.
    pub served: u64,
    /// Those that were refused or reset.
    pub refused: u64,
    /// Those that gave up, or were left over at the end.
    pub lost: u64,
    /// SYNs, and segments, that were sent again.
    pub sent_again: u64,
    /// Segments that say what cannot be, bytes that are not those expected, wrong checksums.
    pub wrong: u64,
    /// From the first SYN to the SYN-ACK.
    pub handshake: Latencies,
    /// From the first SYN until the client had all it came for.
    pub service: Latencies,
}

/// One client.
struct Client {
    tcp: Tcp,
    key: FlowKey,
    begun: Duration,
    answered: bool,
    served: bool,
    whose: u64,
    /// The alarm that is set for it.
    alarm: Option<Duration>,
}

/// Clients by the port and address that are theirs.
type Name = (Addr, u16);

/// Many clients, as a load.
pub struct Clients {
    manner: Manner,
    vlan: Vlan,
    target: Addr,
    pace: Pace,
    rng: SmallRng,
    content: Content,
    clients: Vec<Option<Client>>,
    /// Places in `clients` that are free.
    free: Vec<usize>,
    names: HashMap<Name, usize>,
    /// Places of those that may have something to say.
    awake: Vec<usize>,
    /// When which place has to be looked after. Some are stale: what they are for is over.
    alarms: BinaryHeap<Reverse<(Duration, usize)>>,
    outcome: Outcome,
}

impl Clients {
    /// Clients that come as `pace` says.
    pub fn new(manner: Manner, pace: Pace, rng: SmallRng) -> Clients {
        Clients {
            vlan: manner.target.vlan.map_or(Vlan::default(), segment::tag),
            target: segment::address(manner.target.address),
            pace,
            rng,
            content: Content::default(),
            clients: Vec::new(),
            free: Vec::new(),
            names: HashMap::new(),
            awake: Vec::new(),
            alarms: BinaryHeap::new(),
            outcome: Outcome::default(),
            manner,
        }
    }

    /// What became of them. Those that are still there are lost.
    pub fn outcome(mut self) -> Outcome {
        let left = self.clients.iter().flatten().filter(|client| !client.served).count();
        self.outcome.lost += left as u64;
        self.outcome
    }

    /// Sends a new client on its way; false when it would have the name of one that is still there.
    fn call(&mut self, now: Duration) -> bool {
        let number = self.pace.total();
        let hosts = self.manner.sources.count();
        let (address, port) = (self.manner.sources.nth(number), FIRST_PORT + (number / hosts % PORTS) as u16);
        let name = (segment::address(address), port);
        if self.names.contains_key(&name) {
            return false;
        }
        let target = (self.manner.target.address, self.manner.target.port);
        let client = Client {
            tcp: Tcp::call(self.manner.terms, self.rng.random(), now),
            key: segment::key(target, (address, port), self.vlan),
            begun: now,
            answered: false,
            served: false,
            whose: number,
            alarm: None,
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() - 1
        });
        self.clients[place] = Some(client);
        self.names.insert(name, place);
        self.awake.push(place);
        self.outcome.attempted += 1;
        true
    }

    fn receive_update(&mut self, segment: &Segment, head: &Head<'_>, now: Duration, out: &mut Outbox<'_>) {
        let FlowKey { lan, lan_port, wan, wan_port, vlan, .. } = segment.key;
        if lan != self.target || lan_port != self.manner.target.port || vlan != self.vlan {
            return;
        }
        let place = self.names.get(&(wan, wan_port)).copied();
        let client = place.and_then(|place| Some((place, self.clients[place].as_mut()?)));
        let Some((place, client)) = client else { return self.refuse(segment, out) };
        if head.is_whole() && !segment.checksums_hold(head) {
            self.outcome.wrong += 1;
            return;
        }
        let options = Options::read(segment.options(head.bytes()));
        let heard = client.tcp.receive_update(segment, &options, now);
        let (from, len) = (heard.fresh.start, (heard.fresh.end - heard.fresh.start) as usize);
        let start = usize::from(segment.payload) + heard.skip;
        let as_expected =
            !head.is_whole() || head.bytes()[start..start + len] == *self.content.bytes(client.whose, from, len);
        self.outcome.wrong += u64::from(heard.wrong || !as_expected);
        if client.tcp.is_open() && !client.answered {
            client.answered = true;
            self.outcome.answered += 1;
            self.outcome.handshake.record(now - client.begun);
            client.tcp.write(self.manner.word);
        }
        self.awake.push(place);
    }

    /// Answers what is for a client that is not there any more, as its host would.
    fn refuse(&self, segment: &Segment, out: &mut Outbox<'_>) {
        if segment.flags.has(Flags::RST) || !segment.flags.has(Flags::ACK) {
            return;
        }
        let Target { mac, from_mac, .. } = self.manner.target;
        let envelope = segment::envelope(segment.key, Side::Wan, from_mac, mac);
        // RFC 9293 section 3.10.7.1: it has the number that the other end expects.
        let (seq, ack, flags) = (segment.ack, SeqNum::default(), Flags::RST);
        let say = Say { seq, ack, flags, window: RawWindow(0), options: OptionList::none(), from: 0, len: 0 };
        out.push(0, |buffer| say.write(&envelope, buffer, |_| ()));
    }

    /// Lets the client at this place say what it has to say.
    fn look_after(&mut self, place: usize, now: Duration, out: &mut Outbox<'_>) {
        let Some(client) = &mut self.clients[place] else { return };
        if client.answered && !client.served {
            let had_its_word = client.tcp.received() >= self.manner.word;
            // Without a word to say, one is through when the server may be sent to.
            let through = self.manner.word > 0 || client.tcp.may_send() || client.tcp.has_ended();
            if had_its_word && through {
                client.served = true;
                self.outcome.served += 1;
                self.outcome.service.record(now - client.begun);
                if self.manner.abrupt { client.tcp.reset() } else { client.tcp.finish() }
            }
        }
        let envelope = segment::envelope(client.key, Side::Wan, self.manner.target.from_mac, self.manner.target.mac);
        let (content, whose) = (&self.content, client.whose);
        while out.has_room(0) {
            let Some(say) = client.tcp.say(now) else { break };
            let fill = |payload: &mut [u8]| payload.copy_from_slice(content.bytes(whose, say.from, say.len));
            out.push(0, |buffer| say.write(&envelope, buffer, fill));
        }
        if !out.has_room(0) {
            self.awake.push(place);
        }
        let late = now >= client.begun + self.manner.patience;
        if let Some(end) = client.tcp.end() {
            self.outcome.sent_again += client.tcp.sent_again();
            if !client.served {
                let count = if end == End::Reset { &mut self.outcome.refused } else { &mut self.outcome.lost };
                *count += 1;
            }
            self.forget(place);
        } else if late {
            // What is left of a connection that was served is the peer's to close.
            self.outcome.sent_again += client.tcp.sent_again();
            self.outcome.lost += u64::from(!client.served);
            self.forget(place);
        } else {
            let patience = client.begun + self.manner.patience;
            let due = client.tcp.due().map_or(patience, |due| due.min(patience));
            if client.alarm.is_none_or(|alarm| alarm > due) {
                client.alarm = Some(due);
                self.alarms.push(Reverse((due, place)));
            }
        }
    }

    fn forget(&mut self, place: usize) {
        if let Some(client) = self.clients[place].take() {
            self.names.remove(&(client.key.wan, client.key.wan_port));
            self.free.push(place);
        }
    }

    fn is_anybody_there(&self) -> bool {
        self.free.len() < self.clients.len()
    }
}

impl Load for Clients {
    fn receive(&mut self, _: usize, head: &mut Head<'_>, now: Duration, out: &mut Outbox<'_>) {
        if let Parsed::Tcp(segment) = Parsed::parse(Side::Lan, head) {
            return self.receive_update(&segment, head, now, out);
        }
        if let Some(ServerUpdate::Asks { asker, target }) = neighbours::read(head.bytes())
            && self.manner.sources.contains(target)
        {
            answer(out, self.manner.target.vlan, asker, target, self.manner.target.from_mac);
        }
    }

    fn send(&mut self, now: Duration, out: &mut Outbox<'_>) {
        while let Some(&Reverse((due, place))) = self.alarms.peek()
            && due <= now
        {
            self.alarms.pop();
            // One that is not the client's alarm was set for something that is over.
            if let Some(client) = self.clients[place].as_mut().filter(|client| client.alarm == Some(due)) {
                client.alarm = None;
                self.awake.push(place);
            }
        }
        for place in std::mem::take(&mut self.awake) {
            self.look_after(place, now, out);
        }
        for _ in 0..self.pace.due(now) {
            let there = self.clients.len() - self.free.len();
            if there >= self.manner.most || !out.has_room(0) || !self.call(now) {
                break;
            }
            self.pace.made(1);
            if let Some(place) = self.awake.pop() {
                self.look_after(place, now, out);
            }
        }
    }

    fn next(&self) -> Option<Duration> {
        let alarm = self.alarms.peek().map(|Reverse((due, _))| *due);
        // While there are as many as may be, only an answer or an alarm makes room.
        let full = self.clients.len() - self.free.len() >= self.manner.most;
        let call = if full { None } else { self.pace.next() };
        let awake = (!self.awake.is_empty()).then_some(Duration::ZERO);
        [alarm, call, awake].into_iter().flatten().min()
    }

    fn is_over(&self, now: Duration) -> bool {
        self.pace.is_over(now) && !self.is_anybody_there()
    }
}

/// Tells who asks where one of our addresses is.
fn answer(out: &mut Outbox<'_>, vlan: Option<u16>, asker: (IpAddr, Mac), target: IpAddr, mac: Mac) {
    let mut frame = [0; 96];
    if let Some(len) = neighbours::tell(&mut frame, vlan, asker, target, mac) {
        out.copy(0, &frame[..len]);
    }
}
