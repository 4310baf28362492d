//! An XDP program attached to an interface: by a link, which ends with the process, or by netlink, so that the program stays when the process is
//! killed.
//!
//! A program that is to be replaced or detached is known by its number. The kernel could compare it itself, but tells a descriptor for a number only to
//! a process with CAP_SYS_ADMIN, which the box does not ask for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use tracing::debug;

use super::rtnetlink::{Rtnetlink, push_attribute};
use crate::bpf;

// linux/rtnetlink.h, linux/if_link.h
const RTM_SETLINK: u16 = 19;
const NLM_F_ACK: u16 = 4;
const NESTED: u16 = 1 << 15;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const IF_NONE: u32 = 1;
const SKB_MODE: u32 = 1 << 1;
const DRV_MODE: u32 = 1 << 2;
/// Bytes of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
/// The descriptor that stands for no program.
const NONE: libc::c_int = -1;

/// Whether the program of this number is attached to the interface of this index, in driver mode or in generic mode.
pub(crate) fn is_attached_as(index: u32, id: u32, driver: bool) -> bool {
    let link = Rtnetlink::new().and_then(|mut netlink| netlink.indexed(index));
    id != 0 && link.is_ok_and(|link| link.xdp_program == id && link.is_xdp_generic != driver)
}

/// An XDP program on an interface. Dropping it detaches the program, unless it is [kept](Attachment::keep).
#[derive(Debug)]
pub(crate) struct Attachment(Way);

#[derive(Debug)]
enum Way {
    /// The kernel detaches the program when this is closed, also when the process is killed.
    Link { _link: OwnedFd },
    /// Nobody detaches the program but this process, or another one that is asked to.
    Netlink { netlink: Rtnetlink, index: u32, id: u32, is_kept: bool },
}

impl Attachment {
    /// Attaches `program` to the interface of this index, in driver mode or in generic mode, until the process ends.
    ///
    /// # Errors
    ///
    /// The kernel's: `EBUSY` or `EEXIST` when another program is attached.
    pub(crate) fn by_link(program: BorrowedFd<'_>, index: u32, driver: bool) -> io::Result<Attachment> {
        match bpf::link_xdp(program, index, mode(driver)) {
            Ok(link) => Ok(Attachment(Way::Link { _link: link })),
            // A kernel without such links: the program goes by netlink.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Attachment::by_netlink(program, index, driver, None).map_err(|_| error)
            }
            Err(error) => Err(error),
        }
    }

    /// The same, so that the program stays when the process is killed. A program that a `former` process has left, by its number, is replaced without
    /// a gap where it has the same mode.
    ///
    /// # Errors
    ///
    /// As [`Attachment::by_link`].
    pub(crate) fn by_netlink(
        program: BorrowedFd<'_>,
        index: u32,
        driver: bool,
        former: Option<u32>,
    ) -> io::Result<Attachment> {
        let mut netlink = Rtnetlink::new()?;
        let link = netlink.indexed(index)?;
        let is_left = former.is_some_and(|former| former == link.xdp_program && former != 0);
        let is_same_mode = link.is_xdp_generic != driver;
        if is_left && !is_same_mode {
            set(&mut netlink, index, NONE, mode(!driver))?;
        }
        // In place of the former program alone, or where there is none.
        let flags = if is_left && is_same_mode { 0 } else { IF_NONE };
        set(&mut netlink, index, program.as_raw_fd(), mode(driver) | flags)?;
        Ok(Attachment(Way::Netlink { netlink, index, id: bpf::id_of(program)?, is_kept: false }))
    }

    /// Leaves the program where it is when this is dropped, for a successor. One that is attached by a link goes with the process all the same.
    pub(crate) fn keep(&mut self) {
        if let Way::Netlink { is_kept, .. } = &mut self.0 {
            *is_kept = true;
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let Way::Netlink { netlink, index, id, is_kept: false } = &mut self.0 else { return };
        if let Err(error) = detach_with(netlink, *index, *id) {
            debug!("the XDP program of interface {index} was not detached: {error}");
        }
    }
}

/// Detaches the program of this number, if it is the one that is attached; returns whether it was.
///
/// # Errors
///
/// The kernel's.
pub(super) fn detach(index: u32, id: u32) -> io::Result<bool> {
    detach_with(&mut Rtnetlink::new()?, index, id)
}

fn detach_with(netlink: &mut Rtnetlink, index: u32, id: u32) -> io::Result<bool> {
    let link = netlink.indexed(index)?;
    if id == 0 || link.xdp_program != id {
        return Ok(false);
    }
    set(netlink, index, NONE, mode(!link.is_xdp_generic)).map(|()| true)
}

/// Whether the program of this number is attached.
pub(super) fn is_attached(index: u32, id: u32) -> bool {
    let link = Rtnetlink::new().and_then(|mut netlink| netlink.indexed(index));
    id != 0 && link.is_ok_and(|link| link.xdp_program == id)
}

fn mode(driver: bool) -> u32 {
    if driver { DRV_MODE } else { SKB_MODE }
}

/// Sets the program of an interface, or none.
fn set(netlink: &mut Rtnetlink, index: u32, program: libc::c_int, flags: u32) -> io::Result<()> {
    let mut body = vec![0; IFINFOMSG];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut xdp = Vec::new();
    push_attribute(&mut xdp, IFLA_XDP_FD, &program.to_ne_bytes());
    push_attribute(&mut xdp, IFLA_XDP_FLAGS, &flags.to_ne_bytes());
    push_attribute(&mut body, IFLA_XDP | NESTED, &xdp);
    netlink.request(RTM_SETLINK, NLM_F_ACK, &body, |_| ())
}
