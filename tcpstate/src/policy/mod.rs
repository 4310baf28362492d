//! What the operator wants, as one immutable snapshot that is replaced as a whole: the rule for each destination, the option tables of
//! cookies, and besides it the limits and what is said of servers.
//!
//! A destination is a server: an address on the LAN, with a port or every port, on one VLAN or on any. Of several rules that cover a
//! connection the one with the longest prefix counts; among those the one for its VLAN before the one for any; among those the one for
//! its port before the one for every port. What a rule leaves open it takes from the rule that would count if it were absent for *all*
//! connections it covers, and at last from the rule for everybody.

mod destinations;
pub mod exceptions;
pub mod limit;
pub mod lists;
pub mod mode;
pub mod profiles;
pub(crate) mod quotas;
pub mod servers;

use crate::cache::proved_sources::Budgets;
use crate::config::{
    Action, Asymmetric, Auto, AutoSettings, EarlyEcho, Extension, Handshake, Limits, Mode, Proved, RateLimit,
    SackConflict, Settings, Source, Stray,
};
use crate::cookie::terms::Offer;
use crate::cookie::{CookieClock, OptionTables};
use crate::policy::destinations::{Destinations, Place};
use crate::policy::exceptions::Rates;
use crate::policy::mode::{Target, TargetKey};
use crate::policy::profiles::{Lifetimes, Profile};
use crate::seq::{RawWindow, WindowScale};
use crate::service::Services;
use crate::wire::{FlowKey, Fragment};
use crate::{Config, Instant, Side};
use core::hash::Hash;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::Arc;

/// Everything that is settled for one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// How the client's handshake ends.
    pub(crate) handshake: Handshake,
    /// What becomes of a SYN that offers Multipath TCP.
    pub(crate) multipath: Extension,
    /// What becomes of a SYN that offers TCP Fast Open.
    pub(crate) fast_open: Extension,
    /// What becomes of a SYN that is signed.
    pub(crate) signed: Action,
    /// What becomes of connections of sources that have proved themselves lately.
    pub(crate) proved: Proved,
    /// What becomes of connections of which one direction does not cross the box.
    pub(crate) asymmetric: Asymmetric,
    /// What becomes of segments of unknown connections.
    pub(crate) stray: Stray,
    /// What becomes of ICMP errors about them.
    pub(crate) icmp_errors: Action,
    /// What becomes of later fragments whose first one was not seen.
    pub(crate) stray_fragments: Action,
    /// Where each attribute of our SYN-ACKs comes from.
    pub(crate) mss: Source,
    /// See `mss`.
    pub(crate) sack: Source,
    /// See `mss`.
    pub(crate) wscale: Source,
    /// Whether SACK is announced for a server nothing is known of.
    pub(crate) own_sack: bool,
    /// The scale announced for it.
    pub(crate) own_scale: WindowScale,
    /// The MSS announced for it.
    pub(crate) own_mss: u16,
    /// The hop limit of what is said in a server's name before it has answered; zero: as learned.
    pub(crate) own_ttl: u8,
    /// The upper limit of every MSS option; `u16::MAX` is none.
    pub(crate) mss_clamp: u16,
    /// Bytes a client may send before its server has answered.
    pub(crate) early_window: u16,
    /// Whether its server gets an echo of its timestamp.
    pub(crate) early_echo: EarlyEcho,
    /// The profile of its flows, by its number in the policy.
    pub(crate) profile: u32,
    /// The profile of those that are not touched, likewise.
    pub(crate) untouched: u32,
    /// The target whose mode holds for it, by its number in the policy.
    pub(crate) target: u32,
    /// How long a refusal is remembered.
    pub(crate) closed_memory: Duration,
    /// Which service its connections are for, if any.
    pub(crate) service: ServiceMark,
}

/// Whether an address and port are the box's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) enum ServiceMark {
    /// They are a server's.
    #[default]
    None,
    /// The address is the box's, and there is no service at this port.
    Closed,
    /// They are those of the service with this number.
    Service(u16),
}

impl Rule {
    /// The window a client is granted before its server has answered: no more than the server granted the last time, and a number that the scaled
    /// fields which follow can express, so that a server which grants as much takes nothing back (RFC 9293 section 3.8.6.2.1: "should not
    /// shrink the window"). `promised` is the scale our SYN-ACK announces.
    #[inline(always)]
    pub(crate) fn early_window(&self, offer: &Offer, promised: Option<WindowScale>) -> RawWindow {
        match offer.window {
            Some(RawWindow(window)) if self.handshake == Handshake::Early => {
                // The server's fields may be in coarser units than ours. Without a scale for the client it is asked for none.
                let unit = promised.map_or(0, |promised| promised.max(offer.scale.unwrap_or_default()).get());
                RawWindow(window.min(self.early_window) >> unit << unit)
            }
            // The box would have to keep what came.
            _ => RawWindow(0),
        }
    }

    /// The sources of attributes.
    fn sources(&self) -> [Source; 3] {
        [self.mss, self.sack, self.wscale]
    }
}

/// What bounds all destinations together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meters {
    /// Of source prefixes; the number of buckets is that of the first policy.
    pub(crate) rate: RateLimit,
    /// Of what passes unproved.
    pub(crate) rates: Rates,
    /// SYNs a second to ports that lately refused or were silent.
    pub(crate) retries: u32,
    /// Of what passes from sources that have proved themselves.
    pub(crate) proved: Budgets,
}

impl Meters {
    /// Those of a configuration.
    pub(crate) fn of(config: &Config) -> Self {
        let &Config { introductions, passed_rate: passed, retries, .. } = config;
        let rates = Rates { introductions, vlan_searches: VLAN_SEARCHES, passed };
        Self { rate: config.rate.clone(), rates, retries, proved: Budgets::of(config) }
    }
}

/// Segments of the WAN a second, at most, for which all VLANs are searched for their connection.
const VLAN_SEARCHES: u32 = 1000;

/// What the operator wants. Made where there is time, shared by all workers, and looked up by them without a lock.
pub struct Policy {
    /// The rule for everybody.
    everybody: Rule,
    /// Each different rule once, that one first.
    rules: Vec<Rule>,
    profiles: Vec<Profile>,
    targets: Arc<[Target]>,
    /// `None` where one rule is for all.
    destinations: Option<Destinations>,
    /// The addresses that the box owns, and what connections to them are for.
    pub(crate) services: Services,
    /// What bounds all destinations together.
    pub(crate) meters: Meters,
    pub(crate) tables: OptionTables,
    pub(crate) limits: Limits,
    /// From which epoch on cookies are made with these tables, where others were in use.
    pub(crate) from: u64,
    /// The clock of cookies when the policy was made.
    pub(crate) clock: CookieClock,
}

impl Policy {
    /// The policy of a configuration that is put into force `now`, where the clock of cookies is the worker's own.
    pub fn new(config: &Config, now: Instant) -> Self {
        Self::with_clock(config, CookieClock::default(), now)
    }

    /// The policy of a configuration that is put into force `now`, with cookies in the epochs of this clock.
    pub fn with_clock(config: &Config, clock: CookieClock, now: Instant) -> Self {
        let mut builder = Builder::default();
        let draft = Draft::of(config);
        let (target, everybody) = (builder.target(&draft), builder.add(&draft));
        debug_assert_eq!((target, everybody), (0, 0));
        // Lists first: a rule may say more about a destination that is in one.
        let ends = |handshake| Arc::new(Settings { handshake: Some(handshake), ..Settings::default() });
        let (early, honest) = (ends(Handshake::Early), ends(Handshake::Honest));
        let listed = config.destinations.iter().map(|listed| {
            let settings = if listed.handshake == Handshake::Early { &early } else { &honest };
            (Place::new(None, &listed.address, listed.prefix, listed.port), settings, None)
        });
        let ruled = config.rules.iter().map(|rule| {
            let place = Place::new(rule.vlan, &rule.network.address, rule.network.prefix, rule.port);
            (place, &rule.settings, Some(TargetKey::of(rule)))
        });
        let mut all: Vec<_> = listed.chain(ruled).collect();
        // Stable: of two that say something about the same destination the later counts.
        all.sort_by_key(|(place, ..)| place.precedence());
        let mut destinations = Destinations::default();
        for (place, settings, key) in &all {
            let parent = destinations.covering(place).unwrap_or(0);
            let mut draft = builder.drafts[parent as usize].with(settings);
            if let Some(key) = key
                && (settings.mode.is_some() || settings.auto != AutoSettings::default())
            {
                draft.key = *key;
                draft.rule.target = builder.target(&draft);
            }
            destinations.insert(place, builder.add(&draft));
        }
        // Without memory for their first bytes there are none.
        let services = if config.has_redirects() { Services::new(&config.services) } else { Services::default() };
        builder.own(&mut destinations, &services, config.first_bytes);
        Self {
            everybody: builder.rules[0],
            rules: builder.rules,
            profiles: builder.profiles,
            targets: builder.targets.into(),
            destinations: (!all.is_empty() || !services.is_empty()).then_some(destinations),
            services,
            meters: Meters::of(config),
            tables: OptionTables::new(config),
            limits: config.limits.clone(),
            from: clock.next_epoch(now),
            clock,
        }
    }

    /// The rule for the server of a connection.
    #[inline(always)]
    pub(crate) fn rule(&self, key: &FlowKey) -> &Rule {
        match &self.destinations {
            None => &self.everybody,
            Some(destinations) => self.found(destinations, key),
        }
    }

    // Not inlined: where there are no rules, the packet path need not carry this code.
    #[cold]
    #[inline(never)]
    fn found(&self, destinations: &Destinations, key: &FlowKey) -> &Rule {
        let rule = destinations.find(key.vlan, &key.lan, Some(key.lan_port));
        rule.map_or(&self.everybody, |rule| &self.rules[rule as usize])
    }

    /// The rule for a fragment from `side`, whose port is not known: of those for every port.
    pub(crate) fn rule_of_fragment(&self, side: Side, fragment: &Fragment) -> &Rule {
        let server = if side == Side::Wan { &fragment.destination } else { &fragment.source };
        let destinations = self.destinations.as_ref();
        let rule = destinations.and_then(|destinations| destinations.find(fragment.vlan, server, None));
        rule.map_or(&self.everybody, |rule| &self.rules[rule as usize])
    }

    /// The rule for everybody.
    pub(crate) fn everybody(&self) -> &Rule {
        &self.everybody
    }

    /// Whether any rule says this.
    pub(crate) fn any(&self, says: impl FnMut(&Rule) -> bool) -> bool {
        self.rules.iter().any(says)
    }

    /// The profiles of flows, each different one once.
    pub(crate) fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// What has a mode of its own: everybody first, then each block that settles one.
    pub fn targets(&self) -> &Arc<[Target]> {
        &self.targets
    }

    /// Whether any rule takes attributes from what is known of an address.
    pub(crate) fn learns_by_address(&self) -> bool {
        self.any(|rule| rule.sources().contains(&Source::HashIp))
    }

    /// Whether any rule takes attributes from what the operator says of servers.
    pub(crate) fn is_commanded(&self) -> bool {
        self.any(|rule| rule.sources().contains(&Source::Commanded))
    }

    /// Whether any rule passes connections of sources that have proved themselves.
    pub(crate) fn passes_proved(&self) -> bool {
        self.any(|rule| rule.proved == Proved::Pass)
    }

    /// Whether any rule takes the MSS from there.
    pub(crate) fn commands_mss(&self) -> bool {
        self.any(|rule| rule.mss == Source::Commanded)
    }

    /// The largest MSS announced for servers nothing is known of, and the largest clamp.
    pub(crate) fn most_told(&self) -> (u16, u16) {
        let most = |value: fn(&Rule) -> u16| self.rules.iter().map(value).max().unwrap_or(0);
        (most(|rule| rule.own_mss), most(|rule| rule.mss_clamp))
    }

    /// The longest time any refusal is remembered for.
    pub(crate) fn longest_closed(&self) -> Duration {
        self.rules.iter().map(|rule| rule.closed_memory).max().unwrap_or_default()
    }

    /// When option tables that differ from those in use come into force: at the beginning of an epoch, 5 to 72 s after the policy was made.
    pub fn tables_begin(&self) -> Instant {
        self.clock.beginning_of(self.from)
    }

    /// How many different rules there are, the one for everybody included.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Never: there is always a rule for everybody.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

impl core::fmt::Debug for Policy {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Policy").field("rules", &self.rules.len()).field("from", &self.from).finish_non_exhaustive()
    }
}

/// A rule in the making: the rule but for its profile, and that.
#[derive(Clone)]
struct Draft {
    rule: Rule,
    key: TargetKey,
    mode: Mode,
    auto: Auto,
    timeouts: crate::config::Timeouts,
    sack_conflict: SackConflict,
}

impl Draft {
    /// The rule for everybody.
    fn of(config: &Config) -> Self {
        let rule = Rule {
            handshake: config.handshake,
            multipath: config.multipath,
            fast_open: config.fast_open,
            signed: config.signed,
            proved: config.proved,
            asymmetric: config.asymmetric,
            stray: config.stray,
            icmp_errors: config.icmp_errors,
            stray_fragments: config.stray_fragments,
            mss: config.mss,
            sack: config.sack,
            wscale: config.wscale,
            own_sack: config.own_sack,
            own_scale: WindowScale::clamped(config.own_wscale),
            own_mss: config.own_mss,
            own_ttl: config.own_ttl,
            mss_clamp: config.mss_clamp.unwrap_or(u16::MAX),
            early_window: config.early_window,
            early_echo: config.early_echo,
            profile: 0,
            untouched: 0,
            target: 0,
            closed_memory: config.closed_memory,
            service: ServiceMark::None,
        };
        Self {
            rule,
            key: TargetKey::EVERYBODY,
            mode: config.mode,
            auto: config.auto.clone(),
            timeouts: config.timeouts.clone(),
            sack_conflict: config.sack_conflict,
        }
    }

    /// The same with what `settings` settle.
    fn with(&self, settings: &Settings) -> Self {
        let Rule { handshake, multipath, fast_open, signed, asymmetric, stray, icmp_errors, stray_fragments, .. } =
            self.rule;
        let Rule { mss, sack, wscale, own_sack, own_scale, own_mss, mss_clamp, early_window, closed_memory, .. } =
            self.rule;
        let Rule { own_ttl, early_echo, proved, .. } = self.rule;
        let rule = Rule {
            handshake: settings.handshake.unwrap_or(handshake),
            multipath: settings.multipath.unwrap_or(multipath),
            fast_open: settings.fast_open.unwrap_or(fast_open),
            signed: settings.signed.unwrap_or(signed),
            proved: settings.proved.unwrap_or(proved),
            asymmetric: settings.asymmetric.unwrap_or(asymmetric),
            stray: settings.stray.unwrap_or(stray),
            icmp_errors: settings.icmp_errors.unwrap_or(icmp_errors),
            stray_fragments: settings.stray_fragments.unwrap_or(stray_fragments),
            mss: settings.mss.unwrap_or(mss),
            sack: settings.sack.unwrap_or(sack),
            wscale: settings.wscale.unwrap_or(wscale),
            own_sack: settings.own_sack.unwrap_or(own_sack),
            own_scale: settings.own_wscale.map_or(own_scale, WindowScale::clamped),
            own_mss: settings.own_mss.unwrap_or(own_mss),
            mss_clamp: settings.mss_clamp.unwrap_or(mss_clamp),
            own_ttl: settings.own_ttl.unwrap_or(own_ttl),
            early_window: settings.early_window.unwrap_or(early_window),
            early_echo: settings.early_echo.unwrap_or(early_echo),
            profile: 0,
            untouched: 0,
            target: self.rule.target,
            closed_memory: settings.closed_memory.unwrap_or(closed_memory),
            service: ServiceMark::None,
        };
        Self {
            rule,
            key: self.key,
            mode: settings.mode.unwrap_or(self.mode),
            auto: settings.auto.over(&self.auto),
            timeouts: settings.timeouts.over(&self.timeouts),
            sack_conflict: settings.sack_conflict.unwrap_or(self.sack_conflict),
        }
    }
}

/// Rules and profiles, each different one once.
#[derive(Default)]
struct Builder {
    rules: Vec<Rule>,
    drafts: Vec<Draft>,
    profiles: Vec<Profile>,
    targets: Vec<Target>,
    rule_numbers: HashMap<Rule, u32>,
    profile_numbers: HashMap<Profile, u32>,
}

impl Builder {
    /// The rules of addresses that the box owns, and of the services at them. A rule of the operator for the same address and port counts as far as it
    /// can: the box answers for itself there, so what only a server can say is not asked of one.
    fn own(&mut self, destinations: &mut Destinations, services: &Services, first_bytes: u16) {
        for owned in services.owned() {
            let place = Place::new(Some(owned.vlan), &owned.address, 128, None);
            self.own_place(
                destinations,
                &place,
                TargetKey::at(owned.vlan, owned.address, None),
                ServiceMark::Closed,
                0,
            );
        }
        for (service, number) in services.all().iter().zip(0..) {
            let place = Place::new(Some(service.vlan), &service.address, 128, Some(service.port));
            let key = TargetKey::at(service.vlan, service.address, Some(service.port));
            self.own_place(destinations, &place, key, ServiceMark::Service(number), first_bytes);
        }
    }

    fn own_place(
        &mut self,
        destinations: &mut Destinations,
        place: &Place,
        key: TargetKey,
        service: ServiceMark,
        window: u16,
    ) {
        let parent = destinations.covering(place).unwrap_or(0);
        let mut draft = self.drafts[parent as usize].clone();
        draft.rule = Rule {
            handshake: Handshake::Early,
            early_window: window,
            multipath: Extension::Strip,
            fast_open: Extension::Strip,
            signed: Action::Drop,
            proved: Proved::Translate,
            mss: Source::Default,
            sack: Source::Default,
            wscale: Source::Default,
            closed_memory: Duration::ZERO,
            service,
            ..draft.rule
        };
        if draft.mode.passes() {
            (draft.key, draft.mode) = (key, Mode::Cache);
            draft.rule.target = self.target(&draft);
        }
        destinations.insert(place, self.add(&draft));
    }

    /// The number of a target of its own.
    fn target(&mut self, draft: &Draft) -> u32 {
        self.targets.push(Target { key: draft.key, mode: draft.mode, auto: draft.auto.clone() });
        self.targets.len() as u32 - 1
    }

    fn add(&mut self, draft: &Draft) -> u32 {
        let profile = Profile {
            lifetimes: Lifetimes::new(&draft.timeouts),
            sack_conflict: draft.sack_conflict,
            early_window: draft.rule.early_window,
            target: draft.key,
            is_untouched: false,
        };
        let mut numbered = |profile| number(&mut self.profile_numbers, &mut self.profiles, profile);
        let (profile, untouched) = (numbered(profile), numbered(Profile { is_untouched: true, ..profile }));
        let known = self.rules.len();
        let rule = number(&mut self.rule_numbers, &mut self.rules, Rule { profile, untouched, ..draft.rule });
        if self.rules.len() > known {
            self.drafts.push(draft.clone());
        }
        rule
    }
}

/// The number of a value among those there are already, or else the next.
fn number<T: Copy + Eq + Hash>(numbers: &mut HashMap<T, u32>, values: &mut Vec<T>, value: T) -> u32 {
    *numbers.entry(value).or_insert_with(|| {
        values.push(value);
        values.len() as u32 - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secrets;
    use crate::config::{DestinationRule, Network, TimeoutSettings};
    use crate::proxy::Proxy;
    use crate::proxy::test_segments::{TestSegment, key};
    use crate::wire::{Addr, Flags, Vlan};
    use crate::{Head, inspect::Filter};
    use proptest::prelude::*;

    const START: Instant = Instant::from_secs(1000);

    fn rule(vlan: Option<u16>, address: Addr, prefix: u8, port: Option<u16>, settings: Settings) -> DestinationRule {
        DestinationRule { vlan, network: Network { address, prefix }, port, settings: Arc::new(settings) }
    }

    fn mapped(low: u32) -> Addr {
        [0, 0, 0xffff, 0x0a00_0000 | low]
    }

    fn rules() -> impl Strategy<Value = DestinationRule> {
        let settings = (prop::option::of(1u16..9), prop::option::of(1u16..9), prop::option::of(1u64..5)).prop_map(
            |(early_window, mss_clamp, connected)| Settings {
                early_window,
                mss_clamp,
                timeouts: TimeoutSettings { connected: connected.map(Duration::from_secs), ..Default::default() },
                ..Settings::default()
            },
        );
        (prop::option::of(0u16..3), 0u32..8, 124u8..=128, prop::option::of(80u16..82), settings)
            .prop_map(|(vlan, low, prefix, port, settings)| rule(vlan, mapped(low), prefix, port, settings))
    }

    /// A rule's precedence: of two of the same the later has the greater.
    fn precedence((n, rule): (usize, &DestinationRule)) -> (u8, bool, bool, usize) {
        (rule.network.prefix, rule.vlan.is_some(), rule.port.is_some(), n)
    }

    fn is_same_or_open<T: PartialEq>(own: Option<T>, other: Option<T>) -> bool {
        own.is_none() || own == other
    }

    /// What is settled for a destination by the rules below a precedence, by looking through them all.
    fn settled(rules: &[DestinationRule], asked: &DestinationRule, below: (u8, bool, bool, usize)) -> (u16, u16, u64) {
        let covering = rules.iter().enumerate().filter(|(n, rule)| {
            precedence((*n, rule)) < below
                && rule.network.covers(&asked.network.address)
                && rule.network.prefix <= asked.network.prefix
                && is_same_or_open(rule.vlan, asked.vlan)
                && is_same_or_open(rule.port, asked.port)
        });
        let Some((n, best)) = covering.max_by_key(|&found| precedence(found)) else {
            return (16_384, u16::MAX, 86_400);
        };
        let (early, clamp, connected) = settled(rules, best, precedence((n, best)));
        let own = &best.settings;
        (
            own.early_window.unwrap_or(early),
            own.mss_clamp.unwrap_or(clamp),
            own.timeouts.connected.map_or(connected, |time| time.as_secs()),
        )
    }

    proptest! {
        #[test]
        fn a_rule_takes_what_it_leaves_open_from_the_one_that_would_count_without_it(
            rules in prop::collection::vec(rules(), 0..30),
            asked in prop::collection::vec((0u16..4, 0u32..8, 79u16..83), 1..30),
        ) {
            let config = Config { rules: rules.clone(), ..Config::default() };
            let policy = Policy::new(&config, START);
            for (vlan, low, port) in asked {
                let tags = if vlan == 0 { Vlan::default() } else { Vlan(1 << 24 | u32::from(vlan)) };
                let key = FlowKey { lan: mapped(low), lan_port: port, vlan: tags, ..FlowKey::default() };
                let found = policy.rule(&key);
                let asked = rule(Some(vlan), mapped(low), 128, Some(port), Settings::default());
                let (early, clamp, connected) = settled(&rules, &asked, (129, true, true, 0));
                let lifetimes = policy.profiles()[found.profile as usize].lifetimes;
                let expected = Lifetimes::new(&crate::config::Timeouts {
                    connected: Duration::from_secs(connected),
                    ..Default::default()
                });
                prop_assert_eq!((found.early_window, found.mss_clamp, lifetimes), (early, clamp, expected));
            }
        }
    }

    #[test]
    fn without_rules_there_is_nothing_to_look_for() {
        let policy = Policy::new(&Config::default(), START);
        assert!(policy.destinations.is_none() && policy.len() == 1);
    }

    #[test]
    fn a_list_and_a_rule_may_speak_of_the_same_servers() {
        let listed =
            crate::config::Destination { address: mapped(1), prefix: 128, port: None, handshake: Handshake::Early };
        let settings = Settings { mss_clamp: Some(1000), ..Settings::default() };
        let rules = vec![rule(None, mapped(1), 128, None, settings)];
        let policy = Policy::new(&Config { destinations: vec![listed], rules, ..Config::default() }, START);
        let found = policy.rule(&FlowKey { lan: mapped(1), ..FlowKey::default() });
        assert_eq!((found.handshake, found.mss_clamp), (Handshake::Early, 1000));
    }

    #[test]
    fn a_fragment_follows_the_rule_for_every_port() {
        let says = |action| Settings { stray_fragments: Some(action), ..Settings::default() };
        let rules = vec![
            rule(None, mapped(1), 128, None, says(Action::Drop)),
            rule(None, mapped(1), 128, Some(80), says(Action::Pass)),
        ];
        let policy = Policy::new(&Config { rules, ..Config::default() }, START);
        let fragment = |destination| Fragment {
            source: mapped(9),
            destination,
            identification: 0,
            vlan: Vlan::default(),
            v6: false,
            first: false,
        };
        let action = |last| policy.rule_of_fragment(Side::Wan, &fragment(mapped(last))).stray_fragments;
        assert_eq!([action(1), action(2)], [Action::Drop, Action::Pass]);
    }

    #[test]
    fn limits_of_a_new_policy_hold_at_once() {
        let with = |introductions| Config { introductions, table_buckets: 4, learn_capacity: 64, ..Config::default() };
        let mut proxy = Proxy::new(&with(0), &Secrets::new([3; 48]), START);
        let passes = |proxy: &mut Proxy, client| {
            let side = Side::Wan;
            let mut frame = TestSegment { side, flags: Flags::SYN.0, client, ..TestSegment::default() }.frame();
            let len = frame.len();
            let mut head = Head::whole(&mut frame, len);
            proxy.on_single(side, &mut head, START, &mut crate::proxy::tests::NoEgress) == crate::Verdict::Forward
        };
        assert!(!passes(&mut proxy, 0x0b00_0001), "it is answered");
        drop(proxy.set_policy(Arc::new(Policy::new(&with(8), START)), START));
        // A rate that was zero has earned nothing yet.
        assert!(passes(&mut proxy, 0x0b00_0002), "the server answers for itself");
        drop(proxy.set_policy(Arc::new(Policy::new(&with(0), START)), START));
        assert!(!passes(&mut proxy, 0x0b00_0003));
    }

    /// When the timer of the connection with this client is due, in seconds.
    fn due(proxy: &Proxy, client: u32, now: Instant) -> u64 {
        let mut due = None;
        proxy.list(0, &Filter::default(), now, |connection| {
            if connection.key.wan[3] == client {
                due = Some(connection.due.as_secs());
            }
        });
        due.expect("it is known")
    }

    #[test]
    fn connections_keep_the_lifetimes_they_began_with() {
        let server = key(false).lan;
        let with = |seconds, ruled: Option<u64>| {
            let wait = |seconds| Duration::from_secs(seconds);
            let timeouts = TimeoutSettings { ul_syn_sent: ruled.map(wait), ..TimeoutSettings::default() };
            let timeouts_of_all = crate::config::Timeouts { ul_syn_sent: wait(seconds), ..Default::default() };
            let settings = Settings { timeouts, ..Settings::default() };
            let rules = if ruled.is_some() { vec![rule(None, server, 128, None, settings)] } else { Vec::new() };
            Config { timeouts: timeouts_of_all, rules, table_buckets: 4, learn_capacity: 64, ..Config::default() }
        };
        let mut proxy = Proxy::new(&with(100, None), &Secrets::new([3; 48]), START);
        let open = |proxy: &mut Proxy, client| {
            let mut frame = TestSegment { flags: Flags::SYN.0, client, ..TestSegment::default() }.frame();
            let len = frame.len();
            let mut head = Head::whole(&mut frame, len);
            let _ = proxy.on_single(Side::Lan, &mut head, START, &mut crate::proxy::tests::NoEgress);
        };
        open(&mut proxy, 0x0b00_0001);
        let former = proxy.set_policy(Arc::new(Policy::new(&with(200, Some(300)), START)), START);
        open(&mut proxy, 0x0b00_0002);
        drop(proxy.set_policy(Arc::new(Policy::new(&with(400, None), START)), START));
        open(&mut proxy, 0x0b00_0003);
        // Each SYN is repeated, which begins its flow's time anew.
        for (client, seconds) in [(1, 100), (2, 300), (3, 400)] {
            let client = 0x0b00_0000 | client;
            assert!((seconds - 1..=seconds).contains(&due(&proxy, client, START)));
            let seq = 77;
            let mut frame = TestSegment { flags: Flags::SYN.0, client, seq, ..TestSegment::default() }.frame();
            let len = frame.len();
            let mut head = Head::whole(&mut frame, len);
            let later = START + Duration::from_secs(50);
            let _ = proxy.on_single(Side::Lan, &mut head, later, &mut crate::proxy::tests::NoEgress);
            assert!((seconds - 1..=seconds).contains(&due(&proxy, client, later)));
        }
        assert_eq!(Arc::strong_count(&former), 1, "no other reference is left");
    }
}
