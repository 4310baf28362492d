//! Modes by destination: what becomes of a client's SYN, for each *target*, which is what one block of the configuration covers, or everybody.
//!
//! The engine [counts](crate::Counters::of_target) for each target. It decides alone only that a target in [`Mode::Auto`] stops to pass SYNs, at the SYN that would make one
//! connection too many half-open: [`Proxy::next_alarm`](crate::Proxy::next_alarm) says so. Everything else is decided for all workers together, by who sums up
//! what they count, and [directed](crate::Proxy::direct).

use crate::config::{Auto, DestinationRule, Mode, Network};
use crate::{Counts, Event, Instant};
use core::fmt;
use core::time::Duration;
use std::collections::HashMap;

/// Which connections a target is for: those of servers in this network, at one port or every port, on one VLAN or any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TargetKey {
    /// The VLAN, by the identifier of the outer tag, 0 without a tag; or any VLAN.
    pub vlan: Option<u16>,
    /// The address of the servers' network; an IPv4 address in its IPv6-mapped form.
    pub address: [u32; 4],
    /// Leading bits of it that count, 0 to 128; those of an IPv4 network are 96 more than it is written with.
    pub prefix: u8,
    /// Their port, or every port.
    pub port: Option<u16>,
}

impl TargetKey {
    /// Every server.
    pub const EVERYBODY: TargetKey = TargetKey { vlan: None, address: [0; 4], prefix: 0, port: None };

    /// One server, at one port or every port, on one VLAN.
    pub(crate) fn at(vlan: u16, address: [u32; 4], port: Option<u16>) -> Self {
        Self { vlan: Some(vlan), address, prefix: 128, port }
    }

    /// What a block is for.
    pub(crate) fn of(rule: &DestinationRule) -> Self {
        let Network { address, prefix } = rule.network;
        Self { vlan: rule.vlan, address, prefix, port: rule.port }
    }
}

/// As a block of the configuration names it, with port and VLAN behind it: `192.0.2.0/24:443 vlan 7`; `everybody` for every server.
impl fmt::Display for TargetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::EVERYBODY {
            return f.write_str("everybody");
        }
        let words = self.address;
        let is_v4 = self.prefix >= 96 && words[..3] == [0, 0, 0xffff];
        let bits = words.iter().fold(0, |bits, &word| bits << 32 | u128::from(word));
        let (network, len, whole) = match is_v4 {
            true => (core::net::IpAddr::from(words[3].to_be_bytes()), self.prefix - 96, 32),
            false => (core::net::IpAddr::from(bits.to_be_bytes()), self.prefix, 128),
        };
        match (network.is_ipv6(), self.port) {
            (true, Some(_)) => write!(f, "[{network}]")?,
            _ => write!(f, "{network}")?,
        }
        if len != whole {
            write!(f, "/{len}")?;
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        match self.vlan {
            Some(vlan) => write!(f, " vlan {vlan}"),
            None => Ok(()),
        }
    }
}

/// What the operator wants for the connections of one block whose mode is settled, or of everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which connections it is for.
    pub key: TargetKey,
    /// What becomes of their SYNs.
    pub mode: Mode,
    /// When that changes, where it is [`Mode::Auto`].
    pub auto: Auto,
}

/// What a worker is told of a target in [`Mode::Auto`]. It is heeded for no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directive {
    /// Whether SYNs are answered by cookies.
    pub engaged: bool,
    /// Half-open connections of this worker at which it stops to pass SYNs without being told: one at the least.
    pub limit: u32,
}

/// What a target's mode depends on, of all that one worker [counts](crate::Counters::of_target) of it. All but the first only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetCounts {
    /// Connections that clients of the WAN have opened and that passed, which are not established.
    pub half_open: u64,
    /// SYNs that opened such a connection, or that passed unfollowed.
    pub passed: u64,
    /// SYNs answered by a SYN-ACK of the box, repeated ones from the SYN cache aside.
    pub answered: u64,
    /// Clients that proved themselves by acknowledging one.
    pub proved: u64,
    /// SYNs that were dropped because their source's network had spent its tokens.
    pub limited: u64,
}

impl TargetCounts {
    /// Those among all that is counted of a target of which so many connections are half-open.
    pub(crate) fn new(counts: &Counts, half_open: u32) -> Self {
        Self {
            half_open: half_open.into(),
            passed: counts.happened(Event::PassedByMode),
            answered: counts.happened(Event::SynAnswered).saturating_sub(counts.happened(Event::SynRepeated)),
            proved: counts.happened(Event::CacheHit) + counts.happened(Event::CookieGood),
            limited: counts.happened(Event::SynLimited),
        }
    }
}

/// For each target of a policy, which of those of a former one it was.
pub(crate) fn places_before(own: &[Target], former: &[Target]) -> Vec<Option<u32>> {
    let former: HashMap<TargetKey, u32> = former.iter().map(|target| target.key).zip(0..).collect();
    own.iter().map(|target| former.get(&target.key).copied()).collect()
}

/// One target, as the engine has it.
#[derive(Clone)]
struct State {
    /// Never [`Mode::Auto`].
    present: Mode,
    /// Whether it changes.
    is_auto: bool,
    limit: u32,
    /// Until when cookies still open although SYNs pass.
    cookies_until: Instant,
    /// Until when unknown connections are adopted although SYNs are answered.
    adopt_until: Instant,
    grace: Duration,
}

/// The targets of one worker.
#[derive(Clone)]
pub(crate) struct Modes {
    states: Vec<State>,
    /// Whether any target passes SYNs.
    any_passes: bool,
    /// Whether any may ever have, so that there may be connections that are not touched.
    may_have_passed: bool,
    /// Whether all targets are in [`Mode::Cache`].
    is_plain: bool,
    /// Until when unknown connections of some target are adopted.
    any_adopts_until: Instant,
    /// Targets that have stopped to pass SYNs here. There is room for each once.
    alarms: Vec<u32>,
    /// How often something has changed, on a circle.
    changes: u32,
}

impl Modes {
    /// Those of a policy's targets.
    pub(crate) fn new(targets: &[Target]) -> Self {
        let state = |target: &Target| State {
            present: if target.mode == Mode::Auto { Mode::Pass } else { target.mode },
            is_auto: target.mode == Mode::Auto,
            limit: target.auto.enter_half_open.max(1),
            cookies_until: Instant::default(),
            adopt_until: Instant::default(),
            grace: target.auto.grace,
        };
        let mut modes = Self {
            states: targets.iter().map(state).collect(),
            any_passes: false,
            may_have_passed: false,
            is_plain: true,
            any_adopts_until: Instant::default(),
            alarms: Vec::with_capacity(targets.len()),
            changes: 0,
        };
        modes.note_change();
        modes
    }

    /// Takes over what a former policy's target of the same key was told; `places` has for each target which of the former ones that was.
    pub(crate) fn take_over(&mut self, places: &[Option<u32>], former_modes: &Modes, adopt: Duration, now: Instant) {
        self.any_adopts_until = former_modes.any_adopts_until;
        self.may_have_passed |= former_modes.may_have_passed;
        for (place, state) in places.iter().zip(&mut self.states) {
            let Some(before) = place.and_then(|place| former_modes.states.get(place as usize)) else {
                // The connections of its servers were another target's.
                state.cookies_until = now + state.grace;
                state.adopt_until = now + adopt;
                self.any_adopts_until = self.any_adopts_until.max(state.adopt_until);
                continue;
            };
            (state.cookies_until, state.adopt_until) = (before.cookies_until, before.adopt_until);
            let present = if state.is_auto && before.is_auto { before.present } else { state.present };
            state.present = before.present;
            state.turn_to(present, adopt, now);
            self.any_adopts_until = self.any_adopts_until.max(state.adopt_until);
        }
        self.note_change();
    }

    fn note_change(&mut self) {
        self.changes = self.changes.wrapping_add(1);
        self.any_passes = self.states.iter().any(|state| state.present.passes());
        self.may_have_passed |= self.any_passes;
        self.is_plain = self.states.iter().all(|state| state.present == Mode::Cache);
    }

    /// How often modes have changed, on a circle.
    pub(crate) fn changes(&self) -> u32 {
        self.changes
    }

    /// Until when unknown connections of some target are adopted because it passed SYNs a while ago.
    pub(crate) fn adopts_until(&self) -> Instant {
        self.any_adopts_until
    }

    /// What becomes of a target's SYNs now. A target of another policy than this is as everybody.
    #[inline(always)]
    pub(crate) fn present(&self, target: u32) -> Mode {
        self.states.get(target as usize).map_or(Mode::Cache, |state| state.present)
    }

    /// Whether any target passes SYNs.
    #[inline(always)]
    pub(crate) fn any_passes(&self) -> bool {
        self.any_passes
    }

    /// Whether any target passes SYNs or has passed some.
    #[inline(always)]
    pub(crate) fn may_have_passed(&self) -> bool {
        self.may_have_passed
    }

    /// Another process may have passed some.
    pub(crate) fn expect_untouched(&mut self) {
        self.may_have_passed = true;
    }

    /// Whether all targets are in [`Mode::Cache`], as where no mode is configured.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Whether so many connections half-open, here, are too many for one more SYN to pass.
    pub(crate) fn is_exceeded(&self, target: u32, half_open: u32) -> bool {
        self.states.get(target as usize).is_some_and(|state| state.is_auto && half_open >= state.limit)
    }

    /// Whether a target changes by itself.
    pub(crate) fn is_auto(&self, target: u32) -> bool {
        self.states.get(target as usize).is_some_and(|state| state.is_auto)
    }

    /// Whether cookies of a target that passes SYNs still open.
    pub(crate) fn accepts_cookies(&self, target: u32, now: Instant) -> bool {
        self.states.get(target as usize).is_some_and(|state| now < state.cookies_until)
    }

    /// Whether unknown connections of a target are adopted because it passed SYNs a while ago.
    #[inline]
    pub(crate) fn adopts(&self, target: impl FnOnce() -> u32, now: Instant) -> bool {
        now < self.any_adopts_until && self.states.get(target() as usize).is_some_and(|state| now < state.adopt_until)
    }

    /// A target in [`Mode::Auto`] stops to pass SYNs, which is worth an alarm.
    pub(crate) fn engage(&mut self, target: u32, adopt: Duration, now: Instant) {
        self.direct(target, &Directive { engaged: true, limit: 0 }, adopt, now);
        if self.alarms.len() < self.alarms.capacity() && !self.alarms.contains(&target) {
            self.alarms.push(target);
        }
    }

    /// See [`Proxy::direct`](crate::Proxy::direct). A limit of zero leaves it.
    pub(crate) fn direct(&mut self, target: u32, directive: &Directive, adopt: Duration, now: Instant) {
        let Some(state) = self.states.get_mut(target as usize).filter(|state| state.is_auto) else { return };
        if directive.limit > 0 {
            state.limit = directive.limit;
        }
        let present = if directive.engaged { Mode::Cookie } else { Mode::Pass };
        if present == state.present {
            return;
        }
        state.turn_to(present, adopt, now);
        self.any_adopts_until = self.any_adopts_until.max(state.adopt_until);
        self.note_change();
    }

    pub(crate) fn next_alarm(&mut self) -> Option<u32> {
        self.alarms.pop()
    }

    /// The bytes that so many targets take, with what the flow table counts of them.
    pub(crate) fn bytes_needed(targets: usize) -> usize {
        targets * (size_of::<State>() + size_of::<Target>() + 3 * size_of::<u32>())
    }
}

impl State {
    fn turn_to(&mut self, present: Mode, adopt: Duration, now: Instant) {
        match (self.present.passes(), present.passes()) {
            (false, true) => self.cookies_until = now + self.grace,
            // Connections that passed and that the table could not keep go on.
            (true, false) => self.adopt_until = now + adopt,
            _ => {}
        }
        self.present = present;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const START: Instant = Instant::from_secs(1000);
    const ADOPT: Duration = Duration::from_secs(10);

    fn target(mode: Mode) -> Target {
        Target { key: TargetKey::EVERYBODY, mode, auto: Config::default().auto }
    }

    #[test]
    fn a_target_is_named_as_in_the_configuration() {
        let v4 = |prefix, port, vlan| TargetKey { vlan, address: [0, 0, 0xffff, 0xc000_0200], prefix, port };
        let v6 = |prefix, port| TargetKey { vlan: None, address: [0x2001_0db8, 0, 0, 1], prefix, port };
        for (key, name) in [
            (TargetKey::EVERYBODY, "everybody"),
            (v4(128, None, None), "192.0.2.0"),
            (v4(120, Some(443), Some(7)), "192.0.2.0/24:443 vlan 7"),
            (v4(96, None, None), "192.0.2.0/0"),
            (v6(128, None), "2001:db8::1"),
            (v6(64, Some(80)), "[2001:db8::1]/64:80"),
        ] {
            assert_eq!(key.to_string(), name);
        }
    }

    #[test]
    fn only_a_target_in_auto_is_directed() {
        let engaged = Directive { engaged: true, limit: 3 };
        for mode in Mode::ALL {
            let mut modes = Modes::new(&[target(mode)]);
            let before = modes.present(0);
            modes.direct(0, &engaged, ADOPT, START);
            let after = if mode == Mode::Auto { Mode::Cookie } else { before };
            assert_eq!((modes.present(0), modes.is_exceeded(0, 3)), (after, mode == Mode::Auto), "{mode:?}");
            assert_eq!(modes.any_passes(), after.passes());
        }
    }

    #[test]
    fn an_alarm_is_raised_once_and_begins_the_time_in_which_connections_are_adopted() {
        let mut modes = Modes::new(&[target(Mode::Auto)]);
        assert!(!modes.is_exceeded(0, 63) && modes.is_exceeded(0, 64) && !modes.adopts(|| 0, START));
        modes.engage(0, ADOPT, START);
        assert_eq!((modes.next_alarm(), modes.next_alarm()), (Some(0), None));
        assert!(modes.adopts(|| 0, START) && !modes.adopts(|| 0, START + ADOPT));
        let calm = Directive { engaged: false, limit: 9 };
        modes.direct(0, &calm, ADOPT, START + ADOPT);
        assert_eq!(modes.present(0), Mode::Pass);
        let grace = Config::default().auto.grace;
        assert!(modes.accepts_cookies(0, START + ADOPT) && !modes.accepts_cookies(0, START + ADOPT + grace));
    }

    #[test]
    fn a_new_policy_changes_nothing_of_a_target_that_stays_and_a_change_of_mode_is_a_switch() {
        let former = [target(Mode::Auto)];
        let mut modes = Modes::new(&former);
        modes.engage(0, ADOPT, START);
        for (mode, present, adopts, accepts) in [
            (Mode::Auto, Mode::Cookie, true, false),
            (Mode::Cache, Mode::Cache, true, false),
            (Mode::Pass, Mode::Pass, true, true),
        ] {
            let own = [target(mode)];
            let mut next = Modes::new(&own);
            next.take_over(&places_before(&own, &former), &modes, ADOPT, START);
            assert_eq!(next.present(0), present);
            assert_eq!((next.adopts(|| 0, START), next.accepts_cookies(0, START)), (adopts, accepts), "{mode:?}");
        }
    }
}
