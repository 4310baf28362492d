//! What one worker learns and publishes to the others: how a server answers, that it refuses, that its answers do not cross the box, which VLANs belong
//! together, which clients have proved their address, and where a station is. An update travels by value and is a hint:
//! a worker that misses it learns the same from the next handshake of its own.

use crate::Side;
use crate::cache::backends::Health;
use crate::cache::neighbours::Heard;
use crate::cache::refused::Met;
use crate::cache::servers::Observation;
use crate::cache::stations::Mac;
use crate::cache::vlan_pairs::VlanPair;
use crate::wire::FlowKey;

/// Something a worker has learned; see [`Proxy::updates`](crate::Proxy::updates).
#[derive(Clone, Copy, Debug)]
pub enum ServerUpdate {
    /// The server of this connection has answered a SYN.
    Answered(FlowKey, Observation),
    /// It did not let a client in, which had proved itself or not.
    Met(FlowKey, Met, bool),
    /// It has just been tried for a client, which had proved itself or not.
    Tried(FlowKey, bool),
    /// It has let a client in that had proved nothing, and whose options say nothing of others.
    Opened(FlowKey),
    /// The two directions of a network bear different VLAN tags.
    Vlans(VlanPair),
    /// It answers, but not through the box (direct server return).
    DirectReturn(FlowKey),
    /// The client of this connection has proved its address.
    Proved(FlowKey),
    /// A station was heard on this side.
    Heard(Side, Mac),
    /// The Ethernet address of a server of a service, or of a router to some, is known, or not any more.
    Neighbour(Heard),
    /// A server of a service accepts connections, or does not any more.
    Health(Health),
}

const _: () = assert!(size_of::<ServerUpdate>() <= 128, "an update lies in two cache lines of a queue");
