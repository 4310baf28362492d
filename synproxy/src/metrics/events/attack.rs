//! Detects attacks: floods of SYNs whose handshakes are not completed, by what they are aimed at.
//!
//! An attack is named by the narrowest [target](Level) that explains it: a service, a host (many of its ports), or a network (many of its
//! hosts). It begins when as many SYNs a second as configured are not completed, and ends when for a while there were fewer than the lower
//! threshold. SYNs alone say nothing: a busy service whose clients complete their handshakes is not attacked.
//!
//! Nothing here has a clock or a thread; the caller says when it is, and what the load was.

use crate::metrics::top_talkers::{Level, Name, SynReport, SynSource};
use ::control::{Attack, AttackStatus, Event, PortRange, TopSource, TopTarget};
use confparse::Events as Settings;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Attacks at once at most. What is beyond them belongs to the attack on a wider target, or is not reported.
const MOST: usize = 64;

/// A peak is one when the rate has not been exceeded for so long.
const PEAK_STANDS: Duration = Duration::from_secs(5);

/// For how long an attack keeps [`AttackStatus::AttackExceededCapability`] after the last time it did.
const STATUS_STANDS: Duration = Duration::from_secs(10);

/// Sources and targets in an event at most.
const LISTED: usize = 10;

/// A source is named if it sends more than this fraction (one in this many) of all SYNs: what a sketch is sure to have.
const LARGE_PART: u64 = 64;

/// SYNs a second, of all workers, in the last windows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// All of them.
    syns: u64,
    sources: Vec<Source>,
    targets: [Vec<Target>; 3],
    /// How many clients a second have completed their handshake with the box.
    proved: u64,
    /// Whether frames are lost because the box cannot take them.
    pub(super) is_lossy: bool,
}

/// SYNs a second from a source to a host.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Source {
    source: Name,
    target: Name,
    syns: u64,
}

/// SYNs a second to a target, and connections a second that it has opened.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Target {
    name: Name,
    syns: u64,
    opened: u64,
}

impl Load {
    /// No SYNs yet; how many clients a second have completed their handshake with the box, and whether frames are lost because it cannot take
    /// them.
    pub fn new(proved: u64, is_lossy: bool) -> Self {
        Self { proved, is_lossy, ..Self::default() }
    }

    /// Adds a worker's report of SYNs.
    pub fn add(&mut self, report: &SynReport) {
        let micros = u64::try_from(report.period.as_micros()).unwrap_or(u64::MAX).max(1);
        let a_second = |count: u64| count.saturating_mul(1_000_000) / micros;
        self.syns += a_second(report.syns);
        for &SynSource { source, target, syns, surplus } in &report.sources {
            let syns = a_second(syns - surplus);
            match self.sources.iter_mut().find(|own| own.source == source && own.target == target) {
                Some(own) => own.syns += syns,
                None => self.sources.push(Source { source, target, syns }),
            }
        }
        for (targets, reported) in self.targets.iter_mut().zip(&report.targets) {
            for more in reported {
                let (syns, opened) = (a_second(more.syns - more.surplus), a_second(more.opened));
                match targets.iter_mut().find(|own| own.name == more.name) {
                    Some(own) => (own.syns, own.opened) = (own.syns + syns, own.opened + opened),
                    None => targets.push(Target { name: more.name, syns, opened }),
                }
            }
        }
    }

    /// SYNs a second that no client completes, whatever they are for. A server that is down leaves SYNs unanswered that were completed.
    fn unproved(&self) -> u64 {
        self.syns.saturating_sub(self.proved)
    }
}

/// The attacks that last.
#[derive(Debug)]
pub struct Detector {
    settings: Settings,
    attacks: Vec<Ongoing>,
    last_mid: u32,
    /// When the load was last seen.
    before: Option<Instant>,
}

/// An attack that lasts.
#[derive(Debug)]
struct Ongoing {
    mid: u32,
    level: Level,
    name: Name,
    begin: Instant,
    /// The same in seconds since 1970.
    start: u64,
    status: AttackStatus,
    pps: u64,
    dropped: u64,
    pkts_dropped: u64,
    peak: u64,
    peak_at: Instant,
    peak_time: u64,
    /// The peak that was reported last; 0 before the first.
    reported_peak: u64,
    /// When it was last reported.
    reported: Instant,
    /// Since when it is below the lower threshold.
    calm_since: Option<Instant>,
    /// When it last exceeded what the box can take.
    exceeded: Option<Instant>,
}

impl Detector {
    /// No attack yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, attacks: Vec::new(), last_mid: 0, before: None }
    }

    /// Changes the settings; attacks that last are judged by them from now on.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// How many attacks last.
    pub fn attacks(&self) -> usize {
        self.attacks.len()
    }

    /// Takes the load as it is now, `unix` seconds after 1970, and returns what has happened, in order.
    pub fn step(&mut self, now: Instant, unix: u64, load: &Load) -> Vec<Event> {
        let passed = self.before.map_or(Duration::ZERO, |before| now - before);
        self.before = Some(now);
        let mut events = Vec::new();
        for attack in &mut self.attacks {
            (attack.pps, attack.dropped) = (0, 0);
        }
        // What attacks on narrower targets explain.
        let mut explained: Vec<Target> = Vec::new();
        for level in Level::ALL {
            let narrower = explained.clone();
            for target in &load.targets[level as usize] {
                let within = narrower.iter().filter(|other| level.of(other.name) == target.name);
                let (syns, opened) =
                    within.fold((0, 0), |(syns, opened), more| (syns + more.syns, opened + more.opened));
                let own = Target {
                    name: target.name,
                    syns: target.syns.saturating_sub(syns),
                    opened: target.opened.saturating_sub(opened),
                };
                if self.place(level, &own, now, unix, load) {
                    explained.push(own);
                }
            }
        }
        let all: u64 = self.attacks.iter().map(|attack| attack.pps).sum();
        for attack in &mut self.attacks {
            let is_blamed = load.is_lossy && attack.pps * 4 >= all && attack.pps > 0;
            attack.record(&self.settings, is_blamed, now, unix, passed);
            attack.report(&self.settings, now, load, &mut events);
        }
        self.attacks.retain(|attack| attack.status != AttackStatus::AttackStopped);
        events
    }

    /// Gives the load of a target to the attack on it, which begins if it is large enough. False if there is none.
    fn place(&mut self, level: Level, own: &Target, now: Instant, unix: u64, load: &Load) -> bool {
        let dropped = own.syns.saturating_sub(own.opened).min(load.unproved());
        let at = self.attacks.iter().position(|attack| attack.level == level && attack.name == own.name);
        let at = match at {
            Some(at) => at,
            None if dropped >= self.settings.attack_begin && self.attacks.len() < MOST => {
                self.last_mid = u32::try_from(unix).unwrap_or_default().max(self.last_mid + 1);
                self.attacks.push(Ongoing::new(self.last_mid, level, own.name, now, unix));
                self.attacks.len() - 1
            }
            None => return false,
        };
        (self.attacks[at].pps, self.attacks[at].dropped) = (own.syns, dropped);
        true
    }
}

impl Ongoing {
    fn new(mid: u32, level: Level, name: Name, now: Instant, unix: u64) -> Self {
        Self {
            mid,
            level,
            name,
            begin: now,
            start: unix,
            status: AttackStatus::AttackMitigationInProgress,
            pps: 0,
            dropped: 0,
            pkts_dropped: 0,
            peak: 0,
            peak_at: now,
            peak_time: unix,
            reported_peak: 0,
            reported: now,
            calm_since: None,
            exceeded: None,
        }
    }

    /// Takes its load since the last step, which is `passed` ago.
    fn record(&mut self, settings: &Settings, is_blamed: bool, now: Instant, unix: u64, passed: Duration) {
        self.pkts_dropped += self.dropped * u64::try_from(passed.as_millis()).unwrap_or(u64::MAX) / 1000;
        if self.dropped > self.peak {
            (self.peak, self.peak_at, self.peak_time) = (self.dropped, now, unix);
        }
        if is_blamed || settings.capacity > 0 && self.pps >= settings.capacity {
            self.exceeded = Some(now);
        }
        if self.dropped >= settings.attack_end {
            self.calm_since = None;
        } else {
            self.calm_since.get_or_insert(now);
        }
    }

    /// Reports what is new of it.
    fn report(&mut self, settings: &Settings, now: Instant, load: &Load, events: &mut Vec<Event>) {
        if now == self.begin {
            return events.push(Event::AttackBegin(self.describe(now, load)));
        }
        let is_over = self.calm_since.is_some_and(|since| now - since >= settings.attack_end_after);
        let is_higher = self.peak > self.reported_peak.saturating_add(self.reported_peak / 4);
        if is_higher && (is_over || now - self.peak_at >= PEAK_STANDS) {
            self.reported_peak = self.peak;
            events.push(Event::AttackPeak(self.describe(now, load)));
        }
        let former = self.status;
        self.status = match self.exceeded {
            _ if is_over => AttackStatus::AttackStopped,
            Some(exceeded) if now - exceeded < STATUS_STANDS => AttackStatus::AttackExceededCapability,
            _ => AttackStatus::AttackSuccessfullyMitigated,
        };
        if is_over {
            events.push(Event::AttackEnd(self.describe(now, load)));
        } else if self.status != former || now - self.reported >= settings.update_every {
            self.reported = now;
            events.push(Event::AttackUpdate(self.describe(now, load)));
        }
    }

    fn describe(&self, now: Instant, load: &Load) -> Box<Attack> {
        let is_service = self.level == Level::Service;
        let target_port_range = if is_service { vec![PortRange { lower_port: self.name.port }] } else { Vec::new() };
        Box::new(Attack {
            mid: self.mid,
            status: self.status,
            target_prefix: vec![prefix(self.name, self.level)],
            target_port_range,
            target_protocol: vec![tcpstate::wire::TCP],
            mitigation_start: self.start,
            duration: (now - self.begin).as_secs(),
            pps: self.pps,
            pps_dropped: self.dropped,
            pkts_dropped: self.pkts_dropped,
            peak_pps_dropped: self.peak,
            peak_time: self.peak_time,
            top_sources: self.top_sources(load),
            top_targets: if is_service { Vec::new() } else { self.top_targets(load) },
        })
    }

    fn top_sources(&self, load: &Load) -> Vec<TopSource> {
        let target = if self.level == Level::Network { self.name } else { Level::Host.of(self.name) };
        let level = if self.level == Level::Network { Level::Network } else { Level::Host };
        let mut sources: Vec<(Name, u64)> = Vec::new();
        for source in load.sources.iter().filter(|source| level.of(source.target) == target) {
            match sources.iter_mut().find(|(name, _)| *name == source.source) {
                Some((_, syns)) => *syns += source.syns,
                None => sources.push((source.source, source.syns)),
            }
        }
        sources.retain(|(_, syns)| *syns > load.syns / LARGE_PART);
        sources.sort_by_key(|(_, syns)| std::cmp::Reverse(*syns));
        let named = |&(name, pps): &(Name, u64)| TopSource { source_prefix: prefix(name, Level::Host), pps };
        sources.iter().take(LISTED).map(named).collect()
    }

    fn top_targets(&self, load: &Load) -> Vec<TopTarget> {
        let services = &load.targets[Level::Service as usize];
        let own = |target: &&Target| self.level.of(target.name) == self.name && target.syns > load.syns / LARGE_PART;
        let mut services: Vec<&Target> = services.iter().filter(own).collect();
        services.sort_by_key(|target| std::cmp::Reverse(target.syns));
        let named = |target: &&Target| TopTarget {
            target_prefix: prefix(target.name, Level::Host),
            lower_port: target.name.port,
            pps: target.syns,
        };
        services.iter().take(LISTED).map(named).collect()
    }
}

/// A target's address with its prefix length: `192.0.2.1/32`.
fn prefix(name: Name, level: Level) -> String {
    let length = level.prefix(name.v6);
    let [a, b, c, d] = name.address.map(u128::from);
    if name.v6 {
        format!("{}/{length}", Ipv6Addr::from_bits(a << 96 | b << 64 | c << 32 | d))
    } else {
        format!("{}/{length}", Ipv4Addr::from_bits(name.address[3]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::top_talkers::SynTarget;

    const WEB: Name = Name { address: [0, 0, 0xffff, 0xc000_0201], v6: false, port: 80 };

    /// A detector, and the time: seconds since it began.
    struct Bench {
        detector: Detector,
        begin: Instant,
        seconds: u64,
    }

    impl Bench {
        fn new(settings: Settings) -> Self {
            Self { detector: Detector::new(settings), begin: Instant::now(), seconds: 0 }
        }

        /// A second later, with this load.
        fn step(&mut self, load: &Load) -> Vec<Event> {
            self.seconds += 1;
            self.detector.step(self.begin + Duration::from_secs(self.seconds), 1_000_000 + self.seconds, load)
        }

        /// So many seconds of it; only the names of what happens.
        fn run(&mut self, seconds: u64, load: &Load) -> Vec<&'static str> {
            (0..seconds).flat_map(|_| self.step(load)).map(|event| event.name()).collect()
        }
    }

    fn settings() -> Settings {
        Settings {
            attack_begin: 1000,
            attack_end: 250,
            attack_end_after: Duration::from_secs(10),
            update_every: Duration::from_secs(60),
            ..Settings::default()
        }
    }

    /// SYNs a second to these services, of which so many are completed, from one source.
    fn load(services: &[(Name, u64, u64)]) -> Load {
        let mut report = SynReport { period: Duration::from_secs(2), ..SynReport::default() };
        for &(name, syns, opened) in services {
            let (syns, opened) = (2 * syns, 2 * opened);
            report.syns += syns;
            for level in Level::ALL {
                let (targets, name) = (&mut report.targets[level as usize], level.of(name));
                match targets.iter_mut().find(|target| target.name == name) {
                    Some(own) => (own.syns, own.opened) = (own.syns + syns, own.opened + opened),
                    None => targets.push(SynTarget { name, syns, surplus: 0, opened }),
                }
            }
            let source = Name { address: [0, 0, 0xffff, 0xcb00_7107], v6: false, port: 0 };
            report.sources.push(SynSource { source, target: Level::Host.of(name), syns, surplus: 0 });
        }
        let mut load = Load { proved: services.iter().map(|(.., opened)| opened).sum(), ..Load::default() };
        load.add(&report);
        load
    }

    fn attack(event: &Event) -> &Attack {
        event.attack().expect("it is about an attack")
    }

    #[test]
    fn an_attack_begins_is_updated_peaks_and_ends() {
        let mut bench = Bench::new(settings());
        assert!(bench.run(5, &load(&[(WEB, 400, 395)])).is_empty());
        let begin = bench.step(&load(&[(WEB, 5000, 300)]));
        let [Event::AttackBegin(attack)] = &begin[..] else { panic!("{begin:?}") };
        assert_eq!(
            (attack.mid, attack.mitigation_start, attack.pps, attack.pps_dropped),
            (1_000_006, 1_000_006, 5000, 4700)
        );
        assert_eq!(attack.target_prefix, ["192.0.2.1/32"]);
        assert_eq!(attack.target_port_range, [PortRange { lower_port: 80 }]);
        assert_eq!(attack.top_sources, [TopSource { source_prefix: "203.0.113.7/32".to_owned(), pps: 5000 }]);
        assert_eq!(attack.status, AttackStatus::AttackMitigationInProgress);
        // The status changes once, and then there is a word a minute.
        assert_eq!(bench.run(2, &load(&[(WEB, 9000, 0)])), ["attack-update"]);
        assert_eq!(bench.run(70, &load(&[(WEB, 5000, 0)])), ["attack-peak", "attack-update"]);
        assert_eq!(bench.run(9, &load(&[(WEB, 200, 0)])), [""; 0]);
        assert_eq!(bench.run(1, &load(&[(WEB, 300, 0)])), [""; 0], "not calm for long enough");
        assert_eq!(bench.run(10, &load(&[])), [""; 0]);
        let end = bench.step(&load(&[]));
        let [Event::AttackEnd(attack)] = &end[..] else { panic!("{end:?}") };
        assert_eq!((attack.status, attack.duration, attack.pps), (AttackStatus::AttackStopped, 93, 0));
        assert_eq!((attack.peak_pps_dropped, attack.peak_time), (9000, 1_000_007));
        assert_eq!(attack.pkts_dropped, 4700 + 2 * 9000 + 70 * 5000 + 9 * 200 + 300);
        assert_eq!(bench.detector.attacks(), 0);
    }

    #[test]
    fn between_the_thresholds_nothing_begins_and_nothing_ends() {
        let mut bench = Bench::new(settings());
        let middle = load(&[(WEB, 600, 0)]);
        assert!(bench.run(100, &middle).is_empty());
        assert_eq!(bench.run(1, &load(&[(WEB, 1000, 0)])), ["attack-begin"]);
        let during = bench.run(300, &middle);
        assert!(!during.contains(&"attack-end") && !during.contains(&"attack-begin"), "{during:?}");
        // A rate that swings around either threshold makes one attack, not many.
        for swing in 0..200 {
            let rate = if swing % 2 == 0 { 1100 } else { 150 };
            assert!(!bench.run(1, &load(&[(WEB, rate, 0)])).contains(&"attack-end"));
        }
        assert!(bench.run(11, &load(&[])).contains(&"attack-end"));
    }

    #[test]
    fn a_crowd_that_completes_its_handshakes_is_no_attack_nor_is_a_server_that_is_down() {
        let mut bench = Bench::new(settings());
        assert!(bench.run(10, &load(&[(WEB, 50_000, 49_900)])).is_empty());
        // Nothing comes back from the server, but the box has seen the clients' acknowledgements.
        let mut down = load(&[(WEB, 50_000, 0)]);
        down.proved = 49_500;
        assert!(bench.run(10, &down).is_empty());
    }

    #[test]
    fn a_peak_is_reported_once_and_again_when_it_is_exceeded_by_a_quarter() {
        let mut bench = Bench::new(Settings { update_every: Duration::from_secs(1000), ..settings() });
        assert_eq!(bench.run(20, &load(&[(WEB, 5000, 0)])), ["attack-begin", "attack-update", "attack-peak"]);
        assert_eq!(bench.run(20, &load(&[(WEB, 6000, 0)])), [""; 0]);
        assert_eq!(bench.run(20, &load(&[(WEB, 9000, 0)])), ["attack-peak"]);
        // A short one is reported with the end at the latest.
        let mut bench = Bench::new(Settings { attack_end_after: Duration::from_secs(1), ..settings() });
        bench.run(1, &load(&[(WEB, 5000, 0)]));
        assert_eq!(bench.run(3, &load(&[])), ["attack-update", "attack-peak", "attack-end"]);
    }

    #[test]
    fn many_ports_are_an_attack_on_the_host_and_many_hosts_one_on_the_network() {
        let mut bench = Bench::new(settings());
        let ports: Vec<_> = (0..20).map(|port| (Name { port: 1000 + port, ..WEB }, 200, 0)).collect();
        let events = bench.step(&load(&ports));
        assert_eq!((events.len(), events[0].name()), (1, "attack-begin"));
        assert_eq!(attack(&events[0]).target_prefix, ["192.0.2.1/32"]);
        assert!(attack(&events[0]).target_port_range.is_empty());
        assert_eq!(attack(&events[0]).top_targets.len(), LISTED);

        let mut bench = Bench::new(settings());
        let host = |n: u32| Name { address: [0, 0, 0xffff, 0xc000_0200 + n], v6: false, port: 443 };
        let mut hosts: Vec<_> = (0..20).map(|n| (host(n), 200, 0)).collect();
        let events = bench.step(&load(&hosts));
        assert_eq!(events.len(), 1);
        assert_eq!(
            (&attack(&events[0]).target_prefix[..], attack(&events[0]).pps),
            (&["192.0.2.0/24".to_owned()][..], 4000)
        );
        // One of them gets more: that is another attack, and no longer part of this one.
        hosts[7].1 = 3000;
        let events = bench.step(&load(&hosts));
        assert_eq!(events.iter().map(Event::name).collect::<Vec<_>>(), ["attack-update", "attack-begin"]);
        assert_eq!(attack(&events[0]).pps, 3800);
        assert_eq!(
            (&attack(&events[1]).target_prefix[..], attack(&events[1]).pps),
            (&["192.0.2.7/32".to_owned()][..], 3000)
        );
    }

    #[test]
    fn an_attack_beyond_the_capacity_says_so_at_once_and_until_it_has_been_below_for_a_while() {
        let mut bench = Bench::new(Settings { capacity: 20_000, ..settings() });
        assert_eq!(bench.run(2, &load(&[(WEB, 5000, 0)])), ["attack-begin", "attack-update"]);
        let events = bench.step(&load(&[(WEB, 30_000, 0)]));
        assert_eq!(attack(&events[0]).status, AttackStatus::AttackExceededCapability);
        assert!(bench.run(9, &load(&[(WEB, 5000, 0)])).iter().all(|name| *name == "attack-peak"));
        let events = bench.step(&load(&[(WEB, 5000, 0)]));
        assert_eq!(attack(&events[0]).status, AttackStatus::AttackSuccessfullyMitigated);
        // Losses are blamed on who is large.
        let small = Name { port: 81, ..WEB };
        let both = [(WEB, 18_000, 0), (small, 1100, 0)];
        bench.run(2, &load(&both));
        let lossy = Load { is_lossy: true, ..load(&both) };
        let events = bench.step(&lossy);
        let [Event::AttackUpdate(blamed)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((blamed.pps, blamed.status), (18_000, AttackStatus::AttackExceededCapability));
    }

    #[test]
    fn no_number_of_targets_makes_more_than_so_many_attacks() {
        let mut bench = Bench::new(settings());
        let many: Vec<_> =
            (0..200).map(|n| (Name { address: [0x2001_0db8, n, 0, 1], v6: true, port: 80 }, 2000, 0)).collect();
        assert_eq!(bench.run(1, &load(&many)).len(), MOST);
        let mids: Vec<u32> = bench.detector.attacks.iter().map(|attack| attack.mid).collect();
        assert!(mids.windows(2).all(|pair| pair[0] < pair[1]), "every attack has a number of its own");
    }

    #[test]
    fn sources_that_are_forged_at_random_are_not_named() {
        let mut load = load(&[(WEB, 64_000, 0)]);
        load.sources = (0..64)
            .map(|n| Source {
                source: Name { address: [0, 0, 0xffff, n], v6: false, port: 0 },
                target: Level::Host.of(WEB),
                syns: 500,
            })
            .collect();
        load.sources[9].syns = 3000;
        let events = Bench::new(settings()).step(&load);
        assert_eq!(attack(&events[0]).top_sources, [TopSource { source_prefix: "0.0.0.9/32".to_owned(), pps: 3000 }]);
    }
}
