//! Super-frames above 64 KiB (BIG TCP): interfaces that take them, and hosts that send them.

use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

use super::{Namespace, Rig};

/// `GSO_MAX_SIZE`, `GRO_MAX_SIZE`, and the same for IPv4, of the attributes of `linux/if_link.h`: `ip` knows the last two since 6.3 only.
const ATTRIBUTES: [u16; 4] = [41, 58, 63, 64];

impl Rig {
    /// The same rig with default offloads, whose hosts send super-frames of up to `longest` bytes in either version of IP; all interfaces take them. Before Linux 6.3
    /// those of IPv4 stay below 64 KiB, before 5.19 all.
    ///
    /// # Panics
    /// Without root, or if the kernel takes no such length.
    #[must_use]
    pub fn with_big_tcp(self, longest: u32) -> Rig {
        let rig = self.with_default_offloads(false);
        for (namespace, interface) in
            [(&rig.client, "c0"), (&rig.server, "s0"), (&rig.middle, Rig::LAN), (&rig.middle, Rig::WAN)]
        {
            allow(namespace, interface, longest).unwrap_or_else(|error| panic!("{interface}: {error}"));
        }
        rig
    }
}

/// Lets an interface take super-frames of up to `longest` bytes.
fn allow(namespace: &Namespace, interface: &str, longest: u32) -> io::Result<()> {
    let (socket, index) = namespace.run(|| {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket::socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkRoute)?;
        io::Result::Ok((socket, if_nametoindex(interface)?))
    })?;
    // struct ifinfomsg: nothing but the interface.
    let mut body = vec![0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    for attribute in ATTRIBUTES {
        body.extend([8, attribute].map(u16::to_ne_bytes).concat());
        body.extend(longest.to_ne_bytes());
    }
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend([libc::RTM_NEWLINK, flags].map(u16::to_ne_bytes).concat());
    message.extend([0; 8]);
    message.extend(body);
    socket::send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let length = socket::recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // struct nlmsgerr behind the header: zero, or an error's number below zero.
    let error = answer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match error {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
