//! Which interfaces are no port of a box: those that pass their frames somewhere else already, and those by which the operator reaches this
//! machine.

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;

use tracing::debug;

use super::Interface;
use super::addresses::addresses;
use super::rtnetlink::{Link, Rtnetlink, address_of_words};
use crate::error::OpenError;

/// Interfaces that lie on another one and receive a part of its frames.
const UPPER: [&str; 6] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"];

/// The state of an established connection in `/proc/net/tcp`.
const ESTABLISHED: &str = "01";

/// Connections of this machine for which the way is looked up; those beyond are taken to go another way.
const MOST_PEERS: usize = 256;

/// Refuses ports that a box must not have: a member of a bridge or bond, two that are one cable, and without `force` one that carries this
/// machine's default route or a connection of somebody who is logged in.
///
/// # Errors
///
/// The first reason.
pub(crate) fn check(interfaces: &[&Interface], force: bool) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { what: "the kernel was asked about its links".into(), source };
    let mut netlink = Rtnetlink::new().map_err(io)?;
    for interface in interfaces {
        if let Some(master) = interface.link().master {
            let master = netlink.indexed(master).unwrap_or_default();
            let name = interface.name();
            return Err(OpenError::Busy {
                what: format!("{name} is a member of {} ({})", master.name, master.kind),
                hint: format!(
                    "its frames would pass twice; take it out with `ip link set dev {name} nomaster`, or bridge {} itself",
                    master.name
                ),
            });
        }
    }
    let links = netlink.links().map_err(io)?;
    for (at, one) in interfaces.iter().enumerate() {
        for other in &interfaces[at + 1..] {
            check_apart(one.link(), other.link(), &links)?;
        }
    }
    if force {
        return Ok(());
    }
    let connections = Connections::new(established_connections);
    for interface in interfaces {
        let name = interface.name();
        let own = lying_on(interface.link(), &links);
        let refuse = |what: String| {
            Err(OpenError::Busy {
                what,
                hint: "a port of the box is lost to the machine itself; use other interfaces, or --force".into(),
            })
        };
        for link in &own {
            match netlink.carries_default_route(link.index) {
                Ok(true) => return refuse(format!("{} carries the default route of this machine", on(name, link))),
                Ok(false) => {}
                Err(error) => debug!("{}: routes cannot be read: {error}", link.name),
            }
        }
        if let Some((link, peer)) = session(&own, &mut netlink, &connections) {
            return refuse(format!("{} carries a connection of this machine with {peer}", on(name, link)));
        }
    }
    Ok(())
}

/// The name of a port, or of what lies on it.
fn on(port: &str, link: &Link) -> String {
    if link.name == port { port.to_owned() } else { format!("{port} (by {}, which lies on it)", link.name) }
}

/// Refuses two ports between which every frame would circle, or of which one receives the other's frames.
pub(super) fn check_apart(one: &Link, other: &Link, links: &[Link]) -> Result<(), OpenError> {
    let refuse = |what| Err(OpenError::Busy { what, hint: "name two interfaces that are two cables".into() });
    if one.kind == "veth" && one.below == Some(other.index) {
        return refuse(format!(
            "{} and {} are the two ends of one veth pair: every frame would circle between them",
            one.name, other.name
        ));
    }
    for (below, above) in [(one, other), (other, one)] {
        if lying_on(below, links).iter().any(|link| link.index == above.index) {
            return refuse(format!("{} lies on {}: its frames would pass both ports", above.name, below.name));
        }
    }
    Ok(())
}

/// A link, and everything that lies on it.
pub(super) fn lying_on(link: &Link, links: &[Link]) -> Vec<Link> {
    let mut found = vec![link.clone()];
    let mut at = 0;
    while at < found.len() {
        let index = found[at].index;
        let upper = links.iter().filter(|upper| upper.below == Some(index) && UPPER.contains(&upper.kind.as_str()));
        let new: Vec<Link> =
            upper.filter(|upper| !found.iter().any(|link| link.index == upper.index)).cloned().collect();
        found.extend(new);
        at += 1;
    }
    found
}

/// An established TCP connection between this machine and another that uses one of these links: who is logged in from elsewhere has one. The
/// process that owns it is not asked for: a port that becomes one of the box ends every connection.
pub(super) fn session<'a>(
    own: &'a [Link],
    netlink: &mut Rtnetlink,
    connections: &Connections,
) -> Option<(&'a Link, IpAddr)> {
    let addresses: Vec<(&Link, BTreeSet<IpAddr>)> =
        own.iter().map(|link| (link, addresses(&link.name))).filter(|(_, addresses)| !addresses.is_empty()).collect();
    let at = |local: IpAddr| addresses.iter().find(|(_, own)| own.contains(&local)).map(|(link, _)| *link);
    // sudo and su keep it or not; a shell of sshd's has it, whatever the connection looks like from here.
    let ssh = std::env::var("SSH_CONNECTION").unwrap_or_default();
    if let Some((local, peer)) = ends_of_ssh(&ssh)
        && let Some(link) = at(local)
    {
        return Some((link, peer));
    }
    let mut peers = BTreeSet::new();
    for &(local, peer) in connections.iter().filter(|(local, peer)| local != peer && !peer.is_loopback()) {
        if let Some(link) = at(local) {
            return Some((link, peer));
        }
        peers.insert(peer);
    }
    peers.into_iter().take(MOST_PEERS).find_map(|peer| {
        let port = netlink.port_toward(peer).ok()??;
        own.iter().find(|link| link.index == port).map(|link| (link, peer))
    })
}

/// The established connections of this machine, read when they are first asked for: both ends of each.
pub(super) type Connections = LazyCell<Vec<(IpAddr, IpAddr)>, fn() -> Vec<(IpAddr, IpAddr)>>;

/// The addresses of both ends of this machine's established connections.
pub(super) fn established_connections() -> Vec<(IpAddr, IpAddr)> {
    let mut found = Vec::new();
    // With each read the kernel walks its whole table up to where it left off, so there are to be few.
    let mut piece = vec![0; 64 << 10];
    for table in ["tcp", "tcp6"] {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(format!("/proc/thread-self/net/{table}")) {
            while let Ok(read @ 1..) = file.read(&mut piece) {
                text.extend_from_slice(&piece[..read]);
            }
        }
        found.extend(String::from_utf8_lossy(&text).lines().filter_map(established));
    }
    found
}

/// The addresses of this machine and of its peer in `SSH_CONNECTION`.
fn ends_of_ssh(text: &str) -> Option<(IpAddr, IpAddr)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [peer, _, local, _] = words[..] else { return None };
    // A link-local address has the interface's name behind it.
    let address = |text: &str| text.split('%').next().and_then(|text| text.parse().ok());
    Some((address(local)?, address(peer)?))
}

/// The addresses of both ends of the connection in this line of `/proc/net/tcp`, if it is established.
fn established(line: &str) -> Option<(IpAddr, IpAddr)> {
    let mut columns = line.split_whitespace().skip(1);
    let (local, peer, state) = (columns.next()?, columns.next()?, columns.next()?);
    let address = |text: &str| {
        let words = text.split(':').next()?.as_bytes().chunks(8);
        let words: Option<Vec<u32>> =
            words.map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()).collect();
        address_of_words(&words?)
    };
    if state == ESTABLISHED { Some((address(local)?, address(peer)?)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, below: Option<u32>, kind: &str) -> Link {
        Link { index, below, kind: kind.into(), name: format!("if{index}"), ..Link::default() }
    }

    #[test]
    fn what_lies_on_a_port_is_found_at_any_depth_and_the_other_end_of_a_veth_is_not() {
        let links = [
            link(1, None, ""),
            link(2, Some(1), "vlan"),
            link(3, Some(2), "macvlan"),
            link(4, Some(1), "veth"),
            link(5, Some(9), "vlan"),
        ];
        let found: Vec<u32> = lying_on(&links[0], &links).iter().map(|link| link.index).collect();
        assert_eq!(found, [1, 2, 3]);
        assert!(check_apart(&links[0], &links[4], &links).is_ok());
        let error = check_apart(&links[2], &links[0], &links).unwrap_err().to_string();
        assert!(error.contains("if3 lies on if1"), "{error}");
        let pair = [link(6, Some(7), "veth"), link(7, Some(6), "veth")];
        let error = check_apart(&pair[0], &pair[1], &pair).unwrap_err().to_string();
        assert!(error.contains("two ends of one veth pair"), "{error}");
    }

    #[test]
    fn established_connections_are_read_from_the_kernels_table() {
        if cfg!(target_endian = "big") {
            return;
        }
        let line = "   0: 0100000A:0016 020000C0:D431 01 00000000:00000000 02:000A 00000000  0 0 1 2 0000";
        let ends = established(line).unwrap();
        assert_eq!(ends, ("10.0.0.1".parse().unwrap(), "192.0.0.2".parse().unwrap()));
        let line = " 1: 0000000000000000FFFF00000100000A:0016 0000000000000000FFFF0000020000C0:D431 01 0:0";
        assert_eq!(established(line), Some(ends));
        for line in ["", "sl local_address rem_address st", "0: 0100000A:0016 020000C0:D431 0A 0", "0: 0x:0016 0y:1 01"]
        {
            assert_eq!(established(line), None, "{line}");
        }
    }

    #[test]
    fn the_ends_of_a_login_are_in_the_environment() {
        let ends = ends_of_ssh("192.0.2.7 50022 10.0.0.1 22").unwrap();
        assert_eq!(ends, ("10.0.0.1".parse().unwrap(), "192.0.2.7".parse().unwrap()));
        assert_eq!(ends_of_ssh("fe80::7%eth0 50022 fe80::1%eth0 22").unwrap().0, "fe80::1".parse::<IpAddr>().unwrap());
        assert_eq!(ends_of_ssh(""), None);
    }
}
