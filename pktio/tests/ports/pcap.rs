//! The capture-file port from file to file, as an operator replays a capture through the box.

use std::path::PathBuf;
use std::time::Duration;

use harness::test;
use pktio::impair::{Impair, Impairment};
use pktio::pcap::{Label, PcapFileError, PcapNgWriter, PcapPort, PcapReader, Record};
use pktio::{Batch, Pool, Port, memory, wait};

/// A directory of this test's own, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("pktio-pcap-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// A capture of `count` frames of different lengths, a millisecond apart.
    fn capture(&self, name: &str, count: u64) -> String {
        let path = self.path(name);
        let mut writer = PcapNgWriter::new(std::fs::File::create(&path).unwrap(), &["eth0".into()]).unwrap();
        for i in 0..count {
            let bytes = vec![i as u8; 60 + (i as usize * 37) % 3000];
            let label = Label { time: Duration::from_millis(5000 + i), ..Label::default() };
            writer.write(&label, [bytes.as_slice()], bytes.len()).unwrap();
        }
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn read(path: &str) -> Vec<Record> {
    let mut reader = PcapReader::open(path).unwrap();
    let (mut all, mut record) = (Vec::new(), Record::default());
    while reader.read(&mut record).unwrap() {
        all.push(record.clone());
    }
    all
}

#[test]
fn a_capture_passes_from_file_to_file_and_the_port_says_when_it_is_done() {
    let scratch = Scratch::new("copy");
    let (input, output) = (scratch.capture("in.pcapng", 300), scratch.path("out.pcapng"));
    let mut port = PcapPort::open(&format!("pcap:in={input}:out={output}")).unwrap();
    // Fewer buffers than frames, and smaller than the longest: the file waits for the pool.
    let (mut pool, mut batch) = (Pool::heap(16, 1024, 64), Batch::new());
    let mut turns = 0;
    while !port.is_exhausted() {
        assert_eq!(port.next_time().unwrap().subsec_millis() as u64 % 1000, port.statistics().received % 1000);
        port.set_clock({
            let time = port.next_time().unwrap();
            move || time
        });
        wait([&port, &port], None).unwrap();
        assert!(port.receive(&mut batch, 8, &mut pool) <= 8);
        port.transmit(&mut batch, &mut pool);
        port.flush(&mut pool);
        turns += 1;
        assert!(turns < 1000);
    }
    assert_eq!(port.next_time(), None);
    assert!(port.error().is_none());
    assert_eq!((port.statistics().received, port.statistics().sent), (300, 300));
    assert_eq!(pool.idle(), pool.total());
    drop(port);
    let (before, after) = (read(&input), read(&output));
    assert_eq!(before.len(), 300);
    assert!(before.iter().zip(&after).all(|(a, b)| a.bytes == b.bytes && b.time <= a.time));
    assert_eq!(after.len(), 300);
}

#[test]
fn a_damaged_capture_delivers_what_comes_before_the_damage_and_says_where_it_is() {
    let scratch = Scratch::new("damage");
    let path = scratch.capture("in.pcapng", 10);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - 5);
    std::fs::write(&path, &bytes).unwrap();
    let mut port = PcapPort::open(&path).unwrap();
    let (mut pool, mut batch) = (Pool::heap(64, 2048, 64), Batch::new());
    assert_eq!(port.receive(&mut batch, 64, &mut pool), 9);
    assert!(port.is_exhausted());
    let Some(PcapFileError::Corrupt { path: named, offset, .. }) = port.error() else { panic!("{:?}", port.error()) };
    assert_eq!(named.display().to_string(), path);
    // The last block: 60 + 9 × 37 bytes of frame, padded, and 32 bytes around them.
    assert_eq!(*offset as usize, bytes.len() + 5 - ((60 + 9 * 37usize).next_multiple_of(4) + 32));
    batch.drain(..).for_each(|frame| pool.put(frame));
}

#[test]
fn what_cannot_be_opened_is_refused_with_its_name() {
    let scratch = Scratch::new("refused");
    let missing = scratch.path("missing.pcap");
    let error = PcapPort::open(&missing).map(|_| ()).unwrap_err();
    assert!(error.to_string().starts_with(&missing), "{error}");
    let nonsense = scratch.path("nonsense.pcap");
    std::fs::write(&nonsense, b"#!/bin/sh\n").unwrap();
    let error = PcapPort::open(&nonsense).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), format!("{nonsense}: at byte 0: neither a pcap nor a pcapng file"));
    assert!(PcapPort::open(&format!("out={}", scratch.path("no/such/directory"))).is_err());
}

#[test]
fn a_frame_cut_by_its_capture_is_dropped_and_counted() {
    let scratch = Scratch::new("cut");
    let path = scratch.path("cut.pcapng");
    let mut writer = PcapNgWriter::new(std::fs::File::create(&path).unwrap(), &["eth0".into()]).unwrap();
    writer.write(&Label::default(), [[1; 96].as_slice()], 1500).unwrap();
    writer.write(&Label::default(), [[2; 96].as_slice()], 96).unwrap();
    drop(writer);
    let mut port = PcapPort::open(&path).unwrap();
    let (mut pool, mut batch) = (Pool::heap(4, 2048, 64), Batch::new());
    assert_eq!(port.receive(&mut batch, 8, &mut pool), 1);
    assert_eq!((batch[0].bytes()[0], port.statistics().truncated), (2, 1));
    batch.drain(..).for_each(|frame| pool.put(frame));
}

#[test]
fn a_jumbo_frame_with_two_tags_passes_from_file_to_file() {
    let scratch = Scratch::new("jumbo");
    let (input, output) = (scratch.path("in.pcapng"), scratch.path("out.pcapng"));
    let bytes: Vec<u8> = (0..9022).map(|i| (i % 251) as u8).collect();
    let mut writer = PcapNgWriter::new(std::fs::File::create(&input).unwrap(), &["eth0".into()]).unwrap();
    writer.write(&Label::default(), [bytes.as_slice()], bytes.len()).unwrap();
    drop(writer);
    let mut port = PcapPort::open(&format!("pcap:in={input}:out={output}")).unwrap();
    let (mut pool, mut batch) = (Pool::heap(8, 2048, 256), Batch::new());
    assert_eq!(port.receive(&mut batch, 8, &mut pool), 1);
    assert!(batch[0].is_chained() && batch[0].total() == 9022);
    assert_eq!(port.transmit(&mut batch, &mut pool), 1);
    port.flush(&mut pool);
    assert_eq!(pool.idle(), pool.total());
    drop(port);
    assert!(read(&output)[0].bytes == bytes);
}

#[test]
fn either_kind_of_file_is_written_and_one_interface_of_several_is_read() {
    let scratch = Scratch::new("kinds");
    let (input, output) = (scratch.path("in.pcapng"), scratch.path("out"));
    let mut writer = PcapNgWriter::new(std::fs::File::create(&input).unwrap(), &["lan".into(), "wan".into()]).unwrap();
    for interface in [0, 1, 1, 0] {
        let label = Label { interface, ..Label::default() };
        writer.write(&label, [[interface as u8; 60].as_slice()], 60).unwrap();
    }
    drop(writer);
    let (mut pool, mut batch) = (Pool::heap(8, 2048, 64), Batch::new());
    for (option, magic) in [("out", [0x4d, 0x3c, 0xb2, 0xa1]), ("outng", [0x0a, 0x0d, 0x0d, 0x0a])] {
        let spec = format!("pcap:in={input}:inifname=wan:{option}={output}");
        let mut port = PcapPort::open(&spec).unwrap();
        assert_eq!(port.receive(&mut batch, 8, &mut pool), 2);
        port.transmit(&mut batch, &mut pool);
        port.flush(&mut pool);
        assert!(port.is_exhausted() && port.error().is_none());
        drop(port);
        assert_eq!(std::fs::read(&output).unwrap()[..4], magic);
        let records = read(&output);
        assert!(records.len() == 2 && records.iter().all(|record| record.bytes == [1; 60]), "{option}");
    }
}

#[test]
fn a_rough_wire_loses_no_frame_of_the_pool() {
    let (port, mut wire) = memory::pair(256);
    let rough = Impairment { loss: 0.2, duplicate: 0.2, corrupt: 0.2, reorder: 0.2, ..Impairment::default() };
    let mut port = Impair::new(port, 11).receiving(rough).transmitting(rough);
    let (mut pool, mut batch) = (Pool::heap(512, 2048, 64), Batch::new());
    for i in 0..400u64 {
        wire.push(&[i as u8; 100]);
        port.set_now(Duration::from_micros(100 * i));
        port.receive(&mut batch, 64, &mut pool);
        port.transmit(&mut batch, &mut pool);
        port.flush(&mut pool);
        while wire.pop().is_some() {}
        assert_eq!(pool.idle() + port.held() + batch.len(), pool.total());
    }
}
