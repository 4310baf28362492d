//! Whether the servers of services accept connections: the box opens one to each now and then, in the name of an address of its own, and resets it when the
//! server has answered. The server's program does not hear of it.

use super::context::Context;
use super::reply::label;
use super::{Egress, Proxy};
use crate::cache::backends::{Health, Question, Step};
use crate::cache::updates::ServerUpdate;
use crate::owner::share;
use crate::seq::{RawWindow, SeqNum};
use crate::wire::neighbour::tags;
use crate::wire::{Envelope, Flags, Kind, OptionList, Outgoing, Segment};
use crate::{DropReason, Event, Instant, Side, Verdict};

/// Questions in one call.
const WORK_A_TURN: usize = 16;
/// The hop limit of the box's own segments, and what they grant.
const TTL: u8 = 64;
const WINDOW: RawWindow = RawWindow(16_384);
const MSS: u16 = 1220;

impl Proxy {
    /// Asks servers that are to be asked, and notes which have not answered.
    pub(super) fn ask_servers(&mut self, now: Instant, egress: &mut impl Egress) {
        for _ in 0..WORK_A_TURN {
            let (table, settings) = (&self.table, &self.settings);
            let (keys, worker) = (settings.hash_keys, settings.worker);
            let step = self.caches.backends.next_step(now, |key| {
                let hash = key.hash(keys);
                // The answer is to come to this worker.
                share(settings.naming.hash(key, hash, keys), worker.of) == worker.number
                    && table.find(key, hash).is_none()
            });
            match step {
                None => return,
                Some(Step::Silence(changed)) => self.note_health(changed, egress),
                Some(Step::Ask(question)) => self.ask_server(&question, now, egress),
            }
        }
    }

    fn ask_server(&mut self, question: &Question, now: Instant, egress: &mut impl Egress) {
        let Some(to) = self.caches.neighbours.mac(question.next_hop) else {
            self.caches.neighbours.want(question.next_hop, now);
            // One that does not say where it is is no more reachable than one that says nothing else; but it must have been asked.
            if !self.caches.neighbours.is_silent(question.next_hop) {
                self.caches.backends.postpone(question.slot, now);
            }
            return;
        };
        let hash = question.key.hash(self.settings.hash_keys);
        // RFC 6528 section 3: a clock of four microseconds, and what only the box knows.
        let isn = SeqNum::new((hash as u32).wrapping_add((now.as_micros() / 4) as u32));
        let envelope = Envelope {
            from: question.asker.1,
            to,
            key: question.key,
            sender: Side::Wan,
            port: question.side,
            ttl: TTL,
            class: 0,
            id: 0,
            label: label(hash),
            tags: tags(question.vlan),
        };
        let options = OptionList::syn(Some(MSS), false, None, None);
        let (ack, flags) = (SeqNum::default(), Flags::SYN);
        let syn = Outgoing { envelope: &envelope, seq: isn, ack, flags, window: WINDOW, options: &options };
        if self.emit(Side::Lan, &syn, egress) {
            self.caches.backends.note_number(question.slot, isn);
            self.counters.count(Event::ServerAsked);
        }
    }

    /// A segment from the LAN for an address of the box that belongs to no connection, if it answers a question: what becomes of it.
    pub(super) fn on_answer_of_server(&mut self, ctx: &mut Context<impl Egress>, kind: Kind) -> Option<Verdict> {
        let Segment { ack, flags, .. } = *ctx.segment;
        if !matches!(kind, Kind::SynAck | Kind::Rst) || !flags.has(Flags::ACK) {
            return None;
        }
        let slot = self.caches.backends.answered(ctx.key(), ack)?;
        if !ctx.is_sound() {
            return Some(Verdict::Drop(DropReason::BadChecksum));
        }
        let changed = self.caches.backends.conclude(slot, kind == Kind::SynAck, ctx.now);
        self.note_health(changed, ctx.egress);
        Some(match kind {
            Kind::SynAck => self.reset_in_place(ctx, None),
            _ => Verdict::Drop(DropReason::Consumed),
        })
    }

    fn note_health(&mut self, changed: Option<Health>, egress: &mut impl Egress) {
        let Some(health) = changed else { return };
        egress.note(|| format!("a server is {}", if health.is_up { "up" } else { "down" }));
        self.counters.count(if health.is_up { Event::ServerUp } else { Event::ServerDown });
        self.publish(ServerUpdate::Health(health));
    }
}
