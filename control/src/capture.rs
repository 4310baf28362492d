//! Captures: which frames go into a file, how many of them and how much of each, and what came of it.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which frames a file is to hold. Of each kind there is one file at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureKind {
    /// Those received by either port, as they came.
    Received,
    /// Those sent by either port, as they left.
    Sent,
    /// Those received and sent by the LAN port.
    Lan,
    /// Those received and sent by the WAN port.
    Wan,
    /// Samples of those dropped, each with its reason.
    Drops,
}

impl CaptureKind {
    /// Every one.
    pub const ALL: [CaptureKind; 5] =
        [CaptureKind::Received, CaptureKind::Sent, CaptureKind::Lan, CaptureKind::Wan, CaptureKind::Drops];

    /// Its name, as it is written in a request.
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

/// How much is captured. What a request leaves out is as by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct CaptureLimits {
    /// Bytes a file may grow to, from 4096.
    pub file_bytes: u64,
    /// Bytes kept of each frame, from 14.
    pub frame_bytes: u16,
    /// Dropped frames captured of each reason in a second, from 1.
    pub drops_a_second: u32,
}

impl Default for CaptureLimits {
    fn default() -> Self {
        Self { file_bytes: 1 << 30, frame_bytes: u16::MAX, drops_a_second: 10 }
    }
}

impl CaptureLimits {
    /// Why they cannot be, if so.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn check(&self) -> Result<(), &'static str> {
        match self {
            CaptureLimits { file_bytes: ..4096, .. } => Err("a file of less than 4096 bytes has no room for frames"),
            CaptureLimits { frame_bytes: ..14, .. } => {
                Err("less than 14 bytes of a frame are not even its Ethernet header")
            }
            CaptureLimits { drops_a_second: 0, .. } => Err("no dropped frame in a second is none at all"),
            _ => Ok(()),
        }
    }
}

/// A number of bytes as it is written on a command line: `4096`, `64k`, `100M` or `2G`.
///
/// # Errors
/// When it is none that a file could be limited to.
pub fn file_bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "write a number of bytes, as 65536, 64k, 100M or 2G".to_owned())?;
    number.checked_mul(1 << shift).filter(|&bytes| bytes >= 4096).ok_or("take between 4k and what 64 bits hold".into())
}

/// A capture, and what came of it so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Capture {
    /// Which frames.
    pub kind: CaptureKind,
    /// The file.
    pub path: PathBuf,
    /// Frames in it.
    pub captured: u64,
    /// Frames that found the disk busy, and are not in it.
    pub missed: u64,
    /// Frames beyond what the file may hold.
    pub beyond: u64,
}
