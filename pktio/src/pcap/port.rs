//! A port over capture files: receives the frames of one file, and writes transmitted frames to another.
//!
//! Frames are received as fast as they are asked for. The time each was captured is kept ([`PcapPort::next_time`]) for callers that
//! replay them at their original pace.

use std::fs::File;
use std::io::{self, BufWriter};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::block::{Direction, Label};
use super::reader::{PcapReader, Record};
use super::writer::{PcapNgWriter, PcapWriter};
use crate::error::PcapFileError;
use crate::frame::{Batch, Frame, MAX_FRAME};
use crate::offload::Completer;
use crate::pool::{Pool, Refused};
use crate::port::{Capabilities, Port, PortStatistics};

/// The file that a port writes to: a pcap with `out=`, a pcapng with `outng=`.
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
            Output::Pcap(writer) => writer.flush(),
            Output::PcapNg(writer) => writer.flush(),
        }
    }
}

/// A port that receives from one capture file and transmits to another; each may be missing.
///
/// Reception ends where a file is damaged; [`PcapPort::error`] says where and why.
pub struct PcapPort {
    reader: Option<PcapReader>,
    /// The frame to be received next, if `loaded`.
    next: Record,
    loaded: bool,
    /// Receive only frames of the interface of this name.
    only: Option<String>,
    writer: Option<Output>,
    output: PathBuf,
    /// Something was written since the last flush.
    dirty: bool,
    clock: Box<dyn FnMut() -> Duration + Send>,
    error: Option<PcapFileError>,
    statistics: PortStatistics,
    /// A capture taken at a sender has the checksums that it leaves to its NIC.
    completer: Completer,
}

impl PcapPort {
    /// Opens the files that `spec` names: `FILE`, or options separated by colons; a leading `pcap:` is ignored.
    /// A file to be written is created, or truncated.
    ///
    /// | option | |
    /// |---|---|
    /// | `in=FILE` | the file to receive from, pcap or pcapng |
    /// | `inifname=NAME` | receive only frames of the interface of this name (pcapng) |
    /// | `out=FILE` | the pcap to write transmitted frames to |
    /// | `outng=FILE` | the pcapng to write transmitted frames to |
    /// | `outifname=NAME` | the name of the interface in it |
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
            completer: Completer::new(spec.input.unwrap_or_default()),
        };
        port.load();
        // Report damage before the first frame at once.
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

    /// The first error of either file since it was opened.
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

    /// Reads up to the next frame to be received.
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
        let before = batch.len();
        let mut received = 0;
        while received < max && self.loaded {
            if (self.next.bytes.len() as u64) < u64::from(self.next.original_len) {
                self.statistics.truncated += 1;
            } else {
                match pool.gather(&[&self.next.bytes], MAX_FRAME) {
                    Ok(frame) => {
                        self.statistics.received += 1;
                        self.statistics.received_bytes += frame.total() as u64;
                        batch.push(frame);
                        received += 1;
                    }
                    // Nothing is lost: the frame waits in the file until the pool has a buffer.
                    Err(Refused::NoBuffer) => break,
                    Err(Refused::TooLong) => self.statistics.truncated += 1,
                }
            }
            self.load();
        }
        self.completer.complete(&mut batch[before..], &mut self.statistics);
        received
    }

    /// Writes the whole batch. Without a file to write, or after an error, frames are discarded (and count as errors after one).
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

/// The text behind `pcap:`, parsed.
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
            // A colon belongs to the name of a file unless an option follows it.
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
    use super::*;

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
}
