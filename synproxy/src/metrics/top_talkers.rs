//! Top talkers: the hosts and services with the most frames, estimated from samples.
//!
//! A worker samples at most one frame of a batch, about one in 256 under load, so that the cost is one per batch; a quiet worker samples
//! more. Each sample counts for all frames since the one before. The counts lie in a sketch of fixed size (Space-Saving: Metwally, Agrawal
//! and El Abbadi, 2005): what has more than its share of the frames is in it, and its count is too large by at most the surplus
//! given beside it.

use std::mem;
use std::time::Duration;
use tcpstate::wire::{Addr, Flags, Parsed};
use tcpstate::{Instant, Metadata, Side};

/// Talkers kept of each kind: whoever has a sixty-fourth of all frames is among them.
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

/// The Space-Saving sketch of one kind of talker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sketch(Vec<Talker>);

impl Sketch {
    /// Adds a sample that counts for `frames` frames of this many bytes.
    fn add(&mut self, name: Name, frames: u64, bytes: u64, is_syn: bool) {
        let at = match self.0.iter().position(|talker| talker.name == name) {
            Some(own) => own,
            None if self.0.len() < KEPT => {
                self.0.push(Talker { name, ..Talker::default() });
                self.0.len() - 1
            }
            None => {
                let least = (0..KEPT).min_by_key(|&at| self.0[at].frames).unwrap_or_default();
                let surplus = self.0[least].frames;
                self.0[least] = Talker { name, frames: surplus, surplus, ..Talker::default() };
                least
            }
        };
        let talker = &mut self.0[at];
        talker.frames += frames;
        talker.bytes += bytes * frames;
        talker.syns += if is_syn { frames } else { 0 };
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

/// The samples of one worker; see the module.
#[derive(Debug)]
pub struct TopTalkers {
    sources: Sketch,
    targets: Sketch,
    /// When the present window began.
    since: Instant,
    /// The result of the window before.
    last: TalkerReport,
    /// Frames until the next sample.
    left: u32,
    /// How many frames that sample counts for.
    gap: u32,
    /// The state of the generator that spreads the samples.
    random: u32,
}

impl TopTalkers {
    /// Empty counts.
    pub fn new(now: Instant) -> Self {
        let sketch = || Sketch(Vec::with_capacity(KEPT));
        let last = TalkerReport::default();
        Self { sources: sketch(), targets: sketch(), since: now, last, left: 0, gap: 1, random: 0x9e37_79b9 }
    }

    /// Which frame of a batch of this length is to be sampled, if one is.
    #[inline]
    pub fn choose(&mut self, batch: usize) -> Option<usize> {
        let at = self.left as usize;
        if at >= batch {
            self.left -= batch as u32;
            return None;
        }
        Some(at)
    }

    /// Records the frame that was chosen from a batch of this length: `bytes` long, from `side`.
    #[cold]
    pub fn sample(&mut self, side: Side, meta: &Metadata, bytes: usize, batch: usize) {
        if let Parsed::Tcp(segment) = meta.parsed() {
            let is_syn = side == Side::Wan && segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK);
            let key = &segment.key;
            let (frames, bytes) = (self.gap.into(), bytes as u64);
            self.sources.add(Name { address: key.wan, v6: key.v6, port: 0 }, frames, bytes, is_syn);
            let target = Name { address: key.lan, v6: key.v6, port: key.lan_port };
            self.targets.add(target, frames, bytes, is_syn);
        }
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
    }

    /// Starts a new window when the present one is over.
    pub fn advance(&mut self, now: Instant) {
        let period = now.since(self.since);
        if period >= WINDOW {
            let take = |sketch: &mut Sketch| mem::replace(sketch, Sketch(Vec::with_capacity(KEPT))).0;
            self.last = TalkerReport { period, sources: take(&mut self.sources), targets: take(&mut self.targets) };
            self.since = now;
        }
    }

    /// The top talkers of the last complete window.
    pub fn last(&self) -> &TalkerReport {
        &self.last
    }
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
        let mut sketch = Sketch::default();
        let mut true_count = 0;
        for n in 0..100_000_u32 {
            let own = n.is_multiple_of(20);
            true_count += u64::from(own);
            sketch.add(if own { host(1) } else { host(1000 + n) }, 1, 60, true);
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
                    estimated += u64::from(talkers.gap);
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
                estimated += if is_own(at) { u64::from(talkers.gap) } else { 0 };
                talkers.sample(Side::Wan, &Metadata::default(), 60, batch);
            }
        }
        assert!(estimated.abs_diff(own) < own / 20, "{estimated} of {own}");
    }

    #[test]
    fn a_window_is_reported_when_it_is_over_and_then_counted_anew() {
        let mut talkers = TopTalkers::new(Instant::default());
        talkers.sources.add(host(7), 10, 100, false);
        talkers.advance(Instant::from_micros(1_900_000));
        assert_eq!(talkers.last(), &TalkerReport::default());
        talkers.advance(Instant::from_micros(2_100_000));
        assert_eq!(talkers.last().period, Duration::from_micros(2_100_000));
        assert_eq!(talkers.last().sources, [Talker { name: host(7), frames: 10, bytes: 1000, ..Talker::default() }]);
        talkers.advance(Instant::from_micros(4_200_000));
        assert_eq!(talkers.last().sources, []);
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
