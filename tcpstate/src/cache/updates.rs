//! What one worker learns that the others want to know: how a server answers, and that it refuses. It travels by value and is a hint
//! like any other: whoever misses it learns the same from the next handshake of its own.

use crate::cache::refused::Client;
use crate::cache::servers::Observation;
use crate::wire::FlowKey;

/// Something a worker has learned; see [`Proxy::updates`](crate::Proxy::updates).
#[derive(Clone, Copy, Debug)]
pub enum ServerUpdate {
    /// The server of these ends has answered a SYN.
    RecentSyns(FlowKey, Observation),
    /// It has refused a client.
    Refused(FlowKey, Client),
}

const _: () = assert!(size_of::<ServerUpdate>() <= 128, "news lie in two cache lines of a lane");
