//! What the engine would do with a frame, step by step, without its doing it.
//!
//! It is the engine itself that is asked: an excerpt of it, with copies of all that the fate of this one frame depends on (its connection,
//! what is known of its source and its server, the flow that would be evicted), decides on a copy of the frame. So what
//! is explained cannot drift from what is done; and as the excerpt is taken from `&self`, explaining changes nothing. Tests explain
//! every frame of every script, and compare the answer with what happens.

use core::fmt::{self, Write};

use super::Connection;
use crate::flow::table::{Id, Redirect, Table};
use crate::policy::ServiceMark;
use crate::proxy::Proxy;
use crate::proxy::passthrough::UnprovedFlows;
use crate::wire::{Flags, FlowKey, Kind, Mac, Options, Parsed, Segment, Tags, Walk, kind};
use crate::{Counters, Egress, Event, Head, Instant, Metadata, Side, Verdict};

/// Of an engine, whatever one frame's fate depends on.
pub struct Excerpt {
    proxy: Proxy,
    meta: Metadata,
    side: Side,
    knows: bool,
}

/// What would become of a frame, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What the engine saw and found, in its order, in words.
    pub steps: Vec<String>,
    /// What would become of the frame.
    pub verdict: Verdict,
    /// What would be counted besides a drop, and how often.
    pub events: Vec<(Event, u64)>,
    /// The connection before and after, where there is one.
    pub before: Option<Connection>,
    /// See `before`.
    pub after: Option<Connection>,
    /// The segments the engine would send of its own accord, each out of this port.
    pub sent: Vec<(Side, Vec<u8>)>,
    /// Held frames that would be decided on next.
    pub released: usize,
}

/// One field of a frame, by its name in the RFCs.
pub type Field = (&'static str, String);

impl Proxy {
    /// Of this engine, whatever the fate of a frame from `side` depends on: some hundred kilobytes at most, which can be explained on any thread, at any later time.
    pub fn excerpt(&self, side: Side, head: &Head) -> Excerpt {
        let mut meta = Metadata::default();
        self.parse(side, head, &mut meta);
        let key = meta.key().copied().unwrap_or_default();
        let isn = match &meta.parsed {
            Parsed::Tcp(segment) => segment.seq,
            _ => Default::default(),
        };
        let hash = meta.hash;
        let found = meta
            .key()
            .and_then(|key| self.table.find(key, hash))
            .or_else(|| Some(self.find_answered(side, &meta, head)?.id));
        let next_out = self.unproved.next_out().filter(|&(id, generation)| self.is_unproved(id, generation));
        let mut ids: Vec<Id> = found.into_iter().collect();
        if let Some((id, _)) = next_out.filter(|(id, _)| !ids.contains(id)) {
            ids.push(id);
        }
        let place = |id| Table::place_in_excerpt(ids.iter().position(|own| *own == id).unwrap_or_default());
        let unproved = UnprovedFlows::excerpt(next_out.map(|(id, generation)| (place(id), generation)));
        let own = found.map(|id| (id.0, place(id).0));
        let (table, candidates, inspection) = self.excerpt_of_flows(ids);
        let proxy = Proxy {
            settings: self.settings.clone(),
            quotas: self.quotas.excerpt(&key, own, table.capacity()),
            sweep: None,
            kernel_syns: None,
            table,
            handed_down: self.handed_down.excerpt(
                found.map_or(hash, |id| self.table[id].hash()),
                found.and_then(|id| self.table.redirected(id)),
            ),
            candidates,
            unproved,
            inspection,
            caches: self.caches.excerpt(&key, hash, isn, self.caches.limiter.place(&key)),
            counters: Counters::default(),
            proved: Vec::new(),
            updates: Vec::new(),
            questions: Vec::new(),
            arrived: None,
        };
        // Its own tables have other places.
        let meta = Metadata { tokens: 0, place: Id::NOWHERE, ..meta };
        Excerpt { proxy, meta, side, knows: found.is_some() }
    }
}

impl Metadata {
    /// The ends of the connection the frame belongs to, if it belongs to one.
    pub fn key(&self) -> Option<&FlowKey> {
        match &self.parsed {
            Parsed::Tcp(segment) => Some(&segment.key),
            Parsed::Error(quote) => Some(&quote.key),
            _ => None,
        }
    }
}

/// Takes down what is said.
#[derive(Default)]
struct Trace {
    steps: Vec<String>,
    sent: Vec<(Side, Vec<u8>)>,
}

/// Bytes of a spare frame: as many as any segment of ours, and the beginning of any frame one is made from.
const SPARE: usize = 2048;

impl Egress for Trace {
    const TRACES: bool = true;

    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut buffer = vec![0; SPARE];
        let len = write(&mut buffer);
        buffer.truncate(len);
        self.steps.push(format!(
            "a segment of our own leaves by the {} port: {}",
            name(to),
            summary(to.other(), &buffer)
        ));
        self.sent.push((to, buffer));
        true
    }

    fn note(&mut self, why: impl FnOnce() -> String) {
        self.steps.push(why());
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Excerpt").field("side", &self.side).field("hash", &self.meta.hash).finish_non_exhaustive()
    }
}

impl Excerpt {
    /// Whether the engine knows the connection the frame belongs to.
    pub fn knows_connection(&self) -> bool {
        self.knows
    }

    /// Whether the frame's sequence or acknowledgement numbers decide on it, or those it quotes: then the decision tells whether they are those of
    /// a cookie or of a connection, which only their ends shall know. True of every TCP segment but a SYN, and of ICMP errors about segments.
    pub fn is_judged_by_numbers(&self) -> bool {
        match &self.meta.parsed {
            Parsed::Tcp(segment) => segment.kind() != Kind::Syn,
            Parsed::Error(_) => true,
            _ => false,
        }
    }

    /// The keyed hash by which [`owner::share`](crate::owner::share) names the frame's worker; 0 if it belongs to no connection or packet.
    pub fn hash(&self) -> u64 {
        let settings = &self.proxy.settings;
        self.meta.key().map_or(self.meta.hash, |key| settings.naming.hash(key, self.meta.hash, settings.hash_keys))
    }

    /// Decides on the frame the excerpt was taken for, a copy of which is edited where it lies, as of `now`.
    pub fn explain(mut self, head: &mut Head, now: Instant) -> Explanation {
        let (side, meta, proxy) = (self.side, self.meta, &mut self.proxy);
        proxy.table.file_excerpt(now);
        let mut trace = Trace::default();
        trace.steps.push(format!("from the {}: {}", name(side), what(side, head, &meta)));
        let before = proxy.look_up(&meta, now);
        if let Some(key) = meta.key() {
            trace.steps.push(match &before {
                Some(connection) => format!("connection: {}", connection.status),
                None => {
                    format!("no connection between {} and {} is known", key.socket(Side::Wan), key.socket(Side::Lan))
                }
            });
        }
        trace.steps.extend(meta.key().and_then(|key| proxy.service_in_words(key, meta.hash)));
        let verdict = proxy.on_frame(side, &meta, head, now, &mut trace);
        let after = proxy.look_up(&meta, now);
        let released = core::iter::from_fn(|| proxy.next_release()).count();
        let happened = |&event: &Event| (event, proxy.counters.happened(event));
        let events = Event::ALL.iter().map(happened).filter(|(_, count)| *count > 0).collect();
        Explanation { steps: trace.steps, verdict, events, before, after, sent: trace.sent, released }
    }
}

impl Proxy {
    /// That the frame is one of a service, or for it, and what its server knows the connection by.
    fn service_in_words(&self, key: &FlowKey, hash: u64) -> Option<String> {
        let found = self.table.find(key, hash);
        let own = &found.map_or(*key, |id| self.table.key(id));
        let services = &self.settings.policy.services;
        let ServiceMark::Service(number) = self.settings.policy.rule(own).service else { return None };
        let service = services.get(number).filter(|_| !services.is_empty())?;
        let (socket, protocol, reach) = (own.socket(Side::Lan), service.protocol.label(), service.reach.label());
        let second =
            found.and_then(|id| self.table.redirected(id)).map(Redirect::key).map_or(String::new(), |second| {
                format!("; its server is {}, for which it is {}", second.socket(Side::Lan), second.socket(Side::Wan))
            });
        Some(format!("{socket} is a service of the box ({protocol}, {reach}){second}"))
    }

    fn look_up(&self, meta: &Metadata, now: Instant) -> Option<Connection> {
        let key = meta.key()?;
        let id = self.table.find(key, meta.hash)?;
        Some(self.connection(*key, &self.table[id], now))
    }
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Lan => "LAN",
        Side::Wan => "WAN",
    }
}

/// What a frame is, in words.
fn what(side: Side, head: &Head, meta: &Metadata) -> String {
    match &meta.parsed {
        Parsed::Tcp(segment) => {
            let sums = match segment.checksums_hold(head) {
                true => "",
                false if head.is_whole() && !segment.fragmented => "; its checksums are WRONG",
                false => "; not whole in sight, so that its checksums are not judged",
            };
            let piece = if segment.fragmented { " (the first of several fragments)" } else { "" };
            format!("TCP{piece} {}{sums}", segment_in_words(side, segment, head.bytes()))
        }
        Parsed::Error(quote) => {
            let (from, to) = (quote.key.socket(side), quote.key.socket(side.other()));
            format!(
                "an ICMP error ({:?}) about a segment from {to} to {from}, seq {}",
                quote.kind(head.bytes()),
                quote.seq.get()
            )
        }
        Parsed::StrayError => {
            "an ICMP error that quotes no readable segment, or one that its receiver did not send".into()
        }
        Parsed::Fragment(fragment) => {
            format!(
                "a {} fragment of packet {:#x}",
                if fragment.first { "first" } else { "later" },
                fragment.identification
            )
        }
        Parsed::Other => "no TCP, which is none of the proxy's business".into(),
        Parsed::Bad(_) => "nothing any frame may be".into(),
    }
}

/// A segment that comes from `side`, in a line.
fn summary(side: Side, frame: &[u8]) -> String {
    let mut copy = frame.to_vec();
    let len = copy.len();
    match Parsed::parse(side, &Head::whole(&mut copy, len)) {
        Parsed::Tcp(segment) => segment_in_words(side, &segment, frame),
        _ => format!("{len} bytes that are no segment"),
    }
}

fn segment_in_words(side: Side, segment: &Segment, frame: &[u8]) -> String {
    let Segment { seq, ack, window, flags, .. } = segment;
    let (from, to) = (segment.key.socket(side), segment.key.socket(side.other()));
    let mut words = format!("{from} > {to} {flags}, seq {}", seq.get());
    // Writing to a string cannot fail.
    if flags.has(Flags::ACK) {
        let _ = write!(words, ", ack {}", ack.get());
    }
    let _ = write!(words, ", window {}", window.0);
    if segment.payload_len() > 0 {
        let _ = write!(words, ", {} bytes", segment.payload_len());
    }
    for option in options_in_words(segment.options(frame)) {
        let _ = write!(words, ", {} {}", option.0, option.1);
    }
    words.trim_end().to_owned()
}

/// The options of a segment, each in words.
fn options_in_words(options: &[u8]) -> Vec<Field> {
    let said = Options::read(options);
    let mut words = Vec::new();
    if let Some(mss) = said.mss {
        words.push(("MSS", mss.to_string()));
    }
    if let Some(scale) = said.scale {
        words.push(("window scale", scale.get().to_string()));
    }
    if said.sack_permitted {
        words.push(("SACK", "permitted".into()));
    }
    if let Some(timestamps) = Options::timestamps(options) {
        words.push(("timestamps", format!("{} echo {}", timestamps.value, timestamps.echo)));
    }
    for (_, at, len) in Walk::new(options).filter(|(kind, ..)| *kind == kind::SACK) {
        let edges = options[at + 2..at + len].as_chunks().0.iter().map(|edge| u32::from_be_bytes(*edge));
        let edges: Vec<_> = edges.map(|edge| edge.to_string()).collect();
        words.push(("SACK blocks", edges.chunks(2).map(|block| block.join("-")).collect::<Vec<_>>().join(" ")));
    }
    words
}

/// The fields of a frame from `side`, those of a segment where it is one, as a reader of traces expects them.
pub fn fields(side: Side, frame: &[u8]) -> Vec<Field> {
    let mut copy = frame.to_vec();
    let len = copy.len();
    let head = Head::whole(&mut copy, len);
    let mac = |at: usize| {
        let mac: Option<&Mac> = frame.get(at..).and_then(|rest| rest.first_chunk());
        mac.map_or(String::new(), |mac| mac.map(|byte| format!("{byte:02x}")).join(":"))
    };
    let mut fields: Vec<Field> =
        vec![("length", len.to_string()), ("Ethernet source", mac(6)), ("Ethernet destination", mac(0))];
    let Parsed::Tcp(segment) = Parsed::parse(side, &head) else { return fields };
    let key = &segment.key;
    let Segment { seq, ack, window, flags, .. } = segment;
    let ip = usize::from(segment.ip);
    let tags = Tags::of(frame, ip);
    let tags = match tags.words() {
        [] => "none".into(),
        // Identifier 0 is a priority tag.
        words => words.iter().map(|tag| (tag & 0xfff).to_string()).collect::<Vec<_>>().join(" "),
    };
    fields.extend([
        ("VLAN tags", tags),
        ("source", key.socket(side).to_string()),
        ("destination", key.socket(side.other()).to_string()),
        ("hop limit", frame[ip + if key.v6 { 7 } else { 8 }].to_string()),
        ("flags", flags.to_string()),
        ("sequence number", seq.get().to_string()),
        ("acknowledgement", ack.get().to_string()),
        ("window", window.0.to_string()),
    ]);
    fields.extend(options_in_words(segment.options(frame)));
    fields.push(("payload", format!("{} bytes", segment.payload_len())));
    fields.push(("checksums", if segment.checksums_hold(&head) { "right" } else { "wrong, or not judged" }.into()));
    fields
}
