//! The engine: one worker's share of the proxy. It decides here what a frame is and which flow it belongs to. The modules handle the rest:
//! `client_handshake` (a client's SYN and its proof), `server_handshake` (the SYN to the server and its answer), `join` (two halves become one
//! connection), `refusal` (ports that let nobody in), `passthrough` (connections from the LAN, and what else passes unchanged), `untouched`
//! (connections of destinations whose mode passes them), `crossing` (both ends open at once), `asymmetric` (one direction is not seen),
//! `established`, `handed_down` (connections that the kernel forwards), `icmp` (errors), `adoption` (segments without a flow), `evict` with
//! `candidates` and `idle` (which flow gives way when the table is full), and `listed` (lists of clients and limits on connections).

mod adoption;
mod asymmetric;
mod candidates;
mod client_handshake;
mod context;
mod crossing;
mod established;
pub(crate) mod evict;
pub(crate) mod handed_down;
mod health;
mod icmp;
mod idle;
mod join;
pub(crate) mod kernel_syns;
mod listed;
mod negotiation;
mod neighbours;
pub(crate) mod passthrough;
mod proof;
#[cfg(test)]
mod redirect_tests;
mod refusal;
mod regions;
mod reply;
mod server_handshake;
mod service;
#[cfg(test)]
mod service_tests;
#[cfg(test)]
pub(crate) mod test_segments;
mod turned;
mod untouched;
mod vlans;

use crate::cache::backends::Backends;
use crate::cache::direct_return::DirectReturns;
use crate::cache::fragments::Fragments;
use crate::cache::gathered::Gathered;
use crate::cache::held::HoldQueue;
use crate::cache::neighbours::Neighbours;
use crate::cache::proved_sources::ProvedSources;
use crate::cache::recent_syns::RecentSyns;
use crate::cache::refused::RefusedPorts;
use crate::cache::servers::{Observation, ServerOptions};
use crate::cache::source_ports::SourcePorts;
use crate::cache::stations::{self, Stations};
use crate::cache::updates::ServerUpdate;
use crate::cache::vlan_pairs::VlanPairs;
use crate::config::Action;
use crate::cookie::{CookieClock, Cookies, Rotation};
use crate::flow::map::FlowMap;
use crate::flow::table::wheel::tick;
use crate::flow::table::{Adopted, Guess, Id, Population, Redirect, Slab, Table};
use crate::flow::{Flow, FlowFlags, State, UNTOUCHED};
use crate::keyed::Keys;
use crate::memory::Words;
use crate::metadata::{Metadata, Source, source};
use crate::owner::{Naming, Worker};
use crate::policy::Policy;
use crate::policy::exceptions::{Exception, Exceptions};
use crate::policy::limit::{Limiter, Meter};
use crate::policy::lists::Lists;
use crate::policy::mode::{self, Modes};
use crate::policy::profiles::Profiles;
use crate::policy::quotas::Quotas;
use crate::policy::servers::ServerTable;
use crate::seq::{SeqDelta, SeqNum};
use crate::wire::{self, Flags, FlowKey, Kind, Mac, Parsed, Segment};
use crate::{Config, Counters, DropReason, Event, Head, Instant, Secrets, Side, Ticket, Verdict};
use candidates::Candidates;
use context::Context;
pub use handed_down::Forwarded;
use handed_down::HandedDown;
use idle::Inspection;
use kernel_syns::KernelSyns;
pub use kernel_syns::SharedSyns;
use negotiation::QUESTIONS_KEPT;
pub use negotiation::{NameAnswer, NameQuestion};
use passthrough::UnprovedFlows;
pub use regions::{Footprint, Memory};
use std::sync::Arc;
use turned::turn;
use untouched::Way;

/// Where the engine's own segments go: the worker, which fills a spare frame.
pub trait Egress {
    /// Takes a spare frame, lets `write` fill its buffer (of at least 128 bytes) and sends as many bytes as it returns out of
    /// port `to`. Returns false, without calling `write`, when no frame is spare.
    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool;

    /// Whether it wants the reasons of decisions.
    const TRACES: bool = false;

    /// Gets the reason for a decision, with its numbers. The text is made only for an egress that wants it; a worker's does not.
    #[inline(always)]
    fn note(&mut self, _why: impl FnOnce() -> String) {}
}

/// The reason for which a frame with this error is dropped.
const fn drop_reason(error: wire::Error) -> DropReason {
    match error {
        wire::Error::Malformed => DropReason::Malformed,
        wire::Error::BadChecksum => DropReason::BadChecksum,
        wire::Error::BadFragment => DropReason::BadFragment,
    }
}

/// Proved sources kept until the worker takes them: more than one poll brings.
const PROVED_KEPT: usize = 256;

/// Updates kept until the worker takes them: more than one poll brings.
const UPDATES_KEPT: usize = 512;

/// Steps of the timer wheel worked off in one call, so that a million flows that expire at once delay no frame: as many as frames in a batch,
/// each of which costs about as much.
const STEPS_A_TURN: usize = 64;

/// What the operator wants of this worker.
#[derive(Clone)]
pub(crate) struct Settings {
    /// The keys of the hash that names flows and packets.
    pub(crate) hash_keys: Keys,
    /// What of a connection names the worker that owns it.
    pub(crate) naming: Naming,
    /// Which worker this is.
    pub(crate) worker: Worker,
    pub(crate) policy: Arc<Policy>,
    /// How many policies there were before, on a circle.
    pub(crate) policies: u32,
    /// Which clients are blocked, passed, and always proxied.
    pub(crate) lists: Arc<Lists>,
    /// Whether a SYN must be compared with them, or with limits, before it is answered.
    pub(crate) is_guarded: bool,
    /// The settings that flows began with.
    pub(crate) profiles: Profiles,
    /// What becomes of SYNs, by target.
    pub(crate) modes: Modes,
    /// New connections are passed to their servers unanswered.
    pub(crate) draining: bool,
    /// Until then connections that run already are adopted.
    pub(crate) adopt_until: Instant,
    /// For how long they are adopted after the start, and after a destination has passed its SYNs.
    pub(crate) adopt_grace: core::time::Duration,
    /// SYNs that go to ports which lately refused or were silent.
    pub(crate) retries: Meter,
    /// ICMP errors that the box repeats.
    pub(crate) errors_repeated: Meter,
}

/// What the engine remembers besides flows, in bounded memory.
pub(crate) struct Caches {
    pub(crate) cookies: Cookies,
    pub(crate) server_options: ServerOptions,
    pub(crate) refused_ports: RefusedPorts,
    pub(crate) recent_syns: RecentSyns,
    pub(crate) limiter: Limiter,
    /// What passes without proof.
    pub(crate) exceptions: Exceptions,
    pub(crate) fragments: Fragments,
    pub(crate) hold_queue: HoldQueue,
    pub(crate) vlan_pairs: VlanPairs,
    pub(crate) direct_returns: DirectReturns,
    pub(crate) proved_sources: ProvedSources,
    pub(crate) stations: Stations,
    /// The first bytes of connections to services.
    pub(crate) gathered: Gathered,
    /// The Ethernet addresses of servers of services.
    pub(crate) neighbours: Neighbours,
    /// Whether servers of services accept connections, and how many they have.
    pub(crate) backends: Backends,
    /// The ports of the box's addresses that stand for clients.
    pub(crate) source_ports: SourcePorts,
}

impl Caches {
    /// What is remembered that matters to one frame: of this connection, with this keyed hash and number, whose source's tokens are at `place` and
    /// at 0 in the excerpt.
    pub(crate) fn excerpt(&self, key: &FlowKey, hash: u64, isn: SeqNum, place: u32) -> Self {
        Self {
            cookies: self.cookies.clone(),
            server_options: self.server_options.excerpt(key),
            refused_ports: self.refused_ports.excerpt(key),
            recent_syns: self.recent_syns.excerpt(hash),
            limiter: self.limiter.excerpt(place, key, hash, isn),
            exceptions: self.exceptions.excerpt(key, place),
            fragments: self.fragments.excerpt(hash),
            hold_queue: self.hold_queue.clone(),
            vlan_pairs: self.vlan_pairs.clone(),
            direct_returns: self.direct_returns.clone(),
            proved_sources: self.proved_sources.excerpt(key),
            stations: self.stations.clone(),
            gathered: self.gathered.clone(),
            neighbours: self.neighbours.clone(),
            backends: self.backends.clone(),
            source_ports: self.source_ports.clone(),
        }
    }
}

/// One worker's share of the proxy: a state machine without a clock, a thread or a device.
///
/// The worker calls, in this order and again for each poll of its ports:
///
/// 1. [`parse`](Proxy::parse) for every frame received, then [`prefetch`](Proxy::prefetch) for every frame: neither changes anything.
/// 2. [`receive_update`](Proxy::receive_update) for what other workers have learned.
/// 3. [`on_frame`](Proxy::on_frame) for every frame, in the order of arrival: it edits the frame where it lies and returns a [`Verdict`], which the worker
///    carries out. Segments of the engine's own leave by the [`Egress`].
/// 4. After each frame and each timeout, [`next_release`](Proxy::next_release) until there is none; each ticket goes back, with its frame, to
///    [`on_release`](Proxy::on_release), or to [`void`](Proxy::void) if no frame was kept for it.
/// 5. [`on_timeout`](Proxy::on_timeout), again at once while it returns true, and at the latest at [`next_deadline`](Proxy::next_deadline).
/// 6. [`updates`](Proxy::updates), [`next_proved`](Proxy::next_proved) and [`next_alarm`](Proxy::next_alarm), to be published to other workers before anything
///    of this poll leaves by a port.
///
/// Between polls the worker may call [`set_policy`](Proxy::set_policy), [`set_lists`](Proxy::set_lists), [`reset_blocked`](Proxy::reset_blocked),
/// [`command`](Proxy::command), [`drain`](Proxy::drain), [`direct`](Proxy::direct) and
/// [`rotate`](Proxy::rotate), and at any time what takes `&self`. Time is an argument and never goes back; chance is the secrets. So a run is a function
/// of its inputs. Nothing here allocates once the proxy is made, but for policies and listings.
pub struct Proxy {
    pub(crate) settings: Settings,
    pub(crate) table: Table,
    pub(crate) candidates: Candidates,
    /// Connections of the WAN that passed unproved and may not be established yet.
    pub(crate) unproved: UnprovedFlows,
    pub(crate) inspection: Inspection,
    pub(crate) caches: Caches,
    /// What the kernel forwards.
    pub(crate) handed_down: HandedDown,
    /// What a program of the kernel answers SYNs by, if one does.
    pub(crate) kernel_syns: Option<Box<KernelSyns>>,
    /// What counts for limits on connections and SYN-ACKs.
    pub(crate) quotas: Quotas,
    /// Up to where the table was searched for connections of blocked clients, while it is.
    pub(crate) sweep: Option<u32>,
    pub(crate) counters: Counters,
    /// Sources that have proved themselves since [`Proxy::next_proved`] was last asked.
    pub(crate) proved: Vec<Source>,
    /// What was learned since [`Proxy::updates`] was last asked.
    pub(crate) updates: Vec<ServerUpdate>,
    /// Names to be looked up since [`Proxy::questions`] was last asked.
    pub(crate) questions: Vec<NameQuestion>,
    /// The side that the frame at hand has come from, where it is treated as one of the other side.
    pub(crate) arrived: Option<Side>,
}

/// A flow that another process has left, in an order of which the oldest are the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ByAge(u64);

impl ByAge {
    fn new(id: Id, flow: &Flow, now: Instant) -> Self {
        let age = tick(now).wrapping_sub(flow.born);
        Self(u64::from(!age) << 32 | u64::from(id.0))
    }

    fn id(self) -> Id {
        Id(self.0 as u32)
    }
}

impl Proxy {
    /// A proxy with empty tables, in memory of its own.
    ///
    /// # Panics
    /// If the flow table or the cache of server options is empty.
    pub fn new(config: &Config, secrets: &Secrets, now: Instant) -> Self {
        Self::with_memory(config, secrets, now, Memory::anonymous(config))
    }

    /// The same, with the memory that may outlive the process or be shared with the kernel handed in. What such a region holds is parsed, and used
    /// if it makes sense: flows that a former process with the same secrets left go on. Frames that it held are lost, as on the way.
    ///
    /// # Panics
    /// As [`Proxy::new`], and if a region has fewer words than [`Memory::words_needed`].
    pub fn with_memory(config: &Config, secrets: &Secrets, now: Instant, memory: Memory) -> Self {
        Self::with_policy(config, Arc::new(Policy::new(config, now)), secrets, now, memory)
    }

    /// The same under a policy that several workers share, made of the same configuration.
    ///
    /// # Panics
    /// As [`Proxy::with_memory`].
    pub fn with_policy(config: &Config, policy: Arc<Policy>, secrets: &Secrets, now: Instant, memory: Memory) -> Self {
        let Memory { slab, servers, recent_syns, limits, .. } = memory;
        let Memory { refused_syns, refused_ports, proved_sources, quotas, gathered, .. } = memory;
        let (hash_keys, keys) = (secrets.hash_keys(), secrets.pair(2));
        let table = Table::of(config.table_buckets, slab, hash_keys, now);
        let mut proved_sources = ProvedSources::new(config, proved_sources, keys);
        proved_sources.turn(policy.passes_proved());
        let mut proxy = Self {
            candidates: Candidates::new(config.syn_cache_max, config.flow_capacity()),
            unproved: UnprovedFlows::new(config.flow_capacity()),
            inspection: Inspection::new(keys, table.capacity()),
            quotas: Quotas::new(&policy.limits, table.capacity(), keys, quotas),
            sweep: None,
            kernel_syns: None,
            table,
            handed_down: HandedDown::none(),
            caches: Caches {
                cookies: Cookies::new(&policy.tables, secrets.pair(1), policy.clock, now),
                server_options: ServerOptions::new(servers, &policy, keys),
                refused_ports: RefusedPorts::new(refused_ports, policy.longest_closed(), keys, now),
                recent_syns: RecentSyns::new(config, recent_syns, now),
                limiter: Limiter::new(&policy.meters.rate, keys, limits, refused_syns),
                exceptions: Exceptions::new(&policy.meters.rates, keys),
                fragments: Fragments::new(),
                hold_queue: HoldQueue::new(config.held_frames),
                vlan_pairs: VlanPairs::new(),
                direct_returns: DirectReturns::new(),
                proved_sources,
                stations: Stations::default(),
                gathered: Gathered::new(gathered, config.first_bytes),
                neighbours: Neighbours::default(),
                backends: Backends::default(),
                source_ports: SourcePorts::default(),
            },
            settings: Settings {
                hash_keys,
                naming: Naming::of(config),
                worker: Worker::ALONE,
                profiles: Profiles::new(policy.profiles()),
                retries: Meter::new(policy.meters.retries),
                modes: Modes::new(policy.targets()),
                policy,
                policies: 0,
                lists: Arc::default(),
                is_guarded: false,
                draining: false,
                adopt_until: now + config.adopt_grace,
                adopt_grace: config.adopt_grace,
                errors_repeated: Meter::new(refusal::ERRORS_REPEATED),
            },
            counters: Counters::default(),
            proved: Vec::with_capacity(PROVED_KEPT),
            updates: Vec::with_capacity(UPDATES_KEPT),
            questions: Vec::with_capacity(if config.service_buffers > 0 { QUESTIONS_KEPT } else { 0 }),
            arrived: None,
        };
        proxy.settings.is_guarded = proxy.is_guarded();
        proxy.counters.set_targets(proxy.settings.policy.targets().iter().map(|_| None));
        proxy.count_targets();
        proxy.set_services(now);
        let (flows, _) = proxy.table.slice(0, u32::MAX);
        let adopted = flows.map(|(id, flow)| ByAge::new(id, flow, now)).collect();
        proxy.resume(adopted, now);
        proxy.caches.gathered.settle();
        if config.test_connections {
            proxy.make_test_connections(now);
        }
        proxy
    }

    /// What became of the flows that another process has left.
    pub fn adopted(&self) -> Adopted {
        self.table.adopted()
    }

    /// Gives flows of a former process what the present policy says of their servers, and puts them on their timers and into the queues of those that may
    /// be evicted, the oldest first.
    fn resume(&mut self, mut flows: Vec<ByAge>, now: Instant) {
        if !flows.is_empty() {
            self.settings.modes.expect_untouched();
        }
        flows.sort_unstable();
        for id in flows.into_iter().map(ByAge::id) {
            let rule = self.settings.policy.rule(&self.table.key(id));
            let was_untouched = self.table[id].profile & UNTOUCHED != 0;
            let profile = if was_untouched { rule.untouched } else { rule.profile };
            self.table.count_adopted(id, self.settings.profiles.present(profile));
            let flow = &self.table[id];
            let lifetime = self.settings.profiles.of(flow.profile).of(flow.state());
            // No timer waits longer than its state may last; what is overdue is due now.
            let left = flow.deadline().wrapping_sub(tick(now)) as i32;
            self.resume_gathered(id);
            let left = if self.table[id].attempts == u8::MAX { 0 } else { left };
            self.table.enter(id, tick(now).wrapping_add(left.clamp(0, lifetime as i32) as u32));
            self.remember_candidate(id);
            self.remember_unproved(id);
            self.recount(id, now);
            self.recount_server(id);
        }
    }

    /// Has the flow table count half-open connections by the targets of the present policy.
    fn count_targets(&mut self) {
        let targets = self.settings.policy.targets();
        self.table.count_half_open(self.settings.profiles.targets(targets), targets.len());
    }

    /// From now on every flow is in the map in these words, which are zero, from its beginning to its end; those that are there already are entered. See
    /// [`FlowMap`].
    ///
    /// # Panics
    /// If there are fewer words than a cache line has.
    pub fn publish_flows(&mut self, words: Words) {
        self.table.enter_into(FlowMap::new(words, self.settings.hash_keys));
    }

    /// How many flows are not in that map because it has no room for them.
    pub fn unpublished_flows(&self) -> u64 {
        self.table.left_out_of_map()
    }

    /// How many flows were published and have not ended, a flow with two keys twice. Reads the whole map: for tests.
    pub fn published_flows(&self) -> u64 {
        self.table.in_map()
    }

    /// Frames have passed without this worker for a while: connections that were opened then are adopted, as after a start.
    pub fn was_bypassed(&mut self, now: Instant) {
        let until = now + self.settings.adopt_grace;
        self.settings.adopt_until = self.settings.adopt_until.max(until);
    }

    /// Gives the flow table's memory back, as another process would find it.
    pub fn into_slab(self) -> Slab {
        self.table.into_slab()
    }

    /// The flows, and the first bytes of those of services.
    #[cfg(test)]
    pub(crate) fn into_kept(self) -> (Slab, crate::GatheredSlab) {
        (self.table.into_slab(), self.caches.gathered.into_slab())
    }

    /// From now on this is what the operator states of servers, for attributes that are commanded; returns the former statements, so that
    /// the caller can free it elsewhere. Connections answered before keep their terms.
    pub fn command(&mut self, entries: Arc<ServerTable>) -> Arc<ServerTable> {
        self.caches.server_options.command(entries)
    }

    /// From now on connections are opened under this policy; returns the former, so that the caller can free it elsewhere. Connections that are open
    /// keep their terms. Cookies are made with the policy's option tables from [`Policy::tables_begin`] on, and those made before open
    /// with the tables they were made with. Limits hold at once; connections that began while there were none do not count. A target that the former
    /// policy has too goes on as it is, unless its mode is another. To be called between two batches.
    pub fn set_policy(&mut self, policy: Arc<Policy>, now: Instant) -> Arc<Policy> {
        if policy.meters != self.settings.policy.meters {
            self.caches.limiter.set_limits(&policy.meters.rate);
            self.caches.exceptions.set_rates(&policy.meters.rates);
            self.settings.retries.set_rate(policy.meters.retries);
            self.caches.proved_sources.set_budgets(policy.meters.proved);
        }
        self.caches.cookies.retable(&policy.tables, policy.from);
        self.caches.server_options.set_policy(&policy, &self.settings.policy);
        self.caches.refused_ports.may_last(policy.longest_closed());
        self.caches.proved_sources.turn(policy.passes_proved());
        self.settings.profiles.adopt(policy.profiles());
        self.quotas.set_limits(&policy.limits);
        self.settings.is_guarded = self.is_guarded();
        // What the kernel's program has counted so far bears the numbers of the former targets.
        self.take_over_counts();
        let places = mode::places_before(policy.targets(), self.settings.policy.targets());
        let mut modes = Modes::new(policy.targets());
        modes.take_over(&places, &self.settings.modes, self.settings.adopt_grace, now);
        self.counters.set_targets(places.into_iter());
        self.settings.modes = modes;
        let former = core::mem::replace(&mut self.settings.policy, policy);
        self.settings.policies = self.settings.policies.wrapping_add(1);
        self.count_targets();
        self.set_services(now);
        former
    }

    /// From now on the services of the present policy count.
    fn set_services(&mut self, now: Instant) {
        let services = &self.settings.policy.services;
        self.caches.neighbours.set(services, now);
        self.caches.backends.set(services, now);
        let keys = self.settings.hash_keys;
        self.caches.source_ports.set(services, |&lan| FlowKey { lan, ..FlowKey::default() }.hash(keys));
    }

    /// Begins or ends to keep new connections from the proxy: SYNs from the WAN are passed to their servers as they are, so that connections opened
    /// from now on do not depend on this process. Clients that were answered lately may still prove themselves.
    pub fn drain(&mut self, draining: bool) {
        self.settings.draining = draining;
    }

    /// Cookies are in the epochs of this clock from now on. Of a clock that is ahead of the former by more than two seconds, or behind it, those made before
    /// open for two epochs more.
    pub fn set_cookie_clock(&mut self, clock: CookieClock, now: Instant) {
        self.caches.cookies.set_clock(clock, now);
    }

    /// Changes the secret that cookies are signed with, when its time comes.
    pub fn rotate(&mut self, rotation: &Rotation, now: Instant) {
        self.caches.cookies.advance(now);
        self.caches.cookies.rotate(rotation);
    }

    /// First pass: parses the frame, hashes its ends and asks for the line of the flow table they fall in. What it finds out it writes to `parse`.
    #[inline]
    pub fn parse(&self, side: Side, head: &Head, meta: &mut Metadata) {
        if let Some(segment) = Segment::common_ipv4(side, head) {
            self.parse_segment(side, segment, meta);
        } else if let Some(segment) = Segment::common_ipv6(side, head) {
            self.parse_segment(side, segment, meta);
        } else {
            self.parse_slow(side, head, meta);
        }
    }

    #[inline(always)]
    fn parse_segment(&self, side: Side, segment: Segment, meta: &mut Metadata) {
        let hash = segment.key.hash(self.settings.hash_keys);
        self.table.prefetch_bucket(hash);
        let mut tokens = 0;
        if segment.flags.has(Flags::SYN) && side == Side::Wan {
            // A copy, so that the segment itself can stay in registers.
            let key = segment.key;
            tokens = self.caches.limiter.place(&key);
            self.caches.limiter.prefetch(tokens);
        }
        *meta = Metadata { parsed: Parsed::Tcp(segment), hash, tokens, place: Id::NOWHERE, entered: 0 };
    }

    /// Parses a frame that the fast path does not take.
    #[inline(never)]
    fn parse_slow(&self, side: Side, head: &Head, meta: &mut Metadata) {
        match Parsed::parse(side, head) {
            Parsed::Tcp(segment) => self.parse_segment(side, segment, meta),
            parsed => *meta = Metadata { parsed, hash: self.owner_hash(&parsed), ..Metadata::default() },
        }
    }

    /// The hash of what is no segment, but may belong to one.
    fn owner_hash(&self, parsed: &Parsed) -> u64 {
        match parsed {
            Parsed::Error(quote) => {
                let hash = quote.key.hash(self.settings.hash_keys);
                self.table.prefetch_bucket(hash);
                hash
            }
            Parsed::Fragment(fragment) => {
                let hash = fragment.hash(self.settings.hash_keys);
                self.caches.fragments.prefetch(hash);
                hash
            }
            _ => 0,
        }
    }

    /// Between the passes: asks for the flow's own lines, now that the table's line is here, and notes whose they are.
    #[inline]
    pub fn prefetch(&self, meta: &mut Metadata) {
        if let Parsed::Tcp(segment) = &meta.parsed {
            match self.table.prefetch_flow(meta.hash, segment.key.v6) {
                Guess::Perhaps(id) => meta.place = id,
                Guess::Elsewhere => self.caches.recent_syns.prefetch(meta.hash),
                Guess::Nowhere => {
                    (meta.place, meta.entered) = (Id::ABSENT, self.table.entered());
                    self.caches.recent_syns.prefetch(meta.hash);
                }
            }
        }
    }

    /// Second pass: decides what becomes of the frame, which has not changed since `parse`.
    pub fn on_frame<E: Egress>(
        &mut self,
        side: Side,
        meta: &Metadata,
        head: &mut Head,
        now: Instant,
        egress: &mut E,
    ) -> Verdict {
        match &meta.parsed {
            Parsed::Tcp(segment) => {
                // Frames that went before in the batch may have changed what is where.
                let found = match meta.place {
                    Id::ABSENT if meta.entered == self.table.entered() => None,
                    place if self.table.is_at(place, &segment.key) => Some(place),
                    _ => self.table.find(&segment.key, meta.hash),
                };
                let target = found.and_then(|id| self.target_if_counted(id));
                let verdict = match found {
                    Some(id) if segment.flags.go_on() && self.forward_fast(side, segment, id, head, now) => {
                        egress.note(|| {
                            "established, in sequence, nothing owed or in doubt: passed and translated".into()
                        });
                        Verdict::Forward
                    }
                    // An egress that traces gets every step, which leads to the same.
                    None if !E::TRACES
                        && segment.flags.open()
                        && self.answer_syn_fast(side, segment, meta, head, now) =>
                    {
                        Verdict::Reflect
                    }
                    _ => self.on_segment(side, segment, meta, found, head, now, egress),
                };
                self.conclude(side, &segment.key, target, verdict)
            }
            Parsed::Error(quote) => {
                let receiver = match self.settings.policy.services.any_turned() {
                    true => self.table.find(&quote.key, meta.hash).map(|id| self.port_of(id, side.other())),
                    false => None,
                };
                let verdict = self.on_icmp_error(side, quote, meta.hash, head, now, egress);
                self.ascribe(&quote.key, None);
                turn(verdict, side, receiver)
            }
            parsed => {
                let verdict = self.on_other_frame(side, parsed, meta, head, now, egress);
                self.counters.forget_recent();
                verdict
            }
        }
    }

    /// What becomes of a frame that is no segment, nor an error about one: it is of no target.
    fn on_other_frame(
        &mut self,
        side: Side,
        parsed: &Parsed,
        meta: &Metadata,
        head: &mut Head,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict {
        match parsed {
            Parsed::StrayError => {
                // What it is about cannot be read: it is for everybody.
                let passes = self.settings.modes.present(0).passes();
                let action = if passes { Action::Pass } else { self.settings.policy.everybody().icmp_errors };
                self.on_unmatched_icmp(action)
            }
            Parsed::Fragment(fragment) => self.on_fragment(side, fragment, meta.hash, now),
            Parsed::Bad(error) => self.counters.drop(drop_reason(*error)),
            _ => {
                if !self.settings.policy.services.is_empty()
                    && let Some(verdict) = self.on_own_frame(side, head, now, egress)
                {
                    return verdict;
                }
                if stations::announces(head.bytes()) {
                    self.note_station(side, head.bytes(), now);
                }
                self.counters.count(Event::Bridged);
                Verdict::Forward
            }
        }
    }

    /// All passes for a single frame.
    pub fn on_single(&mut self, side: Side, head: &mut Head, now: Instant, egress: &mut impl Egress) -> Verdict {
        let mut meta = Metadata::default();
        self.parse(side, head, &mut meta);
        self.on_frame(side, &meta, head, now, egress)
    }

    /// Counts what becomes of a segment, and ascribes all that was counted of it to its [target](Proxy::ascribe).
    #[inline(always)]
    fn conclude(&mut self, side: Side, key: &FlowKey, target: Option<u32>, verdict: Verdict) -> Verdict {
        if let Verdict::Drop(reason) = verdict {
            let _ = self.counters.drop(reason);
        } else {
            self.counters.count(match side {
                Side::Lan => Event::LanSegment,
                Side::Wan => Event::WanSegment,
            });
        }
        self.ascribe(key, target);
        verdict
    }

    /// Ascribes what was counted since the last time to this target; if it is not known, as where there was no flow, to that of the server with this key.
    #[inline(always)]
    fn ascribe(&mut self, key: &FlowKey, target: Option<u32>) {
        if self.counters.has_targets() {
            let policy = &self.settings.policy;
            self.counters.ascribe(|| target.unwrap_or_else(|| policy.rule(key).target));
        }
    }

    /// The target of a flow, if what is counted is ascribed to one.
    #[inline(always)]
    fn target_if_counted(&self, id: Id) -> Option<u32> {
        if !self.counters.has_targets() {
            return None;
        }
        let known = self.table.place_of_profile(self.table[id].profile);
        // The policy that it began under is no more.
        Some(known.unwrap_or_else(|| self.settings.policy.rule(&self.table.key(id)).target))
    }

    /// Counts what happens to another flow than the frame's that is looked at.
    fn count_of_flow(&mut self, id: Id, event: Event) {
        self.counters.add(event, 1, self.target_if_counted(id));
    }

    /// A segment of the flow that was found, or of none, sorted by its kind once: the general case of both fast paths, which do what is done here.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "what a context is made of, in registers")]
    fn on_segment(
        &mut self,
        side: Side,
        segment: &Segment,
        meta: &Metadata,
        found: Option<Id>,
        head: &mut Head,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict {
        let kind = segment.kind();
        if kind == Kind::Syn && side == Side::Wan && self.arrived.is_none() {
            self.counters.count(Event::WanSyn);
        }
        if let Some(id) = found
            && self.table[id].is_in(State::HandedDown)
        {
            egress.note(|| {
                "the connection is handed down: the kernel forwards its usual segments by itself, and of the others the worker decides".into()
            });
            self.begin_handed_down(side, id, segment, head);
        }
        let any_turned = self.settings.policy.services.any_turned() && self.arrived.is_none();
        let receiver = found.filter(|_| any_turned).map(|id| self.port_of(id, side.other()));
        if found.is_none()
            && any_turned
            && let Some(verdict) = self.on_turned(side, segment, head, now, egress)
        {
            return verdict;
        }
        if found.is_none()
            && kind != Kind::Syn
            && let Some(moved) = self.find_answered_segment(side, segment, meta.hash, head, now)
        {
            return self.on_answer_of_other_vlan(side, segment, &moved, meta, head, now, egress);
        }
        let ctx = Context { side, segment, kind, hash: meta.hash, tokens: meta.tokens, now, head: &mut *head, egress };
        let way = if self.settings.modes.may_have_passed() { self.way_by_mode(&ctx, found) } else { Way::Usual };
        let verdict = match way {
            Way::Untouched(id) => self.on_untouched(ctx, id),
            Way::Unknown => self.pass_unknown(ctx),
            Way::Usual => match (found.map(|id| (id, self.table[id].state())), side, kind) {
                (_, _, Kind::Bad) => Verdict::Drop(DropReason::BadFlags),
                (None, Side::Wan, Kind::Syn | Kind::SynAck) | (None, Side::Lan, _)
                    if self.caches.stations.are_on(side, ctx.head.bytes(), now) =>
                {
                    ctx.egress.note(|| "the station it is for is on the side it came from".into());
                    Verdict::Drop(DropReason::Elsewhere)
                }
                (None, Side::Wan, Kind::Rst) => self.on_unknown_reset(ctx),
                (None, Side::Lan, kind) if self.is_own(&segment.key.wan, &segment.key) => self.on_own_side(ctx, kind),
                (None, Side::Lan, Kind::Rst) => self.on_unknown_connection(ctx),
                (None, Side::Wan, Kind::Syn) => self.answer_syn(ctx, None),
                (None, Side::Wan, Kind::Ack) => self.on_cookie_ack(ctx, None),
                (None, Side::Wan, Kind::SynAck) => {
                    self.note_station(side, ctx.head.bytes(), now);
                    self.on_answer_alone(ctx)
                }
                (None, Side::Lan, Kind::Syn) => self.open_passthrough(ctx, None),
                (None, Side::Lan, Kind::SynAck) => self.on_unasked_answer(ctx),
                (None, Side::Lan, Kind::Ack) => self.on_unknown_connection(ctx),
                (Some((id, State::SynCached)), ..) => self.on_syn_cached(ctx, id),
                (Some((id, State::ServerSynSent)), Side::Wan, _) => self.on_client_while_server_syn_sent(ctx, id),
                (Some((id, State::ServerSynSent)), Side::Lan, _) => self.on_server_while_server_syn_sent(ctx, id),
                (Some((id, State::Gathering)), Side::Wan, _) => self.on_client_while_gathering(ctx, id),
                (Some((_, State::Gathering)), Side::Lan, _) => Verdict::Drop(DropReason::WrongState),
                (Some((id, State::Repeating)), Side::Lan, _) => self.on_server_while_repeating(ctx, id),
                (Some((id, State::Repeating)), Side::Wan, _) => self.on_client_while_repeating(ctx, id),
                (Some((id, State::ServerTried)), Side::Wan, _) => self.on_client_while_server_tried(ctx, id),
                (Some((id, State::ServerTried)), Side::Lan, _) => self.on_server_while_server_tried(ctx, id),
                (Some((id, State::SynSent | State::SynReceived)), ..) => self.on_opening(ctx, id),
                (Some((id, State::Unconfirmed)), ..) => self.on_unconfirmed(ctx, id),
                (Some((id, _)), ..) => self.on_established(ctx, id),
            },
        };
        let verdict = turn(verdict, side, receiver);
        if self.handed_down.came_up.is_some() {
            self.settle_handed_down(side, now);
        }
        if segment.fragmented && verdict == Verdict::Forward {
            self.note_first_fragment(side, segment, head, now);
        }
        verdict
    }

    /// Does what is due: repeats SYNs, removes what has expired, changes keys. Works off a bounded share;
    /// returns true when more is due already.
    pub fn on_timeout(&mut self, now: Instant, egress: &mut impl Egress) -> bool {
        self.caches.cookies.advance(now);
        self.handed_down.clock = tick(now);
        self.follow_kernel_syns(now);
        if !self.settings.policy.services.is_empty() {
            self.caches.source_ports.now = now;
            self.speak_to_neighbours(now, egress);
            self.ask_servers(now, egress);
            self.counters.forget_recent();
        }
        if self.sweep.is_some() {
            let goes_on = self.continue_sweep(egress);
            self.counters.forget_recent();
            if goes_on {
                return true;
            }
        }
        for _ in 0..STEPS_A_TURN {
            match self.table.step(now) {
                None => return false,
                Some(None) => {}
                Some(Some(id)) => {
                    self.table.prefetch_next_bucket(id);
                    let target = self.target_if_counted(id);
                    self.expire(id, now, egress);
                    if let Some(target) = target {
                        self.counters.ascribe(|| target);
                    }
                }
            }
        }
        true
    }

    /// The next held frame to bring back with [`Proxy::on_release`], if any. Ask after every frame and every timeout, until none is left.
    #[inline]
    pub fn next_release(&mut self) -> Option<Ticket> {
        self.caches.hold_queue.next_release()
    }

    /// Ends a ticket: what becomes of the frame that was held for it, which came from the WAN and has not changed since. Never
    /// [`Verdict::Hold`] again.
    pub fn on_release(&mut self, ticket: Ticket, head: &mut Head, now: Instant, egress: &mut impl Egress) -> Verdict {
        if self.caches.hold_queue.redeem(ticket) {
            self.counters.count(Event::Released);
            let verdict = self.on_single(Side::Wan, head, now, egress);
            if !matches!(verdict, Verdict::Hold(_)) {
                return verdict;
            }
        }
        let dropped = self.counters.drop(DropReason::NotHeld);
        self.counters.forget_recent();
        dropped
    }

    /// The next source that has proved itself by a cookie, an entry of the SYN cache, or by completing a connection that passed for its last proof, once for
    /// each proof, until none is left. The worker
    /// takes them once a poll; the engine keeps only the first few.
    #[inline]
    pub fn next_proved(&mut self) -> Option<Source> {
        self.proved.pop()
    }

    /// Whether a segment of the WAN may pass, or cause work, as such an exception, although its sender has proved nothing. It is charged for it.
    #[inline(never)]
    fn is_excepted(&mut self, kind: Exception, segment: &Segment, hash: u64, now: Instant) -> bool {
        let Caches { exceptions, limiter, .. } = &mut self.caches;
        let network = limiter.place(&segment.key);
        exceptions.admit(kind, &segment.key, network, now, || limiter.is_repeated(hash, segment.seq, now))
    }

    /// Takes note that the client of a segment has proved itself.
    fn note_proof(&mut self, event: Event, key: &FlowKey, now: Instant) {
        self.counters.count(event);
        self.caches.vlan_pairs.note_proof(key.vlan);
        let is_news = self.caches.proved_sources.is_on() && self.caches.proved_sources.note(key, now);
        self.tell_proved(key, is_news);
    }

    /// The client of a connection that passed has acknowledged a number that its server chose.
    fn note_completed(&mut self, key: &FlowKey, hash: u64, now: Instant) {
        self.caches.exceptions.note_source(key);
        if self.caches.proved_sources.is_on()
            && let Some(is_news) = self.caches.proved_sources.completed(key, hash, now)
        {
            self.tell_proved(key, is_news);
        }
    }

    /// Tells the worker of a source that has proved itself, and other workers if that is news to them.
    fn tell_proved(&mut self, key: &FlowKey, is_news: bool) {
        if self.proved.len() < PROVED_KEPT {
            self.proved.push(source(key));
        }
        if is_news {
            self.publish(ServerUpdate::Proved(*key));
        }
    }

    /// From now on this is one of several workers, which divide among themselves what only one of them is to do. Until then it is the only one.
    pub fn set_worker(&mut self, worker: Worker, now: Instant) {
        self.settings.worker = worker;
        self.caches.neighbours.set_first(worker.number == 0, now);
        self.caches.backends.set_first(worker.number == 0, now);
    }

    /// What this worker has learned of servers, for the others to [receive](Proxy::receive_update), oldest first. The worker takes the updates
    /// once a poll; the engine keeps only the first few.
    #[inline]
    pub fn updates(&mut self) -> impl Iterator<Item = ServerUpdate> {
        self.updates.drain(..)
    }

    /// Applies what another worker has learned; it is not published again. The worker's configuration and secrets are the same.
    pub fn receive_update(&mut self, updates: &ServerUpdate, now: Instant) {
        match updates {
            ServerUpdate::Answered(key, observation) => {
                self.caches.server_options.learn(key, observation, now);
                self.caches.refused_ports.opened(key, now);
            }
            ServerUpdate::Met(key, met, is_proved) => {
                let memory = self.settings.policy.rule(key).closed_memory;
                let network = self.caches.limiter.network(key);
                self.caches.refused_ports.met(key, network, *met, *is_proved, memory, now);
                self.keep_from_kernel(key);
            }
            ServerUpdate::Tried(key, is_proved) => {
                let network = self.caches.limiter.network(key);
                self.caches.refused_ports.note_try(key, network, *is_proved, now);
            }
            ServerUpdate::Opened(key) => {
                self.caches.refused_ports.opened(key, now);
                self.caches.server_options.answered(key, now);
            }
            ServerUpdate::Vlans(pair) => {
                self.caches.vlan_pairs.learn(*pair);
            }
            ServerUpdate::DirectReturn(key) => self.on_direct_return(key),
            ServerUpdate::Proved(key) => {
                self.caches.proved_sources.note(key, now);
            }
            ServerUpdate::Heard(side, mac) => {
                self.caches.stations.heard_on(*side, *mac, now);
            }
            ServerUpdate::Neighbour(heard) => self.caches.neighbours.receive(heard, now),
            ServerUpdate::Health(health) => self.caches.backends.receive(health),
        }
    }

    /// Takes note that the sender of a frame is on this side.
    fn note_station(&mut self, side: Side, frame: &[u8], now: Instant) {
        if let Some(mac) = self.caches.stations.note(side, frame, now) {
            self.publish(ServerUpdate::Heard(side, mac));
        }
    }

    /// Takes note of a server's SYN-ACK.
    fn learn(&mut self, key: &FlowKey, observation: &Observation, now: Instant) {
        let is_new = self.caches.server_options.learn(key, observation, now);
        let was_closed = self.caches.refused_ports.opened(key, now);
        self.caches.direct_returns.answered(key);
        if is_new || was_closed {
            self.publish(ServerUpdate::Answered(*key, *observation));
        }
    }

    /// Takes note that a server has answered the SYN of a client that has proved nothing: what it says to such a client changes nothing of what is known,
    /// but that it is there.
    fn learn_unproved(&mut self, key: &FlowKey, observation: &Observation, is_exceptional: bool, now: Instant) {
        if !is_exceptional && !self.caches.server_options.knows(key) {
            return self.learn(key, observation, now);
        }
        let is_due = self.caches.server_options.answered(key, now);
        let was_closed = self.caches.refused_ports.opened(key, now);
        self.caches.direct_returns.answered(key);
        if is_due || was_closed {
            self.publish(ServerUpdate::Opened(*key));
        }
    }

    fn publish(&mut self, updates: ServerUpdate) {
        if self.updates.len() < UPDATES_KEPT {
            self.updates.push(updates);
        }
    }

    /// Ends a ticket in whose name no frame was kept.
    pub fn void(&mut self, ticket: Ticket) {
        self.caches.hold_queue.redeem(ticket);
    }

    /// Frames held at most; every ticket's index is below.
    pub fn held_frames(&self) -> usize {
        self.caches.hold_queue.places()
    }

    /// The earliest time at which [`Proxy::on_timeout`] may have something to do; `None` when nothing is pending.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.sweep.is_some() {
            return Some(Instant::default());
        }
        // Both are none where nothing is due.
        let services = [self.caches.neighbours.next_deadline(), self.caches.backends.next_deadline()];
        services.into_iter().chain([self.table.next_deadline()]).flatten().min()
    }

    /// What has been counted since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many flows there are of each kind.
    pub fn population(&self) -> Population {
        self.table.population()
    }

    /// How many flows there can be, and how many of these in the SYN cache.
    pub fn capacity(&self) -> (u64, u64) {
        (self.table.capacity() as u64, self.candidates.syn_cached_most() as u64)
    }

    /// A flow's time has come; it is on no timer.
    fn expire(&mut self, id: Id, now: Instant, egress: &mut impl Egress) {
        match self.table[id].state() {
            State::ServerSynSent => self.retransmit_syn(id, now, egress),
            State::ServerTried => self.continue_try(id, now, egress),
            State::Gathering => self.end_patience(id, now, egress),
            State::Repeating => self.repeat_again(id, now, egress),
            State::AckWithheld => self.send_withheld_ack(id, now, egress),
            State::WindowPending => self.repeat_update(id, now, egress),
            State::HandedDown if self.is_alive_below(id, now) => {}
            _ => {
                self.counters.count(Event::Expired);
                self.forget(id);
            }
        }
    }

    /// Makes a flow due when its state has lasted as long as it may from now on.
    #[inline(always)]
    fn restart_timer(&mut self, id: Id, now: Instant) {
        let flow = &self.table[id];
        let lifetime = self.settings.profiles.of(flow.profile).of(flow.state());
        self.table.schedule(id, tick(now).wrapping_add(lifetime));
    }

    /// Changes a flow's state, with what must not change without it, and its timer.
    fn set_state(&mut self, id: Id, state: State, now: Instant, change: impl FnOnce(&mut Flow)) {
        self.follow_state(id, now, |flow| {
            change(flow);
            state
        });
    }

    /// Changes a flow in a way that may lead to another state, which `change` returns. A new state restarts the timer.
    fn follow_state(&mut self, id: Id, now: Instant, change: impl FnOnce(&mut Flow) -> State) {
        let former = self.table[id].state();
        let state = self.table.follow_state(id, change);
        if state == former {
            return;
        }
        if former == State::HandedDown {
            self.handed_down.give_up(self.table[id].hash(), self.table.key(id));
        }
        if matches!(state, State::TimeWait | State::Reset) {
            self.remember_candidate(id);
        }
        self.recount(id, now);
        self.restart_timer(id, now);
    }

    /// Gives the connection with this key a second one, as a service does that has chosen a server: for tests, which say what is added to the numbers and to the
    /// timestamps of the client, too. False if there is no such connection, or no room.
    pub fn redirect_flow(&mut self, key: &FlowKey, second: &FlowKey, macs: [Mac; 2], deltas: (u32, u32)) -> bool {
        let Some(id) = self.table.find(key, key.hash(self.settings.hash_keys)) else { return false };
        let mut redirect = Redirect::new(second, second.hash(self.settings.hash_keys), Side::Wan, Side::Lan);
        [redirect.mac, redirect.own_mac] = macs;
        redirect.seq_delta = SeqDelta::between(0, deltas.0);
        redirect.ts_delta = SeqDelta::between(0, deltas.1);
        redirect.kept_to = self.table[id].endpoint(Side::Lan).acked;
        self.table.redirect(id, redirect)
    }

    /// The established flows load generators count on: 540 pairs of a LAN end 10.0.0.0 + 2(j + 1), port 12345, and a WAN end
    /// 11.0.0.0 + 2j + 1, port 54321.
    fn make_test_connections(&mut self, now: Instant) {
        for j in 0..540 {
            let mapped = |address| [0, 0, 0xffff, address];
            let key = FlowKey {
                lan: mapped(0x0a00_0000 + 2 * j + 2),
                wan: mapped(0x0b00_0000 + 2 * j + 1),
                lan_port: 12345,
                wan_port: 54321,
                ..FlowKey::default()
            };
            let hash = key.hash(self.settings.hash_keys);
            let profile = self.settings.profiles.present(self.settings.policy.rule(&key).profile);
            let filled = self.table.insert(&key, hash, Side::Wan, State::Established, |flow| {
                flow.set(FlowFlags::PROXIED, true);
                flow.set(FlowFlags::UNJUDGED, true);
                flow.seq_delta = SeqDelta::between(0, hash as u32);
                flow.profile = profile;
            });
            let Some(id) = filled else { return };
            self.table.enter(id, tick(now).wrapping_add(self.settings.profiles.connected(profile)));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::Timeouts;

    /// An egress without a frame to spare.
    pub(crate) struct NoEgress;

    impl Egress for NoEgress {
        fn emit(&mut self, _: Side, _: impl FnOnce(&mut [u8]) -> usize) -> bool {
            false
        }
    }

    /// An engine with this many connections that rest from `now` on.
    fn resting(count: u32, now: Instant) -> Proxy {
        let config = Config { table_buckets: 1000, syn_cache_max: 4, ..Config::default() };
        let mut proxy = Proxy::new(&config, &Secrets::new([1; 48]), now);
        for n in 0..count {
            let key = FlowKey { lan: [0, 0, 0xffff, 1], wan: [0, 0, 0xffff, n], ..FlowKey::default() };
            let hash = key.hash(proxy.settings.hash_keys);
            proxy.admit(&key, hash, Side::Lan, State::Established, now, |_| ()).unwrap();
        }
        proxy
    }

    #[test]
    fn what_was_absent_in_the_first_pass_may_have_come_by_the_second() {
        let now = Instant::from_secs(1000);
        let mut proxy = resting(0, now);
        let syn = test_segments::TestSegment { flags: Flags::SYN.0, ..test_segments::TestSegment::default() };
        let (mut frames, mut metas) = ([syn.frame(), syn.frame()], [Metadata::default(); 2]);
        for (frame, meta) in frames.iter_mut().zip(&mut metas) {
            let len = frame.len();
            proxy.parse(Side::Lan, &Head::whole(frame, len), meta);
        }
        metas.iter_mut().for_each(|meta| proxy.prefetch(meta));
        for (frame, meta) in frames.iter_mut().zip(&metas) {
            let len = frame.len();
            let verdict = proxy.on_frame(Side::Lan, meta, &mut Head::whole(frame, len), now, &mut NoEgress);
            assert_eq!((verdict, proxy.population().passthrough), (Verdict::Forward, 1));
        }
    }

    #[test]
    fn flows_that_fall_due_together_are_removed_a_share_a_turn_and_none_is_forgotten() {
        let now = Instant::from_secs(1000);
        let mut proxy = resting(5000, now);
        let due = now + Timeouts::default().connected + core::time::Duration::from_secs(1);
        let (mut left, mut turns) = (5000, 0);
        loop {
            let more = proxy.on_timeout(due, &mut NoEgress);
            turns += 1;
            let still = proxy.population().passthrough;
            assert!(left - still <= STEPS_A_TURN as u64, "{} in one turn", left - still);
            left = still;
            if !more {
                break;
            }
        }
        assert_eq!((left, proxy.next_deadline()), (0, None));
        // Besides its removal a flow costs the turns of the wheel's four levels at most.
        assert!(turns <= 5 * 5000 / STEPS_A_TURN + 1, "{turns} turns");
    }
}
