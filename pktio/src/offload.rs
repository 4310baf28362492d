//! Does in software what a sender left to a NIC: completes checksums and cuts super-frames into frames.
//!
//! On a veth pair, on a tap and on a virtual NIC a sender may leave the transport checksum to a device that does not exist: the field
//! then holds only the sum of the pseudo-header. AF_PACKET says so in a virtio-net header, and says of a super-frame (up to 64 KiB
//! and more of payload under one header) how to cut it. AF_XDP and netmap say nothing; there [`Completer`] recognises such checksums. A
//! link carries neither of the two. All this works on bytes alone, and on the inner headers of tunnels too.

mod checksum;
mod headers;
mod partial;
mod segment;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use headers::MAX_HEADERS;
pub(crate) use partial::Completer;
pub(crate) use segment::{Offload, Plan, VNET_HEADER, complete, strip_jumbo};

/// The largest super-frame that the kernel makes (`GSO_MAX_SIZE`: eight times 64 KiB, of which TSO and GRO use one unless more is
/// allowed), with its link-layer header.
pub(crate) const SUPER_FRAME: usize = 8 * 65_536 + 64;
