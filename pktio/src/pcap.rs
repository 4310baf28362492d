//! Capture files: reading pcap and pcapng, writing both, and a port over them.

mod block;
mod port;
mod reader;
mod writer;

pub use crate::error::PcapFileError;
pub use block::{Direction, InterfaceDescription, Label, MAX_COMMENT};
pub(crate) use block::{FRAME_OVERHEAD, STATISTICS_LEN, put_frame, put_header, put_statistics};
pub use port::PcapPort;
pub use reader::{PcapReader, Record};
pub use writer::PcapNgWriter;
