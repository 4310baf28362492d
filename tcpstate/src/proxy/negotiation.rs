//! Connections to services whose clients say where they want to go, by SOCKS or by CONNECT: what the box says to them in its own name, and the server's half.
//!
//! ```text
//!   State::Gathering        the box reads and answers (`service::negotiation`), and repeats what it has said until the client has acknowledged it.
//!                           A name is looked up elsewhere: a `NameQuestion` goes out, and `Proxy::resolved` brings the answer
//!   State::ServerSynSent    the SYN to that server
//!   State::Repeating        the client is told that it is connected; that too is repeated until acknowledged
//!   State::Established      as any connection
//! ```
//!
//! What the box says lies in front of the server's first byte, so `outer_isn` is moved behind it when the server has answered: from then on the numbers of both
//! directions are translated as everywhere. An acknowledgement of the client that lies before the server's first byte is raised to that, as the server has sent
//! nothing before. Towards the server nothing is added to the client's numbers, although it does not get what the client said to the box: the number of the
//! SYN is chosen so.

use super::context::{Context, is_damaged};
use super::service::{Destination, Outcome};
use super::{Egress, Proxy};
use crate::cache::gathered::Stage;
use crate::flow::table::wheel::{Ticks, tick, ticks};
use crate::flow::table::{Id, Redirect};
use crate::flow::{FlowFlags, State};
use crate::policy::ServiceMark;
use crate::policy::profiles::REPEATED;
use crate::service::access::ByName;
use crate::service::names::Name;
use crate::service::negotiation::{Failure, Host, Next};
use crate::service::{Service, is_mapped};
use crate::wire::{Addr, Flags, Kind};
use crate::{Event, Instant, Side, Verdict};
use core::time::Duration;

/// How long a look-up may take.
const LOOKED_UP: Duration = Duration::from_secs(10);
/// Questions that wait to be taken.
pub(crate) const QUESTIONS_KEPT: usize = 64;

/// A name that is to be looked up for a connection.
#[derive(Clone, Copy, Debug)]
pub struct NameQuestion {
    /// The name.
    pub name: Name,
    /// Whether it is the IPv6 addresses that are wanted.
    pub v6: bool,
    place: u32,
    generation: u16,
}

/// The addresses of a name that was looked up.
#[derive(Clone, Debug)]
pub struct NameAnswer {
    /// The question.
    pub question: NameQuestion,
    /// The addresses, in the order in which they are to be used; none if there are none.
    pub addresses: Vec<Addr>,
}

impl Proxy {
    /// Names that are to be looked up since this was last asked. Each is answered by [`Proxy::resolved`]; without an answer the client is told after 10 s that there
    /// is none.
    pub fn questions(&mut self) -> impl Iterator<Item = NameQuestion> {
        self.questions.drain(..)
    }

    /// The service of a connection, if there is one still.
    fn with_service<T>(&self, id: Id, then: impl FnOnce(&Service) -> T) -> Option<T> {
        match self.settings.policy.rule(&self.table.key(id)).service {
            ServiceMark::Service(number) => self.settings.policy.services.get(number).map(then),
            _ => None,
        }
    }

    /// The address that counts as the client's.
    fn address_of_client(&self, id: Id) -> Addr {
        self.table.beside(id).and_then(Redirect::told).unwrap_or_else(|| self.table.key(id)).wan
    }

    /// Whether a client may be connected to this address, whatever rules say: it is a station's, and none of the box.
    fn is_outside(&self, id: Id, address: &Addr) -> bool {
        !self.is_own(address, &self.table.key(id)) && !is_special(address)
    }

    /// Reads what a client has said to the box, and answers.
    pub(super) fn negotiate(
        &mut self,
        id: Id,
        service: &Service,
        fresh: usize,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Outcome {
        let Some(language) = service.protocol.language() else { return Outcome::Lives };
        let number = self.gathered(id);
        let place = self.caches.gathered.get(number);
        if place.stage() != Stage::Talks {
            return Outcome::Lives;
        }
        let (skipped, said_len) = (place.skipped(), place.said_len());
        let bytes = &self.caches.gathered.bytes(number)[skipped.into()..];
        let most = self.caches.gathered.room() - skipped;
        let (said, next) = language.read(bytes, fresh, most.into(), &service.access);
        self.caches.gathered.set_stage(number, Stage::Talks, Some(language));
        self.say(id, said.bytes().get(said_len.into()..).unwrap_or_default());
        match next {
            Next::More => self.speak(id, now, egress),
            Next::Other => {
                egress.note(|| "the client does not speak what is expected here".into());
                return self.refuse(id, None, now, egress);
            }
            Next::End => {
                egress.note(|| "the client offers no way to say who it is, or is not known".into());
                self.finish_talk(id, now, egress);
            }
            Next::Fails(failure) => self.fail(id, failure, now, egress),
            Next::Asks { host, port, len } => {
                self.caches.gathered.skip(number, skipped + len as u16);
                let to = self.admit_request(id, service, &host, port, now, egress);
                match to {
                    Err(failure) => self.fail(id, failure, now, egress),
                    Ok(Some(to)) => return self.connect_to(id, service, to, now, egress),
                    Ok(None) => self.speak(id, now, egress),
                }
            }
        }
        Outcome::Lives
    }

    /// Where a client goes that asks for this host and port; `None` if that must be looked up first.
    fn admit_request(
        &mut self,
        id: Id,
        service: &Service,
        host: &Host,
        port: u16,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Result<Option<Destination>, Failure> {
        let (client, number) = (self.address_of_client(id), self.gathered(id));
        match host {
            Host::Address(address) => {
                egress.note(|| format!("the client asks for the address {address:08x?}, port {port}"));
                if is_mapped(address) == service.v6 {
                    return Err(Failure::AddressType);
                }
                if !service.access.by_address(&client, address, port) || !self.is_outside(id, address) {
                    return Err(Failure::Forbidden);
                }
                Ok(Some(Destination { address: *address, port, slot: u16::MAX }))
            }
            Host::Name(name) => {
                egress.note(|| format!("the client asks for {name}, port {port}"));
                if service.access.by_name(&client, name, port) == ByName::Forbidden {
                    return Err(Failure::Forbidden);
                }
                if self.questions.len() >= QUESTIONS_KEPT {
                    return Err(Failure::General);
                }
                let generation = self.table[id].generation();
                self.questions.push(NameQuestion { name: *name, v6: service.v6, place: id.0, generation });
                self.caches.gathered.set_target(number, Addr::default(), port);
                self.caches.gathered.set_stage(number, Stage::LooksUp, service.protocol.language());
                self.counters.count(Event::NameAsked);
                self.table.update(id, |flow| flow.born = tick(now));
                let ends = self.talk_ends(id);
                self.table.schedule(id, ends);
                Ok(None)
            }
        }
    }

    /// A name has been looked up. What was asked for a connection that is not there any more says nothing.
    pub fn resolved(&mut self, answer: &NameAnswer, now: Instant) {
        let NameQuestion { name, place, generation, .. } = answer.question;
        let Some(id) = self.table.occupied(place) else { return };
        let number = self.gathered(id);
        let waits = self.table[id].generation() == generation && self.table[id].is_in(State::Gathering) && number != 0;
        if !waits || self.caches.gathered.get(number).stage() != Stage::LooksUp {
            return;
        }
        let (client, (_, port)) = (self.address_of_client(id), self.caches.gathered.get(number).target());
        let fits = |service: &Service| {
            let is_named = service.access.by_name(&client, &name, port) == ByName::Allowed;
            let may = |address: &&Addr| {
                is_mapped(address) != service.v6
                    && (is_named || service.access.by_address(&client, address, port))
                    && self.is_outside(id, address)
            };
            answer.addresses.iter().find(may).copied()
        };
        let found = self.with_service(id, fits).flatten();
        let stage = if found.is_some() { Stage::Found } else { Stage::NotFound };
        let language = self.caches.gathered.get(number).language();
        self.caches.gathered.set_target(number, found.unwrap_or_default(), port);
        self.caches.gathered.set_stage(number, stage, language);
        // What follows takes an egress, which the timer has.
        self.table.schedule(id, tick(now));
    }

    /// When a client that talks to the box has had time enough, or its name's look-up has.
    fn talk_ends(&self, id: Id) -> Ticks {
        let number = self.gathered(id);
        let is_looked_up = number != 0 && self.caches.gathered.get(number).stage() == Stage::LooksUp;
        let patience = match is_looked_up {
            true => LOOKED_UP,
            false => self.with_service(id, |service| service.patience).unwrap_or_default(),
        };
        self.table[id].born.wrapping_add(ticks(patience))
    }

    /// The timer of a client that talks to the box; whether that is all there is to do.
    pub(super) fn continue_talk(&mut self, id: Id, now: Instant, egress: &mut impl Egress) -> bool {
        let number = self.gathered(id);
        if number == 0 || self.caches.gathered.get(number).language().is_none() {
            return false;
        }
        let place = self.caches.gathered.get(number);
        let ((address, port), stage) = (place.target(), place.stage());
        match stage {
            Stage::Found => {
                let policy = self.settings.policy.clone();
                let service = match policy.rule(&self.table.key(id)).service {
                    ServiceMark::Service(number) => policy.services.get(number),
                    _ => None,
                };
                match service {
                    Some(service) => {
                        _ = self.connect_to(id, service, Destination { address, port, slot: u16::MAX }, now, egress);
                    }
                    None => self.fail(id, Failure::General, now, egress),
                }
                return true;
            }
            Stage::NotFound => {
                egress.note(|| "the name has no address where the client may go".into());
                self.fail(id, Failure::HostUnreachable, now, egress);
                return true;
            }
            Stage::Talks | Stage::LooksUp | Stage::Settled => {}
        }
        let left = self.talk_ends(id).wrapping_sub(tick(now)) as i32;
        if left <= 0 {
            if stage == Stage::LooksUp {
                self.fail(id, Failure::HostUnreachable, now, egress);
                return true;
            }
            return false;
        }
        if self.caches.gathered.get(number).unheard() > 0 {
            self.counters.count(Event::SaidRepeated);
            self.table.update(id, |flow| flow.attempts = flow.attempts.saturating_add(1).min(6));
        }
        self.speak(id, now, egress);
        true
    }

    /// The box has this to say to a client, in its own name.
    pub(super) fn say(&mut self, id: Id, bytes: &[u8]) {
        let number = self.gathered(id);
        if number == 0 || bytes.is_empty() {
            return;
        }
        let next = self.table[id].endpoint(Side::Lan).next;
        let count = self.caches.gathered.say(number, next, bytes);
        debug_assert!(usize::from(count) == bytes.len(), "all that is said has room");
        self.table.update(id, |flow| flow.endpoint_mut(Side::Lan).next = next + u32::from(count));
    }

    /// Sends a client what it has not acknowledged of what the box has said, and the FIN behind that if the box has finished; and sets the timer to do so again,
    /// while the box reads what the client says.
    pub(super) fn speak(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        let (number, flow) = (self.gathered(id), self.table[id]);
        if number == 0 {
            return;
        }
        let ends = flow.has_finished(Side::Lan) && !flow.is_in(State::Repeating);
        let unheard = self.caches.gathered.get(number).unheard();
        if unheard > 0 || ends {
            let envelope = self.envelope(id, Side::Lan);
            let acknowledgement = self.acknowledgement(id, Side::Wan, now);
            let mut outgoing = acknowledgement.outgoing(&envelope);
            let (seq, said) = self.caches.gathered.get(number).unheard_bytes();
            outgoing.seq = seq;
            outgoing.flags = outgoing.flags.and(Flags::PSH);
            if ends {
                outgoing.flags = outgoing.flags.and(Flags::FIN);
            }
            let sent = egress.emit(envelope.port, |buffer| {
                let header = envelope.frame_len(outgoing.options);
                buffer[header..header + said.len()].copy_from_slice(said);
                outgoing.write_around(buffer, said.len())
            });
            if !sent {
                self.counters.count(Event::NoSpareFrame);
            }
        }
        if flow.is_in(State::Gathering) && !ends {
            let left = self.talk_ends(id).wrapping_sub(tick(now)).max(1);
            let wait = if unheard > 0 { (ticks(REPEATED) << flow.attempts.min(6)).min(left) } else { left };
            self.table.schedule(id, tick(now).wrapping_add(wait));
        }
    }

    /// Notes what a client has acknowledged of what the box has said; whether that says something new.
    pub(super) fn hear(&mut self, id: Id, ctx: &Context<impl Egress>) -> bool {
        let number = self.gathered(id);
        if number == 0 || !self.caches.gathered.hear(number, ctx.segment.ack) {
            return false;
        }
        if !self.table[id].is_in(State::ServerSynSent) {
            self.table.update(id, |flow| flow.attempts = 0);
        }
        if self.table[id].is_in(State::Gathering)
            && !self.table[id].has_finished(Side::Lan)
            && self.caches.gathered.get(number).unheard() == 0
            && matches!(self.caches.gathered.get(number).stage(), Stage::Talks | Stage::LooksUp)
        {
            let ends = self.talk_ends(id);
            self.table.schedule(id, ends);
        }
        true
    }

    /// The box has said all it has to say to a client, which gets no server.
    fn finish_talk(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        self.count_of_service(id, Event::ServiceRefused);
        self.end_talk(id, now, egress);
    }

    /// Tells a client why it gets no server, and ends.
    pub(super) fn fail(&mut self, id: Id, failure: Failure, now: Instant, egress: &mut impl Egress) {
        let number = self.gathered(id);
        let language = if number == 0 { None } else { self.caches.gathered.get(number).language() };
        let Some(language) = language else {
            return self.end_both(id, tick(now), egress);
        };
        egress.note(|| format!("the client gets no server: {failure:?}"));
        if self.table[id].is_in(State::ServerSynSent) {
            self.abort_server(id, egress);
        }
        self.caches.gathered.set_stage(number, Stage::Settled, Some(language));
        self.say(id, language.failure(failure).bytes());
        self.finish_talk(id, now, egress);
    }

    /// Segments of a client that has its server, while something is repeated to one of them.
    pub(super) fn on_client_while_repeating(&mut self, ctx: Context<impl Egress>, id: Id) -> Verdict {
        if ctx.kind == Kind::Ack && !is_damaged(&ctx) && self.hear(id, &ctx) {
            self.settle_repeating(id, ctx.now);
        }
        self.on_established(ctx, id)
    }

    /// Whether the box has something to say in its own name on this connection, or has said it.
    pub(super) fn talks(&self, id: Id) -> bool {
        let number = self.gathered(id);
        number != 0 && self.caches.gathered.get(number).language().is_some() && !self.table[id].is(FlowFlags::RESET_LAN)
    }
}

/// Whether no station outside this host, or not one alone, has this address (RFC 6890): unspecified, of the host itself, of the link alone, of a group.
fn is_special(address: &Addr) -> bool {
    if is_mapped(address) {
        let [a, b, ..] = address[3].to_be_bytes();
        return a == 0 || a == 127 || a >= 224 || (a, b) == (169, 254);
    }
    let high = address[0] >> 16;
    let is_low = address[..3] == [0; 3];
    is_low || high & 0xff00 == 0xff00 || high & 0xffc0 == 0xfe80
}
