//! A network interface as the kernel knows it.

use std::io;

use super::ethtool::Ethtool;
use super::rtnetlink::{Link, Rtnetlink};
use super::xdp_features::xdp_features;
use crate::error::OpenError;

/// An Ethernet header and two VLAN tags, in bytes: what a frame has beyond the MTU.
const BEYOND_MTU: usize = 14 + 2 * 4;

/// An Ethernet header and one VLAN tag, in bytes: what Linux lets a frame have beyond the MTU where it hands it to a device of its own, or
/// redirects it (`__is_skb_forwardable`, `xdp_ok_fwd_dev`). Longer ones it drops.
pub(crate) const FORWARDED_BEYOND_MTU: usize = 14 + 4;

/// PCI devices behind which there may be a hypervisor instead of a link: made for one, or what hypervisors emulate.
const VIRTUAL: [&str; 12] = [
    "8139cp",
    "8139too",
    "e100",
    "e1000",
    "e1000e",
    "gve",
    "igb",
    "ne2k-pci",
    "pcnet32",
    "tulip",
    "virtio_net",
    "vmxnet3",
];

/// An interface that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    link: Link,
    has_link_checksums: bool,
    driver: String,
}

impl Interface {
    /// Looks up the interface of this name or alternative name, which must be up.
    ///
    /// # Errors
    ///
    /// When there is no such interface, or it is down.
    pub fn find(name: &str) -> Result<Interface, OpenError> {
        let interface = Interface::locate(name)?;
        interface.must_be_up()?;
        Ok(interface)
    }

    /// Looks up the interface of this name or alternative name, whether it is up or not.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn locate(name: &str) -> Result<Interface, OpenError> {
        let socket = |source| OpenError::Io { what: format!("{name}: a socket"), source };
        let (mut netlink, ethtool) = (Rtnetlink::new().map_err(socket)?, Ethtool::new().map_err(socket)?);
        let link = netlink.named(name).map_err(|source: io::Error| match source.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => OpenError::NotFound { interface: name.into() },
            _ => OpenError::Io { what: format!("{name}: the kernel was asked about it"), source },
        })?;
        let (driver, bus) = ethtool.driver_and_bus(&link.name).unwrap_or_default();
        Ok(Interface { link, has_link_checksums: is_hardware(&driver, &bus), driver })
    }

    /// Checks that it was up when it was looked up.
    ///
    /// # Errors
    ///
    /// When it was down.
    pub(crate) fn must_be_up(&self) -> Result<(), OpenError> {
        if self.link.is_up() { Ok(()) } else { Err(OpenError::Down { interface: self.name().into() }) }
    }

    /// Its link-layer address: the one it was made with, where the kernel says which that is. Empty where it has none.
    pub fn address(&self) -> &[u8] {
        &self.link.address
    }

    /// Its name; not an alternative one.
    pub fn name(&self) -> &str {
        &self.link.name
    }

    /// Its index in this network namespace.
    pub fn index(&self) -> u32 {
        self.link.index
    }

    /// The longest network-layer packet it carries, in bytes.
    pub fn mtu(&self) -> usize {
        self.link.mtu
    }

    /// Whether the kernel can send frames to it that the program of another interface redirects, as far as it says.
    pub(crate) fn takes_redirected(&self) -> bool {
        xdp_features(self.index()).map_or(true, |features| features.takes_redirected)
    }

    /// Whether these may be in several buffers. Before Linux 6.3 the kernel does not say, and they may not.
    pub(crate) fn takes_redirected_pieces(&self) -> bool {
        xdp_features(self.index()).is_ok_and(|features| features.takes_redirected_pieces)
    }

    /// Whether it had an XDP program when it was looked up.
    pub(crate) fn has_xdp(&self) -> bool {
        self.link.has_xdp
    }

    /// What the kernel said of its link.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Whether its frames come over a link, and so with whole checksums. A software interface (veth, tap, a bridge) and that of a virtual
    /// machine also have frames of senders on the same machine, who may leave the checksum to a NIC.
    pub(crate) fn has_link_checksums(&self) -> bool {
        self.has_link_checksums
    }

    /// Whether an XDP program sees super-frames: in generic mode what senders leave to a NIC to be cut, and what the kernel has merged where
    /// that cannot be switched off. In driver mode the kernel makes senders cut their frames themselves, but not those at a tap.
    pub(crate) fn has_super_frames(&self, driver_mode: bool) -> bool {
        !driver_mode || self.driver == "tun"
    }

    /// Whether the other end may send VLAN tags beside its frames, where no XDP program sees them.
    pub(crate) fn hides_tags(&self) -> bool {
        self.driver == "veth"
    }

    /// The longest frame it carries, in bytes: the MTU, an Ethernet header and two VLAN tags, without the frame check sequence.
    pub fn max_frame(&self) -> usize {
        self.mtu() + BEYOND_MTU
    }
}

/// Whether a device with this driver, at this address of its bus, is surely a NIC with a link. In case of doubt it is not: then the
/// checksums of its frames are looked at, which costs a few nanoseconds, while a partial one that nobody completes loses the frame.
pub(super) fn is_hardware(driver: &str, bus: &str) -> bool {
    // dddd:bb:dd.f
    let is_pci = bus.len() == 12 && bus.bytes().all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.');
    is_pci && !VIRTUAL.contains(&driver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_that_is_surely_hardware_is_taken_for_it() {
        for (driver, bus, hardware) in [
            ("ice", "0000:3b:00.1", true),
            ("mlx5_core", "0000:c1:00.0", true),
            ("virtio_net", "0000:00:03.0", false),
            ("igb", "0000:01:00.0", false),
            ("veth", "", false),
            ("tun", "tap", false),
            ("bridge", "N/A", false),
            ("hv_netvsc", "5c0c1234-0001", false),
            ("r8152", "usb-0000:00:14.0-2", false),
            ("", "", false),
        ] {
            assert_eq!(is_hardware(driver, bus), hardware, "{driver} at {bus:?}");
        }
    }

    #[test]
    fn the_loopback_is_found_and_its_largest_frame_has_room_for_two_tags() {
        let lo = match Interface::find("lo") {
            Ok(lo) => lo,
            Err(OpenError::Down { .. }) => return,
            Err(e) => panic!("{e}"),
        };
        assert_eq!((lo.name(), lo.index() > 0, lo.max_frame()), ("lo", true, lo.mtu() + 22));
    }

    #[test]
    fn what_is_no_interface_is_not_found() {
        for name in ["", "no-such-dev", "a-name-that-is-far-too-long-for-an-interface"] {
            let error = Interface::find(name).unwrap_err();
            assert!(matches!(error, OpenError::NotFound { .. }), "{name}: {error}");
        }
    }
}
