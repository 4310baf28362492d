//! What an operator would otherwise do by hand before bridging two interfaces: promiscuous mode, queue count, offloads,
//! pause frames, waiting for the link. RSS is configured in `rss`.
//!
//! [`Settings`] restores everything when it is dropped. No external program is called. An ability that a device lacks is
//! skipped; a request that it refuses is an error or a warning where it matters.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::Interface;
use super::ethtool::{
    ETHTOOL_GCHANNELS, ETHTOOL_GPAUSEPARAM, ETHTOOL_GRINGPARAM, ETHTOOL_SCHANNELS, ETHTOOL_SFEATURES,
    ETHTOOL_SPAUSEPARAM, Ethtool,
};
use super::rss::OriginalRss;
use super::undo::Undo;
use crate::error::OpenError;
use crate::rss::Twin;

/// How long to wait for a link that is not there yet.
const LINK_PATIENCE: Duration = Duration::from_secs(10);

/// How often to look for it.
const LINK_STEP: Duration = Duration::from_millis(100);

/// Offloads that break a bridge. Receive merging makes frames longer than any link carries; tags parsed by the device are
/// lost to XDP; a segmenting sender hides what is on the wire. Receive checksums stay: they report and change nothing.
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

/// The changed settings of interfaces. Dropping it restores them, last changed first.
///
/// Drop it after the ports, so that the sockets are closed before the queues change.
#[derive(Debug)]
pub(crate) struct Settings {
    undo: Vec<Undo>,
    /// Opened in the network namespace of the interfaces, so that a later change of namespace does not matter.
    ethtool: Option<Ethtool>,
}

impl Settings {
    /// No settings, for ports without an interface.
    pub(crate) fn none() -> Settings {
        Settings { undo: Vec::new(), ethtool: None }
    }

    /// Prepares `interfaces` for `queues` workers. With random bytes for a key, makes their RSS symmetric as well, and returns its software
    /// twin or the reason why it is not.
    ///
    /// On failure everything that was changed is restored.
    ///
    /// # Errors
    ///
    /// When there is no permission, or an interface cannot have as many queues.
    pub(crate) fn prepare(
        interfaces: &[&Interface],
        queues: usize,
        random: Option<&[u8; 64]>,
        notes: &mut Vec<String>,
    ) -> Result<(Settings, Result<Twin, String>), OpenError> {
        let mut settings = Settings::none();
        let ethtool = settings
            .ethtool
            .insert(Ethtool::new().map_err(|source| OpenError::Io { what: "a socket".into(), source })?);
        let original = match (random, <[&Interface; 2]>::try_from(interfaces)) {
            (None, _) => Err("it was not asked for".to_owned()),
            (_, Err(_)) => Err("not both ports are network cards".to_owned()),
            (Some(random), Ok(both)) => OriginalRss::read(ethtool, both).map(|original| (original, both, random)),
        };
        if let Ok((original, both, _)) = &original {
            settings.undo.extend(original.undo(*both));
        }
        for interface in interfaces {
            let name = interface.name();
            warn_of_addresses(name);
            settings.undo.push(promiscuous(interface)?);
            settings.undo.extend(set_channels(ethtool, name, queues)?);
            settings.undo.extend(clear_offloads(ethtool, name, notes));
            settings.undo.extend(clear_pause(ethtool, name));
        }
        let twin = original.and_then(|(original, both, random)| {
            original.make_symmetric(ethtool, both, queues, random, &mut settings.undo)
        });
        Ok((settings, twin))
    }

    /// Waits until every interface has a link, ten seconds at most; then warns and goes on: a cable may come later.
    pub(crate) fn await_links(&self, interfaces: &[&Interface], notes: &mut Vec<String>) {
        let Some(ethtool) = &self.ethtool else { return };
        let begin = Instant::now();
        for interface in interfaces {
            let name = interface.name();
            let has_link = || ethtool.flags(name).is_ok_and(|flags| flags & libc::IFF_RUNNING != 0);
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

    /// The most frames that a device of `interfaces` keeps in its receive and transmit rings; 0 when no device reports it.
    pub(crate) fn hardware_rings(&self, interfaces: &[&Interface]) -> usize {
        let Some(ethtool) = &self.ethtool else { return 0 };
        let rings = |interface: &&Interface| {
            // cmd, then the possible sizes: rx, mini, jumbo, tx; then the present in the same order.
            let mut rings = [0_u32; 9];
            rings[0] = ETHTOOL_GRINGPARAM;
            ethtool.command(interface.name(), &mut rings).map_or(0, |()| (rings[5] + rings[8]) as usize)
        };
        interfaces.iter().map(rings).max().unwrap_or(0)
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        let Some(ethtool) = &self.ethtool else { return };
        while let Some(undo) = self.undo.pop() {
            undo.apply(ethtool);
        }
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
    // SAFETY: the descriptor was just opened and belongs to nothing else.
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

/// Sets as many receive and transmit queues as there are workers. A device that does not report its queues has one.
fn set_channels(ethtool: &Ethtool, name: &str, queues: usize) -> Result<Option<Undo>, OpenError> {
    // cmd, then the possible: rx, tx, other, combined; then the present in the same order.
    let mut channels = [0_u32; 9];
    channels[0] = ETHTOOL_GCHANNELS;
    let possible = match ethtool.command(name, &mut channels) {
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
    match ethtool.command(name, &mut request) {
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
        // There are as many receive queues as workers; the transmit queues do not matter.
        Err(_) => Ok(None),
    }
}

/// Switches off the offloads that break a bridge, and warns of tags that will be lost.
fn clear_offloads(ethtool: &Ethtool, name: &str, notes: &mut Vec<String>) -> Option<Undo> {
    let names = ethtool.feature_names(name).unwrap_or_default();
    let blocks = names.len().div_ceil(32);
    if blocks == 0 {
        debug!("{name} does not report its offloads");
        return None;
    }
    let before = ethtool.features(name, blocks).ok()?;
    // Per block: which to set, and to what.
    let mut change = vec![0_u32; 2 + 2 * blocks];
    (change[0], change[1]) = (ETHTOOL_SFEATURES, blocks as u32);
    let mut undo = change.clone();
    for (i, feature) in names.iter().enumerate() {
        let (block, bit) = (i / 32, 1_u32 << (i % 32));
        if OFFLOADS.contains(&feature.as_str()) && before[block].may_change & bit != 0 {
            change[2 + 2 * block] |= bit;
            undo[2 + 2 * block] |= bit;
            // The feature that was asked for, not what was active, which may depend on other features.
            undo[3 + 2 * block] |= before[block].requested & bit;
        }
    }
    let mut changed = None;
    if change != undo {
        match ethtool.command(name, &mut change) {
            Ok(()) => changed = Some(Undo::Features { name: name.into(), request: undo }),
            Err(error) => {
                warn!("{name}: could not switch off its offloads: {error}");
                notes.push(format!("{name}: offloads stay on ({error}); merged frames will be dropped"));
            }
        }
    }
    if let (Some(at), Ok(after)) = (names.iter().position(|n| n == TAG_PARSING), ethtool.features(name, blocks))
        && after[at / 32].active & (1 << (at % 32)) != 0
    {
        warn!("{name}: rx-vlan-offload cannot be switched off: VLAN tags would vanish from frames");
        notes.push(format!("{name}: rx-vlan-offload cannot be switched off; do not send tagged frames through it"));
    }
    changed
}

/// Switches pause frames off: one slow port must not stop the other's link.
fn clear_pause(ethtool: &Ethtool, name: &str) -> Option<Undo> {
    // cmd, autonegotiation, receive, transmit.
    let mut pause = [ETHTOOL_GPAUSEPARAM, 0, 0, 0];
    ethtool.command(name, &mut pause).ok()?;
    if pause[1..] == [0, 0, 0] {
        return None;
    }
    let mut request = [ETHTOOL_SPAUSEPARAM, 0, 0, 0];
    if let Err(error) = ethtool.command(name, &mut request) {
        debug!("{name}: pause frames stay on: {error}");
        return None;
    }
    pause[0] = ETHTOOL_SPAUSEPARAM;
    Some(Undo::Pause { name: name.into(), request: pause })
}

/// The bridge has no address: one on its interfaces is a mistake, or the interface is the wrong one.
fn warn_of_addresses(name: &str) {
    for address in addresses(name) {
        warn!("{name} carries the address {address}: the host cannot use it while the interface is bridged");
    }
}

/// The addresses configured on an interface, without the link-local ones that the kernel makes itself.
fn addresses(name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut list: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: the list is written to a local pointer.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_the_loopback_is_seen_and_no_other() {
        if Interface::find("lo").is_ok() {
            assert!(addresses("lo").contains("127.0.0.1"));
        }
        assert!(addresses("l").is_empty());
    }
}
