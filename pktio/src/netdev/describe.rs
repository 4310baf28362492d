//! Everything that a program may want to know of an interface before it is opened, read without changing anything.

use std::io;
use std::net::IpAddr;

use super::addresses::addresses;
use super::claim::{Holder, holder_of};
use super::ethtool::{Coalescing, Ethtool, PauseFrames, Rings};
use super::host::other_filters;
use super::interface::is_hardware;
use super::protect::{Connections, check_apart, established_connections, lying_on, session};
use super::rss::{RssConfig, hashed_otherwise};
use super::rtnetlink::{Link, Rtnetlink};
use super::settings::{OFFLOADS, is_to_be_off};
use super::xdp_features::{XdpFeatures, xdp_features};
use crate::error::OpenError;

/// An interface, as the kernel describes it. What a driver does not report is `None` or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// Its name; not an alternative one.
    pub name: String,
    /// Its index in this network namespace.
    pub index: u32,
    /// What kind of software interface it is (`vlan`, `veth`); empty for a NIC.
    pub kind: String,
    /// Its driver.
    pub driver: String,
    /// The address of its device on the bus.
    pub bus: String,
    /// Whether it is up, as far as its operator is concerned.
    pub is_up: bool,
    /// Whether there is somebody at the other end; never while it is down.
    pub has_carrier: bool,
    /// Its MTU, in bytes.
    pub mtu: usize,
    /// The largest MTU it can have.
    pub most_mtu: Option<usize>,
    /// The name and the kind of the bridge, bond or other device it is a member of.
    pub master: Option<(String, String)>,
    /// The other end of a veth pair, where that is in the same namespace.
    pub peer: Option<String>,
    /// Its addresses, without the link-local ones that the kernel makes itself.
    pub addresses: Vec<IpAddr>,
    /// Default routes that lead out of it, or out of what lies on it.
    pub default_routes: Vec<DefaultRoute>,
    /// The interface (this one, or one that lies on it) and the peer of a TCP connection of this machine.
    pub session: Option<(String, IpAddr)>,
    /// Which process of this package has it.
    pub holder: Holder,
    /// The XDP program that is attached.
    pub xdp: Option<XdpProgram>,
    /// The filters of other programs that see the frames it sends, in words.
    pub egress_filters: Vec<String>,
    /// What its driver can do with XDP; `None` where the kernel, before 6.3, does not say.
    pub xdp_features: Option<XdpFeatures>,
    /// Its queues.
    pub queues: Option<QueueCounts>,
    /// The sizes of its rings.
    pub rings: Option<Rings>,
    /// Its interrupt coalescing.
    pub coalescing: Option<Coalescing>,
    /// Offloads that are on, that break a bridge, and that can be switched off.
    pub offloads: Vec<String>,
    /// Those that cannot.
    pub fixed_offloads: Vec<String>,
    /// Whether it sends or heeds pause frames.
    pub has_pause: bool,
    /// How it spreads frames over its queues.
    pub rss: Option<Rss>,
}

impl Description {
    /// Whether its frames come over a link, and so with whole checksums; of a virtual interface senders may leave these and segmentation to it.
    pub fn has_link_checksums(&self) -> bool {
        is_hardware(&self.driver, &self.bus)
    }
}

/// A default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The interface it leads out of.
    pub interface: String,
    /// Whether it is one of IPv6.
    pub is_v6: bool,
}

/// An XDP program that is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XdpProgram {
    /// Its number; 0 where there are several.
    pub number: u32,
    /// Whether it runs in generic mode.
    pub is_generic: bool,
}

/// Numbers of queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Those that receive.
    pub receiving: usize,
    /// The most that both receive and transmit.
    pub most_pairs: usize,
    /// Whether the device names them combined, rather than receiving and transmitting ones.
    pub are_combined: bool,
}

/// How a device spreads frames over its queues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rss {
    /// The queue of each value of the hash's lower bits.
    pub table: Vec<u32>,
    /// The key.
    pub key: Vec<u8>,
    /// Source and destination are combined by exclusive or before they are hashed.
    pub is_symmetric_xor: bool,
    /// Addresses and ports of TCP are hashed, over both families.
    pub hashes_ports: bool,
}

impl Rss {
    /// Whether both directions of a connection have the same hash.
    pub fn is_symmetric(&self) -> bool {
        // A key of which the same 16 bits come again and again.
        let repeats = || self.key.len() > 2 && self.key.iter().zip(&self.key[2..]).all(|(one, other)| one == other);
        self.hashes_ports && (self.is_symmetric_xor || repeats())
    }
}

/// Two interfaces.
#[derive(Debug)]
pub struct Described {
    /// Each of them, or why it cannot be described.
    pub ports: [Result<Description, OpenError>; 2],
    /// Why they are not two cables, where they are not.
    pub conflict: Option<String>,
}

/// Describes the two interfaces of these names or alternative names, in the network namespace of the calling thread.
///
/// # Errors
///
/// When the kernel cannot be asked at all.
pub fn describe(names: [&str; 2]) -> Result<Described, OpenError> {
    let io = |source| OpenError::Io { what: "the kernel was asked about its links".into(), source };
    let (ethtool, mut netlink) = (Ethtool::new().map_err(io)?, Rtnetlink::new().map_err(io)?);
    let links = netlink.links().map_err(io)?;
    let found = names.map(|name| netlink.named(name));
    let conflict = match &found {
        [Ok(one), Ok(other)] if one.index == other.index => Some(format!("both ports are {}", one.name)),
        [Ok(one), Ok(other)] => match check_apart(one, other, &links) {
            Err(OpenError::Busy { what, .. }) => Some(what),
            _ => None,
        },
        _ => None,
    };
    let connections = Connections::new(established_connections);
    let mut describe = |name: &str, link: io::Result<Link>| match link {
        Ok(link) => Ok(description(&link, &links, &ethtool, &mut netlink, &connections)),
        Err(source) if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
            Err(OpenError::NotFound { interface: name.into() })
        }
        Err(source) => Err(OpenError::Io { what: format!("{name}: the kernel was asked about it"), source }),
    };
    let [one, other] = found;
    Ok(Described { ports: [describe(names[0], one), describe(names[1], other)], conflict })
}

fn description(
    link: &Link,
    links: &[Link],
    ethtool: &Ethtool,
    netlink: &mut Rtnetlink,
    connections: &Connections,
) -> Description {
    let name = link.name.as_str();
    let (driver, bus) = ethtool.driver_and_bus(name).unwrap_or_default();
    let named = |index: Option<u32>| links.iter().find(|other| Some(other.index) == index);
    let own = lying_on(link, links);
    let made_by_kernel = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let features = ethtool.features(name).unwrap_or_default();
    let (to_switch, breaking): (Vec<_>, Vec<_>) =
        features.into_iter().filter(|it| OFFLOADS.contains(&it.name.as_str())).partition(is_to_be_off);
    let names = |features: Vec<super::ethtool::Feature>| features.into_iter().map(|it| it.name).collect();
    let default_routes = own.iter().flat_map(|link| {
        let families = netlink.default_routes(link.index).unwrap_or_default();
        families
            .into_iter()
            .map(|family| DefaultRoute { interface: link.name.clone(), is_v6: family == libc::AF_INET6 })
    });
    Description {
        name: name.to_owned(),
        index: link.index,
        kind: link.kind.clone(),
        driver,
        bus,
        is_up: link.is_up(),
        has_carrier: link.has_carrier(),
        mtu: link.mtu,
        most_mtu: Some(link.max_mtu).filter(|most| *most > 0),
        master: link.master.map(|index| {
            let master = named(Some(index)).cloned().unwrap_or_default();
            (master.name, master.kind)
        }),
        peer: named(link.below).filter(|_| link.kind == "veth").map(|peer| peer.name.clone()),
        addresses: addresses(name).into_iter().filter(|address| !made_by_kernel(address)).collect(),
        default_routes: default_routes.collect(),
        session: session(&own, netlink, connections).map(|(link, peer)| (link.name.clone(), peer)),
        holder: holder_of(link, ethtool),
        xdp: link.has_xdp.then_some(XdpProgram { number: link.xdp_program, is_generic: link.is_xdp_generic }),
        egress_filters: other_filters(name, link.index, netlink),
        xdp_features: xdp_features(link.index).ok(),
        queues: ethtool.queues(name).ok().map(|(now, possible)| QueueCounts {
            receiving: now.receiving(),
            most_pairs: possible.pairs(),
            are_combined: possible.0[3] > 0,
        }),
        rings: ethtool.rings(name).ok(),
        coalescing: ethtool.coalescing(name).ok(),
        offloads: names(to_switch),
        fixed_offloads: names(breaking.into_iter().filter(|it| it.is_active && !it.may_change).collect()),
        has_pause: ethtool.pause(name).is_ok_and(|pause| pause != PauseFrames([0; 3])),
        rss: RssConfig::read(ethtool, name).ok().map(|config| {
            let (table, key, is_symmetric_xor) = config.parts();
            let hashes_ports = hashed_otherwise(ethtool, name).is_empty();
            Rss { table: table.to_vec(), key: key.to_vec(), is_symmetric_xor, hashes_ports }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_described_and_what_is_no_interface_is_not() {
        let Described { ports: [lo, none], conflict } = describe(["lo", "no-such-dev"]).unwrap();
        let lo = lo.unwrap();
        assert_eq!(
            (lo.name.as_str(), lo.index > 0, lo.master, lo.xdp, lo.holder),
            ("lo", true, None, None, Holder::Nobody)
        );
        assert!(lo.mtu > 0 && conflict.is_none());
        assert!(matches!(none, Err(OpenError::NotFound { interface }) if interface == "no-such-dev"));
        let twice = describe(["lo", "lo"]).unwrap();
        assert_eq!(twice.conflict.as_deref(), Some("both ports are lo"));
    }

    #[test]
    fn a_hash_is_symmetric_by_exclusive_or_or_by_a_key_that_repeats_itself() {
        let rss = |key: &[u8], xor, ports| Rss {
            table: vec![0, 1],
            key: key.to_vec(),
            is_symmetric_xor: xor,
            hashes_ports: ports,
        };
        assert!(rss(&[1, 2, 3, 4, 5], true, true).is_symmetric());
        assert!(rss(&[0x6d, 0x5a, 0x6d, 0x5a, 0x6d], false, true).is_symmetric());
        assert!(!rss(&[1, 2, 3, 4, 5], false, true).is_symmetric());
        assert!(!rss(&[0x6d, 0x5a, 0x6d, 0x5a], false, false).is_symmetric());
        assert!(!rss(&[], false, true).is_symmetric());
    }
}
