//! The link of an interface, as it is now.

use std::io;

use super::rtnetlink::Rtnetlink;

/// The link of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// Whether the interface is up, as far as its operator is concerned.
    pub is_up: bool,
    /// Whether there is somebody at the other end; never while the interface is down.
    pub has_carrier: bool,
    /// How often the interface has lost its carrier since it was made. It wraps around.
    pub losses: u32,
}

/// Reads the links of the network namespace it was made in.
#[derive(Debug)]
pub struct LinkReader(Rtnetlink);

impl LinkReader {
    /// Opens what it takes.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`.
    pub fn new() -> io::Result<LinkReader> {
        Rtnetlink::new().map(LinkReader)
    }

    /// The name and the link of the interface with this index; `None` when there is none any more.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn read(&mut self, index: u32) -> io::Result<Option<(String, LinkState)>> {
        match self.0.indexed(index) {
            Ok(link) => {
                let state = LinkState { is_up: link.is_up(), has_carrier: link.has_carrier(), losses: link.losses };
                Ok(Some((link.name, state)))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netdev::Interface;

    #[test]
    fn the_loopback_has_a_carrier_while_it_is_up() {
        let lo = Interface::locate("lo").unwrap();
        let mut reader = LinkReader::new().unwrap();
        let (name, state) = reader.read(lo.index()).unwrap().unwrap();
        assert_eq!((name.as_str(), state.has_carrier), ("lo", state.is_up));
        assert_eq!(reader.read(0x7fff_fff0).unwrap(), None);
    }
}
