//! The settings that a flow takes when it begins and keeps until it ends, even if the policy changes. A flow stores them as a number of 16 bits.

use crate::config::{SackConflict, Timeouts};
use crate::flow::table::wheel::{Ticks, ticks};
use crate::flow::{State, UNTOUCHED};
use crate::policy::mode::{Target, TargetKey};
use std::collections::HashMap;

/// After what time the box repeats its SYN to a server that it tries.
pub(crate) const TRY_REPEATED: core::time::Duration = core::time::Duration::from_millis(500);
/// The first interval after which the box repeats bytes to a server; it doubles each time. RFC 6298 section 2 has a second for a path of which nothing
/// is known; the servers of a service are near.
pub(crate) const REPEATED: core::time::Duration = core::time::Duration::from_millis(200);

/// [`Timeouts`] in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lifetimes {
    /// By the state's byte: how long a flow may stay in it without a segment.
    by_state: [Ticks; State::ALL.len() + 1],
    pub(crate) connected: Ticks,
    pub(crate) server_syn_sent: Ticks,
    pub(crate) retransmit_syn: Ticks,
    pub(crate) retransmit_max: Ticks,
}

impl Lifetimes {
    pub(crate) fn new(timeouts: &Timeouts) -> Self {
        let retransmit_syn = timeouts.syn_retx.min(timeouts.dl_syn_sent);
        let mut by_state = [0; State::ALL.len() + 1];
        for state in State::ALL {
            by_state[state as usize] = ticks(match state {
                State::Free => core::time::Duration::ZERO,
                State::SynCached | State::Unconfirmed => timeouts.dl_half_open,
                State::ServerSynSent => retransmit_syn,
                State::ServerTried => TRY_REPEATED,
                // A service says how long.
                State::Gathering => timeouts.dl_half_open,
                State::Repeating => REPEATED,
                State::SynSent => timeouts.ul_syn_sent,
                State::SynReceived => timeouts.ul_syn_rcvd,
                State::AckWithheld | State::WindowPending | State::Established | State::HandedDown => {
                    timeouts.connected
                }
                State::FinWait => timeouts.one_fin,
                State::LastAck => timeouts.both_fin,
                State::TimeWait => timeouts.time_wait,
                State::Reset => timeouts.reseted,
            });
        }
        Self {
            by_state,
            connected: ticks(timeouts.connected),
            server_syn_sent: ticks(timeouts.dl_syn_sent),
            retransmit_syn: ticks(retransmit_syn),
            retransmit_max: ticks(timeouts.syn_retx_max.max(timeouts.syn_retx)),
        }
    }

    /// How long a flow may stay in its state without a segment.
    #[inline(always)]
    pub(crate) fn of(&self, state: State) -> Ticks {
        self.by_state[state as usize]
    }
}

/// The settings that a flow takes when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Profile {
    pub(crate) lifetimes: Lifetimes,
    /// What becomes of SACK blocks the server does not take.
    pub(crate) sack_conflict: SackConflict,
    /// Bytes a client may send before its server has answered.
    pub(crate) early_window: u16,
    /// Which target counts it.
    pub(crate) target: TargetKey,
    /// Whether it passes as it is, whatever it does.
    pub(crate) is_untouched: bool,
}

/// The profiles that flows of one worker have: each different one once, and none is ever taken away, so that a flow's number stays
/// true. Number 0 is the profile for everybody of the first policy. There are 32 768 at most; flows that begin under one more get number 0.
/// The number of a profile of flows that are not touched has [a bit that says so](UNTOUCHED): another process, whose numbers differ, reads it.
#[derive(Clone)]
pub(crate) struct Profiles {
    all: Vec<Profile>,
    numbers: HashMap<Profile, u16>,
    /// The number of each profile of the present policy.
    present: Vec<u16>,
    /// The lifetime that is read most: of established flows of profile 0.
    connected: Ticks,
}

impl Profiles {
    /// Those of the first policy, of which the first is for everybody.
    pub(crate) fn new(profiles: &[Profile]) -> Self {
        let connected = profiles[0].lifetimes.connected;
        let mut own = Self { all: Vec::new(), numbers: HashMap::new(), present: Vec::new(), connected };
        own.adopt(profiles);
        own
    }

    /// From now on these are the profiles flows begin with.
    pub(crate) fn adopt(&mut self, profiles: &[Profile]) {
        self.present = profiles.iter().map(|profile| self.number(profile)).collect();
    }

    fn number(&mut self, profile: &Profile) -> u16 {
        if let Some(number) = self.numbers.get(profile) {
            return *number;
        }
        let Some(number) = u16::try_from(self.all.len()).ok().filter(|number| number & UNTOUCHED == 0) else {
            return 0;
        };
        let number = if profile.is_untouched { number | UNTOUCHED } else { number };
        self.all.push(*profile);
        self.numbers.insert(*profile, number);
        number
    }

    /// The number of a profile of the present policy.
    pub(crate) fn present(&self, profile: u32) -> u16 {
        self.present.get(profile as usize).copied().unwrap_or(0)
    }

    /// By the number of each profile: that of its target among these, or `u32::MAX` if its target is none of them.
    pub(crate) fn targets<'a>(&'a self, targets: &'a [Target]) -> impl Iterator<Item = u32> + use<'a> {
        let numbers: HashMap<TargetKey, u32> = targets.iter().map(|target| target.key).zip(0..).collect();
        self.all.iter().map(move |profile| numbers.get(&profile.target).copied().unwrap_or(u32::MAX))
    }

    /// The profile of this number; of one that was never given, that of number 0.
    #[inline]
    pub(crate) fn get(&self, number: u16) -> &Profile {
        self.all.get(usize::from(number & !UNTOUCHED)).unwrap_or(&self.all[0])
    }

    /// The lifetimes of a flow with this number.
    #[inline]
    pub(crate) fn of(&self, number: u16) -> &Lifetimes {
        &self.get(number).lifetimes
    }

    /// How long an established flow with this number may rest.
    #[inline(always)]
    pub(crate) fn connected(&self, number: u16) -> Ticks {
        if number == 0 { self.connected } else { self.of(number).connected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn profile(seconds: u64) -> Profile {
        let timeouts = Timeouts { connected: Duration::from_secs(seconds), ..Timeouts::default() };
        Profile {
            lifetimes: Lifetimes::new(&timeouts),
            sack_conflict: SackConflict::Remove,
            early_window: 1,
            target: TargetKey::EVERYBODY,
            is_untouched: false,
        }
    }

    #[test]
    fn numbers_stay_true_and_a_full_table_falls_back_to_number_0() {
        let mut profiles = Profiles::new(&[profile(1), profile(2)]);
        assert_eq!([0, 1, 2].map(|n| profiles.present(n)), [0, 1, 0]);
        profiles.adopt(&[profile(2), profile(3), profile(1)]);
        assert_eq!([0, 1, 2].map(|n| profiles.present(n)), [1, 2, 0]);
        let many: Vec<_> = (1..=70_000).map(profile).collect();
        profiles.adopt(&many);
        assert_eq!(profiles.all.len(), 32_768);
        for n in [0, 1, 2, 32_767] {
            assert_eq!(profiles.get(profiles.present(n)), &many[n as usize]);
        }
        assert_eq!(profiles.present(32_768), 0);
        let untouched = Profile { is_untouched: true, ..profile(1) };
        let profiles = Profiles::new(&[profile(1), untouched]);
        assert_eq!((profiles.present(1), profiles.get(profiles.present(1))), (1 | UNTOUCHED, &untouched));
        let mut profiles = Profiles::new(&[profile(1), profile(2)]);
        profiles.adopt(&[profile(2), profile(3), profile(1)]);
        assert_eq!(profiles.connected(2), profile(3).lifetimes.connected);
        assert_eq!(profiles.connected(0), profile(1).lifetimes.connected);
        assert_eq!(Profiles::new(&[profile(1)]).of(9), &profile(1).lifetimes, "a number that was never given");
    }
}
