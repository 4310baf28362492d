//! Network interfaces: what the kernel knows of one, which are no port of a box, and how one is claimed and prepared for bridging.
//!
//! Nothing here knows an I/O backend.

mod addresses;
mod claim;
mod describe;
mod ethtool;
mod filters;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod host;
mod interface;
mod link;
mod originals;
mod program;
mod protect;
mod record;
mod restore;
mod rss;
mod rtnetlink;
mod settings;
mod veth;
mod xdp_features;

pub use claim::{DIRECTORY, Holder};
pub use describe::{DefaultRoute, Described, Description, QueueCounts, Rss, XdpProgram, describe};
pub use ethtool::{Coalescing, Rings};
pub(crate) use host::HostPort;
pub(crate) use interface::FORWARDED_BEYOND_MTU;
pub use interface::Interface;
pub use link::{LinkReader, LinkState};
pub(crate) use program::{Attachment, is_attached_as};
pub(crate) use protect::check;
pub use restore::{FAST_PATH, Outcome, PROGRAM, Restored, restore};
pub use rtnetlink::LinkWatch;
pub use settings::Changed;
pub(crate) use settings::Settings;
pub use xdp_features::XdpFeatures;
pub(crate) use xdp_features::has_zero_copy;
