//! A packet socket that only sends: many frames per system call, bypassing the queueing discipline.

// System calls of a raw socket that no safe wrapper has.
#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, MMsgHdr, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, netdevice, sendmmsg, socket_with,
    sockopt,
};

use crate::flood_template::Mac;

/// Bytes the socket may have queued towards a slow device; the kernel doubles and caps it.
const SEND_BUFFER: usize = 4 << 20;

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
        // Protocol 0: this socket never receives.
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let index = netdevice::name_to_index(&socket, interface)?;
        bind(&socket, index)?;
        bypass_queueing(&socket)?;
        sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
        Ok(Sender { socket })
    }

    /// The Ethernet address of `interface`.
    ///
    /// # Errors
    /// The kernel's; `InvalidInput` for a name that is too long.
    pub fn mac(&self, interface: &str) -> io::Result<Mac> {
        let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
        // The last byte stays zero and ends the name.
        if interface.len() >= name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        let empty = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
        let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_hwaddr: empty };
        let mut request = libc::ifreq { ifr_name: name, ifr_ifru };
        // SAFETY: SIOCGIFHWADDR reads the name and writes the hardware address of this ifreq, which outlives the call.
        if unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `ifru_hwaddr` is the member that was initialised above and that the successful call has written.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr };
        Ok(std::array::from_fn(|i| address.sa_data[i] as u8))
    }

    /// Sends the frames that lie back to back in `frames`, each `len` bytes long; returns how many the kernel took.
    /// A full device takes none, which is not an error.
    ///
    /// # Errors
    /// The kernel's: the interface went down, a frame longer than its MTU.
    ///
    /// # Panics
    /// If `frames` is not a whole number of frames.
    pub fn send(&self, frames: &[u8], len: usize) -> io::Result<usize> {
        assert_eq!(frames.len() % len, 0);
        let parts: Vec<[IoSlice<'_>; 1]> = frames.chunks_exact(len).map(|frame| [IoSlice::new(frame)]).collect();
        let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> =
            parts.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let mut messages: Vec<MMsgHdr<'_>> =
            parts.iter().zip(&mut controls).map(|(part, control)| MMsgHdr::new(part, control)).collect();
        match sendmmsg(&self.socket, &mut messages, SendFlags::DONTWAIT) {
            Ok(sent) => Ok(sent),
            Err(Errno::NOBUFS | Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

/// Binds a packet socket to the interface of this index.
fn bind(socket: &OwnedFd, index: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `address` is a sockaddr_ll of the length given, and the kernel only reads it during the call.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Frames go to the driver directly, past the queueing discipline.
fn bypass_queueing(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int of the length given, and the kernel only reads it during the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
