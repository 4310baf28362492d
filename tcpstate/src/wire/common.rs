//! The SYN in the option layout of Linux and most other stacks that use timestamps, parsed and answered in place: its SYN-ACK has the same
//! layout, so that no byte moves. This keeps the cost of a SYN flood down.

use super::options::{MSS, NOP_SCALE, SACK_PERMITTED_TIMESTAMPS};
use super::segment::pseudo_header_sum;
use super::{Flags, IPV4_LEN, IPV6_LEN, Mac, Segment, TCP, TCP_LEN, Timestamps};
use super::{be32, checksum, chunk, put16, put32, station};
use crate::Head;
use crate::seq::{RawWindow, SeqNum, WindowScale};

/// Bytes of the options: MSS, SACK permitted, timestamps, no operation, window scale.
const OPTIONS_LEN: usize = 20;
/// Bytes of the TCP header.
const SEGMENT_LEN: usize = TCP_LEN + OPTIONS_LEN;

/// The options of a SYN in the common layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommonSyn {
    /// Maximum segment size, not zero.
    pub mss: u16,
    /// Timestamps.
    pub timestamps: Timestamps,
    /// Window scale, limited to 14.
    pub scale: WindowScale,
}

/// The SYN-ACK that answers it.
#[derive(Clone, Copy, Debug)]
pub struct CommonSynAck {
    /// Sequence number.
    pub seq: SeqNum,
    /// Acknowledgement number.
    pub ack: SeqNum,
    /// Flags.
    pub flags: Flags,
    /// Window field.
    pub window: RawWindow,
    /// Maximum segment size.
    pub mss: u16,
    /// Timestamps.
    pub timestamps: Timestamps,
    /// Window scale.
    pub scale: WindowScale,
    /// The IPv6 flow label, 20 bits.
    pub label: u32,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// The class, in the upper six bits.
    pub class: u8,
}

impl CommonSyn {
    /// Reads the SYN `segment`, which came from the WAN, if it has the common layout, all of it is visible, it has neither payload nor padding,
    /// and its checksums are right. The flags are left to the caller.
    #[inline(always)]
    pub fn read(segment: &Segment, head: &Head) -> Option<Self> {
        let frame = head.bytes();
        let (ip, tcp) = (usize::from(segment.ip), usize::from(segment.tcp));
        let bytes = chunk::<SEGMENT_LEN>(frame, tcp)?;
        let ends_here = tcp + SEGMENT_LEN == frame.len() && segment.end as usize == frame.len();
        if !ends_here || !head.is_whole() || segment.fragmented || usize::from(segment.payload) != frame.len() {
            return None;
        }
        let (mss, scale) = (be32(bytes, TCP_LEN), be32(bytes, TCP_LEN + 16));
        let has_layout = mss >> 16 == MSS
            && be32(bytes, TCP_LEN + 4) == SACK_PERMITTED_TIMESTAMPS
            && scale >> 8 == NOP_SCALE
            && mss as u16 != 0;
        let ip_len = if segment.key.v6 { IPV6_LEN } else { IPV4_LEN };
        if !has_layout || tcp != ip + ip_len || !segment.checksums_hold_inline(head) {
            return None;
        }
        Some(Self {
            mss: mss as u16,
            timestamps: Timestamps { value: be32(bytes, TCP_LEN + 8), echo: be32(bytes, TCP_LEN + 12) },
            scale: WindowScale::clamped(scale as u8),
        })
    }
}

impl CommonSynAck {
    /// Overwrites the frame of the [`CommonSyn`] `segment` with the bytes that [`super::Outgoing`] would write, VLAN tags included.
    ///
    /// # Panics
    /// If the segment is not in the frame.
    #[inline(always)]
    pub fn write_over(&self, segment: &Segment, frame: &mut [u8]) {
        let macs: &mut [u8; 12] = frame.first_chunk_mut().expect("a segment has an Ethernet header");
        let (to, from): (Mac, Mac) =
            (*macs.first_chunk().expect("six of twelve"), *macs.last_chunk().expect("six of twelve"));
        macs[..6].copy_from_slice(&from);
        macs[6..].copy_from_slice(&station(to));
        let ip = &mut frame[usize::from(segment.ip)..];
        let tcp = if segment.key.v6 {
            let (header, tcp) = ip.split_first_chunk_mut().expect("a segment has an IP header");
            self.write_ipv6(header);
            tcp
        } else {
            let (header, tcp) = ip.split_first_chunk_mut().expect("a segment has an IP header");
            self.write_ipv4(header);
            tcp
        };
        self.write_tcp(segment, tcp.first_chunk_mut().expect("it holds the options that were read"));
    }

    #[inline(always)]
    fn write_ipv4(&self, header: &mut [u8; IPV4_LEN]) {
        let (source, destination) = (be32(header, 12), be32(header, 16));
        let words = [
            0x4500_0000 | u32::from(self.class) << 16 | (IPV4_LEN + SEGMENT_LEN) as u32,
            0x4000,
            u32::from(self.ttl) << 24 | u32::from(TCP) << 16,
            destination,
            source,
        ];
        let sum = words.iter().fold(0, |sum, &word| sum + u64::from(word));
        for (n, &word) in words.iter().enumerate() {
            put32(header, 4 * n, word);
        }
        put16(header, 10, !checksum::fold(sum));
    }

    #[inline(always)]
    fn write_ipv6(&self, header: &mut [u8; IPV6_LEN]) {
        put32(header, 0, 6 << 28 | u32::from(self.class) << 20 | self.label);
        header[7] = self.ttl;
        let (source, destination) = header[8..].split_at_mut(16);
        source.swap_with_slice(destination);
    }

    #[inline(always)]
    fn write_tcp(&self, segment: &Segment, tcp: &mut [u8; SEGMENT_LEN]) {
        let key = &segment.key;
        let header = [
            u32::from(key.lan_port) << 16 | u32::from(key.wan_port),
            self.seq.get(),
            self.ack.get(),
            (SEGMENT_LEN as u32 / 4) << 28 | u32::from(self.flags.0) << 16 | u32::from(self.window.0),
        ];
        let options = [
            MSS << 16 | u32::from(self.mss),
            SACK_PERMITTED_TIMESTAMPS,
            self.timestamps.value,
            self.timestamps.echo,
            NOP_SCALE << 8 | u32::from(self.scale.get()),
        ];
        let mut sum = pseudo_header_sum(key, SEGMENT_LEN);
        for (n, &word) in header.iter().enumerate() {
            put32(tcp, 4 * n, word);
            sum += u64::from(word);
        }
        for (n, &word) in options.iter().enumerate() {
            put32(tcp, TCP_LEN + 4 * n, word);
            sum += u64::from(word);
        }
        put32(tcp, 16, u32::from(!checksum::fold(sum)) << 16);
    }
}
