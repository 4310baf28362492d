//! Packet sockets: opening, binding, options.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The interface as the kernel knows it.
#[derive(Clone, Copy)]
pub(super) struct Device {
    pub index: i32,
    /// Bytes.
    pub mtu: usize,
}

impl Device {
    /// Looks `name` up.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is no such interface, `InvalidInput` when it is no Ethernet interface.
    pub(super) fn find(name: &str) -> io::Result<Device> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        let text = CString::new(name).map_err(|_| invalid(format!("`{name}` is no interface name")))?;
        let fd = open()?;
        // SAFETY: all zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        let bytes = text.as_bytes();
        if bytes.is_empty() || bytes.len() >= request.ifr_name.len() {
            return Err(invalid(format!("`{name}` is no interface name: it has 1 to 15 bytes")));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        let ask = |request: &mut libc::ifreq, what| {
            // SAFETY: the three requests below read and write an ifreq and nothing else.
            match unsafe { libc::ioctl(fd.as_raw_fd(), what, std::ptr::from_mut(request)) } {
                0 => Ok(()),
                _ => match io::Error::last_os_error() {
                    e if e.raw_os_error() == Some(libc::ENODEV) => {
                        Err(io::Error::new(io::ErrorKind::NotFound, format!("no interface is named `{name}`")))
                    }
                    e => Err(e),
                },
            }
        };
        ask(&mut request, libc::SIOCGIFINDEX)?;
        // SAFETY: the request filled in this field of the union.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        ask(&mut request, libc::SIOCGIFMTU)?;
        // SAFETY: as above.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        ask(&mut request, libc::SIOCGIFHWADDR)?;
        // SAFETY: as above.
        let kind = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
        if kind != libc::ARPHRD_ETHER && kind != libc::ARPHRD_LOOPBACK {
            return Err(invalid(format!("`{name}` is no Ethernet interface")));
        }
        Ok(Device { index, mtu: usize::try_from(mtu).unwrap_or(0).clamp(68, 65_536) })
    }

    /// Binds a packet socket to the interface, to receive this protocol.
    pub(super) fn bind(&self, fd: &OwnedFd, protocol: u16) -> io::Result<()> {
        // SAFETY: all zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = self.index;
        // SAFETY: the address is of the length given.
        let result = unsafe {
            let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), length)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Opens a packet socket.
pub(super) fn open() -> io::Result<OwnedFd> {
    // SAFETY: a call without pointers; the descriptor it returns belongs to nothing else.
    unsafe {
        match libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// What a socket has sent and the kernel still charges to it, in bytes of the kernel's memory.
pub(super) fn unsent(fd: &OwnedFd) -> i32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes an integer.
    match unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } {
        0 => bytes,
        _ => libc::c_int::MAX,
    }
}

/// Sets an option. `T` is a plain C structure or an integer.
pub(super) fn set<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value is of the length given, and the kernel only reads it.
    let result = unsafe {
        let length = size_of::<T>() as libc::socklen_t;
        libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads an option. `T` is a plain C structure of integers: whatever the kernel writes is a valid value.
pub(super) fn get<T: Copy>(fd: &OwnedFd, level: i32, name: i32, value: &mut T) -> io::Result<()> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes of plain integers.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, std::ptr::from_mut(value).cast(), &raw mut length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Blocks all frames until the filter is detached.
pub(super) fn block_all(fd: &OwnedFd) -> io::Result<()> {
    // One instruction: return 0, the number of bytes to keep.
    let mut program = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Joins the fanout group `group`, or makes a new one, and returns its number. Members are numbered as they join.
pub(super) fn join_fanout(fd: &OwnedFd, group: Option<u32>) -> io::Result<u32> {
    let flags = match group {
        None => libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_UNIQUEID,
        Some(_) => libc::PACKET_FANOUT_HASH,
    };
    let ask = |flags: u32| set(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &(group.unwrap_or(0) | flags << 16));
    // In a group the group's own flag counts; kernels before 6.1 do not know it, and there the packet type shows it.
    ask(flags | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING).or_else(|_| ask(flags))?;
    let mut joined = 0u32;
    get(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &mut joined)?;
    Ok(joined & 0xffff)
}

/// `struct packet_mreq`.
#[repr(C)]
#[derive(Default)]
pub(super) struct Membership {
    pub ifindex: i32,
    pub kind: u16,
    pub address_len: u16,
    pub address: [u8; 8],
}
