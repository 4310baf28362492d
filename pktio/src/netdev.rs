//! What an operator would otherwise do by hand before bridging two interfaces: promiscuous mode, queue count, offloads,
//! pause frames, waiting for the link. How frames are spread over the queues is told in `rss`.
//!
//! All of it goes through the [`Guard`], which puts everything back when it is dropped. Nothing here calls an external
//! program. What a device does not offer is passed over; what it refuses and matters is an error or a warning.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fmt;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::open::OpenError;
use crate::rss::{Before, Twin};
use crate::xdp::Attached;

/// How long to wait for a link that is not there yet.
const LINK_PATIENCE: Duration = Duration::from_secs(10);

/// How often to look for it.
const LINK_STEP: Duration = Duration::from_millis(100);

/// An Ethernet header and two VLAN tags, in bytes: what a frame has beyond the MTU.
const BEYOND_MTU: usize = 14 + 2 * 4;

/// Offloads that break a bridge. Receive merging makes frames longer than any link carries; tags parsed by the device are
/// lost to XDP; a segmenting sender hides what is on the wire. Receive checksums stay: they only tell, and change nothing.
const OFFLOADS: [&str; 17] = [
    "rx-gro",
    "rx-gro-hw",
    "rx-gro-list",
    "rx-udp-gro-forwarding",
    "rx-lro",
    "rx-vlan-hw-parse",
    "rx-vlan-stag-hw-parse",
    "rx-vlan-filter",
    "rx-vlan-stag-filter",
    "tx-vlan-hw-insert",
    "tx-vlan-stag-hw-insert",
    "tx-generic-segmentation",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-udp-segmentation",
];

/// The offload that takes the tag out of a frame where XDP cannot see it.
const TAG_PARSING: &str = "rx-vlan-hw-parse";

// linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_GPAUSEPARAM: u32 = 0x12;
const ETHTOOL_SPAUSEPARAM: u32 = 0x13;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;

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
        let control = Control::new().map_err(|source| OpenError::Io { what: format!("{name}: a socket"), source })?;
        let io = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => OpenError::NotFound { interface: name.into() },
            _ => OpenError::Io { what: format!("{name}: the kernel was asked about it"), source },
        };
        let index = control.index(name).map_err(io)?;
        let mtu = control.mtu(name).map_err(io)?;
        if control.flags(name).map_err(io)? & libc::IFF_UP == 0 {
            return Err(OpenError::Down { interface: name.into() });
        }
        Ok(Interface { name: name.into(), index, mtu })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number in this network namespace.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The longest network-layer packet it carries, in bytes.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// The longest frame it carries, in bytes: the MTU, an Ethernet header and two VLAN tags; no checksum.
    pub fn max_frame(&self) -> usize {
        self.mtu + BEYOND_MTU
    }
}

/// Puts both interfaces back as they were when it is dropped: programs detached first, then the settings, last changed first.
///
/// Drop it after the ports, so that the sockets are closed before the queues change.
pub struct Guard {
    programs: Vec<Attached>,
    undo: Vec<Undo>,
    /// Opened in the namespace of the interfaces, so that a later change of namespace does not matter.
    control: Option<Control>,
}

/// A setting that was changed, and what it was before.
#[derive(Debug)]
pub(crate) enum Undo {
    Features {
        name: String,
        request: Vec<u32>,
    },
    Channels {
        name: String,
        request: [u32; 9],
    },
    Pause {
        name: String,
        request: [u32; 4],
    },
    /// The spreading of frames over the queues.
    Scaling {
        name: String,
        request: Vec<u32>,
    },
    /// The membership ends with its socket, also when the process is killed.
    Promiscuous {
        name: String,
        membership: OwnedFd,
    },
}

impl Guard {
    /// A guard with nothing to put back, for ports without an interface.
    pub(crate) fn empty() -> Guard {
        Guard { programs: Vec::new(), undo: Vec::new(), control: None }
    }

    /// Prepares `interfaces` for `queues` workers. With random bytes for a key, the interfaces are made to spread connections over the
    /// queues symmetrically; says whether that came about, or why not.
    ///
    /// What had been changed is put back when it fails.
    ///
    /// # Errors
    ///
    /// When there is no permission, or an interface cannot have as many queues.
    pub(crate) fn prepare(
        interfaces: &[&Interface],
        queues: usize,
        random: Option<&[u8; 64]>,
        notes: &mut Vec<String>,
    ) -> Result<(Guard, Result<Twin, String>), OpenError> {
        let mut guard = Guard::empty();
        let control =
            guard.control.insert(Control::new().map_err(|source| OpenError::Io { what: "a socket".into(), source })?);
        let before = match (random, <[&Interface; 2]>::try_from(interfaces)) {
            (None, _) => Err("it was not asked for".to_owned()),
            (_, Err(_)) => Err("not both ports are network cards".to_owned()),
            (Some(random), Ok(both)) => Before::read(control, both).map(|before| (before, both, random)),
        };
        if let Ok((before, both, _)) = &before {
            guard.undo.extend(before.undo(*both));
        }
        for interface in interfaces {
            let name = interface.name();
            warn_of_addresses(name);
            guard.undo.push(promiscuous(interface)?);
            guard.undo.extend(set_channels(control, name, queues)?);
            guard.undo.extend(clear_offloads(control, name, notes));
            guard.undo.extend(clear_pause(control, name));
        }
        let twin = before
            .and_then(|(before, both, random)| before.make_symmetric(control, both, queues, random, &mut guard.undo));
        Ok((guard, twin))
    }

    /// Waits until every interface has a link, ten seconds at most; then warns and goes on: a cable may come later.
    pub(crate) fn await_links(&self, interfaces: &[&Interface], notes: &mut Vec<String>) {
        let Some(control) = &self.control else { return };
        let begin = Instant::now();
        for interface in interfaces {
            let name = interface.name();
            let has_link = || control.flags(name).is_ok_and(|flags| flags & libc::IFF_RUNNING != 0);
            while !has_link() {
                if begin.elapsed() >= LINK_PATIENCE {
                    warn!("{name} has no link; going on without");
                    notes.push(format!("{name} has no link; check the cable and the other end"));
                    break;
                }
                thread::sleep(LINK_STEP);
            }
        }
    }

    /// Keeps the XDP programs until the guard is dropped.
    pub(crate) fn keep(&mut self, programs: Vec<Attached>) {
        self.programs.extend(programs);
    }

    /// The most frames that a device of `interfaces` parks in its receive and transmit rings; 0 when none tells.
    pub(crate) fn hardware_rings(&self, interfaces: &[&Interface]) -> usize {
        let Some(control) = &self.control else { return 0 };
        let rings = |interface: &&Interface| {
            // cmd, then the possible sizes: rx, mini, jumbo, tx; then the present in the same order.
            let mut rings = [0_u32; 9];
            rings[0] = ETHTOOL_GRINGPARAM;
            control.ethtool(interface.name(), &mut rings).map_or(0, |()| (rings[5] + rings[8]) as usize)
        };
        interfaces.iter().map(rings).max().unwrap_or(0)
    }

    /// Frames that the XDP programs found no socket for: they arrived on a queue that no worker owns.
    pub fn strays(&self) -> u64 {
        self.programs.iter().map(Attached::strays).sum()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.programs.clear();
        let Some(control) = &self.control else { return };
        while let Some(undo) = self.undo.pop() {
            let (name, what, result) = match undo {
                Undo::Features { name, mut request } => {
                    let result = control.ethtool(&name, &mut request);
                    (name, "offloads", result)
                }
                Undo::Channels { name, mut request } => {
                    let result = control.ethtool(&name, &mut request);
                    (name, "queue count", result)
                }
                Undo::Pause { name, mut request } => {
                    let result = control.ethtool(&name, &mut request);
                    (name, "pause frames", result)
                }
                Undo::Scaling { name, mut request } => {
                    let result = control.ethtool(&name, &mut request);
                    (name, "spreading over the queues", result)
                }
                Undo::Promiscuous { name, membership } => {
                    drop(membership);
                    (name, "promiscuous mode", Ok(()))
                }
            };
            match result {
                Ok(()) => debug!("{name}: {what} put back"),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => debug!("{name} is gone"),
                Err(error) => warn!("{name}: could not put its {what} back: {error}"),
            }
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("programs", &self.programs).field("undo", &self.undo).finish_non_exhaustive()
    }
}

/// Unicast frames for others arrive only in promiscuous mode. A packet membership counts together with those of others
/// (tcpdump), and the kernel ends it with the process.
fn promiscuous(interface: &Interface) -> Result<Undo, OpenError> {
    let name = interface.name();
    let fail = |source: io::Error| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => OpenError::Permission { interface: name.into() },
        _ => OpenError::Io { what: format!("{name}: promiscuous mode"), source },
    };
    // Protocol 0: the socket itself receives nothing.
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let membership = unsafe { OwnedFd::from_raw_fd(fd) };
    let request = libc::packet_mreq {
        mr_ifindex: interface.index() as libc::c_int,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: the request is a structure of the length we say.
    let result = unsafe {
        libc::setsockopt(
            membership.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of_val(&request) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    Ok(Undo::Promiscuous { name: name.into(), membership })
}

/// Sets as many receive and transmit queues as there are workers. A device that cannot say has one queue.
fn set_channels(control: &Control, name: &str, queues: usize) -> Result<Option<Undo>, OpenError> {
    // cmd, then the possible: rx, tx, other, combined; then the present in the same order.
    let mut channels = [0_u32; 9];
    channels[0] = ETHTOOL_GCHANNELS;
    let possible = match control.ethtool(name, &mut channels) {
        Ok(()) => (channels[1].min(channels[2]) + channels[4]) as usize,
        Err(_) => 1,
    };
    let too_few = |possible: usize| OpenError::Unsupported {
        what: format!("{name} has {possible} queue(s) for {queues} workers"),
        hint: format!("set the number of workers to {possible} or less"),
    };
    if possible <= 1 {
        return if queues <= possible.max(1) { Ok(None) } else { Err(too_few(possible)) };
    }
    let wanted = u32::try_from(queues).map_err(|_| too_few(possible))?;
    let mut request = channels;
    request[0] = ETHTOOL_SCHANNELS;
    if wanted <= channels[4] {
        (request[5], request[6], request[8]) = (0, 0, wanted);
    } else if wanted <= channels[1].min(channels[2]) {
        (request[5], request[6], request[8]) = (wanted, wanted, 0);
    } else {
        return Err(too_few(possible));
    }
    if request[1..] == channels[1..] {
        return Ok(None);
    }
    let receiving = (channels[5] + channels[8]) as usize;
    match control.ethtool(name, &mut request) {
        Ok(()) => {
            channels[0] = ETHTOOL_SCHANNELS;
            Ok(Some(Undo::Channels { name: name.into(), request: channels }))
        }
        Err(source) if receiving != queues => Err(match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => OpenError::Permission { interface: name.into() },
            _ => OpenError::Unsupported {
                what: format!("{name} has {receiving} queue(s), and {queues} could not be set ({source})"),
                hint: format!("set the number of workers to {receiving}, or the queues with `ethtool -L {name}`"),
            },
        }),
        // As many receive queues as workers, and something else that does not matter.
        Err(_) => Ok(None),
    }
}

/// Switches off the offloads that break a bridge, and warns of tags that will be lost.
fn clear_offloads(control: &Control, name: &str, notes: &mut Vec<String>) -> Option<Undo> {
    let names = control.feature_names(name).unwrap_or_default();
    let blocks = names.len().div_ceil(32);
    if blocks == 0 {
        debug!("{name} tells nothing of its offloads");
        return None;
    }
    let before = control.features(name, blocks).ok()?;
    // Per block: which to set, and to what.
    let mut change = vec![0_u32; 2 + 2 * blocks];
    (change[0], change[1]) = (ETHTOOL_SFEATURES, blocks as u32);
    let mut undo = change.clone();
    for (i, feature) in names.iter().enumerate() {
        let (block, bit) = (i / 32, 1_u32 << (i % 32));
        if OFFLOADS.contains(&feature.as_str()) && before[block].may_change & bit != 0 {
            change[2 + 2 * block] |= bit;
            undo[2 + 2 * block] |= bit;
            // What was asked for, not what was active: that may depend on other features.
            undo[3 + 2 * block] |= before[block].requested & bit;
        }
    }
    let mut changed = None;
    if change != undo {
        match control.ethtool(name, &mut change) {
            Ok(()) => changed = Some(Undo::Features { name: name.into(), request: undo }),
            Err(error) => {
                warn!("{name}: could not switch off its offloads: {error}");
                notes.push(format!("{name}: offloads stay on ({error}); merged frames will be dropped"));
            }
        }
    }
    if let (Some(at), Ok(after)) = (names.iter().position(|n| n == TAG_PARSING), control.features(name, blocks)) {
        if after[at / 32].active & (1 << (at % 32)) != 0 {
            warn!("{name}: rx-vlan-offload cannot be switched off: VLAN tags would vanish from frames");
            notes.push(format!("{name}: rx-vlan-offload cannot be switched off; do not send tagged frames through it"));
        } else if control.driver(name).is_ok_and(|driver| driver == "veth") {
            debug!("{name}: the tags of a veth come from its peer; there `ethtool -K PEER txvlan off` keeps them");
        }
    }
    changed
}

/// Switches pause frames off: one slow port must not stop the other's link.
fn clear_pause(control: &Control, name: &str) -> Option<Undo> {
    // cmd, autonegotiation, receive, transmit.
    let mut pause = [ETHTOOL_GPAUSEPARAM, 0, 0, 0];
    control.ethtool(name, &mut pause).ok()?;
    if pause[1..] == [0, 0, 0] {
        return None;
    }
    let mut request = [ETHTOOL_SPAUSEPARAM, 0, 0, 0];
    if let Err(error) = control.ethtool(name, &mut request) {
        debug!("{name}: pause frames stay on: {error}");
        return None;
    }
    pause[0] = ETHTOOL_SPAUSEPARAM;
    Some(Undo::Pause { name: name.into(), request: pause })
}

/// The box has no address: one on its interfaces is a mistake, or the wrong interface.
fn warn_of_addresses(name: &str) {
    for address in addresses(name) {
        warn!("{name} carries the address {address}: the host cannot use it while the interface is bridged");
    }
}

/// The addresses of an interface that somebody gave it; link-local ones make themselves.
fn addresses(name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut list: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: the list is written to a pointer of ours.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return found;
    }
    let mut entry = list;
    while !entry.is_null() {
        // SAFETY: the entries are valid until the list is freed below; names are C strings; addresses, where present, are as
        // long as their family says.
        unsafe {
            let here = &*entry;
            if CStr::from_ptr(here.ifa_name).to_bytes() == name.as_bytes() && !here.ifa_addr.is_null() {
                match libc::c_int::from((*here.ifa_addr).sa_family) {
                    libc::AF_INET => {
                        let address = here.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                        found.insert(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).to_string());
                    }
                    libc::AF_INET6 => {
                        let address = here.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                        let address = Ipv6Addr::from(address.sin6_addr.s6_addr);
                        if !address.is_unicast_link_local() {
                            found.insert(address.to_string());
                        }
                    }
                    _ => {}
                }
            }
            entry = here.ifa_next;
        }
    }
    // SAFETY: the list came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// One block of 32 features.
#[derive(Debug, Clone, Copy)]
struct FeatureBlock {
    may_change: u32,
    requested: u32,
    active: u32,
}

/// A socket to ask the kernel about interfaces.
pub(crate) struct Control(OwnedFd);

impl Control {
    fn new() -> io::Result<Control> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        Ok(Control(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// One request about `name`.
    fn request(&self, code: libc::Ioctl, name: &str, request: &mut libc::ifreq) -> io::Result<()> {
        if name.len() >= libc::IFNAMSIZ || name.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: the request is a complete ifreq with a terminated name; what it points to, if anything, is valid for the
        // code: the callers see to it.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), code, ptr::from_mut(request)) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn index(&self, name: &str) -> io::Result<u32> {
        let mut request = empty_request();
        self.request(libc::SIOCGIFINDEX, name, &mut request)?;
        // SAFETY: the kernel has just written this member.
        Ok(unsafe { request.ifr_ifru.ifru_ifindex } as u32)
    }

    fn mtu(&self, name: &str) -> io::Result<usize> {
        let mut request = empty_request();
        self.request(libc::SIOCGIFMTU, name, &mut request)?;
        // SAFETY: the kernel has just written this member.
        Ok(usize::try_from(unsafe { request.ifr_ifru.ifru_mtu }).unwrap_or(0))
    }

    fn flags(&self, name: &str) -> io::Result<libc::c_int> {
        let mut request = empty_request();
        self.request(libc::SIOCGIFFLAGS, name, &mut request)?;
        // SAFETY: the kernel has just written this member.
        Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
    }

    /// An ethtool command; `data` begins with its code and says itself how long it is.
    pub(crate) fn ethtool(&self, name: &str, data: &mut [u32]) -> io::Result<()> {
        let mut request = empty_request();
        request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
        self.request(libc::SIOCETHTOOL, name, &mut request)
    }

    /// The names of all features, in the order of their bits.
    fn feature_names(&self, name: &str) -> io::Result<Vec<String>> {
        // cmd, reserved, a 64-bit mask of string sets, their sizes.
        let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
        if cfg!(target_endian = "big") {
            info.swap(2, 3);
        }
        self.ethtool(name, &mut info)?;
        let count = info[4] as usize;
        let mut strings = vec![0_u32; 3 + count * ETH_GSTRING_LEN / 4];
        (strings[0], strings[1], strings[2]) = (ETHTOOL_GSTRINGS, ETH_SS_FEATURES, info[4]);
        self.ethtool(name, &mut strings)?;
        let bytes: Vec<u8> = strings[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(bytes.chunks_exact(ETH_GSTRING_LEN).map(text).collect())
    }

    fn features(&self, name: &str, blocks: usize) -> io::Result<Vec<FeatureBlock>> {
        let mut data = vec![0_u32; 2 + 4 * blocks];
        (data[0], data[1]) = (ETHTOOL_GFEATURES, blocks as u32);
        self.ethtool(name, &mut data)?;
        // Per block: available, requested, active, never changed.
        let blocks = data[2..].chunks_exact(4);
        Ok(blocks.map(|b| FeatureBlock { may_change: b[0] & !b[3], requested: b[1], active: b[2] }).collect())
    }

    /// The name of the driver.
    fn driver(&self, name: &str) -> io::Result<String> {
        // cmd, the name in 32 bytes, and more that is of no use here; 196 bytes in all.
        let mut info = [0_u32; 49];
        info[0] = ETHTOOL_GDRVINFO;
        self.ethtool(name, &mut info)?;
        let bytes: Vec<u8> = info[1..9].iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(text(&bytes))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

fn empty_request() -> libc::ifreq {
    // SAFETY: all members are integers, arrays of them, or pointers, for which zero is valid.
    unsafe { mem::zeroed() }
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
    fn the_address_of_the_loopback_is_seen_and_nobody_elses() {
        if Interface::find("lo").is_ok() {
            assert!(addresses("lo").contains("127.0.0.1"));
        }
        assert!(addresses("l").is_empty());
    }

    #[test]
    fn what_is_no_interface_is_not_found() {
        for name in ["", "no-such-dev", "a-name-that-is-far-too-long-for-an-interface"] {
            let error = Interface::find(name).unwrap_err();
            assert!(matches!(error, OpenError::NotFound { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn a_text_ends_at_its_zero() {
        assert_eq!(text(b"veth\0rest"), "veth");
        assert_eq!(text(b"all of it"), "all of it");
    }
}
