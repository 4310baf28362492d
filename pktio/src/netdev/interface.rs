//! A network interface as the kernel knows it.

use std::io;

use super::ethtool::Ethtool;
use crate::error::OpenError;

/// An Ethernet header and two VLAN tags, in bytes: what a frame has beyond the MTU.
const BEYOND_MTU: usize = 14 + 2 * 4;

/// An interface that exists and is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    name: String,
    index: u32,
    mtu: usize,
}

impl Interface {
    /// Looks `name` up.
    ///
    /// # Errors
    ///
    /// When there is no such interface, or it is down.
    pub fn find(name: &str) -> Result<Interface, OpenError> {
        let ethtool = Ethtool::new().map_err(|source| OpenError::Io { what: format!("{name}: a socket"), source })?;
        let io = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => OpenError::NotFound { interface: name.into() },
            _ => OpenError::Io { what: format!("{name}: the kernel was asked about it"), source },
        };
        let index = ethtool.index(name).map_err(io)?;
        let mtu = ethtool.mtu(name).map_err(io)?;
        if ethtool.flags(name).map_err(io)? & libc::IFF_UP == 0 {
            return Err(OpenError::Down { interface: name.into() });
        }
        Ok(Interface { name: name.into(), index, mtu })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its index in this network namespace.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The longest network-layer packet it carries, in bytes.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// The longest frame it carries, in bytes: the MTU, an Ethernet header and two VLAN tags, without the frame check sequence.
    pub fn max_frame(&self) -> usize {
        self.mtu + BEYOND_MTU
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
