//! Network interfaces: what the kernel knows of one, and how it is prepared for bridging.
//!
//! Nothing here knows an I/O backend.

mod ethtool;
mod interface;
mod rss;
mod settings;
mod undo;

pub use interface::Interface;
pub(crate) use settings::Settings;
