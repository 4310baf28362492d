//! Where the layers of a frame lie: tags, IP header with its options or extensions, fragment, payload. Read by hand, and
//! shared with nothing of the engine's.

/// One 802.1Q or 802.1ad tag: tag protocol, and control information (priority and identifier).
pub type Tag = (u16, u16);

/// The tags of a frame, outer first.
pub type Tags = [Option<Tag>; 2];

/// Whether a tag names no network, but a priority alone.
pub fn is_priority_tag(tag: &Tag) -> bool {
    tag.1 & 0xfff == 0
}

/// The networks that the tags name, each by its protocol and identifier, the outer first.
pub fn networks(tags: Tags) -> Vec<Tag> {
    let named = tags.into_iter().flatten().filter(|tag| !is_priority_tag(tag));
    named.map(|(protocol, control)| (protocol, control & 0xfff)).collect()
}

/// Where the parts of an IP packet lie in its Ethernet frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// The tags before it.
    pub tags: Tags,
    /// Whether it is IPv6.
    pub v6: bool,
    /// Where the IP header begins.
    pub ip: usize,
    /// Where its payload begins, behind options or extension headers.
    pub payload: usize,
    /// Where the packet ends; padding follows.
    pub end: usize,
    /// The protocol of the payload.
    pub protocol: u8,
    /// For one of several fragments: its offset in bytes, whether more follow, and the identification.
    pub fragment: Option<(usize, bool, u32)>,
}

impl Layers {
    /// Reads a frame; `None` if it holds no IP packet, or none that is whole.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let be16 = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
        let mut tags = [None; 2];
        let mut at = 12;
        for tag in &mut tags {
            let protocol = be16(at)?;
            if !matches!(protocol, 0x8100 | 0x88a8 | 0x9100) {
                break;
            }
            *tag = Some((protocol, be16(at + 2)?));
            at += 4;
        }
        let ip = at + 2;
        let layers = match be16(at)? {
            0x0800 => {
                let field = be16(ip + 6)?;
                let fragment = (field & 0x3fff != 0).then_some((
                    usize::from(field & 0x1fff) * 8,
                    field & 0x2000 != 0,
                    be16(ip + 4)?.into(),
                ));
                Self {
                    tags,
                    v6: false,
                    ip,
                    payload: ip + usize::from(frame.get(ip)? & 15) * 4,
                    end: ip + usize::from(be16(ip + 2)?),
                    protocol: *frame.get(ip + 9)?,
                    fragment,
                }
            }
            0x86dd => {
                let end = ip + 40 + usize::from(be16(ip + 4)?);
                let mut next = *frame.get(ip + 6)?;
                let mut at = ip + 40;
                let mut fragment = None;
                while matches!(next, 0 | 43 | 44 | 51 | 60) {
                    let length = usize::from(*frame.get(at + 1)?);
                    let kind = std::mem::replace(&mut next, *frame.get(at)?);
                    at += match kind {
                        44 => {
                            let field = be16(at + 2)?;
                            let id = u32::from(be16(at + 4)?) << 16 | u32::from(be16(at + 6)?);
                            if field & 0xfff9 != 0 {
                                fragment = Some((usize::from(field & 0xfff8), field & 1 != 0, id));
                            }
                            8
                        }
                        51 => (length + 2) * 4,
                        _ => (length + 1) * 8,
                    };
                    // What follows the header of a later fragment is payload, whatever protocol the header names.
                    if kind == 44 && fragment.is_some_and(|(offset, ..)| offset > 0) {
                        break;
                    }
                }
                Self { tags, v6: true, ip, payload: at, end, protocol: next, fragment }
            }
            _ => return None,
        };
        (layers.payload <= layers.end && layers.end <= frame.len()).then_some(layers)
    }

    /// The addresses, sender first.
    pub fn addresses(&self, frame: &[u8]) -> (std::net::IpAddr, std::net::IpAddr) {
        let at = self.ip;
        if self.v6 {
            let read = |at: usize| <[u8; 16]>::try_from(&frame[at..at + 16]).expect("sixteen bytes").into();
            (read(at + 8), read(at + 24))
        } else {
            let read = |at: usize| <[u8; 4]>::try_from(&frame[at..at + 4]).expect("four bytes").into();
            (read(at + 12), read(at + 16))
        }
    }

    /// The hop limit (in IPv4: time to live).
    pub fn hops(&self, frame: &[u8]) -> u8 {
        frame[self.ip + if self.v6 { 7 } else { 8 }]
    }

    /// The class (RFC 2474), in the upper six bits of eight.
    pub fn class(&self, frame: &[u8]) -> u8 {
        if self.v6 { (frame[self.ip] << 4 | frame[self.ip + 1] >> 4) & 0xfc } else { frame[self.ip + 1] & 0xfc }
    }

    /// The explicit congestion notification field of the IP header (RFC 3168 section 5).
    pub fn ecn(&self, frame: &[u8]) -> u8 {
        if self.v6 { frame[self.ip + 1] >> 4 & 3 } else { frame[self.ip + 1] & 3 }
    }

    /// Sets that field, and keeps an IPv4 header's checksum as right or wrong as it was.
    pub fn set_ecn(&self, frame: &mut [u8], ecn: u8) {
        let at = self.ip + 1;
        if self.v6 {
            frame[at] = frame[at] & 0xcf | ecn << 4;
            return;
        }
        let word = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let (before, sum) = (word(frame, self.ip), word(frame, self.ip + 10));
        frame[at] = frame[at] & 0xfc | ecn;
        let after = word(frame, self.ip);
        // RFC 1624 equation 3.
        let mut total = u32::from(!sum) + u32::from(!before) + u32::from(after);
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        frame[self.ip + 10..self.ip + 12].copy_from_slice(&(!(total as u16)).to_be_bytes());
    }

    /// A hash of everything around the payload that a bridge leaves as it is: stations, tags, and the IP header but for
    /// its length, its checksum and the congestion field.
    pub fn surroundings(&self, frame: &[u8]) -> u64 {
        let volatile: &[usize] = if self.v6 { &[4, 5] } else { &[2, 3, 10, 11] };
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for (at, &byte) in frame[..self.payload].iter().enumerate() {
            let place = at.wrapping_sub(self.ip);
            let byte = match place {
                1 => byte & if self.v6 { 0xcf } else { 0xfc },
                _ if volatile.contains(&place) => 0,
                _ => byte,
            };
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        hash
    }
}
