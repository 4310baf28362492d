//! From meaning to bytes: the segments the proxy itself sends, headers and all.

use super::segment::pseudo_header_sum;
use super::{
    ETHERNET_LEN, ETHERNET_MIN, Ends, Flags, IPV4_LEN, IPV6_LEN, Mac, Segment, TCP, TCP_LEN, Timestamps, Vlan, be16,
    be32, checksum, kind, put16, put32,
};
use crate::Side;
use crate::seq::{RawWindow, SeqNum, WindowScale};

/// The options of an outgoing segment, laid out as common stacks do: in whole words, without gaps.
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
    pub fn plain(timestamps: Option<Timestamps>) -> Self {
        let mut list = Self::none();
        if let Some(timestamps) = timestamps {
            list.push_timestamps([kind::NOP; 2], timestamps);
        }
        list
    }

    /// The bytes: whole words.
    pub fn bytes(&self) -> &[u8] {
        self.words[..self.count].as_flattened()
    }

    fn push(&mut self, word: [u8; 4]) {
        self.words[self.count] = word;
        self.count += 1;
    }

    /// Timestamps behind the two bytes that fill their first word.
    fn push_timestamps(&mut self, [a, b]: [u8; 2], timestamps: Timestamps) {
        self.push([a, b, kind::TIMESTAMPS, 10]);
        self.push(timestamps.value.to_be_bytes());
        self.push(timestamps.echo.to_be_bytes());
    }

    /// Writes them to `space`, which has their length.
    fn write(&self, space: &mut [u8]) {
        for (place, word) in space.chunks_exact_mut(4).zip(self.words) {
            place.copy_from_slice(&word);
        }
    }
}

/// Everything around a TCP header: from whom, to whom, by which way.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// The sender's Ethernet address.
    pub from: Mac,
    /// The receiver's Ethernet address.
    pub to: Mac,
    /// The ends of the connection.
    pub ends: Ends,
    /// The side the sender is on.
    pub sender: Side,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// The IPv4 identification field.
    pub id: u16,
    /// The IPv6 flow label, 20 bits.
    pub label: u32,
    /// The priorities of the VLAN tags: the upper four bits of their control information, outer tag first.
    pub priorities: [u16; 2],
}

/// The hop limit of what we send when the sender's own is not known.
pub const DEFAULT_TTL: u8 = 64;

impl Envelope {
    /// The envelope of a segment that came in on `side`, to send another like it.
    pub fn of(frame: &[u8], segment: &Segment, side: Side) -> Self {
        let mac = |at: usize| [frame[at], frame[at + 1], frame[at + 2], frame[at + 3], frame[at + 4], frame[at + 5]];
        let ip = usize::from(segment.ip);
        let (ttl, id, label) = if segment.ends.v6 {
            (frame[ip + 7], 0, be32(frame, ip) & 0xf_ffff)
        } else {
            (frame[ip + 8], be16(frame, ip + 4), 0)
        };
        let priority = |n: usize| {
            if n < segment.ends.vlan.count() { be16(frame, ETHERNET_LEN + 4 * n) & 0xf000 } else { 0 }
        };
        let priorities = [priority(0), priority(1)];
        Self { from: mac(6), to: mac(0), ends: segment.ends, sender: side, ttl, id, label, priorities }
    }

    /// The envelope of an answer.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { from: self.to, to: self.from, sender: self.sender.other(), ttl: DEFAULT_TTL, id: 0, label: 0, ..self }
    }

    /// Bytes of the frame that holds `options`, before padding.
    pub fn frame_len(&self, options: &OptionList) -> usize {
        let ip = if self.ends.v6 { IPV6_LEN } else { IPV4_LEN };
        ETHERNET_LEN + 4 * self.ends.vlan.count() + ip + TCP_LEN + options.bytes().len()
    }
}

/// A segment of the proxy's own: it carries no payload.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The way it takes.
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
    pub fn write(&self, buffer: &mut [u8]) -> usize {
        let envelope = self.envelope;
        let frame = &mut buffer[..self.frame_len()];
        frame[..6].copy_from_slice(&envelope.to);
        frame[6..12].copy_from_slice(&envelope.from);
        let mut at = self.write_tags(frame, envelope.ends.vlan);
        let tcp_len = TCP_LEN + self.options.bytes().len();
        at = if envelope.ends.v6 { self.write_ipv6(frame, at, tcp_len) } else { self.write_ipv4(frame, at, tcp_len) };
        self.write_tcp(&mut frame[at..at + tcp_len]);
        frame[at + tcp_len..].fill(0);
        frame.len()
    }

    fn write_tags(&self, frame: &mut [u8], vlan: Vlan) -> usize {
        let mut at = 12;
        for n in 0..vlan.count() {
            let (protocol, identifier) = vlan.tag(n);
            put16(frame, at, protocol);
            put16(frame, at + 2, identifier | self.envelope.priorities[n]);
            at += 4;
        }
        put16(frame, at, if self.envelope.ends.v6 { 0x86dd } else { 0x0800 });
        at + 2
    }

    fn write_ipv4(&self, frame: &mut [u8], ip: usize, tcp_len: usize) -> usize {
        let Envelope { ends, sender, ttl, id, .. } = *self.envelope;
        let (source, destination) = source_and_destination(&ends, sender);
        let header = &mut frame[ip..ip + IPV4_LEN];
        header[0] = 0x45;
        header[1] = 0;
        put16(header, 2, (IPV4_LEN + tcp_len) as u16);
        put16(header, 4, id);
        put16(header, 6, 0x4000);
        header[8] = ttl;
        header[9] = TCP;
        put16(header, 10, 0);
        put32(header, 12, source[3]);
        put32(header, 16, destination[3]);
        let sum = !checksum::sum(header);
        put16(header, 10, sum);
        ip + IPV4_LEN
    }

    fn write_ipv6(&self, frame: &mut [u8], ip: usize, tcp_len: usize) -> usize {
        let Envelope { ends, sender, ttl, label, .. } = *self.envelope;
        let (source, destination) = source_and_destination(&ends, sender);
        let header = &mut frame[ip..ip + IPV6_LEN];
        put32(header, 0, 6 << 28 | label);
        put16(header, 4, tcp_len as u16);
        header[6] = TCP;
        header[7] = ttl;
        for i in 0..4 {
            put32(header, 8 + 4 * i, source[i]);
            put32(header, 24 + 4 * i, destination[i]);
        }
        ip + IPV6_LEN
    }

    fn write_tcp(&self, header: &mut [u8]) {
        let ends = &self.envelope.ends;
        let (from, to) = match self.envelope.sender {
            Side::Lan => (ends.lan_port, ends.wan_port),
            Side::Wan => (ends.wan_port, ends.lan_port),
        };
        put16(header, 0, from);
        put16(header, 2, to);
        put32(header, 4, self.seq.get());
        put32(header, 8, self.ack.get());
        header[12] = ((header.len() / 4) << 4) as u8;
        header[13] = self.flags.0;
        put16(header, 14, self.window.0);
        put32(header, 16, 0);
        self.options.write(&mut header[TCP_LEN..]);
        let pseudo = pseudo_header_sum(ends, header.len());
        let sum = !checksum::fold(u64::from(pseudo) + u64::from(checksum::sum(header)));
        put16(header, 16, sum);
    }
}

fn source_and_destination(ends: &Ends, sender: Side) -> (super::Addr, super::Addr) {
    match sender {
        Side::Lan => (ends.lan, ends.wan),
        Side::Wan => (ends.wan, ends.lan),
    }
}
