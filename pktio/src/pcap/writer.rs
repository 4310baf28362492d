//! Writes pcap and pcapng files.

use std::io::{self, Write};
use std::time::Duration;

use super::block::{InterfaceDescription, Label, put_frame, put_header};
use crate::frame::Frame;

/// Writes frames as pcapng, little-endian, with times in nanoseconds.
pub struct PcapNgWriter<W: Write> {
    output: W,
    /// The block being assembled.
    block: Vec<u8>,
    written: u64,
}

impl<W: Write> PcapNgWriter<W> {
    /// Begins a file with these Ethernet interfaces. A frame names its interface by index.
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

    /// Writes a frame of `original_len` bytes; `parts` hold all of them or the first ones.
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

    /// Flushes the output.
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
pub(super) struct PcapWriter<W: Write>(W);

impl<W: Write> PcapWriter<W> {
    /// Begins a file.
    ///
    /// # Errors
    ///
    /// Those of `output`.
    pub(super) fn new(mut output: W) -> io::Result<PcapWriter<W>> {
        let mut header = Vec::with_capacity(24);
        header.extend(0xa1b2_3c4d_u32.to_le_bytes());
        // Version 2.4, times in UTC, a snap length no frame exceeds, Ethernet.
        header.extend([2, 0, 4, 0]);
        header.extend([0; 8]);
        header.extend(262_144_u32.to_le_bytes());
        header.extend(1_u32.to_le_bytes());
        output.write_all(&header)?;
        Ok(PcapWriter(output))
    }

    /// Writes a frame.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub(super) fn write(&mut self, time: Duration, frame: &Frame) -> io::Result<()> {
        let length = frame.total() as u32;
        // 32 bits of seconds last until the year 2106.
        for value in [time.as_secs() as u32, time.subsec_nanos(), length, length] {
            self.0.write_all(&value.to_le_bytes())?;
        }
        frame.segments().try_for_each(|segment| self.0.write_all(segment))
    }

    /// Flushes the output.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
