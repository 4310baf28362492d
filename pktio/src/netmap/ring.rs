//! A ring of a netmap port as user space sees it: slots in memory shared with the kernel, and where we are in them.
//!
//! Of what lies in shared memory only what is ours to write is taken for granted. The kernel's `tail`, and what a slot says, come from
//! another process where the port is a pipe or a switch: every number is checked before it is used.

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

/// The most slots a ring may have; what the kernel makes has a few thousand.
const MOST_SLOTS: u32 = 1 << 16;

/// What a slot says.
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
/// From `head` on, as far as [`available`](Ring::available) says, the slots are ours; the others are the kernel's.
#[derive(Debug)]
pub(super) struct Ring {
    ring: NonNull<netmap_ring>,
    slots: u32,
    /// Where the slots that are ours begin. Our own copy: nobody else may move it.
    head: u32,
}

// SAFETY: the ring is plain shared memory, which whoever made this keeps mapped; only the holder of `&mut Ring` writes what is ours.
unsafe impl Send for Ring {}

impl Ring {
    /// The ring at `ring`, behind which `room` bytes are mapped; `None` when they cannot hold it.
    ///
    /// # Safety
    ///
    /// The memory is readable and writable as long as this lives, and no other `Ring` is made of it.
    pub unsafe fn new(ring: NonNull<netmap_ring>, room: usize) -> Option<Ring> {
        if room < size_of::<netmap_ring>() || !ring.is_aligned() {
            return None;
        }
        // SAFETY: the structure lies in the mapped memory, as just seen.
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

    /// How many of them, from `head` on, are ours at this moment. A `tail` that makes no sense leaves us none.
    pub fn available(&self) -> u32 {
        // SAFETY: the structure is mapped; the kernel writes `tail` only while it serves a call of ours.
        let tail = unsafe { (&raw const (*self.ring.as_ptr()).tail).read_volatile() };
        // What the kernel has written to the slots is read after this.
        fence(Ordering::Acquire);
        if tail >= self.slots { 0 } else { self.distance(tail) }
    }

    /// How many slots lie from `head` to `tail`.
    fn distance(&self, tail: u32) -> u32 {
        if tail >= self.head { tail - self.head } else { tail + self.slots - self.head }
    }

    /// How many slots are the kernel's, beyond the one that always is.
    pub fn kept(&self) -> u32 {
        self.slots - 1 - self.available().min(self.slots - 1)
    }

    /// What the slot says that is `ahead` behind `head`.
    pub fn slot(&self, ahead: u32) -> Slot {
        // SAFETY: `place` lies inside the ring, which `new` has measured.
        let slot = unsafe { self.place(ahead).read_volatile() };
        Slot { buffer: slot.buf_idx, len: slot.len, flags: slot.flags }
    }

    /// Has the slot that is `ahead` behind `head` say this.
    pub fn set_slot(&mut self, ahead: u32, Slot { buffer, len, flags }: Slot) {
        // SAFETY: as in `slot`; the kernel does not look at slots that are ours.
        unsafe { self.place(ahead).write_volatile(netmap_slot { buf_idx: buffer, len, flags, ptr: 0 }) };
    }

    fn place(&self, ahead: u32) -> *mut netmap_slot {
        debug_assert!(ahead < self.slots);
        let at = self.head + ahead;
        let at = if at >= self.slots { at - self.slots } else { at };
        // SAFETY: the field is inside the mapped structure, and `at < slots` slots follow it, as `new` has measured.
        unsafe { (&raw mut (*self.ring.as_ptr()).slot).cast::<netmap_slot>().add(at as usize) }
    }

    /// Hands the first `count` of our slots to the kernel, which takes them at the next synchronisation.
    pub fn advance(&mut self, count: u32) {
        debug_assert!(count <= self.available());
        self.head = (self.head + count) % self.slots;
        self.tell();
    }

    /// Tells the kernel once more which slots are its own. One that has found a pointer in the ring which makes no sense (whoever shares the
    /// memory can write one) takes both back to where it last looked (`netmap_ring_reinit`), and would wait for the slots we gave back since.
    pub fn tell(&mut self) {
        // What we have written to the slots is there before the kernel learns of it.
        fence(Ordering::Release);
        // SAFETY: these two fields are user space's to write.
        unsafe {
            let ring = self.ring.as_ptr();
            (&raw mut (*ring).cur).write_volatile(self.head);
            (&raw mut (*ring).head).write_volatile(self.head);
        }
    }
}
