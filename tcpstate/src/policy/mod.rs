//! What the operator wants, as one immutable snapshot that is replaced as a whole: the rule for each destination, the option tables of
//! cookies, and besides it the limits and what is said of servers.
//!
//! A destination is a server: an address on the LAN, with a port or every port, on one VLAN or on any. Of several rules that cover a
//! connection the one with the longest prefix counts; among those the one for its VLAN before the one for any; among those the one for
//! its port before the one for every port. What a rule leaves open it takes from the rule that would count if it were absent for *all*
//! connections it covers, and at last from the rule for everybody.

mod destinations;
pub mod limit;
pub mod profiles;
pub mod servers;

use crate::config::{Action, Extension, Handshake, SackConflict, Settings, Source, Stray};
use crate::cookie::{OptionTables, next_epoch};
use crate::policy::destinations::{Destinations, Place};
use crate::policy::profiles::{Lifetimes, Profile};
use crate::seq::{RawWindow, WindowScale};
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
    /// The upper limit of every MSS option; `u16::MAX` is none.
    pub(crate) mss_clamp: u16,
    /// Bytes a client may send before its server has answered.
    pub(crate) early_window: u16,
    /// What its flows are told when they begin, by its number in the policy.
    pub(crate) profile: u32,
    /// How long a refusal is remembered.
    pub(crate) closed_memory: Duration,
}

impl Rule {
    /// The window a client is granted before its server has answered: no more than the server granted the last time.
    #[inline(always)]
    pub(crate) fn early_window(&self, known: Option<RawWindow>) -> RawWindow {
        match known {
            Some(RawWindow(window)) if self.handshake == Handshake::Early => RawWindow(window.min(self.early_window)),
            // The box would have to keep what came.
            _ => RawWindow(0),
        }
    }

    /// The sources of attributes.
    fn sources(&self) -> [Source; 3] {
        [self.mss, self.sack, self.wscale]
    }
}

/// What the operator wants. Made where there is time, shared by all workers, and looked up by them without a lock.
pub struct Policy {
    /// Each different rule once; the first is the one for everybody.
    rules: Vec<Rule>,
    profiles: Vec<Profile>,
    /// `None` where one rule is for all.
    destinations: Option<Destinations>,
    pub(crate) tables: OptionTables,
    /// From which epoch on cookies are made with these tables, where others were in use.
    pub(crate) from: u64,
}

impl Policy {
    /// The policy of a configuration that is put into force `now`.
    pub fn new(config: &Config, now: Instant) -> Self {
        let mut builder = Builder::default();
        let everybody = builder.add(&Draft::of(config));
        debug_assert_eq!(everybody, 0);
        // Lists first: a rule may say more about a destination that is in one.
        let ends = |handshake| Arc::new(Settings { handshake: Some(handshake), ..Settings::default() });
        let (early, honest) = (ends(Handshake::Early), ends(Handshake::Honest));
        let listed = config.destinations.iter().map(|listed| {
            let settings = if listed.handshake == Handshake::Early { &early } else { &honest };
            (Place::new(None, &listed.address, listed.prefix, listed.port), settings)
        });
        let ruled = config.rules.iter().map(|rule| {
            (Place::new(rule.vlan, &rule.network.address, rule.network.prefix, rule.port), &rule.settings)
        });
        let mut all: Vec<_> = listed.chain(ruled).collect();
        // Stable: of two that say something about the same destination the later counts.
        all.sort_by_key(|(place, _)| place.precedence());
        let mut destinations = Destinations::default();
        for (place, settings) in &all {
            let parent = destinations.covering(place).unwrap_or(0);
            let rule = builder.add(&builder.drafts[parent as usize].with(settings));
            destinations.insert(place, rule);
        }
        Self {
            rules: builder.rules,
            profiles: builder.profiles,
            destinations: (!all.is_empty()).then_some(destinations),
            tables: OptionTables::new(config),
            from: next_epoch(now),
        }
    }

    /// The rule for the server of a connection.
    #[inline(always)]
    pub(crate) fn rule(&self, key: &FlowKey) -> &Rule {
        match &self.destinations {
            None => &self.rules[0],
            Some(destinations) => self.found(destinations, key),
        }
    }

    #[inline(never)]
    fn found(&self, destinations: &Destinations, key: &FlowKey) -> &Rule {
        let rule = destinations.find(key.vlan, &key.lan, Some(key.lan_port));
        &self.rules[rule.unwrap_or(0) as usize]
    }

    /// The rule for a fragment from `side`, whose port is not known: of those for every port.
    pub(crate) fn rule_of_fragment(&self, side: Side, fragment: &Fragment) -> &Rule {
        let server = if side == Side::Wan { &fragment.destination } else { &fragment.source };
        let destinations = self.destinations.as_ref();
        let rule = destinations.and_then(|destinations| destinations.find(fragment.vlan, server, None));
        &self.rules[rule.unwrap_or(0) as usize]
    }

    /// The rule for everybody.
    pub(crate) fn everybody(&self) -> &Rule {
        &self.rules[0]
    }

    /// Whether any rule says this.
    fn any(&self, says: impl FnMut(&Rule) -> bool) -> bool {
        self.rules.iter().any(says)
    }

    /// What flows are told, each different set once.
    pub(crate) fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// Whether any rule takes attributes from what is known of an address.
    pub(crate) fn learns_by_address(&self) -> bool {
        self.any(|rule| rule.sources().contains(&Source::HashIp))
    }

    /// Whether any rule takes attributes from what the operator says of servers.
    pub(crate) fn is_commanded(&self) -> bool {
        self.any(|rule| rule.sources().contains(&Source::Commanded))
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
        crate::cookie::beginning_of(self.from)
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
            stray: config.stray,
            icmp_errors: config.icmp_errors,
            stray_fragments: config.stray_fragments,
            mss: config.mss,
            sack: config.sack,
            wscale: config.wscale,
            own_sack: config.own_sack,
            own_scale: WindowScale::clamped(config.own_wscale),
            own_mss: config.own_mss,
            mss_clamp: config.mss_clamp.unwrap_or(u16::MAX),
            early_window: config.early_window,
            profile: 0,
            closed_memory: config.closed_memory,
        };
        Self { rule, timeouts: config.timeouts.clone(), sack_conflict: config.sack_conflict }
    }

    /// The same with what `settings` settle.
    fn with(&self, settings: &Settings) -> Self {
        let Rule { handshake, multipath, fast_open, signed, stray, icmp_errors, stray_fragments, .. } = self.rule;
        let Rule { mss, sack, wscale, own_sack, own_scale, own_mss, mss_clamp, early_window, closed_memory, .. } =
            self.rule;
        let rule = Rule {
            handshake: settings.handshake.unwrap_or(handshake),
            multipath: settings.multipath.unwrap_or(multipath),
            fast_open: settings.fast_open.unwrap_or(fast_open),
            signed: settings.signed.unwrap_or(signed),
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
            early_window: settings.early_window.unwrap_or(early_window),
            profile: 0,
            closed_memory: settings.closed_memory.unwrap_or(closed_memory),
        };
        Self {
            rule,
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
    rule_numbers: HashMap<Rule, u32>,
    profile_numbers: HashMap<Profile, u32>,
}

impl Builder {
    fn add(&mut self, draft: &Draft) -> u32 {
        let profile = Profile {
            lifetimes: Lifetimes::new(&draft.timeouts),
            sack_conflict: draft.sack_conflict,
            early_window: draft.rule.early_window,
        };
        let profile = number(&mut self.profile_numbers, &mut self.profiles, profile);
        let known = self.rules.len();
        let rule = number(&mut self.rule_numbers, &mut self.rules, Rule { profile, ..draft.rule });
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
