//! Requests to the kernel about an interface: its flags, and ethtool commands.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

// linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCOALESCE: u32 = 0x0e;
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

/// An offload or another feature of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Feature {
    /// Its name.
    pub name: String,
    /// Its place among all features.
    pub number: usize,
    /// It can be switched.
    pub may_change: bool,
    /// It is asked for. Whether it is active may depend on other features.
    pub is_requested: bool,
    /// It is on.
    pub is_active: bool,
}

/// Numbers of queues: receiving, transmitting, other, combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queues(pub [u32; 4]);

impl Queues {
    /// Queues that both receive and transmit.
    pub(super) fn pairs(self) -> usize {
        (self.0[0].min(self.0[1]) + self.0[3]) as usize
    }

    /// Queues that receive.
    pub(super) fn receiving(self) -> usize {
        (self.0[0] + self.0[3]) as usize
    }
}

/// Pause frames: autonegotiation, receiving, transmitting; each 0 or 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PauseFrames(pub [u32; 3]);

/// Sizes of the rings of a device, in frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rings {
    /// Of a receive ring.
    pub receive: u32,
    /// The largest that a receive ring can be.
    pub most_receive: u32,
    /// Of a transmit ring.
    pub transmit: u32,
    /// The largest that a transmit ring can be.
    pub most_transmit: u32,
}

/// How long a device waits for further frames before it interrupts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coalescing {
    /// Microseconds from a received frame to the interrupt.
    pub receive_usecs: u32,
    /// Received frames until the interrupt; 0 for no limit.
    pub receive_frames: u32,
    /// The device chooses the time itself, by its load.
    pub is_adaptive: bool,
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

    /// A number that no other network namespace has had since the machine started; 0 where the kernel, before 5.14, has none.
    pub(super) fn namespace_cookie(&self) -> u64 {
        let mut cookie = 0_u64;
        let mut length = size_of_val(&cookie) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to a local integer.
        let result = unsafe {
            let (level, name) = (libc::SOL_SOCKET, libc::SO_NETNS_COOKIE);
            libc::getsockopt(self.0.as_raw_fd(), level, name, (&raw mut cookie).cast(), &raw mut length)
        };
        if result == 0 { cookie } else { 0 }
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

    /// The present name of the interface with this index.
    pub(super) fn name_of(&self, index: u32) -> io::Result<String> {
        let mut request = empty_request();
        request.ifr_ifru.ifru_ifindex = index as libc::c_int;
        // SAFETY: the request is a complete ifreq, into which the kernel writes a name.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCGIFNAME, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(text(&request.ifr_name.map(|byte| byte as u8)))
    }

    /// Whether it is up, as far as the operator is concerned.
    pub(super) fn is_up(&self, name: &str) -> io::Result<bool> {
        self.has_flag(name, libc::IFF_UP)
    }

    /// Takes an interface up or down.
    pub(super) fn set_up(&self, name: &str, up: bool) -> io::Result<()> {
        self.set_flag(name, libc::IFF_UP, up)
    }

    /// Whether somebody has set promiscuous mode by the interface's flag. Memberships of sockets, which count beside it, are not seen.
    pub(super) fn is_promiscuous(&self, name: &str) -> io::Result<bool> {
        self.has_flag(name, libc::IFF_PROMISC)
    }

    /// Sets the flag of promiscuous mode, which outlives the process, or clears it.
    pub(super) fn set_promiscuous(&self, name: &str, on: bool) -> io::Result<()> {
        self.set_flag(name, libc::IFF_PROMISC, on)
    }

    fn has_flag(&self, name: &str, flag: libc::c_int) -> io::Result<bool> {
        let mut request = empty_request();
        self.request(libc::SIOCGIFFLAGS, name, &mut request)?;
        // SAFETY: the kernel has just written this member.
        Ok(unsafe { request.ifr_ifru.ifru_flags } & flag as libc::c_short != 0)
    }

    fn set_flag(&self, name: &str, flag: libc::c_int, on: bool) -> io::Result<()> {
        let mut request = empty_request();
        self.request(libc::SIOCGIFFLAGS, name, &mut request)?;
        // SAFETY: the kernel has just written this member, of which all values are valid.
        unsafe {
            let flags = request.ifr_ifru.ifru_flags;
            let bit = flag as libc::c_short;
            request.ifr_ifru.ifru_flags = if on { flags | bit } else { flags & !bit };
        }
        self.request(libc::SIOCSIFFLAGS, name, &mut request)
    }

    /// Its MTU, in bytes.
    pub(super) fn mtu(&self, name: &str) -> io::Result<usize> {
        let mut request = empty_request();
        self.request(libc::SIOCGIFMTU, name, &mut request)?;
        // SAFETY: the kernel has just written this member.
        Ok(unsafe { request.ifr_ifru.ifru_mtu }.unsigned_abs() as usize)
    }

    /// Changes its MTU.
    pub(super) fn set_mtu(&self, name: &str, mtu: usize) -> io::Result<()> {
        let mut request = empty_request();
        request.ifr_ifru.ifru_mtu = libc::c_int::try_from(mtu).unwrap_or(libc::c_int::MAX);
        self.request(libc::SIOCSIFMTU, name, &mut request)
    }

    /// An ethtool command. `data` begins with the command's code, which implies its length; the answer replaces it.
    pub(super) fn command(&self, name: &str, data: &mut [u32]) -> io::Result<()> {
        let mut request = empty_request();
        request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
        self.request(libc::SIOCETHTOOL, name, &mut request)
    }

    /// Its features; none where it does not report them.
    pub(super) fn features(&self, name: &str) -> io::Result<Vec<Feature>> {
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
        let blocks = count.div_ceil(32);
        let mut data = vec![0_u32; 2 + 4 * blocks];
        (data[0], data[1]) = (ETHTOOL_GFEATURES, blocks as u32);
        self.command(name, &mut data)?;
        let feature = |(number, name): (usize, &[u8])| {
            // Per block of 32: available, requested, active, never changed.
            let [available, requested, active, fixed] =
                [0, 1, 2, 3].map(|of| data[2 + 4 * (number / 32) + of] >> (number % 32) & 1 != 0);
            Feature {
                name: text(name),
                number,
                may_change: available && !fixed,
                is_requested: requested,
                is_active: active,
            }
        };
        Ok(bytes.chunks_exact(ETH_GSTRING_LEN).enumerate().map(feature).collect())
    }

    /// Asks for these of its `count` features, or for their absence.
    pub(super) fn set_features(&self, name: &str, count: usize, features: &[&Feature], on: bool) -> io::Result<()> {
        let blocks = count.div_ceil(32);
        // Per block: which to set, and to what.
        let mut request = vec![0_u32; 2 + 2 * blocks];
        (request[0], request[1]) = (ETHTOOL_SFEATURES, blocks as u32);
        for feature in features {
            let (block, bit) = (feature.number / 32, 1 << (feature.number % 32));
            request[2 + 2 * block] |= bit;
            request[3 + 2 * block] |= if on { bit } else { 0 };
        }
        self.command(name, &mut request)
    }

    /// The numbers of its queues: those there are, and those there can be.
    pub(super) fn queues(&self, name: &str) -> io::Result<(Queues, Queues)> {
        // cmd, then the possible: rx, tx, other, combined; then the present in the same order.
        let mut channels = [0_u32; 9];
        channels[0] = ETHTOOL_GCHANNELS;
        self.command(name, &mut channels)?;
        let [_, rx, tx, other, combined, now @ ..] = channels;
        Ok((Queues(now), Queues([rx, tx, other, combined])))
    }

    /// Changes the numbers of its queues.
    pub(super) fn set_queues(&self, name: &str, Queues([rx, tx, other, combined]): Queues) -> io::Result<()> {
        self.command(name, &mut [ETHTOOL_SCHANNELS, 0, 0, 0, 0, rx, tx, other, combined])
    }

    /// Whether it sends and heeds pause frames.
    pub(super) fn pause(&self, name: &str) -> io::Result<PauseFrames> {
        let mut pause = [ETHTOOL_GPAUSEPARAM, 0, 0, 0];
        self.command(name, &mut pause)?;
        let [_, pause @ ..] = pause;
        Ok(PauseFrames(pause))
    }

    /// Switches pause frames on or off.
    pub(super) fn set_pause(&self, name: &str, PauseFrames([auto, rx, tx]): PauseFrames) -> io::Result<()> {
        self.command(name, &mut [ETHTOOL_SPAUSEPARAM, auto, rx, tx])
    }

    /// Frames that the device keeps in its receive and transmit rings; 0 when it does not say.
    pub(super) fn ring_frames(&self, name: &str) -> usize {
        self.rings(name).map_or(0, |rings| (rings.receive + rings.transmit) as usize)
    }

    /// The sizes of its rings.
    pub(super) fn rings(&self, name: &str) -> io::Result<Rings> {
        // cmd, then the possible sizes: rx, mini, jumbo, tx; then the present in the same order.
        let mut rings = [0_u32; 9];
        rings[0] = ETHTOOL_GRINGPARAM;
        self.command(name, &mut rings)?;
        let [_, most_receive, _, _, most_transmit, receive, _, _, transmit] = rings;
        Ok(Rings { receive, most_receive, transmit, most_transmit })
    }

    /// How long it waits before it interrupts.
    pub(super) fn coalescing(&self, name: &str) -> io::Result<Coalescing> {
        // cmd; times and frames of reception, at place 10 whether it is adaptive, and more that is not used here; 23 words in all.
        let mut words = [0_u32; 23];
        words[0] = ETHTOOL_GCOALESCE;
        self.command(name, &mut words)?;
        Ok(Coalescing { receive_usecs: words[1], receive_frames: words[2], is_adaptive: words[10] != 0 })
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
    fn the_mtu_of_the_loopback_is_read() {
        let ethtool = Ethtool::new().unwrap();
        assert_eq!(ethtool.mtu("lo").unwrap(), crate::netdev::Interface::locate("lo").unwrap().mtu());
        assert!(ethtool.mtu("no-such-dev").is_err());
    }

    #[test]
    fn a_text_ends_at_its_zero() {
        assert_eq!(text(b"veth\0rest"), "veth");
        assert_eq!(text(b"all of it"), "all of it");
    }
}
