//! What the engine remembers besides connections, in bounded memory: what servers answered, which ports refused, which SYNs were answered recently,
//! frames that wait for their server, VLANs that answer for others, packets whose fragments may pass, sources that have proved themselves, servers whose answers go another way, on
//! which side stations are, the first bytes of connections to services and the Ethernet addresses, health and connections of their servers, the source ports of the box, and who holds how much of the flow
//! table.

pub mod backends;
pub mod direct_return;
pub mod fragments;
pub mod gathered;
pub mod held;
pub mod neighbours;
pub mod proved_sources;
pub mod recent_syns;
pub mod refused;
pub mod servers;
pub(crate) mod shares;
pub mod source_ports;
pub mod stations;
pub mod updates;
pub mod vlan_pairs;
