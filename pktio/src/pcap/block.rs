//! The blocks of a pcapng file, as they are written (draft-ietf-opsawg-pcapng).

use std::time::Duration;

use pcap_file::pcapng::blocks;

/// The direction of a frame, as a capture file records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Received by the port.
    Inbound,
    /// Transmitted by the port.
    Outbound,
}

/// Codes of pcapng options (draft-ietf-opsawg-pcapng, sections 3.5, 4.2, 4.3 and 4.6).
pub(super) const OPT_END: u16 = 0;
const OPT_COMMENT: u16 = 1;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
pub(super) const EPB_FLAGS: u16 = 2;
const EPB_QUEUE: u16 = 6;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;

/// A file's description of an interface.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct InterfaceDescription {
    /// Its name.
    pub name: String,
    /// A description; not written if it is empty.
    pub description: String,
    /// Bytes kept of each frame; 0 is all.
    pub snap_len: u32,
}

impl From<&str> for InterfaceDescription {
    fn from(name: &str) -> Self {
        InterfaceDescription { name: name.to_owned(), ..InterfaceDescription::default() }
    }
}

/// What a file records of a frame besides its bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Label<'a> {
    /// The index of its interface.
    pub interface: u32,
    /// When it was captured, since 1970 in UTC.
    pub time: Duration,
    /// Its direction.
    pub direction: Option<Direction>,
    /// The queue of the interface.
    pub queue: Option<u32>,
    /// A comment; not written if it is empty.
    pub comment: &'a str,
}

/// The most bytes a frame's block takes besides the frame, with a comment of [`MAX_COMMENT`] bytes.
pub(crate) const FRAME_OVERHEAD: usize = 28 + 8 + 8 + (4 + MAX_COMMENT) + 4 + 4 + 3;

/// The longest comment, in bytes; the rest is cut off.
pub const MAX_COMMENT: usize = 256;

/// The length of the block that [`put_statistics`] writes, in bytes.
pub(crate) const STATISTICS_LEN: usize = 20 + 12 + 12 + 4 + 4;

/// Appends the beginning of a file.
pub(crate) fn put_header(out: &mut Vec<u8>, interfaces: &[InterfaceDescription]) {
    block(out, blocks::SECTION_HEADER_BLOCK, |out| {
        // The magic of the byte order, version 1.0, and a section of unknown length.
        out.extend(0x1a2b_3c4d_u32.to_le_bytes());
        out.extend([1, 0, 0, 0]);
        out.extend([0xff; 8]);
    });
    for interface in interfaces {
        block(out, blocks::INTERFACE_DESCRIPTION_BLOCK, |out| {
            // Link type Ethernet.
            out.extend([1, 0, 0, 0]);
            out.extend(interface.snap_len.to_le_bytes());
            for (code, text) in [(IF_NAME, &interface.name), (IF_DESCRIPTION, &interface.description)] {
                if code == IF_NAME || !text.is_empty() {
                    option(out, code, cut(text, MAX_COMMENT).as_bytes());
                }
            }
            // Nanoseconds.
            option(out, IF_TSRESOL, &[9]);
            option(out, OPT_END, &[]);
        });
    }
}

/// Appends the block of a frame of `original_len` bytes, of which `parts` hold all or the beginning.
pub(crate) fn put_frame<'a>(
    out: &mut Vec<u8>,
    label: &Label<'_>,
    parts: impl IntoIterator<Item = &'a [u8]>,
    original_len: usize,
) {
    block(out, blocks::ENHANCED_PACKET_BLOCK, |out| {
        out.extend_from_slice(&label.interface.to_le_bytes());
        // 64 bits of nanoseconds last until the year 2554.
        let ticks = u64::try_from(label.time.as_nanos()).unwrap_or(u64::MAX);
        out.extend_from_slice(&((ticks >> 32) as u32).to_le_bytes());
        out.extend_from_slice(&(ticks as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&u32::try_from(original_len).unwrap_or(u32::MAX).to_le_bytes());
        let from = out.len();
        parts.into_iter().for_each(|part| out.extend_from_slice(part));
        let captured = out.len() - from;
        out[from - 8..from - 4].copy_from_slice(&(captured as u32).to_le_bytes());
        pad(out, captured);
        let has_options = label.direction.is_some() || label.queue.is_some() || !label.comment.is_empty();
        if !label.comment.is_empty() {
            option(out, OPT_COMMENT, cut(label.comment, MAX_COMMENT).as_bytes());
        }
        if let Some(direction) = label.direction {
            let flags: u32 = match direction {
                Direction::Inbound => 1,
                Direction::Outbound => 2,
            };
            option(out, EPB_FLAGS, &flags.to_le_bytes());
        }
        if let Some(queue) = label.queue {
            option(out, EPB_QUEUE, &queue.to_le_bytes());
        }
        if has_options {
            option(out, OPT_END, &[]);
        }
    });
}

/// Appends the statistics of an interface: all frames, and those of them that were not captured.
pub(crate) fn put_statistics(out: &mut Vec<u8>, interface: u32, time: Duration, received: u64, dropped: u64) {
    block(out, blocks::INTERFACE_STATISTIC_BLOCK, |out| {
        let ticks = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        out.extend(interface.to_le_bytes());
        out.extend(((ticks >> 32) as u32).to_le_bytes());
        out.extend((ticks as u32).to_le_bytes());
        option(out, ISB_IFRECV, &received.to_le_bytes());
        option(out, ISB_IFDROP, &dropped.to_le_bytes());
        option(out, OPT_END, &[]);
    });
}

/// Appends a block around what `body` appends.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = ((out.len() - begin + 4) as u32).to_le_bytes();
    out[begin + 4..begin + 8].copy_from_slice(&length);
    out.extend_from_slice(&length);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// Pads what is `len` bytes long to a multiple of four.
fn pad(out: &mut Vec<u8>, len: usize) {
    out.resize(out.len() + len.next_multiple_of(4) - len, 0);
}

/// The beginning of a text, of at most `most` bytes.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}
