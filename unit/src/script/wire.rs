//! Frames for scripts, built and read by code that shares nothing with the engine's: an error in the engine's
//! understanding of a header cannot hide behind the same error here.

use std::fmt;
use std::net::IpAddr;

use tcpstate::Instant;

/// No more data from the sender.
pub const FIN: u16 = 0x001;
/// Synchronize sequence numbers.
pub const SYN: u16 = 0x002;
/// Reset the connection.
pub const RST: u16 = 0x004;
/// Push.
pub const PSH: u16 = 0x008;
/// The acknowledgement number is meant.
pub const ACK: u16 = 0x010;
/// The urgent pointer is meant.
pub const URG: u16 = 0x020;
/// ECN echo.
pub const ECE: u16 = 0x040;
/// Congestion window reduced.
pub const CWR: u16 = 0x080;
/// Accurate ECN, once the nonce sum.
pub const AE: u16 = 0x100;

/// A 32-bit field of a segment: a number, or (only when expecting) any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Num {
    /// Exactly this number.
    Is(u32),
    /// Whatever number.
    Any,
}

/// Whatever number, in an expectation.
pub const ANY: Num = Num::Any;

impl From<u32> for Num {
    fn from(number: u32) -> Self {
        Num::Is(number)
    }
}

impl Num {
    fn allows(self, number: u32) -> bool {
        match self {
            Num::Is(wanted) => wanted == number,
            Num::Any => true,
        }
    }

    fn known(self) -> u32 {
        match self {
            Num::Is(number) => number,
            Num::Any => panic!("a segment to send needs numbers, not ANY"),
        }
    }
}

impl fmt::Display for Num {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Num::Is(number) => write!(f, "{number}"),
            Num::Any => f.write_str("*"),
        }
    }
}

/// A TCP option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opt {
    /// One byte of padding.
    Nop,
    /// The end of the list.
    End,
    /// Maximum segment size.
    Mss(u16),
    /// Only when expecting: an MSS of at most this, and at most 20 less. As long as it is not known whether a server takes
    /// timestamps, room is kept for those it may have to be spared.
    MssUpTo(u16),
    /// Window scale.
    Wscale(u8),
    /// SACK permitted.
    SackOk,
    /// Selective acknowledgements: left and right edges.
    Sack(Vec<(u32, u32)>),
    /// Timestamps: value and echo reply.
    Ts(Num, Num),
    /// Any bytes, valid or not.
    Raw(Vec<u8>),
}

impl Opt {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Opt::Nop => out.push(1),
            Opt::End => out.push(0),
            Opt::Mss(mss) => {
                out.extend([2, 4]);
                out.extend(mss.to_be_bytes());
            }
            Opt::MssUpTo(_) => panic!("a segment to send needs a number"),
            Opt::Wscale(shift) => out.extend([3, 3, *shift]),
            Opt::SackOk => out.extend([4, 2]),
            Opt::Sack(blocks) => {
                out.extend([5, u8::try_from(2 + 8 * blocks.len()).expect("at most four blocks fit")]);
                for (left, right) in blocks {
                    out.extend(left.to_be_bytes());
                    out.extend(right.to_be_bytes());
                }
            }
            Opt::Ts(value, echo) => {
                out.extend([8, 10]);
                out.extend(value.known().to_be_bytes());
                out.extend(echo.known().to_be_bytes());
            }
            Opt::Raw(bytes) => out.extend(bytes),
        }
    }

    fn is_padding(&self) -> bool {
        matches!(self, Opt::Nop | Opt::End)
    }

    fn allows(&self, got: &Opt) -> bool {
        match (self, got) {
            (Opt::MssUpTo(most), Opt::Mss(mss)) => (most - 20..=*most).contains(mss),
            (Opt::Ts(value, echo), Opt::Ts(Num::Is(v), Num::Is(e))) => value.allows(*v) && echo.allows(*e),
            _ => self == got,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Opt::End => 0,
            Opt::Nop => 1,
            Opt::Mss(_) | Opt::MssUpTo(_) => 2,
            Opt::Wscale(_) => 3,
            Opt::SackOk => 4,
            Opt::Sack(_) => 5,
            Opt::Ts(..) => 8,
            Opt::Raw(bytes) => bytes.first().copied().unwrap_or(255),
        }
    }
}

/// An IPv6 extension header before the TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options, padded to eight bytes.
    HopByHop,
    /// Destination options, padded to sixteen bytes.
    Destination,
    /// A routing header with no segments left.
    Routing,
    /// A fragment header: offset in bytes, and whether more fragments follow.
    Fragment(u16, bool),
    /// An authentication header with a 96-bit check value.
    Authentication,
    /// A mobility header; TCP never follows it by the standard.
    Mobility,
}

impl Extension {
    fn number(self) -> u8 {
        match self {
            Extension::HopByHop => 0,
            Extension::Routing => 43,
            Extension::Fragment(..) => 44,
            Extension::Authentication => 51,
            Extension::Destination => 60,
            Extension::Mobility => 135,
        }
    }

    fn write(self, next: u8, out: &mut Vec<u8>) {
        match self {
            Extension::HopByHop => out.extend([next, 0, 1, 4, 0, 0, 0, 0]),
            Extension::Destination => out.extend([next, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Extension::Routing => out.extend([next, 0, 4, 0, 0, 0, 0, 0]),
            Extension::Fragment(offset, more) => {
                let field = (offset & !7) | u16::from(more);
                out.extend([next, 0]);
                out.extend(field.to_be_bytes());
                out.extend([0, 0, 0x12, 0x34]);
            }
            Extension::Authentication => {
                out.extend([next, 4, 0, 0]);
                out.extend([0x5A; 20]);
            }
            Extension::Mobility => out.extend([next, 0, 5, 0, 0, 0, 0, 0]),
        }
    }
}

/// A segment to send, or to expect.
///
/// As an expectation it is exact: flags, numbers, window, payload, and the set of options apart from padding.
#[derive(Clone, Debug)]
pub struct Seg {
    pub(crate) flags: u16,
    pub(crate) seq: Num,
    pub(crate) ack: Num,
    pub(crate) window: Num,
    pub(crate) options: Vec<Opt>,
    pub(crate) any_options: bool,
    pub(crate) payload: Vec<u8>,
    pub(crate) ttl: Option<u8>,
    pub(crate) tos: Option<u8>,
    pub(crate) ip_options: Vec<u8>,
    pub(crate) extensions: Vec<Extension>,
}

/// The window field of a segment that does not say another.
pub const WINDOW: u16 = 502;

/// A segment with these flags; numbers, if not said, are zero.
pub fn segment(flags: u16, seq: impl Into<Num>, ack: impl Into<Num>) -> Seg {
    Seg {
        flags,
        seq: seq.into(),
        ack: ack.into(),
        window: Num::Is(u32::from(WINDOW)),
        options: Vec::new(),
        any_options: false,
        payload: Vec::new(),
        ttl: None,
        tos: None,
        ip_options: Vec::new(),
        extensions: Vec::new(),
    }
}

/// A SYN.
pub fn syn(seq: impl Into<Num>) -> Seg {
    segment(SYN, seq, 0)
}

/// A SYN-ACK.
pub fn syn_ack(seq: impl Into<Num>, ack: impl Into<Num>) -> Seg {
    segment(SYN | ACK, seq, ack)
}

/// An acknowledgement without data.
pub fn ack(seq: impl Into<Num>, ack: impl Into<Num>) -> Seg {
    segment(ACK, seq, ack)
}

/// `len` bytes of data.
pub fn data(seq: impl Into<Num>, ack: impl Into<Num>, len: usize) -> Seg {
    segment(PSH | ACK, seq, ack).payload(len)
}

/// A FIN with its acknowledgement.
pub fn fin(seq: impl Into<Num>, ack: impl Into<Num>) -> Seg {
    segment(FIN | ACK, seq, ack)
}

/// A RST without acknowledgement, its window zero.
pub fn rst(seq: impl Into<Num>) -> Seg {
    segment(RST, seq, 0).window(0)
}

/// A RST with acknowledgement, its window zero.
pub fn rst_ack(seq: impl Into<Num>, ack: impl Into<Num>) -> Seg {
    segment(RST | ACK, seq, ack).window(0)
}

impl Seg {
    /// With this window field.
    #[must_use]
    pub fn window(mut self, window: u16) -> Self {
        self.window = Num::Is(u32::from(window));
        self
    }

    /// With whatever window field (only when expecting).
    #[must_use]
    pub fn any_window(mut self) -> Self {
        self.window = Num::Any;
        self
    }

    /// With a maximum segment size option.
    #[must_use]
    pub fn mss(self, mss: u16) -> Self {
        self.option(Opt::Mss(mss))
    }

    /// With an MSS option of about this size (only when expecting): see [`Opt::MssUpTo`].
    #[must_use]
    pub fn mss_up_to(self, mss: u16) -> Self {
        self.option(Opt::MssUpTo(mss))
    }

    /// With a window scale option.
    #[must_use]
    pub fn wscale(self, shift: u8) -> Self {
        self.option(Opt::Wscale(shift))
    }

    /// With a SACK-permitted option.
    #[must_use]
    pub fn sack_ok(self) -> Self {
        self.option(Opt::SackOk)
    }

    /// With selective acknowledgements of these ranges, left edge inclusive, right edge exclusive.
    #[must_use]
    pub fn sack(self, blocks: &[(u32, u32)]) -> Self {
        self.option(Opt::Sack(blocks.to_vec()))
    }

    /// With a timestamps option.
    #[must_use]
    pub fn ts(self, value: impl Into<Num>, echo: impl Into<Num>) -> Self {
        self.option(Opt::Ts(value.into(), echo.into()))
    }

    /// With timestamps, if there are any.
    #[must_use]
    pub fn maybe_ts(self, stamps: Option<(u32, u32)>) -> Self {
        match stamps {
            Some((value, echo)) => self.nop().nop().ts(value, echo),
            None => self,
        }
    }

    /// With a byte of padding.
    #[must_use]
    pub fn nop(self) -> Self {
        self.option(Opt::Nop)
    }

    /// With the end of the option list here; what follows is to be ignored.
    #[must_use]
    pub fn end(self) -> Self {
        self.option(Opt::End)
    }

    /// With these raw option bytes.
    #[must_use]
    pub fn raw(self, bytes: &[u8]) -> Self {
        self.option(Opt::Raw(bytes.to_vec()))
    }

    /// With one more option.
    #[must_use]
    pub fn option(mut self, option: Opt) -> Self {
        self.options.push(option);
        self
    }

    /// With whatever options (only when expecting).
    #[must_use]
    pub fn any_options(mut self) -> Self {
        self.any_options = true;
        self
    }

    /// With `len` bytes of data, the same for the same length.
    #[must_use]
    pub fn payload(mut self, len: usize) -> Self {
        self.payload = (0..len).map(|i| (i * 7 + len * 13 + 1) as u8).collect();
        self
    }

    /// With these flags besides.
    #[must_use]
    pub fn flags(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// With this type of service or traffic class.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = Some(tos);
        self
    }

    /// With these IPv4 options (a multiple of four bytes).
    #[must_use]
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        assert_eq!(options.len() % 4, 0, "IPv4 options fill words");
        self.ip_options = options.to_vec();
        self
    }

    /// Behind these IPv6 extension headers.
    #[must_use]
    pub fn behind(mut self, extensions: &[Extension]) -> Self {
        self.extensions = extensions.to_vec();
        self
    }

    /// Whether it bears SACK blocks.
    pub fn has_blocks(&self) -> bool {
        self.options.iter().any(|option| matches!(option, Opt::Sack(_)))
    }

    /// How far the segment advances the sender's sequence numbers.
    pub fn seq_len(&self) -> u32 {
        let flags = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        u32::try_from(self.payload.len()).expect("a payload fits") + flags
    }
}

impl fmt::Display for Seg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(f, self.flags, self.seq, self.ack, self.window, self.payload.len(), &self.options)?;
        if self.any_options { f.write_str(" <any options>") } else { Ok(()) }
    }
}

fn describe(
    f: &mut fmt::Formatter<'_>,
    flags: u16,
    seq: Num,
    ack: Num,
    window: Num,
    len: usize,
    options: &[Opt],
) -> fmt::Result {
    const NAMES: [&str; 9] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "AE"];
    let mut first = true;
    for (bit, name) in NAMES.iter().enumerate() {
        if flags & (1 << bit) != 0 {
            write!(f, "{}{name}", if first { "" } else { "|" })?;
            first = false;
        }
    }
    if first {
        f.write_str("(no flags)")?;
    }
    write!(f, " seq {seq} ack {ack} win {window} len {len}")?;
    for option in options {
        match option {
            Opt::Nop => f.write_str(" nop")?,
            Opt::End => f.write_str(" end")?,
            Opt::Mss(mss) => write!(f, " mss {mss}")?,
            Opt::MssUpTo(mss) => write!(f, " mss <={mss}")?,
            Opt::Wscale(shift) => write!(f, " wscale {shift}")?,
            Opt::SackOk => f.write_str(" sack-ok")?,
            Opt::Sack(blocks) => write!(f, " sack {blocks:?}")?,
            Opt::Ts(value, echo) => write!(f, " ts {value}/{echo}")?,
            Opt::Raw(bytes) => write!(f, " raw {bytes:02x?}")?,
        }
    }
    Ok(())
}

/// A segment as it came out of the box, read in full.
#[derive(Clone, Debug)]
pub struct Got {
    /// When it came out.
    pub at: Instant,
    /// The whole frame.
    pub frame: Vec<u8>,
    /// Destination and source MAC address.
    pub macs: ([u8; 6], [u8; 6]),
    /// VLAN tags, outermost first, protocol and control information.
    pub tags: Vec<(u16, u16)>,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Source and destination port.
    pub ports: (u16, u16),
    /// Flags, nine bits.
    pub flags: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window field.
    pub window: u16,
    /// Options in order, padding included.
    pub options: Vec<Opt>,
    /// Data.
    pub payload: Vec<u8>,
    /// Where the TCP header begins in the frame.
    pub tcp_at: usize,
    /// Whether the IPv4 header's and the TCP checksum are right.
    pub checksums: (bool, bool),
}

impl Got {
    /// The value of the MSS option.
    pub fn mss(&self) -> Option<u16> {
        self.options.iter().find_map(|o| if let Opt::Mss(mss) = o { Some(*mss) } else { None })
    }

    /// The shift of the window scale option.
    pub fn wscale(&self) -> Option<u8> {
        self.options.iter().find_map(|o| if let Opt::Wscale(shift) = o { Some(*shift) } else { None })
    }

    /// Whether SACK is permitted.
    pub fn sack_ok(&self) -> bool {
        self.options.contains(&Opt::SackOk)
    }

    /// Timestamp value and echo reply.
    pub fn ts(&self) -> Option<(u32, u32)> {
        self.options.iter().find_map(|o| if let Opt::Ts(v, e) = o { Some((v.known(), e.known())) } else { None })
    }

    /// The SACK blocks of the first SACK option.
    pub fn sack(&self) -> Option<&[(u32, u32)]> {
        self.options.iter().find_map(|o| if let Opt::Sack(blocks) = o { Some(blocks.as_slice()) } else { None })
    }

    /// What is wrong with it, if `wanted` was wanted.
    pub fn differs(&self, wanted: &Seg) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |what: &str, ok: bool| {
            if !ok {
                wrong.push(what.to_owned());
            }
        };
        check("flags", self.flags == wanted.flags);
        check("seq", wanted.seq.allows(self.seq));
        // Without the ACK flag the field means nothing; a sender leaves it zero (RFC 9293 section 3.1 does not demand it).
        check("ack", self.flags & ACK == 0 || wanted.ack.allows(self.ack));
        check("window", wanted.window.allows(u32::from(self.window)));
        check("payload", self.payload == wanted.payload);
        check("ttl", wanted.ttl.is_none_or(|ttl| ttl == self.ttl));
        check("tos", wanted.tos.is_none_or(|tos| tos == self.tos));
        if !wanted.any_options {
            let sorted = |options: &[Opt]| {
                let mut options: Vec<Opt> = options.iter().filter(|o| !o.is_padding()).cloned().collect();
                options.sort_by_key(Opt::rank);
                options
            };
            let (mine, theirs) = (sorted(&wanted.options), sorted(&self.options));
            check("options", mine.len() == theirs.len() && mine.iter().zip(&theirs).all(|(m, t)| m.allows(t)));
        }
        wrong
    }
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(
            f,
            self.flags,
            Num::Is(self.seq),
            Num::Is(self.ack),
            Num::Is(u32::from(self.window)),
            self.payload.len(),
            &self.options,
        )
    }
}

/// The two ends of a connection as one of them sees it, down to the MAC addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Source MAC address.
    pub src_mac: [u8; 6],
    /// Destination MAC address.
    pub dst_mac: [u8; 6],
    /// TTL or hop limit of what is sent from here.
    pub ttl: u8,
}

/// The VLAN tags of a frame with `tags` of them, outermost first.
pub fn vlan_tags(tags: usize) -> &'static [(u16, u16)] {
    match tags {
        0 => &[],
        1 => &[(0x8100, 0x6064)],
        2 => &[(0x88A8, 0x0007), (0x8100, 0x2FFE)],
        _ => panic!("at most two tags"),
    }
}

/// The frame that carries `seg` from one end to the other.
pub fn build(ends: &FlowKey, tags: usize, seg: &Seg) -> Vec<u8> {
    let mut options = Vec::new();
    for option in &seg.options {
        option.write(&mut options);
    }
    while options.len() % 4 != 0 {
        options.push(0);
    }
    assert!(options.len() <= 40, "{} bytes of options do not fit", options.len());
    let tcp_len = 20 + options.len() + seg.payload.len();
    let mut frame = Vec::with_capacity(14 + 8 + 60 + tcp_len);
    frame.extend(ends.dst_mac);
    frame.extend(ends.src_mac);
    for (protocol, control) in vlan_tags(tags) {
        frame.extend(protocol.to_be_bytes());
        frame.extend(control.to_be_bytes());
    }
    let (ttl, tos) = (seg.ttl.unwrap_or(ends.ttl), seg.tos.unwrap_or(0));
    match (ends.src, ends.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame.extend([0x08, 0x00]);
            let header = 20 + seg.ip_options.len();
            frame.extend([0x40 | (header / 4) as u8, tos]);
            frame.extend(((header + tcp_len) as u16).to_be_bytes());
            frame.extend([0x1D, 0x0F, 0x40, 0x00, ttl, 6, 0, 0]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
            frame.extend(&seg.ip_options);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            frame.extend([0x86, 0xDD]);
            let mut chain = Vec::new();
            for (i, extension) in seg.extensions.iter().enumerate() {
                let next = seg.extensions.get(i + 1).map_or(6, |e| e.number());
                extension.write(next, &mut chain);
            }
            let label: u32 = 0xA_BCDE;
            frame.extend((0x6000_0000 | u32::from(tos) << 20 | label).to_be_bytes());
            frame.extend(((chain.len() + tcp_len) as u16).to_be_bytes());
            frame.extend([seg.extensions.first().map_or(6, |e| e.number()), ttl]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
            frame.extend(chain);
        }
        _ => panic!("both ends are of one family"),
    }
    frame.extend(ends.sport.to_be_bytes());
    frame.extend(ends.dport.to_be_bytes());
    frame.extend(seg.seq.known().to_be_bytes());
    frame.extend(seg.ack.known().to_be_bytes());
    let offset = (20 + options.len()) / 4;
    frame.extend(((offset as u16) << 12 | (seg.flags & 0x1FF)).to_be_bytes());
    frame.extend((seg.window.known() as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0]);
    frame.extend(options);
    frame.extend(&seg.payload);
    seal(&mut frame);
    frame
}

/// Where things lie in a frame, as far as its bytes make sense.
struct Layout {
    ip_at: usize,
    ip_header: usize,
    tcp_at: usize,
    end: usize,
    version: u8,
}

fn layout(frame: &[u8]) -> Result<Layout, String> {
    let byte = |at: usize| frame.get(at).copied().ok_or_else(|| format!("ends before byte {at}"));
    let word = |at: usize| Ok::<u16, String>(u16::from_be_bytes([byte(at)?, byte(at + 1)?]));
    let mut at = 12;
    while matches!(word(at)?, 0x8100 | 0x88A8 | 0x9100) {
        at += 4;
    }
    let ethertype = word(at)?;
    let ip_at = at + 2;
    let version = byte(ip_at)? >> 4;
    match (ethertype, version) {
        (0x0800, 4) => {
            let ip_header = usize::from(byte(ip_at)? & 15) * 4;
            let total = usize::from(word(ip_at + 2)?);
            if ip_header < 20 || total < ip_header + 20 || ip_at + total > frame.len() {
                return Err(format!("IPv4 header of {ip_header}, total length {total} in a frame of {}", frame.len()));
            }
            if byte(ip_at + 9)? != 6 {
                return Err("not TCP".to_owned());
            }
            Ok(Layout { ip_at, ip_header, tcp_at: ip_at + ip_header, end: ip_at + total, version })
        }
        (0x86DD, 6) => {
            let end = ip_at + 40 + usize::from(word(ip_at + 4)?);
            if end > frame.len() {
                return Err(format!("IPv6 payload ends at {end} in a frame of {}", frame.len()));
            }
            let (mut next, mut at) = (byte(ip_at + 6)?, ip_at + 40);
            while next != 6 {
                let len = match next {
                    0 | 43 | 60 | 135 => 8 + usize::from(byte(at + 1)?) * 8,
                    44 => 8,
                    51 => 8 + usize::from(byte(at + 1)?) * 4,
                    other => return Err(format!("not TCP but {other}")),
                };
                next = byte(at)?;
                at += len;
            }
            if at + 20 > end {
                return Err("the TCP header is cut".to_owned());
            }
            Ok(Layout { ip_at, ip_header: 40, tcp_at: at, end, version })
        }
        (ethertype, version) => Err(format!("EtherType {ethertype:#06x} with IP version {version}")),
    }
}

pub(super) fn sum(bytes: &[u8], start: u32) -> u32 {
    let mut total = u64::from(start);
    for pair in bytes.chunks(2) {
        total += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while total > 0xFFFF {
        total = (total & 0xFFFF) + (total >> 16);
    }
    total as u32
}

fn pseudo_sum(frame: &[u8], layout: &Layout) -> u32 {
    let len = (layout.end - layout.tcp_at) as u32;
    let addresses = match layout.version {
        4 => &frame[layout.ip_at + 12..layout.ip_at + 20],
        _ => &frame[layout.ip_at + 8..layout.ip_at + 40],
    };
    sum(addresses, (len >> 16) + (len & 0xFFFF) + 6)
}

/// Computes the frame's checksums afresh, in full. Does nothing to a frame whose lengths make no sense.
pub fn seal(frame: &mut [u8]) {
    let Ok(layout) = layout(frame) else { return };
    if layout.version == 4 {
        let header = layout.ip_at..layout.ip_at + layout.ip_header;
        frame[header.start + 10..header.start + 12].fill(0);
        let check = !sum(&frame[header.clone()], 0) as u16;
        frame[header.start + 10..header.start + 12].copy_from_slice(&check.to_be_bytes());
    }
    let at = layout.tcp_at;
    frame[at + 16..at + 18].fill(0);
    let check = !sum(&frame[at..layout.end], pseudo_sum(frame, &layout)) as u16;
    frame[at + 16..at + 18].copy_from_slice(&check.to_be_bytes());
}

/// Reads a frame, or says what is wrong with it. Wrong checksums are reported in [`Got::checksums`], not refused.
pub fn read(frame: &[u8], at: Instant) -> Result<Got, String> {
    let layout = layout(frame)?;
    let mut tags = Vec::new();
    let mut tag_at = 12;
    while tag_at + 2 < layout.ip_at {
        tags.push((be16(frame, tag_at), be16(frame, tag_at + 2)));
        tag_at += 4;
    }
    let ip = &frame[layout.ip_at..];
    let (src, dst, ttl, tos) = match layout.version {
        4 => (v4(&ip[12..16]), v4(&ip[16..20]), ip[8], ip[1]),
        _ => (v6(&ip[8..24]), v6(&ip[24..40]), ip[7], (be16(ip, 0) >> 4) as u8),
    };
    let tcp = &frame[layout.tcp_at..layout.end];
    let header = usize::from(tcp[12] >> 4) * 4;
    if header < 20 || header > tcp.len() {
        return Err(format!("data offset {header} in a segment of {}", tcp.len()));
    }
    if frame.len() > layout.end && frame.len() > 60 {
        return Err(format!("a frame of {} bytes trails {} bytes", frame.len(), frame.len() - layout.end));
    }
    let ip_sum_right = layout.version == 6 || sum(&ip[..layout.ip_header], 0) == 0xFFFF;
    let tcp_sum_right = sum(tcp, pseudo_sum(frame, &layout)) == 0xFFFF;
    Ok(Got {
        at,
        macs: (frame[0..6].try_into().expect("six bytes"), frame[6..12].try_into().expect("six bytes")),
        tags,
        src,
        dst,
        ttl,
        tos,
        ports: (be16(tcp, 0), be16(tcp, 2)),
        flags: be16(tcp, 12) & 0x1FF,
        seq: be32(tcp, 4),
        ack: be32(tcp, 8),
        window: be16(tcp, 14),
        options: read_options(&tcp[20..header])?,
        payload: tcp[header..].to_vec(),
        tcp_at: layout.tcp_at,
        checksums: (ip_sum_right, tcp_sum_right),
        frame: frame.to_vec(),
    })
}

fn read_options(bytes: &[u8]) -> Result<Vec<Opt>, String> {
    let mut options = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            0 => {
                options.push(Opt::End);
                break;
            }
            1 => {
                options.push(Opt::Nop);
                at += 1;
            }
            kind => {
                let len = usize::from(*bytes.get(at + 1).ok_or("an option without length")?);
                if len < 2 || at + len > bytes.len() {
                    return Err(format!("option {kind} of length {len} at {at} of {}", bytes.len()));
                }
                let body = &bytes[at + 2..at + len];
                options.push(match (kind, len) {
                    (2, 4) => Opt::Mss(be16(body, 0)),
                    (3, 3) => Opt::Wscale(body[0]),
                    (4, 2) => Opt::SackOk,
                    (5, _) if len >= 10 && (len - 2) % 8 == 0 => {
                        Opt::Sack(body.chunks(8).map(|b| (be32(b, 0), be32(b, 4))).collect())
                    }
                    (8, 10) => Opt::Ts(Num::Is(be32(body, 0)), Num::Is(be32(body, 4))),
                    _ => Opt::Raw(bytes[at..at + len].to_vec()),
                });
                at += len;
            }
        }
    }
    Ok(options)
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn v4(bytes: &[u8]) -> IpAddr {
    IpAddr::from(<[u8; 4]>::try_from(bytes).expect("four bytes"))
}

pub(super) fn v6(bytes: &[u8]) -> IpAddr {
    IpAddr::from(<[u8; 16]>::try_from(bytes).expect("sixteen bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(v6: bool) -> FlowKey {
        let (src, dst) = if v6 { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "192.0.2.2") };
        FlowKey {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            sport: 1,
            dport: 2,
            src_mac: [2; 6],
            dst_mac: [4; 6],
            ttl: 64,
        }
    }

    /// Both halves of this file could err alike; a third implementation shows that they do not.
    #[test]
    fn what_is_built_is_what_etherparse_reads() {
        for v6 in [false, true] {
            let seg = data(7, 9, 101).nop().nop().ts(3, 4).window(77);
            let frame = build(&ends(v6), 2, &seg);
            let sliced = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP") };
            assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number(), tcp.window_size()), (7, 9, 77));
            let header = tcp.to_header();
            let sum = match sliced.net.unwrap() {
                etherparse::NetSlice::Ipv4(ip) => {
                    let ip = ip.header().to_header();
                    assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
                    header.calc_checksum_ipv4(&ip, tcp.payload()).unwrap()
                }
                etherparse::NetSlice::Ipv6(ip) => {
                    header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload()).unwrap()
                }
                _ => panic!("no IP"),
            };
            assert_eq!(sum, header.checksum);
        }
    }

    #[test]
    fn what_is_built_is_what_is_read() {
        for v6 in [false, true] {
            for tags in 0..=2 {
                let seg = data(1, 2, 33).mss(1460).wscale(3).sack(&[(1, 2), (3, 4)]).ts(5, 6);
                let got = read(&build(&ends(v6), tags, &seg), Instant::default()).unwrap();
                assert_eq!(got.differs(&seg), Vec::<String>::new());
                assert_eq!(got.checksums, (true, true));
                assert_eq!(got.tags, vlan_tags(tags));
                assert!(!got.differs(&seg.clone().window(1)).is_empty());
                assert!(!got.differs(&data(1, 2, 33).any_options().ttl(1)).is_empty());
            }
        }
    }

    #[test]
    fn every_extension_header_is_walked() {
        use Extension::{Authentication, Destination, Fragment, HopByHop, Routing};
        let chain = [HopByHop, Destination, Routing, Fragment(0, false), Authentication, Destination];
        let got = read(&build(&ends(true), 1, &syn(1).mss(1440).behind(&chain)), Instant::default()).unwrap();
        assert_eq!((got.mss(), got.checksums), (Some(1440), (true, true)));
    }
}
