//! A ring of a netmap port as user space sees it: slots in memory shared with the kernel, and the position in them.
//!
//! Only fields that this process alone writes are trusted. The kernel's `tail` and the content of slots come from another process where the
//! port is a pipe or a switch: every number is checked before it is used.

use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use netmap_sys::netmap::{netmap_ring, netmap_slot};

/// The layout that the kernel's ABI has had since version 11 (`net/netmap.h`).
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<netmap_slot>() == 16 && offset_of!(netmap_slot, len) == 4 && offset_of!(netmap_slot, flags) == 6);
    assert!(offset_of!(netmap_ring, num_slots) == 8 && offset_of!(netmap_ring, nr_buf_size) == 12);
    assert!(offset_of!(netmap_ring, head) == 20 && offset_of!(netmap_ring, cur) == 24);
    assert!(offset_of!(netmap_ring, tail) == 28 && offset_of!(netmap_ring, slot) == 256);
};

/// The most slots a ring may have; the kernel's have a few thousand.
const MOST_SLOTS: u32 = 1 << 16;

/// The content of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    /// The number of its buffer.
    pub buffer: u32,
    /// Bytes in it.
    pub len: u16,
    /// `NS_*`.
    pub flags: u16,
}

/// One ring: of received frames, or of frames to be sent.
///
/// From `head` on, [`available`](Ring::available) slots belong to this process; the others belong to the kernel.
#[derive(Debug)]
pub(super) struct Ring {
    ring: NonNull<netmap_ring>,
    slots: u32,
    /// The first slot that belongs to this process. A private copy, which no other process can change.
    head: u32,
}

// SAFETY: the ring is plain shared memory, which its maker keeps mapped; only the holder of `&mut Ring` writes the fields of this process.
unsafe impl Send for Ring {}

impl Ring {
    /// The ring at `ring`, with `room` mapped bytes from there on; `None` when they cannot hold it.
    ///
    /// # Safety
    ///
    /// The memory is readable and writable as long as this lives, and no other `Ring` is made of it.
    pub unsafe fn new(ring: NonNull<netmap_ring>, room: usize) -> Option<Ring> {
        if room < size_of::<netmap_ring>() || !ring.is_aligned() {
            return None;
        }
        // SAFETY: the structure lies in the mapped memory, as just checked.
        let (slots, head) = unsafe {
            let ring = ring.as_ptr();
            ((&raw const (*ring).num_slots).read_volatile(), (&raw const (*ring).head).read_volatile())
        };
        let fits = (2..=MOST_SLOTS).contains(&slots)
            && head < slots
            && size_of::<netmap_ring>() + slots as usize * size_of::<netmap_slot>() <= room;
        fits.then_some(Ring { ring, slots, head })
    }

    /// How many slots it has.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// How many of them, from `head` on, belong to this process now; none if `tail` is invalid.
    pub fn available(&self) -> u32 {
        // SAFETY: the structure is mapped; the kernel writes `tail` only during a system call of this process.
        let tail = unsafe { (&raw const (*self.ring.as_ptr()).tail).read_volatile() };
        // The kernel's writes to the slots are read after this.
        fence(Ordering::Acquire);
        if tail >= self.slots { 0 } else { self.distance(tail) }
    }

    /// The number of slots from `head` to `tail`.
    fn distance(&self, tail: u32) -> u32 {
        if tail >= self.head { tail - self.head } else { tail + self.slots - self.head }
    }

    /// How many slots belong to the kernel, besides the one that always does.
    pub fn kept(&self) -> u32 {
        self.slots - 1 - self.available().min(self.slots - 1)
    }

    /// The content of the slot `ahead` slots after `head`.
    pub fn slot(&self, ahead: u32) -> Slot {
        // SAFETY: `place` lies inside the ring, whose size `new` has checked.
        let slot = unsafe { self.place(ahead).read_volatile() };
        Slot { buffer: slot.buf_idx, len: slot.len, flags: slot.flags }
    }

    /// Sets the content of the slot `ahead` slots after `head`.
    pub fn set_slot(&mut self, ahead: u32, Slot { buffer, len, flags }: Slot) {
        // SAFETY: as in `slot`; the kernel does not access slots that belong to this process.
        unsafe { self.place(ahead).write_volatile(netmap_slot { buf_idx: buffer, len, flags, ptr: 0 }) };
    }

    fn place(&self, ahead: u32) -> *mut netmap_slot {
        debug_assert!(ahead < self.slots);
        let at = self.head + ahead;
        let at = if at >= self.slots { at - self.slots } else { at };
        // SAFETY: the field is inside the mapped structure, and `at < slots` slots follow it, as `new` has checked.
        unsafe { (&raw mut (*self.ring.as_ptr()).slot).cast::<netmap_slot>().add(at as usize) }
    }

    /// Gives the first `count` slots to the kernel, which takes them at the next synchronisation.
    pub fn advance(&mut self, count: u32) {
        debug_assert!(count <= self.available());
        self.head = (self.head + count) % self.slots;
        self.publish();
    }

    /// Publishes `head` and `cur` to the kernel again. A kernel that finds an invalid pointer in the ring (any process that shares the memory
    /// can write one) resets both to where it last read them (`netmap_ring_reinit`), and would wait for the slots given back since.
    pub fn publish(&mut self) {
        // The writes to the slots are visible before the kernel reads `head`.
        fence(Ordering::Release);
        // SAFETY: user space writes these two fields.
        unsafe {
            let ring = self.ring.as_ptr();
            (&raw mut (*ring).cur).write_volatile(self.head);
            (&raw mut (*ring).head).write_volatile(self.head);
        }
    }
}
