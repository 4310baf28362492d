//! A port over capture files: what lies in one file is received, what is transmitted goes to another.
//!
//! pcap and pcapng are read, pcapng is written. Frames come as fast as they are asked for; the time each was captured is
//! kept ([`PcapPort::next_time`]) for whoever wants to replay them at their own pace.
//!
//! Headers and blocks are parsed by `pcap-file`, packets here: it takes every pcapng time stamp for nanoseconds, whatever
//! the interface says, refuses a pcap whose frames were cut by a snap length, and its readers cannot say where in the file
//! they stumbled.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pcap_file::pcap::PcapParser;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{PcapNgParser, blocks};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};

use crate::frame::{Batch, Frame, Pool};
use crate::memory::{MAX_FRAME, Refused, gather};
use crate::port::{Capabilities, Port, PortStatistics};

/// Why a capture file could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum PcapFileError {
    /// The file could not be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no capture file, or is damaged.
    #[error("{}: at byte {offset}: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the block or record begins that makes no sense, in bytes from the beginning.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The text behind `pcap:` does not say which files.
    #[error("`{0}` names no capture file; write FILE, or in=FILE, out=FILE or outng=FILE with colons between them")]
    Syntax(String),
}

/// A frame read from a capture file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Record {
    /// When it was captured, since 1970 in UTC.
    pub time: Duration,
    /// Its bytes, or as many as were captured.
    pub bytes: Vec<u8>,
    /// How long it was on the wire, in bytes; more than `bytes` holds when the capture cut it.
    pub original_len: u32,
    /// The interface it was captured at, as an index; 0 in a pcap, which has but one.
    pub interface: u32,
    /// Which way it went, where the file says so.
    pub direction: Option<Direction>,
}

/// Reads the frames of a pcap or pcapng file, one after the other.
pub struct PcapReader {
    source: Source,
    format: Format,
    skipped: u64,
}

enum Format {
    Pcap(PcapParser),
    PcapNg(PcapNgParser),
}

impl PcapReader {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is neither pcap nor pcapng, or holds another link type than Ethernet.
    pub fn open(path: impl AsRef<Path>) -> Result<PcapReader, PcapFileError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| PcapFileError::Io { path: path.into(), source })?;
        PcapReader::new(path, Box::new(file))
    }

    /// Reads from `input`; `path` is what it is called in complaints.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn new(path: impl AsRef<Path>, input: Box<dyn Read + Send>) -> Result<PcapReader, PcapFileError> {
        let path = path.as_ref().to_path_buf();
        let mut source = Source { path, input, buffer: vec![0; 64 << 10], begin: 0, end: 0, offset: 0 };
        let magic = source.step(|bytes| {
            let magic: [u8; 4] = *bytes.first_chunk().ok_or(PcapError::IncompleteBuffer)?;
            Ok((0, magic))
        });
        let nonsense = || "neither a pcap nor a pcapng file".to_owned();
        let format = match magic {
            Err(PcapFileError::Corrupt { .. }) | Ok(None) => return Err(source.corrupt(nonsense())),
            Err(other) => return Err(other),
            Ok(Some([0x0a, 0x0d, 0x0d, 0x0a])) => source
                .step(|bytes| PcapNgParser::new(bytes).map(|(rest, parser)| (bytes.len() - rest.len(), parser)))?
                .map(Format::PcapNg),
            Ok(Some([0xa1, 0xb2, ..] | [0xd4, 0xc3, ..] | [0x4d, 0x3c, ..])) => source
                .step(|bytes| PcapParser::new(bytes).map(|(rest, parser)| (bytes.len() - rest.len(), parser)))?
                .map(Format::Pcap),
            Ok(Some(_)) => None,
        };
        match format {
            None => Err(source.corrupt(nonsense())),
            Some(Format::Pcap(parser)) if parser.header().datalink != DataLink::ETHERNET => {
                let complaint = format!("link type {:?}; only Ethernet is understood", parser.header().datalink);
                Err(source.corrupt(complaint))
            }
            Some(format) => Ok(PcapReader { source, format, skipped: 0 }),
        }
    }

    /// Reads the next frame into `record`, whose old content goes. False at the end of the file.
    ///
    /// # Errors
    ///
    /// When the file is damaged or cannot be read further. Nothing more will come then.
    pub fn read(&mut self, record: &mut Record) -> Result<bool, PcapFileError> {
        loop {
            let found = match &mut self.format {
                Format::Pcap(parser) => self.source.step(|bytes| {
                    let (rest, raw) = parser.next_raw_packet(bytes)?;
                    let scale = match parser.header().ts_resolution {
                        TsResolution::MicroSecond => 1000,
                        TsResolution::NanoSecond => 1,
                    };
                    let fraction = Duration::from_nanos(u64::from(raw.ts_frac) * scale);
                    record.time = Duration::from_secs(raw.ts_sec.into()) + fraction;
                    record.original_len = raw.orig_len;
                    (record.interface, record.direction) = (0, None);
                    record.bytes.clear();
                    record.bytes.extend_from_slice(&raw.data);
                    Ok((bytes.len() - rest.len(), true))
                }),
                Format::PcapNg(parser) => self.source.step(|bytes| {
                    let (rest, raw) = parser.next_raw_block(bytes)?;
                    let (kind, body) = (raw.type_, raw.body);
                    let found = match kind {
                        blocks::ENHANCED_PACKET_BLOCK | blocks::PACKET_BLOCK | blocks::SIMPLE_PACKET_BLOCK => {
                            let found = read_packet(parser, kind, &body, record)?;
                            self.skipped += u64::from(!found);
                            found
                        }
                        _ => false,
                    };
                    Ok((bytes.len() - rest.len(), found))
                }),
            };
            match found? {
                Some(true) => return Ok(true),
                Some(false) => {}
                None => return Ok(false),
            }
        }
    }

    /// Frames passed over because their interface is not Ethernet.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The name of an interface, as the file has it; empty when it has none.
    pub fn interface_name(&self, index: u32) -> &str {
        let Format::PcapNg(parser) = &self.format else { return "" };
        let Some(interface) = parser.interfaces().get(index as usize) else { return "" };
        let mut names = interface.options.iter().filter_map(|option| match option {
            InterfaceDescriptionOption::IfName(name) => Some(name.as_ref()),
            _ => None,
        });
        names.next().unwrap_or_default()
    }
}

/// Reads a packet block of any of the three kinds. False when its interface is not Ethernet.
fn read_packet(parser: &PcapNgParser, kind: u32, body: &[u8], record: &mut Record) -> Result<bool, PcapError> {
    let little = parser.section().endianness == Endianness::Little;
    let word = |at: usize| -> Result<u32, PcapError> {
        let bytes = body.get(at..at + 4).and_then(|b| b.first_chunk());
        let bytes = *bytes.ok_or(PcapError::InvalidField("a packet block shorter than its fields"))?;
        Ok(if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    };
    let simple = kind == blocks::SIMPLE_PACKET_BLOCK;
    let index = match kind {
        blocks::SIMPLE_PACKET_BLOCK => 0,
        blocks::ENHANCED_PACKET_BLOCK => word(0)?,
        // The obsolete block shares this word between the interface and a count of drops.
        _ if little => word(0)? & 0xffff,
        _ => word(0)? >> 16,
    };
    let interface = parser.interfaces().get(index as usize).ok_or(PcapError::InvalidInterfaceId(index))?;
    let (at, captured) = if simple {
        let limit = if interface.snaplen == 0 { u32::MAX } else { interface.snaplen };
        (4, word(0)?.min(limit))
    } else {
        (20, word(12)?)
    };
    let data = body.get(at..).and_then(|data| data.get(..captured as usize));
    let data = data.ok_or(PcapError::InvalidField("a packet longer than its block"))?;
    if interface.linktype != DataLink::ETHERNET {
        return Ok(false);
    }
    record.original_len = if simple { word(0)? } else { word(16)? };
    record.time = Duration::ZERO;
    record.interface = index;
    record.direction = None;
    if !simple {
        let (mut resolution, mut offset) = (6, 0);
        for option in &interface.options {
            match option {
                InterfaceDescriptionOption::IfTsResol(value) => resolution = *value,
                InterfaceDescriptionOption::IfTsOffset(value) => offset = *value,
                _ => {}
            }
        }
        record.time = time_of(u64::from(word(4)?) << 32 | u64::from(word(8)?), resolution, offset);
        let options = (at + captured as usize).next_multiple_of(4);
        record.direction = direction_of(body.get(options..).unwrap_or_default(), little);
    }
    record.bytes.clear();
    record.bytes.extend_from_slice(data);
    Ok(true)
}

/// Which way the options of a packet block say it went. Options that make no sense say nothing.
fn direction_of(mut options: &[u8], little: bool) -> Option<Direction> {
    let half = |bytes: [u8; 2]| if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) };
    while let Some((&[a, b, c, d], rest)) = options.split_first_chunk() {
        let (code, length) = (half([a, b]), usize::from(half([c, d])));
        let value = rest.get(..length)?;
        if code == OPT_END {
            return None;
        }
        if code == EPB_FLAGS {
            let flags = *value.first_chunk()?;
            let flags = if little { u32::from_le_bytes(flags) } else { u32::from_be_bytes(flags) };
            return match flags & 3 {
                1 => Some(Direction::Inbound),
                2 => Some(Direction::Outbound),
                _ => None,
            };
        }
        options = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// The time of a pcapng stamp of `ticks`. A resolution finer than 64 bits can count is of no use: such a time is the offset.
fn time_of(ticks: u64, resolution: u8, offset: u64) -> Duration {
    let exponent = u32::from(resolution & 0x7f);
    let second = if resolution & 0x80 == 0 { 10u64.checked_pow(exponent) } else { 1u64.checked_shl(exponent) };
    let (seconds, nanoseconds) = second.map_or((0, 0), |second| {
        let fraction = u128::from(ticks % second) * 1_000_000_000 / u128::from(second);
        (ticks / second, fraction as u32)
    });
    // The offset is a signed number of seconds.
    Duration::new(seconds.saturating_add_signed(offset as i64), nanoseconds)
}

/// Bytes read from a file and not parsed yet, and where in the file they lie.
struct Source {
    path: PathBuf,
    input: Box<dyn Read + Send>,
    /// What is read and not parsed lies at `begin..end`.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    /// Where in the file `buffer[begin]` lies.
    offset: u64,
}

/// A block longer than this, in bytes, is taken for damage.
const MAX_BLOCK: usize = 16 << 20;

impl Source {
    /// Parses one thing, reading more as long as the parser finds it incomplete. The parser says how many bytes it used.
    /// `None` when the file ends before it.
    fn step<T>(
        &mut self,
        mut parse: impl FnMut(&[u8]) -> Result<(usize, T), PcapError>,
    ) -> Result<Option<T>, PcapFileError> {
        loop {
            match parse(&self.buffer[self.begin..self.end]) {
                Ok((used, value)) => {
                    self.begin += used;
                    self.offset += used as u64;
                    return Ok(Some(value));
                }
                Err(PcapError::IncompleteBuffer) => {
                    if self.fill()? == 0 {
                        return match self.end - self.begin {
                            0 => Ok(None),
                            rest => Err(self.corrupt(format!("the file ends {rest} bytes into a block"))),
                        };
                    }
                }
                Err(PcapError::IoError(source)) => return Err(self.io(source)),
                Err(PcapError::InvalidInterfaceId(id)) => {
                    return Err(self.corrupt(format!("a packet of interface {id}, which the file does not describe")));
                }
                Err(other) => return Err(self.corrupt(other.to_string())),
            }
        }
    }

    /// Reads more; 0 at the end of the file.
    fn fill(&mut self) -> Result<usize, PcapFileError> {
        if self.begin > 0 {
            self.buffer.copy_within(self.begin..self.end, 0);
            self.end -= self.begin;
            self.begin = 0;
        }
        if self.end == self.buffer.len() {
            if self.end >= MAX_BLOCK {
                return Err(self.corrupt(format!("a block of more than {MAX_BLOCK} bytes")));
            }
            self.buffer.resize(2 * self.end, 0);
        }
        loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io(error)),
            }
        }
    }

    fn corrupt(&self, what: String) -> PcapFileError {
        PcapFileError::Corrupt { path: self.path.clone(), offset: self.offset, what }
    }

    fn io(&self, source: io::Error) -> PcapFileError {
        PcapFileError::Io { path: self.path.clone(), source }
    }
}

/// Which way a frame went, as a capture file marks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Received by the port.
    Inbound,
    /// Transmitted by the port.
    Outbound,
}

/// Codes of pcapng options (draft-ietf-opsawg-pcapng, sections 3.5, 4.2, 4.3 and 4.6).
const OPT_END: u16 = 0;
const OPT_COMMENT: u16 = 1;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const EPB_QUEUE: u16 = 6;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;

/// What a file says of an interface.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct InterfaceDescription {
    /// Its name.
    pub name: String,
    /// What it is; nothing is written if this is empty.
    pub description: String,
    /// Bytes kept of each frame; 0 is all.
    pub snap_len: u32,
}

impl From<&str> for InterfaceDescription {
    fn from(name: &str) -> Self {
        InterfaceDescription { name: name.to_owned(), ..InterfaceDescription::default() }
    }
}

/// What a file says of a frame, beside its bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Label<'a> {
    /// The index of its interface.
    pub interface: u32,
    /// When it was seen, since 1970 in UTC.
    pub time: Duration,
    /// Which way it went.
    pub direction: Option<Direction>,
    /// Which queue of the interface it came by.
    pub queue: Option<u32>,
    /// What there is to say; nothing is written if this is empty.
    pub comment: &'a str,
}

/// The most bytes a frame's block takes beside the frame, with a comment of [`MAX_COMMENT`] bytes.
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

/// Appends the statistics of an interface: frames that were there to be captured, and those of them that were missed.
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

/// As much of a text as fits.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Writes frames as pcapng, little-endian, with times in nanoseconds.
pub struct PcapNgWriter<W: Write> {
    output: W,
    /// One block at a time is put together here.
    block: Vec<u8>,
    written: u64,
}

impl<W: Write> PcapNgWriter<W> {
    /// Begins a file with these Ethernet interfaces; frames are written by the index of theirs.
    ///
    /// # Errors
    ///
    /// Those of `output`.
    pub fn new(output: W, interfaces: &[InterfaceDescription]) -> io::Result<PcapNgWriter<W>> {
        let mut writer = PcapNgWriter { output, block: Vec::new(), written: 0 };
        put_header(&mut writer.block, interfaces);
        writer.put()?;
        Ok(writer)
    }

    /// Writes a frame of `original_len` bytes, of which `parts` hold all or the beginning.
    ///
    /// # Errors
    ///
    /// Those of the output. The file is whole up to the last frame that was written without one.
    pub fn write<'a>(
        &mut self,
        label: &Label<'_>,
        parts: impl IntoIterator<Item = &'a [u8]>,
        original_len: usize,
    ) -> io::Result<()> {
        put_frame(&mut self.block, label, parts, original_len);
        self.put()
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Hands everything to the output's own destination.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    /// The output.
    pub fn get_ref(&self) -> &W {
        &self.output
    }

    fn put(&mut self) -> io::Result<()> {
        let written = self.output.write_all(&self.block);
        self.written += self.block.len() as u64;
        self.block.clear();
        written
    }
}

/// Writes frames as pcap with times in nanoseconds.
struct PcapWriter<W: Write>(W);

impl<W: Write> PcapWriter<W> {
    fn new(mut output: W) -> io::Result<PcapWriter<W>> {
        let mut header = Vec::with_capacity(24);
        header.extend(0xa1b2_3c4d_u32.to_le_bytes());
        // Version 2.4, times in UTC, no snap length worth the name, Ethernet.
        header.extend([2, 0, 4, 0]);
        header.extend([0; 8]);
        header.extend(262_144_u32.to_le_bytes());
        header.extend(1_u32.to_le_bytes());
        output.write_all(&header)?;
        Ok(PcapWriter(output))
    }

    fn write(&mut self, time: Duration, frame: &Frame) -> io::Result<()> {
        let length = frame.total() as u32;
        // 32 bits of seconds last until the year 2106.
        for value in [time.as_secs() as u32, time.subsec_nanos(), length, length] {
            self.0.write_all(&value.to_le_bytes())?;
        }
        frame.segments().try_for_each(|segment| self.0.write_all(segment))
    }
}

/// Where a port writes to: `out=` is a pcap, as it is elsewhere, and `outng=` a pcapng.
enum Output {
    Pcap(PcapWriter<BufWriter<File>>),
    PcapNg(PcapNgWriter<BufWriter<File>>),
}

impl Output {
    fn create(spec: &Spec<'_>) -> io::Result<Option<Output>> {
        let Some(path) = spec.output else { return Ok(None) };
        let file = BufWriter::new(File::create(path)?);
        Ok(Some(if spec.is_ng {
            Output::PcapNg(PcapNgWriter::new(file, &[spec.output_name.unwrap_or("transmitted").into()])?)
        } else {
            Output::Pcap(PcapWriter::new(file)?)
        }))
    }

    fn write(&mut self, time: Duration, frame: &Frame) -> io::Result<()> {
        match self {
            Output::Pcap(writer) => writer.write(time, frame),
            Output::PcapNg(writer) => {
                let label = Label { time, direction: Some(Direction::Outbound), ..Label::default() };
                writer.write(&label, frame.segments(), frame.total())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Pcap(writer) => writer.0.flush(),
            Output::PcapNg(writer) => writer.flush(),
        }
    }
}

/// A port that receives from one capture file and transmits to another; each may be missing.
///
/// A file that turns out to be damaged ends the reception there; [`PcapPort::error`] says where and why.
pub struct PcapPort {
    reader: Option<PcapReader>,
    /// The frame to be received next, and whether there is one.
    next: Record,
    loaded: bool,
    /// Only frames of the interface of this name are received.
    only: Option<String>,
    writer: Option<Output>,
    output: PathBuf,
    /// Something was written since the last flush.
    dirty: bool,
    clock: Box<dyn FnMut() -> Duration + Send>,
    error: Option<PcapFileError>,
    statistics: PortStatistics,
}

impl PcapPort {
    /// Opens the files that `spec` names: `FILE`, or options with colons between them; `pcap:` may stand in front.
    /// A file to be written is created, or emptied.
    ///
    /// | option | |
    /// |---|---|
    /// | `in=FILE` | received from, pcap or pcapng |
    /// | `inifname=NAME` | only frames of the interface of this name are received (pcapng) |
    /// | `out=FILE` | transmitted to, as pcap |
    /// | `outng=FILE` | transmitted to, as pcapng |
    /// | `outifname=NAME` | the name of the interface in there |
    ///
    /// # Errors
    ///
    /// [`PcapFileError`] with the file, and the place in it.
    pub fn open(spec: &str) -> Result<PcapPort, PcapFileError> {
        let spec = Spec::parse(spec)?;
        let reader = spec.input.map(PcapReader::open).transpose()?;
        let output = spec.output.unwrap_or_default();
        let writer = Output::create(&spec).map_err(|source| PcapFileError::Io { path: output.into(), source })?;
        let mut port = PcapPort {
            reader,
            next: Record::default(),
            loaded: false,
            only: spec.input_name.map(str::to_owned),
            writer,
            output: output.into(),
            dirty: false,
            clock: Box::new(|| SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()),
            error: None,
            statistics: PortStatistics::default(),
        };
        port.load();
        // Damage before the first frame is known now, and better said now.
        match port.error.take() {
            Some(error) => Err(error),
            None => Ok(port),
        }
    }

    /// When the next frame to be received was captured, since 1970 in UTC; `None` at the end.
    pub fn next_time(&self) -> Option<Duration> {
        self.loaded.then_some(self.next.time)
    }

    /// Takes the times of transmitted frames from `clock`, since 1970 in UTC, instead of the system's clock.
    pub fn set_clock(&mut self, clock: impl FnMut() -> Duration + Send + 'static) {
        self.clock = Box::new(clock);
    }

    /// What went wrong with either file since it was opened.
    pub fn error(&self) -> Option<&PcapFileError> {
        self.error.as_ref()
    }

    /// Reads the next frame.
    fn load(&mut self) {
        self.loaded = match self.read() {
            Ok(found) => found,
            Err(error) => {
                self.fail(error);
                false
            }
        };
        if !self.loaded {
            self.reader = None;
        }
    }

    /// Reads on to the next frame that is to be received.
    fn read(&mut self) -> Result<bool, PcapFileError> {
        let Some(reader) = &mut self.reader else { return Ok(false) };
        while reader.read(&mut self.next)? {
            if self.only.as_ref().is_none_or(|only| reader.interface_name(self.next.interface) == only) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn fail(&mut self, error: PcapFileError) {
        tracing::warn!("{error}");
        self.error.get_or_insert(error);
    }

    fn fail_output(&mut self, source: io::Error) {
        self.writer = None;
        self.fail(PcapFileError::Io { path: self.output.clone(), source });
    }
}

impl Port for PcapPort {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        let mut received = 0;
        while received < max && self.loaded {
            if (self.next.bytes.len() as u64) < u64::from(self.next.original_len) {
                self.statistics.truncated += 1;
            } else {
                match gather(pool, &[&self.next.bytes], MAX_FRAME) {
                    Ok(frame) => {
                        self.statistics.received += 1;
                        self.statistics.received_bytes += frame.total() as u64;
                        batch.push(frame);
                        received += 1;
                    }
                    // A file does not overrun: the frame waits until the pool has a buffer.
                    Err(Refused::NoBuffer) => break,
                    Err(Refused::TooLong) => self.statistics.truncated += 1,
                }
            }
            self.load();
        }
        received
    }

    /// Writes the whole batch; without a file to write, or after an error, frames vanish (and count as errors after one).
    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        let count = batch.len();
        let time = if count > 0 && self.writer.is_some() { (self.clock)() } else { Duration::ZERO };
        for frame in batch.drain(..) {
            let result = match &mut self.writer {
                Some(writer) => writer.write(time, &frame),
                None => Ok(()),
            };
            self.dirty |= self.writer.is_some();
            if let Err(error) = result {
                self.fail_output(error);
            }
            if self.writer.is_none() && !self.output.as_os_str().is_empty() {
                self.statistics.transmit_errors += 1;
            } else {
                self.statistics.sent += 1;
                self.statistics.sent_bytes += frame.total() as u64;
            }
            pool.put(frame);
        }
        count
    }

    fn flush(&mut self, _: &mut Pool) {
        if std::mem::take(&mut self.dirty)
            && let Some(Err(error)) = self.writer.as_mut().map(Output::flush)
        {
            self.fail_output(error);
        }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }

    /// True at the end of the file, and from the beginning without one.
    fn is_exhausted(&self) -> bool {
        !self.loaded
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { backend: "pcap", multi_buffer: true, max_frame: MAX_FRAME, ..Capabilities::default() }
    }

    fn statistics(&self) -> PortStatistics {
        self.statistics
    }
}

/// What stands behind `pcap:`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Spec<'a> {
    input: Option<&'a str>,
    input_name: Option<&'a str>,
    output: Option<&'a str>,
    /// Whether the output is a pcapng.
    is_ng: bool,
    output_name: Option<&'a str>,
}

impl<'a> Spec<'a> {
    fn parse(spec: &'a str) -> Result<Spec<'a>, PcapFileError> {
        const KEYS: [&str; 5] = ["in=", "out=", "outng=", "inifname=", "outifname="];
        let refuse = || PcapFileError::Syntax(spec.to_owned());
        let text = spec.strip_prefix("pcap:").unwrap_or(spec);
        let key_of = |text: &str| KEYS.into_iter().find(|key| text.starts_with(key));
        let mut found = Spec::default();
        if key_of(text).is_none() {
            found.input = Some(text);
        }
        let mut rest = if found.input.is_some() { "" } else { text };
        while let Some(key) = key_of(rest) {
            let value = &rest[key.len()..];
            // A colon belongs to the name of a file unless an option stands behind it.
            let end = value.match_indices(':').map(|(at, _)| at).find(|at| key_of(&value[at + 1..]).is_some());
            let (value, next) = end.map_or((value, ""), |at| (&value[..at], &value[at + 1..]));
            let place = match key {
                "in=" => &mut found.input,
                "inifname=" => &mut found.input_name,
                "outifname=" => &mut found.output_name,
                _ => &mut found.output,
            };
            if value.is_empty() || place.replace(value).is_some() {
                return Err(refuse());
            }
            found.is_ng |= key == "outng=";
            rest = next;
        }
        let is_whole = found.input != Some("")
            && (found.input.is_some() || found.output.is_some())
            && (found.input_name.is_none() || found.input.is_some())
            && (found.output_name.is_none() || found.is_ng);
        if is_whole { Ok(found) } else { Err(refuse()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(frames: &[(Duration, Vec<u8>)]) -> Vec<u8> {
        let sink = Sink::default();
        let mut writer = PcapNgWriter::new(sink.clone(), &["lan".into(), "wan".into()]).unwrap();
        for (i, (time, bytes)) in frames.iter().enumerate() {
            let direction = [None, Some(Direction::Inbound), Some(Direction::Outbound)][i % 3];
            let (one, other) = bytes.split_at(bytes.len() / 2);
            let comment = ["", "a comment", "another, with \u{e4}"][i / 2 % 3];
            let label = Label { interface: i as u32 % 2, time: *time, direction, comment, ..Label::default() };
            writer.write(&label, [one, other], bytes.len()).unwrap();
        }
        let bytes = sink.0.lock().unwrap().clone();
        assert_eq!(writer.written(), bytes.len() as u64);
        bytes
    }

    fn pcap(nanoseconds: bool, big: bool, frames: &[(Duration, Vec<u8>)]) -> Vec<u8> {
        let word = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut file = word(if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }).to_vec();
        file.extend(if big { [0, 2, 0, 4] } else { [2, 0, 4, 0] });
        for value in [0, 0, 65_535, 1] {
            file.extend(word(value));
        }
        for (time, bytes) in frames {
            let fraction = if nanoseconds { time.subsec_nanos() } else { time.subsec_micros() };
            for value in [time.as_secs() as u32, fraction, bytes.len() as u32, bytes.len() as u32] {
                file.extend(word(value));
            }
            file.extend(bytes);
        }
        file
    }

    /// Gives a few bytes at a time, so that every block is incomplete at first.
    struct Trickle(Vec<u8>, usize);

    impl Read for Trickle {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = (self.0.len() - self.1).min(7).min(out.len());
            out[..count].copy_from_slice(&self.0[self.1..self.1 + count]);
            self.1 += count;
            Ok(count)
        }
    }

    fn read_all(file: &[u8]) -> Result<Vec<Record>, PcapFileError> {
        let mut reader = PcapReader::new("test", Box::new(Trickle(file.to_vec(), 0)))?;
        let (mut records, mut record) = (Vec::new(), Record::default());
        while reader.read(&mut record)? {
            records.push(record.clone());
        }
        Ok(records)
    }

    fn corrupt_at(result: Result<Vec<Record>, PcapFileError>) -> u64 {
        match result {
            Err(PcapFileError::Corrupt { offset, .. }) => offset,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_spec_names_what_to_read_and_what_to_write() {
        let named = |input, output, is_ng| Spec { input, output, is_ng, ..Spec::default() };
        let parse = |spec| Spec::parse(spec).unwrap();
        assert_eq!(parse("pcap:a.pcap"), named(Some("a.pcap"), None, false));
        assert_eq!(parse("in=a:b"), named(Some("a:b"), None, false));
        assert_eq!(parse("pcap:in=a:out=b"), named(Some("a"), Some("b"), false));
        assert_eq!(parse("out=b:in=a"), named(Some("a"), Some("b"), false));
        assert_eq!(parse("outng=b"), named(None, Some("b"), true));
        let full = Spec { input_name: Some("in"), output_name: Some("x:y"), ..named(Some("a"), Some("b"), true) };
        assert_eq!(parse("pcap:in=a:inifname=in:outng=b:outifname=x:y"), full);
        for wrong in [
            "",
            "pcap:",
            "in=",
            "in=a:out=",
            "out=:in=a",
            "in=a:in=b",
            "out=a:outng=b",
            "inifname=x",
            "out=a:outifname=x",
        ] {
            assert!(matches!(Spec::parse(wrong), Err(PcapFileError::Syntax(_))), "{wrong}");
        }
    }

    #[test]
    fn stamps_are_read_in_the_interface_s_own_unit() {
        assert_eq!(time_of(1_500_000, 6, 0), Duration::from_millis(1500));
        assert_eq!(time_of(1_500_000_001, 9, 0), Duration::new(1, 500_000_001));
        assert_eq!(time_of(3 << 9, 0x80 | 10, 0), Duration::from_millis(1500));
        assert_eq!(time_of(1, 0, 10), Duration::from_secs(11));
        assert_eq!(time_of(20, 0, -10i64 as u64), Duration::from_secs(10));
        assert_eq!(time_of(u64::MAX, 0x7f, 5), Duration::from_secs(5));
        assert_eq!(time_of(u64::MAX, 0xff, 5), Duration::from_secs(5));
    }

    #[test]
    fn what_is_no_capture_file_is_said_to_be_none() {
        for file in [b"".as_slice(), b"x", b"GET / HTTP/1.1\r\n", &[0xa1, 0xb2, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(corrupt_at(read_all(file)), 0);
        }
    }

    #[test]
    fn a_file_that_ends_in_a_frame_says_where() {
        let file = pcap(false, false, &[(Duration::ZERO, vec![1; 60]), (Duration::ZERO, vec![2; 60])]);
        assert_eq!(corrupt_at(read_all(&file[..file.len() - 1])), 24 + 16 + 60);
        let file = written(&[(Duration::ZERO, vec![1; 60])]);
        assert_eq!(corrupt_at(read_all(&file[..file.len() - 1])), file.len() as u64 - (60 + 32));
    }

    #[test]
    fn a_packet_of_an_unknown_interface_is_damage() {
        let mut file = written(&[(Duration::ZERO, vec![1; 60])]);
        let at = file.len() - (60 + 32);
        file[at + 8] = 9;
        let Err(error) = read_all(&file) else { panic!("it was read") };
        assert_eq!(
            error.to_string(),
            format!("test: at byte {at}: a packet of interface 9, which the file does not describe")
        );
    }

    #[test]
    fn another_link_type_is_refused_or_passed_over() {
        let mut file = pcap(false, true, &[]);
        file[23] = 113;
        assert!(read_all(&file).is_err());
        let mut file = written(&[(Duration::ZERO, vec![1; 60]), (Duration::ZERO, vec![2; 60])]);
        // The first interface, behind the section header of 28 bytes.
        file[28 + 8] = 113;
        let records = read_all(&file).unwrap();
        assert_eq!((records.len(), records[0].bytes[0]), (1, 2));
    }

    fn frames() -> impl Strategy<Value = Vec<(Duration, Vec<u8>)>> {
        let time = (0u64..u64::from(u32::MAX), 0u32..1_000_000_000).prop_map(|(s, n)| Duration::new(s, n));
        prop::collection::vec((time, prop::collection::vec(any::<u8>(), 0..300)), 0..12)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(frames in frames()) {
            let records = read_all(&written(&frames)).unwrap();
            for (i, record) in records.iter().enumerate() {
                let direction = [None, Some(Direction::Inbound), Some(Direction::Outbound)][i % 3];
                prop_assert_eq!((record.interface, record.direction), (i as u32 % 2, direction));
            }
            let read: Vec<_> = records.into_iter().map(|record| (record.time, record.bytes)).collect();
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn a_pcap_is_read_in_either_byte_order_and_unit(frames in frames(), big: bool, nanoseconds: bool) {
            let records = read_all(&pcap(nanoseconds, big, &frames)).unwrap();
            prop_assert_eq!(records.len(), frames.len());
            for (record, (time, bytes)) in records.iter().zip(&frames) {
                prop_assert_eq!(&record.bytes, bytes);
                let unit = if nanoseconds { 1 } else { 1000 };
                prop_assert_eq!(record.time.as_nanos() / unit, time.as_nanos() / unit);
            }
        }

        #[test]
        fn a_damaged_file_is_read_or_refused_but_never_panics(
            frames in frames(), ng: bool, big: bool,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut file = if ng { written(&frames) } else { pcap(true, big, &frames) };
            for (at, value) in &damage {
                let at = at.index(file.len());
                file[at] = *value;
            }
            file.truncate(cut.index(file.len()) + 1);
            let _ = read_all(&file);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(mut file in prop::collection::vec(any::<u8>(), 0..400), kind in 0..4usize) {
            let magic: &[u8] = [&[][..], &[0x0a, 0x0d, 0x0d, 0x0a], &[0xa1, 0xb2, 0xc3, 0xd4], &[0x4d, 0x3c, 0xb2, 0xa1]][kind];
            file.splice(0..0, magic.iter().copied());
            let _ = read_all(&file);
        }
    }
}
