//! What the operator asks, answered: from the counters that everybody may read, or by the workers themselves.

use crate::log::Dial;
use crate::mail::{Order, Post};
use crate::report::lost_on_the_way;
use crate::stats::{self, Board, Snapshot};
use control::{Counts, Flows, Interface, Port, Reply, Request, Stats, Status};
use pktio::PortStatistics;
use std::sync::Arc;
use std::time::Instant;
use tcpstate::{DropReason, Event, Side};
use tracing::info;

/// What does not change while the box runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// When it began.
    pub begin: Instant,
    /// The interface toward the servers.
    pub lan: Interface,
    /// The interface toward everybody else.
    pub wan: Interface,
    /// Whether everything is forwarded unseen.
    pub bypass: bool,
}

/// Whoever answers the operator.
pub struct Operator {
    facts: Facts,
    board: Arc<Board>,
    post: Post,
    dial: Dial,
}

impl Operator {
    /// An operator of the box of which this is true, with these workers.
    pub fn new(facts: Facts, board: Arc<Board>, post: Post, dial: Dial) -> Self {
        Self { facts, board, post, dial }
    }

    /// The answer to a request.
    pub fn answer(&self, request: Request) -> Reply {
        match request {
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Stats => Reply::Stats(Box::new(self.stats())),
            Request::SetLogLevel { level } => {
                info!("the operator has messages logged from `{}` on", level.name());
                self.dial.set(level);
                Reply::Done(format!("messages are logged from `{}` on", level.name()))
            }
        }
    }

    fn uptime(&self) -> f64 {
        self.facts.begin.elapsed().as_secs_f64()
    }

    fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.uptime(),
            lan: self.facts.lan.clone(),
            wan: self.facts.wan.clone(),
            workers: self.post.ask(&Order::Hello).iter().map(Option::is_some).collect(),
            bypass: self.facts.bypass,
            drain: None,
            log_level: self.dial.level(),
            flows: flows(&self.board.total()),
        }
    }

    fn stats(&self) -> Stats {
        let workers: Vec<Snapshot> = self.board.workers().collect();
        Stats {
            uptime: self.uptime(),
            workers: workers.iter().map(counts).collect(),
            total: counts(&workers.into_iter().sum()),
        }
    }
}

fn flows(snapshot: &Snapshot) -> Flows {
    let population = snapshot.population();
    Flows { proxied: population.proxied, direct: population.direct, half_open: population.half_open }
}

/// A snapshot with a name for every number.
fn counts(snapshot: &Snapshot) -> Counts {
    let port = |statistics: &PortStatistics| -> Port {
        stats::named(statistics).into_iter().map(|(name, count)| (name.replace('_', "-"), count)).collect()
    };
    let stage = snapshot.stage();
    Counts {
        lan: port(&snapshot.port(Side::Lan)),
        wan: port(&snapshot.port(Side::Wan)),
        flows: flows(snapshot),
        held: snapshot.held(),
        events: Event::ALL.iter().map(|&event| (event.label().to_owned(), snapshot.happened(event))).collect(),
        drops: DropReason::ALL.iter().map(|&reason| (reason.label().to_owned(), snapshot.dropped(reason))).collect(),
        losses: lost_on_the_way(snapshot).map(|(count, place)| (place.to_owned(), count)).collect(),
        crossed: snapshot.crossed().named().into_iter().map(|(name, count)| (name.replace('_', "-"), count)).collect(),
        wakes: snapshot.wakes(),
        timed_frames: stage.frames,
        timed_nanoseconds: u64::try_from(stage.time.as_nanos()).unwrap_or(u64::MAX),
    }
}
