//! What a program of the kernel needs to answer SYNs as the engine would, and to drop acknowledgements of SYNs that nobody answered
//! (`pktio/bpf/syns.h`). The engine writes it as plain memory; nothing here asks the kernel for anything.
//!
//! The engine answers the first SYN to a server itself. If everything that the answer depends on is the same for every other client, but for what
//! the program finds in the SYN, it writes an *entry* for the server: from then on the program answers. An entry holds until the second (2^20 µs) or the
//! epoch of cookies ends, and until something changes that it depends on: then the engine begins another *generation*, and no entry of the former one holds.
//! So it is written anew once a second, with a SYN that the program hands up.
//!
//! No entry is written where the answer depends on more: for servers of which nothing is known or whose MSS differs by client, for ports that somebody was refused at
//! lately, for stations that were heard on the WAN, for addresses of services, for destinations that pass SYNs of proved sources; and for nobody while lists of clients or limits on
//! SYN-ACKs are in force, while the box drains, where the two directions bear different VLAN tags, or where a server was found to answer another way.
//!
//! Acknowledgements are dropped for the engine only while many come (`NOISY`), and never while cookies may open whose SYN another process has
//! answered, or while connections that run already are adopted.
//!
//! Layout: blocks of 32 words. Block 0: the generation, zero for none; until when entries count that need a full SYN cache; from when on acknowledgements
//! are dropped, zero for never; the refill period of token buckets in µs; a bucket's size, above it what is added a period; the mask of IPv4 networks, above it
//! that of buckets; two words of the mask of IPv6 networks; two of the key that names buckets; failed tests a period, above them the most a bucket holds; whether the keyed hash of its 4-tuple names the worker that owns
//! a connection, and not the queue that its frames come by. The program
//! counts in its second half: SYNs that it answered because the cache was full, and acknowledgements that it dropped. Blocks 1 and 2:
//! SYNs that it has answered, by target. Blocks 3 and 4: how cookies of even and of odd epochs are made ([`Minting`]). Behind them two entries a block; those
//! of a server are in the block that a hash of its address, VLAN and port names.
//!
//! Words of an entry: its stamp, which no other has, with the generation in the upper half; until when it holds; the server's address, in two; VLAN tags, 16 bits of port, 16 of the
//! target's number; the station that its SYNs are for, 16 bits of flags; then two words of what clients with timestamps are offered, and two for those without:
//! from the low end of the first, 16 bits each of the MSS, the window for clients that scale, that for others, and the clamp of MSS options; of the second,
//! a byte each of the promised scale or 15, SACK, timestamps, ECN, hop limit, routers to the server, class, and whether the class is reflected.

use core::sync::atomic::AtomicU64;

use super::Proxy;
use crate::cache::recent_syns::RecentSyns;
use crate::config::{Mode, Proved, Stray};
use crate::cookie::Minting;
use crate::cookie::terms::Offer;
use crate::memory::{Word, Words, publish};
use crate::policy::exceptions::Exception;
use crate::policy::limit::Limiter;
use crate::policy::{Rule, ServiceMark};
use crate::wire::FlowKey;
use crate::{Config, DropReason, Event, Instant};

/// Words of a block.
const BLOCK: usize = 32;
/// Words of an entry.
const ENTRY: usize = 16;
/// Blocks in front of the entries.
const HEAD: usize = 5;
/// Blocks of entries, a power of two: 128 KiB.
const SETS: usize = 512;
/// Targets that the program counts answers of; servers of others are left to the engine.
const TARGETS: usize = 2 * BLOCK;

/// Words of block 0.
const GENERATION: usize = 0;
const FULL_UNTIL: usize = 1;
const ACKS_FROM: usize = 2;
const LIMITS: usize = 3;
const BY_HASH: usize = 11;
const ANSWERED_FULL: usize = 16;
const UNASKED: usize = 17;
/// Words up to the counters by target, and up to the secrets.
const BY_TARGET: usize = BLOCK;
const MINTING: usize = 3 * BLOCK;

/// Flags of an entry.
const V6: u64 = 1;
const NEEDS_FULL_CACHE: u64 = 2;
const ODD_EPOCH: u64 = 4;
/// Clients without timestamps are answered too.
const HAS_PLAIN: u64 = 8;

/// A second of the entries, as a power of two of µs: as long as the engine remembers an offer.
const SECOND_BITS: u32 = 20;
/// From so many acknowledgements a second of SYNs that nobody answered the program drops them, and for so many seconds more.
const NOISY: u64 = 1000;
const NOISY_FOR: u64 = 16;

/// The memory that the engine shares with the program: each region as many zeroed words as [`SharedSyns::words_needed`] says.
pub struct SharedSyns {
    /// What this module describes.
    pub answers: Words,
    /// The recent-SYN filter.
    pub recent_syns: Words,
    /// The token buckets of source prefixes.
    pub limits: Words,
    /// Whether the worker that owns a connection is the one that [`share`](crate::owner::share) names; otherwise it is that of the queue its frames come by.
    pub by_hash: bool,
}

impl SharedSyns {
    /// How many words each region has at least, in the order of the fields.
    pub fn words_needed(config: &Config) -> [usize; 3] {
        [(HEAD + SETS) * BLOCK, RecentSyns::words_needed(config), Limiter::words_needed(config)]
    }
}

/// What entries depend on besides their servers.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Basis {
    is_sound: bool,
    policies: u32,
    modes: u32,
    offers: u32,
    cookies: u32,
    stations: u32,
}

/// The engine's side.
pub(crate) struct KernelSyns {
    words: Words,
    basis: Basis,
    generation: u32,
    /// Entries written so far, on a circle.
    stamps: u32,
    /// The program's counters when they were last taken over.
    taken: [u64; TARGETS],
    taken_full: u64,
    taken_unasked: u64,
    /// The present second, how many acknowledgements of no SYN had come when it began, and until which second there are many.
    second: u64,
    unasked: u64,
    noisy_until: u64,
}

impl KernelSyns {
    fn word(&self, at: usize) -> &AtomicU64 {
        &self.words[at]
    }

    /// The words of the two entries that a server may have.
    fn places(key: &FlowKey) -> [usize; 2] {
        let name = name(key);
        let mixed =
            (name[0] ^ name[1].wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ name[2] >> 16).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let block = HEAD + (mixed >> 55) as usize % SETS;
        [block * BLOCK, block * BLOCK + ENTRY]
    }

    /// The entry of a server, if it has one.
    fn find(&self, key: &FlowKey) -> Option<usize> {
        let name = name(key);
        let is_it = |&at: &usize| {
            let [high, low, port] = [2, 3, 4].map(|word| self.word(at + word).get());
            [high, low, port & !0xffff] == name && self.word(at + 5).get() & V6 == u64::from(key.v6)
        };
        Self::places(key).into_iter().find(is_it)
    }

    /// No SYN to this server is answered by the program until it has an entry again.
    pub(crate) fn withdraw(&self, key: &FlowKey) {
        if let Some(at) = self.find(key) {
            self.word(at).set(0);
        }
    }

    /// No entry holds any more.
    fn begin_generation(&mut self, is_sound: bool) {
        self.generation = self.generation.wrapping_add(1).max(1);
        publish::end(self.word(GENERATION), if is_sound { self.generation.into() } else { 0 });
    }

    fn write(&mut self, at: usize, entry: [u64; 9]) {
        self.stamps = self.stamps.wrapping_add(1);
        let stamp = u64::from(self.generation) << 32 | u64::from(self.stamps);
        publish::replace(self.word(at), stamp, || {
            entry.into_iter().enumerate().for_each(|(n, word)| self.word(at + 1 + n).set(word));
        });
    }
}

/// What names a server: the upper words of its entry, without its target.
fn name(key: &FlowKey) -> [u64; 3] {
    let [a, b, c, d] = key.lan.map(u64::from);
    [a << 32 | b, c << 32 | d, u64::from(key.vlan.0) << 32 | u64::from(key.lan_port) << 16]
}

/// The words of what clients are offered, with timestamps or without: `promised` and `timestamps` are of the terms agreed with a client that scales.
fn offered(rule: &Rule, offer: &Offer, promise: impl FnOnce(bool) -> Option<u8>, stamps: bool) -> [u64; 2] {
    let timestamps = stamps && offer.timestamps;
    let promised = promise(timestamps);
    let scale = promised.map(crate::seq::WindowScale::clamped);
    let [scaled, plain] = [scale, None].map(|promised| u64::from(rule.early_window(offer, promised).0));
    let bytes = [
        promised.unwrap_or(15),
        u8::from(offer.sack),
        u8::from(timestamps),
        offer.ecn as u8,
        offer.ttl,
        offer.hops,
        offer.class,
        u8::from(offer.reflects_class),
    ];
    let numbers = u64::from(offer.mss) | scaled << 16 | plain << 32 | u64::from(rule.mss_clamp) << 48;
    [numbers, u64::from_le_bytes(bytes)]
}

impl Proxy {
    /// From now on a program of the kernel answers SYNs as this memory says, which is zeroed, and drops acknowledgements of SYNs that nobody answered. What
    /// the recent-SYN filter and the token buckets hold goes there too. To be called before the first frame. The program needs the map of
    /// [flows](Proxy::publish_flows).
    ///
    /// # Panics
    /// If a region has fewer words than [`SharedSyns::words_needed`].
    pub fn share_syns(&mut self, memory: SharedSyns) {
        let SharedSyns { answers, recent_syns, limits, by_hash } = memory;
        assert!(answers.len() >= (HEAD + SETS) * BLOCK, "the answers need more words");
        answers[BY_HASH].set(by_hash.into());
        self.caches.recent_syns.move_to(recent_syns);
        self.caches.limiter.move_to(limits);
        self.kernel_syns = Some(Box::new(KernelSyns {
            words: answers,
            basis: Basis::default(),
            generation: 0,
            stamps: 0,
            taken: [0; TARGETS],
            taken_full: 0,
            taken_unasked: 0,
            second: 0,
            unasked: 0,
            noisy_until: 0,
        }));
    }

    /// From now on no program of the kernel answers SYNs.
    pub fn unshare_syns(&mut self) {
        if let Some(syns) = &self.kernel_syns {
            [GENERATION, ACKS_FROM].into_iter().for_each(|at| syns.word(at).set(0));
        }
        self.take_over_counts();
        self.kernel_syns = None;
    }

    /// Something is remembered of this server's port: the engine decides on its SYNs.
    pub(super) fn keep_from_kernel(&self, key: &FlowKey) {
        if let Some(syns) = &self.kernel_syns {
            syns.withdraw(key);
        }
    }

    /// Takes over what the program has counted, and says what holds now. To be called once an iteration.
    #[inline(always)]
    pub(super) fn follow_kernel_syns(&mut self, now: Instant) {
        if self.kernel_syns.is_some() {
            self.take_over_counts();
            self.say_what_holds(now);
        }
    }

    #[inline(never)]
    pub(super) fn take_over_counts(&mut self) {
        let Some(syns) = &mut self.kernel_syns else { return };
        let news = |at: usize, taken: &mut u64| {
            let counted = syns.words[at].get();
            counted - core::mem::replace(taken, counted)
        };
        let full = news(ANSWERED_FULL, &mut syns.taken_full);
        let unasked = news(UNASKED, &mut syns.taken_unasked);
        self.counters.add(Event::CacheFull, full, None);
        self.counters.add(Event::Unasked, unasked, None);
        self.counters.add(Event::KernelDropped, unasked, None);
        self.counters.add_drops(DropReason::BadCookie, unasked);
        for (target, taken) in syns.taken.iter_mut().enumerate() {
            let answered = news(BY_TARGET + target, taken);
            if answered > 0 {
                for event in [Event::WanSyn, Event::SynAnswered, Event::KernelAnswered, Event::WanSegment] {
                    self.counters.add(event, answered, Some(target as u32));
                }
            }
        }
    }

    /// What entries depend on, as it is now.
    fn basis(&self) -> Basis {
        let Self { settings, caches, .. } = self;
        Basis {
            is_sound: !settings.draining
                && !settings.is_guarded
                && caches.vlan_pairs.is_empty()
                && !caches.direct_returns.any_bypassed(),
            policies: settings.policies,
            modes: settings.modes.changes(),
            offers: caches.server_options.changes(),
            cookies: caches.cookies.changes(),
            stations: caches.stations.heard_on_wan(),
        }
    }

    #[inline(never)]
    fn say_what_holds(&mut self, now: Instant) {
        self.caches.cookies.advance(now);
        let (basis, full_until) = (self.basis(), self.cache_full_until(now));
        let second = now.as_micros() >> SECOND_BITS;
        let Some(syns) = &mut self.kernel_syns else { return };
        if second != syns.second {
            let unasked = self.counters.happened(Event::Unasked);
            if unasked - syns.unasked >= NOISY {
                syns.noisy_until = second + NOISY_FOR;
            }
            (syns.second, syns.unasked) = (second, unasked);
        }
        let is_noisy = second < syns.noisy_until;
        if basis != syns.basis {
            syns.basis = basis;
            syns.begin_generation(basis.is_sound);
            let limits = self.caches.limiter.parameters();
            limits.into_iter().enumerate().for_each(|(n, word)| syns.word(LIMITS + n).set(word));
            let Minting { is_odd, words, .. } = self.caches.cookies.minting();
            let block = MINTING + usize::from(is_odd) * BLOCK;
            words.into_iter().enumerate().for_each(|(n, word)| syns.word(block + n).set(word));
        }
        syns.word(FULL_UNTIL).set(full_until.as_micros());
        let acks_from = if is_noisy { self.acks_end_here_from() } else { None };
        if let Some(syns) = &self.kernel_syns {
            syns.word(ACKS_FROM).set(acks_from.map_or(0, |from| from.as_micros().max(1)));
        }
    }

    /// From when on an acknowledgement of the WAN that belongs to no flow, and to no SYN that was answered, is dropped whatever else it is; `None` if that depends
    /// on its server.
    fn acks_end_here_from(&self) -> Option<Instant> {
        let Self { settings, caches, .. } = self;
        let some_pass = settings.modes.any_passes()
            || settings.policy.any(|rule| rule.stray == Stray::Reset) && !caches.exceptions.is_shut(Exception::Reset)
            || !caches.vlan_pairs.is_empty()
            || !settings.policy.services.is_empty();
        let adopts_until = settings.adopt_until.max(settings.modes.adopts_until());
        (!some_pass).then(|| adopts_until.max(caches.recent_syns.blind_until()))
    }

    /// The engine is about to answer, by a cookie alone, the SYN of a client that wants this server and is in `frame`: has the program answer the next ones, if it can.
    #[cold]
    #[inline(never)]
    pub(super) fn let_kernel_answer(&mut self, key: &FlowKey, frame: &[u8], now: Instant) {
        self.say_what_holds(now);
        let Some(syns) = &self.kernel_syns else { return };
        if !syns.basis.is_sound {
            return;
        }
        let rule = *self.settings.policy.rule(key);
        let needs_full_cache = match self.settings.modes.present(rule.target) {
            Mode::Cookie => false,
            Mode::Cache => !self.has_no_syn_cache(),
            _ => return,
        };
        if rule.service != ServiceMark::None
            || needs_full_cache && !self.is_cache_full(now)
            || rule.proved == Proved::Pass && self.caches.proved_sources.is_on()
            || self.caches.refused_ports.is_remembered(key, now)
            || self.caches.stations.was_heard_on_wan(frame, now)
            || rule.target as usize >= TARGETS
        {
            return;
        }
        let second_ends = Instant::from_micros(((now.as_micros() >> SECOND_BITS) + 1) << SECOND_BITS);
        let until = second_ends.min(self.caches.cookies.until()).as_micros();
        let station =
            frame.first_chunk().map_or(0, |mac: &[u8; 6]| mac.iter().fold(0, |mac, &byte| mac << 8 | u64::from(byte)));
        let known = syns.find(key);
        if known.is_some_and(|at| {
            let [stamp, holds, station_of] = [0, 1, 5].map(|word| syns.word(at + word).get());
            stamp >> 32 == syns.generation.into() && holds == until && station_of >> 16 == station
        }) {
            return;
        }
        let offers = [true, false].map(|stamps| self.caches.server_options.offer(key, &rule, stamps, now));
        if !offers[0].known || offers[0].mss_varies {
            return;
        }
        let cookies = &self.caches.cookies;
        let words = [true, false].map(|stamps| {
            let offer = &offers[usize::from(!stamps)];
            let promise = |timestamps| cookies.promise(offer.scale, timestamps).map(|scale| scale.get());
            offered(&rule, offer, promise, stamps)
        });
        let Minting { is_odd, has_plain, .. } = cookies.minting();
        let flags = [(V6, key.v6), (NEEDS_FULL_CACHE, needs_full_cache), (ODD_EPOCH, is_odd), (HAS_PLAIN, has_plain)];
        let flags = flags.into_iter().fold(0, |flags, (flag, is_set)| flags | if is_set { flag } else { 0 });
        let [high, low, port] = name(key);
        let [[a, b], [c, d]] = words;
        let entry = [until, high, low, port | u64::from(rule.target), station << 16 | flags, a, b, c, d];
        let Some(syns) = &mut self.kernel_syns else { return };
        let at = known.unwrap_or_else(|| {
            // The one that ends first gives way.
            let [one, other] = KernelSyns::places(key);
            let ends = |at: usize| if syns.word(at).get() == 0 { 0 } else { syns.word(at + 1).get() };
            if ends(other) < ends(one) { other } else { one }
        });
        syns.write(at, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::refused::Met;
    use crate::cache::servers::Observation;
    use crate::config::{Auto, ServiceConfig, ServiceServer};
    use crate::memory::tests::shared;
    use crate::policy::lists::{List, Lists};
    use crate::proxy::test_segments::{TestSegment, key};
    use crate::proxy::tests::NoEgress;
    use crate::seq::RawWindow;
    use crate::wire::EcnSetup;
    use crate::wire::{Flags, Options};
    use crate::{Directive, Head, Secrets, Side, Verdict};
    use core::time::Duration;
    use std::sync::Arc;

    const START: Instant = Instant::from_secs(2000);

    /// An engine whose program answers SYNs, and the words of the answers.
    fn engine(config: &Config) -> (Proxy, Words) {
        let secrets = Secrets::new([7; 48]);
        let mut proxy = Proxy::new(config, &secrets, Instant::from_secs(1000));
        let [answers, recent_syns, limits] = SharedSyns::words_needed(config).map(|len| shared(len, || 0));
        let words = answers.share().expect("they were handed in");
        proxy.share_syns(SharedSyns { answers, recent_syns, limits, by_hash: false });
        let observation = Observation {
            answered: Options { mss: Some(1460), ..Options::default() },
            offered_scale: true,
            offered_sack: true,
            offered_timestamps: true,
            offered_ecn: EcnSetup::None,
            answered_ecn: EcnSetup::None,
            window: RawWindow(9),
            ttl: 64,
            offered_class: 0,
            answered_class: 0,
        };
        proxy.caches.server_options.learn(&key(false), &observation, START);
        (proxy, words)
    }

    fn cookies() -> Config {
        Config { mode: Mode::Cookie, table_buckets: 8, learn_capacity: 64, ..Config::default() }
    }

    /// A SYN of the WAN reaches the engine.
    fn syn(proxy: &mut Proxy, now: Instant) -> Verdict {
        let said =
            TestSegment { side: Side::Wan, flags: Flags::SYN.0, options: vec![2, 4, 5, 0xb4], ..Default::default() };
        let mut frame = said.frame();
        let len = frame.len();
        proxy.on_single(Side::Wan, &mut Head::whole(&mut frame, len), now, &mut NoEgress)
    }

    /// Whether the program would find an entry of the server that holds.
    fn holds(words: &Words, now: Instant) -> bool {
        let generation = words[GENERATION].get();
        KernelSyns::places(&key(false))
            .into_iter()
            .any(|at| generation != 0 && words[at].get() >> 32 == generation && now.as_micros() < words[at + 1].get())
    }

    fn turn(proxy: &mut Proxy, now: Instant) {
        while proxy.on_timeout(now, &mut NoEgress) {}
    }

    #[test]
    fn an_entry_holds_for_the_rest_of_a_second_and_until_something_changes() {
        type Change = fn(&mut Proxy);
        let changes: [(&str, Change, bool); 8] = [
            ("nothing", |_| (), true),
            ("a refusal", |proxy| proxy.remember(&key(false), Met::Reset, true, START), false),
            ("a reset without a proof", |proxy| proxy.note_unproved_reset(&key(true), START), true),
            ("drain", |proxy| proxy.drain(true), false),
            (
                "a list",
                |proxy| {
                    let network = crate::config::Network { address: [0, 0, 0xffff, 9], prefix: 128 };
                    drop(proxy.set_lists(Arc::new(Lists::new([(List::Block, network)]))));
                },
                false,
            ),
            (
                "a policy",
                |proxy| {
                    let policy = crate::Policy::new(&cookies(), START);
                    drop(proxy.set_policy(Arc::new(policy), START));
                },
                false,
            ),
            (
                "a secret",
                |proxy| {
                    let rotation = crate::Rotation::new([3; 16], crate::CookieClock::default(), START);
                    proxy.rotate(&rotation, START);
                },
                false,
            ),
            (
                "a station",
                |proxy| {
                    proxy.caches.stations.heard_on(Side::Wan, 7 << 16, START);
                },
                false,
            ),
        ];
        for (name, change, still) in changes {
            let (mut proxy, words) = engine(&cookies());
            turn(&mut proxy, START);
            assert!(!holds(&words, START), "{name}: no SYN has come");
            assert_eq!(syn(&mut proxy, START), Verdict::Reflect, "{name}");
            assert!(holds(&words, START), "{name}");
            assert!(!holds(&words, START + Duration::from_millis(1049)), "{name}: a second has ended");
            change(&mut proxy);
            turn(&mut proxy, START);
            assert_eq!(holds(&words, START), still, "{name}");
        }
    }

    #[test]
    fn no_entry_is_written_where_the_answer_depends_on_more() {
        let proved = Config { proved: Proved::Pass, ..cookies() };
        let cached = Config { mode: Mode::Cache, syn_cache_max: 8, ..cookies() };
        let auto = Config { mode: Mode::Auto, auto: Auto::default(), ..cookies() };
        for config in [proved, cached, auto] {
            let (mut proxy, words) = engine(&config);
            let _ = syn(&mut proxy, START);
            assert!(!holds(&words, START), "{:?}", config.mode);
        }
        // In auto, once it is engaged; and no longer.
        let (mut proxy, words) = engine(&Config { mode: Mode::Auto, ..cookies() });
        proxy.direct(0, &Directive { engaged: true, limit: 1 }, START);
        assert_eq!(syn(&mut proxy, START), Verdict::Reflect);
        assert!(holds(&words, START));
        proxy.direct(0, &Directive { engaged: false, limit: 1 }, START);
        turn(&mut proxy, START);
        assert!(!holds(&words, START));
    }

    #[test]
    fn what_comes_for_a_service_is_left_to_the_engine() {
        for is_service in [true, false] {
            let address = if is_service { key(false).lan } else { [0, 0, 0xffff, 9] };
            let service = ServiceConfig {
                default: vec![ServiceServer { address: [0, 0, 0xffff, 5], port: 80, weight: 1 }],
                ..ServiceConfig::at(address, key(false).lan_port)
            };
            let config = Config { service_buffers: 4, services: vec![service], ..cookies() };
            let (mut proxy, words) = engine(&config);
            let _ = syn(&mut proxy, START);
            assert_eq!(holds(&words, START), !is_service);
            // Nor are acknowledgements dropped, which the box may answer as an end.
            proxy.counters.add(Event::Unasked, 9000, None);
            turn(&mut proxy, START + Duration::from_secs(2));
            assert_eq!(words[ACKS_FROM].get(), 0);
        }
    }

    #[test]
    fn what_the_program_counts_is_counted_once() {
        let (mut proxy, words) = engine(&cookies());
        turn(&mut proxy, START);
        words[BY_TARGET].set(5);
        words[UNASKED].set(3);
        words[ANSWERED_FULL].set(2);
        turn(&mut proxy, START);
        turn(&mut proxy, START);
        let counters = proxy.counters();
        for (event, times) in [
            (Event::SynAnswered, 5),
            (Event::WanSyn, 5),
            (Event::KernelAnswered, 5),
            (Event::WanSegment, 5),
            (Event::CacheFull, 2),
            (Event::Unasked, 3),
            (Event::KernelDropped, 3),
        ] {
            assert_eq!(counters.happened(event), times, "{event:?}");
        }
        assert_eq!(counters.dropped(DropReason::BadCookie), 3);
        assert_eq!(proxy.target_counts(0).answered, 5);
        proxy.unshare_syns();
        assert_eq!((words[GENERATION].get(), words[ACKS_FROM].get()), (0, 0));
    }

    #[test]
    fn acknowledgements_end_in_the_kernel_only_while_many_come_and_never_before_134_seconds() {
        let start = Instant::from_secs(1000);
        for (since, many, ends) in [(200, 1000, true), (200, 999, false), (100, 1000, false)] {
            let (mut proxy, words) = engine(&cookies());
            let now = start + Duration::from_secs(since);
            turn(&mut proxy, now);
            proxy.counters.add(Event::Unasked, many, None);
            let later = now + Duration::from_secs(2);
            turn(&mut proxy, later);
            let from = words[ACKS_FROM].get();
            assert_eq!(from != 0 && from <= later.as_micros(), ends, "{since} {many}");
            turn(&mut proxy, now + Duration::from_secs(30));
            assert_eq!(words[ACKS_FROM].get(), 0, "it is quiet again");
        }
        let (mut proxy, words) = engine(&Config { stray: Stray::Reset, ..cookies() });
        turn(&mut proxy, START);
        proxy.counters.add(Event::Unasked, 9000, None);
        turn(&mut proxy, START + Duration::from_secs(2));
        assert_eq!(words[ACKS_FROM].get(), 0);
    }
}
