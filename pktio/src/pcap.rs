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

use crate::frame::{Batch, Pool};
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
    #[error("`{0}` names no capture file; write FILE, in=FILE, out=FILE or in=FILE:out=FILE")]
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
    }
    record.bytes.clear();
    record.bytes.extend_from_slice(data);
    Ok(true)
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

/// Writes frames as pcapng, little-endian, with times in nanoseconds.
pub struct PcapNgWriter<W: Write> {
    output: W,
    /// One block at a time is put together here.
    block: Vec<u8>,
    written: u64,
}

impl<W: Write> PcapNgWriter<W> {
    /// Begins a file with one Ethernet interface for each name; frames are written by the index of theirs.
    ///
    /// # Errors
    ///
    /// Those of `output`.
    pub fn new(output: W, interfaces: &[&str]) -> io::Result<PcapNgWriter<W>> {
        let mut writer = PcapNgWriter::headless(output);
        writer.begin(blocks::SECTION_HEADER_BLOCK);
        // The magic of the byte order, version 1.0, and a section of unknown length.
        writer.put(&0x1a2b_3c4d_u32.to_le_bytes());
        writer.put(&[1, 0, 0, 0]);
        writer.put(&[0xff; 8]);
        writer.end()?;
        for name in interfaces {
            writer.begin(blocks::INTERFACE_DESCRIPTION_BLOCK);
            // Link type Ethernet, and no snap length.
            writer.put(&[1, 0, 0, 0, 0, 0, 0, 0]);
            // No interface has a name near the limit of an option.
            let name = &name.as_bytes()[..name.len().min(255)];
            writer.option(2, name);
            writer.option(9, &[9]);
            writer.option(0, &[]);
            writer.end()?;
        }
        Ok(writer)
    }

    /// Goes on with a file whose header was written before, or elsewhere.
    pub(crate) fn headless(output: W) -> PcapNgWriter<W> {
        PcapNgWriter { output, block: Vec::new(), written: 0 }
    }

    /// The output, to be looked after: whole blocks are appended to it.
    pub(crate) fn output(&mut self) -> &mut W {
        &mut self.output
    }

    /// Writes a frame of `original_len` bytes, of which `parts` hold all or the beginning.
    ///
    /// # Errors
    ///
    /// Those of the output. The file is whole up to the last frame that was written without one.
    pub fn write<'a>(
        &mut self,
        interface: u32,
        time: Duration,
        direction: Option<Direction>,
        parts: impl IntoIterator<Item = &'a [u8]>,
        original_len: usize,
    ) -> io::Result<()> {
        self.begin(blocks::ENHANCED_PACKET_BLOCK);
        self.put(&interface.to_le_bytes());
        // 64 bits of nanoseconds last until the year 2554.
        let ticks = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.put(&((ticks >> 32) as u32).to_le_bytes());
        self.put(&(ticks as u32).to_le_bytes());
        self.put(&[0; 4]);
        self.put(&u32::try_from(original_len).unwrap_or(u32::MAX).to_le_bytes());
        let from = self.block.len();
        parts.into_iter().for_each(|part| self.put(part));
        let captured = (self.block.len() - from) as u32;
        self.block[from - 8..from - 4].copy_from_slice(&captured.to_le_bytes());
        self.pad();
        if let Some(direction) = direction {
            let flags: u32 = match direction {
                Direction::Inbound => 1,
                Direction::Outbound => 2,
            };
            self.option(2, &flags.to_le_bytes());
            self.option(0, &[]);
        }
        self.end()
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

    fn begin(&mut self, kind: u32) {
        self.block.clear();
        self.put(&kind.to_le_bytes());
        self.put(&[0; 4]);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.block.extend_from_slice(bytes);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        self.put(&code.to_le_bytes());
        self.put(&(value.len() as u16).to_le_bytes());
        self.put(value);
        self.pad();
    }

    fn pad(&mut self) {
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    fn end(&mut self) -> io::Result<()> {
        let length = (self.block.len() + 4) as u32;
        self.block[4..8].copy_from_slice(&length.to_le_bytes());
        self.put(&length.to_le_bytes());
        self.output.write_all(&self.block)?;
        self.written += u64::from(length);
        Ok(())
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
    writer: Option<PcapNgWriter<BufWriter<File>>>,
    output: PathBuf,
    /// Something was written since the last flush.
    dirty: bool,
    clock: Box<dyn FnMut() -> Duration + Send>,
    error: Option<PcapFileError>,
    statistics: PortStatistics,
}

impl PcapPort {
    /// Opens the files that `spec` names: `FILE` or `in=FILE` to read, `out=FILE` to write, or both with a colon between;
    /// `pcap:` may stand in front. A file to be written is created, or emptied.
    ///
    /// # Errors
    ///
    /// [`PcapFileError`] with the file, and the place in it.
    pub fn open(spec: &str) -> Result<PcapPort, PcapFileError> {
        let (input, output) = parse_spec(spec)?;
        let reader = input.map(PcapReader::open).transpose()?;
        let writer = match output {
            None => None,
            Some(path) => Some(
                File::create(path)
                    .and_then(|file| PcapNgWriter::new(BufWriter::new(file), &["transmitted"]))
                    .map_err(|source| PcapFileError::Io { path: path.into(), source })?,
            ),
        };
        let mut port = PcapPort {
            reader,
            next: Record::default(),
            loaded: false,
            writer,
            output: output.unwrap_or_default().into(),
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
        self.loaded = match self.reader.as_mut().map(|reader| reader.read(&mut self.next)) {
            None => false,
            Some(Ok(found)) => found,
            Some(Err(error)) => {
                self.fail(error);
                false
            }
        };
        if !self.loaded {
            self.reader = None;
        }
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
                Some(writer) => writer.write(0, time, Some(Direction::Outbound), frame.segments(), frame.total()),
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
            && let Some(Err(error)) = self.writer.as_mut().map(PcapNgWriter::flush)
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

/// The file to read and the file to write.
fn parse_spec(spec: &str) -> Result<(Option<&str>, Option<&str>), PcapFileError> {
    let text = spec.strip_prefix("pcap:").unwrap_or(spec);
    let (input, output) = if let Some(rest) = text.strip_prefix("in=") {
        match rest.split_once(":out=") {
            Some((input, output)) => (Some(input), Some(output)),
            None => (Some(rest), None),
        }
    } else if let Some(rest) = text.strip_prefix("out=") {
        match rest.split_once(":in=") {
            Some((output, input)) => (Some(input), Some(output)),
            None => (None, Some(rest)),
        }
    } else {
        (Some(text), None)
    };
    if input == Some("") || output == Some("") {
        return Err(PcapFileError::Syntax(spec.to_owned()));
    }
    Ok((input, output))
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
        let mut writer = PcapNgWriter::new(sink.clone(), &["lan", "wan"]).unwrap();
        for (i, (time, bytes)) in frames.iter().enumerate() {
            let direction = [None, Some(Direction::Inbound), Some(Direction::Outbound)][i % 3];
            let (one, other) = bytes.split_at(bytes.len() / 2);
            writer.write(i as u32 % 2, *time, direction, [one, other], bytes.len()).unwrap();
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
        assert_eq!(parse_spec("pcap:a.pcap").unwrap(), (Some("a.pcap"), None));
        assert_eq!(parse_spec("in=a:b").unwrap(), (Some("a:b"), None));
        assert_eq!(parse_spec("pcap:in=a:out=b").unwrap(), (Some("a"), Some("b")));
        assert_eq!(parse_spec("out=b:in=a").unwrap(), (Some("a"), Some("b")));
        assert_eq!(parse_spec("out=b").unwrap(), (None, Some("b")));
        for wrong in ["", "pcap:", "in=", "in=a:out=", "out=:in=a"] {
            assert!(matches!(parse_spec(wrong), Err(PcapFileError::Syntax(_))), "{wrong}");
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
