//! Captures: which frames are written to a file, the limits, and the resulting counts.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which frames a capture takes. At most one capture of each kind runs at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureKind {
    /// Frames received by either port, before they are edited.
    Received,
    /// Frames sent by either port, after they were edited.
    Sent,
    /// Frames received and sent by the LAN port.
    Lan,
    /// Frames received and sent by the WAN port.
    Wan,
    /// Samples of dropped frames, each with its drop reason.
    Drops,
}

impl CaptureKind {
    /// Every kind.
    pub const ALL: [CaptureKind; 5] =
        [CaptureKind::Received, CaptureKind::Sent, CaptureKind::Lan, CaptureKind::Wan, CaptureKind::Drops];

    /// The name, as in a request.
    pub const fn name(self) -> &'static str {
        match self {
            CaptureKind::Received => "received",
            CaptureKind::Sent => "sent",
            CaptureKind::Lan => "lan",
            CaptureKind::Wan => "wan",
            CaptureKind::Drops => "drops",
        }
    }
}

impl std::str::FromStr for CaptureKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = CaptureKind::ALL.into_iter().find(|kind| kind.name() == text);
        named.ok_or_else(|| format!("expected one of {}", CaptureKind::ALL.map(CaptureKind::name).join(", ")))
    }
}

/// Limits of a capture. Members absent from a request have their defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct CaptureLimits {
    /// The largest size of the file, in bytes; at least 4096. Default: 1 GiB.
    pub file_bytes: u64,
    /// Bytes captured of each frame; at least 14. Default: 65535.
    pub frame_bytes: u16,
    /// Dropped frames captured per drop reason and second; at least 1. Default: 10.
    pub drops_a_second: u32,
}

impl Default for CaptureLimits {
    fn default() -> Self {
        Self { file_bytes: 1 << 30, frame_bytes: u16::MAX, drops_a_second: 10 }
    }
}

impl CaptureLimits {
    /// Checks the limits.
    ///
    /// # Errors
    /// The first limit that is out of range, in words.
    pub fn check(&self) -> Result<(), &'static str> {
        match self {
            CaptureLimits { file_bytes: ..4096, .. } => Err("`file-bytes` must be at least 4096"),
            CaptureLimits { frame_bytes: ..14, .. } => {
                Err("`frame-bytes` must be at least 14, the length of an Ethernet header")
            }
            CaptureLimits { drops_a_second: 0, .. } => Err("`drops-a-second` must be at least 1"),
            _ => Ok(()),
        }
    }
}

/// Parses a file size limit from a command line: `4096`, `64k`, `100M` or `2G` (powers of 1024).
///
/// # Errors
/// If it is not such a number, is below 4096, or does not fit into 64 bits.
pub fn file_bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 =
        digits.parse().map_err(|_| "expected a number of bytes, such as 65536, 64k, 100M or 2G".to_owned())?;
    number
        .checked_mul(1 << shift)
        .filter(|&bytes| bytes >= 4096)
        .ok_or("expected at least 4k and at most what 64 bits hold".into())
}

/// A capture and its counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Capture {
    /// Which frames it takes.
    pub kind: CaptureKind,
    /// The file.
    pub path: PathBuf,
    /// Frames written.
    pub captured: u64,
    /// Frames left out because the disk was too slow.
    pub missed: u64,
    /// Frames left out because the file had reached its limit.
    pub beyond: u64,
}
