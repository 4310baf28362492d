//! The link monitor: checks from time to time whether the interfaces exist and are up, since a port without its interface just
//! receives nothing.

use super::exit::Failure;
use pktio::OpenError;
use pktio::netdev::Interface;
use tracing::{debug, info, warn};

/// The interfaces of the box.
#[derive(Default)]
pub struct LinkMonitor {
    links: Vec<Link>,
}

struct Link {
    name: String,
    index: u32,
    is_up: bool,
}

impl LinkMonitor {
    /// Monitors the interfaces behind the names of these ports; a capture file has none.
    pub fn new(ports: [&str; 2]) -> Self {
        let links = ports.into_iter().filter(|port| !port.starts_with("pcap:")).filter_map(|port| {
            let name = port.split_once(':').map_or(port, |(_, name)| name);
            let interface = Interface::find(name).ok()?;
            Some(Link { name: name.to_owned(), index: interface.index(), is_up: true })
        });
        Self { links: links.collect() }
    }

    /// Checks once, and logs what has changed.
    ///
    /// # Errors
    /// When an interface is gone. A later interface of the same name is another one.
    pub fn check(&mut self) -> Result<(), Failure> {
        for link in &mut self.links {
            let name = link.name.as_str();
            match Interface::find(name) {
                Ok(found) if found.index() == link.index => {
                    if !link.is_up {
                        info!("{name} is up again");
                    }
                    link.is_up = true;
                }
                Ok(_) | Err(OpenError::NotFound { .. }) => return Err(Failure::Gone { interface: name.to_owned() }),
                Err(OpenError::Down { .. }) => {
                    if link.is_up {
                        warn!("{name} is down; nothing passes until it is up again");
                    }
                    link.is_up = false;
                }
                Err(error) => debug!("{error}"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_monitored_under_any_name_and_files_are_not() {
        let mut monitor = LinkMonitor::new(["xdp:lo", "lo"]);
        assert_eq!(monitor.links.len(), 2);
        monitor.check().unwrap();
        assert!(LinkMonitor::new(["pcap:lo", "pcap:in=lo:out=lo"]).links.is_empty());
    }

    #[test]
    fn another_interface_of_the_same_name_is_another_one() {
        let mut monitor = LinkMonitor::new(["lo", "pcap:none"]);
        monitor.links[0].index += 1;
        assert!(matches!(monitor.check(), Err(Failure::Gone { interface }) if interface == "lo"));
    }
}
