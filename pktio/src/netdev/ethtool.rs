//! Requests to the kernel about an interface: its index, MTU and flags, and ethtool commands.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

// linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x03;
pub(super) const ETHTOOL_GRINGPARAM: u32 = 0x10;
pub(super) const ETHTOOL_GPAUSEPARAM: u32 = 0x12;
pub(super) const ETHTOOL_SPAUSEPARAM: u32 = 0x13;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
pub(super) const ETHTOOL_SFEATURES: u32 = 0x3b;
pub(super) const ETHTOOL_GCHANNELS: u32 = 0x3c;
pub(super) const ETHTOOL_SCHANNELS: u32 = 0x3d;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;

/// One block of 32 features.
#[derive(Debug, Clone, Copy)]
pub(super) struct FeatureBlock {
    /// Features that can be switched.
    pub may_change: u32,
    /// Features that are asked for.
    pub requested: u32,
    /// Features that are on.
    pub active: u32,
}

/// A socket for requests about interfaces of the network namespace it was opened in.
#[derive(Debug)]
pub(super) struct Ethtool(OwnedFd);

impl Ethtool {
    /// Opens the socket.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`.
    pub(super) fn new() -> io::Result<Ethtool> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and belongs to nothing else.
        Ok(Ethtool(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// One request about `name`.
    fn request(&self, code: libc::Ioctl, name: &str, request: &mut libc::ifreq) -> io::Result<()> {
        if name.len() >= libc::IFNAMSIZ || name.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: the request is a complete ifreq with a terminated name; what it points to, if anything, is valid for
        // the code: the callers guarantee it.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), code, ptr::from_mut(request)) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The index of an interface.
    pub(super) fn index(&self, name: &str) -> io::Result<u32> {
        let mut request = empty_request();
        self.request(libc::SIOCGIFINDEX, name, &mut request)?;
        // SAFETY: the kernel has just written this member.
        Ok(unsafe { request.ifr_ifru.ifru_ifindex } as u32)
    }

    /// Its MTU, in bytes.
    pub(super) fn mtu(&self, name: &str) -> io::Result<usize> {
        let mut request = empty_request();
        self.request(libc::SIOCGIFMTU, name, &mut request)?;
        // SAFETY: the kernel has just written this member.
        Ok(usize::try_from(unsafe { request.ifr_ifru.ifru_mtu }).unwrap_or(0))
    }

    /// Its flags (`IFF_*`).
    pub(super) fn flags(&self, name: &str) -> io::Result<libc::c_int> {
        let mut request = empty_request();
        self.request(libc::SIOCGIFFLAGS, name, &mut request)?;
        // SAFETY: the kernel has just written this member.
        Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
    }

    /// An ethtool command. `data` begins with the command's code, which implies its length; the answer replaces it.
    pub(super) fn command(&self, name: &str, data: &mut [u32]) -> io::Result<()> {
        let mut request = empty_request();
        request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
        self.request(libc::SIOCETHTOOL, name, &mut request)
    }

    /// The names of all features, in the order of their bits.
    pub(super) fn feature_names(&self, name: &str) -> io::Result<Vec<String>> {
        // cmd, reserved, a 64-bit mask of string sets, their sizes.
        let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
        if cfg!(target_endian = "big") {
            info.swap(2, 3);
        }
        self.command(name, &mut info)?;
        let count = info[4] as usize;
        let mut strings = vec![0_u32; 3 + count * ETH_GSTRING_LEN / 4];
        (strings[0], strings[1], strings[2]) = (ETHTOOL_GSTRINGS, ETH_SS_FEATURES, info[4]);
        self.command(name, &mut strings)?;
        let bytes: Vec<u8> = strings[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(bytes.chunks_exact(ETH_GSTRING_LEN).map(text).collect())
    }

    /// The first `blocks` blocks of its features.
    pub(super) fn features(&self, name: &str, blocks: usize) -> io::Result<Vec<FeatureBlock>> {
        let mut data = vec![0_u32; 2 + 4 * blocks];
        (data[0], data[1]) = (ETHTOOL_GFEATURES, blocks as u32);
        self.command(name, &mut data)?;
        // Per block: available, requested, active, never changed.
        let blocks = data[2..].chunks_exact(4);
        Ok(blocks.map(|b| FeatureBlock { may_change: b[0] & !b[3], requested: b[1], active: b[2] }).collect())
    }

    /// The name of its driver, and the address of the device on its bus.
    pub(super) fn driver_and_bus(&self, name: &str) -> io::Result<(String, String)> {
        // cmd; driver, version, firmware version and bus address in 32 bytes each, and more that is not used here; 196 bytes in all.
        let mut info = [0_u32; 49];
        info[0] = ETHTOOL_GDRVINFO;
        self.command(name, &mut info)?;
        let bytes: Vec<u8> = info[1..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok((text(&bytes[..32]), text(&bytes[96..128])))
    }
}

/// The text up to the first zero byte.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// A request with all fields zero.
fn empty_request() -> libc::ifreq {
    // SAFETY: all members are integers, arrays of them, or pointers, for which zero is valid.
    unsafe { mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_at_its_zero() {
        assert_eq!(text(b"veth\0rest"), "veth");
        assert_eq!(text(b"all of it"), "all of it");
    }
}
