//! A packet socket that only sends: many frames a system call, past the queueing discipline.

// System calls of a raw socket.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::spray::Mac;

/// A sender of whole Ethernet frames on one interface.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
}

impl Sender {
    /// Opens `interface` for sending. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// The kernel's: no such interface, no permission, interface down.
    pub fn open(interface: &str) -> io::Result<Sender> {
        let name = CString::new(interface).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `name` ends in a zero byte and lives through the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // Protocol 0: this socket never receives.
        // SAFETY: no pointers; the descriptor returned is ours alone, so OwnedFd may close it.
        let socket = unsafe {
            let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            if socket < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(socket)
        };
        // SAFETY: an all-zero sockaddr_ll is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        // SAFETY: `address` is a sockaddr_ll, and its size is given.
        let bound = unsafe {
            let address = (&raw const address).cast();
            libc::bind(socket.as_raw_fd(), address, mem::size_of::<libc::sockaddr_ll>() as u32)
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        let sender = Sender { socket };
        sender.set(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        // Frames in flight towards a slow device; the kernel doubles and caps it.
        sender.set(libc::SOL_SOCKET, libc::SO_SNDBUF, 4 << 20)?;
        Ok(sender)
    }

    fn set(&self, level: i32, option: i32, value: i32) -> io::Result<()> {
        // SAFETY: the value is an int, and its size is given.
        let done = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                mem::size_of::<i32>() as u32,
            )
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The Ethernet address of `interface`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mac(&self, interface: &str) -> io::Result<Mac> {
        // SAFETY: an all-zero ifreq is a valid value.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        // One byte stays zero: it ends the name.
        if interface.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: SIOCGIFHWADDR reads the name and writes the hardware address of this ifreq.
        if unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so this member of the union is the one that was written.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr };
        Ok(std::array::from_fn(|i| address.sa_data[i] as u8))
    }

    /// Sends the frames that lie back to back in `frames`, each `len` bytes long; returns how many the kernel took.
    /// A device that is full takes none, which is no error.
    ///
    /// # Errors
    /// The kernel's: the interface went down, a frame longer than its MTU.
    ///
    /// # Panics
    /// If `frames` is not a whole number of frames.
    pub fn send(&self, frames: &[u8], len: usize) -> io::Result<usize> {
        assert_eq!(frames.len() % len, 0);
        let mut parts: Vec<libc::iovec> = frames
            .chunks_exact(len)
            .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: len })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: an all-zero mmsghdr is a valid value.
                let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        // SAFETY: every header points at one part, every part at a frame inside `frames`; all outlive the call, and the
        // kernel only reads what they point at.
        let sent = unsafe {
            libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), messages.len() as u32, libc::MSG_DONTWAIT)
        };
        if sent >= 0 {
            return Ok(sent as usize);
        }
        match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR)) => Ok(0),
            error => Err(error),
        }
    }
}
