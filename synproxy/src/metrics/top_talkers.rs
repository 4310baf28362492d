//! Top talkers: the hosts and services with the most frames, and those with the most SYNs, estimated from samples.
//!
//! A worker samples at most one frame of a batch, about one in 256 under load, so that the cost is one per batch; a quiet worker samples
//! more. Each sample counts for all frames since the one before. SYNs that are shed are sampled where they are shed: by the worker, or by the
//! XDP program, whose samples come to a [`Tally`] of their own. The counts lie in sketches of fixed size (Space-Saving: Metwally, Agrawal
//! and El Abbadi, 2005): what has more than its share of the frames is in it, and its count is too large by at most the surplus
//! given beside it.

use pktio::ShedSample;
use std::mem;
use std::time::Duration;
use tcpstate::wire::{Addr, Flags, FlowKey, Parsed, Segment};
use tcpstate::{Forwarded, Instant, Metadata, Side};

/// Talkers kept of each kind: who has a sixty-fourth of all frames is among them.
const KEPT: usize = 64;

/// Frames between two samples, on average, of a loaded worker and of a quiet one; those of the loaded one span a batch at least.
const LOADED: u32 = 256;
const QUIET: u32 = 8;

/// A batch of fewer frames than this means a quiet worker.
const FEW: usize = 8;

/// How long talkers are counted before the count starts anew.
const WINDOW: Duration = Duration::from_secs(2);

/// A host, or a service of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Name {
    /// Its address.
    pub address: Addr,
    /// Whether that is IPv6.
    pub v6: bool,
    /// Its port; 0 for a host as a whole.
    pub port: u16,
}

/// An estimate of what a host or service has sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Talker {
    /// Which host or service.
    pub name: Name,
    /// Frames, too many by at most `surplus`.
    pub frames: u64,
    /// By how much `frames` may be too large.
    pub surplus: u64,
    /// Of these, SYNs without ACK from the WAN.
    pub syns: u64,
    /// Bytes of the frames.
    pub bytes: u64,
}

/// How many of the leading bits of an address a target has: a service and a host all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// One port of a host.
    Service,
    /// A host, whatever the port.
    Host,
    /// A network of hosts: an IPv4 /24 or an IPv6 /64.
    Network,
}

impl Level {
    /// Every one, the narrowest first.
    pub const ALL: [Level; 3] = [Level::Service, Level::Host, Level::Network];

    /// The target of this level that this service belongs to.
    pub fn of(self, service: Name) -> Name {
        match self {
            Level::Service => service,
            Level::Host => Name { port: 0, ..service },
            Level::Network => {
                let [a, b, c, d] = service.address;
                let address = if service.v6 { [a, b, 0, 0] } else { [a, b, c, d & 0xffff_ff00] };
                Name { address, v6: service.v6, port: 0 }
            }
        }
    }

    /// The prefix length of a target's address.
    pub fn prefix(self, v6: bool) -> u8 {
        match (self, v6) {
            (Level::Network, true) => 64,
            (Level::Network, false) => 24,
            (_, true) => 128,
            (_, false) => 32,
        }
    }
}

/// An estimate of the SYNs to a target on the LAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynTarget {
    /// Which target.
    pub name: Name,
    /// SYNs without ACK from the WAN, too many by at most `surplus`.
    pub syns: u64,
    /// By how much `syns` may be too large.
    pub surplus: u64,
    /// SYN-ACKs from the LAN: connections that were opened, as long as a server gets the SYNs of proved clients only.
    pub opened: u64,
}

/// An estimate of the SYNs from a host on the WAN to a host on the LAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynSource {
    /// The host on the WAN.
    pub source: Name,
    /// The host on the LAN.
    pub target: Name,
    /// SYNs without ACK, too many by at most `surplus`.
    pub syns: u64,
    /// By how much `syns` may be too large.
    pub surplus: u64,
}

/// What a sketch counts.
trait Counted {
    /// What tells one from another.
    type Key: PartialEq;

    /// One that takes the place of another, which had this count.
    fn new(key: Self::Key, surplus: u64) -> Self;
    fn is(&self, key: &Self::Key) -> bool;
    fn count(&self) -> u64;
}

impl Counted for Talker {
    type Key = Name;

    fn new(name: Name, surplus: u64) -> Self {
        Self { name, frames: surplus, surplus, ..Self::default() }
    }

    fn is(&self, name: &Name) -> bool {
        self.name == *name
    }

    fn count(&self) -> u64 {
        self.frames
    }
}

impl Counted for SynTarget {
    type Key = Name;

    fn new(name: Name, surplus: u64) -> Self {
        Self { name, syns: surplus, surplus, opened: 0 }
    }

    fn is(&self, name: &Name) -> bool {
        self.name == *name
    }

    fn count(&self) -> u64 {
        self.syns
    }
}

impl Counted for SynSource {
    type Key = (Name, Name);

    fn new((source, target): (Name, Name), surplus: u64) -> Self {
        Self { source, target, syns: surplus, surplus }
    }

    fn is(&self, (source, target): &(Name, Name)) -> bool {
        self.source == *source && self.target == *target
    }

    fn count(&self) -> u64 {
        self.syns
    }
}

/// A Space-Saving sketch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sketch<T>(Vec<T>);

impl<T> Default for Sketch<T> {
    fn default() -> Self {
        Self(Vec::with_capacity(KEPT))
    }
}

impl<T: Counted> Sketch<T> {
    /// The entry of this key. One that was not there replaces that with the least count.
    fn entry(&mut self, key: T::Key) -> &mut T {
        let at = match self.0.iter().position(|entry| entry.is(&key)) {
            Some(own) => own,
            None if self.0.len() < KEPT => {
                self.0.push(T::new(key, 0));
                self.0.len() - 1
            }
            None => {
                let least = (0..KEPT).min_by_key(|&at| self.0[at].count()).unwrap_or_default();
                self.0[least] = T::new(key, self.0[least].count());
                least
            }
        };
        &mut self.0[at]
    }

    /// The entry of this key, if it is there.
    fn find(&mut self, key: &T::Key) -> Option<&mut T> {
        self.0.iter_mut().find(|entry| entry.is(key))
    }

    fn take(&mut self) -> Vec<T> {
        mem::take(self).0
    }
}

/// The top talkers of one window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TalkerReport {
    /// The length of the window.
    pub period: Duration,
    /// Hosts on the WAN, by the frames between them and the LAN.
    pub sources: Vec<Talker>,
    /// Services on the LAN, likewise.
    pub targets: Vec<Talker>,
}

/// The SYNs of one window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SynReport {
    /// The length of the window.
    pub period: Duration,
    /// All SYNs without ACK from the WAN, estimated.
    pub syns: u64,
    /// Who sends them, and to whom.
    pub sources: Vec<SynSource>,
    /// Whom they are for, by [`Level::ALL`].
    pub targets: [Vec<SynTarget>; 3],
}

/// What a sample says of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A SYN without ACK from the WAN.
    Syn,
    /// A SYN with ACK from the LAN.
    SynAck,
    Other,
}

/// Counts of one window, until they are taken.
#[derive(Debug)]
pub struct Tally {
    sources: Sketch<Talker>,
    targets: Sketch<Talker>,
    syns: u64,
    syn_sources: Sketch<SynSource>,
    syn_targets: [Sketch<SynTarget>; 3],
    /// When the present window began.
    since: Instant,
}

impl Tally {
    /// Empty counts.
    pub fn new(now: Instant) -> Self {
        Self {
            sources: Sketch::default(),
            targets: Sketch::default(),
            syns: 0,
            syn_sources: Sketch::default(),
            syn_targets: Default::default(),
            since: now,
        }
    }

    /// Counts a SYN that an XDP program has shed, and those it stands for.
    pub fn shed(&mut self, sample: &ShedSample) {
        let address = |bytes: [u8; 16]| {
            let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            [0, 4, 8, 12].map(word)
        };
        let [source, destination] = [sample.source, sample.destination].map(address);
        let v6 = destination[..3] != [0, 0, 0xffff];
        let source = Name { address: source, v6, port: 0 };
        let target = Name { address: destination, v6, port: sample.destination_port };
        self.add(source, target, Kind::Syn, sample.stands_for.into(), MINIMAL);
    }

    /// Counts a segment that stands for `frames` of this length.
    fn segment(&mut self, side: Side, segment: &Segment, frames: u64, bytes: u64) {
        let has = |flag| segment.flags.has(flag);
        let kind = match (side, has(Flags::SYN), has(Flags::ACK)) {
            (Side::Wan, true, false) => Kind::Syn,
            (Side::Lan, true, true) => Kind::SynAck,
            _ => Kind::Other,
        };
        let (source, target) = ends(&segment.key);
        self.add(source, target, kind, frames, bytes);
    }

    /// Counts so many frames of this length.
    fn add(&mut self, source: Name, target: Name, kind: Kind, frames: u64, length: u64) {
        self.count(source, target, kind, frames, length * frames);
    }

    fn count(&mut self, source: Name, target: Name, kind: Kind, frames: u64, bytes: u64) {
        let syns = if kind == Kind::Syn { frames } else { 0 };
        for talker in [self.sources.entry(source), self.targets.entry(target)] {
            talker.frames += frames;
            talker.bytes += bytes;
            talker.syns += syns;
        }
        match kind {
            Kind::Syn => {
                self.syns += syns;
                self.syn_sources.entry((source, Level::Host.of(target))).syns += syns;
                for (level, sketch) in Level::ALL.into_iter().zip(&mut self.syn_targets) {
                    sketch.entry(level.of(target)).syns += syns;
                }
            }
            Kind::SynAck => {
                for (level, sketch) in Level::ALL.into_iter().zip(&mut self.syn_targets) {
                    if let Some(target) = sketch.find(&level.of(target)) {
                        target.opened += frames;
                    }
                }
            }
            Kind::Other => {}
        }
    }

    /// The counts of the present window, if it is over; the next begins.
    pub fn advance(&mut self, now: Instant) -> Option<(TalkerReport, SynReport)> {
        let period = now.since(self.since);
        if period < WINDOW {
            return None;
        }
        self.since = now;
        let talkers = TalkerReport { period, sources: self.sources.take(), targets: self.targets.take() };
        let syns = SynReport {
            period,
            syns: mem::take(&mut self.syns),
            sources: self.syn_sources.take(),
            targets: self.syn_targets.each_mut().map(Sketch::take),
        };
        Some((talkers, syns))
    }
}

/// Bytes of a SYN whose length is not known: an Ethernet frame has at least so many.
const MINIMAL: u64 = 60;

/// Which frames are sampled.
#[derive(Debug)]
struct Sampler {
    /// Frames until the next sample.
    left: u32,
    /// How many frames that sample counts for.
    gap: u32,
    /// The state of the generator that spreads the samples.
    random: u32,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { left: 0, gap: 1, random: 0x9e37_79b9 }
    }
}

impl Sampler {
    /// Which frame of a batch of this length is to be sampled, if one is.
    #[inline]
    fn choose(&mut self, batch: usize) -> Option<usize> {
        let at = self.left as usize;
        if at >= batch {
            self.left -= batch as u32;
            return None;
        }
        Some(at)
    }

    /// How many frames the sample that was chosen from a batch of this length counts for. The next is chosen.
    fn take(&mut self, batch: usize) -> u64 {
        let frames = self.gap.into();
        // xorshift32: a period in the traffic neither escapes the samples nor fills them.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        let mean = if batch < FEW { QUIET } else { LOADED };
        let rest = batch as u32 - self.left - 1;
        // Evenly spread between half the mean and one and a half of it.
        self.gap = mean / 2 + 1 + self.random % mean;
        // The rest of the batch passes unsampled in any case; what exceeds the gap is added to the weight of the next sample.
        self.left = (self.gap - 1).saturating_sub(rest);
        self.gap = self.left + rest + 1;
        frames
    }
}

/// The samples of one worker; see the module.
#[derive(Debug)]
pub struct TopTalkers {
    tally: Tally,
    /// Of the frames of batches.
    sampler: Sampler,
    /// Of the SYNs that the worker sheds before they are part of a batch.
    shed: Sampler,
    /// The result of the window before.
    last: TalkerReport,
    /// Of what the kernel forwards: of the present round, and the result of the one before.
    below: Tally,
    last_below: TalkerReport,
}

impl TopTalkers {
    /// Empty counts.
    pub fn new(now: Instant) -> Self {
        let (sampler, shed) = (Sampler::default(), Sampler::default());
        let last = TalkerReport::default();
        Self { tally: Tally::new(now), sampler, shed, last_below: last.clone(), last, below: Tally::new(now) }
    }

    /// Which frame of a batch of this length is to be sampled, if one is.
    #[inline]
    pub fn choose(&mut self, batch: usize) -> Option<usize> {
        self.sampler.choose(batch)
    }

    /// Records the frame that was chosen from a batch of this length: `bytes` long, from `side`.
    #[cold]
    pub fn sample(&mut self, side: Side, meta: &Metadata, bytes: usize, batch: usize) {
        let frames = self.sampler.take(batch);
        if let Parsed::Tcp(segment) = meta.parsed() {
            self.tally.segment(side, segment, frames, bytes as u64);
        }
    }

    /// Which of so many SYNs that are shed together is to be sampled, if one is.
    #[inline]
    pub fn choose_shed(&mut self, batch: usize) -> Option<usize> {
        self.shed.choose(batch)
    }

    /// Records the SYN that was chosen from so many.
    #[cold]
    pub fn sample_shed(&mut self, meta: &Metadata, bytes: usize, batch: usize) {
        let frames = self.shed.take(batch);
        if let Parsed::Tcp(segment) = meta.parsed() {
            self.tally.segment(Side::Wan, segment, frames, bytes as u64);
        }
    }

    /// Starts a new window when the present one is over, and returns its SYNs.
    pub fn advance(&mut self, now: Instant) -> Option<SynReport> {
        let (talkers, syns) = self.tally.advance(now)?;
        self.last = talkers;
        Some(syns)
    }

    /// Records what the kernel has forwarded of a connection.
    pub fn forwarded(&mut self, forwarded: &Forwarded) {
        let Forwarded { key, frames, bytes } = *forwarded;
        let (source, target) = ends(&key);
        self.below.count(source, target, Kind::Other, frames, bytes);
    }

    /// All connections have been asked what the kernel has forwarded of them. Returns whether a round ends by that; otherwise they are asked again.
    pub fn end_round(&mut self, now: Instant) -> bool {
        let report = self.below.advance(now);
        let has_ended = report.is_some();
        self.last_below = report.map_or_else(|| mem::take(&mut self.last_below), |(talkers, _)| talkers);
        has_ended
    }

    /// The top talkers of the last complete window.
    pub fn last(&self) -> TalkerReport {
        let below = &self.last_below;
        if below.sources.is_empty() {
            return self.last.clone();
        }
        let period = if self.last.period.is_zero() { WINDOW } else { self.last.period };
        let share = period.as_secs_f64() / below.period.as_secs_f64();
        let scaled = |talkers: &[Talker]| {
            let scale = |n: u64| (n as f64 * share) as u64;
            let scaled = |talker: &Talker| {
                let Talker { frames, surplus, bytes, .. } = *talker;
                Talker { frames: scale(frames), surplus: scale(surplus), bytes: scale(bytes), ..*talker }
            };
            talkers.iter().map(scaled).collect()
        };
        merged([
            TalkerReport { period, ..self.last.clone() },
            TalkerReport { period, sources: scaled(&below.sources), targets: scaled(&below.targets) },
        ])
    }
}

/// The host on the WAN and the service on the LAN of a connection.
fn ends(key: &FlowKey) -> (Name, Name) {
    let source = Name { address: key.wan, v6: key.v6, port: 0 };
    (source, Name { address: key.lan, v6: key.v6, port: key.lan_port })
}

/// The reports of several workers as one, sorted by the frames that are certain.
pub fn merged(reports: impl IntoIterator<Item = TalkerReport>) -> TalkerReport {
    let mut all = TalkerReport::default();
    for report in reports {
        all.period = all.period.max(report.period);
        for (sum, part) in [(&mut all.sources, report.sources), (&mut all.targets, report.targets)] {
            for talker in part {
                match sum.iter_mut().find(|own| own.name == talker.name) {
                    Some(own) => {
                        own.frames += talker.frames;
                        own.surplus += talker.surplus;
                        own.syns += talker.syns;
                        own.bytes += talker.bytes;
                    }
                    None => sum.push(talker),
                }
            }
        }
    }
    for list in [&mut all.sources, &mut all.targets] {
        list.sort_by_key(|talker| std::cmp::Reverse((talker.frames - talker.surplus, talker.frames)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u32) -> Name {
        Name { address: [0, 0, 0xffff, n], v6: false, port: 0 }
    }

    #[test]
    fn a_talker_with_more_than_its_share_is_found_among_any_number_of_others() {
        let mut sketch = Sketch::<Talker>::default();
        let mut true_count = 0;
        for n in 0..100_000_u32 {
            let own = n.is_multiple_of(20);
            true_count += u64::from(own);
            sketch.entry(if own { host(1) } else { host(1000 + n) }).frames += 1;
        }
        assert_eq!(sketch.0.len(), KEPT);
        let found = sketch.0.iter().find(|talker| talker.name == host(1)).expect("it has one frame in twenty");
        assert!(found.frames >= true_count && found.frames - found.surplus <= true_count);
        let all: u64 = sketch.0.iter().map(|talker| talker.frames).sum();
        assert_eq!(all, 100_000, "every frame is counted for somebody");
    }

    #[test]
    fn samples_stand_for_all_frames_whatever_the_batches() {
        for batch in [1, 3, 7, 8, 33, 64] {
            let mut talkers = TopTalkers::new(Instant::default());
            let (mut frames, mut estimated, mut samples) = (0_u64, 0_u64, 0_u64);
            while frames < 1_000_000 {
                if talkers.choose(batch).is_some() {
                    estimated += u64::from(talkers.sampler.gap);
                    samples += 1;
                    talkers.sample(Side::Wan, &Metadata::default(), 60, batch);
                }
                frames += batch as u64;
            }
            assert!(estimated.abs_diff(frames) <= 1024, "{estimated} of {frames} in batches of {batch}");
            let each = frames / samples;
            let expected = if batch < FEW { 4..16 } else { 200..320 };
            assert!(expected.contains(&each), "one in {each} in batches of {batch}");
        }
    }

    #[test]
    fn a_talker_is_estimated_by_its_share_when_batches_differ() {
        let mut talkers = TopTalkers::new(Instant::default());
        let (mut estimated, mut own, mut random) = (0_u64, 0_u64, 1_u32);
        for iteration in 0..200_000_u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let batch = (random >> 24) as usize % 65;
            // The first third of every batch is its own.
            let is_own = |at: usize| 3 * at < batch && !iteration.is_multiple_of(3);
            own += (0..batch).filter(|&at| is_own(at)).count() as u64;
            if let Some(at) = talkers.choose(batch) {
                estimated += if is_own(at) { u64::from(talkers.sampler.gap) } else { 0 };
                talkers.sample(Side::Wan, &Metadata::default(), 60, batch);
            }
        }
        assert!(estimated.abs_diff(own) < own / 20, "{estimated} of {own}");
    }

    #[test]
    fn a_window_is_reported_when_it_is_over_and_then_counted_anew() {
        let mut talkers = TopTalkers::new(Instant::default());
        talkers.tally.add(host(7), Name { port: 80, ..host(9) }, Kind::Other, 10, 100);
        assert_eq!(talkers.advance(Instant::from_micros(1_900_000)), None);
        assert_eq!(talkers.last(), TalkerReport::default());
        talkers.advance(Instant::from_micros(2_100_000));
        assert_eq!(talkers.last().period, Duration::from_micros(2_100_000));
        assert_eq!(talkers.last().sources, [Talker { name: host(7), frames: 10, bytes: 1000, ..Talker::default() }]);
        talkers.advance(Instant::from_micros(4_200_000));
        assert_eq!(talkers.last().sources, []);
    }

    #[test]
    fn what_the_kernel_forwards_counts_at_the_rate_of_a_round_through_all_connections() {
        let mut talkers = TopTalkers::new(Instant::default());
        let of = |n, frames, bytes| {
            let key = FlowKey { lan: host(9).address, wan: host(n).address, lan_port: 80, ..FlowKey::default() };
            Forwarded { key, frames, bytes }
        };
        talkers.forwarded(&of(7, 1000, 1_000_000));
        assert!(!talkers.end_round(Instant::from_secs(1)), "it is too short for a rate");
        talkers.forwarded(&of(7, 3000, 3_000_000));
        talkers.forwarded(&of(8, 400, 4000));
        assert!(talkers.end_round(Instant::from_secs(4)));
        talkers.tally.add(host(7), Name { port: 80, ..host(9) }, Kind::Other, 10, 100);
        talkers.advance(Instant::from_secs(2));
        let last = talkers.last();
        let seven = Talker { name: host(7), frames: 2010, bytes: 2_001_000, ..Talker::default() };
        assert_eq!(last.sources, [seven, Talker { name: host(8), frames: 200, bytes: 2000, ..Talker::default() }]);
        assert_eq!((last.period, last.targets.len(), last.targets[0].frames), (WINDOW, 1, 2210));
        assert!(talkers.end_round(Instant::from_secs(6)));
        assert_eq!(talkers.last().sources[0].frames, 10, "it is over");
    }

    #[test]
    fn syns_are_counted_for_their_service_host_and_network_and_what_the_servers_answer_beside() {
        let mut tally = Tally::new(Instant::default());
        let service = |n, port| Name { port, ..host(n) };
        for n in 0..100 {
            tally.add(host(n % 2), service(0x0a00_0001, 80), Kind::Syn, 10, 60);
            tally.add(host(5), service(0x0a00_0002, 1000 + n as u16), Kind::Syn, 1, 60);
        }
        tally.add(host(1), service(0x0a00_0001, 80), Kind::SynAck, 30, 60);
        tally.add(host(1), service(0x0b00_0001, 80), Kind::SynAck, 30, 60);
        tally.add(host(1), service(0x0a00_0001, 80), Kind::Other, 5000, 60);
        let (talkers, syns) = tally.advance(Instant::from_secs(2)).expect("the window is over");
        assert_eq!(talkers.sources.iter().map(|talker| talker.syns).sum::<u64>(), 1100);
        assert_eq!((syns.period, syns.syns), (WINDOW, 1100));
        let find = |level: Level, name: Name| syns.targets[level as usize].iter().find(|target| target.name == name);
        let target = |name, syns, opened| SynTarget { name, syns, surplus: 0, opened };
        let web = service(0x0a00_0001, 80);
        assert_eq!(find(Level::Service, web), Some(&target(web, 1000, 30)));
        assert_eq!(find(Level::Host, host(0x0a00_0001)), Some(&target(host(0x0a00_0001), 1000, 30)));
        assert_eq!(find(Level::Host, host(0x0a00_0002)), Some(&target(host(0x0a00_0002), 100, 0)));
        assert_eq!(find(Level::Network, host(0x0a00_0000)), Some(&target(host(0x0a00_0000), 1100, 30)));
        assert_eq!(syns.targets[2].len(), 1, "a SYN-ACK alone is nobody's attack");
        let to_web = |n| syns.sources.iter().find(|s| s.source == host(n) && s.target == host(0x0a00_0001));
        assert_eq!([0, 1, 5].map(|n| to_web(n).map(|source| source.syns)), [Some(500), Some(500), None]);
        assert_eq!(tally.advance(Instant::from_secs(3)), None);
    }

    #[test]
    fn a_shed_syn_counts_for_those_it_stands_for() {
        let mut tally = Tally::new(Instant::default());
        let mapped = |last| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, last];
        let mut sample = ShedSample {
            source: mapped(1),
            destination: mapped(2),
            source_port: 40_000,
            destination_port: 443,
            stands_for: 700,
        };
        tally.shed(&sample);
        sample.destination = [0x20; 16];
        tally.shed(&sample);
        let (talkers, syns) = tally.advance(Instant::from_secs(2)).expect("the window is over");
        let [v4, v6] = [&syns.targets[0][0], &syns.targets[0][1]];
        assert_eq!(v4.name, Name { address: [0, 0, 0xffff, 0xc000_0202], v6: false, port: 443 });
        assert_eq!((v6.name, v6.syns), (Name { address: [0x2020_2020; 4], v6: true, port: 443 }, 700));
        assert_eq!(syns.targets[2][1].name.address, [0x2020_2020, 0x2020_2020, 0, 0]);
        assert_eq!(talkers.targets[0], Talker { name: v4.name, frames: 700, surplus: 0, syns: 700, bytes: 42_000 });
    }

    #[test]
    fn reports_of_workers_are_added_up_and_sorted() {
        let talker = |n, frames, surplus| Talker { name: host(n), frames, surplus, syns: 1, bytes: 10 };
        let report = |sources: Vec<Talker>| TalkerReport { period: WINDOW, sources, targets: Vec::new() };
        let sum =
            merged([report(vec![talker(1, 5, 0), talker(2, 50, 48)]), report(vec![talker(3, 9, 0), talker(1, 6, 1)])]);
        let order: Vec<_> = sum.sources.iter().map(|talker| (talker.name.address[3], talker.frames)).collect();
        assert_eq!(order, [(1, 11), (3, 9), (2, 50)]);
        assert_eq!((sum.period, sum.sources[0].syns, sum.sources[0].bytes), (WINDOW, 2, 20));
    }
}
