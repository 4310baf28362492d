//! Reads pcap and pcapng files.
//!
//! Headers and blocks are parsed by `pcap-file`, packets here: the library takes every pcapng time stamp for nanoseconds, whatever
//! the interface's resolution, refuses a pcap whose frames were truncated by a snap length, and its readers do not report where in the
//! file an error is.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pcap_file::pcap::PcapParser;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{PcapNgParser, blocks};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};

use super::block::{Direction, EPB_FLAGS, OPT_END};
use crate::error::PcapFileError;

/// A frame read from a capture file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Record {
    /// When it was captured, since 1970 in UTC.
    pub time: Duration,
    /// Its bytes, or as many as were captured.
    pub bytes: Vec<u8>,
    /// Its length on the link, in bytes; more than `bytes` holds when the capture truncated it.
    pub original_len: u32,
    /// The interface it was captured at, as an index; 0 in a pcap, which has only one.
    pub interface: u32,
    /// Its direction, if the file records it.
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

    /// Reads from `input`; `path` is its name in error messages.
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
        let not_a_capture = || "neither a pcap nor a pcapng file".to_owned();
        let format = match magic {
            Err(PcapFileError::Corrupt { .. }) | Ok(None) => return Err(source.corrupt(not_a_capture())),
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
            None => Err(source.corrupt(not_a_capture())),
            Some(Format::Pcap(parser)) if parser.header().datalink != DataLink::ETHERNET => {
                let what = format!("link type {:?}; only Ethernet is understood", parser.header().datalink);
                Err(source.corrupt(what))
            }
            Some(format) => Ok(PcapReader { source, format, skipped: 0 }),
        }
    }

    /// Reads the next frame into `record`, replacing its content. False at the end of the file.
    ///
    /// # Errors
    ///
    /// When the file is damaged or cannot be read further. Nothing can be read after that.
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

    /// Frames skipped because their interface is not Ethernet.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The name of an interface according to the file; empty when it has none.
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

/// The direction according to the options of a packet block; `None` when they are malformed.
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

/// The time of a pcapng stamp of `ticks`. With a resolution finer than 64 bits can count, it is the offset.
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

/// Bytes read from a file and not parsed yet, and their place in the file.
struct Source {
    path: PathBuf,
    input: Box<dyn Read + Send>,
    /// Bytes read and not parsed lie at `begin..end`.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    /// Where in the file `buffer[begin]` lies.
    offset: u64,
}

/// A block longer than this, in bytes, counts as damage.
const MAX_BLOCK: usize = 16 << 20;

impl Source {
    /// Parses one item, reading more as long as the parser finds it incomplete. The parser returns how many bytes it used.
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::pcap::block::Label;
    use crate::pcap::writer::PcapNgWriter;

    /// Keeps what is written.
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
