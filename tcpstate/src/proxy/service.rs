//! Connections to services: the box reads the first bytes, chooses the server by them, connects it and splices both halves by translation.
//!
//! ```text
//!   SYN, cookie, ACK        as for any server (`client_handshake`); the SYN-ACK opens a window for the first bytes
//!   State::Gathering        what the client sends is kept and acknowledged, until it says which server it is for
//!   State::ServerSynSent    the SYN to that server; what still comes is kept too
//!   State::Repeating        the server has answered: it is sent what the client was acknowledged, again until it has acknowledged that
//!   State::Established      as any connection, under two keys (`established`)
//! ```
//!
//! Where clients say themselves where they want to go, the box answers them first (`negotiation`).
//!
//! The sequence number of the SYN to the server is free. It is chosen so that the client's next byte has the client's own number for the server too,
//! whatever the box puts in front: from then on the client's numbers are the server's. While the box repeats, an acknowledgement of the server may
//! lie before what the client was acknowledged; it is raised to that, and its window lowered by as much.

use super::context::{Context, are_possible, is_damaged};
use super::join::{join, syn_window};
use super::proof::Proof;
use super::server_handshake::{fill_server_syn_sent, server_syn_options};
use super::{Egress, Proxy};
use crate::cache::gathered::Full;
use crate::cache::refused::Met;
use crate::cache::servers::{Observation, default_mss};
use crate::config::{Protocol, Reach};
use crate::cookie::ts_clock;
use crate::flow::table::wheel::{SECOND, Ticks, average, tick, ticks};
use crate::flow::table::{Id, Redirect};
use crate::flow::translate::{blank, replace32};
use crate::flow::{FlowFlags, State};
use crate::owner::share;
use crate::policy::ServiceMark;
use crate::policy::profiles::REPEATED;
use crate::seq::{RawWindow, SeqDelta, SeqNum, Window, WindowScale};
use crate::service::negotiation::Failure;
use crate::service::proxy_header::{self, Header, Told};
use crate::service::{Choice, Group, Member, Reading, Service, tls};
use crate::wire::checksum::Patch;
use crate::wire::{
    Ace, Addr, Flags, FlowKey, IPV4_LEN, IPV6_LEN, Kind, Mac, OptionList, Options, Outgoing, Segment, TCP_LEN, Walk,
    be16, kind, put16,
};
use crate::{DropReason, Event, Head, Instant, Side, Timing, Verdict};

/// How often bytes are repeated until the server is given up: 200 ms to 25 s, together 51 s.
const REPETITIONS: u8 = 8;
/// Segments that are sent to a server at once.
const FLIGHT: usize = 16;
/// From one attempt to the next to reach a server whose Ethernet address is not known yet: 62 ms, in ticks.
const WAIT_FOR_NEIGHBOUR: Ticks = 64;
/// How often a client that was turned away is told so.
const FAREWELLS: u8 = 4;
/// How much the box may have acknowledged a client by itself, and put in front of it.
const MOST_KEPT: u32 = 1 << 17;
/// For how long a client that was reset is reset again, should the first reset be lost: 4 s, in ticks. What it has sent was acknowledged, so that nothing
/// it sends again proves anything any more.
const RESET_AGAIN: Ticks = 4 * SECOND;

/// A server that is to be connected.
#[derive(Clone, Copy)]
pub(super) struct Destination {
    /// Its address.
    pub address: Addr,
    /// Its port.
    pub port: u16,
    /// Its slot among the servers that the configuration names ([`crate::cache::backends`]), if it is one.
    pub slot: u16,
}

/// What has become of a connection whose client has sent something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It goes on.
    Lives,
    /// The flow is gone.
    Ended,
}

impl Proxy {
    /// Whether this is an address of the box, on this side or the other.
    pub(super) fn is_own(&self, address: &Addr, key: &FlowKey) -> bool {
        let services = &self.settings.policy.services;
        !services.is_empty() && services.owner(address, key.vlan.identifiers().next().unwrap_or(0)).is_some()
    }

    /// Whether connections under this key are for the box.
    pub(super) fn mark(&self, key: &FlowKey) -> ServiceMark {
        if self.settings.policy.services.is_empty() {
            return ServiceMark::None;
        }
        self.settings.policy.rule(key).service
    }

    /// Counts what becomes of a client of a service.
    pub(super) fn count_of_service(&mut self, id: Id, event: Event) {
        self.counters.count(event);
        let ServiceMark::Service(number) = self.settings.policy.rule(&self.table.key(id)).service else { return };
        let Some(counts) = self.caches.backends.counts_mut(number) else { return };
        match event {
            Event::ServiceOpened => counts.opened += 1,
            Event::ServiceRouted => counts.routed += 1,
            Event::ServiceRefused => counts.refused += 1,
            Event::ServiceTimeout => counts.timeouts += 1,
            _ => {}
        }
    }

    /// Where the first bytes of a flow are kept, plus one; zero if nowhere.
    #[inline]
    pub(super) fn gathered(&self, id: Id) -> u16 {
        self.table.beside(id).map_or(0, |beside| beside.gathered)
    }

    /// Gives back where they are kept.
    pub(super) fn release_gathered(&mut self, id: Id) {
        let number = self.gathered(id);
        if number != 0 {
            self.caches.gathered.release(number);
            if let Some(beside) = self.table.beside_mut(id) {
                beside.gathered = 0;
            }
        }
    }

    /// A connection that another process has left before its server had the client's first bytes goes on if they are there, and ends when its timer is looked
    /// at if not.
    pub(super) fn resume_gathered(&mut self, id: Id) {
        let (flow, number) = (&self.table[id], self.gathered(id));
        let is_redirected = flow.is(FlowFlags::REDIRECTED);
        let waits = match flow.state() {
            State::Gathering => true,
            State::ServerSynSent | State::Repeating => is_redirected,
            _ => false,
        };
        // The server of a connection that repeats may have acknowledged more than is kept: that, it has got.
        let acked = (flow.state() != State::Repeating).then(|| flow.endpoint(Side::Lan).acked);
        let is_there = waits && self.caches.gathered.adopt(number, id.0, acked);
        // A client that has sent nothing has lost nothing. One that was killed while its server was chosen is in doubt.
        let is_sound = match flow.state() {
            State::Gathering => (is_there || number == 0) && !is_redirected,
            State::ServerSynSent => is_there || number == 0,
            _ => is_there,
        };
        if let Some(beside) = self.table.beside_mut(id).filter(|_| !is_there) {
            beside.gathered = 0;
        }
        if waits && !is_sound {
            self.table.update(id, |flow| flow.attempts = u8::MAX);
        }
    }

    /// Whether it is such a one.
    fn is_given_up(&self, id: Id) -> bool {
        self.table[id].attempts == u8::MAX
    }

    /// A client of a service has proved its address: the box keeps what it sends. The segment with the proof may bring the first of it.
    pub(super) fn open_service(
        &mut self,
        mut ctx: Context<impl Egress>,
        proof: &Proof,
        number: u16,
        shown: Option<u32>,
    ) -> Verdict {
        let (key, hash, now) = (*ctx.key(), ctx.hash, ctx.now);
        let Some(service) = self.settings.policy.services.get(number) else {
            return self.refuse_in_place(&mut ctx, None, proof.outer_isn + 1, None);
        };
        let patience = ticks(service.patience);
        let room = self.caches.gathered.room();
        let filled = self.admit(&key, hash, Side::Wan, State::Gathering, now, |flow| {
            fill_server_syn_sent(flow, &ctx, proof, shown);
            // The box's clock goes on from the TSval of its SYN-ACK.
            let clock = ts_clock(now);
            let base = SeqNum::later(clock, flow.endpoint(Side::Lan).ts_value).wrapping_add(1);
            flow.ts_delta = SeqDelta::between(clock, base);
            let next = flow.endpoint(Side::Wan).next;
            let own = flow.endpoint_mut(Side::Lan);
            (own.acked, own.window, own.ttl) = (next, RawWindow(room), 0);
            flow.set(FlowFlags::TIMESTAMPS_PRESUMED, flow.is(FlowFlags::TIMESTAMPS));
            // What the box says to a client of accurate ECN has the count with which every server begins (RFC 9768 section 3.2.2).
            flow.set_ace(Side::Lan, Ace::FIRST);
        });
        let Some(id) = filled else { return self.turn_away(ctx, proof) };
        if let Some(beside) = self.table.beside_mut(id) {
            *beside = Redirect::new(&FlowKey::default(), 0, self.arrived.unwrap_or(Side::Wan), Side::Lan);
        }
        self.table.schedule(id, tick(now).wrapping_add(patience));
        self.remember_candidate(id);
        self.count_of_service(id, Event::ServiceOpened);
        ctx.egress.note(|| format!("proved; the box waits up to {patience} ticks for what the client asks for"));
        self.gather(ctx, id)
    }

    /// Segments of a client whose server has not answered.
    pub(super) fn on_client_while_gathering(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        match ctx.kind {
            Kind::SynAck | Kind::Bad => return Verdict::Drop(DropReason::WrongState),
            Kind::Syn => return self.answer_syn(ctx, Some(id)),
            Kind::Rst | Kind::Ack => {}
        }
        if self.table[id].is(FlowFlags::RESET_LAN) {
            return self.reset_again(ctx, id);
        }
        if self.table[id].has_finished(Side::Lan) {
            return self.on_turned_away(ctx, id);
        }
        let Segment { seq, ack, .. } = *ctx.segment;
        let flow = &self.table[id];
        let next = flow.endpoint(Side::Wan).next;
        // What the box has said in its own name may be acknowledged.
        let may_acknowledge = ack.within(flow.outer_isn + 1, flow.endpoint(Side::Lan).next);
        if ctx.kind == Kind::Rst {
            if seq != next {
                return Verdict::Drop(DropReason::BadReset);
            }
            if !ctx.is_sound() {
                return Verdict::Drop(DropReason::BadChecksum);
            }
            self.abort_server(id, ctx.egress);
            self.forget(id);
            return Verdict::Drop(DropReason::Consumed);
        }
        // What was acknowledged may come again, and what is beyond the window is not kept.
        let is_near = seq.within(next - u32::from(self.caches.gathered.room()) - 1, next + flow.granted(Side::Lan).0);
        ctx.egress.note(|| {
            format!(
                "the box keeps what the client sends; next is seq {}, ack {}",
                next.get(),
                (flow.outer_isn + 1).get()
            )
        });
        if !may_acknowledge || !is_near {
            if flow.is(FlowFlags::REOPENING) {
                return self.on_cookie_ack(ctx, Some(id));
            }
            return Verdict::Drop(DropReason::WrongState);
        }
        if is_damaged(&ctx) {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        self.hear(id, &ctx);
        let was_silent = ctx.segment.seq_len() == 0 && seq == next;
        if was_silent {
            // An acknowledgement or a window update.
            self.follow_client(&ctx, id);
            return Verdict::Drop(DropReason::Consumed);
        }
        self.note_path(&mut ctx, id);
        self.gather(ctx, id)
    }

    /// Keeps where the client is.
    fn note_path(&mut self, ctx: &mut Context<impl Egress>, id: Id) {
        let envelope = ctx.envelope();
        if !self.table[id].is_on_path(Side::Wan, &envelope) {
            self.table.update(id, |flow| flow.follow_path(Side::Wan, &envelope));
        }
    }

    /// Notes a client's window and clock.
    fn follow_client(&mut self, ctx: &Context<impl Egress>, id: Id) {
        let window = ctx.segment.window;
        let timestamps = Options::timestamps(ctx.options());
        self.table.update(id, |flow| {
            let client = flow.endpoint_mut(Side::Wan);
            client.window = window;
            if let Some(timestamps) = timestamps {
                client.ts_value = SeqNum::later(client.ts_value, timestamps.value);
            }
        });
    }

    /// Keeps what a segment brings, acknowledges it, and looks whether it says which server it is for.
    fn gather(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        let (seq, now) = (ctx.segment.seq, ctx.now);
        self.follow_client(&ctx, id);
        let len = ctx.segment.payload_len() as usize;
        // A fragment, or a frame in several buffers, does not show all it brings: it is not acknowledged.
        let is_whole = !ctx.segment.fragmented && ctx.head.is_whole();
        if len > 0 && is_whole {
            let number = match self.gathered(id) {
                0 => match self.take_place(id, now, ctx.egress) {
                    Some(number) => number,
                    None => return Verdict::Drop(DropReason::NotHeld),
                },
                number => number,
            };
            let payload = &ctx.head.bytes()[ctx.segment.payload.into()..][..len];
            let fresh = self.caches.gathered.keep(number, seq, payload);
            let place = self.caches.gathered.get(number);
            let (end, left) = (place.end(), self.caches.gathered.room() - place.len());
            self.table.update(id, |flow| {
                flow.endpoint_mut(Side::Wan).next = end;
                let own = flow.endpoint_mut(Side::Lan);
                (own.acked, own.window) = (end, RawWindow(left));
            });
            if fresh > 0 && self.table[id].is_in(State::Gathering) {
                self.counters.count(Event::Gathered);
                let said_len = self.caches.gathered.get(number).said_len();
                if self.read(id, fresh.into(), now, ctx.egress) == Outcome::Ended {
                    return Verdict::Drop(DropReason::Consumed);
                }
                if self.gathered(id) == number && self.caches.gathered.get(number).said_len() > said_len {
                    // What the box has said acknowledges it.
                    return Verdict::Drop(DropReason::Consumed);
                }
            }
        }
        if self.table[id].is(FlowFlags::RESET_LAN.and(FlowFlags::FIN_LAN)) {
            return Verdict::Drop(DropReason::Consumed);
        }
        if ctx.segment.seq_len() == 0 && seq == self.table[id].endpoint(Side::Wan).next {
            return Verdict::Drop(DropReason::Consumed);
        }
        self.acknowledge_in_place(&mut ctx, id)
    }

    /// A place for the first bytes of a flow.
    fn take_place(&mut self, id: Id, now: Instant, egress: &mut impl Egress) -> Option<u16> {
        let key = self.table.key(id);
        let (network, first) = (self.caches.limiter.network(&key), self.table[id].endpoint(Side::Wan).next);
        let number = match self.caches.gathered.take(id.0, network.into(), first) {
            Ok(number) => number,
            Err(Full::Spare(owner)) => {
                let owner = self.table.at(owner);
                self.count_of_flow(owner, Event::GatheredSpared);
                self.end_both(owner, tick(now), egress);
                self.caches.gathered.take(id.0, network.into(), first).ok()?
            }
            Err(Full::Refused) => return None,
        };
        self.table.beside_mut(id)?.gathered = number;
        Some(number)
    }

    /// Looks whether what has come says which server it is for, and connects that.
    fn read(&mut self, id: Id, fresh: usize, now: Instant, egress: &mut impl Egress) -> Outcome {
        let policy = self.settings.policy.clone();
        let ServiceMark::Service(service) = policy.rule(&self.table.key(id)).service else {
            return self.refuse(id, None, now, egress);
        };
        let Some(service) = policy.services.get(service) else { return self.refuse(id, None, now, egress) };
        let number = self.gathered(id);
        if self.awaits_header(id, service) {
            match proxy_header::read(self.caches.gathered.bytes(number), self.caches.gathered.room().into()) {
                Told::More => return Outcome::Lives,
                Told::Other => {
                    egress.note(|| "a proxy that is trusted sends no header of the PROXY protocol".into());
                    return self.refuse(id, None, now, egress);
                }
                Told::Ends(len, ends) => self.take_header(id, len, ends.as_ref(), egress),
            }
        }
        if service.protocol.language().is_some() {
            return self.negotiate(id, service, fresh, now, egress);
        }
        let skipped = self.caches.gathered.get(number).skipped();
        let (bytes, room) = (self.caches.gathered.bytes(number), self.caches.gathered.room() - skipped);
        let reading = service.read(&bytes[skipped.into()..], fresh, room.into());
        let group = match &reading {
            Reading::More => return Outcome::Lives,
            Reading::Asks(asked) => {
                egress.note(|| match asked.name {
                    Some(name) => format!("the client asks for {name}"),
                    None => "the client asks for no name".into(),
                });
                service.route(asked)
            }
            Reading::Other => {
                egress.note(|| "the client does not speak what is expected here".into());
                service.default()
            }
        };
        match (group, reading) {
            (Some(group), _) => self.dial(id, service, group, now, egress),
            (None, Reading::Asks(_)) => self.refuse(id, Some(service.protocol), now, egress),
            (None, _) => self.refuse(id, None, now, egress),
        }
    }

    /// Whether a header of the PROXY protocol is to come on a connection before anything else.
    fn awaits_header(&self, id: Id, service: &Service) -> bool {
        let number = self.gathered(id);
        service.trusts(&self.table.key(id).wan) && (number == 0 || self.caches.gathered.get(number).skipped() == 0)
    }

    /// A proxy has said who its client is, in the first `len` bytes.
    fn take_header(&mut self, id: Id, len: usize, ends: Option<&FlowKey>, egress: &mut impl Egress) {
        egress.note(|| match ends {
            Some(ends) => format!("its client is {}, says the proxy", ends.socket(Side::Wan)),
            None => "the proxy names no client".into(),
        });
        if let Some(beside) = self.table.beside_mut(id) {
            beside.tell(ends);
        }
        self.caches.gathered.skip(self.gathered(id), len as u16);
    }

    /// The ends of a connection as its client sees them: those that a proxy has told, if one has.
    fn ends_of_client(&self, id: Id) -> FlowKey {
        let own = self.table.key(id);
        let number = self.gathered(id);
        if number == 0 {
            return own;
        }
        let header = &self.caches.gathered.bytes(number)[..self.caches.gathered.get(number).skipped().into()];
        match proxy_header::read(header, usize::MAX) {
            Told::Ends(_, Some(ends)) => ends,
            _ => own,
        }
    }

    /// Connects a server of a group.
    fn dial(&mut self, id: Id, service: &Service, group: &Group, now: Instant, egress: &mut impl Egress) -> Outcome {
        let policy = self.settings.policy.clone();
        let Some(member) = self.choose(id, group) else { return self.refuse(id, None, now, egress) };
        let Some(server) = policy.services.servers().get(usize::from(member.server)) else {
            return self.refuse(id, None, now, egress);
        };
        let slot = self.caches.backends.slot(member.server);
        self.connect_to(id, service, Destination { address: server.address, port: server.port, slot }, now, egress)
    }

    /// The box cannot connect a client's server: the client is reset, or told so if it talks to the box.
    fn give_up(&mut self, id: Id, now: Instant, egress: &mut impl Egress) -> Outcome {
        if !self.talks(id) {
            return self.refuse(id, None, now, egress);
        }
        self.fail(id, Failure::General, now, egress);
        Outcome::Lives
    }

    /// Connects a server.
    pub(super) fn connect_to(
        &mut self,
        id: Id,
        service: &Service,
        to: Destination,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Outcome {
        let key = self.table.key(id);
        let (second, own_mac) = match service.reach {
            Reach::Nat => (FlowKey { lan: to.address, lan_port: to.port, ..key }, [0; 6]),
            Reach::Mac => (key, [0; 6]),
            Reach::Full => match self.take_source(service, &to, &key, now) {
                Some(source) => source,
                None => {
                    self.counters.count(Event::PoolExhausted);
                    return self.give_up(id, now, egress);
                }
            },
        };
        let second_hash = second.hash(self.settings.hash_keys);
        egress.note(|| {
            format!("its server is {}, for which it is {}", second.socket(Side::Lan), second.socket(Side::Wan))
        });
        match self.table.find(&second, second_hash) {
            Some(other) if other == id => {}
            Some(other) if self.table[other].is_over() => self.forget(other),
            // The client has a connection to the server itself between the same ports.
            Some(_) => return self.give_up(id, now, egress),
            None => {}
        }
        let gathered = self.gathered(id);
        let mut redirect = Redirect::new(&second, second_hash, self.port_of(id, Side::Wan), service.side);
        (redirect.mac, redirect.gathered) = (self.table[id].mac(Side::Lan), gathered);
        (redirect.own_mac, redirect.slot) = (own_mac, to.slot.wrapping_add(1));
        redirect.tell(self.table.beside(id).and_then(Redirect::told).as_ref());
        if !are_possible(&second) || !self.table.redirect(id, redirect) {
            return self.give_up(id, now, egress);
        }
        self.caches.backends.count(to.slot);
        let header = Header::new(service.header, &self.ends_of_client(id));
        if !header.bytes().is_empty() {
            let number = if gathered == 0 { self.take_place(id, now, egress) } else { Some(gathered) };
            let Some(number) = number else { return self.give_up(id, now, egress) };
            self.caches.gathered.put_header(number, header);
        }
        self.set_state(id, State::ServerSynSent, now, |flow| {
            flow.attempts = 0;
            flow.born = tick(now);
            flow.set_mac(Side::Lan, [0; 6]);
        });
        self.remember_candidate(id);
        self.count_of_service(id, Event::ServiceRouted);
        self.send_service_syn(id, now, egress);
        Outcome::Lives
    }

    /// Sends the SYN to a server of a service, or waits for its Ethernet address, and sets the timer for the next.
    fn send_service_syn(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        if self.table[id].mac(Side::Lan) == [0; 6] && !self.find_server(id, now) {
            egress.note(|| "the server's Ethernet address is not known yet".into());
            return self.table.schedule(id, tick(now).wrapping_add(WAIT_FOR_NEIGHBOUR));
        }
        let flow = self.table[id];
        let envelope = self.envelope(id, Side::Wan);
        let options = server_syn_options(&flow, SeqDelta::default(), 0);
        let syn = Outgoing {
            envelope: &envelope,
            seq: self.next_number(id, Side::Lan) - 1,
            ack: SeqNum::default(),
            flags: Flags::SYN.asking_for(flow.syn_ecn()),
            window: syn_window(&flow),
            options: &options,
        };
        if self.emit(Side::Lan, &syn, egress) {
            self.counters.count(Event::Dialled);
        }
        let lifetimes = *self.settings.profiles.of(flow.profile);
        let passed = tick(now).wrapping_sub(flow.born);
        let doubled =
            lifetimes.retransmit_syn.saturating_mul(1u32.checked_shl(flow.attempts.into()).unwrap_or(u32::MAX));
        let left = lifetimes.server_syn_sent.saturating_sub(passed).max(1);
        self.table.schedule(id, tick(now).wrapping_add(doubled.min(lifetimes.retransmit_max).min(left)));
        self.table.update(id, |flow| flow.attempts = flow.attempts.saturating_add(1).min(u8::MAX - 1));
    }

    /// The member of a group that a client's connection goes to: of those that accept connections, or else, whose Ethernet address is known.
    fn choose(&self, id: Id, group: &Group) -> Option<Member> {
        let told = self.table.beside(id).and_then(Redirect::told);
        let FlowKey { wan, v6, .. } = told.unwrap_or_else(|| self.table.key(id));
        let (neighbours, backends) = (&self.caches.neighbours, &self.caches.backends);
        let is_known = |slot| backends.next_hop(slot).and_then(|hop| neighbours.mac(hop)).is_some();
        let rank = |server| {
            let slot = backends.slot(server);
            2 * u8::from(backends.is_up(slot)) + u8::from(is_known(slot))
        };
        group.choose(&Choice {
            connection: self.table[id].hash(),
            client: FlowKey { wan, v6, ..FlowKey::default() }.hash(self.settings.hash_keys),
            rank: &rank,
            load: &|server| backends.connections(backends.slot(server)),
            is_drained: &|server| backends.is_drained(backends.slot(server)),
        })
    }

    /// The second key of a connection in which an address of the box stands for the client, and that address's Ethernet address. Its port has rested, and the
    /// server's answers come to this worker.
    fn take_source(
        &mut self,
        service: &Service,
        to: &Destination,
        key: &FlowKey,
        now: Instant,
    ) -> Option<(FlowKey, Mac)> {
        let second = |&wan: &Addr, wan_port| FlowKey { lan: to.address, lan_port: to.port, wan, wan_port, ..*key };
        let (table, settings) = (&self.table, &self.settings);
        let (number, port) = self.caches.source_ports.take(&service.pool, now, |address, port| {
            let second = second(address, port);
            let hash = second.hash(settings.hash_keys);
            let owner = share(settings.naming.hash(&second, hash, settings.hash_keys), settings.worker.of);
            owner == settings.worker.number && table.find(&second, hash).is_none()
        })?;
        let own = self.settings.policy.services.pools().get(usize::from(number))?;
        Some((second(&own.address, port), own.mac))
    }

    /// Counts a connection to a service that another process has left.
    pub(super) fn recount_server(&mut self, id: Id) {
        let Some(redirect) = self.table.redirected(id).copied() else { return };
        let key = redirect.key();
        let vlan = key.vlan.identifiers().next().unwrap_or(0);
        let left = redirect.slot.checked_sub(1);
        let slot = self.caches.backends.slot_left(left, &key.lan, key.lan_port, vlan);
        if let Some(slot) = slot {
            self.caches.backends.recount(slot);
        }
        if let Some(beside) = self.table.beside_mut(id) {
            beside.slot = slot.map_or(0, |slot| slot + 1);
        }
    }

    /// A connection that had a server ends.
    #[inline(never)]
    pub(super) fn release_server(&mut self, id: Id) {
        let Some(redirect) = self.table.redirected(id).copied() else { return };
        if let Some(slot) = redirect.slot.checked_sub(1) {
            self.caches.backends.discount(slot);
        }
        if redirect.own_mac == [0; 6] {
            return;
        }
        let (key, flow) = (redirect.key(), &self.table[id]);
        let left = flow.deadline().wrapping_sub(tick(self.caches.source_ports.now)) as i32;
        // In TIME-WAIT it has rested here.
        if !flow.is_in(State::TimeWait) || left > 1 {
            let vlan = key.vlan.identifiers().next().unwrap_or(0);
            self.caches.source_ports.note_end(&key.wan, vlan, key.wan_port);
        }
    }

    /// Writes the Ethernet address of a flow's server into its record, if it is known by now.
    fn find_server(&mut self, id: Id, now: Instant) -> bool {
        let slot = self.table.redirected(id).and_then(|redirect| redirect.slot.checked_sub(1));
        let router = || match self.settings.policy.rule(&self.table.key(id)).service {
            ServiceMark::Service(number) => self.settings.policy.services.get(number)?.router,
            _ => None,
        };
        let hop = slot.map_or_else(router, |slot| self.caches.backends.next_hop(slot));
        let Some(hop) = hop else { return false };
        let Some(mac) = self.caches.neighbours.mac(hop) else {
            self.caches.neighbours.want(hop, now);
            return false;
        };
        self.table.update(id, |flow| flow.set_mac(Side::Lan, mac));
        true
    }

    /// The timer of a connection whose server has not answered.
    pub(super) fn redial(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        if self.table[id].is(FlowFlags::RESET_LAN) {
            return self.forget(id);
        }
        self.table.enter(id, tick(now).wrapping_add(1));
        if self.table[id].has_finished(Side::Lan) {
            return self.repeat_farewell(id, now, egress);
        }
        let (key, flow) = (self.table.key(id), &self.table[id]);
        let passed = tick(now).wrapping_sub(flow.born);
        if self.is_given_up(id) || passed >= self.settings.profiles.of(flow.profile).server_syn_sent {
            self.counters.count(Event::DialTimeout);
            return match self.is_given_up(id) || !self.talks(id) {
                true => self.end_both(id, tick(now), egress),
                false => self.fail(id, Failure::TimedOut, now, egress),
            };
        }
        if flow.attempts > 1 && !flow.is(FlowFlags::SYN_CHALLENGED) {
            let server = self.table.redirected(id).map_or(key, Redirect::key);
            self.remember(&server, Met::Silence, true, now);
        }
        if self.table[id].attempts > 0 {
            self.counters.count(Event::DialRepeated);
        }
        self.speak(id, now, egress);
        self.send_service_syn(id, now, egress);
    }

    /// Segments of a server of a service that has not answered.
    pub(super) fn on_server_of_service(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        if self.table[id].is(FlowFlags::RESET_LAN) || self.table[id].has_finished(Side::Lan) {
            return self.on_own_side(ctx, Kind::Rst);
        }
        let next = self.next_number(id, Side::Lan);
        let acknowledges = ctx.segment.flags.has(Flags::ACK);
        let answers = acknowledges && ctx.segment.ack == next;
        ctx.egress.note(|| format!("SYN sent to the server; an answer acknowledges {}", next.get()));
        if ctx.kind == Kind::Rst && !answers {
            return Verdict::Drop(DropReason::BadReset);
        }
        if !ctx.is_sound() {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        match ctx.kind {
            Kind::Rst => {
                self.counters.count(Event::Refused);
                self.remember(ctx.key(), Met::Reset, true, ctx.now);
                match self.talks(id) {
                    true => self.fail(id, Failure::Refused, ctx.now, ctx.egress),
                    false => self.end_client(id, tick(ctx.now), ctx.egress),
                }
                Verdict::Drop(DropReason::Consumed)
            }
            Kind::SynAck if answers => self.splice_service(ctx, id),
            _ if acknowledges && !answers => self.answer_challenge(ctx, id, WAIT_FOR_NEIGHBOUR),
            _ => Verdict::Drop(DropReason::WrongState),
        }
    }

    /// The server has answered: it gets what the client was acknowledged, and the client the server's window.
    fn splice_service(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        let now = ctx.now;
        let answered = Options::read(ctx.options());
        let frame = ctx.head.bytes();
        let seen = (ctx.segment.ttl, ctx.segment.class(frame), ctx.segment.ecn(frame));
        let envelope = ctx.envelope();
        let own = self.table.key(id);
        let rule = *self.settings.policy.rule(&own);
        let told_mss = self.caches.server_options.most_told(&own, &rule, now);
        let observation = Observation::of(ctx.segment, ctx.head.bytes(), answered, &self.table[id]);
        self.learn(ctx.key(), &observation, now);
        let number = self.gathered(id);
        let left = if number == 0 { 0 } else { self.caches.gathered.left(number) };
        let language = if number == 0 { None } else { self.caches.gathered.get(number).language() };
        if let (Some(language), Some(redirect)) = (language, self.table.redirected(id)) {
            self.say(id, language.success(&redirect.key()).bytes());
        }
        let said_len = if number == 0 { 0 } else { self.caches.gathered.get(number).said_len() };
        let state = if left == 0 && said_len == 0 { State::WindowPending } else { State::Repeating };
        let kept_to = self.table[id].endpoint(Side::Lan).acked;
        if let Some(beside) = self.table.beside_mut(id) {
            beside.kept_to = kept_to;
        }
        let answer = *ctx.segment;
        if state == State::WindowPending {
            self.release_gathered(id);
        }
        self.set_state(id, state, now, |flow| {
            // What the server sends comes behind what the box has said.
            flow.outer_isn = flow.outer_isn + u32::from(said_len);
            if said_len > 0 {
                flow.endpoint_mut(Side::Wan).acked = flow.outer_isn + 1;
            }
            // The clock that the client was shown goes on.
            let shown = flow.ts_delta.shift(ts_clock(now));
            flow.endpoint_mut(Side::Lan).ts_value = shown;
            join(flow, &answer, &answered, seen, now);
            flow.follow_path(Side::Lan, &envelope);
            flow.mss_lan = answered.mss.unwrap_or(default_mss(&own));
            flow.set(FlowFlags::MSS_BROKEN, flow.mss_lan < told_mss);
            let granted = u32::from(answer.window.0).saturating_sub(left);
            flow.endpoint_mut(Side::Lan).window = RawWindow(granted as u16);
        });
        self.remember_candidate(id);
        self.counters.count(Event::Spliced);
        self.counters.time(Timing::ServerConnect, average(tick(now).wrapping_sub(self.table[id].born)));
        if left > 0 {
            self.caches.gathered.grant(number, answer.window.0.into());
            self.repeat(id, now, ctx.egress);
        } else {
            self.send_acknowledgement(id, now, ctx.egress);
        }
        let wait = if state == State::Repeating { ticks(REPEATED) } else { SECOND };
        self.table.schedule(id, tick(now).wrapping_add(wait));
        if said_len > 0 {
            self.speak(id, now, ctx.egress);
            return Verdict::Drop(DropReason::Consumed);
        }
        let (envelope, update) = (self.envelope(id, Side::Lan), self.acknowledgement(id, Side::Wan, now));
        match ctx.overwrite(&update.outgoing(&envelope)) {
            true => Verdict::Forward,
            false => Verdict::Drop(DropReason::NoRoom),
        }
    }

    /// Sends a server what it has not been sent of the bytes that are kept, as far as its window reaches.
    fn repeat(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        let number = self.gathered(id);
        let envelope = self.envelope(id, Side::Wan);
        for _ in 0..FLIGHT {
            let gathered = &self.caches.gathered;
            if !gathered.has_next(number) {
                return;
            }
            let acknowledgement = self.acknowledgement(id, Side::Lan, now);
            let mut outgoing = acknowledgement.outgoing(&envelope);
            let mss =
                usize::from(self.table[id].mss_lan.min(self.table[id].mss)).max(64 + outgoing.options.bytes().len());
            let most = mss - outgoing.options.bytes().len();
            let mut count = 0;
            let sent = egress.emit(envelope.port, |buffer| {
                let header = envelope.frame_len(outgoing.options);
                let room = most.min(buffer.len().saturating_sub(header));
                let seq;
                (seq, count) = gathered.next(number, &mut buffer[header..header + room]);
                (outgoing.seq, outgoing.flags) = (seq, outgoing.flags.and(Flags::PSH));
                outgoing.write_around(buffer, count)
            });
            if !sent {
                return self.counters.count(Event::NoSpareFrame);
            }
            self.caches.gathered.note_sent(number, count);
        }
    }

    /// Sends a server in smaller segments what it has not acknowledged.
    pub(super) fn repeat_smaller(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        self.caches.gathered.rewind(self.gathered(id));
        self.repeat(id, now, egress);
    }

    /// The server has not acknowledged what was repeated.
    pub(super) fn repeat_again(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        let number = self.gathered(id);
        if self.is_given_up(id) || number == 0 || self.table[id].attempts >= REPETITIONS {
            return self.end_both(id, tick(now), egress);
        }
        self.counters.count(Event::GatheredRepeated);
        let attempts = self.table.update(id, |flow| {
            flow.attempts += 1;
            flow.attempts
        });
        self.caches.gathered.rewind(number);
        self.repeat(id, now, egress);
        self.speak(id, now, egress);
        self.table.enter(id, tick(now).wrapping_add(ticks(REPEATED) << attempts));
    }

    /// Segments of a server that has not acknowledged what was repeated.
    pub(super) fn on_server_while_repeating(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        let number = self.gathered(id);
        if number == 0 {
            return self.on_established(ctx, id);
        }
        if ctx.kind == Kind::SynAck {
            if !ctx.is_sound() {
                return Verdict::Drop(DropReason::BadChecksum);
            }
            self.counters.count(Event::AnswerRepeated);
            if self.caches.gathered.left(number) == 0 {
                self.send_acknowledgement(id, ctx.now, ctx.egress);
            }
            self.caches.gathered.rewind(number);
            self.repeat(id, ctx.now, ctx.egress);
            return Verdict::Drop(DropReason::Consumed);
        }
        if ctx.kind != Kind::Ack {
            return self.on_established(ctx, id);
        }
        if is_damaged(&ctx) {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let Segment { ack, window, .. } = *ctx.segment;
        let Window(granted) = window << self.table[id].endpoint(Side::Lan).scale().unwrap_or_default();
        let is_new = self.caches.gathered.acknowledge(number, ack);
        if is_new || ack == self.caches.gathered.unacked(number) {
            self.caches.gathered.grant(number, granted);
        }
        if self.settle_repeating(id, ctx.now) {
            return self.on_established(ctx, id);
        }
        if is_new {
            self.table.update(id, |flow| flow.attempts = 0);
            self.table.schedule(id, tick(ctx.now).wrapping_add(ticks(REPEATED)));
            self.repeat(id, ctx.now, ctx.egress);
        }
        self.on_established(ctx, id)
    }

    /// Ends the time in which the box repeats what one of the ends has not acknowledged, if both have acknowledged all; whether they have.
    pub(super) fn settle_repeating(&mut self, id: Id, now: Instant) -> bool {
        let number = self.gathered(id);
        if self.caches.gathered.left(number) > 0 || self.caches.gathered.get(number).unheard() > 0 {
            return false;
        }
        self.release_gathered(id);
        self.follow_state(id, now, |flow| {
            flow.attempts = 0;
            flow.state_by_fins()
        });
        true
    }

    /// Raises the acknowledgement of a segment of a client to the first number of the server, if it lies before that: in what the box has said in its own name,
    /// before the client has acknowledged that, or when such a segment comes late.
    pub(super) fn raise_client(&self, ctx: &mut Context<impl Egress>, id: Id) -> Segment {
        let (segment, flow) = (*ctx.segment, &self.table[id]);
        let first = flow.outer_isn + 1;
        let is_of_box = first.beyond(segment.ack) <= crate::service::negotiation::LONGEST as u32;
        // Numbers come round: once the server has sent four gigabytes, they are its own.
        let has_wrapped = flow.endpoint(Side::Wan).acked.before(first);
        if !segment.ack.before(first) || !is_of_box || has_wrapped {
            return segment;
        }
        raise_to(ctx, first, flow.endpoint(Side::Wan).scale().unwrap_or_default())
    }

    /// Raises the acknowledgement of a segment of a service's server to what the box itself has acknowledged the client, if it lies before that, and lowers its
    /// window by as much: while the box repeats, and when such a segment comes late. Not to what the server has acknowledged since, as far as the record says:
    /// that may be of a damaged segment, and what passes bears a sound sum.
    pub(super) fn raise(&self, ctx: &mut Context<impl Egress>, id: Id) -> Segment {
        let (segment, flow) = (*ctx.segment, &self.table[id]);
        let Some(redirect) = self.table.redirected(id) else { return segment };
        let end = redirect.kept_to + redirect.seq_delta;
        let is_kept = end.beyond(segment.ack) <= MOST_KEPT;
        let has_wrapped = flow.endpoint(Side::Lan).acked.before(redirect.kept_to);
        if !segment.ack.before(end) || !is_kept || has_wrapped {
            return segment;
        }
        raise_to(ctx, end, flow.endpoint(Side::Lan).scale().unwrap_or_default())
    }

    /// The client has not said in time what it asks for, or was turned away and does not leave.
    pub(super) fn end_patience(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        if self.table[id].is(FlowFlags::RESET_LAN) {
            return self.forget(id);
        }
        self.table.enter(id, tick(now).wrapping_add(1));
        if self.is_given_up(id) {
            return self.end_both(id, tick(now), egress);
        }
        if self.table[id].has_finished(Side::Lan) {
            return self.repeat_farewell(id, now, egress);
        }
        if self.continue_talk(id, now, egress) {
            return;
        }
        self.count_of_service(id, Event::ServiceTimeout);
        let policy = self.settings.policy.clone();
        let service = match policy.rule(&self.table.key(id)).service {
            ServiceMark::Service(number) => policy.services.get(number),
            _ => None,
        };
        // A protocol in which the server speaks first, or none that is known; but who the client is must be known.
        let service = service.filter(|service| !self.awaits_header(id, service));
        match service.and_then(|service| Some((service, service.default()?))) {
            Some((service, group)) => _ = self.dial(id, service, group, now, egress),
            None => _ = self.refuse(id, None, now, egress),
        }
    }

    /// A client that was turned away has not acknowledged that, or does not leave.
    fn repeat_farewell(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        if self.table[id].is_all(&[FlowFlags::FIN_LAN_ACKED, FlowFlags::FIN_WAN]) {
            return self.forget(id);
        }
        let attempts = self.table.update(id, |flow| {
            flow.attempts = flow.attempts.saturating_add(1);
            flow.attempts
        });
        if attempts > FAREWELLS {
            return self.end_both(id, tick(now), egress);
        }
        self.speak(id, now, egress);
        self.table.schedule(id, tick(now).wrapping_add(SECOND << attempts));
    }

    /// Turns a client away: by an alert and FIN if it has asked for a name in this protocol, else by a reset.
    pub(super) fn refuse(
        &mut self,
        id: Id,
        asked: Option<Protocol>,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Outcome {
        self.count_of_service(id, Event::ServiceRefused);
        if asked != Some(Protocol::Tls) {
            self.end_both(id, tick(now), egress);
            return Outcome::Ended;
        }
        egress.note(|| "nobody has that name: alert unrecognized_name, and FIN".into());
        self.say(id, &tls::UNRECOGNIZED_NAME);
        self.end_talk(id, now, egress);
        Outcome::Lives
    }

    /// Sends a FIN behind what the box has said to a client.
    pub(super) fn end_talk(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        self.table.update(id, |flow| {
            let after = flow.endpoint(Side::Lan).next + 1;
            flow.finish(Side::Lan, after);
            flow.attempts = 0;
        });
        self.speak(id, now, egress);
        self.table.schedule(id, tick(now).wrapping_add(SECOND));
    }

    /// Segments of a client that was turned away: they are acknowledged and not kept, until both FINs are acknowledged.
    fn on_turned_away(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        let Segment { seq, ack, flags, .. } = *ctx.segment;
        let (flow, now) = (&self.table[id], ctx.now);
        let (first, after) = (flow.outer_isn + 1, flow.endpoint(Side::Lan).next);
        let next = flow.endpoint(Side::Wan).next;
        let end = seq + ctx.segment.seq_len();
        if !ack.within(first, after) || !seq.within(next - (1 << 16), next + (1 << 16)) {
            return Verdict::Drop(DropReason::WrongState);
        }
        if is_damaged(&ctx) {
            return Verdict::Drop(DropReason::BadChecksum);
        }
        if ctx.kind == Kind::Rst {
            if seq != next {
                return Verdict::Drop(DropReason::BadReset);
            }
            self.forget(id);
            return Verdict::Drop(DropReason::Consumed);
        }
        self.follow_client(&ctx, id);
        self.hear(id, &ctx);
        let is_last = flags.has(Flags::FIN) && !next.before(seq);
        self.table.update(id, |flow| {
            let reached = if end.after(next) && !next.before(seq) { end } else { next };
            flow.endpoint_mut(Side::Wan).next = reached;
            flow.endpoint_mut(Side::Lan).acked = reached;
            flow.set_if(FlowFlags::FIN_WAN, is_last);
        });
        if ack != after {
            self.speak(id, now, ctx.egress);
            return Verdict::Drop(DropReason::Consumed);
        }
        if ctx.segment.seq_len() == 0 && !self.table[id].has_finished(Side::Wan) {
            return Verdict::Drop(DropReason::Consumed);
        }
        let verdict = self.acknowledge_in_place(&mut ctx, id);
        if self.table[id].has_finished(Side::Wan) {
            // Both ends are done; should this acknowledgement be lost, the client asks for it again.
            self.release_gathered(id);
            self.table.update(id, |flow| flow.set(FlowFlags::FIN_LAN_ACKED, true));
            self.table.schedule(id, tick(now).wrapping_add(RESET_AGAIN));
        }
        verdict
    }

    /// Resets both ends of a connection, as far as they know of it.
    pub(super) fn end_both(&mut self, id: Id, now: Ticks, egress: &mut impl Egress) {
        if matches!(self.table[id].state(), State::Gathering | State::ServerSynSent) {
            self.abort_server(id, egress);
            return self.end_client(id, now, egress);
        }
        self.reset_both(id, egress);
        self.forget(id);
    }

    /// Resets a client whose server has not answered. The flow stays for a moment, to do so again.
    fn end_client(&mut self, id: Id, now: Ticks, egress: &mut impl Egress) {
        self.release_gathered(id);
        self.table.update(id, |flow| flow.set(FlowFlags::RESET_LAN, true));
        self.table.schedule(id, now.wrapping_add(RESET_AGAIN));
        let flow = &self.table[id];
        let (seq, ack) = (flow.endpoint(Side::Lan).next, flow.endpoint(Side::Lan).acked);
        let envelope = self.envelope(id, Side::Lan);
        // It acknowledges what the client has sent, as a host's would that has read some of it.
        let flags = Flags::RST.and(Flags::ACK);
        let options = OptionList::none();
        let reset = Outgoing { envelope: &envelope, seq, ack, flags, window: RawWindow(0), options: &options };
        self.emit(Side::Wan, &reset, egress);
    }

    /// A client that was reset has not noticed.
    fn reset_again(&mut self, mut ctx: Context<impl Egress>, id: Id) -> Verdict {
        let flow = &self.table[id];
        if ctx.kind == Kind::Rst || !ctx.segment.ack.within(flow.outer_isn + 1, flow.endpoint(Side::Lan).next) {
            return Verdict::Drop(DropReason::WrongState);
        }
        let (seq, ack) = (ctx.segment.ack, ctx.segment.seq + ctx.segment.seq_len());
        self.refuse_in_place(&mut ctx, Some(id), seq, Some(ack))
    }

    /// Gives a segment of a flow of a service, which passes translated, the addresses and ports of the other side.
    pub(super) fn readdress(&self, id: Id, side: Side, segment: &Segment, head: &mut Head) {
        let Some(redirect) = self.table.redirected(id) else { return };
        let own = self.table.key(id);
        let frame = head.bytes_mut();
        let is_full = redirect.own_mac != [0; 6];
        match side {
            Side::Wan => {
                frame[..6].copy_from_slice(&self.table[id].mac(Side::Lan));
                if is_full {
                    frame[6..12].copy_from_slice(&redirect.own_mac);
                }
            }
            Side::Lan => {
                frame[6..12].copy_from_slice(&redirect.mac);
                if is_full {
                    frame[..6].copy_from_slice(&self.table[id].mac(Side::Wan));
                }
            }
        }
        let key = if side == Side::Wan { redirect.key() } else { own };
        let (ip, tcp) = (usize::from(segment.ip), usize::from(segment.tcp));
        let mut patch = rewrite_ends(frame, ip, tcp, &key, side, is_full);
        patch.0.include(patch.1);
        let sum = patch.0.apply(be16(frame, tcp + 16));
        put16(frame, tcp + 16, sum);
    }
}

/// Raises the acknowledgement of a segment to `end`, and lowers its window by as much.
fn raise_to(ctx: &mut Context<impl Egress>, end: SeqNum, scale: WindowScale) -> Segment {
    let mut segment = *ctx.segment;
    let left = end.beyond(segment.ack);
    let Window(granted) = segment.window << scale;
    let window = Window(granted.saturating_sub(left)).field(scale);
    let header = &mut ctx.head.bytes_mut()[segment.tcp.into()..segment.payload.into()];
    let mut patch = Patch::default();
    replace32(header, 8, end.get(), &mut patch);
    patch.replace16(segment.window.0, window.0);
    put16(header, 14, window.0);
    // Its blocks may be of bytes that the other end has been acknowledged: to it they would say that it has sent them twice (RFC 2883).
    let blocks = Walk::new(&header[TCP_LEN..]).find(|&(found, ..)| found == kind::SACK);
    if let Some((_, at, len)) = blocks {
        blank(header, TCP_LEN + at, len, &mut patch);
    }
    let sum = patch.apply(be16(header, 16));
    put16(header, 16, sum);
    (segment.ack, segment.window) = (end, window);
    segment
}

/// Writes the addresses and ports of `key` into a packet from `sender` whose headers are at `ip` and `tcp`, with the checksum of IPv4: those of the
/// LAN's end, and of the WAN's, if `both`. Returns what has changed for the checksum of TCP: of the addresses, and of the ports.
pub(super) fn rewrite_ends(
    frame: &mut [u8],
    ip: usize,
    tcp: usize,
    key: &FlowKey,
    sender: Side,
    both: bool,
) -> (Patch, Patch) {
    let (mut addresses, mut ports) = (Patch::default(), Patch::default());
    rewrite_end(frame, ip, tcp, (key.v6, &key.lan, key.lan_port), sender == Side::Wan, (&mut addresses, &mut ports));
    if both {
        rewrite_end(
            frame,
            ip,
            tcp,
            (key.v6, &key.wan, key.wan_port),
            sender == Side::Lan,
            (&mut addresses, &mut ports),
        );
    }
    (addresses, ports)
}

/// Writes one end over the destination, or the source, of a packet.
fn rewrite_end(
    frame: &mut [u8],
    ip: usize,
    tcp: usize,
    (v6, address, port): (bool, &Addr, u16),
    is_destination: bool,
    (addresses, ports): (&mut Patch, &mut Patch),
) {
    if v6 {
        let at = ip + if is_destination { 24 } else { 8 };
        debug_assert!(at + 16 <= ip + IPV6_LEN);
        for (n, &word) in address.iter().enumerate() {
            replace32(&mut frame[at + 4 * n..], 0, word, addresses);
        }
    } else {
        let at = ip + if is_destination { 16 } else { 12 };
        debug_assert!(at + 4 <= ip + IPV4_LEN);
        let mut own = Patch::default();
        replace32(&mut frame[at..], 0, address[3], &mut own);
        let sum = own.apply(be16(frame, ip + 10));
        put16(frame, ip + 10, sum);
        addresses.include(own);
    }
    let at = tcp + if is_destination { 2 } else { 0 };
    ports.replace16(be16(frame, at), port);
    put16(frame, at, port);
}
