//! What one worker learns that the others want to know: how a server answers, and that it refuses. It travels by value and is a hint
//! like any other: whoever misses it learns the same from the next handshake of its own.

use crate::doors::Client;
use crate::learn::Lesson;
use crate::wire::Ends;

/// Something a worker has learned; see [`Proxy::news`](crate::Proxy::news).
#[derive(Clone, Copy, Debug)]
pub enum News {
    /// The server of these ends has answered a SYN.
    Answered(Ends, Lesson),
    /// It has refused a client.
    Refused(Ends, Client),
}

const _: () = assert!(size_of::<News>() <= 128, "news lie in two cache lines of a lane");
