//! What a driver can do with XDP, as the kernel's `netdev` family of generic netlink says since Linux 6.3.

use std::io;

use super::rtnetlink::{Rtnetlink, attributes, half, push_attribute, word};

/// What a driver can do with XDP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// It runs programs that pass, drop and redirect.
    pub is_native: bool,
    /// It sends frames that another interface's program redirects to it. Many drivers say so only while a program is attached.
    pub takes_redirected: bool,
    /// And these may be in several buffers.
    pub takes_redirected_pieces: bool,
    /// AF_XDP works with zero copy.
    pub has_zero_copy: bool,
    /// A program may see frames in several buffers.
    pub has_frags: bool,
    /// The most buffers of a frame with zero copy.
    pub zero_copy_frags: u32,
}

// linux/genetlink.h
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Bytes of `struct genlmsghdr`.
const GENLMSGHDR: usize = 4;

// linux/netdev.h
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_ZC_MAX_SEGS: u16 = 4;
/// `NETDEV_XDP_ACT_BASIC | NETDEV_XDP_ACT_REDIRECT`.
const NATIVE: u32 = 0b11;
const NDO_XMIT: u32 = 1 << 2;
const XSK_ZEROCOPY: u32 = 1 << 3;
const RX_SG: u32 = 1 << 5;
const NDO_XMIT_SG: u32 = 1 << 6;

/// Whether the driver of the interface with this index can receive and transmit without copying; `None` where the kernel, before 6.3, does not say.
pub(crate) fn has_zero_copy(index: u32) -> Option<bool> {
    // Without the others the kernel does not let it have any (`xp_assign_dev`).
    xdp_features(index).ok().map(|features| features.is_native && features.has_zero_copy)
}

/// What the driver of the interface with this index can do with XDP, as the kernel's `netdev` family says.
pub(super) fn xdp_features(index: u32) -> io::Result<XdpFeatures> {
    let mut netlink = Rtnetlink::generic()?;
    let request = |command: u8, kind: u16, value: &[u8]| {
        let mut body = vec![command, 1, 0, 0];
        push_attribute(&mut body, kind, value);
        body
    };
    let mut family = None;
    let body = request(CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    netlink.request(GENL_ID_CTRL, 0, &body, |message| {
        let id =
            attributes(message.get(GENLMSGHDR..).unwrap_or_default()).find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID);
        family = id.and_then(|(_, value)| half(value));
    })?;
    let family = family.ok_or(io::ErrorKind::NotFound)?;
    let mut features = None;
    let body = request(NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes());
    netlink.request(family, 0, &body, |message| features = Some(parse_features(message)))?;
    features.ok_or_else(|| io::ErrorKind::NotFound.into())
}

pub(super) fn parse_features(message: &[u8]) -> XdpFeatures {
    let mut features = XdpFeatures::default();
    for (kind, value) in attributes(message.get(GENLMSGHDR..).unwrap_or_default()) {
        match kind {
            NETDEV_A_DEV_XDP_FEATURES => {
                // A 64-bit mask, of which the lower half is in use.
                let low = if cfg!(target_endian = "big") { value.get(4..) } else { Some(value) };
                let bits = low.and_then(word).unwrap_or(0);
                features.is_native = bits & NATIVE == NATIVE;
                features.takes_redirected = bits & NDO_XMIT != 0;
                features.takes_redirected_pieces = bits & NDO_XMIT_SG != 0;
                features.has_zero_copy = bits & XSK_ZEROCOPY != 0;
                features.has_frags = bits & RX_SG != 0;
            }
            NETDEV_A_DEV_XDP_ZC_MAX_SEGS => features.zero_copy_frags = word(value).unwrap_or(0),
            _ => {}
        }
    }
    features
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_of_a_driver_are_read_from_their_mask() {
        let mut message = vec![0; GENLMSGHDR];
        push_attribute(&mut message, NETDEV_A_DEV_XDP_FEATURES, &0b110_1111_u64.to_ne_bytes());
        push_attribute(&mut message, NETDEV_A_DEV_XDP_ZC_MAX_SEGS, &8_u32.to_ne_bytes());
        let all = XdpFeatures {
            is_native: true,
            takes_redirected: true,
            takes_redirected_pieces: true,
            has_zero_copy: true,
            has_frags: true,
            zero_copy_frags: 8,
        };
        assert_eq!(parse_features(&message), all);
        for length in 0..message.len() {
            parse_features(&message[..length]);
        }
        assert_eq!(parse_features(&[]), XdpFeatures::default());
    }
}
