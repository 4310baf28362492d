//! Writes the segments that the proxy itself sends, with all headers.

use super::checksum::Patch;
use super::{
    Addr, ETHERNET_LEN, ETHERNET_MIN, Flags, FlowKey, IPV4_LEN, IPV6_LEN, Mac, Segment, TCP, TCP_LEN, Tags, Timestamps,
    be16, be32, checksum, kind, put16, put32, station,
};
use crate::Side;
use crate::seq::{RawWindow, SeqNum, WindowScale};

/// The options of an outgoing segment, in the layout of common stacks: whole 32-bit words.
#[derive(Clone, Copy, Debug)]
pub struct OptionList {
    words: [[u8; 4]; 5],
    count: usize,
}

impl OptionList {
    /// No options.
    pub const fn none() -> Self {
        Self { words: [[0; 4]; 5], count: 0 }
    }

    /// The options of a SYN or SYN-ACK.
    #[inline]
    pub fn syn(mss: Option<u16>, sack: bool, timestamps: Option<Timestamps>, scale: Option<WindowScale>) -> Self {
        let mut list = Self::none();
        if let Some(mss) = mss {
            let [high, low] = mss.to_be_bytes();
            list.push([kind::MSS, 4, high, low]);
        }
        match (sack, timestamps) {
            (true, Some(timestamps)) => list.push_timestamps([kind::SACK_PERMITTED, 2], timestamps),
            (false, Some(timestamps)) => list.push_timestamps([kind::NOP; 2], timestamps),
            (true, None) => list.push([kind::NOP, kind::NOP, kind::SACK_PERMITTED, 2]),
            (false, None) => {}
        }
        if let Some(scale) = scale {
            list.push([kind::NOP, kind::WINDOW_SCALE, 3, scale.get()]);
        }
        list
    }

    /// The options of any other segment.
    #[inline]
    pub fn plain(timestamps: Option<Timestamps>) -> Self {
        let mut list = Self::none();
        if let Some(timestamps) = timestamps {
            list.push_timestamps([kind::NOP; 2], timestamps);
        }
        list
    }

    /// The bytes: whole words.
    pub fn bytes(&self) -> &[u8] {
        self.words().as_flattened()
    }

    /// How many bytes there are.
    #[inline(always)]
    fn len(&self) -> usize {
        4 * self.count
    }

    #[inline(always)]
    fn words(&self) -> &[[u8; 4]] {
        &self.words[..self.count]
    }

    #[inline(always)]
    fn push(&mut self, word: [u8; 4]) {
        self.words[self.count] = word;
        self.count += 1;
    }

    /// Timestamps, behind two other bytes that align them.
    #[inline(always)]
    fn push_timestamps(&mut self, [a, b]: [u8; 2], timestamps: Timestamps) {
        self.push([a, b, kind::TIMESTAMPS, 10]);
        self.push(timestamps.value.to_be_bytes());
        self.push(timestamps.echo.to_be_bytes());
    }

    /// Writes them to `space`, which is as long as they are, and returns the sum of their words.
    #[inline(always)]
    fn write(&self, space: &mut [u8]) -> u64 {
        let mut sum = 0;
        let places = space.as_chunks_mut().0;
        for (n, word) in self.words.iter().enumerate() {
            if let Some(place) = places.get_mut(n) {
                *place = *word;
                sum += u64::from(u32::from_be_bytes(*word));
            }
        }
        sum
    }
}

/// Everything in front of a TCP header: the addresses and fields of Ethernet, VLAN tags and IP, and the ports.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// The sender's Ethernet address.
    pub from: Mac,
    /// The receiver's Ethernet address.
    pub to: Mac,
    /// The connection.
    pub key: FlowKey,
    /// The side the sender is on.
    pub sender: Side,
    /// The side of the box on which the receiver is: the other one, but for connections to services with a client on the LAN or a server on the WAN.
    pub port: Side,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// The class (RFC 2474): the upper six bits of the traffic class, in IPv4 of the type of service; the lower two are zero.
    pub class: u8,
    /// The IPv4 identification field.
    pub id: u16,
    /// The IPv6 flow label, 20 bits.
    pub label: u32,
    /// The VLAN tags.
    pub tags: Tags,
}

impl Envelope {
    /// The envelope of a segment that came in on `side`.
    #[inline(always)]
    pub fn of(frame: &[u8], segment: &Segment, side: Side) -> Self {
        let mac = |at: usize| *frame[at..].first_chunk().expect("a segment has an Ethernet header");
        let ip = usize::from(segment.ip);
        let (id, label) = if segment.key.v6 { (0, be32(frame, ip) & 0xf_ffff) } else { (be16(frame, ip + 4), 0) };
        let tags = Tags::of(frame, ip);
        let ttl = segment.ttl;
        let class = segment.class(frame);
        let port = side.other();
        Self { from: mac(6), to: mac(0), key: segment.key, sender: side, port, ttl, class, id, label, tags }
    }

    /// The envelope of an answer with this hop limit: source and destination exchanged, class and tags the same.
    #[must_use]
    #[inline]
    pub fn reversed(self, ttl: u8) -> Self {
        Self {
            from: station(self.to),
            to: self.from,
            sender: self.sender.other(),
            port: self.sender,
            ttl,
            id: 0,
            label: 0,
            ..self
        }
    }

    /// Bytes of the frame that holds `options`, before padding.
    #[inline]
    pub fn frame_len(&self, options: &OptionList) -> usize {
        let ip = if self.key.v6 { IPV6_LEN } else { IPV4_LEN };
        ETHERNET_LEN + self.tags.len() + ip + TCP_LEN + options.len()
    }

    /// The addresses and ports of the sender and the receiver.
    #[inline(always)]
    fn source_and_destination(&self) -> [(&Addr, u16); 2] {
        let FlowKey { lan, wan, lan_port, wan_port, .. } = &self.key;
        match self.sender {
            Side::Lan => [(lan, *lan_port), (wan, *wan_port)],
            Side::Wan => [(wan, *wan_port), (lan, *lan_port)],
        }
    }
}

/// A segment that the proxy itself sends. It has no payload.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Addresses and fields below TCP.
    pub envelope: &'a Envelope,
    /// Sequence number.
    pub seq: SeqNum,
    /// Acknowledgement number.
    pub ack: SeqNum,
    /// Flags.
    pub flags: Flags,
    /// Window field.
    pub window: RawWindow,
    /// Options.
    pub options: &'a OptionList,
}

impl Outgoing<'_> {
    /// Bytes of the whole frame, padding to the Ethernet minimum included.
    pub fn frame_len(&self) -> usize {
        self.envelope.frame_len(self.options).max(ETHERNET_MIN)
    }

    /// Writes the frame to the beginning of `buffer` and returns its length.
    ///
    /// # Panics
    /// If `buffer` is shorter than [`Outgoing::frame_len`].
    // Checksums are summed from the values as they are written: a sum of 32-bit words folds to that of their halves (RFC 1071 section 2.C).
    #[inline(always)]
    pub fn write(&self, buffer: &mut [u8]) -> usize {
        let envelope = self.envelope;
        let frame = &mut buffer[..self.frame_len()];
        frame[..6].copy_from_slice(&envelope.to);
        frame[6..12].copy_from_slice(&envelope.from);
        let ip = self.write_tags(frame);
        let tcp_len = TCP_LEN + self.options.len();
        let (tcp, addresses) =
            if envelope.key.v6 { self.write_ipv6(frame, ip, tcp_len) } else { self.write_ipv4(frame, ip, tcp_len) };
        self.write_tcp(&mut frame[tcp..tcp + tcp_len], addresses);
        if tcp + tcp_len < ETHERNET_MIN {
            frame[tcp + tcp_len..].fill(0);
        }
        frame.len()
    }

    /// The same with a payload of so many bytes, which lie in `buffer` already: behind [`Envelope::frame_len`] bytes for the headers.
    ///
    /// # Panics
    /// If `buffer` is shorter than all of it.
    pub fn write_around(&self, buffer: &mut [u8], payload: usize) -> usize {
        let header = self.envelope.frame_len(self.options);
        let len = header + payload;
        // The headers alone would be padded, over the payload.
        let mut short = [0; ETHERNET_MIN + 64];
        let padded = self.write(&mut short);
        debug_assert!(padded >= header);
        buffer[..header].copy_from_slice(&short[..header]);
        let ip = ETHERNET_LEN + self.envelope.tags.len();
        let tcp = header - TCP_LEN - self.options.len();
        let mut patch = Patch::default();
        patch.replace16(0, checksum::sum(&buffer[header..len]));
        // The length is part of the pseudo header.
        patch.replace16(0, payload as u16);
        let sum = patch.apply(be16(buffer, tcp + 16));
        put16(buffer, tcp + 16, sum);
        let length_at = ip + if self.envelope.key.v6 { 4 } else { 2 };
        let length = be16(buffer, length_at);
        put16(buffer, length_at, length + payload as u16);
        if !self.envelope.key.v6 {
            let mut patch = Patch::default();
            patch.replace16(length, length + payload as u16);
            let sum = patch.apply(be16(buffer, ip + 10));
            put16(buffer, ip + 10, sum);
        }
        if len < ETHERNET_MIN {
            buffer[len..ETHERNET_MIN].fill(0);
        }
        len.max(ETHERNET_MIN)
    }

    #[inline(always)]
    fn write_tags(&self, frame: &mut [u8]) -> usize {
        let mut at = 12;
        for &tag in self.envelope.tags.words() {
            put32(frame, at, tag);
            at += 4;
        }
        put16(frame, at, if self.envelope.key.v6 { 0x86dd } else { 0x0800 });
        at + 2
    }

    /// Writes the header; returns the offset of the TCP header and the sum of the addresses.
    #[inline(always)]
    fn write_ipv4(&self, frame: &mut [u8], ip: usize, tcp_len: usize) -> (usize, u64) {
        let Envelope { ttl, class, id, .. } = *self.envelope;
        let [(source, _), (destination, _)] = self.envelope.source_and_destination();
        let addresses = u64::from(source[3]) + u64::from(destination[3]);
        let words = [
            0x4500_0000 | u32::from(class) << 16 | (IPV4_LEN + tcp_len) as u32,
            u32::from(id) << 16 | 0x4000,
            u32::from(ttl) << 24 | u32::from(TCP) << 16,
        ];
        let sum = words.iter().fold(addresses, |sum, &word| sum + u64::from(word));
        let header: &mut [u8; IPV4_LEN] = frame[ip..].first_chunk_mut().expect("the frame is long enough");
        put32(header, 0, words[0]);
        put32(header, 4, words[1]);
        put32(header, 8, words[2] | u32::from(!checksum::fold(sum)));
        put32(header, 12, source[3]);
        put32(header, 16, destination[3]);
        (ip + IPV4_LEN, addresses)
    }

    /// Writes the header; returns the offset of the TCP header and the sum of the addresses.
    #[inline(always)]
    fn write_ipv6(&self, frame: &mut [u8], ip: usize, tcp_len: usize) -> (usize, u64) {
        let Envelope { ttl, class, label, .. } = *self.envelope;
        let [(source, _), (destination, _)] = self.envelope.source_and_destination();
        let header: &mut [u8; IPV6_LEN] = frame[ip..].first_chunk_mut().expect("the frame is long enough");
        put32(header, 0, 6 << 28 | u32::from(class) << 20 | label);
        put32(header, 4, (tcp_len as u32) << 16 | u32::from(TCP) << 8 | u32::from(ttl));
        let mut addresses = 0;
        for i in 0..4 {
            put32(header, 8 + 4 * i, source[i]);
            put32(header, 24 + 4 * i, destination[i]);
            addresses += u64::from(source[i]) + u64::from(destination[i]);
        }
        (ip + IPV6_LEN, addresses)
    }

    /// Writes header and options; `addresses` is the sum of both addresses.
    #[inline(always)]
    fn write_tcp(&self, segment: &mut [u8], addresses: u64) {
        let [(_, from), (_, to)] = self.envelope.source_and_destination();
        let len = segment.len() as u32;
        let (header, options) = segment.split_first_chunk_mut::<TCP_LEN>().expect("the frame is long enough");
        let words = [
            u32::from(from) << 16 | u32::from(to),
            self.seq.get(),
            self.ack.get(),
            (len / 4) << 28 | u32::from(self.flags.0) << 16 | u32::from(self.window.0),
        ];
        for (n, &word) in words.iter().enumerate() {
            put32(header, 4 * n, word);
        }
        // The checksum covers pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1), header and options.
        let pseudo = addresses + u64::from(TCP) + u64::from(len);
        let sum = words.iter().fold(pseudo + self.options.write(options), |sum, &word| sum + u64::from(word));
        put32(header, 16, u32::from(!checksum::fold(sum)) << 16);
    }
}
