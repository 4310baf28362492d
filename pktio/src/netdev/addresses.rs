//! The addresses of an interface.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

use tracing::warn;

/// The bridge has no address: one on its interfaces is a mistake, or the interface is the wrong one. Link-local ones the kernel makes itself.
pub(super) fn warn_of_addresses(name: &str) {
    let made_by_kernel = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    for address in addresses(name).iter().filter(|address| !made_by_kernel(address)) {
        warn!("{name} carries the address {address}: the host cannot use it while the interface is bridged");
    }
}

/// The addresses configured on an interface.
pub(super) fn addresses(name: &str) -> BTreeSet<IpAddr> {
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
                        found.insert(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into());
                    }
                    libc::AF_INET6 => {
                        let address = here.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                        found.insert(Ipv6Addr::from(address.sin6_addr.s6_addr).into());
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
    use crate::netdev::Interface;

    #[test]
    fn the_address_of_the_loopback_is_seen_and_no_other() {
        if Interface::find("lo").is_ok() {
            assert!(addresses("lo").contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        }
        assert!(addresses("l").is_empty());
    }
}
