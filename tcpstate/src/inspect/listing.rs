//! Lists the connections, in slices, for an operator to read. Decides nothing.
//!
//! A record keeps its place while its connection lives, so that a listing that takes many polls returns every connection that lives throughout
//! exactly once; of those that come and go meanwhile it returns some.

use core::time::Duration;

use super::ConnectionStatus;
use crate::config::Network;
use crate::flow::table::Redirect;
use crate::flow::table::wheel::{Ticks, tick};
use crate::flow::{Flow, FlowFlags, State};
use crate::proxy::Proxy;
use crate::wire::FlowKey;
use crate::{Instant, PerSide, Side};

/// Records a slice looks at: 128 KiB in a row, some tens of microseconds.
const LOOKED_AT: u32 = 1024;
/// Connections in a slice at most, before it stops at the next record.
const TOLD: usize = 128;

/// Which connections are meant: those that fit in every point, as their clients know them or, of services, as their servers do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The end on the LAN is in this network.
    pub lan: Option<Network>,
    /// The end on the WAN is in this network.
    pub wan: Option<Network>,
    /// The port on the LAN.
    pub lan_port: Option<u16>,
    /// The port on the WAN.
    pub wan_port: Option<u16>,
    /// The states; empty for every state.
    pub states: &'static [State],
}

impl Filter {
    fn fits(&self, key: &FlowKey, flow: &Flow) -> bool {
        let within = |network: Option<Network>, address| network.is_none_or(|network| network.covers(address));
        (self.states.is_empty() || self.states.contains(&flow.state()))
            && self.lan_port.is_none_or(|port| key.lan_port == port)
            && self.wan_port.is_none_or(|port| key.wan_port == port)
            && within(self.lan, &key.lan)
            && within(self.wan, &key.wan)
    }
}

/// What is known of one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The scale of its window field, as it sends it; `None`: it does not scale.
    pub scale: Option<u8>,
    /// The scale announced to the other end.
    pub told: Option<u8>,
    /// The window it grants, in bytes.
    pub window: u32,
    /// The hop limit its frames arrive with; 0 if not known.
    pub ttl: u8,
}

/// A connection as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its ends.
    pub key: FlowKey,
    /// How it stands.
    pub status: ConnectionStatus,
    /// Who opened it; `None` for one that was running when it was adopted.
    pub opened_by: Option<Side>,
    /// Since when it is known.
    pub age: Duration,
    /// Since when no segment of it has come, where its timer shows it.
    pub idle: Option<Duration>,
    /// When its timer is due.
    pub due: Duration,
    /// The ends, each for itself.
    pub endpoint: PerSide<End>,
    /// The MSS the client announced; 0 where it was not needed.
    pub mss: u16,
    /// Whether the client's SYN-ACK permits SACK, and has timestamps.
    pub sack: bool,
    /// See `sack`.
    pub timestamps: bool,
    /// What is added to the server's sequence numbers on their way out, and to its timestamps.
    pub seq_delta: u32,
    /// See `seq_delta`.
    pub ts_delta: u32,
    /// Frames held until its server answers.
    pub held: usize,
    /// The ends as the server knows them, where that is another than the client knows: that of a service.
    pub redirect: Option<FlowKey>,
    /// Who the client is, as the WAN's end, where a proxy has told that by the PROXY protocol.
    pub told: Option<FlowKey>,
}

impl Proxy {
    /// Connections that one [`Proxy::list`] returns at most.
    pub const LISTED: usize = TOLD;

    /// Lists connections that fit `filter`, from the place `cursor` on (0 to begin with), as many as cost some tens of microseconds at
    /// most; returns the place to go on from, `None` at the end.
    pub fn list(&self, cursor: u32, filter: &Filter, now: Instant, mut publish: impl FnMut(Connection)) -> Option<u32> {
        let (flows, next) = self.table.slice(cursor, LOOKED_AT);
        let mut told = 0;
        for (id, flow) in flows {
            let key = self.table.key(id);
            let redirect = self.table.redirected(id).map(Redirect::key);
            let is_of_service = redirect.is_some() || flow.is_in(State::Gathering);
            let named = self.table.beside(id).filter(|_| is_of_service).and_then(Redirect::told);
            // As it is, as the server knows it, and as the proxy's client does.
            let client = named.map(|FlowKey { wan, wan_port, .. }| FlowKey { wan, wan_port, ..key });
            if [Some(key), redirect, client].iter().flatten().any(|key| filter.fits(key, flow)) {
                if told == TOLD {
                    return Some(id.0);
                }
                told += 1;
                publish(Connection { redirect, told: named, ..self.connection(key, flow, now) });
            }
        }
        next
    }

    pub(crate) fn connection(&self, key: FlowKey, flow: &Flow, now: Instant) -> Connection {
        let mut current = *flow;
        // What the kernel forwards does not restart the timer in the record.
        let last = if flow.is_in(State::HandedDown) { self.handed_down.merge(&mut current) } else { None };
        let flow = &current;
        let end = |side| End {
            scale: flow.endpoint(side).scale().map(|scale| scale.get()),
            told: flow.endpoint(side).told().map(|scale| scale.get()),
            window: flow.granted(side).0,
            ttl: flow.endpoint(side).ttl,
        };
        let left = |deadline: Ticks| (deadline.wrapping_sub(tick(now)) as i32).max(0) as Ticks;
        let lifetime = self.settings.profiles.of(flow.profile).of(flow.state());
        let left = left(flow.deadline()).max(last.map_or(0, |last| left(last.wrapping_add(lifetime))));
        // Where the timer waits for something else than the connection's end it does not show when the last segment came.
        let rests = !matches!(
            flow.state(),
            State::SynCached
                | State::ServerSynSent
                | State::ServerTried
                | State::Gathering
                | State::Repeating
                | State::AckWithheld
                | State::WindowPending
        );
        let is_known = flow.is(FlowFlags::PROXIED) || !flow.is(FlowFlags::UNJUDGED);
        let opened_by = is_known.then(|| flow.client());
        Connection {
            key,
            status: ConnectionStatus::of(flow),
            opened_by,
            age: duration(tick(now).wrapping_sub(flow.born)),
            idle: rests.then(|| duration(lifetime.saturating_sub(left))),
            due: duration(left),
            endpoint: PerSide::new(end(Side::Lan), end(Side::Wan)),
            mss: flow.mss,
            sack: flow.is(FlowFlags::SACK),
            timestamps: flow.is(FlowFlags::TIMESTAMPS),
            seq_delta: flow.seq_delta.shift(0),
            ts_delta: flow.ts_delta.shift(0),
            held: self.caches.hold_queue.count(flow),
            redirect: None,
            told: None,
        }
    }
}

fn duration(ticks: Ticks) -> Duration {
    Duration::from_micros(u64::from(ticks) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secrets;
    use crate::{Config, wire::Addr};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const NOW: Instant = Instant::from_secs(1000);

    fn proxy() -> Proxy {
        let config = Config { table_buckets: 2048, learn_capacity: 64, syn_cache_max: 4, ..Config::default() };
        Proxy::new(&config, &Secrets::new([1; 48]), NOW)
    }

    fn key(n: u32) -> FlowKey {
        let v6 = n.is_multiple_of(3);
        let upper = if v6 { [0x2001_0db8, 0, 0] } else { [0, 0, 0xffff] };
        let address = |low| -> Addr { [upper[0], upper[1], upper[2], low] };
        let (lan, wan) = (address(0x0a00_0000 + n % 7), address(0xc633_6400 + n));
        FlowKey {
            lan,
            wan,
            lan_port: 80 + (n % 5) as u16,
            wan_port: 40000 + (n % 1000) as u16,
            v6,
            ..FlowKey::default()
        }
    }

    fn enter(proxy: &mut Proxy, n: u32) {
        let (key, state) = (key(n), State::ALL[n as usize % State::ALL.len()]);
        let hash = key.hash(proxy.settings.hash_keys);
        let id = proxy.admit(&key, hash, Side::Lan, State::Established, NOW, |_| ()).unwrap();
        proxy.table.overwrite(id, state, |_| ());
    }

    fn remove(proxy: &mut Proxy, n: u32) {
        let id = proxy.table.find(&key(n), key(n).hash(proxy.settings.hash_keys)).unwrap();
        proxy.forget(id);
    }

    /// A listing to its end, with something done between its slices; and how many slices it took.
    fn listed(proxy: &mut Proxy, filter: &Filter, mut between: impl FnMut(&mut Proxy, usize)) -> (Vec<FlowKey>, usize) {
        let (mut told, mut cursor, mut slices) = (Vec::new(), Some(0), 0);
        while let Some(from) = cursor {
            let before = told.len();
            cursor = proxy.list(from, filter, NOW, |connection| told.push(connection.key));
            assert!(told.len() - before <= TOLD);
            assert!(cursor.is_none_or(|next| next > from), "every slice goes on");
            slices += 1;
            between(proxy, slices);
        }
        (told, slices)
    }

    fn name(key: &FlowKey) -> (Addr, u16) {
        (key.wan, key.wan_port)
    }

    #[test]
    fn a_connection_that_lives_throughout_is_told_exactly_once_whatever_comes_and_goes() {
        let mut proxy = proxy();
        (0..6000).for_each(|n| enter(&mut proxy, n));
        let (told, slices) = listed(&mut proxy, &Filter::default(), |proxy, slice| {
            let slice = slice as u32;
            if slice <= 20 {
                (slice * 100..slice * 100 + 50).for_each(|n| remove(proxy, n));
                (0..30).for_each(|n| enter(proxy, 10_000 + slice * 30 + n));
            }
        });
        assert!(slices > 20, "{slices}");
        let mut times = BTreeMap::new();
        told.iter().for_each(|key| *times.entry(name(key)).or_insert(0) += 1);
        assert!(times.values().all(|&times| times == 1));
        let stays = |n: &u32| !(100..2100).contains(n) || n % 100 >= 50;
        assert!((0..6000).filter(stays).all(|n| times.contains_key(&name(&key(n)))));
    }

    #[test]
    fn ages_and_idle_times_are_the_timers() {
        let mut proxy = proxy();
        enter(&mut proxy, 7);
        let seconds = |connection: &Connection| (connection.age.as_secs(), connection.idle.map(|idle| idle.as_secs()));
        let mut told = Vec::new();
        proxy.list(0, &Filter::default(), NOW + Duration::from_millis(100_100), |connection| told.push(connection));
        assert_eq!(told[0].status.state, State::Established);
        assert_eq!(told.iter().map(seconds).collect::<Vec<_>>(), [(100, Some(100))]);
    }

    proptest! {
        #[test]
        fn what_fits_is_told_and_nothing_else(
            lan in prop::option::of((0u32..8, 96u8..=128)),
            wan in prop::option::of((0u32..3000, 96u8..=128)),
            v6 in any::<bool>(),
            lan_port in prop::option::of(80u16..86),
            wan_port in prop::option::of(40000u16..41010),
            state in prop::option::of(prop::sample::select(&State::ALL[..])),
        ) {
            let mut proxy = proxy();
            (0..3000).for_each(|n| enter(&mut proxy, n));
            let base = |low| key(if v6 { low - low % 3 } else { low - low % 3 + 1 });
            let lan = lan.map(|(low, prefix)| Network { address: base(low).lan, prefix });
            let wan = wan.map(|(low, prefix)| Network { address: base(low).wan, prefix });
            let states = state.map_or(&[][..], |state| &State::ALL[state as usize - 1..state as usize]);
            let filter = Filter { lan, wan, lan_port, wan_port, states };
            let (told, _) = listed(&mut proxy, &filter, |_, _| ());
            let high = |address: &Addr| address.iter().fold(0u128, |all, &word| all << 32 | u128::from(word));
            let inside = |network: Option<Network>, address: &Addr| network.is_none_or(|network| {
                let shift = 128 - u32::from(network.prefix);
                high(&network.address).checked_shr(shift) == high(address).checked_shr(shift)
            });
            let expected: BTreeSet<_> = (0..3000u32).filter(|&n| {
                let key = key(n);
                inside(lan, &key.lan)
                    && inside(wan, &key.wan)
                    && lan_port.is_none_or(|port| port == key.lan_port)
                    && wan_port.is_none_or(|port| port == key.wan_port)
                    && state.is_none_or(|state| state == State::ALL[n as usize % State::ALL.len()])
            }).map(|n| name(&key(n))).collect();
            prop_assert_eq!(told.len(), expected.len());
            prop_assert_eq!(told.iter().map(name).collect::<BTreeSet<_>>(), expected);
        }
    }
}
