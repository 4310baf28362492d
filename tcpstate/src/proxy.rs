//! The engine: one worker's share of the proxy.

use crate::{Config, Counters, Head, Instant, Side, Verdict};

/// The secret of all cookies, hashes and filters: 48 random bytes, the same on every worker.
#[derive(Clone)]
pub struct Secrets([u8; 48]);

impl Secrets {
    /// Secrets made of these bytes, which must come from a good source.
    pub fn new(random: [u8; 48]) -> Self {
        Self(random)
    }
}

/// Where the engine's own segments go: the worker, which fills a spare frame.
pub trait Egress {
    /// Takes a spare frame, lets `write` fill its buffer and sends that many bytes out of port `to`.
    /// Returns false, without calling `write`, when no frame is spare.
    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool;
}

/// What the first pass found out about a frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    _hash: u64,
}

/// One worker's share of the proxy.
pub struct Proxy {
    counters: Counters,
}

impl Proxy {
    /// A proxy with empty tables. All memory is taken here.
    pub fn new(_config: &Config, secrets: &Secrets, _now: Instant) -> Self {
        let _ = secrets.0;
        Self { counters: Counters::default() }
    }

    /// First pass: parses the frame, hashes its ends and asks for the line of the flow table they fall in.
    pub fn look(&self, _side: Side, _head: &Head) -> Look {
        Look::default()
    }

    /// Between the passes: asks for the flow's own lines, now that the table's line is here.
    pub fn reach(&self, _look: &Look) {}

    /// Second pass: decides what becomes of the frame, which has not changed since `look`.
    pub fn on_frame(
        &mut self,
        _side: Side,
        _look: &Look,
        _head: &mut Head,
        _now: Instant,
        _egress: &mut impl Egress,
    ) -> Verdict {
        Verdict::Forward
    }

    /// All passes for a single frame.
    pub fn on_single(&mut self, side: Side, head: &mut Head, now: Instant, egress: &mut impl Egress) -> Verdict {
        let look = self.look(side, head);
        self.on_frame(side, &look, head, now, egress)
    }

    /// Does what is due: repeats SYNs, removes what has expired, changes keys. Works off a bounded share;
    /// returns true when more is due already.
    pub fn on_timeout(&mut self, _now: Instant, _egress: &mut impl Egress) -> bool {
        false
    }

    /// The earliest time at which [`Proxy::on_timeout`] may have something to do; `None` when nothing is pending.
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// What has been counted since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many flows there are of each kind.
    pub fn population(&self) -> Population {
        Population::default()
    }
}

/// How many flows there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Population {
    /// Entries of the SYN cache.
    pub half_open: u64,
    /// Connections from the WAN, from the dialled server to the last timer.
    pub proxied: u64,
    /// Connections passed through.
    pub direct: u64,
}
