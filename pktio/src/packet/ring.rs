//! The receive ring of a packet socket, mapped from the kernel (`TPACKET_V2`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use super::socket;
use crate::mapping::Mapping;

/// `struct tpacket_req`.
#[repr(C)]
#[derive(Default)]
struct RingRequest {
    block_size: u32,
    blocks: u32,
    frame_size: u32,
    frames: u32,
}

/// `TPACKET_V2` of `enum tpacket_versions`.
pub(super) const TPACKET_V2: i32 = 1;

/// What the kernel writes in front of the frame, `TPACKET_ALIGN(TPACKET2_HDRLEN)` and the virtio-net header at most.
const SLOT_OVERHEAD: usize = 96;

/// The receive ring, mapped.
pub(super) struct Ring {
    mapping: Mapping,
    block_size: usize,
    slot_size: usize,
    slots_per_block: usize,
    slots: usize,
    next: usize,
}

/// A slot's header, read once.
pub(super) struct Slot {
    /// `TP_STATUS_*`.
    pub status: u32,
    /// Bytes of the frame on the wire.
    pub len: u32,
    /// Bytes of it in the slot.
    pub captured: u32,
    /// Where in the slot the frame begins.
    pub mac: u16,
    /// The stripped tag, and its type.
    pub tci: u16,
    pub tpid: u16,
    /// `PACKET_HOST`, `PACKET_OUTGOING` and so on.
    pub kind: u8,
}

impl Ring {
    /// The ring of a bound socket, for `frames` frames of at most `max_frame` bytes.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)` and `mmap(2)`.
    pub(super) fn new(fd: &OwnedFd, max_frame: usize, frames: usize) -> io::Result<Ring> {
        let slot_size = (SLOT_OVERHEAD + max_frame).next_multiple_of(64);
        // The kernel requires blocks of whole pages; a power of two wastes nothing of what its allocator gives.
        let block_size = slot_size.next_power_of_two().max(64 << 10);
        let slots_per_block = block_size / slot_size;
        let blocks = frames.div_ceil(slots_per_block);
        let slots = blocks * slots_per_block;
        let size = blocks.checked_mul(block_size).filter(|size| u32::try_from(*size).is_ok());
        let Some(size) = size else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a receive ring of {frames} frames")));
        };
        // No truncation: all are at most `size`, which fits.
        let request = RingRequest {
            block_size: block_size as u32,
            blocks: blocks as u32,
            frame_size: slot_size as u32,
            frames: slots as u32,
        };
        socket::set(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let mapping = Mapping::shared(fd.as_fd(), size)?;
        Ok(Ring { mapping, block_size, slot_size, slots_per_block, slots, next: 0 })
    }

    /// The current slot.
    fn slot(&self) -> *mut u8 {
        let offset =
            self.next / self.slots_per_block * self.block_size + self.next % self.slots_per_block * self.slot_size;
        // SAFETY: `next` is below `slots`, so the slot lies inside the mapping.
        unsafe { self.mapping.base().as_ptr().add(offset) }
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: the status is the first word of a slot, slots are aligned to 64 bytes, and both sides change it atomically.
        unsafe { AtomicU32::from_ptr(self.slot().cast()) }
    }

    /// The header of the current slot once the kernel has filled it. The slot then belongs to this process until `release`.
    pub(super) fn current(&self) -> Option<Slot> {
        // Acquire: the kernel's writes before the status are visible after it.
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let slot = self.slot();
        // SAFETY: the slot belongs to this process, begins with this header, aligned, and with a link-layer address behind it
        // (TPACKET_ALIGN of the header's 32 bytes is 32).
        let (header, address) = unsafe {
            (
                slot.cast::<libc::tpacket2_hdr>().read(),
                slot.add(size_of::<libc::tpacket2_hdr>()).cast::<libc::sockaddr_ll>(),
            )
        };
        const _: () = assert!(size_of::<libc::tpacket2_hdr>() == 32);
        Some(Slot {
            status,
            len: header.tp_len,
            captured: header.tp_snaplen,
            mac: header.tp_mac,
            tci: header.tp_vlan_tci,
            tpid: header.tp_vlan_tpid,
            // SAFETY: as above.
            kind: unsafe { (*address).sll_pkttype },
        })
    }

    /// `len` bytes at `at` of the current slot; `None` when they do not lie in it. Only between `current` and `release`.
    pub(super) fn bytes(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        if at.checked_add(len)? > self.slot_size {
            return None;
        }
        // SAFETY: the range lies in the slot, which belongs to this process: its callers have seen `current` return it, and the
        // kernel does not access it until `release`.
        Some(unsafe { std::slice::from_raw_parts_mut(self.slot().add(at), len) })
    }

    /// Gives the current slot back to the kernel.
    pub(super) fn release(&mut self) {
        // Release: the kernel may overwrite the slot only after it was read.
        self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % self.slots;
    }
}
