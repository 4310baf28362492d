//! rtnetlink: what the kernel says of links and routes, and when a link changes.
//!
//! The few requests that are needed here are some twenty bytes each; they are written and read by hand.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
const NETLINK_GET_STRICT_CHK: libc::c_int = 12;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The type of an attribute, without its flags (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;

// linux/rtnetlink.h
pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_GETROUTE: u16 = 26;
const RTN_UNICAST: u8 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
/// Bytes of `struct ifinfomsg`, of `struct rtmsg`, and of `struct rtnexthop`.
pub(super) const IFINFOMSG: usize = 16;
const RTMSG: usize = 12;
const RTNEXTHOP: usize = 8;

// linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_CARRIER_DOWN_COUNT: u16 = 48;
const IFLA_MAX_MTU: u16 = 51;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_PERM_ADDRESS: u16 = 54;
pub(super) const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
/// `IFLA_XDP_ATTACHED` of a program in generic mode (`XDP_ATTACHED_SKB`).
const ATTACHED_GENERIC: u8 = 2;
/// The answer leaves out the statistics (`RTEXT_FILTER_SKIP_STATS`).
const SKIP_STATS: u32 = 1 << 3;

/// The longest name of an interface, alternative names included, in bytes.
const LONGEST_NAME: usize = 127;

/// Room for an answer: the kernel sends up to 32 KiB at once.
const BUFFER: usize = 64 << 10;

/// What the kernel says of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// Its index in this network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its flags (`IFF_*`).
    pub flags: u32,
    /// Its MTU, in bytes.
    pub mtu: usize,
    /// The largest MTU it can have; 0 where the kernel does not say.
    pub max_mtu: usize,
    /// Its link-layer address: the one it was made with, where the kernel says which that is.
    pub address: Vec<u8>,
    /// The link-layer address it has now.
    pub now: Vec<u8>,
    /// The index of the bridge, bond or other device it is a member of.
    pub master: Option<u32>,
    /// The index of the interface it lies on (a VLAN's parent), or of a veth's other end. Only within the same namespace.
    pub below: Option<u32>,
    /// What kind of software interface it is (`vlan`, `veth`); empty for a NIC.
    pub kind: String,
    /// How often it has lost its carrier.
    pub losses: u32,
    /// Whether an XDP program is attached.
    pub has_xdp: bool,
    /// Whether it is attached in generic mode.
    pub is_xdp_generic: bool,
    /// The number of that program; 0 where there is none, or one in each of two modes.
    pub xdp_program: u32,
}

impl Link {
    /// Whether it is up, as far as the operator is concerned.
    pub(super) fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP as u32 != 0
    }

    /// Whether there is somebody at the other end.
    pub(super) fn has_carrier(&self) -> bool {
        self.is_up() && self.flags & libc::IFF_LOWER_UP as u32 != 0
    }

    /// Reads the message about a link; `None` when it is too short.
    pub(super) fn parse(message: &[u8]) -> Option<Link> {
        let (head, rest) = message.split_at_checked(IFINFOMSG)?;
        let mut link = Link { index: word(&head[4..])?, flags: word(&head[8..])?, ..Link::default() };
        let (mut is_elsewhere, mut has_permanent) = (false, false);
        for (kind, value) in attributes(rest) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_MTU => link.mtu = word(value)? as usize,
                IFLA_MAX_MTU => link.max_mtu = word(value)? as usize,
                IFLA_ADDRESS => {
                    link.now = value.to_vec();
                    if !has_permanent {
                        link.address = value.to_vec();
                    }
                }
                IFLA_PERM_ADDRESS => (link.address, has_permanent) = (value.to_vec(), true),
                IFLA_MASTER => link.master = word(value).filter(|index| *index != 0),
                IFLA_LINK => link.below = word(value).filter(|index| *index != 0),
                IFLA_LINK_NETNSID => is_elsewhere = true,
                IFLA_CARRIER_DOWN_COUNT => link.losses = word(value)?,
                IFLA_LINKINFO => {
                    let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                    link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
                }
                IFLA_XDP => {
                    for (kind, value) in attributes(value) {
                        match kind {
                            IFLA_XDP_ATTACHED => {
                                let mode = value.first().copied().unwrap_or(0);
                                (link.has_xdp, link.is_xdp_generic) = (mode != 0, mode == ATTACHED_GENERIC);
                            }
                            IFLA_XDP_PROG_ID => link.xdp_program = word(value).unwrap_or(0),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if is_elsewhere {
            link.below = None;
        }
        Some(link)
    }
}

/// A socket for requests about links and routes of the network namespace it was opened in.
#[derive(Debug)]
pub(super) struct Rtnetlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Box<[u8]>,
}

impl Rtnetlink {
    /// Opens the socket.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`.
    pub(super) fn new() -> io::Result<Rtnetlink> {
        let socket = open(libc::NETLINK_ROUTE, 0)?;
        // Dumps then honour the filter in the request. A kernel that does not know the option sends everything, which is sorted out here.
        let _ = set_option(&socket, libc::SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
        Ok(Rtnetlink { socket, sequence: 0, buffer: vec![0; BUFFER].into() })
    }

    /// A socket for generic netlink, whose messages have the same form.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`.
    pub(super) fn generic() -> io::Result<Rtnetlink> {
        let socket = open(libc::NETLINK_GENERIC, 0)?;
        Ok(Rtnetlink { socket, sequence: 0, buffer: vec![0; BUFFER].into() })
    }

    /// The interface of this name or alternative name.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is none.
    pub(super) fn named(&mut self, name: &str) -> io::Result<Link> {
        if name.is_empty() || name.len() > LONGEST_NAME || name.contains('\0') {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        // A name that fits the older attribute is understood by every kernel, alternative or not.
        let attribute = if name.len() < libc::IFNAMSIZ { IFLA_IFNAME } else { IFLA_ALT_IFNAME };
        let found = self.link(0, Some((attribute, name)));
        match found {
            // Strictly checked, the first attribute stands for the interface's own name alone.
            Err(error) if attribute == IFLA_IFNAME && error.raw_os_error() == Some(libc::ENODEV) => {
                self.link(0, Some((IFLA_ALT_IFNAME, name))).map_err(|_| error)
            }
            // A kernel before 5.5 knows no alternative names.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(io::Error::from_raw_os_error(libc::ENODEV)),
            found => found,
        }
    }

    /// The interface of this index.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is none.
    pub(super) fn indexed(&mut self, index: u32) -> io::Result<Link> {
        self.link(index, None)
    }

    /// Every interface.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.request(RTM_GETLINK, NLM_F_DUMP, &link_request(0, None), |message| links.extend(Link::parse(message)))?;
        Ok(links)
    }

    fn link(&mut self, index: u32, name: Option<(u16, &str)>) -> io::Result<Link> {
        let mut link = None;
        self.request(RTM_GETLINK, 0, &link_request(index, name), |message| link = Link::parse(message))?;
        link.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// Makes the interface of this index a member of the device with the index `master`, or of none with 0.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn set_master(&mut self, index: u32, master: u32) -> io::Result<()> {
        let mut body = vec![0; IFINFOMSG];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        push_attribute(&mut body, IFLA_MASTER, &master.to_ne_bytes());
        self.request(RTM_SETLINK, NLM_F_ACK, &body, |_| ())
    }

    /// Whether a default route, of either family and in any table, leads out of the interface of this index.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn carries_default_route(&mut self, index: u32) -> io::Result<bool> {
        self.default_routes(index).map(|families| !families.is_empty())
    }

    /// The families (`AF_INET`, `AF_INET6`) in which a default route, in any table, leads out of the interface of this index.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn default_routes(&mut self, index: u32) -> io::Result<Vec<libc::c_int>> {
        let mut families = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut body = vec![0; RTMSG];
            body[0] = family as u8;
            push_attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
            let mut carries = false;
            let found = self.request(RTM_GETROUTE, NLM_F_DUMP, &body, |message| {
                carries |= is_default_route(message) && ports_of_route(message).any(|port| port == index);
            });
            match found {
                // A kernel without IPv6.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                found => found?,
            }
            families.extend(carries.then_some(family));
        }
        Ok(families)
    }

    /// The index of the interface by which packets to `address` leave.
    ///
    /// # Errors
    ///
    /// The kernel's, when there is no way.
    pub(super) fn port_toward(&mut self, address: IpAddr) -> io::Result<Option<u32>> {
        let mut body = vec![0; RTMSG];
        let address = match address {
            IpAddr::V4(address) => {
                (body[0], body[1]) = (libc::AF_INET as u8, 32);
                address.octets().to_vec()
            }
            IpAddr::V6(address) => {
                (body[0], body[1]) = (libc::AF_INET6 as u8, 128);
                address.octets().to_vec()
            }
        };
        push_attribute(&mut body, RTA_DST, &address);
        let mut port = None;
        self.request(RTM_GETROUTE, 0, &body, |message| port = ports_of_route(message).next())?;
        Ok(port)
    }

    /// Asks for a change.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn change(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.request(kind, NLM_F_ACK | flags, body, |_| {})
    }

    /// Sends a request and gives every message of the answer to `each`.
    pub(super) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = (HEADER + body.len()) as u32;
        let mut request = Vec::with_capacity(length as usize);
        request.extend(length.to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(body);
        // SAFETY: the buffer is as long as we say; a netlink socket that is not connected sends to the kernel.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        loop {
            let received = receive(&self.socket, &mut self.buffer, 0)?;
            for (head, message) in messages(&self.buffer[..received]) {
                if word(&head[8..]) != Some(self.sequence) {
                    continue;
                }
                match u16::from_ne_bytes([head[4], head[5]]) {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        // A negative errno, or zero for an acknowledgement.
                        return match word(message).unwrap_or(0) as i32 {
                            0 => Ok(()),
                            error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
                        };
                    }
                    _ => each(message),
                }
                if flags & NLM_F_DUMP == 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// Tells when the kernel reports a change of one of some links.
#[derive(Debug)]
pub struct LinkWatch {
    socket: OwnedFd,
    indexes: Vec<u32>,
    buffer: Box<[u8]>,
}

impl LinkWatch {
    /// Watches the interfaces with these indexes, in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)` and `bind(2)`.
    pub fn new(indexes: Vec<u32>) -> io::Result<LinkWatch> {
        Ok(LinkWatch {
            socket: open(libc::NETLINK_ROUTE, libc::RTMGRP_LINK as u32)?,
            indexes,
            buffer: vec![0; BUFFER].into(),
        })
    }

    /// Waits until one of them has changed in whatever way, or `timeout` has passed; returns whether one has.
    ///
    /// # Errors
    ///
    /// Those of `poll(2)` and `recv(2)`.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        let mut entry = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: one valid entry, as we say.
        if unsafe { libc::poll(&raw mut entry, 1, timeout) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
        }
        let mut has_changed = false;
        loop {
            match receive(&self.socket, &mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(received) => {
                    has_changed |= messages(&self.buffer[..received]).any(|(head, message)| {
                        let kind = u16::from_ne_bytes([head[4], head[5]]);
                        let index = message.get(4..).and_then(word);
                        matches!(kind, RTM_NEWLINK | RTM_DELLINK)
                            && index.is_some_and(|index| self.indexes.contains(&index))
                    });
                }
                // Messages were lost, so anything may have changed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => has_changed = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(has_changed),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Opens a netlink socket of this protocol that hears these groups.
fn open(protocol: libc::c_int, groups: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and belongs to nothing else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all members are integers, for which zero is valid.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = groups;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is of the length given.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn set_option(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value is an integer of the length given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one datagram; a signal does not end it.
fn receive(socket: &OwnedFd, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    loop {
        // SAFETY: the buffer is as long as we say.
        let received = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
        match usize::try_from(received) {
            Ok(received) => return Ok(received),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// The body of a request for one link, by index or by name, or for all of them.
fn link_request(index: u32, name: Option<(u16, &str)>) -> Vec<u8> {
    let mut body = vec![0; IFINFOMSG];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    if let Some((attribute, name)) = name {
        push_attribute(&mut body, attribute, &[name.as_bytes(), &[0]].concat());
    }
    push_attribute(&mut body, IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes());
    body
}

pub(super) fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The messages in a datagram, each with its header.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = word(bytes)? as usize;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message.split_at(HEADER))
    })
}

/// The attributes in a message, without the flags of their types.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [length, kind] = [half(bytes)? as usize, half(bytes.get(2..)?)? as usize];
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind as u16 & TYPE_MASK, value))
    })
}

/// Whether a message about a route is about a way to everywhere.
pub(super) fn is_default_route(message: &[u8]) -> bool {
    message.len() >= RTMSG && message[1] == 0 && message[7] == RTN_UNICAST
}

/// The interfaces that a route leads out of.
pub(super) fn ports_of_route(message: &[u8]) -> impl Iterator<Item = u32> {
    attributes(message.get(RTMSG..).unwrap_or_default()).flat_map(|(kind, value)| match kind {
        RTA_OIF => Vec::from_iter(word(value)),
        RTA_MULTIPATH => next_hops(value).collect(),
        _ => Vec::new(),
    })
}

/// The interfaces of the next hops of a route that has several.
fn next_hops(mut bytes: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let length = half(bytes)? as usize;
        let hop = bytes.get(..length).filter(|hop| hop.len() >= RTNEXTHOP)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        word(&hop[4..])
    })
}

pub(super) fn half(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().copied().map(u16::from_ne_bytes)
}

pub(super) fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_ne_bytes)
}

/// The text up to the first zero byte.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// The address that the kernel writes as hexadecimal words of the machine's byte order (`/proc/net/tcp`); an IPv4 address in IPv6 is one.
pub(super) fn address_of_words(words: &[u32]) -> Option<IpAddr> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    if let Ok(bytes) = <[u8; 4]>::try_from(&bytes[..]) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?);
    Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_found_by_name_and_by_index_and_among_all() {
        let mut netlink = Rtnetlink::new().unwrap();
        let lo = netlink.named("lo").unwrap();
        assert_eq!(
            (lo.name.as_str(), lo.master, lo.below, lo.kind.as_str(), lo.has_xdp),
            ("lo", None, None, "", false)
        );
        assert_eq!(netlink.indexed(lo.index).unwrap(), lo);
        assert!(netlink.links().unwrap().iter().any(|link| link.index == lo.index && link.name == "lo"));
        assert!(!netlink.carries_default_route(lo.index).unwrap());
        if lo.is_up() {
            assert_eq!(netlink.port_toward(Ipv4Addr::LOCALHOST.into()).unwrap(), Some(lo.index));
        }
    }

    #[test]
    fn what_is_no_name_names_nothing() {
        let mut netlink = Rtnetlink::new().unwrap();
        for name in ["", "no-such-dev", &"x".repeat(60), &"x".repeat(200), "l\0"] {
            let error = netlink.named(name).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV), "{name:?}: {error}");
        }
        assert_eq!(netlink.indexed(0x7fff_fff0).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn messages_that_are_cut_off_are_read_as_far_as_they_go() {
        let mut body = link_request(7, Some((IFLA_IFNAME, "eth0")));
        push_attribute(&mut body, IFLA_MASTER, &9_u32.to_ne_bytes());
        let whole = Link::parse(&body).unwrap();
        assert_eq!((whole.index, whole.name.as_str(), whole.master), (7, "eth0", Some(9)));
        for length in 0..body.len() {
            let part = Link::parse(&body[..length]);
            assert_eq!(part.is_some(), length >= IFINFOMSG);
        }
        assert_eq!(messages(&[1, 0, 0, 0]).count() + messages(&[255; 20]).count() + attributes(&[0; 3]).count(), 0);
        assert_eq!(attributes(&[0; 8]).count() + next_hops(&[0; 8]).count(), 0);
    }

    #[test]
    fn a_route_over_several_next_hops_leads_out_of_each() {
        let mut route = vec![0; RTMSG];
        route[7] = RTN_UNICAST;
        let hop = |port: u32| [&8_u16.to_ne_bytes()[..], &[0, 0], &port.to_ne_bytes()].concat();
        push_attribute(&mut route, RTA_MULTIPATH, &[hop(3), hop(5)].concat());
        assert!(is_default_route(&route));
        assert_eq!(ports_of_route(&route).collect::<Vec<_>>(), [3, 5]);
        route[1] = 8;
        assert!(!is_default_route(&route));
    }

    #[test]
    fn addresses_are_those_of_the_kernels_tables() {
        let words = |bytes: &[u8]| -> Vec<u32> {
            bytes.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect()
        };
        let four = Ipv4Addr::new(192, 0, 2, 1);
        assert_eq!(address_of_words(&words(&four.octets())), Some(four.into()));
        assert_eq!(address_of_words(&words(&four.to_ipv6_mapped().octets())), Some(four.into()));
        assert_eq!(address_of_words(&words(&Ipv6Addr::LOCALHOST.octets())), Some(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(address_of_words(&[1, 2]), None);
    }
}
