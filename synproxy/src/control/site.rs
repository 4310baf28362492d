//! What is served over HTTP: the statistics for Prometheus, and a page to look at. Read-only.

use super::api::{Client, ControlApi};
use super::views::Destination;
use crate::metrics::http::{Content, Site};
use crate::metrics::prometheus::{self, Identity};
use crate::metrics::snapshot::Board;
use ::control::{Cursor, Reply, Request, Role, Status, Top};
use serde::Serialize;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tcpstate::{Connection, Filter, Side, State};

/// The page, complete: it fetches nothing but `now.json` and `connections.json`.
const PAGE: &str = include_str!("page.html");

/// For how long the page's data are given again, so that many who look cost the workers no more than one.
const FRESH: Duration = Duration::from_millis(500);

/// Likewise for the connections, which cost more.
const LISTED_EVERY: Duration = Duration::from_secs(1);

/// Parts of the listing in this time at most, each of which is one command to one worker: a table of a million flows is listed in some 16 seconds.
const PARTS: usize = 64;

/// How long one who looks waits for them.
const LISTING_TIME: Duration = Duration::from_millis(200);

/// Connections the page shows at most.
const SHOWN: usize = 100;

/// The connections it shows: all but the entries of the SYN cache, of which a flood makes so many that nothing else would be seen.
static STATES: LazyLock<Vec<State>> =
    LazyLock::new(|| State::ALL.into_iter().filter(|state| *state != State::SynCached).collect());

/// See the module.
pub struct StatisticsSite {
    board: Arc<Board>,
    api: Arc<ControlApi>,
    identity: Mutex<Identity>,
    /// What the page was given last, and when.
    last: Mutex<Option<(Instant, Vec<u8>)>>,
    /// The connections.
    listing: Mutex<Listing>,
}

/// What the page shows.
#[derive(Serialize)]
struct Now {
    status: Box<Status>,
    #[serde(flatten)]
    top: Box<Top>,
    destinations: Vec<Destination>,
}

/// A connection as the page shows it: no number that its ends or the box keep secret.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    wan: String,
    lan: String,
    vlan: Vec<u16>,
    state: &'static str,
    proxied: bool,
    /// Seconds since its record was created.
    age: f64,
    /// Seconds since its last segment, where known.
    idle: Option<f64>,
}

impl Row {
    fn of(connection: &Connection) -> Self {
        Self {
            wan: connection.key.socket(Side::Wan).to_string(),
            lan: connection.key.socket(Side::Lan).to_string(),
            vlan: connection.key.vlan.identifiers().collect(),
            state: connection.status.state.label(),
            proxied: connection.status.proxied,
            age: connection.age.as_secs_f64(),
            idle: connection.idle.map(|idle| idle.as_secs_f64()),
        }
    }
}

/// A listing of connections that goes on in parts while somebody looks, and is shared by all who do.
#[derive(Default)]
struct Listing {
    /// Where the next part begins.
    next: Cursor,
    /// The connections found since the beginning.
    found: Vec<Row>,
    /// What is shown, and since when.
    shown: Option<(Instant, Vec<u8>)>,
    /// Whether what is shown was listed to its end, so that it stays until the next one is.
    is_complete: bool,
}

/// What is shown of it.
#[derive(Serialize)]
struct Listed<'a> {
    connections: &'a [Row],
    /// Whether there may be more than are shown.
    more: bool,
    /// Whether the table has not been listed to its end yet.
    listing: bool,
}

impl Listing {
    /// The connections as JSON. Asks for parts, by `part`, only when the last answer is no longer fresh, and for few; `None` while a worker does not
    /// answer.
    fn answer(
        &mut self,
        now: Instant,
        mut part: impl FnMut(Cursor) -> Option<(Vec<Connection>, Option<Cursor>)>,
    ) -> Option<Vec<u8>> {
        if let Some((_, shown)) =
            self.shown.as_ref().filter(|(when, _)| now.saturating_duration_since(*when) < LISTED_EVERY)
        {
            return Some(shown.clone());
        }
        let (begin, mut more, mut ends) = (Instant::now(), false, false);
        for _ in 0..PARTS {
            let (connections, next) = part(self.next)?;
            let room = SHOWN - self.found.len();
            more = connections.len() > room || (connections.len() == room && next.is_some());
            self.found.extend(connections.iter().take(room).map(Row::of));
            self.next = next.unwrap_or_default();
            ends = next.is_none() || self.found.len() == SHOWN;
            if ends || begin.elapsed() > LISTING_TIME {
                break;
            }
        }
        // A listing that is complete stays to be seen until there is another.
        if ends || !self.is_complete {
            let listed = Listed { connections: &self.found, more, listing: !ends };
            self.shown = Some((now, serde_json::to_vec(&listed).ok()?));
        } else if let Some((when, _)) = &mut self.shown {
            *when = now;
        }
        if ends {
            (self.next, self.is_complete) = (Cursor::default(), true);
            self.found.clear();
        }
        self.shown.as_ref().map(|(_, shown)| shown.clone())
    }
}

impl StatisticsSite {
    /// The site of the box with this identity.
    pub fn new(board: Arc<Board>, api: Arc<ControlApi>, identity: Identity) -> Self {
        Self { board, api, identity: Mutex::new(identity), last: Mutex::default(), listing: Mutex::default() }
    }

    /// From now on the box has this configuration: the file, if there is one, and a hash of what it says.
    pub fn set_config(&self, config: (Option<String>, u64)) {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).config = config;
    }

    /// The page's data as JSON; `None` while a worker does not answer.
    fn now(&self) -> Option<Vec<u8>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, data)) = last.as_ref().filter(|(when, _)| when.elapsed() < FRESH) {
            return Some(data.clone());
        }
        let Reply::Status(status) = self.api.serve(Request::Status, anybody()) else { return None };
        let Reply::Top(top) = self.api.serve(Request::Top, anybody()) else { return None };
        let data = serde_json::to_vec(&Now { status, top, destinations: self.api.destinations() }).ok()?;
        *last = Some((Instant::now(), data.clone()));
        Some(data)
    }

    /// The connections as JSON; `None` while a worker does not answer.
    fn connections(&self) -> Option<Vec<u8>> {
        let mut listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        let filter = Filter { states: &STATES, ..Filter::default() };
        listing.answer(Instant::now(), |from| self.api.list_part(from, filter))
    }
}

/// In whose name the page asks: it only looks.
fn anybody() -> Client {
    Client { user: rustix::process::geteuid().as_raw(), role: Role::Read }
}

impl Site for StatisticsSite {
    fn content(&self, path: &str) -> Option<Content> {
        match path {
            "/" => Some(("text/html; charset=utf-8", PAGE.into())),
            "/now.json" => Some(("application/json", self.now()?)),
            "/connections.json" => Some(("application/json", self.connections()?)),
            "/metrics" => {
                let workers: Vec<_> = self.board.workers().collect();
                let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let mut text = prometheus::text(&workers, &self.board.supervisor(), &identity);
                text.push_str(&prometheus::targets(&self.api.target_status()));
                text.push_str(&prometheus::services(&self.api.services()));
                Some((prometheus::CONTENT_TYPE, text.into_bytes()))
            }
            "/-/healthy" => Some(("text/plain; charset=utf-8", b"the box runs\n".to_vec())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use tcpstate::wire::{FlowKey, Vlan};
    use tcpstate::{ConnectionStatus, End, PerSide};

    fn connection(port: u16) -> Connection {
        let end = End { scale: None, told: None, window: 0, ttl: 64 };
        let [lan, wan] = [[10, 0, 0, 1], [192, 0, 2, 9]].map(|address| [0, 0, 0xffff, u32::from_be_bytes(address)]);
        let state = State::Established;
        Connection {
            key: FlowKey { lan, wan, lan_port: 80, wan_port: port, vlan: Vlan(0), v6: false },
            status: ConnectionStatus {
                state,
                proxied: true,
                holds: false,
                reopening: false,
                finished: PerSide::default(),
            },
            opened_by: Some(Side::Wan),
            age: Duration::from_millis(2500),
            idle: None,
            due: Duration::ZERO,
            endpoint: PerSide::new(end, end),
            mss: 1460,
            sack: true,
            timestamps: true,
            seq_delta: 0xdead_beef,
            ts_delta: 0xdead_beef,
            held: 0,
            redirect: None,
            told: None,
        }
    }

    /// A table of so many parts, of which each has so many connections, and the number of times that a part was asked for.
    struct Table {
        parts: u32,
        each: u16,
        asked: usize,
    }

    impl Table {
        fn part(&mut self, from: Cursor) -> Option<(Vec<Connection>, Option<Cursor>)> {
            self.asked += 1;
            let next = from.place + 1;
            let place = (next < self.parts).then_some(Cursor { worker: 0, place: next });
            Some(((0..self.each).map(connection).collect(), place))
        }

        fn look(&mut self, listing: &mut Listing, now: Instant) -> Value {
            let answer = listing.answer(now, |from| self.part(from)).expect("the worker answers");
            serde_json::from_slice(&answer).expect("JSON")
        }
    }

    fn shown(answer: &Value) -> usize {
        answer["connections"].as_array().expect("a list").len()
    }

    #[test]
    fn many_who_look_cost_what_one_costs() {
        let (mut listing, mut table, begin) =
            (Listing::default(), Table { parts: 3, each: 2, asked: 0 }, Instant::now());
        for _ in 0..100 {
            let answer = table.look(&mut listing, begin);
            assert_eq!((shown(&answer), &answer["more"], &answer["listing"]), (6, &false.into(), &false.into()));
        }
        assert_eq!(table.asked, 3);
        table.look(&mut listing, begin + LISTED_EVERY);
        assert_eq!(table.asked, 6);
    }

    #[test]
    fn a_large_table_is_listed_in_parts_of_which_a_second_has_few() {
        let (mut listing, begin) = (Listing::default(), Instant::now());
        let mut table = Table { parts: 2 * PARTS as u32, each: 0, asked: 0 };
        let mut look = |second, table: &mut Table| {
            let before = table.asked;
            let answer = table.look(&mut listing, begin + LISTED_EVERY * second);
            assert_eq!(table.asked - before, PARTS);
            (shown(&answer), answer["listing"] == true)
        };
        assert_eq!(look(0, &mut table), (0, true), "half of it");
        table.each = 1;
        assert_eq!(look(1, &mut table), (PARTS, false), "all of it");
        table.each = 0;
        assert_eq!(look(2, &mut table), (PARTS, false), "the last listing is seen until the next is complete");
        assert_eq!(look(3, &mut table), (0, false));
    }

    #[test]
    fn as_many_connections_are_shown_as_fit_and_nothing_secret_of_them() {
        let (mut listing, mut table) = (Listing::default(), Table { parts: 1000, each: 60, asked: 0 });
        let answer = table.look(&mut listing, Instant::now());
        assert_eq!((shown(&answer), &answer["more"], table.asked), (SHOWN, &true.into(), 2));
        let row = serde_json::json!({"wan": "192.0.2.9:0", "lan": "10.0.0.1:80", "vlan": [], "state": "established",
            "proxied": true, "age": 2.5, "idle": null});
        assert_eq!(answer["connections"][0], row);
    }

    #[test]
    fn a_worker_that_is_silent_is_asked_again() {
        let (mut listing, now) = (Listing::default(), Instant::now());
        assert_eq!(listing.answer(now, |_| None), None);
        let mut table = Table { parts: 1, each: 1, asked: 0 };
        assert_eq!(shown(&table.look(&mut listing, now)), 1);
    }
}
