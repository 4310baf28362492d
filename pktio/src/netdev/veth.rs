//! Pairs of virtual Ethernet interfaces (veth): making one, and removing it.

use std::io;

use super::rtnetlink::{IFINFOMSG, IFLA_IFNAME, IFLA_LINKINFO, IFLA_MTU, Link, Rtnetlink, push_attribute};
use super::rtnetlink::{IFLA_INFO_KIND, NLM_F_CREATE, NLM_F_EXCL, RTM_DELLINK, RTM_NEWLINK};

// linux/if_link.h, linux/veth.h
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// No link-local address (`IN6_ADDR_GEN_MODE_NONE`).
const NO_ADDRESS: u8 = 1;

/// A veth pair to be made.
pub(super) struct Pair<'a> {
    /// The names of its ends.
    pub names: [&'a str; 2],
    /// What `ip link` shows as their alias.
    pub alias: &'a str,
    /// The MTU of both, in bytes.
    pub mtu: usize,
    /// Receive and transmit queues of each.
    pub queues: usize,
}

impl Pair<'_> {
    /// Makes the pair and takes both ends up. Neither speaks for itself: no address, no ARP.
    ///
    /// # Errors
    ///
    /// The kernel's; `EEXIST` when an interface has one of the names. The pair is gone then, if it was made.
    pub(super) fn make(&self, netlink: &mut Rtnetlink) -> io::Result<[Link; 2]> {
        let [one, other] = self.names;
        let (mut info, mut data, mut peer) = (Vec::new(), Vec::new(), vec![0; IFINFOMSG]);
        self.push_end(&mut peer, other);
        push_attribute(&mut data, VETH_INFO_PEER, &peer);
        push_attribute(&mut info, IFLA_INFO_KIND, b"veth");
        push_attribute(&mut info, IFLA_INFO_DATA, &data);
        let mut body = vec![0; IFINFOMSG];
        self.push_end(&mut body, one);
        push_attribute(&mut body, IFLA_LINKINFO, &info);
        netlink.change(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body)?;
        let made = self.take_up(netlink);
        if made.is_err() {
            let _ = netlink.named(one).and_then(|link| remove(netlink, link.index));
        }
        made
    }

    fn push_end(&self, body: &mut Vec<u8>, name: &str) {
        push_attribute(body, IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        push_attribute(body, IFLA_MTU, &(self.mtu as u32).to_ne_bytes());
        for count in [IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES] {
            push_attribute(body, count, &(self.queues as u32).to_ne_bytes());
        }
    }

    fn take_up(&self, netlink: &mut Rtnetlink) -> io::Result<[Link; 2]> {
        for name in self.names {
            let index = netlink.named(name)?.index;
            let head = |flags: u32| {
                let mut body = vec![0; IFINFOMSG];
                body[4..8].copy_from_slice(&index.to_ne_bytes());
                body[8..12].copy_from_slice(&flags.to_ne_bytes());
                body[12..16].copy_from_slice(&flags.to_ne_bytes());
                body
            };
            let mut body = head(0);
            push_attribute(&mut body, IFLA_IFALIAS, self.alias.as_bytes());
            netlink.change(RTM_NEWLINK, 0, &body)?;
            let (mut of_version, mut of_family) = (Vec::new(), Vec::new());
            push_attribute(&mut of_version, IFLA_INET6_ADDR_GEN_MODE, &[NO_ADDRESS]);
            push_attribute(&mut of_family, libc::AF_INET6 as u16, &of_version);
            let mut body = head(0);
            push_attribute(&mut body, IFLA_AF_SPEC, &of_family);
            // A kernel without IPv6 gives no address of it either.
            let _ = netlink.change(RTM_NEWLINK, 0, &body);
            netlink.change(RTM_NEWLINK, 0, &head((libc::IFF_UP | libc::IFF_NOARP) as u32))?;
        }
        Ok([netlink.named(self.names[0])?, netlink.named(self.names[1])?])
    }
}

/// Removes an interface, and with it the other end if it is one of a pair.
///
/// # Errors
///
/// The kernel's.
pub(super) fn remove(netlink: &mut Rtnetlink, index: u32) -> io::Result<()> {
    let mut body = vec![0; IFINFOMSG];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    netlink.change(RTM_DELLINK, 0, &body)
}
