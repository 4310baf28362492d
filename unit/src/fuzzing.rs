//! The bodies of the fuzz targets: what holds of any bytes whatsoever. Each takes the fuzzer's input and panics when a promise
//! is broken. They are plain functions, so that the corpora can be replayed by an ordinary test.

use crate::script;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;
use tcpstate::config::{Asymmetric, Extension, Handshake, Protocol, Proved, RateLimit, SackConflict, Stray};
use tcpstate::service::access::Access;
use tcpstate::service::names::Protocols;
use tcpstate::service::negotiation::{Language, Next};
use tcpstate::service::proxy_header::{self, Told};
use tcpstate::service::{Asked, Reading};
use tcpstate::wire::neighbour::Neighbour;
use tcpstate::wire::{Flags, FlowKey, IcmpKind, OptionList, Options, Parsed, Quote, Walk, checksum};
use tcpstate::{Config, Egress, Head, Instant, Memory, Metadata, Proxy, Remains, Secrets, Side, Slab, Ticket, Verdict};

/// Any frame: it is read without harm, and where another parser reads a TCP segment too, both read the same.
pub fn parser(data: &[u8]) {
    let Some((&side, frame)) = data.split_first() else { return };
    let side = Side::BOTH[usize::from(side & 1)];
    let mut frame = frame.to_vec();
    let len = frame.len();
    let copy = frame.clone();
    let head = Head::whole(&mut frame, len);
    let segment = match Parsed::parse(side, &head) {
        Parsed::Tcp(segment) => segment,
        Parsed::Error(quote) => return error(&quote, &head, &copy),
        _ => return,
    };
    assert!(
        segment.ip < segment.tcp && segment.tcp + 20 <= segment.payload && u32::from(segment.payload) <= segment.end
    );
    assert!(segment.end as usize <= len, "a segment ends in its frame");
    let sound = segment.checksums_hold(&head);

    let Ok(sliced) = SlicedPacket::from_ethernet(&copy) else { return };
    let (Some(net), Some(TransportSlice::Tcp(tcp))) = (sliced.net, sliced.transport) else { return };
    let (source, destination, sums_right) = match &net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let own = header.to_header().calc_header_checksum();
            let sum =
                tcp.calc_checksum_ipv4(header.source(), header.destination()).map(|sum| same(sum, tcp.checksum()));
            let right = same(own, header.header_checksum()) && sum.unwrap_or(false);
            (IpAddr::from(header.source()), IpAddr::from(header.destination()), right)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let sum =
                tcp.calc_checksum_ipv6(header.source(), header.destination()).map(|sum| same(sum, tcp.checksum()));
            (IpAddr::from(header.source()), IpAddr::from(header.destination()), sum.unwrap_or(false))
        }
        NetSlice::Arp(_) => unreachable!("TCP over ARP"),
    };
    let ends = segment.key;
    // Another header names an end, which the other parser does not read.
    if segment.indirect {
        return;
    }
    let (lan, wan) = if side == Side::Lan { (source, destination) } else { (destination, source) };
    assert_eq!([address(&ends, Side::Lan), address(&ends, Side::Wan)], [lan, wan]);
    let (from, to) = if side == Side::Lan { (ends.lan_port, ends.wan_port) } else { (ends.wan_port, ends.lan_port) };
    assert_eq!((from, to), (tcp.source_port(), tcp.destination_port()));
    assert_eq!(segment.seq.get(), tcp.sequence_number());
    assert_eq!(segment.ack.get(), tcp.acknowledgment_number());
    assert_eq!(segment.window.0, tcp.window_size());
    assert_eq!(segment.options(&copy), tcp.options());
    assert_eq!(&copy[usize::from(segment.payload)..segment.end as usize], tcp.payload());
    for (flag, set) in
        [(Flags::FIN, tcp.fin()), (Flags::SYN, tcp.syn()), (Flags::RST, tcp.rst()), (Flags::ACK, tcp.ack())]
    {
        assert_eq!(segment.flags.has(flag), set);
    }
    assert_eq!(sound, sums_right, "both find the checksums right, or neither");
}

/// An ICMP error: its parts lie in order, and another parser finds an error too, whose checksum is as right.
fn error(quote: &Quote, head: &Head, frame: &[u8]) {
    let Quote { ip, icmp, tcp, seen, end, .. } = *quote;
    assert!(ip < icmp && icmp + 28 <= tcp && tcp + 8 <= seen && u32::from(seen) <= end && end as usize <= frame.len());
    assert_eq!(quote.seq.get().to_be_bytes(), frame[usize::from(tcp) + 4..][..4]);
    let sound = quote.checksums_hold(head);
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else { return };
    let right = match (sliced.net, sliced.transport) {
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) => {
            let header = ip.header();
            same(header.to_header().calc_header_checksum(), header.header_checksum())
                && checksum::sum(icmp.slice()) == u16::MAX
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
            icmp.is_checksum_valid(ip.header().source(), ip.header().destination())
        }
        _ => return,
    };
    assert_eq!(sound, right, "both find the checksums right, or neither");
}

/// Whether two checksums are the same number: zero has two representations.
fn same(one: u16, other: u16) -> bool {
    let plain = |sum| if sum == u16::MAX { 0 } else { sum };
    plain(one) == plain(other)
}

fn address(ends: &FlowKey, side: Side) -> IpAddr {
    let words = if side == Side::Lan { ends.lan } else { ends.wan };
    if ends.v6 {
        let mut bytes = [0; 16];
        for (to, word) in bytes.chunks_mut(4).zip(words) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        IpAddr::from(bytes)
    } else {
        IpAddr::from(words[3].to_be_bytes())
    }
}

/// Any first bytes of a connection to a service, in any pieces: a parser comes to an end with them, at the latest where no more can come; and any frame
/// may say something of addresses.
pub fn first_bytes(data: &[u8]) {
    let _ = Neighbour::parse(data);
    let mut input = Input(data);
    let (step, protocol) = (1 + usize::from(input.byte()), input.byte());
    let protocol = if protocol & 1 == 0 { Protocol::Tls } else { Protocol::Http };
    let mut known = Protocols::default();
    known.add(b"h2");
    let bytes = input.0;
    for most in [bytes.len(), 200] {
        match proxy_header::read(bytes, most) {
            Told::More => assert!(bytes.len() < most),
            Told::Ends(len, _) => assert!(0 < len && len <= bytes.len()),
            Told::Other => (),
        }
    }
    for language in [Language::Socks, Language::Connect] {
        let mut said = Vec::new();
        for at in (0..bytes.len()).step_by(step) {
            let (now, next) = language.read(&bytes[..at], step, bytes.len(), &Access::default());
            assert!(now.bytes().starts_with(&said));
            said = now.bytes().to_vec();
            match next {
                Next::More => (),
                Next::Asks { len, .. } => {
                    assert!(len <= at);
                    break;
                }
                Next::Other | Next::End | Next::Fails(_) => break,
            }
        }
    }
    let mut at = 0;
    while at < bytes.len() {
        let fresh = step.min(bytes.len() - at);
        at += fresh;
        if let Reading::Asks(Asked { name: Some(name), .. }) = protocol.read(&bytes[..at], fresh, bytes.len(), &known) {
            assert!(!name.bytes().is_empty() && !name.bytes().iter().any(u8::is_ascii_uppercase));
            return;
        }
    }
    assert_ne!(protocol.read(bytes, bytes.len(), bytes.len(), &known), Reading::More, "no more can come");
}

/// Any options: they are walked to an end, read the same by every way, and after translation the patched checksum is the full one.
pub fn options(data: &[u8]) {
    let mut input = Input(data);
    let (first, second) = (input.byte(), input.byte());
    let list = &input.0[..input.0.len().min(40) / 4 * 4];

    let mut last = 0;
    for (kind, at, len) in Walk::new(list) {
        assert!(at >= last && len >= 2 && at + len <= list.len() && list[at] == kind);
        last = at + len;
    }
    assert_eq!(Options::timestamps(list), Options::read(list).timestamps);

    // Through a connection: the client's SYN offers what `first` says, the server takes what `second` says.
    let mut bench = Bench::new(&config(0, first));
    let slot = usize::from(second >> 7);
    bench.client_syn(slot, first);
    bench.client_proves(slot, 0, 0);
    bench.server_answers(slot, second);
    for side in [Side::Wan, Side::Lan, Side::Wan] {
        let tcp = bench.slots[slot].next(side, Flags::ACK);
        let frame = write(side, slot, &tcp, list, input.0.len().min(64));
        bench.step(side, frame);
    }
    // And as a SYN's, which is answered or not.
    let tcp = Tcp { seq: 5, ack: 0, flags: Flags::SYN, window: 1000 };
    bench.step(Side::Wan, write(Side::Wan, slot ^ 1, &tcp, list, 0));
}

/// Any sequence of frames from both sides, spare frames running out and time passing.
pub fn engine(data: &[u8]) {
    let mut input = Input(data);
    let (shape, variant) = (input.byte(), input.byte());
    let mut bench = Bench::new(&config(shape, variant));
    // Long inputs find nothing that shorter ones do not, and take longer.
    for _ in 0..200 {
        if input.0.is_empty() {
            break;
        }
        bench.command(&mut input);
    }
    bench.drain();
}

/// Any text: it is accepted or rejected, and what was accepted is described so that it is read back the same.
pub fn configuration(data: &[u8]) {
    let text = String::from_utf8_lossy(&data[..data.len().min(8192)]);
    let lines = text.split('\n').count();
    match confparse::parse(&text, "text") {
        Ok(parsed) => {
            let described = parsed.config.describe();
            let again = confparse::parse(&described, "described").expect("a description is no mistake");
            assert_eq!(again.config, parsed.config);
        }
        Err(errors) => {
            assert!(!errors.complaints.is_empty());
            for complaint in &errors.complaints {
                assert!((1..=lines).contains(&complaint.line) && complaint.column >= 1);
                assert!(complaint.to_string().len() < 4000);
            }
        }
    }
}

/// Any file of networks: it is rejected with its lines, or each network that is read is written as one that is the same.
pub fn networks(data: &[u8]) {
    let text = String::from_utf8_lossy(&data[..data.len().min(8192)]);
    match confparse::networks(&text, "text") {
        Ok(networks) => {
            assert!(networks.len() <= text.lines().count());
            for network in networks {
                let again = confparse::network(&confparse::written(&network)).expect("what is written is a network");
                assert!(again.prefix == network.prefix && again.covers(&network.address));
            }
        }
        Err(complaints) => {
            assert!(complaints.lines().count() <= 11 && complaints.len() < 11 * 400, "{}", complaints.len());
            assert!(!complaints.contains(|c: char| c.is_control() && c != '\n'), "{complaints:?}");
        }
    }
}

/// Any capture file: what it holds is read to its end or to where it is damaged, and nothing is read that is not there.
pub fn capture(data: &[u8]) {
    let Ok(mut reader) = pktio::pcap::PcapReader::new("file", Box::new(Cursor::new(data.to_vec()))) else { return };
    let (mut record, mut read) = (pktio::pcap::Record::default(), 0);
    while let Ok(true) = reader.read(&mut record) {
        read += record.bytes.len();
        assert!(read <= data.len(), "{read} bytes read of {}", data.len());
        let _ = reader.interface_name(record.interface);
    }
    assert!(reader.skipped() <= data.len() as u64);
}

/// A slab that another process has left, damaged in any way: it is adopted where it lies, and its flows move to another table, and either comes to an end.
/// What is taken is taken whole, so that it is found, expires, and leaves nothing.
pub fn state(data: &[u8]) {
    const FLOWS: usize = 576;
    static LIVED: OnceLock<Vec<u64>> = OnceLock::new();
    let config = Config {
        table_buckets: FLOWS / Config::FLOWS_PER_BUCKET,
        syn_cache_max: 16,
        learn_capacity: 16,
        recent_syns: 64,
        refused_syns: 64,
        test_connections: true,
        ..Config::default()
    };
    let (secrets, now) = (Secrets::new([9; 48]), Instant::from_secs(1000));
    let lived = LIVED.get_or_init(|| Proxy::new(&config, &secrets, now).into_slab().to_words());
    let mut bytes: Vec<u8> = lived.iter().flat_map(|word| word.to_le_bytes()).collect();
    // The head, the records, the undo slot.
    let records = 64 + 128 * (FLOWS + 1);
    let mut input = Input(data);
    while !input.0.is_empty() {
        let kind = input.byte();
        let mut place = |bound: usize| usize::from(u16::from_le_bytes([input.byte(), input.byte()])) * 4 % bound;
        let (at, from) = (place(records - 8), place(records - 128));
        match kind % 4 {
            0 => bytes[at] = input.byte(),
            1 => bytes[at..at + 8].copy_from_slice(&[input.byte(); 8]),
            // A part of another record, or of another place.
            2 => {
                let length = usize::from(input.byte()) % 129;
                bytes.copy_within(from..from + length, (at / 128 * 128 + 64).min(records - length));
            }
            // The copy of a record that was being changed.
            _ => {
                let record = 64 + (from / 128).min(FLOWS - 1) * 128;
                bytes.copy_within(record..record + 128, records - 128);
                let slot = records - 128 + usize::from(input.byte()) % 120;
                bytes[slot..slot + 2].copy_from_slice(&0xfffe_u16.to_le_bytes());
            }
        }
    }
    let words: Vec<u64> = bytes.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)).collect();
    let config = Config { test_connections: false, ..config };
    let adopt = |slab: Slab, config: &Config| {
        let mut proxy = Proxy::with_memory(config, &secrets, now, Memory { slab, ..Memory::anonymous(config) });
        let (population, adopted) = (proxy.population(), proxy.adopted());
        assert_eq!(population.syn_cached + population.proxied + population.passthrough, adopted.flows);
        let mut sent = Sent { frames: Vec::new(), spare: 0 };
        for hour in 0..100 {
            let mut steps = 0;
            while proxy.on_timeout(now + Duration::from_secs(3600 * hour), &mut sent) {
                steps += 1;
                assert!(steps < 10_000, "the timers come to an end");
            }
        }
        assert_eq!(proxy.population(), tcpstate::Population::default(), "every flow expires");
        adopted
    };
    let own = adopt(Slab::of_words(&words, FLOWS, false).expect("as many as there were"), &config);
    // Aligned to 64 bytes, as a mapping is.
    let mut mapped = vec![0; words.len() + 8];
    let skip = mapped.as_ptr().align_offset(64);
    mapped[skip..skip + words.len()].copy_from_slice(&words);
    let remains = Remains::of(&mapped[skip..skip + words.len()], tcpstate::RECORD_LAYOUT, FLOWS, false);
    let remains = [remains.expect("as many words as there were")];
    let smaller = Config { table_buckets: 20, ..config.clone() };
    let slab = Slab::anonymous(smaller.flow_capacity(), false);
    let (slab, moved) = slab.import(&smaller, &secrets, &remains, |_, hash| hash & 1 == 0);
    assert!(moved.flows <= own.flows + moved.no_room, "{moved:?}, {own:?}");
    assert_eq!(adopt(slab, &smaller).flows, moved.flows);
}

/// The fuzzer's bytes, taken from the front; past their end there are zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }
}

/// An engine small enough that everything in it fills up: `shape` chooses its sizes, `variant` its manners.
fn config(shape: u8, variant: u8) -> Config {
    let bit = |n: u8| variant >> n & 1 == 1;
    let shaped = |n: u8| shape >> n & 1 == 1;
    let extension = if shaped(6) { Extension::Pass } else { Extension::Strip };
    Config {
        table_buckets: if shape & 1 == 1 { 1 } else { 16 },
        syn_cache_max: [0, 2, 64, 1][usize::from(shape >> 1 & 3)],
        learn_capacity: 4,
        // What must be zeroed for each input is small.
        recent_syns: 64,
        refused_syns: 64,
        sack_conflict: if bit(7) { SackConflict::Retain } else { SackConflict::Remove },
        own_wscale: if bit(6) { 14 } else { 7 },
        mss_clamp: bit(5).then_some(1000),
        held_frames: [64, 0, 1, 3][usize::from(shape >> 3 & 3)],
        handshake: if shaped(5) { Handshake::Early } else { Handshake::Honest },
        multipath: extension,
        fast_open: extension,
        introductions: u32::from(shaped(6)),
        proved: if bit(3) { Proved::Pass } else { Proved::Translate },
        proved_sources: 2,
        proved_syns: 3,
        proved_half_open: 2,
        proved_half_open_all: 3,
        asymmetric: [Asymmetric::Pass, Asymmetric::Bypass, Asymmetric::Drop, Asymmetric::Pass][usize::from(shape >> 6)],
        stray: if shaped(7) { Stray::Reset } else { Stray::Drop },
        adopt_grace: Duration::from_secs(if shaped(7) { 0 } else { 120 }),
        rate: RateLimit { size: 4, burst: if bit(4) { 1 } else { 1000 }, add: 1, ..RateLimit::default() },
        ..Config::default()
    }
}

/// The fixed part of a TCP header.
#[derive(Clone, Copy)]
struct Tcp {
    seq: u32,
    ack: u32,
    flags: Flags,
    window: u16,
}

/// The client's end of slot `slot` is port 40000 + `slot`; odd slots use IPv6.
fn write(side: Side, slot: usize, tcp: &Tcp, options: &[u8], payload: usize) -> Vec<u8> {
    let v6 = slot % 2 == 1;
    let (server, client) = ([10, 0, 0, 1], [192, 0, 2, slot as u8 + 1]);
    let (source, destination) = if side == Side::Lan { (server, client) } else { (client, server) };
    let (from, to) = if side == Side::Lan { (443, 40_000 + slot as u16) } else { (40_000 + slot as u16, 443) };
    let segment = 20 + options.len() + payload;
    let mut frame = vec![2, 0, 0, 0, 0, side as u8, 2, 0, 0, 0, 0, 1 - side as u8];
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, (segment >> 8) as u8, segment as u8, 6, 60]);
        for address in [source, destination] {
            frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0]);
            frame.extend(address);
        }
    } else {
        let total = (20 + segment).to_be_bytes();
        frame.extend([8, 0, 0x45, 0, total[6], total[7], 0, 0, 0x40, 0, 60, 6, 0, 0]);
        frame.extend(source);
        frame.extend(destination);
    }
    frame.extend(u16::to_be_bytes(from));
    frame.extend(u16::to_be_bytes(to));
    frame.extend(tcp.seq.to_be_bytes());
    frame.extend(tcp.ack.to_be_bytes());
    frame.extend((((20 + options.len()) << 10) as u16 | tcp.flags.0).to_be_bytes());
    frame.extend(tcp.window.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(options);
    frame.extend((0..payload).map(|n| n as u8 ^ tcp.seq as u8));
    frame.resize(frame.len().max(60), 0);
    repair(side, &mut frame);
    frame
}

/// Makes the checksums of a segment in one piece right.
fn repair(side: Side, frame: &mut [u8]) {
    let len = frame.len();
    let Parsed::Tcp(segment) = Parsed::parse(side, &Head::whole(frame, len)) else { return };
    let (ip, tcp, end) = (usize::from(segment.ip), usize::from(segment.tcp), segment.end as usize);
    let mut put = |at: usize, sum: u16| frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    if !segment.key.v6 {
        put(ip + 10, 0);
    }
    put(tcp + 16, 0);
    if !segment.key.v6 {
        let header = usize::from(frame[ip] & 15) * 4;
        let sum = !checksum::sum(&frame[ip..ip + header]);
        frame[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
    }
    let addresses = if segment.key.v6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
    let pseudo = u64::from(checksum::sum(&frame[addresses])) + 6 + (end - tcp) as u64;
    let sum = !checksum::fold(pseudo + u64::from(checksum::sum(&frame[tcp..end])));
    frame[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
}

/// The options of a SYN or SYN-ACK: one bit each for MSS, SACK, timestamps and scale, two for the scale's and the MSS's size.
fn syn_options(choice: u8, echo: u32) -> OptionList {
    let bit = |n: u8| choice >> n & 1 == 1;
    let scale = tcpstate::seq::WindowScale::clamped(if bit(4) { 14 } else { 5 });
    let timestamps = bit(2).then_some(tcpstate::wire::Timestamps { value: 1000, echo });
    OptionList::syn(bit(0).then_some(if bit(5) { 80 } else { 1460 }), bit(1), timestamps, bit(3).then_some(scale))
}

/// What the ends of one connection have learned from the frames that reached them.
#[derive(Clone, Copy, Default)]
struct Slot {
    client_seq: u32,
    /// The number the client expects of the server, by its own count.
    outer_seq: u32,
    server_seq: u32,
    /// The number the server expects of the client.
    client_at_server: u32,
    client_clock: Option<u32>,
    server_clock: Option<u32>,
}

impl Slot {
    fn next(&self, side: Side, flags: Flags) -> Tcp {
        match side {
            Side::Wan => Tcp { seq: self.client_seq, ack: self.outer_seq, flags, window: 5000 },
            Side::Lan => Tcp { seq: self.server_seq, ack: self.client_at_server, flags, window: 6000 },
        }
    }
}

/// Bytes a spare frame has at the least.
const SPARE: usize = 128;

/// What the engine sent of its own accord.
struct Sent {
    frames: Vec<(Side, Vec<u8>)>,
    /// Frames that are spare.
    spare: usize,
}

impl Egress for Sent {
    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if self.spare == 0 {
            return false;
        }
        self.spare -= 1;
        let mut buffer = [0xa5; SPARE];
        let len = write(&mut buffer);
        assert!((60..=SPARE).contains(&len), "a frame of {len} bytes");
        self.frames.push((to, buffer[..len].to_vec()));
        true
    }
}

/// A frame in its buffer, as a worker holds it.
struct Frame {
    buffer: Vec<u8>,
    start: usize,
    /// Bytes in sight, and in all; none in all when it was lost.
    seen: usize,
    total: usize,
}

impl Frame {
    fn head(&mut self) -> Head<'_> {
        Head::new(&mut self.buffer, self.start, self.seen, self.total)
    }
}

/// The engine under test, and what stands on either side of it.
struct Bench {
    proxy: Proxy,
    now: Instant,
    slots: [Slot; 4],
    spare: usize,
    headroom: usize,
    tailroom: usize,
    syn_cache_max: u64,
    capacity: u64,
    held_frames: usize,
    /// Frames held, by their place in the hold queue.
    held: BTreeMap<u16, (Ticket, Frame)>,
    /// How many of the frames to be held are lost first, as when few frames are spare.
    unkept: usize,
    /// The last frame that came in, and by which side.
    last: (Side, Vec<u8>),
    /// The last frame that left.
    left: Vec<u8>,
}

impl Bench {
    fn new(config: &Config) -> Self {
        let now = Instant::from_secs(1_000_000);
        Self {
            proxy: Proxy::new(config, &Secrets::new([7; 48]), now),
            now,
            slots: std::array::from_fn(|n| Slot {
                client_seq: 1000 << (8 * n),
                server_seq: 0xffff_ffc0,
                ..Slot::default()
            }),
            spare: usize::MAX,
            headroom: 64,
            tailroom: 128,
            syn_cache_max: config.syn_cache_max as u64,
            capacity: config.flow_capacity() as u64,
            held_frames: config.held_frames,
            held: BTreeMap::new(),
            unkept: 0,
            last: (Side::Wan, vec![0; 60]),
            left: vec![0; 60],
        }
    }

    /// Does what the next bytes of the input say.
    fn command(&mut self, input: &mut Input) {
        let code = input.byte();
        let slot = usize::from(code >> 6);
        match code & 15 {
            0 => self.client_syn(slot, input.byte()),
            1 => self.client_proves(slot, input.byte(), input.byte()),
            2 => self.server_answers(slot, input.byte()),
            3 => self.exchange(Side::Wan, slot, input),
            4 => self.exchange(Side::Lan, slot, input),
            5 => {
                let (side, offset) = (Side::BOTH[usize::from(code >> 4 & 1)], input.byte() as i8);
                let mut tcp =
                    self.slots[slot].next(side, if code & 32 == 0 { Flags::RST } else { Flags::RST.and(Flags::ACK) });
                tcp.seq = tcp.seq.wrapping_add_signed(i32::from(offset) << (code >> 4 & 2) << (code >> 4 & 2));
                self.step(side, write(side, slot, &tcp, &[], 0));
            }
            6 => {
                let choice = input.byte();
                let tcp = Tcp { flags: Flags::SYN, ack: 0, ..self.slots[slot].next(Side::Lan, Flags::SYN) };
                self.slots[slot].server_seq = tcp.seq.wrapping_add(1);
                self.step(Side::Lan, write(Side::Lan, slot, &tcp, syn_options(choice, 0).bytes(), 0));
            }
            7 => {
                let choice = input.byte();
                let slot_state = &mut self.slots[slot];
                let ack = slot_state.server_seq;
                let tcp = Tcp { seq: slot_state.client_seq, ack, flags: Flags::SYN.and(Flags::ACK), window: 7000 };
                slot_state.client_seq = tcp.seq.wrapping_add(1);
                slot_state.outer_seq = ack;
                self.slots[slot].client_at_server = tcp.seq.wrapping_add(1);
                self.step(Side::Wan, write(Side::Wan, slot, &tcp, syn_options(choice, 1000).bytes(), 0));
            }
            8 => {
                let len = usize::from(input.byte());
                let frame = input.bytes(len);
                self.step(Side::BOTH[usize::from(code >> 4 & 1)], frame);
            }
            9 => {
                // From a millisecond to half a day.
                let pause = Duration::from_millis(1 << (input.byte() % 26));
                self.pass(pause);
            }
            10 => {
                let (side, mut frame) = self.last.clone();
                let at = usize::from(input.byte());
                let value = input.byte();
                if let Some(byte) = frame.get_mut(at) {
                    *byte ^= value;
                }
                if code & 16 != 0 {
                    repair(side, &mut frame);
                }
                self.step(side, frame);
            }
            11 => {
                // What we send comes back, by either port, or a router answers it with an error.
                let (side, mut frame) = (Side::BOTH[usize::from(code >> 4 & 1)], self.left.clone());
                if code & 32 != 0 {
                    let Some(error) = complaint(side, &frame, input.byte(), input.byte().into()) else { return };
                    frame = error;
                }
                self.step(side, frame);
            }
            12 if code & 32 != 0 && code & 16 != 0 => self.unkept = slot,
            12 => self.spare = if code & 16 == 0 { usize::MAX } else { slot },
            13 => (self.headroom, self.tailroom) = if code & 16 == 0 { (64, 128) } else { (slot * 4, slot * 8) },
            14 => {
                // Only the headers of a jumbo frame are in sight.
                let side = Side::BOTH[usize::from(code >> 4 & 1)];
                let tcp = self.slots[slot].next(side, Flags::ACK);
                let frame = write(side, slot, &tcp, &[], 4000);
                self.advance(side, slot, 4000);
                self.step_seen(side, frame, 128);
            }
            _ => {
                // What was sent last is sent again, whole or in pieces.
                let (side, frame) = self.last.clone();
                if code & 16 == 0 || !is_segment(side, &frame) {
                    return self.step(side, frame);
                }
                let (from, len) = (usize::from(input.byte()) * 8, usize::from(input.byte()) * 8);
                self.step(side, script::fragment(&frame, slot as u16, from..from + len, code & 32 != 0));
            }
        }
    }

    fn client_syn(&mut self, slot: usize, choice: u8) {
        // A new connection of these ends has a new number, unless the SYN is a repetition.
        if choice & 0x40 != 0 {
            self.slots[slot].client_seq = self.slots[slot].client_seq.wrapping_add(0x0100_0000);
        }
        let seq = self.slots[slot].client_seq;
        self.slots[slot].client_clock = (choice & 4 != 0).then_some(1000);
        let tcp = Tcp { seq, ack: 0, flags: Flags::SYN, window: 4000 };
        self.step(Side::Wan, write(Side::Wan, slot, &tcp, syn_options(choice, 0).bytes(), 0));
    }

    fn client_proves(&mut self, slot: usize, payload: u8, manner: u8) {
        let flags = if manner & 1 == 0 { Flags::ACK } else { Flags::ACK.and(Flags::FIN) };
        let mut tcp = self.slots[slot].next(Side::Wan, flags);
        if manner & 2 != 0 {
            tcp.seq = tcp.seq.wrapping_sub(1);
        }
        let options = self.timestamps(Side::Wan, slot);
        self.step(Side::Wan, write(Side::Wan, slot, &tcp, options.bytes(), payload.into()));
    }

    fn server_answers(&mut self, slot: usize, choice: u8) {
        let tcp = self.slots[slot].next(Side::Lan, Flags::SYN.and(Flags::ACK));
        self.slots[slot].server_seq = tcp.seq.wrapping_add(1);
        self.slots[slot].server_clock = (choice & 4 != 0).then_some(2000);
        self.step(Side::Lan, write(Side::Lan, slot, &tcp, syn_options(choice, 1000).bytes(), 0));
    }

    /// A segment of an established connection.
    fn exchange(&mut self, side: Side, slot: usize, input: &mut Input) {
        let (payload, manner) = (usize::from(input.byte()), input.byte());
        let flags = if manner & 1 == 0 { Flags::ACK } else { Flags::ACK.and(Flags::FIN) };
        let mut tcp = self.slots[slot].next(side, flags);
        let offset = i32::from(manner as i8 >> 4) << (manner & 12);
        if manner & 2 == 0 {
            tcp.seq = tcp.seq.wrapping_add_signed(offset);
        } else {
            tcp.ack = tcp.ack.wrapping_add_signed(offset);
        }
        let options = self.timestamps(side, slot);
        if offset == 0 {
            self.advance(side, slot, (payload + usize::from(manner & 1)) as u32);
        }
        self.step(side, write(side, slot, &tcp, options.bytes(), payload));
    }

    fn advance(&mut self, side: Side, slot: usize, by: u32) {
        let slot = &mut self.slots[slot];
        match side {
            Side::Wan => slot.client_seq = slot.client_seq.wrapping_add(by),
            Side::Lan => slot.server_seq = slot.server_seq.wrapping_add(by),
        }
    }

    fn timestamps(&self, side: Side, slot: usize) -> OptionList {
        let slot = &self.slots[slot];
        let (own, other) = match side {
            Side::Wan => (slot.client_clock, slot.server_clock),
            Side::Lan => (slot.server_clock, slot.client_clock),
        };
        OptionList::plain(own.map(|value| tcpstate::wire::Timestamps { value, echo: other.unwrap_or(0) }))
    }

    /// Sends a frame that is wholly in sight through the engine.
    fn step(&mut self, side: Side, frame: Vec<u8>) {
        let seen = frame.len();
        self.step_seen(side, frame, seen);
    }

    /// Sends a frame of which the first `seen` bytes are in sight through the engine.
    fn step_seen(&mut self, side: Side, frame: Vec<u8>, seen: usize) {
        let total = frame.len();
        let seen = seen.min(total);
        let mut buffer = vec![0x5a; self.headroom + seen + self.tailroom];
        buffer[self.headroom..][..seen].copy_from_slice(&frame[..seen]);
        self.decide(side, Frame { buffer, start: self.headroom, seen, total }, None);
        self.bring_back();
        self.last = (side, frame);
        self.check_population();
    }

    /// Lets the engine decide on a frame, which has just come in or was held for a ticket.
    fn decide(&mut self, side: Side, mut frame: Frame, ticket: Option<Ticket>) {
        let (seen, total, room) = (frame.seen, frame.total, frame.buffer.len());
        let before = frame.buffer[frame.start..][..seen].to_vec();
        // What is explained is what is done, where a frame is spare for all of it.
        let asks = ticket.is_none() && self.spare == usize::MAX;
        let foretold = asks.then(|| {
            let mut copy = Frame { buffer: frame.buffer.clone(), ..frame };
            let mut head = copy.head();
            self.proxy.excerpt(side, &head).explain(&mut head, self.now).verdict
        });
        let mut head = frame.head();
        let mut sent = Sent { frames: Vec::new(), spare: self.spare };
        let question = Question::of(side, &head);
        let verdict = match ticket {
            Some(ticket) => self.proxy.on_release(ticket, &mut head, self.now, &mut sent),
            None => {
                let mut meta = Metadata::default();
                self.proxy.parse(side, &head, &mut meta);
                self.proxy.prefetch(&mut meta);
                self.proxy.on_frame(side, &meta, &mut head, self.now, &mut sent)
            }
        };
        if let Some(foretold) = foretold {
            assert_eq!(foretold, verdict, "what is explained and what is done differ");
        }
        self.spare = if self.spare == usize::MAX { usize::MAX } else { sent.spare };
        assert!(head.start() + head.len() <= room && head.total() >= head.len());

        let (mut to_asker, mut acknowledges, mut errors, mut headers) = (0, false, 0, 0);
        match verdict {
            Verdict::Forward => question.check_forwarded(&head, &before),
            Verdict::Reflect => {
                assert!(question.is_tcp(), "only TCP is answered");
                check_own(side.other(), head.bytes());
                assert!(head.is_whole());
                to_asker += head.len();
                acknowledges |= is_acknowledgement(head.bytes(), side);
            }
            Verdict::Hold(_) => {
                assert!(ticket.is_none(), "a frame is held once");
                assert!(side == Side::Wan && question.is_tcp(), "only a client's segments are held");
                assert!(head.bytes() == before && head.total() == total, "what is held has not changed");
            }
            Verdict::Drop(_) => {}
        }
        if verdict != Verdict::Forward || question.is_tcp() {
            self.learn(side, verdict, head.bytes().to_vec());
        }
        for (to, frame) in sent.frames {
            check_own(to.other(), &frame);
            if to == side {
                to_asker += frame.len();
                acknowledges |= is_acknowledgement(&frame, side);
                errors += if is_error(&frame, side) { frame.len() } else { 0 };
                headers += unreachable_headers(&frame, side);
            }
            self.receive_update(to, &frame);
            self.left = frame;
        }
        // On the WAN no answer is longer than its question: a forged source would get it. Only an acknowledgement of a living connection, which
        // challenges a segment or tells the window when both ends have opened, bears timestamps whether the segment has them or not (RFC 7323 section 3.2),
        // and with the window goes the error that tells a client, which has proved itself, of a smaller MSS than it was promised. What a router has said of a
        // port that cannot be reached quotes the question behind headers of its own.
        let allowance = if acknowledges { 12 + errors } else { headers };
        assert!(side == Side::Lan || to_asker <= total.max(60) + allowance, "{total} bytes answered with {to_asker}");
        if let Verdict::Hold(ticket) = verdict {
            assert!(usize::from(ticket.index) < self.held_frames, "{ticket:?} names no place");
            // A frame that is lost leaves its place taken all the same.
            let total = if self.unkept > 0 { 0 } else { total };
            self.unkept = self.unkept.saturating_sub(1);
            let other = self.held.insert(ticket.index, (ticket, Frame { total, ..frame }));
            assert!(other.is_none(), "two frames are held in one place");
        }
    }

    /// Brings back the held frames the engine asks for.
    fn bring_back(&mut self) {
        while let Some(ticket) = self.proxy.next_release() {
            let (minted, frame) = self.held.remove(&ticket.index).expect("a ticket is released once");
            assert_eq!(minted, ticket);
            if frame.total == 0 {
                self.proxy.void(ticket);
            } else {
                self.decide(Side::Wan, frame, Some(ticket));
            }
        }
    }

    fn learn(&mut self, side: Side, verdict: Verdict, frame: Vec<u8>) {
        match verdict {
            Verdict::Forward => self.receive_update(side.other(), &frame),
            Verdict::Reflect => self.receive_update(side, &frame),
            Verdict::Hold(_) | Verdict::Drop(_) => return,
        }
        self.left = frame;
    }

    /// The end on `side` receives a frame.
    fn receive_update(&mut self, side: Side, frame: &[u8]) {
        let mut copy = frame.to_vec();
        let len = copy.len();
        let Parsed::Tcp(segment) = Parsed::parse(side.other(), &Head::whole(&mut copy, len)) else { return };
        let Some(slot) = usize::from(segment.key.wan_port).checked_sub(40_000).and_then(|n| self.slots.get_mut(n))
        else {
            return;
        };
        let (next, clock) = (segment.seq + segment.seq_len(), Options::timestamps(segment.options(frame)));
        let clock = clock.map(|timestamps| timestamps.value);
        match side {
            Side::Wan => {
                slot.outer_seq = next.get();
                slot.server_clock = slot.server_clock.and(clock).or(clock);
                if segment.flags.has(Flags::SYN) {
                    slot.client_seq = segment.ack.get();
                }
            }
            Side::Lan => slot.client_at_server = next.get(),
        }
    }

    /// Lets time pass and the engine do what is due.
    fn pass(&mut self, pause: Duration) {
        self.now = self.now + pause;
        for turn in 0.. {
            let mut sent = Sent { frames: Vec::new(), spare: self.spare };
            let more = self.proxy.on_timeout(self.now, &mut sent);
            for (to, frame) in sent.frames {
                check_own(to.other(), &frame);
                self.receive_update(to, &frame);
                self.left = frame;
            }
            self.bring_back();
            if !more {
                break;
            }
            assert!(turn < 10_000, "there is always more to do");
        }
        self.check_population();
    }

    /// In the end nothing is left.
    fn drain(&mut self) {
        for _ in 0..12 {
            self.pass(Duration::from_secs(43_200));
        }
        assert_eq!(self.proxy.population(), tcpstate::Population::default(), "flows that never expire");
        assert_eq!(self.proxy.next_deadline(), None);
        assert!(self.held.is_empty(), "frames that are never released: {:?}", self.held.keys());
    }

    fn check_population(&self) {
        let population = self.proxy.population();
        assert!(population.syn_cached <= self.syn_cache_max, "{population:?}");
        assert!(population.syn_cached + population.proxied + population.passthrough <= self.capacity, "{population:?}");
        assert_eq!(
            population == tcpstate::Population::default(),
            self.proxy.next_deadline().is_none(),
            "every flow has a deadline, and nothing else has"
        );
    }
}

/// Whether a frame from `side` is a TCP segment.
fn is_segment(side: Side, frame: &[u8]) -> bool {
    let mut copy = frame.to_vec();
    let len = copy.len();
    matches!(Parsed::parse(side, &Head::whole(&mut copy, len)), Parsed::Tcp(_))
}

/// The error a router on `side` sends about a segment that came out there, quoting so many bytes of its packet.
fn complaint(side: Side, frame: &[u8], choice: u8, quoted: usize) -> Option<Vec<u8>> {
    use script::Complaint::{HostUnreachable, Quench, TooBig, TooFar};
    if !is_segment(side.other(), frame) {
        return None;
    }
    let packet = script::packet_of(frame);
    let source: IpAddr = match packet[0] >> 4 {
        4 => <[u8; 4]>::try_from(&packet[12..16]).ok()?.into(),
        _ => <[u8; 16]>::try_from(&packet[8..24]).ok()?.into(),
    };
    let ends =
        script::FlowKey { src: source, dst: source, sport: 0, dport: 0, src_mac: [2; 6], dst_mac: [4; 6], ttl: 60 };
    let complaint = match choice & 3 {
        0 => TooBig(u16::from(choice) * 8),
        1 => HostUnreachable,
        2 => TooFar,
        _ if source.is_ipv4() => Quench,
        _ => TooBig(1280),
    };
    let mut error = script::icmp_error_raw(&ends, 0, complaint, &packet[..quoted.min(packet.len())], &[]);
    if choice & 128 != 0 {
        // Damaged on its way.
        error[50] ^= 1;
    }
    Some(error)
}

/// Whether a frame that goes back to `side` is a pure acknowledgement.
fn is_acknowledgement(frame: &[u8], side: Side) -> bool {
    let mut copy = frame.to_vec();
    let len = copy.len();
    match Parsed::parse(side.other(), &Head::whole(&mut copy, len)) {
        Parsed::Tcp(segment) => segment.flags == Flags::ACK && segment.payload_len() == 0,
        _ => false,
    }
}

/// Whether a frame that goes back to `side` is an ICMP error.
fn is_error(frame: &[u8], side: Side) -> bool {
    let mut copy = frame.to_vec();
    let len = copy.len();
    matches!(Parsed::parse(side.other(), &Head::whole(&mut copy, len)), Parsed::Error(_))
}

/// The bytes of an error's own headers, IP and ICMP, if this frame is one that says that something cannot be reached.
fn unreachable_headers(frame: &[u8], side: Side) -> usize {
    let mut copy = frame.to_vec();
    let len = copy.len();
    let head = Head::whole(&mut copy, len);
    match Parsed::parse(side.other(), &head) {
        Parsed::Error(quote) if quote.kind(frame) == IcmpKind::Unreachable => usize::from(quote.icmp - quote.ip) + 8,
        _ => 0,
    }
}

/// A segment the engine wrote itself, or an error about one that was too big or a SYN to a destination that cannot be reached: it can be read, its checksums hold, and it stays within
/// what a receiver must take.
fn check_own(sender: Side, frame: &[u8]) {
    let mut copy = frame.to_vec();
    let len = copy.len();
    let head = Head::whole(&mut copy, len);
    match Parsed::parse(sender, &head) {
        Parsed::Tcp(segment) => {
            assert!(segment.checksums_hold(&head), "what we send has wrong checksums: {frame:02x?}");
            assert_eq!(segment.payload_len(), 0);
        }
        Parsed::Error(quote) => {
            assert!(quote.checksums_hold(&head), "what we send has wrong checksums: {frame:02x?}");
            // The other kind is what a router has said of the destination before, given to the next who asks.
            assert_eq!(sender, Side::Lan);
            assert!(matches!(quote.kind(frame), IcmpKind::TooBig | IcmpKind::Unreachable));
            assert!(len <= 14 + 8 + 1280, "an error of {len} bytes");
        }
        other => panic!("what we send is neither TCP nor about it: {other:?} {frame:02x?}"),
    }
    assert!(len >= 60);
}

/// What is known of a frame before the engine has seen it.
struct Question {
    side: Side,
    kind: Kind,
    /// Whether the checksums can be judged, and hold.
    sound: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    /// An ICMP error about TCP.
    Error,
    Other,
}

impl Question {
    fn of(side: Side, head: &Head) -> Self {
        let (kind, sound) = match Parsed::parse(side, head) {
            Parsed::Tcp(segment) => {
                let judged = head.is_whole() && !segment.fragmented;
                (Kind::Tcp, judged.then(|| segment.checksums_hold(head)))
            }
            Parsed::Error(quote) => (Kind::Error, head.is_whole().then(|| quote.checksums_hold(head))),
            _ => (Kind::Other, None),
        };
        Self { side, kind, sound }
    }

    fn is_tcp(&self) -> bool {
        self.kind == Kind::Tcp
    }

    /// A frame that is passed on: changed only if it is TCP or an error about it; then still what it was, as right or as wrong as it was.
    fn check_forwarded(&self, head: &Head, before: &[u8]) {
        if self.kind == Kind::Other {
            return assert_eq!(head.bytes(), before, "what is no TCP passes unchanged");
        }
        let after = Question::of(self.side, head);
        assert_eq!(after.kind, self.kind, "something else now: {:02x?}", head.bytes());
        if let (Some(before), Some(after)) = (self.sound, after.sound) {
            assert_eq!(after, before, "checksums went from {before} to {after}: {:02x?}", head.bytes());
        }
    }
}
