//! TCP segments as a test sees them: read with etherparse and written by hand, so that nothing here is shared
//! with the engine's own parser and its possible errors.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::layers::{Layers, Tags};

/// A TCP segment with what its frame said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number, if the ACK flag is set.
    pub ack: Option<u32>,
    /// SYN flag.
    pub syn: bool,
    /// FIN flag.
    pub fin: bool,
    /// RST flag.
    pub rst: bool,
    /// PSH flag.
    pub psh: bool,
    /// ECE flag: an echo of congestion; with CWR in a SYN, the sender asks for ECN.
    pub ece: bool,
    /// CWR flag: the sender has slowed down.
    pub cwr: bool,
    /// AE flag, which was the nonce sum: with the two others in a SYN, the sender asks for accurate ECN.
    pub ae: bool,
    /// The congestion field of the IP header: 0, or one of [`ECT0`], [`ECT1`] and [`CE`].
    pub ecn: u8,
    /// The window field, unscaled.
    pub window: u16,
    /// The options.
    pub options: Options,
    /// Whether the options were read to their end without an error.
    pub options_sound: bool,
    /// Bytes the options take.
    pub options_len: usize,
    /// Payload.
    pub payload: &'a [u8],
    /// Whether the IPv4 header's checksum is right (always for IPv6).
    pub ip_sum_right: bool,
    /// Whether the TCP checksum is right.
    pub tcp_sum_right: bool,
    /// Bytes of the frame, padding included.
    pub frame_len: usize,
    /// The hop limit of the IP header.
    pub hops: u8,
    /// The class of the IP header, in the upper six bits of eight.
    pub class: u8,
    /// The tags of the frame.
    pub tags: Tags,
    /// [`Layers::surroundings`].
    pub surroundings: u64,
}

/// The sender takes part in ECN (RFC 3168).
pub const ECT0: u8 = 2;
/// The same, said otherwise.
pub const ECT1: u8 = 1;
/// There was congestion on the way.
pub const CE: u8 = 3;

/// What a host and its peer have agreed on about congestion marks: table 2 of RFC 9768, as this crate reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Mode {
    /// Nothing.
    #[default]
    None,
    /// ECE until CWR (RFC 3168).
    Classic,
    /// A count in three flags (RFC 9768).
    Accurate,
}

impl Mode {
    /// What a SYN with these three flags asks for, as a host that knows accurate ECN takes it.
    pub fn asked(ace: u8) -> Mode {
        match ace {
            0 => Mode::None,
            3 => Mode::Classic,
            _ => Mode::Accurate,
        }
    }

    /// What a client goes on with that has asked for this and got a SYN-ACK with these three flags.
    pub fn agreed(self, ace: u8) -> Mode {
        match (self, ace) {
            (Mode::None, _) | (_, 0 | 7) => Mode::None,
            (Mode::Accurate, 1) => Mode::Classic,
            (Mode::Accurate, _) => Mode::Accurate,
            (Mode::Classic, ace) if ace & 3 == 1 => Mode::Classic,
            (Mode::Classic, _) => Mode::None,
        }
    }
}

/// How the three flags tell that a SYN, or a SYN-ACK, came with this congestion field (tables 2 and 3 of RFC 9768).
pub fn told(field: u8) -> u8 {
    match field {
        0 => 2,
        ECT1 => 3,
        ECT0 => 4,
        _ => 6,
    }
}

/// TCP options this crate judges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Maximum segment size.
    pub mss: Option<u16>,
    /// Window scale.
    pub scale: Option<u8>,
    /// SACK permitted.
    pub sack_permitted: bool,
    /// TSval and TSecr.
    pub stamps: Option<(u32, u32)>,
    /// SACK blocks, in their order.
    pub sack: [Option<(u32, u32)>; 4],
    /// The AccECN option.
    pub counters: Option<Counters>,
}

/// The AccECN option (RFC 9768 section 3.2.3): how many bytes of data have come with each ECN field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// [`Counters::ORDER_0`] or [`Counters::ORDER_1`].
    pub kind: u8,
    /// How many counters there are: none to three.
    pub count: u8,
    /// The counters of 24 bits; zero where there are fewer.
    pub values: [u32; 3],
}

impl Counters {
    /// The option's kind if the counter of ECT(0) comes first.
    pub const ORDER_0: u8 = 172;
    /// The option's kind if that of ECT(1) does.
    pub const ORDER_1: u8 = 174;

    fn read(kind: u8, body: &[u8]) -> Option<Self> {
        if !body.len().is_multiple_of(3) || body.len() > 9 {
            return None;
        }
        let mut values = [0; 3];
        for (value, bytes) in values.iter_mut().zip(body.chunks(3)) {
            *value = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        }
        Some(Self { kind, count: (body.len() / 3) as u8, values })
    }

    /// The bytes of the option.
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind, 2 + 3 * self.count];
        let values = &self.values[..usize::from(self.count)];
        values.iter().for_each(|value| bytes.extend_from_slice(&value.to_be_bytes()[1..]));
        bytes
    }
}

impl Options {
    /// The SACK blocks present.
    pub fn blocks(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.sack.iter().flatten().copied()
    }

    /// Reads them, and says whether they could be read to their end. What this crate has no name for cannot.
    fn read(mut bytes: &[u8]) -> (Self, bool) {
        let mut options = Self::default();
        while let Some(&kind) = bytes.first() {
            bytes = match kind {
                0 => break,
                1 => &bytes[1..],
                _ => {
                    let length = bytes.get(1).map_or(0, |&length| usize::from(length));
                    let Some(body) = bytes.get(2..length) else { return (options, false) };
                    if options.take(kind, body).is_none() {
                        return (options, false);
                    }
                    &bytes[length..]
                }
            };
        }
        (options, true)
    }

    /// Takes one option, unless it is of another kind or its length is wrong.
    fn take(&mut self, kind: u8, body: &[u8]) -> Option<()> {
        let number = |at: usize| Some(u32::from_be_bytes(body.get(at..at + 4)?.try_into().ok()?));
        match (kind, body.len()) {
            (2, 2) => self.mss = Some(u16::from_be_bytes([body[0], body[1]])),
            (3, 1) => self.scale = Some(body[0]),
            (4, 0) => self.sack_permitted = true,
            (5, 8 | 16 | 24 | 32) => {
                self.sack = [0, 8, 16, 24].map(|at| Some((number(at)?, number(at + 4)?)));
            }
            (8, 8) => self.stamps = Some((number(0)?, number(4)?)),
            (Counters::ORDER_0 | Counters::ORDER_1, _) => self.counters = Some(Counters::read(kind, body)?),
            _ => return None,
        }
        Some(())
    }
}

impl<'a> Segment<'a> {
    /// Reads an Ethernet frame; `None` if it holds no whole TCP segment.
    pub fn read(frame: &'a [u8]) -> Option<Self> {
        let layers = Layers::read(frame)?;
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
        // Summed over the bytes as they lie there: a parsed header forgets bits it has no name for.
        let length = tcp.slice().len();
        let (source, destination, ip_sum_right, pseudo) = match packet.net? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                let right = fold(sum(header.slice(), 0)) == 0;
                let pseudo = sum_of_pseudo(&header.slice()[12..20], length);
                (IpAddr::from(header.source()), IpAddr::from(header.destination()), right, pseudo)
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                let pseudo = sum_of_pseudo(&header.slice()[8..40], length);
                (IpAddr::from(header.source()), IpAddr::from(header.destination()), true, pseudo)
            }
            NetSlice::Arp(_) => return None,
        };
        let (options, options_sound) = Options::read(tcp.options());
        Some(Self {
            source: SocketAddr::new(source, tcp.source_port()),
            destination: SocketAddr::new(destination, tcp.destination_port()),
            seq: tcp.sequence_number(),
            ack: tcp.ack().then(|| tcp.acknowledgment_number()),
            syn: tcp.syn(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            psh: tcp.psh(),
            ece: tcp.ece(),
            cwr: tcp.cwr(),
            ae: tcp.ns(),
            ecn: layers.ecn(frame),
            window: tcp.window_size(),
            options,
            options_sound,
            options_len: tcp.options().len(),
            payload: tcp.payload(),
            ip_sum_right,
            tcp_sum_right: fold(sum(tcp.slice(), pseudo)) == 0,
            frame_len: frame.len(),
            hops: layers.hops(frame),
            class: layers.class(frame),
            tags: layers.tags,
            surroundings: layers.surroundings(frame),
        })
    }

    /// AE, CWR and ECE as one number, AE its highest bit.
    pub fn ace(&self) -> u8 {
        u8::from(self.ae) << 2 | u8::from(self.cwr) << 1 | u8::from(self.ece)
    }

    /// Sets the three by this number.
    pub fn set_ace(&mut self, ace: u8) {
        (self.ae, self.cwr, self.ece) = (ace & 4 != 0, ace & 2 != 0, ace & 1 != 0);
    }

    /// Whether both checksums are right.
    pub fn sums_right(&self) -> bool {
        self.ip_sum_right && self.tcp_sum_right
    }

    /// Sequence numbers the segment takes.
    pub fn length(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.syn) + u32::from(self.fin)
    }

    /// A segment without options and payload, for a test to fill in.
    pub fn new(source: SocketAddr, destination: SocketAddr, seq: u32, ack: Option<u32>) -> Self {
        Self {
            source,
            destination,
            seq,
            ack,
            syn: false,
            fin: false,
            rst: false,
            psh: false,
            ece: false,
            cwr: false,
            ae: false,
            ecn: 0,
            window: 0,
            options: Options::default(),
            options_sound: true,
            options_len: 0,
            payload: &[],
            ip_sum_right: true,
            tcp_sum_right: true,
            frame_len: 0,
            hops: 64,
            class: 0,
            tags: [None; 2],
            surroundings: 0,
        }
    }

    /// Writes the segment as an Ethernet frame from `source_mac` to `destination_mac`, checksums right.
    ///
    /// `layout` chooses one of several lawful ways to lay the options out: other orders, padding before or behind.
    ///
    /// # Panics
    /// If the two addresses are of different families, or the options exceed 40 bytes.
    pub fn write(&self, source_mac: [u8; 6], destination_mac: [u8; 6], layout: Layout) -> Vec<u8> {
        let options = layout.lay_out(&self.options);
        assert!(options.len() <= 40 && options.len().is_multiple_of(4), "options take {} bytes", options.len());
        let tcp_len = 20 + options.len() + self.payload.len();
        let mut frame = Vec::with_capacity(14 + 40 + tcp_len);
        frame.extend_from_slice(&destination_mac);
        frame.extend_from_slice(&source_mac);
        let pseudo = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend_from_slice(&[0x08, 0x00, 0x45, self.class | self.ecn]);
                frame.extend_from_slice(&((20 + tcp_len) as u16).to_be_bytes());
                frame.extend_from_slice(&[0, 0, 0x40, 0, self.hops, 6, 0, 0]);
                frame.extend_from_slice(&source.octets());
                frame.extend_from_slice(&destination.octets());
                let sum = fold(sum(&frame[14..34], 0));
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
                sum_of_pseudo(&frame[26..34], tcp_len)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let class = self.class | self.ecn;
                frame.extend_from_slice(&[0x86, 0xdd, 0x60 | class >> 4, class << 4, 0, 0]);
                frame.extend_from_slice(&(tcp_len as u16).to_be_bytes());
                frame.extend_from_slice(&[6, self.hops]);
                frame.extend_from_slice(&source.octets());
                frame.extend_from_slice(&destination.octets());
                sum_of_pseudo(&frame[22..54], tcp_len)
            }
            _ => panic!("a segment between two address families"),
        };
        let tcp = frame.len();
        frame.extend_from_slice(&self.source.port().to_be_bytes());
        frame.extend_from_slice(&self.destination.port().to_be_bytes());
        frame.extend_from_slice(&self.seq.to_be_bytes());
        frame.extend_from_slice(&self.ack.unwrap_or(0).to_be_bytes());
        let flags = u8::from(self.fin)
            | u8::from(self.syn) << 1
            | u8::from(self.rst) << 2
            | u8::from(self.psh) << 3
            | u8::from(self.ack.is_some()) << 4
            | u8::from(self.ece) << 6
            | u8::from(self.cwr) << 7;
        frame.extend_from_slice(&[(((20 + options.len()) / 4) << 4) as u8 | u8::from(self.ae), flags]);
        frame.extend_from_slice(&self.window.to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&options);
        frame.extend_from_slice(self.payload);
        let sum = fold(sum(&frame[tcp..], pseudo));
        frame[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
        // Ethernet's minimum, without the frame check sequence.
        if frame.len() < 60 {
            frame.resize(60, 0);
        }
        frame
    }
}

impl fmt::Display for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |set: bool, letter: &'static str| if set { letter } else { "" };
        write!(
            f,
            "{} > {} [{}{}{}{}{}{}{}{}] seq {}",
            self.source,
            self.destination,
            flag(self.syn, "S"),
            flag(self.fin, "F"),
            flag(self.rst, "R"),
            flag(self.psh, "P"),
            flag(self.ack.is_some(), "."),
            flag(self.ece, "E"),
            flag(self.cwr, "W"),
            flag(self.ae, "A"),
            self.seq
        )?;
        if let Some(ack) = self.ack {
            write!(f, " ack {ack}")?;
        }
        write!(f, " win {} len {}", self.window, self.payload.len())?;
        if let Some(mss) = self.options.mss {
            write!(f, " mss {mss}")?;
        }
        if let Some(scale) = self.options.scale {
            write!(f, " ws {scale}")?;
        }
        if self.options.sack_permitted {
            write!(f, " sackOK")?;
        }
        if let Some((value, echo)) = self.options.stamps {
            write!(f, " ts {value}:{echo}")?;
        }
        for (left, right) in self.options.blocks() {
            write!(f, " sack {left}..{right}")?;
        }
        if let Some(counters) = self.options.counters {
            write!(f, " accecn {}", counters.kind)?;
            counters.values[..usize::from(counters.count)].iter().try_for_each(|value| write!(f, ":{value}"))?;
        }
        if self.ecn != 0 {
            write!(f, " {}", ["", "ect1", "ect0", "ce"][usize::from(self.ecn)])?;
        }
        if (self.hops, self.class) != (64, 0) {
            write!(f, " hops {} class {:02x}", self.hops, self.class)?;
        }
        for (protocol, control) in self.tags.iter().flatten() {
            write!(f, " tag {protocol:04x}:{control:04x}")?;
        }
        if !self.options_sound {
            write!(f, " (options unsound)")?;
        }
        if !self.ip_sum_right {
            write!(f, " (IP checksum wrong)")?;
        }
        if !self.tcp_sum_right {
            write!(f, " (TCP checksum wrong)")?;
        }
        Ok(())
    }
}

/// One of several lawful ways to lay out options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout(pub u8);

impl Layout {
    /// How many differ.
    pub const COUNT: u8 = 6;

    fn lay_out(self, options: &Options) -> Vec<u8> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        if let Some(mss) = options.mss {
            parts.push(vec![2, 4, (mss >> 8) as u8, mss as u8]);
        }
        if let Some(scale) = options.scale {
            parts.push(vec![3, 3, scale]);
        }
        if options.sack_permitted {
            parts.push(vec![4, 2]);
        }
        if let Some((value, echo)) = options.stamps {
            let mut part = vec![8, 10];
            part.extend_from_slice(&value.to_be_bytes());
            part.extend_from_slice(&echo.to_be_bytes());
            parts.push(part);
        }
        if options.blocks().next().is_some() {
            let mut part = vec![5, 2 + 8 * options.blocks().count() as u8];
            for (left, right) in options.blocks() {
                part.extend_from_slice(&left.to_be_bytes());
                part.extend_from_slice(&right.to_be_bytes());
            }
            parts.push(part);
        }
        parts.extend(options.counters.map(|counters| counters.write()));
        let need: usize = parts.iter().map(Vec::len).sum();
        let mut spare = need.next_multiple_of(4) - need;
        if matches!(self.0, 2 | 3) {
            parts.reverse();
        }
        // An odd offset for what follows: the NOPs that fill the last word come first or between.
        let mut bytes = Vec::with_capacity(40);
        if self.0 == 1 || self.0 == 3 {
            bytes.resize(spare, 1);
            spare = 0;
        }
        for part in &parts {
            if matches!(self.0, 4 | 5) && spare > 0 {
                bytes.push(1);
                spare -= 1;
            }
            bytes.extend_from_slice(part);
        }
        if self.0 == 5 {
            // End of option list, then padding.
            bytes.resize(bytes.len() + spare, 0);
        } else {
            bytes.resize(bytes.len() + spare, 1);
        }
        bytes
    }
}

pub(crate) fn sum_of_pseudo(addresses: &[u8], tcp_len: usize) -> u32 {
    sum(addresses, 6 + tcp_len as u32)
}

pub(crate) fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| sum + (u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| u32::from(b))))
}

pub(crate) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9768 section 3.1.2, table 2, and section 3.1.3 for the combinations it reserves: what a client goes on with by what its SYN and its
    /// server's SYN-ACK say in (AE, CWR, ECE).
    #[test]
    fn both_ends_agree_on_what_the_table_says() {
        use Mode::{Accurate, Classic, None};
        // The rows of the table: the client, the server, what their SYN and SYN-ACK say, and what the client goes on with.
        let rows = [
            ("AccECN", "AccECN, and the SYN came as Not-ECT", 0b111, 0b010, Accurate),
            ("AccECN", "AccECN, and the SYN came as ECT(1)", 0b111, 0b011, Accurate),
            ("AccECN", "AccECN, and the SYN came as ECT(0)", 0b111, 0b100, Accurate),
            ("AccECN", "AccECN, and the SYN came with a mark", 0b111, 0b110, Accurate),
            ("AccECN", "Nonce: reserved, taken as AccECN", 0b111, 0b101, Accurate),
            ("AccECN", "classic ECN", 0b111, 0b001, Classic),
            ("AccECN", "no ECN", 0b111, 0b000, None),
            ("Nonce", "AccECN", 0b011, 0b001, Classic),
            ("classic ECN", "AccECN", 0b011, 0b001, Classic),
            ("no ECN", "AccECN", 0b000, 0b000, None),
            ("AccECN", "broken: it reflects the SYN", 0b111, 0b111, None),
        ];
        for (client, server, syn, syn_ack, mode) in rows {
            assert_eq!(Mode::asked(syn).agreed(syn_ack), mode, "{client} and {server}");
        }
        // All SYNs: whatever is reserved asks for AccECN.
        let asked = [None, Accurate, Accurate, Classic, Accurate, Accurate, Accurate, Accurate];
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(Mode::asked), asked);
        // All SYN-ACKs. RFC 3168 section 6.1.1: ECE without CWR agrees to classic ECN, whatever the reserved bit beside them says.
        let agreed = [
            (None, [None; 8]),
            (Classic, [None, Classic, None, None, None, Classic, None, None]),
            (Accurate, [None, Classic, Accurate, Accurate, Accurate, Accurate, Accurate, None]),
        ];
        for (asked, modes) in agreed {
            assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|ace| asked.agreed(ace)), modes, "{asked:?}");
        }
        // Tables 2 and 3: Not-ECT, ECT(1), ECT(0), CE, and each of them agrees.
        assert_eq!([0, ECT1, ECT0, CE].map(told), [0b010, 0b011, 0b100, 0b110]);
    }

    #[test]
    fn options_are_sound_only_if_each_is_as_long_as_its_kind() {
        let sound: [&[u8]; 7] = [
            &[],
            &[2, 4, 5, 0xb4, 0, 9, 9, 9],
            &[1, 3, 3, 7, 4, 2, 1, 1],
            &[172, 2, 1, 1],
            &[172, 5, 0, 0, 1, 1, 1, 1],
            &[174, 8, 0, 0, 1, 0, 0, 2],
            &[1, 174, 11, 0, 0, 1, 0, 0, 2, 0, 0, 3],
        ];
        sound.iter().for_each(|options| assert!(Options::read(options).1, "{options:?}"));
        let unsound: [&[u8]; 8] = [
            &[2],
            &[2, 1, 1, 1],
            &[2, 3, 5, 1],
            &[8, 10, 0, 0],
            &[5, 6, 0, 0, 0, 0, 1, 1],
            &[172, 4, 0, 0],
            &[174, 14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1],
            &[99, 2, 1, 1],
        ];
        unsound.iter().for_each(|options| assert!(!Options::read(options).1, "{options:?}"));
    }

    #[test]
    fn what_is_written_reads_back_in_every_layout() {
        for (source, destination) in [("10.0.0.1:7", "10.0.0.2:9"), ("[fd00::1]:7", "[fd00::2]:9")] {
            for layout in 0..Layout::COUNT {
                let mut segment =
                    Segment::new(source.parse().unwrap(), destination.parse().unwrap(), 0xffff_fff0, Some(17));
                (segment.window, segment.hops, segment.class) = (512, 61, 0xb8);
                (segment.psh, segment.ece, segment.cwr, segment.ecn) = (true, true, true, CE);
                segment.payload = b"odd";
                segment.options.stamps = Some((1, 2));
                segment.options.sack[0] = Some((0xffff_ff00, 0x10));
                segment.options.counters = Some(Counters { kind: 174, count: 2, values: [0xff_ffff, 7, 0] });
                let frame = segment.write([2; 6], [4; 6], Layout(layout));
                let mut read = Segment::read(&frame).expect("a segment");
                assert!(read.sums_right() && read.options_sound, "{read}");
                (read.frame_len, read.options_len, read.surroundings) = (0, 0, 0);
                assert_eq!(read, segment);

                let mut syn = Segment::new(source.parse().unwrap(), destination.parse().unwrap(), 1, None);
                syn.syn = true;
                syn.options = Options { mss: Some(1460), scale: Some(7), sack_permitted: true, ..Options::default() };
                let frame = syn.write([2; 6], [4; 6], Layout(layout));
                let mut read = Segment::read(&frame).expect("a segment");
                assert!(read.sums_right() && read.options_sound, "{read}");
                (read.frame_len, read.options_len, read.surroundings) = (0, 0, 0);
                assert_eq!(read, syn);
            }
        }
    }
}
