//! A day of clients that visit a server again and again, as of a web site: drawn from a seed, and scaled to whatever a test takes a day to be.

use std::f64::consts::PI;

use crate::world::Chance;

/// A visit of one client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Visit {
    /// Which client.
    pub client: usize,
    /// When, as a part of the day from 0 to 1.
    pub at: f64,
    /// Connections that follow the first, all at once.
    pub more: usize,
}

/// Hours of a day for which the number of visits is drawn.
const HOURS: f64 = 24.0;

/// The visits of so many clients on one day, in order. A client comes one to eight times, by night a fifth as often as in the afternoon; it opens one
/// connection, and three to seven more when it has read what came over that, as browsers do.
pub fn day(seed: u64, clients: usize) -> Vec<Visit> {
    let mut chance = Chance::new(seed);
    let mut visits = Vec::new();
    for client in 0..clients {
        for _ in 0..chance.within(1..9) {
            let at = loop {
                let at = chance.within(0..1_000_000) as f64 / 1e6;
                let often = 0.2 + 0.8 * (PI * (at * HOURS - 7.0) / 16.0).sin().max(0.0);
                if (chance.within(0..1_000_000) as f64) < often * 1e6 {
                    break at;
                }
            };
            visits.push(Visit { client, at, more: chance.within(3..8) as usize });
        }
    }
    visits.sort_by(|one, other| one.at.total_cmp(&other.at));
    visits
}
